package bridge

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"slices"
	"strings"
	"time"
)

// A Message is one call of WeCom's API that somebody who holds the app's secret is to
// make: nearly always message/send. Make one with [Text] or [JSON].
type Message struct {
	// ID names the message for ever: a second one with the same ID and app is not
	// sent. Leave it empty: what a [Handler] returns takes its ID from the event, the
	// consumer and its position, and [Client.Send] makes one up. One to 200 printable
	// ASCII characters without blanks.
	ID string
	// To is the member who gets it, and the order key: messages to the same To of the
	// same app are sent one after the other. It becomes the body's "touser" unless the
	// body names a recipient itself. [Reply] fills an empty one.
	To string
	// API is the call's path below /cgi-bin/; "" means "message/send".
	API string
	// Body is the call's JSON body. The sender adds agentid and credentials.
	Body json.RawMessage
	// Expires is when the message stops making sense; the zero time means never. An
	// expired message is not sent, and its receipt says so.
	Expires time.Time

	err error // what went wrong in the making, reported when it is sent
}

// Text returns a text message to one member. WeCom cuts content after 2,048 bytes
// (developer.work.weixin.qq.com/document/path/90236).
func Text(to, content string) Message {
	return JSON("", struct {
		MsgType string            `json:"msgtype"`
		Text    map[string]string `json:"text"`
	}{"text", map[string]string{"content": content}}).to(to)
}

func (m Message) to(user string) Message {
	m.To = user
	return m
}

// JSON returns a message that calls api ("" for message/send) with body, which is
// encoded as JSON, or taken as it is when it is a json.RawMessage. The body names the
// recipient as WeCom wants it (touser, toparty, totag, chatid), or Message.To does.
// A body that cannot be encoded is reported when the message is sent.
func JSON(api string, body any) Message {
	if raw, ok := body.(json.RawMessage); ok {
		return Message{API: api, Body: raw}
	}
	// json.Marshal would write the < of a text's <a href> as \u003c.
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	err := enc.Encode(body)
	return Message{API: api, Body: json.RawMessage(strings.TrimSuffix(b.String(), "\n")), err: err}
}

// Reply addresses ms to the member who caused ev: it fills an empty To of those whose
// body names no recipient, and returns ms. If nobody caused ev, a message that it
// would have had to fill cannot be sent, and the event goes to the dead letters.
func Reply(ev *Event, ms ...Message) []Message {
	user := ev.User()
	for i := range ms {
		if ms[i].To != "" {
			continue
		}
		if r, err := ms[i].recipients(); err == nil && r.any() {
			continue
		}
		if ms[i].To = user; user == "" {
			ms[i].err = errors.Join(ms[i].err, fmt.Errorf("event %s has no member to reply to", ev.ID))
		}
	}
	return ms
}

// recipients are the members of a body that say who gets it.
type recipients struct {
	ToUser  any    `json:"touser"`
	ToParty any    `json:"toparty"`
	ToTag   any    `json:"totag"`
	ChatID  string `json:"chatid"`
}

func (r recipients) any() bool {
	return r.ChatID != "" || given(r.ToUser) || given(r.ToParty) || given(r.ToTag)
}

func given(v any) bool { return v != nil && v != "" }

func (m *Message) recipients() (recipients, error) {
	var r recipients
	if err := json.Unmarshal(m.Body, &r); err != nil {
		return r, fmt.Errorf("body is not a JSON object: %w", err)
	}
	return r, nil
}

var (
	messageID = regexp.MustCompile(`^[!-~]{1,200}$`)
	apiPath   = regexp.MustCompile(`^[a-z0-9_]+(/[a-z0-9_]+)*$`)
)

// seal checks the message and returns its final body and its order key: the one
// member (in lower case, since WeCom's userids are case-insensitive) or chat that gets
// it; "" when that is not a single one.
func (m *Message) seal() (body []byte, key string, err error) {
	switch {
	case m.err != nil:
		return nil, "", m.err
	case m.ID != "" && !messageID.MatchString(m.ID):
		return nil, "", errors.New("ID is not 1 to 200 printable ASCII characters without blanks")
	case m.API != "" && !apiPath.MatchString(m.API):
		return nil, "", fmt.Errorf("API %q is not a path below /cgi-bin/, such as message/send", m.API)
	}
	r, err := m.recipients()
	if err != nil {
		return nil, "", err
	}
	if body = bytes.TrimLeft(m.Body, " \t\r\n"); body[0] != '{' {
		return nil, "", errors.New("body is not a JSON object")
	}
	if m.To != "" && !r.any() {
		// Insert touser and leave the rest as the caller wrote it, byte for byte.
		user, err := json.Marshal(m.To)
		if err != nil {
			return nil, "", err
		}
		rest := bytes.TrimLeft(body[1:], " \t\r\n")
		if rest[0] != '}' {
			user = append(user, ',')
		}
		body = slices.Concat([]byte(`{"touser":`), user, rest)
		r.ToUser = m.To
	}
	switch user, _ := r.ToUser.(string); {
	case given(r.ToParty) || given(r.ToTag) || strings.Contains(user, "|") || user == "@all":
	case user != "":
		key = strings.ToLower(user)
	default:
		key = r.ChatID
	}
	return body, key, nil
}
