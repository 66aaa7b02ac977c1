package authz

import (
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
	"github.com/cedar-policy/cedar-go/x/exp/schema/resolved"
)

// The index rests on one property of Cedar: a policy is the conjunction of
// principal scope, action scope, resource scope and conditions, in that order
// and short-circuit, and a scope cannot fail. So a policy whose scope does not
// match is neither satisfied nor an error, whatever its conditions are, and
// one whose scope matches depends on its conditions only. Operations and
// routes are known at load, so their scopes are settled there; of a principal
// only the id and the roles matter to a scope.

// route is one declared route.
type route struct {
	ops    map[string]*operation // by action name
	other  *operation            // for methods without a name; nil unless the route takes any
	suffix string                // how the actions of other end
}

// operation is one action on one route, with the policies that its scope
// leaves, by principal scope.
type operation struct {
	n         int // index among all operations
	action    types.Entity
	resource  types.Entity
	params    []string // of the template, in order
	declared  []string // those of them that the schema knows
	headers   []string // those that the schema declares
	context   ctxMask  // what the schema declares
	anonymous bool
	schema    *boundSchema
	leaves    []leaf         // of the compiled policies
	leafOf    map[string]int // by their text, while the index is built

	readsPath bool     // some policy reads context.path
	allClaims bool     // some policy reads claims by a name that is computed
	claims    []string // that policies read by name

	policies []*policy        // all whose action and resource match and that a principal can meet
	any      group            // every User
	roles    map[string]group // a User in the role
	groups   map[string]group // a User in the group
	users    map[string]group // the User with the id
	nobody   group            // Anonymous
}

// tier is how long the answer of a policy holds for one principal and one
// operation.
type tier int

const (
	tierFixed    tier = iota // forever: it does not read the context
	tierStable               // while the caller's circumstances stay the same
	tierVolatile             // for this request: it reads time, path, parameters, headers or size and has no quick form
	tiers
)

// volatileReads change from request to request.
const volatileReads = ctxTime | ctxPath | ctxParams | ctxBodySize | ctxHeaders

// group is a list of candidate policies, by tier; those that would be volatile
// and have a quick form stand by themselves.
type group struct {
	tiers [tiers]candidates
	quick []*quick
}

type candidates struct {
	policies []*policy
	needs    ctxMask // context attributes that they can read
}

// entry is a policy as it stands on an operation.
type entry struct {
	policy *policy
	needs  ctxMask
	tier   tier
	quick  *quick // in the place of tierVolatile
}

func (op *operation) entry(p *policy) entry {
	e := entry{policy: p, needs: p.needs & op.context}
	switch {
	case e.needs&volatileReads != 0:
		e.tier, e.quick = tierVolatile, op.compile(p)
	case e.needs != 0:
		e.tier = tierStable
	}
	return e
}

func (g group) with(e entry) group {
	if e.quick != nil {
		g.quick = append(g.quick, e.quick)
		return g
	}
	c := g.tiers[e.tier]
	g.tiers[e.tier] = candidates{append(c.policies, e.policy), c.needs | e.needs}
	return g
}

// takes says whether the request's parameters are exactly the template's.
func (op *operation) takes(params []Param) bool {
	if len(params) != len(op.params) {
		return false
	}
	for i := range params {
		if params[i].Name != op.params[i] {
			return op.takesUnordered(params)
		}
	}
	return true
}

func (op *operation) takesUnordered(params []Param) bool {
	for i := range params {
		if !slices.Contains(op.params, params[i].Name) {
			return false
		}
		for j := range i {
			if params[j].Name == params[i].Name {
				return false
			}
		}
	}
	return true
}

// buildIndex makes the operations of all routes and sorts the policies in.
func buildIndex(routes []Route, policies []*policy, s *boundSchema) map[string]*route {
	out := make(map[string]*route, len(routes))
	n := 0
	for _, r := range routes {
		rt := &route{ops: map[string]*operation{}, suffix: " " + r.Template}
		params, _ := templateParams(r.Template) // checked by checkRoutes
		for _, m := range methodsOf(r) {
			name := Operation(m, r.Template)
			op := newOperation(n, r, name, params, s)
			n++
			for _, p := range policies {
				op.add(p)
			}
			op.leafOf = nil
			slices.Sort(op.claims)
			op.claims = slices.Compact(op.claims)
			rt.ops[name] = op
			if m == OtherMethod {
				rt.other = op
			}
		}
		out[r.Name] = rt
	}
	return out
}

