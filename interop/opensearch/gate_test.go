package opensearch

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

// gate is the program with one sink.
type gate struct {
	t      *testing.T
	bin    string
	dir    string
	addr   string
	client *http.Client
	cmd    *exec.Cmd
	said   *output // by the server
}

// newGate makes a gate whose only sink is a data stream of the node. Everybody may do
// everything but delete.
func newGate(t *testing.T, bin string, n *node, stream string) *gate {
	t.Helper()
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, "hello")
	}))
	t.Cleanup(up.Close)
	g := &gate{t: t, bin: bin, dir: filepath.Join(t.TempDir(), "gate"), addr: program.FreeAddr(t)}
	g.run(0, "init", g.dir, "--upstream", up.URL, "--issuer", "http://127.0.0.1:1", "--self-signed", "--origin", "log.example.com/test")
	g.write("gatebook.yaml", fmt.Sprintf(`
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
sinks:
  - {name: siem, type: elasticsearch, url: %q, data_stream: %q, batch: {records: 400}}
`, g.addr, up.URL, n.url, stream))
	if err := os.RemoveAll(filepath.Join(g.dir, "policies")); err != nil {
		t.Fatal(err)
	}
	g.write("policies/p.cedar", "@id(\"open\")\npermit (principal, action, resource);\n@id(\"keep\")\nforbid (principal, action in Action::\"DELETE\", resource);\n")
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(g.read("tls/localhost.crt")) {
		t.Fatal("the certificate cannot be read")
	}
	g.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost"}}, Timeout: 20 * time.Second}
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

func (g *gate) read(name string) []byte {
	g.t.Helper()
	b, err := os.ReadFile(filepath.Join(g.dir, name))
	if err != nil {
		g.t.Fatal(err)
	}
	return b
}

