package zitadelop

import (
	"fmt"
	"net/url"
	"testing"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

// Access tokens as JWTs: zitadel gives them the typ JWT, which the configuration
// has to say, and the claims of RFC 9068.
func TestJWT(t *testing.T) {
	i := newIssuer(t)
	g := startGate(t, fmt.Sprintf(`
issuers: [{name: op, issuer: %q, audiences: [%q], types: [JWT], algorithms: [RS256]}]
routes:
  - {name: all, path: "/v1/{rest...}", upstream: app, authn: [{jwt: op}], scopes: [read]}
  - {name: write, path: "/write", upstream: app, authn: [{jwt: op}], scopes: [write]}
`, i.url, apiAudience), nil)
	token := i.token("machine", "read")
	g.Taken("/v1/x", token, "machine")
	g.Refused("/write", token, 403, "scope_missing")
	g.Refused("/v1/x", token[:len(token)-8]+"AAAAAAAA", 401, "token_signature")
	g.Refused("/v1/x", i.token("opaque", "read"), 401, "token_malformed")
}

// The issuer changes its key twice: tokens of the key before go on, and those of
// a key that is gone do not.
func TestRotation(t *testing.T) {
	i := newIssuer(t)
	g := startGate(t, fmt.Sprintf(`
issuers: [{name: op, issuer: %q, audiences: [%q], types: [JWT], algorithms: [RS256], key_interval: 1s}]
routes: [{name: all, path: "/", upstream: app, authn: [{jwt: op}]}]
`, i.url, apiAudience), nil)
	tokens := []string{i.token("machine", "read")}
	g.Taken("/", tokens[0], "machine")
	for range 2 {
		i.rotate(1)
		next := ""
		program.Eventually(t, "a token of the new key is taken", func() bool {
			g.Taken("/", tokens[len(tokens)-1], "machine")
			next = i.token("machine", "read") // another one each time: what is refused is remembered for a while
			status, _, _ := g.Get("/", next)
			return status == 200
		})
		tokens = append(tokens, next)
	}
	g.Taken("/", tokens[1], "machine")
	g.Refused("/", tokens[0], 401, "token_key_unknown")
}

// Opaque access tokens, about which the issuer is asked: taken until revoked.
func TestOpaque(t *testing.T) {
	i := newIssuer(t)
	introspection := func(client string) string {
		return fmt.Sprintf("introspection: {url: %q, client_id: %s, client_secret: {file: gate.secret}, cache: {active: 1s, refused: 1s}}", i.url+"/oauth/introspect", client)
	}
	g := startGate(t, fmt.Sprintf(`
issuers:
  - {name: op, issuer: %q, audiences: [%q], %s}
  - {name: stranger, issuer: %q, audiences: [%q], %s}
routes:
  - {name: all, path: "/v1/{rest...}", upstream: app, authn: [{introspect: op}], scopes: [read]}
  - {name: write, path: "/write", upstream: app, authn: [{introspect: op}], scopes: [write]}
  - {name: stranger, path: "/stranger", upstream: app, authn: [{introspect: stranger}]}
`, i.url, apiAudience, introspection("resource"), i.url, apiAudience, introspection("web")), map[string]string{"gate.secret": secret + "\n"})
	token := i.token("opaque", "read")
	g.Taken("/v1/x", token, "opaque")
	g.Refused("/write", token, 403, "scope_missing")
	g.Refused("/stranger", token, 401, "token_inactive") // who is no resource server of it learns nothing
	g.Refused("/v1/x", "nonsense", 401, "token_inactive")
	i.post("/revoke", "opaque", url.Values{"token": {token}})
	program.Eventually(t, "the revoked token is refused", func() bool { status, _, _ := g.Get("/v1/x", token); return status == 401 })
	g.Refused("/v1/x", token, 401, "token_inactive")
}
