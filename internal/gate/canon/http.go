package canon

import (
	"crypto/tls"
	"net/http"
	"net/netip"
	"strings"
)

// FromHTTP makes the canonical request of what net/http has read. The error is
// an *Error. It reads the head only, never the body.
//
// What net/http hides cannot be refused here (line endings, obs-fold, a
// Content-Length beside Transfer-Encoding: chunked in HTTP/1.1, the Host field
// beside an absolute-form target, which is therefore refused whenever the Host
// field is not visible); that is the work of the reader in front of it.
func FromHTTP(r *http.Request) (*Request, error) {
	req := new(Request)
	if err := req.ReadHTTP(r); err != nil {
		return nil, err
	}
	return req, nil
}

// ReadHTTP is FromHTTP into a Request that is used again: the memory of Fields
// and Segments is reused, so nobody may hold on to them. After an error the
// connection facts (Method, Scheme, Proto, Remote, TLS) are set as far as they
// could be read, so that the refusal can be recorded; the rest is empty.
func (req *Request) ReadHTTP(r *http.Request) error { return req.ReadOver(nil, r) }

// ReadOver is ReadHTTP for a connection whose TLS has been named before: all its
// requests share t. If t or r.TLS is nil, it is as with ReadHTTP.
func (req *Request) ReadOver(t *TLS, r *http.Request) error {
	*req = Request{Fields: req.Fields[:0], Segments: req.Segments[:0], Scheme: "http"}
	req.connection(t, r)
	if err := req.read(r); err != nil {
		req.Host, req.Authority, req.Path, req.Query, req.HasQuery = "", "", "", "", false
		req.RawPath, req.Forms = "", 0
		req.Fields, req.Segments = req.Fields[:0], req.Segments[:0]
		return err
	}
	return nil
}

// read does the checks in the order of the request line, the host, the fields
// and the framing.
func (req *Request) read(r *http.Request) error {
	if !isToken(r.Method) || len(r.Method) > 32 {
		return refuse(MalformedRequest, "method that is not a token of at most 32 bytes")
	}
	req.Method = r.Method
	if req.Proto == "" {
		return refuse(UnsupportedProtocol, "neither HTTP/1.1 nor HTTP/2")
	}
	if len(r.RequestURI) > MaxHeadBytes {
		return refuse(HeaderTooLarge, "request target longer than 32 KiB")
	}
	if err := req.target(r); err != nil {
		return err
	}
	if err := req.fields(r.Header, len(r.Method)+len(r.RequestURI)+len(r.Host)+16); err != nil {
		return err
	}
	if err := req.connectionFields(r.Header); err != nil {
		return err
	}
	return req.framing(r)
}

// connection takes over what is known without parsing.
func (req *Request) connection(t *TLS, r *http.Request) {
	switch {
	case r.ProtoMajor == 1 && r.ProtoMinor == 1:
		req.Proto = "HTTP/1.1"
	case r.ProtoMajor == 2:
		req.Proto = "HTTP/2"
	}
	if ap, err := netip.ParseAddrPort(r.RemoteAddr); err == nil {
		req.Remote = netip.AddrPortFrom(ap.Addr().Unmap().WithZone(""), ap.Port())
	}
	if r.TLS != nil {
		req.Scheme = "https"
		if req.TLS = t; t == nil {
			req.TLS = FromTLS(r.TLS)
		}
	}
}

// FromTLS names what was negotiated. Connections are long and requests many:
// an engine may keep the result beside the connection.
func FromTLS(s *tls.ConnectionState) *TLS {
	t := &TLS{
		Cipher:  cipherName(s.CipherSuite),
		ALPN:    s.NegotiatedProtocol,
		SNI:     strings.ToLower(s.ServerName),
		Resumed: s.DidResume,
	}
	switch s.Version {
	case tls.VersionTLS13:
		t.Version = "1.3"
	case tls.VersionTLS12:
		t.Version = "1.2"
	default:
		t.Version = tls.VersionName(s.Version)
	}
	if s.CurveID != 0 {
		t.Group = s.CurveID.String()
	}
	return t
}

// cipherNames spares the slices that tls.CipherSuiteName makes on each call.
var cipherNames = func() map[uint16]string {
	m := make(map[uint16]string)
	for _, c := range append(tls.CipherSuites(), tls.InsecureCipherSuites()...) {
		m[c.ID] = c.Name
	}
	return m
}()

func cipherName(id uint16) string {
	if n, ok := cipherNames[id]; ok {
		return n
	}
	return tls.CipherSuiteName(id)
}

// target reads the request target (RFC 9112 section 3.2) and the host.
func (req *Request) target(r *http.Request) error {
	if r.Method == http.MethodConnect {
		return refuse(MalformedRequest, "CONNECT")
	}
	if len(r.Header[":protocol"]) > 0 {
		return refuse(MalformedRequest, "extended CONNECT")
	}
	uri := r.RequestURI
	if uri == "*" {
		return refuse(BadPath, "asterisk-form")
	}
	host := r.Host
	if uri != "" && uri[0] != '/' {
		var err error
		if host, uri, err = req.absolute(r); err != nil {
			return err
		}
	}
	var err error
	if req.Host, req.Authority, err = parseHost(host, req.Scheme); err != nil {
		return err
	}
	if err := req.sameHost(r.Header["Host"]); err != nil {
		return err
	}
	path, query, has := strings.Cut(uri, "?")
	if path == "" && !has {
		return refuse(BadPath, "empty request target")
	}
	if err := checkQuery(query); err != nil {
		return err
	}
	req.Query, req.HasQuery = query, has
	return req.setPath(path)
}

