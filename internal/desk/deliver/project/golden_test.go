package project

import (
	"bytes"
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

var update = flag.Bool("update", false, "write the golden files under testdata")

// golden is what a sink gets of the corpus, by file. Each record has two lines,
// itself and its stub; what shares a file has none.
func golden(t *testing.T, name string) map[string][]byte {
	t.Helper()
	out := map[string][]byte{}
	add := func(p deliver.Projection, i int, file string, n named, stub bool) {
		e := entryOf(n.rec)
		e.Index = uint64(100 + i)
		body := project(t, p, e)
		out[file] = append(append(out[file], body...), '\n')
		if !stub {
			return
		}
		body, err := p.Stub(nil, deliver.EventID(testOrigin, e.Index), e, len(body))
		if err != nil {
			t.Fatalf("%s: %v", n.name, err)
		}
		out[file] = append(append(out[file], body...), '\n')
	}
	for i, n := range corpus() {
		file, _, many := strings.Cut(n.name, ":")
		add(newProjection(t, name), i, file, n, !many)
		if n.rec.Personal.Sub != "" {
			add(newProjection(t, name, everyField()...), i, "personal", n, false)
		}
	}
	return out
}

// TestGolden holds every projection of every kind and reason against
// testdata/PROJECTION/FILE.jsonl. With -update it writes them. The files are
// what interop/schemas checks against the published schemas.
func TestGolden(t *testing.T) {
	for _, name := range Names() {
		dir := filepath.Join("testdata", name)
		got := golden(t, name)
		if *update {
			writeGolden(t, dir, got)
		}
		for file, body := range got {
			path := filepath.Join(dir, file+".jsonl")
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatalf("%v; run with -update", err)
			}
			if !bytes.Equal(body, want) {
				t.Errorf("%s:\n got %s\nwant %s", path, body, want)
			}
		}
		if files, _ := filepath.Glob(filepath.Join(dir, "*.jsonl")); len(files) != len(got) {
			t.Errorf("%s has %d files, %d are made", dir, len(files), len(got))
		}
	}
}

func writeGolden(t *testing.T, dir string, files map[string][]byte) {
	t.Helper()
	if err := os.RemoveAll(dir); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for file, body := range files {
		if err := os.WriteFile(filepath.Join(dir, file+".jsonl"), body, 0o644); err != nil {
			t.Fatal(err)
		}
	}
}
