package redact

import (
	"slices"
	"strings"
	"unicode/utf8"

	"github.com/gatebook/gatebook/internal/book/record"
)

// path keeps the concrete path of a matched route in the personal part and
// only the shape of any other in the template.
func (w *work) path(raw *record.Raw) {
	r, was := w.r, w.was
	p := &r.Personal.Path
	if was != &unseen && raw.Path == "" && !raw.Unmatched && *p == was.Personal.Path && r.Route == was.Route &&
		r.Template == was.Template && r.Op == was.Op && r.Method == was.Method {
		return
	}
	if raw.Path != "" {
		*p = raw.Path
	}
	if isExchange(r.Kind) {
		if raw.Unmatched {
			r.Route = record.None
		}
		if r.Route == "" || r.Route == record.None || r.Route == record.Other {
			w.unmatched(p)
			return
		}
		if r.Template != "" && r.Template != record.Other && !w.u.templates.has(r.Template) {
			r.Template = record.Other
			w.dropped++
		}
		w.op()
	}
	w.segments(p)
	w.cut(p, capPath, 0)
}

func (w *work) unmatched(p *string) {
	r := w.r
	switch {
	case *p != "":
		r.Template = shape(*p)
		w.drop(p)
	case r.Template != "" && !isShape(r.Template):
		r.Template = shape(r.Template)
		w.dropped++
	}
	r.Op = record.None
}

// op makes the operation agree with method and template.
func (w *work) op() {
	r := w.r
	if r.Op == "" || r.Op == record.None {
		return
	}
	m := len(r.Method)
	if len(r.Op) == m+1+len(r.Template) && r.Op[:m] == r.Method && r.Op[m] == ' ' && r.Op[m+1:] == r.Template {
		return
	}
	r.Op = r.Method + " " + r.Template
}

// segments masks each segment of a path in which something is found, and takes
// off matrix parameters. In what it leaves no detector finds anything.
func (w *work) segments(p *string) {
	f := detect(*p, 0)
	if f == nothing && strings.IndexByte(*p, ';') < 0 {
		return
	}
	if f == foundLong {
		*p = "/" + f.mark()
		w.tripped++
		w.masked++
		return
	}
	out := make([]byte, 0, len(*p))
	hits := 0
	for i, rest, more := 0, *p, true; more; i++ {
		var seg string
		seg, rest, more = strings.Cut(rest, "/")
		if i > 0 {
			out = append(out, '/')
		}
		if found := detect(seg, 0); found != nothing {
			out = append(out, found.mark()...)
			hits++
			continue
		}
		seg, _, cut := strings.Cut(seg, ";")
		if cut {
			w.dropped++
		}
		out = append(out, seg...)
	}
	w.tripped += hits
	w.masked += hits
	if hits == 0 && f == foundUserinfo { // a part of it would be left
		*p = "/" + f.mark()
		w.tripped++
		w.masked++
		return
	}
	*p = string(out)
	if f := detect(*p, 0); f != nothing { // what no segment shows alone
		*p = "/" + f.mark()
		w.tripped++
		w.masked++
	}
}

// maxShape is how many segments of an unmatched path are told.
const maxShape = 8

// The words of a shape.
var shapes = []string{
	"{empty}", "{int}", "{uuid}", "{hex}", "{word}", "{slug}", "{file}", "{token}", "{secret}", "{text}", "{more}",
}

// shape tells what the segments of a path look like, and nothing else about
// them.
func shape(path string) string {
	var buf [128]byte
	b := buf[:0]
	path = strings.TrimPrefix(path, "/")
	for n := 0; ; n++ {
		seg, rest, more := strings.Cut(path, "/")
		b = append(b, '/')
		switch {
		case n == maxShape:
			return string(append(b, "{more}"...))
		case seg != "" || more:
			b = append(b, segmentShape(seg)...)
		}
		if !more {
			return string(b)
		}
		path = rest
	}
}

func segmentShape(seg string) string {
	if slices.Contains(shapes, seg) {
		return seg
	}
	if seg == "" {
		return "{empty}"
	}
	if isUUID(seg) {
		return "{uuid}"
	}
	var digits, letters, hex, marks, other int
	for i := range len(seg) {
		switch c := seg[i]; {
		case isDigit(c):
			digits++
		case isAlnum(c):
			letters++
		case c == '-' || c == '_' || c == '.':
			marks++
		default:
			other++
		}
		if isHex(seg[i]) {
			hex++
		}
	}
	switch f := detect(seg, 0); {
	case f == foundEntropy:
		return "{token}"
	case f != nothing:
		return "{secret}"
	case other > 0:
		return "{text}"
	case digits == len(seg):
		return "{int}"
	case letters+digits == len(seg) && digits <= 2 && len(seg) < entropyMin:
		return "{word}"
	case hex == len(seg) && digits > 0 && len(seg) >= 8:
		return "{hex}"
	case strings.IndexByte(seg, '.') > 0:
		return "{file}"
	case len(seg) < 64:
		return "{slug}"
	}
	return "{token}"
}

