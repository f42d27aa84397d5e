package wecomsim

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"reflect"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"
	"unicode/utf8"
)

func TestGetToken(t *testing.T) {
	s := newSim(t, Config{})
	for _, tc := range []struct {
		query string
		code  int
		text  string
	}{
		{"", 41004, "corpsecret missing"},
		{"corpid=" + testCorp, 41004, "corpsecret missing"},
		{"corpsecret=" + testSecret, 41002, "corpid missing"},
		{"corpid=wwffff&corpsecret=wrong", 40013, "invalid corpid"},
		{"corpid=" + testCorp + "&corpsecret=wrong", 40001, "invalid credential"},
	} {
		w := do(s, "GET", "/cgi-bin/gettoken?"+tc.query, "")
		r := decodeBody[tokenReply](t, w)
		want := regexp.MustCompile(fmt.Sprintf(`^%s, hint: \[[0-9]{25}\], from ip: 203\.0\.113\.7, more info at https://open\.work\.weixin\.qq\.com/devtool/query\?e=%d$`, tc.text, tc.code))
		if w.Code != 200 || r.ErrCode != tc.code || !want.MatchString(r.ErrMsg) || r.AccessToken != "" {
			t.Errorf("gettoken?%s: status %d, %s, want errcode %d %q", tc.query, w.Code, w.Body, tc.code, tc.text)
		}
		if got := w.Header().Get("Error-Code"); got != fmt.Sprint(tc.code) {
			t.Errorf("gettoken?%s: Error-Code %q, want %d", tc.query, got, tc.code)
		}
		if got := w.Header().Get("Error-Msg"); got != r.ErrMsg {
			t.Errorf("gettoken?%s: Error-Msg %q, want %q", tc.query, got, r.ErrMsg)
		}
	}
	w := do(s, "GET", "/cgi-bin/gettoken?corpid="+testCorp+"&corpsecret="+testSecret, "")
	r := decodeBody[tokenReply](t, w)
	if r.ErrCode != 0 || r.ErrMsg != "ok" || r.ExpiresIn != 7200 || len(r.AccessToken) > 512 {
		t.Errorf("gettoken: %s", w.Body)
	}
	if w.Header().Get("Error-Code") != "0" || w.Header().Get("Error-Msg") != "ok" || w.Header().Get("Content-Type") != "application/json; charset=UTF-8" {
		t.Errorf("gettoken: header %v", w.Header())
	}
	if again := accessToken(t, s); again != r.AccessToken {
		t.Errorf("a second gettoken gave another token")
	}
}

func TestUnknownPath(t *testing.T) {
	s := newSim(t, Config{})
	for _, path := range []string{"/cgi-bin/no/such", "/cgi-bin/", "/cgi-bin/message//send", "/cgi-bin/gettoken/"} {
		if w := do(s, "GET", path, ""); w.Code != http.StatusNotFound || w.Body.Len() != 0 {
			t.Errorf("GET %s: status %d, body %q, want an empty 404", path, w.Code, w.Body)
		}
	}
}

// TestTokenLife watches a token through its two hours, and what faults do to it.
func TestTokenLife(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{})
		code := func(tok string) int {
			return decodeBody[sendReply](t, do(s, "POST", "/cgi-bin/message/send?access_token="+tok, text("alice", "x"))).ErrCode
		}
		check := func(what, tok string, want int) {
			t.Helper()
			if got := code(tok); got != want {
				t.Errorf("%s: errcode %d, want %d", what, got, want)
			}
		}
		set := func(f Faults) {
			t.Helper()
			if err := s.SetFaults(f); err != nil {
				t.Fatal(err)
			}
		}
		check("no token", "", 41001)
		check("made-up token", "abc", 40014)
		first := accessToken(t, s)
		check("fresh token", first, 0)
		time.Sleep(7199 * time.Second)
		check("token in its last second", first, 0)
		time.Sleep(time.Second)
		check("expired token", first, 42001)
		set(Faults{Token: TokenFault{ExpiredErrCode: 40014}})
		check("expired token, told as invalid", first, 40014)

		second := accessToken(t, s)
		if second == first {
			t.Error("an expired token was handed out again")
		}
		set(Faults{Token: TokenFault{Rotate: "keep"}})
		third := accessToken(t, s)
		check("rotated, the old one kept", second, 0)
		set(Faults{Token: TokenFault{Rotate: "kill"}})
		fourth := accessToken(t, s)
		check("rotated, the old one killed", third, 40014)
		check("rotated, the new one", fourth, 0)
		set(Faults{Token: TokenFault{Revoke: true}})
		check("revoked", fourth, 40014)
		check("after the revocation", accessToken(t, s), 0)

		set(Faults{Token: TokenFault{Revoke: true, ExpiresIn: 5}})
		short := accessToken(t, s)
		time.Sleep(5 * time.Second)
		check("short token", short, 42001)

		last := accessToken(t, s)
		s.Reset()
		check("after a reset", last, 40014)
	})
}

