package authz

import (
	"maps"
	"slices"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
)

// reads is what of a request can matter to a policy's conditions. A record does
// not keep all of a request, so this decides whether a recorded decision can be
// made again.
type reads struct {
	context   ctxMask
	subject   bool // the principal's id or sub
	client    bool
	allClaims bool     // claims by a name that is computed
	claims    []string // sorted
	allRoles  bool     // membership in a role that is computed
	roles     []string // sorted
	groups    bool
	tenant    bool
	acr, amr  []string // texts that they are compared with
	anyACR    bool     // acr is used otherwise too
	anyAMR    bool     // likewise
}

// readsOf walks the conditions. What it does not know counts as everything.
func readsOf(conditions []xast.ConditionType, context ctxMask) reads {
	r := reads{context: context}
	for _, c := range conditions {
		xast.Inspect(xast.NewNode(c.Body), r.visit)
	}
	slices.Sort(r.claims)
	r.claims = slices.Compact(r.claims)
	slices.Sort(r.roles)
	r.roles = slices.Compact(r.roles)
	return r
}

// visit notes what a node reads; false keeps the walk out of its operands.
func (r *reads) visit(n xast.IsNode) bool {
	switch n := n.(type) {
	case xast.NodeTypeAccess:
		return r.attribute(n.StrOpNode)
	case xast.NodeTypeHas:
		return r.attribute(n.StrOpNode)
	case xast.NodeTypeGetTag:
		return r.tag(n.BinaryNode)
	case xast.NodeTypeHasTag:
		return r.tag(n.BinaryNode)
	case xast.NodeTypeIn:
		return r.membership(n.Left, n.Right)
	case xast.NodeTypeIsIn:
		return r.membership(n.Left, n.Entity)
	case xast.NodeTypeEquals:
		return r.compared(n.Left, n.Right)
	case xast.NodeTypeNotEquals:
		return r.compared(n.Left, n.Right)
	case xast.NodeTypeContains:
		return r.compared(n.Left, n.Right)
	case xast.NodeTypeContainsAny:
		return r.compared(n.Left, n.Right)
	case xast.NodeTypeContainsAll:
		return r.compared(n.Left, n.Right)
	case xast.NodeTypeIs:
		return !isPrincipal(n.Left)
	case xast.NodeTypeVariable:
		switch n.Name {
		case "context":
			r.anyACR, r.anyAMR = true, true
		case "principal":
			r.subject, r.client, r.allClaims, r.allRoles, r.groups, r.tenant = true, true, true, true, true, true
		}
	}
	return true
}

func isPrincipal(n xast.IsNode) bool { return isVariable(n, "principal") }

func isVariable(n xast.IsNode, name types.String) bool {
	v, ok := n.(xast.NodeTypeVariable)
	return ok && v.Name == name
}

func (r *reads) attribute(n xast.StrOpNode) bool {
	if isVariable(n.Arg, "context") {
		r.anyACR = r.anyACR || n.Value == "acr"
		r.anyAMR = r.anyAMR || n.Value == "amr"
		return false // which attributes are read is known already
	}
	if !isPrincipal(n.Arg) {
		return true
	}
	switch name := string(n.Value); name {
	case "issuer":
	case "sub":
		r.subject = true
	case "client":
		r.client = true
	case attrTenant:
		r.tenant = true
	default:
		r.claims = append(r.claims, name)
	}
	return false
}

func (r *reads) tag(n xast.BinaryNode) bool {
	if !isPrincipal(n.Left) {
		return true
	}
	if name, ok := literal(n.Right); ok {
		r.claims = append(r.claims, name)
		return false
	}
	r.allClaims = true
	xast.Inspect(xast.NewNode(n.Right), r.visit)
	return false
}

func literal(n xast.IsNode) (string, bool) {
	v, ok := n.(xast.NodeValue)
	if !ok {
		return "", false
	}
	s, ok := v.Value.(types.String)
	return string(s), ok
}

