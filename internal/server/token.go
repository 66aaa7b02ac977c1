package server

import (
	"context"
	"crypto/sha256"
	"encoding/pem"
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
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/token"
)

// tokenParts are what the token service is made of.
type tokenParts struct {
	store   kv.Store
	state   *token.State // nil: the service was never on
	service *token.Service
	name    string                // of the service as an issuer
	clients map[string]*authn.JWT // judges of client assertions, by client
	signers map[string][32]byte   // what these were made from
}

// tokenRoutes begins the names of the service's routes.
const tokenRoutes = config.ReservedRoutes

// addTokenState opens what of the service lives on, before issuers are made
// that may take their keys from it.
func (p *parts) addTokenState(f *config.File, prev *parts, log *slog.Logger) error {
	p.token = tokenParts{store: prev.token.store, state: prev.token.state, clients: map[string]*authn.JWT{}, signers: map[string][32]byte{}}
	t := f.TokenService
	if t == nil {
		return nil
	}
	terms := token.Terms{Algorithm: t.Algorithm, Rotate: t.RotateKeys.Std()}
	if p.token.state != nil {
		return nil // adopted with the snapshot
	}
	if p.token.store == nil {
		return errors.New("token_service: there is no state to keep its keys in")
	}
	var err error
	p.token.state, err = token.OpenState(context.Background(), p.token.store, terms, nil, log)
	return err
}

// ownKeys are the key set of the token service, if the issuer is it.
func (p *parts) ownKeys(f *config.File, c *config.Issuer) func(context.Context) ([]byte, error) {
	if f.TokenService == nil || c.Issuer != f.TokenService.Issuer || c.JWKS != nil {
		return nil
	}
	state := p.token.state
	return func(context.Context) ([]byte, error) { return state.JWKS(), nil }
}

// addTokenService makes the service of the configuration.
func (p *parts) addTokenService(f *config.File, b *book.Book, prev *parts, log *slog.Logger) error {
	t := f.TokenService
	if t == nil {
		return nil
	}
	c := token.Config{
		Issuer: t.Issuer, Name: config.TokenServiceName, Lifetime: t.Lifetime.Std(), State: p.token.state,
		Hash: b.TokenHash, Log: log, ProofAlgorithms: proofAlgorithms(),
		Revoked: func(ctx context.Context, who *authn.Principal) error { return p.guards.revoked.Check(ctx, nil, who) },
		Alert: func(ctx context.Context, client, request string) error {
			return noteTokenReuse(ctx, b, client, request)
		},
	}
	var err error
	if c.Proofs, err = authn.NewDPoP(authn.DPoPConfig{Origins: []string{t.Issuer}, Algorithms: c.ProofAlgorithms, Once: p.token.state, Slots: p.guards.slots}); err != nil {
		return err
	}
	for i := range f.Issuers {
		is := &f.Issuers[i]
		if is.Issuer == t.Issuer {
			c.Name = is.Name
		}
		c.Subjects = append(c.Subjects, token.Subject{
			Name: is.Name, Type: token.TypeAccessToken, Verify: bearer(p.judge(is.Name)), Plain: t.PlainSubjects == is.Name, Offline: true,
		})
	}
	p.token.name = c.Name
	if slices.ContainsFunc(t.Clients, func(cl config.TokenClient) bool { return cl.APIKeys }) {
		// A form has one place for a key, so it is judged as a bearer token.
		k, err := authn.NewAPIKey(p.keys, []string{"authorization"})
		if err != nil {
			return err
		}
		c.Subjects = append(c.Subjects, token.Subject{Name: f.APIKeys.Issuer, Type: token.TypeAPIKey, Verify: bearer(k)})
	}
	for i := range t.Clients {
		cl, err := p.tokenClient(f, &t.Clients[i], prev, log)
		if err != nil {
			return fmt.Errorf("client %q: %w", t.Clients[i].ID, err)
		}
		c.Clients = append(c.Clients, *cl)
	}
	p.token.service, err = token.New(c)
	return err
}

func proofAlgorithms() []string { return []string{"ES256", "EdDSA", "Ed25519"} }

// judge is who judges an issuer's tokens: the issuer itself if it can be asked.
func (p *parts) judge(issuer string) gate.Authenticator {
	if i := p.introspectors[issuer]; i != nil {
		return i
	}
	return p.issuers[issuer]
}

// bearer judges a token as if it had come with a request.
func bearer(a gate.Authenticator) token.Verify {
	return func(ctx context.Context, raw string) (*authn.Principal, error) {
		return a.Authenticate(ctx, &canon.Request{Fields: []canon.Field{{Name: "authorization", Value: "Bearer " + raw}}})
	}
}

// noteTokenReuse records at once that a refresh token came again after it had
// been replaced.
func noteTokenReuse(ctx context.Context, b *book.Book, client, request string) error {
	r := reason.TokenReuseDetected
	return b.Note(ctx, &record.Record{
		Kind: record.KindAlert, Outcome: record.Failure, Authn: record.Authn{Method: record.None, Client: client},
		Error: record.Error{Origin: r.Origin(), Reason: string(r)}, Links: []string{request},
		Event: record.Event{Name: eventReuse, Cause: "refresh"},
	})
}

