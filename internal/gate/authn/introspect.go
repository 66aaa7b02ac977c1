package authn

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// methodIntrospect is what a Principal of this file was authenticated by.
const methodIntrospect = "introspect"

// IntrospectConfig describes an introspection endpoint (RFC 7662) and what it
// says of tokens that are accepted.
type IntrospectConfig struct {
	// Token is the issuer and what its tokens are like. Name, Issuer, Audiences,
	// MaxLifetime, MaxAge, Skew, the names of claims, RequireClaims,
	// RefuseClaims, PassClaims, Cache, Now and Logger count; the rest is about
	// JWTs. Like there, nothing unset means "anything goes".
	Token JWTConfig

	URL    string // of the endpoint; https
	Client ClientAuth

	// Prefixes, if there are any: a token that begins with none of them is not
	// of this issuer and never sent to it.
	Prefixes []string

	Positive time.Duration // how long an active token is believed at most, exp permitting; default and most 60 s
	Negative time.Duration // how long a refused token is remembered; default 5 s, most 10 s

	Timeout     time.Duration // for one question, and for a request that waits for it; default 2 s
	Concurrency int           // questions that are under way at once; default 16
	Rate        float64       // questions a second, on average and at once; default 200

	AllowLoopbackHTTP bool     // as in KeySource
	RootCAs           RootCAs  // as in KeySource
	Fingerprint       [32]byte // of whatever else vouches for the answers, such as the content of a CA file
}

// Bounds of an introspection.
const (
	maxAnswer       = 64 << 10 // bytes of an answer
	maxAskers       = 1024     // requests that wait for questions under way
	defaultNegative = 5 * time.Second
)

func (c *IntrospectConfig) setDefaults() {
	c.Token.setDefaults()
	if c.Positive == 0 {
		c.Positive = maxRemember
	}
	if c.Negative == 0 {
		c.Negative = defaultNegative
	}
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second
	}
	if c.Concurrency == 0 {
		c.Concurrency = 16
	}
	if c.Rate == 0 {
		c.Rate = 200
	}
}

func (c *IntrospectConfig) validate() error {
	t := &c.Token
	switch {
	case c.Positive < time.Second || c.Positive > maxRemember:
		return fmt.Errorf("verdicts must be kept from 1 s to %s", maxRemember)
	case c.Negative < time.Second || c.Negative > maxRememberBad:
		return fmt.Errorf("refusals must be kept from 1 s to %s", maxRememberBad)
	case c.Timeout < 0 || c.Concurrency < 0 || c.Rate < 0:
		return errors.New("time-out, concurrency and rate must not be negative")
	}
	for _, p := range c.Prefixes {
		if p == "" || strings.ContainsFunc(p, func(r rune) bool { return r > 0x7f || !isB64TokenChar(byte(r)) }) {
			return fmt.Errorf("prefix %q is empty or holds a character that no token has", p)
		}
	}
	if err := t.validateRules(); err != nil {
		return err
	}
	if err := c.Client.validate(); err != nil {
		return err
	}
	_, err := checkURL(c.URL, c.AllowLoopbackHTTP)
	return wrap("introspection", err)
}

// id is a digest of everything that a verdict depends on: endpoint, client,
// audiences, what the claims must look like. What a route demands on top is
// checked on every exchange and is no part of a verdict.
func (c *IntrospectConfig) id() ([sha256.Size]byte, error) {
	token, err := c.Token.id()
	if err != nil {
		return token, err
	}
	b, err := json.Marshal(struct {
		Version             int
		Kind                string
		Token               [sha256.Size]byte
		URL, Client, Method string
		Fingerprint         [32]byte
	}{1, methodIntrospect, token, c.URL, c.Client.ID, c.Client.Method, c.Fingerprint})
	return sha256.Sum256(b), err
}

// Introspector asks an issuer about bearer tokens that it cannot read itself,
// or that the issuer may have revoked. It is safe for concurrent use and owns
// no goroutine: a request that needs an answer fetches it, others with the same
// token wait for that.
type Introspector struct {
	name, issuer       string
	id                 [sha256.Size]byte
	prefixes           []string
	profile            *profile
	cache              *Cache
	positive, negative time.Duration
	endpoint           *endpoint
	now                func() time.Time

	mu      sync.Mutex
	flights map[cacheKey]*question // guarded by mu: under way, by all that the answer depends on
	waiting int                    // guarded by mu
}

// question is one that is under way. p and err are written before done is
// closed and not after.
type question struct {
	done chan struct{}
	p    *Principal
	err  error
}

// NewIntrospector validates the configuration and makes an Introspector. It
// asks nothing.
func NewIntrospector(c IntrospectConfig) (*Introspector, error) {
	c.setDefaults()
	i, err := newIntrospector(&c)
	if err != nil {
		return nil, fmt.Errorf("issuer %q: introspection: %w", c.Token.Name, err)
	}
	return i, nil
}

