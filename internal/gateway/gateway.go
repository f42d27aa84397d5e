// Package gateway answers WeCom's callbacks: it verifies and decrypts each one, stores
// it as an event on the bus, and only then says 200.
//
// The way of a callback: [wecom.Callback.Open] → [wecom.Parse] → a CloudEvent →
// [bus.Bus.Publish], acknowledged → 200. Nothing else happens in the request. What
// cannot be stored within the source's deadline is answered 503, so that WeCom tries
// again; what is not authentic is answered 403, always the same one.
package gateway

import (
	"cmp"
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"sync"
	"time"

	"github.com/go-chi/chi/v5"
	"github.com/prometheus/client_golang/prometheus"

	"github.com/wecom-bridge/wecom-bridge/bridge"
	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/ops"
	"github.com/wecom-bridge/wecom-bridge/internal/wecom"
)

// maxBody is the largest callback accepted. WeCom documents none; lists of a thousand
// entries come to some hundred kilobytes.
const maxBody = 1 << 20

// app is one configured app, ready to answer.
type app struct {
	name, corpID, source string
	kind                 kind
	callback             *wecom.Callback
	pairs                int
	metrics              appMetrics
}

// Gateway is the handler of the callback listener.
type Gateway struct {
	apps    map[string]*app
	publish func(context.Context, *bus.Msg) (bus.Ack, error)
	verify  *os.Root // of WW_verify_*.txt; nil if there is none
	log     *slog.Logger
	now     func() time.Time
	acks    *acks
}

// New compiles cfg, which must be valid. publish returns once an event is stored; it is
// called by many goroutines and must not keep the message. Metrics are registered with
// reg.
func New(cfg Config, publish func(context.Context, *bus.Msg) (bus.Ack, error), reg prometheus.Registerer, log *slog.Logger) (*Gateway, error) {
	g := &Gateway{apps: make(map[string]*app), publish: publish, log: log, now: time.Now, acks: new(acks)}
	m := newMetrics(reg)
	for i := range cfg.App {
		a, err := cfg.App[i].compile()
		if err != nil {
			return nil, err
		}
		a.metrics = m.of(a.name, a.pairs)
		g.apps[a.name] = a
	}
	if cfg.VerifyDir != "" {
		root, err := os.OpenRoot(cfg.VerifyDir)
		if err != nil {
			return nil, errors.New("BRIDGE_VERIFY_DIR: cannot be opened: " + errors.Unwrap(err).Error())
		}
		g.verify = root
	}
	return g, nil
}

// Handler is what the callback listener serves.
func (g *Gateway) Handler() http.Handler {
	r := chi.NewRouter()
	r.Get("/callback/{app}", g.check)
	r.Post("/callback/{app}", g.receive)
	r.Get("/{file}", g.domainProof)
	return r
}

