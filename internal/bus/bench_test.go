package bus_test

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"testing"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/bustest"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/embed"
)

// brokers are where the benchmarks run. The server shares the cores and the
// allocation count with the client, except in a container.
var brokers = []struct {
	name string
	opts func(b *testing.B) bus.Options
}{
	{"embedded", inProcess(false)},
	{"embedded-fsync", inProcess(true)},
	{"TCP", func(b *testing.B) bus.Options { return bus.Options{URL: bustest.Start(b).URL()} }},
}

func inProcess(sync bool) func(b *testing.B) bus.Options {
	return func(b *testing.B) bus.Options {
		s, err := embed.Start(b.Context(), embed.Options{Dir: b.TempDir(), Sync: sync})
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(s.Shutdown)
		return bus.Options{Dial: s.Dial}
	}
}

// publishers runs f in parallel with a new ID each time.
func publishers(b *testing.B, clients int, f func(id string) error) {
	b.Helper()
	var n atomic.Int64
	b.ReportAllocs()
	b.SetParallelism(max(1, clients/2)) // of two cores
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			if err := f("demo/m-71000000000" + strconv.FormatInt(n.Add(1), 10)); err != nil {
				b.Error(err)
				return
			}
		}
	})
	b.StopTimer()
}

const benchSubject = "wecom.event.17.demo.message.text"

// BenchmarkPublish: 700 bytes, an ID and a header, many goroutines.
func BenchmarkPublish(b *testing.B) {
	for _, br := range brokers {
		for _, clients := range []int{1, 64, 256} {
			b.Run(fmt.Sprintf("%s/%d", br.name, clients), func(b *testing.B) {
				c := connectWith(b, br.opts(b))
				provision(b, c)
				data := make([]byte, 700)
				header := bus.Header{"Content-Type": "application/cloudevents+json"}
				publishers(b, clients, func(id string) error {
					_, err := c.Publish(context.Background(), &bus.Msg{Subject: benchSubject, ID: id, Header: header, Data: data})
					return err
				})
			})
		}
	}
}

type dialer func() (net.Conn, error)

func (d dialer) InProcessConn() (net.Conn, error) { return d() }

// BenchmarkLibrary is BenchmarkPublish with the two ways that nats.go offers.
func BenchmarkLibrary(b *testing.B) {
	for _, br := range brokers {
		for _, async := range []bool{false, true} {
			b.Run(fmt.Sprintf("%s/async=%v/64", br.name, async), func(b *testing.B) {
				o := br.opts(b)
				provision(b, connectWith(b, o))
				var opts []nats.Option
				if o.Dial != nil {
					opts = append(opts, nats.InProcessServer(dialer(o.Dial)))
				}
				nc, err := nats.Connect(o.URL, opts...)
				if err != nil {
					b.Fatal(err)
				}
				defer nc.Close()
				js, err := jetstream.New(nc, jetstream.WithPublishAsyncMaxPending(4096))
				if err != nil {
					b.Fatal(err)
				}
				data := make([]byte, 700)
				publishers(b, 64, func(id string) error {
					m := &nats.Msg{Subject: benchSubject, Data: data, Header: nats.Header{
						"Content-Type": {"application/cloudevents+json"}, "Nats-Msg-Id": {id}}}
					if !async {
						_, err := js.PublishMsg(context.Background(), m)
						return err
					}
					f, err := js.PublishMsgAsync(m)
					if err != nil {
						return err
					}
					select {
					case <-f.Ok():
						return nil
					case err := <-f.Err():
						return err
					}
				})
			})
		}
	}
}

// BenchmarkConsume: an empty handler, every ack confirmed, one process.
func BenchmarkConsume(b *testing.B) {
	for _, lanes := range []int{1, 32} {
		b.Run(fmt.Sprintf("lanes=%d", lanes), func(b *testing.B) {
			c := provisioned(b, bustest.Start(b).URL())
			data := make([]byte, 700)
			sem := make(chan struct{}, 512)
			for i := range b.N {
				sem <- struct{}{}
				go func() {
					defer func() { <-sem }()
					if _, err := c.Publish(b.Context(), &bus.Msg{Subject: bus.EventSubject(i%bus.Slots, "demo", []string{"message", "text"}), Data: data}); err != nil {
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
			done := make(chan struct{})
			ended := make(chan error, 1)
			b.ReportAllocs()
			b.ResetTimer()
			go func() {
				con := events("bench")
				con.Lanes = lanes
				ended <- c.Consume(ctx, con, func(context.Context, *bus.Delivery) error {
					if n.Add(1) == int64(b.N) {
						close(done)
					}
					return nil
				})
			}()
			select {
			case <-done:
			case err := <-ended:
				b.Fatal(err)
			}
			b.StopTimer()
		})
	}
}
