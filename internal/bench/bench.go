// Package bench measures the bridge on the machine that it runs on.
//
// It sends callbacks to several servers, each a process of its own, one after the other
// and round after round, so that a noisy machine disturbs all of them alike: a bare chi
// handler that reads the body and answers 200, our gateway without and with a NATS. What
// carries over from one machine to another is the ratio to the bare handler in the same
// round, not the number of requests. Beside that it measures how long a user waits for a
// reply, with the simulator in the place of WeCom.
//
// It is honest in this: every answer is checked, each callback is another one, and the
// stream must hold exactly as many events as there were answers with 200. Everything
// stays on the loopback, and everything that was started is stopped.
package bench

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"
)

// Options says what to measure. The tags are those of kong.
type Options struct {
	Cells    []string      `default:"chi,decode,interval,fsync,tcp,reply" enum:"chi,decode,interval,fsync,tcp,reply" help:"What to measure: ${enum}. Ratios need chi."`
	Conns    []int         `default:"64,256" help:"Numbers of connections, one after the other."`
	Rounds   int           `default:"3" help:"How often each server is measured; medians are shown."`
	Duration time.Duration `default:"3s" help:"How long a server is measured in each round."`

	ReplyRate     int           `default:"200" help:"Messages a second for reply."`
	ReplyDuration time.Duration `default:"10s" help:"How long reply is measured, for each durability."`

	LogLevel slog.Level `default:"info" help:"Log level of the gateway; its log goes to /dev/null."`
	Dir      string     `help:"Where the events are stored, in a folder that is removed again. By default the temporary folder, or the working directory if that one is in memory."`
	Profile  string     `help:"Folder for CPU and allocation profiles of the last round. Profiling costs a few percent."`

	// Child is the command that plays a server: a program and its first arguments; the
	// role comes behind. It must call Serve. If it is empty, this program is run with
	// bench-serve.
	Child []string `kong:"-"`
}

const (
	// warmUp is how long each server is under load before it is measured, at most.
	warmUp = 500 * time.Millisecond
	// supply is how many callbacks are made for each second of a run. A server that
	// stores faster than that is measured for a shorter time.
	supply = 60_000
)

var errRefused = errors.New("requests were not answered 200")

// cell is a server to measure under load.
type cell struct {
	name, title string
	role        string
	sync        bool // its NATS server syncs before each ack
	tcp         bool // its NATS server is another process
	events      bool // it makes events, which are counted
	goal        goal
}

// goal is what a cell has to reach, as ratios to the bare handler; 0: nothing.
type goal struct {
	rate   float64 // requests a second, at least
	cpu    float64 // processor time, at most
	allocs float64 // allocations for each request, at most
}

var cells = []cell{
	{name: "chi", title: "bare chi: body read, 200", role: roleChi},
	{name: "decode", title: "gateway, no publish", role: roleDecode, events: true, goal: goal{rate: 0.85, cpu: 1.2}},
	{name: "interval", title: "gateway, embedded NATS, interval", role: roleGateway, events: true, goal: goal{rate: 0.55, cpu: 2.1}},
	{name: "fsync", title: "gateway, embedded NATS, fsync", role: roleGateway, sync: true, events: true, goal: goal{rate: 0.30}},
	{name: "tcp", title: "gateway, NATS over TCP, interval", role: roleGateway, tcp: true, events: true, goal: goal{rate: 0.42, cpu: 2.0, allocs: 55}},
}

const replyCell = "reply"

// measure is what one run of a cell gave.
type measure struct {
	rate      float64 // answers with 200 a second
	p50, p99  float64 // milliseconds
	cpu       float64 // of the server, milliseconds for 1,000 requests
	brokerCPU float64 // of the NATS server, if it is another process
	loadCPU   float64 // of the generator
	allocs    float64 // for each request
	peak      float64 // memory of the server, MB
	errors    int
	short     bool // the callbacks were used up before the time was
}

// Run measures what o asks for and writes a table to out, and a line for every round
// while it goes on. It takes about a minute for each round with all cells.
//
// It fails if a server does not start, if any answer was not 200, or if events were lost
// or stored twice; that a goal was missed is told in the table and is not an error. Only
// one Run should go on at a time on a machine. It works on Linux alone.
func Run(ctx context.Context, o Options, out io.Writer) (err error) {
	if !supported {
		return errors.New("bench: needs Linux")
	}
	if len(o.Child) == 0 {
		self, err := os.Executable()
		if err != nil {
			return fmt.Errorf("bench: %w", err)
		}
		o.Child = []string{self, "bench-serve"}
	}
	if err := o.check(); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	b := &bench{Options: o, out: out, threads: max(1, runtime.NumCPU()/4)}
	if b.dir, err = o.tempDir(); err != nil {
		return fmt.Errorf("bench: %w", err)
	}
	defer func() { err = errors.Join(err, os.RemoveAll(b.dir)) }()
	if err := b.run(ctx); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err() // what broke, broke because of that
		}
		return fmt.Errorf("bench: %w", err)
	}
	return nil
}

