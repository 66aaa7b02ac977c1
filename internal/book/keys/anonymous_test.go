package keys

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"
)

var noon = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)

func anon(t testing.TB, r *Ring, prefix string, at time.Time) Subject {
	t.Helper()
	return value[Subject](t)(r.Anonymous(prefix, at))
}

func TestAnonymousIsBounded(t *testing.T) {
	r, s, w := newRing(t)
	pseudonyms := make(map[string]string)
	keysSeen := make(map[ID]Key)
	births := make(map[string]bool)
	for i := range 5000 {
		prefix := fmt.Sprintf("10.%d.%d.0/24", i/256, i%256)
		sub := anon(t, r, prefix, noon.Add(time.Duration(i)*time.Second))
		if _, err := ParseID(sub.Pseudonym); err != nil || sub.Pseudonym == sub.ID.String() {
			t.Fatalf("pseudonym %q of key %v: %v", sub.Pseudonym, sub.ID, err)
		}
		if key, ok := keysSeen[sub.ID]; ok && key != sub.Key {
			t.Fatal("one id, two keys")
		}
		pseudonyms[prefix], keysSeen[sub.ID] = sub.Pseudonym, sub.Key
		if sub.Birth != nil {
			births[string(sub.Birth)] = true
		}
		r.Written(sub.Birth)
	}
	if len(keysSeen) != 256 || len(births) != 256 {
		t.Errorf("%d keys, %d births", len(keysSeen), len(births))
	}
	distinct := make(map[string]bool)
	for _, p := range pseudonyms {
		distinct[p] = true
	}
	if len(distinct) != 5000 {
		t.Errorf("%d pseudonyms for 5000 prefixes", len(distinct))
	}
	must(t, r.Project(r.Pending()))
	// The same over a restart.
	r2 := reopen(t, s, w)
	for prefix, p := range pseudonyms {
		sub := anon(t, r2, prefix, noon)
		if sub.Pseudonym != p || sub.Birth != nil || keysSeen[sub.ID] != sub.Key {
			t.Fatalf("%s changed over a restart", prefix)
		}
	}
	if got := anon(t, r2, "10.0.0.0/24", noon.Add(24*time.Hour)); got.Pseudonym == pseudonyms["10.0.0.0/24"] || got.Birth == nil {
		t.Error("the next day is not a new day")
	}
	check(t, s, w)
}

// Buckets born but not yet projected survive the day's leaving memory.
func TestAnonymousDaysHeld(t *testing.T) {
	r, _, _ := newRing(t)
	first := anon(t, r, "192.0.2.0/24", noon)
	for i := range 6 {
		anon(t, r, "192.0.2.0/24", noon.Add(time.Duration(i)*24*time.Hour))
	}
	if len(r.days) > daysHeld || r.days[mustDay(noon)] != nil {
		t.Errorf("%d days held", len(r.days))
	}
	again := anon(t, r, "192.0.2.0/24", noon)
	if again.ID != first.ID || again.Key != first.Key || again.Pseudonym != first.Pseudonym || !bytes.Equal(again.Birth, first.Birth) {
		t.Error("a newborn bucket was forgotten with its day")
	}
}

func mustDay(at time.Time) uint32 {
	n, err := dayOf(at)
	if err != nil {
		panic(err)
	}
	return n
}

func TestAnonymousFailsClosed(t *testing.T) {
	r, s, _ := newRing(t)
	known := anon(t, r, "192.0.2.0/24", noon)
	r.Written(known.Birth)
	anon(t, r, "192.0.2.0/24", noon)
	boom := errors.New("boom")
	for _, apply := range []bool{false, true} {
		s.Fault = func(op string) (bool, error) { return apply, boom }
		next := noon.Add(24 * time.Hour)
		_, err := r.Anonymous("192.0.2.0/24", next)
		wantErr(t, err, boom)
		if got := anon(t, r, "192.0.2.0/24", noon); got.ID != known.ID {
			t.Error("a remembered prefix needs the store")
		}
		s.Fault = func(op string) (bool, error) {
			if op == "view" {
				return false, nil
			}
			return apply, boom
		}
		_, err = r.Anonymous("192.0.2.0/24", next)
		wantErr(t, err, boom)
		s.Fault = nil
		// What was persisted despite the error is what counts from now on.
		a := anon(t, r, "192.0.2.0/24", next)
		must(t, r.DropDay(next))
		if b := anon(t, r, "192.0.2.0/24", next); b.Pseudonym == a.Pseudonym {
			t.Error("a dropped day goes on")
		}
		must(t, r.DropDay(next))
	}
	for _, at := range []time.Time{time.Unix(-1, 0), time.Unix(secondsPerDay<<32, 0)} {
		if _, err := r.Anonymous("192.0.2.0/24", at); err == nil {
			t.Errorf("accepted %v", at)
		}
	}
	if _, err := r.Anonymous("", noon); err == nil {
		t.Error("accepted an empty prefix")
	}
}

