package oidcprovider

import (
	"encoding/base64"
	"encoding/json"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"testing"
)

// The provider does what the tests of the gate rely on.
func TestProvider(t *testing.T) {
	logouts := make(chan string, 4)
	app := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) { logouts <- r.FormValue("logout_token") }))
	defer app.Close()
	p := startProvider(t, options{
		Clients: []map[string]any{client("web", "web-secret", map[string]any{"backchannel_logout_uri": app.URL, "backchannel_logout_session_required": true})},
		Resources: map[string]resource{
			"https://api.example.com":    {Scope: "read write", TTL: 60},
			"https://opaque.example.com": {Format: "opaque", Scope: "read"},
		},
		TokenClaims: map[string]map[string]any{"ann": {"roles": []string{"clerk"}}},
		ACRValues:   []string{"gold"},
	})
	browser := newBrowser(t)

	t.Run("code flow", func(t *testing.T) {
		a := p.userTokens(browser, "web", "web-secret", "ann", "https://api.example.com", "read", url.Values{"acr_values": {"gold"}})
		head, body := parts(t, a.text("access_token"))
		if head["typ"] != "at+jwt" || head["kid"] != p.kids[0] || body["sub"] != "ann" || body["aud"] != "https://api.example.com" || body["acr"] != "gold" || body["scope"] != "read" {
			t.Errorf("access token %v %v", head, body)
		}
		again := url.Values{"grant_type": {"refresh_token"}, "refresh_token": {a.text("refresh_token")}}
		first := p.post("/token", "web", "web-secret", again, nil)
		if first.Status != 200 || first.text("refresh_token") == a.text("refresh_token") {
			t.Errorf("refresh: %d %v", first.Status, first.Fields)
		}
		if reuse := p.post("/token", "web", "web-secret", again, nil); reuse.Status != 400 || reuse.text("error") != "invalid_grant" {
			t.Errorf("reuse of a refresh token: %d %v", reuse.Status, reuse.Fields)
		}
		child := p.post("/token", "web", "web-secret", url.Values{"grant_type": {"refresh_token"}, "refresh_token": {first.text("refresh_token")}}, nil)
		if child.Status != 400 {
			t.Errorf("the family lives on: %d %v", child.Status, child.Fields)
		}
	})
	t.Run("opaque", func(t *testing.T) {
		token := p.clientToken("web", "web-secret", "https://opaque.example.com", "read")
		if strings.Contains(token, ".") {
			t.Fatalf("a structured token")
		}
		say := func() answer {
			return p.post("/token/introspection", "web", "web-secret", url.Values{"token": {token}}, nil)
		}
		if a := say(); a.Fields["active"] != true || a.Fields["aud"] != "https://opaque.example.com" {
			t.Errorf("introspection %v", a.Fields)
		}
		p.revoke("web", "web-secret", token)
		if a := say(); a.Fields["active"] != false {
			t.Errorf("introspection after revocation %v", a.Fields)
		}
	})
	t.Run("pushed request", func(t *testing.T) {
		a := p.post("/request", "web", "web-secret", url.Values{
			"response_type": {"code"}, "client_id": {"web"}, "redirect_uri": {redirectURI}, "scope": {"openid"}, "login_hint": {"ann"},
			"code_challenge": {"E9Melhoa2OwvFrEMTJguCHaoeK1t8URWbuGJSstw-cM"}, "code_challenge_method": {"S256"},
		}, nil)
		if a.Status != 201 {
			t.Fatalf("%d %v", a.Status, a.Fields)
		}
		if back := p.authorize(browser, url.Values{"client_id": {"web"}, "request_uri": {a.text("request_uri")}}); back.Get("code") == "" {
			t.Errorf("authorization: %v", back)
		}
	})
	t.Run("rotation", func(t *testing.T) {
		kids := p.rotate(1)
		head, _ := parts(t, p.clientToken("web", "web-secret", "https://api.example.com", "read"))
		if len(kids) != 2 || head["kid"] != kids[0] || kids[1] != p.kids[0] {
			t.Errorf("keys %v, token %v", kids, head)
		}
	})
	t.Run("faults", func(t *testing.T) {
		before := p.requests("/jwks")
		p.fault("/jwks", map[string]any{"status": 503})
		get := func() int {
			res, err := http.Get(p.issuer + "/jwks")
			if err != nil {
				t.Fatal(err)
			}
			res.Body.Close()
			return res.StatusCode
		}
		if s := get(); s != 503 {
			t.Errorf("status %d", s)
		}
		p.fault("/jwks", nil)
		if s := get(); s != 200 || p.requests("/jwks") != before+2 {
			t.Errorf("status %d, %d requests", s, p.requests("/jwks")-before)
		}
	})
	t.Run("logout", func(t *testing.T) {
		p.endSession(browser)
		head, body := parts(t, <-logouts)
		if head["typ"] != "logout+jwt" || body["sub"] != "ann" || body["sid"] == nil || body["events"] == nil {
			t.Errorf("logout token %v %v", head, body)
		}
	})
}

// parts reads a JWT without a look at its signature.
func parts(t *testing.T, token string) (head, body map[string]any) {
	t.Helper()
	p := strings.Split(token, ".")
	if len(p) != 3 {
		t.Fatalf("%d parts of a token", len(p))
	}
	for i, into := range []*map[string]any{&head, &body} {
		b, err := base64.RawURLEncoding.DecodeString(p[i])
		if err == nil {
			err = json.Unmarshal(b, into)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	return head, body
}
