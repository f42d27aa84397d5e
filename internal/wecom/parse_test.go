package wecom

import (
	"encoding/base64"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"
	"unicode/utf8"
)

// textHead makes a text message of what follows, so that it can be seen in the data.
const textHead = "<xml><MsgType>text</MsgType>"

func TestParseTree(t *testing.T) {
	tests := []struct {
		name  string
		inner string // after MsgType
		want  string // after "MsgType":"text"
		fast  bool   // read by the fast way
	}{
		// Leaves are strings, verbatim.
		{"text", "<A>x</A>", `"A":"x"`, true},
		{"number", "<A>007100000000000000001</A>", `"A":"007100000000000000001"`, true},
		{"CDATA", "<A><![CDATA[x]]></A>", `"A":"x"`, true},
		{"order", "<B>1</B><A>2</A>", `"B":"1","A":"2"`, true},
		{"underscore and digits", "<Location_X2>x</Location_X2>", `"Location_X2":"x"`, true},
		{"markup in CDATA", "<A><![CDATA[<b>&amp;&x;</A>]]></A>", `"A":"<b>&amp;&x;</A>"`, true},
		{"brackets in CDATA", "<A><![CDATA[a]b]]c]>d]]]></A>", `"A":"a]b]]c]>d]"`, true},
		{"quotes", `<A>"a"\b'</A>`, `"A":"\"a\"\\b'"`, true},
		{"line feed and tab", "<A><![CDATA[a\n\tb]]></A>", `"A":"a\n\tb"`, true},
		{"line feed in text", "<A>a\nb</A>", `"A":"a\nb"`, true},
		{"Chinese", "<A>你好</A>", `"A":"你好"`, true},
		{"emoji", "<A><![CDATA[👍🏽 ok 🇨🇳]]></A>", `"A":"👍🏽 ok 🇨🇳"`, true},
		{"line separators", "<A>\u2028\u2029</A>", "\"A\":\"\u2028\u2029\"", true},
		{"specials", "<A>\ufffd\ufffc\uefff</A>", "\"A\":\"\ufffd\ufffc\uefff\"", true},
		{"2,000 characters", "<A><![CDATA[" + strings.Repeat("汉a", 1000) + "]]></A>", `"A":"` + strings.Repeat("汉a", 1000) + `"`, true},
		{"delete is a character", "<A>\x7f</A>", "\"A\":\"\x7f\"", true},

		// White space is trimmed outside CDATA only.
		{"blanks round text", "<A> \n\tx y\t\n </A>", `"A":"x y"`, true},
		{"blanks round CDATA", "<A> \n\t<![CDATA[ x ]]>\t\n </A>", `"A":" x "`, true},
		{"blanks round elements", "\n\t <A>x</A> \n <B>y</B>\n", `"A":"x","B":"y"`, true},
		{"only blanks", "<A> \n </A>", `"A":""`, true},
		{"only blanks in CDATA", "<A><![CDATA[ \n ]]></A>", `"A":" \n "`, true},
		{"no-break space stays", "<A>\u00a0x\u00a0</A>", "\"A\":\"\u00a0x\u00a0\"", true},
		{"between sections", "<A> <![CDATA[ a ]]> <![CDATA[ b ]]> </A>", `"A":" a   b "`, false},
		{"empty section counts for nothing", "<A><![CDATA[]]> x </A>", `"A":"x"`, false},
		{"empty section behind", "<A> x <![CDATA[]]> </A>", `"A":"x"`, false},
		{"text before CDATA", "<A> a <![CDATA[ b]]></A>", `"A":"a  b"`, false},
		{"text after CDATA", "<A><![CDATA[a ]]> b </A>", `"A":"a  b"`, false},
		{"blanks round a comment", "<A> <!-- c --> x <!-- c --> </A>", `"A":"x"`, false},

		// Empty leaves.
		{"empty", "<A></A>", `"A":""`, true},
		{"empty CDATA", "<A><![CDATA[]]></A>", `"A":""`, true},
		{"self-closing", "<A/>", `"A":""`, false},

		// Sections, references, line ends.
		{"split CDATA end", "<A><![CDATA[a]]]]><![CDATA[>b]]></A>", `"A":"a]]>b"`, false},
		{"predefined entities", "<A>&lt;&gt;&amp;&quot;&apos;</A>", `"A":"<>&\"'"`, false},
		{"surrogate's number in CDATA", "<A><![CDATA[&#xd800;]]></A>", `"A":"&#xd800;"`, true},
		{"numeric references", "<A>&#x4f60;&#22909;&#x1F44D;</A>", `"A":"你好👍"`, false},
		{"greater than", "<A>a>b</A>", `"A":"a>b"`, false},
		{"carriage return", "<A>a\r\nb\rc</A>", `"A":"a\nb\nc"`, false},
		{"carriage return in CDATA", "<A><![CDATA[a\r\nb]]></A>", `"A":"a\nb"`, false},
		{"carriage return by reference", "<A>a&#13;b</A>", `"A":"a\rb"`, false},
		{"comment", "<!-- <A>no</A> --><A>x<!-- y -->z</A>", `"A":"xz"`, false},
		{"processing instruction", "<?pi x?><A>x<?pi?>y</A>", `"A":"xy"`, false},

		// Elements with children, attributes, text beside them.
		{"nested", "<A><B>1</B><C><D>2</D></C></A>", `"A":{"B":"1","C":{"D":"2"}}`, false},
		{"nested blanks", "<A>\n <B> 1 </B>\n</A>", `"A":{"B":"1"}`, false},
		{"attributes", `<A a="1" b='"'>x</A>`, `"A":{"@a":"1","@b":"\"","#text":"x"}`, false},
		{"attribute alone", `<A a="&lt;"/>`, `"A":{"@a":"<"}`, false},
		{"attribute and child", `<A a="1"><B/></A>`, `"A":{"@a":"1","B":""}`, false},
		{"text beside children", "<A> x <B>1</B> y </A>", `"A":{"#text":"x  y","B":"1"}`, false},
		{"prefixes", `<w:A xmlns:w="urn:w" w:k="v"><w:B>1</w:B></w:A>`, `"w:A":{"@xmlns:w":"urn:w","@w:k":"v","w:B":"1"}`, false},
		{"Chinese name", "<名>x</名>", `"名":"x"`, false},
		{"hyphen and dot in a name", "<a-b.c>x</a-b.c>", `"a-b.c":"x"`, false},
		{"blank in tags", "<A >x</A\n>", `"A":"x"`, false},

		// Repetition.
		{"repeated", "<A>1</A><B>2</B><A>3</A>", `"A":["1","3"],"B":"2"`, false},
		{"repeated of two kinds", "<A>1</A><A><B>2</B></A><A/>", `"A":["1",{"B":"2"},""]`, false},
		{"repeated inside", "<L><I>1</I><I>2</I></L>", `"L":{"I":["1","2"]}`, false},
		{"many different", many(40), manyWant(40), false},

		// What may repeat is an array even alone.
		{"root list", "<FileId>f1</FileId>", `"FileId":["f1"]`, false},
		{"empty root list", "<FileId></FileId>", `"FileId":[""]`, false},
		{"wrapped list", "<GroupIds><GroupId>1</GroupId></GroupIds>", `"GroupIds":{"GroupId":["1"]}`, false},
		{"empty wrapper", "<GroupIds></GroupIds>", `"GroupIds":""`, true},
		{"list name elsewhere", "<GroupId>1</GroupId><X><FileId>1</FileId></X>", `"GroupId":"1","X":{"FileId":"1"}`, false},
		{"one DocId", "<DocId>d</DocId>", `"DocId":"d"`, false},
		{"one OpenKfId", "<OpenKfId>k</OpenKfId>", `"OpenKfId":"k"`, true},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			plain := textHead + test.inner + "</xml>"
			want := `{"MsgType":"text",` + test.want + "}"
			var p Payload
			if got := string(Parse(nil, plain, &p)); got != want {
				t.Errorf("Parse =\n%s, want\n%s", got, want)
			}
			if p.Type() != "wecom.message.text" || p.Format != JSON {
				t.Errorf("type %s, format %d", p.Type(), p.Format)
			}
			if _, fast := parseFlat(nil, plain, &p); fast != test.fast {
				t.Errorf("read the fast way: %v, want %v", fast, test.fast)
			}
			if got, ok := parseSlow(nil, plain, &p); !ok || string(got) != want {
				t.Errorf("the slow way =\n%s, %v, want\n%s", got, ok, want)
			}
		})
	}
}

