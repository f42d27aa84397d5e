package e2e

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/wecom-bridge/wecom-bridge/bridge"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/bustest"
	_ "github.com/wecom-bridge/wecom-bridge/internal/bus/bustest/container" // with BRIDGE_TEST_NATS=container
	"github.com/wecom-bridge/wecom-bridge/internal/wecom"
	"github.com/wecom-bridge/wecom-bridge/internal/wecomsim"
)

const embedded = "nats://127.0.0.1:4222"

// A gateway and two workers as three processes, with the gateway's own NATS.
func TestThousandTextsAreAnsweredOnceAndInOrder(t *testing.T) {
	needEmbedded(t)
	r := newRig(t, 1)
	g := r.gateway(0)
	first, second := r.start("worker"), r.start("worker")
	g.awaitReady(http.StatusOK)
	first.awaitReady(http.StatusOK)
	second.awaitReady(http.StatusOK)
	if lost := r.chat(50, 0, 20); lost != 0 {
		t.Errorf("%d callbacks were not acknowledged", lost)
	}
	r.answered(50, 20, time.Minute)
	for _, p := range []*process{first, second, g} {
		p.stop()
	}
}

func TestKilledWorkerNeitherLosesNorRepeatsNorReorders(t *testing.T) {
	needEmbedded(t)
	r := newRig(t, 1)
	g := r.gateway(0)
	victim, other := r.start("worker"), r.start("worker")
	for _, p := range []*process{g, victim, other} {
		p.awaitReady(http.StatusOK)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		if lost := r.chat(50, 0, 20); lost != 0 {
			t.Errorf("%d callbacks were not acknowledged", lost)
		}
	})
	eventually(t, time.Minute, func() error {
		total := 0
		for u := range 50 {
			total += len(r.sim.Inbox(user(u)))
		}
		if total < 300 {
			return fmt.Errorf("only %d replies yet", total)
		}
		return nil
	})
	victim.kill()
	wg.Wait()
	r.answered(50, 20, 2*time.Minute)
}

// Every callback that got a 200 is in the stream once, whenever the gateway died.
func TestKilledGatewayKeepsWhatItAcknowledged(t *testing.T) {
	needEmbedded(t)
	r := newRig(t, 1)
	g := r.gateway(0)
	g.awaitReady(http.StatusOK)

	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	acknowledged := make(map[string]bool)
	for u := range 16 {
		wg.Go(func() {
			for n := 0; ctx.Err() == nil; n++ {
				res, err := r.sim.Say(context.WithoutCancel(ctx), wecomsim.SayRequest{App: "demo", User: user(u), Content: fmt.Sprint(n)})
				if err == nil && res.Delivered() {
					mu.Lock()
					acknowledged[res.Event] = true
					mu.Unlock()
				}
			}
		})
	}
	for range 4 {
		time.Sleep(200*time.Millisecond + rand.N(400*time.Millisecond)) // any point will do
		g.kill()
		g = r.gateway(0)
		g.awaitReady(http.StatusOK)
	}
	time.Sleep(300 * time.Millisecond)
	stop()
	wg.Wait()
	ids := stored(t, embedded)
	t.Logf("%d callbacks acknowledged, %d events stored, 4 kills", len(acknowledged), len(ids))
	if len(acknowledged) < 100 {
		t.Errorf("only %d callbacks were acknowledged: too few to show anything", len(acknowledged))
	}
	for id := range acknowledged {
		if ids[id] != 1 {
			t.Errorf("event %s was acknowledged and is stored %d times", id, ids[id])
		}
	}
	for id, n := range ids {
		if n != 1 {
			t.Errorf("event %s is stored %d times", id, n)
		}
	}
}

