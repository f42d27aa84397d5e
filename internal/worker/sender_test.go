package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/testutil"

	"github.com/wecom-bridge/wecom-bridge/bridge"
	"github.com/wecom-bridge/wecom-bridge/internal/bus"
)

// clock is a time that passes when a test says so.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// bench is a sender with a bus of maps and a clock of its own.
type bench struct {
	*sender
	t        *testing.T
	wecom    *fakeWeCom
	clock    clock
	receipts map[string]*bus.Stored // by subject
	publish  func(*bus.Msg) error   // if set, may refuse a receipt
	lookup   error                  // if set, what a look for receipts ends in
	logs     bytes.Buffer
}

func newBench(t *testing.T) *bench {
	b := &bench{t: t, wecom: newFake(t), clock: clock{at: time.Date(2026, 2, 2, 2, 40, 0, 0, time.UTC)}, receipts: make(map[string]*bus.Stored)}
	b.wecom.now = b.clock.now
	b.sender = b.newSender()
	return b
}

// newSender is another process with the same bus.
func (b *bench) newSender() *sender {
	log := slog.New(slog.NewJSONHandler(&b.logs, nil))
	s := &sender{
		apps: make(map[string]*app), log: log, metrics: newMetrics(prometheus.NewRegistry()), wait: time.Minute,
		now: b.clock.now, tries: make(map[uint64]*try),
		publish: func(_ context.Context, m *bus.Msg) (bus.Ack, error) {
			if b.publish != nil {
				if err := b.publish(m); err != nil {
					return bus.Ack{}, err
				}
			}
			for _, r := range b.receipts {
				if r.ID == m.ID {
					return bus.Ack{Duplicate: true}, nil
				}
			}
			b.receipts[m.Subject] = &bus.Stored{Subject: m.Subject, ID: m.ID, Header: m.Header, Data: m.Data}
			return bus.Ack{}, nil
		},
		last: func(_ context.Context, stream, subject string) (*bus.Stored, error) {
			if b.lookup != nil {
				return nil, b.lookup
			}
			before, after, ok := strings.Cut(subject, "*")
			if stream != bus.StreamReceipts || !ok {
				b.t.Errorf("looked for %s in %s", subject, stream)
			}
			for s, r := range b.receipts {
				if strings.HasPrefix(s, before) && strings.HasSuffix(s, after) {
					return r, nil
				}
			}
			return nil, bus.ErrNotFound
		},
	}
	for _, a := range []App{
		{Name: "demo", CorpID: "ww1", AgentID: "1000002", Secret: b.wecom.secret},
		{Name: "named", CorpID: "ww1", AgentID: "ops-agent", Secret: b.wecom.secret},
		{Name: "bare", CorpID: "ww1", Secret: b.wecom.secret},
		{Name: "nosecret", CorpID: "ww1", AgentID: "1"},
		{Name: "wrong", CorpID: "ww1", AgentID: "1", Secret: "another-secret"},
	} {
		s.apps[a.Name] = newApp(a, b.wecom.URL)
	}
	return s
}

const hi = `{"touser":"alice","msgtype":"text","text":{"content":"hi"}}`

// delivery is the first delivery of a message with that body.
func (b *bench) delivery(seq uint64, body string, header ...string) *bus.Delivery {
	d := &bus.Delivery{Attempt: 1, App: "demo", Consumer: "sender", Stored: bus.Stored{
		Subject: "wecom.outbox.7.demo.alice", ID: fmt.Sprintf("demo/m-%d/bot/0", seq), Data: []byte(body), Seq: seq,
		Stream: bus.StreamOutbox, Time: b.clock.now(), Header: bus.Header{"Bridge-Event": fmt.Sprintf("m-%d", seq)},
	}}
	for i := 0; i+1 < len(header); i += 2 {
		d.Header[header[i]] = header[i+1]
	}
	return d
}

