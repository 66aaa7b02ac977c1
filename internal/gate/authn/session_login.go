package authn

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// The gate's own pages of a host with sessions.
const (
	LoginPath       = ReservedPaths + "login"
	CallbackPath    = ReservedPaths + "callback"
	LogoutPath      = ReservedPaths + "logout"
	BackchannelPath = ReservedPaths + "backchannel-logout"
)

// LoginURL is where a login begins that leads back to the request; acrValues
// and maxAge are what it has to reach, if anything.
func (s *Sessions) LoginURL(r *canon.Request, acrValues string, maxAge time.Duration) string {
	q := url.Values{}
	back := r.Path
	if r.HasQuery {
		back += "?" + r.Query
	}
	if localPath(back) {
		q.Set("return", back)
	}
	if acrValues != "" {
		q.Set("acr", acrValues)
	}
	if maxAge > 0 {
		q.Set("max_age", strconv.FormatInt(int64(maxAge/time.Second), 10))
	}
	if len(q) == 0 {
		return LoginPath
	}
	return LoginPath + "?" + q.Encode()
}

// Redirect is a browser's next step.
type Redirect struct {
	Location string
	Cookies  []string // values of Set-Cookie
}

// maxACR bounds the classes that a login may be asked for, in bytes.
const maxACR = 256

// Begin begins a login: where the browser goes and what it keeps until it comes
// back. It fills nothing here.
func (s *Sessions) Begin(ctx context.Context, r *canon.Request) (*Redirect, *Failure) {
	p, err := parseParams(r.Query, "return", "acr", "max_age")
	if err != nil {
		return nil, malformed(err)
	}
	l := &loginState{State: rand.Text(), Nonce: rand.Text(), Verifier: rand.Text() + rand.Text(), Return: p["return"], Begun: s.now().Unix(), ACR: p["acr"]}
	if l.Return == "" {
		l.Return = "/"
	}
	if !localPath(l.Return) {
		return nil, fail(reason.MalformedRequest, "the way back is not a path of this host")
	}
	if _, ok := scopes(&value{kind: kindString, text: l.ACR}); l.ACR != "" && !ok || len(l.ACR) > maxACR {
		return nil, fail(reason.MalformedRequest, "acr is not a list of authentication context classes")
	}
	if text := p["max_age"]; text != "" {
		n, err := strconv.ParseUint(text, 10, 31)
		if err != nil || n == 0 {
			return nil, fail(reason.MalformedRequest, "max_age is not a number of seconds")
		}
		l.MaxAge = int64(n)
	}
	to, f := s.authorizeURL(ctx, l)
	if f != nil {
		return nil, f
	}
	sealed, err := s.store.keys.sealLogin(s.name, l)
	if err != nil {
		return nil, malformed(err)
	}
	out := &Redirect{Location: to}
	if old := loginsOf(r); len(old) >= maxLogins {
		for _, name := range old {
			out.Cookies = append(out.Cookies, clearCookie(name))
		}
	}
	out.Cookies = append(out.Cookies, setCookie(loginCookie(l.State), sealed)+"; Max-Age="+strconv.Itoa(int(loginTime/time.Second)))
	return out, nil
}

func malformed(err error) *Failure {
	f := fail(reason.MalformedRequest, "parameters that cannot be read")
	f.Err = err
	return f
}

// loginsOf are the names of the login cookies that the browser sends, at most
// 64.
func loginsOf(r *canon.Request) (names []string) {
	eachCookie(r, func(name, _ string) {
		if n := len(loginCookies) + 8; len(name) == n && strings.HasPrefix(name, loginCookies) && len(names) < 64 && !strings.ContainsFunc(name, outsideAlphabet) {
			names = append(names, name)
		}
	})
	slices.Sort(names)
	return slices.Compact(names)
}

