package book

import (
	"context"
	"errors"
	"fmt"

	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
)

// What the book does not take must not vanish. An exchange without an open
// mark is counted in the blind file before its refusal is answered, and a gap
// record tells the count when the book takes records again, in this process or
// the next. One whose mark is in the WAL is not counted: an interrupted record
// made from the mark stands for it, as it would after a crash. So each exchange
// is in one record, or in one gap's count, and never in both.

// lost says why something was not kept, and accounts for the exchange if it
// was its record. An open mark does not count: the record of its exchange is
// still to come. Nor do the book's own records, which stand for no exchange.
func (rec *Recorder) lost(kind ledger.ItemKind, id record.ID, marked bool, when int64, err error) error {
	e := &Error{reasonOf(err), err}
	b := rec.book
	switch {
	case rec.rules == b.own:
	case kind == ledger.ItemOpen:
		if errors.Is(err, ledger.ErrSlow) || errors.Is(err, ledger.ErrUnsure) {
			b.blind.doubt(id)
		}
	default:
		inexact := errors.Is(err, ledger.ErrSlow) || errors.Is(err, ledger.ErrUnsure) || errors.Is(err, errFoldFile)
		one := missed{count: 1, first: when, last: when, cause: e.reason, inexact: inexact}
		if werr := b.blind.lose(id, marked, b.ledger.Err() != nil, one); werr != nil {
			b.cfg.Logger.Error("an exchange that is not recorded is counted in memory only", "err", werr)
		}
	}
	return e
}

// doubt notes that the mark of an exchange may or may not have been written.
func (b *blind) doubt(id record.ID) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.unsure) < maxUnsure {
		b.unsure[id] = struct{}{}
		b.unsureN.Store(int32(len(b.unsure)))
	}
}

// settled forgets such a doubt: the exchange has its record.
func (b *blind) settled(id record.ID) {
	if b.unsureN.Load() == 0 {
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	delete(b.unsure, id)
	b.unsureN.Store(int32(len(b.unsure)))
}

// lose accounts for an exchange whose record was not kept. final: this process
// will write no more records.
func (b *blind) lose(id record.ID, marked, final bool, one missed) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	_, unsure := b.unsure[id]
	delete(b.unsure, id)
	b.unsureN.Store(int32(len(b.unsure)))
	if marked || unsure {
		b.orphans = append(b.orphans, orphan{id, one, unsure})
		if !unsure && (!final || one.inexact) {
			return nil // the mark is in the kernel and stays, or the record is there
		}
		b.state.marked++
	} else {
		b.state.open.add(one)
	}
	b.state.whole = false
	if one.cause == "book_slow" {
		b.writeLater()
		return nil
	}
	return b.write()
}

// maxLate bounds how many records that were kept too late wait to be told of;
// others are in the gap's count only, which then is not exact.
const maxLate = 4096

// KeptLate implements ledger.LateKeeper: the record of an exchange was kept when
// the exchange had been ended without it.
func (b *blind) KeptLate(it *ledger.Item) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if len(b.late) < maxLate {
		b.late = append(b.late, it.Mark)
	}
}

// tellLate corrects records that were kept too late: what they say of the answer
// is not what the client got, which was 503 or the end of its connection.
func (b *Book) tellLate(ctx context.Context) error {
	bl := b.blind
	for {
		bl.mu.Lock()
		late := bl.late
		bl.mu.Unlock()
		if len(late) == 0 {
			return nil
		}
		late = late[:min(len(late), maxLateLinks)]
		r := &record.Record{
			Kind: record.KindGap, Outcome: record.Failure, Error: record.Error{Origin: "book", Reason: "book_slow"},
			Event: record.Event{Name: eventKeptLate, Cause: "book_slow"},
		}
		for _, id := range late {
			r.Links = append(r.Links, record.ID(id).String())
		}
		now := b.cfg.Now()
		r.ID, r.Time = b.NewID(now), now.UnixMicro()
		if err := b.noteSurely(ctx, r); err != nil {
			return err
		}
		bl.mu.Lock()
		bl.late = bl.late[len(late):]
		bl.mu.Unlock()
	}
}

// eventKeptLate is what records call those that were kept too late, which they
// link to, maxLateLinks at most each.
const (
	eventKeptLate = "kept_late"
	maxLateLinks  = 16
)

// settle accounts for what was lost, once the book takes records again.
func (b *Book) settle(ctx context.Context) error {
	if b.ledger.Err() != nil {
		return nil
	}
	if err := b.tellLate(ctx); err != nil {
		return err
	}
	if t, orphans, _ := b.blind.pending(); t.count == 0 && orphans == 0 {
		return nil
	}
	if err := b.ledger.Room(); err != nil {
		return err
	}
	if err := b.adopt(ctx); err != nil {
		return err
	}
	return b.flushGap(ctx)
}

// adopt writes the interrupted records of orphans.
func (b *Book) adopt(ctx context.Context) error {
	bl := b.blind
	for {
		bl.mu.Lock()
		if len(bl.orphans) == 0 {
			bl.mu.Unlock()
			return nil
		}
		o := bl.orphans[0]
		bl.mu.Unlock()
		m, err := b.ledger.Mark(o.id)
		if err == nil {
			err = b.interrupted(ctx, &m)
		}
		// Not open: its record was kept after all, or there never was a mark.
		gone := errors.Is(err, ledger.ErrNotOpen)
		if err != nil && !gone {
			return err
		}
		if err := bl.adopted(&o, gone); err != nil {
			return err
		}
	}
}

