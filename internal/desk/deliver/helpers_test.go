package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/kv"
)

// fakeBook is a book whose records follow from their index, so that it may be as
// long as wanted, and that keeps what it is told.
type fakeBook struct {
	mu     sync.Mutex
	origin string
	signed uint64
	base   time.Time
	every  time.Duration              // between two records
	kind   func(uint64) record.Kind   // nil: requests
	gap    func(uint64) bool          // leaves that are no records; nil: none
	grow   func(*record.Record)       // called with each note, under mu
	noting func(*record.Record) error // nil: takes all
	broken error                      // of Open
	sealed func(uint64) error         // why personal parts are not there; nil: they are
	notes  []record.Record
	reads  uint64 // records handed out
}

const testOrigin = "log.example/n1/0011223344556677"

func newBook(signed uint64) *fakeBook {
	return &fakeBook{origin: testOrigin, signed: signed, base: time.Now(), every: time.Millisecond}
}

func (f *fakeBook) Reader() (*book.Reader, error) { return nil, errors.New("tests read through Open") }

func (f *fakeBook) Signed() (string, uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.origin, f.signed
}

func (f *fakeBook) sign(n uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.signed = n
}

func (f *fakeBook) Note(ctx context.Context, r *record.Record) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.noting != nil {
		if err := f.noting(r); err != nil {
			return err
		}
	}
	f.notes = append(f.notes, *r)
	if f.grow != nil {
		f.grow(r)
	}
	return nil
}

// noted returns the records with this name of an event.
func (f *fakeBook) noted(name string) (out []record.Record) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, r := range f.notes {
		if r.Event.Name == name {
			out = append(out, r)
		}
	}
	return out
}

func (f *fakeBook) Open() (view, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.broken != nil {
		return nil, f.broken
	}
	return &fakeView{f, f.origin, f.signed}, nil
}

type fakeView struct {
	f      *fakeBook
	origin string
	size   uint64
}

func (v *fakeView) Signed() (string, uint64) { return v.origin, v.size }
func (v *fakeView) Close() error             { return nil }

func (v *fakeView) Forward(from, to uint64, _ bool, fn func(*book.Entry) error) error {
	var rec record.Record
	for i := from; i < min(to, v.size); i++ {
		if v.f.gap != nil && v.f.gap(i) {
			continue
		}
		rec = record.Record{Kind: v.f.kindOf(i), Time: v.f.timeOf(i).UnixMicro()}
		e := &book.Entry{Index: i, Record: &rec, Frame: fmt.Appendf(nil, "frame %d", i)}
		v.f.with(func() {
			v.f.reads++
			if v.f.sealed != nil {
				e.Sealed = v.f.sealed(i)
			}
		})
		if err := fn(e); err != nil {
			return err
		}
	}
	return nil
}

// with does something that a reader must not see half done.
func (f *fakeBook) with(fn func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	fn()
}

func (f *fakeBook) kindOf(i uint64) record.Kind {
	if f.kind == nil {
		return record.KindRequest
	}
	return f.kind(i)
}

func (f *fakeBook) timeOf(i uint64) time.Time { return f.base.Add(time.Duration(i) * f.every) }

// plain is a projection of the least.
type plain struct {
	version int
	pad     func(index uint64) int   // bytes more; nil: none
	err     func(index uint64) error // nil: none
	stubErr func(index uint64) error // nil: none
}

