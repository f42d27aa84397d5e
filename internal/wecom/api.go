package wecom

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/url"
	"strconv"
	"strings"
	"sync/atomic"
	"time"
	"unicode/utf8"
)

// DefaultBaseURL is where WeCom's server API lives.
const DefaultBaseURL = "https://qyapi.weixin.qq.com"

// maxAnswer is the largest answer that is read. Answers to sends are a few hundred
// bytes; the limit only guards against a server that never stops.
const maxAnswer = 8 << 20

// ErrAPI is returned by [Client.Call] for a name that cannot be a WeCom API. Nothing
// was sent.
var ErrAPI = errors.New("invalid api name")

// ClientOptions say whose calls a [Client] makes.
type ClientOptions struct {
	BaseURL string // default [DefaultBaseURL]; a path in it is kept in front of /cgi-bin
	CorpID  string
	Secret  string // of the application; empty: every call is refused with errcode 41004, unsent

	// HTTP makes the requests. Nil is a client of its own: HTTP/1.1, TLS 1.2 or later,
	// the proxy of the environment, 5 s to connect, 20 s for a whole call. A given
	// client's redirect policy is ignored; redirects are never followed.
	HTTP *http.Client
}

// A Client calls WeCom's server API for one application. It fetches the access token
// when it needs one, shares it between concurrent callers and replaces it when WeCom
// says so. It may be used by any number of goroutines.
type Client struct {
	base   *url.URL
	bad    error // why base could not be parsed, without the URL
	corpID string
	secret string
	http   *http.Client
	traced bool // the transport is known to report to httptrace
	now    func() time.Time
	tokens tokens
}

// NewClient returns a client and sends nothing yet. A base URL that is not usable is
// reported by the first call.
func NewClient(o ClientOptions) *Client {
	c := &Client{corpID: o.CorpID, secret: o.Secret, now: time.Now, tokens: newTokens()}
	base := o.BaseURL
	if base == "" {
		base = DefaultBaseURL
	}
	u, err := url.Parse(base)
	switch {
	case err != nil:
		c.bad = fmt.Errorf("base url: %w", withoutURL(err))
	case u.Scheme != "https" && u.Scheme != "http" || u.Host == "":
		c.bad = errors.New("base url: want http:// or https:// and a host")
	}
	c.base = u

	h := http.Client{Transport: newTransport(), Timeout: 20 * time.Second}
	if o.HTTP != nil {
		h = *o.HTTP
	}
	// A redirected POST may become a GET, and a redirect would carry the token elsewhere.
	h.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	c.http = &h
	_, c.traced = h.Transport.(*http.Transport)
	c.traced = c.traced || h.Transport == nil
	return c
}

func newTransport() *http.Transport {
	// HTTP/1.1 only, because there the rules of repetition are simple: net/http repeats a
	// POST on a stale connection only if not one byte of it was written.
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:                 http.ProxyFromEnvironment,
		DialContext:           (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSClientConfig:       &tls.Config{MinVersion: tls.VersionTLS12},
		TLSHandshakeTimeout:   5 * time.Second,
		ResponseHeaderTimeout: 15 * time.Second,
		IdleConnTimeout:       60 * time.Second,
		MaxIdleConns:          128,
		MaxIdleConnsPerHost:   64,
		Protocols:             &protocols,
	}
}

// String hides what the client holds, so that printing one by mistake shows no secret.
func (c *Client) String() string { return "wecom client" }

// GoString is String, for %#v.
func (c *Client) GoString() string { return c.String() }

// A Result is WeCom's answer to a call that it executed: errcode 0 or none.
type Result struct {
	Raw     json.RawMessage // the whole answer
	ErrCode int             // always 0
	ErrMsg  string          // "ok", but also "created", "ok. Warning: …" or nothing: not to be compared

	MsgID        string // of message/send, for message/recall
	ResponseCode string // of an interactive card, for message/update_template_card within 72 h

	// Recipients that did not get it. WeCom spells user ids in lower case here,
	// however they were sent.
	InvalidUser, InvalidParty, InvalidTag, Unlicensed []string
}

