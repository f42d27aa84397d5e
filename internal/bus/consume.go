package bus

import (
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
	"golang.org/x/sync/errgroup"
)

const (
	defaultAckWait     = 30 * time.Second
	defaultMaxAttempts = 10
	defaultRetry       = time.Second
	defaultGrace       = 10 * time.Second
	lanesAlone         = 32 // on one server
	lanesClustered     = 16 // each lane is a raft group there, and more of them are slower

	maxRetry      = time.Minute      // growing delays stop here
	maxRetryAfter = 15 * time.Minute // a lane is never held longer than this

	// A pull asks for pullBatch messages; as a lane has one message out at a time this
	// only saves requests, nothing is fetched ahead. The server says "still here" every
	// pullHeartbeat while it has nothing, and ends the request after pullExpiry.
	pullBatch     = 500
	pullExpiry    = 30 * time.Second
	pullHeartbeat = 2 * time.Second

	// settleTime is how long after an ack the lane's next message may take to come.
	settleTime = 50 * time.Millisecond

	// Names in a durable's metadata.
	metaLanes   = "bridge-lanes"
	metaSubject = "bridge-subject"
)

// HeaderReplay on a message names the consumer that a dead letter is replayed for;
// all other consumers acknowledge the message unseen.
const HeaderReplay = "Bridge-Replay"

// Consumer describes who consumes what. Every process that consumes under the same
// name shares the work.
type Consumer struct {
	Stream string
	Name   string // 1 to 64 characters of A-Z a-z 0-9 _ -; the durables are <Name>-<lane>

	// Subject is the filter. Its first "*" stands where the slot is:
	// "wecom.event.*.>", "wecom.event.*.demo.message.text", "wecom.outbox.*.*.*".
	Subject string

	AckWait     time.Duration // after a crash, how long until somebody else gets the message; 0: 30 s
	MaxAttempts int           // deliveries after which a message is a dead letter; 0: 10, negative: no limit
	Retry       time.Duration // delay after the first failure, doubled each time up to 1 min; 0: 1 s
	Grace       time.Duration // how long handlers may go on when Consume is to stop; 0: 10 s
	Ready       func()        // called once, when messages are being taken; may be nil

	// For the first process that consumes under this name; afterwards they are what they
	// are.
	Lanes int  // messages handled at once over all processes; 0: 32, on a cluster 16; at most 64
	New   bool // begin with messages stored from now on, not with all that the stream holds
}

// Delivery is a message given to a handler.
type Delivery struct {
	Stored
	Consumer string // Consumer.Name
	Attempt  int    // which delivery of this message this is, from 1; a crash or a stop counts too
	Slot     int
	App      string // the token after the slot
}

// Consume hands the messages of c to handle, each at least once, and blocks until ctx
// ends. Messages of one slot are handled one after the other in the order in which
// they were stored, across all processes that consume under c.Name; up to c.Lanes
// messages of different slots are handled at once.
//
// What handle returns decides. Nil: the message is acknowledged. [Reject]: it becomes
// a dead letter. [RetryAfter]: it is delivered again after that delay, 15 minutes at
// most. Any other error, or a panic: it is delivered again after a growing delay. A
// message that has been delivered c.MaxAttempts times becomes a dead letter instead.
// The lane of a message that waits waits with it: that keeps the order.
//
// A handler may take as long as it likes; the broker is told that it still works.
// Only a process that dies or is cut off loses its message to another one, after
// c.AckWait. While handle runs, its context ends only when c.Grace has passed after
// ctx ended. It should return promptly then, and the message is given back.
//
// When ctx ends, Consume takes nothing more, waits for the handlers that run and
// returns nil. It returns an error early if c is not right, if it does not fit what
// exists under its name, or when the Bus is closed. Disconnects, a restarted broker
// and deleted durables are mended on the way.
func (b *Bus) Consume(ctx context.Context, c Consumer, handle func(ctx context.Context, d *Delivery) error) error {
	if err := c.check(); err != nil {
		return fmt.Errorf("consume %s: %w", c.Name, err)
	}
	g := &group{b: b, c: c, handle: handle, failed: make(chan error, 1), drained: make(chan struct{})}
	g.taking.Store(true)
	err := g.setUp(ctx)
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return fmt.Errorf("consume %s: %w", c.Name, err)
	}
	if err := g.run(ctx); err != nil {
		return fmt.Errorf("consume %s: %w", c.Name, err)
	}
	return nil
}

func (c *Consumer) check() error {
	if !plainToken(c.Name) {
		return errors.New("the name must be 1 to 64 characters of A-Z a-z 0-9 _ -")
	}
	if !plainToken(c.Stream) {
		return errors.New("no lawful stream name")
	}
	if _, _, ok := c.split(); !ok {
		return fmt.Errorf("subject %q has no * where the slot stands", c.Subject)
	}
	if c.Lanes < 0 || c.Lanes > Slots {
		return fmt.Errorf("%d lanes: must be 1 to %d", c.Lanes, Slots)
	}
	if c.AckWait == 0 {
		c.AckWait = defaultAckWait
	}
	if c.MaxAttempts == 0 {
		c.MaxAttempts = defaultMaxAttempts
	}
	if c.Retry == 0 {
		c.Retry = defaultRetry
	}
	if c.Grace == 0 {
		c.Grace = defaultGrace
	}
	if c.AckWait < 0 || c.Retry < 0 || c.Grace < 0 {
		return errors.New("a duration is negative")
	}
	return nil
}

