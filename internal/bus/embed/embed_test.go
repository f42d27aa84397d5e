package embed_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/embed"
)

func start(t *testing.T, o embed.Options) *embed.Server {
	t.Helper()
	s, err := embed.Start(t.Context(), o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Shutdown)
	return s
}

// roundTrip provisions and publishes over o.
func roundTrip(t *testing.T, o bus.Options) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	b, err := bus.Connect(ctx, o)
	if err != nil {
		return err
	}
	defer b.Close(ctx)
	if err := b.Provision(ctx); err != nil {
		return err
	}
	_, err = b.Publish(ctx, &bus.Msg{Subject: "wecom.event.1.demo.x", Data: make([]byte, 7<<20)})
	return err
}

func TestStart(t *testing.T) {
	for _, sync := range []bool{false, true} {
		dir := filepath.Join(t.TempDir(), "not", "there", "yet")
		s := start(t, embed.Options{Dir: dir, Listen: "127.0.0.1:0", Sync: sync})
		if !strings.HasPrefix(s.URL(), "nats://127.0.0.1:") || strings.HasSuffix(s.URL(), ":0") {
			t.Fatalf("URL: got %q", s.URL())
		}
		if err := roundTrip(t, bus.Options{Name: "tcp", URL: s.URL()}); err != nil {
			t.Errorf("over TCP: %v", err)
		}
		if err := roundTrip(t, bus.Options{Name: "dial", Dial: s.Dial}); err != nil {
			t.Errorf("in process: %v", err)
		}
		s.Shutdown()
		s.Shutdown()
		if _, err := net.Dial("tcp", strings.TrimPrefix(s.URL(), "nats://")); err == nil {
			t.Error("still listening after Shutdown")
		}
		// The directory is free and holds what was stored.
		s = start(t, embed.Options{Dir: dir})
		if s.URL() != "" {
			t.Errorf("URL of a server that does not listen: got %q", s.URL())
		}
		b, err := bus.Connect(t.Context(), bus.Options{Name: "again", Dial: s.Dial})
		if err != nil {
			t.Fatal(err)
		}
		if st, err := b.State(t.Context(), bus.StreamEvents); err != nil || st.Messages != 2 {
			t.Errorf("after a restart: got %+v, %v", st, err)
		}
		_ = b.Close(t.Context())
	}
}

func TestStartFails(t *testing.T) {
	dir := t.TempDir()
	first := start(t, embed.Options{Dir: dir, Listen: "127.0.0.1:0"})
	taken := strings.TrimPrefix(first.URL(), "nats://")
	file := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tc := range map[string]struct {
		o    embed.Options
		want []string
	}{
		"directory in use": {embed.Options{Dir: dir}, []string{dir, "in use"}},
		"address in use":   {embed.Options{Dir: t.TempDir(), Listen: taken}, []string{taken, "in use"}},
		"open to all":      {embed.Options{Dir: t.TempDir(), Listen: "0.0.0.0:0"}, []string{"0.0.0.0:0", "login"}},
		"all interfaces":   {embed.Options{Dir: t.TempDir(), Listen: ":0"}, []string{"login"}},
		"half a login":     {embed.Options{Dir: t.TempDir(), Listen: ":0", User: "u"}, []string{"login"}},
		"a name":           {embed.Options{Dir: t.TempDir(), Listen: "example.org:4222"}, []string{"login"}},
		"no port":          {embed.Options{Dir: t.TempDir(), Listen: "127.0.0.1"}, []string{"127.0.0.1"}},
		"bad port":         {embed.Options{Dir: t.TempDir(), Listen: "127.0.0.1:x"}, []string{"port"}},
		"no directory":     {embed.Options{}, []string{"directory"}},
		"directory a file": {embed.Options{Dir: file}, []string{file}},
	} {
		s, err := embed.Start(t.Context(), tc.o)
		if err == nil {
			s.Shutdown()
			t.Errorf("%s: no error", name)
			continue
		}
		for _, w := range tc.want {
			if !strings.Contains(err.Error(), w) {
				t.Errorf("%s: got %q, want it to name %q", name, err, w)
			}
		}
	}
	// A refused start leaves nothing locked.
	first.Shutdown()
	start(t, embed.Options{Dir: dir})
}

