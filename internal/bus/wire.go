package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	publishWindow = 4096 // publishes that may wait for their ack at once
	requestWindow = 1024 // requests, double acks included, that may wait at once

	// keepBuffer is the largest message whose copy is kept for the next one.
	keepBuffer = 64 << 10
)

var (
	errDisconnected = fmt.Errorf("%w: disconnected", ErrUnavailable)
	errNoAnswer     = fmt.Errorf("%w: no answer in time", ErrUnavailable)
	errWindow       = fmt.Errorf("%w: too many messages under way", ErrUnavailable)
	errNobody       = fmt.Errorf("%w: no stream or service takes this subject", ErrUnavailable)
	errDenied       = fmt.Errorf("%w: permission denied", ErrUnavailable)
)

// wire sends messages that want an answer and matches the answers to them. It stands
// in for nats.go's own request and publish calls, because those can wait past their
// context for a lock that is held during a dial, leave a lost ack to its timer, and
// allocate three times as much.
//
// One goroutine hands everything to nats.go, so only that goroutine can ever be stuck
// there, and callers keep their deadlines.
type wire struct {
	nc        *nats.Conn
	connected *atomic.Bool
	sub       *nats.Subscription
	prefix    string // of the reply subjects, with its last dot

	publishes *window
	requests  *window
	out       chan *call
	stop      chan struct{}
	stopped   sync.WaitGroup
	closed    atomic.Bool
}

// window is a bounded table of calls that wait. Its calls are used again, the last
// one first, so that a quiet process touches only a few.
type window struct {
	kind  byte // first character of the token in the reply subject
	sem   chan struct{}
	mu    sync.Mutex
	free  []*call
	calls []*call // by index
}

// call is one place in a window.
type call struct {
	w     *window
	index uint64
	done  chan answer // capacity 1
	timer *time.Timer

	mu      sync.Mutex
	gen     uint64 // of this use; it makes the token unique
	open    bool   // nobody has answered or given up yet
	sending bool   // the writer reads msg
	left    bool   // the caller has gone while the writer was reading

	msg  nats.Msg
	hdr  nats.Header // msg.Header or nil, kept
	vals []string    // backs the values of hdr
	buf  []byte      // backs msg.Data
}

type answer struct {
	msg *nats.Msg
	err error
}

func newWindow(kind byte, size int) *window {
	return &window{kind: kind, sem: make(chan struct{}, size)}
}

func newWire(nc *nats.Conn, connected *atomic.Bool) (*wire, error) {
	w := &wire{
		nc:        nc,
		connected: connected,
		prefix:    nc.NewInbox() + ".",
		publishes: newWindow('p', publishWindow),
		requests:  newWindow('r', requestWindow),
		out:       make(chan *call, publishWindow+requestWindow),
		stop:      make(chan struct{}),
	}
	sub, err := nc.Subscribe(w.prefix+"*", w.receive)
	if err != nil {
		return nil, err
	}
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return nil, err
	}
	w.sub = sub
	w.stopped.Add(1)
	go w.write()
	return w, nil
}

// outgoing is what a caller wants sent.
type outgoing struct {
	subject string
	id      string      // Nats-Msg-Id
	header  Header      // besides id
	raw     nats.Header // instead of id and header
	data    []byte
}

// do sends m and waits for its answer: at most limit, if that is positive, and no
// longer than ctx. It returns at once when the connection breaks. m's data and
// headers are not used after it returns.
func (w *wire) do(ctx context.Context, win *window, m outgoing, limit time.Duration) (*nats.Msg, error) {
	if w.closed.Load() {
		return nil, ErrClosed
	}
	if !w.connected.Load() {
		return nil, errDisconnected
	}
	var until time.Time
	if limit > 0 {
		until = time.Now().Add(limit)
	}
	c, err := win.take(ctx, until)
	if err != nil {
		return nil, err
	}
	c.fill(w.prefix, m)
	// A disconnect fails the calls that are open. This one is open now, so the
	// connection has to be looked at again.
	if !w.connected.Load() {
		c.answer(answer{err: errDisconnected})
	} else {
		select {
		case w.out <- c:
		default: // the writer has been stuck for a while
			c.answer(answer{err: errWindow})
		}
	}
	a := c.wait(ctx, until)
	c.leave()
	if a.err != nil {
		return nil, a.err
	}
	if len(a.msg.Data) == 0 && a.msg.Header.Get("Status") == "503" {
		return nil, errNobody
	}
	return a.msg, nil
}

