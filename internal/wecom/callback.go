package wecom

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/subtle"
	"encoding/base64"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"sync"
)

// A Callback verifies and decrypts what WeCom sends to one callback URL. Make it with
// [NewCallback]. It may be used by any number of goroutines at once.
type Callback struct {
	pairs      []pair
	receiveIDs []string
	scratch    sync.Pool // of *scratch
}

// pair is a [Pair] made ready: the key schedule is computed once.
type pair struct {
	token string
	block cipher.Block
	iv    [aes.BlockSize]byte
}

// scratch is the memory that one call works in. It belongs to one Callback: the
// decrypters hold its keys.
type scratch struct {
	text  []byte             // what is signed
	data  []byte             // ciphertext, then plaintext
	modes []cipher.BlockMode // one for each pair
}

// maxScratch is the largest buffer that is kept for the next call: one huge callback
// should not hold its memory for ever.
const maxScratch = 64 << 10

// NewCallback returns a Callback that accepts what is signed and encrypted with any of
// pairs and sealed for any of receiveIDs. Give the newest pair first: the first one that
// fits is taken. The empty receive id is a legal one (AI bots have it) and is accepted
// only if it is listed.
//
// The error wraps [ErrAESKey] for a bad key, counts pairs from 1, and quotes neither
// token nor key.
func NewCallback(pairs []Pair, receiveIDs []string) (*Callback, error) {
	if len(pairs) == 0 {
		return nil, errors.New("callback: no token and key")
	}
	if len(receiveIDs) == 0 {
		return nil, errors.New("callback: no receive id")
	}
	c := &Callback{receiveIDs: append([]string(nil), receiveIDs...)}
	for i, p := range pairs {
		if err := checkToken(p.Token); err != nil {
			return nil, fmt.Errorf("callback: pair %d: %w", i+1, err)
		}
		key, err := decodeAESKey(p.AESKey)
		if err != nil {
			return nil, fmt.Errorf("callback: pair %d: %w", i+1, err)
		}
		block, iv := newCipher(&key)
		c.pairs = append(c.pairs, pair{token: p.Token, block: block, iv: iv})
	}
	c.scratch.New = func() any {
		s := &scratch{}
		for i := range c.pairs {
			p := &c.pairs[i]
			s.modes = append(s.modes, cipher.NewCBCDecrypter(p.block, p.iv[:]))
		}
		return s
	}
	return c, nil
}

// checkToken refuses what cannot be a token. The console asks for letters and digits, at
// most 32; only what is surely a slip is refused here, since the token is the one thing
// that keeps forgers out.
func checkToken(token string) error {
	if token == "" {
		return errors.New("empty token")
	}
	for i := range len(token) {
		if token[i] <= ' ' || token[i] > '~' {
			return fmt.Errorf("token: character %d is blank or not ASCII", i+1)
		}
	}
	return nil
}

// Verify answers the URL verification, the GET that WeCom makes when an administrator
// saves the callback settings: it checks the query and returns the text to answer with,
// byte for byte and nothing else. WeCom waits for one second.
//
// It reports [ErrSignature], [ErrReceiver] or [ErrMalformed]. Plus signs that turned into
// spaces on the way are put back.
func (c *Callback) Verify(rawQuery string) ([]byte, error) {
	q, ok := parseQuery(rawQuery)
	if !ok || q.echo == "" {
		return nil, errQuery
	}
	s := c.scratch.Get().(*scratch)
	defer c.release(s)
	msg, _, err := c.open(s, &q, []byte(q.echo))
	if err != nil {
		return nil, err
	}
	return append([]byte(nil), msg...), nil
}

