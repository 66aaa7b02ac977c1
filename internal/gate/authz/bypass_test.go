package authz

import (
	"testing"

	"github.com/gatebook/gatebook/internal/reason"
)

// TestBypass holds the ways around policies that others had: each is named after
// whom it happened to.
func TestBypass(t *testing.T) {
	const set = `
@id("people") permit (principal is User, action, resource);
@id("no-admin-header") forbid (principal, action, resource) when { context.headers["x-role"].contains("admin") };
@id("small-bodies") forbid (principal, action in Action::"unsafe", resource) unless { context has body_size && context.body_size <= 10 };
@id("young-login") forbid (principal, action in Action::"unsafe", resource == Route::"orders.write") when { context has auth_age && context.auth_age + 9223372036854775800 > 0 };
@id("no-payroll") forbid (principal, action, resource) when { context.path like "/v1/orders/payroll*" };
@id("blocked") forbid (principal == User::"corp|mallory", action, resource);`
	lines := func(v ...string) func(*Request) {
		return func(r *Request) {
			r.Header = func(name string) []string {
				if name == "x-role" {
					return v
				}
				return nil
			}
		}
	}
	write := func(size int64) func(*Request) {
		return func(r *Request) {
			r.Route, r.Action, r.Method, r.BodySize, r.AuthAge = "orders.write", "POST /v1/orders/{id}", "POST", size, 0
		}
	}
	e := mustEngine(t, nil, "p.cedar", set)
	for _, c := range []struct {
		name string
		edit func(*Request)
		want reason.Reason
	}{
		{"nothing odd", nil, ""},
		{"Envoy/Istio CVE-2026-26308: the second of several values", lines("user", "admin"), reason.DeniedByPolicy},
		{"Envoy/Istio CVE-2026-26308, variant: one line with a list", lines("user,admin"), reason.DeniedByPolicy},
		{"Envoy/Istio CVE-2026-26308, variant: empty members and blanks", lines(" ,\tadmin ,"), reason.DeniedByPolicy},
		{"Pomerium CVE-2021-39206: duplicates with the good one last", lines("admin", "user"), reason.DeniedByPolicy},
		{"Skipper CVE-2026-50197: a chunked body has no size to check", write(-1), reason.DeniedByPolicy},
		{"Skipper CVE-2026-50197: an oversized body", write(11), reason.DeniedByPolicy},
		{"Skipper, control: a small body", write(10), ""},
		{"erroring forbid: it denies, and is no forbid that is skipped", func(r *Request) { write(1)(r); r.AuthAge = 1e9 * 60 }, reason.PolicyError},
		{"Pomerium CVE-2023-33189: the operation of another route", func(r *Request) { r.Action = "DELETE /v1/orders" }, reason.PolicyError},
		{"Pomerium CVE-2023-33189: parameters of another route", func(r *Request) { r.Params = nil }, reason.PolicyError},
		{"Pomerium CVE-2023-33189: a route that was not declared", func(r *Request) { r.Route = "orders" }, reason.PolicyError},
		{"Kong CVE-2021-27306: nobody on a route that wants somebody", func(r *Request) {
			*r = *asks(nil)
			r.Issuer, r.Subject, r.Client, r.Roles, r.Scopes, r.AMR, r.Claims = "", "", "", nil, nil, nil, nil
		}, reason.PolicyError},
		{"anonymous with roles: attributes without a principal", func(r *Request) { r.Issuer, r.Subject = "", "" }, reason.PolicyError},
		{"a subject that imitates the join of issuer and subject", func(r *Request) { r.Issuer, r.Subject = "corp|mallory", "" }, reason.PolicyError},
		{"Authelia CVE-2026-47203: the blocked subject under another issuer is another one", func(r *Request) { r.Issuer, r.Subject = "evil", "mallory" }, ""},
		{"the blocked subject", func(r *Request) { r.Subject = "mallory" }, reason.DeniedByPolicy},
		{"Oathkeeper CVE-2026-33494: the path that is asked about is the canonical one", func(r *Request) { r.Path = "/v1/orders/payroll" }, reason.DeniedByPolicy},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := asks(c.edit)
			if d := e.Decide(r); d.Reason != c.want || d.Allow != (c.want == "") {
				t.Errorf("%+v, want %q", d, c.want)
			}
		})
	}
}