// receipt returns the one receipt there is.
func (b *bench) receipt() (bridge.Event, bridge.Receipt) {
	b.t.Helper()
	if len(b.receipts) != 1 {
		b.t.Fatalf("%d receipts, want 1: %v", len(b.receipts), slices.Collect(maps.Keys(b.receipts)))
	}
	var ev bridge.Event
	var r bridge.Receipt
	for subject, s := range b.receipts {
		if err := json.Unmarshal(s.Data, &ev); err != nil {
			b.t.Fatal(err)
		}
		if err := ev.Decode(&r); err != nil {
			b.t.Fatal(err)
		}
		r.Status = strings.TrimPrefix(ev.Type, "wecom.receipt.")
		if want := bus.ReceiptSubject(ev.App, r.Status, ev.ID); subject != want {
			b.t.Errorf("receipt on %s, want %s", subject, want)
		}
		if s.Header["Content-Type"] != bridge.ContentType {
			b.t.Errorf("receipt has headers %v", s.Header)
		}
	}
	return ev, r
}

func TestSend(t *testing.T) {
	b := newBench(t)
	d := b.delivery(1, hi)
	b.clock.pass(1500 * time.Millisecond)
	if err := b.handle(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	calls, _ := b.wecom.seen()
	if want := `{"touser":"alice","msgtype":"text","text":{"content":"hi"},"agentid":1000002}`; len(calls) != 1 || calls[0].raw != want || calls[0].api != "message/send" {
		t.Fatalf("calls %+v, want one with %s", calls, want)
	}
	ev, r := b.receipt()
	want := bridge.Receipt{Status: "sent", Message: "m-1/bot/0", Event: "m-1", API: "message/send", ErrMsg: "ok", MsgID: "msgid-1", Attempts: 1, TookMS: 1500}
	if fmt.Sprint(r) != fmt.Sprint(want) {
		t.Errorf("receipt %+v\nwant    %+v", r, want)
	}
	if ev.ID != "m-1/bot/0" || ev.Type != "wecom.receipt.sent" || ev.Source != "/wecom/ww1/demo" || ev.App != "demo" || ev.CorpID != "ww1" || ev.AgentID != "1000002" || !ev.Time.Equal(b.clock.now().Truncate(time.Second)) {
		t.Errorf("event %+v", ev)
	}
	if len(b.tries) != 0 {
		t.Errorf("%d messages remembered after their end", len(b.tries))
	}
	for _, want := range []string{`"msg":"message sent"`, `"message":"m-1/bot/0"`, `"event":"m-1"`, `"app":"demo"`, `"errcode":0`, `"attempt":1`} {
		if strings.Count(b.logs.String(), want) != 1 {
			t.Errorf("log %s does not have %s once", b.logs.String(), want)
		}
	}
	if strings.Contains(b.logs.String(), "alice") {
		t.Errorf("a user's name is in the log: %s", b.logs.String())
	}
}

func TestBodies(t *testing.T) {
	for name, tt := range map[string]struct{ app, api, body, want string }{
		"verbatim":           {"demo", "", "{ \"touser\":\"a\",\n\"text\":{\"content\":\"<a href=\\\"x\\\">你好</a>\"} }", "{ \"touser\":\"a\",\n\"text\":{\"content\":\"<a href=\\\"x\\\">你好</a>\"},\"agentid\":1000002 }"},
		"own agentid stays":  {"demo", "", `{"agentid":7}`, `{"agentid":7}`},
		"own as text stays":  {"demo", "", `{"agentid":"7"}`, `{"agentid":"7"}`},
		"null is filled":     {"demo", "", `{"agentid":null,"a":1}`, `{"agentid":1000002,"a":1}`},
		"not a number":       {"named", "", `{"a":1}`, `{"a":1,"agentid":"ops-agent"}`},
		"none configured":    {"bare", "", `{"a":1}`, `{"a":1}`},
		"card":               {"demo", "message/update_template_card", `{"a":1}`, `{"a":1,"agentid":1000002}`},
		"chat has none":      {"demo", "appchat/send", `{"chatid":"c"}`, `{"chatid":"c"}`},
		"anything else, too": {"demo", "externalcontact/mark_tag", `{"a":[1,2]}`, `{"a":[1,2]}`},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			d := b.delivery(1, tt.body)
			d.App, d.ID = tt.app, tt.app+"/x"
			if tt.api != "" {
				d.Header["Wecom-Api"] = tt.api
			}
			if err := b.handle(t.Context(), d); err != nil {
				t.Fatal(err)
			}
			calls, _ := b.wecom.seen()
			if len(calls) != 1 || calls[0].raw != tt.want {
				t.Errorf("calls %+v, want body %s", calls, tt.want)
			}
			if tt.api != "" && calls[0].api != tt.api {
				t.Errorf("api %s, want %s", calls[0].api, tt.api)
			}
		})
	}
}

