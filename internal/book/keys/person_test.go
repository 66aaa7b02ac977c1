package keys

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
)

func TestPersonLife(t *testing.T) {
	r, s, w := newRing(t)
	a := person1(t, r, "corp|alice")
	b := person1(t, r, "corp|bob")
	if a.ID == b.ID || a.Key == b.Key || a.Pseudonym != a.ID.String() {
		t.Fatal("subjects are not their own")
	}
	if bytes.Contains(a.Birth, []byte("alice")) || bytes.Contains(a.Birth, a.Key[:]) {
		t.Error("the birth holds a name or a key in clear")
	}
	// Until written, every resolution carries the birth.
	if again := person1(t, r, "corp|alice"); again.ID != a.ID || again.Key != a.Key || !bytes.Equal(again.Birth, a.Birth) {
		t.Error("second sight differs")
	}
	if len(r.Pending()) != 0 {
		t.Error("pending before written")
	}
	r.Written(a.Birth)
	r.Written(a.Birth)
	r.Written(nil)
	if again := person1(t, r, "corp|alice"); again.ID != a.ID || again.Key != a.Key || again.Birth != nil {
		t.Error("a written subject is not resolved plainly")
	}
	if p := r.Pending(); len(p) != 1 || !bytes.Equal(p[0], a.Birth) {
		t.Errorf("%d pending", len(p))
	}
	if value[Key](t)(r.SubjectKey(a.ID)) != a.Key || value[Key](t)(r.SubjectKey(b.ID)) != b.Key {
		t.Error("newborn keys are not found by id")
	}
	if got := check(t, s, w); got != 0 {
		t.Errorf("%d rows before projection", got)
	}
	must(t, r.Project(r.Pending()))
	must(t, r.Project([][]byte{a.Birth, a.Birth}))
	if len(r.Pending()) != 0 {
		t.Error("pending after projection")
	}
	if got := check(t, s, w); got != 1 {
		t.Errorf("%d rows", got)
	}
	// After a restart alice is known; bob, never written, is not.
	r2 := reopen(t, s, w)
	if again := person1(t, r2, "corp|alice"); again.ID != a.ID || again.Key != a.Key || again.Birth != nil {
		t.Error("alice changed over a restart")
	}
	if again := person1(t, r2, "corp|bob"); again.ID == b.ID || again.Birth == nil {
		t.Error("bob was remembered without a birth in the log")
	}
	if value[Key](t)(r2.SubjectKey(a.ID)) != a.Key {
		t.Error("key by id changed")
	}
	_, err := r2.SubjectKey(b.ID)
	wantErr(t, err, ErrKeyUnknown)
}

// Keys are random: two rings give one person unrelated keys.
func TestPersonKeysAreNotDerived(t *testing.T) {
	r, s, w := newRing(t)
	a1, a2 := person1(t, r, "corp|alice"), person1(t, reopen(t, s, w), "corp|alice")
	if a1.ID == a2.ID || a1.Key == a2.Key {
		t.Error("a key was derived from a name")
	}
}

func TestReplayRepairs(t *testing.T) {
	r, s, w := newRing(t)
	a := person1(t, r, "corp|alice")
	before := s.Snapshot()
	settle(t, r, a.Birth)

	// A store behind the WAL catches up.
	r2 := reopen(t, before, w)
	must(t, r2.Project([][]byte{a.Birth}))
	if got := person1(t, r2, "corp|alice"); got.ID != a.ID || got.Key != a.Key || got.Birth != nil {
		t.Error("replay did not bring alice back")
	}
	// A lost blind-index row is restored, and nothing else changes.
	must(t, s.Update(func(tx Tx) error {
		var rows [][]byte
		must(t, tx.ForEach(bucketBlind, func(k, _ []byte) error { rows = append(rows, bytes.Clone(k)); return nil }))
		for _, k := range rows {
			must(t, tx.Delete(bucketBlind, k))
		}
		return nil
	}))
	r3 := reopen(t, s, w)
	must(t, r3.Project([][]byte{a.Birth}))
	if got := person1(t, r3, "corp|alice"); got.ID != a.ID {
		t.Error("the blind index was not repaired")
	}
	if got := check(t, s, w); got != 1 {
		t.Errorf("%d rows", got)
	}
}

