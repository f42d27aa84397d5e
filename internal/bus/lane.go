package bus

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

var (
	ackAck      = []byte("+ACK")
	ackProgress = []byte("+WPI")
	ackNak      = []byte("-NAK")
)

// lane is one durable of a group, served by one goroutine.
type lane struct {
	g       *group
	n       int
	lanes   int // of the group
	durable string
	filters []string
	pullTo  string

	in    chan event
	kick  chan struct{} // capacity 1: pull again
	heard atomic.Int64  // when the server last said something, Unix nanoseconds

	acking atomic.Bool  // an ack or nak is under way
	acked  atomic.Int64 // when the last one ended, Unix nanoseconds

	mu    sync.Mutex
	reply string // of the message in hand; empty: none

	// Used by the lane's goroutine only.
	left  int    // messages that the pull may still bring
	pulls uint64 // counts pull requests
	done  uint64 // stream sequence of the last message that was handled to the end
	from  uint64 // stream sequence that all before were acknowledged, as far as known here
}

// config is what a new durable looks like.
func (l *lane) config() jetstream.ConsumerConfig {
	c := jetstream.ConsumerConfig{
		Durable:        l.durable,
		Name:           l.durable,
		Description:    fmt.Sprintf("lane %d of %d of %s", l.n, l.lanes, l.g.c.Name),
		DeliverPolicy:  jetstream.DeliverAllPolicy,
		AckPolicy:      jetstream.AckExplicitPolicy,
		AckWait:        l.g.c.AckWait,
		MaxDeliver:     -1, // this package counts, because the server would neither ack nor report
		MaxAckPending:  1,  // the order
		MaxWaiting:     128,
		FilterSubjects: l.filters,
		Metadata: map[string]string{
			metaLanes:   strconv.Itoa(l.lanes),
			metaSubject: l.g.c.Subject,
		},
	}
	switch {
	case l.from > 0:
		// The durable was there before. Starting over would hand out a week of events.
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverByStartSequencePolicy, l.from
	case l.g.c.New:
		c.DeliverPolicy = jetstream.DeliverNewPolicy
	}
	return c
}

func (l *lane) create(ctx context.Context) (*jetstream.ConsumerInfo, error) {
	c := l.config()
	info, err := l.apply(ctx, c, "create")
	if code(err) == codeWorkQueueStart && !l.g.c.New {
		// A work queue holds only what is not acknowledged, so its start is the right place.
		c.DeliverPolicy, c.OptStartSeq = jetstream.DeliverAllPolicy, 0
		info, err = l.apply(ctx, c, "create")
	}
	return info, err
}

func (l *lane) apply(ctx context.Context, c jetstream.ConsumerConfig, action string) (*jetstream.ConsumerInfo, error) {
	req := struct {
		Stream string                   `json:"stream_name"`
		Config jetstream.ConsumerConfig `json:"config"`
		Action string                   `json:"action"`
	}{l.g.c.Stream, c, action}
	var info jetstream.ConsumerInfo
	err := l.g.b.api(ctx, "CONSUMER.CREATE."+l.g.c.Stream+"."+l.durable, req, &info)
	if err != nil {
		return nil, err
	}
	return &info, nil
}

// ensure makes sure that the lane's durable exists and covers what it should.
func (l *lane) ensure(ctx context.Context) error {
	info, err := l.g.b.consumerInfo(ctx, l.g.c.Stream, l.durable)
	if code(err) == codeConsumerNotFound {
		info, err = l.create(ctx)
		switch c := code(err); {
		case err == nil:
			l.g.b.log.Info("durable created", "stream", l.g.c.Stream, "consumer", l.durable)
		case c == codeConsumerExists || c == codeConsumerName:
			info, err = l.g.b.consumerInfo(ctx, l.g.c.Stream, l.durable) // another process was faster
		}
	}
	if err != nil {
		return err
	}
	have := info.Config.FilterSubjects
	if info.Config.FilterSubject != "" {
		have = []string{info.Config.FilterSubject}
	}
	slices.Sort(have)
	if want := slices.Sorted(slices.Values(l.filters)); !slices.Equal(have, want) {
		was := info.Config.Metadata[metaSubject]
		if was == "" || was == l.g.c.Subject {
			was = strings.Join(have, ", ")
		}
		return fmt.Errorf("consumer %s exists on %s for %s, not for %s: the subjects of a consumer cannot change without losing messages; use another name, or delete its durables %s and those after it",
			l.g.c.Name, l.g.c.Stream, was, l.g.c.Subject, durable(l.g.c.Name, 0))
	}
	l.from = max(l.from, info.AckFloor.Stream+1)
	if info.Config.AckWait != l.g.c.AckWait {
		c := info.Config
		c.AckWait = l.g.c.AckWait
		if _, err := l.apply(ctx, c, "update"); err != nil {
			if passing(err) {
				return err
			}
			l.g.b.warn("durable keeps its ack wait of "+info.Config.AckWait.String(), err)
		}
	}
	return nil
}

