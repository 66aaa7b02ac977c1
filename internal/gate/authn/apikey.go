package authn

import (
	"context"
	"crypto/sha256"
	"errors"
	"log/slog"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/reason"
)

// methodKey is what a Principal of an API key was authenticated by.
const methodKey = "apikey"

// APIKeys are the API keys that there are: a table in memory, which answers
// requests, and the store behind it, which is read once at the start. Only one
// process may have the store. It is safe for concurrent use.
type APIKeys struct {
	store  kv.Store
	issuer string
	now    func() time.Time
	log    *slog.Logger
	table  atomic.Pointer[keyTable]

	mu   sync.Mutex       // held by who changes keys or writes uses
	seen map[string]int64 // under mu: by secret, the newest use that is stored, Unix seconds
}

// keyTable is all keys at one moment. It is immutable but for the uses.
type keyTable struct {
	bySecret map[keyHash]*keyEntry
	byID     map[string]*storedKey
}

// keyEntry is one secret of a key.
type keyEntry struct {
	principal Principal
	revoked   bool
	from      int64         // Unix nanoseconds
	until     int64         // the same; 0: no end
	used      *atomic.Int64 // Unix seconds of the newest use, coarse; shared by all tables
}

// useStep is how exact the newest use of a key is kept.
const useStep = time.Minute

// APIKeysConfig says where keys are kept.
type APIKeysConfig struct {
	Store kv.Store
	// Issuer is what records and policies call whoever issued the keys: owners
	// are subjects of it.
	Issuer string
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default: discards
}

// OpenAPIKeys reads all keys. An error means that some cannot be read; then none
// may be trusted, since a revoked one may be among them.
func OpenAPIKeys(ctx context.Context, c APIKeysConfig) (*APIKeys, error) {
	if c.Store == nil || c.Issuer == "" {
		return nil, errors.New("API keys need a store and an issuer's name")
	}
	k := &APIKeys{store: c.Store, issuer: c.Issuer, now: c.Now, log: c.Logger, seen: map[string]int64{}}
	if k.now == nil {
		k.now = time.Now
	}
	if k.log == nil {
		k.log = slog.New(slog.DiscardHandler)
	}
	stored, err := readKeys(ctx, c.Store)
	if err != nil {
		return nil, err
	}
	if err := readUses(ctx, c.Store, k.seen); err != nil {
		return nil, err
	}
	k.table.Store(k.newTable(stored))
	return k, nil
}

// newTable makes a table. Counters of uses are taken over from the table before.
// The caller holds mu, or is the only one yet.
func (k *APIKeys) newTable(stored map[string]*storedKey) *keyTable {
	before := k.table.Load()
	t := &keyTable{bySecret: make(map[keyHash]*keyEntry, len(stored)), byID: stored}
	for _, key := range stored {
		for i := range key.Secrets {
			s := &key.Secrets[i]
			e := key.entry(s, k.issuer)
			if before != nil && before.bySecret[s.Hash] != nil {
				e.used = before.bySecret[s.Hash].used
			} else {
				e.used = new(atomic.Int64)
				e.used.Store(k.seen[key.secretID(s)])
			}
			t.bySecret[s.Hash] = e
		}
	}
	return t
}

// entry compiles one secret of a key.
func (k *storedKey) entry(s *storedSecret, issuer string) *keyEntry {
	e := &keyEntry{
		principal: Principal{
			Method: methodKey, Issuer: issuer, Subject: k.Owner, Client: k.ID, Roles: k.Roles, Scopes: k.Scopes, Tenant: k.Tenant,
			KID: k.secretID(s), IssuedAt: s.Created, Routes: k.Routes, Memo: new(Memo),
		},
		revoked: !k.Revoked.IsZero(),
		from:    k.NotBefore.UnixNano(),
	}
	if until := k.end(s); !until.IsZero() {
		e.until, e.principal.Expires = until.UnixNano(), until
	}
	return e
}

// end is when a secret ends by itself, zero if it does not.
func (k *storedKey) end(s *storedSecret) time.Time {
	if !s.Until.IsZero() && (k.Expires.IsZero() || s.Until.Before(k.Expires)) {
		return s.Until
	}
	return k.Expires
}

