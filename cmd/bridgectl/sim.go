package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"time"

	"github.com/wecom-bridge/wecom-bridge/cmd/internal/env"
	"github.com/wecom-bridge/wecom-bridge/internal/ops"
	"github.com/wecom-bridge/wecom-bridge/internal/wecomsim"
)

// simConfig is what the simulator takes from the environment, beside the apps.
type simConfig struct {
	Apps           []string   `required:"true" desc:"names of the apps, comma-separated"`
	SimListen      string     `split_words:"true" default:"127.0.0.1:8090" desc:"address of the simulated WeCom and its chat page"`
	SimCallbackURL []string   `split_words:"true" default:"http://127.0.0.1:8080/callback/" desc:"where callbacks go; the app's name is appended; several are used in turn"`
	LogLevel       slog.Level `split_words:"true" default:"info" desc:"debug, info, warn or error"`
}

// simApp is both halves of an app's settings: those of the gateway and those of the
// worker.
type simApp struct {
	Kind       string   `default:"app" desc:"kind of source, as for the gateway"`
	CorpID     string   `split_words:"true" desc:"corp id"`
	AgentID    string   `split_words:"true" desc:"number of the app"`
	Secret     string   `secret:"true" desc:"app secret"`
	Token      []string `secret:"true" required:"true" desc:"callback Token; of several the first is used"`
	AESKey     []string `split_words:"true" secret:"true" required:"true" desc:"EncodingAESKey; of several the first is used"`
	ReceiveIds []string `split_words:"true" desc:"receive ids; of several the first is used"`
}

func readSim() (simConfig, []wecomsim.App, error) {
	var cfg simConfig
	var apps []wecomsim.App
	err := env.Read(env.Prefix, &cfg)
	err = errors.Join(err, env.Apps(cfg.Apps, func(name string, a simApp) {
		apps = append(apps, wecomsim.App{
			Name: name, Kind: a.Kind, CorpID: a.CorpID, AgentID: a.AgentID, Secret: a.Secret,
			Token: first(a.Token), AESKey: first(a.AESKey), ReceiveID: first(a.ReceiveIds),
		})
	}))
	if err != nil {
		return cfg, nil, fmt.Errorf("configuration:\n%w", err)
	}
	return cfg, apps, nil
}

func first(list []string) string {
	if len(list) == 0 {
		return ""
	}
	return list[0]
}

type simCommand struct{}

// Help is shown by bridgectl sim --help.
func (simCommand) Help() string {
	return "It takes the apps from BRIDGE_APPS and BRIDGE_APP_<NAME>_*, like gateway and worker do, and listens on " +
		"BRIDGE_SIM_LISTEN (127.0.0.1:8090). Callbacks go to BRIDGE_SIM_CALLBACK_URL (http://127.0.0.1:8080/callback/, " +
		"the app's name is appended; several, comma-separated, are used in turn). A worker reaches it with " +
		"BRIDGE_API_URL=http://127.0.0.1:8090. It is for development: whoever reaches it may speak for anybody."
}

func (simCommand) Run(ctx context.Context) error {
	cfg, apps, err := readSim()
	if err != nil {
		return err
	}
	log, flush := ops.Log(os.Stderr, cfg.LogLevel)
	defer flush()
	ln, err := net.Listen("tcp", cfg.SimListen)
	if err != nil {
		return fmt.Errorf("BRIDGE_SIM_LISTEN: %w", err)
	}
	sim, err := wecomsim.New(wecomsim.Config{CallbackURLs: cfg.SimCallbackURL, Apps: apps, Log: log})
	if err != nil {
		_ = ln.Close()
		return err
	}
	log.Info("simulator started", "page", "http://"+ln.Addr().String()+"/", "callbacks", cfg.SimCallbackURL)
	return serveSim(ctx, sim, ln, log)
}

// serveSim serves sim on ln until ctx ends. Streams to pages end at once, so that they
// do not hold up the stop.
func serveSim(ctx context.Context, sim *wecomsim.Server, ln net.Listener, log *slog.Logger) error {
	stop := context.AfterFunc(ctx, sim.Close)
	defer stop()
	defer sim.Close()
	return ops.Serve(ctx, ops.Server(sim, time.Minute, 0, log), ln, 2*time.Second)
}
