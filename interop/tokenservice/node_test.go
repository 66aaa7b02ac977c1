package tokenservice

import (
	"encoding/json"
	"strings"
	"testing"
)

type q = map[string]any

// TestNodeClients: openid-client and oauth4webapi, which keep to the letter of
// the RFCs, get on with the service in all that it does.
func TestNodeClients(t *testing.T) {
	// The signing client makes its key before the gate is told of it; the
	// certificate does not exist yet, so another process goes on.
	key := ""
	{
		n := startNode(t, "")
		b, err := json.Marshal(n.ask("key", q{"client": "signer"}))
		if err != nil {
			t.Fatal(err)
		}
		key = string(b)
	}
	g := newGate(t, key)
	n := startNode(t, g.Path("tls/localhost.crt"))
	// This process has a key of its own: the gate reads it at the next reload.
	b, err := json.Marshal(n.ask("key", q{"client": "signer"}))
	if err != nil {
		t.Fatal(err)
	}
	g.Write("keys.json", `{"keys":[`+string(b)+`]}`)
	g.Run("reload")

	basic := q{"issuer": g.issuer, "client": "basic", "auth": "basic", "secret": secret}
	post := q{"issuer": g.issuer, "client": "post", "auth": "post", "secret": secret}
	signer := q{"issuer": g.issuer, "client": "signer", "auth": "jwt", "secret": ""}
	with := func(who q, more q) q {
		out := q{}
		for _, m := range []q{who, more} {
			for k, v := range m {
				out[k] = v
			}
		}
		return out
	}
	do := func(op string, query q) answer {
		t.Helper()
		a := n.ask(op, query)
		if a["error"] != nil {
			t.Fatalf("%s: %v", op, a)
		}
		return a
	}

	if m := do("metadata", basic); m.text("issuer") != g.issuer || m.text("token_endpoint") != g.issuer+"/oauth2/token" {
		t.Errorf("%v", m)
	}
	params := q{"params": q{"audience": audience, "scope": "read"}}
	for name, who := range map[string]q{"client_secret_basic": basic, "client_secret_post": post, "private_key_jwt": signer} {
		a := do("credentials", with(who, params))
		if a.text("scope") != "read" || a["expires_in"].(float64) != 300 || a.text("token_type") != "bearer" {
			t.Errorf("%s: %v", name, a)
		}
		v := do("validate", q{"issuer": g.issuer, "audience": audience, "token": a.text("access_token")})
		if c := v["claims"].(map[string]any); c["client_id"] != who["client"] || c["sub"] != who["client"] || c["scope"] != "read" {
			t.Errorf("%s: %v", name, c)
		}
	}
	// oauth4webapi turns an answer with a Basic challenge into an error of its own.
	for _, c := range []struct {
		name string
		who  q
		want string
	}{{"wrong secret", with(basic, q{"secret": "x"}), "OAUTH_WWW_AUTHENTICATE_CHALLENGE"}, {"not its method", with(post, q{"client": "basic"}), "invalid_client"}} {
		if a := n.ask("credentials", with(c.who, params)); a["error"] != c.want || a["status"].(float64) != 401 {
			t.Errorf("%s: %v", c.name, a)
		}
	}
	if a := n.ask("credentials", with(basic, q{"params": q{"audience": audience, "scope": "admin"}})); a["error"] != "invalid_scope" {
		t.Errorf("%v", a)
	}

	// A token of the service, exchanged for one to another audience that can be
	// refreshed, twice, and replayed.
	subject := do("credentials", with(basic, params)).text("access_token")
	exchange := q{"params": q{
		"subject_token": subject, "subject_token_type": "urn:ietf:params:oauth:token-type:access_token",
		"audience": internal, "scope": "read offline_access",
	}}
	one := do("exchange", with(basic, exchange))
	if one.text("issued_token_type") != "urn:ietf:params:oauth:token-type:access_token" || one.text("refresh_token") == "" {
		t.Fatalf("%v", one)
	}
	v := do("validate", q{"issuer": g.issuer, "audience": internal, "token": one.text("access_token")})
	if act := v["claims"].(map[string]any)["act"].(map[string]any); act["sub"] != "basic" {
		t.Errorf("%v", v)
	}
	refresh := func(token string) answer { return n.ask("refresh", with(basic, q{"token": token, "params": q{}})) }
	two := refresh(one.text("refresh_token"))
	three := refresh(two.text("refresh_token"))
	if two.text("refresh_token") == one.text("refresh_token") || three["error"] != nil {
		t.Fatalf("%v %v", two, three)
	}
	if a := refresh(one.text("refresh_token")); a["error"] != "invalid_grant" {
		t.Errorf("a replay: %v", a)
	}
	if a := refresh(three.text("refresh_token")); a["error"] != "invalid_grant" {
		t.Errorf("the newest after a replay: %v", a)
	}

	// What is revoked is not active any more, here and at the gate.
	active := func(who q, token string) any { return do("introspect", with(who, q{"token": token}))["active"] }
	if active(basic, subject) != true || active(signer, subject) != true || g.use(subject) != 200 {
		t.Error("a good token is not active")
	}
	do("revoke", with(basic, q{"token": subject}))
	if active(basic, subject) != false || active(signer, subject) != false || g.use(subject) != 401 {
		t.Error("a revoked token is active")
	}

	// Keys change; tokens from before stay valid, new ones name the new key.
	before := do("credentials", with(basic, params)).text("access_token")
	g.Run("token", "rotate-keys", "--at-once")
	after := do("credentials", with(basic, params)).text("access_token")
	for _, token := range []string{before, after} {
		do("validate", q{"issuer": g.issuer, "audience": audience, "token": token})
	}
	if strings.Split(before, ".")[0] == strings.Split(after, ".")[0] {
		t.Error("the key was not changed")
	}

	// Tokens bound to a key (DPoP).
	bound := do("credentials", with(basic, with(params, q{"dpop": true})))
	if bound.text("token_type") != "dpop" {
		t.Errorf("%v", bound)
	}
	if in := do("introspect", with(basic, q{"token": bound.text("access_token")})); in["active"] != true || in["cnf"].(map[string]any)["jkt"] == nil {
		t.Errorf("%v", in)
	}
	if g.use(bound.text("access_token")) != 401 {
		t.Error("the gate takes a bound token without its proof")
	}
}
