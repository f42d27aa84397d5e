package wecomsim

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"reflect"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestSayText(t *testing.T) {
	g := &fakeGateway{}
	s := newSim(t, Config{CallbackURLs: []string{g.start(t)}})
	content := "line\n]]> &lt; <b> 你好 🎉 " + strings.Repeat("长", 2000)
	w := do(s, "POST", "/sim/say", string(marshal(map[string]any{"app": "demo", "user": "alice", "msgtype": "text", "content": content})))
	if w.Code != 200 {
		t.Fatalf("status %d: %s", w.Code, w.Body)
	}
	var shape map[string]json.RawMessage
	if err := json.Unmarshal(w.Body.Bytes(), &shape); err != nil {
		t.Fatal(err)
	}
	r := decodeBody[SayResult](t, w)
	if len(r.Attempts) != 1 || r.Attempts[0].Status != 200 || r.Attempts[0].Error != "" || r.Attempts[0].TookMS < 1 || !r.Delivered() {
		t.Errorf("attempts %s", shape["attempts"])
	}
	if !strings.Contains(string(shape["attempts"]), `"error":""`) {
		t.Errorf("attempts %s: an attempt that went well has an empty error", shape["attempts"])
	}
	var m struct {
		ToUserName, FromUserName, CreateTime, MsgType, Content, MsgId, AgentID string
	}
	if err := xml.Unmarshal([]byte(g.plains[0]), &m); err != nil {
		t.Fatalf("plaintext %q: %v", g.plains[0], err)
	}
	if m.Content != content {
		t.Errorf("content %q, want %q", m.Content, content)
	}
	if m.ToUserName != testCorp || m.FromUserName != "alice" || m.MsgType != "text" || m.AgentID != "1000002" || m.MsgId != r.MsgID || r.Event != "m-"+r.MsgID {
		t.Errorf("plaintext %+v, msgid %q, event %q", m, r.MsgID, r.Event)
	}
	if n, err := strconv.ParseInt(r.MsgID, 10, 64); err != nil || n < 1<<62 {
		t.Errorf("msgid %q: want a positive 64-bit number of 19 digits", r.MsgID)
	}
	if sec, err := strconv.ParseInt(m.CreateTime, 10, 64); err != nil || time.Since(time.Unix(sec, 0)) > time.Minute {
		t.Errorf("CreateTime %q", m.CreateTime)
	}
	if !regexp.MustCompile(`^msg_signature=[0-9a-f]{40}&timestamp=[0-9]{10}&nonce=[0-9]{10}$`).MatchString(g.raw[0]) {
		t.Errorf("query %q", g.raw[0])
	}
	if want := "<xml><ToUserName><![CDATA[" + testCorp + "]]></ToUserName><AgentID><![CDATA[1000002]]></AgentID><Encrypt><![CDATA["; !strings.HasPrefix(g.bodies[0], want) {
		t.Errorf("envelope %q, want it to begin with %q", g.bodies[0], want)
	}
}

