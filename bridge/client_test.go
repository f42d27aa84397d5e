package bridge_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wecom-bridge/wecom-bridge/bridge"
	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/bustest"
)

// rig is a client, and a look at the streams behind it.
type rig struct {
	*bridge.Client
	t   *testing.T
	bus *bus.Bus
	url string
}

func newRig(t *testing.T) *rig {
	t.Helper()
	r := &rig{t: t, url: bustest.Start(t).URL()}
	var err error
	if r.bus, err = bus.Connect(t.Context(), bus.Options{URL: r.url, Name: "test"}); err != nil {
		t.Fatal(err)
	}
	if err := r.bus.Provision(t.Context()); err != nil {
		t.Fatal(err)
	}
	r.Client = r.connect()
	t.Cleanup(func() { _ = r.bus.Close(context.Background()) })
	return r
}

func (r *rig) connect() *bridge.Client {
	r.t.Helper()
	c, err := bridge.Connect(r.t.Context(), bridge.Options{URL: r.url, Name: "test"})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { _ = c.Close(context.Background()) })
	return c
}

// publish stores a text of alice's, as a gateway does.
func (r *rig) publish(id, text string) {
	r.t.Helper()
	data, err := json.Marshal(map[string]string{"FromUserName": "alice", "MsgType": "text", "Content": text})
	if err != nil {
		r.t.Fatal(err)
	}
	ev := bridge.Event{ID: id, Source: "/wecom/ww1/demo", Type: "wecom.message.text", Subject: "alice", App: "demo", PartitionKey: "alice", Data: data}
	if _, err := r.bus.Publish(r.t.Context(), &bus.Msg{
		Subject: bus.EventSubject(bus.Slot("demo", "alice"), "demo", []string{"message", "text"}), ID: "demo/" + id, Data: ev.AppendJSON(nil),
	}); err != nil {
		r.t.Fatal(err)
	}
}

// outbox returns the first n messages of the outbox, and fails if there is one more.
func (r *rig) outbox(n int) []*bus.Stored {
	r.t.Helper()
	list := r.read(bus.StreamOutbox, n)
	if extra, err := r.bus.Get(r.t.Context(), bus.StreamOutbox, uint64(n)+1); err == nil {
		r.t.Errorf("one message more than %d: %s %s", n, extra.ID, extra.Data)
	}
	return list
}

// read returns the first n messages of a stream as soon as it holds them.
func (r *rig) read(stream string, n int) []*bus.Stored {
	r.t.Helper()
	var list []*bus.Stored
	for deadline := time.Now().Add(20 * time.Second); len(list) < n; {
		s, err := r.bus.Get(r.t.Context(), stream, uint64(len(list))+1)
		switch {
		case err == nil:
			list = append(list, s)
		case time.Now().After(deadline):
			r.t.Fatalf("%s: got %d messages, want %d: %v", stream, len(list), n, err)
		default:
			time.Sleep(5 * time.Millisecond)
		}
	}
	return list
}

// consume runs a handler until the test ends or stop is called.
func (r *rig) consume(c bridge.Consumer, h bridge.Handler) (stop func()) {
	r.t.Helper()
	ctx, cancel := context.WithCancel(r.t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Consume(ctx, c, h) }()
	var once sync.Once
	stop = func() {
		once.Do(func() {
			cancel()
			if err := <-done; err != nil {
				r.t.Errorf("Consume: %v", err)
			}
		})
	}
	r.t.Cleanup(stop)
	return stop
}

func TestHandlersMessagesAreStoredUnderIDsOfTheEvent(t *testing.T) {
	r := newRig(t)
	r.consume(bridge.Consumer{Name: "echo", Filter: "demo.message.text"}, func(_ context.Context, ev *bridge.Event) ([]bridge.Message, error) {
		return bridge.Reply(ev, bridge.Text("", "re "+ev.Text()), bridge.JSON("appchat/send", map[string]string{"chatid": "room"})), nil
	})
	r.publish("m-1", "hello")
	got := r.outbox(2)
	slot := func(key string) string { return fmt.Sprintf("wecom.outbox.%d.demo.%s", bus.Slot("demo", key), key) }
	for i, want := range []struct{ id, subject, body, api string }{
		{"demo/m-1/echo/0", slot("alice"), `{"touser":"alice","msgtype":"text","text":{"content":"re hello"}}`, ""},
		{"demo/m-1/echo/1", slot("room"), `{"chatid":"room"}`, "appchat/send"},
	} {
		s := got[i]
		if s.ID != want.id || s.Subject != want.subject || string(s.Data) != want.body || s.Header["Wecom-Api"] != want.api || s.Header["Bridge-Event"] != "m-1" {
			t.Errorf("message %d: got %s on %s: %s %v", i, s.ID, s.Subject, s.Data, s.Header)
		}
	}
}