func TestSameCallbackToTwoGatewaysIsOneEvent(t *testing.T) {
	broker := bustest.Start(t)
	r := newRig(t, 2)
	for i := range 2 {
		r.gateway(i, "BRIDGE_NATS_URL="+broker.URL()).awaitReady(http.StatusOK)
	}
	const plain = `<xml><ToUserName>ww00aa11bb22cc33dd</ToUserName><FromUserName>sys</FromUserName><CreateTime>1770000001</CreateTime><MsgType>event</MsgType><Event>change_contact</Event><ChangeType>delete_user</ChangeType><UserID>%s</UserID></xml>`
	// Two members removed in the same second are two events; each comes three times, in
	// turn to both gateways.
	for _, member := range []string{"zhangsan", "lisi"} {
		res, err := r.sim.Say(t.Context(), wecomsim.SayRequest{App: "demo", XML: fmt.Sprintf(plain, member), Repeat: 3})
		if err != nil || len(res.Attempts) != 3 || !res.Delivered() {
			t.Fatalf("got %+v, %v", res, err)
		}
	}
	if ids := stored(t, broker.URL()); len(ids) != 2 {
		t.Errorf("got events %v, want two", ids)
	}
}

func TestOutsideNatsDown(t *testing.T) {
	broker := bustest.Start(t)
	r := newRig(t, 1)
	g := r.gateway(0, "BRIDGE_NATS_URL="+broker.URL())
	g.awaitReady(http.StatusOK)
	broker.Stop()
	start := time.Now()
	zero := 0
	res, err := r.sim.Say(t.Context(), wecomsim.SayRequest{App: "demo", User: "alice", Content: "1", Retries: &zero})
	if err != nil {
		t.Fatal(err)
	}
	if got := res.Attempts[0]; got.Status != http.StatusServiceUnavailable || time.Since(start) > time.Second {
		t.Errorf("got %d after %v, want 503 within 1 s", got.Status, time.Since(start))
	}
	g.awaitReady(http.StatusServiceUnavailable)
	broker.Restart()
	g.awaitReady(http.StatusOK)
	if res, err = r.sim.Say(t.Context(), wecomsim.SayRequest{App: "demo", User: "alice", Content: "2"}); err != nil || !res.Delivered() {
		t.Errorf("after NATS is back: %+v, %v", res, err)
	}
	// The first callback may or may not have been stored: it was refused.
	if ids := stored(t, broker.URL()); ids[res.Event] != 1 {
		t.Errorf("the second callback is not stored: %v", ids)
	}
}

// A consumer that knows nothing but NATS, and one in Go that knows nothing but bridge.
func TestAnybodyCanListen(t *testing.T) {
	broker := bustest.Start(t)
	r := newRig(t, 1)
	r.gateway(0, "BRIDGE_NATS_URL="+broker.URL()).awaitReady(http.StatusOK)
	r.start("worker", "BRIDGE_NATS_URL="+broker.URL(), "BRIDGE_RULES=").awaitReady(http.StatusOK)

	nc, err := nats.Connect(broker.URL())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	plain, err := nc.SubscribeSync("wecom.event.*.demo.message.text")
	if err != nil {
		t.Fatal(err)
	}
	if err := nc.Flush(); err != nil {
		t.Fatal(err)
	}

	client, err := bridge.Connect(t.Context(), bridge.Options{URL: broker.URL(), Name: "e2e"})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = client.Close(context.Background()) }()
	ctx, stop := context.WithCancel(t.Context())
	consumed := make(chan error, 1)
	go func() {
		consumed <- client.Consume(ctx, bridge.Consumer{Name: "shout", Filter: "demo.message.text"}, func(_ context.Context, ev *bridge.Event) ([]bridge.Message, error) {
			return bridge.Reply(ev, bridge.Text("", strings.ToUpper(ev.Text())), bridge.Text("", "bye")), nil
		})
	}()

	said, err := r.sim.Say(t.Context(), wecomsim.SayRequest{App: "demo", User: "alice", Content: "hello"})
	if err != nil {
		t.Fatal(err)
	}
	m, err := plain.NextMsg(10 * time.Second)
	if err != nil {
		t.Fatalf("plain subscriber: %v", err)
	}
	if !strings.Contains(string(m.Data), `"Content":"hello"`) || m.Header.Get("Nats-Msg-Id") != "demo/"+said.Event {
		t.Errorf("plain subscriber got %s with header %v", m.Data, m.Header)
	}
	eventually(t, 10*time.Second, func() error {
		inbox := r.sim.Inbox("alice")
		if len(inbox) != 2 || inbox[0].Content != "HELLO" || inbox[1].Content != "bye" {
			return fmt.Errorf("alice's inbox is %+v, want HELLO and bye", inbox)
		}
		return nil
	})
	eventually(t, 10*time.Second, func() error {
		receipt, err := client.Receipt(t.Context(), "demo", said.Event+"/shout/1")
		if err == nil && (receipt.Status != bridge.Sent || receipt.Event != said.Event || receipt.MsgID == "") {
			return fatal{fmt.Errorf("got receipt %+v", receipt)}
		}
		return err
	})

	// Whoever can publish can send, with plain JSON.
	out := nats.NewMsg("wecom.outbox.demo.bob")
	out.Data = []byte(`{"touser":"bob","msgtype":"markdown","markdown":{"content":"**hi**"}}`)
	if _, err := nc.RequestMsg(out, 5*time.Second); err != nil {
		t.Fatal(err)
	}
	eventually(t, 10*time.Second, func() error {
		if inbox := r.sim.Inbox("bob"); len(inbox) != 1 || inbox[0].MsgType != "markdown" {
			return fmt.Errorf("bob's inbox is %+v, want one markdown message", inbox)
		}
		return nil
	})
	stop()
	if err := <-consumed; err != nil {
		t.Errorf("Consume: %v", err)
	}
}

