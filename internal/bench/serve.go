package bench

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"runtime"
	"runtime/pprof"
	"sync/atomic"
	"time"

	"github.com/go-chi/chi/v5"
	"golang.org/x/sync/errgroup"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/embed"
	"github.com/wecom-bridge/wecom-bridge/internal/gateway"
	"github.com/wecom-bridge/wecom-bridge/internal/ops"
	"github.com/wecom-bridge/wecom-bridge/internal/worker"
)

// The roles of a child process.
const (
	roleChi     = "chi"     // reads the body and answers 200
	roleDecode  = "decode"  // our gateway, whose publish returns at once
	roleGateway = "gateway" // our gateway with a NATS, its own or another one
	roleNATS    = "nats"    // a NATS server
	roleWorker  = "worker"  // our worker
)

// settings is what a child is told on the first line of its standard input.
type settings struct {
	Dir      string     `json:",omitempty"` // where a NATS server in this process stores
	Sync     bool       `json:",omitempty"` // it syncs before each ack
	NATS     string     `json:",omitempty"` // URL of another NATS server to use
	API      string     `json:",omitempty"` // URL of WeCom's API
	LogLevel slog.Level // of the log, which goes to /dev/null
	Profile  string     `json:",omitempty"` // file name, without ending, for profiles of what happens between begin and end
}

// hello is what a child says, on a line of its standard output, when it is ready.
type hello struct {
	Addr string `json:",omitempty"` // where it takes callbacks
	NATS string `json:",omitempty"` // URL of the NATS server in it
}

// sample is what a child answers to each of the commands begin and end.
type sample struct {
	Mallocs uint64 // allocations since the process began
	Stored  uint64 // events in the stream, or given to publish
	Err     string `json:",omitempty"`
}

const (
	begin = "begin"
	end   = "end"
)

// Serve plays one of the servers that [Run] measures, in a process of its own. It takes
// its orders from in, answers them on out and returns when in or ctx ends. It is of no
// use to anybody but Run.
//
// It calls tune, which may be nil, before it plays one of our programs, and says whether
// that has a NATS server in it: what those do with the runtime before all else. The
// servers that they are compared with run as Go and NATS have it.
func Serve(ctx context.Context, role string, in io.Reader, out io.Writer, tune func(server bool)) error {
	lines := bufio.NewScanner(in)
	if !lines.Scan() {
		return errors.New("bench: no settings on standard input; this command is started by the benchmark")
	}
	var set settings
	if err := json.Unmarshal(lines.Bytes(), &set); err != nil {
		return fmt.Errorf("bench: settings: %w", err)
	}
	if tune != nil && role != roleChi && role != roleNATS {
		tune(role == roleGateway && set.NATS == "")
	}
	if set.Profile != "" {
		runtime.MemProfileRate = 64 << 10 // rather more exact than usual
	}
	log, err := quietLog(set.LogLevel)
	if err != nil {
		return err
	}
	s := &server{settings: set, log: log, stored: func(context.Context) (uint64, error) { return 0, nil }}
	ctx, stop := context.WithCancel(ctx)
	defer stop()
	tasks, ctx := errgroup.WithContext(ctx)
	s.tasks = tasks
	said, err := s.start(ctx, role)
	if err == nil {
		err = json.NewEncoder(out).Encode(said)
	}
	if err != nil {
		stop()
		err = errors.Join(err, tasks.Wait())
		s.close()
		return err
	}
	// The reading of standard input cannot be interrupted, so nobody waits for it. It ends
	// with the process.
	go func() {
		defer stop()
		for lines.Scan() {
			if err := json.NewEncoder(out).Encode(s.obey(ctx, lines.Text())); err != nil {
				return
			}
		}
	}()
	err = tasks.Wait()
	s.close()
	return err
}

// server is the child's side.
type server struct {
	settings
	log    *slog.Logger
	tasks  *errgroup.Group
	stored func(context.Context) (uint64, error)
	closer []func()
	cpu    *os.File
}

