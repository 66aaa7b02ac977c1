package config

import (
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"
)

const minimal = `
node: gate-1
origin: log.example.com/gates
listen: [{name: public, address: ":8443", tls: {certificates: [{cert: a.crt, key: sub/a.key}]}}, {name: redirect, address: ":80", redirect_to_https: true}]
issuers: [{name: corp, issuer: "https://idp.example.com", audiences: [api]}]
upstreams: {api: {targets: ["http://10.0.0.1:8080"], tls: }}
limits: {a: {key: prefix, rate: 100/m}}
routes: [{name: all, path: "/{rest...}", upstream: api, authn: [{jwt: corp}]}]
roles: {reader: {allow: ["*"]}}
`

// TestDefaults spells out what an unset key means.
func TestDefaults(t *testing.T) {
	f := mustParse(t, "/etc/gatebook/x.yaml", strings.Replace(minimal, ", tls: }", "}", 1))
	for _, c := range []struct {
		what      string
		got, want any
	}{
		{"data", f.Data, Path("/var/lib/gatebook")},
		{"keys", f.Keys.Wrapper.File, Path("/etc/gatebook/keys")},
		{"book", f.Book, Book{SegmentMaxAge: Duration(time.Hour), SyncWithin: Duration(15 * time.Millisecond), CommitTimeout: Duration(time.Second)}},
		{"admin", f.Admin.Socket, true},
		{"health", f.Health.Address, ""},
		{"reload", f.Reload.Watch, false},
		{"request id", f.RequestID.AcceptFrom, AcceptNone},
		{"redact", f.Redact.ClientPrefix, Prefixes{24, 32}},
		{"policies", f.Policies, (*Policies)(nil)},
		{"relative path", f.Listen[0].TLS.Certificates[0].Key, Path("/etc/gatebook/sub/a.key")},
		{"proxy protocol", f.Listen[0].ProxyProtocol, "off"},
		{"trusted", len(f.Listen[0].Trusted), 0},
		{"preset", f.Issuers[0].Preset, "rfc9068"},
		{"types", f.Issuers[0].Types, []string{"at+jwt"}},
		{"skew", f.Issuers[0].Skew, Duration(30 * time.Second)},
		{"lifetime", f.Issuers[0].MaxLifetime, Duration(time.Hour)},
		{"roles claim", f.Issuers[0].RolesClaim, "/roles"},
		{"key set", f.Issuers[0].JWKS, (*JWKS)(nil)},
		{"balance", f.Upstreams["api"].Balance, BalanceLeastRequests},
		{"timeouts", f.Upstreams["api"].Timeouts, Timeouts{Duration(time.Second), Duration(30 * time.Second), Duration(30 * time.Second)}},
		{"ejection", f.Upstreams["api"].Ejection, Ejection{5, Duration(10 * time.Second)}},
		{"idle", f.Upstreams["api"].MaxIdle, 128},
		{"upstream tls", f.Upstreams["api"].TLS, (*UpstreamTLS)(nil)},
		{"listeners", f.Routes[0].Listeners, []string{"public"}},
		{"audit", f.Routes[0].Audit, Audit{CommitWritten, IntentAll, OnFailureRefuse}},
		{"body", f.Routes[0].MaxBody, Size(10 << 20)},
		{"public", f.Routes[0].Public, false},
		{"burst", f.Limits["a"].Burst, int64(100)},
		{"store", f.Limits["a"].Store, "memory"},
	} {
		if !reflect.DeepEqual(c.got, c.want) {
			t.Errorf("%s: got %v, want %v", c.what, c.got, c.want)
		}
	}
	if f.Name() != "/etc/gatebook/x.yaml" || f.Dir() != "/etc/gatebook" {
		t.Errorf("name %q, directory %q", f.Name(), f.Dir())
	}
}

