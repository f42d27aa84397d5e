package wecomsim

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base32"
	"encoding/json"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"
)

// A SayRequest is the body of POST /sim/say: what a user does in the chat with an application, as
// a msgtype with its fields, or as the whole plaintext in XML or JSON.
type SayRequest struct {
	App     string `json:"app"` // may be empty when there is only one
	User    string `json:"user"`
	MsgType string `json:"msgtype"` // text when empty; event, with Event; or an event's name itself
	Content string `json:"content"`

	Event        string `json:"event"` // click, view, enter_agent, subscribe, unsubscribe, LOCATION, template_card_event; aibot: enter_chat
	Key          string `json:"key"`   // EventKey
	TaskID       string `json:"task_id"`
	CardType     string `json:"card_type"`
	ResponseCode string `json:"response_code"`

	MediaID      string      `json:"media_id"`
	ThumbMediaID string      `json:"thumb_media_id"`
	PicURL       string      `json:"pic_url"`
	Format       string      `json:"format"`
	FileName     string      `json:"file_name"`
	Latitude     json.Number `json:"latitude"`
	Longitude    json.Number `json:"longitude"`
	Scale        json.Number `json:"scale"`
	Label        string      `json:"label"`
	Title        string      `json:"title"`
	Description  string      `json:"description"`
	URL          string      `json:"url"`

	XML  string          `json:"xml"`
	JSON json.RawMessage `json:"json"` // an object, or a string that holds the text of one

	Retries *int `json:"retries"` // 0 to 3, default 3
	// Repeat delivers that often (1 to 100) whatever is answered, to play a platform that sends
	// again what was received: every time the same plaintext.
	Repeat int `json:"repeat"`
}

// A SayResult is what became of it.
type SayResult struct {
	MsgID    string    `json:"msgid"` // the plaintext's own, else the event id
	Event    string    `json:"event"` // the id the bridge gives the event
	Attempts []Attempt `json:"attempts"`
}

// Delivered reports whether the last attempt was acknowledged.
func (r *SayResult) Delivered() bool {
	return len(r.Attempts) > 0 && r.Attempts[len(r.Attempts)-1].Error == ""
}

// An Attempt is one POST to the callback URL.
type Attempt struct {
	Status int    `json:"status"`  // 0: no answer
	TookMS int64  `json:"took_ms"` // rounded up
	TookUS int64  `json:"took_us"`
	Error  string `json:"error"` // why the platform counts it as failed, else empty
	URL    string `json:"url"`   // without the query
}

var errClosed = errors.New("simulator is closed")

// Say delivers what a user says and returns when the application has acknowledged it, or every
// retry has failed, which is no error. An error means that req makes no sense, or is ctx's.
func (s *Server) Say(ctx context.Context, req SayRequest) (*SayResult, error) {
	app, err := s.app(req.App)
	if err != nil {
		return nil, err
	}
	plain, err := s.plaintext(app, &req)
	if err != nil {
		return nil, err
	}
	most := retries
	if req.Retries != nil {
		if most = *req.Retries; most < 0 || most > retries {
			return nil, badf("retries %d: want 0 to %d", most, retries)
		}
	}
	if req.Repeat < 0 || req.Repeat > 100 {
		return nil, badf("repeat %d: want 1 to 100", req.Repeat)
	}
	p := describe(plain)
	if p.once {
		most = 0
	}
	d := &delivery{
		App: app.Name, User: req.User, MsgType: p.kind, Content: req.shown(&p), Plain: string(plain),
		MsgID: p.own, Event: p.event, Time: s.now().UTC(), at: s.now(), State: "sending", Attempts: []Attempt{}, quiet: p.quiet,
	}
	if d.User == "" {
		d.User = p.user
	}
	s.addDelivery(d)
	res := &SayResult{MsgID: p.own, Event: p.event}
	if res.MsgID == "" {
		res.MsgID = p.event
	}
	for range max(req.Repeat, 1) {
		if err = s.deliverCallback(ctx, app, d, plain, most, &p); err != nil {
			break
		}
	}
	s.update(d, func() {
		if d.State == "sending" {
			d.State = "failed"
		}
	})
	res.Attempts = d.Attempts
	return res, err
}

