package worker

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/wecom-bridge/wecom-bridge/bridge"
	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/wecom"
)

const (
	defaultAPI = "message/send"

	// WeCom remembers a message for its duplicate check for four hours at most
	// (developer.work.weixin.qq.com/document/path/90236).
	maxDuplicateCheck = 4 * time.Hour
	duplicateSlack    = 5 * time.Second

	// How often a refusal that should pass is tried before it counts as final.
	busyTries  = 20
	tokenTries = 10

	storeFor = 10 * time.Second // how long one delivery goes on trying to store its receipt
)

// Headers of an outbox message.
const (
	headerAPI     = "Wecom-Api"
	headerEvent   = "Bridge-Event"
	headerExpires = "Bridge-Expires"
)

// sender takes messages from the outbox and makes the calls that they hold. handle is
// safe for concurrent use.
type sender struct {
	apps    map[string]*app
	publish func(context.Context, *bus.Msg) (bus.Ack, error)
	last    func(ctx context.Context, stream, subject string) (*bus.Stored, error)
	log     *slog.Logger
	metrics *metrics
	now     func() time.Time
	wait    time.Duration // first delay after a frequency limit; doubled each time

	mu    sync.Mutex
	tries map[uint64]*try // by sequence in the outbox
}

// try is what this process knows about a message that it has not finished.
type try struct {
	seen  int       // deliveries to this process
	since time.Time // the first attempt here that may have worked; zero: none
	later int       // frequency limits met in a row
	at    time.Time // last delivery, to forget what went to another process

	// The end, once it is known: from then on only the receipt is to be stored.
	receipt *bridge.Receipt
	dead    error // with a failed receipt: the reason for the dead letters
	class   string
}

// message is a delivery with what its subject and headers say.
type message struct {
	*bus.Delivery
	appName string
	id      string
	api     string
	event   string
	replay  bool // out of the dead letters, for another try
}

func newMessage(d *bus.Delivery) *message {
	m := &message{Delivery: d, appName: d.App, id: d.ID, api: d.Header[headerAPI], event: d.Header[headerEvent], replay: d.Header[bus.HeaderReplay] != ""}
	if name, ok := bus.Untoken(d.App); ok {
		m.appName = name
	}
	if id := d.Header[bus.HeaderID]; m.replay && id != "" {
		m.id = id // Nats-Msg-Id is the replay's own
	}
	if m.id == "" {
		m.id = "s-" + strconv.FormatUint(d.Seq, 10)
	}
	m.id = strings.TrimPrefix(m.id, m.appName+"/")
	if m.api == "" {
		m.api = defaultAPI
	}
	return m
}

// receiptID is the Nats-Msg-Id of the receipt: the same for every delivery of one
// outbox message, another one for its replay.
func (m *message) receiptID() string {
	return fmt.Sprintf("receipt:%s/%s:%d", m.appName, m.id, m.Seq)
}

// handle sees one delivery through and returns the verdict for the bus.
func (s *sender) handle(ctx context.Context, d *bus.Delivery) error {
	m := newMessage(d)
	t := s.begin(d)
	if t.receipt == nil {
		prior, err := s.last(ctx, bus.StreamReceipts, bus.ReceiptSubject(m.appName, "*", m.id))
		switch {
		case err == nil:
			if done, err := s.known(m, prior); done {
				s.forget(d)
				return err
			}
		case !errors.Is(err, bus.ErrNotFound):
			return fmt.Errorf("look for the receipt of message %s: %w", m.id, err)
		}
		if f := s.attempt(ctx, m, t); f != nil {
			return f.verdict()
		}
	}
	if err := s.store(ctx, m, t.receipt); err != nil {
		return err // the next delivery to this process finds the receipt in t
	}
	s.forget(d)
	s.report(m, t)
	if t.dead != nil {
		return bus.Reject(t.dead)
	}
	return nil
}

