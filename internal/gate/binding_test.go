package gate

import (
	"context"
	"net/http"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// plainDemand asks for nothing and knows nothing of bindings.
type plainDemand struct{}

func (plainDemand) Check(context.Context, *canon.Request, *authn.Principal) error { return nil }

// proofDemand says whether it checks bindings, and what it found.
type proofDemand struct {
	checks bool
	found  error
}

func (d proofDemand) Check(context.Context, *canon.Request, *authn.Principal) error { return d.found }
func (d proofDemand) ChecksBinding() bool                                           { return d.checks }

// A bound credential is never taken as a bearer credential: without a demand
// that has seen the proof the answer is no, whatever else the route asks.
func TestBoundCredentialNeedsProof(t *testing.T) {
	mismatch := &authn.Failure{Reason: reason.BindingMismatch}
	for _, row := range []struct {
		name    string
		confirm authn.Confirmation
		demands []Demand
		want    reason.Reason
		bound   string
	}{
		{name: "bearer", want: ""},
		{name: "bearer with a demand", demands: []Demand{proofDemand{checks: true}}, want: ""},
		{name: "dpop, no demand", confirm: authn.Confirmation{JKT: "x"}, want: reason.BindingRequired},
		{name: "mtls, no demand", confirm: authn.Confirmation{X5T: "x"}, want: reason.BindingRequired},
		{name: "another demand", confirm: authn.Confirmation{JKT: "x"}, demands: []Demand{plainDemand{}}, want: reason.BindingRequired},
		{name: "a demand that does not check", confirm: authn.Confirmation{JKT: "x"}, demands: []Demand{proofDemand{}}, want: reason.BindingRequired},
		{name: "no proof", confirm: authn.Confirmation{JKT: "x"}, demands: []Demand{proofDemand{checks: true, found: mismatch}}, want: reason.BindingMismatch},
		{name: "proven", confirm: authn.Confirmation{JKT: "x"}, demands: []Demand{proofDemand{checks: true}}, bound: "dpop"},
		{name: "proven before another demand", confirm: authn.Confirmation{X5T: "x"}, demands: []Demand{proofDemand{checks: true}, plainDemand{}, proofDemand{}}, bound: "mtls"},
		{name: "proven, then refused", confirm: authn.Confirmation{X5T: "x"}, demands: []Demand{proofDemand{checks: true}, proofDemand{found: mismatch}}, want: reason.BindingMismatch},
	} {
		t.Run(row.name, func(t *testing.T) {
			p := *alice
			p.Confirm = row.confirm
			h := newHouse(t, houseConfig{tune: func(r *Route) {
				r.Demands = row.demands
				r.Authenticators = []Authenticator{fakeAuth(func(*canon.Request) (*authn.Principal, error) { return &p, nil })}
			}})
			resp, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil))
			if err != nil {
				t.Fatal(err)
			}
			rec := h.one(t).rec
			if rec.Error.Reason != string(row.want) || rec.Authn.Bound != row.bound {
				t.Errorf("reason %q bound %q, want %q %q", rec.Error.Reason, rec.Authn.Bound, row.want, row.bound)
			}
			if row.want == "" {
				if resp.StatusCode != http.StatusOK {
					t.Errorf("status %d", resp.StatusCode)
				}
				return
			}
			if resp.StatusCode != http.StatusUnauthorized || resp.Header.Get("WWW-Authenticate") != `Bearer realm="gatebook", error="invalid_token"` {
				t.Errorf("status %d, challenge %q", resp.StatusCode, resp.Header.Get("WWW-Authenticate"))
			}
			if row.want == reason.BindingRequired && (rec.Authn.Issuer != "corp" || rec.Authn.KID != "k1" || rec.Personal.Claimed != "alice") {
				t.Errorf("recorded %+v, claimed %q", rec.Authn, rec.Personal.Claimed)
			}
		})
	}
}
