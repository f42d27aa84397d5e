package worker

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"net/url"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"
)

const (
	defaultCallTimeout = 10 * time.Second
	maxCallTimeout     = 5 * time.Minute
)

// LoadRules reads a rules file, YAML, whose name is used in errors only:
//
//	rules:
//	  - name: greeting
//	    when: {type: message.text, keyword: [hi, hello]}
//	    reply: {text: "Hello {{.User}}, you said: {{.Text}}"}
//	  - name: restart-job
//	    when: {type: event.click, key: RESTART_JOB}
//	    call: {url: "http://jobs.internal/restart", timeout: 10s}
//
// The conditions of "when" must all hold; each takes one value or a list of which one
// must fit: app; type (without "wecom.", and with ".*" at its end for all below);
// keyword (anywhere in the text, in any case); equals (the whole text); prefix; regexp
// (Go's syntax, anywhere in the text); key (EventKey of a click). An empty or missing
// "when" fits every event.
//
// A rule has a reply or a call. The reply's text is a text/template over .User .Text
// .Key .App and .Data, WeCom's payload; a name that the payload lacks gives nothing.
//
// A call posts the event as application/cloudevents+json and follows no redirect. The
// timeout is 10s if not given and at most 5m. An answer 2xx is empty or
// {"messages":[…]}, at most 1 MiB: bodies of WeCom's API, sent to the event's member if
// they name nobody, through message/send unless they hold an "api". Failures of the
// network, 408, 425, 429 and 5xx are tried again, 429 and 503 after their Retry-After;
// every other answer rejects the event.
//
// The error has a line "<name>:<line>: <mistake>" for every mistake in the file.
func LoadRules(name string, src []byte) (*Rules, error) {
	l := loader{file: name}
	rules := l.load(src)
	if len(l.mistakes) > 0 {
		slices.SortStableFunc(l.mistakes, func(a, b mistake) int { return cmp.Compare(a.line, b.line) })
		var errs []error
		for _, m := range l.mistakes {
			errs = append(errs, fmt.Errorf("%s:%d: %s", name, m.line, m.what))
		}
		return nil, errors.Join(errs...)
	}
	return &Rules{rules: rules, http: newCallClient()}, nil
}

type mistake struct {
	line int
	what string
}

// loader walks the nodes of a file and collects what is wrong with them.
type loader struct {
	file     string
	mistakes []mistake
	where    string // what the node belongs to, for the mistakes
}

func (l *loader) wrong(n *yaml.Node, format string, args ...any) {
	l.mistakes = append(l.mistakes, mistake{max(n.Line, 1), l.where + fmt.Sprintf(format, args...)})
}

var (
	yamlLine   = regexp.MustCompile(`^yaml: (?:line (\d+): )?`)
	yamlParser = regexp.MustCompile(`^did not find expected (<|node content|'-' indicator|key|',' or )`)
	yamlAnchor = regexp.MustCompile(`^unknown anchor '(.*)' referenced`)
)

// yamlError tells where a syntax error is and what it is. The parser's own errors
// count lines from 0, its scanner's from 1, and an unknown anchor comes without one.
func yamlError(err error, src []byte) (line int, text string) {
	text = err.Error()
	if m := yamlLine.FindStringSubmatch(text); m != nil {
		line, _ = strconv.Atoi(m[1]) // digits, or nothing: line 1
		text = text[len(m[0]):]
	}
	if yamlParser.MatchString(text) {
		line++
	}
	if m := yamlAnchor.FindStringSubmatch(text); m != nil {
		if before, _, ok := bytes.Cut(src, []byte("*"+m[1])); ok {
			line = 1 + bytes.Count(before, []byte("\n"))
		}
	}
	return line, text
}

func (l *loader) load(src []byte) []rule {
	dec := yaml.NewDecoder(bytes.NewReader(src))
	var doc yaml.Node
	switch err := dec.Decode(&doc); {
	case errors.Is(err, io.EOF):
		l.wrong(&yaml.Node{}, "the file is empty: it needs the key rules")
		return nil
	case err != nil:
		line, text := yamlError(err, src)
		l.wrong(&yaml.Node{Line: line}, "not YAML: %s", text)
		return nil
	}
	var rules []rule
	root := follow(doc.Content[0])
	l.mapping(root, "the file", []entry{{"rules", true, func(n *yaml.Node) {
		if n.Kind != yaml.SequenceNode {
			l.wrong(n, "rules: want a list, not %s", kind(n))
			return
		}
		names := make(map[string]int)
		for i, item := range n.Content {
			rules = append(rules, l.rule(follow(item), i, names))
		}
	}}})
	var more yaml.Node
	if err := dec.Decode(&more); !errors.Is(err, io.EOF) {
		l.wrong(&more, "the file holds a second document (---): only one is read")
	}
	return rules
}