func TestSayTypes(t *testing.T) {
	g := &fakeGateway{}
	s := newSim(t, Config{CallbackURLs: []string{g.start(t)}})
	for _, tc := range []struct {
		req  string
		want string // what follows CreateTime, MsgId and AgentID left out
	}{
		{`{"user":"alice","content":"x"}`, `<MsgType><![CDATA[text]]></MsgType><Content><![CDATA[x]]></Content>`},
		{`{"user":"alice","msgtype":"image","pic_url":"https://p","media_id":"m"}`, `<MsgType><![CDATA[image]]></MsgType><PicUrl><![CDATA[https://p]]></PicUrl><MediaId><![CDATA[m]]></MediaId>`},
		{`{"user":"alice","msgtype":"voice"}`, `<MsgType><![CDATA[voice]]></MsgType><MediaId><![CDATA[sim-voice]]></MediaId><Format><![CDATA[amr]]></Format>`},
		{`{"user":"alice","msgtype":"video"}`, `<MsgType><![CDATA[video]]></MsgType><MediaId><![CDATA[sim-video]]></MediaId><ThumbMediaId><![CDATA[sim-thumb]]></ThumbMediaId>`},
		{`{"user":"alice","msgtype":"file","file_name":"a.pdf"}`, `<MsgType><![CDATA[file]]></MsgType><FileName><![CDATA[a.pdf]]></FileName><MediaId><![CDATA[sim-file]]></MediaId>`},
		{`{"user":"alice","msgtype":"location","latitude":31.2304,"longitude":"121.4737","label":"Square"}`, `<MsgType><![CDATA[location]]></MsgType><Location_X>31.2304</Location_X><Location_Y>121.4737</Location_Y><Scale>15</Scale><Label><![CDATA[Square]]></Label><AppType><![CDATA[wxwork]]></AppType>`},
		{`{"user":"alice","msgtype":"link","title":"T","url":"https://u?a=1&b=2"}`, `<MsgType><![CDATA[link]]></MsgType><Title><![CDATA[T]]></Title><Description><![CDATA[]]></Description><Url><![CDATA[https://u?a=1&b=2]]></Url><PicUrl><![CDATA[]]></PicUrl>`},
		{`{"user":"alice","msgtype":"click","key":"STATUS"}`, `<MsgType><![CDATA[event]]></MsgType><Event><![CDATA[click]]></Event><EventKey><![CDATA[STATUS]]></EventKey>`},
		{`{"user":"alice","msgtype":"event","event":"click","key":"STATUS"}`, `<MsgType><![CDATA[event]]></MsgType><Event><![CDATA[click]]></Event><EventKey><![CDATA[STATUS]]></EventKey>`},
		{`{"user":"alice","msgtype":"view","url":"https://u"}`, `<MsgType><![CDATA[event]]></MsgType><Event><![CDATA[view]]></Event><EventKey><![CDATA[https://u]]></EventKey>`},
		{`{"user":"alice","msgtype":"enter_agent"}`, `<MsgType><![CDATA[event]]></MsgType><Event><![CDATA[enter_agent]]></Event><EventKey><![CDATA[]]></EventKey>`},
		{`{"user":"alice","msgtype":"subscribe"}`, `<MsgType><![CDATA[event]]></MsgType><Event><![CDATA[subscribe]]></Event><EventKey><![CDATA[]]></EventKey>`},
		{`{"user":"alice","msgtype":"LOCATION","latitude":1,"longitude":2}`, `<MsgType><![CDATA[event]]></MsgType><Event><![CDATA[LOCATION]]></Event><Latitude>1</Latitude><Longitude>2</Longitude><Precision>15.0</Precision><AppType><![CDATA[wxwork]]></AppType>`},
		{`{"user":"alice","msgtype":"template_card_event","key":"yes","task_id":"t","response_code":"r"}`, `<MsgType><![CDATA[event]]></MsgType><Event><![CDATA[template_card_event]]></Event><EventKey><![CDATA[yes]]></EventKey><TaskId><![CDATA[t]]></TaskId><CardType><![CDATA[button_interaction]]></CardType><ResponseCode><![CDATA[r]]></ResponseCode>`},
	} {
		w := do(s, "POST", "/sim/say", tc.req)
		r := decodeBody[SayResult](t, w)
		if w.Code != 200 || !r.Delivered() {
			t.Errorf("%s: status %d, %s", tc.req, w.Code, w.Body)
			continue
		}
		plain := g.plains[len(g.plains)-1]
		_, rest, _ := strings.Cut(plain, "</CreateTime>")
		rest = strings.TrimSuffix(regexp.MustCompile(`<MsgId>[0-9]+</MsgId>|<AgentID>1000002</AgentID>`).ReplaceAllString(rest, ""), "</xml>")
		if rest != tc.want {
			t.Errorf("%s:\n got %s\nwant %s", tc.req, rest, tc.want)
		}
		isEvent := strings.Contains(rest, "[event]")
		if isEvent == strings.Contains(plain, "<MsgId>") {
			t.Errorf("%s: %s: events have no MsgId, messages have", tc.req, plain)
		}
		if isEvent {
			sum := sha256.Sum256([]byte(plain))
			want := "h-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:26])
			if r.MsgID != want || r.Event != want {
				t.Errorf("%s: msgid %q, event %q, want %q", tc.req, r.MsgID, r.Event, want)
			}
		}
	}
}

