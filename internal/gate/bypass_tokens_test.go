package gate

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// tokenHouse is a gate whose routes ask introspection endpoints.
type tokenHouse struct {
	*house
	cache *authn.Cache // shared by all issuers, as in the product
}

// endpointFunc says what an endpoint says of a token to a client.
type endpointFunc func(client, token string) string

func endpoint(t *testing.T, say endpointFunc) string {
	t.Helper()
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		client, _, _ := r.BasicAuth()
		text := say(client, r.PostFormValue("token"))
		w.Header().Set("Content-Type", "application/json")
		fmt.Fprint(w, text)
	}))
	t.Cleanup(s.Close)
	return s.URL
}

// activeFor is an answer about a good token of a subject.
func activeFor(sub, more string) string {
	return fmt.Sprintf(`{"active":true,"sub":%q,"client_id":"web","aud":"api","token_type":"Bearer","iat":%d,"exp":%d%s}`, sub, epoch.Unix()-60, epoch.Unix()+600, more)
}

const notActive = `{"active":false}`

func (h *tokenHouse) introspector(t *testing.T, name, client, url string) *authn.Introspector {
	t.Helper()
	i, err := authn.NewIntrospector(authn.IntrospectConfig{
		Token: authn.JWTConfig{Name: name, Issuer: "https://" + name + ".example.com", Audiences: []string{"api"}, MaxLifetime: time.Hour, Cache: h.cache, Now: func() time.Time { return epoch }},
		URL:   url, Client: authn.ClientAuth{Method: authn.ClientBasic, ID: client, Secret: "s"}, AllowLoopbackHTTP: true,
	})
	if err != nil {
		t.Fatal(err)
	}
	return i
}

// newTokenHouse makes a route "/NAME" for each.
func newTokenHouse(t *testing.T, routes func(h *tokenHouse) []*Route) *tokenHouse {
	h := &tokenHouse{cache: authn.NewCache(0)}
	h.house = newHouse(t, houseConfig{snap: func(s *SnapshotConfig) {
		up := s.Routes[0].Upstream
		s.Routes = nil
		for _, r := range routes(h) {
			r.Path, r.Methods, r.Engine, r.Upstream, r.UpstreamName = "/"+r.Name, []string{"GET", "POST"}, allowAll, up, "orders"
			s.Routes = append(s.Routes, r)
		}
	}})
	return h
}

// comes sends a request and returns its record.
func (h *tokenHouse) comes(t *testing.T, path string, fields ...string) *record.Record {
	t.Helper()
	if _, _, err := do(t, h.h1, h.request(t, "GET", path, nil, append([]string{"Authorization", ""}, fields...)...)); err != nil {
		t.Fatal(err)
	}
	rec := h.one(t).rec
	return &rec
}

// wants is what must become of a token at a path: a reason, or the subject
// behind "=".
func (h *tokenHouse) wants(t *testing.T, path, token, want string) {
	t.Helper()
	rec := h.comes(t, path, "Authorization", "Bearer "+token)
	got := rec.Error.Reason
	if got == "" {
		got = "=" + rec.Personal.Sub
	}
	if got != want {
		t.Errorf("%s with %q: %s, want %s", path, token, got, want)
	}
}

func asker(name string, all ...Authenticator) *Route { return &Route{Name: name, Authenticators: all} }

// TestTokenBypasses are the published ways past a gate that concern tokens,
// what issuers say of them, and what is remembered of that.
func TestTokenBypasses(t *testing.T) {
	for name, try := range map[string]func(t *testing.T){
		"Oathkeeper CVE-2026-33496 (endpoint)":            tryOtherEndpoint,
		"Oathkeeper CVE-2026-33496 (client)":              tryOtherClient,
		"Oathkeeper CVE-2021-32701 (scope)":               tryOtherScope,
		"Oathkeeper CVE-2021-32701 (audience, freshness)": tryOtherDemands,
		"Envoy CVE-2022-29226 (junk)":                     tryJunk,
		"Kong jwt #9946 (two tokens)":                     tryTwoTokens,
		"Kong CVE-2021-27306 (anonymous)":                 tryNobody,
		"Traefik CVE-2026-71326 (singleflight)":           tryAtOnce,
		"fast-jwt CVE-2026-35039, OpenFGA CVE-2026-33729": tryKeysAlike,
		"OpenFGA CVE-2026-55689 (audience unset)":         tryNoAudience,
		"Traefik CVE-2026-54762 (secret unset)":           tryNoSecret,
		"Traefik CVE-2026-26998 (auth body)":              tryLongAnswer,
		"refresh token as access token":                   tryRefreshToken,
	} {
		t.Run(name, try)
	}
}

