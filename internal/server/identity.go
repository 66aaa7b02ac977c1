package server

import (
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
)

// buildIdentity gives a route its ways to say who is asking, in the order of
// the file, and what it demands beyond that. What the file names exists:
// config has checked it.
func (p *parts) buildIdentity(r *config.Route, out *gate.Route) error {
	for i := range r.Authn {
		switch a := &r.Authn[i]; {
		case a.JWT != "":
			out.Authenticators = append(out.Authenticators, p.issuers[a.JWT])
			if r.DPoP != "" {
				out.Authenticators = append(out.Authenticators, authn.NewUnderDPoP(p.issuers[a.JWT]))
			}
		case a.Introspect != "":
			out.Authenticators = append(out.Authenticators, p.introspectors[a.Introspect])
			if r.DPoP != "" {
				out.Authenticators = append(out.Authenticators, authn.NewUnderDPoP(p.introspectors[a.Introspect]))
			}
		}
	}
	return addTokenDemands(r, out)
}
