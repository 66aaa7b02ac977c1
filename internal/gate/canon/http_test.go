package canon

import (
	"bufio"
	"crypto/tls"
	"fmt"
	"net/http"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// wire reads raw as a server would. http.ReadRequest deletes the Host field,
// as the server does.
func wire(t *testing.T, raw string) (*http.Request, error) {
	t.Helper()
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(strings.ReplaceAll(raw, "\n", "\r\n") + "\r\n\r\n")))
	if err == nil {
		r.RemoteAddr = "192.0.2.7:1234"
	}
	return r, err
}

// refusals: every row is a request that net/http reads and that we refuse.
var refusals = []struct{ name, raw, reason string }{
	{"HTTP/1.0", "GET / HTTP/1.0\nHost: a", UnsupportedProtocol},
	{"HTTP/1.9", "GET / HTTP/1.9\nHost: a", UnsupportedProtocol},
	{"HTTP/0.9 number", "GET / HTTP/0.9\nHost: a", UnsupportedProtocol},
	{"no host", "GET / HTTP/1.1", BadHost},
	{"empty host", "GET / HTTP/1.1\nHost:", BadHost},
	{"userinfo", "GET / HTTP/1.1\nHost: u@a", BadHost},
	{"bad port", "GET / HTTP/1.1\nHost: a:b", BadHost},
	{"host with path", "GET / HTTP/1.1\nHost: a/b", BadHost},
	{"absolute-form unverifiable", "GET http://b/ HTTP/1.1\nHost: a", BadHost},
	{"absolute-form other scheme", "GET ftp://a/ HTTP/1.1\nHost: a", BadPath},
	{"absolute-form https on plaintext", "GET https://a/ HTTP/1.1\nHost: a", BadPath},
	{"connect", "CONNECT a:443 HTTP/1.1\nHost: a:443", MalformedRequest},
	{"connect path", "CONNECT /x HTTP/1.1\nHost: a", MalformedRequest},
	{"asterisk", "OPTIONS * HTTP/1.1\nHost: a", BadPath},
	{"asterisk get", "GET * HTTP/1.1\nHost: a", BadPath},
	{"fragment", "GET /admin#x HTTP/1.1\nHost: a", BadPath},
	{"fragment in query", "GET /?x#y HTTP/1.1\nHost: a", BadPath},
	{"dots", "GET /a/../b HTTP/1.1\nHost: a", BadPath},
	{"encoded dots", "GET /%2e%2e/b HTTP/1.1\nHost: a", BadPath},
	{"dots behind an encoded slash", "GET /a%2f..%2fb HTTP/1.1\nHost: a", BadPath},
	{"dots behind two slashes", "GET //a/../b HTTP/1.1\nHost: a", BadPath},
	{"dots encoded twice", "GET /a%252e%252e HTTP/1.1\nHost: a", BadPath},
	{"obs-text in path", "GET /\xff HTTP/1.1\nHost: a", BadPath},
	{"obs-text in query", "GET /?\xff HTTP/1.1\nHost: a", BadPath},
	{"method too long", strings.Repeat("M", 33) + " / HTTP/1.1\nHost: a", MalformedRequest},
	{"underscore alias forwarded", "GET / HTTP/1.1\nHost: a\nX_Forwarded_User: admin", MalformedRequest},
	{"mixed alias", "GET / HTTP/1.1\nHost: a\nX-Forwarded_For: 1.2.3.4", MalformedRequest},
	{"alias gatebook", "GET / HTTP/1.1\nHost: a\nx_gatebook_subject: admin", MalformedRequest},
	{"alias gatebook half", "GET / HTTP/1.1\nHost: a\nX-Gatebook_Roles: admin", MalformedRequest},
	{"alias gatebook dot", "GET / HTTP/1.1\nHost: a\nX.Gatebook.Roles: admin", MalformedRequest},
	{"alias real ip", "GET / HTTP/1.1\nHost: a\nX_Real_Ip: 1.2.3.4", MalformedRequest},
	{"alias request id", "GET / HTTP/1.1\nHost: a\nX_Request_Id: 1", MalformedRequest},
	{"alias true client ip", "GET / HTTP/1.1\nHost: a\nTrue_Client_Ip: 1.2.3.4", MalformedRequest},
	{"obs-text authorization", "GET / HTTP/1.1\nHost: a\nAuthorization: Bearer \xff", MalformedRequest},
	{"obs-text content-type", "GET / HTTP/1.1\nHost: a\nContent-Type: a/\xe9", MalformedRequest},
	{"obs-text dpop", "GET / HTTP/1.1\nHost: a\nDPoP: \x80", MalformedRequest},
	{"obs-text forwarded", "GET / HTTP/1.1\nHost: a\nX-Forwarded-For: \x80", MalformedRequest},
	{"space before the colon", "GET / HTTP/1.1\nHost: a\nTE : x", MalformedRequest},
	{"two content types", "GET / HTTP/1.1\nHost: a\nContent-Type: a/b\nContent-Type: c/d", MalformedRequest},
	{"expectation", "POST / HTTP/1.1\nHost: a\nExpect: 200-ok\nContent-Length: 0", MalformedRequest},
	{"two expectations", "POST / HTTP/1.1\nHost: a\nExpect: 100-continue\nExpect: 100-continue\nContent-Length: 0", MalformedRequest},
	{"length with zero", "POST / HTTP/1.1\nHost: a\nContent-Length: 01\n\nx", AmbiguousFraming},
	{"two equal lengths", "POST / HTTP/1.1\nHost: a\nContent-Length: 1\nContent-Length: 1\n\nx", ""},
	{"chunked get", "GET / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n0\n\n", AmbiguousFraming},
	{"chunked head", "HEAD / HTTP/1.1\nHost: a\nTransfer-Encoding: chunked\n\n0\n\n", AmbiguousFraming},
}

