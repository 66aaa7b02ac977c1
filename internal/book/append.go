package book

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
)

// Recorder writes the records of one snapshot: it is the book together with
// that snapshot's redaction rules.
type Recorder struct {
	book  *Book
	rules *redact.Rules
	set   string
	snap  string
}

// Recorder binds redaction rules and the snapshot's id.
func (b *Book) Recorder(rules *redact.Rules, snap string) *Recorder {
	return &Recorder{book: b, rules: rules, set: rules.Digest(), snap: snap}
}

// Open commits the mark that an exchange is about to be forwarded, at the
// level asked for, before its upstream is called. It redacts r in place.
func (rec *Recorder) Open(ctx context.Context, r *record.Record, l record.Level) (record.Ref, error) {
	err := rec.append(ctx, ledger.ItemOpen, false, r, l)
	return r.ID, err
}

// Commit keeps the record of an exchange and closes its open mark. It does not
// matter what Open returned: a mark whose Open timed out may be there all the
// same, and closing none is no error. An exchange of a flood may be counted
// instead (see fold). It redacts r in place.
func (rec *Recorder) Commit(ctx context.Context, ref record.Ref, r *record.Record, l record.Level) error {
	if r.Raw.Fold && ref == (record.Ref{}) {
		if folded, err := rec.fold(ctx, r, l); folded {
			return err
		}
	}
	return rec.append(ctx, ledger.ItemRecord, true, r, l)
}

// buffer holds one encoded record.
type buffer struct {
	frame, personal []byte
	item            ledger.Item
	key             keys.Key
}

// append is the record's way.
func (rec *Recorder) append(ctx context.Context, kind ledger.ItemKind, closes bool, r *record.Record, l record.Level) error {
	b := rec.book
	if kind == ledger.ItemOpen {
		r.Outcome = record.Unknown
	}
	buf, err := b.encode(kind, closes, r, rec.redact(r))
	if err != nil {
		return rec.lost(kind, r.Time, err)
	}
	if l == record.Queued {
		return rec.queued(buf)
	}
	if _, err := b.ledger.Append(ctx, &buf.item, level(l)); err != nil {
		return rec.lost(kind, r.Time, err) // buf is not reused: the ledger may still read it
	}
	b.appended(buf)
	return nil
}

// redact makes r what may be kept and returns whose it is.
func (rec *Recorder) redact(r *record.Record) (who string) {
	r.Node, r.Snap = rec.book.cfg.Node, rec.snap
	who = r.Raw.IssuerSub
	rec.rules.Apply(r)
	r.Raw.IssuerSub = who // the record passes here twice and stays the same subject's
	return who
}

// encode resolves the subject of a redacted record and makes its item.
func (b *Book) encode(kind ledger.ItemKind, closes bool, r *record.Record, who string) (*buffer, error) {
	s, claim, err := b.subject(r, who)
	if err != nil {
		return nil, err
	}
	r.Subject = s.Pseudonym
	buf := b.buffers.Get().(*buffer)
	buf.frame = record.AppendFrame(buf.frame[:0], r)
	buf.personal = record.AppendPersonal(buf.personal[:0], r)
	buf.key = s.Key
	buf.item = ledger.Item{
		Kind: kind, Mark: r.ID, Closes: closes, Time: r.Time, Subject: s.ID, SubjectKey: &buf.key,
		Births: [2][]byte{s.Birth, claim}, Frame: buf.frame, Personal: buf.personal, Housekeeping: housekeeping(r.Kind),
	}
	return buf, nil
}

// appended notes what follows from a batch that is in the WAL.
func (b *Book) appended(buf *buffer) {
	for _, birth := range buf.item.Births {
		if birth != nil {
			b.ring.Written(birth)
		}
	}
	if buf.item.Kind == ledger.ItemRecord {
		b.records.Add(1)
	}
	b.reuse(buf)
}

// reuse gives a buffer back that nobody reads any more.
func (b *Book) reuse(buf *buffer) {
	clear(buf.key[:])
	buf.item = ledger.Item{}
	b.buffers.Put(buf)
}

func level(l record.Level) ledger.Level {
	if l == record.Durable {
		return ledger.Durable
	}
	return ledger.Written
}

// housekeeping kinds do not make a segment worth sealing early.
func housekeeping(k record.Kind) bool {
	switch k {
	case record.KindHeartbeat, record.KindDelivery, record.KindAccess:
		return true
	}
	return false
}

// subject resolves whom the personal part is about.
func (b *Book) subject(r *record.Record, issuerSub string) (s keys.Subject, claim []byte, err error) {
	start := r.At()
	switch {
	case issuerSub != "":
		s, err = b.ring.Person(issuerSub)
	case r.Personal.IP != "":
		s, err = b.ring.Anonymous(addressPrefix(r.Personal.IP), start)
	default:
		s = b.ring.System()
	}
	if err == nil && r.Personal.Claimed != "" {
		claim, err = b.ring.Claimed(r.Personal.Claimed, s, start)
	}
	if err != nil {
		return s, nil, fmt.Errorf("resolving the subject: %w", err)
	}
	return s, claim, nil
}

// addressPrefix is what anonymous exchanges from an address have in common,
// whatever the frame keeps of it.
func addressPrefix(ip string) string {
	a, err := netip.ParseAddr(ip)
	if err != nil {
		return ip
	}
	bits := 32
	if a.Is4() {
		bits = 24
	}
	p, err := a.Prefix(bits)
	if err != nil {
		return ip
	}
	return p.String()
}