func (s *server) close() {
	for i := len(s.closer) - 1; i >= 0; i-- {
		s.closer[i]()
	}
}

// start begins to play a role and returns when the part is ready.
func (s *server) start(ctx context.Context, role string) (hello, error) {
	switch role {
	case roleChi:
		r := chi.NewRouter()
		r.Post("/callback/{app}", func(w http.ResponseWriter, r *http.Request) {
			_, _ = io.Copy(io.Discard, r.Body) // the generator sees that it gets no answer
		})
		// The same server with the same limits as the gateway's: what is compared is what
		// the handlers do.
		return s.listen(ctx, ops.Server(r, 5*time.Second, 10*time.Second, s.log))
	case roleDecode:
		var published atomic.Uint64
		s.stored = func(context.Context) (uint64, error) { return published.Load(), nil }
		publish := func(context.Context, *bus.Msg) (bus.Ack, error) {
			published.Add(1)
			return bus.Ack{}, nil
		}
		g, err := gateway.New(s.gatewayConfig(), publish, ops.Registry(), s.log)
		if err != nil {
			return hello{}, err
		}
		return s.listen(ctx, ops.Server(g.Handler(), 5*time.Second, 10*time.Second, s.log))
	case roleGateway:
		return s.gateway(ctx)
	case roleNATS:
		nats, err := s.nats(ctx)
		if err != nil {
			return hello{}, err
		}
		s.tasks.Go(func() error { <-ctx.Done(); return nil })
		return hello{NATS: nats.URL()}, nil
	case roleWorker:
		cfg := worker.Config{
			Apps: []string{appName}, OpsListen: "127.0.0.1:0", Nats: bus.Options{URL: s.NATS},
			API: worker.APIConfig{URL: s.API}, AckWait: 30 * time.Second, RulesSource: []byte(rules),
			App: []worker.App{{Name: appName, CorpID: corpID, AgentID: agentID, Secret: secret}},
		}
		s.tasks.Go(func() error { return worker.Run(ctx, cfg, s.log) })
		return hello{}, nil
	}
	return hello{}, fmt.Errorf("bench: no role %q", role)
}

// listen serves on a free port of the loopback.
func (s *server) listen(ctx context.Context, srv *http.Server) (hello, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return hello{}, err
	}
	s.tasks.Go(func() error { return ops.Serve(ctx, srv, ln, time.Second) })
	return hello{Addr: ln.Addr().String()}, nil
}

func (s *server) nats(ctx context.Context) (*embed.Server, error) {
	nats, err := embed.Start(ctx, embed.Options{Dir: s.Dir, Listen: "127.0.0.1:0", Sync: s.Sync, Log: s.log})
	if err != nil {
		return nil, err
	}
	s.closer = append(s.closer, nats.Shutdown)
	return nats, nil
}

func (s *server) gatewayConfig() gateway.Config {
	return gateway.Config{
		Apps: []string{appName}, Durability: gateway.Interval, Spool: "off",
		App: []gateway.App{{Name: appName, Kind: "app", CorpID: corpID, Token: []string{pair.Token}, AESKey: []string{pair.AESKey}}},
	}
}

// gateway runs the gateway as cmd/gateway does and returns when it is ready.
func (s *server) gateway(ctx context.Context) (hello, error) {
	cfg := s.gatewayConfig()
	if s.Sync {
		cfg.Durability = gateway.Fsync
	}
	cfg.Nats.URL = s.NATS
	var said hello
	if s.NATS == "" {
		nats, err := s.nats(ctx)
		if err != nil {
			return hello{}, err
		}
		cfg.Nats.Dial, said.NATS = nats.Dial, nats.URL()
	}
	var err error
	if cfg.Listener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return hello{}, err
	}
	if cfg.OpsListener, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
		return hello{}, errors.Join(err, cfg.Listener.Close())
	}
	said.Addr = cfg.Listener.Addr().String()
	s.tasks.Go(func() error { return gateway.Run(ctx, cfg, s.log) })

	// A connection of our own, to look into the stream.
	look := cfg.Nats
	look.Name, look.Log = "bench", s.log
	b, err := bus.Connect(ctx, look)
	if err != nil {
		return hello{}, err
	}
	s.closer = append(s.closer, func() {
		c, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Second)
		defer cancel()
		_ = b.Close(c) // nothing is under way
	})
	s.stored = func(ctx context.Context) (uint64, error) {
		// Nothing is ever removed from the stream, so the last sequence number counts them.
		last, err := b.Last(ctx, bus.StreamEvents, "wecom.event.>")
		switch {
		case errors.Is(err, bus.ErrNotFound):
			return 0, nil
		case err != nil:
			return 0, err
		}
		return last.Seq, nil
	}
	return said, untilReady(ctx, "http://"+cfg.OpsListener.Addr().String()+"/readyz")
}