// run serves the lane until nothing can arrive any more.
func (l *lane) run() {
	l.pull()
	for {
		select {
		case e := <-l.in:
			l.take(e)
		case <-l.kick:
			l.pull()
		case <-l.g.drained:
			for {
				select {
				case e := <-l.in:
					l.take(e)
				default:
					return
				}
			}
		}
	}
}

// pullAgain makes the lane's goroutine send a new pull, soon.
func (l *lane) pullAgain() {
	select {
	case l.kick <- struct{}{}:
	default:
	}
}

// pull asks the server for messages.
func (l *lane) pull() {
	if !l.g.taking.Load() {
		return
	}
	l.heard.Store(time.Now().UnixNano())
	if !l.g.b.Connected() {
		return // the next connect kicks
	}
	l.left = pullBatch
	l.pulls++
	reply := l.g.inbox + strconv.Itoa(l.n) + "." + strconv.FormatUint(l.pulls, 10)
	body := fmt.Appendf(nil, `{"batch":%d,"expires":%d,"idle_heartbeat":%d}`, pullBatch, pullExpiry, pullHeartbeat)
	if err := l.g.b.nc.PublishRequest(l.pullTo, reply, body); err != nil {
		l.g.b.warn("pull failed", err) // keepAlive or the next connect tries again
	}
}

func (l *lane) take(e event) {
	if e.md == nil {
		l.takeStatus(e)
		return
	}
	if l.left--; l.left <= 0 {
		l.pull()
	}
	l.deliver(e.msg, e.md)
}

// takeStatus deals with the end of a pull.
func (l *lane) takeStatus(e event) {
	// What an earlier pull says does not matter any more.
	if !strings.HasSuffix(e.msg.Subject, "."+strconv.FormatUint(l.pulls, 10)) || !l.g.taking.Load() {
		return
	}
	text := e.msg.Header.Get("Description")
	switch {
	case e.status == "408", e.status == "404": // nothing came
		l.pull()
		return
	case e.status == "503", e.status == "409" && strings.Contains(text, "Deleted"):
		// No such durable, or no JetStream. A server that has just started says so too.
		l.pause(200 * time.Millisecond)
		l.mend()
	default:
		// A new leader, a server that shuts down, too many pulls waiting.
		l.g.b.warn("pull ended", fmt.Errorf("%s: %s %s", l.durable, e.status, text))
		l.pause(200 * time.Millisecond)
	}
	l.pull()
}

// mend makes the durable again if it is gone.
func (l *lane) mend() {
	ctx, cancel := context.WithCancel(l.g.ctx)
	defer cancel()
	go func() {
		select {
		case <-l.g.drained:
			cancel()
		case <-ctx.Done():
		}
	}()
	err := l.g.b.retry(ctx, "durable "+l.durable, l.ensure)
	if err != nil && ctx.Err() == nil {
		l.g.fail(err)
	}
}

// pause waits for d or the end of the group.
func (l *lane) pause(d time.Duration) {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
	case <-l.g.drained:
	}
}

// hold says which message is in hand.
func (l *lane) hold(reply string) {
	l.mu.Lock()
	l.reply = reply
	l.mu.Unlock()
}