func many(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, "<A%d>%d</A%d>", i, i, i)
	}
	return b.String()
}

func manyWant(n int) string {
	var b strings.Builder
	for i := range n {
		fmt.Fprintf(&b, `,"A%d":"%d"`, i, i)
	}
	return b.String()[1:]
}

func TestParseAround(t *testing.T) {
	const doc = textHead + "<A>x</A></xml>"
	for _, plain := range []string{
		doc,
		"\ufeff" + doc,
		" \r\n\t" + doc + "\n\r\n",
		`<?xml version="1.0" encoding="UTF-8"?>` + "\n" + doc,
		`<?xml version="1.0" encoding="utf-8" standalone="yes"?>` + doc,
		"<!-- before -->" + doc + "<!-- after -->",
		strings.ReplaceAll(doc, "xml>", "root>"),
	} {
		var p Payload
		if got, want := string(Parse(nil, plain, &p)), `{"MsgType":"text","A":"x"}`; got != want {
			t.Errorf("Parse(%q) = %s, want %s", plain, got, want)
		}
	}

	var p Payload
	if got, want := string(Parse(nil, `<xml a="1"> top `+doc[len("<xml>"):], &p)), `{"@a":"1","#text":"top","MsgType":"text","A":"x"}`; got != want {
		t.Errorf("attribute and text of the root: %s, want %s", got, want)
	}
}

