package upstream

import (
	"bytes"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// TestRequestBytes holds what goes out against every byte that should.
func TestRequestBytes(t *testing.T) {
	s, p := serverAndPool(t, Config{})
	keep := newPool(t, Config{PreserveHost: true}, s.URL())
	fields := func(pairs ...string) (out []canon.Field) {
		for i := 0; i < len(pairs); i += 2 {
			out = append(out, canon.Field{Name: pairs[i], Value: pairs[i+1]})
		}
		return out
	}
	for _, tt := range []struct {
		name string
		pool *Pool
		req  Request
		want string // with LF for CRLF and HOST for the target
	}{
		{"bare", p, Request{Method: "GET", Path: "/"}, "GET / HTTP/1.1\nHost: HOST\n\n"},
		{"head", p, Request{Method: "HEAD", Path: "/"}, "HEAD / HTTP/1.1\nHost: HOST\n\n"},
		{"target's host", p, Request{Method: "GET", Path: "/", Authority: "api.example"}, "GET / HTTP/1.1\nHost: HOST\n\n"},
		{"own method", p, Request{Method: "REPORT", Path: "/"}, "REPORT / HTTP/1.1\nHost: HOST\n\n"},
		{"fields in order within a name", p, Request{Method: "GET", Path: "/", Fields: fields("x-b", "2", "accept", "a", "x-b", "1", "x-b", "2")},
			"GET / HTTP/1.1\nHost: HOST\nx-b: 2\naccept: a\nx-b: 1\nx-b: 2\n\n"},
		{"nothing added, nothing interpreted", p, Request{Method: "GET", Path: "/", Fields: fields("user-agent", "curl/8", "accept-encoding", "br", "cookie", "a=b; c", "idempotency-key", "1")},
			"GET / HTTP/1.1\nHost: HOST\nuser-agent: curl/8\naccept-encoding: br\ncookie: a=b; c\nidempotency-key: 1\n\n"},
		{"fields of one connection", p, Request{Method: "GET", Path: "/", Fields: fields("connection", "close, x-a", "x-a", "1", "keep-alive", "1", "te", "trailers", "trailer", "x-a",
			"transfer-encoding", "chunked", "content-length", "5", "host", "evil", "expect", "100-continue", "upgrade", "h2c", "proxy-connection", "close", "http2-settings", "AAMAAABk", "proxy-authorization", "Basic x")},
			"GET / HTTP/1.1\nHost: HOST\nx-a: 1\n\n"},
		{"empty values and obs-text", p, Request{Method: "GET", Path: "/", Fields: fields("x-a", "", "x-b", "\xe9")},
			"GET / HTTP/1.1\nHost: HOST\nx-a: \nx-b: \xe9\n\n"},
		{"post of nothing", p, Request{Method: "POST", Path: "/"}, "POST / HTTP/1.1\nHost: HOST\ncontent-length: 0\n\n"},
		{"put of nothing", p, Request{Method: "PUT", Path: "/"}, "PUT / HTTP/1.1\nHost: HOST\ncontent-length: 0\n\n"},
		{"delete of nothing", p, Request{Method: "DELETE", Path: "/"}, "DELETE / HTTP/1.1\nHost: HOST\n\n"},
		{"known length", p, Request{Method: "POST", Path: "/", Length: 5, Body: strings.NewReader("hello")},
			"POST / HTTP/1.1\nHost: HOST\nContent-Length: 5\n\n"},
		{"get with a body", p, Request{Method: "GET", Path: "/", Length: 5, Body: strings.NewReader("hello")},
			"GET / HTTP/1.1\nHost: HOST\nContent-Length: 5\n\n"},
		{"unknown length", p, Request{Method: "POST", Path: "/", Length: -1, Body: strings.NewReader("hello")},
			"POST / HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked\n\n"},
		{"get of unknown length", p, Request{Method: "GET", Path: "/", Length: -1, Body: strings.NewReader("")},
			"GET / HTTP/1.1\nHost: HOST\nTransfer-Encoding: chunked\n\n"},
		{"upgrade", p, Request{Method: "GET", Path: "/", Upgrade: "websocket", Fields: fields("sec-websocket-key", "a")},
			"GET / HTTP/1.1\nHost: HOST\nconnection: Upgrade\nsec-websocket-key: a\nupgrade: websocket\n\n"},
		{"client's host", keep, Request{Method: "GET", Path: "/", Authority: "api.example:8443"}, "GET / HTTP/1.1\nHost: api.example:8443\n\n"},
		{"client without a host", keep, Request{Method: "GET", Path: "/"}, "GET / HTTP/1.1\nHost: HOST\n\n"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			before := len(s.Seen())
			mustDo(t, tt.pool, &tt.req)
			seen := s.Seen()
			if len(seen) != before+1 {
				t.Fatalf("sent %d requests, want 1", len(seen)-before)
			}
			want := strings.ReplaceAll(strings.Replace(tt.want, "HOST", s.Addr(), 1), "\n", "\r\n")
			if got := seen[before].Raw; got != want {
				t.Errorf("sent\n%q, want\n%q", got, want)
			}
		})
	}
}

