package main

import (
	"context"
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

	"github.com/rogpeppe/go-internal/testscript"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

// TestMain puts a program "gatebook", which is this test binary running main,
// in front of PATH.
func TestMain(m *testing.M) {
	// Built with the race detector, a process would rest for a second at its end.
	os.Setenv("GORACE", "atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	if raceFactor > 1 {
		// The room between two collections, which the detector multiplies, would
		// hide what a flood takes.
		os.Setenv("GOGC", "100")
	}
	testscript.Main(m, map[string]func(){"gatebook": main, "gatebook-flood": floodMain})
}

// upstreamLog is a service behind the gate that remembers what it saw.
type upstreamLog struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]int // by request id

	proofs int // credentials that came through; under mu
}

func newUpstream(t *testing.T) *upstreamLog {
	u := &upstreamLog{seen: map[string]int{}}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		u.mu.Lock()
		u.seen[r.Header.Get("X-Gatebook-Request-Id")]++
		if r.Header.Get("DPoP") != "" || r.Header.Get("Authorization") != "" || r.Header.Get("Client-Cert") != "" {
			u.proofs++
		}
		u.mu.Unlock()
		fmt.Fprintf(w, "hello from %s\n", r.URL.Path)
	}))
	t.Cleanup(u.Close)
	return u
}

// site is a gate in a folder of its own, run as a process.
type site struct {
	t          *testing.T
	dir        string
	addr       string
	cmd        *exec.Cmd
	client     *http.Client
	stderr     *output
	said       string // by the last command, on stderr
	healthAddr string
}

// output is what a process has printed so far.
type output struct {
	mu   sync.Mutex
	text []byte        // under mu
	more chan struct{} // under mu; closed at the next write, nil if nobody waits
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.text = append(o.text, b...)
	if o.more != nil {
		close(o.more)
		o.more = nil
	}
	return len(b), nil
}

// shows waits until text has been printed; false if it is not in a minute.
func (o *output) shows(text string) bool {
	late := time.After(time.Minute)
	for {
		o.mu.Lock()
		if o.more == nil {
			o.more = make(chan struct{})
		}
		found, more := strings.Contains(string(o.text), text), o.more
		o.mu.Unlock()
		if found {
			return true
		}
		select {
		case <-more:
		case <-late:
			return false
		}
	}
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.text)
}

// newSite runs "gatebook init" and opens every path to everybody.
func newSite(t *testing.T, upstream string) *site {
	t.Helper()
	s := &site{t: t, dir: filepath.Join(t.TempDir(), "gate"), addr: freeAddr(t)}
	s.run(0, "init", s.dir, "--upstream", upstream, "--issuer", "http://127.0.0.1:1", "--self-signed", "--origin", "log.example.com/test")
	s.write("gatebook.yaml", fmt.Sprintf(`
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
`, s.addr, upstream))
	if err := os.RemoveAll(filepath.Join(s.dir, "policies")); err != nil {
		t.Fatal(err)
	}
	s.write("policies/open.cedar", "@id(\"open\")\npermit (principal, action, resource);\n")
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(s.read("tls/localhost.crt"))
	s.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "localhost"}}, Timeout: 20 * time.Second}
	return s
}

func (s *site) write(name, text string) {
	s.t.Helper()
	path := filepath.Join(s.dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		s.t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		s.t.Fatal(err)
	}
}

func (s *site) read(name string) []byte {
	s.t.Helper()
	b, err := os.ReadFile(filepath.Join(s.dir, name))
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

func freeAddr(t *testing.T) string { return program.FreeAddr(t) }

// run runs a command to its end and demands its exit code.
func (s *site) run(want int, args ...string) string {
	s.t.Helper()
	cmd := exec.Command("gatebook", args...)
	var out, errs strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	s.said = errs.String()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		s.t.Fatal(err)
	}
	if got := cmd.ProcessState.ExitCode(); got != want {
		s.t.Fatalf("gatebook %s: exit code %d, want %d\n%s%s", strings.Join(args, " "), got, want, out.String(), errs.String())
	}
	return out.String()
}

// command is run with the site's configuration.
func (s *site) command(want int, args ...string) string {
	s.t.Helper()
	return s.run(want, append(args, "-c", filepath.Join(s.dir, "gatebook.yaml"))...)
}

