package token

import (
	"encoding/json"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/reason"
)

// TestClientCredentials: what a token of a client says, and that its record
// says who got it, by what and for whom, without the token.
func TestClientCredentials(t *testing.T) {
	h := newHouse(t)
	r := h.as("shop", PathToken, "grant_type", "client_credentials", "audience", apiURL, "scope", "read")
	if r.status != 200 || r.TokenType != "Bearer" || r.ExpiresIn != 300 || r.Scope != "read" || r.RefreshToken != "" {
		t.Fatalf("%d %s", r.status, r.raw)
	}
	if r.fields["cache-control"] != "no-store" || r.fields["content-type"] != "application/json" {
		t.Errorf("fields %v", r.fields)
	}
	c := h.claimsOf(r.AccessToken)
	if c.Issuer != issuer || c.Subject != "shop" || c.Client != "shop" || c.Audience != apiURL || c.Scope != "read" || c.ID == "" || c.Expires-c.IssuedAt != 300 {
		t.Errorf("%+v", c)
	}
	if !slices.Equal(c.Roles, []string{"clerk", "robot"}) || c.Actor != nil || c.Confirm != nil {
		t.Errorf("%+v", c)
	}
	rec := r.rec
	if rec.Outcome != record.Success || rec.Event.Name != "client_credentials" || rec.Event.Target != apiURL || rec.Authn.Client != "shop" ||
		rec.Authn.Method != "client_secret_basic" || rec.Authn.Issuer != "own" || rec.Raw.IssuerSub != "own|shop" || rec.Personal.Token == "" {
		t.Errorf("%+v %+v %+v", rec.Event, rec.Authn, rec.Personal)
	}
	if h.book.opens != 1 {
		t.Errorf("%d open marks", h.book.opens)
	}
	all := h.as("shop", PathToken, "grant_type", "client_credentials", "resource", orders)
	if all.Scope != "read write" || h.claimsOf(all.AccessToken).Audience != orders {
		t.Errorf("defaults: %s", all.raw)
	}
}

