package wecomsim

import (
	"bufio"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// A stream reads server-sent events.
type stream struct {
	t   *testing.T
	res *http.Response
	sc  *bufio.Scanner
}

type sse struct{ id, kind, data string }

func watch(t *testing.T, base, lastID string) *stream {
	t.Helper()
	req, _ := http.NewRequestWithContext(t.Context(), "GET", base+"/sim/events", nil)
	if lastID != "" {
		req.Header.Set("Last-Event-ID", lastID)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	if ct := res.Header.Get("Content-Type"); ct != "text/event-stream" {
		t.Fatalf("Content-Type %q", ct)
	}
	t.Cleanup(func() { res.Body.Close() })
	sc := bufio.NewScanner(res.Body)
	sc.Buffer(nil, 16<<20)
	return &stream{t, res, sc}
}

// next returns the next event, or false when the stream has ended.
func (s *stream) next() (e sse, ok bool) {
	for s.sc.Scan() {
		name, value, _ := strings.Cut(s.sc.Text(), ": ")
		switch name {
		case "id":
			e.id = value
		case "event":
			e.kind = value
		case "data":
			e.data = value
		case "":
			if e.kind != "" {
				return e, true
			}
		}
	}
	return e, false
}

func (s *stream) want(kind string) sse {
	s.t.Helper()
	e, ok := s.next()
	if !ok || e.kind != kind {
		s.t.Fatalf("got %+v, want an event %s", e, kind)
	}
	return e
}

func TestEvents(t *testing.T) {
	g := &fakeGateway{}
	s := newSim(t, Config{CallbackURLs: []string{g.start(t)}})
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	t.Cleanup(s.Close)

	st := watch(t, srv.URL, "")
	var snap snapshot
	if err := json.Unmarshal([]byte(st.want("snapshot").data), &snap); err != nil || len(snap.Apps) != 1 || snap.Apps[0].Name != "demo" || snap.Deliveries == nil || snap.Messages == nil {
		t.Fatalf("snapshot %+v, %v", snap, err)
	}
	res, err := s.Say(t.Context(), SayRequest{User: "alice", Content: "x"})
	if err != nil {
		t.Fatal(err)
	}
	var d delivery
	for d.State != "ok" {
		if err := json.Unmarshal([]byte(st.want("delivery").data), &d); err != nil {
			t.Fatal(err)
		}
	}
	if d.Event != res.Event || d.User != "alice" || d.Content != "x" || len(d.Attempts) != 1 {
		t.Errorf("delivery %+v", d)
	}
	st.want("delivery") // the last word of Say
	sent := send(t, s, text("Alice", "re: x"))
	answered := st.want("delivery")
	message := st.want("message")
	var a arrival
	if err := json.Unmarshal([]byte(message.data), &a); err != nil || a.MsgID != sent.MsgID || a.Answers != d.ID || !a.Guessed || a.ReplyMS <= 0 {
		t.Errorf("message %s, %v", message.data, err)
	}

	// One that comes back hears what it has missed, and only that.
	again := watch(t, srv.URL, answered.id)
	if e := again.want("message"); e != message {
		t.Errorf("after %s: %+v, want %+v", answered.id, e, message)
	}
	s.Reset()
	again.want("reset")
	st.want("reset")

	// Of another process, or from too long ago: everything.
	for _, id := range []string{"other-3", "nonsense", s.hub.epoch + "-99999999"} {
		watch(t, srv.URL, id).want("snapshot")
	}
	for range 3 * maxLog {
		s.mu.Lock()
		s.publish("reset", struct{}{})
		s.mu.Unlock()
	}
	watch(t, srv.URL, answered.id).want("snapshot")
	s.mu.Lock()
	if len(s.hub.log) > 2*maxLog {
		t.Errorf("%d changes kept, want at most %d", len(s.hub.log), 2*maxLog)
	}
	s.mu.Unlock()
}

// TestSlowWatcherIsDropped: nobody waits for a page that does not read.
func TestSlowWatcherIsDropped(t *testing.T) {
	s := newSim(t, Config{})
	_, slow := s.subscribe("")
	_, quick := s.subscribe("")
	for range watcherQ + 1 {
		s.mu.Lock()
		s.publish("reset", struct{}{})
		s.mu.Unlock()
		<-quick.ch
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, ok := s.hub.subs[slow]; ok {
		t.Error("the slow watcher is still there")
	}
	if _, ok := s.hub.subs[quick]; !ok {
		t.Error("the quick watcher was dropped")
	}
	n := 0
	for range slow.ch {
		n++
	}
	if n != watcherQ {
		t.Errorf("the slow watcher got %d changes before the end, want %d", n, watcherQ)
	}
}

func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{})
		w := httptest.NewRecorder()
		done := make(chan struct{})
		go func() {
			defer close(done)
			s.ServeHTTP(w, httptest.NewRequest("GET", "/sim/events", nil))
		}()
		time.Sleep(2*heartbeat + time.Second)
		s.Close()
		<-done
		if n := strings.Count(w.Body.String(), ": alive\n\n"); n != 2 {
			t.Errorf("%d heartbeats, want 2: %q", n, w.Body)
		}
	})
}

