package authn_test

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

func genuine(t testing.TB, alg string) string {
	return env(t).Token(alg, jwtattack.Header(alg), jwtattack.Claims())
}

func TestPrincipal(t *testing.T) {
	c := tableConfig(t)
	c.RolesClaim = "/realm_access/roles"
	c.TenantClaim = "/tenants/0/id"
	c.PassClaims = []string{"department", "/address/country", "level", "member", "missing", "list", "wide", "huge", "part", "object", "null"}
	j := newJWT(t, c)
	now := jwtattack.Now.Unix()
	claims := jwtattack.Claims().
		Set("realm_access", `{"roles":["clerk","auditor"]}`).
		Set("tenants", `[{"id":"t-1"},{"id":"t-2"}]`).
		Set("acr", `"urn:mfa"`).Set("amr", `["pwd","otp"]`).Set("auth_time", "1795435000").
		Set("name", `"Alice Ünal"`).Set("email", `"alice@example.com"`).
		Set("department", `"sales"`).Set("address", `{"country":"DE"}`).Set("level", "7").Set("member", "true").
		Set("list", "[1]").Set("huge", "99999999999999999999").Set("part", "1.5").Set("object", "{}").Set("null", "null").Set("wide", `"`+strings.Repeat("w", 257)+`"`)
	p, err := authenticate(j, env(t).Token("ES384", jwtattack.Header("ES384"), claims))
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []struct{ name, got, want string }{
		{"method", p.Method, "jwt"}, {"issuer", p.Issuer, "corp"}, {"subject", p.Subject, "alice"}, {"client", p.Client, "web"},
		{"roles", strings.Join(p.Roles, ","), "clerk,auditor"}, {"scopes", strings.Join(p.Scopes, ","), "read,write"},
		{"amr", strings.Join(p.AMR, ","), "pwd,otp"}, {"acr", p.ACR, "urn:mfa"}, {"kid", p.KID, "es384"}, {"alg", p.Alg, "ES384"},
		{"token id", p.TokenID, "0001"}, {"name", p.Name, "Alice Ünal"}, {"email", p.Email, "alice@example.com"}, {"tenant", p.Tenant, "t-1"},
	} {
		if f.got != f.want {
			t.Errorf("%s is %q, want %q", f.name, f.got, f.want)
		}
	}
	if !p.IssuedAt.Equal(time.Unix(now-30, 0)) || !p.Expires.Equal(time.Unix(now+300, 0)) || !p.AuthTime.Equal(time.Unix(1795435000, 0)) {
		t.Errorf("times are %v, %v, %v", p.IssuedAt, p.Expires, p.AuthTime)
	}
	want := map[string]string{"department": "sales", "/address/country": "DE", "level": "7", "member": "true"}
	if !maps.Equal(p.Claims, want) {
		t.Errorf("claims are %v, want %v", p.Claims, want)
	}
	if got := strings.Join(p.Unfit, " "); got != "list wide huge part object" {
		t.Errorf("unfit claims are %q", got)
	}
}