func (p *parts) tokenClient(f *config.File, c *config.TokenClient, prev *parts, log *slog.Logger) (*token.Client, error) {
	out := &token.Client{
		ID: c.ID, Method: token.Method(c.Auth), Audiences: c.Audiences, Scopes: c.Scopes, Roles: c.Roles, Subjects: c.Issuers,
		Lifetime: c.Lifetime.Std(), Offline: c.Offline.Std(), Inspects: c.Introspect, BoundMTLS: c.Bound,
	}
	if c.APIKeys {
		out.Subjects = append(slices.Clone(c.Issuers), f.APIKeys.Issuer)
	}
	for _, g := range c.Grants {
		if g == config.GrantTokenExchange {
			g = string(token.Exchange)
		}
		out.Grants = append(out.Grants, token.Grant(g))
	}
	switch {
	case c.Secret != nil:
		secret, err := c.ClientSecret()
		if err != nil {
			return nil, err
		}
		out.Secret = sha256.Sum256([]byte(secret))
	case c.Keys != nil:
		j, err := p.assertions(f, c, prev, log)
		if err != nil {
			return nil, err
		}
		out.Assertion = bearer(j)
	case c.Certificate != "":
		h := config.ParseHolder(c.Certificate)
		out.Holder = token.Holder{Kind: h.Kind, Name: h.Name}
	case c.Own != "":
		var err error
		if out.Prints, err = certificatePrints(string(c.Own)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// assertionLifetime is how long a client may make its assertions good for.
const assertionLifetime = 10 * time.Minute

// assertions makes the judge of a client's assertions: tokens that the client
// issued about itself for the service.
func (p *parts) assertions(f *config.File, c *config.TokenClient, prev *parts, log *slog.Logger) (*authn.JWT, error) {
	print, err := f.Fingerprint(&struct {
		Client  *config.TokenClient `key:"client"`
		Service string              `key:"service"`
	}{c, f.TokenService.Issuer})
	if err != nil {
		return nil, err
	}
	p.token.signers[c.ID] = print
	if was := prev.token.clients[c.ID]; was != nil && prev.token.signers[c.ID] == print {
		p.token.clients[c.ID] = was
		return was, nil
	}
	keys := authn.KeySource{URL: c.Keys.URL, File: string(c.Keys.File)}
	if u, err := url.Parse(keys.URL); err == nil && u.Scheme == "http" {
		keys.AllowLoopbackHTTP = true // config admits http on loopback only
	}
	j, err := authn.NewJWT(authn.JWTConfig{
		Name: c.ID, Issuer: c.ID, Audiences: []string{f.TokenService.Issuer}, Algorithms: token.AssertionAlgorithms(),
		Types: []string{"JWT", "client-authentication+jwt"}, AllowNoType: true, MaxLifetime: assertionLifetime, Skew: 30 * time.Second,
		Keys: keys, Slots: p.guards.slots, Logger: log,
	})
	if err != nil {
		return nil, err
	}
	p.token.clients[c.ID] = j
	return j, nil
}

// certificatePrints are the SHA-256 of the certificates in a PEM file.
func certificatePrints(file string) (prints [][sha256.Size]byte, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	for block, rest := pem.Decode(b); block != nil; block, rest = pem.Decode(rest) {
		if block.Type == "CERTIFICATE" {
			prints = append(prints, sha256.Sum256(block.Bytes))
		}
	}
	if len(prints) == 0 {
		return nil, fmt.Errorf("%s holds no certificate in PEM form", file)
	}
	return prints, nil
}

// withTokenNames lets records name what the service has names for.
func (p *parts) withTokenNames(f *config.File, c redact.Config) redact.Config {
	t, n := f.TokenService, &c.Names
	if t == nil {
		return c
	}
	n.Issuers = append(n.Issuers, p.token.name)
	for _, c := range t.Clients {
		n.Clients = append(n.Clients, c.ID)
	}
	for _, e := range p.token.service.Endpoints() {
		n.Routes, n.Templates = append(n.Routes, tokenRoutes+e.Name), append(n.Templates, e.Path)
	}
	host := tokenHost(f)
	n.Hosts, n.SNI = append(n.Hosts, host), append(n.SNI, host)
	return c
}

// tokenHost is the host at which the service answers.
func tokenHost(f *config.File) string {
	u, err := url.Parse(f.TokenService.Issuer)
	if err != nil {
		return ""
	}
	return strings.Trim(u.Hostname(), "[]")
}

// tokenRoutesOf are the routes of the service.
func (p *parts) tokenRoutesOf(f *config.File, limits map[string]*ratelimit.Rule) (routes []*gate.Route) {
	if p.token.service == nil {
		return nil
	}
	t := f.TokenService
	for _, e := range p.token.service.Endpoints() {
		r := &gate.Route{
			Name: tokenRoutes + e.Name, Listeners: t.Listeners, Host: tokenHost(f), Path: e.Path, Methods: []string{e.Method},
			Public: true, Responder: e.Respond, Kind: record.KindToken, MaxBody: e.MaxBody, Audit: auditOf(t.Audit, false),
		}
		for _, name := range t.Limits {
			r.Limits = append(r.Limits, limits[name])
		}
		routes = append(routes, r)
	}
	return routes
}

// demandUnrevoked makes a route that takes tokens of the service refuse those
// that were revoked.
func (p *parts) demandUnrevoked(r *config.Route, out *gate.Route) {
	own := func(a config.Authn) bool { return a.Issuer() == p.token.name }
	if p.token.service != nil && !out.Public && slices.ContainsFunc(r.Authn, own) {
		out.Demands = append(out.Demands, token.Demand{State: p.token.state, Issuer: p.token.name})
	}
}
