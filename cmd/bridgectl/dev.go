package main

import (
	"context"
	_ "embed"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/wecom-bridge/wecom-bridge/bridge"
	"github.com/wecom-bridge/wecom-bridge/cmd/internal/env"
	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/embed"
	"github.com/wecom-bridge/wecom-bridge/internal/gateway"
	"github.com/wecom-bridge/wecom-bridge/internal/ops"
	"github.com/wecom-bridge/wecom-bridge/internal/wecomsim"
	"github.com/wecom-bridge/wecom-bridge/internal/worker"
)

// devApp is the app of dev where the environment names none. Its secrets are known to
// everybody and good for nothing but the simulator on this machine.
var devApp = map[string]string{
	"BRIDGE_APPS":              "demo",
	"BRIDGE_APP_DEMO_CORP_ID":  "ww00aa11bb22cc33dd",
	"BRIDGE_APP_DEMO_AGENT_ID": "1000002",
	"BRIDGE_APP_DEMO_TOKEN":    "DevelopmentOnly",
	"BRIDGE_APP_DEMO_AES_KEY":  "DevelopmentOnlyDevelopmentOnlyDevelopment12",
	"BRIDGE_APP_DEMO_SECRET":   "development-only",
}

//go:embed rules.yaml
var devRules string

type devCommand struct {
	Say  string `help:"Send this text, print the reply alone on stdout, and exit."`
	User string `help:"Who says it." default:"alice"`
}

// Help is shown by bridgectl dev --help.
func (devCommand) Help() string {
	return "Everything runs in this process on the code of production, and nothing leaves the machine. It makes one round trip " +
		"by itself, prints it, and stays until Ctrl-C with a chat page at http://127.0.0.1:8090/. The bot follows BRIDGE_RULES " +
		"if that is set. With --say it uses free ports, so that it may run beside another one. Data lies in a temporary folder " +
		"unless BRIDGE_DATA_DIR is set."
}

// sayLimit is how long --say waits for a reply.
const sayLimit = 10 * time.Second

func (c devCommand) Run(ctx context.Context) error {
	if os.Getenv("BRIDGE_APPS") == "" {
		for name, value := range devApp {
			if os.Getenv(name) == "" {
				if err := os.Setenv(name, value); err != nil {
					return err
				}
			}
		}
	}
	story := newStory()
	warnings, flush := ops.Log(os.Stderr, slog.LevelWarn)
	defer flush()
	log := slog.New(story.handler(warnings.Handler()))
	return runDev(ctx, c.Say != "", log, func(ctx context.Context, d *dev) error {
		if c.Say != "" {
			return d.say(ctx, story, c.User, c.Say, os.Stdout, os.Stderr)
		}
		if err := d.say(ctx, story, "alice", "你好", io.Discard, os.Stderr); err != nil {
			return err
		}
		fmt.Fprintf(os.Stderr, `
  Chat page   http://%s/
  Gateway     http://%s/callback/%s   metrics http://%s/metrics
  NATS        %s   try: go run ./cmd/bridgectl events
  Stop        Ctrl-C
`, d.simAddr, d.gatewayAddr, d.app, d.opsAddr, d.natsURL)
		<-ctx.Done()
		return nil
	})
}

// dev is a whole bridge in this process.
type dev struct {
	app                    string // the first of BRIDGE_APPS
	sim                    *wecomsim.Server
	simAddr, gatewayAddr   string
	opsAddr, workerOpsAddr string
	natsURL                string
}