// check answers WeCom's verification of the URL with the bare echo text.
func (g *Gateway) check(w http.ResponseWriter, r *http.Request) {
	a, ok := g.apps[chi.URLParam(r, "app")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	echo, err := a.callback.Verify(r.URL.RawQuery)
	if err != nil {
		g.refuse(w, a, err)
		return
	}
	a.metrics.verified.Inc()
	g.log.Info("url verified", "app", a.name)
	w.Header().Set("Content-Type", "text/plain")
	_, _ = w.Write(echo) // the peer is gone: it will ask again
}

// scratch is what one callback needs while it is handled.
type scratch struct {
	body, data, event, key, line []byte

	pay wecom.Payload
	id  string // of the event
	typ string
	msg bus.Msg
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// eventHeader is the header of every event. Nobody writes to it.
var eventHeader = bus.Header{"Content-Type": bridge.ContentType}

// receive answers one callback.
func (g *Gateway) receive(w http.ResponseWriter, r *http.Request) {
	start := g.now()
	a, ok := g.apps[chi.URLParam(r, "app")]
	if !ok {
		http.NotFound(w, r)
		return
	}
	s := scratches.Get().(*scratch)
	defer func() {
		// A callback of a megabyte is rare: do not keep its buffers for the small ones.
		if cap(s.body)+cap(s.event)+cap(s.data) < 256<<10 {
			scratches.Put(s)
		}
	}()
	var err error
	if s.body, err = readBody(s.body[:0], r); err != nil {
		if errors.Is(err, errTooLarge) {
			a.metrics.tooLarge.Inc()
			w.Header().Set("Connection", "close")
			w.WriteHeader(http.StatusRequestEntityTooLarge)
			return
		}
		g.refuse(w, a, err)
		return
	}
	plain, pair, err := a.callback.Open(r.URL.RawQuery, s.body)
	if err != nil {
		g.refuse(w, a, err)
		return
	}
	a.metrics.pair[pair].Inc()

	s.data = wecom.Parse(s.data[:0], plain, &s.pay)
	s.compose(a, plain, start)

	// Not the request's context: a callback that WeCom gave up is an event all the same.
	ack, err := g.publish(context.Background(), &s.msg)
	took := g.now().Sub(start)
	if err != nil {
		g.unstored(w, a, s, err, took)
		return
	}
	g.acks.succeeded(start.Add(took))
	a.metrics.stored(ack.Duplicate, took)
	g.published(a, s, ack.Duplicate, start, took)
	if a.kind.answer != "" {
		_, _ = io.WriteString(w, a.kind.answer) // the peer is gone: its retry is the same event
	}
	// An empty answer needs nothing more: net/http says 200.
}

// compose writes the event into s and addresses it. What s holds of it is valid until s
// is used again.
func (s *scratch) compose(a *app, plain string, received time.Time) {
	p := &s.pay
	s.key = p.AppendID(append(append(s.key[:0], a.name...), '/'))
	key := string(s.key)
	s.id, s.typ = key[len(a.name)+1:], p.Type()
	ev := bridge.Event{
		ID: s.id, Source: a.source, Type: s.typ, Subject: p.Subject, Time: p.Time,
		DataContentType: "application/json", App: a.name, CorpID: cmp.Or(p.CorpID, a.corpID),
		AgentID: p.AgentID, PartitionKey: p.PartitionKey, Data: s.data,
	}
	if ev.Time.IsZero() {
		ev.Time = received
	}
	switch p.Format {
	case wecom.Text:
		ev.DataContentType = "text/plain"
	case wecom.Binary:
		ev.DataContentType, ev.Data, ev.DataBase64 = "text/plain", nil, []byte(plain)
	}
	s.event = ev.AppendJSON(s.event[:0])
	s.msg = bus.Msg{
		Subject: bus.EventSubject(bus.Slot(a.name, p.PartitionKey), a.name, p.Tail()),
		ID:      key, Header: eventHeader, Data: s.event, Wait: a.kind.deadline,
	}
}

// published logs an event that is stored.
func (g *Gateway) published(a *app, s *scratch, duplicate bool, start time.Time, took time.Duration) {
	ctx, h := context.Background(), g.log.Handler()
	if !h.Enabled(ctx, slog.LevelInfo) {
		return
	}
	if l, ok := h.(ops.Liner); ok && plain(s.id) && plain(s.typ) {
		s.line = appendPublished(s.line[:0], a.name, s, duplicate, start.Add(took), took)
		l.Line(s.line)
		return
	}
	g.log.LogAttrs(ctx, slog.LevelInfo, "event published", slog.String("event", s.id), slog.String("app", a.name),
		slog.String("type", s.typ), slog.Bool("duplicate", duplicate), slog.Duration("took", took))
}

// appendPublished writes the line as slog's JSON handler does.
func appendPublished(b []byte, app string, s *scratch, duplicate bool, at time.Time, took time.Duration) []byte {
	b = append(b, `{"time":"`...)
	b = at.AppendFormat(b, time.RFC3339Nano)
	b = append(b, `","level":"INFO","msg":"event published","event":"`...)
	b = append(b, s.id...)
	b = append(b, `","app":"`...)
	b = append(b, app...)
	b = append(b, `","type":"`...)
	b = append(b, s.typ...)
	b = append(b, `","duplicate":`...)
	b = strconv.AppendBool(b, duplicate)
	b = append(b, `,"took":`...)
	b = strconv.AppendInt(b, int64(took), 10)
	return append(b, "}\n"...)
}

// plain reports whether s needs no escape in JSON.
func plain(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			return false
		}
	}
	return true
}

