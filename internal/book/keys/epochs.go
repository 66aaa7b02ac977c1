package keys

import (
	"context"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
)

type aeadCipher = cipher.AEAD

func blindName(epoch uint32) string {
	return string(binary.BigEndian.AppendUint32([]byte(metaBlind), epoch))
}

func be32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

// putEpoch makes epoch num the current one.
func putEpoch(tx Tx, num uint32, state byte, sealed []byte) error {
	if err := tx.Put(bucketEpoch, be32(num), append([]byte{state}, sealed...)); err != nil {
		return err
	}
	return tx.Put(bucketMeta, []byte(metaEpoch), be32(num))
}

// newEpoch asks the wrapper for an epoch above the given one and makes its
// key. The key is unwrapped once before anything depends on it.
func newEpoch(ctx context.Context, w Wrapper, above uint32) (*epoch, []byte, error) {
	num, err := w.NewEpoch(ctx)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the wrapper gave no new epoch: %w", ErrKeyUnavailable, err)
	}
	if num <= above {
		return nil, nil, fmt.Errorf("%w: the wrapper's new epoch %d is not above %d; it is not the one that this ledger uses",
			ErrKeyUnavailable, num, above)
	}
	_, key := random()
	defer clear(key[:])
	sealed, err := w.Wrap(ctx, num, &key)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the wrapper did not wrap the key of epoch %d: %w", ErrKeyUnavailable, num, err)
	}
	back, err := w.Unwrap(ctx, num, sealed)
	if err != nil {
		return nil, nil, fmt.Errorf("%w: the wrapper did not unwrap what it had just wrapped: %w", ErrKeyUnavailable, err)
	}
	defer clear(back[:])
	if back != key {
		return nil, nil, fmt.Errorf("%w: the wrapper unwrapped another key than it had wrapped", ErrKeyUnavailable)
	}
	aead, err := newAEAD(&key)
	if err != nil {
		return nil, nil, err
	}
	return &epoch{num: num, aead: aead}, sealed, nil
}

// epochRow is a decoded row of the epoch bucket.
type epochRow struct {
	num     uint32
	retired bool
	sealed  []byte
}

// readEpochs returns the current epoch's number and all rows.
func readEpochs(tx Tx) (current uint32, rows []epochRow, err error) {
	v := tx.Get(bucketMeta, []byte(metaVersion))
	switch {
	case v == nil:
		return 0, nil, ErrNotCreated
	case len(v) != 1 || v[0] != storeV1:
		return 0, nil, fmt.Errorf("key store: %w %#x", ErrVersion, v)
	}
	cur := tx.Get(bucketMeta, []byte(metaEpoch))
	if len(cur) != 4 {
		return 0, nil, fmt.Errorf("%w: key store names no current epoch", ErrKeyDamaged)
	}
	err = tx.ForEach(bucketEpoch, func(k, v []byte) error {
		if len(k) != 4 || len(v) < 2 || v[0] != epochLive && v[0] != epochRetired {
			return fmt.Errorf("%w: key store has a malformed epoch row %x", ErrKeyDamaged, k)
		}
		rows = append(rows, epochRow{
			num:     binary.BigEndian.Uint32(k),
			retired: v[0] == epochRetired,
			sealed:  append([]byte(nil), v[1:]...),
		})
		return nil
	})
	return binary.BigEndian.Uint32(cur), rows, err
}

// loadEpochs reads all epochs, takes the keys it does not hold yet from the
// wrapper, and opens the blind-index keys.
func (r *Ring) loadEpochs(ctx context.Context) (*epochs, error) {
	var current uint32
	var rows []epochRow
	err := r.store.View(func(tx Tx) (err error) {
		current, rows, err = readEpochs(tx)
		return err
	})
	if err != nil {
		return nil, err
	}
	es := &epochs{all: make(map[uint32]*epoch)}
	for _, row := range rows {
		e := &epoch{num: row.num, retired: row.retired}
		if e.aead, err = r.epochCipher(ctx, row); err != nil {
			if row.retired {
				// Nothing is wrapped in it any more; it may be gone.
				continue
			}
			return nil, fmt.Errorf("%w: epoch %d: %w", ErrKeyUnavailable, row.num, err)
		}
		es.all[e.num] = e
	}
	if es.current = es.all[current]; es.current == nil || es.current.retired {
		return nil, fmt.Errorf("%w: key store has no live row for its current epoch %d", ErrKeyDamaged, current)
	}
	return es, r.store.View(func(tx Tx) error { return es.loadBlind(tx) })
}

// epochCipher returns the cipher of an epoch, from memory if it is there.
func (r *Ring) epochCipher(ctx context.Context, row epochRow) (cipher.AEAD, error) {
	if old := r.state.Load(); old != nil && old.all[row.num] != nil {
		return old.all[row.num].aead, nil
	}
	key, err := r.wrapper.Unwrap(ctx, row.num, row.sealed)
	if err != nil {
		return nil, err
	}
	defer clear(key[:])
	return newAEAD(&key)
}

