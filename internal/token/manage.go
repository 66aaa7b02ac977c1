package token

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"net/http"
	"slices"
	"time"

	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// thumbprint is that of the client's certificate on this connection (RFC 8705
// section 3.1).
func thumbprint(r *canon.Request) string {
	sum := sha256.Sum256(r.ClientCertificate().Raw)
	return b64.EncodeToString(sum[:])
}

// asked is a request about a token: the client that asks and the token, which
// may be anything.
func (s *Service) asked(ctx context.Context, c *gate.Call) (*Client, string, *refusal) {
	f, r := readForm(c)
	if r != nil {
		return nil, "", r
	}
	cl, r := s.authenticate(ctx, c, f)
	if r != nil || cl == nil {
		return nil, "", r
	}
	raw := f.get("token")
	if raw == "" {
		return nil, "", malformed("token is missing")
	}
	return cl, raw, nil
}

// own reads an access token of ours that has not expired. What was signed with
// a key of ours is ours to the letter, so there is nothing to be strict about.
func (s *Service) own(raw string, now time.Time) *claims {
	payload, ok := s.state.keys.Load().open(raw)
	if !ok {
		return nil
	}
	var cl claims
	dec := json.NewDecoder(bytes.NewReader(payload))
	if dec.Decode(&cl) != nil || cl.Issuer != s.issuer || !now.Before(time.Unix(cl.Expires, 0)) {
		return nil
	}
	return &cl
}

// Revoke is the revocation endpoint (RFC 7009). A refresh token takes its family
// with it, access tokens included. What is unknown counts as revoked.
func (s *Service) Revoke(ctx context.Context, c *gate.Call) gate.Answer {
	c.Record.Event.Name = eventRevoke
	cl, raw, r := s.asked(ctx, c)
	if r == nil && cl == nil {
		return gate.Answer{}
	}
	if r == nil {
		r = s.revoke(ctx, c, cl, raw)
	}
	switch {
	case r != nil && r.code == "":
		return gate.Answer{}
	case r != nil:
		return r.answer()
	}
	return gate.Answer{Status: http.StatusOK, Fields: noStore}
}

// none is the refusal that the gate makes itself.
var none = &refusal{}

func (s *Service) revoke(ctx context.Context, c *gate.Call, cl *Client, raw string) *refusal {
	ev := &c.Record.Event
	f, _, err := s.state.find(ctx, raw)
	if err != nil {
		return s.away(err)
	}
	if f != nil {
		c.Record.Personal.Family = s.hash(familyHash, f.ID)
		if f.Client != cl.ID {
			ev.Cause = causeForeign
			return refused(unauthorizedClient, reason.BindingMismatch) // RFC 7009 section 2.1
		}
		if !c.Mark() {
			return none
		}
		ev.Cause = causeFamily
		if err := s.state.revokeFamily(ctx, f, revokedClient); err != nil {
			return s.away(err)
		}
		return nil
	}
	t := s.own(raw, c.Start)
	switch {
	case t == nil:
		ev.Cause = causeUnknown
		return nil
	case t.Client != cl.ID:
		ev.Cause = causeForeign
		return refused(unauthorizedClient, reason.BindingMismatch)
	}
	if !c.Mark() {
		return none
	}
	ev.Cause = causeToken
	c.Record.Personal.Token = s.hash(s.name, t.ID)
	if err := s.state.deny(context.WithoutCancel(ctx), t.ID, time.Unix(t.Expires, 0).Add(2*time.Minute)); err != nil {
		return s.away(err)
	}
	return nil
}

// revokeFamily ends a family and refuses its access tokens.
func (s *State) revokeFamily(ctx context.Context, f *family, why string) error {
	// Those first: if the rest fails the client asks again.
	if err := s.deny(context.WithoutCancel(ctx), f.tag(), dead(s.now())); err != nil {
		return err
	}
	_, err := s.update(ctx, f, func(f *family) bool {
		if f.Revoked != "" {
			return false
		}
		f.Revoked = why
		return true
	})
	return err
}

// about is the answer of the introspection endpoint (RFC 7662 section 2.2).
type about struct {
	Active    bool            `json:"active"`
	Scope     string          `json:"scope,omitempty"`
	Client    string          `json:"client_id,omitempty"`
	TokenType string          `json:"token_type,omitempty"`
	Expires   int64           `json:"exp,omitempty"`
	IssuedAt  int64           `json:"iat,omitempty"`
	Subject   string          `json:"sub,omitempty"`
	Audience  string          `json:"aud,omitempty"`
	Issuer    string          `json:"iss,omitempty"`
	ID        string          `json:"jti,omitempty"`
	Roles     []string        `json:"roles,omitempty"`
	Actor     json.RawMessage `json:"act,omitempty"`
	Confirm   *confirmation   `json:"cnf,omitempty"`
}