// The verdict of one endpoint must not count for another, whatever the order.
func tryOtherEndpoint(t *testing.T) {
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		a := h.introspector(t, "a", "gate", endpoint(t, func(_, token string) string {
			if token == "of-a" {
				return activeFor("ann", "")
			}
			return notActive
		}))
		b := h.introspector(t, "b", "gate", endpoint(t, func(_, token string) string {
			if token == "of-b" {
				return activeFor("root", "")
			}
			return notActive
		}))
		// The same issuer by name, asked elsewhere: as after a change of the file.
		moved := h.introspector(t, "a", "gate", endpoint(t, func(string, string) string { return notActive }))
		return []*Route{asker("a", a), asker("b", b), asker("both", a, b), asker("moved", moved)}
	})
	for range 2 { // the second time from the cache
		h.wants(t, "/a", "of-a", "=ann")
		h.wants(t, "/b", "of-a", "token_inactive")
		h.wants(t, "/b", "of-b", "=root")
		h.wants(t, "/a", "of-b", "token_inactive")
		h.wants(t, "/both", "of-a", "=ann")
		h.wants(t, "/both", "of-b", "=root")
		h.wants(t, "/moved", "of-a", "token_inactive")
	}
}

// An endpoint may tell one client and not another.
func tryOtherClient(t *testing.T) {
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		at := endpoint(t, func(client, _ string) string {
			if client == "one" {
				return activeFor("ann", "")
			}
			return notActive
		})
		return []*Route{asker("one", h.introspector(t, "a", "one", at)), asker("two", h.introspector(t, "a", "two", at))}
	})
	for range 2 {
		h.wants(t, "/one", "opaque", "=ann")
		h.wants(t, "/two", "opaque", "token_inactive")
	}
}

// A token remembered from a route that asks for less is not good for one that
// asks for more.
func tryOtherScope(t *testing.T) {
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		a := h.introspector(t, "a", "gate", endpoint(t, func(_, token string) string {
			return activeFor("ann", map[string]string{"reads": `,"scope":"read"`, "near": `,"scope":"writer write:x Write"`, "both": `,"scope":"read write"`, "none": ""}[token])
		}))
		open, write := asker("open", a), asker("write", a)
		write.Scopes = []string{"write"}
		return []*Route{open, write}
	})
	for range 2 {
		for _, token := range []string{"reads", "near", "none"} {
			h.wants(t, "/open", token, "=ann")
			h.wants(t, "/write", token, "scope_missing")
		}
		h.wants(t, "/write", "both", "=ann")
		h.wants(t, "/open", "both", "=ann")
	}
}

func tryOtherDemands(t *testing.T) {
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		a := h.introspector(t, "a", "gate", endpoint(t, func(_, token string) string {
			if token == "wide" {
				return strings.Replace(activeFor("ann", fmt.Sprintf(`,"acr":"gold","auth_time":%d`, epoch.Unix()-1)), `"aud":"api"`, `"aud":["api","pay"]`, 1)
			}
			return activeFor("ann", "")
		}))
		demand := func(name string, c authn.DemandConfig) *Route {
			c.Now = func() time.Time { return epoch }
			d, err := authn.NewDemand(c)
			if err != nil {
				t.Fatal(err)
			}
			r := asker(name, a)
			r.Demands = []Demand{d}
			return r
		}
		return []*Route{
			asker("open", a), demand("pay", authn.DemandConfig{Audiences: []string{"pay"}}), demand("gold", authn.DemandConfig{ACR: []string{"gold"}}),
			demand("login", authn.DemandConfig{MaxAge: time.Minute}), demand("young", authn.DemandConfig{TokenMaxAge: 30 * time.Second}),
		}
	})
	for range 2 {
		h.wants(t, "/open", "narrow", "=ann")
		h.wants(t, "/pay", "narrow", "token_audience")
		h.wants(t, "/gold", "narrow", "stepup_required")
		h.wants(t, "/login", "narrow", "stepup_required")
		h.wants(t, "/young", "narrow", "token_too_old")
		for _, path := range []string{"/open", "/pay", "/gold", "/login"} {
			h.wants(t, path, "wide", "=ann")
		}
	}
}

