package bridge

import (
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"
)

// ContentType is the media type of an [Event] on the bus, header Content-Type:
// CloudEvents 1.0 in the structured JSON format.
const ContentType = "application/cloudevents+json"

// An Event is something that WeCom told the gateway: a CloudEvent whose data is
// WeCom's own payload, element for element and under WeCom's own names, so that the
// official manual documents it.
//
// Events are values to read; nothing in this package changes one after it was
// decoded. All methods may be called at the same time.
type Event struct {
	// ID is the same for every delivery of the same happening: "m-" and WeCom's own
	// id (MsgId and its kin), or "h-" and a hash of the payload where it has none.
	ID string
	// Source is "/wecom/<corp id>/<app>", both as configured at the gateway.
	Source string
	// Type is "wecom.message.text", "wecom.event.change_contact.create_user" and so
	// on, in WeCom's spelling and case. What could not be understood is
	// "wecom.unknown", with the raw text as data.
	Type string
	// Subject is what the event is about: a member, an approval, a chat. "-" when
	// there is no such thing or it is the app itself.
	Subject string
	// Time is WeCom's CreateTime (or its counterpart), to the second, in UTC; the time
	// of receipt where WeCom gives none.
	Time time.Time
	// DataContentType is "application/json", or "text/plain" for raw text.
	DataContentType string
	// App is the name under which the gateway knows the app.
	App string
	// CorpID is the corp that the payload names, else the configured one.
	CorpID string
	// AgentID is the app's number as the payload gives it; "" when it does not.
	AgentID string
	// PartitionKey names the conversation: events with the same App and PartitionKey
	// are handled one after the other.
	PartitionKey string
	// Data is the payload as JSON; a JSON string holding the raw text when
	// DataContentType is "text/plain"; nil when DataBase64 is set.
	Data json.RawMessage
	// DataBase64 holds the payload of an event that was not even UTF-8.
	DataBase64 []byte
}

// wire is an Event as it stands in JSON.
type wire struct {
	SpecVersion     string          `json:"specversion"`
	ID              string          `json:"id"`
	Source          string          `json:"source"`
	Type            string          `json:"type"`
	Subject         string          `json:"subject,omitempty"`
	Time            time.Time       `json:"time,omitzero"`
	DataContentType string          `json:"datacontenttype,omitempty"`
	App             string          `json:"app"`
	CorpID          string          `json:"corpid,omitempty"`
	AgentID         string          `json:"agentid,omitempty"`
	PartitionKey    string          `json:"partitionkey,omitempty"`
	Data            json.RawMessage `json:"data,omitempty"`
	DataBase64      []byte          `json:"data_base64,omitempty"`
}

// UnmarshalJSON reads a structured CloudEvent. Unknown attributes are ignored. It is
// an error if one of specversion "1.0", id, source and type is missing.
func (e *Event) UnmarshalJSON(b []byte) error {
	var w wire
	if err := json.Unmarshal(b, &w); err != nil {
		return fmt.Errorf("decode event: %w", err)
	}
	if w.SpecVersion != "1.0" || w.ID == "" || w.Source == "" || w.Type == "" {
		return errors.New("decode event: not a CloudEvent 1.0 (specversion, id, source and type are required)")
	}
	*e = Event{
		ID: w.ID, Source: w.Source, Type: w.Type, Subject: w.Subject, Time: w.Time.UTC(),
		DataContentType: w.DataContentType, App: w.App, CorpID: w.CorpID, AgentID: w.AgentID,
		PartitionKey: w.PartitionKey, Data: w.Data, DataBase64: w.DataBase64,
	}
	if w.Time.IsZero() {
		e.Time = time.Time{}
	}
	return nil
}

// MarshalJSON writes the event as the gateway does.
func (e *Event) MarshalJSON() ([]byte, error) {
	if len(e.Data) > 0 && !json.Valid(e.Data) {
		return nil, fmt.Errorf("encode event %s: data is not JSON", e.ID)
	}
	return e.AppendJSON(make([]byte, 0, 512+len(e.Data)+2*len(e.DataBase64))), nil
}

