package main

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

// keyExchangeSite is a gate whose token service exchanges API keys for the
// client keys alone, and whose one route takes the tokens made from them.
func keyExchangeSite(t *testing.T) *site {
	t.Helper()
	up := newUpstream(t)
	s := newSite(t, up.URL)
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
apikeys: {issuer: robots}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
issuers:
  - {name: self, issuer: %q, audiences: ["https://api.example.com"], algorithms: [ES256]}
token_service:
  issuer: %q
  clients:
    - {id: shop, auth: client_secret_basic, secret: {file: shop.secret}, grants: [token_exchange], apikeys: true, audiences: ["https://api.example.com"], scopes: [read], roles: [reader]}
    - {id: web, auth: client_secret_post, secret: {file: shop.secret}, grants: [token_exchange], issuers: [self], audiences: ["https://api.example.com"], scopes: [read], roles: [reader]}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: all, path: "/{rest...}", upstream: app, authn: [{jwt: self}], scopes: [read]}
roles:
  reader: {allow: [all]}
`, s.addr, s.base(), s.base(), up.URL))
	s.write("shop.secret", clientSecret+"\n")
	return s
}

// exchangeKey shows an API key to the service as shop, or as pairs say.
func (s *site) exchangeKey(key string, pairs ...string) tokenReply {
	s.t.Helper()
	return s.form("/oauth2/token", append([]string{
		"grant_type", "urn:ietf:params:oauth:grant-type:token-exchange", "subject_token", key, "subject_token_type", "urn:gatebook:token-type:api-key",
	}, pairs...)...)
}

// TestTokenServiceAPIKeys: an API key is exchanged for a token that says whose it
// is and who uses it, with no more than both may have; a revoked key is not, from
// one moment to the next; and a client that may not exchange keys gets nothing.
func TestTokenServiceAPIKeys(t *testing.T) {
	s := keyExchangeSite(t)
	s.start()
	t.Cleanup(func() { s.keepsNoKey() })
	t.Cleanup(s.stop)
	id, key := s.newKey("--owner", "billing", "--role", "reader", "--role", "boss", "--scope", "read", "--scope", "write")
	_, narrow := s.newKey("--owner", "billing", "--role", "reader", "--scope", "read", "--route", "all")
	web := []string{"client_id", "web", "client_secret", clientSecret}

	one := s.exchangeKey(key)
	if one.status != 200 || one.RefreshToken != "" || s.use(one.AccessToken) != 200 {
		t.Fatalf("%+v", one)
	}
	if s.use(key) != 401 {
		t.Error("the route takes the key itself")
	}
	if got := s.search(fmt.Sprintf(`id == %q && kind == "token" && authn.client == "shop" && event.name == "exchange"`, one.id)); len(got) != 1 {
		t.Fatalf("recorded: %+v", got)
	}
	if who := s.command(0, "search", fmt.Sprintf("id == %q", one.id), "--reveal", "--json"); !strings.Contains(who, `"sub":"billing"`) || !strings.Contains(who, `"kid":"`+id+`.1"`) || !strings.Contains(who, `"issuer":"robots"`) {
		t.Errorf("the record does not say whose key it was: %s", who)
	}
	for _, row := range []struct {
		name   string
		got    tokenReply
		err    string
		reason string
	}{
		{"another client", s.exchangeKey(key, web...), "invalid_grant", "token_issuer"},
		{"as an access token", s.exchangeKey(key, "subject_token_type", "urn:ietf:params:oauth:token-type:access_token"), "invalid_grant", "token_issuer"},
		{"to go on without the key", s.exchangeKey(key, "scope", "read offline_access"), "invalid_scope", "scope_missing"},
		{"more than the client may", s.exchangeKey(key, "scope", "write"), "invalid_scope", "scope_missing"},
		{"a key for some routes", s.exchangeKey(narrow), "invalid_grant", "denied_by_policy"},
		{"no key", s.exchangeKey("gbk_" + strings.Repeat("0", 49)), "invalid_grant", "token_malformed"},
		{"a token as a key", s.exchangeKey(one.AccessToken), "invalid_grant", "token_issuer"},
	} {
		rec := s.search(fmt.Sprintf("id == %q", row.got.id))
		if row.got.status != 400 || row.got.Error != row.err || row.got.AccessToken != "" || len(rec) != 1 || rec[0].Frame.Error.Reason != row.reason {
			t.Errorf("%s: %+v, recorded %+v", row.name, row.got, rec)
		}
	}

	s.command(0, "apikey", "revoke", id)
	revoked := time.Now()
	again := s.exchangeKey(key)
	if took := time.Since(revoked); again.status != 400 || again.Error != "invalid_grant" || took > time.Second {
		t.Errorf("a revoked key: %+v after %v", again, took)
	}
	if rec := s.search(fmt.Sprintf("id == %q", again.id)); len(rec) != 1 || rec[0].Frame.Error.Reason != "key_revoked" {
		t.Errorf("recorded: %+v", rec)
	}

	// What the client may not do any more, it cannot do after a reload.
	_, fresh := s.newKey("--owner", "billing", "--role", "reader", "--scope", "read")
	s.replace("gatebook.yaml", strings.Replace(string(s.read("gatebook.yaml")), "apikeys: true,", "issuers: [self],", 1))
	s.command(0, "reload")
	if r := s.exchangeKey(fresh); r.status != 400 || r.Error != "invalid_grant" {
		t.Errorf("after the key was taken out of the configuration: %+v", r)
	}
}
