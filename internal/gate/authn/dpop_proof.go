package authn

import (
	"crypto"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"

	"github.com/go-jose/go-jose/v4"
)

// proof is a DPoP proof (RFC 9449 section 4.2) whose structure is sound. Its
// signature is not verified yet.
type proof struct {
	token *token
	alg   *algorithm
	pub   crypto.PublicKey
	jkt   string // RFC 7638 thumbprint, base64url

	jti, htm, ath, nonce string
	htu                  uri
	iat                  int64
	exp, nbf             int64 // -1 if absent
}

// The names that mean something in a proof and in the key inside it.
var (
	proofClaims  = newNameSet("jti", "htm", "htu", "iat", "ath", "nonce", "exp", "nbf")
	proofJWK     = newNameSet("kty", "crv", "x", "y", "n", "e", "alg", "use", "key_ops", "kid", "d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv", "x5u", "x5c", "x5t", "x5t#S256")
	proofRefused = []string{"crit", "jku", "x5u", "x5c", "zip", "b64", "enc", "epk", "p2s", "p2c", "iv", "tag"}
)

// maxProofText bounds jti and nonce, in bytes.
const maxProofText = 256

// parseProof reads a proof with the strict parser of tokens. The header names
// its own key, which is why a proof proves nothing until somebody else has said
// which key it must be.
func parseProof(raw string, allowed []*algorithm) (*proof, error) {
	t, err := parseToken(raw, proofClaims)
	if err != nil {
		return nil, err
	}
	p := &proof{token: t}
	if err := p.readHeader(t.header, allowed); err != nil {
		return nil, fmt.Errorf("header: %w", err)
	}
	if err := p.readClaims(t.claims); err != nil {
		return nil, fmt.Errorf("payload: %w", err)
	}
	return p, nil
}

// proofAlgorithm finds an algorithm by name: asymmetric ones only, Ed25519 also
// under the name of RFC 9864 section 2.2.
func proofAlgorithm(name string) *algorithm {
	if name == "Ed25519" {
		return &algorithm{name: name, family: eddsa}
	}
	return algorithmByName(name)
}

func (p *proof) readHeader(h *value, allowed []*algorithm) error {
	for _, name := range proofRefused {
		if h.get(name) != nil {
			return errors.New("a parameter that a proof cannot have")
		}
	}
	if typ := h.get("typ"); typ == nil || typ.kind != kindString || mediaType(typ.text) != "dpop+jwt" {
		return errors.New("typ is not dpop+jwt")
	}
	alg := h.get("alg")
	if alg == nil || alg.kind != kindString {
		return errors.New("alg is missing or not a string")
	}
	for _, a := range allowed {
		if a.name == alg.text {
			p.alg = a
		}
	}
	if p.alg == nil {
		return errors.New("algorithm is not configured")
	}
	return p.readKey(h.get("jwk"))
}

// readKey takes the public key in the header: public material only, of the kind
// that the algorithm needs.
func (p *proof) readKey(v *value) error {
	if v == nil || v.kind != kindObject {
		return errors.New("jwk is missing or not an object")
	}
	if err := proofJWK.check(v); err != nil {
		return fmt.Errorf("jwk: %w", err)
	}
	for _, name := range privateMembers {
		if v.get(name) != nil {
			return errors.New("jwk holds a private or symmetric key")
		}
	}
	if err := checkUse(v); err != nil {
		return fmt.Errorf("jwk: %w", err)
	}
	if alg := v.get("alg"); alg != nil && (alg.kind != kindString || alg.text != p.alg.name) {
		return errors.New("jwk is for another algorithm")
	}
	key, ok := parseMaterial(v)
	if !ok {
		return errors.New("jwk is malformed or of an unsupported type")
	}
	if err := checkPublicKey(key.Key); err != nil {
		return fmt.Errorf("jwk: %w", err)
	}
	if !p.alg.fits(key.Key) {
		return errors.New("jwk does not fit the algorithm")
	}
	// Of the key alone: what else the header says of it does not count.
	bare := jose.JSONWebKey{Key: key.Key}
	thumb, err := bare.Thumbprint(crypto.SHA256)
	if err != nil {
		return errors.New("jwk has no thumbprint")
	}
	p.pub, p.jkt = key.Key, base64.RawURLEncoding.EncodeToString(thumb)
	return nil
}

func (p *proof) readClaims(c *value) error {
	for _, s := range []struct {
		name string
		to   *string
		must bool
	}{{"jti", &p.jti, true}, {"htm", &p.htm, true}, {"ath", &p.ath, false}, {"nonce", &p.nonce, false}} {
		v := c.get(s.name)
		if v == nil && !s.must {
			continue
		}
		var ok bool
		if *s.to, ok = text(v, maxProofText); !ok || *s.to == "" {
			return fmt.Errorf("%s is missing or not a short plain string", s.name)
		}
	}
	htu := c.get("htu")
	if htu == nil || htu.kind != kindString {
		return errors.New("htu is missing or not a string")
	}
	var err error
	if p.htu, err = parseURI(htu.text); err != nil {
		return fmt.Errorf("htu: %w", err)
	}
	for _, d := range []struct {
		name string
		to   *int64
		must bool
	}{{"iat", &p.iat, true}, {"exp", &p.exp, false}, {"nbf", &p.nbf, false}} {
		*d.to = -1
		v := c.get(d.name)
		if v == nil && !d.must {
			continue
		}
		n, ok := int64(0), false
		if v != nil {
			n, ok = v.numericDate()
		}
		if !ok {
			return fmt.Errorf("%s is missing or not a plain integer of seconds", d.name)
		}
		*d.to = n
	}
	return nil
}

// verify checks the signature under the key that the proof names.
func (p *proof) verify() bool {
	return p.alg.verify(p.pub, []byte(p.token.signed), p.token.sig)
}

// accessTokenHash is the ath of a token (RFC 9449 section 4.2).
func accessTokenHash(raw string) string {
	sum := sha256.Sum256([]byte(raw))
	return base64.RawURLEncoding.EncodeToString(sum[:])
}
