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
// level asked for, before its upstream is called. After an error the reference
// is zero. It redacts r in place.
func (rec *Recorder) Open(ctx context.Context, r *record.Record, l record.Level) (record.Ref, error) {
	if err := rec.append(ctx, ledger.ItemOpen, false, r, l); err != nil {
		return record.Ref{}, err
	}
	return r.ID, nil
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
	return rec.append(ctx, ledger.ItemRecord, ref != record.Ref{}, r, l)
}

// buffer holds one encoded record.
type buffer struct {
	frame, personal []byte
	item            ledger.Item
	key             keys.Key
}

// opening is what an exchange's open mark leaves for its record.
type opening struct {
	record.Kept
	who     string
	subject keys.Subject // of the mark
	gen     uint64       // of the key ring when it was resolved
	born    bool         // it needs no Birth any more
}

// append is the record's way. marked: its exchange has an open mark.
func (rec *Recorder) append(ctx context.Context, kind ledger.ItemKind, marked bool, r *record.Record, l record.Level) error {
	b := rec.book
	if kind == ledger.ItemOpen {
		r.Outcome = record.Unknown
	}
	who, o := rec.redact(r)
	first := o == nil && kind == ledger.ItemOpen
	if first {
		o = b.openings.Get().(*opening)
	}
	buf, err := b.encode(kind, kind == ledger.ItemRecord, r, who, o)
	if err != nil {
		return rec.lost(kind, r.ID, marked, r.Time, err)
	}
	if first {
		o.Keep(r, buf.frame, buf.personal)
		r.Raw.Kept = &o.Kept
	} else if o != nil {
		b.forget(o)
	}
	buf.item.Reserve = reserve(r.Kind, marked)
	if kind == ledger.ItemRecord && rec.rules != b.own {
		buf.item.Late = b.blind
	}
	if l == record.Queued {
		return rec.queued(buf, marked)
	}
	if _, err := b.ledger.Append(ctx, &buf.item, level(l)); err != nil {
		return rec.lost(kind, r.ID, marked, r.Time, err) // buf is not reused: the ledger may still read it
	}
	if kind == ledger.ItemRecord {
		b.blind.settled(r.ID)
	}
	if r.Kind == record.KindAlert {
		b.alerts.add(r.Event.Name)
	}
	b.appended(buf)
	if first {
		o.born = true
	}
	return nil
}

// reserve says what a record may use when the disk is nearly full: one that
// ends an exchange under way uses what is prepared, and what leads to more space
// uses the ballast.
func reserve(k record.Kind, marked bool) ledger.Reserve {
	switch {
	case k == record.KindRetention, k == record.KindErasure, k == record.KindGap:
		return ledger.UseBallast
	case marked:
		return ledger.UsePrepared
	}
	return ledger.UseNothing
}

// redact makes r what may be kept and returns whose it is, and what its open
// mark left, if it came here before.
func (rec *Recorder) redact(r *record.Record) (who string, o *opening) {
	r.Node, r.Snap = rec.book.cfg.Node, rec.snap
	who = r.Raw.IssuerSub
	if k := r.Raw.Kept; k != nil {
		o = k.Owner.(*opening)
	}
	rec.rules.Apply(r)
	r.Raw.IssuerSub = who // the record passes here twice and stays the same subject's
	return who, o
}

// encode resolves the subject of a redacted record and makes its item. o, if not
// nil, is of its open mark; of one that is new it learns the subject.
func (b *Book) encode(kind ledger.ItemKind, closes bool, r *record.Record, who string, o *opening) (*buffer, error) {
	s, claim, err := b.subject(r, who, o)
	if err != nil {
		return nil, err
	}
	r.Subject = s.Pseudonym
	buf := b.buffers.Get().(*buffer)
	if o != nil {
		buf.frame, buf.personal = o.Append(buf.frame[:0], buf.personal[:0], r)
	} else {
		buf.frame, buf.personal = record.Append(buf.frame[:0], buf.personal[:0], r)
	}
	buf.key = s.Key
	buf.item = ledger.Item{
		Kind: kind, Mark: r.ID, Closes: closes, Time: r.Time, Subject: s.ID, SubjectKey: &buf.key,
		Births: [2][]byte{s.Birth, claim}, Frame: buf.frame, Personal: buf.personal, Housekeeping: housekeeping(r.Kind),
	}
	return buf, nil
}

