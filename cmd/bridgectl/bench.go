package main

import (
	"context"
	"os"

	"github.com/wecom-bridge/wecom-bridge/cmd/internal/env"
	"github.com/wecom-bridge/wecom-bridge/internal/bench"
)

type benchCommand struct{ bench.Options }

// Help is shown by bridgectl bench --help.
func (benchCommand) Help() string {
	return "It compares the gateway with a bare chi handler in the same run, all on loopback, each server a process of its own. " +
		"What carries over to another machine is the ratios. Leave the machine alone meanwhile."
}

func (c benchCommand) Run(ctx context.Context) error { return bench.Run(ctx, c.Options, os.Stdout) }

// serveCommand is what bench runs for each server that it measures.
type serveCommand struct {
	Role string `arg:""`
}

func (c serveCommand) Run(ctx context.Context) error {
	return bench.Serve(ctx, c.Role, os.Stdin, os.Stdout, env.TuneMemory)
}
