package wecomsim

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"strconv"
	"strings"
	"time"
)

// maxAPIBody bounds a request to the API, in bytes; an mpnews article may have 666 KB.
const maxAPIBody = 4 << 20

// tokenLife is what expires_in says, developer.work.weixin.qq.com/document/path/91039.
const tokenLife = 7200 * time.Second

// A call is one request to the API on its way through the checks.
type call struct {
	r    *http.Request
	body []byte
	cred credential // of the access token, once checked
	warn bool       // something in the JSON had the wrong type
}

// An answer is what the API says, and what happens to it on the way out.
type answer struct {
	code   int
	text   string // wire text; filled from the table when empty
	bare   bool   // no hint and address behind the text
	body   any    // replyer
	effect effect
}

// A replyer is the success shape of an API: real errors carry its empty members too.
type replyer interface{ setError(code int, msg string) }

type status struct {
	ErrCode int    `json:"errcode"`
	ErrMsg  string `json:"errmsg"`
}

func (s *status) setError(code int, msg string) { s.ErrCode, s.ErrMsg = code, msg }

type tokenReply struct {
	status
	AccessToken string `json:"access_token,omitempty"`
	ExpiresIn   int    `json:"expires_in,omitempty"`
}

type ipReply struct {
	IPList []string `json:"ip_list"`
	status
}

// apis are the calls the simulator plays; a path that is not here is a 404, as at WeCom.
var apis = map[string]func(*Server, *call) answer{
	"gettoken":          (*Server).getToken,
	"message/send":      (*Server).send,
	"get_api_domain_ip": func(s *Server, c *call) answer { return s.ipList(c, "198.51.100.4", "198.51.100.9") },
	"getcallbackip":     func(s *Server, c *call) answer { return s.ipList(c, "203.0.113.10", "203.0.113.11") },
}

// texts are the wire texts that public logs show, and our own wording for the others: errmsg is
// informative and may change (developer.work.weixin.qq.com/document/path/90313).
var texts = map[int]string{
	-1:     "system busy",
	40001:  "invalid credential",
	40007:  "invalid media_id",
	40008:  "invalid message type",
	40013:  "invalid corpid",
	40014:  "invalid access_token",
	40032:  "invalid userid list size",
	40056:  "invalid agentid",
	40058:  "invalid Request Parameter",
	40074:  "news can not be confidential, use mpnews",
	41001:  "access_token missing",
	41002:  "corpid missing",
	41004:  "corpsecret missing",
	41006:  "media_id missing",
	41011:  "agentid missing",
	41016:  "title missing",
	41033:  "description missing",
	42001:  "access_token expired",
	42014:  "invalid task_id",
	43012:  "app has no callback url",
	44004:  "empty content",
	45002:  "content size out of limit",
	45008:  "article size out of limit",
	45009:  "api freq out of limit",
	45032:  "author size out of limit",
	45033:  "api concurrent out of limit",
	45034:  "invalid url, want http:// or https://",
	48002:  "api forbidden",
	60020:  "not allow to access from your ip",
	81013:  "user & party & tag all invalid",
	82001:  "user & party & tag all empty",
	82002:  "invalid party list size",
	82003:  "invalid tag list size",
	90200:  "appid missing",
	90201:  "content_item size out of limit",
	90202:  "invalid content_item key",
	90203:  "invalid content_item value",
	301002: "not allow operate another agent with this accesstoken.",
}

// serveAPI answers POST or GET /cgi-bin/<api>.
func (s *Server) serveAPI(w http.ResponseWriter, r *http.Request, api string) {
	h := w.Header()
	h.Set("Server", "nginx")
	play, ok := apis[api]
	if !ok {
		s.log.Warn("unknown api called", "api", api)
		w.WriteHeader(http.StatusNotFound)
		return
	}
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxAPIBody))
	if err != nil {
		var tooBig *http.MaxBytesError
		if errors.As(err, &tooBig) {
			htmlPage(w, http.StatusRequestEntityTooLarge)
		}
		return
	}
	c := &call{r: r, body: body}
	s.mu.Lock()
	fault := s.faults.hit(api)
	s.mu.Unlock()

	var ans answer
	if fault != nil && !s.sleep(r.Context(), time.Duration(fault.Delay)) {
		return
	}
	switch {
	case fault == nil || fault.harmless():
		ans = play(s, c)
	case fault.After:
		ans = play(s, c)
		ans.apply(fault)
	default:
		ans.apply(fault)
	}
	s.answer(w, c, ans)
}

