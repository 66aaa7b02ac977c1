package token

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"io"
	"net/http"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// What records of the service say happened (Event.Name), besides the grants by
// their short names.
const (
	eventClientCredentials = "client_credentials"
	eventRefresh           = "refresh"
	eventExchange          = "exchange"
	eventRevoke            = "revoke"
	eventIntrospect        = "introspect"
	eventIssue             = "issue" // by an operator
	eventJWKS              = "jwks"
	eventMetadata          = "metadata"
)

// What they say about it (Event.Cause).
const (
	causeRotated = "rotated" // the refresh token was replaced
	causeAgain   = "again"   // its replacement was handed out once more
	causeReused  = "reused"  // it had been replaced before: the family is revoked
	causeRevoked = "revoked" // the family had been revoked
	causeFamily  = "family"  // all of a family was revoked
	causeToken   = "token"   // one access token was
	causeUnknown = "unknown" // the token is none of ours, or of no use any more
	causeActive  = "active"
	causeForeign = "foreign" // the token is not the caller's business
)

// scopeOffline asks for a refresh token. It is in no token's scope.
const scopeOffline = "offline_access"

// claims are those of an access token (RFC 9068 section 2.2), in the order in
// which they are written.
type claims struct {
	Issuer   string          `json:"iss"`
	Subject  string          `json:"sub"`
	Audience string          `json:"aud"`
	Expires  int64           `json:"exp"`
	IssuedAt int64           `json:"iat"`
	ID       string          `json:"jti"`
	Client   string          `json:"client_id"`
	Scope    string          `json:"scope,omitempty"`
	Roles    []string        `json:"roles,omitempty"`
	AuthTime int64           `json:"auth_time,omitempty"`
	ACR      string          `json:"acr,omitempty"`
	AMR      []string        `json:"amr,omitempty"`
	Actor    json.RawMessage `json:"act,omitempty"`
	Confirm  *confirmation   `json:"cnf,omitempty"`
}

// confirmation is the key that a token is bound to (RFC 7800).
type confirmation struct {
	JKT string `json:"jkt,omitempty"`      // RFC 9449 section 6.1
	X5T string `json:"x5t#S256,omitempty"` // RFC 8705 section 3.1
}

// issued is a successful answer of the token endpoint (RFC 6749 section 5.1, RFC
// 8693 section 2.2.1).
type issued struct {
	AccessToken  string `json:"access_token"`
	IssuedType   string `json:"issued_token_type,omitempty"`
	TokenType    string `json:"token_type"`
	ExpiresIn    int64  `json:"expires_in"`
	RefreshToken string `json:"refresh_token,omitempty"`
	Scope        string `json:"scope,omitempty"`
}

// grant is what a token is to be made of.
type grant struct {
	client   *Client
	subject  string // as the token has it
	audience string
	scopes   []string
	roles    []string
	actor    json.RawMessage
	acr      string
	amr      []string
	authTime time.Time
	until    time.Time // the token must not live longer; zero: as long as the client's may
	tag      string    // of the family, "" if there is none
	confirm  *confirmation
}

// mint makes an access token for an exchange and notes it in the record.
func (s *Service) mint(c *gate.Call, g *grant) (*issued, *refusal) {
	out, id, r := s.make(g, c.Start)
	if r == nil {
		c.Record.Personal.Token = s.hash(s.name, id)
		c.Record.Event.Target = g.audience
	}
	return out, r
}

