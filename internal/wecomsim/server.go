package wecomsim

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/wecom-bridge/wecom-bridge/internal/wecom"
)

// What the platform grants, from developer.work.weixin.qq.com/document/path/90930 and 90238.
const (
	verifyCutOff   = time.Second     // URL verification
	callbackCutOff = 5 * time.Second // a callback
	urgentCutOff   = time.Second     // authorisation changes of suites, hardware
	retries        = 3
	retryDelay     = time.Second // the manual names no interval (unverified)
)

// Config says which applications exist and where their callbacks go.
type Config struct {
	// CallbackURLs are prefixes to which an application's name is appended, with a slash between
	// if the prefix ends in neither "/" nor "=". Deliveries use several in turn; a retry goes to
	// the next one, as it would behind a load balancer.
	CallbackURLs []string
	Apps         []App
	Log          *slog.Logger // nil: silent

	// Minute is the length of the per-member rate limit's minute (its hour is 60 of them), zero
	// for a real one. It matters only with [Faults.DropOverMemberLimit].
	Minute time.Duration
	// Transport carries the callbacks; nil means one of the package's own, without a proxy.
	Transport http.RoundTripper
}

// App is one application of a corp, with both halves of its secrets.
type App struct {
	Name    string // [a-z0-9-]{1,32}
	Kind    string // app (default), contacts, suite, suite-data, provider, aibot, hardware, payment
	CorpID  string
	AgentID string // decimal; empty: cannot send
	Secret  string // empty: gettoken knows no such application
	Token   string
	AESKey  string // EncodingAESKey, 43 characters
	// ReceiveID is what callbacks are sealed for. Empty means the corp id, for aibot the empty id;
	// "-" means the empty id for every kind.
	ReceiveID string
}

// Server is the simulator. Its methods may be called from any goroutine.
type Server struct {
	cfg       Config
	apps      map[string]*App
	log       *slog.Logger
	mux       *http.ServeMux
	transport http.RoundTripper
	now       func() time.Time

	life     context.Context // ended by Close: streams and hanging answers end
	end      context.CancelFunc
	turn     atomic.Uint64 // which callback URL is next
	lastID   atomic.Uint64 // the last MsgId handed out
	lastItem atomic.Uint64 // the last id of a delivery or message on the page

	mu     sync.Mutex // guards what follows
	gen    int        // counts resets: what belongs to an earlier one is no longer shown
	tokens tokens
	box    inbox
	dup    duplicates
	limit  memberLimit
	faults faultState
	recent recent
	hub    hub
}

var (
	appName = regexp.MustCompile(`^[a-z0-9-]{1,32}$`)
	digits  = regexp.MustCompile(`^[0-9]{1,18}$`)
	kinds   = []string{"app", "contacts", "suite", "suite-data", "provider", "aibot", "hardware", "payment"}
)

// New returns a simulator for cfg, or an error that names every mistake in it and no secret.
//
// Nothing runs until it is called as an [http.Handler]. Call Close when the HTTP server stops.
func New(cfg Config) (*Server, error) {
	s := &Server{
		cfg:       cfg,
		apps:      map[string]*App{},
		log:       cfg.Log,
		transport: cfg.Transport,
		now:       time.Now,
	}
	s.life, s.end = context.WithCancel(context.Background())
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if s.transport == nil {
		s.transport = &http.Transport{
			MaxIdleConnsPerHost: 256,
			IdleConnTimeout:     90 * time.Second,
			DisableCompression:  true, // WeCom has never been seen to ask for it
			// No Proxy: callbacks go where the configuration says.
		}
	}
	if err := s.configure(); err != nil {
		return nil, err
	}
	var seed [8]byte
	rand.Read(seed[:]) // never fails
	// MsgIds must not repeat across restarts and processes, or the other side would take a new
	// message for an old one. A random start in a range of 2^61 keeps any two runs apart.
	s.lastID.Store(1<<62 | binary.BigEndian.Uint64(seed[:])>>3)
	s.reset()
	s.hub.init()
	s.routes()
	return s, nil
}

func (s *Server) configure() error {
	var errs []error
	if len(s.cfg.CallbackURLs) == 0 {
		errs = append(errs, errors.New("callback url: none given"))
	}
	urls := make([]string, len(s.cfg.CallbackURLs))
	for i, raw := range s.cfg.CallbackURLs {
		u, err := url.Parse(raw)
		switch {
		case err != nil:
			errs = append(errs, fmt.Errorf("callback url %d: not a url", i+1))
		case u.Scheme != "http" && u.Scheme != "https", u.Host == "":
			errs = append(errs, fmt.Errorf("callback url %q: want http://host/path/ or https://host/path/", u.Redacted()))
		}
		if !strings.HasSuffix(raw, "/") && !strings.HasSuffix(raw, "=") {
			raw += "/"
		}
		urls[i] = raw
	}
	s.cfg.CallbackURLs = urls
	if len(s.cfg.Apps) == 0 {
		errs = append(errs, errors.New("apps: none given"))
	}
	apps := make([]App, len(s.cfg.Apps))
	copy(apps, s.cfg.Apps)
	s.cfg.Apps = apps
	for i := range apps {
		a := &apps[i]
		if a.Kind == "" {
			a.Kind = "app"
		}
		bad := func(format string, args ...any) {
			errs = append(errs, fmt.Errorf("app %q: "+format, append([]any{a.Name}, args...)...))
		}
		if !appName.MatchString(a.Name) {
			bad("a name has 1 to 32 of a-z, 0-9 and -")
		}
		if s.apps[a.Name] != nil {
			bad("given twice")
		}
		if !slices.Contains(kinds, a.Kind) {
			bad("unknown kind %q, want one of %s", a.Kind, strings.Join(kinds, ", "))
		}
		if a.CorpID == "" && a.Kind != "aibot" {
			bad("corp id is missing")
		}
		if a.AgentID != "" && !digits.MatchString(a.AgentID) {
			bad("agent id must be a number")
		}
		switch {
		case a.ReceiveID == "-":
			a.ReceiveID = ""
		case a.ReceiveID == "" && a.Kind != "aibot":
			a.ReceiveID = a.CorpID
		}
		if a.Token == "" {
			bad("token is missing")
		} else if _, _, err := wecom.Seal(a.pair(), a.ReceiveID, "0", "0", nil); err != nil {
			bad("%w", err)
		}
		s.apps[a.Name] = a
	}
	return errors.Join(errs...)
}