func TestSayRaw(t *testing.T) {
	g := &fakeGateway{}
	s := newSim(t, Config{CallbackURLs: []string{g.start(t)}})
	for _, tc := range []struct{ req, plain, event, envelope string }{
		{`{"app":"demo","xml":"<xml><MsgType>text</MsgType><MsgId> 77 </MsgId></xml>"}`, "<xml><MsgType>text</MsgType><MsgId> 77 </MsgId></xml>", "m-77", "<xml>"},
		{`{"app":"demo","xml":"<xml>broken"}`, "<xml>broken", "", "<xml>"},
		{`{"app":"demo","json":{"notify_type":"pay", "id":"p1"}}`, `{"notify_type":"pay", "id":"p1"}`, "m-p1", `{"tousername":"` + testCorp + `","encrypt":"`},
		{`{"app":"demo","json":"{\"base_info\":{\"req_id\":\"r1\"}}"}`, `{"base_info":{"req_id":"r1"}}`, "m-r1", "{"},
		{`{"app":"demo","xml":"<xml><MsgId>a b</MsgId></xml>"}`, "<xml><MsgId>a b</MsgId></xml>", "", "<xml>"},
	} {
		w := do(s, "POST", "/sim/say", tc.req)
		r := decodeBody[SayResult](t, w)
		n := len(g.plains) - 1
		if w.Code != 200 || g.plains[n] != tc.plain || !strings.HasPrefix(g.bodies[n], tc.envelope) {
			t.Errorf("%s: status %d, plaintext %q, body %.80q", tc.req, w.Code, g.plains[n], g.bodies[n])
		}
		if tc.event == "" {
			sum := sha256.Sum256([]byte(tc.plain))
			tc.event = "h-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:])[:26])
		}
		if r.Event != tc.event {
			t.Errorf("%s: event %q, want %q", tc.req, r.Event, tc.event)
		}
	}
}

// TestKinds seals for every kind of receiver and answers as each must be answered.
func TestKinds(t *testing.T) {
	for _, tc := range []struct {
		kind, receive, want string // want: the receive id that opens it
		answer              string
		body                string // of say
		envelope            string // beginning
	}{
		{"app", "", testCorp, "", `"user":"alice","content":"x"`, "<xml><ToUserName><![CDATA[" + testCorp + "]]></ToUserName><AgentID><![CDATA[1000002]]>"},
		{"app", "-", "", "success", `"user":"alice","content":"x"`, "<xml><ToUserName><![CDATA[" + testCorp + "]]></ToUserName>"},
		{"contacts", "", testCorp, "", `"xml":"<xml><Event>change_contact</Event></xml>"`, "<xml><ToUserName><![CDATA[" + testCorp + "]]></ToUserName><Encrypt>"},
		{"suite", "wwsuite", "wwsuite", "success", `"xml":"<xml><InfoType>suite_ticket</InfoType></xml>"`, "<xml><ToUserName><![CDATA[wwsuite]]></ToUserName><AgentID><![CDATA[]]></AgentID>"},
		{"suite-data", "wwauth", "wwauth", "", `"user":"alice","content":"x"`, "<xml><ToUserName><![CDATA[wwauth]]></ToUserName><AgentID><![CDATA[1000002]]>"},
		{"provider", "", testCorp, "success", `"xml":"<xml><InfoType>license_pay_success</InfoType></xml>"`, "<xml>"},
		{"aibot", "", "", "", `"user":"alice","content":"x"`, `{"encrypt":"`},
		{"hardware", "model1", "model1", "", `"json":{"base_info":{"req_id":"1"}}`, `{"tousername":"model1","encrypt":"`},
		{"payment", "", testCorp, "", `"xml":"<xml><notify_type>x</notify_type></xml>"`, "<xml>"},
	} {
		t.Run(tc.kind+tc.receive, func(t *testing.T) {
			app := demoApp()
			app.Kind, app.ReceiveID = tc.kind, tc.receive
			g := &fakeGateway{app: app, receiveID: tc.want, answer: func(w http.ResponseWriter, _ *http.Request, _ int, _ string) { io.WriteString(w, tc.answer) }}
			s := newSim(t, Config{CallbackURLs: []string{g.start(t)}, Apps: []App{app}})
			w := do(s, "POST", "/sim/say", `{"app":"demo",`+tc.body+`}`)
			if r := decodeBody[SayResult](t, w); w.Code != 200 || len(r.Attempts) != 1 || !r.Delivered() {
				t.Fatalf("status %d, %s", w.Code, w.Body)
			}
			if !strings.HasPrefix(g.bodies[0], tc.envelope) {
				t.Errorf("envelope %q, want it to begin with %q", g.bodies[0], tc.envelope)
			}
			if v, err := s.Verify(t.Context(), "demo"); err != nil || !v.OK {
				t.Errorf("verify: %+v, %v", v, err)
			}
		})
	}
}

