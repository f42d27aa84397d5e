package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/wecom-bridge/wecom-bridge/bridge"
)

func textEvent(app, user, content string) *bridge.Event {
	data, _ := json.Marshal(map[string]string{"FromUserName": user, "MsgType": "text", "Content": content, "AgentID": "1000002"})
	return &bridge.Event{ID: "m-1", Source: "/wecom/ww1/" + app, Type: "wecom.message.text", App: app, Data: data, DataContentType: "application/json", PartitionKey: user}
}

func event(kind, data string) *bridge.Event {
	return &bridge.Event{ID: "h-1", Source: "/wecom/ww1/demo", Type: "wecom." + kind, App: "demo", Data: json.RawMessage(data), DataContentType: "application/json"}
}

func mustLoad(t *testing.T, src string) *Rules {
	t.Helper()
	r, err := LoadRules("rules.yaml", []byte(src))
	if err != nil {
		t.Fatal(err)
	}
	return r
}

// replyText is the text of the one message that was answered; "" for none.
func replyText(t *testing.T, ms []bridge.Message) string {
	t.Helper()
	if len(ms) == 0 {
		return ""
	}
	var body struct {
		MsgType string
		Text    struct{ Content string }
	}
	if len(ms) != 1 || json.Unmarshal(ms[0].Body, &body) != nil || body.MsgType != "text" {
		t.Fatalf("answered %+v, want one text", ms)
	}
	return body.Text.Content
}

func TestExampleRules(t *testing.T) {
	r, err := LoadRules("rules.yaml", exampleRules(t))
	if err != nil {
		t.Fatal(err)
	}
	if r.Len() != 3 {
		t.Errorf("%d rules, want 3", r.Len())
	}
	for text, want := range map[string]string{
		"Hello there": "Hello alice, you said: Hello there",
		"你好":          "Hello alice, you said: 你好",
		"爱你":          "我也爱你!",
		"<b>&\"":      "我也<b>&\"!",
	} {
		ms, err := r.Handle(t.Context(), textEvent("demo", "alice", text))
		if err != nil {
			t.Fatal(err)
		}
		if got := replyText(t, ms); got != want {
			t.Errorf("%q answered with %q, want %q", text, got, want)
		}
		if ms[0].To != "alice" {
			t.Errorf("answer goes to %q", ms[0].To)
		}
	}
	if ms, err := r.Handle(t.Context(), event("event.subscribe", `{"FromUserName":"alice"}`)); len(ms) > 0 || err != nil {
		t.Errorf("an event without a rule gave %v, %v", ms, err)
	}
}

