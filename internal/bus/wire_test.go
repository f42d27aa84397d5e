package bus

import (
	"testing"
	"time"
)

// What the writer reads must not be the caller's: it may still read it when the
// caller has given up and uses its message again.
func TestCallKeepsNothingOfTheCaller(t *testing.T) {
	win := newWindow('p', 1)
	c := &call{w: win, done: make(chan answer, 1)}
	for range 2 { // a call that is used again, too
		data, h := []byte("body"), Header{"a": "1", "b": "2"}
		c.fill("_INBOX.", outgoing{subject: "s", id: "id", header: h, data: data})
		clear(data)
		h["a"] = "changed"
		delete(h, "b")
		if got := string(c.msg.Data); got != "body" {
			t.Errorf("data: got %q", got)
		}
		if len(c.msg.Header) != 3 || c.msg.Header.Get("a") != "1" || c.msg.Header.Get("b") != "2" || c.msg.Header.Get("Nats-Msg-Id") != "id" {
			t.Errorf("headers: got %v", c.msg.Header)
		}
	}
}

// A caller that leaves while the writer reads its message must not have its place
// given to another before the writer is done.
func TestPlaceStaysWhileTheWriterReads(t *testing.T) {
	win := newWindow('p', 1)
	c, err := win.take(t.Context(), time.Time{})
	if err != nil {
		t.Fatal(err)
	}
	c.fill("_INBOX.", outgoing{subject: "s"})
	c.sending = true
	c.answer(answer{err: errNoAnswer})
	<-c.done
	c.leave()
	if len(win.free) != 0 || len(win.sem) != 1 {
		t.Fatal("the place was given back while the writer reads")
	}
	if c.sent() {
		win.put(c)
	}
	if len(win.free) != 1 || len(win.sem) != 0 {
		t.Error("the writer does not give the place back")
	}
}