// TestMethods: each client proves itself in its own way and in no other.
func TestMethods(t *testing.T) {
	h := newHouse(t)
	own := func(sub, aud, jti string) string {
		return unsigned(`{"sub":"` + sub + `","aud":"` + aud + `","jti":"` + jti + `"}`)
	}
	cc := []string{"grant_type", "client_credentials", "audience", apiURL}
	jwt := func(more ...string) []string {
		return append(slices.Concat(cc, []string{"client_assertion_type", assertionType}), more...)
	}
	for _, c := range []struct {
		name   string
		basic  string
		form   []string
		status int
		code   string
		why    reason.Reason
	}{
		{"basic", basic("shop", secret), cc, 200, "", ""},
		{"basic, id in the body too", basic("shop", secret), append(slices.Clone(cc), "client_id", "shop"), 200, "", ""},
		{"basic, another id in the body", basic("shop", secret), append(slices.Clone(cc), "client_id", "form"), 400, invalidRequest, reason.MalformedRequest},
		{"basic, wrong secret", basic("shop", secret+"x"), cc, 401, invalidClient, reason.KeyUnknown},
		{"basic, no secret", basic("shop", ""), cc, 401, invalidClient, reason.KeyUnknown},
		{"basic, unknown client", basic("nobody", secret), cc, 401, invalidClient, reason.KeyUnknown},
		{"basic, client of another method", basic("form", secret), cc, 401, invalidClient, reason.KeyUnknown},
		{"basic, not base64", "Basic c2hvcDo=x", cc, 401, invalidClient, reason.TokenMalformed},
		{"bearer", "Bearer x", cc, 401, invalidClient, reason.TokenMalformed},
		{"nothing", "", cc, 401, invalidClient, reason.NoCredential},
		{"an id only", "", append(slices.Clone(cc), "client_id", "shop"), 401, invalidClient, reason.NoCredential},
		{"post", "", append(slices.Clone(cc), "client_id", "form", "client_secret", secret), 200, "", ""},
		{"post, wrong secret", "", append(slices.Clone(cc), "client_id", "form", "client_secret", "x"), 401, invalidClient, reason.KeyUnknown},
		{"post, no id", "", append(slices.Clone(cc), "client_secret", secret), 400, invalidRequest, reason.MalformedRequest},
		{"post, client of another method", "", append(slices.Clone(cc), "client_id", "shop", "client_secret", secret), 401, invalidClient, reason.KeyUnknown},
		{"basic and post", basic("shop", secret), append(slices.Clone(cc), "client_id", "shop", "client_secret", secret), 400, invalidRequest, reason.TwoCredentials},
		{"basic and assertion", basic("shop", secret), jwt("client_assertion", own("signer", issuer, "0")), 400, invalidRequest, reason.TwoCredentials},
		{"assertion", "", jwt("client_assertion", own("signer", issuer, "1")), 200, "", ""},
		{"assertion again", "", jwt("client_assertion", own("signer", issuer, "1")), 401, invalidClient, reason.TokenReplayed},
		{"assertion with id", "", jwt("client_id", "signer", "client_assertion", own("signer", issuer, "2")), 200, "", ""},
		{"assertion with another id", "", jwt("client_id", "shop", "client_assertion", own("signer", issuer, "3")), 400, invalidRequest, reason.MalformedRequest},
		{"assertion for two", "", jwt("client_assertion", unsigned(`{"sub":"signer","aud":["`+issuer+`","https://other"],"jti":"4"}`)), 401, invalidClient, reason.TokenAudience},
		{"assertion in a list of one", "", jwt("client_assertion", unsigned(`{"sub":"signer","aud":["`+issuer+`"],"jti":"5"}`)), 200, "", ""},
		{"assertion for the endpoint", "", jwt("client_assertion", own("signer", issuer+PathToken, "6")), 401, invalidClient, reason.TokenAudience},
		{"assertion without an id", "", jwt("client_assertion", unsigned(`{"sub":"signer","aud":"`+issuer+`"}`)), 401, invalidClient, reason.TokenMalformed},
		{"assertion of a client with a secret", "", jwt("client_assertion", own("shop", issuer, "7")), 401, invalidClient, reason.KeyUnknown},
		{"assertion with a bad signature", "", jwt("client_assertion", own("signer", issuer, "8")+"x"), 401, invalidClient, reason.TokenSignature},
		{"assertion that is none", "", jwt("client_assertion", "x"), 401, invalidClient, reason.TokenMalformed},
		{"assertion type only", "", jwt(), 400, invalidRequest, reason.MalformedRequest},
		{"assertion of another type", "", append(slices.Clone(cc), "client_assertion_type", "x", "client_assertion", own("signer", issuer, "9")), 400, invalidRequest, reason.MalformedRequest},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := h.send("POST", PathToken, encode(c.form...), nil, "content-type", formType, "authorization", c.basic)
			if r.status != c.status || r.Error != c.code || r.rec.Error.Reason != string(c.why) {
				t.Errorf("%d %s, record %+v", r.status, r.raw, r.rec.Error)
			}
			if wants := c.status == 401 && c.basic != ""; (r.fields["www-authenticate"] != "") != wants {
				t.Errorf("challenge %q", r.fields["www-authenticate"])
			}
			if c.status == 401 && (r.rec.Raw.Fold != c.why.Folds() || r.rec.Authn.Outcome != "failed") {
				t.Errorf("folds %v: %+v", r.rec.Raw.Fold, r.rec.Authn)
			}
		})
	}
}

// TestNoOracle: an unknown client, a wrong secret and a wrong method look the
// same, and so do all refresh tokens that do not do.
func TestNoOracle(t *testing.T) {
	h := newHouse(t)
	seen := map[string]bool{}
	for _, auth := range []string{basic("shop", "wrong"), basic("nobody", secret), basic("form", secret), basic("signer", secret)} {
		r := h.send("POST", PathToken, "grant_type=client_credentials", nil, "content-type", formType, "authorization", auth)
		delete(r.fields, "x-request-id")
		b, err := json.Marshal(r.fields)
		if err != nil {
			t.Fatal(err)
		}
		seen[r.raw+string(b)] = true
	}
	if len(seen) != 1 {
		t.Errorf("%d different answers: %v", len(seen), seen)
	}
}

