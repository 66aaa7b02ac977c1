package keys

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The blind index finds subjects by a name without storing the name. A row's
// hash is nested:
//
//	inner = HMAC-SHA256(root key, "gatebook/v1/blind" · field · value)
//	row   = first 16 bytes of HMAC-SHA256(the epoch's blind-index key, inner)
//
// The row keeps inner wrapped under the epoch's key. So Rewrap can give every
// row a new hash without knowing a single name, and destroy the old
// blind-index key: afterwards nobody can test guesses against the rows that
// erasure deleted but that old free pages or backups of the store still show.

// Field is a column of the blind index.
type Field uint8

// The fields; the numbers are part of the format.
const (
	// FieldIdentity holds issuer|sub of persons; its ids are key ids.
	FieldIdentity Field = 1
	// FieldClaimed holds names that failed attempts claimed; its ids are the
	// pseudonyms in those attempts' frames.
	FieldClaimed Field = 2
)

const (
	blindLabel  = "gatebook/v1/blind"
	blindKeyLen = 1 + 16 + 16
	blindRowLen = wrappedLen + 4
	// maxValue bounds a name, in bytes.
	maxValue = 4096
)

func (f Field) valid() bool { return f == FieldIdentity || f == FieldClaimed }

// kind is what the field's inner hash is wrapped as.
func (f Field) kind() Kind {
	if f == FieldIdentity {
		return kindIdentity
	}
	return kindClaimed
}

func checkValue(value string) error {
	if value == "" {
		return errEmptyText
	}
	if len(value) > maxValue {
		return fmt.Errorf("a name of %d bytes is longer than %d", len(value), maxValue)
	}
	return nil
}

// inner is the first half of the blind hash.
func blindInner(root *Key, field Field, value string) Key {
	m := hmac.New(sha256.New, root[:])
	m.Write([]byte(blindLabel))
	m.Write([]byte{byte(field)})
	m.Write([]byte(value))
	return Key(m.Sum(nil))
}

// prefix is the row key up to the pseudonym.
func (e *epoch) blindPrefix(field Field, inner *Key) []byte {
	m := hmac.New(sha256.New, e.blind[:])
	m.Write(inner[:])
	return append([]byte{byte(field)}, m.Sum(nil)[:16]...)
}

// blindRow returns a whole row.
func (e *epoch) blindRow(field Field, target ID, inner *Key, day uint32) (key, value []byte) {
	key = append(e.blindPrefix(field, inner), target[:]...)
	value = binary.BigEndian.AppendUint32(e.seal(field.kind(), target, inner), day)
	return key, value
}

// blindRow is a decoded row; inner aliases the value.
type blindRow struct {
	field  Field
	target ID
	inner  wrapped
	day    uint32 // of a claim
}

func parseBlindRow(k, v []byte) (blindRow, error) {
	if len(k) != blindKeyLen || len(v) != blindRowLen || !Field(k[0]).valid() {
		return blindRow{}, fmt.Errorf("%w: malformed blind-index row %x", ErrKeyDamaged, k)
	}
	w, err := parseWrapped(v[:wrappedLen])
	if err != nil {
		return blindRow{}, fmt.Errorf("blind-index row %x: %w", k, err)
	}
	return blindRow{
		field:  Field(k[0]),
		target: ID(k[17:]),
		inner:  w,
		day:    binary.BigEndian.Uint32(v[wrappedLen:]),
	}, nil
}