// split cuts the subject around the slot.
func (c *Consumer) split() (before, after string, ok bool) {
	tokens := strings.Split(c.Subject, ".")
	i := slices.Index(tokens, "*")
	if i < 1 || slices.Contains(tokens, "") {
		return "", "", false
	}
	return strings.Join(tokens[:i], "."), strings.Join(tokens[i+1:], "."), true
}

// filters returns the subjects of a lane.
func (c *Consumer) filters(lane, lanes int) []string {
	before, after, _ := c.split()
	if after != "" {
		after = "." + after
	}
	var f []string
	for slot := lane; slot < Slots; slot += lanes {
		f = append(f, before+"."+strconv.Itoa(slot)+after)
	}
	return f
}

// place reads slot and app out of a subject that c's filter lets through.
func (c *Consumer) place(subject string) (slot int, app string) {
	before, _, _ := c.split()
	rest := strings.TrimPrefix(subject, before+".")
	s, rest, _ := strings.Cut(rest, ".")
	slot, err := strconv.Atoi(s)
	if err != nil {
		slot = -1
	}
	app, _, _ = strings.Cut(rest, ".")
	return slot, app
}

func durable(name string, lane int) string { return name + "-" + strconv.Itoa(lane) }

// group is one running Consume.
type group struct {
	b      *Bus
	c      Consumer
	handle func(ctx context.Context, d *Delivery) error

	lanes []*lane
	inbox string // of the pull requests, with its last dot
	sub   *nats.Subscription

	taking  atomic.Bool // false: no more pulls
	ctx     context.Context
	cancel  context.CancelFunc // ends the handlers
	failed  chan error
	drained chan struct{} // closed when no message can arrive any more
}

// setUp finds or makes the durables.
func (g *group) setUp(ctx context.Context) error {
	var lanes int
	err := g.b.retry(ctx, "durable "+durable(g.c.Name, 0), func(ctx context.Context) error {
		var err error
		lanes, err = g.firstLane(ctx)
		return err
	})
	if err != nil {
		return err
	}
	for i := range lanes {
		l := &lane{
			g:       g,
			n:       i,
			durable: durable(g.c.Name, i),
			filters: g.c.filters(i, lanes),
			lanes:   lanes,
			in:      make(chan event, 8),
			kick:    make(chan struct{}, 1),
		}
		l.pullTo = "$JS.API.CONSUMER.MSG.NEXT." + g.c.Stream + "." + l.durable
		g.lanes = append(g.lanes, l)
	}
	eg, ctx := errgroup.WithContext(ctx)
	eg.SetLimit(8)
	for _, l := range g.lanes {
		eg.Go(func() error {
			return g.b.retry(ctx, "durable "+l.durable, l.ensure)
		})
	}
	return eg.Wait()
}

// firstLane makes sure that lane 0 exists and returns the number of lanes that it
// records. Whoever creates lane 0 decides that number for all.
func (g *group) firstLane(ctx context.Context) (int, error) {
	name := durable(g.c.Name, 0)
	info, err := g.b.consumerInfo(ctx, g.c.Stream, name)
	if code(err) == codeConsumerNotFound {
		lanes := g.c.Lanes
		if lanes == 0 {
			lanes = lanesAlone
			if g.b.Clustered() {
				lanes = lanesClustered
			}
		}
		l := &lane{g: g, durable: name, filters: g.c.filters(0, lanes), lanes: lanes}
		info, err = l.create(ctx)
		if c := code(err); c == codeConsumerExists || c == codeConsumerName {
			info, err = g.b.consumerInfo(ctx, g.c.Stream, name) // another process was faster
		}
	}
	if err != nil {
		return 0, err
	}
	lanes, err := recordedLanes(info.Config.Metadata)
	if err != nil {
		return 0, fmt.Errorf("durable %s exists on %s and was not made by this program: use another consumer name", name, g.c.Stream)
	}
	return lanes, nil
}

func recordedLanes(meta map[string]string) (int, error) {
	n, err := strconv.Atoi(meta[metaLanes])
	if err == nil && (n < 1 || n > Slots) {
		err = errors.New("out of range")
	}
	return n, err
}

