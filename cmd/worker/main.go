// Command worker handles the events that the gateway stored and sends the messages in
// the outbox through WeCom's API. Any number of replicas may run. It is configured by
// environment variables; worker -h prints them.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"syscall"

	_ "golang.org/x/crypto/x509roots/fallback" // an image FROM scratch has no certificates

	"github.com/wecom-bridge/wecom-bridge/cmd/internal/env"
	"github.com/wecom-bridge/wecom-bridge/internal/ops"
	"github.com/wecom-bridge/wecom-bridge/internal/worker"
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
		fmt.Fprintln(os.Stderr, "worker:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, args []string, stderr io.Writer) error {
	if err := env.Flags("worker", "worker "+version+" handles WeCom's events and sends the messages that answer them.", args, os.Stdout, env.Worker()); err != nil {
		return err
	}
	env.TuneMemory(false)
	cfg, err := env.ReadWorker()
	if err != nil {
		return err
	}
	log, flush := ops.Log(stderr, cfg.LogLevel)
	defer flush()
	return worker.Run(ctx, cfg, log)
}