// TestRequests: what a request may not be, and what a client may not have.
func TestRequests(t *testing.T) {
	h := newHouse(t)
	cc := "grant_type=client_credentials&audience=" + "https%3A%2F%2Fapi.example.com"
	for _, c := range []struct {
		name, path, body, contentType string
		client                        string
		status                        int
		code                          string
		why                           reason.Reason
	}{
		{"fine", PathToken, cc, formType, "shop", 200, "", ""},
		{"fine with a charset", PathToken, cc, formType + "; charset=UTF-8", "shop", 200, "", ""},
		{"fine with a parameter that nobody knows", PathToken, cc + "&colour=%C3%A9", formType, "shop", 200, "", ""},
		{"an empty parameter counts as none", PathToken, cc + "&scope=", formType, "shop", 200, "", ""},
		{"json", PathToken, `{"grant_type":"client_credentials"}`, "application/json", "shop", 400, invalidRequest, reason.MalformedRequest},
		{"multipart", PathToken, cc, "multipart/form-data; boundary=x", "shop", 400, invalidRequest, reason.MalformedRequest},
		{"another charset", PathToken, cc, formType + "; charset=utf-16", "shop", 400, invalidRequest, reason.MalformedRequest},
		{"no content type", PathToken, cc, "", "shop", 400, invalidRequest, reason.MalformedRequest},
		{"a query", PathToken + "?grant_type=client_credentials", cc, formType, "shop", 400, invalidRequest, reason.MalformedRequest},
		{"twice", PathToken, cc + "&grant_type=client_credentials", formType, "shop", 400, invalidRequest, reason.MalformedRequest},
		{"twice, once encoded", PathToken, cc + "&grant%5ftype=refresh_token", formType, "shop", 400, invalidRequest, reason.MalformedRequest},
		{"twice, once empty", PathToken, cc + "&grant_type=", formType, "shop", 400, invalidRequest, reason.MalformedRequest},
		{"broken encoding", PathToken, cc + "&a=%4", formType, "shop", 400, invalidRequest, reason.MalformedRequest},
		{"a piece without a value", PathToken, cc + "&a", formType, "shop", 400, invalidRequest, reason.MalformedRequest},
		{"control characters", PathToken, cc + "&a=%00", formType, "shop", 400, invalidRequest, reason.MalformedRequest},
		{"too large", PathToken, cc + "&a=" + strings.Repeat("a", maxBody), formType, "shop", 413, "", reason.BodyTooLarge},
		{"no grant type", PathToken, "audience=x", formType, "shop", 400, invalidRequest, reason.MalformedRequest},
		{"unknown grant type", PathToken, "grant_type=password", formType, "shop", 400, unsupportedGrantType, reason.MalformedRequest},
		{"implicit audience of two", PathToken, "grant_type=client_credentials", formType, "shop", 400, invalidTarget, reason.TokenAudience},
		{"foreign audience", PathToken, "grant_type=client_credentials&audience=https%3A%2F%2Felsewhere", formType, "shop", 400, invalidTarget, reason.TokenAudience},
		{"two audiences", PathToken, cc + "&resource=x", formType, "shop", 400, invalidRequest, reason.MalformedRequest},
		{"foreign scope", PathToken, cc + "&scope=read+admin", formType, "shop", 400, invalidScope, reason.ScopeMissing},
		{"scope in a wrong form", PathToken, cc + "&scope=read++write", formType, "shop", 400, invalidScope, reason.ScopeMissing},
		{"offline without a person", PathToken, cc + "&scope=offline_access", formType, "shop", 400, invalidScope, reason.ScopeMissing},
		{"a grant that it has not", PathToken, cc, formType, "web", 400, unauthorizedClient, reason.DeniedByDefault},
		{"no grant at all", PathToken, cc, formType, "idle", 400, unauthorizedClient, reason.DeniedByDefault},
		{"refresh without offline", PathToken, "grant_type=refresh_token&refresh_token=x", formType, "idle", 400, unauthorizedClient, reason.DeniedByDefault},
		{"refresh of nothing", PathToken, "grant_type=refresh_token", formType, "shop", 400, invalidRequest, reason.MalformedRequest},
		{"refresh of rubbish", PathToken, "grant_type=refresh_token&refresh_token=rubbish", formType, "shop", 400, invalidGrant, reason.TokenInactive},
		{"introspect by one who may not", PathIntrospect, "token=x", formType, "idle", 400, unauthorizedClient, reason.DeniedByDefault},
		{"introspect nothing", PathIntrospect, "a=b", formType, "api", 400, invalidRequest, reason.MalformedRequest},
		{"revoke nothing", PathRevoke, "", formType, "shop", 400, invalidRequest, reason.MalformedRequest},
		{"revoke rubbish", PathRevoke, "token=rubbish&token_type_hint=refresh_token", formType, "shop", 200, "", ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := h.send("POST", c.path, c.body, nil, "content-type", c.contentType, "authorization", basic(c.client, secret))
			if r.status != c.status || r.Error != c.code || r.rec.Error.Reason != string(c.why) {
				t.Errorf("%d %s, record %+v", r.status, r.raw, r.rec.Error)
			}
		})
	}
	if r := h.send("GET", PathToken, "", nil, "authorization", basic("shop", secret)); r.status != 405 {
		t.Errorf("GET: %d", r.status)
	}
}

