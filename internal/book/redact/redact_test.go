package redact

import (
	"bytes"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/book/record"
)

func testConfig() Config {
	return Config{
		QueryKeys: map[string][]string{"orders.read": {"page", "size", "q", "filter[name]"}},
		Headers:   map[string][]string{"orders.read": {"Accept-Language", "x-tag"}},
		Claims:    map[string][]string{"orders.read": {"dept", "https://example.com/region"}},
		Names: Names{
			Routes: []string{"orders.read"}, Templates: []string{"/v1/orders/{id}"}, Hosts: []string{"api.example.com"},
			SNI: []string{"api.example.com"}, Issuers: []string{"corp"}, Clients: []string{"web"},
			Roles: []string{"clerk", "auditor"}, ACR: []string{"aal2"}, AMR: []string{"pwd"}, KIDs: []string{"k1"},
			Loaded: func(what Name, value string) bool { return what == KIDName && value == "fetched" },
		},
	}
}

func mustNew(t testing.TB, c Config) *Rules {
	t.Helper()
	u, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	return u
}

// matched gives a record as the gate hands it in.
func matched() *record.Record {
	return &record.Record{
		Kind: record.KindRequest, Outcome: record.Success, Node: "gate-1", Snap: "0d4e1c9ab2f35a7788aa12fe6cd01b34",
		Route: "orders.read", Op: "GET /v1/orders/{id}", Method: "GET", Host: "api.example.com", Proto: "HTTP/2",
		Template: "/v1/orders/{id}", Status: 200, BytesIn: 7, BytesOut: 913,
		Authn:    record.Authn{Method: "jwt", Issuer: "corp", Client: "web", Roles: []string{"clerk"}, KID: "k1", Alg: "ES256", Outcome: "ok"},
		Authz:    record.Authz{Decision: "allow", Policies: []string{"clerks-read"}, Set: "9c1185a5c5e9fc54612808977ee8f548"},
		TLS:      record.TLS{Version: "1.3", ALPN: "h2", SNI: "api.example.com", JA4: "t13d1516h2_8daaf6152771_b186095e22b6"},
		Upstream: record.Upstream{Name: "orders", Target: "10.0.0.5:8080", Attempts: 1},
		Personal: record.Personal{Sub: "248289761001", Email: "ana@example.com", Name: "Ana Müller",
			Session: "b1946ac92492d2347c6235b4d2611184", Traceparent: "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"},
		Raw: record.Raw{
			IssuerSub: "corp|248289761001", Path: "/v1/orders/17", Query: "page=2",
			UA:      "Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/126.0.0.0 Safari/537.36",
			Referer: "https://app.example.com/orders", RemoteAddr: "203.0.113.7", RemotePort: 50123,
		},
	}
}

// output is all that is kept of a record.
func output(r *record.Record) string {
	return string(record.AppendPersonal(append(record.AppendFrame(nil, r), '\n'), r))
}

func TestApplyKeepsTheUsual(t *testing.T) {
	u := mustNew(t, testConfig())
	r, want := matched(), matched()
	u.Apply(r)
	want.Raw = record.Raw{}
	want.Client.Prefix = "203.0.113.0/24"
	want.Personal.IP, want.Personal.Port = "203.0.113.7", 50123
	want.Personal.Path, want.Personal.Query = "/v1/orders/17", "page=2"
	want.Personal.UA, want.Personal.Referer = matched().Raw.UA, "https://app.example.com/orders"
	want.San.Set = u.Digest()
	if !reflect.DeepEqual(r, want) {
		t.Errorf("got\n%+v\nwant\n%+v", r, want)
	}
}

