package deliver

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// trouble is one thing that goes wrong at the sink with batches that hold the
// record with this index.
type trouble struct {
	index uint64
	times int // how often; -1: always
	class Class
	item  bool // a result for each item; those of the others are Done
	took  bool // the batch, or the item, was taken all the same
	res   Result
	delta int           // so many results too many or too few
	wait  time.Duration // before the answer
	hang  bool          // no answer until the engine gives up
	panic bool
}

// script does what the troubles say, to each batch the first that is about it.
func script(grade Grade, list ...trouble) func(int, *Batch) act {
	list = slices.Clone(list)
	return func(_ int, b *Batch) act {
		for i := range list {
			t := &list[i]
			at := slices.IndexFunc(b.Items, func(it Item) bool { return it.Index == t.index })
			if at < 0 || t.times == 0 {
				continue
			}
			if t.times > 0 {
				t.times--
			}
			return t.act(b, at, grade)
		}
		return act{take: all, res: Result{Class: Done, Grade: grade}}
	}
}

func (t *trouble) act(b *Batch, at int, grade Grade) act {
	a := act{res: t.res, wait: t.wait, hang: t.hang, panic: t.panic}
	a.res.Class = t.class
	if t.took {
		a.take = all
	}
	if !t.item && t.delta == 0 {
		return a
	}
	one := a.res
	a.res = Result{Items: []Result{}}
	for i := range b.Items {
		r := Result{Class: Done, Grade: grade}
		if i == at && t.item {
			r = one
		}
		a.res.Items = append(a.res.Items, r)
	}
	if t.item {
		a.take = func(i int) bool { return i != at || t.took }
	}
	for range t.delta {
		a.res.Items = append(a.res.Items, Result{Class: Done, Grade: grade})
	}
	a.res.Items = a.res.Items[:max(len(a.res.Items)+min(t.delta, 0), 0)]
	return a
}

// scenario is one situation and what it must come to.
type scenario struct {
	name     string
	troubles []trouble
	inFlight int      // 1
	jail     []uint64 // what must be in quarantine in the end, and nothing else
	stubs    int64
	renewer  string // "new", "same", "error": the sink can read its credential again
	paused   bool   // the sink must have been paused once
	within   time.Duration
}

const faultItems, faultSigned = 8, 40

// renewable is a double whose credential can be read again.
type renewable struct {
	*double
	answer string
	asked  int
}

func (r *renewable) Renew() (bool, error) {
	r.asked++
	switch r.answer {
	case "error":
		return false, errFault
	case "new":
		return true, nil
	}
	return false, nil
}

