package wecom

import "strings"

// query is what WeCom adds to the URL of a callback, each value percent-decoded once.
type query struct {
	signature, timestamp, nonce string
	echo                        string // only of a URL verification
}

// parseQuery reads the parameters of a callback from the raw query. It builds no map:
// of the whole query only four names matter, and their values rarely need decoding, so
// that they can be slices of raw. Other parameters are ignored, however broken they are;
// of a parameter that stands twice the first counts.
//
// Plus signs in echostr stay plus signs, and spaces become plus signs: a proxy that
// rewrites the query may have decoded %2B too early, a space is never legal in base64,
// and the signature still has to match. In the other values a plus sign is a space, as
// in any form.
func parseQuery(raw string) (q query, ok bool) {
	var seenSignature, seenTimestamp, seenNonce, seenEcho bool
	for len(raw) > 0 {
		var pair string
		if i := strings.IndexByte(raw, '&'); i >= 0 {
			pair, raw = raw[:i], raw[i+1:]
		} else {
			pair, raw = raw, ""
		}
		key, value, _ := strings.Cut(pair, "=")
		if strings.IndexByte(key, '%') >= 0 {
			if key, ok = unescape(key, ' '); !ok {
				continue
			}
		}
		switch key {
		case "msg_signature":
			if !seenSignature {
				seenSignature = true
				q.signature, ok = unescape(value, ' ')
			}
		case "timestamp":
			if !seenTimestamp {
				seenTimestamp = true
				q.timestamp, ok = unescape(value, ' ')
			}
		case "nonce":
			if !seenNonce {
				seenNonce = true
				q.nonce, ok = unescape(value, ' ')
			}
		case "echostr":
			if !seenEcho {
				seenEcho = true
				q.echo, ok = unescape(value, '+')
				q.echo = strings.ReplaceAll(q.echo, " ", "+")
			}
		default:
			continue
		}
		if !ok {
			return query{}, false
		}
	}
	return q, seenSignature && seenTimestamp && seenNonce
}

// unescape decodes the percent escapes of s once and puts plus for each plus sign. It
// reports false if an escape is cut off or not hexadecimal.
func unescape(s string, plus byte) (string, bool) {
	if strings.IndexByte(s, '%') < 0 && strings.IndexByte(s, '+') < 0 {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '+':
			b = append(b, plus)
		case '%':
			if len(s)-i < 3 {
				return "", false
			}
			hi, lo := unhex(s[i+1]), unhex(s[i+2])
			if hi > 15 || lo > 15 {
				return "", false
			}
			b = append(b, hi<<4|lo)
			i += 2
		default:
			b = append(b, c)
		}
	}
	return string(b), true
}

// unhex returns the value of a hexadecimal digit, and something above 15 for any other
// byte.
func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 255
}
