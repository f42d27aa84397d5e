package gateway

import (
	"bytes"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/wecom-bridge/wecom-bridge/bridge"
	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/ops"
	"github.com/wecom-bridge/wecom-bridge/internal/wecom"
)

const corp = "ww00aa11bb22cc33dd"

var (
	oldPair  = wecom.Pair{Token: "OldToken", AESKey: "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQ"}
	newPair  = wecom.Pair{Token: "NewToken", AESKey: "0123456789abcdefghijklmnopqrstuvwxyzABCDEFG"}
	wrongKey = wecom.Pair{Token: "NewToken", AESKey: "ZZZZ456789abcdefghijklmnopqrstuvwxyzABCDEFG"}
)

func testConfig() Config {
	one := func(name, kind string, receive ...string) App {
		return App{Name: name, CorpID: corp, Kind: kind, Token: []string{newPair.Token, oldPair.Token},
			AESKey: []string{newPair.AESKey, oldPair.AESKey}, ReceiveIds: receive}
	}
	bot := one("bot", "aibot")
	bot.CorpID = ""
	return Config{Durability: Fsync, Spool: "off",
		Apps: []string{"demo", "suite", "bot"},
		App:  []App{one("demo", "app"), one("suite", "suite", "tj01", corp), bot}}
}

// broker plays the bus: it keeps what is published, or fails.
type broker struct {
	mu     sync.Mutex
	stored []*bus.Msg
	ids    map[string]bool
	err    error
	hang   bool
}

func (b *broker) publish(_ context.Context, m *bus.Msg) (bus.Ack, error) {
	if b.hang {
		time.Sleep(m.Wait)
		return bus.Ack{}, fmt.Errorf("publish: %w", bus.ErrUnavailable)
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.err != nil {
		return bus.Ack{}, b.err
	}
	if b.ids[m.ID] {
		return bus.Ack{Duplicate: true}, nil
	}
	if b.ids == nil {
		b.ids = make(map[string]bool)
	}
	b.ids[m.ID] = true
	c := *m
	c.Data = bytes.Clone(m.Data)
	b.stored = append(b.stored, &c)
	return bus.Ack{Seq: uint64(len(b.stored))}, nil
}

func (b *broker) events(t *testing.T) []*bridge.Event {
	t.Helper()
	var list []*bridge.Event
	for _, m := range b.stored {
		ev := new(bridge.Event)
		if err := json.Unmarshal(m.Data, ev); err != nil {
			t.Fatalf("stored event: %v\n%s", err, m.Data)
		}
		list = append(list, ev)
	}
	return list
}

type bench struct {
	*Gateway
	broker *broker
	reg    *prometheus.Registry
	log    *bytes.Buffer
}

func newBench(t *testing.T, cfg Config) *bench {
	t.Helper()
	b := &bench{broker: new(broker), reg: prometheus.NewRegistry(), log: new(bytes.Buffer)}
	if err := cfg.Validate(); err != nil {
		t.Fatal(err)
	}
	g, err := New(cfg, b.broker.publish, b.reg, slog.New(slog.NewTextHandler(b.log, &slog.HandlerOptions{Level: slog.LevelDebug})))
	if err != nil {
		t.Fatal(err)
	}
	b.Gateway = g
	return b
}

func (b *bench) do(r *http.Request) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	b.Handler().ServeHTTP(rec, r)
	return rec
}

// sealed returns the URL and body with which WeCom would deliver plain.
func sealed(t testing.TB, p wecom.Pair, app, receiveID, plain string) (target, body string) {
	t.Helper()
	encrypt, signature, err := wecom.Seal(p, receiveID, "1770000001", "n0nce", []byte(plain))
	if err != nil {
		t.Fatal(err)
	}
	q := url.Values{"msg_signature": {signature}, "timestamp": {"1770000001"}, "nonce": {"n0nce"}}
	body = "<xml><ToUserName><![CDATA[" + receiveID + "]]></ToUserName><AgentID><![CDATA[1000002]]></AgentID><Encrypt><![CDATA[" + encrypt + "]]></Encrypt></xml>"
	if app == "bot" {
		body = `{"encrypt":"` + encrypt + `"}`
	}
	return "/callback/" + app + "?" + q.Encode(), body
}