func TestTokenIsOnlyReadFromTheQuery(t *testing.T) {
	s := newSim(t, Config{})
	r := httptest.NewRequest("POST", "/cgi-bin/message/send", strings.NewReader(`{"access_token":"`+accessToken(t, s)+`"}`))
	r.Header.Set("Authorization", "Bearer "+accessToken(t, s))
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	if got := decodeBody[status](t, w); got.ErrCode != 41001 {
		t.Errorf("errcode %d, want 41001", got.ErrCode)
	}
}

func TestIPList(t *testing.T) {
	s := newSim(t, Config{})
	for _, api := range []string{"get_api_domain_ip", "getcallbackip"} {
		w := do(s, "GET", "/cgi-bin/"+api+"?access_token="+accessToken(t, s), "")
		if r := decodeBody[ipReply](t, w); r.ErrCode != 0 || len(r.IPList) == 0 {
			t.Errorf("%s: %s", api, w.Body)
		}
		w = do(s, "GET", "/cgi-bin/"+api+"?access_token=x", "")
		if !strings.HasPrefix(w.Body.String(), `{"ip_list":[],"errcode":40014,"errmsg":"invalid access_token, hint: [`) {
			t.Errorf("%s with a made-up token: %s", api, w.Body)
		}
	}
}

// card returns a template_card of that type with the members that it needs, changed by extra.
func card(kind, extra string) string {
	base := map[string]any{"card_type": kind, "main_title": map[string]any{"title": "T"}}
	action := map[string]any{"type": 1, "url": "https://a"}
	switch kind {
	case "text_notice":
		base["card_action"] = action
	case "news_notice":
		base["card_action"] = action
		base["card_image"] = map[string]any{"url": "https://i"}
	case "button_interaction":
		base["task_id"] = "t-1@v_1"
		base["button_list"] = []any{map[string]any{"text": "Yes", "key": "y"}}
	case "vote_interaction":
		base["task_id"] = "t"
		base["checkbox"] = map[string]any{"question_key": "q", "option_list": []any{map[string]any{"id": "a", "text": "A"}}}
		base["submit_button"] = map[string]any{"text": "Send", "key": "s"}
	case "multiple_interaction":
		base["task_id"] = "t"
		base["select_list"] = []any{map[string]any{"question_key": "q", "option_list": []any{map[string]any{"id": "a", "text": "A"}}}}
		base["submit_button"] = map[string]any{"text": "Send", "key": "s"}
	}
	if extra != "" {
		var m map[string]any
		if err := json.Unmarshal([]byte(extra), &m); err != nil {
			panic(err)
		}
		for k, v := range m {
			if v == nil {
				delete(base, k)
			} else {
				base[k] = v
			}
		}
	}
	return `"msgtype":"template_card","template_card":` + string(marshal(base))
}

