package keys

import (
	"context"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

func TestRewrap(t *testing.T) {
	ctx := t.Context()
	s, w, want := populated(t)
	r := reopen(t, s, w)
	if err := r.DestroyEpoch(ctx, 1); err == nil {
		t.Fatal("destroyed the current epoch")
	}
	old := s.Snapshot()
	must(t, r.Rewrap(ctx))
	if got := value[[]uint32](t)(r.Retired()); !slices.Equal(got, []uint32{1}) || r.Epoch() != 2 {
		t.Errorf("epoch %d, retired %v", r.Epoch(), got)
	}
	want(t, r)
	want(t, reopen(t, s, w))
	if err := r.DestroyEpoch(ctx, 1); err == nil {
		t.Error("destroyed an epoch before replay had been projected")
	}
	must(t, r.Project(nil))
	must(t, r.DestroyEpoch(ctx, 1))
	if err := r.DestroyEpoch(ctx, 1); err == nil {
		t.Error("destroyed an epoch that is not there")
	}
	want(t, r)
	want(t, reopen(t, s, w))
	check(t, s, w)
	// Older copies of the store are worthless now.
	_, err := Open(ctx, old, w)
	wantErr(t, err, ErrKeyUnavailable)
	// No hash of the old index is left, so guesses cannot be tested on it.
	seen := make(map[string]bool)
	for _, st := range []*MemStore{old, s} {
		must(t, st.View(func(tx Tx) error {
			return tx.ForEach(bucketBlind, func(k, _ []byte) error {
				if seen[string(k)] {
					t.Error("a blind-index row kept its hash")
				}
				seen[string(k)] = true
				return nil
			})
		}))
	}
}

// Births of before a Rewrap, written and replayed after it, and after the end
// of the epoch they are wrapped in.
func TestRewrapWithBirthsUnderWay(t *testing.T) {
	ctx := t.Context()
	r, s, w := newRing(t)
	unwritten, written := person1(t, r, "corp|unwritten"), person1(t, r, "corp|written")
	stranger := anon(t, r, "192.0.2.0/24", noon)
	claim := value[[]byte](t)(r.Claimed("mallory", stranger, noon))
	r.Written(written.Birth)
	must(t, r.Rewrap(ctx))
	must(t, r.DestroyEpoch(ctx, 1))
	if got := person1(t, r, "corp|unwritten"); got.ID != unwritten.ID || got.Birth == nil {
		t.Error("a birth that is not in the log is not carried any more")
	}
	for _, b := range [][]byte{unwritten.Birth, stranger.Birth, claim} {
		r.Written(b)
	}
	must(t, r.Project(r.Pending()))
	if n := len(r.births.byRaw); n != 0 {
		t.Errorf("%d newborns stay in memory", n)
	}
	log := [][]byte{written.Birth, unwritten.Birth, stranger.Birth, claim}
	for _, r := range []*Ring{r, reopen(t, s, w)} {
		must(t, r.Project(log))
		for name, sub := range map[string]Subject{"corp|unwritten": unwritten, "corp|written": written} {
			if got := person1(t, r, name); got.ID != sub.ID || got.Key != sub.Key || got.Birth != nil {
				t.Errorf("%s changed", name)
			}
		}
		if got := anon(t, r, "192.0.2.0/24", noon); got.ID != stranger.ID || got.Key != stranger.Key {
			t.Error("stranger changed")
		}
		if ids := value[[]ID](t)(r.Lookup(FieldClaimed, "mallory")); len(ids) != 1 {
			t.Errorf("claim leads to %v", ids)
		}
	}
	check(t, s, w)
	// A log from a later epoch means that the store is older: no guessing.
	late := value[birth](t)(parseBirth(written.Birth))
	late.key, late.inner = slices.Clone(late.key), slices.Clone(late.inner)
	late.key[4], late.inner[4] = 9, 9
	wantErr(t, r.Project([][]byte{late.encode()}), ErrKeyUnavailable)
}

// Rows are moved in pages; the walk must neither skip nor repeat any.
func TestRewrapPages(t *testing.T) {
	r, s, w := newRing(t)
	const n = 3*rewrapPage + 7
	var log [][]byte
	subs := make([]Subject, n)
	for i := range subs {
		subs[i] = person1(t, r, fmt.Sprint("corp|", i))
		log = append(log, subs[i].Birth)
		r.Written(subs[i].Birth)
	}
	must(t, r.Project(log))
	for range 2 {
		must(t, r.Rewrap(t.Context()))
		if rows := check(t, s, w); rows != n {
			t.Fatalf("%d rows", rows)
		}
	}
	r2 := reopen(t, s, w)
	for i, sub := range subs {
		if got := person1(t, r2, fmt.Sprint("corp|", i)); got.ID != sub.ID || got.Key != sub.Key {
			t.Fatalf("person %d changed", i)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	wantErr(t, r.Rewrap(ctx), context.Canceled)
	must(t, r.Rewrap(t.Context()))
	check(t, s, w)
}

// Everything at once, on the real store and the real wrapper.
func TestConcurrentUse(t *testing.T) {
	ctx := t.Context()
	dir := t.TempDir()
	s := value[Store](t)(OpenBolt(filepath.Join(dir, "keys.db"), false))
	w := value[*FileWrapper](t)(CreateFileWrapper(filepath.Join(dir, "wrap")))
	r := value[*Ring](t)(Create(ctx, s, w, WithPeople(16), WithSubjectKeys(16)))
	var mu sync.Mutex
	ids := make(map[string]Subject)
	var wg sync.WaitGroup
	for g := range 3 {
		wg.Go(func() {
			for i := range 120 {
				name := fmt.Sprint("corp|", (i*7+g)%60)
				sub, err := r.Person(name)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if old, ok := ids[name]; ok && (old.ID != sub.ID || old.Key != sub.Key) {
					t.Errorf("%s has two subjects", name)
				}
				ids[name] = sub
				mu.Unlock()
				a, err := r.Anonymous(name, noon.Add(time.Duration(i)*time.Hour))
				if err != nil {
					t.Error(err)
					return
				}
				c, err := r.Claimed(name, a, noon)
				if err != nil {
					t.Error(err)
				}
				for _, b := range [][]byte{sub.Birth, a.Birth, c} {
					r.Written(b)
				}
				if key, err := r.SubjectKey(sub.ID); err != nil || key != sub.Key {
					t.Errorf("%s: key %v, %v", name, key == sub.Key, err)
				}
			}
		})
	}
	wg.Go(func() {
		for range 3 {
			if err := r.Rewrap(ctx); err != nil {
				t.Error(err)
			}
		}
	})
	wg.Go(func() {
		for i := range 6 {
			if err := r.Project(r.Pending()); err != nil {
				t.Error(err)
			}
			id, _, err := r.NewKey(KindWAL)
			if err == nil {
				err = r.Destroy(KindWAL, id)
			}
			if err == nil {
				err = r.DropDay(noon.Add(-time.Duration(i) * 24 * time.Hour))
			}
			if err == nil {
				_, err = r.Lookup(FieldIdentity, "corp|1")
			}
			if err != nil {
				t.Error(err)
			}
		}
	})
	wg.Wait()
	must(t, r.Project(r.Pending()))
	check(t, s, w)
	r = reopen(t, s, w)
	for name, sub := range ids {
		if got := person1(t, r, name); got.ID != sub.ID || got.Key != sub.Key {
			t.Errorf("%s changed", name)
		}
	}
	must(t, s.Close())
}
