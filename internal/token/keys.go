package token

import (
	"context"
	"crypto"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/kv"
)

// The algorithms that the service signs with.
const (
	ES256 = "ES256"
	EdDSA = "EdDSA"
)

// When a key is published and used. A new key stands in the key set for
// publishAhead before it signs, longer than jwksMaxAge lets anybody keep an old
// set, and one that was replaced stays there until the last token that it
// signed has expired everywhere, so that no valid token stops verifying.
const (
	publishAhead = 10 * time.Minute
	jwksMaxAge   = 5 * time.Minute
	keepReplaced = MaxLifetime + 2*time.Minute
)

// signingKey is a key of the service. It is immutable.
type signingKey struct {
	alg     string
	kid     string // RFC 7638 thumbprint
	private crypto.Signer
	from    time.Time // when it begins to sign
	head    string    // the encoded JOSE header of its tokens, with the dot
	jwk     json.RawMessage
}

// keySet is the keys in use, by when they begin to sign. It is immutable.
type keySet struct {
	keys []*signingKey
	jwks []byte // JSON Web Key Set (RFC 7517 section 5)
}

// storedKey is a key as the store has it, sealed.
type storedKey struct {
	Alg     string    `json:"alg"`
	Private []byte    `json:"private"` // PKCS #8
	From    time.Time `json:"from"`
}

var b64 = base64.RawURLEncoding.Strict()

