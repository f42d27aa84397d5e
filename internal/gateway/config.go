package gateway

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"time"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
	"github.com/wecom-bridge/wecom-bridge/internal/wecom"
)

// Config is what the gateway takes from the environment.
type Config struct {
	Apps           []string `required:"true" desc:"names of the apps, comma-separated, each of a-z 0-9 - and at most 32 long"`
	Listen         string   `default:":8080" desc:"address that WeCom calls"`
	OpsListen      string   `split_words:"true" default:"127.0.0.1:9090" desc:"address of /healthz, /readyz and /metrics"`
	Nats           bus.Options
	NatsMonitorURL string     `split_words:"true" desc:"where an outside NATS shows its sync mode, such as http://nats:8222"`
	DataDir        string     `split_words:"true" default:"data" desc:"folder of the embedded NATS server"`
	Durability     string     `default:"fsync" desc:"fsync: a 200 survives a power cut; interval: it survives a crash of the process. The embedded server's mode, the least demanded of an outside one"`
	Spool          string     `default:"on" desc:"on or off: keep events on the own disk while an outside NATS is unreachable. Not in this version yet: on only warns, and such callbacks are answered 503"`
	VerifyDir      string     `split_words:"true" desc:"folder of the WW_verify_*.txt files that prove a domain"`
	LogLevel       slog.Level `split_words:"true" default:"info" desc:"debug, info, warn or error"`

	App []App `ignored:"true"` // one for each of Apps, in the same order

	// Open listeners, in place of Listen and OpsListen, for a caller that has to know
	// their ports beforehand. Run closes them.
	Listener    net.Listener `ignored:"true"`
	OpsListener net.Listener `ignored:"true"`
}

// App is what the gateway takes from the environment for one app, under
// BRIDGE_APP_<NAME>_.
type App struct {
	Name       string   `ignored:"true"`
	CorpID     string   `split_words:"true" desc:"corp id; required unless the kind is aibot"`
	Kind       string   `default:"app" desc:"app, contacts, suite, suite-data, provider, aibot, hardware or payment"`
	Token      []string `secret:"true" required:"true" desc:"callback Token; several for rotation, newest first"`
	AESKey     []string `split_words:"true" secret:"true" required:"true" desc:"EncodingAESKey, 43 characters; as many as there are tokens"`
	ReceiveIds []string `split_words:"true" desc:"accepted receive ids, - for the empty one; the corp id if unset, the empty one for aibot"`
}

// kind is what differs between the sources that call us.
type kind struct {
	answer    string        // body of a 200; any other text counts as an error message
	deadline  time.Duration // longest wait for the bus
	noCorpID  bool          // the corp id may be missing
	emptyRecv bool          // sealed for the empty receive id by default
}

// The deadlines leave WeCom's own (5 s; 1 s for authorisations, devices and hardware)
// room for the way there and back. Pages 90613, 90930, 96062, 101033.
var kinds = map[string]kind{
	"app":        {deadline: 800 * time.Millisecond},
	"contacts":   {deadline: 800 * time.Millisecond},
	"suite":      {deadline: 400 * time.Millisecond, answer: "success"},
	"suite-data": {deadline: 400 * time.Millisecond},
	"provider":   {deadline: 400 * time.Millisecond, answer: "success"},
	"aibot":      {deadline: 800 * time.Millisecond, noCorpID: true, emptyRecv: true},
	"hardware":   {deadline: 400 * time.Millisecond},
	"payment":    {deadline: 800 * time.Millisecond},
}

// Durabilities, strongest first.
const (
	Fsync    = "fsync"
	Interval = "interval"
)

// Validate reports every mistake that the types cannot show, by variable name and
// without the value.
func (c *Config) Validate() error {
	var errs []error
	if c.Durability != Fsync && c.Durability != Interval {
		errs = append(errs, errors.New("BRIDGE_DURABILITY: must be fsync or interval"))
	}
	if c.Spool != "on" && c.Spool != "off" {
		errs = append(errs, errors.New("BRIDGE_SPOOL: must be on or off"))
	}
	for i := range c.App {
		_, err := c.App[i].compile()
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// compile turns the app's settings into what the handler works with.
func (a *App) compile() (*app, error) {
	name := func(v string) string {
		return "BRIDGE_APP_" + strings.ToUpper(strings.ReplaceAll(a.Name, "-", "_")) + "_" + v
	}
	k, ok := kinds[a.Kind]
	var errs []error
	if !ok {
		errs = append(errs, fmt.Errorf("%s: must be app, contacts, suite, suite-data, provider, aibot, hardware or payment", name("KIND")))
	}
	if a.CorpID == "" && ok && !k.noCorpID {
		errs = append(errs, fmt.Errorf("%s: required (corp id)", name("CORP_ID")))
	}
	if len(a.Token) == 0 || len(a.AESKey) == 0 {
		return nil, errors.Join(errs...) // reported as missing when it was read
	}
	if len(a.Token) != len(a.AESKey) {
		errs = append(errs, fmt.Errorf("%s and %s: must be equally many, for the first belongs to the first", name("TOKEN"), name("AES_KEY")))
		return nil, errors.Join(errs...)
	}
	var receive []string
	for _, id := range a.ReceiveIds {
		if id = strings.TrimSpace(id); id == "-" {
			id = ""
		}
		receive = append(receive, id)
	}
	switch {
	case receive != nil:
	case k.emptyRecv:
		receive = []string{""}
	default:
		receive = []string{a.CorpID}
	}
	pairs := make([]wecom.Pair, len(a.Token))
	for i := range pairs {
		pairs[i] = wecom.Pair{Token: strings.TrimSpace(a.Token[i]), AESKey: strings.TrimSpace(a.AESKey[i])}
	}
	callback, err := wecom.NewCallback(pairs, receive)
	if err != nil {
		errs = append(errs, fmt.Errorf("%s: %w", name("AES_KEY"), err))
	}
	source := a.CorpID
	if source == "" {
		source = "-" // CloudEvents wants no empty path segment's ambiguity: "/wecom//bot"
	}
	return &app{
		name: a.Name, corpID: a.CorpID, source: "/wecom/" + source + "/" + a.Name,
		kind: k, callback: callback, pairs: len(pairs),
	}, errors.Join(errs...)
}
