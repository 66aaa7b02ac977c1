package keys

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// Buckets and rows of the key store. Integers are big endian.
const (
	bucketMeta    = "meta"    // name -> value, see below
	bucketEpoch   = "epoch"   // epoch (uint32) -> state (uint8) · epoch key as the wrapper wrapped it
	bucketKey     = "key"     // kind (uint8) · id -> wrapped key, or 0x02 if destroyed
	bucketBlind   = "blind"   // field (uint8) · row hash (16) · pseudonym (16) -> wrapped inner hash · day (uint32)
	bucketUnbound = "unbound" // id -> 0x01: no new traffic resolves to this person's key
	bucketDay     = "day"     // day (uint32) -> id of the day key
	bucketBucket  = "anon"    // day (uint32) · bucket (uint8) -> id of the subject key
	bucketFull    = "full"    // day (uint32) -> 0x01: claimed names of this day are not all in the index

	metaVersion = "version"    // 0x01
	metaEpoch   = "epoch"      // current epoch (uint32)
	metaSystem  = "system"     // id of the system subject
	metaSigning = "signing"    // id of the signing seed
	metaRoot    = "blind-root" // id of the inner blind-index key
	metaBlind   = "blind/"     // + epoch (uint32): id of that epoch's blind-index key

	storeV1 = 0x01

	epochLive    = 1
	epochRetired = 2
)

// Default bounds of what a ring holds in memory.
const (
	defaultPeople    = 1 << 16
	defaultStrangers = 1 << 14
	defaultSubjects  = 1 << 14
	defaultClaims    = 1 << 12
	defaultDayClaims = 1 << 12
)

// Option adjusts a bound of a Ring.
type Option func(*limits)

type limits struct{ people, subjects, dayClaims int }

// WithPeople sets how many persons are remembered (default 65,536).
func WithPeople(n int) Option { return func(l *limits) { l.people = n } }

// WithSubjectKeys sets how many subject keys are remembered by id for readers
// (default 16,384).
func WithSubjectKeys(n int) Option { return func(l *limits) { l.subjects = n } }

// WithDayClaims sets how many claimed names are indexed per UTC day (default
// 4,096).
func WithDayClaims(n int) Option { return func(l *limits) { l.dayClaims = n } }

// Ring is the key ring of one ledger. All methods are safe for concurrent
// use. No method does I/O under a lock that resolving a remembered subject
// takes.
//
// A subject is born in memory: Person and Anonymous return it with its Birth,
// which the caller puts into the WAL in front of the first item that uses the
// subject, then reports with Written. Project later makes the rows durable in
// the store; replay after a crash announces the births it finds to Project
// before anything else is asked of the ring. A WAL file may go when all its
// births have been projected.
//
// Locks, in the order in which they are taken: rewrapMu, dayMu, missMu,
// epochMu, births.mu, the caches' shards.
type Ring struct {
	store   Store
	wrapper Wrapper
	limits  limits
	secret  [32]byte // keys the hashes of the caches; random per process
	system  Subject
	root    Key // inner blind-index key

	state atomic.Pointer[epochs]

	people    *clock[person]
	strangers *clock[stranger]
	subjects  *clock[keyed]
	claims    *clock[struct{}]
	births    *births
	// gen counts removals from the caches, so that a reader who looked into
	// the store before one does not put back what it removed.
	gen atomic.Uint64

	rewrapMu sync.Mutex   // one Rewrap, Forget… or DestroyEpoch at a time
	missMu   sync.Mutex   // one first sight of a person at a time, and Unbind
	epochMu  sync.RWMutex // held for writing while the current epoch changes, for reading from wrapping to storing

	dayMu sync.Mutex
	days  map[uint32]*day // guarded by dayMu; the newest few

	replayed atomic.Bool // Project was called since Open
}

// epoch is one epoch's keys. It does not change.
type epoch struct {
	num     uint32
	aead    aeadCipher
	blind   Key // blind-index key; only if blindID is not zero
	blindID ID
	retired bool
}

// epochs is the state of all epochs that can be opened. It does not change.
type epochs struct {
	current *epoch
	all     map[uint32]*epoch
	blind   []*epoch // those with a blind-index key, the current one first
}

// keyed is a remembered subject key.
type keyed struct {
	id  ID
	key Key
}