func TestAnonymousConcurrent(t *testing.T) {
	r, s, w := newRing(t)
	var wg sync.WaitGroup
	got := make([]map[string]Subject, 4)
	for g := range got {
		got[g] = make(map[string]Subject)
		wg.Go(func() {
			for i := range 300 {
				prefix := fmt.Sprint(i)
				sub, err := r.Anonymous(prefix, noon)
				if err != nil {
					t.Error(err)
				}
				r.Written(sub.Birth)
				got[g][prefix] = sub
			}
		})
	}
	wg.Wait()
	for prefix, sub := range got[0] {
		for g := range got {
			if o := got[g][prefix]; o.ID != sub.ID || o.Pseudonym != sub.Pseudonym || o.Key != sub.Key {
				t.Fatalf("%s has two subjects", prefix)
			}
		}
	}
	must(t, r.Project(r.Pending()))
	check(t, s, w)
}

func TestDestroyedBucketIsReplaced(t *testing.T) {
	r, s, w := newRing(t)
	a := anon(t, r, "192.0.2.0/24", noon)
	settle(t, r, a.Birth)
	anon(t, r, "192.0.2.0/24", noon)
	must(t, r.Destroy(KindSubject, a.ID))
	b := anon(t, r, "192.0.2.0/24", noon)
	if b.ID == a.ID || b.Pseudonym != a.Pseudonym || b.Birth == nil {
		t.Error("the bucket has no new key")
	}
	settle(t, r, b.Birth)
	r2 := reopen(t, s, w)
	must(t, r2.Project([][]byte{a.Birth, b.Birth}))
	if c := anon(t, r2, "192.0.2.0/24", noon); c.ID != b.ID || c.Birth != nil {
		t.Error("the new key was lost over a restart")
	}
}

func TestClaimed(t *testing.T) {
	r, s, w := newRing(t, WithDayClaims(3))
	sub := anon(t, r, "192.0.2.0/24", noon)
	settle(t, r, sub.Birth)
	id := value[ID](t)(ParseID(sub.Pseudonym))
	claim := func(r *Ring, name string) []byte {
		t.Helper()
		return value[[]byte](t)(r.Claimed(name, sub, noon))
	}
	b := claim(r, "mallory")
	if b == nil || bytes.Contains(b, []byte("mallory")) || !bytes.Equal(b, claim(r, "mallory")) {
		t.Fatalf("birth of a claim: %x", b)
	}
	find := func(r *Ring) []ID { t.Helper(); return value[[]ID](t)(r.Lookup(FieldClaimed, "mallory")) }
	if !slices.Equal(find(r), []ID{id}) {
		t.Error("a claim under way is not found")
	}
	r.Written(b)
	if claim(r, "mallory") != nil {
		t.Error("a written claim is announced again")
	}
	must(t, r.Project(r.Pending()))
	if r2 := reopen(t, s, w); claim(r2, "mallory") != nil || !slices.Equal(find(r2), []ID{id}) {
		t.Error("claim lost over a restart")
	}
	if ids := value[[]ID](t)(r.Lookup(FieldIdentity, "mallory")); len(ids) != 0 {
		t.Error("a claim is found as an identity")
	}
	// The bound, and its mark.
	settle(t, r, claim(r, "one"))
	settle(t, r, claim(r, "two"))
	full := claim(r, "three")
	if value[birth](t)(parseBirth(full)).typ != birthFull || !bytes.Equal(full, claim(r, "four")) {
		t.Error("the bound is not marked")
	}
	settle(t, r, full)
	for _, r := range []*Ring{r, value[*Ring](t)(Open(t.Context(), s, w, WithDayClaims(3)))} {
		if claim(r, "five") != nil || claim(r, "mallory") != nil {
			t.Error("a full day goes on")
		}
		days := value[[]time.Time](t)(r.ClaimsFull())
		if len(days) != 1 || !days[0].Equal(noon.Truncate(24*time.Hour)) {
			t.Errorf("full days %v", days)
		}
	}
	// Erasure by name, and the day's end.
	if n := value[int](t)(r.ForgetValue(FieldClaimed, "mallory")); n != 1 || len(find(r)) != 0 {
		t.Errorf("%d rows deleted", n)
	}
	must(t, r.DropDay(noon))
	must(t, r.DropDay(noon))
	if got := check(t, s, w); got != 0 {
		t.Errorf("%d rows after the day was dropped", got)
	}
	if days := value[[]time.Time](t)(r.ClaimsFull()); len(days) != 0 {
		t.Errorf("full days %v", days)
	}
	// Births of a dropped day bring nothing back.
	must(t, r.Project([][]byte{b, sub.Birth}))
	if got := check(t, s, w); got != 0 {
		t.Errorf("replay brought back %d rows", got)
	}
	if _, err := r.Claimed("x", Subject{Pseudonym: "short"}, noon); err == nil {
		t.Error("accepted a pseudonym of 5 characters")
	}
}
