package oidcprovider

import (
	"fmt"
	"net/http"
	"net/url"
	"testing"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

// person is a browser that is logged in at the gate.
type person struct {
	t       *testing.T
	g       *program.Inner
	browser *http.Client
}

// loggedIn logs ann in at a gate of its own.
func loggedIn(t *testing.T, p *provider) *person {
	t.Helper()
	g := sessionGate(t, p, func(*program.Inner) {})
	w := &person{t: t, g: g, browser: g.Browser()}
	if res, body := ask(t, w.browser, "GET", program.AppOrigin+"/v1/x", nil); res.StatusCode != 200 || body != "hello ann\n" {
		t.Fatalf("after the login: %d %q", res.StatusCode, body)
	}
	return w
}

// post is a request of a page's script, which is not sent to a login.
func (w *person) post() *http.Response {
	w.t.Helper()
	res, _ := ask(w.t, w.browser, "POST", program.AppOrigin+"/v1/x", nil)
	return res
}

// ends waits until the session is over and checks what is said of it.
func (w *person) ends() {
	w.t.Helper()
	var last *http.Response
	program.Eventually(w.t, "the session ends", func() bool {
		last = w.post()
		if last.StatusCode != 200 && last.StatusCode != 401 {
			w.t.Fatalf("status %d", last.StatusCode)
		}
		return last.StatusCode == 401
	})
	type record struct {
		Frame struct {
			Status int
			Error  struct{ Reason string }
		}
		Personal struct{ Claimed string }
	}
	found := program.Search[record](w.g.Gate, fmt.Sprintf("id == %q", last.Header.Get("X-Request-Id")), "--reveal")
	if len(found) != 1 || found[0].Frame.Status != 401 || found[0].Frame.Error.Reason != "session_expired" || found[0].Personal.Claimed != "ann" {
		w.t.Errorf("the record of the end: %+v", found)
	}
	noSessions(w.g)
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
			Clients:  []map[string]any{client("gate", "gate-secret", map[string]any{"redirect_uris": []string{program.AppOrigin + "/_gatebook/callback"}})},
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
			program.Eventually(t, "the gate refreshes", func() bool {
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