// runDev starts every part, calls use once the gateway is ready, and stops everything
// when use returns. With private it takes free ports in place of the usual ones.
func runDev(ctx context.Context, private bool, log *slog.Logger, use func(context.Context, *dev) error) error {
	gatewayConfig, err := env.ReadGateway()
	if err != nil {
		return err
	}
	workerConfig, err := env.ReadWorker()
	if err != nil {
		return err
	}
	simConfig, apps, err := readSim()
	if err != nil {
		return err
	}
	scratch, err := os.MkdirTemp("", "wecom-bridge-dev-")
	if err != nil {
		return err
	}
	defer func() { _ = os.RemoveAll(scratch) }() // a leftover in the temporary folder harms nobody

	// Ports: the callback listener is opened here, because the simulator has to know it.
	addr := func(variable, configured, usual string) string {
		switch {
		case private:
			return "127.0.0.1:0"
		case os.Getenv(variable) != "":
			return configured
		}
		return usual
	}
	if gatewayConfig.Listener, err = listen("BRIDGE_LISTEN", addr("BRIDGE_LISTEN", gatewayConfig.Listen, "127.0.0.1:8080")); err != nil {
		return err
	}
	defer func() { _ = gatewayConfig.Listener.Close() }()
	if gatewayConfig.OpsListener, err = listen("BRIDGE_OPS_LISTEN", addr("BRIDGE_OPS_LISTEN", gatewayConfig.OpsListen, "127.0.0.1:9090")); err != nil {
		return err
	}
	defer func() { _ = gatewayConfig.OpsListener.Close() }()
	simListener, err := listen("BRIDGE_SIM_LISTEN", addr("BRIDGE_SIM_LISTEN", simConfig.SimListen, "127.0.0.1:8090"))
	if err != nil {
		return err
	}
	defer func() { _ = simListener.Close() }()
	d := &dev{
		app: apps[0].Name, simAddr: simListener.Addr().String(),
		gatewayAddr: gatewayConfig.Listener.Addr().String(), opsAddr: gatewayConfig.OpsListener.Addr().String(),
	}

	dataDir := filepath.Join(scratch, "data")
	if os.Getenv("BRIDGE_DATA_DIR") != "" && !private {
		dataDir = gatewayConfig.DataDir
	}
	if gatewayConfig.Nats.URL == "" {
		nats, err := embed.Start(ctx, embed.Options{
			Dir: filepath.Join(dataDir, "nats"), Listen: addr("", "", "127.0.0.1:4222"),
			Sync: gatewayConfig.Durability == gateway.Fsync, Log: log,
		})
		if err != nil {
			return err
		}
		defer nats.Shutdown()
		gatewayConfig.Nats.Dial = nats.Dial
		workerConfig.Nats.URL = nats.URL()
	}
	d.natsURL = workerConfig.Nats.URL

	if d.sim, err = wecomsim.New(wecomsim.Config{
		CallbackURLs: []string{"http://" + d.gatewayAddr + "/callback/"}, Apps: apps, Log: log,
	}); err != nil {
		return err
	}
	workerConfig.API.URL = "http://" + d.simAddr
	if workerConfig.OpsListener, err = listen("worker's health and metrics", addr("", "", "127.0.0.1:9091")); err != nil {
		return err
	}
	defer func() { _ = workerConfig.OpsListener.Close() }()
	d.workerOpsAddr = workerConfig.OpsListener.Addr().String()

	ctx, stop := context.WithCancel(ctx)
	defer stop()
	tasks, ctx := errgroup.WithContext(ctx)
	if workerConfig.Rules == "" {
		jobs, err := listen("demonstration service", "127.0.0.1:0")
		if err != nil {
			return err
		}
		tasks.Go(func() error {
			return ops.Serve(ctx, ops.Server(http.HandlerFunc(restartJob), 10*time.Second, 10*time.Second, log), jobs, time.Second)
		})
		workerConfig.RulesSource = []byte(strings.Replace(devRules, "http://jobs.internal", "http://"+jobs.Addr().String(), 1))
	}
	tasks.Go(func() error { return serveSim(ctx, d.sim, simListener, log) })
	tasks.Go(func() error { return gateway.Run(ctx, gatewayConfig, log) })
	tasks.Go(func() error { return worker.Run(ctx, workerConfig, log) })
	tasks.Go(func() error {
		defer stop()
		if err := d.ready(ctx); err != nil {
			return err
		}
		tasks.Go(func() error { return d.link(ctx, workerConfig.Nats) })
		return use(ctx, d)
	})
	return tasks.Wait()
}

