package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// policySite is a gate whose policies look at all that they can, with policies
// to try and a decision point beside them.
func policySite(t *testing.T, upstream, point string) (*site, *jwtattack.Env) {
	t.Helper()
	s, env := identitySite(t, upstream)
	if err := os.RemoveAll(filepath.Join(s.dir, "policies")); err != nil {
		t.Fatal(err)
	}
	s.write("policies/p.cedar", `
@id("ops") permit (principal in Group::"ops", action, resource);
@id("readers") permit (principal is User, action in Action::"safe", resource)
when { context.scopes.contains("orders:read") && principal has tenant && principal.tenant == "blue" };
@id("no-admin-header") forbid (principal, action, resource) when { context.headers["x-role"].contains("admin") };
@id("stale") forbid (principal, action in Action::"unsafe", resource) when { context has auth_age && context.auth_age > 3600 };
@id("small") forbid (principal, action in Action::"unsafe", resource) unless { context has body_size && context.body_size <= 4 };
`)
	s.write("next/n.cedar", `@id("nobody-reads-7") forbid (principal, action == Action::"GET /v1/orders/{id}", resource == Route::"orders.read") when { context.params.id == "7" };
@id("all") permit (principal, action, resource);`)
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
health: {address: %q}
issuers:
  - {name: corp, issuer: %q, audiences: [%q], algorithms: [ES256], roles_claim: /roles, groups_claim: /groups, tenant_claim: /tenant, jwks: {file: jwks.json}}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: orders.read, path: "/v1/orders/{id}", methods: [GET], upstream: app, authn: [{jwt: corp}]}
  - {name: orders.write, path: "/v1/orders/{id}", methods: [POST], upstream: app, authn: [{jwt: corp}]}
  - {name: asked, path: "/v1/asked", methods: [GET], upstream: app, authn: [{jwt: corp}]}
