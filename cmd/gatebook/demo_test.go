package main

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"
)

func TestDemoScript(t *testing.T) {
	t.Parallel()
	testscript.Run(t, testscript.Params{Files: []string{"testdata/script/demo.txtar"}, RequireExplicitExec: true})
}

// pasted is a command line that the demo prints, and what it says will come.
type pasted struct{ comment, line string }

// startDemo starts a demo and returns it with what it prints to be pasted.
func startDemo(t *testing.T, ctx context.Context, tmp string) (*exec.Cmd, []pasted) {
	t.Helper()
	cmd := exec.CommandContext(ctx, "gatebook", "demo")
	cmd.Env = append(os.Environ(), "TMPDIR="+tmp)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	var all []pasted
	program := cmd.Path
	comment := ""
	lines := bufio.NewScanner(out)
	for lines.Scan() {
		line := lines.Text()
		switch {
		case line == "The gate is running; Ctrl-C ends it.":
			go func() { // what it prints at its end
				for lines.Scan() {
				}
			}()
			return cmd, all
		case strings.HasPrefix(line, "# "):
			comment = line[2:]
		case strings.HasPrefix(line, "curl ") || strings.HasPrefix(line, program+" "):
			all = append(all, pasted{comment, line})
		}
	}
	t.Fatalf("the demo ended before it was running: %v %v", lines.Err(), cmd.Wait())
	return nil, nil
}