func (o *Options) check() error {
	var errs []error
	for _, name := range o.Cells {
		if name != replyCell && !slices.ContainsFunc(cells, func(c cell) bool { return c.name == name }) {
			errs = append(errs, fmt.Errorf("no cell %q", name))
		}
	}
	for _, n := range o.Conns {
		if n < 1 || n > 10_000 {
			errs = append(errs, fmt.Errorf("%d connections: want 1 to 10,000", n))
		}
	}
	if o.Rounds < 1 || o.Rounds > 100 {
		errs = append(errs, fmt.Errorf("%d rounds: want 1 to 100", o.Rounds))
	}
	if o.Duration < 100*time.Millisecond || o.Duration > time.Minute {
		errs = append(errs, fmt.Errorf("duration %v: want 100ms to 1m", o.Duration))
	}
	if o.ReplyDuration < time.Second || o.ReplyDuration > time.Minute {
		errs = append(errs, fmt.Errorf("reply duration %v: want 1s to 1m", o.ReplyDuration))
	}
	if o.ReplyRate < 1 || o.ReplyRate > 2000 {
		errs = append(errs, fmt.Errorf("reply rate %d: want 1 to 2,000 a second", o.ReplyRate))
	}
	return errors.Join(errs...)
}

// tempDir makes the folder that the events are stored in.
func (o *Options) tempDir() (string, error) {
	in := o.Dir
	if in == "" {
		if in = os.TempDir(); inMemory(in) {
			in = "."
		}
	}
	dir, err := os.MkdirTemp(in, "wecom-bridge-bench-")
	if err != nil {
		return "", err
	}
	return filepath.Abs(dir)
}

// bench is one Run.
type bench struct {
	Options
	out      io.Writer
	dir      string
	threads  int // of the generator
	requests *requests
	runs     int
}

// profile returns where a child writes its profiles, "" if it shall not.
func (b *bench) profile(name string) (string, error) {
	if b.Profile == "" {
		return "", nil
	}
	dir, err := filepath.Abs(b.Profile)
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, name), os.MkdirAll(dir, 0o755)
}

func (b *bench) wants(name string) bool { return slices.Contains(b.Cells, name) }

func (b *bench) run(ctx context.Context) error {
	var chosen []cell
	for _, c := range cells {
		if b.wants(c.name) {
			chosen = append(chosen, c)
		}
	}
	var err error
	if len(chosen) > 0 {
		if err = b.underLoad(ctx, chosen); err != nil && !errors.Is(err, errRefused) {
			return err
		}
	}
	if b.wants(replyCell) {
		err = errors.Join(err, b.replies(ctx))
	}
	return err
}

// underLoad measures the cells and prints the tables.
func (b *bench) underLoad(ctx context.Context, chosen []cell) error {
	began := time.Now()
	n := int((b.Duration + min(warmUp, b.Duration)).Seconds() * supply)
	var err error
	if b.requests, err = seal(n, runtime.NumCPU()); err != nil {
		return err
	}
	fmt.Fprintf(b.out, "%d callbacks sealed in %.1f s, %d bytes each (body %d); %d processors, %s; load generator: %d thread(s)\n",
		n, time.Since(began).Seconds(), b.requests.size, b.requests.body, runtime.NumCPU(), runtime.Version(), b.threads)
	fmt.Fprintf(b.out, "gateway: log level %s (at INFO a JSON line for each event), to /dev/null; bare chi: the same server limits, no log, Go's default garbage collection; events in %s%s\n\n",
		b.LogLevel, b.dir, map[bool]string{true: " (in memory: an fsync costs nothing there)"}[inMemory(b.dir)])

	var reports []report
	bad := 0
	for _, conns := range b.Conns {
		r := report{conns: conns, cells: chosen, runs: make([][]measure, len(chosen))}
		for round := range b.Rounds {
			fmt.Fprintf(b.out, "%d connections, round %d of %d:", conns, round+1, b.Rounds)
			for i, c := range chosen {
				m, err := b.measure(ctx, c, conns, round == b.Rounds-1)
				if err != nil {
					fmt.Fprintln(b.out)
					return fmt.Errorf("%s: %w", c.title, err)
				}
				fmt.Fprintf(b.out, " %s %.0f/s", c.name, m.rate)
				r.runs[i] = append(r.runs[i], m)
				bad += m.errors
			}
			fmt.Fprintln(b.out)
		}
		reports = append(reports, r)
	}
	fmt.Fprintf(b.out, "\nMedians of %d rounds of %v. CPU: processor time of the server process for 1,000 requests, in ms; in brackets lowest and highest.\n", b.Rounds, b.Duration)
	for _, r := range reports {
		r.print(b.out)
	}
	if bad > 0 {
		return fmt.Errorf("%d %w", bad, errRefused)
	}
	return nil
}