func TestNamesFromOutside(t *testing.T) {
	u := mustNew(t, testConfig())
	r := matched()
	r.Host, r.TLS.SNI, r.Method, r.Proto = "evil.example", "evil.example", "HACK", "HTTP/9"
	r.Authn.Issuer, r.Authn.Client, r.Authn.KID, r.Authn.Alg, r.Authn.ACR = "x", "x", "x", "x", "x"
	roles := []string{"clerk", "root", "auditor", "god"}
	r.Authn.Roles, r.Authn.AMR, r.Trace = roles, []string{"face"}, "../../etc"
	u.Apply(r)
	for what, got := range map[string]string{
		"host": r.Host, "sni": r.TLS.SNI, "method": r.Method, "proto": r.Proto, "issuer": r.Authn.Issuer, "client": r.Authn.Client,
		"kid": r.Authn.KID, "alg": r.Authn.Alg, "acr": r.Authn.ACR, "amr": strings.Join(r.Authn.AMR, ","),
	} {
		if got != record.Other {
			t.Errorf("%s is %q", what, got)
		}
	}
	if got := strings.Join(r.Authn.Roles, ","); got != "clerk,_other,auditor" {
		t.Errorf("roles are %s", got)
	}
	if roles[1] != "root" {
		t.Error("the caller's slice was written into")
	}
	if r.Op != "_other /v1/orders/{id}" || r.Trace != "" {
		t.Errorf("op %q, trace %q", r.Op, r.Trace)
	}
	r = matched()
	r.Authn.KID, r.Template, r.Op = "fetched", "/secret/{x}", "GET /secret/{x}"
	u.Apply(r)
	if r.Authn.KID != "fetched" || r.Template != record.Other || r.Op != "GET _other" {
		t.Errorf("kid %q, template %q, op %q", r.Authn.KID, r.Template, r.Op)
	}
	if output(r) == "" || mustNew(t, Config{}).Digest() == u.Digest() {
		t.Error("digests of different rules are the same")
	}
}

func TestUnmatchedKeepsOnlyTheShape(t *testing.T) {
	u := mustNew(t, testConfig())
	for path, want := range map[string]string{
		"/":         "/",
		"/v1/users": "/{word}/{word}",
		"/v1":       "/{word}",
		"/a/5e1f9b4e-4b1c-4f0e-9d4c-0c8f6f5d4b3a/7": "/{word}/{uuid}/{int}",
		"/a//b/":                       "/{word}/{empty}/{word}/",
		"/1/2/3/4/5/6/7/8/9/10":        "/{int}/{int}/{int}/{int}/{int}/{int}/{int}/{int}/{more}",
		"/wp-login.php":                "/{file}",
		"/blog/my-first-post":          "/{word}/{slug}",
		"/x/ana@example.com":           "/{word}/{secret}",
		"/x/" + plantedJWT:             "/{word}/{secret}",
		"/r/q3Zt8XbL0vK2mN7pR4sW9":     "/{word}/{slug}",
		"/r/q3Zt8XbL0vK2mN7pR4sW9yD1":  "/{word}/{token}",
		"/x/507f1f77bcf86cd799439011":  "/{word}/{hex}",
		"/x/a%20b":                     "/{word}/{text}",
		"/" + strings.Repeat("a", 100): "/{token}",
	} {
		r := matched()
		r.Route, r.Raw.Path, r.Raw.Unmatched = record.None, path, true
		u.Apply(r)
		if r.Template != want || r.Personal.Path != "" || r.Op != record.None {
			t.Errorf("%s: template %q, want %q; path %q, op %q", path, r.Template, want, r.Personal.Path, r.Op)
		}
		if r.Personal.Query != "" {
			t.Errorf("%s: query %q of an unmatched request", path, r.Personal.Query)
		}
	}
	r := matched()
	r.Route, r.Template, r.Op, r.Raw.Path = "", "/a/secret", "GET /a/secret", ""
	u.Apply(r)
	if r.Template != "/{word}/{word}" || r.Op != record.None {
		t.Errorf("template %q, op %q", r.Template, r.Op)
	}
}