// Any token at all, before an endpoint that is well, away or says odd things.
func tryJunk(t *testing.T) {
	odd := []string{"", "OK", "true", "null", "[]", `"active"`, "{}", `{"active":"true"}`, `{"active":1}`, `{"active":[true]}`, `{"active":{}}`, `{"Active":true,"sub":"x"}`, `{"active":false,"active":true}`}
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		well := h.introspector(t, "a", "gate", endpoint(t, func(string, string) string { return notActive }))
		away := h.introspector(t, "b", "gate", "http://127.0.0.1:1/")
		routes := []*Route{asker("well", well), asker("away", away), asker("mixed", tokenAuth, well)}
		for i, text := range odd {
			routes = append(routes, asker(fmt.Sprint("odd", i), h.introspector(t, fmt.Sprint("o", i), "gate", endpoint(t, func(string, string) string { return text }))))
		}
		return routes
	})
	for _, junk := range []string{"x", "null", "undefined", "true", "0", "active", "eyJhbGciOiJub25lIn0.e30.", "a.b", "...", strings.Repeat("A", 8000), "%00", "-", "good="} {
		if rec := h.comes(t, "/well", "Authorization", "Bearer "+junk); rec.Error.Reason != string(reason.TokenInactive) && rec.Error.Reason != string(reason.TokenMalformed) {
			t.Errorf("%.40q: %q", junk, rec.Error.Reason)
		}
		if rec := h.comes(t, "/away", "Authorization", "Bearer "+junk); rec.Error.Reason != string(reason.IssuerUnavailable) && rec.Error.Reason != string(reason.TokenMalformed) {
			t.Errorf("away, %.40q: %q", junk, rec.Error.Reason)
		}
	}
	for i := range odd {
		h.wants(t, fmt.Sprint("/odd", i), "junk", "issuer_unavailable")
	}
	h.wants(t, "/mixed", "good", "=alice")
}

// One token is looked at and no other is taken.
func tryTwoTokens(t *testing.T) {
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		a := h.introspector(t, "a", "gate", endpoint(t, func(_, token string) string { return activeFor(token, "") }))
		return []*Route{asker("a", a), asker("mixed", tokenAuth, a)}
	})
	for _, path := range []string{"/a", "/mixed"} {
		req := h.request(t, "GET", path, nil)
		req.Header["Authorization"] = []string{"Bearer ann", "Bearer root"}
		if _, _, err := do(t, h.h1, req); err != nil {
			t.Fatal(err)
		}
		if rec := h.one(t).rec; rec.Error.Reason != string(reason.TwoCredentials) {
			t.Errorf("%s: %q as %q", path, rec.Error.Reason, rec.Personal.Sub)
		}
	}
	for _, where := range []string{"?access_token=root", "?token=root", "?jwt=root", "?access_token=ann&access_token=root"} {
		h.wants(t, "/a"+where, "ann", "=ann")
		if rec := h.comes(t, "/a"+where); rec.Error.Reason != string(reason.NoCredential) {
			t.Errorf("%s alone: %q", where, rec.Error.Reason)
		}
	}
	for _, f := range [][]string{{"Cookie", "access_token=root; jwt=root"}, {"X-Access-Token", "root"}, {"Proxy-Authorization", "Bearer root"}, {"X-Forwarded-Access-Token", "root"}} {
		if rec := h.comes(t, "/a", append([]string{"Authorization", "Bearer ann"}, f...)...); rec.Personal.Sub != "ann" {
			t.Errorf("%s: %q as %q", f[0], rec.Error.Reason, rec.Personal.Sub)
		}
		if rec := h.comes(t, "/a", f...); rec.Error.Reason != string(reason.NoCredential) {
			t.Errorf("%s alone: %q", f[0], rec.Error.Reason)
		}
	}
}

