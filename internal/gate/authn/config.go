package authn

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// JWTConfig describes one issuer and what its access tokens look like. Name,
// Issuer, Audiences and Algorithms must be set: an unset one is an error, never
// "anything goes". Claim names are exact member names, or JSON pointers if they
// begin with '/'.
type JWTConfig struct {
	Name       string   // configured name, appears in records instead of the URL
	Issuer     string   // compared with iss byte by byte
	Audiences  []string // the token must name at least one
	Algorithms []string // RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA

	// Types are the media types accepted in the header's typ, in any case and
	// with or without "application/". None means at+jwt (RFC 9068), or no typ
	// at all if AllowNoType is set.
	Types       []string
	AllowNoType bool

	MaxLifetime time.Duration // exp - iat; whole seconds; default 15 min
	MaxAge      time.Duration // now - iat; 0: only the lifetime bounds it
	Skew        time.Duration // allowance for the issuer's clock; default 10 s, at most 60 s

	RolesClaim    string // "": tokens give no roles
	GroupsClaim   string // "": tokens give no groups
	ScopeClaim    string // default scope
	AudienceClaim string // default aud
	TenantClaim   string // "": tokens give no tenant
	// ClientClaims name the client id; the first one present counts. Default
	// client_id, azp.
	ClientClaims []string
	// RequireClaims must be present with one of the given values, or with any
	// value but null if none is given.
	RequireClaims map[string][]string
	// RefuseClaims mark tokens that are no access tokens. nil means nonce,
	// at_hash, c_hash (ID tokens) and events (logout and security events); an
	// empty slice means none.
	RefuseClaims []string
	// PassClaims are copied to Principal.Claims if they are short strings,
	// integers or booleans.
	PassClaims []string

	Keys KeySource

	// Cache remembers verdicts; it may be shared between issuers. nil: a
	// private one of the default size.
	Cache *Cache
	// Verifiers is how many signatures may be checked at the same time; 0:
	// GOMAXPROCS. A request waits at most Keys.Timeout for its turn.
	Verifiers int
	// Slots bound the same together with other methods, in the place of
	// Verifiers; nil: slots of its own.
	Slots *Slots

	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default: discards
}

// Limits of the clock settings.
const (
	defaultLifetime = 15 * time.Minute
	defaultSkew     = 10 * time.Second
	maxSkew         = 60 * time.Second
)

