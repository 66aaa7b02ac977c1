package backends

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// account is what the thing under test says of one request that it got.
type account struct {
	id        string
	kind      string // as in a record
	status    int
	reason    string
	method    string
	host      string // "" if the account does not tell
	path      string // "" if the account does not tell
	query     string
	subject   bool // somebody was authenticated
	forwarded bool
	upstream  int   // the origin's status
	in        int64 // bytes of the body
	from      string
}

// gate is the program with a book, in a folder of its own.
type gate struct {
	t       *testing.T
	program string
	dir     string
	cmd     *exec.Cmd
	open    map[string]string // origin: address without TLS
	secure  map[string]string // origin: address with TLS
	token   string            // that the guarded route takes
}

// newGate has two listeners for each origin, and the same routes behind each
// pair: one for each form of a path, a guarded one, and for the folders named
// admin one that takes no method that is ever sent.
func newGate(t *testing.T, all []*origin) *gate {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	g := &gate{t: t, program: filepath.Join(t.TempDir(), "gatebook"), dir: filepath.Join(t.TempDir(), "gate"), open: map[string]string{}, secure: map[string]string{}}
	now := time.Now().Unix()
	g.token = env.Token("ES256", jwtattack.Header("ES256"), jwtattack.Claims().Set("iat", fmt.Sprint(now-60)).Set("exp", fmt.Sprint(now+3000)))
	build := exec.Command("go", "build", "-o", g.program, "./cmd/gatebook")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	g.run("init", g.dir, "--upstream", "http://127.0.0.1:1", "--issuer", "http://127.0.0.1:1", "--self-signed", "--origin", "log.example.com/test")
	g.write("jwks.json", string(env.JWKS))
	g.configure(all)
	if err := os.RemoveAll(filepath.Join(g.dir, "policies")); err != nil {
		t.Fatal(err)
	}
	g.write("policies/open.cedar", "@id(\"open\")\npermit (principal, action, resource);\n")
	return g
}

func (g *gate) configure(all []*origin) {
	g.t.Helper()
	var listen, upstreams, routes strings.Builder
	for _, o := range all {
		g.open[o.name], g.secure[o.name] = freeAddr(g.t), freeAddr(g.t)
		fmt.Fprintf(&listen, "  - {name: %s-open, address: %q, plaintext: behind_proxy, trusted: [192.0.2.1/32]}\n", o.name, g.open[o.name])
		fmt.Fprintf(&listen, "  - {name: %s-secure, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}\n", o.name, g.secure[o.name])
		fmt.Fprintf(&upstreams, "  %s: {targets: [\"http://%s\"], preserve_host: true, max_idle: 16, ejection: {failures: 0}, timeouts: {response: 1m}}\n", o.name, o.addr)
		route := func(name, path, rest string) {
			fmt.Fprintf(&routes, "  - {name: %s.%s, listeners: [%s-open, %s-secure], upstream: %s, path: %q, %s}\n", o.name, name, o.name, o.name, o.name, path, rest)
		}
		const methods = "methods: [GET, POST, PUT, DELETE, PATCH, OPTIONS, PROPFIND, PURGE, M-SEARCH], "
		for _, r := range routeForms {
			route(r.name, r.prefix+"/{rest...}", methods+r.rules)
			route(r.name+"-admin", r.prefix+"/admin", "methods: [NOBODY], "+r.rules)
			route(r.name+"-admins", r.prefix+"/admin/{rest...}", "methods: [NOBODY], "+r.rules)
		}
		// Records tell the hosts that some route names.
		route("named", "/named/{rest...}", "host: api.example.com, public: true")
	}
	g.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
book: {commit_timeout: 1m}
issuers:
  - {name: corp, issuer: %q, audiences: [%q], algorithms: [ES256, RS256], roles_claim: /roles, jwks: {file: jwks.json}}
listen:
%supstreams:
%sroutes:
%spolicies: {dir: policies}
`, jwtattack.Issuer, jwtattack.Audience, listen.String(), upstreams.String(), routes.String()))
}

// routeForms are the routes by the prefixes that lead to them.
var routeForms = []struct{ name, prefix, rules string }{
	{"root", "", "public: true"},
	{"strict", "/s", "public: true"},
	{"encodedslash", "/es", "public: true, path_rules: {allow: [encoded_slash]}"},
	{"semicolon", "/semi", "public: true, path_rules: {allow: [semicolon]}"},
	{"empty", "/empty", "public: true, path_rules: {allow: [empty_segment]}"},
	{"percent", "/pct", "public: true, path_rules: {allow: [percent]}"},
	{"every", "/all", "public: true, path_rules: {allow: [encoded_slash, semicolon, empty_segment, percent]}"},
	{"observed", "/obs", "public: true, path_rules: {strict: observe}"},
	{"guarded", "/jwt", "authn: [{jwt: corp}], path_rules: {allow: [encoded_slash, semicolon, empty_segment, percent]}"},
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
	up := make(chan string, 1)
	go func() {
		defer close(up)
		var text strings.Builder
		for sc := bufio.NewScanner(pipe); sc.Scan(); {
			if fmt.Fprintln(&text, sc.Text()); strings.Contains(sc.Text(), `"serving"`) {
				up <- ""
				for sc.Scan() { // so that it never waits for us
				}
				return
			}
		}
		up <- text.String()
	}()
	select {
	case text := <-up:
		if text != "" {
			g.t.Fatalf("the gate did not start:\n%s", text)
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

// accounts reads the book, what identifies people included, in the order in
// which the records were made.
func (g *gate) accounts() []account {
	g.t.Helper()
	config := filepath.Join(g.dir, "gatebook.yaml")
	out := g.run("search", "kind == 'request' || kind == 'malformed'", "--json", "--reveal", "-c", config)
	var all []account
	for line := range bytes.Lines(out) {
		var r struct {
			Frame struct {
				ID, Kind, Method, Host string
				Status                 int
				UpstreamStatus         int   `json:"upstream_status"`
				BytesIn                int64 `json:"bytes_in"`
				Error                  struct{ Reason string }
				Authn                  struct{ Outcome string }
				Upstream               struct{ Name string }
				Event                  struct{ Count int64 }
			}
			Personal struct{ IP, Path, Query string }
		}
		if err := json.Unmarshal(line, &r); err != nil {
			g.t.Fatalf("%v: %s", err, line)
		}
		f := r.Frame
		if f.Event.Count > 1 {
			g.t.Errorf("a record that stands for %d: %s", f.Event.Count, line)
		}
		all = append(all, account{
			id: f.ID, kind: f.Kind, status: f.Status, reason: f.Error.Reason, method: f.Method, host: f.Host, path: r.Personal.Path, query: r.Personal.Query,
			subject: f.Authn.Outcome == "ok", forwarded: f.Upstream.Name != "", upstream: f.UpstreamStatus, in: f.BytesIn, from: r.Personal.IP,
		})
	}
	g.run("verify", "-c", config)
	return all
}
