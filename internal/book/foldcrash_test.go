package book

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// openAt opens the book on a machine that was switched on for the n-th time.
func (r *room) openAt(boot byte) (*Book, error) {
	p := r.place()
	p.boot = func() bootID { return bootID{boot} }
	return open(context.Background(), r.cfg, p)
}

// stopAt makes files and key store fail from operation n on. That operation is
// still carried out if after is set.
func (r *room) stopAt(n int64, after bool) *atomic.Int64 {
	ops := new(atomic.Int64)
	judge := func() (bool, error) {
		switch at := ops.Add(1); {
		case at < n:
			return true, nil
		case at == n:
			return after, errPower
		}
		return false, errPower
	}
	r.files.SetFault(func(store.Op) (bool, error) { return judge() })
	state := r.state.Snapshot()
	state.Fault = func(op string) (bool, error) {
		if op == "view" {
			return true, nil
		}
		return judge()
	}
	r.state = state
	return ops
}

// siege is a story of floods and what it was promised.
type siege struct {
	*room
	now     time.Time
	tried   map[string]int64 // exchanges by reason
	kept    map[string]int64 // for which Commit returned nil
	durable map[string]int64 // of these, those before the last time that everything was synced
	known   int              // exchanges of a person that were kept
}

func newSiege(t testing.TB) *siege {
	s := &siege{room: newRoom(t, small(32)), now: time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)}
	s.tried, s.kept, s.durable = map[string]int64{}, map[string]int64{}, map[string]int64{}
	s.cfg.FoldSlots = 16
	s.cfg.Now = func() time.Time { return s.now }
	return s
}

// tell lets floods come and go through two lives of the book, in one goroutine,
// so that operations repeat. It ends at the first error.
func (s *siege) tell() error {
	for life := range 2 {
		b, err := s.openAt(1)
		if err != nil {
			return err
		}
		if err := b.startFolds(); err != nil {
			return err
		}
		for round := range 4 {
			if err := s.round(b, 10*life+round); err != nil {
				return err
			}
		}
		if life == 0 {
			b.folds.turn(false)
			if err := errors.Join(b.foldTick(context.Background(), true), b.Close(context.Background())); err != nil {
				return err
			}
			s.state = s.state.Snapshot()
		}
	}
	return nil
}

func (s *siege) round(b *Book, n int) error {
	ctx := context.Background()
	rec := b.Recorder(testRules(s.t), testSnap)
	for i := range 45 {
		what := sorts[(n+i/15)%len(sorts)]
		x := refusedOne(b, address(7*n+i/9), what)
		s.now = s.now.Add(3 * time.Millisecond)
		s.tried[what.reason]++
		if err := rec.Commit(ctx, record.Ref{}, x, record.Written); err != nil {
			return err
		}
		s.kept[what.reason]++
		if i%20 == 19 {
			if err := b.folds.file.sync(); err != nil {
				return err
			}
		}
	}
	if err := keepAll(rec, exchange(b, n, "person-1"), record.Written); err != nil {
		return err
	}
	s.known++
	// There is a new leaf, so this puts the WAL on the disk.
	if err := errors.Join(b.folds.file.sync(), b.ledger.SignCheckpoint(ctx)); err != nil {
		return err
	}
	for reason, n := range s.kept {
		s.durable[reason] = n
	}
	s.now = s.now.Add(time.Duration(n%3) * 5 * time.Second)
	return b.foldTick(ctx, false)
}

// verdict holds what is there against what was promised.
func (s *siege) verdict(when string, promised map[string]int64, exact bool) {
	s.t.Helper()
	rd := s.reader()
	have := all(s.t, rd)
	got := total(s.t, when, have)
	for _, what := range sorts {
		if n := got.of(what.reason); n < promised[what.reason] || n > s.tried[what.reason] {
			s.t.Fatalf("%s: %d exchanges %s are there (%d folded); %d were promised, %d tried", when, n, what.reason, got.folded[what.reason], promised[what.reason], s.tried[what.reason])
		}
	}
	for _, k := range events(have, eventFold) {
		if exact && !k.rec.Event.Exact {
			s.t.Fatalf("%s: a fold of %d is not exact", when, k.rec.Event.Count)
		}
		if e := k.rec.Event; e.Count < 1 || e.Last < e.First || e.Count > 1 && e.Last == e.First {
			s.t.Fatalf("%s: event %+v", when, e)
		}
	}
	if len(ofKind(have, record.KindInterrupted)) > 1 {
		s.t.Fatalf("%s: folds became interrupted exchanges", when)
	}
}

func stride(n int) int {
	if soak() {
		return 1
	}
	return n
}

