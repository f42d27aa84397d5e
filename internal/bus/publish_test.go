package bus_test

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/bustest"
)

func TestAckMeansStored(t *testing.T) {
	s := bustest.Start(t)
	b := provisioned(t, s.URL())
	var last bus.Ack
	for i := range 100 {
		last = publish(t, b, bus.Msg{
			Subject: "wecom.event.3.demo.message.text",
			ID:      fmt.Sprintf("demo/m-%d", i),
			Header:  bus.Header{"Content-Type": "application/cloudevents+json", "traceparent": "00-ab-cd-01"},
			Data:    fmt.Append(nil, "你好 ", i),
		})
		if last.Stream != bus.StreamEvents || last.Seq != uint64(i+1) || last.Duplicate {
			t.Fatalf("ack %d: got %+v", i, last)
		}
	}
	if s.CanRestart() {
		s.Kill()
		s.Restart()
		eventually(t, "connected again", b.Connected)
	}
	var got *bus.Stored
	eventually(t, "the stream answers", func() (ok bool) {
		var err error
		got, err = b.Get(t.Context(), bus.StreamEvents, last.Seq)
		return err == nil
	})
	if string(got.Data) != "你好 99" || got.ID != "demo/m-99" || got.Subject != "wecom.event.3.demo.message.text" ||
		got.Stream != bus.StreamEvents || got.Seq != last.Seq || time.Since(got.Time).Abs() > time.Hour {
		t.Errorf("got %+v", got)
	}
	if got.Header["Content-Type"] != "application/cloudevents+json" || got.Header["traceparent"] != "00-ab-cd-01" || len(got.Header) != 2 {
		t.Errorf("headers: got %v", got.Header)
	}
	st, err := b.State(t.Context(), bus.StreamEvents)
	if err != nil || st.Messages != 100 || st.LastSeq != 100 || st.FirstSeq != 1 || st.MaxBytes <= 0 {
		t.Errorf("State: got %+v, %v", st, err)
	}
}

func TestDuplicates(t *testing.T) {
	b := provisioned(t, bustest.Start(t).URL())
	first := event(t, b, 3, "demo/m-1", "x")
	again := event(t, b, 3, "demo/m-1", "x")
	if first.Duplicate || !again.Duplicate || again.Seq != first.Seq {
		t.Errorf("first %+v, again %+v", first, again)
	}
	// Fifty at once: one is stored.
	var stored atomic.Int32
	var wg sync.WaitGroup
	for range 50 {
		wg.Go(func() {
			a, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.3.demo.message.text", ID: "demo/m-2"})
			if err != nil {
				t.Errorf("Publish: %v", err)
			} else if !a.Duplicate {
				stored.Add(1)
			}
		})
	}
	wg.Wait()
	if n := stored.Load(); n != 1 {
		t.Errorf("%d acks say newly stored, want 1", n)
	}
	if st, err := b.State(t.Context(), bus.StreamEvents); err != nil || st.Messages != 2 {
		t.Errorf("the stream holds %d messages, want 2 (%v)", st.Messages, err)
	}
	if s := b.Stats(); s.Published != 52 || s.Duplicates != 50 || s.PublishErrors != 0 || s.Pending != 0 {
		t.Errorf("Stats: got %+v", s)
	}
}

// One goroutine's messages keep their order, many goroutines do not get each
// other's acks.
func TestPublishManyAtOnce(t *testing.T) {
	b := provisioned(t, bustest.Start(t).URL())
	const publishers, each = 32, 200
	seqs := make([][]uint64, publishers)
	var wg sync.WaitGroup
	for p := range publishers {
		wg.Go(func() {
			for i := range each {
				a, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.3.demo.message.text", ID: fmt.Sprintf("demo/%d-%d", p, i), Data: fmt.Appendf(nil, "%d-%d", p, i)})
				if err != nil {
					t.Errorf("Publish: %v", err)
					return
				}
				seqs[p] = append(seqs[p], a.Seq)
			}
		})
	}
	wg.Wait()
	if t.Failed() {
		return
	}
	for p := range publishers {
		for i := range each {
			if i > 0 && seqs[p][i] <= seqs[p][i-1] {
				t.Fatalf("publisher %d: message %d has sequence %d after %d", p, i, seqs[p][i], seqs[p][i-1])
			}
		}
		for _, i := range []int{0, each / 2, each - 1} {
			s, err := b.Get(t.Context(), bus.StreamEvents, seqs[p][i])
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf("%d-%d", p, i); string(s.Data) != want {
				t.Errorf("sequence %d holds %s, acked for %s", seqs[p][i], s.Data, want)
			}
		}
	}
}