// apply replaces what was to be answered with what the fault says.
func (a *answer) apply(f *Fault) {
	switch {
	case f.ErrCode != 0:
		*a = answer{code: f.ErrCode, text: f.ErrMsg, body: &status{}}
	case f.HTTP != 0:
		a.effect = effect{kind: "http", n: f.HTTP}
	case f.Reset:
		a.effect = effect{kind: "reset"}
	case f.Hang:
		a.effect = effect{kind: "hang"}
	case f.Garbled:
		a.effect = effect{kind: "garbled"}
	}
}

// An effect is trouble on the way back to the caller.
type effect struct {
	kind string // "", hang, reset, http, garbled, slow
	n    int    // status of http, milliseconds of slow
}

func (s *Server) answer(w http.ResponseWriter, c *call, a answer) {
	switch a.effect.kind {
	case "hang":
		// The caller hangs up; nothing else ends this. Its own time limit is what is being tested.
		unhurried(w)
		select {
		case <-c.r.Context().Done():
		case <-s.life.Done():
		}
		panic(http.ErrAbortHandler)
	case "reset":
		reset(w)
		return
	case "http":
		htmlPage(w, a.effect.n)
		return
	case "garbled":
		w.Header().Set("Content-Type", "application/json; charset=UTF-8")
		w.Write([]byte(`{"errcode":0,"errm`))
		return
	case "slow":
		unhurried(w)
		if !s.sleep(c.r.Context(), time.Duration(a.effect.n)*time.Millisecond) {
			panic(http.ErrAbortHandler)
		}
	}
	body, ok := a.body.(replyer)
	if !ok {
		body = &status{}
	}
	text := a.text
	if text == "" {
		text = texts[a.code]
	}
	if text == "" {
		text = "simulated error"
	}
	switch {
	case a.code == 0 && c.warn:
		text = "ok. Warning: wrong json format. " // blank at the end as recorded
	case a.code == 0:
		text = "ok"
	default:
		if c.warn {
			text = "Warning: wrong json format. " + text
		}
		if !a.bare {
			text += fmt.Sprintf(", hint: [%s], from ip: %s, more info at https://open.work.weixin.qq.com/devtool/query?e=%d",
				hint(s.now()), clientIP(c.r), a.code)
		}
	}
	body.setError(a.code, text)
	out := bytes.TrimRight(marshal(body), "\n")
	h := w.Header()
	h.Set("Content-Type", "application/json; charset=UTF-8")
	h.Set("Content-Length", strconv.Itoa(len(out)))
	h.Set("Error-Code", strconv.Itoa(a.code))
	h.Set("Error-Msg", text)
	w.Write(out)
}

// unhurried lifts the server's limit for writing the answer.
func unhurried(w http.ResponseWriter) {
	_ = http.NewResponseController(w).SetWriteDeadline(time.Time{}) // a writer without deadlines needs none lifted
}

// reset cuts the connection so that the caller sees it reset, not closed.
func reset(w http.ResponseWriter) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil { // HTTP/2: its streams are reset by this
		panic(http.ErrAbortHandler)
	}
	if tcp, ok := conn.(*net.TCPConn); ok {
		_ = tcp.SetLinger(0) // else it is merely closed
	}
	conn.Close()
}

// htmlPage is what a gateway in front of WeCom says for itself.
func htmlPage(w http.ResponseWriter, code int) {
	w.Header().Set("Content-Type", "text/html")
	w.WriteHeader(code)
	w.Write(fmt.Appendf(nil, "<html>\r\n<head><title>%[1]d %[2]s</title></head>\r\n<body>\r\n<center><h1>%[1]d %[2]s</h1></center>\r\n<hr><center>nginx</center>\r\n</body>\r\n</html>\r\n",
		code, http.StatusText(code)))
}

// hint looks like today's: 25 digits of which the first ten are the time.
func hint(now time.Time) string {
	return fmt.Sprintf("%010d%015d", now.Unix(), mathrand.Int64N(1e15))
}

func clientIP(r *http.Request) string {
	host, _, err := net.SplitHostPort(r.RemoteAddr)
	if err != nil {
		return r.RemoteAddr
	}
	return host
}

// A credential is what one access token is for: WeCom keeps one per corp and secret.
type credential struct{ corp, secret string }

