package internal

import (
	"encoding/json"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"unicode"
)

var (
	markdownLink = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading      = regexp.MustCompile(`(?m)^#+ +(.+)$`)
	codeBlock    = regexp.MustCompile("(?ms)^```.*?^```$")
)

// TestLinks holds that every relative link of the documentation leads to a file that is there,
// and to a heading in it if it names one.
func TestLinks(t *testing.T) {
	pages := make(map[string]string) // path below the repository → text without its code blocks
	err := fs.WalkDir(os.DirFS(".."), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case d.IsDir() && (path == ".git" || path == "bin" || path == "data"):
			return fs.SkipDir
		case d.IsDir() || filepath.Ext(path) != ".md":
			return nil
		}
		text, err := os.ReadFile(filepath.Join("..", path))
		pages[path] = codeBlock.ReplaceAllString(string(text), "")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}

	links := make(map[string]int)
	for path, text := range pages {
		for _, m := range markdownLink.FindAllStringSubmatch(text, -1) {
			file, anchor, _ := strings.Cut(m[1], "#")
			if strings.Contains(file, ":") {
				continue // another site's
			}
			links[path]++
			target := path
			if file != "" {
				target = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(filepath.Join("..", target)); err != nil {
				t.Errorf("%s: link to %s: %v", path, m[1], err)
				continue
			}
			if anchor != "" && !anchors(pages[target])[anchor] {
				t.Errorf("%s: link to %s: %s has no such heading", path, m[1], target)
			}
		}
	}
	for _, path := range []string{"README.md", "README.zh-CN.md"} {
		if links[path] == 0 {
			t.Errorf("%s: no links found; is it there?", path)
		}
	}
}

// anchors returns the names under which GitHub offers a page's headings.
func anchors(page string) map[string]bool {
	names := make(map[string]bool)
	for _, m := range heading.FindAllStringSubmatch(page, -1) {
		names[strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case r == '-' || r == '_' || unicode.IsLetter(r) || unicode.IsNumber(r):
				return unicode.ToLower(r)
			}
			return -1
		}, strings.TrimSpace(m[1]))] = true
	}
	return names
}

// TestTranslations holds that a page and its Chinese translation have the same parts, so that a
// section added to one is missed in the other.
func TestTranslations(t *testing.T) {
	var pairs int
	err := fs.WalkDir(os.DirFS(".."), ".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		base, ok := strings.CutSuffix(path, ".zh-CN.md")
		if !ok || d.IsDir() {
			return nil
		}
		pairs++
		if zh, en := outline(t, path), outline(t, base+".md"); zh != en {
			t.Errorf("%s and %s.md: outlines differ: %s and %s", path, base, zh, en)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if pairs == 0 {
		t.Error("no translation found")
	}
}

// TestDependenciesAreExplained holds that docs/dependencies.md has a line for each module that
// go.mod requires directly, and for no other.
func TestDependenciesAreExplained(t *testing.T) {
	out, err := exec.CommandContext(t.Context(), "go", "mod", "edit", "-json").Output()
	if err != nil {
		t.Fatalf("go mod edit -json: %v", err)
	}
	var mod struct {
		Require []struct {
			Path     string
			Indirect bool
		}
	}
	if err := json.Unmarshal(out, &mod); err != nil {
		t.Fatal(err)
	}
	page, err := os.ReadFile("../docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	explained := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `([^`]+)`").FindAllStringSubmatch(string(page), -1) {
		explained[m[1]] = true
	}
	for _, r := range mod.Require {
		if !r.Indirect && !explained[r.Path] {
			t.Errorf("%s: required by go.mod, but not in docs/dependencies.md", r.Path)
		}
		if !r.Indirect {
			delete(explained, r.Path)
		}
	}
	for path := range explained {
		t.Errorf("%s: in docs/dependencies.md, but not required by go.mod", path)
	}
}

// outline returns the levels of a page's headings and the number of its code blocks.
func outline(t *testing.T, path string) string {
	t.Helper()
	raw, err := os.ReadFile(filepath.Join("..", path))
	if err != nil {
		t.Error(err)
		return ""
	}
	text := string(raw)
	blocks := len(codeBlock.FindAllString(text, -1))
	var b strings.Builder
	for _, h := range heading.FindAllString(codeBlock.ReplaceAllString(text, ""), -1) {
		level, _, _ := strings.Cut(h, " ")
		b.WriteString(level + " ")
	}
	b.WriteString(strings.Repeat("`", blocks))
	return b.String()
}