// membership handles principal in X for entities that are written down.
func (r *reads) membership(left, right xast.IsNode) bool {
	if !isPrincipal(left) {
		return true
	}
	parents := []xast.IsNode{right}
	if set, ok := right.(xast.NodeTypeSet); ok {
		parents = set.Elements
	}
	for _, p := range parents {
		v, ok := p.(xast.NodeValue)
		if !ok {
			return true
		}
		uid, ok := v.Value.(types.EntityUID)
		if !ok {
			return true
		}
		r.parent(uid)
	}
	return false
}

func (r *reads) parent(uid types.EntityUID) {
	switch uid.Type {
	case typeRole:
		r.roles = append(r.roles, string(uid.ID))
	case typeGroup:
		r.groups = true
	default:
		r.subject = true
	}
}

// Named are the names of things outside that a set's policies spell out.
// Records may keep these names, for they are configured.
type Named struct {
	Roles  []string // Role entities, and those of the roles table
	Claims []string // claims that are read, as attributes or tags
	ACR    []string // texts that context.acr is compared with
	AMR    []string // texts that context.amr is searched for
	Scopes bool     // some policy reads context.scopes
	Age    bool     // some policy reads context.auth_age
}

// Named lists what the policies name; the lists are sorted and the caller's.
func (e *Engine) Named() Named {
	roles, claims, acr, amr := map[string]bool{}, map[string]bool{}, map[string]bool{}, map[string]bool{}
	var n Named
	for _, p := range e.policies {
		for _, uid := range p.parents {
			if uid.Type == typeRole {
				roles[string(uid.ID)] = true
			}
		}
		for to, from := range map[*map[string]bool][]string{&roles: p.reads.roles, &claims: p.reads.claims, &acr: p.reads.acr, &amr: p.reads.amr} {
			for _, name := range from {
				(*to)[name] = true
			}
		}
		n.Scopes = n.Scopes || p.reads.context&ctxScopes != 0
		n.Age = n.Age || p.reads.context&ctxAuthAge != 0
	}
	n.Roles = slices.Sorted(maps.Keys(roles))
	n.Claims = slices.Sorted(maps.Keys(claims))
	n.ACR = slices.Sorted(maps.Keys(acr))
	n.AMR = slices.Sorted(maps.Keys(amr))
	return n
}

// scopeParents are the entities of a policy's principal scope.
func scopeParents(p *policy) []types.EntityUID {
	switch sc := xast.Policy(*p.full.AST()).Principal.(type) {
	case xast.ScopeTypeEq:
		return []types.EntityUID{sc.Entity}
	case xast.ScopeTypeIn:
		return []types.EntityUID{sc.Entity}
	case xast.ScopeTypeIsIn:
		return []types.EntityUID{sc.Entity}
	}
	return nil
}

// compared notes the texts that acr or amr is compared with, in
// context.acr == "x", ["x"].contains(context.acr), context.amr.contains("x") and
// the like. Any other value than those has the same effect there as any other.
func (r *reads) compared(left, right xast.IsNode) bool {
	for _, side := range [2][2]xast.IsNode{{left, right}, {right, left}} {
		a, ok := side[0].(xast.NodeTypeAccess)
		if !ok || !isVariable(a.Arg, "context") {
			continue
		}
		with, ok := texts(side[1])
		if !ok {
			continue
		}
		switch a.Value {
		case "acr":
			r.acr = append(r.acr, with...)
			return false
		case "amr":
			r.amr = append(r.amr, with...)
			return false
		}
	}
	return true
}

// texts are the strings of a literal, or of a set of them.
func texts(n xast.IsNode) (out []string, ok bool) {
	if s, ok := literal(n); ok {
		return []string{s}, true
	}
	switch n := n.(type) {
	case xast.NodeTypeSet:
		for _, e := range n.Elements {
			s, ok := literal(e)
			if !ok {
				return nil, false
			}
			out = append(out, s)
		}
		return out, true
	case xast.NodeValue:
		set, ok := n.Value.(types.Set)
		if !ok {
			return nil, false
		}
		for v := range set.All() {
			s, ok := v.(types.String)
			if !ok {
				return nil, false
			}
			out = append(out, string(s))
		}
		return out, true
	}
	return nil, false
}
