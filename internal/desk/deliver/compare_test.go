package deliver

import (
	"context"
	"maps"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// findable is a double that can be asked for what it holds.
type findable struct {
	*double
	lose  map[uint64]int // how many copies of an index it has lost, though it took them
	more  []string       // ids that it holds beside
	fail  error
	finds []Window
}

func (f *findable) Find(_ context.Context, w Window, fn func(string) error) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.finds = append(f.finds, w)
	if f.fail != nil {
		return f.fail
	}
	for i := w.From - min(w.From, 5); i < w.To+5; i++ { // and a little more than was asked for
		id := EventID(w.Origin, i)
		for range f.taken[id] - f.lose[i] {
			if err := fn(id); err != nil {
				return err
			}
		}
	}
	for _, id := range f.more {
		if err := fn(id); err != nil {
			return err
		}
	}
	return nil
}

func (f *findable) searches() int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.finds)
}

func comparedHouse(t *testing.T, signed uint64) (*house, *findable) {
	h := newHouse(t, signed, 50)
	f := &findable{double: h.sink, lose: map[uint64]int{}}
	h.as = f
	h.conf.CompareItems, h.conf.CompareEvery, h.conf.CompareAfter = 200, time.Hour, 2*time.Minute
	return h, f
}

// What a sink took and lost is found, sent again and looked for once more.
func TestCompareFindsWhatIsMissing(t *testing.T) {
	in(t, 0, 1, func(t *testing.T, _ *house) {
		h, f := comparedHouse(t, 500)
		h.sink.script = script(Durable, trouble{index: 77, times: -1, class: Poison})
		f.lose = map[uint64]int{3: 1, 150: 1, 199: 1}
		f.more = []string{EventID(testOrigin, 9), EventID(testOrigin, 99_999), EventID("other", 7), "something else", EventID(testOrigin, 10) + "x"}
		for _, i := range []uint64{3, 150, 199} {
			h.sink.twiceOK[EventID(testOrigin, i)] = true
		}
		h.start()
		h.until(10*time.Minute, "it was compared once", func() bool { return len(h.book.noted("compared")) > 0 })
		r := h.book.noted("compared")[0]
		if r.Outcome != "failure" || r.Event.Cause != "missing" || r.Event.Count != 199 || r.Event.Exact ||
			!slices.Equal(r.Links, []string{"first:0", "last:199", "missing:3", "extra:2", "duplicate:1"}) {
			t.Errorf("%+v", r)
		}
		if s := h.status(); s.Missing != 3 || len(s.Alarms) != 2 || h.eng.Low() != 0 {
			t.Errorf("%+v, low %d", s, h.eng.Low())
		}
		h.until(20*time.Minute, "the first window is whole", func() bool { return h.stored().Compared >= 200 })
		if s := h.status(); s.Missing != 0 {
			t.Errorf("%d are missing still", s.Missing)
		}
		h.until(20*time.Minute, "the second window is whole", func() bool { return h.stored().Compared >= 400 })
		time.Sleep(30 * time.Minute)
		if c := h.stored().Compared; c != 400 {
			t.Errorf("a window that is not full was compared early: %d", c)
		}
		h.until(2*time.Hour, "the rest is compared after an hour", func() bool { return h.stored().Compared == 500 })
		h.end()
		h.oracle()
		for i, w := range f.finds {
			if w.To-w.From > 200 || w.Since != h.book.timeOf(w.From).UTC().Truncate(time.Microsecond) || w.Until.Before(w.Since) {
				t.Errorf("search %d: %+v", i, w)
			}
		}
		if n := h.sink.taken[EventID(testOrigin, 150)]; n != 2 {
			t.Errorf("the record that was lost arrived %d times", n)
		}
	})
}

// The record of a comparison is kept before the state says that it was made: a
// kill between makes it again.
func TestCompareIsRecordedFirst(t *testing.T) {
	in(t, 0, 1, func(t *testing.T, _ *house) {
		h, _ := comparedHouse(t, 400)
		h.book.noting = func(r *record.Record) error {
			if r.Event.Name == "compared" && !slices.Contains(r.Links, link("first", h.stored().Compared)) {
				t.Errorf("the state says %d before the record is kept: %q", h.stored().Compared, r.Links)
			}
			return nil
		}
		h.start()
		h.until(time.Hour, "both windows are compared", func() bool { return h.stored().Compared == 400 })
		h.end()
		if n := len(h.book.noted("compared")); n != 2 {
			t.Errorf("%d records", n)
		}
	})
}

// A search that fails is repeated later and proves nothing.
func TestCompareFails(t *testing.T) {
	in(t, 0, 1, func(t *testing.T, _ *house) {
		h, f := comparedHouse(t, 200)
		f.fail = errFault
		h.start()
		time.Sleep(time.Hour)
		if h.stored().Compared != 0 || f.searches() < 5 || f.searches() > 15 || len(h.book.noted("compared")) > 0 {
			t.Errorf("compared up to %d after %d searches", h.stored().Compared, f.searches())
		}
		f.mu.Lock()
		f.fail = nil
		f.mu.Unlock()
		h.until(10*time.Minute, "it is compared", func() bool { return h.stored().Compared == 200 })
		h.end()
		if r := h.book.noted("compared"); len(r) != 1 || !r[0].Event.Exact || r[0].Event.Cause != "complete" {
			t.Errorf("%+v", r)
		}
	})
}

