package authz

import (
	"fmt"
	"strings"
	"testing"

	"github.com/cedar-policy/cedar-go"
)

// benchEngine has n policies over 50 routes and 20 roles, half of them with
// conditions on the context, as real sets have.
func benchEngine(b testing.TB, n int) (*Engine, *Request) {
	var routes []Route
	for i := range 50 {
		routes = append(routes, Route{Name: fmt.Sprintf("svc%d.r%d", i%10, i), Methods: []string{"GET", "POST"}, Template: fmt.Sprintf("/v1/r%d/{id}", i)})
	}
	var text strings.Builder
	for i := range n {
		cond := ""
		if i%2 == 0 {
			cond = ` when { context.acr == "mfa" && context.ip.isInRange(ip("203.0.113.0/24")) }`
		}
		fmt.Fprintf(&text, "@id(\"p%d\") permit(principal in Role::\"role%d\", action in Action::\"safe\", resource == Route::\"svc%d.r%d\")%s;\n", i, i%20, i%50%10, i%50, cond)
	}
	text.WriteString(`@id("tls") forbid(principal, action, resource) when { context.tls == "none" };`)
	e, err := engineOf(routes, nil, "p.cedar", text.String())
	if err != nil {
		b.Fatal(err)
	}
	r := asks(func(r *Request) {
		r.Roles = []string{"role0", "role10", "other"}
		r.Route, r.Action = "svc0.r0", "GET /v1/r0/{id}"
	})
	return e, r
}

func BenchmarkDecide(b *testing.B) {
	for _, n := range []int{20, 200, 1000} {
		e, r := benchEngine(b, n)
		b.Run(fmt.Sprintf("indexed/%d", n), func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				if d := e.Decide(r); !d.Allow {
					b.Fatal(d)
				}
			}
		})
		b.Run(fmt.Sprintf("indexed-new-context/%d", n), func(b *testing.B) {
			ages := [2]*Request{r, asks(func(o *Request) { *o = *r; o.RemoteIP = r.RemoteIP.Next() })}
			i := 0
			b.ReportAllocs()
			for b.Loop() {
				i++
				if d := e.Decide(ages[i&1]); !d.Allow {
					b.Fatal(d)
				}
			}
		})
		b.Run(fmt.Sprintf("linear/%d", n), func(b *testing.B) {
			set := cedar.NewPolicySet()
			for _, p := range e.policies {
				set.Add(p.pid, p.full)
			}
			op, _ := e.operation(r)
			b.ReportAllocs()
			for b.Loop() {
				p, _ := e.newPrincipal(r)
				d := e.decision(outcomeOf(cedar.Authorize(set, &entities{p, op}, cedar.Request{
					Principal: p.uid, Action: op.action.UID, Resource: op.resource.UID,
					Context: e.schema.context(r, p, op, ctxAll),
				})))
				if !d.Allow {
					b.Fatal(d)
				}
			}
		})
	}
}

// BenchmarkDecideRoles is the roles table alone: no policy reads the context.
func BenchmarkDecideRoles(b *testing.B) {
	e := mustEngine(b, map[string]Role{"clerk": {Allow: []string{"orders.*"}}, "admin": {Allow: []string{"*"}}})
	r := asks(nil)
	b.ReportAllocs()
	for b.Loop() {
		if d := e.Decide(r); !d.Allow {
			b.Fatal(d)
		}
	}
}

// BenchmarkDecideCold never finds the principal in the cache.
func BenchmarkDecideCold(b *testing.B) {
	e, r := benchEngine(b, 200)
	e.cache = nil
	b.ReportAllocs()
	for b.Loop() {
		if d := e.Decide(r); !d.Allow {
			b.Fatal(d)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		benchEngine(b, 200)
	}
}

var asks1 = asks(nil)

// TestDecideAllocates keeps the hot path within its share of the budget.
func TestDecideAllocates(t *testing.T) {
	roles := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.*"}}})
	r := asks(nil)
	if n := testing.AllocsPerRun(100, func() { roles.Decide(r) }); n > 0 {
		t.Errorf("%v allocations for the roles table", n)
	}
	e, r := benchEngine(t, 200)
	if n := testing.AllocsPerRun(100, func() { e.Decide(r) }); n > 0 {
		t.Errorf("%v allocations with 200 policies", n)
	}
	hours := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.*"}}}, "p.cedar", `
@id("office-hours") forbid(principal, action, resource) unless { context.time.toTime() >= duration("7h") };`)
	if n := testing.AllocsPerRun(100, func() { hours.Decide(asks1) }); n > 25 {
		t.Errorf("%v allocations with a policy that reads the time", n)
	}
}
