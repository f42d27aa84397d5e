package wecom

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"
)

const (
	testSecret = "s3cr3t+/of=the&app_0123456789abcdefghijklmn"
	testToken  = "tok3n+/of=the&app_0123456789"
)

// api is a WeCom that gives tok and answers calls with the handler.
func api(t *testing.T, h http.HandlerFunc) *httptest.Server {
	t.Helper()
	mux := http.NewServeMux()
	mux.HandleFunc("GET /cgi-bin/gettoken", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Get("corpid") != "ww1" || r.URL.Query().Get("corpsecret") != testSecret {
			fmt.Fprint(w, `{"errcode":40001,"errmsg":"invalid credential"}`)
			return
		}
		fmt.Fprintf(w, `{"errcode":0,"errmsg":"ok","access_token":%q,"expires_in":7200}`, testToken)
	})
	mux.HandleFunc("/", h)
	srv := httptest.NewUnstartedServer(mux)
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.Start()
	t.Cleanup(srv.Close)
	return srv
}

func client(t *testing.T, base string) *Client {
	c := NewClient(ClientOptions{BaseURL: base, CorpID: "ww1", Secret: testSecret})
	t.Cleanup(c.http.CloseIdleConnections)
	return c
}

func TestCallPassesBodyThrough(t *testing.T) {
	body := "{\"touser\":\"alice\" ,\n \"text\":{\"content\":\"<a href=\\\"x\\\">你好</a> \\u003c &\"}}\n"
	var got *http.Request
	var gotBody []byte
	srv := api(t, func(w http.ResponseWriter, r *http.Request) {
		got = r
		gotBody, _ = io.ReadAll(r.Body)
		fmt.Fprint(w, `{"errcode":0,"errmsg":"ok","msgid":"m1","response_code":"rc"}`)
	})
	res, err := client(t, srv.URL).Call(t.Context(), "message/send", []byte(body))
	if err != nil {
		t.Fatal(err)
	}
	if string(gotBody) != body {
		t.Errorf("body %q, want %q", gotBody, body)
	}
	if got.Method != "POST" || got.URL.Path != "/cgi-bin/message/send" || got.URL.Query().Get("access_token") != testToken || len(got.URL.Query()) != 1 {
		t.Errorf("request %s %s", got.Method, got.URL)
	}
	if ct := got.Header.Get("Content-Type"); ct != "application/json" {
		t.Errorf("content type %q", ct)
	}
	if res.MsgID != "m1" || res.ResponseCode != "rc" || res.ErrMsg != "ok" || res.Partial() || !strings.HasPrefix(string(res.Raw), `{"errcode":0`) {
		t.Errorf("result %+v", res)
	}
}

func TestCallKeepsPathOfBaseURL(t *testing.T) {
	var paths []string
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		paths = append(paths, r.URL.Path)
		fmt.Fprint(w, `{"access_token":"t","expires_in":7200}`)
	}))
	defer srv.Close()
	if _, err := client(t, srv.URL+"/wecom/").Call(t.Context(), "agent/get", nil); err != nil {
		t.Fatal(err)
	}
	if want := []string{"/wecom/cgi-bin/gettoken", "/wecom/cgi-bin/agent/get"}; !slices.Equal(paths, want) {
		t.Errorf("paths %q, want %q", paths, want)
	}
}

func TestCallChecksAPIName(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a request was made") }))
	defer srv.Close()
	c := client(t, srv.URL)
	for _, name := range []string{"", "/", "/message/send", "message/send/", "message//send", "..", "../x", "message/../gettoken", "message/send?debug=1",
		"message/send#x", "Message/Send", "message send", "message%2fsend", "message/sénd", "message\n", strings.Repeat("a", 129)} {
		if _, err := c.Call(t.Context(), name, []byte("{}")); !errors.Is(err, ErrAPI) {
			t.Errorf("api %q: error %v, want %v", name, err, ErrAPI)
		}
	}
	for _, name := range []string{"message/send", "media/get/jssdk", "get_api_domain_ip", "a1/b_2"} {
		if !validAPI(name) {
			t.Errorf("api %q refused", name)
		}
	}
}

