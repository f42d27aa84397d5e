package wecom

import (
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

const (
	callbackKey   = "cDABxbEVlOg4E27hCkil7REurqnKgeFtwX8Pt2FGxzB"
	otherKey      = "b87RO5MUytmbaeAtwDmj76z3pNvVa1AnBjp1Ccb3SGA"
	callbackToken = "bridgeTestToken01"
	callbackCorp  = "ww0123456789abcdef"
)

func newTestCallback(tb testing.TB, pairs []Pair, receiveIDs ...string) *Callback {
	tb.Helper()
	c, err := NewCallback(pairs, receiveIDs)
	if err != nil {
		tb.Fatal(err)
	}
	return c
}

// sealed returns query and body of a callback.
func sealed(tb testing.TB, p Pair, receiveID, plain string) (rawQuery string, body []byte) {
	tb.Helper()
	encrypt, signature, err := Seal(p, receiveID, "1770000001", "nonce1", []byte(plain))
	if err != nil {
		tb.Fatal(err)
	}
	return "msg_signature=" + signature + "&timestamp=1770000001&nonce=nonce1",
		[]byte("<xml><Encrypt><![CDATA[" + encrypt + "]]></Encrypt></xml>")
}

func TestNewCallbackRefuses(t *testing.T) {
	good := Pair{Token: callbackToken, AESKey: callbackKey}
	tests := []struct {
		name       string
		pairs      []Pair
		receiveIDs []string
		want       string // in the error
		key        bool   // the error is about the key
	}{
		{"no pair", nil, []string{callbackCorp}, "no token", false},
		{"no receive id", []Pair{good}, nil, "no receive id", false},
		{"empty token", []Pair{{"", callbackKey}}, []string{callbackCorp}, "pair 1: empty token", false},
		{"blank in token", []Pair{{"secretToken ", callbackKey}}, []string{callbackCorp}, "pair 1: token: character 12", false},
		{"Chinese token", []Pair{{"令牌", callbackKey}}, []string{callbackCorp}, "pair 1: token: character 1", false},
		{"42 characters", []Pair{good, {callbackToken, callbackKey[:42]}}, []string{callbackCorp}, "pair 2: illegal EncodingAESKey: 42 characters, want 43", true},
		{"44 characters", []Pair{{callbackToken, callbackKey + "="}}, []string{callbackCorp}, "pair 1: illegal EncodingAESKey: 44 characters, want 43", true},
		{"plus sign", []Pair{{callbackToken, "+" + callbackKey[1:]}}, []string{callbackCorp}, "character 1 is not a letter or digit", true},
		{"blank", []Pair{{callbackToken, callbackKey[:42] + " "}}, []string{callbackCorp}, "character 43 is not a letter or digit", true},
		{"empty", []Pair{{callbackToken, ""}}, []string{callbackCorp}, "0 characters", true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			_, err := NewCallback(test.pairs, test.receiveIDs)
			if err == nil {
				t.Fatal("no error")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %q, want %q in it", err, test.want)
			}
			if errors.Is(err, ErrAESKey) != test.key {
				t.Errorf("errors.Is(%q, ErrAESKey) = %v", err, !test.key)
			}
			for _, p := range test.pairs {
				for _, secret := range []string{p.Token, p.AESKey} {
					if len(secret) > 5 && strings.Contains(err.Error(), secret[:6]) {
						t.Errorf("error %q holds a secret", err)
					}
				}
			}
		})
	}
}

// TestKeyTrailingBits takes every last character that a key can have: the two bits too many
// do not matter.
func TestKeyTrailingBits(t *testing.T) {
	const alphabet = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789"
	for i, last := range alphabet {
		key, err := decodeAESKey(callbackKey[:42] + string(last))
		if err != nil {
			t.Errorf("last character %c: %v", last, err)
		}
		if want := byte(i >> 2); key[31]&0x0f != want {
			t.Errorf("last character %c: last four bits %x, want %x", last, key[31]&0x0f, want)
		}
	}
}