// Partial reports whether WeCom left out some recipients although the call succeeded.
func (r *Result) Partial() bool {
	return len(r.InvalidUser)+len(r.InvalidParty)+len(r.InvalidTag)+len(r.Unlicensed) > 0
}

// A TransportError is a call without a readable answer from WeCom: no connection, a
// timeout, a cut connection, a page of a proxy, an HTTP status that is not 2xx.
type TransportError struct {
	API    string // the call that failed; "gettoken" when no access token was to be had
	Status int    // HTTP status of the answer if there was one that is not 2xx, else 0

	// Ambiguous reports that WeCom may have executed the call. It is false only if that
	// is certain: the request was never written, or was answered with a redirect or 4xx.
	Ambiguous bool
	Err       error // what happened, without URL, token or secret
}

// Error names the call and the cause, and says so when the outcome is unknown.
func (e *TransportError) Error() string {
	if e.Ambiguous {
		return fmt.Sprintf("%s: outcome unknown: %v", e.API, e.Err)
	}
	return fmt.Sprintf("%s: %v", e.API, e.Err)
}

// Unwrap returns the cause.
func (e *TransportError) Unwrap() error { return e.Err }

// Call posts body, unchanged, to /cgi-bin/<api> with the application's access token
// and returns what WeCom answered. The api is spelled as in the manual, for example
// "message/send" (developer.work.weixin.qq.com/document/path/90236).
//
// The error is [ErrAPI], an [*Error] if WeCom refused the call (also when it refused
// to give a token, then with API "gettoken"), or a [*TransportError] if no answer
// could be read. A call that is refused because of its token is repeated once with a
// new one. Nothing else is repeated: a caller that repeats after an ambiguous failure
// must expect the first attempt to have worked.
//
// Call returns when ctx ends, at the latest.
func (c *Client) Call(ctx context.Context, api string, body []byte) (*Result, error) {
	if !validAPI(api) {
		return nil, fmt.Errorf("%w %.80q", ErrAPI, api)
	}
	tok, _, err := c.token(ctx, "")
	if err != nil {
		return nil, err
	}
	res, err := c.call(ctx, api, tok, body)
	if !tokenRefused(err) {
		if answered(err) {
			c.accepted()
		}
		return res, err
	}
	next, ok, terr := c.token(ctx, tok)
	switch {
	case terr != nil:
		return nil, terr
	case !ok:
		return nil, err // a new token was refused moments ago: another would not help
	}
	res, err = c.call(ctx, api, next, body)
	if answered(err) && !tokenRefused(err) {
		c.accepted()
	}
	return res, err
}

// Check reports whether the application's credentials give an access token, asking
// WeCom only if there is none at hand and no recent failure. Success does not prove
// that messages can be sent: WeCom gives tokens to addresses that it does not trust.
func (c *Client) Check(ctx context.Context) error {
	_, _, err := c.token(ctx, "")
	return err
}

// tokenRefused reports whether WeCom refused the access token. 40001 is the code of a
// wrong secret, but has been seen on calls with a stale token too; an expired token
// is answered with 42001 or 40014.
func tokenRefused(err error) bool {
	var e *Error
	return errors.As(err, &e) && (e.Code == 40001 || e.Code == 40014 || e.Code == 42001)
}

// answered reports whether WeCom itself gave the verdict.
func answered(err error) bool {
	var e *Error
	return err == nil || errors.As(err, &e)
}

func (c *Client) call(ctx context.Context, api, tok string, body []byte) (*Result, error) {
	ans, raw, err := c.do(ctx, http.MethodPost, api, url.Values{"access_token": {tok}}, body)
	if err != nil {
		return nil, err
	}
	msg := c.clean(string(ans.ErrMsg), tok)
	if ans.ErrCode != 0 {
		return nil, &Error{API: api, Code: int(ans.ErrCode), Msg: msg}
	}
	return &Result{
		Raw:          raw,
		ErrMsg:       msg,
		MsgID:        string(ans.MsgID),
		ResponseCode: string(ans.ResponseCode),
		InvalidUser:  ans.InvalidUser,
		InvalidParty: ans.InvalidParty,
		InvalidTag:   ans.InvalidTag,
		Unlicensed:   ans.Unlicensed,
	}, nil
}