// begin notes a delivery.
func (s *sender) begin(d *bus.Delivery) *try {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	t := s.tries[d.Seq]
	if t == nil {
		if len(s.tries) >= 1024 {
			for seq, old := range s.tries {
				if now.Sub(old.at) > maxDuplicateCheck {
					delete(s.tries, seq)
				}
			}
		}
		t = new(try)
		s.tries[d.Seq] = t
	}
	t.seen++
	t.at = now
	return t
}

func (s *sender) forget(d *bus.Delivery) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.tries, d.Seq)
}

// known decides what a receipt that is already there means: nothing is sent, except
// for a replay of what had failed.
func (s *sender) known(m *message, r *bus.Stored) (done bool, err error) {
	status := bridge.Sent
	if parts := strings.Split(r.Subject, "."); len(parts) == 5 {
		status = parts[3]
	}
	own := r.ID == m.receiptID()
	if status == bridge.Failed || status == bridge.Expired {
		if m.replay && !own {
			return false, nil
		}
		if status == bridge.Failed && own {
			// Its dead letter may be missing: the crash came between the two. The bus keeps
			// one per message.
			var ev struct{ Data bridge.Receipt }
			_ = json.Unmarshal(r.Data, &ev) // a receipt of ours; without it the reason is shorter
			why := errors.New(ev.Data.ErrMsg)
			if ev.Data.ErrCode != 0 {
				why = &wecom.Error{API: m.api, Code: ev.Data.ErrCode, Msg: ev.Data.ErrMsg}
			}
			return true, bus.Reject(why)
		}
	}
	s.metrics.messages.WithLabelValues(s.appLabel(m), apiLabel(m.api), "known", "").Inc()
	s.log.Info("message already done", "event", m.event, "app", m.appName, "message", m.id, "attempt", m.Attempt, "status", status)
	return true, nil
}

// attempt brings the message to an end in t, or says why there is none yet.
func (s *sender) attempt(ctx context.Context, m *message, t *try) *failure {
	expires, hasExpiry := m.Header[headerExpires]
	if hasExpiry {
		at, err := time.Parse(time.RFC3339, expires)
		switch {
		case err != nil:
			s.refuse(m, t, "local", errors.New("header Bridge-Expires is not an RFC 3339 time"))
			return nil
		case !s.now().Before(at):
			s.end(m, t, bridge.Expired, bridge.Receipt{})
			return nil
		}
	}
	a := s.apps[m.appName]
	if a == nil {
		s.metrics.retries.WithLabelValues("other", "unknown-app").Inc()
		return again("app %q is not configured at this worker", m.appName)
	}
	body, err := parseObject(m.Data)
	if err != nil {
		s.refuse(m, t, "local", err)
		return nil
	}
	if takesAgentID[m.api] && a.agentID != "" && !body.has("agentid") {
		body.set("agentid", a.agentID)
	}
	repeat := s.repeats(m, t)
	if !repeat.IsZero() && m.api == defaultAPI {
		checkDuplicates(body, s.now().Sub(repeat))
	}

	start := s.now()
	res, err := a.client.Call(ctx, m.api, body.src)
	if d := s.now().Sub(start); err == nil || !errors.Is(err, wecom.ErrAPI) {
		s.metrics.calls.WithLabelValues(a.name).Observe(d.Seconds())
	}
	if err == nil {
		a.sent()
		status := bridge.Sent
		if res.Partial() {
			status = bridge.Partial
		}
		s.end(m, t, status, bridge.Receipt{
			ErrMsg: res.ErrMsg, MsgID: res.MsgID, ResponseCode: res.ResponseCode,
			Invalid: bridge.Invalid{User: res.InvalidUser, Party: res.InvalidParty, Tag: res.InvalidTag, Unlicensed: res.Unlicensed},
		})
		return nil
	}
	return s.judge(m, t, a, err, start, repeat)
}

