package ratelimit

import (
	"hash/maphash"
	"math/bits"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// DefaultEntries is how many keys a table remembers unless told otherwise.
	DefaultEntries = 1 << 20

	minEntries = 1 << 10
	maxEntries = 1 << 28

	// probe is how many neighbouring slots a key may live in.
	probe = 16

	shards = 64

	// entryBytes is the memory of one entry: fingerprint 8, TAT 8, fraction 4.
	entryBytes = 20
)

// Config is what a table needs. The zero value is usable.
type Config struct {
	// Entries is the number of keys remembered at once; 0 means
	// DefaultEntries, other values are brought into 1,024 to 2^28. Half of
	// them is for KeyPrefix rules, half for the others. Memory is at most 22
	// bytes an entry, allocated as shards are first used.
	Entries int
	// Coarser gives the next coarser key, or false when there is none. It is
	// asked only when the table has no room for a key (see Table.Take), may be
	// nil, and must be safe for concurrent use. CoarserPrefix suits prefix keys.
	Coarser func(rule *Rule, key string) (string, bool)
	// Start is the origin of the table's time; zero means the time of NewTable.
	Start time.Time
}

// Table holds the buckets of all rules. It is safe for concurrent use.
type Table struct {
	seed    maphash.Seed
	salt    uint64
	clock   clock
	coarser func(*Rule, string) (string, bool)

	open   region // KeyPrefix rules: keys chosen by strangers
	bound  region // keys that exist only after routing or authentication
	coarse region // coarser keys, used when open or bound is full

	coarseHits atomic.Uint64
	globalHits atomic.Uint64

	globalMu sync.Mutex
	global   map[string]cell // by rule name; owned by globalMu
}

// NewTable makes an empty table. The seed of its fingerprints is random, so
// that nobody outside can choose keys that collide.
func NewTable(c Config) *Table {
	n := c.Entries
	if n == 0 {
		n = DefaultEntries
	}
	n = min(max(n, minEntries), maxEntries)
	start := c.Start
	if start.IsZero() {
		start = time.Now()
	}
	t := &Table{seed: maphash.MakeSeed(), coarser: c.Coarser, global: make(map[string]cell)}
	t.salt = maphash.String(t.seed, "gatebook ratelimit rule")
	t.clock.init(start)
	t.open.size = n / 2 / shards
	t.bound.size = n / 2 / shards
	t.coarse.size = max(n/16/shards, 1)
	return t
}

// Take charges one request to the key's bucket under the rule. now should
// carry a monotonic reading (time.Now does); a clock that is set back neither
// empties nor fills buckets.
//
// A key is remembered until its bucket is full again. Only then may its slot
// go to another key. When all slots that a new key could use are live, the
// request counts in the bucket of its coarser keys, and when those have no
// room either, in one bucket for the whole rule; Result.Coarse tells. An
// invalid rule admits nothing.
func (t *Table) Take(rule *Rule, key string, now time.Time) Result {
	return t.do(rule, key, now, opTake)
}

// Peek is Take without the charge and without remembering the key.
func (t *Table) Peek(rule *Rule, key string, now time.Time) Result {
	return t.do(rule, key, now, opPeek)
}

// TakePrefix is Take with the text form of the prefix as the key; it builds
// that text without allocating.
func (t *Table) TakePrefix(rule *Rule, prefix netip.Prefix, now time.Time) Result {
	return t.doPrefix(rule, prefix, now, opTake)
}

// PeekPrefix is TakePrefix without the charge and without remembering the key.
func (t *Table) PeekPrefix(rule *Rule, prefix netip.Prefix, now time.Time) Result {
	return t.doPrefix(rule, prefix, now, opPeek)
}

func (t *Table) doPrefix(rule *Rule, prefix netip.Prefix, now time.Time, o op) Result {
	if !rule.valid() {
		return refused(rule)
	}
	var buf [64]byte
	h := t.mix(rule, maphash.Bytes(t.seed, prefix.AppendTo(buf[:0])))
	ns := t.clock.now(now)
	if res, ok := t.region(rule).step(h, rule, ns, o); ok {
		return res
	}
	return t.overflow(rule, prefix.String(), ns, o)
}

// Refund gives back one request that Take charged, when something decided
// later that it shall not count. It never fills a bucket above its burst. What
// was charged to a coarser bucket is not given back.
func (t *Table) Refund(rule *Rule, key string, now time.Time) {
	if !rule.valid() {
		return
	}
	h := t.mix(rule, maphash.String(t.seed, key))
	t.region(rule).step(h, rule, t.clock.now(now), opRefund)
}

func (t *Table) do(rule *Rule, key string, now time.Time, o op) Result {
	if !rule.valid() {
		return refused(rule)
	}
	h := t.mix(rule, maphash.String(t.seed, key))
	ns := t.clock.now(now)
	if res, ok := t.region(rule).step(h, rule, ns, o); ok {
		return res
	}
	return t.overflow(rule, key, ns, o)
}

// refused is the answer of a rule that cannot be computed: fail closed.
func refused(rule *Rule) Result {
	return Result{Limit: max(rule.Burst, 0), RetryAfter: time.Second, Reset: time.Second}
}

// mix joins a key's hash with its rule's into the fingerprint. Both are keyed,
// so the product is as hard to steer as they are; 0 is kept for empty slots.
func (t *Table) mix(rule *Rule, key uint64) uint64 {
	hi, lo := bits.Mul64(key^t.salt, maphash.String(t.seed, rule.Name)|1)
	return max(hi^lo, 1)
}