// scenarios: every class at every position, once and repeated, with and without
// an ambiguous end, for batches and for items.
func scenarios() (out []scenario) {
	positions := map[string]uint64{"first": 0, "begin": 8, "middle": 19, "end": 15, "last": 39}
	names := []string{"first", "begin", "middle", "end", "last"}
	for _, inFlight := range []int{1, 3} {
		for _, pos := range names {
			at := positions[pos]
			add := func(what string, s scenario) {
				s.name = fmt.Sprintf("%s at %s, %d abreast", what, pos, inFlight)
				s.inFlight = inFlight
				out = append(out, s)
			}
			for _, times := range []int{1, 2, 7} {
				add(fmt.Sprintf("retry x%d", times), scenario{troubles: []trouble{{index: at, times: times, class: Retry, res: Result{Status: 503, Cause: "http_503"}}}})
				add(fmt.Sprintf("lost answer x%d, not taken", times), scenario{troubles: []trouble{{index: at, times: times, class: Retry, res: Result{Ambiguous: true, Cause: "reset"}}}})
				add(fmt.Sprintf("lost answer x%d, taken", times), scenario{troubles: []trouble{{index: at, times: times, class: Retry, took: true, res: Result{Ambiguous: true, Cause: "reset"}}}})
				add(fmt.Sprintf("item retry x%d", times), scenario{troubles: []trouble{{index: at, times: times, class: Retry, item: true, res: Result{Status: 429, Cause: "http_429"}}}})
				add(fmt.Sprintf("item ambiguous x%d, taken", times), scenario{troubles: []trouble{{index: at, times: times, class: Retry, item: true, took: true, res: Result{Ambiguous: true, Cause: "timeout"}}}})
			}
			add("retry after", scenario{troubles: []trouble{{index: at, times: 1, class: Retry, res: Result{Status: 429, Cause: "http_429", After: 20 * time.Second}}}})
			add("unknown class", scenario{troubles: []trouble{{index: at, times: 2, class: Class(77)}}})
			add("poison batch", scenario{troubles: []trouble{{index: at, times: -1, class: Poison, res: Result{Status: 400, Cause: "mapping"}}}, jail: []uint64{at}})
			add("poison item", scenario{troubles: []trouble{{index: at, times: -1, class: Poison, item: true, res: Result{Status: 400, Cause: "mapping"}}}, jail: []uint64{at}})
			add("poison after retry", scenario{troubles: []trouble{{index: at, times: 2, class: Retry}, {index: at, times: -1, class: Poison}}, jail: []uint64{at}})
			add("poison once for the batch", scenario{troubles: []trouble{{index: at, times: 1, class: Poison, res: Result{Status: 400, Cause: "bad"}}}})
			add("split once", scenario{troubles: []trouble{{index: at, times: 1, class: Split, res: Result{Status: 413, Cause: "http_413"}}}})
			add("split to a stub", scenario{troubles: []trouble{{index: at, times: 4, class: Split, res: Result{Status: 413, Cause: "http_413"}}}, stubs: 1})
			add("split for ever", scenario{troubles: []trouble{{index: at, times: -1, class: Split, res: Result{Status: 413, Cause: "http_413"}}}, jail: []uint64{at}})
			add("item too large", scenario{troubles: []trouble{{index: at, times: 1, class: Split, item: true, res: Result{Status: 413, Cause: "http_413"}}}, stubs: 1})
			for _, status := range []int{401, 403, 404} {
				add(fmt.Sprintf("pause %d", status), scenario{troubles: []trouble{{index: at, times: 2, class: Pause, res: Result{Status: status, Cause: "denied"}}}, paused: true, within: time.Hour})
			}
			add("pause of an item", scenario{troubles: []trouble{{index: at, times: 1, class: Pause, item: true, res: Result{Status: 403, Cause: "denied"}}}, paused: true, within: time.Hour})
			add("new credential", scenario{troubles: []trouble{{index: at, times: 1, class: Pause, res: Result{Status: 401, Cause: "denied"}}}, renewer: "new"})
			add("same credential", scenario{troubles: []trouble{{index: at, times: 1, class: Pause, res: Result{Status: 401, Cause: "denied"}}}, renewer: "same", paused: true, within: time.Hour})
			add("new credential that is no better", scenario{troubles: []trouble{{index: at, times: 2, class: Pause, res: Result{Status: 403, Cause: "denied"}}}, renewer: "new", paused: true, within: time.Hour})
			add("credential gone", scenario{troubles: []trouble{{index: at, times: 1, class: Pause, res: Result{Status: 403, Cause: "denied"}}}, renewer: "error", paused: true, within: time.Hour})
			for _, delta := range []int{-100, -1, 1, 5} {
				add(fmt.Sprintf("%+d results, taken", delta), scenario{troubles: []trouble{{index: at, times: 1, delta: delta, took: true}}})
				add(fmt.Sprintf("%+d results, not taken", delta), scenario{troubles: []trouble{{index: at, times: 2, delta: delta}}})
			}
			add("slow", scenario{troubles: []trouble{{index: at, times: 1, class: Done, took: true, wait: 10 * time.Minute, res: Result{Grade: Durable}}}, within: time.Hour})
			add("hung, not taken", scenario{troubles: []trouble{{index: at, times: 1, hang: true}}, within: time.Hour})
			add("hung, taken", scenario{troubles: []trouble{{index: at, times: 1, hang: true, took: true}}, within: time.Hour})
			add("panic", scenario{troubles: []trouble{{index: at, times: 2, panic: true}}})
			add("panic, taken", scenario{troubles: []trouble{{index: at, times: 1, panic: true, took: true}}})
		}
	}
	return out
}