// loadBlind opens the blind-index key of every live epoch.
func (es *epochs) loadBlind(tx Tx) error {
	for _, e := range es.all {
		if e.retired {
			continue
		}
		var err error
		if e.blindID, e.blind, err = namedKey(tx, es, blindName(e.num), KindState); err != nil {
			return fmt.Errorf("blind-index key of epoch %d: %w", e.num, err)
		}
		if e != es.current {
			es.blind = append(es.blind, e)
		}
	}
	es.blind = append([]*epoch{es.current}, es.blind...)
	return nil
}

// rewrapPage is how many rows one transaction of Rewrap changes, and
// rewrapSpan how many it looks at: bounds of how long it keeps other writers
// of the store waiting.
const (
	rewrapPage = 512
	rewrapSpan = 8192
)

// Rewrap moves the ring to a new epoch: every surviving key is wrapped anew
// and every blind-index row gets a new hash, in bounded transactions beside
// normal use. When it returns nil, nothing is wrapped in the older epochs and
// DestroyEpoch may be called for those that Retired lists. After an error or
// a crash, the next Rewrap continues where this one stopped.
func (r *Ring) Rewrap(ctx context.Context) error {
	r.rewrapMu.Lock()
	defer r.rewrapMu.Unlock()
	if err := r.beginEpoch(ctx); err != nil {
		return fmt.Errorf("cannot begin a new epoch: %w", err)
	}
	es := r.state.Load()
	if err := r.moveRows(ctx, bucketKey, es.moveKey); err != nil {
		return err
	}
	if err := r.moveRows(ctx, bucketBlind, es.moveBlind); err != nil {
		return err
	}
	// Births made before the change are not in the store yet, or not all.
	var raws [][]byte
	for _, n := range r.births.collect(func(n *newborn) bool { return n.epoch() != es.current.num && !n.projected }) {
		raws = append(raws, n.raw)
	}
	if err := r.project(raws); err != nil {
		return err
	}
	return r.retireOthers(ctx, es)
}

// epoch returns the epoch that a birth is wrapped in; a full day in none.
func (b *birth) epoch() uint32 {
	switch b.typ {
	case birthPerson, birthAnonymous:
		return b.key.epoch()
	case birthClaimed:
		return b.inner.epoch()
	}
	return 0
}

// beginEpoch makes a new epoch current, unless the store shows an unfinished
// Rewrap. The store, not memory, says what is: an earlier attempt may have
// failed after its write was durable.
func (r *Ring) beginEpoch(ctx context.Context) error {
	es, err := r.loadEpochs(ctx)
	if err != nil {
		return err
	}
	if len(es.blind) == 1 {
		e, sealed, err := newEpoch(ctx, r.wrapper, es.current.num)
		if err != nil {
			return err
		}
		err = r.store.Update(func(tx Tx) error {
			id, key := random()
			if err := tx.Put(bucketKey, keyRow(KindState, id), e.seal(KindState, id, &key)); err != nil {
				return err
			}
			if err := tx.Put(bucketMeta, []byte(blindName(e.num)), id[:]); err != nil {
				return err
			}
			return putEpoch(tx, e.num, epochLive, sealed)
		})
		if err != nil {
			return err
		}
		if es, err = r.loadEpochs(ctx); err != nil {
			return err
		}
	}
	r.epochMu.Lock()
	r.state.Store(es)
	r.epochMu.Unlock()
	return nil
}

// move is one changed row: the row at old becomes key -> value.
type move struct{ old, key, value []byte }

// moveKey re-wraps a row of the key bucket; nil if there is nothing to do.
func (es *epochs) moveKey(k, v []byte) (*move, error) {
	if len(k) != 17 {
		return nil, fmt.Errorf("%w: malformed key row %x", ErrKeyDamaged, k)
	}
	if v[0] == tombstone {
		return nil, nil
	}
	w, err := parseWrapped(v)
	if err != nil {
		return nil, fmt.Errorf("key row %x: %w", k, err)
	}
	if w.epoch() == es.current.num {
		return nil, nil
	}
	kind, id := Kind(k[0]), ID(k[1:])
	key, err := es.open(kind, id, w)
	if err != nil {
		return nil, err
	}
	defer clear(key[:])
	return &move{old: k, key: k, value: es.current.seal(kind, id, &key)}, nil
}

// moveBlind re-keys a row of the blind index.
func (es *epochs) moveBlind(k, v []byte) (*move, error) {
	row, err := parseBlindRow(k, v)
	if err != nil {
		return nil, err
	}
	if row.inner.epoch() == es.current.num {
		return nil, nil
	}
	inner, err := es.open(row.field.kind(), row.target, row.inner)
	if err != nil {
		return nil, err
	}
	defer clear(inner[:])
	key, value := es.current.blindRow(row.field, row.target, &inner, row.day)
	return &move{old: k, key: key, value: value}, nil
}