func TestProjectRefusesTampering(t *testing.T) {
	r, s, w := newRing(t)
	a, b := person1(t, r, "corp|alice"), person1(t, r, "corp|bob")
	for i := range a.Birth {
		bad := bytes.Clone(a.Birth)
		bad[i] ^= 4
		if err := r.Project([][]byte{bad}); err == nil {
			t.Errorf("accepted a flip in byte %d", i)
		}
	}
	if err := r.Project([][]byte{b.Birth, a.Birth[:20]}); !errors.Is(err, ErrBirth) {
		t.Errorf("cut birth: %v", err)
	}
	if got := check(t, s, w); got != 0 {
		t.Errorf("%d rows of refused calls", got)
	}
	settle(t, r, a.Birth)
	// Another key under a known id is not a repetition.
	_, other := random()
	pb := value[birth](t)(parseBirth(a.Birth))
	pb.key = r.state.Load().current.seal(KindSubject, a.ID, &other)
	wantErr(t, r.Project([][]byte{pb.encode()}), ErrKeyDamaged)
	if value[Key](t)(reopen(t, s, w).SubjectKey(a.ID)) != a.Key {
		t.Error("a stored key was replaced")
	}
}

func TestFirstSightsAreOne(t *testing.T) {
	r, s, w := newRing(t)
	const people, goroutines = 20, 8
	got := make([][people]Subject, goroutines)
	var wg sync.WaitGroup
	for g := range goroutines {
		wg.Go(func() {
			for i := range people {
				sub, err := r.Person(fmt.Sprintf("corp|%d", (i+g)%people))
				if err != nil {
					t.Error(err)
				}
				got[g][(i+g)%people] = sub
				if g%2 == 0 { // some births move on to the store meanwhile
					r.Written(sub.Birth)
					if err := r.Project(r.Pending()); err != nil {
						t.Error(err)
					}
				}
			}
		})
	}
	wg.Wait()
	for i := range people {
		for g := range goroutines {
			if got[g][i].ID != got[0][i].ID || got[g][i].Key != got[0][i].Key {
				t.Fatalf("person %d has two subjects", i)
			}
		}
	}
	must(t, r.Project(r.Pending()))
	if rows := check(t, s, w); rows != people {
		t.Errorf("%d rows", rows)
	}
}

func TestPersonFailsClosed(t *testing.T) {
	r, s, _ := newRing(t)
	a := person1(t, r, "corp|alice")
	settle(t, r, a.Birth)
	boom := errors.New("boom")
	s.Fault = func(string) (bool, error) { return false, boom }
	sub, err := r.Person("corp|bob")
	wantErr(t, err, boom)
	if sub.Key != (Key{}) || sub.Birth != nil {
		t.Error("a key came with the error")
	}
	if got := person1(t, r, "corp|alice"); got.ID != a.ID {
		t.Error("a remembered person needs the store")
	}
	for _, bad := range []string{"", strings.Repeat("x", maxValue+1)} {
		if _, err := r.Person(bad); err == nil {
			t.Errorf("accepted a name of %d bytes", len(bad))
		}
	}
}

func TestPeopleCacheIsBounded(t *testing.T) {
	s, w := NewMemStore(), newTestWrapper()
	r := value[*Ring](t)(Create(t.Context(), s, w, WithPeople(32), WithSubjectKeys(32)))
	ids := make(map[string]ID)
	for i := range 200 {
		name := fmt.Sprint("corp|", i)
		sub := person1(t, r, name)
		ids[name] = sub.ID
		settle(t, r, sub.Birth)
		value[Key](t)(r.SubjectKey(sub.ID))
	}
	if n := cached(r.people); n > 32 {
		t.Errorf("%d people remembered", n)
	}
	if n := cached(r.subjects); n > 32 {
		t.Errorf("%d keys remembered", n)
	}
	for name, id := range ids {
		if got := person1(t, r, name); got.ID != id || got.Birth != nil {
			t.Fatalf("%s changed when forgotten", name)
		}
	}
}