func TestFaults(t *testing.T) {
	list := scenarios()
	if len(list) < 300 {
		t.Errorf("only %d situations", len(list))
	}
	for _, s := range list {
		t.Run(s.name, func(t *testing.T) { synctest.Test(t, s.run) })
	}
}

func (s scenario) run(t *testing.T) {
	h := newHouse(t, faultSigned, faultItems)
	h.sink.lim.InFlight = s.inFlight
	h.sink.script = script(h.sink.grade, s.troubles...)
	rn := &renewable{double: h.sink, answer: s.renewer}
	if s.renewer != "" {
		h.as = rn
	}
	h.start()
	within := s.within
	if within == 0 {
		within = 20 * time.Minute
	}
	h.until(within, "all is settled", h.settled)
	st := h.status()
	h.end()
	h.oracle()
	h.jailIs(s.jail...)
	for id, n := range h.sink.taken {
		if n > 1 && st.Ambiguous == 0 {
			t.Errorf("%s arrived %d times and the status says that nothing did", id, n)
		}
	}
	if st.Stubs != s.stubs {
		t.Errorf("%d stubs, want %d", st.Stubs, s.stubs)
	}
	if s.stubs == 0 && len(s.jail) == 0 && len(h.sink.rewritten) > 0 {
		t.Errorf("sent with other bytes than before: %v", h.sink.rewritten)
	}
	if h.sink.most > s.inFlight {
		t.Errorf("%d sends at once, want %d", h.sink.most, s.inFlight)
	}
	if s.renewer == "new" && s.paused && s.inFlight > 1 && rn.asked == 2 {
		// Another batch went through with the new credential in between, so the
		// second refusal was a new trouble and the credential was read once more.
		s.paused, rn.asked = false, 1
	}
	paused := len(h.book.noted("sink_paused"))
	if got := paused == 1 && len(h.book.noted("sink_resumed")) == 1; got != s.paused || paused > 1 {
		t.Errorf("%d records of a pause and %d of its end, want some: %v", paused, len(h.book.noted("sink_resumed")), s.paused)
	}
	if want := min(len(s.renewer), 1); rn.asked != want {
		t.Errorf("the credential was read again %d times, want %d", rn.asked, want)
	}
}

// jailIs checks what is in quarantine.
func (h *house) jailIs(want ...uint64) {
	h.t.Helper()
	var got []uint64
	for _, q := range h.jailed() {
		got = append(got, q.Index)
	}
	slices.Sort(got)
	if !slices.Equal(got, want) {
		h.t.Errorf("in quarantine: %v, want %v", got, want)
	}
}

// Crashes and write errors at every boundary of a step: before and after each
// write of the store and at each send, before and after it was taken, once and
// twice, in order and with several under way. What is sent again after a kill
// has the bytes that it had.
func TestCrashes(t *testing.T) {
	kinds := map[string]fault{"fails before": failsBefore, "fails after": failsAfter, "dies before": diesBefore, "dies after": diesAfter}
	for _, inFlight := range []int{1, 3} {
		for what, f := range kinds {
			for n := 1; n <= 12; n++ {
				for _, poison := range []bool{false, true} {
					name := fmt.Sprintf("write %d %s, %d abreast, poison %v", n, what, inFlight, poison)
					t.Run(name, func(t *testing.T) {
						synctest.Test(t, func(t *testing.T) {
							h := crashHouse(t, inFlight, poison)
							h.store.fault = func(i int, _, _ string) fault {
								if i == n {
									return f
								}
								return works
							}
							h.survive()
							h.check(poison)
						})
					})
				}
			}
		}
		for call := 1; call <= 12; call++ {
			for _, took := range []bool{false, true} {
				name := fmt.Sprintf("killed at send %d, taken %v, %d abreast", call, took, inFlight)
				t.Run(name, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) {
						h := crashHouse(t, inFlight, false)
						h.sink.script = func(n int, b *Batch) act {
							a := act{take: all, res: Result{Class: Done, Grade: Durable}}
							if n == call || n == call+2 {
								store := h.store
								a.then = store.kill
								if !took {
									a.take, a.res = nil, Result{Class: Retry, Cause: "killed"}
								}
							}
							return a
						}
						h.survive()
						h.check(false)
					})
				})
			}
		}
	}
}

