package gate

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// mirror keeps what was forwarded last.
type mirror struct{ got upstream.Request }

func (m *mirror) RoundTrip(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
	m.got = *r
	m.got.Fields = slices.Clone(r.Fields)
	return response(204, 0, nil, io.EOF), nil
}

func (m *mirror) get(name string) []string {
	var out []string
	for _, f := range m.got.Fields {
		if f.Name == name {
			out = append(out, f.Value)
		}
	}
	return out
}

// TestSpoofing: no variant of a field that we set or believe reaches the
// upstream with the client's value: it is replaced, removed or refused.
func TestSpoofing(t *testing.T) {
	names := []string{
		"X-Gatebook-Subject", "X-Gatebook-Client", "X-Gatebook-Roles", "X-Gatebook-Issuer", "X-Gatebook-Request-Id", "X-Gatebook-New", "X-Request-Id",
		"Forwarded", "X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "X-Forwarded-Port", "X-Forwarded-Prefix", "X-Forwarded-User",
		"X-Forwarded-Uri", "X-Forwarded-Client-Cert", "X-Real-Ip", "True-Client-Ip", "Client-Ip", "X-Client-Ip", "Cf-Connecting-Ip", "X-Original-Url",
		"X-Rewrite-Url", "X-Http-Method-Override", "Traceparent", "Tracestate", "Remote-User", "Client-Cert",
	}
	m := &mirror{}
	h := newHouse(t, houseConfig{up: m})
	engine := NewHTTPEngine(h.gate, HTTPConfig{Listener: "public"})
	passed := 0
	for _, name := range names {
		for _, variant := range []string{
			name, strings.ToLower(name), strings.ToUpper(name), strings.ReplaceAll(name, "-", "_"),
			strings.Replace(name, "-", "_", 1), strings.ToLower(strings.ReplaceAll(name, "-", "_")), strings.ReplaceAll(name, "-", "."),
		} {
			for _, connection := range []string{"", name, "close, " + strings.ToLower(name)} {
				raw := "GET /v1/orders/1 HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer good\r\n" + variant + ": evil\r\n"
				if connection != "" {
					raw += "Connection: " + connection + "\r\n"
				}
				r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(raw + "\r\n")))
				if err != nil {
					t.Fatal(err)
				}
				m.got = upstream.Request{}
				resp := httptest.NewRecorder()
				engine.ServeHTTP(resp, r)
				<-h.book.done
				if connection != "" && resp.Code != 400 {
					t.Errorf("%s with Connection: %s: %d", variant, connection, resp.Code)
				}
				if resp.Code == 400 {
					continue
				}
				passed++
				for _, f := range m.got.Fields {
					if strings.Contains(f.Value, "evil") {
						t.Errorf("%s reaches the upstream as %s", variant, f.Name)
					}
				}
				for _, ours := range []string{"x-gatebook-subject", "x-gatebook-request-id", "x-request-id", "traceparent", "x-forwarded-for", "x-forwarded-proto", "x-forwarded-host"} {
					if n := len(m.get(ours)); n != 1 {
						t.Errorf("%s: %d fields %s", variant, n, ours)
					}
				}
			}
		}
	}
	if passed < 3*len(names) {
		t.Errorf("only %d variants were forwarded at all", passed)
	}
}

