// Command echo-go answers every text that a member sends to a WeCom app with the same text. It
// is a whole consumer: it holds no WeCom secret, and as many as you like may run at once.
//
//	go run ./examples/echo-go -nats nats://127.0.0.1:4222
package main

import (
	"context"
	"flag"
	"fmt"
	"log/slog"
	"os"
	"os/signal"
	"syscall"
	"time"

	"github.com/wecom-bridge/wecom-bridge/bridge"
)

func main() {
	url := flag.String("nats", "nats://127.0.0.1:4222", "NATS servers, comma-separated")
	app := flag.String("app", "*", "name of the app to answer for, * for all")
	flag.Parse()

	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	context.AfterFunc(ctx, stop) // a second signal kills at once
	if err := run(ctx, *url, *app); err != nil {
		fmt.Fprintln(os.Stderr, "echo-go:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, url, app string) error {
	client, err := bridge.Connect(ctx, bridge.Options{
		URL:  url,
		Name: "echo-go",
		Log:  slog.New(slog.NewTextHandler(os.Stderr, nil)),
	})
	if err != nil {
		return err
	}
	// The name is this consumer's place in the stream: all processes that use it share the work,
	// and a new start goes on where the last one ended.
	err = client.Consume(ctx, bridge.Consumer{Name: "echo-go", Filter: app + ".message.text", New: true}, echo)

	// ctx has ended by now; what is still on its way to NATS gets a moment of its own.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	if closed := client.Close(ctx); err == nil {
		err = closed
	}
	return err
}

// echo is the business logic: a function from an event to the messages that answer it.
func echo(_ context.Context, ev *bridge.Event) ([]bridge.Message, error) {
	return bridge.Reply(ev, bridge.Text("", ev.Text())), nil
}
