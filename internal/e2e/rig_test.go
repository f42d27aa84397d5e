package e2e

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/wecom-bridge/wecom-bridge/bridge"
	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/wecomsim"
)

var bin string // folder of the programs under test

func TestMain(m *testing.M) {
	os.Exit(func() int {
		dir, err := os.MkdirTemp("", "wecom-bridge-e2e-")
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		defer func() { _ = os.RemoveAll(dir) }()
		build := exec.Command("go", "build", "-o", dir, "../../cmd/gateway", "../../cmd/worker")
		if out, err := build.CombinedOutput(); err != nil {
			fmt.Fprintf(os.Stderr, "build the programs: %v\n%s", err, out)
			return 1
		}
		bin = dir
		return m.Run()
	}())
}

var demo = wecomsim.App{
	Name: "demo", Kind: "app", CorpID: "ww00aa11bb22cc33dd", AgentID: "1000002", Secret: "s3cret-of-demo",
	Token: "TokenOfDemo", AESKey: "abcdefghijklmnopqrstuvwxyz0123456789ABCDEFG",
}

// rig is a simulated WeCom and what the programs need to know.
type rig struct {
	t        *testing.T
	sim      *wecomsim.Server
	simURL   string
	gateways []string // addresses
	dir      string
	env      []string
}

// lookAtSources makes the result of a test depend on the programs. go test keeps it for
// as long as the files that the test looked at are the same, and does not know what a
// program that is started was built from.
func lookAtSources(t *testing.T) {
	t.Helper()
	if err := filepath.WalkDir("../..", func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".go") && !strings.HasSuffix(path, "_test.go") {
			_, err = os.Stat(path)
		}
		return err
	}); err != nil {
		t.Fatal(err)
	}
}

// newRig prepares for n gateways on free ports.
func newRig(t *testing.T, n int) *rig {
	t.Helper()
	lookAtSources(t)
	r := &rig{t: t, dir: t.TempDir()}
	var urls []string
	for range n {
		addr := freePort(t)
		r.gateways = append(r.gateways, addr)
		urls = append(urls, "http://"+addr+"/callback/")
	}
	var err error
	if r.sim, err = wecomsim.New(wecomsim.Config{CallbackURLs: urls, Apps: []wecomsim.App{demo}}); err != nil {
		t.Fatal(err)
	}
	srv := httptest.NewServer(r.sim)
	t.Cleanup(func() { r.sim.Close(); srv.Close() })
	r.simURL = srv.URL
	rules := filepath.Join(r.dir, "rules.yaml")
	if err := os.WriteFile(rules, []byte("rules:\n  - name: echo\n    when: {type: message.text}\n    reply: {text: \"re {{.Text}}\"}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r.env = []string{
		"PATH=" + os.Getenv("PATH"), "HOME=" + r.dir, "TMPDIR=" + os.TempDir(),
		"BRIDGE_APPS=demo", "BRIDGE_APP_DEMO_CORP_ID=" + demo.CorpID, "BRIDGE_APP_DEMO_AGENT_ID=" + demo.AgentID,
		"BRIDGE_APP_DEMO_SECRET=" + demo.Secret, "BRIDGE_APP_DEMO_TOKEN=" + demo.Token, "BRIDGE_APP_DEMO_AES_KEY=" + demo.AESKey,
		"BRIDGE_DATA_DIR=" + filepath.Join(r.dir, "data"), "BRIDGE_API_URL=" + r.simURL, "BRIDGE_RULES=" + rules,
		"BRIDGE_ACK_WAIT=2s", "BRIDGE_SPOOL=off",
	}
	return r
}

func freePort(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = ln.Close() }()
	return ln.Addr().String()
}

// needEmbedded ends the test with a clear word if the address of the embedded server is
// taken: a leftover there would answer in its place.
func needEmbedded(t *testing.T) {
	t.Helper()
	ln, err := net.Listen("tcp", strings.TrimPrefix(embedded, "nats://"))
	if err != nil {
		t.Fatalf("this test needs the address of a gateway's embedded NATS; stop what listens there, such as make dev: %v", err)
	}
	_ = ln.Close()
}

