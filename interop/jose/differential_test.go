package jose

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
	"github.com/go-jose/go-jose/v4"
	josejson "github.com/go-jose/go-jose/v4/json"
	josejwt "github.com/go-jose/go-jose/v4/jwt"
	"github.com/lestrrat-go/jwx/v3/jwk"
	"github.com/lestrrat-go/jwx/v3/jws"
	"github.com/lestrrat-go/jwx/v3/jwt"
)

var update = flag.Bool("update", false, "write testdata/disagreements.txt anew")

// oracle is another library's verdict on one token: nil if it accepts.
type oracle struct {
	name  string
	judge func(token string) error
}

// goJose is go-jose with its algorithm list, its key choice by kid, and every
// claim check that it has.
func goJose(t *testing.T, e *jwtattack.Env) oracle {
	t.Helper()
	var set jose.JSONWebKeySet
	if err := josejson.Unmarshal(e.JWKS, &set); err != nil {
		t.Fatal(err)
	}
	var algs []jose.SignatureAlgorithm
	for _, a := range jwtattack.Algorithms {
		algs = append(algs, jose.SignatureAlgorithm(a))
	}
	return oracle{"go-jose", func(token string) error {
		sig, err := jose.ParseSignedCompact(token, algs)
		if err != nil {
			return err
		}
		payload, err := sig.Verify(&set)
		if err != nil {
			return err
		}
		var claims josejwt.Claims
		if err := josejson.Unmarshal(payload, &claims); err != nil {
			return err
		}
		return claims.ValidateWithLeeway(josejwt.Expected{
			Issuer: jwtattack.Issuer, AnyAudience: josejwt.Audience{jwtattack.Audience}, Time: jwtattack.Now,
		}, jwtattack.Skew)
	}}
}

// jwx is lestrrat-go/jwx with every option that makes it stricter.
func jwx(t *testing.T, e *jwtattack.Env) oracle {
	t.Helper()
	set, err := jwk.Parse(e.JWKS)
	if err != nil {
		t.Fatal(err)
	}
	jwt.Settings(jwt.WithNumericDateParsePedantic(true))
	return oracle{"jwx", func(token string) error {
		payload, err := jws.Verify([]byte(token),
			jws.WithKeySet(set, jws.WithRequireKid(true), jws.WithInferAlgorithmFromKey(true)),
			jws.WithCompact(), jws.WithCritValidation(true), jws.WithValidateKey(true))
		if err != nil {
			return err
		}
		_, err = jwt.Parse(payload, jwt.WithVerify(false), jwt.WithValidate(true), jwt.WithStrictStringClaims(true),
			jwt.WithClock(jwt.ClockFunc(func() time.Time { return jwtattack.Now })), jwt.WithAcceptableSkew(jwtattack.Skew),
			jwt.WithIssuer(jwtattack.Issuer), jwt.WithAudience(jwtattack.Audience),
			jwt.WithRequiredClaim("exp"), jwt.WithRequiredClaim("iat"), jwt.WithRequiredClaim("sub"),
			jwt.WithMaxDelta(jwtattack.MaxLifetime, "exp", "iat"))
		return err
	}}
}

// ours is the gate's own verifier, through its front door.
func ours(t *testing.T, e *jwtattack.Env) func(token string) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, e.JWKS, 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := authn.NewJWT(authn.JWTConfig{
		Name: "corp", Issuer: jwtattack.Issuer, Audiences: []string{jwtattack.Audience}, Algorithms: jwtattack.Algorithms,
		RolesClaim: jwtattack.RolesClaim, MaxAge: jwtattack.MaxAge,
		Keys: authn.KeySource{File: path}, Now: func() time.Time { return jwtattack.Now },
	})
	if err != nil {
		t.Fatal(err)
	}
	return func(token string) error {
		_, err := j.Authenticate(context.Background(), &canon.Request{
			Fields: []canon.Field{{Name: "authorization", Value: "Bearer " + token}},
		})
		return err
	}
}

func reasonOf(err error) string {
	var f *authn.Failure
	if errors.As(err, &f) {
		return string(f.Reason)
	}
	return err.Error()
}

// Whatever we accept, the other libraries accept: a token that only our parser
// takes would be a hole of our own making. What they accept and we refuse is a
// checked-in list, so that a change on either side is seen and judged.
func TestDifferential(t *testing.T) {
	e, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	judge, oracles := ours(t, e), []oracle{goJose(t, e), jwx(t, e)}
	var lines []string
	accepted := 0
	for _, c := range e.Cases() {
		mine := judge(c.Token)
		if mine == nil {
			accepted++
		}
		for _, o := range oracles {
			theirs := o.judge(c.Token)
			switch {
			case mine == nil && theirs != nil:
				t.Errorf("%s: we accept, %s says %v", c.ID(), o.name, theirs)
			case mine != nil && theirs == nil:
				lines = append(lines, fmt.Sprintf("%s\t%s\taccept\t%s", c.ID(), o.name, reasonOf(mine)))
			}
		}
	}
	if accepted < 50 {
		t.Fatalf("only %d tokens were accepted: the table or the verifier is broken", accepted)
	}
	slices.Sort(lines)
	compare(t, lines)
}

func compare(t *testing.T, lines []string) {
	t.Helper()
	const path = "testdata/disagreements.txt"
	const head = "# Tokens of the attack table that another library accepts and we refuse: row, library, its verdict, our reason.\n" +
		"# Written by go test -run TestDifferential -update; read the diff before committing it.\n"
	got := head + strings.Join(lines, "\n") + "\n"
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	old := strings.Split(string(want), "\n")
	for _, l := range strings.Split(got, "\n") {
		if !slices.Contains(old, l) {
			t.Errorf("new disagreement: %s", l)
		}
	}
	for _, l := range old {
		if !slices.Contains(strings.Split(got, "\n"), l) {
			t.Errorf("no longer a disagreement: %s", l)
		}
	}
}
