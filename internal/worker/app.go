package worker

import (
	"errors"
	"strconv"
	"sync"

	"github.com/wecom-bridge/wecom-bridge/internal/wecom"
)

// app is a WeCom application that the sender sends as.
type app struct {
	name    string
	corpID  string
	source  string // of its receipts
	agentID string // as JSON; "" for none
	numeric bool
	client  *wecom.Client

	mu          sync.Mutex
	credentials error // why there is no access token
	sending     error // why the last send was refused, if an operator has to mend it
}

func newApp(a App, api string) *app {
	n := &app{
		name: a.Name, corpID: a.CorpID, source: "/wecom/" + a.CorpID + "/" + a.Name, agentID: a.AgentID,
		client: wecom.NewClient(wecom.ClientOptions{BaseURL: api, CorpID: a.CorpID, Secret: a.Secret}),
	}
	if a.CorpID == "" {
		n.source = "/wecom/-/" + a.Name
	}
	// WeCom wants an integer, and takes the names that some private deployments use.
	if i, err := strconv.ParseUint(a.AgentID, 10, 63); err == nil && strconv.FormatUint(i, 10) == a.AgentID {
		n.numeric = true
	} else if a.AgentID != "" {
		n.agentID = strconv.QuoteToASCII(a.AgentID)
	}
	return n
}

func (a *app) sent() {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.credentials, a.sending = nil, nil
}

func (a *app) refused(err *wecom.Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if err.API == "gettoken" {
		a.credentials = err
		return
	}
	a.sending = err
}

func (a *app) checked(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.credentials = err
}

// state is what readiness shows of the app: "ok", or what stands in its way.
func (a *app) state() string {
	a.mu.Lock()
	defer a.mu.Unlock()
	err := a.credentials
	if err == nil {
		err = a.sending
	}
	if err == nil {
		return "ok"
	}
	var e *wecom.Error
	if errors.As(err, &e) && e.Code == 41004 && e.API == "gettoken" {
		return "no secret: this worker cannot send for it"
	}
	return err.Error()
}

// documented are the calls that WeCom answers for certain. A 404 for one of them comes
// from something in between.
var documented = map[string]bool{
	"message/send": true, "message/recall": true, "message/update_template_card": true, "message/get_statistics": true,
	"linkedcorp/message/send": true, "externalcontact/message/send": true,
	"appchat/create": true, "appchat/update": true, "appchat/send": true,
	"kf/send_msg": true, "kf/send_msg_on_event": true, "kf/service_state/trans": true,
	"menu/create": true, "media/upload_by_url": true,
}

// takesAgentID are the calls whose body names the application.
var takesAgentID = map[string]bool{
	"message/send": true, "message/update_template_card": true, "linkedcorp/message/send": true,
}

// apiLabel bounds the values of a metric's label.
func apiLabel(api string) string {
	if documented[api] {
		return api
	}
	return "other"
}
