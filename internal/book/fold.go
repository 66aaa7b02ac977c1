package book

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
)

// A flood of refusals must not fill the disk with records, nor leave one of
// them out. Above a rate, exchanges of strangers that have address prefix,
// reason and kind in common are counted: the first of them is put into the WAL
// as an open mark, the count is kept in the fold file, and every few seconds
// one folded record with the count closes the mark. So at any moment either the
// mark is open and the file has the count, or the record has it: a restart
// turns open marks into folded records and cannot count twice.

// Names of the events that folding makes.
const (
	eventFold       = "fold"        // one record for Count exchanges
	eventFloodBegin = "flood_begin" // alert
	eventFloodEnd   = "flood_end"   // alert; Count exchanges were folded in all
)

// foldKey is what the exchanges of a fold have in common. The zero prefix
// stands for everybody.
type foldKey struct {
	prefix netip.Prefix
	reason string
	kind   record.Kind
}

// Lengths of the prefixes: what anonymous exchanges have in common, and what is
// counted together when there are more of those than slots.
const (
	foldBits4, coarseBits4 = 24, 16
	foldBits6, coarseBits6 = 32, 20
)

// coarser is the next key to try when there is no slot for k.
func (k foldKey) coarser() (foldKey, bool) {
	if k.prefix == (netip.Prefix{}) {
		return k, false
	}
	bits := coarseBits6
	if k.prefix.Addr().Is4() {
		bits = coarseBits4
	}
	if k.prefix.Bits() > bits {
		k.prefix = netip.PrefixFrom(k.prefix.Addr(), bits).Masked()
	} else {
		k.prefix = netip.Prefix{}
	}
	return k, true
}

// coarse says that a key stands for more than one anonymous subject.
func (k foldKey) coarse() bool {
	bits := foldBits6
	if k.prefix.IsValid() && k.prefix.Addr().Is4() {
		bits = foldBits4
	}
	return k.prefix.Bits() < bits
}

// foldKeyOf finds the key of an exchange; it has none if it may not be folded.
func foldKeyOf(r *record.Record) (k foldKey, ok bool) {
	switch {
	case r.Error.Reason == "" || r.Raw.IssuerSub != "" || r.Personal.Sub != "" || r.Subject != "":
		return k, false // somebody, or a record that has been here before
	case r.Kind != record.KindRequest && r.Kind != record.KindHandshake && r.Kind != record.KindMalformed:
		return k, false
	}
	k = foldKey{reason: r.Error.Reason, kind: r.Kind}
	if a, err := netip.ParseAddr(r.Raw.RemoteAddr); err == nil {
		a = a.Unmap().WithZone("")
		bits := foldBits6
		if a.Is4() {
			bits = foldBits4
		}
		k.prefix = netip.PrefixFrom(a, bits).Masked()
	}
	return k, true
}

// folds are the floods that there are. Exchanges are folded while foldLoop
// runs. Locks, in the order in which they are taken: gate, mu, a slot's mu.
type folds struct {
	gate   sync.RWMutex // held for reading while an exchange is being folded
	on     bool         // under gate
	broken atomic.Bool  // the file failed: nothing is folded until the next start

	key   keys.Key  // of the file
	file  *foldFile // under gate
	began time.Time // what meters count from
	gap   int64     // µs between two records of a key that is at its rate; 0: never fold
	burst int64     // µs by which a key may be ahead of that
	wake  chan struct{}

	mu    sync.Mutex
	table map[foldKey]*foldSlot // under mu
	free  []*foldSlot           // under mu
	slots []foldSlot

	ended  []foldEnd    // owned by the loop: floods whose end is to be told
	floods atomic.Int64 // under way
	folded atomic.Int64 // exchanges since the start
}

// foldSlot counts for one key. Where nothing else is said, fields are under mu.
type foldSlot struct {
	meter int64 // under folds.mu: when, in µs since began, the key is at its rate again

	mu      sync.Mutex
	key     foldKey // zero: the slot is free; changed with folds.mu held too
	busy    bool    // a mark is being written
	open    *fold   // where exchanges are counted
	unsure  *fold   // its mark may be in the WAL: the next one takes it up
	closing *fold   // set and unset by the loop: about to be recorded
	spots   [2]foldSpot
	next    int       // spot of the next fold
	after   [2]uint64 // leaves that must be on the disk before a spot is used again
	flood   flood
	buf     [foldCopy]byte
}

// fold is what one folded record will hold.
type fold struct {
	mark    ledger.OpenMark // of its first exchange; the event in its frame is to be completed
	births  [2][]byte
	prefix  string // as the frame has it
	origin  string
	durable bool // the mark is on the disk

	spot   int
	opened time.Time
	foldCount
}

// flood is a run of folds of one key.
type flood struct {
	on, told    bool
	prefix      string
	origin      string
	links       []string // the id of its first folded record
	count       int64
	first, last int64     // µs since the Unix epoch
	latest      time.Time // when the last was counted
}