func (t *Table) region(rule *Rule) *region {
	if rule.Key == KeyPrefix {
		return &t.open
	}
	return &t.bound
}

// overflow counts a request whose own key has no room.
func (t *Table) overflow(rule *Rule, key string, now int64, o op) Result {
	for t.coarser != nil {
		wider, ok := t.coarser(rule, key)
		if !ok || wider == key {
			break
		}
		key = wider
		h := t.mix(rule, maphash.String(t.seed, key))
		if res, ok := t.coarse.step(h, rule, now, o); ok {
			t.coarseHits.Add(1)
			res.Coarse = true
			return res
		}
	}
	t.globalHits.Add(1)
	t.globalMu.Lock()
	defer t.globalMu.Unlock()
	c, known := t.global[rule.Name]
	if !known {
		c.tat = now
	}
	res, next, write := rule.step(c, now, o)
	if write {
		t.global[rule.Name] = next
	}
	res.Coarse = true
	return res
}

// CoarserPrefix widens prefix keys: IPv4 to /16, IPv6 to /48 and then /32.
// Keys of other rules and keys that are no prefix have no coarser form.
func CoarserPrefix(rule *Rule, key string) (string, bool) {
	if rule.Key != KeyPrefix {
		return "", false
	}
	p, err := netip.ParsePrefix(key)
	if err != nil {
		return "", false
	}
	steps := []int{48, 32}
	if p.Addr().Is4() {
		steps = []int{16}
	}
	for _, n := range steps {
		if p.Bits() > n {
			return netip.PrefixFrom(p.Addr(), n).Masked().String(), true
		}
	}
	return "", false
}

// Stats is what a table holds and how often it ran out of room.
type Stats struct {
	Live   int    // keys whose bucket is not full
	Slots  int    // keys it can remember, coarser ones included
	Bytes  int64  // memory allocated for slots
	Coarse uint64 // requests counted in a coarser bucket so far
	Global uint64 // requests counted in a rule's global bucket so far
}

// Stats walks the whole table, one shard at a time; it is meant for metrics
// and tests, not for each request.
func (t *Table) Stats(now time.Time) Stats {
	ns := t.clock.now(now)
	s := Stats{Coarse: t.coarseHits.Load(), Global: t.globalHits.Load()}
	for _, r := range []*region{&t.open, &t.bound, &t.coarse} {
		live, slots := r.count(ns)
		s.Live += live
		s.Slots += r.size * shards
		s.Bytes += int64(slots) * entryBytes
	}
	return s
}

// Overflows returns how many requests were counted in a coarser bucket and in a
// rule's global bucket so far. Unlike Stats it costs nothing.
func (t *Table) Overflows() (coarse, global uint64) {
	return t.coarseHits.Load(), t.globalHits.Load()
}

// region is a hash table of fixed size without deletion: a slot is free when
// its TAT is past.
type region struct {
	size   int // slots of one shard
	shards [shards]shard
}

// slot is one key. It is 16 bytes so that a search and its hit mostly touch
// one cache line; the fraction stands apart for the same reason.
type slot struct {
	fp  uint64 // 0: never used
	tat int64
}

// shard is one lock's worth of a region.
type shard struct {
	mu    sync.Mutex
	slots []slot   // owned by mu
	frac  []uint32 // owned by mu; parallel to slots
	_     [128 - 8 - 2*24]byte
}

// step runs one operation on the fingerprint's bucket; false means that it has
// no slot and could not get one.
func (r *region) step(h uint64, rule *Rule, now int64, o op) (Result, bool) {
	s := &r.shards[h>>58]
	home, _ := bits.Mul64(h<<6, uint64(r.size))
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.slots == nil {
		s.slots = make([]slot, r.size)
		s.frac = make([]uint32, r.size)
	}
	i, found := s.find(h, int(home), now)
	if i < 0 {
		return Result{}, false
	}
	var c cell
	if found {
		c = cell{s.slots[i].tat, s.frac[i]}
	} else if o == opRefund {
		return Result{}, true
	} else {
		c = cell{tat: now}
	}
	res, next, write := rule.step(c, now, o)
	if write {
		s.slots[i], s.frac[i] = slot{h, next.tat}, next.frac
	}
	return res, true
}

// find looks for h in its probe window. Without it, the first slot that is
// unused or whose TAT is past; -1 if there is none. Slots never become unused
// again, so an unused one ends the search.
func (s *shard) find(h uint64, home int, now int64) (i int, found bool) {
	free := -1
	for n := range min(probe, len(s.slots)) {
		i := home + n
		if i >= len(s.slots) {
			i -= len(s.slots)
		}
		switch e := s.slots[i]; {
		case e.fp == h:
			return i, true
		case e.fp == 0:
			if free < 0 {
				free = i
			}
			return free, false
		case free < 0 && e.tat < now:
			free = i
		}
	}
	return free, false
}

func (r *region) count(now int64) (live, slots int) {
	for i := range r.shards {
		s := &r.shards[i]
		s.mu.Lock()
		slots += len(s.slots)
		for _, e := range s.slots {
			if e.fp != 0 && e.tat >= now {
				live++
			}
		}
		s.mu.Unlock()
	}
	return live, slots
}
