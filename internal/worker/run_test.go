package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/wecom-bridge/wecom-bridge/bridge"
	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/bustest"
)

// whole is a bus, a WeCom, and workers between them.
type whole struct {
	t     *testing.T
	wecom *fakeWeCom
	bus   *bus.Bus
	url   string
	logs  syncBuffer
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

func newWhole(t *testing.T) *whole {
	w := &whole{t: t, wecom: newFake(t), url: bustest.Start(t).URL()}
	b, err := bus.Connect(t.Context(), bus.Options{URL: w.url, Name: "test"})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
		defer cancel()
		_ = b.Close(ctx) // the test is over
	})
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	if err := b.Provision(ctx); err != nil {
		t.Fatal(err)
	}
	w.bus = b
	return w
}

func (w *whole) config() Config {
	return Config{
		Apps: []string{"demo", "broken"}, OpsListen: "127.0.0.1:0", Nats: bus.Options{URL: w.url}, API: APIConfig{w.wecom.URL},
		AckWait: 10 * time.Second, RulesSource: exampleRules(w.t),
		App: []App{
			{Name: "demo", CorpID: "ww1", AgentID: "1000002", Secret: w.wecom.secret},
			{Name: "broken", CorpID: "ww1", AgentID: "1000003", Secret: "not-the-secret"},
		},
		retry: 20 * time.Millisecond, limitWait: 50 * time.Millisecond,
	}
}

// run starts a worker and returns how to stop it. It is stopped at the end of the test
// in any case, and must not have failed.
func (w *whole) run(cfg Config) (stop func()) {
	w.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- Run(ctx, cfg, slog.New(slog.NewJSONHandler(&w.logs, nil))) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			select {
			case err := <-done:
				if err != nil {
					w.t.Errorf("worker: %v", err)
				}
			case <-time.After(20 * time.Second):
				w.t.Error("the worker does not stop")
			}
		})
	}
	w.t.Cleanup(stop)
	return stop
}

func (w *whole) say(n int, user, content string) {
	w.t.Helper()
	ev := textEvent("demo", user, content)
	ev.ID = fmt.Sprintf("m-%d", n)
	_, err := w.bus.Publish(w.t.Context(), &bus.Msg{
		Subject: bus.EventSubject(bus.Slot("demo", user), "demo", []string{"message", "text"}), ID: "demo/" + ev.ID,
		Header: bus.Header{"Content-Type": bridge.ContentType}, Data: ev.AppendJSON(nil),
	})
	if err != nil {
		w.t.Fatal(err)
	}
}

// put stores a message in the outbox.
func (w *whole) put(app, id, body string, header ...string) {
	w.t.Helper()
	m := &bus.Msg{Subject: bus.OutboxSubject(app, "alice"), Data: []byte(body), Header: bus.Header{}}
	if id != "" {
		m.ID = app + "/" + id
	}
	for i := 0; i+1 < len(header); i += 2 {
		m.Header[header[i]] = header[i+1]
	}
	if _, err := w.bus.Publish(w.t.Context(), m); err != nil {
		w.t.Fatal(err)
	}
}

// receipt waits for the receipt of a message.
func (w *whole) receipt(app, id string) *bridge.Receipt {
	w.t.Helper()
	var s *bus.Stored
	eventually(w.t, "the receipt of "+id, func() bool {
		var err error
		s, err = w.bus.Last(w.t.Context(), bus.StreamReceipts, bus.ReceiptSubject(app, "*", id))
		return err == nil
	})
	var ev bridge.Event
	var r bridge.Receipt
	if err := json.Unmarshal(s.Data, &ev); err != nil {
		w.t.Fatal(err)
	}
	if err := ev.Decode(&r); err != nil {
		w.t.Fatal(err)
	}
	r.Status = strings.TrimPrefix(ev.Type, "wecom.receipt.")
	return &r
}

func (w *whole) outbox() uint64 {
	s, err := w.bus.State(w.t.Context(), bus.StreamOutbox)
	if err != nil {
		w.t.Fatal(err)
	}
	return s.Messages
}

func (w *whole) dead(consumer string) *bus.Stored {
	w.t.Helper()
	stream := bus.StreamOutbox
	if consumer == botName {
		stream = bus.StreamEvents
	}
	var s *bus.Stored
	eventually(w.t, "a dead letter of "+consumer, func() bool {
		var err error
		s, err = w.bus.Last(w.t.Context(), bus.StreamDead, bus.DeadSubject(stream, consumer))
		return err == nil
	})
	return s
}