func TestStartCancelled(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	dir := t.TempDir()
	s, err := embed.Start(ctx, embed.Options{Dir: dir})
	if err == nil {
		s.Shutdown() // it was faster, which is as good
		return
	}
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v", err)
	}
	start(t, embed.Options{Dir: dir})
}

func TestLogin(t *testing.T) {
	s := start(t, embed.Options{Dir: t.TempDir(), Listen: ":0", User: "bridge", Password: "pw"})
	with := strings.Replace(s.URL(), "://", "://bridge:pw@", 1)
	if err := roundTrip(t, bus.Options{Name: "a", URL: with}); err != nil {
		t.Errorf("with the login: %v", err)
	}
	if err := roundTrip(t, bus.Options{Name: "b", URL: "nats://bridge:pw@embedded", Dial: s.Dial}); err != nil {
		t.Errorf("in process with the login: %v", err)
	}
	for _, o := range []bus.Options{{Name: "c", URL: s.URL()}, {Name: "d", Dial: s.Dial}} {
		b, err := bus.Connect(t.Context(), o)
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
		defer cancel()
		if err := b.Provision(ctx); !errors.Is(err, bus.ErrUnavailable) {
			t.Errorf("without the login: got %v", err)
		}
		_ = b.Close(t.Context())
	}
}

// syncBuffer is not a bytes.Buffer itself: its ReadFrom would pass the lock by.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
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

// The server's banners are for those who debug.
func TestLogIsQuiet(t *testing.T) {
	for level, want := range map[slog.Level]bool{slog.LevelInfo: false, slog.LevelDebug: true} {
		var log syncBuffer
		s := start(t, embed.Options{Dir: t.TempDir(), Log: slog.New(slog.NewTextHandler(&log, &slog.HandlerOptions{Level: level}))})
		s.Shutdown()
		if got := log.String(); (got != "") != want {
			t.Errorf("level %s: got %q", level, got)
		}
	}
}

// TestMain lets the test program be the process that dies with the directory locked.
func TestMain(m *testing.M) {
	if dir := os.Getenv("EMBED_TEST_CHILD"); dir != "" {
		s, err := embed.Start(context.Background(), embed.Options{Dir: dir, Listen: "127.0.0.1:0"})
		if err != nil {
			fmt.Println(err)
			os.Exit(1)
		}
		b, err := bus.Connect(context.Background(), bus.Options{Name: "child", Dial: s.Dial})
		if err == nil {
			err = b.Provision(context.Background())
		}
		for i := 0; err == nil; i++ {
			if _, err = b.Publish(context.Background(), &bus.Msg{Subject: "wecom.event.1.demo.x", Data: fmt.Append(nil, i)}); err == nil {
				fmt.Println("acked", i)
			}
		}
		fmt.Println(err)
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// SIGKILL in the middle of publishing: the directory is free at once, and every
// message that was acknowledged is there.
func TestKill(t *testing.T) {
	dir := t.TempDir()
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), "EMBED_TEST_CHILD="+dir)
	var out syncBuffer
	cmd.Stdout = &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	acked := func() int { return strings.Count(out.String(), "acked") }
	deadline := time.After(20 * time.Second)
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for acked() < 200 {
		select {
		case <-tick.C:
		case <-deadline:
			_ = cmd.Process.Kill()
			t.Fatalf("the child does not publish: %s", out.String())
		}
	}
	if _, err := embed.Start(t.Context(), embed.Options{Dir: dir}); err == nil || !strings.Contains(err.Error(), "in use") {
		t.Errorf("while the child runs: got %v", err)
	}
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	_ = cmd.Wait() // "signal: killed"
	n := acked()
	s := start(t, embed.Options{Dir: dir})
	b, err := bus.Connect(t.Context(), bus.Options{Name: "test", Dial: s.Dial})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(t.Context())
	st, err := b.State(t.Context(), bus.StreamEvents)
	if err != nil || st.Messages < uint64(n) {
		t.Errorf("%d acknowledged, %d stored (%v)", n, st.Messages, err)
	}
}
