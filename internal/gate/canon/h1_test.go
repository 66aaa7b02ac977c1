package canon

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
)

// h1Result is what H1 made of the first message of some bytes.
type h1Result struct {
	skip, used int
	done       bool
	reason     string
	method     string
	target     string
	fields     []string // "name: value"
	length     int64
	body       string
}

// readH1 feeds a message in pieces of the given sizes, the last size for all
// that follow.
func readH1(raw []byte, secure bool, sizes ...int) (out h1Result) {
	h := &H1{Secure: secure}
	have, at := 0, 0
	for {
		size := len(raw)
		if len(sizes) > 0 {
			size, sizes = sizes[0], sizes[min(1, len(sizes)-1):]
		}
		have = min(have+max(size, 1), len(raw))
		for at < have {
			part, n, err := h.Next(raw[at:have])
			if err != nil {
				var e *Error
				if !errors.As(err, &e) {
					panic(err)
				}
				out.reason = e.Reason
				out.used = at
				return out
			}
			switch part {
			case H1Head:
				r, head := h.Head(), raw[at:at+n]
				out.method, out.target, out.length = string(r.Method.Of(head)), string(r.Target.Of(head)), r.Length
				for _, f := range r.Fields {
					out.fields = append(out.fields, string(f.Name.Of(head))+": "+string(f.Value.Of(head)))
				}
			case H1Data:
				out.body += string(raw[at : at+n])
			case H1Skip:
				out.skip = n
			}
			at += n
			if h.Done() {
				out.done, out.used = true, at
				return out
			}
			if part == H1More {
				break
			}
		}
		if have == len(raw) {
			out.used = at
			return out
		}
	}
}

func TestH1Good(t *testing.T) {
	const host = "Host: example.com\r\n"
	for _, tc := range []struct {
		raw    string
		secure bool
		body   string
		rest   string
	}{
		{"GET / HTTP/1.1\r\n" + host + "\r\n", false, "", ""},
		{"\r\nGET / HTTP/1.1\r\n" + host + "\r\n", false, "", ""},
		{"GET / HTTP/1.1\r\n" + host + "\r\nGET /2 HTTP/1.1\r\n", false, "", "GET /2 HTTP/1.1\r\n"},
		{"OPTIONS * HTTP/1.1\r\n" + host + "\r\n", false, "", ""},
		{"GET http://example.com/a?b HTTP/1.1\r\n" + host + "\r\n", false, "", ""},
		{"GET HTTP://EXAMPLE.com:80 HTTP/1.1\r\n" + host + "\r\n", false, "", ""},
		{"GET https://example.com:443/a HTTP/1.1\r\n" + host + "\r\n", true, "", ""},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\n\r\nhello!", false, "hello", "!"},
		{"POST / HTTP/1.1\r\n" + host + "Content-Length:0\r\n\r\nhello", false, "", "hello"},
		{"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\t CHUNKED \r\n\r\n3\r\nabc\r\n00a\r\n0123456789\r\n0\r\n\r\nGET", false, "abc0123456789", "GET"},
		{"POST / HTTP/1.1\r\n" + host + "Trailer: X-Sum\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n000\r\nX-Sum: 1\r\n\r\n", false, "a", ""},
		{"GET / HTTP/1.1\r\n" + host + "Content-Length: 1\r\n\r\na", false, "a", ""},
		{"GET / HTTP/1.1\r\n" + host + "X: \t\r\nY:z\r\nExpect: 100-Continue\r\nConnection: keep-alive, Close\r\n\r\n", false, "", ""},
	} {
		got := readH1([]byte(tc.raw), tc.secure)
		if !got.done || got.reason != "" || got.body != tc.body || tc.raw[got.used:] != tc.rest {
			t.Errorf("%q: %+v", tc.raw, got)
		}
		agrees(t, []byte(tc.raw), got)
		for cut := range len(tc.raw) {
			if again := readH1([]byte(tc.raw), tc.secure, cut); fmt.Sprint(again) != fmt.Sprint(got) {
				t.Fatalf("%q cut at %d: %+v, whole %+v", tc.raw, cut, again, got)
			}
		}
	}
}

func TestH1HeadFacts(t *testing.T) {
	h := new(H1)
	raw := []byte("GET http://a.example/ HTTP/1.1\r\nHost: a.example\r\nExpect: 100-continue\r\nConnection: x, CLOSE\r\n\r\n")
	if n, err := h.Scan(raw); err != nil || n != len(raw) || !h.Done() {
		t.Fatal(n, err)
	}
	r := h.Head()
	if !r.Absolute || !r.Continue || !r.Close || string(r.Host.Of(raw)) != "a.example" {
		t.Errorf("%+v", r)
	}
	raw = []byte("GET / HTTP/1.1\r\nHost: a.example\r\nConnection: closed\r\n\r\n")
	if n, err := h.Scan(raw); err != nil || n != len(raw) || h.Head().Close || h.Head().Absolute || h.Head().Continue {
		t.Errorf("second: %d %v %+v", n, err, h.Head())
	}
	if _, err := h.Scan([]byte("\n")); err == nil {
		t.Error("bare LF")
	}
	if _, err := h.Scan(raw); err == nil {
		t.Error("a verdict is final")
	}
}

