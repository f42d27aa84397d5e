package wecomsim

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

func TestFaultsAreChecked(t *testing.T) {
	s := newSim(t, Config{})
	for _, tc := range []struct{ body, want string }{
		{`{"api":{"message/sned":{"errcode":1}}}`, `api "message/sned": not played`},
		{`{"api":{"message/send":{}}}`, "says none of"},
		{`{"api":{"message/send":{"errcode":1,"http":502}}}`, "exclude each other"},
		{`{"api":{"message/send":{"http":99}}}`, "http 99"},
		{`{"api":{"message/send":{"errcode":1,"rate":2}}}`, "rate 2"},
		{`{"api":{"message/send":[{"errcode":1},{"errcode":1,"count":-1}]}}`, "count -1"},
		{`{"api":{"message/send":{"delay":"soon"}}}`, `delay "soon"`},
		{`{"api":{"message/send":{"delay":2}}}`, `delay 2`},
		{`{"api":{"message/send":{"delay":"-2s"}}}`, "delay -2s"},
		{`{"api":{"message/send":{"errcoed":1}}}`, `unknown field "errcoed"`},
		{`{"strict":true}`, `unknown field "strict"`},
		{`{"markdown_overflow":"maybe"}`, "markdown_overflow"},
		{`{"token":{"rotate":"yes"}}`, "token rotate"},
		{`{"token":{"expired_errcode":1}}`, "expired_errcode 1"},
		{`{"token":{"expires_in":9999}}`, "expires_in 9999"},
		{`nonsense`, "body: "},
	} {
		w := do(s, "PUT", "/sim/faults", tc.body)
		if e := decodeBody[errorBody](t, w); w.Code != 400 || !strings.Contains(e.Error, tc.want) {
			t.Errorf("%s: status %d, error %q, want 400 with %q", tc.body, w.Code, e.Error, tc.want)
		}
	}
	good := `{"api":{"message/send":[{"errcode":45009,"delay":"2s","rate":0.1,"count":3}]},"seed":7,"strict_duplicates":true,"drop_over_member_limit":true}` + "\n"
	if w := do(s, "PUT", "/sim/faults", good); w.Code != 200 || w.Body.String() != good {
		t.Errorf("PUT: status %d, %s, want %s", w.Code, w.Body, good)
	}
	if w := do(s, "PUT", "/sim/faults", `{"seed":`); w.Code != 400 {
		t.Errorf("status %d, want 400", w.Code)
	}
	if w := do(s, "GET", "/sim/faults", ""); w.Body.String() != good {
		t.Errorf("a refused PUT changed the faults: %s", w.Body)
	}
	do(s, "DELETE", "/sim/state", "")
	if w := do(s, "GET", "/sim/faults", ""); strings.TrimSpace(w.Body.String()) != "{}" {
		t.Errorf("after DELETE: %s, want {}", w.Body)
	}
}

func setFaults(t *testing.T, s *Server, body string) {
	t.Helper()
	if w := do(s, "PUT", "/sim/faults", body); w.Code != 200 {
		t.Fatalf("PUT /sim/faults: status %d, %s", w.Code, w.Body)
	}
}

func TestFaultCountAndRate(t *testing.T) {
	s := newSim(t, Config{})
	setFaults(t, s, `{"api":{"message/send":{"errcode":45009,"count":2},"gettoken":{"delay":"1us"}}}`)
	for i, want := range []int{45009, 45009, 0} {
		if r := send(t, s, text("alice", "x")); r.ErrCode != want {
			t.Errorf("call %d: errcode %d, want %d", i+1, r.ErrCode, want)
		}
	}
	if got := len(s.Inbox("alice")); got != 1 {
		t.Errorf("%d delivered, want 1", got)
	}

	pattern := func() (p string) {
		setFaults(t, s, `{"api":{"message/send":{"errcode":-1,"rate":0.25}},"seed":42}`)
		for range 400 {
			p += map[bool]string{true: "x", false: "."}[send(t, s, text("bob", "x")).ErrCode == -1]
		}
		return p
	}
	first := pattern()
	if n := strings.Count(first, "x"); n < 60 || n > 140 {
		t.Errorf("rate 0.25 struck %d of 400 calls", n)
	}
	if again := pattern(); again != first {
		t.Error("the same seed gave other strikes")
	}

	setFaults(t, s, `{"api":{"message/send":{"errcode":45033,"errmsg":"own words","after":true,"count":1}}}`)
	if r := send(t, s, text("carol", "x")); r.ErrCode != 45033 || !strings.HasPrefix(r.ErrMsg, "own words, hint") || len(s.Inbox("carol")) != 1 {
		t.Errorf("after: %+v, inbox %v", r, s.Inbox("carol"))
	}
	setFaults(t, s, `{"api":{"gettoken":{"errcode":45009}}}`)
	if w := do(s, "GET", "/cgi-bin/gettoken?corpid="+testCorp+"&corpsecret="+testSecret, ""); decodeBody[tokenReply](t, w).ErrCode != 45009 {
		t.Errorf("gettoken: %s", w.Body)
	}
}

func TestFaultDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{})
		tok := accessToken(t, s)
		setFaults(t, s, `{"api":{"message/send":{"delay":"2s"}}}`)
		start := time.Now()
		w := do(s, "POST", "/cgi-bin/message/send?access_token="+tok, text("alice", "x"))
		if decodeBody[sendReply](t, w).ErrCode != 0 || time.Since(start) != 2*time.Second {
			t.Errorf("%s after %v, want success after 2s", w.Body, time.Since(start))
		}
		start = time.Now()
		setFaults(t, s, `{}`)
		do(s, "POST", "/cgi-bin/message/send?access_token="+tok, text("slow-1500", "x"))
		if time.Since(start) != 1500*time.Millisecond || len(s.Inbox("slow-1500")) != 1 {
			t.Errorf("slow-1500: %v, inbox %v", time.Since(start), s.Inbox("slow-1500"))
		}
	})
}

// TestTrouble makes calls go wrong on a real connection, by recipient and by fault.
func TestTrouble(t *testing.T) {
	s := newSim(t, Config{})
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	t.Cleanup(s.Close)
	tok := accessToken(t, s)
	type outcome struct {
		status int
		body   string
		err    error
	}
	call := func(ctx context.Context, user string) outcome {
		req, _ := http.NewRequestWithContext(ctx, "POST", srv.URL+"/cgi-bin/message/send?access_token="+tok, strings.NewReader(text(user, "x")))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return outcome{err: err}
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		return outcome{res.StatusCode, string(b), err}
	}
	cutOff := func(o outcome) bool { return errors.Is(o.err, syscall.ECONNRESET) || errors.Is(o.err, io.EOF) }
	page := func(o outcome) bool { return o.status == 502 && strings.Contains(o.body, "<h1>502 Bad Gateway</h1>") }
	garbled := func(o outcome) bool { return o.status == 200 && o.body == `{"errcode":0,"errm` }
	for _, tc := range []struct {
		user, fault string
		want        func(outcome) bool // nil: no answer at all
		delivered   int
	}{
		{"timeout", `{}`, nil, 0},
		{"timeout-after", `{}`, nil, 1},
		{"http-502", `{}`, page, 0},
		{"reset", `{}`, cutOff, 0},
		{"Reset-After", `{}`, cutOff, 1},
		{"garbled", `{}`, garbled, 1},
		{"u1", `{"api":{"message/send":{"hang":true}}}`, nil, 0},
		{"u2", `{"api":{"message/send":{"hang":true,"after":true}}}`, nil, 1},
		{"u3", `{"api":{"message/send":{"reset":true}}}`, cutOff, 0},
		{"u4", `{"api":{"message/send":{"reset":true,"after":true}}}`, cutOff, 1},
		{"u5", `{"api":{"message/send":{"http":502}}}`, page, 0},
		{"u6", `{"api":{"message/send":{"http":502,"after":true}}}`, page, 1},
		{"u7", `{"api":{"message/send":{"garbled":true,"after":true}}}`, garbled, 1},
		{"u8", `{"api":{"message/send":{"delay":"10m"}}}`, nil, 0},
	} {
		setFaults(t, s, tc.fault)
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		got := make(chan outcome, 1)
		go func() { got <- call(ctx, tc.user) }()
		var o outcome
		if tc.want != nil {
			o = <-got
		} else {
			eventually(t, tc.user+" is delivered to", func() bool { return len(s.Inbox(tc.user)) == tc.delivered })
			select {
			case o = <-got:
				t.Errorf("%s %s: answered %+v, want nothing", tc.user, tc.fault, o)
			case <-time.After(50 * time.Millisecond): // silence cannot be waited for
			}
		}
		cancel()
		if tc.want != nil && !tc.want(o) {
			t.Errorf("%s %s: %+v", tc.user, tc.fault, o)
		}
		if got := len(s.Inbox(tc.user)); got != tc.delivered {
			t.Errorf("%s %s: %d delivered, want %d", tc.user, tc.fault, got, tc.delivered)
		}
	}
}

// TestCloseEndsWhatHangs: an HTTP server can be shut down while answers hang on purpose.
func TestCloseEndsWhatHangs(t *testing.T) {
	s := newSim(t, Config{})
	srv := httptest.NewServer(s)
	defer srv.Close() // waits for every open request
	tok := accessToken(t, s)
	done := make(chan error, 2)
	go func() {
		res, err := http.Post(srv.URL+"/cgi-bin/message/send?access_token="+tok, "", strings.NewReader(text("timeout-after", "x")))
		if err == nil {
			res.Body.Close()
			err = errors.New("answered")
		} else {
			err = nil
		}
		done <- err
	}()
	go func() {
		res, err := http.Get(srv.URL + "/sim/events")
		if err == nil {
			_, err = io.Copy(io.Discard, res.Body)
			res.Body.Close()
		}
		done <- err
	}()
	eventually(t, "both hang", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return len(s.hub.subs) == 1 && len(s.box.users["timeout-after"]) == 1
	})
	s.Close()
	s.Close() // twice does no harm
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

func TestOtherSitesCannotDrive(t *testing.T) {
	s := newSim(t, Config{})
	for origin, want := range map[string]int{"": 204, "http://sim.test": 204, "https://evil.example": 403} {
		r := httptest.NewRequest("DELETE", "http://sim.test/sim/state", nil)
		if origin != "" {
			r.Header.Set("Origin", origin)
		}
		w := httptest.NewRecorder()
		s.ServeHTTP(w, r)
		if w.Code != want {
			t.Errorf("origin %q: status %d, want %d", origin, w.Code, want)
		}
	}
}
