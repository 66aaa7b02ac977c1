package authz

import (
	"bytes"
	"cmp"
	"net/url"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/reason"
)

// Gaps says what of a request is not known, as of one that was recorded. The
// zero value means that everything is known.
type Gaps struct {
	Subject bool // the personal part was not opened or is erased
	Address bool // likewise
	Path    bool // the path and its parameters, or part of them, were masked
	Scopes  bool
	Age     bool // of the authentication
	// ACR, AMR: these have a value, or one more, that is none of those for
	// which ACRKept or AMRKept is true; nil: it may be any.
	ACR, AMR         bool
	ACRKept, AMRKept func(text string) bool
	Client           bool
	Groups           bool
	Tenant           bool
	Headers          bool
	Body             bool // the size of the body
	Claims           bool // all that Request.Claims does not hold
	// Roles: the request may have had roles besides those in Request.Roles. No
	// such role is one for which RoleKept is true; nil: any may be.
	Roles    bool
	RoleKept func(role string) bool
}

// Recompute decides a request of which not everything may be known. If that is
// not enough to be sure of the decision and of the determining policies, why
// says what is missing, in words that are the same for all requests of the
// kind, and by names the policy that wants it. It never guesses: a policy that
// could apply and could read what is not known is enough.
func (e *Engine) Recompute(r *Request, g *Gaps) (d Decision, why, by string) {
	op, fault := e.operation(r)
	if fault != "" {
		return d, fault, ""
	}
	for _, p := range op.policies {
		if why := g.missing(r, op, p); why != "" {
			return d, why, p.id
		}
	}
	return e.Decide(r), "", ""
}

// missing says what a policy of the operation wants and is not known.
func (g *Gaps) missing(r *Request, op *operation, p *policy) string {
	if why := g.applies(r, p); why != "" || !g.reaches(r, p) {
		return why
	}
	in := &p.reads
	ctx := in.context & op.context
	switch {
	case g.Subject && in.subject:
		return "the subject is not known"
	case g.Client && in.client:
		return "the client was not kept in the record"
	case g.Tenant && in.tenant:
		return "the tenant was not kept in the record"
	case g.Groups && in.groups:
		return "the groups were not kept in the record"
	case g.Scopes && ctx&ctxScopes != 0:
		return "the scopes were not kept in the record"
	case g.Age && ctx&ctxAuthAge != 0:
		return "the age of the authentication was not kept in the record"
	case g.ACR && ctx&ctxACR != 0 && (in.anyACR || !allKept(in.acr, g.ACRKept)):
		return "the acr was not kept in the record"
	case g.AMR && ctx&ctxAMR != 0 && (in.anyAMR || !allKept(in.amr, g.AMRKept)):
		return "the amr was not kept in the record"
	case g.Address && ctx&ctxIP != 0:
		return "the address is not known"
	case g.Path && ctx&(ctxPath|ctxParams) != 0:
		return "the path is not known as it was"
	case g.Headers && ctx&ctxHeaders != 0:
		return "the headers were not kept in the record"
	case g.Body && ctx&ctxBodySize != 0:
		return "the size of the body was not kept in the record"
	}
	if g.Roles && (in.allRoles || slices.ContainsFunc(in.roles, func(role string) bool { return g.mayHold(r, role) })) {
		return "a role was not kept in the record"
	}
	return g.claim(r, in)
}

func allKept(names []string, kept func(string) bool) bool {
	return kept != nil && !slices.ContainsFunc(names, func(n string) bool { return !kept(n) })
}

// claim says which claim is wanted and not known.
func (g *Gaps) claim(r *Request, in *reads) string {
	if !g.Claims {
		return ""
	}
	if in.allClaims {
		return "claims were not kept in the record"
	}
	for _, c := range in.claims {
		if _, ok := r.Claims[c]; !ok {
			return "the claim " + c + " was not kept in the record"
		}
	}
	return ""
}

// mayHold tells whether somebody may have had a role that the request does not
// show.
func (g *Gaps) mayHold(r *Request, role string) bool {
	return g.Roles && !slices.Contains(r.Roles, role) && (g.RoleKept == nil || !g.RoleKept(role))
}

// applies says why it is not known whether the principal scope holds.
func (g *Gaps) applies(r *Request, p *policy) string {
	for _, uid := range p.parents {
		switch {
		case uid.Type == typeRole && g.mayHold(r, string(uid.ID)):
			return "a role was not kept in the record"
		case uid.Type == typeGroup && g.Groups:
			return "the groups were not kept in the record"
		case uid.Type == typeUser && g.Subject:
			return "the subject is not known"
		}
	}
	return ""
}