// The first answer that was stored wins, also when the handler says something else the
// next time.
func TestRepeatedHandlerDoesNotRepeatItsMessages(t *testing.T) {
	r := newRig(t)
	calls := make(chan int, 10)
	n := 0
	r.consume(bridge.Consumer{Name: "echo"}, func(_ context.Context, ev *bridge.Event) ([]bridge.Message, error) {
		n++
		calls <- n
		messages := bridge.Reply(ev, bridge.Text("", fmt.Sprint("answer ", n)))
		if n == 1 {
			// The second message cannot be stored, after the first one was: as if the process
			// had died in between, but for the time that takes.
			return append(messages, bridge.Message{To: "alice", Body: json.RawMessage(`{"big":"` + strings.Repeat("x", 9<<20) + `"}`)}), nil
		}
		return messages, nil
	})
	r.publish("m-1", "hello")
	<-calls
	dead := r.read(bus.StreamDead, 1) // over max_payload: no retry can mend that
	if dead[0].Header["Bridge-Id"] != "demo/m-1" || dead[0].Subject != "wecom.dead.WECOM_EVENTS.echo" {
		t.Errorf("got dead letter %s %v", dead[0].Subject, dead[0].Header)
	}
	if _, err := r.bus.Publish(t.Context(), &bus.Msg{ // replayed by an operator
		Subject: dead[0].Header["Bridge-Dead-Subject"], ID: "replay:1", Header: bus.Header{"Bridge-Replay": "echo"}, Data: dead[0].Data,
	}); err != nil {
		t.Fatal(err)
	}
	if second := <-calls; second != 2 {
		t.Fatalf("got call %d", second)
	}
	r.publish("m-2", "more")
	got := r.outbox(2)
	if !strings.Contains(string(got[0].Data), "answer 1") || got[1].ID != "demo/m-2/echo/0" {
		t.Errorf("got %s and %s %s, want the first answer once and then that of m-2", got[0].Data, got[1].ID, got[1].Data)
	}
}

func TestHandlersErrorIsTheVerdict(t *testing.T) {
	r := newRig(t)
	var mu sync.Mutex
	var handled []string
	r.consume(bridge.Consumer{Name: "verdicts", MaxAttempts: 3}, func(_ context.Context, ev *bridge.Event) ([]bridge.Message, error) {
		mu.Lock()
		defer mu.Unlock()
		handled = append(handled, ev.Text())
		count := 0
		for _, h := range handled {
			if h == ev.Text() {
				count++
			}
		}
		switch {
		case ev.Text() == "reject":
			return nil, fmt.Errorf("wrapped: %w", bridge.Reject(errors.New("no such order")))
		case ev.Text() == "later" && count < 2:
			return nil, bridge.RetryAfter(10*time.Millisecond, errors.New("busy"))
		case ev.Text() == "panic":
			panic("at the handler")
		}
		return bridge.Reply(ev, bridge.Text("", "ok "+ev.Text())), nil
	})
	for i, text := range []string{"reject", "later", "last"} {
		r.publish(fmt.Sprint("m-", i), text)
	}
	got := r.outbox(2)
	if !strings.Contains(string(got[0].Data), "ok later") || !strings.Contains(string(got[1].Data), "ok last") {
		t.Errorf("got %s and %s, want later before last", got[0].Data, got[1].Data)
	}
	dead := r.read(bus.StreamDead, 1)[0]
	if reason := dead.Header["Bridge-Dead-Reason"]; !strings.Contains(reason, "no such order") {
		t.Errorf("got reason %q", reason)
	}
	mu.Lock()
	if want := "reject later later last"; strings.Join(handled, " ") != want {
		t.Errorf("handled %v, want %s", handled, want)
	}
	mu.Unlock()
}

func TestConsumersOfOneNameShareAndOthersSeeAll(t *testing.T) {
	r := newRig(t)
	count := func(n *sync.Map) bridge.Handler {
		return func(_ context.Context, ev *bridge.Event) ([]bridge.Message, error) {
			if _, twice := n.LoadOrStore(ev.ID, true); twice {
				t.Errorf("event %s was handled twice", ev.ID)
			}
			return bridge.Reply(ev, bridge.Text("", ev.ID)), nil
		}
	}
	var shared, other sync.Map
	r.consume(bridge.Consumer{Name: "shared"}, count(&shared))
	r.consume(bridge.Consumer{Name: "shared"}, count(&shared))
	r.consume(bridge.Consumer{Name: "other", Filter: "*.message.>"}, count(&other))
	for i := range 10 {
		r.publish(fmt.Sprint("m-", i), "x")
	}
	seen := make(map[string]int)
	for _, s := range r.outbox(20) {
		seen[s.ID]++
	}
	if len(seen) != 20 {
		t.Errorf("got %d different messages, want 10 of each consumer", len(seen))
	}
}