// isShape reports whether s is what shape makes.
func isShape(s string) bool {
	if s == "/" {
		return true
	}
	for seg := range strings.SplitSeq(strings.TrimPrefix(s, "/"), "/") {
		if seg != "" && !slices.Contains(shapes, seg) {
			return false
		}
	}
	return strings.HasPrefix(s, "/")
}

const (
	maxQueryPairs = 64  // looked at, the rest is dropped
	maxQueryValue = 128 // bytes after decoding
)

// query keeps the allow-listed keys of the route.
func (w *work) query(raw *record.Raw) {
	p := &w.r.Personal.Query
	if raw.Query != "" {
		*p = raw.Query
	}
	if *p == "" || raw.Query == "" && *p == w.was.Personal.Query && w.r.Route == w.was.Route {
		return
	}
	allowed := w.u.query[w.r.Route]
	if len(allowed) == 0 || len(*p) > maxScanned {
		w.drop(p)
		return
	}
	var buf [256]byte
	out := buf[:0]
	n, size := 0, 0
	for part := range strings.SplitSeq(*p, "&") {
		if n++; n > maxQueryPairs {
			w.dropped++
			break
		}
		key, value, _ := strings.Cut(part, "=")
		key = unescapeQuery(key)
		if !allowed.has(key) {
			w.dropped++
			continue
		}
		w.queryValue(&value)
		if size += len(key) + len("=") + record.EscapedLen(value) + len(`\u0026`); size > capQuery {
			w.dropped++
			continue
		}
		if len(out) > 0 {
			out = append(out, '&')
		}
		out = append(append(append(out, key...), '='), value...)
	}
	if string(out) != *p {
		*p = string(out)
	}
	if f := detect(*p, butEntropy|butNumbers); f != nothing { // what no value shows alone
		w.mask(p, f)
	}
}

// queryValue masks a value, which is still encoded, if a detector finds
// something or it is not of the shape of a value.
func (w *work) queryValue(value *string) {
	if f := detect(*value, 0); f != nothing {
		w.mask(value, f)
		return
	}
	plain := unescapeQuery(*value)
	if f := detect(plain, 0); f != nothing { // with '+' as a space
		w.mask(value, f)
		return
	}
	if len(plain) > maxQueryValue || !isValue(plain) {
		*value = foundShape.mark()
		w.masked++
	}
}

// isValue reports whether a decoded query value is of the allowed characters:
// valid UTF-8 without controls, quotes, angle brackets, backslash, what would
// need decoding again, and the semicolon, which is another '&' to some.
func isValue(s string) bool {
	for i := range len(s) {
		if c := s[i]; c < ' ' || c == 0x7f || strings.IndexByte("%<>\"\\`;", c) >= 0 {
			return false
		}
	}
	return utf8.ValidString(s)
}

// unescapeQuery decodes a query key or value once; '+' is a space.
func unescapeQuery(s string) string {
	s, _ = unpercent(strings.ReplaceAll(s, "+", " "))
	return s
}

// text takes over user agent and referer and scans the free text.
func (w *work) text(raw *record.Raw) {
	p, was := &w.r.Personal, &w.was.Personal
	if raw.UA != "" {
		p.UA = raw.UA
	}
	if p.UA != was.UA {
		w.bound(&p.UA, capUA, 0)
	}
	if raw.Referer != "" {
		p.Referer = raw.Referer
	}
	if p.Referer != was.Referer {
		w.referer(&p.Referer)
	}
	if p.CertSubject != was.CertSubject {
		w.bound(&p.CertSubject, capID, butEntropy)
	}
}

// referer keeps origin and path of an http or https URL and drops any other.
func (w *work) referer(p *string) {
	s := *p
	if s == "" {
		return
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || len(s) > maxScanned || !strings.EqualFold(scheme, "http") && !strings.EqualFold(scheme, "https") {
		w.drop(p)
		return
	}
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest = rest[:i]
		w.dropped++
	}
	host, path := rest, ""
	if i := strings.IndexByte(rest, '/'); i >= 0 {
		host, path = rest[:i], rest[i:]
	}
	if i := strings.LastIndexByte(host, '@'); i >= 0 {
		host = host[i+1:]
		w.dropped++
	}
	whole, _ := unescape(rest)
	if !isHost(host) || detect(host, 0) != nothing || hasAWSSecret(whole) || oddAuthority(whole, len(whole)+1) {
		w.drop(p)
		return
	}
	clean := path
	w.segments(&clean)
	if len(scheme)+len("://")+len(host)+len(clean) != len(s) || clean != path {
		*p = scheme + "://" + host + clean
	}
	w.bound(p, capReferer, butEntropy|butNumbers)
}

