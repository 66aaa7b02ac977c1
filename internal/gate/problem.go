package gate

import (
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// ownAnswer is an answer that the gate makes.
type ownAnswer struct {
	status int
	fields []canon.Field
	body   []byte
	why    reason.Reason // of the failure that it tells, "" if there is none
}

// problem is the answer for a reason: RFC 9457 problem details with the public
// text only, or for gRPC a trailers-only answer (a head with grpc-status that
// ends the stream).
func (x *exchange) problem(r reason.Reason) ownAnswer {
	if to := x.loginFor(r); to != "" {
		return x.redirected(to)
	}
	fields := make([]canon.Field, 0, 8)
	add := func(name, value string) { fields = append(fields, canon.Field{Name: name, Value: value}) }
	add("x-request-id", x.idText)
	add("cache-control", "no-store")
	if ct, n := x.req.Get("content-type"); n == 1 && isGRPC(ct) {
		add("content-type", "application/grpc")
		add("grpc-status", strconv.Itoa(r.GRPC()))
		add("grpc-message", r.Public())
		return ownAnswer{status: 200, fields: fields}
	}
	add("content-type", "application/problem+json")
	add("x-content-type-options", "nosniff")
	if c := x.challenge(r); c != "" {
		add("www-authenticate", c)
	}
	if x.refusal != nil && x.refusal.Nonce != "" {
		add("dpop-nonce", x.refusal.Nonce) // RFC 9449 section 8
	} else if x.nonce != "" {
		add("dpop-nonce", x.nonce)
	}
	if x.hangUp {
		add("connection", "close") // over HTTP/2 net/http makes GOAWAY of it
	}
	switch {
	case r == reason.MethodNotAllowed:
		add("allow", x.allow)
	case r.Origin() == reason.OriginLimit && x.limited != nil:
		add("retry-after", strconv.FormatInt(x.limit.RetryAfterSeconds(), 10))
		add("ratelimit-policy", x.limited.Policy())
		add("ratelimit", x.limited.Header(x.limit))
	}
	status := r.Status()
	b := appendProblem(make([]byte, 0, 160), r, x.idText)
	return ownAnswer{status: status, fields: x.addCookie(fields), body: b}
}

// appendProblem adds the problem details of a reason.
func appendProblem(b []byte, r reason.Reason, id string) []byte {
	b = append(b, `{"type":"about:blank","title":"`...)
	b = append(b, r.Public()...) // plain ASCII words: nothing to escape
	b = append(b, `","status":`...)
	b = strconv.AppendInt(b, int64(r.Status()), 10)
	b = append(b, `,"request_id":"`...)
	b = append(b, id...)
	return append(b, "\"}\n"...)
}

// isGRPC reports the media types of gRPC over HTTP/2; grpc-web is read as
// plain HTTP.
func isGRPC(contentType string) bool {
	after, ok := strings.CutPrefix(strings.ToLower(contentType), "application/grpc")
	return ok && (after == "" || after[0] == '+' || after[0] == ';' || after[0] == ' ')
}

// challenge is the WWW-Authenticate field (RFC 6750 section 3): with an error
// code only if a credential was presented, and never with a text that tells
// the failures apart.
func (x *exchange) challenge(r reason.Reason) string {
	code := r.OAuthError()
	if code == "" && r.Status() != 401 {
		return ""
	}
	c := x.snap.challenge
	if x.route != nil {
		c = c.overridden(x.route.Challenge)
	}
	var b strings.Builder
	scheme := "Bearer"
	if c.DPoP == DPoPRequired || r == reason.DPoPProof || r == reason.DPoPNonce || c.DPoP != DPoPOff && x.cameUnderDPoP() {
		scheme = "DPoP" // RFC 9449 section 7.1
	}
	b.WriteString(scheme + " realm=" + quoted(c.Realm))
	if code != "" {
		b.WriteString(", error=" + quoted(code))
	}
	if r == reason.ScopeMissing {
		b.WriteString(", scope=" + quoted(strings.Join(x.route.Scopes, " ")))
	}
	if f := x.refusal; f != nil && r == reason.StepupRequired { // RFC 9470 section 3
		if f.ACRValues != "" {
			b.WriteString(", acr_values=" + quoted(f.ACRValues))
		}
		if f.MaxAge > 0 {
			b.WriteString(", max_age=" + strconv.FormatInt(int64(f.MaxAge/time.Second), 10))
		}
	}
	if scheme == "DPoP" {
		b.WriteString(", algs=" + quoted(c.DPoPAlgorithms))
	}
	if c.ResourceMetadata != "" {
		b.WriteString(", resource_metadata=" + quoted(c.ResourceMetadata))
	}
	if c.DPoP == DPoPOptional && scheme != "DPoP" {
		b.WriteString(", DPoP realm=" + quoted(c.Realm) + ", algs=" + quoted(c.DPoPAlgorithms))
	}
	return b.String()
}

// cameUnderDPoP reports a credential under the scheme DPoP.
func (x *exchange) cameUnderDPoP() bool {
	v, _ := x.req.Get("authorization")
	return len(v) > 5 && strings.EqualFold(v[:5], "dpop ")
}

// overridden takes from o what o sets.
func (c Challenge) overridden(o Challenge) Challenge {
	if o.Realm != "" {
		c.Realm = o.Realm
	}
	if o.ResourceMetadata != "" {
		c.ResourceMetadata = o.ResourceMetadata
	}
	if o.DPoPAlgorithms != "" {
		c.DPoPAlgorithms = o.DPoPAlgorithms
	}
	if o.DPoP != DPoPOff {
		c.DPoP = o.DPoP
	}
	return c
}

// quoted is a quoted-string (RFC 9110 section 5.6.4); what cannot stand in one
// is left out.
func quoted(s string) string {
	var b strings.Builder
	b.WriteByte('"')
	for i := 0; i < len(s); i++ {
		switch c := s[i]; {
		case c == '"' || c == '\\':
			b.WriteByte('\\')
			b.WriteByte(c)
		case c >= ' ' && c < 0x7f:
			b.WriteByte(c)
		}
	}
	b.WriteByte('"')
	return b.String()
}
