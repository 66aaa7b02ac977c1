package server

import (
	"fmt"
	"log/slog"
	"net/url"
	"slices"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/obs"
)

// addIntrospector makes what asks an issuer about tokens, or takes over the one
// from before.
func (p *parts) addIntrospector(f *config.File, c *config.Issuer, prev *parts, log *slog.Logger) error {
	if c.Introspection == nil {
		return nil
	}
	whole := p.prints[printIssuer+c.Name]
	if was := prev.introspectors[c.Name]; was != nil && prev.prints[printIssuer+c.Name] == whole {
		p.introspectors[c.Name] = was
		return nil
	}
	conf, err := introspection(c, whole)
	if err != nil {
		return err
	}
	conf.Token = tokenRules(c, p.passedClaims(f, c.Name))
	conf.Token.Cache, conf.Token.Logger = p.cache, log
	i, err := authn.NewIntrospector(*conf)
	if err == nil {
		p.introspectors[c.Name] = i
	}
	return err
}

// introspection reads what is configured, secrets included.
func introspection(c *config.Issuer, fingerprint [32]byte) (*authn.IntrospectConfig, error) {
	in := c.Introspection
	out := &authn.IntrospectConfig{
		URL: in.URL, Prefixes: in.Prefixes, Positive: in.Cache.Active.Std(), Negative: in.Cache.Refused.Std(),
		Timeout: in.Timeout.Std(), Concurrency: in.Concurrency, Rate: float64(in.Rate.Count) / in.Rate.Per.Seconds(),
		Client: authn.ClientAuth{Method: in.Auth, ID: in.ClientID, KeyID: in.KeyID}, Fingerprint: fingerprint,
	}
	if u, err := url.Parse(in.URL); err == nil && u.Scheme == "http" {
		out.AllowLoopbackHTTP = true // config admits http on loopback only
	}
	var err error
	if c.CA != "" {
		if out.RootCAs, err = loadPool(string(c.CA)); err != nil {
			return nil, err
		}
	}
	if in.ClientSecret != nil {
		if out.Client.Secret, err = in.ClientSecret.Read(); err != nil {
			return nil, fmt.Errorf("client secret: %w", err)
		}
	}
	if in.PrivateKey != "" {
		text, err := config.ReadFile(in.PrivateKey)
		if err != nil {
			return nil, fmt.Errorf("private key: %w", err)
		}
		if out.Client.Key, err = authn.ParsePrivateKey(text); err != nil {
			return nil, fmt.Errorf("%s: %w", in.PrivateKey, err)
		}
	}
	return out, nil
}

// addTokenDemands gives a route what it asks of a credential.
func addTokenDemands(r *config.Route, out *gate.Route) error {
	d, err := authn.NewDemand(authn.DemandConfig{
		Audiences: r.Audiences, ACR: r.ACR, MaxAge: r.MaxAge.Std(), TokenMaxAge: r.TokenMaxAge.Std(),
	})
	if err != nil {
		return fmt.Errorf("route %q: %w", r.Name, err)
	}
	if d != nil {
		out.Demands = append(out.Demands, d)
	}
	return nil
}

// metadataName is the route that serves the metadata of the nth resource.
func metadataName(n int) string {
	if n == 0 {
		return config.ReservedRoutes + "resource-metadata"
	}
	return fmt.Sprintf("%sresource-metadata.%d", config.ReservedRoutes, n+1)
}

// metadataRoutes are those that serve the metadata of the resources that the
// routes belong to, in the order of the file, and where each is served.
func metadataRoutes(f *config.File) (routes []*gate.Route, at map[string]string, err error) {
	at = map[string]string{}
	issuers := map[string]string{}
	for _, is := range f.Issuers {
		issuers[is.Name] = is.Issuer
	}
	var all []*gate.Resource
	var listeners [][]string
	for i := range f.Routes {
		r := &f.Routes[i]
		if r.Resource == "" {
			continue
		}
		n := slices.IndexFunc(all, func(o *gate.Resource) bool { return o.Identifier == r.Resource })
		if n < 0 {
			n = len(all)
			all, listeners = append(all, &gate.Resource{Identifier: r.Resource}), append(listeners, nil)
		}
		for _, a := range r.Authn {
			if is := issuers[a.Issuer()]; is != "" {
				all[n].Servers = addOnce(all[n].Servers, is)
			}
		}
		if r.DPoP != "" {
			all[n].DPoPAlgorithms = f.DPoP.Algorithms
			if len(f.DPoP.Algorithms) == 0 {
				all[n].DPoPAlgorithms = defaultProofAlgorithms()
			}
		}
		all[n].Scopes = addOnce(all[n].Scopes, r.Scopes...)
		listeners[n] = addOnce(listeners[n], r.Listeners...)
	}
	for n, res := range all {
		route, err := gate.MetadataRoute(metadataName(n), listeners[n], *res)
		if err != nil {
			return nil, nil, err
		}
		if at[res.Identifier], err = res.MetadataURL(); err != nil {
			return nil, nil, err
		}
		routes = append(routes, route)
	}
	return routes, at, nil
}

func addOnce(list []string, more ...string) []string {
	for _, s := range more {
		if !slices.Contains(list, s) {
			list = append(list, s)
		}
	}
	return list
}

// describeAuthn says one way to say who is asking to people.
func describeAuthn(a *config.Authn) string {
	switch {
	case a.Introspect != "":
		return "introspect " + a.Introspect
	case a.MTLS != nil:
		return "mtls " + a.MTLS.Name
	case a.APIKey != nil:
		return "API key"
	}
	if a.Session != "" {
		return "session " + a.Session
	}
	return "jwt " + a.JWT
}

// introspectionGauges are about questions to issuers, those in force now.
func (s *Server) introspectionGauges() []obs.Gauge {
	sum := func(of func(authn.IntrospectStatus) uint64) func() float64 {
		return func() float64 {
			n := uint64(0)
			for _, i := range s.now.Load().parts.introspectors {
				n += of(i.Status())
			}
			return float64(n)
		}
	}
	return []obs.Gauge{
		{Name: "gatebook_introspection_questions", Help: "Tokens that issuers were asked about since their configuration was loaded.", Read: sum(func(st authn.IntrospectStatus) uint64 { return st.Asked })},
		{Name: "gatebook_introspection_failures", Help: "Questions of these that were not answered.", Read: sum(func(st authn.IntrospectStatus) uint64 { return st.Failed })},
		{Name: "gatebook_introspection_away", Help: "Issuers that are not asked for the moment because the last questions failed.", Read: sum(func(st authn.IntrospectStatus) uint64 {
			if st.Away {
				return 1
			}
			return 0
		})},
	}
}
