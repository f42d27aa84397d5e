package wecom

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
)

const (
	blockSize  = 32 // the padding's block; AES itself works on 16
	randomSize = 16 // random bytes before the length
	headSize   = randomSize + 4
)

// A Pair is the secret of one callback URL, as it stands in WeCom's console.
type Pair struct {
	Token  string // chosen in the console: letters and digits, at most 32
	AESKey string // EncodingAESKey: 43 letters and digits
}

// Seal encrypts plain for receiveID and signs it, as WeCom does with a callback and as
// it expects a passive reply: encrypt is the base64 text for the envelope, signature the
// msg_signature that belongs to it, to timestamp (decimal seconds) and to nonce. The
// reply to an AI bot must repeat the nonce of its callback. Two calls never give the
// same text.
//
// The error, which wraps [ErrAESKey], is about p alone.
func Seal(p Pair, receiveID, timestamp, nonce string, plain []byte) (encrypt, signature string, err error) {
	key, err := decodeAESKey(p.AESKey)
	if err != nil {
		return "", "", err
	}
	var prefix [randomSize]byte
	rand.Read(prefix[:]) // never fails: crypto/rand ends the process instead
	encrypt, signature = seal(&key, p.Token, receiveID, timestamp, nonce, plain, prefix)
	return encrypt, signature, nil
}

// seal is Seal with the random bytes given.
func seal(key *[32]byte, token, receiveID, timestamp, nonce string, plain []byte, prefix [randomSize]byte) (encrypt, signature string) {
	n := headSize + len(plain) + len(receiveID)
	pad := blockSize - n%blockSize // 1…32: a whole block when the length already fits
	buf := make([]byte, 0, n+pad)
	buf = append(buf, prefix[:]...)
	buf = binary.BigEndian.AppendUint32(buf, uint32(len(plain)))
	buf = append(buf, plain...)
	buf = append(buf, receiveID...)
	for range pad {
		buf = append(buf, byte(pad))
	}
	text := encryptBlocks(key, buf)
	sum, _ := sign(nil, token, timestamp, nonce, text)
	return string(text), string(sum[:])
}

// encryptBlocks encrypts buf, whole blocks, in place and returns its base64.
func encryptBlocks(key *[32]byte, buf []byte) []byte {
	block, iv := newCipher(key)
	cipher.NewCBCEncrypter(block, iv[:]).CryptBlocks(buf, buf)
	return base64.StdEncoding.AppendEncode(nil, buf)
}

// sign returns the signature of an encrypted text in hexadecimal, and buf, which it
// overwrites and grows, to be used again.
func sign(buf []byte, token, timestamp, nonce string, encrypt []byte) ([2 * sha1.Size]byte, []byte) {
	// The four values are sorted as bytes. Three of them are short: order those, then
	// find the place of the long one.
	a, b, c := token, timestamp, nonce
	if a > b {
		a, b = b, a
	}
	if b > c {
		b, c = c, b
	}
	if a > b {
		a, b = b, a
	}
	buf = buf[:0]
	switch {
	case string(encrypt) < a:
		buf = append(append(append(append(buf, encrypt...), a...), b...), c...)
	case string(encrypt) < b:
		buf = append(append(append(append(buf, a...), encrypt...), b...), c...)
	case string(encrypt) < c:
		buf = append(append(append(append(buf, a...), b...), encrypt...), c...)
	default:
		buf = append(append(append(append(buf, a...), b...), c...), encrypt...)
	}
	sum := sha1.Sum(buf)
	var text [2 * sha1.Size]byte
	hex.Encode(text[:], sum[:])
	return text, buf
}

// decodeAESKey turns an EncodingAESKey into the AES key. 43 characters carry two bits
// more than the 256 that are needed, and in most keys those are not zero, so they are
// ignored.
func decodeAESKey(s string) (key [32]byte, err error) {
	if len(s) != 43 {
		return key, fmt.Errorf("%w: %d characters, want 43", ErrAESKey, len(s))
	}
	for i := range len(s) {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9') {
			return key, fmt.Errorf("%w: character %d is not a letter or digit", ErrAESKey, i+1)
		}
	}
	if n, err := base64.RawStdEncoding.Decode(key[:], []byte(s)); err != nil || n != len(key) {
		// The error of base64 would not help, and could quote the key.
		return key, fmt.Errorf("%w: not base64", ErrAESKey)
	}
	return key, nil
}

// newCipher returns the cipher of a key and the initialisation vector, which WeCom takes
// from the key.
func newCipher(key *[32]byte) (cipher.Block, [aes.BlockSize]byte) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		panic(err) // only for a key of another size
	}
	return block, [aes.BlockSize]byte(key[:])
}