// deliverCallback makes one delivery with its retries.
func (s *Server) deliverCallback(ctx context.Context, app *App, d *delivery, plain []byte, most int, p *payload) error {
	turn := s.turn.Add(1) - 1
	for n := 0; ; n++ {
		// A retry carries the same plaintext. Whether WeCom seals it anew is not documented; a
		// fresh timestamp, nonce and ciphertext is what the application must be able to bear.
		a := s.attempt(ctx, app, turn+uint64(n), plain, p)
		ok := a.Error == ""
		s.update(d, func() {
			d.Attempts = append(d.Attempts, a)
			if ok {
				d.State = "ok"
			}
		})
		if ok {
			s.log.Debug("callback delivered", "app", app.Name, "event", p.event, "attempt", n+1, "took", time.Duration(a.TookUS)*time.Microsecond)
			return nil
		}
		s.log.Warn("callback failed", "app", app.Name, "event", p.event, "attempt", n+1, "status", a.Status, "err", a.Error)
		if err := ctx.Err(); err != nil {
			return err
		}
		if n == most {
			return nil
		}
		if !s.sleep(ctx, retryDelay) {
			if err := ctx.Err(); err != nil {
				return err
			}
			return errClosed
		}
	}
}

// attempt makes one POST.
func (s *Server) attempt(ctx context.Context, app *App, turn uint64, plain []byte, p *payload) Attempt {
	start := s.now()
	u := s.callbackURL(app, turn)
	a := Attempt{URL: bare(u)}
	encrypt, query, err := seal(app, start, plain)
	if err == nil {
		a.Status, _, err = s.roundTrip(ctx, p.cutOff(app), http.MethodPost, u+query, envelope(app, encrypt, p.json), func(status int, body []byte) error {
			return acknowledged(app, status, body)
		})
	}
	took := s.now().Sub(start)
	a.TookUS, a.TookMS = took.Microseconds(), int64((took+time.Millisecond-1)/time.Millisecond)
	if err != nil {
		a.Error = err.Error()
	}
	return a
}

// acknowledged judges an answer as developer.work.weixin.qq.com/document/path/90238 (applications)
// and 90613 (suites) say.
func acknowledged(app *App, status int, body []byte) error {
	if status != http.StatusOK {
		return fmt.Errorf("status %d, want 200", status)
	}
	success := string(body) == "success"
	switch app.Kind {
	case "suite", "provider":
		if !success {
			return fmt.Errorf("body %q, want success", excerpt(body))
		}
		return nil
	}
	// Many frameworks answer "success" to everything, and that is tolerated.
	if len(body) == 0 || success {
		return nil
	}
	if err := passiveReply(app, body); err != nil {
		return fmt.Errorf("body %q: want it empty, or a passive reply: %w", excerpt(body), err)
	}
	return nil
}

// passiveReply checks the envelope and signature of an encrypted reply,
// developer.work.weixin.qq.com/document/path/90241. It is not opened.
func passiveReply(app *App, body []byte) error {
	var env struct {
		Encrypt      string          `xml:"Encrypt"`
		MsgSignature string          `xml:"MsgSignature"`
		TimeStamp    string          `xml:"TimeStamp"`
		Stamp        json.RawMessage `xml:"-" json:"timestamp"` // a number in JSON
		Nonce        string          `xml:"Nonce"`
	}
	if b := bytes.TrimSpace(body); len(b) > 0 && b[0] == '{' {
		if err := json.Unmarshal(b, &env); err != nil {
			return errors.New("not json")
		}
		env.TimeStamp = strings.Trim(string(env.Stamp), `"`)
	} else if err := xml.Unmarshal(body, &env); err != nil {
		return errors.New("not xml")
	}
	if env.Encrypt == "" {
		return errors.New("no encrypt element")
	}
	if sign(app.Token, strings.TrimSpace(env.TimeStamp), strings.TrimSpace(env.Nonce), strings.TrimSpace(env.Encrypt)) != strings.TrimSpace(env.MsgSignature) {
		return errors.New("its signature is wrong")
	}
	return nil
}

func excerpt(b []byte) string {
	if len(b) > 80 {
		return cut(string(b), 80) + "…"
	}
	return string(b)
}

func (s *Server) app(name string) (*App, error) {
	if name == "" && len(s.cfg.Apps) == 1 {
		return &s.cfg.Apps[0], nil
	}
	if a := s.apps[name]; a != nil {
		return a, nil
	}
	var names []string
	for _, a := range s.cfg.Apps {
		names = append(names, a.Name)
	}
	return nil, badf("app %q: unknown, want one of %s", name, strings.Join(names, ", "))
}

