package bridge_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"github.com/wecom-bridge/wecom-bridge/bridge"
)

// A handler needs neither a broker nor WeCom to be tested: it is a function.
func ExampleHandler() {
	var approve bridge.Handler = func(_ context.Context, ev *bridge.Event) ([]bridge.Message, error) {
		switch ev.Text() {
		case "":
			return nil, bridge.Reject(errors.New("not a text"))
		case "busy":
			return nil, bridge.RetryAfter(30*time.Second, errors.New("the approval system is busy"))
		}
		return bridge.Reply(ev, bridge.Text("", "Received, we will come back to you.")), nil
	}

	ev := &bridge.Event{
		ID: "m-1", Type: "wecom.message.text", App: "demo",
		Data: json.RawMessage(`{"FromUserName":"alice","Content":"leave on Friday"}`),
	}
	messages, err := approve(context.Background(), ev)
	fmt.Println(messages[0].To, string(messages[0].Body), err)
	// Output: alice {"msgtype":"text","text":{"content":"Received, we will come back to you."}} <nil>
}

// Whatever WeCom's API takes can be sent; agentid and credentials are the sender's part.
func ExampleJSON() {
	m := bridge.JSON("", map[string]any{
		"touser":   "alice|bob",
		"msgtype":  "markdown",
		"markdown": map[string]string{"content": "**Build 418** passed, see <https://ci.example.com/418>"},
	})
	fmt.Println(string(m.Body))
	// Output: {"markdown":{"content":"**Build 418** passed, see <https://ci.example.com/418>"},"msgtype":"markdown","touser":"alice|bob"}
}

func ExampleEvent_Field() {
	ev := &bridge.Event{Data: json.RawMessage(`{"ApprovalInfo":{"SpNoStr":"202601010001","SpRecord":[{"SpStatus":"1"}]}}`)}
	fmt.Println(ev.Field("ApprovalInfo", "SpNoStr"), ev.Field("ApprovalInfo", "SpRecord", "SpStatus"))
	// Output: 202601010001 1
}