// start runs the server and returns when it answers.
func (s *site) start() {
	s.t.Helper()
	printed := &output{}
	s.stderr = printed
	s.cmd = exec.Command("gatebook", "serve", "-c", filepath.Join(s.dir, "gatebook.yaml"))
	pipe, err := s.cmd.StderrPipe()
	if err != nil {
		s.t.Fatal(err)
	}
	if err := s.cmd.Start(); err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { s.cmd.Process.Kill() })
	up := make(chan bool, 1)
	go func() {
		buf := make([]byte, 4096)
		for {
			n, err := pipe.Read(buf)
			printed.Write(buf[:n])
			if strings.Contains(printed.String(), `"serving"`) {
				select {
				case up <- true:
				default:
				}
			}
			if err != nil {
				close(up)
				return
			}
		}
	}()
	ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
	defer cancel()
	select {
	case ok := <-up:
		if !ok {
			s.t.Fatalf("the server did not start:\n%s", s.stderr)
		}
	case <-ctx.Done():
		s.t.Fatal("the server did not start within 30 s")
	}
}

// kill ends the server with SIGKILL.
func (s *site) kill() {
	s.t.Helper()
	s.cmd.Process.Kill()
	s.cmd.Wait()
	s.client.CloseIdleConnections()
}

// stop ends the server with SIGTERM and demands that it ends well.
func (s *site) stop() {
	s.t.Helper()
	s.cmd.Process.Signal(os.Interrupt)
	if err := s.cmd.Wait(); err != nil {
		s.t.Fatalf("stop: %v\n%s", err, s.stderr)
	}
}

func (s *site) get(path string) *http.Response {
	s.t.Helper()
	resp, err := s.client.Get("https://" + s.addr + path)
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		s.t.Fatal(err)
	}
	resp.Body.Close()
	return resp
}

// frame is what tests look at in a record.
type frame struct {
	Index uint64 `json:"index"`
	Frame struct {
		ID       string `json:"id"`
		Kind     string `json:"kind"`
		Outcome  string `json:"outcome"`
		Status   int    `json:"status"`
		BytesOut int64  `json:"bytes_out"`
		Op       string `json:"op"`
		Authz    struct {
			Decision string   `json:"decision"`
			Policies []string `json:"policies"`
		} `json:"authz"`
		Error struct {
			Origin string `json:"origin"`
			Reason string `json:"reason"`
		} `json:"error"`
		Event struct {
			Name  string `json:"name"`
			Count int    `json:"count"`
		} `json:"event"`
	} `json:"frame"`
}

// search returns the records that match.
func (s *site) search(expr string) []frame {
	s.t.Helper()
	var out []frame
	dec := json.NewDecoder(strings.NewReader(s.command(0, "search", expr, "--json")))
	for {
		var f frame
		err := dec.Decode(&f)
		if err == io.EOF {
			return out
		}
		if err != nil {
			s.t.Fatal(err)
		}
		out = append(out, f)
	}
}

// One request, kill -9, restart: exactly one record, which verify accepts.
func TestOneRequestSurvivesKill(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	s.start()
	resp := s.get("/v1/orders/7")
	if resp.StatusCode != 200 {
		t.Fatalf("status %d", resp.StatusCode)
	}
	id := resp.Header.Get("X-Request-Id")
	s.kill()

	s.start()
	got := s.search(`kind == "request"`)
	if len(got) != 1 || got[0].Frame.ID != id || got[0].Frame.Status != 200 || got[0].Frame.Authz.Decision != "allow" {
		t.Fatalf("records of request %s: %+v", id, got)
	}
	if n := len(s.search(`kind == "unclean_stop"`)); n != 1 {
		t.Errorf("%d unclean_stop records", n)
	}
	s.command(0, "verify")
	s.stop()

	s.command(0, "verify")
	// Without keys, with the key that init gave out.
	s.run(0, "verify", filepath.Join(s.dir, "data"), "--key-file", filepath.Join(s.dir, "log.vkey"))
	// With the folder's own key it is not trusted further than the folder.
	s.run(12, "verify", filepath.Join(s.dir, "data"))
}
