package authn_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/reason"
)

// asked is an introspection endpoint that answers by a function and counts.
type asked struct {
	*httptest.Server
	n   atomic.Int64
	say atomic.Pointer[func(w http.ResponseWriter, r *http.Request)]
}

func newAsked(t testing.TB, say func(w http.ResponseWriter, r *http.Request)) *asked {
	t.Helper()
	a := &asked{}
	a.answer(say)
	a.Server = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.n.Add(1)
		_ = r.ParseForm() // the body has to be read for the handler to see that the client is gone
		(*a.say.Load())(w, r)
	}))
	t.Cleanup(a.Close)
	return a
}

func (a *asked) answer(say func(w http.ResponseWriter, r *http.Request)) { a.say.Store(&say) }

// says answers every question with a text.
func says(text string) func(w http.ResponseWriter, r *http.Request) {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json; charset=utf-8")
		fmt.Fprint(w, text)
	}
}

const (
	introspectIssuer = "https://idp.example.com"
	introspectNow    = 1_780_000_000
)

// active is a full answer about a good token, with changes.
func active(changes ...string) string {
	m := []string{
		"active", "true", "iss", `"` + introspectIssuer + `"`, "sub", `"ann"`, "client_id", `"web"`, "aud", `["x","api"]`, "scope", `"read write"`,
		"token_type", `"Bearer"`, "iat", "1779999900", "exp", "1780000300", "roles", `["clerk"]`, "jti", `"t1"`,
	}
	for i := 0; i < len(changes); i += 2 {
		at := -1
		for j := 0; j < len(m); j += 2 {
			if m[j] == changes[i] {
				at = j
			}
		}
		switch {
		case at < 0:
			m = append(m, changes[i], changes[i+1])
		case changes[i+1] == "":
			m = append(m[:at], m[at+2:]...)
		default:
			m[at+1] = changes[i+1]
		}
	}
	var b strings.Builder
	for i := 0; i < len(m); i += 2 {
		fmt.Fprintf(&b, ",%q:%s", m[i], m[i+1])
	}
	return "{" + b.String()[1:] + "}"
}

// handClock is one that a test moves.
type handClock struct{ now atomic.Int64 } // Unix nanoseconds

func newHandClock() *handClock {
	c := &handClock{}
	c.now.Store(introspectNow * int64(time.Second))
	return c
}
func (c *handClock) Now() time.Time          { return time.Unix(0, c.now.Load()) }
func (c *handClock) forward(d time.Duration) { c.now.Add(int64(d)) }

func introspectConfig(u string, c *handClock) authn.IntrospectConfig {
	return authn.IntrospectConfig{
		Token: authn.JWTConfig{Name: "corp", Issuer: introspectIssuer, Audiences: []string{"api"}, RolesClaim: "/roles", MaxLifetime: time.Hour, Now: c.Now},
		URL:   u, Client: authn.ClientAuth{Method: authn.ClientBasic, ID: "gate", Secret: "s3cret"}, AllowLoopbackHTTP: true,
	}
}

func newIntrospector(t testing.TB, c authn.IntrospectConfig) *authn.Introspector {
	t.Helper()
	i, err := authn.NewIntrospector(c)
	if err != nil {
		t.Fatal(err)
	}
	return i
}

func introspected(i *authn.Introspector, token string) (*authn.Principal, error) {
	return i.Authenticate(context.Background(), request("Bearer "+token))
}

