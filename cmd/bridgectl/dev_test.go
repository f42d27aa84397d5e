package main

import (
	"bytes"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/chromedp/chromedp"

	"github.com/wecom-bridge/wecom-bridge/internal/wecomsim"
)

// withDev runs a whole bridge on free ports.
func withDev(t *testing.T, use func(ctx context.Context, d *dev, s *story)) {
	t.Helper()
	for name, value := range devApp {
		t.Setenv(name, value)
	}
	story := newStory()
	logger := slog.New(story.handler(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelWarn})))
	if err := runDev(t.Context(), true, logger, func(ctx context.Context, d *dev) error {
		use(ctx, d, story)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
}

func TestDevSaysAndPrintsTheReplyAlone(t *testing.T) {
	withDev(t, func(ctx context.Context, d *dev, s *story) {
		for text, want := range map[string]string{
			"你好":         "Hello alice, you said: 你好\n",
			"等一下":        "我也等一下!\n",
			"a <b> & \"": "我也a <b> & \"!\n",
		} {
			var reply, trace bytes.Buffer
			if err := d.say(ctx, s, "alice", text, &reply, &trace); err != nil {
				t.Fatal(err)
			}
			if reply.String() != want {
				t.Errorf("got %q, want %q", reply.String(), want)
			}
			for _, part := range []string{"event m-", "event published", "empty 200", "event handled", "message sent", "alice sees"} {
				if !strings.Contains(trace.String(), part) {
					t.Errorf("the time line lacks %q:\n%s", part, trace.String())
				}
			}
		}
	})
}

func TestDevAnswersMenuClicks(t *testing.T) {
	withDev(t, func(ctx context.Context, d *dev, _ *story) {
		for n, c := range []struct{ key, want string }{
			{"RESTART_JOB", "The job was restarted for bob."}, // by way of a call to a service
			{"STATUS", "All is well, bob."},
		} {
			said, err := d.sim.Say(ctx, wecomsim.SayRequest{App: d.app, User: "bob", MsgType: "click", Key: c.key})
			if err != nil || !said.Delivered() {
				t.Fatalf("%+v, %v", said, err)
			}
			wait, cancel := context.WithTimeout(ctx, sayLimit)
			inbox, err := d.sim.Wait(wait, "bob", n)
			cancel()
			if err != nil || inbox[n].Content != c.want {
				t.Fatalf("%s: got %+v, %v, want %q", c.key, inbox, err, c.want)
			}
		}
	})
}

func TestDevSayWithoutAReplyFails(t *testing.T) {
	rules := filepath.Join(t.TempDir(), "rules.yaml")
	if err := os.WriteFile(rules, []byte("rules:\n  - name: never\n    when: {type: message.image}\n    reply: {text: x}\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	t.Setenv("BRIDGE_RULES", rules)
	withDev(t, func(ctx context.Context, d *dev, s *story) {
		limited, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		var reply bytes.Buffer
		if err := d.say(limited, s, "alice", "hello", &reply, t.Output()); err == nil || reply.Len() != 0 {
			t.Errorf("got %q and error %v, want no reply and an error", reply.String(), err)
		}
	})
}

// The chat page of a whole bridge in a real browser: type, see the reply; press a menu
// button, see the reply; nothing on the console.
func TestDevChatPageInABrowser(t *testing.T) {
	browser := ""
	for _, name := range []string{os.Getenv("BRIDGE_CHROMIUM"), "chromium", "chromium-browser", "google-chrome"} {
		if path, err := exec.LookPath(name); err == nil {
			browser = path
			break
		}
	}
	if browser == "" {
		t.Skip("not run: no Chromium found; install the chromium package or set BRIDGE_CHROMIUM")
	}
	shots := os.Getenv("BRIDGE_SCREENSHOTS")
	if shots == "" {
		shots = t.TempDir()
	} else if err := os.MkdirAll(shots, 0o755); err != nil {
		t.Fatal(err)
	}
	withDev(t, func(ctx context.Context, d *dev, _ *story) {
		ctx, cancel := context.WithTimeout(ctx, 90*time.Second)
		defer cancel()
		options := append(chromedp.DefaultExecAllocatorOptions[:], chromedp.ExecPath(browser), chromedp.NoSandbox)
		ctx, stop := chromedp.NewExecAllocator(ctx, options...)
		defer stop()
		ctx, stop = chromedp.NewContext(ctx)
		defer stop()
		messages := chromedp.Console(ctx) // starts the browser
		var mu sync.Mutex
		var console []string
		go func() {
			for m, err := range messages {
				if err != nil {
					return // the tab is closed
				}
				switch m.Type {
				case chromedp.ConsoleError, chromedp.ConsoleWarning, chromedp.ConsoleException:
					mu.Lock()
					console = append(console, m.String()+" "+m.URL)
					mu.Unlock()
				}
			}
		}()
		type action = chromedp.Action[chromedp.Void]
		see := func(text string) action {
			return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
				_, err := chromedp.Poll[chromedp.Void](fmt.Sprintf("document.querySelector('#items').innerText.includes(%q)", text), chromedp.WithPollingTimeout(20*time.Second))(ctx, tab)
				return err
			})
		}
		shot := func(name string) action {
			return chromedp.Func(func(ctx context.Context, tab *chromedp.Target) error {
				png, err := chromedp.CaptureScreenshot()(ctx, tab)
				if err != nil {
					return err
				}
				return os.WriteFile(filepath.Join(shots, name), png, 0o600)
			})
		}
		if err := chromedp.Do(ctx,
			chromedp.EmulateViewport(1280, 800),
			chromedp.Navigate("http://"+d.simAddr+"/"),
			chromedp.WaitVisible(chromedp.CSS("#menu button")),
			chromedp.SendKeys(chromedp.CSS("#text"), "可以吗\r"),
			see("我也可以吗!"),
			chromedp.Click(chromedp.CSS(`#menu button[title="STATUS"]`)),
			see("All is well, alice."),
			chromedp.Click(chromedp.CSS(`#menu button[title="RESTART_JOB"]`)),
			see("The job was restarted for alice."),
			shot("dev-wide.png"),
			chromedp.EmulateViewport(390, 844, chromedp.EmulateMobile),
			shot("dev-phone.png"),
		); err != nil {
			t.Fatal(err)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(console) > 0 {
			t.Errorf("the console shows %q", console)
		}
	})
}

func TestDevIsShutDownByItsContext(t *testing.T) {
	for name, value := range devApp {
		t.Setenv(name, value)
	}
	ctx, stop := context.WithCancel(t.Context())
	err := runDev(ctx, true, slog.New(slog.DiscardHandler), func(ctx context.Context, _ *dev) error {
		stop()
		<-ctx.Done()
		return nil
	})
	if err != nil {
		t.Errorf("got %v, want a clean end", err)
	}
}
