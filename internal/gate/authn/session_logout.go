package authn

import (
	"context"
	"errors"
	"net/url"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/reason"
)

// Leaving is the session that a browser wants to end; nil Principal: it has
// none.
type Leaving struct {
	Principal *Principal
	session   *session
}

// Leave judges a request to log out: one that a page of this origin sends.
func (s *Sessions) Leave(ctx context.Context, r *canon.Request) (*Leaving, *Failure) {
	if f := s.SameOrigin(r); f != nil {
		return nil, f
	}
	x := s.of(ctx, r)
	if x == nil {
		return &Leaving{}, nil
	}
	return &Leaving{Principal: x.now.Load().principal, session: x}, nil
}

// Logout ends the session and says where the browser goes: to the issuer, if it
// has a page for that (OpenID Connect RP-Initiated Logout 1.0), else to the
// configured path; "" for a page of the gate.
func (s *Sessions) Logout(ctx context.Context, l *Leaving) (*Redirect, *Failure) {
	out := &Redirect{Location: s.afterLogout, Cookies: []string{clearCookie(sessionCookie)}}
	if l.session == nil {
		return out, nil
	}
	hint, err := s.store.kv.Get(ctx, hintTable, l.session.family.String())
	if err != nil && !errors.Is(err, kv.ErrNotFound) {
		return nil, s.storeAway(err)
	}
	if err := s.store.end(context.WithoutCancel(ctx), l.session); err != nil {
		return nil, s.storeAway(err)
	}
	m, f := s.idp.metadata(ctx)
	if f != nil || m.endSession == "" {
		return out, nil // the session here has ended all the same
	}
	q := url.Values{"client_id": {s.idp.auth.ID}}
	if len(hint) > 0 {
		q.Set("id_token_hint", string(hint))
	}
	if s.afterLogout != "" {
		q.Set("post_logout_redirect_uri", s.origin+s.afterLogout)
	}
	out.Location = addQuery(m.endSession, q)
	return out, nil
}

// Ending is what a logout token asks for.
type Ending struct {
	Subject string // may be empty
	logout  *logout
}

// Backchannel judges the body of a back-channel logout (OpenID Connect
// Back-Channel Logout 1.0 section 2.5).
func (s *Sessions) Backchannel(ctx context.Context, body string) (*Ending, *Failure) {
	p, err := parseParams(body, "logout_token")
	if err != nil || p["logout_token"] == "" {
		return nil, fail(reason.MalformedRequest, "the body is not one logout_token")
	}
	l, f := s.verifyLogout(ctx, p["logout_token"])
	if f != nil {
		return nil, f
	}
	return &Ending{l.subject, l}, nil
}

// End ends the sessions that were meant and returns how many. On this node they
// have ended when it returns, whatever it returns.
func (s *Sessions) End(ctx context.Context, e *Ending) (int, *Failure) {
	whose := sessionOf{s.issuer, "sid", e.logout.sid}
	if whose.id == "" {
		whose = sessionOf{s.issuer, "sub", e.logout.subject}
	}
	n, err := s.store.endAll(context.WithoutCancel(ctx), whose, func(r *sessionNow) bool {
		return r.Name == s.name && (e.logout.subject == "" || r.Subject == e.logout.subject)
	})
	if err != nil {
		return n, s.storeAway(err)
	}
	return n, nil
}