func TestPublishRefused(t *testing.T) {
	s := bustest.Start(t)
	b := provisioned(t, s.URL())
	_, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.3.demo.x", Data: make([]byte, 9<<20), Wait: patience})
	if !errors.Is(err, bus.ErrRefused) || errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("over max_payload: got %v, want ErrRefused", err)
	}
	st, err := js(t, s.URL()).Stream(t.Context(), bus.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	c := st.CachedInfo().Config
	c.MaxMsgSize = 1000
	if _, err := js(t, s.URL()).UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	_, err = b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.3.demo.x", Data: make([]byte, 2000)})
	if !errors.Is(err, bus.ErrRefused) {
		t.Errorf("over the stream's message size: got %v, want ErrRefused", err)
	}
	for _, subject := range []string{"", "wecom.event.3.a b", "wecom.event.3.x\r\nPUB y 0"} {
		if _, err := b.Publish(t.Context(), &bus.Msg{Subject: subject}); !errors.Is(err, bus.ErrRefused) {
			t.Errorf("subject %q: got %v, want ErrRefused", subject, err)
		}
	}
	if _, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.3.demo.x", Header: bus.Header{"a:b": "x"}}); !errors.Is(err, bus.ErrRefused) {
		t.Errorf("header name with a colon: got %v, want ErrRefused", err)
	}
	event(t, b, 3, "", "still works")
}

func TestPublishNobodyListens(t *testing.T) {
	b := connect(t, bustest.Start(t).URL()) // not provisioned
	start := time.Now()
	_, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.3.demo.x"})
	if !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	if d := time.Since(start); d > 500*time.Millisecond {
		t.Errorf("took %s: the answer was there at once", d)
	}
}

func TestPublishFull(t *testing.T) {
	s := bustest.Start(t)
	b := provisioned(t, s.URL())
	j := js(t, s.URL())
	limit := func(f func(*jetstream.StreamConfig)) {
		t.Helper()
		st, err := j.Stream(t.Context(), bus.StreamEvents)
		if err != nil {
			t.Fatal(err)
		}
		c := st.CachedInfo().Config
		f(&c)
		if _, err := j.UpdateStream(t.Context(), c); err != nil {
			t.Fatal(err)
		}
	}
	event(t, b, 3, "demo/m-1", "x")
	for name, f := range map[string]func(*jetstream.StreamConfig){
		"bytes":    func(c *jetstream.StreamConfig) { c.MaxMsgs, c.MaxBytes = -1, 100 },
		"messages": func(c *jetstream.StreamConfig) { c.MaxMsgs, c.MaxBytes = 1, 1<<20 },
	} {
		limit(f)
		_, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.3.demo.x", ID: "demo/m-2", Data: make([]byte, 200)})
		if !errors.Is(err, bus.ErrFull) || errors.Is(err, bus.ErrRefused) {
			t.Errorf("%s: got %v, want ErrFull", name, err)
		}
	}
	// A refused ID was not burnt: it is stored, not taken for a duplicate.
	limit(func(c *jetstream.StreamConfig) { c.MaxMsgs, c.MaxBytes = -1, 1<<20 })
	if a := publish(t, b, bus.Msg{Subject: "wecom.event.3.demo.x", ID: "demo/m-2"}); a.Duplicate {
		t.Error("a message that was not stored counts as a duplicate")
	}
}