// reaches says whether the principal scope holds, of a request for which
// applies has found nothing missing.
func (g *Gaps) reaches(r *Request, p *policy) bool {
	for _, uid := range p.parents {
		switch uid.Type {
		case typeRole:
			return slices.Contains(r.Roles, string(uid.ID))
		case typeGroup:
			return slices.Contains(r.Groups, string(uid.ID))
		case typeUser:
			return string(uid.ID) == UserID(r.Issuer, r.Subject)
		}
	}
	return true
}

// Change is how one policy differs between two sets.
type Change struct {
	ID   string `json:"id"`
	What string `json:"what"` // "added", "removed" or "changed"
	Was  string `json:"was,omitempty"`
	Is   string `json:"is,omitempty"`
}

// Changes lists what differs from e to other, in order of ids. Where a policy
// stands and how it is laid out is no difference.
func (e *Engine) Changes(other *Engine) []Change {
	var out []Change
	for _, p := range e.policies {
		switch q := other.lookup(p.id); {
		case q == nil:
			out = append(out, Change{ID: p.id, What: "removed", Was: p.text})
		case !bytes.Equal(q.full.MarshalCedar(), p.full.MarshalCedar()):
			out = append(out, Change{ID: p.id, What: "changed", Was: p.text, Is: q.text})
		}
	}
	for _, q := range other.policies {
		if e.lookup(q.id) == nil {
			out = append(out, Change{ID: q.id, What: "added", Is: q.text})
		}
	}
	slices.SortFunc(out, func(a, b Change) int { return cmp.Compare(a.ID, b.ID) })
	return out
}

// Recorded is a decision as a record tells it.
func Recorded(allow bool, why string, policies []string, set string) Decision {
	return Decision{Allow: allow, Reason: reason.Reason(why), Policies: policies, Set: set}
}

// Same tells whether two decisions are the same answer by the same policies.
func (d *Decision) Same(other *Decision) bool {
	return d.Allow == other.Allow && d.Reason == other.Reason && slices.Equal(d.Policies, other.Policies)
}

// Blame names the policies that make the difference between two decisions:
// those that determined one and not the other. A denial by default has none.
func Blame(was, is *Decision) []string {
	var out []string
	for _, id := range was.Policies {
		if !slices.Contains(is.Policies, id) {
			out = append(out, id)
		}
	}
	for _, id := range is.Policies {
		if !slices.Contains(was.Policies, id) {
			out = append(out, id)
		}
	}
	slices.SortFunc(out, strings.Compare)
	return out
}

// ActionOf is the operation as which the gate asks about a method on a route,
// and that operation's method: a HEAD is asked as the GET that it stands for.
func (e *Engine) ActionOf(route, method string) (action, as string, ok bool) {
	rt := e.routes[route]
	if rt == nil {
		return "", "", false
	}
	if method == "HEAD" && rt.ops["GET"+rt.suffix] != nil {
		method = "GET"
	}
	action = method + rt.suffix
	return action, method, rt.ops[action] != nil || rt.other != nil
}

// TemplateOf is the path pattern of a route, "" if there is no such route.
func (e *Engine) TemplateOf(route string) string {
	if rt := e.routes[route]; rt != nil {
		return rt.suffix[1:]
	}
	return ""
}

// ParamsOf matches a path in its normal form with a template.
func ParamsOf(template, path string) (params []Param, ok bool) {
	rest, more := strings.CutPrefix(path, "/")
	if !more {
		return nil, false
	}
	for seg := range strings.SplitSeq(strings.TrimPrefix(template, "/"), "/") {
		if name, ok := strings.CutSuffix(seg, "...}"); ok {
			v, err := url.PathUnescape(rest)
			return append(params, Param{name[1:], v}), err == nil
		}
		if !more {
			return nil, false
		}
		var have string
		have, rest, more = strings.Cut(rest, "/")
		v, err := url.PathUnescape(have)
		if err != nil {
			return nil, false
		}
		if strings.HasPrefix(seg, "{") {
			params = append(params, Param{strings.Trim(seg, "{}"), v})
		} else if v != seg {
			return nil, false
		}
	}
	return params, !more
}

// AnyParams are parameters that fit an operation, for a request whose path no
// policy looks at.
func (e *Engine) AnyParams(action, route string) []Param {
	rt := e.routes[route]
	if rt == nil {
		return nil
	}
	op := rt.ops[action]
	if op == nil {
		op = rt.other
	}
	if op == nil {
		return nil
	}
	params := make([]Param, len(op.params))
	for i, name := range op.params {
		params[i].Name = name
	}
	return params
}