// TestForwarded looks at the whole of what the upstream gets.
func TestForwarded(t *testing.T) {
	m := &mirror{}
	h := newHouse(t, houseConfig{up: m, tune: func(r *Route) { r.CredentialFields = []string{"x-api-key"} }})
	r := h.request(t, "POST", "/v1/%6frders/a%2cb?q=%zz&q", body(4), "Cookie", "a=b", "X-B", "2", "Dpop", "proof", "X_Odd", "gone", "User-Agent", "u",
		"Accept", "*/*", "Keep-Alive", "5", "Proxy-Authorization", "Basic x", "Te", "trailers")
	r.Header["X-C"] = []string{"2", "1"}
	if _, _, err := do(t, h.h1, r); err != nil {
		t.Fatal(err)
	}
	c := h.one(t)
	id := c.rec.ID.String()
	hex := strings.ReplaceAll(id, "-", "")
	want := []canon.Field{
		{Name: "accept", Value: "*/*"}, {Name: "cookie", Value: "a=b"}, {Name: "user-agent", Value: "u"}, {Name: "x-b", Value: "2"}, {Name: "x-c", Value: "2"}, {Name: "x-c", Value: "1"},
		{Name: "x-gatebook-subject", Value: "alice"}, {Name: "x-gatebook-issuer", Value: "corp"}, {Name: "x-gatebook-client", Value: "web"}, {Name: "x-gatebook-roles", Value: "clerk,auditor"},
		{Name: "x-gatebook-request-id", Value: id}, {Name: "x-request-id", Value: id}, {Name: "traceparent", Value: "00-" + hex + "-" + hex[16:] + "-01"},
		{Name: "x-forwarded-for", Value: "127.0.0.1"}, {Name: "x-forwarded-proto", Value: "https"}, {Name: "x-forwarded-host", Value: strings.TrimPrefix(h.server.URL, "https://")},
	}
	if fmt.Sprint(m.got.Fields) != fmt.Sprint(want) {
		t.Errorf("got  %v\nwant %v", m.got.Fields, want)
	}
	if m.got.Path != "/v1/orders/a%2Cb" || m.got.Query != "q=%zz&q" || !m.got.HasQuery || m.got.Method != "POST" || m.got.Length != 4 {
		t.Errorf("%+v", m.got)
	}

	h = newHouse(t, houseConfig{up: m, tune: func(r *Route) { r.PassCredential = true }})
	if _, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil)); err != nil {
		t.Fatal(err)
	}
	if got := m.get("authorization"); len(got) != 1 || got[0] != "Bearer good" {
		t.Errorf("passed credential %q", got)
	}
	<-h.book.done
}

// TestIdentityText: names that are no field text are encoded so that no two
// read the same.
func TestIdentityText(t *testing.T) {
	for in, want := range map[string]string{
		"alice": "alice", "auth0|x": "auth0|x", "a b": "a%20b", "é": "%C3%A9", "%C3%A9": "%25C3%25A9", "a\r\nX: y": "a%0D%0AX:%20y", "": "", "\x00": "%00", "a,b": "a,b",
	} {
		if got := fieldText(in, false); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	if got := joinRoles([]string{"a,b", "c", "d%"}); got != "a%2Cb,c,d%25" {
		t.Errorf("roles %q", got)
	}
	m := &mirror{}
	bob := &authn.Principal{Method: "jwt", Issuer: "corp", Subject: "bob\r\nX-Admin: 1"}
	h := newHouse(t, houseConfig{up: m, tune: func(r *Route) {
		r.Authenticators = []Authenticator{fakeAuth(func(*canon.Request) (*authn.Principal, error) { return bob, nil })}
	}})
	if _, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil)); err != nil {
		t.Fatal(err)
	}
	if got := m.get("x-gatebook-subject"); len(got) != 1 || got[0] != "bob%0D%0AX-Admin:%201" {
		t.Errorf("subject %q", got)
	}
	if m.get("x-gatebook-roles") != nil || m.get("x-gatebook-client") != nil {
		t.Error("fields for what the principal does not have")
	}
}

