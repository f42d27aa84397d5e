package bus

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"runtime/debug"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
)

// Headers of a dead letter, beside those of the original and [HeaderID].
const (
	HeaderDeadReason    = "Bridge-Dead-Reason"    // why, in printable ASCII
	HeaderDeadSubject   = "Bridge-Dead-Subject"   // where to publish the message to handle it again
	HeaderDeadAttempts  = "Bridge-Dead-Attempts"  // how often it was delivered
	HeaderDeadTime      = "Bridge-Dead-Time"      // when it was given up, RFC 3339
	HeaderDeadTruncated = "Bridge-Dead-Truncated" // size of a body that was too large to keep; rare
)

// maxReason is the length of a dead letter's reason, in bytes.
const maxReason = 1024

type rejection struct{ err error }

func (r *rejection) Error() string { return "rejected: " + r.err.Error() }
func (r *rejection) Unwrap() error { return r.err }

type postponement struct {
	err   error
	after time.Duration
}

func (p *postponement) Error() string { return p.err.Error() }
func (p *postponement) Unwrap() error { return p.err }

// Reject returns an error that says: no retry can mend this, the message belongs to
// the dead letters. It wraps err, and may itself be wrapped.
func Reject(err error) error {
	if err == nil {
		err = errors.New("no reason given")
	}
	return &rejection{err}
}

// RetryAfter returns an error that says: deliver the message again after d, which
// counts as an attempt. It wraps err, and may itself be wrapped.
func RetryAfter(d time.Duration, err error) error {
	if err == nil {
		err = errors.New("asked to come again")
	}
	return &postponement{err, d}
}

// verdict is what becomes of a message.
type verdict struct {
	dead  bool
	after time.Duration // otherwise: again, after this
}

// decide says what becomes of a message whose handler failed with err.
func (c *Consumer) decide(err error, attempt int) verdict {
	var r *rejection
	if errors.As(err, &r) || c.MaxAttempts > 0 && attempt >= c.MaxAttempts {
		return verdict{dead: true}
	}
	var p *postponement
	if errors.As(err, &p) {
		return verdict{after: min(max(p.after, 0), maxRetryAfter)}
	}
	return verdict{after: c.delay(attempt)}
}

// delay grows from Retry to maxRetry.
func (c *Consumer) delay(attempt int) time.Duration {
	d := c.Retry
	for i := 1; i < attempt && d < maxRetry; i++ {
		d *= 2
	}
	return min(d, maxRetry)
}

// judge carries the verdict out.
func (l *lane) judge(m *nats.Msg, d *Delivery, err error) {
	b, c := l.g.b, &l.g.c
	v := c.decide(err, d.Attempt)
	var r *rejection
	if l.g.ctx.Err() != nil && !errors.As(err, &r) {
		// The handler was interrupted; that is not the message's fault.
		b.log.Info("message given back", "consumer", c.Name, "stream", d.Stream, "seq", d.Seq, "attempt", d.Attempt)
		l.giveBack(m, 0)
		return
	}
	log := b.log.With("consumer", c.Name, "stream", d.Stream, "seq", d.Seq, "id", d.ID, "attempt", d.Attempt)
	if v.dead {
		derr := b.bury(c, m, d, err)
		if derr == nil {
			b.stats.deadLettered.Add(1)
			log.Error("message went to the dead letters", "err", err)
			l.finish(m, d)
			return
		}
		v.after = c.delay(d.Attempt)
		log.Error("dead letter not written", "err", derr, "cause", err, "retry", v.after)
	} else {
		log.Warn("message will be retried", "err", err, "retry", v.after)
	}
	l.giveBack(m, v.after)
}

// call runs the handler and turns a panic into an error.
func (l *lane) call(d *Delivery) (err error) {
	b := l.g.b
	b.stats.inHand.Add(1)
	defer b.stats.inHand.Add(-1)
	defer func() {
		p := recover()
		if p == nil {
			return
		}
		// The value may hold what the message says; its type, or the runtime's own words,
		// cannot.
		what := fmt.Sprintf("%T", p)
		if re, ok := p.(runtime.Error); ok {
			what = re.Error()
		}
		err = fmt.Errorf("panic in handler: %s", what)
		b.log.Error("handler panicked", "consumer", d.Consumer, "stream", d.Stream, "seq", d.Seq,
			"attempt", d.Attempt, "err", err, "stack", string(debug.Stack()))
	}()
	return l.g.handle(l.g.ctx, d)
}

// bury writes m to the dead letters. The same message of the same consumer is
// written once, however often this is called.
func (b *Bus) bury(c *Consumer, m *nats.Msg, d *Delivery, cause error) error {
	h := make(nats.Header, len(m.Header)+6)
	for k, v := range m.Header {
		if !ownHeader(k) {
			h[k] = v
		}
	}
	id := d.ID
	if id == "" {
		id = d.App + "/s-" + strconv.FormatUint(d.Seq, 10)
	}
	set := func(k, v string) { h[k] = []string{v} }
	set(nats.MsgIdHdr, fmt.Sprintf("dead:%s:%s:%d", d.Stream, c.Name, d.Seq))
	set(HeaderID, id)
	set(HeaderDeadReason, printable(reason(cause), maxReason))
	set(HeaderDeadSubject, c.publishSubject(d.Subject))
	set(HeaderDeadAttempts, strconv.Itoa(d.Attempt))
	set(HeaderDeadTime, time.Now().UTC().Format(time.RFC3339Nano))

	out := outgoing{subject: DeadSubject(d.Stream, c.Name), raw: h, data: m.Data}
	// Not the handlers' context: a verdict that was reached is carried out.
	ctx := context.Background()
	_, err := b.publish(ctx, out, apiTry)
	if errors.Is(err, ErrRefused) && len(m.Data) > 0 {
		// The headers made it larger than the broker takes. Better known without its body
		// than in the way of its lane for ever.
		set(HeaderDeadTruncated, strconv.Itoa(len(m.Data)))
		out.data = nil
		_, err = b.publish(ctx, out, apiTry)
	}
	return err
}

// reason is cause's text without the word that Reject adds.
func reason(cause error) string {
	if r, ok := cause.(*rejection); ok { //nolint:errorlint // of a wrapped one the wrapping belongs to the reason
		return r.err.Error()
	}
	return cause.Error()
}

// publishSubject is what to publish to so that the message is stored where it was:
// the outbox inserts the slot itself.
func (c *Consumer) publishSubject(subject string) string {
	if c.Stream != StreamOutbox {
		return subject
	}
	before, _, _ := c.split()
	rest, ok := strings.CutPrefix(subject, before+".")
	if !ok {
		return subject
	}
	_, rest, ok = strings.Cut(rest, ".")
	if !ok {
		return subject
	}
	return before + "." + rest
}

// printable returns s fit for a header: printable ASCII, what is not is escaped as
// in a Go string, cut to n bytes.
func printable(s string, n int) string {
	s = strings.TrimSpace(s)
	if len(s) > n {
		s = s[:n]
	}
	q := strconv.QuoteToASCII(s)
	q = strings.ReplaceAll(q[1:len(q)-1], `\"`, `"`)
	if len(q) > n {
		q = q[:n]
	}
	return q
}
