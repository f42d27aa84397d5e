package bridge

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strings"
	"testing"
	"time"
)

// contractEvent is the example of docs/architecture.md, as the gateway writes it.
const contractEvent = `{"specversion":"1.0","id":"m-7100000000000000001","source":"/wecom/ww00aa11bb22cc33dd/demo","type":"wecom.message.text",` +
	`"subject":"alice","time":"2026-02-02T02:40:01Z","datacontenttype":"application/json",` +
	`"app":"demo","corpid":"ww00aa11bb22cc33dd","agentid":"1000002","partitionkey":"alice",` +
	`"data":{"ToUserName":"ww00aa11bb22cc33dd","FromUserName":"alice","CreateTime":"1770000001","MsgType":"text","Content":"status?","MsgId":"7100000000000000001","AgentID":"1000002"}}`

func TestEventIsReadAndWrittenAsTheContractSays(t *testing.T) {
	var ev Event
	if err := json.Unmarshal([]byte(contractEvent), &ev); err != nil {
		t.Fatal(err)
	}
	if got := string(ev.AppendJSON(nil)); got != contractEvent {
		t.Errorf("got  %s\nwant %s", got, contractEvent)
	}
	if ev.User() != "alice" || ev.Text() != "status?" || ev.Key() != "" {
		t.Errorf("got user %q, text %q, key %q", ev.User(), ev.Text(), ev.Key())
	}
	if want := time.Date(2026, 2, 2, 2, 40, 1, 0, time.UTC); !ev.Time.Equal(want) {
		t.Errorf("got time %v, want %v", ev.Time, want)
	}
}

func TestEventKeepsOddText(t *testing.T) {
	in := Event{
		ID: `m-"\`, Source: "/wecom/x/y", Type: "wecom.event.a<b>", Subject: "张三\n\x00", App: "y",
		Time: time.Unix(1770000001, 0).UTC(), DataContentType: "text/plain", DataBase64: []byte{0xff, 0},
	}
	b := in.AppendJSON(nil)
	var out Event
	if err := json.Unmarshal(b, &out); err != nil {
		t.Fatalf("%s: %v", b, err)
	}
	if !reflect.DeepEqual(in, out) {
		t.Errorf("got  %+v\nwant %+v", out, in)
	}
}

func TestEventRefusesWhatIsNone(t *testing.T) {
	for _, in := range []string{`{}`, `[]`, `{"specversion":"0.3","id":"a","source":"b","type":"c"}`, `{"specversion":"1.0","source":"b","type":"c"}`} {
		if err := json.Unmarshal([]byte(in), new(Event)); err == nil {
			t.Errorf("%s: got no error", in)
		}
	}
	bad := Event{ID: "x", Data: json.RawMessage("{")}
	if _, err := json.Marshal(&bad); err == nil {
		t.Error("an event with broken data was encoded")
	}
}

func TestFieldReadsTheTree(t *testing.T) {
	ev := Event{Data: json.RawMessage(`{"ApprovalInfo":{"SpNoStr":"202601","SpRecord":[{"SpStatus":"1"},{"SpStatus":"2"}]},"n":12,"b":true,"empty":"","none":null}`)}
	for _, c := range []struct {
		path []string
		want string
	}{
		{[]string{"ApprovalInfo", "SpNoStr"}, "202601"},
		{[]string{"ApprovalInfo", "SpRecord", "SpStatus"}, "1"},
		{[]string{"ApprovalInfo"}, ""},
		{[]string{"approvalinfo", "SpNoStr"}, ""},
		{[]string{"n"}, "12"},
		{[]string{"b"}, "true"},
		{[]string{"empty"}, ""},
		{[]string{"none"}, ""},
		{[]string{"n", "deeper"}, ""},
		{[]string{"missing"}, ""},
	} {
		if got := ev.Field(c.path...); got != c.want {
			t.Errorf("Field(%q): got %q, want %q", c.path, got, c.want)
		}
	}
	if got := (&Event{}).Field("x"); got != "" {
		t.Errorf("no data: got %q", got)
	}
}

func TestUserOfEverySource(t *testing.T) {
	for in, want := range map[string]string{
		`{"FromUserName":"alice"}`:   "alice",
		`{"FromUserName":"sys"}`:     "",
		`{"from":{"userid":"wo_x"}}`: "wo_x",
		`{"Token":"t"}`:              "",
	} {
		if got := (&Event{Data: json.RawMessage(in)}).User(); got != want {
			t.Errorf("%s: got %q, want %q", in, got, want)
		}
	}
}

func FuzzEvent(f *testing.F) {
	f.Add([]byte(contractEvent))
	f.Add([]byte(`{"specversion":"1.0","id":"a","source":"b","type":"c","data":[[[]]]}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		var ev, again Event
		if json.Unmarshal(b, &ev) != nil {
			return
		}
		_, _, _, _ = ev.User(), ev.Text(), ev.Key(), ev.Field("a", "b")
		out := ev.AppendJSON(nil)
		if err := json.Unmarshal(out, &again); err != nil {
			t.Fatalf("%s: %v", out, err)
		}
		if !bytes.Equal(again.AppendJSON(nil), out) {
			t.Fatalf("not stable: %s", out)
		}
	})
}

