package wecom

import (
	"cmp"
	"strconv"
	"strings"
	"time"
)

// field is a scalar in the first two levels of a payload, enough to tell what it is.
type field struct {
	parent string // "" in the first level
	name   string
	value  string
	isJSON bool // value is a JSON string, with its quotation marks and escapes
}

// has reports whether there is a field of that name in the first level.
func has(fields []field, name string) bool {
	for i := range fields {
		if fields[i].name == name && fields[i].parent == "" {
			return true
		}
	}
	return false
}

// find returns the value of the first field at path, a name or parent.name; "" if there is
// none.
func find(fields []field, path string) string {
	parent, name, ok := strings.Cut(path, ".")
	if !ok {
		parent, name = "", path
	}
	for i := range fields {
		if f := &fields[i]; f.name == name && f.parent == parent {
			return f.text()
		}
	}
	return ""
}

func (f *field) text() string {
	if f.isJSON {
		return jsonText(f.value)
	}
	return f.value
}

// first returns the first value that is not empty.
func first(fields []field, paths ...string) string {
	for _, path := range paths {
		if v := find(fields, path); v != "" {
			return v
		}
	}
	return ""
}

// treeFields returns the leaves in the first two levels of a document.
func treeFields(root *node) []field {
	var fields []field
	for i := range root.kids {
		kid := &root.kids[i]
		fields = append(fields, field{name: kid.name, value: kid.text})
		for j := range kid.kids {
			if leaf := &kid.kids[j]; len(leaf.kids) == 0 {
				fields = append(fields, field{parent: kid.name, name: leaf.name, value: leaf.text})
			}
		}
	}
	return fields
}

// sys is the FromUserName of what WeCom does by itself.
const sys = "sys"

// subjects says whom or what an event is about: the first of the fields that is present.
// The row is found by Event or, for provider callbacks, InfoType, where AuthCorpId and
// PaidCorpId follow as a last resort. An event without a row is about its sender; a row
// without a field is for what concerns the app or the corp as a whole.
var subjects = []struct{ events, fields string }{
	// Application, menu and card events, developer.work.weixin.qq.com/document/path/90240.
	{"subscribe unsubscribe enter_agent LOCATION unlicensed_notify", "FromUserName"},
	{"click view view_miniprogram scancode_push scancode_waitmsg", "FromUserName"},
	{"pic_sysphoto pic_photo_or_album pic_weixin location_select", "FromUserName"},
	{"template_card_event template_card_menu_event taskcard_click", "TaskId ResponseCode"},
	{"share_agent_change share_chain_change change_app_admin switch_workbench_mode", ""},
	{"inactive_alert close_inactive_agent reopen_inactive_agent", ""},
	{"low_active_alert low_active active_restored", ""},
	{"msgaudit_notify security/change_domain_ip", ""},
	{"program_notify", "NotifyId"},
	{"submit_vip_account_approval finish_vip_account_approval", "ApplyId"},

	// Address book, 90970; customers, 92130; customer acquisition, 97299 (one page misspells
	// it), which is about the corp when no link is named; school contacts, 92032; upstream
	// and downstream, 95796.
	{"change_contact", "UserID Id TagId"},
	{"change_external_contact", "ExternalUserID UserID"},
	{"change_external_chat", "ChatId"},
	{"change_external_tag", "Id"},
	{"customer_acquisition customer_aqcuisition", "LinkId AuthCorpId ToUserName"},
	{"change_school_contact", "Id"},
	{"change_chain", "ChainId"},

	// Customer service, 94670.
	{"kf_msg_or_event", "OpenKfId"},
	{"kf_account_auth_change", ""},

	// Calendar, 97728; approvals, 91815 and 90269; meetings, 98333; meeting rooms, 95333.
	{"delete_calendar modify_calendar", "ScheduleId CalId"},
	{"modify_schedule delete_schedule respond_schedule add_schedule", "ScheduleId CalId"},
	{"sys_approval_change", "ApprovalInfo.SpNoStr ApprovalInfo.SpNo"},
	{"open_approval_change", "ApprovalInfo.ThirdNo"},
	{"meeting_change meeting_statistics", "MeetingId"},
	{"book_meeting_room cancel_meeting_room", "BookingId"},

	// Documents, 97833; drive, 97898; mail, 97495; live streams, 94145.
	{"doc_change smart_sheet_change", "DocId FormId"},
	{"wedrive_space_change wedrive_file_change", "SpaceId FileId"},
	{"wedrive_insufficient_capacity app_email_change public_email_change", ""},
	{"living_status_change", "LivingId"},

	// Jobs, 90973 (an old edition has the fields of BatchJob in the root), and device data,
	// 97214.
	{"batch_job_result upload_media_job_finish chat_archive_export_finished", "BatchJob.JobId JobId"},
	{"device_checkin_data_report device_accesscontrol_data_report", "DeviceSn"},
	{"device_temperature_data_report device_feature_change", "DeviceSn"},

	// Provider callbacks, 90613. A new authorisation names no corp yet.
	{"create_auth", "AuthCode"},
}

