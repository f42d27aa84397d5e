package worker

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"time"
)

// fakeWeCom answers gettoken and every other call, delivers texts, and remembers. Its
// duplicate check is the cautious reading of the manual: it compares with every
// earlier request, and an equal one is answered "ok" and not delivered.
type fakeWeCom struct {
	*httptest.Server
	secret string
	judge  func(n int, c sent) string // answer to the nth call, from 1: "" for ok, "cut", "cut-unread", an HTTP status, or a body
	now    func() time.Time

	mu        sync.Mutex
	calls     []sent
	delivered []sent
}

// sent is one request to an API.
type sent struct {
	api, raw string
	to       string
	text     string
	check    int // enable_duplicate_check
	interval int // duplicate_check_interval
	key      string
	at       time.Time
}

func newFake(t *testing.T) *fakeWeCom {
	f := &fakeWeCom{secret: "the-secret-of-demo", now: time.Now}
	f.Server = httptest.NewServer(f)
	t.Cleanup(f.Close)
	return f
}

func (f *fakeWeCom) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	q := r.URL.Query()
	api := strings.TrimPrefix(r.URL.Path, "/cgi-bin/")
	if api == "gettoken" {
		if q.Get("corpsecret") != f.secret {
			io.WriteString(w, `{"errcode":40001,"errmsg":"invalid credential"}`)
			return
		}
		io.WriteString(w, `{"errcode":0,"errmsg":"ok","access_token":"the-token","expires_in":7200}`)
		return
	}
	if q.Get("access_token") != "the-token" {
		io.WriteString(w, `{"errcode":40014,"errmsg":"invalid access_token"}`)
		return
	}
	raw, _ := io.ReadAll(r.Body)
	var body struct {
		ToUser   string
		Text     struct{ Content string }
		Check    int `json:"enable_duplicate_check"`
		Interval int `json:"duplicate_check_interval"`
	}
	_ = json.Unmarshal(raw, &body) // a call of another shape has no text
	var plain map[string]any
	_ = json.Unmarshal(raw, &plain)
	delete(plain, "enable_duplicate_check")
	delete(plain, "duplicate_check_interval")
	key, _ := json.Marshal(plain)
	c := sent{api: api, raw: string(raw), to: body.ToUser, text: body.Text.Content, check: body.Check, interval: body.Interval, key: string(key), at: f.now()}

	f.mu.Lock()
	f.calls = append(f.calls, c)
	n := len(f.calls)
	answer := ""
	if f.judge != nil {
		answer = f.judge(n, c)
	}
	if answer == "" || answer == "cut" { // "cut" delivers and then says nothing
		repeated := false
		for _, d := range f.delivered {
			repeated = repeated || c.check == 1 && d.key == c.key && c.at.Sub(d.at) <= time.Duration(c.interval)*time.Second
		}
		if !repeated {
			f.delivered = append(f.delivered, c)
		}
	}
	f.mu.Unlock()

	var status int
	switch {
	case answer == "":
		fmt.Fprintf(w, `{"errcode":0,"errmsg":"ok","msgid":"msgid-%d"}`, n)
	case strings.HasPrefix(answer, "cut"):
		panic(http.ErrAbortHandler)
	default:
		if _, err := fmt.Sscanf(answer, "%d", &status); err == nil {
			w.WriteHeader(status)
			return
		}
		io.WriteString(w, answer)
	}
}

func (f *fakeWeCom) seen() (calls, delivered []sent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return append([]sent(nil), f.calls...), append([]sent(nil), f.delivered...)
}

// eventually waits until ok, and fails the test when it takes too long.
func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	deadline := time.Now().Add(20 * time.Second)
	for !ok() {
		if time.Now().After(deadline) {
			t.Fatalf("waited too long for: %s", what)
		}
		time.Sleep(5 * time.Millisecond) // polling, with a deadline
	}
}
