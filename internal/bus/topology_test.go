package bus_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/nats-io/nats-server/v2/server"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/bustest"
)

func TestProvision(t *testing.T) {
	s := bustest.Start(t)
	b := provisioned(t, s.URL())
	conf := func(name string) jetstream.StreamConfig {
		t.Helper()
		st, err := js(t, s.URL()).Stream(t.Context(), name)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return st.CachedInfo().Config
	}
	for name, want := range map[string]struct {
		subjects  []string
		retention jetstream.RetentionPolicy
		discard   jetstream.DiscardPolicy
		age, dup  time.Duration
	}{
		bus.StreamEvents:   {[]string{"wecom.event.>"}, jetstream.LimitsPolicy, jetstream.DiscardNew, 7 * 24 * time.Hour, 2 * time.Hour},
		bus.StreamOutbox:   {[]string{"wecom.outbox.*.*"}, jetstream.WorkQueuePolicy, jetstream.DiscardNew, 0, 2 * time.Hour},
		bus.StreamReceipts: {[]string{"wecom.receipt.>"}, jetstream.LimitsPolicy, jetstream.DiscardOld, 24 * time.Hour, 2 * time.Hour},
		bus.StreamDead:     {[]string{"wecom.dead.>"}, jetstream.LimitsPolicy, jetstream.DiscardOld, 30 * 24 * time.Hour, 24 * time.Hour},
		bus.StreamLater:    {[]string{"wecom.later.>", "wecom.due.>"}, jetstream.WorkQueuePolicy, jetstream.DiscardOld, 0, 2 * time.Minute},
		bus.StreamProbe:    {[]string{"wecom.probe.*"}, jetstream.LimitsPolicy, jetstream.DiscardOld, 24 * time.Hour, 2 * time.Minute},
	} {
		c := conf(name)
		if !slices.Equal(c.Subjects, want.subjects) || c.Retention != want.retention || c.Discard != want.discard ||
			c.MaxAge != want.age || c.Duplicates != want.dup || c.Storage != jetstream.FileStorage || c.Replicas != 1 || !c.AllowDirect ||
			c.AllowRollup && name != bus.StreamLater {
			t.Errorf("%s: got %+v", name, c)
		}
	}
	if c := conf(bus.StreamLater); !c.AllowMsgSchedules || c.MaxBytes > 0 {
		t.Errorf("%s: got %+v", bus.StreamLater, c)
	}
	// One probe per instance is kept, and each is acked.
	for range 3 {
		publish(t, b, bus.Msg{Subject: bus.ProbeSubject("gw-1")})
		publish(t, b, bus.Msg{Subject: bus.ProbeSubject("gw-2")})
	}
	if st, err := b.State(t.Context(), bus.StreamProbe); err != nil || st.Messages != 2 || st.LastSeq != 6 {
		t.Errorf("probes: got %+v, %v", st, err)
	}
}

func TestProvisionTogetherAndAgain(t *testing.T) {
	s := bustest.Start(t)
	var wg sync.WaitGroup
	for range 6 {
		b := connect(t, s.URL())
		wg.Go(func() {
			ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
			defer cancel()
			for range 2 {
				if err := b.Provision(ctx); err != nil {
					t.Errorf("Provision: %v", err)
				}
			}
		})
	}
	wg.Wait()
}

