package worker

import (
	"encoding/json"
	"maps"
	"strings"
	"testing"
)

func TestObjectEdits(t *testing.T) {
	for _, tt := range []struct {
		name, src string
		edit      func(*object)
		want      string
	}{
		{"nothing", " {\"a\" : 1 , \"b\":[ ] }\n", func(*object) {}, "{\"a\" : 1 , \"b\":[ ] }"},
		{"append", `{"text":{"content":"<a href=\"x\">你好</a> & \u003c"} }`, func(o *object) { o.set("agentid", "7") },
			`{"text":{"content":"<a href=\"x\">你好</a> & \u003c"},"agentid":7 }`},
		{"append to the empty", `{ }`, func(o *object) { o.set("agentid", "7") }, `{"agentid":7 }`},
		{"replace", `{"a":1, "agentid" : null,"b":2}`, func(o *object) { o.set("agentid", "7") }, `{"a":1, "agentid" : 7,"b":2}`},
		{"replace several", `{"x":1,"a":1,"x":2,"x":3}`, func(o *object) { o.set("x", "7") }, `{"x":7,"a":1}`},
		{"big number", `{"n":12345678901234567890.1000}`, func(o *object) { o.set("a", "1") }, `{"n":12345678901234567890.1000,"a":1}`},
		{"nested name", `{"text":{"agentid":1}}`, func(o *object) { o.set("agentid", "7") }, `{"text":{"agentid":1},"agentid":7}`},
		{"escaped name", `{"\u0061gentid":1}`, func(o *object) { o.set("agentid", "7") }, `{"\u0061gentid":7}`},
		{"name with quotes", `{"a\"b":1,"c":2}`, func(o *object) { o.set("c", "7") }, `{"a\"b":1,"c":7}`},
		{"remove first", `{"api":"x", "a":1}`, func(o *object) { o.remove("api") }, `{"a":1}`},
		{"remove last", `{"a":1 , "api":"x" }`, func(o *object) { o.remove("api") }, `{"a":1 }`},
		{"remove middle", `{"a":1,"api":"x","b":2}`, func(o *object) { o.remove("api") }, `{"a":1,"b":2}`},
		{"remove only", `{ "api":"x" }`, func(o *object) { o.remove("api") }, `{  }`},
		{"remove all of a name", `{"api":1,"api":2,"a":3,"api":4}`, func(o *object) { o.remove("api") }, `{"a":3}`},
		{"remove what is not there", `{"a":1}`, func(o *object) { o.remove("api") }, `{"a":1}`},
	} {
		o, err := parseObject([]byte(tt.src))
		if err != nil {
			t.Errorf("%s: %v", tt.name, err)
			continue
		}
		if tt.edit(o); string(o.src) != tt.want {
			t.Errorf("%s:\ngot  %s\nwant %s", tt.name, o.src, tt.want)
		}
	}
}

func TestObjectReads(t *testing.T) {
	o, err := parseObject([]byte(`{"a":"x","a":"y","n":1,"z":null,"e":"","o":{"a":"no"}}`))
	if err != nil {
		t.Fatal(err)
	}
	if got := o.text("a"); got != "y" {
		t.Errorf("text of a repeated member is %q, want the last", got)
	}
	if got := o.text("n"); got != "" {
		t.Errorf("text of a number is %q", got)
	}
	for name, want := range map[string]bool{"a": true, "n": true, "o": true, "z": false, "e": false, "q": false} {
		if o.has(name) != want {
			t.Errorf("has(%q) is %v", name, !want)
		}
	}
}

func TestParseObjectRefuses(t *testing.T) {
	for _, src := range []string{``, ` `, `null`, `[]`, `"{}"`, `{`, `{}}`, `{}{}`, `{"a"}`, `{"a":}`, `{"a":1,}`, `{a:1}`, "\xEF\xBB\xBF{}", `{"a":01}`} {
		if _, err := parseObject([]byte(src)); err == nil {
			t.Errorf("%q was accepted", src)
		} else if src != "" && src != " " && strings.Contains(err.Error(), src) {
			t.Errorf("error %q quotes the body", err)
		}
	}
}

func FuzzObject(f *testing.F) {
	f.Add(`{"touser":"alice","text":{"content":"hi"}}`, "agentid")
	f.Add(` { "a" : [1,{"b":2}] , "agentid" : 3 } `, "a")
	f.Fuzz(func(t *testing.T, src, name string) {
		o, err := parseObject([]byte(src))
		if err != nil {
			return
		}
		decode := func(b []byte) map[string]json.RawMessage {
			var m map[string]json.RawMessage
			if err := json.Unmarshal(b, &m); err != nil {
				t.Fatalf("%q became %q: %v", src, b, err)
			}
			return m
		}
		same := func(a, b json.RawMessage) bool { return string(a) == string(b) }
		before := decode([]byte(src))
		if strings.ContainsFunc(name, func(c rune) bool { return c < ' ' || c > '~' || c == '"' || c == '\\' }) {
			return // only our own plain names are ever set
		}
		o.set(name, "7")
		after := decode(o.src)
		if string(after[name]) != "7" {
			t.Errorf("%q: set(%q) gave %q", src, name, o.src)
		}
		before[name] = json.RawMessage("7")
		if !maps.EqualFunc(before, after, same) {
			t.Errorf("%q: set(%q) gave %q", src, name, o.src)
		}
		o.remove(name)
		delete(before, name)
		if after := decode(o.src); !maps.EqualFunc(before, after, same) {
			t.Errorf("%q: remove(%q) gave %q", src, name, o.src)
		}
	})
}
