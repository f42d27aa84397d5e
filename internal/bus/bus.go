package bus

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
)

// What a failed call means to the caller. Every error of this package that is one of
// these answers to errors.Is.
var (
	// ErrUnavailable: the broker cannot be reached, did not answer in time, has no
	// leader or lets nobody do this now. Whether a message was stored is not known; the
	// same call with the same ID is right later.
	ErrUnavailable = errors.New("bus unavailable")
	// ErrFull: the stream or the broker's storage is full. Nothing was stored; the same
	// call is right later.
	ErrFull = errors.New("stream full")
	// ErrRefused: the broker will never take this message: it is too large, or its
	// subject or headers are not lawful.
	ErrRefused = errors.New("refused by the bus")
	// ErrNotFound: there is no such message, stream or consumer.
	ErrNotFound = errors.New("not found on the bus")
	// ErrClosed: Close was called. Such an error is ErrUnavailable too.
	ErrClosed = fmt.Errorf("%w: closed", ErrUnavailable)
)

const (
	dialTimeout  = 2 * time.Second        // one server, TCP, TLS and greeting together
	writeTimeout = 2 * time.Second        // a write that takes longer costs the connection
	connectWait  = 300 * time.Millisecond // what Connect waits for a first answer
	apiTry       = 2 * time.Second        // one request to JetStream; one sent without a leader is never answered
)

// Options says where the broker is and who connects.
type Options struct {
	URL   string `desc:"NATS servers, comma-separated, as nats://, tls://, ws:// or wss://; a login may stand in it as user:password@. Empty: the gateway runs a server of its own on 127.0.0.1:4222, and the worker looks for it there" secret:"true"`
	Creds string `desc:"file with the user JWT and its seed"`
	NKey  string `desc:"file with an nkey seed"`
	CA    string `desc:"file with the certificates to trust, PEM"`
	Cert  string `desc:"file with the client's certificate, PEM; needs the key"`
	Key   string `desc:"file with the certificate's key, PEM"`

	Name  string `ignored:"true"` // name of the connection, shown by the broker's tools
	Inbox string `ignored:"true"` // prefix of all reply subjects; empty: "_INBOX_" and the token of Name

	// Dial, if set, makes the connection instead of URL's address, as a server in this
	// process offers it. URL may be empty then; a login in it is used.
	Dial func() (net.Conn, error) `ignored:"true"`

	Log *slog.Logger `ignored:"true"` // nil: no log
}

// Bus is a connection to the broker, kept for ever: what breaks is connected again.
// Its methods may be called by many goroutines at once.
type Bus struct {
	log   *slog.Logger
	ready chan struct{} // closed when nc is set
	nc    *nats.Conn
	wire  *wire

	connected atomic.Bool
	clustered atomic.Bool
	closing   atomic.Bool
	done      chan struct{} // closed by Close

	mu      sync.Mutex
	changed chan struct{} // closed and replaced on every connect

	stats counters
	noise noise
}

type counters struct {
	reconnects, published, duplicates, publishErrors atomic.Uint64
	delivered, redelivered, deadLettered             atomic.Uint64
	inHand                                           atomic.Int64
}

// Connect returns a Bus for the broker that o names, within about 300 ms and whether
// or not a server answers: it goes on trying until [Bus.Close]. Only options that
// cannot be right are an error, which never quotes a login. When ctx ends during the
// call, Connect gives up.
func Connect(ctx context.Context, o Options) (*Bus, error) {
	b := &Bus{
		log:     o.Log,
		ready:   make(chan struct{}),
		done:    make(chan struct{}),
		changed: make(chan struct{}),
	}
	if b.log == nil {
		b.log = slog.New(slog.DiscardHandler)
	}
	opts, err := b.options(o)
	if err != nil {
		return nil, fmt.Errorf("connect to NATS: %w", err)
	}
	// A connect that meets a server which accepts and says nothing takes as long as
	// dialTimeout; the caller does not wait for that.
	up := b.watch()
	tried := make(chan error, 1)
	go func() { tried <- b.open(opts) }()
	t := time.NewTimer(connectWait)
	defer t.Stop()
	for {
		select {
		case <-up:
			return b, nil
		case err := <-tried:
			if err != nil && !errors.Is(err, errNoServer) {
				return nil, fmt.Errorf("connect to NATS: %w", err)
			}
			if err == nil {
				tried = nil // connected: up follows in a moment
				continue
			}
		case <-t.C:
		case <-ctx.Done():
			_ = b.Close(ctx) // nothing was sent yet, so nothing can be lost
			return nil, fmt.Errorf("connect to NATS: %w", ctx.Err())
		}
		b.log.Warn("bus not reached yet", "servers", len(opts.Servers))
		return b, nil
	}
}

var errNoServer = errors.New("no server answered yet")