func TestAuthorizationField(t *testing.T) {
	j := newJWT(t, tableConfig(t))
	token := genuine(t, "EdDSA")
	none := reason.NoCredential // stands for ErrNoCredential itself
	for _, row := range []struct {
		name   string
		fields []string
		want   reason.Reason
	}{
		{"none", nil, none},
		{"empty", []string{""}, none},
		{"one", []string{"Bearer " + token}, ""},
		{"lower case", []string{"bearer " + token}, ""},
		{"upper case", []string{"BEARER " + token}, ""},
		{"two different", []string{"Bearer " + token, "Bearer x"}, reason.TwoCredentials},
		{"two equal", []string{"Bearer " + token, "Bearer " + token}, reason.TwoCredentials},
		{"two schemes", []string{"Basic eDp5", "Bearer " + token}, reason.TwoCredentials},
		{"two, the first empty", []string{"", "Bearer " + token}, reason.TwoCredentials},
		{"basic", []string{"Basic eDp5"}, none},
		{"dpop", []string{"DPoP " + token}, none},
		{"scheme with a tail", []string{"Bearerx " + token}, none},
		{"scheme only", []string{"Bearer"}, reason.TokenMalformed},
		{"scheme and space", []string{"Bearer "}, reason.TokenMalformed},
		{"two spaces", []string{"Bearer  " + token}, reason.TokenMalformed},
		{"tab", []string{"Bearer\t" + token}, reason.TokenMalformed},
		{"no space", []string{"Bearer" + token}, none},
		{"colon", []string{"Bearer: " + token}, reason.TokenMalformed},
		{"equals", []string{"Bearer=" + token}, reason.TokenMalformed},
		{"space in front", []string{" Bearer " + token}, reason.TokenMalformed},
		{"space behind", []string{"Bearer " + token + " "}, reason.TokenMalformed},
		{"comma behind", []string{"Bearer " + token + ","}, reason.TokenMalformed},
		{"list", []string{"Bearer " + token + ", Bearer " + token}, reason.TokenMalformed},
		{"quoted", []string{`Bearer "` + token + `"`}, reason.TokenMalformed},
		{"parameter", []string{"Bearer token=" + token}, reason.TokenMalformed},
		{"no ASCII", []string{"Bearer " + token + "é"}, reason.TokenMalformed},
		{"no scheme", []string{token}, none},
		{"kelvin sign", []string{"Bearer\u212a " + token}, reason.TokenMalformed},
		{"long", []string{"Bearer " + strings.Repeat("a", 8193)}, reason.TokenMalformed},
		{"megabyte", []string{"Bearer " + strings.Repeat("a.", 1<<19)}, reason.TokenMalformed},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := j.Authenticate(context.Background(), request(row.fields...))
			if got := reasonOf(err); got != row.want {
				t.Fatalf("got %q, want %q (%v)", got, row.want, err)
			}
			if row.want == none && !errors.Is(err, authn.ErrNoCredential) {
				t.Fatalf("%v is not ErrNoCredential", err)
			}
		})
	}
}

// A token anywhere but in Authorization is no credential.
func TestOtherPlaces(t *testing.T) {
	j := newJWT(t, tableConfig(t))
	token := genuine(t, "EdDSA")
	r := request()
	r.Query, r.HasQuery = "access_token="+token, true
	for _, name := range []string{"cookie", "x-authorization", "proxy-authorization", "x-access-token", "authorization_", "dpop"} {
		r.Fields = append(r.Fields, canon.Field{Name: name, Value: "Bearer " + token})
	}
	if _, err := j.Authenticate(context.Background(), r); err != authn.ErrNoCredential {
		t.Fatalf("got %v, want ErrNoCredential", err)
	}
}

func TestNotMine(t *testing.T) {
	a := newJWT(t, tableConfig(t))
	other := tableConfig(t)
	other.Name, other.Issuer = "partner", "https://partner.example.com"
	b := newJWT(t, other)

	foreign := env(t).Token("RS256", jwtattack.Header("RS256"), jwtattack.Claims().Set("iss", `"https://partner.example.com"`))
	_, err := authenticate(a, foreign)
	var f *authn.Failure
	if !errors.Is(err, authn.ErrNoCredential) || !errors.As(err, &f) || f.Reason != reason.TokenIssuer {
		t.Fatalf("another issuer's token: got %v", err)
	}
	if f.Issuer != "" || f.Claimed != "alice" {
		t.Errorf("issuer %q and claimed %q; want none and alice", f.Issuer, f.Claimed)
	}
	if p, err := authenticate(b, foreign); err != nil || p.Issuer != "partner" {
		t.Fatalf("its own issuer: got %v, %v", p, err)
	}
	_, err = authenticate(a, "gbk_0123456789")
	if !errors.Is(err, authn.ErrNoCredential) || reasonOf(err) != reason.TokenMalformed {
		t.Fatalf("opaque token: got %v", err)
	}
	// What is our own issuer's, or no sound token, is final.
	for _, token := range []string{genuine(t, "RS256") + "A", "a.b.c"} {
		if _, err := authenticate(a, token); errors.Is(err, authn.ErrNoCredential) || err == nil {
			t.Errorf("%.10s...: got %v, want a final failure", token, err)
		}
	}
}