// TestLimits: a client that has used up its limit gets no token, and neither
// does a flood of guesses from one address.
func TestLimits(t *testing.T) {
	h := newHouse(t)
	h.limits = []*ratelimit.Rule{{Name: "tight", Key: ratelimit.KeyClient, Rate: 1, Per: time.Hour, Burst: 2}}
	h.serve(clients(), subjects())
	for i, want := range []int{401, 401, 429} {
		r := h.send("POST", PathToken, "grant_type=client_credentials", nil, "content-type", formType, "authorization", basic("shop", "guess"))
		if r.status != want {
			t.Errorf("guess %d: %d", i, r.status)
		}
	}
}

// TestStoreAway: without its state the service gives nothing out.
func TestStoreAway(t *testing.T) {
	h := newHouse(t)
	fresh := h.as("shop", PathToken, "grant_type", string(Exchange), "subject_token", unsigned(`{"sub":"alice"}`), "subject_token_type", TypeJWT, "audience", orders, "scope", "read offline_access")
	if fresh.status != 200 {
		t.Fatal(fresh.raw)
	}
	h.store.away.Store(true)
	for name, send := range map[string]func() *reply{
		"assertion": func() *reply {
			return h.send("POST", PathToken, encode("grant_type", "client_credentials", "client_assertion_type", assertionType,
				"client_assertion", unsigned(`{"sub":"signer","aud":"`+issuer+`","jti":"a"}`)), nil, "content-type", formType)
		},
		"refresh": func() *reply {
			return h.as("shop", PathToken, "grant_type", "refresh_token", "refresh_token", fresh.RefreshToken)
		},
		"offline": func() *reply {
			return h.as("shop", PathToken, "grant_type", string(Exchange), "subject_token", unsigned(`{"sub":"alice"}`), "subject_token_type", TypeJWT, "audience", orders, "scope", "offline_access")
		},
		"revoke a family": func() *reply { return h.as("shop", PathRevoke, "token", fresh.RefreshToken) },
		"revoke a token":  func() *reply { return h.as("shop", PathRevoke, "token", fresh.AccessToken) },
		"introspect":      func() *reply { return h.as("shop", PathIntrospect, "token", fresh.RefreshToken) },
	} {
		if r := send(); r.status != 503 || r.Error != temporarily || r.AccessToken != "" || r.rec.Error.Reason != string(reason.IssuerUnavailable) {
			t.Errorf("%s: %d %s %+v", name, r.status, r.raw, r.rec.Error)
		}
	}
}

// TestNothingInTheClear: neither records nor the file on the disk hold a secret,
// a token or a name.
func TestNothingInTheClear(t *testing.T) {
	h := newHouse(t)
	subjectToken := unsigned(`{"sub":"alice"}`)
	one := h.as("shop", PathToken, "grant_type", string(Exchange), "subject_token", subjectToken, "subject_token_type", TypeJWT, "audience", orders, "scope", "read offline_access")
	two := h.as("shop", PathToken, "grant_type", "refresh_token", "refresh_token", one.RefreshToken)
	h.as("api", PathIntrospect, "token", two.AccessToken)
	h.as("shop", PathRevoke, "token", two.RefreshToken)
	h.send("POST", PathToken, encode("grant_type", "client_credentials", "client_id", "form", "client_secret", secret), nil, "content-type", formType)
	if one.status != 200 || two.status != 200 {
		t.Fatal(one.raw, two.raw)
	}
	secrets := []string{secret, subjectToken, one.AccessToken, one.RefreshToken, two.AccessToken, two.RefreshToken, basic("shop", secret)[6:]}
	for i := range h.book.recs {
		r := &h.book.recs[i]
		b, err := json.Marshal(r) // every field, Raw included
		if err != nil {
			t.Fatal(err)
		}
		for _, s := range secrets {
			if strings.Contains(string(b), s) {
				t.Errorf("a record holds %.20q: %s", s, b)
			}
		}
	}
	if err := h.local.Close(); err != nil {
		t.Fatal(err)
	}
	disk, err := os.ReadFile(h.file)
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range append(secrets, aliceSub, "shop", orders, "PRIVATE", `"alg"`) {
		if strings.Contains(string(disk), s) {
			t.Errorf("the disk holds %.20q", s)
		}
	}
}