// shown is what the chat page shows of it.
func (q *SayRequest) shown(p *payload) string {
	if q.XML != "" || len(q.JSON) > 0 {
		return p.content
	}
	switch {
	case q.Key != "":
		return q.Key
	case q.Content != "":
		return q.Content
	}
	return joinLines(q.Title, q.Label, q.Description, q.URL, q.FileName, q.PicURL, q.MediaID)
}

// appEvents are the events a member causes, and whether applications seldom answer them.
var appEvents = map[string]bool{
	"click": false, "template_card_event": false,
	"view": true, "enter_agent": true, "subscribe": true, "unsubscribe": true, "LOCATION": true,
}

// plaintext builds what is sealed.
func (s *Server) plaintext(app *App, q *SayRequest) ([]byte, error) {
	given := 0
	for _, set := range []bool{q.XML != "", len(q.JSON) > 0, q.MsgType != "" || q.Content != "" || q.Event != ""} {
		if set {
			given++
		}
	}
	if given > 1 {
		return nil, badf("give one of msgtype with its fields, xml and json")
	}
	if q.User != "" && !userID.MatchString(q.User) {
		return nil, badf("user %q: want 1 to 64 of 0-9 A-Z a-z _ - @ ., the first a letter or digit", q.User)
	}
	switch {
	case q.XML != "":
		return []byte(q.XML), nil // as it is: to play broken ones too
	case len(q.JSON) > 0:
		var text string
		if json.Unmarshal(q.JSON, &text) == nil {
			return []byte(text), nil
		}
		return q.JSON, nil
	}
	if q.User == "" {
		return nil, badf("user is missing")
	}
	if q.MsgType == "" {
		q.MsgType = "text"
	}
	if app.Kind == "aibot" {
		return s.aibotPlaintext(app, q)
	}
	return s.appPlaintext(app, q)
}

// appPlaintext follows developer.work.weixin.qq.com/document/path/90239 (messages) and 90240
// (events), element by element and in their order.
func (s *Server) appPlaintext(app *App, q *SayRequest) ([]byte, error) {
	if _, ok := appEvents[q.MsgType]; ok {
		q.MsgType, q.Event = "event", q.MsgType
	}
	var x xmlText
	x.b.WriteString("<xml>")
	x.cdata("ToUserName", orElse(app.ReceiveID, app.CorpID))
	x.cdata("FromUserName", q.User)
	x.raw("CreateTime", strconv.FormatInt(s.now().Unix(), 10))
	x.cdata("MsgType", q.MsgType)
	var missing string
	need := func(name, value string) string {
		if value == "" && missing == "" {
			missing = name
		}
		return value
	}
	switch q.MsgType {
	case "text":
		x.cdata("Content", need("content", q.Content))
	case "image":
		x.cdata("PicUrl", q.PicURL)
		x.cdata("MediaId", orElse(q.MediaID, "sim-image"))
	case "voice":
		x.cdata("MediaId", orElse(q.MediaID, "sim-voice"))
		x.cdata("Format", orElse(q.Format, "amr"))
	case "video":
		x.cdata("MediaId", orElse(q.MediaID, "sim-video"))
		x.cdata("ThumbMediaId", orElse(q.ThumbMediaID, "sim-thumb"))
	case "file": // not in the manual, but seen by others
		x.cdata("FileName", need("file_name", q.FileName))
		x.cdata("MediaId", orElse(q.MediaID, "sim-file"))
	case "location":
		x.raw("Location_X", need("latitude", q.Latitude.String()))
		x.raw("Location_Y", need("longitude", q.Longitude.String()))
		x.raw("Scale", orElse(q.Scale.String(), "15"))
		x.cdata("Label", q.Label)
	case "link":
		x.cdata("Title", need("title", q.Title))
		x.cdata("Description", q.Description)
		x.cdata("Url", need("url", q.URL))
		x.cdata("PicUrl", q.PicURL)
	case "event":
		if _, ok := appEvents[q.Event]; !ok {
			return nil, badf("event %q: unknown, send it as xml", q.Event)
		}
		x.cdata("Event", q.Event)
		switch q.Event {
		case "click":
			x.cdata("EventKey", need("key", q.Key))
		case "view":
			x.cdata("EventKey", need("key (or url)", orElse(q.Key, q.URL)))
		case "template_card_event":
			x.cdata("EventKey", need("key", q.Key))
			x.cdata("TaskId", need("task_id", q.TaskID))
			x.cdata("CardType", orElse(q.CardType, "button_interaction"))
			x.cdata("ResponseCode", orElse(q.ResponseCode, randomID(48)))
		case "LOCATION":
			x.raw("Latitude", need("latitude", q.Latitude.String()))
			x.raw("Longitude", need("longitude", q.Longitude.String()))
			x.raw("Precision", "15.0")
			x.cdata("AppType", "wxwork")
		default:
			x.cdata("EventKey", "")
		}
	default:
		return nil, badf("msgtype %q: unknown, want text, image, voice, video, file, location, link, event or an event's name; or send it as xml", q.MsgType)
	}
	if missing != "" {
		return nil, badf("%s is missing", missing)
	}
	if q.MsgType != "event" {
		x.raw("MsgId", s.messageID())
	}
	if app.AgentID != "" {
		x.raw("AgentID", app.AgentID)
	}
	if q.MsgType == "location" {
		x.cdata("AppType", "wxwork")
	}
	x.b.WriteString("</xml>")
	return x.b.Bytes(), x.err
}