func TestSendChecks(t *testing.T) {
	s := newSim(t, Config{Apps: []App{demoApp(), {Name: "other", CorpID: testCorp, AgentID: "1000003", Secret: "other", Token: testToken, AESKey: testAESKey}}})
	tok := accessToken(t, s)
	many := func(n int, item string) string { return strings.TrimSuffix(strings.Repeat(item+",", n), ",") }
	ids := func(n int, sep string) string {
		var b []string
		for i := range n {
			b = append(b, fmt.Sprint(i+1))
		}
		return strings.Join(b, sep)
	}
	const to, agent, body = `"touser":"alice"`, `"agentid":1000002`, `"msgtype":"text","text":{"content":"x"}`
	full := func(content string) string { return "{" + to + "," + agent + "," + content + "}" }
	news := func(articles string) string { return full(`"msgtype":"news","news":{"articles":[` + articles + `]}`) }
	mpnews := func(article string) string {
		return full(`"msgtype":"mpnews","mpnews":{"articles":[{"title":"T","thumb_media_id":"m","content":"c"` + article + `}]}`)
	}
	mini := func(rest string) string {
		return full(`"msgtype":"miniprogram_notice","miniprogram_notice":{"appid":"wx1","title":"四个汉字"` + rest + `}`)
	}
	for _, tc := range []struct {
		name, body string
		code       int
		msg        string // beginning of errmsg, when it matters
	}{
		{"text", full(body), 0, "ok"},
		{"not json", `{"touser`, 40058, "Warning: wrong json format. invalid Request Parameter, hint: ["},
		{"empty body", ``, 40058, "Warning: wrong json format. "},
		{"not an object", `[1]`, 40058, "Warning: wrong json format. "},
		{"two objects", full(body) + `{}`, 40058, "Warning: wrong json format. "},
		{"msgtype is a number", `{` + to + `,` + agent + `,"msgtype":1}`, 40008, "Warning: wrong json format. invalid message type, hint: ["},
		{"msgtype missing", `{` + to + `,` + agent + `}`, 40008, "invalid message type, hint: ["},
		{"msgtype unknown", full(`"msgtype":"hologram","hologram":{}`), 40008, ""},
		{"retired type", full(`"msgtype":"interactive_taskcard","interactive_taskcard":{}`), 40008, ""},
		{"agentid missing", `{` + to + `,` + body + `}`, 41011, "agentid missing, hint"},
		{"agentid unknown", `{` + to + `,"agentid":7,` + body + `}`, 40056, ""},
		{"agentid no number", `{` + to + `,"agentid":"seven",` + body + `}`, 40056, "Warning: wrong json format. "},
		{"agentid broken", `{` + to + `,"agentid":1000002.5,` + body + `}`, 40056, ""},
		{"agentid of another app", `{` + to + `,"agentid":1000003,` + body + `}`, 301002, "not allow operate another agent with this accesstoken."},
		{"agentid as string", `{` + to + `,"agentid":"1000002",` + body + `}`, 0, "ok. Warning: wrong json format. "},
		{"safe as string", full(body + `,"safe":"0"`), 0, "ok. Warning: wrong json format. "},
		{"safe out of range", full(body + `,"safe":3`), 40058, ""},
		{"safe 2 is for mpnews", full(body + `,"safe":2`), 40058, ""},

		{"empty text", full(`"msgtype":"text","text":{"content":""}`), 44004, "empty content, hint"},
		{"no text", full(`"msgtype":"text"`), 44004, "empty content"},
		{"text is a string", full(`"msgtype":"text","text":"x"`), 44004, "Warning: wrong json format. empty content"},
		{"text of 2049 bytes", full(`"msgtype":"text","text":{"content":"` + strings.Repeat("x", 2049) + `"}`), 0, "ok"},
		{"empty markdown", full(`"msgtype":"markdown","markdown":{"content":""}`), 44004, ""},
		{"markdown of 2048 bytes", full(`"msgtype":"markdown","markdown":{"content":"` + strings.Repeat("x", 2048) + `"}`), 0, ""},
		{"markdown of 2049 bytes", full(`"msgtype":"markdown","markdown":{"content":"` + strings.Repeat("x", 2049) + `"}`), 40058, "markdown.content exceed max length 2048. invalid Request Parameter"},

		{"image", full(`"msgtype":"image","image":{"media_id":"3kZt7_simulated-media"}`), 0, ""},
		{"image without media", full(`"msgtype":"image","image":{}`), 41006, ""},
		{"voice with a bad media_id", full(`"msgtype":"voice","voice":{"media_id":"a b"}`), 40007, "invalid media_id"},
		{"file with an expired media_id", full(`"msgtype":"file","file":{"media_id":"expired-1"}`), 40007, ""},
		{"video", full(`"msgtype":"video","video":{"media_id":"m","title":"T"}`), 0, ""},
		{"video with an invalid media_id", full(`"msgtype":"video","video":{"media_id":"invalid"}`), 40007, ""},

		{"textcard", full(`"msgtype":"textcard","textcard":{"title":"T","description":"D","url":"https://a"}`), 0, ""},
		{"textcard without title", full(`"msgtype":"textcard","textcard":{"description":"D","url":"https://a"}`), 41016, ""},
		{"textcard without description", full(`"msgtype":"textcard","textcard":{"title":"T","url":"https://a"}`), 41033, ""},
		{"textcard without url", full(`"msgtype":"textcard","textcard":{"title":"T","description":"D"}`), 41010, ""},
		{"textcard url without scheme", full(`"msgtype":"textcard","textcard":{"title":"T","description":"D","url":"a.example"}`), 45034, ""},
		{"textcard url too long", full(`"msgtype":"textcard","textcard":{"title":"T","description":"D","url":"https://` + strings.Repeat("a", 2048) + `"}`), 40039, ""},

		{"news", news(many(8, `{"title":"T","url":"https://a"}`)), 0, ""},
		{"news without articles", news(""), 44004, ""},
		{"news with nine", news(many(9, `{"title":"T","url":"https://a"}`)), 45008, ""},
		{"news without title", news(`{"url":"https://a"}`), 41016, ""},
		{"news without url", news(`{"title":"T"}`), 41010, ""},
		{"news url without scheme", news(`{"title":"T","url":"a"}`), 45034, ""},
		{"news picurl without scheme", news(`{"title":"T","url":"https://a","picurl":"p"}`), 45034, ""},
		{"news to a mini-program", news(`{"title":"T","appid":"wx1","pagepath":"p"}`), 0, ""},
		{"news with half a mini-program", news(`{"title":"T","appid":"wx1","url":"https://a"}`), 40058, ""},
		{"news, safe", full(`"safe":1,"msgtype":"news","news":{"articles":[{"title":"T","url":"https://a"}]}`), 40074, ""},

		{"mpnews", mpnews(``), 0, ""},
		{"mpnews, safe 2", full(`"safe":2,"msgtype":"mpnews","mpnews":{"articles":[{"title":"T","thumb_media_id":"m","content":"c"}]}`), 0, ""},
		{"mpnews without articles", full(`"msgtype":"mpnews","mpnews":{}`), 44004, ""},
		{"mpnews with nine", full(`"msgtype":"mpnews","mpnews":{"articles":[` + many(9, `{"title":"T","thumb_media_id":"m","content":"c"}`) + `]}`), 45008, ""},
		{"mpnews without title", mpnews(`,"title":""`), 41016, ""},
		{"mpnews without thumb", mpnews(`,"thumb_media_id":""`), 41006, ""},
		{"mpnews author too long", mpnews(`,"author":"` + strings.Repeat("x", 65) + `"`), 45032, ""},
		{"mpnews without content", mpnews(`,"content":""`), 44004, ""},
		{"mpnews content too long", mpnews(`,"content":"` + strings.Repeat("x", 666<<10+1) + `"`), 45002, ""},

		{"miniprogram_notice", mini(`,"content_item":[{"key":"k","value":"v"},{"key":"","value":""}]`), 0, ""},
		{"miniprogram_notice without agentid", `{` + to + `,"msgtype":"miniprogram_notice","miniprogram_notice":{"appid":"wx1","title":"四个汉字"}}`, 0, ""},
		{"miniprogram_notice without appid", mini(`,"appid":""`), 90200, ""},
		{"miniprogram_notice without title", mini(`,"title":""`), 41016, ""},
		{"miniprogram_notice short title", mini(`,"title":"短"`), 40058, ""},
		{"miniprogram_notice page too long", mini(`,"page":"` + strings.Repeat("x", 1025) + `"`), 90204, ""},
		{"miniprogram_notice eleven items", mini(`,"content_item":[` + many(11, `{"key":"k","value":"v"}`) + `]`), 90201, ""},
		{"miniprogram_notice long key", mini(`,"content_item":[{"key":"` + strings.Repeat("键", 11) + `","value":"v"}]`), 90202, ""},
		{"miniprogram_notice long value", mini(`,"content_item":[{"key":"k","value":"` + strings.Repeat("值", 31) + `"}]`), 90203, ""},
		{"miniprogram_notice emphasis is a string", mini(`,"emphasis_first_item":"true"`), 0, "ok. Warning"},
		{"miniprogram_notice to everybody", `{"touser":"@all",` + agent + `,"msgtype":"miniprogram_notice","miniprogram_notice":{"appid":"wx1","title":"四个汉字"}}`, 40058, ""},

		{"card type", full(`"msgtype":"template_card","template_card":{"card_type":"x"}`), 42031, ""},
		{"text_notice", full(card("text_notice", "")), 0, ""},
		{"text_notice with sub_title_text alone", full(card("text_notice", `{"main_title":null,"sub_title_text":"s"}`)), 0, ""},
		{"text_notice with no title at all", full(card("text_notice", `{"main_title":null}`)), 41016, ""},
		{"text_notice without card_action", full(card("text_notice", `{"card_action":null}`)), 42045, ""},
		{"card_action without url", full(card("text_notice", `{"card_action":{"type":1}}`)), 42028, ""},
		{"card_action without appid", full(card("text_notice", `{"card_action":{"type":2}}`)), 42030, ""},
		{"action_menu without task_id", full(card("text_notice", `{"action_menu":{"action_list":[{"text":"a","key":"a"}]}}`)), 42014, ""},
		{"action_menu", full(card("text_notice", `{"task_id":"t","action_menu":{"action_list":[{"text":"a","key":"a"}]}}`)), 0, ""},
		{"action_menu empty", full(card("text_notice", `{"task_id":"t","action_menu":{"action_list":[]}}`)), 40058, ""},
		{"action_menu same key", full(card("text_notice", `{"task_id":"t","action_menu":{"action_list":[{"text":"a","key":"a"},{"text":"b","key":"a"}]}}`)), 42051, ""},
		{"seven horizontal", full(card("text_notice", `{"horizontal_content_list":[`+many(7, `{"keyname":"k"}`)+`]}`)), 42035, ""},
		{"horizontal without keyname", full(card("text_notice", `{"horizontal_content_list":[{}]}`)), 42027, ""},
		{"horizontal without url", full(card("text_notice", `{"horizontal_content_list":[{"keyname":"k","type":1}]}`)), 42028, ""},
		{"horizontal without media_id", full(card("text_notice", `{"horizontal_content_list":[{"keyname":"k","type":2}]}`)), 42029, ""},
		{"horizontal without userid", full(card("text_notice", `{"horizontal_content_list":[{"keyname":"k","type":3}]}`)), 42050, ""},
		{"four jumps", full(card("text_notice", `{"jump_list":[`+many(4, `{"title":"t"}`)+`]}`)), 42042, ""},
		{"jump without title", full(card("text_notice", `{"jump_list":[{"type":0}]}`)), 42033, ""},
		{"jump without appid", full(card("text_notice", `{"jump_list":[{"type":2,"title":"t"}]}`)), 42030, ""},
		{"news_notice", full(card("news_notice", "")), 0, ""},
		{"news_notice without image", full(card("news_notice", `{"card_image":null}`)), 42044, ""},
		{"five vertical", full(card("news_notice", `{"vertical_content_list":[`+many(5, `{"title":"t"}`)+`]}`)), 42036, ""},
		{"vertical without title", full(card("news_notice", `{"vertical_content_list":[{"desc":"d"}]}`)), 42033, ""},
		{"button_interaction", full(card("button_interaction", "")), 0, ""},
		{"button without task_id", full(card("button_interaction", `{"task_id":null}`)), 42014, ""},
		{"button with a bad task_id", full(card("button_interaction", `{"task_id":"a b"}`)), 42014, ""},
		{"no buttons", full(card("button_interaction", `{"button_list":null}`)), 40058, ""},
		{"button without text", full(card("button_interaction", `{"button_list":[{"key":"k"}]}`)), 42038, ""},
		{"button without key", full(card("button_interaction", `{"button_list":[{"text":"t"}]}`)), 42039, ""},
		{"buttons with one key", full(card("button_interaction", `{"button_list":[{"text":"t","key":"k"},{"text":"u","key":"k"}]}`)), 42039, ""},
		{"url button without url", full(card("button_interaction", `{"button_list":[{"text":"t","type":1}]}`)), 42028, ""},
		{"button_selection without question_key", full(card("button_interaction", `{"button_selection":{"option_list":[{"id":"a","text":"A"}]}}`)), 42043, ""},
		{"vote_interaction", full(card("vote_interaction", "")), 0, ""},
		{"vote without question_key", full(card("vote_interaction", `{"checkbox":{"option_list":[{"id":"a","text":"A"}]}}`)), 42043, ""},
		{"vote without options", full(card("vote_interaction", `{"checkbox":{"question_key":"q"}}`)), 42037, ""},
		{"vote with 21 options", full(card("vote_interaction", `{"checkbox":{"question_key":"q","option_list":[`+many(21, `{"id":"a","text":"A"}`)+`]}}`)), 42037, ""},
		{"vote option without id", full(card("vote_interaction", `{"checkbox":{"question_key":"q","option_list":[{"text":"A"}]}}`)), 42040, ""},
		{"vote options with one id", full(card("vote_interaction", `{"checkbox":{"question_key":"q","option_list":[{"id":"a","text":"A"},{"id":"a","text":"B"}]}}`)), 42040, ""},
		{"vote option without text", full(card("vote_interaction", `{"checkbox":{"question_key":"q","option_list":[{"id":"a"}]}}`)), 42041, ""},
		{"vote without submit text", full(card("vote_interaction", `{"submit_button":{"key":"k"}}`)), 42049, ""},
		{"vote without submit key", full(card("vote_interaction", `{"submit_button":{"text":"t"}}`)), 42046, ""},
		{"multiple_interaction", full(card("multiple_interaction", "")), 0, ""},
		{"multiple without selects", full(card("multiple_interaction", `{"select_list":[]}`)), 42047, ""},
		{"multiple with one question twice", full(card("multiple_interaction", `{"select_list":[`+many(2, `{"question_key":"q","option_list":[{"id":"a","text":"A"}]}`)+`]}`)), 42043, ""},

		{"nobody", `{` + agent + `,` + body + `}`, 82001, ""},
		{"touser empty", `{"touser":"",` + agent + `,` + body + `}`, 82001, ""},
		{"touser is an array", `{"touser":["alice"],` + agent + `,` + body + `}`, 82001, "Warning: wrong json format. "},
		{"1000 users", `{"touser":"` + ids(1000, "|") + `",` + agent + `,` + body + `}`, 0, ""},
		{"1001 users", `{"touser":"` + ids(1001, "|") + `",` + agent + `,` + body + `}`, 40032, ""},
		{"101 departments", `{"toparty":"` + ids(101, "|") + `",` + agent + `,` + body + `}`, 82002, ""},
		{"101 tags", `{"totag":"` + ids(101, "|") + `",` + agent + `,` + body + `}`, 82003, ""},
		{"@all takes no notice of departments", `{"touser":"@all","toparty":"` + ids(101, "|") + `",` + agent + `,` + body + `}`, 0, ""},
		{"nobody valid", `{"touser":"Not-Found|a b","toparty":"x","totag":"0",` + agent + `,` + body + `}`, 81013, "user & party & tag all invalid, hint"},
		{"errcode", `{"touser":"alice|errcode-45009",` + agent + `,` + body + `}`, 45009, "api freq out of limit, hint"},
		{"negative errcode", `{"touser":"errcode--1",` + agent + `,` + body + `}`, -1, "system busy"},
		{"unlicensed alone", `{"touser":"unlicensed",` + agent + `,` + body + `}`, 81013, ""},
	} {
		t.Run(tc.name, func(t *testing.T) {
			before := len(s.Inbox("alice"))
			w := do(s, "POST", "/cgi-bin/message/send?access_token="+tok, tc.body)
			r := decodeBody[sendReply](t, w)
			if w.Code != 200 || r.ErrCode != tc.code || !strings.HasPrefix(r.ErrMsg, tc.msg) {
				t.Fatalf("status %d, %s, want errcode %d %q", w.Code, w.Body, tc.code, tc.msg)
			}
			if tc.code != 0 && (r.MsgID != "" || len(s.Inbox("alice")) != before) {
				t.Errorf("refused, but delivered: %s", w.Body)
			}
			if tc.code == 0 && r.MsgID == "" {
				t.Errorf("no msgid: %s", w.Body)
			}
		})
	}
	if w := do(s, "GET", "/cgi-bin/message/send?access_token="+tok, ""); decodeBody[status](t, w).ErrCode != 40058 {
		t.Errorf("GET: %s, want 40058", w.Body)
	}
}