// authorizeURL is the authorization request, pushed if the issuer takes that.
func (s *Sessions) authorizeURL(ctx context.Context, l *loginState) (string, *Failure) {
	m, f := s.idp.metadata(ctx)
	if f != nil {
		return "", f
	}
	sum := sha256.Sum256([]byte(l.Verifier))
	q := url.Values{
		"response_type": {"code"}, "client_id": {s.idp.auth.ID}, "redirect_uri": {s.origin + CallbackPath}, "scope": {s.scope},
		"state": {l.State}, "nonce": {l.Nonce}, "code_challenge": {base64.RawURLEncoding.EncodeToString(sum[:])}, "code_challenge_method": {"S256"},
	}
	var prompt []string
	if l.ACR != "" {
		// acr_values alone is a wish: an issuer with a session of its own would
		// answer with what that has.
		q.Set("acr_values", l.ACR)
		prompt = append(prompt, "login")
	}
	if strings.Contains(" "+s.scope+" ", " offline_access ") {
		prompt = append(prompt, "consent") // OpenID Connect Core 1.0 section 11
	}
	if len(prompt) > 0 {
		q.Set("prompt", strings.Join(prompt, " "))
	}
	if l.MaxAge > 0 {
		q.Set("max_age", strconv.FormatInt(l.MaxAge, 10))
	}
	if m.push != "" {
		uri, f := s.idp.push(ctx, m, q)
		if f != nil {
			return "", f
		}
		q = url.Values{"client_id": {s.idp.auth.ID}, "request_uri": {uri}}
	}
	return addQuery(m.authorize, q), nil
}

func addQuery(to string, q url.Values) string {
	if strings.Contains(to, "?") {
		return to + "&" + q.Encode()
	}
	return to + "?" + q.Encode()
}

// Login is a login that was verified and is not yet a session.
type Login struct {
	Principal *Principal
	Return    string // a path of this host

	id     *identity
	tokens *tokens
	cookie string // the login's, to be cleared
}

// Callback judges what the issuer sends back with the browser (RFC 6749 section
// 4.1.2, RFC 9207, OpenID Connect Core 1.0 section 3.1.2.5). clear are cookies
// that are used up, also after a failure.
func (s *Sessions) Callback(ctx context.Context, r *canon.Request) (l *Login, clear []string, f *Failure) {
	p, err := parseParams(r.Query, "code", "state", "iss", "error", "error_description", "error_uri")
	if err != nil {
		return nil, nil, malformed(err)
	}
	if p["state"] == "" || (p["code"] == "") == (p["error"] == "") {
		return nil, nil, fail(reason.MalformedRequest, "not state and exactly one of code and error")
	}
	name := loginCookie(p["state"])
	sealed, found, differ := cookie(r, name)
	if differ {
		return nil, nil, fail(reason.TwoCredentials, "two states of one login")
	}
	if !found {
		return nil, nil, fail(reason.SessionExpired, "this browser has begun no login of that state, or too long ago")
	}
	clear = []string{clearCookie(name)}
	begun, err := s.store.keys.openLogin(s.name, p["state"], sealed)
	if err != nil || subtle.ConstantTimeCompare([]byte(begun.State), []byte(p["state"])) != 1 {
		return nil, clear, fail(reason.TokenSignature, "the state of the login is not one that this gate has made")
	}
	if age := s.now().Sub(time.Unix(begun.Begun, 0)); age < -time.Second || age >= loginTime {
		return nil, clear, fail(reason.SessionExpired, "the login was begun too long ago")
	}
	m, f := s.idp.metadata(ctx)
	if f != nil {
		return nil, clear, f
	}
	// Before the code goes anywhere: it may be of another issuer (mix-up).
	if iss, said := p["iss"]; said && iss != s.issuer || !said && m.saysIssuer {
		return nil, clear, fail(reason.TokenIssuer, "the answer is of another issuer than the one that was asked (iss)")
	}
	if p["error"] != "" {
		return nil, clear, refusal(p["error"])
	}
	l, f = s.redeem(ctx, m, begun, p["code"])
	if f != nil {
		return nil, clear, f
	}
	l.cookie = name
	return l, clear, nil
}