func TestConsumeRefusesWhatCannotWork(t *testing.T) {
	r := newRig(t)
	silent := func(context.Context, *bridge.Event) ([]bridge.Message, error) { return nil, nil }
	for name, c := range map[string]bridge.Consumer{
		"no name":      {},
		"dot":          {Name: "a.b"},
		"long":         {Name: strings.Repeat("a", 33)},
		"filter":       {Name: "a", Filter: "demo..text"},
		"whole prefix": {Name: "a", Filter: "wecom.event *"},
		"inner >":      {Name: "a", Filter: "demo.>.text"},
	} {
		if err := r.Consume(t.Context(), c, silent); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
	set := make(chan struct{})
	stop := r.consume(bridge.Consumer{Name: "fixed", Filter: "demo.message.text", Ready: func() { close(set) }}, silent)
	<-set
	stop()
	if err := r.Consume(t.Context(), bridge.Consumer{Name: "fixed", Filter: "demo.event.click"}, silent); err == nil || !strings.Contains(err.Error(), "another name") {
		t.Errorf("another filter under the same name: got %v, want an error that says what to do", err)
	}
}

func TestSendStoresOnceForOneID(t *testing.T) {
	r := newRig(t)
	expires := time.Date(2030, 1, 2, 3, 4, 5, 0, time.UTC)
	m := bridge.Text("Alice", "hello")
	m.ID, m.Expires = "order-7", expires
	for range 2 {
		if err := r.Send(t.Context(), "demo", m); err != nil {
			t.Fatal(err)
		}
	}
	if err := r.Send(t.Context(), "demo", bridge.Text("alice", "bye")); err != nil {
		t.Fatal(err)
	}
	got := r.outbox(2)
	if got[0].ID != "demo/order-7" || got[0].Header["Bridge-Expires"] != "2030-01-02T03:04:05Z" {
		t.Errorf("got %s %v", got[0].ID, got[0].Header)
	}
	if !strings.HasPrefix(got[1].ID, "demo/c-") || got[1].Subject != got[0].Subject {
		t.Errorf("got %s on %s, want an id of its own in the same order", got[1].ID, got[1].Subject)
	}
	if err := r.Send(t.Context(), "demo", bridge.Message{To: "a", Body: json.RawMessage(`[]`)}); err == nil {
		t.Error("a body that is no object was stored")
	}
}

func TestReceipt(t *testing.T) {
	r := newRig(t)
	if _, err := r.Receipt(t.Context(), "demo", "m-1/echo/0"); !errors.Is(err, bridge.ErrNoReceipt) {
		t.Errorf("got %v, want ErrNoReceipt", err)
	}
	if _, err := r.bus.Publish(t.Context(), &bus.Msg{
		Subject: bus.ReceiptSubject("demo", "sent", "m-1/echo/0"),
		Data:    []byte(`{"specversion":"1.0","id":"m-1/echo/0","source":"/wecom/ww1/demo","type":"wecom.receipt.sent","data":{"message":"m-1/echo/0","event":"m-1","api":"message/send","msgid":"abc","attempts":1,"took_ms":7}}`),
	}); err != nil {
		t.Fatal(err)
	}
	got, err := r.Receipt(t.Context(), "demo", "m-1/echo/0")
	if err != nil || got.Status != bridge.Sent || got.MsgID != "abc" || got.TookMS != 7 {
		t.Errorf("got %+v, %v", got, err)
	}
}

func TestFilterSpellsOddValues(t *testing.T) {
	if got, want := bridge.Filter("demo", "payment", "TRANSACTION.SUCCESS"), "demo.payment.=VFJBTlNBQ1RJT04uU1VDQ0VTUw"; got != want {
		t.Errorf("got %s, want %s", got, want)
	}
}

func TestConnectWaitsForNoServer(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Second)
	defer cancel()
	c, err := bridge.Connect(ctx, bridge.Options{URL: "nats://127.0.0.1:1"})
	if err != nil {
		t.Fatalf("got %v, want a client that goes on trying", err)
	}
	defer func() { _ = c.Close(context.Background()) }()
	if c.Connected() {
		t.Error("connected to nobody")
	}
	if err := c.Send(ctx, "demo", bridge.Text("alice", "x")); err == nil {
		t.Error("a message was stored nowhere")
	}
	if _, err := bridge.Connect(ctx, bridge.Options{URL: "nats://127.0.0.1:1", Creds: "/nowhere/creds"}); err == nil {
		t.Error("a file that is not there was taken")
	}
}
