package wecomsim

import (
	"context"
	"encoding/xml"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/cdproto/cdp"
	"github.com/chromedp/cdproto/emulation"
	"github.com/chromedp/cdproto/input"
	"github.com/chromedp/chromedp"
)

func TestPageHeaders(t *testing.T) {
	s := newSim(t, Config{})
	for path, kind := range map[string]string{"/": "text/html", "/chat.js": "javascript", "/text.js": "javascript", "/style.css": "text/css", "/icon.svg": "image/svg"} {
		w := do(s, "GET", path, "")
		if w.Code != 200 || !strings.Contains(w.Header().Get("Content-Type"), kind) {
			t.Errorf("GET %s: status %d, Content-Type %q, want 200 %s", path, w.Code, w.Header().Get("Content-Type"), kind)
		}
		csp := w.Header().Get("Content-Security-Policy")
		if !strings.Contains(csp, "default-src 'none'") || strings.Contains(csp, "unsafe") || strings.Contains(csp, "http") {
			t.Errorf("GET %s: Content-Security-Policy %q", path, csp)
		}
		if body := w.Body.String(); strings.Contains(body, "innerHTML") || strings.Contains(body, " style=") {
			t.Errorf("GET %s: sets markup or an inline style", path)
		}
	}
	if w := do(s, "POST", "/", ""); w.Code != http.StatusMethodNotAllowed {
		t.Errorf("POST /: status %d, want 405", w.Code)
	}
	if w := do(s, "GET", "/no-such-file", ""); w.Code != http.StatusNotFound {
		t.Errorf("GET /no-such-file: status %d, want 404", w.Code)
	}
}

// A bot is an application behind a callback URL: it answers what it is told, by way of the API.
type bot struct {
	t    *testing.T
	api  string // base URL
	wait sync.WaitGroup
}

func (b *bot) handle(w http.ResponseWriter, _ *http.Request, _ int, plain string) {
	var m struct{ FromUserName, MsgType, Content, Event, EventKey string }
	if err := xml.Unmarshal([]byte(plain), &m); err != nil {
		b.t.Errorf("plaintext %q: %v", plain, err)
		return
	}
	if m.Content == "fail" {
		http.Error(w, "", http.StatusServiceUnavailable)
		return
	}
	agent := func(msgtype, body string) {
		b.wait.Add(1)
		go func() {
			defer b.wait.Done()
			b.send(fmt.Sprintf(`{"touser":%q,"msgtype":%q,"agentid":1000002,%q:%s}`, m.FromUserName, msgtype, msgtype, body))
		}()
	}
	switch {
	case m.Event == "click" && m.EventKey == "STATUS":
		agent("markdown", `{"content":"**Deploy** <font color=\"info\">done</font>\n> host: `+"`web-3`"+`\n[log](https://ci.example.com/9)"}`)
	case m.Event == "click":
		agent("template_card", `{"card_type":"button_interaction","source":{"desc":"Jobs"},"main_title":{"title":"Restart the nightly job?","desc":"It has been running for 42 minutes."},"horizontal_content_list":[{"keyname":"Host","value":"web-3"},{"keyname":"Log","type":1,"value":"open","url":"https://ci.example.com/9"}],"task_id":"job-42","button_list":[{"text":"Restart","key":"yes"},{"text":"Leave it","key":"no"}]}`)
	case m.Event != "":
		agent("text", `{"content":"Pressed `+m.EventKey+`"}`)
	default:
		agent("text", fmt.Sprintf(`{"content":%q}`, "我也"+m.Content+"!"))
	}
}

