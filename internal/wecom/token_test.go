package wecom

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// platform is a WeCom without a network, so that it can live in a synctest bubble.
type platform struct {
	mu      sync.Mutex
	fetches []time.Time
	calls   []string                       // the tokens that calls came with
	give    func(n int) string             // the nth answer to gettoken, from 1
	judge   func(tok string, n int) string // the nth answer to a call
	slow    time.Duration                  // every answer to gettoken takes this long
	arrive  func(r *http.Request)          // sees every request first
}

func (p *platform) RoundTrip(r *http.Request) (*http.Response, error) {
	if p.arrive != nil {
		p.arrive(r)
	}
	var body string
	if strings.HasSuffix(r.URL.Path, "/gettoken") {
		select {
		case <-time.After(p.slow):
		case <-r.Context().Done():
			return nil, r.Context().Err()
		}
		p.mu.Lock()
		p.fetches = append(p.fetches, time.Now())
		body = p.give(len(p.fetches))
		p.mu.Unlock()
	} else {
		tok := r.URL.Query().Get("access_token")
		p.mu.Lock()
		p.calls = append(p.calls, tok)
		n := len(p.calls)
		p.mu.Unlock()
		body = `{"errcode":0}`
		if p.judge != nil {
			body = p.judge(tok, n)
		}
	}
	if body == "" {
		return nil, io.ErrUnexpectedEOF
	}
	return &http.Response{StatusCode: 200, Body: io.NopCloser(strings.NewReader(body)), Request: r, Header: http.Header{}}, nil
}

func (p *platform) client() *Client {
	return NewClient(ClientOptions{CorpID: "ww1", Secret: testSecret, HTTP: &http.Client{Transport: p}})
}

func numbered(n int) string {
	return fmt.Sprintf(`{"errcode":0,"access_token":"token-%d","expires_in":7200}`, n)
}

func code(err error) int {
	var e *Error
	if errors.As(err, &e) {
		return e.Code
	}
	return 0
}

func TestTokenSingleFlight(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{give: numbered, slow: time.Second}
		c := p.client()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := c.Call(t.Context(), "message/send", nil); err != nil {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(p.fetches) != 1 || len(p.calls) != 100 {
			t.Errorf("%d tokens fetched for %d calls, want 1 for 100", len(p.fetches), len(p.calls))
		}
	})
}

func TestTokenFailureIsShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{give: func(int) string { return `{"errcode":40001,"errmsg":"invalid credential"}` }, slow: time.Second}
		c := p.client()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				if _, err := c.Call(t.Context(), "message/send", nil); code(err) != 40001 {
					t.Error(err)
				}
			})
		}
		wg.Wait()
		if len(p.fetches) != 1 || len(p.calls) != 0 {
			t.Errorf("%d tokens asked for and %d calls made, want 1 and 0", len(p.fetches), len(p.calls))
		}
	})
}

// TestTokenLeaderLeaves: who waits for a token is not hurt when the one who fetches it gives up.
func TestTokenLeaderLeaves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{give: numbered, slow: 10 * time.Second}
		c := p.client()
		first, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Call(first, "message/send", nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the first caller: %v", err)
			}
		})
		synctest.Wait()
		wg.Go(func() {
			if _, err := c.Call(t.Context(), "message/send", nil); err != nil {
				t.Errorf("the second caller: %v", err)
			}
		})
		short, cancel2 := context.WithTimeout(t.Context(), 500*time.Millisecond)
		defer cancel2()
		wg.Go(func() { // leaves the queue, not the fetch
			if _, err := c.Call(short, "message/send", nil); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("the third caller: %v", err)
			}
		})
		wg.Wait()
		if len(p.fetches) != 1 {
			t.Errorf("%d tokens fetched, want 1", len(p.fetches))
		}
	})
}

func TestTokenLifetime(t *testing.T) {
	for name, tt := range map[string]struct {
		expires string
		slow    time.Duration
		want    time.Duration // a call every second first fetches again after so long
	}{
		"two hours less five minutes":       {`7200`, 0, 115 * time.Minute},
		"as a string":                       {`"7200"`, 0, 115 * time.Minute},
		"short, a fifth less":               {`60`, 0, 48 * time.Second},
		"counted from before the request":   {`60`, 10 * time.Second, 48 * time.Second},
		"missing":                           {`null`, 0, 4 * time.Minute},
		"not credible":                      {`-5`, 0, 4 * time.Minute},
		"longer than a day is a wrong unit": {`7200000`, 0, 4 * time.Minute},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				p := &platform{slow: tt.slow, give: func(n int) string {
					return fmt.Sprintf(`{"access_token":"token-%d","expires_in":%s}`, n, tt.expires)
				}}
				c := p.client()
				start := time.Now()
				for len(p.fetches) < 2 {
					if _, err := c.Call(t.Context(), "message/send", nil); err != nil {
						t.Fatal(err)
					}
					time.Sleep(time.Second) // time in the bubble
				}
				if got := p.fetches[1].Sub(start) - tt.slow; got != tt.want {
					t.Errorf("fetched again after %v, want %v", got, tt.want)
				}
			})
		})
	}
}