func listen(variable, addr string) (net.Listener, error) {
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", variable, err)
	}
	return ln, nil
}

// ready waits until gateway and worker do their work.
func (d *dev) ready(ctx context.Context) error {
	limit, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	for _, addr := range []string{d.opsAddr, d.workerOpsAddr} {
		if err := awaitReady(limit, "http://"+addr+"/readyz"); err != nil {
			if ctx.Err() != nil {
				return nil // stopped, not failed
			}
			return fmt.Errorf("not ready after 30 s: %w", err)
		}
	}
	check, err := d.sim.Verify(ctx, d.app)
	if err != nil {
		return err
	}
	if !check.OK {
		return fmt.Errorf("URL verification of app %s: %s", d.app, check.Reason)
	}
	return nil
}

func awaitReady(ctx context.Context, url string) error {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	for {
		res, err := http.DefaultClient.Do(req)
		if err == nil {
			_ = res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return nil
			}
			err = fmt.Errorf("%s: %s", url, res.Status)
		}
		select {
		case <-ctx.Done():
			return err
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// link tells the simulator which of the bot's messages answers which event. Only the
// bridge knows that, and the chat page shows it.
func (d *dev) link(ctx context.Context, login bus.Options) error {
	b, err := bus.Connect(ctx, login)
	if err != nil {
		if ctx.Err() != nil {
			return nil // stopped, not failed
		}
		return err
	}
	defer func() { _ = b.Close(context.WithoutCancel(ctx)) }()
	err = b.Tail(ctx, bus.StreamReceipts, "wecom.receipt.>", false, func(s *bus.Stored) {
		var r struct{ Data bridge.Receipt }
		if json.Unmarshal(s.Data, &r) == nil {
			d.sim.Link(r.Data.MsgID, r.Data.Event)
		}
	})
	if ctx.Err() != nil {
		return nil
	}
	return err
}

// restartJob plays the service that the rule restart-job calls: it gets the event and
// answers with a message for the member.
func restartJob(w http.ResponseWriter, r *http.Request) {
	ev := new(bridge.Event)
	if err := json.NewDecoder(io.LimitReader(r.Body, 1<<20)).Decode(ev); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	m := bridge.Text("", "The job was restarted for "+ev.User()+".")
	_ = json.NewEncoder(w).Encode(map[string]any{"messages": []json.RawMessage{m.Body}}) // the worker tries again
}

// say sends text as user and waits for the reply, which goes to reply; what happened on
// the way goes to trace.
func (d *dev) say(ctx context.Context, story *story, user, text string, reply, trace io.Writer) error {
	ctx, cancel := context.WithTimeout(ctx, sayLimit)
	defer cancel()
	before := len(d.sim.Inbox(user))
	start := time.Now()
	said, err := d.sim.Say(ctx, wecomsim.SayRequest{App: d.app, User: user, Content: text})
	if err != nil {
		return err
	}
	answered := time.Now()
	if !said.Delivered() {
		return fmt.Errorf("the gateway did not take the callback: %s", said.Attempts[len(said.Attempts)-1].Error)
	}
	inbox, err := d.sim.Wait(ctx, user, before)
	if err != nil {
		return fmt.Errorf("no reply within %v", sayLimit)
	}
	got := inbox[before]
	steps := append(story.complete(ctx, said.Event),
		step{start, "WeCom", fmt.Sprintf("%s says %q; the callback is signed, encrypted and posted", user, text)},
		step{answered, "WeCom", "the gateway's empty 200 is here"},
		step{got.Time, "phone", fmt.Sprintf("%s sees %q", user, got.Content)},
	)
	printSteps(trace, start, said.Event, steps)
	_, err = fmt.Fprintln(reply, got.Content)
	return err
}
