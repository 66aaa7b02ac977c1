package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"
)

var (
	errKeyAway    = errors.New("no key for subject 4711")
	errKeyDamaged = errors.New("the key of subject 4711 is damaged")
)

// sealing makes a book of which some records cannot be opened before a time.
func sealing(why error, back time.Time, indexes ...uint64) func(uint64) error {
	return func(i uint64) error {
		if slices.Contains(indexes, i) && time.Now().Before(back) {
			return why
		}
		return nil
	}
}

// whole checks that all that arrived is as the book has it, no stub among it.
func (h *house) whole() {
	h.t.Helper()
	h.sink.with(func() {
		for id, b := range h.sink.bodies {
			if !bytes.Contains(b, []byte(`"frame":`)) {
				h.t.Errorf("%s arrived as %s", id, b)
			}
		}
		if len(h.sink.rewritten) > 0 {
			h.t.Errorf("with other bytes than before: %v", h.sink.rewritten)
		}
	})
	if s := h.status(); s.Stubs != 0 {
		h.t.Errorf("%d stubs", s.Stubs)
	}
	h.jailIs()
}

// A key that is away stops delivery before the first record that needs it,
// loudly and at little cost; when it is back all arrive whole and in order.
func TestKeyAway(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.book.sealed = sealing(errKeyAway, time.Now().Add(20*time.Minute), 13, 14, 57)
		h.start()
		time.Sleep(19 * time.Minute)
		s := h.status()
		if s.State != Failed || s.Cause != "reading" || s.Cursor != 13 || s.Delivered != 13 || !s.Oldest.Equal(h.book.timeOf(13)) || h.eng.Low() != 13 {
			t.Errorf("while the key is away: %+v", s)
		}
		alarms := strings.Join(s.Alarms, "\n")
		if !strings.Contains(alarms, "record 13 must wait: "+ErrNotNow.Error()) || !strings.Contains(alarms, "oldest undelivered") || strings.Contains(alarms+s.LastError, "4711") {
			t.Errorf("alarms %q, last error %q", s.Alarms, s.LastError)
		}
		if n := h.book.handedOut(); n > 100*60 {
			t.Errorf("%d records were read while there was nothing to do", n)
		}
		h.until(5*time.Minute, "all is settled", h.settled)
		if s := h.status(); s.State != Running || s.LastError != "" || !s.Oldest.IsZero() {
			t.Errorf("when it is back: %+v", s)
		}
		h.end()
		h.oracle()
		h.whole()
		if !slices.IsSorted(h.sink.order) || len(h.sink.order) != 100 {
			t.Errorf("order %v", h.sink.order)
		}
	})
}

// An operator who has brought the key back need not wait for the next try.
func TestKeyBackAndResumed(t *testing.T) {
	in(t, 30, 10, func(t *testing.T, h *house) {
		back := time.Now().Add(10 * time.Minute)
		h.book.sealed = sealing(errKeyAway, back, 5)
		h.conf.BackoffMax = time.Hour
		h.start()
		time.Sleep(time.Until(back) + time.Second)
		h.must(h.eng.Resume(context.Background(), anna, "s"))
		h.until(10*time.Second, "all is settled", h.settled)
		h.end()
		h.whole()
	})
}

// What can never be opened is a stub at once and holds up nothing.
func TestKeyDamaged(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.book.sealed = sealing(errKeyDamaged, time.Now().Add(time.Hour), 13, 57)
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.end()
		h.oracle()
		h.jailIs()
		if s := h.status(); s.Stubs != 2 || s.Delivered != 100 {
			t.Errorf("%+v", s)
		}
		for _, i := range []uint64{13, 57} {
			if b := h.sink.bodies[EventID(testOrigin, i)]; !bytes.Contains(b, []byte(`"stub":`)) {
				t.Errorf("record %d arrived as %s", i, b)
			}
		}
	})
}

// A batch that was planned before a kill is made again with the same bytes, so
// it waits for a key that is away at the start.
func TestKeyAwayAtStart(t *testing.T) {
	in(t, 40, 10, func(t *testing.T, h *house) {
		h.sink.script = func(int, *Batch) act { return act{hang: true} }
		h.start()
		h.until(time.Minute, "it was sent", func() bool { return h.sink.sends() > 0 })
		h.crash()
		h.sink.with(func() { h.sink.script = nil })
		h.book.sealed = sealing(errKeyAway, time.Now().Add(10*time.Minute), 3, 35)
		h.start()
		time.Sleep(9 * time.Minute)
		if s := h.status(); s.State != Failed || len(s.Alarms) != 1 || !strings.Contains(s.Alarms[0], "record 3 must wait") || strings.Contains(fmt.Sprint(s), "4711") || h.sink.count() != 0 {
			t.Errorf("%+v, %d arrived", s, h.sink.count())
		}
		h.until(5*time.Minute, "all is settled", h.settled)
		h.end()
		h.oracle()
		h.whole()
	})
}

// A record out of the quarantine waits too; what comes new does not wait for it.
func TestKeyAwayForErrand(t *testing.T) {
	in(t, 20, 10, func(t *testing.T, h *house) {
		h.sink.script = script(Durable, trouble{index: 4, times: 5, class: Poison})
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.jailIs(4)
		h.sink.with(func() { h.sink.script = nil })
		h.book.with(func() { h.book.sealed = sealing(errKeyAway, time.Now().Add(10*time.Minute), 4) })
		h.eng.feed.tidy(true) // nobody remembers it
		_, err := h.eng.Requeue(context.Background(), anna, "s", nil)
		h.must(err)
		h.book.sign(30)
		time.Sleep(5 * time.Minute)
		if s := h.status(); s.State != Failed || s.Cause != rereading || s.Resending != 1 || s.Cursor != 30 {
			t.Errorf("%+v", s)
		}
		h.jailIs(4)
		h.until(10*time.Minute, "it was sent again", func() bool { return h.status().Quarantine == 0 })
		h.until(time.Minute, "all is well", func() bool { return h.status().State == Running })
		h.end()
		h.oracle()
		h.whole()
	})
}
