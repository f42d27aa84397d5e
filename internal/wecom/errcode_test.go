package wecom

import (
	"strings"
	"testing"
)

func TestErrcodes(t *testing.T) {
	table, err := parseErrcodes(errcodesJSON)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := len(table), 259; got != want {
		t.Errorf("table has %d codes, want %d", got, want)
	}
	for code, row := range table {
		if row.meaning == "" {
			t.Errorf("errcode %d has no meaning", code)
		}
	}
	for code, want := range map[int]Class{
		-1: RetryNow, 6000: RetryNow, 45035: RetryNow,
		45009: RetryLater, 45033: RetryLater, 45036: RetryLater, 81026: RetryLater, 130101: RetryLater, 95019: RetryLater, 846607: RetryLater, 830003: RetryLater,
		40014: RefreshToken, 42001: RefreshToken, 42009: RefreshToken, 40082: RefreshToken,
		40001: Config, 40013: Config, 60020: Config, 301002: Config, 48002: Config, 40056: Config, 93000: Config,
		81013: BadRequest, 40003: BadRequest, 40008: BadRequest, 44004: BadRequest, 45002: BadRequest, 95033: BadRequest,
		987654: BadRequest, // not in the table
	} {
		if got := ClassOf(code); got != want {
			t.Errorf("class of %d is %v, want %v", code, got, want)
		}
	}
	if got := Meaning(987654); got != "" {
		t.Errorf("unknown code has meaning %q", got)
	}
}

func TestParseErrcodesRefuses(t *testing.T) {
	for name, src := range map[string]string{
		"no json":       `[{`,
		"unknown class": `[{"code":1,"meaning":"m","class":"perhaps"}]`,
		"listed twice":  `[{"code":1,"meaning":"m","class":"retry-now"},{"code":1,"meaning":"m","class":"retry-now"}]`,
	} {
		if _, err := parseErrcodes([]byte(src)); err == nil {
			t.Errorf("%s: accepted", name)
		}
	}
}

func TestErrorText(t *testing.T) {
	e := &Error{API: "message/send", Code: 60020, Msg: "not allow to access from your ip, hint: [1665572950354960143799549], from ip: 203.0.113.7, more info at https://open.work.weixin.qq.com/devtool/query?e=60020"}
	for _, want := range []string{"message/send: errcode 60020: not allow", "from ip: 203.0.113.7", "trusted"} {
		if !strings.Contains(e.Error(), want) {
			t.Errorf("%q does not contain %q", e, want)
		}
	}
	if got, want := (&Error{API: "x", Code: 987654}).Error(), "x: errcode 987654"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestClassString(t *testing.T) {
	seen := map[string]bool{}
	for _, c := range []Class{BadRequest, RetryNow, RetryLater, RefreshToken, Config, 99, -1} {
		s := c.String()
		if s == "" || seen[s] {
			t.Errorf("class %d is called %q", int(c), s)
		}
		seen[s] = true
	}
}