func TestServerGoneAndBack(t *testing.T) {
	s := bustest.Start(t)
	if !s.CanRestart() {
		t.Log("not run: the server cannot be stopped")
		return
	}
	b := provisioned(t, s.URL())
	lag := lateness(t)
	// Publishers that are under way when the server goes fail in time, too.
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var slowest, failures atomic.Int64
	for p := range 16 {
		wg.Go(func() {
			for i := 0; ctx.Err() == nil; i++ {
				start := time.Now()
				_, err := b.Publish(context.Background(), &bus.Msg{Subject: "wecom.event.3.demo.x", ID: fmt.Sprintf("demo/%d-%d", p, i)})
				d := int64(time.Since(start))
				for old := slowest.Load(); d > old && !slowest.CompareAndSwap(old, d); old = slowest.Load() {
				}
				if err != nil {
					failures.Add(1)
					if !errors.Is(err, bus.ErrUnavailable) {
						t.Errorf("got %v, want ErrUnavailable", err)
					}
					select {
					case <-time.After(10 * time.Millisecond):
					case <-ctx.Done():
					}
				}
			}
		})
	}
	eventually(t, "messages are published", func() bool { return b.Stats().Published > 100 })
	s.Kill()
	eventually(t, "publishes fail", func() bool { return failures.Load() > 100 })
	s.Restart()
	before := b.Stats().Published
	eventually(t, "publishes succeed again", func() bool { return b.Stats().Published > before+100 })
	cancel()
	wg.Wait()
	if d := time.Duration(slowest.Load()); d > 1100*time.Millisecond+2*lag() {
		t.Errorf("a publish took %s", d)
	}
	if n := b.Stats().Reconnects; n == 0 {
		t.Error("Stats counts no reconnect")
	}
}

// Whoever waits for an ack learns at once that the connection is gone.
func TestDisconnectEndsTheWait(t *testing.T) {
	s := bustest.Start(t)
	provisioned(t, s.URL())
	p := newStuckProxy(t, s.URL())
	b := connect(t, "nats://"+p.ln.Addr().String())
	eventually(t, "connected", b.Connected)
	p.freeze()
	errs := make(chan error, 1)
	go func() {
		_, err := b.Publish(context.Background(), &bus.Msg{Subject: "wecom.event.3.demo.x", Wait: time.Hour})
		errs <- err
	}()
	eventually(t, "the publish waits", func() bool { return b.Stats().Pending == 1 })
	p.cut()
	if err := receive(t, "the publish ends", errs); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
	p.flow()
	eventually(t, "connected again", b.Connected)
}

// stuckProxy passes bytes on to a server until it is frozen; then it reads and
// writes nothing and closes nothing, as a host that hangs.
type stuckProxy struct {
	ln     net.Listener
	mu     sync.Mutex
	thaw   chan struct{} // closed: flowing
	frozen bool
	conns  []net.Conn
}

func newStuckProxy(t *testing.T, to string) *stuckProxy {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &stuckProxy{ln: ln, thaw: make(chan struct{})}
	close(p.thaw)
	var wg sync.WaitGroup
	t.Cleanup(func() {
		ln.Close()
		p.cut()
		p.flow()
		wg.Wait()
	})
	wg.Go(func() {
		for {
			down, err := ln.Accept()
			if err != nil {
				return
			}
			up, err := net.Dial("tcp", strings.TrimPrefix(to, "nats://"))
			if err != nil {
				down.Close()
				continue
			}
			p.mu.Lock()
			p.conns = append(p.conns, down, up)
			p.mu.Unlock()
			for _, c := range [][2]net.Conn{{down, up}, {up, down}} {
				wg.Go(func() { p.copy(c[0], c[1]) })
			}
		}
	})
	return p
}

func (p *stuckProxy) copy(dst, src net.Conn) {
	defer dst.Close()
	defer src.Close()
	buf := make([]byte, 32<<10)
	for {
		n, err := src.Read(buf)
		p.mu.Lock()
		thaw := p.thaw
		p.mu.Unlock()
		<-thaw
		if n > 0 {
			if _, err := dst.Write(buf[:n]); err != nil {
				return
			}
		}
		if err != nil {
			return
		}
	}
}

func (p *stuckProxy) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.thaw, p.frozen = make(chan struct{}), true
}

// cut breaks all connections.
func (p *stuckProxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, c := range p.conns {
		c.Close()
	}
	p.conns = nil
}

func (p *stuckProxy) flow() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.frozen {
		close(p.thaw)
		p.frozen = false
	}
}