func TestRefusals(t *testing.T) {
	for _, tc := range refusals {
		r, err := wire(t, tc.raw)
		if err != nil {
			t.Errorf("%s: net/http already refuses: %v", tc.name, err)
			continue
		}
		_, err = FromHTTP(r)
		if tc.reason == "" {
			// net/http folds equal lengths into one before anybody can see
			// them; the row pins that.
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
			}
			continue
		}
		var e *Error
		if err == nil {
			t.Errorf("%s: accepted", tc.name)
		} else if e = err.(*Error); e.Reason != tc.reason {
			t.Errorf("%s: refused with %v, want %s", tc.name, e, tc.reason)
		} else if strings.Contains(e.Detail, "admin") {
			t.Errorf("%s: detail quotes the client: %s", tc.name, e.Detail)
		}
	}
}

// TestNetHTTPRefuses pins what net/http answers by itself.
func TestNetHTTPRefuses(t *testing.T) {
	for _, raw := range []string{
		"GET / HTTP/1.1\nHost: a\nHost: b",
		"POST / HTTP/1.1\nHost: a\nContent-Length: +1\n\nx",
		"POST / HTTP/1.1\nHost: a\nContent-Length: 1, 1\n\nx",
		"POST / HTTP/1.1\nHost: a\nContent-Length: 1\nContent-Length: 2\n\nx",
		"POST / HTTP/1.1\nHost: a\nTransfer-Encoding: gzip, chunked\n\n",
		"POST / HTTP/1.1\nHost: a\nTransfer-Encoding: x\n\n",
		"GET a HTTP/1.1\nHost: a",
		"GET /\x7f HTTP/1.1\nHost: a",
	} {
		if _, err := wire(t, raw); err == nil {
			t.Errorf("%q: net/http accepts", raw)
		}
	}
}

