package gate

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// shelf is an IdentityStore in memory.
type shelf struct {
	kept  []byte
	saves int
	err   error
}

func (s *shelf) Load(context.Context) ([]byte, error) { return s.kept, s.err }
func (s *shelf) Save(_ context.Context, b []byte) error {
	if s.err != nil {
		return s.err
	}
	s.kept, s.saves = slices.Clone(b), s.saves+1
	return nil
}

func identityKeys(t testing.TB, now func() time.Time) *IdentityKeys {
	t.Helper()
	k, err := NewIdentityKeys(context.Background(), &shelf{}, 7*24*time.Hour, now, nil)
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// verified checks a token with what is published and returns its claims.
func verified(t *testing.T, jwks []byte, token string) (claims map[string]any, kid string) {
	t.Helper()
	parts := strings.Split(token, ".")
	if len(parts) != 3 {
		t.Fatalf("no token: %q", token)
	}
	var bin [3][]byte
	for i, p := range parts {
		b, err := base64.RawURLEncoding.DecodeString(p)
		if err != nil {
			t.Fatal(err)
		}
		bin[i] = b
	}
	var head struct{ Alg, Kid, Typ string }
	if err := json.Unmarshal(bin[0], &head); err != nil || head.Alg != "EdDSA" || head.Typ != "gatebook-identity+jwt" {
		t.Fatalf("header %s %v", bin[0], err)
	}
	var set struct {
		Keys []struct{ Kty, Crv, X, Kid, Use, Alg, D string }
	}
	if err := json.Unmarshal(jwks, &set); err != nil {
		t.Fatal(err)
	}
	for _, k := range set.Keys {
		if k.D != "" {
			t.Fatal("a private key is published")
		}
		pub, err := base64.RawURLEncoding.DecodeString(k.X)
		if err != nil || len(pub) != ed25519.PublicKeySize {
			t.Fatalf("key %+v", k)
		}
		if k.Kid == head.Kid {
			if !ed25519.Verify(pub, []byte(parts[0]+"."+parts[1]), bin[2]) {
				t.Fatal("wrong signature")
			}
			if err := json.Unmarshal(bin[1], &claims); err != nil {
				t.Fatalf("%v: %s", err, bin[1])
			}
			return claims, head.Kid
		}
	}
	t.Fatalf("the key %s is not published", head.Kid)
	return nil, ""
}

func digestText(s string) string {
	sum := sha256.Sum256([]byte(s))
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

func TestIdentityClaims(t *testing.T) {
	keys := identityKeys(t, func() time.Time { return epoch })
	odd := &authn.Principal{Method: "jwt", Issuer: "corp", Subject: "a\"b\\\n\x01\u2028ü\xff", Roles: []string{"x,y", "z\"", "\\"}}
	for _, row := range []struct {
		name, method, path string
		body               io.Reader
		who                *authn.Principal // nil: nobody, on a public route
		bind               int64
		want               map[string]any
		absent             []string
	}{
		{name: "alice", method: "GET", path: "/v1/orders/7?b=2&a=1", who: alice, want: map[string]any{
			"iss": "https://log.example.com/gates", "aud": "orders", "sub": "corp|alice", "idp": "corp", "user": "alice", "method": "jwt", "client_id": "web",
			"roles": []any{"clerk", "auditor"}, "route": "orders", "htm": "GET", "path": "/v1/orders/7", "query_digest": digestText("b=2&a=1"),
			"iat": float64(epoch.Unix()), "exp": float64(epoch.Unix() + 60), "content_digest_absent": "off",
		}, absent: []string{"anonymous", "content_digest"}},
		{name: "nobody", method: "GET", path: "/v1/orders/7", want: map[string]any{"anonymous": true, "query_digest": digestText(""), "content_digest_absent": "off"},
			absent: []string{"sub", "idp", "user", "roles", "client_id", "method"}},
		{name: "an odd name", method: "GET", path: "/v1/orders/7", who: odd, want: map[string]any{
			"user": "a\"b\\\n\x01\u2028ü\ufffd", "sub": "corp|a\"b\\\n\x01\u2028ü\ufffd", "roles": []any{"x,y", "z\"", "\\"},
		}, absent: []string{"client_id"}},
		{name: "a path in its normal form", method: "GET", path: "/v1/%6frders/a%2cb", who: alice, want: map[string]any{"path": "/v1/orders/a%2Cb"}},
		{name: "a body", method: "POST", path: "/v1/orders/7", who: alice, bind: 10, body: strings.NewReader("0123456789"), want: map[string]any{"htm": "POST", "content_digest": digestText("0123456789")}, absent: []string{"content_digest_absent"}},
		{name: "no body", method: "POST", path: "/v1/orders/7", who: alice, bind: 10, want: map[string]any{"content_digest": digestText("")}, absent: []string{"content_digest_absent"}},
		{name: "a body that is too long", method: "POST", path: "/v1/orders/7", who: alice, bind: 9, body: strings.NewReader("0123456789"), want: map[string]any{"content_digest_absent": "too_long"}, absent: []string{"content_digest"}},
		{name: "a body of unknown length", method: "POST", path: "/v1/orders/7", who: alice, bind: 10, body: io.MultiReader(strings.NewReader("01234"), strings.NewReader("56789")), want: map[string]any{"content_digest_absent": "unknown_length"}, absent: []string{"content_digest"}},
	} {
		for _, proto := range []string{"h1", "h2"} {
			t.Run(row.name+"/"+proto, func(t *testing.T) {
				var body []byte
				var sent []canon.Field
				up := backend(func(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
					sent = slices.Clone(r.Fields)
					if r.Body != nil {
						var err error
						if body, err = io.ReadAll(r.Body); err != nil {
							return nil, err
						}
					}
					return response(204, 0, nil, io.EOF), nil
				})
				h := newHouse(t, houseConfig{up: up, tune: func(r *Route) {
					r.Identity = &Identity{Field: "x-gatebook-identity", Issuer: "https://log.example.com/gates", Audience: "orders", Lifetime: time.Minute, BodyDigest: row.bind, Keys: keys}
					r.Authenticators = []Authenticator{fakeAuth(func(*canon.Request) (*authn.Principal, error) { return row.who, nil })}
					if row.who == nil {
						r.Authenticators, r.Public, r.Engine = nil, true, nil
					}
				}})
				client := h.h1
				if proto == "h2" {
					client = h.h2
				}
				var whole []byte
				reader := row.body
				if reader != nil { // both protocols get a body of their own
					var err error
					if whole, err = io.ReadAll(reader); err != nil {
						t.Fatal(err)
					}
					if len(whole) == 0 {
						whole = []byte("0123456789")
					}
					if reader = bytes.NewReader(whole); row.want["content_digest_absent"] == "unknown_length" {
						reader = io.MultiReader(reader)
					}
				}
				resp, _, err := do(t, client, h.request(t, row.method, row.path, reader, "X-Gatebook-Identity", "evil"))
				if err != nil || resp.StatusCode != 204 {
					t.Fatalf("%v %v", resp, err)
				}
				rec := h.one(t).rec
				var tokens []string
				for _, f := range sent {
					if f.Name == "x-gatebook-identity" {
						tokens = append(tokens, f.Value)
					}
				}
				if len(tokens) != 1 {
					t.Fatalf("%d tokens: %q", len(tokens), tokens)
				}
				claims, _ := verified(t, keys.JWKS(), tokens[0])
				if claims["jti"] != rec.ID.String() {
					t.Errorf("jti %v of %s", claims["jti"], rec.ID)
				}
				for name, want := range row.want {
					got, _ := json.Marshal(claims[name])
					wanted, _ := json.Marshal(want)
					if string(got) != string(wanted) {
						t.Errorf("%s is %s, want %s", name, got, wanted)
					}
				}
				for _, name := range row.absent {
					if v, there := claims[name]; there {
						t.Errorf("%s is %v", name, v)
					}
				}
				if !bytes.Equal(body, whole) || rec.BytesIn != int64(len(whole)) {
					t.Errorf("the upstream got %q, recorded %d bytes", body, rec.BytesIn)
				}
			})
		}
	}
}

// TestIdentityBodyFails: a body that does not come whole goes nowhere.
func TestIdentityBodyFails(t *testing.T) {
	asked := false
	up := backend(func(context.Context, *upstream.Request) (*upstream.Response, error) {
		asked = true
		return response(204, 0, nil, io.EOF), nil
	})
	h := newHouse(t, houseConfig{up: up, engine: HTTPConfig{ReadIdle: 50 * time.Millisecond}, tune: func(r *Route) {
		r.Identity = &Identity{Field: "x-gatebook-identity", Issuer: "i", Audience: "a", Lifetime: time.Minute, BodyDigest: 100, Keys: identityKeys(t, nil)}
	}})
	for _, row := range []struct {
		name, reason string
		hangUp       bool
	}{{"stalls", "timeout_reading", false}, {"hangs up", "client_aborted", true}} {
		c, _ := h.dial(t)
		if _, err := io.WriteString(c, "POST /v1/orders/1 HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer good\r\nContent-Length: 10\r\n\r\n01234"); err != nil {
			t.Fatal(err)
		}
		if row.hangUp {
			c.Close()
		}
		rec := h.one(t).rec
		if rec.Error.Reason != row.reason && !(row.hangUp && rec.Error.Reason == "timeout_reading") || asked || rec.BytesIn != 5 {
			t.Errorf("%s: %+v, the upstream was asked: %t, %d bytes", row.name, rec.Error, asked, rec.BytesIn)
		}
	}
}

// TestIdentityRotation: the next key is published before it signs, and the one
// before long enough after; all of it outlives a restart.
func TestIdentityRotation(t *testing.T) {
	now := epoch
	clock := func() time.Time { return now }
	ctx := context.Background()
	store := &shelf{}
	const week = 7 * 24 * time.Hour
	k, err := NewIdentityKeys(ctx, store, week, clock, nil)
	if err != nil {
		t.Fatal(err)
	}
	kids := func() (out []string) {
		for _, key := range k.keys.Load().keys {
			out = append(out, key.kid)
		}
		return out
	}
	var buf tokenBuffer
	buf.claims = []byte("{}")
	signer := func() string { _, kid := verified(t, k.JWKS(), k.sign(&buf, now)); return kid }
	first := kids()
	if len(first) != 2 || signer() != first[0] {
		t.Fatalf("keys %v, %s signs", first, signer())
	}
	var published []string
	seen := map[string]time.Time{} // when it was first published
	for day := 0; day <= 60; day++ {
		now = epoch.Add(time.Duration(day) * 24 * time.Hour)
		if err := k.Advance(ctx); err != nil {
			t.Fatal(err)
		}
		published = kids()
		for _, kid := range published {
			if _, known := seen[kid]; !known {
				seen[kid] = now
			}
		}
		kid := signer()
		if at := seen[kid]; day >= 7 && now.Sub(at) < week {
			t.Fatalf("day %d: %s signs %s after it was published", day, kid, now.Sub(at))
		}
		if len(published) > 3 {
			t.Fatalf("day %d: %d keys", day, len(published))
		}
		// A restart has the same keys.
		again, err := NewIdentityKeys(ctx, store, week, clock, nil)
		if err != nil {
			t.Fatal(err)
		}
		if !bytes.Equal(again.JWKS(), k.JWKS()) {
			t.Fatalf("day %d: other keys after a restart", day)
		}
	}
	if len(seen) < 9 {
		t.Errorf("%d keys in 60 days", len(seen))
	}
	// What was signed last before a change is verified after it.
	was := k.sign(&buf, now)
	for range 23 {
		now = now.Add(time.Hour)
		if err := k.Advance(ctx); err != nil {
			t.Fatal(err)
		}
		verified(t, k.JWKS(), was)
	}
	// A year without a process.
	now = now.Add(365 * 24 * time.Hour)
	if k, err = NewIdentityKeys(ctx, store, week, clock, nil); err != nil {
		t.Fatal(err)
	}
	signer()
	// A store that takes nothing: the keys before go on.
	store.err = errors.New("full")
	now = now.Add(2 * week)
	if err := k.Advance(ctx); err == nil {
		t.Error("keys that were not saved")
	}
	signer()
	if _, err := NewIdentityKeys(ctx, store, week, clock, nil); err == nil {
		t.Error("keys from a store that cannot be read")
	}
	for name, kept := range map[string]string{"garbage": "x", "one key": `[{"seed":"AAAA"}]`, "short keys": `[{"seed":"AAAA"},{"seed":"AAAA"}]`, "none": "[]"} {
		k, err := NewIdentityKeys(ctx, &shelf{kept: []byte(kept)}, week, clock, nil)
		if (err == nil) != (name == "none") {
			t.Errorf("%s: %v %v", name, k, err)
		}
	}
}

// TestIdentityRoute: the key set is answered by the gate, for everybody, and
// recorded.
func TestIdentityRoute(t *testing.T) {
	keys := identityKeys(t, nil)
	r := keys.Route("/.well-known/keys.json")
	r.Name = "gatebook.identity-keys"
	h := newHouse(t, houseConfig{snap: func(s *SnapshotConfig) { s.Routes = append(s.Routes, r) }})
	h.both(func(t *testing.T, c *http.Client, _ string) {
		for _, row := range []struct {
			method string
			status int
		}{{"GET", 200}, {"HEAD", 200}, {"POST", 405}, {"DELETE", 405}} {
			resp, body, err := do(t, c, h.request(t, row.method, "/.well-known/keys.json", nil, "Authorization", ""))
			if err != nil {
				t.Fatal(err)
			}
			rec := h.one(t).rec
			if resp.StatusCode != row.status || rec.Status != row.status || row.method == "GET" && body != string(keys.JWKS()) {
				t.Errorf("%s: %d %q, recorded %d", row.method, resp.StatusCode, body, rec.Status)
			}
			if row.status == 200 && (resp.Header.Get("Content-Type") != "application/jwk-set+json" || resp.Header.Get("Cache-Control") != "public, max-age=300" || rec.Outcome != "success" || rec.Route != r.Name) {
				t.Errorf("%s: %v %+v", row.method, resp.Header, rec)
			}
			if row.status == 405 && rec.Error.Reason != "method_not_allowed" {
				t.Errorf("%s: %+v", row.method, rec.Error)
			}
		}
	})
}

// FuzzAppendJSON: what is written reads as what was given.
func FuzzAppendJSON(f *testing.F) {
	for _, s := range []string{"", "a", "\"\\\x00\x1f\x7f", "\u2028\u2029", "\xff\xfe", "😀", "</script>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		b := appendJSON(nil, s)
		var got string
		if err := json.Unmarshal(b, &got); err != nil || got != string([]rune(s)) || !utf8.Valid(b) {
			t.Errorf("%q became %s, read as %q: %v", s, b, got, err)
		}
	})
}

// BenchmarkIdentity is what a token costs.
func BenchmarkIdentity(b *testing.B) {
	keys := identityKeys(b, nil)
	x := &exchange{idText: "01900000-0000-7000-8000-000000000000", start: time.Now(), principal: alice, req: &canon.Request{}, route: &Route{Name: "orders"}}
	x.route.Identity = &Identity{Field: "x-gatebook-identity", Issuer: "https://log.example.com/gates", Audience: "orders", Lifetime: time.Minute, Keys: keys}
	x.rec.Raw.IssuerSub = "corp|alice"
	x.out = upstream.Request{Method: "GET", Path: "/v1/orders/42", Query: "page=1"}
	b.ReportAllocs()
	for b.Loop() {
		x.fields = x.fields[:0]
		if !x.prove() {
			b.Fatal("no token")
		}
	}
}
