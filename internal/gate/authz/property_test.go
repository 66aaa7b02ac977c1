package authz

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
	"github.com/cedar-policy/cedar-go/x/exp/schema/validate"

	"github.com/gatebook/gatebook/internal/reason"
)

var (
	scopePrincipals = []string{
		"principal", "principal is User", "principal is Anonymous",
		`principal == User::"corp|alice"`, `principal in User::"corp|bob"`, `principal == User::"evil|alice"`,
		`principal in Role::"clerk"`, `principal in Role::"admin"`, `principal is User in Role::"auditor"`,
		`principal is User in User::"corp|alice"`, `principal in Group::"ops"`, `principal is User in Group::"dev"`, `principal == Anonymous::"anonymous"`, `principal == Anonymous::"other"`,
	}
	scopeActions = []string{
		"action", `action in Action::"safe"`, `action in Action::"unsafe"`, `action in [Action::"PUT", Action::"GET"]`,
		`action == Action::"GET /v1/orders/{id}"`, `action == Action::"_other /v1/{rest...}"`,
		`action in [Action::"DELETE /v1/orders", Action::"GET /v1/{rest...}", Action::"GET /healthz"]`,
	}
	scopeResources = []string{
		"resource", "resource is Route", `resource == Route::"orders.read"`, `resource == Route::"health"`,
		`resource in RouteGroup::"orders"`, `resource in RouteGroup::"orders.admin"`,
		`resource is Route in RouteGroup::"orders"`, `resource in Route::"rest"`,
	}
	conditions = []string{
		"true", "false", overflow, "!(" + overflow + ")",
		`context.acr == "mfa"`, `context.tls == "none"`, `context has auth_age`,
		`context has auth_age && context.auth_age < 60`,
		`context has auth_age && context.auth_age + 9223372036854775800 > 0`,
		`context.ip.isInRange(ip("10.0.0.0/8"))`, `context.path like "*7"`, `context.method == "GET"`,
		`context.scopes.contains("orders")`, `context.amr.isEmpty()`,
		`context.time < datetime("2026-11-24")`,
		`context.params has id && context.params.id == "7"`, `(if context.acr == "mfa" then context else context).method == "GET"`,
		`principal is User && principal.sub == "alice"`,
		`principal is User && principal has client && principal.client == Client::"corp|web"`,
		`principal is User && principal.hasTag("dept") && principal.getTag("dept") like "s*"`,
		`principal is User && principal in Role::"admin"`, `resource in RouteGroup::"orders"`,
		`action in Action::"safe" || ` + overflow,
		`context has body_size && context.body_size > 10`, `context.headers["x-role"].contains("admin")`,
		`["mfa", "gold"].contains(context.acr)`, `context.acr != "mfa"`, `context.acr like "m*"`, `context.amr.containsAny(["otp", "pin"])`,
		`principal is User && principal has tenant && principal.tenant == "blue"`, `principal is User && principal in Group::"ops"`,
		`principal is User && principal in [Role::"guest", Group::"dev"]`,
		`principal is User && principal.hasTag(context.acr) && principal.getTag(context.acr) == "x"`,
		`context.params has id && principal is User && context.params.id != principal.sub`,
		`principal is User && context.params has id && principal has tenant && principal.tenant != context.params.id`,
		`principal is User && principal.hasTag("dept") && principal.getTag("dept") != context.path`,
		`(if context.acr == "mfa" then context.path like "/v1/*/7" else ` + overflow + `)`,
		`["/v1/orders/7", "x"].contains(context.path) || ` + overflow,
		`context.path == "/v1/orders/8"`, `!(context.path == "/v1/orders/8") && context.tls != "none"`,
		`context.path == context.method || context.params has id`, `context has body_size && context.body_size >= 5`,
		`context has body_size && context.body_size <= 5 || context.tls == "none"`,
		`context has body_size && context has auth_age && context.auth_age < context.body_size`,
		`context.headers["x-role"].contains(context.acr) || context.headers["x-role"].contains("user")`,
		`context.headers["x-role"].containsAny(["user", "admin"])`,
		`context.path != context.method && (context.path == "/v1/orders/7") == context.amr.isEmpty()`,
	}
)

func pick[T any](rng *rand.Rand, from []T) T { return from[rng.IntN(len(from))] }

// randomSet writes policies. Not every combination of scopes applies to some
// action; the validator refuses those, so they are tried out one by one.
func randomSet(rng *rand.Rand, valid map[string]bool, n int) string {
	var b strings.Builder
	for i := 0; i < n; {
		p := fmt.Sprintf("%s (%s, %s, %s)", pick(rng, []string{"permit", "permit", "forbid"}),
			pick(rng, scopePrincipals), pick(rng, scopeActions), pick(rng, scopeResources))
		for range rng.IntN(3) {
			p += fmt.Sprintf(" %s { %s }", pick(rng, []string{"when", "unless"}), pick(rng, conditions))
		}
		ok, known := valid[p]
		if !known {
			_, err := engineOf(testRoutes, nil, "p.cedar", `@id("x") `+p+";")
			ok = err == nil
			valid[p] = ok
		}
		if ok {
			fmt.Fprintf(&b, "@id(\"p%d\") %s;\n", i, p)
			i++
		}
	}
	return b.String()
}