func text(id, content string) string {
	return "<xml><ToUserName><![CDATA[" + corp + "]]></ToUserName><FromUserName><![CDATA[alice]]></FromUserName><CreateTime>1770000001</CreateTime>" +
		"<MsgType><![CDATA[text]]></MsgType><Content><![CDATA[" + content + "]]></Content><MsgId>" + id + "</MsgId><AgentID>1000002</AgentID></xml>"
}

func post(target, body string) *http.Request {
	return httptest.NewRequest(http.MethodPost, target, strings.NewReader(body))
}

func TestCallbackIsStoredAndAnsweredEmpty(t *testing.T) {
	b := newBench(t, testConfig())
	rec := b.do(post(sealed(t, newPair, "demo", corp, text("7100000000000000001", "status?"))))
	if rec.Code != 200 || rec.Body.Len() != 0 {
		t.Fatalf("got %d %q, want an empty 200", rec.Code, rec.Body)
	}
	if len(b.broker.stored) != 1 {
		t.Fatalf("got %d events, want 1", len(b.broker.stored))
	}
	m := b.broker.stored[0]
	if want := fmt.Sprintf("wecom.event.%d.demo.message.text", bus.Slot("demo", "alice")); m.Subject != want {
		t.Errorf("subject: got %s, want %s", m.Subject, want)
	}
	if m.ID != "demo/m-7100000000000000001" || m.Header["Content-Type"] != "application/cloudevents+json" {
		t.Errorf("got id %s and header %v", m.ID, m.Header)
	}
	want := `{"specversion":"1.0","id":"m-7100000000000000001","source":"/wecom/ww00aa11bb22cc33dd/demo","type":"wecom.message.text",` +
		`"subject":"alice","time":"2026-02-02T02:40:01Z","datacontenttype":"application/json",` +
		`"app":"demo","corpid":"ww00aa11bb22cc33dd","agentid":"1000002","partitionkey":"alice",` +
		`"data":{"ToUserName":"ww00aa11bb22cc33dd","FromUserName":"alice","CreateTime":"1770000001","MsgType":"text","Content":"status?","MsgId":"7100000000000000001","AgentID":"1000002"}}`
	if string(m.Data) != want {
		t.Errorf("got  %s\nwant %s", m.Data, want)
	}
	if strings.Contains(b.log.String(), "status?") || strings.Contains(b.log.String(), "alice") {
		t.Errorf("the log holds content or a name: %s", b.log)
	}
}

func TestRetryOfACallbackIsTheSameEvent(t *testing.T) {
	b := newBench(t, testConfig())
	for range 3 {
		if rec := b.do(post(sealed(t, newPair, "demo", corp, text("71", "x")))); rec.Code != 200 {
			t.Fatalf("got %d, want 200 for every delivery", rec.Code)
		}
	}
	if len(b.broker.stored) != 1 {
		t.Errorf("got %d events, want 1", len(b.broker.stored))
	}
}

func TestExtraQueryParametersDoNotDisturb(t *testing.T) {
	b := newBench(t, testConfig())
	target, body := sealed(t, newPair, "demo", corp, text("71", "x"))
	target = strings.Replace(target, "?", "?corp=a%20b&callback_format=json&", 1) + "&x&=&y=%zz"
	if rec := b.do(post(target, body)); rec.Code != 200 {
		t.Errorf("got %d, want 200", rec.Code)
	}
}

