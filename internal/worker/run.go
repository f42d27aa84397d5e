package worker

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wecom-bridge/wecom-bridge/bridge"
	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/ops"
)

const (
	botName    = "bot"    // consumer of the built-in handler; part of its messages' ids
	senderName = "sender" // consumer of the outbox

	grace      = 10 * time.Second // for what is in hand when stopping
	probeEvery = 3 * time.Second
	readyFor   = 10 * time.Second // how long one ack of the bus proves it well
	checkEvery = 30 * time.Second // how often an app's credentials are looked at
	limitWait  = time.Minute      // WeCom's shortest frequency window
)

// Run handles events and sends messages until ctx ends, then finishes what is in hand,
// which may take 10 s. It returns early only for what a person has to mend: a rules
// file with mistakes, an address in use, a consumer that does not fit. NATS or WeCom
// being down is waited for.
//
// An app without a secret, or with a wrong one, stops nobody else: its messages fail,
// and readiness says why.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	rules, err := cfg.rules()
	if err != nil {
		return err
	}
	ln := cfg.OpsListener
	if ln == nil {
		if ln, err = net.Listen("tcp", cfg.OpsListen); err != nil {
			return fmt.Errorf("BRIDGE_OPS_LISTEN: %w", err)
		}
	}
	defer func() { _ = ln.Close() }() // a second Close is harmless

	cfg.Nats.Log = log
	if cfg.Nats.Name == "" {
		cfg.Nats.Name = "worker"
	}
	if cfg.Nats.URL == "" && cfg.Nats.Dial == nil {
		cfg.Nats.URL = "nats://127.0.0.1:4222" // where the gateway's embedded server listens
	}
	b, err := bus.Connect(ctx, cfg.Nats)
	if err != nil {
		if ctx.Err() != nil {
			return nil // stopped, not failed
		}
		return err
	}
	n := cfg.Nats
	client, err := bridge.Connect(ctx, bridge.Options{
		URL: n.URL, Name: n.Name, Creds: n.Creds, NKey: n.NKey, CA: n.CA, Cert: n.Cert, Key: n.Key, Dial: n.Dial, Log: log,
	})
	defer func() {
		c, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		_ = b.Close(c) // nothing waits for an ack any more
		if client != nil {
			_ = client.Close(c)
		}
	}()
	if err != nil {
		return err
	}

	reg := ops.Registry()
	m := newMetrics(reg)
	w := &worker{log: log, metrics: m, rules: rules, apps: make(map[string]*app), publish: b.Publish}
	for _, a := range cfg.App {
		w.apps[a.Name] = newApp(a, cfg.API.URL)
	}
	s := &sender{
		apps: w.apps, publish: b.Publish, last: b.Last, log: log, metrics: m, now: time.Now,
		wait: cfg.limitWait, tries: make(map[uint64]*try),
	}
	if s.wait == 0 {
		s.wait = limitWait
	}
	log.Info("worker started", "ops", ln.Addr().String(), "rules", rules.Len(), "apps", strings.Join(cfg.Apps, ","))

	tasks, ctx := errgroup.WithContext(ctx)
	provisioned := make(chan struct{}) // nothing can be consumed before
	taking := make(chan struct{}, 2)   // one for each consumer that is set up
	ready := func() { taking <- struct{}{} }
	tasks.Go(func() error {
		defer close(provisioned)
		if err := b.Provision(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("provision streams: %w", err)
		}
		return nil
	})
	tasks.Go(func() error {
		<-provisioned
		return client.Consume(ctx, bridge.Consumer{Name: botName, AckWait: cfg.AckWait, Grace: grace, Ready: ready}, w.handle)
	})
	tasks.Go(func() error {
		<-provisioned
		return b.Consume(ctx, bus.Consumer{
			Stream: bus.StreamOutbox, Name: senderName, Subject: "wecom.outbox.*.>",
			AckWait: cfg.AckWait, MaxAttempts: -1, Retry: cfg.retry, Grace: grace, Ready: ready,
		}, s.handle)
	})
	tasks.Go(func() error {
		for range cap(taking) { // a worker that takes nothing yet is not ready
			select {
			case <-taking:
			case <-ctx.Done():
				return nil
			}
		}
		w.probe(ctx, instance())
		return nil
	})
	tasks.Go(func() error {
		w.check(ctx)
		return nil
	})
	tasks.Go(func() error {
		return ops.Serve(ctx, ops.Server(ops.Handler(reg, w.ready), 10*time.Second, 30*time.Second, log), ln, grace)
	})
	err = tasks.Wait()
	log.Info("worker stopped")
	return err
}