func TestAnswers(t *testing.T) {
	list := func(s ...string) []string { return s }
	for name, tt := range map[string]struct {
		answer string
		want   Result
		code   int // of the error
	}{
		"plain":                 {answer: `{"errcode":0,"errmsg":"ok","msgid":"m"}`, want: Result{ErrMsg: "ok", MsgID: "m"}},
		"no errcode":            {answer: `{"chat_info":{}}`},
		"empty object":          {answer: " {} \n"},
		"bom":                   {answer: "\uFEFF" + `{"errcode":0}`},
		"warning":               {answer: `{"errcode":0,"errmsg":"ok. Warning: wrong json format. "}`, want: Result{ErrMsg: "ok. Warning: wrong json format."}},
		"strings for numbers":   {answer: `{"errcode":"0","errmsg":"ok","msgid":123}`, want: Result{ErrMsg: "ok", MsgID: "123"}},
		"null members":          {answer: `{"errcode":null,"errmsg":null,"invaliduser":null,"msgid":null}`},
		"old style empty lists": {answer: `{"errcode":0,"errmsg":"ok","invaliduser":"","invalidparty":"","invalidtag":""}`, want: Result{ErrMsg: "ok"}},
		"bars":                  {answer: `{"errcode":0,"invaliduser":"li.lei|han_mm","invalidparty":"17","invalidtag":"5| 6","unlicenseduser":"guest01"}`, want: Result{InvalidUser: list("li.lei", "han_mm"), InvalidParty: list("17"), InvalidTag: list("5", "6"), Unlicensed: list("guest01")}},
		"arrays":                {answer: `{"errcode":0,"invaliduser":["a","b|c"],"invalidparty":[17,"18"],"invalidtag":[],"unlicenseduser":[null]}`, want: Result{InvalidUser: list("a", "b|c"), InvalidParty: list("17", "18")}},
		"number for a list":     {answer: `{"errcode":0,"invalidparty":17}`, want: Result{InvalidParty: list("17")}},
		"refusal":               {answer: `{"errcode":81013,"errmsg":"user & party & tag all invalid","invaliduser":"x"}`, code: 81013},
		"refusal as string":     {answer: `{"errcode":"81013","errmsg":"no"}`, code: 81013},
		"refusal as float":      {answer: `{"errcode":8.1013e4}`, code: 81013},
		"negative":              {answer: `{"errcode":-1,"errmsg":"system busy"}`, code: -1},
		"unknown code":          {answer: `{"errcode":987654}`, code: 987654},
	} {
		t.Run(name, func(t *testing.T) {
			srv := api(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, tt.answer) })
			res, err := client(t, srv.URL).Call(t.Context(), "message/send", []byte(`{}`))
			if tt.code != 0 {
				var e *Error
				if !errors.As(err, &e) || e.Code != tt.code || e.API != "message/send" || res != nil {
					t.Fatalf("got %v, %v, want errcode %d", res, err, tt.code)
				}
				if e.Ambiguous() != (tt.code == -1) {
					t.Errorf("errcode %d: ambiguous %v", e.Code, e.Ambiguous())
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			same := res.ErrCode == 0 && res.ErrMsg == tt.want.ErrMsg && res.MsgID == tt.want.MsgID && slices.Equal(res.InvalidUser, tt.want.InvalidUser) &&
				slices.Equal(res.InvalidParty, tt.want.InvalidParty) && slices.Equal(res.InvalidTag, tt.want.InvalidTag) && slices.Equal(res.Unlicensed, tt.want.Unlicensed)
			if !same || string(res.Raw) != tt.answer {
				t.Errorf("got %+v\nwant %+v", res, tt.want)
			}
			if want := len(tt.want.InvalidUser)+len(tt.want.InvalidParty)+len(tt.want.InvalidTag)+len(tt.want.Unlicensed) > 0; res.Partial() != want {
				t.Errorf("partial %v, want %v", res.Partial(), want)
			}
		})
	}
}

// failure is one way in which a call gets no answer.
type failure struct {
	ambiguous bool
	status    int
	base      string           // instead of a server
	handler   http.HandlerFunc // answers the call, or gettoken, badly
	client    *http.Client
	ctx       func(context.Context) (context.Context, context.CancelFunc)
	is        error
}