func TestSendDelivers(t *testing.T) {
	s := newSim(t, Config{})
	r := send(t, s, `{"touser":"Alice|LI.lei|alice|Not-Found|张三|unlicensed","toparty":"0x|12","totag":" 7","msgtype":"text","agentid":1000002,"text":{"content":"hi <b>&"}}`)
	want := sendReply{status: status{0, "ok"}, InvalidUser: "not-found|张三", InvalidParty: "0x", InvalidTag: " 7", UnlicensedUser: "unlicensed", MsgID: r.MsgID}
	if r != want {
		t.Errorf("reply %+v, want %+v", r, want)
	}
	if len(r.MsgID) != 86 {
		t.Errorf("msgid has %d characters, want 86", len(r.MsgID))
	}
	// Department 12 is everybody, and who is named too sees it once.
	for _, user := range []string{"alice", "ALICE", "li.lei", "bob"} {
		list := s.Inbox(user)
		if len(list) != 1 || list[0].Content != "hi <b>&" || list[0].MsgID != r.MsgID {
			t.Errorf("inbox of %s: %+v, want the message once", user, list)
		}
	}
}

func TestInboxOverHTTP(t *testing.T) {
	s := newSim(t, Config{})
	if w := do(s, "GET", "/sim/inbox/nobody", ""); w.Code != 200 || strings.TrimSpace(w.Body.String()) != "[]" {
		t.Errorf("empty inbox: status %d, %q, want []", w.Code, w.Body)
	}
	body := text("alice", "第一 <a href=\"https://a\">x</a>")
	send(t, s, body)
	send(t, s, text("@all", "second"))
	send(t, s, text("alice", "third"))
	w := do(s, "GET", "/sim/inbox/Alice", "")
	list := decodeBody[[]map[string]any](t, w)
	var contents []any
	for _, m := range list {
		contents = append(contents, m["content"])
		var keys []string
		for _, k := range []string{"app", "api", "msgtype", "content", "body", "time", "msgid"} {
			if _, ok := m[k]; ok {
				keys = append(keys, k)
			}
		}
		if len(keys) != 7 || len(m) != 7 {
			t.Errorf("message has %v", m)
		}
	}
	if want := []any{"第一 <a href=\"https://a\">x</a>", "second", "third"}; !reflect.DeepEqual(contents, want) {
		t.Errorf("contents %q, want %q", contents, want)
	}
	var sent any
	if err := json.Unmarshal([]byte(body), &sent); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(list[0]["body"], sent) {
		t.Errorf("body %v, want %v", list[0]["body"], sent)
	}
	if list[0]["app"] != "demo" || list[0]["api"] != "message/send" || list[0]["msgtype"] != "text" {
		t.Errorf("message %v", list[0])
	}
	if at, err := time.Parse(time.RFC3339, list[0]["time"].(string)); err != nil || time.Since(at) > time.Minute {
		t.Errorf("time %v: %v", list[0]["time"], err)
	}
	if w := do(s, "DELETE", "/sim/state", ""); w.Code != http.StatusNoContent {
		t.Errorf("DELETE /sim/state: status %d, want 204", w.Code)
	}
	if list := s.Inbox("alice"); len(list) != 0 {
		t.Errorf("inbox after a reset: %v", list)
	}
}