func TestRotation(t *testing.T) {
	var (
		newest = Pair{"tokenC", callbackKey}
		same   = Pair{"tokenC", otherKey} // same token, another key
		oldest = Pair{"tokenA", otherKey}
	)
	c := newTestCallback(t, []Pair{newest, same, oldest}, callbackCorp, "")
	for want, p := range []Pair{newest, same, oldest} {
		for _, id := range []string{callbackCorp, ""} {
			query, body := sealed(t, p, id, "hello")
			plain, got, err := c.Open(query, body)
			if err != nil || plain != "hello" || got != want {
				t.Errorf("pair %d, receive id %q: Open = %q, %d, %v", want, id, plain, got, err)
			}
		}
	}

	for _, test := range []struct {
		name string
		p    Pair
		id   string
		want error
	}{
		{"unknown token", Pair{"tokenB", callbackKey}, callbackCorp, ErrSignature},
		{"known token, another's key", Pair{"tokenA", callbackKey}, callbackCorp, ErrMalformed},
		{"known token, unknown key", Pair{"tokenC", callbackKey[:42] + "Q"}, callbackCorp, ErrMalformed},
		{"other receive id, first key", newest, "wwffffffffffffffff", ErrReceiver},
		{"other receive id, second key", same, "wwffffffffffffffff", ErrReceiver},
		{"receive id that is a prefix", oldest, callbackCorp[:17], ErrReceiver},
		{"receive id that is longer", oldest, callbackCorp + "0", ErrReceiver},
	} {
		query, body := sealed(t, test.p, test.id, "hello")
		if plain, _, err := c.Open(query, body); !errors.Is(err, test.want) || plain != "" {
			t.Errorf("%s: Open = %q, %v, want %v", test.name, plain, err, test.want)
		}
	}
}

// TestEmptyReceiveID is refused unless it is listed.
func TestEmptyReceiveID(t *testing.T) {
	p := Pair{callbackToken, callbackKey}
	query, body := sealed(t, p, "", "hello")
	if _, _, err := newTestCallback(t, []Pair{p}, callbackCorp).Open(query, body); !errors.Is(err, ErrReceiver) {
		t.Errorf("Open = %v, want %v", err, ErrReceiver)
	}
}

