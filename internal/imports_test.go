// Package internal holds the tests of rules that no single package can keep alone.
package internal

import (
	"bytes"
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

const module = "github.com/wecom-bridge/wecom-bridge/"

// imports is who may import whom: for every package of this module, what its code (not its
// tests) may import beside the standard library. Ours are paths below the module, others are
// module paths. A new arrow is a line here, with its reason in the change that adds it.
var imports = map[string][]string{
	// The protocol knows no bus and the bus knows no WeCom: either could change unnoticed by the other.
	"internal/wecom":                 {},
	"internal/bus":                   {natsClient, sync},
	"internal/bus/embed":             {natsServer, sys},
	"internal/bus/bustest":           {"internal/bus/embed", natsClient},
	"internal/bus/bustest/container": {"internal/bus/bustest", testcontainers, moby},

	// What others build on. It shows none of the bus's types: see TestBridgeShowsNoBus.
	"bridge": {"internal/bus"},

	"internal/ops":     {prometheus, term},
	"internal/gateway": {"internal/wecom", "internal/bus", "internal/ops", "bridge", chi, prometheus, sync},
	"internal/worker":  {"internal/wecom", "internal/bus", "internal/ops", "bridge", prometheus, yaml, sync},
	// The simulator is written from the manual, not from our sender; of wecom it takes the crypto.
	"internal/wecomsim": {"internal/wecom"},

	// What is measured, beside the bare chi handler that is the measure.
	"internal/bench": {"internal/wecom", "internal/bus", "internal/bus/embed", "internal/gateway", "internal/worker", "internal/ops", "internal/wecomsim", chi, histogram, sync, sys},

	// Only the commands read the environment, and only they decide to run a server.
	"cmd/internal/env": {"internal/gateway", "internal/worker", envconfig, memlimit},
	"cmd/gateway":      {roots, "cmd/internal/env", "internal/gateway", "internal/bus/embed", "internal/ops"},
	"cmd/worker":       {"cmd/internal/env", "internal/worker", "internal/ops", roots},
	"cmd/bridgectl":    {roots, "cmd/internal/env", "internal/gateway", "internal/worker", "internal/wecomsim", "internal/bench", "internal/bus", "internal/bus/embed", "internal/ops", "bridge", kong, sync},

	"examples/echo-go": {"bridge"},
}

const (
	natsClient     = "github.com/nats-io/nats.go"
	natsServer     = "github.com/nats-io/nats-server/v2"
	testcontainers = "github.com/testcontainers/testcontainers-go"
	moby           = "github.com/moby/moby/api"
	prometheus     = "github.com/prometheus/client_golang"
	chi            = "github.com/go-chi/chi/v5"
	yaml           = "go.yaml.in/yaml/v3"
	envconfig      = "github.com/kelseyhightower/envconfig"
	memlimit       = "github.com/KimMachineGun/automemlimit"
	kong           = "github.com/alecthomas/kong"
	histogram      = "github.com/HdrHistogram/hdrhistogram-go"
	sync           = "golang.org/x/sync"
	sys            = "golang.org/x/sys"
	term           = "golang.org/x/term"
	roots          = "golang.org/x/crypto/x509roots/fallback"
)

// strangers are pairs of which not even the tests of the first may import the second.
var strangers = map[string]string{
	"internal/wecom": "internal/bus",
	"internal/bus":   "internal/wecom",
}

// unlinked are modules that a program made of the package must not contain.
var unlinked = map[string][]string{
	"bridge":           {natsServer},
	"examples/echo-go": {natsServer},
	"cmd/worker":       {natsServer},
	"cmd/gateway":      {testcontainers},
	"cmd/bridgectl":    {testcontainers},
}

type listed struct {
	ImportPath                string
	Imports, Deps             []string
	TestImports, XTestImports []string
}

func TestImports(t *testing.T) {
	packages := list(t)

	for path := range imports {
		if _, ok := packages[path]; !ok {
			t.Errorf("%s: in the table, but there is no such package", path)
		}
	}
	for path, p := range packages {
		allowed, ok := imports[path]
		if !ok && len(p.Imports) > 0 {
			t.Errorf("%s: not in the table; add it with what it may import", path)
			continue
		}
		used := make(map[string]bool)
		for _, imp := range p.Imports {
			entry, ok := permit(allowed, imp)
			if !ok {
				t.Errorf("%s imports %s, which the table does not allow", path, imp)
			}
			used[entry] = true
		}
		for _, entry := range allowed {
			if !used[entry] {
				t.Errorf("%s does not import %s any more; take it out of the table", path, entry)
			}
		}
		for _, imp := range slices.Concat(p.TestImports, p.XTestImports) {
			if other := strangers[path]; other != "" && within(imp, module+other) {
				t.Errorf("a test of %s imports %s", path, imp)
			}
		}
		for _, mod := range unlinked[path] {
			for _, dep := range p.Deps {
				if within(dep, mod) {
					t.Errorf("%s links %s", path, dep)
					break
				}
			}
		}
	}
	for path := range unlinked {
		if _, ok := packages[path]; !ok {
			t.Errorf("%s: must not link something, but there is no such package", path)
		}
	}
}

// permit returns the entry of allowed that lets imp in. The standard library is always let in.
func permit(allowed []string, imp string) (entry string, ok bool) {
	if first, _, _ := strings.Cut(imp, "/"); !strings.Contains(first, ".") {
		return "", true
	}
	for _, entry := range allowed {
		if own, ours := strings.CutPrefix(imp, module); ours && own == entry || !ours && within(imp, entry) {
			return entry, true
		}
	}
	return "", false
}

// within reports whether path is root or below it.
func within(path, root string) bool {
	return path == root || strings.HasPrefix(path, root+"/")
}

// list asks the go command for all packages of the module, by path below it.
func list(t *testing.T) map[string]listed {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,Deps,TestImports,XTestImports", module+"...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	packages := make(map[string]listed)
	for dec := json.NewDecoder(bytes.NewReader(out)); ; {
		var p listed
		switch err := dec.Decode(&p); {
		case errors.Is(err, io.EOF):
			return packages
		case err != nil:
			t.Fatalf("read go list: %v", err)
		}
		packages[strings.TrimPrefix(p.ImportPath, module)] = p
	}
}

// TestBridgeShowsNoBus holds that a program written against bridge cannot come to depend on the
// bus: no exported signature, field or variable of bridge names one of its types.
func TestBridgeShowsNoBus(t *testing.T) {
	files, err := filepath.Glob("../bridge/*.go")
	if err != nil || len(files) == 0 {
		t.Fatalf("no source in ../bridge (%v)", err)
	}
	exported := 0
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		src, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		fset := token.NewFileSet()
		file, err := parser.ParseFile(fset, name, src, parser.SkipObjectResolution)
		if err != nil {
			t.Fatal(err)
		}
		ast.FileExports(file) // drops unexported declarations, methods and fields
		for _, decl := range file.Decls {
			if g, ok := decl.(*ast.GenDecl); ok && g.Tok == token.IMPORT {
				continue
			}
			exported++
			ast.Inspect(decl, func(n ast.Node) bool {
				if _, ok := n.(*ast.BlockStmt); ok {
					return false // what a function does inside is its own affair
				}
				if sel, ok := n.(*ast.SelectorExpr); ok {
					if pkg, ok := sel.X.(*ast.Ident); ok && pkg.Name == "bus" {
						t.Errorf("%s: bus.%s is visible", fset.Position(sel.Pos()), sel.Sel.Name)
					}
				}
				return true
			})
		}
	}
	if exported == 0 {
		t.Error("found nothing exported in bridge")
	}
}
