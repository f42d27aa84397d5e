package wecom

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"
)

const apiGetToken = "gettoken"

// token is an access token with its times. Ages are counted from before the request
// that fetched it, so that a slow answer cannot make it look younger than it is.
type token struct {
	value   string
	fresh   time.Time // until then it is used without a thought
	expires time.Time // until then it may still work, if no other can be had
}

// tokens is the access token of one (corp, secret) and the rules for fetching it. The
// frequency limit of gettoken is not published and several wrong secrets ban the
// calling address for an hour, so every way to another fetch is narrow: one at a
// time, none while the token is good, and after a failure none until a growing delay
// has passed (developer.work.weixin.qq.com/document/path/91039).
type tokens struct {
	lock chan struct{} // holds one element while somebody reads or changes the rest; a mutex that ctx can leave
	cur  token

	err      error     // why the last fetch failed, until one succeeds
	failures int       // fetches failed in a row
	notUntil time.Time // no fetch before

	rejected int       // fresh tokens that WeCom refused in a row
	dropFrom time.Time // no token is thrown away on a refusal before
}

func newTokens() tokens { return tokens{lock: make(chan struct{}, 1)} }

// token returns an access token other than bad, the value that WeCom has just
// refused ("" for none). A refusal of a value that is no longer the current one
// costs nothing: the newer token is returned. If bad is the current one it is
// fetched anew; ok is false when that was done too recently to be of use.
//
// WeCom may answer with the same value as before, which is then returned.
func (c *Client) token(ctx context.Context, bad string) (value string, ok bool, err error) {
	t := &c.tokens
	select {
	case t.lock <- struct{}{}:
	case <-ctx.Done():
		return "", false, &TransportError{API: apiGetToken, Err: context.Cause(ctx)}
	}
	defer func() { <-t.lock }()

	now := c.now()
	if bad != "" && t.cur.value == bad {
		if now.Before(t.dropFrom) {
			return "", false, nil
		}
		t.cur = token{}
		t.dropFrom = now.Add(grow(time.Second, time.Minute, t.rejected))
		t.rejected++
	}
	if now.Before(t.cur.fresh) {
		return t.cur.value, true, nil
	}
	if t.err == nil || !now.Before(t.notUntil) {
		cur, err := c.fetchToken(ctx, now)
		switch {
		case err == nil:
			t.cur, t.err, t.failures = cur, nil, 0
			return cur.value, true, nil
		case ctx.Err() != nil:
			return "", false, err // the caller left; this says nothing about WeCom
		}
		t.err, t.notUntil = err, c.now().Add(fetchDelay(err, t.failures))
		t.failures++
	}
	if now.Before(t.cur.expires) {
		return t.cur.value, true, nil
	}
	return "", false, t.err
}

// accepted notes that WeCom did not object to the current token.
func (c *Client) accepted() {
	select {
	case c.tokens.lock <- struct{}{}:
		c.tokens.rejected = 0
		<-c.tokens.lock
	default: // somebody is fetching; the next call will note it
	}
}

// fetchDelay is how long nobody asks for a token again after the nth failure (from 0).
func fetchDelay(err error, n int) time.Duration {
	var e *Error
	if errors.As(err, &e) {
		switch e.Class() {
		case RetryNow:
			return grow(time.Second, time.Minute, n)
		case RetryLater:
			return grow(time.Minute, time.Hour, n)
		default: // a wrong secret: every try counts towards the ban
			return grow(time.Minute, 30*time.Minute, n)
		}
	}
	return grow(500*time.Millisecond, 30*time.Second, n)
}

// grow doubles first n times, at most to most.
func grow(first, most time.Duration, n int) time.Duration {
	d := first
	for ; n > 0 && d < most; n-- {
		d *= 2
	}
	return min(d, most)
}

func (c *Client) fetchToken(ctx context.Context, now time.Time) (token, error) {
	// What WeCom would say, without asking: it checks the secret first.
	if c.secret == "" {
		return token{}, &Error{API: apiGetToken, Code: 41004, Msg: "no secret is configured"}
	}
	if c.corpID == "" {
		return token{}, &Error{API: apiGetToken, Code: 41002, Msg: "no corp id is configured"}
	}
	q := url.Values{"corpid": {c.corpID}, "corpsecret": {c.secret}}
	ans, _, err := c.do(ctx, http.MethodGet, apiGetToken, q, nil)
	if err != nil {
		return token{}, err
	}
	if ans.ErrCode != 0 {
		return token{}, &Error{API: apiGetToken, Code: int(ans.ErrCode), Msg: c.clean(string(ans.ErrMsg))}
	}
	if ans.AccessToken == "" {
		return token{}, &TransportError{API: apiGetToken, Err: errors.New("answer without access_token")}
	}
	life := time.Duration(ans.ExpiresIn) * time.Second
	if life <= 0 || life > 24*time.Hour {
		life = 5 * time.Minute // not credible; a token that dies earlier is refused and replaced
	}
	margin := min(5*time.Minute, life/5)
	return token{
		value:   string(ans.AccessToken),
		fresh:   now.Add(life - margin),
		expires: now.Add(life),
	}, nil
}