func TestAIBotPlaintext(t *testing.T) {
	app := App{Name: "bot", Kind: "aibot", Token: testToken, AESKey: testAESKey}
	g := &fakeGateway{app: app}
	s := newSim(t, Config{CallbackURLs: []string{g.start(t)}, Apps: []App{app}})
	w := do(s, "POST", "/sim/say", `{"app":"bot","user":"alice","content":"<hi> & bye"}`)
	r := decodeBody[SayResult](t, w)
	var m struct {
		MsgID, AIBotID, ChatType, MsgType, Response_URL string
		From                                            struct{ UserID string }
		Text                                            struct{ Content string }
	}
	if err := json.Unmarshal([]byte(g.plains[0]), &m); err != nil {
		t.Fatal(err)
	}
	if m.From.UserID != "alice" || m.Text.Content != "<hi> & bye" || m.ChatType != "single" || m.MsgType != "text" || m.AIBotID == "" || m.Response_URL == "" || m.MsgID != r.MsgID || r.Event != "m-"+r.MsgID {
		t.Errorf("plaintext %s, result %s", g.plains[0], w.Body)
	}
	for body, code := range map[string]int{
		`{"app":"bot","user":"alice","msgtype":"enter_chat"}`:                                  200,
		`{"app":"bot","user":"alice","msgtype":"event","event":"template_card_event"}`:         200,
		`{"app":"bot","user":"alice","msgtype":"image","url":"https://i"}`:                     200,
		`{"app":"bot","user":"alice","msgtype":"click"}`:                                       400,
		`{"app":"bot","user":"alice","msgtype":"event","event":"x"}`:                           400,
		`{"app":"bot","user":"alice"}`:                                                         400,
		`{"app":"bot","json":{"msgid":"a/b+c=","aibotid":"B","msgtype":"stream","stream":{}}}`: 200,
	} {
		if w := do(s, "POST", "/sim/say", body); w.Code != code {
			t.Errorf("%s: status %d %s, want %d", body, w.Code, w.Body, code)
		}
	}
}

