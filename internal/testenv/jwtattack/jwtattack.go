// Package jwtattack generates a table of access tokens, genuine and forged,
// each with the verdict that the strict profile must reach. It is imported by
// tests only: by those of authn, and by the differential tests that show the
// same tokens to other JOSE libraries.
//
// The techniques are those of RFC 8725, of the public attack tools and of
// library advisories; every row says in its class which one it is.
package jwtattack

import (
	"bytes"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"math/big"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// What the verifier must be configured with for the table to hold.
const (
	Issuer      = "https://idp.example.com/realms/a"
	Audience    = "https://api.example.com"
	Type        = "at+jwt"
	RolesClaim  = "roles"
	Skew        = 10 * time.Second
	MaxLifetime = 15 * time.Minute
	MaxAge      = 10 * time.Minute
)

// Now is the verifier's clock for the table.
var Now = time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)

// Algorithms are all that the verifier must be configured with.
var Algorithms = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "ES512", "EdDSA"}

// Case is one token and what must become of it.
type Case struct {
	Class, Name string
	Token       string
	Want        reason.Reason // empty: the token is genuine and must be accepted
}

// ID names the row; it is unique in the table.
func (c Case) ID() string { return c.Class + "/" + c.Name }

// Env is an issuer with one key per algorithm. It is immutable after New and
// safe for concurrent use.
type Env struct {
	rsa      *rsa.PrivateKey
	ec       map[string]*ecdsa.PrivateKey // by algorithm
	ed       ed25519.PrivateKey
	attacker *ecdsa.PrivateKey

	// JWKS is the issuer's key set: a key of each algorithm under its name in
	// lower case with "alg" set, and "rsa-any" without.
	JWKS []byte
}

// New generates the keys; RSA makes it slow, so call it once per test binary.
func New() (*Env, error) {
	e := &Env{ec: make(map[string]*ecdsa.PrivateKey)}
	var err error
	if e.rsa, err = rsa.GenerateKey(rand.Reader, 2048); err != nil {
		return nil, err
	}
	for alg, curve := range map[string]elliptic.Curve{
		"ES256": elliptic.P256(), "ES384": elliptic.P384(), "ES512": elliptic.P521(),
	} {
		if e.ec[alg], err = ecdsa.GenerateKey(curve, rand.Reader); err != nil {
			return nil, err
		}
	}
	if e.attacker, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader); err != nil {
		return nil, err
	}
	if _, e.ed, err = ed25519.GenerateKey(rand.Reader); err != nil {
		return nil, err
	}
	e.JWKS, err = e.keySet()
	return e, err
}

func (e *Env) keySet() ([]byte, error) {
	var list []map[string]string
	for _, alg := range Algorithms {
		jwk := JWK(e.Public(alg))
		jwk["kid"], jwk["alg"], jwk["use"] = strings.ToLower(alg), alg, "sig"
		list = append(list, jwk)
	}
	open := JWK(e.rsa.Public())
	open["kid"] = "rsa-any"
	return json.Marshal(map[string]any{"keys": append(list, open)})
}

// Public returns the public key that verifies tokens of alg.
func (e *Env) Public(alg string) crypto.PublicKey {
	switch alg[:2] {
	case "RS", "PS":
		return e.rsa.Public()
	case "ES":
		return e.ec[alg].Public()
	}
	return e.ed.Public()
}

// JWK returns the members of a public key's JWK, without kid, alg and use.
func JWK(pub crypto.PublicKey) map[string]string {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return map[string]string{"kty": "RSA", "n": b64(k.N.Bytes()), "e": b64(big.NewInt(int64(k.E)).Bytes())}
	case *ecdsa.PublicKey:
		point, err := k.Bytes()
		if err != nil {
			panic(err) // keys come from New or a test's own generator
		}
		n := (len(point) - 1) / 2
		return map[string]string{"kty": "EC", "crv": k.Params().Name, "x": b64(point[1 : 1+n]), "y": b64(point[1+n:])}
	case ed25519.PublicKey:
		return map[string]string{"kty": "OKP", "crv": "Ed25519", "x": b64(k)}
	}
	panic(fmt.Sprintf("no JWK form for %T", pub))
}

func b64(b []byte) string { return base64.RawURLEncoding.EncodeToString(b) }

// Hash returns the hash that alg signs over; 0 for EdDSA.
func Hash(alg string) crypto.Hash {
	switch {
	case strings.HasSuffix(alg, "256"):
		return crypto.SHA256
	case strings.HasSuffix(alg, "384"):
		return crypto.SHA384
	case strings.HasSuffix(alg, "512"):
		return crypto.SHA512
	}
	return 0
}

func digest(h crypto.Hash, s string) []byte {
	switch h {
	case crypto.SHA256:
		d := sha256.Sum256([]byte(s))
		return d[:]
	case crypto.SHA384:
		d := sha512.Sum384([]byte(s))
		return d[:]
	default:
		d := sha512.Sum512([]byte(s))
		return d[:]
	}
}

