package wecom

import (
	"encoding/json"
	"slices"
	"strings"
)

// appendString appends s, which must be UTF-8, as a JSON string. Only what JSON demands is
// escaped: < and & stay.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	dst = appendEscaped(dst, s)
	return append(dst, '"')
}

// appendEscaped appends the content of the JSON string that stands for s.
func appendEscaped(dst []byte, s string) []byte {
	const hex = "0123456789abcdef"
	start := 0
	for i := range len(s) {
		c := s[i]
		if c >= ' ' && c != '"' && c != '\\' {
			continue
		}
		dst = append(dst, s[start:i]...)
		start = i + 1
		switch c {
		case '"', '\\':
			dst = append(dst, '\\', c)
		case '\n':
			dst = append(dst, '\\', 'n')
		case '\r':
			dst = append(dst, '\\', 'r')
		case '\t':
			dst = append(dst, '\\', 't')
		default:
			dst = append(dst, '\\', 'u', '0', '0', hex[c>>4], hex[c&15])
		}
	}
	return append(dst, s[start:]...)
}

// jsonFields appends to fields the strings and numbers in the first two levels of s, which
// must be a valid JSON object. Where a key stands twice, the last one comes first, because
// that is the one that decoders keep. It reports false if s is too deep or has too many
// members.
func jsonFields(fields []field, s string) ([]field, bool) {
	r := jsonReader{s: s, i: 1}
	parent, depth := "", 1
	for {
		r.skip()
		switch r.s[r.i] {
		case '}':
			r.i++
			if depth == 1 {
				slices.Reverse(fields)
				return fields, true
			}
			parent, depth = "", 1
			continue
		case ',':
			r.i++
			continue
		}
		if r.n++; r.n > maxElements {
			return nil, false
		}
		key := jsonText(r.string())
		r.skip()
		r.i++ // :
		r.skip()
		switch c := r.s[r.i]; {
		case c == '"':
			fields = append(fields, field{parent: parent, name: key, value: r.string(), isJSON: true})
		case c == '-' || '0' <= c && c <= '9':
			fields = append(fields, field{parent: parent, name: key, value: r.scalar()})
		case c == '{' && depth == 1 && key != "":
			fields = append(fields, field{name: key})
			r.i++
			parent, depth = key, 2
		case c == '{' || c == '[':
			if !r.compound(depth) {
				return nil, false
			}
		default:
			r.scalar()
		}
	}
}

// jsonReader walks over valid JSON.
type jsonReader struct {
	s string
	i int
	n int // members so far
}

// skip passes white space.
func (r *jsonReader) skip() {
	for strings.IndexByte(blank, r.s[r.i]) >= 0 {
		r.i++
	}
}

// string reads a string, its quotation marks included.
func (r *jsonReader) string() string {
	start := r.i
	for r.i++; r.s[r.i] != '"'; r.i++ {
		if r.s[r.i] == '\\' {
			r.i++
		}
	}
	r.i++
	return r.s[start:r.i]
}

// scalar reads a number, true, false or null. The root's end stands behind it.
func (r *jsonReader) scalar() string {
	start := r.i
	r.i += strings.IndexAny(r.s[r.i:], ",}]"+blank)
	return r.s[start:r.i]
}

// compound passes over an object or array that stands depth levels deep.
func (r *jsonReader) compound(depth int) bool {
	outside := depth
	for {
		switch r.s[r.i] {
		case '{', '[':
			if depth++; depth > maxDepth {
				return false
			}
		case '}', ']':
			depth--
		case ',':
			if r.n++; r.n > maxElements {
				return false
			}
		case '"':
			r.string()
			continue
		}
		r.i++
		if depth == outside {
			return true
		}
	}
}

// jsonText returns what a JSON string stands for.
func jsonText(s string) string {
	if strings.IndexByte(s, '\\') < 0 {
		return s[1 : len(s)-1]
	}
	var v string
	if json.Unmarshal([]byte(s), &v) != nil {
		return "" // not reached: s is part of valid JSON
	}
	return v
}