func TestFailureSaysOnlyWhatIsKnown(t *testing.T) {
	c := tableConfig(t)
	c.Algorithms = []string{"ES256", "RS256"}
	j := newJWT(t, c)
	if _, err := authenticate(j, genuine(t, "ES256")); err != nil { // loads the keys
		t.Fatal(err)
	}
	e := env(t)
	h, cl := jwtattack.Header("ES256"), jwtattack.Claims()
	long := strings.Repeat("é", 300)
	for _, row := range []struct {
		name                      string
		token                     string
		reason                    reason.Reason
		claimed, issuer, kid, alg string
	}{
		{"expired", e.Token("ES256", h, cl.Set("iat", "1").Set("exp", "2")), reason.TokenExpired, "alice", "corp", "es256", "ES256"},
		{"unknown kid", e.Token("ES256", h.Set("kid", `"evil"`), cl), reason.TokenKeyUnknown, "alice", "corp", "", "ES256"},
		{"other alg", e.Token("EdDSA", jwtattack.Header("EdDSA"), cl), reason.TokenAlgorithm, "alice", "corp", "", ""},
		{"no sub", e.Token("ES256", h, cl.Set("sub", "1")), reason.TokenMalformed, "", "corp", "es256", "ES256"},
		{"long sub", e.Token("ES256", h, cl.Set("sub", `"x`+long+`"`)), reason.TokenMalformed, "x" + long[:510], "corp", "es256", "ES256"},
		{"broken header", e.TokenText("ES256", "{", cl.String()), reason.TokenMalformed, "alice", "corp", "", ""},
		{"other case", e.Token("ES256", h, cl.Add("SUB", `"admin"`)), reason.TokenMalformed, "alice", "corp", "es256", "ES256"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, err := authenticate(j, row.token)
			var f *authn.Failure
			if !errors.As(err, &f) {
				t.Fatal(err)
			}
			if f.Reason != row.reason || f.Issuer != row.issuer || f.KID != row.kid || f.Alg != row.alg {
				t.Errorf("got %q issuer %q kid %q alg %q", f.Reason, f.Issuer, f.KID, f.Alg)
			}
			if f.Claimed != row.claimed {
				t.Errorf("claimed is %q, want %q", f.Claimed, row.claimed)
			}
			for _, secret := range []string{row.token, "evil", "alice", "admin"} {
				if strings.Contains(err.Error(), secret) {
					t.Errorf("the error text %q repeats the token", err)
				}
			}
		})
	}
}