// TestTargetBytes makes sure that no path or query is rewritten on its way.
func TestTargetBytes(t *testing.T) {
	s, p := serverAndPool(t, Config{})
	for _, path := range []string{
		"/", "/a", "/a/", "/%20", "/a%20b", "/%C3%A9", "/%3F", "/%23", "/%2F", "/a%2Fb", "/a%2fb", "/+", "/a+b", "/~user", "/!", "/:", "/a:b", "/@", "/a@b",
		"/=", "/a=b", "/;a=b", "/a;b;c", "/$&'()*,", "/%25", "/%252e", "/.", "/..", "/a/../b", "/a/./b", "//", "//a", "//a/b", "//host.example/a", "///",
		"//a%2Fb", "//a%20b/%C3%A9", "/a//b", "/*", "/http://host/", "/%7Euser", "/%41", "/a%", "/[x]", "/a|b", "/^", "/\"", "/<>", "/{id}", "/`", "/\\",
		"/" + strings.Repeat("a", 4000),
	} {
		for _, query := range []string{"-", "", "a=b", "a=b&c=%20+;d", "?", "a?b", "%zz", "a=[1]", "=&=", "q=\"x\""} {
			r := get(path)
			if query != "-" {
				r.HasQuery, r.Query = true, query
			}
			want := path
			if r.HasQuery {
				want += "?" + query
			}
			before := len(s.Seen())
			a, err := do(p, r)
			if err != nil {
				t.Fatalf("%s: %v", want, err)
			}
			if got := s.Seen()[before].Target; got != want {
				t.Errorf("sent %q, want %q", got, want)
			}
			if a.Status != 200 {
				t.Errorf("%s: status %d", want, a.Status)
			}
		}
	}
}

