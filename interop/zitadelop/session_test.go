package zitadelop

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

// ask is a request of a browser; a form makes it a POST.
func ask(t *testing.T, c *http.Client, target string, form url.Values) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequest("GET", target, nil)
	if form != nil {
		req, err = http.NewRequest("POST", target, strings.NewReader(form.Encode()))
	}
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Accept", "text/html")
	if form != nil {
		req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
		req.Header.Set("Origin", req.URL.Scheme+"://"+req.URL.Host)
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

// A browser logs in at the provider's own page and comes back (authorization
// code, PKCE), goes on through refreshes with tokens that rotate, and is sent
// there again when the provider lets the session go on no longer. The gate says
// who it is by a secret, or by assertions that it signs (private_key_jwt).
func TestLogin(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{
		"gate.secret": secret + "\n", "gate.pem": string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})),
	}
	for _, c := range []struct{ client, auth string }{
		{"web", "client_secret: {file: gate.secret}"},
		{"keyed", "auth: private_key_jwt, private_key: gate.pem, key_id: g1"},
	} {
		t.Run(c.client, func(t *testing.T) {
			i := newIssuer(t)
			i.store.life = 32 * time.Second // a refresh is due two seconds later
			i.store.clientKeys["keyed"] = &key.PublicKey
			g := startGate(t, fmt.Sprintf(`
issuers: [{name: op, issuer: %q, audiences: [%q], types: [JWT], algorithms: [RS256], key_interval: 1s}]
sessions: [{name: web, issuer: op, origin: %q, client_id: %s, %s, scopes: [openid, profile, email, offline_access], userinfo: true}]
routes: [{name: all, path: "/v1/{rest...}", upstream: app, authn: [{session: web}]}]
`, i.url, apiAudience, program.AppOrigin, c.client, c.auth), files)
			i.login(t, g, c.client)
		})
	}
}

func (i *issuer) login(t *testing.T, g *program.Inner, client string) {
	browser := g.Browser()
	res, page := ask(t, browser, program.AppOrigin+"/v1/x", nil)
	request := res.Request.URL.Query().Get("authRequestID")
	if !strings.HasPrefix(res.Request.URL.String(), i.url+"/login/username?") || request == "" {
		t.Fatalf("no login page: %d %s at %s", res.StatusCode, page, res.Request.URL)
	}
	enter := func(password string) (*http.Response, string) {
		return ask(t, browser, i.url+"/login/username", url.Values{"id": {request}, "username": {personName}, "password": {password}})
	}
	if res, _ := enter("wrong"); !strings.HasPrefix(res.Request.URL.String(), i.url+"/login/") {
		t.Fatalf("a wrong password leads to %s", res.Request.URL)
	}
	if res, body := enter(password); res.StatusCode != 200 || body != "hello "+person+"\n" || res.Request.URL.Path != "/v1/x" {
		t.Fatalf("after the login: %d %q at %s", res.StatusCode, body, res.Request.URL)
	}

	post := func() int {
		res, body := ask(t, browser, program.AppOrigin+"/v1/x", url.Values{"a": {"b"}})
		if res.StatusCode == 200 && body != "hello "+person+"\n" {
			t.Fatalf("%q", body)
		}
		return res.StatusCode
	}
	for range 2 {
		before := i.store.refreshed()
		i.rotate(1)
		program.Eventually(t, "a refresh with a new key", func() bool {
			if status := post(); status != 200 && status != 503 { // until the key is known
				t.Fatalf("status %d", status)
			}
			return i.store.refreshed() > before && post() == 200
		})
	}
	if err := i.store.TerminateSession(t.Context(), person, client); err != nil {
		t.Fatal(err)
	}
	program.Eventually(t, "the session ends with what the provider granted", func() bool { return post() == 401 })
	if res, _ := ask(t, browser, program.AppOrigin+"/v1/x", nil); !strings.HasPrefix(res.Request.URL.String(), i.url+"/login/") {
		t.Errorf("not sent to another login but to %s", res.Request.URL)
	}
}