func TestMessageBecomesABody(t *testing.T) {
	for _, c := range []struct {
		name      string
		m         Message
		body, key string
	}{
		{"text", Text("Alice", `see <a href="x">&</a>`), `{"touser":"Alice","msgtype":"text","text":{"content":"see <a href=\"x\">&</a>"}}`, "alice"},
		{"body names the member", JSON("", map[string]string{"touser": "bob"}), `{"touser":"bob"}`, "bob"},
		{"body wins over To", Message{To: "alice", Body: json.RawMessage(`{"totag":"3"}`)}, `{"totag":"3"}`, ""},
		{"several", JSON("", map[string]string{"touser": "bob|al"}), `{"touser":"bob|al"}`, ""},
		{"everybody", JSON("", map[string]string{"touser": "@all"}), `{"touser":"@all"}`, ""},
		{"chat", JSON("appchat/send", map[string]string{"chatid": "Room1"}), `{"chatid":"Room1"}`, "Room1"},
		{"raw is kept", Message{To: "bob", Body: json.RawMessage(" \n{ \"agentid\": 1.0 } ")}, "{\"touser\":\"bob\",\"agentid\": 1.0 } ", "bob"},
		{"empty object", Message{To: "bob", Body: json.RawMessage(`{ }`)}, `{"touser":"bob"}`, "bob"},
	} {
		body, key, err := c.m.seal()
		if err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if string(body) != c.body || key != c.key {
			t.Errorf("%s: got %s with key %q\nwant %s with key %q", c.name, body, key, c.body, c.key)
		}
	}
}

func TestMessageMistakes(t *testing.T) {
	for name, m := range map[string]Message{
		"no body":          {To: "bob"},
		"not an object":    {To: "bob", Body: json.RawMessage(`[1]`)},
		"null":             {To: "bob", Body: json.RawMessage(`null`)},
		"broken":           {To: "bob", Body: json.RawMessage(`{"a":`)},
		"cannot be coded":  JSON("", map[string]any{"f": func() {}}),
		"path that climbs": JSON("../token", map[string]string{}),
		"blank in the ID":  {ID: "a b", Body: json.RawMessage(`{}`)},
		"nobody to answer": Reply(&Event{ID: "m-1", Data: json.RawMessage(`{"FromUserName":"sys"}`)}, Text("", "x"))[0],
	} {
		if _, _, err := m.seal(); err == nil {
			t.Errorf("%s: got no error", name)
		}
	}
}

func TestReplyFillsOnlyEmptyRecipients(t *testing.T) {
	ev := &Event{Data: json.RawMessage(`{"FromUserName":"alice"}`)}
	ms := Reply(ev, Text("", "a"), Text("bob", "b"), JSON("", map[string]string{"toparty": "7"}))
	for i, want := range []string{"alice", "bob", ""} {
		if ms[i].To != want {
			t.Errorf("message %d: got To %q, want %q", i, ms[i].To, want)
		}
	}
	if len(Reply(ev)) != 0 {
		t.Error("no messages must stay no messages")
	}
}

func TestReceiptIsReadFromItsEvent(t *testing.T) {
	r, err := decodeReceipt([]byte(`{"specversion":"1.0","type":"wecom.receipt.partial","id":"m-1/bot/0","data":{"message":"m-1/bot/0","event":"m-1","api":"message/send","errcode":0,"msgid":"x","invalid":{"user":["bob"]},"attempts":2,"took_ms":31}}`))
	if err != nil {
		t.Fatal(err)
	}
	if r.Status != Partial || r.Event != "m-1" || len(r.Invalid.User) != 1 || r.Attempts != 2 {
		t.Errorf("got %+v", r)
	}
	if _, err := decodeReceipt([]byte(`{"type":"wecom.message.text"}`)); err == nil || !strings.Contains(err.Error(), "wecom.message.text") {
		t.Errorf("another event: got %v", err)
	}
}