func (p *plain) Name() string { return "plain" }
func (p *plain) Version() int { return p.version }
func (p *plain) Reveal() bool { return false }
func (p *plain) Append(dst []byte, id string, e *book.Entry) ([]byte, error) {
	if p.err != nil {
		if err := p.err(e.Index); err != nil {
			return dst, err
		}
	}
	switch {
	case errors.Is(e.Sealed, errKeyAway):
		return dst, fmt.Errorf("%w: %w", ErrNotNow, e.Sealed)
	case e.Sealed != nil:
		return dst, e.Sealed
	}
	dst = fmt.Appendf(dst, `{"id":%q,"v":%d,"frame":%q`, id, p.version, e.Frame)
	if p.pad != nil {
		dst = fmt.Appendf(dst, `,"pad":%q`, strings.Repeat("x", p.pad(e.Index)))
	}
	return append(dst, '}'), nil
}
func (p *plain) Stub(dst []byte, id string, e *book.Entry, size int) ([]byte, error) {
	if p.err != nil && e.Index != 4 && errors.Is(p.err(e.Index), errNoStub) {
		return dst, errNoStub
	}
	if p.stubErr != nil {
		if err := p.stubErr(e.Index); err != nil {
			return dst, err
		}
	}
	return fmt.Appendf(dst, `{"id":%q,"stub":%d}`, id, size), nil
}

// memStore is a kv.Store in memory that fails as told. A store that is dead
// fails always, as for a process that was killed.
type memStore struct {
	disk *memDisk
	mu   sync.Mutex
	dead bool
	// fault is asked before each write, by number from 1: it may fail it before
	// or after it is persisted, or kill the process at either point.
	fault func(n int, table, key string) fault
	n     int
}

type fault int

const (
	works fault = iota
	failsBefore
	failsAfter
	diesBefore
	diesAfter
)

// memDisk outlives the process.
type memDisk struct {
	mu sync.Mutex
	m  map[[2]string][]byte
}

func newDisk() *memDisk { return &memDisk{m: map[[2]string][]byte{}} }

var errFault = errors.New("input/output error")

// writes is how often something was written.
func (s *memStore) writes() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.n
}

// handedOut is how many records were read.
func (f *fakeBook) handedOut() uint64 {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.reads
}

func (s *memStore) kill() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.dead = true
}

func (s *memStore) isDead() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.dead
}

func (s *memStore) write(table, key string, change func(m map[[2]string][]byte)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.dead {
		return errFault
	}
	s.n++
	f := works
	if s.fault != nil {
		f = s.fault(s.n, table, key)
	}
	s.dead = s.dead || f == diesBefore || f == diesAfter
	if f == failsBefore || f == diesBefore {
		return errFault
	}
	s.disk.mu.Lock()
	change(s.disk.m)
	s.disk.mu.Unlock()
	if f != works {
		return errFault
	}
	return nil
}

func (s *memStore) Get(_ context.Context, table, key string) ([]byte, error) {
	if s.isDead() {
		return nil, errFault
	}
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	v, ok := s.disk.m[[2]string{table, key}]
	if !ok {
		return nil, kv.ErrNotFound
	}
	return bytes.Clone(v), nil
}

func (s *memStore) Put(_ context.Context, table, key string, value []byte, _ time.Time) error {
	return s.write(table, key, func(m map[[2]string][]byte) { m[[2]string{table, key}] = bytes.Clone(value) })
}

func (s *memStore) Delete(_ context.Context, table, key string) error {
	return s.write(table, key, func(m map[[2]string][]byte) { delete(m, [2]string{table, key}) })
}

func (s *memStore) Create(context.Context, string, string, []byte, time.Time) (bool, error) {
	return false, errors.New("not used")
}

func (s *memStore) Swap(context.Context, string, string, []byte, []byte, time.Time) error {
	return errors.New("not used")
}

func (s *memStore) Range(_ context.Context, table string, fn func(string, []byte) error) error {
	if s.isDead() {
		return errFault
	}
	s.disk.mu.Lock()
	defer s.disk.mu.Unlock()
	for k, v := range s.disk.m {
		if k[0] == table {
			if err := fn(k[1], bytes.Clone(v)); err != nil {
				return err
			}
		}
	}
	return nil
}

// act is what the sink double does with one batch.
type act struct {
	take  func(i int) bool // which items it keeps; nil: none
	res   Result
	wait  time.Duration // before it answers
	then  func()        // before it answers
	hang  bool          // until the engine gives up
	panic bool
}

