package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// fence is one block of a guide: its words after the fence, and its text.
var fence = regexp.MustCompile("(?ms)^```([^\n]*)\n(.*?)^```$")

// TestPolicyGuide runs docs/policies.md from top to bottom: blocks with file=NAME
// are written, commands after "$ " are run and must print what follows them,
// where "..." stands for anything.
func TestPolicyGuide(t *testing.T) {
	guide, err := os.ReadFile("../../docs/policies.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	ran, wrote := 0, 0
	for _, block := range fence.FindAllStringSubmatch(string(guide), -1) {
		kind, text := block[1], block[2]
		if _, name, ok := strings.Cut(kind, " file="); ok {
			path := filepath.Join(dir, name)
			if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			wrote++
		}
		if kind != "console" {
			continue
		}
		for _, step := range strings.Split("\n"+text, "\n$ ")[1:] {
			line, want, _ := strings.Cut(step, "\n")
			cmd := exec.Command("sh", "-c", line)
			cmd.Dir = dir
			out, _ := cmd.CombinedOutput() // the exit code is told by what is printed
			pattern := "^" + strings.ReplaceAll(regexp.QuoteMeta(strings.TrimSpace(want)), regexp.QuoteMeta("..."), "(?s:.*?)") + "$"
			if !regexp.MustCompile(pattern).MatchString(strings.TrimSpace(string(out))) {
				t.Errorf("$ %s\nprints\n%s\nthe guide says\n%s", line, out, want)
			}
			ran++
		}
	}
	if ran < 7 || wrote < 2 {
		t.Errorf("%d commands, %d files: the guide is not read", ran, wrote)
	}
}