// TestEveryTextAnsweredOnceAndInOrder is the worker's main job, with another worker
// that joins and leaves meanwhile.
func TestEveryTextAnsweredOnceAndInOrder(t *testing.T) {
	w := newWhole(t)
	w.run(w.config())
	const users, each = 20, 10
	for i := range each {
		if i == each/2 {
			stop := w.run(w.config())
			defer stop()
		}
		for u := range users {
			w.say(i*users+u, fmt.Sprintf("user%d", u), fmt.Sprintf("text %d", i))
		}
	}
	eventually(t, "200 replies", func() bool {
		_, delivered := w.wecom.seen()
		return len(delivered) >= users*each && w.outbox() == 0
	})
	calls, delivered := w.wecom.seen()
	if len(delivered) != users*each || len(calls) != users*each {
		t.Errorf("%d calls, %d delivered, want %d", len(calls), len(delivered), users*each)
	}
	next := make(map[string]int)
	for _, d := range delivered {
		if want := fmt.Sprintf("我也text %d!", next[d.to]); d.text != want {
			t.Errorf("%s got %q, want %q", d.to, d.text, want)
		}
		next[d.to]++
	}
	r := w.receipt("demo", "m-0/bot/0")
	if r.Status != bridge.Sent || r.Event != "m-0" || r.MsgID == "" {
		t.Errorf("receipt %+v", r)
	}
	logs := w.logs.String()
	for _, line := range []string{`"msg":"event handled"`, `"msg":"message sent"`} {
		if got := strings.Count(logs, line); got != users*each {
			t.Errorf("log has %s %d times, want %d", line, got, users*each)
		}
	}
	for _, s := range []string{"user1", "text 1", w.wecom.secret, "the-token", "not-the-secret"} {
		if strings.Contains(logs, s) {
			t.Errorf("the log shows %q", s)
		}
	}
}

// TestOutcomes sends messages that end in every way through one worker. One app's
// wrong secret and one message's failure do not hold up the others.
func TestOutcomes(t *testing.T) {
	w := newWhole(t)
	tries := make(map[string]int)
	w.wecom.judge = func(_ int, c sent) string {
		tries[c.text]++
		first := tries[c.text] == 1
		switch {
		case c.text == "partial":
			return `{"errcode":0,"errmsg":"ok","msgid":"x","invaliduser":"bob"}`
		case c.text == "81013":
			return `{"errcode":81013,"errmsg":"user & party & tag all invalid"}`
		case c.text == "60020":
			return `{"errcode":60020,"errmsg":"not allow to access from your ip, from ip: 203.0.113.7"}`
		case c.text == "45009" && first:
			return `{"errcode":45009,"errmsg":"api freq out of limit"}`
		case c.text == "cut" && first:
			return "cut"
		case c.text == "cut unread" && first:
			return "cut-unread"
		case c.text == "502" && first:
			return "502"
		}
		return ""
	}
	text := func(s string) string {
		return fmt.Sprintf(`{"touser":"alice","msgtype":"text","text":{"content":%q}}`, s)
	}
	w.put("demo", "ok", text("ok"))
	w.put("demo", "partial", text("partial"))
	w.put("demo", "81013", text("81013"))
	w.put("broken", "b", text("never"))
	w.put("demo", "45009", text("45009"))
	w.put("demo", "60020", text("60020"))
	w.put("demo", "cut", text("cut"))
	w.put("demo", "cut-unread", text("cut unread"))
	w.put("demo", "502", text("502"))
	w.put("demo", "json", `{"touser":`)
	w.put("demo", "api", text("x"), "Wecom-Api", "../gettoken")
	w.put("demo", "expired", text("too late"), "Bridge-Expires", time.Now().Add(-time.Second).Format(time.RFC3339))
	w.put("demo", "last", text("last"))
	w.run(w.config())

	for id, want := range map[string]struct {
		status string
		code   int
		tries  int
	}{
		"ok": {bridge.Sent, 0, 1}, "partial": {bridge.Partial, 0, 1}, "81013": {bridge.Failed, 81013, 1}, "60020": {bridge.Failed, 60020, 1},
		"45009": {bridge.Sent, 0, 2}, "cut": {bridge.Sent, 0, 2}, "cut-unread": {bridge.Sent, 0, 2}, "502": {bridge.Sent, 0, 2},
		"json": {bridge.Failed, 0, 1}, "api": {bridge.Failed, 0, 1}, "expired": {bridge.Expired, 0, 1}, "last": {bridge.Sent, 0, 1},
	} {
		r := w.receipt("demo", id)
		if r.Status != want.status || r.ErrCode != want.code || r.Attempts != want.tries {
			t.Errorf("receipt of %s is %+v, want %+v", id, r, want)
		}
	}
	if r := w.receipt("broken", "b"); r.Status != bridge.Failed || r.ErrCode != 40001 {
		t.Errorf("receipt of an app with a wrong secret: %+v", r)
	}
	eventually(t, "an empty outbox", func() bool { return w.outbox() == 0 })
	dead, err := w.bus.State(t.Context(), bus.StreamDead)
	if err != nil || dead.Messages != 5 { // 81013, 60020, json, api, b
		t.Errorf("%d dead letters, %v, want 5", dead.Messages, err)
	}

	_, delivered := w.wecom.seen()
	got := make(map[string]int)
	for _, d := range delivered {
		got[d.text]++
	}
	for _, s := range []string{"ok", "45009", "cut", "cut unread", "502", "last"} {
		if got[s] != 1 {
			t.Errorf("%q delivered %d times, want once", s, got[s])
		}
	}
	for _, s := range []string{"too late", "never"} {
		if got[s] != 0 {
			t.Errorf("%q was delivered", s)
		}
	}
}

