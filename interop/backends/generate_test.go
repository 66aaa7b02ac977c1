package backends

import (
	"fmt"
	"math/rand/v2"
	"slices"
	"strings"

	"golang.org/x/net/http2/hpack"
)

// oddity changes an ordinary request into an odd one.
type oddity struct {
	kind   string
	weight int
	apply  func(r *rand.Rand, q *request, s *sample)
}

var oddities = []oddity{
	{"path", 45, func(r *rand.Rand, q *request, _ *sample) { q.target = path(r, true) + pick(r, queries[:12]) }},
	{"query", 5, func(r *rand.Rand, q *request, _ *sample) { q.target = path(r, false) + pick(r, queries) }},
	{"target", 7, oddTarget},
	{"host", 8, func(r *rand.Rand, q *request, _ *sample) {
		q.host = []string{"Host: " + pick(r, [][]string{hosts, badHosts}[r.IntN(2)])}
		switch r.IntN(8) {
		case 0:
			q.host = append(q.host, "Host: "+pick(r, hosts))
		case 1:
			q.host = nil
		case 2:
			q.host = []string{"host:" + pick(r, hosts)}
		case 3:
			q.host = []string{"HOST:\t" + pick(r, hosts) + " \t"}
		}
	}},
	{"method", 6, func(r *rand.Rand, q *request, _ *sample) { q.method = pick(r, badMethods) }},
	{"version", 5, func(r *rand.Rand, q *request, _ *sample) { q.version = pick(r, versions) }},
	{"field", 20, func(r *rand.Rand, q *request, _ *sample) { q.insert(r, pick(r, oddFields)) }},
	{"spoof", 14, func(r *rand.Rand, q *request, _ *sample) {
		name := pick(r, spoofs)
		switch r.IntN(6) {
		case 0:
			name = strings.ToUpper(name)
		case 1:
			name = strings.ReplaceAll(name, "-", "_")
		case 2:
			name = strings.Replace(name, "-", "_", 1)
		case 3:
			name += " "
		case 4:
			q.insert(r, "Connection: "+name)
		}
		q.insert(r, name+": "+pick(r, []string{"root", "127.0.0.1", "/admin/x", "DELETE", "for=127.0.0.1", "https", "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"}))
	}},
	{"length", 8, func(r *rand.Rand, q *request, _ *sample) {
		q.unframed()
		q.insert(r, pick(r, lengths))
		q.body = "hello"
		if q.method == "GET" && r.IntN(3) > 0 {
			q.method = "POST"
		}
	}},
	{"coding", 9, func(r *rand.Rand, q *request, _ *sample) {
		q.unframed()
		q.insert(r, pick(r, codings))
		if r.IntN(4) == 0 {
			q.insert(r, pick(r, lengths))
		}
		q.body = pick(r, chunks[:8])
		if r.IntN(4) > 0 {
			q.method = "POST"
		}
	}},
	{"chunk", 10, func(r *rand.Rand, q *request, _ *sample) {
		q.unframed()
		q.method = "POST"
		q.lines = append(q.lines, "Transfer-Encoding: chunked")
		q.body = pick(r, chunks)
	}},
	{"line ends", 3, func(r *rand.Rand, q *request, _ *sample) {
		q.eol = pick(r, []string{"\n", "\r", "\r\r\n", "\n\r", "\r\n\x00"})
	}},
	{"before", 3, func(r *rand.Rand, q *request, _ *sample) {
		q.before = pick(r, []string{"\r\n", "\r\n\r\n", "\n", " ", "\t", "\x00", "\r", "\xef\xbb\xbf", "PROXY TCP4 1.2.3.4 5.6.7.8 1 2\r\n", "0\r\n\r\n", "X: y\r\n"})
	}},
	{"spaces", 4, func(r *rand.Rand, q *request, _ *sample) {
		space := pick(r, []string{"  ", "\t", " \t", "\x0b", "\x0c", "\xa0", "\r", "\x00", "\u2003"})
		if r.IntN(2) == 0 {
			q.method += space
		} else {
			q.target += space
		}
	}},
	{"many", 2, func(r *rand.Rand, q *request, _ *sample) {
		for range 80 + r.IntN(40) {
			q.lines = append(q.lines, "X-Many: "+fmt.Sprint(r.IntN(9)))
		}
	}},
	{"size", 2, func(r *rand.Rand, q *request, _ *sample) {
		n := pick(r, []int{3000, 8000, 20000, 32 << 10, 70000})
		if r.IntN(2) == 0 {
			n = min(n, 8000) + n/70000*40000
			q.target = pick(r, prefixes) + "/" + strings.Repeat("a", n)
		} else {
			q.lines = append(q.lines, "X-Big: "+strings.Repeat("b", n))
		}
	}},
	{"cut", 2, func(r *rand.Rand, q *request, s *sample) { s.cut = true }},
	{"none", 14, func(*rand.Rand, *request, *sample) {}},
}

