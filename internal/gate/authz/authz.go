// Package authz answers "may they" with Cedar (DESIGN section 4 step 7). It
// loads policies, validates them against a schema, sorts them by scope so that
// a request meets only those that can apply to it, and decides. Unset means
// deny, and any error means deny: no permit is denied_by_default, a forbid is
// denied_by_policy, and an error in any policy that was evaluated, in the
// request or in its claims is policy_error, whatever the other policies say.
//
// An Engine is immutable. A policy sees:
//
//	principal  User::"issuer|subject" in its Role::"name"s and Group::"name"s,
//	           with the attributes issuer, sub, client?, tenant? and the
//	           passed-on claims as tags (strings);
//	           Anonymous::"anonymous" on routes that admit it
//	action     Action::"GET /v1/orders/{id}", the operation, in Action::"GET",
//	           which is in Action::"safe" or Action::"unsafe"
//	resource   Route::"orders.read" in RouteGroup::"orders"
//	context    ip, time, method, path, tls, acr, amr, scopes, auth_age?,
//	           body_size?, headers (all values of each declared one) and
//	           params, a record of the template's parameters
//
// DefaultSchema is that table in Cedar's schema language.
package authz

import (
	"hash/maphash"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// Param is one parameter of the route's template and the value it took.
type Param struct{ Name, Value string }

// Request is what a decision is about. Decide does not keep or change it.
type Request struct {
	// Who: empty Issuer and Subject mean nobody. Issuer is the configured name.
	Issuer, Subject, Client string
	Tenant                  string
	Roles, Groups, Scopes   []string
	ACR                     string
	AMR                     []string
	// AuthAge is the time since the person authenticated. 0 and less mean
	// unknown, and then context.auth_age is absent: whoever knows an age must
	// pass at least 1 ns.
	AuthAge time.Duration
	Claims  map[string]string
	// Unfit are claims that the credential has in a form that Claims cannot hold.
	// To a policy they would not be there, so it is not asked if it reads one.
	Unfit []string

	// What: configured names. Action is the operation, "METHOD template".
	Route, Action, Method, Path string
	Params                      []Param
	// BodySize is the declared length of the body in bytes, -1 if it is not
	// known before the body ends.
	BodySize int64
	// Header returns the values of a field, by its name in lower case, in the
	// order of the request; nil: there are no fields.
	Header func(name string) []string

	RemoteIP   netip.Addr
	TLSVersion string // empty on plaintext, context.tls is then "none"
	Now        time.Time
}

// Decision is the answer. Its slices are shared between requests: read only.
type Decision struct {
	Allow    bool
	Reason   reason.Reason // empty when Allow
	Policies []string      // ids of the determining policies, sorted
	Set      string        // SetHash of the engine
	// Errors says what went wrong, by policy and place and without values from
	// the request, so that it may be logged.
	Errors []string
}

// Engine decides. It is safe for concurrent use.
type Engine struct {
	set      string
	bundle   []byte
	schema   *boundSchema
	policies []*policy // sorted by id
	routes   map[string]*route
	untested []string

	seed      maphash.Seed
	anonymous *principal
	cache     []atomic.Pointer[principal] // direct-mapped, immutable entries
}

// SetHash names what decides: the first 32 hex digits of the SHA-256 of
// Bundle.
func (e *Engine) SetHash() string { return e.set }

// Schema is the text of the schema in force, generated or given.
func (e *Engine) Schema() string { return e.schema.text }

// Untested lists the policies that determined none of the loaded test cases.
// It is empty when there were no cases.
func (e *Engine) Untested() []string { return slices.Clone(e.untested) }

// Decide answers a request. It fails closed: see Decision.Reason. What a policy
// forbids is forbidden in the other way to write its path, too: see lettered.
func (e *Engine) Decide(r *Request) Decision {
	d, _ := e.decide(r)
	return d
}

// decide is Decide that also tells which way to write the path has decided.
func (e *Engine) decide(r *Request) (Decision, *Request) {
	op, fault := e.operation(r)
	if fault != "" {
		return e.failed(fault), r
	}
	p, fault := e.principal(r, op)
	if fault != "" {
		return e.failed(fault), r
	}
	pl := p.plan(e, op)
	d := pl.decide(e, r, p)
	if !d.Allow || !op.readsPath {
		return d, r
	}
	path, differs := lettered(r.Path)
	if !differs {
		return d, r
	}
	twin := *r
	twin.Path = path
	if again := pl.decide(e, &twin, p); !again.Allow && again.Reason != reason.DeniedByDefault {
		return again, &twin
	}
	return d, r
}

// lettered is a path in normal form with those characters written out that mean
// something else when they are encoded only to the letter of RFC 3986 (section
// 2.2): servers decode a path before they look at it, so that to almost all of
// them /a%3Ab is /a:b. A semicolon or a slash is none of them: what has one
// encoded has two readings to the gate already.
func lettered(path string) (other string, differs bool) {
	i := strings.IndexByte(path, '%')
	if i < 0 {
		return path, false
	}
	b := append(make([]byte, 0, len(path)), path[:i]...)
	for ; i < len(path); i++ {
		if path[i] == '%' && i+2 < len(path) {
			if n, err := strconv.ParseUint(path[i+1:i+3], 16, 8); err == nil && strings.IndexByte("!$&'()*+,=:@", byte(n)) >= 0 {
				b = append(b, byte(n))
				i += 2
				continue
			}
		}
		b = append(b, path[i])
	}
	return string(b), len(b) != len(path)
}

// failed denies a request that cannot even be put to the policies.
func (e *Engine) failed(fault string) Decision {
	return Decision{Reason: reason.PolicyError, Set: e.set, Errors: []string{fault}}
}

// operation finds what is being asked and checks that the request has
// everything that the schema promises to the policies.
func (e *Engine) operation(r *Request) (*operation, string) {
	rt := e.routes[r.Route]
	if rt == nil {
		return nil, "the route was not declared to the policy engine"
	}
	op := rt.ops[r.Action]
	if op == nil {
		// A route for any method has one operation for those without a name.
		if rt.other == nil || !strings.HasSuffix(r.Action, rt.suffix) {
			return nil, "the operation does not belong to the route"
		}
		op = rt.other
	}
	switch {
	case !r.RemoteIP.IsValid():
		return nil, "the request has no client address"
	case r.Now.IsZero():
		return nil, "the request has no time"
	case !op.takes(r.Params):
		return nil, "the parameters are not those of the route's template"
	}
	return op, ""
}

// lookup finds a policy of the engine by its id.
func (e *Engine) lookup(id string) *policy {
	i, ok := slices.BinarySearchFunc(e.policies, id, func(p *policy, id string) int { return strings.Compare(p.id, id) })
	if !ok {
		return nil
	}
	return e.policies[i]
}
