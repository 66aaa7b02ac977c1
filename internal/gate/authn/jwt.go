package authn

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// method is what a Principal of this file was authenticated by.
const method = "jwt"

// JWT verifies the access tokens of one issuer. It is safe for concurrent use.
type JWT struct {
	name    string
	issuer  string
	id      [sha256.Size]byte
	allowed []*algorithm
	types   []string // normalised
	noType  bool
	profile *profile
	keys    *keyStore
	cache   *Cache
	slots   *Slots
	wait    time.Duration // for a slot
	now     func() time.Time
}

// NewJWT validates the configuration and makes a JWT. It neither fetches nor
// starts anything: keys are loaded by Run or by the first request.
func NewJWT(c JWTConfig) (*JWT, error) {
	c.setDefaults()
	j, err := newJWT(&c)
	if err != nil {
		return nil, fmt.Errorf("issuer %q: %w", c.Name, err)
	}
	return j, nil
}

func newJWT(c *JWTConfig) (*JWT, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	allowed, err := c.permitted()
	if err != nil {
		return nil, err
	}
	p, err := c.profile()
	if err != nil {
		return nil, err
	}
	id, err := c.id()
	if err != nil {
		return nil, err
	}
	fetch, err := c.Keys.fetcher(c.Issuer)
	if err != nil {
		return nil, err
	}
	j := &JWT{
		name: c.Name, issuer: c.Issuer, id: id, allowed: allowed, noType: c.AllowNoType, profile: p,
		keys: &keyStore{
			cfg: c.Keys, issuer: c.Name, fetch: fetch, allowed: allowed, now: c.Now, log: c.Logger,
			unknown: make(map[string]time.Time),
		},
		cache: c.Cache,
		slots: c.Slots,
		wait:  c.Keys.Timeout,
		now:   c.Now,
	}
	if j.cache == nil {
		j.cache = NewCache(0)
	}
	if j.slots == nil {
		j.slots = NewSlots(c.Verifiers)
	}
	for _, t := range c.Types {
		j.types = append(j.types, mediaType(t))
	}
	return j, nil
}

// Run keeps the keys fresh until ctx ends; then it returns nil. It blocks, and
// only one Run may be active at a time. A request for which no keys are loaded
// yet fetches them itself.
func (j *JWT) Run(ctx context.Context) error { return j.keys.loop(ctx) }

// Status reports on the issuer's keys.
func (j *JWT) Status() KeyStatus { return j.keys.status() }

// ID is a digest of the configuration that verdicts depend on. Two JWTs of the
// same ID and key source judge alike, so a reload may keep the older one with
// the keys it has.
func (j *JWT) ID() [sha256.Size]byte { return j.id }

// Authenticate verifies the bearer token in the request's Authorization field
// (RFC 6750 section 2.1; a token in the query, a body or a cookie is no
// credential). The error is ErrNoCredential, a *NotMine, which
// errors.Is(err, ErrNoCredential) also finds, or a final *Failure.
func (j *JWT) Authenticate(ctx context.Context, r *canon.Request) (*Principal, error) {
	raw, err := bearer(r)
	if err != nil {
		return nil, err
	}
	return j.verify(ctx, raw)
}

// bearer takes the token out of the one Authorization field.
func bearer(r *canon.Request) (string, error) {
	v, n := r.Get("authorization")
	if n > 1 {
		return "", fail(reason.TwoCredentials, "more than one Authorization field")
	}
	if v == "" {
		return "", ErrNoCredential
	}
	const scheme = "bearer"
	end := 0
	for end < len(v) && isTokenChar(v[end]) {
		end++
	}
	if end == 0 {
		return "", fail(reason.TokenMalformed, "Authorization does not begin with a scheme")
	}
	if !strings.EqualFold(v[:end], scheme) || end != len(scheme) {
		return "", ErrNoCredential
	}
	raw := v[end:]
	if len(raw) < 2 || raw[0] != ' ' {
		return "", fail(reason.TokenMalformed, "Bearer is not followed by one space and a token")
	}
	raw = raw[1:]
	if len(raw) > maxToken {
		return "", fail(reason.TokenMalformed, "token is too long")
	}
	return raw, nil
}

