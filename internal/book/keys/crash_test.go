package keys

import (
	"context"
	"errors"
	"fmt"
	"testing"
)

var errCut = errors.New("power cut")

// cut makes the nth effect on store and wrapper together fail, before or
// after it took place, and everything after it.
type cut struct {
	at    int
	apply bool
	n     int
}

func (c *cut) arm(s *MemStore, w *testWrapper) {
	s.Fault = func(op string) (bool, error) {
		if op == "view" {
			if c.n > c.at {
				return false, errCut
			}
			return false, nil
		}
		c.n++
		switch {
		case c.n-1 < c.at:
			return false, nil
		case c.n-1 == c.at:
			return c.apply, errCut
		}
		return false, errCut
	}
	w.fault = func(op string) error {
		// "before" and "after" are one step each; "wrap" changes nothing.
		c.n++
		if c.n-1 >= c.at {
			return errCut
		}
		return nil
	}
}

func (c *cut) disarm(s *MemStore, w *testWrapper) { s.Fault, w.fault = nil, nil }

// sweep runs act against a fresh world for every step at which it can be cut,
// then verify on what is left. The world of a run that was not cut ends it.
func sweep(t *testing.T, world func(t *testing.T) (*MemStore, *testWrapper), act func(s *MemStore, w *testWrapper) error,
	verify func(t *testing.T, s *MemStore, w *testWrapper)) {
	t.Helper()
	steps := 0
	for _, apply := range []bool{false, true} {
		for at := 0; ; at++ {
			s, w := world(t)
			c := &cut{at: at, apply: apply}
			c.arm(s, w)
			err := act(s, w)
			c.disarm(s, w)
			if c.n <= at {
				must(t, err)
				if at == 0 {
					t.Fatal("nothing to cut")
				}
				steps += at
				break
			}
			if err == nil {
				t.Fatalf("cut at %d, apply %v, went unnoticed", at, apply)
			}
			t.Run(fmt.Sprintf("cut %d apply %v", at, apply), func(t *testing.T) { verify(t, s.Snapshot(), w) })
		}
	}
	t.Logf("%d cuts", steps)
}

func TestCreateCut(t *testing.T) {
	world := func(*testing.T) (*MemStore, *testWrapper) { return NewMemStore(), newTestWrapper() }
	act := func(s *MemStore, w *testWrapper) error { _, err := Create(context.Background(), s, w); return err }
	sweep(t, world, act, func(t *testing.T, s *MemStore, w *testWrapper) {
		r, err := Open(t.Context(), s, w)
		if errors.Is(err, ErrNotCreated) {
			r, err = Create(t.Context(), s, w)
		}
		must(t, err)
		settle(t, r, person1(t, r, "corp|alice").Birth)
		check(t, s, w)
	})
}

// populated returns a store with people, a day, claims, a tombstone and an
// unbound person; want tells what must stay true of it.
func populated(t *testing.T) (s *MemStore, w *testWrapper, want func(t *testing.T, r *Ring)) {
	t.Helper()
	r, s, w := newRing(t)
	people := make(map[string]Subject)
	for i := range 5 {
		name := fmt.Sprint("corp|", i)
		people[name] = person1(t, r, name)
		settle(t, r, people[name].Birth)
	}
	gone := person1(t, r, "corp|gone")
	settle(t, r, gone.Birth)
	must(t, r.Destroy(KindSubject, gone.ID))
	unbound := person1(t, r, "corp|unbound")
	settle(t, r, unbound.Birth)
	must(t, r.Unbind(unbound.ID))
	a := anon(t, r, "192.0.2.0/24", noon)
	settle(t, r, a.Birth)
	settle(t, r, value[[]byte](t)(r.Claimed("mallory", a, noon)))
	wal, walKey, err := r.NewKey(KindWAL)
	must(t, err)
	seed := value[[32]byte](t)(r.SigningSeed())
	sys := r.System()
	return s, w, func(t *testing.T, r *Ring) {
		t.Helper()
		for name, p := range people {
			if got := person1(t, r, name); got.ID != p.ID || got.Key != p.Key || got.Birth != nil {
				t.Errorf("%s changed", name)
			}
		}
		_, err := r.SubjectKey(gone.ID)
		wantErr(t, err, ErrKeyDestroyed)
		if value[Key](t)(r.SubjectKey(unbound.ID)) != unbound.Key {
			t.Error("unbound key changed")
		}
		if person1(t, r, "corp|unbound").ID == unbound.ID {
			t.Error("unbound person bound again")
		}
		if got := anon(t, r, "192.0.2.0/24", noon); got.ID != a.ID || got.Key != a.Key || got.Pseudonym != a.Pseudonym {
			t.Error("anonymous subject changed")
		}
		if ids := value[[]ID](t)(r.Lookup(FieldClaimed, "mallory")); len(ids) != 1 || ids[0].String() != a.Pseudonym {
			t.Errorf("claim leads to %v", ids)
		}
		if ids := value[[]ID](t)(r.Lookup(FieldIdentity, "corp|3")); len(ids) != 1 || ids[0] != people["corp|3"].ID {
			t.Errorf("identity leads to %v", ids)
		}
		if value[Key](t)(r.Key(KindWAL, wal)) != walKey || value[[32]byte](t)(r.SigningSeed()) != seed || r.System().Key != sys.Key {
			t.Error("a key changed")
		}
	}
}