func newIntrospector(c *IntrospectConfig) (*Introspector, error) {
	if err := c.validate(); err != nil {
		return nil, err
	}
	p, err := c.Token.profile()
	if err != nil {
		return nil, err
	}
	p.introspected = true
	id, err := c.id()
	if err != nil {
		return nil, err
	}
	e, err := newEndpoint(c)
	if err != nil {
		return nil, err
	}
	i := &Introspector{
		name: c.Token.Name, issuer: c.Token.Issuer, id: id, prefixes: c.Prefixes, profile: p,
		cache: c.Token.Cache, positive: c.Positive, negative: c.Negative, endpoint: e, now: c.Token.Now,
		flights: map[cacheKey]*question{},
	}
	if i.cache == nil {
		i.cache = NewCache(0)
	}
	return i, nil
}

// ID is a digest of the configuration that verdicts depend on.
func (i *Introspector) ID() [sha256.Size]byte { return i.id }

// Authenticate asks about the bearer token in the request's Authorization
// field. The error is ErrNoCredential, a *NotMine, which errors.Is(err,
// ErrNoCredential) also finds, or a final *Failure. That a token is not active
// here says nothing about another issuer, and neither does an endpoint that is
// away, so both are NotMine.
func (i *Introspector) Authenticate(ctx context.Context, r *canon.Request) (*Principal, error) {
	raw, err := bearer(r)
	if err != nil {
		return nil, err
	}
	return i.verify(ctx, raw)
}

// verify asks about one token, whatever scheme it came under.
func (i *Introspector) verify(ctx context.Context, raw string) (*Principal, error) {
	k := cacheKey{token: i.cache.hash(raw), config: i.id}
	if p, err := i.remembered(&k); p != nil || err != nil {
		return p, err
	}
	// Only now: what the cache knows has been through all of this.
	if err := i.sift(raw); err != nil {
		return nil, err
	}
	return i.ask(ctx, raw, k)
}

// remembered is the verdict on a token that was asked about lately; nothing if
// there is none.
func (i *Introspector) remembered(k *cacheKey) (*Principal, error) {
	now := i.now().UnixNano()
	if p, ok := i.cache.good.get(k, now); ok {
		return p, nil
	}
	if f, ok := i.cache.bad.get(k, now); ok {
		return nil, asError(f)
	}
	return nil, nil
}

// sift keeps from the endpoint what cannot be one of its tokens: it is nobody
// else's business.
func (i *Introspector) sift(raw string) error {
	for n := range len(raw) {
		if !isB64TokenChar(raw[n]) {
			return fail(reason.TokenMalformed, "token has a character outside b64token")
		}
	}
	if HasKeyPrefix(raw) {
		return &NotMine{*fail(reason.TokenMalformed, "token is an API key of this gate")}
	}
	mine := len(i.prefixes) == 0
	for _, p := range i.prefixes {
		mine = mine || strings.HasPrefix(raw, p)
	}
	if !mine {
		return &NotMine{*fail(reason.TokenMalformed, "token begins with none of the issuer's prefixes")}
	}
	if strings.Count(raw, ".") != 2 {
		return nil
	}
	// A JWT says whose it is. One that says it of somebody else is theirs.
	_, rest, _ := strings.Cut(raw, ".")
	body, _, _ := strings.Cut(rest, ".")
	claims, err := parseSegment("payload", body, maxToken)
	if err != nil {
		return nil
	}
	if iss := claims.get("iss"); iss != nil && (iss.kind != kindString || iss.text != i.issuer) {
		n := &NotMine{*fail(reason.TokenIssuer, "token is not of this issuer")}
		n.Claimed = claimed(claims)
		return n
	}
	return nil
}

// asError is a remembered or fresh refusal as Authenticate returns it.
func asError(f *Failure) error {
	switch f.Reason {
	case reason.TokenInactive, reason.IssuerUnavailable, reason.TokenIssuer:
		return &NotMine{*f}
	}
	return f
}

// ask puts the question, or waits for the one about the same token that is
// under way.
func (i *Introspector) ask(ctx context.Context, raw string, k cacheKey) (*Principal, error) {
	i.mu.Lock()
	if q := i.flights[k]; q != nil {
		if i.waiting >= maxAskers {
			i.mu.Unlock()
			return nil, fail(reason.Overloaded, "too many requests wait for introspection")
		}
		i.waiting++
		i.mu.Unlock()
		return i.wait(ctx, q)
	}
	// What was under way when the cache was looked at may have ended since: a
	// verdict is remembered before its question goes.
	if p, err := i.remembered(&k); p != nil || err != nil {
		i.mu.Unlock()
		return p, err
	}
	q := &question{done: make(chan struct{}), err: fail(reason.IssuerUnavailable, "the question did not end")} // stays only after a panic
	i.flights[k] = q
	i.mu.Unlock()
	defer func() {
		i.mu.Lock()
		delete(i.flights, k)
		i.mu.Unlock()
		close(q.done)
	}()
	// Others may be waiting for the answer, so it does not end with the request
	// that happened to ask first; the endpoint's time-out bounds it.
	q.p, q.err = i.judge(context.WithoutCancel(ctx), raw, k)
	return q.p, q.err
}

