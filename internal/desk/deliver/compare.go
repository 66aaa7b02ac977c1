package deliver

import (
	"context"
	"fmt"
	"math/bits"
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
)

// Bounds of a comparison.
const (
	maxCompare   = 1 << 20          // records in a window
	maxMissing   = 1 << 16          // that are sent again at once
	markEvery    = 10 * time.Second // how finely it is known when the cursor was where
	compareRetry = 5 * time.Minute  // after a search that failed
	compareMost  = 24 * time.Hour   // between two looks for what is missing again and again
)

// comparing is what a runner knows of comparisons. It belongs to the runner,
// save for result, on which the one search under way puts what it found.
type comparing struct {
	running bool
	result  chan found
	next    time.Time // not before
	began   time.Time // when the window had its first settled record; zero: none yet
	marks   []mark    // where the cursor was, oldest first
	missing int       // at the last look
	again   int       // looks in a row at which something was missing
}

// mark says how far everything was settled at a time.
type mark struct {
	at     time.Time
	cursor uint64
}

// found is what a comparison has found.
type found struct {
	from, to                   uint64
	expected                   int
	missing, extra, duplicates int
	again                      []uint64 // the missing ones, so many as are sent again at once
	err                        error
}

func (r *runner) comparable() bool {
	_, ok := r.c.Sink.(Finder)
	return ok
}

// settledBy is how far everything was settled long enough ago that the sink must
// be able to find it.
func (c *comparing) settledBy(now time.Time, cursor uint64, wait time.Duration) uint64 {
	if n := len(c.marks); n == 0 || c.marks[n-1].cursor > cursor {
		c.marks = []mark{{now, cursor}} // after a replay
	} else if c.marks[n-1].cursor < cursor && now.Sub(c.marks[n-1].at) >= markEvery {
		c.marks = append(c.marks, mark{now, cursor})
	}
	old := c.marks[0]
	for len(c.marks) > 1 && now.Sub(c.marks[1].at) >= wait {
		c.marks = c.marks[1:]
		old = c.marks[0]
	}
	if now.Sub(old.at) < wait {
		return 0
	}
	return old.cursor
}

// compareIfDue starts a comparison when a window is full or old enough.
func (r *runner) compareIfDue(now time.Time) {
	if !r.comparable() {
		return
	}
	c := &r.compare
	to := min(c.settledBy(now, r.st.Cursor, r.c.CompareAfter), r.st.Compared+uint64(r.c.CompareItems))
	if to <= r.st.Compared {
		c.began = time.Time{}
		return
	}
	if c.began.IsZero() {
		c.began = now
	}
	full := to-r.st.Compared == uint64(r.c.CompareItems)
	if c.running || now.Before(c.next) || r.halted() || r.pause != nil || len(r.resend)+len(r.errands) > 0 || !full && now.Sub(c.began) < r.c.CompareEvery {
		return
	}
	jailed := map[uint64]bool{}
	for _, m := range []map[uint64]struct{}{r.jail.index, r.jail.waived} {
		for i := range m {
			jailed[i] = true
		}
	}
	w := &comparison{maker: r.maker, finder: r.c.Sink.(Finder), origin: r.eng.origin, signed: r.signed, from: r.st.Compared, to: to, jailed: jailed}
	c.running, c.result = true, make(chan found, 1)
	ctx, most, result := r.sendCtx, r.c.SendTimeout, c.result
	go func() {
		ctx, cancel := context.WithTimeout(ctx, most)
		defer cancel()
		result <- w.run(ctx)
		r.nudge()
	}()
}

// notBefore puts off the next comparison.
func (c *comparing) notBefore(t time.Time) {
	if t.After(c.next) {
		c.next = t
	}
}

// nudge makes the runner look. Any goroutine may call it.
func (r *runner) nudge() {
	select {
	case r.wake <- struct{}{}:
	default:
	}
}

// takeComparison takes the result of a comparison, if there is one.
func (r *runner) takeComparison(now time.Time) {
	c := &r.compare
	if !c.running {
		return
	}
	select {
	case f := <-c.result:
		c.running = false
		r.compared(now, &f)
	default:
	}
}