// Nobody is let in as nobody.
func tryNobody(t *testing.T) {
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		empty := h.introspector(t, "a", "gate", endpoint(t, func(string, string) string {
			return fmt.Sprintf(`{"active":true,"aud":"api","token_type":"Bearer","exp":%d}`, epoch.Unix()+600)
		}))
		none := fakeAuth(func(*canon.Request) (*authn.Principal, error) { return nil, nil })
		return []*Route{asker("empty", empty), asker("silent", none)}
	})
	h.wants(t, "/empty", "opaque", "token_malformed")
	h.wants(t, "/silent", "opaque", "issuer_unavailable")
	for _, v := range []string{"", "Bearer", "bearer", "Bearer ", "Basic", "Basic Og==", "anonymous", "Bearer\tx", "null"} {
		if rec := h.comes(t, "/empty", "Authorization", v); rec.Error.Reason != string(reason.NoCredential) && rec.Error.Reason != string(reason.TokenMalformed) {
			t.Errorf("%q: %q as %q", v, rec.Error.Reason, rec.Personal.Sub)
		}
	}
}

// alike are tokens that are one text when put together with what is around
// them, differ in little, or look like keys of a cache.
var alike = []string{
	"a", "aa", "aaa", "ab", "abc", "a.b", "a.b.", "a..b", "a/b", "a-b", "a_b", "a~b", "a+b", "a=", "a==", "A", "https.//a.example.com/a",
	"corp.a", "a.example.com", "0", "00", strings.Repeat("a", 64), strings.Repeat("a", 65), strings.Repeat("a", 8000), strings.Repeat("a", 7999) + "b",
}

// Requests at the same time with different tokens, or with one token of two
// issuers, each get their own answer.
func tryAtOnce(t *testing.T) {
	var gather sync.WaitGroup
	gather.Add(1)
	const questions = 16
	var asked atomic.Int64
	gathered := make(chan struct{})
	say := func(prefix string) endpointFunc {
		return func(_, token string) string {
			if asked.Add(1) == questions {
				close(gathered)
			}
			gather.Wait() // all wait for their answers at once
			return activeFor(prefix+fmt.Sprintf("%d.%.20s", len(token), token[max(len(token)-20, 0):]), "")
		}
	}
	cache := authn.NewCache(0)
	h := &tokenHouse{cache: cache}
	issuers := map[string]*authn.Introspector{
		"x-": h.introspector(t, "x", "gate", endpoint(t, say("x-"))),
		"y-": h.introspector(t, "y", "gate", endpoint(t, say("y-"))),
	}
	var all sync.WaitGroup
	var wrong atomic.Int64
	for prefix, i := range issuers {
		for _, token := range alike[:questions/2] { // as many as may be asked at once
			for range 4 {
				all.Go(func() {
					r := &canon.Request{Fields: []canon.Field{{Name: "authorization", Value: "Bearer " + token}}}
					p, err := i.Authenticate(context.Background(), r)
					if err != nil || p.Subject != prefix+fmt.Sprintf("%d.%.20s", len(token), token[max(len(token)-20, 0):]) {
						wrong.Add(1)
					}
				})
			}
		}
	}
	select {
	case <-gathered:
	case <-time.After(30 * time.Second):
		t.Errorf("%d questions came", asked.Load())
	}
	gather.Done()
	all.Wait()
	if wrong.Load() != 0 || asked.Load() != questions {
		t.Errorf("%d of 64 got the answer of another, %d questions", wrong.Load(), asked.Load())
	}
}

// What is remembered of one token never answers for another.
func tryKeysAlike(t *testing.T) {
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		return []*Route{asker("a", h.introspector(t, "a", "gate", endpoint(t, func(_, token string) string {
			return activeFor(fmt.Sprintf("%d.%.20s", len(token), token[max(len(token)-20, 0):]), "")
		})))}
	})
	for range 2 {
		for _, token := range alike {
			h.wants(t, "/a", token, fmt.Sprintf("=%d.%.20s", len(token), token[max(len(token)-20, 0):]))
		}
		slices.Reverse(alike)
	}
}