// rules loads what the configuration names; no rules answer nothing.
func (c *Config) rules() (*Rules, error) {
	name, src := "rules", c.RulesSource
	if c.Rules != "" {
		var err error
		if src, err = os.ReadFile(c.Rules); err != nil {
			return nil, fmt.Errorf("BRIDGE_RULES: %w", err)
		}
		name = filepath.Base(c.Rules)
	}
	if src == nil {
		return new(Rules), nil
	}
	r, err := LoadRules(name, src)
	if err != nil {
		return nil, fmt.Errorf("BRIDGE_RULES: %w", err)
	}
	return r, nil
}

// worker is what Run shares between its parts.
type worker struct {
	log     *slog.Logger
	metrics *metrics
	rules   *Rules
	apps    map[string]*app
	publish func(context.Context, *bus.Msg) (bus.Ack, error)
	acked   atomic.Int64 // when the bus last stored something of ours, Unix nanoseconds; 0: the last try failed
}

// handle is the built-in handler with its metrics.
func (w *worker) handle(ctx context.Context, ev *bridge.Event) ([]bridge.Message, error) {
	start := time.Now()
	ms, err := w.rules.Handle(ctx, ev)
	label := ev.App
	if w.apps[label] == nil {
		label = "other"
	}
	result := "silent"
	switch {
	case err != nil:
		result = "failed"
	case len(ms) > 0:
		result = "answered"
	}
	w.metrics.events.WithLabelValues(label, result).Inc()
	w.metrics.handlers.WithLabelValues(label).Observe(time.Since(start).Seconds())
	return ms, err
}

// instance names this process on the bus.
func instance() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "worker"
	}
	return fmt.Sprintf("%s-%d-worker", host, os.Getpid())
}

// probe keeps asking the bus for an ack, so that readiness is known without traffic.
func (w *worker) probe(ctx context.Context, instance string) {
	msg := &bus.Msg{Subject: bus.ProbeSubject(instance)}
	for {
		_, err := w.publish(ctx, msg)
		pause := probeEvery
		if err == nil {
			w.acked.Store(time.Now().UnixNano())
		} else {
			w.acked.Store(0)
			pause = 500 * time.Millisecond // notice the recovery soon
		}
		if !sleep(ctx, pause) {
			return
		}
	}
}

// check looks at every app's credentials, now and then. The client does not ask WeCom
// more often than is good for the caller's address.
func (w *worker) check(ctx context.Context) {
	before := make(map[string]string)
	for {
		for name, a := range w.apps {
			err := a.client.Check(ctx)
			if ctx.Err() != nil {
				return
			}
			a.checked(err)
			if state := a.state(); err != nil && state != before[name] {
				before[name] = state
				w.log.Warn("app cannot send", "app", name, "err", state)
			} else if err == nil && before[name] != "" {
				before[name] = ""
				w.log.Info("app can send again", "app", name)
			}
		}
		if !sleep(ctx, checkEvery) {
			return
		}
	}
}

func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// readiness is the body of /readyz.
type readiness struct {
	Status string            `json:"status"`
	Apps   map[string]string `json:"apps"`
}

func (w *worker) ready() (bool, any) {
	body := readiness{Status: "ok", Apps: make(map[string]string)}
	ok := time.Now().UnixNano()-w.acked.Load() < int64(readyFor)
	if !ok {
		body.Status = "unavailable"
	}
	for name, a := range w.apps {
		body.Apps[name] = a.state()
	}
	return ok, body
}
