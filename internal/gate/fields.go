package gate

import (
	"crypto/x509"
	"encoding/base64"
	"net/netip"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
)

// findClient decides whose request it is: the peer, or what a trusted peer
// says. The chain of X-Forwarded-For is walked from the right; every address is
// believed only because the one that named it is trusted (RFC 7239 section
// 8.1).
func (x *exchange) findClient() {
	x.client = x.req.Remote.Addr()
	x.proto = x.req.Scheme
	x.trusted = x.isTrusted(x.client)
	x.req.Client = x.client
	if !x.trusted {
		return
	}
	x.client, x.fwd = x.walk()
	x.req.Client = x.client
	if x.lis.clientCert {
		x.req.FromProxy, x.req.Forwarded = true, clientCert(x.req)
	}
	if v, n := x.req.Get("x-forwarded-proto"); n == 1 && (v == "http" || v == "https") {
		x.proto = v
	}
	if v, n := x.req.Get("traceparent"); n == 1 {
		x.traceID, x.traceTag = parseTraceparent(v)
	}
}

// maxClientCert bounds a certificate in a field, in bytes of base64.
const maxClientCert = 16 << 10

// clientCert reads Client-Cert (RFC 9440 section 2.2): one byte sequence of RFC
// 8941. Anything else is no certificate.
func clientCert(r *canon.Request) *x509.Certificate {
	v, n := r.Get("client-cert")
	if n != 1 || len(v) < 2 || len(v) > maxClientCert || v[0] != ':' || v[len(v)-1] != ':' {
		return nil
	}
	der, err := base64.StdEncoding.Strict().DecodeString(v[1 : len(v)-1])
	if err != nil {
		return nil
	}
	c, err := x509.ParseCertificate(der)
	if err != nil {
		return nil
	}
	return c
}

