package wecomsim

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	mathrand "math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"time"
)

// Faults is the body of PUT /sim/faults; every call replaces all of it, an empty object ends all
// trouble. For instance
//
//	{"api":{"message/send":{"errcode":45009,"rate":0.1,"count":3}},"seed":7}
//	{"api":{"message/send":[{"reset":true,"after":true,"count":1},{"delay":"2s"}]}}
type Faults struct {
	// API says what happens to calls of gettoken, message/send, get_api_domain_ip, getcallbackip.
	// Of a list the first fault that strikes counts.
	API map[string]faultList `json:"api,omitempty"`
	// Seed makes the strikes of rates repeatable.
	Seed uint64 `json:"seed,omitempty"`
	// StrictDuplicates plays the pessimistic reading of enable_duplicate_check: a request is
	// compared only with earlier ones that carried the flag too. The manual does not say.
	StrictDuplicates bool `json:"strict_duplicates,omitempty"`
	// DropOverMemberLimit drops in silence what goes beyond 30 messages a minute or 1000 an hour
	// from one application to one member, as WeCom does. The windows slide; the manual does not
	// say whether WeCom's do.
	DropOverMemberLimit bool `json:"drop_over_member_limit,omitempty"`
	// MarkdownOverflow says what happens to markdown over 2048 bytes, of which the manual says
	// nothing: "40058" (default), "45002" or "cut".
	MarkdownOverflow string     `json:"markdown_overflow,omitempty"`
	Token            TokenFault `json:"token,omitzero"`
}

// A Fault is what befalls some calls of one API. It says one of errcode, http, reset, hang and
// garbled, or only a delay.
type Fault struct {
	ErrCode int    `json:"errcode,omitempty"`
	ErrMsg  string `json:"errmsg,omitempty"` // instead of the usual text of that errcode
	HTTP    int    `json:"http,omitempty"`   // this status with an HTML page
	Reset   bool   `json:"reset,omitempty"`  // the connection is cut
	Hang    bool   `json:"hang,omitempty"`   // no answer until the caller hangs up
	Garbled bool   `json:"garbled,omitempty"`
	// After: the call is carried out first, and then goes wrong.
	After bool     `json:"after,omitempty"`
	Delay duration `json:"delay,omitempty"` // before anything else
	Rate  float64  `json:"rate,omitempty"`  // share of calls, 0 (and 1): all
	Count int      `json:"count,omitempty"` // strikes before it ends, 0: endless
}

// A TokenFault changes how access tokens live.
type TokenFault struct {
	ExpiresIn      int    `json:"expires_in,omitempty"`      // seconds, of tokens made from now on
	ExpiredErrCode int    `json:"expired_errcode,omitempty"` // 42001 (default) or 40014
	Rotate         string `json:"rotate,omitempty"`          // every gettoken makes a new one and "kill"s or "keep"s the old
	Revoke         bool   `json:"revoke,omitempty"`          // once, now: every token is invalid
}

// harmless reports whether the call is carried out and answered as ever.
func (f *Fault) harmless() bool {
	return f.ErrCode == 0 && f.HTTP == 0 && !f.Reset && !f.Hang && !f.Garbled
}

// A faultList is one fault or an array of them.
type faultList []Fault

func (l *faultList) UnmarshalJSON(b []byte) error {
	if b = bytes.TrimSpace(b); len(b) == 0 || b[0] != '[' {
		b = slices.Concat([]byte("["), b, []byte("]"))
	}
	var list []Fault
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields() // the outer decoder's strictness does not reach here
	if err := dec.Decode(&list); err != nil {
		return err
	}
	*l = list
	return nil
}

// duration is written as "1.5s".
type duration time.Duration

func (d *duration) UnmarshalJSON(b []byte) error {
	var s string
	if err := json.Unmarshal(b, &s); err != nil {
		return fmt.Errorf(`delay %s: want a duration such as "2s"`, b)
	}
	v, err := time.ParseDuration(s)
	if err != nil {
		return fmt.Errorf(`delay %q: want a duration such as "2s"`, s)
	}
	*d = duration(v)
	return nil
}

func (d duration) MarshalJSON() ([]byte, error) { return json.Marshal(time.Duration(d).String()) }

