package authz

import (
	"iter"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"

	"github.com/gatebook/gatebook/internal/reason"
)

// plan is what one principal meets on one operation: the policies whose scope
// matches, by tier. What those of the lower tiers said is kept, because it can
// only change with what they read.
type plan struct {
	op    *operation
	tiers [tiers]planTier
	base  memo // the fixed tier's answer
	// memo is the answer of the fixed and the stable tier to the latest
	// circumstances; nil until asked. Immutable entries.
	memo atomic.Pointer[memo]
}

// planTier holds lists that the index owns.
type planTier struct {
	lists [][]*policy
	needs ctxMask
}

// All iterates over the candidates, as Cedar wants them.
func (t *planTier) All() iter.Seq2[cedar.PolicyID, *cedar.Policy] {
	return func(yield func(cedar.PolicyID, *cedar.Policy) bool) {
		for _, list := range t.lists {
			for _, p := range list {
				if !yield(p.pid, p.lean) {
					return
				}
			}
		}
	}
}

// memo is an answer and all of the context that it depends on.
type memo struct {
	when     moment
	outcome  outcome
	decision Decision
}

// moment is the part of the context that stays the same over many requests.
// Only the fields that some candidate can read are set.
type moment struct {
	ip               netip.Addr
	method, tls, acr string
	age              int64
}

// newPlan collects the candidates and asks the fixed tier.
func newPlan(e *Engine, p *principal, op *operation) *plan {
	pl := &plan{op: op}
	if p == e.anonymous {
		pl.add(op.nobody)
	} else {
		pl.add(op.any)
		pl.add(op.users[string(p.uid.ID)])
		for _, r := range p.unique {
			pl.add(op.roles[r])
		}
		if e.schema.groups {
			for _, g := range p.uniqueGroups {
				pl.add(op.groups[g])
			}
		}
	}
	pl.base.outcome = pl.ask(tierFixed, p, types.Record{})
	pl.base.decision = e.decision(pl.base.outcome)
	return pl
}

func (pl *plan) add(g group) {
	for t := range g {
		if len(g[t].policies) > 0 {
			pl.tiers[t].lists = append(pl.tiers[t].lists, g[t].policies)
			pl.tiers[t].needs |= g[t].needs
		}
	}
}

// decide asks what has to be asked again.
func (pl *plan) decide(e *Engine, r *Request, p *principal) Decision {
	known := &pl.base
	if stable := &pl.tiers[tierStable]; len(stable.lists) > 0 {
		when := momentOf(r, stable.needs)
		if known = pl.memo.Load(); known == nil || known.when != when {
			known = &memo{when: when, outcome: pl.base.outcome.and(pl.ask(tierStable, p, e.schema.context(r, p, pl.op, stable.needs)))}
			known.decision = e.decision(known.outcome)
			pl.memo.Store(known)
		}
	}
	volatile := &pl.tiers[tierVolatile]
	if len(volatile.lists) == 0 {
		return known.decision
	}
	return e.decision(known.outcome.and(pl.ask(tierVolatile, p, e.schema.context(r, p, pl.op, volatile.needs))))
}

// ask evaluates one tier.
func (pl *plan) ask(t tier, p *principal, ctx types.Record) outcome {
	if len(pl.tiers[t].lists) == 0 {
		return outcome{}
	}
	return outcomeOf(cedar.Authorize(&pl.tiers[t], &entities{p, pl.op}, cedar.Request{
		Principal: p.uid,
		Action:    pl.op.action.UID,
		Resource:  pl.op.resource.UID,
		Context:   ctx,
	}))
}

// outcome is what a number of policies said. When some forbid, the permits
// among them may be missing: they cannot matter any more.
type outcome struct {
	permits, forbids []cedar.DiagnosticReason
	errors           []cedar.DiagnosticError
}

// outcomeOf reads Cedar's answer: the reasons of an allow are permits, those of
// a deny are forbids.
func outcomeOf(d cedar.Decision, diag cedar.Diagnostic) outcome {
	if d == cedar.Allow {
		return outcome{permits: diag.Reasons, errors: diag.Errors}
	}
	return outcome{forbids: diag.Reasons, errors: diag.Errors}
}

// and joins the outcomes of different policies. Both stay as they are.
func (o outcome) and(other outcome) outcome {
	return outcome{
		permits: join(o.permits, other.permits),
		forbids: join(o.forbids, other.forbids),
		errors:  join(o.errors, other.errors),
	}
}

func join[T any](a, b []T) []T {
	switch {
	case len(a) == 0:
		return b
	case len(b) == 0:
		return a
	}
	return slices.Concat(a, b)
}

// decision turns an outcome into the answer. Cedar lets an allow stand when
// another policy failed, even a forbid; here any error denies (P7).
func (e *Engine) decision(o outcome) Decision {
	d := Decision{Set: e.set, Policies: e.determining(o)}
	switch {
	case len(o.errors) > 0:
		d.Reason = reason.PolicyError
		for _, err := range o.errors {
			d.Errors = append(d.Errors, e.lookup(string(err.PolicyID)).where()+": "+errorClass(err.Message))
		}
		slices.Sort(d.Errors)
	case len(o.forbids) > 0:
		d.Reason = reason.DeniedByPolicy
	case len(o.permits) > 0:
		d.Allow = true
	default:
		d.Reason = reason.DeniedByDefault
	}
	return d
}

// determining lists the ids of the forbids or, without any, of the permits.
func (e *Engine) determining(o outcome) []string {
	by := o.forbids
	if len(by) == 0 {
		by = o.permits
	}
	switch len(by) {
	case 0:
		return nil
	case 1:
		return e.lookup(string(by[0].PolicyID)).ids
	}
	ids := make([]string, len(by))
	for i, r := range by {
		ids[i] = string(r.PolicyID)
	}
	slices.Sort(ids)
	return ids
}

// errorClasses are the evaluator's errors without the values that its messages
// quote: those can be personal data.
var errorClasses = []string{
	"integer overflow",
	"does not have the attribute",
	"does not have the tag",
	"does not exist",
	"unspecified entity",
	"type error",
	"wrong number of arguments",
	"error parsing",
}

func errorClass(message string) string {
	for _, c := range errorClasses {
		if strings.Contains(message, c) {
			return c
		}
	}
	return "evaluation failed"
}
