package config

import (
	"errors"
	"fmt"
	"net/url"
	"slices"
	"strings"
)

// TokenService is the built-in authorization server.
type TokenService struct {
	Issuer        string        `key:"issuer" required:"true" form:"issuer" doc:"Issuer identifier of its tokens: the https URL (http on loopback only) under which clients reach it, host and port only. It answers at /oauth2/token, /oauth2/revoke, /oauth2/introspect, /oauth2/jwks and /.well-known/oauth-authorization-server of that host. An issuer of the same URL under issuers takes its keys from here, without a request, and then its tokens can be used on routes."`
	Listeners     []string      `key:"listeners" form:"name" doc:"Listeners on which it is served. Default: all that do not only redirect."`
	Algorithm     string        `key:"algorithm" default:"ES256" enum:"ES256 EdDSA" doc:"What tokens are signed with. After a change old tokens stay valid."`
	RotateKeys    Duration      `key:"rotate_keys" default:"30d" min:"1h" max:"365d" doc:"How long a signing key is used. The next one is published ten minutes before, and the one before until its last token has expired."`
	Lifetime      Duration      `key:"lifetime" default:"5m" min:"30s" max:"1h" doc:"Lifetime of access tokens."`
	PlainSubjects string        `key:"plain_subjects" form:"name" doc:"Issuer whose subjects keep their names when their tokens are exchanged. Those of others are written ISSUER:NAME, so that no two people share a name."`
	Limits        []string      `key:"limits" form:"name" doc:"Names of the rate limits that apply to its requests. Limits by client or subject count by address until the client has said who it is, and then by client too."`
	Audit         Audit         `key:"audit" doc:"How firmly its exchanges are recorded."`
	Clients       []TokenClient `key:"clients" required:"true" doc:"Who may ask for tokens. What is not named here is not allowed."`
}

// TokenServiceName is the service as an issuer where no issuer of the
// configuration is it.
const TokenServiceName = "token_service"

// Values of TokenClient.Auth and TokenClient.Grants.
const (
	ClientSecretBasic = "client_secret_basic"
	ClientSecretPost  = "client_secret_post"
	ClientKeyJWT      = "private_key_jwt"
	ClientMTLS        = "tls_client_auth"
	ClientMTLSOwn     = "self_signed_tls_client_auth"

	GrantClientCredentials = "client_credentials"
	GrantTokenExchange     = "token_exchange"
)

// TokenClient is one client of the token service.
type TokenClient struct {
	ID          string   `key:"id" required:"true" form:"clientid" doc:"Client id. It appears in records."`
	Auth        string   `key:"auth" required:"true" enum:"client_secret_basic client_secret_post private_key_jwt tls_client_auth self_signed_tls_client_auth" doc:"How it says who it is; no other way is taken."`
	Secret      *Secret  `key:"secret" doc:"Its secret, of at least 32 characters, for client_secret_basic and client_secret_post."`
	Keys        *JWKS    `key:"keys" doc:"Its public keys, for private_key_jwt. Assertions name the key (kid), this service alone as audience, and have exp, iat and a jti that is used once."`
	Certificate string   `key:"certificate" form:"holder" doc:"Whom its certificate must name, for tls_client_auth: cn:NAME, dns:NAME, email:NAME or uri:NAME, and no other name of that kind. The listener must ask for client certificates."`
	Own         Path     `key:"own_certificates" form:"file" doc:"PEM file of its certificates, for self_signed_tls_client_auth; one of them must be shown. They must be among the listener's client authorities, too."`
	Bound       bool     `key:"certificate_bound" doc:"Bind its tokens to its certificate (RFC 8705)."`
	Grants      []string `key:"grants" enum:"client_credentials token_exchange" doc:"What it may do: get tokens for itself, or exchange the tokens of others."`
	Issuers     []string `key:"issuers" form:"name" doc:"Issuers whose tokens it may exchange."`
	APIKeys     bool     `key:"apikeys" doc:"Let it exchange API keys of gatebook apikey too (subject_token_type urn:gatebook:token-type:api-key). Their owners are written APIKEYS.ISSUER:OWNER in its tokens; a key that is for some routes only cannot be exchanged, and none comes with a refresh token."`
	Audiences   []string `key:"audiences" form:"text" doc:"Audiences for which it may get tokens; a sole one is the default."`
	Scopes      []string `key:"scopes" form:"scope" doc:"Scopes that its tokens may have; after an exchange only those that the exchanged token has too."`
	Roles       []string `key:"roles" form:"label" doc:"Roles that its tokens may carry; after an exchange only those that the exchanged token has too."`
	Lifetime    Duration `key:"lifetime" min:"30s" max:"1h" doc:"Lifetime of its access tokens. Default: that of the service. After an exchange they end with the exchanged token."`
	Offline     Duration `key:"offline" min:"1m" max:"90d" doc:"How long it may go on for a person without a new token to exchange: it gets a refresh token if it asks for the scope offline_access. Unset: it gets none."`
	Introspect  []string `key:"introspect" form:"text" doc:"Audiences whose tokens it may ask about, for resource servers."`
}