func TestInboxIsBounded(t *testing.T) {
	s := newSim(t, Config{})
	s.mu.Lock()
	defer s.mu.Unlock()
	for i := range maxInbox + 5 {
		s.box.add([]string{"alice", "bob"}[i%2], &Message{Content: "x"})
	}
	if got := len(s.box.users["alice"]) + len(s.box.users["bob"]); got != maxInbox {
		t.Errorf("%d messages held, want %d", got, maxInbox)
	}
	if first := s.box.users["bob"][0]; first.n != 6 {
		t.Errorf("the oldest held of bob is number %d, want 6", first.n)
	}
	for range 40 {
		s.box.add("carol", &Message{Body: make([]byte, 8<<20)})
	}
	if s.box.bytes > maxInboxBytes || len(s.box.users["alice"]) != 0 {
		t.Errorf("%d bytes held, want at most %d", s.box.bytes, maxInboxBytes)
	}
}

func TestTextIsCut(t *testing.T) {
	s := newSim(t, Config{})
	for _, tc := range []struct {
		content string
		want    int
	}{
		{strings.Repeat("x", 2048), 2048},
		{strings.Repeat("x", 3000), 2048},
		{strings.Repeat("汉", 683), 2046}, // 2049 bytes: no half character
	} {
		if r := send(t, s, text("alice", tc.content)); r.ErrCode != 0 {
			t.Fatalf("errcode %d", r.ErrCode)
		}
		list := s.Inbox("alice")
		got := list[len(list)-1].Content
		if len(got) != tc.want || !utf8.ValidString(got) || !strings.HasPrefix(tc.content, got) {
			t.Errorf("%d bytes shown of %d, want %d", len(got), len(tc.content), tc.want)
		}
	}
}

