// Command bridgectl is the developer's and operator's tool: it runs the whole bridge on
// one machine, plays WeCom, and measures.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"github.com/alecthomas/kong"
	_ "golang.org/x/crypto/x509roots/fallback" // an image FROM scratch has no certificates
)

// version is set when the program is built, see the Makefile.
var version = "devel"

type commands struct {
	Dev    devCommand    `cmd:"" help:"Run simulator, gateway, worker and NATS in one process, and talk to the bot in a chat page."`
	Sim    simCommand    `cmd:"" help:"Run a WeCom to develop against: its API, its callbacks, a chat page."`
	Events eventsCommand `cmd:"" help:"Print events as they are stored, one JSON object a line."`
	Bench  benchCommand  `cmd:"" help:"Measure the bridge on this machine and print a table."`
	Serve  serveCommand  `cmd:"" name:"bench-serve" hidden:""`

	Version kong.VersionFlag `help:"Print the version."`
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills at once
	parser := newParser(ctx)
	k, err := parser.Parse(os.Args[1:])
	parser.FatalIfErrorf(err)
	if err := k.Run(); err != nil {
		fmt.Fprintln(os.Stderr, "bridgectl:", err)
		os.Exit(1)
	}
}

func newParser(ctx context.Context) *kong.Kong {
	return kong.Must(new(commands),
		kong.Name("bridgectl"),
		kong.Description("The developer's and operator's tool of wecom-bridge."),
		kong.UsageOnError(),
		kong.Vars{"version": version},
		kong.BindTo(ctx, (*context.Context)(nil)),
	)
}
