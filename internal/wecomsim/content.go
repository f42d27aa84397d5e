package wecomsim

import (
	"regexp"
	"strings"
	"unicode/utf8"
)

// content checks the part of message/send that the msgtype names. Lengths that the manual only
// recommends are not checked.
type content struct {
	kind     string
	all      bool   // touser is @all
	safe     int64  // 0 to 2
	overflow string // what happens to markdown that is too long
	callback bool   // set by check: a click on it is called back, so the reply has a response_code
}

const maxText = 2048 // bytes

var (
	mediaID = regexp.MustCompile(`^[0-9A-Za-z_\-*@.]{1,512}$`)
	taskID  = regexp.MustCompile(`^[0-9A-Za-z_\-@]{1,128}$`)
)

// check returns what the phone shows, or why the message is refused.
func (c *content) check(f fields) (shown string, r *refusal) {
	b := f.obj(c.kind)
	if c.safe < 0 || c.safe > 2 || c.safe == 2 && c.kind != "mpnews" {
		return "", refuseParam("invalid safe")
	}
	switch c.kind {
	case "text":
		text := b.str("content")
		if text == "" {
			return "", refuse(44004)
		}
		return cut(text, maxText), nil
	case "markdown":
		return c.markdown(b)
	case "image", "voice", "file":
		return "[" + c.kind + "]", media(b.str("media_id"))
	case "video":
		return joinLines("[video]", cut(b.str("title"), 128), cut(b.str("description"), 512)), media(b.str("media_id"))
	case "textcard":
		switch {
		case b.str("title") == "":
			return "", refuse(41016)
		case b.str("description") == "":
			return "", refuse(41033)
		}
		return joinLines(cutRunes(b.str("title"), 128), cutRunes(b.str("description"), 512)), link(b.str("url"))
	case "news":
		return c.news(b)
	case "mpnews":
		return c.mpnews(b)
	case "miniprogram_notice":
		return c.miniprogram(b)
	case "template_card":
		return c.card(b)
	}
	return "", refuse(40008)
}

func (c *content) markdown(b fields) (string, *refusal) {
	text := b.str("content")
	switch {
	case text == "":
		return "", refuse(44004)
	case len(text) <= maxText || c.overflow == "cut":
		return cut(text, maxText), nil
	case c.overflow == "45002":
		return "", refuse(45002)
	}
	return "", refuseParam("markdown.content exceed max length 2048")
}

func (c *content) news(b fields) (string, *refusal) {
	items := b.list("articles")
	switch {
	case c.safe == 1:
		return "", refuse(40074)
	case len(items) == 0:
		return "", refuse(44004)
	case len(items) > 8:
		return "", refuse(45008)
	}
	var titles []string
	for _, a := range items {
		if a.str("title") == "" {
			return "", refuse(41016)
		}
		if a.str("appid") != "" || a.str("pagepath") != "" {
			// Only together; the url is ignored then.
			if a.str("appid") == "" || a.str("pagepath") == "" || len(a.str("pagepath")) > 128 {
				return "", refuseParam("news.articles.appid and pagepath")
			}
		} else if r := link(a.str("url")); r != nil {
			return "", r
		}
		if p := a.str("picurl"); p != "" {
			if r := link(p); r != nil {
				return "", r
			}
		}
		titles = append(titles, cut(a.str("title"), 128))
	}
	return strings.Join(titles, "\n"), nil
}

func (c *content) mpnews(b fields) (string, *refusal) {
	items := b.list("articles")
	switch {
	case len(items) == 0:
		return "", refuse(44004)
	case len(items) > 8:
		return "", refuse(45008)
	}
	var titles []string
	for _, a := range items {
		if a.str("title") == "" {
			return "", refuse(41016)
		}
		if r := media(a.str("thumb_media_id")); r != nil {
			return "", r
		}
		switch {
		case len(a.str("author")) > 64:
			return "", refuse(45032)
		case a.str("content") == "":
			return "", refuse(44004)
		case len(a.str("content")) > 666<<10:
			return "", refuse(45002)
		}
		titles = append(titles, cut(a.str("title"), 128))
	}
	return strings.Join(titles, "\n"), nil
}

