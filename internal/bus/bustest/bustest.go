// Package bustest gives tests a fresh, isolated broker. Which kind, the environment
// variable BRIDGE_TEST_NATS decides:
//
//   - empty: a server inside the test's process, on a free port, data in a temporary
//     directory;
//   - "container": NATS in a container, for test programs that import
//     bustest/container; others, and machines without a Docker engine, say that they
//     did not and use the server in the process;
//   - a URL: that server. Its streams with the names of this project are deleted first.
//
// Every kind speaks the protocol over TCP.
package bustest

import (
	"context"
	"errors"
	"fmt"
	"net/url"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wecom-bridge/wecom-bridge/internal/bus/embed"
)

// Env is the environment variable that chooses the kind of broker.
const Env = "BRIDGE_TEST_NATS"

// Broker is something that runs a server. Its data survives Stop and Kill.
type Broker interface {
	Run() error // also again, on the same address
	Stop() error
	Kill() error // as a crash does it, where the kind allows that
	URL() string
	Close() error
}

// NewContainer makes a broker in a container; the package bustest/container sets it.
// It returns an error that wraps [ErrNoEngine] where no Docker engine answers.
var NewContainer func() (Broker, error)

// ErrNoEngine says that there is no Docker engine here.
var ErrNoEngine = errors.New("no Docker engine answers")

// Server is a broker that belongs to one test.
type Server struct {
	t      testing.TB
	broker Broker // nil: a server that somebody named
	url    string
	kind   string
}

// Start runs a broker for t and stops it when t ends.
func Start(t testing.TB) *Server {
	t.Helper()
	switch kind := os.Getenv(Env); {
	case kind == "":
	case strings.Contains(kind, "://"):
		return named(t, kind)
	case kind == "container":
		if NewContainer == nil {
			t.Logf("%s=container: this test program knows no containers, so the server runs in the process", Env)
			break
		}
		b, err := NewContainer()
		if errors.Is(err, ErrNoEngine) {
			t.Logf("%s=container: NOT RUN against a container: %v; the server runs in the process instead", Env, err)
			break
		}
		if err != nil {
			t.Fatalf("broker in a container: %v", err)
		}
		return run(t, b, "container")
	default:
		t.Fatalf("%s=%q: must be empty, container or a URL", Env, kind)
	}
	return Local(t)
}

// Local runs a broker inside this process, whatever the environment says.
func Local(t testing.TB) *Server {
	t.Helper()
	return run(t, &local{dir: t.TempDir()}, "in process")
}

func run(t testing.TB, b Broker, kind string) *Server {
	t.Helper()
	t.Cleanup(func() {
		if err := b.Close(); err != nil {
			t.Errorf("close broker: %v", err)
		}
	})
	if err := b.Run(); err != nil {
		t.Fatalf("run broker (%s): %v", kind, err)
	}
	return &Server{t: t, broker: b, url: b.URL(), kind: kind}
}

// URL returns where the server is.
func (s *Server) URL() string { return s.url }

// Kind returns "in process", "container" or "named".
func (s *Server) Kind() string { return s.kind }

// CanRestart reports whether Stop, Kill and Restart can be used: not with a server
// that somebody named.
func (s *Server) CanRestart() bool { return s.broker != nil }

// Stop ends the server and keeps its data.
func (s *Server) Stop() { s.do("stop", Broker.Stop) }

// Kill ends the server and keeps what is on its disk: in a container by SIGKILL, in
// the process as Stop does.
func (s *Server) Kill() { s.do("kill", Broker.Kill) }

// Restart starts the server again after Stop or Kill, on the same address with the
// same data.
func (s *Server) Restart() { s.do("restart", Broker.Run) }

func (s *Server) do(what string, f func(Broker) error) {
	s.t.Helper()
	if s.broker == nil {
		s.t.Fatalf("cannot %s the server that %s names", what, Env)
	}
	if err := f(s.broker); err != nil {
		s.t.Fatalf("%s broker: %v", what, err)
	}
}

// local is a server in this process.
type local struct {
	dir    string
	listen string
	s      *embed.Server
}

func (l *local) Run() error {
	if l.listen == "" {
		l.listen = "127.0.0.1:0"
	}
	s, err := embed.Start(context.Background(), embed.Options{Dir: l.dir, Listen: l.listen})
	if err != nil {
		return err
	}
	u, err := url.Parse(s.URL())
	if err != nil {
		return err
	}
	l.s, l.listen = s, u.Host
	return nil
}

func (l *local) Stop() error {
	if l.s != nil {
		l.s.Shutdown()
	}
	return nil
}

func (l *local) Kill() error  { return l.Stop() }
func (l *local) Close() error { return l.Stop() }
func (l *local) URL() string  { return "nats://" + l.listen }

// named cleans a server that somebody named.
func named(t testing.TB, url string) *Server {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if err := clean(ctx, url); err != nil {
		t.Fatalf("clean the server of %s: %v", Env, err)
	}
	return &Server{t: t, url: url, kind: "named"}
}

func clean(ctx context.Context, url string) error {
	nc, err := nats.Connect(url)
	if err != nil {
		return err
	}
	defer nc.Close()
	js, err := jetstream.New(nc)
	if err != nil {
		return err
	}
	names := js.StreamNames(ctx)
	var ours []string
	for n := range names.Name() {
		if strings.HasPrefix(n, "WECOM_") {
			ours = append(ours, n)
		}
	}
	if err := names.Err(); err != nil {
		return err
	}
	for _, n := range ours {
		if err := js.DeleteStream(ctx, n); err != nil && !errors.Is(err, jetstream.ErrStreamNotFound) {
			return fmt.Errorf("delete %s: %w", n, err)
		}
	}
	return nil
}
