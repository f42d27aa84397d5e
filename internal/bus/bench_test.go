package bus_test

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/bustest"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/embed"
)

func benchBus(b *testing.B, o bus.Options) *bus.Bus {
	b.Helper()
	o.Name = "bench"
	c, err := bus.Connect(b.Context(), o)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = c.Close(context.Background()) })
	if err := c.Provision(b.Context()); err != nil {
		b.Fatal(err)
	}
	return c
}

// BenchmarkPublish: many goroutines, 700 bytes, an ID and a header.
func BenchmarkPublish(b *testing.B) {
	embedded := func(sync bool) func(b *testing.B) bus.Options {
		return func(b *testing.B) bus.Options {
			s, err := embed.Start(b.Context(), embed.Options{Dir: b.TempDir(), Sync: sync})
			if err != nil {
				b.Fatal(err)
			}
			b.Cleanup(s.Shutdown)
			return bus.Options{Dial: func() (net.Conn, error) { return s.Dial() }}
		}
	}
	for _, bc := range []struct {
		name string
		opts func(b *testing.B) bus.Options
	}{
		{"embedded", embedded(false)},
		{"embedded-fsync", embedded(true)},
		{"TCP", func(b *testing.B) bus.Options { return bus.Options{URL: bustest.Start(b).URL()} }},
	} {
		for _, clients := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("%s/%d", bc.name, clients), func(b *testing.B) {
				c := benchBus(b, bc.opts(b))
				data := make([]byte, 700)
				var n atomic.Int64
				run := strconv.FormatInt(time.Now().UnixNano(), 36)
				header := bus.Header{"Content-Type": "application/cloudevents+json"}
				b.ReportAllocs()
				b.SetParallelism(clients / 2)
				b.ResetTimer()
				var r0, r1 syscall.Rusage
				_ = syscall.Getrusage(0, &r0) // cannot fail with these arguments
				defer func() {
					_ = syscall.Getrusage(0, &r1)
					b.ReportMetric(float64(r1.Utime.Nano()+r1.Stime.Nano()-r0.Utime.Nano()-r0.Stime.Nano())/float64(b.N), "cpu-ns/op")
				}()
				b.RunParallel(func(pb *testing.PB) {
					m := bus.Msg{Subject: "wecom.event.17.demo.message.text", Header: header, Data: data}
					for pb.Next() {
						m.ID = "demo/m-" + run + strconv.FormatInt(n.Add(1), 10)
						if _, err := c.Publish(context.Background(), &m); err != nil {
							b.Error(err)
							return
						}
					}
				})
			})
		}
	}
}

// BenchmarkConsume: an empty handler, 32 lanes, one process.
func BenchmarkConsume(b *testing.B) {
	c := benchBus(b, bus.Options{URL: bustest.Start(b).URL()})
	sem := make(chan struct{}, 512)
	for i := range b.N {
		sem <- struct{}{}
		go func() {
			defer func() { <-sem }()
			if _, err := c.Publish(b.Context(), &bus.Msg{Subject: bus.EventSubject(i%bus.Slots, "demo", []string{"message", "text"}), Data: make([]byte, 700)}); err != nil {
				b.Error(err)
			}
		}()
	}
	for range cap(sem) {
		sem <- struct{}{}
	}
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	var n atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	err := c.Consume(ctx, bus.Consumer{Stream: bus.StreamEvents, Name: "bench", Subject: "wecom.event.*.>"}, func(context.Context, *bus.Delivery) error {
		if n.Add(1) == int64(b.N) {
			cancel()
		}
		return nil
	})
	if err != nil {
		b.Fatal(err)
	}
	b.StopTimer()
}