func oddTarget(r *rand.Rand, q *request, _ *sample) {
	host := pick(r, []string{"api.example.com", "api.example.com", "API.example.com", "api.example.com:80", "api.example.com:443", "other.example.com", "u@api.example.com", "api.example.com.", "", "api.example.com:8080", "[::1]", "api.example.com#", "api.example.com\\"})
	p := q.target
	q.target = pick(r, []string{"http://" + host + p, "http://" + host + p, "HTTP://" + host + p, "http://" + host, "http://" + host + "?a=1", "https://" + host + p, "http:/" + p, "http:" + p, "//" + host + p, "/" + p, "ftp://" + host + p,
		"*", "*" + p, host + ":80", "", p[1:], "?a=1", "/http://" + host + p, "http://" + host + p + "/http://x/", "http://" + host + "/" + p, "ws://" + host + p, "file://" + p, "\\" + p[1:], "/\\" + host + p, ";" + p, "http://" + host + "/..;/admin", "%2fadmin/x", "./admin/x", "../admin/x", "/?a", "/", "//", "///", "/;", "/;/", "/./", "/.", "/.."})
}

// insert puts whole lines anywhere among the fields.
func (q *request) insert(r *rand.Rand, line string) {
	if r.IntN(8) == 0 {
		q.host = append([]string{line}, q.host...) // before Host
		return
	}
	q.lines = slices.Insert(q.lines, r.IntN(len(q.lines)+1), line)
}

func (q *request) unframed() {
	q.lines = slices.DeleteFunc(q.lines, func(l string) bool {
		return strings.HasPrefix(l, "Content-Length") || strings.HasPrefix(l, "Transfer-Encoding")
	})
	q.body = ""
}

// generate makes the samples of a seed, the same ones each time.
func generate(seed uint64, count int) []*sample {
	r := rand.New(rand.NewPCG(seed, 0))
	total := 0
	for _, o := range oddities {
		total += o.weight
	}
	choose := func() oddity {
		at := r.IntN(total)
		for _, o := range oddities {
			if at -= o.weight; at < 0 {
				return o
			}
		}
		panic("unreachable")
	}
	all := make([]*sample, 0, count)
	for n := range count {
		s := &sample{n: n}
		if n%8 == 7 {
			s.overH2(r)
			all = append(all, s)
			continue
		}
		s.secure = n%16 == 1
		q := plain(r)
		kinds := []string{}
		for range 1 + r.IntN(5)/4 {
			o := choose()
			o.apply(r, q, s)
			kinds = append(kinds, o.kind)
		}
		if s.secure {
			q.target = strings.Replace(q.target, "http://api", "https://api", 1)
		}
		s.wire = q.String()
		s.methods = []string{strings.TrimSpace(q.method)}
		switch {
		case s.cut:
			s.wire = s.wire[:1+r.IntN(len(s.wire)-1)]
		case r.IntN(3) == 0: // something behind it, to be read as what it is
			kinds = append(kinds, "pipelined")
			for range 1 + r.IntN(2) {
				next := plain(r)
				s.wire += next.String()
				s.methods = append(s.methods, next.method)
			}
		}
		s.kind = strings.Join(kinds, "+")
		all = append(all, s)
	}
	return all
}

