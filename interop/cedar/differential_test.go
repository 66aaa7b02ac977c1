package cedar

import (
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cedar-policy/cedar-go/types"

	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/reason"
)

// The pairs of policy sets and requests that are compared.
const (
	sets     = 500
	requests = 24 // for each set
)

// engine loads policies as the gate does, from a directory.
func engine(t *testing.T, text string) (*authz.Engine, error) {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "p.cedar"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return authz.Load(authz.Config{Dir: dir, Routes: routes, Headers: headers})
}

// TestValidator: our loader and Cedar's own validator agree about every policy,
// over the schema that the gate makes. What ours refuses beyond that are
// policies of which Cedar's says that they can never apply: a mistake in any
// case, and none of its effects can be missed; and, rarely, an optional
// attribute whose presence was tested in another clause of the same policy,
// which Cedar's validator remembers and ours wants tested again.
func TestValidator(t *testing.T) {
	o := startOracle(t)
	e, err := engine(t, "")
	if err != nil {
		t.Fatal(err)
	}
	var checked struct{ Type string }
	if o.ask(t, "checkParseSchema", e.Schema(), &checked); checked.Type != "success" {
		t.Fatalf("the oracle refuses our schema:\n%s", e.Schema())
	}
	rng := rand.New(rand.NewPCG(1, 1))
	good, bad, never, clauses := 0, 0, 0, 0
	for range 1500 {
		text := policy(rng, "p")
		_, err := engine(t, text)
		var v validateAnswer
		o.ask(t, "validate", validateCall{e.Schema(), policies{text}}, &v)
		if v.Type != "success" {
			t.Fatalf("the oracle cannot read %s: %+v", text, v.Errors)
		}
		valid := len(v.ValidationErrors) == 0
		switch {
		case err != nil && valid && slices.ContainsFunc(v.ValidationWarnings, func(f fault) bool { return strings.Contains(f.Error.Message, "policy is impossible") }):
			never++
		case err != nil && valid && strings.Count(text, " when {")+strings.Count(text, " unless {") > 1 && onlyPresence(err):
			clauses++
		case (err == nil) != valid:
			t.Errorf("%s\nwe say:      %v\noracle says: %+v %+v", text, err, v.ValidationErrors, v.ValidationWarnings)
		case err == nil:
			good++
		default:
			bad++
		}
	}
	t.Logf("%d policies valid, %d not, %d can never apply, %d test presence in another clause", good, bad, never, clauses)
	if good < 300 || bad < 300 || clauses > 15 {
		t.Errorf("%d valid, %d not: the test proves too little", good, bad)
	}
}

// onlyPresence: nothing is wrong but that an attribute may be absent.
func onlyPresence(err error) bool {
	var probs authz.Problems
	return errors.As(err, &probs) && !slices.ContainsFunc(probs, func(p authz.Problem) bool {
		return !strings.Contains(p.Message, "unable to guarantee safety of access")
	})
}

// TestDecisions: the engine, with its index, tiers and remembered answers,
// decides as Cedar's own implementation does over entities and a context that
// are written here from the schema's words alone.
func TestDecisions(t *testing.T) {
	o := startOracle(t)
	seen := map[reason.Reason]int{}
	pairs := 0
	for seed := range uint64(sets) {
		rng := rand.New(rand.NewPCG(seed, 2))
		text := validSet(t, o, rng)
		e, err := engine(t, text)
		if err != nil {
			t.Fatalf("%s\n%v", text, err)
		}
		static := map[string]string{}
		for _, p := range e.Policies() {
			static[p.ID] = p.Text
		}
		id := fmt.Sprint(seed)
		var parsed struct{ Type string }
		if o.ask(t, "preparse", map[string]any{"id": id, "policies": policies{static}}, &parsed); parsed.Type != "success" {
			t.Fatalf("the oracle cannot read %s", text)
		}
		asked := make([]*authz.Request, requests)
		for i := range asked {
			asked[i] = request(rng)
			o.send(t, "statefulIsAuthorized", callOf(t, id, asked[i]))
		}
		for _, r := range asked {
			var a authorizeAnswer
			o.receive(t, &a)
			d := e.Decide(r)
			compare(t, text, r, &d, &a)
			seen[d.Reason]++
			pairs++
		}
	}
	t.Logf("%d pairs: %v", pairs, seen)
	for _, r := range []reason.Reason{"", reason.DeniedByDefault, reason.DeniedByPolicy, reason.PolicyError} {
		if seen[r] < 100 {
			t.Errorf("only %d decisions with reason %q: the test proves too little", seen[r], r)
		}
	}
	if pairs < 10_000 {
		t.Errorf("only %d pairs", pairs)
	}
}

// validSet writes policies that load. Each is tried alone first.
func validSet(t *testing.T, o *oracle, rng *rand.Rand) string {
	t.Helper()
	var list []string
	for n := 1 + rng.IntN(8); len(list) < n; {
		p := policy(rng, fmt.Sprint("p", len(list)))
		if _, err := engine(t, p); err == nil {
			list = append(list, p)
		}
	}
	return strings.Join(list, "\n")
}