func (a *App) pair() wecom.Pair { return wecom.Pair{Token: a.Token, AESKey: a.AESKey} }

// Close ends event streams and answers that hang on purpose, so that the HTTP server can shut
// down: http.Server.RegisterOnShutdown(s.Close). The rest goes on working.
func (s *Server) Close() { s.end() }

// Reset forgets inboxes, access tokens, faults and history, as DELETE /sim/state does.
func (s *Server) Reset() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reset()
	s.publish("reset", struct{}{})
}

func (s *Server) reset() {
	s.gen++
	s.tokens = tokens{}
	s.box = newInbox()
	s.dup = duplicates{}
	s.limit = memberLimit{}
	s.recent = recent{}
	s.faults = faultState{}
	s.faults.set(Faults{})
}

// ServeHTTP answers the API under /cgi-bin/, the controls under /sim/ and the chat page at /.
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	// Not through the mux, which would redirect an unclean path; WeCom answers 404.
	if api, ok := strings.CutPrefix(r.URL.Path, "/cgi-bin/"); ok {
		s.serveAPI(w, r, api)
		return
	}
	s.mux.ServeHTTP(w, r)
}

func (s *Server) routes() {
	sim := http.NewServeMux()
	sim.HandleFunc("POST /sim/say", s.serveSay)
	sim.HandleFunc("POST /sim/verify", s.serveVerify)
	sim.HandleFunc("GET /sim/inbox/{user}", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusOK, s.Inbox(r.PathValue("user")))
	})
	sim.HandleFunc("GET /sim/state", func(w http.ResponseWriter, _ *http.Request) {
		s.mu.Lock()
		snap := s.snapshot()
		s.mu.Unlock()
		writeJSON(w, http.StatusOK, snap)
	})
	sim.HandleFunc("DELETE /sim/state", func(w http.ResponseWriter, _ *http.Request) {
		s.Reset()
		w.WriteHeader(http.StatusNoContent)
	})
	sim.HandleFunc("GET /sim/faults", s.serveFaults)
	sim.HandleFunc("PUT /sim/faults", s.serveSetFaults)
	sim.HandleFunc("GET /sim/events", s.serveEvents)
	sim.HandleFunc("/sim/", func(w http.ResponseWriter, r *http.Request) {
		writeJSON(w, http.StatusNotFound, errorBody{"no such call: " + r.Method + " " + r.URL.Path})
	})
	s.mux = http.NewServeMux()
	// A page of another site, open in the developer's browser, must not drive the simulator.
	s.mux.Handle("/sim/", http.NewCrossOriginProtection().Handler(sim))
	s.mux.Handle("/", page())
}

// maxControlBody bounds the requests under /sim/, in bytes.
const maxControlBody = 1 << 20

type errorBody struct {
	Error string `json:"error"`
}

// badRequest is an error that the caller can mend.
type badRequest struct{ error }

func badf(format string, args ...any) error { return badRequest{fmt.Errorf(format, args...)} }

func (e badRequest) Unwrap() error { return e.error }

func writeJSON(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	w.Write(marshal(v)) // the caller is gone if this fails
}

// marshal renders v without the HTML escapes of json.Marshal, so that what a user wrote stays
// readable.
func marshal(v any) []byte {
	var b bytes.Buffer
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		panic(err) // our own types always encode
	}
	return b.Bytes()
}

// readControl decodes the JSON body of a request under /sim/ into v, strictly, so that a misspelt
// field is told and not ignored. It has answered if it returns false.
func readControl(w http.ResponseWriter, r *http.Request, v any) bool {
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxControlBody))
	dec.DisallowUnknownFields()
	err := dec.Decode(v)
	if err == nil {
		if dec.More() {
			err = errors.New("more than one json value")
		}
	}
	var tooBig *http.MaxBytesError
	switch {
	case err == nil:
		return true
	case errors.As(err, &tooBig):
		writeJSON(w, http.StatusRequestEntityTooLarge, errorBody{fmt.Sprintf("body is over %d bytes", tooBig.Limit)})
	default:
		writeJSON(w, http.StatusBadRequest, errorBody{"body: " + strings.TrimPrefix(err.Error(), "json: ")})
	}
	return false
}

// detached returns a context that ends with the simulator and not with the request: the platform
// goes on delivering when the user closes the chat.
func (s *Server) detached(ctx context.Context) (context.Context, context.CancelFunc) {
	ctx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	stop := context.AfterFunc(s.life, cancel)
	return ctx, func() { stop(); cancel() }
}

// sleep waits for d, or until ctx or the simulator ends, and reports whether d has passed.
func (s *Server) sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return true
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-s.life.Done():
	}
	return false
}
