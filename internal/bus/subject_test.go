package bus_test

import (
	"fmt"
	"strconv"
	"strings"
	"testing"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/bus/bustest"
)

func TestToken(t *testing.T) {
	for in, want := range map[string]string{
		"":                       "-",
		"-":                      "-",
		"alice":                  "alice",
		"Zhang_San-1":            "Zhang_San-1",
		"a.b *":                  "=YS5iICo",
		"zhang.san@corp":         "=emhhbmcuc2FuQGNvcnA",
		"张三":                     "=5byg5LiJ",
		"=YS5iICo":               "=PVlTNWlJQ28",
		strings.Repeat("a", 64):  strings.Repeat("a", 64),
		strings.Repeat("a", 65):  "=" + "YWFh" + strings.Repeat("YWFh", 20) + "YWE",
		"\x00\xff":               "=AP8",
		"change_contact":         "change_contact",
		"wecom.message.text":     "=d2Vjb20ubWVzc2FnZS50ZXh0",
		"sys_approval_change":    "sys_approval_change",
		"template_card_event>\n": "=dGVtcGxhdGVfY2FyZF9ldmVudD4K",
	} {
		if got := bus.Token(in); got != want {
			t.Errorf("Token(%q): got %q, want %q", in, got, want)
		}
	}
	if n := testing.AllocsPerRun(100, func() { bus.Token("zhangsan") }); n != 0 {
		t.Errorf("Token of a plain value: %v allocations, want 0", n)
	}
}

func TestUntokenRefuses(t *testing.T) {
	for _, s := range []string{"", "=", "a.b", "a b", "=YS5iICo=", "=YWxpY2U", "=YS5iICp", "=!", "*", ">", strings.Repeat("a", 65)} {
		if got, ok := bus.Untoken(s); ok {
			t.Errorf("Untoken(%q): got %q, want a refusal", s, got)
		}
	}
}

func FuzzToken(f *testing.F) {
	for _, s := range []string{"", "-", "alice", "a.b *", "张三", "=YS5iICo", "\xff", strings.Repeat("x", 65)} {
		f.Add(s, "alice")
	}
	f.Fuzz(func(t *testing.T, a, b string) {
		ta, tb := bus.Token(a), bus.Token(b)
		if ta == "" || strings.ContainsAny(ta, ".*> \t\r\n\x00") || strings.ContainsFunc(ta, func(r rune) bool { return r > '~' || r < '!' }) {
			t.Fatalf("Token(%q) = %q is not a token of a subject", a, ta)
		}
		// The empty string is the one that shares its token.
		norm := func(s string) string {
			if s == "" {
				return "-"
			}
			return s
		}
		if ta == tb && norm(a) != norm(b) {
			t.Fatalf("Token(%q) = Token(%q) = %q", a, b, ta)
		}
		if back, ok := bus.Untoken(ta); !ok || back != norm(a) {
			t.Fatalf("Untoken(%q): got %q %v, want %q", ta, back, ok, norm(a))
		}
		if slot := bus.Slot(a, b); slot < 0 || slot >= bus.Slots {
			t.Fatalf("Slot(%q, %q) = %d", a, b, slot)
		}
	})
}

func TestSubjects(t *testing.T) {
	for got, want := range map[string]string{
		bus.EventSubject(17, "demo", []string{"message", "text"}):                       "wecom.event.17.demo.message.text",
		bus.EventSubject(5, "demo", []string{"event", "change_contact", "create_user"}): "wecom.event.5.demo.event.change_contact.create_user",
		bus.EventSubject(0, "demo", []string{"event", "a.b *"}):                         "wecom.event.0.demo.event.=YS5iICo",
		bus.OutboxSubject("demo", "alice"):                                              "wecom.outbox.demo.alice",
		bus.OutboxSubject("demo", ""):                                                   "wecom.outbox.demo.-",
		bus.OutboxSubject("demo", "a.b *"):                                              "wecom.outbox.demo.=YS5iICo",
		bus.ReceiptSubject("demo", "sent", "m-1/bot/0"):                                 "wecom.receipt.demo.sent.=bS0xL2JvdC8w",
		bus.ReceiptSubject("demo", "*", "m-1"):                                          "wecom.receipt.demo.*.m-1",
		bus.DeadSubject(bus.StreamEvents, "bot"):                                        "wecom.dead.WECOM_EVENTS.bot",
		bus.ProbeSubject("gw-1"):                                                        "wecom.probe.gw-1",
	} {
		if got != want {
			t.Errorf("got %s, want %s", got, want)
		}
	}
}

// The server's partition() is what the outbox is spread with; Slot has to agree.
func TestSlotIsTheServersPartition(t *testing.T) {
	b := provisioned(t, bustest.Start(t).URL())
	keys := []string{"", "-", "alice", "ALICE", "bob", "zhangsan", "张三", "王小明", "a.b *", "zhang.san@corp.example", "=YS5iICo",
		strings.Repeat("长", 30), strings.Repeat("k", 64), strings.Repeat("k", 65), "wrOIDAAAA1234567890", "\xff\xfe"}
	for i := range 200 {
		keys = append(keys, "user"+strconv.Itoa(i))
	}
	for _, app := range []string{"demo", "a", "hr-2", "0123456789-0123456789-0123456789"} {
		for _, key := range keys {
			a := publish(t, b, bus.Msg{Subject: bus.OutboxSubject(app, key), Data: []byte("{}")})
			s, err := b.Get(t.Context(), bus.StreamOutbox, a.Seq)
			if err != nil {
				t.Fatal(err)
			}
			want := fmt.Sprintf("wecom.outbox.%d.%s.%s", bus.Slot(app, key), bus.Token(app), bus.Token(key))
			if s.Subject != want {
				t.Errorf("%q %q: the server stores %s, Slot gives %s", app, key, s.Subject, want)
			}
		}
	}
}

// The values that other programs may have computed.
func TestSlotValues(t *testing.T) {
	for _, tc := range []struct {
		app, key string
		want     int
	}{
		{"demo", "alice", 30}, {"demo", "", 1}, {"demo", "张三", 12}, {"demo", "a.b *", 20},
	} {
		if got := bus.Slot(tc.app, tc.key); got != tc.want {
			t.Errorf("Slot(%q, %q): got %d, want %d", tc.app, tc.key, got, tc.want)
		}
	}
	if a, b := bus.Slot("demo", ""), bus.Slot("demo", "-"); a != b {
		t.Errorf("no key: %d, key -: %d", a, b)
	}
}