// TestRefusedRequests lists what never reaches an upstream.
func TestRefusedRequests(t *testing.T) {
	s, p := serverAndPool(t, Config{})
	ok := func(f func(*Request)) Request {
		r := *get("/")
		f(&r)
		return r
	}
	field := func(name, value string) Request {
		return ok(func(r *Request) { r.Fields = []canon.Field{{Name: name, Value: value}} })
	}
	for name, r := range map[string]Request{
		"no method":             ok(func(r *Request) { r.Method = "" }),
		"connect":               ok(func(r *Request) { r.Method = "CONNECT" }),
		"method with a space":   ok(func(r *Request) { r.Method = "GET /x" }),
		"no path":               ok(func(r *Request) { r.Path = "" }),
		"relative path":         ok(func(r *Request) { r.Path = "a" }),
		"absolute form":         ok(func(r *Request) { r.Path = "http://evil/" }),
		"space in the path":     ok(func(r *Request) { r.Path = "/a b" }),
		"CR LF in the path":     ok(func(r *Request) { r.Path = "/a\r\nX: y" }),
		"NUL in the path":       ok(func(r *Request) { r.Path = "/\x00" }),
		"query in the path":     ok(func(r *Request) { r.Path = "/a?b" }),
		"fragment in the path":  ok(func(r *Request) { r.Path = "/a#b" }),
		"obs-text in the path":  ok(func(r *Request) { r.Path = "/\xe9" }),
		"quote after //":        ok(func(r *Request) { r.Path = "//a\"b" }),
		"bad escape after //":   ok(func(r *Request) { r.Path = "//%zz" }),
		"space in the query":    ok(func(r *Request) { r.HasQuery, r.Query = true, "a b" }),
		"LF in the query":       ok(func(r *Request) { r.HasQuery, r.Query = true, "a\nb" }),
		"fragment in the query": ok(func(r *Request) { r.HasQuery, r.Query = true, "a#b" }),
		"query unannounced":     ok(func(r *Request) { r.Query = "a" }),
		"length without body":   ok(func(r *Request) { r.Length = 1 }),
		"negative length":       ok(func(r *Request) { r.Length, r.Body = -2, strings.NewReader("") }),
		"upgrade with body":     ok(func(r *Request) { r.Upgrade, r.Length, r.Body = "websocket", 1, strings.NewReader("a") }),
		"field without name":    field("", "a"),
		"field in upper case":   field("Transfer-Encoding", "chunked"),
		"field with a space":    field("transfer-encoding ", "chunked"),
		"field with a colon":    field("a:b", "c"),
		"field with NUL":        field("a\x00", "c"),
		"value with CR LF":      field("a", "b\r\nX: y"),
		"value with LF":         field("a", "b\nX: y"),
		"value with NUL":        field("a", "b\x00"),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := do(p, &r); err == nil {
				t.Error("no error")
			}
		})
	}
	if n := len(s.Seen()); n != 0 {
		t.Errorf("%d requests were sent", n)
	}
	for _, st := range p.Stats() {
		if st.Failures != 0 {
			t.Errorf("%d failures were laid on the target", st.Failures)
		}
	}
	checkIdle(t, p)
}

func TestRequestBodies(t *testing.T) {
	s, p := serverAndPool(t, Config{})
	for _, size := range []int{1, 100, maxBuffered - 1, maxBuffered, maxBuffered + 1, copyBuf, copyBuf + 1, 1 << 20} {
		body := bytes.Repeat([]byte("0123456789abcdef"), size/16+1)[:size]
		for _, length := range []int64{int64(size), -1} {
			for name, src := range map[string]func() *scripted{
				"whole":       func() *scripted { return script(body) },
				"odd pieces":  func() *scripted { return script(pieces(body, 4099)...) },
				"eof at once": func() *scripted { r := script(body); r.eofWithLast = true; return r },
			} {
				a := mustDo(t, p, &Request{Method: "POST", Path: "/echo", Body: src(), Length: length})
				if a.body != string(body) {
					t.Errorf("%d bytes as %d, %s: %d bytes came back", size, length, name, len(a.body))
				}
			}
		}
	}
	// net/http gives a connection up if its writer is not heard of for 50 ms
	// after the answer, which a busy machine can bring about now and then.
	if n := s.Accepted(); n > 8 {
		t.Errorf("%d connections for 48 exchanges", n)
	}
	// What follows the declared length is not read, let alone sent.
	r := script([]byte("hello"), []byte("more"))
	if a := mustDo(t, p, &Request{Method: "POST", Path: "/echo", Body: r, Length: 5}); a.body != "hello" {
		t.Errorf("sent %q, want %q", a.body, "hello")
	}
	if len(r.pieces) != 1 {
		t.Error("more than the declared length was read")
	}
}

func pieces(body []byte, size int) [][]byte {
	var out [][]byte
	for len(body) > size {
		out = append(out, body[:size])
		body = body[size:]
	}
	return append(out, body)
}
