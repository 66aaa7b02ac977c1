package jose

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/gate/upstream"
	"github.com/go-jose/go-jose/v4"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"github.com/lestrrat-go/jwx/v3/jwa"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jwt"
)

// The rest of a gate, as far as a token needs it.
type (
	shelf    struct{ kept []byte }
	nobook   struct{}
	yes      struct{}
	ann      struct{}
	catcher  struct{ token string }
	exchange struct{ req canon.Request }
)

func (s *shelf) Load(context.Context) ([]byte, error)   { return s.kept, nil }
func (s *shelf) Save(_ context.Context, b []byte) error { s.kept = slices.Clone(b); return nil }

func (nobook) Open(context.Context, *record.Record, record.Level) (record.Ref, error) {
	return record.Ref{}, nil
}
func (nobook) Commit(context.Context, record.Ref, *record.Record, record.Level) error { return nil }

func (yes) Decide(*authz.Request) authz.Decision { return authz.Decision{Allow: true} }

func (ann) Authenticate(context.Context, *canon.Request) (*authn.Principal, error) {
	return &authn.Principal{Method: "jwt", Issuer: "corp", Subject: `Ann "ü" \`, Client: "web", Roles: []string{"clerk", "a,b"}}, nil
}

func (c *catcher) RoundTrip(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
	for _, f := range r.Fields {
		if f.Name == "x-gatebook-identity" {
			c.token = f.Value
		}
	}
	return nil, errors.New("that was all")
}

func (x *exchange) Listener() string                     { return "public" }
func (x *exchange) Request() *canon.Request              { return &x.req }
func (x *exchange) Refusal() *canon.Error                { return nil }
func (x *exchange) Body() io.Reader                      { return strings.NewReader("hello") }
func (x *exchange) Interim(int, []canon.Field) error     { return nil }
func (x *exchange) Head(int, []canon.Field, int64) error { return nil }
func (x *exchange) Write(p []byte) (int, error)          { return len(p), nil }
func (x *exchange) Flush() error                         { return nil }
func (x *exchange) Finish([]canon.Field) error           { return nil }
func (x *exchange) Abort()                               {}
func (x *exchange) Tunnel() (io.ReadWriteCloser, error)  { return nil, errors.ErrUnsupported }

const identityIssuer, identityAudience = "https://log.example.com/gates", "orders"

// signed lets a gate of its own sign a request and returns the token and the key
// set. What keys it has lies on the shelf.
func signed(t *testing.T, keys *shelf, now time.Time) (token string, jwks []byte) {
	t.Helper()
	clock := func() time.Time { return now }
	k, err := gate.NewIdentityKeys(t.Context(), keys, 7*24*time.Hour, clock, nil)
	if err != nil {
		t.Fatal(err)
	}
	got := &catcher{}
	snap, err := gate.NewSnapshot(gate.SnapshotConfig{
		ID: "00112233445566778899aabbccddeeff", Node: "gate-1", Recorder: nobook{}, Listeners: []gate.Listener{{Name: "public"}},
		Routes: []*gate.Route{{
			Name: "orders", Path: "/v1/{rest...}", Authenticators: []gate.Authenticator{ann{}}, Engine: yes{}, Upstream: got, UpstreamName: "orders",
			Identity: &gate.Identity{Field: "x-gatebook-identity", Issuer: identityIssuer, Audience: identityAudience, Lifetime: time.Minute, BodyDigest: 100, Keys: k},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	g, err := gate.New(gate.Config{NewID: func(time.Time) record.ID { return record.ID{6: 0x70, 8: 0x80, 15: 7} }, Limiter: ratelimit.NewTable(ratelimit.Config{}), Now: clock}, snap)
	if err != nil {
		t.Fatal(err)
	}
	x := &exchange{canon.Request{Method: "POST", Scheme: "https", Host: "a", Authority: "a", Path: "/v1/ü", Segments: []string{"v1", "ü"}, Query: "a=1", HasQuery: true, Proto: "HTTP/1.1", ContentLength: 5}}
	g.Serve(t.Context(), x)
	if got.token == "" {
		t.Fatal("the upstream got no token")
	}
	return got.token, k.JWKS()
}

// verifier is another library in an upstream's place.
type verifier struct {
	name   string
	verify func(t *testing.T, jwks []byte, token string, now time.Time) (map[string]any, error)
}

var verifiers = []verifier{
	{"go-jose", func(t *testing.T, jwks []byte, token string, now time.Time) (map[string]any, error) {
		var set jose.JSONWebKeySet
		if err := json.Unmarshal(jwks, &set); err != nil {
			t.Fatal(err)
		}
		parsed, err := josejwt.ParseSigned(token, []jose.SignatureAlgorithm{jose.EdDSA})
		if err != nil {
			return nil, err
		}
		var claims josejwt.Claims
		var all map[string]any
		if err := parsed.Claims(&set, &claims, &all); err != nil {
			return nil, err
		}
		return all, claims.ValidateWithLeeway(josejwt.Expected{Issuer: identityIssuer, AnyAudience: josejwt.Audience{identityAudience}, Time: now}, 0)
	}},
	{"jwx", func(t *testing.T, jwks []byte, token string, now time.Time) (map[string]any, error) {
		set, err := jwk.Parse(jwks)
		if err != nil {
			t.Fatal(err)
		}
		for i := range set.Len() {
			if k, _ := set.Key(i); k.KeyType() != jwa.OKP() {
				t.Errorf("key type %v", k.KeyType())
			}
		}
		tok, err := jwt.Parse([]byte(token), jwt.WithKeySet(set), jwt.WithValidate(true), jwt.WithIssuer(identityIssuer), jwt.WithAudience(identityAudience), jwt.WithClock(jwt.ClockFunc(func() time.Time { return now })))
		if err != nil {
			return nil, err
		}
		b, err := json.Marshal(tok)
		if err != nil {
			return nil, err
		}
		var all map[string]any
		return all, json.Unmarshal(b, &all)
	}},
	{"jose under node", func(t *testing.T, jwks []byte, token string, now time.Time) (map[string]any, error) {
		ask, err := json.Marshal(map[string]any{"jwks": json.RawMessage(jwks), "token": token, "issuer": identityIssuer, "audience": identityAudience, "now": now.Unix()})
		if err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), "node", "verify.mjs")
		cmd.Stdin = bytes.NewReader(append(ask, '\n'))
		var stderr bytes.Buffer
		cmd.Stderr = &stderr
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("node: %v: %s; `make deps` installs what it needs", err, stderr.String())
		}
		var answer struct {
			Claims map[string]any
			Error  string
		}
		if err := json.Unmarshal(out, &answer); err != nil {
			t.Fatal(err)
		}
		if answer.Error != "" {
			return nil, errors.New(answer.Error)
		}
		return answer.Claims, nil
	}},
}

// TestIdentity: what the gate signs is what other libraries read, and only that.
func TestIdentity(t *testing.T) {
	now := time.Now().Truncate(time.Second)
	keys := &shelf{}
	token, jwks := signed(t, keys, now)
	strange, strangers := signed(t, &shelf{}, now)
	later, afterRotation := signed(t, keys, now.Add(8*24*time.Hour))
	head, rest, _ := strings.Cut(token, ".")
	body, sig, _ := strings.Cut(rest, ".")
	for _, v := range verifiers {
		t.Run(v.name, func(t *testing.T) {
			claims, err := v.verify(t, jwks, token, now)
			if err != nil {
				t.Fatal(err)
			}
			for name, want := range map[string]string{
				"sub": `corp|Ann "ü" \`, "idp": "corp", "user": `Ann "ü" \`, "method": "jwt", "client_id": "web", "route": "orders", "htm": "POST", "path": "/v1/ü",
				"jti": "00000000-0000-7000-8000-000000000007", "content_digest": "sha-256=:LPJNul+wow4m6DsqxbninhsWHlwfp0JecwQzYpOLmCQ=:",
			} {
				if claims[name] != want {
					t.Errorf("%s is %v, want %s", name, claims[name], want)
				}
			}
			if got, _ := json.Marshal(claims["roles"]); string(got) != `["clerk","a,b"]` {
				t.Errorf("roles %s", got)
			}
			for _, row := range []struct {
				name, token string
				jwks        []byte
				now         time.Time
				good        bool
			}{
				{name: "in its last second", token: token, jwks: jwks, now: now.Add(59 * time.Second), good: true},
				{name: "after its end", token: token, jwks: jwks, now: now.Add(61 * time.Second)},
				{name: "the next key is published before it signs", token: later, jwks: jwks, now: now.Add(8 * 24 * time.Hour), good: true},
				{name: "and after", token: later, jwks: afterRotation, now: now.Add(8 * 24 * time.Hour), good: true},
				{name: "of another gate", token: strange, jwks: jwks, now: now},
				{name: "with the keys of another gate", token: token, jwks: strangers, now: now},
				{name: "another body", token: head + "." + strings.Split(later, ".")[1] + "." + sig, jwks: jwks, now: now.Add(8 * 24 * time.Hour)},
				{name: "without a signature", token: head + "." + body + ".", jwks: jwks, now: now},
			} {
				if _, err := v.verify(t, row.jwks, row.token, row.now); (err == nil) != row.good {
					t.Errorf("%s: %v", row.name, err)
				}
			}
		})
	}
}
