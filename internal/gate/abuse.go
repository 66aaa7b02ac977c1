package gate

import (
	"strings"
	"sync/atomic"
	"unicode"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/reason"
)

// Whoever guesses credentials is held back before a signature is checked or an
// issuer asked. What is counted are failures, by address prefix; and by prefix
// and the name that is claimed, so that a guesser behind an address that many
// share is held back before the others are. Nobody is ever held back because
// strangers elsewhere use their name: that would let strangers lock them out.
// Who shows a credential that was found good before is never held back either.

// FailureLimits are the limits on failed authentication that a snapshot
// declares. The zero value limits nothing.
type FailureLimits struct {
	// Prefix counts failures by address prefix; nil: no limit.
	Prefix *ratelimit.Rule
	// Name counts them by address prefix and claimed name; nil: no limit.
	Name *ratelimit.Rule
	// Spread counts them by claimed name, wherever they come from. Reaching it
	// makes an alert and holds nobody back; nil: it is not counted.
	Spread *ratelimit.Rule
	// CountOnly makes alerts only.
	CountOnly bool

	horizon int64 // ns after which a failure is forgotten
}

// rules are those that are set.
func (l *FailureLimits) rules() (out []*ratelimit.Rule) {
	for _, r := range []*ratelimit.Rule{l.Prefix, l.Name, l.Spread} {
		if r != nil {
			out = append(out, r)
		}
	}
	return out
}

// complete notes how long failures count.
func (l *FailureLimits) complete() {
	for _, r := range l.rules() {
		if r.Rate > 0 {
			l.horizon = max(l.horizon, int64(float64(r.Burst)*float64(r.Per)/float64(r.Rate)))
		}
	}
}

// failures is what a gate knows of failed authentication. It is live state.
type failures struct {
	last atomic.Int64 // when one was counted last, Unix ns: without any, nothing is asked
	held atomic.Uint64
}

// Knower is an Authenticator that can tell without any cost whether it has found
// the request's credential good before. Sessions are none: a cookie alone is never
// held back, since judging it costs no more than this would; and one beside a
// field must not let everything pass that is shown in the field.
type Knower interface {
	Known(r *canon.Request) bool
}

// Claimer is an Authenticator that can tell which name a request claims, before
// anything of it is verified; "" if it does not tell.
type Claimer interface {
	Claims(r *canon.Request) (issuer, name string)
}

// heldBack reports whether the request's credential is not to be looked at,
// because too many have failed before it.
func (x *exchange) heldBack() bool {
	l := &x.snap.failures
	if l.Prefix == nil && l.Name == nil || l.CountOnly {
		return false
	}
	if x.start.UnixNano()-x.g.failures.last.Load() > l.horizon || !x.showsCredential() {
		return false
	}
	rule, res, claimed := x.overFailures(l)
	if rule == nil || x.isKnown() {
		return false
	}
	x.hold(rule, res, claimed)
	return true
}

// hold answers that too many have failed before.
func (x *exchange) hold(rule *ratelimit.Rule, res ratelimit.Result, claimed string) {
	x.g.failures.held.Add(1)
	x.rec.Personal.Claimed = claimed
	x.rec.Authn = record.Authn{Method: record.None, Outcome: outcomeFailed, Reason: string(reason.RateLimited)}
	x.take(rule, res)
}

// failedAgain counts a failure that a Responder has found, such as the wrong
// secret of a client, or answers it as heldBack does if too many came before it.
// What a Responder takes is in the body, so that only it can tell, afterwards, who
// is right.
func (x *exchange) failedAgain(f *authn.Failure) bool {
	l := &x.snap.failures
	if guesses(f.Reason) && !l.CountOnly && x.start.UnixNano()-x.g.failures.last.Load() <= l.horizon {
		prefix := x.snap.limitPrefix(x.client)
		if l.Prefix != nil {
			if res := x.g.limiter.PeekPrefix(l.Prefix, prefix, x.start); !res.Allowed {
				x.hold(l.Prefix, res, f.Claimed)
				return true
			}
		}
		if l.Name != nil && f.Claimed != "" {
			if res := x.g.limiter.Peek(l.Name, failureKey(prefix.String(), f.Issuer, f.Claimed), x.start); !res.Allowed && !res.Coarse {
				x.hold(l.Name, res, f.Claimed)
				return true
			}
		}
	}
	x.countFailure(f)
	return false
}

