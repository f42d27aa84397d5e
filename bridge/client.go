package bridge

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"regexp"
	"time"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
)

// Options says where NATS is and who connects. Files are read when connecting.
type Options struct {
	URL   string // servers, comma-separated, such as nats://127.0.0.1:4222
	Name  string // name of the connection, as NATS's own tools show it
	Creds string // file with a user JWT and seed
	NKey  string // file with an nkey seed
	CA    string // file with the certificates to trust, PEM
	Cert  string // file with the client's certificate, PEM
	Key   string // file with its key, PEM

	// Dial connects in place of URL, for a server in the same process.
	Dial func() (net.Conn, error)
	// Log takes what happens to the connection and to events; nil for silence. The
	// contents of messages and the names of members never go there.
	Log *slog.Logger
}

// Client is a connection to the bridge. Its methods may be called at once by many
// goroutines.
type Client struct {
	bus *bus.Bus
	log *slog.Logger
}

// Connect returns a client. It does not wait for NATS to answer: calls fail until it
// does, and consumers wait. A lost connection is regained for as long as the client
// lives. An error means that the options can never work.
func Connect(ctx context.Context, o Options) (*Client, error) {
	if o.Name == "" {
		o.Name = "bridge"
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	b, err := bus.Connect(ctx, bus.Options{
		URL: o.URL, Name: o.Name, Creds: o.Creds, NKey: o.NKey, CA: o.CA, Cert: o.Cert, Key: o.Key,
		Dial: o.Dial, Log: o.Log,
	})
	if err != nil {
		return nil, err
	}
	return &Client{bus: b, log: o.Log}, nil
}

// Close ends the connection once what is under way has been answered, or when ctx
// ends. End [Client.Consume] first.
func (c *Client) Close(ctx context.Context) error { return c.bus.Close(ctx) }

// Connected reports whether NATS answers at the moment.
func (c *Client) Connected() bool { return c.bus.Connected() }

// A Consumer is a reader of events with a position of its own in the stream. All
// processes that use the same Name share the work; different names each see every
// event.
type Consumer struct {
	// Name is 1 to 32 characters of a-z A-Z 0-9 _ -. The worker's own handler is "bot".
	Name string
	// Filter chooses events by app and the tail of their type, as in
	// "demo.message.text", "*.event.click" or "demo.>". Empty means all. Values that
	// are not plain (A-Z a-z 0-9 _ -) stand as on the subject, see [Filter]. It belongs
	// to the Name for good: another filter needs another name.
	Filter string
	// New makes a consumer that did not exist before start with the events to come,
	// not with those that are still stored (7 days).
	New bool
	// MaxAttempts is how often an event is delivered before it goes to the dead
	// letters; 10 if 0, without end if negative.
	MaxAttempts int
	// AckWait is how long an event stays with a process that was killed before another
	// one gets it; 30 s if 0. It does not limit a handler: while one runs, its event is
	// kept. All processes of a Name should agree.
	AckWait time.Duration
	// Grace is how long handlers may finish after ctx ended; 10 s if 0.
	Grace time.Duration
	// Ready, if set, is called once, when events are being taken: before that NATS was
	// waited for and the consumer was set up. It must return soon.
	Ready func()
}

// Filter returns a [Consumer] filter for one app and one type, with values of any
// spelling: Filter("demo", "payment", "TRANSACTION.SUCCESS").
func Filter(app string, tail ...string) string {
	s := bus.Token(app)
	for _, t := range tail {
		s += "." + bus.Token(t)
	}
	return s
}

var (
	consumerName = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)
	filter       = regexp.MustCompile(`^([A-Za-z0-9_=-]+|\*)(\.([A-Za-z0-9_=-]+|\*))*(\.>)?$|^>$`)
)

