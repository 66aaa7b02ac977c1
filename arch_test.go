package gatebook

import (
	"bufio"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/mod/modfile"
	"golang.org/x/mod/semver"
)

const module = "github.com/gatebook/gatebook"

// mayImport says, for every package, which of ours it may import and why it
// may import no more. Whatever is not listed fails.
var mayImport = map[string]struct {
	ours []string
	why  string
}{
	"internal/reason":         {nil, "the closed list of reasons is for everybody, so it depends on nobody"},
	"internal/config":         {nil, "the file's form does not know who reads it; server translates"},
	"internal/obs":            {nil, "it says what it is told and knows nothing of the domain"},
	"internal/pace":           {nil, "it gives way and does not know to whom"},
	"internal/kv":             {nil, "it keeps entries and does not know what they are"},
	"internal/book/record":    {nil, "a record can be read without the rest"},
	"internal/book/store":     {nil, "files, and nothing about what is in them"},
	"internal/book/keys":      {nil, "keys can be reasoned about alone"},
	"internal/book/redact":    {s("internal/book/record"), "it works on records and on nothing else"},
	"internal/book/ledger":    {s("internal/book/store", "internal/pace"), "it holds opaque bytes and can be audited alone: never record, never keys"},
	"internal/book":           {s("internal/book/keys", "internal/book/ledger", "internal/book/record", "internal/book/redact", "internal/book/store", "internal/pace"), "it joins them; it knows neither gate nor desk"},
	"internal/gate/canon":     {nil, "the canonical request is the ground that the gate stands on"},
	"internal/gate/authn":     {s("internal/gate/canon", "internal/kv", "internal/reason"), "children of gate do not know one another, nor the book"},
	"internal/gate/authz":     {s("internal/gate/canon", "internal/reason"), "children of gate do not know one another, nor the book"},
	"internal/gate/ratelimit": {s("internal/gate/canon", "internal/kv", "internal/reason"), "children of gate do not know one another, nor the book"},
	"internal/gate/upstream":  {s("internal/gate/canon", "internal/reason"), "children of gate do not know one another, nor the book"},
	"internal/gate":           {s("internal/gate/authn", "internal/gate/authz", "internal/gate/canon", "internal/gate/ratelimit", "internal/gate/upstream", "internal/reason", "internal/book/record"), "it reaches the book through its own Recorder"},
	"internal/token":          {s("internal/gate", "internal/gate/authn", "internal/gate/canon", "internal/kv", "internal/reason"), "its endpoints are Responders of the gate; who verifies tokens of others is handed to it"},
	"internal/desk/query":     {s("internal/book", "internal/book/record"), "readers read through book, the one place that opens sealed records"},
	"internal/desk/evidence":  {s("internal/book", "internal/book/ledger"), "readers read through book; proofs are checked with the ledger's arithmetic"},
	"internal/desk/admin":     {s("internal/book", "internal/book/ledger", "internal/book/record", "internal/desk/evidence", "internal/desk/query"), "it calls the other readers"},

	"internal/desk/deliver":         {s("internal/book", "internal/book/record", "internal/kv", "internal/pace"), "the book is the queue; a sink is whoever implements Sink"},
	"internal/desk/deliver/project": {s("internal/book", "internal/book/record", "internal/desk/deliver"), "records in the words of others; what leaves is decided here"},
	"internal/desk/deliver/sinks":   {s("internal/book", "internal/book/record", "internal/desk/deliver", "internal/pace"), "sinks speak protocols and do not know the engine"},
	"internal/desk/detect":          {s("internal/book", "internal/book/record", "internal/desk/query", "internal/pace"), "it reads through book and asks in the language of search; its store is handed to it"},

	"internal/server":    {s("*"), "the composition root sees everything and contains wiring only"},
	"internal/cli":       {s("internal/server", "internal/config", "internal/gate/authz", "internal/book/ledger", "internal/desk/admin", "internal/desk/evidence", "internal/desk/query", "internal/demo", "internal/obs"), "commands ask the server or open the book through it"},
	"internal/demo":      {s("internal/server", "internal/config", "internal/book/ledger", "internal/desk/evidence", "internal/desk/query", "internal/obs"), "the demo uses the product the way a user does; only the demo command reaches it"},
	"cmd/gatebook":       {s("internal/cli"), "main parses nothing and decides nothing"},
	"packaging":          {nil, "tests of what is handed out"},
	"packaging/oci":      {nil, "it makes an image of files and knows nothing of the product"},
	"internal/testenv/*": {s("*"), "fakes for tests"},
}

// testsOnly may be imported from _test.go files alone.
const testsOnly = "internal/testenv/"

