package authn

import (
	"context"
	"errors"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// Once remembers what was used, so that nothing is used twice. It is safe for
// concurrent use.
type Once interface {
	// Use marks u as used and reports whether it was not before. Of any number
	// of callers exactly one gets true. Errors: ErrForgot, ErrFull, *LocalOnly
	// (the answer stands, for this node), or that the store is away. With any
	// other error than *LocalOnly the answer is false.
	Use(ctx context.Context, u Use) (bool, error)
}

// Use is something that is used: a DPoP proof of a key, a token of an issuer.
type Use struct {
	Kind  useKind
	Owner string // thumbprint of the key, name of the issuer
	ID    string // jti
	// Issued is the earliest time, by our clock, at which it can have been made;
	// Expires is when it can be used no more.
	Issued, Expires time.Time
}

type useKind byte

const (
	kindProof useKind = iota + 1
	kindToken
)

// Errors of a Once.
var (
	// ErrForgot: it was made before the store began to remember, so that nobody
	// can say whether it was used.
	ErrForgot = errors.New("made before the replay store began to remember")
	// ErrFull: the store has no room; nothing in it that still counts is given up.
	ErrFull = errors.New("the replay store is full")
)

// LocalOnly is the error beside an answer that only this node's memory gave.
type LocalOnly struct{ Err error }

func (e *LocalOnly) Error() string {
	return "the shared replay store is away, only this node was asked: " + e.Err.Error()
}
func (e *LocalOnly) Unwrap() error { return e.Err }

// onceFailure turns the answer of a Once into a refusal. A store that does not
// answer is our trouble and not the client's: 503.
func onceFailure(fresh bool, err error, spent string) *Failure {
	switch {
	case err == nil && fresh:
		return nil
	case err == nil:
		return fail(reason.TokenReplayed, spent)
	case errors.Is(err, ErrForgot):
		return fail(reason.TokenReplayed, "made before the replay store began to remember")
	case errors.Is(err, ErrFull):
		return fail(reason.Overloaded, "the replay store is full")
	}
	f := fail(reason.LimiterUnavailable, "the replay store is away")
	f.Err = err
	return f
}

// OneTime demands a token that was not used on any such route before, and uses
// it up, whatever becomes of the request. Put it last among a route's demands,
// so that nobody uses up a token that would have been refused anyway. Safe for
// concurrent use.
type OneTime struct {
	once Once
	skew time.Duration
}

// NewOneTime makes one. skew is the longest that exp is exceeded by any issuer
// of the route.
func NewOneTime(once Once, skew time.Duration) *OneTime { return &OneTime{once, skew} }

// Check implements the gate's Demand. The error is a *Failure. The token is
// marked until exp and the skew have passed; a store that is away refuses.
func (o *OneTime) Check(ctx context.Context, _ *canon.Request, p *Principal) error {
	if p.TokenID == "" || p.Expires.IsZero() {
		return fail(reason.TokenMalformed, "the route takes tokens once only, and this one has no jti or never expires").about(p)
	}
	fresh, err := o.once.Use(ctx, Use{
		Kind: kindToken, Owner: p.Issuer, ID: p.TokenID,
		Issued: p.IssuedAt.Add(-o.skew), Expires: p.Expires.Add(o.skew),
	})
	if f := onceFailure(fresh, err, "the token was used before"); f != nil {
		return f.about(p)
	}
	return nil
}