// What an operator changed stays, what the contract fixes is put right, what is
// stored survives.
func TestProvisionKeepsTheOperatorsLimits(t *testing.T) {
	s := bustest.Start(t)
	b := provisioned(t, s.URL())
	event(t, b, 5, "demo/m-1", "x")
	j := js(t, s.URL())
	st, err := j.Stream(t.Context(), bus.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	c := st.CachedInfo().Config
	c.MaxAge, c.MaxBytes, c.Duplicates, c.Description = 99*24*time.Hour, 16<<30, 3*time.Hour, "ours"
	c.Metadata = map[string]string{"team": "ops"}
	c.Discard, c.Subjects = jetstream.DiscardOld, []string{"wecom.event.>", "wecom.extra.>"}
	if _, err := j.UpdateStream(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	provision(t, b)
	st, err = j.Stream(t.Context(), bus.StreamEvents)
	if err != nil {
		t.Fatal(err)
	}
	got := st.CachedInfo().Config
	if got.MaxAge != c.MaxAge || got.MaxBytes != c.MaxBytes || got.Duplicates != c.Duplicates || got.Description != "ours" || got.Metadata["team"] != "ops" {
		t.Errorf("the operator's settings: got %+v", got)
	}
	if got.Discard != jetstream.DiscardNew || !slices.Equal(got.Subjects, []string{"wecom.event.>"}) {
		t.Errorf("the contract's settings: got %+v", got)
	}
	if st.CachedInfo().State.Msgs != 1 {
		t.Error("the event is gone")
	}
}

func TestProvisionRefusesAnotherKindOfStream(t *testing.T) {
	s := bustest.Start(t)
	if _, err := js(t, s.URL()).CreateStream(t.Context(), jetstream.StreamConfig{Name: bus.StreamEvents, Subjects: []string{"wecom.event.>"}, Storage: jetstream.MemoryStorage}); err != nil {
		t.Fatal(err)
	}
	b := connect(t, s.URL())
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	err := b.Provision(ctx)
	if err == nil || ctx.Err() != nil || !strings.Contains(err.Error(), "memory") || !strings.Contains(err.Error(), bus.StreamEvents) {
		t.Errorf("got %v", err)
	}
}

func TestProvisionGivesUpWithItsContext(t *testing.T) {
	b := connect(t, "nats://127.0.0.1:1")
	ctx, cancel := context.WithTimeout(t.Context(), 300*time.Millisecond)
	defer cancel()
	if err := b.Provision(ctx); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("got %v, want ErrUnavailable", err)
	}
}

func TestLast(t *testing.T) {
	s := bustest.Start(t)
	b := provisioned(t, s.URL())
	any := bus.ReceiptSubject("demo", "*", "m-1/bot/0")
	if _, err := b.Last(t.Context(), bus.StreamReceipts, any); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("nothing there: got %v, want ErrNotFound", err)
	}
	publish(t, b, bus.Msg{Subject: bus.ReceiptSubject("demo", "failed", "m-1/bot/0"), ID: "a", Data: []byte("1")})
	second := publish(t, b, bus.Msg{Subject: bus.ReceiptSubject("demo", "sent", "m-1/bot/0"), ID: "b", Header: bus.Header{"X": "y"}, Data: []byte("2")})
	publish(t, b, bus.Msg{Subject: bus.ReceiptSubject("demo", "sent", "m-2/bot/0"), Data: []byte("3")})
	publish(t, b, bus.Msg{Subject: bus.ReceiptSubject("other", "sent", "m-1/bot/0"), Data: []byte("4")})
	got, err := b.Last(t.Context(), bus.StreamReceipts, any)
	if err != nil || string(got.Data) != "2" || got.Seq != second.Seq || got.ID != "b" || got.Header["X"] != "y" || len(got.Header) != 1 ||
		got.Subject != bus.ReceiptSubject("demo", "sent", "m-1/bot/0") || got.Stream != bus.StreamReceipts || time.Since(got.Time).Abs() > time.Hour {
		t.Errorf("got %+v, %v", got, err)
	}
	if _, err := b.Last(t.Context(), "NO_STREAM", any); !errors.Is(err, bus.ErrUnavailable) {
		t.Errorf("no such stream: got %v, want ErrUnavailable", err)
	}
	if err := b.Delete(t.Context(), bus.StreamReceipts, second.Seq); err != nil {
		t.Fatal(err)
	}
	if _, err := b.Get(t.Context(), bus.StreamReceipts, second.Seq); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("deleted: got %v, want ErrNotFound", err)
	}
	if err := b.Delete(t.Context(), bus.StreamReceipts, second.Seq); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("deleted twice: got %v, want ErrNotFound", err)
	}
	if got, err := b.Last(t.Context(), bus.StreamReceipts, any); err != nil || string(got.Data) != "1" {
		t.Errorf("after the delete: got %+v, %v", got, err)
	}
}

func TestTail(t *testing.T) {
	s := bustest.Start(t)
	b := provisioned(t, s.URL())
	for i := range 3 {
		event(t, b, i, fmt.Sprint("demo/", i), fmt.Sprint(i))
	}
	tail := func(all bool) (<-chan bus.Stored, func()) {
		ctx, cancel := context.WithCancel(t.Context())
		got, done := make(chan bus.Stored, 100), make(chan error, 1)
		go func() {
			done <- b.Tail(ctx, bus.StreamEvents, "wecom.event.*.demo.>", all, func(s *bus.Stored) { got <- *s })
		}()
		return got, func() {
			t.Helper()
			cancel()
			if err := receive(t, "Tail returns", done); err != nil {
				t.Errorf("Tail: %v", err)
			}
		}
	}
	all, endAll := tail(true)
	for i := range 3 {
		if s := receive(t, "a stored event", all); s.ID != fmt.Sprint("demo/", i) || s.Seq != uint64(i+1) || s.Subject == "" || s.Stream != bus.StreamEvents || string(s.Data) != fmt.Sprint(i) {
			t.Errorf("got %+v", s)
		}
	}
	fresh, endFresh := tail(false)
	eventually(t, "both tails run", func() bool {
		st, err := js(t, s.URL()).Stream(t.Context(), bus.StreamEvents)
		return err == nil && st.CachedInfo().State.Consumers == 2
	})
	event(t, b, 5, "demo/3", "3")
	for _, ch := range []<-chan bus.Stored{all, fresh} {
		if s := receive(t, "the new event", ch); s.ID != "demo/3" {
			t.Errorf("got %s, want demo/3", s.ID)
		}
	}
	if s.CanRestart() {
		s.Kill()
		s.Restart()
		eventually(t, "published", func() bool {
			_, err := b.Publish(t.Context(), &bus.Msg{Subject: "wecom.event.5.demo.x", ID: "demo/4"})
			return err == nil
		})
		for _, ch := range []<-chan bus.Stored{all, fresh} {
			if s := receive(t, "the event after the restart", ch); s.ID != "demo/4" {
				t.Errorf("got %s, want demo/4", s.ID)
			}
		}
	}
	endFresh()
	endAll()
	if err := b.Tail(t.Context(), "NO_STREAM", ">", true, nil); !errors.Is(err, bus.ErrNotFound) {
		t.Errorf("no such stream: got %v, want ErrNotFound", err)
	}
}