// messageID returns a decimal 64-bit number that no other call returns, in this run or another.
func (s *Server) messageID() string { return strconv.FormatUint(s.lastID.Add(1), 10) }

// aibotPlaintext follows developer.work.weixin.qq.com/document/path/100719 and 101027.
func (s *Server) aibotPlaintext(app *App, q *SayRequest) ([]byte, error) {
	if q.MsgType == "enter_chat" {
		q.MsgType, q.Event = "event", "enter_chat"
	}
	type object = map[string]any
	m := object{
		"msgid":    "sim+" + s.messageID(), // not a number, so that nobody takes it for one
		"aibotid":  orElse(app.AgentID, "sim-"+app.Name),
		"chattype": "single",
		"from":     object{"userid": q.User},
		"msgtype":  q.MsgType,
	}
	if q.MsgType != "event" {
		m["response_url"] = "https://qyapi.weixin.qq.com/cgi-bin/aibot/response?response_code=" + randomID(24)
	}
	switch q.MsgType {
	case "text":
		if q.Content == "" {
			return nil, badf("content is missing")
		}
		m["text"] = object{"content": q.Content}
	case "voice": // no audio, a transcript
		m["voice"] = object{"content": q.Content}
	case "image", "file", "video":
		m[q.MsgType] = object{"url": orElse(q.URL, q.PicURL)}
	case "event":
		m["create_time"] = s.now().Unix()
		m["event"] = object{"eventtype": q.Event, q.Event: object{}}
		switch q.Event {
		case "enter_chat":
		case "template_card_event":
			m["event"].(object)[q.Event] = object{"card_type": q.CardType, "event_key": q.Key, "task_id": q.TaskID}
		default:
			return nil, badf("event %q: unknown, send it as json", q.Event)
		}
	default:
		return nil, badf("msgtype %q: unknown to an aibot, want text, image, voice, file, video, event or enter_chat; or send it as json", q.MsgType)
	}
	return bytes.TrimRight(marshal(m), "\n"), nil
}

func orElse(v, fallback string) string {
	if v == "" {
		return fallback
	}
	return v
}

// xmlText writes elements as WeCom does: text in CDATA, numbers bare.
type xmlText struct {
	b   bytes.Buffer
	err error
}

func (x *xmlText) raw(name, value string) { fmt.Fprintf(&x.b, "<%s>%s</%[1]s>", name, value) }

func (x *xmlText) cdata(name, value string) {
	for _, r := range value {
		if r < ' ' && r != '\t' && r != '\n' && r != '\r' || r == 0xfffe || r == 0xffff {
			x.err = badf("%s holds U+%04X, which xml cannot carry", name, r)
			return
		}
	}
	// "]]>" would end the section: it goes into two.
	x.raw(name, "<![CDATA["+strings.ReplaceAll(value, "]]>", "]]]]><![CDATA[>")+"]]>")
}

// A payload is what the simulator must know of a plaintext, however it was given.
type payload struct {
	json    bool
	own     string // MsgId and its like
	event   string // the event id that follows from own or from the plaintext
	kind    string // for the page
	user    string
	content string
	info    string // InfoType
	quiet   bool
	once    bool // never retried
}

