package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync"
	"testing"

	"github.com/gatebook/gatebook/internal/testenv/loginop"
)

// cookieApp is an application that keeps cookies of its own, and would like to
// set the gate's.
type cookieApp struct {
	*httptest.Server
	mu   sync.Mutex
	seen []http.Header // mu
}

func newCookieApp(t *testing.T) *cookieApp {
	a := &cookieApp{}
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.seen = append(a.seen, r.Header.Clone())
		a.mu.Unlock()
		w.Header().Add("Set-Cookie", "app=1; Path=/; Secure")
		w.Header().Add("Set-Cookie", "__Host-gatebook=planted; Path=/; Secure")
		io.WriteString(w, "hello "+r.Header.Get("X-Gatebook-Subject"))
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *cookieApp) last() http.Header {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.seen[len(a.seen)-1]
}

// A person's way through login, use, a kill of the gate, step-up and three ways
// to end: what browser, application and book see.
func TestBrowserSession(t *testing.T) {
	op, app := loginop.New(t), newCookieApp(t)
	op.Person = map[string]any{"sub": "ann", "roles": []string{"clerk"}}
	s := newSite(t, app.URL)
	s.write("login.secret", loginop.Secret+"\n")
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
issuers:
  - {name: corp, issuer: %q, audiences: [api], algorithms: [ES256]}
sessions:
  - {name: web, issuer: corp, origin: "https://%s", client_id: %s, client_secret: {file: login.secret}}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: all, path: "/app/{rest...}", upstream: app, authn: [{jwt: corp}, {session: web}]}
  - {name: gold, path: "/gold/{rest...}", upstream: app, authn: [{session: web}], acr: [gold]}