// A broker that hangs, so that nothing breaks and nothing comes: every publish still
// ends in time, the 4,096 that fit and those beyond, and so it is when not even the
// socket takes anything more.
func TestPublishWhileTheBrokerHangs(t *testing.T) {
	s := bustest.Start(t)
	provisioned(t, s.URL())
	p := newStuckProxy(t, s.URL())
	b := connect(t, "nats://"+p.ln.Addr().String())
	eventually(t, "connected", b.Connected)
	event(t, b, 3, "", "x")
	p.freeze()

	const n = 5000
	data := make([]byte, 8<<10) // 40 MB together
	lag := lateness(t)
	var wg sync.WaitGroup
	var slowest atomic.Int64
	for range n {
		wg.Go(func() {
			start := time.Now()
			_, err := b.Publish(context.Background(), &bus.Msg{Subject: "wecom.event.3.demo.x", Data: data, Wait: 300 * time.Millisecond})
			if !errors.Is(err, bus.ErrUnavailable) {
				t.Errorf("got %v, want ErrUnavailable", err)
			}
			d := int64(time.Since(start))
			for old := slowest.Load(); d > old && !slowest.CompareAndSwap(old, d); old = slowest.Load() {
			}
		})
	}
	wg.Wait()
	if d := time.Duration(slowest.Load()); d > 2*time.Second+2*lag() {
		t.Errorf("a publish with a limit of 300 ms took %s", d)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	defer cancel()
	if _, err := b.Publish(ctx, &bus.Msg{Subject: "wecom.event.3.demo.x"}); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("context ended: got %v, want ErrUnavailable", err)
	}
	p.flow()
	eventually(t, "published again", func() bool {
		_, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.3.demo.x", ID: "demo/after"})
		return err == nil
	})
}

// A late ack must not be taken for the ack of a later message that waits in the
// same place.
func TestLateAckIsNobodys(t *testing.T) {
	s := bustest.Start(t)
	provisioned(t, s.URL())
	p := newStuckProxy(t, s.URL())
	b := connect(t, "nats://"+p.ln.Addr().String())
	eventually(t, "connected", b.Connected)
	for i := range 20 {
		p.freeze()
		if _, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.3.demo.x", ID: fmt.Sprintf("demo/late-%d", i), Wait: 20 * time.Millisecond}); !errors.Is(err, bus.ErrUnavailable) {
			t.Fatalf("got %v, want ErrUnavailable", err)
		}
		p.flow()
		a := publish(t, b, bus.Msg{Subject: "wecom.event.3.demo.x", ID: fmt.Sprintf("demo/next-%d", i), Data: []byte("next")})
		got, err := b.Get(t.Context(), bus.StreamEvents, a.Seq)
		if err != nil {
			t.Fatal(err)
		}
		if want := fmt.Sprintf("demo/next-%d", i); got.ID != want {
			t.Fatalf("the ack of %s names the message %s", want, got.ID)
		}
	}
}

// m may be used again as soon as Publish has returned, whatever it returned. The
// race detector watches.
func TestPublishLetsGoOfTheMessage(t *testing.T) {
	s := bustest.Start(t)
	provisioned(t, s.URL())
	p := newStuckProxy(t, s.URL())
	b := connect(t, "nats://"+p.ln.Addr().String())
	eventually(t, "connected", b.Connected)
	p.freeze()
	data := make([]byte, 1<<20)
	h := bus.Header{"a": "b"}
	for range 20 {
		_, _ = b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.3.demo.x", Header: h, Data: data, Wait: 10 * time.Millisecond})
		clear(data)
		h["a"] = "c"
	}
	p.flow()
}