// isHost reports whether s is a host with or without a port (RFC 3986 section
// 3.2). What stands in the place of a port and is no number may be a password.
func isHost(s string) bool {
	name, port := s, ""
	if i := strings.IndexByte(s, ']'); i >= 0 && s[0] == '[' {
		name, port = s[1:i], s[i+1:]
	} else if i := strings.IndexByte(s, ':'); i >= 0 {
		name, port = s[:i], s[i:]
	}
	for i := range len(name) {
		if c := name[i]; !isAlnum(c) && strings.IndexByte("-._", c) < 0 && (c != ':' || s[0] != '[') {
			return false
		}
	}
	for i := range len(port) {
		if c := port[i]; i == 0 && c != ':' || i > 0 && !isDigit(c) {
			return false
		}
	}
	return name != "" && port != ":" && len(s) <= 255
}

// pairs keeps the allow-listed headers and claims of the route.
func (w *work) pairs(raw *record.Raw) {
	p, was, route := &w.r.Personal, &w.was.Personal, w.r.Route
	same := route == w.was.Route
	if !same || len(raw.Headers) > 0 || !slices.Equal(p.Headers, was.Headers) {
		w.allow(&p.Headers, raw.Headers, w.u.headers[route], true)
	}
	if !same || len(raw.Claims) > 0 || !slices.Equal(p.Claims, was.Claims) {
		w.allow(&p.Claims, raw.Claims, w.u.claims[route], false)
	}
}

// allow filters what is there together with what has come, sorted by name.
func (w *work) allow(to *[]record.Pair, from []record.Pair, allowed set, lower bool) {
	if len(from) == 0 && len(*to) == 0 {
		return
	}
	all := *to
	if len(from) > 0 {
		all = append(slices.Clip(all), from...)
	}
	var kept []record.Pair
	for _, pair := range all {
		if lower {
			pair.Name = strings.ToLower(pair.Name)
		}
		if !allowed.has(pair.Name) || len(kept) == maxPairs {
			w.dropped++
			continue
		}
		w.bound(&pair.Value, capValue, 0)
		if kept == nil {
			kept = make([]record.Pair, 0, min(len(all), maxPairs))
		}
		kept = append(kept, pair)
	}
	slices.SortStableFunc(kept, func(a, b record.Pair) int { return strings.Compare(a.Name, b.Name) })
	*to = kept
}

// identity bounds and scans who the caller is. Identifiers may be e-mail
// addresses, numbers and random strings; they are not keys or tokens.
func (w *work) identity() {
	p, was := &w.r.Personal, &w.was.Personal
	for _, f := range [...]struct {
		p, was *string
		but    exempt
	}{
		{&p.Sub, &was.Sub, butEmail | butEntropy | butNumbers},
		{&p.TenantUser, &was.TenantUser, butEmail | butEntropy | butNumbers},
		{&p.Claimed, &was.Claimed, butEmail | butEntropy | butNumbers},
		{&p.Email, &was.Email, butEmail | butEntropy},
		{&p.Name, &was.Name, butEntropy},
		{&p.ClientRequestID, &was.ClientRequestID, butEntropy | butNumbers},
		{&p.JA4, &was.JA4, butEntropy | butNumbers},
	} {
		if *f.p != *f.was {
			w.bound(f.p, capID, f.but)
		}
	}
	if p.ClientRequestID != was.ClientRequestID && !isRequestID(p.ClientRequestID) {
		w.drop(&p.ClientRequestID)
	}
	if p.Traceparent != was.Traceparent && !isTraceparent(p.Traceparent) {
		w.drop(&p.Traceparent)
	}
	for _, f := range [...][2]*string{{&p.Session, &was.Session}, {&p.Token, &was.Token}, {&p.Family, &was.Family}, {&p.BodySHA256, &was.BodySHA256}} {
		s := f[0]
		if *s == *f[1] {
			continue
		}
		if detect(*s, butEntropy|butNumbers) != nothing {
			w.tripped++
			w.drop(s)
		} else if !isDigest(*s) {
			w.drop(s)
		}
	}
}

// isRequestID reports whether s has the form that a client's request id may
// have: printable ASCII without quotes and space, or a mark.
func isRequestID(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && strings.IndexByte("-._:/+=@[]", c) < 0 {
			return false
		}
	}
	return len(s) <= 128
}

// isTraceparent reports whether s has the form of W3C Trace Context level 1
// section 3.2.2, version 00.
func isTraceparent(s string) bool {
	if len(s) != 55 || s[:3] != "00-" || s[35] != '-' || s[52] != '-' {
		return false
	}
	for i := range len(s) {
		if i != 2 && i != 35 && i != 52 && (!isHex(s[i]) || isUpper(s[i])) {
			return false
		}
	}
	return true
}

// isDigest reports whether s can be a keyed hash in hex or base64url.
func isDigest(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && c != '-' && c != '_' {
			return false
		}
	}
	return len(s) <= 64
}
