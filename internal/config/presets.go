package config

import (
	"slices"
	"strings"
	"time"
)

// AbsentType stands in Issuer.Types for tokens without a typ header.
const AbsentType = "absent"

// Rules is what sets the access tokens of one product apart from its other
// tokens, and where they keep what we read. Names of claims are exact, or JSON
// pointers if they begin with a slash.
type Rules struct {
	Types         []string            // values of the typ header
	AllowNoType   bool                // accept tokens without typ header
	Algorithms    []string            // signature algorithms
	MaxLifetime   time.Duration       // exp minus iat
	AudienceClaim string              // claim that names whom the token is for
	ClientClaims  []string            // claims that may name the client; the first one present counts
	ScopeClaim    string              // claim with scopes: text with spaces or a list
	RolesClaim    string              // claim with a list of roles
	GroupsClaim   string              // claim with a list of groups; "": none
	TenantClaim   string              // claim that names the tenant; "": none
	RequireClaims map[string][]string // claims that must be there, with one of these values; none: any
	RefuseClaims  []string            // claims that mark an ID or logout token
}

// preset is one row of the table of products.
type preset struct {
	name   string
	rules  Rules
	why    string // what in it is peculiar to the product; for the documentation
	refuse string // why no token of the product can be accepted; "" if some can
}

// presets returns the table. Facts, by product:
//
//   - rfc9068: RFC 9068 section 2.1 (typ), 2.2 (client_id and aud required),
//     2.2.3.1 (roles), 4 (validation).
//   - keycloak: typ header JWT for all tokens; the claim typ tells Bearer from
//     ID and Refresh. An access token may carry nonce where the mapper "nonce
//     backwards compatible" is on, so nonce does not count as a mark here.
//   - entra: typ header JWT for all tokens. In v2 an ID token of the API's own
//     registration has the same audience as its access tokens; azp is only in
//     access tokens. Lifetimes are 60 to 90 minutes, and iat is set back by 5.
//   - auth0: typ JWT in the default profile (azp), at+jwt in the RFC 9068
//     profile (client_id). Default lifetime 24 hours.
//   - okta: custom authorization servers send no typ header; cid is only in
//     access tokens; scp is a list. Tokens of the org authorization server are
//     opaque by contract and have another typ.
//   - cognito: no typ header, no aud; client_id stands for it; token_use tells
//     access from id.
//   - google: access tokens are opaque; the JWTs sent from service to service
//     are ID tokens.
func presets() []preset {
	idToken := []string{"nonce", "at_hash", "c_hash", "events"}
	common := []string{"RS256", "PS256", "ES256", "EdDSA"}
	return []preset{
		{
			name: "rfc9068",
			rules: Rules{
				Types: []string{"at+jwt"}, Algorithms: common, MaxLifetime: time.Hour,
				AudienceClaim: "aud", ClientClaims: []string{"client_id"},
				ScopeClaim: "scope", RolesClaim: "/roles",
				RequireClaims: map[string][]string{"client_id": nil}, RefuseClaims: idToken,
			},
			why: "The standard profile of JWT access tokens.",
		},
		{
			name: "keycloak",
			rules: Rules{
				Types: []string{"JWT", "at+jwt"}, Algorithms: common, MaxLifetime: time.Hour,
				AudienceClaim: "aud", ClientClaims: []string{"azp", "client_id"},
				ScopeClaim: "scope", RolesClaim: "/realm_access/roles", GroupsClaim: "/groups",
				RequireClaims: map[string][]string{"typ": {"Bearer"}}, RefuseClaims: []string{"at_hash", "c_hash", "events"},
			},
			why: "The claim typ must be Bearer. By default aud is only account: add an audience mapper to the client scope. Client roles are at /resource_access/CLIENT/roles.",
		},
		{
			name: "entra",
			rules: Rules{
				Types: []string{"JWT"}, Algorithms: []string{"RS256"}, MaxLifetime: 100 * time.Minute,
				AudienceClaim: "aud", ClientClaims: []string{"azp"},
				ScopeClaim: "scp", RolesClaim: "/roles", GroupsClaim: "/groups", TenantClaim: "/tid",
				RequireClaims: map[string][]string{"ver": {"2.0"}, "azp": nil}, RefuseClaims: idToken,
			},
			why: "Version 2.0 tokens only, issuer https://login.microsoftonline.com/TENANT/v2.0: set requestedAccessTokenVersion to 2 in the API's manifest. The audience is the API's client id.",
		},
		{
			name: "auth0",
			rules: Rules{
				Types: []string{"JWT", "at+jwt"}, Algorithms: []string{"RS256", "PS256"}, MaxLifetime: 24 * time.Hour,
				AudienceClaim: "aud", ClientClaims: []string{"azp", "client_id"},
				ScopeClaim: "scope", RolesClaim: "/permissions", TenantClaim: "/org_id", RefuseClaims: idToken,
			},
			why: "The issuer ends in a slash. Roles are read from permissions (enable RBAC and adding permissions to the token for the API). The audience is the API's identifier; without it Auth0 issues opaque tokens.",
		},
		{
			name: "okta",
			rules: Rules{
				AllowNoType: true, Algorithms: []string{"RS256"}, MaxLifetime: time.Hour,
				AudienceClaim: "aud", ClientClaims: []string{"cid"},
				ScopeClaim: "scp", RolesClaim: "/groups",
				RequireClaims: map[string][]string{"cid": nil}, RefuseClaims: idToken,
			},
			why: "Custom authorization servers only (https://ORG/oauth2/SERVER); tokens of the org server cannot be checked by others. Groups need a claim of their own.",
		},
		{
			name: "cognito",
			rules: Rules{
				AllowNoType: true, Algorithms: []string{"RS256"}, MaxLifetime: time.Hour,
				AudienceClaim: "client_id", ClientClaims: []string{"client_id"},
				ScopeClaim: "scope", RolesClaim: "/cognito:groups",
				RequireClaims: map[string][]string{"token_use": {"access"}}, RefuseClaims: idToken,
			},
			why: "Access tokens have no aud: list the app client ids as audiences.",
		},
		{
			name: "google",
			rules: Rules{
				Types: []string{"at+jwt"}, Algorithms: []string{"RS256"}, MaxLifetime: time.Hour,
				AudienceClaim: "aud", ClientClaims: []string{"azp"},
				ScopeClaim: "scope", RolesClaim: "/roles", RefuseClaims: idToken,
			},
			why:    "Not usable in this release.",
			refuse: "Google's access tokens are opaque, and the JWTs that its services send each other are ID tokens, which are refused",
		},
	}
}