// owners are the only packages that may import a heavy dependency.
var owners = map[string][]string{
	"github.com/cedar-policy/cedar-go":    s("internal/gate/authz"),
	"github.com/go-jose/go-jose":          s("internal/gate/authn"),
	"github.com/goccy/go-yaml":            s("internal/config"),
	"github.com/prometheus/client_golang": s("internal/obs"),
	"github.com/spf13/cobra":              s("internal/cli"),
	"github.com/expr-lang/expr":           s("internal/desk/query"),
	"github.com/redis/go-redis":           s("internal/kv"),
	"go.etcd.io/bbolt":                    s("internal/book/keys", "internal/kv"),
	"github.com/klauspost/compress":       s("internal/book/ledger", "internal/desk/deliver/sinks"),
	"golang.org/x/mod/sumdb/tlog":         s("internal/book/ledger", "internal/desk/evidence"),
	"golang.org/x/mod/sumdb/note":         s("internal/book/ledger", "internal/desk/evidence"),
	"golang.org/x/sys":                    s("internal/book", "internal/book/keys", "internal/book/store", "internal/desk/admin", "internal/demo", "internal/cli", "internal/server"),
	"golang.org/x/exp":                    s("internal/gate/authz"),
}

// direct are the modules that go.mod may name without "// indirect"; each has
// a sentence in docs/dependencies.md.
var direct = s(
	"github.com/cedar-policy/cedar-go", "github.com/expr-lang/expr", "github.com/go-jose/go-jose/v4", "github.com/goccy/go-yaml",
	"github.com/klauspost/compress", "github.com/prometheus/client_golang", "github.com/redis/go-redis/v9", "github.com/rogpeppe/go-internal", "github.com/spf13/cobra",
	"github.com/transparency-dev/merkle", "go.etcd.io/bbolt", "golang.org/x/mod", "golang.org/x/sys",
)

func s(names ...string) []string { return names }

// source is one parsed Go file.
type source struct {
	path string // slash-separated, relative to the root
	pkg  string // folder
	test bool
	ast  *ast.File
	fset *token.FileSet
}

func sources(t *testing.T) []source {
	t.Helper()
	var out []source
	fset := token.NewFileSet()
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if _, statErr := os.Stat(filepath.Join(path, "go.mod")); path != "." && statErr == nil || d.Name() == "testdata" || strings.HasPrefix(d.Name(), ".") && path != "." {
				return fs.SkipDir
			}
			return nil
		}
		if !strings.HasSuffix(path, ".go") {
			return nil
		}
		f, err := parser.ParseFile(fset, path, nil, parser.ParseComments)
		if err != nil {
			return err
		}
		slash := filepath.ToSlash(path)
		out = append(out, source{slash, filepath.ToSlash(filepath.Dir(path)), strings.HasSuffix(path, "_test.go"), f, fset})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func ruleOf(pkg string) (ours []string, why string, ok bool) {
	if r, ok := mayImport[pkg]; ok {
		return r.ours, r.why, true
	}
	if strings.HasPrefix(pkg, testsOnly) {
		r := mayImport[testsOnly+"*"]
		return r.ours, r.why, true
	}
	return nil, "", pkg == "."
}

func TestImports(t *testing.T) {
	for _, f := range sources(t) {
		ours, why, ok := ruleOf(f.pkg)
		if !ok {
			t.Errorf("%s: package %s is not in the import table; say there what it may import and why", f.path, f.pkg)
			continue
		}
		for _, spec := range f.ast.Imports {
			path, _ := strconv.Unquote(spec.Path.Value)
			f.checkOwner(t, path)
			name, isOurs := strings.CutPrefix(path, module+"/")
			if !isOurs || f.test {
				continue
			}
			if strings.HasPrefix(name, testsOnly) && !strings.HasPrefix(f.pkg, testsOnly) {
				t.Errorf("%s imports %s: fakes are for tests only", f.path, name)
			}
			if !slices.Contains(ours, name) && !slices.Contains(ours, "*") {
				t.Errorf("%s imports %s: %s", f.path, name, why)
			}
		}
	}
}

func (f source) checkOwner(t *testing.T, path string) {
	if f.test || strings.HasPrefix(f.pkg, testsOnly) {
		return
	}
	for dep, who := range owners {
		if (path == dep || strings.HasPrefix(path, dep+"/")) && !slices.Contains(who, f.pkg) {
			t.Errorf("%s imports %s, which only %v may", f.path, path, who)
		}
	}
	if strings.Contains(strings.Split(path, "/")[0], ".") && !strings.HasPrefix(path, module) && !owned(path) {
		t.Errorf("%s imports %s, which has no owner in the table", f.path, path)
	}
}