// isTokenChar is tchar of RFC 9110 section 5.6.2.
func isTokenChar(c byte) bool {
	return isAlphaNum(c) || strings.IndexByte("!#$%&'*+-.^_`|~", c) >= 0
}

// isB64TokenChar is the alphabet of RFC 6750 section 2.1, padding included.
func isB64TokenChar(c byte) bool {
	return isAlphaNum(c) || c == '-' || c == '.' || c == '_' || c == '~' || c == '+' || c == '/' || c == '='
}

func isAlphaNum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// verify answers from the cache or judges the token and remembers the verdict.
func (j *JWT) verify(ctx context.Context, raw string) (*Principal, error) {
	now := j.now()
	k := cacheKey{token: j.cache.hash(raw), config: j.id}
	ks := j.keys.current(now)
	if ks != nil {
		k.keys = ks.mark()
		if p, ok := j.cache.good.get(&k, now.UnixNano()); ok {
			return p, nil
		}
		if f, ok := j.cache.bad.get(&k, now.UnixNano()); ok {
			return nil, f
		}
	}
	// Only now: what the cache knows has been through all of this.
	for i := range len(raw) {
		if !isB64TokenChar(raw[i]) {
			return nil, fail(reason.TokenMalformed, "token has a character outside b64token")
		}
	}
	t, err := parseToken(raw, j.profile.names)
	f, notMine := j.sift(t, err)
	if notMine != nil {
		return nil, notMine
	}
	if f != nil {
		return nil, f // as cheap to find again as to remember
	}
	return j.judge(ctx, t, k)
}

// sift refuses what is malformed and tells apart what another method may take.
// It looks at the shape and at iss only, neither of them verified.
func (j *JWT) sift(t *token, err error) (*Failure, *NotMine) {
	if errors.Is(err, errNotCompact) {
		return nil, &NotMine{Failure{Reason: reason.TokenMalformed, Detail: "bearer token is not a signed JWT", Err: err}}
	}
	if err != nil {
		f := fail(reason.TokenMalformed, "token is not a strict JWS")
		f.Err = err
		return j.explain(f, t), nil
	}
	iss := t.claims.get("iss")
	if iss != nil && iss.kind != kindString {
		return j.explain(fail(reason.TokenMalformed, "iss is not a string"), t), nil
	}
	if iss == nil || iss.text != j.issuer {
		n := &NotMine{*fail(reason.TokenIssuer, "token is not of this issuer")}
		n.Claimed = claimed(t.claims)
		return nil, n
	}
	return nil, nil
}

// judge verifies a well-formed token of our issuer. k lacks the keys if none were
// loaded.
func (j *JWT) judge(ctx context.Context, t *token, k cacheKey) (*Principal, error) {
	if f := j.checkHeader(t); f != nil {
		return nil, j.explain(f, t)
	}
	kid, _ := t.kid()
	alg := t.header.get("alg").text
	ks := j.keys.demand(ctx)
	if ks == nil {
		return nil, j.explain(fail(reason.IssuerUnavailable, "no usable signing keys of the issuer"), t)
	}
	ks, key := j.keys.lookup(ctx, ks, kid)
	k.keys = ks.mark()
	if key == nil {
		return nil, j.refuse(fail(reason.TokenKeyUnknown, "no key of that id"), t, k)
	}
	a := key.allows(alg)
	if a == nil {
		return nil, j.refuse(fail(reason.TokenAlgorithm, "the key may not be used with that algorithm"), t, k)
	}
	p, times, f := j.checkSigned(ctx, t, key, a, k)
	if f != nil {
		return nil, j.refuse(f, t, k)
	}
	if times == nil {
		return p, nil // another request verified the same token meanwhile
	}
	p.Method, p.Issuer, p.KID, p.Alg = method, j.name, key.kid, a.name
	j.remember(p, times, k)
	return p, nil
}

