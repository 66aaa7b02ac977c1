package deliver

import (
	"context"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// receiptEvery is how often a receipt is recorded at most.
const receiptEvery = time.Minute

// note is a record that the book is to keep, and what follows when it has.
type note struct {
	rec  *record.Record
	then func()
}

// event is a record about this sink.
func (r *runner) event(name, cause string) *record.Record { return event(name, r.c.Name, cause) }

func event(name, sink, cause string) *record.Record {
	return &record.Record{Kind: record.KindDelivery, Outcome: record.Success, Event: record.Event{Name: name, Target: sink, Cause: cause}}
}

// link is one fact of a record about delivery.
func link(name string, n uint64) string { return name + ":" + strconv.FormatUint(n, 10) }

// notesMost bounds what waits for the book: what it stands for is in the status
// all the same.
const notesMost = 64

// note hands a record to the book, now or when it takes records again.
func (r *runner) note(now time.Time, rec *record.Record) {
	rec.Time = now.UnixMicro()
	if r.notes = append(r.notes, note{rec: rec}); len(r.notes) > notesMost {
		r.eng.log.Error("a record about delivery is lost: the book does not take it", "sink", r.c.Name, "event", r.notes[0].rec.Event.Name)
		r.notes = slices.Delete(r.notes, 0, 1)
	}
}

// tick does what is done by the clock.
func (r *runner) tick(now time.Time) {
	r.retryDoomed(now)
	if !now.Before(r.receiptAt) {
		r.receipt(now)
	}
	r.takeComparison(now)
	r.flushNotes(now) // before the state is written: a kill between repeats a comparison and loses no record of one
	r.compareIfDue(now)
	if r.signed > r.st.Seen && now.Sub(r.writeAt) >= seenEvery {
		r.dirty = true // or a log that is replaced would seem to have ended where this sink stopped
	}
}

// flushNotes hands to the book what waits for it.
func (r *runner) flushNotes(now time.Time) {
	for len(r.notes) > 0 && !now.Before(r.noteAt) {
		n := r.notes[0]
		if err := r.eng.book.Note(r.sendCtx, n.rec); err != nil {
			r.noteAt = now.Add(retryNote)
			r.trouble("recording", err)
			break
		}
		r.well("recording")
		r.notes = slices.Delete(r.notes, 0, 1)
		if n.then != nil {
			n.then()
		}
	}
}

// receipt records what was delivered since the last one. What was only about
// delivery and reading waits for something else, or receipts would go on for
// ever.
func (r *runner) receipt(now time.Time) {
	r.receiptAt = now.Add(receiptEvery)
	t, to := r.st.Receipt, r.st.Cursor
	if !t.Worth || to <= r.st.Noted || t.Count+t.Quarantined == 0 {
		return
	}
	rec := r.event("delivered", "")
	rec.Time = now.UnixMicro()
	rec.Event.Count, rec.Event.Exact = t.Count, t.Ambiguous == 0
	rec.Event.First, rec.Event.Last = r.begun.UnixMicro(), now.UnixMicro()
	rec.Links = r.facts(r.st.Noted, to, &t)
	if err := r.eng.book.Note(r.sendCtx, rec); err != nil {
		r.receiptAt = now.Add(retryNote)
		r.trouble("recording", err)
		return
	}
	r.well("recording")
	r.st.Noted, r.st.Receipt, r.begun, r.dirty = to, tally{}, now, true
}

// facts are what a receipt says of [from, to) beside the count.
func (r *runner) facts(from, to uint64, t *tally) []string {
	out := []string{link("first", from), link("last", to-1), "grade:" + t.Grade.String(), "form:" + r.proj.Name() + "/" + strconv.Itoa(r.proj.Version())}
	for _, f := range []struct {
		name string
		n    int64
	}{{"twice", t.Ambiguous}, {"quarantined", t.Quarantined}, {"late", t.Late}, {"stubs", t.Stubs}} {
		if f.n > 0 {
			out = append(out, link(f.name, uint64(f.n)))
		}
	}
	return out
}

// redelivered is the receipt of what was sent beside the plan: out of the quarantine,
// or because a comparison had missed it. The receipts of its range count it as
// quarantined, or for what the sink has lost.
func (r *runner) redelivered(now time.Time, b *batch) {
	if b.sum.Count == 0 {
		return
	}
	rec := r.event("redelivered", "")
	rec.Event.Count, rec.Event.Exact = b.sum.Count, b.sum.Ambiguous == 0
	rec.Links = r.facts(b.items[0].Index, b.items[len(b.items)-1].Index+1, &b.sum)
	r.note(now, rec)
}

// leaveBehind keeps the state of a log that was replaced beside the new one and
// tells what of it was not delivered.
func (r *runner) leaveBehind(old *state, value []byte, fresh *state) error {
	name := r.c.Name + "/" + old.Origin
	if err := r.eng.state.Put(r.ctx, leftTable, name, value, time.Time{}); err != nil {
		return err
	}
	left := old.Seen - min(old.Cursor, old.Seen)
	if left > 0 {
		r.eng.log.Error("the log was replaced before all of it was delivered; what is left of it is in the folder of the old log", "sink", r.c.Name, "log", old.Origin, "first", old.Cursor, "leaves", left)
	}
	rec := r.event("log_replaced", "undelivered")
	if left == 0 {
		rec.Event.Cause = "delivered"
	} else {
		rec.Outcome = record.Failure
	}
	rec.Event.Count = int64(left)
	rec.Links = []string{old.Origin, link("first", old.Cursor), link("end", old.Seen)}
	if err := r.eng.book.Note(r.ctx, rec); err != nil {
		return err
	}
	next, err := fresh.encode()
	if err != nil {
		return err
	}
	return r.eng.state.Put(r.ctx, stateTable, r.c.Name, next, time.Time{})
}

// leftTable keeps states of logs that were replaced.
const leftTable = "deliver left"

// tellGone records that sinks have lost their configuration.
func (e *Engine) tellGone(ctx context.Context, gone []Status) {
	for _, g := range gone {
		e.log.Warn("a sink is not configured any more; its cursor stays", "sink", g.Name, "cursor", g.Cursor, "undelivered", g.Lag)
		rec := event("sink_removed", g.Name, "")
		rec.Event.Count, rec.Links = int64(g.Lag), []string{link("first", g.Cursor)}
		if err := e.book.Note(ctx, rec); err != nil {
			e.log.Error("that a sink was removed could not be recorded", "sink", g.Name, "err", err)
		}
	}
}

// quarantine calls fn with everything in a table of quarantined records of a sink,
// "" of all. An entry of another sink that is damaged is that one's trouble.
func (e *Engine) quarantine(ctx context.Context, table, sink string, fn func(*Quarantined)) error {
	return e.state.Range(ctx, table, func(key string, value []byte) error {
		if sink != "" && !strings.HasPrefix(key, jailKey(sink, "")) {
			return nil
		}
		q, err := decodeQuarantined(value)
		if err != nil {
			return fmt.Errorf("%s: %w", key, err)
		}
		fn(q)
		return nil
	})
}