// TestConnectionTokens: Connection must not be able to remove a field from
// what the upstream sees.
func TestConnectionTokens(t *testing.T) {
	names := []string{
		"Authorization", "Cookie", "Content-Type", "Content-Encoding", "X-Api-Key", "X-Gatebook-Subject", "X-Gatebook-Client",
		"X-Gatebook-Roles", "X-Gatebook-Request-Id", "X-Request-Id", "Forwarded", "X-Forwarded-For", "X-Forwarded-Proto",
		"X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Real-Ip", "True-Client-Ip", "traceparent", "X-Custom",
		"Host", "Content-Length", "Origin", "Range", "Cache-Control", "Via", "DPoP", "If-Match",
	}
	for _, name := range names {
		for _, form := range []string{"%s", "close, %s", "%s, close", "keep-alive,\t%s ,", ",,%s"} {
			for _, cased := range []string{name, strings.ToLower(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_")} {
				raw := "GET / HTTP/1.1\nHost: a\nConnection: " + fmt.Sprintf(form, cased)
				r, err := wire(t, raw)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := FromHTTP(r); err == nil || err.(*Error).Reason != MalformedRequest {
					t.Errorf("%q: %v", raw, err)
				}
			}
		}
	}
	r, err := wire(t, "GET / HTTP/1.1\nHost: a\nConnection: close, TE\nConnection: Keep-Alive\nTE: trailers, deflate\nKeep-Alive: 5\nProxy-Connection: x\nX-A: 1")
	if err != nil {
		t.Fatal(err)
	}
	req, err := FromHTTP(r)
	if err != nil {
		t.Fatal(err)
	}
	if want := []Field{{"x-a", "1"}}; !slices.Equal(req.Fields, want) || !req.TETrailers {
		t.Errorf("fields %v, trailers %v", req.Fields, req.TETrailers)
	}
}

func TestFromHTTP(t *testing.T) {
	r, err := wire(t, "POST /v1/%6frders/a%20b?x=1&y HTTP/1.1\nHost: API.Example.com.:80\nX-B: 2\nX-B: 1\nx-a:  v \n"+
		"X_Custom: gone\nUser-Agent: caf\xe9\nContent-Length: 3\nUpgrade: websocket\nConnection: Upgrade\nExpect: 100-Continue\nCookie: a=b")
	if err != nil {
		t.Fatal(err)
	}
	r.RemoteAddr = "[::ffff:203.0.113.9%eth0]:4711"
	r.TLS = nil
	req, err := FromHTTP(r)
	if err != nil {
		t.Fatal(err)
	}
	want := Request{
		Method: "POST", Scheme: "http", Host: "api.example.com", Authority: "api.example.com",
		Path: "/v1/orders/a%20b", Segments: []string{"v1", "orders", "a b"}, Query: "x=1&y", HasQuery: true,
		Proto: "HTTP/1.1",
		Fields: []Field{
			{"cookie", "a=b"}, {"user-agent", "caf\xe9"}, {"x-a", "v"}, {"x-b", "2"}, {"x-b", "1"},
		},
		ContentLength: 3, Remote: netip.MustParseAddrPort("203.0.113.9:4711"),
		Upgrade: "websocket", ExpectContinue: true, DroppedNames: 1,
	}
	if got, w := fmt.Sprintf("%+v", *req), fmt.Sprintf("%+v", want); got != w {
		t.Errorf("got  %s\nwant %s", got, w)
	}
	if v, n := req.Get("x-b"); v != "2" || n != 2 {
		t.Errorf("Get: %q %d", v, n)
	}
	if v, n := req.Get("x-c"); v != "" || n != 0 {
		t.Errorf("Get: %q %d", v, n)
	}
}

// h2 builds a request as the HTTP/2 server hands it over.
func h2(method, path, authority string, header http.Header, length int64) *http.Request {
	return &http.Request{
		Method: method, RequestURI: path, Host: authority, Header: header, ContentLength: length,
		Proto: "HTTP/2.0", ProtoMajor: 2, RemoteAddr: "192.0.2.7:1",
		TLS: &tls.ConnectionState{
			Version: tls.VersionTLS13, CipherSuite: tls.TLS_AES_128_GCM_SHA256, CurveID: tls.X25519MLKEM768,
			NegotiatedProtocol: "h2", ServerName: "A.example", DidResume: true,
		},
	}
}

func TestHTTP2(t *testing.T) {
	for _, tc := range []struct {
		name   string
		r      *http.Request
		reason string
	}{
		{"plain", h2("GET", "/a", "A.example:443", http.Header{}, 0), ""},
		{"stream of unknown length", h2("POST", "/a", "a", http.Header{}, -1), ""},
		{"same host", h2("GET", "/a", "a", http.Header{"Host": {"A:443"}}, 0), ""},
		{"te trailers", h2("GET", "/a", "a", http.Header{"Te": {"trailers"}}, 0), ""},
		{"other host", h2("GET", "/a", "a", http.Header{"Host": {"b"}}, 0), BadHost},
		{"two hosts", h2("GET", "/a", "a", http.Header{"Host": {"a", "a"}}, 0), BadHost},
		{"no authority", h2("GET", "/a", "", http.Header{}, 0), BadHost},
		{"no slash", h2("GET", "a", "a", http.Header{}, 0), BadPath},
		{"empty path", h2("GET", "", "a", http.Header{}, 0), BadPath},
		{"absolute path", h2("GET", "https://a/", "a", http.Header{}, 0), BadHost},
		{"dots behind two slashes", h2("GET", "//../admin", "a", http.Header{}, 0), BadPath},
		{"space", h2("GET", "/a b", "a", http.Header{}, 0), BadPath},
		{"method with space", h2("GET x", "/a", "a", http.Header{}, 0), MalformedRequest},
		{"empty method", h2("", "/a", "a", http.Header{}, 0), MalformedRequest},
		{"extended connect", h2("CONNECT", "/a", "a", http.Header{":protocol": {"websocket"}}, 0), MalformedRequest},
		{"protocol pseudo", h2("GET", "/a", "a", http.Header{":protocol": {"websocket"}}, 0), MalformedRequest},
		{"connection", h2("GET", "/a", "a", http.Header{"Connection": {"close"}}, 0), MalformedRequest},
		{"te", h2("GET", "/a", "a", http.Header{"Te": {"gzip"}}, 0), MalformedRequest},
		{"transfer-encoding", h2("POST", "/a", "a", http.Header{"Transfer-Encoding": {"chunked"}}, -1), AmbiguousFraming},
		{"length mismatch", h2("POST", "/a", "a", http.Header{"Content-Length": {"5"}}, 0), AmbiguousFraming},
		{"length signed", h2("POST", "/a", "a", http.Header{"Content-Length": {"+5"}}, 0), AmbiguousFraming},
		{"length list", h2("POST", "/a", "a", http.Header{"Content-Length": {"5, 5"}}, 0), AmbiguousFraming},
		{"length twice", h2("POST", "/a", "a", http.Header{"Content-Length": {"5", "5"}}, 5), AmbiguousFraming},
		{"length huge", h2("POST", "/a", "a", http.Header{"Content-Length": {"9999999999999999999"}}, 0), AmbiguousFraming},
		{"line break in value", h2("GET", "/a", "a", http.Header{"X-A": {"a\r\nb"}}, 0), MalformedRequest},
		{"nul in value", h2("GET", "/a", "a", http.Header{"X-A": {"a\x00"}}, 0), MalformedRequest},
		{"delete in value", h2("GET", "/a", "a", http.Header{"X-A": {"a\x7f"}}, 0), MalformedRequest},
		{"bad name", h2("GET", "/a", "a", http.Header{"X A": {"a"}}, 0), MalformedRequest},
		{"empty name", h2("GET", "/a", "a", http.Header{"": {"a"}}, 0), MalformedRequest},
	} {
		req, err := FromHTTP(tc.r)
		if tc.reason == "" {
			if err != nil {
				t.Errorf("%s: %v", tc.name, err)
				continue
			}
			if req.Proto != "HTTP/2" || req.Scheme != "https" || req.ContentLength != tc.r.ContentLength {
				t.Errorf("%s: %+v", tc.name, req)
			}
			want := &TLS{Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768", ALPN: "h2", SNI: "a.example", Resumed: true}
			if !reflect.DeepEqual(req.TLS, want) {
				t.Errorf("%s: %+v", tc.name, req.TLS)
			}
			continue
		}
		if err == nil {
			t.Errorf("%s: accepted", tc.name)
		} else if e := err.(*Error); e.Reason != tc.reason {
			t.Errorf("%s: refused with %v, want %s", tc.name, e, tc.reason)
		}
	}
}

// TestVisibleFraming: an engine that hides nothing gets the full rules.
func TestVisibleFraming(t *testing.T) {
	base := func(h http.Header) *http.Request {
		return &http.Request{Method: "POST", RequestURI: "/", Host: "a", Header: h, Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1, ContentLength: -1}
	}
	for name, tc := range map[string]struct {
		h      http.Header
		te     []string
		uri    string
		reason string
	}{
		"chunked":               {http.Header{}, []string{"chunked"}, "/", ""},
		"length beside chunked": {http.Header{"Content-Length": {"1"}}, []string{"chunked"}, "/", AmbiguousFraming},
		"chunked twice":         {http.Header{}, []string{"chunked", "chunked"}, "/", AmbiguousFraming},
		"identity":              {http.Header{}, []string{"identity"}, "/", AmbiguousFraming},
		"absolute equal":        {http.Header{"Host": {"A"}}, nil, "http://a:80/x?y", ""},
		"absolute empty path":   {http.Header{"Host": {"a"}}, nil, "http://a", ""},
		"absolute only query":   {http.Header{"Host": {"a"}}, nil, "http://a?q", ""},
		"absolute other":        {http.Header{"Host": {"b"}}, nil, "http://a/", BadHost},
		"absolute userinfo":     {http.Header{"Host": {"a"}}, nil, "http://u@a/", BadHost},
		"absolute fragment":     {http.Header{"Host": {"a"}}, nil, "http://a#x", BadPath},
		"absolute no host":      {http.Header{"Host": {""}}, nil, "http:///x", BadHost},
	} {
		r := base(tc.h)
		r.TransferEncoding, r.RequestURI = tc.te, tc.uri
		req, err := FromHTTP(r)
		switch {
		case tc.reason == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case tc.reason == "" && req.Path[0] != '/':
			t.Errorf("%s: path %q", name, req.Path)
		case tc.reason != "" && (err == nil || err.(*Error).Reason != tc.reason):
			t.Errorf("%s: %v, want %s", name, err, tc.reason)
		}
	}
}

func TestHeadSize(t *testing.T) {
	many := http.Header{}
	for i := range MaxFields {
		many.Set(fmt.Sprintf("X-%d", i), "v")
	}
	if _, err := FromHTTP(h2("GET", "/", "a", many, 0)); err != nil {
		t.Errorf("%d fields: %v", MaxFields, err)
	}
	many.Add("X-0", "again")
	tooBig := http.Header{"X-A": {strings.Repeat("a", MaxHeadBytes)}}
	for name, r := range map[string]*http.Request{
		"101 fields": h2("GET", "/", "a", many, 0),
		"big field":  h2("GET", "/", "a", tooBig, 0),
		"big target": h2("GET", "/"+strings.Repeat("a", MaxHeadBytes), "a", http.Header{}, 0),
		"together":   h2("GET", "/"+strings.Repeat("a", MaxHeadBytes/2), "a", http.Header{"X-A": {strings.Repeat("a", MaxHeadBytes/2)}}, 0),
	} {
		if _, err := FromHTTP(r); err == nil || err.(*Error).Reason != HeaderTooLarge {
			t.Errorf("%s: %v", name, err)
		}
	}
}

func TestReserved(t *testing.T) {
	for _, name := range []string{
		"X-Gatebook-Subject", "x_gatebook_subject", "X-GATEBOOK", "x.gatebook.roles", "Forwarded", "FORWARDED", "X-Forwarded-For",
		"x_forwarded_for", "X-Forwarded_Host", "X-Forwarded-Anything-That-Is-Very-Long-Indeed-For-A-Name", "X-Real-IP", "x_real_ip",
		"True-Client-IP", "true_client_ip", "X-Request-ID", "x_request_id", "traceparent", "TraceParent", "tracestate", "X-Original-URL",
		"x_original_uri", "X-Rewrite-Url", "CF-Connecting-IP", "X-Client-Ip", "Client_Cert", "X-HTTP-Method-Override", "Remote-User", "remote_user",
		"Remote-Groups", "X-Remote-Extra-Scopes", "X-Auth-Request-Email", "x_auth_request_user", "X-WebAuth-User", "X-Authenticated-Userid", "X-Consumer-Username",
		"X-Goog-Authenticated-User-Email", "x-goog-iap-jwt-assertion", "Cf-Access-Authenticated-User-Email", "cf_access_jwt_assertion", "X-Amzn-Oidc-Data",
		"X-MS-CLIENT-PRINCIPAL-ID", "Tailscale-User-Login", "X-Pomerium-Jwt-Assertion", "X-Envoy-Peer-Metadata",
	} {
		if !Reserved(name) {
			t.Errorf("%s is not reserved", name)
		}
	}
	for _, name := range []string{"", "x", "X-Custom", "Content-Type", "Cookie", "Referer", "X-Api-Key", "x-gate", "Forward", "Range", "X-Requested-With", "Cache-Control", "Remote", "X-Auth-Token", "X-User", "CF-Ray", "Tailscale", "x\xc3"} {
		if Reserved(name) {
			t.Errorf("%s is reserved", name)
		}
	}
}

func TestReuse(t *testing.T) {
	var req Request
	if err := req.ReadHTTP(h2("GET", "/a/b", "a", http.Header{"X-A": {"1"}}, 0)); err != nil {
		t.Fatal(err)
	}
	if err := req.ReadHTTP(h2("GET", "/x//%2f", "b", http.Header{"X-B": {"1"}}, 0)); err != nil || req.Forms != EncodedSlash|EmptySegment || req.Sent() != "/x//%2f" {
		t.Fatalf("%v %+v", err, req)
	}
	if err := req.ReadHTTP(h2("GET", "/x//%2f", "b", http.Header{"Connection": {"x"}}, 0)); err == nil {
		t.Fatal("accepted")
	}
	if req.Host != "" || req.Path != "" || req.RawPath != "" || req.Forms != 0 || len(req.Fields) != 0 || len(req.Segments) != 0 {
		t.Errorf("a refused request keeps %+v", req)
	}
	if req.Method != "GET" || req.Proto != "HTTP/2" || req.TLS == nil || !req.Remote.IsValid() {
		t.Errorf("a refused request lost its connection: %+v", req)
	}
}

// FuzzRequest: whatever net/http reads is refused with an *Error or becomes a
// request that is canonical.
func FuzzRequest(f *testing.F) {
	for _, tc := range refusals {
		f.Add(strings.ReplaceAll(tc.raw, "\n", "\r\n") + "\r\n\r\n")
	}
	f.Fuzz(func(t *testing.T, raw string) {
		r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw)))
		if err != nil {
			return
		}
		req, err := FromHTTP(r)
		if err != nil {
			if _, ok := err.(*Error); !ok {
				t.Fatalf("error of type %T", err)
			}
			return
		}
		for _, fd := range req.Fields {
			if fd.Name != strings.ToLower(fd.Name) || hopByHop[fd.Name] || strings.ContainsAny(fd.Name, "_ ") || strings.ContainsAny(fd.Value, "\r\n\x00") {
				t.Fatalf("field %q: %q", fd.Name, fd.Value)
			}
		}
		if req.Host == "" || req.Path == "" || req.Proto != "HTTP/1.1" {
			t.Fatalf("%+v", req)
		}
	})
}

func BenchmarkReadHTTP(b *testing.B) {
	r := h2("GET", "/v1/orders/1234567?page=2", "api.example.com", http.Header{
		"Authorization": {"Bearer x"}, "User-Agent": {"curl/8"}, "Accept": {"*/*"}, "Accept-Encoding": {"gzip"},
		"Content-Type": {"application/json"}, "Traceparent": {"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
	}, 0)
	var req Request
	b.ReportAllocs()
	for b.Loop() {
		if err := req.ReadHTTP(r); err != nil {
			b.Fatal(err)
		}
	}
}
