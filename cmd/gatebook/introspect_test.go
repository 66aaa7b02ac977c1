package main

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// tokenServer answers introspection by the token's name.
type tokenServer struct {
	*httptest.Server
	audience string
	asked    atomic.Int64
	revoked  atomic.Bool // the token "good", from now on
	down     atomic.Bool
}

const tokenServerSecret = "introspection-secret-7f3a"

func newTokenServer(t *testing.T, audience string) *tokenServer {
	s := &tokenServer{audience: audience}
	s.Server = httptest.NewServer(s)
	t.Cleanup(s.Close)
	return s
}

func (s *tokenServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked.Add(1)
	id, secret, _ := r.BasicAuth()
	switch {
	case s.down.Load():
		w.WriteHeader(http.StatusServiceUnavailable)
		return
	case id != "gate" || secret != tokenServerSecret:
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	now := time.Now().Unix()
	said := map[string]any{
		"active": true, "sub": "ann", "client_id": "web", "aud": []string{s.audience}, "token_type": "Bearer", "iat": now - 60, "exp": now + 600,
		"scope": "read", "roles": []string{"clerk"}, "jti": "opaque-1",
	}
	switch r.PostFormValue("token") {
	case "good":
		if s.revoked.Load() {
			said = map[string]any{"active": false}
		}
	case "expired":
		said["iat"], said["exp"] = now-900, now-600
	case "early":
		said["nbf"] = now + 300
	case "elsewhere":
		said["aud"] = "https://other.example"
	case "foreign":
		said["iss"] = "https://evil.example"
	case "refresh":
		said["token_type"] = "refresh_token"
	case "nobody":
		delete(said, "sub")
		delete(said, "client_id")
		said["client_id"] = ""
	case "eternal":
		said["exp"] = now + 90*24*3600
	case "bound":
		said["cnf"] = map[string]string{"jkt": "0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}
	default:
		said = map[string]any{"active": false}
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(said)
}

// An opaque token from the first request to its revocation and the end of its
// issuer: who was it, what was recorded, what was written where.
func TestIntrospectionSession(t *testing.T) {
	tokens := newTokenServer(t, jwtattack.Audience)
	up := newUpstream(t)
	s := newSite(t, up.URL)
	s.write("introspect.secret", tokenServerSecret+"\n")
	config := func(more string) {
		s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
issuers:
  - {name: corp, issuer: "https://idp.example.com", audiences: [%q], clients: [web], introspection: {url: %q, client_id: gate, client_secret: {file: introspect.secret}, cache: {active: 1s, refused: 1s}}}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: all, path: "/v1/{rest...}", upstream: app, authn: [{introspect: corp}], scopes: [read]%s}
policies: {dir: policies}
`, s.addr, jwtattack.Audience, tokens.URL, up.URL, more))
	}
	config("")
	if out := s.run(0, "check", s.dir+"/gatebook.yaml"); !strings.Contains(out, "introspect corp") {
		t.Errorf("check says %s", out)
	}
	s.start()
	defer s.stop()
	get := func(token string) (*http.Response, frame) {
		t.Helper()
		req, err := http.NewRequest("GET", "https://"+s.addr+"/v1/x", nil)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		got := s.search(fmt.Sprintf("id == %q", resp.Header.Get("X-Request-Id")))
		if len(got) != 1 {
			t.Fatalf("%d records", len(got))
		}
		return resp, got[0]
	}
	until := func(token, why string) *http.Response {
		t.Helper()
		// Not faster: many refusals in a second are counted instead of written.
		for end := time.Now().Add(20 * time.Second); ; time.Sleep(200 * time.Millisecond) {
			resp, f := get(token)
			if f.Frame.Error.Reason == why {
				return resp
			}
			if time.Now().After(end) {
				t.Fatalf("reason %q, want %q", f.Frame.Error.Reason, why)
			}
		}
	}

	if resp, f := get("good"); resp.StatusCode != 200 || f.Frame.Outcome != "success" {
		t.Fatalf("status %d, %+v", resp.StatusCode, f)
	}
	line := s.command(0, "search", `personal.sub == "ann"`, "--reveal", "--json")
	for _, want := range []string{`"method":"introspect"`, `"issuer":"corp"`, `"client":"web"`} {
		if !strings.Contains(line, want) {
			t.Errorf("the record lacks %s: %s", want, line)
		}
	}
	if resp := until("unknown", "token_inactive"); resp.StatusCode != 401 {
		t.Errorf("unknown: status %d", resp.StatusCode)
	}
	tokens.revoked.Store(true)
	if resp := until("good", "token_inactive"); resp.StatusCode != 401 {
		t.Errorf("revoked: status %d", resp.StatusCode)
	}
	tokens.revoked.Store(false)
	until("good", "")
	tokens.down.Store(true)
	if resp := until("good", "issuer_unavailable"); resp.StatusCode != 503 || resp.Header.Get("WWW-Authenticate") != "" {
		t.Errorf("away: status %d, challenge %q", resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
	}
	if out := s.command(0, "status", "--json"); !strings.Contains(out, `"introspection"`) || !strings.Contains(out, "answered 503") {
		t.Errorf("status says %s", out)
	}
	tokens.down.Store(false)
	until("good", "")

	// A changed secret is picked up by a reload; a wrong one is away, not open.
	s.write("introspect.secret", "wrong\n")
	s.command(0, "reload")
	until("good", "issuer_unavailable")
	s.write("introspect.secret", tokenServerSecret)
	config(", token_max_age: 10s")
	s.command(0, "reload")
	if resp := until("good", "token_too_old"); resp.StatusCode != 401 {
		t.Errorf("too old: status %d", resp.StatusCode)
	}
	if said := s.stderr.String(); strings.Contains(said, tokenServerSecret) || strings.Contains(said, "Bearer") {
		t.Errorf("the log tells a secret:\n%s", said)
	}
}

// check --probe: what the issuers say, and whether a token from a file or from
// standard input would be taken, never one from the command line.
func TestCheckProbe(t *testing.T) {
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, "http://127.0.0.1:1")
	var issuer string
	idp := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, issuer, issuer+"/keys")
		case "/keys":
			_, _ = w.Write(env.JWKS)
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(idp.Close)
	issuer = idp.URL
	config := func(audience string) string {
		s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
issuers:
  - {name: corp, issuer: %q, audiences: [%q], algorithms: [RS256, RS384, RS512, PS256, PS384, PS512, ES256, ES384, ES512, EdDSA]}
upstreams:
  app: {targets: ["http://127.0.0.1:1"]}
routes:
  - {name: all, path: "/", upstream: app, authn: [{jwt: corp}]}
policies: {dir: policies}
`, s.addr, issuer, audience))
		return s.dir + "/gatebook.yaml"
	}
	sample := token(env, "ann", "clerk", func(c jwtattack.Object) jwtattack.Object { return c.Set("iss", fmt.Sprintf("%q", issuer)) })
	s.write("sample.token", sample+"\n")
	file := config(jwtattack.Audience)
	if out := s.run(0, "check", "--probe", file); !strings.Contains(out, "issuer corp: 11 usable keys\n") {
		t.Errorf("it says %s", out)
	}
	if out := s.run(0, "check", "--probe", "--token", s.dir+"/sample.token", file); !strings.Contains(out, "takes the sample token") {
		t.Errorf("it says %s", out)
	}
	cmd := exec.Command("gatebook", "check", "--probe", "--json", "--token", "-", file)
	cmd.Stdin = strings.NewReader("  " + sample)
	out, err := cmd.Output()
	var said struct {
		OK      bool
		Issuers []struct {
			Name   string
			Keys   int
			Sample bool
		}
	}
	if err != nil || json.Unmarshal(out, &said) != nil || !said.OK || len(said.Issuers) != 1 || !said.Issuers[0].Sample || said.Issuers[0].Keys != 11 {
		t.Errorf("%v: %s", err, out)
	}
	file = config("https://other.example")
	s.run(2, "check", "--probe", "--token", s.dir+"/sample.token", file)
	if !strings.Contains(s.said, "gatebook.yaml:9:") || !strings.Contains(s.said, "token_audience") || !strings.Contains(s.said, jwtattack.Audience) {
		t.Errorf("it says %s", s.said)
	}
	if strings.Contains(s.said, sample) {
		t.Error("the token is printed")
	}
	s.run(2, "check", "--token", s.dir+"/sample.token", file)
	s.run(2, "check", "--probe", "--token", s.dir+"/none", file)
	idp.Close()
	s.run(2, "check", "--probe", file)
	if !strings.Contains(s.said, "issuer_unavailable") {
		t.Errorf("it says %s", s.said)
	}
}