func TestMessageIDs(t *testing.T) {
	for name, tt := range map[string]struct {
		id     string
		header bus.Header
		want   string
	}{
		"ours":               {"demo/m-1/bot/0", nil, "m-1/bot/0"},
		"of another":         {"invoice-7", nil, "invoice-7"},
		"none":               {"", nil, "s-42"},
		"bridge id beside":   {"demo/m-1/bot/0", bus.Header{"Bridge-Id": "m-1/bot/0"}, "m-1/bot/0"},
		"replay":             {"replay:9:1", bus.Header{"Bridge-Replay": "sender", "Bridge-Id": "demo/m-1/bot/0"}, "m-1/bot/0"},
		"replay of a nobody": {"replay:9:1", bus.Header{"Bridge-Replay": "sender", "Bridge-Id": "demo/s-5"}, "s-5"},
	} {
		d := &bus.Delivery{App: "demo", Stored: bus.Stored{ID: tt.id, Seq: 42, Header: tt.header}}
		if got := newMessage(d).id; got != tt.want {
			t.Errorf("%s: id %q, want %q", name, got, tt.want)
		}
	}
	d := &bus.Delivery{App: bus.Token("Weird App"), Stored: bus.Stored{ID: "Weird App/1"}}
	if m := newMessage(d); m.appName != "Weird App" || m.id != "1" {
		t.Errorf("app %q, id %q", m.appName, m.id)
	}
}