// measure starts what a cell needs, puts it under load and stops it.
func (b *bench) measure(ctx context.Context, c cell, conns int, last bool) (m measure, err error) {
	b.runs++
	set := settings{Sync: c.sync, LogLevel: b.LogLevel, Dir: filepath.Join(b.dir, fmt.Sprint(b.runs))}
	defer func() { err = errors.Join(err, os.RemoveAll(set.Dir)) }()
	if last {
		if set.Profile, err = b.profile(fmt.Sprintf("%s-%d", c.name, conns)); err != nil {
			return m, err
		}
	}
	var broker *child
	if c.tcp {
		brokerSet := settings{Sync: c.sync, Dir: set.Dir, LogLevel: b.LogLevel}
		if broker, err = startChild(ctx, b.Child, roleNATS, brokerSet); err != nil {
			return m, err
		}
		defer func() { err = errors.Join(err, broker.stop()) }()
		set.NATS = broker.NATS
	}
	srv, err := startChild(ctx, b.Child, c.role, set)
	if err != nil {
		return m, err
	}
	defer func() { err = errors.Join(err, srv.stop()) }()

	addr, err := netip.ParseAddrPort(srv.Addr)
	if err != nil {
		return m, err
	}
	g, err := dial(addr, conns, min(b.threads, conns))
	if err != nil {
		return m, err
	}
	defer g.close()
	next := b.requests.again()
	if c.role == roleGateway {
		next = b.requests.once()
	}
	warm, err := g.run(ctx, next, min(warmUp, b.Duration))
	if err != nil {
		return m, err
	}
	before, err := snapshot(srv, broker, begin)
	if err != nil {
		return m, err
	}
	got, err := g.run(ctx, next, b.Duration)
	if err != nil {
		return m, err
	}
	after, err := snapshot(srv, broker, end)
	if err != nil {
		return m, err
	}
	if got.ok == 0 {
		return m, fmt.Errorf("no request was answered 200: %s", got.complaints())
	}
	m.errors = warm.errors() + got.errors()
	if m.errors > 0 {
		fmt.Fprintf(b.out, " [%s: %s]", c.name, strings.TrimSpace(warm.complaints()+" "+got.complaints()))
	}
	// A callback that was not answered 200 may have been stored all the same: WeCom would
	// send it again, and it would be a duplicate.
	if ok := warm.ok + got.ok; c.events && (after.Stored < uint64(ok) || after.Stored > uint64(ok+m.errors)) {
		return m, fmt.Errorf("%d callbacks were answered 200, but there are %d events", ok, after.Stored)
	}
	thousands := float64(got.ok) / 1000
	ms := func(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) / thousands }
	m.rate = float64(got.ok) / got.took.Seconds()
	m.p50 = float64(got.latency.ValueAtQuantile(50)) / 1000
	m.p99 = float64(got.latency.ValueAtQuantile(99)) / 1000
	m.cpu = ms(after.cpu - before.cpu)
	m.brokerCPU = ms(after.brokerCPU - before.brokerCPU)
	m.loadCPU = ms(after.loadCPU - before.loadCPU)
	m.allocs = float64(after.Mallocs-before.Mallocs) / float64(got.ok)
	m.peak = float64(after.peak) / 1e6
	m.short = got.took < b.Duration*9/10
	return m, nil
}

// state is what the processes have used so far.
type state struct {
	sample
	cpu, brokerCPU, loadCPU time.Duration
	peak                    int64
}

// snapshot asks for everything. What it costs itself falls outside of the two snapshots
// round a run, but for reading some files.
func snapshot(srv, broker *child, command string) (s state, err error) {
	read := func() {
		var errs [4]error
		s.cpu, errs[0] = cpuTime(srv.cmd.Process.Pid)
		s.loadCPU, errs[1] = cpuTime(os.Getpid())
		if broker != nil {
			s.brokerCPU, errs[2] = cpuTime(broker.cmd.Process.Pid)
		}
		s.peak, errs[3] = peakMemory(srv.cmd.Process.Pid)
		err = errors.Join(err, errors.Join(errs[:]...))
	}
	if command == end {
		read()
	}
	var askErr error
	s.sample, askErr = srv.ask(command)
	if command == begin {
		read()
	}
	return s, errors.Join(err, askErr)
}