func all(int) bool { return true }

// double is a sink in memory that does what its script says.
type double struct {
	t      testing.TB
	lim    Limits
	grade  Grade
	script func(call int, b *Batch) act

	mu        sync.Mutex
	calls     int
	flying    int
	most      int // sends at once
	taken     map[string]int
	order     []uint64
	bodies    map[string][]byte          // as first sent
	twiceOK   map[string]bool            // ids of which an attempt was ambiguous or a crash came between
	rewritten []string                   // ids sent with other bytes than before
	cuts      map[uint64]map[uint64]bool // ends of whole batches at their first attempt, by first index
}

func newDouble(t testing.TB, items int) *double {
	return &double{
		t: t, lim: Limits{Items: items, Bytes: 1 << 20, Item: 1 << 16, InFlight: 1}, grade: Durable,
		taken: map[string]int{}, bodies: map[string][]byte{}, twiceOK: map[string]bool{}, cuts: map[uint64]map[uint64]bool{},
	}
}

func (d *double) Limits() Limits             { return d.lim }
func (d *double) Grade() Grade               { return d.grade }
func (d *double) Test(context.Context) error { return nil }

func (d *double) Send(ctx context.Context, b *Batch) Result {
	d.mu.Lock()
	d.calls++
	d.flying++
	d.most = max(d.most, d.flying)
	a := act{take: all, res: Result{Class: Done, Grade: d.grade}}
	if d.script != nil {
		a = d.script(d.calls, b)
	}
	if first, last := b.Items[0].Index, b.Items[len(b.Items)-1].Index; b.Attempt == 1 {
		if d.cuts[first] == nil {
			d.cuts[first] = map[uint64]bool{}
		}
		d.cuts[first][last] = true
	}
	for i, it := range b.Items {
		if was, ok := d.bodies[it.ID]; ok && !bytes.Equal(was, it.Body) {
			d.rewritten = append(d.rewritten, it.ID)
		}
		d.bodies[it.ID] = bytes.Clone(it.Body)
		if a.take != nil && a.take(i) {
			d.taken[it.ID]++
			d.order = append(d.order, it.Index)
		}
		if a.res.Ambiguous || a.res.Items != nil && i < len(a.res.Items) && a.res.Items[i].Ambiguous || a.res.Items != nil && len(a.res.Items) != len(b.Items) || a.panic || a.hang {
			d.twiceOK[it.ID] = true
		}
	}
	d.mu.Unlock()
	defer func() {
		d.mu.Lock()
		d.flying--
		d.mu.Unlock()
	}()
	if a.then != nil {
		a.then()
	}
	if a.hang {
		<-ctx.Done()
		return Result{Class: Retry, Ambiguous: true, Cause: "timeout"}
	}
	if a.wait > 0 {
		time.Sleep(a.wait)
	}
	if a.panic {
		panic("the sink is broken")
	}
	return a.res
}

// count is how many distinct records have arrived.
func (d *double) count() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return len(d.taken)
}

// with does something that the script must not see half done.
func (d *double) with(fn func()) {
	d.mu.Lock()
	defer d.mu.Unlock()
	fn()
}

// sends is how often something was sent.
func (d *double) sends() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.calls
}

func (e *Engine) runnerOf(name string) *runner {
	e.mu.Lock()
	defer e.mu.Unlock()
	return e.runners[name]
}

// resplit are the first indexes of batches that were sent first in more than one
// way.
func (d *double) resplit() map[string]int {
	out := map[string]int{}
	for first, ends := range d.cuts {
		if len(ends) > 1 {
			out[fmt.Sprint(first)] = len(ends)
		}
	}
	return out
}

// house is an engine over a fake book, with one sink called "s".
type house struct {
	t     testing.TB
	book  *fakeBook
	disk  *memDisk
	store *memStore
	sink  *double
	as    Sink // what the engine gets for sink; nil: itself
	poll  time.Duration
	proj  *plain
	conf  SinkConfig
	eng   *Engine
	end   func()
}