func TestMarkdownOverflow(t *testing.T) {
	long := `{"touser":"alice","agentid":1000002,"msgtype":"markdown","markdown":{"content":"` + strings.Repeat("x", 2049) + `"}}`
	for mode, want := range map[string]int{"": 40058, "40058": 40058, "45002": 45002, "cut": 0} {
		s := newSim(t, Config{})
		if err := s.SetFaults(Faults{MarkdownOverflow: mode}); err != nil {
			t.Fatal(err)
		}
		if r := send(t, s, long); r.ErrCode != want {
			t.Errorf("%q: errcode %d, want %d", mode, r.ErrCode, want)
		}
		if list := s.Inbox("alice"); mode == "cut" && (len(list) != 1 || len(list[0].Content) != 2048) {
			t.Errorf("cut: inbox %v", list)
		}
	}
}

func TestResponseCode(t *testing.T) {
	s := newSim(t, Config{})
	for body, want := range map[string]bool{
		card("button_interaction", ""):   true,
		card("vote_interaction", ""):     true,
		card("multiple_interaction", ""): true,
		card("text_notice", ""):          false,
		card("news_notice", ""):          false,
		card("news_notice", `{"task_id":"t","action_menu":{"action_list":[{"text":"a","key":"a"}]}}`): true,
		`"msgtype":"text","text":{"content":"x"}`:                                                     false,
	} {
		r := send(t, s, `{"touser":"alice","agentid":1000002,`+body+`}`)
		if r.ErrCode != 0 || (r.ResponseCode != "") != want {
			t.Errorf("%s: errcode %d, response_code %q, want one: %v", body, r.ErrCode, r.ResponseCode, want)
		}
	}
}