// Note keeps a record of the book's own or of an act upon it. It fills in id,
// time and what is mandatory.
func (b *Book) Note(ctx context.Context, r *record.Record) error {
	now := b.cfg.Now()
	if r.ID == (record.ID{}) {
		r.ID = b.NewID(now)
	}
	if r.Time == 0 {
		r.Time = now.UnixMicro()
	}
	rec := Recorder{book: b, rules: b.own, set: b.own.Digest(), snap: r.Snap}
	return rec.Commit(ctx, record.Ref{}, r, record.Written)
}

// Error is why the book did not take a record, in the words of package reason.
type Error struct {
	reason string
	err    error
}

func (e *Error) Error() string { return e.reason + ": " + e.err.Error() }
func (e *Error) Unwrap() error { return e.err }

// Reason is book_unavailable, book_full or book_slow.
func (e *Error) Reason() string { return e.reason }

func reasonOf(err error) string {
	switch {
	case errors.Is(err, ledger.ErrFull):
		return "book_full"
	case errors.Is(err, ledger.ErrSlow):
		return "book_slow"
	}
	return "book_unavailable"
}

// gap counts exchanges that could not be recorded.
type gap struct {
	count       int64
	first, last int64 // microseconds since the Unix epoch
	inexact     bool  // one of them may have been kept after all
	cause       string
}

// lost says why something was not kept, and counts the exchange if it was its
// record. An open mark does not count: the record of its exchange is still to
// come, and is counted if that is lost too. Nor do the book's own records,
// which stand for no exchange.
func (rec *Recorder) lost(kind ledger.ItemKind, when int64, err error) error {
	e := &Error{reasonOf(err), err}
	b := rec.book
	if kind != ledger.ItemRecord || rec.rules == b.own {
		return e
	}
	b.gapMu.Lock()
	defer b.gapMu.Unlock()
	if b.gap.count == 0 {
		b.gap.first = when
	}
	b.gap.count++
	b.gap.first = min(b.gap.first, when)
	b.gap.last = max(b.gap.last, when)
	b.gap.inexact = b.gap.inexact || errors.Is(err, ledger.ErrSlow) || errors.Is(err, errFoldFile)
	b.gap.cause = e.reason
	return e
}

// flushGap records what was lost once the book takes records again.
func (b *Book) flushGap(ctx context.Context) error {
	b.gapMu.Lock()
	g := b.gap
	b.gapMu.Unlock()
	if g.count == 0 || b.ledger.Err() != nil {
		return nil
	}
	err := b.Note(ctx, &record.Record{
		Kind: record.KindGap, Outcome: record.Failure,
		Error: record.Error{Origin: "book", Reason: g.cause},
		Event: record.Event{Name: "gap", Count: g.count, Exact: !g.inexact, First: g.first, Last: g.last, Cause: g.cause},
	})
	b.gapMu.Lock()
	defer b.gapMu.Unlock()
	if errors.Is(err, ledger.ErrSlow) {
		b.gap.inexact = true // this gap may have been recorded after all
	}
	if err != nil {
		return err
	}
	rest := b.gap
	rest.count -= g.count
	b.gap = gap{}
	if rest.count > 0 { // lost meanwhile
		rest.first = g.last
		b.gap = rest
	}
	return nil
}

// queued hands a record over without waiting for the kernel. A record that is
// lost after all is counted.
func (rec *Recorder) queued(buf *buffer) error {
	kind, when := buf.item.Kind, buf.item.Time
	err := rec.book.ledger.Queue(&buf.item, func(err error) {
		if err != nil {
			rec.lost(kind, when, err)
			return
		}
		rec.book.appended(buf)
	})
	if err != nil {
		return rec.lost(kind, when, err)
	}
	return nil
}

// beat writes heartbeats and gap records and projects births into the key
// store.
func (b *Book) beat(ctx context.Context) error {
	tick := time.NewTicker(b.cfg.Heartbeat)
	defer tick.Stop()
	project := time.NewTicker(time.Second)
	defer project.Stop()
	clock := newClock(b.cfg.Now())
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-project.C:
			if err := b.ring.Project(b.ring.Pending()); err != nil {
				b.cfg.Logger.Error("subjects could not be made durable in the key store; the WAL keeps them", "err", err)
			}
			if err := b.flushGap(ctx); err != nil {
				b.cfg.Logger.Error("the gap could not be recorded yet", "err", err)
			}
		case <-tick.C:
			if err := b.heartbeat(ctx, clock); err != nil {
				b.cfg.Logger.Error("no heartbeat", "err", err)
			}
		}
	}
}

func (b *Book) heartbeat(ctx context.Context, c *clock) error {
	now := b.cfg.Now()
	step := c.step(now)
	if step != 0 {
		if err := b.Note(ctx, &record.Record{Kind: record.KindClock, Outcome: record.Success,
			Event: record.Event{Name: "clock_step", Count: step.Microseconds(), MonoUS: c.mono(now), Clock: syncState()}}); err != nil {
			return err
		}
	}
	return b.Note(ctx, &record.Record{Kind: record.KindHeartbeat, Outcome: record.Success,
		Event: record.Event{Name: "heartbeat", Count: b.records.Swap(0), MonoUS: c.mono(now), Clock: syncState()}})
}
