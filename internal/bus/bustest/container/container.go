// Package container lets bustest run its broker in a container. A test program that
// imports it for its side effect offers that kind; it is a package of its own because
// a Docker client is a lot to compile for the programs that do not.
//
// The image is made of nothing but the server, built from the module that go.mod
// pins, so neither a registry nor a network is needed.
package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/testcontainers/testcontainers-go"
	tclog "github.com/testcontainers/testcontainers-go/log"

	"github.com/wecom-bridge/wecom-bridge/internal/bus/bustest"
)

func init() { bustest.NewContainer = newBroker }

const (
	module = "github.com/nats-io/nats-server/v2"
	repo   = "wecom-bridge-test-nats"

	limit = 60 * time.Second // for anything the engine is asked to do; a build may take longer
)

const dockerfile = `FROM scratch
COPY nats-server nats.conf /
STOPSIGNAL SIGKILL
ENTRYPOINT ["/nats-server", "-c", "/nats.conf"]
`

const config = `
max_payload: 8MB
http: 0.0.0.0:8222
jetstream { store_dir: /data, max_mem: 64MB }
`

// broker is one container. Its file system, and so its data, stays until Close.
type broker struct {
	c         testcontainers.Container
	nats, web string // addresses on this machine
}

func newBroker() (bustest.Broker, error) {
	image, err := image()
	if err != nil {
		return nil, err
	}
	// The same ports after a restart: the engine would choose new ones.
	b := &broker{}
	for _, addr := range []*string{&b.nats, &b.web} {
		if *addr, err = freeAddr(); err != nil {
			return nil, err
		}
	}
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	b.c, err = testcontainers.GenericContainer(ctx, testcontainers.GenericContainerRequest{
		ContainerRequest: testcontainers.ContainerRequest{
			Image:        image,
			ExposedPorts: []string{"4222/tcp", "8222/tcp"},
			HostConfigModifier: func(h *container.HostConfig) {
				h.PortBindings = network.PortMap{
					network.MustParsePort("4222/tcp"): {binding(b.nats)},
					network.MustParsePort("8222/tcp"): {binding(b.web)},
				}
			},
		},
	})
	if err != nil {
		return nil, fmt.Errorf("create container: %w", err)
	}
	return b, nil
}

func binding(addr string) network.PortBinding {
	host, port, _ := net.SplitHostPort(addr) // freeAddr's
	return network.PortBinding{HostIP: netip.MustParseAddr(host), HostPort: port}
}

func freeAddr() (string, error) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", err
	}
	defer ln.Close()
	return ln.Addr().String(), nil
}

func (b *broker) URL() string { return "nats://" + b.nats }

func (b *broker) Run() error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if err := b.c.Start(ctx); err != nil {
		return err
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		err := b.healthy(ctx)
		if err == nil {
			return nil
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return fmt.Errorf("not healthy: %w", err)
		}
	}
}

func (b *broker) healthy(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, time.Second)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+b.web+"/healthz", nil)
	if err != nil {
		return err
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return errors.New(resp.Status)
	}
	return nil
}

// Stop ends the server in an orderly way, by the signal that its own binary sends.
func (b *broker) Stop() error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	if _, out, err := b.c.Exec(ctx, []string{"/nats-server", "--signal", "term=1"}); err != nil {
		return fmt.Errorf("signal: %w", err)
	} else if out != nil {
		_, _ = io.Copy(io.Discard, out) // until the signal is sent, or the server gone with it
	}
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := b.c.State(ctx)
		if err != nil {
			return err
		}
		if !st.Running {
			return b.Kill() // the client's own record
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			return errors.New("does not stop")
		}
	}
}

// Kill ends the server by SIGKILL, which is the image's stop signal.
func (b *broker) Kill() error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return b.c.Stop(ctx, nil)
}

func (b *broker) Close() error {
	ctx, cancel := context.WithTimeout(context.Background(), limit)
	defer cancel()
	return b.c.Terminate(ctx)
}

// image returns the tag of the server's image, which is built once and kept by the
// engine for the next test program.
var image = sync.OnceValues(func() (tag string, err error) {
	// No reaper: its image would have to come from a registry. Cleanup is Close's.
	if err := os.Setenv("TESTCONTAINERS_RYUK_DISABLED", "true"); err != nil {
		return "", err
	}
	if _, err := os.Stat("/.dockerenv"); err == nil && os.Getenv("TESTCONTAINERS_HOST_OVERRIDE") == "" {
		// We are in a container that shares the engine's network.
		if err := os.Setenv("TESTCONTAINERS_HOST_OVERRIDE", "127.0.0.1"); err != nil {
			return "", err
		}
	}
	tclog.SetDefault(log.New(io.Discard, "", 0))
	defer func() {
		if p := recover(); p != nil { // the library's way to say that it found no engine
			err = fmt.Errorf("%w: %v", bustest.ErrNoEngine, p)
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 5*limit)
	defer cancel()
	provider, err := testcontainers.NewDockerProvider()
	if err != nil {
		return "", fmt.Errorf("%w: %w", bustest.ErrNoEngine, err)
	}
	defer func() { _ = provider.Close() }()
	// The library falls back to the usual socket when DOCKER_HOST does not answer; who
	// set it meant that one.
	if want, have := os.Getenv("DOCKER_HOST"), provider.Client().DaemonHost(); want != "" && want != have {
		return "", fmt.Errorf("%w at DOCKER_HOST %s", bustest.ErrNoEngine, want)
	}
	if err := provider.Health(ctx); err != nil {
		return "", fmt.Errorf("%w: %w", bustest.ErrNoEngine, err)
	}
	version, err := exec.CommandContext(ctx, "go", "list", "-m", "-f", "{{.Version}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("go list: %w", err)
	}
	tag = strings.TrimPrefix(strings.TrimSpace(string(version)), "v") + "-1" // the number counts changes of this file
	images, err := provider.ListImages(ctx)
	if err != nil {
		return "", fmt.Errorf("list images: %w", err)
	}
	for _, i := range images {
		if i.Name == repo+":"+tag {
			return i.Name, nil
		}
	}
	dir, err := os.MkdirTemp("", "bustest-image-")
	if err != nil {
		return "", err
	}
	defer func() { _ = os.RemoveAll(dir) }()
	build := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", "-s -w", "-o", filepath.Join(dir, "nats-server"), module)
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build %s: %w: %s", module, err, out)
	}
	for name, text := range map[string]string{"Dockerfile": dockerfile, "nats.conf": config} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			return "", err
		}
	}
	name, err := provider.BuildImage(ctx, &testcontainers.ContainerRequest{
		FromDockerfile: testcontainers.FromDockerfile{Context: dir, Repo: repo, Tag: tag, KeepImage: true},
	})
	if err != nil {
		return "", fmt.Errorf("build image: %w", err)
	}
	return name, nil
})