// process is one program under test.
type process struct {
	t    *testing.T
	cmd  *exec.Cmd
	ops  string
	done chan struct{}
	err  error
	log  *syncBuffer
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// start runs a program; it dies with the test. What it logged is shown when the test
// fails.
func (r *rig) start(program string, env ...string) *process {
	r.t.Helper()
	p := &process{t: r.t, ops: freePort(r.t), done: make(chan struct{}), log: new(syncBuffer)}
	p.cmd = exec.Command(filepath.Join(bin, program))
	p.cmd.Env = slices.Concat(r.env, []string{"BRIDGE_OPS_LISTEN=" + p.ops}, env)
	p.cmd.Stderr = p.log
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	if err := p.cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	go func() { p.err = p.cmd.Wait(); close(p.done) }()
	r.t.Cleanup(func() {
		p.kill()
		if r.t.Failed() {
			lines := strings.Split(p.log.String(), "\n")
			r.t.Logf("%s, last lines of the log:\n%s", program, strings.Join(lines[max(0, len(lines)-30):], "\n"))
		}
	})
	return p
}

func (r *rig) gateway(i int, env ...string) *process {
	r.t.Helper()
	return r.start("gateway", append([]string{"BRIDGE_LISTEN=" + r.gateways[i]}, env...)...)
}

func (p *process) kill() {
	_ = p.cmd.Process.Kill() // it may be gone already
	<-p.done
}

// stop ends the process as an operator does and wants a clean exit.
func (p *process) stop() {
	p.t.Helper()
	_ = p.cmd.Process.Signal(syscall.SIGTERM)
	select {
	case <-p.done:
		if p.err != nil {
			p.t.Errorf("%s: %v after SIGTERM", p.cmd.Path, p.err)
		}
	case <-time.After(20 * time.Second):
		p.t.Errorf("%s still runs 20 s after SIGTERM", p.cmd.Path)
		p.kill()
	}
}

// readyz returns the status of /readyz and its body; 0 when nobody answers.
func (p *process) readyz() (int, map[string]any) {
	res, err := (&http.Client{Timeout: 2 * time.Second}).Get("http://" + p.ops + "/readyz")
	if err != nil {
		return 0, nil
	}
	defer func() { _ = res.Body.Close() }()
	var body map[string]any
	_ = json.NewDecoder(res.Body).Decode(&body)
	return res.StatusCode, body
}

func (p *process) awaitReady(want int) {
	p.t.Helper()
	eventually(p.t, 20*time.Second, func() error {
		select {
		case <-p.done:
			return fatal{fmt.Errorf("%s ended: %w\n%s", p.cmd.Path, p.err, p.log)}
		default:
		}
		if got, body := p.readyz(); got != want {
			return fmt.Errorf("readyz: got %d %v, want %d", got, body, want)
		}
		return nil
	})
}

type fatal struct{ error }

// eventually calls check until it returns nil, at most for limit.
func eventually(t *testing.T, limit time.Duration, check func() error) {
	t.Helper()
	deadline := time.Now().Add(limit)
	for {
		err := check()
		if err == nil {
			return
		}
		var end fatal
		if errors.As(err, &end) || time.Now().After(deadline) {
			t.Fatalf("after %v: %v", limit, err)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// chat has users say texts first to last-1 each, every user's in order, and returns how
// many were not acknowledged.
func (r *rig) chat(users, first, last int) (lost int) {
	r.t.Helper()
	var wg sync.WaitGroup
	var mu sync.Mutex
	for u := range users {
		wg.Go(func() {
			for n := first; n < last; n++ {
				res, err := r.sim.Say(r.t.Context(), wecomsim.SayRequest{App: "demo", User: user(u), Content: fmt.Sprintf("text %d of %s", n, user(u))})
				if err != nil || !res.Delivered() {
					mu.Lock()
					lost++
					mu.Unlock()
				}
			}
		})
	}
	wg.Wait()
	return lost
}

func user(n int) string { return fmt.Sprintf("user%02d", n) }

// answered waits until every user has count replies, then wants each exactly once and
// in order, and no more of them a moment later.
func (r *rig) answered(users, count int, limit time.Duration) {
	r.t.Helper()
	eventually(r.t, limit, func() error {
		for u := range users {
			if got := len(r.sim.Inbox(user(u))); got < count {
				return fmt.Errorf("%s has %d replies, want %d", user(u), got, count)
			}
		}
		return nil
	})
	time.Sleep(2500 * time.Millisecond) // longer than BRIDGE_ACK_WAIT: a second delivery would come now
	for u := range users {
		inbox := r.sim.Inbox(user(u))
		for n := range max(count, len(inbox)) {
			want, got := fmt.Sprintf("re text %d of %s", n, user(u)), "nothing"
			if n < len(inbox) {
				got = inbox[n].Content
			}
			if n >= count || got != want {
				r.t.Errorf("%s, reply %d of %d: got %q, want %q", user(u), n, len(inbox), got, want)
				break
			}
		}
	}
}

// stored reads the ids of all events of the broker at url.
func stored(t *testing.T, url string) map[string]int {
	t.Helper()
	b, err := bus.Connect(t.Context(), bus.Options{URL: url, Name: "e2e"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close(context.Background()) }()
	var state bus.StreamState
	eventually(t, 20*time.Second, func() error {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
		defer cancel()
		var err error
		state, err = b.State(ctx, bus.StreamEvents)
		return err
	})
	ids := make(map[string]int)
	if state.Messages == 0 {
		return ids
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	var seen uint64
	err = b.Tail(ctx, bus.StreamEvents, "wecom.event.>", true, func(s *bus.Stored) {
		var ev bridge.Event
		if err := json.Unmarshal(s.Data, &ev); err != nil {
			t.Errorf("event %d: %v", s.Seq, err)
		}
		ids[ev.ID]++
		if seen++; seen == state.Messages {
			cancel()
		}
	})
	if seen != state.Messages {
		t.Fatalf("read %d of %d events: %v", seen, state.Messages, err)
	}
	return ids
}
