package bench

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// generator keeps connections to one server open and sends requests over them, the next
// as soon as the one before is answered (a closed loop).
//
// It shares the processors with the server that it measures, so it does as little as
// possible: system calls and an epoll loop instead of a goroutine for each connection,
// requests that are ready to be sent, and of each answer it reads only what tells its
// status and its end. It must be used by one goroutine at a time.
type generator struct {
	loops []*loop
}

// loop is one thread's share of the connections.
type loop struct {
	epoll  int
	conns  []conn
	busy   int // connections that wait for an answer
	events []unix.EpollEvent
	buf    []byte
	begin  time.Time
	load   load
}

// conn is a connection. It has at most one request under way.
type conn struct {
	fd      int  // -1: broken
	waiting bool // for an answer
	full    bool // the socket's buffer is, and epoll tells when it is not any more
	sent    time.Time
	request []byte // the rest that is not sent yet
	partial []byte // an answer that came in pieces
}

// dial opens conns connections to addr, shared by threads loops.
func dial(addr netip.AddrPort, conns, threads int) (*generator, error) {
	g := &generator{}
	for i := range threads {
		epoll, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
		if err != nil {
			g.close()
			return nil, fmt.Errorf("epoll: %w", err)
		}
		l := &loop{epoll: epoll, events: make([]unix.EpollEvent, 256), buf: make([]byte, 4<<10)}
		g.loops = append(g.loops, l)
		for range conns/threads + min(1, max(0, conns%threads-i)) {
			if err := l.dial(addr); err != nil {
				g.close()
				return nil, fmt.Errorf("connect to %s: %w", addr, err)
			}
		}
	}
	return g, nil
}

func (l *loop) dial(addr netip.AddrPort) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	err = unix.Connect(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()})
	err = errors.Join(err, unix.SetNonblock(fd, true), unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1))
	if err == nil {
		err = unix.EpollCtl(l.epoll, unix.EPOLL_CTL_ADD, fd, &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(len(l.conns))})
	}
	if err != nil {
		_ = unix.Close(fd) // err says what is wrong
		return err
	}
	l.conns = append(l.conns, conn{fd: fd})
	return nil
}

// close closes the connections. What is under way is lost.
func (g *generator) close() {
	for _, l := range g.loops {
		for i := range l.conns {
			if l.conns[i].fd >= 0 {
				_ = unix.Close(l.conns[i].fd) // nothing is sent any more
			}
		}
		_ = unix.Close(l.epoll)
	}
}

// run sends what next returns for as long as d, until next returns nil or ctx ends, and
// then waits for the answers that are still to come. A connection that breaks is not
// opened again: it counts as one error and leaves the rest of the work to the others.
// The error is ctx's, or that of a system call.
//
// next must be safe for concurrent use, and the requests must not change any more.
func (g *generator) run(ctx context.Context, next func() []byte, d time.Duration) (load, error) {
	sum := newLoad()
	errs := make([]error, len(g.loops))
	var wg sync.WaitGroup
	for i, l := range g.loops {
		wg.Go(func() { errs[i] = l.run(ctx, next, d) })
	}
	wg.Wait()
	for _, l := range g.loops {
		sum.add(l.load)
	}
	return sum, errors.Join(append(errs, ctx.Err())...)
}

func (l *loop) run(ctx context.Context, next func() []byte, d time.Duration) error {
	l.load, l.begin = newLoad(), time.Now()
	for i := range l.conns {
		l.next(i, next, time.Now())
	}
	stopped := false
	for l.busy > 0 {
		n, err := unix.EpollWait(l.epoll, l.events, 50)
		if err != nil && !errors.Is(err, unix.EINTR) {
			return fmt.Errorf("epoll: %w", err)
		}
		switch age := time.Since(l.begin); {
		case age >= d+patience || ctx.Err() != nil:
			l.giveUp()
			return nil
		case age >= d && !stopped:
			stopped = true
			next = func() []byte { return nil }
		}
		for _, e := range l.events[:max(n, 0)] {
			if i := int(e.Fd); e.Events == unix.EPOLLOUT {
				l.send(i)
			} else {
				l.receive(i, next)
			}
		}
	}
	return nil
}

// next sends the next request on connection i, unless there is none or the connection is
// broken.
func (l *loop) next(i int, next func() []byte, now time.Time) {
	c := &l.conns[i]
	if c.fd < 0 {
		return
	}
	if c.request = next(); c.request == nil {
		return
	}
	c.waiting, c.sent = true, now
	l.busy++
	l.send(i)
}

// send writes what is left of the request. A socket whose buffer is full, which takes a
// request far larger than ours, is waited for.
func (l *loop) send(i int) {
	c := &l.conns[i]
	n, err := unix.Write(c.fd, c.request)
	if err != nil && !errors.Is(err, unix.EAGAIN) && !errors.Is(err, unix.EINTR) {
		l.drop(i, "request not sent: "+err.Error())
		return
	}
	c.request = c.request[max(n, 0):]
	if full := len(c.request) > 0; full != c.full {
		c.full = full
		events := uint32(unix.EPOLLIN)
		if full {
			events |= unix.EPOLLOUT
		}
		if err := unix.EpollCtl(l.epoll, unix.EPOLL_CTL_MOD, c.fd, &unix.EpollEvent{Events: events, Fd: int32(i)}); err != nil {
			l.drop(i, "epoll: "+err.Error())
		}
	}
}

// receive reads from connection i; when that completes an answer, the next request goes
// out.
func (l *loop) receive(i int, next func() []byte) {
	c := &l.conns[i]
	n, err := unix.Read(c.fd, l.buf)
	switch {
	case errors.Is(err, unix.EAGAIN), errors.Is(err, unix.EINTR):
		return
	case err != nil:
		l.drop(i, "connection broken: "+err.Error())
		return
	case n == 0:
		l.drop(i, "connection closed")
		return
	}
	b := l.buf[:n]
	if len(c.partial) > 0 {
		c.partial = append(c.partial, b...)
		b = c.partial
	}
	status, size, err := parseAnswer(b)
	switch {
	case err == nil && size == 0:
		if len(c.partial) == 0 {
			c.partial = append(c.partial, b...)
		}
		return
	case err == nil && (size < len(b) || !c.waiting || len(c.request) > 0):
		err = errUnasked
	}
	if err != nil {
		l.drop(i, err.Error())
		return
	}
	c.partial = c.partial[:0]
	now := time.Now()
	if status == 200 {
		l.load.ok++
		took := min(now.Sub(c.sent), slowest)
		_ = l.load.latency.RecordValue(took.Microseconds()) // it is in the range
	} else {
		l.load.bad["status "+strconv.Itoa(status)]++
	}
	l.load.took = max(l.load.took, now.Sub(l.begin))
	c.waiting = false
	l.busy--
	l.next(i, next, now)
}

// drop closes a connection for a reason, which counts as an error.
func (l *loop) drop(i int, why string) {
	c := &l.conns[i]
	_ = unix.Close(c.fd) // it is broken already
	c.fd = -1
	l.load.bad[why]++
	if c.waiting {
		c.waiting = false
		l.busy--
	}
}

// giveUp counts what was never answered.
func (l *loop) giveUp() {
	for i := range l.conns {
		if l.conns[i].waiting {
			l.drop(i, "no answer")
		}
	}
}
