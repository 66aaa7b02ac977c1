package deliver

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/pace"
)

// batch is some consecutive records and what has become of them so far. It
// belongs to its runner; what a send reads of it does not change meanwhile.
type batch struct {
	from, to uint64 // [from, to); leaves without a record may be at the end
	planned  time.Time
	items    []Item
	fate     []fate   // of each item
	bytes    int      // of bodies
	blocks   []*block // that bodies stand in and that can be used again
	left     int      // items that are not settled
	sum      tally
	n        int  // of items, also when they were let go of
	dropped  bool // what becomes of it is not of interest any more
	sent     bool // it may have been
	errand   bool // sent beside the plan, of records that were settled before
	hold     bool // its new bounds are not durable yet
}

// fate is what has become of one item.
type fate struct {
	settled   bool
	ambiguous bool // an attempt ended without anybody knowing
	stub      bool
	waits     bool // for the book, to become a stub
	attempts  int
	why       *Result // why it cannot be sent at all; nil: it can
}

// piece is those items of a batch that travel together.
type piece struct {
	b       *batch
	at      []int // positions in b.items, ascending
	attempt int   // how often it was sent
	after   time.Time
}

func (p *piece) first() uint64 { return p.b.items[p.at[0]].Index }

// housekeeping kinds make no receipt, or receipts would make receipts.
func housekeeping(k record.Kind) bool {
	return k == record.KindDelivery || k == record.KindAccess || k == record.KindHeartbeat
}

// maker makes batches of the book's records for one sink. It belongs to one
// goroutine.
type maker struct {
	feed   *feed
	proj   Projection
	lim    Limits
	prefix string // of event ids
	place  *place // in the feed, of one that reads on; nil: not so
	// What the last batch took, so that the next need not grow to it.
	lastItems, lastBytes int
}

func (m *maker) id(index uint64) string {
	b := make([]byte, 0, len(m.prefix)+20)
	return string(strconv.AppendUint(append(b, m.prefix...), index, 10))
}

// idPrefix is what EventID puts before the index.
func idPrefix(origin string) string {
	id := EventID(origin, 0)
	return id[:len(id)-1]
}

// entries hands out the records [from, to) until fn says that it is enough, and
// returns the index it came to. fn keeps nothing of what it gets but strings.
func (m *maker) entries(from, to, signed uint64, fn func(*book.Entry) bool) (uint64, error) {
	slice := m.feed.pace.New(time.Now)
	defer slice.Close()
	for at := from; at < to; {
		c, err := m.feed.chunk(at, signed, m.proj.Reveal())
		if err != nil {
			return at, fmt.Errorf("reading the book at index %d: %w", at, err)
		}
		end, enough := c.hand(at, to, fn, slice)
		m.feed.done(c)
		if at = end; enough {
			return at, nil
		}
	}
	return to, nil
}

// hand hands out the entries [at, to) of a chunk, and returns the index it came to
// and whether that was enough.
func (c *chunk) hand(at, to uint64, fn func(*book.Entry) bool, slice *pace.Slicer) (end uint64, enough bool) {
	i := sort.Search(len(c.entries), func(i int) bool { return c.entries[i].Index >= at })
	for ; i < len(c.entries); i++ {
		e := &c.entries[i]
		if e.Index >= to {
			return to, true
		}
		if !fn(e) {
			return e.Index, true
		}
		slice.Yield()
	}
	return c.to, false
}

// next makes a batch of as many records from the index on as the limits allow, but
// at most `most`.
func (m *maker) next(from, signed uint64, most int, planned time.Time) (*batch, error) {
	d := draft{m: m, b: &batch{from: from, planned: planned}, most: most}
	if n := min(uint64(m.lastItems), signed-from); n > 0 {
		d.b.items, d.b.fate = make([]Item, 0, n), make([]fate, 0, n)
		d.want = int((uint64(m.lastBytes) + 1024) * n / uint64(m.lastItems))
	}
	to, err := m.entries(from, signed, signed, func(e *book.Entry) bool { return d.add(e, true) })
	b := d.finish(to)
	m.lastItems, m.lastBytes = b.n, b.bytes
	if m.place != nil && err == nil {
		m.feed.passed(m.place, to)
	}
	if err == nil && d.away != nil && b.n == 0 {
		err = d.away
	}
	return b, err // what is before a record that must wait need not wait
}

