package wecomsim

import (
	"encoding/json"
	"strings"
	"time"
)

// A Message is one that the application sent, as GET /sim/inbox/{user} shows it.
type Message struct {
	App     string          `json:"app"`
	API     string          `json:"api"`
	MsgType string          `json:"msgtype"`
	Content string          `json:"content"` // what the phone shows, as text
	Body    json.RawMessage `json:"body"`    // the request
	Time    time.Time       `json:"time"`
	MsgID   string          `json:"msgid"`

	at      time.Time // as Time, with a monotonic clock
	n       uint64    // order of arrival
	dropped string    // why nobody received it: duplicate, member_limit
}

// everybody is the inbox of what went to @all, a department or a tag. It is no userid.
const everybody = "@all"

// What all inboxes hold together at most; the oldest message goes first.
const (
	maxInbox      = 100_000
	maxInboxBytes = 256 << 20
)

// inbox holds what every member received. The caller holds the lock.
type inbox struct {
	users   map[string][]*Message // by lower-cased userid, oldest first
	order   []string              // owners of the messages held, oldest first
	bytes   int
	n       uint64
	changed chan struct{} // closed when a message comes in
}

func newInbox() inbox {
	return inbox{users: map[string][]*Message{}, changed: make(chan struct{})}
}

func (b *inbox) add(user string, m *Message) {
	if m.n == 0 {
		b.n++
		m.n = b.n
	}
	b.users[user] = append(b.users[user], m)
	b.order = append(b.order, user)
	b.bytes += m.size()
	for len(b.order) > maxInbox || b.bytes > maxInboxBytes && len(b.order) > 1 {
		owner := b.order[0]
		b.order = b.order[1:]
		list := b.users[owner]
		b.bytes -= list[0].size()
		list[0] = nil
		if list = list[1:]; len(list) == 0 {
			delete(b.users, owner)
		} else {
			b.users[owner] = list
		}
	}
}

func (b *inbox) notify() {
	close(b.changed)
	b.changed = make(chan struct{})
}

func (m *Message) size() int { return len(m.Body) + len(m.Content) + 512 }

// Inbox returns what user's phone shows, oldest first, never nil. Userids are case-insensitive.
// All inboxes together hold at most 100,000 messages and 256 MiB; older ones are gone.
func (s *Server) Inbox(user string) []Message {
	user = strings.ToLower(user)
	s.mu.Lock()
	defer s.mu.Unlock()
	own := s.box.users[user]
	var all []*Message
	if user != everybody {
		all = s.box.users[everybody]
	}
	list := make([]Message, 0, len(own)+len(all))
	var last uint64 // a message to a member and to a department is shown once
	for len(own) > 0 || len(all) > 0 {
		var m *Message
		if len(all) == 0 || len(own) > 0 && own[0].n <= all[0].n {
			m, own = own[0], own[1:]
		} else {
			m, all = all[0], all[1:]
		}
		if m.n != last {
			list = append(list, *m)
		}
		last = m.n
	}
	return list
}
