package keys

import (
	"fmt"
)

// RenewSigning replaces the seed of the ledger's note key by a fresh one,
// durably, and destroys the old one. It is for a new log after the old one can
// no longer be continued; the caller has made sure that nothing signs with the
// old seed any more.
func (r *Ring) RenewSigning() error {
	r.epochMu.RLock()
	defer r.epochMu.RUnlock()
	err := r.store.Update(func(tx Tx) error {
		old, err := metaID(tx, metaSigning)
		if err != nil {
			return err
		}
		id, seed := random()
		if err := tx.Put(bucketKey, keyRow(KindSigning, id), r.state.Load().current.seal(KindSigning, id, &seed)); err != nil {
			return err
		}
		if err := tx.Put(bucketMeta, []byte(metaSigning), id[:]); err != nil {
			return err
		}
		return tx.Put(bucketKey, keyRow(KindSigning, old), []byte{tombstone})
	})
	if err != nil {
		return fmt.Errorf("cannot make a new signing key: %w", err)
	}
	return nil
}

// Used tells whether anything was kept under these keys: a segment, or a record
// about somebody. Keys of WAL files do not count, which are made for a log that
// then does not come to be, too.
func (r *Ring) Used() (used bool, err error) {
	err = r.store.View(func(tx Tx) error {
		system, err := metaID(tx, metaSystem)
		if err != nil {
			return err
		}
		return tx.ForEach(bucketKey, func(k, _ []byte) error {
			switch Kind(k[0]) {
			case KindSegment:
				used = true
			case KindSubject:
				used = used || ID(k[1:]) != system
			}
			return nil
		})
	})
	return used, err
}