func newOperation(n int, r Route, name string, params []string, s *boundSchema) *operation {
	uid := types.NewEntityUID(typeAction, types.String(name))
	op := &operation{
		n:         n,
		action:    types.Entity{UID: uid, Parents: actionParents(s, uid)},
		params:    params,
		anonymous: r.Anonymous,
		schema:    s,
		leafOf:    map[string]int{},
		roles:     map[string]group{},
		groups:    map[string]group{},
		users:     map[string]group{},
	}
	var groups []types.EntityUID
	for _, g := range routeGroups(r.Name) {
		groups = append(groups, types.NewEntityUID(typeRouteGroup, types.String(g)))
	}
	op.resource = types.Entity{
		UID:     types.NewEntityUID(typeRoute, types.String(r.Name)),
		Parents: types.NewEntityUIDSet(groups...),
	}
	ctx := s.types.Actions[uid].AppliesTo.Context
	for _, a := range ctxAttrs {
		if _, ok := ctx[a.name]; ok {
			op.context |= a.bit
		}
	}
	if rec, ok := ctx["headers"].Type.(resolved.RecordType); ok {
		for h := range rec {
			op.headers = append(op.headers, string(h))
		}
		slices.Sort(op.headers)
	}
	for _, p := range params {
		if s.declaresParam(uid, p) {
			op.declared = append(op.declared, p)
		}
	}
	return op
}

// actionParents is the transitive closure of an action's groups.
func actionParents(s *boundSchema, uid types.EntityUID) types.EntityUIDSet {
	var all []types.EntityUID
	todo := []types.EntityUID{uid}
	for len(todo) > 0 {
		next := todo[0]
		todo = todo[1:]
		for p := range s.types.Actions[next].Entity.Parents.All() {
			if !slices.Contains(all, p) {
				all = append(all, p)
				todo = append(todo, p)
			}
		}
	}
	return types.NewEntityUIDSet(all...)
}

// add puts a policy where its principal scope says, if action and resource
// match.
func (op *operation) add(p *policy) {
	scope := xast.Policy(*p.full.AST())
	if !matches(scope.Action, op.action) || !matches(scope.Resource, op.resource) {
		return
	}
	op.policies = append(op.policies, p)
	op.readsPath = op.readsPath || p.needs&op.context&ctxPath != 0
	op.allClaims = op.allClaims || p.reads.allClaims
	op.claims = append(op.claims, p.reads.claims...)
	e := op.entry(p)
	if op.anonymous && matches(scope.Principal, types.Entity{UID: anonymousUID}) {
		op.nobody = op.nobody.with(e)
	}
	switch sc := scope.Principal.(type) {
	case xast.ScopeTypeAll:
		op.any = op.any.with(e)
	case xast.ScopeTypeIs:
		if sc.Type == typeUser {
			op.any = op.any.with(e)
		}
	case xast.ScopeTypeEq:
		if sc.Entity.Type == typeUser {
			op.addIn(sc.Entity, e)
		}
	case xast.ScopeTypeIn:
		op.addIn(sc.Entity, e)
	case xast.ScopeTypeIsIn:
		if sc.Type == typeUser {
			op.addIn(sc.Entity, e)
		}
	}
}

// addIn files a policy under an entity that a User is in: a User's parents are
// Roles and Groups only, and "in" holds for the User itself.
func (op *operation) addIn(parent types.EntityUID, e entry) {
	switch id := string(parent.ID); parent.Type {
	case typeRole:
		op.roles[id] = op.roles[id].with(e)
	case typeGroup:
		op.groups[id] = op.groups[id].with(e)
	case typeUser:
		op.users[id] = op.users[id].with(e)
	}
}

// matches evaluates a scope on an entity whose Parents are complete.
func matches(scope xast.IsScopeNode, e types.Entity) bool {
	in := func(uid types.EntityUID) bool { return uid == e.UID || e.Parents.Contains(uid) }
	switch sc := scope.(type) {
	case xast.ScopeTypeAll:
		return true
	case xast.ScopeTypeEq:
		return sc.Entity == e.UID
	case xast.ScopeTypeIn:
		return in(sc.Entity)
	case xast.ScopeTypeInSet:
		return slices.ContainsFunc(sc.Entities, in)
	case xast.ScopeTypeIs:
		return sc.Type == e.UID.Type
	case xast.ScopeTypeIsIn:
		return sc.Type == e.UID.Type && in(sc.Entity)
	}
	return false
}

// sortPolicies brings a set into the order of its ids, by which it is searched.
func sortPolicies(policies []*policy) {
	slices.SortFunc(policies, func(a, b *policy) int { return strings.Compare(a.id, b.id) })
}