// repeats returns when the first attempt was made that may have reached WeCom; zero if
// there was certainly none.
//
// What this process attempted it remembers. If there were deliveries that it does not
// know of (another process, or this one before a restart), the attempt is no older
// than the message: the time when that was stored stands in. This makes the window of
// the duplicate check too long for a message that waited in the outbox, by the time
// that it waited, and never too short: an equal text sent to the same people within it
// would be swallowed, but nobody gets a message twice.
func (s *sender) repeats(m *message, t *try) time.Time {
	if m.Attempt > t.seen && (t.since.IsZero() || m.Time.Before(t.since)) {
		return m.Time
	}
	return t.since
}

// checkDuplicates lets WeCom drop the message if it got an equal one within the last
// age. A wider window of the publisher's own is left as it is.
func checkDuplicates(body *object, age time.Duration) {
	seconds := int(math.Ceil((max(age, 0) + duplicateSlack).Seconds()))
	seconds = min(seconds, int(maxDuplicateCheck.Seconds()))
	if on, _ := strconv.Atoi(string(body.get("enable_duplicate_check"))); on == 1 {
		own := 1800 // WeCom's default
		if v, err := strconv.Atoi(string(body.get("duplicate_check_interval"))); err == nil {
			own = v
		}
		if own >= seconds {
			return
		}
	}
	body.set("enable_duplicate_check", "1")
	body.set("duplicate_check_interval", strconv.Itoa(seconds))
}

// judge is the one place where a failed call becomes a verdict.
func (s *sender) judge(m *message, t *try, a *app, err error, start, repeat time.Time) *failure {
	var refused *wecom.Error
	var broken *wecom.TransportError
	label := func(class string) { s.metrics.retries.WithLabelValues(a.name, class).Inc() }
	switch {
	case errors.As(err, &refused):
		class := refused.Class()
		if class == wecom.Config {
			a.refused(refused)
		}
		if refused.Ambiguous() && t.since.IsZero() {
			t.since = start
		}
		switch {
		case !repeat.IsZero() && doneBefore(m.api, refused.Code):
			// WeCom knows the id that the body carries: the earlier attempt worked.
			s.end(m, t, bridge.Sent, bridge.Receipt{ErrMsg: refused.Msg})
			return nil
		case class == wecom.RetryLater:
			label(class.String())
			f := &failure{err: err, after: min(s.wait<<min(t.later, 8), 15*time.Minute)}
			t.later++
			return f
		case class == wecom.RetryNow && s.hopeful(m, t, busyTries),
			class == wecom.RefreshToken && m.Attempt < tokenTries:
			label(class.String())
			return &failure{err: err}
		}
		s.fail(m, t, class.String(), refused.Code, refused.Msg, err)
		return nil

	case errors.As(err, &broken):
		if broken.Status == 404 && broken.API == m.api && !documented[m.api] {
			s.refuse(m, t, "local", fmt.Errorf("%s: WeCom knows no such api (http status 404)", m.api))
			return nil
		}
		class := "transport"
		if broken.Ambiguous {
			class = "ambiguous"
			if t.since.IsZero() {
				t.since = start
			}
		}
		if !s.hopeful(m, t, math.MaxInt) {
			s.fail(m, t, class, 0, "outcome unknown for "+maxDuplicateCheck.String(), fmt.Errorf("outcome unknown for %v, after which WeCom cannot tell a repeat: %w", maxDuplicateCheck, err))
			return nil
		}
		label(class)
		return &failure{err: err}

	default: // wecom.ErrAPI
		s.refuse(m, t, "local", err)
		return nil
	}
}

// hopeful reports whether a passing failure is worth another attempt. After an attempt
// that may have worked it is for as long as WeCom can tell a repeat; a failure that
// certainly was none ends after most deliveries.
func (s *sender) hopeful(m *message, t *try, most int) bool {
	if !t.since.IsZero() {
		return s.now().Sub(t.since) < maxDuplicateCheck-duplicateSlack
	}
	return m.Attempt < most
}

