package wecom

import (
	"encoding/xml"
	"errors"
	"io"
	"strconv"
	"strings"
)

// The limits of a document. What WeCom sends stays far below: the deepest callback has
// seven levels, the longest lists have a thousand entries of a handful of elements.
const (
	maxSize     = 1 << 20 // bytes
	maxDepth    = 32      // elements, or JSON values, inside one another
	maxElements = 32768   // elements and attributes, or JSON members, in one document
)

// errDocument reports a document that is not well-formed, holds a document type
// declaration or exceeds a limit. Nobody asks which.
var errDocument = errors.New("not a document")

// node is an element.
type node struct {
	name  string
	attrs []xml.Attr
	kids  []node
	text  string // without white space at its ends, but for what stands in CDATA
}

// readTree reads a document with encoding/xml and returns its root. It takes any
// well-formed UTF-8 document without a document type declaration; comments and processing
// instructions are left out.
//
// Raw tokens are used so that names keep the prefixes they have in the source; therefore
// tags are matched here.
func readTree(s string) (*node, error) {
	if len(s) > maxSize {
		return nil, errDocument
	}
	s = strings.TrimPrefix(s, "\ufeff")
	d := xml.NewDecoder(strings.NewReader(s))

	type open struct {
		node
		buf  []byte
		kept int // bytes of buf that may not be trimmed: they end with a CDATA section
	}
	var (
		root  *node
		stack []open
		count int
	)
	for {
		at := d.InputOffset()
		token, err := d.RawToken()
		if errors.Is(err, io.EOF) && root != nil && len(stack) == 0 {
			return root, nil
		}
		if err != nil {
			return nil, errDocument
		}
		switch token := token.(type) {
		case xml.StartElement:
			count += 1 + len(token.Attr)
			if root != nil || len(stack) == maxDepth || count > maxElements ||
				repeats(token.Attr) || hasSurrogate(s[at:d.InputOffset()]) {
				return nil, errDocument
			}
			stack = append(stack, open{node: node{name: fullName(token.Name), attrs: token.Attr}})

		case xml.EndElement:
			if len(stack) == 0 || stack[len(stack)-1].name != fullName(token.Name) {
				return nil, errDocument
			}
			o := stack[len(stack)-1]
			stack = stack[:len(stack)-1]
			for len(o.buf) > o.kept && strings.IndexByte(blank, o.buf[len(o.buf)-1]) >= 0 {
				o.buf = o.buf[:len(o.buf)-1]
			}
			o.text = string(o.buf)
			if len(stack) == 0 {
				root = &o.node
			} else {
				parent := &stack[len(stack)-1]
				parent.kids = append(parent.kids, o.node)
			}

		case xml.CharData:
			isCDATA := strings.HasPrefix(s[at:], "<![CDATA[")
			if !isCDATA && hasSurrogate(s[at:d.InputOffset()]) {
				return nil, errDocument
			}
			text := []byte(token)
			if len(stack) == 0 {
				if isCDATA || strings.Trim(string(text), blank) != "" {
					return nil, errDocument
				}
				continue
			}
			o := &stack[len(stack)-1]
			if !isCDATA && len(o.buf) == 0 {
				text = []byte(strings.TrimLeft(string(text), blank))
			}
			o.buf = append(o.buf, text...)
			if isCDATA && len(text) > 0 {
				o.kept = len(o.buf)
			}

		case xml.Directive:
			return nil, errDocument // a document type declaration, which could define entities
		}
	}
}

// fullName returns a raw token's name as the source has it.
func fullName(n xml.Name) string {
	if n.Space != "" {
		return n.Space + ":" + n.Local
	}
	return n.Local
}

// repeats reports whether an attribute stands twice, which encoding/xml does not mind.
func repeats(attrs []xml.Attr) bool {
	if len(attrs) < 2 {
		return false
	}
	seen := make(map[xml.Name]bool, len(attrs))
	for _, a := range attrs {
		if seen[a.Name] {
			return true
		}
		seen[a.Name] = true
	}
	return false
}

// hasSurrogate reports a numeric reference to a surrogate, which XML forbids and for which
// encoding/xml puts U+FFFD.
func hasSurrogate(source string) bool {
	for {
		_, after, ok := strings.Cut(source, "&#")
		if !ok {
			return false
		}
		source = after
		number, _, _ := strings.Cut(after, ";")
		base := 10
		if strings.HasPrefix(number, "x") {
			number, base = number[1:], 16
		}
		if n, err := strconv.ParseUint(number, base, 32); err == nil && 0xd800 <= n && n <= 0xdfff {
			return true
		}
	}
}

// appendNode appends an element's value as JSON. event is the document's Event, on which
// depends what may repeat.
func appendNode(dst []byte, n *node, isRoot bool, event string) []byte {
	if len(n.attrs) == 0 && len(n.kids) == 0 && !isRoot {
		return appendString(dst, n.text)
	}
	dst = append(dst, '{')
	for _, a := range n.attrs {
		dst = append(appendEscaped(append(dst, `"@`...), fullName(a.Name)), `":`...)
		dst = append(appendString(dst, a.Value), ',')
	}
	if n.text != "" {
		dst = append(appendString(append(dst, `"#text":`...), n.text), ',')
	}
	parent := n.name
	if isRoot {
		parent = ""
	}
	for _, group := range groups(n.kids) {
		name := n.kids[group[0]].name
		dst = append(appendString(dst, name), ':')
		if len(group) == 1 && !mayRepeat(parent, name, event) {
			dst = appendNode(dst, &n.kids[group[0]], false, event)
		} else {
			dst = append(dst, '[')
			for _, i := range group {
				dst = append(appendNode(dst, &n.kids[i], false, event), ',')
			}
			dst[len(dst)-1] = ']'
		}
		dst = append(dst, ',')
	}
	if dst[len(dst)-1] == ',' {
		dst = dst[:len(dst)-1]
	}
	return append(dst, '}')
}

// groups returns the indices of kids by name, in the order in which the names first stand.
func groups(kids []node) [][]int {
	var list [][]int
	at := make(map[string]int, len(kids))
	for i := range kids {
		j, ok := at[kids[i].name]
		if !ok {
			j = len(list)
			at[kids[i].name] = j
			list = append(list, nil)
		}
		list[j] = append(list[j], i)
	}
	return list
}