func randomRequest(rng *rand.Rand) *Request {
	r := &Request{RemoteIP: netip.MustParseAddr(pick(rng, []string{"10.1.2.3", "203.0.113.7", "2001:db8::1"})), Now: testNow.Add(time.Duration(rng.IntN(48)) * time.Hour)}
	rt := pick(rng, testRoutes)
	m := pick(rng, methodsOf(rt))
	r.Route, r.Method, r.Action = rt.Name, m, Operation(m, rt.Template)
	r.Path = pick(rng, []string{"/v1/orders/7", "/v1/orders/8"})
	names, _ := templateParams(rt.Template)
	for _, name := range names {
		r.Params = append(r.Params, Param{name, pick(rng, []string{"7", "8"})})
	}
	r.BodySize = pick(rng, []int64{-1, 0, 5, 11})
	if line := pick(rng, []string{"", "user", "user, admin", "admin"}); line != "" {
		r.Header = func(name string) []string { return map[string][]string{"x-role": {line}}[name] }
	}
	r.TLSVersion = pick(rng, []string{"", "TLS 1.3"})
	r.ACR = pick(rng, []string{"", "mfa", "dept"})
	r.AuthAge = pick(rng, []time.Duration{0, time.Second, 5 * time.Minute})
	if rt.Anonymous && rng.IntN(2) == 0 {
		return r
	}
	r.Issuer, r.Subject = pick(rng, []string{"corp", "evil"}), pick(rng, []string{"alice", "bob"})
	r.Client = pick(rng, []string{"", "web"})
	for range rng.IntN(4) {
		r.Roles = append(r.Roles, pick(rng, []string{"clerk", "admin", "auditor", "guest"}))
	}
	for range rng.IntN(3) {
		r.Groups = append(r.Groups, pick(rng, []string{"ops", "dev", "other"}))
	}
	r.Tenant = pick(rng, []string{"", "blue", "red"})
	for range rng.IntN(2) {
		r.Scopes = append(r.Scopes, pick(rng, []string{"orders", "users"}))
		r.AMR = append(r.AMR, "otp")
	}
	if rng.IntN(2) == 0 {
		r.Claims = map[string]string{pick(rng, []string{"dept", "mfa"}): pick(rng, []string{"sales", "x"})}
	}
	return r
}

// TestIndexedIsLinear: index, plans, cache and partial context change neither
// the decision nor its reasons nor its errors.
func TestIndexedIsLinear(t *testing.T) {
	valid := map[string]bool{}
	roles := map[string]Role{"clerk": {Allow: []string{"orders.read", "rest"}}, "admin": {Allow: []string{"*"}}, "auditor": {Allow: []string{"orders.*"}}}
	seen := map[reason.Reason]int{}
	for seed := range uint64(40) {
		rng := rand.New(rand.NewPCG(seed, 42))
		table := roles
		if seed%2 == 0 {
			table = nil
		}
		text := randomSet(rng, valid, 1+rng.IntN(12))
		e := mustEngine(t, table, "p.cedar", text)
		e.cache = e.cache[:8]
		for range 300 {
			r := randomRequest(rng)
			got, want := e.Decide(r), linear(t, e, r)
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("seed %d:\n%s\nrequest %+v\nindexed %+v\nlinear  %+v", seed, text, *r, got, want)
			}
			seen[got.Reason]++
		}
	}
	for _, r := range []reason.Reason{"", reason.DeniedByDefault, reason.DeniedByPolicy, reason.PolicyError} {
		if seen[r] < 200 {
			t.Errorf("only %d decisions with reason %q: the test proves too little (%v)", seen[r], r, seen)
		}
	}
}

