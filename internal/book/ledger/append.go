package ledger

import (
	"context"
	"errors"
	"fmt"
	"runtime"
	"slices"
	"sync/atomic"
	"time"
)

// Level is how firmly an item is kept when Append returns.
type Level uint8

// The levels.
const (
	Written Level = iota // in the kernel: survives kill -9
	Durable              // fdatasync has returned: survives a power cut
)

// ItemKind says what an item is.
type ItemKind uint8

// Kinds of items that callers append.
const (
	// ItemOpen notes that an exchange is about to be forwarded. It is not a
	// leaf of the tree.
	ItemOpen ItemKind = iota + 1
	// ItemRecord is a leaf.
	ItemRecord
)

// Item is one thing to append. Its slices must not change until Append
// returned, and after an error they must not be reused at all.
type Item struct {
	Kind         ItemKind
	Mark         [16]byte  // the exchange; names an open mark
	Closes       bool      // this record closes the open mark of the same name
	Time         int64     // microseconds since the Unix epoch
	Subject      [16]byte  // key id
	SubjectKey   *[32]byte // the key itself
	Births       [2][]byte // those not nil make new subjects or names known
	Frame        []byte
	Personal     []byte
	Housekeeping bool // a segment of nothing else may wait longer to be sealed
	// Sure makes Append wait until it is known whether the item was kept,
	// whatever the time-out and the context say: at the level Written it never
	// returns ErrSlow.
	Sure bool
	// OnlyOpen appends the record only if the mark that it closes is open, and
	// gives ErrNotOpen otherwise.
	OnlyOpen bool
	Reserve  Reserve // what it may use when the disk is nearly full
	// Late, if set, is told of an item that was kept after all although its
	// Append gives ErrSlow; the item is then still as it was. It must not block,
	// and may be called before Append returns.
	Late LateKeeper
}

// LateKeeper hears of items that were kept when nobody waited for them any more.
type LateKeeper interface{ KeptLate(it *Item) }

// ErrNotOpen means that there is no open mark of that name.
var ErrNotOpen = errors.New("there is no such open mark")

// ErrSlow means that the time-out or the context ended. An item whose turn had
// not come is not kept; one that was being written, for which the time-out had
// been given twice, may be kept or not: see Item.Late.
var ErrSlow = errors.New("the ledger did not answer in time")

// pending is one queued item. Its fields belong to the leader between queueing
// and the signal.
type pending struct {
	item   *Item
	mark   *markItem // instead of item: something of the ledger's own
	rotate bool      // instead of item: begin a new file
	nudge  bool      // instead of item: only carry open marks on
	wait   bool      // never given up: whether it was written must be known
	signal chan byte
	index  uint64
	err    error
	wal    *walFile
	seq    uint64
	timer  *time.Timer // owned by who queued
	fate   atomic.Int32
}

// Values of pending.fate: whoever leaves zero first decides whether the other
// still has to do with the item.
const (
	fateKnown int32 = iota + 1 // set by the leader
	fateLeft                   // set by who queued: nobody waits any more
)

// markItem is an item of the ledger's own.
type markItem struct {
	kind byte
	size uint64 // for a manifest set by the sequencer
	data []byte
}

const (
	signalDone byte = iota + 1
	signalLead
)

// Append adds one item and returns its leaf index (0 for an open mark). When
// it returns nil the item is kept as firmly as level says. Errors: ErrFull
// (nothing kept, try again later), ErrSlow, or the reason why the ledger
// failed for good.
func (l *Ledger) Append(ctx context.Context, it *Item, level Level) (uint64, error) {
	if len(it.Frame) > maxPart || len(it.Personal) > maxPart || len(it.Births[0])+len(it.Births[1]) > maxPart {
		return 0, fmt.Errorf("item of %d+%d bytes: neither part may exceed %d", len(it.Frame), len(it.Personal), maxPart)
	}
	if it.Reserve == UseNothing && l.space.full.Load() {
		if err := l.Err(); err != nil {
			return 0, err
		}
		if err := l.refusal(); err != nil {
			return 0, err
		}
	}
	p := l.pendings.Get().(*pending)
	p.item, p.index, p.err, p.wal, p.wait = it, 0, nil, nil, it.Sure
	p.fate.Store(0)
	if err := l.enqueue(ctx, p); err != nil {
		return 0, err
	}
	index, err, wal, seq := p.index, p.err, p.wal, p.seq
	p.item = nil
	l.pendings.Put(p)
	if err == nil && level == Durable {
		err = l.waitDurable(ctx, wal, seq)
		if errors.Is(err, ErrSlow) {
			it.keptLate()
		} else if err != nil {
			err = fmt.Errorf("%w: %w", ErrUnsure, err)
		}
	}
	return index, err
}