func (l *loader) rule(n *yaml.Node, i int, names map[string]int) rule {
	ru := rule{name: fmt.Sprintf("#%d", i+1)}
	if n.Kind == yaml.MappingNode { // the name first: the other mistakes mention it
		for j := 0; j+1 < len(n.Content); j += 2 {
			if v := follow(n.Content[j+1]); n.Content[j].Value == "name" && v.Kind == yaml.ScalarNode && v.Value != "" && v.Tag != "!!null" {
				ru.name = v.Value
			}
		}
	}
	l.where = fmt.Sprintf("rule %q: ", ru.name)
	defer func() { l.where = "" }()

	var actions int
	l.mapping(n, "a rule", []entry{
		{"name", false, func(v *yaml.Node) {
			name, ok := l.scalar(v, "name")
			if !ok {
				return
			}
			if first, dup := names[name]; dup {
				l.wrong(v, "name: stands already at line %d", first)
				return
			}
			names[name] = v.Line
		}},
		{"when", false, func(v *yaml.Node) { l.when(v, &ru) }},
		{"reply", false, func(v *yaml.Node) {
			actions++
			l.mapping(v, "reply", []entry{{"text", true, func(v *yaml.Node) {
				text, ok := l.scalar(v, "text")
				if !ok {
					return
				}
				t, err := parseTemplate("text", text)
				if err != nil {
					l.wrong(v, "text: %v", err)
				}
				ru.reply = t
			}}})
		}},
		{"call", false, func(v *yaml.Node) {
			actions++
			ru.call = l.call(v)
		}},
	})
	if n.Kind == yaml.MappingNode {
		switch actions {
		case 0:
			l.wrong(n, "has neither reply nor call")
		case 2:
			l.wrong(n, "has both reply and call")
		}
	}
	return ru
}

func (l *loader) when(n *yaml.Node, ru *rule) {
	if n.Kind == yaml.ScalarNode && n.Tag == "!!null" {
		return // "when:" with nothing behind it: every event
	}
	list := func(name string, into *[]string, check func(*yaml.Node, string) string) entry {
		return entry{name, false, func(v *yaml.Node) {
			items := []*yaml.Node{v}
			if v.Kind == yaml.SequenceNode {
				if items = v.Content; len(items) == 0 {
					l.wrong(v, "%s: the list is empty, so the rule would never match", name)
				}
			}
			for _, it := range items {
				it = follow(it)
				if s, ok := l.scalar(it, name); ok {
					*into = append(*into, check(it, s))
				}
			}
		}}
	}
	plain := func(_ *yaml.Node, s string) string { return s }
	var patterns []string
	l.mapping(n, "when", []entry{
		list("app", &ru.apps, func(n *yaml.Node, s string) string {
			if !appName.MatchString(s) {
				l.wrong(n, "app: %q is not the name of an app (a-z 0-9 -)", s)
			}
			return s
		}),
		list("type", &ru.types, func(n *yaml.Node, s string) string {
			s = strings.TrimPrefix(s, "wecom.")
			if what := badType(s); what != "" {
				l.wrong(n, "type: %q %s", s, what)
			}
			return s
		}),
		list("keyword", &ru.keywords, func(_ *yaml.Node, s string) string { return strings.ToLower(s) }),
		list("equals", &ru.equals, plain),
		list("prefix", &ru.prefixes, plain),
		list("regexp", &patterns, func(n *yaml.Node, s string) string {
			re, err := regexp.Compile(s)
			if err != nil {
				l.wrong(n, "regexp: %s", strings.TrimPrefix(err.Error(), "error parsing regexp: "))
				return s
			}
			ru.regexps = append(ru.regexps, re)
			return s
		}),
		list("key", &ru.keys, plain),
	})
}

// families are the first words of event types.
var families = []string{"message", "event", "suite", "aibot", "kf", "payment", "hardware", "media", "unknown"}

