package tokenservice

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

const (
	secret   = "fedcba9876543210fedcba9876543210"
	audience = "https://api.example.com"
	internal = "https://orders.internal"
)

// gate is one with the token service on.
type gate struct {
	*program.Gate
	issuer string
	client *http.Client
}

var binary program.Shared

func TestMain(m *testing.M) { binary.Main(m) }

// newGate starts a gate with clients of every method; keys is the key set of the
// client that signs.
func newGate(t *testing.T, keys string) *gate {
	t.Helper()
	g := &gate{Gate: program.NewGate(t, binary.Path(t))}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	t.Cleanup(up.Close)
	addr := program.FreeAddr(t)
	g.issuer = "https://localhost:" + addr[strings.LastIndexByte(addr, ':')+1:]
	g.Write("secret", secret)
	g.Write("keys.json", `{"keys":[`+keys+`]}`)
	g.Configure(fmt.Sprintf(`
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
	g.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: g.Roots()}, ForceAttemptHTTP2: true}, Timeout: 20 * time.Second}
	g.Start()
	return g
}

// use shows a token to the gate.
func (g *gate) use(token string) int {
	g.T.Helper()
	r, err := http.NewRequest("GET", g.issuer+"/x", nil)
	if err != nil {
		g.T.Fatal(err)
	}
	r.Header.Set("Authorization", "Bearer "+token)
	resp, err := g.client.Do(r)
	if err != nil {
		g.T.Fatal(err)
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