// Open verifies a callback, a POST with an encrypted envelope, XML or JSON, and returns
// its plaintext and the index of the pair that it was sealed with: an index above 0 says
// that WeCom still uses an old pair.
//
// It reports [ErrSignature] if msg_signature is not the one that any of the tokens gives,
// [ErrReceiver] if the message was sealed for somebody else, and [ErrMalformed] for
// anything a genuine server would not send. No error quotes the body. To a caller that
// faces the network all three mean the same: answer 403 and keep nothing.
//
// Open does not judge the age of the timestamp, and nothing in the envelope beside the
// encrypted text. It neither modifies nor keeps body. The caller limits its size.
func (c *Callback) Open(rawQuery string, body []byte) (plain string, pair int, err error) {
	q, ok := parseQuery(rawQuery)
	if !ok {
		return "", 0, errQuery
	}
	encrypt, ok := findEncrypt(body)
	if !ok {
		return "", 0, errEnvelope
	}
	s := c.scratch.Get().(*scratch)
	defer c.release(s)
	msg, pair, err := c.open(s, &q, encrypt)
	return string(msg), pair, err
}

func (c *Callback) release(s *scratch) {
	if cap(s.text) <= maxScratch && cap(s.data) <= maxScratch {
		c.scratch.Put(s)
	}
}

// open finds the pair that encrypt was signed and encrypted with and returns the message,
// which lies in s.
func (c *Callback) open(s *scratch, q *query, encrypt []byte) (msg []byte, pair int, err error) {
	err = ErrSignature
	for i := range c.pairs {
		p := &c.pairs[i]
		var sum [40]byte
		sum, s.text = sign(s.text, p.token, q.timestamp, q.nonce, encrypt)
		if subtle.ConstantTimeCompare(sum[:], []byte(q.signature)) != 1 {
			continue
		}
		// Pairs may share a token. When none of their keys opens the message, the error
		// of the one that came furthest is told: a wrong key nearly always fails at the
		// padding, only the right one reaches the receive id.
		m, e := c.decrypt(s, i, encrypt)
		if e == nil {
			return m, i, nil
		}
		if errors.Is(err, ErrSignature) || errors.Is(e, ErrReceiver) {
			err = e
		}
	}
	return nil, 0, err
}

// decrypt decodes and decrypts an encrypted text whose signature was right, with pair i,
// and checks all that surrounds the message.
func (c *Callback) decrypt(s *scratch, i int, encrypt []byte) (msg []byte, err error) {
	n := base64.StdEncoding.DecodedLen(len(encrypt))
	if cap(s.data) < n {
		s.data = make([]byte, n+n/4)
	}
	data := s.data[:n]
	n, ok := decodeBase64(data, encrypt)
	if !ok {
		return nil, errBase64
	}
	if n == 0 || n%blockSize != 0 {
		return nil, errCiphertextLength
	}
	data = data[:n]
	s.mode(&c.pairs[i], i).CryptBlocks(data, data)

	pad := int(data[n-1])
	if pad < 1 || pad > blockSize {
		return nil, errPadding
	}
	for _, b := range data[n-pad:] {
		if int(b) != pad {
			return nil, errPadding
		}
	}
	data = data[:n-pad]
	if len(data) < headSize {
		return nil, errShortPlaintext
	}
	length := uint64(binary.BigEndian.Uint32(data[randomSize:]))
	data = data[headSize:]
	if length > uint64(len(data)) {
		return nil, errMessageLength
	}
	msg, receiver := data[:length], data[length:]
	for _, id := range c.receiveIDs {
		if string(receiver) == id {
			return msg, nil
		}
	}
	return nil, ErrReceiver
}

// mode returns a decrypter for pair i that stands at the beginning.
func (s *scratch) mode(p *pair, i int) cipher.BlockMode {
	if m, ok := s.modes[i].(interface{ SetIV([]byte) }); ok {
		m.SetIV(p.iv[:])
	} else {
		s.modes[i] = cipher.NewCBCDecrypter(p.block, p.iv[:])
	}
	return s.modes[i]
}

// blank are the bytes that XML and JSON call white space.
const blank = " \t\r\n"

// trimStart removes a byte order mark and white space before a document.
func trimStart(s string) string {
	return strings.TrimLeft(strings.TrimPrefix(s, "\ufeff"), blank)
}
