package bench

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// start serves h and returns a generator with connections to it.
func start(t *testing.T, h http.HandlerFunc, conns, threads int) *generator {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = srv.Serve(ln)
	}()
	t.Cleanup(func() {
		_ = srv.Close()
		<-done
	})
	return connect(t, ln, conns, threads)
}

func connect(t *testing.T, ln net.Listener, conns, threads int) *generator {
	t.Helper()
	g, err := dial(netip.MustParseAddrPort(ln.Addr().String()), conns, threads)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(g.close)
	return g
}

// numbered returns n POST requests whose bodies are their numbers.
func numbered(n int) func() []byte {
	var next atomic.Int64
	return func() []byte {
		i := next.Add(1)
		if i > int64(n) {
			return nil
		}
		body := fmt.Sprint(i)
		return fmt.Appendf(nil, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	}
}

func TestGenerator(t *testing.T) {
	for _, threads := range []int{1, 3} {
		t.Run(fmt.Sprint(threads), func(t *testing.T) {
			var mu sync.Mutex
			seen, peers := make(map[string]int), make(map[string]bool)
			g := start(t, func(w http.ResponseWriter, r *http.Request) {
				b, _ := io.ReadAll(r.Body)
				mu.Lock()
				defer mu.Unlock()
				seen[string(b)]++
				peers[r.RemoteAddr] = true
				if len(seen)%10 == 0 {
					w.WriteHeader(http.StatusServiceUnavailable)
				}
			}, 7, threads)
			got, err := g.run(t.Context(), numbered(1000), time.Minute)
			if err != nil {
				t.Fatal(err)
			}
			if got.ok != 900 || got.errors() != 100 || got.bad["status 503"] != 100 || got.latency.TotalCount() != 900 {
				t.Errorf("%d answers with 200, others %v, %d latencies; want 900, 100 × status 503, 900", got.ok, got.bad, got.latency.TotalCount())
			}
			counted := func() (requests, connections int) {
				mu.Lock()
				defer mu.Unlock()
				return len(seen), len(peers)
			}
			if requests, connections := counted(); requests != 1000 || connections != 7 {
				t.Errorf("the server saw %d different requests over %d connections, want 1000 over 7", requests, connections)
			}
			// The connections are there for the next run.
			got, err = g.run(t.Context(), numbered(5), time.Minute)
			if _, connections := counted(); err != nil || got.ok+got.errors() != 5 || connections != 7 {
				t.Errorf("second run: %d answers, %v, %d connections, want 5 over the same 7", got.ok+got.errors(), err, connections)
			}
		})
	}
}

func TestGeneratorStopsInTime(t *testing.T) {
	g := start(t, func(http.ResponseWriter, *http.Request) {}, 4, 1)
	got, err := g.run(t.Context(), func() []byte { return numbered(1)() }, 20*time.Millisecond)
	if err != nil || got.ok == 0 || got.errors() != 0 || got.took > patience {
		t.Errorf("%d answers in %v, others %v, %v", got.ok, got.took, got.bad, err)
	}
}

// The body is larger than what the sockets between can hold, so that the generator has
// to wait until it can go on writing.
func TestGeneratorLargeRequest(t *testing.T) {
	body := bytes.Repeat([]byte("0123456789abcdef"), 1<<20)
	request := append(fmt.Appendf(nil, "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n", len(body)), body...)
	g := start(t, func(w http.ResponseWriter, r *http.Request) {
		if b, err := io.ReadAll(r.Body); err != nil || !bytes.Equal(b, body) {
			w.WriteHeader(http.StatusBadRequest)
		}
	}, 2, 1)
	var sent atomic.Int32
	got, err := g.run(t.Context(), func() []byte {
		if sent.Add(1) > 6 {
			return nil
		}
		return request
	}, time.Minute)
	if err != nil || got.ok != 6 || got.errors() != 0 {
		t.Errorf("%d answers with 200, others %v, %v, want 6", got.ok, got.bad, err)
	}
}

// raw serves each connection with f.
func raw(t *testing.T, f func(*bufio.Reader, net.Conn)) net.Listener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer func() { _ = c.Close() }()
				f(bufio.NewReader(c), c)
			})
		}
	})
	t.Cleanup(func() {
		_ = ln.Close()
		wg.Wait()
	})
	return ln
}

