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
	op     *operation
	tiers  [tiers]planTier
	quick  []*quick // at most maxQuick
	leaves []int    // those of the operation that they ask
	stable ctxMask  // what the stable tier and the leaves can read
	base   memo     // the fixed tier's answer
	// memo is the answer of the fixed and the stable tier to the latest
	// circumstances; nil until asked. Immutable but for the latest answer.
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
	known    []finding // of the operation's leaves; those that the plan asks
	latest   atomic.Pointer[answer]
}

// answer is the decision where these compiled policies hold, by their place in
// the plan.
type answer struct {
	holds    [maxQuick / 64]uint64
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
	pl.base.outcome = pl.ask(&pl.tiers[tierFixed], p, types.Record{})
	pl.base.decision = e.decision(pl.base.outcome)
	slices.Sort(pl.leaves)
	pl.leaves = slices.Compact(pl.leaves)
	pl.stable = pl.tiers[tierStable].needs
	for _, i := range pl.leaves {
		pl.stable |= op.leaves[i].needs
	}
	return pl
}

func (pl *plan) add(g group) {
	for t := range g.tiers {
		pl.tiers[t].add(g.tiers[t].policies, g.tiers[t].needs)
	}
	for _, q := range g.quick {
		if len(pl.quick) == maxQuick {
			pl.tiers[tierVolatile].add([]*policy{q.policy}, q.policy.needs&pl.op.context)
			continue
		}
		pl.quick = append(pl.quick, q)
		pl.leaves = append(pl.leaves, q.leaves...)
	}
}

func (t *planTier) add(list []*policy, needs ctxMask) {
	if len(list) > 0 {
		t.lists, t.needs = append(t.lists, list), t.needs|needs
	}
}

// decide asks what has to be asked again.
func (pl *plan) decide(e *Engine, r *Request, p *principal) Decision {
	known := pl.circumstances(e, r, p)
	if len(pl.quick)+len(pl.tiers[tierVolatile].lists) == 0 {
		return known.decision
	}
	var holds [maxQuick / 64]uint64
	var open []*policy // for Cedar to say
	for i, q := range pl.quick {
		switch q.test(r, known.known) {
		case yes:
			holds[i/64] |= 1 << (i % 64)
		case unsure:
			open = append(open, q.policy)
		}
	}
	if len(open)+len(pl.tiers[tierVolatile].lists) > 0 {
		return e.decision(known.outcome.and(pl.compiled(&holds)).and(pl.askVolatile(e, r, p, open)))
	}
	if a := known.latest.Load(); a != nil && a.holds == holds {
		return a.decision
	}
	a := &answer{holds, e.decision(known.outcome.and(pl.compiled(&holds)))}
	known.latest.Store(a)
	return a.decision
}

// askVolatile puts the volatile tier and more policies to Cedar.
func (pl *plan) askVolatile(e *Engine, r *Request, p *principal, more []*policy) outcome {
	t := pl.tiers[tierVolatile]
	t.lists = slices.Clone(t.lists) // the plan's own stay as they are
	for _, m := range more {
		t.needs |= m.needs & pl.op.context
	}
	t.add(more, t.needs)
	return pl.ask(&t, p, e.schema.context(r, p, pl.op, t.needs))
}

// circumstances is the answer of the fixed and the stable tier, and what the
// leaves say.
func (pl *plan) circumstances(e *Engine, r *Request, p *principal) *memo {
	if len(pl.tiers[tierStable].lists)+len(pl.leaves) == 0 {
		return &pl.base
	}
	when := momentOf(r, pl.stable)
	if m := pl.memo.Load(); m != nil && m.when == when {
		return m
	}
	ctx := e.schema.context(r, p, pl.op, pl.stable)
	m := &memo{when: when, outcome: pl.base.outcome.and(pl.ask(&pl.tiers[tierStable], p, ctx))}
	m.decision = e.decision(m.outcome)
	if len(pl.leaves) > 0 {
		m.known = make([]finding, len(pl.op.leaves))
	}
	for _, i := range pl.leaves {
		l := &pl.op.leaves[i]
		switch out := pl.ask(&planTier{lists: [][]*policy{{l.ask}}}, p, ctx); {
		case len(out.errors) > 0:
			m.known[i] = unsure
		case len(out.permits) > 0:
			m.known[i] = yes
		}
	}
	pl.memo.Store(m)
	return m
}

// compiled is the outcome of the compiled policies that hold.
func (pl *plan) compiled(holds *[maxQuick / 64]uint64) (o outcome) {
	for i, q := range pl.quick {
		switch reason := (cedar.DiagnosticReason{PolicyID: q.policy.pid}); {
		case holds[i/64]&(1<<(i%64)) == 0:
		case q.forbid:
			o.forbids = append(o.forbids, reason)
		default:
			o.permits = append(o.permits, reason)
		}
	}
	return o
}

// ask puts policies to Cedar.
func (pl *plan) ask(t *planTier, p *principal, ctx types.Record) outcome {
	if len(t.lists) == 0 {
		return outcome{}
	}
	return outcomeOf(cedar.Authorize(t, &entities{p, pl.op}, cedar.Request{
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
