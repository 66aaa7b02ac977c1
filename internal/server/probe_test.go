package server

import (
	"encoding/json"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// product is what a product's discovery, keys and tokens are really like.
type product struct {
	preset, path string // of the issuer URL
	discovery    string // further members
	key          map[string]any
	more         []map[string]any // other keys that it publishes
	header       string           // without alg and kid
	claims       string           // without iss, iat and exp
	audience     string
	lifetime     time.Duration
	idToken      string            // claims of its ID token for the same audience
	also         []string          // presets that take the token too, because they are wider
	want         map[string]string // of the principal: "sub" "client" "roles" "scopes"
}

func products() []product {
	return []product{
		{
			preset: "rfc9068", path: "/as", audience: "https://api.example.com", lifetime: 5 * time.Minute,
			key: map[string]any{"use": "sig", "alg": "RS256"}, header: `"typ":"at+jwt"`,
			claims:  `"sub":"5ba552d67","aud":"https://api.example.com","client_id":"s6BhdRkqt3","jti":"dbe39bf3a3ba4238a513f51d6e1691c4","scope":"openid profile","roles":["clerk"],"auth_time":1618354090`,
			idToken: `"sub":"5ba552d67","aud":"https://api.example.com","nonce":"n-0S6_WzA2Mj","at_hash":"77QmUPtjPfzWtF2AnpK9RQ"`,
			also:    []string{"auth0"}, want: map[string]string{"sub": "5ba552d67", "client": "s6BhdRkqt3", "roles": "clerk", "scopes": "openid profile"},
		},
		{
			preset: "keycloak", path: "/realms/shop", audience: "orders-api", lifetime: 5 * time.Minute,
			discovery: `,"introspection_endpoint":"https://x.example/introspect","frontchannel_logout_supported":true`,
			key:       map[string]any{"use": "sig", "alg": "RS256", "x5t": "bKT9LY9qkD8Yq0mWqXqZk0Hyb1s"},
			more:      []map[string]any{{"use": "enc", "alg": "RSA-OAEP", "kid": "enc-1"}},
			header:    `"typ":"JWT"`,
			claims: `"jti":"onrtac:8a1b5c9d","aud":["orders-api","account"],"sub":"f3a1c2d4-0000-4000-8000-000000000001","typ":"Bearer","azp":"shop-web","sid":"0c0b7a3e","acr":"1","allowed-origins":["https://shop.example.com"],` +
				`"realm_access":{"roles":["clerk","offline_access"]},"resource_access":{"account":{"roles":["view-profile"]}},"scope":"profile email","email_verified":true,"name":"Ann Other","preferred_username":"ann","email":"ann@example.com"`,
			idToken: `"jti":"x","aud":"orders-api","sub":"f3a1c2d4","typ":"ID","azp":"orders-api","nonce":"n","at_hash":"h","sid":"s","acr":"1"`,
			also:    []string{"auth0"}, want: map[string]string{"sub": "f3a1c2d4-0000-4000-8000-000000000001", "client": "shop-web", "roles": "clerk offline_access", "scopes": "profile email"},
		},
		{
			preset: "entra", path: "/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0", audience: "6e74172b-be56-4843-9ff4-e66a39bb12e3", lifetime: 75 * time.Minute,
			discovery: `,"tenant_region_scope":"EU","cloud_instance_name":"microsoftonline.com","msgraph_host":"graph.microsoft.com"`,
			key:       map[string]any{"use": "sig", "x5t": "2ZQpJ3UpbjAYXYGaXEJl8lV0TOI", "cloud_instance_name": "microsoftonline.com", "issuer": "https://login.microsoftonline.com/72f988bf-86f1-41af-91ab-2d7cd011db47/v2.0"},
			header:    `"typ":"JWT","x5t":"2ZQpJ3UpbjAYXYGaXEJl8lV0TOI"`,
			claims: `"aud":"6e74172b-be56-4843-9ff4-e66a39bb12e3","nbf":IAT,"aio":"AXQAi/8IAAAA","azp":"04b07795-8ddb-461a-bbee-02f9e1bf7b46","azpacr":"0","name":"Ann Other","oid":"690222be-ff1a-4d56-abd1-7e4f7d38e474",` +
				`"preferred_username":"ann@example.com","rh":"I","roles":["Orders.Read"],"scp":"access_as_user","sub":"HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ","tid":"72f988bf-86f1-41af-91ab-2d7cd011db47","uti":"fqiBqXLPj0eQa82S-IYFAA","ver":"2.0"`,
			idToken: `"aud":"6e74172b-be56-4843-9ff4-e66a39bb12e3","nonce":"12345","oid":"690222be","sub":"HKZ","tid":"72f988bf","ver":"2.0"`,
			also:    []string{"auth0"}, want: map[string]string{"sub": "HKZpfaHyWadeOouYlitjrI-KffTm222X5rrV3xDqfKQ", "client": "04b07795-8ddb-461a-bbee-02f9e1bf7b46", "roles": "Orders.Read", "scopes": "access_as_user"},
		},
		{
			preset: "auth0", path: "/", audience: "https://orders.example.com", lifetime: 24 * time.Hour,
			discovery: `,"device_authorization_endpoint":"https://x.example/oauth/device/code"`,
			key:       map[string]any{"use": "sig", "alg": "RS256", "x5t": "bKT9LY9qkD8Yq0mWqXqZk0Hyb1s"}, header: `"typ":"JWT"`,
			claims:  `"sub":"auth0|5f7c8ec7c33c6c004bbafe82","aud":["https://orders.example.com","https://tenant.eu.auth0.com/userinfo"],"azp":"my_client_id","scope":"openid read:orders","permissions":["read:orders"]`,
			idToken: `"sub":"auth0|5f7c8ec7c33c6c004bbafe82","aud":"https://orders.example.com","nonce":"n","sid":"s"`,
			want:    map[string]string{"sub": "auth0|5f7c8ec7c33c6c004bbafe82", "client": "my_client_id", "roles": "read:orders", "scopes": "openid read:orders"},
		},
		{
			preset: "okta", path: "/oauth2/default", audience: "api://default", lifetime: time.Hour,
			key: map[string]any{"use": "sig", "alg": "RS256"}, header: "",
			claims:  `"ver":1,"jti":"AT.0mP4JKAZX1iACIT4vbEDF7LpvDVjxypPMf0D7uX39RE","aud":"api://default","cid":"nmdP1fcyvdVO11AL7ECm","uid":"00ucmukel4KHsPARU0h7","scp":["openid","orders.read"],"auth_time":1467145094,"sub":"ann@example.com","groups":["Everyone","clerk"]`,
			idToken: `"ver":1,"jti":"ID.x","aud":"api://default","sub":"00ucmukel4KHsPARU0h7","nonce":"n","at_hash":"h","idp":"x","amr":["pwd"]`,
			want:    map[string]string{"sub": "ann@example.com", "client": "nmdP1fcyvdVO11AL7ECm", "roles": "Everyone clerk", "scopes": "openid orders.read"},
		},
		{
			preset: "cognito", path: "/eu-central-1_AbCdEfGhI", audience: "7u3k2abcd9", lifetime: time.Hour,
			key: map[string]any{"use": "sig", "alg": "RS256"}, header: "",
			claims:  `"sub":"aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee","cognito:groups":["clerk"],"client_id":"7u3k2abcd9","origin_jti":"o","event_id":"e","token_use":"access","scope":"aws.cognito.signin.user.admin","auth_time":1676312777,"jti":"j","username":"ann"`,
			idToken: `"sub":"aaaaaaaa","aud":"7u3k2abcd9","cognito:groups":["clerk"],"event_id":"e","token_use":"id","auth_time":1676312777,"cognito:username":"ann","email":"ann@example.com"`,
			want:    map[string]string{"sub": "aaaaaaaa-bbbb-cccc-dddd-eeeeeeeeeeee", "client": "7u3k2abcd9", "roles": "clerk", "scopes": "aws.cognito.signin.user.admin"},
		},
		{
			// What Google's services send each other; its access tokens are opaque.
			preset: "google", path: "/google", audience: "https://api.example.com", lifetime: time.Hour,
			key: map[string]any{"use": "sig", "alg": "RS256"}, header: `"typ":"JWT"`,
			idToken: `"aud":"https://api.example.com","azp":"1234.apps","sub":"110169484474386276334","email":"ann@example.com","email_verified":true,"at_hash":"h"`,
		},
	}
}

// productHouse is where a product's documents are served.
type productHouse struct {
	*httptest.Server
	env    *jwtattack.Env
	issuer string
}

func newProductHouse(t *testing.T, p *product) *productHouse {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	h := &productHouse{env: env}
	jwk := func(kid string, more map[string]any) map[string]any {
		out := map[string]any{"kid": kid}
		for k, v := range jwtattack.JWK(env.Public("RS256")) {
			out[k] = v
		}
		delete(out, "alg")
		maps.Copy(out, more)
		return out
	}
	keys := []any{jwk("rs256", p.key)}
	for _, k := range p.more {
		keys = append(keys, jwk("", k))
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET "+strings.TrimSuffix(p.path, "/")+"/.well-known/openid-configuration", func(w http.ResponseWriter, _ *http.Request) {
		fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q%s}`, h.issuer, h.URL+"/certs", p.discovery)
	})
	mux.HandleFunc("GET /certs", func(w http.ResponseWriter, _ *http.Request) {
		_ = json.NewEncoder(w).Encode(map[string]any{"keys": keys})
	})
	h.Server = httptest.NewServer(mux)
	t.Cleanup(h.Close)
	h.issuer = h.URL + p.path
	return h
}

func (h *productHouse) token(p *product, claims string) string {
	now := time.Now().Unix()
	header := `{"alg":"RS256","kid":"rs256"`
	if p.header != "" {
		header += "," + p.header
	}
	iat := fmt.Sprint(now - 5)
	text := fmt.Sprintf(`{"iss":%q,"iat":%s,"exp":%d,%s}`, h.issuer, iat, now-5+int64(p.lifetime/time.Second), strings.ReplaceAll(claims, "IAT", iat))
	return h.env.TokenText("RS256", header+"}", text)
}

// probed checks a configuration with one issuer against a sample.
func probed(t *testing.T, issuer, audience, preset, more, sample string) ([]Probed, *config.Problems) {
	t.Helper()
	f, problems := config.Parse(filepath.Join(t.TempDir(), "gatebook.yaml"), []byte(fmt.Sprintf(`node: gate-1
origin: log.example.com/test
listen: [{name: a, address: ":8443", plaintext: behind_proxy, trusted: ["10.0.0.0/8"]}]
issuers:
  - name: corp
    preset: %s
    issuer: %q
    audiences: [%q]
    %s
upstreams: {app: {targets: ["http://127.0.0.1:1"]}}
routes: [{name: all, path: "/", upstream: app, authn: [{jwt: corp}]}]
roles: {r: {allow: ["*"]}}
`, preset, issuer, audience, more)))
	if problems != nil {
		t.Fatal(problems)
	}
	return Probe(t.Context(), f, sample)
}

// A product's documents and tokens pass with its preset and with no other but
// those known to be wider; its ID tokens pass with none.
func TestPresetsOfProducts(t *testing.T) {
	all := products()
	for i := range all {
		p := &all[i]
		t.Run(p.preset, func(t *testing.T) {
			h := newProductHouse(t, p)
			for _, preset := range config.Presets() {
				if preset == "auth0" && !strings.HasSuffix(h.issuer, "/") || preset == "okta" && !strings.Contains(h.issuer, "/oauth2/") {
					// The configuration itself is refused; the rules are tried below.
					continue
				}
				if p.claims != "" {
					out, problems := probed(t, h.issuer, p.audience, preset, "", h.token(p, p.claims))
					want := preset == p.preset || slices.Contains(p.also, preset)
					if got := problems == nil && out[0].Sample && out[0].Keys == 1; got != want {
						t.Errorf("preset %s: taken %v, want %v: %v", preset, got, want, problems)
					}
				}
				if out, problems := probed(t, h.issuer, p.audience, preset, "", h.token(p, p.idToken)); problems == nil || out[0].Sample {
					t.Errorf("preset %s takes the ID token", preset)
				}
			}
			if p.claims != "" {
				p.taken(t, h)
			}
		})
	}
	if len(all) != len(config.Presets())+1 {
		t.Errorf("%d products, %d presets that take tokens", len(all), len(config.Presets()))
	}
}

// taken checks who the product's token speaks for, and the rules of every
// preset that its configuration would refuse.
func (p *product) taken(t *testing.T, h *productHouse) {
	t.Helper()
	for _, preset := range config.Presets() {
		c := (&config.Issuer{Name: "corp", Issuer: h.issuer, Audiences: []string{p.audience}, Skew: config.Duration(30 * time.Second)}).WithPreset(preset)
		j, err := buildIssuer(c, nil, nil, authn.NewCache(0), nil, slog.New(slog.DiscardHandler))
		if err != nil {
			t.Fatal(err)
		}
		who, err := j.Authenticate(t.Context(), bearerOf(h.token(p, p.claims)))
		want := preset == p.preset || slices.Contains(p.also, preset)
		if (err == nil) != want {
			t.Errorf("rules of %s: %v, want taken %v", preset, err, want)
		}
		if preset != p.preset || err != nil {
			continue
		}
		got := map[string]string{"sub": who.Subject, "client": who.Client, "roles": strings.Join(who.Roles, " "), "scopes": strings.Join(who.Scopes, " ")}
		if !maps.Equal(got, p.want) {
			t.Errorf("%v, want %v", got, p.want)
		}
		if len(who.Audiences) == 0 || !slices.Contains(who.Audiences, p.audience) {
			t.Errorf("audiences %q", who.Audiences)
		}
		if _, err := j.Authenticate(t.Context(), bearerOf(h.token(p, p.idToken))); err == nil {
			t.Error("the ID token is taken")
		}
	}
}

// What is wrong is named with the line that decides about it.
func TestProbeNamesTheLine(t *testing.T) {
	p := &products()[0]
	h := newProductHouse(t, p)
	good := h.token(p, p.claims)
	for _, row := range []struct {
		name, issuer, audience, preset, more, sample string
		line                                         int
		say                                          []string
	}{
		{"all well", h.issuer, p.audience, "rfc9068", "", good, 0, nil},
		{"other audience", h.issuer, "orders", "rfc9068", "", good, 8, []string{"token_audience", `"https://api.example.com"`}},
		{"other preset", h.issuer, p.audience, "keycloak", "", good, 6, []string{"preset: rfc9068"}},
		{"short life", h.issuer, p.audience, "rfc9068", "max_lifetime: 1m", good, 9, []string{"token_lifetime_exceeded", "5m0s"}},
		{"other algorithm", h.issuer, p.audience, "rfc9068", "algorithms: [ES256]", good, 9, []string{"no configured algorithm fits"}},
		{"other type", h.issuer, p.audience, "rfc9068", "types: [JWT]", good, 9, []string{"token_type", `"at+jwt"`}},
		{"issuer with a slash", h.issuer + "/", p.audience, "rfc9068", "", good, 7, []string{"calls itself", h.issuer}},
		{"nobody there", "http://127.0.0.1:1/x", p.audience, "rfc9068", "", "", 7, []string{"connection refused", "issuer_unavailable"}},
		{"no metadata", h.URL + "/nothing", p.audience, "rfc9068", "", "", 7, []string{"answered 404"}},
		{"key set elsewhere", h.issuer, p.audience, "rfc9068", `jwks: {url: "` + h.URL + `/none"}`, "", 9, []string{"answered 404"}},
		{"forged", h.issuer, p.audience, "rfc9068", "", good[:len(good)-8] + "AAAAAAAA", 5, []string{"token_signature", `"rs256"`}},
		{"no token", h.issuer, p.audience, "rfc9068", "", "opaque", 5, []string{"introspection"}},
		{"token of another", h.issuer, p.audience, "rfc9068", "", h.env.Token("RS256", jwtattack.Header("RS256"), jwtattack.Claims()), 7, []string{jwtattack.Issuer}},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, problems := probed(t, row.issuer, row.audience, row.preset, row.more, row.sample)
			if row.line == 0 {
				if problems != nil {
					t.Fatal(problems)
				}
				return
			}
			if problems.Len() == 0 {
				t.Fatal("nothing is found")
			}
			first := problems.All()[0]
			if first.Line != row.line {
				t.Errorf("line %d, want %d: %v", first.Line, row.line, problems)
			}
			for _, s := range row.say {
				if !strings.Contains(problems.Error(), s) {
					t.Errorf("it does not say %q: %v", s, problems)
				}
			}
			if row.sample != "" && strings.Contains(problems.Error(), row.sample) && row.sample != "opaque" {
				t.Error("the sample token is printed")
			}
		})
	}
}

// An endpoint that does not know the gate is found before anybody is refused.
func TestProbeIntrospection(t *testing.T) {
	p := &products()[0]
	h := newProductHouse(t, p)
	secret := "s3cret"
	endpoint := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, got, _ := r.BasicAuth(); got != secret {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		if r.PostFormValue("token") == "opaque" {
			fmt.Fprintf(w, `{"active":true,"sub":"ann","client_id":"web","aud":%q,"token_type":"Bearer"}`, p.audience)
			return
		}
		fmt.Fprint(w, `{"active":false}`)
	}))
	t.Cleanup(endpoint.Close)
	more := func(u string) string {
		return fmt.Sprintf("introspection: {url: %q, client_id: gate, client_secret: {env: PROBE_SECRET}}", u)
	}
	t.Setenv("PROBE_SECRET", secret)
	out, problems := probed(t, h.issuer, p.audience, "rfc9068", more(endpoint.URL), "opaque")
	if problems != nil || !out[0].Introspection || !out[0].Sample {
		t.Errorf("%+v %v", out, problems)
	}
	if _, problems = probed(t, h.issuer, "other", "rfc9068", more(endpoint.URL), "opaque"); problems.Len() == 0 || !strings.Contains(problems.Error(), "token_audience") {
		t.Errorf("other audience: %v", problems)
	}
	if _, problems = probed(t, h.issuer, p.audience, "rfc9068", more(h.URL+"/none"), ""); problems.Len() != 1 || problems.All()[0].Line != 9 {
		t.Errorf("nothing there: %v", problems)
	}
	t.Setenv("PROBE_SECRET", "wrong-one")
	if _, problems = probed(t, h.issuer, p.audience, "rfc9068", more(endpoint.URL), ""); problems.Len() != 1 || !strings.Contains(problems.Error(), "client_id") || strings.Contains(problems.Error(), "wrong-one") {
		t.Errorf("wrong secret: %v", problems)
	}
}