policies: {dir: policies, headers: [x-role], shadow: {dir: next, cpu: 100}}
decision_points: {opa: {url: %q, routes: [asked], timeout: 2s}}
`, s.addr, s.health(), jwtattack.Issuer, jwtattack.Audience, upstream, point))
	name := filepath.Join(s.dir, "gatebook.yaml")
	good := string(s.read("gatebook.yaml"))
	for from, to := range map[string]string{
		"routes: [asked]":           "routes: [orders.delete]",                                  // no such route
		"routes: [asked], timeout:": "timeout: 1s}, b: {url: \"http://127.0.0.1:1/\", timeout:", // two for one route
		"dir: next":                 "dir: gone",
	} {
		s.write("gatebook.yaml", strings.Replace(good, from, to, 1))
		s.run(2, "check", name)
	}
	s.write("gatebook.yaml", good)
	s.run(0, "check", name)
	return s, env
}

// health is the address of the site's metrics.
func (s *site) health() string {
	if s.healthAddr == "" {
		s.healthAddr = freeAddr(s.t)
	}
	return s.healthAddr
}

// send makes one request and returns status and id.
func (s *site) send(method, path, token string, body io.Reader, fields ...string) (int, string) {
	s.t.Helper()
	req, err := http.NewRequest(method, "https://"+s.addr+path, body)
	if err != nil {
		s.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Add(name, value)
	}
	resp, err := s.client.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	return resp.StatusCode, resp.Header.Get("X-Request-Id")
}

// What a token, a request and the moment hold reaches the policies; each
// difference of the policies that are tried is in the book; each decision comes
// out again as it was, or is counted as one that cannot.
func TestPolicySite(t *testing.T) {
	up := newUpstream(t)
	var says atomic.Value
	says.Store(`{"decision": true}`)
	point := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, says.Load().(string))
	}))
	defer point.Close()
	s, env := policySite(t, up.URL, point.URL)
	s.start()
	ops := token(env, "ann", "x", func(c jwtattack.Object) jwtattack.Object { return c.Set("groups", `["ops", "dev"]`) })
	blue := token(env, "ben", "x", func(c jwtattack.Object) jwtattack.Object {
		return c.Set("tenant", `"blue"`).Set("scope", `"orders:read x"`)
	})
	red := token(env, "cat", "x", func(c jwtattack.Object) jwtattack.Object {
		return c.Set("tenant", `"red"`).Set("scope", `"orders:read"`)
	})
	chunked := func() io.Reader { return io.MultiReader(strings.NewReader("1234")) } // of no known length
	differ := map[string]string{}                                                    // id to what the policies to try say
	for _, c := range []struct {
		name, method, path, token string
		body                      io.Reader
		fields                    []string
		point                     string
		status                    int
		shadow                    string
	}{
		{name: "by scope and tenant", method: "GET", path: "/v1/orders/1", token: blue, status: 200},
		{name: "another tenant", method: "GET", path: "/v1/orders/1", token: red, status: 403, shadow: "allow"},
		{name: "by group, tried ones would not", method: "GET", path: "/v1/orders/7", token: ops, status: 200, shadow: "deny"},
		{name: "both deny", method: "GET", path: "/v1/orders/7", token: red, status: 403},
		{name: "a small body", method: "POST", path: "/v1/orders/1", token: ops, body: strings.NewReader("1234"), status: 200},
		{name: "a larger body", method: "POST", path: "/v1/orders/1", token: ops, body: strings.NewReader("12345"), status: 403, shadow: "allow"},
		{name: "Skipper CVE-2026-50197: a chunked body", method: "POST", path: "/v1/orders/1", token: ops, body: chunked(), status: 403, shadow: "allow"},
		{name: "Envoy CVE-2026-26308: the second value", method: "GET", path: "/v1/orders/1", token: ops, fields: []string{"X-Role: user", "X-Role: admin"}, status: 403, shadow: "allow"},
		{name: "the point allows", method: "GET", path: "/v1/asked", token: ops, point: `{"decision": true}`, status: 200},
		{name: "the point denies", method: "GET", path: "/v1/asked", token: ops, point: `{"decision": false}`, status: 403},
		{name: "the point babbles", method: "GET", path: "/v1/asked", token: ops, point: `{"decision": "true"}`, status: 503},
	} {
		if c.point != "" {
			says.Store(c.point)
		}
		status, id := s.send(c.method, c.path, c.token, c.body, c.fields...)
		if status != c.status {
			t.Errorf("%s: status %d, want %d", c.name, status, c.status)
		}
		if c.shadow != "" {
			differ[id] = c.shadow
		}
	}
	s.shadowSays(differ)
	// A point without a clear answer denies, and the record says why.
	if out := s.command(0, "count", "--by", "error.reason", `status == 503 and error.origin == "policy"`); !strings.Contains(out, "1  policy_unavailable") {
		t.Errorf("the refusal for want of a decision point: %s", out)
	}
	s.evaluates()
	s.stop()
	s.replays()
}

// shadowSays waits until every difference is in the book, once.
func (s *site) shadowSays(want map[string]string) {
	t := s.t
	t.Helper()
	type line struct {
		Frame struct {
			ID    string
			Kind  string
			Links []string
			Authz struct{ Shadow struct{ Decision string } }
		}
	}
	got := map[string]string{}
	for end := time.Now().Add(20 * time.Second); len(got) < len(want) && time.Now().Before(end); {
		clear(got)
		dec := json.NewDecoder(strings.NewReader(s.command(0, "search", `authz.shadow.decision != ""`, "--json")))
		for {
			var l line
			if err := dec.Decode(&l); err != nil {
				break
			}
			id := l.Frame.ID
			if l.Frame.Kind == "policy" {
				id = l.Frame.Links[0]
			}
			if got[id] != "" {
				t.Errorf("%s is there twice", id)
			}
			got[id] = l.Frame.Authz.Shadow.Decision
		}
	}
	if fmt.Sprint(got) != fmt.Sprint(want) {
		t.Errorf("differences %v, want %v", got, want)
	}
	resp, err := http.Get("http://" + s.healthAddr + "/metrics")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, _ := io.ReadAll(resp.Body)
	for _, line := range []string{fmt.Sprintf(`gatebook_policy_shadow_total{outcome="differ"} %d`, len(want)), `gatebook_policy_shadow_total{outcome="lost"} 0`} {
		if !strings.Contains(string(text), line) {
			t.Errorf("the metrics lack %s", line)
		}
	}
}

// evaluates asks the decision endpoint over the socket.
func (s *site) evaluates() {
	t := s.t
	t.Helper()
	client := &http.Client{Transport: &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		return admin.DialSocket(ctx, filepath.Join(s.dir, "data", "admin.sock"))
	}}}
	ask := func(method, path, body string, status int) string {
		t.Helper()
		req, _ := http.NewRequest(method, "http://admin"+path, bytes.NewReader([]byte(body)))
		req.Header.Set("Content-Type", "application/json")
		req.Header.Set("X-Request-ID", "req-1")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		text, _ := io.ReadAll(resp.Body)
		if resp.StatusCode != status || status == 200 && resp.Header.Get("X-Request-ID") != "req-1" {
			t.Errorf("%s %s: %d %v %s", method, path, resp.StatusCode, resp.Header, text)
		}
		return strings.TrimSpace(string(text))
	}
	const question = `"subject": {"type": "user", "id": "ann", "properties": {"issuer": "corp", "groups": ["ops"]}}, "action": {"name": "GET"}, "resource": {"type": "route", "id": "orders.read", "properties": {"path": "/v1/orders/7"}}`
	for _, c := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/access/v1/evaluation", "{" + question + "}", 200, `{"decision":true}`},
		{"/access/v1/evaluation", "{" + strings.Replace(question, "ops", "dev", 1) + "}", 200, `{"decision":false,"context":{"reason":"denied_by_default"}}`},
		{"/access/v1/evaluation", `{}`, 400, ``},
		{"/access/v1/evaluation", `{`, 400, ``},
		{"/access/v1/evaluations", "{" + question + "}", 200, `{"decision":true}`},
		{"/access/v1/evaluations", "{" + question + `, "evaluations": [{}, {"action": {"name": "POST"}}, {"resource": {"type": "route", "id": "asked"}}]}`, 200,
			`{"evaluations":[{"decision":true},{"decision":false,"context":{"error":{"message":"route \"orders.read\" or its method \"POST\" is not configured","status":400}}},{"decision":true}]}`},
		{"/access/v1/evaluations", "{" + question + `, "evaluations": [{}, {}], "options": {"evaluations_semantic": "permit_on_first_permit"}}`, 200, `{"evaluations":[{"decision":true}]}`},
		{"/access/v1/evaluations", "{" + strings.Replace(question, "ops", "dev", 1) + `, "evaluations": [{}, {}], "options": {"evaluations_semantic": "deny_on_first_deny"}}`, 200, `{"evaluations":[{"decision":false,"context":{"reason":"denied_by_default"}}]}`},
	} {
		if got := ask("POST", c.path, c.body, c.status); c.want != "" && got != c.want {
			t.Errorf("%s %s:\n%s, want\n%s", c.path, c.body, got, c.want)
		}
	}
	if got := ask("GET", "/.well-known/authzen-configuration", "", 200); !strings.Contains(got, `"access_evaluation_endpoint":"http://admin/access/v1/evaluation"`) {
		t.Errorf("metadata %s", got)
	}
	if n := len(s.search(`kind == "access" && event.name == "evaluate" && authz.decision != ""`)); n != 7 {
		t.Errorf("%d records of evaluations, want 7", n)
	}
}

// replays makes all decisions again from the book and the archive.
func (s *site) replays() {
	t := s.t
	t.Helper()
	var rep struct {
		Decisions  int `json:"decisions"`
		Recomputed int `json:"recomputed"`
		Flipped    int `json:"flipped"`
		Changed    int `json:"other_policies"`
		Missing    []struct {
			Why   string `json:"why"`
			Count int    `json:"count"`
		} `json:"not_recomputable"`
	}
	text := s.command(0, "policy", "replay", "--as-recorded", "--reveal", "--json")
	if err := json.Unmarshal([]byte(text), &rep); err != nil {
		t.Fatal(err)
	}
	missing := 0
	for _, m := range rep.Missing {
		missing += m.Count
		if m.Why != "the groups were not kept in the record" && m.Why != "an outside decision point took part in it" && m.Why != "the headers were not kept in the record" {
			t.Errorf("%s", m.Why)
		}
	}
	if rep.Decisions != 11 || rep.Recomputed+missing != 11 || rep.Flipped != 0 || rep.Changed != 0 {
		t.Errorf("%s", text)
	}
}
