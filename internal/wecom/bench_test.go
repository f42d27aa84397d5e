package wecom

import (
	"strings"
	"testing"
)

// benchCallback returns a text message as WeCom sends it, in a body of some 700 bytes.
func benchCallback(tb testing.TB) (c *Callback, rawQuery string, body []byte) {
	tb.Helper()
	p := Pair{Token: "bridgeTestToken01", AESKey: "cDABxbEVlOg4E27hCkil7REurqnKgeFtwX8Pt2FGxzB"}
	c, err := NewCallback([]Pair{p}, []string{"ww00aa11bb22cc33dd"})
	if err != nil {
		tb.Fatal(err)
	}
	const timestamp, nonce = "1770000001", "1597212914"
	encrypt, signature, err := Seal(p, "ww00aa11bb22cc33dd", timestamp, nonce, []byte(benchPlain))
	if err != nil {
		tb.Fatal(err)
	}
	body = []byte("<xml><ToUserName><![CDATA[ww00aa11bb22cc33dd]]></ToUserName><Encrypt><![CDATA[" + encrypt +
		"]]></Encrypt><AgentID><![CDATA[1000002]]></AgentID></xml>")
	if len(body) < 690 || len(body) > 710 {
		tb.Fatalf("body has %d bytes, want about 700", len(body))
	}
	return c, "msg_signature=" + signature + "&timestamp=" + timestamp + "&nonce=" + nonce, body
}

var benchPlain = "<xml><ToUserName><![CDATA[ww00aa11bb22cc33dd]]></ToUserName><FromUserName><![CDATA[alice]]></FromUserName>" +
	"<CreateTime>1770000001</CreateTime><MsgType><![CDATA[text]]></MsgType><Content><![CDATA[" +
	strings.Repeat("How are the builds today? ", 4) + "]]></Content><MsgId>7100000000000000001</MsgId><AgentID>1000002</AgentID></xml>"

func BenchmarkOpen(b *testing.B) {
	c, query, body := benchCallback(b)
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		if _, _, err := c.Open(query, body); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkOpenParse(b *testing.B) {
	c, query, body := benchCallback(b)
	var p Payload
	var dst []byte
	b.ReportAllocs()
	b.SetBytes(int64(len(body)))
	for b.Loop() {
		plain, _, err := c.Open(query, body)
		if err != nil {
			b.Fatal(err)
		}
		dst = Parse(dst[:0], plain, &p)
	}
}

func BenchmarkParse(b *testing.B) {
	for _, bench := range []struct{ name, plain string }{
		{"flat", benchPlain},
		{"slow", strings.Replace(benchPlain, "<xml>", "<xml><!---->", 1)},
		{"json", botText},
	} {
		b.Run(bench.name, func(b *testing.B) {
			var p Payload
			var dst []byte
			b.ReportAllocs()
			for b.Loop() {
				dst = Parse(dst[:0], bench.plain, &p)
			}
		})
	}
}

const botText = `{"msgid":"CAIQ0001","aibotid":"BOT01","chatid":"wr01","chattype":"group","from":{"userid":"alice"},` +
	`"response_url":"https://qyapi.weixin.qq.com/cgi-bin/aibot/response?response_code=R1","msgtype":"text",` +
	`"text":{"content":"@Helper how are builds?"},"quote":{"msgtype":"text","text":{"content":"build 41 failed"}}}`