// again makes the batch with these bounds.
func (m *maker) again(from, to, signed uint64, planned time.Time) (*batch, error) {
	d := draft{m: m, b: &batch{from: from, planned: planned}}
	to, err := m.entries(from, to, signed, func(e *book.Entry) bool { return d.add(e, false) })
	if err == nil && d.away != nil {
		err = d.away
	}
	return d.finish(to), err
}

// draft is a batch in the making. Bodies stand one behind the other in blocks: one
// buffer for all of them would be so large that making it keeps requests waiting.
type draft struct {
	m    *maker
	b    *batch
	buf  []byte // the block that is being filled
	most int    // items of one that is bounded
	want int    // bytes that all bodies together will have, about
	cost int    // bytes as the limits count them
	away *away  // the record that ended it because it must wait; nil: none
}

// away is a record that cannot be projected now.
type away struct {
	index uint64
	begun time.Time // the exchange
	err   error
}

// Error tells all that is known, for a log.
func (a *away) Error() string { return fmt.Sprintf("record %d must wait: %v", a.index, a.err) }

func (a *away) Unwrap() error { return a.err }

// told is an error as a status and an alarm tell it. What keeps a record waiting
// may name a person's key.
func told(err error) string {
	var a *away
	if errors.As(err, &a) {
		return fmt.Sprintf("record %d must wait: %v", a.index, ErrNotNow)
	}
	return err.Error()
}

// add appends a record and reports whether it belonged to the batch.
func (d *draft) add(e *book.Entry, bounded bool) bool {
	if bounded && len(d.b.items) == d.most {
		return false
	}
	d.room()
	before := len(d.buf)
	it := Item{Index: e.Index, ID: d.m.id(e.Index), Time: e.Record.At(), Kind: string(e.Record.Kind)}
	var f fate
	var err error
	if d.buf, f, err = d.m.project(d.buf, it.ID, e); err != nil {
		d.away = &away{it.Index, it.Time, err}
		d.m.feed.forget(d.m.proj.Reveal())
		return false
	}
	size := len(d.buf) - before + d.m.lim.Overhead
	if bounded && len(d.b.items) > 0 && d.cost+size > d.m.lim.Bytes {
		d.buf = d.buf[:before]
		return false
	}
	d.cost += size
	it.Body = d.buf[before:len(d.buf):len(d.buf)]
	d.b.bytes += len(it.Body)
	it.Late = d.m.late(it.Time, d.b.planned)
	d.b.items = append(d.b.items, it)
	d.b.fate = append(d.b.fate, f)
	d.b.sum.Worth = d.b.sum.Worth || !housekeeping(e.Record.Kind)
	return true
}

const (
	blockBytes = 64 << 10
	blockLeast = 8 << 10
	blockRoom  = 4 << 10 // for a body that is not longer than most
)

// room begins another block if this one is nearly full. A body that does not fit
// moves into a larger one; those before it stay where they are.
func (d *draft) room() {
	if cap(d.buf)-len(d.buf) >= blockRoom {
		return
	}
	if left := d.want - d.b.bytes; max(left, d.b.bytes) < blockBytes/2 {
		d.buf = make([]byte, 0, max(left, blockLeast))
		return
	}
	b := d.m.feed.block()
	d.b.blocks = append(d.b.blocks, b)
	d.buf = b[:0]
}

// block is room for bodies.
type block [blockBytes]byte

func (f *feed) block() *block {
	if b, ok := f.blocks.Get().(*block); ok {
		return b
	}
	return new(block)
}

// reuse lets other batches have the room of a batch that nobody reads any more.
func (b *batch) reuse(f *feed) {
	for _, k := range b.blocks {
		f.blocks.Put(k)
	}
	b.blocks = nil
}

