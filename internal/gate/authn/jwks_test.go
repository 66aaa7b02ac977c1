package authn_test

import (
	"context"
	"crypto/x509"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

// clock is an injected clock.
type clock struct{ ns atomic.Int64 }

func newClock() *clock {
	c := &clock{}
	c.ns.Store(jwtattack.Now.UnixNano())
	return c
}

func (c *clock) now() time.Time          { return time.Unix(0, c.ns.Load()) }
func (c *clock) advance(d time.Duration) { c.ns.Add(int64(d)) }

// keyServer is an issuer's web side: it serves a key set, counts, and fails on
// demand.
type keyServer struct {
	*httptest.Server
	keys    atomic.Pointer[[]byte]
	status  atomic.Int64
	fetches atomic.Int64 // of the key set
	all     atomic.Int64
}

func newKeyServer(t *testing.T, keys []byte) *keyServer {
	s := &keyServer{}
	s.keys.Store(&keys)
	s.status.Store(http.StatusOK)
	s.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		s.all.Add(1)
		switch r.URL.Path {
		case "/.well-known/openid-configuration":
			fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q}`, s.URL, s.URL+"/keys")
		case "/keys":
			s.fetches.Add(1)
			w.WriteHeader(int(s.status.Load()))
			w.Write(*s.keys.Load())
		default:
			http.NotFound(w, r)
		}
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *keyServer) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(s.Certificate())
	return pool
}

func (s *keyServer) serve(keys []byte) { s.keys.Store(&keys) }

// config is the table's configuration with keys from the server.
func (s *keyServer) config(t *testing.T, c *clock) authn.JWTConfig {
	cfg := tableConfig(t)
	cfg.Keys = authn.KeySource{URL: s.URL + "/keys", RootCAs: s.roots()}
	cfg.Now = c.now
	return cfg
}

// only returns the key set reduced to the given key ids.
func only(t testing.TB, kids ...string) []byte {
	t.Helper()
	var list []string
	for _, kid := range kids {
		alg := strings.ToUpper(kid)
		if kid == "eddsa" {
			alg = "EdDSA"
		}
		list = append(list, jwkText(t, alg, kid))
	}
	return []byte(`{"keys":[` + strings.Join(list, ",") + `]}`)
}

func jwkText(t testing.TB, alg, kid string, more ...string) string {
	m := []string{fmt.Sprintf(`"kid":%q`, kid)}
	for name, v := range jwtattack.JWK(env(t).Public(alg)) {
		m = append(m, fmt.Sprintf("%q:%q", name, v))
	}
	return "{" + strings.Join(append(m, more...), ",") + "}"
}

func expect(t *testing.T, j *authn.JWT, token string, want reason.Reason) {
	t.Helper()
	if _, err := authenticate(j, token); reasonOf(err) != want {
		t.Fatalf("got %v, want %q", err, want)
	}
}

// fresh makes a genuine token that is not in any cache.
func fresh(t testing.TB, alg string, c *clock) string {
	now := c.now().Unix()
	return env(t).Token(alg, jwtattack.Header(alg), jwtattack.Claims().
		Set("iat", fmt.Sprint(now-1)).Set("exp", fmt.Sprint(now+300)).Set("jti", fmt.Sprintf(`"%x"`, rand.Uint64())))
}

func TestUnknownKeyIDsCauseOneFetchPerInterval(t *testing.T) {
	c := newClock()
	s := newKeyServer(t, env(t).JWKS)
	j := newJWT(t, s.config(t, c))
	expect(t, j, fresh(t, "ES256", c), "")

	// The key is looked up before anything but iss is read.
	rest := "." + b64(`{"iss":"`+jwtattack.Issuer+`"}`) + "." + b64("signature")
	header := func(kid string) string {
		return b64(jwtattack.Header("EdDSA").Set("kid", `"`+kid+`"`).String())
	}
	const intervals, workers = 4, 4
	for i := range intervals {
		before := s.fetches.Load()
		var wg sync.WaitGroup
		for w := range workers {
			wg.Go(func() {
				for n := range 100_000 / intervals / workers {
					token := header(fmt.Sprintf("k-%d-%d-%d", i, w, n)) + rest
					if _, err := authenticate(j, token); reasonOf(err) != reason.TokenKeyUnknown {
						t.Errorf("got %v", err)
						return
					}
				}
			})
		}
		wg.Wait()
		want := int64(1)
		if i == 0 {
			want = 0 // the first fetch of all was in this interval
		}
		if got := s.fetches.Load() - before; got != want {
			t.Errorf("interval %d: %d fetches, want %d", i, got, want)
		}
		c.advance(30 * time.Second)
	}

	// One bad id again and again does not use up the budget of others.
	bad := header("bad") + rest
	expect(t, j, bad, reason.TokenKeyUnknown)
	c.advance(30 * time.Second)
	before := s.fetches.Load()
	expect(t, j, bad, reason.TokenKeyUnknown)
	if got := s.fetches.Load() - before; got != 0 {
		t.Errorf("a key id that a fetch has just failed to bring caused %d fetches", got)
	}
	expect(t, j, fresh(t, "ES256", c), "")
}

func TestFirstFetchIsShared(t *testing.T) {
	c := newClock()
	s := newKeyServer(t, env(t).JWKS)
	j := newJWT(t, s.config(t, c))
	var wg sync.WaitGroup
	for range 50 {
		token := fresh(t, "EdDSA", c)
		wg.Go(func() {
			if _, err := authenticate(j, token); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if got := s.fetches.Load(); got != 1 {
		t.Errorf("%d fetches for 50 first requests", got)
	}
}

func TestRotation(t *testing.T) {
	c := newClock()
	s := newKeyServer(t, only(t, "es256"))
	j := newJWT(t, s.config(t, c))
	hot := fresh(t, "ES256", c)
	expect(t, j, hot, "")
	expect(t, j, hot, "")
	if g := j.Status().Generation; g != 1 {
		t.Fatalf("generation %d", g)
	}

	s.serve(only(t, "es256", "es384"))
	expect(t, j, fresh(t, "ES384", c), reason.TokenKeyUnknown) // too soon after the first fetch
	c.advance(30 * time.Second)
	expect(t, j, fresh(t, "ES384", c), "")
	if st := j.Status(); st.Generation != 2 || st.KIDs != 2 || !st.Usable {
		t.Fatalf("after adding a key: %+v", st)
	}

	s.serve(only(t, "es384"))
	c.advance(30 * time.Second)
	expect(t, j, fresh(t, "ES512", c), reason.TokenKeyUnknown) // causes the fetch
	expect(t, j, hot, reason.TokenKeyUnknown)                  // was verified and cached under the old set
	expect(t, j, fresh(t, "ES256", c), reason.TokenKeyUnknown)
	expect(t, j, fresh(t, "ES384", c), "")

	if j.HasKey("es256") || !j.HasKey("es384") || j.HasKey("") {
		t.Error("HasKey does not follow the set")
	}

	// The same set again, written differently, is no change.
	before := j.Status().Generation
	s.serve([]byte(" " + strings.ReplaceAll(string(only(t, "es384")), ",", " ,\n") + "\n"))
	c.advance(30 * time.Second)
	expect(t, j, fresh(t, "EdDSA", c), reason.TokenKeyUnknown)
	if g := j.Status().Generation; g != before {
		t.Errorf("generation went from %d to %d without a change", before, g)
	}

	// The same key id with another key: the old tokens are forgeries now.
	s.serve([]byte(`{"keys":[` + jwkText(t, "ES256", "es384") + `]}`))
	c.advance(61 * time.Second)
	expect(t, j, fresh(t, "RS256", c), reason.TokenKeyUnknown)
	expect(t, j, fresh(t, "ES384", c), reason.TokenAlgorithm)

	// An empty set is believed: it stops everything.
	s.serve([]byte(`{"keys":[]}`))
	c.advance(61 * time.Second)
	expect(t, j, fresh(t, "RS256", c), reason.TokenKeyUnknown)
	if st := j.Status(); st.Usable || st.KIDs != 0 {
		t.Errorf("after an empty set: %+v", st)
	}
}

func TestRotationUnderLoad(t *testing.T) {
	c := newClock()
	s := newKeyServer(t, only(t, "es256", "eddsa"))
	cfg := s.config(t, c)
	cfg.Keys.MinInterval = time.Nanosecond
	j := newJWT(t, cfg)
	steady, leaving := fresh(t, "EdDSA", c), fresh(t, "ES256", c)
	expect(t, j, steady, "")
	expect(t, j, leaving, "")

	ctx, stop := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	var good atomic.Int64
	for range 4 {
		wg.Go(func() {
			for ctx.Err() == nil {
				if _, err := authenticate(j, steady); err != nil {
					t.Errorf("steady key: %v", err)
					return
				}
				if _, err := authenticate(j, leaving); err != nil && reasonOf(err) != reason.TokenKeyUnknown {
					t.Errorf("leaving key: %v", err)
					return
				}
				good.Add(1)
			}
		})
	}
	for i := range 20 {
		kids := []string{"es256", "eddsa"}
		if i%2 == 0 {
			kids = kids[1:]
		}
		s.serve(only(t, kids...))
		c.advance(time.Millisecond)
		expect(t, j, fresh(t, "RS256", c), reason.TokenKeyUnknown) // fetches
		want := reason.Reason("")
		if i%2 == 0 {
			want = reason.TokenKeyUnknown
		}
		// A second fetch settles the race with a fetch that a worker began
		// before the new set was served.
		c.advance(time.Millisecond)
		expect(t, j, fresh(t, "RS384", c), reason.TokenKeyUnknown)
		expect(t, j, leaving, want)
	}
	stop()
	wg.Wait()
	if good.Load() == 0 {
		t.Error("no request went through meanwhile")
	}
}

func TestIssuerAway(t *testing.T) {
	c := newClock()
	s := newKeyServer(t, env(t).JWKS)
	s.status.Store(http.StatusInternalServerError)
	j := newJWT(t, s.config(t, c))
	expect(t, j, fresh(t, "ES256", c), reason.IssuerUnavailable)
	before := s.fetches.Load()
	expect(t, j, fresh(t, "ES256", c), reason.IssuerUnavailable)
	if s.fetches.Load() != before {
		t.Error("no pause after a failed fetch")
	}
	if st := j.Status(); st.Usable || st.Err == nil || st.Generation != 0 {
		t.Errorf("status %+v", st)
	}

	s.status.Store(http.StatusOK)
	c.advance(time.Second)
	hot := fresh(t, "ES256", c)
	expect(t, j, hot, "")

	s.status.Store(http.StatusBadGateway)
	c.advance(59 * time.Minute)
	expect(t, j, fresh(t, "ES256", c), "") // old keys hold
	expect(t, j, fresh(t, "ES256", c), "")
	c.advance(time.Minute + time.Second)
	hot = fresh(t, "ES256", c)
	expect(t, j, hot, reason.IssuerUnavailable)

	s.status.Store(http.StatusOK)
	c.advance(30 * time.Second)
	expect(t, j, hot, "")
	c.advance(time.Hour) // cached tokens do not outlive the keys either
	s.status.Store(http.StatusBadGateway)
	if st := j.Status(); st.Generation != 1 || !st.Usable {
		t.Errorf("status %+v", st)
	}
	c.advance(time.Second)
	expect(t, j, fresh(t, "ES256", c), reason.IssuerUnavailable)
}

func TestCachedVerdictEndsWithStaleKeys(t *testing.T) {
	c := newClock()
	s := newKeyServer(t, env(t).JWKS)
	cfg := s.config(t, c)
	cfg.Keys.Refresh, cfg.Keys.MaxStale = time.Second, 10*time.Second
	j := newJWT(t, cfg)
	hot := fresh(t, "ES256", c)
	expect(t, j, hot, "")
	s.status.Store(http.StatusBadGateway)
	c.advance(10 * time.Second)
	expect(t, j, hot, "")
	c.advance(time.Second)
	expect(t, j, hot, reason.IssuerUnavailable)
}

// A fetch that hangs holds a request for a bounded time only, and not longer
// than the request's own context.
func TestHangingIssuer(t *testing.T) {
	c := newClock()
	release, entered := make(chan struct{}), make(chan struct{}, 8)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		entered <- struct{}{}
		select {
		case <-release:
		case <-r.Context().Done():
		}
	}))
	defer srv.Close()
	defer close(release)
	cfg := tableConfig(t)
	cfg.Now = c.now
	cfg.Keys = authn.KeySource{URL: srv.URL, AllowLoopbackHTTP: true, Timeout: 300 * time.Millisecond}
	j := newJWT(t, cfg)
	token := fresh(t, "ES256", c)
	leader := make(chan reason.Reason, 1)
	go func() {
		_, err := authenticate(j, token)
		leader <- reasonOf(err)
	}()
	<-entered
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := j.Authenticate(ctx, request("Bearer "+token)); reasonOf(err) != reason.IssuerUnavailable {
		t.Errorf("a request that has ended: %v", err)
	}
	if got := <-leader; got != reason.IssuerUnavailable {
		t.Errorf("got %q", got)
	}
}

func TestDiscovery(t *testing.T) {
	for _, row := range []struct {
		name     string
		path     string // of the issuer
		document string // path that serves the metadata
		issuer   string // %s is the server; what the metadata says
		keys     string // jwks_uri; %s is the server
		want     reason.Reason
	}{
		{"openid", "", "/.well-known/openid-configuration", "%s", "%s/keys", ""},
		{"openid with path", "/realms/a", "/realms/a/.well-known/openid-configuration", "%s/realms/a", "%s/keys", ""},
		{"openid with slash", "/a/", "/a/.well-known/openid-configuration", "%s/a/", "%s/keys", ""},
		{"rfc 8414", "", "/.well-known/oauth-authorization-server", "%s", "%s/keys", ""},
		{"rfc 8414 with path", "/realms/a", "/.well-known/oauth-authorization-server/realms/a", "%s/realms/a", "%s/keys", ""},
		{"other issuer", "", "/.well-known/openid-configuration", "https://evil.example", "%s/keys", reason.IssuerUnavailable},
		{"issuer with slash", "", "/.well-known/openid-configuration", "%s/", "%s/keys", reason.IssuerUnavailable},
		{"no issuer", "", "/.well-known/openid-configuration", "", "%s/keys", reason.IssuerUnavailable},
		{"no metadata", "", "/elsewhere", "%s", "%s/keys", reason.IssuerUnavailable},
		{"no keys", "", "/.well-known/openid-configuration", "%s", "", reason.IssuerUnavailable},
		{"keys by http", "", "/.well-known/openid-configuration", "%s", "http://127.0.0.1:1/keys", reason.IssuerUnavailable},
		{"keys by file", "", "/.well-known/openid-configuration", "%s", "file:///etc/passwd", reason.IssuerUnavailable},
		{"keys missing", "", "/.well-known/openid-configuration", "%s", "%s/nothing", reason.IssuerUnavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newClock()
			s := newKeyServer(t, env(t).JWKS)
			at := func(f string) string { return strings.ReplaceAll(f, "%s", s.URL) }
			s.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case row.document:
					fmt.Fprintf(w, `{"issuer":%q,"jwks_uri":%q,"x":[]}`, at(row.issuer), at(row.keys))
				case "/keys":
					w.Write(*s.keys.Load())
				default:
					http.NotFound(w, r)
				}
			})
			cfg := s.config(t, c)
			cfg.Issuer = s.URL + row.path
			cfg.Keys.URL = ""
			token := env(t).Token("ES256", jwtattack.Header("ES256"), jwtattack.Claims().Set("iss", fmt.Sprintf("%q", cfg.Issuer)))
			expect(t, newJWT(t, cfg), token, row.want)
		})
	}
}

func TestFetchIsStrict(t *testing.T) {
	good := env(t).JWKS
	other := httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(good) }))
	defer other.Close()
	plain := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.Write(good) }))
	defer plain.Close()
	for _, row := range []struct {
		name   string
		answer http.HandlerFunc
		want   reason.Reason
	}{
		{"as it should be", func(w http.ResponseWriter, _ *http.Request) { w.Write(good) }, ""},
		{"redirect on the same host", func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path != "/moved" {
				http.Redirect(w, r, "/moved", http.StatusFound)
				return
			}
			w.Write(good)
		}, ""},
		{"redirect to another host", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, other.URL, http.StatusFound) }, reason.IssuerUnavailable},
		{"redirect to http", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, plain.URL, http.StatusFound) }, reason.IssuerUnavailable},
		{"redirect in circles", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/", http.StatusFound) }, reason.IssuerUnavailable},
		{"404", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); w.Write(good) }, reason.IssuerUnavailable},
		{"203", func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(203); w.Write(good) }, reason.IssuerUnavailable},
		{"not JSON", func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "<html>") }, reason.IssuerUnavailable},
		{"just fits", func(w http.ResponseWriter, _ *http.Request) {
			w.Write(good)
			fmt.Fprint(w, strings.Repeat(" ", 1<<20-len(good)))
		}, ""},
		{"too long", func(w http.ResponseWriter, _ *http.Request) {
			w.Write(good)
			fmt.Fprint(w, strings.Repeat(" ", 1<<20-len(good)+1))
		}, reason.IssuerUnavailable},
		{"cut short", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", fmt.Sprint(len(good)+1))
			w.Write(good)
		}, reason.IssuerUnavailable},
		{"compressed unasked", func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Encoding", "gzip")
			fmt.Fprint(w, "\x1f\x8b\x08")
		}, reason.IssuerUnavailable},
	} {
		t.Run(row.name, func(t *testing.T) {
			c := newClock()
			s := newKeyServer(t, nil)
			s.Config.Handler = row.answer
			cfg := s.config(t, c)
			cfg.Keys.RootCAs.AddCert(other.Certificate())
			expect(t, newJWT(t, cfg), fresh(t, "ES256", c), row.want)
		})
	}
	t.Run("certificate not trusted", func(t *testing.T) {
		c := newClock()
		s := newKeyServer(t, good)
		cfg := s.config(t, c)
		cfg.Keys.RootCAs = x509.NewCertPool()
		expect(t, newJWT(t, cfg), fresh(t, "ES256", c), reason.IssuerUnavailable)
	})
	t.Run("loopback http allowed", func(t *testing.T) {
		c := newClock()
		cfg := tableConfig(t)
		cfg.Now, cfg.Keys = c.now, authn.KeySource{URL: plain.URL, AllowLoopbackHTTP: true}
		expect(t, newJWT(t, cfg), fresh(t, "ES256", c), "")
	})
}

func TestRun(t *testing.T) {
	one, two := only(t, "es256"), only(t, "es256", "es384")
	cfg := tableConfig(t)
	path := cfg.Keys.File
	synctest.Test(t, func(t *testing.T) {
		write := func(data []byte) {
			if err := os.WriteFile(path, data, 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Remove(path); err != nil {
			t.Fatal(err)
		}
		cfg.Now = time.Now
		j := newJWT(t, cfg)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- j.Run(ctx) }()
		synctest.Wait()
		if st := j.Status(); st.Usable || st.Err == nil {
			t.Errorf("without a file: %+v", st)
		}
		if err := j.Run(ctx); err == nil {
			t.Error("a second Run was allowed")
		}
		write(one)
		time.Sleep(time.Second) // on the bubble's clock: the first backoff
		synctest.Wait()
		if st := j.Status(); !st.Usable || st.KIDs != 1 || st.Err != nil {
			t.Errorf("after the backoff: %+v", st)
		}
		write(two)
		time.Sleep(4 * time.Minute)
		synctest.Wait()
		if st := j.Status(); st.KIDs != 1 {
			t.Errorf("before the refresh: %+v", st)
		}
		time.Sleep(time.Minute)
		synctest.Wait()
		if st := j.Status(); st.KIDs != 2 || st.Generation != 2 {
			t.Errorf("after the refresh: %+v", st)
		}
		write([]byte("{"))
		time.Sleep(30 * time.Minute)
		synctest.Wait()
		if st := j.Status(); !st.Usable || st.KIDs != 2 || st.Err == nil {
			t.Errorf("a broken file: %+v", st)
		}
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		if st := j.Status(); st.Usable {
			t.Errorf("an hour of failure: %+v", st)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("Run returned %v", err)
		}
	})
}
