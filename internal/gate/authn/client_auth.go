package authn

import (
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
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"time"
)

// The ways in which a client says to its issuer who it is (RFC 6749 section
// 2.3.1, RFC 7523 section 2.2).
const (
	ClientBasic         = "basic"
	ClientPost          = "post"
	ClientPrivateKeyJWT = "private_key_jwt"
)

// ClientAuth is how a client says to its issuer who it is.
type ClientAuth struct {
	Method string // one of the constants
	ID     string
	Secret string // for basic and post
	Key    crypto.Signer
	KeyID  string // kid of Key; may be empty
}

// String keeps the secret out of whatever prints a configuration.
func (c ClientAuth) String() string { return c.Method + " " + c.ID }

// GoString does the same for %#v.
func (c ClientAuth) GoString() string { return c.String() }

func (c *ClientAuth) validate() error {
	if c.ID == "" {
		return errors.New("client id is not set")
	}
	switch c.Method {
	case ClientBasic, ClientPost:
		if c.Secret == "" || c.Key != nil {
			return fmt.Errorf("client authentication %s needs a secret and no key", c.Method)
		}
	case ClientPrivateKeyJWT:
		if c.Key == nil || c.Secret != "" {
			return errors.New("client authentication private_key_jwt needs a private key and no secret")
		}
		_, err := assertionAlgorithm(c.Key)
		return err
	default:
		return fmt.Errorf("client authentication %q is not one of basic, post, private_key_jwt", c.Method)
	}
	return nil
}

// apply adds to a form post what says who the client is; audience is the
// issuer's identifier.
func (c *ClientAuth) apply(form url.Values, header http.Header, audience string, now time.Time) error {
	switch c.Method {
	case ClientBasic:
		both := url.QueryEscape(c.ID) + ":" + url.QueryEscape(c.Secret)
		header.Set("Authorization", "Basic "+base64.StdEncoding.EncodeToString([]byte(both)))
	case ClientPost:
		form.Set("client_id", c.ID)
		form.Set("client_secret", c.Secret)
	default:
		a, err := c.assertion(audience, now)
		if err != nil {
			return err
		}
		form.Set("client_id", c.ID)
		form.Set("client_assertion_type", "urn:ietf:params:oauth:client-assertion-type:jwt-bearer")
		form.Set("client_assertion", a)
	}
	return nil
}

// assertionLife is how long an assertion is good for.
const assertionLife = time.Minute

// assertion is a JWT that the client signs (RFC 7523 section 3). Its audience
// is the issuer identifier, and only that, so that no other server can use it.
func (c *ClientAuth) assertion(audience string, now time.Time) (string, error) {
	alg, err := assertionAlgorithm(c.Key)
	if err != nil {
		return "", err
	}
	header, err := json.Marshal(struct {
		Alg string `json:"alg"`
		KID string `json:"kid,omitempty"`
		Typ string `json:"typ"`
	}{alg, c.KeyID, "JWT"})
	if err != nil {
		return "", err
	}
	claims, err := json.Marshal(struct {
		Iss string `json:"iss"`
		Sub string `json:"sub"`
		Aud string `json:"aud"`
		JTI string `json:"jti"`
		Iat int64  `json:"iat"`
		Exp int64  `json:"exp"`
	}{c.ID, c.ID, audience, rand.Text(), now.Unix(), now.Add(assertionLife).Unix()})
	if err != nil {
		return "", err
	}
	text := base64.RawURLEncoding.EncodeToString(header) + "." + base64.RawURLEncoding.EncodeToString(claims)
	sig, err := signAssertion(c.Key, text)
	if err != nil {
		return "", err
	}
	return text + "." + base64.RawURLEncoding.EncodeToString(sig), nil
}

// assertionAlgorithm is what a key signs with.
func assertionAlgorithm(key crypto.Signer) (string, error) {
	switch pub := key.Public().(type) {
	case *ecdsa.PublicKey:
		switch pub.Curve {
		case elliptic.P256():
			return "ES256", nil
		case elliptic.P384():
			return "ES384", nil
		}
	case *rsa.PublicKey:
		if pub.N.BitLen() >= 2048 {
			return "RS256", nil
		}
	case ed25519.PublicKey:
		return "EdDSA", nil
	}
	return "", errors.New("private key is none of P-256, P-384, Ed25519 and RSA with 2048 bits or more")
}

func signAssertion(key crypto.Signer, text string) ([]byte, error) {
	switch pub := key.Public().(type) {
	case ed25519.PublicKey:
		return key.Sign(rand.Reader, []byte(text), crypto.Hash(0))
	case *rsa.PublicKey:
		sum := sha256.Sum256([]byte(text))
		return key.Sign(rand.Reader, sum[:], crypto.SHA256)
	case *ecdsa.PublicKey:
		private, ok := key.(*ecdsa.PrivateKey)
		if !ok {
			return nil, errors.New("private key is not in memory")
		}
		sum := sha256.Sum256([]byte(text))
		digest := sum[:]
		if pub.Curve == elliptic.P384() {
			long := sha512.Sum384([]byte(text))
			digest = long[:]
		}
		r, s, err := ecdsa.Sign(rand.Reader, private, digest)
		if err != nil {
			return nil, err
		}
		size := (pub.Curve.Params().BitSize + 7) / 8
		sig := make([]byte, 2*size) // RFC 7518 section 3.4
		r.FillBytes(sig[:size])
		s.FillBytes(sig[size:])
		return sig, nil
	}
	return nil, errors.New("private key of an unknown kind")
}

// ParsePrivateKey reads a private key in PEM form (PKCS #8, SEC 1 or PKCS #1)
// for ClientAuth.Key.
func ParsePrivateKey(text []byte) (crypto.Signer, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		var key any
		var err error
		switch block.Type {
		case "PRIVATE KEY":
			key, err = x509.ParsePKCS8PrivateKey(block.Bytes)
		case "EC PRIVATE KEY":
			key, err = x509.ParseECPrivateKey(block.Bytes)
		case "RSA PRIVATE KEY":
			key, err = x509.ParsePKCS1PrivateKey(block.Bytes)
		default:
			continue // such as EC PARAMETERS
		}
		if err != nil {
			return nil, errors.New("private key that cannot be read") // the cause may quote it
		}
		signer, ok := key.(crypto.Signer)
		if !ok {
			return nil, errors.New("private key that cannot sign")
		}
		if _, err := assertionAlgorithm(signer); err != nil {
			return nil, err
		}
		return signer, nil
	}
	return nil, errors.New("no private key in PEM form")
}
