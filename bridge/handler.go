package bridge

import (
	"context"
	"time"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
)

// A Handler is the business logic: given one event, it returns the messages that
// answer it. Return none to stay silent.
//
// The messages are queued, not sent: they are stored in the outbox first and ev is
// acknowledged second, so that a crash in between repeats the Handler but not the
// messages. The first answer stored wins. Anything else that a Handler touches must
// bear seeing the same ev again.
//
// The error decides what becomes of ev; with an error, the messages are ignored. Nil:
// it is done. [Reject]: it can never succeed and goes to the dead letters.
// [RetryAfter]: it is delivered again after that delay, and the events behind it in its
// lane wait. Any other error, or a panic: it is delivered again after a growing delay.
// After [Consumer.MaxAttempts] deliveries it goes to the dead letters anyway.
//
// A Handler runs concurrently for different conversations, never for the same one.
// When ctx ends the process is about to stop: return promptly, and ev will be
// delivered again, here or to another process.
type Handler func(ctx context.Context, ev *Event) ([]Message, error)

// Reject marks err as final: the event goes to the dead letters, with err as the
// reason, and is not delivered again. errors.Is and errors.As see through it.
func Reject(err error) error { return bus.Reject(err) }

// RetryAfter asks for the event again after d, at most 15 minutes. It counts as an
// attempt. errors.Is and errors.As see through it.
func RetryAfter(d time.Duration, err error) error { return bus.RetryAfter(d, err) }
