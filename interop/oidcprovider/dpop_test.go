package oidcprovider

import (
	"bufio"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

// prover is the npm package dpop in a process of its own.
type prover struct {
	t   *testing.T
	in  io.WriteCloser
	out *bufio.Reader
}

func startProver(t *testing.T) *prover {
	t.Helper()
	cmd := exec.Command("node", "prover.mjs")
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
	late := time.AfterFunc(5*time.Minute, func() { cmd.Process.Kill() }) // whatever hangs ends the test
	t.Cleanup(func() { in.Close(); cmd.Wait(); late.Stop() })
	return &prover{t, in, bufio.NewReaderSize(out, 1<<16)}
}

func (p *prover) ask(question map[string]any) (a struct {
	Key               int
	JKT, Proof, Error string
}) {
	p.t.Helper()
	if err := json.NewEncoder(p.in).Encode(question); err != nil {
		p.t.Fatal(err)
	}
	line, err := p.out.ReadBytes('\n')
	if err != nil {
		p.t.Fatalf("the prover said nothing: %v (npm ci in this folder installs it)", err)
	}
	if err := json.Unmarshal(line, &a); err != nil || a.Error != "" {
		p.t.Fatalf("%v: %s", err, line)
	}
	return a
}

func (p *prover) key(alg string) (key int, jkt string) {
	a := p.ask(map[string]any{"cmd": "key", "alg": alg})
	return a.Key, a.JKT
}

func (p *prover) proof(key int, method, url, nonce, token string) string {
	return p.ask(map[string]any{"cmd": "proof", "key": key, "htu": url, "htm": method, "nonce": nonce, "token": token}).Proof
}

// dpopGate has routes that want proofs.
type dpopGate struct {
	*program.Gate
	addr   string
	client *http.Client
}

func startDPoPGate(t *testing.T, issuer, audience string) *dpopGate {
	t.Helper()
	g := &dpopGate{Gate: program.NewGate(t, binary.Path(t)), addr: program.FreeAddr(t)}
	up := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }))
	t.Cleanup(up.Close)
	g.Configure(fmt.Sprintf(`
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
issuers:
  - {name: op, issuer: %q, audiences: [%q], algorithms: [ES256]}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: nonce, path: "/nonce/{rest...}", upstream: app, authn: [{jwt: op}], dpop: required, dpop_nonce: true}
  - {name: bound, path: "/bound/{rest...}", upstream: app, authn: [{jwt: op}], dpop: required}
policies: {dir: policies}
dpop: {origins: ["https://%s"], algorithms: [ES256, Ed25519]}
`, g.addr, issuer, audience, up.URL, g.addr))
	g.client = &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: g.Roots(), ServerName: "localhost"}}, Timeout: 20 * time.Second}
	g.Start()
	return g
}

func (g *dpopGate) get(path, scheme, token, proof string) *http.Response {
	g.T.Helper()
	req, err := http.NewRequest("GET", "https://"+g.addr+path, nil)
	if err != nil {
		g.T.Fatal(err)
	}
	req.Header.Set("Authorization", scheme+" "+token)
	if proof != "" {
		req.Header.Set("DPoP", proof)
	}
	res, err := g.client.Do(req)
	if err != nil {
		g.T.Fatal(err)
	}
	io.Copy(io.Discard, res.Body)
	res.Body.Close()
	return res
}

// A client by other hands gets a token that another's provider binds to its
// key, and uses it here: with the nonce that each of the two asks for, under
// the algorithms that both take.
func TestDPoPEndToEnd(t *testing.T) {
	const api = "https://api.example.com"
	p := startProvider(t, options{
		Clients: []map[string]any{client("app", "app-secret", map[string]any{
			"grant_types": []string{"client_credentials"}, "response_types": []string{}, "redirect_uris": []string{}, "dpop_bound_access_tokens": true,
		})},
		Resources: map[string]resource{api: {Scope: "read", TTL: 300}}, DPoPNonce: true,
	})
	g := startDPoPGate(t, p.issuer, api)
	hands := startProver(t)
	for _, alg := range []string{"ES256", "Ed25519"} {
		t.Run(alg, func(t *testing.T) {
			key, jkt := hands.key(alg)
			token := boundToken(t, p, hands, key, api)
			url := "https://" + g.addr + "/nonce/a"
			first := g.get("/nonce/a", "DPoP", token, hands.proof(key, "GET", url, "", token))
			nonce := first.Header.Get("DPoP-Nonce")
			if first.StatusCode != 401 || nonce == "" || !strings.Contains(first.Header.Get("WWW-Authenticate"), `error="use_dpop_nonce"`) {
				t.Fatalf("without a nonce: %d %v", first.StatusCode, first.Header)
			}
			proof := hands.proof(key, "GET", url, nonce, token)
			if res := g.get("/nonce/a", "DPoP", token, proof); res.StatusCode != 200 {
				t.Fatalf("with the nonce: %d %v", res.StatusCode, res.Header)
			}
			if res := g.get("/nonce/a", "DPoP", token, proof); res.StatusCode != 401 {
				t.Errorf("the same proof again: %d", res.StatusCode)
			}
			if res := g.get("/nonce/a", "Bearer", token, ""); res.StatusCode != 401 {
				t.Errorf("as a bearer token: %d", res.StatusCode)
			}
			other, otherJKT := hands.key(alg)
			if otherJKT == jkt {
				t.Fatal("two keys are one")
			}
			if res := g.get("/bound/a", "DPoP", token, hands.proof(other, "GET", "https://"+g.addr+"/bound/a", "", token)); res.StatusCode != 401 {
				t.Errorf("with another key: %d", res.StatusCode)
			}
			for _, spelled := range []string{"/bound/%61?x=1", "/bound/a"} {
				if res := g.get(spelled, "DPoP", token, hands.proof(key, "GET", "https://"+g.addr+spelled, "", token)); res.StatusCode != 200 {
					t.Errorf("%s: %d %v", spelled, res.StatusCode, res.Header)
				}
			}
		})
	}
}

// boundToken gets a token from the provider, which asks for a nonce first.
func boundToken(t *testing.T, p *provider, hands *prover, key int, resource string) string {
	t.Helper()
	form := url.Values{"grant_type": {"client_credentials"}, "resource": {resource}, "scope": {"read"}}
	ask := func(nonce string) answer {
		return p.post("/token", "app", "app-secret", form, http.Header{"Dpop": {hands.proof(key, "POST", p.issuer+"/token", nonce, "")}})
	}
	a := ask("")
	if a.Status != 400 || a.text("error") != "use_dpop_nonce" {
		t.Fatalf("the provider wants no nonce: %d %v", a.Status, a.Fields)
	}
	a = ask(a.Header.Get("DPoP-Nonce"))
	if a.Status != 200 || a.text("token_type") != "DPoP" {
		t.Fatalf("token endpoint: %d %v", a.Status, a.Fields)
	}
	return a.text("access_token")
}
