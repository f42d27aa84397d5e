package wecom

// repeatable lists the elements that the manual says may stand several times, so that
// they are arrays in JSON even where one stands alone. "" is the root. Elements that
// repeat without being listed become arrays by themselves.
var repeatable = []struct{ parent, child string }{
	// Cards and menus, developer.work.weixin.qq.com/document/path/90240. PicList wraps its
	// items on paper; in the wild it is PicList that repeats.
	{"SelectedItems", "SelectedItem"},
	{"OptionIds", "OptionId"},
	{"SendPicsInfo", "PicList"},
	{"PicList", "item"},

	// Address book and customers, 90970 and 92130.
	{"ExtAttr", "Item"},
	{"MemChangeList", "Item"},

	// School contacts in batches, 97281.
	{"", "ChangeList"},

	// Upstream and downstream, 95796.
	{"GroupIds", "GroupId"},
	{"CorpIds", "CorpId"},

	// Customer service, 97712. OpenKfId is a list only here: the kf_msg_or_event of 94670
	// is about one.
	{"", "AuthAddOpenKfId"},
	{"", "AuthDelOpenKfId"},
	{"AuthOpenKfIdList", "OpenKfId"},

	// Approvals, 91815 and 90269.
	{"ApprovalInfo", "SpRecord"},
	{"SpRecord", "Details"},
	{"ApprovalInfo", "Notifyer"},
	{"ProcessList", "NodeList"},
	{"NodeList", "SubNodeList"},
	{"ApprovalInfo", "Comments"},
	{"ApprovalNodes", "ApprovalNode"},
	{"Items", "Item"},
	{"NotifyNodes", "NotifyNode"},

	// Meetings, 98775.
	{"", "UploadInfo"},

	// Documents, forms and smart sheets, 97833. DocId is a list only in doc_change: a
	// smart_sheet_change is about one.
	{"", "DocId"},
	{"", "FormId"},
	{"", "RecordId"},
	{"", "FieldId"},

	// Drive, 97898.
	{"", "SpaceId"},
	{"", "FileId"},

	// Device data, 97214. The manual has both spellings of the first.
	{"CheckInDataList", "Item"},
	{"CheckinDataList", "Item"},
	{"AccessDataList", "Item"},
	{"TemperatureDataList", "Item"},

	// Licences activated by themselves, 95994.
	{"", "AccountList"},
}

// mayRepeat reports whether child is listed under parent, in a document whose Event is
// event.
func mayRepeat(parent, child, event string) bool {
	if parent == "" && child == "DocId" && event != "doc_change" {
		return false
	}
	return repeatSet[[2]string{parent, child}]
}

var repeatSet = func() map[[2]string]bool {
	m := make(map[[2]string]bool, len(repeatable))
	for _, r := range repeatable {
		m[[2]string{r.parent, r.child}] = true
	}
	return m
}()

// repeatRoot has the nameBit of every child of the root that may repeat.
var repeatRoot = func() (bits uint64) {
	for _, r := range repeatable {
		if r.parent == "" {
			bits |= nameBit(r.child)
		}
	}
	return bits
}()

// nameBit returns one of 64 bits, by which a set of names can be kept in a word: a name
// whose bit is missing is not in the set. The factors keep WeCom's common names apart.
func nameBit(name string) uint64 {
	n := len(name)
	return 1 << ((uint(n)*3 + uint(name[0])*15 + uint(name[n/2]) + uint(name[n-1])) % 64)
}