// secretID names one secret of a key: the key's id and the secret's number.
func (k *storedKey) secretID(s *storedSecret) string { return k.ID + "." + strconv.Itoa(s.Number) }

// Knows reports whether there is, or was, a key with the id. It is for deciding
// what may stand in a record.
func (k *APIKeys) Knows(id string) bool {
	_, ok := k.table.Load().byID[id]
	return ok
}

// KnowsSecret reports whether there is, or was, a secret of that number, as
// records name it ("ID.2").
func (k *APIKeys) KnowsSecret(name string) bool {
	if len(name) < keyIDLen+2 || name[keyIDLen] != '.' {
		return false
	}
	key := k.table.Load().byID[name[:keyIDLen]]
	return key != nil && slices.ContainsFunc(key.Secrets, func(s storedSecret) bool { return key.secretID(&s) == name })
}

// APIKey takes API keys on behalf of a route. It is immutable and safe for
// concurrent use.
type APIKey struct {
	keys   *APIKeys
	fields []string // where a key may be; "authorization" means as a bearer token
}

// NewAPIKey makes an authenticator that looks for keys in fields (names in lower
// case).
func NewAPIKey(keys *APIKeys, fields []string) (*APIKey, error) {
	if keys == nil || len(fields) == 0 {
		return nil, errors.New("API keys need a table and a field to be looked for in")
	}
	return &APIKey{keys: keys, fields: slices.Clone(fields)}, nil
}

// Method is what records call the method.
func (a *APIKey) Method() string { return methodKey }

// Authenticate looks the request's key up. A value in one of the fields that is
// not a key is refused, but for a bearer token of another form, which another
// method may take. The cost is one hash and one look-up; nothing is read or
// written.
func (a *APIKey) Authenticate(_ context.Context, r *canon.Request) (*Principal, error) {
	secret := ""
	for _, name := range a.fields {
		v, n := r.Get(name)
		if n > 1 {
			return nil, fail(reason.TwoCredentials, "more than one field with an API key")
		}
		if v == "" {
			continue
		}
		if name == "authorization" {
			token, err := bearer(r)
			if errors.Is(err, ErrNoCredential) || err == nil && !HasKeyPrefix(token) {
				continue
			}
			if err != nil {
				return nil, err
			}
			v = token
		}
		if secret != "" && v != secret {
			return nil, fail(reason.TwoCredentials, "two different API keys")
		}
		secret = v
	}
	if secret == "" {
		return nil, ErrNoCredential
	}
	return a.judge(secret)
}

// Known reports whether the request's key is good; asking costs as little as
// Authenticate itself.
func (a *APIKey) Known(r *canon.Request) bool {
	p, err := a.Authenticate(context.Background(), r)
	return err == nil && p != nil
}

// judge finds the principal of a key.
func (a *APIKey) judge(secret string) (*Principal, error) {
	if !wellFormed(secret) {
		return nil, a.refuse(nil, reason.TokenMalformed, "not an API key, or one with a typing error")
	}
	var buf [keyLen]byte
	copy(buf[:], secret)
	e := a.keys.table.Load().bySecret[sha256.Sum256(buf[:])]
	if e == nil {
		return nil, a.refuse(nil, reason.KeyUnknown, "no such API key")
	}
	now := a.keys.now()
	switch at := now.UnixNano(); {
	case e.revoked:
		return nil, a.refuse(e, reason.KeyRevoked, "the API key was revoked")
	case e.until != 0 && at >= e.until:
		return nil, a.refuse(e, reason.KeyExpired, "the API key has expired or was replaced")
	case at < e.from:
		return nil, a.refuse(e, reason.TokenNotYet, "the API key is not valid yet")
	}
	if s := now.Unix(); s-e.used.Load() >= int64(useStep/time.Second) {
		e.used.Store(s)
	}
	return &e.principal, nil
}

// refuse says why a key is not taken. A key that was good once names itself and
// its owner, who may have no part in its being used.
func (a *APIKey) refuse(e *keyEntry, r reason.Reason, detail string) *Failure {
	f := fail(r, detail)
	if e != nil {
		f.Issuer, f.KID, f.Claimed = a.keys.issuer, e.principal.KID, e.principal.Subject
	}
	return f
}