// The subjects of what has no Event and no InfoType. An AI bot's conversation is its
// partition key too; the refreshes of a stream are about the stream.
var (
	subjectMessage    = []string{"FromUserName"}
	subjectProvider   = []string{"AuthCorpId", "PaidCorpId"}
	subjectPayment    = []string{"id"}
	subjectHardware   = []string{"base_info.device_sn", "base_info.model_id"}
	subjectBot        = []string{"chatid", "from.userid"}
	subjectBotRefresh = []string{"stream.id", "chatid", "from.userid"}
)

var subjectOf = func() map[string][]string {
	m := make(map[string][]string)
	for _, row := range subjects {
		for _, event := range strings.Fields(row.events) {
			m[event] = strings.Fields(row.fields)
		}
	}
	return m
}()

// head is what XML plaintexts have in common, read in one pass.
type head struct {
	msgType, event, infoType, changeType string
	msgID, from, to, authCorp, paidCorp  string
	agent, createTime, timeStamp         string
	hasMsgType, hasInfoType, hasPayment  bool
}

func readHead(fields []field) (h head) {
	for i := range fields {
		f := &fields[i]
		if f.parent != "" {
			continue
		}
		var v *string
		switch f.name {
		case "MsgType":
			v, h.hasMsgType = &h.msgType, true
		case "Event":
			v = &h.event
		case "InfoType":
			v, h.hasInfoType = &h.infoType, true
		case "ChangeType":
			v = &h.changeType
		case "MsgId":
			v = &h.msgID
		case "FromUserName":
			v = &h.from
		case "ToUserName":
			v = &h.to
		case "AuthCorpId":
			v = &h.authCorp
		case "PaidCorpId":
			v = &h.paidCorp
		case "AgentID", "AgentId":
			v = &h.agent
		case "CreateTime":
			v = &h.createTime
		case "TimeStamp":
			v = &h.timeStamp
		case "notify_type", "event_type":
			h.hasPayment = true
			continue
		default:
			continue
		}
		if *v == "" {
			*v = f.text()
		}
	}
	return h
}

// classifyXML fills p from the fields of an XML plaintext. It reports false if they do not
// say what it is; then p has no type.
func classifyXML(fields []field, p *Payload) bool {
	h := readHead(fields)
	p.AgentID = h.agent
	switch {
	case h.hasInfoType:
		return classifyProvider(fields, &h, p)
	case h.hasPayment && !h.hasMsgType:
		return classifyPayment(fields, p)
	}
	p.setOwn(h.msgID)
	p.CorpID = cmp.Or(h.to, h.authCorp)
	p.setTime(cmp.Or(h.createTime, h.timeStamp))
	p.setPartition(h.from)
	if h.msgType != "event" {
		p.setSubject(fields, subjectMessage)
		return p.setTail("message", h.msgType)
	}
	paths, ok := subjectOf[h.event]
	if !ok {
		paths = subjectMessage
	}
	p.setSubject(fields, paths)
	return p.setChange("event", h.event, h.changeType)
}

// classifyProvider is for what WeCom tells a provider about its suites and customers.
func classifyProvider(fields []field, h *head, p *Payload) bool {
	p.AgentID = h.agent
	p.CorpID = cmp.Or(h.authCorp, h.paidCorp)
	p.setTime(cmp.Or(h.timeStamp, h.createTime))
	p.setSubject(fields, subjectOf[h.infoType])
	if p.Subject == "-" {
		p.setSubject(fields, subjectProvider)
	}
	return p.setChange("suite", h.infoType, h.changeType)
}

