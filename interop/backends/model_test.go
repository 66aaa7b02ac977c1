package backends

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// reading is what the strict readers of the gate make of one request, done here
// a second time from the bytes that were sent.
type reading struct {
	req   *canon.Request
	err   error // it is to be refused
	body  string
	whole bool // all of the body was sent, and well framed
}

// readings reads a sample.
func readings(s *sample) []reading {
	if s.h2 != nil {
		return []reading{readH2Request(s)}
	}
	var all []reading
	h := canon.H1{Secure: s.secure}
	for rest := []byte(s.wire); ; {
		part, n, err := h.Next(rest)
		if err != nil {
			if len(all) > 0 && !h.Between() {
				all[len(all)-1].err = err // in the body
			} else {
				all = append(all, reading{err: err})
			}
			return all
		}
		switch part {
		case canon.H1More:
			if len(rest) > 0 && h.Between() {
				all = append(all, reading{err: errors.New("cut off in its head")})
			}
			return all
		case canon.H1Head:
			one := reading{}
			one.req, one.err = canonical(rest[:n], h.Head(), s.secure)
			all = append(all, one)
		case canon.H1Data:
			all[len(all)-1].body += string(rest[:n])
		}
		if rest = rest[n:]; h.Done() {
			all[len(all)-1].whole = true
		}
	}
}

func canonical(head []byte, h *canon.H1Request, secure bool) (*canon.Request, error) {
	r, err := http.ReadRequest(bufio.NewReader(strings.NewReader(string(head))))
	if err != nil {
		return nil, err
	}
	if h.Absolute {
		r.Header["Host"] = []string{string(h.Host.Of(head))}
	}
	connected(r, secure)
	return canon.FromHTTP(r)
}

func connected(r *http.Request, secure bool) {
	r.RemoteAddr = "127.0.0.1:1"
	if secure {
		r.TLS = &tls.ConnectionState{Version: tls.VersionTLS13}
	}
}

// readH2Request builds the request that an HTTP/2 server hands on.
func readH2Request(s *sample) reading {
	r := &http.Request{Proto: "HTTP/2.0", ProtoMajor: 2, Header: http.Header{}, ContentLength: -1, URL: &url.URL{}}
	if s.body == "" && s.tail == nil {
		r.ContentLength = 0
	}
	seen := map[string]bool{}
	scheme := ""
	for _, f := range s.h2 {
		if strings.HasPrefix(f.Name, ":") {
			if seen[f.Name] || len(r.Header) > 0 {
				return reading{err: errors.New("pseudo-field twice or late")}
			}
			seen[f.Name] = true
		}
		switch f.Name {
		case ":method":
			r.Method = f.Value
		case ":scheme":
			scheme = f.Value
		case ":authority":
			r.Host = f.Value
		case ":path":
			r.RequestURI = f.Value
		case "cookie":
			if old := r.Header["Cookie"]; old != nil {
				old[0] += "; " + f.Value
			} else {
				r.Header["Cookie"] = []string{f.Value}
			}
		default:
			if f.Name != strings.ToLower(f.Name) || f.Name != "" && f.Name[0] == ':' {
				return reading{err: errors.New("field name that HTTP/2 does not have")}
			}
			r.Header.Add(f.Name, f.Value)
		}
	}
	if scheme != "https" {
		return reading{err: errors.New("scheme that is not the connection's")}
	}
	if cl := r.Header["Content-Length"]; len(cl) == 1 && r.ContentLength != 0 {
		if n, err := strconv.ParseInt(cl[0], 10, 64); err == nil {
			r.ContentLength = n
		}
	}
	if r.Host == "" {
		r.Host = r.Header.Get("Host")
	}
	connected(r, true)
	w := reading{body: s.body, whole: r.ContentLength < 0 || r.ContentLength == int64(len(s.body))}
	for _, f := range s.tail {
		if f.Name == "" || f.Name[0] == ':' {
			w.whole = false // RFC 9113 section 8.1: malformed
		}
	}
	w.req, w.err = canon.FromHTTP(r)
	return w
}

// paths are all that somebody may take the path for, decoded.
func (w reading) paths() []string {
	all := []string{"/" + strings.Join(w.req.Segments, "/")}
	for segments := range w.req.Readings() {
		all = append(all, "/"+strings.Join(segments, "/"))
	}
	return all
}

// target is what goes on.
func (w reading) target() string {
	if w.req.HasQuery {
		return w.req.Sent() + "?" + w.req.Query
	}
	return w.req.Sent()
}

// fields are those that an origin must see, and no other.
func (w reading) fields(a account, secure bool) map[string][]string {
	all := map[string][]string{}
	for _, f := range w.req.Fields {
		if canon.Reserved(f.Name) || f.Name == "authorization" || f.Name == "dpop" {
			continue
		}
		all[f.Name] = append(all[f.Name], f.Value)
	}
	set := func(name, value string) { all[name] = []string{value} }
	if a.subject {
		set("x-gatebook-subject", "alice")
		set("x-gatebook-issuer", "corp")
		set("x-gatebook-client", "web")
		set("x-gatebook-roles", "clerk")
	}
	id := strings.ReplaceAll(a.id, "-", "")
	set("x-gatebook-request-id", a.id)
	set("x-request-id", a.id)
	set("traceparent", "00-"+id+"-"+id[16:]+"-01")
	set("x-forwarded-for", a.from)
	set("x-forwarded-proto", map[bool]string{false: "http", true: "https"}[secure])
	set("x-forwarded-host", w.req.Authority)
	return all
}

// differ names the fields in which an origin's view differs from what it must
// be. How the body is framed belongs to the connection.
func differ(want map[string][]string, s sighting) (names []string) {
	hop := func(name string) bool {
		return name == "host" || name == "content-length" || name == "transfer-encoding"
	}
	for name, values := range want {
		if s.merged {
			values = []string{strings.Join(values, ", ")}
		}
		if !hop(name) && !slices.Equal(values, s.fields[name]) {
			names = append(names, name)
		}
	}
	for name, values := range s.fields {
		if !hop(name) && want[name] == nil || hop(name) && len(values) != 1 {
			names = append(names, name)
		}
	}
	if len(s.fields["content-length"]) > 0 && len(s.fields["transfer-encoding"]) > 0 {
		names = append(names, "content-length beside transfer-encoding")
	}
	slices.Sort(names)
	return names
}

// String tells what matters in a failure.
func (w reading) String() string {
	return fmt.Sprintf("%+v %v %d bytes, whole: %v", w.req, w.err, len(w.body), w.whole)
}

// recordedAs reports whether a record may tell the path like that: without the
// parameters of segments, which hold session ids, with what looks like a secret
// masked, and not longer than records are.
func recordedAs(path, told string) bool {
	segments := strings.Split(path, "/")
	for i, seg := range segments {
		segments[i], _, _ = strings.Cut(seg, ";")
	}
	want := strings.Join(segments, "/")
	if len(want) > 1000 && len(told) >= 1000 {
		return strings.HasPrefix(want, told[:1000])
	}
	before, rest, masked := strings.Cut(told, "[masked:")
	if !masked {
		return told == want
	}
	_, after, _ := strings.Cut(rest, "]")
	if strings.Contains(after, "[masked:") {
		after = after[strings.LastIndex(after, "]")+1:]
	}
	return strings.HasPrefix(want, before) && strings.HasSuffix(want, after)
}
