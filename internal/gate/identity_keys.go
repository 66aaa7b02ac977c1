package gate

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// IdentityStore keeps the keys of signed identities, sealed, over restarts.
type IdentityStore interface {
	// Load returns what was saved last, nil if nothing was.
	Load(ctx context.Context) ([]byte, error)
	Save(ctx context.Context, keys []byte) error
}

// How long a key is published after it signed for the last time: longer than a
// token lives and than anybody should keep a key set.
const identityOverlap = 24 * time.Hour

// identityMaxAge is how long a client may keep the key set. The next key is
// published much longer than that before it signs.
const identityMaxAge = 5 * time.Minute

// IdentityKeys are the keys that sign identities: one that signs, the next one,
// and those before that may still be in use somewhere. It is safe for concurrent
// use.
type IdentityKeys struct {
	store IdentityStore
	now   func() time.Time
	log   *slog.Logger

	mu     sync.Mutex    // held while keys change
	rotate time.Duration // mu
	keys   atomic.Pointer[keyRing]
}

// storedKey is a key as it is saved.
type storedKey struct {
	Seed  []byte    `json:"seed"`
	From  time.Time `json:"from"`  // it signs from then on,
	Until time.Time `json:"until"` // and is published until then; zero: it has no successor yet
}

// keyRing is the keys of one time. It is immutable.
type keyRing struct {
	keys []identityKey // the oldest first; the last has not signed yet
	jwks []byte
}

type identityKey struct {
	storedKey
	private ed25519.PrivateKey
	kid     string
	header  string // of its tokens, encoded, with the dot behind
}

// NewIdentityKeys loads the keys, or makes the first ones. A key signs for
// rotate and is published as long before that.
func NewIdentityKeys(ctx context.Context, store IdentityStore, rotate time.Duration, now func() time.Time, log *slog.Logger) (*IdentityKeys, error) {
	if store == nil || rotate < time.Minute {
		return nil, errors.New("identity keys: a store and a time of at least a minute are required")
	}
	k := &IdentityKeys{store: store, rotate: rotate, now: now, log: log}
	if k.now == nil {
		k.now = time.Now
	}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	b, err := store.Load(ctx)
	if err != nil {
		return nil, fmt.Errorf("identity keys: %w", err)
	}
	var stored []storedKey
	if b != nil {
		if err := json.Unmarshal(b, &stored); err != nil {
			return nil, errors.New("identity keys: what was kept of them cannot be read")
		}
	}
	if len(stored) >= 2 {
		ring, err := newKeyRing(stored)
		if err != nil {
			return nil, err
		}
		k.keys.Store(ring)
	} else if len(stored) != 0 {
		return nil, errors.New("identity keys: what was kept of them is not whole")
	}
	return k, k.Advance(ctx)
}

// SetRotation changes how long a key signs, for keys made from now on.
func (k *IdentityKeys) SetRotation(d time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.rotate = d
}

// Advance makes the keys that are due and forgets those that have served. New
// keys are used only once they have been saved.
func (k *IdentityKeys) Advance(ctx context.Context) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now().UTC()
	var stored []storedKey
	if ring := k.keys.Load(); ring != nil {
		for _, key := range ring.keys {
			stored = append(stored, key.storedKey)
		}
	}
	next, changed := k.due(stored, now)
	if !changed {
		return nil
	}
	ring, err := newKeyRing(next)
	if err != nil {
		return err
	}
	b, err := json.Marshal(next)
	if err == nil {
		err = k.store.Save(ctx, b)
	}
	if err != nil {
		return fmt.Errorf("identity keys: new ones could not be saved: %w", err)
	}
	k.keys.Store(ring)
	k.log.Info("identity keys have changed", "published", len(next))
	return nil
}

