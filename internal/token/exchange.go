package token

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"slices"

	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// exchange is RFC 8693: a token of somebody else's, or an API key, for one of
// ours that says who acts for whom. Nothing grows on the way: scopes and roles
// are those that the subject has and the client may pass on, and the token ends
// with the subject's.
func (s *Service) exchange(ctx context.Context, c *gate.Call, cl *Client, bound *confirmation, f form) (*issued, *refusal) {
	raw := f.get("subject_token")
	switch {
	case raw == "" || len(raw) > maxToken:
		return nil, malformed("subject_token is missing or too long")
	case f.get("actor_token") != "" || f.get("actor_token_type") != "":
		return nil, malformed("actor tokens are not taken: the client acts for itself")
	}
	if t := f.get("requested_token_type"); t != "" && t != TypeAccessToken && t != TypeJWT {
		return nil, malformed("only access tokens are given")
	}
	audience, r := cl.audience(f)
	if r != nil {
		return nil, r
	}
	asked, ok := parseScope(f.get("scope"))
	if !ok {
		return nil, refused(invalidScope, reason.ScopeMissing)
	}
	offline := slices.Contains(asked, scopeOffline)
	asked = slices.DeleteFunc(asked, func(s string) bool { return s == scopeOffline })
	src, p, r := s.subjectOf(ctx, c, cl, f.get("subject_token_type"), raw)
	if r != nil {
		return nil, r
	}
	if !bound.proves(c.Request, p.Confirm) {
		// Taking it without its proof would turn it into a bearer token.
		c.Record.Personal.Claimed = p.Subject
		return nil, refused(invalidGrant, reason.BindingRequired)
	}
	if p.Routes != nil {
		// A token cannot say that it is for some routes only.
		c.Record.Personal.Claimed = p.Subject
		return nil, refused(invalidGrant, reason.DeniedByPolicy)
	}
	s.speaksFor(c, cl, p)
	g := &grant{client: cl, audience: audience, confirm: bound, acr: p.ACR, amr: p.AMR, authTime: p.AuthTime, until: p.Expires, roles: common(p.Roles, cl.Roles)}
	if g.subject, r = s.nameOf(src, p); r != nil {
		return nil, r
	}
	most := common(p.Scopes, cl.Scopes)
	if !subset(asked, most) || offline && (cl.Offline == 0 || !src.Offline) {
		return nil, refused(invalidScope, reason.ScopeMissing)
	}
	if g.scopes = asked; len(asked) == 0 {
		g.scopes = most
	}
	if src.Type != TypeAPIKey {
		if g.actor, r = chain(cl, raw); r != nil {
			return nil, r
		}
	} else if g.actor, r = link(cl, nil); r != nil {
		return nil, r
	}
	if !c.Mark() {
		return nil, nil
	}
	return s.exchanged(ctx, c, g, src.Name, p, offline)
}

// exchanged makes the token, and its family if there is to be one.
func (s *Service) exchanged(ctx context.Context, c *gate.Call, g *grant, source string, p *authn.Principal, offline bool) (*issued, *refusal) {
	var fam *family
	if offline {
		fam = newFamily(g, source, p, c.Start)
		g.tag = fam.tag()
	}
	out, r := s.mint(c, g)
	if r != nil {
		return nil, r
	}
	out.IssuedType = TypeAccessToken
	if fam != nil {
		if err := s.keep(ctx, fam); err != nil {
			return nil, s.away(err)
		}
		out.RefreshToken = fam.token(fam.Generation)
		c.Record.Personal.Family = s.hash(familyHash, fam.ID)
	}
	return out, nil
}