// compared draws the consequences: what is missing is sent again and looked for
// once more. Only a window in which nothing is missing is done with.
func (r *runner) compared(now time.Time, f *found) {
	c := &r.compare
	if f.from != r.st.Compared || f.to > r.st.Cursor {
		return // a replay came between
	}
	if f.err != nil {
		c.next = now.Add(compareRetry)
		r.eng.log.Error("a sink could not be compared with the book", "sink", r.c.Name, "first", f.from, "err", f.err)
		r.lastErr = "comparing: " + scrub(f.err.Error())
		return
	}
	rec := r.event("compared", "complete")
	rec.Event.Count, rec.Event.Exact = int64(f.expected), f.missing == 0 && f.duplicates == 0 && f.extra == 0
	rec.Links = []string{link("first", f.from), link("last", f.to-1)}
	if f.missing == 0 {
		rec.Links = append(rec.Links, "grade:"+Compared.String()) // what is missing was not read back
	}
	for _, n := range []struct {
		name string
		n    int
	}{{"missing", f.missing}, {"extra", f.extra}, {"duplicate", f.duplicates}} {
		rec.Links = append(rec.Links, link(n.name, uint64(n.n)))
	}
	c.missing = f.missing
	if f.missing > 0 {
		rec.Outcome, rec.Event.Cause = record.Failure, "missing"
		r.eng.log.Error("records are missing at a sink that had taken them; they are sent again", "sink", r.c.Name, "first", f.from, "last", f.to-1, "missing", f.missing)
		r.sendAgain(f.again)
		// What a filter at the sink drops is missing every time, and every time it is
		// sent it costs: so more and more seldom, and never given up.
		wait := compareMost
		if first := r.c.CompareAfter + r.c.BackoffMax; c.again < 16 {
			wait = max(min(first<<c.again, compareMost), first)
		}
		c.again++
		c.next = now.Add(wait)
		r.note(now, rec)
		return
	}
	r.note(now, rec)
	r.st.Compared, r.dirty, c.began, c.again = f.to, true, time.Time{}, 0
}

// comparison is one search. It belongs to one goroutine.
type comparison struct {
	maker
	finder           Finder
	origin           string
	signed, from, to uint64
	jailed           map[uint64]bool

	want, have []uint64 // bits by index
	out        found
}

func (w *comparison) run(ctx context.Context) found {
	w.out.from, w.out.to = w.from, w.to
	words := (w.to - w.from + 63) / 64
	w.want, w.have = make([]uint64, words), make([]uint64, words)
	win := Window{Origin: w.origin, From: w.from, To: w.to}
	_, w.out.err = w.entries(w.from, w.to, w.signed, func(e *book.Entry) bool {
		if at := e.Record.At(); win.Since.IsZero() {
			win.Since, win.Until = at, at
		} else if at.Before(win.Since) {
			win.Since = at
		} else if at.After(win.Until) {
			win.Until = at
		}
		if !w.jailed[e.Index] {
			w.want[(e.Index-w.from)/64] |= 1 << ((e.Index - w.from) % 64)
		}
		return ctx.Err() == nil
	})
	if w.out.err == nil {
		w.out.err = ctx.Err()
	}
	if w.out.err == nil && !win.Since.IsZero() {
		w.out.err = w.find(ctx, win)
	}
	if w.out.err == nil {
		w.count()
	}
	return w.out
}

func (w *comparison) find(ctx context.Context, win Window) (err error) {
	defer noPanic(&err)
	return w.finder.Find(ctx, win, func(id string) error {
		rest, ours := strings.CutPrefix(id, w.prefix)
		if !ours {
			return ctx.Err() // of another log, or not of ours
		}
		index, err := strconv.ParseUint(rest, 10, 64)
		switch {
		case err != nil || strconv.FormatUint(index, 10) != rest || index >= w.signed:
			w.out.extra++ // no record has this id
		case index < w.from || index >= w.to:
		default:
			at, bit := (index-w.from)/64, uint64(1)<<((index-w.from)%64)
			switch {
			case w.have[at]&bit != 0:
				w.out.duplicates++
			case w.want[at]&bit == 0 && !w.jailed[index]:
				w.out.extra++
			}
			w.have[at] |= bit
		}
		return ctx.Err()
	})
}

func (w *comparison) count() {
	for i := range w.want {
		w.out.expected += bits.OnesCount64(w.want[i])
		for gone := w.want[i] &^ w.have[i]; gone != 0; gone &= gone - 1 {
			w.out.missing++
			if len(w.out.again) < maxMissing {
				w.out.again = append(w.out.again, w.from+uint64(i)*64+uint64(bits.TrailingZeros64(gone)))
			}
		}
	}
}

// alarm says that records are missing at the sink.
func (c *comparing) alarm() string {
	if c.missing == 0 {
		return ""
	}
	return fmt.Sprintf("%d records were missing when it was last compared with the book; they are sent again", c.missing)
}