func (x *exchange) isTrusted(a netip.Addr) bool {
	for _, p := range x.lis.trusted {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// walk returns the client's address and the accepted hops, farthest first.
func (x *exchange) walk() (netip.Addr, []string) {
	client := x.req.Remote.Addr()
	var chain []string
	for i := len(x.req.Fields) - 1; i >= 0; i-- {
		if x.req.Fields[i].Name != "x-forwarded-for" {
			continue
		}
		rest, more := x.req.Fields[i].Value, true
		for more && x.isTrusted(client) {
			var last string
			if at := strings.LastIndexByte(rest, ','); at >= 0 {
				rest, last = rest[:at], rest[at+1:]
			} else {
				rest, last, more = "", rest, false
			}
			a, ok := parseHop(strings.Trim(last, " \t"))
			if !ok {
				slices.Reverse(chain)
				return client, chain
			}
			client = a
			chain = append(chain, a.String())
		}
	}
	slices.Reverse(chain)
	return client, chain
}

// parseHop reads one element of X-Forwarded-For, with or without a port.
func parseHop(s string) (netip.Addr, bool) {
	if a, err := netip.ParseAddr(strings.TrimSuffix(strings.TrimPrefix(s, "["), "]")); err == nil {
		return a.Unmap().WithZone(""), true
	}
	if ap, err := netip.ParseAddrPort(s); err == nil {
		return ap.Addr().Unmap().WithZone(""), true
	}
	return netip.Addr{}, false
}

// parseTraceparent reads a version 00 traceparent (W3C Trace Context section
// 3.2); anything else gives nothing.
func parseTraceparent(v string) (traceID, flags string) {
	if len(v) != 55 || v[:3] != "00-" || v[35] != '-' || v[52] != '-' {
		return "", ""
	}
	traceID, parent, flags := v[3:35], v[36:52], v[53:]
	for _, s := range []string{traceID, parent, flags} {
		for i := 0; i < len(s); i++ {
			if c := s[i]; (c < '0' || c > '9') && (c < 'a' || c > 'f') {
				return "", ""
			}
		}
	}
	if strings.Trim(traceID, "0") == "" || strings.Trim(parent, "0") == "" {
		return "", ""
	}
	return traceID, flags
}

// nameIt writes the exchange's id and the traceparent that the upstream gets:
// the trusted peer's trace or one that is the request id, and a span that is its
// last 8 bytes (spec/record.md).
func (x *exchange) nameIt() {
	const hexDigits = "0123456789abcdef"
	const idSize, traceSize = 36, 55
	var b [idSize + traceSize]byte
	out := append(x.id.AppendText(b[:0]), "00-"...)
	if x.traceID != "" {
		out = append(out, x.traceID...)
	} else {
		for _, c := range x.id {
			out = append(out, hexDigits[c>>4], hexDigits[c&15])
		}
	}
	out = append(out, '-')
	for _, c := range x.id[8:] {
		out = append(out, hexDigits[c>>4], hexDigits[c&15])
	}
	out = append(out, '-')
	if x.traceTag == "" {
		out = append(out, "01"...)
	} else {
		out = append(out, x.traceTag...)
	}
	both := string(out)
	x.idText, x.trace = both[:idSize], both[idSize:]
}

// requestFields builds what the upstream gets: strip every variant of what we
// set or believe, then set ours last (reference/security.md D3).
func (x *exchange) requestFields() {
	out := x.fields[:0]
	for _, f := range x.req.Fields {
		if canon.Reserved(f.Name) || hop(f.Name) || x.identityField(f.Name) || !x.route.PassCredential && x.credential(f.Name) {
			continue
		}
		if f.Name == "cookie" {
			if f.Value = authn.StripCookies(f.Value); f.Value == "" {
				continue
			}
		}
		out = append(out, f)
	}
	set := func(name, value string) { out = append(out, canon.Field{Name: name, Value: value}) }
	if p := x.principal; p != nil {
		set("x-gatebook-subject", fieldText(p.Subject, false))
		set("x-gatebook-issuer", fieldText(p.Issuer, false))
		if p.Client != "" {
			set("x-gatebook-client", fieldText(p.Client, false))
		}
		if len(p.Roles) > 0 {
			set("x-gatebook-roles", x.derived.roles)
		}
	}
	set("x-gatebook-request-id", x.idText)
	set("x-request-id", x.idText)
	set("traceparent", x.trace)
	set("x-forwarded-for", x.forwardedFor())
	set("x-forwarded-proto", x.proto)
	set("x-forwarded-host", x.req.Authority)
	x.fields = out
}

// credential reports the fields in which credentials come, those of the route's
// methods and the common ones, in any spelling that an upstream could take for
// one of them.
func (x *exchange) credential(name string) bool {
	return canon.Credential(name) || slices.ContainsFunc(x.route.CredentialFields, func(f string) bool { return canon.SameField(f, name) })
}

// identityField reports a field that only Identity sets, on whichever route.
func (x *exchange) identityField(name string) bool {
	return slices.ContainsFunc(x.snap.identities, func(f string) bool { return canon.SameField(f, name) })
}

// forwardedFor is the believed chain with the peer appended.
func (x *exchange) forwardedFor() string {
	peer := "unknown"
	if a := x.req.Remote.Addr(); a == x.client && x.clientIP != "" {
		peer = x.clientIP
	} else if a.IsValid() {
		peer = a.String()
	}
	if len(x.fwd) == 0 {
		return peer
	}
	return strings.Join(x.fwd, ", ") + ", " + peer
}

func joinRoles(roles []string) string {
	if len(roles) == 1 {
		return fieldText(roles[0], true)
	}
	var b strings.Builder
	for i, r := range roles {
		if i > 0 {
			b.WriteByte(',')
		}
		b.WriteString(fieldText(r, true))
	}
	return b.String()
}

// fieldText makes any text a field value: what is not visible ASCII is
// percent-encoded, and so is '%' (and ',' within a list), so that two different
// names never read the same.
func fieldText(s string, list bool) string {
	plain := true
	for i := 0; i < len(s) && plain; i++ {
		plain = s[i] > ' ' && s[i] < 0x7f && s[i] != '%' && !(list && s[i] == ',')
	}
	if plain {
		return s
	}
	const upper = "0123456789ABCDEF"
	b := make([]byte, 0, len(s)+16)
	for i := 0; i < len(s); i++ {
		c := s[i]
		if c > ' ' && c < 0x7f && c != '%' && !(list && c == ',') {
			b = append(b, c)
			continue
		}
		b = append(b, '%', upper[c>>4], upper[c&15])
	}
	return string(b)
}

// hop reports the fields of one connection (RFC 9110 section 7.6.1) and those
// that the engine writes.
func hop(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "proxy-authenticate", "proxy-authorization",
		"proxy-authentication-info", "te", "trailer", "transfer-encoding", "upgrade", "content-length", "http2-settings":
		return true
	}
	return false
}

// responseFields are the upstream's end-to-end fields and the request id.
func (x *exchange) responseFields() []canon.Field {
	x.fields = appendResponse(x.fields[:0], x.resp.Fields)
	x.fields = append(x.fields, canon.Field{Name: "x-request-id", Value: x.idText})
	if x.nonce != "" {
		x.fields = slices.DeleteFunc(x.fields, func(f canon.Field) bool { return f.Name == "dpop-nonce" })
		x.fields = append(x.fields, canon.Field{Name: "dpop-nonce", Value: x.nonce}) // RFC 9449 section 8.2
	}
	x.fields = x.addCookie(x.fields)
	return x.fields
}

// appendResponse appends the fields of an answer that may go on: not those of
// the connection, not those that Connection names, not another request id.
func appendResponse(out, fields []canon.Field) []canon.Field {
	named := ""
	for _, f := range fields {
		if f.Name == "connection" {
			named += "," + strings.ToLower(f.Value)
		}
	}
	for _, f := range fields {
		if hop(f.Name) || f.Name == "x-request-id" || ownCookie(&f) || named != "" && inList(named, f.Name) {
			continue
		}
		out = append(out, f)
	}
	return out
}

// inList reports whether a comma-separated list in lower case has the name.
func inList(list, name string) bool {
	for tok := range strings.SplitSeq(list, ",") {
		if strings.Trim(tok, " \t") == name {
			return true
		}
	}
	return false
}

// trailerRefused reports fields that must not come after the body: whoever
// merges trailers into the head would have decided without them (RFC 9110
// section 6.5.1).
func trailerRefused(name string) bool {
	if hop(name) || canon.Reserved(name) || strings.HasPrefix(name, "content-") {
		return true
	}
	switch name {
	case "host", "authorization", "www-authenticate", "set-cookie", "cookie", "cache-control", "expires", "date",
		"age", "location", "retry-after", "vary", "expect", "max-forwards", "range", "pragma":
		return true
	}
	return false
}