func TestParseRepeatable(t *testing.T) {
	const event = "<xml><MsgType>event</MsgType><Event>%s</Event>%s</xml>"
	tests := []struct{ event, inner, want string }{
		{"template_card_event",
			"<SelectedItems><SelectedItem><QuestionKey>q</QuestionKey><OptionIds><OptionId>a</OptionId></OptionIds></SelectedItem></SelectedItems>",
			`"SelectedItems":{"SelectedItem":[{"QuestionKey":"q","OptionIds":{"OptionId":["a"]}}]}`},
		{"pic_weixin",
			"<SendPicsInfo><Count>2</Count><PicList><item><PicMd5Sum>1</PicMd5Sum></item></PicList><PicList><item><PicMd5Sum>2</PicMd5Sum></item></PicList></SendPicsInfo>",
			`"SendPicsInfo":{"Count":"2","PicList":[{"item":[{"PicMd5Sum":"1"}]},{"item":[{"PicMd5Sum":"2"}]}]}`},
		{"sys_approval_change",
			"<ApprovalInfo><SpRecord><Details><Speech></Speech></Details></SpRecord><Notifyer><UserId>u</UserId></Notifyer></ApprovalInfo>",
			`"ApprovalInfo":{"SpRecord":[{"Details":[{"Speech":""}]}],"Notifyer":[{"UserId":"u"}]}`},
		{"sys_approval_change",
			"<ApprovalInfo><ProcessList><NodeList><SubNodeList><Speech>s</Speech></SubNodeList></NodeList></ProcessList><Comments><CommentId>1</CommentId></Comments></ApprovalInfo>",
			`"ApprovalInfo":{"ProcessList":{"NodeList":[{"SubNodeList":[{"Speech":"s"}]}]},"Comments":[{"CommentId":"1"}]}`},
		{"doc_change", "<DocId>d</DocId>", `"DocId":["d"]`},
		{"doc_change", "<DocId>d</DocId><DocId>e</DocId>", `"DocId":["d","e"]`},
		{"smart_sheet_change", "<DocId>d</DocId><RecordId>r</RecordId>", `"DocId":"d","RecordId":["r"]`},
		{"change_external_chat", "<MemChangeList><Item>m</Item></MemChangeList>", `"MemChangeList":{"Item":["m"]}`},
		{"kf_account_auth_change", "<AuthAddOpenKfId>k</AuthAddOpenKfId>", `"AuthAddOpenKfId":["k"]`},
	}
	for _, test := range tests {
		var p Payload
		got := string(Parse(nil, fmt.Sprintf(event, test.event, test.inner), &p))
		want := fmt.Sprintf(`{"MsgType":"event","Event":%q,%s}`, test.event, test.want)
		if got != want {
			t.Errorf("%s:\n%s, want\n%s", test.event, got, want)
		}
	}

	var p Payload
	got := string(Parse(nil, "<xml><InfoType>create_auth</InfoType><ExtraInfo><AuthOpenKfIdList><OpenKfId>k</OpenKfId></AuthOpenKfIdList></ExtraInfo></xml>", &p))
	if want := `{"InfoType":"create_auth","ExtraInfo":{"AuthOpenKfIdList":{"OpenKfId":["k"]}}}`; got != want {
		t.Errorf("create_auth: %s, want %s", got, want)
	}
}