// untilReady asks url until it answers 200.
func untilReady(ctx context.Context, url string) error {
	limit, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	client := &http.Client{Timeout: 5 * time.Second}
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for {
		req, err := http.NewRequestWithContext(limit, http.MethodGet, url, nil)
		if err != nil {
			return err
		}
		if res, err := client.Do(req); err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				client.CloseIdleConnections()
				return nil
			}
		}
		select {
		case <-limit.Done():
			return errors.New("not ready in 20 s")
		case <-tick.C:
		}
	}
}

// obey carries out a command.
func (s *server) obey(ctx context.Context, command string) sample {
	var out sample
	var err error
	switch command {
	case begin:
		err = s.profile()
	case end:
		err = s.profileEnd()
	default:
		err = fmt.Errorf("no command %q", command)
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	out.Mallocs = m.Mallocs
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	var storedErr error
	out.Stored, storedErr = s.stored(ctx)
	if err = errors.Join(err, storedErr); err != nil {
		out.Err = err.Error()
	}
	return out
}

// profile begins a CPU profile if one is wanted.
func (s *server) profile() error {
	if s.Profile == "" {
		return nil
	}
	f, err := os.Create(s.Profile + ".cpu.prof")
	if err != nil {
		return err
	}
	s.cpu = f
	return pprof.StartCPUProfile(f)
}

// profileEnd ends it and writes it, and one of the allocations since the beginning.
func (s *server) profileEnd() error {
	if s.cpu == nil {
		return nil
	}
	pprof.StopCPUProfile()
	err := s.cpu.Close()
	s.cpu = nil
	f, createErr := os.Create(s.Profile + ".allocs.prof")
	if createErr != nil {
		return errors.Join(err, createErr)
	}
	return errors.Join(err, pprof.Lookup("allocs").WriteTo(f, 0), f.Close())
}

// quietLog returns a logger that does the work of production, a JSON object for each
// line, and throws it away; warnings also go to standard error, where Run finds them if
// something goes wrong.
func quietLog(level slog.Level) (*slog.Logger, error) {
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	log, _ := ops.Log(null, level) // nobody misses the last lines
	l := log.Handler().(ops.Liner)
	return slog.New(&alarmed{
		alarms: alarms{Handler: l, alarm: slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelWarn})},
		line:   l.Line,
	}), nil
}

// alarms is a handler that writes warnings to a second one.
type alarms struct {
	slog.Handler
	alarm slog.Handler
}

// alarmed is the first of them, which takes finished lines too.
type alarmed struct {
	alarms
	line func([]byte)
}

func (a *alarmed) Line(line []byte) { a.line(line) }

func (a *alarms) Handle(ctx context.Context, r slog.Record) error {
	if a.alarm.Enabled(ctx, r.Level) {
		_ = a.alarm.Handle(ctx, r.Clone()) // the log proper goes on
	}
	return a.Handler.Handle(ctx, r)
}

func (a *alarms) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &alarms{a.Handler.WithAttrs(attrs), a.alarm.WithAttrs(attrs)}
}

func (a *alarms) WithGroup(name string) slog.Handler {
	return &alarms{a.Handler.WithGroup(name), a.alarm.WithGroup(name)}
}
