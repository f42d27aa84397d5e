// Command gateway answers WeCom's callbacks and stores them as events in NATS
// JetStream. It is configured by environment variables; gateway -h prints them.
//
// Without BRIDGE_NATS_URL it runs a JetStream server of its own on 127.0.0.1:4222,
// for the worker and other consumers on the same machine.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"

	_ "golang.org/x/crypto/x509roots/fallback" // an image FROM scratch has no certificates

	"github.com/wecom-bridge/wecom-bridge/cmd/internal/env"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/embed"
	"github.com/wecom-bridge/wecom-bridge/internal/gateway"
	"github.com/wecom-bridge/wecom-bridge/internal/ops"
)

// version is set when the program is built, see the Makefile.
var version = "devel"

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills at once
	err := run(ctx, os.Args[1:], os.Stderr)
	switch {
	case errors.Is(err, flag.ErrHelp):
	case err != nil:
		fmt.Fprintln(os.Stderr, "gateway:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	if err := env.Flags("gateway", "gateway "+version+" answers WeCom's callbacks and stores them as events in NATS JetStream.", args, os.Stdout, env.Gateway()); err != nil {
		return err
	}
	cfg, err := env.ReadGateway()
	if err != nil {
		return err
	}
	env.TuneMemory(cfg.Nats.URL == "")
	log, flush := ops.Log(stderr, cfg.LogLevel)
	defer flush()
	if cfg.Nats.URL == "" {
		srv, err := embed.Start(ctx, embed.Options{
			Dir: filepath.Join(cfg.DataDir, "nats"), Listen: "127.0.0.1:4222",
			Sync: cfg.Durability == gateway.Fsync, Log: log,
		})
		if err != nil {
			return fmt.Errorf("embedded NATS (BRIDGE_NATS_URL is empty): %w", err)
		}
		defer srv.Shutdown()
		cfg.Nats.Dial = srv.Dial
	}
	return gateway.Run(ctx, cfg, log)
}