func (i *Introspector) wait(ctx context.Context, q *question) (*Principal, error) {
	defer func() {
		i.mu.Lock()
		i.waiting--
		i.mu.Unlock()
	}()
	select {
	case <-q.done:
		return q.p, q.err
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return nil, fail(reason.Overloaded, "introspection took too long")
		}
		return nil, fail(reason.ClientAborted, "request ended before its token was checked")
	}
}

// judge asks the endpoint and remembers the verdict.
func (i *Introspector) judge(ctx context.Context, raw string, k cacheKey) (*Principal, error) {
	said, f := i.endpoint.ask(ctx, raw)
	if f == nil {
		var p *Principal
		var t times
		if p, t, f = i.read(said); f == nil {
			i.remember(p, t, k)
			return p, nil
		}
	}
	if f.Issuer == "" && f.Reason != reason.TokenInactive {
		f.Issuer = i.name
	}
	if f.Reason == reason.TokenInactive || rememberable(f.Reason) {
		now := i.now().UnixNano()
		i.cache.bad.put(&k, 0, now+int64(i.negative), now, f)
	}
	return nil, asError(f)
}

// read takes an answer into a Principal (RFC 7662 section 2.2).
func (i *Introspector) read(said *value) (*Principal, times, *Failure) {
	active := said.get("active")
	if active == nil || active.kind != kindBool {
		return nil, times{}, fail(reason.IssuerUnavailable, "the introspection answer does not say whether the token is active")
	}
	if !active.truth {
		return nil, times{}, fail(reason.TokenInactive, "the issuer says that the token is not active")
	}
	f := i.checkKind(said)
	if f == nil {
		var p *Principal
		var t times
		if p, t, f = i.profile.check(said, i.now()); f == nil {
			p.Method, p.Issuer = methodIntrospect, i.name
			return p, t, nil
		}
	}
	f.Claimed = claimed(said)
	return nil, times{}, f
}

// checkKind wants an access token of this issuer: an endpoint may call a
// refresh token active, too.
func (i *Introspector) checkKind(said *value) *Failure {
	if err := i.profile.names.check(said); err != nil {
		f := fail(reason.TokenMalformed, "the introspection answer can be read in two ways")
		f.Err = err
		return f
	}
	if iss := said.get("iss"); iss != nil && (iss.kind != kindString || iss.text != i.issuer) {
		return fail(reason.TokenIssuer, "the introspection answer names another issuer")
	}
	for _, d := range []struct {
		name string
		must bool
		want []string
	}{
		{"token_type", true, []string{"bearer", "dpop", "access_token"}},
		{"token_use", false, []string{"access_token", "access"}},
		{"typ", false, []string{"bearer", "dpop", "at+jwt", "jwt", "access"}},
	} {
		v := said.get(d.name)
		if v == nil && !d.must {
			continue
		}
		if v == nil || v.kind != kindString || !containsFold(d.want, mediaType(v.text)) {
			return fail(reason.TokenType, "the introspection answer does not say that it is an access token (token_type, token_use, typ)")
		}
	}
	return nil
}

func containsFold(list []string, lower string) bool {
	for _, s := range list {
		if s == lower {
			return true
		}
	}
	return false
}

// remember keeps a verdict until exp, the token's greatest age or the cap,
// whichever is first, and never within the skew that exp is granted.
func (i *Introspector) remember(p *Principal, t times, k cacheKey) {
	now := i.now()
	until := now.Add(i.positive)
	if t.exp >= 0 && p.Expires.Before(until) {
		until = p.Expires
	}
	if m := i.profile.maxAge; m > 0 && t.iat >= 0 && p.IssuedAt.Add(m).Before(until) {
		until = p.IssuedAt.Add(m)
	}
	from := time.Unix(max(t.iat, t.nbf, t.auth, 0), 0).Add(-i.profile.skew)
	i.cache.good.put(&k, from.UnixNano(), until.UnixNano(), now.UnixNano(), p)
}

// IntrospectStatus describes an endpoint for health checks and diagnosis.
type IntrospectStatus struct {
	Asked, Failed uint64 // questions put, and those of them that were not answered
	Away          bool   // no questions are put for a while because the last ones failed
	Err           error  // of the last question; nil after an answer
}

// Status reports on the endpoint.
func (i *Introspector) Status() IntrospectStatus { return i.endpoint.status() }

// Probe asks about a token that the issuer cannot know and says what does not
// work. It uses no verdict and leaves none.
func (i *Introspector) Probe(ctx context.Context) error {
	said, f := i.endpoint.ask(ctx, "gatebook-probe")
	if f != nil {
		if f.Err != nil {
			return f.Err
		}
		if f.Reason == reason.TokenInactive {
			return nil
		}
		return f
	}
	if v := said.get("active"); v == nil || v.kind != kindBool {
		return errors.New("the answer does not say whether the token is active")
	} else if v.truth {
		return errors.New("the endpoint calls a token active that cannot exist")
	}
	return nil
}
