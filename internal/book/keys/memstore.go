package keys

import (
	"errors"
	"maps"
	"slices"
	"sync"
)

// MemStore is a Store in memory for tests of what happens when the store
// fails. It keeps the promises of Store as far as memory can.
type MemStore struct {
	// Fault, if set before the first use, is asked once for every View ("view")
	// and for every Update whose callback succeeded ("update"). With an error
	// it makes that call fail; apply says whether an Update is persisted all
	// the same. It runs under the store's lock, for Views from several goroutines at
	// once, and must not call the store.
	Fault func(op string) (apply bool, err error)

	mu      sync.RWMutex
	buckets map[string]*memBucket // guarded by mu
	closed  bool                  // guarded by mu
}

// memBucket holds rows and their keys in order. Values are never changed in
// place.
type memBucket struct {
	rows map[string][]byte
	keys []string
}

// NewMemStore returns an empty store.
func NewMemStore() *MemStore {
	return &MemStore{buckets: make(map[string]*memBucket)}
}

// Snapshot returns an independent open store with the present content and no
// fault hook: what a machine would find after a power cut now.
func (s *MemStore) Snapshot() *MemStore {
	s.mu.RLock()
	defer s.mu.RUnlock()
	c := NewMemStore()
	for name, b := range s.buckets {
		c.buckets[name] = &memBucket{rows: maps.Clone(b.rows), keys: slices.Clone(b.keys)}
	}
	return c
}

// Restore replaces the content of s by that of from and opens s again.
func (s *MemStore) Restore(from *MemStore) {
	c := from.Snapshot()
	s.mu.Lock()
	defer s.mu.Unlock()
	s.buckets, s.closed = c.buckets, false
}

// View implements Store.
func (s *MemStore) View(fn func(Tx) error) error {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if s.closed {
		return ErrClosed
	}
	if s.Fault != nil {
		if _, err := s.Fault("view"); err != nil {
			return err
		}
	}
	return fn(&memTx{base: s.buckets})
}

// Update implements Store.
func (s *MemStore) Update(fn func(Tx) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return ErrClosed
	}
	tx := &memTx{base: s.buckets, write: make(map[string]map[string][]byte)}
	if err := fn(tx); err != nil {
		return err
	}
	apply, err := true, error(nil)
	if s.Fault != nil {
		if a, e := s.Fault("update"); e != nil {
			apply, err = a, e
		}
	}
	if apply {
		tx.commit()
	}
	return err
}

// Close implements Store.
func (s *MemStore) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.closed = true
	return nil
}

// memTx reads base through the rows written so far.
type memTx struct {
	base  map[string]*memBucket
	write map[string]map[string][]byte // nil in a View; a nil value is a deletion
}

func (t *memTx) commit() {
	for name, rows := range t.write {
		b := t.base[name]
		if b == nil {
			b = &memBucket{rows: make(map[string][]byte)}
			t.base[name] = b
		}
		for k, v := range rows {
			i, found := slices.BinarySearch(b.keys, k)
			switch {
			case v == nil && found:
				delete(b.rows, k)
				b.keys = slices.Delete(b.keys, i, i+1)
			case v != nil && !found:
				b.keys = slices.Insert(b.keys, i, k)
				fallthrough
			case v != nil:
				b.rows[k] = v
			}
		}
	}
}

func (t *memTx) Get(bucket string, key []byte) []byte {
	if v, ok := t.write[bucket][string(key)]; ok {
		return v
	}
	if b := t.base[bucket]; b != nil {
		return b.rows[string(key)]
	}
	return nil
}

func (t *memTx) set(bucket string, key, value []byte) {
	rows := t.write[bucket]
	if rows == nil {
		rows = make(map[string][]byte)
		t.write[bucket] = rows
	}
	rows[string(key)] = value
}

func (t *memTx) Put(bucket string, key, value []byte) error {
	if t.write == nil {
		return ErrReadOnly
	}
	if bucket == "" || len(key) == 0 || len(value) == 0 {
		return ErrEmpty
	}
	t.set(bucket, key, slices.Clone(value))
	return nil
}

func (t *memTx) Delete(bucket string, key []byte) error {
	if t.write == nil {
		return ErrReadOnly
	}
	t.set(bucket, key, nil)
	return nil
}

func (t *memTx) ForEach(bucket string, fn func(k, v []byte) error) error {
	return t.Scan(bucket, nil, fn)
}

func (t *memTx) Scan(bucket string, from []byte, fn func(k, v []byte) error) error {
	// Rows of the store and rows of this transaction, merged in order.
	var stored, own []string
	if b := t.base[bucket]; b != nil {
		i, _ := slices.BinarySearch(b.keys, string(from))
		stored = b.keys[i:]
	}
	for k := range t.write[bucket] {
		if k >= string(from) {
			own = append(own, k)
		}
	}
	slices.Sort(own)
	for len(stored)+len(own) > 0 {
		var k string
		if len(own) == 0 || len(stored) > 0 && stored[0] < own[0] {
			k, stored = stored[0], stored[1:]
		} else {
			if len(stored) > 0 && stored[0] == own[0] {
				stored = stored[1:]
			}
			k, own = own[0], own[1:]
		}
		v := t.Get(bucket, []byte(k))
		if v == nil {
			continue // deleted in this transaction
		}
		if err := fn([]byte(k), v); errors.Is(err, ErrStop) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}