// moveRows applies step to all rows of a bucket, in pages.
func (r *Ring) moveRows(ctx context.Context, bucket string, step func(k, v []byte) (*move, error)) error {
	for from := []byte(nil); ; {
		if err := ctx.Err(); err != nil {
			return err
		}
		var next []byte
		err := r.store.Update(func(tx Tx) error {
			var moves []move
			seen := 0
			next = nil
			err := tx.Scan(bucket, from, func(k, v []byte) error {
				if seen++; seen > rewrapSpan || len(moves) == rewrapPage {
					next = append([]byte(nil), k...)
					return ErrStop
				}
				m, err := step(append([]byte(nil), k...), v)
				if m != nil {
					moves = append(moves, *m)
				}
				return err
			})
			if err != nil {
				return err
			}
			for _, m := range moves {
				if err := tx.Delete(bucket, m.old); err != nil {
					return err
				}
				if err := tx.Put(bucket, m.key, m.value); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return fmt.Errorf("cannot re-wrap the rows of %q: %w", bucket, err)
		}
		if next == nil {
			return nil
		}
		from = next
	}
}

// retireOthers marks all epochs but the current one as unused, having looked
// at every row once more, and destroys their blind-index keys.
func (r *Ring) retireOthers(ctx context.Context, es *epochs) error {
	err := r.store.View(func(tx Tx) error {
		for bucket, step := range map[string]func(k, v []byte) (*move, error){bucketKey: es.moveKey, bucketBlind: es.moveBlind} {
			err := tx.ForEach(bucket, func(k, v []byte) error {
				m, err := step(k, v)
				if m != nil {
					err = fmt.Errorf("row %x of %q is still wrapped in an old epoch; run it again", k, bucket)
				}
				return err
			})
			if err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("re-wrapping is not complete: %w", err)
	}
	err = r.store.Update(func(tx Tx) error {
		_, rows, err := readEpochs(tx)
		if err != nil {
			return err
		}
		for _, row := range rows {
			if row.num == es.current.num || row.retired {
				continue
			}
			if err := retire(tx, row); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("cannot retire old epochs: %w", err)
	}
	if es, err = r.loadEpochs(ctx); err != nil {
		return err
	}
	r.epochMu.Lock()
	r.state.Store(es)
	r.epochMu.Unlock()
	return nil
}

func retire(tx Tx, row epochRow) error {
	id, err := metaID(tx, blindName(row.num))
	if err != nil {
		return err
	}
	if err := tx.Put(bucketKey, keyRow(KindState, id), []byte{tombstone}); err != nil {
		return err
	}
	if err := tx.Delete(bucketMeta, []byte(blindName(row.num))); err != nil {
		return err
	}
	return tx.Put(bucketEpoch, be32(row.num), append([]byte{epochRetired}, row.sealed...))
}

// Epoch returns the number of the current epoch.
func (r *Ring) Epoch() uint32 { return r.state.Load().current.num }

// Retired lists the epochs in which nothing is wrapped any more and which
// DestroyEpoch has not removed yet, in ascending order.
func (r *Ring) Retired() ([]uint32, error) {
	var out []uint32
	err := r.store.View(func(tx Tx) error {
		_, rows, err := readEpochs(tx)
		for _, row := range rows {
			if row.retired {
				out = append(out, row.num)
			}
		}
		return err
	})
	return out, err
}

// DestroyEpoch has the wrapper destroy a retired epoch, after which no older
// copy of the key store can be opened. It may be repeated. Until replay has
// announced its births to Project since Open it is refused, because the WAL
// may hold the only copy of a key wrapped in that epoch.
func (r *Ring) DestroyEpoch(ctx context.Context, num uint32) error {
	r.rewrapMu.Lock()
	defer r.rewrapMu.Unlock()
	if !r.replayed.Load() {
		return errors.New("cannot destroy an epoch before the births in the write-ahead log are projected")
	}
	retired, err := r.Retired()
	if err != nil {
		return err
	}
	found := false
	for _, n := range retired {
		found = found || n == num
	}
	if !found {
		return fmt.Errorf("epoch %d is not retired; re-wrap first", num)
	}
	if err := r.wrapper.DestroyEpoch(ctx, num); err != nil {
		return fmt.Errorf("cannot destroy epoch %d: %w", num, err)
	}
	if err := r.store.Update(func(tx Tx) error { return tx.Delete(bucketEpoch, be32(num)) }); err != nil {
		return fmt.Errorf("epoch %d is destroyed, but not yet its row: %w", num, err)
	}
	es, err := r.loadEpochs(ctx)
	if err != nil {
		return err
	}
	r.epochMu.Lock()
	r.state.Store(es)
	r.epochMu.Unlock()
	return nil
}
