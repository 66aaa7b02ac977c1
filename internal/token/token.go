// Package token is the optional token service: an OAuth 2.0 authorization
// server for machines. It knows client credentials (RFC 6749 section 4.4), token
// exchange (RFC 8693) and refresh tokens, revocation (RFC 7009), introspection
// (RFC 7662), and publishes its keys and metadata (RFC 8414). People log in
// elsewhere; here their tokens are exchanged for narrower ones.
//
// Its endpoints are Responders of the gate, so every exchange with them is a
// record of kind token, and what cannot be recorded is not answered. State is
// what lives on; a Service is what one configuration makes of it.
package token

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
)

// MaxLifetime is the longest that an access token can live.
const MaxLifetime = time.Hour

// Method is how a client proves who it is (RFC 8414 section 2).
type Method string

// The methods. Each client has exactly one.
const (
	SecretBasic   Method = "client_secret_basic"
	SecretPost    Method = "client_secret_post"
	PrivateKeyJWT Method = "private_key_jwt"
	MTLS          Method = "tls_client_auth"
	MTLSOwn       Method = "self_signed_tls_client_auth"
)

// Grant is a way to a token, by the name that requests and metadata use.
type Grant string

// The grants.
const (
	ClientCredentials Grant = "client_credentials"
	RefreshToken      Grant = "refresh_token"
	Exchange          Grant = "urn:ietf:params:oauth:grant-type:token-exchange"
)

// Verify judges a credential that was handed over in a form: a client's
// assertion, or the token to exchange. Its error is a *authn.Failure, or matches
// authn.ErrNoCredential if the credential is not this verifier's. It must not
// take one that is bound to a key without seeing the proof.
type Verify func(ctx context.Context, credential string) (*authn.Principal, error)

// Client is one client. What is unset is not allowed.
type Client struct {
	ID     string
	Method Method

	Secret    [sha256.Size]byte   // of SecretBasic and SecretPost: the secret's SHA-256
	Assertion Verify              // of PrivateKeyJWT: verifies that the client signed it and for whom
	Holder    Holder              // of MTLS: whom the certificate names
	Prints    [][sha256.Size]byte // of MTLSOwn: SHA-256 of the certificates
	Grants    []Grant             // RefreshToken comes with Offline
	Audiences []string            // that its tokens may be for; a sole one is the default
	Scopes    []string            // that its tokens may have
	Roles     []string            // that its tokens may carry
	Subjects  []string            // names of the Subjects whose tokens it may exchange
	Lifetime  time.Duration       // of its access tokens; 0: the service's
	Offline   time.Duration       // how long its refresh tokens may be used; 0: it gets none
	Inspects  []string            // audiences of the tokens that it may introspect
	BoundMTLS bool                // its tokens are bound to its certificate (RFC 8705 section 3)
}

// Holder is what a certificate must say of its holder: exactly one of Kind cn,
// dns, email and uri, by exactly that Name.
type Holder struct{ Kind, Name string }

// Subject is a source of tokens that can be exchanged.
type Subject struct {
	Name string
	// Type is the token type URI (RFC 8693 section 3) that requests name; for
	// access tokens TypeJWT does as well.
	Type   string
	Verify Verify
	// Plain lets subjects keep their names in the tokens made from theirs;
	// otherwise they are preceded by Name and a colon, so that two sources
	// cannot mean different people by one name. At most one source is plain.
	Plain bool
	// Offline allows refresh tokens. It is off for credentials that live long
	// by themselves.
	Offline bool
}

// The token types.
const (
	TypeAccessToken = "urn:ietf:params:oauth:token-type:access_token"
	TypeRefresh     = "urn:ietf:params:oauth:token-type:refresh_token"
	TypeJWT         = "urn:ietf:params:oauth:token-type:jwt"
	TypeAPIKey      = "urn:gatebook:token-type:api-key"
)

// Config makes a Service.
type Config struct {
	Issuer   string        // scheme, host and port, nothing else; the iss of its tokens
	Name     string        // of the service as an issuer, in records
	Lifetime time.Duration // of access tokens, at most MaxLifetime
	Clients  []Client
	Subjects []Subject
	State    *State

	// Proofs judges DPoP proofs. nil: they are not looked at, and no token is
	// bound to a key.
	Proofs Prover
	// ProofAlgorithms are those that Proofs takes, for the metadata.
	ProofAlgorithms []string
	// Revoked says whether the gate has revoked what a principal holds: its
	// subject's, its client's, or this very token. nil: nothing is.
	Revoked func(ctx context.Context, p *authn.Principal) error

	// Hash is the keyed hash that a record keeps of a token or a family. nil:
	// records keep nothing of it.
	Hash func(issuer, id string) string
	// Alert tells people at once that a refresh token was used again after it
	// had been replaced, by whose client and in which exchange. An error is
	// logged: the family is revoked all the same.
	Alert func(ctx context.Context, client, request string) error
	Log   *slog.Logger
}

// Prover judges the DPoP proof of a request for a token (RFC 9449 section 5) and
// returns the thumbprint of its key. The error is a *authn.Failure.
type Prover interface {
	Key(ctx context.Context, r *canon.Request) (jkt string, err error)
}

// Service is what one configuration declares. It is immutable and safe for
// concurrent use.
type Service struct {
	issuer   string
	name     string
	lifetime time.Duration
	clients  map[string]*Client
	subjects map[string]*Subject
	order    []string // names of subjects
	state    *State
	proofs   Prover
	algs     []string // of proofs
	gone     func(ctx context.Context, p *authn.Principal) error
	hash     func(issuer, id string) string
	alert    func(ctx context.Context, client, request string) error
	log      *slog.Logger
	metadata []byte
}

