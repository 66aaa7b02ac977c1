package authz

import (
	"fmt"
	"hash/maphash"
	"maps"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"

	"github.com/cedar-policy/cedar-go/types"
)

const (
	// cacheSlots bounds how many principals an engine remembers.
	cacheSlots = 1 << 14
	// cacheBytes bounds the text of one remembered principal; larger ones are
	// made anew for each request.
	cacheBytes = 4 << 10
	// planSlots bounds how many operations are remembered for a principal.
	planSlots = 8
)

var anonymousUID = types.NewEntityUID(typeAnonymous, "anonymous")

// UserID is the id of the User entity of a subject, "issuer|subject". A "|" or
// "\" in the issuer is escaped with "\", so the first bare "|" always ends it
// and no two different pairs share an id; the subject stands as it is.
func UserID(issuer, subject string) string {
	if strings.ContainsAny(issuer, `|\`) {
		issuer = idEscaper.Replace(issuer)
	}
	return issuer + "|" + subject
}

var idEscaper = strings.NewReplacer(`|`, `\|`, `\`, `\\`)

// principal is the entity of whoever asks, with what of the request belongs to
// the credential and not to the moment. It is immutable except for plans.
type principal struct {
	// The identity as it was asked for: an entry serves a request only if all
	// of these are equal, so nothing depends on how they are joined or hashed.
	issuer, subject, client, tenant string
	roles, groups, scopes, amr      []string
	claims                          map[string]string

	uid    types.EntityUID
	entity types.Entity
	unique []string // roles, each once
	// uniqueGroups likewise; they count only if the schema knows groups
	uniqueGroups []string
	scopeSet     types.Set
	amrSet       types.Set

	plans [planSlots]atomic.Pointer[plan] // by operation, the latest wins
}

// principal finds or makes the principal of a request.
func (e *Engine) principal(r *Request, op *operation) (*principal, string) {
	if r.Issuer == "" && r.Subject == "" {
		switch {
		case !op.anonymous:
			return nil, "the request has no principal and the route does not admit that"
		case r.Client != "" || r.Tenant != "" || len(r.Roles)+len(r.Groups)+len(r.Scopes)+len(r.AMR)+len(r.Claims) > 0:
			return nil, "the request has attributes of a principal but no principal"
		}
		return e.anonymous, ""
	}
	if r.Subject == "" {
		return nil, "the principal has no subject"
	}
	for _, name := range r.Unfit {
		if op.allClaims || slices.Contains(op.claims, name) {
			return nil, fmt.Sprintf("claim %q is no short text, integer or truth value", name)
		}
	}
	if len(e.cache) == 0 || textSize(r) > cacheBytes {
		return e.newPrincipal(r)
	}
	slot := &e.cache[e.hash(r)&uint64(len(e.cache)-1)]
	if p := slot.Load(); p != nil && p.is(r) {
		return p, ""
	}
	p, fault := e.newPrincipal(r)
	if fault == "" {
		slot.Store(p)
	}
	return p, fault
}

// is says whether the entry was made from the same identity.
func (p *principal) is(r *Request) bool {
	return p.subject == r.Subject && p.issuer == r.Issuer && p.client == r.Client && p.tenant == r.Tenant &&
		slices.Equal(p.roles, r.Roles) && slices.Equal(p.groups, r.Groups) && slices.Equal(p.scopes, r.Scopes) && slices.Equal(p.amr, r.AMR) &&
		maps.Equal(p.claims, r.Claims)
}

// hash picks the slot. It is keyed and may collide: is decides.
func (e *Engine) hash(r *Request) uint64 {
	h := maphash.String(e.seed, r.Subject)
	h = h*0x9e3779b97f4a7c15 ^ maphash.String(e.seed, r.Issuer)
	h = h*0x9e3779b97f4a7c15 ^ maphash.String(e.seed, r.Client)
	if r.Tenant != "" {
		h = h*0x9e3779b97f4a7c15 ^ maphash.String(e.seed, r.Tenant)
	}
	for _, list := range [...][]string{r.Roles, r.Groups, r.Scopes, r.AMR} {
		h = h*0x9e3779b97f4a7c15 ^ uint64(len(list))
		for _, s := range list {
			h = h*0x9e3779b97f4a7c15 ^ maphash.String(e.seed, s)
		}
	}
	var sum uint64 // a map has no order
	for k, v := range r.Claims {
		sum += maphash.String(e.seed, k)*0x9e3779b97f4a7c15 ^ maphash.String(e.seed, v)
	}
	h = h*0x9e3779b97f4a7c15 ^ sum
	return h ^ h>>32
}

// textSize bounds what an entry would hold on to.
func textSize(r *Request) int {
	n := len(r.Issuer) + len(r.Subject) + len(r.Client) + len(r.Tenant)
	for _, list := range [...][]string{r.Roles, r.Groups, r.Scopes, r.AMR} {
		for _, s := range list {
			n += len(s) + 16
		}
	}
	for k, v := range r.Claims {
		n += len(k) + len(v) + 32
	}
	return n
}

// newPrincipal makes the entity that the schema declares.
func (e *Engine) newPrincipal(r *Request) (*principal, string) {
	p := &principal{
		issuer: r.Issuer, subject: r.Subject, client: r.Client, tenant: r.Tenant,
		roles: slices.Clone(r.Roles), groups: slices.Clone(r.Groups), scopes: slices.Clone(r.Scopes), amr: slices.Clone(r.AMR),
		claims:   maps.Clone(r.Claims),
		uid:      types.NewEntityUID(typeUser, types.String(UserID(r.Issuer, r.Subject))),
		scopeSet: stringSet(r.Scopes),
		amrSet:   stringSet(r.AMR),
	}
	p.unique, p.uniqueGroups = once(p.roles), once(p.groups)
	parents := make([]types.EntityUID, 0, len(p.unique)+len(p.uniqueGroups))
	for _, role := range p.unique {
		parents = append(parents, types.NewEntityUID(typeRole, types.String(role)))
	}
	if e.schema.groups {
		for _, g := range p.uniqueGroups {
			parents = append(parents, types.NewEntityUID(typeGroup, types.String(g)))
		}
	}
	attrs, fault := e.schema.userAttrs(r)
	if fault != "" {
		return nil, fault
	}
	p.entity = types.Entity{UID: p.uid, Parents: types.NewEntityUIDSet(parents...), Attributes: attrs}
	if e.schema.tags && len(r.Claims) > 0 {
		tags := make(types.RecordMap, len(r.Claims))
		for k, v := range r.Claims {
			tags[types.String(k)] = types.String(v)
		}
		p.entity.Tags = types.NewRecord(tags)
	}
	return p, ""
}

// once is a sorted copy without repetitions.
func once(list []string) []string {
	out := slices.Clone(list)
	slices.Sort(out)
	return slices.Compact(out)
}

func stringSet(list []string) types.Set {
	vals := make([]types.Value, len(list))
	for i, s := range list {
		vals[i] = types.String(s)
	}
	return types.NewSet(vals...)
}

// userAttrs are the declared attributes of a User. A claim that is not of its
// declared type is a fault: leaving it out could switch a forbid off.
func (s *boundSchema) userAttrs(r *Request) (types.Record, string) {
	m := make(types.RecordMap, 3+len(s.claims))
	if s.issuer {
		m["issuer"] = types.String(r.Issuer)
	}
	if s.sub {
		m["sub"] = types.String(r.Subject)
	}
	if s.client && r.Client != "" {
		m["client"] = types.NewEntityUID(typeClient, types.String(UserID(r.Issuer, r.Client)))
	}
	if s.tenant && r.Tenant != "" {
		m[attrTenant] = types.String(r.Tenant)
	}
	for name, typ := range s.claims {
		text, ok := r.Claims[name]
		if !ok {
			continue
		}
		v, ok := claimValue(typ, text)
		if !ok {
			return types.Record{}, fmt.Sprintf("claim %q is not a %s as the schema declares", name, typ)
		}
		m[types.String(name)] = v
	}
	return types.NewRecord(m), ""
}

func claimValue(typ, text string) (types.Value, bool) {
	switch typ {
	case "String":
		return types.String(text), true
	case "Long":
		n, err := strconv.ParseInt(text, 10, 64)
		return types.Long(n), err == nil
	case "Bool":
		return types.Boolean(text == "true"), text == "true" || text == "false"
	}
	return nil, false
}

// plan finds or makes what the principal meets on the operation.
func (p *principal) plan(e *Engine, op *operation) *plan {
	slot := &p.plans[op.n%planSlots]
	if pl := slot.Load(); pl != nil && pl.op == op {
		return pl
	}
	pl := newPlan(e, p, op)
	slot.Store(pl)
	return pl
}

// entities is what a policy can look up: the principal, the action and the
// route. Roles, clients and groups have neither attributes nor parents, so
// they need not exist.
type entities struct {
	p  *principal
	op *operation
}

// Get implements types.EntityGetter.
func (v *entities) Get(uid types.EntityUID) (types.Entity, bool) {
	switch uid {
	case v.p.uid:
		return v.p.entity, true
	case v.op.resource.UID:
		return v.op.resource, true
	case v.op.action.UID:
		return v.op.action, true
	}
	return types.Entity{}, false
}
