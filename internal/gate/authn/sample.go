package authn

import "time"

// Sample is what a token says of itself. None of it is verified: it is for an
// operator who wants to know why a token of their own is refused.
type Sample struct {
	JWT       bool // of the shape of a signed JWT; the rest is empty if not
	Issuer    string
	Audiences []string // in the claim that the issuer's configuration reads
	Type      string   // typ; "" if there is none
	Alg, KID  string
	Lifetime  time.Duration // exp - iat; 0 if it does not say both
}

// Look reads a token without verifying it.
func (j *JWT) Look(raw string) (s Sample) {
	t, err := parseToken(raw, j.profile.names)
	if t == nil || t.header == nil || t.claims == nil {
		return Sample{JWT: err == nil}
	}
	str := func(v *value) string {
		if v == nil || v.kind != kindString {
			return ""
		}
		return v.text
	}
	s = Sample{JWT: true, Issuer: str(t.claims.get("iss")), Type: str(t.header.get("typ")), Alg: str(t.header.get("alg")), KID: str(t.header.get("kid"))}
	s.Audiences, _ = stringList(j.profile.audience.in(t.claims))
	if times, detail := readTimes(t.claims, true); detail == "" {
		s.Lifetime = time.Duration(times.exp-times.iat) * time.Second
	}
	return s
}

// IssuerMismatch is metadata that name another issuer than the configured one.
type IssuerMismatch struct {
	Found string // from outside
}

// Error implements error. It repeats nothing that came from outside.
func (*IssuerMismatch) Error() string { return "it is for another issuer than the configured one" }