func TestSayBadInput(t *testing.T) {
	s := newSim(t, Config{Apps: []App{demoApp(), {Name: "two", CorpID: "c", Token: testToken, AESKey: testAESKey}}})
	for _, tc := range []struct{ path, body, want string }{
		{"say", ``, "body: EOF"},
		{"say", `{`, "body: "},
		{"say", `[]`, "body: "},
		{"say", `{"app":"demo"}{"app":"demo"}`, "more than one json value"},
		{"say", `{"app":"demo","user":"alice","contant":"x"}`, `unknown field "contant"`},
		{"say", `{"app":"nope","user":"alice","content":"x"}`, `app "nope": unknown, want one of demo, two`},
		{"say", `{"user":"alice","content":"x"}`, `app "": unknown`},
		{"say", `{"app":"demo","content":"x"}`, "user is missing"},
		{"say", `{"app":"demo","user":"a b","content":"x"}`, `user "a b"`},
		{"say", `{"app":"demo","user":"alice"}`, "content is missing"},
		{"say", `{"app":"demo","user":"alice","content":"x","xml":"<xml/>"}`, "give one of"},
		{"say", `{"app":"demo","user":"alice","msgtype":"smell"}`, `msgtype "smell": unknown`},
		{"say", `{"app":"demo","user":"alice","msgtype":"event","event":"smell"}`, `event "smell": unknown`},
		{"say", `{"app":"demo","user":"alice","msgtype":"click"}`, "key is missing"},
		{"say", `{"app":"demo","user":"alice","msgtype":"location","latitude":1}`, "longitude is missing"},
		{"say", `{"app":"demo","user":"alice","msgtype":"location","latitude":"north"}`, "body: "},
		{"say", `{"app":"demo","user":"alice","msgtype":"link","title":"x"}`, "url is missing"},
		{"say", `{"app":"demo","user":"alice","content":"a\u0001b"}`, "Content holds U+0001"},
		{"say", `{"app":"demo","user":"alice","content":"x","retries":4}`, "retries 4"},
		{"say", `{"app":"demo","user":"alice","content":"x","repeat":101}`, "repeat 101"},
		{"verify", `{"app":"nope"}`, `app "nope": unknown`},
		{"verify", `nonsense`, "body: "},
	} {
		w := do(s, "POST", "/sim/"+tc.path, tc.body)
		if e := decodeBody[errorBody](t, w); w.Code != 400 || !strings.Contains(e.Error, tc.want) {
			t.Errorf("%s %s: status %d, error %q, want 400 with %q", tc.path, tc.body, w.Code, e.Error, tc.want)
		}
	}
	if w := do(s, "POST", "/sim/say", `{"content":"`+strings.Repeat("x", maxControlBody)+`"}`); w.Code != http.StatusRequestEntityTooLarge {
		t.Errorf("big body: status %d, want 413", w.Code)
	}
	if w := do(s, "GET", "/sim/say", ""); w.Code != http.StatusNotFound || decodeBody[errorBody](t, w).Error == "" {
		t.Errorf("GET /sim/say: status %d %s", w.Code, w.Body)
	}
	if n := len(s.recent.deliveries); n != 0 {
		t.Errorf("%d deliveries made of bad input", n)
	}
}

// A script is a callback URL in a test with false time.
type script struct {
	mu    sync.Mutex
	calls []scripted
	play  func(n int, r *http.Request) (status int, body string, after time.Duration, err error)
}

type scripted struct {
	url   string
	query url.Values
	body  string
	plain string
}

func (sc *script) RoundTrip(r *http.Request) (*http.Response, error) {
	body, _ := io.ReadAll(r.Body)
	var env struct{ Encrypt string }
	if err := xml.Unmarshal(body, &env); err != nil && r.Method == http.MethodPost {
		return nil, err
	}
	plain, err := open(testToken, testAESKey, testCorp, r.URL.Query(), env.Encrypt)
	if err != nil && r.Method == http.MethodPost {
		return nil, err
	}
	sc.mu.Lock()
	n := len(sc.calls)
	sc.calls = append(sc.calls, scripted{url: bare(r.URL.String()), query: r.URL.Query(), body: string(body), plain: plain})
	sc.mu.Unlock()
	status, text, after, err := sc.play(n, r)
	select {
	case <-time.After(after):
	case <-r.Context().Done():
		return nil, r.Context().Err()
	}
	if err != nil {
		return nil, err
	}
	rec := httptest.NewRecorder()
	rec.WriteHeader(status)
	io.WriteString(rec, text)
	return rec.Result(), nil
}

func always(status int, body string, after time.Duration, err error) func(int, *http.Request) (int, string, time.Duration, error) {
	return func(int, *http.Request) (int, string, time.Duration, error) { return status, body, after, err }
}