func TestConditions(t *testing.T) {
	click := func(key string) *bridge.Event {
		return event("event.click", fmt.Sprintf(`{"FromUserName":"alice","Event":"click","EventKey":%q}`, key))
	}
	for _, tt := range []struct {
		when string
		yes  []*bridge.Event
		no   []*bridge.Event
	}{
		{`{}`, []*bridge.Event{textEvent("demo", "a", "x"), click("K"), event("unknown", `"raw"`)}, nil},
		{``, []*bridge.Event{textEvent("demo", "a", "x"), click("K")}, nil},
		{`{app: demo}`, []*bridge.Event{textEvent("demo", "a", "x")}, []*bridge.Event{textEvent("demo2", "a", "x")}},
		{`{app: [a-1, demo]}`, []*bridge.Event{textEvent("demo", "a", "x"), textEvent("a-1", "a", "x")}, []*bridge.Event{textEvent("a", "a", "x")}},
		{`{type: message.text}`, []*bridge.Event{textEvent("demo", "a", "x")}, []*bridge.Event{click("K"), event("message.texts", `{}`), event("message.text.more", `{}`)}},
		{`{type: wecom.message.text}`, []*bridge.Event{textEvent("demo", "a", "x")}, []*bridge.Event{click("K")}},
		{`{type: event.*}`, []*bridge.Event{click("K"), event("event.change_contact.create_user", `{}`)}, []*bridge.Event{textEvent("demo", "a", "x"), event("event", `{}`), event("events.x", `{}`)}},
		{`{type: [message.*, event.click]}`, []*bridge.Event{click("K"), event("message.image", `{}`)}, []*bridge.Event{event("event.view", `{}`)}},
		{`{type: "*"}`, []*bridge.Event{click("K"), event("unknown", `"raw"`)}, nil},
		{`{keyword: Hello}`, []*bridge.Event{textEvent("demo", "a", "HELLO!"), textEvent("demo", "a", "oh hello")}, []*bridge.Event{textEvent("demo", "a", "hallo"), click("hello")}},
		{`{keyword: [ÜBER, 你好]}`, []*bridge.Event{textEvent("demo", "a", "über uns"), textEvent("demo", "a", "说你好吗")}, []*bridge.Event{textEvent("demo", "a", "uber")}},
		{`{equals: 1}`, []*bridge.Event{textEvent("demo", "a", "1")}, []*bridge.Event{textEvent("demo", "a", "11"), textEvent("demo", "a", ""), click("1")}},
		{`{equals: [yes, true, "no"]}`, []*bridge.Event{textEvent("demo", "a", "yes"), textEvent("demo", "a", "true"), textEvent("demo", "a", "no")}, []*bridge.Event{textEvent("demo", "a", "Yes")}},
		{`{prefix: /job}`, []*bridge.Event{textEvent("demo", "a", "/job list")}, []*bridge.Event{textEvent("demo", "a", "a /job"), textEvent("demo", "a", "/Job")}},
		{`{regexp: '^\d{3,}$'}`, []*bridge.Event{textEvent("demo", "a", "1234")}, []*bridge.Event{textEvent("demo", "a", "12"), textEvent("demo", "a", "x1234")}},
		{`{regexp: [a+, '.*']}`, []*bridge.Event{textEvent("demo", "a", "x")}, []*bridge.Event{click("aaa")}},
		{`{key: [A, B]}`, []*bridge.Event{click("A"), click("B")}, []*bridge.Event{click("C"), click(""), textEvent("demo", "a", "A")}},
		{`{type: message.text, keyword: a, prefix: x}`, []*bridge.Event{textEvent("demo", "a", "xa")}, []*bridge.Event{textEvent("demo", "a", "ax"), textEvent("demo", "a", "xb")}},
	} {
		r := mustLoad(t, "rules:\n  - name: r\n    when: "+tt.when+"\n    reply: {text: yes}\n")
		for _, ev := range tt.yes {
			if !r.rules[0].matches(newView(ev)) {
				t.Errorf("when %s does not match %s %s", tt.when, ev.Type, ev.Data)
			}
		}
		for _, ev := range tt.no {
			if r.rules[0].matches(newView(ev)) {
				t.Errorf("when %s matches %s %s", tt.when, ev.Type, ev.Data)
			}
		}
	}
}

