package h2spec

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/summerwind/h2spec/config"
	"github.com/summerwind/h2spec/generic"
	"github.com/summerwind/h2spec/hpack"
	"github.com/summerwind/h2spec/http2"
	"github.com/summerwind/h2spec/spec"
)

const configuration = `
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: all, path: "/{rest...}", upstream: app, public: true}
policies: {dir: policies}
`

// gate is the program, in a folder of its own.
type gate struct {
	t       *testing.T
	program string
	dir     string
	addr    string
	cmd     *exec.Cmd
}

func newGate(t *testing.T) *gate {
	t.Helper()
	g := &gate{t: t, program: filepath.Join(t.TempDir(), "gatebook"), dir: filepath.Join(t.TempDir(), "gate")}
	build := exec.Command("go", "build", "-o", g.program, "./cmd/gatebook")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return // the gate has reset the request
		}
		fmt.Fprintln(w, "hello")
	}))
	t.Cleanup(up.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g.addr = l.Addr().String()
	l.Close()
	g.run("init", g.dir, "--upstream", up.URL, "--issuer", "http://127.0.0.1:1", "--self-signed", "--origin", "log.example.com/test")
	g.write("gatebook.yaml", fmt.Sprintf(configuration, g.addr, up.URL))
	if err := os.RemoveAll(filepath.Join(g.dir, "policies")); err != nil {
		t.Fatal(err)
	}
	g.write("policies/open.cedar", "@id(\"open\")\npermit (principal, action, resource);\n")
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

func (g *gate) run(args ...string) string {
	g.t.Helper()
	out, err := exec.Command(g.program, args...).CombinedOutput()
	if err != nil {
		g.t.Fatalf("gatebook %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// start returns when the gate serves.
func (g *gate) start() {
	g.t.Helper()
	g.cmd = exec.Command(g.program, "serve", "-c", filepath.Join(g.dir, "gatebook.yaml"))
	pipe, err := g.cmd.StderrPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() { _ = g.cmd.Process.Kill() })
	lines := make(chan string, 1)
	go func() {
		defer close(lines)
		for sc := bufio.NewScanner(pipe); sc.Scan(); {
			select {
			case lines <- sc.Text():
			default: // nobody listens any more
			}
		}
	}()
	ctx, cancel := context.WithTimeout(g.t.Context(), 30*time.Second)
	defer cancel()
	for {
		select {
		case line, ok := <-lines:
			if !ok {
				g.t.Fatal("the gate did not start")
			}
			if strings.Contains(line, `"serving"`) {
				return
			}
		case <-ctx.Done():
			g.t.Fatal("the gate did not start in time")
		}
	}
}

// stop returns when all is in the book.
func (g *gate) stop() {
	g.t.Helper()
	if err := g.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		g.t.Fatal(err)
	}
	if err := g.cmd.Wait(); err != nil {
		g.t.Error(err)
	}
}

// outcome is what has become of the cases of a suite.
type outcome struct {
	cases  int
	failed []string // "section/number: what is demanded"
	actual map[string]string
}

func (o *outcome) add(g *spec.TestGroup) {
	for _, c := range append(slices.Clone(g.Tests), g.StrictTests...) {
		r := c.Result
		if r == nil {
			continue
		}
		o.cases++
		if r.Failed || r.Skipped {
			name := fmt.Sprintf("%s/%d: %s", g.ID(), r.Sequence, c.Desc)
			o.failed = append(o.failed, name)
			if r.Error != nil {
				o.actual[name] = r.Error.Error()
			}
		}
	}
	for _, sub := range g.Groups {
		o.add(sub)
	}
}

// expected reads testdata/expected.txt: names of cases, each under a comment.
func expected(t *testing.T) []string {
	t.Helper()
	b, err := os.ReadFile("testdata/expected.txt")
	if err != nil {
		t.Fatal(err)
	}
	var names []string
	explained := false
	for line := range strings.Lines(string(b)) {
		switch line = strings.TrimSpace(line); {
		case line == "":
			explained = false
		case strings.HasPrefix(line, "#"):
			explained = true
		case !explained:
			t.Errorf("testdata/expected.txt does not say why %q is expected", line)
		default:
			names = append(names, line)
		}
	}
	return names
}

func TestH2spec(t *testing.T) {
	g := newGate(t)
	g.start()
	host, port, err := net.SplitHostPort(g.addr)
	if err != nil {
		t.Fatal(err)
	}
	c := &config.Config{Host: host, Path: "/", Timeout: 2 * time.Second, MaxHeaderLen: 4000, Strict: true, TLS: true, Insecure: true}
	if c.Port, err = strconv.Atoi(port); err != nil {
		t.Fatal(err)
	}
	o := &outcome{actual: map[string]string{}}
	for _, suite := range []*spec.TestGroup{generic.Spec(), http2.Spec(), hpack.Spec()} {
		suite.Test(c)
		o.add(suite)
	}
	g.stop()

	want := expected(t)
	for _, name := range o.failed {
		if !slices.Contains(want, name) {
			t.Errorf("failed: %s\n%s", name, o.actual[name])
		}
	}
	for _, name := range want {
		if !slices.Contains(o.failed, name) {
			t.Errorf("passes now: %s; take it out of testdata/expected.txt", name)
		}
	}
	if o.cases < 140 {
		t.Errorf("only %d cases ran", o.cases)
	}
	g.inBook(o.cases)
}

// inBook checks that no case has escaped the book: each made a connection of
// its own, and each but the silent ones asked for something or broke a rule.
func (g *gate) inBook(cases int) {
	g.t.Helper()
	// Those that only exchange frames of the connection: a PING, SETTINGS,
	// a GOAWAY, a frame of unknown type, a PRIORITY or the preface.
	const silent = 12
	dir := []string{"-c", filepath.Join(g.dir, "gatebook.yaml")}
	total, kinds := 0, map[string]int{}
	for line := range strings.Lines(g.run(append([]string{"search", "kind == 'request' || kind == 'malformed'", "--json", "--limit", "10000"}, dir...)...)) {
		var r struct {
			Frame struct {
				Kind  string
				Event struct{ Count int }
			}
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			g.t.Fatalf("%v: %s", err, line)
		}
		n := max(r.Frame.Event.Count, 1) // more in the record of a flood
		total += n
		kinds[r.Frame.Kind] += n
	}
	g.t.Logf("%d cases, exchanges by kind: %v", cases, kinds)
	if total < cases-silent {
		g.t.Errorf("%d records of %d cases, %d of them silent", total, cases, silent)
	}
	g.run(append([]string{"verify"}, dir...)...)
}