// TestAttribution: which message answers what, by time and by what the bridge tells.
func TestAttribution(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{Transport: &script{play: func(_ int, r *http.Request) (int, string, time.Duration, error) {
			return 200, "", 0, nil
		}}})
		say := func(req SayRequest) *delivery {
			t.Helper()
			req.User = "alice"
			r, err := s.Say(t.Context(), req)
			if err != nil {
				t.Fatal(err)
			}
			return s.recent.byEvent[r.Event]
		}
		answer := func() *arrival { return s.recent.byMsgID[send(t, s, text("ALICE", "re")).MsgID] }
		check := func(what string, a *arrival, d *delivery, guessed bool) {
			t.Helper()
			var id uint64
			if d != nil {
				id = d.ID
			}
			if a.Answers != id || a.Guessed != guessed {
				t.Errorf("%s: answers %d (guessed %v), want %d (guessed %v)", what, a.Answers, a.Guessed, id, guessed)
			}
		}

		entered := say(SayRequest{MsgType: "enter_agent"})
		first, second := say(SayRequest{Content: "1"}), say(SayRequest{Content: "2"})
		time.Sleep(20 * time.Millisecond)
		a := answer()
		check("the oldest unanswered", a, first, true)
		if a.ReplyMS != 20 || first.ReplyMS != 20 {
			t.Errorf("latency %v and %v, want 20", a.ReplyMS, first.ReplyMS)
		}
		check("the next", answer(), second, true)
		check("an event that is seldom answered, last", answer(), entered, true)
		check("nothing left", answer(), nil, false)

		third := say(SayRequest{Content: "3"})
		time.Sleep(answerWithin + time.Second)
		check("too late", answer(), nil, false)
		fourth := say(SayRequest{Content: "4"})
		check("not the one that is too old", answer(), fourth, true)

		// The bridge knows better.
		fifth, sixth := say(SayRequest{Content: "5"}), say(SayRequest{Content: "6"})
		b := answer()
		check("guessed", b, fifth, true)
		s.Link(b.MsgID, sixth.Event)
		check("told", b, sixth, false)
		if fifth.ReplyMS != 0 || sixth.reply != b {
			t.Errorf("the guess still stands: %+v", fifth)
		}
		c := answer()
		check("answers come in order: 5 will have none", c, nil, false)
		s.Link(c.MsgID, sixth.Event)
		check("a second answer to one event", c, sixth, false)
		if sixth.reply != b {
			t.Error("the latency of an event is that of its first answer")
		}
		s.Link("no such message", third.Event)
		s.Link(b.MsgID, "no such event")
		check("unknown ids change nothing", b, sixth, false)

		// A wrong guess gives way to the right message.
		seventh := say(SayRequest{Content: "7"})
		wrong, right := answer(), answer()
		check("wrong guess", wrong, seventh, true)
		s.Link(right.MsgID, seventh.Event)
		check("the wrong one is on its own", wrong, nil, false)
		check("the right one", right, seventh, false)

		// Another application's or member's messages answer nothing here.
		eighth := say(SayRequest{Content: "8"})
		send(t, s, text("bob", "x"))
		send(t, s, text("alice|bob", "x"))
		send(t, s, text("@all", "x"))
		if eighth.reply != nil {
			t.Error("a message to somebody else was taken for the answer")
		}
	})
}

func TestHistoryIsBounded(t *testing.T) {
	s := newSim(t, Config{Transport: &script{play: always(200, "", 0, nil)}})
	for range maxRecent + 50 {
		if _, err := s.Say(t.Context(), SayRequest{User: "u-" + s.messageID(), Content: "x"}); err != nil {
			t.Fatal(err)
		}
		send(t, s, text("alice", "x"))
	}
	s.mu.Lock()
	r := &s.recent
	if len(r.deliveries) != maxRecent || len(r.byEvent) != maxRecent || len(r.waiting) != maxRecent || len(r.arrivals) != maxRecent || len(r.byMsgID) != maxRecent {
		t.Errorf("held: %d deliveries, %d by event, %d waiting, %d messages, %d by msgid, want %d of each",
			len(r.deliveries), len(r.byEvent), len(r.waiting), len(r.arrivals), len(r.byMsgID), maxRecent)
	}
	s.mu.Unlock()
	for range 20 {
		send(t, s, `{"touser":"alice","agentid":1000002,"msgtype":"text","text":{"content":"`+strings.Repeat("x", 2<<20)+`"}}`)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if r.bytes > maxRecentBytes {
		t.Errorf("%d bytes held, want at most %d", r.bytes, maxRecentBytes)
	}
}

// TestResetDuringADelivery: what was under way is not shown again.
func TestResetDuringADelivery(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{Transport: &script{play: always(503, "", 0, nil)}})
		said := make(chan error, 1)
		go func() {
			_, err := s.Say(t.Context(), SayRequest{User: "alice", Content: "x"})
			said <- err
		}()
		time.Sleep(1500 * time.Millisecond)
		s.Reset()
		_, sub := s.subscribe("")
		time.Sleep(10 * time.Second)
		select {
		case c := <-sub.ch:
			t.Errorf("published after the reset: %+v", c)
		default:
		}
		if err := <-said; err != nil {
			t.Error(err)
		}
	})
}

func TestState(t *testing.T) {
	s := newSim(t, Config{Transport: &script{play: always(200, "", 0, nil)}})
	if _, err := s.Say(t.Context(), SayRequest{User: "alice", Content: "x"}); err != nil {
		t.Fatal(err)
	}
	send(t, s, text("alice", "y"))
	snap := decodeBody[snapshot](t, do(s, "GET", "/sim/state", ""))
	if len(snap.Deliveries) != 1 || len(snap.Messages) != 1 || snap.Deliveries[0].State != "ok" || snap.Messages[0].Content != "y" {
		t.Errorf("state %+v", snap)
	}
}
