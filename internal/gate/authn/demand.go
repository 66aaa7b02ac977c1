package authn

import (
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// Demand is what a route asks of a credential beyond its being good. What it
// does not set it does not ask. It is immutable and safe for concurrent use.
type Demand struct {
	audiences   []string
	acr         []string
	maxAge      time.Duration
	tokenMaxAge time.Duration
	acrValues   string // acr as challenges list it
	now         func() time.Time
}

// DemandConfig says what a Demand asks.
type DemandConfig struct {
	Audiences   []string         // the credential names one of these
	ACR         []string         // the login was of one of these classes (RFC 9470 section 3)
	MaxAge      time.Duration    // the login is no longer ago; 0: any age
	TokenMaxAge time.Duration    // the token was issued no longer ago; 0: any age
	Now         func() time.Time // default time.Now
}

// NewDemand makes a Demand; nil if nothing is asked.
func NewDemand(c DemandConfig) (*Demand, error) {
	for _, list := range [][]string{c.Audiences, c.ACR} {
		if slices.Contains(list, "") {
			return nil, errors.New("demand: an empty audience or authentication context class")
		}
	}
	if c.MaxAge < 0 || c.TokenMaxAge < 0 {
		return nil, errors.New("demand: an age must not be negative")
	}
	if len(c.Audiences) == 0 && len(c.ACR) == 0 && c.MaxAge == 0 && c.TokenMaxAge == 0 {
		return nil, nil
	}
	d := &Demand{
		audiences: slices.Clone(c.Audiences), acr: slices.Clone(c.ACR), maxAge: c.MaxAge, tokenMaxAge: c.TokenMaxAge,
		acrValues: strings.Join(c.ACR, " "), now: c.Now,
	}
	if d.now == nil {
		d.now = time.Now
	}
	return d, nil
}

// Check refuses a credential that does not say what is asked: silence is a no.
// The login is asked about last, since only a better one mends that.
func (d *Demand) Check(_ context.Context, _ *canon.Request, p *Principal) error {
	now := time.Time{}
	if d.maxAge > 0 || d.tokenMaxAge > 0 {
		now = d.now()
	}
	switch {
	case len(d.audiences) > 0 && !slices.ContainsFunc(p.Audiences, func(a string) bool { return slices.Contains(d.audiences, a) }):
		return d.fail(p, reason.TokenAudience, "the credential is for none of the route's audiences")
	case d.tokenMaxAge > 0 && (p.IssuedAt.IsZero() || now.Sub(p.IssuedAt) > d.tokenMaxAge):
		return d.fail(p, reason.TokenTooOld, "the credential was issued longer ago than the route allows")
	case len(d.acr) > 0 && !slices.Contains(d.acr, p.ACR):
		return d.stepUp(p, "the login is of none of the classes that the route demands")
	case d.maxAge > 0 && (p.AuthTime.IsZero() || now.Sub(p.AuthTime) > d.maxAge):
		return d.stepUp(p, "the login is longer ago than the route allows")
	}
	return nil
}

func (d *Demand) fail(p *Principal, r reason.Reason, detail string) *Failure {
	return &Failure{Reason: r, Claimed: p.Subject, Issuer: p.Issuer, KID: p.KID, Alg: p.Alg, Detail: detail}
}

// stepUp names all that the route asks of a login, so that one more is enough.
func (d *Demand) stepUp(p *Principal, detail string) *Failure {
	f := d.fail(p, reason.StepupRequired, detail)
	f.ACRValues, f.MaxAge = d.acrValues, d.maxAge
	return f
}
