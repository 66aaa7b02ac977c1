package authn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/loginop"
)

// onceMap is a Once in memory.
type onceMap struct {
	mu   sync.Mutex
	seen map[string]bool
}

func (o *onceMap) Use(_ context.Context, u Use) (bool, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	fresh := !o.seen[u.Owner+"|"+u.ID]
	o.seen[u.Owner+"|"+u.ID] = true
	return fresh, nil
}

// clock is set by hand.
type clock struct {
	mu sync.Mutex
	at time.Time
}

func newClock() *clock { return &clock{at: time.Now().Truncate(time.Second)} }

func (c *clock) now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) pass(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

// op is the provider, one for all tests of a kind: its keys are slow to make.
type loginTest struct {
	t     *testing.T
	op    *loginop.Provider
	clock *clock
	path  string
	kv    *kv.Local
	store *SessionStore
	s     *Sessions
	conf  SessionConfig
	jar   map[string]string
	agent string
}

const testHost = "app.example.com"

func newLoginTest(t *testing.T, change func(c *SessionConfig)) *loginTest {
	t.Helper()
	l := &loginTest{t: t, op: loginop.New(t), clock: newClock(), path: filepath.Join(t.TempDir(), "state.db"), jar: map[string]string{}, agent: "browser/1"}
	l.op.Now = l.clock.now
	l.conf = SessionConfig{
		Name: "web", Origin: "https://" + testHost,
		Token: JWTConfig{Name: "corp", Issuer: l.op.URL, Audiences: []string{"api"}, Algorithms: []string{"ES256"}, RolesClaim: "/roles", TenantClaim: "/org",
			Keys: KeySource{AllowLoopbackHTTP: true}, PassClaims: []string{"unit"}},
		Client: ClientAuth{Method: ClientBasic, ID: loginop.ClientID, Secret: loginop.Secret}, Scopes: []string{"openid", "profile"},
		Idle: 30 * time.Minute, Absolute: 12 * time.Hour, Rotate: 15 * time.Minute, Now: l.clock.now,
	}
	if change != nil {
		change(&l.conf)
	}
	l.open()
	t.Cleanup(func() { l.kv.Close() })
	return l
}

// open opens the store, as a start after a kill does.
func (l *loginTest) open() {
	l.t.Helper()
	var err error
	if l.kv, err = kv.OpenLocal(l.path, [32]byte{1}, l.clock.now); err != nil {
		l.t.Fatal(err)
	}
	l.store = l.newStore(false)
	l.s = l.sessions(l.store)
}

func (l *loginTest) newStore(shared bool) *SessionStore {
	l.t.Helper()
	s, err := NewSessionStore(SessionStoreConfig{
		Store: l.kv, Secret: [32]byte{2}, Hash: func(f string) string { return "h-" + f[:6] }, Now: l.clock.now, Shared: shared,
	})
	if err != nil {
		l.t.Fatal(err)
	}
	if err := s.Load(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	return s
}

func (l *loginTest) sessions(store *SessionStore) *Sessions {
	l.t.Helper()
	c := l.conf
	c.Store, c.Once = store, &onceMap{seen: map[string]bool{}}
	s, err := NewSessions(c)
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

// request is one of the browser, with its cookies.
func (l *loginTest) request(method, target string, fields ...string) *canon.Request {
	path, query, has := strings.Cut(target, "?")
	r := &canon.Request{Method: method, Scheme: "https", Host: testHost, Authority: testHost, Path: path, Query: query, HasQuery: has}
	r.Fields = append(r.Fields, canon.Field{Name: "user-agent", Value: l.agent})
	for name, value := range l.jar {
		r.Fields = append(r.Fields, canon.Field{Name: "cookie", Value: name + "=" + value})
	}
	for i := 0; i+1 < len(fields); i += 2 {
		r.Fields = append(r.Fields, canon.Field{Name: fields[i], Value: fields[i+1]})
	}
	return r
}

// take puts what Set-Cookie says into the jar.
func (l *loginTest) take(cookies ...string) {
	l.t.Helper()
	for _, c := range cookies {
		if c == "" {
			continue
		}
		for _, must := range []string{"; Path=/", "; Secure", "; HttpOnly", "; SameSite=Lax"} {
			if !strings.Contains(c, must) {
				l.t.Errorf("the cookie %q lacks %q", c, must)
			}
		}
		pair, _, _ := strings.Cut(c, ";")
		name, value, _ := strings.Cut(pair, "=")
		if !strings.HasPrefix(name, "__Host-gatebook") {
			l.t.Errorf("cookie of the name %q", name)
		}
		if value == "" {
			delete(l.jar, name)
		} else {
			l.jar[name] = value
		}
	}
}

// begin goes to the provider and returns the query with which it sends back.
func (l *loginTest) begin(params string) string {
	l.t.Helper()
	to, f := l.s.Begin(l.t.Context(), l.request("GET", LoginPath+params))
	if f != nil {
		l.t.Fatal(f, f.Err)
	}
	l.take(to.Cookies...)
	c := &http.Client{CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	res, err := c.Get(to.Location)
	if err != nil {
		l.t.Fatal(err)
	}
	res.Body.Close()
	back, query, _ := strings.Cut(res.Header.Get("Location"), "?")
	if back != "https://"+testHost+CallbackPath {
		l.t.Fatalf("the provider sends back to %q (%d)", back, res.StatusCode)
	}
	return query
}

// finish comes back with a query.
func (l *loginTest) finish(query string) (*Login, *Failure) {
	l.t.Helper()
	r := l.request("GET", CallbackPath+"?"+query)
	login, clear, f := l.s.Callback(l.t.Context(), r)
	if f != nil {
		l.take(clear...)
		return nil, f
	}
	to, f := l.s.Establish(l.t.Context(), r, login)
	if f != nil {
		return nil, f
	}
	l.take(to.Cookies...)
	return login, nil
}

func (l *loginTest) login(params string) *Login {
	l.t.Helper()
	login, f := l.finish(l.begin(params))
	if f != nil {
		l.t.Fatal(f, f.Err)
	}
	return login
}

// use asks for a page and takes the cookie.
func (l *loginTest) use() (*Principal, error) {
	l.t.Helper()
	k, err := l.s.Keep(l.t.Context(), l.request("GET", "/page"))
	l.take(k.SetCookie)
	return k.Principal, err
}

// why is the reason of an error, "" for none.
func why(err error) reason.Reason {
	var f *Failure
	switch {
	case err == nil:
		return ""
	case errors.As(err, &f):
		return f.Reason
	case errors.Is(err, ErrNoCredential):
		return reason.NoCredential
	}
	return reason.Reason(err.Error())
}

func failureReason(f *Failure) reason.Reason {
	if f == nil {
		return ""
	}
	return f.Reason
}

func TestSessionLogin(t *testing.T) {
	for _, push := range []bool{false, true} {
		for _, auth := range []string{ClientBasic, ClientPost} {
			t.Run(fmt.Sprintf("push=%v/%s", push, auth), func(t *testing.T) {
				l := newLoginTest(t, func(c *SessionConfig) { c.Client.Method, c.UserInfo = auth, true })
				if push {
					l.op.Metadata = func(m map[string]any) { m["pushed_authorization_request_endpoint"] = l.op.URL + "/par" }
				}
				l.op.Person = map[string]any{"sub": "ann", "roles": []string{"clerk"}, "org": "acme", "unit": "u1"}
				if _, err := l.use(); why(err) != reason.NoCredential {
					t.Fatalf("before the login: %v", err)
				}
				login := l.login("?return=" + url.QueryEscape("/orders?x=1"))
				if login.Return != "/orders?x=1" {
					t.Errorf("back to %q", login.Return)
				}
				p, err := l.use()
				if err != nil {
					t.Fatal(err)
				}
				if p.Method != "session" || p.Issuer != "corp" || p.Subject != "ann" || !slices.Equal(p.Roles, []string{"clerk"}) || p.Tenant != "acme" ||
					p.Email != "ann@example.com" || p.Claims["unit"] != "u1" || p.Session == "" || p.AuthTime.IsZero() || p.Client != loginop.ClientID {
					t.Errorf("%+v", p)
				}
				if len(l.jar) != 1 {
					t.Errorf("the browser keeps %v", l.jar)
				}
				if (l.op.Count("/par") == 1) != push {
					t.Errorf("%d pushed requests", l.op.Count("/par"))
				}
				if v := l.jar[sessionCookie]; strings.Contains(v, "ann") || len(v) != 48 {
					t.Errorf("session cookie %q", v)
				}
			})
		}
	}
}

// A callback is judged before anything else is done with it.
func TestSessionCallbackHostile(t *testing.T) {
	set := func(name, value string) func(l *loginTest, q url.Values) {
		return func(_ *loginTest, q url.Values) { q.Set(name, value) }
	}
	token := func(change func(h, c map[string]any)) func(l *loginTest, q url.Values) {
		return func(l *loginTest, _ url.Values) { l.op.IDToken = change }
	}
	claim := func(name string, value any) func(l *loginTest, q url.Values) {
		return token(func(_, c map[string]any) { c[name] = value })
	}
	for _, c := range []struct {
		name   string
		change func(l *loginTest, q url.Values)
		want   reason.Reason
		asked  bool // the code went to the token endpoint
	}{
		{"no state", func(_ *loginTest, q url.Values) { q.Del("state") }, reason.MalformedRequest, false},
		{"no code", func(_ *loginTest, q url.Values) { q.Del("code") }, reason.MalformedRequest, false},
		{"code and error", set("error", "access_denied"), reason.MalformedRequest, false},
		{"two states", func(_ *loginTest, q url.Values) { q.Add("state", q.Get("state")) }, reason.MalformedRequest, false},
		{"two codes", func(_ *loginTest, q url.Values) { q.Add("code", "x") }, reason.MalformedRequest, false},
		{"two issuers", func(_ *loginTest, q url.Values) { q.Add("iss", "https://evil.example") }, reason.MalformedRequest, false},
		{"another state", set("state", "AAAAAAAAAAAAAAAAAAAAAAAAAA"), reason.SessionExpired, false},
		{"another browser", func(l *loginTest, _ url.Values) { clear(l.jar) }, reason.SessionExpired, false},
		{"another login's cookie", func(l *loginTest, q url.Values) {
			o, _ := url.ParseQuery(l.begin(""))
			l.jar[loginCookie(q.Get("state"))] = l.jar[loginCookie(o.Get("state"))]
		}, reason.TokenSignature, false},
		{"cut cookie", func(l *loginTest, _ url.Values) {
			for name, v := range l.jar {
				l.jar[name] = v[:len(v)-4]
			}
		}, reason.TokenSignature, false},
		{"too late", func(l *loginTest, _ url.Values) { l.clock.pass(loginTime) }, reason.SessionExpired, false},
		{"mix-up", set("iss", "https://evil.example"), reason.TokenIssuer, false},
		{"iss left out", func(_ *loginTest, q url.Values) { q.Del("iss") }, reason.TokenIssuer, false},
		{"wrong code", set("code", "stolen"), reason.TokenInactive, true},
		{"denied", func(_ *loginTest, q url.Values) { q.Del("code"); q.Set("error", "access_denied") }, reason.NoCredential, false},
		{"nonce of another login", claim("nonce", "other"), reason.TokenReplayed, true},
		{"no nonce", token(func(_, c map[string]any) { delete(c, "nonce") }), reason.TokenReplayed, true},
		{"alg none", token(func(h, _ map[string]any) { h["alg"] = "none" }), reason.TokenMalformed, true},
		{"alg HS256", token(func(h, _ map[string]any) { h["alg"] = "HS256" }), reason.TokenAlgorithm, true},
		{"unknown key", token(func(h, _ map[string]any) { h["kid"] = "other" }), reason.TokenKeyUnknown, true},
		{"key of another algorithm", token(func(h, _ map[string]any) { h["kid"] = "rs256" }), reason.TokenKeyUnknown, true},
		{"access token type", token(func(h, _ map[string]any) { h["typ"] = "at+jwt" }), reason.TokenType, true},
		{"logout token", claim("events", map[string]any{}), reason.TokenType, true},
		{"another issuer", claim("iss", "https://evil.example"), reason.TokenIssuer, true},
		{"another audience", claim("aud", "other"), reason.TokenAudience, true},
		{"two audiences without azp", claim("aud", []string{loginop.ClientID, "other"}), reason.TokenAudience, true},
		{"another azp", claim("azp", "other"), reason.TokenAudience, true},
		{"another at_hash", claim("at_hash", "AAAAAAAAAAAAAAAAAAAAAA"), reason.TokenMalformed, true},
		{"expired", token(func(_, c map[string]any) { c["iat"], c["exp"] = time.Now().Unix()-900, time.Now().Unix()-600 }), reason.TokenExpired, true},
		{"no subject", token(func(_, c map[string]any) { delete(c, "sub") }), reason.TokenMalformed, true},
		{"roles of another shape", claim("roles", map[string]any{"a": 1}), reason.TokenMalformed, true},
		{"token endpoint away", func(l *loginTest, _ url.Values) {
			l.op.Tokens = func(w http.ResponseWriter, _ *http.Request) bool { w.WriteHeader(503); return true }
		}, reason.IssuerUnavailable, true},
		{"token endpoint redirects", func(l *loginTest, _ url.Values) {
			l.op.Tokens = func(w http.ResponseWriter, r *http.Request) bool {
				http.Redirect(w, r, "/elsewhere", http.StatusTemporaryRedirect)
				return true
			}
		}, reason.IssuerUnavailable, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLoginTest(t, nil)
			query := l.begin("?return=/x")
			q, err := url.ParseQuery(query)
			if err != nil {
				t.Fatal(err)
			}
			c.change(l, q)
			if _, f := l.finish(q.Encode()); failureReason(f) != c.want {
				t.Errorf("%v, want %s", f, c.want)
			}
			if asked := l.op.Count("/token") > 0; asked != c.asked {
				t.Errorf("token endpoint asked: %v", asked)
			}
			if n := len(l.store.List()); n != 0 || l.jar[sessionCookie] != "" {
				t.Errorf("%d sessions, cookies %v", n, l.jar)
			}
		})
	}
}

func TestSessionCallbackReplayed(t *testing.T) {
	l := newLoginTest(t, nil)
	query := l.begin("")
	kept := l.jar[loginCookie(func() string { q, _ := url.ParseQuery(query); return q.Get("state") }())]
	if _, f := l.finish(query); f != nil {
		t.Fatal(f)
	}
	if _, f := l.finish(query); failureReason(f) != reason.SessionExpired {
		t.Errorf("again: %v", f)
	}
	q, _ := url.ParseQuery(query)
	l.jar[loginCookie(q.Get("state"))] = kept // who stole it too
	if _, f := l.finish(query); failureReason(f) != reason.TokenInactive {
		t.Errorf("again with the state: %v", f)
	}
}

// Whatever a browser held before the login, the session has another id, and the
// one before has ended.
func TestSessionFixation(t *testing.T) {
	l := newLoginTest(t, nil)
	l.login("")
	first := l.jar[sessionCookie]
	l.login("")
	if l.jar[sessionCookie] == first {
		t.Error("the id stays over a login")
	}
	if n := len(l.store.List()); n != 1 {
		t.Errorf("%d sessions", n)
	}
	l.jar[sessionCookie] = first
	if _, err := l.use(); why(err) != reason.SessionExpired {
		t.Errorf("the id from before: %v", err)
	}
	planted := strings.Repeat("A", 48)
	l.jar[sessionCookie] = planted
	if _, err := l.use(); why(err) != reason.TokenSignature {
		t.Errorf("an id that somebody made up: %v", err)
	}
	l.jar[sessionCookie] = planted
	l.login("")
	if l.jar[sessionCookie] == planted {
		t.Error("a planted id was taken")
	}
}

func TestSessionTimes(t *testing.T) {
	for _, c := range []struct {
		name string
		run  func(l *loginTest)
		want reason.Reason
	}{
		{"used all the time", func(l *loginTest) {
			for range 20 {
				l.clock.pass(29 * time.Minute)
				if _, err := l.use(); err != nil {
					l.t.Fatal(err)
				}
			}
		}, ""},
		{"just idle", func(l *loginTest) { l.clock.pass(30*time.Minute - time.Second) }, ""},
		{"idle", func(l *loginTest) { l.clock.pass(30 * time.Minute) }, reason.SessionExpired},
		{"absolute", func(l *loginTest) {
			for range 24 {
				l.clock.pass(29 * time.Minute)
				l.use()
			}
			l.clock.pass(24 * time.Minute)
		}, reason.SessionExpired},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLoginTest(t, nil)
			l.op.NoRefresh = true
			l.login("")
			c.run(l)
			if _, err := l.use(); why(err) != c.want {
				t.Errorf("%v, want %q", err, c.want)
			}
			if c.want != "" && l.jar[sessionCookie] != "" {
				t.Error("the browser keeps the cookie")
			}
		})
	}
}

// Time-outs by the clock of the program.
func TestSessionIdleInBubble(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		local, err := kv.OpenLocal(filepath.Join(t.TempDir(), "state.db"), [32]byte{1}, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer local.Close()
		store, err := NewSessionStore(SessionStoreConfig{Store: local, Hash: func(f string) string { return f }})
		if err != nil {
			t.Fatal(err)
		}
		s, err := NewSessions(SessionConfig{
			Name: "web", Origin: "https://" + testHost, Token: JWTConfig{Name: "corp", Issuer: "https://idp.example.com", Audiences: []string{"a"}, Algorithms: []string{"ES256"}},
			Client: ClientAuth{Method: ClientBasic, ID: "gate", Secret: "s"}, Idle: 30 * time.Minute, Absolute: time.Hour, Rotate: 15 * time.Minute,
			Store: store, Once: &onceMap{seen: map[string]bool{}},
		})
		if err != nil {
			t.Fatal(err)
		}
		now := time.Now().Unix()
		x, err := store.create(t.Context(), &sessionRecord{
			Name: "web", IssuerURL: "https://idp.example.com", Issuer: "corp", Subject: "ann", Created: now, Seen: now, Rotated: now, Expires: now + 3600, Idle: 1800,
		}, "")
		if err != nil {
			t.Fatal(err)
		}
		r := &canon.Request{Method: "GET", Authority: testHost, Fields: []canon.Field{{Name: "cookie", Value: sessionCookie + "=" + store.keys.sessionID("web", x.family, 0)}}}
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- store.Run(ctx) }()
		if _, err := s.Authenticate(ctx, r); err != nil {
			t.Fatal(err)
		}
		time.Sleep(29 * time.Minute)
		if _, err := s.Authenticate(ctx, r); err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if again := x.now.Load(); again.Seen < now+29*60 {
			t.Errorf("that it was used is not kept: %d s", again.Seen-now)
		}
		time.Sleep(30 * time.Minute)
		if _, err := s.Authenticate(ctx, r); why(err) != reason.SessionExpired {
			t.Errorf("idle: %v", err)
		}
		if n := store.Sweep(); n != 0 {
			t.Errorf("%d sessions left", n)
		}
		cancel()
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	})
}

