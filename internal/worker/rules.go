package worker

import (
	"context"
	"fmt"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"text/template"

	"github.com/wecom-bridge/wecom-bridge/bridge"
)

// Rules decide what the built-in handler answers. The first rule whose conditions all
// hold for an event answers it; when none does, nobody answers. Rules do not change
// once loaded and may be used by any number of goroutines.
type Rules struct {
	rules []rule
	http  *http.Client
}

// Len returns the number of rules.
func (r *Rules) Len() int { return len(r.rules) }

// rule is one rule of the file, checked and compiled. Every condition that is not
// empty must hold; of its values one must.
type rule struct {
	name string

	apps     []string
	types    []string // without "wecom."; with ".*" at the end for all below
	keywords []string // in lower case
	equals   []string
	prefixes []string
	regexps  []*regexp.Regexp
	keys     []string

	reply *template.Template // or
	call  *call
}

// Handle is a [bridge.Handler]: it answers ev as the first matching rule says.
//
// A reply goes to the member who caused the event; an event without one is rejected, as
// is one that the rule's template fails on. A reply without text is none. What a call
// answers, and which of its failures are tried again, is told at [LoadRules].
func (r *Rules) Handle(ctx context.Context, ev *bridge.Event) ([]bridge.Message, error) {
	v := newView(ev)
	for i := range r.rules {
		ru := &r.rules[i]
		if !ru.matches(v) {
			continue
		}
		var ms []bridge.Message
		var f *failure
		if ru.call != nil {
			ms, f = ru.call.do(ctx, r.http, ev)
		} else {
			ms, f = ru.answer(ev, v)
		}
		if f != nil {
			f.err = fmt.Errorf("rule %q: %w", ru.name, f.err)
			return nil, f.verdict()
		}
		return ms, nil
	}
	return nil, nil
}

func (ru *rule) answer(ev *bridge.Event, v *view) ([]bridge.Message, *failure) {
	var text strings.Builder
	if err := ru.reply.Execute(&text, v.fields()); err != nil {
		return nil, final("reply: %w", err)
	}
	if strings.TrimSpace(text.String()) == "" {
		return nil, nil
	}
	if ev.User() == "" {
		return nil, final("event %s has no member to reply to", ev.ID)
	}
	return bridge.Reply(ev, bridge.Text("", text.String())), nil
}

func (ru *rule) matches(v *view) bool {
	return holds(ru.apps, func(s string) bool { return s == v.ev.App }) &&
		holds(ru.types, v.hasType) &&
		holds(ru.equals, func(s string) bool { return v.text == s }) &&
		holds(ru.prefixes, func(s string) bool { return strings.HasPrefix(v.text, s) }) &&
		holds(ru.keywords, func(s string) bool { return strings.Contains(v.lower(), s) }) &&
		holds(ru.regexps, func(re *regexp.Regexp) bool { return v.text != "" && re.MatchString(v.text) }) &&
		holds(ru.keys, func(s string) bool { return v.eventKey() == s })
}

// holds reports whether a condition holds: it was not given, or one of its values fits.
func holds[T any](values []T, fits func(T) bool) bool {
	return len(values) == 0 || slices.ContainsFunc(values, fits)
}

// view is an event as conditions and templates see it.
type view struct {
	ev        *bridge.Event
	kind      string // the type without "wecom."
	text      string
	lowered   string
	key       string
	keyLooked bool
}

func newView(ev *bridge.Event) *view {
	return &view{ev: ev, kind: strings.TrimPrefix(ev.Type, "wecom."), text: ev.Text()}
}

func (v *view) hasType(want string) bool {
	if family, ok := strings.CutSuffix(want, "*"); ok {
		return strings.HasPrefix(v.kind, family)
	}
	return v.kind == want
}

func (v *view) lower() string {
	if v.lowered == "" {
		v.lowered = strings.ToLower(v.text)
	}
	return v.lowered
}

func (v *view) eventKey() string {
	if !v.keyLooked {
		v.key, v.keyLooked = v.ev.Key(), true
	}
	return v.key
}

// fields are what a template can name.
type fields struct {
	User string // who caused the event; "" for nobody
	Text string // what they wrote
	Key  string // EventKey of a menu click or a card's button
	App  string
	Data any // WeCom's payload under WeCom's own names
}

func (v *view) fields() fields {
	f := fields{User: v.ev.User(), Text: v.text, Key: v.eventKey(), App: v.ev.App}
	if len(v.ev.Data) > 0 {
		f.Data = decodeData(v.ev.Data)
	}
	return f
}
