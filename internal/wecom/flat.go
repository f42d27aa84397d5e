package wecom

import (
	"strings"
	"unicode/utf8"
)

// flat reads a document of the shape that nearly all of WeCom's have, a root <xml> whose
// children are plain leaves:
//
//	<xml><Name>text</Name><Name><![CDATA[text]]></Name>…</xml>
//
// It is as strict as it is fast. Whatever else a document holds, well-formed or not, makes
// next report flatUnknown, and the document has to be read by readTree. What flat does
// read means the same to readTree, provided that every value is verbatim.
type flat struct {
	s string
	i int // of the next byte to read

	// The child that next read: its name, and where in s its value lies, white space round
	// it left out.
	name     string
	from, to int
}

type flatState int

const (
	flatChild   flatState = iota // a child was read
	flatEnd                      // the document ended as it should
	flatUnknown                  // not for flat
)

// open enters the root.
func (f *flat) open(s string) bool {
	f.s = trimStart(s)
	f.i = len("<xml>")
	return strings.HasPrefix(f.s, "<xml>")
}

// next reads the next child.
func (f *flat) next() flatState {
	s := f.s
	i := skipBlank(s, f.i)
	if len(s)-i < 2 || s[i] != '<' {
		return flatUnknown
	}
	i++
	if s[i] == '/' {
		const end = "/xml>"
		if strings.HasPrefix(s[i:], end) && skipBlank(s, i+len(end)) == len(s) {
			return flatEnd
		}
		return flatUnknown
	}

	start := i
	for i < len(s) && classes[s[i]]&inName != 0 {
		i++
	}
	name := s[start:i]
	if name == "" || '0' <= name[0] && name[0] <= '9' || i == len(s) || s[i] != '>' {
		return flatUnknown
	}
	f.name = name

	const cdata, cdataEnd = "<![CDATA[", "]]>"
	i = skipBlank(s, i+1)
	f.from = i
	if strings.HasPrefix(s[i:], cdata) {
		f.from = i + len(cdata)
		for i = f.from; ; i++ {
			n := strings.IndexByte(s[i:], cdataEnd[0])
			if n < 0 {
				return flatUnknown
			}
			i += n
			if strings.HasPrefix(s[i:], cdataEnd) {
				break
			}
		}
		f.to = i
		i = skipBlank(s, i+len(cdataEnd))
	} else {
		for i < len(s) && classes[s[i]]&inMarkup == 0 {
			i++
		}
		f.to = i
		for f.to > f.from && isBlank(s[f.to-1]) {
			f.to--
		}
	}

	// "</" name ">"
	n := len(name)
	if len(s)-i < n+3 || s[i] != '<' || s[i+1] != '/' || s[i+2:i+2+n] != name || s[i+2+n] != '>' {
		return flatUnknown
	}
	f.i = i + n + 3
	return flatChild
}

func skipBlank(s string, i int) int {
	for i < len(s) && isBlank(s[i]) {
		i++
	}
	return i
}

// isBlank reports white space, but for the carriage return: XML turns it into a line feed,
// so that what holds one is not verbatim.
func isBlank(c byte) bool { return c == ' ' || c == '\n' || c == '\t' }

// What a byte can be, a set of bits.
const (
	inName   = 1 << iota // may stand in a name
	inMarkup             // may not stand in text outside CDATA: it is markup, or part of it
	mustEscape
	notASCII
	isControl // illegal in XML, or not verbatim
)

var classes = func() (t [256]uint8) {
	for c := range t {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
			t[c] = inName
		case c == '\t', c == '\n', c == '"', c == '\\':
			t[c] = mustEscape
		case c == '<', c == '&', c == '>':
			t[c] = inMarkup
		case c < ' ':
			t[c] = isControl
		case c >= utf8.RuneSelf:
			t[c] = notASCII
		}
	}
	return t
}()

// verbatim reports whether a value that flat found stands for itself: it is valid UTF-8 and
// holds no character that XML forbids or changes. escape reports that JSON has to escape
// some of it.
func verbatim(s string) (escape, ok bool) {
	const (
		ones  = 0x0101010101010101
		highs = 0x80 * ones
	)
	var (
		c    uint8
		high uint64
		i    int
	)
	// Eight bytes at a time. The tests for a byte below a space and for a given byte are
	// the usual ones with carries: they miss none, and what they find is looked at again.
	for ; len(s)-i >= 8; i += 8 {
		w := uint64(s[i]) | uint64(s[i+1])<<8 | uint64(s[i+2])<<16 | uint64(s[i+3])<<24 |
			uint64(s[i+4])<<32 | uint64(s[i+5])<<40 | uint64(s[i+6])<<48 | uint64(s[i+7])<<56
		high |= w
		quote, backslash := w^'"'*ones, w^'\\'*ones
		if ((w-' '*ones)&^w|(quote-ones)&^quote|(backslash-ones)&^backslash)&highs != 0 {
			for j := i; j < i+8; j++ {
				c |= classes[s[j]]
			}
		}
	}
	for ; i < len(s); i++ {
		c |= classes[s[i]]
	}
	if c&isControl != 0 || (c&notASCII != 0 || high&highs != 0) && !isXMLText(s) {
		return false, false
	}
	return c&mustEscape != 0, true
}

// isXMLText reports whether s is UTF-8 without the two code points above ASCII that XML
// forbids, U+FFFE and U+FFFF. (Surrogates are no UTF-8 anyway.)
func isXMLText(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	for {
		i := strings.Index(s, "\xef\xbf")
		if i < 0 {
			return true
		}
		if s[i+2] >= 0xbe {
			return false
		}
		s = s[i+3:]
	}
}