// A2 control 9: the id is renewed; the one before holds for a moment and for
// the same browser; after that whoever shows it ends the session.
func TestSessionRotation(t *testing.T) {
	rotated := func(t *testing.T) (l *loginTest, old, current string) {
		l = newLoginTest(t, nil)
		l.op.NoRefresh = true
		l.login("")
		old = l.jar[sessionCookie]
		l.clock.pass(15*time.Minute - time.Second)
		if _, err := l.use(); err != nil || l.jar[sessionCookie] != old {
			t.Fatalf("renewed too early: %v", err)
		}
		l.clock.pass(time.Second)
		if _, err := l.use(); err != nil || l.jar[sessionCookie] == old {
			t.Fatalf("not renewed: %v", err)
		}
		return l, old, l.jar[sessionCookie]
	}
	t.Run("inside the grace", func(t *testing.T) {
		l, old, current := rotated(t)
		l.clock.pass(rotateGrace - time.Second)
		l.jar[sessionCookie] = old
		if _, err := l.use(); err != nil {
			t.Fatal(err)
		}
		if l.jar[sessionCookie] != current {
			t.Error("who comes with the id from before is not told the new one")
		}
	})
	for name, change := range map[string]func(l *loginTest){
		"after the grace":             func(l *loginTest) { l.clock.pass(rotateGrace) },
		"inside it, of another agent": func(l *loginTest) { l.agent = "thief/1" },
	} {
		t.Run(name, func(t *testing.T) {
			l, old, current := rotated(t)
			change(l)
			l.jar[sessionCookie] = old
			_, err := l.use()
			if why(err) != reason.TokenReuseDetected || errors.Is(err, ErrNoCredential) {
				t.Fatal(err)
			}
			l.jar[sessionCookie] = current
			if _, err := l.use(); why(err) != reason.SessionExpired {
				t.Errorf("the newest id goes on: %v", err)
			}
			l.kv.Close()
			l.open()
			l.jar[sessionCookie] = current
			if _, err := l.use(); why(err) != reason.SessionExpired {
				t.Errorf("the newest id goes on after a restart: %v", err)
			}
		})
	}
	t.Run("two renewals ago", func(t *testing.T) {
		l, old, _ := rotated(t)
		l.clock.pass(15 * time.Minute)
		if _, err := l.use(); err != nil {
			t.Fatal(err)
		}
		l.jar[sessionCookie] = old
		if _, err := l.use(); why(err) != reason.TokenReuseDetected {
			t.Error(err)
		}
	})
}

