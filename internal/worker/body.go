package worker

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"slices"
	"strconv"
)

// object is a JSON object whose members can be changed without touching the bytes
// between them: what a publisher wrote reaches WeCom as it was written, `<a href>`
// unescaped, members in their order, numbers with all their digits.
type object struct {
	src     []byte
	members []member
}

// member is one member of an object, by offsets into its source.
type member struct {
	name            string
	key, value, end int // where the key starts, the value starts, the value ends
}

var errNotObject = errors.New("body is not a JSON object")

// parseObject reads one JSON object and nothing behind it. The error does not quote it.
func parseObject(src []byte) (*object, error) {
	src = bytes.Trim(src, " \t\r\n")
	if len(src) == 0 || src[0] != '{' || !json.Valid(src) {
		return nil, errNotObject
	}
	o := &object{src: src}
	dec := json.NewDecoder(bytes.NewReader(src))
	if _, err := dec.Token(); err != nil {
		return nil, errNotObject
	}
	for dec.More() {
		start := int(dec.InputOffset())
		start += bytes.IndexByte(src[start:], '"')
		name, err := dec.Token()
		if err != nil {
			return nil, errNotObject
		}
		var raw json.RawMessage
		if err := dec.Decode(&raw); err != nil {
			return nil, errNotObject
		}
		end := int(dec.InputOffset())
		key, _ := name.(string) // the key of a valid object is nothing else
		o.members = append(o.members, member{key, start, end - len(raw), end})
	}
	if _, err := dec.Token(); err != nil && !errors.Is(err, io.EOF) {
		return nil, errNotObject
	}
	return o, nil
}

// get returns the last value of a member, or nil. Whoever reads the object later takes
// the last of several, too.
func (o *object) get(name string) []byte {
	for _, m := range slices.Backward(o.members) {
		if m.name == name {
			return o.src[m.value:m.end]
		}
	}
	return nil
}

// text returns a member that is a string; "" for anything else.
func (o *object) text(name string) string {
	var s string
	if json.Unmarshal(o.get(name), &s) != nil {
		return ""
	}
	return s
}

// has reports whether a member is there and says something.
func (o *object) has(name string) bool {
	switch string(o.get(name)) {
	case "", "null", `""`:
		return false
	}
	return true
}

// set replaces a member's value, or appends the member. Of several with that name the
// first takes the value and the others go.
func (o *object) set(name, value string) {
	i := slices.IndexFunc(o.members, func(m member) bool { return m.name == name })
	if i < 0 {
		o.add(name, value)
		return
	}
	for j := len(o.members) - 1; j > i; j-- {
		if o.members[j].name == name {
			o.cut(j)
		}
	}
	m := o.members[i]
	o.splice(m.value, m.end, value)
}

// remove takes every member with that name out.
func (o *object) remove(name string) {
	for j := len(o.members) - 1; j >= 0; j-- {
		if o.members[j].name == name {
			o.cut(j)
		}
	}
}

func (o *object) add(name, value string) {
	at, text := 1, strconv.Quote(name)+":"+value
	if n := len(o.members); n > 0 {
		at, text = o.members[n-1].end, ","+text
	}
	o.splice(at, at, text)
}

// cut removes member j with one comma.
func (o *object) cut(j int) {
	switch {
	case j > 0:
		o.splice(o.members[j-1].end, o.members[j].end, "")
	case len(o.members) > 1:
		o.splice(o.members[0].key, o.members[1].key, "")
	default:
		o.splice(o.members[0].key, o.members[0].end, "")
	}
}

// splice puts text in the place of src[from:to]. Objects are small and edits few, so
// the members are simply found anew.
func (o *object) splice(from, to int, text string) {
	src := slices.Concat(o.src[:from], []byte(text), o.src[to:])
	next, err := parseObject(src)
	if err != nil {
		panic("worker: an edit broke a JSON object") // all edits are made above
	}
	*o = *next
}
