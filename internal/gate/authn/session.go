package authn

import (
	"context"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// methodSession is what a Principal of a session was authenticated by.
const methodSession = "session"

// SessionConfig describes how people log in on one host and how long that
// holds.
type SessionConfig struct {
	Name   string // configured name
	Origin string // scheme, host and port under which browsers reach this gate; https

	// Token says who the issuer is and what its ID tokens claim: names of
	// claims, algorithms, keys, skew. Audiences, types and lifetimes are set here.
	Token  JWTConfig
	Client ClientAuth
	Scopes []string // openid is added
	// UserInfo asks the issuer's userinfo endpoint for roles, groups, tenant, name
	// and e-mail that the ID token lacks.
	UserInfo bool
	Timeout  time.Duration // for one question to the issuer; default 5 s

	Idle     time.Duration // unused for so long it ends
	Absolute time.Duration // after so long it ends
	Rotate   time.Duration // how often the id is renewed

	AfterLogout string // path on the origin; "": a page of the gate

	Store *SessionStore
	Once  Once // logout tokens

	Now    func() time.Time
	Logger *slog.Logger
}

// Sessions is the login and the sessions of one host: OpenID Connect
// authorization code flow with PKCE. The browser holds an id that says nothing;
// tokens stay here. It is safe for concurrent use.
type Sessions struct {
	name, origin, authority string
	issuerName, issuer      string

	ids, logouts *JWT
	idp          *idp
	scope        string
	userInfo     bool

	idle, absolute, rotate time.Duration
	afterLogout            string

	store *SessionStore
	once  Once
	now   func() time.Time
	log   *slog.Logger
}

// rotateGrace is how long an id is taken after it was replaced.
const rotateGrace = 30 * time.Second

// NewSessions validates the configuration and makes Sessions. It fetches
// nothing.
func NewSessions(c SessionConfig) (*Sessions, error) {
	s, err := newSessions(&c)
	if err != nil {
		return nil, fmt.Errorf("session %q: %w", c.Name, err)
	}
	return s, nil
}

func newSessions(c *SessionConfig) (*Sessions, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Timeout == 0 {
		c.Timeout = 5 * time.Second
	}
	origin, err := url.Parse(c.Origin)
	switch {
	case err != nil || origin.Scheme != "https" || origin.Host == "" || origin.Path != "" || origin.RawQuery != "" || origin.User != nil:
		return nil, errors.New("the origin must be https with host and port only: browsers keep the cookies for nothing else")
	case c.Name == "" || c.Store == nil || c.Once == nil:
		return nil, errors.New("a name, a store and a memory of logout tokens are needed")
	case c.Rotate <= rotateGrace || c.Idle < time.Minute || c.Absolute < c.Idle:
		return nil, errors.New("rotate must be longer than 30 s, idle at least 1 min and absolute no shorter than idle")
	case c.AfterLogout != "" && !localPath(c.AfterLogout):
		return nil, errors.New("the place to go after logout must be a path of this host")
	}
	if err := c.Client.validate(); err != nil {
		return nil, err
	}
	s := &Sessions{
		name: c.Name, origin: c.Origin, authority: strings.TrimSuffix(strings.ToLower(origin.Host), ":443"), issuerName: c.Token.Name, issuer: c.Token.Issuer,
		userInfo: c.UserInfo, idle: c.Idle, absolute: c.Absolute, rotate: c.Rotate, afterLogout: c.AfterLogout,
		store: c.Store, once: c.Once, now: c.Now, log: c.Logger,
	}
	if s.idp, err = newIDP(c); err != nil {
		return nil, err
	}
	scopes := slices.Clone(c.Scopes)
	if !slices.Contains(scopes, "openid") {
		scopes = append([]string{"openid"}, scopes...)
	}
	s.scope = strings.Join(scopes, " ")
	return s, s.addVerifiers(c)
}

// Bounds of an ID token.
const (
	idMaxLife = 24 * time.Hour
	idMaxAge  = 10 * time.Minute
)

func (s *Sessions) addVerifiers(c *SessionConfig) (err error) {
	t := c.Token
	t.Audiences, t.AudienceClaim = []string{c.Client.ID}, ""
	t.RequireClaims, t.ClientClaims, t.Cache = nil, nil, NewCache(1)
	t.Now, t.Logger = c.Now, c.Logger
	t.Types, t.AllowNoType = []string{"JWT"}, true
	t.MaxLifetime, t.MaxAge, t.RefuseClaims = idMaxLife, idMaxAge, []string{"events"}
	if s.ids, err = NewJWT(t); err != nil {
		return err
	}
	t.Types, t.AllowNoType = []string{"logout+jwt"}, false
	t.MaxLifetime, t.MaxAge, t.RefuseClaims = logoutMaxLife, logoutMaxAge, []string{"nonce"}
	if s.logouts, err = NewJWT(t); err != nil {
		return err
	}
	s.logouts.keys = s.ids.keys // one set for both
	return nil
}

// Run keeps the issuer's keys fresh until ctx ends.
func (s *Sessions) Run(ctx context.Context) error { return s.ids.Run(ctx) }

// Inherit takes over the keys of Sessions whose issuer has the same key source.
func (s *Sessions) Inherit(before *Sessions) { s.ids.Inherit(before.ids) }

// Name is the configured name.
func (s *Sessions) Name() string { return s.name }

// Issuer is the configured name of the issuer.
func (s *Sessions) Issuer() string { return s.issuerName }

// HasKey reports whether the issuer's keys that are loaded have one of that id.
func (s *Sessions) HasKey(kid string) bool { return s.ids.HasKey(kid) }

// Method is what records call it.
func (s *Sessions) Method() string { return methodSession }

// Here reports whether the request came to the host of these sessions.
func (s *Sessions) Here(r *canon.Request) bool { return r.Authority == s.authority }

// Kept is what came of a session's cookie.
type Kept struct {
	Principal *Principal
	SetCookie string // for the answer, "" for none: whatever becomes of the request
}

// Authenticate is Keep for who cannot set cookies: the id is not renewed.
func (s *Sessions) Authenticate(ctx context.Context, r *canon.Request) (*Principal, error) {
	k, err := s.keep(ctx, r, false)
	return k.Principal, err
}

// Keep finds the session of a request's cookie, renews what is due, and says
// which cookie to set. A session that has ended is not this method's: another
// one may know the caller. An id that was replaced long ago ends the session:
// two hold it, and nobody can say which is the thief.
func (s *Sessions) Keep(ctx context.Context, r *canon.Request) (Kept, error) {
	return s.keep(ctx, r, true)
}

func (s *Sessions) keep(ctx context.Context, r *canon.Request, renew bool) (Kept, error) {
	if !s.Here(r) {
		return Kept{}, ErrNoCredential
	}
	text, found, differ := cookie(r, sessionCookie)
	switch {
	case differ:
		return Kept{}, fail(reason.TwoCredentials, "two session cookies")
	case !found:
		return Kept{}, ErrNoCredential
	}
	x, generation, err := s.lookup(ctx, text)
	if err != nil {
		return Kept{SetCookie: s.gone(err)}, err
	}
	now := s.now()
	st := x.now.Load()
	current, err := s.checkID(ctx, x, st, generation, r, now)
	if err != nil {
		return Kept{SetCookie: s.gone(err)}, err
	}
	if f := s.crossSite(r); f != nil {
		return Kept{}, f.about(st.principal)
	}
	if f := s.keepFresh(ctx, x, now); f != nil {
		return Kept{SetCookie: s.gone(f)}, f.about(st.principal)
	}
	storeMax(&x.seen, now.Unix())
	out := Kept{Principal: x.now.Load().principal}
	if !renew {
		return out, nil
	}
	if current && now.Unix()-st.Rotated >= int64(s.rotate/time.Second) {
		if err := s.renew(ctx, x, st.Generation, bindingOf(r)); err != nil {
			return Kept{}, err
		}
		current = false
	}
	if !current {
		out.SetCookie = setCookie(sessionCookie, s.store.keys.sessionID(s.name, x.family, x.now.Load().Generation))
	}
	return out, nil
}

// gone is the cookie that makes a browser forget a session that is over.
func (s *Sessions) gone(err error) string {
	var f *Failure
	if errors.As(err, &f) && f.Reason.Status() == http.StatusUnauthorized {
		return clearCookie(sessionCookie)
	}
	return ""
}

// lookup finds the session of an id.
func (s *Sessions) lookup(ctx context.Context, text string) (*session, uint32, error) {
	f, generation, ok := s.store.keys.readSessionID(s.name, text)
	if !ok {
		return nil, 0, &NotMine{Failure{Reason: reason.TokenSignature, Detail: "the session cookie is not one that this gate has made"}}
	}
	x, err := s.store.find(ctx, f)
	if err != nil {
		return nil, 0, s.storeAway(err)
	}
	if x == nil {
		return nil, 0, expired("the session has ended")
	}
	if st := x.now.Load(); st.Name != s.name || st.IssuerURL != s.issuer {
		return nil, 0, expired("the session is of another issuer than the configured one")
	}
	return x, generation, nil
}

func expired(detail string) error {
	return &NotMine{Failure{Reason: reason.SessionExpired, Detail: detail}}
}

func (s *Sessions) storeAway(err error) *Failure {
	s.log.Error("the store of sessions is away", "session", s.name, "err", err)
	f := fail(reason.LimiterUnavailable, "the store of sessions is away")
	f.Err = err
	return f
}

// checkID judges times and generation. current: it is the newest id.
func (s *Sessions) checkID(ctx context.Context, x *session, st *sessionNow, generation uint32, r *canon.Request, now time.Time) (current bool, err error) {
	if st.over(now.Unix(), x.seen.Load(), int64(s.idle/time.Second)) || now.Unix()-st.Created >= int64(s.absolute/time.Second) {
		if err := s.store.end(context.WithoutCancel(ctx), x); err != nil {
			s.log.Error("a session that is over could not be removed", "err", err)
		}
		return false, expired("the session is over (idle or absolute)")
	}
	switch {
	case generation == st.Generation:
		return true, nil
	case generation > st.Generation: // a node that knows more has given it out
		return false, expired("the session's id is newer than what is known of it")
	case generation == st.Generation-1 && now.Unix()-st.Rotated < int64(rotateGrace/time.Second) && st.Binding == bindingOf(r):
		return false, nil
	}
	if err := s.store.end(context.WithoutCancel(ctx), x); err != nil {
		s.log.Error("a session whose id was used by two could not be removed", "err", err)
	}
	return false, fail(reason.TokenReuseDetected, "an id of the session that was replaced").about(st.principal)
}

// bindingOf is what must be the same for an id that was just replaced.
func bindingOf(r *canon.Request) string {
	agent, _ := r.Get("user-agent")
	h := sha256.New()
	h.Write([]byte(agent))
	if c := r.ClientCertificate(); c != nil {
		sum := sha256.Sum256(c.Raw)
		h.Write(sum[:])
	}
	return base64.RawURLEncoding.EncodeToString(h.Sum(nil)[:16])
}

// errRenewed: another request has renewed the id.
var errRenewed = errors.New("renewed already")

// renew replaces the id, durably.
func (s *Sessions) renew(ctx context.Context, x *session, generation uint32, binding string) error {
	err := s.store.alter(context.WithoutCancel(ctx), x, func(r *sessionRecord) error {
		if r.Generation != generation {
			return errRenewed
		}
		r.Generation++
		r.Rotated, r.Binding = s.now().Unix(), binding
		return nil
	})
	switch {
	case err == nil || errors.Is(err, errRenewed):
		return nil
	case errors.Is(err, errEnded):
		return expired("the session has ended")
	}
	return s.storeAway(err)
}

// crossSite refuses unsafe methods that another site may have made the browser
// send: without a word of the browser on where it comes from they are refused
// too (Fetch Metadata section 2.3, RFC 6454 section 7).
func (s *Sessions) crossSite(r *canon.Request) *Failure {
	switch r.Method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace:
		return nil
	}
	return s.SameOrigin(r)
}

// SameOrigin is nil if the browser says that a page of this origin sends the
// request. What it says must not contradict itself.
func (s *Sessions) SameOrigin(r *canon.Request) *Failure {
	site, sites := r.Get("sec-fetch-site")
	origin, origins := r.Get("origin")
	own := origin == "https://"+s.authority
	switch {
	case sites > 1 || origins > 1,
		// Without a referrer policy that tells, the origin is "null".
		sites == 1 && (site != "same-origin" || origins == 1 && !own && origin != "null"),
		sites == 0 && !own:
		return fail(reason.CrossSite, "Sec-Fetch-Site and Origin do not say that a page of this origin sends it")
	}
	return nil
}
