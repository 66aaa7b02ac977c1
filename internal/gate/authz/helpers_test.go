package authz

import (
	"maps"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/types"
)

var testRoutes = []Route{
	{Name: "orders.read", Methods: []string{"GET", "HEAD"}, Template: "/v1/orders/{id}"},
	{Name: "orders.write", Methods: []string{"PUT", "POST"}, Template: "/v1/orders/{id}"},
	{Name: "orders.admin.purge", Methods: []string{"DELETE"}, Template: "/v1/orders"},
	{Name: "rest", Template: "/v1/{rest...}"},
	{Name: "health", Methods: []string{"GET"}, Template: "/healthz", Anonymous: true},
}

var testNow = time.Date(2026, 11, 23, 9, 30, 0, 0, time.UTC)

// engineOf builds an engine from texts: the name of a file, then its text.
func engineOf(routes []Route, roles map[string]Role, files ...string) (*Engine, error) {
	src, err := read(Config{Routes: routes, Roles: roles, Headers: []string{"x-role"}})
	if err != nil {
		return nil, err
	}
	for i := 0; i < len(files); i += 2 {
		if strings.HasSuffix(files[i], ".cedarschema") {
			src.SchemaName, src.Schema = files[i], files[i+1]
			continue
		}
		src.Files = append(src.Files, file{files[i], files[i+1]})
	}
	return build(src)
}

func mustEngine(t testing.TB, roles map[string]Role, files ...string) *Engine {
	t.Helper()
	e, err := engineOf(testRoutes, roles, files...)
	if err != nil {
		t.Fatal(err)
	}
	return e
}

// asks is a request of alice, a clerk, for one order.
func asks(edit func(*Request)) *Request {
	r := &Request{
		Issuer: "corp", Subject: "alice", Client: "web", Roles: []string{"clerk"}, Scopes: []string{"orders"},
		ACR: "mfa", AMR: []string{"otp", "pwd"}, AuthAge: 90 * time.Second, Claims: map[string]string{"dept": "sales"},
		Route: "orders.read", Action: "GET /v1/orders/{id}", Method: "GET", Path: "/v1/orders/7", Params: []Param{{"id", "7"}},
		RemoteIP: netip.MustParseAddr("203.0.113.7"), TLSVersion: "TLS 1.3", Now: testNow,
	}
	if edit != nil {
		edit(r)
	}
	return r
}

// linear decides without index, plans, cache or partial context: all policies
// as written, all entities, the whole context.
func linear(t testing.TB, e *Engine, r *Request) Decision {
	t.Helper()
	op, fault := e.operation(r)
	if fault != "" {
		return e.failed(fault)
	}
	p, fault := e.principal(r, op)
	if fault != "" {
		return e.failed(fault)
	}
	if p != e.anonymous {
		p, _ = e.newPrincipal(r) // not from the cache
	}
	ents := cedar.EntityMap{p.uid: p.entity, op.action.UID: op.action, op.resource.UID: op.resource}
	for _, ent := range slices.Collect(maps.Values(ents)) {
		for parent := range ent.Parents.All() {
			ents[parent] = types.Entity{UID: parent}
		}
	}
	set := cedar.NewPolicySet()
	for _, po := range e.policies {
		set.Add(po.pid, po.full)
	}
	return e.decision(outcomeOf(cedar.Authorize(set, ents, cedar.Request{
		Principal: p.uid, Action: op.action.UID, Resource: op.resource.UID,
		Context: e.schema.context(r, p, op, ctxAll),
	})))
}
