package authz

import (
	"net/netip"
	"os"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// overflow is a condition that type-checks and always fails.
const overflow = `9223372036854775807 + 1 > 0`

func TestDecide(t *testing.T) {
	const (
		verb   = `@id("verb") forbid(principal, action, resource) when { context.path like "*:purge" };`
		tagged = `@id("t") forbid(principal is User, action, resource) when { principal.hasTag("blocked") };`
	)
	clerk := map[string]Role{"clerk": {Allow: []string{"orders.read"}}}
	for _, c := range []struct {
		name     string
		roles    map[string]Role
		policies string
		edit     func(*Request)
		reason   reason.Reason // "" means allow
		by       string
	}{
		{"nothing is configured", nil, "", nil, reason.DeniedByDefault, ""},
		{"role", clerk, "", nil, "", "role:clerk:orders.read"},
		{"other role", clerk, "", func(r *Request) { r.Roles = []string{"auditor"} }, reason.DeniedByDefault, ""},
		{"role named like two", clerk, "", func(r *Request) { r.Roles = []string{"clerk,auditor", "cler", "k"} }, reason.DeniedByDefault, ""},
		{"role among others, repeated", clerk, "", func(r *Request) { r.Roles = []string{"x", "clerk", "clerk"} }, "", "role:clerk:orders.read"},
		{"role on another route", clerk, "", func(r *Request) {
			r.Route, r.Action, r.Method = "orders.write", "PUT /v1/orders/{id}", "PUT"
		}, reason.DeniedByDefault, ""},
		{"group of routes", map[string]Role{"clerk": {Allow: []string{"orders.*"}}}, "", nil, "", "role:clerk:orders.*"},
		{"group of routes, deeper", map[string]Role{"clerk": {Allow: []string{"orders.*"}}}, "", func(r *Request) {
			r.Route, r.Action, r.Params = "orders.admin.purge", "DELETE /v1/orders", nil
		}, "", "role:clerk:orders.*"},
		{"deeper group only", map[string]Role{"clerk": {Allow: []string{"orders.admin.*"}}}, "", nil, reason.DeniedByDefault, ""},
		{"all routes", map[string]Role{"clerk": {Allow: []string{"*"}}}, "", nil, "", "role:clerk:*"},
		{"all routes do not mean nobody", map[string]Role{"clerk": {Allow: []string{"*"}}}, "", func(r *Request) {
			*r = Request{Route: "health", Action: "GET /healthz", Method: "GET", RemoteIP: r.RemoteIP, Now: r.Now}
		}, reason.DeniedByDefault, ""},
		{"several permits", clerk, `@id("b") permit(principal, action, resource); @id("a") permit(principal is User, action, resource);`, nil, "", "a b role:clerk:orders.read"},
		{"forbid wins", clerk, `@id("no") forbid(principal, action, resource == Route::"orders.read");`, nil, reason.DeniedByPolicy, "no"},
		{"forbid elsewhere", clerk, `@id("no") forbid(principal, action, resource == Route::"orders.write");`, nil, "", "role:clerk:orders.read"},
		{"failing forbid denies", clerk, `@id("no") forbid(principal, action, resource) when { ` + overflow + ` };`, nil, reason.PolicyError, "role:clerk:orders.read"},
		{"failing permit denies", clerk, `@id("p") permit(principal, action, resource) when { ` + overflow + ` };`, nil, reason.PolicyError, "role:clerk:orders.read"},
		{"failing policy that reads the context denies", clerk, `@id("no") forbid(principal, action, resource) when { context has auth_age && context.auth_age + 9223372036854775807 > 0 };`, nil, reason.PolicyError, "role:clerk:orders.read"},
		{"failing policy beside a forbid", clerk, `@id("e") permit(principal, action, resource) when { ` + overflow + ` }; @id("no") forbid(principal, action, resource);`, nil, reason.PolicyError, "no"},
		{"failing policy out of scope", clerk, `@id("no") forbid(principal, action, resource == Route::"rest") when { ` + overflow + ` };`, nil, "", "role:clerk:orders.read"},
		{"subject", nil, `@id("u") permit(principal == User::"corp|alice", action, resource);`, nil, "", "u"},
		{"subject of another issuer", nil, `@id("u") permit(principal == User::"corp|alice", action, resource);`, func(r *Request) { r.Issuer = "evil" }, reason.DeniedByDefault, ""},
		{"method group", nil, `@id("m") permit(principal, action in Action::"safe", resource);`, nil, "", "m"},
		{"method group, unsafe", nil, `@id("m") permit(principal, action in Action::"safe", resource);`, func(r *Request) {
			r.Route, r.Action = "orders.write", "PUT /v1/orders/{id}"
		}, reason.DeniedByDefault, ""},
		{"one operation", nil, `@id("m") permit(principal, action in [Action::"HEAD /v1/orders/{id}", Action::"GET /v1/orders/{id}"], resource);`, nil, "", "m"},
		{"method without a name", nil, `@id("m") permit(principal, action == Action::"_other /v1/{rest...}", resource) when { context.method == "PROPFIND" };`, func(r *Request) {
			r.Route, r.Action, r.Method, r.Params = "rest", "PROPFIND /v1/{rest...}", "PROPFIND", []Param{{"rest", "a/b"}}
		}, "", "m"},
		{"anonymous", nil, `@id("h") permit(principal is Anonymous, action, resource);`, func(r *Request) {
			*r = Request{Route: "health", Action: "GET /healthz", Method: "GET", RemoteIP: r.RemoteIP, Now: r.Now}
		}, "", "h"},
		{"user on the anonymous route", nil, `@id("h") permit(principal is Anonymous, action, resource);`, func(r *Request) {
			r.Route, r.Action, r.Params = "health", "GET /healthz", nil
		}, reason.DeniedByDefault, ""},
		{"parameter and claim", nil, `@id("own") permit(principal is User, action, resource in RouteGroup::"orders") when { context.params has id && principal.hasTag("orders") && principal.getTag("orders") == context.params.id };`, func(r *Request) { r.Claims = map[string]string{"orders": "7"} }, "", "own"},
		{"parameter and other claim", nil, `@id("own") permit(principal is User, action, resource in RouteGroup::"orders") when { context.params has id && principal.hasTag("orders") && principal.getTag("orders") == context.params.id };`, func(r *Request) { r.Claims = map[string]string{"orders": "8"} }, reason.DeniedByDefault, ""},
		{"address", nil, `@id("ip") permit(principal, action, resource) when { context.ip.isInRange(ip("203.0.113.0/24")) };`, nil, "", "ip"},
		{"mapped address", nil, `@id("ip") permit(principal, action, resource) when { context.ip.isInRange(ip("203.0.113.0/24")) };`, func(r *Request) { r.RemoteIP = netip.MustParseAddr("::ffff:203.0.113.7") }, "", "ip"},
		{"address elsewhere", nil, `@id("ip") permit(principal, action, resource) when { context.ip.isInRange(ip("203.0.113.0/24")) };`, func(r *Request) { r.RemoteIP = netip.MustParseAddr("203.0.114.7") }, reason.DeniedByDefault, ""},
		{"office hours", nil, `@id("t") permit(principal, action, resource) when { context.time.toTime() >= duration("8h") && context.time.toTime() < duration("18h") };`, nil, "", "t"},
		{"at night", nil, `@id("t") permit(principal, action, resource) when { context.time.toTime() >= duration("8h") && context.time.toTime() < duration("18h") };`, func(r *Request) { r.Now = testNow.Add(12 * time.Hour) }, reason.DeniedByDefault, ""},
		{"age", nil, `@id("f") permit(principal, action, resource) when { context has auth_age && context.auth_age <= 90 };`, nil, "", "f"},
		{"age is rounded up", nil, `@id("f") permit(principal, action, resource) when { context has auth_age && context.auth_age <= 90 };`, func(r *Request) { r.AuthAge++ }, reason.DeniedByDefault, ""},
		{"unknown age is not young", nil, `@id("f") permit(principal, action, resource) when { context has auth_age && context.auth_age <= 90 };`, func(r *Request) { r.AuthAge = 0 }, reason.DeniedByDefault, ""},
		{"plaintext", clerk, `@id("tls") forbid(principal, action, resource) when { context.tls == "none" };`, func(r *Request) { r.TLSVersion = "" }, reason.DeniedByPolicy, "tls"},
		{"scope, amr and acr", nil, `@id("s") permit(principal, action, resource) when { context.scopes.contains("orders") && context.amr.containsAll(["otp"]) && context.acr == "mfa" };`, nil, "", "s"},
		{"client", nil, `@id("c") permit(principal is User, action, resource) when { principal has client && principal.client == Client::"corp|web" && principal.issuer == "corp" && principal.sub == "alice" };`, nil, "", "c"},
		{"context in an expression", nil, `@id("c") permit(principal, action, resource) when { (if context.method == "GET" then context else context).acr == "mfa" };`, nil, "", "c"},
		{"whole context", nil, `@id("c") permit(principal, action, resource) when { context == context };`, nil, "", "c"},
		{"path", clerk, verb, func(r *Request) { r.Path = "/v1/orders/7" }, "", "role:clerk:orders.read"},
		{"forbidden path", clerk, verb, func(r *Request) { r.Path = "/v1/orders/7:purge" }, reason.DeniedByPolicy, "verb"},
		{"forbidden path, encoded", clerk, verb, func(r *Request) { r.Path = "/v1/orders/7%3Apurge" }, reason.DeniedByPolicy, "verb"},
		{"forbidden path, other characters encoded", clerk, verb, func(r *Request) { r.Path = "/v1/orders/a%40b%2C%20x%3Apurge" }, reason.DeniedByPolicy, "verb"},
		{"forbidden as sent", clerk, `@id("enc") forbid(principal, action, resource) when { context.path like "*%3A*" };`, func(r *Request) { r.Path = "/v1/orders/7%3Apurge" }, reason.DeniedByPolicy, "enc"},
		{"permitted path, encoded", nil, `@id("verb") permit(principal, action, resource) when { context.path like "*:purge" };`, func(r *Request) { r.Path = "/v1/orders/7%3Apurge" }, reason.DeniedByDefault, ""},
		{"permitted as sent only", nil, `@id("enc") permit(principal, action, resource) when { context.path like "*%3A*" };`, func(r *Request) { r.Path = "/v1/orders/7%3Apurge" }, "", "enc"},
		{"error in the other way to write it", clerk, `@id("e") forbid(principal, action, resource) when { context.path like "*:purge" && ` + overflow + ` };`, func(r *Request) { r.Path = "/v1/orders/7%3Apurge" }, reason.PolicyError, "role:clerk:orders.read"},
		{"forbidden path that is no encoding", clerk, verb, func(r *Request) { r.Path = "/v1/orders/7%253Apurge" }, "", "role:clerk:orders.read"},

		{"claim of another form", clerk, tagged, func(r *Request) { r.Unfit = []string{"blocked"} }, reason.PolicyError, ""},
		{"claim of another form, of no interest", clerk, tagged, func(r *Request) { r.Unfit = []string{"address"} }, "", "role:clerk:orders.read"},
		{"claim of another form, read elsewhere", clerk, `@id("t") forbid(principal is User, action, resource == Route::"rest") when { principal.hasTag("blocked") };`, func(r *Request) { r.Unfit = []string{"blocked"} }, "", "role:clerk:orders.read"},
		{"claim of another form, read by a computed name", clerk, `@id("t") forbid(principal is User, action, resource) when { principal.hasTag(context.method) };`, func(r *Request) { r.Unfit = []string{"address"} }, reason.PolicyError, ""},

		{"unknown route", clerk, "", func(r *Request) { r.Route = "nowhere" }, reason.PolicyError, ""},
		{"unknown operation", clerk, "", func(r *Request) { r.Action = "PATCH /v1/orders/{id}" }, reason.PolicyError, ""},
		{"operation of another route", clerk, "", func(r *Request) { r.Action = "PUT /v1/orders/{id}" }, reason.PolicyError, ""},
		{"operation of no template", clerk, "", func(r *Request) { r.Route, r.Action = "rest", "PROPFIND /v2" }, reason.PolicyError, ""},
		{"no address", clerk, "", func(r *Request) { r.RemoteIP = netip.Addr{} }, reason.PolicyError, ""},
		{"no time", clerk, "", func(r *Request) { r.Now = time.Time{} }, reason.PolicyError, ""},
		{"missing parameter", clerk, "", func(r *Request) { r.Params = nil }, reason.PolicyError, ""},
		{"foreign parameter", clerk, "", func(r *Request) { r.Params = []Param{{"x", "7"}} }, reason.PolicyError, ""},
		{"repeated parameter", clerk, "", func(r *Request) { r.Params = []Param{{"id", "7"}, {"id", "8"}} }, reason.PolicyError, ""},
		{"nobody where a credential is needed", clerk, `@id("p") permit(principal, action, resource);`, func(r *Request) {
			r.Issuer, r.Subject, r.Client, r.Roles, r.Scopes, r.AMR, r.Claims = "", "", "", nil, nil, nil, nil
		}, reason.PolicyError, ""},
		{"nobody with a role", clerk, `@id("p") permit(principal, action, resource);`, func(r *Request) {
			r.Route, r.Action, r.Params, r.Issuer, r.Subject = "health", "GET /healthz", nil, "", ""
		}, reason.PolicyError, ""},
		{"issuer without subject", clerk, `@id("p") permit(principal, action, resource);`, func(r *Request) { r.Subject = "" }, reason.PolicyError, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			e := mustEngine(t, c.roles, "p.cedar", c.policies)
			r := asks(c.edit)
			want := Decision{Allow: c.reason == "", Reason: c.reason, Set: e.SetHash()}
			if c.by != "" {
				want.Policies = strings.Fields(c.by)
			}
			for i := range 3 { // made, from the plan, from the plan
				got := e.Decide(r)
				if (len(got.Errors) > 0) != (c.reason == reason.PolicyError) {
					t.Errorf("decision %d: errors %q", i, got.Errors)
				}
				got.Errors = nil
				if !reflect.DeepEqual(got, want) {
					t.Errorf("decision %d: got %+v, want %+v", i, got, want)
				}
			}
		})
	}
}

