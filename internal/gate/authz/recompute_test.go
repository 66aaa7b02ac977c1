package authz

import (
	"errors"
	"math/rand/v2"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// blur makes what is left of a request when only part of it is known, and the
// gaps that say so. What is not known becomes what another request had.
func blur(rng *rand.Rand, r, other *Request) (*Request, *Gaps) {
	q, g := *r, &Gaps{}
	if r.Issuer == "" { // nobody: nothing of a person is missing
		other = &Request{ACR: other.ACR, AuthAge: other.AuthAge, RemoteIP: other.RemoteIP, Path: other.Path, Params: other.Params, BodySize: other.BodySize, Header: other.Header, TLSVersion: other.TLSVersion, Now: other.Now}
	}
	some := func() bool { return rng.IntN(4) == 0 }
	if g.Subject = some() && r.Issuer != ""; g.Subject {
		q.Subject = "unknown"
	}
	if g.Address = some(); g.Address {
		q.RemoteIP = other.RemoteIP
	}
	if g.Path = some(); g.Path {
		q.Path, q.Params = "", slices.Clone(r.Params)
		for i := range q.Params {
			q.Params[i].Value = ""
		}
	}
	if g.Scopes = some(); g.Scopes {
		q.Scopes = other.Scopes
	}
	if g.Age = some(); g.Age {
		q.AuthAge = other.AuthAge
	}
	if g.Client = some(); g.Client {
		q.Client = other.Client
	}
	if g.Groups = some(); g.Groups {
		q.Groups = other.Groups
	}
	if g.Tenant = some(); g.Tenant {
		q.Tenant = other.Tenant
	}
	if g.Headers = some(); g.Headers {
		q.Header = other.Header
	}
	if g.Body = some(); g.Body {
		q.BodySize = other.BodySize
	}
	if g.Claims = some(); g.Claims {
		q.Claims = nil
	}
	keeps := []string{"clerk", "admin", "mfa", "otp"}
	keptName := func(s string) bool { return slices.Contains(keeps, s) }
	if some() {
		q.Roles = slices.DeleteFunc(slices.Clone(r.Roles), func(s string) bool { return !keptName(s) })
		g.Roles = len(q.Roles) < len(r.Roles)
		g.RoleKept = keptName
	}
	if some() && !keptName(r.ACR) && r.ACR != "" {
		q.ACR, g.ACR, g.ACRKept = "_other", true, keptName
	}
	if some() {
		q.AMR = slices.DeleteFunc(slices.Clone(r.AMR), func(s string) bool { return !keptName(s) })
		g.AMR, g.AMRKept = len(q.AMR) < len(r.AMR), keptName
	}
	return &q, g
}

// TestRecomputeNeverGuesses: whatever is not known of a request, the decision
// that is made again is the one of the whole request, or none.
func TestRecomputeNeverGuesses(t *testing.T) {
	valid := map[string]bool{}
	again, refused := 0, map[string]int{}
	for seed := range uint64(60) {
		rng := rand.New(rand.NewPCG(seed, 7))
		text := randomSet(rng, valid, 1+rng.IntN(8))
		e := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.read"}}, "guest": {Allow: []string{"rest"}}}, "p.cedar", text)
		for range 300 {
			r := randomRequest(rng)
			q, g := blur(rng, r, randomRequest(rng))
			got, why, by := e.Recompute(q, g)
			if why != "" {
				refused[why]++
				if by == "" || e.lookup(by) == nil {
					t.Fatalf("%s: %q is no policy", why, by)
				}
				continue
			}
			again++
			if want := e.Decide(r); !got.Same(&want) || !reflect.DeepEqual(got.Errors, want.Errors) {
				t.Fatalf("seed %d:\n%s\nrequest %+v\nblurred %+v %+v\ngot  %+v\nwant %+v", seed, text, *r, *q, *g, got, want)
			}
		}
	}
	t.Logf("%d made again; refused: %v", again, refused)
	if again < 5000 || len(refused) < 12 {
		t.Errorf("%d made again, %d causes: the test proves too little", again, len(refused))
	}
}

// TestArchive: a decision that is made again by the archived set is the same,
// by the same policies.
func TestArchive(t *testing.T) {
	a := NewArchive(filepath.Join(t.TempDir(), "policies"))
	valid := map[string]bool{}
	for seed := range uint64(20) {
		rng := rand.New(rand.NewPCG(seed, 9))
		e := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.*"}}}, "p.cedar", randomSet(rng, valid, 1+rng.IntN(10)))
		for range 2 { // the second time it is there already
			if err := a.Keep(e); err != nil {
				t.Fatal(err)
			}
		}
		past, err := a.Open(e.SetHash())
		if err != nil {
			t.Fatal(err)
		}
		for range 200 {
			r := randomRequest(rng)
			if was, is := e.Decide(r), past.Decide(r); !reflect.DeepEqual(was, is) {
				t.Fatalf("seed %d, request %+v: was %+v, is %+v", seed, *r, was, is)
			}
		}
	}
}

func TestArchiveRefuses(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "policies")
	a := NewArchive(dir)
	e := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.*"}}})
	if _, err := a.Open(e.SetHash()); !errors.Is(err, ErrNotArchived) {
		t.Errorf("a set that is not there: %v", err)
	}
	for _, name := range []string{"", "../state", strings.Repeat("g", 32), strings.Repeat("a", 33)} {
		if _, err := a.Open(name); !errors.Is(err, ErrNotArchived) {
			t.Errorf("%q: %v", name, err)
		}
	}
	if err := a.Keep(e); err != nil {
		t.Fatal(err)
	}
	name := filepath.Join(dir, e.SetHash()+".json")
	if st, err := os.Stat(name); err != nil || st.Mode().Perm() != 0o400 {
		t.Errorf("%v %v", st.Mode(), err)
	}
	if err := os.Chmod(name, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, []byte(strings.Replace(string(e.Bundle()), "clerk", "clork", 1)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := a.Open(e.SetHash()); err == nil || !strings.Contains(err.Error(), "was changed") {
		t.Errorf("a changed file: %v", err)
	}
	if err := a.Keep(e); err == nil || !strings.Contains(err.Error(), "not the set that its name says") {
		t.Errorf("a changed file is kept: %v", err)
	}
	if err := NewArchive(filepath.Join(dir, "no", "parent")).Keep(e); err == nil {
		t.Error("no parent directory, and yet kept")
	}
	if left, _ := filepath.Glob(filepath.Join(dir, ".new-*")); len(left) > 0 {
		t.Errorf("left behind: %v", left)
	}
}

func TestChanges(t *testing.T) {
	a := mustEngine(t, nil, "p.cedar", `@id("one") permit(principal, action, resource); @id("two") forbid(principal, action, resource) when { context.tls == "none" };`)
	b := mustEngine(t, map[string]Role{"clerk": {Allow: []string{"rest"}}}, "moved.cedar", `

@id("one")
permit(principal, /* anything */ action, resource); @id("two") forbid(principal, action, resource) when { context.acr == "" };`)
	var got []string
	for _, c := range a.Changes(b) {
		got = append(got, c.What+" "+c.ID)
	}
	if want := []string{"added role:clerk:rest", "changed two"}; !slices.Equal(got, want) {
		t.Errorf("%v, want %v", got, want)
	}
	if c := b.Changes(a); len(c) != 2 || c[0].What != "removed" {
		t.Errorf("the other way: %+v", c)
	}
}

func TestNamed(t *testing.T) {
	e := mustEngine(t, map[string]Role{"admin": {Allow: []string{"*"}}}, "p.cedar", `
@id("a") permit(principal in Role::"clerk", action, resource) when { context.acr == "mfa" || ["gold"].contains(context.acr) || context.amr.contains("otp") };
@id("b") permit(principal is User, action, resource) when { principal in Role::"boss" && principal.hasTag("dept") && principal.getTag("dept") == "x" && context.scopes.contains("s") };`)
	want := Named{Roles: []string{"admin", "boss", "clerk"}, Claims: []string{"dept"}, ACR: []string{"gold", "mfa"}, AMR: []string{"otp"}, Scopes: true}
	if got := e.Named(); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
}

func TestParamsOf(t *testing.T) {
	for _, c := range []struct {
		template, path string
		want           []Param
		ok             bool
	}{
		{"/v1/orders/{id}", "/v1/orders/7", []Param{{"id", "7"}}, true},
		{"/v1/orders/{id}", "/v1/orders/a%20b", []Param{{"id", "a b"}}, true},
		{"/v1/orders/{id}", "/v1/orders", nil, false},
		{"/v1/orders/{id}", "/v1/orders/7/8", nil, false},
		{"/v1/orders/{id}", "/v1/other/7", nil, false},
		{"/v1/{rest...}", "/v1/a/b", []Param{{"rest", "a/b"}}, true},
		{"/{rest...}", "/", []Param{{"rest", ""}}, true},
		{"/", "/", nil, true},
		{"/a/", "/a/", nil, true},
		{"/a/", "/a", nil, false},
		{"/a/{x}", "/a/%zz", nil, false},
		{"/a", "a", nil, false},
	} {
		got, ok := ParamsOf(c.template, c.path)
		if ok != c.ok || ok && !slices.Equal(got, c.want) {
			t.Errorf("%s %s: %v %v", c.template, c.path, got, ok)
		}
	}
}
