package authn

import (
	"fmt"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/loginop"
)

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