// What is not authentic gets one answer, whatever is wrong with it, and leaves no event.
func TestForgedCallbacksGetTheSame403(t *testing.T) {
	target, body := sealed(t, newPair, "demo", corp, text("71", "x"))
	_, other := sealed(t, newPair, "demo", corp, text("72", "y"))
	wrongTarget, wrongBody := sealed(t, wrongKey, "demo", corp, text("71", "x"))
	strangerTarget, strangerBody := sealed(t, newPair, "demo", "ww9999999999999999", text("71", "x"))
	botTarget, botBody := sealed(t, newPair, "bot", corp, `{"msgid":"1","aibotid":"B"}`)
	b := newBench(t, testConfig())
	var answers []string
	for name, r := range map[string]*http.Request{
		"forged signature":        post(strings.Replace(target, "msg_signature=", "msg_signature=0", 1), body),
		"no signature":            post("/callback/demo", body),
		"replay, other body":      post(target, other),
		"truncated":               post(target, body[:len(body)/2]),
		"truncated text":          post(target, strings.Replace(body, "]]></Encrypt>", "", 1)),
		"wrong key":               post(wrongTarget, wrongBody),
		"sealed for another corp": post(strangerTarget, strangerBody),
		"a corp id for a bot":     post(botTarget, botBody),
		"plaintext":               post(target, text("71", "x")),
		"empty":                   post(target, ""),
		"doctype":                 post(target, `<!DOCTYPE xml [<!ENTITY a "b">]>`+body),
		"not XML":                 post(target, "hello"),
		"broken JSON":             post(target, `{"encrypt":`),
		"body that breaks off":    httptest.NewRequest(http.MethodPost, target, io.MultiReader(strings.NewReader(body[:40]), brokenReader{})),
		"GET, forged":             httptest.NewRequest(http.MethodGet, target+"&echostr=AAAA", nil),
	} {
		rec := b.do(r)
		if rec.Code != http.StatusForbidden {
			t.Errorf("%s: got %d, want 403", name, rec.Code)
		}
		answers = append(answers, fmt.Sprint(rec.Code, rec.Header(), rec.Body))
	}
	for _, a := range answers {
		if a != answers[0] {
			t.Errorf("answers differ and so tell something: %q and %q", a, answers[0])
		}
	}
	if n := len(b.broker.stored); n != 0 {
		t.Errorf("%d events were published", n)
	}
	for _, secret := range []string{newPair.Token, newPair.AESKey, oldPair.Token} {
		if strings.Contains(b.log.String(), secret) {
			t.Errorf("a secret is in the log:\n%s", b.log)
		}
	}
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errors.New("connection reset") }

func TestOversizedBodyIs413(t *testing.T) {
	b := newBench(t, testConfig())
	target, _ := sealed(t, newPair, "demo", corp, text("71", "x"))
	for name, r := range map[string]*http.Request{
		"announced": post(target, strings.Repeat("x", maxBody+1)),
		"chunked":   httptest.NewRequest(http.MethodPost, target, io.MultiReader(strings.NewReader(strings.Repeat("x", maxBody+1)))),
	} {
		if rec := b.do(r); rec.Code != http.StatusRequestEntityTooLarge {
			t.Errorf("%s: got %d, want 413", name, rec.Code)
		}
	}
	srv := httptest.NewServer(b.Handler())
	defer srv.Close()
	res, err := http.Post(srv.URL+target, "text/xml", strings.NewReader(strings.Repeat("x", 4*maxBody)))
	if err != nil {
		t.Fatalf("over a real connection: %v, want the answer and not a reset", err)
	}
	_ = res.Body.Close()
	if res.StatusCode != http.StatusRequestEntityTooLarge {
		t.Errorf("over a real connection: got %d, want 413", res.StatusCode)
	}
	// One byte less is judged by its content.
	if rec := b.do(post(target, strings.Repeat("x", maxBody))); rec.Code != http.StatusForbidden {
		t.Errorf("exactly 1 MiB: got %d, want 403", rec.Code)
	}
}

