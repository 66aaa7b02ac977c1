package oidcprovider

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
		if program.dir, program.err = os.MkdirTemp("", "gatebook-oidc"); program.err != nil {
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

// gate is the program with a book, in a folder of its own, on a listener
// without TLS. Every path is allowed to everybody who is known.
type gate struct {
	t       *testing.T
	program string
	dir     string
	addr    string
	cmd     *exec.Cmd
}

// newGate writes the configuration; rest is what comes after the listeners,
// with the upstream "app" left to it.
func newGate(t *testing.T, rest string) *gate {
	t.Helper()
	g := &gate{t: t, program: buildGate(t), dir: filepath.Join(t.TempDir(), "gate"), addr: freeAddr(t)}
	g.run("init", g.dir, "--upstream", "http://127.0.0.1:1", "--issuer", "http://127.0.0.1:1", "--origin", "log.example.com/test")
	if err := os.RemoveAll(filepath.Join(g.dir, "policies")); err != nil {
		t.Fatal(err)
	}
	g.write("policies/open.cedar", "@id(\"open\")\npermit (principal, action, resource);\n")
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "hello %s\n", r.Header.Get("X-Gatebook-Subject"))
	}))
	t.Cleanup(app.Close)
	g.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen: [{name: inner, address: %q, plaintext: behind_proxy, trusted: ["127.200.0.0/16"]}]
policies: {dir: policies}
upstreams: {app: {targets: [%q]}}
`, g.addr, app.URL)+rest)
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

// run runs a command that must succeed and returns what it says.
func (g *gate) run(args ...string) []byte {
	g.t.Helper()
	out, err := g.try(args...)
	if err != nil {
		g.t.Fatalf("gatebook %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return out
}

func (g *gate) try(args ...string) ([]byte, error) {
	cmd := exec.Command(g.program, args...)
	var errs bytes.Buffer
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		return append(out, errs.Bytes()...), err
	}
	return out, nil
}

func (g *gate) config() string { return filepath.Join(g.dir, "gatebook.yaml") }

// start returns when the gate serves; it is stopped at the end of the test.
func (g *gate) start() {
	g.t.Helper()
	g.cmd = exec.Command(g.program, "serve", "-c", g.config())
	pipe, err := g.cmd.StderrPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	ended := make(chan error, 1)
	up := make(chan string, 1)
	go func() {
		var text strings.Builder
		for sc := bufio.NewScanner(pipe); sc.Scan(); {
			if fmt.Fprintln(&text, sc.Text()); strings.Contains(sc.Text(), `"serving"`) {
				up <- ""
				for sc.Scan() { // so that it never waits for us
				}
				break
			}
		}
		up <- text.String()
		ended <- g.cmd.Wait()
	}()
	g.t.Cleanup(func() {
		g.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case err := <-ended:
			if err != nil {
				g.t.Errorf("the gate ended with %v", err)
			}
		case <-time.After(time.Minute):
			g.cmd.Process.Kill()
			g.t.Error("the gate did not end")
		}
	})
	select {
	case text := <-up:
		if text != "" {
			g.t.Fatalf("the gate did not start:\n%s", text)
		}
	case <-time.After(time.Minute):
		g.t.Fatal("the gate did not start in time")
	}
}

// get asks with a token; header lines go along.
func (g *gate) get(path, token string, header http.Header) (status int, body string, answer http.Header) {
	g.t.Helper()
	status, body, answer, err := g.ask(path, token, header)
	if err != nil {
		g.t.Fatal(err)
	}
	return status, body, answer
}

func (g *gate) ask(path, token string, header http.Header) (status int, body string, answer http.Header, err error) {
	req, err := http.NewRequest("GET", "http://"+g.addr+path, nil)
	if err != nil {
		return 0, "", nil, err
	}
	for k, v := range header {
		req.Header[k] = v
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return 0, "", nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	return res.StatusCode, string(b), res.Header, err
}

// reason is what the book says of an exchange, "" for one that went well.
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

// refused asks and demands a reason in the book.
func (g *gate) refused(path, token string, status int, why string) {
	g.t.Helper()
	got, _, header := g.get(path, token, nil)
	if found := g.reason(header.Get("X-Request-Id")); got != status || found != why {
		g.t.Errorf("%s: %d %q, want %d %q", path, got, found, status, why)
	}
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}