func newKey(alg string, from time.Time) (*storedKey, error) {
	var key crypto.Signer
	var err error
	switch alg {
	case ES256:
		key, err = ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	case EdDSA:
		_, key, err = ed25519.GenerateKey(rand.Reader)
	default:
		err = fmt.Errorf("token: algorithm %q is neither ES256 nor EdDSA", alg)
	}
	if err != nil {
		return nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	return &storedKey{Alg: alg, Private: der, From: from.UTC().Truncate(time.Second)}, err
}

// open makes the key usable.
func (k *storedKey) open() (*signingKey, error) {
	parsed, err := x509.ParsePKCS8PrivateKey(k.Private)
	if err != nil {
		return nil, err
	}
	s := &signingKey{alg: k.Alg, from: k.From}
	var members string // in the order of RFC 7638 section 3.2
	switch key := parsed.(type) {
	case *ecdsa.PrivateKey:
		point, err := key.PublicKey.Bytes() // 4, then x, then y
		if err != nil || k.Alg != ES256 || key.Curve != elliptic.P256() {
			return nil, errors.New("the key is not for its algorithm")
		}
		s.private = key
		members = fmt.Sprintf(`"crv":"P-256","kty":"EC","x":%q,"y":%q`, b64.EncodeToString(point[1:33]), b64.EncodeToString(point[33:]))
	case ed25519.PrivateKey:
		if k.Alg != EdDSA {
			return nil, errors.New("the key is not for its algorithm")
		}
		s.private = key
		members = fmt.Sprintf(`"crv":"Ed25519","kty":"OKP","x":%q`, b64.EncodeToString(key.Public().(ed25519.PublicKey)))
	default:
		return nil, errors.New("the key is of an unknown kind")
	}
	sum := sha256.Sum256([]byte("{" + members + "}"))
	s.kid = b64.EncodeToString(sum[:])
	s.head = b64.EncodeToString(fmt.Appendf(nil, `{"alg":%q,"typ":"at+jwt","kid":%q}`, s.alg, s.kid)) + "."
	s.jwk = fmt.Appendf(nil, `{%s,"use":"sig","alg":%q,"kid":%q}`, members, s.alg, s.kid)
	return s, nil
}

// sign makes a compact JWS of claims.
func (s *signingKey) sign(claims []byte) (string, error) {
	signed := s.head + b64.EncodeToString(claims)
	var sig []byte
	var err error
	switch key := s.private.(type) {
	case *ecdsa.PrivateKey:
		sum := sha256.Sum256([]byte(signed))
		var r, v *big.Int
		if r, v, err = ecdsa.Sign(rand.Reader, key, sum[:]); err == nil {
			sig = make([]byte, 64) // RFC 7518 section 3.4: r and s, 32 bytes each
			r.FillBytes(sig[:32])
			v.FillBytes(sig[32:])
		}
	case ed25519.PrivateKey:
		sig, err = key.Sign(nil, []byte(signed), crypto.Hash(0))
	}
	if err != nil {
		return "", fmt.Errorf("token: signing: %w", err)
	}
	return signed + "." + b64.EncodeToString(sig), nil
}

// verify reports whether the signature is this key's.
func (s *signingKey) verify(signed string, sig []byte) bool {
	if len(sig) != 64 {
		return false
	}
	switch pub := s.private.Public().(type) {
	case *ecdsa.PublicKey:
		sum := sha256.Sum256([]byte(signed))
		return ecdsa.Verify(pub, sum[:], new(big.Int).SetBytes(sig[:32]), new(big.Int).SetBytes(sig[32:]))
	case ed25519.PublicKey:
		return ed25519.Verify(pub, []byte(signed), sig)
	}
	return false
}

// open verifies a token of ours and returns its claims as signed. It takes
// exactly the form that sign makes: a token has one spelling.
func (s *keySet) open(raw string) ([]byte, bool) {
	if len(raw) > maxToken {
		return nil, false
	}
	for _, k := range s.keys {
		rest, mine := strings.CutPrefix(raw, k.head)
		if !mine {
			continue
		}
		payload, signature, ok := strings.Cut(rest, ".")
		if !ok || strings.ContainsAny(rest, "\r\n") { // the decoder skips these two
			return nil, false
		}
		sig, err := b64.DecodeString(signature)
		if err != nil || !k.verify(raw[:len(k.head)+len(payload)], sig) {
			return nil, false
		}
		claims, err := b64.DecodeString(payload)
		return claims, err == nil
	}
	return nil, false
}

// signer is the newest key that signs already.
func (s *keySet) signer(now time.Time) *signingKey {
	for i := len(s.keys) - 1; i > 0; i-- {
		if !s.keys[i].from.After(now) {
			return s.keys[i]
		}
	}
	return s.keys[0]
}

func (s *keySet) newest() *signingKey { return s.keys[len(s.keys)-1] }

func openKeys(stored []storedKey) (*keySet, error) {
	set := &keySet{}
	for i := range stored {
		k, err := stored[i].open()
		if err != nil {
			return nil, fmt.Errorf("token: signing key %d: %w", i, err)
		}
		set.keys = append(set.keys, k)
	}
	if len(set.keys) == 0 {
		return nil, errors.New("token: no signing key")
	}
	slices.SortStableFunc(set.keys, func(a, b *signingKey) int { return a.from.Compare(b.from) })
	var jwks struct {
		Keys []json.RawMessage `json:"keys"`
	}
	for _, k := range set.keys {
		jwks.Keys = append(jwks.Keys, k.jwk)
	}
	var err error
	set.jwks, err = json.Marshal(jwks)
	return set, err
}

// The store's table and entry of the signing keys.
const (
	tableKeys = "token.keys"
	entryKeys = "set"
)

// change replaces the stored keys by what edit makes of them and puts them in
// force. The caller holds s.changing.
func (s *State) change(ctx context.Context, edit func(now time.Time, keys []storedKey) ([]storedKey, error)) error {
	old, err := s.store.Get(ctx, tableKeys, entryKeys)
	var keys []storedKey
	switch {
	case errors.Is(err, kv.ErrNotFound):
	case err != nil:
		return fmt.Errorf("token: signing keys: %w", err)
	default:
		if err := json.Unmarshal(old, &keys); err != nil {
			return fmt.Errorf("token: signing keys: %w", err)
		}
	}
	next, err := edit(s.now(), slices.Clone(keys))
	if err != nil {
		return err
	}
	set, err := openKeys(next)
	if err != nil {
		return err
	}
	value, err := json.Marshal(next)
	if err != nil {
		return err
	}
	switch {
	case old == nil:
		_, err = s.store.Create(ctx, tableKeys, entryKeys, value, time.Time{})
	case string(old) != string(value):
		err = s.store.Swap(ctx, tableKeys, entryKeys, old, value, time.Time{})
	}
	if err != nil {
		return fmt.Errorf("token: signing keys: %w", err)
	}
	s.keys.Store(set)
	return nil
}

// tend makes the next key when it is due and drops those that nothing valid is
// signed with any more.
func (s *State) tend(ctx context.Context, terms Terms) error {
	s.changing.Lock()
	defer s.changing.Unlock()
	return s.change(ctx, func(now time.Time, keys []storedKey) ([]storedKey, error) {
		if len(keys) == 0 {
			k, err := newKey(terms.Algorithm, now)
			if err != nil {
				return nil, err
			}
			return []storedKey{*k}, nil
		}
		last := keys[len(keys)-1]
		due := last.From.Add(terms.Rotate - publishAhead)
		if last.Alg != terms.Algorithm && !last.From.After(now) || !due.After(now) {
			k, err := newKey(terms.Algorithm, now.Add(publishAhead))
			if err != nil {
				return nil, err
			}
			keys = append(keys, *k)
		}
		return dropReplaced(now, keys), nil
	})
}

func dropReplaced(now time.Time, keys []storedKey) []storedKey {
	for len(keys) > 1 && now.After(keys[1].From.Add(keepReplaced)) {
		keys = keys[1:]
	}
	return keys
}

// maxWaiting bounds how many keys may be published ahead of their use.
const maxWaiting = 4

// RotateKeys makes a new key. It signs after publishAhead, or at once; at once
// is for a key that may be known to others, and verifiers that keep the key set
// for a while refuse the first tokens until they fetch it again. The keys before
// it stay published until their tokens have expired. It returns the new key's
// id and when it begins to sign.
func (s *State) RotateKeys(ctx context.Context, atOnce bool) (kid string, from time.Time, err error) {
	s.changing.Lock()
	defer s.changing.Unlock()
	err = s.change(ctx, func(now time.Time, keys []storedKey) ([]storedKey, error) {
		keys = dropReplaced(now, keys)
		waiting := 0
		for i := range keys {
			if keys[i].From.After(now) {
				waiting++
			}
		}
		if waiting >= maxWaiting {
			return nil, ErrTooManyKeys
		}
		if from = now.Add(publishAhead); atOnce {
			from = now
			for i := range keys { // none that waits may overtake it
				if keys[i].From.After(now) {
					keys[i].From = now.UTC().Truncate(time.Second)
				}
			}
		}
		k, err := newKey(s.terms.Load().Algorithm, from)
		if err != nil {
			return nil, err
		}
		from = k.From
		return append(keys, *k), nil
	})
	if err != nil {
		return "", time.Time{}, err
	}
	return s.keys.Load().newest().kid, from, nil
}

// ErrTooManyKeys means that several new keys are already waiting for their use.
var ErrTooManyKeys = errors.New("token: several new signing keys are waiting to be used; wait until they are")