// describe never fails: what it cannot read it sends as it is.
func describe(plain []byte) payload {
	p := payload{kind: "raw", content: cut(strings.ToValidUTF8(string(plain), "\ufffd"), 2000)}
	if b := bytes.TrimSpace(plain); len(b) > 0 && b[0] == '{' {
		p.json = true
		p.readJSON(b)
	} else {
		p.readXML(b)
	}
	if ownID(p.own) {
		p.event = "m-" + p.own
	} else {
		sum := sha256.Sum256(plain)
		p.event = "h-" + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:]))[:26]
	}
	return p
}

// ownID reports whether an id can stand in an event id: printable ASCII without blanks.
func ownID(id string) bool {
	return id != "" && len(id) <= 128 && !strings.ContainsFunc(id, func(r rune) bool { return r <= ' ' || r > '~' })
}

func (p *payload) readJSON(b []byte) {
	var v struct {
		MsgID   string `json:"msgid"`
		MsgType string `json:"msgtype"`
		AIBotID string `json:"aibotid"`
		ID      string `json:"id"`
		Notify  string `json:"notify_type"`
		Base    struct {
			ReqID string `json:"req_id"`
		} `json:"base_info"`
		From struct {
			UserID string `json:"userid"`
		} `json:"from"`
		Text struct {
			Content string `json:"content"`
		} `json:"text"`
		Event struct {
			Type string `json:"eventtype"`
		} `json:"event"`
	}
	if json.Unmarshal(b, &v) != nil {
		return
	}
	switch {
	case v.AIBotID != "":
		p.own = v.MsgID
	case v.Base.ReqID != "":
		p.own = v.Base.ReqID
	case v.Notify != "":
		p.own = v.ID
	}
	p.user = v.From.UserID
	p.kind = orElse(v.Event.Type, orElse(v.MsgType, p.kind))
	p.content = orElse(v.Text.Content, p.content)
	p.quiet = v.Event.Type == "enter_chat"
	p.once = v.Event.Type == "template_card_event" // of AI bots: sent once, path 101027
}

func (p *payload) readXML(b []byte) {
	var v struct {
		FromUserName, MsgType, Event, InfoType, MsgId, Content string
		ID                                                     string `xml:"id"`
		Notify                                                 string `xml:"notify_type"`
	}
	if !utf8.Valid(b) || xml.Unmarshal(b, &v) != nil {
		return
	}
	p.own = strings.TrimSpace(v.MsgId)
	if v.Notify != "" {
		p.own = strings.TrimSpace(v.ID)
	}
	p.user = strings.TrimSpace(v.FromUserName)
	p.info = strings.TrimSpace(v.InfoType)
	event := strings.TrimSpace(v.Event)
	p.kind = orElse(event, orElse(strings.TrimSpace(v.MsgType), orElse(p.info, p.kind)))
	p.content = orElse(v.Content, p.content)
	answered, known := appEvents[event]
	p.quiet = event != "" && (answered || !known)
}

// urgent are the suite callbacks with the short limit, path 90613.
var urgent = []string{"create_auth", "change_auth", "cancel_auth", "reset_permanent_code", "device_data_auth_change", "agree_external_userid_migration"}

func (p *payload) cutOff(app *App) time.Duration {
	if app.Kind == "hardware" || slices.Contains(urgent, p.info) {
		return urgentCutOff
	}
	return callbackCutOff
}

func (s *Server) serveSay(w http.ResponseWriter, r *http.Request) {
	var req SayRequest
	if !readControl(w, r, &req) {
		return
	}
	// Four attempts take up to 23 s, repeats longer.
	unhurried(w)
	ctx, cancel := s.detached(r.Context())
	defer cancel()
	res, err := s.Say(ctx, req)
	var bad badRequest
	switch {
	case errors.As(err, &bad):
		writeJSON(w, http.StatusBadRequest, errorBody{err.Error()})
	case err != nil:
		writeJSON(w, http.StatusServiceUnavailable, errorBody{"the simulator is stopping"})
	default:
		writeJSON(w, http.StatusOK, res)
	}
}

func readAtMost(r io.Reader, n int64) ([]byte, error) {
	b, err := io.ReadAll(io.LimitReader(r, n+1))
	if err == nil && int64(len(b)) > n {
		err = fmt.Errorf("answer is over %d bytes", n)
	}
	return b, err
}
