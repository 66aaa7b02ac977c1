package keys

import (
	"fmt"
	"strings"
)

// Check opens every wrapped key of the store and follows every row that names
// another, so that damage is found before somebody needs the row. A missing
// row that no other names cannot be told from one that never was. It reads the
// whole store.
func (r *Ring) Check() error {
	return r.store.View(func(tx Tx) error {
		c := &checker{tx: tx, es: r.state.Load()}
		for _, step := range []struct {
			bucket string
			row    func(k, v []byte) error
		}{
			{bucketMeta, c.meta}, {bucketKey, c.key}, {bucketBlind, c.blind},
			{bucketUnbound, c.mark}, {bucketDay, c.day}, {bucketBucket, c.bucket}, {bucketFull, c.mark},
		} {
			if err := tx.ForEach(step.bucket, step.row); err != nil {
				return fmt.Errorf("key store, table %q: %w", step.bucket, err)
			}
		}
		return nil
	})
}

// checker checks one row at a time.
type checker struct {
	tx Tx
	es *epochs
}

func damagedRow(k []byte) error { return fmt.Errorf("%w: row %x", ErrKeyDamaged, k) }

// meta checks that a name is known and leads to a key of its kind. The version
// and the current epoch were read when the ring was opened.
func (c *checker) meta(k, v []byte) error {
	kind := KindState
	switch name := string(k); {
	case name == metaVersion, name == metaEpoch:
		return nil
	case name == metaSystem:
		kind = KindSubject
	case name == metaSigning:
		kind = KindSigning
	case name == metaRoot, strings.HasPrefix(name, metaBlind) && len(name) == len(metaBlind)+4:
	default:
		return damagedRow(k)
	}
	return c.named(k, v, kind, false)
}

// named checks that v is the id of a key; with gone, it may be destroyed.
func (c *checker) named(k, v []byte, kind Kind, gone bool) error {
	if len(v) != len(ID{}) {
		return damagedRow(k)
	}
	row := c.tx.Get(bucketKey, keyRow(kind, ID(v)))
	if row == nil || row[0] == tombstone && !gone {
		return damagedRow(k)
	}
	return nil
}

func (c *checker) key(k, v []byte) error {
	if len(k) != 1+len(ID{}) || !Kind(k[0]).valid() {
		return damagedRow(k)
	}
	if len(v) == 1 && v[0] == tombstone {
		return nil
	}
	_, err := c.es.openRow(Kind(k[0]), ID(k[1:]), v)
	return err
}

func (c *checker) blind(k, v []byte) error {
	row, err := parseBlindRow(k, v)
	if err != nil {
		return err
	}
	inner, err := c.es.open(row.field.kind(), row.target, row.inner)
	if err != nil {
		return err
	}
	e := c.es.all[row.inner.epoch()]
	if e.blindID == (ID{}) || string(e.blindPrefix(row.field, &inner)) != string(k[:17]) || row.field == FieldIdentity && row.day != 0 {
		return damagedRow(k)
	}
	return nil
}

func (c *checker) mark(k, v []byte) error {
	if len(v) != 1 || v[0] != storeV1 {
		return damagedRow(k)
	}
	return nil
}

func (c *checker) day(k, v []byte) error {
	if len(k) != 4 {
		return damagedRow(k)
	}
	return c.named(k, v, KindState, false)
}

func (c *checker) bucket(k, v []byte) error {
	if len(k) != 5 || c.tx.Get(bucketDay, k[:4]) == nil {
		return damagedRow(k)
	}
	return c.named(k, v, KindSubject, true)
}