// What an endpoint can say of a token, and what becomes of it.
func TestIntrospectionAnswers(t *testing.T) {
	const none = reason.Reason("")
	for _, row := range []struct {
		name, say string
		want      reason.Reason
		next      bool // another method may take it
	}{
		{"active", active(), none, false},
		{"no iat and exp", active("iat", "", "exp", ""), none, false},
		{"no iss", active("iss", ""), none, false},
		{"one audience", active("aud", `"api"`), none, false},
		{"bound", active("cnf", `{"jkt":"0ZcOCORZNYy-DWpqq30jZyJGHTN0d2HglBV3uiguA4I"}`), none, false},
		{"token type in other case", active("token_type", `"DPoP"`), none, false},
		{"client alone", active("sub", ""), none, false},
		{"Keycloak's typ", active("typ", `"Bearer"`), none, false},
		{"Hydra's token_use", active("token_use", `"access_token"`), none, false},

		{"inactive", `{"active":false}`, reason.TokenInactive, true},
		{"inactive with claims", active("active", "false"), reason.TokenInactive, true},
		{"expired by the skew", active("exp", "1779999989"), reason.TokenExpired, false},
		{"not yet", active("nbf", "1780000011"), reason.TokenNotYet, false},
		{"issued in the future", active("iat", "1780000011"), reason.TokenNotYet, false},
		{"lives too long", active("exp", "1790000000"), reason.TokenLifetimeExceeded, false},
		{"other audience", active("aud", `"x"`), reason.TokenAudience, false},
		{"audience differs in case", active("aud", `"API"`), reason.TokenAudience, false},
		{"no audience", active("aud", ""), reason.TokenAudience, false},
		{"empty audience", active("aud", "[]"), reason.TokenAudience, false},
		{"audience null", active("aud", "null"), reason.TokenAudience, false},
		{"other issuer", active("iss", `"https://evil.example"`), reason.TokenIssuer, true},
		{"issuer null", active("iss", "null"), reason.TokenIssuer, true},
		{"refresh token", active("token_type", `"refresh_token"`), reason.TokenType, false},
		{"no token type", active("token_type", ""), reason.TokenType, false},
		{"Hydra's refresh token", active("token_use", `"refresh_token"`), reason.TokenType, false},
		{"Keycloak's refresh token", active("typ", `"Refresh"`), reason.TokenType, false},
		{"ID token", active("nonce", `"n"`), reason.TokenType, false},
		{"nobody", active("sub", "", "client_id", ""), reason.TokenMalformed, false},
		{"empty subject", active("sub", `""`), reason.TokenMalformed, false},
		{"subject null", active("sub", "null"), reason.TokenMalformed, false},
		{"subject with control character", active("sub", `"a\u0000b"`), reason.IssuerUnavailable, true},
		{"subject with line end", active("sub", `"a\nb"`), reason.TokenMalformed, false},
		{"date as text", active("exp", `"1780000300"`), reason.TokenMalformed, false},
		{"member in other case", active("Sub", `"root"`), reason.TokenMalformed, false},
		{"bound in an unknown way", active("cnf", `{"x":1}`), reason.BindingRequired, false},

		{"active as text", active("active", `"true"`), reason.IssuerUnavailable, true},
		{"active as number", active("active", "1"), reason.IssuerUnavailable, true},
		{"active missing", active("active", ""), reason.IssuerUnavailable, true},
		{"active null", active("active", "null"), reason.IssuerUnavailable, true},
		{"active twice", `{"active":false,` + active()[1:], reason.IssuerUnavailable, true},
		{"Active", strings.Replace(active(), `"active"`, `"Active"`, 1), reason.IssuerUnavailable, true},
		{"subject twice", active("active", `true,"sub":"root"`), reason.IssuerUnavailable, true},
		{"empty", "", reason.IssuerUnavailable, true},
		{"a list", "[" + active() + "]", reason.IssuerUnavailable, true},
		{"two documents", active() + active(), reason.IssuerUnavailable, true},
		{"cut", active()[:40], reason.IssuerUnavailable, true},
		{"web page", "<html>login</html>", reason.IssuerUnavailable, true},
		{"too long", active("x", `"`+strings.Repeat("x", 64<<10)+`"`), reason.IssuerUnavailable, true},
		{"too deep", active("x", strings.Repeat("[", 20)+strings.Repeat("]", 20)), reason.IssuerUnavailable, true},
	} {
		t.Run(row.name, func(t *testing.T) {
			a := newAsked(t, says(row.say))
			i := newIntrospector(t, introspectConfig(a.URL, newHandClock()))
			for _, pass := range []string{"first", "again"} {
				p, err := introspected(i, "opaque")
				if got := reasonOf(err); got != row.want {
					t.Fatalf("%s: %q, want %q (%v)", pass, got, row.want, err)
				}
				if (p == nil) == (row.want == none) || errors.Is(err, authn.ErrNoCredential) != row.next {
					t.Errorf("%s: principal %v, error %v", pass, p, err)
				}
			}
		})
	}
}

