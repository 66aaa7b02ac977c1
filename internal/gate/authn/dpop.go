package authn

import (
	"context"
	"crypto/subtle"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// DPoPConfig says how proofs of possession (RFC 9449) are judged.
type DPoPConfig struct {
	// Origins are the external origins (scheme, host, port) under which clients
	// know this gate: what htu must begin with. A request for the host of one of
	// them must be proved for that one; if there is only one it stands for every
	// host. Nothing that a client sends takes part in this.
	Origins []string
	// Algorithms that a proof may be signed with, as in JWTConfig, and Ed25519.
	Algorithms []string
	// MaxAge is how long ago iat may lie; 0 means 60 s, at most 10 min. Ahead is
	// how far ahead of our clock it may be; 0 means 10 s, at most 60 s.
	MaxAge, Ahead time.Duration
	// Once remembers the proofs that were seen.
	Once Once
	// Slots bound the signatures checked at a time, Wait how long a request waits
	// for one; 0 means 5 s.
	Slots *Slots
	Wait  time.Duration
	Now   func() time.Time // nil: time.Now
}

// Limits of proofs.
const (
	defaultProofAge = 60 * time.Second
	maxProofAge     = 10 * time.Minute
	defaultAhead    = 10 * time.Second
	maxAhead        = 60 * time.Second
)

// DPoP judges proofs. It is safe for concurrent use.
type DPoP struct {
	origins map[string]string // canonical authority -> origin
	only    string            // the origin, if there is one only
	allowed []*algorithm
	age     time.Duration
	ahead   time.Duration
	once    Once
	slots   *Slots
	wait    time.Duration
	now     func() time.Time
}

// NewDPoP validates the configuration.
func NewDPoP(c DPoPConfig) (*DPoP, error) {
	d := &DPoP{
		origins: map[string]string{}, age: c.MaxAge, ahead: c.Ahead,
		once: c.Once, slots: c.Slots, wait: c.Wait, now: c.Now,
	}
	if d.age == 0 {
		d.age = defaultProofAge
	}
	if d.ahead == 0 {
		d.ahead = defaultAhead
	}
	if d.slots == nil {
		d.slots = NewSlots(0)
	}
	if d.wait == 0 {
		d.wait = 5 * time.Second
	}
	if d.now == nil {
		d.now = time.Now
	}
	switch {
	case len(c.Origins) == 0:
		return nil, errors.New("dpop: origins are not set; name the URL under which clients reach this gate, such as https://api.example.com")
	case len(c.Algorithms) == 0:
		return nil, errors.New("dpop: algorithms are not set")
	case d.age < time.Second || d.age > maxProofAge || d.ahead < 0 || d.ahead > maxAhead:
		return nil, fmt.Errorf("dpop: the age of a proof must be 1 s to %s, and it may be at most %s ahead", maxProofAge, maxAhead)
	case c.Once == nil:
		return nil, errors.New("dpop: nothing remembers the proofs that were seen")
	}
	for _, o := range c.Origins {
		u, err := parseURI(o)
		if err != nil || u.path != "/" {
			return nil, fmt.Errorf("dpop: %q is not an origin; write scheme, host and port only", o)
		}
		_, authority, _ := strings.Cut(u.origin, "://")
		if d.origins[authority] != "" {
			return nil, fmt.Errorf("dpop: two origins for %s", authority)
		}
		d.origins[authority], d.only = u.origin, u.origin
	}
	if len(d.origins) > 1 {
		d.only = ""
	}
	for _, name := range c.Algorithms {
		a := proofAlgorithm(name)
		if a == nil || slices.ContainsFunc(d.allowed, func(b *algorithm) bool { return b.name == name }) {
			return nil, fmt.Errorf("dpop: algorithm %q is named twice or is not an asymmetric one that is known", name)
		}
		d.allowed = append(d.allowed, a)
	}
	return d, nil
}

// Findings are what a Demand has to say beside yes.
type Findings struct {
	// Nonce is what the client should put into its next proof; "" if it has it.
	Nonce string
	// Local: the shared store was away, so that only this node's memory was
	// asked whether a proof was seen before.
	Local bool
}

// prove judges the proof of a request made with the token raw of p (RFC 9449
// section 4.3). What costs little is checked before the signature; nothing is
// remembered of a proof that is not good in every point, so that nobody can use
// up another's.
func (d *DPoP) prove(ctx context.Context, r *canon.Request, p *Principal, raw string, nonces *Nonces) (Findings, *Failure) {
	var found Findings
	pr, f := d.sent(r)
	if f != nil {
		return found, f
	}
	now := d.now()
	if f := d.fits(pr, r, p, raw, now); f != nil {
		return found, f
	}
	if nonces != nil {
		ok, fresh := nonces.check(pr.nonce, now)
		found.Nonce = fresh
		if !ok {
			f := fail(reason.DPoPNonce, "the proof has no nonce of ours that still counts")
			f.Nonce = fresh
			return found, f
		}
	}
	if f := d.genuine(ctx, pr); f != nil {
		return found, f
	}
	local, f := d.first(ctx, pr)
	found.Local = local
	return found, f
}

// fits compares the proof with the request and the token.
func (d *DPoP) fits(pr *proof, r *canon.Request, p *Principal, raw string, now time.Time) *Failure {
	if subtle.ConstantTimeCompare([]byte(pr.jkt), []byte(p.Confirm.JKT)) != 1 {
		return fail(reason.BindingMismatch, "the proof is of another key than the token's")
	}
	if subtle.ConstantTimeCompare([]byte(pr.ath), []byte(accessTokenHash(raw))) != 1 {
		return fail(reason.DPoPProof, "ath is not the hash of the token")
	}
	return d.suits(pr, r, now)
}

// suits compares the proof with the request, whatever token it comes with.
func (d *DPoP) suits(pr *proof, r *canon.Request, now time.Time) *Failure {
	origin := d.origins[r.Authority]
	if origin == "" {
		origin = d.only
	}
	path, err := normalURIPath(r.Sent())
	iat := time.Unix(pr.iat, 0)
	switch {
	case pr.htm != r.Method:
		return fail(reason.DPoPProof, "htm is another method than the request's")
	case origin == "":
		return fail(reason.DPoPProof, "the request is for a host that is none of dpop.origins")
	case err != nil || pr.htu.origin != origin || pr.htu.path != path:
		return fail(reason.DPoPProof, "htu is another URI than the request's")
	case iat.After(now.Add(d.ahead)) || now.Sub(iat) > d.age:
		return fail(reason.DPoPProof, "iat is too long ago or in the future")
	case pr.exp >= 0 && !now.Before(time.Unix(pr.exp, 0)):
		return fail(reason.DPoPProof, "exp has passed")
	case pr.nbf >= 0 && time.Unix(pr.nbf, 0).After(now.Add(d.ahead)):
		return fail(reason.DPoPProof, "nbf is in the future")
	}
	return nil
}

// genuine checks the signature, every time.
func (d *DPoP) genuine(ctx context.Context, pr *proof) *Failure {
	if f := d.slots.acquire(ctx, d.wait); f != nil {
		return f
	}
	defer d.slots.release()
	if !pr.verify() {
		return fail(reason.DPoPProof, "the signature of the proof does not verify")
	}
	return nil
}

// first says whether the proof is used for the first time, and uses it up. It
// is remembered under key and jti alone: whoever makes jti as RFC 9449 section
// 4.2 asks never needs one twice, whatever the URI.
func (d *DPoP) first(ctx context.Context, pr *proof) (local bool, f *Failure) {
	iat := time.Unix(pr.iat, 0)
	use := Use{
		Kind: kindProof, Owner: pr.jkt, ID: pr.jti,
		Issued: iat.Add(-d.ahead), Expires: iat.Add(d.age + time.Second),
	}
	fresh, err := d.once.Use(ctx, use)
	var alone *LocalOnly
	if errors.As(err, &alone) {
		local, err = true, nil
	}
	return local, onceFailure(fresh, err, "the proof was used before")
}

// dpopScheme is the authentication scheme of RFC 9449 section 7.1.
const dpopScheme = "dpop"

// credential takes the credential of one scheme out of the one Authorization
// field. ErrNoCredential: there is none, or it is of another scheme.
func credential(r *canon.Request, scheme string) (string, error) {
	v, n := r.Get("authorization")
	if n > 1 {
		return "", fail(reason.TwoCredentials, "more than one Authorization field")
	}
	if !hasScheme(v, scheme) {
		return "", ErrNoCredential
	}
	raw := v[len(scheme):]
	if len(raw) < 2 || raw[0] != ' ' {
		return "", fail(reason.TokenMalformed, "the scheme is not followed by one space and a token")
	}
	raw = raw[1:]
	if len(raw) > maxToken {
		return "", fail(reason.TokenMalformed, "token is too long")
	}
	return raw, nil
}

func hasScheme(v, scheme string) bool {
	return len(v) >= len(scheme) && strings.EqualFold(v[:len(scheme)], scheme) &&
		(len(v) == len(scheme) || !isTokenChar(v[len(scheme)]))
}

// tokenVerifier judges one access token, whatever scheme it came under.
type tokenVerifier interface {
	verify(ctx context.Context, raw string) (*Principal, error)
}

// UnderDPoP takes the tokens of another method under the scheme DPoP. It does
// not look at the proof, which is for a Binding on the route: without one the
// gate refuses what it returns.
type UnderDPoP struct{ inner tokenVerifier }

// NewUnderDPoP makes one over a JWT or another method of this package that
// takes access tokens.
func NewUnderDPoP(inner tokenVerifier) *UnderDPoP { return &UnderDPoP{inner} }

// Authenticate verifies the token in the request's Authorization field. Its
// errors are those of JWT.Authenticate.
func (u *UnderDPoP) Authenticate(ctx context.Context, r *canon.Request) (*Principal, error) {
	raw, err := credential(r, dpopScheme)
	if err != nil {
		return nil, err
	}
	return u.inner.verify(ctx, raw)
}