func TestFullValues(t *testing.T) {
	f, err := Load("testdata/valid/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	r := f.Routes[0]
	if len(r.Authn) != 2 || r.Authn[1].JWT != "batch" || r.MaxBody != 0 || r.Audit != (Audit{CommitDurable, IntentUnsafe, OnFailureAllow}) {
		t.Errorf("route: %+v", r)
	}
	if f.Admin.Socket || f.Listen[0].Trusted[1].String() != "fd00::/8" || f.Redact.ClientPrefix != (Prefixes{16, 0}) {
		t.Errorf("file: %+v", f)
	}
	if u := f.Upstreams["orders"]; u.Ejection.Failures != 0 || u.MaxIdle != 32 || !filepath.IsAbs(string(u.TLS.CA)) || u.Timeouts.IdleBody.Std() != 5*time.Minute {
		t.Errorf("upstream: %+v", u)
	}
	rules := f.Issuers[0].Rules()
	if !rules.AllowNoType || !slices.Equal(rules.Types, []string{"JWT"}) || rules.MaxLifetime != 30*time.Minute || rules.RequireClaims["typ"][0] != "Bearer" {
		t.Errorf("rules: %+v", rules)
	}
}

func TestDigest(t *testing.T) {
	base := strings.Replace(minimal, ", tls: }", "}", 1)
	lines := strings.Split(strings.TrimSpace(base), "\n")
	slices.Reverse(lines)
	want := mustParse(t, "/etc/gatebook/x.yaml", base).Digest()
	if len(want) != 32 || strings.Trim(want, "0123456789abcdef") != "" {
		t.Fatalf("digest %q", want)
	}
	same := map[string]*File{
		"order":    mustParse(t, "/etc/gatebook/x.yaml", strings.Join(lines, "\n")),
		"comments": mustParse(t, "/etc/gatebook/x.yaml", "# hello\n"+base+"\n# bye\n"),
		"defaults": mustParse(t, "/etc/gatebook/x.yaml", base+"reload: {watch: false}\nadmin: {socket: true}\nbook: {sync_within: 15ms}\n"),
		"units":    mustParse(t, "/etc/gatebook/x.yaml", base+"book: {segment_max_age: 60m}\n"),
		"place":    mustParse(t, "/srv/other/y.yaml", base),
		"again":    mustParse(t, "/etc/gatebook/x.yaml", base),
	}
	for what, f := range same {
		if got := f.Digest(); got != want {
			t.Errorf("%s changes the digest", what)
		}
	}
	f := same["again"]
	seen := map[string]string{want: "the base"}
	note := func(what, digest string) {
		if was, dup := seen[digest]; dup {
			t.Errorf("%s has the digest of %s", what, was)
		}
		seen[digest] = what
	}
	for _, c := range [][2]string{
		{"gate-1", "gate-2"}, {":8443", ":8444"}, {"a.crt", "b.crt"}, {"[api]", "[api, api2]"}, {"100/m", "100/s"},
		{"/{rest...}", "/{all...}"}, {"reader:", "writer:"}, {"\"*\"", "all"}, {"{jwt: corp}]", "{jwt: corp}], scopes: [a]"},
		{"issuers:", "request_id: {accept_from: trusted}\nissuers:"}, {"upstream: api", "upstream: api, limits: [a]"},
	} {
		text := strings.Replace(base, c[0], c[1], 1)
		if text == base {
			t.Fatalf("%q is not in the base", c[0])
		}
		note(c[1], mustParse(t, "/etc/gatebook/x.yaml", text).Digest())
	}
	note("extra", f.Digest([]byte("ab")))
	note("split extra", f.Digest([]byte("a"), []byte("b")))
	note("empty extra", f.Digest(nil))
	note("order of extra", f.Digest([]byte("b"), []byte("a")))
}

// TestDigestSeesEveryKey changes each value of a full file in turn: a digest
// that missed one would call two configurations the same.
func TestDigestSeesEveryKey(t *testing.T) {
	f, err := Load("testdata/valid/full.yaml")
	if err != nil {
		t.Fatal(err)
	}
	before := f.Digest()
	changed := 0
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		switch shapeOf(v.Type()) {
		case shapeStruct:
			if v.Kind() == reflect.Pointer {
				if v.IsNil() {
					return
				}
				v = v.Elem()
			}
			for _, fd := range fieldsOf(v.Type()) {
				walk(join(path, fd.key), v.Field(fd.index))
			}
		case shapeList:
			for i := range v.Len() {
				walk(fmt.Sprintf("%s[%d]", path, i), v.Index(i))
			}
		case shapeScalar:
			old := reflect.New(v.Type()).Elem()
			old.Set(v)
			if !v.CanSet() {
				return
			}
			switch v.Kind() {
			case reflect.Bool:
				v.SetBool(!v.Bool())
			case reflect.Int, reflect.Int64:
				v.SetInt(v.Int() + int64(time.Hour))
			case reflect.String:
				v.SetString(v.String() + "x")
			default:
				v.SetZero()
			}
			changed++
			if f.Digest() == before {
				t.Errorf("%s is not in the digest", path)
			}
			v.Set(old)
		}
	}
	walk("", reflect.ValueOf(f).Elem())
	if changed < 60 {
		t.Errorf("only %d values changed", changed)
	}
	if f.Digest() != before {
		t.Error("the walk left something changed")
	}
}

