package wecomsim

import (
	"bytes"
	"context"
	"crypto/sha1"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/wecom-bridge/wecom-bridge/internal/wecom"
)

// maxAnswer bounds what a callback URL may answer, in bytes.
const maxAnswer = 256 << 10

// callbackURL is where deliveries of app go; turn chooses among several.
func (s *Server) callbackURL(app *App, turn uint64) string {
	base := s.cfg.CallbackURLs[turn%uint64(len(s.cfg.CallbackURLs))] + app.Name
	if strings.Contains(base, "?") {
		return base + "&" // what the URL brings along is kept
	}
	return base + "?"
}

func bare(u string) string {
	u, _, _ = strings.Cut(u, "?")
	return u
}

// seal encrypts plain and returns it with the query that goes with it.
func seal(app *App, now time.Time, plain []byte) (encrypt, query string, err error) {
	timestamp := strconv.FormatInt(now.Unix(), 10)
	nonce := strconv.FormatUint(1e9+mathrand.Uint64N(9e9), 10)
	encrypt, signature, err := wecom.Seal(app.pair(), app.ReceiveID, timestamp, nonce, plain)
	if err != nil {
		return "", "", fmt.Errorf("seal callback: %w", err)
	}
	return encrypt, "msg_signature=" + signature + "&timestamp=" + timestamp + "&nonce=" + nonce, nil
}

// sign is the signature over the four values, developer.work.weixin.qq.com/document/path/90968.
func sign(token, timestamp, nonce, encrypt string) string {
	v := []string{token, timestamp, nonce, encrypt}
	slices.Sort(v)
	sum := sha1.Sum([]byte(strings.Join(v, "")))
	return hex.EncodeToString(sum[:])
}

// envelope wraps encrypt for the kind of application.
func envelope(app *App, encrypt string, isJSON bool) []byte {
	to, agent := orElse(app.ReceiveID, app.CorpID), app.AgentID
	switch {
	case app.Kind == "aibot":
		return fmt.Appendf(nil, `{"encrypt":"%s"}`, encrypt)
	case isJSON && app.Kind == "hardware":
		return fmt.Appendf(nil, `{"tousername":%s,"encrypt":"%s"}`, quote(to), encrypt)
	case isJSON:
		return fmt.Appendf(nil, `{"tousername":%s,"encrypt":"%s","agentid":"%s"}`, quote(to), encrypt, agent)
	}
	var x xmlText
	x.b.WriteString("<xml>")
	x.cdata("ToUserName", to)
	switch app.Kind {
	case "suite", "provider": // real ones carry it, empty
		x.cdata("AgentID", "")
	case "contacts":
	default:
		x.cdata("AgentID", agent)
	}
	x.cdata("Encrypt", encrypt)
	x.b.WriteString("</xml>")
	return x.b.Bytes()
}

func quote(s string) []byte { return bytes.TrimRight(marshal(s), "\n") }

// roundTrip makes one request within limit, follows no redirect, and lets judge look at the
// answer. Its errors say what went wrong in the words of this side.
func (s *Server) roundTrip(ctx context.Context, limit time.Duration, method, target string, body []byte, judge func(int, []byte) error) (status int, answer []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, method, target, bytes.NewReader(body))
	if err != nil {
		return 0, nil, err
	}
	if method == http.MethodPost {
		if len(body) > 0 && body[0] == '{' {
			req.Header.Set("Content-Type", "application/json")
		} else {
			req.Header.Set("Content-Type", "text/xml")
		}
	}
	req.Header.Set("User-Agent", "Mozilla/4.0") // as one log showed
	res, err := s.transport.RoundTrip(req)
	if err != nil {
		return 0, nil, plainError(ctx, err, limit)
	}
	defer res.Body.Close()
	answer, err = readAtMost(res.Body, maxAnswer)
	if err != nil {
		return res.StatusCode, nil, plainError(ctx, err, limit)
	}
	return res.StatusCode, answer, judge(res.StatusCode, answer)
}

