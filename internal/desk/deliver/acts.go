package deliver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/kv"
)

// Actor writes into a record who acts. An act without one is refused.
type Actor func(*record.Record)

// Names of acts, as records give them.
const (
	actPause   = "sink_pause"
	actResume  = "sink_resume"
	actReplay  = "sink_replay"
	actRequeue = "sink_requeue"
	actWaive   = "sink_waive"
	actTest    = "sink_test"
)

// ErrUnknownSink means that no sink of this name is configured.
var ErrUnknownSink = errors.New("no sink of this name is configured")

// ErrNotRunning means that the engine does not run, so nothing can be changed.
var ErrNotRunning = errors.New("the delivery engine is not running")

// errNoState is for acts on a sink whose cursor cannot be read.
var errNoState = errors.New("the cursor of this sink cannot be read; say where to go on with a replay")

// maxReason bounds why records are waived.
const maxReason = 200

// act records an act before it is done.
func (e *Engine) act(ctx context.Context, by Actor, name, sink string, fill func(*record.Record)) error {
	if by == nil {
		return errors.New("who acts is not known, so the act cannot be recorded; it is refused")
	}
	rec := &record.Record{Kind: record.KindAdmin, Outcome: record.Success, Event: record.Event{Name: name, Target: sink}}
	if fill != nil {
		fill(rec)
	}
	by(rec)
	if err := e.book.Note(context.WithoutCancel(ctx), rec); err != nil {
		return fmt.Errorf("the act could not be recorded and is refused: %w", err)
	}
	return nil
}

func (e *Engine) runner(sink string) (*runner, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if r := e.runners[sink]; r != nil {
		return r, nil
	}
	if slices.ContainsFunc(e.want, func(c SinkConfig) bool { return c.Name == sink }) {
		return nil, ErrNotRunning
	}
	return nil, fmt.Errorf("%.64q: %w", sink, ErrUnknownSink)
}

// inside runs fn where the state of the sink belongs to it.
func (e *Engine) inside(ctx context.Context, sink string, fn func(*runner) error) error {
	r, err := e.runner(sink)
	for err == nil {
		var result error
		done := make(chan struct{})
		act := func() {
			defer close(done)
			result = fn(r)
			if r.st != nil {
				r.publish(time.Now())
			}
		}
		select {
		case r.acts <- act:
			<-done
			return result
		case <-ctx.Done():
			return ctx.Err()
		case <-r.done:
		}
		was := r
		if r, err = e.runner(sink); r == was { // else a reload has replaced it
			return ErrNotRunning
		}
	}
	return err
}

// Pause stops sending to a sink until Resume, also after a restart. What is
// under way is not called back.
func (e *Engine) Pause(ctx context.Context, by Actor, sink string) error {
	if _, err := e.runner(sink); err != nil {
		return err
	}
	if err := e.act(ctx, by, actPause, sink, nil); err != nil {
		return err
	}
	return e.inside(ctx, sink, func(r *runner) error {
		if r.st == nil {
			return errNoState
		}
		r.st.Paused = true
		return r.writeNow(time.Now())
	})
}

// Resume sends again, at once, whether an operator or the sink had paused. A sink
// that had refused many records in a row may go on refusing until it takes one:
// they go into the quarantine.
func (e *Engine) Resume(ctx context.Context, by Actor, sink string) error {
	r, err := e.runner(sink)
	if err != nil {
		return err
	}
	if r.c.Paused {
		return fmt.Errorf("sink %s is paused by the configuration; take `paused` out of it and reload", sink)
	}
	if err := e.act(ctx, by, actResume, sink, nil); err != nil {
		return err
	}
	return e.inside(ctx, sink, func(r *runner) error {
		if r.st == nil {
			return errNoState
		}
		r.st.Paused = false
		r.gate.open()
		r.refused, r.lenient, r.renewed = 0, true, false
		r.unread, r.readAt = 0, time.Time{}
		if r.pause != nil {
			r.pause.next = time.Now()
		}
		return r.writeNow(time.Now())
	})
}

// Replay sends everything from the index on once more; it arrives twice. It is
// also how a sink goes on whose stored cursor is damaged. An index above the
// cursor would leave records out and is refused.
func (e *Engine) Replay(ctx context.Context, by Actor, sink string, from uint64) error {
	r, err := e.runner(sink)
	if err != nil {
		return err
	}
	if _, signed := e.book.Signed(); from > signed {
		return fmt.Errorf("index %d is not signed yet; the log is signed up to %d", from, signed)
	}
	if s := r.snapshot(); s.State != Failed && s.State != Starting && from > s.Cursor {
		return fmt.Errorf("index %d is above the cursor %d of sink %s: records in between would never be sent", from, s.Cursor, sink)
	}
	err = e.act(ctx, by, actReplay, sink, func(rec *record.Record) { rec.Links = []string{link("first", from)} })
	if err != nil {
		return err
	}
	return e.inside(ctx, sink, func(r *runner) error { return r.rewind(from) })
}