func TestParseAck(t *testing.T) {
	for in, want := range map[string]bus.Ack{
		`{"stream":"WECOM_EVENTS","seq":1}`:                                             {Stream: "WECOM_EVENTS", Seq: 1},
		`{"stream":"WECOM_EVENTS", "seq":18446744073709551615}`:                         {Stream: "WECOM_EVENTS", Seq: 18446744073709551615},
		`{"stream":"X","seq":7,"duplicate": true}`:                                      {Stream: "X", Seq: 7, Duplicate: true},
		`{"stream":"WECOM_EVENTS","domain":"hub","seq":12,"duplicate": true}`:           {Stream: "WECOM_EVENTS", Seq: 12, Duplicate: true},
		`{"stream":"WECOM_EVENTS","seq":3,"duplicate":false}`:                           {Stream: "WECOM_EVENTS", Seq: 3},
		`{"type":"io.nats.jetstream.api.v1.pub_ack","stream":"A\"B","seq":3,"val":"1"}`: {Stream: `A"B`, Seq: 3},
	} {
		if got, err := bus.ParseAck([]byte(in)); err != nil || got != want {
			t.Errorf("%s: got %+v, %v", in, got, err)
		}
	}
	for in, want := range map[string]error{
		``:                       bus.ErrUnavailable,
		`{}`:                     bus.ErrUnavailable,
		`{"stream":"X","seq":0}`: bus.ErrUnavailable,
		`{"stream":"X","seq":1`:  bus.ErrUnavailable,
		`{"error":{"code":503,"err_code":10077,"description":"maximum bytes exceeded"},"stream":"X","seq":0}`:    bus.ErrFull,
		`{"error":{"code":503,"err_code":10077,"description":"maximum messages exceeded"},"stream":"X","seq":0}`: bus.ErrFull,
		`{"error":{"code":503,"err_code":10077,"description":"message too large"},"stream":"X","seq":0}`:         bus.ErrRefused,
		`{"error":{"code":503,"err_code":10077,"description":"something else"},"stream":"X","seq":0}`:            bus.ErrUnavailable,
		`{"error":{"code":400,"err_code":10054,"description":"message size exceeds maximum allowed"}}`:           bus.ErrRefused,
		`{"error":{"code":500,"err_code":10047,"description":"insufficient storage resources available"}}`:       bus.ErrFull,
		`{"error":{"code":503,"err_code":10008,"description":"JetStream system temporarily unavailable"}}`:       bus.ErrUnavailable,
		`{"error":{"code":400,"err_code":10071,"description":"wrong last sequence: 5"}}`:                         bus.ErrRefused,
		`{"error":{"code":500,"err_code":19999,"description":"new"}}`:                                            bus.ErrUnavailable,
	} {
		got, err := bus.ParseAck([]byte(in))
		if !errors.Is(err, want) || got != (bus.Ack{}) {
			t.Errorf("%s: got %+v, %v, want %v", in, got, err, want)
		}
		for _, other := range []error{bus.ErrUnavailable, bus.ErrFull, bus.ErrRefused, bus.ErrNotFound} {
			if !errors.Is(other, want) && errors.Is(err, other) {
				t.Errorf("%s: the error is %v as well as %v", in, other, want)
			}
		}
	}
	plain := []byte(`{"stream":"WECOM_EVENTS","seq":123456,"duplicate": true}`)
	if n := testing.AllocsPerRun(100, func() {
		if _, err := bus.ParseAck(plain); err != nil {
			t.Fatal(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations for a plain ack, want 0", n)
	}
}

// Whatever the quick parser accepts, encoding/json reads alike.
func FuzzParseAck(f *testing.F) {
	f.Add([]byte(`{"stream":"WECOM_EVENTS","seq":1}`))
	f.Add([]byte(`{"stream":"X", "seq": 7 , "duplicate" : true }`))
	f.Add([]byte(`{"stream":"WECOM_EVENTS","domain":"hub","seq":12}`))
	f.Add([]byte(`{"stream":"a\u0041","seq":01}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		got, ok := bus.ParsePlainAck(bytes.Clone(data))
		if !ok || !utf8.Valid(data) {
			return
		}
		var want struct {
			Stream    string
			Seq       uint64
			Duplicate bool
		}
		if err := json.Unmarshal(data, &want); err != nil {
			// The quick parser need not be a validator of strings and numbers, but of form.
			var syntax *json.SyntaxError
			if errors.As(err, &syntax) && !strings.Contains(err.Error(), "in string literal") && !strings.Contains(err.Error(), "after object key:value pair") {
				t.Fatalf("%q: accepted, encoding/json says %v", data, err)
			}
			return
		}
		if got.Seq != want.Seq || got.Duplicate != want.Duplicate || got.Stream != want.Stream {
			t.Fatalf("%q: got %+v, want %+v", data, got, want)
		}
	})
}