// classifyPayment is for payments to the corp's mini-program, XML and JSON.
func classifyPayment(fields []field, p *Payload) bool {
	p.setOwn(find(fields, "id"))
	p.setTime(find(fields, "create_time"))
	p.setSubject(fields, subjectPayment)
	return p.setTail("payment", find(fields, "event_type"))
}

// classifyJSON fills p from the fields of a JSON plaintext. It reports false if it is of
// no known family; then p has no type.
func classifyJSON(fields []field, p *Payload) bool {
	switch {
	case has(fields, "aibotid"):
		return classifyBot(fields, p)
	case has(fields, "base_info"):
		return classifyHardware(fields, p)
	case has(fields, "notify_type"):
		return classifyPayment(fields, p)
	case has(fields, "InfoType"):
		h := readHead(fields)
		return classifyProvider(fields, &h, p)
	}
	return false
}

func classifyBot(fields []field, p *Payload) bool {
	p.setOwn(find(fields, "msgid"))
	p.setTime(find(fields, "create_time"))
	p.setPartition(first(fields, subjectBot...))
	switch msgType := find(fields, "msgtype"); msgType {
	case "event":
		p.setSubject(fields, subjectBot)
		return p.setTail("aibot", "event", find(fields, "event.eventtype"))
	case "stream":
		p.setSubject(fields, subjectBotRefresh)
		return p.setTail("aibot", "message", msgType)
	default:
		p.setSubject(fields, subjectBot)
		return p.setTail("aibot", "message", msgType)
	}
}

func classifyHardware(fields []field, p *Payload) bool {
	p.setOwn(find(fields, "base_info.req_id"))
	p.CorpID = find(fields, "base_info.auth_corpid")
	p.setTime(find(fields, "base_info.createtime"))
	p.setSubject(fields, subjectHardware)
	switch kind := find(fields, "msg_type"); kind {
	case "event":
		return p.setTail("hardware", kind, find(fields, "event.event_type"))
	case "command":
		return p.setTail("hardware", kind, find(fields, "command.command_type"))
	}
	return false
}

func (p *Payload) setOwn(id string) {
	if usableID(id) {
		p.own = id
	}
}

// setSubject sets the subject and, unless there is a sender already, the partition key.
func (p *Payload) setSubject(fields []field, paths []string) {
	for _, path := range paths {
		if v := find(fields, path); v != "" && (v != sys || path != "FromUserName") {
			p.Subject = v
			break
		}
	}
	if p.PartitionKey == "-" {
		p.PartitionKey = p.Subject
	}
}

// setPartition sets the partition key to the sender.
func (p *Payload) setPartition(from string) {
	if from != "" && from != sys {
		p.PartitionKey = from
	}
}

// setTime reads seconds since 1970, or RFC 3339. Anything else, and what no calendar of
// four-digit years has, is no time.
func (p *Payload) setTime(s string) {
	const end = 253402300800 // the year 10000
	if s == "" {
		return
	}
	if seconds, err := strconv.ParseInt(s, 10, 64); err == nil {
		if 0 < seconds && seconds < end {
			p.Time = time.Unix(seconds, 0).UTC()
		}
		return
	}
	if len(s) < len("2006-01-02T15:04:05Z") {
		return
	}
	if t, err := time.Parse(time.RFC3339, s); err == nil && 0 < t.Unix() && t.Unix() < end {
		p.Time = t.UTC()
	}
}

// maxName is the longest part of a type. It becomes a part of a subject on the bus, which
// has limits; WeCom's own names have forty characters at most.
const maxName = 128

// setTail sets the type. It reports false if a part is empty or too long.
func (p *Payload) setTail(parts ...string) bool {
	for _, part := range parts {
		if part == "" || len(part) > maxName {
			return false
		}
	}
	p.n = copy(p.tail[:], parts)
	return true
}

// setChange sets the type of an event whose ChangeType may be absent.
func (p *Payload) setChange(family, event, changeType string) bool {
	if changeType == "" {
		return p.setTail(family, event)
	}
	return p.setTail(family, event, changeType)
}
