// Package worker is the half of the bridge that answers: it runs the built-in handler
// over the events of the bus, and sends what any handler put into the outbox.
//
// # The handler
//
// A rules file ([LoadRules]) says which events are answered with a text, and which
// are handed to an HTTP endpoint that answers with messages. Without rules every event
// is acknowledged in silence.
//
// # The sender
//
// The sender makes the API call that an outbox message holds, with the application's
// agentid and credentials added. It promises:
//
//   - Before every send it looks for a receipt of the message. If there is one, the
//     message is not sent.
//   - The receipt is stored before the message leaves the outbox. A crash between
//     WeCom's answer and the receipt is the one gap; the repeat then carries WeCom's
//     duplicate check, so that the member sees the message once.
//   - Nothing ends in silence: a message that WeCom or the sender refuses has a
//     "failed" receipt and lies in the dead letters, with the errcode as the reason.
//   - What may pass (no network, a busy WeCom, a frequency limit) is tried again, in
//     order, for as long as it takes, or until the message expires.
//
// Messages to one recipient are sent in the order in which they were stored; see
// package bus for how.
package worker
