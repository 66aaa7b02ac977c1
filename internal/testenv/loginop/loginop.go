// Package loginop is an OpenID provider for tests of browser logins: discovery,
// keys, authorization (which asks nobody anything), tokens with PKCE and
// rotation of refresh tokens, pushed requests, userinfo and logout. It is
// strict about what a client must send and bends what it answers as a test
// wants.
package loginop

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"maps"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// Client id and secret of the only client.
const (
	ClientID = "gate"
	Secret   = "client-secret-0f3d"
)

// Provider is the provider. Its fields that are functions bend its answers; set
// them while no request is under way.
type Provider struct {
	*httptest.Server
	Env *jwtattack.Env
	Now func() time.Time

	// Claims of the person who logs in next, besides those of the protocol.
	Person map[string]any
	// Metadata bends the discovery document.
	Metadata func(m map[string]any)
	// IDToken bends an ID token; header is the JOSE header.
	IDToken func(header, claims map[string]any)
	// Back bends the query with which a browser is sent back.
	Back func(q url.Values)
	// Tokens, if it returns true, has answered a token request itself.
	Tokens func(w http.ResponseWriter, r *http.Request) bool
	// Life is how long access tokens are good for.
	Life time.Duration
	// NoRefresh gives out no refresh tokens.
	NoRefresh bool

	mu      sync.Mutex
	codes   map[string]grant      // mu
	pushed  map[string]url.Values // mu
	fresh   map[string]grant      // mu: refresh tokens that count
	used    map[string]bool       // mu: those that were used
	counts  map[string]int        // mu: by path, and "refresh", "reuse"
	problem string                // mu: of a request that a client must not send
}

type grant struct {
	challenge, redirect, nonce, acr string
	person                          map[string]any
	at                              time.Time
}

// New starts a provider.
func New(t testing.TB) *Provider {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	p := &Provider{
		Env: env, Now: time.Now, Life: 5 * time.Minute, Person: map[string]any{"sub": "ann"},
		codes: map[string]grant{}, pushed: map[string]url.Values{}, fresh: map[string]grant{}, used: map[string]bool{}, counts: map[string]int{},
	}
	p.Server = httptest.NewServer(p)
	t.Cleanup(func() {
		p.Close()
		if p.problem != "" {
			t.Errorf("the provider was sent what a client must not send: %s", p.problem)
		}
	})
	return p
}

// Count is how often a path was asked for; "refresh" and "reuse" count refreshes
// and uses of a refresh token that was used.
func (p *Provider) Count(what string) int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.counts[what]
}

func (p *Provider) wrong(what string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.problem = what
}

// ServeHTTP implements http.Handler.
func (p *Provider) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	p.mu.Lock()
	p.counts[r.URL.Path]++
	p.mu.Unlock()
	if err := r.ParseForm(); err != nil {
		http.Error(w, "form", http.StatusBadRequest)
		return
	}
	switch r.URL.Path {
	case "/.well-known/openid-configuration":
		p.discovery(w)
	case "/jwks":
		w.Header().Set("Content-Type", "application/json")
		w.Write(p.Env.JWKS)
	case "/auth":
		p.authorize(w, r)
	case "/par":
		p.par(w, r)
	case "/token":
		p.token(w, r)
	case "/userinfo":
		p.userinfo(w, r)
	default:
		http.NotFound(w, r)
	}
}

func answer(w http.ResponseWriter, status int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	json.NewEncoder(w).Encode(v)
}

func (p *Provider) discovery(w http.ResponseWriter) {
	m := map[string]any{
		"issuer": p.URL, "authorization_endpoint": p.URL + "/auth", "token_endpoint": p.URL + "/token", "jwks_uri": p.URL + "/jwks",
		"userinfo_endpoint": p.URL + "/userinfo", "end_session_endpoint": p.URL + "/end", "code_challenge_methods_supported": []string{"S256"},
		"authorization_response_iss_parameter_supported": true,
	}
	if p.Metadata != nil {
		p.Metadata(m)
	}
	answer(w, 200, m)
}

// par takes a pushed request (RFC 9126).
func (p *Provider) par(w http.ResponseWriter, r *http.Request) {
	if !p.client(r) {
		answer(w, 401, map[string]string{"error": "invalid_client"})
		return
	}
	uri := "urn:ietf:params:oauth:request_uri:" + rand.Text()
	p.mu.Lock()
	p.pushed[uri] = maps.Clone(r.PostForm)
	p.mu.Unlock()
	answer(w, 201, map[string]any{"request_uri": uri, "expires_in": 60})
}

func (p *Provider) authorize(w http.ResponseWriter, r *http.Request) {
	q := r.Form
	if uri := q.Get("request_uri"); uri != "" {
		p.mu.Lock()
		q = p.pushed[uri]
		delete(p.pushed, uri)
		p.mu.Unlock()
	}
	for name, want := range map[string]string{"response_type": "code", "client_id": ClientID, "code_challenge_method": "S256"} {
		if q.Get(name) != want {
			p.wrong(name + "=" + q.Get(name))
		}
	}
	for _, name := range []string{"state", "nonce", "code_challenge", "redirect_uri"} {
		if q.Get(name) == "" {
			p.wrong("no " + name)
		}
	}
	if !strings.Contains(" "+q.Get("scope")+" ", " openid ") {
		p.wrong("scope " + q.Get("scope"))
	}
	acr, _, _ := strings.Cut(q.Get("acr_values"), " ")
	code := rand.Text()
	p.mu.Lock()
	p.codes[code] = grant{q.Get("code_challenge"), q.Get("redirect_uri"), q.Get("nonce"), acr, maps.Clone(p.Person), p.Now()}
	p.mu.Unlock()
	back := url.Values{"code": {code}, "state": {q.Get("state")}, "iss": {p.URL}}
	if p.Back != nil {
		p.Back(back)
	}
	http.Redirect(w, r, q.Get("redirect_uri")+"?"+back.Encode(), http.StatusFound)
}

