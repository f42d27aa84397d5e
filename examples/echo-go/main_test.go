package main

import (
	"encoding/json"
	"testing"

	"github.com/wecom-bridge/wecom-bridge/bridge"
)

// A handler needs neither NATS nor WeCom to be tested: give it an event, look at its answer.
func TestEcho(t *testing.T) {
	var ev bridge.Event
	err := json.Unmarshal([]byte(`{
		"specversion": "1.0", "id": "m-7100000000000000001", "source": "/wecom/ww00aa11bb22cc33dd/demo",
		"type": "wecom.message.text", "subject": "alice", "app": "demo",
		"data": {"FromUserName": "alice", "MsgType": "text", "Content": "1 < 2, 你好 😀"}
	}`), &ev)
	if err != nil {
		t.Fatal(err)
	}
	messages, err := echo(t.Context(), &ev)
	if err != nil {
		t.Fatal(err)
	}
	if len(messages) != 1 {
		t.Fatalf("got %d messages, want 1", len(messages))
	}
	if got, want := messages[0].To, "alice"; got != want {
		t.Errorf("to: got %q, want %q", got, want)
	}
	if got, want := string(messages[0].Body), `{"msgtype":"text","text":{"content":"1 < 2, 你好 😀"}}`; got != want {
		t.Errorf("body: got %s, want %s", got, want)
	}
}
