package authn

import (
	"crypto/sha256"
	"encoding/binary"
	"math/bits"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// How long a verdict may be reused at most.
const (
	maxRemember    = 60 * time.Second // a verified token
	maxRememberBad = 10 * time.Second // a refused one
)

// Sizes of a Cache, in entries.
const (
	defaultCacheEntries = 64 << 10
	maxCacheEntries     = 16 << 20
	badEntries          = 4 << 10
)

// Cache remembers verdicts about tokens. It is safe for concurrent use and may
// serve several JWTs: an entry answers only for the exact token, issuer
// configuration and key set that it was made under. Its memory is
// bounded (about 150 bytes per entry, taken as it fills) and the refused
// tokens have a small part of their own, so that garbage evicts no user.
type Cache struct {
	good table[*Principal]
	bad  table[*Failure]

	// buffers hold a token while it is hashed: sha256.Sum256 takes a slice, and
	// converting the string would allocate a copy on every request.
	buffers sync.Pool
}

// NewCache makes a cache for about that many verified tokens, rounded up to a
// power of two; 0 means 65,536.
func NewCache(entries int) *Cache {
	if entries <= 0 {
		entries = defaultCacheEntries
	}
	return &Cache{
		good: newTable[*Principal](min(entries, maxCacheEntries)),
		bad:  newTable[*Failure](badEntries),

		buffers: sync.Pool{New: func() any { return new([maxToken]byte) }},
	}
}

// cacheKey is what a verdict depends on besides the clock. The token stands
// here as the SHA-256 of its bytes and is compared in full.
type cacheKey struct {
	token  [sha256.Size]byte
	config [sha256.Size]byte
	keys   uint64 // mark of the key set; 0 where there is none
}

// ways is how many entries share a bucket and its lock.
const ways = 8

// table is a set-associative map with CLOCK eviction inside each bucket. The
// bucket is chosen by the token's hash; only whoever holds validly signed
// tokens could pick hashes, and would evict at most seven neighbours.
type table[V any] struct {
	mask    uint64
	buckets []bucket[V]
}

type bucket[V any] struct {
	mu    sync.Mutex
	slots *[ways]slot[V] // guarded by mu; nil until first used
	hand  uint8          // guarded by mu: where CLOCK goes on
}

type slot[V any] struct {
	key         cacheKey
	from, until int64 // Unix nanoseconds; the entry answers in [from, until)
	value       V
	used        bool // taken since the hand last passed
}

func newTable[V any](entries int) table[V] {
	n := uint64(1) << bits.Len64(uint64(max(entries, ways)-1)/ways)
	return table[V]{mask: n - 1, buckets: make([]bucket[V], n)}
}

func (t *table[V]) bucket(k *cacheKey) *bucket[V] {
	return &t.buckets[binary.LittleEndian.Uint64(k.token[:8])&t.mask]
}

// get returns what was put under exactly k, if it answers for now.
func (t *table[V]) get(k *cacheKey, now int64) (v V, ok bool) {
	b := t.bucket(k)
	b.mu.Lock()
	if b.slots != nil {
		for i := range b.slots {
			if s := &b.slots[i]; s.until > now && s.from <= now && s.key == *k {
				s.used = true
				v, ok = s.value, true
				break
			}
		}
	}
	b.mu.Unlock()
	return v, ok
}

// put keeps v under k for [from, until). It takes the place of an older entry
// for the same token and configuration, of one that no longer answers, or of
// the one that CLOCK picks.
func (t *table[V]) put(k *cacheKey, from, until, now int64, v V) {
	if until <= now {
		return
	}
	b := t.bucket(k)
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.slots == nil {
		b.slots = new([ways]slot[V])
	}
	b.slots[b.victim(k, now)] = slot[V]{key: *k, from: from, until: until, value: v}
}

// victim chooses a slot; the caller holds mu.
func (b *bucket[V]) victim(k *cacheKey, now int64) int {
	free := -1
	for i := range b.slots {
		s := &b.slots[i]
		if s.key.token == k.token && s.key.config == k.config {
			return i
		}
		if s.until <= now {
			free = i
		}
	}
	if free >= 0 {
		return free
	}
	for {
		i := int(b.hand)
		b.hand = (b.hand + 1) % ways
		if !b.slots[i].used {
			return i
		}
		b.slots[i].used = false
	}
}

// rememberable says whether a refusal stays true for a while. Those that a
// moment may change (the clock, our own load, the issuer's health) are not.
func rememberable(r reason.Reason) bool {
	switch r {
	case reason.TokenMalformed, reason.TokenAlgorithm, reason.TokenKeyUnknown, reason.TokenSignature,
		reason.TokenExpired, reason.TokenLifetimeExceeded, reason.TokenTooOld, reason.TokenAudience,
		reason.TokenType, reason.BindingRequired:
		return true
	}
	return false
}

// hash returns the SHA-256 of at most maxToken bytes.
func (c *Cache) hash(s string) [sha256.Size]byte {
	b := c.buffers.Get().(*[maxToken]byte)
	sum := sha256.Sum256(b[:copy(b[:], s)])
	c.buffers.Put(b)
	return sum
}
