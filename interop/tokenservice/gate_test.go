package tokenservice

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
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
	"testing"
	"time"
)

const (
	secret   = "fedcba9876543210fedcba9876543210"
	audience = "https://api.example.com"
	internal = "https://orders.internal"
)

// gate is the program with the token service on.
type gate struct {
	t      *testing.T
	bin    string
	dir    string
	issuer string
	client *http.Client
}

// command runs a command of the program on the gate.
func (g *gate) command(args ...string) string {
	g.t.Helper()
	out, err := exec.Command(g.bin, append(args, "-c", filepath.Join(g.dir, "gatebook.yaml"))...).Output()
	if err != nil {
		var said []byte
		if e, ok := err.(*exec.ExitError); ok {
			said = e.Stderr
		}
		g.t.Fatalf("gatebook %v: %v\n%s%s", args, err, out, said)
	}
	return string(out)
}

// newGate builds and starts the program with clients of every method; keys is
// the key set of the client that signs.
func newGate(t *testing.T, keys string) *gate {
	t.Helper()
	g := &gate{t: t, bin: filepath.Join(t.TempDir(), "gatebook"), dir: filepath.Join(t.TempDir(), "gate")}
	build := exec.Command("go", "build", "-o", g.bin, "./cmd/gatebook")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build: %v\n%s", err, out)
	}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	t.Cleanup(up.Close)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	g.issuer = "https://localhost:" + addr[strings.LastIndexByte(addr, ':')+1:]
	if out, err := exec.Command(g.bin, "init", g.dir, "--upstream", up.URL, "--issuer", "http://127.0.0.1:1", "--self-signed", "--origin", "log.example.com/test").CombinedOutput(); err != nil {
		t.Fatalf("init: %v\n%s", err, out)
	}
	g.write("secret", secret)
	g.write("keys.json", `{"keys":[`+keys+`]}`)
	g.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
issuers:
  - {name: self, issuer: %q, audiences: [%q], algorithms: [ES256]}
token_service:
  issuer: %q
  clients:
    - {id: basic, auth: client_secret_basic, secret: {file: secret}, grants: [client_credentials, token_exchange], issuers: [self], audiences: [%q, %q], scopes: [read, write], roles: [reader], offline: 1h, introspect: [%q]}
    - {id: post, auth: client_secret_post, secret: {file: secret}, grants: [client_credentials], audiences: [%q], scopes: [read]}
    - {id: signer, auth: private_key_jwt, keys: {file: keys.json}, grants: [client_credentials], audiences: [%q], scopes: [read], introspect: [%q]}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: all, path: "/{rest...}", upstream: app, authn: [{jwt: self}], scopes: [read]}
roles:
  reader: {allow: [all]}
`, addr, g.issuer, audience, g.issuer, audience, internal, audience, audience, audience, audience, up.URL))
	pool := x509.NewCertPool()
	pem, err := os.ReadFile(g.cert())
	if err != nil || !pool.AppendCertsFromPEM(pem) {
		t.Fatalf("certificate: %v", err)
	}
	g.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}, Timeout: 20 * time.Second}
	g.serve()
	return g
}

func (g *gate) cert() string { return filepath.Join(g.dir, "tls", "localhost.crt") }

func (g *gate) write(name, text string) {
	g.t.Helper()
	if err := os.WriteFile(filepath.Join(g.dir, name), []byte(text), 0o600); err != nil {
		g.t.Fatal(err)
	}
}

// serve runs the program until the test ends and returns when it serves.
func (g *gate) serve() {
	g.t.Helper()
	cmd := exec.Command(g.bin, "serve", "-c", filepath.Join(g.dir, "gatebook.yaml"))
	pipe, err := cmd.StderrPipe()
	if err != nil {
		g.t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		g.t.Fatal(err)
	}
	g.t.Cleanup(func() {
		if err := cmd.Process.Signal(os.Interrupt); err == nil {
			if err := cmd.Wait(); err != nil {
				g.t.Errorf("the gate did not end well: %v", err)
			}
		}
	})
	up := make(chan bool, 1)
	go func() {
		lines := bufio.NewScanner(pipe)
		said := ""
		for lines.Scan() {
			said += lines.Text() + "\n"
			if strings.Contains(lines.Text(), `"serving"`) {
				up <- true
			}
		}
		select {
		case up <- false:
		default:
		}
	}()
	select {
	case ok := <-up:
		if !ok {
			g.t.Fatal("the gate did not start")
		}
	case <-time.After(30 * time.Second):
		g.t.Fatal("the gate did not start within 30 s")
	}
}

// use shows a token to the gate.
func (g *gate) use(token string) int {
	g.t.Helper()
	r, err := http.NewRequest("GET", g.issuer+"/x", nil)
	if err != nil {
		g.t.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := g.client.Do(r)
	if err != nil {
		g.t.Fatal(err)
	}
	defer resp.Body.Close()
	return resp.StatusCode
}

// node is client.mjs as a child process.
type node struct {
	t   *testing.T
	in  io.Writer
	out *bufio.Scanner
}

// startNode runs client.mjs, which trusts the certificate besides its own list.
func startNode(t *testing.T, cert string) *node {
	t.Helper()
	cmd := exec.Command("node", "client.mjs")
	cmd.Env = append(os.Environ(), "NODE_EXTRA_CA_CERTS="+cert)
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatalf("%v (node is needed)", err)
	}
	t.Cleanup(func() {
		in.Close()
		if err := cmd.Wait(); err != nil {
			t.Errorf("client.mjs: %v", err)
		}
	})
	n := &node{t: t, in: in, out: bufio.NewScanner(out)}
	n.out.Buffer(nil, 1<<20)
	return n
}

// answer is what client.mjs says.
type answer map[string]any

func (a answer) text(name string) string { s, _ := a[name].(string); return s }

// ask lets client.mjs do one thing.
func (n *node) ask(op string, q map[string]any) answer {
	n.t.Helper()
	line := map[string]any{"op": op}
	for k, v := range q {
		line[k] = v
	}
	b, err := json.Marshal(line)
	if err != nil {
		n.t.Fatal(err)
	}
	if _, err := n.in.Write(append(b, '\n')); err != nil {
		n.t.Fatal(err)
	}
	if !n.out.Scan() {
		n.t.Fatalf("client.mjs said nothing: %v", n.out.Err())
	}
	var a answer
	if err := json.Unmarshal(n.out.Bytes(), &a); err != nil {
		n.t.Fatalf("%s: %v", n.out.Bytes(), err)
	}
	return a
}