func (b *bot) send(body string) {
	res, err := http.Get(b.api + "/cgi-bin/gettoken?corpid=" + testCorp + "&corpsecret=" + testSecret)
	if err != nil {
		b.t.Error(err)
		return
	}
	text, _ := io.ReadAll(res.Body)
	res.Body.Close()
	_, token, _ := strings.Cut(string(text), `"access_token":"`)
	token, _, _ = strings.Cut(token, `"`)
	res, err = http.Post(b.api+"/cgi-bin/message/send?access_token="+token, "application/json", strings.NewReader(body))
	if err != nil {
		b.t.Error(err)
		return
	}
	defer res.Body.Close()
	if code := res.Header.Get("Error-Code"); code != "0" {
		text, _ := io.ReadAll(res.Body)
		b.t.Errorf("message/send %s: %s", body, text)
	}
}

// chromium finds a browser, or skips the test and says so.
func chromium(t *testing.T) string {
	for _, name := range []string{os.Getenv("BRIDGE_CHROMIUM"), "chromium", "chromium-browser", "google-chrome", "google-chrome-stable", "headless-shell", "chrome"} {
		if name == "" {
			continue
		}
		if path, err := exec.LookPath(name); err == nil {
			return path
		}
	}
	t.Skip("no Chromium found: install the chromium package or set BRIDGE_CHROMIUM to test the chat page in a browser")
	return ""
}