// What is forged leaves nothing behind, with the real server in between.
func TestForgedCallbacksLeaveNoEvent(t *testing.T) {
	broker := bustest.Start(t)
	r := newRig(t, 1)
	r.gateway(0, "BRIDGE_NATS_URL="+broker.URL()).awaitReady(http.StatusOK)
	encrypt, signature, err := wecom.Seal(wecom.Pair{Token: "SomebodyElse", AESKey: demo.AESKey}, demo.CorpID, "1770000001", "n", []byte("<xml/>"))
	if err != nil {
		t.Fatal(err)
	}
	q := url.Values{"msg_signature": {signature}, "timestamp": {"1770000001"}, "nonce": {"n"}}
	for name, body := range map[string]string{
		"forged": "<xml><Encrypt>" + encrypt + "</Encrypt></xml>", "empty": "", "plain": "<xml><MsgType>text</MsgType></xml>", "binary": "\x00\xff<xml",
	} {
		res, err := http.Post("http://"+r.gateways[0]+"/callback/demo?"+q.Encode(), "text/xml", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		_ = res.Body.Close()
		if res.StatusCode != http.StatusForbidden {
			t.Errorf("%s: got %d, want 403", name, res.StatusCode)
		}
	}
	if ids := stored(t, broker.URL()); len(ids) != 0 {
		t.Errorf("got events %v", ids)
	}
}

func TestMistakesInTheConfigurationEndTheProgram(t *testing.T) {
	r := newRig(t, 1)
	for _, program := range []string{"gateway", "worker"} {
		p := r.start(program, "BRIDGE_LISTEN=127.0.0.1:0", "BRIDGE_LOG_LEVEL=loud-hunter2", "BRIDGE_APPS=demo,Bad_One,ops", "BRIDGE_APP_OPS_SECRET=x")
		select {
		case <-p.done:
		case <-time.After(10 * time.Second):
			t.Fatalf("%s went on", program)
		}
		if code := p.cmd.ProcessState.ExitCode(); code != 1 {
			t.Errorf("%s: exit code %d, want 1", program, code)
		}
		for _, want := range []string{"BRIDGE_LOG_LEVEL", "Bad_One", "BRIDGE_APP_OPS_CORP_ID"} {
			if !strings.Contains(p.log.String(), want) {
				t.Errorf("%s says %q, want it to name %s", program, p.log, want)
			}
		}
		if strings.Contains(p.log.String(), "hunter2") {
			t.Errorf("%s quotes a value: %s", program, p.log)
		}
	}
}
