package book

import (
	"context"
	"errors"
	"math/rand/v2"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// TestFoldsOfMany lets many goroutines refuse at every level while windows end
// and other records are written: no exchange is lost or counted twice.
func TestFoldsOfMany(t *testing.T) {
	r := newRoom(t, small(1024))
	r.cfg.FoldWindow, r.cfg.SyncWithin, r.cfg.FoldSlots = 20*time.Millisecond, time.Millisecond, 32
	b := r.open()
	stop := background(b)
	rec := b.Recorder(testRules(t), testSnap)
	each := 2000
	if soak() {
		each = 50_000
	}
	var sent, others atomic.Int64
	var wg sync.WaitGroup
	levels := []record.Level{record.Written, record.Written, record.Queued, record.Written, record.Durable}
	for g := range 12 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(g), 1))
			for n := range each {
				if n%50 == 49 {
					others.Add(1)
					if err := keepAll(rec, exchange(b, n, "person-1"), record.Written); err != nil {
						t.Error(err)
						return
					}
				}
				l := levels[0]
				if rng.IntN(40) == 0 {
					l = levels[rng.IntN(len(levels))]
				}
				if err := refuse(rec, address(rng.IntN(40)), sorts[rng.IntN(len(sorts))], l); err != nil {
					t.Error(err)
					return
				}
				sent.Add(1)
			}
		})
	}
	wg.Wait()
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	got := total(t, "many", all(t, r.reader()))
	var have, folded int64
	for _, s := range sorts {
		have += got.of(s.reason)
		folded += got.folded[s.reason]
	}
	t.Logf("%d of %d folded", folded, sent.Load())
	if have != sent.Load() || folded == 0 || got.single[""] != others.Load() {
		t.Errorf("%d recorded (%d folded) of %d, %d of %d others", have, folded, sent.Load(), got.single[""], others.Load())
	}
	r.mustVerify(nil)
}

// TestFoldDurable: at the level durable an exchange is on the disk when Commit
// returns, its mark too.
func TestFoldDurable(t *testing.T) {
	r := newRoom(t, small(4096))
	r.cfg.SyncWithin = time.Hour // only those who wait make it sync
	b := r.open()
	stop := background(b)
	defer stop()
	untilFolding(t, b)
	rec := b.Recorder(testRules(t), testSnap)
	for range 15 {
		if err := refuse(rec, "203.0.113.9", sorts[0], record.Written); err != nil {
			t.Fatal(err)
		}
	}
	for range 5 {
		if err := refuse(rec, "203.0.113.9", sorts[0], record.Durable); err != nil {
			t.Fatal(err)
		}
	}
	if got := b.Status().Folded; got != 10 {
		t.Fatalf("%d folded", got)
	}
	r.restart(nil)
	b2 := r.open()
	have := all(t, r.reader())
	if got := total(t, "after the power cut", have); got.of("rate_limited") != 20 {
		t.Errorf("%+v of 20", got)
	}
	b2.Close(context.Background())
}

// untilFolding waits until the loop has made the file.
func untilFolding(t testing.TB, b *Book) {
	t.Helper()
	for on := false; !on; runtime.Gosched() {
		if err := b.Err(); err != nil {
			t.Fatal(err)
		}
		b.folds.gate.RLock()
		on = b.folds.on
		b.folds.gate.RUnlock()
	}
}

