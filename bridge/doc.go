// Package bridge is what a program needs to take part in a WeCom conversation
// over NATS: events in, messages out, no WeCom secret anywhere.
//
// # The idea
//
// The gateway turns every callback of WeCom (企业微信) into an [Event], a
// CloudEvent in JSON, and stores it in the JetStream stream WECOM_EVENTS. A
// [Handler] is a function from such an event to the [Message] values that answer
// it. [Client.Consume] runs one:
//
//	client, err := bridge.Connect(ctx, bridge.Options{URL: "nats://127.0.0.1:4222"})
//	...
//	err = client.Consume(ctx, bridge.Consumer{Name: "echo", Filter: "*.message.text"},
//		func(ctx context.Context, ev *bridge.Event) ([]bridge.Message, error) {
//			return bridge.Reply(ev, bridge.Text("", "you said: "+ev.Text())), nil
//		})
//
// What a handler returns goes to the stream WECOM_OUTBOX; a worker that holds the
// app's secret sends it and stores a [Receipt].
//
// # What holds
//
// A handler sees every event that matches its filter at least once, and events of
// one conversation (the partition key) one after the other, in the order in which
// they were stored, however many processes share the consumer's name.
//
// What it returned is sent once: the messages are stored before the event is
// acknowledged, and each has an ID made of the event's ID, the consumer's name and
// its position, so that a crash in between repeats the handler and not the messages.
//
// # What the error means
//
// Handlers neither ack nor nak. Nil: done. [Reject]: no retry can mend this, to the
// dead letters. [RetryAfter]: again after that delay. Any other error: again after a
// growing delay, and after [Consumer.MaxAttempts] deliveries to the dead letters.
package bridge
