package main

import (
	"crypto/ed25519"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

// signedUpstream keeps the header of each request by its id.
type signedUpstream struct {
	*httptest.Server
	mu   sync.Mutex
	seen map[string]http.Header // mu
}

func newSignedUpstream(t *testing.T) *signedUpstream {
	u := &signedUpstream{seen: map[string]http.Header{}}
	u.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			panic(http.ErrAbortHandler)
		}
		u.mu.Lock()
		defer u.mu.Unlock()
		u.seen[r.Header.Get("X-Gatebook-Request-Id")] = r.Header.Clone()
	}))
	t.Cleanup(u.Close)
	return u
}

// TestSignedIdentity: the upstream can tell, with the published keys, that a
// request came through the gate and for whom; a restart changes no key; and no
// credential comes along unless the route says so.
func TestSignedIdentity(t *testing.T) {
	up := newSignedUpstream(t)
	s, env := identitySite(t, up.URL)
	conf := string(s.read("gatebook.yaml"))
	conf = strings.Replace(conf, "app: {targets: ["+fmt.Sprintf("%q", up.URL)+"]}", "app: {targets: ["+fmt.Sprintf("%q", up.URL)+"], identity: {jwt: {lifetime: 30s, body_digest: 1KiB}}}", 1)
	conf = strings.Replace(conf, "methods: [POST], upstream: app,", "methods: [POST], upstream: app, pass_credential: true, identity: {jwt: {header: X-Orders-Identity, audience: orders, body_digest: 1KiB}},", 1)
	s.write("gatebook.yaml", conf)
	s.run(0, "check", filepath.Join(s.dir, "gatebook.yaml"))
	s.start()
	jwks := func() string {
		resp, err := s.client.Get("https://" + s.addr + "/.well-known/gatebook-identity-jwks.json")
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil || resp.StatusCode != 200 || resp.Header.Get("Content-Type") != "application/jwk-set+json" {
			t.Fatalf("%d %v %v", resp.StatusCode, resp.Header, err)
		}
		got := s.search(fmt.Sprintf("id == %q && route == \"gatebook.identity-keys\"", resp.Header.Get("X-Request-Id")))
		if len(got) != 1 || got[0].Frame.Outcome != "success" || got[0].Frame.Op != "GET /.well-known/gatebook-identity-jwks.json" {
			t.Errorf("records of it: %+v", got)
		}
		return string(b)
	}
	before := jwks()
	ask := func(method, role, body string) http.Header {
		t.Helper()
		req, err := http.NewRequest(method, "https://"+s.addr+"/v1/orders/7?x=1", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		for name, value := range map[string]string{
			"Authorization": "Bearer " + token(env, "ann", role, nil), "X-Gatebook-Identity": "evil", "X-Orders-Identity": "evil", "DPoP": "evil", "X-Api-Key": "evil",
			"X-SSL-Client-Cert": "evil", "Cookie": "a=b; __Host-gatebook-session=evil",
		} {
			req.Header.Set(name, value)
		}
		resp, err := s.client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		up.mu.Lock()
		defer up.mu.Unlock()
		h := up.seen[resp.Header.Get("X-Request-Id")]
		if resp.StatusCode != 200 || h == nil {
			t.Fatalf("%s: %d", method, resp.StatusCode)
		}
		h.Set("Id", resp.Header.Get("X-Request-Id"))
		return h
	}
	h := ask("GET", "clerk", "")
	c := identityClaims(t, before, h.Get("X-Gatebook-Identity"))
	if c["iss"] != "https://log.example.com/test" || c["aud"] != "app" || c["sub"] != "corp|ann" || c["htm"] != "GET" || c["path"] != "/v1/orders/7" || c["jti"] != h.Get("Id") || c["exp"].(float64)-c["iat"].(float64) != 30 {
		t.Errorf("%v", c)
	}
	for name := range h {
		if h.Get(name) == "evil" || name == "Authorization" || strings.Contains(h.Get(name), "evil") {
			t.Errorf("the upstream got %s: %s", name, h.Get(name))
		}
	}
	if h.Get("Cookie") != "a=b" {
		t.Errorf("cookie %q", h.Get("Cookie"))
	}
	h = ask("POST", "manager", "hello")
	c = identityClaims(t, before, h.Get("X-Orders-Identity"))
	if c["aud"] != "orders" || c["content_digest"] != "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:" {
		t.Errorf("%v", c)
	}
	if h.Get("Authorization") == "" || h.Get("X-Api-Key") != "evil" || h.Get("Dpop") != "evil" || h.Get("X-Ssl-Client-Cert") != "" || h.Get("X-Gatebook-Identity") != "" || h.Get("Cookie") != "a=b" {
		t.Errorf("the upstream got %v", h)
	}
	s.kill()
	s.start()
	defer s.stop()
	if after := jwks(); after != before {
		t.Errorf("other keys after a restart: %s, %s", before, after)
	}
	identityClaims(t, before, ask("GET", "clerk", "").Get("X-Gatebook-Identity"))
	// The keys lie sealed.
	state, err := os.ReadFile(filepath.Join(s.dir, "data/state/live.db"))
	if err != nil || strings.Contains(string(state), "seed") {
		t.Errorf("the state can be read: %v", err)
	}
}

// identityClaims verifies a token with a key set and returns its claims.
func identityClaims(t *testing.T, jwks, token string) (claims map[string]any) {
	t.Helper()
	var set struct{ Keys []struct{ Kid, X string } }
	if err := json.Unmarshal([]byte(jwks), &set); err != nil || len(set.Keys) != 2 {
		t.Fatalf("key set %s: %v", jwks, err)
	}
	head, rest, _ := strings.Cut(token, ".")
	body, sig, _ := strings.Cut(rest, ".")
	part := func(s string) []byte {
		b, err := base64.RawURLEncoding.DecodeString(s)
		if err != nil {
			t.Fatalf("%v: %q", err, token)
		}
		return b
	}
	var h struct{ Kid string }
	if err := json.Unmarshal(part(head), &h); err != nil {
		t.Fatal(err)
	}
	for _, k := range set.Keys {
		if k.Kid == h.Kid && ed25519.Verify(part(k.X), []byte(head+"."+body), part(sig)) {
			if err := json.Unmarshal(part(body), &claims); err != nil {
				t.Fatal(err)
			}
			return claims
		}
	}
	t.Fatalf("no published key verifies %q", token)
	return nil
}