// client checks who a client says it is, by Basic or in the form.
func (p *Provider) client(r *http.Request) bool {
	if id, secret, ok := r.BasicAuth(); ok {
		return id == ClientID && secret == Secret
	}
	return r.PostForm.Get("client_id") == ClientID && (r.PostForm.Get("client_secret") == Secret || r.PostForm.Get("client_assertion") != "")
}

func (p *Provider) token(w http.ResponseWriter, r *http.Request) {
	if r.Method != "POST" || !p.client(r) {
		answer(w, 401, map[string]string{"error": "invalid_client"})
		return
	}
	if p.Tokens != nil && p.Tokens(w, r) {
		return
	}
	g, ok := p.redeem(r.PostForm)
	if !ok {
		answer(w, 400, map[string]string{"error": "invalid_grant"})
		return
	}
	answer(w, 200, p.issue(g, r.PostForm.Get("grant_type") == "refresh_token"))
}

// redeem takes a code or a refresh token, each once.
func (p *Provider) redeem(f url.Values) (grant, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if f.Get("grant_type") == "refresh_token" {
		t := f.Get("refresh_token")
		p.counts["refresh"]++
		if p.used[t] {
			p.counts["reuse"]++
			clear(p.fresh) // the whole family, as servers do
		}
		g, ok := p.fresh[t]
		delete(p.fresh, t)
		p.used[t] = true
		return g, ok
	}
	g, ok := p.codes[f.Get("code")]
	delete(p.codes, f.Get("code"))
	sum := sha256.Sum256([]byte(f.Get("code_verifier")))
	return g, ok && base64.RawURLEncoding.EncodeToString(sum[:]) == g.challenge && f.Get("redirect_uri") == g.redirect
}

func (p *Provider) issue(g grant, again bool) map[string]any {
	access := "access-" + rand.Text()
	sum := sha256.Sum256([]byte(access))
	now := p.Now()
	header := map[string]any{"alg": "ES256", "typ": "JWT", "kid": p.KID()}
	claims := map[string]any{
		"iss": p.URL, "aud": ClientID, "iat": now.Unix(), "exp": now.Unix() + 300, "auth_time": g.at.Unix(),
		"at_hash": base64.RawURLEncoding.EncodeToString(sum[:16]), "sid": "op-session-1",
	}
	if g.acr != "" {
		claims["acr"] = g.acr
	}
	if !again {
		claims["nonce"] = g.nonce
	}
	maps.Copy(claims, g.person)
	if p.IDToken != nil {
		p.IDToken(header, claims)
	}
	out := map[string]any{"access_token": access, "token_type": "Bearer", "expires_in": int(p.Life / time.Second), "id_token": p.Sign(header, claims)}
	if !p.NoRefresh {
		refresh := "refresh-" + rand.Text()
		p.mu.Lock()
		p.fresh[refresh] = g
		p.mu.Unlock()
		out["refresh_token"] = refresh
	}
	return out
}

// KID is the id of the key that signs.
func (p *Provider) KID() string {
	v, err := strconv.Unquote(jwtattack.Header("ES256").Get("kid"))
	if err != nil {
		panic(err)
	}
	return v
}

// Sign makes a JWT; with the algorithm none it has no signature.
func (p *Provider) Sign(header, claims map[string]any) string {
	h, _ := json.Marshal(header)
	c, _ := json.Marshal(claims)
	text := base64.RawURLEncoding.EncodeToString(h) + "." + base64.RawURLEncoding.EncodeToString(c)
	if header["alg"] == "none" {
		return text + "."
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(p.Env.Sign("ES256", text))
}

// LogoutToken makes a back-channel logout token; change bends it.
func (p *Provider) LogoutToken(change func(header, claims map[string]any)) string {
	now := p.Now().Unix()
	header := map[string]any{"alg": "ES256", "typ": "logout+jwt", "kid": p.KID()}
	claims := map[string]any{
		"iss": p.URL, "aud": ClientID, "iat": now, "exp": now + 120, "jti": rand.Text(), "sid": "op-session-1", "sub": "ann",
		"events": map[string]any{"http://schemas.openid.net/event/backchannel-logout": map[string]any{}},
	}
	if change != nil {
		change(header, claims)
	}
	return p.Sign(header, claims)
}

func (p *Provider) userinfo(w http.ResponseWriter, r *http.Request) {
	if !strings.HasPrefix(r.Header.Get("Authorization"), "Bearer access-") {
		answer(w, 401, map[string]string{"error": "invalid_token"})
		return
	}
	out := maps.Clone(p.Person)
	out["email"] = "ann@example.com"
	answer(w, 200, out)
}