func TestUnknownAppIs404(t *testing.T) {
	b := newBench(t, testConfig())
	_, body := sealed(t, newPair, "demo", corp, text("71", "x"))
	for _, r := range []*http.Request{post("/callback/nobody", body), httptest.NewRequest(http.MethodGet, "/callback/nobody", nil), httptest.NewRequest(http.MethodGet, "/", nil)} {
		if rec := b.do(r); rec.Code != http.StatusNotFound {
			t.Errorf("%s %s: got %d, want 404", r.Method, r.URL.Path, rec.Code)
		}
	}
}

func TestTextsArriveUnharmed(t *testing.T) {
	for name, content := range map[string]string{
		"entity look-alike": "a &lt; b &amp;&amp; <c> \"d\" 'e'",
		"emoji":             "👩‍👩‍👧‍👦 你好\n第二行\ttab",
		"2,000 characters":  strings.Repeat("字", 2000),
		"end of CDATA":      "a]]>b]]",
		"blanks":            "  kept  ",
		"script":            "</script><img src=x>\u2028",
	} {
		b := newBench(t, testConfig())
		// XML has no escape inside CDATA: "]]>" stands as two sections.
		inXML := strings.ReplaceAll(content, "]]>", "]]]]><![CDATA[>")
		if rec := b.do(post(sealed(t, newPair, "demo", corp, text("71", inXML)))); rec.Code != 200 {
			t.Errorf("%s: got %d", name, rec.Code)
			continue
		}
		if got := b.broker.events(t)[0].Text(); got != content {
			t.Errorf("%s: got %q, want %q", name, got, content)
		}
	}
}

func TestUnknownIsPublishedUnderItsOwnName(t *testing.T) {
	for name, c := range map[string]struct{ plain, typ, contentType string }{
		"new MsgType":   {strings.Replace(text("71", "x"), "[text]", "[hologram]", 1), "wecom.message.hologram", "application/json"},
		"empty MsgType": {strings.Replace(text("71", "x"), "[text]", "[]", 1), "wecom.unknown", "text/plain"},
		"no XML":        {"what is this?", "wecom.unknown", "text/plain"},
		"not UTF-8":     {"\xff\xfe", "wecom.unknown", ""},
	} {
		b := newBench(t, testConfig())
		if rec := b.do(post(sealed(t, newPair, "demo", corp, c.plain))); rec.Code != 200 {
			t.Errorf("%s: got %d, want 200", name, rec.Code)
			continue
		}
		ev := b.broker.events(t)[0]
		if ev.Type != c.typ || (c.contentType != "" && ev.DataContentType != c.contentType) {
			t.Errorf("%s: got %s, %s", name, ev.Type, ev.DataContentType)
		}
		if c.typ == "wecom.unknown" {
			got := string(ev.DataBase64)
			if ev.DataBase64 == nil {
				if err := json.Unmarshal(ev.Data, &got); err != nil {
					t.Errorf("%s: %v", name, err)
				}
			}
			if got != c.plain {
				t.Errorf("%s: got %q, want the raw text", name, got)
			}
			if !strings.HasSuffix(b.broker.stored[0].Subject, ".demo.unknown") {
				t.Errorf("%s: got subject %s", name, b.broker.stored[0].Subject)
			}
		}
	}
}