// ReplayTime is Replay of everything that began at the time or later, and perhaps
// of some that began before. It returns the index.
func (e *Engine) ReplayTime(ctx context.Context, by Actor, sink string, from time.Time) (uint64, error) {
	r, err := e.runner(sink)
	if err != nil {
		return 0, err
	}
	_, signed := e.book.Signed()
	index, err := indexAt(&maker{feed: e.feed, proj: r.c.Projection}, signed, from)
	if err != nil {
		return 0, err
	}
	index = min(index, r.snapshot().Cursor)
	return index, e.Replay(ctx, by, sink, index)
}

// indexAt finds an index before which no record began at t or later. Records are
// in the order in which they ended, about, so that is what is searched.
func indexAt(m *maker, signed uint64, t time.Time) (uint64, error) {
	lo, hi := uint64(0), signed
	for lo < hi {
		mid := lo + (hi-lo)/2
		before := false
		seen := mid
		_, err := m.entries(mid, signed, signed, func(e *book.Entry) bool {
			end := e.Record.At().Add(time.Duration(e.Record.DurUS) * time.Microsecond)
			before, seen = end.Before(t), e.Index
			return false
		})
		switch {
		case err != nil:
			return 0, err
		case before:
			lo = seen + 1
		default:
			hi = mid
		}
	}
	return lo, nil
}

// rewind starts again from an index at or below the cursor.
func (r *runner) rewind(from uint64) error {
	now := time.Now()
	if r.st == nil {
		st := &state{Origin: r.eng.origin, Cursor: from, High: r.signed, Seen: r.signed, Noted: from, Compared: from}
		if err := r.mayBegin(st); err != nil {
			return err
		}
		value, err := st.encode()
		if err != nil {
			return err
		}
		return r.eng.state.Put(r.ctx, stateTable, r.c.Name, value, time.Time{})
	}
	if from > r.st.Cursor {
		return fmt.Errorf("index %d is above the cursor %d", from, r.st.Cursor)
	}
	r.receipt(now)
	if r.failing == "recording" {
		return errors.New("the book does not take the receipt of what was delivered before; try again later")
	}
	for _, list := range [][]*batch{r.plan, r.drafts} {
		for _, b := range list {
			r.maybe = max(r.maybe, b.to)
			if b.sent {
				r.st.High = max(r.st.High, b.to)
			}
			b.dropped = true
			r.release(b)
		}
	}
	r.plan, r.drafts = nil, nil
	r.pieces = slices.DeleteFunc(r.pieces, func(p *piece) bool { return p.b.dropped })
	r.doomed = slices.DeleteFunc(r.doomed, func(d doom) bool { return d.b.dropped })
	r.st.Cursor, r.st.Noted, r.st.Receipt = from, from, tally{}
	r.st.Compared = min(r.st.Compared, from)
	return r.writeNow(now)
}

// mayBegin refuses to write a state in the place of one that is well-formed and is not
// as far: it could not be used for another reason, and records would be left out.
func (r *runner) mayBegin(st *state) error {
	b, err := r.eng.state.Get(r.ctx, stateTable, r.c.Name)
	if errors.Is(err, kv.ErrNotFound) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the cursor cannot be read at the moment, so it is not replaced: %w", err)
	}
	old, err := decodeState(b)
	switch {
	case err != nil:
		return nil // there is nothing to go by
	case old.Origin != st.Origin:
		return errors.New("the cursor is that of another log still, which is put aside first; try again later")
	case st.Cursor > old.Cursor:
		return fmt.Errorf("index %d is above the cursor %d: records in between would never be sent", st.Cursor, old.Cursor)
	}
	st.Paused = old.Paused
	return nil
}

// Requeue sends records out of the quarantine once more, with the projection of
// now; nil means all. They stay listed until they were delivered. It returns how
// many they are.
func (e *Engine) Requeue(ctx context.Context, by Actor, sink string, ids []string) (int, error) {
	indexes, err := e.picked(ctx, sink, ids)
	if err != nil || len(indexes) == 0 {
		return 0, err
	}
	if err := e.act(ctx, by, actRequeue, sink, aboutAll(e.idsOf(indexes))); err != nil {
		return 0, err
	}
	err = e.inside(ctx, sink, func(r *runner) error {
		r.sendAgain(r.requeued(indexes))
		return nil
	})
	return len(indexes), err
}