// run runs a command to its end and demands its exit code; -1: any.
func (g *gate) run(want int, args ...string) string {
	g.t.Helper()
	cmd := exec.Command(g.bin, args...)
	var out, said bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &said
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		g.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != want && want >= 0 {
		g.t.Fatalf("gatebook %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, want, out.String(), said.String())
	}
	if want > 0 {
		return said.String()
	}
	return out.String()
}

// command is run with the gate's configuration.
func (g *gate) command(want int, args ...string) string {
	g.t.Helper()
	return g.run(want, append(args, "-c", filepath.Join(g.dir, "gatebook.yaml"))...)
}

// output is what the server has printed so far.
type output struct {
	mu   sync.Mutex
	text []byte // under mu
	up   chan struct{}
	once sync.Once
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, b...)
	if bytes.Contains(o.text, []byte(`"serving"`)) {
		o.once.Do(func() { close(o.up) })
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// start runs the server and returns when it serves.
func (g *gate) start() {
	g.t.Helper()
	g.said = &output{up: make(chan struct{})}
	g.cmd = exec.Command(g.bin, "serve", "-c", filepath.Join(g.dir, "gatebook.yaml"))
	g.cmd.Stderr = g.said
	if err := g.cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	cmd := g.cmd
	g.t.Cleanup(func() { cmd.Process.Kill() }) // nothing if it has ended
	select {
	case <-g.said.up:
	case <-time.After(30 * time.Second):
		g.t.Fatalf("the gate does not serve within 30 s:\n%s", g.said)
	}
}

// stop ends the server and demands that it ends well.
func (g *gate) stop() {
	g.t.Helper()
	if err := g.cmd.Process.Signal(os.Interrupt); err != nil {
		g.t.Fatal(err)
	}
	if err := g.cmd.Wait(); err != nil {
		g.t.Fatalf("stop: %v\n%s", err, g.said)
	}
	g.client.CloseIdleConnections()
}

// kill ends the server with SIGKILL.
func (g *gate) kill() {
	g.t.Helper()
	if err := g.cmd.Process.Kill(); err != nil {
		g.t.Fatal(err)
	}
	g.cmd.Wait()
	g.client.CloseIdleConnections()
}

// send sends one request with n bytes of body.
func (g *gate) send(method, path string, n int) (int, error) {
	r, err := http.NewRequestWithContext(g.t.Context(), method, "https://"+g.addr+path, strings.NewReader(strings.Repeat("x", n)))
	if err != nil {
		return 0, err
	}
	resp, err := g.client.Do(r)
	if err != nil {
		return 0, err
	}
	defer resp.Body.Close()
	_, err = io.Copy(io.Discard, resp.Body)
	return resp.StatusCode, err
}

// malformed sends a request with two Host fields, which is answered 400.
func (g *gate) malformed() {
	g.t.Helper()
	set := g.client.Transport.(*http.Transport).TLSClientConfig.Clone()
	set.NextProtos = []string{"http/1.1"}
	c, err := tls.Dial("tcp", g.addr, set)
	if err != nil {
		g.t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "GET / HTTP/1.1\r\nHost: localhost\r\nHost: example.com\r\n\r\n")
	answer, err := io.ReadAll(c)
	if !bytes.HasPrefix(answer, []byte("HTTP/1.1 400 ")) {
		g.t.Fatalf("answer %q: %v", answer, err)
	}
}

// mixed sends n requests: allowed ones, denied ones and malformed ones.
func (g *gate) mixed(n int) {
	g.t.Helper()
	for i := range n {
		method, want := "GET", 200
		switch i % 10 {
		case 3, 7:
			method, want = "DELETE", 403
		case 9:
			g.malformed()
			continue
		}
		if status, err := g.send(method, fmt.Sprintf("/v1/orders/%d", i), 0); err != nil || status != want {
			g.t.Fatalf("%s: status %d, want %d: %v", method, status, want, err)
		}
	}
}

// kept is what is looked at of a record of the book.
type kept struct {
	Index uint64
	Frame struct {
		ID      string
		Kind    string
		Outcome string
		Status  int
		Authz   struct{ Decision string }
	}
}

// book is every record, by index.
func (g *gate) book() map[uint64]kept {
	g.t.Helper()
	out := map[uint64]kept{}
	d := json.NewDecoder(strings.NewReader(g.command(0, "search", "index >= 0", "--json")))
	for {
		var k kept
		err := d.Decode(&k)
		if err == io.EOF {
			return out
		}
		if err != nil {
			g.t.Fatal(err)
		}
		out[k.Index] = k
	}
}

// sinkStatus is what is looked at in the status of the sink.
type sinkStatus struct {
	State, Why, Grade string
	Cursor            uint64
	Lag               uint64 `json:"lag_records"`
	Quarantine        int
	Delivered         map[string]uint64
	Retries           map[string]uint64
	Duplicates        uint64 `json:"duplicates_possible"`
}

func (g *gate) status() sinkStatus {
	g.t.Helper()
	var all []sinkStatus
	if out := g.command(-1, "sink", "status", "siem", "--json"); json.Unmarshal([]byte(out), &all) != nil || len(all) != 1 {
		g.t.Fatalf("sink status: %s\n%s", out, g.said)
	}
	return all[0]
}

// until asks for the status until it is as wanted.
func (g *gate) until(what string, ok func(sinkStatus) bool) sinkStatus {
	g.t.Helper()
	for late := time.Now().Add(2 * time.Minute); ; time.Sleep(100 * time.Millisecond) {
		st := g.status()
		if ok(st) {
			return st
		}
		if time.Now().After(late) {
			g.t.Fatalf("%s: not within two minutes: %+v\n%s", what, st, g.said)
		}
	}
}

// caughtUp waits until the sink has settled everything that was in the book at the
// call, and returns that.
func (g *gate) caughtUp() (map[uint64]kept, sinkStatus) {
	g.t.Helper()
	book, last := g.book(), uint64(0)
	for i := range book {
		last = max(last, i)
	}
	st := g.until(fmt.Sprintf("cursor above %d", last), func(st sinkStatus) bool { return st.Cursor > last })
	return book, st
}