// make makes an access token and returns its id. The refusal is that nothing is
// left of the time that it may live, or that it would be too long to be used.
func (s *Service) make(g *grant, at time.Time) (_ *issued, id string, _ *refusal) {
	now := at.Truncate(time.Second)
	expires := now.Add(g.client.Lifetime)
	if !g.until.IsZero() && g.until.Before(expires) {
		expires = g.until.Truncate(time.Second)
	}
	if !expires.After(now) {
		return nil, "", refused(invalidGrant, reason.TokenExpired)
	}
	id = rand.Text()
	if g.tag != "" {
		id = g.tag + "." + id
	}
	cl := claims{
		Issuer: s.issuer, Subject: g.subject, Audience: g.audience, Expires: expires.Unix(), IssuedAt: now.Unix(), ID: id,
		Client: g.client.ID, Scope: strings.Join(g.scopes, " "), Roles: g.roles, ACR: g.acr, AMR: g.amr, Actor: g.actor, Confirm: g.confirm,
	}
	if !g.authTime.IsZero() {
		cl.AuthTime = g.authTime.Unix()
	}
	payload, err := json.Marshal(&cl)
	if err != nil {
		return nil, "", s.away(err)
	}
	signed, err := s.state.keys.Load().signer(at).sign(payload)
	if err != nil {
		return nil, "", s.away(err)
	}
	if len(signed) > maxToken {
		return nil, "", refused(invalidRequest, reason.HeaderTooLarge) // nobody would take it
	}
	return &issued{AccessToken: signed, TokenType: g.confirm.tokenType(), ExpiresIn: expires.Unix() - now.Unix(), Scope: cl.Scope}, id, nil
}

// tokenType is how a token that is bound so is to be shown.
func (c *confirmation) tokenType() string {
	if c != nil && c.JKT != "" {
		return "DPoP" // RFC 9449 section 5
	}
	return "Bearer"
}

// bind finds the key that a token is to be bound to: that of the request's
// proof, or the client's certificate.
func (s *Service) bind(ctx context.Context, c *gate.Call, cl *Client) (*confirmation, *refusal) {
	if _, n := c.Request.Get("dpop"); n > 0 && s.proofs != nil {
		if cl.BoundMTLS {
			return nil, malformed("tokens of this client are bound to its certificate")
		}
		jkt, err := s.proofs.Key(ctx, c.Request)
		if err != nil {
			why := failureOf(err).Reason
			if why.Status() >= 500 {
				return nil, &refusal{code: temporarily, status: http.StatusServiceUnavailable, reason: why}
			}
			return nil, refused(invalidProof, why)
		}
		return &confirmation{JKT: jkt}, nil
	}
	if cl.BoundMTLS {
		return &confirmation{X5T: thumbprint(c.Request)}, nil
	}
	return nil, nil
}

// Token is the token endpoint.
func (s *Service) Token(ctx context.Context, c *gate.Call) gate.Answer {
	f, r := readForm(c)
	if r != nil {
		return r.answer()
	}
	grantType := f.get("grant_type")
	c.Record.Event.Name = eventName(grantType)
	cl, r := s.authenticate(ctx, c, f)
	if r != nil {
		return r.answer()
	}
	if cl == nil {
		return gate.Answer{}
	}
	out, r := s.give(ctx, c, cl, Grant(grantType), f)
	switch {
	case r != nil:
		return r.answer()
	case out == nil:
		return gate.Answer{}
	}
	return granted(out)
}

func eventName(grantType string) string {
	switch Grant(grantType) {
	case ClientCredentials:
		return eventClientCredentials
	case RefreshToken:
		return eventRefresh
	case Exchange:
		return eventExchange
	}
	return ""
}

// give gives a token by the grant asked for. Neither an answer nor a refusal
// means that the gate has one of its own.
func (s *Service) give(ctx context.Context, c *gate.Call, cl *Client, g Grant, f form) (*issued, *refusal) {
	switch {
	case g == "":
		return nil, malformed("grant_type is missing")
	case eventName(string(g)) == "":
		return nil, refused(unsupportedGrantType, reason.MalformedRequest)
	case g == RefreshToken && cl.Offline == 0, g != RefreshToken && !slices.Contains(cl.Grants, g):
		return nil, refused(unauthorizedClient, reason.DeniedByDefault)
	}
	bound, r := s.bind(ctx, c, cl)
	switch {
	case r != nil:
		return nil, r
	case g == RefreshToken:
		return s.refresh(ctx, c, cl, bound, f)
	case g == Exchange:
		return s.exchange(ctx, c, cl, bound, f)
	}
	return s.clientCredentials(c, cl, bound, f)
}