// Waive takes records out of the quarantine that will not be delivered, for a
// reason that is recorded; nil means all, those of earlier logs included. They
// stay in the book.
func (e *Engine) Waive(ctx context.Context, by Actor, sink string, ids []string, reason string) (int, error) {
	if reason = strings.TrimSpace(reason); reason == "" || len(reason) > maxReason {
		return 0, fmt.Errorf("say in 1 to %d bytes why the records need not be delivered", maxReason)
	}
	var keys []string
	err := e.quarantine(ctx, quarantineTable, sink, func(q *Quarantined) {
		if ids == nil || slices.Contains(ids, q.ID) {
			keys = append(keys, q.ID)
		}
	})
	if err != nil {
		return 0, err
	}
	for _, id := range ids {
		if !slices.Contains(keys, id) {
			return 0, fmt.Errorf("%.80q %w", id, ErrNotQuarantined)
		}
	}
	if _, err := e.runner(sink); err != nil || len(keys) == 0 {
		return 0, err
	}
	slices.Sort(keys)
	err = e.act(ctx, by, actWaive, sink, func(rec *record.Record) {
		aboutAll(keys)(rec)
		rec.Event.Cause = reason
	})
	if err != nil {
		return 0, err
	}
	return len(keys), e.inside(ctx, sink, func(r *runner) error { return r.waive(keys) })
}

func (r *runner) waive(ids []string) (err error) {
	for _, id := range ids {
		if err = r.waiveOne(id); err != nil {
			break
		}
	}
	if r.st == nil {
		return err
	}
	return errors.Join(err, r.loadJail()) // of what was done before an error, too
}

// waiveOne takes a record out of the quarantine. A comparison would miss it and send
// it again, so until one has passed it is remembered that nobody wants it there.
func (r *runner) waiveOne(id string) error {
	key := jailKey(r.c.Name, id)
	index, ours := r.indexOf(id)
	if ours && r.comparable() && (r.st == nil || index >= r.st.Compared) {
		value, err := r.eng.state.Get(r.ctx, quarantineTable, key)
		if errors.Is(err, kv.ErrNotFound) {
			return nil // delivered meanwhile
		}
		if err == nil {
			err = r.eng.state.Put(r.ctx, waivedTable, key, value, time.Time{})
		}
		if err != nil {
			return err
		}
	}
	if err := r.eng.state.Delete(r.ctx, quarantineTable, key); err != nil {
		return err
	}
	if ours {
		r.resend = slices.DeleteFunc(r.resend, func(i uint64) bool { return i == index })
	}
	return nil
}

// forgetWaived lets go of what was waived where comparison has passed, which the
// state must say by now.
func (r *runner) forgetWaived() {
	for index := range r.jail.waived {
		if index >= r.st.Compared {
			continue
		}
		if err := r.eng.state.Delete(r.sendCtx, waivedTable, jailKey(r.c.Name, r.id(index))); err != nil {
			return // the next time
		}
		delete(r.jail.waived, index)
	}
}

// idsOf gives the ids of this log's indexes.
func (e *Engine) idsOf(indexes []uint64) []string {
	m := maker{prefix: idPrefix(e.origin)}
	out := make([]string, len(indexes))
	for n, i := range indexes {
		out[n] = m.id(i)
	}
	return out
}

// linksMost is how many ids stand in a record; a digest covers all.
const linksMost = 12

// aboutAll writes into a record which ids it is about.
func aboutAll(ids []string) func(*record.Record) {
	return func(rec *record.Record) {
		sum := sha256.Sum256([]byte(strings.Join(ids, "\n")))
		rec.Event.Count, rec.Event.Before = int64(len(ids)), hex.EncodeToString(sum[:16])
		rec.Links = slices.Clone(ids[:min(len(ids), linksMost)])
	}
}

// picked finds what is in quarantine.
func (e *Engine) picked(ctx context.Context, sink string, ids []string) (indexes []uint64, err error) {
	err = e.inside(ctx, sink, func(r *runner) (err error) {
		if r.st == nil {
			return errNoState
		}
		indexes, err = r.pick(ids)
		return err
	})
	return indexes, err
}

// Test asks the sink whether records could be sent. Nothing is kept there.
func (e *Engine) Test(ctx context.Context, by Actor, sink string) error {
	r, err := e.runner(sink)
	if err != nil {
		return err
	}
	if err := e.act(ctx, by, actTest, sink, nil); err != nil {
		return err
	}
	return tested(ctx, r.c.Sink)
}

// Quarantine lists what is in the quarantine of a sink, by index; "" means of
// all sinks.
func (e *Engine) Quarantine(ctx context.Context, sink string) ([]Quarantined, error) {
	var out []Quarantined
	err := e.quarantine(ctx, quarantineTable, sink, func(q *Quarantined) { out = append(out, *q) })
	slices.SortFunc(out, func(a, b Quarantined) int {
		if c := strings.Compare(a.Sink, b.Sink); c != 0 {
			return c
		}
		switch {
		case a.Index < b.Index:
			return -1
		case a.Index > b.Index:
			return 1
		}
		return 0
	})
	return out, err
}