// take waits for a free place.
func (win *window) take(ctx context.Context, until time.Time) (*call, error) {
	select {
	case win.sem <- struct{}{}:
	default:
		var expired <-chan time.Time
		if !until.IsZero() {
			t := time.NewTimer(time.Until(until))
			defer t.Stop()
			expired = t.C
		}
		select {
		case win.sem <- struct{}{}:
		case <-expired:
			return nil, errWindow
		case <-ctx.Done():
			return nil, fmt.Errorf("%w: %w", errWindow, ctx.Err())
		}
	}
	win.mu.Lock()
	defer win.mu.Unlock()
	if n := len(win.free); n > 0 {
		c := win.free[n-1]
		win.free = win.free[:n-1]
		return c, nil
	}
	c := &call{w: win, index: uint64(len(win.calls)), done: make(chan answer, 1)}
	win.calls = append(win.calls, c)
	return c, nil
}

func (win *window) put(c *call) {
	if cap(c.buf) > keepBuffer {
		c.buf = nil
	}
	c.msg = nats.Msg{}
	win.mu.Lock()
	win.free = append(win.free, c)
	win.mu.Unlock()
	<-win.sem
}

// each calls f for all calls of the window, used or not.
func (win *window) each(f func(*call)) {
	win.mu.Lock()
	calls := win.calls[:len(win.calls):len(win.calls)]
	win.mu.Unlock()
	for _, c := range calls {
		f(c)
	}
}

// fill copies m into c and opens it.
func (c *call) fill(prefix string, m outgoing) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.gen++
	c.open, c.left = true, false

	reply := make([]byte, 0, 96)
	reply = append(reply, prefix...)
	reply = append(reply, c.w.kind)
	reply = strconv.AppendUint(reply, c.gen*publishWindow+c.index, 36)
	c.buf = append(c.buf[:0], m.data...)
	c.msg = nats.Msg{Subject: m.subject, Reply: string(reply), Data: c.buf, Header: m.raw}
	if m.raw != nil || m.id == "" && len(m.header) == 0 {
		return
	}
	if c.hdr == nil {
		c.hdr = make(nats.Header)
	}
	clear(c.hdr)
	// The values must not move while the map points at them.
	if n := 1 + len(m.header); cap(c.vals) < n {
		c.vals = make([]string, 0, n)
	}
	c.vals = c.vals[:0]
	for k, v := range m.header {
		c.setHeader(k, v)
	}
	if m.id != "" {
		c.setHeader(nats.MsgIdHdr, m.id)
	}
	c.msg.Header = c.hdr
}

func (c *call) setHeader(k, v string) {
	n := len(c.vals)
	c.vals = append(c.vals, v)
	c.hdr[k] = c.vals[n : n+1 : n+1]
}

// answer ends the wait of c's caller, unless something else did before.
func (c *call) answer(a answer) {
	c.mu.Lock()
	if c.open {
		c.open = false
		c.done <- a
	}
	c.mu.Unlock()
}

// wait returns the answer, or why there is none.
func (c *call) wait(ctx context.Context, until time.Time) answer {
	var expired <-chan time.Time
	if !until.IsZero() {
		if c.timer == nil {
			c.timer = time.NewTimer(time.Until(until))
		} else {
			c.timer.Reset(time.Until(until))
		}
		defer c.timer.Stop()
		expired = c.timer.C
	}
	select {
	case a := <-c.done:
		return a
	case <-expired:
		c.answer(answer{err: errNoAnswer})
	case <-ctx.Done():
		c.answer(answer{err: fmt.Errorf("%w: %w", errNoAnswer, ctx.Err())})
	}
	return <-c.done // that answer, or one that was faster
}

