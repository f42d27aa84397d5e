package bus_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/bustest"
)

// patience is how long a test waits for something that should happen soon.
const patience = 20 * time.Second

// connect returns a Bus on url that is closed when t ends.
func connect(t testing.TB, url string) *bus.Bus {
	t.Helper()
	return connectWith(t, bus.Options{URL: url, Name: "test"})
}

func connectWith(t testing.TB, o bus.Options) *bus.Bus {
	t.Helper()
	b, err := bus.Connect(t.Context(), o)
	if err != nil {
		t.Fatalf("Connect: %v", err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		if err := b.Close(ctx); err != nil {
			t.Errorf("Close: %v", err)
		}
	})
	return b
}

// provisioned returns a Bus on url with all streams made.
func provisioned(t testing.TB, url string) *bus.Bus {
	t.Helper()
	b := connect(t, url)
	provision(t, b)
	return b
}

func provision(t testing.TB, b *bus.Bus) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	if err := b.Provision(ctx); err != nil {
		t.Fatalf("Provision: %v", err)
	}
}

// js is the client library itself, to look at the broker from outside.
func js(t testing.TB, url string) jetstream.JetStream {
	t.Helper()
	nc, err := nats.Connect(url)
	if err != nil {
		t.Fatalf("nats.Connect: %v", err)
	}
	t.Cleanup(nc.Close)
	s, err := jetstream.New(nc)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func publish(t testing.TB, b *bus.Bus, m bus.Msg) bus.Ack {
	t.Helper()
	a, err := b.Publish(t.Context(), &m)
	if err != nil {
		t.Fatalf("Publish %s: %v", m.Subject, err)
	}
	return a
}

// event publishes a small event of a slot.
func event(t testing.TB, b *bus.Bus, slot int, id, data string) bus.Ack {
	t.Helper()
	return publish(t, b, bus.Msg{Subject: bus.EventSubject(slot, "demo", []string{"message", "text"}), ID: id, Data: []byte(data)})
}

// eventually polls cond until it holds.
func eventually(t testing.TB, what string, cond func() bool) {
	t.Helper()
	deadline := time.After(patience)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-deadline:
			t.Fatalf("not within %s: %s", patience, what)
		}
	}
}

// lateness measures, until the function it returns is called, by how much this
// machine is late with a timer at worst. What a test allows for must grow by that.
func lateness(t testing.TB) func() time.Duration {
	t.Helper()
	const every = 5 * time.Millisecond
	stop, worst := make(chan struct{}), make(chan time.Duration, 1)
	go func() {
		var w time.Duration
		timer := time.NewTimer(every)
		defer timer.Stop()
		for last := time.Now(); ; {
			select {
			case <-stop:
				worst <- w
				return
			case now := <-timer.C:
				w = max(w, time.Since(last)-every)
				last = now
				timer.Reset(every)
			}
		}
	}()
	return sync.OnceValue(func() time.Duration { close(stop); return <-worst })
}

// receive takes the next value off ch.
func receive[T any](t testing.TB, what string, ch <-chan T) T {
	t.Helper()
	select {
	case v := <-ch:
		return v
	case <-time.After(patience):
		t.Fatalf("not within %s: %s", patience, what)
		panic("unreachable")
	}
}

// consuming is a Consume that runs.
type consuming struct {
	t    testing.TB
	b    *bus.Bus
	stop context.CancelFunc
	done chan error
}

// consume runs Consume until stopped, at the latest when t ends.
func consume(t testing.TB, b *bus.Bus, c bus.Consumer, h func(context.Context, *bus.Delivery) error) *consuming {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r := &consuming{t: t, b: b, stop: cancel, done: make(chan error, 1)}
	go func() { r.done <- b.Consume(ctx, c, h); close(r.done) }()
	t.Cleanup(func() {
		cancel()
		select {
		case <-r.done: //nolint:errcheck // whoever wants the error took it
		case <-time.After(patience):
			t.Error("Consume did not return")
		}
	})
	return r
}

// end stops and waits.
func (r *consuming) end() {
	r.t.Helper()
	r.stop()
	if err := receive(r.t, "Consume returns", r.done); err != nil {
		r.t.Fatalf("Consume: %v", err)
	}
}

func events(name string) bus.Consumer {
	return bus.Consumer{Stream: bus.StreamEvents, Name: name, Subject: "wecom.event.*.>"}
}

// syncBuffer collects log lines.
type syncBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

func logTo(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug}))
}

