package wecom

import (
	"encoding/base64"
	"encoding/binary"
)

// decodeBase64 decodes src, standard base64 with padding and without line breaks, and
// returns the number of bytes in dst, which must have room for 3/4 of src. It does what
// encoding/base64 does, which it leaves the end to, in two thirds of the time: on the way
// of a callback only decryption costs more.
func decodeBase64(dst, src []byte) (n int, ok bool) {
	if len(src)%4 != 0 {
		return 0, false
	}
	// Six bytes at a time, which are written as eight.
	for len(src) > 8 && len(dst)-n >= 8 {
		s := src[:8]
		a := base64Values[0][s[0]] | base64Values[1][s[1]] | base64Values[2][s[2]] | base64Values[3][s[3]]
		b := base64Values[0][s[4]] | base64Values[1][s[5]] | base64Values[2][s[6]] | base64Values[3][s[7]]
		if (a|b)&notBase64 != 0 {
			return 0, false
		}
		binary.BigEndian.PutUint64(dst[n:], uint64(a)<<40|uint64(b)<<16)
		n += 6
		src = src[8:]
	}
	for _, c := range src {
		if c == '\r' || c == '\n' { // the decoder would skip it
			return 0, false
		}
	}
	m, err := base64.StdEncoding.Decode(dst[n:], src)
	return n + m, err == nil
}

const notBase64 = 1 << 31

// base64Values has, for each place among four characters, the bits that a character stands
// for there, or notBase64.
var base64Values = func() (t [4][256]uint32) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/"
	for place := range t {
		for c := range t[place] {
			t[place][c] = notBase64
		}
		for v, c := range []byte(alphabet) {
			t[place][c] = uint32(v) << (18 - 6*place)
		}
	}
	return t
}()
