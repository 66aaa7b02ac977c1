package authn

import (
	"github.com/gatebook/gatebook/internal/gate/canon"
)

// Known reports whether the request's token is remembered as good: no signature
// is checked and no key fetched.
func (j *JWT) Known(r *canon.Request) bool {
	raw, err := bearer(r)
	return err == nil && j.remembers(raw)
}

func (j *JWT) remembers(raw string) bool {
	now := j.now()
	ks := j.keys.current(now)
	if ks == nil {
		return false
	}
	k := cacheKey{token: j.cache.hash(raw), config: j.id, keys: ks.mark()}
	_, ok := j.cache.good.get(&k, now.UnixNano())
	return ok
}

// Known reports whether the issuer has said that the request's token is good, and
// that is still remembered.
func (i *Introspector) Known(r *canon.Request) bool {
	raw, err := bearer(r)
	return err == nil && i.remembers(raw)
}

func (i *Introspector) remembers(raw string) bool {
	k := cacheKey{token: i.cache.hash(raw), config: i.id}
	_, ok := i.cache.good.get(&k, i.now().UnixNano())
	return ok
}

// Known reports whether the request's token is remembered as good, whoever shows
// it: the proof is for the route's demand.
func (u *UnderDPoP) Known(r *canon.Request) bool {
	raw, err := credential(r, dpopScheme)
	if err != nil {
		return false
	}
	m, ok := u.inner.(interface{ remembers(raw string) bool })
	return ok && m.remembers(raw)
}

// Claims returns the issuer's configured name and the subject that the request's
// token claims, nothing of it verified; empty for what is no token of this
// issuer.
func (j *JWT) Claims(r *canon.Request) (issuer, name string) {
	raw, err := bearer(r)
	if err != nil {
		return "", ""
	}
	t, err := parseToken(raw, j.profile.names)
	if err != nil || t.claims == nil {
		return "", ""
	}
	if iss := t.claims.get("iss"); iss == nil || iss.kind != kindString || iss.text != j.issuer {
		return "", ""
	}
	return j.name, claimed(t.claims)
}
