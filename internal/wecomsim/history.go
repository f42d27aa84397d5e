package wecomsim

import (
	"encoding/json"
	"slices"
	"strings"
	"time"
)

// The page shows two kinds of thing: deliveries, which a user said, and arrivals, which the
// application answered.

// A delivery is one callback and what became of it.
type delivery struct {
	ID       uint64    `json:"id"`
	App      string    `json:"app"`
	User     string    `json:"user"`
	MsgType  string    `json:"msgtype"`
	Content  string    `json:"content"`
	Plain    string    `json:"plain"`
	MsgID    string    `json:"msgid"`
	Event    string    `json:"event"` // the id that the bridge will give it
	Time     time.Time `json:"time"`
	State    string    `json:"state"` // sending, ok, failed
	Attempts []Attempt `json:"attempts"`
	// ReplyMS is how long after Time the first reply arrived, zero when there is none.
	ReplyMS float64 `json:"reply_ms,omitempty"`

	at     time.Time
	gen    int
	quiet  bool // an event that applications seldom answer
	passed bool // a later one is known to be answered, and answers come in order
	reply  *arrival
}

// An arrival is one accepted message/send.
type arrival struct {
	ID      uint64          `json:"id"`
	App     string          `json:"app"`
	To      []string        `json:"to"` // lower-cased; "@all" for everybody
	API     string          `json:"api"`
	MsgType string          `json:"msgtype"`
	Content string          `json:"content"`
	Body    json.RawMessage `json:"body"`
	Time    time.Time       `json:"time"`
	MsgID   string          `json:"msgid"`
	Dropped string          `json:"dropped,omitempty"`
	// Answers is the delivery it answers, zero when unknown; Guessed when only time says so.
	Answers uint64  `json:"answers,omitempty"`
	Guessed bool    `json:"guessed,omitempty"`
	ReplyMS float64 `json:"reply_ms,omitempty"`

	at     time.Time
	answer *delivery
}

// How much the page is told when it connects.
const (
	maxRecent      = 2000     // deliveries, and arrivals
	maxRecentBytes = 16 << 20 // of arrivals
)

// answerWithin bounds how late a message is still taken for the answer to an earlier delivery,
// where only time tells.
const answerWithin = time.Minute

// recent is the history for the page. The caller holds the lock.
type recent struct {
	deliveries []*delivery
	arrivals   []*arrival
	bytes      int
	byEvent    map[string]*delivery // the last one with that event id
	byMsgID    map[string]*arrival
	waiting    map[string][]*delivery // by conversation, oldest first: what may still be answered
}

func conversation(app, user string) string { return app + "/" + strings.ToLower(user) }

func (s *Server) addDelivery(d *delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.recent
	if r.byEvent == nil {
		r.byEvent, r.waiting = map[string]*delivery{}, map[string][]*delivery{}
	}
	d.ID, d.gen = s.lastItem.Add(1), s.gen
	r.deliveries = append(r.deliveries, d)
	r.byEvent[d.Event] = d
	key := conversation(d.App, d.User)
	r.waiting[key] = append(r.waiting[key], d)
	if len(r.deliveries) > maxRecent {
		old := r.deliveries[0]
		if r.byEvent[old.Event] == old {
			delete(r.byEvent, old.Event)
		}
		r.forget(conversation(old.App, old.User), func(d *delivery) bool { return d == old })
		r.deliveries[0] = nil
		r.deliveries = r.deliveries[1:]
	}
	s.publish("delivery", d.copy())
}

// update changes d and tells the page, unless a reset has swept d away.
func (s *Server) update(d *delivery, change func()) {
	s.mu.Lock()
	defer s.mu.Unlock()
	change()
	if d.gen == s.gen {
		s.publish("delivery", d.copy())
	}
}

func (d *delivery) copy() delivery {
	c := *d
	c.Attempts = slices.Clone(d.Attempts)
	return c
}

// show puts m into the history and guesses what it answers. Called with the lock held.
func (s *Server) show(m *Message, to recipients) {
	r := &s.recent
	a := &arrival{
		ID: s.lastItem.Add(1), App: m.App, To: to.users, API: m.API, MsgType: m.MsgType, Content: m.Content,
		Body: m.Body, Time: m.Time, MsgID: m.MsgID, Dropped: m.dropped, at: m.at,
	}
	if to.all {
		a.To = append(slices.Clone(a.To), everybody)
	}
	if r.byMsgID == nil {
		r.byMsgID = map[string]*arrival{}
	}
	r.byMsgID[a.MsgID] = a
	r.arrivals = append(r.arrivals, a)
	r.bytes += m.size()
	for len(r.arrivals) > maxRecent || r.bytes > maxRecentBytes && len(r.arrivals) > 1 {
		old := r.arrivals[0]
		delete(r.byMsgID, old.MsgID)
		r.bytes -= len(old.Body) + len(old.Content) + 512
		r.arrivals[0] = nil
		r.arrivals = r.arrivals[1:]
	}
	if len(to.users) == 1 && !to.all && m.dropped == "" {
		if d := r.unanswered(a); d != nil {
			s.connect(a, d, true)
		}
	}
	s.publish("message", *a)
}

// forget drops the deliveries at the head of a conversation that nothing will answer.
func (r *recent) forget(key string, hopeless func(*delivery) bool) []*delivery {
	list := r.waiting[key]
	for len(list) > 0 && hopeless(list[0]) {
		list[0] = nil
		list = list[1:]
	}
	if len(list) == 0 {
		delete(r.waiting, key)
	} else {
		r.waiting[key] = list
	}
	return list
}

// unanswered guesses what a answers: the oldest delivery of that user and application without an
// answer, events that are seldom answered last.
func (r *recent) unanswered(a *arrival) *delivery {
	answered := func(d *delivery) bool { return d.reply != nil || d.passed || d.State == "failed" }
	var quiet *delivery
	for _, d := range r.forget(conversation(a.App, a.To[0]), func(d *delivery) bool {
		return answered(d) || a.at.Sub(d.at) > answerWithin
	}) {
		if answered(d) {
			continue
		}
		if !d.quiet {
			return d
		}
		if quiet == nil {
			quiet = d
		}
	}
	return quiet
}

func (s *Server) connect(a *arrival, d *delivery, guessed bool) {
	a.answer, a.Answers, a.Guessed = d, d.ID, guessed
	a.ReplyMS = float64(a.at.Sub(d.at).Microseconds()) / 1000
	if d.reply == nil || a.at.Before(d.reply.at) {
		d.reply, d.ReplyMS = a, a.ReplyMS
	}
	s.publish("delivery", d.copy())
}

// Link tells that the message with that msgid of message/send answers the event with that id, so
// that the page need not guess from the time. Unknown ids are ignored.
func (s *Server) Link(apiMsgID, eventID string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := &s.recent
	a, d := r.byMsgID[apiMsgID], r.byEvent[eventID]
	if a == nil || d == nil {
		return
	}
	if old := a.answer; old != nil && old != d && old.reply == a {
		old.reply, old.ReplyMS = nil, 0
		s.publish("delivery", old.copy())
	}
	// One that was guessed for d, and is not known to answer it, is on its own again.
	if g := d.reply; g != nil && g != a && g.Guessed {
		g.answer, g.Answers, g.Guessed, g.ReplyMS = nil, 0, false, 0
		d.reply = nil
		s.publish("message", *g)
	}
	s.connect(a, d, false)
	for _, e := range r.waiting[conversation(d.App, d.User)] {
		if e.ID < d.ID && e.reply == nil {
			e.passed = true
		}
	}
	s.publish("message", *a)
}