// TestFoldFileFails: without its file nothing is folded any more, and every
// exchange is recorded or counted in a gap.
func TestFoldFileFails(t *testing.T) {
	for _, kind := range []string{"create", "write", "sync", "write, after it was done"} {
		t.Run(kind, func(t *testing.T) {
			r := newRoom(t, small(4096))
			r.cfg.SyncWithin = time.Millisecond
			var after atomic.Bool
			fault := func(op store.Op) (bool, error) {
				if after.Load() && strings.HasPrefix(op.Name, foldName) && strings.HasPrefix(kind, op.Kind) {
					return strings.HasSuffix(kind, "done"), syscall.EIO
				}
				return true, nil
			}
			r.files.SetFault(fault)
			after.Store(kind == "create")
			b := r.open()
			stop := background(b)
			if kind != "create" {
				untilFolding(t, b)
			}
			rec := b.Recorder(testRules(t), testSnap)
			var refused int64
			const sent = 400
			for n := range sent {
				if n == 100 {
					after.Store(true)
				}
				if err := refuse(rec, "203.0.113.9", sorts[0], record.Written); err != nil {
					mustReason(t, err, "book_unavailable")
					refused++
				}
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if refused > 300 || kind == "create" && refused > 0 || kind == "sync" && refused > 0 {
				t.Errorf("%d refused", refused)
			}
			if err := b.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			have := all(t, r.reader())
			got := total(t, kind, have)
			gaps := ofKind(have, record.KindGap)
			var lost int64
			for _, k := range gaps {
				lost += k.rec.Event.Count
				if k.rec.Event.Exact {
					t.Errorf("an exact gap: %s", k.frame)
				}
			}
			if lost != refused || got.of("rate_limited")+lost != sent {
				t.Errorf("%d folded, %d single, %d in gaps, %d refused of %d", got.folded["rate_limited"], got.single["rate_limited"], lost, refused, sent)
			}
			if kind != "create" && got.folded["rate_limited"] == 0 {
				t.Error("nothing was folded")
			}
			r.mustVerify(nil)
		})
	}
}

// TestFoldWithoutRoom: a fold that cannot be recorded on a full disk goes on,
// and one that cannot begin is an exchange that was lost.
func TestFoldWithoutRoom(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	r := newRoom(t, small(4096))
	r.cfg.Now = func() time.Time { return now }
	b := r.open()
	folding(t, b)
	rec := b.Recorder(testRules(t), testSnap)
	flood := func(addr string, n int) (refused int) {
		for range n {
			if err := refuse(rec, addr, sorts[0], record.Written); err != nil {
				mustReason(t, err, "book_full")
				refused++
			}
		}
		return refused
	}
	flood("203.0.113.9", 30)
	flood("198.51.100.9", 10)
	r.files.SetFault(func(op store.Op) (bool, error) {
		if op.Kind == "write" && strings.HasPrefix(op.Name, "wal/") {
			return false, syscall.ENOSPC
		}
		return true, nil
	})
	if n := flood("203.0.113.9", 30); n != 0 {
		t.Errorf("%d exchanges refused that only had to be counted", n)
	}
	if n := flood("198.51.100.9", 5); n != 5 {
		t.Errorf("%d of 5 refused that had no mark", n)
	}
	now = now.Add(11 * time.Second)
	for range 3 {
		if err := b.foldTick(context.Background(), false); !errors.Is(err, ledger.ErrFull) {
			t.Fatalf("recording on a full disk: %v", err)
		}
	}
	r.files.SetFault(nil)
	if err := b.ledger.Room(); err != nil {
		t.Fatal(err)
	}
	tick(t, b, false)
	flood("203.0.113.9", 30)
	now = now.Add(11 * time.Second)
	tick(t, b, false)
	tick(t, b, true)
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	have := all(t, r.reader())
	got := total(t, "room again", have)
	gaps := ofKind(have, record.KindGap)
	if got.of("rate_limited") != 100 || len(gaps) != 1 || gaps[0].rec.Event.Count != 5 || !gaps[0].rec.Event.Exact {
		t.Errorf("%+v, gaps %+v", got, gaps)
	}
	if a, e := len(events(have, eventFloodBegin)), len(events(have, eventFloodEnd)); a != e || a == 0 {
		t.Errorf("%d begins, %d ends", a, e)
	}
	r.mustVerify(nil)
}

// TestFoldWhileSlow: a mark that could not be written in time may be there all
// the same. The next exchange takes it up, so that it is closed.
func TestFoldWhileSlow(t *testing.T) {
	r := newRoom(t, small(4096))
	r.cfg.CommitTimeout = 10 * time.Millisecond
	b := r.open()
	folding(t, b)
	rec := b.Recorder(testRules(t), testSnap)
	for range 10 {
		if err := refuse(rec, "203.0.113.9", sorts[0], record.Written); err != nil {
			t.Fatal(err)
		}
	}
	held, let := make(chan struct{}), make(chan struct{})
	var once sync.Once
	r.files.SetFault(func(op store.Op) (bool, error) {
		if op.Kind == "write" && strings.HasPrefix(op.Name, "wal/") {
			once.Do(func() { close(held); <-let })
		}
		return true, nil
	})
	done := make(chan error, 1)
	go func() { done <- keepAll(rec, exchange(b, 1, "person-1"), record.Written) }()
	<-held
	slow := refusedOne(b, "203.0.113.9", sorts[0])
	mustReason(t, rec.Commit(context.Background(), record.Ref{}, slow, record.Written), "book_slow")
	close(let)
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	for range 5 {
		if err := refuse(rec, "203.0.113.9", sorts[0], record.Written); err != nil {
			t.Fatal(err)
		}
	}
	tick(t, b, true)
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	have := all(t, r.reader())
	folded := events(have, eventFold)
	if len(folded) != 1 || folded[0].id != slow.ID || folded[0].rec.Event.Count != 5 {
		t.Errorf("folded records: %+v", folded)
	}
	if gaps := ofKind(have, record.KindGap); len(gaps) != 1 || gaps[0].rec.Event.Count != 1 || gaps[0].rec.Event.Exact {
		t.Errorf("gaps: %+v", gaps)
	}
	r.state = r.state.Snapshot() // Close closed it
	if b = r.open(); len(ofKind(all(t, r.reader()), record.KindInterrupted)) != 0 {
		t.Error("a mark stayed open")
	}
	b.Close(context.Background())
}

// TestFoldOfTheErased: the count of a subject whose key is destroyed meanwhile
// stays, of nobody.
func TestFoldOfTheErased(t *testing.T) {
	r := newRoom(t, small(4096))
	b := r.open()
	folding(t, b)
	rec := b.Recorder(testRules(t), testSnap)
	for range 20 {
		if err := refuse(rec, "203.0.113.9", sorts[0], record.Written); err != nil {
			t.Fatal(err)
		}
	}
	s, err := b.ring.Anonymous("203.0.113.0/24", b.cfg.Now())
	if err != nil {
		t.Fatal(err)
	}
	if err := b.ring.Destroy(keys.KindSubject, s.ID); err != nil {
		t.Fatal(err)
	}
	tick(t, b, true)
	rd, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	n := 0
	err = rd.Each(0, rd.Size(), true, func(e *Entry) error {
		if e.Record.Event.Name == eventFold {
			n++
			if e.Record.Event.Count != 10 || e.Record.Subject != b.ring.System().Pseudonym || len(e.Personal) != 0 || e.Sealed != nil {
				t.Errorf("%s %s %v", e.Frame, e.Personal, e.Sealed)
			}
		}
		return nil
	})
	if err != nil || n != 1 {
		t.Errorf("%d folded records, %v", n, err)
	}
}

// TestFoldAfterStop: what comes when the loop has ended is written, and a
// window that is still counted then is recorded.
func TestFoldAfterStop(t *testing.T) {
	r := newRoom(t, small(4096))
	b := r.open()
	stop := background(b)
	rec := b.Recorder(testRules(t), testSnap)
	untilFolding(t, b)
	for n := range 60 {
		if n == 30 {
			if err := stop(); err != nil {
				t.Fatal(err)
			}
		}
		if err := refuse(rec, "203.0.113.9", sorts[0], record.Written); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	got := total(t, "stopped", all(t, r.reader()))
	if got.folded["rate_limited"] != 20 || got.single["rate_limited"] != 40 {
		t.Errorf("%+v", got)
	}
	r.mustVerify(nil)
}

func BenchmarkFold(b *testing.B) {
	ctx := context.Background()
	c := testConfig()
	c.Dir, c.KeyDir = b.TempDir(), filepath.Join(b.TempDir(), "keys")
	if _, err := Create(ctx, c); err != nil {
		b.Fatal(err)
	}
	bk, err := Open(ctx, c)
	if err != nil {
		b.Fatal(err)
	}
	stop := background(bk)
	untilFolding(b, bk)
	rec := bk.Recorder(testRules(b), testSnap)
	x := refusedOne(bk, "203.0.113.9", sorts[0])
	own := *x
	b.ReportAllocs()
	for b.Loop() {
		*x = own
		if err := rec.Commit(ctx, record.Ref{}, x, record.Written); err != nil {
			b.Fatal(err)
		}
	}
	b.StopTimer()
	if err := errors.Join(stop(), bk.Close(ctx)); err != nil {
		b.Fatal(err)
	}
}