// inProgress reports whether a message is in hand and, if speak is set, tells the
// server so. The lock keeps it from speaking after a nak.
func (l *lane) inProgress(speak bool) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.reply == "" {
		return false
	}
	if speak {
		_ = l.g.b.nc.Publish(l.reply, ackProgress) // without a connection there is nothing to be done
	}
	return true
}

// deliver sees one message through: handler, verdict, ack.
func (l *lane) deliver(m *nats.Msg, md *nats.MsgMetadata) {
	b, c := l.g.b, &l.g.c
	b.stats.delivered.Add(1)
	if md.NumDelivered > 1 {
		b.stats.redelivered.Add(1)
	}
	d := &Delivery{Stored: stored(m.Subject, m.Header, m.Data), Consumer: c.Name, Attempt: int(md.NumDelivered)}
	d.Stream, d.Seq, d.Time = c.Stream, md.Sequence.Stream, md.Timestamp.UTC()
	d.Slot, d.App = c.place(m.Subject)

	l.hold(m.Reply)
	defer l.hold("")
	if d.Seq == l.done {
		// Handled here already, only the ack was lost.
		l.ack(m, d)
		return
	}
	if to := d.Header[HeaderReplay]; to != "" && to != c.Name {
		l.finish(m, d)
		return
	}
	if l.g.ctx.Err() != nil {
		l.giveBack(m, 0)
		return
	}
	var err error
	if c.MaxAttempts > 0 && d.Attempt > c.MaxAttempts {
		err = Reject(fmt.Errorf("delivered %d times without a verdict", d.Attempt-1))
	} else {
		err = l.call(d)
	}
	if err == nil {
		l.finish(m, d)
		return
	}
	l.judge(m, d, err)
}

// finish acknowledges a message that needs nothing more.
func (l *lane) finish(m *nats.Msg, d *Delivery) {
	l.done = d.Seq
	l.ack(m, d)
}

// release ends the hold that the server has on the lane: it sends an ack or nak. While
// the group stops it waits first until no further message can come.
func (l *lane) release(reply string, body []byte) error {
	l.acking.Store(true) // before the question whether the group stops, so that settle sees it
	if !l.g.taking.Load() {
		l.acking.Store(false)
		<-l.g.drained
	}
	if !bytes.Equal(body, ackAck) {
		l.hold("") // a word of progress after a nak would undo the nak's delay
	}
	err := l.g.b.request(context.Background(), reply, body)
	l.acked.Store(time.Now().UnixNano())
	l.acking.Store(false)
	return err
}

// ack tells the server that m is done and waits for its word that it knows. Until
// then the lane stays where it is: the server would only repeat m.
func (l *lane) ack(m *nats.Msg, d *Delivery) {
	b := l.g.b
	until := time.Now().Add(l.g.c.AckWait)
	for {
		err := l.release(m.Reply, ackAck)
		if err == nil {
			l.from = max(l.from, d.Seq+1)
			return
		}
		// Someone else may have it by now, or the durable is a new one.
		if errors.Is(err, ErrClosed) || l.g.ctx.Err() != nil || time.Now().After(until) {
			b.log.Warn("ack not confirmed", "consumer", l.durable, "stream", d.Stream, "seq", d.Seq, "err", err)
			return
		}
		t := time.NewTimer(100 * time.Millisecond)
		select {
		case <-t.C:
		case <-l.g.ctx.Done():
		}
		t.Stop()
	}
}

// giveBack makes m deliverable again after delay.
func (l *lane) giveBack(m *nats.Msg, delay time.Duration) {
	body := ackNak
	if delay > 0 {
		body = fmt.Appendf(nil, `-NAK {"delay":%d}`, delay)
	}
	if err := l.release(m.Reply, body); err != nil {
		l.g.b.warn("nak not confirmed", err) // comes back after AckWait then
	}
}

// request sends something that the server answers with an empty message.
func (b *Bus) request(ctx context.Context, subject string, body []byte) error {
	w, err := b.up()
	if err != nil {
		return err
	}
	_, err = w.do(ctx, w.requests, outgoing{subject: subject, data: body}, apiTry)
	return err
}