// checkSigned verifies signature, then claims, while holding one of the slots
// that bound the processor time spent on signatures. Claims of a token that is
// not genuine are never looked at.
func (j *JWT) checkSigned(ctx context.Context, t *token, key *key, a *algorithm, k cacheKey) (*Principal, *times, *Failure) {
	if f := j.slots.acquire(ctx, j.wait); f != nil {
		return nil, nil, f
	}
	defer j.slots.release()
	now := j.now()
	if p, ok := j.cache.good.get(&k, now.UnixNano()); ok {
		return p, nil, nil
	}
	if !a.verify(key.pub, []byte(t.signed), t.sig) {
		return nil, nil, fail(reason.TokenSignature, "signature does not verify")
	}
	p, times, f := j.profile.check(t.claims, now)
	return p, &times, f
}

// checkHeader applies the strict profile to the JOSE header.
func (j *JWT) checkHeader(t *token) *Failure {
	for _, name := range refusedHeaders {
		if t.header.get(name) != nil {
			return fail(reason.TokenMalformed, "header has a parameter that is not taken (crit, jku, jwk, x5u, x5c, zip, b64 or one of encryption)")
		}
	}
	alg := t.header.get("alg")
	if alg == nil || alg.kind != kindString {
		return fail(reason.TokenMalformed, "alg is missing or not a string")
	}
	if !j.configured(alg.text) {
		return fail(reason.TokenAlgorithm, "algorithm is not configured")
	}
	if f := j.checkType(t.header); f != nil {
		return f
	}
	if _, ok := t.kid(); !ok {
		return fail(reason.TokenMalformed, "kid is missing or not 1 to 256 printable characters")
	}
	return nil
}

func (j *JWT) configured(alg string) bool {
	return slices.ContainsFunc(j.allowed, func(a *algorithm) bool { return a.name == alg })
}

// checkType wants typ to be one of the configured types (RFC 8725 section
// 3.11), and no token within the token.
func (j *JWT) checkType(header *value) *Failure {
	if cty := header.get("cty"); cty != nil {
		if cty.kind != kindString || mediaType(cty.text) == "jwt" {
			return fail(reason.TokenType, "cty names a nested token")
		}
	}
	typ := header.get("typ")
	switch {
	case typ == nil && j.noType:
		return nil
	case typ == nil:
		return fail(reason.TokenType, "typ is missing")
	case typ.kind != kindString:
		return fail(reason.TokenMalformed, "typ is not a string")
	case !slices.Contains(j.types, mediaType(typ.text)):
		return fail(reason.TokenType, "typ is not one of those configured")
	}
	return nil
}

// explain adds to f what may be said about the token: values from outside only
// where they equal ours.
func (j *JWT) explain(f *Failure, t *token) *Failure {
	if t == nil {
		return f
	}
	f.Claimed = claimed(t.claims)
	if t.claims != nil {
		if iss := t.claims.get("iss"); iss != nil && iss.kind == kindString && iss.text == j.issuer {
			f.Issuer = j.name
		}
	}
	if t.header == nil {
		return f
	}
	if alg := t.header.get("alg"); alg != nil && alg.kind == kindString && j.configured(alg.text) {
		f.Alg = alg.text
	}
	if kid, ok := t.kid(); ok && j.HasKey(kid) {
		f.KID = kid
	}
	return f
}

// refuse explains f and remembers it for a moment, so that a bad token sent
// again and again costs no signature check.
func (j *JWT) refuse(f *Failure, t *token, k cacheKey) *Failure {
	j.explain(f, t)
	if rememberable(f.Reason) {
		now := j.now().UnixNano()
		j.cache.bad.put(&k, 0, now+int64(maxRememberBad), now, f)
	}
	return f
}

// remember keeps a verdict until the earliest of exp, iat + max age and a
// minute from now; never within the skew that exp is granted. It does not
// answer before the token is valid, should the clock be set back.
func (j *JWT) remember(p *Principal, t *times, k cacheKey) {
	now := j.now()
	until := now.Add(maxRemember)
	if p.Expires.Before(until) {
		until = p.Expires
	}
	if m := j.profile.maxAge; m > 0 && p.IssuedAt.Add(m).Before(until) {
		until = p.IssuedAt.Add(m)
	}
	from := time.Unix(max(t.iat, t.nbf, t.auth), 0).Add(-j.profile.skew)
	j.cache.good.put(&k, from.UnixNano(), until.UnixNano(), now.UnixNano(), p)
}