// targets visits the ids that rows of all live epochs give for a hash.
func (es *epochs) targets(tx Tx, field Field, inner *Key, fn func(rowKey []byte, id ID) error) error {
	for _, e := range es.blind {
		prefix := e.blindPrefix(field, inner)
		err := tx.Scan(bucketBlind, prefix, func(k, v []byte) error {
			if len(k) != blindKeyLen || string(k[:17]) != string(prefix) {
				return ErrStop
			}
			return fn(k, ID(k[17:]))
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// Lookup returns the ids under which a name is indexed: for FieldIdentity the
// person's key ids (more than one after an erasure), for FieldClaimed the
// pseudonyms of the failed attempts that claimed it. No hit is not an error,
// but see ClaimsFull.
func (r *Ring) Lookup(field Field, value string) ([]ID, error) {
	if !field.valid() {
		return nil, fmt.Errorf("no such blind-index field: %d", field)
	}
	if err := checkValue(value); err != nil {
		return nil, err
	}
	inner := blindInner(&r.root, field, value)
	found := make(map[ID]struct{})
	// Newborns first: one may move from there to the store meanwhile.
	for _, n := range r.births.collect(func(n *newborn) bool { return n.field() == field && n.row == inner }) {
		found[n.id] = struct{}{}
	}
	err := r.store.View(func(tx Tx) error {
		return r.state.Load().targets(tx, field, &inner, func(_ []byte, id ID) error {
			found[id] = struct{}{}
			return nil
		})
	})
	if err != nil {
		return nil, err
	}
	out := make([]ID, 0, len(found))
	for id := range found {
		out = append(out, id)
	}
	slices.SortFunc(out, func(a, b ID) int { return slices.Compare(a[:], b[:]) })
	return out, nil
}

// field returns the blind-index field that a birth adds to, or 0.
func (b *birth) field() Field {
	switch b.typ {
	case birthPerson:
		return FieldIdentity
	case birthClaimed:
		return FieldClaimed
	}
	return 0
}

// Unbind makes new traffic of persons resolve to new subjects: the first step
// of an erasure. Their keys and rows stay. It is durable when it returns and
// may be repeated; no replay undoes it.
func (r *Ring) Unbind(ids ...ID) error {
	r.missMu.Lock()
	defer r.missMu.Unlock()
	err := r.store.Update(func(tx Tx) error {
		for _, id := range ids {
			if id == r.system.ID {
				return fmt.Errorf("%w: %v is the system subject", ErrKeyInUse, id)
			}
			row := tx.Get(bucketKey, keyRow(KindSubject, id))
			if row == nil {
				if _, ok := r.births.subject(id); !ok {
					return fmt.Errorf("%w: subject key %v", ErrKeyUnknown, id)
				}
			} else if row[0] == tombstone {
				continue
			}
			if err := tx.Put(bucketUnbound, id[:], []byte{storeV1}); err != nil {
				return err
			}
		}
		return nil
	})
	r.gen.Add(1)
	if err == nil {
		for _, id := range ids {
			r.births.unbind(id, false)
		}
	}
	// After an unknown outcome too: the store is asked again.
	r.people.removeIf(func(p *person) bool { return slices.Contains(ids, p.id) })
	if err != nil {
		return fmt.Errorf("cannot unbind: %w", err)
	}
	return nil
}

// ForgetSubject deletes every blind-index row that leads to one of the ids,
// unbinding them first, and returns how many there were. It reads the whole
// index once, however many ids it is given. It may be repeated.
func (r *Ring) ForgetSubject(ids ...ID) (rows int, err error) {
	if err := r.Unbind(ids...); err != nil {
		return 0, err
	}
	r.rewrapMu.Lock()
	defer r.rewrapMu.Unlock()
	if err := r.project(r.births.waiting()); err != nil {
		return 0, err
	}
	want := make(map[ID]struct{}, len(ids))
	for _, id := range ids {
		want[id] = struct{}{}
	}
	return r.deleteRows(func(row blindRow) bool {
		_, ok := want[row.target]
		return ok
	})
}

// ForgetValue deletes every blind-index row of one name in one field and
// returns how many there were. It may be repeated.
func (r *Ring) ForgetValue(field Field, value string) (rows int, err error) {
	ids, err := r.Lookup(field, value)
	if err != nil {
		return 0, err
	}
	if field == FieldIdentity && len(ids) > 0 {
		if err := r.Unbind(ids...); err != nil {
			return 0, err
		}
	}
	r.rewrapMu.Lock()
	defer r.rewrapMu.Unlock()
	if err := r.project(r.births.waiting()); err != nil {
		return 0, err
	}
	inner := blindInner(&r.root, field, value)
	err = r.store.Update(func(tx Tx) error {
		var hits [][]byte
		err := r.state.Load().targets(tx, field, &inner, func(k []byte, _ ID) error {
			hits = append(hits, slices.Clone(k))
			return nil
		})
		for _, k := range hits {
			err = errors.Join(err, tx.Delete(bucketBlind, k))
		}
		rows = len(hits)
		return err
	})
	r.forgetClaims()
	if err != nil {
		return 0, fmt.Errorf("cannot delete blind-index rows: %w", err)
	}
	return rows, nil
}

// forgetClaims empties the memory of which claims are indexed.
func (r *Ring) forgetClaims() {
	r.gen.Add(1)
	r.claims.removeIf(func(*struct{}) bool { return true })
}

// deleteRows deletes the rows that match, in pages. The caller holds rewrapMu,
// so rows do not move.
func (r *Ring) deleteRows(match func(blindRow) bool) (int, error) {
	var hits [][]byte
	err := r.store.View(func(tx Tx) error {
		return tx.ForEach(bucketBlind, func(k, v []byte) error {
			row, err := parseBlindRow(k, v)
			if err == nil && match(row) {
				hits = append(hits, slices.Clone(k))
			}
			return err
		})
	})
	if err != nil {
		return 0, err
	}
	for page := range slices.Chunk(hits, rewrapPage) {
		err := r.store.Update(func(tx Tx) error {
			for _, k := range page {
				if err := tx.Delete(bucketBlind, k); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return 0, fmt.Errorf("cannot delete blind-index rows: %w", err)
		}
	}
	r.forgetClaims()
	return len(hits), nil
}