// TestRetries plays the platform's patience in false time: 5 s for an answer, three retries, a
// second apart.
func TestRetries(t *testing.T) {
	for _, tc := range []struct {
		name     string
		req      string // members of say beside app, user and content
		play     func(int, *http.Request) (int, string, time.Duration, error)
		attempts int
		status   int
		error    string // of the first attempt
		took     time.Duration
		ok       bool
	}{
		{"at once", "", always(200, "", 0, nil), 1, 200, "", 0, true},
		{"just in time", "", always(200, "", 4999*time.Millisecond, nil), 1, 200, "", 4999 * time.Millisecond, true},
		{"too slow", "", always(200, "", 5001*time.Millisecond, nil), 4, 0, "no answer within 5s", 23 * time.Second, false},
		{"503", "", always(503, "", 0, nil), 4, 503, "status 503, want 200", 3 * time.Second, false},
		{"204", "", always(204, "", 0, nil), 4, 204, "status 204, want 200", 3 * time.Second, false},
		{"redirect", "", always(302, "", 0, nil), 4, 302, "status 302, want 200", 3 * time.Second, false},
		{"a page", "", always(200, "<html>login</html>", 0, nil), 4, 200, `body "<html>login</html>": want it empty, or a passive reply: no encrypt element`, 3 * time.Second, false},
		{"success is tolerated", "", always(200, "success", 0, nil), 1, 200, "", 0, true},
		{"refused", "", always(0, "", 0, errors.New("boom")), 4, 0, "boom", 3 * time.Second, false},
		{"cut", "", always(0, "", 0, io.EOF), 4, 0, "connection closed before the answer was complete", 3 * time.Second, false},
		{"third time lucky", "", func(n int, _ *http.Request) (int, string, time.Duration, error) {
			return map[bool]int{true: 200, false: 500}[n == 2], "", 0, nil
		}, 3, 500, "status 500, want 200", 2 * time.Second, true},
		{"no retries wanted", `,"retries":0`, always(503, "", 0, nil), 1, 503, "status 503, want 200", 0, false},
		{"said again", `,"repeat":3`, always(200, "", 0, nil), 3, 200, "", 0, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := &script{play: tc.play}
				s := newSim(t, Config{Transport: sc})
				start := time.Now()
				w := do(s, "POST", "/sim/say", `{"app":"demo","user":"alice","content":"x"`+tc.req+`}`)
				r := decodeBody[SayResult](t, w)
				if len(r.Attempts) != tc.attempts || r.Attempts[0].Status != tc.status || r.Attempts[0].Error != tc.error || r.Delivered() != tc.ok {
					t.Fatalf("got %s, want %d attempts, status %d, error %q, delivered %v", w.Body, tc.attempts, tc.status, tc.error, tc.ok)
				}
				if took := time.Since(start); took != tc.took {
					t.Errorf("took %v, want %v", took, tc.took)
				}
				for i, c := range sc.calls {
					if c.plain != sc.calls[0].plain {
						t.Errorf("attempt %d carries another plaintext", i+1)
					}
					if i > 0 && (c.query.Get("nonce") == sc.calls[i-1].query.Get("nonce") || c.body == sc.calls[i-1].body) {
						t.Errorf("attempt %d is not sealed anew", i+1)
					}
				}
				state := map[bool]string{true: "ok", false: "failed"}[tc.ok]
				if d := s.recent.deliveries[0]; d.State != state || len(d.Attempts) != tc.attempts {
					t.Errorf("history says %q after %d attempts, want %q after %d", d.State, len(d.Attempts), state, tc.attempts)
				}
			})
		})
	}
}

func TestUrgentCallbacksHaveOneSecond(t *testing.T) {
	for info, want := range map[string]string{"create_auth": "no answer within 1s", "suite_ticket": "no answer within 5s"} {
		synctest.Test(t, func(t *testing.T) {
			app := demoApp()
			app.Kind = "suite"
			s := newSim(t, Config{Transport: &script{play: always(200, "success", time.Minute, nil)}, Apps: []App{app}})
			none := 0
			r, err := s.Say(t.Context(), SayRequest{App: "demo", XML: "<xml><InfoType>" + info + "</InfoType></xml>", Retries: &none})
			if err != nil || r.Attempts[0].Error != want {
				t.Errorf("%s: %+v, %v, want %q", info, r, err, want)
			}
		})
	}
}

func TestSuiteWantsSuccess(t *testing.T) {
	app := demoApp()
	app.Kind = "suite"
	none := 0
	for body, ok := range map[string]bool{"success": true, "": false, "success\n": false, "ok": false} {
		s := newSim(t, Config{Transport: &script{play: always(200, body, 0, nil)}, Apps: []App{app}})
		r, err := s.Say(t.Context(), SayRequest{App: "demo", XML: "<xml/>", Retries: &none})
		if err != nil || r.Delivered() != ok {
			t.Errorf("answer %q: %+v, %v, want delivered %v", body, r, err, ok)
		}
	}
}