func TestEveryKindHasItsOwnAnswerAndReceiveID(t *testing.T) {
	b := newBench(t, testConfig())
	ticket := `<xml><SuiteId><![CDATA[tj01]]></SuiteId><InfoType><![CDATA[suite_ticket]]></InfoType><TimeStamp>1770000001</TimeStamp><SuiteTicket><![CDATA[t]]></SuiteTicket></xml>`
	if rec := b.do(post(sealed(t, newPair, "suite", "tj01", ticket))); rec.Code != 200 || rec.Body.String() != "success" {
		t.Errorf("suite: got %d %q, want 200 success", rec.Code, rec.Body)
	}
	bot := `{"msgid":"CAIQ/+=1","aibotid":"B1","chatid":"c1","chattype":"group","from":{"userid":"alice"},"msgtype":"text","text":{"content":"hi"}}`
	if rec := b.do(post(sealed(t, newPair, "bot", "", bot))); rec.Code != 200 || rec.Body.Len() != 0 {
		t.Errorf("aibot: got %d %q, want an empty 200", rec.Code, rec.Body)
	}
	evs := b.broker.events(t)
	if evs[0].Type != "wecom.suite.suite_ticket" || evs[1].Type != "wecom.aibot.message.text" || evs[1].PartitionKey != "c1" || evs[1].ID != "m-CAIQ/+=1" {
		t.Errorf("got %+v and %+v", evs[0], evs[1])
	}
	if string(evs[1].Data) != bot {
		t.Errorf("JSON payload: got %s, want it unchanged", evs[1].Data)
	}
}

func TestEitherKeyPairOpensDuringRotation(t *testing.T) {
	b := newBench(t, testConfig())
	for i, p := range []wecom.Pair{oldPair, newPair, oldPair} {
		if rec := b.do(post(sealed(t, p, "demo", corp, text(fmt.Sprint(i), "x")))); rec.Code != 200 {
			t.Errorf("pair %d: got %d, want 200", i, rec.Code)
		}
	}
	const want = `
		# HELP bridge_callback_key_uses_total Callbacks by the Token and EncodingAESKey pair that opened them, 0 being the newest. An old pair that stays at rest can go.
		# TYPE bridge_callback_key_uses_total counter
		bridge_callback_key_uses_total{app="bot",pair="0"} 0
		bridge_callback_key_uses_total{app="bot",pair="1"} 0
		bridge_callback_key_uses_total{app="demo",pair="0"} 1
		bridge_callback_key_uses_total{app="demo",pair="1"} 2
		bridge_callback_key_uses_total{app="suite",pair="0"} 0
		bridge_callback_key_uses_total{app="suite",pair="1"} 0
	`
	if err := testutil.GatherAndCompare(b.reg, strings.NewReader(want), "bridge_callback_key_uses_total"); err != nil {
		t.Error(err)
	}
}

func TestURLVerificationAnswersTheBareEcho(t *testing.T) {
	const echo = "94966531020182955848408"
	for app, receive := range map[string]string{"demo": corp, "suite": "tj01", "bot": ""} {
		b := newBench(t, testConfig())
		encrypt, signature, err := wecom.Seal(oldPair, receive, "1770000001", "abc", []byte(echo))
		if err != nil {
			t.Fatal(err)
		}
		q := url.Values{"msg_signature": {signature}, "timestamp": {"1770000001"}, "nonce": {"abc"}, "echostr": {encrypt}}
		rec := b.do(httptest.NewRequest(http.MethodGet, "/callback/"+app+"?"+q.Encode(), nil))
		if rec.Code != 200 || rec.Body.String() != echo || !strings.HasPrefix(rec.Header().Get("Content-Type"), "text/plain") {
			t.Errorf("%s: got %d %q %v", app, rec.Code, rec.Body, rec.Header())
		}
	}
}

func TestWhatCannotBeStoredIs503(t *testing.T) {
	for name, err := range map[string]error{
		"unreachable": fmt.Errorf("publish: %w", bus.ErrUnavailable),
		"full":        fmt.Errorf("publish: %w", bus.ErrFull),
		"refused":     fmt.Errorf("publish: %w", bus.ErrRefused),
	} {
		b := newBench(t, testConfig())
		b.broker.err = err
		if rec := b.do(post(sealed(t, newPair, "demo", corp, text("71", "x")))); rec.Code != http.StatusServiceUnavailable {
			t.Errorf("%s: got %d, want 503", name, rec.Code)
		}
		alarm := strings.Contains(b.log.String(), "level=ERROR")
		if want := name != "unreachable"; alarm != want {
			t.Errorf("%s: error in the log: got %v, want %v", name, alarm, want)
		}
	}
}

