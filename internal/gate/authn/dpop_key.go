package authn

import (
	"context"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// sent reads the one proof of a request.
func (d *DPoP) sent(r *canon.Request) (*proof, *Failure) {
	field, n := r.Get("dpop")
	if n != 1 {
		return nil, fail(reason.DPoPProof, "the request has no DPoP field, or more than one")
	}
	pr, err := parseProof(field, d.allowed)
	if err != nil {
		f := fail(reason.DPoPProof, "the proof is malformed")
		f.Err = err
		return nil, f
	}
	return pr, nil
}

// Key judges the proof of a request that asks for a token (RFC 9449 section 5)
// and returns the thumbprint of the key that the token is to be bound to. Such
// a proof has no ath, since there is no token yet; one that has it was made for
// another request. The error is a *Failure.
func (d *DPoP) Key(ctx context.Context, r *canon.Request) (jkt string, err error) {
	pr, f := d.sent(r)
	if f == nil {
		f = d.suits(pr, r, d.now())
	}
	if f == nil && pr.ath != "" {
		f = fail(reason.DPoPProof, "ath in a proof that comes without a token")
	}
	if f == nil {
		f = d.genuine(ctx, pr)
	}
	if f == nil {
		_, f = d.first(ctx, pr)
	}
	if f != nil {
		return "", f
	}
	return pr.jkt, nil
}
