package keys

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// Written reports that a birth is in the WAL, in front of everything that
// depends on it: from now on its subject is resolved without it. Nil, and a
// birth that is known to be written, are ignored.
func (r *Ring) Written(birth []byte) {
	if len(birth) == 0 {
		return
	}
	r.births.markWritten(birth, func(n *newborn) {
		switch n.typ {
		case birthPerson:
			r.people.put(n.hash, person{n.id, n.id.String(), n.key}, always)
		case birthClaimed:
			r.claims.put(n.hash, struct{}{}, always)
		}
	})
}

// Pending returns the births that are in the WAL but not yet in the store, in
// the order in which they were written. The slices must not be changed.
func (r *Ring) Pending() [][]byte { return r.births.waiting() }

// projectPage is how many births one transaction takes.
const projectPage = 512

// Project makes births durable in the store: those of Pending, and after a
// crash all that replay finds in the WAL, in order and before anything else
// is asked of the ring. Replay calls it even when there are none. Repeating it changes
// nothing: a stored key is never replaced, a destroyed one never brought back,
// an unbound person never bound again; a missing blind-index row is restored.
// One malformed or tampered birth refuses the call; what came before it in
// earlier pages stays.
func (r *Ring) Project(births [][]byte) error {
	if err := r.project(births); err != nil {
		return err
	}
	r.replayed.Store(true)
	return nil
}

func (r *Ring) project(raws [][]byte) error {
	parsed := make([]birth, len(raws))
	for i, raw := range raws {
		b, err := parseBirth(raw)
		if err != nil {
			return err
		}
		parsed[i] = b
	}
	for len(parsed) > 0 {
		n := min(len(parsed), projectPage)
		if err := r.projectChunk(parsed[:n]); err != nil {
			return fmt.Errorf("cannot project subject births: %w", err)
		}
		r.births.markProjected(raws[:n])
		parsed, raws = parsed[n:], raws[n:]
	}
	return nil
}

func (r *Ring) projectChunk(chunk []birth) error {
	r.epochMu.RLock()
	defer r.epochMu.RUnlock()
	es := r.state.Load()
	return r.store.Update(func(tx Tx) error {
		for i := range chunk {
			if err := es.insert(tx, &chunk[i]); err != nil {
				return err
			}
		}
		return nil
	})
}

// insert adds the rows of one birth as far as they are missing.
func (es *epochs) insert(tx Tx, b *birth) error {
	switch b.typ {
	case birthFull:
		return tx.Put(bucketFull, be32(b.day), []byte{storeV1})
	case birthClaimed:
		return es.insertRow(tx, b)
	}
	dead, err := es.insertKey(tx, b)
	if dead || err != nil {
		return err
	}
	if b.typ == birthPerson {
		if tx.Get(bucketUnbound, b.id[:]) != nil {
			return nil
		}
		return es.insertRow(tx, b)
	}
	return insertBucket(tx, b)
}

// insertKey stores the birth's subject key under the current epoch. A key that
// is there already must be the same one.
func (es *epochs) insertKey(tx Tx, b *birth) (dead bool, err error) {
	row := tx.Get(bucketKey, keyRow(KindSubject, b.id))
	if row != nil && row[0] == tombstone {
		return true, nil
	}
	key, err := es.open(KindSubject, b.id, b.key)
	if row != nil {
		if errors.Is(err, ErrKeyUnavailable) && es.past(b) {
			// Born in an epoch that is destroyed; re-wrapped since.
			return false, nil
		}
		stored, rowErr := es.openRow(KindSubject, b.id, row)
		if err = errors.Join(err, rowErr); err == nil && stored != key {
			err = fmt.Errorf("%w: subject key %v differs from the one announced at its birth", ErrKeyDamaged, b.id)
		}
		return false, err
	}
	if err != nil {
		return false, err
	}
	return false, tx.Put(bucketKey, keyRow(KindSubject, b.id), es.current.seal(KindSubject, b.id, &key))
}

// past tells whether a birth is older than the current epoch. One from a later
// epoch means that the store is older than the log.
func (es *epochs) past(b *birth) bool { return b.epoch() < es.current.num }

// insertRow stores the birth's blind-index row under the current epoch.
func (es *epochs) insertRow(tx Tx, b *birth) error {
	field := b.field()
	if field == FieldClaimed && tx.Get(bucketDay, be32(b.day)) == nil {
		return nil // the day was dropped, and its claims with it
	}
	inner, err := es.open(field.kind(), b.id, b.inner)
	if errors.Is(err, ErrKeyUnavailable) && es.past(b) {
		// An epoch is destroyed only after its births were projected and
		// their rows re-keyed, so the row is there unless it was deleted.
		return nil
	}
	if err != nil {
		return err
	}
	known := false
	err = es.targets(tx, field, &inner, func(_ []byte, id ID) error {
		known = known || id == b.id
		return nil
	})
	if known || err != nil {
		return err
	}
	key, value := es.current.blindRow(field, b.id, &inner, b.day)
	return tx.Put(bucketBlind, key, value)
}

// insertBucket notes which key an anonymous bucket uses. The first one stays
// while its key lives.
func insertBucket(tx Tx, b *birth) error {
	if tx.Get(bucketDay, be32(b.day)) == nil {
		return nil // the day was dropped, and its table with it
	}
	k := bucketRow(b.day, b.bucket)
	if old := tx.Get(bucketBucket, k); len(old) == len(b.id) {
		row := tx.Get(bucketKey, keyRow(KindSubject, ID(old)))
		if row != nil && row[0] != tombstone {
			return nil
		}
	}
	return tx.Put(bucketBucket, k, slices.Clone(b.id[:]))
}

func bucketRow(day uint32, bucket uint8) []byte {
	return append(binary.BigEndian.AppendUint32(nil, day), bucket)
}