func (c *JWTConfig) setDefaults() {
	if c.MaxLifetime == 0 {
		c.MaxLifetime = defaultLifetime
	}
	if c.Skew == 0 {
		c.Skew = defaultSkew
	}
	if len(c.Types) == 0 && !c.AllowNoType {
		c.Types = []string{"at+jwt"}
	}
	if c.ScopeClaim == "" {
		c.ScopeClaim = "scope"
	}
	if c.AudienceClaim == "" {
		c.AudienceClaim = "aud"
	}
	if c.ClientClaims == nil {
		c.ClientClaims = []string{"client_id", "azp"}
	}
	if c.RefuseClaims == nil {
		c.RefuseClaims = []string{"nonce", "at_hash", "c_hash", "events"}
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	c.Keys.setDefaults()
}

func (c *JWTConfig) validate() error {
	if err := c.validateRules(); err != nil {
		return err
	}
	switch {
	case len(c.Algorithms) == 0:
		return errors.New("algorithms are not set; name those that the issuer signs with")
	case slices.Contains(c.Types, ""):
		return errors.New("types hold an empty one; set AllowNoType to take tokens without typ")
	case c.Verifiers < 0:
		return errors.New("verifiers must not be negative")
	}
	return c.Keys.validate(c.Issuer)
}

// validateRules checks what holds for every token, signed or not.
func (c *JWTConfig) validateRules() error {
	switch {
	case c.Name == "":
		return errors.New("issuer has no name")
	case c.Issuer == "":
		return errors.New("issuer identifier is not set; it must equal the token's iss")
	case len(c.Audiences) == 0 || slices.Contains(c.Audiences, ""):
		return errors.New("audiences are not set or hold an empty one; name the audience that this API has at the issuer")
	case c.MaxLifetime < time.Second || c.MaxLifetime%time.Second != 0:
		return errors.New("max_lifetime must be whole seconds, at least 1 s")
	case c.MaxAge < 0:
		return errors.New("max_age must not be negative")
	case c.Skew < 0 || c.Skew > maxSkew:
		return fmt.Errorf("skew must be between 0 and %s", maxSkew)
	}
	return nil
}

// permitted resolves the configured algorithm names.
func (c *JWTConfig) permitted() ([]*algorithm, error) {
	var list []*algorithm
	for _, name := range c.Algorithms {
		a := algorithmByName(name)
		if a == nil {
			return nil, fmt.Errorf("algorithm %q is not one of RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA", name)
		}
		if slices.Contains(list, a) {
			return nil, fmt.Errorf("algorithm %q is named twice", name)
		}
		list = append(list, a)
	}
	return list, nil
}

// profile compiles what the claims must look like.
func (c *JWTConfig) profile() (*profile, error) {
	p := &profile{
		audiences:   make(map[string]struct{}, len(c.Audiences)),
		maxLifetime: c.MaxLifetime,
		maxAge:      c.MaxAge,
		skew:        c.Skew,
	}
	for _, a := range c.Audiences {
		p.audiences[a] = struct{}{}
	}
	known := slices.Clone(claimNames)
	var errs []error
	path := func(name string) claimPath {
		cp, err := parseClaimPath(name)
		errs = append(errs, err)
		if len(cp) > 0 {
			known = append(known, cp[0])
		}
		return cp
	}
	named := func(what string, names []string) (list []claimPath) {
		for _, n := range names {
			if n == "" {
				errs = append(errs, fmt.Errorf("%s hold an empty name", what))
			}
			list = append(list, path(n))
		}
		return list
	}
	p.audience, p.roles, p.scope, p.ten = path(c.AudienceClaim), path(c.RolesClaim), path(c.ScopeClaim), path(c.TenantClaim)
	p.groups = path(c.GroupsClaim)
	p.clients = named("client claims", c.ClientClaims)
	p.refuse = named("refused claims", c.RefuseClaims)
	for i, cp := range named("passed claims", c.PassClaims) {
		p.pass = append(p.pass, namedPath{c.PassClaims[i], cp})
	}
	for name, values := range c.RequireClaims {
		if name == "" {
			errs = append(errs, errors.New("required claims hold an empty name"))
		}
		p.require = append(p.require, requirement{path(name), slices.Clone(values)})
	}
	p.names = newNameSet(known...)
	return p, errors.Join(errs...)
}

// id is a digest of everything that a verdict depends on, so that a cached one
// never answers for another configuration.
func (c *JWTConfig) id() ([sha256.Size]byte, error) {
	b, err := json.Marshal(struct {
		Version                                            int
		Name, Issuer                                       string
		Audiences, Algorithms, Types                       []string
		AllowNoType                                        bool
		MaxLifetime, MaxAge, Skew                          time.Duration
		RolesClaim, ScopeClaim, AudienceClaim, TenantClaim string
		GroupsClaim                                        string
		ClientClaims                                       []string
		RequireClaims                                      map[string][]string
		RefuseClaims, PassClaims                           []string
		KeysURL, KeysFile                                  string
	}{
		1, c.Name, c.Issuer, c.Audiences, c.Algorithms, c.Types, c.AllowNoType,
		c.MaxLifetime, c.MaxAge, c.Skew, c.RolesClaim, c.ScopeClaim, c.AudienceClaim, c.TenantClaim, c.GroupsClaim,
		c.ClientClaims, c.RequireClaims, c.RefuseClaims, c.PassClaims, c.Keys.URL, c.Keys.File,
	})
	return sha256.Sum256(b), err
}