// Consume gives every matching event to h until ctx ends, then lets the running
// handlers finish and returns nil. Events of one conversation come one after the
// other, in stored order, across all processes with the same consumer name.
//
// It returns an error only for what no waiting can mend, such as another filter under
// the same name; it outlasts restarts of NATS.
func (c *Client) Consume(ctx context.Context, cons Consumer, h Handler) error {
	if !consumerName.MatchString(cons.Name) {
		return fmt.Errorf("consume: name %q is not 1 to 32 characters of A-Z a-z 0-9 _ -", cons.Name)
	}
	if cons.Filter == "" {
		cons.Filter = ">"
	}
	if !filter.MatchString(cons.Filter) {
		return fmt.Errorf("consume: filter %q is not of the form app.tail, such as demo.message.text or *.event.>", cons.Filter)
	}
	return c.bus.Consume(ctx, bus.Consumer{
		Stream: bus.StreamEvents, Name: cons.Name, Subject: "wecom.event.*." + cons.Filter,
		AckWait: cons.AckWait, MaxAttempts: cons.MaxAttempts, Grace: cons.Grace, New: cons.New, Ready: cons.Ready,
	}, func(ctx context.Context, d *bus.Delivery) error {
		return c.handle(ctx, cons.Name, d, h)
	})
}

// handle runs h on one delivery and stores what it answers.
func (c *Client) handle(ctx context.Context, consumer string, d *bus.Delivery, h Handler) error {
	start := time.Now()
	ev := new(Event)
	if err := json.Unmarshal(d.Data, ev); err != nil {
		return Reject(err)
	}
	messages, err := h(ctx, ev)
	if err == nil {
		err = c.answer(ctx, ev, consumer, messages)
	}
	log := c.log.With("event", ev.ID, "app", ev.App, "type", ev.Type, "consumer", consumer,
		"attempt", d.Attempt, "took", time.Since(start))
	if err != nil {
		log.Warn("event not handled", "err", err)
		return err
	}
	log.Info("event handled", "messages", len(messages))
	return nil
}

// answer stores a handler's messages in the outbox, in order. IDs make a repetition
// harmless: those that were stored the last time are known by theirs.
func (c *Client) answer(ctx context.Context, ev *Event, consumer string, messages []Message) error {
	for n := range messages {
		m := &messages[n]
		if m.ID == "" {
			m.ID = fmt.Sprintf("%s/%s/%d", ev.ID, consumer, n)
		}
		if err := c.send(ctx, ev.App, m, ev.ID); err != nil {
			var bad *badMessageError
			if errors.As(err, &bad) || errors.Is(err, bus.ErrRefused) {
				return Reject(err)
			}
			return err
		}
	}
	return nil
}

// Send stores m in the outbox of app; a worker sends it. It returns once the message
// is stored, so that a crash of anything does not lose it. A message with an ID that
// was used before is not stored again.
//
// After an error that is not about the message itself, whether it was stored is not
// known: call again with the same ID.
func (c *Client) Send(ctx context.Context, app string, m Message) error {
	if m.ID == "" {
		m.ID = "c-" + rand.Text()
	}
	return c.send(ctx, app, &m, "")
}

// badMessageError is a message that can never be sent.
type badMessageError struct{ err error }

func (e *badMessageError) Error() string { return e.err.Error() }
func (e *badMessageError) Unwrap() error { return e.err }

func (c *Client) send(ctx context.Context, app string, m *Message, event string) error {
	body, key, err := m.seal()
	if err != nil {
		return &badMessageError{fmt.Errorf("message %s: %w", m.ID, err)}
	}
	h := bus.Header{"Content-Type": "application/json"}
	if m.API != "" {
		h["Wecom-Api"] = m.API
	}
	if event != "" {
		h["Bridge-Event"] = event
	}
	if !m.Expires.IsZero() {
		h["Bridge-Expires"] = m.Expires.UTC().Format(time.RFC3339)
	}
	_, err = c.bus.Publish(ctx, &bus.Msg{
		Subject: bus.OutboxSubject(app, key), ID: app + "/" + m.ID, Header: h, Data: body,
	})
	if err != nil {
		return fmt.Errorf("store message %s: %w", m.ID, err)
	}
	return nil
}