func TestFirstMatchWins(t *testing.T) {
	r := mustLoad(t, `
rules:
  - {name: a, when: {equals: x}, reply: {text: first}}
  - {name: b, when: {keyword: x}, reply: {text: second}}
  - {when: {}, reply: {text: third}}
`)
	for text, want := range map[string]string{"x": "first", "xx": "second", "y": "third"} {
		ms, err := r.Handle(t.Context(), textEvent("demo", "alice", text))
		if err != nil {
			t.Fatal(err)
		}
		if got := replyText(t, ms); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

func TestTemplates(t *testing.T) {
	ev := event("event.click", `{"FromUserName":"alice","EventKey":"K","N":12345678901234567890,"Deep":{"A":"b","L":["x","y"]},"Empty":"","Null":null}`)
	for src, want := range map[string]string{
		`{{.User}}/{{.Key}}/{{.App}}/{{.Text}}.`:                             "alice/K/demo/.",
		`{{.Data.EventKey}} {{.Data.N}} {{.Data.Deep.A}}`:                    "K 12345678901234567890 b",
		`{{range .Data.Deep.L}}<{{.}}>{{end}}`:                               "<x><y>",
		`[{{.Data.Nope}}{{.Data.Nope.Deeper}}{{.Data.Empty}}{{.Data.Null}}]`: "[]",
		`{{with .Data.Nope}}yes{{else}}no {{.User}}{{end}}`:                  "no alice",
		`{{with .Data.Deep}}{{.A}} {{$.User}} {{.Nope}}.{{end}}`:             "b alice .",
		`{{if eq .Key "K"}}k{{end}}`:                                         "k",
		`{{$x := .Data.Nope}}{{$x}}{{$x = .User}}{{$x}}`:                     "alice",
		`{{.User | printf "%q"}}`:                                            `"alice"`,
		`{{define "t"}}{{.A}}{{.Nope}}{{end}}{{template "t" .Data.Deep}}`:    "b",
		`{{index .Data "EventKey"}}{{index .Data "nope"}}`:                   "K",
		`<a href="x">&</a>`:                                                  `<a href="x">&</a>`,
	} {
		r := mustLoad(t, "rules:\n  - reply:\n      text: |-\n        "+src+"\n")
		ms, err := r.Handle(t.Context(), ev)
		if err != nil {
			t.Errorf("%s: %v", src, err)
			continue
		}
		if got := replyText(t, ms); got != want {
			t.Errorf("%s: got %q, want %q", src, got, want)
		}
	}
}

// rejected tells a final error from one that is tried again.
func rejected(err error) bool { return err != nil && strings.HasPrefix(err.Error(), "rejected: ") }

func TestReplyRejects(t *testing.T) {
	for name, tt := range map[string]struct {
		text string
		ev   *bridge.Event
	}{
		"execution error": {`{{.Data.FromUserName.X}}`, textEvent("demo", "alice", "x")},
		"index":           {`{{index .Data.List 3}}`, event("event.click", `{"FromUserName":"alice","List":["a"]}`)},
		"sys":             {`hi`, event("event.click", `{"FromUserName":"sys"}`)},
		"nobody":          {`hi`, event("event.click", `{}`)},
		"raw text":        {`hi`, event("unknown", `"raw"`)},
	} {
		r := mustLoad(t, "rules:\n  - {name: r1, reply: {text: '"+tt.text+"'}}\n")
		ms, err := r.Handle(t.Context(), tt.ev)
		if !rejected(err) || ms != nil {
			t.Errorf("%s: %v, %v, want a rejection", name, ms, err)
		} else if !strings.Contains(err.Error(), `rule "r1"`) {
			t.Errorf("%s: error %q does not name the rule", name, err)
		}
	}
	// A reply without text is no reply, even to nobody.
	r := mustLoad(t, "rules:\n  - {reply: {text: '{{.Text}} '}}\n")
	if ms, err := r.Handle(t.Context(), event("event.click", `{}`)); ms != nil || err != nil {
		t.Errorf("empty reply: %v, %v", ms, err)
	}
}

func TestMistakes(t *testing.T) {
	rule := func(s string) string { return "rules:\n  - name: r\n    " + s + "\n" }
	for name, tt := range map[string]struct {
		src  string
		want []string // one for each line of the error, "line: part of the text"
	}{
		"empty":              {"", []string{"1: empty"}},
		"comment only":       {"# nothing\n", []string{"1: "}},
		"not yaml":           {"rules:\n  - a: [1\n", []string{"2: not YAML"}},
		"unclosed quote":     {"rules:\n  - 'a\n", []string{"not YAML: found unexpected end of stream"}},
		"unknown anchor":     {"rules:\n  - a: 1\n  - *nope\n", []string{"3: not YAML: unknown anchor"}},
		"value twice":        {"rules:\n  - name: a: b\n", []string{"2: not YAML: mapping values"}},
		"bad indentation":    {"rules:\n  - name: a\n   when: {}\n", []string{"2: not YAML: did not find expected"}},
		"tab":                {"rules:\n\t- a\n", []string{"2: not YAML"}},
		"list":               {"- a\n", []string{"1: the file: want a mapping, not a list"}},
		"unknown top key":    {"rules: []\nrulez: []\n", []string{`2: unknown key "rulez"`}},
		"no rules":           {"a: 1\n", []string{`1: unknown key "a"`, "1: the key rules is missing"}},
		"rules null":         {"rules:\n", []string{"1: rules: want a list, not nothing"}},
		"rules mapping":      {"rules: {a: 1}\n", []string{"1: rules: want a list, not a mapping"}},
		"rule no mapping":    {"rules:\n  - hi\n", []string{"2: want a mapping, not a text"}},
		"two documents":      {"rules: []\n---\nrules: []\n", []string{"second document"}},
		"unknown key":        {rule("reply: {text: a}\n    wenn: {}"), []string{`4: rule "r": unknown key "wenn"`}},
		"key twice":          {rule("reply: {text: a}\n    reply: {text: b}"), []string{"4: rule \"r\": reply: stands already at line 3"}},
		"name twice":         {"rules:\n- {name: a, reply: {text: x}}\n- {name: b, reply: {text: x}}\n- {name: a, reply: {text: x}}\n", []string{`4: rule "a": name: stands already at line 2`}},
		"name no text":       {"rules:\n- {name: [a], reply: {text: x}}\n", []string{"2: rule \"#1\": name: want a text, not a list"}},
		"neither":            {rule("when: {}"), []string{"neither reply nor call"}},
		"both":               {rule("reply: {text: a}\n    call: {url: 'http://x'}"), []string{"both reply and call"}},
		"when list":          {rule("reply: {text: a}\n    when: [a]"), []string{"4: rule \"r\": when: want a mapping, not a list"}},
		"when unknown":       {rule("reply: {text: a}\n    when: {typ: message.text}"), []string{`4: rule "r": unknown key "typ" in when`}},
		"condition mapping":  {rule("reply: {text: a}\n    when: {key: {a: b}}"), []string{"4: rule \"r\": key: want a text, not a mapping"}},
		"condition null":     {rule("reply: {text: a}\n    when: {key: }"), []string{"4: rule \"r\": key: want a text, not nothing"}},
		"condition empty":    {rule("reply: {text: a}\n    when: {keyword: ''}"), []string{"4: rule \"r\": keyword: is empty"}},
		"empty list":         {rule("reply: {text: a}\n    when: {keyword: []}"), []string{"4: rule \"r\": keyword: the list is empty"}},
		"in a list":          {rule("reply: {text: a}\n    when:\n      keyword:\n        - ok\n        - [no]\n        - ''"), []string{"7: ", "8: "}},
		"bad app":            {rule("reply: {text: a}\n    when: {app: Demo}"), []string{`4: rule "r": app: "Demo"`}},
		"bad type":           {rule("reply: {text: a}\n    when: {type: mesage.text}"), []string{"4: rule \"r\": type:"}},
		"star inside":        {rule("reply: {text: a}\n    when: {type: event.*.x}"), []string{"4: rule \"r\": type:"}},
		"star in a word":     {rule("reply: {text: a}\n    when: {type: event.cl*}"), []string{"4: rule \"r\": type:"}},
		"empty part":         {rule("reply: {text: a}\n    when: {type: event..x}"), []string{"4: rule \"r\": type:"}},
		"bad regexp":         {rule("reply: {text: a}\n    when: {regexp: ['a', '(']}"), []string{"4: rule \"r\": regexp: missing closing )"}},
		"reply text missing": {rule("reply: {}"), []string{"3: rule \"r\": reply: the key text is missing"}},
		"reply no mapping":   {rule("reply: hi"), []string{"3: rule \"r\": reply: want a mapping, not a text"}},
		"reply unknown":      {rule("reply: {text: a, to: b}"), []string{`3: rule "r": unknown key "to" in reply`}},
		"text empty":         {rule("reply: {text: ''}"), []string{"3: rule \"r\": text: is empty"}},
		"text list":          {rule("reply: {text: [a]}"), []string{"3: rule \"r\": text: want a text, not a list"}},
		"template open":      {rule("reply: {text: 'a {{.User'}"), []string{"3: rule \"r\": text: template: unclosed action"}},
		"template function":  {rule("reply: {text: '{{env .User}}'}"), []string{`3: rule "r": text: template: function "env" not defined`}},
		"template field":     {rule("reply: {text: 'a {{.Usr}}'}"), []string{"3: rule \"r\": text: template: no field .Usr"}},
		"template field 2":   {rule("reply: {text: '{{if .User}}{{$.Usr}}{{end}}'}"), []string{"no field .Usr"}},
		"template field 3":   {rule("reply: {text: '{{with (printf .Usr)}}{{.Any}}{{else}}x{{end}}'}"), []string{"no field .Usr"}},
		"template field 4":   {rule("reply: {text: '{{range .Data.L}}{{.Any}}{{else}}{{.Usr}}{{end}}'}"), []string{"no field .Usr"}},
		"call url missing":   {rule("call: {}"), []string{"3: rule \"r\": call: the key url is missing"}},
		"call unknown":       {rule("call: {url: 'http://x', method: GET}"), []string{`3: rule "r": unknown key "method" in call`}},
		"call null":          {rule("call:"), []string{"3: rule \"r\": call: want a mapping, not nothing"}},
		"url scheme":         {rule("call: {url: 'ftp://x/'}"), []string{"3: rule \"r\": url: must start with http"}},
		"url relative":       {rule("call: {url: '/x'}"), []string{"url: must start with http"}},
		"url host":           {rule("call: {url: 'http:///x'}"), []string{"url: has no host"}},
		"url port":           {rule("call: {url: 'http://h:hunter2/'}"), []string{"url: invalid port"}},
		"url template":       {rule("call: {url: 'http://h/{{.User}}'}"), []string{"url: is taken literally"}},
		"url fragment":       {rule("call: {url: 'http://h/#a'}"), []string{"url: the part behind #"}},
		"timeout number":     {rule("call: {url: 'http://x', timeout: 10}"), []string{`3: rule "r": timeout: "10" is not a duration`}},
		"timeout word":       {rule("call: {url: 'http://x', timeout: soon}"), []string{`timeout: "soon" is not`}},
		"timeout negative":   {rule("call: {url: 'http://x', timeout: -1s}"), []string{"timeout: must be more than 0"}},
		"timeout long":       {rule("call: {url: 'http://x', timeout: 1h}"), []string{"timeout: must be more than 0 and at most 5m0s"}},
		"merge key":          {"rules:\n  - &a {name: a, reply: {text: x}}\n  - {<<: *a, name: b}\n", []string{`3: rule "b": unknown key "<<"`, "3: rule \"b\": has neither"}},
		"many at once": {`rules:
  - name: one
    when: {type: nope, regexp: "["}
    reply: {text: "{{.X}}"}
  - name: two
    call: {url: "nope", timeout: x}
    extra: 1
`, []string{"3: ", "3: ", "4: ", "6: ", "6: ", "7: "}},
	} {
		t.Run(name, func(t *testing.T) {
			r, err := LoadRules("my.yaml", []byte(tt.src))
			if err == nil || r != nil {
				t.Fatalf("accepted as %+v", r)
			}
			lines := strings.Split(err.Error(), "\n")
			if len(lines) != len(tt.want) {
				t.Fatalf("%d mistakes, want %d:\n%v", len(lines), len(tt.want), err)
			}
			for i, want := range tt.want {
				at, text, ok := strings.Cut(want, ": ")
				if !ok || strings.Trim(at, "0123456789") != "" {
					at, text = "", want
				}
				if at != "" && !strings.HasPrefix(lines[i], "my.yaml:"+at+": ") || !strings.HasPrefix(lines[i], "my.yaml:") || !strings.Contains(lines[i], text) {
					t.Errorf("mistake %q, want %q", lines[i], want)
				}
			}
		})
	}
}

func TestAliases(t *testing.T) {
	r := mustLoad(t, `
rules:
  - name: a
    when: &texts {type: message.text}
    reply: &r {text: &t "hi"}
  - {name: b, when: *texts, reply: *r}
  - {name: c, reply: {text: *t}}
`)
	if len(r.rules) != 3 || len(r.rules[1].types) != 1 || r.rules[2].reply == nil {
		t.Errorf("rules %+v", r.rules)
	}
}

func FuzzLoadRules(f *testing.F) {
	f.Add(exampleRules(f))
	f.Add([]byte("rules:\n- &a {when: *a}\n"))
	f.Fuzz(func(t *testing.T, src []byte) {
		r, err := LoadRules("f", src)
		if (r == nil) == (err == nil) {
			t.Errorf("got %v, %v", r, err)
		}
		if r != nil {
			for i := range r.rules {
				r.rules[i].call = nil // no network here
				if r.rules[i].reply == nil {
					return
				}
			}
			_, _ = r.Handle(t.Context(), textEvent("demo", "alice", "hi"))
		}
	})
}

// callRule has one rule that calls the endpoint.
func callRule(t *testing.T, h http.HandlerFunc) *Rules {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	r := mustLoad(t, "rules:\n  - {name: c, call: {url: '"+srv.URL+"/hook?token=hunter2', timeout: 300ms}}\n")
	t.Cleanup(r.http.CloseIdleConnections)
	return r
}

func TestCallPostsTheEvent(t *testing.T) {
	ev := textEvent("demo", "alice", "<hi> 你好")
	r := callRule(t, func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		if req.Method != "POST" || req.URL.Path != "/hook" || req.Header.Get("Content-Type") != "application/cloudevents+json" {
			t.Errorf("request %s %s %v", req.Method, req.URL, req.Header)
		}
		if want := string(ev.AppendJSON(nil)); string(body) != want {
			t.Errorf("body %s, want %s", body, want)
		}
		w.WriteHeader(http.StatusNoContent)
	})
	if ms, err := r.Handle(t.Context(), ev); ms != nil || err != nil {
		t.Errorf("got %v, %v", ms, err)
	}
}

func TestCallAnswers(t *testing.T) {
	const body = `{"msgtype" : "text","text":{"content":"<a href=\"x\">"}}`
	for answer, want := range map[string][]bridge.Message{
		``:                                nil,
		" \n":                             nil,
		`{}`:                              nil,
		`{"messages":[]}`:                 nil,
		`{"messages":null}`:               nil,
		`{"other":1,"messages":[]}`:       nil,
		`{"messages":[` + body + `]}`:     {{To: "alice", Body: json.RawMessage(body)}},
		`{"messages":[{"touser":"bob"}]}`: {{Body: json.RawMessage(`{"touser":"bob"}`)}},
		`{"messages":[{"toparty":"1"},{"api":"message/send","a":1}]}`:         {{Body: json.RawMessage(`{"toparty":"1"}`)}, {API: "message/send", To: "alice", Body: json.RawMessage(`{"a":1}`)}},
		`{"messages":[{"chatid":"c","api":"appchat/send","msgtype":"text"}]}`: {{API: "appchat/send", Body: json.RawMessage(`{"chatid":"c","msgtype":"text"}`)}},
		`{"messages":[{"api":"message/recall","msgid":"m"}]}`:                 {{API: "message/recall", Body: json.RawMessage(`{"msgid":"m"}`)}},
	} {
		r := callRule(t, func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, answer) })
		ms, err := r.Handle(t.Context(), textEvent("demo", "alice", "x"))
		if err != nil || len(ms) != len(want) {
			t.Errorf("%s: got %v, %v, want %d messages", answer, ms, err, len(want))
			continue
		}
		for i, m := range ms {
			if m.To != want[i].To || m.API != want[i].API || string(m.Body) != string(want[i].Body) {
				t.Errorf("%s: message %d is %+v %s, want %+v", answer, i, m, m.Body, want[i])
			}
		}
	}
}

