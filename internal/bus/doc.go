// Package bus is the log between the gateway and everything behind it: NATS
// JetStream with the streams, subjects and rules of this project.
//
// # Guarantees
//
//   - [Bus.Publish] returns nil only after the broker has stored the message, or
//     already held one with the same ID. It never waits for a broker that is not
//     there.
//   - [Bus.Consume] handles each message at least once, and the messages of one
//     slot one after the other in the order in which they were stored, whoever of
//     several processes handles them. Processes may join, leave and die.
//   - A message that nobody can handle ends in [StreamDead] with the reason, and is
//     acknowledged only once it is stored there.
//   - Consume that is asked to stop leaves nothing half taken: what was delivered
//     to it is finished, or handed back at once.
//
// # Slots and lanes
//
// Whatever must stay in order shares a key, a key belongs to one of [Slots] slots
// ([Slot]), and the slot stands in the subject. A consumer is a group of lanes, each
// a durable of JetStream that covers some slots and has one message out at a time.
// So order needs no coordination between processes: the broker deals out one message
// of a lane, and the next one after its ack.
//
// Nothing of nats.go appears in the exported API.
package bus