// The lowest index in quarantine is what a look at all of them would find.
func TestJailLowest(t *testing.T) {
	j := jail{index: map[uint64]struct{}{}}
	rnd := rand.New(rand.NewPCG(1, 2))
	for range 5000 {
		if i := rnd.Uint64N(40); rnd.IntN(2) == 0 {
			j.add(i)
		} else {
			j.remove(i)
		}
		if rnd.IntN(3) == 0 {
			continue
		}
		want, have := slices.Min(append(slices.Collect(maps.Keys(j.index)), math.MaxUint64)), len(j.index) > 0
		if low, ok := j.lowest(); ok != have || ok && low != want {
			t.Fatalf("lowest of %v: %d, %v", j.index, low, ok)
		}
	}
}

// What a sink drops for good is sent again and again, but more and more seldom.
func TestCompareBacksOff(t *testing.T) {
	in(t, 0, 1, func(t *testing.T, _ *house) {
		h, f := comparedHouse(t, 200)
		f.lose[20] = 1 << 30
		h.start()
		time.Sleep(10 * 24 * time.Hour)
		n := len(h.book.noted("compared"))
		if n < 12 || n > 22 || h.sink.taken[EventID(testOrigin, 20)] > 23 {
			t.Errorf("%d comparisons, %d copies", n, h.sink.taken[EventID(testOrigin, 20)])
		}
		h.end()
	})
}

// A record that is missing again and again is never given up.
func TestCompareNeverGivesUp(t *testing.T) {
	in(t, 0, 1, func(t *testing.T, _ *house) {
		h, f := comparedHouse(t, 200)
		f.lose[20] = 4
		h.sink.twiceOK[EventID(testOrigin, 20)] = true
		h.start()
		h.until(2*time.Hour, "it is compared", func() bool { return h.stored().Compared == 200 })
		h.end()
		if n := len(h.book.noted("compared")); n != 5 || h.sink.taken[EventID(testOrigin, 20)] != 5 {
			t.Errorf("%d comparisons, %d copies", n, h.sink.taken[EventID(testOrigin, 20)])
		}
	})
}

// What was waived is not missing: a comparison neither counts it nor sends it again,
// also after a kill, and it is remembered no longer than that.
func TestCompareLeavesOutWhatIsWaived(t *testing.T) {
	in(t, 0, 1, func(t *testing.T, _ *house) {
		ctx := context.Background()
		h, _ := comparedHouse(t, 200)
		bad := true
		h.refuser(&bad, 77, 78)
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.jailIs(77, 78)
		_, err := h.eng.Waive(ctx, anna, "s", []string{EventID(testOrigin, 77)}, "test traffic")
		h.must(err)
		h.crash()
		h.start()
		h.until(time.Minute, "it runs", func() bool { return h.status().State == Running })
		_, err = h.eng.Waive(ctx, anna, "s", []string{EventID(testOrigin, 78)}, "test traffic")
		h.must(err)
		h.until(time.Hour, "it is compared", func() bool { return h.stored().Compared == 200 })
		h.end()
		list := h.book.noted("compared")
		if len(list) != 1 || list[0].Event.Count != 198 || !list[0].Event.Exact || list[0].Event.Cause != "complete" {
			t.Errorf("%+v", list)
		}
		h.jailIs()
		for key := range h.disk.m {
			if key[0] == waivedTable {
				t.Errorf("%s is remembered still", key[1])
			}
		}
	})
}

// A record that came out of the quarantine is looked for when the sink must be able to
// find it, not before.
func TestCompareWaitsForWhatWasRequeued(t *testing.T) {
	in(t, 0, 1, func(t *testing.T, _ *house) {
		ctx := context.Background()
		h, f := comparedHouse(t, 200)
		bad := true
		h.refuser(&bad, 77)
		h.conf.CompareEvery = 10 * time.Minute
		h.start()
		h.until(time.Minute, "one is in quarantine", func() bool { return h.status().Quarantine == 1 })
		h.must(h.eng.Pause(ctx, anna, "s")) // so that the comparison is due when it is delivered
		time.Sleep(time.Hour)
		h.sink.with(func() { bad = false })
		f.mu.Lock()
		f.lose[77] = 1 // not to be found yet
		f.mu.Unlock()
		time.AfterFunc(90*time.Second, func() { f.with(func() { f.lose[77] = 0 }) })
		_, err := h.eng.Requeue(ctx, anna, "s", nil)
		h.must(err)
		h.must(h.eng.Resume(ctx, anna, "s"))
		h.until(time.Hour, "it is compared", func() bool { return h.stored().Compared == 200 })
		h.end()
		h.oracle()
		if list := h.book.noted("compared"); len(list) != 1 || list[0].Event.Count != 200 {
			t.Errorf("%+v", list)
		}
	})
}