func TestConnectWithoutServer(t *testing.T) {
	// A listener that accepts and never speaks is the worst case: no refusal to see.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	for name, url := range map[string]string{"refused": "nats://127.0.0.1:1", "silent": "nats://" + ln.Addr().String()} {
		t.Run(name, func(t *testing.T) {
			start := time.Now()
			b := connect(t, url)
			if d := time.Since(start); d > time.Second {
				t.Errorf("Connect took %s", d)
			}
			if b.Connected() {
				t.Error("Connected without a server")
			}
			start = time.Now()
			_, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.0.demo.x"})
			if !errors.Is(err, bus.ErrUnavailable) {
				t.Errorf("Publish: got %v, want ErrUnavailable", err)
			}
			if d := time.Since(start); d > 100*time.Millisecond {
				t.Errorf("Publish without a connection took %s", d)
			}
		})
	}
}

func TestConnectThenServerComes(t *testing.T) {
	s := bustest.Start(t)
	if !s.CanRestart() {
		t.Log("not run: the server cannot be stopped")
		return
	}
	s.Stop()
	b := connect(t, s.URL())
	s.Restart()
	provision(t, b) // waits by itself
	event(t, b, 1, "demo/m-1", "x")
	if !b.Connected() || !b.Stats().Connected {
		t.Error("not connected after a publish")
	}
}

func TestConnectRefusesBadOptions(t *testing.T) {
	dir := t.TempDir()
	junk := filepath.Join(dir, "junk")
	if err := os.WriteFile(junk, []byte("s3cret-seed"), 0o600); err != nil {
		t.Fatal(err)
	}
	missing := filepath.Join(dir, "missing")
	for name, o := range map[string]bus.Options{
		"no server":        {},
		"bad URL":          {URL: "nats://user:s3cret@ho st:4222"},
		"bad second URL":   {URL: "nats://127.0.0.1:1,nats://user:s3cret@:4222"},
		"bad scheme":       {URL: "http://user:s3cret@127.0.0.1"},
		"no creds file":    {URL: "nats://127.0.0.1:1", Creds: missing},
		"no nkey file":     {URL: "nats://127.0.0.1:1", NKey: missing},
		"nkey is none":     {URL: "nats://127.0.0.1:1", NKey: junk},
		"both logins":      {URL: "nats://127.0.0.1:1", Creds: junk, NKey: junk},
		"no CA file":       {URL: "nats://127.0.0.1:1", CA: missing},
		"CA is none":       {URL: "nats://127.0.0.1:1", CA: junk},
		"cert without key": {URL: "nats://127.0.0.1:1", Cert: junk},
		"cert is none":     {URL: "nats://127.0.0.1:1", Cert: junk, Key: junk},
		"bad inbox":        {URL: "nats://127.0.0.1:1", Inbox: "a.*"},
	} {
		t.Run(name, func(t *testing.T) {
			b, err := bus.Connect(t.Context(), o)
			if err == nil {
				_ = b.Close(t.Context())
				t.Fatal("no error")
			}
			if strings.Contains(err.Error(), "s3cret") {
				t.Errorf("the error tells the secret: %v", err)
			}
		})
	}
}

func TestClosedBus(t *testing.T) {
	b := provisioned(t, bustest.Start(t).URL())
	got := make(chan struct{})
	r := consume(t, b, events("closed"), func(context.Context, *bus.Delivery) error { close(got); return nil })
	event(t, b, 1, "demo/m-1", "x")
	receive(t, "delivery", got)
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := receive(t, "Consume returns", r.done); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Consume: got %v, want ErrClosed", err)
	}
	if _, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.0.demo.x"}); !errors.Is(err, bus.ErrClosed) || !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("Publish: got %v, want ErrClosed and ErrUnavailable", err)
	}
	if _, err := b.Last(t.Context(), bus.StreamEvents, "wecom.event.>"); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Last: got %v, want ErrClosed", err)
	}
	if err := b.Provision(t.Context()); !errors.Is(err, bus.ErrClosed) {
		t.Errorf("Provision: got %v, want ErrClosed", err)
	}
	if err := b.Close(t.Context()); err != nil {
		t.Errorf("second Close: %v", err)
	}
}

// A publisher that is under way when Close is called gets its ack.
func TestCloseFinishesPublishes(t *testing.T) {
	b := provisioned(t, bustest.Start(t).URL())
	const n = 200
	errs := make(chan error, n)
	var started sync.WaitGroup
	started.Add(n)
	for i := range n {
		go func() {
			started.Done()
			_, err := b.Publish(context.Background(), &bus.Msg{Subject: "wecom.event.0.demo.x", Data: fmt.Append(nil, i)})
			errs <- err
		}()
	}
	started.Wait()
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	for range n {
		if err := receive(t, "publish ends", errs); err != nil && !errors.Is(err, bus.ErrClosed) {
			t.Fatalf("got %v, want an ack or ErrClosed", err)
		}
	}
}
