package wecomsim

import (
	"bytes"
	"crypto/rand"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// A hub hands changes to the pages that watch. The caller holds the lock of the Server.
type hub struct {
	epoch string // of this process, so that an id of an earlier one is not taken for ours
	seq   uint64
	log   []change // the last ones, for pages that come back
	subs  map[*subscriber]struct{}
}

// A change is one server-sent event. Its value never changes afterwards, so that every watcher can
// render it without the lock.
type change struct {
	seq   uint64
	kind  string // snapshot, delivery, message, reset
	value any
}

type subscriber struct{ ch chan change } // closed when it is too slow

const (
	maxLog    = 1024             // changes a page can miss without a new snapshot
	watcherQ  = 256              // changes a page may lag behind
	heartbeat = 15 * time.Second // keeps proxies from cutting a quiet stream
	sseWrite  = 10 * time.Second // for one write
)

func (h *hub) init() {
	h.epoch = rand.Text()[:8]
	h.subs = map[*subscriber]struct{}{}
}

// publish hands a change to everybody who watches. It never blocks: who cannot follow is cut off,
// comes back by itself and catches up.
func (s *Server) publish(kind string, value any) {
	h := &s.hub
	h.seq++
	c := change{h.seq, kind, value}
	if len(h.log) >= 2*maxLog {
		h.log = append(h.log[:0:0], h.log[maxLog:]...)
	}
	h.log = append(h.log, c)
	for sub := range h.subs {
		select {
		case sub.ch <- c:
		default:
			delete(h.subs, sub)
			close(sub.ch)
		}
	}
}

// A snapshot is everything the page shows: GET /sim/state.
type snapshot struct {
	Apps       []appInfo  `json:"apps"`
	Deliveries []delivery `json:"deliveries"`
	Messages   []arrival  `json:"messages"`
}

type appInfo struct {
	Name    string `json:"name"`
	Kind    string `json:"kind"`
	AgentID string `json:"agentid"`
}

func (s *Server) snapshot() snapshot {
	snap := snapshot{Apps: []appInfo{}, Deliveries: []delivery{}, Messages: []arrival{}}
	for _, a := range s.cfg.Apps {
		snap.Apps = append(snap.Apps, appInfo{a.Name, a.Kind, a.AgentID})
	}
	for _, d := range s.recent.deliveries {
		snap.Deliveries = append(snap.Deliveries, d.copy())
	}
	for _, a := range s.recent.arrivals {
		snap.Messages = append(snap.Messages, *a)
	}
	return snap
}

// subscribe returns what a watcher that saw lastID has missed, and a channel with what follows.
func (s *Server) subscribe(lastID string) ([]change, *subscriber) {
	s.mu.Lock()
	defer s.mu.Unlock()
	h := &s.hub
	sub := &subscriber{make(chan change, watcherQ)}
	h.subs[sub] = struct{}{}
	epoch, text, _ := strings.Cut(lastID, "-")
	seq, err := strconv.ParseUint(text, 10, 64)
	if err == nil && epoch == h.epoch && seq <= h.seq && h.seq-seq <= uint64(len(h.log)) {
		missed := h.log[uint64(len(h.log))-(h.seq-seq):]
		return append([]change{}, missed...), sub
	}
	return []change{{h.seq, "snapshot", s.snapshot()}}, sub
}

// serveEvents answers GET /sim/events with a stream of server-sent events. It begins with a
// snapshot, or after Last-Event-ID with what was missed since.
func (s *Server) serveEvents(w http.ResponseWriter, r *http.Request) {
	rc := http.NewResponseController(w)
	h := w.Header()
	h.Set("Content-Type", "text/event-stream")
	h.Set("Cache-Control", "no-store")
	h.Set("X-Accel-Buffering", "no")
	first, sub := s.subscribe(r.Header.Get("Last-Event-ID"))
	defer func() {
		s.mu.Lock()
		delete(s.hub.subs, sub)
		s.mu.Unlock()
	}()
	var buf bytes.Buffer
	write := func(list ...change) bool {
		buf.Reset()
		for _, c := range list {
			fmt.Fprintf(&buf, "id: %s-%d\nevent: %s\ndata: %s\n", s.hub.epoch, c.seq, c.kind, marshal(c.value)) // marshal ends with a line break
		}
		if len(list) == 0 {
			buf.WriteString(": alive\n\n")
		}
		_ = rc.SetWriteDeadline(time.Now().Add(sseWrite)) // not every writer has deadlines
		_, err := w.Write(buf.Bytes())
		return err == nil && rc.Flush() == nil
	}
	buf.WriteString("retry: 1000\n\n")
	w.Write(buf.Bytes())
	if !write(first...) {
		return
	}
	beat := time.NewTicker(heartbeat)
	defer beat.Stop()
	for {
		select {
		case c, ok := <-sub.ch:
			if !ok || !write(c) {
				return
			}
		case <-beat.C:
			if !write() {
				return
			}
		case <-r.Context().Done():
			return
		case <-s.life.Done():
			return
		}
	}
}