// serve runs a server with options of the test's own.
func serve(t *testing.T, o *server.Options) *server.Server {
	t.Helper()
	o.Host, o.NoSigs, o.NoLog, o.JetStream, o.StoreDir = "127.0.0.1", true, true, true, t.TempDir()
	if o.Port == 0 {
		o.Port = server.RANDOM_PORT
	}
	s, err := server.NewServer(o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Shutdown(); s.WaitForShutdown() })
	go s.Start()
	return s
}

func ready(t *testing.T, s *server.Server) string {
	t.Helper()
	if !s.ReadyForConnections(patience) {
		t.Fatal("server not ready")
	}
	return s.ClientURL()
}

// With the permissions that the manual gives each program, everything works that it
// has to do, and what it may not do fails at once instead of after a timeout.
func TestLeastPermissions(t *testing.T) {
	inbox := func(user string) *server.SubjectPermission {
		return &server.SubjectPermission{Allow: []string{"_INBOX_" + user + ".>"}}
	}
	worker := []string{"wecom.outbox.>", "wecom.dead.>"}
	for lane := range 4 {
		d := fmt.Sprintf("WECOM_EVENTS.bot-%d", lane)
		worker = append(worker, "$JS.API.CONSUMER.INFO."+d, "$JS.API.CONSUMER.MSG.NEXT."+d, "$JS.ACK."+d+".>")
	}
	s := serve(t, &server.Options{Users: []*server.User{
		{Username: "admin", Password: "pw"},
		{Username: "gateway", Password: "pw", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: []string{"wecom.event.>", "wecom.probe.gw"}}, Subscribe: inbox("gateway")}},
		{Username: "worker", Password: "pw", Permissions: &server.Permissions{
			Publish: &server.SubjectPermission{Allow: worker}, Subscribe: inbox("worker")}},
	}})
	url := ready(t, s)
	as := func(user string, log *syncBuffer) *bus.Bus {
		return connectWith(t, bus.Options{URL: strings.Replace(url, "://", "://"+user+":pw@", 1), Name: user, Log: logTo(log)})
	}
	var adminLog, gatewayLog, workerLog syncBuffer
	admin, gateway, worker2 := as("admin", &adminLog), as("gateway", &gatewayLog), as("worker", &workerLog)
	provision(t, admin)
	c := events("bot")
	c.Lanes = 4
	first := consume(t, admin, c, func(context.Context, *bus.Delivery) error { return nil })
	eventually(t, "durables made", func() bool {
		l, err := admin.Lag(t.Context(), bus.StreamEvents, "bot")
		return err == nil && l.Lanes == 4
	})
	first.end()

	start := time.Now()
	provision(t, gateway) // may not even look
	provision(t, worker2)
	event(t, gateway, 3, "demo/m-1", "x")
	event(t, gateway, 4, "demo/m-2", "bad")
	if _, err := gateway.Publish(t.Context(), &bus.Msg{Subject: "wecom.outbox.demo.alice", Wait: patience}); !errors.Is(err, bus.ErrUnavailable) || !strings.Contains(err.Error(), "permission") {
		t.Errorf("gateway into the outbox: got %v", err)
	}
	if d := time.Since(start); d > 10*time.Second {
		t.Errorf("refusals took %s: they should not wait for a timeout", d)
	}
	eventually(t, "the refusal is in the log", func() bool { // the caller learns of it first
		l := gatewayLog.String()
		return strings.Contains(strings.ToLower(l), "permissions violation") && strings.Contains(l, "wecom.outbox.demo.alice")
	})
	if strings.Contains(gatewayLog.String()+adminLog.String(), "pw@") {
		t.Error("the password is in the log")
	}
	consume(t, worker2, c, func(_ context.Context, d *bus.Delivery) error {
		if string(d.Data) == "bad" {
			return bus.Reject(errors.New("bad"))
		}
		_, err := worker2.Publish(t.Context(), &bus.Msg{Subject: "wecom.outbox.demo.alice", ID: "demo/m-1/bot/0"})
		return err
	})
	eventually(t, "handled", func() bool {
		l, err := admin.Lag(t.Context(), bus.StreamEvents, "bot")
		o, oerr := admin.State(t.Context(), bus.StreamOutbox)
		return err == nil && oerr == nil && l.Pending == 0 && l.InFlight == 0 && o.Messages == 1 && worker2.Stats().DeadLettered == 1
	})
	c.Name = "other"
	ctx, cancel := context.WithTimeout(t.Context(), patience)
	defer cancel()
	if err := worker2.Consume(ctx, c, nil); err == nil || !strings.Contains(err.Error(), "permission denied") {
		t.Errorf("a consumer that this login may not have: got %v", err)
	}
}