// clientCredentials is RFC 6749 section 4.4. There is no refresh token: the
// client can come back at any time.
func (s *Service) clientCredentials(c *gate.Call, cl *Client, bound *confirmation, f form) (*issued, *refusal) {
	g, r := cl.own(f)
	if r != nil {
		return nil, r
	}
	g.confirm = bound
	if !c.Mark() {
		return nil, nil
	}
	return s.mint(c, g)
}

// own is what a token of the client itself is made of.
func (cl *Client) own(f form) (*grant, *refusal) {
	g := &grant{client: cl, subject: cl.ID, roles: cl.Roles}
	var r *refusal
	if g.audience, r = cl.audience(f); r != nil {
		return nil, r
	}
	asked, ok := parseScope(f.get("scope"))
	if !ok || !subset(asked, cl.Scopes) {
		return nil, refused(invalidScope, reason.ScopeMissing)
	}
	if g.scopes = asked; len(asked) == 0 {
		g.scopes = cl.Scopes
	}
	return g, nil
}

// audience is whom a token is to be for: what the request names as audience or
// resource (RFC 8693 section 2.1, RFC 8707), or the only one there is.
func (cl *Client) audience(f form) (string, *refusal) {
	asked, resource := f.get("audience"), f.get("resource")
	if asked != "" && resource != "" && asked != resource {
		return "", malformed("audience and resource name two")
	}
	if asked == "" {
		asked = resource
	}
	if asked == "" && len(cl.Audiences) == 1 {
		return cl.Audiences[0], nil
	}
	if asked == "" || !slices.Contains(cl.Audiences, asked) {
		return "", refused(invalidTarget, reason.TokenAudience)
	}
	return asked, nil
}

// subset reports whether all of a are in b.
func subset(a, b []string) bool {
	return !slices.ContainsFunc(a, func(s string) bool { return !slices.Contains(b, s) })
}

// common is what of a is in b too, in the order of a.
func common(a, b []string) (both []string) {
	for _, s := range a {
		if slices.Contains(b, s) {
			both = append(both, s)
		}
	}
	return both
}

// readForm reads the body of a request, whole and strictly.
func readForm(c *gate.Call) (form, *refusal) {
	if err := checkForm(c.Request); err != nil {
		return nil, malformed(err.Error())
	}
	body, err := io.ReadAll(c.Body)
	if err != nil {
		return nil, malformed("") // the gate has its own answer to that
	}
	f, err := parseForm(string(body))
	if err != nil {
		return nil, malformed(err.Error())
	}
	return f, nil
}

// JWKS is the endpoint of the key set. Verifiers may keep it for less time than
// a new key waits until it signs.
func (s *Service) JWKS(_ context.Context, c *gate.Call) gate.Answer {
	c.Record.Event.Name = eventJWKS
	return document("application/jwk-set+json", s.state.JWKS())
}

// Metadata is the endpoint of RFC 8414.
func (s *Service) Metadata(_ context.Context, c *gate.Call) gate.Answer {
	c.Record.Event.Name = eventMetadata
	return document("application/json", s.metadata)
}

func document(mediaType string, body []byte) gate.Answer {
	return gate.Answer{Status: http.StatusOK, Body: body, Fields: []canon.Field{
		{Name: "content-type", Value: mediaType},
		{Name: "cache-control", Value: "public, max-age=300"}, // jwksMaxAge
		{Name: "x-content-type-options", Value: "nosniff"},
	}}
}

// speaksFor makes an exchange that of a person for whom the client acts.
func (s *Service) speaksFor(c *gate.Call, cl *Client, p *authn.Principal) {
	whose := *p
	whose.Method, whose.Client = string(cl.Method), cl.ID
	whose.TokenID, whose.Claims = "", nil // the token made here is the one that counts
	c.OnBehalf(&whose)
}