// AppendJSON appends the event to dst. Data is copied as it is: the caller vouches
// for it being one JSON value. Empty optional attributes are left out, as CloudEvents
// asks.
func (e *Event) AppendJSON(dst []byte) []byte {
	dst = append(dst, `{"specversion":"1.0","id":`...)
	dst = appendString(dst, e.ID)
	dst = appendMember(dst, `,"source":`, e.Source)
	dst = appendMember(dst, `,"type":`, e.Type)
	dst = appendMember(dst, `,"subject":`, e.Subject)
	if !e.Time.IsZero() {
		dst = append(dst, `,"time":"`...)
		dst = e.Time.UTC().AppendFormat(dst, time.RFC3339)
		dst = append(dst, '"')
	}
	dst = appendMember(dst, `,"datacontenttype":`, e.DataContentType)
	dst = appendMember(dst, `,"app":`, e.App)
	dst = appendMember(dst, `,"corpid":`, e.CorpID)
	dst = appendMember(dst, `,"agentid":`, e.AgentID)
	dst = appendMember(dst, `,"partitionkey":`, e.PartitionKey)
	switch {
	case e.DataBase64 != nil:
		dst = append(dst, `,"data_base64":"`...)
		dst = base64.StdEncoding.AppendEncode(dst, e.DataBase64)
		dst = append(dst, '"')
	case len(e.Data) > 0:
		dst = append(dst, `,"data":`...)
		dst = append(dst, e.Data...)
	}
	return append(dst, '}')
}

func appendMember(dst []byte, name, value string) []byte {
	if value == "" {
		return dst
	}
	return appendString(append(dst, name...), value)
}

// appendString appends s as a JSON string. Attributes are ids and names, nearly
// always plain ASCII; whatever is not takes the standard library's way.
func appendString(dst []byte, s string) []byte {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c > '~' || c == '"' || c == '\\' {
			q, err := json.Marshal(s)
			if err != nil { // cannot happen: a string always encodes
				q = []byte(`""`)
			}
			return append(dst, q...)
		}
	}
	dst = append(dst, '"')
	dst = append(dst, s...)
	return append(dst, '"')
}

// Field returns the text at path in Data, as in Field("Content") or
// Field("ApprovalInfo", "SpNoStr"). Names are WeCom's and matched exactly. Of an
// array the first element counts. It is "" when there is no such field or it is an
// object; a number or boolean is returned as written.
func (e *Event) Field(path ...string) string {
	raw := []byte(e.Data)
	for _, name := range path {
		raw = firstElement(raw)
		var object map[string]json.RawMessage
		if json.Unmarshal(raw, &object) != nil {
			return ""
		}
		raw = object[name]
	}
	raw = firstElement(raw)
	if len(raw) == 0 || raw[0] == '{' || string(raw) == "null" {
		return ""
	}
	var s string
	if json.Unmarshal(raw, &s) == nil {
		return s
	}
	return string(raw)
}

func firstElement(raw []byte) []byte {
	var list []json.RawMessage
	if len(raw) == 0 || raw[0] != '[' || json.Unmarshal(raw, &list) != nil || len(list) == 0 {
		return raw
	}
	return list[0]
}

// User returns the id of the member who caused the event: FromUserName, or
// from.userid for an AI bot. "" when nobody did; the system's own "sys" is nobody.
func (e *Event) User() string {
	u := e.Field("FromUserName")
	if u == "" {
		u = e.Field("from", "userid")
	}
	if u == "sys" {
		return ""
	}
	return u
}

// Text returns what the member wrote: Content of a text message, text.content for an
// AI bot. "" for everything else.
func (e *Event) Text() string {
	switch {
	case e.Type == "wecom.message.text":
		return e.Field("Content")
	case strings.HasPrefix(e.Type, "wecom.aibot.message."):
		return e.Field("text", "content")
	}
	return ""
}

// Key returns the EventKey of a menu click, a scan or a card's button; "" for
// everything else.
func (e *Event) Key() string { return e.Field("EventKey") }

// Decode stores Data in v, as json.Unmarshal does. XML leaves are strings there, so
// numbers need the ",string" option or a string field.
func (e *Event) Decode(v any) error {
	if err := json.Unmarshal(e.Data, v); err != nil {
		return fmt.Errorf("decode data of event %s: %w", e.ID, err)
	}
	return nil
}
