package oidcprovider

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

const (
	apiResource    = "https://api.example.com"
	opaqueResource = "https://opaque.example.com"
)

// tokenProvider has a client that gets tokens, one that is the gate, and both
// kinds of resource.
func tokenProvider(t *testing.T, more ...map[string]any) *provider {
	return startProvider(t, options{
		Clients: append(more, client("web", "web-secret", nil), client("gate", "gate-secret", nil)),
		Resources: map[string]resource{
			apiResource:    {Scope: "read write", TTL: 60},
			opaqueResource: {Format: "opaque", Scope: "read", TTL: 60},
		},
		TokenClaims: map[string]map[string]any{"ann": {"roles": []string{"clerk"}}},
		ACRValues:   []string{"gold"},
	})
}

// JWT access tokens of the real thing pass with the preset rfc9068, and what
// is not one does not.
func TestJWT(t *testing.T) {
	t.Parallel()
	p := tokenProvider(t)
	g := newGate(t, fmt.Sprintf(`
issuers: [{name: op, preset: rfc9068, issuer: %q, audiences: [%q]}]
routes:
  - {name: all, path: "/v1/{rest...}", upstream: app, authn: [{jwt: op}], scopes: [read]}
  - {name: write, path: "/write", upstream: app, authn: [{jwt: op}], scopes: [write]}
  - {name: gold, path: "/gold", upstream: app, authn: [{jwt: op}], acr: [gold], max_age: 1h}
`, p.issuer, apiResource))
	g.Start()
	browser := newBrowser(t)
	a := p.userTokens(browser, "web", "web-secret", "ann", apiResource, "read", nil)
	g.Taken("/v1/x", a.text("access_token"), "ann")
	machine := p.clientToken("web", "web-secret", apiResource, "read write")
	g.Taken("/write", machine, "web")
	g.Refused("/write", a.text("access_token"), 403, "scope_missing")
	g.Refused("/v1/x", a.text("id_token"), 401, "token_type")
	g.Refused("/v1/x", a.text("refresh_token"), 401, "token_malformed")
	g.Refused("/v1/x", p.clientToken("web", "web-secret", opaqueResource, "read"), 401, "token_malformed")

	// Step-up (RFC 9470): what the challenge asks for, the provider is asked for.
	status, _, header := g.Get("/gold", a.text("access_token"))
	challenge := header.Get("WWW-Authenticate")
	if status != 401 || !strings.Contains(challenge, `error="insufficient_user_authentication"`) || !strings.Contains(challenge, `acr_values="gold"`) || !strings.Contains(challenge, "max_age=3600") {
		t.Errorf("step-up: %d %q", status, challenge)
	}
	up := p.userTokens(newBrowser(t), "web", "web-secret", "ann", apiResource, "read", map[string][]string{"acr_values": {"gold"}})
	if status, body, _ := g.Get("/gold", up.text("access_token")); status != 200 {
		t.Errorf("after the step-up: %d %s", status, body)
	}
}