func (d *draft) finish(to uint64) *batch {
	d.b.to, d.b.left, d.b.n = to, len(d.b.items), len(d.b.items)
	return d.b
}

func (m *maker) late(t, planned time.Time) bool {
	return m.lim.MaxAge > 0 && planned.Sub(t) > m.lim.MaxAge
}

var errBody = errors.New("the projection made no single line")

// project appends the body of a record, or a stub if it is too long or cannot be
// made. If there is nothing that could be sent, the fate says why. An error is
// ErrNotNow, and nothing is appended.
func (m *maker) project(dst []byte, id string, e *book.Entry) ([]byte, fate, error) {
	before := len(dst)
	body, err := m.body(dst, id, e)
	size := len(body) - before
	if err == nil && size <= m.lim.Item {
		return body, fate{}, nil
	}
	if errors.Is(err, ErrNotNow) {
		return dst[:before], fate{}, err
	}
	stub, serr := m.stub(dst[:before], id, e, max(size, 0))
	if serr == nil && len(stub)-before <= m.lim.Item {
		return stub, fate{stub: true}, nil
	}
	why := &Result{Class: Poison, Cause: "too_long"}
	if err = errors.Join(err, serr); err != nil {
		why.Cause, why.Detail = "projection", scrub(err.Error())
	}
	return dst[:before], fate{why: why}, nil
}

func (m *maker) body(dst []byte, id string, e *book.Entry) (out []byte, err error) {
	defer noPanic(&err)
	before := len(dst)
	if out, err = m.proj.Append(dst, id, e); err == nil {
		err = oneLine(out, before)
	}
	return out, err
}

func (m *maker) stub(dst []byte, id string, e *book.Entry, size int) (out []byte, err error) {
	defer noPanic(&err)
	before := len(dst)
	if out, err = m.proj.Stub(dst, id, e, size); err == nil {
		err = oneLine(out, before)
	}
	return out, err
}

func oneLine(b []byte, from int) error {
	if len(b) <= from || bytes.IndexByte(b[from:], '\n') >= 0 {
		return errBody
	}
	return nil
}

// noPanic makes an error of a panic: one record that a projection cannot bear
// must not take the gate down.
func noPanic(err *error) {
	if p := recover(); p != nil {
		*err = fmt.Errorf("panic: %v", p)
	}
}

// replan gives a batch a new time of planning and flags what has become late.
// Sends that are under way keep the items that they were given.
func (m *maker) replan(b *batch, planned time.Time) {
	b.planned = planned
	b.items = slices.Clone(b.items)
	for i := range b.items {
		b.items[i].Late = m.late(b.items[i].Time, planned)
	}
}

// stale reports whether an item of the piece has become late since its batch was
// planned.
func (m *maker) stale(p *piece, now time.Time) bool {
	if m.lim.MaxAge <= 0 {
		return false
	}
	return slices.ContainsFunc(p.at, func(i int) bool {
		it := &p.b.items[i]
		return !it.Late && m.late(it.Time, now)
	})
}

// cut makes the Batch of a piece.
func (p *piece) cut() *Batch {
	b := &Batch{Planned: p.b.planned, Attempt: p.attempt, Items: p.b.items}
	if len(p.at) < len(p.b.items) {
		b.Items = make([]Item, len(p.at))
		for n, i := range p.at {
			b.Items[n] = p.b.items[i]
		}
	}
	return b
}

// maxDetail is how much is kept of what a sink said.
const maxDetail = 512

// scrub makes of a text something that may be shown and kept: one line of
// printable characters, and not long.
func scrub(s string) string {
	b := make([]byte, 0, min(len(s), maxDetail))
	for _, r := range s {
		if r < ' ' || r == 0x7f || r == '\ufffd' || !strconv.IsPrint(r) {
			r = ' '
		}
		if len(b)+4 > maxDetail {
			break
		}
		b = append(b, string(r)...)
	}
	return string(b)
}