// open makes the first attempt to connect, sets b.nc and b.wire and releases the
// callbacks.
func (b *Bus) open(opts *nats.Options) error {
	defer close(b.ready)
	nc, err := opts.Connect()
	if err != nil {
		return err
	}
	w, err := newWire(nc, &b.connected)
	if err != nil {
		nc.Close()
		return err
	}
	b.nc, b.wire = nc, w
	if b.closing.Load() {
		b.wire.close()
		nc.Close()
	}
	if !nc.IsConnected() {
		return errNoServer
	}
	return nil
}

func (b *Bus) options(o Options) (*nats.Options, error) {
	opts := nats.GetDefaultOptions()
	set := func(fs ...nats.Option) error {
		for _, f := range fs {
			if err := f(&opts); err != nil {
				return err
			}
		}
		return nil
	}
	servers, err := servers(o)
	if err != nil {
		return nil, err
	}
	opts.Servers = servers
	inbox := o.Inbox
	if inbox == "" {
		inbox = "_INBOX_" + Token(o.Name)
	}
	err = set(
		nats.Name(o.Name),
		nats.CustomInboxPrefix(inbox),
		nats.Timeout(dialTimeout),
		nats.RetryOnFailedConnect(true),
		nats.MaxReconnects(-1),
		nats.ReconnectWait(250*time.Millisecond),
		nats.ReconnectJitter(250*time.Millisecond, 500*time.Millisecond),
		nats.ReconnectBufSize(-1), // fail at once; whoever published decides what then
		nats.IgnoreAuthErrorAbort(),
		nats.PingInterval(5*time.Second),
		nats.MaxPingsOutstanding(2),
		nats.FlusherTimeout(writeTimeout),
		nats.ReconnectOnFlusherError(),
		nats.ConnectHandler(func(nc *nats.Conn) { b.onConnect(nc, false) }),
		nats.ReconnectHandler(func(nc *nats.Conn) { b.onConnect(nc, true) }),
		nats.DisconnectErrHandler(func(_ *nats.Conn, err error) { b.onDisconnect(err) }),
		nats.ReconnectErrHandler(func(_ *nats.Conn, err error) { b.warn("bus connect failed", err) }),
		nats.ErrorHandler(func(_ *nats.Conn, _ *nats.Subscription, err error) { b.onError(err) }),
	)
	if err != nil {
		return nil, err
	}
	if o.Dial != nil {
		if err := set(nats.InProcessServer(inProcess(o.Dial))); err != nil {
			return nil, err
		}
	}
	if o.Creds != "" && o.NKey != "" {
		return nil, errors.New("creds and nkey: only one of them can be used")
	}
	if o.Creds != "" {
		if _, err := os.ReadFile(o.Creds); err != nil {
			return nil, fmt.Errorf("creds: %w", err)
		}
		if err := set(nats.UserCredentials(o.Creds)); err != nil {
			return nil, fmt.Errorf("creds: %w", err)
		}
	}
	if o.NKey != "" {
		nkey, err := nats.NkeyOptionFromSeed(o.NKey)
		if err != nil {
			return nil, fmt.Errorf("nkey: %w", err)
		}
		if err := set(nkey); err != nil {
			return nil, fmt.Errorf("nkey: %w", err)
		}
	}
	if o.CA != "" {
		pem, err := os.ReadFile(o.CA)
		if err != nil {
			return nil, fmt.Errorf("CA: %w", err)
		}
		if !x509.NewCertPool().AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("CA: no certificate in %s", o.CA)
		}
		if err := set(nats.RootCAs(o.CA)); err != nil {
			return nil, fmt.Errorf("CA: %w", err)
		}
	}
	if (o.Cert == "") != (o.Key == "") {
		return nil, errors.New("client certificate: certificate and key are needed together")
	}
	if o.Cert != "" {
		if _, err := tls.LoadX509KeyPair(o.Cert, o.Key); err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
		if err := set(nats.ClientCert(o.Cert, o.Key)); err != nil {
			return nil, fmt.Errorf("client certificate: %w", err)
		}
	}
	return &opts, nil
}

// servers checks and splits the URL. Its errors count instead of quoting, because a
// URL may carry a password.
func servers(o Options) ([]string, error) {
	if strings.TrimSpace(o.URL) == "" {
		if o.Dial == nil {
			return nil, errors.New("no server given")
		}
		return []string{nats.DefaultURL}, nil // never dialled
	}
	list := strings.Split(o.URL, ",")
	for i, s := range list {
		s = strings.TrimSpace(s)
		if !strings.Contains(s, "://") {
			s = "nats://" + s
		}
		u, err := url.Parse(s)
		if err != nil || u.Hostname() == "" {
			return nil, fmt.Errorf("server %d of %d is not a URL", i+1, len(list))
		}
		switch u.Scheme {
		case "nats", "tls", "ws", "wss":
		default:
			return nil, fmt.Errorf("server %d of %d: scheme is not nats, tls, ws or wss", i+1, len(list))
		}
		list[i] = s
	}
	return list, nil
}

type inProcess func() (net.Conn, error)

func (f inProcess) InProcessConn() (net.Conn, error) { return f() }