// leave gives c's place back, now or as soon as the writer is done with it.
func (c *call) leave() {
	c.mu.Lock()
	c.left = true
	sending := c.sending
	c.mu.Unlock()
	if !sending {
		c.w.put(c)
	}
}

// write hands calls to nats.go until the wire is closed.
func (w *wire) write() {
	defer w.stopped.Done()
	for {
		select {
		case c := <-w.out:
			// Whoever is about to publish gets to it first: nats.go writes to the kernel once
			// for all that it was handed, and that write costs more than the message does.
			runtime.Gosched()
			for more := true; more; {
				w.send(c)
				select {
				case c = <-w.out:
				default:
					more = false
				}
			}
		case <-w.stop:
			return
		}
	}
}

func (w *wire) send(c *call) {
	c.mu.Lock()
	if !c.open || c.sending {
		c.mu.Unlock()
		return
	}
	c.sending = true
	c.mu.Unlock()

	err := w.nc.PublishMsg(&c.msg)

	if err != nil {
		c.answer(answer{err: sendError(err)})
	}
	if c.sent() {
		c.w.put(c)
	}
}

// sent says that the writer is done with c and reports whether the caller has left
// meanwhile, so that c's place is the writer's to give back.
func (c *call) sent() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sending = false
	return c.left
}

// receive takes an answer off the reply subscription.
func (w *wire) receive(m *nats.Msg) {
	token, ok := strings.CutPrefix(m.Subject, w.prefix)
	if !ok || token == "" {
		return
	}
	win := w.publishes
	if token[0] == w.requests.kind {
		win = w.requests
	}
	n, err := strconv.ParseUint(token[1:], 36, 64)
	if err != nil {
		return
	}
	gen, index := n/publishWindow, n%publishWindow
	win.mu.Lock()
	if index >= uint64(len(win.calls)) {
		win.mu.Unlock()
		return
	}
	c := win.calls[index]
	win.mu.Unlock()
	c.mu.Lock()
	if c.open && c.gen == gen {
		c.open = false
		c.done <- answer{msg: m}
	}
	c.mu.Unlock()
}

// fail answers every open call with err.
func (w *wire) fail(err error) {
	for _, win := range [...]*window{w.publishes, w.requests} {
		win.each(func(c *call) { c.answer(answer{err: err}) })
	}
}

// failSubject answers the open calls for a subject with err.
func (w *wire) failSubject(subject string, err error) {
	for _, win := range [...]*window{w.publishes, w.requests} {
		win.each(func(c *call) {
			c.mu.Lock()
			if c.open && c.msg.Subject == subject {
				c.open = false
				c.done <- answer{err: err}
			}
			c.mu.Unlock()
		})
	}
}

// quiesce refuses new calls and waits until the open ones have ended.
func (w *wire) quiesce(ctx context.Context) error {
	w.closed.Store(true)
	for _, win := range [...]*window{w.publishes, w.requests} {
		for range cap(win.sem) {
			select {
			case win.sem <- struct{}{}:
			case <-ctx.Done():
				return ctx.Err()
			}
		}
	}
	return nil
}

func (w *wire) close() {
	w.closed.Store(true)
	close(w.stop)
	w.fail(ErrClosed)
	w.stopped.Wait()
}

// sendError says what a refusal of the client library means.
func sendError(err error) error {
	switch {
	case errors.Is(err, nats.ErrMaxPayload), errors.Is(err, nats.ErrBadSubject),
		errors.Is(err, nats.ErrBadHeaderMsg), errors.Is(err, nats.ErrHeadersNotSupported):
		return fmt.Errorf("%w: %w", ErrRefused, err)
	}
	return fmt.Errorf("%w: %w", ErrUnavailable, err)
}
