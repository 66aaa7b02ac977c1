package book

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// trouble is one way in which an operation goes wrong.
type trouble struct {
	name  string
	apply bool  // it took effect all the same
	err   error //
	span  int64 // how many operations in a row; 0: all that follow
	grow  bool  // only those that take space on the disk
}

var troubles = []trouble{
	{name: "killed before", err: errPower},
	{name: "killed after", apply: true, err: errPower},
	{name: "EIO before", err: syscall.EIO, span: 1},
	{name: "EIO after", apply: true, err: syscall.EIO, span: 1},
	{name: "ENOSPC", err: syscall.ENOSPC, span: 1, grow: true},
	{name: "ENOSPC for long", err: syscall.ENOSPC, span: 60, grow: true},
	{name: "short write", apply: true, err: &store.ShortWrite{N: 40, Err: syscall.ENOSPC}, span: 1, grow: true},
	{name: "EIO for long", err: syscall.EIO, span: 60},
}

// hit says whether operation at goes wrong when the trouble begins at n. A full
// disk takes writes in place; and what can be written nowhere for long cannot
// be counted.
func (tr *trouble) hit(n, at int64, kind, name string) bool {
	if at < n || tr.span > 0 && at >= n+tr.span {
		return false
	}
	if (tr.grow && (name == blindName || name == foldName)) || (tr.span > 1 && name == blindName) {
		return false
	}
	return !tr.grow || kind == "write" || kind == "create" || kind == "allocate" || kind == "update"
}

// begin makes files and key store go wrong from operation n on, the first of
// which may still take effect. It returns the counter, and where the trouble
// hit first.
func (tr *trouble) begin(r *room, n int64) (*atomic.Int64, *string) {
	ops, where := new(atomic.Int64), new(string)
	judge := func(kind, name string) (bool, error) {
		at := ops.Add(1)
		if !tr.hit(n, at, kind, name) {
			return true, nil
		}
		if *where == "" {
			*where = kind + " " + name
			return tr.apply, tr.err
		}
		return tr.apply && tr.span > 0, tr.err
	}
	r.files.SetFault(func(op store.Op) (bool, error) { return judge(op.Kind, op.Name) })
	state := r.state.Snapshot()
	state.Fault = func(op string) (bool, error) {
		if op == "view" {
			return true, nil
		}
		return judge(op, "key store")
	}
	r.state = state
	return ops, where
}

// ledgerOf is what exchanges were told.
type ledgerOf struct {
	acked map[record.ID]string // Commit returned nil
	sent  map[record.ID]bool   // Commit returned
	folds int64                // refusals that may be counted, whose Commit returned
	under int                  // exchanges that were under way when the process died
}

// drama is a story that goes on whatever happens, as a gate does, and the
// checks after it.
type drama struct {
	*room
	ledgerOf
	dead func() bool
}

func (d *drama) book() *Book {
	b, err := d.tryOpen()
	if err != nil {
		return nil
	}
	return b
}

// play is a bit of everything that writes, in one goroutine.
func (d *drama) play() {
	for act := range 2 {
		b := d.book()
		if b == nil && !d.dead() { // started again by whoever watches it
			d.files, d.state = d.files.Next(), reopenedState(d.room)
			b = d.book()
		}
		if b == nil {
			return
		}
		folding := b.startFolds() == nil
		for n := range 14 {
			d.exchange(b, act*100+n)
			if d.dead() {
				return
			}
			d.housework(b, n, folding)
		}
		if folding {
			b.folds.turn(false)
			b.foldTick(context.Background(), true)
			b.folds.file.sync()
		}
		b.Close(context.Background())
		if d.dead() {
			return
		}
		d.files, d.state = d.files.Next(), reopenedState(d.room)
	}
}

// exchange is one as the gate does it, and some refusals of a flood.
func (d *drama) exchange(b *Book, n int) {
	ctx := context.Background()
	rec := b.Recorder(testRules(d.t), testSnap)
	x := exchange(b, n, fmt.Sprintf("person-%d", n%5))
	d.under = 1
	var ref record.Ref
	if n%4 != 3 { // an intent that asks for no mark
		ref, _ = rec.Open(ctx, x, record.Written)
	}
	if d.dead() {
		return
	}
	err := rec.Commit(ctx, ref, x, record.Written)
	if d.dead() {
		return
	}
	d.under = 0
	d.sent[x.ID] = true
	if err == nil {
		d.acked[x.ID] = x.Personal.Path
	}
	for range 4 {
		d.under = 1
		rec.Commit(ctx, record.Ref{}, refusedOne(b, "203.0.113.9", sorts[0]), record.Written)
		if d.dead() {
			return
		}
		d.under = 0
		d.folds++
	}
}

// housework is what the loops do.
func (d *drama) housework(b *Book, n int, folding bool) {
	ctx := context.Background()
	if n%3 == 2 {
		b.ledger.SignCheckpoint(ctx)
	}
	if n%5 == 4 {
		b.ledger.SealNow(ctx)
	}
	if n%4 == 1 {
		b.ring.Project(b.ring.Pending())
		b.settle(ctx)
		b.blind.sync()
	}
	if n%6 == 5 && folding {
		b.folds.file.sync()
		b.foldTick(ctx, true)
	}
}

// reopenedState is the key store that the next process finds, with the same
// trouble.
func reopenedState(r *room) *keys.MemStore {
	s := r.state.Snapshot()
	s.Fault = r.state.Fault
	return s
}

