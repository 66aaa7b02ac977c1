package keys

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"testing"
)

// testWrapper is a wrapper in memory. fault, if set, is asked before and after
// each effect with names like "new:before".
type testWrapper struct {
	mu    sync.Mutex
	high  uint32
	roots map[uint32]*epoch
	fault func(op string) error
}

func newTestWrapper() *testWrapper { return &testWrapper{roots: make(map[uint32]*epoch)} }

func (w *testWrapper) ask(op string) error {
	if w.fault == nil {
		return nil
	}
	return w.fault(op)
}

func (w *testWrapper) NewEpoch(context.Context) (uint32, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ask("new:before"); err != nil {
		return 0, err
	}
	w.high++
	var key Key
	rand.Read(key[:])
	aead, err := newAEAD(&key)
	if err != nil {
		return 0, err
	}
	w.roots[w.high] = &epoch{num: w.high, aead: aead}
	return w.high, w.ask("new:after")
}

func (w *testWrapper) root(epoch uint32) (*epoch, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if e := w.roots[epoch]; e != nil {
		return e, nil
	}
	return nil, fmt.Errorf("wrapper has no epoch %d", epoch)
}

func (w *testWrapper) Wrap(_ context.Context, epoch uint32, key *Key) ([]byte, error) {
	if err := w.ask("wrap"); err != nil {
		return nil, err
	}
	e, err := w.root(epoch)
	if err != nil {
		return nil, err
	}
	return e.seal(0, ID{}, key), nil
}

func (w *testWrapper) Unwrap(_ context.Context, epoch uint32, b []byte) (Key, error) {
	if err := w.ask("unwrap"); err != nil {
		return Key{}, err
	}
	e, err := w.root(epoch)
	if err != nil {
		return Key{}, err
	}
	return opener(e).openRow(0, ID{}, b)
}

func opener(e *epoch) *epochs { return &epochs{all: map[uint32]*epoch{e.num: e}} }

func (w *testWrapper) DestroyEpoch(_ context.Context, epoch uint32) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := w.ask("destroy:before"); err != nil {
		return err
	}
	delete(w.roots, epoch)
	return w.ask("destroy:after")
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func value[T any](t testing.TB) func(v T, err error) T {
	return func(v T, err error) T {
		t.Helper()
		must(t, err)
		return v
	}
}

func wantErr(t testing.TB, err, want error) {
	t.Helper()
	if !errors.Is(err, want) {
		t.Fatalf("error %v, want %v", err, want)
	}
}

func newRing(t testing.TB, opts ...Option) (*Ring, *MemStore, *testWrapper) {
	t.Helper()
	s, w := NewMemStore(), newTestWrapper()
	return value[*Ring](t)(Create(context.Background(), s, w, opts...)), s, w
}

func reopen(t testing.TB, s Store, w Wrapper) *Ring {
	t.Helper()
	return value[*Ring](t)(Open(context.Background(), s, w))
}

func person1(t testing.TB, r *Ring, name string) Subject {
	t.Helper()
	return value[Subject](t)(r.Person(name))
}

// settle writes and projects one birth.
func settle(t testing.TB, r *Ring, birth []byte) {
	t.Helper()
	r.Written(birth)
	must(t, r.Project(r.Pending()))
}

// check reads the whole store: every row must have its form, open with the
// ring's epochs and be reachable; it returns the number of blind-index rows.
func check(t testing.TB, s Store, w Wrapper) (rows int) {
	t.Helper()
	r := reopen(t, s, w)
	must(t, r.Check())
	es := r.state.Load()
	must(t, s.View(func(tx Tx) error {
		err := tx.ForEach(bucketKey, func(k, v []byte) error {
			_, err := es.openRow(Kind(k[0]), ID(k[1:]), v)
			if errors.Is(err, ErrKeyDestroyed) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
		return tx.ForEach(bucketBlind, func(k, v []byte) error {
			rows++
			row, err := parseBlindRow(k, v)
			if err != nil {
				return err
			}
			inner, err := es.open(row.field.kind(), row.target, row.inner)
			if err != nil {
				return err
			}
			if row.field == FieldIdentity && tx.Get(bucketKey, keyRow(KindSubject, row.target)) == nil {
				return fmt.Errorf("row %x leads to no key", k)
			}
			for _, e := range es.blind {
				if e.num == row.inner.epoch() && string(e.blindPrefix(row.field, &inner)) == string(k[:17]) {
					return nil
				}
			}
			return fmt.Errorf("row %x is under no blind-index key", k)
		})
	}))
	return rows
}

// privateDir returns a new directory with mode 0700.
func privateDir(t testing.TB) string {
	t.Helper()
	dir := filepath.Join(t.TempDir(), "private")
	must(t, os.Mkdir(dir, 0o700))
	return dir
}
