package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// publishLimit is how long Publish waits for an ack when the caller does not say.
const publishLimit = time.Second

// Header is the headers of a message. Names are case-sensitive.
type Header map[string]string

// Msg is a message to publish.
type Msg struct {
	Subject string
	// ID goes into Nats-Msg-Id: within its duplicate window the stream keeps one message
	// of an ID. Two hours for events, messages and receipts.
	ID     string
	Header Header // besides the ID; line breaks in a value become spaces
	Data   []byte
	Wait   time.Duration // longest wait for the ack; 0: until ctx's deadline, 1 s if it has none
}

// Ack is the broker's word that a message is stored.
type Ack struct {
	Stream    string
	Seq       uint64
	Duplicate bool // the stream already held a message with this ID, and Seq is that one's
}

// Publish stores m in the stream that takes its subject and returns once the broker
// has acknowledged it; m may be used again then. Any number of goroutines may publish
// at once; those beyond 4,096 wait for one of the others.
//
// The error is [ErrUnavailable], [ErrFull] or [ErrRefused]. Without a connection
// Publish fails at once instead of waiting for one, when the connection breaks it
// fails at once, and an ack that does not come is given up after m.Wait. After
// ErrUnavailable the message may or may not be stored. A message over the broker's
// max_payload is refused without being sent.
//
// Messages published one after the other by one goroutine are stored in that order.
func (b *Bus) Publish(ctx context.Context, m *Msg) (Ack, error) {
	return b.publish(ctx, outgoing{subject: m.Subject, id: m.ID, header: m.Header, data: m.Data}, m.Wait)
}

func (b *Bus) publish(ctx context.Context, m outgoing, wait time.Duration) (Ack, error) {
	ack, err := b.tryPublish(ctx, m, wait)
	switch {
	case err != nil:
		b.stats.publishErrors.Add(1)
		return Ack{}, fmt.Errorf("publish %s: %w", m.subject, err)
	case ack.Duplicate:
		b.stats.duplicates.Add(1)
	}
	b.stats.published.Add(1)
	return ack, nil
}

func (b *Bus) tryPublish(ctx context.Context, m outgoing, wait time.Duration) (Ack, error) {
	w, err := b.up()
	if err != nil {
		return Ack{}, err
	}
	if wait <= 0 {
		if _, ok := ctx.Deadline(); !ok {
			wait = publishLimit
		}
	}
	msg, err := w.do(ctx, w.publishes, m, wait)
	if err != nil {
		return Ack{}, err
	}
	return parseAck(msg.Data)
}

// up returns the wire, or why there is none.
func (b *Bus) up() (*wire, error) {
	if b.closing.Load() {
		return nil, ErrClosed
	}
	select {
	case <-b.ready:
	default:
		return nil, errDisconnected
	}
	if b.wire == nil {
		return nil, ErrClosed
	}
	return b.wire, nil
}

// parseAck reads the answer to a publish. The form in which the server writes a
// plain success is read without allocating; whatever differs goes through
// encoding/json.
func parseAck(data []byte) (Ack, error) {
	if a, ok := parsePlainAck(data); ok {
		return a, nil
	}
	var full struct {
		Stream    string    `json:"stream"`
		Seq       uint64    `json:"seq"`
		Duplicate bool      `json:"duplicate"`
		Error     *apiError `json:"error"`
	}
	if err := json.Unmarshal(data, &full); err != nil {
		return Ack{}, fmt.Errorf("%w: the answer is not an ack: %w", ErrUnavailable, err)
	}
	if full.Error != nil {
		return Ack{}, full.Error
	}
	if full.Stream == "" || full.Seq == 0 {
		// Something other than a stream answered.
		return Ack{}, fmt.Errorf("%w: the answer is not an ack", ErrUnavailable)
	}
	return Ack{Stream: full.Stream, Seq: full.Seq, Duplicate: full.Duplicate}, nil
}