// minSecret is the least length of a client's secret: 128 bits in any usual
// writing.
const minSecret = 32

// ClientSecret reads the client's secret and refuses what could be guessed.
// Errors never say what was found.
func (c *TokenClient) ClientSecret() (string, error) {
	text, err := c.Secret.Read()
	switch {
	case err != nil:
		return "", err
	case len(text) < minSecret:
		return "", fmt.Errorf("the secret has fewer than %d characters; make one with: openssl rand -hex 32", minSecret)
	case strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r >= 0x7f }):
		return "", errors.New("the secret holds more than one word of printable ASCII")
	}
	return text, nil
}

// checkClientID keeps ids free of what separates them from secrets and names.
func checkClientID(s string) (string, string) {
	if s == "" || len(s) > 128 || strings.ContainsAny(s, ":|") || strings.ContainsFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
		return "not a client id: " + quote(s), "use up to 128 printable characters without spaces, ':' and '|'"
	}
	return "", ""
}

// checkTokenService checks what concerns more than one value.
func (d *decoder) checkTokenService(f *File) {
	t := f.TokenService
	if t == nil {
		return
	}
	if u, err := url.Parse(t.Issuer); err == nil && t.Issuer != "" && (u.Path != "" || t.Issuer != strings.ToLower(t.Issuer)) {
		d.report(d.where("token_service.issuer"), "token_service.issuer", "an issuer that is more than scheme, host and port, in lower case: "+quote(t.Issuer), "the service answers at fixed paths of its host; write https://HOST")
	}
	listeners, issuers := map[string]*Listener{}, map[string]*Issuer{}
	for i := range f.Listen {
		listeners[f.Listen[i].Name] = &f.Listen[i]
	}
	for i := range f.Issuers {
		issuers[f.Issuers[i].Name] = &f.Issuers[i]
	}
	for j, name := range t.Listeners {
		at := fmt.Sprintf("token_service.listeners[%d]", j)
		l, ok := listeners[name]
		known(d, at, "listener", name, listeners, ok)
		if ok && l.RedirectToHTTPS {
			d.report(d.where(at), at, "unreachable: the listener "+name+" only redirects", "name a listener with tls or plaintext")
		}
	}
	for j, name := range t.Limits {
		_, ok := f.Limits[name]
		known(d, fmt.Sprintf("token_service.limits[%d]", j), "limit", name, f.Limits, ok)
	}
	if f.APIKeys.Issuer == TokenServiceName {
		d.report(d.where("apikeys.issuer"), "apikeys.issuer", "the name "+quote(TokenServiceName)+" is that of the token service", "choose another: owners of API keys must not be taken for its clients")
	}
	if t.PlainSubjects != "" {
		known(d, "token_service.plain_subjects", "issuer", t.PlainSubjects, issuers, issuers[t.PlainSubjects] != nil)
	}
	ids := map[string]int{}
	for i := range t.Clients {
		c, path := &t.Clients[i], fmt.Sprintf("token_service.clients[%d]", i)
		d.unique(ids, c.ID, i, path+".id", "client")
		d.clientAuth(c, path)
		d.clientGrants(c, path)
		for j, name := range c.Issuers {
			known(d, fmt.Sprintf("%s.issuers[%d]", path, j), "issuer", name, issuers, issuers[name] != nil)
		}
	}
}