// overH2 makes a request for HTTP/2.
func (s *sample) overH2(r *rand.Rand) {
	q := plain(r)
	s.secure, s.kind = true, "h2 path"
	method, target, scheme, authority := q.method, q.target, "https", "api.example.com"
	switch r.IntN(10) {
	case 0, 1, 2, 3:
		target = path(r, true) + pick(r, queries)
	case 4:
		s.kind, authority = "h2 authority", pick(r, [][]string{hosts, badHosts}[r.IntN(2)])
	case 5:
		s.kind, method = "h2 method", pick(r, badMethods)
	case 6:
		s.kind, scheme = "h2 scheme", pick(r, []string{"http", "HTTPS", "ftp", "", "https:"})
	case 7:
		s.kind, target = "h2 target", pick(r, []string{"*", "", "https://api.example.com/s/a", "s/a", "?a", "/s/a b", "/s/a\r\nX: y", "//s/a", "/s/\x00", "#"})
	default:
		s.kind = "h2 field"
	}
	s.h2 = []hpack.HeaderField{{Name: ":method", Value: method}, {Name: ":scheme", Value: scheme}, {Name: ":authority", Value: authority}, {Name: ":path", Value: target}}
	for _, l := range q.lines {
		name, value, ok := strings.Cut(l, ":")
		if name = strings.ToLower(name); ok && name != "transfer-encoding" && name != "keep-alive" && name != "proxy-connection" && name != "content-length" {
			s.h2 = append(s.h2, hpack.HeaderField{Name: name, Value: strings.Trim(value, " \t")})
		}
	}
	if s.kind == "h2 field" {
		s.h2 = append(s.h2, pick(r, []hpack.HeaderField{{Name: "host", Value: "other.example.com"}, {Name: "host", Value: "api.example.com"}, {Name: "Upper", Value: "x"}, {Name: "connection", Value: "close"}, {Name: "te", Value: "gzip"}, {Name: "te", Value: "trailers"}, {Name: "transfer-encoding", Value: "chunked"}, {Name: "x_real_ip", Value: "1.2.3.4"},
			{Name: "x-gatebook-subject", Value: "root"}, {Name: "x_gatebook_subject", Value: "root"}, {Name: "x-a", Value: "a\r\nx-b: c"}, {Name: "x-a", Value: "a\x00b"}, {Name: "x a", Value: "b"}, {Name: "x:a", Value: "b"}, {Name: ":path", Value: "/admin/x"}, {Name: ":x", Value: "y"}, {Name: "", Value: "y"}, {Name: "x-sp", Value: " a "}, {Name: "cookie", Value: "a=1"}, {Name: "cookie", Value: "b=2"},
			{Name: "content-length", Value: "5"}, {Name: "content-length", Value: "+5"}, {Name: "content-length", Value: "0"}, {Name: "x-gatebook-stream", Value: "00000001s"}, {Name: "expect", Value: "100-continue"}, {Name: "upgrade", Value: "h2c"}, {Name: "x-obs", Value: "\xe9"}, {Name: "authorization", Value: "\xe9"}}))
	}
	s.methods = []string{method}
	if method == "POST" || method == "PUT" || method == "PATCH" {
		s.body = text(r)
		if r.IntN(3) == 0 {
			s.h2 = append(s.h2, hpack.HeaderField{Name: "content-length", Value: fmt.Sprint(len(s.body) + r.IntN(8)/7)})
		}
		if r.IntN(4) == 0 {
			s.tail = []hpack.HeaderField{pick(r, []hpack.HeaderField{{Name: "x-t", Value: "1"}, {Name: "x-gatebook-subject", Value: "root"}, {Name: "content-length", Value: "1"}, {Name: ":path", Value: "/admin"}})}
		}
	}
}