// agrees demands that net/http reads what was accepted the same way.
func agrees(t *testing.T, raw []byte, got h1Result) {
	t.Helper()
	br := bufio.NewReader(bytes.NewReader(raw[got.skip:got.used]))
	r, err := http.ReadRequest(br)
	if err != nil {
		t.Fatalf("net/http refuses %q: %v", raw[got.skip:got.used], err)
	}
	if r.Method != got.method || r.RequestURI != got.target || r.Proto != "HTTP/1.1" {
		t.Errorf("%q: net/http reads %s %s %s", raw, r.Method, r.RequestURI, r.Proto)
	}
	body, err := io.ReadAll(r.Body)
	if err != nil || string(body) != got.body {
		t.Errorf("%q: net/http reads the body %q (%v), we %q", raw, body, err, got.body)
	}
	if rest, _ := io.ReadAll(br); len(rest) > 0 {
		t.Errorf("%q: net/http leaves %q", raw, rest)
	}
	if r.ContentLength != got.length {
		t.Errorf("%q: net/http's length %d, ours %d", raw, r.ContentLength, got.length)
	}
	if theirs, ours := headerLines(r), fieldLines(got.fields); !slices.Equal(theirs, ours) {
		t.Errorf("%q: net/http's fields %q, ours %q", raw, theirs, ours)
	}
}

// hidden are fields that net/http takes out of the header.
var hidden = map[string]bool{"Host": true, "Transfer-Encoding": true, "Trailer": true}

func headerLines(r *http.Request) (out []string) {
	for k, vs := range r.Header {
		for _, v := range vs {
			if !hidden[k] && (k != "Cache-Control" || r.Header.Get("Pragma") != "no-cache") {
				out = append(out, k+": "+v)
			}
		}
	}
	slices.Sort(out)
	return out
}

func fieldLines(fields []string) (out []string) {
	pragma := slices.ContainsFunc(fields, func(f string) bool {
		k, v, _ := strings.Cut(f, ": ")
		return http.CanonicalHeaderKey(k) == "Pragma" && v == "no-cache"
	})
	for _, f := range fields {
		k, v, _ := strings.Cut(f, ": ")
		k = http.CanonicalHeaderKey(k)
		if !hidden[k] && (k != "Cache-Control" || !pragma) {
			out = append(out, k+": "+v)
		}
	}
	slices.Sort(out)
	return out
}

// FuzzH1: any way to cut the bytes gives one verdict, and what is accepted
// net/http accepts and understands the same way.
func FuzzH1(f *testing.F) {
	const host = "Host: example.com\r\n"
	for _, s := range []string{
		"GET / HTTP/1.1\r\n" + host + "\r\n", "\r\n\r\nGET / HTTP/1.1\r\n", "GET /%41%zz HTTP/1.1\r\n" + host + "\r\n",
		"POST /a?b=%x HTTP/1.1\r\n" + host + "Content-Length: 3\r\n\r\nabcGET", "GET http://example.com/ HTTP/1.1\r\n" + host + "\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\nX-Sum: a\r\n\r\n",
		"POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTrailer: x, y\r\n\r\n0\r\n\r\n", "GET / HTTP/1.1\nHost: a\n\n",
		"GET / HTTP/1.1\r\n" + host + "A: b\r\n c\r\n\r\n", "GET / HTTP/1.1\r\n" + host + "Pragma: no-cache\r\nCache-Control: x\r\n\r\n",
		"OPTIONS * HTTP/1.1\r\n" + host + "Expect: 100-continue\r\nX_y: \xff\r\n\r\n", "GET https://[::1]:443 HTTP/1.1\r\nHost: [::1]\r\n\r\n",
		"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "GET / HTTP/1.1\r\nHost: a\r\nhost: a\r\n\r\n", "TRACE //x HTTP/1.1\r\n" + host + "Content-Length: 0\r\n\r\n",
	} {
		f.Add([]byte(s), uint16(7), uint16(1), false)
	}
	f.Fuzz(func(t *testing.T, raw []byte, first, then uint16, secure bool) {
		got := readH1(raw, secure)
		if again := readH1(raw, secure, int(first), int(then)); fmt.Sprint(again) != fmt.Sprint(got) {
			t.Fatalf("cut at %d and each %d: %+v, whole %+v", first, then, again, got)
		}
		if got.done {
			agrees(t, raw, got)
		}
	})
}

func TestH1Allocations(t *testing.T) {
	h := new(H1)
	raw := []byte(benchHead)
	if n := testing.AllocsPerRun(100, func() {
		if n, err := h.Scan(raw); err != nil || n != len(raw) {
			t.Fatal(n, err)
		}
	}); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

const benchHead = "GET /v1/orders/42?expand=items HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n" +
	"Accept: application/json\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en\r\nConnection: keep-alive\r\n" +
	"Authorization: Bearer eyJhbGciOiJFUzI1NiIsImtpZCI6ImsxIn0.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlc2lnbmF0dXJlc2lnbmF0dXJl\r\n" +
	"X-Requested-With: app\r\nCache-Control: no-cache\r\n\r\n"

func BenchmarkH1(b *testing.B) {
	h := new(H1)
	raw := []byte(benchHead)
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if n, err := h.Scan(raw); err != nil || n != len(raw) {
			b.Fatal(n, err)
		}
	}
}

func BenchmarkH1Chunked(b *testing.B) {
	h := new(H1)
	raw := []byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + strings.Repeat("400\r\n"+strings.Repeat("x", 1024)+"\r\n", 16) + "0\r\n\r\n")
	b.ReportAllocs()
	b.SetBytes(int64(len(raw)))
	for b.Loop() {
		if n, err := h.Scan(raw); err != nil || n != len(raw) {
			b.Fatal(n, err)
		}
	}
}