func plainError(ctx context.Context, err error, limit time.Duration) error {
	var op *net.OpError
	switch {
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return fmt.Errorf("no answer within %v", limit)
	case ctx.Err() != nil:
		return errors.New("interrupted")
	case errors.Is(err, syscall.ECONNREFUSED):
		return errors.New("connection refused")
	case errors.Is(err, syscall.ECONNRESET):
		return errors.New("connection reset")
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF):
		return errors.New("connection closed before the answer was complete")
	case errors.As(err, &op) && op.Op == "dial":
		return fmt.Errorf("cannot connect: %w", op.Err)
	}
	return err
}

// A VerifyResult is what became of a URL verification.
type VerifyResult struct {
	OK     bool   `json:"ok"`
	Status int    `json:"status"` // 0: no answer
	Body   string `json:"body"`   // at most 2048 bytes of it
	Reason string `json:"reason"` // why the console would refuse to save, else empty
	TookUS int64  `json:"took_us"`
	URL    string `json:"url"`
}

// Verify does what pressing "save" on the callback settings does: one signed GET that the
// application must answer within a second with the bare text that is sealed in it,
// developer.work.weixin.qq.com/document/path/90930. Of several callback URLs it takes the next.
func (s *Server) Verify(ctx context.Context, appName string) (*VerifyResult, error) {
	app, err := s.app(appName)
	if err != nil {
		return nil, err
	}
	start := s.now()
	// Production texts are numbers too long for 64 bits.
	echo := strconv.FormatUint(1e18+mathrand.Uint64N(8e18), 10) + fmt.Sprintf("%04d", mathrand.IntN(1e4))
	u := s.callbackURL(app, s.turn.Add(1)-1)
	encrypt, query, err := seal(app, start, []byte(echo))
	if err != nil {
		return nil, err
	}
	res := &VerifyResult{URL: bare(u)}
	status, body, err := s.roundTrip(ctx, verifyCutOff, http.MethodGet, u+query+"&echostr="+url.QueryEscape(encrypt), nil, func(status int, body []byte) error {
		return echoed(echo, status, string(body))
	})
	res.TookUS = s.now().Sub(start).Microseconds()
	res.Status, res.Body = status, cut(strings.ToValidUTF8(string(body), "\ufffd"), 2048)
	if err != nil {
		res.Reason = err.Error()
		s.log.Warn("url verification failed", "app", app.Name, "status", status, "err", err)
		return res, nil
	}
	res.OK = true
	s.log.Debug("url verified", "app", app.Name, "took", time.Duration(res.TookUS)*time.Microsecond)
	return res, nil
}

// echoed tells the usual mistakes apart, because the console does not.
func echoed(echo string, status int, body string) error {
	switch {
	case status >= 300 && status < 400:
		return fmt.Errorf("status %d: redirects are not followed", status)
	case status != http.StatusOK:
		return fmt.Errorf("status %d, want 200", status)
	case body == echo:
		return nil
	case strings.TrimSpace(body) == echo:
		return errors.New("the echo text has white space round it")
	case strings.TrimPrefix(body, "\ufeff") == echo:
		return errors.New("the echo text has a byte order mark before it")
	case strings.Trim(strings.TrimSpace(body), `"'`) == echo:
		return errors.New("the echo text is in quotes")
	case strings.Contains(body, echo):
		return errors.New("the echo text is wrapped in something")
	case body == "":
		return errors.New("the body is empty, want the decrypted echo text")
	}
	return errors.New("the body is not the decrypted echo text")
}

func (s *Server) serveVerify(w http.ResponseWriter, r *http.Request) {
	var req struct {
		App string `json:"app"`
	}
	if !readControl(w, r, &req) {
		return
	}
	res, err := s.Verify(r.Context(), req.App)
	if err != nil {
		writeJSON(w, http.StatusBadRequest, errorBody{err.Error()})
		return
	}
	writeJSON(w, http.StatusOK, res)
}