// Sign signs text as alg prescribes, with the issuer's key for alg.
func (e *Env) Sign(alg, text string) []byte {
	var sig []byte
	var err error
	h := Hash(alg)
	switch alg[:2] {
	case "RS":
		sig, err = rsa.SignPKCS1v15(nil, e.rsa, h, digest(h, text))
	case "PS":
		sig, err = rsa.SignPSS(rand.Reader, e.rsa, h, digest(h, text), &rsa.PSSOptions{SaltLength: h.Size()})
	case "ES":
		sig, err = signRaw(e.ec[alg], digest(h, text))
	default:
		sig = ed25519.Sign(e.ed, []byte(text))
	}
	if err != nil {
		panic(err) // a fixed algorithm with its own key cannot fail
	}
	return sig
}

// signRaw makes the R||S form of RFC 7518 section 3.4.
func signRaw(k *ecdsa.PrivateKey, digest []byte) ([]byte, error) {
	r, s, err := ecdsa.Sign(rand.Reader, k, digest)
	if err != nil {
		return nil, err
	}
	n := (k.Params().BitSize + 7) / 8
	return append(r.FillBytes(make([]byte, n)), s.FillBytes(make([]byte, n))...), nil
}

// Header returns the genuine header for alg.
func Header(alg string) Object {
	return Object{{"alg", quote(alg)}, {"typ", quote(Type)}, {"kid", quote(strings.ToLower(alg))}}
}

// Claims returns genuine claims: issued 30 s ago, good for another 5 minutes.
func Claims() Object {
	now := Now.Unix()
	return Object{
		{"iss", quote(Issuer)}, {"sub", `"alice"`}, {"aud", quote(Audience)},
		{"exp", num(now + 300)}, {"iat", num(now - 30)}, {"jti", `"0001"`},
		{"client_id", `"web"`}, {"scope", `"read write"`}, {"roles", `["clerk"]`},
	}
}

// Token signs header and claims as they are with the issuer's key for alg.
func (e *Env) Token(alg string, header, claims Object) string {
	return e.TokenText(alg, header.String(), claims.String())
}

// TokenText is Token for any two texts.
func (e *Env) TokenText(alg, header, claims string) string {
	return e.TokenRaw(alg, b64([]byte(header)), b64([]byte(claims)))
}

// TokenRaw is Token for two segments that are already encoded, or not.
func (e *Env) TokenRaw(alg, header, claims string) string {
	signed := header + "." + claims
	return signed + "." + b64(e.Sign(alg, signed))
}

// Object is a JSON object in the making: member names and values are raw JSON
// text, so that it can be malformed at will. Its methods return copies.
type Object []Member

// Member is one member; Name stands between quotes as it is.
type Member struct{ Name, Value string }

// Set replaces the member, or appends it.
func (o Object) Set(name, value string) Object {
	c := append(Object(nil), o...)
	for i := range c {
		if c[i].Name == name {
			c[i].Value = value
			return c
		}
	}
	return append(c, Member{name, value})
}

// Add appends the member even if it is there.
func (o Object) Add(name, value string) Object {
	return append(append(Object(nil), o...), Member{name, value})
}

// Del removes the member.
func (o Object) Del(name string) Object {
	var c Object
	for _, m := range o {
		if m.Name != name {
			c = append(c, m)
		}
	}
	return c
}

// Rename changes the name of a member in place.
func (o Object) Rename(name, to string) Object {
	c := append(Object(nil), o...)
	for i := range c {
		if c[i].Name == name {
			c[i].Name = to
		}
	}
	return c
}

// Get returns the raw value of the member.
func (o Object) Get(name string) string {
	for _, m := range o {
		if m.Name == name {
			return m.Value
		}
	}
	return ""
}

// String writes the object without white space.
func (o Object) String() string {
	var b strings.Builder
	b.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			b.WriteByte(',')
		}
		fmt.Fprintf(&b, `"%s":%s`, m.Name, m.Value)
	}
	b.WriteByte('}')
	return b.String()
}

func quote(s string) string { return `"` + s + `"` }

func num(n int64) string { return fmt.Sprint(n) }

// publicForms are the byte strings that a confused verifier might use a public
// key as: the secrets of an RS/HS confusion.
func (e *Env) publicForms(alg string) map[string][]byte {
	pub := e.Public(alg)
	der, err := x509.MarshalPKIXPublicKey(pub)
	if err != nil {
		panic(err) // the three key types marshal
	}
	jwk, err := json.Marshal(JWK(pub))
	if err != nil {
		panic(err) // strings marshal
	}
	spki := pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: der})
	forms := map[string][]byte{
		"pem": spki, "pem-trimmed": bytes.TrimSpace(spki), "pem-space": append([]byte(" "), spki...),
		"der": der, "jwk": jwk, "jwks": e.JWKS, "empty": {}, "kid": []byte(strings.ToLower(alg)),
	}
	if k, ok := pub.(*rsa.PublicKey); ok {
		forms["pkcs1-pem"] = pem.EncodeToMemory(&pem.Block{Type: "RSA PUBLIC KEY", Bytes: x509.MarshalPKCS1PublicKey(k)})
		forms["modulus"] = k.N.Bytes()
	}
	return forms
}