// TestErrorsNameNobody: messages can be logged, so they hold nothing of the
// request.
func TestErrorsNameNobody(t *testing.T) {
	e := mustEngine(t, nil, "dir/p.cedar", `
@id("sum") permit(principal is User, action, resource)
when { principal.sub like "*" && context has auth_age && context.auth_age * 9223372036854775807 > 0 };`)
	d := e.Decide(asks(func(r *Request) { r.Subject = "secret-subject" }))
	want := []string{"policy sum (dir/p.cedar:2:1): integer overflow"}
	if !reflect.DeepEqual(d.Errors, want) {
		t.Errorf("got %q, want %q", d.Errors, want)
	}
	for _, msg := range []string{"`User::\"corp|secret-subject\"` does not have the attribute `x`", "something new about secret-subject"} {
		if c := errorClass(msg); strings.Contains(c, "secret") {
			t.Errorf("class %q", c)
		}
	}
}

// TestCacheIsExact: no way of cutting the same text into parts reaches the
// entry of another identity.
func TestCacheIsExact(t *testing.T) {
	e := mustEngine(t, map[string]Role{"admin": {Allow: []string{"*"}}}, "p.cedar", `
@id("tagged") permit(principal is User, action, resource) when { principal.hasTag("a") && principal.getTag("a") == "1" };
@id("scoped") permit(principal, action, resource) when { context.scopes.contains("s") };
@id("amr") permit(principal, action, resource) when { context.amr.contains("s") };
@id("client") permit(principal is User, action, resource) when { principal has client && principal.client == Client::"corp|s" };`)
	e.cache = e.cache[:1] // every identity in one slot
	bare := func(edit func(*Request)) *Request {
		return asks(func(r *Request) {
			r.Client, r.Roles, r.Scopes, r.AMR, r.Claims = "", nil, nil, nil, nil
			edit(r)
		})
	}
	reqs := []*Request{
		bare(func(r *Request) {}),
		bare(func(r *Request) { r.Roles = []string{"admin"} }),
		bare(func(r *Request) { r.Roles = []string{"ad", "min"} }),
		bare(func(r *Request) { r.Roles = []string{"admin\x00"} }),
		bare(func(r *Request) { r.Roles = []string{""}; r.Scopes = []string{"admin"} }),
		bare(func(r *Request) { r.Scopes = []string{"s"} }),
		bare(func(r *Request) { r.AMR = []string{"s"} }),
		bare(func(r *Request) { r.Client = "s" }),
		bare(func(r *Request) { r.Claims = map[string]string{"a": "1"} }),
		bare(func(r *Request) { r.Claims = map[string]string{"a1": ""} }),
		bare(func(r *Request) { r.Claims = map[string]string{"": "a1"} }),
		bare(func(r *Request) { r.Claims = map[string]string{"1": "a"} }),
		bare(func(r *Request) { r.Issuer, r.Subject = "corp|a", "lice" }),
		bare(func(r *Request) { r.Issuer, r.Subject = "", "corp|alice" }),
	}
	for i, a := range reqs {
		for j, b := range reqs {
			for _, r := range []*Request{a, b, a} {
				if got, want := e.Decide(r), linear(t, e, r); !reflect.DeepEqual(got, want) {
					t.Fatalf("after requests %d and %d: %+v, want %+v", i, j, got, want)
				}
			}
		}
	}
	// The caller may reuse what it passed.
	roles := []string{"admin"}
	if d := e.Decide(bare(func(r *Request) { r.Roles = roles })); !d.Allow {
		t.Fatalf("admin: %+v", d)
	}
	roles[0] = "guest"
	if d := e.Decide(bare(func(r *Request) { r.Roles = roles })); d.Allow {
		t.Fatalf("after the caller changed its slice: %+v", d)
	}
}