func TestPassiveReplyIsAccepted(t *testing.T) {
	app := demoApp()
	encrypt, query, err := seal(&app, time.Now(), []byte("<xml/>"))
	if err != nil {
		t.Fatal(err)
	}
	q, _ := url.ParseQuery(query)
	for _, tc := range []struct {
		name, body string
		ok         bool
	}{
		{"xml", fmt.Sprintf("<xml><Encrypt><![CDATA[%s]]></Encrypt><MsgSignature>%s</MsgSignature><TimeStamp>%s</TimeStamp><Nonce>%s</Nonce></xml>", encrypt, q.Get("msg_signature"), q.Get("timestamp"), q.Get("nonce")), true},
		{"json", fmt.Sprintf(`{"encrypt":"%s","msgsignature":"%s","timestamp":%s,"nonce":"%s"}`, encrypt, q.Get("msg_signature"), q.Get("timestamp"), q.Get("nonce")), true},
		{"wrong signature", fmt.Sprintf("<xml><Encrypt>%s</Encrypt><MsgSignature>%s</MsgSignature><TimeStamp>1</TimeStamp><Nonce>2</Nonce></xml>", encrypt, q.Get("msg_signature")), false},
		{"not encrypted", "<xml><Content>hi</Content></xml>", false},
		{"broken json", `{"encrypt"`, false},
	} {
		if err := acknowledged(&app, 200, []byte(tc.body)); (err == nil) != tc.ok {
			t.Errorf("%s: %v, want accepted %v", tc.name, err, tc.ok)
		}
	}
}

func TestSeveralURLs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		sc := &script{play: func(_ int, r *http.Request) (int, string, time.Duration, error) {
			if r.URL.Host == "b.example" {
				return 503, "", 0, nil
			}
			return 200, "", 0, nil
		}}
		s := newSim(t, Config{Transport: sc, CallbackURLs: []string{"http://a.example/callback/", "http://b.example/callback", "http://c.example/cb?app="}})
		for range 4 {
			if r, err := s.Say(t.Context(), SayRequest{User: "alice", Content: "x"}); err != nil || !r.Delivered() {
				t.Fatalf("%+v, %v", r, err)
			}
		}
		var got []string
		for _, c := range sc.calls {
			got = append(got, c.url+" "+c.query.Get("app"))
		}
		want := []string{"http://a.example/callback/demo ", "http://b.example/callback/demo ", "http://c.example/cb demo", "http://c.example/cb demo", "http://a.example/callback/demo "}
		if !reflect.DeepEqual(got, want) {
			t.Errorf("called %q, want %q", got, want)
		}
	})
}

func TestSayEndsWithTheContext(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newSim(t, Config{Transport: &script{play: always(503, "", 0, nil)}})
		ctx, cancel := context.WithTimeout(t.Context(), 1500*time.Millisecond)
		defer cancel()
		r, err := s.Say(ctx, SayRequest{User: "alice", Content: "x"})
		if !errors.Is(err, context.DeadlineExceeded) || len(r.Attempts) != 2 {
			t.Errorf("got %+v, %v, want two attempts and the context's error", r, err)
		}
		if d := s.recent.deliveries[0]; d.State != "failed" {
			t.Errorf("history says %q, want failed", d.State)
		}
	})
	// A caller that hangs up does not stop the platform.
	synctest.Test(t, func(t *testing.T) {
		sc := &script{play: always(503, "", 0, nil)}
		s := newSim(t, Config{Transport: sc})
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		r := httptest.NewRequestWithContext(ctx, "POST", "/sim/say", strings.NewReader(`{"user":"alice","content":"x"}`))
		s.ServeHTTP(httptest.NewRecorder(), r)
		if len(sc.calls) != 4 {
			t.Errorf("%d attempts, want 4", len(sc.calls))
		}
		s.Close()
		w := do(s, "POST", "/sim/say", `{"user":"alice","content":"x"}`)
		if w.Code != http.StatusServiceUnavailable {
			t.Errorf("after Close: status %d, want 503", w.Code)
		}
	})
}

func TestMsgIDsNeverRepeat(t *testing.T) {
	seen := map[string]bool{}
	for range 20 {
		s := newSim(t, Config{})
		for range 100 {
			id := s.messageID()
			if seen[id] || len(id) != 19 {
				t.Fatalf("MsgId %s given twice or not of 19 digits", id)
			}
			seen[id] = true
		}
	}
}

