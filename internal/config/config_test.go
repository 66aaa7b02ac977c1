package config

import (
	"flag"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write golden files and docs/configure.md")

// golden compares got with a file, or writes it with -update.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	if *update {
		if err := os.WriteFile(name, got, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatalf("%v (write it with -update)", err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs (if that is meant, run with -update)\ngot:\n%s\nwant:\n%s", name, got, want)
	}
}

func yamlFiles(t *testing.T, dir string) []string {
	t.Helper()
	names, err := filepath.Glob(filepath.Join("testdata", dir, "*.yaml"))
	if err != nil || len(names) == 0 {
		t.Fatalf("no files in testdata/%s: %v", dir, err)
	}
	return names
}

func mustParse(t *testing.T, name, text string) *File {
	t.Helper()
	f, problems := Parse(name, []byte(text))
	if problems != nil {
		t.Fatalf("unexpected problems:\n%v", problems)
	}
	return f
}

func TestProblems(t *testing.T) {
	for _, name := range yamlFiles(t, "problems") {
		t.Run(filepath.Base(name), func(t *testing.T) {
			f, err := Load(name)
			problems, ok := err.(*Problems)
			if f != nil || !ok {
				t.Fatalf("Load = %v, %v; want problems only", f, err)
			}
			if problems.Len() != len(problems.All()) {
				t.Errorf("%d problems, %d listed", problems.Len(), len(problems.All()))
			}
			last := position{}
			for _, p := range problems.All() {
				pos := position{p.Line, p.Column}
				if pos.line < last.line || pos.line == last.line && pos.column < last.column {
					t.Errorf("%d:%d listed after %d:%d", pos.line, pos.column, last.line, last.column)
				}
				last = pos
				if p.Line > 0 && (p.Column == 0 || p.Excerpt == "") {
					t.Errorf("problem without column or excerpt: %v", p)
				}
			}
			golden(t, strings.TrimSuffix(name, ".yaml")+".txt", []byte(problems.Error()+"\n"))
		})
	}
}

func TestValid(t *testing.T) {
	for _, name := range yamlFiles(t, "valid") {
		if _, err := Load(name); err != nil {
			t.Errorf("%v", err)
		}
	}
}

func TestLoadMissing(t *testing.T) {
	_, err := Load(filepath.Join(t.TempDir(), "none.yaml"))
	if err == nil || !os.IsNotExist(unwrapAll(err)) {
		t.Errorf("Load of no file: %v", err)
	}
}

func unwrapAll(err error) error {
	for {
		u, ok := err.(interface{ Unwrap() error })
		if !ok {
			return err
		}
		if _, ok := err.(*os.PathError); ok {
			return err
		}
		err = u.Unwrap()
	}
}