// A token that only the provider understands: taken until it is revoked, and
// not much longer.
func TestOpaque(t *testing.T) {
	t.Parallel()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	x, y := key.X.FillBytes(make([]byte, 32)), key.Y.FillBytes(make([]byte, 32))
	jwk := map[string]string{"kty": "EC", "crv": "P-256", "kid": "g1", "use": "sig", "x": base64.RawURLEncoding.EncodeToString(x), "y": base64.RawURLEncoding.EncodeToString(y)}
	p := tokenProvider(t, map[string]any{
		"client_id": "keyed", "redirect_uris": []string{redirectURI}, "token_endpoint_auth_method": "private_key_jwt",
		"jwks": map[string]any{"keys": []any{jwk}},
	}, client("posts", "posts-secret", map[string]any{"token_endpoint_auth_method": "client_secret_post"}))
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	issuer := func(name, id, how string) string {
		return fmt.Sprintf("  - {name: %s, issuer: %q, audiences: [%q], introspection: {url: %q, client_id: %s, %s, cache: {active: 1s, refused: 1s}}}\n",
			name, p.issuer, opaqueResource, p.issuer+"/token/introspection", id, how)
	}
	g := newGate(t, "issuers:\n"+issuer("basic", "gate", "client_secret: {file: gate.secret}")+
		issuer("post", "posts", "auth: post, client_secret: {file: posts.secret}")+
		issuer("keyed", "keyed", "auth: private_key_jwt, private_key: gate.pem, key_id: g1")+
		issuer("wrong", "gate", "client_secret: {file: posts.secret}")+
		fmt.Sprintf("  - {name: jwt, issuer: %q, audiences: [%q]}\n", p.issuer, apiResource)+`
routes:
  - {name: basic, path: "/basic", upstream: app, authn: [{introspect: basic}], scopes: [read]}
  - {name: post, path: "/post", upstream: app, authn: [{introspect: post}]}
  - {name: keyed, path: "/keyed", upstream: app, authn: [{introspect: keyed}]}
  - {name: wrong, path: "/wrong", upstream: app, authn: [{introspect: wrong}]}
  - {name: mixed, path: "/mixed", upstream: app, authn: [{jwt: jwt}, {introspect: basic}]}
`)
	g.Write("gate.secret", "gate-secret\n")
	g.Write("posts.secret", "posts-secret\n")
	g.Write("gate.pem", string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der})))
	g.Start()

	person := p.userTokens(newBrowser(t), "web", "web-secret", "ann", opaqueResource, "read", nil)
	token := person.text("access_token")
	for _, path := range []string{"/basic", "/post", "/keyed", "/mixed"} {
		g.Taken(path, token, "ann")
	}
	g.Refused("/wrong", token, 503, "issuer_unavailable")
	g.Taken("/basic", p.clientToken("web", "web-secret", opaqueResource, "read"), "web")
	if status, body, _ := g.Get("/mixed", p.clientToken("web", "web-secret", apiResource, "read")); status != 200 {
		t.Errorf("a JWT beside opaque tokens: %d %q", status, body)
	}
	g.Refused("/basic", "nonsense", 401, "token_inactive")
	g.Refused("/mixed", "nonsense-2", 401, "token_inactive")
	// The provider calls a refresh token active and gives it no type.
	g.Refused("/basic", person.text("refresh_token"), 401, "token_type")

	revoked := time.Now()
	p.revoke("web", "web-secret", token)
	program.Eventually(t, "the revoked token is refused", func() bool { status, _, _ := g.Get("/basic", token); return status == 401 })
	if d := time.Since(revoked); d > 3*time.Second {
		t.Errorf("taken for %s after the revocation, the cache keeps it for 1 s", d)
	}

	// The endpoint away: refused as soon as what was said before has run out,
	// and taken again when it is back.
	other := p.clientToken("web", "web-secret", opaqueResource, "read")
	if status, _, _ := g.Get("/basic", other); status != 200 {
		t.Errorf("status %d", status)
	}
	p.fault("/token/introspection", map[string]any{"status": 503})
	program.Eventually(t, "nothing counts any more", func() bool { status, _, _ := g.Get("/basic", other); return status == 503 })
	p.fault("/token/introspection", nil)
	program.Eventually(t, "back again", func() bool { status, _, _ := g.Get("/basic", other); return status == 200 })
}