func TestQuery(t *testing.T) {
	u := mustNew(t, testConfig())
	for _, tt := range []struct{ in, want string }{
		{"", ""},
		{"page=2&size=50", "page=2&size=50"},
		{"page=2&access_token=x&size=50", "page=2&size=50"},
		{"p%61ge=2", "page=2"},
		{"page", "page="},
		{"page=1&page=2", "page=1&page=2"},
		{"PAGE=1", ""},
		{"q=a+b%20c", "q=a+b%20c"},
		{"filter%5Bname%5D=x", "filter[name]=x"},
		{"q=" + plantedJWT + "&page=1", "q=[masked:jwt]&page=1"},
		{"q=ana%40example.com", "q=[masked:email]"},
		{"q=ana%2540example.com", "q=[masked:email]"},
		{"q=a%252520b", "q=[masked:encoding]"},
		{"q=4111+1111+1111+1111", "q=[masked:card]"},
		{"q=%00", "q=[masked:shape]"},
		{"q=%22", "q=[masked:shape]"},
		{"q=100%25", "q=[masked:shape]"},
		{"q=%ff", "q=[masked:shape]"},
		{"q=" + strings.Repeat("a ", 65), "q=[masked:shape]"},
		{"q=2024-01-02", "q=2024-01-02"},
		{"x;page=1", ""},
	} {
		r := matched()
		r.Raw.Query = tt.in
		u.Apply(r)
		if r.Personal.Query != tt.want {
			t.Errorf("%s: got %q, want %q", tt.in, r.Personal.Query, tt.want)
		}
	}
	r := matched()
	r.Raw.Query = strings.Repeat("page=1&", 500) + "page=2"
	u.Apply(r)
	if n := strings.Count(r.Personal.Query, "page="); n != maxQueryPairs || r.San.Dropped == 0 {
		t.Errorf("%d pairs kept, %d dropped", n, r.San.Dropped)
	}
}

func TestReferer(t *testing.T) {
	u := mustNew(t, testConfig())
	for in, want := range map[string]string{
		"https://app.example.com/orders":                  "https://app.example.com/orders",
		"https://app.example.com":                         "https://app.example.com",
		"https://app.example.com/o?code=abc&state=x#frag": "https://app.example.com/o",
		"https://user:pass@app.example.com/o":             "https://app.example.com/o",
		"https://app.example.com/" + plantedJWT + "/o":    "https://app.example.com/[masked:jwt]/o",
		"https://app.example.com/o;jsessionid=ABC/x":      "https://app.example.com/o/x",
		"https://[2001:db8::1]:8443/x":                    "https://[2001:db8::1]:8443/x",
		"javascript:alert(1)":                             "",
		"android-app://com.example":                       "",
		"https://a b/":                                    "",
		"//x":                                             "",
		"https://" + plantedJWT + ".example.com/":         "",
	} {
		r := matched()
		r.Raw.Referer = in
		u.Apply(r)
		if r.Personal.Referer != want {
			t.Errorf("%s: got %q, want %q", in, r.Personal.Referer, want)
		}
	}
}

func TestPath(t *testing.T) {
	u := mustNew(t, testConfig())
	for in, want := range map[string]string{
		"/v1/orders/17":                                   "/v1/orders/17",
		"/v1/orders/" + plantedJWT:                        "/v1/orders/[masked:jwt]",
		"/v1/ana@example.com/x":                           "/v1/[masked:email]/x",
		"/v1/o;sid=1/x":                                   "/v1/o/x",
		"/v1/user:pw@host/x":                              "/v1/[masked:userinfo]/x",
		"/v1/https://u:p@h/x":                             "/v1/https://[masked:userinfo]/x",
		"/v1/%65yJhbGciOiJFUzI1NiJ9.eyJz":                 "/v1/[masked:jwt]",
		"/v1/orders/5e1f9b4e-4b1c-4f0e-9d4c-0c8f6f5d4b3a": "/v1/orders/5e1f9b4e-4b1c-4f0e-9d4c-0c8f6f5d4b3a",
	} {
		r := matched()
		r.Raw.Path = in
		u.Apply(r)
		if r.Personal.Path != want {
			t.Errorf("%s: got %q, want %q", in, r.Personal.Path, want)
		}
	}
}

