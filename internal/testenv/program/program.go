// Package program runs the gate as its users do: it builds the binary, makes a
// folder for it, starts and stops it, and searches its book. It serves the tests
// of modules that put other people's clients and servers before and behind the
// gate. Whatever goes wrong ends the test.
package program

import (
	"bufio"
	"bytes"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// patience bounds the start and the end of a gate.
const patience = time.Minute

// Build builds the binary into a folder of the test and returns its path.
func Build(t *testing.T) string {
	t.Helper()
	path, err := build(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	return path
}

func build(dir string) (string, error) {
	const module = "github.com/gatebook/gatebook"
	root, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", module).Output()
	if err != nil {
		return "", fmt.Errorf("where %s is: %w (does go.mod replace it by ../..?)", module, err)
	}
	path := filepath.Join(dir, "gatebook")
	cmd := exec.Command("go", "build", "-o", path, "./cmd/gatebook")
	cmd.Dir = strings.TrimSpace(string(root))
	if out, err := cmd.CombinedOutput(); err != nil {
		return "", fmt.Errorf("building the gate: %w\n%s", err, out)
	}
	return path, nil
}

// Shared is a binary that the tests of a package share. It is built when it is
// asked for first. Safe for concurrent use.
type Shared struct {
	once      sync.Once
	dir, path string // set in once
	err       error  // set in once
}

// Path is the path of the binary.
func (s *Shared) Path(t *testing.T) string {
	t.Helper()
	s.once.Do(func() {
		if s.dir, s.err = os.MkdirTemp("", "gatebook-program"); s.err == nil {
			s.path, s.err = build(s.dir)
		}
	})
	if s.err != nil {
		t.Fatal(s.err)
	}
	return s.path
}

// Main runs the tests, removes the binary and exits: for TestMain.
func (s *Shared) Main(m *testing.M) {
	code := m.Run()
	if err := os.RemoveAll(s.dir); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = 1
	}
	os.Exit(code)
}

// Gate is a gate in a folder of its own, with keys, a certificate for localhost
// (tls/localhost.crt and .key) and a policy that allows everything (in policies).
// It belongs to one test.
type Gate struct {
	T   *testing.T
	Dir string

	program string
	cmd     *exec.Cmd  // between Start and Stop
	ended   chan error // has its end
}

// NewGate makes the folder, for a binary. Configure comes next.
func NewGate(t *testing.T, program string) *Gate {
	t.Helper()
	g := &Gate{T: t, Dir: filepath.Join(t.TempDir(), "gate"), program: program}
	g.run("init", g.Dir, "--upstream", "http://127.0.0.1:1", "--issuer", "http://127.0.0.1:1", "--self-signed", "--origin", "log.example.com/test")
	if err := os.RemoveAll(g.Path("policies")); err != nil {
		t.Fatal(err)
	}
	g.Write("policies/open.cedar", "@id(\"open\")\npermit (principal, action, resource);\n")
	return g
}

// Configure writes gatebook.yaml: where the book and its keys are, and the rest.
func (g *Gate) Configure(rest string) {
	g.T.Helper()
	g.Write("gatebook.yaml", `
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
`+strings.TrimPrefix(rest, "\n"))
}

// Path is the path of a file of the folder.
func (g *Gate) Path(name string) string { return filepath.Join(g.Dir, name) }

// Write writes a file of the folder.
func (g *Gate) Write(name, text string) {
	g.T.Helper()
	path := g.Path(name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		g.T.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		g.T.Fatal(err)
	}
}

// Roots has the certificate of the gate.
func (g *Gate) Roots() *x509.CertPool {
	g.T.Helper()
	pool := x509.NewCertPool()
	if pem, err := os.ReadFile(g.Path("tls/localhost.crt")); err != nil || !pool.AppendCertsFromPEM(pem) {
		g.T.Fatalf("the certificate of the gate: %v", err)
	}
	return pool
}

// Run runs a command on this gate that must succeed and returns what it prints.
func (g *Gate) Run(args ...string) []byte {
	g.T.Helper()
	return g.run(append(args, "-c", g.Path("gatebook.yaml"))...)
}

func (g *Gate) run(args ...string) []byte {
	g.T.Helper()
	cmd := exec.Command(g.program, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		g.T.Fatalf("gatebook %s: %v\n%s%s", strings.Join(args, " "), err, out, errs.Bytes())
	}
	return out
}

// Start returns when the gate serves. It is stopped at the end of the test, if it
// was not before.
func (g *Gate) Start() {
	g.T.Helper()
	cmd := exec.Command(g.program, "serve", "-c", g.Path("gatebook.yaml"))
	pipe, err := cmd.StderrPipe()
	if err != nil {
		g.T.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		g.T.Fatal(err)
	}
	kill := func() { _ = cmd.Process.Kill() } // unless it has ended
	late := time.AfterFunc(patience, kill)
	var text strings.Builder
	lines, up := bufio.NewScanner(pipe), false
	for !up && lines.Scan() {
		fmt.Fprintln(&text, lines.Text())
		up = strings.Contains(lines.Text(), `"serving"`)
	}
	late.Stop()
	if end, ok := g.T.Deadline(); ok { // a client that waits for it forever fails before the tests are cut off
		late = time.AfterFunc(time.Until(end)-patience/2, kill)
	}
	ended := make(chan error, 1)
	go func() {
		_, _ = io.Copy(io.Discard, pipe) // so that it never waits for us
		ended <- cmd.Wait()
		late.Stop()
	}()
	g.cmd, g.ended = cmd, ended
	g.T.Cleanup(func() {
		if g.cmd == cmd {
			g.Stop()
		}
	})
	if !up {
		g.T.Fatalf("the gate did not start within %v:\n%s", patience, text.String())
	}
}

// PID is the process that serves.
func (g *Gate) PID() int { return g.cmd.Process.Pid }

// Stop ends the gate and returns when all is in the book.
func (g *Gate) Stop() {
	g.T.Helper()
	cmd := g.cmd
	g.cmd = nil
	_ = cmd.Process.Signal(syscall.SIGTERM) // if it has ended by itself, ended tells how
	select {
	case err := <-g.ended:
		if err != nil {
			g.T.Errorf("the gate ended with %v", err)
		}
	case <-time.After(patience):
		_ = cmd.Process.Kill()
		<-g.ended
		g.T.Errorf("the gate did not end within %v", patience)
	}
}

// Search returns the records that a filter finds, each as far as R has fields for
// it; flags are more flags of "gatebook search".
func Search[R any](g *Gate, filter string, flags ...string) []R {
	g.T.Helper()
	var found []R
	for line := range bytes.Lines(g.Run(append([]string{"search", filter, "--json"}, flags...)...)) {
		var r R
		if err := json.Unmarshal(line, &r); err != nil {
			g.T.Fatalf("%v: %s", err, line)
		}
		found = append(found, r)
	}
	return found
}

// Reason is what the one record of an exchange says went wrong, "" if nothing did.
func (g *Gate) Reason(id string) string {
	g.T.Helper()
	type record struct {
		Frame struct{ Error struct{ Reason string } }
	}
	found := Search[record](g, fmt.Sprintf("id == %q", id))
	if len(found) != 1 {
		g.T.Fatalf("%d records of %q", len(found), id)
	}
	return found[0].Frame.Error.Reason
}