// Paths of the endpoints (spec/interface.md).
const (
	PathToken      = "/oauth2/token"
	PathRevoke     = "/oauth2/revoke"
	PathIntrospect = "/oauth2/introspect"
	PathJWKS       = "/oauth2/jwks"
	PathMetadata   = "/.well-known/oauth-authorization-server"
)

// New checks the configuration as a whole and reports every problem at once.
func New(c Config) (*Service, error) {
	s := &Service{
		issuer: c.Issuer, name: c.Name, lifetime: c.Lifetime, clients: map[string]*Client{}, subjects: map[string]*Subject{},
		state: c.State, proofs: c.Proofs, algs: c.ProofAlgorithms, gone: c.Revoked, hash: c.Hash, alert: c.Alert, log: c.Log,
	}
	if s.gone == nil {
		s.gone = func(context.Context, *authn.Principal) error { return nil }
	}
	if s.hash == nil {
		s.hash = func(string, string) string { return "" }
	}
	if s.alert == nil {
		s.alert = func(context.Context, string, string) error { return nil }
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	var errs []error
	if c.State == nil || c.Name == "" {
		errs = append(errs, errors.New("a state and a name are required"))
	}
	if err := checkIssuer(c.Issuer); err != nil {
		errs = append(errs, err)
	}
	if err := checkLifetime(c.Lifetime); err != nil {
		errs = append(errs, err)
	}
	errs = append(errs, s.addSubjects(c.Subjects)...)
	for i := range c.Clients {
		cl := c.Clients[i]
		if err := s.check(&cl); err != nil {
			errs = append(errs, fmt.Errorf("client %q: %w", cl.ID, err))
			continue
		}
		s.clients[cl.ID] = &cl
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("token: %w", err)
	}
	var err error
	s.metadata, err = s.describe()
	return s, err
}

func checkIssuer(issuer string) error {
	u, err := url.Parse(issuer)
	if err != nil || u.Scheme != "https" && u.Scheme != "http" || u.Host == "" || u.String() != u.Scheme+"://"+u.Host || issuer != u.String() {
		return errors.New("the issuer must be scheme, host and port of the listener that serves it, such as https://auth.example.com")
	}
	return nil
}

func checkLifetime(d time.Duration) error {
	if d < time.Second || d > MaxLifetime || d%time.Second != 0 {
		return fmt.Errorf("a lifetime of access tokens must be whole seconds up to %s", MaxLifetime)
	}
	return nil
}

func (s *Service) addSubjects(list []Subject) (errs []error) {
	plain := 0
	for i := range list {
		sub := list[i]
		if sub.Plain {
			plain++
		}
		if sub.Name == "" || s.subjects[sub.Name] != nil || sub.Verify == nil || sub.Type != TypeAccessToken && sub.Type != TypeAPIKey {
			errs = append(errs, fmt.Errorf("source %q of tokens to exchange has no name, verifier or known type, or is declared twice", sub.Name))
			continue
		}
		s.subjects[sub.Name] = &sub
		s.order = append(s.order, sub.Name)
	}
	if plain > 1 {
		errs = append(errs, errors.New("subjects of two sources cannot both keep their plain names"))
	}
	return errs
}

// check refuses a client that could do something by omission.
func (s *Service) check(c *Client) error {
	var errs []error
	add := func(bad bool, text string) {
		if bad {
			errs = append(errs, errors.New(text))
		}
	}
	add(c.ID == "" || len(c.ID) > maxClientID || !isText(c.ID) || strings.ContainsAny(c.ID, ": |"), "the id must be 1 to 128 characters without ':', '|' and spaces")
	add(s.clients[c.ID] != nil, "declared twice")
	switch c.Method {
	case SecretBasic, SecretPost:
		add(c.Secret == [sha256.Size]byte{}, "no secret")
	case PrivateKeyJWT:
		add(c.Assertion == nil, "no verifier of its assertions")
	case MTLS:
		add(c.Holder.Name == "" || !slices.Contains([]string{"cn", "dns", "email", "uri"}, c.Holder.Kind), "no holder of its certificate")
	case MTLSOwn:
		add(len(c.Prints) == 0, "no certificate")
	default:
		add(true, "unknown method of authentication")
	}
	add(c.Lifetime != 0 && checkLifetime(c.Lifetime) != nil, "the lifetime of its tokens must be whole seconds up to an hour")
	add(c.Offline < 0, "negative offline time")
	add(c.BoundMTLS && c.Method != MTLS && c.Method != MTLSOwn, "tokens can be bound to a certificate only if the client authenticates with one")
	for _, g := range c.Grants {
		add(g != ClientCredentials && g != Exchange, fmt.Sprintf("grant %q cannot be given", g))
	}
	add(len(c.Grants) > 0 && len(c.Audiences) == 0, "it may get tokens, but for no audience")
	add(slices.Contains(c.Audiences, ""), "an empty audience")
	add(c.Offline > 0 && !slices.Contains(c.Grants, Exchange), "refresh tokens come with token exchange only")
	add(slices.Contains(c.Grants, Exchange) && len(c.Subjects) == 0, "it may exchange tokens, but nobody's")
	for _, scope := range c.Scopes {
		list, ok := parseScope(scope)
		add(!ok || len(list) != 1 || scope == scopeOffline, fmt.Sprintf("%q is no scope that can be given", scope))
	}
	for _, name := range c.Subjects {
		add(s.subjects[name] == nil, fmt.Sprintf("unknown source %q of tokens to exchange", name))
	}
	if c.Lifetime == 0 {
		c.Lifetime = s.lifetime
	}
	return errors.Join(errs...)
}

const maxClientID = 128

// Issuer is the service's identifier.
func (s *Service) Issuer() string { return s.issuer }
