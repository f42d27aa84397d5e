package bus

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// HeaderID carries a message's ID where Nats-Msg-Id does not: on dead letters, where
// it is the ID of the original, and on what a schedule delivers.
const HeaderID = "Bridge-Id"

// Stored is a message as it lies in a stream.
type Stored struct {
	Subject string
	ID      string // Nats-Msg-Id, else Bridge-Id, else empty
	Header  Header // without NATS's own; the first value of each
	Data    []byte
	Stream  string
	Seq     uint64
	Time    time.Time // when it was stored
}

// Last returns the last message of a stream on a subject, which may have wildcards,
// or [ErrNotFound]. A message whose publish was acknowledged before the call is seen:
// on a cluster, where a replica that lags may answer first, a miss is asked again of
// the stream's leader.
func (b *Bus) Last(ctx context.Context, stream, subject string) (*Stored, error) {
	return b.get(ctx, stream, `{"last_by_subj":`+strconv.Quote(subject)+`}`, "last of "+stream+" on "+subject)
}

// Get returns the message of a stream with a sequence number, or [ErrNotFound].
func (b *Bus) Get(ctx context.Context, stream string, seq uint64) (*Stored, error) {
	n := strconv.FormatUint(seq, 10)
	return b.get(ctx, stream, `{"seq":`+n+`}`, "get "+stream+" "+n)
}

func (b *Bus) get(ctx context.Context, stream, req, what string) (*Stored, error) {
	s, err := b.getDirect(ctx, stream, req)
	if errors.Is(err, ErrNotFound) && b.Clustered() {
		s, err = b.getLeader(ctx, stream, req)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", what, err)
	}
	return s, nil
}

func (b *Bus) getDirect(ctx context.Context, stream, req string) (*Stored, error) {
	w, err := b.up()
	if err != nil {
		return nil, err
	}
	m, err := w.do(ctx, w.requests, outgoing{subject: "$JS.API.DIRECT.GET." + stream, data: []byte(req)}, apiTry)
	if err != nil {
		return nil, err
	}
	switch status := m.Header.Get("Status"); status {
	case "":
	case "404":
		return nil, ErrNotFound
	default:
		return nil, fmt.Errorf("%w: %s %s", ErrUnavailable, status, m.Header.Get("Description"))
	}
	s := stored(m.Header.Get(nats.JSSubject), m.Header, m.Data)
	s.Stream = stream
	if s.Seq, err = strconv.ParseUint(m.Header.Get(nats.JSSequence), 10, 64); err != nil {
		return nil, fmt.Errorf("%w: answer without a sequence", ErrUnavailable)
	}
	s.Time, _ = time.Parse(time.RFC3339Nano, m.Header.Get(nats.JSTimeStamp)) // zero is the only harm
	return &s, nil
}

func (b *Bus) getLeader(ctx context.Context, stream, req string) (*Stored, error) {
	var resp struct {
		Message struct {
			Subject string    `json:"subject"`
			Seq     uint64    `json:"seq"`
			Header  []byte    `json:"hdrs"`
			Data    []byte    `json:"data"`
			Time    time.Time `json:"time"`
		} `json:"message"`
	}
	if err := b.api(ctx, "STREAM.MSG.GET."+stream, json.RawMessage(req), &resp); err != nil {
		return nil, err
	}
	var h nats.Header
	if len(resp.Message.Header) > 0 {
		var err error
		if h, err = nats.DecodeHeadersMsg(resp.Message.Header); err != nil {
			return nil, fmt.Errorf("decode headers: %w", err)
		}
	}
	s := stored(resp.Message.Subject, h, resp.Message.Data)
	s.Stream, s.Seq, s.Time = stream, resp.Message.Seq, resp.Message.Time
	return &s, nil
}

// stored returns the parts of a message that do not depend on how it was fetched.
func stored(subject string, h nats.Header, data []byte) Stored {
	s := Stored{Subject: subject, Data: data, ID: h.Get(nats.MsgIdHdr)}
	if s.ID == "" {
		s.ID = h.Get(HeaderID)
	}
	for k, v := range h {
		if len(v) == 0 || ownHeader(k) {
			continue
		}
		if s.Header == nil {
			s.Header = make(Header, len(h))
		}
		s.Header[k] = v[0]
	}
	return s
}

// ownHeader reports whether a header belongs to NATS.
func ownHeader(name string) bool {
	return len(name) >= 5 && strings.EqualFold(name[:5], "Nats-")
}