// TestRepeatableAll sees every row of the table work.
func TestRepeatableAll(t *testing.T) {
	for _, row := range repeatable {
		inner := "<" + row.child + ">1</" + row.child + ">"
		want := `"` + row.child + `":["1"]`
		if row.parent != "" {
			inner = "<" + row.parent + ">" + inner + "</" + row.parent + ">"
			want = `{` + want + `}`
		}
		var p Payload
		got := string(Parse(nil, "<xml><MsgType>event</MsgType><Event>doc_change</Event><X>"+inner+"</X>"+inner+"</xml>", &p))
		if !strings.Contains(got, want) {
			t.Errorf("%s/%s: %s, want %s in it", row.parent, row.child, got, want)
		}
	}
}

func TestParseUnknown(t *testing.T) {
	deep := func(n int) string {
		return textHead + strings.Repeat("<a>", n-1) + strings.Repeat("</a>", n-1) + "</xml>"
	}
	wide := func(n int) string { return textHead + strings.Repeat("<a/>", n-2) + "</xml>" }
	deepJSON := func(n int) string {
		return `{"aibotid":"b","msgtype":"text","x":` + strings.Repeat("[", n-1) + strings.Repeat("]", n-1) + "}"
	}
	wideJSON := func(n int) string {
		return `{"aibotid":"b","msgtype":"text","x":[1` + strings.Repeat(",1", n-3) + "]}"
	}
	long := func(n int) string {
		const head, tail = textHead + "<A>", "</A></xml>"
		return head + strings.Repeat("x", n-len(head)-len(tail)) + tail
	}
	for name, plain := range map[string]string{
		"32 levels":          deep(maxDepth),
		"32,768 elements":    wide(maxElements),
		"1 MiB":              long(maxSize),
		"128 characters":     strings.Replace(textHead, "text", strings.Repeat("x", 128), 1) + "</xml>",
		"JSON, 32 levels":    deepJSON(maxDepth),
		"JSON, many members": wideJSON(maxElements),
	} {
		var p Payload
		if Parse(nil, plain, &p); p.Type() == "wecom.unknown" {
			t.Errorf("%s: unknown", name)
		}
	}

	tests := map[string]string{
		"nothing":                  "",
		"blanks":                   " \n",
		"no document":              "hello",
		"number":                   "12",
		"JSON array":               `[{"aibotid":"b"}]`,
		"JSON string":              `"x"`,
		"broken JSON":              `{"aibotid":"b","msgtype":"text"`,
		"JSON and more":            `{"aibotid":"b","msgtype":"text"} x`,
		"official broken JSON":     `{ "ToUserName": "wx", "FromUserName": :mycreate", "MsgType": "text"}`,
		"JSON of no known family":  `{"MsgType":"text","Content":"x"}`,
		"zone program":             `{"event_type":"hit_keyword","timestamp":1,"hit_keyword":{"token":"t"}}`,
		"empty object":             `{}`,
		"family under no key":      `{"":{"aibotid":"b","msgtype":"text"}}`,
		"bot without msgtype":      `{"aibotid":"b","msgid":"m"}`,
		"bot event without type":   `{"aibotid":"b","msgtype":"event","event":{}}`,
		"bot event as a string":    `{"aibotid":"b","msgtype":"event","event":"x"}`,
		"hardware without name":    `{"base_info":{"req_id":"r"},"msg_type":"event","event":{}}`,
		"hardware of another kind": `{"base_info":{"req_id":"r"},"msg_type":"query"}`,
		"payment without type":     `{"notify_type":"REFUND","id":"1"}`,
		"JSON too deep":            deepJSON(maxDepth + 1),
		"JSON too wide":            wideJSON(maxElements + 1),
		"empty root":               "<xml></xml>",
		"leaf root":                "<xml>hello</xml>",
		"no type":                  "<xml><FromUserName>alice</FromUserName></xml>",
		"empty MsgType":            "<xml><MsgType></MsgType><Content>x</Content></xml>",
		"blank MsgType":            "<xml><MsgType> </MsgType><Content>x</Content></xml>",
		"empty Event":              "<xml><MsgType>event</MsgType><Event><![CDATA[]]></Event></xml>",
		"no Event":                 "<xml><MsgType>event</MsgType></xml>",
		"empty InfoType":           "<xml><InfoType></InfoType><MsgType>text</MsgType></xml>",
		"MsgType too long":         strings.Replace(textHead, "text", strings.Repeat("x", 129), 1) + "</xml>",
		"Event, not MsgType":       "<xml><Event>click</Event></xml>",
		"empty payment type":       "<xml><notify_type>REFUND</notify_type><event_type/></xml>",
		"document type":            "<!DOCTYPE xml>" + textHead + "</xml>",
		"declared entity":          `<!DOCTYPE xml [<!ENTITY e "x">]>` + textHead + "<A>&e;</A></xml>",
		"document type inside":     textHead + "<!DOCTYPE xml></xml>",
		"element declaration":      textHead + "<!ELEMENT a ANY></xml>",
		"undeclared entity":        textHead + "<A>&nbsp;</A></xml>",
		"bare ampersand":           textHead + "<A>a&b</A></xml>",
		"end of CDATA in text":     textHead + "<A>]]></A></xml>",
		"control character":        textHead + "<A>\x01</A></xml>",
		"NUL":                      textHead + "<A><![CDATA[\x00]]></A></xml>",
		"control by reference":     textHead + "<A>&#1;</A></xml>",
		"U+FFFE":                   textHead + "<A>\ufffe</A></xml>",
		"U+FFFF":                   textHead + "<A><![CDATA[abcdefgh\uffff]]></A></xml>",
		"surrogate by reference":   textHead + "<A>&#xd800;</A></xml>",
		"surrogate, decimal":       textHead + "<A>&lt;&#0057343;</A></xml>",
		"surrogate in attribute":   textHead + "<A a='&#xDFFF;'/></xml>",
		"not closed":               textHead + "<A>x</xml>",
		"cut":                      textHead + "<A>x</A>",
		"cut in CDATA":             textHead + "<A><![CDATA[x",
		"cut in a comment":         textHead + "</xml><!-- x",
		"wrong end":                textHead + "<A>x</B></xml>",
		"wrong case of end":        textHead + "<A>x</a></xml>",
		"two roots":                textHead + "</xml>" + textHead + "</xml>",
		"text behind":              textHead + "</xml>x",
		"CDATA behind":             textHead + "</xml><![CDATA[]]>",
		"text before":              "x" + textHead + "</xml>",
		"attribute twice":          textHead + `<A a="1" a="2"/></xml>`,
		"attribute without quotes": textHead + `<A a=1/></xml>`,
		"XML 1.1":                  `<?xml version="1.1"?>` + textHead + "</xml>",
		"another encoding":         `<?xml version="1.0" encoding="GBK"?>` + textHead + "</xml>",
		"name with a digit first":  textHead + "<1>x</1></xml>",
		"empty name":               textHead + "<>x</></xml>",
		"too deep":                 deep(maxDepth + 1),
		"too many elements":        wide(maxElements + 1),
		"too long":                 long(maxSize + 1),
	}
	for name, plain := range tests {
		t.Run(name, func(t *testing.T) {
			var p Payload
			got := Parse([]byte("before"), plain, &p)
			if p.Type() != "wecom.unknown" || len(p.Tail()) != 1 || p.Format != Text || p.Subject != "-" {
				t.Fatalf("type %s, format %d, subject %q", p.Type(), p.Format, p.Subject)
			}
			var text string
			if err := json.Unmarshal([]byte(strings.TrimPrefix(string(got), "before")), &text); err != nil || text != plain {
				t.Errorf("data %q, %v, want the text", got, err)
			}
		})
	}

	for _, plain := range []string{"\xff", textHead + "<A>\xe4\xbd</A></xml>", textHead + "<A>\xed\xa0\x80</A></xml>",
		`{"aibotid":"b","msgtype":"text","text":{"content":"` + "\xff" + `"}}`} {
		var p Payload
		got := string(Parse(nil, plain, &p))
		if want := `"` + base64.StdEncoding.EncodeToString([]byte(plain)) + `"`; p.Type() != "wecom.unknown" || p.Format != Binary || got != want {
			t.Errorf("Parse(%q) = %s, type %s, format %d, want %s", plain, got, p.Type(), p.Format, want)
		}
	}
}

