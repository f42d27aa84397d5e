package main

import (
	"bufio"
	"context"
	"os"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
)

type eventsCommand struct {
	URL    string `help:"NATS servers, comma-separated." default:"nats://127.0.0.1:4222" env:"BRIDGE_NATS_URL"`
	Creds  string `help:"File with the NATS credentials." env:"BRIDGE_NATS_CREDS" type:"path"`
	NKey   string `help:"File with an nkey seed." env:"BRIDGE_NATS_NKEY" type:"path" name:"nkey"`
	CA     string `help:"File with the certificates to trust." env:"BRIDGE_NATS_CA" type:"path" name:"ca"`
	Cert   string `help:"File with the client's certificate." env:"BRIDGE_NATS_CERT" type:"path"`
	Key    string `help:"File with the client's key." env:"BRIDGE_NATS_KEY" type:"path"`
	All    bool   `help:"Start with the oldest stored event rather than the next new one."`
	Filter string `help:"App and type, such as demo.message.text or *.event.click." default:">"`
}

// Help is shown by bridgectl events --help.
func (eventsCommand) Help() string {
	return "It only looks: no consumer is left behind, and nobody else misses an event. Events hold what members wrote, and some hold short-lived credentials."
}

func (c eventsCommand) Run(ctx context.Context) error {
	b, err := bus.Connect(ctx, bus.Options{URL: c.URL, Name: "bridgectl", Creds: c.Creds, NKey: c.NKey, CA: c.CA, Cert: c.Cert, Key: c.Key})
	if err != nil {
		return err
	}
	defer func() { _ = b.Close(context.WithoutCancel(ctx)) }()
	out := bufio.NewWriter(os.Stdout)
	return b.Tail(ctx, bus.StreamEvents, "wecom.event.*."+c.Filter, c.All, func(s *bus.Stored) {
		_, _ = out.Write(s.Data)
		_ = out.WriteByte('\n')
		_ = out.Flush()
	})
}
