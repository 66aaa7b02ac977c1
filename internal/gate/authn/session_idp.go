package authn

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"mime"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// How long what an issuer says of itself is believed: it is asked again after
// metadataFresh, and without an answer the old one serves up to metadataStale.
const (
	metadataFresh = 10 * time.Minute
	metadataStale = 24 * time.Hour
	metadataRetry = 2 * time.Second
)

// Strangers can make the gate push authorization requests: so many a second,
// and so many at once.
const (
	pushesPerSecond = 50
	idpConns        = 32
)

// idp is an issuer as its client meets it.
type idp struct {
	issuer   string
	url      *url.URL
	loopback bool
	auth     ClientAuth
	client   *http.Client
	timeout  time.Duration
	now      func() time.Time

	turn chan struct{} // one token: who may touch what follows
	said *idpMetadata
	next time.Time // no question before
	err  error
	left float64 // pushes that may be made now
	at   time.Time
}

// idpMetadata is what is used of an issuer's metadata (OpenID Connect Discovery
// 1.0 section 3, RFC 8414, RFC 9126 section 5, RFC 9207 section 3).
type idpMetadata struct {
	authorize, token, userinfo, endSession, push string
	mustPush, saysIssuer                         bool
	at                                           time.Time
}

func newIDP(c *SessionConfig) (*idp, error) {
	u, err := checkURL(c.Token.Issuer, c.Token.Keys.AllowLoopbackHTTP)
	if err != nil {
		return nil, err
	}
	client := newClient(c.Token.Keys.RootCAs, c.Timeout, idpConns)
	// A redirect would send codes and the client's secret elsewhere.
	client.CheckRedirect = func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }
	return &idp{
		issuer: c.Token.Issuer, url: u, loopback: c.Token.Keys.AllowLoopbackHTTP, auth: c.Client, client: client,
		timeout: c.Timeout, now: c.Now, turn: make(chan struct{}, 1), left: pushesPerSecond, at: c.Now(),
	}, nil
}

// metadata is what the issuer says of itself.
func (i *idp) metadata(ctx context.Context) (*idpMetadata, *Failure) {
	select {
	case i.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, away("nobody waits for the issuer's metadata any more", ctx.Err())
	}
	defer func() { <-i.turn }()
	now := i.now()
	if i.said != nil && now.Sub(i.said.at) < metadataFresh {
		return i.said, nil
	}
	if !now.Before(i.next) {
		ctx, cancel := context.WithTimeout(ctx, i.timeout)
		m, err := i.fetch(ctx)
		cancel()
		if i.err = err; err == nil {
			i.said = m
		} else {
			i.next = now.Add(metadataRetry)
		}
	}
	if i.said != nil && now.Sub(i.said.at) < metadataStale {
		return i.said, nil
	}
	return nil, away("the issuer's metadata cannot be had", i.err)
}

func away(detail string, err error) *Failure {
	f := fail(reason.IssuerUnavailable, detail)
	f.Err = err
	return f
}

func (i *idp) fetch(ctx context.Context) (*idpMetadata, error) {
	openid, _ := metadataURLs(i.url)
	doc, err := get(ctx, i.client, openid)
	if err != nil {
		return nil, err
	}
	v, err := parseObject(bytes.Trim(doc, jsonSpace), maxDepth)
	if err != nil {
		return nil, wrap(openid, err)
	}
	if iss := v.get("issuer"); iss == nil || iss.kind != kindString || iss.text != i.issuer {
		return nil, errors.New("the metadata are of another issuer than the configured one")
	}
	m := &idpMetadata{at: i.now()}
	for _, e := range []struct {
		name string
		to   *string
		must bool
	}{
		{"authorization_endpoint", &m.authorize, true}, {"token_endpoint", &m.token, true}, {"userinfo_endpoint", &m.userinfo, false},
		{"end_session_endpoint", &m.endSession, false}, {"pushed_authorization_request_endpoint", &m.push, false},
	} {
		u := v.get(e.name)
		if u == nil && !e.must {
			continue
		}
		if u == nil || u.kind != kindString {
			return nil, fmt.Errorf("the metadata have no %s", e.name)
		}
		if _, err := checkURL(u.text, i.loopback); err != nil {
			return nil, fmt.Errorf("%s: %w", e.name, err)
		}
		*e.to = u.text
	}
	if methods := v.get("code_challenge_methods_supported"); methods != nil {
		if list, ok := stringList(methods); !ok || !contains(list, "S256") {
			return nil, errors.New("the issuer does not take PKCE with S256")
		}
	}
	truth := func(name string) bool { t := v.get(name); return t != nil && t.kind == kindBool && t.truth }
	m.mustPush, m.saysIssuer = truth("require_pushed_authorization_requests"), truth("authorization_response_iss_parameter_supported")
	if m.mustPush && m.push == "" {
		return nil, errors.New("the issuer demands pushed authorization requests and does not say where")
	}
	return m, nil
}

// budget takes one push.
func (i *idp) budget(ctx context.Context) *Failure {
	select {
	case i.turn <- struct{}{}:
	case <-ctx.Done():
		return away("nobody waits any more", ctx.Err())
	}
	defer func() { <-i.turn }()
	now := i.now()
	if d := now.Sub(i.at); d > 0 {
		i.left, i.at = min(i.left+d.Seconds()*pushesPerSecond, pushesPerSecond), now
	}
	if i.left < 1 {
		return fail(reason.Overloaded, "too many logins begin at once")
	}
	i.left--
	return nil
}