// Delete removes a message from a stream. A message that is not there is
// [ErrNotFound].
func (b *Bus) Delete(ctx context.Context, stream string, seq uint64) error {
	req := struct {
		Seq     uint64 `json:"seq"`
		NoErase bool   `json:"no_erase"`
	}{seq, true}
	if err := b.api(ctx, "STREAM.MSG.DELETE."+stream, req, nil); err != nil {
		if code(err) == 10043 { // the server's word for "no such message" here, with code 404 or 400
			err = fmt.Errorf("%w: %w", ErrNotFound, err)
		}
		return fmt.Errorf("delete %s %d: %w", stream, seq, err)
	}
	return nil
}

// Tail calls fn for the messages of a stream on a subject, which may have wildcards,
// one after the other in the order in which they were stored: all that the stream
// holds and then new ones, or new ones only. It acknowledges nothing and disturbs no
// consumer. It survives disconnects and blocks until ctx ends, which is no error; fn
// is not running any more when it returns. A stream that does not exist is
// [ErrNotFound].
func (b *Bus) Tail(ctx context.Context, stream, subject string, all bool, fn func(*Stored)) error {
	what := "tail " + stream
	conf := jetstream.OrderedConsumerConfig{
		FilterSubjects: []string{subject},
		DeliverPolicy:  jetstream.DeliverNewPolicy,
	}
	if all {
		conf.DeliverPolicy = jetstream.DeliverAllPolicy
	}
	var cons jetstream.Consumer
	err := b.retry(ctx, what, func(ctx context.Context) error {
		if _, err := b.up(); err != nil {
			return err
		}
		js, err := jetstream.New(b.nc)
		if err != nil {
			return err
		}
		ctx, cancel := context.WithTimeout(ctx, apiTry)
		defer cancel()
		cons, err = js.OrderedConsumer(ctx, stream, conf)
		switch {
		case errors.Is(err, jetstream.ErrStreamNotFound):
			return fmt.Errorf("%w: no such stream", ErrNotFound)
		case err != nil:
			return fmt.Errorf("%w: %w", ErrUnavailable, err)
		}
		return nil
	})
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	cc, err := cons.Consume(func(m jetstream.Msg) {
		if ctx.Err() != nil {
			return
		}
		md, err := m.Metadata()
		if err != nil {
			b.warn("message without metadata", err)
			return
		}
		s := stored(m.Subject(), m.Headers(), m.Data())
		s.Stream, s.Seq, s.Time = stream, md.Sequence.Stream, md.Timestamp.UTC()
		fn(&s)
	}, jetstream.ConsumeErrHandler(func(_ jetstream.ConsumeContext, err error) { b.warn(what, err) }))
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	select {
	case <-ctx.Done():
	case <-b.done:
		err = fmt.Errorf("%s: %w", what, ErrClosed)
	}
	cc.Stop()
	<-cc.Closed()
	return err
}

// Lag is how far a consumer is behind.
type Lag struct {
	Pending     uint64 // stored, not yet given out
	InFlight    uint64 // given out, not yet acknowledged
	Redelivered uint64 // of those, given out more than once
	Lanes       int
}

// Lag asks the broker how far a consumer is behind, all lanes together. It costs a
// request for each lane: meant for every ten seconds, not for every message. A
// consumer that does not exist is [ErrNotFound].
func (b *Bus) Lag(ctx context.Context, stream, consumer string) (Lag, error) {
	var sum Lag
	for lane, lanes := 0, 1; lane < lanes; lane++ {
		info, err := b.consumerInfo(ctx, stream, durable(consumer, lane))
		if err != nil {
			return Lag{}, fmt.Errorf("lag of %s: %w", durable(consumer, lane), err)
		}
		if lane == 0 {
			if n, err := recordedLanes(info.Config.Metadata); err == nil {
				lanes = n
			}
		}
		sum.Pending += info.NumPending
		sum.InFlight += uint64(info.NumAckPending)
		sum.Redelivered += uint64(info.NumRedelivered)
		sum.Lanes++
	}
	return sum, nil
}

// StreamState is how full a stream is.
type StreamState struct {
	Messages uint64
	Bytes    uint64
	MaxBytes int64 // negative: no limit
	FirstSeq uint64
	LastSeq  uint64
	LastTime time.Time // when the last message was stored
	Replicas int
}

// State asks the broker how full a stream is. One that does not exist is
// [ErrNotFound].
func (b *Bus) State(ctx context.Context, stream string) (StreamState, error) {
	var info jetstream.StreamInfo
	if err := b.api(ctx, "STREAM.INFO."+stream, nil, &info); err != nil {
		return StreamState{}, fmt.Errorf("state of %s: %w", stream, err)
	}
	return StreamState{
		Messages: info.State.Msgs,
		Bytes:    info.State.Bytes,
		MaxBytes: info.Config.MaxBytes,
		FirstSeq: info.State.FirstSeq,
		LastSeq:  info.State.LastSeq,
		LastTime: info.State.LastTime,
		Replicas: info.Config.Replicas,
	}, nil
}
