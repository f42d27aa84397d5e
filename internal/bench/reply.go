package bench

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/HdrHistogram/hdrhistogram-go"

	"github.com/wecom-bridge/wecom-bridge/internal/ops"
	"github.com/wecom-bridge/wecom-bridge/internal/wecomsim"
)

const (
	secret = "benchmarkOnly"
	rules  = `rules:
  - name: fallback
    when: {type: message.text}
    reply: {text: "我也{{.Text}}!"}
`
	// replyLimit is how long a reply is waited for.
	replyLimit = 10 * time.Second
	// perUser is how many messages a user sends at most in one run. The sender lets nobody
	// have more than 28 a minute.
	perUser = 20
)

// replies measures the whole way, from a user's message to the reply on the phone, for
// each durability. The simulator is in this process; gateway, with its embedded NATS, and
// worker are two others.
func (b *bench) replies(ctx context.Context) error {
	fmt.Fprintf(b.out, "\nReply: %d messages a second, sent on time whatever comes back, for %v, after a second that is not counted.\n"+
		"In ms from the moment that the callback is made; CPU in ms for 1,000 messages.\n", b.ReplyRate, b.ReplyDuration)
	rows := [][]string{{"gateway with embedded NATS, worker", "to 200 p50", "p99", "to inbox p50", "p99", "max", "gateway CPU", "worker CPU", "retries", "answered once"}}
	for _, mode := range []string{"interval", "fsync"} {
		row, err := b.reply(ctx, mode, mode == "fsync")
		if err != nil {
			return fmt.Errorf("reply, %s: %w", mode, err)
		}
		rows = append(rows, append([]string{mode}, row...))
	}
	fmt.Fprintln(b.out)
	printTable(b.out, rows)
	return nil
}

func (b *bench) reply(ctx context.Context, mode string, sync bool) (row []string, err error) {
	b.runs++
	dir := filepath.Join(b.dir, strconv.Itoa(b.runs))
	defer func() { err = errors.Join(err, os.RemoveAll(dir)) }()
	set := settings{Dir: dir, Sync: sync, LogLevel: b.LogLevel}
	if set.Profile, err = b.profile("reply-" + mode + "-gateway"); err != nil {
		return nil, err
	}
	gateway, err := startChild(ctx, b.Child, roleGateway, set)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, gateway.stop()) }()

	log := slog.New(slog.DiscardHandler) // what the simulator has to say shows in the table
	sim, err := wecomsim.New(wecomsim.Config{
		CallbackURLs: []string{"http://" + gateway.Addr + "/callback/"}, Log: log,
		Apps: []wecomsim.App{{Name: appName, CorpID: corpID, AgentID: agentID, Secret: secret, Token: pair.Token, AESKey: pair.AESKey}},
	})
	if err != nil {
		return nil, err
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	serving, stop := context.WithCancel(ctx)
	served := make(chan error, 1)
	go func() { served <- ops.Serve(serving, ops.Server(sim, time.Minute, 0, log), ln, time.Second) }()
	defer func() {
		stop()
		sim.Close()
		err = errors.Join(err, <-served)
	}()
	set = settings{NATS: gateway.NATS, API: "http://" + ln.Addr().String(), LogLevel: b.LogLevel}
	if set.Profile, err = b.profile("reply-" + mode + "-worker"); err != nil {
		return nil, err
	}
	worker, err := startChild(ctx, b.Child, roleWorker, set)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, worker.stop()) }()

	c := newConversation(sim)
	// The first one waits until the worker has begun.
	first := c.say(ctx, "warm-up", 0, 3*replyLimit)
	if first.err != nil {
		return nil, first.err
	}
	if err := c.run(ctx, b.ReplyRate, time.Second, 0); err != nil {
		return nil, err
	}
	c.reset()
	gatewayBefore, err1 := snapshot(gateway, nil, begin)
	workerBefore, err2 := snapshot(worker, nil, begin)
	if err := errors.Join(err1, err2, c.run(ctx, b.ReplyRate, b.ReplyDuration, 1)); err != nil {
		return nil, err
	}
	gatewayAfter, err1 := snapshot(gateway, nil, end)
	workerAfter, err2 := snapshot(worker, nil, end)
	if err := errors.Join(err1, err2); err != nil {
		return nil, err
	}
	n := c.replied.TotalCount()
	perThousand := func(d time.Duration) string {
		return fixed(float64(d)/float64(time.Millisecond)/float64(n)*1000, 0)
	}
	ms := func(h *hdrhistogram.Histogram, q float64) string {
		return fixed(float64(h.ValueAtQuantile(q))/1000, 2)
	}
	return []string{
		ms(c.taken, 50), ms(c.taken, 99), ms(c.replied, 50), ms(c.replied, 99), ms(c.replied, 100),
		perThousand(gatewayAfter.cpu - gatewayBefore.cpu), perThousand(workerAfter.cpu - workerBefore.cpu),
		strconv.Itoa(c.retries), fmt.Sprintf("%s of %s", thousands(float64(n)), thousands(float64(c.sent))),
	}, nil
}