func cut(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		conn.Close()
	}
}

func failures(t *testing.T) map[string]failure {
	answer := func(status int, body string) http.HandlerFunc {
		return func(w http.ResponseWriter, r *http.Request) {
			w.WriteHeader(status)
			io.WriteString(w, body)
		}
	}
	hang := func(_ http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
	}
	elsewhere := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		t.Errorf("redirect was followed to %s", r.URL.Path)
	}))
	t.Cleanup(elsewhere.Close)
	overTLS := httptest.NewUnstartedServer(http.NotFoundHandler())
	overTLS.Config.ErrorLog = log.New(io.Discard, "", 0)
	overTLS.StartTLS()
	t.Cleanup(overTLS.Close)
	plain := httptest.NewServer(http.NotFoundHandler())
	t.Cleanup(plain.Close)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	refused := "http://" + ln.Addr().String()
	ln.Close()
	errDial := errors.New("no route")
	noDial := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return nil, errDial }}}
	// A transport that we know nothing about, and which quotes what it was asked for.
	leaky := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		return nil, fmt.Errorf("lost %s (%s)", r.URL, r.URL.Query())
	})}
	nested := &http.Client{Transport: roundTripper(func(r *http.Request) (*http.Response, error) {
		return nil, fmt.Errorf("wrapped: %w", &url.Error{Op: "Get", URL: r.URL.String(), Err: io.ErrUnexpectedEOF})
	})}

	return map[string]failure{
		"bad base url":       {base: "http://a b/"},
		"base url, no host":  {base: "/relative"},
		"base url, scheme":   {base: "ftp://127.0.0.1"},
		"connection refused": {base: refused},
		"dial error":         {base: "http://wecom.invalid", client: noDial, is: errDial},
		"tls not trusted":    {base: overTLS.URL},
		"no tls there":       {base: strings.Replace(plain.URL, "http:", "https:", 1)},
		"unknown transport":  {base: plain.URL, client: leaky, ambiguous: true},
		"url error within":   {base: plain.URL, client: nested, ambiguous: true, is: io.ErrUnexpectedEOF},
		"cut before answer":  {ambiguous: true, handler: func(w http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); cut(w) }},
		"cut unread":         {ambiguous: true, handler: func(w http.ResponseWriter, r *http.Request) { cut(w) }},
		"timeout of client":  {ambiguous: true, handler: hang, client: &http.Client{Timeout: 100 * time.Millisecond}, is: context.DeadlineExceeded},
		"status 500":         {ambiguous: true, status: 500, handler: answer(500, `{"errcode":0}`)},
		"status 502, a page": {ambiguous: true, status: 502, handler: answer(502, `<html>Bad Gateway</html>`)},
		"status 504":         {ambiguous: true, status: 504, handler: answer(504, ``)},
		"status 404":         {status: 404, handler: answer(404, ``)},
		"status 403":         {status: 403, handler: answer(403, `<html>`)},
		"status 429":         {status: 429, handler: answer(429, ``)},
		"status 301":         {status: 301, handler: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL+"/moved", 301) }},
		"status 307":         {status: 307, handler: func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, elsewhere.URL+"/moved", 307) }},
		"a page":             {ambiguous: true, handler: answer(200, `<html>login first</html>`)},
		"nothing":            {ambiguous: true, handler: answer(200, ``)},
		"an array":           {ambiguous: true, handler: answer(200, `[]`)},
		"half an object":     {ambiguous: true, handler: answer(200, `{"errcode":0,"errmsg":"o`)},
		"two objects":        {ambiguous: true, handler: answer(200, `{"errcode":0}{}`)},
		"errcode no number":  {ambiguous: true, handler: answer(200, `{"errcode":"none"}`)},
		"errcode an object":  {ambiguous: true, handler: answer(200, `{"errcode":{}}`)},
		"errcode fractional": {ambiguous: true, handler: answer(200, `{"errcode":0.5}`)},
		"endless":            {ambiguous: true, handler: answer(200, `{"errmsg":"`+strings.Repeat("x", maxAnswer)+`"}`)},
		"cut within answer": {ambiguous: true, handler: func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Length", "50")
			io.WriteString(w, `{"errcode":0`)
		}},
		"garbage for http":    {ambiguous: true, handler: func(w http.ResponseWriter, r *http.Request) { garbage(w) }},
		"echo of the request": {ambiguous: true, handler: func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "<p>"+r.URL.String()) }},
		"cancelled before": {base: plain.URL, is: context.Canceled, ctx: func(ctx context.Context) (context.Context, context.CancelFunc) {
			ctx, cancel := context.WithCancel(ctx)
			cancel()
			return ctx, cancel
		}},
		"deadline after": {ambiguous: true, handler: hang, is: context.DeadlineExceeded, ctx: func(ctx context.Context) (context.Context, context.CancelFunc) {
			return context.WithTimeout(ctx, 100*time.Millisecond)
		}},
	}
}

