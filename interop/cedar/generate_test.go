package cedar

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authz"
)

// The routes that generated policies are about.
var routes = []authz.Route{
	{Name: "orders.read", Methods: []string{"GET", "HEAD"}, Template: "/v1/orders/{id}"},
	{Name: "orders.write", Methods: []string{"PUT", "POST"}, Template: "/v1/orders/{id}"},
	{Name: "orders.admin.purge", Methods: []string{"DELETE"}, Template: "/v1/orders"},
	{Name: "health", Methods: []string{"GET"}, Template: "/healthz", Anonymous: true},
}

var headers = []string{"x-role"}

func pick[T any](rng *rand.Rand, from ...T) T { return from[rng.IntN(len(from))] }

func principalScope(rng *rand.Rand) string {
	return pick(rng, "principal", "principal", "principal is User", "principal is Anonymous",
		`principal == User::"corp|alice"`, `principal in User::"corp|bob"`, `principal in Role::"clerk"`, `principal in Role::"admin"`,
		`principal is User in Role::"auditor"`, `principal in Group::"ops"`, `principal == Anonymous::"anonymous"`)
}

func actionScope(rng *rand.Rand) string {
	return pick(rng, "action", "action", `action in Action::"safe"`, `action in Action::"unsafe"`, `action in [Action::"PUT", Action::"GET"]`,
		`action == Action::"GET /v1/orders/{id}"`, `action in [Action::"DELETE /v1/orders", Action::"GET /healthz"]`)
}

func resourceScope(rng *rand.Rand) string {
	return pick(rng, "resource", "resource", "resource is Route", `resource == Route::"orders.read"`, `resource in RouteGroup::"orders"`,
		`resource is Route in RouteGroup::"orders.admin"`, `resource in Route::"health"`)
}

// condition writes an expression that is a Bool if all goes well. Some fail
// when they are evaluated, some the validator refuses.
func condition(rng *rand.Rand, depth int) string {
	if depth > 0 && rng.IntN(3) > 0 {
		a, b := condition(rng, depth-1), condition(rng, depth-1)
		return pick(rng,
			fmt.Sprintf("(%s && %s)", a, b), fmt.Sprintf("(%s || %s)", a, b), fmt.Sprintf("!(%s)", a),
			fmt.Sprintf("(if %s then %s else %s)", a, b, condition(rng, 0)), fmt.Sprintf("((%s) == (%s))", a, b))
	}
	return pick(rng,
		"true", "false",
		`context.acr == "mfa"`, `context.acr like "m*"`, `["mfa", "gold"].contains(context.acr)`,
		`context.tls != "none"`, `context has auth_age && context.auth_age < 60`, `context.auth_age < 60`,
		`context has auth_age && context.auth_age + 9223372036854775800 > 0`,
		`context has body_size && context.body_size * 9223372036854775807 >= 0`,
		`context.ip.isInRange(ip("10.0.0.0/8"))`, `context.ip.isIpv6()`, `context.ip == ip("10.1.2.3")`,
		`context.path like "/v1/*/7"`, `context.method == "GET"`,
		`context.scopes.contains("orders")`, `context.scopes.containsAll(["orders", "users"])`, `context.scopes.containsAny(["users"])`, `context.amr.isEmpty()`,
		`context.time < datetime("2026-11-24")`, `context.time.toTime() >= duration("7h")`, `context.time.offset(duration("1d")) > datetime("2026-11-24T00:00:00Z")`,
		`context has params && context.params has id && context.params.id == "7"`, `context.params.id == "7"`,
		`context.headers["x-role"].contains("admin")`, `context.headers has other`,
		`principal is User && principal.sub == "alice"`, `principal.sub == "alice"`,
		`principal is User && principal has client && principal.client == Client::"corp|web"`,
		`principal is User && principal has tenant && principal.tenant == "blue"`,
		`principal is User && principal.hasTag("dept") && principal.getTag("dept") like "s*"`,
		`principal is User && principal.getTag("dept") == "sales"`,
		`principal is User && principal in Role::"admin"`, `principal in [Role::"clerk", Group::"ops"]`,
		`principal is User && principal.hasTag(context.acr) && principal.getTag(context.acr) == "x"`,
		`resource in RouteGroup::"orders"`, `resource == Route::"health"`, `action in Action::"safe"`,
		`{a: context.acr, b: 1}.a == "mfa"`, `[1, 2].containsAll([context.auth_age])`, `decimal("1.5").lessThan(decimal("2.0"))`,
		`context.acr < 3`, `principal.level > 2`, `context.nothing == 1`, `ip(context.acr).isLoopback()`, `1 == "x"`)
}

func policy(rng *rand.Rand, id string) string {
	var b strings.Builder
	fmt.Fprintf(&b, "@id(%q) %s (%s, %s, %s)", id, pick(rng, "permit", "permit", "forbid"), principalScope(rng), actionScope(rng), resourceScope(rng))
	for range rng.IntN(3) {
		fmt.Fprintf(&b, " %s { %s }", pick(rng, "when", "when", "unless"), condition(rng, 2))
	}
	return b.String() + ";"
}

func request(rng *rand.Rand) *authz.Request {
	rt := routes[rng.IntN(len(routes))]
	r := &authz.Request{
		Route: rt.Name, Method: pick(rng, rt.Methods...), Path: pick(rng, "/v1/orders/7", "/v1/orders/8", "/healthz"),
		RemoteIP: netip.MustParseAddr(pick(rng, "10.1.2.3", "203.0.113.7", "2001:db8::1")), TLSVersion: pick(rng, "", "TLS 1.3"),
		Now: time.Date(2026, 11, 22, rng.IntN(72), 30, 0, 123_000_000, time.UTC),
		ACR: pick(rng, "", "mfa", "dept"), AuthAge: pick(rng, 0, time.Second, 5*time.Minute), BodySize: pick(rng, int64(-1), 0, 5),
	}
	r.Action = r.Method + " " + rt.Template
	if strings.Contains(rt.Template, "{id}") {
		r.Params = []authz.Param{{Name: "id", Value: pick(rng, "7", "8")}}
	}
	if line := pick(rng, "", "user", "user, admin"); line != "" {
		r.Header = func(string) []string { return []string{line} }
	}
	if rt.Anonymous && rng.IntN(2) == 0 {
		return r
	}
	r.Issuer, r.Subject, r.Client = pick(rng, "corp", "evil"), pick(rng, "alice", "bob"), pick(rng, "", "web")
	r.Tenant = pick(rng, "", "blue")
	for range rng.IntN(3) {
		r.Roles = append(r.Roles, pick(rng, "clerk", "admin", "auditor", "guest"))
		r.Groups = append(r.Groups, pick(rng, "ops", "dev"))
		r.Scopes = append(r.Scopes, pick(rng, "orders", "users"))
	}
	if rng.IntN(2) == 0 {
		r.AMR = []string{"otp"}
		r.Claims = map[string]string{pick(rng, "dept", "mfa"): pick(rng, "sales", "x")}
	}
	return r
}
