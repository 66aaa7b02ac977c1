package slowhttp

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

const configuration = `
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

// gate is one that is asked beside an attack.
type gate struct {
	*program.Gate
	addr, health  string
	client        *http.Client
	asked, failed int
	slowest       time.Duration
}

func newGate(t *testing.T, binary string) *gate {
	t.Helper()
	g := &gate{Gate: program.NewGate(t, binary), addr: program.FreeAddr(t), health: program.FreeAddr(t)}
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
	g.Configure(fmt.Sprintf(configuration, g.addr, g.health, up.URL))
	// The tool comes from 127.0.0.1; this client from elsewhere, each time over
	// a new connection, so that it needs a place of its own.
	g.client = &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext:       (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 9, 9)}}).DialContext,
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true},
	}}
	return g
}

// memory is the resident set in MB (proc_pid_status(5)).
func (g *gate) memory() float64 {
	g.T.Helper()
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", g.PID()))
	if err != nil {
		g.T.Fatal(err)
	}
	return g.number(string(b), "VmRSS:") / 1024
}

func (g *gate) metric(name string) float64 {
	g.T.Helper()
	resp, err := http.Get("http://" + g.health + "/metrics")
	if err != nil {
		g.T.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		g.T.Fatal(err)
	}
	return g.number(string(b), name+" ")
}

// number is the one after a name at the beginning of a line.
func (g *gate) number(text, name string) float64 {
	g.T.Helper()
	for line := range strings.Lines(text) {
		if rest, ok := strings.CutPrefix(line, name); ok {
			v, err := strconv.ParseFloat(strings.Fields(rest)[0], 64)
			if err != nil {
				g.T.Fatal(err)
			}
			return v
		}
	}
	g.T.Fatalf("no %s", name)
	return 0
}

// ask is one request of a client that does nothing wrong.
func (g *gate) ask() {
	g.T.Helper()
	begun := time.Now()
	resp, err := g.client.Get("https://" + g.addr + "/small")
	g.asked++
	if err != nil {
		g.failed++
		g.T.Logf("beside the attack: %v", err)
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
	binary := program.Build(t)
	for _, a := range []struct {
		name    string
		args    []string
		path    string
		reasons []string // how an attacked exchange may end; "" is an answer taken whole
	}{
		// Over TLS the tool now and then sends its request line a second time, in
		// the place of a field.
		{"headers", []string{"-H", "-i", "1"}, "/slow", []string{"timeout_reading", "client_aborted", "malformed_request"}},
		{"body", []string{"-B", "-i", "1", "-s", "8192", "-x", "10"}, "/slow", []string{"timeout_reading", "client_aborted", "malformed_request"}},
		{"read", []string{"-X", "-n", "1", "-w", "512", "-y", "1024", "-z", "32"}, "/big", []string{"client_aborted"}},
	} {
		t.Run(a.name, func(t *testing.T) {
			t.Parallel()
			newGate(t, binary).attacked(a.args, a.path, a.reasons)
		})
	}
}

// attacked lets the tool work and asks beside it.
func (g *gate) attacked(args []string, path string, reasons []string) {
	t := g.T
	g.Start()
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
	g.Stop()
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
	t := g.T
	type record struct {
		Frame struct {
			Error struct{ Reason string }
			Event struct{ Count int }
		}
	}
	got := map[string]int{}
	for _, r := range program.Search[record](g.Gate, "kind == 'request' || kind == 'malformed'") {
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
	g.Run("verify")
}
