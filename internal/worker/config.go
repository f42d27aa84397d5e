package worker

import (
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/url"
	"regexp"
	"strings"
	"time"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
)

// Config is what the worker takes from the environment.
type Config struct {
	Apps      []string `required:"true" desc:"names of the apps, comma-separated, each of a-z 0-9 - and at most 32 long; the same for all workers"`
	OpsListen string   `split_words:"true" default:"127.0.0.1:9091" desc:"address of /healthz, /readyz and /metrics"`
	Nats      bus.Options
	API       APIConfig
	Rules     string        `desc:"rules file (YAML) of the built-in handler; without one it answers nothing"`
	AckWait   time.Duration `split_words:"true" default:"30s" desc:"how long an event or message stays with a worker that was killed before another one gets it"`
	LogLevel  slog.Level    `split_words:"true" default:"info" desc:"debug, info, warn or error"`

	App         []App  `ignored:"true"` // one for each of Apps, in the same order
	RulesSource []byte `ignored:"true"` // the rules themselves, used when Rules is empty

	// An open listener in place of OpsListen, for a caller that has to know its port
	// beforehand. Run closes it.
	OpsListener net.Listener `ignored:"true"`

	// Shorter delays for tests; zero means the normal ones.
	retry, limitWait time.Duration
}

// APIConfig says where WeCom's API is.
type APIConfig struct {
	URL string `default:"https://qyapi.weixin.qq.com" desc:"WeCom's API, for proxies, private deployments and the simulator"`
}

// App is what the worker takes from the environment for one app, under
// BRIDGE_APP_<NAME>_.
type App struct {
	Name    string `ignored:"true"`
	CorpID  string `split_words:"true" desc:"corp id; needed to send"`
	AgentID string `split_words:"true" desc:"agent id of the application; put into messages that have none"`
	Secret  string `secret:"true" desc:"secret of the application; needed to send"`
}

var appName = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)

// Validate reports every mistake that the types cannot show, by variable name and
// without the value.
func (c *Config) Validate() error {
	var errs []error
	if u, err := url.Parse(c.API.URL); err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" {
		errs = append(errs, errors.New("BRIDGE_API_URL: must be http:// or https://, a host, and no more than a path behind it"))
	}
	if c.AckWait < time.Second || c.AckWait > 10*time.Minute {
		errs = append(errs, errors.New("BRIDGE_ACK_WAIT: must be 1s to 10m"))
	}
	seen := make(map[string]bool)
	for _, a := range c.App {
		switch {
		case !appName.MatchString(a.Name):
			errs = append(errs, fmt.Errorf("BRIDGE_APPS: %q is not 1 to 32 of a-z 0-9 -", a.Name))
			continue
		case seen[a.Name]:
			errs = append(errs, fmt.Errorf("BRIDGE_APPS: %s stands there twice", a.Name))
			continue
		}
		seen[a.Name] = true
		if a.Secret != "" && a.CorpID == "" {
			errs = append(errs, fmt.Errorf("BRIDGE_APP_%s_CORP_ID: required with a secret (corp id)", strings.ToUpper(strings.ReplaceAll(a.Name, "-", "_"))))
		}
	}
	return errors.Join(errs...)
}