func TestDuplicateCheck(t *testing.T) {
	flagged := func(interval string) string {
		return `{"text":{"content":"same"},"agentid":1000002,"msgtype":"text","touser":"alice","enable_duplicate_check":1` + interval + `}`
	}
	plain := `{"touser":"alice","msgtype":"text","agentid":1000002,"text":{"content":"same"}}`
	type step struct {
		after time.Duration
		body  string
		shown int // messages in the inbox afterwards
	}
	for _, tc := range []struct {
		name   string
		strict bool
		steps  []step
	}{
		{"an earlier request without the flag counts", false, []step{{0, plain, 1}, {time.Second, flagged(`,"duplicate_check_interval":10`), 1}}},
		{"strict: it does not", true, []step{{0, plain, 1}, {time.Second, flagged(`,"duplicate_check_interval":10`), 2}, {time.Second, flagged(`,"duplicate_check_interval":10`), 2}}},
		{"without the flag nothing is suppressed", false, []step{{0, flagged(""), 1}, {time.Second, plain, 2}, {time.Second, plain, 3}}},
		{"the interval ends", false, []step{{0, flagged(`,"duplicate_check_interval":10`), 1}, {10 * time.Second, flagged(`,"duplicate_check_interval":10`), 1}, {time.Second, flagged(`,"duplicate_check_interval":10`), 2}}},
		{"the interval of the later request counts", false, []step{{0, flagged(`,"duplicate_check_interval":5`), 1}, {20 * time.Second, flagged(`,"duplicate_check_interval":30`), 1}}},
		{"1800 s by default", false, []step{{0, flagged(""), 1}, {1800 * time.Second, flagged(""), 1}, {time.Second, flagged(""), 2}}},
		{"four hours at most", false, []step{{0, flagged(""), 1}, {14401 * time.Second, flagged(`,"duplicate_check_interval":99999`), 2}}},
		{"other content is another message", false, []step{{0, flagged(""), 1}, {0, strings.Replace(flagged(""), "same", "other", 1), 2}}},
		{"other recipients are another message", false, []step{{0, flagged(""), 1}, {0, strings.Replace(flagged(""), `"alice"`, `"alice|bob"`, 1), 2}}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := newSim(t, Config{})
				if err := s.SetFaults(Faults{StrictDuplicates: tc.strict}); err != nil {
					t.Fatal(err)
				}
				for i, st := range tc.steps {
					time.Sleep(st.after)
					if r := send(t, s, st.body); r.ErrCode != 0 || r.MsgID == "" {
						t.Fatalf("step %d: %+v, want errcode 0", i, r)
					}
					if got := len(s.Inbox("alice")); got != st.shown {
						t.Errorf("step %d: %d messages shown, want %d", i, got, st.shown)
					}
				}
			})
		})
	}
}

