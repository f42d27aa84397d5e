package wecom

import (
	"bytes"
	"encoding/json"
	"io"
	"strings"
)

// findEncrypt returns the encrypted text of an envelope: of XML the child Encrypt of the
// root, of JSON the member encrypt, in any case. It must be there once and not be empty.
// Nothing else of the envelope is looked at, since nothing else of it is signed.
//
// The text lies in body, or is a copy where it is escaped.
func findEncrypt(body []byte) ([]byte, bool) {
	s := viewString(body) // so that one scanner serves envelope and plaintext
	if start := trimStart(s); strings.HasPrefix(start, "{") {
		body = body[len(s)-len(start):]
		from, to, state := flatJSON(start)
		if state == flatUnknown {
			return slowJSON(body)
		}
		return body[from:to], to > from
	}
	from, to, state := flatXML(s)
	if state == flatUnknown {
		return slowXML(string(body)) // a copy: the decoder may keep what it reads
	}
	return body[from:to], to > from
}

// flatXML finds the value of Encrypt in s if s is a plain envelope.
func flatXML(s string) (from, to int, state flatState) {
	var f flat
	if !f.open(s) {
		return 0, 0, flatUnknown
	}
	found := false
	for {
		switch f.next() {
		case flatUnknown:
			return 0, 0, flatUnknown
		case flatEnd:
			skipped := len(s) - len(f.s)
			return skipped + from, skipped + to, flatEnd
		}
		if f.name == "Encrypt" {
			// It need not be verbatim: what is not base64 will be refused as such.
			if found {
				return 0, 0, flatUnknown
			}
			found, from, to = true, f.from, f.to
		} else if _, ok := verbatim(f.s[f.from:f.to]); !ok {
			return 0, 0, flatUnknown
		}
	}
}

func slowXML(s string) ([]byte, bool) {
	root, err := readTree(s)
	if err != nil || root.name != "xml" {
		return nil, false
	}
	var found *node
	for i := range root.kids {
		if n := &root.kids[i]; n.name == "Encrypt" {
			if found != nil {
				return nil, false
			}
			found = n
		}
	}
	if found == nil || len(found.kids) > 0 || found.text == "" {
		return nil, false
	}
	return []byte(found.text), true
}

// flatJSON finds the value of encrypt in s, which starts with a brace, if s is a plain
// envelope: an object of ASCII strings without escapes, and of whole numbers.
func flatJSON(s string) (from, to int, state flatState) {
	found := false
	i := skipBlank(s, 1)
	for {
		keyFrom, keyTo, ok := flatString(s, i)
		if !ok {
			return 0, 0, flatUnknown
		}
		i = skipBlank(s, keyTo+1)
		if i == len(s) || s[i] != ':' {
			return 0, 0, flatUnknown
		}
		i = skipBlank(s, i+1)
		a, b, isString := flatString(s, i)
		if isString {
			i = b + 1
		} else {
			n := i
			for n < len(s) && '0' <= s[n] && s[n] <= '9' {
				n++
			}
			if n == i || s[i] == '0' && n > i+1 {
				return 0, 0, flatUnknown
			}
			i = n
		}
		if strings.EqualFold(s[keyFrom:keyTo], "encrypt") {
			if found || !isString {
				return 0, 0, flatUnknown
			}
			found, from, to = true, a, b
		}
		i = skipBlank(s, i)
		if i == len(s) {
			return 0, 0, flatUnknown
		}
		switch s[i] {
		case ',':
			i = skipBlank(s, i+1)
		case '}':
			if skipBlank(s, i+1) != len(s) {
				return 0, 0, flatUnknown
			}
			return from, to, flatEnd
		default:
			return 0, 0, flatUnknown
		}
	}
}

// flatString returns where the content of the JSON string at s[i:] lies, if it is ASCII
// without escapes.
func flatString(s string, i int) (from, to int, ok bool) {
	if i >= len(s) || s[i] != '"' {
		return 0, 0, false
	}
	i++
	n := strings.IndexByte(s[i:], '"')
	if n < 0 {
		return 0, 0, false
	}
	var c uint8
	for _, b := range []byte(s[i : i+n]) {
		c |= classes[b]
	}
	return i, i + n, c&(mustEscape|notASCII|isControl) == 0
}

func slowJSON(body []byte) (encrypt []byte, ok bool) {
	d := json.NewDecoder(bytes.NewReader(body))
	if t, err := d.Token(); err != nil || t != json.Delim('{') {
		return nil, false
	}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return nil, false
		}
		var value json.RawMessage
		if err := d.Decode(&value); err != nil {
			return nil, false
		}
		if name, _ := key.(string); strings.EqualFold(name, "encrypt") {
			var text string
			if ok || value[0] != '"' || json.Unmarshal(value, &text) != nil {
				return nil, false
			}
			encrypt, ok = []byte(text), true
		}
	}
	if _, err := d.Token(); err != nil { // the closing brace
		return nil, false
	}
	if _, err := d.Token(); err != io.EOF {
		return nil, false
	}
	return encrypt, ok && len(encrypt) > 0
}