func TestCallVerdicts(t *testing.T) {
	status := func(code int, header ...string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			for i := 0; i+1 < len(header); i += 2 {
				w.Header().Set(header[i], header[i+1])
			}
			w.WriteHeader(code)
			io.WriteString(w, "<p>hunter2</p>")
		}
	}
	answer := func(body string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, body) }
	}
	other := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("a redirect was followed") }))
	defer other.Close()
	for name, tt := range map[string]struct {
		handler http.HandlerFunc
		final   bool
		after   time.Duration
	}{
		"400":                     {handler: status(400), final: true},
		"401":                     {handler: status(401), final: true},
		"404":                     {handler: status(404), final: true},
		"410":                     {handler: status(410), final: true},
		"301":                     {handler: status(301, "Location", other.URL), final: true},
		"307":                     {handler: status(307, "Location", other.URL), final: true},
		"304":                     {handler: status(304), final: true},
		"408":                     {handler: status(408), final: false},
		"425":                     {handler: status(425), final: false},
		"429":                     {handler: status(429), final: false},
		"429 after":               {handler: status(429, "Retry-After", "7"), final: false, after: 7 * time.Second},
		"500":                     {handler: status(500), final: false},
		"502 after is not obeyed": {handler: status(502, "Retry-After", "7"), final: false},
		"503":                     {handler: status(503), final: false},
		"503 after":               {handler: status(503, "Retry-After", "3"), final: false, after: 3 * time.Second},
		"503 after nonsense":      {handler: status(503, "Retry-After", "soon"), final: false},
		"504":                     {handler: status(504), final: false},
		"timeout":                 {handler: func(_ http.ResponseWriter, r *http.Request) { io.Copy(io.Discard, r.Body); <-r.Context().Done() }, final: false},
		"cut":                     {handler: func(w http.ResponseWriter, _ *http.Request) { panic(http.ErrAbortHandler) }, final: false},
		"cut within the answer": {handler: func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "100")
			io.WriteString(w, `{"mess`)
		}, final: false},
		"too large":         {handler: answer(`{"messages":[]` + strings.Repeat(" ", maxCallAnswer) + `}`), final: true},
		"not json":          {handler: answer(`ok hunter2`), final: true},
		"no object":         {handler: answer(`[]`), final: true},
		"no messages":       {handler: answer(`{"message":[]}`), final: true},
		"messages no array": {handler: answer(`{"messages":{}}`), final: true},
		"message no object": {handler: answer(`{"messages":["hi"]}`), final: true},
		"api no string":     {handler: answer(`{"messages":[{"api":1}]}`), final: true},
	} {
		t.Run(name, func(t *testing.T) {
			r := callRule(t, tt.handler)
			ms, err := r.Handle(t.Context(), textEvent("demo", "alice", "x"))
			if err == nil || ms != nil {
				t.Fatalf("got %v, %v, want an error", ms, err)
			}
			if rejected(err) != tt.final {
				t.Errorf("error %q, want a final one: %v", err, tt.final)
			}
			_, f := r.rules[0].call.do(t.Context(), r.http, textEvent("demo", "alice", "x"))
			if f == nil || f.after != tt.after || f.final != tt.final {
				t.Errorf("failure %+v, want one after %v", f, tt.after)
			}
			if strings.Contains(err.Error(), "hunter2") || !strings.Contains(err.Error(), `rule "c": call: `) {
				t.Errorf("error %q", err)
			}
		})
	}
}

