package bus

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"reflect"
	"slices"
	"time"

	"github.com/nats-io/nats.go/jetstream"
)

const (
	day = 24 * time.Hour
	gib = 1 << 30

	// smallest is the size below which no stream is created, however little the broker
	// has to give.
	smallest = 64 << 20

	// peersWait is how long a cluster of unknown size may take to find three servers for
	// a stream before one replica has to do.
	peersWait = 20 * time.Second
)

// streams returns the configuration of every stream as a new deployment gets it.
func streams() []jetstream.StreamConfig {
	return []jetstream.StreamConfig{{
		Name:               StreamEvents,
		Description:        "what WeCom told the gateways",
		Subjects:           []string{"wecom.event.>"},
		Retention:          jetstream.LimitsPolicy,
		MaxAge:             7 * day,
		MaxBytes:           8 * gib,
		Discard:            jetstream.DiscardNew, // full is an error, never a silent loss
		Duplicates:         2 * time.Hour,
		Compression:        jetstream.S2Compression,
		AllowDirect:        true,
		AllowAtomicPublish: true,
	}, {
		Name:        StreamOutbox,
		Description: "messages to send",
		Subjects:    []string{"wecom.outbox.*.*"},
		SubjectTransform: &jetstream.SubjectTransformConfig{
			Source:      "wecom.outbox.*.*",
			Destination: fmt.Sprintf("wecom.outbox.{{partition(%d,1,2)}}.{{wildcard(1)}}.{{wildcard(2)}}", Slots),
		},
		Retention:   jetstream.WorkQueuePolicy,
		MaxBytes:    4 * gib,
		Discard:     jetstream.DiscardNew,
		Duplicates:  2 * time.Hour,
		AllowDirect: true,
	}, {
		Name:        StreamReceipts,
		Description: "what became of the messages",
		Subjects:    []string{"wecom.receipt.>"},
		Retention:   jetstream.LimitsPolicy,
		MaxAge:      day,
		MaxBytes:    gib,
		Discard:     jetstream.DiscardOld,
		Duplicates:  2 * time.Hour,
		Compression: jetstream.S2Compression,
		AllowDirect: true,
	}, {
		Name:        StreamDead,
		Description: "what nobody could handle or send",
		Subjects:    []string{"wecom.dead.>"},
		Retention:   jetstream.LimitsPolicy,
		MaxAge:      30 * day,
		MaxBytes:    gib,
		Discard:     jetstream.DiscardOld,
		Duplicates:  day,
		Compression: jetstream.S2Compression,
		AllowDirect: true,
	}, {
		Name:              StreamLater,
		Description:       "the sender's wake-ups",
		Subjects:          []string{"wecom.later.>", "wecom.due.>"},
		Retention:         jetstream.WorkQueuePolicy,
		Discard:           jetstream.DiscardOld, // schedules refuse discard new; there is no limit to reach
		AllowMsgSchedules: true,
		AllowDirect:       true,
	}, {
		Name:              StreamProbe,
		Description:       "proof that a process can store",
		Subjects:          []string{"wecom.probe.*"},
		Retention:         jetstream.LimitsPolicy,
		MaxAge:            day,
		MaxBytes:          smallest,
		MaxMsgsPerSubject: 1,
		Discard:           jetstream.DiscardOld,
		AllowDirect:       true,
	}}
}

// fixed are the settings that the contract depends on, by their names in JSON. They
// are put right on a stream that exists; every other setting of it belongs to the
// operator. Retention and storage are checked, and cannot be changed.
var fixed = []string{"subjects", "subject_transform", "discard", "allow_direct", "allow_msg_schedules"}

