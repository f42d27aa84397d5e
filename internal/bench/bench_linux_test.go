package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"testing"
	"time"
)

// Run starts this test program again to play the servers.
func TestMain(m *testing.M) {
	if len(os.Args) == 3 && os.Args[1] == "bench-serve" {
		if err := Serve(context.Background(), os.Args[2], os.Stdin, os.Stdout, nil); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

func leftNothing(t *testing.T, dir string) {
	t.Helper()
	left, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range left {
		t.Errorf("%s was left behind", f.Name())
	}
}

func TestRun(t *testing.T) {
	dir := t.TempDir()
	var out strings.Builder
	err := Run(t.Context(), Options{
		Cells: []string{"chi", "decode", "interval", "fsync", "tcp", "reply"}, Conns: []int{3}, Rounds: 1,
		Duration: 100 * time.Millisecond, ReplyRate: 20, ReplyDuration: time.Second, Dir: dir,
	}, &out)
	// On a machine that is busy enough the gateway gives up waiting for an ack, and rightly
	// so. Everything else that is wrong is another error.
	if err != nil && !errors.Is(err, errRefused) {
		t.Fatalf("%v\n%s", err, out.String())
	}
	for _, c := range cells {
		if !strings.Contains(out.String(), "\n"+c.title) {
			t.Errorf("no line for %q in\n%s", c.title, out.String())
		}
	}
	for _, want := range []string{"\n3 connections", "goal: ", "\ninterval", "\nfsync", "20 of 20"} {
		if !strings.Contains(out.String(), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
	leftNothing(t, dir)
}

func TestRunStops(t *testing.T) {
	dir := t.TempDir()
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	// When the round is announced, the first server is about to start.
	out := writer(func(p []byte) (int, error) {
		if strings.Contains(string(p), "round 1") {
			cancel()
		}
		return len(p), nil
	})
	err := Run(ctx, Options{
		Cells: []string{"interval"}, Conns: []int{3}, Rounds: 1,
		Duration: time.Second, ReplyRate: 20, ReplyDuration: time.Second, Dir: dir,
	}, out)
	if !errors.Is(err, context.Canceled) {
		t.Errorf("got %v, want %v", err, context.Canceled)
	}
	leftNothing(t, dir)
}

type writer func([]byte) (int, error)

func (w writer) Write(p []byte) (int, error) { return w(p) }

func TestRunOptions(t *testing.T) {
	err := Run(t.Context(), Options{Cells: []string{"chi", "django"}, Conns: []int{0}}, io.Discard)
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`"django"`, "0 connections", "0 rounds", "duration 0s", "reply duration", "reply rate"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("%q does not mention %q", err, want)
		}
	}
}

func TestServe(t *testing.T) {
	t.Run("ends with its input", func(t *testing.T) {
		r, w := io.Pipe()
		out := make(chan string, 1)
		done := make(chan error, 1)
		go func() {
			done <- Serve(t.Context(), roleChi, r, writer(func(p []byte) (int, error) {
				out <- string(p)
				return len(p), nil
			}), func(bool) { t.Error("the bare server was tuned") })
		}()
		if _, err := io.WriteString(w, "{}\n"); err != nil {
			t.Fatal(err)
		}
		if said := <-out; !strings.Contains(said, `"Addr":"127.0.0.1:`) {
			t.Errorf("it said %q", said)
		}
		if _, err := io.WriteString(w, "dance\n"); err != nil {
			t.Fatal(err)
		}
		if said := <-out; !strings.Contains(said, `"Err":"no command`) {
			t.Errorf("to an unknown command it said %q", said)
		}
		if err := w.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	t.Run("without settings", func(t *testing.T) {
		if err := Serve(t.Context(), roleChi, strings.NewReader(""), io.Discard, nil); err == nil {
			t.Error("no error")
		}
	})
	t.Run("unknown role", func(t *testing.T) {
		if err := Serve(t.Context(), "django", strings.NewReader("{}\n"), io.Discard, nil); err == nil || !strings.Contains(err.Error(), "django") {
			t.Errorf("got %v", err)
		}
	})
}

// What a child has to say before it dies is part of the error.
func TestChildFails(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	_, err = startChild(t.Context(), []string{self, "bench-serve"}, "django", settings{})
	if err == nil || !strings.Contains(err.Error(), `no role "django"`) {
		t.Errorf("got %v", err)
	}
}