// Introspect is the introspection endpoint (RFC 7662). A client learns of access
// tokens for the audiences that it speaks for and of its own refresh tokens;
// everything else is not active, without saying why.
func (s *Service) Introspect(ctx context.Context, c *gate.Call) gate.Answer {
	c.Record.Event.Name = eventIntrospect
	cl, raw, r := s.asked(ctx, c)
	switch {
	case r != nil:
		return r.answer()
	case cl == nil:
		return gate.Answer{}
	case len(cl.Inspects) == 0 && cl.Offline == 0:
		return refused(unauthorizedClient, reason.DeniedByDefault).answer()
	}
	a, err := s.introspect(ctx, c, cl, raw)
	if err != nil {
		return s.away(err).answer()
	}
	return granted(a)
}

func (s *Service) introspect(ctx context.Context, c *gate.Call, cl *Client, raw string) (*about, error) {
	ev := &c.Record.Event
	ev.Cause = causeActive
	if t := s.own(raw, c.Start); t != nil {
		c.Record.Personal.Token = s.hash(s.name, t.ID)
		switch {
		case !slices.Contains(cl.Inspects, t.Audience):
			ev.Cause = causeForeign
			return &about{}, nil
		case s.revokedBy(ctx, &authn.Principal{Issuer: s.name, Subject: t.Subject, Client: t.Client, TokenID: t.ID, IssuedAt: time.Unix(t.IssuedAt, 0)}) != nil:
			ev.Cause = causeRevoked
			return &about{}, nil
		}
		return &about{
			Active: true, Scope: t.Scope, Client: t.Client, TokenType: t.Confirm.tokenType(), Expires: t.Expires, IssuedAt: t.IssuedAt,
			Subject: t.Subject, Audience: t.Audience, Issuer: t.Issuer, ID: t.ID, Roles: t.Roles, Actor: t.Actor, Confirm: t.Confirm,
		}, nil
	}
	f, n, err := s.state.find(ctx, raw)
	if err != nil {
		return nil, err
	}
	switch {
	case f == nil:
		ev.Cause = causeUnknown
		return &about{}, nil
	case f.Client != cl.ID:
		ev.Cause = causeForeign
		return &about{}, nil
	}
	c.Record.Personal.Family = s.hash(familyHash, f.ID)
	if f.Revoked != "" || n != f.Generation {
		ev.Cause = causeRevoked
		return &about{}, nil
	}
	return &about{
		Active: true, Client: f.Client, Expires: f.Expires.Unix(), IssuedAt: f.Created.Unix(),
		Subject: f.Subject, Audience: f.Audience, Issuer: s.issuer,
	}, nil
}

// describe makes the metadata: what this configuration supports, and nothing
// else.
func (s *Service) describe() ([]byte, error) {
	methods, grants := map[Method]bool{}, map[Grant]bool{}
	bound := false
	for _, c := range s.clients {
		methods[c.Method] = true
		bound = bound || c.BoundMTLS
		for _, g := range c.Grants {
			grants[g] = true
		}
		if c.Offline > 0 {
			grants[RefreshToken] = true
		}
	}
	auth := []Method{}
	for _, m := range []Method{SecretBasic, SecretPost, PrivateKeyJWT, MTLS, MTLSOwn} {
		if methods[m] {
			auth = append(auth, m)
		}
	}
	types := []Grant{}
	for _, g := range []Grant{ClientCredentials, RefreshToken, Exchange} {
		if grants[g] {
			types = append(types, g)
		}
	}
	var algs []string
	if methods[PrivateKeyJWT] {
		algs = AssertionAlgorithms()
	}
	return json.Marshal(struct {
		Issuer         string   `json:"issuer"`
		Token          string   `json:"token_endpoint"`
		Methods        []Method `json:"token_endpoint_auth_methods_supported"`
		Algs           []string `json:"token_endpoint_auth_signing_alg_values_supported,omitempty"`
		Revocation     string   `json:"revocation_endpoint"`
		RevokeMethods  []Method `json:"revocation_endpoint_auth_methods_supported"`
		RevokeAlgs     []string `json:"revocation_endpoint_auth_signing_alg_values_supported,omitempty"`
		Introspection  string   `json:"introspection_endpoint"`
		InspectMethods []Method `json:"introspection_endpoint_auth_methods_supported"`
		InspectAlgs    []string `json:"introspection_endpoint_auth_signing_alg_values_supported,omitempty"`
		JWKS           string   `json:"jwks_uri"`
		Responses      []string `json:"response_types_supported"` // required (RFC 8414 section 2), and there is none
		Grants         []Grant  `json:"grant_types_supported"`
		BoundMTLS      bool     `json:"tls_client_certificate_bound_access_tokens,omitempty"`
		DPoP           []string `json:"dpop_signing_alg_values_supported,omitempty"`
	}{
		s.issuer, s.issuer + PathToken, auth, algs, s.issuer + PathRevoke, auth, algs, s.issuer + PathIntrospect, auth, algs,
		s.issuer + PathJWKS, []string{}, types, bound, s.algs,
	})
}

// AssertionAlgorithms are those that client assertions may be signed with.
func AssertionAlgorithms() []string { return []string{"ES256", "PS256", "EdDSA"} }