// TestPageInBrowser drives the page as a user does. Screenshots go to $BRIDGE_SCREENSHOTS, or to a
// folder of the test's own.
func TestPageInBrowser(t *testing.T) {
	path := chromium(t)
	b := &bot{t: t}
	g := &fakeGateway{answer: b.handle}
	callback := g.start(t)
	second := App{Name: "ops", CorpID: testCorp, AgentID: "1000003", Secret: "x", Token: testToken, AESKey: testAESKey}
	s := newSim(t, Config{CallbackURLs: []string{callback}, Apps: []App{demoApp(), second}})
	srv := httptest.NewServer(s)
	t.Cleanup(srv.Close)
	t.Cleanup(s.Close)
	b.api = srv.URL
	t.Cleanup(b.wait.Wait)

	shots := os.Getenv("BRIDGE_SCREENSHOTS")
	if shots == "" {
		shots = t.TempDir()
	} else if err := os.MkdirAll(shots, 0o755); err != nil {
		t.Fatal(err)
	}

	opts := append(chromedp.DefaultExecAllocatorOptions[:],
		chromedp.ExecPath(path),
		chromedp.Flag("lang", "en-US"),
		chromedp.NoSandbox, // tests in containers run as root
	)
	alloc, cancel := chromedp.NewExecAllocator(t.Context(), opts...)
	defer cancel()
	ctx, closeTab := chromedp.NewContext(alloc)
	defer closeTab()

	messages := chromedp.Console(ctx) // starts the browser
	var complaints []string
	listened := make(chan struct{})
	go func() {
		defer close(listened)
		for m, err := range messages {
			if err != nil {
				return // the tab is closed
			}
			switch m.Type {
			case chromedp.ConsoleError, chromedp.ConsoleWarning, chromedp.ConsoleException:
				// Chromium tells of the stream that the test cuts.
				if !(m.Source == "network" && strings.HasSuffix(m.URL, "/sim/events")) {
					complaints = append(complaints, m.String()+" "+m.URL)
				}
			}
		}
	}()

	type step = chromedp.Action[chromedp.Void]
	shot := func(name string) step {
		return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
			png, err := chromedp.CaptureScreenshot()(ctx, tab)
			if err != nil {
				return err
			}
			return os.WriteFile(filepath.Join(shots, name+".png"), png, 0o644)
		})
	}
	scheme := func(v string) step {
		return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
			_, err := cdp.Call(ctx, tab, emulation.SetEmulatedMedia, emulation.SetEmulatedMediaParams{Features: []*emulation.MediaFeature{
				{Name: "prefers-color-scheme", Value: v}, {Name: "prefers-reduced-motion", Value: "reduce"}}})
			return err
		})
	}
	run := func(what string, steps ...step) {
		t.Helper()
		ctx, cancel := context.WithTimeout(ctx, time.Minute)
		defer cancel()
		if err := chromedp.Do(ctx, steps...); err != nil {
			page, _ := chromedp.Run(ctx, chromedp.Text(chromedp.CSS("body")))
			t.Fatalf("%s: %v\npage: %s", what, err, page)
		}
	}
	js := func(code string) step { return chromedp.Evaluate[chromedp.Void](code) }
	// until polls an expression in the page.
	until := func(expression string) step {
		return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
			if _, err := chromedp.Poll[chromedp.Void](expression, chromedp.WithPollingTimeout(20*time.Second))(ctx, tab); err != nil {
				return fmt.Errorf("%s: %w", expression, err)
			}
			return nil
		})
	}
	count := func(selector string, n int) step {
		return until(fmt.Sprintf("document.querySelectorAll(%q).length === %d", selector, n))
	}

	// enter presses the key as a keyboard does: a page that prevents it prevents the line break too.
	enter := func(modifiers ...chromedp.Modifier) step {
		return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
			p := input.DispatchKeyEventParams{Type: input.DispatchKeyEventTypeKeyDown, Key: "Enter", Code: "Enter", Text: "\r", WindowsVirtualKeyCode: 13}
			chromedp.KeyModifiers(modifiers...)(&p)
			if _, err := cdp.Call(ctx, tab, input.DispatchKeyEvent, p); err != nil {
				return err
			}
			p.Type, p.Text = input.DispatchKeyEventTypeKeyUp, ""
			_, err := cdp.Call(ctx, tab, input.DispatchKeyEvent, p)
			return err
		})
	}
	write := func(text string) step { return chromedp.SendKeys(chromedp.CSS("#text"), text) }

	run("open the page", scheme("light"), chromedp.EmulateViewport(1280, 800), chromedp.Navigate(srv.URL+"/"),
		until(`document.querySelector("#connection").dataset.state === "live"`), chromedp.WaitVisible(chromedp.CSS("#empty")), shot("wide-empty"))

	run("type and see the reply", write("你好"), enter(), count(".item.in", 1),
		until(`document.querySelector(".item.in .bubble").textContent === "我也你好!"`),
		until(`/^200 · .* ms$/.test(document.querySelector(".item.out .life .ok").textContent)`),
		until(`document.querySelector(".item.out .life").textContent.includes("reply after")`),
		until(`document.querySelector(".item.out .id").title.startsWith("m-")`),
		until(`document.querySelector("#text").value === ""`))

	run("shift and Enter makes a line, markup stays text", write("<img src=x onerror=alert(1)> see"),
		enter(chromedp.ModifierShift), write("https://ci.example.com/418"), enter(),
		count(".item.in", 2), until(`document.querySelectorAll("#items img").length === 0`),
		until(`document.querySelectorAll(".item.out .bubble")[1].textContent === "<img src=x onerror=alert(1)> see\nhttps://ci.example.com/418"`),
		until(`document.querySelector(".item.out .bubble a").href === "https://ci.example.com/418"`))

	run("an input method's Enter does not send", js(`(() => {
		const box = document.querySelector("#text");
		box.value = "nihao";
		box.dispatchEvent(new KeyboardEvent("keydown", {key: "Enter", isComposing: true, bubbles: true, cancelable: true}));
		if (box.value !== "nihao") throw new Error("sent");
		box.value = "";
		box.dispatchEvent(new Event("input"));
	})()`), count(".item.out", 2))

	run("press a menu button and see the reply", chromedp.Click(chromedp.CSS(`#menu button[title="STATUS"]`)), count(".item.in", 3),
		until(`document.querySelector(".item.in .md strong")?.textContent === "Deploy"`),
		until(`document.querySelector(".item.in .md a")?.href === "https://ci.example.com/9"`))

	run("press another and a button of its card", chromedp.Click(chromedp.CSS(`#menu button[title="RESTART_JOB"]`)), count(".item.in", 4),
		shot("wide"), chromedp.Click(chromedp.CSS(".card .actions button")), count(".item.in", 5),
		until(`[...document.querySelectorAll(".item.in .bubble")].at(-1).textContent === "Pressed yes"`))

	run("verify the url", chromedp.Click(chromedp.CSS("#verify")), until(`document.querySelector("#notice").textContent.startsWith("URL verified")`))

	run("see a failed delivery in red", write("fail"), enter(),
		until(`document.querySelector(".item.out.failed .life .bad")?.textContent.includes("status 503")`),
		js(`[...document.querySelectorAll("[data-part=details]")].at(-1).click()`),
		until(`document.querySelectorAll(".item.out.failed .more tr").length === 4`), shot("wide-failed"),
		scheme("dark"), shot("wide-dark"))

	run("another application, another member", chromedp.Click(chromedp.CSS(`.person[data-user="bob"]`)), count(".item", 0),
		chromedp.SendKeys(chromedp.CSS("#new-user"), "li.lei"), enter(),
		until(`document.querySelector(".person[aria-current=true]").dataset.user === "li.lei"`),
		write("hi"), enter(), count(".item.in", 1), until(`document.querySelector(".item.in .bubble").textContent === "我也hi!"`))

	run("edit the menu", chromedp.Click(chromedp.CSS("#edit-menu")), chromedp.WaitVisible(chromedp.CSS("#menu-dialog")),
		chromedp.SetValue(chromedp.CSS("#menu-rows .row:nth-child(3) .key"), "HELP_ME"), shot("wide-menu-dark"),
		chromedp.Click(chromedp.CSS("#menu-form button[type=submit]")), chromedp.WaitNotVisible(chromedp.CSS("#menu-dialog")),
		chromedp.WaitVisible(chromedp.CSS(`#menu button[title="HELP_ME"]`)))

	run("the phone", chromedp.Click(chromedp.CSS(`.person[data-user="alice"]`)), scheme("light"),
		chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile, chromedp.EmulateTouch, chromedp.EmulateScale(2)),
		until(`document.documentElement.scrollWidth <= innerWidth`), js(`document.querySelector("#log").scrollTop = 0`), shot("phone"),
		js(`document.querySelector("#log").scrollTop = 1e6`), shot("phone-end"), scheme("dark"), shot("phone-dark"),
		chromedp.EmulateViewport(360, 640, chromedp.EmulateMobile), until(`document.documentElement.scrollWidth <= innerWidth`), shot("phone-360"))

	run("help", scheme("light"), chromedp.EmulateViewport(1280, 800), chromedp.Click(chromedp.CSS("#show-help")), chromedp.WaitVisible(chromedp.CSS("#help")), shot("wide-help"),
		chromedp.Click(chromedp.CSS("#help [data-close]")), chromedp.WaitNotVisible(chromedp.CSS("#help")))

	nameless, err := chromedp.Run(ctx, chromedp.Evaluate[[]string](`[...document.querySelectorAll("button, input, select, textarea")].filter((n) =>
		!(n.getAttribute("aria-label") || n.textContent.trim() || n.labels?.length)).map((n) => n.outerHTML)`))
	if err != nil {
		t.Fatal(err)
	}
	if len(nameless) > 0 {
		t.Errorf("controls without a name: %v", nameless)
	}

	run("a page that is loaded again catches up", chromedp.Reload(),
		until(`document.querySelector("#connection").dataset.state === "live"`), count(".item.in", 5))

	s.Reset()
	run("reset empties the page", count(".item", 0))

	run("watch the connection", js(`(() => {
		const node = document.querySelector("#connection");
		window.states = [];
		new MutationObserver(() => window.states.push(node.dataset.state)).observe(node, {attributes: true});
	})()`))
	srv.CloseClientConnections()
	run("a lost connection is shown, and comes back", until(`window.states.includes("lost") && window.states.at(-1) === "live"`),
		write("still there?"), enter(), until(`document.querySelector(".item.in .bubble")?.textContent === "我也still there?!"`))

	closeTab()
	<-listened
	for _, c := range complaints {
		t.Errorf("console: %s", c)
	}
}