// foldEnd is a flood that is over.
type foldEnd struct {
	key foldKey
	flood
}

// An ordinary key leaves a quarter of the slots to coarser ones, and those a
// sixteenth to the keys for everybody, of which there are not that many.
const (
	keepForCoarse = 4
	keepForAll    = 16
)

func newFolds(c *Config, key keys.Key) *folds {
	f := &folds{
		key: key, wake: make(chan struct{}, 1), began: c.Now(),
		table: make(map[foldKey]*foldSlot, c.FoldSlots), slots: make([]foldSlot, c.FoldSlots),
	}
	if c.FoldAbove > 0 {
		f.gap = max(time.Second.Microseconds()/int64(c.FoldAbove), 1)
		f.burst = f.gap * int64(c.FoldAbove-1)
	}
	for i := range f.slots {
		s := &f.slots[len(f.slots)-1-i]
		for n := range s.spots {
			s.spots[n].off = int64(foldBlock*(len(f.slots)-i) + foldArea*n)
		}
		f.free = append(f.free, s)
	}
	return f
}

// over finds the slot of a key and says whether it is above its rate. Without
// a free slot the key is a coarser one. There is none for a key that has no
// slot at all.
func (f *folds) over(k foldKey, now time.Time) (*foldSlot, foldKey) {
	at := now.Sub(f.began).Microseconds()
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.table[k]
	for s == nil {
		if s = f.take(k); s != nil {
			k = s.key
			break
		}
		var ok bool
		if k, ok = k.coarser(); !ok {
			return nil, k
		}
		s = f.table[k]
	}
	// GCRA: the meter is never ahead by more than burst and gap, unless the
	// clock went back.
	if s.meter > at+f.burst+f.gap {
		s.meter = at
	}
	if s.meter <= at+f.burst {
		s.meter = max(s.meter, at) + f.gap
		return nil, k
	}
	// Who is above the rate stays so until a gap passes: in a flood nothing but
	// the sample is written.
	s.meter = at + f.burst + f.gap
	return s, k
}

// take gives a free slot to a key. The caller holds mu.
func (f *folds) take(k foldKey) *foldSlot {
	reserve := 0
	switch {
	case !k.coarse():
		reserve = len(f.slots) / keepForCoarse
	case k.prefix.IsValid():
		reserve = len(f.slots) / keepForAll
	}
	n := len(f.free) - 1
	if n < reserve {
		return nil
	}
	s := f.free[n]
	f.free = f.free[:n]
	k.reason = strings.Clone(k.reason)
	s.mu.Lock()
	s.key = k
	s.mu.Unlock()
	s.meter = 0
	f.table[k] = s
	return s
}

// release frees a slot whose key is back at its rate: forgetting it changes
// nothing.
func (f *folds) release(s *foldSlot, now time.Time) {
	at := now.Sub(f.began).Microseconds()
	f.mu.Lock()
	defer f.mu.Unlock()
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.meter > at || s.flood.on || !s.idle() || s.key == (foldKey{}) {
		return
	}
	delete(f.table, s.key)
	s.key, s.unsure = foldKey{}, nil
	f.free = append(f.free, s)
}

// idle says that nothing is counted. The caller holds s.mu.
func (s *foldSlot) idle() bool { return !s.busy && s.open == nil && s.closing == nil }

// errFoldFile means that a count may or may not have been written.
var errFoldFile = errors.New("counting in the fold file")

// fold counts an exchange instead of writing its record, if it belongs to a
// flood. It says whether it did; if not, r is as it was.
func (rec *Recorder) fold(ctx context.Context, r *record.Record, l record.Level) (folded bool, err error) {
	b, f := rec.book, rec.book.folds
	k, ok := foldKeyOf(r)
	if !ok || f.gap == 0 || !f.gate.TryRLock() {
		return false, nil
	}
	defer f.gate.RUnlock()
	if !f.on || b.ledger.Err() != nil {
		return false, nil
	}
	now := b.cfg.Now()
	s, k := f.over(k, now)
	if s == nil {
		return false, nil
	}
	for {
		step, round, err := s.count(b, k, now, l)
		switch {
		case err != nil:
			f.fail()
			return true, rec.lost(ledger.ItemRecord, r.ID, false, r.Time, fmt.Errorf("%w: %w", errFoldFile, err))
		case step == foldCounted:
			f.folded.Add(1)
			if l == record.Durable {
				if err := f.file.wait(ctx, round, b.cfg.CommitTimeout); err != nil {
					return true, rec.lost(ledger.ItemRecord, r.ID, false, r.Time, fmt.Errorf("%w: %w", errFoldFile, err))
				}
			}
			return true, nil
		case step == foldWritten:
			return false, nil
		}
		begun, err := rec.markFold(ctx, s, k, r, l, now)
		if err != nil {
			return true, rec.lost(ledger.ItemRecord, r.ID, false, r.Time, err)
		}
		if begun {
			f.folded.Add(1)
			return true, nil
		}
	}
}