// parsePlainAck reads {"stream":"NAME","seq":N} and the same with ,"duplicate": true,
// with any white space between the parts.
func parsePlainAck(data []byte) (a Ack, ok bool) {
	p := data
	lit := func(s string) bool {
		p = bytes.TrimLeft(p, " ")
		if len(p) < len(s) || string(p[:len(s)]) != s {
			return false
		}
		p = p[len(s):]
		return true
	}
	if !lit(`{`) || !lit(`"stream"`) || !lit(`:`) || !lit(`"`) {
		return a, false
	}
	end := bytes.IndexByte(p, '"')
	if end <= 0 || bytes.IndexByte(p[:end], '\\') >= 0 {
		return a, false
	}
	a.Stream = streamName(p[:end])
	p = p[end+1:]
	if !lit(`,`) || !lit(`"seq"`) || !lit(`:`) || !lit(``) {
		return a, false
	}
	n := 0
	for n < len(p) && n < 19 && '0' <= p[n] && p[n] <= '9' {
		a.Seq = a.Seq*10 + uint64(p[n]-'0')
		n++
	}
	p = p[n:]
	if a.Seq == 0 {
		return a, false
	}
	if lit(`,`) {
		if !lit(`"duplicate"`) || !lit(`:`) || !lit(`true`) {
			return a, false
		}
		a.Duplicate = true
	}
	return a, lit(`}`) && len(p) == 0
}

// streamName returns b as a string, without allocating for our own streams.
func streamName(b []byte) string {
	for _, s := range [...]string{StreamEvents, StreamOutbox, StreamReceipts, StreamProbe, StreamDead, StreamLater} {
		if string(b) == s {
			return s
		}
	}
	return string(b)
}

// apiError is an error that JetStream answered with. Its Is maps it to the errors of
// this package.
type apiError struct {
	Code        int    `json:"code"`     // as in HTTP
	ErrCode     int    `json:"err_code"` // JetStream's own
	Description string `json:"description"`
}

// Codes of JetStream, from the server's errors.json.
const (
	codeAccountResources = 10002
	codeNoPeers          = 10005
	codeNotAvailable     = 10008
	codeConsumerName     = 10013
	codeConsumerNotFound = 10014
	codeInsufficient     = 10023
	codeMemory           = 10028
	codeNoMessage        = 10037
	codeStorage          = 10047
	codeMessageSize      = 10054
	codeStreamName       = 10058
	codeStreamNotFound   = 10059
	codeReplicas         = 10074
	codeStoreFailed      = 10077
	codeWorkQueueStart   = 10101
	codeConsumerExists   = 10148
)

func (e *apiError) Error() string {
	return fmt.Sprintf("jetstream: %s (%d)", e.Description, e.ErrCode)
}

func (e *apiError) Is(target error) bool { return target == e.class() }

func (e *apiError) class() error {
	switch e.ErrCode {
	case codeStoreFailed:
		// One code for everything that kept the stream from storing. Only the text tells.
		switch {
		case strings.HasPrefix(e.Description, "maximum "):
			return ErrFull
		case strings.Contains(e.Description, "too large"):
			return ErrRefused
		}
		return ErrUnavailable
	case codeAccountResources, codeInsufficient, codeMemory, codeStorage:
		return ErrFull
	case codeMessageSize:
		return ErrRefused
	case codeNoPeers, codeNotAvailable:
		return ErrUnavailable
	case codeNoMessage, codeConsumerNotFound, codeStreamNotFound:
		return ErrNotFound
	}
	if e.Code == 404 {
		return ErrNotFound
	}
	if 400 <= e.Code && e.Code < 500 {
		return ErrRefused
	}
	return ErrUnavailable
}

// code returns JetStream's code for err, 0 if it is not such an error.
func code(err error) int {
	var e *apiError
	if errors.As(err, &e) {
		return e.ErrCode
	}
	return 0
}