func TestTokenRefreshedOnRefusal(t *testing.T) {
	for _, refusal := range []int{40014, 42001, 40001} {
		synctest.Test(t, func(t *testing.T) {
			p := &platform{give: numbered, judge: func(tok string, _ int) string {
				if tok == "token-1" {
					return fmt.Sprintf(`{"errcode":%d,"errmsg":"no"}`, refusal)
				}
				return `{"errcode":0}`
			}}
			c := p.client()
			var wg sync.WaitGroup
			for range 100 { // all are refused with token-1, one fetches
				wg.Go(func() {
					if _, err := c.Call(t.Context(), "message/send", nil); err != nil {
						t.Error(err)
					}
				})
			}
			wg.Wait()
			if len(p.fetches) != 2 {
				t.Errorf("errcode %d: %d tokens fetched, want 2", refusal, len(p.fetches))
			}
		})
	}
}

// TestStaleRefusal: the refusal of an old token arrives after a newer one was fetched.
func TestStaleRefusal(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		first := make(chan struct{})
		p := &platform{give: numbered}
		var held atomic.Bool
		p.arrive = func(r *http.Request) {
			if r.URL.Query().Get("access_token") == "token-1" && held.CompareAndSwap(false, true) {
				<-first
			}
		}
		p.judge = func(tok string, _ int) string {
			if tok == "token-1" {
				return `{"errcode":40014,"errmsg":"invalid access_token"}`
			}
			return `{"errcode":0}`
		}
		c := p.client()
		var wg sync.WaitGroup
		wg.Go(func() {
			if _, err := c.Call(t.Context(), "message/send", nil); err != nil {
				t.Error(err)
			}
		})
		synctest.Wait()
		if _, err := c.Call(t.Context(), "message/send", nil); err != nil {
			t.Fatal(err)
		}
		close(first)
		wg.Wait()
		if len(p.fetches) != 2 {
			t.Errorf("%d tokens fetched, want 2: the stale refusal threw the newer one away", len(p.fetches))
		}
	})
}

// TestRefusedForGood: an application whose every token is refused does not ask for one
// per message, and recovers.
func TestRefusedForGood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var good atomic.Bool
		p := &platform{give: numbered, judge: func(string, int) string {
			if good.Load() {
				return `{"errcode":0}`
			}
			return `{"errcode":40014,"errmsg":"invalid access_token"}`
		}}
		c := p.client()
		for range 600 { // ten minutes of one message a second
			if _, err := c.Call(t.Context(), "message/send", nil); code(err) != 40014 {
				t.Fatal(err)
			}
			time.Sleep(time.Second)
		}
		if n := len(p.fetches); n < 5 || n > 20 {
			t.Errorf("%d tokens fetched in ten minutes of refusals, want 5 to 20", n)
		}
		good.Store(true)
		if _, err := c.Call(t.Context(), "message/send", nil); err != nil {
			t.Error(err)
		}
	})
}

func TestTokenCircuit(t *testing.T) {
	for name, tt := range map[string]struct {
		answer   string
		min, max int // fetches in two hours of a call every second
		code     int
	}{
		"wrong secret": {`{"errcode":40001,"errmsg":"invalid credential"}`, 5, 10, 40001},
		"wrong corp":   {`{"errcode":40013,"errmsg":"invalid corpid"}`, 5, 10, 40013},
		"frequency":    {`{"errcode":45009,"errmsg":"api freq out of limit"}`, 4, 9, 45009},
		"busy":         {`{"errcode":-1,"errmsg":"system busy"}`, 100, 140, -1},
		"cut":          {``, 200, 260, 0},
		"empty token":  {`{"errcode":0,"access_token":""}`, 200, 260, 0},
		"a page":       {`<html>`, 200, 260, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				var good atomic.Bool
				p := &platform{give: func(n int) string {
					if good.Load() {
						return numbered(n)
					}
					return tt.answer
				}}
				c := p.client()
				for range 7200 {
					_, err := c.Call(t.Context(), "message/send", nil)
					if err == nil || code(err) != tt.code {
						t.Fatalf("error %v, want errcode %d", err, tt.code)
					}
					time.Sleep(time.Second)
				}
				if n := len(p.fetches); n < tt.min || n > tt.max {
					t.Errorf("%d fetches in two hours, want %d to %d", n, tt.min, tt.max)
				}
				good.Store(true)
				time.Sleep(time.Hour)
				if err := c.Check(t.Context()); err != nil {
					t.Errorf("after it was mended: %v", err)
				}
				if len(p.calls) != 0 {
					t.Errorf("%d calls without a token", len(p.calls))
				}
			})
		})
	}
}

// TestTokenUsedToItsEnd: if no new token is to be had, the old one serves while it lives.
func TestTokenUsedToItsEnd(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p := &platform{give: func(n int) string {
			if n == 1 {
				return numbered(1)
			}
			return `{"errcode":45009,"errmsg":"api freq out of limit"}`
		}}
		c := p.client()
		start := time.Now()
		for {
			_, err := c.Call(t.Context(), "message/send", nil)
			if err != nil {
				if code(err) != 45009 {
					t.Fatal(err)
				}
				break
			}
			time.Sleep(time.Second)
		}
		if got, want := time.Since(start), 2*time.Hour; got != want {
			t.Errorf("the token served for %v, want %v", got, want)
		}
	})
}

func TestNoCredentials(t *testing.T) {
	p := &platform{give: numbered}
	for want, o := range map[int]ClientOptions{41004: {CorpID: "ww1"}, 41002: {Secret: testSecret}} {
		o.HTTP = &http.Client{Transport: p}
		c := NewClient(o)
		_, err := c.Call(t.Context(), "message/send", nil)
		var e *Error
		if !errors.As(err, &e) || e.Code != want || e.Class() != Config || e.API != "gettoken" {
			t.Errorf("error %v, want errcode %d", err, want)
		}
	}
	if len(p.fetches) != 0 {
		t.Error("gettoken was called without credentials")
	}
}
