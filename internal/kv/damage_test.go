package kv

import (
	"bytes"
	"context"
	"errors"
	"path/filepath"
	"testing"
	"time"

	bolt "go.etcd.io/bbolt"
)

// A value that was changed in one bit, cut or moved to another name does not
// open, and is never taken for an entry that is not there.
func TestDamage(t *testing.T) {
	l, err := OpenLocal(filepath.Join(t.TempDir(), "s.db"), [32]byte{1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	ctx := context.Background()
	for _, key := range []string{"k", "other"} {
		if err := l.Put(ctx, "t", key, []byte("value of "+key), time.Time{}); err != nil {
			t.Fatal(err)
		}
	}
	name := l.name("t", "k")
	raw := func(name []byte) (b []byte) {
		_ = l.db.View(func(tx *bolt.Tx) error { b = bytes.Clone(tx.Bucket(bucket).Get(name)); return nil })
		return b
	}
	write := func(b []byte) {
		if err := l.db.Update(func(tx *bolt.Tx) error { return tx.Bucket(bucket).Put(name, b) }); err != nil {
			t.Fatal(err)
		}
	}
	whole := raw(name)
	bad := [][]byte{{}, whole[:1], whole[:len(whole)-1], append(bytes.Clone(whole), 0), raw(l.name("t", "other"))}
	for i := range whole {
		b := bytes.Clone(whole)
		b[i] ^= 1 << (i % 8)
		bad = append(bad, b)
	}
	for i, b := range bad {
		write(b)
		if v, err := l.Get(ctx, "t", "k"); !errors.Is(err, ErrDamaged) {
			t.Errorf("damage %d: got %q, %v", i, v, err)
		}
		if ok, err := l.Create(ctx, "t", "k", nil, time.Time{}); ok || !errors.Is(err, ErrDamaged) {
			t.Errorf("damage %d: created: %v, %v", i, ok, err)
		}
	}
	write(whole)
	if v, err := l.Get(ctx, "t", "k"); err != nil || string(v) != "value of k" {
		t.Errorf("the value as it was: %q, %v", v, err)
	}
}