func newHouse(t testing.TB, signed uint64, items int) *house {
	h := &house{t: t, book: newBook(signed), disk: newDisk(), sink: newDouble(t, items), proj: &plain{version: 1}}
	h.store = &memStore{disk: h.disk}
	return h
}

// start opens an engine over what is on the disk and runs it.
func (h *house) start() {
	h.t.Helper()
	c := h.conf
	c.Name, c.Sink, c.Projection = "s", h.sink, h.proj
	if h.as != nil {
		c.Sink = h.as
	}
	var log *slog.Logger
	if testing.Verbose() {
		log = slog.New(slog.NewTextHandler(h.t.Output(), nil))
	}
	e, err := New(Config{Book: h.book, State: h.store, src: h.book, Sinks: []SinkConfig{c}, Logger: log, poll: h.poll})
	if err != nil {
		h.t.Fatal(err)
	}
	h.eng = e
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	h.end = func() {
		cancel()
		if err := <-done; err != nil {
			h.t.Error(err)
		}
	}
}

// crash ends the engine as kill -9 does: nothing that it does any more has an
// effect. What was at the sink at that moment may come again.
func (h *house) crash() {
	h.store.kill()
	h.end() // what it does to the end has no effect but at the sink
	h.sink.mu.Lock()
	for id := range h.sink.taken {
		if _, index, _ := strings.Cut(id, "-"); index != "" {
			var i uint64
			fmt.Sscan(index, &i)
			if i >= h.stored().Cursor {
				h.sink.twiceOK[id] = true
			}
		}
	}
	h.sink.mu.Unlock()
	h.store = &memStore{disk: h.disk}
}

// stored is the state on the disk, an empty one if there is none.
func (h *house) stored() *state {
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	v, ok := h.disk.m[[2]string{stateTable, "s"}]
	if !ok {
		return &state{}
	}
	st, err := decodeState(v)
	if err != nil {
		h.t.Fatal(err)
	}
	return st
}

func (h *house) status() Status { return h.eng.Status()[0] }

// jailed are the ids in the quarantine on the disk.
func (h *house) jailed() map[string]*Quarantined {
	out := map[string]*Quarantined{}
	h.disk.mu.Lock()
	defer h.disk.mu.Unlock()
	for k, v := range h.disk.m {
		if k[0] == quarantineTable {
			q, err := decodeQuarantined(v)
			if err != nil {
				h.t.Fatal(err)
			}
			out[q.ID] = q
		}
	}
	return out
}

// settled reports whether everything signed is settled and written.
func (h *house) settled() bool {
	_, signed := h.book.Signed()
	return h.stored().Cursor == signed
}

// until waits in fake time for something to become true.
func (h *house) until(most time.Duration, what string, ok func() bool) {
	h.t.Helper()
	for end := time.Now().Add(most); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("after %v it is not so that %s: %+v", most, what, h.status())
		}
	}
}

// oracle checks what must be true whatever went wrong: distinct ids at the sink
// and in quarantine are those of the book below the cursor, and nothing arrived
// twice without a reason that was logged.
func (h *house) oracle() {
	h.t.Helper()
	h.sink.mu.Lock()
	defer h.sink.mu.Unlock()
	jail := h.jailed()
	cursor := h.stored().Cursor
	for i := range cursor {
		if h.book.gap != nil && h.book.gap(i) {
			continue
		}
		id := EventID(testOrigin, i)
		if h.sink.taken[id] == 0 && jail[id] == nil {
			h.t.Fatalf("the cursor is at %d and %s is neither at the sink nor in quarantine", cursor, id)
		}
	}
	for id, n := range h.sink.taken {
		if n > 1 && !h.sink.twiceOK[id] {
			h.t.Errorf("%s arrived %d times and nothing was ambiguous", id, n)
		}
	}
}