// TestVerdicts is the table from what happens to what becomes of the message.
func TestVerdicts(t *testing.T) {
	type want struct {
		status string // of the receipt; "" for none yet
		final  bool   // to the dead letters
		reason string // part of the error
		code   int    // errcode of the receipt
		calls  int    // requests that WeCom saw
	}
	for name, tt := range map[string]struct {
		app, body string
		header    []string
		answer    string
		want      want
	}{
		"ok":                  {want: want{status: "sent", calls: 1}},
		"ok with a warning":   {answer: `{"errcode":0,"errmsg":"ok. Warning: wrong json format. "}`, want: want{status: "sent", calls: 1}},
		"no errcode":          {answer: `{}`, want: want{status: "sent", calls: 1}},
		"partial":             {answer: `{"errcode":0,"errmsg":"ok","invaliduser":"bob|eve","unlicenseduser":["x"]}`, want: want{status: "partial", calls: 1}},
		"81013":               {answer: `{"errcode":81013,"errmsg":"user & party & tag all invalid"}`, want: want{"failed", true, "errcode 81013: user & party & tag all invalid", 81013, 1}},
		"unknown errcode":     {answer: `{"errcode":987654,"errmsg":"new"}`, want: want{"failed", true, "errcode 987654: new", 987654, 1}},
		"60020":               {answer: `{"errcode":60020,"errmsg":"not allow to access from your ip, hint: [1], from ip: 203.0.113.7, more info"}`, want: want{"failed", true, "from ip: 203.0.113.7", 60020, 1}},
		"45009":               {answer: `{"errcode":45009,"errmsg":"api freq out of limit"}`, want: want{reason: "errcode 45009", calls: 1}},
		"busy":                {answer: `{"errcode":-1,"errmsg":"system busy"}`, want: want{reason: "errcode -1", calls: 1}},
		"conflict":            {answer: `{"errcode":6000,"errmsg":"conflict"}`, want: want{reason: "errcode 6000", calls: 1}},
		"token never right":   {answer: `{"errcode":40014,"errmsg":"invalid access_token"}`, want: want{reason: "errcode 40014", calls: 2}},
		"502":                 {answer: `502`, want: want{reason: "outcome unknown: http status 502", calls: 1}},
		"a page":              {answer: `<html>`, want: want{reason: "outcome unknown", calls: 1}},
		"cut":                 {answer: `cut`, want: want{reason: "outcome unknown", calls: 1}},
		"404, documented":     {answer: `404`, want: want{reason: "http status 404", calls: 1}},
		"404, unknown api":    {answer: `404`, header: []string{"Wecom-Api", "no/such_thing"}, want: want{status: "failed", final: true, reason: "no/such_thing: WeCom knows no such api", calls: 1}},
		"301":                 {answer: `301`, want: want{reason: "http status 301", calls: 1}},
		"impossible api":      {header: []string{"Wecom-Api", "../gettoken"}, want: want{status: "failed", final: true, reason: "invalid api name"}},
		"api with a query":    {header: []string{"Wecom-Api", "message/send?debug=1"}, want: want{status: "failed", final: true, reason: "invalid api name"}},
		"bad json":            {body: `{"touser":`, want: want{status: "failed", final: true, reason: "body is not a JSON object"}},
		"array":               {body: `[]`, want: want{status: "failed", final: true, reason: "body is not a JSON object"}},
		"empty":               {body: ` `, want: want{status: "failed", final: true, reason: "body is not a JSON object"}},
		"no secret":           {app: "nosecret", want: want{status: "failed", final: true, reason: "errcode 41004: no secret", code: 41004}},
		"wrong secret":        {app: "wrong", want: want{status: "failed", final: true, reason: "gettoken: errcode 40001", code: 40001}},
		"unknown app":         {app: "nobody", want: want{reason: `app "nobody" is not configured`}},
		"expired":             {header: []string{"Bridge-Expires", "2026-02-02T02:39:59Z"}, want: want{status: "expired"}},
		"expires now":         {header: []string{"Bridge-Expires", "2026-02-02T02:40:00Z"}, want: want{status: "expired"}},
		"expires later":       {header: []string{"Bridge-Expires", "2026-02-02T10:40:01+08:00"}, want: want{status: "sent", calls: 1}},
		"expires, nonsense":   {header: []string{"Bridge-Expires", "soon"}, want: want{status: "failed", final: true, reason: "Bridge-Expires"}},
		"unknown and expired": {app: "nobody", header: []string{"Bridge-Expires", "2026-02-02T02:39:59Z"}, want: want{status: "expired"}},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			if tt.answer != "" {
				b.wecom.judge = func(int, sent) string { return tt.answer }
			}
			body := hi
			if tt.body != "" {
				body = tt.body
			}
			d := b.delivery(1, body, tt.header...)
			if tt.app != "" {
				d.App, d.ID = tt.app, tt.app+"/m-1/bot/0"
			}
			err := b.handle(t.Context(), d)
			if (err != nil) != (tt.want.reason != "") || err != nil && !strings.Contains(err.Error(), tt.want.reason) {
				t.Errorf("error %v, want one with %q", err, tt.want.reason)
			}
			if rejected(err) != tt.want.final {
				t.Errorf("error %v, want a final one: %v", err, tt.want.final)
			}
			if calls, _ := b.wecom.seen(); len(calls) != tt.want.calls {
				t.Errorf("%d calls, want %d", len(calls), tt.want.calls)
			}
			if tt.want.status == "" {
				if len(b.receipts) != 0 {
					t.Errorf("a receipt without an end: %v", b.receipts)
				}
				return
			}
			ev, r := b.receipt()
			if r.Status != tt.want.status || r.ErrCode != tt.want.code || r.Message != "m-1/bot/0" || ev.App != d.App {
				t.Errorf("receipt %+v of app %s", r, ev.App)
			}
			if name == "partial" && (!slices.Equal(r.Invalid.User, []string{"bob", "eve"}) || !slices.Equal(r.Invalid.Unlicensed, []string{"x"})) {
				t.Errorf("invalid recipients %+v", r.Invalid)
			}
			if tt.want.final && r.ErrMsg == "" {
				t.Error("a failed receipt without a reason")
			}
			for _, secret := range []string{b.wecom.secret, "another-secret", "the-token"} {
				if strings.Contains(fmt.Sprint(err), secret) || strings.Contains(b.logs.String(), secret) || strings.Contains(r.ErrMsg, secret) {
					t.Error("a secret shows")
				}
			}
		})
	}
}

