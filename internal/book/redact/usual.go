package redact

import (
	"sync/atomic"

	"github.com/gatebook/gatebook/internal/book/record"
)

// usual remembers the strings of one frame as the rules let them pass. Exchanges
// of one route and one kind of client have nearly all of them in common, and
// whether a string of a frame may stay where it is depends on that string alone.
// It is safe for concurrent use.
type usual struct {
	frame  atomic.Pointer[record.Record]
	offers atomic.Uint32
}

// offersBetween is how many exchanges that differ go by before one of them takes
// the place of what is remembered: where exchanges are all sorts, remembering
// costs more than looking.
const offersBetween = 64

// get gives the frame, whose lists and personal part are empty. It is only read.
func (u *usual) get() *record.Record {
	if f := u.frame.Load(); f != nil {
		return f
	}
	return &unseen
}

// offer takes r, on which the rules were applied just now.
func (u *usual) offer(r *record.Record) {
	if (u.offers.Add(1)-1)%offersBetween != 0 {
		return
	}
	u.frame.Store(&record.Record{
		Route: r.Route, Method: r.Method, Host: r.Host, Proto: r.Proto, Node: r.Node, Snap: r.Snap,
		Authn: record.Authn{
			Method: r.Authn.Method, Issuer: r.Authn.Issuer, ACR: r.Authn.ACR, Bound: r.Authn.Bound,
			Alg: r.Authn.Alg, Outcome: r.Authn.Outcome, Reason: r.Authn.Reason,
		},
		Authz:    record.Authz{Decision: r.Authz.Decision, Set: r.Authz.Set, ShadowDecision: r.Authz.ShadowDecision},
		Limit:    r.Limit,
		TLS:      r.TLS,
		Client:   record.Client{PortClass: r.Client.PortClass},
		Upstream: record.Upstream{Name: r.Upstream.Name, Target: r.Upstream.Target, Breaker: r.Upstream.Breaker},
		Error:    r.Error,
	})
}
