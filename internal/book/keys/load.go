package keys

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"runtime/debug"
	"slices"

	bolt "go.etcd.io/bbolt"
)

// Load copies a store that OpenBolt opened into memory, for readers that must
// not change the disk but have births to announce. It checks the file's
// structure first. A damaged file is an error, never a crash.
func Load(from Store) (_ *MemStore, err error) {
	s, ok := from.(*boltStore)
	if !ok {
		return nil, errors.New("only a key store on disk can be loaded")
	}
	// OpenBolt has checked the pages. Should bbolt or the disk see it otherwise,
	// that must not end the process.
	defer debug.SetPanicOnFault(debug.SetPanicOnFault(true))
	defer func() {
		if p := recover(); p != nil {
			err = fmt.Errorf("%w: %s: %v", ErrStoreDamaged, s.db.Path(), p)
		}
	}()
	out := NewMemStore()
	err = s.db.View(func(tx *bolt.Tx) error {
		for problem := range tx.Check() {
			err = errors.Join(err, problem)
		}
		if err != nil {
			return err
		}
		return out.Update(func(mem Tx) error { return copyRows(mem, tx) })
	})
	if err != nil {
		return nil, fmt.Errorf("%w: %s: %w", ErrStoreDamaged, s.db.Path(), err)
	}
	return out, nil
}

func copyRows(mem Tx, tx *bolt.Tx) error {
	return tx.ForEach(func(name []byte, b *bolt.Bucket) error {
		if !slices.Contains(allBuckets, string(name)) {
			return fmt.Errorf("unknown table %q", name)
		}
		return b.ForEach(func(k, v []byte) error { return mem.Put(string(name), bytes.Clone(k), bytes.Clone(v)) })
	})
}

// allBuckets are the tables of this version.
var allBuckets = []string{bucketMeta, bucketEpoch, bucketKey, bucketBlind, bucketUnbound, bucketDay, bucketBucket, bucketFull}

// StateKey returns the state key of the given name, making it at the first
// call. It is durable when it returns and stays the same.
func (r *Ring) StateKey(name string) (Key, error) {
	sum := sha256.Sum256([]byte("gatebook/v1/state\x00" + name))
	id := ID(sum[:16])
	key, err := r.Key(KindState, id)
	if !errors.Is(err, ErrKeyUnknown) {
		return key, err
	}
	r.epochMu.RLock()
	defer r.epochMu.RUnlock()
	err = r.store.Update(func(tx Tx) (err error) {
		if have := tx.Get(bucketKey, keyRow(KindState, id)); have != nil {
			key, err = r.state.Load().openRow(KindState, id, have)
			return err
		}
		_, key = random()
		return tx.Put(bucketKey, keyRow(KindState, id), r.state.Load().current.seal(KindState, id, &key))
	})
	return key, err
}