func TestGeneratorAnswerInPieces(t *testing.T) {
	ln := raw(t, func(r *bufio.Reader, c net.Conn) {
		for {
			req, err := http.ReadRequest(r)
			if err != nil {
				return
			}
			_, _ = io.Copy(io.Discard, req.Body)
			for _, b := range []byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok") {
				if _, err := c.Write([]byte{b}); err != nil {
					return
				}
			}
		}
	})
	got, err := connect(t, ln, 3, 1).run(t.Context(), numbered(30), time.Minute)
	if err != nil || got.ok != 30 || got.errors() != 0 {
		t.Errorf("%d answers with 200, others %v, %v, want 30", got.ok, got.bad, err)
	}
}

func TestGeneratorBrokenServer(t *testing.T) {
	answer := func(s string) func(*bufio.Reader, net.Conn) {
		return func(r *bufio.Reader, c net.Conn) {
			if req, err := http.ReadRequest(r); err == nil {
				_, _ = io.Copy(io.Discard, req.Body)
				_, _ = io.WriteString(c, s)
			}
		}
	}
	for _, c := range []struct {
		name string
		f    func(*bufio.Reader, net.Conn)
		want map[string]int
	}{
		{"hangs up", answer(""), map[string]int{"connection closed": 2}},
		{"half an answer", answer("HTTP/1.1 200 OK\r\nContent-Le"), map[string]int{"connection closed": 2}},
		{"talks nonsense", answer("nonsense\r\n\r\n"), map[string]int{errNotHTTP.Error(): 2}},
		{"says too much", answer("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\nmore"), map[string]int{errUnasked.Error(): 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := connect(t, raw(t, c.f), 2, 1).run(t.Context(), numbered(100), time.Minute)
			if err != nil || got.ok != 0 || !maps.Equal(got.bad, c.want) {
				t.Errorf("%d answers with 200, others %v, %v, want %v", got.ok, got.bad, err, c.want)
			}
		})
	}
}

// A request that is never answered is an error, and neither an end of ctx nor of the
// time waits for it for ever.
func TestGeneratorSilentServer(t *testing.T) {
	arrived := make(chan struct{}, 2)
	silent := func(r *bufio.Reader, _ net.Conn) {
		if _, err := http.ReadRequest(r); err == nil {
			arrived <- struct{}{}
		}
		_, _ = io.Copy(io.Discard, r) // until the other side hangs up
	}
	g := connect(t, raw(t, silent), 2, 1)
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		<-arrived
		<-arrived
		cancel()
	}()
	got, err := g.run(ctx, numbered(100), time.Minute)
	if !errors.Is(err, context.Canceled) || got.ok != 0 || got.bad["no answer"] != 2 {
		t.Errorf("%d answers with 200, others %v, %v, want 2 × no answer and the error of ctx", got.ok, got.bad, err)
	}
}

func TestProc(t *testing.T) {
	pid := os.Getpid()
	before, err := cpuTime(pid)
	if err != nil {
		t.Fatal(err)
	}
	for deadline := time.Now().Add(time.Minute); ; {
		now, err := cpuTime(pid)
		if err != nil {
			t.Fatal(err)
		}
		if now > before {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("a minute of work, and the processor time is still %v", now)
		}
	}
	if peak, err := peakMemory(pid); err != nil || peak < 1<<20 {
		t.Errorf("peak memory %d, %v, want more than a megabyte", peak, err)
	}
	if _, err := cpuTime(-1); err == nil {
		t.Error("processor time of process -1: no error")
	}
	if inMemory("/proc/self/no-such-file") {
		t.Error("a file that does not exist lies in memory")
	}
}
