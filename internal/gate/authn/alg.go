package authn

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/sha512"
	"errors"
	"fmt"
	"math/big"
)

// family is the kind of key an algorithm works with.
type family uint8

const (
	rsaPKCS1 family = iota + 1
	rsaPSS
	ecdsaRaw
	eddsa
)

// algorithm is one row of the closed list of RFC 7518 section 3.1 and RFC 8037
// that we verify. There is no HMAC and no "none" in it.
type algorithm struct {
	name   string
	family family
	hash   crypto.Hash
	curve  elliptic.Curve // ecdsaRaw: the one curve that the name stands for
}

var algorithms = []algorithm{
	{"RS256", rsaPKCS1, crypto.SHA256, nil},
	{"RS384", rsaPKCS1, crypto.SHA384, nil},
	{"RS512", rsaPKCS1, crypto.SHA512, nil},
	{"PS256", rsaPSS, crypto.SHA256, nil},
	{"PS384", rsaPSS, crypto.SHA384, nil},
	{"PS512", rsaPSS, crypto.SHA512, nil},
	{"ES256", ecdsaRaw, crypto.SHA256, elliptic.P256()},
	{"ES384", ecdsaRaw, crypto.SHA384, elliptic.P384()},
	{"ES512", ecdsaRaw, crypto.SHA512, elliptic.P521()},
	{"EdDSA", eddsa, 0, nil},
}

func algorithmByName(name string) *algorithm {
	for i := range algorithms {
		if algorithms[i].name == name {
			return &algorithms[i]
		}
	}
	return nil
}

// fits says whether the algorithm can be used with that public key at all.
func (a *algorithm) fits(pub crypto.PublicKey) bool {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		return a.family == rsaPKCS1 || a.family == rsaPSS
	case *ecdsa.PublicKey:
		return a.family == ecdsaRaw && k.Curve == a.curve
	case ed25519.PublicKey:
		return a.family == eddsa
	}
	return false
}

// Bounds of RSA keys. Below, they are too weak; above, one verification costs
// too much.
const (
	minRSABits     = 2048
	maxRSABits     = 8192
	minRSAExponent = 1<<16 + 1
	maxRSAExponent = 1<<31 - 1
)

// checkPublicKey refuses a key that is not one of the three kinds or weak.
func checkPublicKey(pub crypto.PublicKey) error {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if n := k.N.BitLen(); n < minRSABits || n > maxRSABits {
			return fmt.Errorf("RSA key of %d bits; %d to %d are taken", n, minRSABits, maxRSABits)
		}
		if k.E < minRSAExponent || k.E > maxRSAExponent || k.E%2 == 0 {
			return errors.New("RSA exponent is even or outside 65537 to 2^31-1")
		}
		if k.N.Bit(0) == 0 {
			return errors.New("RSA modulus is even")
		}
		return nil
	case *ecdsa.PublicKey:
		switch k.Curve {
		case elliptic.P256(), elliptic.P384(), elliptic.P521():
			_, err := k.ECDH() // checks that the point is on the curve
			return err
		}
		return errors.New("elliptic curve is not P-256, P-384 or P-521")
	case ed25519.PublicKey:
		if len(k) != ed25519.PublicKeySize {
			return errors.New("Ed25519 key is not 32 bytes")
		}
		return nil
	}
	return errors.New("not a public RSA, EC or Ed25519 key")
}

// verify checks one signature. The caller has checked that a fits pub.
func (a *algorithm) verify(pub crypto.PublicKey, signed, sig []byte) bool {
	switch k := pub.(type) {
	case *rsa.PublicKey:
		if len(sig) != k.Size() {
			return false
		}
		if a.family == rsaPSS {
			// RFC 7518 section 3.5: the salt is exactly as long as the hash.
			opts := &rsa.PSSOptions{SaltLength: rsa.PSSSaltLengthEqualsHash, Hash: a.hash}
			return rsa.VerifyPSS(k, a.hash, a.digest(signed), sig, opts) == nil
		}
		return a.family == rsaPKCS1 && rsa.VerifyPKCS1v15(k, a.hash, a.digest(signed), sig) == nil
	case *ecdsa.PublicKey:
		if a.family != ecdsaRaw || k.Curve != a.curve {
			return false
		}
		// RFC 7518 section 3.4: R and S, each exactly as long as the curve's
		// order, never DER.
		n := (k.Curve.Params().BitSize + 7) / 8
		if len(sig) != 2*n {
			return false
		}
		r, s := new(big.Int).SetBytes(sig[:n]), new(big.Int).SetBytes(sig[n:])
		return r.Sign() > 0 && s.Sign() > 0 && ecdsa.Verify(k, a.digest(signed), r, s)
	case ed25519.PublicKey:
		return a.family == eddsa && len(sig) == ed25519.SignatureSize && ed25519.Verify(k, signed, sig)
	}
	return false
}

func (a *algorithm) digest(b []byte) []byte {
	switch a.hash {
	case crypto.SHA256:
		d := sha256.Sum256(b)
		return d[:]
	case crypto.SHA384:
		d := sha512.Sum384(b)
		return d[:]
	default:
		d := sha512.Sum512(b)
		return d[:]
	}
}