func garbage(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err == nil {
		io.WriteString(conn, "SSH-2.0-server\r\n\r\n")
		conn.Close()
	}
}

type roundTripper func(*http.Request) (*http.Response, error)

func (f roundTripper) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }

// secretIn searches an error, all that it wraps and every way of printing it.
func secretIn(err error) string {
	var texts []string
	var walk func(error)
	walk = func(err error) {
		if err == nil {
			return
		}
		texts = append(texts, err.Error(), fmt.Sprintf("%+v", err), fmt.Sprintf("%#v", err))
		switch u := err.(type) { //nolint:errorlint // this walk is what errors.As does
		case interface{ Unwrap() error }:
			walk(u.Unwrap())
		case interface{ Unwrap() []error }:
			for _, e := range u.Unwrap() {
				walk(e)
			}
		}
	}
	walk(err)
	for _, text := range texts {
		for _, s := range []string{testSecret, testToken} {
			if strings.Contains(text, s) || strings.Contains(text, url.QueryEscape(s)) || strings.Contains(text, url.PathEscape(s)) {
				return text
			}
		}
	}
	return ""
}

// TestFailedCalls makes the call itself fail in every way, the token being at hand.
func TestFailedCalls(t *testing.T) {
	for name, f := range failures(t) {
		t.Run(name, func(t *testing.T) {
			base := f.base
			if base == "" {
				base = api(t, f.handler).URL
			}
			c := NewClient(ClientOptions{BaseURL: base, CorpID: "ww1", Secret: testSecret, HTTP: f.client})
			defer c.http.CloseIdleConnections()
			c.tokens.cur = token{testToken, time.Now().Add(time.Hour), time.Now().Add(time.Hour)}
			ctx := t.Context()
			if f.ctx != nil {
				c2, cancel := f.ctx(ctx)
				defer cancel()
				ctx = c2
			}
			res, err := c.Call(ctx, "message/send", []byte(`{"touser":"alice"}`))
			if res != nil || err == nil {
				t.Fatalf("got %+v, %v, want an error", res, err)
			}
			var te *TransportError
			if !errors.As(err, &te) {
				t.Fatalf("error %T: %v, want a TransportError", err, err)
			}
			if te.Ambiguous != f.ambiguous {
				// A context that was over first never reaches the connection.
				t.Errorf("ambiguous %v, want %v (%v)", te.Ambiguous, f.ambiguous, err)
			}
			if te.Status != f.status {
				t.Errorf("status %d, want %d", te.Status, f.status)
			}
			if f.is != nil && !errors.Is(err, f.is) {
				t.Errorf("error %v, want one that is %v", err, f.is)
			}
			if s := secretIn(err); s != "" {
				t.Errorf("a secret in %s", s)
			}
			if strings.Contains(err.Error(), "html") || strings.Contains(err.Error(), "?") {
				t.Errorf("error %v quotes the answer or the URL", err)
			}
		})
	}
}