func TestHeadersAndClaims(t *testing.T) {
	u := mustNew(t, testConfig())
	r := matched()
	r.Raw.Headers = []record.Pair{{Name: "x-tag", Value: "b"}, {Name: "authorization", Value: "Bearer x"}, {Name: "Accept-Language", Value: "de"},
		{Name: "x-tag", Value: "a"}, {Name: "x-tag", Value: "key AKIAIOSFODNN7EXAMPLE"}, {Name: "x-tag", Value: strings.Repeat("é", 600)}}
	r.Raw.Claims = []record.Pair{{Name: "role", Value: "x"}, {Name: "dept", Value: "sales"}}
	u.Apply(r)
	long := strings.Repeat("é", (capValue-len(cutMark))/2) + cutMark
	want := []record.Pair{{Name: "accept-language", Value: "de"}, {Name: "x-tag", Value: "b"}, {Name: "x-tag", Value: "a"},
		{Name: "x-tag", Value: "[masked:key]"}, {Name: "x-tag", Value: long}}
	if !reflect.DeepEqual(r.Personal.Headers, want) {
		t.Errorf("headers are %v", r.Personal.Headers)
	}
	if want := []record.Pair{{Name: "dept", Value: "sales"}}; !reflect.DeepEqual(r.Personal.Claims, want) {
		t.Errorf("claims are %v", r.Personal.Claims)
	}
	if r.San.Dropped != 2 || r.San.Tripped != 1 || r.San.Masked != 2 {
		t.Errorf("san is %+v", r.San)
	}
}

func TestIdentity(t *testing.T) {
	u := mustNew(t, testConfig())
	r := matched()
	p := &r.Personal
	p.Sub, p.Claimed, p.Email = "ana@example.com", "auth0|507f1f77bcf86cd799439011", "a.b@example.org"
	p.Name, p.TenantUser = "ana@example.com", "AAAAAAAAAAAAAAAAAAAAAIkzqFVrSaSaFHy782bbtaQ"
	p.ClientRequestID, p.Traceparent = "x y", "00-xyz"
	p.Session, p.BodySHA256 = "not a digest", strings.Repeat("ab", 32)
	r.Personal.Fwd = []string{"198.51.100.2", "unknown", "fe80::1%eth0", "2001:db8::1"}
	u.Apply(r)
	if p.Sub != "ana@example.com" || p.Claimed != "auth0|507f1f77bcf86cd799439011" || p.Email != "a.b@example.org" || len(p.TenantUser) != 43 {
		t.Errorf("identifiers were touched: %+v", *p)
	}
	if p.Name != "[masked:email]" || p.ClientRequestID != "" || p.Traceparent != "" || p.Session != "" || len(p.BodySHA256) != 64 {
		t.Errorf("kept too much: %+v", *p)
	}
	if got := strings.Join(p.Fwd, " "); got != "198.51.100.2 2001:db8::1" {
		t.Errorf("fwd is %s", got)
	}
}