// oauthError is an error answer (RFC 6749 section 5.2).
type oauthError struct {
	status int
	code   string // "" if the answer has none that we know how to read
}

func (e *oauthError) Error() string {
	return fmt.Sprintf("the issuer answered %d %s", e.status, e.code)
}

// refused reports whether the issuer says no to what it was shown, rather than
// that something is wrong with it or with us.
func refused(err error) bool {
	var e *oauthError
	return errors.As(err, &e) && e.code == "invalid_grant"
}

// post sends a form as the client and reads the object that comes back.
func (i *idp) post(ctx context.Context, to string, form url.Values, want int) (*value, error) {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	header := http.Header{}
	if err := i.auth.apply(form, header, i.issuer, i.now()); err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, to, strings.NewReader(form.Encode()))
	if err != nil {
		return nil, err
	}
	req.Header = header
	req.Header.Set("Content-Type", "application/x-www-form-urlencoded")
	return i.do(req, want)
}

func (i *idp) do(req *http.Request, want int) (*value, error) {
	req.Header.Set("Accept", "application/json")
	res, err := i.client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	body, err := readBounded(res.Body, req.URL.Path, maxAnswer)
	if err != nil {
		return nil, err
	}
	io.Copy(io.Discard, res.Body)
	v, err := parseObject(bytes.Trim(body, jsonSpace), maxDepth)
	if res.StatusCode != want {
		e := &oauthError{status: res.StatusCode}
		if err == nil && (res.StatusCode == http.StatusBadRequest || res.StatusCode == http.StatusUnauthorized) {
			if code := v.get("error"); code != nil && code.kind == kindString && plain(code.text, maxText) {
				e.code = code.text
			}
		}
		return nil, e
	}
	if kind, _, typeErr := mime.ParseMediaType(res.Header.Get("Content-Type")); typeErr != nil || kind != "application/json" {
		return nil, errors.New("the issuer answered something other than application/json")
	}
	return v, err
}

// tokens is an answer of the token endpoint (RFC 6749 section 5.1, OpenID
// Connect Core 1.0 section 3.1.3.3).
type tokens struct {
	access, id, refresh string
	life                time.Duration // of access; 0: not said
}

// maxIssued bounds a token that an issuer gives us, in bytes.
const maxIssued = 16 << 10

func readTokens(v *value) (*tokens, error) {
	t := &tokens{}
	if typ := v.get("token_type"); typ == nil || typ.kind != kindString || !strings.EqualFold(typ.text, "bearer") {
		return nil, errors.New("token_type is not Bearer")
	}
	for name, to := range map[string]*string{"access_token": &t.access, "id_token": &t.id, "refresh_token": &t.refresh} {
		x := v.get(name)
		if x == nil {
			continue
		}
		if x.kind != kindString || x.text == "" || len(x.text) > maxIssued || strings.ContainsFunc(x.text, func(r rune) bool { return r <= ' ' || r >= 0x7f }) {
			return nil, fmt.Errorf("%s is not a token", name)
		}
		*to = x.text
	}
	if t.access == "" {
		return nil, errors.New("no access_token")
	}
	if life := v.get("expires_in"); life != nil {
		n, ok := life.numericDate()
		if !ok {
			return nil, errors.New("expires_in is not a number of seconds")
		}
		t.life = time.Duration(min(n, 86400)) * time.Second
	}
	return t, nil
}

// exchange redeems a grant.
func (i *idp) exchange(ctx context.Context, m *idpMetadata, form url.Values) (*tokens, error) {
	v, err := i.post(ctx, m.token, form, http.StatusOK)
	if err != nil {
		return nil, err
	}
	return readTokens(v)
}

// userinfo asks who the access token is about (OpenID Connect Core 1.0 section
// 5.3): it must be the subject.
func (i *idp) userinfo(ctx context.Context, m *idpMetadata, access, subject string) (*value, error) {
	ctx, cancel := context.WithTimeout(ctx, i.timeout)
	defer cancel()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, m.userinfo, nil)
	if err != nil {
		return nil, err
	}
	req.Header.Set("Authorization", "Bearer "+access)
	v, err := i.do(req, http.StatusOK)
	if err != nil {
		return nil, err
	}
	if sub := v.get("sub"); sub == nil || sub.kind != kindString || sub.text != subject {
		return nil, errors.New("userinfo is about somebody else")
	}
	return v, nil
}

// push registers an authorization request and returns its name (RFC 9126).
func (i *idp) push(ctx context.Context, m *idpMetadata, form url.Values) (string, *Failure) {
	if f := i.budget(ctx); f != nil {
		return "", f
	}
	v, err := i.post(ctx, m.push, form, http.StatusCreated)
	if err != nil {
		return "", away("the issuer does not take the authorization request", err)
	}
	uri := v.get("request_uri")
	if uri == nil || uri.kind != kindString || !plain(uri.text, 1024) {
		return "", away("the issuer gives the authorization request no name", nil)
	}
	return uri.text, nil
}