// presetNamed returns the row of a product; an unknown name gets the strictest.
func presetNamed(name string) preset {
	all := presets()
	if i := slices.IndexFunc(all, func(p preset) bool { return p.name == name }); i >= 0 {
		return all[i]
	}
	return all[0]
}

// PresetRules returns the rules of a preset. It reports false if there is no
// preset of that name.
func PresetRules(name string) (Rules, bool) {
	p := presetNamed(name)
	return p.rules, p.name == name
}

// Rules returns what the issuer's tokens are checked against: the preset with
// what the file sets instead. Of a File that Parse returned only.
func (i *Issuer) Rules() Rules {
	r := presetNamed(i.Preset).rules
	r.Types = slices.DeleteFunc(slices.Clone(i.Types), func(t string) bool { return t == AbsentType })
	r.AllowNoType = slices.Contains(i.Types, AbsentType)
	r.Algorithms, r.RolesClaim = i.Algorithms, i.RolesClaim
	r.GroupsClaim, r.TenantClaim = i.GroupsClaim, i.TenantClaim
	r.MaxLifetime = i.MaxLifetime.Std()
	return r
}

// applyPreset fills what the file leaves unset.
func (i *Issuer) applyPreset() {
	r := presetNamed(i.Preset).rules
	if len(i.Types) == 0 {
		i.Types = slices.Clone(r.Types)
		if r.AllowNoType {
			i.Types = append(i.Types, AbsentType)
		}
	}
	if len(i.Algorithms) == 0 {
		i.Algorithms = r.Algorithms
	}
	if i.MaxLifetime == 0 {
		i.MaxLifetime = Duration(r.MaxLifetime)
	}
	if i.RolesClaim == "" {
		i.RolesClaim = r.RolesClaim
	}
	if i.GroupsClaim == "" {
		i.GroupsClaim = r.GroupsClaim
	}
	if i.TenantClaim == "" {
		i.TenantClaim = r.TenantClaim
	}
}

// checkPreset looks for what cannot work with the product.
func (d *decoder) checkPreset(i *Issuer, path string) {
	if p := presetNamed(i.Preset); p.refuse != "" {
		d.report(d.where(path+".preset"), path+".preset", "the preset "+p.name+" can accept no token: "+p.refuse,
			"put an authorization server between that issues access tokens of its own (RFC 8693 token exchange), and name that here")
	}
	if i.MaxLifetime.Std()%time.Second != 0 {
		d.report(d.where(path+".max_lifetime"), path+".max_lifetime", "a lifetime with a fraction of a second: "+i.MaxLifetime.String(), "tokens count in whole seconds")
	}
	pos := d.where(path + ".issuer")
	switch host := hostOf(i.Issuer); {
	case i.Preset == "entra" && host == "sts.windows.net":
		d.report(pos, path+".issuer", "the issuer of version 1.0 tokens", "set requestedAccessTokenVersion to 2 in the API's manifest and use https://login.microsoftonline.com/TENANT/v2.0")
	case i.Preset == "entra" && (strings.Contains(i.Issuer, "/common/") || strings.Contains(i.Issuer, "/organizations/") || strings.Contains(i.Issuer, "/{tenantid}/")):
		d.report(pos, path+".issuer", "an issuer of no single tenant", "name your tenant's id: https://login.microsoftonline.com/TENANT/v2.0")
	case i.Preset == "auth0" && i.Issuer != "" && !strings.HasSuffix(i.Issuer, "/"):
		d.report(pos, path+".issuer", "an Auth0 issuer without final slash: "+quote(i.Issuer), "Auth0 tokens name the issuer with it: "+shorten(i.Issuer)+"/")
	case i.Preset == "okta" && i.Issuer != "" && !strings.Contains(i.Issuer, "/oauth2/"):
		d.report(pos, path+".issuer", "the org authorization server of Okta: "+quote(i.Issuer), "its access tokens are for Okta only; use a custom server, such as "+shorten(strings.TrimSuffix(i.Issuer, "/"))+"/oauth2/default")
	}
}
