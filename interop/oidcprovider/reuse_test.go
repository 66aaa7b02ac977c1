package oidcprovider

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/http/cookiejar"
	"net/url"
	"testing"
	"time"
)

// person is a browser that is logged in at the gate.
type person struct {
	t       *testing.T
	g       *gate
	browser *http.Client
}

// loggedIn logs ann in at a gate of its own.
func loggedIn(t *testing.T, p *provider) *person {
	t.Helper()
	g := sessionGate(t, p, func(*gate) {})
	jar, err := cookiejar.New(nil)
	if err != nil {
		t.Fatal(err)
	}
	w := &person{t: t, g: g, browser: &http.Client{Jar: jar, Transport: through{g.addr}, Timeout: time.Minute}}
	if res, body := ask(t, w.browser, "GET", appOrigin+"/v1/x", nil); res.StatusCode != 200 || body != "hello ann\n" {
		t.Fatalf("after the login: %d %q", res.StatusCode, body)
	}
	return w
}

// post is a request of a page's script, which is not sent to a login.
func (w *person) post() *http.Response {
	w.t.Helper()
	res, _ := ask(w.t, w.browser, "POST", appOrigin+"/v1/x", nil)
	return res
}

// ends waits until the session is over and checks what is said of it.
func (w *person) ends() {
	w.t.Helper()
	var last *http.Response
	eventually(w.t, "the session ends", func() bool {
		last = w.post()
		if last.StatusCode != 200 && last.StatusCode != 401 {
			w.t.Fatalf("status %d", last.StatusCode)
		}
		return last.StatusCode == 401
	})
	var r struct {
		Frame struct {
			Status  int
			Outcome string
			Authn   struct{ Method string }
			Error   struct{ Origin, Reason string }
		}
		Personal struct{ Claimed string }
	}
	out := w.g.run("search", fmt.Sprintf("id == %q", last.Header.Get("X-Request-Id")), "--reveal", "--json", "-c", w.g.config())
	if err := json.Unmarshal(out, &r); err != nil {
		w.t.Fatalf("%v: %s", err, out)
	}
	if r.Frame.Status != 401 || r.Frame.Error.Reason != "session_expired" || r.Personal.Claimed != "ann" {
		w.t.Errorf("the record of the end: %s", out)
	}
	var left []any
	if out := w.g.run("session", "list", "--json", "-c", w.g.config()); json.Unmarshal(out, &left) != nil || len(left) != 0 {
		w.t.Errorf("sessions left: %s", out)
	}
	if again := w.post(); again.StatusCode != 401 {
		w.t.Errorf("after the end: %d", again.StatusCode)
	}
}

// The refresh token of a session comes into other hands, which use it before the
// gate does, or after: either way the provider sees one token used twice and
// ends what was granted, and the gate ends the session. Until then each refresh
// of the gate brings a new token.
func TestRefreshTokenReused(t *testing.T) {
	t.Parallel()
	refresh := func(p *provider, token string) answer {
		return p.post("/token", "gate", "gate-secret", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {token}}, nil)
	}
	start := func(t *testing.T) (*provider, *person) {
		t.Parallel()
		p := startProvider(t, options{
			Clients:  []map[string]any{client("gate", "gate-secret", map[string]any{"redirect_uris": []string{appOrigin + "/_gatebook/callback"}})},
			Accounts: map[string]map[string]any{"ann": {"name": "Ann"}}, TTL: map[string]int{"AccessToken": 32},
		})
		return p, loggedIn(t, p)
	}
	t.Run("the thief is first", func(t *testing.T) {
		p, ann := start(t)
		a := refresh(p, p.steal("gate"))
		if a.Status != 200 || a.text("refresh_token") == "" {
			t.Fatalf("the thief gets nothing: %d %v", a.Status, a.Fields)
		}
		ann.ends()
		if a := refresh(p, a.text("refresh_token")); a.Status != 400 || a.text("error") != "invalid_grant" {
			t.Errorf("the thief goes on: %d %v", a.Status, a.Fields)
		}
	})
	t.Run("the thief is second", func(t *testing.T) {
		p, ann := start(t)
		stolen := p.steal("gate")
		for range 2 { // the gate goes on with what it got
			before := p.steal("gate")
			eventually(t, "the gate refreshes", func() bool {
				if res := ann.post(); res.StatusCode != 200 {
					t.Fatalf("status %d", res.StatusCode)
				}
				return p.steal("gate") != before
			})
		}
		if a := refresh(p, stolen); a.Status != 400 || a.text("error") != "invalid_grant" {
			t.Fatalf("an old token: %d %v", a.Status, a.Fields)
		}
		ann.ends()
	})
}
