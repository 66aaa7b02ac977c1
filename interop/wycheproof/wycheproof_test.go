package wycheproof

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// now is when all tokens are judged.
var now = time.Date(2026, 9, 2, 12, 0, 0, 0, time.UTC)

const (
	issuer   = "https://issuer.example"
	audience = "https://api.example"
)

// claims satisfy the verifier, so that nothing but form, key, algorithm and
// signature can be wrong with a token that has them.
var claims = fmt.Sprintf(`{"iss":%q,"sub":"wycheproof","aud":%q,"client_id":"c","jti":"1","iat":%d,"exp":%d}`,
	issuer, audience, now.Unix(), now.Add(5*time.Minute).Unix())

// The reasons that may refuse an invalid vector: all come before the first look
// at a claim other than iss, which every transplanted token has.
var beforeClaims = []reason.Reason{
	reason.TokenMalformed, reason.TokenAlgorithm, reason.TokenSignature, reason.TokenKeyUnknown,
	reason.IssuerUnavailable, // none of the issuer's keys may be used
}

// front is the gate's verifier for one key set, every algorithm that it knows,
// and headers without typ, which the vectors have none of. Its verdict is nil or
// the reason of the refusal.
func front(t *testing.T, set []byte) func(token string) error {
	t.Helper()
	path := filepath.Join(t.TempDir(), "keys.json")
	if err := os.WriteFile(path, set, 0o600); err != nil {
		t.Fatal(err)
	}
	j, err := authn.NewJWT(authn.JWTConfig{
		Name: "corp", Issuer: issuer, Audiences: []string{audience}, AllowNoType: true,
		Algorithms: []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"},
		Keys:       authn.KeySource{File: path}, Now: func() time.Time { return now },
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

func reasonOf(t *testing.T, err error) reason.Reason {
	t.Helper()
	var f *authn.Failure
	switch {
	case err == nil:
		return "accepted"
	case errors.As(err, &f):
		return f.Reason
	case errors.Is(err, authn.ErrNoCredential):
		return reason.TokenMalformed // no token at all after Bearer
	}
	t.Fatalf("refusal without a reason: %v", err)
	return ""
}

func TestSignatures(t *testing.T) {
	run(t, "json_web_signature_test.json", "testdata/signature.txt", 300)
}

func TestKeys(t *testing.T) { run(t, "json_web_key_test.json", "testdata/key.txt", 10) }

// run judges every vector twice: as it is, when it must be refused without a
// look at claims (its payload is none), and with a payload of good claims, when
// the verdict must be the vector's. Where it is not, a checked-in list says so
// and why; a line that is no longer true is an error too.
func run(t *testing.T, name, list string, least int) {
	known := readList(t, list)
	moved := 0
	for _, g := range load(t, name) {
		judge := front(t, g.keySet(t))
		for _, v := range g.Tests {
			if got := reasonOf(t, judge(v.JWS)); !slices.Contains(beforeClaims, got) {
				t.Errorf("%s %d (%s) as it is: %s", name, v.ID, v.Comment, got)
			}
			token, ok := transplant(t, g.secret(t), v.JWS, claims)
			if !ok {
				if v.Result == "valid" {
					t.Errorf("%s %d (%s): a valid vector that is not three segments", name, v.ID, v.Comment)
				}
				continue
			}
			moved++
			got := reasonOf(t, judge(token))
			want := v.Result == "valid" && got == "accepted" ||
				v.Result == "invalid" && slices.Contains(beforeClaims, got)
			line := fmt.Sprintf("%d\t%s\t%s\t%s\t%s", v.ID, g.Comment, v.Comment, v.Result, got)
			if _, listed := known[line]; want == listed {
				t.Errorf("%s: %s\nlisted in %s: %v", name, line, list, listed)
			}
			delete(known, line)
		}
	}
	for line := range known {
		t.Errorf("%s: no such difference: %s", list, line)
	}
	if moved < least {
		t.Errorf("%s: only %d vectors could be given claims", name, moved)
	}
}

// readList reads the differences: five columns that name one, and one that says
// why it is right.
func readList(t *testing.T, path string) map[string]string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for l := range strings.Lines(string(b)) {
		l = strings.TrimSuffix(l, "\n")
		if l == "" || l[0] == '#' {
			continue
		}
		i := strings.LastIndexByte(l, '\t')
		if strings.Count(l, "\t") != 5 || l[i+1:] == "" {
			t.Fatalf("%s: not five columns and a reason: %q", path, l)
		}
		out[l[:i]] = l[i+1:]
	}
	return out
}