// TestParseUnknownKeepsOrder: what has no type may still say whom it comes from.
func TestParseUnknownKeepsOrder(t *testing.T) {
	var p Payload
	Parse(nil, "<xml><ToUserName>ww1</ToUserName><FromUserName>alice</FromUserName><CreateTime>1770000001</CreateTime><MsgType/><MsgId>7</MsgId></xml>", &p)
	if p.Type() != "wecom.unknown" || p.PartitionKey != "alice" || p.CorpID != "ww1" || p.ID() != "m-7" || p.Time.Unix() != 1770000001 {
		t.Errorf("%+v", p)
	}
}

func TestParseJSONUnchanged(t *testing.T) {
	const object = "{ \"aibotid\" : \"b\",\n\t\"msgtype\":\"text\", \"x\":[1.0e5,{\"a\":\"\\u003c<\u2028\"}], \"n\":12345678901234567890 }"
	for _, plain := range []string{object, "\ufeff" + object, "\r\n " + object + "\n"} {
		var p Payload
		if got := string(Parse([]byte("before"), plain, &p)); got != "before"+object {
			t.Errorf("Parse(%q) = %s", plain, got)
		}
		if p.Type() != "wecom.aibot.message.text" || p.Format != JSON {
			t.Errorf("type %s, format %d", p.Type(), p.Format)
		}
	}
}

