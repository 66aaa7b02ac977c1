package authn

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/gatebook/gatebook/internal/kv"
)

// The tables of the store: keys by id, and their newest uses by id.
const (
	keyTableName = "apikey"
	useTableName = "apikey_use"
)

// Bounds of what is kept of keys.
const (
	maxAPIKeys  = 100_000
	maxSecrets  = 8 // of a key, replaced ones included
	maxKeyText  = 128
	maxKeyOwner = 256
	maxKeyNames = 64 // roles, scopes or routes
)

// storedKey is a key as the store has it.
type storedKey struct {
	ID        string         `json:"id"`
	Name      string         `json:"name"`
	Owner     string         `json:"owner"`
	Tenant    string         `json:"tenant,omitempty"`
	Roles     []string       `json:"roles,omitempty"`
	Scopes    []string       `json:"scopes,omitempty"`
	Routes    []string       `json:"routes,omitempty"`
	Created   time.Time      `json:"created"`
	NotBefore time.Time      `json:"not_before"`
	Expires   time.Time      `json:"expires,omitzero"`
	Revoked   time.Time      `json:"revoked,omitzero"`
	Secrets   []storedSecret `json:"secrets"` // the newest last
}

// storedSecret is what is kept of a secret: a hash is enough for one of 256
// random bits.
type storedSecret struct {
	Number  int       `json:"n"` // counts from 1
	Hash    keyHash   `json:"sha256"`
	Created time.Time `json:"created"`
	Until   time.Time `json:"until,omitzero"` // of one that was replaced
}

// keyHash is the SHA-256 of a key's text.
type keyHash [sha256.Size]byte

