package gate

import (
	"fmt"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// bypass is one published way past an authenticating proxy and its variants.
// In raw, CLERK and ROOT stand for the Authorization field of somebody who may
// do little and of somebody who may do all, and END for the end of the head.
type bypass struct {
	name string // product and number
	h1   []attempt
	h2   []attempt2
	more func(t *testing.T, h *bypassHouse)
}

// attempt is a request over HTTP/1.
type attempt struct {
	raw  string
	want string                         // reasons that are right, separated by '|'; "" if it goes through and does no harm
	safe func(t *testing.T, o *outcome) // of one that goes through
}

// attempt2 is a request over HTTP/2, with its fields.
type attempt2 struct {
	fields []string
	want   string
	safe   func(t *testing.T, o *outcome)
}

// notYet are the rows of the catalogue that have nothing to attack in this
// package; if they have elsewhere, the test is named.
var notYet = map[string]string{
	"oauth2-proxy CVE-2026-40574":             "nobody is admitted by an e-mail address or its domain",
	"oauth2-proxy CVE-2026-34454":             "sessions are none of this package's; TestSessionFixation of gate/authn tries it",
	"Pomerium CVE-2024-39315, CVE-2021-29651": "the gate has no pages of its own that show tokens, and redirects nobody with one",
	"Traefik CVE-2026-32305, -53622, -48491":  "handshakes are none of this package's; TestClientHelloVariants of server tries it; there is no HTTP/3",
	"Caddy CVE-2026-27586 (client CA)":        "handshakes are none of this package's; TestClientCertificateFiles of cmd/gatebook tries it",
	"Caddy GO-2026-5408, -5743":               "administration is none of this package's; TestBypassAdmin of cmd/gatebook tries it",
	"Kong CVE-2020-11710":                     "administration is none of this package's; TestBypassAdmin of cmd/gatebook tries it",
	"Teleport CVE-2025-49825, 10.3.11":        "credentials are not renewed and no session is bound to a client",
	"Authelia CVE-2025-24806":                 "TestBypassAutheliaCVE202524806 tries the limits on failed authentication; that by subject is tried below",
	"Skipper CVE-2026-50197 (policy)":         "policies do not look into bodies; the limit on their size is tried below",
}

const headEnd = " HTTP/1.1\r\nHost: localhost\r\n\r\n"

// get is a request without a credential.
func bareGet(target string) string { return "GET " + target + headEnd }

// refused makes attempts of targets that must all fail for the same reasons.
func allRefused(want string, targets ...string) []attempt {
	var out []attempt
	for _, target := range targets {
		out = append(out, attempt{raw: bareGet(target), want: want})
	}
	return out
}

// withFields makes attempts of one target with each field.
func withFields(want, target, who string, safe func(t *testing.T, o *outcome), fields ...string) []attempt {
	var out []attempt
	for _, f := range fields {
		out = append(out, attempt{raw: "GET " + target + " HTTP/1.1\r\nHost: localhost\r\n" + who + f + "\r\n\r\n", want: want, safe: safe})
	}
	return out
}

// noValue says that nothing of a request's value reached the upstream.
func noValue(value string) func(t *testing.T, o *outcome) {
	return func(t *testing.T, o *outcome) {
		t.Helper()
		for _, f := range o.seen {
			for name, values := range f.header {
				if strings.Contains(strings.Join(values, ","), value) {
					t.Errorf("%s reached the upstream as %s", value, name)
				}
			}
		}
	}
}

// asPeer says that the request counts as its peer's.
func asPeer(t *testing.T, o *outcome) {
	t.Helper()
	noValue("203.0.113.66")(t, o)
	if r := o.records[0]; r.Raw.RemoteAddr != "127.0.0.1" || len(r.Personal.Fwd) != 0 || r.Client.Hops != 0 {
		t.Errorf("the client is %q by way of %v", r.Raw.RemoteAddr, r.Personal.Fwd)
	}
	for _, f := range o.seen {
		if f.header.Get("X-Forwarded-Proto") != "http" || f.header.Get("X-Forwarded-For") != "127.0.0.1" || f.header.Get("X-Forwarded-Host") != "localhost" {
			t.Errorf("the upstream is told %v", f.header)
		}
	}
}

// sameEverywhere says that the upstream saw the path that was recorded.
func sameEverywhere(t *testing.T, o *outcome) {
	t.Helper()
	if len(o.seen) != 1 || o.seen[0].target != o.records[0].Raw.Path {
		t.Errorf("recorded %q, forwarded %+v", o.records[0].Raw.Path, o.seen)
	}
}

// routed says which route it was.
func routedTo(name string) func(t *testing.T, o *outcome) {
	return func(t *testing.T, o *outcome) {
		t.Helper()
		if o.records[0].Route != name {
			t.Errorf("taken by %s, not %s", o.records[0].Route, name)
		}
	}
}

// cased spells a header name in several ways.
func casedNames(names ...string) []string {
	var out []string
	for _, n := range names {
		under := strings.ReplaceAll(n, "-", "_")
		for _, v := range []string{n, strings.ToLower(n), strings.ToUpper(n), under, strings.ToLower(under), strings.Replace(n, "-", "_", 1)} {
			if !slices.Contains(out, v) {
				out = append(out, v)
			}
		}
	}
	return out
}

func fieldLines(value string, names ...string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = n + ": " + value
	}
	return out
}

