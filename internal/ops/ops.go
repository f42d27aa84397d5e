// Package ops is what a program shows to the person who runs it: its log, its health,
// its metrics.
//
// The operations listener serves /healthz, /readyz and /metrics. It is meant for
// loopback or a cluster's inner network, never for the internet.
package ops

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// Registry returns a registry with the metrics of the process and the Go runtime.
func Registry() *prometheus.Registry {
	reg := prometheus.NewRegistry()
	reg.MustRegister(collectors.NewGoCollector(), collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return reg
}

// Ready tells whether a program can do its work now, and what to show about it. The
// body is encoded as JSON; it must hold no secret.
type Ready func() (ok bool, body any)

// Handler serves /healthz, which is 200 while the process lives, /readyz, which is 200
// or 503 as ready says, and /metrics.
func Handler(reg *prometheus.Registry, ready Ready) http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) {
		answer(w, http.StatusOK, map[string]string{"status": "ok"})
	})
	mux.HandleFunc("GET /readyz", func(w http.ResponseWriter, _ *http.Request) {
		ok, body := ready()
		status := http.StatusOK
		if !ok {
			status = http.StatusServiceUnavailable
		}
		answer(w, status, body)
	})
	mux.Handle("GET /metrics", promhttp.HandlerFor(reg, promhttp.HandlerOpts{}))
	return mux
}

func answer(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body) // the peer is gone: nobody to tell
}

// Server returns a server with limits that no honest client meets: 5 s for the header,
// read and write for the two halves of an exchange, 2 minutes idle, 16 KiB of header.
// A write of 0 leaves the answer unbounded, for streams. What net/http has to say (a
// TLS handshake that failed, a panic) goes to log as a warning.
func Server(h http.Handler, read, write time.Duration, log *slog.Logger) *http.Server {
	return &http.Server{
		Handler:           h,
		ReadHeaderTimeout: min(5*time.Second, read),
		ReadTimeout:       read,
		WriteTimeout:      write,
		IdleTimeout:       2 * time.Minute,
		MaxHeaderBytes:    16 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelWarn),
	}
}

// Serve answers on ln until ctx ends, then lets open requests finish for at most
// grace, and cuts the rest off. It closes ln. Nothing of it runs after it returned.
func Serve(ctx context.Context, srv *http.Server, ln net.Listener, grace time.Duration) error {
	done := make(chan error, 1)
	stop := context.AfterFunc(ctx, func() {
		c, cancel := context.WithTimeout(context.WithoutCancel(ctx), grace)
		defer cancel()
		err := srv.Shutdown(c)
		if errors.Is(err, context.DeadlineExceeded) {
			err = srv.Close()
		}
		done <- err
	})
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		if !stop() {
			<-done //nolint:errcheck // what Serve says is the cause
		}
		return err
	}
	return <-done
}