type token struct {
	value   string
	cred    credential
	expires time.Time
	killed  bool // revoked or rotated away: 40014 rather than 42001
}

// tokens are the access tokens handed out. The caller holds the lock.
type tokens struct {
	current map[credential]*token
	known   map[string]*token
	order   []string // of known, oldest first
}

// maxTokens bounds how many expired tokens are still told from made-up ones.
const maxTokens = 4096

func (t *tokens) issue(cred credential, expires time.Time) *token {
	if t.known == nil {
		t.current, t.known = map[credential]*token{}, map[string]*token{}
	}
	raw := make([]byte, 160) // 214 characters, a length often seen
	rand.Read(raw)
	tok := &token{value: base64.RawURLEncoding.EncodeToString(raw), cred: cred, expires: expires}
	t.current[cred], t.known[tok.value] = tok, tok
	t.order = append(t.order, tok.value)
	if len(t.order) > maxTokens {
		delete(t.known, t.order[0])
		t.order = t.order[1:]
	}
	return tok
}

// revoke kills every token that is valid now.
func (t *tokens) revoke() {
	for _, tok := range t.known {
		tok.killed = true
	}
	t.current = map[credential]*token{}
	if t.known == nil {
		t.known = map[string]*token{}
	}
}

// getToken is developer.work.weixin.qq.com/document/path/91039. The order of checks is that of a
// probe: the secret's presence comes first.
func (s *Server) getToken(c *call) answer {
	q := c.r.URL.Query()
	cred := credential{q.Get("corpid"), q.Get("corpsecret")}
	switch {
	case cred.secret == "":
		return answer{code: 41004}
	case cred.corp == "":
		return answer{code: 41002}
	}
	corp, secret := false, false
	for i := range s.cfg.Apps {
		a := &s.cfg.Apps[i]
		if a.CorpID == cred.corp {
			corp = true
			secret = secret || a.Secret == cred.secret
		}
	}
	switch {
	case !corp:
		return answer{code: 40013}
	case !secret:
		return answer{code: 40001}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	now, f := s.now(), &s.faults.f.Token
	life := tokenLife
	if f.ExpiresIn > 0 {
		life = time.Duration(f.ExpiresIn) * time.Second
	}
	tok := s.tokens.current[cred]
	fresh := tok != nil && now.Before(tok.expires)
	if fresh && f.Rotate == "kill" {
		tok.killed = true
	}
	if !fresh || f.Rotate != "" {
		tok = s.tokens.issue(cred, now.Add(life))
	}
	// Reporters saw 7200 on repeated calls too, although less was left: expires_in does not count
	// down, so a caller must not believe it of a token that was not made just now.
	return answer{body: &tokenReply{AccessToken: tok.value, ExpiresIn: int(life / time.Second)}}
}

// checkToken looks only at the query: a header or a member of the body does not count.
func (s *Server) checkToken(c *call) (ans answer, ok bool) {
	value := c.r.URL.Query().Get("access_token")
	if value == "" {
		return answer{code: 41001}, false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	tok := s.tokens.known[value]
	switch {
	case tok == nil || tok.killed:
		return answer{code: 40014, bare: true}, false
	case !s.now().Before(tok.expires):
		code := 42001
		if s.faults.f.Token.ExpiredErrCode != 0 {
			code = s.faults.f.Token.ExpiredErrCode
		}
		return answer{code: code, bare: code == 40014}, false
	}
	c.cred = tok.cred
	return answer{}, true
}

// ipList is developer.work.weixin.qq.com/document/path/92521; the addresses are from the ranges
// for documentation.
func (s *Server) ipList(c *call, ips ...string) answer {
	if ans, ok := s.checkToken(c); !ok {
		ans.bare = false // here a fake token was seen answered with the hint
		ans.body = &ipReply{IPList: []string{}}
		return ans
	}
	return answer{body: &ipReply{IPList: ips}}
}

// Wait waits until user's inbox holds more than n messages and returns it. The error is ctx's.
func (s *Server) Wait(ctx context.Context, user string, n int) ([]Message, error) {
	for {
		s.mu.Lock()
		changed := s.box.changed
		s.mu.Unlock()
		if list := s.Inbox(user); len(list) > n {
			return list, nil
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
}

// split splits a recipient list. Blanks round the bar are kept, and so make the id invalid:
// whether WeCom trims them is not known.
func split(list string) []string {
	if list == "" {
		return nil
	}
	return strings.Split(list, "|")
}
