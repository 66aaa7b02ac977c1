package authn

import (
	"context"
	"errors"
	"net/url"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/reason"
)

func TestSessionLogout(t *testing.T) {
	l := newLoginTest(t, func(c *SessionConfig) { c.AfterLogout = "/bye" })
	l.login("")
	if _, f := l.s.Leave(t.Context(), l.request("POST", LogoutPath, "sec-fetch-site", "cross-site")); failureReason(f) != reason.CrossSite {
		t.Fatalf("of another site: %v", f)
	}
	leaving, f := l.s.Leave(t.Context(), l.request("POST", LogoutPath, "sec-fetch-site", "same-origin"))
	if f != nil || leaving.Principal == nil {
		t.Fatal(f)
	}
	old := l.jar[sessionCookie]
	to, f := l.s.Logout(t.Context(), leaving)
	if f != nil {
		t.Fatal(f)
	}
	l.take(to.Cookies...)
	u, err := url.Parse(to.Location)
	if err != nil || u.Path != "/end" || u.Query().Get("id_token_hint") == "" || u.Query().Get("post_logout_redirect_uri") != "https://"+testHost+"/bye" {
		t.Errorf("to %s (%v)", to.Location, err)
	}
	if l.jar[sessionCookie] != "" || len(l.store.List()) != 0 {
		t.Error("the session goes on")
	}
	l.jar[sessionCookie] = old
	if _, err := l.use(); why(err) != reason.SessionExpired {
		t.Error(err)
	}
}