// adopted strikes the first orphan out. One that may never have had a mark is
// counted if it has none.
func (b *blind) adopted(o *orphan, gone bool) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.orphans = b.orphans[1:]
	if !o.unsure {
		return nil
	}
	b.state.marked = max(b.state.marked, 1) - 1
	if gone {
		o.lost.inexact = true
		b.state.open.add(o.lost)
	}
	b.state.whole = false
	return b.write()
}

// flushGap writes the gap record and clears the count. Before the record is
// written the file says under which id it will be, so that a crash at any
// point neither loses the count nor tells it twice.
func (b *Book) flushGap(ctx context.Context) error {
	for {
		d, err := b.freeze()
		if err != nil || d.count == 0 {
			return err
		}
		r := &record.Record{
			ID: d.id, Time: b.cfg.Now().UnixMicro(),
			Kind: record.KindGap, Outcome: record.Failure,
			Error: record.Error{Origin: "book", Reason: d.cause},
			Event: record.Event{Name: "gap", Count: d.count, Exact: !d.inexact, First: d.first, Last: d.last, Cause: d.cause},
		}
		if err := b.noteSurely(ctx, r); err != nil {
			return err
		}
		if err := b.ledger.Sync(); err != nil {
			return err
		}
		if err := b.blind.change(func(s *blindState) { s.due = due{} }); err != nil {
			return fmt.Errorf("clearing the blind file: %w", err)
		}
	}
}

// freeze sets what was counted aside for its gap record and puts that on the
// disk.
func (b *Book) freeze() (due, error) {
	bl := b.blind
	bl.mu.Lock()
	s := &bl.state
	if s.due.count == 0 {
		if s.open.count == 0 {
			bl.mu.Unlock()
			return due{}, nil
		}
		s.due = due{id: b.NewID(b.cfg.Now()), from: b.ledger.Size(), missed: s.open}
		s.open = missed{}
	}
	d := s.due
	err := bl.write()
	bl.mu.Unlock()
	if err == nil {
		err = bl.sync()
	}
	if err != nil {
		return due{}, fmt.Errorf("the blind file: %w", err)
	}
	return d, nil
}

// noteSurely is Note that knows afterwards whether the record was kept. A
// record that was kept before is not kept again.
func (b *Book) noteSurely(ctx context.Context, r *record.Record) error {
	rec := Recorder{book: b, rules: b.own, set: b.own.Digest()}
	who, _ := rec.redact(r)
	buf, err := b.encode(ledger.ItemRecord, true, r, who, nil)
	if err != nil {
		return err
	}
	buf.item.Sure, buf.item.Reserve = true, ledger.UseBallast
	if _, err := b.ledger.Append(ctx, &buf.item, ledger.Written); err != nil {
		return &Error{reasonOf(err), err}
	}
	b.appended(buf)
	return nil
}

// recoverBlind reads what the last process could not record: marks is how many
// exchanges have an open mark in the WAL. It comes before anything is recorded
// and may be repeated.
func (b *Book) recoverBlind(marks int) error {
	bl, c, found, err := openBlind(b.files, b.blindKey)
	if err != nil {
		return fmt.Errorf("the blind file: %w", err)
	}
	b.blind = bl
	if found != nil && b.ledger.Size() > 0 {
		b.cfg.Logger.Error("what the last process could not record is not known", "err", found)
	}
	told, err := b.isTold(&c.due)
	if err != nil {
		return err
	}
	if c.open.count+c.due.count == 0 && c.marked == 0 {
		return bl.change(func(s *blindState) { s.boot = b.boot })
	}
	exact := c.whole || c.damaged == 0 && c.boot == b.boot && b.boot != bootID{}
	err = bl.change(func(s *blindState) {
		s.boot = b.boot
		s.open.inexact = s.open.inexact || s.open.count > 0 && !exact
		if s.marked > uint64(marks) {
			// Marks that a broken disk did not keep.
			now := b.cfg.Now().UnixMicro()
			s.open.add(missed{count: int64(s.marked) - int64(marks), first: now, last: now, cause: "book_unavailable", inexact: true})
		}
		s.marked = 0
		if told {
			s.due = due{}
		}
	})
	if err != nil {
		return err
	}
	return bl.sync()
}

// errFound ends a search.
var errFound = errors.New("found")

// isTold looks for the gap record that the last process was about to write.
func (b *Book) isTold(d *due) (bool, error) {
	if d.count == 0 {
		return false, nil
	}
	r, err := b.Reader()
	if err != nil {
		return false, err
	}
	from := d.from
	if from > r.Size() {
		from = 0 // another log took over
	}
	err = r.Each(from, r.Size(), false, func(e *Entry) error {
		if e.Record.Kind == record.KindGap && e.Record.ID == d.id {
			return errFound
		}
		return nil
	})
	if errors.Is(err, errFound) {
		return true, r.Close()
	}
	return false, errors.Join(err, r.Close())
}

// blindLoop keeps the blind file on the disk.
func (b *Book) blindLoop(ctx context.Context) error {
	b.blind.syncLoop(ctx, b.cfg.SyncWithin, func(err error) {
		b.cfg.Logger.Error("the blind file cannot be written; what is not recorded is counted in memory only", "err", err)
	})
	return nil
}