// subjectOf verifies the subject token by the sources that the client may use.
func (s *Service) subjectOf(ctx context.Context, c *gate.Call, cl *Client, kind, raw string) (*Subject, *authn.Principal, *refusal) {
	if kind == TypeJWT {
		kind = TypeAccessToken
	}
	if kind != TypeAccessToken && kind != TypeAPIKey {
		return nil, nil, malformed("subject_token_type is missing or not one of those that are taken")
	}
	why := &authn.Failure{Reason: reason.TokenIssuer}
	for _, name := range s.order {
		src := s.subjects[name]
		if src.Type != kind || !slices.Contains(cl.Subjects, name) {
			continue
		}
		p, err := src.Verify(ctx, raw)
		switch {
		case err == nil && p != nil:
			if why = s.revokedBy(ctx, p); why == nil {
				return src, p, nil
			}
		case errors.Is(err, authn.ErrNoCredential):
			continue
		default:
			why = failureOf(err)
		}
		break
	}
	c.Record.Personal.Claimed = why.Claimed
	if why.Reason == reason.IssuerUnavailable {
		return nil, nil, &refusal{code: temporarily, status: http.StatusServiceUnavailable, reason: why.Reason}
	}
	return nil, nil, refused(invalidGrant, why.Reason) // RFC 8693 section 2.2.2 lets invalid_request stand for this; most servers say invalid_grant
}

// revokedBy is why what a principal holds is not taken any more, nil if it is.
func (s *Service) revokedBy(ctx context.Context, p *authn.Principal) *authn.Failure {
	if p.Issuer == s.name && s.state.revoked(p.TokenID) {
		return &authn.Failure{Reason: reason.TokenRevoked, Claimed: p.Subject}
	}
	if err := s.gone(ctx, p); err != nil {
		f := *failureOf(err)
		f.Claimed = p.Subject
		return &f
	}
	return nil
}

// proves reports whether the request shows the key that a subject token is
// bound to: by the same proof that binds the new one, or by its certificate.
func (c *confirmation) proves(r *canon.Request, to authn.Confirmation) bool {
	if to.JKT != "" && (c == nil || c.JKT != to.JKT) {
		return false
	}
	return to.X5T == "" || r.ClientCertificate() != nil && thumbprint(r) == to.X5T
}

// nameOf is the subject's name in our tokens.
func (s *Service) nameOf(src *Subject, p *authn.Principal) (string, *refusal) {
	switch {
	case p.Issuer == s.name:
		return p.Subject, nil // one of ours: named already
	case !src.Plain:
		return src.Name + ":" + p.Subject, nil
	case s.clients[p.Subject] != nil:
		// A person whose name is that of a client would be taken for it (RFC
		// 9068 section 5).
		return "", refused(invalidGrant, reason.DeniedByDefault)
	}
	return p.Subject, nil
}

// maxActors bounds a chain of actors.
const maxActors = 4

// chain puts the client before those who acted already (RFC 8693 section 4.1),
// if the token lets it act (section 4.4). raw has been verified.
func chain(cl *Client, raw string) (json.RawMessage, *refusal) {
	claims, ok := peek(raw)
	if !ok {
		return link(cl, nil) // an opaque token: it has no chain
	}
	if len(claims.MayAct) > 0 {
		var may struct {
			Subject string `json:"sub"`
			Client  string `json:"client_id"`
		}
		if json.Unmarshal(claims.MayAct, &may) != nil || may.Subject != cl.ID && may.Client != cl.ID {
			return nil, refused(invalidGrant, reason.DeniedByPolicy)
		}
	}
	return link(cl, claims.Actor)
}

func link(cl *Client, before json.RawMessage) (json.RawMessage, *refusal) {
	n := 1
	for at := before; len(at) > 0; n++ {
		var actor struct {
			Actor json.RawMessage `json:"act"`
		}
		if json.Unmarshal(at, &actor) != nil || n == maxActors {
			return nil, refused(invalidGrant, reason.DeniedByDefault)
		}
		at = actor.Actor
	}
	b, err := json.Marshal(struct {
		Subject string          `json:"sub"`
		Actor   json.RawMessage `json:"act,omitempty"`
	}{cl.ID, before})
	if err != nil {
		return nil, refused(invalidGrant, reason.TokenMalformed)
	}
	return b, nil
}