// refuse answers what no genuine WeCom sends. The answer is always the same, and the
// reason goes to a counter rather than the log: anybody can send such requests.
func (g *Gateway) refuse(w http.ResponseWriter, a *app, err error) {
	reason := "malformed"
	switch {
	case errors.Is(err, wecom.ErrSignature):
		reason = "signature"
	case errors.Is(err, wecom.ErrReceiver):
		reason = "receive_id"
	}
	a.metrics.refused.WithLabelValues(a.name, reason).Inc()
	g.log.Debug("callback refused", "app", a.name, "err", err)
	w.WriteHeader(http.StatusForbidden)
}

// unstored answers 503, which makes WeCom deliver the callback again.
func (g *Gateway) unstored(w http.ResponseWriter, a *app, s *scratch, err error, took time.Duration) {
	level, result := slog.LevelWarn, "unavailable"
	switch {
	case errors.Is(err, bus.ErrRefused):
		// The broker will never take it. WeCom's retries end, and then the event is
		// gone: somebody has to know.
		level, result = slog.LevelError, "refused"
	case errors.Is(err, bus.ErrFull):
		level, result = slog.LevelError, "full"
		g.acks.failed(g.now())
	default:
		g.acks.failed(g.now())
	}
	a.metrics.unstored.WithLabelValues(a.name, result).Inc()
	g.log.Log(context.Background(), level, "event not stored", "event", s.id, "app", a.name,
		"type", s.typ, "bytes", len(s.event), "err", err, "took", took)
	w.WriteHeader(http.StatusServiceUnavailable)
}

var errTooLarge = errors.New("body over 1 MiB")

// readBody appends the request's body to dst. A body that is too large is read to its
// end, within reason, so that the peer gets to see the answer and not a reset.
func readBody(dst []byte, r *http.Request) ([]byte, error) {
	if n := r.ContentLength; n > maxBody {
		_, _ = io.CopyN(io.Discard, r.Body, 8*maxBody)
		return dst, errTooLarge
	} else if need := max(int(n), 0) + 1; cap(dst) < need { // one more, to see the end without growing
		dst = make([]byte, 0, max(need, 1024))
	}
	for {
		n, err := r.Body.Read(dst[len(dst):cap(dst)])
		dst = dst[:len(dst)+n]
		switch {
		case err == io.EOF:
			return dst, nil
		case err != nil:
			return dst, err
		case len(dst) > maxBody:
			_, _ = io.CopyN(io.Discard, r.Body, 8*maxBody)
			return dst, errTooLarge
		case len(dst) == cap(dst):
			dst = append(dst, 0)[:len(dst)]
		}
	}
}

var proofName = regexp.MustCompile(`^WW_verify_[A-Za-z0-9]{1,64}\.txt$`)

// domainProof serves the file by which WeCom checks who owns a domain.
func (g *Gateway) domainProof(w http.ResponseWriter, r *http.Request) {
	name := chi.URLParam(r, "file")
	if g.verify == nil || !proofName.MatchString(name) {
		http.NotFound(w, r)
		return
	}
	f, err := g.verify.Open(name)
	if err != nil {
		http.NotFound(w, r)
		return
	}
	defer func() { _ = f.Close() }()
	b, err := io.ReadAll(io.LimitReader(f, 4<<10))
	if err != nil {
		http.NotFound(w, r)
		return
	}
	w.Header().Set("Content-Type", "text/plain")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	_, _ = w.Write(b)
}