// Every command line that the demo prints works as printed.
func TestDemoPastedLines(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("curl"); err != nil {
		t.Fatalf("this test runs the curl lines that the demo prints: %v", err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	tmp := t.TempDir()
	demo, lines := startDemo(t, ctx, tmp)
	defer demo.Process.Kill()

	curls, commands := 0, 0
	var search string // the beginning of a search line
	for _, p := range lines {
		out := pasteLine(t, ctx, p)
		if strings.HasPrefix(p.line, "curl ") {
			curls++
			checkCurl(t, p, out)
			continue
		}
		commands++
		if at := strings.Index(p.line, " search "); at > 0 {
			search = p.line[:at]
		}
		if strings.HasSuffix(p.line, " verify") && !strings.HasSuffix(out, "\nverified\n") {
			t.Errorf("%s:\n%s", p.line, out)
		}
	}
	if curls != 7 || commands != 8 {
		t.Errorf("%d curl lines and %d commands, in %q", curls, commands, lines)
	}
	// What curl did is in the book: 6 single requests and 10 in a row.
	out := pasteLine(t, ctx, pasted{line: search + ` count --by 'personal.ua contains "curl"' --reveal 'kind == "request"'`})
	if !regexp.MustCompile(`(?m)^ +16  true$`).MatchString(out) {
		t.Errorf("records of curl's requests:\n%s", out)
	}

	if err := demo.Process.Signal(os.Interrupt); err != nil {
		t.Fatal(err)
	}
	if err := demo.Wait(); err != nil {
		t.Errorf("the demo after Ctrl-C: %v", err)
	}
	if left, err := os.ReadDir(tmp); err != nil || len(left) > 0 {
		t.Errorf("left behind: %v, %v", left, err)
	}
}

// pasteLine gives a line to a shell and demands that it succeeds.
func pasteLine(t *testing.T, ctx context.Context, p pasted) string {
	t.Helper()
	cmd := exec.CommandContext(ctx, "sh", "-c", p.line)
	var out, errs bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errs
	if err := cmd.Run(); err != nil {
		t.Errorf("%s\n%v\n%s%s", p.line, err, out.Bytes(), errs.Bytes())
	}
	return out.String()
}

// checkCurl compares what came with what was said to come.
func checkCurl(t *testing.T, p pasted, out string) {
	t.Helper()
	status, rest, _ := strings.Cut(p.comment, ":")
	want := "HTTP/2 " + status + " \r\n"
	if before, after, ok := strings.Cut(status, " five times, then "); ok {
		want = strings.Repeat(before+"\n", 5) + strings.Repeat(after+"\n", 5)
	}
	if len(status) < 3 || rest == "" || !strings.HasPrefix(out, want) {
		t.Errorf("%s\n%s\ngave\n%s", p.comment, p.line, out)
	}
}

// tourMark stands before the code blocks of the README that are run here.
const tourMark = "<!-- tour -->"

// tourBlocks are the marked shell blocks of a document, in order.
func tourBlocks(doc string) ([]string, error) {
	var blocks []string
	lines := strings.Split(doc, "\n")
	for i := 0; i < len(lines); i++ {
		if strings.TrimSpace(lines[i]) != tourMark {
			continue
		}
		if i+1 == len(lines) || lines[i+1] != "```sh" {
			return nil, fmt.Errorf("line %d: no sh block follows %s at once", i+1, tourMark)
		}
		var block strings.Builder
		for i += 2; i < len(lines) && lines[i] != "```"; i++ {
			fmt.Fprintln(&block, lines[i])
		}
		if i == len(lines) {
			return nil, fmt.Errorf("a block does not end")
		}
		blocks = append(blocks, block.String())
	}
	if len(blocks) == 0 {
		return nil, fmt.Errorf("no block is marked with %s", tourMark)
	}
	return blocks, nil
}

func TestTourBlocks(t *testing.T) {
	for doc, want := range map[string]string{
		"# x\n<!-- tour -->\n```sh\na\nb\n```\ntext\n```sh\nnot this\n```\n  <!-- tour -->\n```sh\nc\n```": "a\nb\n|c\n",
		"```sh\na\n```\n":                       "error",
		"":                                      "error",
		"<!-- tour -->\n\n```sh\na\n```\n":      "error",
		"<!-- tour -->\n```sh\na\n":             "error",
		"<!-- tour -->":                         "error",
		"<!-- tour -->\n```console\n$ a\n```\n": "error",
	} {
		got, err := tourBlocks(doc)
		if err != nil {
			got = []string{"error"}
		}
		if strings.Join(got, "|") != want {
			t.Errorf("%q: %q, %v", doc, got, err)
		}
	}
}

// The ports that init writes may be taken on the machine that runs the tests.
// This much of the tour is changed.
func freePorts(t *testing.T, script string) string {
	t.Helper()
	_, public, _ := strings.Cut(freeAddr(t), ":")
	edit := fmt.Sprintf("sed -i -e 's/\":8443\"/\":%s\"/' -e 's/127.0.0.1:9080/%s/' gate/gatebook.yaml\n", public, freeAddr(t))
	inits := regexp.MustCompile(`(?m)^gatebook init gate .*\n`)
	if len(inits.FindAllString(script, -1)) != 1 || !strings.Contains(script, "localhost:8443/") {
		t.Fatalf("the tour does not make one gate with \"gatebook init gate\" and ask it at localhost:8443:\n%s", script)
	}
	return strings.ReplaceAll(inits.ReplaceAllString(script, "${0}"+edit), "localhost:8443/", "localhost:"+public+"/")
}

// The README's tour works as written: every command succeeds.
func TestTour(t *testing.T) {
	t.Parallel()
	readme, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	blocks, err := tourBlocks(string(readme))
	if err != nil {
		t.Fatalf("README.md: %v", err)
	}
	script := freePorts(t, strings.Join(blocks, ""))

	dir := t.TempDir()
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	cmd := exec.CommandContext(ctx, "sh", "-eux", "-c", script)
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "TMPDIR="+t.TempDir())
	// A server in the background must not outlive the test.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	log, err := os.Create(filepath.Join(t.TempDir(), "log")) // a file, so that Wait waits for the shell only
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stdout, cmd.Stderr = log, log
	err = cmd.Run()
	if cmd.Process != nil {
		syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) // what the script left running
	}
	out, readErr := os.ReadFile(log.Name())
	if readErr != nil {
		t.Fatal(readErr)
	}
	if err != nil {
		t.Fatalf("the tour: %v\n%s", err, out)
	}
	// The tour's own claims.
	for _, want := range []string{"HTTP/2 401", "no_credential", "\nverified\n", "NOT verified: the evidence is damaged", "exit code 10"} {
		if !strings.Contains(string(out), want) {
			t.Errorf("the tour does not show %q:\n%s", want, out)
		}
	}
}