// MarshalText implements encoding.TextMarshaler.
func (h keyHash) MarshalText() ([]byte, error) { return hex.AppendEncode(nil, h[:]), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (h *keyHash) UnmarshalText(b []byte) error {
	if hex.DecodedLen(len(b)) != len(h) || len(b)%2 != 0 {
		return errors.New("not a SHA-256")
	}
	_, err := hex.Decode(h[:], b)
	return err
}

func (k *storedKey) encode() ([]byte, error) { return json.Marshal(k) }

// digest names a state of a key in records. The hashes in it, of which nobody
// can guess what they are of, keep the rest from being guessed.
func (k *storedKey) digest() string {
	b, err := k.encode()
	if err != nil {
		return ""
	}
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

// readKeys reads all keys and demands that each is whole.
func readKeys(ctx context.Context, store kv.Store) (map[string]*storedKey, error) {
	keys := map[string]*storedKey{}
	hashes := map[keyHash]bool{}
	err := store.Range(ctx, keyTableName, func(id string, value []byte) error {
		k := new(storedKey)
		if err := json.Unmarshal(value, k); err != nil || k.ID != id || !isKeyID(id) || len(k.Secrets) == 0 {
			return fmt.Errorf("API key %q: %w", id, kv.ErrDamaged)
		}
		for _, s := range k.Secrets {
			if hashes[s.Hash] {
				return fmt.Errorf("API key %q has the secret of another: %w", id, kv.ErrDamaged)
			}
			hashes[s.Hash] = true
		}
		keys[id] = k
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("reading the API keys: %w", err)
	}
	return keys, nil
}

// KeySpec is what a new key is to be.
type KeySpec struct {
	Name, Owner, Tenant   string
	Roles, Scopes, Routes []string
	NotBefore             time.Time // zero: now
	Expires               time.Time // zero: never
}

// KeyInfo is what there is to know of a key; never its secret.
type KeyInfo struct {
	ID, Name, Owner, Tenant    string
	Roles, Scopes, Routes      []string
	State                      string // one of the Key constants
	Created, NotBefore         time.Time
	Expires, Revoked, LastUsed time.Time // zero: never
	Number                     int       // of the newest secret
	Replaced                   []ReplacedSecret
}

// ReplacedSecret is a secret of a key that a newer one has replaced.
type ReplacedSecret struct {
	Number          int
	Until, LastUsed time.Time
}

// The states of a key.
const (
	KeyActive  = "active"
	KeyPending = "pending" // not valid yet
	KeyIsOver  = "expired"
	KeyIsOut   = "revoked"
)

// KeyError is a wish about a key that cannot be granted.
type KeyError struct {
	Missing  bool // there is no such key
	Conflict bool // it is not in a state for that
	Text     string
}

func (e *KeyError) Error() string { return e.Text }

func badKey(format string, a ...any) error { return &KeyError{Text: fmt.Sprintf(format, a...)} }

// Noter is told what is about to change: the id of the key and digests of its
// state before and after, empty for one that is not there. After an error
// nothing is changed.
type Noter func(id, before, after string) error

// All returns all keys, ordered by owner, name and id.
func (k *APIKeys) All() []KeyInfo {
	t, now := k.table.Load(), k.now()
	out := make([]KeyInfo, 0, len(t.byID))
	for _, key := range t.byID {
		out = append(out, t.info(key, now))
	}
	slices.SortFunc(out, func(a, b KeyInfo) int {
		return strings.Compare(a.Owner+"\x00"+a.Name+"\x00"+a.ID, b.Owner+"\x00"+b.Name+"\x00"+b.ID)
	})
	return out
}

// Find returns one key, or a *KeyError.
func (k *APIKeys) Find(id string) (KeyInfo, error) {
	t := k.table.Load()
	key := t.byID[id]
	if key == nil {
		return KeyInfo{}, &KeyError{Missing: true, Text: "there is no API key with that id"}
	}
	return t.info(key, k.now()), nil
}

// Counts are how many keys there are in each state.
func (k *APIKeys) Counts() map[string]int {
	t, now := k.table.Load(), k.now()
	out := map[string]int{}
	for _, key := range t.byID {
		out[key.state(now)]++
	}
	return out
}

func (k *storedKey) state(now time.Time) string {
	switch {
	case !k.Revoked.IsZero():
		return KeyIsOut
	case !k.Expires.IsZero() && !now.Before(k.Expires):
		return KeyIsOver
	case now.Before(k.NotBefore):
		return KeyPending
	}
	return KeyActive
}

func (t *keyTable) info(k *storedKey, now time.Time) KeyInfo {
	used := func(s *storedSecret) time.Time {
		if at := t.bySecret[s.Hash].used.Load(); at > 0 {
			return time.Unix(at, 0).UTC()
		}
		return time.Time{}
	}
	newest := &k.Secrets[len(k.Secrets)-1]
	i := KeyInfo{
		ID: k.ID, Name: k.Name, Owner: k.Owner, Tenant: k.Tenant, Roles: k.Roles, Scopes: k.Scopes, Routes: k.Routes,
		State: k.state(now), Created: k.Created, NotBefore: k.NotBefore, Expires: k.Expires, Revoked: k.Revoked,
		LastUsed: used(newest), Number: newest.Number,
	}
	for n := range k.Secrets[:len(k.Secrets)-1] {
		s := &k.Secrets[n]
		i.Replaced = append(i.Replaced, ReplacedSecret{s.Number, s.Until, used(s)})
	}
	return i
}

// Create makes a key. Its secret is returned here and never again.
func (k *APIKeys) Create(ctx context.Context, spec KeySpec, note Noter) (KeyInfo, string, error) {
	now := k.now().UTC().Truncate(time.Second)
	if spec.NotBefore.IsZero() {
		spec.NotBefore = now
	}
	if err := spec.check(now); err != nil {
		return KeyInfo{}, "", err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	have := k.table.Load().byID
	if len(have) >= maxAPIKeys {
		return KeyInfo{}, "", &KeyError{Conflict: true, Text: fmt.Sprintf("there are %d API keys, which is the most that are kept", len(have))}
	}
	key := &storedKey{
		ID: newKeyID(), Name: spec.Name, Owner: spec.Owner, Tenant: spec.Tenant,
		Roles: spec.Roles, Scopes: spec.Scopes, Routes: spec.Routes,
		Created: now, NotBefore: spec.NotBefore.UTC(), Expires: spec.Expires.UTC(),
	}
	for have[key.ID] != nil {
		key.ID = newKeyID()
	}
	secret := key.renew(now)
	info, err := k.change(ctx, nil, key, note)
	if err != nil {
		return KeyInfo{}, "", err
	}
	return info, secret, nil
}

// renew gives a key a new secret, which it returns.
func (k *storedKey) renew(now time.Time) string {
	secret, number := newAPIKey(), 1
	if n := len(k.Secrets); n > 0 {
		number = k.Secrets[n-1].Number + 1
	}
	k.Secrets = append(k.Secrets, storedSecret{Number: number, Hash: sha256.Sum256([]byte(secret)), Created: now})
	return secret
}

// check refuses what no key can be.
func (s *KeySpec) check(now time.Time) error {
	if err := errors.Join(keyText("name", s.Name, 1, maxKeyText), keyText("owner", s.Owner, 1, maxKeyOwner), keyText("tenant", s.Tenant, 0, maxKeyText)); err != nil {
		return badKey("%v", err)
	}
	if HasKeyPrefix(s.Name) || HasKeyPrefix(s.Owner) {
		return badKey("the name or owner looks like an API key")
	}
	for what, list := range map[string][]string{"role": s.Roles, "scope": s.Scopes, "route": s.Routes} {
		if len(list) > maxKeyNames {
			return badKey("more than %d of %s", maxKeyNames, what)
		}
		for i, name := range list {
			if err := keyText(what, name, 1, maxKeyText); err != nil {
				return badKey("%v", err)
			}
			if slices.Contains(list[:i], name) {
				return badKey("the %s %q is named twice", what, name)
			}
			if what == "scope" && strings.ContainsAny(name, " \"\\") {
				return badKey("the scope %q has a character that no scope has", name)
			}
		}
	}
	if !s.Expires.IsZero() && (!s.Expires.After(now) || !s.Expires.After(s.NotBefore)) {
		return badKey("the key would end before it begins")
	}
	return nil
}

func keyText(what, s string, least, most int) error {
	switch {
	case len(s) < least:
		return fmt.Errorf("the %s is missing", what)
	case len(s) > most:
		return fmt.Errorf("the %s is longer than %d bytes", what, most)
	case strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) || r == unicode.ReplacementChar }):
		return fmt.Errorf("the %s has a character that cannot be printed", what)
	case strings.TrimSpace(s) != s:
		return fmt.Errorf("the %s has white space around it", what)
	}
	return nil
}

// Rotate gives a key a new secret, which is returned here and never again. The
// one before stays valid for overlap, 0 or more.
func (k *APIKeys) Rotate(ctx context.Context, id string, overlap time.Duration, note Noter) (KeyInfo, string, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now().UTC().Truncate(time.Second)
	old, err := k.changeable(id, now)
	if err != nil {
		return KeyInfo{}, "", err
	}
	if overlap < 0 {
		return KeyInfo{}, "", badKey("the overlap is negative")
	}
	key := old.clone()
	last := &key.Secrets[len(key.Secrets)-1]
	last.Until = now.Add(overlap)
	// One that was replaced before does not outlive the one that replaced it.
	for i := range key.Secrets[:len(key.Secrets)-1] {
		if s := &key.Secrets[i]; s.Until.After(last.Until) {
			s.Until = last.Until
		}
	}
	if n := len(key.Secrets); n >= maxSecrets {
		if first := key.Secrets[0]; first.Until.After(now) {
			return KeyInfo{}, "", &KeyError{Conflict: true, Text: fmt.Sprintf("%d secrets of this key are still valid; wait for one to end, or revoke the key", n)}
		}
		key.Secrets = key.Secrets[1:]
	}
	secret := key.renew(now)
	info, err := k.change(ctx, old, key, note)
	if err != nil {
		return KeyInfo{}, "", err
	}
	return info, secret, nil
}

// Revoke ends a key with all its secrets for good. When it returns, no request
// is authenticated by it any more.
func (k *APIKeys) Revoke(ctx context.Context, id string, note Noter) (KeyInfo, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now().UTC().Truncate(time.Second)
	old := k.table.Load().byID[id]
	switch {
	case old == nil:
		return k.Find(id)
	case !old.Revoked.IsZero():
		return KeyInfo{}, &KeyError{Conflict: true, Text: "the API key is revoked already"}
	}
	key := old.clone()
	key.Revoked = now
	return k.change(ctx, old, key, note)
}

// changeable finds a key that can get a new secret.
func (k *APIKeys) changeable(id string, now time.Time) (*storedKey, error) {
	old := k.table.Load().byID[id]
	if old == nil {
		_, err := k.Find(id)
		return nil, err
	}
	switch old.state(now) {
	case KeyIsOut, KeyIsOver:
		return nil, &KeyError{Conflict: true, Text: "the API key is " + old.state(now) + "; make a new one"}
	}
	return old, nil
}

func (k *storedKey) clone() *storedKey {
	c := *k
	c.Secrets = slices.Clone(k.Secrets)
	return &c
}

// change notes, stores and puts in force what becomes of a key, in this order:
// there is never a change without its record, nor one that a restart undoes. The
// caller holds mu.
func (k *APIKeys) change(ctx context.Context, old, key *storedKey, note Noter) (KeyInfo, error) {
	ctx = context.WithoutCancel(ctx) // who goes away must not leave half of it
	after, err := key.encode()
	if err != nil {
		return KeyInfo{}, err
	}
	if old == nil {
		if err := note(key.ID, "", key.digest()); err != nil {
			return KeyInfo{}, err
		}
		created, err := k.store.Create(ctx, keyTableName, key.ID, after, time.Time{})
		if err == nil && !created {
			err = kv.ErrChanged
		}
		if err != nil {
			return KeyInfo{}, fmt.Errorf("the API key could not be stored: %w", err)
		}
		return k.adopt(key), nil
	}
	before, err := old.encode()
	if err != nil {
		return KeyInfo{}, err
	}
	if err := note(key.ID, old.digest(), key.digest()); err != nil {
		return KeyInfo{}, err
	}
	if err := k.store.Swap(ctx, keyTableName, key.ID, before, after, time.Time{}); err != nil {
		return KeyInfo{}, fmt.Errorf("the API key could not be stored: %w", err)
	}
	return k.adopt(key), nil
}

// adopt makes a table with the key as it is now. The caller holds mu.
func (k *APIKeys) adopt(key *storedKey) KeyInfo {
	stored := maps.Clone(k.table.Load().byID)
	stored[key.ID] = key
	t := k.newTable(stored)
	k.table.Store(t)
	return t.info(key, k.now())
}