// due is the keys as they should be now.
func (k *IdentityKeys) due(stored []storedKey, now time.Time) (next []storedKey, changed bool) {
	make1 := func(from time.Time) storedKey {
		seed := make([]byte, ed25519.SeedSize)
		_, _ = rand.Read(seed) // it never fails
		return storedKey{Seed: seed, From: from}
	}
	for _, s := range stored {
		if !s.Until.IsZero() && now.After(s.Until) {
			changed = true
			continue
		}
		next = append(next, s)
	}
	if len(next) == 0 {
		next = append(next, make1(now), make1(now.Add(k.rotate)))
		next[0].Until = next[1].From.Add(identityOverlap)
		return next, true
	}
	if last := &next[len(next)-1]; !now.Before(last.From) {
		// It signs now. After a long standstill it is younger than it seems.
		more := make1(now.Add(k.rotate))
		last.Until = more.From.Add(identityOverlap)
		next, changed = append(next, more), true
	}
	return next, changed
}

func newKeyRing(stored []storedKey) (*keyRing, error) {
	ring := &keyRing{}
	type jwk struct {
		KTY string `json:"kty"`
		CRV string `json:"crv"`
		X   string `json:"x"`
		KID string `json:"kid"`
		Use string `json:"use"`
		Alg string `json:"alg"`
	}
	var set struct {
		Keys []jwk `json:"keys"`
	}
	for _, s := range stored {
		if len(s.Seed) != ed25519.SeedSize {
			return nil, errors.New("identity keys: a key of the wrong length")
		}
		key := identityKey{storedKey: s, private: ed25519.NewKeyFromSeed(s.Seed)}
		x := base64.RawURLEncoding.EncodeToString(key.private.Public().(ed25519.PublicKey))
		// RFC 7638 with the members of RFC 8037 section 2.
		print := sha256.Sum256([]byte(`{"crv":"Ed25519","kty":"OKP","x":"` + x + `"}`))
		key.kid = base64.RawURLEncoding.EncodeToString(print[:])
		key.header = base64.RawURLEncoding.EncodeToString([]byte(`{"alg":"EdDSA","kid":"`+key.kid+`","typ":"gatebook-identity+jwt"}`)) + "."
		ring.keys = append(ring.keys, key)
		set.Keys = append(set.Keys, jwk{"OKP", "Ed25519", x, key.kid, "sig", "EdDSA"})
	}
	var err error
	ring.jwks, err = json.Marshal(set)
	return ring, err
}

// signing is the newest key whose time has come. A clock that was set back finds
// the oldest.
func (r *keyRing) signing(now time.Time) *identityKey {
	for i := len(r.keys) - 1; i > 0; i-- {
		if !now.Before(r.keys[i].From) {
			return &r.keys[i]
		}
	}
	return &r.keys[0]
}

// sign makes the compact form (RFC 7515 section 7.1) of the claims in buf.
func (k *IdentityKeys) sign(buf *tokenBuffer, now time.Time) string {
	key := k.keys.Load().signing(now)
	b := append(buf.token[:0], key.header...)
	b = base64.RawURLEncoding.AppendEncode(b, buf.claims)
	sig := ed25519.Sign(key.private, b)
	b = append(b, '.')
	b = base64.RawURLEncoding.AppendEncode(b, sig)
	buf.token = b
	return string(b)
}

// Route is a route that serves the key set, to everybody; the caller gives it a
// name, a host and listeners.
func (k *IdentityKeys) Route(path string) *Route {
	fields := []canon.Field{
		{Name: "content-type", Value: "application/jwk-set+json"},
		{Name: "cache-control", Value: "public, max-age=" + strconv.Itoa(int(identityMaxAge/time.Second))},
		{Name: "x-content-type-options", Value: "nosniff"},
	}
	return &Route{
		Path: path, Methods: []string{http.MethodGet}, Public: true, MaxBody: 1,
		Responder: ResponderFunc(func(context.Context, *Call) Answer {
			return Answer{Status: http.StatusOK, Fields: fields, Body: k.JWKS()}
		}),
	}
}

// JWKS is the set of public keys (RFC 7517 section 5) to verify tokens with.
// Nobody may write to it.
func (k *IdentityKeys) JWKS() []byte { return k.keys.Load().jwks }

// identityTick is how often Run looks for keys that are due.
const identityTick = time.Minute

// Run changes keys when they are due, until ctx ends. While they cannot be saved
// the ones before go on.
func (k *IdentityKeys) Run(ctx context.Context) error {
	tick := time.NewTicker(identityTick)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := k.Advance(ctx); err != nil {
				k.log.Error("identity keys were not changed; those before go on", "err", err)
			}
		}
	}
}