// TestResponseFields: the upstream cannot speak for the connection or for us.
func TestResponseFields(t *testing.T) {
	fields := []canon.Field{
		{Name: "content-type", Value: "a/b"}, {Name: "set-cookie", Value: "a=1"}, {Name: "set-cookie", Value: "b=2"}, {Name: "connection", Value: "Keep-Alive, X-Hop"},
		{Name: "keep-alive", Value: "1"}, {Name: "x-hop", Value: "1"}, {Name: "x-request-id", Value: "theirs"}, {Name: "proxy-authenticate", Value: "x"},
		{Name: "content-length", Value: "99"}, {Name: "transfer-encoding", Value: "chunked"}, {Name: "upgrade", Value: "h2c"}, {Name: "trailer", Value: "x"},
	}
	h := newHouse(t, houseConfig{up: answers(200, 2, fields, "ok")})
	h.both(func(t *testing.T, c *http.Client, _ string) {
		resp, text, err := do(t, c, h.request(t, "GET", "/v1/orders/1", nil))
		if err != nil || text != "ok" {
			t.Fatalf("%q %v", text, err)
		}
		rec := h.one(t).rec
		resp.Header.Del("Date")
		want := http.Header{"Content-Type": {"a/b"}, "Set-Cookie": {"a=1", "b=2"}, "X-Request-Id": {rec.ID.String()}, "Content-Length": {"2"}}
		if fmt.Sprint(resp.Header) != fmt.Sprint(want) {
			t.Errorf("got  %v\nwant %v", resp.Header, want)
		}
	})
	// No content type is guessed.
	h = newHouse(t, houseConfig{up: answers(200, 6, nil, "<html>")})
	h.both(func(t *testing.T, c *http.Client, _ string) {
		resp, _, err := do(t, c, h.request(t, "GET", "/v1/orders/1", nil))
		if err != nil || len(resp.Header["Content-Type"]) != 0 {
			t.Errorf("%v %v", resp, err)
		}
	})
}

// TestClient: whose request it is, from the peer and the chain.
func TestClient(t *testing.T) {
	trusted := []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8"), netip.MustParsePrefix("fd00::/8")}
	for _, tc := range []struct {
		peer   string
		xff    []string
		client string
		fwd    string
	}{
		{"203.0.113.9", nil, "203.0.113.9", ""},
		{"203.0.113.9", []string{"1.1.1.1"}, "203.0.113.9", ""},
		{"10.0.0.1", nil, "10.0.0.1", ""},
		{"10.0.0.1", []string{"198.51.100.7"}, "198.51.100.7", "198.51.100.7"},
		{"10.0.0.1", []string{"1.1.1.1, 198.51.100.7"}, "198.51.100.7", "198.51.100.7"},
		{"10.0.0.1", []string{"198.51.100.7, 10.0.0.2"}, "198.51.100.7", "198.51.100.7 10.0.0.2"},
		{"10.0.0.1", []string{"198.51.100.7", "10.0.0.2"}, "198.51.100.7", "198.51.100.7 10.0.0.2"},
		{"10.0.0.1", []string{"10.0.0.3,10.0.0.2"}, "10.0.0.3", "10.0.0.3 10.0.0.2"},
		{"10.0.0.1", []string{"198.51.100.7, unknown"}, "10.0.0.1", ""},
		{"10.0.0.1", []string{"x, 10.0.0.2"}, "10.0.0.2", "10.0.0.2"},
		{"10.0.0.1", []string{""}, "10.0.0.1", ""},
		{"10.0.0.1", []string{"198.51.100.7:4711"}, "198.51.100.7", "198.51.100.7"},
		{"10.0.0.1", []string{"[2001:db8::1]:4711"}, "2001:db8::1", "2001:db8::1"},
		{"10.0.0.1", []string{"2001:db8::1"}, "2001:db8::1", "2001:db8::1"},
		{"10.0.0.1", []string{"::ffff:198.51.100.7"}, "198.51.100.7", "198.51.100.7"},
		{"10.0.0.1", []string{"198.51.100.7, ::ffff:10.0.0.2"}, "198.51.100.7", "198.51.100.7 10.0.0.2"},
		{"fd00::1", []string{"198.51.100.7"}, "198.51.100.7", "198.51.100.7"},
	} {
		req := &canon.Request{Remote: netip.AddrPortFrom(netip.MustParseAddr(tc.peer), 1), Scheme: "http"}
		for _, v := range tc.xff {
			req.Fields = append(req.Fields, canon.Field{Name: "x-forwarded-for", Value: v})
		}
		x := &exchange{req: req, lis: &listener{trusted: trusted}}
		x.findClient()
		if x.client.String() != tc.client || strings.Join(x.fwd, " ") != tc.fwd {
			t.Errorf("%s %q: %s %q", tc.peer, tc.xff, x.client, x.fwd)
		}
	}
}