// Unset means deny: neither a configuration nor an answer without audience.
func tryNoAudience(t *testing.T) {
	for _, audiences := range [][]string{nil, {}, {""}, {"api", ""}} {
		_, err := authn.NewIntrospector(authn.IntrospectConfig{
			Token: authn.JWTConfig{Name: "a", Issuer: "https://a.example.com", Audiences: audiences},
			URL:   "https://a.example.com/introspect", Client: authn.ClientAuth{Method: authn.ClientBasic, ID: "gate", Secret: "s"},
		})
		if err == nil {
			t.Errorf("audiences %q are taken", audiences)
		}
	}
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		var routes []*Route
		for i, aud := range []string{"", `,"aud":null`, `,"aud":[]`, `,"aud":""`, `,"aud":[""]`, `,"aud":["*"]`, `,"aud":{"api":true}`, `,"aud":["api",1]`, `,"Aud":"api"`, `,"audience":"api"`} {
			routes = append(routes, asker(fmt.Sprint("a", i), h.introspector(t, fmt.Sprint("a", i), "gate", endpoint(t, func(string, string) string {
				return strings.Replace(activeFor("ann", ""), `,"aud":"api"`, aud, 1)
			}))))
		}
		return routes
	})
	for i := range 10 {
		if rec := h.comes(t, fmt.Sprint("/a", i), "Authorization", "Bearer opaque"); rec.Error.Reason != string(reason.TokenAudience) && rec.Error.Reason != string(reason.TokenMalformed) {
			t.Errorf("answer %d: %q", i, rec.Error.Reason)
		}
	}
}

// A secret that is not there does not make a gate that asks nobody.
func tryNoSecret(t *testing.T) {
	for _, a := range []authn.ClientAuth{
		{}, {ID: "gate"}, {Method: authn.ClientBasic, ID: "gate"}, {Method: authn.ClientPost, ID: "gate"}, {Method: authn.ClientPrivateKeyJWT, ID: "gate"},
		{Method: authn.ClientBasic, Secret: "s"}, {Method: "none", ID: "gate"}, {Method: "BASIC", ID: "gate", Secret: "s"},
	} {
		_, err := authn.NewIntrospector(authn.IntrospectConfig{
			Token: authn.JWTConfig{Name: "a", Issuer: "https://a.example.com", Audiences: []string{"api"}}, URL: "https://a.example.com/introspect", Client: a,
		})
		if err == nil {
			t.Errorf("taken: %v", a)
		}
	}
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusUnauthorized)
			fmt.Fprint(w, activeFor("ann", "")) // whatever it says beside
		}))
		t.Cleanup(s.Close)
		return []*Route{asker("a", h.introspector(t, "a", "gate", s.URL))}
	})
	h.wants(t, "/a", "opaque", "issuer_unavailable")
}

// An endpoint that does not end its answer takes no more memory than allowed,
// and lets nobody in.
func tryLongAnswer(t *testing.T) {
	var sent atomic.Int64
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_ = r.ParseForm()
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, strings.TrimSuffix(activeFor("ann", ""), "}"))
			for i := 0; r.Context().Err() == nil; i++ {
				n, err := fmt.Fprintf(w, `,"x%d":"%s"`, i, strings.Repeat("x", 1000))
				if sent.Add(int64(n)); err != nil {
					return
				}
			}
		}))
		t.Cleanup(s.Close)
		return []*Route{asker("a", h.introspector(t, "a", "gate", s.URL))}
	})
	h.wants(t, "/a", "opaque", "issuer_unavailable")
	if n := sent.Load(); n > 32<<20 {
		t.Errorf("%d bytes were taken", n)
	}
}

// An endpoint that calls refresh tokens active does not make them access tokens.
func tryRefreshToken(t *testing.T) {
	h := newTokenHouse(t, func(h *tokenHouse) []*Route {
		return []*Route{asker("a", h.introspector(t, "a", "gate", endpoint(t, func(_, token string) string {
			kind := map[string]string{"typed": `"token_type":"refresh_token"`, "untyped": `"x":1`, "null": `"token_type":null`, "list": `"token_type":["Bearer"]`, "used": `"token_type":"Bearer","token_use":"refresh_token"`, "typ": `"token_type":"Bearer","typ":"Refresh"`}[token]
			return strings.Replace(activeFor("ann", ""), `"token_type":"Bearer"`, kind, 1)
		})))}
	})
	for _, token := range []string{"typed", "untyped", "null", "list", "used", "typ"} {
		h.wants(t, "/a", token, "token_type")
	}
}