// run consumes until ctx ends.
func (g *group) run(ctx context.Context) error {
	g.ctx, g.cancel = context.WithCancel(context.WithoutCancel(ctx))
	defer g.cancel()
	g.inbox = g.b.nc.NewInbox() + "."
	sub, err := g.b.nc.Subscribe(g.inbox+">", g.dispatch)
	if err != nil {
		return fmt.Errorf("%w: subscribe: %w", ErrUnavailable, err)
	}
	g.sub = sub
	// A lane has one message out and a few lines of status: nothing piles up here.
	if err := sub.SetPendingLimits(-1, -1); err != nil {
		return fmt.Errorf("%w: subscribe: %w", ErrUnavailable, err)
	}
	finished := make(chan struct{}) // the subscription's goroutine has ended
	var once sync.Once
	sub.SetClosedHandler(func(string) { once.Do(func() { close(finished) }) })

	var lanes, helpers sync.WaitGroup
	up := g.b.watch() // before the first pull, so that no reconnect goes unseen
	for _, l := range g.lanes {
		lanes.Go(l.run)
	}
	if g.c.Ready != nil {
		g.c.Ready()
	}
	stop := make(chan struct{})
	helpers.Go(func() { g.keepAlive(up, stop) })

	var cause error
	select {
	case <-ctx.Done():
	case cause = <-g.failed:
	case <-g.b.done:
		cause = ErrClosed
	}

	// From here on no ack and no nak is sent until the subscription has ended, because
	// each makes the server send the lane's next message, and one that it finds no taker
	// for counts as a delivery all the same.
	g.taking.Store(false)
	grace := time.AfterFunc(g.c.Grace, g.cancel)
	if cause != nil {
		g.cancel() // nobody asked for a stop: the handlers' work may be in vain
	}
	if g.b.Connected() { // else the server has forgotten us anyway
		g.settle()
		if err := sub.Drain(); err == nil {
			t := time.NewTimer(apiTry)
			select {
			case <-finished:
			case <-t.C:
			}
			t.Stop()
		}
	}
	_ = sub.Unsubscribe() // an error says that it is gone already
	close(g.drained)
	lanes.Wait()
	grace.Stop()
	close(stop)
	helpers.Wait()
	return cause
}

// settle waits until what the last acks have set off has arrived: the next message
// of a lane comes a moment after the server's word that it knows the ack.
func (g *group) settle() {
	t := time.NewTicker(settleTime / 5)
	defer t.Stop()
	for end := time.Now().Add(10 * settleTime); time.Now().Before(end); <-t.C {
		settled := true
		for _, l := range g.lanes {
			if l.acking.Load() || time.Since(time.Unix(0, l.acked.Load())) < settleTime {
				settled = false
				break
			}
		}
		if settled {
			return
		}
	}
}

// fail ends Consume with err.
func (g *group) fail(err error) {
	select {
	case g.failed <- err:
	default:
	}
}

// event is something that the server sent to a lane.
type event struct {
	msg    *nats.Msg
	md     *nats.MsgMetadata // nil: a status
	status string
}

// dispatch hands what the server sends to the lane that it is for. It never blocks.
func (g *group) dispatch(m *nats.Msg) {
	e := event{msg: m}
	var n int
	if rest, ok := strings.CutPrefix(m.Subject, g.inbox); ok {
		lane, _, _ := strings.Cut(rest, ".")
		i, err := strconv.Atoi(lane)
		if err != nil {
			return
		}
		n, e.status = i, m.Header.Get("Status")
	} else {
		md, err := m.Metadata()
		if err != nil {
			g.b.warn("message without metadata", err)
			return
		}
		i, err := strconv.Atoi(strings.TrimPrefix(md.Consumer, g.c.Name+"-"))
		if err != nil {
			return
		}
		n, e.md = i, md
	}
	if n < 0 || n >= len(g.lanes) {
		return
	}
	l := g.lanes[n]
	l.heard.Store(time.Now().UnixNano())
	if e.status == "100" {
		return // heartbeat
	}
	select {
	case l.in <- e:
	default:
		// The lane is busy with a message and this is the same one again, for the eighth
		// time; the server repeats it.
	}
}

// keepAlive tells the server that handlers still work, and finds pulls that the
// server has forgotten.
func (g *group) keepAlive(up, stop <-chan struct{}) {
	every := min(g.c.AckWait/3, pullHeartbeat)
	t := time.NewTicker(max(every, 10*time.Millisecond))
	defer t.Stop()
	var spoke time.Time
	for {
		select {
		case <-t.C:
		case <-up:
			up = g.b.watch()
			// Pulls die with the connection.
			for _, l := range g.lanes {
				l.pullAgain()
			}
			continue
		case <-stop:
			return
		}
		now := time.Now()
		speak := now.Sub(spoke) >= g.c.AckWait/3-every/2
		if speak {
			spoke = now
		}
		for _, l := range g.lanes {
			busy := l.inProgress(speak)
			if !busy && now.UnixNano()-l.heard.Load() > int64(2*pullHeartbeat+pullHeartbeat/2) {
				l.heard.Store(now.UnixNano())
				l.pullAgain()
			}
		}
	}
}

// consumerInfo asks for a durable.
func (b *Bus) consumerInfo(ctx context.Context, stream, name string) (*jetstream.ConsumerInfo, error) {
	var info jetstream.ConsumerInfo
	if err := b.api(ctx, "CONSUMER.INFO."+stream+"."+name, nil, &info); err != nil {
		return nil, err
	}
	return &info, nil
}