// TestFailedTokens lets gettoken fail in the same ways: nothing was sent, so nothing is ambiguous.
func TestFailedTokens(t *testing.T) {
	for name, f := range failures(t) {
		t.Run(name, func(t *testing.T) {
			base := f.base
			if base == "" {
				srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if r.URL.Path != "/cgi-bin/gettoken" {
						t.Errorf("request %s without a token", r.URL.Path)
					}
					f.handler(w, r)
				}))
				srv.Config.ErrorLog = log.New(io.Discard, "", 0)
				srv.Start()
				defer srv.Close()
				base = srv.URL
			}
			c := NewClient(ClientOptions{BaseURL: base, CorpID: "ww1", Secret: testSecret, HTTP: f.client})
			defer c.http.CloseIdleConnections()
			ctx := t.Context()
			if f.ctx != nil {
				c2, cancel := f.ctx(ctx)
				defer cancel()
				ctx = c2
			}
			_, err := c.Call(ctx, "message/send", []byte(`{}`))
			var te *TransportError
			if !errors.As(err, &te) || te.API != "gettoken" || te.Ambiguous || te.Status != f.status {
				t.Fatalf("error %#v, want an unambiguous TransportError of gettoken", err)
			}
			if s := secretIn(err); s != "" {
				t.Errorf("a secret in %s", s)
			}
		})
	}
}

