package token

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/reason"
)

// prover makes DPoP proofs.
type prover struct {
	key *ecdsa.PrivateKey
	jwk string
}

func newProver(t *testing.T) *prover {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	pub, err := key.PublicKey.Bytes()
	if err != nil {
		t.Fatal(err)
	}
	return &prover{key, fmt.Sprintf(`{"crv":"P-256","kty":"EC","x":%q,"y":%q}`, b64.EncodeToString(pub[1:33]), b64.EncodeToString(pub[33:]))}
}

func (p *prover) jkt() string {
	sum := sha256.Sum256([]byte(p.jwk))
	return b64.EncodeToString(sum[:])
}

// proof is for a POST to the token endpoint, with more claims.
func (p *prover) proof(t *testing.T, more string) string {
	t.Helper()
	head := `{"typ":"dpop+jwt","alg":"ES256","jwk":` + p.jwk + `}`
	claims := fmt.Sprintf(`{"jti":%q,"htm":"POST","htu":%q,"iat":%d%s}`, rand.Text(), issuer+PathToken, time.Now().Unix(), more)
	text := b64.EncodeToString([]byte(head)) + "." + b64.EncodeToString([]byte(claims))
	sum := sha256.Sum256([]byte(text))
	r, s, err := ecdsa.Sign(rand.Reader, p.key, sum[:])
	if err != nil {
		t.Fatal(err)
	}
	sig := make([]byte, 64)
	r.FillBytes(sig[:32])
	s.FillBytes(sig[32:])
	return text + "." + b64.EncodeToString(sig)
}

// TestDPoP: whoever proves a key gets tokens that are bound to it, and goes on
// to need one.
func TestDPoP(t *testing.T) {
	h := newHouse(t)
	judge, err := authn.NewDPoP(authn.DPoPConfig{Origins: []string{issuer}, Algorithms: []string{"ES256"}, Once: h.state})
	if err != nil {
		t.Fatal(err)
	}
	p, other := newProver(t), newProver(t)
	subject := authn.Confirmation{}
	sub := subjects()
	sub[0].Verify = func(ctx context.Context, raw string) (*authn.Principal, error) {
		who, err := corp(ctx, raw)
		if err == nil {
			who.Confirm = subject
		}
		return who, err
	}
	gone := ""
	h.serve(clients(), sub, func(c *Config) {
		c.Proofs, c.ProofAlgorithms = judge, []string{"ES256"}
		c.Revoked = func(_ context.Context, p *authn.Principal) error {
			if p.Issuer+"|"+p.Subject == gone {
				return &authn.Failure{Reason: reason.TokenRevoked}
			}
			return nil
		}
	})
	if !strings.Contains(string(h.svc.metadata), `"dpop_signing_alg_values_supported":["ES256"]`) {
		t.Errorf("%s", h.svc.metadata)
	}
	ask := func(proof string, pairs ...string) *reply {
		t.Helper()
		return h.send("POST", PathToken, encode(pairs...), nil, "content-type", formType, "authorization", basic("shop", secret), "dpop", proof)
	}
	cc := []string{"grant_type", "client_credentials", "audience", apiURL}
	once := p.proof(t, "")
	r := ask(once, cc...)
	if r.status != 200 || r.TokenType != "DPoP" || h.claimsOf(r.AccessToken).Confirm.JKT != p.jkt() {
		t.Fatalf("%d %s", r.status, r.raw)
	}
	if in := h.as("api", PathIntrospect, "token", r.AccessToken); !strings.Contains(in.raw, `"token_type":"DPoP"`) || !strings.Contains(in.raw, `"cnf":{"jkt":"`+p.jkt()+`"}`) {
		t.Errorf("%s", in.raw)
	}
	for name, proof := range map[string]string{
		"the same again": once, "rubbish": "x", "of another URI": strings.Replace(p.proof(t, ""), ".", ".e30.", 1), "with ath": p.proof(t, `,"ath":"x"`),
	} {
		if r := ask(proof, cc...); r.status != 400 || r.Error != invalidProof || !strings.HasPrefix(r.rec.Error.Reason, "dpop") && r.rec.Error.Reason != string(reason.TokenReplayed) {
			t.Errorf("%s: %d %s %+v", name, r.status, r.raw, r.rec.Error)
		}
	}
	if r := ask("", cc...); r.TokenType != "Bearer" || h.claimsOf(r.AccessToken).Confirm != nil {
		t.Errorf("without a proof: %s", r.raw)
	}
	exchange := []string{"grant_type", string(Exchange), "subject_token", unsigned(`{"sub":"alice"}`), "subject_token_type", TypeJWT, "audience", orders, "scope", "read offline_access"}
	one := ask(p.proof(t, ""), exchange...)
	if one.status != 200 || one.TokenType != "DPoP" {
		t.Fatal(one.raw)
	}
	again := []string{"grant_type", "refresh_token", "refresh_token", one.RefreshToken}
	if r := ask("", again...); r.status != 400 || r.rec.Error.Reason != string(reason.BindingRequired) {
		t.Errorf("refreshed without a proof: %d %s", r.status, r.raw)
	}
	two := ask(other.proof(t, ""), again...) // the client authenticates, so its key may change (RFC 9449 section 5)
	if two.status != 200 || h.claimsOf(two.AccessToken).Confirm.JKT != other.jkt() {
		t.Errorf("%d %s", two.status, two.raw)
	}
	gone = "corp|" + aliceSub
	for name, pairs := range map[string][]string{"refresh": slices.Concat(again[:3], []string{two.RefreshToken}), "exchange": exchange} {
		if r := ask(p.proof(t, ""), pairs...); r.status != 400 || r.rec.Error.Reason != string(reason.TokenRevoked) {
			t.Errorf("%s of somebody revoked: %d %s %+v", name, r.status, r.raw, r.rec.Error)
		}
	}
	gone, subject.JKT = "", p.jkt()
	for name, c := range map[string]struct {
		proof  string
		status int
	}{"its own key": {p.proof(t, ""), 200}, "another key": {other.proof(t, ""), 400}, "no key": {"", 400}} {
		if r := ask(c.proof, exchange...); r.status != c.status || c.status == 400 && r.rec.Error.Reason != string(reason.BindingRequired) {
			t.Errorf("a bound subject token with %s: %d %s", name, r.status, r.raw)
		}
	}
}