// TestDocuments: metadata say what the configuration supports and no more.
func TestDocuments(t *testing.T) {
	h := newHouse(t)
	r := h.send("GET", PathMetadata, "", nil)
	const want = `{"issuer":"https://auth.example.com","token_endpoint":"https://auth.example.com/oauth2/token",` +
		`"token_endpoint_auth_methods_supported":["client_secret_basic","client_secret_post","private_key_jwt"],"token_endpoint_auth_signing_alg_values_supported":["ES256","PS256","EdDSA"],` +
		`"revocation_endpoint":"https://auth.example.com/oauth2/revoke","revocation_endpoint_auth_methods_supported":["client_secret_basic","client_secret_post","private_key_jwt"],"revocation_endpoint_auth_signing_alg_values_supported":["ES256","PS256","EdDSA"],` +
		`"introspection_endpoint":"https://auth.example.com/oauth2/introspect","introspection_endpoint_auth_methods_supported":["client_secret_basic","client_secret_post","private_key_jwt"],"introspection_endpoint_auth_signing_alg_values_supported":["ES256","PS256","EdDSA"],` +
		`"jwks_uri":"https://auth.example.com/oauth2/jwks","response_types_supported":[],"grant_types_supported":["client_credentials","refresh_token","urn:ietf:params:oauth:grant-type:token-exchange"]}`
	if r.status != 200 || r.raw != want || r.rec.Event.Name != "metadata" {
		t.Errorf("%d %s", r.status, r.raw)
	}
	few := clients()[1:2]
	h.serve(few, nil)
	r = h.send("GET", PathMetadata, "", nil)
	if strings.Contains(r.raw, "refresh") || strings.Contains(r.raw, "basic") || strings.Contains(r.raw, "signing_alg") || !strings.Contains(r.raw, `"grant_types_supported":["client_credentials"]`) {
		t.Errorf("%s", r.raw)
	}
	k := h.send("GET", PathJWKS, "", nil)
	if k.status != 200 || k.raw != string(h.state.JWKS()) || strings.Contains(k.raw, `"d"`) || k.fields["cache-control"] != "public, max-age=300" {
		t.Errorf("%d %s %v", k.status, k.raw, k.fields)
	}
}

// TestChecks: a configuration that would allow something by omission is refused.
func TestChecks(t *testing.T) {
	h := newHouse(t)
	one := clients()[0]
	for _, c := range []struct {
		want string
		tune func(c *Config)
	}{
		{"scheme, host and port", func(c *Config) { c.Issuer = issuer + "/path" }},
		{"scheme, host and port", func(c *Config) { c.Issuer = issuer + "/" }},
		{"scheme, host and port", func(c *Config) { c.Issuer = "auth.example.com" }},
		{"whole seconds", func(c *Config) { c.Lifetime = 2 * time.Hour }},
		{"a state and a name", func(c *Config) { c.State = nil }},
		{"declared twice", func(c *Config) { c.Clients = append(c.Clients, one) }},
		{"no secret", func(c *Config) { c.Clients[0].Secret = [32]byte{} }},
		{"unknown method", func(c *Config) { c.Clients[0].Method = "none" }},
		{"no verifier", func(c *Config) { c.Clients[0].Method = PrivateKeyJWT }},
		{"no holder", func(c *Config) { c.Clients[0].Method = MTLS }},
		{"no certificate", func(c *Config) { c.Clients[0].Method = MTLSOwn }},
		{"bound to a certificate", func(c *Config) { c.Clients[0].BoundMTLS = true }},
		{"for no audience", func(c *Config) { c.Clients[0].Audiences = nil }},
		{"nobody's", func(c *Config) { c.Clients[0].Subjects = nil }},
		{"unknown source", func(c *Config) { c.Clients[0].Subjects = []string{"corps"} }},
		{"come with token exchange only", func(c *Config) { c.Clients[0].Grants = []Grant{ClientCredentials} }},
		{"cannot be given", func(c *Config) { c.Clients[0].Grants = []Grant{"password"} }},
		{"no scope that can be given", func(c *Config) { c.Clients[0].Scopes = []string{"offline_access"} }},
		{"no scope that can be given", func(c *Config) { c.Clients[0].Scopes = []string{"a b"} }},
		{"the id must be", func(c *Config) { c.Clients[0].ID = "a:b" }},
		{"both keep their plain names", func(c *Config) { c.Subjects[0].Plain, c.Subjects[1].Plain = true, true }},
		{"declared twice", func(c *Config) { c.Subjects = append(c.Subjects, c.Subjects[0]) }},
	} {
		cfg := Config{Issuer: issuer, Name: "own", Lifetime: time.Minute, Clients: []Client{one}, Subjects: subjects(), State: h.state}
		c.tune(&cfg)
		if _, err := New(cfg); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%v, want %q", err, c.want)
		}
	}
}