// TestQuickIsCedar: each form of expression that is compiled says what Cedar
// says, on requests around its edges, and unsure where Cedar fails.
func TestQuickIsCedar(t *testing.T) {
	sizes := []int64{-1, 0, 4, 5, 6}
	for _, cond := range []string{
		`context.path == "/a"`, `context.path != "/a"`, `"/a" == context.path`, `context.path == context.params.id`,
		`context.method == context.path`, `context.tls == context.path`, `context.acr != context.path`,
		`context.path == principal.sub`, `context.path == principal.issuer`, `principal has tenant && principal.tenant == context.path`,
		`principal.hasTag("dept") && principal.getTag("dept") == context.path`,
		`context.path like "/*"`, `context.path like "*b*"`, `context.path like "\*"`, `context.path like ""`,
		`["/a", "/b"].contains(context.path)`, `!["/a"].contains(context.path)`,
		`context.headers["x-role"].contains("admin")`, `context.headers["x-role"].contains(context.path)`, `context.headers["x-role"].contains("")`,
		`context has body_size`, `!(context has body_size)`, `context has path`, `context.params has id`, `context.params has no`, `context has headers && context.headers has no`,
		`context has body_size && context.body_size == 5`, `context has body_size && context.body_size != 5`,
		`context has body_size && context.body_size < 5`, `context has body_size && context.body_size <= 5`,
		`context has body_size && context.body_size > 5`, `context has body_size && 5 >= context.body_size`,
		`context has body_size && context has auth_age && context.auth_age < context.body_size`,
		`context.path == "/a" && ` + overflow, overflow + ` && context.path == "/a"`, `context.path == "/a" || ` + overflow,
		`(` + overflow + `) || context.path == "/a"`, `!((` + overflow + `) && context.path == "/a")`,
		`if context.path == "/a" then context.tls == "none" else context.acr == "mfa"`,
		`if context.path == "/a" then ` + overflow + ` else context.path == "/b"`,
		`if context.tls == "none" then context.path == "/a" else context.path == "/b"`,
		`if ` + overflow + ` then context.path == "/a" else context.path == "/b"`,
	} {
		e := mustEngine(t, nil, "p.cedar", `@id("w") permit(principal is User, action == Action::"GET /v1/orders/{id}", resource) when { `+cond+` };
@id("u") forbid(principal is User, action == Action::"GET /v1/orders/{id}", resource) unless { `+cond+` };`)
		if op, fault := e.operation(asks(nil)); fault != "" || len(op.any.quick) != 2 {
			t.Errorf("%s is not compiled %s", cond, fault)
		}
		for _, path := range []string{"", "/a", "/b", "*", "admin", "GET", "TLS 1.3"} {
			for i, size := range sizes {
				r := asks(func(r *Request) {
					r.Path, r.Params[0].Value, r.BodySize, r.Subject, r.Issuer = path, "/a", size, "/b", "admin"
					r.ACR, r.TLSVersion, r.AuthAge = []string{"", "mfa", "/b"}[i%3], []string{"", "TLS 1.3"}[i%2], time.Duration(i)*time.Second
					r.Tenant, r.Claims = []string{"", "/a"}[i%2], []map[string]string{nil, {"dept": "/b"}}[i%2]
					r.Header = func(string) []string { return []string{"user, admin", " /a ,,"}[:i%3] }
				})
				if got, want := e.Decide(r), linear(t, e, r); !reflect.DeepEqual(got, want) {
					t.Fatalf("%s: request %+v\nindexed %+v\nlinear  %+v", cond, *r, got, want)
				}
			}
		}
	}
}

// TestQuickIsMet: the random sets of TestIndexedIsLinear have policies with a
// quick form that hold, that do not, and about which Cedar must be asked.
func TestQuickIsMet(t *testing.T) {
	valid := map[string]bool{}
	seen := map[finding]int{}
	for seed := range uint64(10) {
		rng := rand.New(rand.NewPCG(seed, 42))
		e := mustEngine(t, nil, "p.cedar", randomSet(rng, valid, 12))
		for range 300 {
			r := randomRequest(rng)
			e.Decide(r)
			op, _ := e.operation(r)
			p, _ := e.principal(r, op)
			pl := p.plan(e, op)
			for _, q := range pl.quick {
				seen[q.test(r, pl.circumstances(e, r, p).known)]++
			}
		}
	}
	for _, f := range []finding{no, yes, unsure} {
		if seen[f] < 50 {
			t.Errorf("finding %d only %d times: TestIndexedIsLinear proves too little (%v)", f, seen[f], seen)
		}
	}
}

// TestQuickBounds: more compiled policies than a plan asks by itself are asked
// all the same.
func TestQuickBounds(t *testing.T) {
	var text strings.Builder
	for i := range maxQuick + 3 {
		fmt.Fprintf(&text, "@id(\"p%d\") permit(principal, action, resource) when { context.path like \"*%d\" };\n", i, i)
	}
	fmt.Fprintln(&text, `@id("zz") forbid(principal, action, resource) when { context.path == "/v1/orders/3" };`)
	e := mustEngine(t, nil, "p.cedar", text.String())
	for i := range maxQuick + 4 {
		r := asks(func(r *Request) { r.Path = fmt.Sprintf("/v1/orders/%d", i) })
		if got, want := e.Decide(r), linear(t, e, r); !reflect.DeepEqual(got, want) {
			t.Fatalf("%s: indexed %+v, linear %+v", r.Path, got, want)
		}
	}
}