// doneBefore reports whether a refusal of a repeated call says that the first worked.
func doneBefore(api string, code int) bool {
	return api == "kf/send_msg" && code == 95033 || // duplicate msgid
		api == "appchat/create" && code == 86215 // chatid exists
}

// refuse ends a message that the sender does not pass on.
func (s *sender) refuse(m *message, t *try, class string, why error) {
	s.fail(m, t, class, 0, why.Error(), why)
}

func (s *sender) fail(m *message, t *try, class string, code int, msg string, why error) {
	s.end(m, t, bridge.Failed, bridge.Receipt{ErrCode: code, ErrMsg: msg})
	t.dead, t.class = why, class
}

// end completes the receipt.
func (s *sender) end(m *message, t *try, status string, r bridge.Receipt) {
	r.Status, r.Message, r.Event, r.API = status, m.id, m.event, m.api
	r.Attempts = m.Attempt
	r.TookMS = max(0, s.now().Sub(m.Time).Milliseconds())
	t.receipt = &r
}

// store publishes the receipt and returns once it is stored.
func (s *sender) store(ctx context.Context, m *message, r *bridge.Receipt) error {
	data, err := json.Marshal(r)
	if err != nil {
		return bus.Reject(fmt.Errorf("encode receipt of message %s: %w", m.id, err))
	}
	ev := bridge.Event{
		ID: m.id, Source: "/wecom/-/" + m.appName, Type: "wecom.receipt." + r.Status, Time: s.now(),
		App: m.appName, DataContentType: "application/json", Data: data,
	}
	if a := s.apps[m.appName]; a != nil {
		ev.Source, ev.CorpID = a.source, a.corpID
		if a.numeric {
			ev.AgentID = a.agentID
		}
	}
	msg := &bus.Msg{
		Subject: bus.ReceiptSubject(m.appName, r.Status, m.id), ID: m.receiptID(),
		Header: bus.Header{"Content-Type": bridge.ContentType}, Data: ev.AppendJSON(nil),
		Wait: time.Second,
	}
	// What was sent should be known to have been sent: while the bus is away, hold on.
	ctx, cancel := context.WithTimeout(ctx, storeFor)
	defer cancel()
	for pause := 50 * time.Millisecond; ; pause = min(2*pause, time.Second) {
		_, err := s.publish(ctx, msg)
		switch {
		case err == nil:
			return nil
		case errors.Is(err, bus.ErrRefused):
			return bus.Reject(fmt.Errorf("message %s is %s, but its receipt was refused: %w", m.id, r.Status, err))
		}
		timer := time.NewTimer(pause)
		select {
		case <-timer.C:
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("store receipt of message %s: %w", m.id, err)
		}
	}
}

// report tells log and metrics how the message ended.
func (s *sender) report(m *message, t *try) {
	r := t.receipt
	took := max(0, s.now().Sub(m.Time))
	s.metrics.messages.WithLabelValues(s.appLabel(m), apiLabel(m.api), r.Status, t.class).Inc()
	log := s.log.With("event", m.event, "app", m.appName, "api", m.api, "message", m.id, "attempt", m.Attempt,
		"status", r.Status, "errcode", r.ErrCode, "took", took)
	switch r.Status {
	case bridge.Failed:
		log.Error("message failed")
		return
	case bridge.Expired:
		log.Warn("message expired")
		return
	case bridge.Partial:
		log.Warn("message sent")
	default:
		log.Info("message sent")
	}
	s.metrics.latency.WithLabelValues(s.appLabel(m)).Observe(took.Seconds())
}

// appLabel bounds the values of a metric's label: anybody may publish any app.
func (s *sender) appLabel(m *message) string {
	if s.apps[m.appName] == nil {
		return "other"
	}
	return m.appName
}
