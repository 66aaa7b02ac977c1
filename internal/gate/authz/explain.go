package authz

import (
	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
)

// Outcome is what one policy said to one request.
type Outcome string

// The outcomes.
const (
	OutcomeNoMatch Outcome = "no_match" // scope or conditions do not hold
	OutcomePermit  Outcome = "permit"
	OutcomeForbid  Outcome = "forbid"
	OutcomeError   Outcome = "error"
)

// Verdict is one policy's part in a decision.
type Verdict struct {
	Policy  PolicyInfo
	Outcome Outcome
	// Error is the evaluator's full message. It can quote values from the
	// request: show it to an operator, do not log it.
	Error string
}

// PolicyInfo describes a policy of the set.
type PolicyInfo struct {
	ID     string
	File   string // "" when made from the roles
	Line   int
	Column int
	Forbid bool
	Text   string
}

func (p *policy) info() PolicyInfo {
	return PolicyInfo{ID: p.id, File: p.file, Line: p.line, Column: p.col, Forbid: p.full.Effect() == cedar.Forbid, Text: p.text}
}

// Policies lists the set in order of ids.
func (e *Engine) Policies() []PolicyInfo {
	out := make([]PolicyInfo, len(e.policies))
	for i, p := range e.policies {
		out[i] = p.info()
	}
	return out
}

// Explain decides a request and says what each policy of the set contributed,
// in order of ids. It evaluates all of them as written, without the index; it
// is for people, not for the request path. A request that could not be put to
// the policies has no verdicts.
func (e *Engine) Explain(r *Request) (Decision, []Verdict) {
	d, r := e.decide(r)
	op, fault := e.operation(r)
	if fault != "" {
		return d, nil
	}
	p, fault := e.principal(r, op)
	if fault != "" {
		return d, nil
	}
	req := cedar.Request{
		Principal: p.uid, Action: op.action.UID, Resource: op.resource.UID,
		Context: e.schema.context(r, p, op, ctxAll),
	}
	out := make([]Verdict, len(e.policies))
	for i, po := range e.policies {
		out[i] = verdict(po, req, &entities{p, op})
	}
	return d, out
}

func verdict(p *policy, req cedar.Request, ents types.EntityGetter) Verdict {
	v := Verdict{Policy: p.info(), Outcome: OutcomeNoMatch}
	_, diag := cedar.Authorize(cedar.PolicyMap{p.pid: p.full}, ents, req)
	switch {
	case len(diag.Errors) > 0:
		v.Outcome, v.Error = OutcomeError, diag.Errors[0].Message
	case len(diag.Reasons) > 0 && v.Policy.Forbid:
		v.Outcome = OutcomeForbid
	case len(diag.Reasons) > 0:
		v.Outcome = OutcomePermit
	}
	return v
}
