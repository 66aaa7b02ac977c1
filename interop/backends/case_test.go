package backends

import (
	"fmt"
	"math/rand/v2"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// sample is one odd connection: what is sent over it.
type sample struct {
	n       int
	kind    string // of the oddities in it
	secure  bool   // over TLS
	wire    string // HTTP/1, or
	h2      []hpack.HeaderField
	body    string // of h2
	tail    []hpack.HeaderField
	methods []string // of the requests that it looks like
	cut     bool     // the sender stops in the middle
	token   string   // in its places, once it is sent
}

// prefixes lead to routes that differ in the forms of a path that they take.
var prefixes = []string{"/s", "/es", "/semi", "/empty", "/pct", "/all", "/obs", "/jwt", ""}

// tokenHere stands for the access token, which is another one each time.
const tokenHere = "@token@"

// pick makes one of each list, the first ones no more often than the others.
func pick[T any](r *rand.Rand, list []T) T { return list[r.IntN(len(list))] }

// honest are pieces of paths, forms those with a second meaning, and hostile
// those for which there is no honest use.
var (
	honest = []string{"a", "b", "orders", "42", "a%20b", "%c3%a9t%C3%A9", "a.b", "...", "a..", ".a", "~u", "a+b", "a=b", "a&b", "a:b", "a@b", "$x", "(x)", "*", "'", "!", ",", "%41dmin",
		"ADMIN", "Admin", "admin.", "administrator", "xadmin", "%7e", "%2d", "\"", "<x>", "^", "{x}", "[x]", "`", "|", "%22", "%3f", "%23", "%25", "%7c", "%5b", "%F0%9F%94%91", "-", "_", "index.html",
		".htaccess", "a%3db", "con", "%20", "%20a", "a%20", "%e2%80%ae", "%ef%bc%8f", "%e2%81%84", "%c2%ad", "%ef%bb%bf", "admin%20", "adm%C4%B1n"}
	forms = []string{"%2f", "a%2fb", "%2Fadmin", "admin%2fx", "a%2F%2Fb", ";", ";x=1", "a;b", "a;jsessionid=1", "admin;x", "%3b", "a%3Bb", "", "", "%252f", "a%252Fb", "%25%32%66", "%2541", "%2525", "%252525",
		"%253b", "%2561dmin", "a%25zz", "%25", "x%2fadmin", "%2561", "%2520", "s%2fadmin", "x;%2fadmin", "%25c3%25a9", "%253f", "%2523"}
	hostile = []string{".", "..", "%2e", "%2e%2e", ".%2e", "%2E.", "..;", "..;x=1", "%2e%2e;", "..%2f", "%2e%2e%2f", "..%2fadmin", "%252e%252e", "%252e%252e%252fadmin", "..%5c", "..\\admin", "\\", "a\\b", "%5c", "%255c", "%00",
		"a%00.png", "%0a", "%0d%0a", "%01", "%7f", "%1f", "\x01", "\x7f", "\x00", "\t", "%c0%af", "%c0%ae%c0%ae", "%e0%80%af", "%e0%80%ae", "%f0%80%80%af", "%ed%a0%80", "%ff", "%80", "\xc3\xa9", "\xff", "%u002f", "%u2215",
		"%252u002f", "%", "%2", "%zz", "%g0", "%-1", "% 1", "%2%66", "#", "a#b", "%25252525252f", "..%00", "%2e%00", "%252e", "%25%32%65", "%2%35", "%c1%9c", "%25c0%25ae", "..%c0%af", "..%ef%bc%8f"}
	queries = []string{"", "?", "?a=1", "?a=1&a=2", "?a=%00", "??", "?/../admin", "?a=b?c", "?;a", "?a[]=1", "?q=%", "?%zz", "?a=//x", "?a=\\", "?|", "?{}", "?a=%2e%2e%2f", "?a=+", "?a=b#c", "?\x80", "?a=b c", "?\x01", "?a=`\"<>^", "?http://x/"}
	hosts   = []string{"api.example.com", "api.example.com", "API.Example.COM", "api.example.com.", "api.example.com:80", "api.example.com:443", "api.example.com:8080", "127.0.0.1", "[::1]", "[::1]:8080", "[::0:1]", "[0:0:0:0:0:0:0:1]", "localhost",
		"a_b.example.com", "xn--bcher-kva.example", "1.2.3.4:99"}
	badHosts = []string{"", " ", "a b", "a,b", "u@api.example.com", "api.example.com:0", "api.example.com:080", "api.example.com:99999", "api.example.com:", "api.example.com:8a", ":80", "a..b", ".a", "..", "-a", "a-.b", "b\xc3\xbccher.example", "a\x00b", "a\tb",
		"a/b", "a/../b", "a#b", "a?b", "a%2eb", "127.1", "0x7f.1", "017700000001", "2130706433", "1.2.3.04", "[::1", "::1", "[::1]x", "[fe80::1%25eth0]", "[v1.x]", "[127.0.0.1]", "http://a", "a;b", "a\\b", "a'b", "ab--c", strings.Repeat("a", 64), strings.Repeat("a.", 130), "*", "api.example.com..", "${x}", "{x}"}
	methods    = []string{"GET", "GET", "GET", "POST", "PUT", "DELETE", "PATCH", "HEAD", "OPTIONS", "PROPFIND", "PURGE", "M-SEARCH"}
	badMethods = []string{"get", "Get", "gEt", "post", "TRACE", "CONNECT", "PRI", "", "G ET", "GET\t", "G\x00T", "\"GET\"", "GET/", "G(T", "GET:", "GET,POST", "*", "A!#$%&'*+-.^_`|~", strings.Repeat("A", 32), strings.Repeat("A", 33), "\xc3\xa9", "-", "1", "HEADER", "DEBUG", "\x16\x03\x01"}
	versions   = []string{"HTTP/1.0", "HTTP/0.9", "HTTP/2.0", "HTTP/3.0", "HTTP/1.2", "HTTP/1.9", "HTTP/01.1", "HTTP/1.01", "HTTP/1.1 ", "HTTP/1.1x", "http/1.1", "Http/1.1", "HTTP/1", "HTTP/1.", "HTTP/ 1.1", "HTTP/11", "HTTPS/1.1", "HTTP/1,1", "HTTP/+1.1", "HTTP/1.1 HTTP/1.1", "", " ", "HTTP /1.1", "ICY/1.1", "HTTP/1.\xb9", "HTTP/1.1\t", "HTTP/1.10", "HTTP/10.1", "X"}
)

// odd names with what they may decide. "=" is where the value goes.
var (
	spoofs = []string{"X-Gatebook-Subject", "X-Gatebook-Roles", "X-Gatebook-Issuer", "X-Gatebook-Client", "X-Gatebook-Request-Id", "x-gatebook-anything", "X-Request-Id", "X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "X-Forwarded-User", "X-Forwarded-Prefix", "X-Real-IP",
		"Forwarded", "True-Client-IP", "X-Client-IP", "CF-Connecting-IP", "X-Original-URL", "X-Original-Host", "X-Rewrite-URL", "X-HTTP-Method-Override", "X-HTTP-Method", "X-Method-Override", "X-Remote-User", "Remote-User", "traceparent", "tracestate", "Client-Cert", "X-Host", "X-Envoy-Original-Path"}
	benign = []string{"Accept: */*", "Accept: a", "Accept: b", "Accept-Encoding: gzip", "User-Agent: t/1", "Cookie: a=1", "Cookie: b=2; c=3", "X-A: 1", "X-A: 2", "X-B: a, b", "X-Empty:", "X-Space:  a  b \t", "X-Obs: \xe9\xff", "X-Utf: \xc3\xa9", "X-Quote: \"a\\\"b\"",
		"Range: bytes=0-1", "If-None-Match: \"x\"", "Referer: https://a/b?c", "DPoP: x", "Content-Type: text/plain", "Origin: null", "Via: 1.1 x", "Max-Forwards: 0", "Date: Mon, 23 Nov 2026 21:00:00 GMT", "Proxy-Authorization: Basic eA==",
		"Keep-Alive: 5", "Proxy-Connection: keep-alive", "Priority: u=1", "Cache-Control: no-cache", "Pragma: x", "Early-Data: 1", "X-Comma: ,", "X-Semi: a;b", "X-Colon: a:b:c", "X-Tab: a\tb", "Upgrade-Insecure-Requests: 1", "Content-Encoding: gzip", "X-Long: " + strings.Repeat("v", 6000), "!#$%&'*+.^`|~x: 1"}
	oddFields = []string{"Accept : x", "Accept\t: x", " Accept: x", "\tAccept: x", "X-A: 1\r\n folded", "X-A: 1\r\n\tfolded", "X-A:\r\n 1", "NoColon", ": novalue", "X\x00A: 1", "X-A: a\x00b", "X-A: a\x01b", "X-A: a\x7fb", "X-A: a\rb", "X-A: a\nb", "X-A: a\n X-B: c", "X-A: a\r\r\nX-B: c", "X A: 1", "X(A): 1", "\xc3\xa9: 1", "X-A\xa0: 1", "X-\"A\": 1",
		"X_A: 1", "X_Real_Ip: 1.2.3.4", "x_gatebook_subject: root", "X-Gatebook_Subject: root", "X.Gatebook.Subject: root", "Content_Length: 5", "Transfer_Encoding: chunked", "Content-Type: a\r\nContent-Type: b", "Authorization: \xff", "Authorization: Bearer a\r\nAuthorization: Bearer b",
		"Connection: close, X-A", "Connection: X-Gatebook-Subject", "Connection: Authorization", "Connection: Content-Length", "Connection: Host", "Connection: X-Forwarded-For", "Connection: Cookie", "Connection: keep-alive, X-Real-IP", "Connection: close", "Connection: ,,close,,", "Connection: \"close\"", "Connection: keep-alive", "Connection: close\r\nConnection: keep-alive", "Connection: upgrade\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAARAAAAAAAIAAAAA",
		"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13", "Upgrade: h2c", "Upgrade: TLS/1.0", "TE: trailers", "TE: trailers, chunked", "TE: gzip;q=1", "Connection: TE\r\nTE: trailers", "Expect: 100-continue", "Expect: 200-ok", "Expect: 100-continue, x", "Expect: 100-continue\r\nExpect: 100-continue", "Expect:", "Trailer: X-T",
		"Trailer: Content-Length", "Host: other.example.com", "Host: api.example.com", "HOST: api.example.com", "Host : api.example.com", "X-Http2-Stream: 1", "x-gatebook-stream: 00000001s", ":method: GET", ":path: /admin", "Set-Cookie: a=b", "Content-Length: 0", "Transfer-Encoding: identity", "GET /admin/x HTTP/1.1"}
	lengths = []string{"Content-Length: 5", "content-length: 5", "CONTENT-LENGTH:5", "Content-Length:  5 ", "Content-Length: +5", "Content-Length: -5", "Content-Length: 05", "Content-Length: 5, 5", "Content-Length: 5\r\nContent-Length: 5", "Content-Length: 5\r\nContent-Length: 6", "Content-Length: 0x5", "Content-Length: 5 5", "Content-Length: 5;", "Content-Length: \"5\"", "Content-Length:", "Content-Length: 5.0", "Content-Length: 5e0",
		"Content-Length: 0", "Content-Length: 00", "Content-Length: 4", "Content-Length: 6", "Content-Length: 99999999999999999999", "Content-Length: 18446744073709551621", "Content-Length: 999999999999", "Content-Length : 5", "Content-Length\t: 5", "Content-Length: \x0b5", "Content-Length: 5\x00", "Content-Length: \xef\xbc\x95", "Content-Length: 5\r\n 6", "Content_Length: 5", "Content-Length: 5,", "Content-Length: 5\r\nContent-Length:", "X-Content-Length: 5"}
	codings = []string{"Transfer-Encoding: chunked", "transfer-encoding: Chunked", "TRANSFER-ENCODING:CHUNKED", "Transfer-Encoding:\tchunked", "Transfer-Encoding: chunked ", "Transfer-Encoding : chunked", "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", "Transfer-Encoding: chunked, chunked", "Transfer-Encoding: identity, chunked", "Transfer-Encoding: gzip, chunked", "Transfer-Encoding: chunked, identity", "Transfer-Encoding: identity", "Transfer-Encoding: xchunked", "Transfer-Encoding: chunkedx", "Transfer-Encoding: chunked;x=1", "Transfer-Encoding: \"chunked\"", "Transfer-Encoding: ,chunked",
		"Transfer-Encoding: chunked,", "Transfer-Encoding:\r\n chunked", "Transfer-Encoding: \x0bchunked", "Transfer-Encoding: chunked\x00", "Transfer-Encoding: 'chunked'", "Transfer_Encoding: chunked", "Transfer-Encoding:", "Transfer-Encoding: cow", "X: x\nTransfer-Encoding: chunked", "X: x\rTransfer-Encoding: chunked", " Transfer-Encoding: chunked", "Transfer-Encoding: chun\xe9ked", "Transfer-Encoding: chunKed", "Transfer-Encoding: deflate", "Transfer-Encoding: chunked\r\nTransfer-Encoding: identity", "Transfer-Encoding: identity\r\nTransfer-Encoding: chunked"}
	chunks = []string{"5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n3\r\nabc\r\n0\r\n\r\n", "0\r\n\r\n", "05\r\nhello\r\n0\r\n\r\n", "000000005\r\nhello\r\n00\r\n\r\n", "A\r\nhellohello\r\n0\r\n\r\n", "a\r\nhellohello\r\n0\r\n\r\n", "0000000000000005\r\nhello\r\n0\r\n\r\n", "5;x=1\r\nhello\r\n0\r\n\r\n", "5;\r\nhello\r\n0\r\n\r\n", "5 \r\nhello\r\n0\r\n\r\n", " 5\r\nhello\r\n0\r\n\r\n", "5\t;x\r\nhello\r\n0\r\n\r\n", "0x5\r\nhello\r\n0\r\n\r\n", "+5\r\nhello\r\n0\r\n\r\n", "-5\r\nhello\r\n0\r\n\r\n",
		"5\nhello\n0\n\n", "5\r\nhello\n0\r\n\r\n", "5\r\nhello0\r\n\r\n", "5\r\nhelloxx0\r\n\r\n", "5\rhello\r\n0\r\n\r\n", "5\r\nhello\r\n0\n\r\n", "5\r\nhello\r\n0\r\n\n", "5\r\nhello\r\n0\r\nX-T: 1\r\n\r\n", "5\r\nhello\r\n0\r\nContent-Length: 5\r\n\r\n", "5\r\nhello\r\n0\r\nX-Gatebook-Subject: root\r\n\r\n", "5\r\nhello\r\n0\r\nAuthorization: x\r\n\r\n", "5\r\nhello\r\n0\r\nX-T\r\n\r\n", "5\r\nhello\r\n0\r\n X-T: 1\r\n\r\n", "5\r\nhello\r\n0\r\nX-T: 1\nX-U: 2\r\n\r\n", "FFFFFFFFFFFFFFFF\r\nhello\r\n0\r\n\r\n", "100000005\r\nhello\r\n0\r\n\r\n",
		"10000000000000005\r\nhello\r\n0\r\n\r\n", "5;\"\r\n\"\r\nhello\r\n0\r\n\r\n", "5;a=\"\n\"\r\nhello\r\n0\r\n\r\n", "\r\n5\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n\r\n0\r\n\r\n", "5\r\nhel", "5\r\nhello\r\n", "5\r\nhello\r\n0\r\n", "g\r\nhello\r\n0\r\n\r\n", "5\x00\r\nhello\r\n0\r\n\r\n", "5\r\nhello\r\n0;x\r\n\r\n", "5_\r\nhello\r\n0\r\n\r\n", "\xef\xbc\x95\r\nhello\r\n0\r\n\r\n", "5,\r\nhello\r\n0\r\n\r\n"}
)

// request is what a sample is made of before it is written.
type request struct {
	method, target, version string
	host                    []string // whole lines
	lines                   []string
	body                    string
	eol                     string
	before                  string
}

// String writes it for the wire.
func (q *request) String() string {
	var b strings.Builder
	b.WriteString(q.before + q.method + " " + q.target)
	if q.version != "" {
		b.WriteString(" " + q.version)
	}
	b.WriteString(q.eol)
	for _, l := range append(q.host, q.lines...) {
		b.WriteString(l + q.eol)
	}
	b.WriteString(q.eol + q.body)
	return b.String()
}

func plain(r *rand.Rand) *request {
	q := &request{method: pick(r, methods), target: path(r, false) + pick(r, queries[:13]), version: "HTTP/1.1", eol: "\r\n"}
	q.host = []string{"Host: " + pick(r, hosts[:2])}
	for range r.IntN(4) {
		q.lines = append(q.lines, pick(r, benign))
	}
	if strings.HasPrefix(q.target, "/jwt") == (r.IntN(6) > 0) {
		q.lines = append(q.lines, "Authorization: Bearer "+tokenHere)
	}
	if q.method == "POST" || q.method == "PUT" || q.method == "PATCH" {
		q.give(r, text(r))
	}
	return q
}

// give frames a body the right way.
func (q *request) give(r *rand.Rand, body string) {
	if r.IntN(2) == 0 {
		q.lines = append(q.lines, fmt.Sprintf("Content-Length: %d", len(body)))
		q.body = body
		return
	}
	q.lines = append(q.lines, "Transfer-Encoding: chunked")
	for len(body) > 0 {
		n := 1 + r.IntN(len(body))
		q.body += fmt.Sprintf("%x\r\n%s\r\n", n, body[:n])
		body = body[n:]
	}
	q.body += "0\r\n\r\n"
}

func text(r *rand.Rand) string {
	switch r.IntN(8) {
	case 0:
		return ""
	case 1:
		return "GET /admin/x HTTP/1.1\r\nHost: api.example.com\r\n\r\n"
	case 2:
		return "0\r\n\r\nGET /admin/x HTTP/1.1\r\nHost: a\r\n\r\n"
	case 3:
		b := make([]byte, 1+r.IntN(20000))
		for i := range b {
			b[i] = byte(r.Uint32())
		}
		return string(b)
	}
	return strings.Repeat("hello\r\n", 1+r.IntN(9))
}

// path makes a path for some route.
func path(r *rand.Rand, odd bool) string {
	prefix := pick(r, prefixes)
	var b strings.Builder
	b.WriteString(prefix)
	n := 1 + r.IntN(3)
	at := r.IntN(n)
	for i := range n {
		b.WriteByte('/')
		switch {
		case odd && i == at && r.IntN(4) == 0:
			b.WriteString(pick(r, hostile))
		case odd && r.IntN(2) == 0:
			b.WriteString(pick(r, forms))
		case r.IntN(4) == 0 && odd:
			b.WriteString("admin")
		default:
			b.WriteString(pick(r, honest))
		}
	}
	if r.IntN(6) == 0 {
		b.WriteByte('/')
	}
	return b.String()
}