// TestParseReuses sees that nothing of one callback is left in the Payload of the next.
func TestParseReuses(t *testing.T) {
	var p Payload
	Parse(nil, "<xml><ToUserName>ww1</ToUserName><FromUserName>alice</FromUserName><CreateTime>1770000001</CreateTime>"+
		"<MsgType>event</MsgType><Event>x</Event><ChangeType>y</ChangeType><MsgId>7</MsgId><AgentID>1</AgentID></xml>", &p)
	Parse(nil, "\xff", &p)
	var want Payload
	Parse(nil, "\xff", &want)
	if p != want {
		t.Errorf("%+v, want %+v", p, want)
	}
	if p.CorpID != "" || p.AgentID != "" || p.Subject != "-" || p.PartitionKey != "-" || !p.Time.IsZero() || len(p.Tail()) != 1 {
		t.Errorf("%+v", p)
	}
}

func TestID(t *testing.T) {
	message := func(id string) string {
		return "<xml><MsgType>text</MsgType><MsgId><![CDATA[" + id + "]]></MsgId></xml>"
	}
	tests := []struct{ plain, want string }{
		{message("7100000000000000001"), "m-7100000000000000001"},
		{message("a/b+c=!~"), "m-a/b+c=!~"},
		{message(strings.Repeat("x", 128)), "m-" + strings.Repeat("x", 128)},
		{`{"aibotid":"b","msgtype":"text","msgid":"CAIQ\/=="}`, "m-CAIQ/=="},
		{`{"aibotid":"b","msgtype":"text","msgid":"1","msgid":"2"}`, "m-2"},
		{`{"aibotid":"b","msgtype":"text","msgid":12}`, "m-12"},
		{`{"base_info":{"req_id":"r1"},"msg_type":"event","event":{"event_type":"bind"}}`, "m-r1"},
		{`{"notify_type":"REFUND","id":"p1","event_type":"REFUND.SUCCESS"}`, "m-p1"},
		{"<xml><notify_type>REFUND</notify_type><id>p1</id><event_type>REFUND.SUCCESS</event_type></xml>", "m-p1"},
		// printf '%s' 'hello' | sha256sum, the first 130 bits in base32.
		{"hello", "h-ftze3os7wcrq4jxihmvmlopcty"},
	}
	for _, test := range tests {
		var p Payload
		Parse(nil, test.plain, &p)
		if got := p.ID(); got != test.want {
			t.Errorf("%s: id %q, want %q", test.plain, got, test.want)
		}
		if got := string(p.AppendID([]byte("demo/"))); got != "demo/"+test.want {
			t.Errorf("%s: AppendID gives %q", test.plain, got)
		}
	}
	seen := map[string]string{}
	for _, plain := range []string{
		message(""), message(" "), message("a b"), message("é"), message("a\tb"), message(strings.Repeat("x", 129)),
		"<xml><MsgType>text</MsgType><MsgId><a/></MsgId></xml>",
		"<xml><MsgType>text</MsgType></xml>",
		"<xml><MsgType>text</MsgType></xml> ",
		"<xml><InfoType>suite_ticket</InfoType></xml>",
		`{"aibotid":"b","msgtype":"text","msgid":"a\u0000"}`,
		`{"aibotid":"b","msgtype":"text","msgid":null}`,
	} {
		var p Payload
		Parse(nil, plain, &p)
		id := p.ID()
		if len(id) != 28 || !strings.HasPrefix(id, "h-") || strings.Trim(id[2:], "abcdefghijklmnopqrstuvwxyz234567") != "" {
			t.Errorf("%s: id %q", plain, id)
		}
		if other, ok := seen[id]; ok {
			t.Errorf("%q and %q have the same id", plain, other)
		}
		seen[id] = plain
	}
}

