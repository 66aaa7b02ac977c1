package server

import (
	"bytes"
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// parts are the live objects that a configuration asks for and the snapshot
// that joins them.
type parts struct {
	issuers  map[string]*authn.JWT // those of whom something takes JWTs
	pools    map[string]*upstream.Pool
	engine   *authz.Engine
	points   map[string]*authz.Point
	shadow   *authz.Shadow // nil: no policies are tried
	tried    *authz.ShadowCounts
	rules    *redact.Rules
	snapshot *gate.Snapshot
	identity *gate.IdentityKeys // nil: no upstream gets a signed identity
	token    tokenParts

	introspectors map[string]*authn.Introspector
	sessions      map[string]*authn.Sessions // by name
	guards        *guards
	dpop          *authn.DPoP   // nil: no route takes proofs
	nonces        *authn.Nonces // likewise
	reuse         *authn.Reuse  // nil: nothing is watched

	proofAlgorithms string // that proofs may be signed with, for challenges

	keys   *authn.APIKeys      // live state, whatever the configuration
	cache  *authn.Cache        // verdicts on tokens, whatever the configuration
	prints map[string][32]byte // of what an issuer, its key source or a pool was made from
}

// Kinds of prints.
const (
	printIssuer   = "issuer "
	printKeys     = "keys "
	printUpstream = "upstream "
	printReuse    = "token_reuse"
)

// build makes the parts. Every problem is an error; nothing is started. What is
// declared as before is taken over from prev with all that it has learned; at
// the start that has only what is not declared.
func build(f *config.File, b *book.Book, g *guards, log *slog.Logger, prev *parts) (*parts, error) {
	p := &parts{
		guards: g, issuers: map[string]*authn.JWT{}, introspectors: map[string]*authn.Introspector{},
		sessions: map[string]*authn.Sessions{}, pools: map[string]*upstream.Pool{}, points: map[string]*authz.Point{}, prints: map[string][32]byte{},
	}
	p.cache, p.tried, p.keys = prev.cache, prev.tried, prev.keys
	var errs []error
	if err := p.addPoints(f); err != nil {
		errs = append(errs, err)
	}
	if err := p.addPolicies(f, b, prev, log); err != nil {
		errs = append(errs, err)
	}
	if err := p.addTokenState(f, prev, log); err != nil {
		return nil, err
	}
	for i := range f.Issuers {
		if err := p.addIssuer(f, &f.Issuers[i], prev, log); err != nil {
			errs = append(errs, fmt.Errorf("issuer %q: %w", f.Issuers[i].Name, err))
		} else if err := p.addIntrospector(f, &f.Issuers[i], prev, log); err != nil {
			errs = append(errs, fmt.Errorf("issuer %q: %w", f.Issuers[i].Name, err))
		}
	}
	if err := p.addSessions(f, prev, log); err != nil {
		errs = append(errs, err)
	}
	if err := p.addBinding(f, prev); err != nil {
		errs = append(errs, err)
	}
	for name, u := range f.Upstreams {
		if err := p.addPool(f, name, &u, prev, log); err != nil {
			errs = append(errs, fmt.Errorf("upstream %q: %w", name, err))
		}
	}
	if err := p.addIdentityKeys(f, prev, log); err != nil {
		errs = append(errs, err)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	if err := p.addTokenService(f, b, prev, log); err != nil {
		return nil, fmt.Errorf("token_service: %w", err)
	}
	var err error
	if p.rules, err = redact.New(p.withTokenNames(f, redactConfig(f, p.issuers, p.sessions, p.engine, p.keys))); err != nil {
		return nil, fmt.Errorf("redact: %w", err)
	}
	// The last thing that can fail: nothing decides before it can be looked up.
	if err := p.archive(f); err != nil {
		return nil, err
	}
	p.snapshot, err = p.buildSnapshot(f, b)
	return p, err
}

func (p *parts) addIssuer(f *config.File, c *config.Issuer, prev *parts, log *slog.Logger) error {
	pass := p.passedClaims(f, c.Name)
	whole, err := f.Fingerprint(&struct {
		Issuer *config.Issuer `key:"issuer"`
		Pass   []string       `key:"pass"`
	}{c, pass})
	if err != nil {
		return err
	}
	source, err := f.Fingerprint(&struct {
		Issuer string       `key:"issuer"`
		JWKS   *config.JWKS `key:"jwks"`
		CA     config.Path  `key:"ca"`
		Own    bool         `key:"own"`
	}{c.Issuer, c.JWKS, c.CA, p.ownKeys(f, c) != nil})
	if err != nil {
		return err
	}
	p.prints[printIssuer+c.Name], p.prints[printKeys+c.Name] = whole, source
	if !f.Signed(c.Name) {
		return nil // nothing takes JWTs of it: nobody needs its keys
	}
	was := prev.issuers[c.Name]
	if was != nil && prev.prints[printIssuer+c.Name] == whole {
		p.issuers[c.Name] = was
		return nil
	}
	own := p.ownKeys(f, c)
	j, err := buildIssuer(c, pass, own, p.cache, p.guards.slots, log)
	if err != nil {
		return err
	}
	if was != nil && prev.prints[printKeys+c.Name] == source {
		j.Inherit(was)
	} else if was != nil && j.ID() == was.ID() {
		// The same rules with keys that others vouch for: what was found of
		// tokens with the old keys must not be believed.
		if j, err = buildIssuer(c, pass, own, authn.NewCache(0), p.guards.slots, log); err != nil {
			return err
		}
	}
	p.issuers[c.Name] = j
	return nil
}

func (p *parts) addPool(f *config.File, name string, u *config.Upstream, prev *parts, log *slog.Logger) error {
	print, err := f.Fingerprint(u)
	if err != nil {
		return err
	}
	p.prints[printUpstream+name] = print
	if was := prev.pools[name]; was != nil && prev.prints[printUpstream+name] == print {
		p.pools[name] = was
		return nil
	}
	pool, err := upstream.NewPool(poolConfig(name, u, log))
	if err == nil {
		p.pools[name] = pool
	}
	return err
}

// recordedClaims are those that records of routes with this issuer keep.
func recordedClaims(f *config.File, issuer string) []string {
	var names []string
	for _, r := range f.Routes {
		if slices.ContainsFunc(r.Authn, func(a config.Authn) bool { return a.Issuer() == issuer }) {
			names = append(names, r.Record.Claims...)
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func buildIssuer(c *config.Issuer, pass []string, own func(context.Context) ([]byte, error), cache *authn.Cache, slots *authn.Slots, log *slog.Logger) (*authn.JWT, error) {
	keys, err := keySource(c)
	if err != nil {
		return nil, err
	}
	keys.Own = own
	if own != nil { // asking costs no request, and a new key may sign at once
		keys.Refresh, keys.MinInterval = time.Second, 5*time.Millisecond
	}
	rules := tokenRules(c, pass)
	rules.Keys, rules.Cache, rules.Slots, rules.Logger = keys, cache, slots, log
	return authn.NewJWT(rules)
}

// keySource is where an issuer's keys are.
func keySource(c *config.Issuer) (keys authn.KeySource, err error) {
	where := c.Issuer
	keys.MinInterval = c.KeyInterval.Std()
	if c.JWKS != nil {
		keys.URL, keys.File = c.JWKS.URL, string(c.JWKS.File)
		where = cmpOr(keys.URL, where)
	}
	if u, err := url.Parse(where); err == nil && u.Scheme == "http" {
		keys.AllowLoopbackHTTP = true // config admits http on loopback only
	}
	if c.CA != "" {
		if keys.RootCAs, err = loadPool(string(c.CA)); err != nil {
			return keys, err
		}
	}
	return keys, nil
}

// tokenRules is what an issuer's tokens are like.
func tokenRules(c *config.Issuer, pass []string) authn.JWTConfig {
	rules := c.Rules()
	return authn.JWTConfig{
		Name: c.Name, Issuer: c.Issuer, Audiences: c.Audiences, Algorithms: rules.Algorithms,
		Types: rules.Types, AllowNoType: rules.AllowNoType, MaxLifetime: rules.MaxLifetime, Skew: c.Skew.Std(),
		RolesClaim: rules.RolesClaim, GroupsClaim: rules.GroupsClaim, TenantClaim: rules.TenantClaim, ScopeClaim: rules.ScopeClaim, AudienceClaim: rules.AudienceClaim, ClientClaims: rules.ClientClaims,
		RequireClaims: rules.RequireClaims, RefuseClaims: rules.RefuseClaims, PassClaims: pass,
	}
}

func cmpOr(s, fallback string) string {
	if s == "" {
		return fallback
	}
	return s
}

func loadPool(file string) (*x509.CertPool, error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
	}
	return pool, nil
}

func poolConfig(name string, u *config.Upstream, log *slog.Logger) upstream.Config {
	c := upstream.Config{
		Name: name, Targets: u.Targets, Balance: u.Balance, PreserveHost: u.PreserveHost, MaxIdlePerTarget: u.MaxIdle, Logger: log,
		ConnectTimeout: u.Timeouts.Connect.Std(), ResponseTimeout: u.Timeouts.Response.Std(), IdleBody: u.Timeouts.IdleBody.Std(),
		Ejection: upstream.Ejection{Failures: u.Ejection.Failures, BaseTime: u.Ejection.For.Std()},
	}
	if u.Ejection.Failures == 0 {
		c.Ejection.Failures = -1 // never
	}
	if h := u.Health; h != nil {
		c.Health = upstream.Health{
			Path: h.Path, Interval: h.Interval.Std(), Timeout: h.Timeout.Std(),
			Healthy: h.Healthy, Unhealthy: h.Unhealthy, Status: h.Status,
		}
	}
	if u.TLS != nil {
		c.CAFile, c.ServerName = string(u.TLS.CA), u.TLS.ServerName
	}
	return c
}

// BuildEngine loads the policies and roles of a configuration. Policy tests
// run; a bundle whose tests fail is refused.
func BuildEngine(f *config.File) (*authz.Engine, error) {
	c := policyConfig(f)
	if f.Policies != nil {
		c.Dir, c.Schema, c.Tests = string(f.Policies.Dir), string(f.Policies.Schema), string(f.Policies.Tests)
	}
	return authz.Load(c)
}

// policyConfig is what all policies of a configuration share: roles, routes and
// headers.
func policyConfig(f *config.File) authz.Config {
	c := authz.Config{Roles: map[string]authz.Role{}}
	if f.Policies != nil {
		c.Headers = f.Policies.Headers
	}
	for name, r := range f.Roles {
		c.Roles[name] = authz.Role{Allow: r.Allow}
	}
	for _, r := range f.Routes {
		c.Routes = append(c.Routes, authz.Route{Name: r.Name, Methods: r.Methods, Template: r.Path, Anonymous: r.Public})
	}
	return c
}

func redactConfig(f *config.File, issuers map[string]*authn.JWT, sessions map[string]*authn.Sessions, engine *authz.Engine, keys *authn.APIKeys) redact.Config {
	c := redact.Config{
		ClientPrefix4: keepBits(f.Redact.ClientPrefix.V4), ClientPrefix6: keepBits(f.Redact.ClientPrefix.V6),
		QueryKeys: f.Redact.QueryKeys, Headers: map[string][]string{}, Claims: map[string][]string{},
	}
	named := engine.Named()
	for _, r := range f.Routes {
		c.Headers[r.Name], c.Claims[r.Name] = r.Record.Headers, keptClaims(r.Record.Claims, named)
		c.Names.Routes = append(c.Names.Routes, r.Name)
		c.Names.Templates = append(c.Names.Templates, r.Path)
		if r.Host != "" {
			c.Names.Hosts = append(c.Names.Hosts, r.Host)
			c.Names.SNI = append(c.Names.SNI, r.Host)
		}
	}
	metadata, _, _ := metadataRoutes(f) // buildSnapshot reports what is wrong
	for _, r := range metadata {
		c.Names.Routes, c.Names.Templates = append(c.Names.Routes, r.Name), append(c.Names.Templates, r.Path)
		c.Names.Hosts, c.Names.SNI = append(c.Names.Hosts, r.Host), append(c.Names.SNI, r.Host)
	}
	for _, w := range identityPlaces(f) {
		c.Names.Routes, c.Names.Templates = append(c.Names.Routes, w.name), append(c.Names.Templates, identityPath)
	}
	for i := range f.Sessions {
		s := &f.Sessions[i]
		for _, r := range gate.SessionRoutes(config.ReservedRoutes+"session."+s.Name, s.Host(), nil, sessions[s.Name]) {
			c.Names.Routes, c.Names.Templates = append(c.Names.Routes, r.Name), append(c.Names.Templates, r.Path)
		}
		c.Names.Hosts, c.Names.SNI = append(c.Names.Hosts, s.Host()), append(c.Names.SNI, s.Host())
		c.Names.Clients = append(c.Names.Clients, s.ClientID)
	}
	for role := range f.Roles {
		c.Names.Roles = append(c.Names.Roles, role)
	}
	c.Names.Roles = append(c.Names.Roles, keepable(named.Roles)...)
	slices.Sort(c.Names.Roles)
	addMTLSNames(f, &c.Names)
	c.Names.Roles = slices.Compact(c.Names.Roles)
	c.Names.ACR, c.Names.AMR = keepable(named.ACR), keepable(named.AMR)
	for _, i := range f.Issuers {
		c.Names.Issuers = append(c.Names.Issuers, i.Name)
		c.Names.Clients = append(c.Names.Clients, i.Clients...)
	}
	c.Names.Issuers = append(c.Names.Issuers, f.APIKeys.Issuer)
	loaded := make([]keyHolder, 0, len(issuers)+len(sessions))
	for _, j := range issuers {
		loaded = append(loaded, j)
	}
	for _, s := range sessions {
		loaded = append(loaded, s)
	}
	c.Names.Loaded = func(what redact.Name, value string) bool {
		switch {
		case what == redact.ClientName:
			return keys.Knows(value)
		case what != redact.KIDName:
			return false
		case keys.KnowsSecret(value):
			return true
		}
		return slices.ContainsFunc(loaded, func(j keyHolder) bool { return j.HasKey(value) })
	}
	return c
}

// keyHolder knows the ids of keys that are loaded.
type keyHolder interface{ HasKey(kid string) bool }

// keepBits translates "no bits" of the file into redact's form.
func keepBits(n int) int {
	if n == 0 {
		return -1
	}
	return n
}

func (p *parts) buildSnapshot(f *config.File, b *book.Book) (*gate.Snapshot, error) {
	of := [][]byte{[]byte(p.engine.SetHash()), []byte(p.rules.Digest())}
	if p.shadow != nil {
		of = append(of, []byte(p.shadow.Set()))
	}
	id := f.Digest(of...)
	c := gate.SnapshotConfig{
		ID: id, Node: f.Node, Recorder: b.Recorder(p.rules, id),
		RecordBits4: f.Redact.ClientPrefix.V4, RecordBits6: f.Redact.ClientPrefix.V6,
		AcceptRequestIDs: f.RequestID.AcceptFrom == config.AcceptTrusted,
	}
	c.Failures, c.Alerts = failureLimits(&f.Detect), alertRules(&f.Detect)
	for _, l := range f.Listen {
		if !l.RedirectToHTTPS {
			c.Listeners = append(c.Listeners, gate.Listener{Name: l.Name, Trusted: l.Trusted, ClientCert: l.ClientCert, ClientAuth: clientAuthOf(&l)})
		}
	}
	limits := map[string]*ratelimit.Rule{}
	for name, l := range f.Limits {
		limits[name] = &ratelimit.Rule{Name: name, Key: l.Key, Rate: l.Rate.Count, Per: l.Rate.Per, Burst: l.Burst}
	}
	metadata, at, err := metadataRoutes(f)
	if err != nil {
		return nil, err
	}
	for i := range f.Routes {
		r, err := p.buildRoute(f, &f.Routes[i], limits)
		if err != nil {
			return nil, err
		}
		r.Challenge.ResourceMetadata = at[f.Routes[i].Resource]
		p.demandUnrevoked(&f.Routes[i], r)
		c.Routes = append(c.Routes, r)
	}
	c.Routes = append(append(c.Routes, metadata...), p.identityRoutes(f)...)
	c.Routes = append(c.Routes, p.tokenRoutesOf(f, limits)...)
	c.Routes = append(c.Routes, p.sessionRoutes(f)...)
	return gate.NewSnapshot(c)
}

func (p *parts) buildRoute(f *config.File, r *config.Route, limits map[string]*ratelimit.Rule) (*gate.Route, error) {
	out := &gate.Route{
		Name: r.Name, Listeners: r.Listeners, Host: r.Host, Path: r.Path, Methods: r.Methods,
		Public: r.Public, Engine: p.authorizer(f, r.Name), Shadow: p.shadow, Scopes: r.Scopes,
		Upstream: p.pools[r.Upstream], UpstreamName: r.Upstream,
		MaxBody: int64(r.MaxBody), Audit: auditOf(r.Audit, r.Record.Phases),
		RecordHeaders: lower(r.Record.Headers), RecordClaims: r.Record.Claims,
		ObserveForms: r.PathRules.Strict == config.StrictObserve, PassCredential: r.PassCredential, Identity: p.identityOf(f, r),
	}
	if named := p.engine.Named(); !r.Public {
		out.RecordScopes, out.RecordAge = named.Scopes, named.Age
	}
	for _, form := range r.PathRules.Allow {
		out.Forms |= canon.PathForm(form)
	}
	if err := p.buildIdentity(r, out); err != nil {
		return nil, err
	}
	p.bind(f, r, out)
	for _, name := range r.Limits {
		out.Limits = append(out.Limits, limits[name])
	}
	return out, nil
}

func lower(names []string) []string {
	out := make([]string, len(names))
	for i, n := range names {
		out[i] = strings.ToLower(n)
	}
	return out
}

func auditOf(a config.Audit, phases bool) gate.Audit {
	out := gate.Audit{Phases: phases}
	switch a.Commit {
	case config.CommitDurable:
		out.Level = record.Durable
	case config.CommitQueued:
		out.Level = record.Queued
	}
	switch a.Intent {
	case config.IntentUnsafe:
		out.Intent = gate.IntentUnsafe
	case config.IntentNone:
		out.Intent = gate.IntentNone
	}
	if a.OnFailure == config.OnFailureAllow {
		out.OnFailure = gate.Allow
	}
	return out
}

// Describe is a line for each thing that a configuration would serve, for
// people who check it.
func Describe(f *config.File) string {
	var b bytes.Buffer
	for _, r := range f.Routes {
		who := "public"
		if !r.Public {
			var names []string
			for _, a := range r.Authn {
				names = append(names, describeAuthn(&a))
			}
			who = strings.Join(names, ", ")
		}
		fmt.Fprintf(&b, "%-20s %s%s -> %s (%s)\n", r.Name, r.Host, r.Path, r.Upstream, who)
	}
	return b.String()
}
