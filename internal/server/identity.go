package server

import (
	"fmt"
	"slices"

	"github.com/gatebook/gatebook/internal/book/redact"
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
		case a.MTLS != nil:
			m, err := authn.NewMTLS(authn.MTLSConfig{
				Name: a.MTLS.Name, Subject: a.MTLS.Subject, TrustDomains: a.MTLS.TrustDomains, Roles: a.MTLS.Roles, Alone: len(r.Authn) == 1,
			})
			if err != nil {
				return fmt.Errorf("route %q: %w", r.Name, err)
			}
			out.Authenticators = append(out.Authenticators, m)
		}
	}
	return addTokenDemands(r, out)
}

// clientAuthOf tells listeners apart that ask for client certificates in
// different ways.
func clientAuthOf(l *config.Listener) string {
	if l.TLS == nil || !filesOf(l.TLS).asks() {
		return ""
	}
	return l.TLS.ClientAuth + " " + string(l.TLS.ClientCA) + " " + string(l.TLS.CRL)
}

// addMTLSNames adds the names that client certificates bring into records.
func addMTLSNames(f *config.File, names *redact.Names) {
	for i := range f.Routes {
		for j := range f.Routes[i].Authn {
			m := f.Routes[i].Authn[j].MTLS
			if m == nil {
				continue
			}
			names.Issuers = append(names.Issuers, m.Name)
			for role := range m.Roles {
				names.Roles = append(names.Roles, role)
			}
		}
	}
	slices.Sort(names.Roles)
}
