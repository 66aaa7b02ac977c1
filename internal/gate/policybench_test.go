package gate

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// knownCaller is a caller whose token has been seen before, and n policies, half
// of them with a condition on the context.
func knownCaller(t testing.TB, n int, condition string) (*authn.JWT, *canon.Request, *authz.Engine, *authz.Request) {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	keys := filepath.Join(dir, "jwks.json")
	if err := os.WriteFile(keys, env.JWKS, 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := authn.NewJWT(authn.JWTConfig{
		Name: "corp", Issuer: jwtattack.Issuer, Audiences: []string{jwtattack.Audience}, Algorithms: []string{"ES256"}, RolesClaim: "/roles",
		Types: []string{"at+jwt"}, MaxLifetime: time.Hour, Keys: authn.KeySource{File: keys},
	})
	if err == nil {
		err = j.Load(t.Context())
	}
	if err != nil {
		t.Fatal(err)
	}
	now := time.Now().Unix()
	c := jwtattack.Claims().Set("iat", fmt.Sprint(now-5)).Set("exp", fmt.Sprint(now+300)).Set("roles", `["role0", "role10"]`).Del("nbf").Del("auth_time")
	req := &canon.Request{Fields: []canon.Field{{Name: "authorization", Value: "Bearer " + env.Token("ES256", jwtattack.Header("ES256"), c)}}}
	var routes []authz.Route
	for i := range 50 {
		routes = append(routes, authz.Route{Name: fmt.Sprintf("svc%d.r%d", i%10, i), Methods: []string{"GET", "POST"}, Template: fmt.Sprintf("/v1/r%d/{id}", i)})
	}
	var text strings.Builder
	for i := range n {
		cond := ""
		if i%2 == 0 {
			cond = " when { " + condition + " }"
		}
		fmt.Fprintf(&text, "@id(\"p%d\") permit(principal in Role::\"role%d\", action in Action::\"safe\", resource == Route::\"svc%d.r%d\")%s;\n", i, i%20, i%50%10, i%50, cond)
	}
	if err := os.WriteFile(filepath.Join(dir, "p.cedar"), []byte(text.String()), 0o600); err != nil {
		t.Fatal(err)
	}
	e, err := authz.Load(authz.Config{Dir: dir, Routes: routes})
	if err != nil {
		t.Fatal(err)
	}
	return j, req, e, &authz.Request{
		Route: "svc0.r0", Action: "GET /v1/r0/{id}", Method: "GET", Path: "/v1/r0/7", Params: []authz.Param{{Name: "id", Value: "7"}},
		RemoteIP: netip.MustParseAddr("203.0.113.7"), TLSVersion: "TLS 1.3",
	}
}

// decideAs authenticates and decides, as the pipeline does.
func decideAs(t testing.TB, j *authn.JWT, req *canon.Request, e *authz.Engine, r *authz.Request) {
	p, err := j.Authenticate(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	r.Issuer, r.Subject, r.Client, r.Roles, r.Scopes, r.ACR, r.AMR, r.Claims = p.Issuer, p.Subject, p.Client, p.Roles, p.Scopes, p.ACR, p.AMR, p.Claims
	r.Now = time.Now()
	if d := e.Decide(r); !d.Allow {
		t.Fatal(d)
	}
}

// Conditions on what stays the same from one request of a caller to the next,
// and on what does not: the latter are asked every time.
const (
	ofCaller  = `context.ip.isInRange(ip("203.0.113.0/24")) && context.tls == "TLS 1.3"`
	ofRequest = ofCaller + ` && context.params has id && context.params.id != "9"`
)

// BenchmarkKnownCaller is the price of a remembered token and the policies.
func BenchmarkKnownCaller(b *testing.B) {
	for name, condition := range map[string]string{"caller": ofCaller, "request": ofRequest} {
		for _, n := range []int{200, 1000} {
			b.Run(fmt.Sprintf("%s/%d", name, n), func(b *testing.B) {
				j, req, e, r := knownCaller(b, n, condition)
				b.ReportAllocs()
				for b.Loop() {
					decideAs(b, j, req, e, r)
				}
			})
		}
	}
}

// TestKnownCallerAllocates holds the budget of 8 allocations with 200 policies
// and that 1,000 cost no more, whatever they read.
func TestKnownCallerAllocates(t *testing.T) {
	for _, c := range []struct {
		condition string
		n         int
		most      float64
	}{{ofCaller, 200, 8}, {ofCaller, 1000, 8}, {ofRequest, 200, 8}, {ofRequest, 1000, 8}} {
		j, req, e, r := knownCaller(t, c.n, c.condition)
		if got := testing.AllocsPerRun(200, func() { decideAs(t, j, req, e, r) }); got > c.most {
			t.Errorf("%v allocations with %d policies on %s, at most %v", got, c.n, c.condition, c.most)
		}
	}
}

// TestManyPoliciesCostLittle: a thousand policies take at most twice the time of
// two hundred on the same route, because the index leaves the same few. The
// best of several rounds counts, and the two take turns.
func TestManyPoliciesCostLittle(t *testing.T) {
	for _, condition := range []string{ofCaller, ofRequest} {
		var best [2]time.Duration
		var run [2]func()
		for i, n := range []int{200, 1000} {
			j, req, e, r := knownCaller(t, n, condition)
			run[i] = func() { decideAs(t, j, req, e, r) }
			run[i]()
		}
		for range 20 {
			for i := range run {
				begin := time.Now()
				for range 500 {
					run[i]()
				}
				if took := time.Since(begin); best[i] == 0 || took < best[i] {
					best[i] = took
				}
			}
		}
		if best[1] > 2*best[0] {
			t.Errorf("1000 policies on %s take %v for 500 decisions, 200 take %v", condition, best[1], best[0])
		}
	}
}