// check demands that each exchange is in the book once, as a record or as one
// of a gap's count.
func (d *drama) check(b *Book, when string) {
	d.t.Helper()
	rd, err := b.Reader()
	if err != nil {
		d.t.Fatal(err)
	}
	defer rd.Close()
	var folded, gaps int64
	found := map[record.ID]record.Kind{}
	exact := true
	for _, k := range all(d.t, rd) {
		switch {
		case k.kind == record.KindGap:
			gaps += k.rec.Event.Count
			exact = exact && k.rec.Event.Exact
		case k.rec.Event.Name == eventFold:
			folded += k.rec.Event.Count
			exact = exact && k.rec.Event.Exact
		case k.kind == record.KindRequest || k.kind == record.KindInterrupted:
			if _, twice := found[k.id]; twice {
				d.t.Fatalf("%s: exchange %v has two records", when, k.id)
			}
			found[k.id] = k.kind
			if path, ok := d.acked[k.id]; ok && (k.kind != record.KindRequest || k.rec.Personal.Path != path) {
				d.t.Fatalf("%s: exchange %v on %s was acknowledged and is %s on %s", when, k.id, path, k.kind, k.rec.Personal.Path)
			}
		}
	}
	for _, id := range slices.Collect(maps.Keys(d.acked)) {
		if _, ok := found[id]; !ok {
			d.t.Fatalf("%s: exchange %v was acknowledged and is missing", when, id)
		}
	}
	have, want := int64(len(found))+folded+gaps, int64(len(d.sent))+d.folds
	slack := int64(d.under)
	if !exact {
		slack++ // the one that may or may not have been kept
	}
	if have < want || have > want+slack {
		d.t.Fatalf("%s: %d exchanges, and the book has %d records, %d folded and %d in gaps (exact: %v, under way %d)",
			when, want, len(found), folded, gaps, exact, d.under)
	}
}

// act plays the drama with a trouble at operation n and says where it hit, or
// "" when the drama was over before.
func act(t *testing.T, base *room, tr *trouble, n int64) string {
	t.Helper()
	r := *base
	r.files, r.state = base.files.Clone(), base.state.Snapshot()
	ops, where := tr.begin(&r, n)
	d := &drama{room: &r, ledgerOf: ledgerOf{acked: map[record.ID]string{}, sent: map[record.ID]bool{}}}
	d.dead = func() bool { return errors.Is(tr.err, errPower) && ops.Load() >= n }
	d.play()
	when := fmt.Sprintf("%s operation %d (%s)", tr.name, n, *where)
	r.files, r.state = r.files.Kill(), r.state.Snapshot()
	b, err := r.tryOpen()
	if err != nil {
		t.Fatalf("%s: restart refused: %v", when, err)
	}
	d.check(b, when)
	if err := b.Close(context.Background()); err != nil {
		t.Fatalf("%s: %v", when, err)
	}
	r.mustVerify(nil)
	r.state = r.state.Snapshot()
	if b, err = r.tryOpen(); err != nil { // nothing is told twice
		t.Fatalf("%s: second restart: %v", when, err)
	}
	d.check(b, when+", second restart")
	b.Close(context.Background())
	return *where
}

// TestFaultMatrix lets every operation on files and key store go wrong, in
// every way, restarts, and compares the book with what the clients were told.
func TestFaultMatrix(t *testing.T) {
	base := newRoom(t, func(o *ledger.Options) {
		small(16)(o)
		o.Ballast = 16 << 10
	})
	base.cfg.FoldSlots = keepForAll
	stride := int64(29 * sweepStep)
	if soak() {
		stride = 1
	}
	hit := map[string]int{}
	cases := 0
	for i := range troubles {
		tr := &troubles[i]
		for n := 1 + int64(i)*3%stride; ; n += stride {
			where := act(t, base, tr, n)
			if where == "" {
				break
			}
			cases++
			hit[where]++
		}
	}
	t.Logf("%d cases in %d places", cases, len(hit))
	if cases < 100/sweepStep {
		t.Errorf("only %d cases", cases)
	}
}

// TestReadFaults lets each read of a start fail: it is refused, or goes on with
// everything, and the next start has everything in any case.
func TestReadFaults(t *testing.T) {
	base := newRoom(t, small(16))
	base.cfg.FoldSlots = keepForAll
	d := &drama{room: base, ledgerOf: ledgerOf{acked: map[record.ID]string{}, sent: map[record.ID]bool{}}}
	d.dead = func() bool { return false }
	d.play()
	b := d.book()
	for n := range 5 { // and a WAL in use
		d.exchange(b, 300+n)
	}
	files, state := base.files.Kill(), base.state.Snapshot()
	refused, cases := 0, 0
	for n := 1; ; n += sweepStep {
		r := *base
		r.files, r.state = files.Clone(), state.Snapshot()
		reads := 0
		r.files.SetReadFault(func(store.Op) error {
			if reads++; reads == n {
				return syscall.EIO
			}
			return nil
		})
		b, err := r.tryOpen()
		if reads < n {
			break
		}
		cases++
		if err != nil {
			refused++
			r.files, r.state = r.files.Kill(), r.state.Snapshot()
			if b, err = r.tryOpen(); err != nil {
				t.Fatalf("read %d failed, and the next start is refused: %v", n, err)
			}
		}
		r.files.SetReadFault(nil)
		after := &drama{room: &r, ledgerOf: d.ledgerOf}
		after.check(b, fmt.Sprintf("read %d failed", n))
		if err := b.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		r.mustVerify(nil)
	}
	t.Logf("%d of %d starts refused", refused, cases)
	if cases < 10 || refused == 0 {
		t.Errorf("%d of %d starts refused", refused, cases)
	}
}