func TestProfileOptions(t *testing.T) {
	e := env(t)
	token := func(h, c jwtattack.Object) string { return e.Token("ES256", h, c) }
	h, cl := jwtattack.Header("ES256"), jwtattack.Claims()
	for _, row := range []struct {
		name  string
		set   func(*authn.JWTConfig)
		token string
		want  reason.Reason
	}{
		{"no typ allowed", func(c *authn.JWTConfig) { c.AllowNoType = true }, token(h.Del("typ"), cl), ""},
		{"no typ allowed, but one is there", func(c *authn.JWTConfig) { c.AllowNoType = true }, token(h, cl), reason.TokenType},
		{"typ JWT", func(c *authn.JWTConfig) { c.Types = []string{"JWT"} }, token(h.Set("typ", `"application/jwt"`), cl), ""},
		{"typ JWT, at+jwt not named", func(c *authn.JWTConfig) { c.Types = []string{"JWT"} }, token(h, cl), reason.TokenType},
		{"required claim there", func(c *authn.JWTConfig) { c.RequireClaims = map[string][]string{"typ": {"Bearer"}} }, token(h, cl.Set("typ", `"Bearer"`)), ""},
		{"required claim of another value", func(c *authn.JWTConfig) { c.RequireClaims = map[string][]string{"typ": {"Bearer"}} }, token(h, cl.Set("typ", `"ID"`)), reason.TokenType},
		{"required claim of another type", func(c *authn.JWTConfig) { c.RequireClaims = map[string][]string{"typ": {"Bearer"}} }, token(h, cl.Set("typ", `["Bearer"]`)), reason.TokenType},
		{"required claim missing", func(c *authn.JWTConfig) { c.RequireClaims = map[string][]string{"jti": nil} }, token(h, cl.Del("jti")), reason.TokenMalformed},
		{"required claim null", func(c *authn.JWTConfig) { c.RequireClaims = map[string][]string{"x": nil} }, token(h, cl.Set("x", "null")), reason.TokenMalformed},
		{"required claim by pointer", func(c *authn.JWTConfig) { c.RequireClaims = map[string][]string{"/a/b~1c": {"1"}} }, token(h, cl.Set("a", `{"b/c":1}`)), ""},
		{"nothing refused", func(c *authn.JWTConfig) { c.RefuseClaims = []string{} }, token(h, cl.Set("nonce", `"x"`)), ""},
		{"something refused", func(c *authn.JWTConfig) { c.RefuseClaims = []string{"/x/y"} }, token(h, cl.Set("x", `{"y":null}`)), reason.TokenType},
		{"a configured name in other case", func(c *authn.JWTConfig) { c.RolesClaim = "https://x.example/roles" }, token(h, cl.Set("https://x.example/Roles", `["admin"]`)), reason.TokenMalformed},
		{"audience elsewhere", func(c *authn.JWTConfig) { c.AudienceClaim = "client_id"; c.Audiences = []string{"web"} }, token(h, cl.Del("aud")), ""},
		{"audience elsewhere, aud does not count", func(c *authn.JWTConfig) { c.AudienceClaim = "client_id" }, token(h, cl), reason.TokenAudience},
		{"other client claim", func(c *authn.JWTConfig) { c.ClientClaims = []string{"cid"} }, token(h, cl.Set("cid", "1")), reason.TokenMalformed},
		{"scope elsewhere", func(c *authn.JWTConfig) { c.ScopeClaim = "scp" }, token(h, cl.Set("scp", `["a"]`)), ""},
		{"longer lifetime", func(c *authn.JWTConfig) { c.MaxLifetime = time.Hour }, token(h, cl.Set("exp", "1795438500")), ""},
		{"no max age", func(c *authn.JWTConfig) { c.MaxAge = 0 }, token(h, cl.Set("iat", "1795434400")), reason.TokenLifetimeExceeded},
		{"skew of a minute", func(c *authn.JWTConfig) { c.Skew = time.Minute }, token(h, cl.Set("iat", "1795435000").Set("exp", "1795435150")), ""},
		{"algorithm not configured", func(c *authn.JWTConfig) { c.Algorithms = []string{"RS256"} }, token(h, cl), reason.TokenAlgorithm},
		{"open key, algorithm not configured", func(c *authn.JWTConfig) { c.Algorithms = []string{"RS256"} },
			e.Token("PS256", jwtattack.Header("PS256").Set("kid", `"rsa-any"`), cl), reason.TokenAlgorithm},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := tableConfig(t)
			row.set(&c)
			_, err := authenticate(newJWT(t, c), row.token)
			if got := reasonOf(err); got != row.want {
				t.Fatalf("got %q, want %q (%v)", got, row.want, err)
			}
		})
	}
}