func TestDuplicateCheckIsPerApp(t *testing.T) {
	other := App{Name: "other", CorpID: testCorp, AgentID: "1000003", Secret: testSecret, Token: testToken, AESKey: testAESKey}
	s := newSim(t, Config{Apps: []App{demoApp(), other}})
	body := `{"touser":"alice","msgtype":"miniprogram_notice","enable_duplicate_check":1,"miniprogram_notice":{"appid":"wx1","title":"四个汉字"}`
	send(t, s, body+`,"agentid":1000002}`)
	send(t, s, body+`,"agentid":1000003}`)
	if got := len(s.Inbox("alice")); got != 2 {
		t.Errorf("%d messages shown, want 2", got)
	}
}

func TestDuplicatesAreForgotten(t *testing.T) {
	var d duplicates
	now := time.Now()
	for i := range maxDuplicates + 10 {
		d.seen([16]byte{byte(i), byte(i >> 8), byte(i >> 16)}, now, false, 0, false)
	}
	if len(d.last) > maxDuplicates+1 || len(d.order) > maxDuplicates+1 {
		t.Errorf("%d remembered, want at most %d", len(d.last), maxDuplicates+1)
	}
	d.seen([16]byte{15: 1}, now.Add(5*time.Hour), false, 0, false)
	if len(d.last) != 1 {
		t.Errorf("%d remembered after five hours, want 1", len(d.last))
	}
}

func TestMemberLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{Minute: time.Second})
		shown := func() int { return len(s.Inbox("alice")) }
		for range 31 {
			send(t, s, text("alice", "x"))
		}
		if got := shown(); got != 31 {
			t.Errorf("switched off: %d shown, want 31", got)
		}
		if err := s.SetFaults(Faults{DropOverMemberLimit: true}); err != nil {
			t.Fatal(err)
		}
		for i := range 35 {
			if r := send(t, s, text("Alice|bob", "x")); r.ErrCode != 0 || r.MsgID == "" || r.InvalidUser != "" {
				t.Fatalf("message %d: %+v, want plain success", i, r)
			}
		}
		if got := shown(); got != 61 {
			t.Errorf("%d shown, want 61: 30 in a minute", got)
		}
		if got := len(s.Inbox("bob")); got != 30 {
			t.Errorf("%d shown to bob, want 30", got)
		}
		send(t, s, text("carol", "x"))
		if got := len(s.Inbox("carol")); got != 1 {
			t.Errorf("%d shown to another member, want 1", got)
		}
		time.Sleep(time.Second)
		send(t, s, text("alice", "x"))
		if got := shown(); got != 62 {
			t.Errorf("a minute later: %d shown, want 62", got)
		}
		// 1000 an hour: 31 are gone, the next minutes bring 30 each until the hour is full.
		for range 40 {
			time.Sleep(time.Second)
			for range 30 {
				send(t, s, text("alice", "x"))
			}
		}
		if got := shown() - 31; got != 1000 {
			t.Errorf("%d shown within the hour, want 1000", got)
		}
	})
}

func TestInboxWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{})
		go func() {
			time.Sleep(time.Hour)
			send(t, s, text("bob", "no"))
			send(t, s, text("alice", "yes"))
		}()
		start := time.Now()
		list, err := s.Wait(t.Context(), "Alice", 0)
		if err != nil || len(list) != 1 || list[0].Content != "yes" || time.Since(start) != time.Hour {
			t.Errorf("got %v, %v after %v", list, err, time.Since(start))
		}
	})
}