// own appends something of the ledger's own.
func (l *Ledger) own(ctx context.Context, p *pending, level Level) (uint64, error) {
	p.signal = make(chan byte, 1)
	if err := l.enqueue(ctx, p); err != nil {
		return 0, err
	}
	if p.err == nil && level == Durable && p.wal != nil {
		return p.index, l.waitDurable(ctx, p.wal, p.seq)
	}
	return p.index, p.err
}

// crowdTime between two batches means that more are coming.
const crowdTime = 60 * time.Microsecond

// loneTimes is how often at most leaders whose batches follow each other closely
// do not wait for company after they waited in vain: once, three times, seven
// times.
const loneTimes = 7

// crowded tells whether it is worth a moment to let others come along: the last
// batch was a moment ago, and it is not one caller who makes them all. The
// caller leads.
func (s *sequencer) crowded() bool {
	now := time.Since(s.begun)
	crowd := now-s.last < crowdTime
	s.last = now
	if crowd && s.alone > 0 {
		s.alone--
		return false
	}
	s.waited = crowd
	return crowd
}

// company notes whether waiting for others was worth it.
func (s *sequencer) company(batch int) {
	switch {
	case batch > 1:
		s.vain = 0
	case s.waited:
		s.vain = min(2*s.vain+1, loneTimes)
		s.alone = s.vain
	}
	s.waited = false
}

// enqueue queues p and returns when the leader, which may be the caller, has
// dealt with it.
func (l *Ledger) enqueue(ctx context.Context, p *pending) error {
	l.queueMu.Lock()
	l.queue = append(l.queue, p)
	if !l.leading {
		l.leading = true
		l.queueMu.Unlock()
		if l.seq.crowded() {
			runtime.Gosched() // whoever is about to append comes along in one batch
		}
		l.lead()
		<-p.signal
		return nil
	}
	l.queueMu.Unlock()
	select {
	case s := <-p.signal:
		return l.signalled(p, s)
	default:
	}
	if p.wait {
		return l.signalled(p, <-p.signal)
	}
	timeout := p.startTimer(l.opt.Timeout)
	select {
	case s := <-p.signal:
		return l.signalled(p, s)
	case <-timeout:
	case <-ctx.Done():
	}
	if l.withdraw(p) {
		return ErrSlow
	}
	// It is being written: what becomes of it is about to be known.
	select {
	case <-p.signal:
		return nil
	case <-p.startTimer(l.opt.Timeout):
	case <-ctx.Done():
	}
	if p.fate.CompareAndSwap(0, fateLeft) {
		return ErrSlow
	}
	<-p.signal
	return nil
}

// keptLate tells of an item that nobody waits for any more.
func (it *Item) keptLate() {
	if it.Late != nil {
		it.Late.KeptLate(it)
	}
}

// startTimer starts p's timer, which is made once and reused with p.
func (p *pending) startTimer(d time.Duration) <-chan time.Time {
	if p.timer == nil {
		p.timer = time.NewTimer(d)
	} else {
		p.timer.Reset(d)
	}
	return p.timer.C
}

func (l *Ledger) signalled(p *pending, s byte) error {
	if s == signalLead {
		l.lead()
		<-p.signal
	}
	return nil
}

// withdraw takes p back if the leader has not taken it yet.
func (l *Ledger) withdraw(p *pending) bool {
	l.queueMu.Lock()
	defer l.queueMu.Unlock()
	for i, q := range l.queue {
		if q != p {
			continue
		}
		select {
		case <-p.signal: // leadership was on its way to us: pass it on
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
			if len(l.queue) == 0 {
				l.leading = false
			} else {
				l.queue[0].signal <- signalLead
			}
		default:
			l.queue = append(l.queue[:i], l.queue[i+1:]...)
		}
		return true
	}
	return false
}

// lead writes everything queued as one batch, then hands leadership to the
// first who queued meanwhile.
func (l *Ledger) lead() {
	l.queueMu.Lock()
	ps := l.queue
	l.queue = l.spare[:0]
	l.spare = nil
	l.queueMu.Unlock()

	l.seq.company(len(ps))
	l.seq.write(l, ps)
	for i, p := range ps {
		ps[i] = nil
		if p.fate.Swap(fateKnown) != fateLeft {
			p.signal <- signalDone
		} else if p.err == nil && p.item != nil {
			p.item.keptLate()
		}
	}

	l.queueMu.Lock()
	defer l.queueMu.Unlock()
	l.spare = ps[:0]
	if len(l.queue) == 0 {
		l.leading = false
		return
	}
	l.queue[0].signal <- signalLead
}