func TestIntrospectionPrincipal(t *testing.T) {
	a := newAsked(t, says(active("acr", `"gold"`, "amr", `["otp"]`, "auth_time", "1779999000", "dept", `"sales"`)))
	c := introspectConfig(a.URL, newHandClock())
	c.Token.PassClaims = []string{"dept"}
	p, err := introspected(newIntrospector(t, c), "opaque")
	if err != nil {
		t.Fatal(err)
	}
	got := fmt.Sprint(p.Method, p.Issuer, p.Subject, p.Client, p.Roles, p.Scopes, p.Audiences, p.ACR, p.AMR, p.TokenID, p.IssuedAt.Unix(), p.Expires.Unix(), p.AuthTime.Unix(), p.Claims, p.KID, p.Alg, p.Confirm.Bound())
	if want := fmt.Sprint("introspect", "corp", "ann", "web", []string{"clerk"}, []string{"read", "write"}, []string{"x", "api"}, "gold", []string{"otp"}, "t1", 1779999900, 1780000300, 1779999000, map[string]string{"dept": "sales"}, "", "", ""); got != want {
		t.Errorf("%s\nwant %s", got, want)
	}
	a.answer(says(active("sub", "", "client_id", `"batch"`, "iat", "", "exp", "")))
	if p, err = introspected(newIntrospector(t, introspectConfig(a.URL, newHandClock())), "other"); err != nil {
		t.Fatal(err)
	}
	if p.Subject != "batch" || p.Client != "batch" || !p.IssuedAt.IsZero() || !p.Expires.IsZero() {
		t.Errorf("%+v", p)
	}
}

// What the endpoint is asked, and how the gate says who it is.
func TestIntrospectionQuestion(t *testing.T) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	for _, row := range []struct {
		auth  authn.ClientAuth
		check func(form url.Values, user, password string, basic bool) bool
	}{
		{authn.ClientAuth{Method: authn.ClientBasic, ID: "g:te", Secret: "a b%"}, func(f url.Values, user, password string, basic bool) bool {
			return basic && user == "g%3Ate" && password == "a+b%25" && !f.Has("client_secret")
		}},
		{authn.ClientAuth{Method: authn.ClientPost, ID: "gate", Secret: "a b%"}, func(f url.Values, _, _ string, basic bool) bool {
			return !basic && f.Get("client_id") == "gate" && f.Get("client_secret") == "a b%"
		}},
		{authn.ClientAuth{Method: authn.ClientPrivateKeyJWT, ID: "gate", Key: key, KeyID: "k1"}, func(f url.Values, _, _ string, basic bool) bool {
			return !basic && f.Get("client_assertion_type") == "urn:ietf:params:oauth:client-assertion-type:jwt-bearer" && strings.Count(f.Get("client_assertion"), ".") == 2
		}},
	} {
		t.Run(row.auth.Method, func(t *testing.T) {
			var form url.Values
			var ok bool
			var how string
			a := newAsked(t, func(w http.ResponseWriter, r *http.Request) {
				user, password, basic := r.BasicAuth()
				_ = r.ParseForm()
				form, ok, how = r.PostForm, row.check(r.PostForm, user, password, basic), r.Method+" "+r.Header.Get("Accept")+" "+r.Header.Get("Content-Type")+" "+r.URL.RawQuery
				says(active())(w, r)
			})
			c := introspectConfig(a.URL, newHandClock())
			c.Client = row.auth
			if _, err := introspected(newIntrospector(t, c), "to~k+en/="); err != nil {
				t.Fatal(err)
			}
			if !ok || form.Get("token") != "to~k+en/=" || form.Get("token_type_hint") != "access_token" || len(form["token"]) != 1 {
				t.Errorf("form %v", form)
			}
			if how != "POST application/json application/x-www-form-urlencoded " {
				t.Errorf("asked by %q", how)
			}
			if s := fmt.Sprintf("%v %+v %#v", row.auth, row.auth, row.auth); strings.Contains(s, "a b%") && row.auth.Secret != "" {
				t.Errorf("the configuration prints its secret: %s", s)
			}
		})
	}
}

// How often the endpoint is asked, and how long an answer counts.
func TestIntrospectionMemory(t *testing.T) {
	for _, row := range []struct {
		name, say string
		wait      time.Duration // between two requests with the token
		asked     int64
	}{
		{"active at once", active(), 0, 1},
		{"active within the cap", active(), 59 * time.Second, 1},
		{"active past the cap", active(), 61 * time.Second, 2},
		{"active until it ends", active("exp", "1780000020"), 19 * time.Second, 1},
		{"active and ended", active("exp", "1780000020"), 20 * time.Second, 2},
		{"inactive at once", `{"active":false}`, 0, 1},
		{"inactive a little later", `{"active":false}`, 4 * time.Second, 1},
		{"inactive later", `{"active":false}`, 6 * time.Second, 2},
		{"wrong audience", active("aud", `"x"`), 4 * time.Second, 1},
		{"not yet", active("nbf", "1780000011"), 0, 2},
		{"no usable answer", "{}", 0, 2},
	} {
		t.Run(row.name, func(t *testing.T) {
			a, now := newAsked(t, says(row.say)), newHandClock()
			i := newIntrospector(t, introspectConfig(a.URL, now))
			_, first := introspected(i, "opaque")
			now.forward(row.wait)
			if row.name != "active and ended" {
				if _, second := introspected(i, "opaque"); reasonOf(first) != reasonOf(second) {
					t.Errorf("%v, then %v", first, second)
				}
			} else if _, err := introspected(i, "opaque"); err != nil && reasonOf(err) != reason.TokenExpired {
				t.Error(err)
			}
			if n := a.n.Load(); n != row.asked {
				t.Errorf("asked %d times, want %d", n, row.asked)
			}
		})
	}
}