// compare holds our decision to Cedar's. Ours is stricter in one thing, which
// is meant: any error denies. Determining policies are those of the decision
// that Cedar made.
func compare(t *testing.T, text string, r *authz.Request, d *authz.Decision, a *authorizeAnswer) {
	t.Helper()
	diag := a.Response.Diagnostics
	want := a.Response.Decision == "allow" && len(diag.Errors) == 0
	var failed []string // "policy ID (file:line:column): class"
	for _, e := range d.Errors {
		id, _, _ := strings.Cut(strings.TrimPrefix(e, "policy "), " ")
		failed = append(failed, id)
	}
	if a.Type != "success" || d.Allow != want || !same(d.Policies, diag.Reason) || !same(failed, policyIDs(diag.Errors)) ||
		(d.Reason == reason.PolicyError) != (len(diag.Errors) > 0) {
		t.Errorf("%s\nrequest %+v\nwe say:      %+v\noracle says: %+v", text, *r, *d, *a)
	}
}

// The oracle's JSON for entities (docs.cedarpolicy.com, "Entities JSON").
type (
	entity struct {
		UID     entityRef      `json:"uid"`
		Attrs   map[string]any `json:"attrs"`
		Parents []entityRef    `json:"parents"`
		Tags    map[string]any `json:"tags,omitempty"`
	}
	object = map[string]any
)

func extension(fn, arg string) object { return object{"__extn": object{"fn": fn, "arg": arg}} }

func callOf(t *testing.T, set string, r *authz.Request) object {
	t.Helper()
	method, _, _ := strings.Cut(r.Action, " ")
	safety := "unsafe"
	if method == "GET" || method == "HEAD" {
		safety = "safe"
	}
	action := entityRef{"Action", types.String(r.Action)}
	route := entityRef{"Route", types.String(r.Route)}
	ents := []entity{
		{UID: action, Attrs: object{}, Parents: []entityRef{{"Action", types.String(method)}}},
		{UID: entityRef{"Action", types.String(method)}, Attrs: object{}, Parents: []entityRef{{"Action", types.String(safety)}}},
		{UID: route, Attrs: object{}, Parents: groupsOf(r.Route)},
	}
	who := entityRef{"Anonymous", "anonymous"}
	if r.Issuer != "" {
		who = entityRef{"User", types.String(r.Issuer + "|" + r.Subject)}
		ents = append(ents, userOf(who, r))
	}
	raw, err := json.Marshal(contextOf(r))
	if err != nil {
		t.Fatal(err)
	}
	return object{
		"principal": who, "action": action, "resource": route, "context": json.RawMessage(raw),
		"preparsedPolicySetId": set, "validateRequest": false, "entities": ents,
	}
}

// groupsOf: "a.b.c" is in a.b and in a.
func groupsOf(route string) []entityRef {
	parents := []entityRef{}
	for i := range route {
		if route[i] == '.' {
			parents = append(parents, entityRef{"RouteGroup", types.String(route[:i])})
		}
	}
	return parents
}

func userOf(uid entityRef, r *authz.Request) entity {
	u := entity{UID: uid, Attrs: object{"issuer": r.Issuer, "sub": r.Subject}, Parents: []entityRef{}, Tags: object{}}
	if r.Client != "" {
		u.Attrs["client"] = object{"__entity": entityRef{"Client", types.String(r.Issuer + "|" + r.Client)}}
	}
	if r.Tenant != "" {
		u.Attrs["tenant"] = r.Tenant
	}
	add := func(typ types.EntityType, names []string) {
		names = slices.Clone(names)
		slices.Sort(names)
		for _, n := range slices.Compact(names) {
			u.Parents = append(u.Parents, entityRef{typ, types.String(n)})
		}
	}
	add("Role", r.Roles)
	add("Group", r.Groups)
	for k, v := range r.Claims {
		u.Tags[k] = v
	}
	return u
}

func contextOf(r *authz.Request) object {
	list := func(l []string) []string { return append([]string{}, l...) }
	ctx := object{
		"ip": extension("ip", r.RemoteIP.String()), "time": extension("datetime", r.Now.UTC().Format("2006-01-02T15:04:05.000Z")),
		"method": r.Method, "path": r.Path, "tls": r.TLSVersion, "acr": r.ACR, "amr": list(r.AMR), "scopes": list(r.Scopes),
	}
	if r.TLSVersion == "" {
		ctx["tls"] = "none"
	}
	if r.AuthAge > 0 {
		ctx["auth_age"] = int64(r.AuthAge / time.Second)
	}
	if r.BodySize >= 0 {
		ctx["body_size"] = r.BodySize
	}
	params := object{}
	for _, p := range r.Params {
		params[p.Name] = p.Value
	}
	ctx["params"] = params
	values := []string{}
	if r.Header != nil {
		values = strings.Split(r.Header("x-role")[0], ", ")
	}
	ctx["headers"] = object{"x-role": values}
	return ctx
}