// sequencer gives every item its place. Its fields are owned by the leader.
type sequencer struct {
	cur         *walFile
	buf         []byte
	scratch     []byte
	batch       []*pending    // in the batch being built
	leaves      []entry       // of that batch
	opened      [][16]byte    // marks in it
	closed      [][16]byte    //
	births      [][]byte      //
	busy        bool          // it holds a record that is not housekeeping
	carry       [][16]byte    // marks still to be rewritten into cur
	reserve     Reserve       // the most that an item of the batch may use
	times       []int64       // of those in opened
	pendingHint bool          // cur does not hold the codec's hint yet
	hinted      bool          // the batch being built holds it
	begun       time.Time     // monotonic zero of last
	last        time.Duration // when somebody last began to lead
	waited      bool          // the leader let others come along
	vain        int           // how often it need not after it was in vain
	alone       int           // what is left of that
}

// fullBatch is when a batch is written although more is queued, far enough
// below maxBatch for any one item.
const fullBatch = maxBatch / 8

// write deals with all of ps; each gets its index or error.
func (s *sequencer) write(l *Ledger, ps []*pending) {
	if err := l.Err(); err != nil {
		for _, p := range ps {
			p.err = err
		}
		return
	}
	s.begin()
	s.carryMarks(l)
	for _, p := range ps {
		if p.rotate || s.atBoundary(l) {
			s.flush(l)
			if p.item != nil {
				s.reserve = p.item.Reserve
			}
			if err := s.rotate(l, p.rotate); err != nil {
				p.err = err
				continue
			}
			s.begin()
			s.carryMarks(l)
		}
		if len(s.buf) > fullBatch {
			s.flush(l)
		}
		if p.mark != nil || p.item != nil {
			s.add(l, p)
		}
	}
	err := s.flush(l)
	for _, p := range ps {
		if p.nudge {
			p.err = err
		}
	}
}

func (s *sequencer) begin() {
	s.buf = append(s.buf[:0], make([]byte, batchHead)...)
	s.batch, s.leaves = s.batch[:0], s.leaves[:0]
	s.opened, s.closed, s.births = s.opened[:0], s.closed[:0], s.births[:0]
	s.busy, s.hinted, s.reserve = false, false, UseNothing
	s.times = s.times[:0]
}

func (s *sequencer) nextIndex() uint64 { return s.cur.next() + uint64(len(s.leaves)) }

// maxWAL is the size above which a file is not begun upon: a segment is built
// in memory.
const maxWAL = 128 << 20

// atBoundary tells whether the next leaf belongs to the next segment.
func (s *sequencer) atBoundary(l *Ledger) bool {
	n := s.nextIndex()
	return n > s.cur.header.first && (n%l.opt.SegmentRecords == 0 || s.cur.end > maxWAL)
}

// add encodes one item into the batch.
func (s *sequencer) add(l *Ledger, p *pending) {
	if p.mark != nil {
		s.addMark(p)
		return
	}
	it := p.item
	if it.OnlyOpen && !s.isOpen(l, it.Mark) {
		p.err = ErrNotOpen
		return
	}
	s.reserve = max(s.reserve, it.Reserve)
	for _, b := range it.Births {
		if b != nil {
			s.buf = appendSubjectItem(s.buf, it.Subject, b)
			s.births = append(s.births, b)
		}
	}
	switch it.Kind {
	case ItemOpen:
		s.buf = appendOpenItem(s.buf, it.Mark, it.Subject, it.Time, it.Frame, it.Personal)
		s.opened, s.times = append(s.opened, it.Mark), append(s.times, it.Time)
	case ItemRecord:
		p.index = s.nextIndex()
		var c [32]byte
		c, s.scratch = commitRecord(it.SubjectKey, l.opt.Origin, p.index, it.Frame, it.Personal, s.scratch)
		s.buf = appendRecordItem(s.buf, p.index, it.Closes, it.Mark, it.Subject, &c, it.Frame, it.Personal)
		s.leaves = append(s.leaves, entry{entryRecord, c})
		if it.Closes {
			s.closed = append(s.closed, it.Mark)
		}
		s.busy = s.busy || !it.Housekeeping
	default:
		p.err = fmt.Errorf("item of unknown kind %d", it.Kind)
		return
	}
	s.batch = append(s.batch, p)
}