// TestConforms: what the gate builds conforms to the schema, as the validator
// sees it, so requests need no validation when they come.
func TestConforms(t *testing.T) {
	e := mustEngine(t, nil)
	v := validate.New(e.schema.types)
	rng := rand.New(rand.NewPCG(1, 2))
	for range 500 {
		r := randomRequest(rng)
		conforms(t, e, v, r)
	}
	custom, err := engineOf(testRoutes[:1], nil, "s.cedarschema", customSchema)
	if err != nil {
		t.Fatal(err)
	}
	v = validate.New(custom.schema.types)
	for _, claims := range []map[string]string{nil, {"level": "3"}, {"level": "-1", "staff": "true", "dept": "x", "other": "y"}} {
		conforms(t, custom, v, asks(func(r *Request) { r.Claims = claims }))
	}
}

func conforms(t *testing.T, e *Engine, v *validate.Validator, r *Request) {
	t.Helper()
	op, fault := e.operation(r)
	if fault != "" {
		t.Fatal(fault)
	}
	p, fault := e.principal(r, op)
	if fault != "" {
		t.Fatal(fault)
	}
	req := types.Request{Principal: p.uid, Action: op.action.UID, Resource: op.resource.UID, Context: e.schema.context(r, p, op, ctxAll)}
	if err := v.Request(req); err != nil {
		t.Fatalf("request %+v: %v", *r, err)
	}
	for _, uid := range []types.EntityUID{p.uid, op.action.UID, op.resource.UID} {
		ent, ok := (&entities{p, op}).Get(uid)
		if !ok {
			t.Fatalf("no entity %v", uid)
		}
		if err := v.Entity(ent); err != nil {
			t.Fatalf("entity %v: %v", uid, err)
		}
	}
}

// TestRolePoliciesConform: the generated permits pass the validator, which the
// loader does not ask again.
func TestRolePoliciesConform(t *testing.T) {
	e := mustEngine(t, map[string]Role{"a b\"c": {Allow: []string{"*", "orders.*", "orders.admin.*", "orders.read", "health"}}})
	if len(e.policies) != 5 {
		t.Fatalf("%d policies", len(e.policies))
	}
	if probs := validatePolicies(e.policies, nil, e.schema); len(probs) > 0 {
		t.Error(probs)
	}
	for _, p := range e.policies {
		var back cedar.Policy
		if err := back.UnmarshalCedar([]byte(p.text)); err != nil || string(back.Annotations()["id"]) != p.id {
			t.Errorf("text of %s does not parse back: %v\n%s", p.id, err, p.text)
		}
	}
}

// FuzzDecide: no request makes the engine panic, the index never disagrees
// with the full set, and two subjects share a User only if they are equal.
func FuzzDecide(f *testing.F) {
	e := mustEngine(f, map[string]Role{"clerk": {Allow: []string{"*"}}}, "p.cedar", `
@id("one") permit(principal == User::"corp|alice", action, resource);
@id("own") permit(principal is User, action, resource) when { context.params has id && context.params.id == principal.sub };
@id("tag") forbid(principal is User, action, resource) when { principal.hasTag(context.acr) && principal.getTag(context.acr) == context.path };`)
	f.Add("corp", "alice", "corp|", "alice", "clerk", "mfa", "7", "x")
	f.Add("corp|", "alice", "corp", "|alice", "", "", "", "")
	f.Add(`corp\`, "alice", `corp\|`, "alice", "a\x00b", "\xff", `"`, "\\")
	f.Add("", "|", "|", "", "é|è", "\u202e", "\n", "\x00")
	f.Fuzz(func(t *testing.T, issA, subA, issB, subB, role, acr, id, claim string) {
		if (UserID(issA, subA) == UserID(issB, subB)) != (issA == issB && subA == subB) {
			t.Errorf("(%q, %q) and (%q, %q) have ids %q and %q", issA, subA, issB, subB, UserID(issA, subA), UserID(issB, subB))
		}
		for _, who := range [][2]string{{issA, subA}, {issB, subB}, {issA, subA}} {
			r := asks(func(r *Request) {
				r.Issuer, r.Subject, r.Roles, r.ACR = who[0], who[1], []string{role}, acr
				r.Params[0].Value, r.Path = id, "/v1/orders/"+id
				r.Claims = map[string]string{claim: r.Path}
			})
			got, want := e.Decide(r), linear(t, e, r)
			if !reflect.DeepEqual(got, want) {
				t.Fatalf("request %+v: indexed %+v, linear %+v", *r, got, want)
			}
			for _, p := range got.Policies {
				if p == "one" && who != [2]string{"corp", "alice"} {
					t.Errorf("%q counts as corp's alice", who)
				}
			}
		}
	})
}