func TestReceiptMeansNoSend(t *testing.T) {
	for status, tt := range map[string]struct{ final bool }{"sent": {false}, "partial": {false}, "expired": {false}, "failed": {true}} {
		b := newBench(t)
		d := b.delivery(1, hi)
		m := newMessage(d)
		r := &bridge.Receipt{Status: status, Message: m.id, API: m.api, ErrCode: 81013, ErrMsg: "all invalid"}
		if err := b.store(t.Context(), m, r); err != nil {
			t.Fatal(err)
		}
		d.Attempt = 2
		err := b.handle(t.Context(), d)
		if rejected(err) != tt.final || !tt.final && err != nil {
			t.Errorf("%s: error %v, want a final one: %v", status, err, tt.final)
		}
		if tt.final && !strings.Contains(err.Error(), "message/send: errcode 81013: all invalid") {
			t.Errorf("the dead letter's reason is %q", err)
		}
		// The same message stored a second time, after the stream forgot its id.
		again := b.delivery(9, hi)
		again.ID = d.ID
		if err := b.handle(t.Context(), again); err != nil {
			t.Errorf("%s, stored again: %v", status, err)
		}
		if calls, _ := b.wecom.seen(); len(calls) != 0 || len(b.receipts) != 1 {
			t.Errorf("%s: %d calls, %d receipts", status, len(calls), len(b.receipts))
		}
	}
}

func TestReplayOfAFailedMessage(t *testing.T) {
	for status, want := range map[string]int{"failed": 1, "expired": 1, "sent": 0, "partial": 0} {
		b := newBench(t)
		d := b.delivery(1, hi)
		if err := b.store(t.Context(), newMessage(d), &bridge.Receipt{Status: status, Message: "m-1/bot/0"}); err != nil {
			t.Fatal(err)
		}
		replay := b.delivery(2, hi, "Bridge-Replay", "sender", "Bridge-Id", d.ID)
		replay.ID = "replay:5:1"
		if err := b.handle(t.Context(), replay); err != nil {
			t.Fatal(err)
		}
		if calls, _ := b.wecom.seen(); len(calls) != want {
			t.Errorf("replay of a message that is %s: %d calls, want %d", status, len(calls), want)
		}
		if want == 1 && b.receipts[bus.ReceiptSubject("demo", "sent", "m-1/bot/0")] == nil {
			t.Errorf("no receipt of the replay: %v", b.receipts)
		}
	}
}

func TestLookupFails(t *testing.T) {
	b := newBench(t)
	b.lookup = bus.ErrUnavailable
	if err := b.handle(t.Context(), b.delivery(1, hi)); !errors.Is(err, bus.ErrUnavailable) || rejected(err) {
		t.Errorf("error %v, want one that is tried again", err)
	}
	if calls, _ := b.wecom.seen(); len(calls) != 0 {
		t.Error("sent without knowing whether it was sent")
	}
}

// TestReceiptStoredLate: the bus fails when the receipt is to be stored. The message
// is sent once, however often it is delivered to this process.
func TestReceiptStoredLate(t *testing.T) {
	b := newBench(t)
	fails := 2
	b.sender.publish = wrap(b.sender.publish, func() error {
		if fails--; fails >= 0 {
			return bus.ErrUnavailable
		}
		return nil
	})
	if err := b.handle(t.Context(), b.delivery(1, hi)); err != nil {
		t.Errorf("a bus that comes back at once: %v", err)
	}
	gone := true
	b.sender.publish = wrap(b.sender.publish, func() error {
		if gone {
			return bus.ErrUnavailable
		}
		return nil
	})
	d := b.delivery(2, hi)
	short, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if err := b.sender.apps["demo"].client.Check(t.Context()); err != nil { // a token at hand saves the short time
		t.Fatal(err)
	}
	if err := b.handle(short, d); err == nil || rejected(err) {
		t.Errorf("error %v, want one that is tried again", err)
	}
	gone = false
	d.Attempt = 2
	if err := b.handle(t.Context(), d); err != nil {
		t.Error(err)
	}
	if calls, delivered := b.wecom.seen(); len(calls) != 2 || len(delivered) != 2 {
		t.Errorf("%d calls for 2 messages", len(calls))
	}
	if len(b.receipts) != 2 {
		t.Errorf("%d receipts, want 2", len(b.receipts))
	}
}

func wrap(next func(context.Context, *bus.Msg) (bus.Ack, error), before func() error) func(context.Context, *bus.Msg) (bus.Ack, error) {
	return func(ctx context.Context, m *bus.Msg) (bus.Ack, error) {
		if err := before(); err != nil {
			return bus.Ack{}, err
		}
		return next(ctx, m)
	}
}

