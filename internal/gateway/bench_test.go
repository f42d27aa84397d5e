package gateway

import (
	"context"
	"log/slog"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
)

// nowhere is an answer that nobody reads.
type nowhere struct{ h http.Header }

func (n nowhere) Header() http.Header         { return n.h }
func (n nowhere) Write(b []byte) (int, error) { return len(b), nil }
func (n nowhere) WriteHeader(int)             {}

type body struct{ strings.Reader }

func (*body) Close() error { return nil }

// BenchmarkReceive is a callback's way through the handler, without the network, the
// log's writer and the bus.
func BenchmarkReceive(b *testing.B) {
	cfg := testConfig()
	g, err := New(cfg, func(context.Context, *bus.Msg) (bus.Ack, error) { return bus.Ack{Seq: 1}, nil },
		prometheus.NewRegistry(), slog.New(slog.NewJSONHandler(nowhere{}, nil)))
	if err != nil {
		b.Fatal(err)
	}
	target, text := sealed(b, newPair, "demo", corp, text("7100000000000000001", "how are the builds today?"))
	u, err := url.Parse(target)
	if err != nil {
		b.Fatal(err)
	}
	r := &http.Request{Method: http.MethodPost, URL: u, Header: http.Header{}, ContentLength: int64(len(text))}
	h, w, rd := g.Handler(), nowhere{http.Header{}}, new(body)
	b.ReportAllocs()
	for b.Loop() {
		rd.Reset(text)
		r.Body = rd
		h.ServeHTTP(w, r)
	}
}
