package oidcprovider

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

// sessionGate is a gate in front of which people log in at the provider.
func sessionGate(t *testing.T, p *provider, addr func(g *program.Inner)) *program.Inner {
	g := newGate(t, fmt.Sprintf(`
issuers: [{name: op, issuer: %q, audiences: [%q], algorithms: [ES256], key_interval: 1s}]
sessions: [{name: web, issuer: op, origin: %q, client_id: gate, client_secret: {file: gate.secret}, scopes: [openid, profile, email], userinfo: true, after_logout: /bye}]
routes:
  - {name: all, path: "/v1/{rest...}", upstream: app, authn: [{session: web}]}
  - {name: gold, path: "/gold", upstream: app, authn: [{session: web}], acr: [gold]}
`, p.issuer, apiResource, program.AppOrigin))
	g.Write("gate.secret", "gate-secret\n")
	addr(g)
	g.Start()
	return g
}

// noSessions demands that nobody is logged in.
func noSessions(g *program.Inner) {
	g.T.Helper()
	var left []any
	if out := g.Run("session", "list", "--json"); json.Unmarshal(out, &left) != nil || len(left) != 0 {
		g.T.Errorf("sessions left: %s", out)
	}
}

func ask(t *testing.T, c *http.Client, method, target string, form url.Values) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest(method, target, strings.NewReader(form.Encode()))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	req.Header.Set("Origin", program.AppOrigin)
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// A browser goes through the pages of the real thing: pushed request, code,
// refreshes by many at once, a change of keys, step-up, back-channel logout.
func TestSession(t *testing.T) {
	t.Parallel()
	var gateAddr string
	// The provider tells the gate at its own address what browsers reach by name.
	relay := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		req, err := http.NewRequestWithContext(r.Context(), r.Method, "http://"+gateAddr+r.URL.Path, r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		req.Host, req.Header = "app.example.com", r.Header.Clone()
		res, err := http.DefaultTransport.RoundTrip(req)
		if err != nil {
			w.WriteHeader(502)
			return
		}
		defer res.Body.Close()
		w.WriteHeader(res.StatusCode)
		io.Copy(w, res.Body)
	}))
	t.Cleanup(relay.Close)
	p := startProvider(t, options{
		Clients: []map[string]any{client("gate", "gate-secret", map[string]any{
			"redirect_uris": []string{program.AppOrigin + "/_gatebook/callback"}, "post_logout_redirect_uris": []string{program.AppOrigin + "/bye"},
			"backchannel_logout_uri": relay.URL + "/_gatebook/backchannel-logout", "backchannel_logout_session_required": true,
		})},
		Accounts: map[string]map[string]any{"ann": {"name": "Ann"}}, ACRValues: []string{"gold"}, TTL: map[string]int{"AccessToken": 32},
	})
	g := sessionGate(t, p, func(g *program.Inner) { gateAddr = g.Addr })
	browser := g.Browser()
	stay := &http.Client{Jar: browser.Jar, Transport: browser.Transport, Timeout: browser.Timeout, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, body := ask(t, browser, "GET", program.AppOrigin+"/v1/x", nil)
	if res.StatusCode != 200 || body != "hello ann\n" {
		t.Fatalf("after the login: %d %q at %s", res.StatusCode, body, res.Request.URL)
	}
	if n := p.requests("/request"); n != 1 {
		t.Errorf("%d pushed requests", n)
	}

	// Two seconds on, the access token is due: many ask, one refreshes.
	before := p.requests("/token")
	program.Eventually(t, "somebody refreshes", func() bool {
		var wg sync.WaitGroup
		for range 64 {
			wg.Go(func() {
				if res, body := ask(t, stay, "POST", program.AppOrigin+"/v1/x", nil); res.StatusCode != 200 || body != "hello ann\n" {
					t.Errorf("%d %q", res.StatusCode, body)
				}
			})
		}
		wg.Wait()
		return p.requests("/token") > before
	})
	if n := p.requests("/token") - before; n != 1 {
		t.Errorf("%d refreshes", n)
	}

	// Another key signs; the refresh and a step-up go on.
	p.rotate(1)
	before = p.requests("/token")
	program.Eventually(t, "a refresh with the new key", func() bool {
		res, body := ask(t, stay, "POST", program.AppOrigin+"/v1/x", nil)
		if res.StatusCode != 200 && res.StatusCode != 503 { // until the key is known
			t.Fatalf("after a change of keys: %d %q", res.StatusCode, body)
		}
		return res.StatusCode == 200 && p.requests("/token") > before
	})
	if res, body := ask(t, browser, "GET", program.AppOrigin+"/gold", nil); res.StatusCode != 200 || body != "hello ann\n" {
		t.Errorf("after the step-up: %d %q at %s", res.StatusCode, body, res.Request.URL)
	}

	// Logged out at the provider, the browser has no session here a second later.
	p.endSession(browser)
	out := time.Now()
	program.Eventually(t, "the session ends", func() bool {
		res, _ := ask(t, stay, "POST", program.AppOrigin+"/v1/x", nil)
		return res.StatusCode == 401
	})
	if d := time.Since(out); d > time.Second {
		t.Errorf("the session went on for %s, %v", d, p.events())
	}
	noSessions(g)
	for _, e := range p.events() {
		if e.Event == "backchannel.error" || e.Event == "grant.error" || e.Event == "server_error" {
			t.Errorf("%+v", e)
		}
	}
}
