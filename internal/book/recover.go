package book

import (
	"context"
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
)

// recover records what the last stop left behind. Every step may be repeated
// after another crash: an interrupted or folded record closes its mark.
func (b *Book) recover(ctx context.Context, rec *ledger.Recovered) error {
	var folds, exchanges []*ledger.OpenMark
	for i := range rec.Marks {
		if isFold(&rec.Marks[i]) {
			folds = append(folds, &rec.Marks[i])
		} else {
			exchanges = append(exchanges, &rec.Marks[i])
		}
	}
	if err := b.recoverBlind(len(exchanges)); err != nil {
		return err
	}
	for _, m := range exchanges {
		if err := b.interrupted(ctx, m); err != nil {
			return err
		}
	}
	if err := b.recoverFolds(ctx, folds); err != nil {
		return err
	}
	if !rec.Clean && rec.Size > 0 {
		err := b.Note(ctx, &record.Record{Kind: record.KindUncleanStop, Outcome: record.Failure,
			Event: record.Event{Name: "unclean_stop", Count: int64(len(exchanges)), Exact: true, Cause: tornCause(rec.Cut)}})
		if err != nil {
			return err
		}
	}
	if err := b.flushGap(ctx); err != nil {
		return err
	}
	if err := b.noteSetBack(ctx, rec.Size); err != nil {
		return err
	}
	err := b.Note(ctx, &record.Record{Kind: record.KindStart, Outcome: record.Success,
		Event: record.Event{Name: "start", Target: Version(), Clock: syncState()}})
	if err != nil {
		return err
	}
	return b.ledger.SignCheckpoint(ctx)
}

// noteSetBack records that the clock was set back since the last stop, as far as
// it can be told: it shows a time before that of a record that there was then.
func (b *Book) noteSetBack(ctx context.Context, size uint64) error {
	last, err := b.newest(size)
	now := b.cfg.Now()
	if err != nil || last == 0 || now.UnixMicro() > last-farStep.Microseconds() {
		return err
	}
	b.cfg.Logger.Warn("the clock was set back since the last stop", "by", time.Duration(last-now.UnixMicro())*time.Microsecond)
	return b.Note(ctx, &record.Record{Kind: record.KindClock, Outcome: record.Success, Event: record.Event{
		Name: "clock_step", Count: now.UnixMicro() - last, Last: last, Clock: syncState(), Cause: "between_runs",
	}})
}

// newest is the latest time of the last records below an index, 0 if there are
// none.
func (b *Book) newest(size uint64) (us int64, err error) {
	const few = 64 // not all of them are manifests
	r, err := b.Reader()
	if err != nil {
		return 0, err
	}
	err = r.Each(size-min(size, few), size, false, func(e *Entry) error {
		us = max(us, e.Record.Time)
		return nil
	})
	return us, errors.Join(err, r.Close())
}

func tornCause(cut int64) string {
	if cut > 0 {
		return "torn_tail"
	}
	return ""
}

// interrupted turns an open mark into the record of its exchange: what was
// known when it was forwarded, and that its end is not known.
func (b *Book) interrupted(ctx context.Context, m *ledger.OpenMark) error {
	var r record.Record
	if err := record.Decode(m.Frame, m.Personal, &r); err != nil {
		return fmt.Errorf("open mark %x: %w", m.ID, err)
	}
	r.Kind, r.Outcome = record.KindInterrupted, record.Unknown
	key, err := b.ring.SubjectKey(m.Subject)
	if err != nil {
		return err
	}
	it := ledger.Item{
		Kind: ledger.ItemRecord, Mark: m.ID, Closes: true, OnlyOpen: true, Time: m.Time, Subject: m.Subject, SubjectKey: &key,
		Frame: record.AppendFrame(nil, &r), Personal: record.AppendPersonal(nil, &r), Sure: true, Reserve: ledger.UseBallast,
	}
	_, err = b.ledger.Append(ctx, &it, ledger.Written)
	return err
}

// compactMark keeps of an open mark what names its exchange: id, time, route,
// subject, address and path.
func compactMark(frame, personal []byte) (f, p []byte) {
	var r record.Record
	if record.Decode(frame, personal, &r) != nil {
		return nil, nil
	}
	if r.Event.Name == eventFold {
		return frame, personal // it needs its reason, and lives for one window
	}
	short := record.Record{
		ID: r.ID, Time: r.Time, Kind: r.Kind, Outcome: r.Outcome, Route: r.Route, Op: r.Op, Subject: r.Subject,
		Client:   record.Client{Prefix: r.Client.Prefix},
		Personal: record.Personal{IP: r.Personal.IP, Path: r.Personal.Path},
	}
	return record.AppendFrame(nil, &short), record.AppendPersonal(nil, &short)
}

// clock compares the wall clock with the monotonic one. It belongs to one
// goroutine.
type clock struct {
	start time.Time
	last  time.Time
	beats int           // heartbeats since the last far step
	owed  time.Duration // steps without a record

	missed   string // why the heartbeats since the last were not taken; "" if they were
	missedAt int64  // the first of them, microseconds since the Unix epoch
}

func newClock(now time.Time) *clock { return &clock{start: now, last: now} }

func (c *clock) mono(now time.Time) int64 { return now.Sub(c.start).Microseconds() }

// stepLimit is how far the clocks may drift apart between two heartbeats
// before it is called a step.
const stepLimit = time.Second

// step returns by how much the wall clock was stepped since the last call, 0
// if it was not.
func (c *clock) step(now time.Time) time.Duration {
	wall := now.Round(0).Sub(c.last.Round(0))
	mono := now.Sub(c.last)
	c.last = now
	if d := wall - mono; d > stepLimit || d < -stepLimit {
		return d
	}
	return 0
}

// syncState asks the kernel whether the clock is synchronised.
func syncState() string {
	var t unix.Timex
	state, err := unix.Adjtimex(&t)
	switch {
	case err != nil:
		return "unknown"
	case state == unix.TIME_ERROR || t.Status&unix.STA_UNSYNC != 0:
		return "unsynced"
	}
	return "synced"
}