// isOpen tells whether a mark is open, the batch being built included.
func (s *sequencer) isOpen(l *Ledger, id [16]byte) bool {
	if slices.Contains(s.closed, id) {
		return false
	}
	l.mu.RLock()
	defer l.mu.RUnlock()
	_, open := l.marks[id]
	return open || slices.Contains(s.opened, id)
}

func (s *sequencer) addMark(p *pending) {
	m := p.mark
	if m.kind == markManifest {
		m.size = s.nextIndex()
		p.index = m.size
		s.leaves = append(s.leaves, entry{entryManifest, manifestHash(m.data)})
	}
	s.buf = appendMarkItem(s.buf, m.kind, m.size, m.data)
	s.batch = append(s.batch, p)
}

// flush writes the batch built so far, if it holds anything.
func (s *sequencer) flush(l *Ledger) error {
	if len(s.buf) == batchHead {
		return nil
	}
	err := s.writeBatch(l)
	for _, p := range s.batch {
		p.err, p.wal, p.seq = err, s.cur, s.cur.seq
	}
	if err != nil {
		s.carryAgain(l)
	}
	s.begin()
	return err
}

func (s *sequencer) writeBatch(l *Ledger) error {
	w := s.cur
	info := batchInfo{off: w.end, length: uint32(len(s.buf) - batchHead + tagSize), seq: w.seq + 1}
	if info.length > maxBatch {
		return fmt.Errorf("batch of %d bytes is too large", info.length)
	}
	info.synced = l.syncedSeq(w)
	if err := s.makeRoom(l, info.end()); err != nil {
		return err
	}
	b, err := w.cipher.seal(s.buf, info.seq, info.synced, &w.lastTag)
	if err != nil {
		return l.fail(err)
	}
	s.buf = b
	if _, err := w.f.WriteAt(b, info.off); err != nil {
		if err = diskError(err); errors.Is(err, ErrFull) {
			l.noRoom(err)
			return err
		}
		return fmt.Errorf("%w: %w", ErrUnsure, l.fail(fmt.Errorf("writing %s: %w", w.name, err)))
	}
	l.accept(s, info)
	signal(l.dirty)
	return nil
}

// accept makes a written batch part of what readers see.
func (l *Ledger) accept(s *sequencer, info batchInfo) {
	w := s.cur
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(s.leaves) > 0 {
		w.batches = append(roomFor(w.batches, 1), walBatch{info, w.next(), uint32(len(s.leaves))})
		w.entries = append(roomFor(w.entries, len(s.leaves)), s.leaves...)
	}
	for i, id := range s.opened {
		l.marks[id] = markAt{w, info, s.times[i]}
	}
	for _, id := range s.closed {
		delete(l.marks, id)
	}
	for _, b := range s.births {
		w.births = append(w.births, append([]byte(nil), b...))
	}
	w.end, w.seq, w.busy = info.end(), info.seq, w.busy || s.busy
	copy(w.lastTag[:], s.buf[len(s.buf)-tagSize:])
}

// roomFor sees to room for n more. Both lists of a file grow to tens of thousands
// while everybody waits, so that they grow in few large steps.
func roomFor[T any](list []T, n int) []T {
	if cap(list)-len(list) >= n {
		return list
	}
	return slices.Grow(list, max(n, 3*len(list)))
}

// signal wakes whoever waits on c, once.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// Queue hands an item over and returns at once; done is called, from another
// goroutine, when the item was written or lost. When too much is queued
// already it refuses with ErrSlow and done is not called.
func (l *Ledger) Queue(it *Item, done func(error)) error {
	if err := l.Err(); err != nil {
		return err
	}
	if it.Reserve == UseNothing && l.space.full.Load() {
		if err := l.refusal(); err != nil {
			return err
		}
	}
	select {
	case l.queued <- queuedItem{it, done}:
		return nil
	default:
		return ErrSlow
	}
}

// queuedItem is an item nobody waits for.
type queuedItem struct {
	item *Item
	done func(error)
}

// queueLoop appends what Queue took. What is still queued when it ends is
// appended too.
func (l *Ledger) queueLoop(ctx context.Context) error {
	for {
		select {
		case q := <-l.queued:
			_, err := l.Append(context.WithoutCancel(ctx), q.item, Written)
			q.done(err)
		case <-ctx.Done():
			select {
			case q := <-l.queued:
				_, err := l.Append(context.WithoutCancel(ctx), q.item, Written)
				q.done(err)
			default:
				return nil
			}
		}
	}
}
