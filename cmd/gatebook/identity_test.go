package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// identitySite is a gate with one issuer, two roles, a limit and an upstream
// that is down.
func identitySite(t *testing.T, upstream string) (*site, *jwtattack.Env) {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	s := newSite(t, upstream)
	s.write("jwks.json", string(env.JWKS))
	if err := os.Remove(filepath.Join(s.dir, "policies/open.cedar")); err != nil {
		t.Fatal(err)
	}
	s.write("policies/office.cedar", `
@id("night-freeze")
forbid (principal, action, resource == Route::"orders.write")
when { context.path like "*/frozen" };
`)
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
issuers:
  - {name: corp, issuer: %q, audiences: [%q], algorithms: [ES256, RS256], roles_claim: /roles, jwks: {file: jwks.json}}
upstreams:
  app: {targets: [%q]}
  gone: {targets: ["http://%s"]}
routes:
  - {name: orders.read, path: "/v1/orders/{id}", methods: [GET], upstream: app, authn: [{jwt: corp}]}
  - {name: orders.write, path: "/v1/orders/{id}", methods: [POST], upstream: app, authn: [{jwt: corp}], audit: {commit: durable}, max_body: 1KiB}
  - {name: reports, path: "/v1/reports", methods: [GET], upstream: gone, authn: [{jwt: corp}]}
  - {name: burst, path: "/v1/burst", methods: [GET], upstream: app, authn: [{jwt: corp}], limits: [slow]}
  - {name: scoped, path: "/v1/scoped", methods: [GET], upstream: app, authn: [{jwt: corp}], scopes: ["admin:all"]}
limits:
  slow: {key: subject, rate: 1/h, burst: 2}
roles:
  clerk: {allow: ["orders.read", reports, burst, scoped]}
  manager: {allow: ["orders.*"]}
policies: {dir: policies}
`, s.addr, jwtattack.Issuer, jwtattack.Audience, upstream, freeAddr(t)))
	s.run(0, "check", filepath.Join(s.dir, "gatebook.yaml"))
	return s, env
}

// token is a genuine token of now with changes.
func token(env *jwtattack.Env, sub, role string, change func(c jwtattack.Object) jwtattack.Object) string {
	now := time.Now().Unix()
	c := jwtattack.Claims().Set("iat", fmt.Sprint(now-5)).Set("exp", fmt.Sprint(now+300)).
		Set("sub", fmt.Sprintf("%q", sub)).Set("roles", fmt.Sprintf("[%q]", role)).Del("nbf").Del("auth_time")
	if change != nil {
		c = change(c)
	}
	return env.Token("ES256", jwtattack.Header("ES256"), c)
}

// Every decision is answered, recorded and explained the same way.
func TestIdentityDecisions(t *testing.T) {
	up := newUpstream(t)
	s, env := identitySite(t, up.URL)
	s.start()
	defer s.stop()
	clerk, manager := token(env, "ann", "clerk", nil), token(env, "max", "manager", nil)
	expired := token(env, "ann", "clerk", func(c jwtattack.Object) jwtattack.Object {
		return c.Set("iat", fmt.Sprint(time.Now().Unix()-900)).Set("exp", fmt.Sprint(time.Now().Unix()-600))
	})
	otherAud := token(env, "ann", "clerk", func(c jwtattack.Object) jwtattack.Object { return c.Set("aud", `"https://other.example"`) })
	otherIss := token(env, "ann", "clerk", func(c jwtattack.Object) jwtattack.Object { return c.Set("iss", `"https://evil.example"`) })
	for _, row := range []struct {
		name, method, path, token string
		extra                     []string // further header lines "name: value"
		body                      string
		status                    int
		reason                    string
		challenge                 string // prefix of WWW-Authenticate
		upstream                  bool
	}{
		{name: "allowed by role", method: "GET", path: "/v1/orders/7", token: clerk, status: 200, upstream: true},
		{name: "no credential", method: "GET", path: "/v1/orders/7", status: 401, reason: "no_credential", challenge: "Bearer "},
		{name: "denied by default", method: "POST", path: "/v1/orders/7", token: clerk, status: 403, reason: "denied_by_default"},
		{name: "written durably", method: "POST", path: "/v1/orders/7", token: manager, body: "{}", status: 200, upstream: true},
		{name: "forbidden", method: "POST", path: "/v1/orders/frozen", token: manager, status: 403, reason: "denied_by_policy"},
		{name: "expired", method: "GET", path: "/v1/orders/7", token: expired, status: 401, reason: "token_expired", challenge: `Bearer `},
		{name: "wrong audience", method: "GET", path: "/v1/orders/7", token: otherAud, status: 401, reason: "token_audience"},
		{name: "wrong issuer", method: "GET", path: "/v1/orders/7", token: otherIss, status: 401, reason: "token_issuer"},
		{name: "broken signature", method: "GET", path: "/v1/orders/7", token: clerk[:len(clerk)-4] + "AAAA", status: 401, reason: "token_signature"},
		{name: "not a token", method: "GET", path: "/v1/orders/7", token: "nonsense", status: 401, reason: "token_malformed"},
		{name: "two credentials", method: "GET", path: "/v1/orders/7", token: clerk, extra: []string{"Authorization: Bearer " + manager}, status: 400, reason: "two_credentials"},
		{name: "no route", method: "GET", path: "/v2/orders/7", token: clerk, status: 404, reason: "no_route"},
		{name: "wrong method", method: "DELETE", path: "/v1/orders/7", token: manager, status: 405, reason: "method_not_allowed"},
		{name: "scope missing", method: "GET", path: "/v1/scoped", token: clerk, status: 403, reason: "scope_missing"},
		{name: "body too large", method: "POST", path: "/v1/orders/8", token: manager, body: strings.Repeat("x", 2000), status: 413, reason: "body_too_large"},
		{name: "encoded slash", method: "GET", path: "/v1/orders/7%2F..%2F8", token: clerk, status: 400, reason: "bad_path"},
		{name: "dot segments", method: "GET", path: "/v1/orders/../orders/7", token: clerk, status: 400, reason: "bad_path"},
		{name: "upstream down", method: "GET", path: "/v1/reports", token: clerk, status: 502, reason: "connect_refused"},
		{name: "burst 1", method: "GET", path: "/v1/burst", token: clerk, status: 200, upstream: true},
		{name: "burst 2", method: "GET", path: "/v1/burst", token: clerk, status: 200, upstream: true},
		{name: "throttled", method: "GET", path: "/v1/burst", token: clerk, status: 429, reason: "rate_limited"},
	} {
		t.Run(row.name, func(t *testing.T) {
			req, err := http.NewRequest(row.method, "https://"+s.addr+"/", strings.NewReader(row.body))
			if err != nil {
				t.Fatal(err)
			}
			req.URL.Opaque = row.path // as it is, not cleaned
			if row.token != "" {
				req.Header.Add("Authorization", "Bearer "+row.token)
			}
			for _, h := range row.extra {
				name, value, _ := strings.Cut(h, ": ")
				req.Header.Add(name, value)
			}
			resp, err := s.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			id := resp.Header.Get("X-Request-Id")
			if resp.StatusCode != row.status {
				t.Errorf("status %d, want %d: %s", resp.StatusCode, row.status, body)
			}
			if !strings.HasPrefix(resp.Header.Get("WWW-Authenticate"), row.challenge) {
				t.Errorf("challenge %q", resp.Header.Get("WWW-Authenticate"))
			}
			if row.reason != "" && strings.Contains(string(body), row.reason) {
				t.Errorf("the answer tells the exact reason: %s", body)
			}
			up.mu.Lock()
			seen := up.seen[id]
			up.mu.Unlock()
			if (seen == 1) != row.upstream || seen > 1 {
				t.Errorf("the upstream saw it %d times", seen)
			}
			got := s.search(fmt.Sprintf("id == %q", id))
			if len(got) != 1 {
				t.Fatalf("%d records of %s", len(got), id)
			}
			f := got[0].Frame
			if f.Status != row.status || f.Error.Reason != row.reason {
				t.Errorf("recorded status %d reason %q, want %d %q", f.Status, f.Error.Reason, row.status, row.reason)
			}
			if want := map[bool]string{true: "success", false: "failure"}[row.reason == ""]; f.Outcome != want {
				t.Errorf("recorded outcome %q, want %q", f.Outcome, want)
			}
		})
	}
	t.Run("secrets and people", func(t *testing.T) { secretsAndPeople(t, s, clerk) })
}

// secretsAndPeople looks for what must not be readable, and for what must be.
func secretsAndPeople(t *testing.T, s *site, clerk string) {
	plain := s.command(0, "search", `subject != "none"`, "--json")
	for _, word := range []string{"ann", "127.0.0.1\"", "/v1/orders/7", clerk, "Bearer"} {
		if strings.Contains(plain, word) {
			t.Errorf("frames hold %q", word)
		}
	}
	var m struct {
		Frame struct {
			ID    string `json:"id"`
			Authn struct {
				Roles []string `json:"roles"`
				KID   string   `json:"kid"`
			} `json:"authn"`
		} `json:"frame"`
		Personal map[string]any `json:"personal"`
	}
	line, _, _ := strings.Cut(s.command(0, "search", `personal.sub == "ann" && status == 200`, "--reveal", "--json"), "\n")
	if err := json.Unmarshal([]byte(line), &m); err != nil {
		t.Fatalf("%v: %s", err, line)
	}
	if m.Personal["sub"] != "ann" || m.Personal["path"] != "/v1/orders/7" || m.Personal["ip"] != "127.0.0.1" {
		t.Errorf("personal part %v", m.Personal)
	}
	if len(m.Frame.Authn.Roles) != 1 || m.Frame.Authn.Roles[0] != "clerk" || m.Frame.Authn.KID != "es256" {
		t.Errorf("authn %+v", m.Frame.Authn)
	}
	if n := len(s.search(`kind == "access" && event.cause == "reveal"`)); n != 1 {
		t.Errorf("%d access records of the opening", n)
	}
	proof := filepath.Join(s.dir, "x.tlog-proof")
	s.command(0, "prove", m.Frame.ID, "--reveal", "-o", proof)
	out := s.run(0, "verify", proof, "--key-file", filepath.Join(s.dir, "log.vkey"))
	if !strings.Contains(out, `"sub": "ann"`) {
		t.Errorf("the proof discloses %s", out)
	}
	s.command(3, "show", "01900000-0000-7000-8000-000000000000")
	s.command(2, "search", "status ===")
	s.command(2, "search", "secret == 1")
}