func (c *content) miniprogram(b fields) (string, *refusal) {
	items := b.list("content_item")
	switch n := utf8.RuneCountInString(b.str("title")); {
	case c.all:
		return "", refuseParam("miniprogram_notice to @all")
	case b.str("appid") == "":
		return "", refuse(90200)
	case n == 0:
		return "", refuse(41016)
	case n < 4 || n > 12:
		return "", refuseParam("miniprogram_notice.title")
	case len(b.str("page")) > 1024:
		return "", refuse(90204)
	case len(items) > 10:
		return "", refuse(90201)
	}
	b.bool("emphasis_first_item")
	shown := []string{b.str("title"), b.str("description")}
	for _, it := range items {
		k, v := it.str("key"), it.str("value")
		switch {
		case k == "" && v == "":
			continue
		case k == "" || utf8.RuneCountInString(k) > 10:
			return "", refuse(90202)
		case v == "" || utf8.RuneCountInString(v) > 30:
			return "", refuse(90203)
		}
		shown = append(shown, k+": "+v)
	}
	return joinLines(shown...), nil
}

func (c *content) card(b fields) (string, *refusal) {
	kind := b.str("card_type")
	title, desc := b.obj("main_title").str("title"), b.obj("main_title").str("desc")
	sub := b.str("sub_title_text")
	menu := b.has("action_menu")
	switch kind {
	case "text_notice", "news_notice":
		c.callback = menu
	case "button_interaction", "vote_interaction", "multiple_interaction":
		c.callback = true
	default:
		return "", refuse(42031)
	}
	if c.callback && !taskID.MatchString(b.str("task_id")) || b.has("task_id") && !taskID.MatchString(b.str("task_id")) {
		return "", refuse(42014)
	}
	if title == "" && (kind != "text_notice" || sub == "") {
		return "", refuse(41016)
	}
	if menu {
		if r := actionMenu(b.obj("action_menu").list("action_list")); r != nil {
			return "", r
		}
	}
	if r := cardLists(b); r != nil {
		return "", r
	}
	if kind == "text_notice" || kind == "news_notice" || b.has("card_action") {
		a := b.obj("card_action")
		t := a.int("type")
		if t < 0 || t > 2 || t == 0 && kind != "button_interaction" {
			return "", refuse(42045)
		}
		if r := target(a, t); r != nil {
			return "", r
		}
	}
	var r *refusal
	switch kind {
	case "news_notice":
		r = cardImage(b)
	case "button_interaction":
		r = buttons(b)
	case "vote_interaction":
		box := b.obj("checkbox")
		if r = question(box); r == nil {
			r = options(box.list("option_list"), 20)
		}
	case "multiple_interaction":
		r = selects(b.list("select_list"))
	}
	if r != nil {
		return "", r
	}
	if kind == "vote_interaction" || kind == "multiple_interaction" {
		submit := b.obj("submit_button")
		switch k := submit.str("key"); {
		case submit.str("text") == "":
			// The manual calls it required and names a default too.
			return "", refuse(42049)
		case k == "" || len(k) > 1024:
			return "", refuse(42046)
		}
	}
	return joinLines(title, desc, sub), nil
}

func actionMenu(items []fields) *refusal {
	if len(items) == 0 || len(items) > 3 {
		return refuseParam("action_menu.action_list")
	}
	seen := map[string]bool{}
	for _, it := range items {
		k := it.str("key")
		if it.str("text") == "" || k == "" || len(k) > 1024 {
			return refuseParam("action_menu.action_list")
		}
		if seen[k] {
			return refuse(42051)
		}
		seen[k] = true
	}
	return nil
}

