package authn_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
)

func env(t testing.TB) *jwtattack.Env {
	t.Helper()
	e, err := authn.AttackEnv()
	if err != nil {
		t.Fatal(err)
	}
	return e
}

func writeFile(t testing.TB, data []byte) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// tableConfig is what the attack table is made for.
func tableConfig(t testing.TB) authn.JWTConfig {
	return authn.JWTConfig{
		Name:       "corp",
		Issuer:     jwtattack.Issuer,
		Audiences:  []string{jwtattack.Audience},
		Algorithms: jwtattack.Algorithms,
		RolesClaim: jwtattack.RolesClaim,
		MaxAge:     jwtattack.MaxAge,
		Keys:       authn.KeySource{File: writeFile(t, env(t).JWKS)},
		Now:        func() time.Time { return jwtattack.Now },
	}
}

func newJWT(t testing.TB, c authn.JWTConfig) *authn.JWT {
	t.Helper()
	j, err := authn.NewJWT(c)
	if err != nil {
		t.Fatal(err)
	}
	return j
}

func request(authorization ...string) *canon.Request {
	r := &canon.Request{Method: "GET", Scheme: "https", Host: "api.example.com", Path: "/"}
	for _, a := range authorization {
		r.Fields = append(r.Fields, canon.Field{Name: "authorization", Value: a})
	}
	return r
}

func authenticate(j *authn.JWT, token string) (*authn.Principal, error) {
	return j.Authenticate(context.Background(), request("Bearer "+token))
}

// reasonOf reads the reason of a refusal; it is empty for no error at all.
func reasonOf(err error) reason.Reason {
	if err == nil {
		return ""
	}
	var f *authn.Failure
	if errors.As(err, &f) {
		return f.Reason
	}
	return reason.NoCredential
}

func TestAttackTable(t *testing.T) {
	cases := env(t).Cases()
	j := newJWT(t, tableConfig(t))
	seen := make(map[string]bool)
	refused := 0
	for _, c := range cases {
		if seen[c.ID()] {
			t.Errorf("%s: two rows of that name", c.ID())
		}
		seen[c.ID()] = true
		if c.Want != "" {
			refused++
		}
		// Twice: the second answer may come from a cache and must be the same.
		for _, pass := range []string{"first", "again"} {
			p, err := authenticate(j, c.Token)
			if got := reasonOf(err); got != c.Want {
				t.Errorf("%s, %s: got %q, want %q (%v)", c.ID(), pass, got, c.Want, err)
			}
			if (p == nil) == (err == nil) {
				t.Errorf("%s: principal %v with error %v", c.ID(), p, err)
			}
			if c.Want != "" && !c.Want.Valid() {
				t.Errorf("%s: %q is not in the closed list", c.ID(), c.Want)
			}
		}
	}
	t.Logf("%d rows, %d of them to be refused", len(cases), refused)
	if len(cases) < 300 {
		t.Errorf("the table has %d rows; 300 are wanted", len(cases))
	}
}