func TestClientPrefix(t *testing.T) {
	for _, tt := range []struct {
		bits4, bits6    int
		addr, was, want string
	}{
		{0, 0, "203.0.113.7", "", "203.0.113.0/24"},
		{0, 0, "2001:db8:1:2:3:4:5:6", "", "2001:db8::/32"},
		{0, 0, "::ffff:203.0.113.7", "", "203.0.113.0/24"},
		{16, 48, "203.0.113.7", "", "203.0.0.0/16"},
		{16, 48, "2001:db8:1:2::1", "", "2001:db8:1::/48"},
		{32, 128, "203.0.113.7", "", "203.0.113.7/32"},
		{-1, -1, "203.0.113.7", "", "none"},
		{-1, -1, "2001:db8::1", "203.0.113.7", "none"},
		{0, 0, "", "198.51.100.77", "198.51.100.0/24"},
		{0, 0, "", "198.51.0.0/16", "198.51.0.0/16"},
		{0, 0, "", "198.51.100.77/32", "198.51.100.0/24"},
		{0, 0, "", "ana", "none"},
		{0, 0, "", "", "none"},
		{0, 0, "fe80::1%eth0", "", "none"},
	} {
		c := testConfig()
		c.ClientPrefix4, c.ClientPrefix6 = tt.bits4, tt.bits6
		r := matched()
		r.Raw.RemoteAddr, r.Client.Prefix = tt.addr, tt.was
		mustNew(t, c).Apply(r)
		if r.Client.Prefix != tt.want {
			t.Errorf("%+v: got %q", tt, r.Client.Prefix)
		}
	}
	for _, c := range []Config{{ClientPrefix4: 33}, {ClientPrefix6: 129}, {ClientPrefix4: -2}} {
		if _, err := New(c); err == nil {
			t.Errorf("%+v was accepted", c)
		}
	}
}

func TestMinimal(t *testing.T) {
	c := testConfig()
	c.Minimal = true
	u := mustNew(t, c)
	r := matched()
	u.Apply(r)
	u.Apply(r)
	if r.Client.Prefix != record.None || r.TLS.JA4 != "" || r.BytesIn != 0 || r.BytesOut != 0 {
		t.Errorf("the frame keeps %+v %+v %d %d", r.Client, r.TLS, r.BytesIn, r.BytesOut)
	}
	if p := r.Personal; p.JA4 != matched().TLS.JA4 || p.BytesIn != 7 || p.BytesOut != 913 || p.IP != "203.0.113.7" {
		t.Errorf("the personal part is %+v", p)
	}
}

func TestNewRefusesSecrets(t *testing.T) {
	headers := []string{
		"Authorization", "Proxy-Authorization", "Cookie", "Set-Cookie", "DPoP", "X-Api-Key", "Api-Key", "apikey", "X-Auth-Token",
		"X-Amz-Security-Token", "X-Goog-Api-Key", "X-CSRF-Token", "Private-Token", "X-Hub-Signature-256", "Signature", "Signature-Input",
		"Ocp-Apim-Subscription-Key", "X-Functions-Key", "X-Forwarded-Client-Cert", "Sec-WebSocket-Protocol", "X-Vault-Token",
		"WWW-Authenticate-Token", "X-Session-Id", "authentication-info", "Referer", "Location", "x_access_token", "", "a b",
	}
	keys := []string{
		"access_token", "id_token", "refresh_token", "token", "code", "state", "client_secret", "client_assertion", "assertion", "api_key",
		"apikey", "apiKey", "key", "sig", "signature", "X-Amz-Signature", "X-Amz-Credential", "x-goog-signature", "password", "passwd",
		"pwd", "secret", "session", "sid", "JSESSIONID", "otp", "SAMLResponse", "RelayState", "code_verifier", "nonce", "accessToken",
		"myAccessToken", "userPassword", "clientSecret", "auth", "logout_token", "id_token_hint", "se", "Key-Pair-Id", "", "a b",
	}
	claims := []string{"jti", "cnf", "at_hash", "access_token", "https://example.com/api_key", "nonce", "sid", "password", ""}
	for _, h := range headers {
		refuses(t, "header", h, Config{Headers: map[string][]string{"r": {h}}})
	}
	for _, k := range keys {
		refuses(t, "query key", k, Config{QueryKeys: map[string][]string{"r": {k}}})
	}
	for _, c := range claims {
		refuses(t, "claim", c, Config{Claims: map[string][]string{"r": {c}}})
	}
	refuses(t, "role", "ghp_0123456789abcdefghij0123456789abcdef", Config{Names: Names{Roles: []string{"ghp_0123456789abcdefghij0123456789abcdef"}}})
	refuses(t, "route", "long", Config{Names: Names{Routes: []string{strings.Repeat("a", 257)}}})
	mustNew(t, Config{
		Headers:   map[string][]string{"r": {"Accept-Language", "Idempotency-Key", "X-Request-Id", "Content-Type"}},
		QueryKeys: map[string][]string{"r": {"page", "size", "sort", "country_code", "monkey", "keyword", "sort_key"}},
		Claims:    map[string][]string{"r": {"dept", "tenant", "groups"}},
	})
}