func cardLists(b fields) *refusal {
	horizontal, vertical, jump := b.list("horizontal_content_list"), b.list("vertical_content_list"), b.list("jump_list")
	switch {
	case len(horizontal) > 6:
		return refuse(42035)
	case len(vertical) > 4:
		return refuse(42036)
	case len(jump) > 3:
		return refuse(42042)
	}
	for _, it := range horizontal {
		switch t := it.int("type"); {
		case it.str("keyname") == "":
			return refuse(42027)
		case t == 1 && it.str("url") == "":
			return refuse(42028)
		case t == 2 && it.str("media_id") == "":
			return refuse(42029)
		case t == 3 && it.str("userid") == "":
			return refuse(42050)
		}
	}
	for _, it := range vertical {
		if it.str("title") == "" {
			return refuse(42033)
		}
	}
	for _, it := range jump {
		if it.str("title") == "" {
			return refuse(42033)
		}
		if r := target(it, it.int("type")); r != nil {
			return r
		}
	}
	return nil
}

// target checks where a tap leads: 1 a url, 2 a mini-program.
func target(f fields, kind int64) *refusal {
	switch {
	case kind == 1 && f.str("url") == "":
		return refuse(42028)
	case kind == 2 && f.str("appid") == "":
		return refuse(42030)
	}
	return nil
}

func cardImage(b fields) *refusal {
	area, image := b.obj("image_text_area"), b.obj("card_image")
	if area.str("image_url") == "" && image.str("url") == "" {
		return refuse(42044)
	}
	return nil
}

func buttons(b fields) *refusal {
	if b.has("button_selection") {
		sel := b.obj("button_selection")
		if r := question(sel); r != nil {
			return r
		}
		if r := options(sel.list("option_list"), 10); r != nil {
			return r
		}
	}
	list := b.list("button_list")
	if len(list) == 0 || len(list) > 6 {
		return refuseParam("button_list")
	}
	seen := map[string]bool{}
	for _, it := range list {
		switch k := it.str("key"); {
		case it.str("text") == "":
			return refuse(42038)
		case it.int("type") == 1:
			if it.str("url") == "" {
				return refuse(42028)
			}
		case k == "" || len(k) > 1024 || seen[k]:
			return refuse(42039)
		default:
			seen[k] = true
		}
	}
	return nil
}

func selects(list []fields) *refusal {
	if len(list) == 0 || len(list) > 3 {
		return refuse(42047)
	}
	seen := map[string]bool{}
	for _, it := range list {
		if r := question(it); r != nil {
			return r
		}
		if k := it.str("question_key"); seen[k] {
			return refuse(42043)
		} else {
			seen[k] = true
		}
		if r := options(it.list("option_list"), 10); r != nil {
			return r
		}
	}
	return nil
}

func question(f fields) *refusal {
	if k := f.str("question_key"); k == "" || len(k) > 1024 {
		return refuse(42043)
	}
	return nil
}

func options(list []fields, most int) *refusal {
	if len(list) == 0 || len(list) > most {
		return refuse(42037)
	}
	seen := map[string]bool{}
	for _, it := range list {
		id := it.str("id")
		if id == "" || len(id) > 128 || seen[id] {
			return refuse(42040)
		}
		seen[id] = true
		if it.str("text") == "" {
			return refuse(42041)
		}
	}
	return nil
}

func media(id string) *refusal {
	switch {
	case id == "":
		return refuse(41006)
	case !mediaID.MatchString(id), strings.HasPrefix(id, "expired"), strings.HasPrefix(id, "invalid"):
		return refuse(40007)
	}
	return nil
}

func link(u string) *refusal {
	switch {
	case u == "":
		return refuse(41010)
	case !strings.HasPrefix(u, "http://") && !strings.HasPrefix(u, "https://"):
		return refuse(45034)
	case len(u) > 2048:
		return refuse(40039)
	}
	return nil
}

// cut keeps at most n bytes of s and no half character. WeCom cuts too; whether it splits a
// character is not known.
func cut(s string, n int) string {
	if len(s) <= n {
		return s
	}
	for n > 0 && !utf8.RuneStart(s[n]) {
		n--
	}
	return s[:n]
}

func cutRunes(s string, n int) string {
	for i := range s {
		if n == 0 {
			return s[:i]
		}
		n--
	}
	return s
}

func joinLines(parts ...string) string {
	var kept []string
	for _, p := range parts {
		if p != "" {
			kept = append(kept, p)
		}
	}
	return strings.Join(kept, "\n")
}
