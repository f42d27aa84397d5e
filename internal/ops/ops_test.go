package ops

import (
	"context"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestHandlerShowsHealthReadinessAndMetrics(t *testing.T) {
	ready := false
	h := Handler(Registry(), func() (bool, any) { return ready, map[string]bool{"ready": ready} })
	get := func(path string) (int, string) {
		rec := httptest.NewRecorder()
		h.ServeHTTP(rec, httptest.NewRequest(http.MethodGet, path, nil))
		return rec.Code, rec.Body.String()
	}
	if code, _ := get("/healthz"); code != 200 {
		t.Errorf("healthz: got %d, want 200 while the process lives", code)
	}
	if code, body := get("/readyz"); code != 503 || !strings.Contains(body, `"ready":false`) {
		t.Errorf("readyz: got %d %s, want 503", code, body)
	}
	ready = true
	if code, _ := get("/readyz"); code != 200 {
		t.Errorf("readyz: got %d, want 200", code)
	}
	if code, body := get("/metrics"); code != 200 || !strings.Contains(body, "go_goroutines") {
		t.Errorf("metrics: got %d, want the runtime's metrics", code)
	}
}

// page keeps what is written; the log's timer writes too.
type page struct {
	mu sync.Mutex
	b  strings.Builder
}

func (p *page) Write(b []byte) (int, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.Write(b)
}

func (p *page) String() string {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.b.String()
}

func TestLogCollectsLinesAndNeverLetsAWarningWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var out page
		log, flush := Log(&out, slog.LevelInfo)
		if _, ok := log.Handler().(Liner); !ok {
			t.Error("the log takes no finished lines")
		}
		log = log.With("app", "demo").WithGroup("g")
		if _, ok := log.Handler().(Liner); ok {
			t.Error("a log that adds to its lines takes finished ones")
		}
		log.Debug("unseen")
		log.Info("event published", "event", "m-1")
		if out.String() != "" {
			t.Errorf("one line of info was written at once: %s", out.String())
		}
		time.Sleep(flushAfter)
		synctest.Wait()
		if got := out.String(); !strings.HasPrefix(got, "{") || !strings.Contains(got, `"app":"demo","g":{"event":"m-1"}`) || strings.Contains(got, "unseen") {
			t.Errorf("after %v: got %s", flushAfter, got)
		}
		log.Info("second")
		log.Warn("third")
		if got := strings.Count(out.String(), "\n"); got != 3 {
			t.Errorf("after a warning: got %d lines, want 3", got)
		}
		log.Info("last")
		flush()
		if got := strings.Count(out.String(), "\n"); got != 4 {
			t.Errorf("after flush: got %d lines, want 4", got)
		}
		for range 1000 {
			log.Info("many", "text", strings.Repeat("x", 100))
		}
		if len(out.String()) < flushSize {
			t.Error("a full batch was not written")
		}
		flush()
	})
}

func TestServeFinishesOpenRequestsAndThenReturns(t *testing.T) {
	entered, leave := make(chan struct{}), make(chan struct{})
	srv := Server(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		close(entered)
		<-leave
		_, _ = io.WriteString(w, "done")
	}), time.Minute, time.Minute, slog.New(slog.DiscardHandler))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	served := make(chan error, 1)
	go func() { served <- Serve(ctx, srv, ln, 10*time.Second) }()
	answered := make(chan string, 1)
	go func() {
		res, err := http.Get("http://" + ln.Addr().String())
		if err != nil {
			answered <- err.Error()
			return
		}
		defer func() { _ = res.Body.Close() }()
		b, _ := io.ReadAll(res.Body)
		answered <- string(b)
	}()
	<-entered
	stop()
	close(leave)
	if got := <-answered; got != "done" {
		t.Errorf("an open request got %q, want its answer", got)
	}
	if err := <-served; err != nil {
		t.Errorf("Serve: %v", err)
	}
}

func TestServeCutsOffWhatOutlastsTheGrace(t *testing.T) {
	entered := make(chan struct{})
	srv := Server(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		close(entered)
		<-r.Context().Done()
	}), time.Minute, time.Minute, slog.New(slog.DiscardHandler))
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	go func() {
		if res, err := http.Get("http://" + ln.Addr().String()); err == nil {
			_ = res.Body.Close()
		}
	}()
	go func() { <-entered; stop() }()
	if err := Serve(ctx, srv, ln, 20*time.Millisecond); err != nil {
		t.Errorf("Serve: %v", err)
	}
}