// overFailures finds the limit that the request is over, if any.
func (x *exchange) overFailures(l *FailureLimits) (*ratelimit.Rule, ratelimit.Result, string) {
	prefix := x.snap.limitPrefix(x.client)
	if l.Prefix != nil {
		res := x.g.limiter.PeekPrefix(l.Prefix, prefix, x.start)
		if !res.Allowed {
			return l.Prefix, res, ""
		}
		if res.Remaining == l.Prefix.Burst && !res.Coarse {
			return nil, res, "" // nothing has failed there
		}
	}
	if l.Name == nil {
		return nil, ratelimit.Result{}, ""
	}
	for _, a := range x.route.Authenticators {
		c, ok := a.(Claimer)
		if !ok {
			continue
		}
		issuer, name := c.Claims(x.req)
		if name == "" {
			continue
		}
		// In a bucket that others share nobody is held back.
		if res := x.g.limiter.Peek(l.Name, failureKey(prefix.String(), issuer, name), x.start); !res.Allowed && !res.Coarse {
			return l.Name, res, name
		}
	}
	return nil, ratelimit.Result{}, ""
}

// showsCredential reports whether a field that the route's methods look at is
// there. What is checked in a TLS handshake costs nothing here.
func (x *exchange) showsCredential() bool {
	for _, name := range x.route.CredentialFields {
		if v, _ := x.req.Get(name); v != "" {
			return true
		}
	}
	return false
}

func (x *exchange) isKnown() bool {
	for _, a := range x.route.Authenticators {
		if k, ok := a.(Knower); ok && k.Known(x.req) {
			return true
		}
	}
	return false
}

// countFailure counts a failed attempt, if it may be one of guessing.
func (x *exchange) countFailure(f *authn.Failure) {
	l := &x.snap.failures
	if !guesses(f.Reason) || l.horizon == 0 {
		return
	}
	prefix := x.snap.limitPrefix(x.client)
	x.g.failures.last.Store(x.start.UnixNano())
	reached := false
	if l.Prefix != nil {
		res := x.g.limiter.TakePrefix(l.Prefix, prefix, x.start)
		reached = !res.Allowed || res.Remaining == 0
	}
	if f.Claimed == "" {
		x.failMax = reached
		return
	}
	if l.Name != nil {
		res := x.g.limiter.Take(l.Name, failureKey(prefix.String(), f.Issuer, f.Claimed), x.start)
		reached = reached || !res.Coarse && (!res.Allowed || res.Remaining == 0)
	}
	x.failMax = reached
	if l.Spread != nil {
		res := x.g.limiter.Take(l.Spread, failureKey("", f.Issuer, f.Claimed), x.start)
		x.spread = !res.Coarse && (!res.Allowed || res.Remaining == 0)
	}
}

// guesses reports the failures that guessing makes. What good credentials meet
// in the course of their life, such as their end, is none of them, nor is what is
// not the caller's fault.
func guesses(r reason.Reason) bool {
	switch r {
	case reason.NoCredential, reason.TokenExpired, reason.TokenNotYet, reason.TokenTooOld, reason.KeyExpired, reason.SessionExpired,
		reason.BindingRequired, reason.DPoPNonce, reason.StepupRequired, reason.IssuerUnavailable,
		reason.CrossSite: // the browser of whoever is logged in sent it, led there by somebody else
		return false
	}
	return r.Origin() == reason.OriginIdentity
}

// failureKey names a claimed name in one way only, so that nobody gets a second
// bucket by writing it differently: without regard to case, white space around
// it, and characters that are not seen.
func failureKey(prefix, issuer, name string) string {
	var b strings.Builder
	b.Grow(len(prefix) + len(issuer) + len(name) + 2)
	b.WriteString(prefix)
	b.WriteByte('|')
	b.WriteString(issuer)
	b.WriteByte('|')
	for _, c := range strings.TrimSpace(name) {
		if !unicode.IsGraphic(c) {
			continue
		}
		b.WriteRune(folded(c))
	}
	return b.String()
}

// folded is the least of the characters that are the same but for case.
func folded(c rune) rune {
	least := c
	for f := unicode.SimpleFold(c); f != c; f = unicode.SimpleFold(f) {
		least = min(least, f)
	}
	return least
}

// HeldBack is how many requests were refused because too many had failed.
func (g *Gate) HeldBack() uint64 { return g.failures.held.Load() }
