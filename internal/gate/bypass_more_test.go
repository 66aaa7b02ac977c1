package gate

import (
	"fmt"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/upstream"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// parallelCredentials: many tokens at once, and everybody gets the answer to
// their own.
func parallelCredentials(t *testing.T, h *bypassHouse) {
	j := h.issuer(jwtattack.Issuer, filepath.Join(h.policies, "jwks.json"))
	type ask struct{ token, sub string }
	var asks []ask
	for i := range 32 {
		sub := fmt.Sprintf("user-%d", i)
		good := h.token(sub, "clerk")
		asks = append(asks, ask{good, sub}, ask{good[:len(good)-4] + "AAAA", ""}, ask{h.tokenWith(sub, []string{"clerk"}, func(o jwtattack.Object) jwtattack.Object {
			return o.Set("exp", fmt.Sprint(jwtattack.Now.Unix()-1000)).Set("iat", fmt.Sprint(jwtattack.Now.Unix()-1100))
		}), ""})
	}
	// No more wait for the first fetch of keys than may.
	if _, err := j.Authenticate(t.Context(), requestWith("authorization", "Bearer "+asks[0].token)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 4 {
		for _, a := range asks {
			wg.Go(func() {
				r := requestWith("authorization", "Bearer "+a.token)
				p, err := j.Authenticate(t.Context(), r)
				if (err == nil) != (a.sub != "") || err == nil && p.Subject != a.sub {
					t.Errorf("%s: %v %v", a.sub, p, err)
				}
			})
		}
	}
	wg.Wait()
}

// secretsMissing: what is not there denies, and what is refused tells nobody
// the credential.
func secretsMissing(t *testing.T, h *bypassHouse) {
	for _, change := range []func(c *authn.JWTConfig){
		func(c *authn.JWTConfig) { c.Audiences = nil }, func(c *authn.JWTConfig) { c.Audiences = []string{""} },
		func(c *authn.JWTConfig) { c.Issuer = "" }, func(c *authn.JWTConfig) { c.Algorithms = nil }, func(c *authn.JWTConfig) { c.Algorithms = []string{"none"} },
	} {
		c := authn.JWTConfig{Name: "corp", Issuer: jwtattack.Issuer, Audiences: []string{jwtattack.Audience}, Algorithms: jwtattack.Algorithms, Keys: authn.KeySource{File: filepath.Join(h.policies, "jwks.json")}}
		if change(&c); !refusesJWT(c) {
			t.Errorf("accepted: %+v", c)
		}
	}
	// A huge credential is read no further than heads go.
	h.try(t, attempt{raw: "GET /private/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + strings.Repeat("x", 40<<10) + "\r\n\r\n", want: "header_too_large"})
	h.try(t, attempt{raw: "GET /private/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + strings.Repeat("x", 20<<10) + "\r\n\r\n", want: "token_malformed"})
	for _, target := range []string{"/nowhere", "/admin", "/private/frozen-x", "/v1/users//secrets"} { // judge looks for tokens in answers
		h.try(t, attempt{raw: "GET " + target + " HTTP/1.1\r\nHost: localhost\r\nCLERK\r\n", want: "no_route|denied_by_default|denied_by_policy|bad_path"})
	}
}

func refusesJWT(c authn.JWTConfig) bool {
	_, err := authn.NewJWT(c)
	return err != nil
}

// absentClaims: a header that is set from a claim is not the client's when the
// claim is absent.
func absentClaims(t *testing.T, h *bypassHouse) {
	tok := h.tokenWith("alice", []string{"clerk"}, func(o jwtattack.Object) jwtattack.Object { return o.Del("client_id") })
	for _, line := range fieldLines("evil-value", "X-Gatebook-Client", "x-gatebook-client", "X-Gatebook-Tenant", "X-Gatebook-Email", "X-Gatebook-Groups") {
		o := h.try(t, attempt{raw: "GET /private/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + tok + "\r\n" + line + "\r\n\r\n", safe: noValue("evil-value")})
		if len(o.seen) == 1 && len(o.seen[0].header["X-Gatebook-Client"]) != 0 {
			t.Errorf("the upstream is told a client that the token does not name: %v", o.seen[0].header)
		}
	}
	for _, a := range withFields("", "/public/x", "", noValue("evil-value"), fieldLines("evil-value", "X-Gatebook-Subject", "X-Gatebook-Roles", "X-Gatebook-Issuer")...) { // nobody is authenticated here
		h.try(t, a)
	}
}

// unreadableKeys: keys and authorities that cannot be read let nobody in.
func unreadableKeys(t *testing.T, h *bypassHouse) {
	for _, text := range []string{"", "{}", `{"keys":[]}`, "not json", `{"keys":[{"kty":"oct","k":"c2VjcmV0","alg":"HS256","kid":"es256"}]}`} {
		file := filepath.Join(t.TempDir(), "jwks.json")
		h.write(file, text)
		j := h.issuer(jwtattack.Issuer, file)
		if p, err := j.Authenticate(t.Context(), requestWith("authorization", "Bearer "+h.token("root", "root"))); err == nil || p != nil {
			t.Errorf("with the key set %q: %v", text, p)
		}
	}
	j := h.issuer(jwtattack.Issuer, filepath.Join(t.TempDir(), "nothing.json"))
	if p, err := j.Authenticate(t.Context(), requestWith("authorization", "Bearer "+h.token("root", "root"))); err == nil {
		t.Errorf("without a key set: %v", p)
	}
	for _, file := range []string{filepath.Join(t.TempDir(), "nothing.pem"), filepath.Join(h.policies, "jwks.json")} {
		if _, err := upstream.NewPool(upstream.Config{Name: "app", Targets: []string{"https://127.0.0.1:1"}, CAFile: file}); err == nil {
			t.Errorf("the authority %s is accepted", file)
		}
	}
	if _, err := authz.Load(authz.Config{Dir: filepath.Join(t.TempDir(), "nothing")}); err == nil {
		t.Error("policies that are not there are accepted")
	}
}

// manyHosts: a long list of hosts is matched like a short one.
func manyHosts(t *testing.T, _ *bypassHouse) {
	var routes []*Route
	for i := range 300 {
		r := goodRoute()
		r.Name, r.Host, r.Path = fmt.Sprintf("r%d", i), fmt.Sprintf("h%d.example", i), "/x"
		routes = append(routes, r)
	}
	rt, err := newRouter(routes)
	if err != nil {
		t.Fatal(err)
	}
	for i := range 300 {
		if op, _, _ := rt.match(fmt.Sprintf("h%d.example", i), "GET", []string{"x"}, nil, nil); op == nil || op.route != routes[i] {
			t.Errorf("host %d is not found", i)
		}
		for _, seg := range []string{"X", "%78", "x "} {
			if op, _, allow := rt.match(fmt.Sprintf("h%d.example", i), "GET", []string{seg}, nil, nil); op != nil || allow != "" {
				t.Errorf("%q is taken for x", seg)
			}
		}
	}
}

// twoPlaces: one credential, in the one place where it belongs.
func twoPlaces(t *testing.T, h *bypassHouse) {
	clerk, root := h.token("alice", "clerk"), h.token("root", "root")
	for _, place := range []string{"/admin?access_token=" + root, "/admin?token=" + root, "/admin?jwt=" + root, "/admin?authorization=Bearer%20" + root} {
		h.try(t, attempt{raw: bareGet(place), want: "no_credential"})
		h.try(t, attempt{raw: "GET " + place + " HTTP/1.1\r\nHost: localhost\r\nCLERK\r\n", want: "denied_by_default"})
	}
	for _, line := range []string{"Cookie: access_token=" + root, "Cookie: jwt=" + root, "X-Access-Token: " + root, "X-Forwarded-Access-Token: " + root, "Proxy-Authorization: Bearer " + root} {
		h.try(t, attempt{raw: "GET /admin HTTP/1.1\r\nHost: localhost\r\n" + line + "\r\n\r\n", want: "no_credential"})
		h.try(t, attempt{raw: "GET /admin HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + clerk + "\r\n" + line + "\r\n\r\n", want: "denied_by_default"})
	}
	for _, line := range []string{"Authorization: Bearer " + root, "authorization: Bearer " + root, "X-Api-Key: " + root} {
		h.try(t, attempt{raw: "GET /admin HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + clerk + "\r\n" + line + "\r\n\r\n", want: "two_credentials"})
		h.try(t, attempt{raw: "GET /admin HTTP/1.1\r\nHost: localhost\r\n" + line + "\r\nAuthorization: Bearer " + clerk + "\r\n\r\n", want: "two_credentials"})
	}
	o := h.fire2(h2get("/admin", "authorization", "Bearer "+clerk, "authorization", "Bearer "+root)...)
	h.judge(t, "two over HTTP/2", &o, "two_credentials", nil)
}

// everyRole: a forbid for one role holds wherever that role stands in the list.
func everyRole(t *testing.T, h *bypassHouse) {
	for _, roles := range [][]string{{"blocked"}, {"clerk", "blocked"}, {"blocked", "clerk"}, {"clerk", "x", "y", "blocked"}, {"root", "blocked"}} {
		h.try(t, attempt{raw: "GET /private/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + h.token("eve", roles...) + "\r\n\r\n", want: "denied_by_policy"})
	}
	for _, roles := range [][]string{{"clerk,root"}, {"clerk root"}, {"ROOT"}, {"root "}, {"clerk\u0000root"}} {
		h.try(t, attempt{raw: "GET /admin HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + h.token("eve", roles...) + "\r\n\r\n", want: "denied_by_default|token_malformed"})
	}
	// Fields are not asked about by policies, so a second one cannot hide.
	for _, a := range withFields("denied_by_default", "/admin", "CLERK", nil, "X-Gatebook-Roles: clerk\r\nX-Gatebook-Roles: root", "X-Role: user,root") {
		h.try(t, a)
	}
}

// cacheKeys: a remembered verdict is one for the same issuer, settings and
// route only.
func cacheKeys(t *testing.T, h *bypassHouse) {
	good := h.token("alice", "clerk")
	h.try(t, attempt{raw: "GET /private/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + good + "\r\n\r\n"})
	h.try(t, attempt{raw: "GET /scoped HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + good + "\r\n\r\n", want: "scope_missing"})
	h.try(t, attempt{raw: "GET /admin HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + good + "\r\n\r\n", want: "denied_by_default"})
	other, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	keys := filepath.Join(t.TempDir(), "jwks.json")
	h.write(keys, string(other.JWKS))
	for what, j := range map[string]*authn.JWT{
		"another issuer":       h.issuer("https://other.example", filepath.Join(h.policies, "jwks.json")),
		"the issuer's newkeys": h.issuer(jwtattack.Issuer, keys),
	} {
		for range 2 {
			if p, err := j.Authenticate(t.Context(), requestWith("authorization", "Bearer "+good)); err == nil {
				t.Errorf("%s takes the token: %v", what, p)
			}
		}
	}
	h.try(t, attempt{raw: "GET /private/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + good + "\r\n\r\n"}) // nor is a no remembered for others
}

// oneBucket: a subject has one bucket, whatever token names it.
func oneBucket(t *testing.T, h *bypassHouse) {
	ask := func(tok, want string) {
		t.Helper()
		h.try(t, attempt{raw: "GET /limited/subject HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + tok + "\r\n\r\n", want: want})
	}
	with := func(name, value string) string {
		return h.tokenWith("bob", []string{"clerk"}, func(o jwtattack.Object) jwtattack.Object { return o.Set(name, value) })
	}
	ask(h.token("bob", "clerk"), "")
	ask(with("jti", `"another"`), "")
	ask(with("email", `"bob@example.com"`), "rate_limited")
	ask(with("client_id", `"mobile"`), "rate_limited")
	ask(h.token("bob", "clerk", "x"), "rate_limited")
	ask(with("sub", `"\u0062ob"`), "rate_limited")
	ask(h.token("Bob", "clerk"), "") // somebody else
}

// spoofedLimit: a limit by address counts the peer, whatever it claims.
func spoofedLimit(t *testing.T, h *bypassHouse) {
	for i := range 6 {
		want := ""
		if i >= 2 {
			want = "rate_limited"
		}
		for _, a := range withFields(want, "/limited/prefix", "", nil, fmt.Sprintf("X-Forwarded-For: 203.0.%d.1\r\nX-Real-Ip: 203.0.%d.1\r\nTrue-Client-Ip: 198.51.100.%d", i, i, i)) {
			h.try(t, a)
		}
	}
}