policies: {dir: policies}
`, s.addr, op.URL, s.addr, loginop.ClientID, app.URL))
	if out := s.run(0, "check", s.dir+"/gatebook.yaml"); !strings.Contains(out, "session web") {
		t.Errorf("check says %s", out)
	}
	s.start()
	defer func() { s.stop() }()
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	base := "https://" + s.addr
	browser := &http.Client{Jar: jar, Transport: s.client.Transport}
	stay := &http.Client{Jar: jar, Transport: s.client.Transport, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	send := func(c *http.Client, method, path string, fields ...string) (*http.Response, string) {
		t.Helper()
		req, err := http.NewRequest(method, base+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		for i := 0; i+1 < len(fields); i += 2 {
			req.Header.Set(fields[i], fields[i+1])
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatal(err)
		}
		return resp, string(b)
	}
	recorded := func(resp *http.Response, kind, why string, status int) {
		t.Helper()
		got := s.search(fmt.Sprintf("id == %q", resp.Header.Get("X-Request-Id")))
		if len(got) != 1 || got[0].Frame.Kind != kind || got[0].Frame.Error.Reason != why || got[0].Frame.Status != status {
			t.Errorf("%s: recorded %+v, want %s %q %d", resp.Request.URL.Path, got, kind, why, status)
		}
	}
	navigate := []string{"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "document", "Accept", "text/html"}

	// Programs are told, browsers are sent to the login.
	resp, _ := send(stay, "GET", "/app/x")
	recorded(resp, "request", "no_credential", 401)
	resp, _ = send(stay, "GET", "/app/x?y=1", navigate...)
	if resp.StatusCode != 302 || resp.Header.Get("Location") != "/_gatebook/login?return=%2Fapp%2Fx%3Fy%3D1" {
		t.Errorf("%d to %q", resp.StatusCode, resp.Header.Get("Location"))
	}
	recorded(resp, "request", "no_credential", 302)
	for _, f := range [][]string{{"Sec-Fetch-Mode", "cors", "Accept", "text/html"}, {"Sec-Fetch-Mode", "navigate", "Sec-Fetch-Dest", "iframe"}, {"Accept", "application/json"}} {
		if resp, _ := send(stay, "GET", "/app/x", f...); resp.StatusCode != 401 {
			t.Errorf("%q: %d", f, resp.StatusCode)
		}
	}
	if resp, _ := send(stay, "GET", "/_gatebook/login?return=https://evil.example/"); resp.StatusCode != 400 {
		t.Errorf("open redirect: %d to %q", resp.StatusCode, resp.Header.Get("Location"))
	}

	resp, body := send(browser, "GET", "/app/x?y=1", navigate...)
	if resp.StatusCode != 200 || body != "hello ann" || resp.Request.URL.Path != "/app/x" {
		t.Fatalf("after the login: %d %q at %s", resp.StatusCode, body, resp.Request.URL)
	}
	if got := s.search(`kind == "session" && event.name == "session_login"`); len(got) != 1 || got[0].Frame.Status != 302 {
		t.Errorf("the login is recorded as %+v", got)
	}
	line := s.command(0, "search", `personal.sub == "ann" && kind == "request"`, "--reveal", "--json")
	for _, want := range []string{`"method":"session"`, `"session":"`} {
		if !strings.Contains(line, want) {
			t.Errorf("the record lacks %s: %s", want, line)
		}
	}

	// The application sees its own cookies and none of the gate's.
	u, _ := url.Parse(base)
	cookieOf := func() (value string) {
		for _, c := range jar.Cookies(u) {
			if c.Name == "__Host-gatebook" {
				value = c.Value
			}
		}
		return value
	}
	id := cookieOf()
	if len(id) != 48 {
		t.Fatalf("session cookie %q", id)
	}
	send(browser, "GET", "/app/x")
	if h := app.last(); h.Get("Cookie") != "app=1" {
		t.Errorf("the application got the cookies %q", h["Cookie"])
	}

	// Nothing changes anything without the browser's word on where it comes from.
	resp, _ = send(stay, "POST", "/app/x")
	recorded(resp, "request", "cross_site", 403)
	if resp, _ := send(stay, "POST", "/app/x", "Origin", base); resp.StatusCode != 200 {
		t.Errorf("of its own origin: %d", resp.StatusCode)
	}

	// A kill ends no session.
	s.kill()
	s.start()
	if resp, body := send(stay, "GET", "/app/x"); resp.StatusCode != 200 || body != "hello ann" {
		t.Errorf("after a kill: %d %q", resp.StatusCode, body)
	}

	// Step-up: a program is told what is missing, a browser gets it.
	resp, _ = send(stay, "GET", "/gold/x")
	recorded(resp, "request", "stepup_required", 401)
	if c := resp.Header.Get("WWW-Authenticate"); !strings.Contains(c, `acr_values="gold"`) {
		t.Errorf("challenge %q", c)
	}
	if resp, body := send(browser, "GET", "/gold/x", navigate...); resp.StatusCode != 200 || body != "hello ann" {
		t.Errorf("after the step-up: %d %q", resp.StatusCode, body)
	}
	if cookieOf() == id {
		t.Error("the id stays over a step-up")
	}

	// The issuer ends the session, hot as it is.
	form := url.Values{"logout_token": {op.LogoutToken(nil)}}
	lo, err := s.client.PostForm(base+"/_gatebook/backchannel-logout", form)
	if err != nil {
		t.Fatal(err)
	}
	lo.Body.Close()
	recorded(lo, "session", "", 200)
	resp, _ = send(stay, "GET", "/app/x")
	recorded(resp, "request", "session_expired", 401)
	if cookieOf() != "" {
		t.Error("the browser keeps the cookie of a session that is over")
	}
	lo, err = s.client.PostForm(base+"/_gatebook/backchannel-logout", form)
	if err != nil {
		t.Fatal(err)
	}
	lo.Body.Close()
	recorded(lo, "session", "token_replayed", 400)

	// The person ends it.
	send(browser, "GET", "/app/x", navigate...)
	if resp, body := send(stay, "GET", "/_gatebook/logout", navigate...); resp.StatusCode != 200 || !strings.Contains(body, `method="post"`) || cookieOf() == "" {
		t.Errorf("the question: %d %s", resp.StatusCode, body)
	}
	resp, _ = send(stay, "POST", "/_gatebook/logout", "Sec-Fetch-Site", "cross-site")
	recorded(resp, "session", "cross_site", 403)
	resp, _ = send(stay, "POST", "/_gatebook/logout", "Origin", base)
	recorded(resp, "session", "", 303)
	if to := resp.Header.Get("Location"); !strings.HasPrefix(to, op.URL+"/end?") || !strings.Contains(to, "id_token_hint=") || cookieOf() != "" {
		t.Errorf("logout leads to %q", to)
	}

	// An administrator ends it.
	send(browser, "GET", "/app/x", navigate...)
	var list []struct{ Hash, Subject, Session string }
	if err := json.Unmarshal([]byte(s.command(0, "session", "list", "--json")), &list); err != nil || len(list) != 1 || list[0].Session != "web" || len(list[0].Hash) != 22 {
		t.Fatalf("%v %+v", err, list)
	}
	if strings.Contains(s.command(0, "session", "list"), "ann") {
		t.Error("the list names the person")
	}
	s.command(2, "session", "revoke")
	if out := s.command(0, "session", "revoke", "--subject", list[0].Subject); !strings.Contains(out, "ended: 1") {
		t.Errorf("revoke says %s", out)
	}
	if got := s.search(`kind == "admin" && event.name == "session_revoke"`); len(got) != 1 {
		t.Errorf("recorded %+v", got)
	}
	resp, _ = send(stay, "GET", "/app/x")
	recorded(resp, "request", "session_expired", 401)

	all := s.command(0, "search", "true", "--reveal", "--json") + s.stderr.String()
	for _, secret := range []string{id, loginop.Secret, "refresh-", "access-", "code=", "state="} {
		if strings.Contains(all, secret) {
			t.Errorf("the book or the log tells %q", secret)
		}
	}
}