// do makes one request and decodes the answer. Every error is a *TransportError.
func (c *Client) do(ctx context.Context, method, api string, query url.Values, body []byte) (*answer, []byte, error) {
	fail := func(ambiguous bool, status int, err error) (*answer, []byte, error) {
		return nil, nil, &TransportError{
			API:       api,
			Status:    status,
			Ambiguous: ambiguous && api != apiGetToken, // fetching a token twice harms nobody
			Err:       c.hide(withoutURL(err), query),
		}
	}
	if c.bad != nil {
		return fail(false, 0, c.bad)
	}
	if ctx.Err() != nil {
		return fail(false, 0, context.Cause(ctx))
	}
	u := c.base.JoinPath("cgi-bin", api)
	u.RawQuery, u.Fragment = query.Encode(), ""

	// Whether the request may have left is what the transport says about its connection.
	// Taking a connection a second time means that net/http itself repeats, which it
	// does only when nothing was written to the first.
	var wrote atomic.Bool
	wrote.Store(!c.traced)
	ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GetConn:      func(string) { wrote.Store(false) },
		WroteHeaders: func() { wrote.Store(true) },
	})
	var rd io.Reader
	if method == http.MethodPost {
		rd = bytes.NewReader(body)
	}
	req, err := http.NewRequestWithContext(ctx, method, u.String(), rd)
	if err != nil {
		return fail(false, 0, err)
	}
	if method == http.MethodPost {
		req.Header.Set("Content-Type", "application/json")
	}
	req.Header.Set("User-Agent", "wecom-bridge")
	resp, err := c.http.Do(req)
	if err != nil {
		return fail(wrote.Load(), 0, err)
	}
	defer resp.Body.Close()
	raw, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer+1))
	switch s := resp.StatusCode; {
	case s < 200 || s > 299:
		// A redirect and a 4xx come from something that did not pass the request on, or
		// from WeCom for a path that it does not know.
		return fail(s >= 500, s, fmt.Errorf("http status %d", s))
	case err != nil:
		return fail(true, 0, fmt.Errorf("read answer: %w", err))
	case len(raw) > maxAnswer:
		return fail(true, 0, errors.New("read answer: too large"))
	}
	ans := new(answer)
	if err := ans.decode(raw); err != nil {
		return fail(true, 0, err)
	}
	return ans, raw, nil
}

// withoutURL takes the URL, and with it the token, out of an error of net/http or net/url.
func withoutURL(err error) error {
	var ue *url.Error
	for errors.As(err, &ue) {
		err = ue.Err
	}
	return err
}

// hide makes sure of what withoutURL is meant to do, whatever a transport wraps
// around a URL: an error that still shows a credential is withheld.
func (c *Client) hide(err error, query url.Values) error {
	text := err.Error()
	if redact(text, query.Get("access_token"), c.secret) != text || strings.Contains(text, "access_token=") || strings.Contains(text, "corpsecret=") {
		return fmt.Errorf("%T, whose text is withheld because it shows a credential", err)
	}
	return err
}

// clean prepares a text of WeCom for errors and receipts: valid UTF-8, one line, no
// secrets, not endless.
func (c *Client) clean(msg string, secrets ...string) string {
	msg = strings.Join(strings.Fields(strings.ToValidUTF8(msg, "\uFFFD")), " ")
	msg = redact(msg, append(secrets, c.secret)...)
	const most = 512
	if len(msg) > most {
		cut := most
		for !utf8.RuneStart(msg[cut]) {
			cut--
		}
		msg = msg[:cut] + "…"
	}
	return msg
}