func cached[V any](c *clock[V]) (n int) {
	c.removeIf(func(*V) bool { n++; return false })
	return n
}

func TestBirthsAreBounded(t *testing.T) {
	r, _, _ := newRing(t)
	a := person1(t, r, "corp|alice")
	for i := len(r.births.byRaw); i < maxBirths; i++ {
		r.births.byRaw[fmt.Sprint(i)] = new(newborn)
	}
	_, err := r.Person("corp|bob")
	wantErr(t, err, ErrBacklog)
	if got := person1(t, r, "corp|alice"); got.ID != a.ID {
		t.Error("a known newborn needs room")
	}
	settle(t, r, a.Birth)
	person1(t, r, "corp|bob")
}

// The steps of an erasure, with the births of the WAL replayed after each.
func TestErasure(t *testing.T) {
	for _, projected := range []bool{false, true} {
		t.Run(fmt.Sprint("projected ", projected), func(t *testing.T) {
			r, s, w := newRing(t)
			a := person1(t, r, "corp|alice")
			log := [][]byte{a.Birth}
			r.Written(a.Birth)
			if projected {
				must(t, r.Project(r.Pending()))
			}
			ids := value[[]ID](t)(r.Lookup(FieldIdentity, "corp|alice"))
			if len(ids) != 1 || ids[0] != a.ID {
				t.Fatalf("lookup gave %v", ids)
			}
			must(t, r.Unbind(ids...))
			a2 := person1(t, r, "corp|alice")
			if a2.ID == a.ID || a2.Birth == nil {
				t.Error("an unbound person keeps the subject")
			}
			if value[Key](t)(r.SubjectKey(a.ID)) != a.Key {
				t.Error("unbinding took the key already")
			}
			log = append(log, a2.Birth)
			settle(t, r, a2.Birth)

			r = reopen(t, s, w)
			must(t, r.Project(log))
			if got := person1(t, r, "corp|alice"); got.ID != a2.ID {
				t.Error("replay bound the old subject again")
			}
			if ids := value[[]ID](t)(r.Lookup(FieldIdentity, "corp|alice")); projected != (len(ids) == 2) {
				t.Errorf("lookup between the steps gave %v", ids)
			}
			n := value[int](t)(r.ForgetSubject(a.ID))
			if projected != (n == 1) {
				t.Errorf("%d rows deleted", n)
			}
			must(t, r.Destroy(KindSubject, a.ID))
			must(t, r.Project(log))
			for _, r := range []*Ring{r, reopen(t, s, w)} {
				must(t, r.Project(log))
				_, err := r.SubjectKey(a.ID)
				wantErr(t, err, ErrKeyDestroyed)
				if ids := value[[]ID](t)(r.Lookup(FieldIdentity, "corp|alice")); len(ids) != 1 || ids[0] != a2.ID {
					t.Errorf("lookup after the erasure gave %v", ids)
				}
				if got := person1(t, r, "corp|alice"); got.ID != a2.ID {
					t.Error("new subject lost")
				}
			}
			check(t, s, w)
			if n := value[int](t)(r.ForgetValue(FieldIdentity, "corp|alice")); n != 1 {
				t.Errorf("ForgetValue deleted %d rows", n)
			}
			if got := person1(t, r, "corp|alice"); got.ID == a2.ID {
				t.Error("a forgotten name still resolves")
			}
		})
	}
}

func TestDestroyNewborn(t *testing.T) {
	r, s, w := newRing(t)
	a := person1(t, r, "corp|alice")
	must(t, r.Destroy(KindSubject, a.ID))
	_, err := r.SubjectKey(a.ID)
	wantErr(t, err, ErrKeyDestroyed)
	settle(t, r, a.Birth)
	if got := person1(t, r, "corp|alice"); got.ID == a.ID {
		t.Error("a destroyed subject is resolved")
	}
	_, err = reopen(t, s, w).SubjectKey(a.ID)
	wantErr(t, err, ErrKeyDestroyed)
	unknown, _ := random()
	wantErr(t, r.Unbind(unknown), ErrKeyUnknown)
	_, err = r.ForgetSubject(unknown)
	wantErr(t, err, ErrKeyUnknown)
}
