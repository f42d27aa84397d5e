package wecom

import (
	"crypto/sha256"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"strings"
	"time"
	"unicode/utf8"
)

// Format says what the data of an event is.
type Format int

const (
	JSON   Format = iota // a JSON object, WeCom's payload
	Text                 // a JSON string, the raw text of what could not be understood
	Binary               // a JSON string, the base64 of what is not even UTF-8
)

// A Payload says what a callback is, beside its data. All strings are as WeCom spells
// them, and slices of the plaintext that was parsed where that is possible: whoever keeps
// one for long keeps the plaintext.
type Payload struct {
	CorpID       string    // the corp that it comes from; "" if the plaintext does not say
	AgentID      string    // the app that it is for; "" if the plaintext does not say
	Subject      string    // whom or what it is about: a user, a group, a document…; "-" for nobody or the app itself
	PartitionKey string    // what must stay in order; "-" for nothing
	Time         time.Time // when it happened, in UTC; zero if the plaintext does not say
	Format       Format    // of the data

	plain string
	own   string // the id that WeCom gave it, if it may serve as one
	tail  [3]string
	n     int // of tail
}

// Tail returns the parts of the type after "wecom", such as "message", "text" or "event",
// "change_contact", "create_user". A part may hold any character, dots too. The slice
// belongs to p and is overwritten when p is used again.
func (p *Payload) Tail() []string { return p.tail[:p.n] }

// Type returns the event's type, such as wecom.message.text.
func (p *Payload) Type() string {
	switch p.n { // one allocation each, where a join makes two
	case 1:
		return "wecom." + p.tail[0]
	case 2:
		return "wecom." + p.tail[0] + "." + p.tail[1]
	}
	return "wecom." + p.tail[0] + "." + p.tail[1] + "." + p.tail[2]
}

// ID returns the event's id, see [Payload.AppendID].
func (p *Payload) ID() string { return string(p.AppendID(make([]byte, 0, 130))) }

// AppendID appends the event's id to dst: "m-" and the payload's own id, if it has one of
// at most 128 printable ASCII characters without a space; else "h-" and 130 bits of the
// plaintext's SHA-256 in lower-case base32. A callback that WeCom repeats has the same id.
func (p *Payload) AppendID(dst []byte) []byte {
	if p.own != "" {
		return append(append(dst, "m-"...), p.own...)
	}
	sum := sha256.Sum256(viewBytes(p.plain))
	dst = append(dst, "h-"...)
	start := len(dst)
	return idEncoding.AppendEncode(dst, sum[:])[:start+26]
}

var idEncoding = base32.NewEncoding("abcdefghijklmnopqrstuvwxyz234567").WithPadding(base32.NoPadding)

// usableID reports whether WeCom's id may be part of an event id, which travels in headers.
func usableID(s string) bool {
	if len(s) < 1 || len(s) > 128 {
		return false
	}
	for i := range len(s) {
		if s[i] < '!' || s[i] > '~' {
			return false
		}
	}
	return true
}

// Parse appends the data of the event that plain, the plaintext of a callback, stands for
// to dst, as one JSON value, and fills p, whatever it held before. The package
// documentation says how data comes about.
//
// Parse never fails. What it cannot read (no XML and no JSON object, a document type
// declaration, characters that XML forbids, more than 1 MiB, 32 levels or 32,768 elements)
// or cannot name (no message type, JSON of no known family) is of type wecom.unknown: its
// data is the raw text, and p.Format says so.
func Parse(dst []byte, plain string, p *Payload) []byte {
	*p = Payload{plain: plain, Subject: "-", PartitionKey: "-"}
	start := len(dst)
	dst, ok := parseFlat(dst, plain, p)
	if !ok {
		dst, ok = parseSlow(dst[:start], plain, p)
	}
	if ok {
		return dst
	}
	p.tail[0], p.n, p.Subject = "unknown", 1, "-"
	return appendRaw(dst[:start], plain, p)
}

// appendRaw appends a text that is not understood.
func appendRaw(dst []byte, plain string, p *Payload) []byte {
	if utf8.ValidString(plain) {
		p.Format = Text
		return appendString(dst, plain)
	}
	p.Format = Binary
	dst = append(dst, '"')
	dst = base64.StdEncoding.AppendEncode(dst, []byte(plain))
	return append(dst, '"')
}

// maxFlat is the number of children up to which the fast way is taken. Only some address
// book events have more than a dozen.
const maxFlat = 32

// parseFlat reads a plain XML document straight into JSON. It reports false for everything
// else, and for what cannot be classified.
func parseFlat(dst []byte, plain string, p *Payload) ([]byte, bool) {
	var f flat
	if len(plain) > maxSize || !f.open(plain) {
		return dst, false
	}
	var (
		buf   [maxFlat]field
		names uint64
	)
	fields := buf[:0]
	dst = append(dst, '{')
	for {
		state := f.next()
		if state == flatUnknown {
			return dst, false
		}
		if state == flatEnd {
			break
		}
		name, value, bit := f.name, f.s[f.from:f.to], nameBit(f.name)
		escape, ok := verbatim(value)
		if !ok || len(fields) == maxFlat ||
			names&bit != 0 && has(fields, name) ||
			repeatRoot&bit != 0 && repeatSet[[2]string{"", name}] {
			return dst, false
		}
		names |= bit
		fields = append(fields, field{name: name, value: value})

		if len(fields) > 1 {
			dst = append(dst, ',')
		}
		dst = append(dst, '"')
		dst = append(dst, name...)
		dst = append(dst, `":"`...)
		if escape {
			dst = appendEscaped(dst, value)
		} else {
			dst = append(dst, value...)
		}
		dst = append(dst, '"')
	}
	return append(dst, '}'), classifyXML(fields, p)
}

// parseSlow reads any document.
func parseSlow(dst []byte, plain string, p *Payload) ([]byte, bool) {
	if len(plain) > maxSize {
		return dst, false
	}
	s := strings.TrimRight(trimStart(plain), blank)
	if strings.HasPrefix(s, "{") {
		return parseJSON(dst, s, p)
	}
	root, err := readTree(plain)
	if err != nil {
		return dst, false
	}
	fields := treeFields(root)
	dst = appendNode(dst, root, true, find(fields, "Event"))
	return dst, classifyXML(fields, p)
}

// parseJSON passes a JSON object through.
func parseJSON(dst []byte, s string, p *Payload) ([]byte, bool) {
	start := len(dst)
	dst = append(dst, s...)
	if !utf8.ValidString(s) || !json.Valid(dst[start:]) {
		return dst, false
	}
	var buf [maxFlat]field
	fields, ok := jsonFields(buf[:0], s)
	return dst, ok && classifyJSON(fields, p)
}