// conversation is many users talking to the bot at once.
type conversation struct {
	sim *wecomsim.Server

	mu             sync.Mutex
	sent           int
	retries        int                     // callbacks beyond the first of each message
	taken, replied *hdrhistogram.Histogram // until the 200, until the reply, in microseconds
	failed         error                   // the first one
}

func newConversation(sim *wecomsim.Server) *conversation {
	c := &conversation{sim: sim}
	c.reset()
	return c
}

func (c *conversation) reset() {
	c.sent, c.retries = 0, 0
	c.taken = hdrhistogram.New(1, slowest.Microseconds(), 3)
	c.replied = hdrhistogram.New(1, slowest.Microseconds(), 3)
}

// run sends rate messages a second for as long as d, each at its time and whatever has
// become of those before, and waits for the replies. Runs of one conversation with
// different names have different users. It fails unless each message was answered once,
// with its own reply.
func (c *conversation) run(ctx context.Context, rate int, d time.Duration, name int) error {
	total := int(d.Seconds() * float64(rate))
	crowd := (total + perUser - 1) / perUser
	crowd = max(crowd, min(users, total))
	user := func(i int) string { return fmt.Sprintf("user-%d-%d", name, i%crowd) }

	timer := time.NewTimer(0)
	defer timer.Stop()
	var wg sync.WaitGroup
	began := time.Now()
	for i := range total {
		timer.Reset(time.Until(began.Add(time.Duration(i) * time.Second / time.Duration(rate))))
		select {
		case <-timer.C:
		case <-ctx.Done():
			wg.Wait()
			return ctx.Err()
		}
		wg.Go(func() { c.note(c.say(ctx, user(i), i/crowd, replyLimit)) })
	}
	wg.Wait()
	if c.failed != nil {
		return c.failed
	}
	for i := range crowd {
		want := total / crowd
		if i < total%crowd {
			want++
		}
		if got := len(c.sim.Inbox(user(i))); got != want {
			return fmt.Errorf("%s sent %d messages and got %d replies", user(i), want, got)
		}
	}
	return nil
}

// said is what became of a message.
type said struct {
	taken, replied time.Duration
	retries        int
	err            error
}

// say sends a user's nth message, counted from 0, and waits for the reply.
func (c *conversation) say(ctx context.Context, user string, n int, limit time.Duration) (s said) {
	text := fmt.Sprintf("%s-%d", user, n)
	start := time.Now()
	res, err := c.sim.Say(ctx, wecomsim.SayRequest{User: user, Content: text})
	s.taken = time.Since(start)
	switch {
	case err != nil:
		s.err = err
	case !res.Delivered():
		s.err = fmt.Errorf("message %s: no callback was answered 200: %+v", text, res.Attempts)
	}
	if s.err != nil {
		return s
	}
	s.retries = len(res.Attempts) - 1
	waiting, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	inbox, err := c.sim.Wait(waiting, user, n)
	if err != nil {
		s.err = fmt.Errorf("message %s: no reply in %v", text, limit)
		return s
	}
	if got, want := inbox[n].Content, "我也"+text+"!"; got != want {
		s.err = fmt.Errorf("message %s: the reply is %q, want %q", text, got, want)
	}
	s.replied = inbox[n].Time.Sub(start)
	return s
}

func (c *conversation) note(s said) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.sent++
	c.retries += s.retries
	if s.err != nil {
		if c.failed == nil {
			c.failed = s.err
		}
		return
	}
	_ = c.taken.RecordValue(min(s.taken, slowest).Microseconds()) // both are in the range
	_ = c.replied.RecordValue(max(0, min(s.replied, slowest)).Microseconds())
}