func TestSilentBusIsGivenUpWithinTheSourcesDeadline(t *testing.T) {
	for app, c := range map[string]struct {
		receive string
		limit   time.Duration
	}{"demo": {corp, 800 * time.Millisecond}, "suite": {"tj01", 400 * time.Millisecond}} {
		synctest.Test(t, func(t *testing.T) {
			b := newBench(t, testConfig())
			b.broker.hang = true
			target, body := sealed(t, newPair, app, c.receive, text("71", "x"))
			start := time.Now()
			rec := b.do(post(target, body))
			if took := time.Since(start); rec.Code != http.StatusServiceUnavailable || took != c.limit {
				t.Errorf("%s: got %d after %v, want 503 after %v", app, rec.Code, took, c.limit)
			}
		})
	}
}

func TestReadinessFollowsTheAcks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBench(t, testConfig())
		ready := b.ready(Fsync)
		state := func() string {
			ok, body := ready()
			r := body.(readiness)
			if ok != (r.Status == "ok") {
				t.Errorf("status %s and ready %v differ", r.Status, ok)
			}
			return r.Status
		}
		if got := state(); got != "unavailable" {
			t.Errorf("before the first ack: got %s", got)
		}
		ctx, stop := context.WithCancel(t.Context())
		done := make(chan struct{})
		go func() { b.probe(ctx, "host-1"); close(done) }()
		synctest.Wait()
		if got := state(); got != "ok" {
			t.Errorf("after a probe's ack: got %s", got)
		}
		if b.broker.stored[0].Subject != "wecom.probe.host-1" {
			t.Errorf("probe went to %s", b.broker.stored[0].Subject)
		}
		b.broker.mu.Lock()
		b.broker.err = bus.ErrUnavailable
		b.broker.mu.Unlock()
		time.Sleep(probeEvery + time.Second)
		if got := state(); got != "unavailable" {
			t.Errorf("after a failed probe: got %s", got)
		}
		b.broker.mu.Lock()
		b.broker.err = nil
		b.broker.mu.Unlock()
		time.Sleep(2 * time.Second)
		if got := state(); got != "ok" {
			t.Errorf("when the bus is back: got %s", got)
		}
		stop()
		<-done
		time.Sleep(readyFor + time.Second)
		if got := state(); got != "unavailable" {
			t.Errorf("with an ack older than %v: got %s", readyFor, got)
		}
	})
}

func TestDomainProofIsServedFromItsFolderOnly(t *testing.T) {
	dir := t.TempDir()
	for name, content := range map[string]string{"WW_verify_abc123.txt": "proof", "secret.txt": "s", "WW_verify_x.txt.bak": "s"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	cfg := testConfig()
	cfg.VerifyDir = dir
	b := newBench(t, cfg)
	defer func() { _ = b.verify.Close() }()
	for path, want := range map[string]int{
		"/WW_verify_abc123.txt": 200, "/secret.txt": 404, "/WW_verify_x.txt.bak": 404,
		"/WW_verify_none.txt": 404, "/..%2Fsecret.txt": 404, "/WW_verify_..%2Fx.txt": 404,
	} {
		rec := b.do(httptest.NewRequest(http.MethodGet, path, nil))
		if rec.Code != want {
			t.Errorf("%s: got %d, want %d", path, rec.Code, want)
		}
		if want == 200 && rec.Body.String() != "proof" {
			t.Errorf("%s: got %q", path, rec.Body)
		}
	}
}

func TestConfigMistakesAreAllReportedAndNameNoValue(t *testing.T) {
	cfg := Config{Durability: "hunter2", Spool: "maybe", App: []App{
		{Name: "help-desk", Kind: "robot", Token: []string{"t"}, AESKey: []string{"hunter2"}},
		{Name: "b", Kind: "app", CorpID: "ww1", Token: []string{"t", "u"}, AESKey: []string{"x"}},
	}}
	err := cfg.Validate()
	if err == nil {
		t.Fatal("got no error")
	}
	for _, want := range []string{"BRIDGE_DURABILITY", "BRIDGE_SPOOL", "BRIDGE_APP_HELP_DESK_KIND", "BRIDGE_APP_HELP_DESK_AES_KEY", "BRIDGE_APP_B_TOKEN"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("got %q, want it to name %s", err, want)
		}
	}
	if strings.Contains(err.Error(), "hunter2") {
		t.Errorf("the error quotes a value: %q", err)
	}
}