// refusal is an error answer of the authorization endpoint.
func refusal(code string) *Failure {
	switch code {
	case "server_error", "temporarily_unavailable":
		return fail(reason.IssuerUnavailable, "the issuer cannot log anybody in for the moment")
	case "unmet_authentication_requirements": // OpenID Connect Unmet Authentication Requirements 1.0
		return fail(reason.StepupRequired, "the issuer cannot reach what was asked of the login")
	}
	return fail(reason.NoCredential, "the issuer has not logged the person in")
}

// redeem gets the tokens for a code and judges them.
func (s *Sessions) redeem(ctx context.Context, m *idpMetadata, begun *loginState, code string) (*Login, *Failure) {
	t, err := s.idp.exchange(ctx, m, url.Values{
		"grant_type": {"authorization_code"}, "code": {code}, "redirect_uri": {s.origin + CallbackPath}, "code_verifier": {begun.Verifier},
	})
	if refused(err) {
		f := fail(reason.TokenInactive, "the issuer does not take the code")
		f.Err = err
		return nil, f
	}
	if err != nil {
		return nil, away("the token endpoint gives no usable answer", err)
	}
	if t.id == "" {
		return nil, away("the token endpoint gives no ID token", nil)
	}
	id, f := s.verifyID(ctx, t.id, begun.Nonce, t.access)
	if f != nil {
		return nil, f
	}
	if f := s.reached(begun, id.principal); f != nil {
		return nil, f
	}
	if f := s.addUserInfo(ctx, m, t.access, id.principal); f != nil {
		return nil, f
	}
	p := id.principal
	p.Method, p.Issuer, p.Client = methodSession, s.issuerName, s.idp.auth.ID
	p.IssuedAt = s.now().Truncate(time.Second)
	p.TokenID = ""
	return &Login{Principal: p, Return: begun.Return, id: id, tokens: t}, nil
}

// reached refuses a login that is not what was asked for: the route would send
// the browser here again and again.
func (s *Sessions) reached(begun *loginState, p *Principal) *Failure {
	if begun.ACR != "" && !slices.Contains(strings.Fields(begun.ACR), p.ACR) {
		return fail(reason.StepupRequired, "the login is of none of the classes that were asked for").about(p)
	}
	if begun.MaxAge > 0 && (p.AuthTime.IsZero() || s.now().Sub(p.AuthTime) > time.Duration(begun.MaxAge)*time.Second+s.ids.profile.skew) {
		return fail(reason.StepupRequired, "the login is longer ago than what was asked for").about(p)
	}
	return nil
}

// Establish makes a login a session, with an id that nobody had before, and
// ends the one that the browser had.
func (s *Sessions) Establish(ctx context.Context, r *canon.Request, l *Login) (*Redirect, *Failure) {
	now := s.now()
	rec := &sessionRecord{
		Name: s.name, IssuerURL: s.issuer, Issuer: s.issuerName, Client: s.idp.auth.ID, Subject: l.Principal.Subject, SID: l.id.sid,
		Created: now.Unix(), Expires: now.Add(s.absolute).Unix(), Idle: int64(s.idle / time.Second), Seen: now.Unix(),
		Rotated: now.Unix(), Binding: bindingOf(r), Refresh: l.tokens.refresh,
	}
	rec.describe(l.Principal)
	if l.tokens.refresh != "" {
		rec.AccessEnd = now.Add(orLife(l.tokens.life)).Unix()
	}
	x, err := s.store.create(ctx, rec, l.tokens.id)
	if err != nil {
		return nil, s.storeAway(err)
	}
	if old := s.of(ctx, r); old != nil {
		if err := s.store.end(ctx, old); err != nil {
			return nil, s.storeAway(err)
		}
	}
	l.Principal.Session = x.hash
	return &Redirect{Location: l.Return, Cookies: []string{
		setCookie(sessionCookie, s.store.keys.sessionID(s.name, x.family, 0)), clearCookie(l.cookie),
	}}, nil
}

// of is the session of the request's cookie, whatever its id's age; nil: there
// is none.
func (s *Sessions) of(ctx context.Context, r *canon.Request) *session {
	text, found, differ := cookie(r, sessionCookie)
	if !found || differ {
		return nil
	}
	x, _, err := s.lookup(ctx, text)
	if err != nil {
		return nil
	}
	return x
}