// redact blots the secrets out of text, as they are and as a URL spells them. What is
// shorter than eight characters is no secret of WeCom's, and would blot words.
func redact(text string, secrets ...string) string {
	for _, s := range secrets {
		if len(s) < 8 {
			continue
		}
		for _, form := range []string{s, url.QueryEscape(s), url.PathEscape(s)} {
			text = strings.ReplaceAll(text, form, "[redacted]")
		}
	}
	return text
}

// validAPI reports whether name is one or more segments of [a-z0-9_]+ joined by single
// slashes. No dot, no escape and no empty segment: nothing to leave /cgi-bin/ with.
func validAPI(name string) bool {
	if name == "" || len(name) > 128 {
		return false
	}
	last := byte('/')
	for i := range len(name) {
		b := name[i]
		switch {
		case 'a' <= b && b <= 'z', '0' <= b && b <= '9', b == '_':
		case b == '/' && last != '/':
		default:
			return false
		}
		last = b
	}
	return last != '/'
}

// answer is what we read of an answer. WeCom and what stands in for it are not of one
// mind about types: numbers come as strings, lists as strings joined by bars, and
// members that say nothing may be missing, empty or null.
type answer struct {
	ErrCode      looseInt    `json:"errcode"`
	ErrMsg       looseString `json:"errmsg"`
	AccessToken  looseString `json:"access_token"`
	ExpiresIn    looseInt    `json:"expires_in"`
	MsgID        looseString `json:"msgid"`
	ResponseCode looseString `json:"response_code"`
	InvalidUser  looseList   `json:"invaliduser"`
	InvalidParty looseList   `json:"invalidparty"`
	InvalidTag   looseList   `json:"invalidtag"`
	Unlicensed   looseList   `json:"unlicenseduser"`
}

var errNotJSON = errors.New("answer is not a JSON object")

// decode reports errors that quote nothing of the answer: it may be anybody's page, or
// hold a token.
func (a *answer) decode(raw []byte) error {
	raw = bytes.TrimSpace(bytes.TrimPrefix(raw, []byte("\xEF\xBB\xBF")))
	if len(raw) == 0 || raw[0] != '{' || !json.Valid(raw) {
		return errNotJSON
	}
	if err := json.Unmarshal(raw, a); err != nil {
		return errors.New("answer with an errcode or expires_in that is not a number")
	}
	return nil
}

// looseInt is a number, also within quotes. Null and "" are 0.
type looseInt int

func (n *looseInt) UnmarshalJSON(b []byte) error {
	s := unquote(b)
	if s == "" || s == "null" {
		return nil
	}
	if i, err := strconv.Atoi(s); err == nil {
		*n = looseInt(i)
		return nil
	}
	f, err := strconv.ParseFloat(s, 64)
	if err != nil || f != math.Trunc(f) || math.Abs(f) > math.MaxInt32 {
		return strconv.ErrSyntax
	}
	*n = looseInt(f)
	return nil
}

// looseString is a string or the text of a number; anything else counts as nothing.
type looseString string

func (s *looseString) UnmarshalJSON(b []byte) error {
	if c := b[0]; c == '"' || c == '-' || '0' <= c && c <= '9' {
		*s = looseString(unquote(b))
	}
	return nil
}

// looseList is an array of strings or numbers, or one string joined by bars.
type looseList []string

func (l *looseList) UnmarshalJSON(b []byte) error {
	*l = nil
	var items []looseString
	if json.Unmarshal(b, &items) != nil {
		var one looseString
		_ = one.UnmarshalJSON(b) // never fails
		for s := range strings.SplitSeq(string(one), "|") {
			items = append(items, looseString(s))
		}
	}
	for _, it := range items {
		if s := strings.TrimSpace(string(it)); s != "" {
			*l = append(*l, s)
		}
	}
	return nil
}

func unquote(b []byte) string {
	var s string
	if len(b) > 0 && b[0] == '"' && json.Unmarshal(b, &s) == nil {
		return strings.TrimSpace(s)
	}
	return string(b)
}
