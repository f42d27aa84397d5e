package wecom

import (
	"slices"
	"strings"
	"testing"
)

// TestClassify takes one callback of every family.
func TestClassify(t *testing.T) {
	// event makes a system event, message of a member; from may be "".
	event := func(from, event, rest string) string {
		s := "<xml><ToUserName>ww1</ToUserName>"
		if from != "" {
			s += "<FromUserName>" + from + "</FromUserName>"
		}
		return s + "<CreateTime>1770000001</CreateTime><MsgType>event</MsgType><Event>" + event + "</Event>" + rest + "</xml>"
	}
	change := func(ev, changeType, rest string) string {
		return event("sys", ev, "<ChangeType>"+changeType+"</ChangeType>"+rest)
	}
	suite := func(info, rest string) string {
		return "<xml><SuiteId>tj1</SuiteId><InfoType> <![CDATA[" + info + "]]></InfoType><TimeStamp>1770000001</TimeStamp>" + rest + "</xml>"
	}
	const corp = "<AuthCorpId>wpC</AuthCorpId>"

	tests := []struct {
		plain              string
		tail               string // with blanks between its parts
		subject, partition string
		corp, agent        string
	}{
		// Messages, known and unknown.
		{"<xml><ToUserName>ww1</ToUserName><FromUserName>alice</FromUserName><CreateTime>1</CreateTime><MsgType>text</MsgType><Content>x</Content><MsgId>7</MsgId><AgentID>1000002</AgentID></xml>",
			"message text", "alice", "alice", "ww1", "1000002"},
		{"<xml><ToUserName>ww1</ToUserName><FromUserName>alice</FromUserName><MsgType>location</MsgType><AgentID></AgentID></xml>",
			"message location", "alice", "alice", "ww1", ""},
		{"<xml><FromUserName>alice</FromUserName><MsgType>new.kind/2</MsgType></xml>",
			"message new.kind/2", "alice", "alice", "", ""},
		{"<xml><ToUserName>ww1</ToUserName><FromUserName>sys</FromUserName><MsgType>text</MsgType></xml>",
			"message text", "-", "-", "ww1", ""},

		// Menu, app entry, cards.
		{event("alice", "subscribe", "<EventKey></EventKey><AgentID>5</AgentID>"), "event subscribe", "alice", "alice", "ww1", "5"},
		{event("alice", "LOCATION", "<AgentID>5</AgentID>"), "event LOCATION", "alice", "alice", "ww1", "5"},
		{event("alice", "click", "<EventKey>K</EventKey>"), "event click", "alice", "alice", "ww1", ""},
		{event("alice", "scancode_waitmsg", "<ScanCodeInfo><ScanType>qrcode</ScanType></ScanCodeInfo><AgentID>5</AgentID>"),
			"event scancode_waitmsg", "alice", "alice", "ww1", "5"},
		{event("alice", "template_card_event", "<TaskId>t1</TaskId><ResponseCode>rc</ResponseCode>"), "event template_card_event", "t1", "alice", "ww1", ""},
		{event("alice", "template_card_menu_event", "<TaskId></TaskId><ResponseCode>rc</ResponseCode>"), "event template_card_menu_event", "rc", "alice", "ww1", ""},
		{event("alice", "taskcard_click", "<TaskId>t1</TaskId><AgentId>6</AgentId>"), "event taskcard_click", "t1", "alice", "ww1", "6"},

		// About the app, the corp or nobody.
		{event("sys", "share_agent_change", "<AgentID>5</AgentID>"), "event share_agent_change", "-", "-", "ww1", "5"},
		{event("admin", "reopen_inactive_agent", "<AgentID>5</AgentID>"), "event reopen_inactive_agent", "-", "admin", "ww1", "5"},
		{event("sys", "msgaudit_notify", "<AgentID>2000004</AgentID>"), "event msgaudit_notify", "-", "-", "ww1", "2000004"},
		{event("sys", "security/change_domain_ip", ""), "event security/change_domain_ip", "-", "-", "ww1", ""},
		{event("sys", "wedrive_insufficient_capacity", ""), "event wedrive_insufficient_capacity", "-", "-", "ww1", ""},
		{change("app_email_change", "receive_email", "<Amount>1</Amount>"), "event app_email_change receive_email", "-", "-", "ww1", ""},
		{event("sys", "program_notify", "<NotifyId>n1</NotifyId>"), "event program_notify", "n1", "n1", "ww1", ""},
		{event("alice", "submit_vip_account_approval", "<ApplyId>a1</ApplyId>"), "event submit_vip_account_approval", "a1", "alice", "ww1", ""},

		// Address book and customers.
		{change("change_contact", "update_user", "<UserID>bob</UserID><NewUserID>bob2</NewUserID>"), "event change_contact update_user", "bob", "bob", "ww1", ""},
		{change("change_contact", "create_party", "<Id>2</Id><ParentId>1</ParentId>"), "event change_contact create_party", "2", "2", "ww1", ""},
		{change("change_contact", "update_tag", "<TagId>9</TagId>"), "event change_contact update_tag", "9", "9", "ww1", ""},
		{change("change_external_contact", "add_external_contact", "<UserID>bob</UserID><ExternalUserID>wm1</ExternalUserID>"),
			"event change_external_contact add_external_contact", "wm1", "wm1", "ww1", ""},
		{change("change_external_chat", "update", "<ChatId>wr1</ChatId><MemChangeList><Item>x</Item></MemChangeList>"), "event change_external_chat update", "wr1", "wr1", "ww1", ""},
		{change("change_external_tag", "create", "<Id>et1</Id>"), "event change_external_tag create", "et1", "et1", "ww1", ""},
		{change("change_external_tag", "shuffle", "<Id></Id>"), "event change_external_tag shuffle", "-", "-", "ww1", ""},
		{change("customer_acquisition", "open_profile", "<LinkId>l1</LinkId>"), "event customer_acquisition open_profile", "l1", "l1", "ww1", ""},
		{change("customer_acquisition", "balance_low", ""), "event customer_acquisition balance_low", "ww1", "ww1", "ww1", ""},
		{change("change_school_contact", "create_deparmtment", "<Id>3</Id>"), "event change_school_contact create_deparmtment", "3", "3", "ww1", ""},
		{change("change_chain", "create_group", "<ChainId>c1</ChainId><GroupIds><GroupId>1</GroupId></GroupIds>"), "event change_chain create_group", "c1", "c1", "ww1", ""},

		// Customer service has no sender.
		{event("", "kf_msg_or_event", "<Token>T</Token><OpenKfId>wk1</OpenKfId>"), "event kf_msg_or_event", "wk1", "wk1", "ww1", ""},
		{event("sys", "kf_account_auth_change", "<AuthAddOpenKfId>wk1</AuthAddOpenKfId>"), "event kf_account_auth_change", "-", "-", "ww1", ""},

		// Calendar, approvals, meetings, documents, drive, live, jobs, devices.
		{event("alice", "modify_calendar", "<CalId>c1</CalId>"), "event modify_calendar", "c1", "alice", "ww1", ""},
		{event("alice", "respond_schedule", "<CalId>c1</CalId><ScheduleId>s1</ScheduleId>"), "event respond_schedule", "s1", "alice", "ww1", ""},
		{event("sys", "sys_approval_change", "<AgentID>3010040</AgentID><ApprovalInfo><SpNo>1</SpNo><SpNoStr>2</SpNoStr></ApprovalInfo>"),
			"event sys_approval_change", "2", "2", "ww1", "3010040"},
		{event("sys", "sys_approval_change", "<ApprovalInfo><SpNo>1</SpNo></ApprovalInfo>"), "event sys_approval_change", "1", "1", "ww1", ""},
		{event("sys", "open_approval_change", "<ApprovalInfo><ThirdNo>3</ThirdNo></ApprovalInfo>"), "event open_approval_change", "3", "3", "ww1", ""},
		{event("", "meeting_change", "<ChangeType>join_meeting</ChangeType><MeetingId>m1</MeetingId>"), "event meeting_change join_meeting", "m1", "m1", "ww1", ""},
		{event("alice", "meeting_statistics", "<ChangeType>start_meeting</ChangeType>"), "event meeting_statistics start_meeting", "-", "alice", "ww1", ""},
		{event("alice", "book_meeting_room", "<MeetingRoomId>1</MeetingRoomId><BookingId>b1</BookingId>"), "event book_meeting_room", "b1", "alice", "ww1", ""},
		{event("alice", "doc_change", "<ChangeType>delete_doc</ChangeType><DocId>d1</DocId><DocId>d2</DocId>"), "event doc_change delete_doc", "d1", "alice", "ww1", ""},
		{event("alice", "doc_change", "<ChangeType>form_complete</ChangeType><FormId>f1</FormId>"), "event doc_change form_complete", "f1", "alice", "ww1", ""},
		{event("alice", "smart_sheet_change", "<ChangeType>add_filed</ChangeType><DocId>d1</DocId><SheetId>s</SheetId><FieldId>f</FieldId>"),
			"event smart_sheet_change add_filed", "d1", "alice", "ww1", ""},
		{change("wedrive_space_change", "dismiss_space", "<SpaceId>s1</SpaceId>"), "event wedrive_space_change dismiss_space", "s1", "s1", "ww1", ""},
		{change("wedrive_file_change", "move_file", "<FileId>f1</FileId><FileId>f2</FileId>"), "event wedrive_file_change move_file", "f1", "f1", "ww1", ""},
		{event("alice", "living_status_change", "<LivingId>l1</LivingId><AgentID>5</AgentID>"), "event living_status_change", "l1", "alice", "ww1", "5"},
		{event("sys", "batch_job_result", "<BatchJob><JobId>j1</JobId></BatchJob>"), "event batch_job_result", "j1", "j1", "ww1", ""},
		{event("sys", "batch_job_result", "<JobId>j1</JobId><JobType>sync_user</JobType>"), "event batch_job_result", "j1", "j1", "ww1", ""},
		{event("sys", "upload_media_job_finish", "<JobId>j1</JobId>"), "event upload_media_job_finish", "j1", "j1", "ww1", ""},
		{event("sys", "device_checkin_data_report", "<DeviceSn>d1</DeviceSn>"), "event device_checkin_data_report", "d1", "d1", "ww1", ""},

		// Unknown events are about whoever caused them.
		{event("alice", "brand.new/event", "<ChangeType>x.y</ChangeType>"), "event brand.new/event x.y", "alice", "alice", "ww1", ""},
		{event("sys", "brand_new", "<ChangeType></ChangeType>"), "event brand_new", "-", "-", "ww1", ""},

		// Provider callbacks.
		{suite("suite_ticket", "<SuiteTicket>T</SuiteTicket>"), "suite suite_ticket", "-", "-", "", ""},
		{suite("create_auth", "<AuthCode>code</AuthCode>"), "suite create_auth", "code", "code", "", ""},
		{suite("change_auth", corp), "suite change_auth", "wpC", "wpC", "wpC", ""},
		{suite("open_order", "<PaidCorpId>wpP</PaidCorpId><OrderId>o1</OrderId>"), "suite open_order", "wpP", "wpP", "wpP", ""},
		{suite("license_pay_success", "<ServiceCorpId>wwS</ServiceCorpId>"+corp+"<OrderId>o1</OrderId>"), "suite license_pay_success", "wpC", "wpC", "wpC", ""},
		{suite("change_contact", corp+"<ChangeType>create_user</ChangeType><UserID>bob</UserID>"), "suite change_contact create_user", "bob", "bob", "wpC", ""},
		{suite("change_external_tag", corp+"<ChangeType>shuffle</ChangeType><Id/>"), "suite change_external_tag shuffle", "wpC", "wpC", "wpC", ""},
		{suite("customer_acquisition", corp+"<ChangeType>balance_low</ChangeType>"), "suite customer_acquisition balance_low", "wpC", "wpC", "wpC", ""},
		{suite("customer_aqcuisition", "<ChangeType>open_profile</ChangeType><LinkId>l</LinkId>"), "suite customer_aqcuisition open_profile", "l", "l", "", ""},
		{suite("customer_acquisition", "<ChangeType>service_balance_low</ChangeType>"), "suite customer_acquisition service_balance_low", "-", "-", "", ""},
		{suite("change_school_contact_batch", corp+"<ChangeList><ChangeType>create_student</ChangeType><TimeStamp>5</TimeStamp><Id>s</Id></ChangeList>"),
			"suite change_school_contact_batch", "wpC", "wpC", "wpC", ""},
		{suite("share_agent_change", "<AppId>1</AppId><CorpId>ww2</CorpId><AgentId>7</AgentId>"), "suite share_agent_change", "-", "-", "", "7"},
		{suite("batch_job_result", "<BatchJob><JobId>j1</JobId></BatchJob>"), "suite batch_job_result", "j1", "j1", "", ""},
		{suite("new_info", corp), "suite new_info", "wpC", "wpC", "wpC", ""},
		{`{"ServiceCorpId":"wwS","InfoType":"agree_external_userid_migration","AuthCorpId":"wpC","TimeStamp":1770000001}`,
			"suite agree_external_userid_migration", "wpC", "wpC", "wpC", ""},

		// AI bots.
		{botText, "aibot message text", "wr01", "wr01", "", ""},
		{`{"msgid":"1","aibotid":"b","from":{"corpid":"wwU","userid":"alice"},"chattype":"single","msgtype":"voice"}`, "aibot message voice", "alice", "alice", "", ""},
		{`{"msgid":"1","aibotid":"b","chatid":"wr1","from":{"userid":"alice"},"msgtype":"stream","stream":{"id":"S1"}}`, "aibot message stream", "S1", "wr1", "", ""},
		{`{"msgid":"1","aibotid":"b","from":{"userid":"al\u0069ce"},"msgtype":"event","event":{"eventtype":"enter_chat"}}`, "aibot event enter_chat", "alice", "alice", "", ""},
		{`{"msgid":"1","aibotid":"b","msgtype":"event","event":{"eventtype":"a.b"}}`, "aibot event a.b", "-", "-", "", ""},

		// Payments and hardware.
		{"<xml><notify_type>NORMALPAY</notify_type><id>p1</id><create_time>2026-02-02T10:40:01+08:00</create_time><event_type>TRANSACTION.SUCCESS</event_type><resource><nonce>n</nonce></resource></xml>",
			"payment TRANSACTION.SUCCESS", "p1", "p1", "", ""},
		{`{"notify_type":"REFUND","id":"p1","create_time":"2026-02-02T10:40:01+08:00","event_type":"REFUND.CLOSED","resource":{"id":"x"}}`,
			"payment REFUND.CLOSED", "p1", "p1", "", ""},
		{`{"msg_type":"event","base_info":{"req_id":"r","device_sn":"d1","createtime":1,"model_id":"m","auth_corpid":"wpC","service_corpid":"wwS"},"event":{"event_type":"bind"}}`,
			"hardware event bind", "d1", "d1", "wpC", ""},
		{`{"msg_type":"command","base_info":{"req_id":"r","model_id":"m"},"command":{"command_type":"remote_open_door"}}`,
			"hardware command remote_open_door", "m", "m", "", ""},
	}
	for _, test := range tests {
		t.Run(test.tail, func(t *testing.T) {
			var p Payload
			Parse(nil, test.plain, &p)
			want := strings.Split(test.tail, " ")
			if !slices.Equal(p.Tail(), want) || p.Type() != "wecom."+strings.Join(want, ".") {
				t.Errorf("tail %q, type %q, want %q", p.Tail(), p.Type(), want)
			}
			if p.Subject != test.subject || p.PartitionKey != test.partition {
				t.Errorf("subject %q, partition key %q, want %q, %q", p.Subject, p.PartitionKey, test.subject, test.partition)
			}
			if p.CorpID != test.corp || p.AgentID != test.agent {
				t.Errorf("corp %q, agent %q, want %q, %q", p.CorpID, p.AgentID, test.corp, test.agent)
			}
		})
	}
}

// TestSubjectsTable: no event stands in two rows, where the second would win.
func TestSubjectsTable(t *testing.T) {
	seen := map[string]bool{}
	for _, row := range subjects {
		for _, event := range strings.Fields(row.events) {
			if seen[event] {
				t.Errorf("%s stands in two rows", event)
			}
			seen[event] = true
		}
	}
}
