package authn

import (
	"context"
	"crypto/rand"
	"errors"
	"net/url"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// When the issuer is asked again: before what it gave ends, so that a moment of
// absence does not show.
const (
	refreshAhead   = 30 * time.Second
	refreshDefault = 5 * time.Minute // if it does not say how long
	refreshRetry   = 2 * time.Second
	refreshPoll    = 50 * time.Millisecond
)

// refreshing is a refresh under way.
type refreshing struct {
	done chan struct{}
	err  *Failure // once done is closed
}

// due reports whether the issuer must be asked whether the session still holds.
// late: what it said before is no longer worth anything.
func (r *sessionRecord) due(now time.Time) (due, late bool) {
	if r.Refresh == "" {
		return false, false
	}
	end := time.Unix(r.AccessEnd, 0)
	return !now.Before(end.Add(-refreshAhead)), !now.Before(end)
}

// keepFresh asks the issuer again when that is due: one request does so, the
// others wait for what it finds.
func (s *Sessions) keepFresh(ctx context.Context, x *session, now time.Time) *Failure {
	if due, _ := x.now.Load().due(now); !due {
		return nil
	}
	x.mu.Lock()
	call := x.refresh
	if call == nil {
		due, late := x.now.Load().due(now)
		if !due || now.Before(x.retry) {
			x.mu.Unlock()
			if due && late {
				return fail(reason.IssuerUnavailable, "the issuer does not answer whether the session still holds")
			}
			return nil
		}
		call = &refreshing{done: make(chan struct{})}
		x.refresh = call
		// Whoever asked may go away; the new refresh token must not be lost.
		go s.runRefresh(context.WithoutCancel(ctx), x, call)
	}
	x.mu.Unlock()
	select {
	case <-call.done:
		return call.err
	case <-ctx.Done():
		return fail(reason.ClientAborted, "request ended before its session was refreshed")
	}
}

func (s *Sessions) runRefresh(ctx context.Context, x *session, call *refreshing) {
	ctx, cancel := context.WithTimeout(ctx, claimTime)
	defer cancel()
	err := s.refresh(ctx, x)
	var ended *Failure
	switch {
	case err == nil:
	case refused(err) || errors.Is(err, errEnded) || errors.As(err, &ended) && ended.Reason.Status() < 500:
		// Also after an answer that got lost on its way: then the refresh token
		// is used up, and nobody but the person can mend that.
		s.log.Info("the issuer ends a session", "session", s.name, "err", err)
		if endErr := s.store.end(ctx, x); endErr != nil {
			s.log.Error("a session that the issuer has ended could not be removed", "err", endErr)
		}
		call.err = fail(reason.SessionExpired, "the issuer does not let the session go on")
	default:
		s.log.Warn("a session could not be refreshed", "session", s.name, "err", err)
		if _, late := x.now.Load().due(s.now()); late {
			call.err = away("the issuer does not answer whether the session still holds", err)
		}
	}
	x.mu.Lock()
	x.refresh = nil
	if err != nil {
		x.retry = s.now().Add(refreshRetry)
	}
	x.mu.Unlock()
	close(call.done)
}

// Answers of a change that claims the refresh.
var (
	errClaimed   = errors.New("another node refreshes")
	errNoLonger  = errors.New("another node has refreshed")
	errClaimLost = errors.New("another node has taken the refresh over")
)

// refresh uses the refresh token, once among all nodes, keeps the new one, and
// only then uses what came with it.
func (s *Sessions) refresh(ctx context.Context, x *session) error {
	me := rand.Text()
	old, err := s.claim(ctx, x, me)
	if errors.Is(err, errNoLonger) {
		return nil
	}
	if err != nil {
		return err
	}
	m, f := s.idp.metadata(ctx)
	if f != nil {
		return errors.Join(f, s.unclaim(ctx, x, me))
	}
	t, err := s.idp.exchange(ctx, m, url.Values{"grant_type": {"refresh_token"}, "refresh_token": {old}})
	if err != nil {
		if refused(err) {
			return err
		}
		return errors.Join(err, s.unclaim(ctx, x, me))
	}
	if err := s.store.alter(ctx, x, func(r *sessionRecord) error {
		if r.ClaimedBy != me {
			return errClaimLost
		}
		if t.refresh != "" {
			r.Refresh = t.refresh
		}
		r.AccessEnd = s.now().Add(orLife(t.life)).Unix()
		return nil
	}); err != nil {
		return err
	}
	return s.renewClaims(ctx, x, m, t, me)
}

func orLife(d time.Duration) time.Duration {
	if d == 0 {
		return refreshDefault
	}
	return d
}

// claim takes the right to refresh and returns the refresh token. It waits while
// another node has it.
func (s *Sessions) claim(ctx context.Context, x *session, me string) (refresh string, err error) {
	for {
		err := s.store.alter(ctx, x, func(r *sessionRecord) error {
			now := s.now()
			if due, _ := r.due(now); !due {
				return errNoLonger
			}
			if r.ClaimedBy != "" && now.Unix() < r.ClaimEnd {
				return errClaimed
			}
			r.ClaimedBy, r.ClaimEnd = me, now.Add(claimTime).Unix()
			refresh = r.Refresh
			return nil
		})
		if !errors.Is(err, errClaimed) {
			return refresh, err
		}
		select {
		case <-time.After(refreshPoll):
		case <-ctx.Done():
			return "", ctx.Err()
		}
	}
}

func (s *Sessions) unclaim(ctx context.Context, x *session, me string) error {
	return s.store.alter(ctx, x, func(r *sessionRecord) error {
		if r.ClaimedBy == me {
			r.ClaimedBy, r.ClaimEnd = "", 0
		}
		return nil
	})
}

// askAgain is unclaim after an answer that is not believed: what came before it
// is no longer worth anything either.
func (s *Sessions) askAgain(ctx context.Context, x *session, me string) error {
	return s.store.alter(ctx, x, func(r *sessionRecord) error {
		if r.ClaimedBy == me {
			r.ClaimedBy, r.ClaimEnd, r.AccessEnd = "", 0, s.now().Unix()
		}
		return nil
	})
}

// renewClaims takes over what a refresh says of the person: it must be the same
// one (OpenID Connect Core 1.0 section 12.2).
func (s *Sessions) renewClaims(ctx context.Context, x *session, m *idpMetadata, t *tokens, me string) error {
	was := x.now.Load()
	var id *identity
	if t.id != "" {
		var f *Failure
		if id, f = s.verifyID(ctx, t.id, "", t.access); f != nil {
			if f.Reason == reason.TokenKeyUnknown {
				// A key that was just changed is known after the next fetch.
				f = away("the issuer signs with a key that is not known yet", f)
			}
			return errors.Join(f, s.askAgain(ctx, x, me))
		}
		if id.principal.Subject != was.Subject {
			return fail(reason.TokenAudience, "the refreshed ID token is about somebody else")
		}
		if f := s.addUserInfo(ctx, m, t.access, id.principal); f != nil {
			return errors.Join(f, s.askAgain(ctx, x, me))
		}
	}
	return s.store.alter(ctx, x, func(r *sessionRecord) error {
		if r.ClaimedBy == me {
			r.ClaimedBy, r.ClaimEnd = "", 0
		}
		if id != nil {
			auth, acr, amr := r.AuthTime, r.ACR, r.AMR
			r.describe(id.principal)
			if r.AuthTime == 0 { // a refresh is no login: what it does not say stays
				r.AuthTime = auth
			}
			if r.ACR == "" {
				r.ACR, r.AMR = acr, amr
			}
		}
		return nil
	})
}

// describe takes over what a verified ID token says.
func (r *sessionRecord) describe(p *Principal) {
	r.Roles, r.Groups, r.Scopes, r.AMR, r.ACR = p.Roles, p.Groups, p.Scopes, p.AMR, p.ACR
	r.Audiences, r.Tenant, r.Person, r.Email, r.KID, r.Alg, r.Claims, r.Unfit = p.Audiences, p.Tenant, p.Name, p.Email, p.KID, p.Alg, p.Claims, p.Unfit
	r.AuthTime = 0
	if !p.AuthTime.IsZero() {
		r.AuthTime = p.AuthTime.Unix()
	}
}

// addUserInfo asks for what an ID token lacks, if that is configured.
func (s *Sessions) addUserInfo(ctx context.Context, m *idpMetadata, access string, p *Principal) *Failure {
	if !s.userInfo {
		return nil
	}
	if m.userinfo == "" {
		return away("the issuer has no userinfo endpoint", nil)
	}
	v, err := s.idp.userinfo(ctx, m, access, p.Subject)
	if err != nil {
		return away("the userinfo endpoint gives no usable answer", err)
	}
	rules := s.ids.profile
	if err := rules.names.check(v); err != nil {
		return away("userinfo can be read in two ways", err)
	}
	for _, l := range []struct {
		to   *[]string
		path claimPath
	}{{&p.Roles, rules.roles}, {&p.Groups, rules.groups}} {
		if list, ok := textList(l.path.in(v)); !ok {
			return fail(reason.TokenMalformed, "roles or groups in userinfo are neither a string nor an array of short plain strings")
		} else if *l.to == nil {
			*l.to = list
		}
	}
	for _, t := range []struct {
		to   *string
		from *value
	}{{&p.Tenant, rules.ten.in(v)}, {&p.Name, v.get("name")}, {&p.Email, v.get("email")}} {
		if *t.to == "" && t.from != nil {
			*t.to, _ = text(t.from, maxText)
		}
	}
	return nil
}