// A revoked token is refused once what was said of it before has run out.
func TestIntrospectionRevoked(t *testing.T) {
	a, now := newAsked(t, says(active())), newHandClock()
	c := introspectConfig(a.URL, now)
	c.Positive = 3 * time.Second
	i := newIntrospector(t, c)
	if _, err := introspected(i, "opaque"); err != nil {
		t.Fatal(err)
	}
	a.answer(says(`{"active":false}`))
	now.forward(2900 * time.Millisecond)
	if _, err := introspected(i, "opaque"); err != nil {
		t.Errorf("within the cap: %v", err)
	}
	now.forward(100 * time.Millisecond)
	if _, err := introspected(i, "opaque"); reasonOf(err) != reason.TokenInactive {
		t.Errorf("past the cap: %v", err)
	}
}

func TestIntrospectorRefusesConfigurations(t *testing.T) {
	ok := introspectConfig("https://idp.example.com/introspect", newHandClock())
	if _, err := authn.NewIntrospector(ok); err != nil {
		t.Fatal(err)
	}
	for name, change := range map[string]func(c *authn.IntrospectConfig){
		"no name":           func(c *authn.IntrospectConfig) { c.Token.Name = "" },
		"no issuer":         func(c *authn.IntrospectConfig) { c.Token.Issuer = "" },
		"no audience":       func(c *authn.IntrospectConfig) { c.Token.Audiences = nil },
		"no URL":            func(c *authn.IntrospectConfig) { c.URL = "" },
		"plain URL":         func(c *authn.IntrospectConfig) { c.URL = "http://idp.example.com/" },
		"plain loopback":    func(c *authn.IntrospectConfig) { c.URL, c.AllowLoopbackHTTP = "http://127.0.0.1/", false },
		"URL with user":     func(c *authn.IntrospectConfig) { c.URL = "https://a:b@idp.example.com/" },
		"no client":         func(c *authn.IntrospectConfig) { c.Client.ID = "" },
		"no secret":         func(c *authn.IntrospectConfig) { c.Client.Secret = "" },
		"unknown method":    func(c *authn.IntrospectConfig) { c.Client.Method = "none" },
		"key without key":   func(c *authn.IntrospectConfig) { c.Client.Method, c.Client.Secret = authn.ClientPrivateKeyJWT, "" },
		"long cache":        func(c *authn.IntrospectConfig) { c.Positive = time.Hour },
		"short cache":       func(c *authn.IntrospectConfig) { c.Positive = time.Millisecond },
		"long refusals":     func(c *authn.IntrospectConfig) { c.Negative = time.Minute },
		"empty prefix":      func(c *authn.IntrospectConfig) { c.Prefixes = []string{""} },
		"odd prefix":        func(c *authn.IntrospectConfig) { c.Prefixes = []string{"a b"} },
		"negative rate":     func(c *authn.IntrospectConfig) { c.Rate = -1 },
		"negative time-out": func(c *authn.IntrospectConfig) { c.Timeout = -1 },
	} {
		c := ok
		change(&c)
		if _, err := authn.NewIntrospector(c); err == nil {
			t.Errorf("%s: taken", name)
		} else if strings.Contains(err.Error(), "s3cret") {
			t.Errorf("%s: the error tells the secret: %v", name, err)
		}
	}
}

// BenchmarkIntrospectCached is a request whose token was asked about before.
func BenchmarkIntrospectCached(b *testing.B) {
	a := newAsked(b, says(active()))
	i := newIntrospector(b, introspectConfig(a.URL, newHandClock()))
	r := request("Bearer ory_at_0123456789abcdefghijklmnopqrstuvwxyz")
	if _, err := i.Authenticate(context.Background(), r); err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := i.Authenticate(context.Background(), r); err != nil {
			b.Fatal(err)
		}
	}
}