// TestFoldKills kills the process at every operation, before and after it took
// effect, and then each restart too: no exchange that was answered is missing
// and none is counted twice.
func TestFoldKills(t *testing.T) {
	for _, after := range []bool{false, true} {
		t.Run(fmt.Sprintf("after: %v", after), func(t *testing.T) {
			kills := 0
			for n := int64(1); ; n += int64(stride(11 * sweepStep)) {
				s := newSiege(t)
				ops := s.stopAt(n, after)
				err := s.tell()
				if (err != nil) != (ops.Load() >= n) {
					t.Fatalf("operation %d of %d: %v", n, ops.Load(), err)
				}
				s.killed(n, after)
				kills++
				if err == nil {
					t.Logf("%d kills at %d operations", kills, n)
					return
				}
			}
		})
	}
}

// killed restarts after a kill; the first restarts are killed as well.
func (s *siege) killed(n int64, after bool) {
	s.t.Helper()
	for again := range 3 {
		s.files, s.state = s.files.Kill(), s.state.Snapshot()
		if again < 2 {
			s.stopAt(1+(n*7+int64(again)*13)%60, after)
		}
		b, err := s.openAt(1)
		if err == nil {
			err = b.startFolds()
		}
		if err == nil {
			err = b.ledger.SignCheckpoint(context.Background())
		}
		if again == 2 && err != nil {
			s.t.Fatalf("operation %d: restart refused: %v", n, err)
		}
		if err != nil && !errors.Is(err, errPower) {
			s.t.Fatalf("operation %d: %v", n, err)
		}
	}
	s.verdict(fmt.Sprintf("operation %d", n), s.kept, true)
	if n%10 == 0 {
		s.mustVerify(nil)
	}
}

// TestFoldPowerCuts cuts the power at every operation and loses what was not
// synced, in several ways: what was synced is counted, nothing twice, and
// counts that may lack something say so.
func TestFoldPowerCuts(t *testing.T) {
	for _, mode := range []string{"lose all", "lose some"} {
		t.Run(mode, func(t *testing.T) {
			recovered := 0
			for n := int64(1); ; n += int64(stride(17 * sweepStep)) {
				s := newSiege(t)
				ops := s.stopAt(n, false)
				err := s.tell()
				var rng *rand.Rand
				if mode == "lose some" {
					rng = rand.New(rand.NewPCG(uint64(n), 11))
				}
				s.restart(rng)
				before := len(events(all(t, s.reader()), eventFold))
				b, oerr := s.openAt(2)
				if oerr != nil {
					t.Fatalf("operation %d: restart refused: %v", n, oerr)
				}
				when := fmt.Sprintf("operation %d", n)
				s.verdict(when, s.durable, false)
				for i, k := range events(all(t, s.reader()), eventFold) {
					if i >= before && k.rec.Event.Exact {
						t.Fatalf("%s: a count that a power cut interrupted is called exact: %s", when, k.frame)
					}
					recovered += max(0, min(1, i-before+1))
				}
				if err := b.Close(context.Background()); err != nil {
					t.Fatal(err)
				}
				s.mustVerify(nil)
				if err == nil && ops.Load() < n {
					t.Logf("%d folds recovered in cuts at %d operations", recovered, n)
					return
				}
			}
		})
	}
}

// TestFoldTornCopies tears every write to the fold file that was not synced: the
// count that was is found.
func TestFoldTornCopies(t *testing.T) {
	for seed := range uint64(120 / stride(6)) {
		s := newSiege(t)
		b, err := s.openAt(1)
		if err != nil {
			t.Fatal(err)
		}
		folding(t, b)
		rec := b.Recorder(testRules(t), testSnap)
		synced := int64(0)
		for n := range 400 {
			s.now = s.now.Add(time.Microsecond)
			if err := refuse(rec, "203.0.113.9", sorts[0], record.Written); err != nil {
				t.Fatal(err)
			}
			switch {
			case n == 20: // the mark
				if err := b.ledger.SignCheckpoint(context.Background()); err != nil {
					t.Fatal(err)
				}
			case n > 20 && (uint64(n)*7+seed)%31 == 0:
				if err := b.folds.file.sync(); err != nil {
					t.Fatal(err)
				}
				synced = int64(n + 1)
			}
		}
		s.restart(rand.New(rand.NewPCG(seed, 5)))
		if _, err := s.openAt(2); err != nil {
			t.Fatal(err)
		}
		got := total(t, "torn", all(t, s.reader()))
		if n := got.of("rate_limited"); n < synced || n > 400 {
			t.Errorf("seed %d: %d counted, %d were synced", seed, n, synced)
		}
	}
}

