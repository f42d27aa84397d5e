package wecomsim

import (
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// A refusal ends a call with an errcode; text replaces the table's when it is not empty.
type refusal struct {
	code int
	text string
}

func refuse(code int) *refusal { return &refusal{code: code} }

func refuseParam(what string) *refusal {
	return &refusal{40058, what + ". invalid Request Parameter"}
}

type sendReply struct {
	status
	InvalidUser    string `json:"invaliduser,omitempty"`
	InvalidParty   string `json:"invalidparty,omitempty"`
	InvalidTag     string `json:"invalidtag,omitempty"`
	UnlicensedUser string `json:"unlicenseduser,omitempty"`
	MsgID          string `json:"msgid,omitempty"`
	ResponseCode   string `json:"response_code,omitempty"`
}

// send is message/send, developer.work.weixin.qq.com/document/path/90236. The credential is
// checked first; the order of the later checks is not documented.
func (s *Server) send(c *call) answer {
	if ans, ok := s.checkToken(c); !ok {
		return ans
	}
	reply := &sendReply{}
	no := func(r *refusal) answer { return answer{code: r.code, text: r.text, body: reply} }
	if c.r.Method != http.MethodPost {
		return no(refuseParam("http method is not POST"))
	}
	m, ok := decode(c.body)
	if !ok {
		c.warn = true
		return no(refuse(40058))
	}
	f := fields{m, &c.warn}
	s.mu.Lock()
	overflow := s.faults.f.MarkdownOverflow
	s.mu.Unlock()

	msgtype := f.str("msgtype")
	app, r := s.agent(c.cred, f, msgtype == "miniprogram_notice")
	if r != nil {
		return no(r)
	}
	ct := content{kind: msgtype, all: f.str("touser") == "@all", safe: f.int("safe"), overflow: overflow}
	shown, r := ct.check(f)
	if r != nil {
		return no(r)
	}
	to, r := readRecipients(f)
	if r != nil {
		return no(r)
	}
	reply.InvalidUser = strings.Join(to.invalid, "|")
	reply.InvalidParty = strings.Join(to.invalidParty, "|")
	reply.InvalidTag = strings.Join(to.invalidTag, "|")
	reply.UnlicensedUser = strings.Join(to.unlicensed, "|")
	ans := answer{body: reply}
	if to.errcode != 0 {
		ans.code = to.errcode
		return ans
	}
	if ans.effect = to.before; ans.effect.kind != "" {
		return ans
	}
	if len(to.users) == 0 && !to.all {
		// Members without a licence alone: no code is documented, this one covers "not permitted".
		return no(refuse(81013))
	}
	ans.effect = to.after
	reply.MsgID = randomID(64)
	if ct.callback {
		reply.ResponseCode = randomID(48)
	}
	s.deliver(app, &Message{
		App: app.Name, API: "message/send", MsgType: msgtype, Content: shown,
		Body: bytes.ToValidUTF8(c.body, []byte("\ufffd")), MsgID: reply.MsgID,
	}, to, duplicateKey(app, m), f.int("enable_duplicate_check") == 1, f.int("duplicate_check_interval"))
	return ans
}

// agent finds the application that the request names and the token belongs to.
func (s *Server) agent(cred credential, f fields, optional bool) (*App, *refusal) {
	id, has, ok := f.number("agentid")
	if !has && !optional {
		return nil, refuse(41011)
	}
	if has && !ok {
		return nil, refuse(40056)
	}
	want, other := strconv.FormatInt(id, 10), false
	for i := range s.cfg.Apps {
		a := &s.cfg.Apps[i]
		if a.CorpID != cred.corp || has && a.AgentID != want {
			continue
		}
		if a.Secret == cred.secret {
			return a, nil
		}
		other = true
	}
	if other {
		return nil, refuse(301002)
	}
	return nil, refuse(40056)
}

// deliver puts m into the inboxes it is for, unless one of WeCom's silent rules drops it.
func (s *Server) deliver(app *App, m *Message, to recipients, key [16]byte, check bool, interval int64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	m.Time, m.at = now.UTC(), now
	// What WeCom answers for a suppressed duplicate is not documented: errcode 0 as for any other.
	if s.dup.seen(key, now, check, interval, s.faults.f.StrictDuplicates) {
		m.dropped = "duplicate"
		s.show(m, to)
		return
	}
	if s.faults.f.DropOverMemberLimit {
		kept := to.users[:0:0]
		for _, u := range to.users {
			if s.limit.take(app.Name+"/"+u, now, s.minute()) {
				kept = append(kept, u)
			}
		}
		if to.users = kept; len(kept) == 0 && !to.all {
			m.dropped = "member_limit"
			s.show(m, to)
			return
		}
	}
	for _, u := range to.users {
		s.box.add(u, m)
	}
	if to.all {
		s.box.add(everybody, m)
	}
	s.box.notify()
	s.show(m, to)
}

func (s *Server) minute() time.Duration {
	if s.cfg.Minute > 0 {
		return s.cfg.Minute
	}
	return time.Minute
}

// recipients are who a message is for, sorted out.
type recipients struct {
	users                             []string // lower-cased
	all                               bool     // @all, or a department or tag: everybody is in each
	invalid, invalidParty, invalidTag []string
	unlicensed                        []string
	errcode                           int
	before, after                     effect
}

var (
	userID = regexp.MustCompile(`^[0-9A-Za-z][0-9A-Za-z_\-@.]{0,63}$`)
	// groupID is a department or tag: a positive 32-bit number.
	groupID = regexp.MustCompile(`^[1-9][0-9]{0,9}$`)
	magic   = regexp.MustCompile(`^(errcode|http|slow)-(-?[0-9]{1,7})$`)
)

func readRecipients(f fields) (recipients, *refusal) {
	var to recipients
	users, parties, tags := split(f.str("touser")), split(f.str("toparty")), split(f.str("totag"))
	if len(users)+len(parties)+len(tags) == 0 {
		return to, refuse(82001)
	}
	if len(users) == 1 && users[0] == "@all" {
		to.all = true
		return to, nil
	}
	switch {
	case len(users) > 1000:
		return to, refuse(40032)
	case len(parties) > 100:
		return to, refuse(82002)
	case len(tags) > 100:
		return to, refuse(82003)
	}
	seen := make(map[string]bool, len(users))
	for _, u := range users {
		u = strings.ToLower(u) // userids are case-insensitive and come back like this
		if seen[u] {
			continue
		}
		seen[u] = true
		to.add(u)
	}
	to.invalidParty = to.groups(parties)
	to.invalidTag = to.groups(tags)
	return to, nil
}

// groups takes every well-formed id and returns the others.
func (to *recipients) groups(ids []string) (invalid []string) {
	for _, id := range ids {
		n, err := strconv.ParseUint(id, 10, 32)
		if groupID.MatchString(id) && err == nil && n > 0 {
			to.all = true
		} else {
			invalid = append(invalid, id)
		}
	}
	return invalid
}

// add sorts one lower-cased userid; the package comment lists the magic ones.
func (to *recipients) add(u string) {
	if m := magic.FindStringSubmatch(u); m != nil {
		n, _ := strconv.Atoi(m[2])
		switch {
		case m[1] == "errcode" && n != 0:
			to.errcode = n
			return
		case m[1] == "http" && n >= 400 && n <= 599:
			to.before = effect{"http", n}
			return
		case m[1] == "slow" && n >= 0 && n <= 600_000:
			to.after = effect{"slow", n}
		}
	}
	switch {
	case u == "timeout":
		to.before = effect{kind: "hang"}
		return
	case u == "reset":
		to.before = effect{kind: "reset"}
		return
	case u == "timeout-after":
		to.after = effect{kind: "hang"}
	case u == "reset-after":
		to.after = effect{kind: "reset"}
	case u == "garbled":
		to.after = effect{kind: "garbled"}
	case u == "unlicensed":
		to.unlicensed = append(to.unlicensed, u)
		return
	case !userID.MatchString(u), u == "not-found", strings.HasPrefix(u, "not-found-"):
		to.invalid = append(to.invalid, u)
		return
	}
	to.users = append(to.users, u)
}

// fields reads members of a JSON object as WeCom does: a member of the wrong type counts as
// missing, a number in a string as the number, and both put the warning into errmsg.
type fields struct {
	m    map[string]any
	warn *bool
}

func decode(body []byte) (map[string]any, bool) {
	dec := json.NewDecoder(bytes.NewReader(body))
	dec.UseNumber()
	var m map[string]any
	if err := dec.Decode(&m); err != nil || m == nil {
		return nil, false
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, false
	}
	return m, true
}

func (f fields) str(name string) string {
	switch v := f.m[name].(type) {
	case string:
		return v
	case nil:
	default:
		*f.warn = true
	}
	return ""
}

func (f fields) number(name string) (n int64, has, ok bool) {
	var text string
	switch v := f.m[name].(type) {
	case nil:
		return 0, false, false
	case json.Number:
		text = v.String()
	case string:
		*f.warn = true
		text = v
	default:
		*f.warn = true
		return 0, true, false
	}
	n, err := strconv.ParseInt(text, 10, 64)
	return n, true, err == nil
}

func (f fields) int(name string) int64 {
	n, _, _ := f.number(name)
	return n
}

func (f fields) bool(name string) bool {
	switch v := f.m[name].(type) {
	case bool:
		return v
	case nil:
	default:
		*f.warn = true
	}
	return false
}

func (f fields) has(name string) bool { return f.m[name] != nil }

// obj returns an empty object for one that is missing.
func (f fields) obj(name string) fields {
	switch v := f.m[name].(type) {
	case map[string]any:
		return fields{v, f.warn}
	case nil:
	default:
		*f.warn = true
	}
	return fields{nil, f.warn}
}

func (f fields) list(name string) []fields {
	v, ok := f.m[name].([]any)
	if !ok {
		*f.warn = *f.warn || f.m[name] != nil
		return nil
	}
	list := make([]fields, len(v))
	for i, x := range v {
		m, ok := x.(map[string]any)
		*f.warn = *f.warn || !ok
		list[i] = fields{m, f.warn}
	}
	return list
}

func randomID(n int) string {
	b := make([]byte, n)
	rand.Read(b)
	return base64.RawURLEncoding.EncodeToString(b)
}

// duplicateKey is what two requests must share to be duplicates: the application and the whole
// request but for the flag itself. Whether recipients belong to WeCom's key, or the order of
// members, is not documented; here recipients do and order does not.
func duplicateKey(app *App, m map[string]any) (key [16]byte) {
	rest := make(map[string]any, len(m))
	for k, v := range m {
		if k != "enable_duplicate_check" && k != "duplicate_check_interval" {
			rest[k] = v
		}
	}
	h := sha256.New()
	h.Write([]byte(app.Name + "\n"))
	h.Write(marshal(rest)) // map keys come out sorted
	copy(key[:], h.Sum(nil))
	return key
}

// duplicates remembers requests. The caller holds the lock.
type duplicates struct {
	last  map[[16]byte]sighting
	order []struct { // by time
		key [16]byte
		at  time.Time
	}
}

type sighting struct{ any, flagged time.Time }

const (
	duplicateDefault = 1800 * time.Second
	duplicateMax     = 14400 * time.Second
	maxDuplicates    = 200_000 // requests remembered
)

// seen records one request and reports whether it is suppressed. A suppressed request does not
// make the suppression last longer (not documented).
func (d *duplicates) seen(key [16]byte, now time.Time, check bool, interval int64, strict bool) bool {
	if d.last == nil {
		d.last = map[[16]byte]sighting{}
	}
	for len(d.order) > 0 && (now.Sub(d.order[0].at) > duplicateMax || len(d.order) > maxDuplicates) {
		old := d.order[0]
		d.order = d.order[1:]
		if !d.last[old.key].any.After(old.at) {
			delete(d.last, old.key)
		}
	}
	was := d.last[key]
	if check {
		window := min(time.Duration(min(interval, 1<<20))*time.Second, duplicateMax)
		if window <= 0 {
			window = duplicateDefault
		}
		before := was.any
		if strict {
			before = was.flagged
		}
		if !before.IsZero() && now.Sub(before) <= window {
			return true
		}
		was.flagged = now
	}
	was.any = now
	d.last[key] = was
	d.order = append(d.order, struct {
		key [16]byte
		at  time.Time
	}{key, now})
	return false
}

// memberLimit counts what one application sent to one member. The caller holds the lock.
type memberLimit map[string][]time.Time

const (
	memberMinute = 30
	memberHour   = 1000
)

// take reports whether one more message fits, and counts it if so.
func (l memberLimit) take(key string, now time.Time, minute time.Duration) bool {
	sent := l[key]
	for len(sent) > 0 && now.Sub(sent[0]) >= 60*minute {
		sent = sent[1:]
	}
	recent := 0
	for i := len(sent) - 1; i >= 0 && now.Sub(sent[i]) < minute; i-- {
		recent++
	}
	ok := recent < memberMinute && len(sent) < memberHour
	if ok {
		sent = append(sent, now)
	}
	l[key] = sent
	return ok
}