var identityNames = []string{"X-Gatebook-Subject", "X-Gatebook-Roles", "X-Gatebook-Issuer", "X-Gatebook-Client", "X-Forwarded-User", "X-Forwarded-Email", "X-Forwarded-Groups", "X-Remote-User", "Remote-User"}

// spoofed tries every spelling of identity headers: replaced, removed or
// refused.
func spoofed(names []string) (out []attempt) {
	for _, line := range fieldLines("evil-value", casedNames(names...)...) {
		name, _, _ := strings.Cut(line, ":")
		want := ""
		if strings.Contains(name, "_") {
			want = "malformed_request"
		}
		out = append(out, withFields(want, "/private/x", "CLERK", noValue("evil-value"), line)...)
	}
	return out
}

// h2get are the fields of a good request, with changes appended.
func h2get(path string, more ...string) []string {
	return append([]string{":method", "GET", ":scheme", "http", ":authority", "localhost", ":path", path}, more...)
}

func bypasses() []bypass {
	return []bypass{
		{name: "oauth2-proxy CVE-2025-54576", h1: allRefused("no_credential",
			"/private/x?/public/x", "/private/x?x=/public", "/admin?/healthz", "/admin/x?a=/public/&b=../public", "/private/healthz", "/private/x?x=%2f..%2fpublic")},
		{name: "oauth2-proxy CVE-2025-64484", h1: spoofed([]string{"X-Forwarded-User", "X-Forwarded-Preferred-Username", "X-Forwarded-Access-Token"})},
		{name: "oauth2-proxy CVE-2026-34457", h1: slices.Concat(
			withFields("no_credential", "/private/x", "", nil, valueLines("User-Agent", "GoogleHC/1.0", "kube-probe/1.30", "ELB-HealthChecker/2.0", "Prometheus/2.0", "GoogleStackdriverMonitoring-UptimeChecks", "curl", "")...),
			withFields("no_credential", "/admin", "", nil, valueLines("User-Agent", "GoogleHC/1.0", "kube-probe/1.30")...))},
		{name: "oauth2-proxy CVE-2026-40575, -76835", h1: withFields("no_credential", "/private/x", "", nil,
			"X-Forwarded-Uri: /public/x", "X-Forwarded-Uri: /healthz", "X-Original-Uri: /public/x", "X-Original-Url: /public/x", "X-Rewrite-Url: /public/x", "X-Forwarded-Method: OPTIONS",
			"X-Http-Method-Override: OPTIONS", "X-Forwarded-Host: public.example", "X-Forwarded-For: 127.0.0.1\r\nX-Forwarded-Uri: /healthz", "X-Forwarded-Prefix: /public", "X-Auth-Request-Redirect: /public/x")},
		{name: "oauth2-proxy CVE-2026-41059", h1: allRefused("bad_path", "/private/x#/public/x", "/admin#/public", "/private/x?a#/public", "/#/healthz", "/admin%2f#x", "/public/x#/../admin")},
		{name: "Pomerium CVE-2023-33189", h1: slices.Concat(allRefused("bad_host|bad_path",
			"http://a.b.example.com/vault/x", "http://localhost:81/private/x", "http://localhost@evil.example/private/x", "http:///private/x", "https://localhost/private/x", "http://localhost\\@x/private/x"),
			[]attempt{
				{raw: "GET /vault/x HTTP/1.1\r\nHost: a.b.example.com\r\nHost: localhost\r\n\r\n", want: "bad_host|malformed_request"},
				{raw: "GET /vault/x HTTP/1.1\r\nHost: localhost, a.b.example.com\r\n\r\n", want: "bad_host|malformed_request"},
				{raw: "GET /vault/x HTTP/1.1\r\nHost: a.b.example.com/../localhost\r\n\r\n", want: "bad_host|malformed_request"},
				{raw: "GET /vault/x HTTP/1.1\r\nHost: x@a.b.example.com\r\n\r\n", want: "bad_host|malformed_request"},
			}),
			h2: []attempt2{
				{fields: h2get("/vault/x", "host", "a.b.example.com"), want: "bad_host|malformed_request"},
				{fields: []string{":method", "GET", ":scheme", "http", ":authority", "localhost", ":authority", "a.b.example.com", ":path", "/vault/x"}, want: "malformed_request"},
				{fields: []string{":method", "GET", ":scheme", "http", ":authority", "x@a.b.example.com", ":path", "/vault/x"}, want: "bad_host|malformed_request"},
				{fields: []string{":method", "GET", ":scheme", "http", ":path", "/vault/x", ":path", "/private/x", ":authority", "localhost"}, want: "malformed_request"},
			}},
		{name: "Pomerium CVE-2021-39206", h1: slices.Concat(allRefused("bad_path", "/admin#", "/public/x#/admin"), []attempt{
			{raw: "GET /admin HTTP/1.1\r\nHost: localhost\r\nCLERKROOT\r\n", want: "two_credentials"},
			{raw: "GET /admin HTTP/1.1\r\nHost: localhost\r\nROOTCLERK\r\n", want: "two_credentials"},
			{raw: "GET /private/x HTTP/1.1\r\nHost: localhost\r\nCLERKX-Api-Key: other\r\n\r\n", want: "two_credentials"},
			{raw: "GET /private/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer x, Bearer y\r\n\r\n", want: "token_malformed|no_credential|two_credentials"},
		})},
		{name: "Pomerium CVE-2021-29652", more: func(t *testing.T, h *bypassHouse) { // a signature that was not checked
			good := h.token("alice", "clerk")
			dot := strings.LastIndexByte(good, '.')
			for _, tok := range []string{good[:dot+1], good[:dot+5], good[:dot+1] + strings.Repeat("A", 86), good[:len(good)-4] + "AAAA", good + "A", good[:dot]} {
				h.try(t, attempt{raw: "GET /private/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer " + tok + "\r\n\r\n", want: "token_signature|token_malformed"})
			}
		}},
		{name: "Traefik CVE-2024-45410, CVE-2026-29054", h1: slices.Concat(
			withFields("malformed_request", "/private/x", "CLERK", nil, connectionTokens("X-Real-Ip", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Gatebook-Subject", "X-Gatebook-Request-Id", "Authorization", "traceparent")...),
			withFields("malformed_request", "/private/x", "CLERK", nil, "Connection: close\r\nConnection: x-gatebook-roles", "Connection: keep-alive,,X-Real-Ip", "Connection:\tx-forwarded-for"))},
		{name: "Traefik CVE-2026-33433, -39858, -54763", h1: spoofed(identityNames)},
		{name: "Traefik CVE-2026-35051, -54764", h1: withFields("", "/private/x", "CLERK", noValue("evil-value"), fieldLines("evil-value",
			"X-Forwarded-Prefix", "X-Forwarded-Port", "X-Forwarded-Server", "X-Forwarded-Scheme", "X-Forwarded-Ssl", "X-Forwarded-Tls-Client-Cert", "X-Forwarded-Path", "Forwarded")...)},
		{name: "Traefik CVE-2025-66490, -47952, -32431, CVE-2023-47106", h1: slices.Concat(
			allRefused("bad_path", "/public/..%2fadmin", "/public/%2e%2e/admin", "/public/%2e%2e%2fadmin", "/public/.%2e/admin", "/public/x/../../admin", "/public/..%5cadmin", "/public/%252e%252e/admin",
				"/public%2f..%2fadmin", "/public/x#/../admin", "/loose/..%2fadmin", "/loose/%2e%2e%2fadmin/x", "/loose/admin%2fx", "/loose//admin/x", "/loose/x%2f..%2fadmin%2fx", "/loose/%252e%252e/admin", "/loose/admin%252fx"),
			[]attempt{{raw: bareGet("/loose/x%2fy"), safe: func(t *testing.T, o *outcome) {
				if len(o.seen) != 1 || o.seen[0].target != "/loose/x%2fy" || o.records[0].Raw.Path != "/loose/x%2Fy" {
					t.Errorf("%+v", o.seen)
				}
			}}})},
		{name: "Traefik CVE-2026-40912, -48020, -65600", h1: []attempt{ // what was decided on is what goes on
			{raw: bareGet("/public/a%7eb/%63%3a"), safe: sameEverywhere},
			{raw: bareGet("/public/caf%c3%a9"), safe: sameEverywhere},
			{raw: bareGet("/public/a%20b"), safe: sameEverywhere},
			{raw: bareGet("/public/[x]"), safe: sameEverywhere},
			{raw: bareGet("/public/"), safe: sameEverywhere},
			{raw: bareGet("/public"), want: "no_route"},
		}},
		{name: "Traefik CVE-2026-71326", more: parallelCredentials},
		{name: "Traefik CVE-2026-71324", h1: []attempt{
			{raw: "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n", want: "malformed_request"},
			{raw: "CONNECT /admin HTTP/1.1\r\nHost: localhost\r\nROOT\r\n", want: "malformed_request|bad_path"},
			{raw: "CONNECT localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\nGET /admin HTTP/1.1\r\nHost: localhost\r\nROOT\r\n", want: "malformed_request"},
			{raw: "connect localhost:80 HTTP/1.1\r\nHost: localhost:80\r\n\r\n", want: "bad_path|malformed_request"},
		}},
		{name: "Traefik CVE-2026-54762, -26998, -41181", more: secretsMissing},
		{name: "Caddy CVE-2026-30851, -52845", more: absentClaims},
		{name: "Caddy CVE-2026-27586", more: unreadableKeys},
		{name: "Caddy CVE-2026-27587, -27588", h1: allRefused("no_route", "/ADMIN", "/Admin/x", "/%41dmin/x", "/PUBLIC/x", "/Public/x", "/pUBLIC/%61", "/private%20/x", "/admin%20", "/%50ublic/x"), more: manyHosts},
		{name: "Kong jwt plugin #9946", more: twoPlaces},
		{name: "Kong CVE-2021-27306", h1: slices.Concat(allRefused("no_credential", "/private/x", "/admin", "/v1/users/7/secrets"),
			withFields("no_credential|token_malformed", "/private/x", "", nil, "Authorization:", "Authorization: Bearer", "Authorization: Bearer ", "Authorization: bearer null", "Authorization: Bearer undefined", "Authorization: Basic YTpi", "Authorization: Anonymous", "X-Consumer-Username: admin", "X-Anonymous-Consumer: true"))},
		{name: "Envoy CVE-2021-29492, CVE-2019-9901", h1: allRefused("bad_path", "/public%2f..%2fadmin", "/public/..%5c..%5cadmin", "/public\\..\\admin", "/public/./../admin", "/./admin", "/public/%2e/x", "/public//../admin", "//admin", "/admin%5cx", "/%2fadmin", "/public/%5c../admin")},
		{name: "Envoy CVE-2023-27487", h1: withFields("no_credential", "/private/x", "", nil, "x-envoy-original-path: /public/x", "X-Envoy-Original-Path: /healthz", "X-Envoy-Original-Dst-Host: a", "x-envoy-decorator-operation: x", "X-Envoy-Internal: true", "X-Gatebook-Route: public"), more: func(t *testing.T, h *bypassHouse) {
			for _, a := range withFields("", "/private/x", "CLERK", noValue("evil-value"), "x-envoy-original-path: evil-value", "X-Envoy-External-Address: evil-value") {
				h.try(t, a)
			}
		}},
		{name: "Envoy CVE-2022-29226", h1: withFields("token_malformed|no_credential|token_algorithm", "/private/x", "", nil,
			"Authorization: Bearer junk", "Authorization: Bearer a.b.c", "Authorization: Bearer ..", "Authorization: Bearer e30.e30.", "Authorization: Bearer eyJhbGciOiJub25lIn0.eyJzdWIiOiJyb290In0.", "Authorization: Bearer x.y", "Cookie: BearerToken=junk; OauthHMAC=junk; OauthExpires=9999999999")},
		{name: "Envoy CVE-2025-46821", h1: slices.Concat(
			allRefused("no_credential", "/v1/users/*/secrets", "/v1/users/%2a/secrets", "/v1/users/{id}/secrets", "/v1/users/a+b/secrets", "/v1/users/(x)/secrets", "/v1/users/$/secrets", "/v1/users/@/secrets", "/v1/users/7,8/secrets", "/private/*", "/private/**"),
			allRefused("no_route", "/v1/users//secrets/x", "/v1/*/7/secrets")[1:],
			allRefused("bad_path", "/v1/users//secrets", "/v1/users/7;x/secrets", "*"))},
		{name: "Envoy/Istio CVE-2026-26308", more: everyRole},
		{name: "Envoy CVE-2026-73511/73552/73553/73547", h1: slices.Concat(
			allRefused("bad_path", "/admin;x", "/admin;x/y", "/public/..;/admin", "/;/admin", "/public;/../admin", "/admin%3bx", "/v1/users/7/secrets;x", "/admin/x;jsessionid=1"),
			allRefused("bad_path|malformed_request", "/admin\xff", "/\xffadmin", "/public/\x80"),
			withFields("malformed_request", "/private/x", "", nil, "Authorization: Bearer \xff", "Authorization: \xa0Bearer x", "Content-Type: a/\xff")),
			h2: []attempt2{
				{fields: []string{":method", "GET", ":scheme", "http", ":authority", "localhost"}, want: "malformed_request"},
				{fields: []string{":method", "GET", ":scheme", "http", ":authority", "localhost", ":path", ""}, want: "malformed_request|bad_path"},
				{fields: h2get("/admin;x"), want: "bad_path"},
				{fields: h2get("/admin\xff"), want: "bad_path|malformed_request"},
			}},
		{name: "Oathkeeper CVE-2026-33494", h1: allRefused("bad_path", "/public/../admin", "/public/../admin/x", "/public/x/../../private/x", "/healthz/../admin", "/./../admin", "/../admin", "/public/..", "/loose/../admin", "/loose//../admin", "/loose/x;/../../admin")},
		{name: "Oathkeeper CVE-2026-33495", h1: slices.Concat(
			withFields("", "/public/x", "", asPeer, "X-Forwarded-Proto: https", "X-Forwarded-Scheme: https", "X-Forwarded-Proto: https\r\nX-Forwarded-Proto: http", "Forwarded: proto=https", "X-Forwarded-Ssl: on", "Front-End-Https: on"),
			withFields("no_credential", "/private/x", "", nil, "X-Forwarded-Proto: https", "X-Forwarded-Proto: http"))},
		{name: "Oathkeeper CVE-2026-33496, CVE-2021-32701", more: cacheKeys},
		{name: "Oathkeeper GO-2023-1747", h1: withFields("malformed_request", "/private/x", "CLERK", nil, connectionTokens("X-User", "X-Gatebook-Subject", "X-Gatebook-Roles")...)},
		{name: "Authelia CVE-2026-48794", h1: hostCases()},
		{name: "Authelia CVE-2026-47203", more: oneBucket},
		{name: "Heimdall CVE-2026-42274; opa-envoy CVE-2026-26205", h1: slices.Concat(
			allRefused("bad_path", "//admin", "//admin/x", "///admin", "//localhost/admin", "//evil.example/public/x", "/public/../admin", "/loose/../admin", "/public//x", "/loose/x//../../admin", "//loose/x"),
			[]attempt{{raw: bareGet("/loose//x"), safe: routedTo("loose")}}),
			h2: []attempt2{{fields: h2get("//admin"), want: "bad_path"}, {fields: h2get("//admin/x"), want: "bad_path"}, {fields: h2get("/public/../admin"), want: "bad_path"}}},
		{name: "grpc-go CVE-2026-33186", h2: []attempt2{
			{fields: h2get("admin"), want: "malformed_request|bad_path|bad_host"},
			{fields: h2get("admin/x"), want: "malformed_request|bad_path|bad_host"},
			{fields: h2get("?/admin"), want: "malformed_request|bad_path|bad_host"},
			{fields: h2get("%2fadmin"), want: "malformed_request|bad_path|bad_host"},
			{fields: h2get("http://localhost/admin"), want: "malformed_request|bad_path|bad_host"},
			{fields: h2get("*"), want: "malformed_request|bad_path"},
			{fields: []string{":method", "POST", ":scheme", "http", ":authority", "localhost", ":path", "private.Service/Get", "content-type", "application/grpc"}, want: "malformed_request|bad_path|bad_host"},
		}},
		{name: "Skipper CVE-2026-50197; fabio CVE-2025-48865", h1: slices.Concat([]attempt{
			{raw: "POST /upload HTTP/1.1\r\nHost: localhost\r\nContent-Length: 17\r\n\r\n" + strings.Repeat("x", 17), want: "body_too_large"},
			{raw: "POST /upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n11\r\n" + strings.Repeat("x", 17) + "\r\n0\r\n\r\n", want: "body_too_large"},
			{raw: "POST /upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("1\r\nx\r\n", 17) + "0\r\n\r\n", want: "body_too_large"},
			{raw: "POST /upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n10\r\n" + strings.Repeat("x", 16) + "\r\n0\r\n\r\n"},
			{raw: "POST /upload HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: Chunked\r\nContent-Length: 3\r\n\r\n0\r\n\r\n", want: "ambiguous_framing"},
		}, withFields("malformed_request", "/private/x", "CLERK", nil, connectionTokens("X-Forwarded-Host", "X-Forwarded-Port")...))},
		{name: "chi GO-2026-5774..5777; fiber CVE-2026-45045", h1: slices.Concat(
			withFields("", "/public/x", "", asPeer, fieldLines("203.0.113.66", "X-Forwarded-For", "X-Real-Ip", "True-Client-Ip", "Cf-Connecting-Ip", "X-Client-Ip", "X-Cluster-Client-Ip", "Fastly-Client-Ip", "X-Originating-Ip", "X-Remote-Addr")...),
			withFields("", "/public/x", "", asPeer, "Forwarded: for=203.0.113.66", "X-Forwarded-For: 203.0.113.66, 127.0.0.1", "X-Forwarded-For: 203.0.113.66\r\nX-Forwarded-For: 127.0.0.1")),
			more: spoofedLimit},
		{name: "Go CVE-2025-22871", h1: []attempt{
			{raw: "POST /public/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5\nhello\r\n0\r\n\r\n", want: "malformed_request|ambiguous_framing"},
			{raw: "POST /public/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;a\nx\r\nhello\r\n0\r\n\r\n", want: "malformed_request|ambiguous_framing"},
			{raw: "POST /public/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n0\n\nGET /admin HTTP/1.1\r\nHost: localhost\r\nROOT\r\n", want: "malformed_request|ambiguous_framing"},
			{raw: "GET /public/x HTTP/1.1\nHost: localhost\n\n", want: "malformed_request"},
		}},
		{name: "Go CVE-2023-39326", h1: []attempt{
			{raw: "POST /public/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;ext=" + strings.Repeat("x", 1000) + "\r\nhello\r\n0\r\n\r\n", want: "malformed_request|ambiguous_framing"},
			{raw: "POST /public/x HTTP/1.1\r\nHost: localhost\r\nTransfer-Encoding: chunked\r\n\r\n5;a\r\nhello\r\n0\r\n\r\n", want: "malformed_request|ambiguous_framing"},
		}},
		{name: "Go CVE-2024-24791", h1: []attempt{ // refused before 100, and the connection ends
			{raw: "POST /private/x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 70\r\n\r\n", want: "no_credential"},
			{raw: "POST /upload HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue\r\nContent-Length: 70\r\n\r\nGET /admin HTTP/1.1\r\nHost: localhost\r\nROOT\r\n", want: "body_too_large"},
			{raw: "POST /public/x HTTP/1.1\r\nHost: localhost\r\nExpect: 100-continue, x\r\nContent-Length: 1\r\n\r\nx", want: "malformed_request"},
		}},
		{name: "Go CVE-2023-29406", h1: []attempt{
			{raw: "GET /public/x HTTP/1.1\r\nHost: localhost\r\n\tx: y\r\n\r\n", want: "malformed_request"},
			{raw: "GET /public/x HTTP/1.1\r\nHost: local host\r\n\r\n", want: "bad_host|malformed_request"},
			{raw: "GET /public/x HTTP/1.1\r\nHost: localhost/x?y#z\r\n\r\n", want: "bad_host|malformed_request"},
			{raw: "GET /public/x HTTP/1.1\r\nHost: localhost\rX: y\r\n\r\n", want: "bad_host|malformed_request"},
			{raw: "GET /public/x HTTP/1.1\r\nHost: localhost\x00\r\n\r\n", want: "bad_host|malformed_request"},
			{raw: "GET /public/x HTTP/1.1\r\nHost: LOCALHOST.:80\r\n\r\n", safe: func(t *testing.T, o *outcome) {
				if o.seen[0].host != "localhost" {
					t.Errorf("the upstream is asked for %q", o.seen[0].host)
				}
			}},
		}},
	}
}

// lines2 is lines with one name and many values.
func valueLines(name string, values ...string) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = name + ": " + v
	}
	return out
}

// connectionTokens names fields in Connection and sends them too.
func connectionTokens(names ...string) (out []string) {
	for _, n := range names {
		for _, form := range []string{n, strings.ToLower(n), "close, " + n, "keep-alive, " + strings.ToLower(n), strings.ReplaceAll(n, "-", "_")} {
			out = append(out, "Connection: "+form+"\r\n"+"X-Other: 1")
		}
	}
	return out
}

// hostCases reach the guarded host in every spelling of its name, and no other
// name reaches it.
func hostCases() (out []attempt) {
	for _, host := range []string{"a.b.example.com", "a.B.example.com", "A.B.EXAMPLE.COM", "a.b.example.com.", "a.b.example.com:80", "A.b.Example.com.:80", "a.b.example.com:8080"} {
		out = append(out, attempt{raw: "GET /vault/x HTTP/1.1\r\nHost: " + host + "\r\n\r\n", want: "no_credential"})
	}
	for _, host := range []string{"b.example.com", "x.a.b.example.com", "a.b.example.com.evil.example", "a-b.example.com"} {
		out = append(out, attempt{raw: "GET /vault/x HTTP/1.1\r\nHost: " + host + "\r\n\r\n", safe: routedTo("vault.open")})
	}
	for _, host := range []string{"a.b.example.com..", "a..b.example.com", "a.b.example.com:", "a.b.example.com:0", "a.b.example.com:80:80", ".a.b.example.com", "a.b.example.com%2e"} {
		out = append(out, attempt{raw: "GET /vault/x HTTP/1.1\r\nHost: " + host + "\r\n\r\n", want: "bad_host|no_credential|malformed_request"})
	}
	return out
}

// TestBypasses: every published way past such a gate that could concern this
// one is refused, or goes through and does no harm, and is recorded once.
func TestBypasses(t *testing.T) {
	h := newBypassHouse(t)
	seen := map[string]bool{}
	tries := 0
	for _, b := range bypasses() {
		if seen[b.name] {
			t.Errorf("%s is there twice", b.name)
		}
		seen[b.name] = true
		if len(b.h1)+len(b.h2) == 0 && b.more == nil {
			t.Errorf("%s tries nothing", b.name)
		}
		tries += len(b.h1) + len(b.h2)
		t.Run(b.name, func(t *testing.T) {
			for _, a := range b.h1 {
				h.try(t, a)
			}
			for _, a := range b.h2 {
				o := h.fire2(a.fields...)
				h.judge(t, fmt.Sprintf("%q", a.fields), &o, a.want, a.safe)
			}
			if b.more != nil {
				b.more(t, h)
			}
		})
	}
	for name := range notYet {
		if seen[name] || notYet[name] == "" {
			t.Errorf("%s is tried, or nothing says why it is not", name)
		}
	}
	t.Logf("%d attempts, %d rows, %d more that cannot be tried yet", tries, len(seen), len(notYet))
}

// try makes one attempt over HTTP/1.
func (h *bypassHouse) try(t *testing.T, a attempt) outcome {
	t.Helper()
	auth := func(tok string) string { return "Authorization: Bearer " + tok + "\r\n" }
	raw := strings.NewReplacer("CLERK", auth(h.token("alice", "clerk")), "ROOT", auth(h.token("root", "root"))).Replace(a.raw)
	o := h.fire(raw)
	h.judge(t, fmt.Sprintf("%.300q", a.raw), &o, a.want, a.safe)
	return o
}

// judge looks at what came of an attempt.
func (h *bypassHouse) judge(t *testing.T, what string, o *outcome, want string, safe func(*testing.T, *outcome)) {
	t.Helper()
	if len(o.records) != 1 {
		t.Errorf("%s: %d records", what, len(o.records))
		return
	}
	if strings.Contains(o.text, "eyJ") {
		t.Errorf("%s: the answer holds a token: %s", what, o.text)
	}
	if want == "" {
		if o.status != http.StatusOK || len(o.seen) != 1 || o.reason() != "" {
			t.Errorf("%s: status %d, %q, %d requests at the upstream", what, o.status, o.reason(), len(o.seen))
			return
		}
		for name := range o.seen[0].header {
			if name == "Authorization" {
				t.Errorf("%s: the credential went on", what)
			}
		}
		if safe != nil {
			safe(t, o)
		}
		return
	}
	if !slices.Contains(strings.Split(want, "|"), o.reason()) || o.status != 0 && o.status < 400 || strings.Contains(o.text, "treasure") {
		t.Errorf("%s: status %d, reason %q, want %s: %.200s", what, o.status, o.reason(), want, o.text)
	}
	if len(o.seen) != 0 {
		t.Errorf("%s: reached the upstream as %+v", what, o.seen)
	}
}
