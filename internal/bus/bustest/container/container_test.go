package container_test

import (
	"errors"
	"testing"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/bustest"
	_ "github.com/wecom-bridge/wecom-bridge/internal/bus/bustest/container"
)

// The container lane itself, whenever there is an engine: store, kill, find it again,
// stop, find it again.
func TestContainer(t *testing.T) {
	t.Setenv(bustest.Env, "container")
	s := bustest.Start(t)
	if s.Kind() != "container" {
		t.Log("the container lane was NOT RUN: there is no Docker engine")
	}
	b, err := bus.Connect(t.Context(), bus.Options{URL: s.URL(), Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	defer b.Close(t.Context())
	if err := b.Provision(t.Context()); err != nil {
		t.Fatal(err)
	}
	ack, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.1.demo.x", Data: []byte("x")})
	if err != nil {
		t.Fatal(err)
	}
	for _, end := range []func(){s.Kill, s.Stop} {
		end()
		if _, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.1.demo.x"}); !errors.Is(err, bus.ErrUnavailable) {
			t.Errorf("without a server: got %v", err)
		}
		s.Restart()
		if err := b.Provision(t.Context()); err != nil { // waits until it is back
			t.Fatal(err)
		}
		if got, err := b.Get(t.Context(), bus.StreamEvents, ack.Seq); err != nil || string(got.Data) != "x" {
			t.Errorf("after the restart: got %v, %v", got, err)
		}
	}
}
