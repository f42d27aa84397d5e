package bridge

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"github.com/wecom-bridge/wecom-bridge/internal/bus"
)

// The four ends that a message can come to.
const (
	Sent    = "sent"    // WeCom took it for everybody
	Partial = "partial" // WeCom took it, but some recipients cannot get it: Receipt.Invalid
	Failed  = "failed"  // WeCom or the sender refuses it; it lies in the dead letters
	Expired = "expired" // Message.Expires passed before it could be sent
)

// A Receipt tells what became of a message. Receipts are kept for 24 hours.
//
// Sent is WeCom's word, not the phone's: WeCom accepts and silently discards more than
// 30 messages a minute to the same member
// (developer.work.weixin.qq.com/document/path/90312).
type Receipt struct {
	Status       string  `json:"-"` // Sent, Partial, Failed or Expired
	Message      string  `json:"message"`
	Event        string  `json:"event,omitempty"` // the event that it answers
	API          string  `json:"api"`
	ErrCode      int     `json:"errcode"`
	ErrMsg       string  `json:"errmsg,omitempty"`
	MsgID        string  `json:"msgid,omitempty"`         // WeCom's handle, for message/recall
	ResponseCode string  `json:"response_code,omitempty"` // for message/update_template_card
	Invalid      Invalid `json:"invalid,omitzero"`
	Attempts     int     `json:"attempts"`
	TookMS       int64   `json:"took_ms"` // from the outbox to WeCom's answer
}

// Invalid lists who does not get a message that WeCom took.
type Invalid struct {
	User       []string `json:"user,omitempty"`
	Party      []string `json:"party,omitempty"`
	Tag        []string `json:"tag,omitempty"`
	Unlicensed []string `json:"unlicensed,omitempty"`
}

// ErrNoReceipt means that a message has not come to an end yet, or did so over 24
// hours ago, or never was.
var ErrNoReceipt = errors.New("no receipt")

// Receipt returns the receipt of the message called id of app, or [ErrNoReceipt].
func (c *Client) Receipt(ctx context.Context, app, id string) (*Receipt, error) {
	s, err := c.bus.Last(ctx, bus.StreamReceipts, bus.ReceiptSubject(app, "*", id))
	switch {
	case errors.Is(err, bus.ErrNotFound):
		return nil, fmt.Errorf("message %s: %w", id, ErrNoReceipt)
	case err != nil:
		return nil, fmt.Errorf("read receipt of message %s: %w", id, err)
	}
	return decodeReceipt(s.Data)
}

func decodeReceipt(b []byte) (*Receipt, error) {
	var ev struct {
		Type string  `json:"type"`
		Data Receipt `json:"data"`
	}
	if err := json.Unmarshal(b, &ev); err != nil {
		return nil, fmt.Errorf("decode receipt: %w", err)
	}
	const prefix = "wecom.receipt."
	if len(ev.Type) <= len(prefix) || ev.Type[:len(prefix)] != prefix {
		return nil, fmt.Errorf("decode receipt: type is %q", ev.Type)
	}
	ev.Data.Status = ev.Type[len(prefix):]
	return &ev.Data, nil
}