// forget gives back what an open mark left.
func (b *Book) forget(o *opening) {
	o.Forget()
	o.who, o.subject, o.born = "", keys.Subject{}, false
	b.openings.Put(o)
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

// subject resolves whom the personal part is about. What o knows from the open
// mark still holds if nobody was erased since.
func (b *Book) subject(r *record.Record, issuerSub string, o *opening) (s keys.Subject, claim []byte, err error) {
	start := r.At()
	gen := b.ring.Generation()
	switch {
	case o != nil && o.born && o.gen == gen && o.who == issuerSub && o.Record.Time == r.Time && o.Record.Personal.IP == r.Personal.IP:
		s = o.subject
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
	if o != nil {
		o.who, o.subject, o.gen, o.born = issuerSub, s, gen, s.Birth == nil
		o.subject.Birth = nil
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

// queued hands a record over without waiting for the kernel. A record that is
// lost after all is counted.
func (rec *Recorder) queued(buf *buffer, marked bool) error {
	kind, id, when := buf.item.Kind, record.ID(buf.item.Mark), buf.item.Time
	err := rec.book.ledger.Queue(&buf.item, func(err error) {
		if err != nil {
			rec.lost(kind, id, marked, when, err)
			return
		}
		if kind == ledger.ItemRecord {
			rec.book.blind.settled(id)
		}
		rec.book.appended(buf)
	})
	if err != nil {
		return rec.lost(kind, id, marked, when, err)
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
			if err := b.watchClock(ctx, clock); err != nil {
				b.cfg.Logger.Error("a step of the clock could not be recorded", "err", err)
			}
			if err := b.ring.Project(b.ring.Pending()); err != nil {
				b.cfg.Logger.Error("subjects could not be made durable in the key store; the WAL keeps them", "err", err)
			}
			if err := b.settle(ctx); err != nil {
				b.cfg.Logger.Error("the gap could not be recorded yet", "err", err)
			}
		case <-tick.C:
			if err := b.heartbeat(ctx, clock); err != nil {
				b.cfg.Logger.Error("no heartbeat", "err", err)
			}
		}
	}
}

// farStep is how far a step of the clock makes the book not ready.
const farStep = 5 * time.Second

// watchClock records a step of the clock. A far one shows in readiness until
// the second heartbeat after it.
func (b *Book) watchClock(ctx context.Context, c *clock) error {
	now := b.cfg.Now()
	return b.noteStep(ctx, c, c.step(now), now)
}

// noteStep is watchClock when the clock was stepped so far since the last time.
func (b *Book) noteStep(ctx context.Context, c *clock, step time.Duration, now time.Time) error {
	if step > farStep || step < -farStep {
		b.stepped.Store(int64(step))
		c.beats = 0
	}
	c.owed += step
	if c.owed == 0 {
		return nil
	}
	err := b.Note(ctx, &record.Record{Kind: record.KindClock, Outcome: record.Success,
		Event: record.Event{Name: "clock_step", Count: c.owed.Microseconds(), MonoUS: c.mono(now), Clock: syncState()}})
	if err == nil {
		c.owed = 0
	}
	return err
}

// heartbeat records that the book is alive. One that the book did not take is
// accounted for by the next that it takes: that says since when there was none
// and why, so that the silence is not taken for a hole.
func (b *Book) heartbeat(ctx context.Context, c *clock) error {
	err := b.watchClock(ctx, c)
	if err == nil {
		if c.beats++; c.beats > 1 {
			b.stepped.Store(0)
		}
		err = b.noteBeat(ctx, c)
	}
	var refused *Error
	if c.missed == "" && errors.As(err, &refused) {
		c.missed, c.missedAt = refused.Reason(), b.cfg.Now().UnixMicro()
	}
	return err
}

func (b *Book) noteBeat(ctx context.Context, c *clock) error {
	n := b.records.Swap(0)
	err := b.Note(ctx, &record.Record{Kind: record.KindHeartbeat, Outcome: record.Success,
		Event: record.Event{Name: "heartbeat", Count: n, MonoUS: c.mono(b.cfg.Now()), Clock: syncState(), Cause: c.missed, First: c.missedAt}})
	if err != nil {
		b.records.Add(n)
		return err
	}
	c.missed, c.missedAt = "", 0
	return nil
}
