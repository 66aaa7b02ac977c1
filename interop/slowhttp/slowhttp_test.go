package slowhttp

import (
	"bufio"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

const configuration = `
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
health: {address: %q}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: all, path: "/{rest...}", upstream: app, public: true}
policies: {dir: policies}
`

// big is an answer that does not fit into the buffers of sockets.
const big = 8 << 20

// gate is the program, in a folder of its own.
type gate struct {
	t             *testing.T
	program, dir  string
	addr, health  string
	cmd           *exec.Cmd
	client        *http.Client
	asked, failed int
	slowest       time.Duration
}

func build(t *testing.T) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "gatebook")
	cmd := exec.Command("go", "build", "-o", program, "./cmd/gatebook")
	cmd.Dir = "../.."
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return program
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

func newGate(t *testing.T, program string) *gate {
	t.Helper()
	g := &gate{t: t, program: program, dir: filepath.Join(t.TempDir(), "gate"), addr: freeAddr(t), health: freeAddr(t)}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return // the gate has ended the request
		}
		if r.URL.Path == "/big" {
			w.Header().Set("Content-Length", strconv.Itoa(big))
			_, _ = w.Write(make([]byte, big))
			return
		}
		fmt.Fprintln(w, "hello")
	}))
	t.Cleanup(up.Close)
	g.run("init", g.dir, "--upstream", up.URL, "--issuer", "http://127.0.0.1:1", "--self-signed", "--origin", "log.example.com/test")
	g.write("gatebook.yaml", fmt.Sprintf(configuration, g.addr, g.health, up.URL))
	if err := os.RemoveAll(filepath.Join(g.dir, "policies")); err != nil {
		t.Fatal(err)
	}
	g.write("policies/open.cedar", "@id(\"open\")\npermit (principal, action, resource);\n")
	// The tool comes from 127.0.0.1; this client from elsewhere, each time over
	// a new connection, so that it needs a place of its own.
	g.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 9, 9)}}).DialContext,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
	}}
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
	up := make(chan bool, 1)
	go func() {
		for sc := bufio.NewScanner(pipe); sc.Scan(); {
			if strings.Contains(sc.Text(), `"serving"`) {
				up <- true
				_, _ = io.Copy(io.Discard, pipe)
			}
		}
		close(up)
	}()
	select {
	case ok := <-up:
		if !ok {
			g.t.Fatal("the gate did not start")
		}
	case <-time.After(time.Minute):
		g.t.Fatal("the gate did not start in time")
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

// memory is the resident set in MB (proc_pid_status(5)).
func (g *gate) memory() float64 {
	g.t.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.cmd.Process.Pid))
	if err != nil {
		g.t.Fatal(err)
	}
	return g.number(string(b), "VmRSS:") / 1024
}

func (g *gate) metric(name string) float64 {
	g.t.Helper()
	resp, err := http.Get("http://" + g.health + "/metrics")
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.t.Fatal(err)
	}
	return g.number(string(b), name+" ")
}

// number is the one after a name at the beginning of a line.
func (g *gate) number(text, name string) float64 {
	g.t.Helper()
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			v, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				g.t.Fatal(err)
			}
			return v
		}
	}
	g.t.Fatalf("no %s", name)
	return 0
}

// ask is one request of a client that does nothing wrong.
func (g *gate) ask() {
	g.t.Helper()
	begun := time.Now()
	resp, err := g.client.Get("https://" + g.addr + "/small")
	g.asked++
	if err != nil {
		g.failed++
		g.t.Logf("beside the attack: %v", err)
		return
	}
	defer resp.Body.Close()
	if _, err := io.Copy(io.Discard, resp.Body); err != nil || resp.StatusCode != http.StatusOK {
		g.failed++
	}
	g.slowest = max(g.slowest, time.Since(begun))
}

// connections is how many the tool opens: below the cap of 512 for an address.
const connections = 300

