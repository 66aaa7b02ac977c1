package authn

import (
	"bytes"
	"cmp"
	"crypto"
	"crypto/rsa"
	"crypto/sha256"
	"errors"
	"fmt"
	"math/big"
	"slices"

	"github.com/go-jose/go-jose/v4"
)

// maxKeys bounds a key set; real ones hold a handful.
const maxKeys = 256

// key is one usable verification key.
type key struct {
	kid   string
	algs  []*algorithm // what it may be used with; never empty
	pub   crypto.PublicKey
	print [sha256.Size]byte // RFC 7638 thumbprint
}

// allows returns the algorithm of that name if the key may be used with it. The
// answer comes from the key and the configuration, never from the token.
func (k *key) allows(name string) *algorithm {
	for _, a := range k.algs {
		if a.name == name {
			return a
		}
	}
	return nil
}

// keySet is an immutable set of usable keys.
type keySet struct {
	keys map[string]*key
	sum  [sha256.Size]byte // equal exactly when the usable keys are
	// refused says, by position, which keys of the document are not used and
	// why; nothing in it comes from outside.
	refused []string
}

// parseKeySet reads a JWK Set (RFC 7517 section 5). A key that cannot be used
// is left out and named in refused; two different keys under one key id are
// both left out, because which of them a token means cannot be told. The
// error is for a document that is no key set at all.
func parseKeySet(doc []byte, allowed []*algorithm) (*keySet, error) {
	root, err := parseObject(bytes.Trim(doc, jsonSpace), maxDepth)
	if err != nil {
		return nil, fmt.Errorf("key set: %w", err)
	}
	list := root.get("keys")
	if list == nil || list.kind != kindArray {
		return nil, fmt.Errorf("key set: no array \"keys\"")
	}
	if len(list.elems) > maxKeys {
		return nil, fmt.Errorf("key set: %d keys; at most %d are taken", len(list.elems), maxKeys)
	}
	set := &keySet{keys: make(map[string]*key)}
	clash := make(map[string]bool)
	for i := range list.elems {
		k, err := parseKey(&list.elems[i], allowed)
		if err != nil {
			set.refused = append(set.refused, fmt.Sprintf("keys[%d]: %v", i, err))
			continue
		}
		switch old := set.keys[k.kid]; {
		case clash[k.kid]:
			set.refused = append(set.refused, fmt.Sprintf("keys[%d]: key id used by another key", i))
		case old == nil:
			set.keys[k.kid] = k
		case old.print != k.print || !slices.Equal(old.algs, k.algs):
			clash[k.kid] = true
			delete(set.keys, k.kid)
			set.refused = append(set.refused, fmt.Sprintf("keys[%d]: key id used by an earlier key; neither is used", i))
		}
	}
	set.sum = set.fingerprint()
	return set, nil
}

func (s *keySet) fingerprint() [sha256.Size]byte {
	keys := make([]*key, 0, len(s.keys))
	for _, k := range s.keys {
		keys = append(keys, k)
	}
	slices.SortFunc(keys, func(a, b *key) int { return cmp.Compare(a.kid, b.kid) })
	h := sha256.New()
	for _, k := range keys {
		// Key ids hold no control characters and thumbprints are of fixed
		// size, so the lines can be read in one way only.
		fmt.Fprintf(h, "%s\n%x", k.kid, k.print)
		for _, a := range k.algs {
			fmt.Fprintf(h, " %s", a.name)
		}
		fmt.Fprint(h, "\n")
	}
	return [sha256.Size]byte(h.Sum(nil))
}

// privateMembers are the JWK members that only a private or symmetric key has
// (RFC 7518 sections 6.2.2, 6.3.2 and 6.4.1, RFC 8037 section 2).
var privateMembers = []string{"d", "p", "q", "dp", "dq", "qi", "oth", "k", "priv"}

// parseKey reads one JWK that may verify signatures.
func parseKey(v *value, allowed []*algorithm) (*key, error) {
	if v.kind != kindObject {
		return nil, fmt.Errorf("not an object")
	}
	for _, name := range privateMembers {
		if v.get(name) != nil {
			return nil, fmt.Errorf("private or symmetric key; its issuer must replace it now")
		}
	}
	kid := v.get("kid")
	if kid == nil || kid.kind != kindString || !validKID(kid.text) {
		return nil, fmt.Errorf("no key id of 1 to %d printable ASCII characters", maxKID)
	}
	if err := checkUse(v); err != nil {
		return nil, err
	}
	jwk, ok := parseMaterial(v)
	if !ok {
		return nil, fmt.Errorf("malformed or of an unsupported type")
	}
	if err := checkPublicKey(jwk.Key); err != nil {
		return nil, err
	}
	thumb, err := jwk.Thumbprint(crypto.SHA256)
	if err != nil {
		return nil, fmt.Errorf("no thumbprint can be computed")
	}
	k := &key{kid: kid.text, pub: jwk.Key, print: [sha256.Size]byte(thumb)}
	alg := v.get("alg")
	if alg != nil && alg.kind != kindString {
		return nil, fmt.Errorf("\"alg\" is not a string")
	}
	for _, a := range allowed {
		if a.fits(jwk.Key) && (alg == nil || alg.text == a.name) {
			k.algs = append(k.algs, a)
		}
	}
	if len(k.algs) == 0 {
		return nil, fmt.Errorf("no configured algorithm fits")
	}
	return k, nil
}

// parseMaterial reads the key itself. go-jose checks all of it (points on
// their curve, coordinates of full length, certificates that match), but takes
// no RSA modulus beyond 4096 bits unless a variable of the whole program is
// changed; such a key is read here.
func parseMaterial(v *value) (jwk jose.JSONWebKey, ok bool) {
	err := jwk.UnmarshalJSON(v.raw)
	if err == nil {
		return jwk, true
	}
	kty, n, e := v.get("kty"), v.get("n"), v.get("e")
	if !errors.Is(err, jose.ErrUnsupportedKeyType) || kty == nil || kty.text != "RSA" || n == nil || e == nil {
		return jwk, false
	}
	modulus, err := strictURL.DecodeString(n.text)
	exponent, err2 := strictURL.DecodeString(e.text)
	if err != nil || err2 != nil || len(exponent) > 4 {
		return jwk, false
	}
	jwk.Key = &rsa.PublicKey{N: new(big.Int).SetBytes(modulus), E: int(new(big.Int).SetBytes(exponent).Int64())}
	return jwk, true
}

// checkUse keeps a key to the purpose that its publisher states (RFC 7517
// sections 4.2 and 4.3).
func checkUse(v *value) error {
	if use := v.get("use"); use != nil && (use.kind != kindString || use.text != "sig") {
		return fmt.Errorf("\"use\" is not \"sig\"")
	}
	ops := v.get("key_ops")
	if ops == nil {
		return nil
	}
	if ops.kind != kindArray {
		return fmt.Errorf("\"key_ops\" is not an array")
	}
	verify := false
	seen := make(map[string]bool, len(ops.elems))
	for i := range ops.elems {
		op := &ops.elems[i]
		if op.kind != kindString || seen[op.text] {
			return fmt.Errorf("\"key_ops\" is not an array of different strings")
		}
		seen[op.text] = true
		verify = verify || op.text == "verify"
	}
	if !verify {
		return fmt.Errorf("\"key_ops\" does not hold \"verify\"")
	}
	return nil
}
