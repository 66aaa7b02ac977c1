package zitadelop

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// program is the gate, built once.
var program struct {
	once sync.Once
	dir  string
	err  error
}

// TestMain removes what buildGate made.
func TestMain(m *testing.M) {
	code := m.Run()
	os.RemoveAll(program.dir)
	os.Exit(code)
}

func buildGate(t *testing.T) string {
	t.Helper()
	program.once.Do(func() {
		if program.dir, program.err = os.MkdirTemp("", "gatebook-zitadel"); program.err != nil {
			return
		}
		build := exec.Command("go", "build", "-o", filepath.Join(program.dir, "gatebook"), "./cmd/gatebook")
		build.Dir = "../.."
		if out, err := build.CombinedOutput(); err != nil {
			program.err = fmt.Errorf("%w\n%s", err, out)
		}
	})
	if program.err != nil {
		t.Fatal(program.err)
	}
	return filepath.Join(program.dir, "gatebook")
}

// gate is the program with a book, behind what ends TLS. Every path is allowed
// to everybody who is known.
type gate struct {
	t       *testing.T
	program string
	dir     string
	addr    string
}

// startGate writes the configuration, of which rest is what comes after the
// upstream "app", and the files, and returns when the gate serves.
func startGate(t *testing.T, rest string, files map[string]string) *gate {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{t: t, program: buildGate(t), dir: filepath.Join(t.TempDir(), "gate"), addr: l.Addr().String()}
	l.Close()
	g.run("init", g.dir, "--upstream", "http://127.0.0.1:1", "--issuer", "http://127.0.0.1:1", "--origin", "log.example.com/test")
	if err := os.RemoveAll(filepath.Join(g.dir, "policies")); err != nil {
		t.Fatal(err)
	}
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s\n", r.Header.Get("X-Gatebook-Subject"))
	}))
	t.Cleanup(app.Close)
	g.write("policies/open.cedar", "@id(\"open\")\npermit (principal, action, resource);\n")
	for name, text := range files {
		g.write(name, text)
	}
	g.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen: [{name: inner, address: %q, plaintext: behind_proxy, trusted: ["127.200.0.0/16"]}]
policies: {dir: policies}
upstreams: {app: {targets: [%q]}}
`, g.addr, app.URL)+rest)
	g.serve()
	return g
}

func (g *gate) write(name, text string) {
	g.t.Helper()
	path := filepath.Join(g.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		g.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

func (g *gate) config() string { return filepath.Join(g.dir, "gatebook.yaml") }

// run runs a command that must succeed and returns what it says.
func (g *gate) run(args ...string) []byte {
	g.t.Helper()
	cmd := exec.Command(g.program, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		g.t.Fatalf("gatebook %s: %v\n%s%s", strings.Join(args, " "), err, out, errs.Bytes())
	}
	return out
}

// serve returns when the gate serves; it is stopped at the end of the test.
func (g *gate) serve() {
	g.t.Helper()
	cmd := exec.Command(g.program, "serve", "-c", g.config())
	pipe, err := cmd.StderrPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	late := time.AfterFunc(3*time.Minute, func() { cmd.Process.Kill() }) // whatever hangs ends the test
	var text strings.Builder
	lines := bufio.NewScanner(pipe)
	up := false
	for !up && lines.Scan() {
		fmt.Fprintln(&text, lines.Text())
		up = strings.Contains(lines.Text(), `"serving"`)
	}
	var rest sync.WaitGroup
	rest.Go(func() { io.Copy(io.Discard, pipe) }) // so that it never waits for us
	g.t.Cleanup(func() {
		cmd.Process.Signal(syscall.SIGTERM)
		rest.Wait()
		if err := cmd.Wait(); err != nil {
			g.t.Errorf("the gate ended with %v", err)
		}
		late.Stop()
	})
	if !up {
		g.t.Fatalf("the gate did not start:\n%s", text.String())
	}
}

// get asks with a token.
func (g *gate) get(path, token string) (status int, body, id string) {
	g.t.Helper()
	req, err := http.NewRequest("GET", "http://"+g.addr+path, nil)
	if err != nil {
		g.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		g.t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return res.StatusCode, string(b), res.Header.Get("X-Request-Id")
}

// taken asks with a token and demands an answer from behind the gate.
func (g *gate) taken(path, token, who string) {
	g.t.Helper()
	if status, body, _ := g.get(path, token); status != 200 || body != "hello "+who+"\n" {
		g.t.Errorf("%s: %d %q, want %s", path, status, body, who)
	}
}

// refused asks with a token and demands a status and a reason in the book.
func (g *gate) refused(path, token string, status int, why string) {
	g.t.Helper()
	got, _, id := g.get(path, token)
	if found := g.reason(id); got != status || found != why {
		g.t.Errorf("%s: %d %q, want %d %q", path, got, found, status, why)
	}
}

// reason is what the book says of an exchange.
func (g *gate) reason(id string) string {
	g.t.Helper()
	var r struct {
		Frame struct{ Error struct{ Reason string } }
	}
	out := g.run("search", fmt.Sprintf("id == %q", id), "--json", "-c", g.config())
	if err := json.Unmarshal(out, &r); err != nil {
		g.t.Fatalf("record of %s: %v: %s", id, err, out)
	}
	return r.Frame.Error.Reason
}

// eventually waits for what another process does by itself.
func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for end := time.Now().Add(20 * time.Second); !done(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within 20 s", what)
		}
	}
}