// TestSlow runs the three attacks, each on a gate of its own.
func TestSlow(t *testing.T) {
	if _, err := exec.LookPath("slowhttptest"); err != nil {
		t.Fatal("slowhttptest is not installed; it is the Debian package of that name")
	}
	program := build(t)
	for _, a := range []struct {
		name    string
		args    []string
		path    string
		reasons []string // how an attacked exchange may end; "" is an answer taken whole
	}{
		// Over TLS the tool now and then sends its request line a second time, in
		// the place of a field.
		{"headers", []string{"-H", "-i", "1"}, "/slow", []string{"timeout_reading", "client_aborted", "malformed_request"}},
		{"body", []string{"-B", "-i", "1", "-s", "8192", "-x", "10"}, "/slow", []string{"timeout_reading", "client_aborted"}},
		{"read", []string{"-X", "-n", "1", "-w", "512", "-y", "1024", "-z", "32"}, "/big", []string{"client_aborted"}},
	} {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			newGate(t, program).attacked(a.args, a.path, a.reasons)
		})
	}
}

// attacked lets the tool work and asks beside it.
func (g *gate) attacked(args []string, path string, reasons []string) {
	t := g.t
	g.start()
	for range 20 {
		g.ask()
	}
	memory, goroutines := g.memory(), g.metric("go_goroutines")
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "slowhttptest", append(args,
		"-c", strconv.Itoa(connections), "-r", "150", "-l", "14", "-p", "10", "-u", "https://"+g.addr+path)...)
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	peak, most, open := 0.0, 0.0, 0.0
	every := time.NewTicker(20 * time.Millisecond)
	defer every.Stop()
	for running := true; running; {
		g.ask()
		if g.asked%10 == 0 {
			peak, most, open = max(peak, g.memory()), max(most, g.metric("go_goroutines")), max(open, g.metric("gatebook_connections_open"))
		}
		select {
		case err := <-done:
			if err != nil {
				t.Fatalf("slowhttptest: %v\n%s", err, out.String())
			}
			running = false
		case <-every.C:
		}
	}
	after := g.memory()
	g.stop()
	t.Logf("RSS %.1f MB before, %.1f at most, %.1f after; goroutines %.0f, %.0f; %.0f connections open at most; %d requests beside, %d failed, the slowest %v",
		memory, peak, after, goroutines, most, open, g.asked, g.failed, g.slowest)
	if g.failed > 0 {
		t.Errorf("%d of %d requests beside the attack failed", g.failed, g.asked)
	}
	if strings.Contains(out.String(), "service available:   NO") || open < connections/2 {
		t.Errorf("%.0f connections were open; the tool says:\n%s", open, out.String())
	}
	if peak > memory+128 || most > goroutines+connections*10 {
		t.Errorf("%d slow connections took %.1f MB and %.0f goroutines", connections, peak-memory, most-goroutines)
	}
	g.inBook(reasons)
}

// inBook demands a record of every attacked exchange, with its reason.
func (g *gate) inBook(reasons []string) {
	t := g.t
	dir := []string{"-c", filepath.Join(g.dir, "gatebook.yaml")}
	got := map[string]int{}
	for line := range strings.Lines(g.run(append([]string{"search", "kind == 'request' || kind == 'malformed'", "--json", "--limit", "1000000"}, dir...)...)) {
		var r struct {
			Frame struct {
				Error struct{ Reason string }
				Event struct{ Count int }
			}
		}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		got[r.Frame.Error.Reason] += max(r.Frame.Event.Count, 1) // more in the record of a flood
	}
	right := 0
	for _, r := range reasons {
		right += got[r]
	}
	t.Logf("exchanges by reason: %v", got)
	if right < connections || got["malformed_request"] > connections/10 || got[""] < g.asked {
		t.Errorf("%d exchanges of %d connections have the reasons %v; %d of %d requests beside them were answered: %v", right, connections, reasons, got[""], g.asked, got)
	}
	g.run(append([]string{"verify"}, dir...)...)
}