// badType says what is wrong with the type of a condition, or "".
func badType(s string) string {
	if s == "*" {
		return ""
	}
	parts := strings.Split(s, ".")
	if last := len(parts) - 1; last > 0 && parts[last] == "*" {
		parts = parts[:last]
	}
	for _, p := range parts {
		switch {
		case p == "":
			return "has an empty part"
		case strings.Contains(p, "*"):
			return `may have a * only as its last part, as in "event.*"`
		}
	}
	if !slices.Contains(families, parts[0]) {
		return "is no type of event: the first word is one of " + strings.Join(families, ", ")
	}
	return ""
}

func (l *loader) call(n *yaml.Node) *call {
	c := &call{timeout: defaultCallTimeout}
	l.mapping(n, "call", []entry{
		{"url", true, func(v *yaml.Node) {
			s, ok := l.scalar(v, "url")
			if !ok {
				return
			}
			// What is wrong is told without the URL, which may hold a password.
			u, err := url.Parse(s)
			switch {
			case strings.Contains(s, "{{"):
				l.wrong(v, "url: is taken literally, templates do not work here")
			case err != nil:
				l.wrong(v, "url: %v", withoutURL(err))
			case u.Scheme != "http" && u.Scheme != "https":
				l.wrong(v, "url: must start with http:// or https://")
			case u.Hostname() == "":
				l.wrong(v, "url: has no host")
			case u.Fragment != "":
				l.wrong(v, "url: the part behind # is never sent")
			}
			c.url = s
		}},
		{"timeout", false, func(v *yaml.Node) {
			s, ok := l.scalar(v, "timeout")
			if !ok {
				return
			}
			d, err := time.ParseDuration(s)
			switch {
			case err != nil:
				l.wrong(v, "timeout: %q is not a duration such as 10s or 1m30s", s)
			case d <= 0 || d > maxCallTimeout:
				l.wrong(v, "timeout: must be more than 0 and at most %v", maxCallTimeout)
			}
			c.timeout = d
		}},
	})
	return c
}

// entry is one key that a mapping may have.
type entry struct {
	name     string
	required bool
	read     func(*yaml.Node)
}

// mapping reads a mapping whose keys are those of entries and no others.
func (l *loader) mapping(n *yaml.Node, what string, entries []entry) {
	if n.Kind != yaml.MappingNode {
		l.wrong(n, "%s: want a mapping, not %s", what, kind(n))
		return
	}
	seen := make(map[string]int)
	for i := 0; i+1 < len(n.Content); i += 2 {
		key, value := n.Content[i], follow(n.Content[i+1])
		e := slices.IndexFunc(entries, func(e entry) bool { return e.name == key.Value })
		switch first, dup := seen[key.Value]; {
		case e < 0:
			l.wrong(key, "unknown key %q in %s: there are %s", key.Value, what, names(entries))
		case dup:
			l.wrong(key, "%s: stands already at line %d", key.Value, first)
		default:
			seen[key.Value] = key.Line
			if value.Line == 0 {
				value.Line = key.Line
			}
			entries[e].read(value)
		}
	}
	for _, e := range entries {
		if _, ok := seen[e.name]; e.required && !ok {
			l.wrong(n, "%s: the key %s is missing", what, e.name)
		}
	}
}

// scalar reads a value that is written as one word or text. A number or a boolean
// counts as its text: `equals: 1` is what somebody types.
func (l *loader) scalar(n *yaml.Node, what string) (string, bool) {
	switch {
	case n.Kind != yaml.ScalarNode || n.Tag == "!!null" || n.Tag == "!!binary":
		l.wrong(n, "%s: want a text, not %s", what, kind(n))
	case n.Value == "":
		l.wrong(n, "%s: is empty", what)
	default:
		return n.Value, true
	}
	return "", false
}

func names(entries []entry) string {
	var s []string
	for _, e := range entries {
		s = append(s, e.name)
	}
	return strings.Join(s, ", ")
}

func kind(n *yaml.Node) string {
	switch {
	case n.Kind == yaml.MappingNode:
		return "a mapping"
	case n.Kind == yaml.SequenceNode:
		return "a list"
	case n.Tag == "!!null":
		return "nothing"
	case n.Tag == "!!binary":
		return "binary data"
	}
	return "a text"
}

// follow returns what an alias stands for.
func follow(n *yaml.Node) *yaml.Node {
	if n.Kind == yaml.AliasNode {
		return n.Alias
	}
	return n
}