func TestTime(t *testing.T) {
	xml := func(s string) string { return textHead + "<CreateTime>" + s + "</CreateTime></xml>" }
	pay := func(s string) string {
		return `{"notify_type":"REFUND","event_type":"REFUND.SUCCESS","create_time":"` + s + `"}`
	}
	at := time.Date(2026, 2, 2, 2, 40, 1, 0, time.UTC)
	tests := []struct {
		plain string
		want  time.Time
	}{
		{xml("1770000001"), at},
		{xml(" 1770000001 "), at},
		{textHead + "<TimeStamp>1770000001</TimeStamp></xml>", at},
		{textHead + "<CreateTime></CreateTime><TimeStamp>1770000001</TimeStamp></xml>", at},
		{"<xml><InfoType>x</InfoType><TimeStamp>1770000001</TimeStamp></xml>", at},
		{`{"aibotid":"b","msgtype":"text","create_time":1770000001}`, at},
		{`{"aibotid":"b","msgtype":"text","create_time":"1770000001"}`, at},
		{`{"base_info":{"createtime":1770000001},"msg_type":"event","event":{"event_type":"bind"}}`, at},
		{pay("2026-02-02T10:40:01+08:00"), at},
		{pay("2026-02-02T02:40:01Z"), at},
		{xml("253402300799"), time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC)},
		{xml("253402300800"), time.Time{}},
		{xml("99999999999999999999"), time.Time{}},
		{xml("0"), time.Time{}},
		{xml("-1"), time.Time{}},
		{xml(""), time.Time{}},
		{xml("yesterday, at a quarter past"), time.Time{}},
		{textHead + "</xml>", time.Time{}},
		{pay("9999-12-31T23:59:59-01:00"), time.Time{}},
		{pay("0000-01-01T00:00:00+23:00"), time.Time{}},
	}
	for _, test := range tests {
		var p Payload
		Parse(nil, test.plain, &p)
		if !p.Time.Equal(test.want) || p.Time.Location() != time.UTC {
			t.Errorf("%s: %v, want %v", test.plain, p.Time, test.want)
		}
	}
}

func TestAppendString(t *testing.T) {
	var all strings.Builder
	for r := range rune(0x3000) {
		if utf8.ValidRune(r) {
			all.WriteRune(r)
		}
	}
	for _, s := range []string{"", "a", `"`, `\`, "</script>&", all.String()} {
		b := appendString(nil, s)
		var got string
		if err := json.Unmarshal(b, &got); err != nil || got != s {
			t.Errorf("appendString(%q) = %s: %v", s, b, err)
		}
	}
	if got, want := string(appendString(nil, "<&>\x00\x1f\u2028/")), "\"<&>\\u0000\\u001f\u2028/\""; got != want {
		t.Errorf("appendString = %s, want %s", got, want)
	}
}
