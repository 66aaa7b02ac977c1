package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/config"
)

func TestMakeFolder(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	temp, err := makeFolder("")
	if err != nil {
		t.Fatal(err)
	}
	if st, err := os.Stat(string(temp)); err != nil || st.Mode().Perm() != 0o700 {
		t.Errorf("temporary folder: %v, %v", st, err)
	}
	fresh := filepath.Join(t.TempDir(), "a", "b")
	for range 2 { // made, then found empty
		if got, err := makeFolder(fresh); err != nil || string(got) != fresh {
			t.Fatalf("makeFolder(%s) = %s, %v", fresh, got, err)
		}
	}
	if err := os.WriteFile(filepath.Join(fresh, "mine"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var usage *UsageError
	if _, err := makeFolder(fresh); !errors.As(err, &usage) {
		t.Errorf("a folder with something in it: %v", err)
	}
}

// What the demo writes is what check accepts.
func TestFolderIsAGoodConfiguration(t *testing.T) {
	dir := folder(t.TempDir())
	p := places{"127.0.0.1:0", "https://127.0.0.1:4", "http://127.0.0.1:1", audience, "http://127.0.0.1:2", "http://127.0.0.1:3"}
	if err := dir.write(p, time.Now()); err != nil {
		t.Fatal(err)
	}
	f, err := config.Load(dir.path(configFile))
	if err != nil {
		t.Fatal(err)
	}
	if p := config.Check(f); p != nil {
		t.Error(p)
	}
	for _, name := range []string{configFile, keyFile, certFile, "policies/demo.cedar", "policies/tests/demo.json"} {
		if st, err := os.Stat(dir.path(name)); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v", name, st, err)
		}
	}
}

func TestLeave(t *testing.T) {
	failure := errors.New("it broke")
	for _, c := range []struct {
		name string
		keep string
		err  error
		want string // in the error; empty: none
		left bool
	}{
		{"good", "", nil, "", false},
		{"good, kept", "x", nil, "", true},
		{"stopped", "", errStopped, "stopped before", false},
		{"stopped, and closing failed", "", errors.Join(errStopped, failure), "it broke", false},
		{"stopped, kept", "x", errStopped, "stopped before", true},
		{"failed", "", failure, "left for a look", true},
		{"failed, kept", "x", failure, "left for a look", true},
	} {
		dir := folder(filepath.Join(t.TempDir(), "demo"))
		if err := os.Mkdir(string(dir), 0o700); err != nil {
			t.Fatal(err)
		}
		err := leave(dir, &Options{Keep: c.keep}, c.err)
		if (err != nil) != (c.want != "") || err != nil && !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: error %v, want %q", c.name, err, c.want)
		}
		if _, err := os.Stat(string(dir)); (err == nil) != c.left {
			t.Errorf("%s: the folder is left: %v", c.name, err == nil)
		}
	}
}

// A command that does not do what it must ends the demo with an error that
// says which and where to look.
func TestRunTellsWhatWentWrong(t *testing.T) {
	t.Setenv("TMPDIR", t.TempDir())
	var asked []string
	err := Run(t.Context(), Options{Once: true, Out: io.Discard, Program: "/bin/gatebook",
		Command: func(_ context.Context, args []string, _, errs io.Writer) int {
			asked = args
			fmt.Fprintln(errs, "no such book")
			return 1
		}})
	if err == nil {
		t.Fatal("no error")
	}
	for _, want := range []string{"search", "exit code 1, not 0: no such book", "left for a look", logFile} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if len(asked) != 4 || asked[2] != "search" {
		t.Fatalf("asked %q", asked)
	}
	if _, err := os.Stat(filepath.Join(filepath.Dir(asked[1]), logFile)); err != nil {
		t.Error(err)
	}
}

// Ctrl-C in the middle of the story is no success and leaves nothing behind.
func TestRunStopped(t *testing.T) {
	tmp := t.TempDir()
	t.Setenv("TMPDIR", tmp)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	err := Run(ctx, Options{Once: true, Out: io.Discard,
		Command: func(ctx context.Context, _ []string, _, _ io.Writer) int {
			cancel()
			<-ctx.Done()
			return 1
		}})
	if !errors.Is(err, errStopped) {
		t.Errorf("error %v", err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}