// TestFoldFileDamaged: counts that cannot be trusted are not, and the folds say
// that they are not exact. A file of a later version is not guessed at.
func TestFoldFileDamaged(t *testing.T) {
	for name, c := range map[string]struct {
		spoil  func(m *store.Mem, b []byte) []byte
		counts []int64 // of three folds, in order
		exact  bool
		refuse string
	}{
		"as it was":        {counts: []int64{5, 15, 25}, exact: true},
		"a count":          {spoil: func(_ *store.Mem, b []byte) []byte { spoilCopies(b, 1, 23); return b }, counts: []int64{5, 1, 25}},
		"a tag":            {spoil: func(_ *store.Mem, b []byte) []byte { spoilCopies(b, 0, 39); return b }, counts: []int64{1, 15, 25}},
		"a mark":           {spoil: func(_ *store.Mem, b []byte) []byte { spoilCopies(b, 2, 0); return b }, counts: []int64{5, 15, 1}},
		"slots exchanged":  {spoil: exchangeSlots, counts: []int64{5, 15, 25}, exact: true}, // a mark is found wherever it is
		"the padding":      {spoil: func(_ *store.Mem, b []byte) []byte { b[2*foldBlock-1] = 1; return b }, counts: []int64{5, 15, 25}},
		"the header":       {spoil: func(_ *store.Mem, b []byte) []byte { b[12] ^= 1; return b }, counts: []int64{1, 1, 1}},
		"the header's end": {spoil: func(_ *store.Mem, b []byte) []byte { b[255] ^= 1; return b }, counts: []int64{5, 15, 25}},
		"cut off":          {spoil: func(_ *store.Mem, b []byte) []byte { return b[:len(b)-1] }, counts: []int64{1, 1, 1}},
		"empty":            {spoil: func(_ *store.Mem, b []byte) []byte { return nil }, counts: []int64{1, 1, 1}},
		"gone":             {spoil: func(m *store.Mem, b []byte) []byte { m.Remove(foldName); return b }, counts: []int64{1, 1, 1}},
		"a later version":  {spoil: func(_ *store.Mem, b []byte) []byte { b[0] = 2; return b }, refuse: "version 2"},
	} {
		t.Run(name, func(t *testing.T) {
			s := newSiege(t)
			b, err := s.openAt(1)
			if err != nil {
				t.Fatal(err)
			}
			folding(t, b)
			rec := b.Recorder(testRules(t), testSnap)
			for n := range 3 {
				s.now = s.now.Add(time.Millisecond) // marks are recovered in order of time
				for range 15 + 10*n {
					if err := refuse(rec, fmt.Sprintf("10.0.%d.1", n), sorts[0], record.Written); err != nil {
						t.Fatal(err)
					}
				}
			}
			s.files, s.state = s.files.Kill(), s.state.Snapshot()
			if c.spoil != nil {
				s.spoil(c.spoil)
			}
			_, err = s.openAt(1)
			if c.refuse != "" {
				if err == nil || !strings.Contains(err.Error(), c.refuse) {
					t.Errorf("opened: %v", err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			folds := events(all(t, s.reader()), eventFold)
			if len(folds) != len(c.counts) {
				t.Fatalf("%d folds", len(folds))
			}
			for i, k := range folds {
				if e := k.rec.Event; e.Count != c.counts[i] || e.Exact != c.exact {
					t.Errorf("fold %d: %+v, want %d", i, e, c.counts[i])
				}
			}
		})
	}
}

// spoil changes the fold file.
func (s *siege) spoil(change func(m *store.Mem, b []byte) []byte) {
	s.t.Helper()
	b, err := store.ReadFile(s.files, foldName, 1<<20)
	if err != nil {
		s.t.Fatal(err)
	}
	b = change(s.files, b)
	f, err := s.files.OpenRW(foldName)
	if err != nil {
		return // it was removed
	}
	if err := f.Truncate(0); err != nil {
		s.t.Fatal(err)
	}
	if _, err := f.WriteAt(b, 0); err != nil {
		s.t.Fatal(err)
	}
}

// spoilCopies changes one byte in every copy of a slot.
func spoilCopies(b []byte, slot, at int) {
	for i := range foldCopies {
		p := b[foldBlock*(1+slot)+foldCopy*i:][:foldCopy]
		if !isZero(p) {
			p[at] ^= 0x40
		}
	}
}

func exchangeSlots(_ *store.Mem, b []byte) []byte {
	for i := range foldBlock {
		x, y := &b[foldBlock+i], &b[5*foldBlock+i]
		*x, *y = *y, *x
	}
	return b
}