func TestConfigIsRefused(t *testing.T) {
	for name, set := range map[string]func(*authn.JWTConfig){
		"no name":             func(c *authn.JWTConfig) { c.Name = "" },
		"no issuer":           func(c *authn.JWTConfig) { c.Issuer = "" },
		"no audience":         func(c *authn.JWTConfig) { c.Audiences = nil },
		"empty audience":      func(c *authn.JWTConfig) { c.Audiences = []string{"a", ""} },
		"no algorithm":        func(c *authn.JWTConfig) { c.Algorithms = nil },
		"HMAC":                func(c *authn.JWTConfig) { c.Algorithms = []string{"HS256"} },
		"none":                func(c *authn.JWTConfig) { c.Algorithms = []string{"none"} },
		"algorithm twice":     func(c *authn.JWTConfig) { c.Algorithms = []string{"ES256", "ES256"} },
		"empty type":          func(c *authn.JWTConfig) { c.Types = []string{""} },
		"lifetime":            func(c *authn.JWTConfig) { c.MaxLifetime = time.Millisecond },
		"negative lifetime":   func(c *authn.JWTConfig) { c.MaxLifetime = -time.Second },
		"negative age":        func(c *authn.JWTConfig) { c.MaxAge = -1 },
		"skew":                func(c *authn.JWTConfig) { c.Skew = 61 * time.Second },
		"negative skew":       func(c *authn.JWTConfig) { c.Skew = -1 },
		"pointer":             func(c *authn.JWTConfig) { c.RolesClaim = "/a~2" },
		"empty pointer":       func(c *authn.JWTConfig) { c.RolesClaim = "/" },
		"empty client claim":  func(c *authn.JWTConfig) { c.ClientClaims = []string{""} },
		"empty required":      func(c *authn.JWTConfig) { c.RequireClaims = map[string][]string{"": nil} },
		"two key sources":     func(c *authn.JWTConfig) { c.Keys.URL = "https://x.example/keys" },
		"http keys":           func(c *authn.JWTConfig) { c.Keys = authn.KeySource{URL: "http://x.example/keys"} },
		"http loopback":       func(c *authn.JWTConfig) { c.Keys = authn.KeySource{URL: "http://127.0.0.1/keys"} },
		"http not loopback":   func(c *authn.JWTConfig) { c.Keys = authn.KeySource{URL: "http://10.0.0.1/k", AllowLoopbackHTTP: true} },
		"file url":            func(c *authn.JWTConfig) { c.Keys = authn.KeySource{URL: "file:///etc/keys"} },
		"user in url":         func(c *authn.JWTConfig) { c.Keys = authn.KeySource{URL: "https://u:p@x.example/keys"} },
		"stale below refresh": func(c *authn.JWTConfig) { c.Keys.MaxStale = time.Minute },
		"tiny refresh":        func(c *authn.JWTConfig) { c.Keys.Refresh = time.Millisecond },
		"discovery, no url":   func(c *authn.JWTConfig) { c.Issuer, c.Keys = "corp", authn.KeySource{} },
		"discovery by http":   func(c *authn.JWTConfig) { c.Issuer, c.Keys = "http://idp.example.com", authn.KeySource{} },
		"discovery, query":    func(c *authn.JWTConfig) { c.Issuer, c.Keys = "https://idp.example.com/?x", authn.KeySource{} },
		"negative verifiers":  func(c *authn.JWTConfig) { c.Verifiers = -1 },
	} {
		t.Run(name, func(t *testing.T) {
			c := tableConfig(t)
			set(&c)
			if _, err := authn.NewJWT(c); err == nil {
				t.Fatal("accepted")
			}
		})
	}
}

func TestIDFollowsConfiguration(t *testing.T) {
	base := tableConfig(t)
	ids := map[[32]byte]string{newJWT(t, base).ID(): "base"}
	for name, set := range map[string]func(*authn.JWTConfig){
		"audience": func(c *authn.JWTConfig) { c.Audiences = []string{"x"} },
		"issuer":   func(c *authn.JWTConfig) { c.Issuer = "x" },
		"types":    func(c *authn.JWTConfig) { c.Types = []string{"JWT"} },
		"skew":     func(c *authn.JWTConfig) { c.Skew = time.Second },
		"roles":    func(c *authn.JWTConfig) { c.RolesClaim = "groups" },
		"require":  func(c *authn.JWTConfig) { c.RequireClaims = map[string][]string{"jti": nil} },
		"refuse":   func(c *authn.JWTConfig) { c.RefuseClaims = []string{} },
		"age":      func(c *authn.JWTConfig) { c.MaxAge = 0 },
	} {
		c := base
		c.Audiences = slices.Clone(base.Audiences)
		set(&c)
		id := newJWT(t, c).ID()
		if same, ok := ids[id]; ok {
			t.Errorf("%s has the id of %s", name, same)
		}
		ids[id] = name
	}
	if first, second := newJWT(t, base).ID(), newJWT(t, base).ID(); first != second {
		t.Error("one configuration has two ids")
	}
}