func TestDeadLetter(t *testing.T) {
	w := newWhole(t)
	w.wecom.judge = func(int, sent) string { return `{"errcode":81013,"errmsg":"user & party & tag all invalid"}` }
	w.put("demo", "m-1/bot/0", hi, "Bridge-Event", "m-1", "X-Mine", "kept")
	w.run(w.config())
	d := w.dead(senderName)
	if string(d.Data) != hi || d.Header["X-Mine"] != "kept" || d.Header["Bridge-Event"] != "m-1" || d.Header["Bridge-Id"] != "demo/m-1/bot/0" {
		t.Errorf("dead letter %s %v", d.Data, d.Header)
	}
	if reason := d.Header["Bridge-Dead-Reason"]; !strings.Contains(reason, "message/send: errcode 81013: user & party & tag all invalid") {
		t.Errorf("reason %q", reason)
	}
	if got, want := d.Header["Bridge-Dead-Subject"], bus.OutboxSubject("demo", "alice"); got != want {
		t.Errorf("subject %q, want %q", got, want)
	}

	// The operator widens the visible range and replays: the message keeps its id.
	w.wecom.mu.Lock()
	w.wecom.judge = nil
	w.wecom.mu.Unlock()
	replay := &bus.Msg{Subject: d.Header["Bridge-Dead-Subject"], ID: "replay:1:1", Data: d.Data, Header: bus.Header{"Bridge-Replay": senderName, "Bridge-Id": d.Header["Bridge-Id"]}}
	if _, err := w.bus.Publish(t.Context(), replay); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the replayed message", func() bool {
		s, err := w.bus.Last(t.Context(), bus.StreamReceipts, bus.ReceiptSubject("demo", bridge.Sent, "m-1/bot/0"))
		return err == nil && s != nil
	})
}

func TestMessageWithoutID(t *testing.T) {
	w := newWhole(t)
	w.put("demo", "", hi)
	w.run(w.config())
	if r := w.receipt("demo", "s-1"); r.Status != bridge.Sent || r.Message != "s-1" {
		t.Errorf("receipt %+v", r)
	}
}

func TestRedeliveryWithReceiptIsNotSent(t *testing.T) {
	w := newWhole(t)
	_, err := w.bus.Publish(t.Context(), &bus.Msg{Subject: bus.ReceiptSubject("demo", bridge.Sent, "m-1/bot/0"), ID: "receipt:demo/m-1/bot/0:1", Data: []byte(`{}`)})
	if err != nil {
		t.Fatal(err)
	}
	w.put("demo", "m-1/bot/0", hi)
	w.put("demo", "m-2/bot/0", hi)
	w.run(w.config())
	w.receipt("demo", "m-2/bot/0") // same recipient, so the first one is over
	if calls, _ := w.wecom.seen(); len(calls) != 1 {
		t.Errorf("%d calls, want only that of the second message", len(calls))
	}
}

// TestUnknownAppWaits: a message of an app that no worker knows stays in the outbox,
// until a worker comes that does.
func TestUnknownAppWaits(t *testing.T) {
	w := newWhole(t)
	w.put("later", "m-1", hi)
	stop := w.run(w.config())
	eventually(t, "a retry", func() bool { return strings.Contains(w.logs.String(), `app \"later\" is not configured`) })
	stop()
	if n := w.outbox(); n != 1 {
		t.Fatalf("%d messages in the outbox, want 1", n)
	}
	cfg := w.config()
	cfg.Apps = append(cfg.Apps, "later")
	cfg.App = append(cfg.App, App{Name: "later", CorpID: "ww1", AgentID: "7", Secret: w.wecom.secret})
	w.run(cfg)
	if r := w.receipt("later", "m-1"); r.Status != bridge.Sent {
		t.Errorf("receipt %+v", r)
	}
}