// setPath takes over a path that is fit for some route. Which forms it may have
// is the route's to say.
func (req *Request) setPath(raw string) error {
	p, err := parsePath(raw, req.Segments)
	if err != nil {
		return err
	}
	req.Path, req.Segments, req.Forms = p.normal, p.segs, p.forms
	if p.forms != 0 {
		req.RawPath = sendable(raw)
	}
	return nil
}

// absolute takes an absolute-form target apart. Two hosts that differ are the
// classic way past a host rule, so it needs the Host field to compare with.
func (req *Request) absolute(r *http.Request) (host, rest string, err error) {
	scheme, after, ok := strings.Cut(r.RequestURI, "://")
	if !ok || !strings.EqualFold(scheme, req.Scheme) {
		return "", "", refuse(BadPath, "target that is neither a path nor an absolute URI of this scheme")
	}
	if len(r.Header["Host"]) != 1 {
		return "", "", refuse(BadHost, "absolute-form without a Host field to compare with")
	}
	end := strings.IndexAny(after, "/?#")
	if end < 0 {
		return after, "/", nil
	}
	host, rest = after[:end], after[end:]
	if rest[0] == '?' {
		rest = "/" + rest
	}
	return host, rest, nil
}

// sameHost compares a Host field that the engine left visible (HTTP/2 with
// :authority, or an engine of ours) with the authority in use.
func (req *Request) sameHost(fields []string) error {
	if len(fields) == 0 {
		return nil
	}
	if len(fields) > 1 {
		return refuse(BadHost, "two Host fields")
	}
	_, authority, err := parseHost(fields[0], req.Scheme)
	if err != nil {
		return err
	}
	if authority != req.Authority {
		return refuse(BadHost, "Host field that differs from the target's authority")
	}
	return nil
}

// connectionFields reads the hop-by-hop fields that mean something to us.
func (req *Request) connectionFields(h http.Header) error {
	upgrade := false
	for _, v := range h["Connection"] {
		if req.Proto == "HTTP/2" {
			return refuse(MalformedRequest, "connection field in HTTP/2")
		}
		for tok := range strings.SplitSeq(v, ",") {
			tok = strings.ToLower(trimOWS(tok))
			if tok == "" {
				continue
			}
			if !connectionOptions[tok] {
				return refuse(MalformedRequest, "Connection names a field that is not hop-by-hop")
			}
			upgrade = upgrade || tok == "upgrade"
		}
	}
	if up := h["Upgrade"]; upgrade && len(up) > 0 {
		req.Upgrade = trimOWS(strings.Join(up, ", "))
	}
	if exp := h["Expect"]; len(exp) > 0 {
		if !strings.EqualFold(trimOWS(exp[0]), "100-continue") {
			return refuse(MalformedRequest, "unknown expectation")
		}
		req.ExpectContinue = true
	}
	for _, v := range h["Te"] {
		for tok := range strings.SplitSeq(v, ",") {
			tok = strings.ToLower(trimOWS(tok))
			if tok == "trailers" {
				req.TETrailers = true
			} else if tok != "" && req.Proto == "HTTP/2" {
				// RFC 9113 section 8.2.2.
				return refuse(MalformedRequest, "TE other than trailers in HTTP/2")
			}
		}
	}
	return nil
}

// framing checks that there is one way to read where the body ends (RFC 9112
// section 6, RFC 9113 section 8.1.1).
func (req *Request) framing(r *http.Request) error {
	chunked := len(r.TransferEncoding) > 0 || len(r.Header["Transfer-Encoding"]) > 0
	if chunked && (req.Proto != "HTTP/1.1" || len(r.TransferEncoding) != 1 ||
		r.TransferEncoding[0] != "chunked" || len(r.Header["Transfer-Encoding"]) > 0) {
		return refuse(AmbiguousFraming, "transfer coding other than one chunked")
	}
	req.ContentLength = r.ContentLength
	if cl := r.Header["Content-Length"]; len(cl) > 0 {
		n, ok := contentLength(cl)
		if !ok {
			return refuse(AmbiguousFraming, "Content-Length that is not one plain number")
		}
		if chunked {
			return refuse(AmbiguousFraming, "Content-Length beside Transfer-Encoding")
		}
		if n != r.ContentLength {
			return refuse(AmbiguousFraming, "Content-Length that differs from the framing")
		}
	}
	if chunked && (req.Method == http.MethodGet || req.Method == http.MethodHead) {
		return refuse(AmbiguousFraming, "chunked body of a GET or HEAD")
	}
	if chunked {
		req.ContentLength = -1
	}
	return nil
}

// contentLength takes one value of 1 to 18 digits without leading zeros.
func contentLength(values []string) (n int64, ok bool) {
	if len(values) != 1 {
		return 0, false
	}
	v := values[0]
	if v == "" || len(v) > 18 || len(v) > 1 && v[0] == '0' {
		return 0, false
	}
	for i := 0; i < len(v); i++ {
		if v[i] < '0' || v[i] > '9' {
			return 0, false
		}
		n = n*10 + int64(v[i]-'0')
	}
	return n, true
}