func refuses(t *testing.T, what, name string, c Config) {
	t.Helper()
	if _, err := New(c); err == nil {
		t.Errorf("%s %q was accepted", what, name)
	} else if len(name) > 4 && len(name) < 60 && !strings.Contains(err.Error(), fmt.Sprintf("%q", name)) {
		t.Errorf("%s %q: the error does not name it: %v", what, name, err)
	}
}

func TestDigest(t *testing.T) {
	base := mustNew(t, testConfig()).Digest()
	if len(base) != 32 || base != mustNew(t, testConfig()).Digest() {
		t.Errorf("digest %q is not stable", base)
	}
	for name, change := range map[string]func(*Config){
		"prefix":  func(c *Config) { c.ClientPrefix4 = 16 },
		"minimal": func(c *Config) { c.Minimal = true },
		"query":   func(c *Config) { c.QueryKeys["orders.read"] = []string{"page"} },
		"route":   func(c *Config) { c.QueryKeys["other"] = nil },
		"headers": func(c *Config) { c.Headers = nil },
		"claims":  func(c *Config) { c.Claims["orders.read"] = append(c.Claims["orders.read"], "x") },
		"roles":   func(c *Config) { c.Names.Roles = nil },
		"moved":   func(c *Config) { c.Names.ACR, c.Names.AMR = c.Names.AMR, c.Names.ACR },
	} {
		c := testConfig()
		change(&c)
		if mustNew(t, c).Digest() == base {
			t.Errorf("%s: the digest does not show it", name)
		}
	}
}

// classGaps compares a class table with a struct.
func classGaps(table []FieldClass, v reflect.Type) (missing, extra []string) {
	rows := make(map[string]bool)
	for _, f := range table {
		if rows[f.Path] {
			extra = append(extra, f.Path+" twice")
		}
		rows[f.Path] = true
		switch f.Class {
		case Keep, Generalise, Pseudonymise, Seal, Drop:
		default:
			extra = append(extra, f.Path+" of class "+string(f.Class))
		}
	}
	var walk func(prefix string, t reflect.Type)
	walk = func(prefix string, t reflect.Type) {
		for i := range t.NumField() {
			f := t.Field(i)
			if f.Type.Kind() == reflect.Struct {
				walk(prefix+f.Name+".", f.Type)
				continue
			}
			if !rows[prefix+f.Name] {
				missing = append(missing, prefix+f.Name)
			}
			delete(rows, prefix+f.Name)
		}
	}
	walk("", v)
	for path := range rows {
		extra = append(extra, path)
	}
	return missing, extra
}

func TestClassTableCoversRecord(t *testing.T) {
	missing, extra := classGaps(Fields(), reflect.TypeFor[record.Record]())
	if len(missing) > 0 || len(extra) > 0 {
		t.Errorf("fields without a row: %v; rows without a field: %v", missing, extra)
	}
	type grown struct {
		record.Record
		Personal struct{ Shoe int }
	}
	missing, _ = classGaps([]FieldClass{}, reflect.TypeFor[grown]())
	if !strings.Contains(strings.Join(missing, " "), "Personal.Shoe") {
		t.Errorf("a field without a row is not noticed: %v", missing)
	}
}

// Whatever field a secret gets into, it is not kept.
func TestNoFieldKeepsASecret(t *testing.T) {
	u := mustNew(t, testConfig())
	for _, kind := range []record.Kind{record.KindRequest, record.KindAdmin} {
		for _, secret := range []string{plantedJWT, "AKIAIOSFODNN7EXAMPLE", "gbk_0a1b2c3d4e5f"} {
			plantEverywhere(t, u, kind, secret)
		}
	}
}

