package wecom

import (
	_ "embed"
	"encoding/json"
	"fmt"
	"strconv"
	"sync"
)

// A Class says what a caller can do about an errcode. It follows WeCom's table of
// global error codes (developer.work.weixin.qq.com/document/path/90313) and the
// advice there that only failures of the system are worth repeating.
type Class int

// The classes of errcodes. The zero Class is BadRequest, which is also the class of
// every code that the table does not know: an unknown refusal is not repeated.
const (
	// BadRequest: this request will never succeed as it stands.
	BadRequest Class = iota
	// RetryNow: a passing failure of WeCom; repeat within seconds, a few times.
	RetryNow
	// RetryLater: a limit was hit; repeat when its window (a minute, an hour) has passed.
	RetryLater
	// RefreshToken: the access token is no longer good. [Client] has already fetched
	// another one and repeated the call once when a caller sees this class.
	RefreshToken
	// Config: an operator must change something (secret, visible range, trusted
	// address) before this application's calls can succeed.
	Config
)

var classNames = [...]string{"bad-request", "retry-now", "retry-later", "refresh-token", "config"}

// String returns a short lower-case name that is fit for a metric label.
func (c Class) String() string {
	if c < 0 || int(c) >= len(classNames) {
		return "class-" + strconv.Itoa(int(c))
	}
	return classNames[c]
}

// ClassOf returns the class of a non-zero errcode, [BadRequest] for an unknown one.
func ClassOf(code int) Class { return errcodes()[code].class }

// Meaning returns what WeCom documents about an errcode, in one English line, or ""
// for an unknown one.
func Meaning(code int) string { return errcodes()[code].meaning }

//go:embed errcodes.json
var errcodesJSON []byte

type errcode struct {
	meaning string
	class   Class
}

// errcodes is parsed at the first error of a process rather than at its start.
var errcodes = sync.OnceValue(func() map[int]errcode {
	table, err := parseErrcodes(errcodesJSON)
	if err != nil {
		panic(err) // the table is part of this program, and a test reads it
	}
	return table
})

func parseErrcodes(src []byte) (map[int]errcode, error) {
	var rows []struct {
		Code    int    `json:"code"`
		Meaning string `json:"meaning"`
		Class   string `json:"class"`
	}
	if err := json.Unmarshal(src, &rows); err != nil {
		return nil, fmt.Errorf("parse errcodes: %w", err)
	}
	classes := map[string]Class{
		"success":                 BadRequest, // code 0 is never asked for: it is no error
		"retry-now":               RetryNow,
		"retry-later":             RetryLater,
		"refresh-token-and-retry": RefreshToken,
		"permanent-bad-request":   BadRequest,
		"permanent-auth/config":   Config,
	}
	table := make(map[int]errcode, len(rows))
	for _, r := range rows {
		class, ok := classes[r.Class]
		if !ok {
			return nil, fmt.Errorf("errcode %d: unknown class %q", r.Code, r.Class)
		}
		if _, dup := table[r.Code]; dup {
			return nil, fmt.Errorf("errcode %d: listed twice", r.Code)
		}
		table[r.Code] = errcode{r.Meaning, class}
	}
	return table, nil
}

// An Error is a refusal by WeCom: an HTTP answer whose errcode is not zero. The
// request was received, judged and not executed.
//
// The one exception is -1, "system busy", of which WeCom does not say whether the
// request was executed; see [Error.Ambiguous].
type Error struct {
	API  string // the call that was refused; "gettoken" when no access token was to be had
	Code int    // errcode, never 0
	Msg  string // errmsg as WeCom sent it, shortened, without secrets; informative only
}

// Error names the call, the errcode, WeCom's own text (for 60020 with the address to
// add to the trusted ones) and the documented meaning.
func (e *Error) Error() string {
	s := fmt.Sprintf("%s: errcode %d", e.API, e.Code)
	if e.Msg != "" {
		s += ": " + e.Msg
	}
	if m := Meaning(e.Code); m != "" {
		s += " (" + m + ")"
	}
	return s
}

// Class says what can be done about the error.
func (e *Error) Class() Class { return ClassOf(e.Code) }

// Ambiguous reports whether the request may have been executed all the same.
func (e *Error) Ambiguous() bool { return e.Code == -1 && e.API != apiGetToken }