func TestVerify(t *testing.T) {
	var echo string
	for _, tc := range []struct {
		name   string
		answer func() (int, string)
		after  time.Duration
		ok     bool
		reason string
	}{
		{"right", func() (int, string) { return 200, echo }, 999 * time.Millisecond, true, ""},
		{"slow", func() (int, string) { return 200, echo }, 1001 * time.Millisecond, false, "no answer within 1s"},
		{"line break", func() (int, string) { return 200, echo + "\n" }, 0, false, "white space"},
		{"quotes", func() (int, string) { return 200, `"` + echo + `"` }, 0, false, "in quotes"},
		{"byte order mark", func() (int, string) { return 200, "\ufeff" + echo }, 0, false, "byte order mark"},
		{"json", func() (int, string) { return 200, `{"echostr":"` + echo + `"}` }, 0, false, "wrapped"},
		{"empty", func() (int, string) { return 200, "" }, 0, false, "empty"},
		{"something else", func() (int, string) { return 200, "hello" }, 0, false, "not the decrypted echo text"},
		{"403", func() (int, string) { return 403, "" }, 0, false, "status 403, want 200"},
		{"redirect", func() (int, string) { return 301, "" }, 0, false, "redirects are not followed"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				sc := &script{}
				sc.play = func(_ int, r *http.Request) (int, string, time.Duration, error) {
					q := r.URL.Query()
					plain, err := open(testToken, testAESKey, testCorp, q, q.Get("echostr"))
					if err != nil || r.Method != http.MethodGet {
						return 0, "", 0, err
					}
					echo = plain
					status, body := tc.answer()
					return status, body, tc.after, nil
				}
				s := newSim(t, Config{Transport: sc})
				w := do(s, "POST", "/sim/verify", `{"app":"demo"}`)
				r := decodeBody[VerifyResult](t, w)
				if w.Code != 200 || r.OK != tc.ok || !strings.Contains(r.Reason, tc.reason) || tc.ok != (r.Reason == "") {
					t.Errorf("status %d, %s, want ok %v, reason %q", w.Code, w.Body, tc.ok, tc.reason)
				}
				if !regexp.MustCompile(`^[0-9]{20,23}$`).MatchString(echo) {
					t.Errorf("echo text %q: want a number too long for 64 bits", echo)
				}
				for _, key := range []string{"ok", "status", "body", "reason"} {
					if !strings.Contains(w.Body.String(), `"`+key+`":`) {
						t.Errorf("%s: no %q", w.Body, key)
					}
				}
			})
		})
	}
	// Over a network, against nothing.
	s := newSim(t, Config{})
	if r, err := s.Verify(t.Context(), "demo"); err != nil || r.OK || r.Reason != "connection refused" {
		t.Errorf("nobody listens: %+v, %v", r, err)
	}
}

func TestNewReportsEveryMistake(t *testing.T) {
	_, err := New(Config{
		CallbackURLs: []string{"ftp://x/", "/callback"},
		Apps: []App{
			{Name: "Bad Name", CorpID: "c", Token: "tok-secret", AESKey: testAESKey},
			{Name: "a", Kind: "zebra", CorpID: "c", Token: "t", AESKey: testAESKey},
			{Name: "a", Token: "t", AESKey: "short-secret"},
			{Name: "b", CorpID: "c", AgentID: "x1", AESKey: testAESKey},
		},
	})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{`"ftp://x/"`, `"/callback"`, `app "Bad Name": a name has`, `app "a": unknown kind "zebra"`, `app "a": given twice`, `app "a": corp id is missing`, `app "b": agent id`, `app "b": token is missing`} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error does not say %s: %v", want, err)
		}
	}
	if n := strings.Count(err.Error(), "\n") + 1; n != 9 {
		t.Errorf("%d mistakes told, want 9: %v", n, err)
	}
	for _, secret := range []string{"tok-secret", "short-secret", testAESKey} {
		if strings.Contains(err.Error(), secret) {
			t.Errorf("error holds the secret %q", secret)
		}
	}
	if _, err := New(Config{}); err == nil {
		t.Error("an empty configuration is accepted")
	}
}