func TestReceiptRefused(t *testing.T) {
	b := newBench(t)
	b.publish = func(*bus.Msg) error { return bus.ErrRefused }
	err := b.handle(t.Context(), b.delivery(1, hi))
	if !rejected(err) || !strings.Contains(err.Error(), "m-1/bot/0 is sent, but its receipt was refused") {
		t.Errorf("error %v", err)
	}
}

// TestDuplicateCheck: when a repeat carries WeCom's duplicate check, and how wide.
func TestDuplicateCheck(t *testing.T) {
	type step struct {
		answer  string
		after   time.Duration // since the step before
		restart bool          // another process gets this delivery
		seconds int           // interval that is sent; 0: no check
	}
	for name, tt := range map[string]struct {
		body      string
		api       string
		waited    time.Duration // in the outbox before the first attempt
		steps     []step
		delivered int
	}{
		"first attempt":           {steps: []step{{}}, delivered: 1},
		"ambiguous, then again":   {steps: []step{{answer: "cut"}, {after: time.Second, seconds: 6}}, delivered: 1},
		"not ambiguous":           {steps: []step{{answer: `{"errcode":45009}`}, {after: time.Minute}}, delivered: 1},
		"refused by a proxy":      {steps: []step{{answer: `403`}, {after: time.Second}}, delivered: 1},
		"5xx":                     {steps: []step{{answer: "502"}, {after: 1500 * time.Millisecond, seconds: 7}}, delivered: 1},
		"busy":                    {steps: []step{{answer: `{"errcode":-1}`}, {after: time.Second, seconds: 6}}, delivered: 1},
		"counted from the first":  {steps: []step{{answer: "cut"}, {after: time.Second, answer: "cut", seconds: 6}, {after: 2 * time.Second, seconds: 8}}, delivered: 1},
		"from the ambiguous one":  {steps: []step{{answer: `{"errcode":45009}`}, {after: time.Minute, answer: "cut"}, {after: 2 * time.Second, seconds: 7}}, delivered: 1},
		"not the time in the box": {waited: time.Hour, steps: []step{{answer: "cut"}, {after: time.Second, seconds: 6}}, delivered: 1},
		"after a crash":           {steps: []step{{answer: "cut"}, {after: 30 * time.Second, restart: true, seconds: 35}}, delivered: 1},
		"crash, had waited":       {waited: time.Minute, steps: []step{{answer: "cut"}, {after: 30 * time.Second, restart: true, seconds: 95}}, delivered: 1},
		"crash long ago":          {steps: []step{{answer: "cut"}, {after: 5 * time.Hour, restart: true, seconds: 14400}}, delivered: 2},
		"crash, refused before":   {steps: []step{{answer: `{"errcode":45009}`}, {after: time.Minute, restart: true, seconds: 65}}, delivered: 1},
		"own wider window stays":  {body: `{"touser":"a","enable_duplicate_check":1,"duplicate_check_interval":600}`, steps: []step{{answer: "cut", seconds: 600}, {after: time.Second, seconds: 600}}, delivered: 1},
		"own default stays":       {body: `{"touser":"a","enable_duplicate_check":1}`, steps: []step{{answer: "cut", seconds: -1}, {after: time.Second, seconds: -1}}, delivered: 2},
		"own narrow one widens":   {body: `{"touser":"a","enable_duplicate_check":1,"duplicate_check_interval":1}`, steps: []step{{answer: "cut", seconds: 1}, {after: 3 * time.Second, seconds: 8}}, delivered: 1},
		"own off turns on":        {body: `{"touser":"a","enable_duplicate_check":0,"duplicate_check_interval":900}`, steps: []step{{answer: "cut"}, {after: time.Second, seconds: 6}}, delivered: 1},
		"only for message/send":   {api: "appchat/send", body: `{"chatid":"c"}`, steps: []step{{answer: "cut"}, {after: time.Second}}, delivered: 2},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.wecom.judge = func(n int, _ sent) string { return tt.steps[n-1].answer }
			body := hi
			if tt.body != "" {
				body = tt.body
			}
			d := b.delivery(1, body)
			if tt.api != "" {
				d.Header["Wecom-Api"] = tt.api
			}
			b.clock.pass(tt.waited)
			for i, s := range tt.steps {
				b.clock.pass(s.after)
				if s.restart {
					b.sender = b.newSender()
				}
				d.Attempt = i + 1
				err := b.handle(t.Context(), d)
				if (err == nil) != (i == len(tt.steps)-1) {
					t.Fatalf("attempt %d: %v", i+1, err)
				}
			}
			calls, delivered := b.wecom.seen()
			for i, s := range tt.steps {
				c := calls[i]
				if s.seconds == -1 { // the publisher's own flag and no interval
					s.seconds = 0
					c.check--
				}
				if (c.check == 1) != (s.seconds > 0) || c.check == 1 && c.interval != s.seconds {
					t.Errorf("attempt %d: check %d of %d seconds, want %d: %s", i+1, c.check, c.interval, s.seconds, c.raw)
				}
			}
			if tt.body == "" && len(delivered) != tt.delivered {
				t.Errorf("delivered %d times, want %d", len(delivered), tt.delivered)
			}
		})
	}
}