func crashHouse(t *testing.T, inFlight int, poison bool) *house {
	h := newHouse(t, 30, 5)
	h.sink.lim.InFlight = inFlight
	// The book grows while it is delivered, so that there are several plans.
	h.sink.script = func(int, *Batch) act { return act{take: all, res: Result{Class: Done, Grade: Durable}} }
	if poison {
		h.sink.script = script(Durable, trouble{index: 7, times: -1, class: Poison}, trouble{index: 23, times: -1, class: Poison, item: true})
	}
	return h
}

// survive runs engines one after the other, each over what the one before left,
// until everything is delivered.
func (h *house) survive() {
	h.t.Helper()
	h.start()
	for range 600 {
		time.Sleep(time.Second)
		if h.book.signed < 60 {
			h.book.sign(h.book.signed + 3)
		}
		if h.store.isDead() {
			h.crash()
			h.start()
		}
		if h.book.signed >= 60 && h.settled() {
			h.end()
			return
		}
	}
	h.t.Fatalf("not delivered: %+v", h.status())
}

func (h *house) check(poison bool) {
	h.t.Helper()
	h.oracle()
	if poison {
		h.jailIs(7, 23)
	} else {
		h.jailIs()
	}
	if len(h.sink.rewritten) > 0 {
		h.t.Errorf("sent with other bytes than before: %v", h.sink.rewritten)
	}
	for key, n := range h.sink.resplit() {
		h.t.Errorf("batch %s was cut in %d ways", key, n)
	}
}

// A record that is too large for the sink waits for its stub if the book cannot be
// read just now: that is not its fault.
func TestStubWaitsForTheBook(t *testing.T) {
	for name, c := range map[string]struct{ begin, end func(h *house) }{
		"the book": {func(h *house) { h.book.broken = errFault }, func(h *house) { h.book.broken = nil }},
		"a key": {func(h *house) {
			h.proj.stubErr = func(i uint64) error {
				if i == 20 {
					return fmt.Errorf("%w: %w", ErrNotNow, errKeyAway)
				}
				return nil
			}
		}, func(h *house) { h.proj.stubErr = nil }},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 100, 10, func(t *testing.T, h *house) {
				once := false
				h.sink.script = func(_ int, b *Batch) act {
					a := act{take: all, res: Result{Class: Done, Grade: Durable}}
					at := slices.IndexFunc(b.Items, func(it Item) bool { return it.Index == 20 })
					if at < 0 || bytes.Contains(b.Items[at].Body, []byte(`"stub"`)) {
						return a
					}
					a.take = func(i int) bool { return i != at }
					a.res.Items = make([]Result, len(b.Items))
					for i := range a.res.Items {
						a.res.Items[i] = Result{Class: Done, Grade: Durable}
					}
					a.res.Items[at] = Result{Class: Split, Status: 413, Cause: "http_413"}
					if !once {
						once = true
						a.then = func() {
							h.book.with(func() { c.begin(h) })
							h.eng.feed.tidy(true) // nobody remembers it
						}
					}
					return a
				}
				h.start()
				time.Sleep(time.Minute)
				if s := h.status(); s.State != Failed || s.Quarantine != 0 || s.Cursor != 20 || strings.Contains(fmt.Sprint(s), "4711") {
					t.Errorf("%+v", s)
				}
				h.book.with(func() { c.end(h) })
				h.until(time.Minute, "all is settled", h.settled)
				if s := h.status(); s.State != Running || s.Quarantine != 0 || s.Stubs != 1 {
					t.Errorf("%+v", s)
				}
				h.end()
				h.oracle()
			})
		})
	}
}
