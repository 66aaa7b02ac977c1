package authn

import (
	"context"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// genuine parses a JWT of this issuer and verifies its signature; its claims
// are not judged.
func (j *JWT) genuine(ctx context.Context, raw string) (*token, *key, *Failure) {
	t, err := parseToken(raw, j.profile.names)
	f, notMine := j.sift(t, err)
	if notMine != nil {
		f = &notMine.Failure
	}
	if f == nil {
		f = j.checkHeader(t)
	}
	if f != nil {
		return nil, nil, f
	}
	ks := j.keys.demand(ctx)
	if ks == nil {
		return nil, nil, fail(reason.IssuerUnavailable, "no usable signing keys of the issuer")
	}
	kid, _ := t.kid()
	_, key := j.keys.lookup(ctx, ks, kid)
	if key == nil {
		return nil, nil, fail(reason.TokenKeyUnknown, "no key of that id")
	}
	a := key.allows(t.header.get("alg").text)
	if a == nil {
		return nil, nil, fail(reason.TokenAlgorithm, "the key may not be used with that algorithm")
	}
	if f := j.slots.acquire(ctx, j.wait); f != nil {
		return nil, nil, f
	}
	defer j.slots.release()
	if !a.verify(key.pub, []byte(t.signed), t.sig) {
		return nil, nil, fail(reason.TokenSignature, "signature does not verify")
	}
	return t, key, nil
}

// identity is what an ID token says.
type identity struct {
	principal *Principal
	sid       string
}

// verifyID judges an ID token (OpenID Connect Core 1.0 section 3.1.3.7). nonce
// "" stands for a token that came with a refresh (section 12.2): without a
// nonce, or with the one that it had, which nobody keeps. access is the token
// beside it.
func (s *Sessions) verifyID(ctx context.Context, raw, nonce, access string) (*identity, *Failure) {
	t, key, f := s.ids.genuine(ctx, raw)
	if f != nil {
		return nil, f
	}
	c := t.claims
	p, _, f := s.ids.profile.check(c, s.now())
	if f != nil {
		return nil, f
	}
	if azp := c.get("azp"); azp != nil && (azp.kind != kindString || azp.text != s.idp.auth.ID) || azp == nil && len(p.Audiences) > 1 {
		return nil, fail(reason.TokenAudience, "the ID token was issued to another client (azp)")
	}
	if said := c.get("nonce"); nonce != "" && (said == nil || said.kind != kindString || subtle.ConstantTimeCompare([]byte(said.text), []byte(nonce)) != 1) {
		return nil, fail(reason.TokenReplayed, "the ID token is of another login (nonce)")
	}
	alg := t.header.get("alg").text
	if hash := c.get("at_hash"); hash != nil && (hash.kind != kindString || hash.text != halfHash(alg, access)) {
		return nil, fail(reason.TokenMalformed, "the ID token goes with another access token (at_hash)")
	}
	id := &identity{principal: p}
	if sid := c.get("sid"); sid != nil {
		var ok bool
		if id.sid, ok = text(sid, maxText); !ok {
			return nil, fail(reason.TokenMalformed, "sid is not a short plain string")
		}
	}
	p.KID, p.Alg = key.kid, alg
	return id, nil
}

// halfHash is at_hash (OpenID Connect Core 1.0 section 3.1.3.6).
func halfHash(alg, access string) string {
	var sum []byte
	switch {
	case strings.HasSuffix(alg, "256"):
		h := sha256.Sum256([]byte(access))
		sum = h[:]
	case strings.HasSuffix(alg, "384"):
		h := sha512.Sum384([]byte(access))
		sum = h[:]
	default: // 512, and Ed25519, which hashes with SHA-512
		h := sha512.Sum512([]byte(access))
		sum = h[:]
	}
	return base64.RawURLEncoding.EncodeToString(sum[:len(sum)/2])
}

// Bounds of a logout token: how long ago it was made, and how long it may say
// that it is good for.
const (
	logoutMaxAge  = 5 * time.Minute
	logoutMaxLife = time.Hour

	logoutEvent = "http://schemas.openid.net/event/backchannel-logout"
)

// logout is what a logout token asks for: the sessions of a subject, of a
// session at the issuer, or of both.
type logout struct{ subject, sid string }

// verifyLogout judges a logout token (OpenID Connect Back-Channel Logout 1.0
// sections 2.4 and 2.6) and uses it up.
func (s *Sessions) verifyLogout(ctx context.Context, raw string) (*logout, *Failure) {
	if len(raw) > maxToken {
		return nil, fail(reason.TokenMalformed, "token is too long")
	}
	t, _, f := s.logouts.genuine(ctx, raw)
	if f != nil {
		return nil, f
	}
	c := t.claims
	if c.get("nonce") != nil {
		return nil, fail(reason.TokenType, "a logout token must not have a nonce")
	}
	event := c.get("events").member(logoutEvent)
	if event == nil || event.kind != kindObject {
		return nil, fail(reason.TokenType, "events does not say that it is a logout")
	}
	if _, f := s.logouts.profile.checkAudience(c); f != nil {
		return nil, f
	}
	times, detail := readTimes(c, true)
	if detail != "" {
		return nil, fail(reason.TokenMalformed, detail)
	}
	if f := s.logouts.profile.checkTimes(times, s.now()); f != nil {
		return nil, f
	}
	l := &logout{}
	jti, ok := "", false
	for name, to := range map[string]*string{"sub": &l.subject, "sid": &l.sid, "jti": &jti} {
		v := c.get(name)
		if v == nil {
			continue
		}
		if *to, ok = text(v, maxSubject); !ok {
			return nil, fail(reason.TokenMalformed, "sub, sid or jti is not a short plain string")
		}
	}
	if jti == "" || l.subject == "" && l.sid == "" {
		return nil, fail(reason.TokenMalformed, "jti is missing, or sub and sid both are")
	}
	skew := s.logouts.profile.skew
	fresh, err := s.once.Use(ctx, Use{
		Kind: kindToken, Owner: "logout " + s.name, ID: jti,
		Issued: instant(times.iat).Add(-skew), Expires: instant(times.iat).Add(logoutMaxAge + skew),
	})
	if local := (*LocalOnly)(nil); errors.As(err, &local) {
		err = nil // to end sessions twice does no harm
	}
	if f := onceFailure(fresh, err, "the logout token was used before"); f != nil {
		return nil, f
	}
	return l, nil
}

// member is get for a value that may be none or no object.
func (v *value) member(name string) *value {
	if v == nil || v.kind != kindObject {
		return nil
	}
	return v.get(name)
}
