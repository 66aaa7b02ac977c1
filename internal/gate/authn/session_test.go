package authn

import (
	"context"
	"errors"
	"net/http"
	"path/filepath"
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

// discard is a ResponseWriter that nobody reads.
type discard struct{}

func (discard) Header() http.Header { return http.Header{} }

func (discard) Write(b []byte) (int, error) { return len(b), nil }

func (discard) WriteHeader(int) {}

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