// check reports every mistake at once.
func (f *Faults) check() error {
	var errs []error
	for _, api := range slices.Sorted(maps.Keys(f.API)) {
		if apis[api] == nil {
			errs = append(errs, fmt.Errorf("api %q: not played, want one of %s", api, strings.Join(slices.Sorted(maps.Keys(apis)), ", ")))
		}
		for _, v := range f.API[api] {
			if err := v.check(); err != nil {
				errs = append(errs, fmt.Errorf("api %q: %w", api, err))
			}
		}
	}
	switch f.MarkdownOverflow {
	case "", "40058", "45002", "cut":
	default:
		errs = append(errs, fmt.Errorf(`markdown_overflow %q: want "40058", "45002" or "cut"`, f.MarkdownOverflow))
	}
	switch f.Token.Rotate {
	case "", "kill", "keep":
	default:
		errs = append(errs, fmt.Errorf(`token rotate %q: want "kill" or "keep"`, f.Token.Rotate))
	}
	if c := f.Token.ExpiredErrCode; c != 0 && c != 42001 && c != 40014 {
		errs = append(errs, fmt.Errorf("token expired_errcode %d: want 42001 or 40014", c))
	}
	if n := f.Token.ExpiresIn; n < 0 || n > 7200 {
		errs = append(errs, fmt.Errorf("token expires_in %d: want 1 to 7200", n))
	}
	return errors.Join(errs...)
}

func (f *Fault) check() error {
	var errs []error
	n := 0
	for _, set := range []bool{f.ErrCode != 0, f.HTTP != 0, f.Reset, f.Hang, f.Garbled} {
		if set {
			n++
		}
	}
	if n > 1 {
		errs = append(errs, errors.New("errcode, http, reset, hang and garbled exclude each other"))
	}
	if n == 0 && f.Delay == 0 {
		errs = append(errs, errors.New("says none of errcode, http, reset, hang, garbled and delay"))
	}
	if f.HTTP != 0 && (f.HTTP < 300 || f.HTTP > 599) {
		errs = append(errs, fmt.Errorf("http %d: want 300 to 599", f.HTTP))
	}
	if f.Rate < 0 || f.Rate > 1 {
		errs = append(errs, fmt.Errorf("rate %v: want 0 to 1", f.Rate))
	}
	if f.Count < 0 {
		errs = append(errs, fmt.Errorf("count %d: want 0 or more", f.Count))
	}
	if f.Delay < 0 || time.Duration(f.Delay) > 10*time.Minute {
		errs = append(errs, fmt.Errorf("delay %v: want 0 to 10m", time.Duration(f.Delay)))
	}
	return errors.Join(errs...)
}

// faultState is the faults in force. The caller holds the lock.
type faultState struct {
	f    Faults
	left map[string][]int // strikes left of each fault, -1: endless
	rnd  *mathrand.Rand
}

func (st *faultState) set(f Faults) {
	st.f = f
	st.rnd = mathrand.New(mathrand.NewPCG(f.Seed, 0))
	st.left = map[string][]int{}
	for api, list := range f.API {
		for _, v := range list {
			n := v.Count
			if n == 0 {
				n = -1
			}
			st.left[api] = append(st.left[api], n)
		}
	}
}

// hit returns the fault that strikes a call of api, or nil.
func (st *faultState) hit(api string) *Fault {
	for i := range st.f.API[api] {
		f, left := &st.f.API[api][i], &st.left[api][i]
		if *left == 0 || f.Rate > 0 && f.Rate < 1 && st.rnd.Float64() >= f.Rate {
			continue
		}
		if *left > 0 {
			*left--
		}
		return f
	}
	return nil
}

// SetFaults puts f in force in place of what was, or reports every mistake in it.
func (s *Server) SetFaults(f Faults) error {
	if err := f.check(); err != nil {
		return badRequest{err}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if f.Token.Revoke {
		s.tokens.revoke()
		f.Token.Revoke = false // done
	}
	s.faults.set(f)
	return nil
}

func (s *Server) serveFaults(w http.ResponseWriter, _ *http.Request) {
	s.mu.Lock()
	f := s.faults.f
	s.mu.Unlock()
	writeJSON(w, http.StatusOK, f) // never changed in place
}

func (s *Server) serveSetFaults(w http.ResponseWriter, r *http.Request) {
	var f Faults
	if !readControl(w, r, &f) {
		return
	}
	if err := s.SetFaults(f); err != nil {
		writeJSON(w, http.StatusBadRequest, errorBody{strings.ReplaceAll(err.Error(), "\n", "; ")})
		return
	}
	s.serveFaults(w, r)
}