// Nothing is written down at the end: a kill looks the same.
func TestSessionSurvivesKill(t *testing.T) {
	l := newLoginTest(t, nil)
	l.op.NoRefresh = true
	l.login("")
	l.clock.pass(15 * time.Minute)
	if _, err := l.use(); err != nil {
		t.Fatal(err)
	}
	l.kv.Close()
	l.open()
	p, err := l.use()
	if err != nil || p.Subject != "ann" {
		t.Fatal(p, err)
	}
}

func TestSessionRefreshOnce(t *testing.T) {
	l := newLoginTest(t, nil)
	l.op.Person = map[string]any{"sub": "ann", "roles": []string{"clerk"}}
	l.login("")
	other := l.sessions(l.newStore(true)) // another node
	l.store.shared = true
	l.clock.pass(5 * time.Minute)
	var wg sync.WaitGroup
	for i := range 64 {
		s := l.s
		if i%2 == 1 {
			s = other
		}
		r := l.request("GET", "/page")
		wg.Go(func() {
			if _, err := s.Keep(t.Context(), r); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if n := l.op.Count("refresh"); n != 1 {
		t.Errorf("%d refreshes", n)
	}
	l.clock.pass(5 * time.Minute)
	if _, err := other.Keep(t.Context(), l.request("GET", "/page")); err != nil {
		t.Fatal(err)
	}
	if n, reuse := l.op.Count("refresh"), l.op.Count("reuse"); n != 2 || reuse != 0 {
		t.Errorf("%d refreshes, %d with a token that was used", n, reuse)
	}
}

func TestSessionRefreshTrouble(t *testing.T) {
	status := func(code int) func(w http.ResponseWriter, r *http.Request) bool {
		return func(w http.ResponseWriter, r *http.Request) bool { w.WriteHeader(code); return true }
	}
	t.Run("the issuer says no", func(t *testing.T) {
		l := newLoginTest(t, nil)
		l.login("")
		l.op.Tokens = func(w http.ResponseWriter, r *http.Request) bool {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(400)
			w.Write([]byte(`{"error":"invalid_grant"}`))
			return true
		}
		l.clock.pass(5 * time.Minute)
		if _, err := l.use(); why(err) != reason.SessionExpired {
			t.Error(err)
		}
		if len(l.store.List()) != 0 || l.jar[sessionCookie] != "" {
			t.Error("the session goes on")
		}
	})
	t.Run("the answer gets lost", func(t *testing.T) {
		l := newLoginTest(t, nil)
		l.login("")
		l.op.Tokens = func(w http.ResponseWriter, r *http.Request) bool {
			l.op.Tokens = nil
			l.op.ServeHTTP(discard{}, r) // the server has used the token up
			panic(http.ErrAbortHandler)
		}
		l.clock.pass(5 * time.Minute)
		if _, err := l.use(); why(err) != reason.IssuerUnavailable {
			t.Error(err)
		}
		l.clock.pass(refreshRetry)
		if _, err := l.use(); why(err) != reason.SessionExpired {
			t.Error(err)
		}
		if l.op.Count("reuse") != 1 {
			t.Error("the token was not shown again")
		}
	})
	t.Run("away before and after the end", func(t *testing.T) {
		l := newLoginTest(t, nil)
		l.login("")
		l.op.Tokens = status(503)
		l.clock.pass(5*time.Minute - refreshAhead)
		if _, err := l.use(); err != nil {
			t.Errorf("still good: %v", err)
		}
		l.clock.pass(refreshAhead)
		if _, err := l.use(); why(err) != reason.IssuerUnavailable {
			t.Error(err)
		}
		l.op.Tokens = nil
		l.clock.pass(refreshRetry)
		if _, err := l.use(); err != nil {
			t.Errorf("back again: %v", err)
		}
	})
	t.Run("somebody else", func(t *testing.T) {
		l := newLoginTest(t, nil)
		l.login("")
		l.op.IDToken = func(_, c map[string]any) { c["sub"] = "eve" }
		l.clock.pass(5 * time.Minute)
		if _, err := l.use(); why(err) != reason.SessionExpired {
			t.Error(err)
		}
	})
}

// discard is a ResponseWriter that nobody reads.
type discard struct{}

func (discard) Header() http.Header         { return http.Header{} }
func (discard) Write(b []byte) (int, error) { return len(b), nil }
func (discard) WriteHeader(int)             {}

func TestSessionCrossSite(t *testing.T) {
	l := newLoginTest(t, nil)
	l.login("")
	own := "https://" + testHost
	for _, c := range []struct {
		method string
		fields []string
		want   reason.Reason
	}{
		{"GET", nil, ""},
		{"HEAD", []string{"sec-fetch-site", "cross-site"}, ""},
		{"POST", nil, reason.CrossSite},
		{"POST", []string{"sec-fetch-site", "same-origin"}, ""},
		{"POST", []string{"sec-fetch-site", "same-origin", "origin", own}, ""},
		{"POST", []string{"sec-fetch-site", "same-origin", "origin", "null"}, ""},
		{"POST", []string{"origin", own}, ""},
		{"POST", []string{"origin", "null"}, reason.CrossSite},
		{"POST", []string{"origin", "http://" + testHost}, reason.CrossSite},
		{"POST", []string{"origin", own + ":444"}, reason.CrossSite},
		{"POST", []string{"origin", "https://evil.example"}, reason.CrossSite},
		{"POST", []string{"sec-fetch-site", "same-origin", "origin", "https://evil.example"}, reason.CrossSite},
		{"POST", []string{"sec-fetch-site", "same-site", "origin", own}, reason.CrossSite},
		{"POST", []string{"sec-fetch-site", "none"}, reason.CrossSite},
		{"POST", []string{"origin", own, "origin", own}, reason.CrossSite},
		{"DELETE", []string{"sec-fetch-site", "cross-site"}, reason.CrossSite},
		{"PATCH", []string{"sec-fetch-site", "same-origin"}, ""},
	} {
		if _, err := l.s.Authenticate(t.Context(), l.request(c.method, "/page", c.fields...)); why(err) != c.want {
			t.Errorf("%s %q: %v, want %q", c.method, c.fields, err, c.want)
		}
	}
}

func TestSessionStepUp(t *testing.T) {
	l := newLoginTest(t, nil)
	if login := l.login("?acr=gold+silver&max_age=60"); login.Principal.ACR != "gold" {
		t.Errorf("acr %q", login.Principal.ACR)
	}
	l.op.IDToken = func(_, c map[string]any) { c["acr"] = "bronze" }
	if _, f := l.finish(l.begin("?acr=gold")); failureReason(f) != reason.StepupRequired {
		t.Errorf("less than what was asked for: %v", f)
	}
	l.op.IDToken = func(_, c map[string]any) { c["auth_time"] = l.clock.now().Unix() - 600 }
	if _, f := l.finish(l.begin("?max_age=60")); failureReason(f) != reason.StepupRequired {
		t.Errorf("an old login: %v", f)
	}
	for _, params := range []string{"?max_age=0", "?max_age=-1", "?max_age=x", "?acr=a%0d%0ab", "?return=//evil.example", "?return=/a&return=/b", "?acr=" + strings.Repeat("a", 300)} {
		if _, f := l.s.Begin(t.Context(), l.request("GET", LoginPath+params)); failureReason(f) != reason.MalformedRequest {
			t.Errorf("%s: %v", params, f)
		}
	}
}

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

func TestSessionIssuerMetadata(t *testing.T) {
	for name, change := range map[string]func(m map[string]any){
		"another issuer":    func(m map[string]any) { m["issuer"] = "https://evil.example" },
		"no PKCE":           func(m map[string]any) { m["code_challenge_methods_supported"] = []string{"plain"} },
		"token in clear":    func(m map[string]any) { m["token_endpoint"] = "http://idp.example.com/token" },
		"no authorization":  func(m map[string]any) { delete(m, "authorization_endpoint") },
		"must push nowhere": func(m map[string]any) { m["require_pushed_authorization_requests"] = true },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLoginTest(t, nil)
			l.op.Metadata = change
			if _, f := l.s.Begin(t.Context(), l.request("GET", LoginPath)); failureReason(f) != reason.IssuerUnavailable {
				t.Error(f)
			}
		})
	}
}