// TestPlansApart: what is kept for a principal on one operation never answers
// for another.
func TestPlansApart(t *testing.T) {
	e := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.*"}}}, "p.cedar", `
@id("head") forbid(principal, action == Action::"HEAD /v1/orders/{id}", resource);
@id("rest") permit(principal, action in [Action::"PUT /v1/{rest...}", Action::"_other /v1/{rest...}"], resource) when { context.acr == "mfa" };`)
	var reqs []*Request
	for _, rt := range testRoutes {
		names, _ := templateParams(rt.Template)
		for _, m := range methodsOf(rt) {
			reqs = append(reqs, asks(func(r *Request) {
				r.Route, r.Method, r.Action, r.Params = rt.Name, m, Operation(m, rt.Template), nil
				for _, name := range names {
					r.Params = append(r.Params, Param{name, "7"})
				}
			}))
		}
	}
	if len(reqs) <= planSlots {
		t.Fatalf("%d operations do not share %d slots", len(reqs), planSlots)
	}
	for _, a := range reqs {
		for _, b := range reqs {
			for _, r := range []*Request{a, b, a} {
				if got, want := e.Decide(r), linear(t, e, r); !reflect.DeepEqual(got, want) {
					t.Fatalf("%s: got %+v, want %+v", r.Action, got, want)
				}
			}
		}
	}
}

// TestLargeIdentity: one that is too large to remember decides the same.
func TestLargeIdentity(t *testing.T) {
	e := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"*"}}})
	r := asks(func(r *Request) { r.Claims = map[string]string{"big": strings.Repeat("x", 2*cacheBytes)} })
	for range 2 {
		if d := e.Decide(r); !d.Allow {
			t.Errorf("got %+v", d)
		}
	}
	for i := range e.cache {
		if e.cache[i].Load() != nil {
			t.Error("it was remembered")
		}
	}
}

func TestConcurrent(t *testing.T) {
	e := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.*"}}}, "p.cedar", `
@id("a") permit(principal, action, resource) when { context.path like "*7" };
@id("b") forbid(principal is User, action, resource) when { principal.sub == "u3" };`)
	e.cache = e.cache[:2]
	subjects := []string{"u0", "u1", "u2", "u3", "u4"}
	want := map[string]Decision{}
	for _, s := range subjects {
		want[s] = linear(t, e, asks(func(r *Request) { r.Subject = s }))
	}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				s := subjects[(g+i)%len(subjects)]
				if got := e.Decide(asks(func(r *Request) { r.Subject = s })); !reflect.DeepEqual(got, want[s]) {
					t.Errorf("%s: got %+v, want %+v", s, got, want[s])
					return
				}
			}
		})
	}
	wg.Wait()
}

// TestEngineVersion: another evaluator must change the set hash.
func TestEngineVersion(t *testing.T) {
	mod, err := os.ReadFile("../../../go.mod")
	if err != nil {
		t.Fatal(err)
	}
	_, version, _ := strings.Cut(engineVersion, " cedar-go/")
	if !strings.Contains(string(mod), "github.com/cedar-policy/cedar-go "+version) {
		t.Errorf("engineVersion is %q; go.mod requires another cedar-go", engineVersion)
	}
}