// TestPresets holds the table against what each product's tokens look like.
func TestPresets(t *testing.T) {
	type token struct {
		typ    string // "" for none
		claims map[string]string
	}
	// What the products issue, access token and ID token, reduced to what tells
	// them apart.
	products := map[string]struct{ access, id token }{
		"rfc9068":  {token{"at+jwt", map[string]string{"client_id": "c", "aud": "api"}}, token{"JWT", map[string]string{"aud": "c", "nonce": "n"}}},
		"keycloak": {token{"JWT", map[string]string{"typ": "Bearer", "azp": "c", "aud": "account"}}, token{"JWT", map[string]string{"typ": "ID", "azp": "c", "aud": "c", "at_hash": "h"}}},
		"entra":    {token{"JWT", map[string]string{"ver": "2.0", "azp": "c", "aud": "c", "scp": "s"}}, token{"JWT", map[string]string{"ver": "2.0", "aud": "c"}}},
		"auth0":    {token{"JWT", map[string]string{"azp": "c", "aud": "api"}}, token{"JWT", map[string]string{"aud": "c", "nonce": "n"}}},
		"okta":     {token{"", map[string]string{"cid": "c", "ver": "1"}}, token{"", map[string]string{"ver": "1", "aud": "c"}}},
		"cognito":  {token{"", map[string]string{"token_use": "access", "client_id": "c"}}, token{"", map[string]string{"token_use": "id", "aud": "c"}}},
		"google":   {token{}, token{"JWT", map[string]string{"aud": "c", "azp": "c"}}},
	}
	accepts := func(r Rules, tok token) bool {
		if tok.typ == "" && !r.AllowNoType || tok.typ != "" && !slices.Contains(r.Types, tok.typ) {
			return false
		}
		for name, values := range r.RequireClaims {
			if v, ok := tok.claims[name]; !ok || values != nil && !slices.Contains(values, v) {
				return false
			}
		}
		return !slices.ContainsFunc(r.RefuseClaims, func(c string) bool { _, ok := tok.claims[c]; return ok })
	}
	for _, p := range presets() {
		prod, ok := products[p.name]
		if !ok {
			t.Errorf("no sample for preset %s", p.name)
			continue
		}
		if got := accepts(p.rules, prod.access); got != (p.refuse == "") {
			t.Errorf("%s: access token accepted: %v", p.name, got)
		}
		if accepts(p.rules, prod.id) {
			t.Errorf("%s: ID token accepted", p.name)
		}
		logout := token{prod.access.typ, map[string]string{"events": "{}"}}
		for k, v := range prod.access.claims {
			logout.claims[k] = v
		}
		if accepts(p.rules, logout) {
			t.Errorf("%s: logout token accepted", p.name)
		}
		r := p.rules
		if r.AudienceClaim == "" || r.ScopeClaim == "" || len(r.ClientClaims) == 0 || len(r.Algorithms) == 0 || r.MaxLifetime%time.Second != 0 || r.MaxLifetime <= 0 {
			t.Errorf("%s: incomplete: %+v", p.name, r)
		}
		if what, _ := checkPointer(r.RolesClaim); what != "" {
			t.Errorf("%s: roles claim: %s", p.name, what)
		}
	}
	// The list of presets in the table of keys is that of the table of presets.
	i := slices.IndexFunc(allRows(), func(r row) bool { return r.path == "issuers[].preset" })
	var names []string
	for _, p := range presets() {
		names = append(names, p.name)
	}
	if enum := allRows()[i].f.enum; !slices.Equal(enum, names) {
		t.Errorf("the key allows %v, the table has %v", enum, names)
	}
	if _, ok := PresetRules("nosuch"); ok {
		t.Error("PresetRules knows nosuch")
	}
	if r, ok := PresetRules("cognito"); !ok || r.AudienceClaim != "client_id" {
		t.Errorf("cognito: %+v", r)
	}
}

// TestPresetsAreCopies: a caller that changes what it was given changes no
// other configuration.
func TestPresetsAreCopies(t *testing.T) {
	r, _ := PresetRules("rfc9068")
	r.Types[0], r.RefuseClaims[0] = "x", "x"
	if again, _ := PresetRules("rfc9068"); again.Types[0] == "x" || again.RefuseClaims[0] == "x" {
		t.Error("the table can be changed from outside")
	}
}

func TestLargeFile(t *testing.T) {
	var b strings.Builder
	b.WriteString(strings.Replace(minimal[:strings.Index(minimal, "routes:")], ", tls: }", "}", 1) + "roles: {reader: {allow: [\"*\"]}}\nroutes:\n")
	for i := range 3000 {
		fmt.Fprintf(&b, "  - name: orders.r%d\n    host: api.example.com\n    path: \"/v1/orders/%d/{id}\"\n    methods: [GET, HEAD]\n    upstream: api\n    authn: [{jwt: corp}]\n    limits: [a]\n", i, i)
	}
	name := filepath.Join(t.TempDir(), "large.yaml")
	if err := os.WriteFile(name, []byte(b.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	f, err := Load(name)
	if err != nil {
		t.Fatal(err)
	}
	if len(f.Routes) != 3000 || f.Routes[2999].Name != "orders.r2999" {
		t.Errorf("%d routes", len(f.Routes))
	}
}