// foldStep is what count found.
type foldStep uint8

const (
	foldWritten foldStep = iota // the record is to be written as usual
	foldCounted
	foldUnmarked // the caller must write the mark; the slot is busy until then
)

// count counts one exchange, if there is a fold whose mark is as firm as the
// level asks. While another one writes the mark, records are written as usual:
// nobody waits for anybody.
func (s *foldSlot) count(b *Book, k foldKey, now time.Time, l record.Level) (foldStep, *foldRound, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	w := s.open
	switch {
	case s.busy || s.key != k:
		return foldWritten, nil, nil
	case w == nil && b.ledger.Durable() < s.after[s.next]:
		return foldWritten, nil, nil
	case w == nil || l == record.Durable && !w.durable:
		s.busy = true
		return foldUnmarked, nil, nil
	}
	c := foldCount{w.count + 1, max(w.last, now.UnixMicro())}
	encodeFoldCopy(s.buf[:], &b.folds.key, w.mark.ID, c)
	round, err := b.folds.file.put(&s.spots[w.spot], s.buf[:])
	if err != nil {
		return foldCounted, nil, err
	}
	w.foldCount = c
	s.flood.add(now)
	return foldCounted, round, nil
}

func (fl *flood) add(now time.Time) {
	fl.count++
	fl.last, fl.latest = max(fl.last, now.UnixMicro()), now
}

// markFold writes the mark of a slot that count left busy. It begins a fold
// with r as its first exchange, or makes the mark of the open one durable.
func (rec *Recorder) markFold(ctx context.Context, s *foldSlot, k foldKey, r *record.Record, l record.Level, now time.Time) (begun bool, err error) {
	b, f := rec.book, rec.book.folds
	s.mu.Lock()
	w, begun := s.open, s.open == nil
	if begun {
		w = s.unsure
	}
	s.mu.Unlock()
	if w == nil {
		w, err = rec.newFold(k, r, now)
	}
	if err == nil {
		_, err = b.ledger.Append(ctx, &ledger.Item{
			Kind: ledger.ItemOpen, Mark: w.mark.ID, Time: w.mark.Time, Subject: w.mark.Subject, Births: w.births,
			Frame: w.mark.Frame, Personal: w.mark.Personal,
		}, level(l))
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.busy = false
	if begun {
		s.unsure = nil
	}
	if err != nil {
		if begun && errors.Is(err, ledger.ErrSlow) {
			s.unsure = w
		}
		return begun, err
	}
	for i, birth := range w.births {
		if birth != nil {
			b.ring.Written(birth)
			w.births[i] = nil
		}
	}
	w.durable = w.durable || l == record.Durable
	if begun {
		s.begin(f, w, now)
	}
	return begun, nil
}

// begin opens a fold whose mark is in the WAL. The caller holds mu.
func (s *foldSlot) begin(f *folds, w *fold, now time.Time) {
	w.spot, w.opened, w.foldCount = s.next, now, foldCount{1, now.UnixMicro()}
	s.open = w
	if !s.flood.on {
		s.flood = flood{on: true, prefix: w.prefix, origin: w.origin, links: []string{record.ID(w.mark.ID).String()}, first: now.UnixMicro()}
		f.floods.Add(1)
		signal(f.wake)
	}
	s.flood.add(now)
}

// newFold makes a fold whose sample is r, which it redacts. What strangers from
// several networks have in common is about none of them.
func (rec *Recorder) newFold(k foldKey, r *record.Record, now time.Time) (*fold, error) {
	b := rec.book
	who, _ := rec.redact(r)
	if k.coarse() {
		r.Personal = record.Personal{}
	}
	r.Client.Prefix = widen(r.Client.Prefix, k.prefix)
	at := now.UnixMicro()
	r.Outcome = record.Failure
	r.Event = record.Event{Name: eventFold, Count: 1, Exact: true, First: at, Last: at}
	buf, err := b.encode(ledger.ItemOpen, false, r, who, nil)
	if err != nil {
		return nil, err
	}
	w := &fold{
		mark: ledger.OpenMark{
			ID: r.ID, Subject: buf.item.Subject, Time: r.Time, Frame: bytes.Clone(buf.frame), Personal: bytes.Clone(buf.personal),
		},
		births: buf.item.Births, prefix: strings.Clone(r.Client.Prefix), origin: r.Error.Origin,
	}
	b.reuse(buf)
	return w, nil
}

// widen gives the wider of a frame's client prefix and the prefix that is
// counted together.
func widen(text string, p netip.Prefix) string {
	have, err := netip.ParsePrefix(text)
	switch {
	case err != nil || p.IsValid() && have.Bits() <= p.Bits():
		return text
	case !p.IsValid():
		return record.None
	}
	return p.String()
}

// fail ends all folding: records are written as usual from now on.
func (f *folds) fail() {
	f.broken.Store(true)
	signal(f.wake)
}