// TestCrashBetweenSendAndReceipt: a process sends a message and dies before it can
// store the receipt. Another one sends it again, with WeCom's duplicate check, and the
// member sees it once.
func TestCrashBetweenSendAndReceipt(t *testing.T) {
	w := newWhole(t)
	consumer := bus.Consumer{Stream: bus.StreamOutbox, Name: senderName, Subject: "wecom.outbox.*.>", AckWait: time.Second, MaxAttempts: -1, Retry: 20 * time.Millisecond, Grace: time.Millisecond}
	start := func(publish func(context.Context, *bus.Msg) (bus.Ack, error)) *sender {
		s := &sender{
			apps: map[string]*app{"demo": newApp(w.config().App[0], w.wecom.URL)}, publish: publish, last: w.bus.Last,
			log: slog.New(slog.NewJSONHandler(&w.logs, nil)), metrics: newMetrics(prometheus.NewRegistry()), now: time.Now, wait: time.Second, tries: make(map[uint64]*try),
		}
		return s
	}
	w.put("demo", "m-1/bot/0", hi)
	ctx, die := context.WithCancel(t.Context())
	victim := start(func(context.Context, *bus.Msg) (bus.Ack, error) {
		die() // at the very moment when WeCom has answered and nothing is stored
		return bus.Ack{}, bus.ErrUnavailable
	})
	if err := w.bus.Consume(ctx, consumer, victim.handle); err != nil {
		t.Fatal(err)
	}
	if calls, delivered := w.wecom.seen(); len(calls) != 1 || len(delivered) != 1 {
		t.Fatalf("%d calls, %d delivered before the crash, want 1", len(calls), len(delivered))
	}

	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	done := make(chan error, 1)
	go func() { done <- w.bus.Consume(ctx, consumer, start(w.bus.Publish).handle) }()
	if r := w.receipt("demo", "m-1/bot/0"); r.Status != bridge.Sent || r.Attempts < 2 {
		t.Errorf("receipt %+v", r)
	}
	eventually(t, "an empty outbox", func() bool { return w.outbox() == 0 })
	stop()
	if err := <-done; err != nil {
		t.Error(err)
	}
	calls, delivered := w.wecom.seen()
	if len(delivered) != 1 {
		t.Errorf("delivered %d times, want once", len(delivered))
	}
	if last := calls[len(calls)-1]; len(calls) != 2 || last.check != 1 || last.interval < 5 || last.interval > 60 {
		t.Errorf("%d calls, the repeat is %s", len(calls), last.raw)
	}
}

func TestEventWithoutAnswerIsAcked(t *testing.T) {
	w := newWhole(t)
	cfg := w.config()
	cfg.RulesSource = nil // no rules: silence
	w.run(cfg)
	w.say(1, "alice", "hello")
	eventually(t, "the event to be handled", func() bool {
		lag, err := w.bus.Lag(t.Context(), bus.StreamEvents, botName)
		return err == nil && lag.Pending == 0 && lag.InFlight == 0 && strings.Contains(w.logs.String(), `"msg":"event handled"`)
	})
	if calls, _ := w.wecom.seen(); len(calls) != 0 || w.outbox() != 0 {
		t.Errorf("%d calls without rules", len(calls))
	}
}

func TestRejectedEventIsADeadLetter(t *testing.T) {
	w := newWhole(t)
	w.run(w.config())
	w.say(1, "sys", "hello") // nobody to answer
	d := w.dead(botName)
	if reason := d.Header["Bridge-Dead-Reason"]; !strings.Contains(reason, `rule "greeting": event m-1 has no member to reply to`) {
		t.Errorf("reason %q", reason)
	}
}