// Three servers: streams have three replicas, consumers sixteen lanes, and a killed
// server stops nothing for good.
func TestCluster(t *testing.T) {
	// Every server must know the routes before it starts.
	var ports []int
	var routes []string
	var held []net.Listener
	for range 3 {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		held = append(held, ln)
		ports = append(ports, ln.Addr().(*net.TCPAddr).Port)
		routes = append(routes, "nats://"+ln.Addr().String())
	}
	for _, ln := range held {
		ln.Close()
	}
	var ss []*server.Server
	for i := range 3 {
		ss = append(ss, serve(t, &server.Options{
			ServerName: fmt.Sprintf("n%d", i),
			Cluster:    server.ClusterOpts{Name: "lab", Host: "127.0.0.1", Port: ports[i]},
			Routes:     server.RoutesFromStr(strings.Join(routes, ",")),
		}))
	}
	var urls []string
	for _, s := range ss {
		urls = append(urls, ready(t, s))
	}
	b := connect(t, strings.Join(urls, ","))
	eventually(t, "connected", b.Connected)
	provision(t, b) // while the cluster is still finding itself
	if !b.Clustered() {
		t.Error("not clustered")
	}
	for _, name := range []string{bus.StreamEvents, bus.StreamOutbox, bus.StreamReceipts, bus.StreamDead, bus.StreamLater, bus.StreamProbe} {
		if st, err := b.State(t.Context(), name); err != nil || st.Replicas != 3 {
			t.Errorf("%s: got %+v, %v", name, st, err)
		}
	}
	h := newHistory()
	c := events("bot")
	c.AckWait = 5 * time.Second
	r := consume(t, b, c, func(_ context.Context, d *bus.Delivery) error { h.start(d); h.end(d, true); return nil })
	sent := 0
	send := func(n int) {
		t.Helper()
		for range n {
			eventually(t, "published", func() bool {
				_, err := b.Publish(t.Context(), &bus.Msg{Subject: bus.EventSubject(sent%bus.Slots, "demo", []string{"x"}), ID: fmt.Sprint("demo/", sent)})
				return err == nil
			})
			sent++
		}
	}
	send(100)
	eventually(t, "handled", func() bool { return h.count() == sent })
	if l, err := b.Lag(t.Context(), bus.StreamEvents, "bot"); err != nil || l.Lanes != 16 {
		t.Errorf("got %+v, %v; want 16 lanes", l, err)
	}
	// A receipt is seen by whoever asks after its ack.
	for i := range 50 {
		id := fmt.Sprint("m-", i)
		if _, err := b.Last(t.Context(), bus.StreamReceipts, bus.ReceiptSubject("demo", "*", id)); !errors.Is(err, bus.ErrNotFound) {
			t.Fatalf("before: got %v", err)
		}
		publish(t, b, bus.Msg{Subject: bus.ReceiptSubject("demo", "sent", id), Data: []byte(id), Wait: patience})
		if got, err := b.Last(t.Context(), bus.StreamReceipts, bus.ReceiptSubject("demo", "*", id)); err != nil || string(got.Data) != id {
			t.Fatalf("after: got %+v, %v", got, err)
		}
	}
	ss[0].Shutdown()
	ss[0].WaitForShutdown()
	send(100)
	eventually(t, "handled without one server", func() bool { return h.count() == sent })
	r.end()
	h.check(t, sent)
}

// The settings that Provision repairs must be spelled as the server spells them.
func TestFixedSettingsExist(t *testing.T) {
	var all map[string]any
	raw, err := json.Marshal(jetstream.StreamConfig{
		Subjects: []string{"x"}, SubjectTransform: &jetstream.SubjectTransformConfig{}, AllowDirect: true, AllowMsgSchedules: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal(raw, &all); err != nil {
		t.Fatal(err)
	}
	for _, k := range bus.Fixed {
		if _, ok := all[k]; !ok {
			t.Errorf("no setting %s", k)
		}
	}
}
