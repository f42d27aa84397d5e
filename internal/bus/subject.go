package bus

import (
	"encoding/base64"
	"strconv"
	"strings"
)

// The streams. What each holds, and what its subjects are, stands in
// docs/architecture.md; [Bus.Provision] creates them.
const (
	StreamEvents   = "WECOM_EVENTS"   // wecom.event.<slot>.<app>.<type tail>
	StreamOutbox   = "WECOM_OUTBOX"   // wecom.outbox.<slot>.<app>.<recipient>
	StreamReceipts = "WECOM_RECEIPTS" // wecom.receipt.<app>.<status>.<message>
	StreamDead     = "WECOM_DEAD"     // wecom.dead.<stream>.<consumer>
	StreamLater    = "WECOM_LATER"    // wecom.later.… and wecom.due.<slot>.<app>.<recipient>
	StreamProbe    = "WECOM_PROBE"    // wecom.probe.<instance>
)

// Slots is the number of slots that keys are spread over. It stands in stored
// subjects and never changes.
const Slots = 64

// maxPlainToken is the length up to which a value stands for itself in a subject.
const maxPlainToken = 64

// Token returns s as one token of a subject: s itself if it is 1 to 64 characters of
// A-Z a-z 0-9 _ -, else "=" and the unpadded base64url of the whole of s. The empty
// string becomes "-".
//
// No two strings share a token, with one exception: "" and "-". It does not allocate
// for a string that stands for itself.
func Token(s string) string {
	if s == "" {
		return "-"
	}
	if plainToken(s) {
		return s
	}
	return "=" + base64.RawURLEncoding.EncodeToString([]byte(s))
}

// Untoken is the inverse of [Token]; "-" stays "-". It reports false for what Token
// never returns.
func Untoken(token string) (string, bool) {
	if plainToken(token) {
		return token, true
	}
	enc, ok := strings.CutPrefix(token, "=")
	if !ok {
		return "", false
	}
	b, err := base64.RawURLEncoding.Strict().DecodeString(enc)
	if err != nil || len(b) == 0 || plainToken(string(b)) {
		return "", false
	}
	return string(b), true
}

func plainToken(s string) bool {
	if s == "" || len(s) > maxPlainToken {
		return false
	}
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_', c == '-':
		default:
			return false
		}
	}
	return true
}

// Slot returns the slot, 0 to Slots-1, of a key of an app. Both are given raw, as
// they came; an empty key counts as "-". It is the value that the broker's own
// partition() gives for the two tokens.
func Slot(app, key string) int {
	// FNV-1a, 32 bits, over the two tokens without a separator.
	h := uint32(2166136261)
	for _, s := range [2]string{Token(app), Token(key)} {
		for i := range len(s) {
			h = (h ^ uint32(s[i])) * 16777619
		}
	}
	return int(h % Slots)
}

// EventSubject returns the subject of an event: wecom.event.<slot>.<app>.<tail>, the
// values of tail one token each.
func EventSubject(slot int, app string, tail []string) string {
	b := make([]byte, 0, 96)
	b = append(b, "wecom.event."...)
	b = strconv.AppendInt(b, int64(slot), 10)
	b = append(b, '.')
	b = append(b, Token(app)...)
	for _, t := range tail {
		b = append(b, '.')
		b = append(b, Token(t)...)
	}
	return string(b)
}

// OutboxSubject returns the subject that a message to recipient is published to. The
// recipient is the key of order and given raw; lower-casing a user id, and "" for
// several recipients, is the caller's part. The stream inserts the slot.
func OutboxSubject(app, recipient string) string {
	return "wecom.outbox." + Token(app) + "." + Token(recipient)
}

// ReceiptSubject returns the subject of the receipt of a message. With status "*" it
// is the filter that finds whatever receipt that message has.
func ReceiptSubject(app, status, messageID string) string {
	if status != "*" {
		status = Token(status)
	}
	return "wecom.receipt." + Token(app) + "." + status + "." + Token(messageID)
}

// DeadSubject returns the subject of the dead letters of a consumer, named without
// its lane.
func DeadSubject(stream, consumer string) string {
	return "wecom.dead." + Token(stream) + "." + Token(consumer)
}

// ProbeSubject returns the subject of the probes of a process.
func ProbeSubject(instance string) string {
	return "wecom.probe." + Token(instance)
}