func TestReadiness(t *testing.T) {
	w := newWhole(t)
	cfg := w.config()
	cfg.App = append(cfg.App, App{Name: "mute", CorpID: "ww1"})
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.OpsListen = ln.Addr().String()
	if err := Run(t.Context(), cfg, slog.New(slog.DiscardHandler)); err == nil || !strings.Contains(err.Error(), "BRIDGE_OPS_LISTEN") {
		t.Errorf("address in use: error %v", err)
	}
	if err := ln.Close(); err != nil {
		t.Fatal(err)
	}
	w.run(cfg)
	get := func(path string) (int, string) {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+cfg.OpsListen+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0, ""
		}
		defer res.Body.Close()
		body, _ := io.ReadAll(res.Body) // what came of it is judged by the caller
		return res.StatusCode, string(body)
	}
	var body readiness
	eventually(t, "readiness with the states of the apps", func() bool {
		status, text := get("/readyz")
		body = readiness{}
		return status == 200 && json.Unmarshal([]byte(text), &body) == nil && body.Apps["broken"] != "ok" && body.Apps["mute"] != "ok"
	})
	if body.Status != "ok" || body.Apps["demo"] != "ok" || !strings.Contains(body.Apps["broken"], "errcode 40001") || !strings.Contains(body.Apps["mute"], "no secret") {
		t.Errorf("readiness %+v", body)
	}
	if status, _ := get("/healthz"); status != 200 {
		t.Errorf("healthz %d", status)
	}
	w.put("demo", "m-1", hi)
	w.receipt("demo", "m-1")
	eventually(t, "the metric of a sent message", func() bool {
		_, text := get("/metrics")
		return strings.Contains(text, `bridge_messages_total{api="message/send",app="demo",class="",status="sent"} 1`)
	})
}

func TestBusGoesAndComesBack(t *testing.T) {
	srv := bustest.Start(t)
	if !srv.CanRestart() {
		t.Logf("the server is named by %s and cannot be stopped: NOT RUN", bustest.Env)
		return
	}
	w := &whole{t: t, wecom: newFake(t), url: srv.URL()}
	cfg := w.config()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	cfg.OpsListen = ln.Addr().String()
	_ = ln.Close() // given to the worker
	srv.Stop()
	w.run(cfg) // starts although there is no bus
	status := func() int {
		req, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://"+cfg.OpsListen+"/readyz", nil)
		if err != nil {
			t.Fatal(err)
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return 0
		}
		defer res.Body.Close()
		return res.StatusCode
	}
	eventually(t, "503 without a bus", func() bool { return status() == 503 })
	srv.Restart()
	eventually(t, "200 with the bus", func() bool { return status() == 200 })
	b, err := bus.Connect(t.Context(), bus.Options{URL: w.url})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = b.Close(context.Background()) }()
	w.bus = b
	eventually(t, "an answer", func() bool {
		_, err := b.Publish(t.Context(), &bus.Msg{Subject: bus.OutboxSubject("demo", "alice"), ID: "demo/m-1", Data: []byte(hi)})
		return err == nil
	})
	w.receipt("demo", "m-1")
}

func TestRunRefuses(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.yaml")
	if err := os.WriteFile(bad, []byte("rules:\n  - {reply: {text: '{{.X}}'}}\n  - {nope: 1}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		change func(*Config)
		want   []string
	}{
		"api url":     {func(c *Config) { c.API.URL = "wecom" }, []string{"BRIDGE_API_URL"}},
		"ack wait":    {func(c *Config) { c.AckWait = 0 }, []string{"BRIDGE_ACK_WAIT"}},
		"app name":    {func(c *Config) { c.App = []App{{Name: "Demo"}} }, []string{"BRIDGE_APPS"}},
		"app twice":   {func(c *Config) { c.App = []App{{Name: "demo"}, {Name: "demo"}} }, []string{"BRIDGE_APPS"}},
		"corp id":     {func(c *Config) { c.App = []App{{Name: "help-desk", Secret: "hunter2"}} }, []string{"BRIDGE_APP_HELP_DESK_CORP_ID"}},
		"all at once": {func(c *Config) { c.API.URL = ""; c.AckWait = -1 }, []string{"BRIDGE_API_URL", "BRIDGE_ACK_WAIT"}},
		"no rules":    {func(c *Config) { c.Rules = filepath.Join(dir, "none.yaml") }, []string{"BRIDGE_RULES"}},
		"bad rules":   {func(c *Config) { c.Rules = bad }, []string{"BRIDGE_RULES", "bad.yaml:2: ", "bad.yaml:3: "}},
		"nats files":  {func(c *Config) { c.Nats.Creds = filepath.Join(dir, "none.creds") }, []string{"none.creds"}},
	} {
		t.Run(name, func(t *testing.T) {
			cfg := Config{OpsListen: "127.0.0.1:0", API: APIConfig{"http://127.0.0.1:1"}, AckWait: time.Second, Nats: bus.Options{URL: "nats://127.0.0.1:1"}}
			tt.change(&cfg)
			ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
			defer cancel()
			err := Run(ctx, cfg, slog.New(slog.DiscardHandler))
			if err == nil || errors.Is(err, context.DeadlineExceeded) {
				t.Fatalf("got %v, want a mistake", err)
			}
			for _, want := range tt.want {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not name %s", err, want)
				}
			}
			if strings.Contains(err.Error(), "hunter2") {
				t.Error("a secret shows")
			}
		})
	}
}
