package worker

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/wecom-bridge/wecom-bridge/bridge"
)

// maxCallAnswer is the largest answer of an endpoint that is read.
const maxCallAnswer = 1 << 20

// call is a rule's endpoint.
type call struct {
	url     string
	timeout time.Duration // for the whole exchange
}

// newCallClient returns the client that all calls of a rules file share. An endpoint
// stands literally in the file, so it may be any host; a redirect may not lead to
// another one.
func newCallClient() *http.Client {
	return &http.Client{
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSHandshakeTimeout: 5 * time.Second,
			IdleConnTimeout:     60 * time.Second,
			MaxIdleConns:        64,
			MaxIdleConnsPerHost: 32,
			ForceAttemptHTTP2:   true,
		},
	}
}

// do posts the event and reads the messages that answer it.
func (c *call) do(ctx context.Context, client *http.Client, ev *bridge.Event) ([]bridge.Message, *failure) {
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.url, bytes.NewReader(ev.AppendJSON(nil)))
	if err != nil {
		return nil, final("call: %w", withoutURL(err))
	}
	req.Header.Set("Content-Type", bridge.ContentType)
	req.Header.Set("Accept", "application/json")
	req.Header.Set("User-Agent", "wecom-bridge")
	resp, err := client.Do(req)
	if err != nil {
		return nil, again("call: %w", withoutURL(err))
	}
	defer func() { _ = resp.Body.Close() }() // read to its end or given up
	body, err := io.ReadAll(io.LimitReader(resp.Body, maxCallAnswer+1))
	if s := resp.StatusCode; s < 200 || s > 299 {
		return nil, refusal(s, resp.Header)
	}
	if err != nil {
		return nil, again("call: read answer: %w", err)
	}
	if len(body) > maxCallAnswer {
		return nil, final("call: answer is larger than %d bytes", maxCallAnswer)
	}
	ms, err := parseAnswer(ev, body)
	if err != nil {
		return nil, final("call: %w", err)
	}
	return ms, nil
}

// refusal is what an answer that is not 2xx means.
func refusal(status int, h http.Header) *failure {
	f := again("call: status %d", status)
	switch {
	case status == http.StatusTooManyRequests, status == http.StatusServiceUnavailable:
		f.after = retryAfter(h.Get("Retry-After"), time.Now())
	case status == http.StatusRequestTimeout, status == http.StatusTooEarly, status >= 500:
	default:
		f.final = true
	}
	return f
}

// retryAfter reads a Retry-After header, seconds or a date; 0 if there is none to obey.
func retryAfter(s string, now time.Time) time.Duration {
	s = strings.TrimSpace(s)
	if n, err := strconv.Atoi(s); err == nil {
		return time.Duration(max(0, min(n, 24*3600))) * time.Second
	}
	if t, err := http.ParseTime(s); err == nil {
		return max(0, t.Sub(now))
	}
	return 0
}

// parseAnswer reads {"messages":[<API body, optional "api">, …]}. Nothing and {} mean
// no messages. Whatever else it could mean is an error rather than silence.
func parseAnswer(ev *bridge.Event, body []byte) ([]bridge.Message, error) {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil, nil
	}
	o, err := parseObject(body)
	if err != nil {
		return nil, errors.New("answer is not a JSON object")
	}
	list := o.get("messages")
	if list == nil && len(o.members) > 0 {
		return nil, errors.New(`answer has no member "messages"`)
	}
	var raw []json.RawMessage
	if list != nil {
		if err := json.Unmarshal(list, &raw); err != nil {
			return nil, errors.New(`"messages" of the answer is not an array`)
		}
	}
	var ms []bridge.Message
	for i, r := range raw {
		m, err := parseObject(r)
		if err != nil {
			return nil, fmt.Errorf("message %d of the answer is not a JSON object", i)
		}
		api := m.text("api")
		if api == "" && m.has("api") {
			return nil, fmt.Errorf(`"api" of message %d of the answer is not a string`, i)
		}
		m.remove("api")
		msg := bridge.JSON(api, json.RawMessage(m.src))
		if api == "" || api == defaultAPI {
			msg = bridge.Reply(ev, msg)[0] // touser defaults to the sender
		}
		ms = append(ms, msg)
	}
	return ms, nil
}

// withoutURL takes the URL out of an error of net/http: an endpoint's query or user
// info may hold a credential.
func withoutURL(err error) error {
	var ue *url.Error
	for errors.As(err, &ue) {
		err = ue.Err
	}
	return err
}