func plantEverywhere(t *testing.T, u *Rules, kind record.Kind, secret string) {
	var visit func(path string, index []int, typ reflect.Type)
	visit = func(path string, index []int, typ reflect.Type) {
		for i := range typ.NumField() {
			f := typ.Field(i)
			at := append(append([]int{}, index...), i)
			if f.Type.Kind() == reflect.Struct {
				visit(path+f.Name+".", at, f.Type)
				continue
			}
			r := matched()
			r.Kind = kind
			switch p := reflect.ValueOf(r).Elem().FieldByIndex(at).Addr().Interface().(type) {
			case *string:
				*p = secret
			case *[]string:
				*p = []string{"clerk", "x" + secret}
			case *[]record.Pair:
				*p = []record.Pair{{Name: "x-tag", Value: secret}, {Name: "dept", Value: secret}, {Name: secret, Value: "x"}}
			default:
				continue
			}
			if path+f.Name == "Subject" {
				continue // a random pseudonym that the book makes afterwards
			}
			u.Apply(r)
			if strings.Contains(output(r), secret) {
				t.Errorf("%s of kind %s keeps %q", path+f.Name, kind, secret)
			}
		}
	}
	visit("", nil, reflect.TypeFor[record.Record]())
}

// The largest record that Apply lets through still decodes.
func TestLargestRecordDecodes(t *testing.T) {
	u := mustNew(t, testConfig())
	for _, s := range []string{strings.Repeat("\x01", 5000), strings.Repeat("a ", 5000), strings.Repeat("\u202e", 5000)} {
		r := matched()
		fill(reflect.ValueOf(r).Elem(), s)
		r.Kind, r.Outcome = record.KindAdmin, record.Success // its names are not replaced
		r.Route = "orders.read"
		for range 100 {
			r.Raw.Headers = append(r.Raw.Headers, record.Pair{Name: "x-tag", Value: s})
			r.Raw.Claims = append(r.Raw.Claims, record.Pair{Name: "dept", Value: s})
		}
		u.Apply(r)
		r.Subject = record.None
		frame, personal := record.AppendFrame(nil, r), record.AppendPersonal(nil, r)
		if err := record.Decode(frame, personal, new(record.Record)); err != nil {
			t.Errorf("%d and %d bytes: %v", len(frame), len(personal), err)
		}
	}
}

func fill(v reflect.Value, s string) {
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() == reflect.Struct {
			fill(f, s)
			continue
		}
		switch p := f.Addr().Interface().(type) {
		case *string:
			*p = s
		case *[]string:
			*p = append(*p, s)
			for range 100 {
				*p = append(*p, s)
			}
		}
	}
}

func TestApplyAllocations(t *testing.T) {
	u := mustNew(t, testConfig())
	proto := matched()
	var r record.Record
	if n := testing.AllocsPerRun(200, func() { r = *proto; u.Apply(&r) }); n > 1 { // the prefix as text
		t.Errorf("%v allocations on the usual path, want at most 1", n)
	}
}

func BenchmarkApply(b *testing.B) {
	u := mustNew(b, testConfig())
	proto := matched()
	var r record.Record
	b.ReportAllocs()
	for b.Loop() {
		r = *proto
		u.Apply(&r)
	}
}

func checkIdempotent(t *testing.T, u *Rules, r *record.Record) {
	t.Helper()
	once := output(r)
	u.Apply(r)
	if twice := output(r); twice != once {
		t.Fatalf("applied once\n%s\ntwice\n%s", once, twice)
	}
	f, p, _ := bytes.Cut([]byte(once), []byte("\n"))
	if err := record.Decode(f, p, new(record.Record)); err != nil {
		t.Fatalf("%v\n%s", err, once)
	}
}