// clientAuth wants of each client exactly what its way to say who it is needs.
func (d *decoder) clientAuth(c *TokenClient, path string) {
	needs := map[string]string{
		ClientSecretBasic: "secret", ClientSecretPost: "secret", ClientKeyJWT: "keys", ClientMTLS: "certificate", ClientMTLSOwn: "own_certificates",
	}[c.Auth]
	if needs == "" {
		return // reported
	}
	for _, key := range []string{"secret", "keys", "certificate", "own_certificates"} {
		at := path + "." + key
		_, given := d.at[at]
		switch {
		case key == needs && !given:
			d.report(d.where(path+".auth"), path+".auth", "auth "+c.Auth+" needs "+key, "add "+key+", or choose another auth")
		case key != needs && given:
			d.report(d.where(at), at, key+" has no effect with auth "+c.Auth, "remove it")
		}
	}
	d.checkSecret(c.Secret, path+".secret")
	if c.Keys != nil {
		_, byURL := d.at[path+".keys.url"]
		_, byFile := d.at[path+".keys.file"]
		if byURL == byFile {
			d.report(d.where(path+".keys"), path+".keys", "keys need exactly one of url and file", "keep one")
		}
	}
	if h := ParseHolder(c.Certificate); c.Certificate != "" && h.OfToken() {
		d.report(d.where(path+".certificate"), path+".certificate", "a certificate cannot say "+quote(c.Certificate), "write cn:NAME, dns:NAME, email:NAME or uri:NAME")
	}
	if c.Bound && needs != "certificate" && needs != "own_certificates" {
		d.report(d.where(path+".certificate_bound"), path+".certificate_bound", "the client shows no certificate", "remove it, or choose auth tls_client_auth")
	}
}

func (d *decoder) clientGrants(c *TokenClient, path string) {
	exchange := slices.Contains(c.Grants, GrantTokenExchange)
	say := func(bad bool, key, what, hint string) {
		if bad && d.quiet(path+"."+key) {
			d.report(d.where(path+"."+key), path+"."+key, what, hint)
		}
	}
	say(len(c.Grants) == 0 && len(c.Introspect) == 0, "grants", "the client may do nothing", "give it grants, or introspect for a resource server")
	say(len(c.Grants) > 0 && len(c.Audiences) == 0, "audiences", "the client may get tokens, but for no audience", "name the audiences")
	say(exchange && len(c.Issuers) == 0 && !c.APIKeys, "issuers", "the client may exchange tokens, but nobody's", "name the issuers whose tokens it may exchange, or set apikeys")
	say(!exchange && len(c.Issuers) > 0, "issuers", "issuers have no effect without token_exchange", "remove them, or add the grant")
	say(!exchange && c.APIKeys, "apikeys", "apikeys has no effect without token_exchange", "remove it, or add the grant")
	say(exchange && c.Offline > 0 && len(c.Issuers) == 0, "offline", "API keys come with no refresh token", "remove it, or name issuers whose tokens it may exchange")
	say(c.Offline > 0 && !exchange, "offline", "refresh tokens come with token_exchange only", "remove it: a client that acts for itself can ask again at any time")
	say(slices.Contains(c.Scopes, "offline_access"), "scopes", "offline_access is no scope of a token", "set offline instead")
}
