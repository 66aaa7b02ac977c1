package gate

import (
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
)

// The names under which a record's claims hold what policies read of a token
// and a record has no field for.
const (
	ScopeClaim = "gatebook.scope"       // the scopes, with a space between two
	AgeClaim   = "gatebook.login_age_s" // seconds since the person authenticated, rounded up; 0 if unknown
)

// recordInputs keeps what the policies read, so that the decision can be made
// again.
func (x *exchange) recordInputs(p *authn.Principal) {
	raw := &x.rec.Raw
	if x.route.RecordScopes {
		raw.Claims = append(raw.Claims, record.Pair{Name: ScopeClaim, Value: strings.Join(p.Scopes, " ")})
	}
	if x.route.RecordAge {
		seconds := int64(0)
		if !p.AuthTime.IsZero() {
			seconds = int64((max(x.start.Sub(p.AuthTime), 1)-1)/time.Second) + 1
		}
		raw.Claims = append(raw.Claims, record.Pair{Name: AgeClaim, Value: strconv.FormatInt(seconds, 10)})
	}
}

// fieldValues are the values of a request field, for policies.
func (x *exchange) fieldValues(name string) (values []string) {
	for i := range x.req.Fields {
		if f := &x.req.Fields[i]; f.Name == name {
			values = append(values, f.Value)
		}
	}
	return values
}

// tryShadow hands the decision to the shadow policies. Two readings of a path
// are two questions, of which only the stricter answer counts, so those are
// left out.
func (x *exchange) tryShadow(d authz.Decision) {
	switch s := x.route.Shadow; {
	case s == nil:
	case x.req.Forms != 0:
		s.Leave()
	default:
		x.shadow = s.Submit(x.idText, &x.asked, d)
	}
}

// takeShadow puts the shadow policies' decision into the record if it is there
// by now and another one; nobody waits for it.
func (x *exchange) takeShadow() {
	if x.shadow == nil {
		return
	}
	d, differs := x.shadow.Take()
	if !differs {
		return
	}
	x.rec.Authz.ShadowDecision, x.rec.Authz.ShadowPolicies = decisionDeny, d.Policies
	if d.Allow {
		x.rec.Authz.ShadowDecision = decisionAllow
	}
}
