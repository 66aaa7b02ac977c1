package authz

import (
	"maps"
	"slices"
	"strings"

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
	headers   bool
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
	case xast.NodeTypeIs:
		return !isPrincipal(n.Left)
	case xast.NodeTypeVariable:
		if n.Name == "principal" {
			r.subject, r.client, r.allClaims, r.allRoles, r.groups, r.tenant = true, true, true, true, true, true
		}
	}
	return true
}

func isPrincipal(n xast.IsNode) bool {
	v, ok := n.(xast.NodeTypeVariable)
	return ok && v.Name == "principal"
}

func (r *reads) attribute(n xast.StrOpNode) bool {
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
		for _, uid := range scopeParents(p) {
			if uid.Type == typeRole {
				roles[string(uid.ID)] = true
			}
		}
		for _, role := range p.reads.roles {
			roles[role] = true
		}
		for _, c := range p.reads.claims {
			claims[c] = true
		}
		n.Scopes = n.Scopes || p.reads.context&ctxScopes != 0
		n.Age = n.Age || p.reads.context&ctxAuthAge != 0
		for _, c := range xast.Policy(*p.full.AST()).Conditions {
			xast.Inspect(xast.NewNode(c.Body), func(node xast.IsNode) bool {
				compared(node, acr, amr)
				return true
			})
		}
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

// compared collects the texts that acr and amr are compared with: in
// context.acr == "x", ["x"].contains(context.acr), context.amr.contains("x")
// and the like.
func compared(n xast.IsNode, acr, amr map[string]bool) {
	var b xast.BinaryNode
	switch n := n.(type) {
	case xast.NodeTypeEquals:
		b = n.BinaryNode
	case xast.NodeTypeNotEquals:
		b = n.BinaryNode
	case xast.NodeTypeContains:
		b = n.BinaryNode
	case xast.NodeTypeContainsAll:
		b = n.BinaryNode
	case xast.NodeTypeContainsAny:
		b = n.BinaryNode
	default:
		return
	}
	for _, side := range [2][2]xast.IsNode{{b.Left, b.Right}, {b.Right, b.Left}} {
		a, ok := side[0].(xast.NodeTypeAccess)
		if !ok {
			continue
		}
		if v, ok := a.Arg.(xast.NodeTypeVariable); !ok || v.Name != "context" {
			continue
		}
		to := acr
		switch a.Value {
		case "acr":
		case "amr":
			to = amr
		default:
			continue
		}
		for _, s := range texts(side[1]) {
			if s != "" && len(s) <= maxNamed && !strings.ContainsFunc(s, func(r rune) bool { return r < ' ' || r > '~' }) {
				to[s] = true
			}
		}
	}
}

// maxNamed is the longest name that records keep of those in policies.
const maxNamed = 64

func texts(n xast.IsNode) []string {
	if s, ok := literal(n); ok {
		return []string{s}
	}
	var out []string
	switch n := n.(type) {
	case xast.NodeTypeSet:
		for _, e := range n.Elements {
			if s, ok := literal(e); ok {
				out = append(out, s)
			}
		}
	case xast.NodeValue:
		if set, ok := n.Value.(types.Set); ok {
			for v := range set.All() {
				if s, ok := v.(types.String); ok {
					out = append(out, string(s))
				}
			}
		}
	}
	return out
}