func TestSignatureIsExact(t *testing.T) {
	p := Pair{callbackToken, callbackKey}
	c := newTestCallback(t, []Pair{p}, callbackCorp)
	encrypt, signature, err := Seal(p, callbackCorp, "1770000001", "n1", []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	body := []byte("<xml><Encrypt>" + encrypt + "</Encrypt></xml>")
	for query, want := range map[string]error{
		"msg_signature=" + signature + "&timestamp=1770000001&nonce=n1":                  nil,
		"msg_signature=" + strings.ToUpper(signature) + "&timestamp=1770000001&nonce=n1": ErrSignature,
		"msg_signature=" + signature[:39] + "&timestamp=1770000001&nonce=n1":             ErrSignature,
		"msg_signature=" + signature + "0&timestamp=1770000001&nonce=n1":                 ErrSignature,
		"msg_signature=&timestamp=1770000001&nonce=n1":                                   ErrSignature,
		"msg_signature=" + signature + "&timestamp=01770000001&nonce=n1":                 ErrSignature,
		"msg_signature=" + signature + "&timestamp=1770000001&nonce=N1":                  ErrSignature,
		"timestamp=1770000001&nonce=n1":                                                  ErrMalformed,
		"msg_signature=" + signature + "&timestamp=1770000001":                           ErrMalformed,
		"msg_signature=" + signature + "&nonce=n1":                                       ErrMalformed,
		"": ErrMalformed,
	} {
		if _, _, err := c.Open(query, body); !errors.Is(err, want) {
			t.Errorf("Open(%q) = %v, want %v", query, err, want)
		}
	}
}

// TestForgedBody replaces the body of a genuine callback.
func TestForgedBody(t *testing.T) {
	p := Pair{callbackToken, callbackKey}
	c := newTestCallback(t, []Pair{p}, callbackCorp)
	query, body := sealed(t, p, callbackCorp, "hello")
	_, other := sealed(t, p, callbackCorp, "hello")
	if _, _, err := c.Open(query, other); !errors.Is(err, ErrSignature) {
		t.Errorf("another genuine body: %v, want %v", err, ErrSignature)
	}
	for i := range body {
		changed := append([]byte(nil), body...)
		changed[i] ^= 1
		if plain, _, err := c.Open(query, changed); err == nil {
			t.Errorf("bit flipped in byte %d: Open = %q", i, plain)
		}
		if plain, _, err := c.Open(query, body[:i]); err == nil {
			t.Errorf("cut after %d bytes: Open = %q", i, plain)
		}
	}
}

func TestParseQuery(t *testing.T) {
	tests := []struct {
		raw  string
		want query
		ok   bool
	}{
		{"msg_signature=s&timestamp=t&nonce=n", query{"s", "t", "n", ""}, true},
		{"nonce=n&timestamp=t&msg_signature=s&echostr=e", query{"s", "t", "n", "e"}, true},
		// Others are ignored, broken or not.
		{"corp=x&msg_signature=s&a=%zz&timestamp=t&=&&flag&nonce=n&b=%", query{"s", "t", "n", ""}, true},
		// Decoded exactly once.
		{"msg_signature=s&timestamp=t&nonce=%6E%2B%252B&echostr=a%2Fb%2Bc%3D%3d", query{"s", "t", "n+%2B", "a/b+c=="}, true},
		{"msg%5Fsignature=s&timestamp=t&nonce=n", query{"s", "t", "n", ""}, true},
		// A plus sign is a space, but in base64.
		{"msg_signature=s&timestamp=t&nonce=n+m&echostr=a+b%20c%2Bd", query{"s", "t", "n m", "a+b+c+d"}, true},
		// The first counts.
		{"msg_signature=s&timestamp=t&nonce=n&nonce=m&msg_signature=x", query{"s", "t", "n", ""}, true},
		{"msg_signature=s&timestamp=t&nonce", query{"s", "t", "", ""}, true},
		{"msg_signature=s&timestamp=t", query{}, false},
		{"msg_signature=s&timestamp=t&nonce=%4", query{}, false},
		{"msg_signature=s&timestamp=t&nonce=%4g", query{}, false},
		{"msg_signature=s&timestamp=t&nonce=n&echostr=%", query{}, false},
		{"MSG_SIGNATURE=s&timestamp=t&nonce=n", query{}, false},
	}
	for _, test := range tests {
		got, ok := parseQuery(test.raw)
		if ok != test.ok || ok && got != test.want {
			t.Errorf("parseQuery(%q) = %q, %v, want %q, %v", test.raw, got, ok, test.want, test.ok)
		}
	}
}

func TestVerifyNeedsEcho(t *testing.T) {
	p := Pair{callbackToken, callbackKey}
	c := newTestCallback(t, []Pair{p}, callbackCorp)
	query, _ := sealed(t, p, callbackCorp, "hello")
	if _, err := c.Verify(query); !errors.Is(err, ErrMalformed) {
		t.Errorf("Verify without echostr = %v, want %v", err, ErrMalformed)
	}
}

func TestFindEncrypt(t *testing.T) {
	const decl = `<?xml version="1.0" encoding="UTF-8"?>`
	tests := []struct{ body, want string }{
		{"<xml><Encrypt><![CDATA[abc=]]></Encrypt></xml>", "abc="},
		{"<xml><Encrypt>abc=</Encrypt></xml>", "abc="},
		{"<xml><AgentID/><Encrypt>abc=</Encrypt></xml>", "abc="},
		{"\ufeff\r\n <xml>\n <Encrypt>\n\t<![CDATA[abc=]]> \n</Encrypt>\n</xml>\n", "abc="},
		{"<xml>\r\n<Encrypt> \r\n <![CDATA[abc=]]>\r\n</Encrypt>\r\n</xml>\r\n", "abc="},
		{"<xml><Encrypt> abc=\n</Encrypt></xml>", "abc="},
		{decl + "<xml><A>1</A><Encrypt>abc=</Encrypt></xml>", "abc="},
		{"<xml><!-- a --><Encrypt a='1'>a&#98;c&#61;</Encrypt></xml>", "abc="},
		{"<xml><Encrypt><![CDATA[ab]]><![CDATA[c=]]></Encrypt></xml>", "abc="},
		{"<xml><A><Encrypt>x</Encrypt></A><Encrypt>abc=</Encrypt></xml>", "abc="},
		{"<xml><ToUserName>你好</ToUserName><Encrypt>abc=</Encrypt></xml>", "abc="},
		{"<xml><A><Encrypt>x</Encrypt></A></xml>", ""},
		{"<xml><encrypt>abc=</encrypt></xml>", ""},
		{"<xml><Encrypt>abc=</Encrypt><Encrypt>abc=</Encrypt></xml>", ""},
		{"<xml><Encrypt><b>abc=</b></Encrypt></xml>", ""},
		{"<xml><Encrypt></Encrypt></xml>", ""},
		{"<xml><Encrypt> <![CDATA[]]></Encrypt></xml>", ""},
		{"<xml><Encrypt>abc=</Encrypt>", ""},
		{"<xml><Encrypt>abc=</Encrypt></xml><xml/>", ""},
		{"<xml><Encrypt>abc=</Encrypt></xml>x", ""},
		{"<xml><ToUserName>\x01</ToUserName><Encrypt>abc=</Encrypt></xml>", ""},
		{"<xml><ToUserName>\xff</ToUserName><Encrypt>abc=</Encrypt></xml>", ""},
		{"<doc><Encrypt>abc=</Encrypt></doc>", ""},
		{"<!DOCTYPE xml><xml><Encrypt>abc=</Encrypt></xml>", ""},
		{`<!DOCTYPE xml [<!ENTITY e "abc=">]><xml><Encrypt>&e;</Encrypt></xml>`, ""},
		{"<xml><Encrypt>&e;</Encrypt></xml>", ""},
		{`{"encrypt":"abc="}`, "abc="},
		{`{"tousername":"ww","encrypt":"abc=","agentid":"3010115"}`, "abc="},
		{"\ufeff\n{ \"ToUserName\" : \"ww\" ,\n \"Encrypt\" : \"abc=\" , \"AgentID\" : 218 }\n", "abc="},
		{`{"ENCRYPT":"a\/b=","x":{"encrypt":"x"},"y":[1,{}],"z":null,"w":-1.5e3,"v":true}`, "a/b="},
		{`{"\u0065ncrypt":"abc="}`, "abc="},
		{`{"tousername":"你好","encrypt":"abc="}`, "abc="},
		{`{"encrypt":"abc=","Encrypt":"abc="}`, ""},
		{`{"encrypt":"abc=","Encrypt":"a\/c="}`, ""},
		{`{"encrypt":""}`, ""},
		{`{"encrypt":12}`, ""},
		{`{"encrypt":null}`, ""},
		{`{"encrypt":"abc="`, ""},
		{`{"encrypt":"abc="}}`, ""},
		{`{"encrypt":"abc="} x`, ""},
		{`{"encrypt":"abc=",}`, ""},
		{`{"encrypt":"abc=","a":01}`, ""},
		{`{encrypt:"abc="}`, ""},
		{`{"x":{"encrypt":"abc="}}`, ""},
		{`{}`, ""},
		{`[{"encrypt":"abc="}]`, ""},
		{`"abc="`, ""},
		{"", ""},
		{" \n", ""},
		{"Encrypt=abc%3D", ""},
	}
	for _, test := range tests {
		got, ok := findEncrypt([]byte(test.body))
		if ok != (test.want != "") || ok && string(got) != test.want {
			t.Errorf("findEncrypt(%q) = %q, %v, want %q", test.body, got, ok, test.want)
		}
	}
}

func TestReason(t *testing.T) {
	for _, test := range []struct {
		err  error
		want string
	}{
		{nil, ""},
		{ErrSignature, "signature"},
		{fmt.Errorf("open: %w", ErrReceiver), "receive_id"},
		{fmt.Errorf("open: %w", errPadding), "padding"},
		{ErrAESKey, "illegal_aes_key"},
		{ErrMalformed, "other"},
		{errors.New("x"), "other"},
	} {
		if got := Reason(test.err); got != test.want {
			t.Errorf("Reason(%v) = %q, want %q", test.err, got, test.want)
		}
	}
	if !errors.Is(errPadding, ErrMalformed) {
		t.Error("a finer class is not ErrMalformed")
	}
}

// TestConcurrent opens different callbacks at once, small and large, so that the race
// detector and the comparison would notice shared scratch.
func TestConcurrent(t *testing.T) {
	pairs := []Pair{{"tokenA", callbackKey}, {"tokenB", otherKey}}
	c := newTestCallback(t, pairs, callbackCorp)
	var wg sync.WaitGroup
	for i := range 8 {
		want := strings.Repeat(fmt.Sprint(i), 1+i*i*4000)
		query, body := sealed(t, pairs[i%2], callbackCorp, want)
		wg.Go(func() {
			for range 50 {
				plain, pair, err := c.Open(query, body)
				if err != nil || plain != want || pair != i%2 {
					t.Errorf("Open = %d bytes, pair %d, %v, want %d bytes, pair %d", len(plain), pair, err, len(want), i%2)
					return
				}
			}
		})
	}
	wg.Wait()
}

func TestSealDiffers(t *testing.T) {
	p := Pair{callbackToken, callbackKey}
	a, _, err := Seal(p, callbackCorp, "1", "n", []byte("hello"))
	if err != nil {
		t.Fatal(err)
	}
	b, _, err := Seal(p, callbackCorp, "1", "n", []byte("hello"))
	if err != nil || a == b {
		t.Errorf("sealed twice to the same text: %v", err)
	}
	if _, _, err := Seal(Pair{callbackToken, "short"}, callbackCorp, "1", "n", nil); !errors.Is(err, ErrAESKey) {
		t.Errorf("Seal with a bad key = %v, want %v", err, ErrAESKey)
	}
}

// TestOpenParseAllocations holds the promise of the fast way: one allocation, the plaintext.
func TestOpenParseAllocations(t *testing.T) {
	if raceEnabled {
		t.Log("the race detector makes pools forget: allocations are not counted")
		return
	}
	p := Pair{callbackToken, callbackKey}
	c := newTestCallback(t, []Pair{{"old", otherKey}, p}, callbackCorp)
	for name, plain := range map[string]string{
		"message": benchPlain,
		"event": "<xml><ToUserName>ww1</ToUserName><FromUserName>sys</FromUserName><CreateTime>1770000001</CreateTime><MsgType>event</MsgType>" +
			"<Event>change_contact</Event><ChangeType>create_user</ChangeType><UserID>bob</UserID><Name>" + strings.Repeat("名\n", 100) + "</Name></xml>",
		"AI bot": botText,
	} {
		query, body := sealed(t, p, callbackCorp, plain)
		var payload Payload
		dst := make([]byte, 0, 4096)
		n := testing.AllocsPerRun(1000, func() {
			plain, _, err := c.Open(query, body)
			if err != nil {
				t.Fatal(err)
			}
			dst = Parse(dst[:0], plain, &payload)
			dst = payload.AppendID(dst)
		})
		if n > 1 {
			t.Errorf("%s: %v allocations, want at most 1", name, n)
		}
	}
}

// TestPlaintextLayout seals by hand what no seal makes.
func TestPlaintextLayout(t *testing.T) {
	const random = "0123456789abcdef"
	pad := func(s string, n int, last ...byte) string {
		s += strings.Repeat(string(rune(n)), n-len(last))
		return s + string(last)
	}
	tests := []struct {
		name, plain string
		want        string // a message, or
		reason      string
	}{
		{"message and empty id", pad(random+"\x00\x00\x00\x05hello", 7), "hello", ""},
		{"message and id", pad(random+"\x00\x00\x00\x05helloww", 5), "hello", ""},
		{"empty message and id", pad(random+"\x00\x00\x00\x00", 12), "", ""},
		{"a whole block of padding", pad(random+"\x00\x00\x00\x0chello, hello", 32), "hello, hello", ""},
		{"one byte of padding", pad(random+"\x00\x00\x00\x0bhello hello", 1), "hello hello", ""},
		{"length one too large", pad(random+"\x00\x00\x00\x06hello", 7), "", "message_length"},
		{"length one too small", pad(random+"\x00\x00\x00\x04hello", 7), "", "receive_id"},
		{"length is negative as an int32", pad(random+"\x80\x00\x00\x00hello", 7), "", "message_length"},
		{"no room for the length", pad(random+"\x00\x00\x00", 13), "", "short_plaintext"},
		{"nothing but padding", pad("", 32), "", "short_plaintext"},
		{"padding of zero", pad(random+"\x00\x00\x00\x05hello", 7, 0), "", "padding"},
		{"padding of 33", pad(random+"\x00\x00\x00\x05hello"+strings.Repeat("x", 30), 9, 33), "", "padding"},
		{"padding with another byte", random + "\x00\x00\x00\x05hello\x07\x07\x06\x07\x07\x07\x07", "", "padding"},
		{"first byte of padding differs", random + "\x00\x00\x00\x05hello\x06\x07\x07\x07\x07\x07\x07", "", "padding"},
		{"blocks of 16", pad(random+"\x00\x00\x00\x05hello", 23), "", "ciphertext_length"},
		{"empty", "", "", "envelope"},
	}
	p := Pair{callbackToken, callbackKey}
	c := newTestCallback(t, []Pair{p}, "ww", "")
	key, err := decodeAESKey(p.AESKey)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range tests {
		encrypt := encryptBlocks(&key, []byte(test.plain))
		sum, _ := sign(nil, p.Token, "1", "n", encrypt)
		plain, _, err := c.Open("msg_signature="+string(sum[:])+"&timestamp=1&nonce=n",
			[]byte("<xml><Encrypt>"+string(encrypt)+"</Encrypt></xml>"))
		if plain != test.want || Reason(err) != test.reason {
			t.Errorf("%s (%d bytes): Open = %q, %v, want %q, %q", test.name, len(test.plain), plain, err, test.want, test.reason)
		}
	}
}
