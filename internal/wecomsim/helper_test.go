package wecomsim

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha1"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"sort"
	"strings"
	"sync"
	"testing"
	"time"
)

// The key ends in a character with non-zero trailing bits, as most real ones do.
const (
	testToken  = "QDG6eK"
	testAESKey = "jWmYm7qr5nMoAUwZRjGtBxmz3KA1tkAj3ykkR6q2B2C"
	testCorp   = "ww00aa11bb22cc33dd"
	testSecret = "s3cret-of-demo"
)

func demoApp() App {
	return App{Name: "demo", CorpID: testCorp, AgentID: "1000002", Secret: testSecret, Token: testToken, AESKey: testAESKey}
}

// newSim returns a simulator for cfg with the demo application unless others are given, and
// somewhere that refuses callbacks unless a URL is given.
func newSim(t *testing.T, cfg Config) *Server {
	t.Helper()
	if cfg.Apps == nil {
		cfg.Apps = []App{demoApp()}
	}
	if cfg.CallbackURLs == nil {
		cfg.CallbackURLs = []string{"http://127.0.0.1:1/callback/"}
	}
	s, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Close)
	return s
}

// open is the algorithm of the test vectors, written apart from the one that seals.
func open(token, aesKey, receiveID string, q url.Values, encrypt string) (string, error) {
	parts := []string{token, q.Get("timestamp"), q.Get("nonce"), encrypt}
	sort.Strings(parts)
	if got := fmt.Sprintf("%x", sha1.Sum([]byte(strings.Join(parts, "")))); got != q.Get("msg_signature") {
		return "", errors.New("signature")
	}
	key, err := base64.StdEncoding.DecodeString(aesKey + "=")
	if err != nil {
		return "", err
	}
	data, err := base64.StdEncoding.DecodeString(encrypt)
	if err != nil || len(data) == 0 || len(data)%32 != 0 {
		return "", errors.New("ciphertext")
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return "", err
	}
	cipher.NewCBCDecrypter(block, key[:16]).CryptBlocks(data, data)
	pad := int(data[len(data)-1])
	if pad < 1 || pad > 32 || !bytes.Equal(data[len(data)-pad:], bytes.Repeat([]byte{byte(pad)}, pad)) {
		return "", errors.New("padding")
	}
	data = data[:len(data)-pad]
	n := int(binary.BigEndian.Uint32(data[16:20]))
	if 20+n > len(data) {
		return "", errors.New("length")
	}
	if string(data[20+n:]) != receiveID {
		return "", errors.New("receive id")
	}
	return string(data[20 : 20+n]), nil
}

// A fakeGateway opens callbacks as an application does.
type fakeGateway struct {
	app       App
	receiveID string
	// answer decides what POSTs get; nil: an empty 200. n counts from 0.
	answer func(w http.ResponseWriter, r *http.Request, n int, plain string)

	mu     sync.Mutex
	plains []string
	raw    []string // query strings
	bodies []string
	paths  []string
	bad    []error
}

func (g *fakeGateway) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	body, _ := io.ReadAll(r.Body)
	q := r.URL.Query()
	if r.Method == http.MethodGet {
		echo, err := open(g.app.Token, g.app.AESKey, g.receiveID, q, q.Get("echostr"))
		if err != nil {
			http.Error(w, "", http.StatusForbidden)
			return
		}
		io.WriteString(w, echo)
		return
	}
	var env struct {
		Encrypt string `xml:"Encrypt" json:"encrypt"`
	}
	var err error
	if bytes.HasPrefix(body, []byte("{")) {
		err = json.Unmarshal(body, &env)
	} else {
		err = xml.Unmarshal(body, &env)
	}
	var plain string
	if err == nil {
		plain, err = open(g.app.Token, g.app.AESKey, g.receiveID, q, env.Encrypt)
	}
	g.mu.Lock()
	n := len(g.raw)
	g.raw = append(g.raw, r.URL.RawQuery)
	g.bodies = append(g.bodies, string(body))
	g.paths = append(g.paths, r.URL.Path)
	if err != nil {
		g.bad = append(g.bad, err)
	} else {
		g.plains = append(g.plains, plain)
	}
	g.mu.Unlock()
	switch {
	case err != nil:
		http.Error(w, "", http.StatusForbidden)
	case g.answer != nil:
		g.answer(w, r, n, plain)
	}
}

// start serves g and returns its callback prefix.
func (g *fakeGateway) start(t *testing.T) string {
	t.Helper()
	if g.app.Name == "" {
		g.app = demoApp()
		g.receiveID = testCorp
	}
	srv := httptest.NewServer(g)
	t.Cleanup(srv.Close)
	t.Cleanup(func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		for _, err := range g.bad {
			t.Errorf("callback could not be opened: %v", err)
		}
	})
	return srv.URL + "/callback/"
}

// do sends one request to h without a network.
func do(h http.Handler, method, target, body string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, target, strings.NewReader(body))
	r.RemoteAddr = "203.0.113.7:4711"
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w
}

func decodeBody[T any](t *testing.T, w *httptest.ResponseRecorder) T {
	t.Helper()
	var v T
	if err := json.Unmarshal(w.Body.Bytes(), &v); err != nil {
		t.Fatalf("status %d, body %q: %v", w.Code, w.Body, err)
	}
	return v
}

// accessToken gets one for the demo application.
func accessToken(t *testing.T, s *Server) string {
	t.Helper()
	w := do(s, "GET", "/cgi-bin/gettoken?corpid="+testCorp+"&corpsecret="+testSecret, "")
	r := decodeBody[tokenReply](t, w)
	if r.ErrCode != 0 || r.AccessToken == "" {
		t.Fatalf("gettoken: %s", w.Body)
	}
	return r.AccessToken
}

// send posts body to message/send with a valid token.
func send(t *testing.T, s *Server, body string) sendReply {
	t.Helper()
	w := do(s, "POST", "/cgi-bin/message/send?access_token="+accessToken(t, s), body)
	if w.Code != http.StatusOK {
		t.Fatalf("message/send: status %d", w.Code)
	}
	return decodeBody[sendReply](t, w)
}

func text(to, content string) string {
	return string(marshal(map[string]any{"touser": to, "msgtype": "text", "agentid": 1000002, "text": map[string]string{"content": content}}))
}

// eventually waits for cond, which is driven by another goroutine over the network.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for end := time.Now().Add(10 * time.Second); !cond(); {
		if time.Now().After(end) {
			t.Fatalf("not within 10s: %s", what)
		}
		time.Sleep(2 * time.Millisecond)
	}
}
