package book

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
)

// foldTicks is how often, in a window, floods are looked at.
const foldTicks = 10

// foldLoop makes the fold file, then records folds and tells of floods until
// ctx ends. What is still counted then is recorded. Without its file nothing
// is folded: every record is written, as it is without a flood.
func (b *Book) foldLoop(ctx context.Context) error {
	f := b.folds
	if f.gap == 0 {
		return nil
	}
	if err := b.startFolds(); err != nil {
		b.cfg.Logger.Error("floods are not folded: no fold file", "err", err)
		return nil
	}
	syncing, stop := context.WithCancel(context.WithoutCancel(ctx))
	defer stop()
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := f.file.syncLoop(syncing, b.cfg.SyncWithin); err != nil {
			b.cfg.Logger.Error("floods are not folded any more: the fold file cannot be synced", "err", err)
			f.fail()
		}
	})
	tick := time.NewTicker(min(b.cfg.FoldWindow/foldTicks, time.Second))
	defer tick.Stop()
	for running := true; running; {
		select {
		case <-ctx.Done():
			running = false
		case <-f.wake:
		case <-tick.C:
		}
		all := !running || f.broken.Load()
		if all {
			f.turn(false)
		}
		if err := b.foldTick(context.WithoutCancel(ctx), all); err != nil {
			b.cfg.Logger.Error("folds could not be recorded yet; the fold file keeps them", "err", err)
		}
	}
	stop()
	wg.Wait()
	return errors.Join(f.file.sync(), f.file.f.Close())
}

// startFolds begins to fold. What the file of the last process held is recorded
// and on the disk by now.
func (b *Book) startFolds() error {
	f := b.folds
	file, err := createFoldFile(b.files, &f.key, len(f.slots), b.boot)
	if err != nil {
		return err
	}
	f.file = file
	f.turn(true)
	return nil
}

// turn begins or ends folding. When it returns, nobody is folding who should
// not be.
func (f *folds) turn(on bool) {
	f.gate.Lock()
	defer f.gate.Unlock()
	f.on = on
}

// foldTick records the folds that are old enough, or all, and tells which
// floods began and ended. It stops at the first error; what is left is done
// another time. It belongs to the loop.
func (b *Book) foldTick(ctx context.Context, all bool) error {
	f := b.folds
	now := b.cfg.Now()
	for i := range f.slots {
		if err := b.tendSlot(ctx, &f.slots[i], now, all); err != nil {
			return err
		}
	}
	for len(f.ended) > 0 {
		if err := b.alert(ctx, eventFloodEnd, &f.ended[0]); err != nil {
			return err
		}
		f.ended = f.ended[1:]
	}
	return nil
}

// tendSlot does for one slot what foldTick does.
func (b *Book) tendSlot(ctx context.Context, s *foldSlot, now time.Time, all bool) error {
	s.mu.Lock()
	if s.key == (foldKey{}) {
		s.mu.Unlock()
		return nil
	}
	if w := s.open; w != nil && !s.busy && s.closing == nil && (all || now.Sub(w.opened) >= b.cfg.FoldWindow) {
		s.closing, s.open, s.next = w, nil, 1-w.spot
	}
	w, begun := s.closing, foldEnd{s.key, s.flood}
	s.mu.Unlock()

	if begun.on && !begun.told {
		if err := b.alert(ctx, eventFloodBegin, &begun); err != nil {
			return err
		}
		s.mu.Lock()
		s.flood.told = true
		s.mu.Unlock()
	}
	if w != nil {
		index, err := b.keepFold(ctx, &w.mark, w.foldCount, true)
		if err != nil {
			return err
		}
		s.mu.Lock()
		s.closing, s.after[w.spot] = nil, index+1
		s.mu.Unlock()
	}
	b.endFlood(s, now, all)
	return nil
}

// endFlood notes a flood that is over and frees a slot that is not needed.
func (b *Book) endFlood(s *foldSlot, now time.Time, all bool) {
	f := b.folds
	s.mu.Lock()
	if s.flood.on && s.idle() && (all || now.Sub(s.flood.latest) >= b.cfg.FoldWindow) {
		f.ended = append(f.ended, foldEnd{s.key, s.flood})
		f.floods.Add(-1)
		s.flood = flood{}
	}
	spare := !s.flood.on && s.idle()
	s.mu.Unlock()
	if spare {
		f.release(s, now)
	}
}

// alert tells of a flood's begin or end.
func (b *Book) alert(ctx context.Context, name string, fl *foldEnd) error {
	ev := record.Event{Name: name, First: fl.first, Cause: fl.key.reason}
	if name == eventFloodEnd {
		ev.Count, ev.Exact, ev.Last = fl.count, true, fl.last
	}
	return b.Note(ctx, &record.Record{
		Kind: record.KindAlert, Outcome: record.Failure, Client: record.Client{Prefix: fl.prefix},
		Error: record.Error{Origin: fl.origin, Reason: fl.key.reason}, Links: fl.links, Event: ev,
	})
}

// keepFold turns a fold's mark into its record, which closes the mark, and
// returns the record's index. It is the same at a restart.
func (b *Book) keepFold(ctx context.Context, m *ledger.OpenMark, c foldCount, exact bool) (uint64, error) {
	var r record.Record
	if err := record.Decode(m.Frame, m.Personal, &r); err != nil {
		return 0, fmt.Errorf("mark %x of a fold: %w", m.ID, err)
	}
	r.Event.Count, r.Event.Last, r.Event.Exact = int64(max(c.count, 1)), max(r.Event.Last, c.last), exact
	subject := keys.ID(m.Subject)
	key, err := b.ring.SubjectKey(subject)
	if errors.Is(err, keys.ErrKeyDestroyed) || errors.Is(err, keys.ErrKeyUnknown) {
		// Erased meanwhile: the count stays, of nobody.
		own := b.ring.System()
		subject, key, err = own.ID, own.Key, nil
		r.Subject, r.Personal = own.Pseudonym, record.Personal{}
	}
	if err != nil {
		return 0, err
	}
	index, err := b.ledger.Append(ctx, &ledger.Item{
		Kind: ledger.ItemRecord, Mark: m.ID, Closes: true, Time: m.Time, Subject: subject, SubjectKey: (*[32]byte)(&key),
		Frame: record.AppendFrame(nil, &r), Personal: record.AppendPersonal(nil, &r), Sure: true, Reserve: ledger.UsePrepared,
	}, ledger.Written)
	if err == nil {
		b.records.Add(1)
	}
	return index, err
}

// isFold tells the mark of a fold from that of an exchange that was forwarded.
func isFold(m *ledger.OpenMark) bool {
	var r record.Record
	return record.Decode(m.Frame, nil, &r) == nil && r.Event.Name == eventFold
}

// recoverFolds records what the last process counted and did not record. The
// file is of the same boot if only the process died: then it lacks nothing.
func (b *Book) recoverFolds(ctx context.Context, marks []*ledger.OpenMark) error {
	if len(marks) == 0 {
		return nil
	}
	c, err := readFolds(b.files, &b.folds.key)
	if err != nil {
		return fmt.Errorf("reading the counts of %d folds: %w", len(marks), err)
	}
	exact := c.damaged == 0 && c.boot == b.boot && b.boot != bootID{}
	if !exact {
		b.cfg.Logger.Warn("the last counts of folds may be missing", "folds", len(marks), "damaged", c.damaged)
	}
	for _, m := range marks {
		if _, err := b.keepFold(ctx, m, c.counts[m.ID], exact); err != nil {
			return err
		}
	}
	return nil
}