func owned(path string) bool {
	for dep := range owners {
		if path == dep || strings.HasPrefix(path, dep+"/") {
			return true
		}
	}
	return false
}

func TestOnePackageComment(t *testing.T) {
	docs := map[string][]string{}
	for _, f := range sources(t) {
		if f.test {
			continue
		}
		if _, ok := docs[f.pkg]; !ok {
			docs[f.pkg] = nil
		}
		if f.ast.Doc != nil {
			docs[f.pkg] = append(docs[f.pkg], f.path)
		}
	}
	for pkg, files := range docs {
		if len(files) != 1 {
			t.Errorf("package %s has %d package comments %v; it needs exactly one", pkg, len(files), files)
		}
	}
}

// TestNoInit demands that importing a package does nothing.
func TestNoInit(t *testing.T) {
	for _, f := range sources(t) {
		for _, d := range f.ast.Decls {
			if fn, ok := d.(*ast.FuncDecl); ok && fn.Recv == nil && fn.Name.Name == "init" {
				t.Errorf("%s: has an init function; do it in a constructor", f.fset.Position(fn.Pos()))
			}
		}
	}
}

// TestSizes keeps files and functions readable; tests and tables may be longer.
func TestSizes(t *testing.T) {
	for _, f := range sources(t) {
		if lines := f.fset.Position(f.ast.End()).Line; lines > 620 && !f.test {
			t.Errorf("%s has %d lines; split it by subject", f.path, lines)
		}
		if f.path == "cmd/gatebook/main.go" && f.fset.Position(f.ast.End()).Line > 40 {
			t.Errorf("%s has more than 40 lines: main parses nothing and decides nothing", f.path)
		}
		if f.test {
			continue
		}
		for _, d := range f.ast.Decls {
			fn, ok := d.(*ast.FuncDecl)
			if !ok || fn.Body == nil {
				continue
			}
			from, to := f.fset.Position(fn.Pos()).Line, f.fset.Position(fn.End()).Line
			if to-from > 90 && len(fn.Body.List) > 2 { // a table that is returned may be long
				t.Errorf("%s: %s has %d lines", f.fset.Position(fn.Pos()), fn.Name.Name, to-from)
			}
		}
	}
}

func goMod(t *testing.T) *modfile.File {
	t.Helper()
	b, err := os.ReadFile("go.mod")
	if err != nil {
		t.Fatal(err)
	}
	f, err := modfile.Parse("go.mod", b, nil)
	if err != nil {
		t.Fatal(err)
	}
	return f
}

func TestDirectDependencies(t *testing.T) {
	docs, err := os.ReadFile("docs/dependencies.md")
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, r := range goMod(t).Require {
		if r.Indirect {
			continue
		}
		have = append(have, r.Mod.Path)
		if !slices.Contains(direct, r.Mod.Path) {
			t.Errorf("go.mod: %s is a new direct dependency; put it into the list here and a sentence into docs/dependencies.md", r.Mod.Path)
		}
		if !strings.Contains(string(docs), r.Mod.Path) {
			t.Errorf("docs/dependencies.md does not say why %s is needed", r.Mod.Path)
		}
	}
	for _, d := range direct {
		if !slices.Contains(have, d) {
			t.Errorf("%s is in the list of direct dependencies and not in go.mod", d)
		}
	}
}

// TestFloors keeps versions with known holes out. x/mod before v0.40.0 accepts
// forged tiles (GO-2026-6179).
func TestFloors(t *testing.T) {
	floors := map[string]string{"golang.org/x/mod": "v0.40.0", "github.com/expr-lang/expr": "v1.17.7"}
	for _, r := range goMod(t).Require {
		if floor := floors[r.Mod.Path]; floor != "" && semver.Compare(r.Mod.Version, floor) < 0 {
			t.Errorf("go.mod: %s %s is below the floor %s", r.Mod.Path, r.Mod.Version, floor)
		}
	}
}

// TestOfTheProject keeps out what only means something to those who were there.
func TestOfTheProject(t *testing.T) {
	words := s("TO"+"DO", "FIX"+"ME", "XX"+"X:")
	err := filepath.WalkDir(".", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if d.IsDir() {
			if d.Name() == ".git" || d.Name() == "testdata" || d.Name() == "node_modules" || d.Name() == "venv" || path == "bin" || path == "dist" {
				return fs.SkipDir // what was built holds the words of others
			}
			return nil
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		sc := bufio.NewScanner(f)
		sc.Buffer(nil, 1<<20)
		for n := 1; sc.Scan(); n++ {
			for _, w := range words {
				if strings.Contains(sc.Text(), w) {
					t.Errorf("%s:%d: leaves something to be done: %s", path, n, strings.TrimSpace(sc.Text()))
				}
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}