func TestCallEndpointGone(t *testing.T) {
	srv := httptest.NewServer(http.NotFoundHandler())
	srv.Close()
	r := mustLoad(t, "rules:\n  - {call: {url: '"+srv.URL+"/?token=hunter2'}}\n")
	_, err := r.Handle(t.Context(), textEvent("demo", "alice", "x"))
	if err == nil || rejected(err) || strings.Contains(err.Error(), "hunter2") {
		t.Errorf("error %v, want one that is tried again and shows no URL", err)
	}
}

func TestCallEndsWithItsContext(t *testing.T) {
	started := make(chan struct{})
	var once sync.Once
	r := callRule(t, func(_ http.ResponseWriter, req *http.Request) {
		io.Copy(io.Discard, req.Body)
		once.Do(func() { close(started) })
		<-req.Context().Done()
	})
	ctx, cancel := context.WithCancel(t.Context())
	go func() { <-started; cancel() }()
	_, err := r.Handle(ctx, textEvent("demo", "alice", "x"))
	if !errors.Is(err, context.Canceled) || rejected(err) {
		t.Errorf("error %v, want the cancellation, to be tried again", err)
	}
}

func TestRetryAfterHeader(t *testing.T) {
	now := time.Date(2026, 2, 2, 2, 40, 0, 0, time.UTC)
	for s, want := range map[string]time.Duration{
		"": 0, "5": 5 * time.Second, " 5 ": 5 * time.Second, "-5": 0, "1.5": 0, "never": 0, "99999999": 24 * time.Hour,
		"Mon, 02 Feb 2026 02:41:00 GMT": time.Minute,
		"Mon, 02 Feb 2026 02:39:00 GMT": 0,
	} {
		if got := retryAfter(s, now); got != want {
			t.Errorf("%q: %v, want %v", s, got, want)
		}
	}
}

// exampleRules is the file that users start from.
func exampleRules(t testing.TB) []byte {
	t.Helper()
	b, err := os.ReadFile("../../examples/rules.yaml")
	if err != nil {
		t.Fatal(err)
	}
	return b
}