// Create makes the key ring of a new ledger in an empty store: a first epoch,
// the state keys, the system subject and the seed of the signing key. It
// refuses a store that has a ring (ErrExists). Interrupted at any point it
// leaves either no ring or a whole one.
func Create(ctx context.Context, s Store, w Wrapper, opts ...Option) (*Ring, error) {
	err := s.View(func(tx Tx) error {
		if tx.Get(bucketMeta, []byte(metaVersion)) != nil {
			return ErrExists
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	e, sealed, err := newEpoch(ctx, w, 0)
	if err != nil {
		return nil, err
	}
	err = s.Update(func(tx Tx) error {
		if tx.Get(bucketMeta, []byte(metaVersion)) != nil {
			return ErrExists
		}
		for _, k := range []struct {
			name string
			kind Kind
		}{{metaSystem, KindSubject}, {metaSigning, KindSigning}, {metaRoot, KindState}, {blindName(e.num), KindState}} {
			id, key := random()
			if err := tx.Put(bucketKey, keyRow(k.kind, id), e.seal(k.kind, id, &key)); err != nil {
				return err
			}
			if err := tx.Put(bucketMeta, []byte(k.name), id[:]); err != nil {
				return err
			}
		}
		if err := putEpoch(tx, e.num, epochLive, sealed); err != nil {
			return err
		}
		return tx.Put(bucketMeta, []byte(metaVersion), []byte{storeV1})
	})
	if err != nil {
		return nil, fmt.Errorf("cannot create the key ring: %w", err)
	}
	r, err := Open(ctx, s, w, opts...)
	if err != nil {
		return nil, err
	}
	r.replayed.Store(true) // a new ledger has no WAL
	return r, nil
}

// Open opens the ring in a store. ErrNotCreated means that there is none;
// ErrKeyUnavailable that the wrapper could not unwrap an epoch in use.
func Open(ctx context.Context, s Store, w Wrapper, opts ...Option) (*Ring, error) {
	r := &Ring{
		store:   s,
		wrapper: w,
		limits:  limits{people: defaultPeople, subjects: defaultSubjects, dayClaims: defaultDayClaims},
		births:  newBirths(),
		days:    make(map[uint32]*day),
	}
	for _, o := range opts {
		o(&r.limits)
	}
	rand.Read(r.secret[:])
	r.people = newClock[person](r.limits.people)
	r.strangers = newClock[stranger](defaultStrangers)
	r.subjects = newClock[keyed](r.limits.subjects)
	r.claims = newClock[struct{}](defaultClaims)

	es, err := r.loadEpochs(ctx)
	if err != nil {
		return nil, err
	}
	r.state.Store(es)
	err = s.View(func(tx Tx) error {
		id, key, err := namedKey(tx, es, metaSystem, KindSubject)
		if err != nil {
			return err
		}
		r.system = Subject{ID: id, Pseudonym: id.String(), Key: key}
		if _, r.root, err = namedKey(tx, es, metaRoot, KindState); err != nil {
			return err
		}
		_, _, err = namedKey(tx, es, metaSigning, KindSigning)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot open the key ring: %w", err)
	}
	return r, nil
}

// random returns a fresh id and key.
func random() (id ID, key Key) {
	rand.Read(id[:])
	rand.Read(key[:])
	return id, key
}

func keyRow(kind Kind, id ID) []byte { return append([]byte{byte(kind)}, id[:]...) }

// namedKey opens the key that a meta row names.
func namedKey(tx Tx, es *epochs, name string, kind Kind) (ID, Key, error) {
	id, err := metaID(tx, name)
	if err != nil {
		return ID{}, Key{}, err
	}
	key, err := es.openRow(kind, id, tx.Get(bucketKey, keyRow(kind, id)))
	return id, key, err
}

func metaID(tx Tx, name string) (ID, error) {
	b := tx.Get(bucketMeta, []byte(name))
	if len(b) != len(ID{}) {
		return ID{}, fmt.Errorf("%w: key store row %q has %d bytes instead of 16", ErrKeyDamaged, name, len(b))
	}
	return ID(b), nil
}

// NewKey makes a random key of the given kind. It is wrapped and durable in
// the store when NewKey returns.
func (r *Ring) NewKey(kind Kind) (ID, Key, error) {
	if !kind.valid() {
		return ID{}, Key{}, fmt.Errorf("no such kind of key: %v", kind)
	}
	r.epochMu.RLock()
	defer r.epochMu.RUnlock()
	id, key := random()
	w := r.state.Load().current.seal(kind, id, &key)
	err := r.store.Update(func(tx Tx) error { return tx.Put(bucketKey, keyRow(kind, id), w) })
	if err != nil {
		return ID{}, Key{}, fmt.Errorf("cannot store a new %s key: %w", kind, err)
	}
	return id, key, nil
}

// Key returns a stored key: ErrKeyUnknown, or ErrKeyDestroyed if it once was.
func (r *Ring) Key(kind Kind, id ID) (Key, error) {
	switch {
	case !kind.valid():
		return Key{}, fmt.Errorf("no such kind of key: %v", kind)
	case kind == KindSubject:
		return r.SubjectKey(id)
	}
	var key Key
	err := r.store.View(func(tx Tx) (err error) {
		key, err = r.state.Load().openRow(kind, id, tx.Get(bucketKey, keyRow(kind, id)))
		return err
	})
	return key, err
}

// SubjectKey returns the key of a person, an anonymous bucket or the system
// subject by its id, from a bounded cache where possible.
func (r *Ring) SubjectKey(id ID) (Key, error) {
	if id == r.system.ID {
		return r.system.Key, nil
	}
	h := r.hash(hashID, 0, string(id[:]))
	if k, ok := r.subjects.get(h); ok && k.id == id {
		return k.key, nil
	}
	return r.findSubjectKey(h, id)
}

// findSubjectKey is SubjectKey without the cache.
func (r *Ring) findSubjectKey(h hash, id ID) (Key, error) {
	if s, ok := r.births.subject(id); ok {
		return s.Key, nil
	}
	gen := r.gen.Load()
	var key Key
	err := r.store.View(func(tx Tx) (err error) {
		key, err = r.state.Load().openRow(KindSubject, id, tx.Get(bucketKey, keyRow(KindSubject, id)))
		return err
	})
	if err != nil {
		return Key{}, err
	}
	r.subjects.put(h, keyed{id, key}, r.unchanged(gen))
	return key, nil
}

// Generation changes whenever a subject stops to be what its name resolves to:
// one that was resolved after a call of it is still good as long as another call
// gives the same.
func (r *Ring) Generation() uint64 { return r.gen.Load() }

// unchanged tells whether nothing was removed from the caches since gen.
func (r *Ring) unchanged(gen uint64) func() bool {
	return func() bool { return r.gen.Load() == gen }
}

func always() bool { return true }

// Destroy removes a key for good, durably, and leaves a tombstone, so that no
// replay brings it back and readers learn that it was destroyed. Repeating it
// does nothing. The wrapped key can survive in free pages of the store file
// and in its backups until the epoch is destroyed. For a person, Unbind and
// ForgetSubject come first.
func (r *Ring) Destroy(kind Kind, id ID) error {
	if !kind.valid() {
		return fmt.Errorf("no such kind of key: %v", kind)
	}
	r.dayMu.Lock()
	defer r.dayMu.Unlock()
	_, newborn := r.births.subject(id)
	err := r.store.Update(func(tx Tx) error {
		if err := r.notInUse(tx, id); err != nil {
			return err
		}
		if tx.Get(bucketKey, keyRow(kind, id)) == nil && (kind != KindSubject || !newborn) {
			return fmt.Errorf("%w: %s key %v", ErrKeyUnknown, kind, id)
		}
		if err := tx.Put(bucketKey, keyRow(kind, id), []byte{tombstone}); err != nil {
			return err
		}
		return tx.Delete(bucketUnbound, id[:])
	})
	if kind == KindSubject {
		if err == nil {
			r.births.unbind(id, true)
		}
		r.evict(id) // after an unknown outcome too
	}
	if err != nil {
		return fmt.Errorf("cannot destroy %s key %v: %w", kind, id, err)
	}
	return nil
}

// evict removes subject id from all caches. The caller holds dayMu.
func (r *Ring) evict(id ID) {
	r.gen.Add(1)
	r.people.removeIf(func(p *person) bool { return p.id == id })
	r.strangers.removeIf(func(s *stranger) bool { return s.id == id })
	r.subjects.removeIf(func(k *keyed) bool { return k.id == id })
	for n, d := range r.days {
		if d.holds(id) {
			delete(r.days, n)
		}
	}
}

// notInUse refuses the keys that meta rows name.
func (r *Ring) notInUse(tx Tx, id ID) error {
	return tx.ForEach(bucketMeta, func(k, v []byte) error {
		if len(v) == len(id) && ID(v) == id {
			return fmt.Errorf("%w (%q)", ErrKeyInUse, k)
		}
		return nil
	})
}

// SigningSeed returns the Ed25519 seed (RFC 8032 section 5.1.5) of the
// ledger's note key. The caller clears it after use.
func (r *Ring) SigningSeed() ([32]byte, error) {
	var seed Key
	err := r.store.View(func(tx Tx) (err error) {
		_, seed, err = namedKey(tx, r.state.Load(), metaSigning, KindSigning)
		return err
	})
	return seed, err
}

// System returns the ledger's own subject, for records without a person. It
// is durable since Create and never has a Birth.
func (r *Ring) System() Subject { return r.system }

// Domains of Ring.hash.
const (
	hashPerson byte = iota + 1
	hashStranger
	hashClaim
	hashFull
	hashID
)

// hash is what the caches are keyed by: SHA-256 over a per-process secret,
// the domain, a number and a text, cut to 128 bits. The secret has a fixed
// length and the result never leaves the process, so this is a keyed hash for
// which nobody outside can find collisions; it keeps the text itself out of
// long-lived memory. It does not allocate for texts up to 200 bytes.
func (r *Ring) hash(domain byte, n uint32, text string) hash {
	var stack [256]byte
	b := append(stack[:0], r.secret[:]...)
	b = append(b, domain)
	b = binary.BigEndian.AppendUint32(b, n)
	b = append(b, text...)
	sum := sha256.Sum256(b)
	return hash(sum[:16])
}

var errEmptyText = errors.New("empty text names nobody")
