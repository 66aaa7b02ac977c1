package authn

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"errors"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// Binding demands that whoever shows a bound token holds what it is bound to: a
// key, proved by DPoP (RFC 9449), or a client certificate (RFC 8705 section 3).
// It asks on every exchange and remembers no answer. Safe for concurrent use.
type Binding struct {
	// DPoP judges proofs. nil: tokens bound to a key are refused.
	DPoP *DPoP
	// Nonces, if not nil, are what proofs must hold.
	Nonces *Nonces
	// Certificates: tokens bound to a certificate are compared with that of the
	// connection. Otherwise they are refused.
	Certificates bool
	// Required refuses tokens that are bound to nothing. Which bindings will do
	// is what DPoP and Certificates say.
	Required bool
}

// ChecksBinding says that no bound principal passes without its proof.
func (b *Binding) ChecksBinding() bool { return true }

// Check implements the gate's Demand.
func (b *Binding) Check(ctx context.Context, r *canon.Request, p *Principal) error {
	_, err := b.Examine(ctx, r, p)
	return err
}

// Examine is Check that also says what the answer should tell the client and
// the record. The error is a *Failure.
func (b *Binding) Examine(ctx context.Context, r *canon.Request, p *Principal) (Findings, error) {
	found, f := b.examine(ctx, r, p)
	if f == nil {
		return found, nil
	}
	return found, f.about(p)
}

func (b *Binding) examine(ctx context.Context, r *canon.Request, p *Principal) (Findings, *Failure) {
	raw, err := credential(r, dpopScheme)
	byKey, byCert := p.Confirm.JKT != "", p.Confirm.X5T != ""
	if byCert {
		if f := b.certificate(r, p); f != nil {
			return Findings{}, f
		}
	}
	switch {
	case byKey && b.DPoP == nil:
		return Findings{}, fail(reason.BindingRequired, "the token is bound to a key, and this route does not check proofs")
	case byKey && errors.Is(err, ErrNoCredential):
		// RFC 9449 section 7.2: taking it as a bearer token is the downgrade.
		return Findings{}, fail(reason.BindingRequired, "the token is bound to a key and was not sent under the scheme DPoP")
	case byKey && err == nil:
		return b.DPoP.prove(ctx, r, p, raw, b.Nonces)
	case !errors.Is(err, ErrNoCredential):
		return Findings{}, fail(reason.BindingMismatch, "the token was sent under the scheme DPoP and is not bound to a key")
	case !byCert && b.Required && !(b.Certificates && p.Method == BoundMTLS):
		return Findings{}, fail(reason.BindingRequired, "the route takes bound tokens only")
	}
	return Findings{}, nil
}

// certificate compares the token with the client's certificate.
func (b *Binding) certificate(r *canon.Request, p *Principal) *Failure {
	if !b.Certificates {
		return fail(reason.BindingRequired, "the token is bound to a certificate, and this route does not check those")
	}
	leaf := r.ClientCertificate()
	if leaf == nil {
		return fail(reason.BindingRequired, "the token is bound to a certificate, and the client showed none")
	}
	sum := sha256.Sum256(leaf.Raw)
	var text [43]byte
	base64.RawURLEncoding.Encode(text[:], sum[:])
	if subtle.ConstantTimeCompare(text[:], []byte(p.Confirm.X5T)) != 1 {
		return fail(reason.BindingMismatch, "the token is bound to another certificate than the client's")
	}
	return nil
}

// about is the failure with what may be said of the principal whose credential
// was good in itself.
func (f *Failure) about(p *Principal) *Failure {
	c := *f
	c.Claimed, c.Issuer, c.KID, c.Alg = p.Subject, p.Issuer, p.KID, p.Alg
	return &c
}
