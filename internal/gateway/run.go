package gateway

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/ops"
)

const (
	grace      = 10 * time.Second // for open requests when stopping
	probeEvery = 3 * time.Second
	readyFor   = 10 * time.Second // how long one ack of the bus proves it well
)

// Run answers callbacks until ctx ends, then lets open ones finish. It returns early
// only for what a person has to mend: a listener that cannot be had, an outside NATS
// that is known to be weaker than demanded. A NATS that is down is waited for, with 503.
func Run(ctx context.Context, cfg Config, log *slog.Logger) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	durability := cfg.Durability
	if cfg.Nats.Dial == nil {
		var err error
		if durability, err = outsideDurability(ctx, cfg, log); err != nil {
			return err
		}
		if cfg.Spool == "on" {
			log.Warn("no spool in this version: while NATS is unreachable, callbacks are answered 503 and WeCom repeats them three times")
		}
	}
	callbacks, err := listen(cfg.Listener, "BRIDGE_LISTEN", cfg.Listen)
	if err != nil {
		return err
	}
	defer func() { _ = callbacks.Close() }() // a second Close is harmless
	opsListener, err := listen(cfg.OpsListener, "BRIDGE_OPS_LISTEN", cfg.OpsListen)
	if err != nil {
		return err
	}
	defer func() { _ = opsListener.Close() }()

	cfg.Nats.Log = log
	if cfg.Nats.Name == "" {
		cfg.Nats.Name = "gateway"
	}
	b, err := bus.Connect(ctx, cfg.Nats)
	if err != nil {
		if ctx.Err() != nil {
			return nil // stopped, not failed
		}
		return err
	}
	defer func() {
		c, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		_ = b.Close(c) // nothing waits for an ack any more
	}()
	reg := ops.Registry()
	g, err := New(cfg, b.Publish, reg, log)
	if err != nil {
		return err
	}
	if g.verify != nil {
		defer func() { _ = g.verify.Close() }()
	}
	registerDurability(reg, durability)
	log.Info("gateway started", "listen", callbacks.Addr().String(), "ops", opsListener.Addr().String(),
		"durability", durability, "apps", strings.Join(cfg.Apps, ","))

	tasks, ctx := errgroup.WithContext(ctx)
	tasks.Go(func() error {
		if err := b.Provision(ctx); err != nil && ctx.Err() == nil {
			return fmt.Errorf("provision streams: %w", err)
		}
		return nil
	})
	tasks.Go(func() error {
		g.probe(ctx, instance())
		return nil
	})
	tasks.Go(func() error {
		return ops.Serve(ctx, ops.Server(g.Handler(), 5*time.Second, 10*time.Second, log), callbacks, grace)
	})
	tasks.Go(func() error {
		return ops.Serve(ctx, ops.Server(ops.Handler(reg, g.ready(durability)), 10*time.Second, 30*time.Second, log), opsListener, grace)
	})
	err = tasks.Wait()
	log.Info("gateway stopped")
	return err
}

// listen returns open, or opens a TCP listener; the error names the variable to change.
func listen(open net.Listener, variable, addr string) (net.Listener, error) {
	if open != nil {
		return open, nil
	}
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	return ln, nil
}

// instance names this process on the bus.
func instance() string {
	host, err := os.Hostname()
	if err != nil || host == "" {
		host = "gateway"
	}
	return fmt.Sprintf("%s-%d", host, os.Getpid())
}

// acks remembers when the bus last took something and when it last failed to, in
// nanoseconds since 1970.
type acks struct{ good, bad atomic.Int64 }

// succeeded may be called for every event: it writes only once in a while, so that the
// processors need not pass the value to and fro.
func (a *acks) succeeded(t time.Time) {
	if now, good := t.UnixNano(), a.good.Load(); now-good > int64(100*time.Millisecond) || good <= a.bad.Load() {
		a.good.Store(now)
	}
}

func (a *acks) failed(t time.Time) { a.bad.Store(t.UnixNano()) }

func (a *acks) ready(now time.Time) bool {
	good := a.good.Load()
	return good > a.bad.Load() && now.UnixNano()-good < int64(readyFor)
}

// probe keeps asking the bus for an ack, so that readiness is known without traffic.
func (g *Gateway) probe(ctx context.Context, instance string) {
	m := &bus.Msg{Subject: bus.ProbeSubject(instance), Wait: time.Second}
	for {
		_, err := g.publish(ctx, m)
		if ctx.Err() != nil {
			return
		}
		pause := probeEvery
		if err == nil {
			g.acks.succeeded(g.now())
		} else {
			g.acks.failed(g.now())
			pause = 500 * time.Millisecond // notice the recovery soon
		}
		t := time.NewTimer(pause)
		select {
		case <-ctx.Done():
			t.Stop()
			return
		case <-t.C:
		}
	}
}

// readiness is the body of /readyz.
type readiness struct {
	Status     string            `json:"status"`
	Durability string            `json:"durability"`
	Apps       map[string]string `json:"apps"`
}

func (g *Gateway) ready(durability string) ops.Ready {
	return func() (bool, any) {
		body := readiness{Status: "ok", Durability: durability, Apps: make(map[string]string)}
		ok := g.acks.ready(g.now())
		if !ok {
			body.Status = "unavailable"
		}
		for name := range g.apps {
			body.Apps[name] = "ok"
		}
		return ok, body
	}
}

// outsideDurability asks the monitoring port of an outside NATS whether it syncs
// before it acknowledges. Unread, the answer is "unknown", with a warning; known to be
// weaker than demanded, it is an error.
func outsideDurability(ctx context.Context, cfg Config, log *slog.Logger) (string, error) {
	if cfg.NatsMonitorURL == "" {
		log.Warn("durability of the outside NATS is unknown; set BRIDGE_NATS_MONITOR_URL to have it checked", "demanded", cfg.Durability)
		return "unknown", nil
	}
	always, err := syncAlways(ctx, cfg.NatsMonitorURL)
	switch {
	case err != nil:
		log.Warn("durability of the outside NATS could not be read", "demanded", cfg.Durability, "err", err)
		return "unknown", nil
	case always:
		return Fsync, nil
	case cfg.Durability == Fsync:
		return "", errors.New("BRIDGE_DURABILITY: fsync is demanded, but the outside NATS acknowledges before it syncs; set sync_interval: always there, or BRIDGE_DURABILITY=interval here")
	}
	return Interval, nil
}

// syncAlways reads the server's JetStream configuration from /varz.
func syncAlways(ctx context.Context, monitor string) (bool, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(monitor, "/")+"/varz", nil)
	if err != nil {
		return false, errors.New("BRIDGE_NATS_MONITOR_URL: is not a URL such as http://nats:8222")
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return false, err
	}
	defer func() { _ = res.Body.Close() }()
	if res.StatusCode != http.StatusOK {
		return false, fmt.Errorf("read %s: status %d", req.URL.Redacted(), res.StatusCode)
	}
	var varz struct {
		JetStream struct {
			Config *struct {
				SyncAlways bool `json:"sync_always"`
			} `json:"config"`
		} `json:"jetstream"`
	}
	if err := json.NewDecoder(io.LimitReader(res.Body, 1<<20)).Decode(&varz); err != nil {
		return false, fmt.Errorf("read %s: %w", req.URL.Redacted(), err)
	}
	if varz.JetStream.Config == nil {
		return false, fmt.Errorf("read %s: JetStream is not enabled there", req.URL.Redacted())
	}
	return varz.JetStream.Config.SyncAlways, nil
}