func TestServerThatEchoesSecrets(t *testing.T) {
	srv := api(t, func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"errcode":40058,"errmsg":"bad request %s: %s %s"}`, r.URL.String(), r.URL.Query().Get("access_token"), strings.Repeat("长", 600))
	})
	c := client(t, srv.URL)
	_, err := c.Call(t.Context(), "message/send", nil)
	var e *Error
	if !errors.As(err, &e) || e.Code != 40058 || !strings.Contains(e.Msg, "[redacted]") {
		t.Fatalf("error %v", err)
	}
	if s := secretIn(err); s != "" {
		t.Errorf("a secret in %s", s)
	}
	if len(e.Msg) > 600 || strings.Contains(e.Msg, "\uFFFD") {
		t.Errorf("message of %d bytes: %s", len(e.Msg), e.Msg)
	}
	wrong := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, `{"errcode":40001,"errmsg":"invalid credential %s\n%s"}`, r.URL.Query().Get("corpsecret"), r.URL.RawQuery)
	}))
	defer wrong.Close()
	_, err = client(t, wrong.URL).Call(t.Context(), "message/send", nil)
	if !errors.As(err, &e) || e.Code != 40001 || e.API != "gettoken" || strings.Contains(e.Msg, "\n") {
		t.Fatalf("error %v", err)
	}
	if s := secretIn(err); s != "" {
		t.Errorf("a secret in %s", s)
	}
	for _, f := range []string{"%v", "%+v", "%#v", "%s"} {
		if s := fmt.Sprintf(f, c); strings.Contains(s, testSecret) || strings.Contains(s, testToken) {
			t.Errorf("client printed with %s shows a secret", f)
		}
	}
}

// TestNoHiddenRepetition holds net/http to its word: a POST whose connection dies
// after it was read is not sent again behind our back.
func TestNoHiddenRepetition(t *testing.T) {
	var calls atomic.Int32
	srv := api(t, func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		if calls.Add(1) > 1 {
			cut(w)
			return
		}
		io.WriteString(w, `{"errcode":0}`)
	})
	c := client(t, srv.URL)
	if _, err := c.Call(t.Context(), "message/send", []byte(`{}`)); err != nil {
		t.Fatal(err)
	}
	_, err := c.Call(t.Context(), "message/send", []byte(`{}`)) // over the same, kept connection
	var te *TransportError
	if !errors.As(err, &te) || !te.Ambiguous {
		t.Errorf("error %v, want an ambiguous one", err)
	}
	if got := calls.Load(); got != 2 {
		t.Errorf("the server saw %d calls, want 2", got)
	}
}

// TestStaleConnection: a kept connection that the server closed meanwhile costs at
// most a failure, and never a second execution. The failure is ambiguous unless the
// connection was known to be closed before anything was written.
func TestStaleConnection(t *testing.T) {
	var calls atomic.Int32
	srv := api(t, func(w http.ResponseWriter, r *http.Request) {
		calls.Add(1)
		io.WriteString(w, `{"errcode":0}`)
	})
	c := client(t, srv.URL)
	var done, unsent int32
	for range 20 {
		_, err := c.Call(t.Context(), "message/send", []byte(`{}`))
		var te *TransportError
		switch {
		case err == nil:
			done++
		case errors.As(err, &te) && te.Ambiguous:
		case errors.As(err, &te):
			unsent++
		default:
			t.Fatal(err)
		}
		srv.CloseClientConnections()
	}
	if got := calls.Load(); got < done || got > 20-unsent || done == 0 {
		t.Errorf("of 20 calls %d succeeded and %d were not sent, and the server saw %d", done, unsent, got)
	}
}

// deadConn is a connection on which nothing can be written any more once dead is set.
type deadConn struct {
	net.Conn
	dead *atomic.Bool
}

func (c deadConn) Write(p []byte) (int, error) {
	if c.dead.Load() {
		return 0, net.ErrClosed
	}
	return c.Conn.Write(p)
}

// TestNothingWritten: a kept connection turns out to be dead before a byte of the call
// was written. net/http takes another one, which is harmless; if that cannot be had,
// the call was certainly not made.
func TestNothingWritten(t *testing.T) {
	var calls atomic.Int32
	srv := api(t, func(w http.ResponseWriter, _ *http.Request) {
		calls.Add(1)
		io.WriteString(w, `{"errcode":0}`)
	})
	for _, again := range []bool{true, false} {
		calls.Store(0)
		var dials atomic.Int32
		var dead atomic.Bool
		c := NewClient(ClientOptions{BaseURL: srv.URL, CorpID: "ww1", Secret: testSecret, HTTP: &http.Client{Transport: &http.Transport{
			DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
				n := dials.Add(1)
				if n > 1 && !again {
					return nil, errors.New("no route")
				}
				conn, err := new(net.Dialer).DialContext(ctx, network, addr)
				if n == 1 {
					conn = deadConn{conn, &dead}
				}
				return conn, err
			},
		}}})
		if err := c.Check(t.Context()); err != nil { // leaves a kept connection
			t.Fatal(err)
		}
		dead.Store(true)
		_, err := c.Call(t.Context(), "message/send", []byte(`{"touser":"alice"}`))
		var te *TransportError
		switch {
		case again && (err != nil || calls.Load() != 1):
			t.Errorf("%d calls, %v, want one that works", calls.Load(), err)
		case !again && (!errors.As(err, &te) || te.Ambiguous || !strings.Contains(err.Error(), "no route")):
			t.Errorf("error %v, want an unambiguous one", err)
		}
		if got := dials.Load(); got != 2 {
			t.Errorf("%d connections, want 2", got)
		}
		c.http.CloseIdleConnections()
	}
}

func TestDefaultTransport(t *testing.T) {
	c := NewClient(ClientOptions{})
	tr := c.http.Transport.(*http.Transport)
	if c.http.Timeout <= 0 || tr.TLSHandshakeTimeout <= 0 || tr.IdleConnTimeout <= 0 || tr.Protocols.HTTP2() || tr.TLSClientConfig.MinVersion < tls.VersionTLS12 {
		t.Errorf("transport %+v", tr)
	}
	if got := c.base.String(); got != DefaultBaseURL {
		t.Errorf("base URL %s, want %s", got, DefaultBaseURL)
	}
	given := &http.Client{}
	NewClient(ClientOptions{HTTP: given})
	if given.CheckRedirect != nil {
		t.Error("the caller's client was changed")
	}
}

func FuzzAnswer(f *testing.F) {
	f.Add([]byte(`{"errcode":0,"errmsg":"ok","invaliduser":"a|b","msgid":1}`))
	f.Add([]byte(`{"errcode":"-1","invaliduser":["a",1,null,{}],"expires_in":"7200"}`))
	f.Add([]byte("\xEF\xBB\xBF{}"))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var a answer
		if a.decode(raw) != nil {
			return
		}
		for _, l := range []looseList{a.InvalidUser, a.InvalidParty, a.InvalidTag, a.Unlicensed} {
			if slices.Contains(l, "") {
				t.Errorf("empty recipient in %q", l)
			}
		}
	})
}