func TestSessionBackchannel(t *testing.T) {
	set := func(name string, value any) func(h, c map[string]any) {
		return func(_, c map[string]any) { c[name] = value }
	}
	del := func(names ...string) func(h, c map[string]any) {
		return func(_, c map[string]any) {
			for _, n := range names {
				delete(c, n)
			}
		}
	}
	for _, c := range []struct {
		name   string
		change func(h, c map[string]any)
		want   reason.Reason
		ends   bool
	}{
		{"both", nil, "", true},
		{"sid", del("sub"), "", true},
		{"sub", del("sid"), "", true},
		{"another sid", set("sid", "other"), "", false},
		{"another sub", set("sub", "eve"), "", false},
		{"sub alone, another", func(_, c map[string]any) { delete(c, "sid"); c["sub"] = "eve" }, "", false},
		{"neither", del("sid", "sub"), reason.TokenMalformed, false},
		{"no jti", del("jti"), reason.TokenMalformed, false},
		{"no events", del("events"), reason.TokenType, false},
		{"another event", set("events", map[string]any{"http://schemas.openid.net/event/other": map[string]any{}}), reason.TokenType, false},
		{"an event that is no object", set("events", map[string]any{logoutEvent: true}), reason.TokenType, false},
		{"a nonce", set("nonce", "n"), reason.TokenType, false},
		{"an ID token", func(h, _ map[string]any) { h["typ"] = "JWT" }, reason.TokenType, false},
		{"no typ", func(h, _ map[string]any) { delete(h, "typ") }, reason.TokenType, false},
		{"alg none", func(h, _ map[string]any) { h["alg"] = "none" }, reason.TokenMalformed, false},
		{"another audience", set("aud", "other"), reason.TokenAudience, false},
		{"another issuer", set("iss", "https://evil.example"), reason.TokenIssuer, false},
		{"old", func(_, c map[string]any) { now := time.Now().Unix(); c["iat"], c["exp"] = now-600, now+60 }, reason.TokenTooOld, false},
		{"expired", func(_, c map[string]any) { now := time.Now().Unix(); c["iat"], c["exp"] = now-200, now-100 }, reason.TokenExpired, false},
		{"early", func(_, c map[string]any) { now := time.Now().Unix(); c["iat"], c["exp"] = now+200, now+300 }, reason.TokenNotYet, false},
		{"no iat", del("iat"), reason.TokenMalformed, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLoginTest(t, nil)
			l.login("")
			token := l.op.LogoutToken(c.change)
			body := url.Values{"logout_token": {token}}.Encode()
			ending, f := l.s.Backchannel(t.Context(), body)
			if failureReason(f) != c.want {
				t.Fatalf("%v, want %q", f, c.want)
			}
			if f == nil {
				if _, f := l.s.End(t.Context(), ending); f != nil {
					t.Fatal(f)
				}
				if _, f := l.s.Backchannel(t.Context(), body); failureReason(f) != reason.TokenReplayed {
					t.Errorf("the token again: %v", f)
				}
			}
			if _, err := l.use(); (why(err) == reason.SessionExpired) != c.ends {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
	l := newLoginTest(t, nil)
	for _, body := range []string{"", "logout_token=", "logout_token=a&logout_token=b", "token=x"} {
		if _, f := l.s.Backchannel(t.Context(), body); failureReason(f) != reason.MalformedRequest {
			t.Errorf("%q: %v", body, f)
		}
	}
}

func TestSessionsPerSubject(t *testing.T) {
	l := newLoginTest(t, nil)
	rec := func() *sessionRecord {
		now := l.clock.now().Unix()
		return &sessionRecord{Name: "web", IssuerURL: l.op.URL, Issuer: "corp", Subject: "ann", Created: now, Seen: now, Rotated: now, Expires: now + 3600, Idle: 1800}
	}
	first, err := l.store.create(t.Context(), rec(), "")
	if err != nil {
		t.Fatal(err)
	}
	for range maxPerSubject {
		l.clock.pass(time.Second)
		if _, err := l.store.create(t.Context(), rec(), ""); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(l.store.List()); n != maxPerSubject || !first.ended.Load() {
		t.Errorf("%d sessions, the first ended: %v", n, first.ended.Load())
	}
	n, err := l.store.Revoke(t.Context(), func(i SessionInfo) bool { return i.Subject == "ann" })
	if err != nil || n != maxPerSubject || len(l.store.List()) != 0 {
		t.Errorf("%d revoked, %v", n, err)
	}
}

// slowEnd is a store in which somebody comes between the end of a session on this
// node and in the store, which may fail.
type slowEnd struct {
	kv.Store
	before func()
	err    error
}

func (s *slowEnd) Delete(ctx context.Context, table, key string) error {
	s.before()
	if s.err != nil {
		return s.err
	}
	return s.Store.Delete(ctx, table, key)
}

// TestSessionEndsForGood: a request that comes while a session is being ended does
// not bring it back, nor does a store that cannot delete it.
func TestSessionEndsForGood(t *testing.T) {
	c := newTurning(1000)
	for name, fails := range map[string]error{"late": nil, "failing": errors.New("disk")} {
		t.Run(name, func(t *testing.T) {
			store := &slowEnd{Store: stateFile(t, c), err: fails, before: func() {}}
			s, err := NewSessionStore(SessionStoreConfig{Store: store, Hash: func(f string) string { return f }, Now: c.now})
			if err != nil {
				t.Fatal(err)
			}
			rec := func() *sessionRecord {
				return &sessionRecord{IssuerURL: "https://op", Subject: "ann", Created: 1000, Expires: 2000, Idle: 1000, Seen: 1000}
			}
			x, err := s.create(t.Context(), rec(), "")
			if err != nil {
				t.Fatal(err)
			}
			store.before = func() {
				if again, err := s.find(t.Context(), x.family); again != nil || err != nil {
					t.Errorf("while it is being ended: %v, %v", again, err)
				}
			}
			if err := s.end(t.Context(), x); (err != nil) != (fails != nil) {
				t.Error(err)
			}
			store.before()
			// One who has read it just before.
			if s.add(s.newSession(x.family, rec())) || len(s.List()) != 0 {
				t.Error("it is back")
			}
			if s.Sweep(); len(s.gone) != 1 {
				t.Errorf("%d are remembered", len(s.gone))
			}
			c.sec.Store(2000)
			if s.Sweep(); len(s.gone) != 0 {
				t.Errorf("%d are remembered for ever", len(s.gone))
			}
			c.sec.Store(1000)
		})
	}
}