// Provision makes sure that the streams of this project exist, and may be called by
// any number of processes at once, and again. On a cluster new streams get three
// replicas. On a stream that exists it changes only what the contract fixes: limits,
// ages and replicas stay as the operator set them.
//
// While the broker is away or JetStream is not ready, Provision goes on trying until
// ctx ends. A login that may not manage streams is no error as long as they exist, or
// when it may not even look.
func (b *Bus) Provision(ctx context.Context) error {
	started := time.Now()
	for _, c := range streams() {
		c.Storage = jetstream.FileStorage
		want, err := config(c)
		if err != nil {
			return fmt.Errorf("provision %s: %w", c.Name, err)
		}
		err = b.retry(ctx, "provision "+c.Name, func(ctx context.Context) error {
			return b.provision(ctx, c.Name, want, started)
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// settings is the configuration of a stream as the API writes it, so that settings
// which this version does not know survive an update.
type settings map[string]any

func config(c jetstream.StreamConfig) (settings, error) {
	b, err := json.Marshal(c)
	if err != nil {
		return nil, err
	}
	return decodeSettings(b)
}

func decodeSettings(b []byte) (settings, error) {
	var s settings
	d := json.NewDecoder(bytes.NewReader(b))
	d.UseNumber()
	err := d.Decode(&s)
	return s, err
}

func (b *Bus) provision(ctx context.Context, name string, want settings, started time.Time) error {
	var info struct {
		Config json.RawMessage `json:"config"`
	}
	err := b.api(ctx, "STREAM.INFO."+name, nil, &info)
	switch {
	case errors.Is(err, errDenied):
		b.log.Info("stream not inspected: this login may not", "stream", name)
		return nil
	case code(err) == codeStreamNotFound:
		return b.createStream(ctx, name, want, started)
	case err != nil:
		return err
	}
	have, err := decodeSettings(info.Config)
	if err != nil {
		return fmt.Errorf("decode configuration: %w", err)
	}
	for _, k := range []string{"retention", "storage"} {
		if have[k] != want[k] {
			return fmt.Errorf("the stream exists with %s %v and must have %v: back it up, delete it and start again", k, have[k], want[k])
		}
	}
	changed := slices.DeleteFunc(slices.Clone(fixed), func(k string) bool { return same(have[k], want[k]) })
	if name == StreamProbe && !same(have["max_msgs_per_subject"], want["max_msgs_per_subject"]) {
		changed = append(changed, "max_msgs_per_subject")
	}
	if len(changed) == 0 {
		return nil
	}
	for _, k := range changed {
		if v, ok := want[k]; ok {
			have[k] = v
		} else {
			delete(have, k)
		}
	}
	err = b.api(ctx, "STREAM.UPDATE."+name, have, nil)
	if errors.Is(err, errDenied) {
		b.log.Warn("stream differs from what it should be, and this login may not mend it", "stream", name, "settings", changed)
		return nil
	}
	if err == nil {
		b.log.Info("stream updated", "stream", name, "settings", changed)
	}
	return err
}

// same compares two values of settings; absent, null, false and empty are one.
func same(a, b any) bool {
	zero := func(v any) bool {
		switch v := v.(type) {
		case nil:
			return true
		case bool:
			return !v
		case []any:
			return len(v) == 0
		case map[string]any:
			return len(v) == 0
		}
		return false
	}
	return zero(a) && zero(b) || reflect.DeepEqual(a, b)
}

func (b *Bus) createStream(ctx context.Context, name string, want settings, started time.Time) error {
	c := make(settings, len(want)+1)
	for k, v := range want {
		c[k] = v
	}
	c["num_replicas"] = 1
	if b.Clustered() {
		c["num_replicas"] = 3
	}
	size, limited := c["max_bytes"].(json.Number)
	for {
		err := b.api(ctx, "STREAM.CREATE."+name, c, nil)
		switch cause := code(err); {
		case err == nil:
			b.log.Info("stream created", "stream", name, "replicas", c["num_replicas"], "max_bytes", c["max_bytes"])
			return nil
		case cause == codeStreamName:
			// Another process was faster, with replicas or a size of its own.
			return fmt.Errorf("%w: created by another process at this moment", ErrUnavailable)
		case cause == codeReplicas, cause == codeNoPeers && c["num_replicas"] == 3 && b.small() && time.Since(started) > peersWait:
			b.log.Warn("stream gets one replica: no three servers in this cluster", "stream", name)
			c["num_replicas"] = 1
		case limited && errors.Is(err, ErrFull):
			// The broker has less to give than we reserve.
			n, nerr := size.Int64()
			if nerr != nil || n/2 < smallest {
				return err
			}
			size = json.Number(fmt.Sprint(n / 2))
			c["max_bytes"] = size
		default:
			return err
		}
	}
}

// small reports whether fewer than three servers of the cluster are known.
func (b *Bus) small() bool { return len(b.nc.Servers()) < 3 }