// TestEqualTexts: two equal replies, a second apart, are two messages, also when the
// second meets a frequency limit.
func TestEqualTexts(t *testing.T) {
	b := newBench(t)
	b.wecom.judge = func(n int, _ sent) string {
		if n == 2 {
			return `{"errcode":45009,"errmsg":"api freq out of limit"}`
		}
		return ""
	}
	if err := b.handle(t.Context(), b.delivery(1, hi)); err != nil {
		t.Fatal(err)
	}
	b.clock.pass(time.Second)
	d := b.delivery(2, hi)
	if err := b.handle(t.Context(), d); err == nil {
		t.Fatal("45009 was no failure")
	}
	b.clock.pass(time.Minute)
	d.Attempt = 2
	if err := b.handle(t.Context(), d); err != nil {
		t.Fatal(err)
	}
	if _, delivered := b.wecom.seen(); len(delivered) != 2 {
		t.Errorf("%d of 2 equal texts delivered", len(delivered))
	}
}

// TestGivingUp: how long failures that should pass are tried.
func TestGivingUp(t *testing.T) {
	for name, tt := range map[string]struct {
		answer string
		after  time.Duration // between deliveries
		most   int           // deliveries until it counts as failed; 0: never within 100
		status string
	}{
		"conflict":      {`{"errcode":6000,"errmsg":"conflict"}`, time.Minute, busyTries, "failed"},
		"token":         {`{"errcode":40014,"errmsg":"invalid access_token"}`, time.Minute, tokenTries, "failed"},
		"busy, 4 hours": {`{"errcode":-1,"errmsg":"system busy"}`, 30 * time.Minute, 9, "failed"},
		"502, 4 hours":  {`502`, 30 * time.Minute, 9, "failed"},
		"limit":         {`{"errcode":45009,"errmsg":"api freq out of limit"}`, time.Hour, 0, ""},
		"proxy refuses": {`403`, time.Hour, 0, ""},
	} {
		t.Run(name, func(t *testing.T) {
			b := newBench(t)
			b.wecom.judge = func(int, sent) string { return tt.answer }
			d := b.delivery(1, hi)
			for i := 1; i <= 100; i++ {
				d.Attempt = i
				err := b.handle(t.Context(), d)
				if err == nil {
					t.Fatal("no error")
				}
				if rejected(err) {
					if i != tt.most {
						t.Errorf("gave up at delivery %d, want %d: %v", i, tt.most, err)
					}
					if _, r := b.receipt(); r.Status != tt.status || r.Attempts != i {
						t.Errorf("receipt %+v", r)
					}
					return
				}
				b.clock.pass(tt.after)
			}
			if tt.most != 0 {
				t.Errorf("still tried after 100 deliveries, want %d", tt.most)
			}
		})
	}
}

func TestFrequencyLimitDelays(t *testing.T) {
	b := newBench(t)
	b.wecom.judge = func(int, sent) string { return `{"errcode":45009,"errmsg":"api freq out of limit"}` }
	d := b.delivery(1, hi)
	var got []time.Duration
	for i := range 12 {
		d.Attempt = i + 1
		f := b.attempt(t.Context(), newMessage(d), b.begin(d))
		if f == nil || f.final {
			t.Fatalf("failure %+v", f)
		}
		got = append(got, f.after)
	}
	if want := []time.Duration{time.Minute, 2 * time.Minute, 4 * time.Minute, 8 * time.Minute, 15 * time.Minute, 15 * time.Minute}; !slices.Equal(got[:6], want) || got[11] != 15*time.Minute {
		t.Errorf("delays %v, want %v …", got, want)
	}
}