// TestTrustedPeer: a trusted peer's chain, scheme and trace go on and into the
// record; anybody else's do not.
func TestTrustedPeer(t *testing.T) {
	const trace = "0af7651916cd43dd8448eb211c80319c"
	for _, trust := range []bool{false, true} {
		m := &mirror{}
		h := newHouse(t, houseConfig{up: m, snap: func(s *SnapshotConfig) {
			if trust {
				s.Listeners[0].Trusted = []netip.Prefix{netip.PrefixFrom(loopback, 32)}
			}
		}})
		r := h.request(t, "GET", "/v1/orders/1", nil, "X-Forwarded-For", "198.51.100.7", "X-Forwarded-Proto", "http", "Traceparent", "00-"+trace+"-b7ad6b7169203331-00")
		if _, _, err := do(t, h.h1, r); err != nil {
			t.Fatal(err)
		}
		rec := h.one(t).rec
		got := fmt.Sprintln(rec.Client.Prefix, rec.Client.Hops, rec.Raw.RemoteAddr, rec.Raw.RemotePort == 0, rec.Personal.Fwd, rec.Trace, m.get("x-forwarded-for"), m.get("x-forwarded-proto"))
		tp := m.get("traceparent")[0]
		want := "127.0.0.0/24 0 127.0.0.1 false []  [127.0.0.1] [https]"
		if trust {
			want = "198.51.100.0/24 1 198.51.100.7 true [198.51.100.7] " + trace + " [198.51.100.7, 127.0.0.1] [http]"
		}
		if norm(got) != norm(want) || strings.Contains(tp, trace) != trust || strings.HasSuffix(tp, "-00") != trust {
			t.Errorf("trust %v:\ngot  %s\nwant %s\ntraceparent %s", trust, got, want, tp)
		}
	}
}

func norm(s string) string { return strings.Join(strings.Fields(s), " ") }

func TestTraceparent(t *testing.T) {
	good := "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
	if id, flags := parseTraceparent(good); id != good[3:35] || flags != "01" {
		t.Errorf("%q %q", id, flags)
	}
	for _, bad := range []string{
		"", "00", good[:54], good + "0", "01" + good[2:], "ff" + good[2:], strings.ToUpper(good), strings.Replace(good, "-", "_", 1),
		"00-00000000000000000000000000000000-b7ad6b7169203331-01", "00-0af7651916cd43dd8448eb211c80319c-0000000000000000-01",
		"00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-0g", "00-0af7651916cd43dd8448eb211c8031-9cb7ad6b7169203331-0-01",
	} {
		if id, _ := parseTraceparent(bad); id != "" {
			t.Errorf("%q: %q", bad, id)
		}
	}
}

func FuzzWalk(f *testing.F) {
	f.Add("198.51.100.7, 10.0.0.2", "10.0.0.3")
	f.Add("[::1]:1,,", " ")
	f.Fuzz(func(t *testing.T, a, b string) {
		req := &canon.Request{Remote: netip.MustParseAddrPort("10.0.0.1:1"), Fields: []canon.Field{{Name: "x-forwarded-for", Value: a}, {Name: "x-forwarded-for", Value: b}}}
		x := &exchange{req: req, lis: &listener{trusted: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}}}
		x.findClient()
		if !x.client.IsValid() {
			t.Fatal("no client")
		}
		for i, hop := range x.fwd {
			addr, err := netip.ParseAddr(hop)
			if err != nil || i > 0 && !x.isTrusted(addr) {
				t.Fatalf("hop %q of %q was not named by a trusted peer", hop, x.fwd)
			}
		}
		if len(x.fwd) > 0 && x.fwd[0] != x.client.String() {
			t.Fatalf("client %s of %q", x.client, x.fwd)
		}
	})
}