func TestRewrapCut(t *testing.T) {
	var want func(*testing.T, *Ring)
	world := func(t *testing.T) (s *MemStore, w *testWrapper) {
		s, w, want = populated(t)
		return s, w
	}
	act := func(s *MemStore, w *testWrapper) error {
		ctx := context.Background()
		r, err := Open(ctx, s, w)
		if err != nil {
			return err
		}
		if err := r.Project(nil); err != nil {
			return err
		}
		if err := r.Rewrap(ctx); err != nil {
			return err
		}
		return r.DestroyEpoch(ctx, 1)
	}
	sweep(t, world, act, func(t *testing.T, s *MemStore, w *testWrapper) {
		want(t, reopen(t, s, w))
		check(t, s, w)
		// It can be finished, and then nothing depends on the first epoch.
		r := reopen(t, s, w)
		if r.Epoch() == 1 || len(r.state.Load().blind) > 1 {
			must(t, r.Rewrap(t.Context()))
		}
		must(t, r.Project(nil))
		for _, n := range value[[]uint32](t)(r.Retired()) {
			must(t, r.DestroyEpoch(t.Context(), n))
		}
		w.mu.Lock()
		_, alive := w.roots[1]
		w.mu.Unlock()
		if alive || r.Epoch() < 2 {
			t.Errorf("epoch %d, the first alive: %v", r.Epoch(), alive)
		}
		want(t, r)
		want(t, reopen(t, s, w))
		check(t, s, w)
	})
}

// The same ring goes on after a failed Rewrap, whatever the store kept.
func TestRewrapRetriedInProcess(t *testing.T) {
	for _, apply := range []bool{false, true} {
		for at := range 20 {
			s, w, want := populated(t)
			r := reopen(t, s, w)
			c := &cut{at: at, apply: apply}
			c.arm(s, w)
			err := r.Rewrap(t.Context())
			c.disarm(s, w)
			if err != nil {
				wantErr(t, err, errCut)
			}
			want(t, r)
			late := person1(t, r, "corp|late")
			settle(t, r, late.Birth)
			must(t, r.Rewrap(t.Context()))
			want(t, r)
			r = reopen(t, s, w)
			want(t, r)
			if got := person1(t, r, "corp|late"); got.ID != late.ID {
				t.Error("a person born between was lost")
			}
		}
	}
}

func TestErasureStepsCut(t *testing.T) {
	var alice Subject
	world := func(t *testing.T) (*MemStore, *testWrapper) {
		r, s, w := newRing(t)
		alice = person1(t, r, "corp|alice")
		settle(t, r, alice.Birth)
		return s, w
	}
	steps := func(s *MemStore, w *testWrapper) error {
		r, err := Open(context.Background(), s, w)
		if err != nil {
			return err
		}
		if err := r.Unbind(alice.ID); err != nil {
			return err
		}
		if _, err := r.ForgetSubject(alice.ID); err != nil {
			return err
		}
		return r.Destroy(KindSubject, alice.ID)
	}
	sweep(t, world, steps, func(t *testing.T, s *MemStore, w *testWrapper) {
		check(t, s, w)
		must(t, reopen(t, s, w).Project([][]byte{alice.Birth})) // replay
		must(t, steps(s, w))                                    // resumed
		r := reopen(t, s, w)
		must(t, r.Project([][]byte{alice.Birth}))
		_, err := r.SubjectKey(alice.ID)
		wantErr(t, err, ErrKeyDestroyed)
		if ids := value[[]ID](t)(r.Lookup(FieldIdentity, "corp|alice")); len(ids) != 0 {
			t.Errorf("still indexed: %v", ids)
		}
	})
}

func TestProjectCut(t *testing.T) {
	var births [][]byte
	var subs []Subject
	world := func(t *testing.T) (*MemStore, *testWrapper) {
		r, s, w := newRing(t)
		births, subs = nil, nil
		for i := range 2*projectPage + 10 {
			subs = append(subs, person1(t, r, fmt.Sprint("corp|", i)))
			births = append(births, subs[i].Birth)
		}
		return s, w
	}
	act := func(s *MemStore, w *testWrapper) error {
		r, err := Open(context.Background(), s, w)
		if err != nil {
			return err
		}
		return r.Project(births)
	}
	sweep(t, world, act, func(t *testing.T, s *MemStore, w *testWrapper) {
		r := reopen(t, s, w)
		must(t, r.Project(births))
		for i, sub := range subs {
			if got := person1(t, r, fmt.Sprint("corp|", i)); got.ID != sub.ID || got.Key != sub.Key {
				t.Fatalf("person %d changed", i)
			}
		}
		if rows := check(t, s, w); rows != len(subs) {
			t.Errorf("%d rows", rows)
		}
	})
}