// TestDoneBefore: a repeat that WeCom refuses because it knows its id was done.
func TestDoneBefore(t *testing.T) {
	for api, code := range map[string]int{"kf/send_msg": 95033, "appchat/create": 86215} {
		b := newBench(t)
		b.wecom.judge = func(n int, _ sent) string {
			if n == 1 {
				return "cut"
			}
			return fmt.Sprintf(`{"errcode":%d,"errmsg":"known"}`, code)
		}
		d := b.delivery(1, `{"msgid":"x"}`, "Wecom-Api", api)
		if err := b.handle(t.Context(), d); err == nil {
			t.Fatal("a cut connection was no failure")
		}
		d.Attempt = 2
		if err := b.handle(t.Context(), d); err != nil {
			t.Errorf("%s: %v", api, err)
		} else if _, r := b.receipt(); r.Status != "sent" {
			t.Errorf("%s: receipt %+v", api, r)
		}
		// Without an attempt before, it is somebody else's id.
		if err := b.handle(t.Context(), b.delivery(2, `{"msgid":"x"}`, "Wecom-Api", api)); !rejected(err) {
			t.Errorf("%s at the first attempt: %v", api, err)
		}
	}
}

func TestAppStates(t *testing.T) {
	b := newBench(t)
	b.wecom.judge = func(n int, _ sent) string {
		if n == 1 {
			return `{"errcode":60020,"errmsg":"not allow to access from your ip, from ip: 203.0.113.7"}`
		}
		return ""
	}
	for _, name := range []string{"demo", "nosecret", "wrong"} {
		d := b.delivery(1, hi)
		d.App = name
		if err := b.handle(t.Context(), d); !rejected(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, want := range map[string]string{"demo": "from ip: 203.0.113.7", "nosecret": "no secret", "wrong": "errcode 40001", "bare": "ok"} {
		if got := b.apps[name].state(); !strings.Contains(got, want) {
			t.Errorf("app %s is %q, want %q", name, got, want)
		}
	}
	if err := b.handle(t.Context(), b.delivery(2, hi)); err != nil {
		t.Fatal(err)
	}
	if got := b.apps["demo"].state(); got != "ok" {
		t.Errorf("after a success the app is %q", got)
	}
}

func TestSenderForgets(t *testing.T) {
	b := newBench(t)
	for seq := range uint64(1024) {
		b.begin(b.delivery(seq, hi))
	}
	b.clock.pass(5 * time.Hour)
	b.begin(b.delivery(5000, hi))
	if n := len(b.tries); n != 1 {
		t.Errorf("%d messages remembered that went elsewhere, want none of the old ones", n-1)
	}
}

func TestSenderMetrics(t *testing.T) {
	b := newBench(t)
	b.wecom.judge = func(n int, _ sent) string {
		return []string{"", `{"errcode":0,"invaliduser":"x"}`, `{"errcode":81013}`, "cut", `{"errcode":45009}`}[n-1]
	}
	for seq := range uint64(5) {
		_ = b.handle(t.Context(), b.delivery(seq+1, hi))
	}
	_ = b.handle(t.Context(), b.delivery(6, `[]`, "Wecom-Api", "some/thing"))
	stranger := b.delivery(7, hi)
	stranger.App = "stranger"
	_ = b.handle(t.Context(), stranger)
	for labels, want := range map[[4]string]float64{
		{"demo", "message/send", "sent", ""}:              1,
		{"demo", "message/send", "partial", ""}:           1,
		{"demo", "message/send", "failed", "bad-request"}: 1,
		{"demo", "other", "failed", "local"}:              1,
	} {
		if got := testutil.ToFloat64(b.metrics.messages.WithLabelValues(labels[:]...)); got != want {
			t.Errorf("messages %v: %v, want %v", labels, got, want)
		}
	}
	for labels, want := range map[[2]string]float64{{"demo", "ambiguous"}: 1, {"demo", "retry-later"}: 1, {"other", "unknown-app"}: 1} {
		if got := testutil.ToFloat64(b.metrics.retries.WithLabelValues(labels[:]...)); got != want {
			t.Errorf("retries %v: %v, want %v", labels, got, want)
		}
	}
}