// The provider changes its key twice while tokens of both are in use: nobody
// with a good token is refused, and tokens of a key that is gone are.
func TestRotationUnderLoad(t *testing.T) {
	t.Parallel()
	p := tokenProvider(t)
	g := newGate(t, fmt.Sprintf(`
issuers: [{name: op, issuer: %q, audiences: [%q], key_interval: 1s}]
routes: [{name: all, path: "/", upstream: app, authn: [{jwt: op}]}]
`, p.issuer, apiResource))
	g.Start()
	var newest atomic.Pointer[string]
	fresh := func() string {
		token := p.clientToken("web", "web-secret", apiResource, "read")
		newest.Store(&token)
		return token
	}
	first := fresh()
	var served, failed atomic.Int64
	stop := make(chan struct{})
	var load sync.WaitGroup
	for range 4 {
		load.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				status, _, _, err := g.Ask("/", *newest.Load())
				if err != nil || status != 200 {
					failed.Add(1)
				}
				served.Add(1)
				time.Sleep(2 * time.Millisecond) // a load, not a race for the processor
			}
		})
	}
	second := ""
	for turn := range 2 {
		before := served.Load()
		kids := p.rotate(1)
		// A gate asks for new keys once in key_interval, so the first tokens of a
		// second new key may have to wait for that; the load goes on with the key
		// before.
		token := ""
		program.Eventually(t, "a token of the new key "+kids[0]+" is taken", func() bool {
			token = p.clientToken("web", "web-secret", apiResource, "read") // another one each time: what is refused is remembered for a while
			status, _, _, err := g.Ask("/", token)
			return err == nil && status == 200
		})
		newest.Store(&token)
		if turn == 0 {
			second = token
		}
		program.Eventually(t, "the load goes on", func() bool { return served.Load() > before+200 })
	}
	close(stop)
	load.Wait()
	if failed.Load() != 0 {
		t.Errorf("%d of %d requests with a good token failed", failed.Load(), served.Load())
	}
	if status, _, _ := g.Get("/", second); status != 200 {
		t.Errorf("a token of the key before: %d", status)
	}
	g.Refused("/", first, 401, "token_key_unknown")
	t.Logf("%d requests during two rotations", served.Load())
}

// A client finds out from the gate alone where to get a token (RFC 9728), gets
// one from there and is let in.
func TestMetadata(t *testing.T) {
	t.Parallel()
	p := tokenProvider(t)
	g := program.NewInner(t, binary.Path(t))
	g.Configure(fmt.Sprintf(`
issuers: [{name: op, issuer: %q, audiences: [%q]}]
routes: [{name: all, path: "/api/{rest...}", upstream: app, authn: [{jwt: op}], scopes: [read], resource: "http://%s/api"}]
`, p.issuer, apiResource, g.Addr))
	g.Start()
	status, _, header := g.Get("/api/x", "")
	_, after, _ := strings.Cut(header.Get("WWW-Authenticate"), `resource_metadata="`)
	at, _, ok := strings.Cut(after, `"`)
	if status != 401 || !ok {
		t.Fatalf("%d, challenge %q", status, header.Get("WWW-Authenticate"))
	}
	var meta struct {
		Resource string   `json:"resource"`
		Servers  []string `json:"authorization_servers"`
		Scopes   []string `json:"scopes_supported"`
	}
	getJSON(t, at, &meta)
	if meta.Resource != "http://"+g.Addr+"/api" || len(meta.Servers) != 1 || len(meta.Scopes) != 1 {
		t.Fatalf("metadata %+v", meta)
	}
	var server struct {
		Issuer string `json:"issuer"`
		Token  string `json:"token_endpoint"`
	}
	getJSON(t, meta.Servers[0]+"/.well-known/openid-configuration", &server)
	if server.Issuer != meta.Servers[0] || server.Token != p.issuer+"/token" {
		t.Fatalf("server %+v", server)
	}
	if status, _, _ := g.Get("/api/x", p.clientToken("web", "web-secret", apiResource, meta.Scopes[0])); status != 200 {
		t.Errorf("with a token from there: %d", status)
	}
}

func getJSON(t *testing.T, u string, into any) {
	t.Helper()
	res, err := http.Get(u)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(into); err != nil || res.StatusCode != 200 {
		t.Fatalf("%s: %d %v", u, res.StatusCode, err)
	}
}