func TestOutsideDurability(t *testing.T) {
	answer := ""
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/varz" {
			http.NotFound(w, r)
			return
		}
		_, _ = io.WriteString(w, answer)
	}))
	defer srv.Close()
	log := slog.New(slog.DiscardHandler)
	for _, c := range []struct{ monitor, demanded, varz, want, err string }{
		{"", Fsync, "", "unknown", ""},
		{srv.URL, Fsync, `{"jetstream":{"config":{"sync_always":true}}}`, Fsync, ""},
		{srv.URL, Interval, `{"jetstream":{"config":{"sync_always":true}}}`, Fsync, ""},
		{srv.URL, Fsync, `{"jetstream":{"config":{}}}`, "", "sync_interval"},
		{srv.URL, Interval, `{"jetstream":{"config":{}}}`, Interval, ""},
		{srv.URL, Fsync, `{}`, "unknown", ""},
		{srv.URL + "/elsewhere", Fsync, ``, "unknown", ""},
	} {
		answer = c.varz
		got, err := outsideDurability(t.Context(), Config{Durability: c.demanded, NatsMonitorURL: c.monitor}, log)
		if got != c.want || (err == nil) != (c.err == "") || (err != nil && !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s with %s: got %q, %v", c.demanded, c.varz, got, err)
		}
	}
}

func TestBinaryEventSurvives(t *testing.T) {
	b := newBench(t, testConfig())
	b.do(post(sealed(t, newPair, "demo", corp, "\xff\x00\x01")))
	if got, want := string(b.broker.stored[0].Data), base64.StdEncoding.EncodeToString([]byte("\xff\x00\x01")); !strings.Contains(got, `"data_base64":"`+want+`"`) {
		t.Errorf("got %s, want data_base64 %s", got, want)
	}
}

// The line that the gateway writes by itself is the line that slog would write.
func TestPublishedLineIsSlogs(t *testing.T) {
	for _, s := range []*scratch{
		{id: "m-7100000000000000001", typ: "wecom.message.text"},
		{id: `m-a"b\c`, typ: "wecom.message.text"},
		{id: "m-1", typ: "wecom.event.新\n"},
	} {
		var ours, theirs bytes.Buffer
		log, flush := ops.Log(&ours, slog.LevelInfo)
		start, took := time.Now(), 1234567*time.Nanosecond
		(&Gateway{log: log}).published(&app{name: "demo"}, s, true, start, took)
		flush()
		(&Gateway{log: slog.New(slog.NewJSONHandler(&theirs, nil))}).published(&app{name: "demo"}, s, true, start, took)
		decode := func(b []byte) map[string]any {
			var m map[string]any
			if err := json.Unmarshal(b, &m); err != nil {
				t.Fatalf("%s: %v", b, err)
			}
			if _, err := time.Parse(time.RFC3339Nano, m["time"].(string)); err != nil {
				t.Error(err)
			}
			delete(m, "time")
			return m
		}
		if got, want := decode(ours.Bytes()), decode(theirs.Bytes()); !reflect.DeepEqual(got, want) {
			t.Errorf("got %v, want %v", got, want)
		}
		if strings.Count(ours.String(), "\n") != 1 {
			t.Errorf("got %q, want one line", ours.String())
		}
	}
}
