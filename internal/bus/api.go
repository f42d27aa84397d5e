package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// api sends one request to JetStream's API, $JS.API.<subject>, and decodes the
// answer into resp, which may be nil. It gives up after apiTry.
func (b *Bus) api(ctx context.Context, subject string, req, resp any) error {
	w, err := b.up()
	if err != nil {
		return err
	}
	var body []byte
	if req != nil {
		if body, err = json.Marshal(req); err != nil {
			return fmt.Errorf("encode request: %w", err)
		}
	}
	m, err := w.do(ctx, w.requests, outgoing{subject: "$JS.API." + subject, data: body}, apiTry)
	if err != nil {
		return err
	}
	var failed struct {
		Error *apiError `json:"error"`
	}
	if err := json.Unmarshal(m.Data, &failed); err != nil {
		return fmt.Errorf("%w: decode answer: %w", ErrUnavailable, err)
	}
	if failed.Error != nil {
		return failed.Error
	}
	if resp == nil {
		return nil
	}
	if err := json.Unmarshal(m.Data, resp); err != nil {
		return fmt.Errorf("%w: decode answer: %w", ErrUnavailable, err)
	}
	return nil
}

// retry calls f until it succeeds, ctx ends, the Bus is closed or the error is one
// that time does not mend. The wait in between grows to two seconds and ends early
// when a connection comes up.
func (b *Bus) retry(ctx context.Context, what string, f func(context.Context) error) error {
	const first, most = 100 * time.Millisecond, 2 * time.Second
	for wait := first; ; wait = min(2*wait, most) {
		up := b.watch()
		err := f(ctx)
		if err == nil {
			return nil
		}
		err = fmt.Errorf("%s: %w", what, err)
		if ctx.Err() != nil || errors.Is(err, ErrClosed) || !passing(err) {
			return err
		}
		b.warn("bus not ready", err)
		t := time.NewTimer(wait)
		select {
		case <-up:
		case <-t.C:
		case <-b.done:
		case <-ctx.Done():
		}
		t.Stop()
	}
}

// passing reports whether the same request may succeed later.
func passing(err error) bool {
	if errors.Is(err, errDenied) {
		return false
	}
	return errors.Is(err, ErrUnavailable) || code(err) == codeStreamNotFound
}
