// Package embed runs the broker, a NATS server with JetStream, inside this process.
// Only commands and tests import it, so that a consumer's program does not carry a
// server.
package embed

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats-server/v2/server"
)

// MaxPayload is the largest message that the server takes, in bytes.
const MaxPayload = 8 << 20

const readyLimit = 5 * time.Second // from the end of the start to the first connection

// Options says where the server keeps its data and who may reach it.
type Options struct {
	Dir string // data directory, made if it is missing; one server at a time

	// Listen is host:port for other processes; port 0 picks a free one. Empty: nobody
	// else can connect, only [Server.Dial] does.
	Listen string

	// User and Password are what every client must show, those that use Dial too; give
	// them in the URL. Without them Listen must be a loopback address.
	User, Password string

	Sync bool         // fsync before every ack, rather than every two minutes
	Log  *slog.Logger // nil: no log
}

// Server is a running server.
type Server struct {
	ns   *server.Server
	lock *os.File
	once sync.Once
}

// Start runs a server on o.Dir and returns when it takes connections. A directory
// that another server uses, an address in use and an address that is open to others
// without a login are errors that say so. A large store takes a while to be read
// again; ctx is looked at afterwards.
func Start(ctx context.Context, o Options) (*Server, error) {
	s, err := start(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("start embedded NATS: %w", err)
	}
	return s, nil
}

func start(ctx context.Context, o Options) (*Server, error) {
	if o.Dir == "" {
		return nil, errors.New("no data directory given")
	}
	opts := &server.Options{
		ServerName:             "wecom-bridge",
		DontListen:             true,
		NoSigs:                 true,
		DisableJetStreamBanner: true,
		MaxPayload:             MaxPayload,
		JetStream:              true,
		StoreDir:               filepath.Join(o.Dir, "nats"),
		SyncAlways:             o.Sync,
		JetStreamMaxMemory:     64 << 20,
		// Not a limit but out of the way: each stream has its own, and a store that has
		// become too small for what the streams reserve would not open again.
		JetStreamMaxStore: 1 << 40,
		Username:          o.User,
		Password:          o.Password,
	}
	if o.Listen != "" {
		if err := listen(opts, o); err != nil {
			return nil, err
		}
	}
	if err := os.MkdirAll(opts.StoreDir, 0o700); err != nil {
		return nil, err
	}
	lock, err := lockDir(o.Dir)
	if err != nil {
		return nil, err
	}
	s := &Server{lock: lock}
	log := newLogger(o.Log)
	if s.ns, err = server.NewServer(opts); err != nil {
		unlock(lock)
		return nil, err
	}
	s.ns.SetLoggerV2(log, false, false, false)
	// Start reads the store, which takes as long as it takes and cannot be interrupted.
	// Asked before that is done, ReadyForConnections would sleep.
	s.ns.Start()
	if !s.ns.ReadyForConnections(readyLimit) {
		err = errors.New("not ready for connections: " + log.fatal())
	}
	if ctx.Err() != nil {
		err = ctx.Err()
	}
	if err != nil {
		s.Shutdown()
		return nil, err
	}
	if !s.ns.JetStreamEnabled() {
		s.Shutdown()
		return nil, fmt.Errorf("no JetStream: %s", log.fatal())
	}
	return s, nil
}

// listen checks the address before the server, whose own report comes late and as a
// line of log.
func listen(opts *server.Options, o Options) error {
	host, port, err := net.SplitHostPort(o.Listen)
	if err != nil {
		return fmt.Errorf("listen address %q: %w", o.Listen, err)
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 0 || n > 65535 {
		return fmt.Errorf("listen address %q: no such port", o.Listen)
	}
	if !loopback(host) && (o.User == "" || o.Password == "") {
		return fmt.Errorf("listen address %q: others could connect, and there is no login; use 127.0.0.1 or set one", o.Listen)
	}
	ln, err := net.Listen("tcp", o.Listen)
	if err != nil {
		return err // says "address already in use" and which
	}
	if err := ln.Close(); err != nil {
		return err
	}
	opts.DontListen, opts.Host, opts.Port = false, host, n
	if host == "" {
		opts.Host = "0.0.0.0"
	}
	if n == 0 {
		opts.Port = server.RANDOM_PORT
	}
	return nil
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip := net.ParseIP(host)
	return ip != nil && ip.IsLoopback()
}

// Dial returns a new connection to the server that does not use the network.
func (s *Server) Dial() (net.Conn, error) { return s.ns.InProcessConn() }

// URL returns where other processes find the server, without the login; empty if it
// does not listen.
func (s *Server) URL() string {
	a, ok := s.ns.Addr().(*net.TCPAddr)
	if !ok || a == nil {
		return ""
	}
	host := a.IP.String()
	if a.IP.IsUnspecified() {
		host = "127.0.0.1"
	}
	return (&url.URL{Scheme: "nats", Host: net.JoinHostPort(host, strconv.Itoa(a.Port))}).String()
}

// Shutdown stops the server and returns when its data is written and its directory
// free. Calling it again does nothing.
func (s *Server) Shutdown() {
	s.once.Do(func() {
		s.ns.Shutdown()
		s.ns.WaitForShutdown()
		unlock(s.lock)
	})
}
