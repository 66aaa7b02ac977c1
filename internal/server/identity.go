package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/kv"
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
		case a.Session != "":
			out.Authenticators = append(out.Authenticators, p.sessions[a.Session])
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
		case a.APIKey != nil:
			k, err := authn.NewAPIKey(p.keys, a.APIKey.In)
			if err != nil {
				return err
			}
			out.Authenticators = append(out.Authenticators, k)
			for _, field := range a.APIKey.In {
				if !slices.Contains(out.CredentialFields, field) {
					out.CredentialFields = append(out.CredentialFields, field)
				}
			}
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

// identityPath is where the keys of signed identities are published.
const identityPath = "/.well-known/gatebook-identity-jwks.json"

// identityTable and identityKey are where the keys are kept.
const identityTable, identityKey = "identity", "keys"

// identityStore keeps the keys of signed identities in the state beside the
// book.
type identityStore struct{ state *kv.Local }

// Load implements gate.IdentityStore.
func (s identityStore) Load(ctx context.Context) ([]byte, error) {
	b, err := s.state.Get(ctx, identityTable, identityKey)
	if errors.Is(err, kv.ErrNotFound) {
		return nil, nil
	}
	return b, err
}

// Save implements gate.IdentityStore.
func (s identityStore) Save(ctx context.Context, keys []byte) error {
	return s.state.Put(ctx, identityTable, identityKey, keys, time.Time{})
}

// identityConfig is what a route's upstream gets; nil if nothing.
func identityConfig(f *config.File, r *config.Route) *config.IdentityJWT {
	id := r.Identity
	if id == nil {
		id = f.Upstreams[r.Upstream].Identity
	}
	if id == nil {
		return nil
	}
	return id.JWT
}

func signedFor(f *config.File, r *config.Route) bool { return identityConfig(f, r) != nil }

// signsIdentity reports whether any route's upstream gets a signed identity.
func signsIdentity(f *config.File) bool {
	return slices.ContainsFunc(f.Routes, func(r config.Route) bool { return signedFor(f, &r) })
}

// addIdentityKeys takes over the keys, or makes or loads them if they are needed.
func (p *parts) addIdentityKeys(f *config.File, prev *parts, log *slog.Logger) (err error) {
	if !signsIdentity(f) {
		return nil
	}
	if p.identity = prev.identity; p.identity == nil {
		p.identity, err = gate.NewIdentityKeys(context.Background(), identityStore{p.guards.state}, f.Identity.Rotate.Std(), nil, log)
	}
	return err
}

func (p *parts) identityOf(f *config.File, r *config.Route) *gate.Identity {
	c := identityConfig(f, r)
	if c == nil {
		return nil
	}
	return &gate.Identity{
		Field: strings.ToLower(c.Header), Issuer: f.Identity.Issuer, Audience: c.Audience,
		Lifetime: c.Lifetime.Std(), BodyDigest: int64(c.BodyDigest), Keys: p.identity,
	}
}

// identityPlace is where the key set is served.
type identityPlace struct {
	name, host string
	listeners  []string
}

// identityPlaces are every host of the routes, since a route with a host takes
// precedence over one without, and any other; none if nobody gets a signed
// identity.
func identityPlaces(f *config.File) (places []identityPlace) {
	if !signsIdentity(f) {
		return nil
	}
	listeners := map[string][]string{}
	for i := range f.Routes {
		r := &f.Routes[i]
		listeners[r.Host] = addOnce(listeners[r.Host], r.Listeners...)
	}
	for _, l := range f.Listen {
		if !l.RedirectToHTTPS {
			listeners[""] = addOnce(listeners[""], l.Name)
		}
	}
	for _, host := range slices.Sorted(maps.Keys(listeners)) {
		name := config.ReservedRoutes + "identity-keys"
		if n := len(places); n > 0 {
			name = fmt.Sprintf("%s.%d", name, n+1)
		}
		places = append(places, identityPlace{name, host, listeners[host]})
	}
	return places
}

// identityRoutes are those that serve the key set.
func (p *parts) identityRoutes(f *config.File) (routes []*gate.Route) {
	for _, w := range identityPlaces(f) {
		r := p.identity.Route(identityPath)
		r.Name, r.Host, r.Listeners = w.name, w.host, w.listeners
		routes = append(routes, r)
	}
	return routes
}
