package authn

import (
	"context"
	"os"
	"path/filepath"
	"testing"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

func TestInherit(t *testing.T) {
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "jwks.json")
	if err := os.WriteFile(file, env.JWKS, 0o600); err != nil {
		t.Fatal(err)
	}
	config := JWTConfig{Name: "corp", Issuer: jwtattack.Issuer, Audiences: []string{"a"}, Algorithms: []string{"ES256"}, Keys: KeySource{File: file}}
	make := func(change func(*JWTConfig)) *JWT {
		t.Helper()
		c := config
		change(&c)
		j, err := NewJWT(c)
		if err != nil {
			t.Fatal(err)
		}
		return j
	}
	first := make(func(*JWTConfig) {})
	if err := first.Load(context.Background()); err != nil || !first.Status().Usable {
		t.Fatalf("%v %+v", err, first.Status())
	}
	if err := os.Remove(file); err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		change func(*JWTConfig)
		keeps  bool
	}{
		"other audience":   {func(c *JWTConfig) { c.Audiences = []string{"b"} }, true},
		"other issuer":     {func(c *JWTConfig) { c.Issuer = "https://other.example" }, false},
		"other algorithms": {func(c *JWTConfig) { c.Algorithms = []string{"RS256"} }, false},
		"other file":       {func(c *JWTConfig) { c.Keys.File = file + "2" }, false},
		"from a URL":       {func(c *JWTConfig) { c.Keys = KeySource{URL: "https://keys.example/jwks"} }, false},
	} {
		j := make(c.change)
		j.Inherit(first)
		if j.Status().Usable != c.keeps {
			t.Errorf("%s: usable %t", name, j.Status().Usable)
		}
	}
	gone := make(func(*JWTConfig) {})
	if err := gone.Load(context.Background()); err == nil {
		t.Error("keys were loaded from a file that is not there")
	}
	gone.Inherit(make(func(*JWTConfig) {})) // nothing to take over
	if gone.Status().Usable {
		t.Error("usable without keys")
	}
}

// TestVerdictsOfOtherKeys: a cache outlives JWTs, so what was found with keys that
// are gone answers for nobody, though both have the same rules and their first
// keys.
func TestVerdictsOfOtherKeys(t *testing.T) {
	env, err := AttackEnv()
	if err != nil {
		t.Fatal(err)
	}
	other, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "jwks.json")
	cache := NewCache(0)
	token := bearerRequest(env.Token("ES256", jwtattack.Header("ES256"), jwtattack.Claims()))
	for _, step := range []struct {
		jwks []byte
		good bool
	}{{env.JWKS, true}, {other.JWKS, false}, {env.JWKS, true}} {
		if err := os.WriteFile(file, step.jwks, 0o600); err != nil {
			t.Fatal(err)
		}
		now := jwtattack.Now
		j, _ := internalJWT(t, &now, func(c *JWTConfig) { c.Cache, c.Keys.File = cache, file })
		for range 2 {
			if p, err := j.Authenticate(context.Background(), token); (err == nil) != step.good || step.good != (p != nil) {
				t.Errorf("good %v: %v, %v", step.good, p, err)
			}
		}
		if j.Known(token) != step.good {
			t.Errorf("known is %v", !step.good)
		}
	}
}