// The callbacks below run one after the other in a goroutine of nats.go, so the
// order of connect and disconnect is never confused.

func (b *Bus) onConnect(nc *nats.Conn, again bool) {
	<-b.ready
	if b.wire == nil {
		return
	}
	b.connected.Store(true)
	b.mu.Lock()
	close(b.changed)
	b.changed = make(chan struct{})
	b.mu.Unlock()
	if again {
		b.stats.reconnects.Add(1)
	}
	// These two wait for a lock that nats.go holds while it dials, so they come last.
	b.clustered.Store(nc.ConnectedClusterName() != "")
	b.log.Info("bus connected", "server", nc.ConnectedUrlRedacted(), "version", nc.ConnectedServerVersion())
}

func (b *Bus) onDisconnect(err error) {
	b.connected.Store(false)
	<-b.ready
	if b.wire == nil {
		return
	}
	// Answers to what was sent over the old connection never come.
	b.wire.fail(errDisconnected)
	if b.closing.Load() {
		return
	}
	if err == nil {
		err = errors.New("closed by the server")
	}
	b.log.Warn("bus disconnected", "err", err)
}

func (b *Bus) onError(err error) {
	if subject, ok := deniedSubject(err); ok {
		<-b.ready
		if b.wire != nil {
			b.wire.failSubject(subject, errDenied)
		}
	}
	b.warn("bus error", err)
}

// deniedSubject takes the subject out of nats.go's report that the server refused a
// publish, which is the only sign of it: no answer follows.
func deniedSubject(err error) (string, bool) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return "", false
	}
	_, rest, ok := strings.Cut(strings.ToLower(err.Error()), `publish to "`)
	if !ok {
		return "", false
	}
	start := len(err.Error()) - len(rest)
	subject, _, ok := strings.Cut(err.Error()[start:], `"`)
	return subject, ok
}

// warn logs what nats.go reports, the same text at most every ten seconds.
func (b *Bus) warn(msg string, err error) {
	if err != nil && !b.closing.Load() && b.noise.fresh(msg+err.Error()) {
		b.log.Warn(msg, "err", err) //nolint:sloglint // the callers' messages are constants
	}
}

// noise holds back lines that were logged a moment ago.
type noise struct {
	mu   sync.Mutex
	seen map[string]time.Time
}

func (n *noise) fresh(text string) bool {
	const quiet, most = 10 * time.Second, 64
	n.mu.Lock()
	defer n.mu.Unlock()
	if t, ok := n.seen[text]; ok && time.Since(t) < quiet {
		return false
	}
	if n.seen == nil || len(n.seen) >= most {
		n.seen = make(map[string]time.Time, most)
	}
	n.seen[text] = time.Now()
	return true
}

// watch returns a channel that is closed at the next connect.
func (b *Bus) watch() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// Connected reports whether there is a connection now.
func (b *Bus) Connected() bool { return b.connected.Load() }

// Clustered reports whether the server that was last connected to belongs to a
// cluster.
func (b *Bus) Clustered() bool { return b.clustered.Load() }

// Close lets the publishes that are under way finish, until ctx ends, and closes the
// connection. Whatever is called afterwards fails with [ErrClosed]. End the contexts
// of Consume and Tail and wait for them first: what they have in hand cannot be
// acknowledged any more. The error is ctx's, when something did not finish.
func (b *Bus) Close(ctx context.Context) error {
	if !b.closing.CompareAndSwap(false, true) {
		return nil
	}
	close(b.done)
	select {
	case <-b.ready:
	default:
		return nil // open sees closing and closes what it opened
	}
	err := b.wire.quiesce(ctx)
	b.wire.close()
	b.nc.Close()
	b.connected.Store(false)
	return err
}

// Stats is what a Bus has done since Connect, and how it is now.
type Stats struct {
	Connected     bool
	Reconnects    uint64 // connections regained after a loss
	Published     uint64 // acknowledged, duplicates included
	Duplicates    uint64 // of those, how many the stream already held
	PublishErrors uint64
	Pending       int    // publishes that wait for their ack now
	Delivered     uint64 // messages that the broker gave to consumers of this Bus
	Redelivered   uint64 // of those, how many had been given out before
	InHand        int    // messages in handlers now
	DeadLettered  uint64
}

// Stats returns a snapshot, without asking the broker. It is cheap enough for every
// scrape.
func (b *Bus) Stats() Stats {
	s := Stats{
		Connected:     b.connected.Load(),
		Reconnects:    b.stats.reconnects.Load(),
		Published:     b.stats.published.Load(),
		Duplicates:    b.stats.duplicates.Load(),
		PublishErrors: b.stats.publishErrors.Load(),
		Delivered:     b.stats.delivered.Load(),
		Redelivered:   b.stats.redelivered.Load(),
		InHand:        int(b.stats.inHand.Load()),
		DeadLettered:  b.stats.deadLettered.Load(),
	}
	select {
	case <-b.ready:
		s.Pending = len(b.wire.publishes.sem)
	default:
	}
	return s
}
