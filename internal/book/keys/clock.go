package keys

import "sync"

// hash is a keyed 128-bit hash, see Ring.hash.
type hash [16]byte

// clockShards spreads the lock of a cache; a power of two.
const clockShards = 16

// clock is a bounded cache with second-chance eviction. Values are copied in
// and out under the shard's lock, so that an evicted key is overwritten and
// not kept alive by a reader. Safe for concurrent use.
type clock[V any] struct {
	shards [clockShards]shard[V]
}

type shard[V any] struct {
	mu    sync.Mutex
	size  int            // set once
	index map[hash]int32 // guarded by mu
	slots []slot[V]      // guarded by mu; grows up to size
	hand  int            // guarded by mu
}

type slot[V any] struct {
	key  hash
	val  V
	used bool // looked up since the hand last passed
	live bool
}

// newClock returns a cache for about size entries, at least one per shard.
func newClock[V any](size int) *clock[V] {
	c := new(clock[V])
	for i := range c.shards {
		c.shards[i].size = max(1, size/clockShards)
		c.shards[i].index = make(map[hash]int32)
	}
	return c
}

func (c *clock[V]) shard(k hash) *shard[V] { return &c.shards[k[15]%clockShards] }

func (c *clock[V]) get(k hash) (v V, ok bool) {
	s := c.shard(k)
	s.mu.Lock()
	if i, found := s.index[k]; found {
		s.slots[i].used = true
		v, ok = s.slots[i].val, true
	}
	s.mu.Unlock()
	return v, ok
}

// put stores v if still, called under the lock that removal takes too, holds.
func (c *clock[V]) put(k hash, v V, still func() bool) {
	s := c.shard(k)
	s.mu.Lock()
	defer s.mu.Unlock()
	if !still() {
		return
	}
	i, found := s.index[k]
	if !found {
		i = s.victim()
		s.index[k] = i
	}
	s.slots[i] = slot[V]{key: k, val: v, live: true}
}

// victim returns a free slot. The caller holds mu.
func (s *shard[V]) victim() int32 {
	if len(s.slots) < s.size {
		s.slots = append(s.slots, slot[V]{})
		return int32(len(s.slots) - 1)
	}
	for {
		i := s.hand
		s.hand = (s.hand + 1) % len(s.slots)
		if s.slots[i].live && s.slots[i].used {
			s.slots[i].used = false
			continue
		}
		if s.slots[i].live {
			delete(s.index, s.slots[i].key)
		}
		return int32(i)
	}
}

// removeIf drops every entry for which drop is true. It walks the whole cache.
func (c *clock[V]) removeIf(drop func(*V) bool) {
	for i := range c.shards {
		s := &c.shards[i]
		s.mu.Lock()
		for j := range s.slots {
			if s.slots[j].live && drop(&s.slots[j].val) {
				delete(s.index, s.slots[j].key)
				s.slots[j] = slot[V]{}
			}
		}
		s.mu.Unlock()
	}
}
