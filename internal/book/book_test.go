package book

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// TestLevels keeps exchanges at each level; all are there after a clean stop,
// once, with what was said of them.
func TestLevels(t *testing.T) {
	r := newRoom(t, small(64))
	b := r.open()
	stop := background(b)
	rec := b.Recorder(testRules(t), testSnap)
	want := map[record.ID]int{}
	levels := []record.Level{record.Written, record.Durable, record.Queued}
	for n := range 90 {
		x := exchange(b, n, fmt.Sprintf("person-%d", n%4))
		if err := keepAll(rec, x, levels[n%3]); err != nil {
			t.Fatal(err)
		}
		want[x.ID] = n
	}
	if err := stop(); err != nil {
		t.Fatal(err)
	}
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.mustVerify(nil)
	have := all(t, r.reader())
	for _, k := range ofKind(have, record.KindRequest) {
		n, ok := want[k.id]
		if !ok {
			t.Fatalf("record %d is there twice, or was never made", k.index)
		}
		delete(want, k.id)
		if k.rec.Personal.Path != pathOf(n) || k.rec.Status != 200 || k.rec.Node != "n1" || k.rec.Snap != testSnap {
			t.Errorf("exchange %d came back as %s %s", n, k.frame, k.personal)
		}
	}
	if len(want) > 0 {
		t.Errorf("%d records are missing", len(want))
	}
	for _, kind := range []record.Kind{record.KindStart, record.KindStop} {
		if n := len(ofKind(have, kind)); n != 1 {
			t.Errorf("%d records of kind %s", n, kind)
		}
	}
	if n := len(ofKind(have, record.KindUncleanStop)) + len(ofKind(have, record.KindInterrupted)) + len(ofKind(have, record.KindGap)); n != 0 {
		t.Errorf("%d records say that something went wrong", n)
	}
}

// TestGap refuses exchanges on a full disk and counts them exactly in one gap
// record when there is space again.
func TestGap(t *testing.T) {
	for _, l := range []record.Level{record.Written, record.Durable} {
		t.Run(fmt.Sprint("level ", l), func(t *testing.T) {
			r := newRoom(t, small(64))
			b := r.open()
			stop := background(b)
			rec := b.Recorder(testRules(t), testSnap)
			if err := keepAll(rec, exchange(b, 0, "person-0"), l); err != nil {
				t.Fatal(err)
			}
			r.files.SetFault(func(op store.Op) (bool, error) {
				if op.Kind == "write" && strings.HasPrefix(op.Name, "wal/") {
					return false, syscall.ENOSPC
				}
				return true, nil
			})
			var first, last int64
			for n := range 7 {
				x := exchange(b, n, "person-0")
				// As the gate does: the mark is refused, and so is the record.
				ref, err := rec.Open(context.Background(), x, l)
				mustReason(t, err, "book_full")
				mustReason(t, rec.Commit(context.Background(), ref, x, l), "book_full")
				if last = x.Time; n == 0 {
					first = x.Time
				}
			}
			if got := b.Status().Lost; got != 7 {
				t.Errorf("status counts %d lost exchanges, want 7", got)
			}
			// The book's own records are no exchanges.
			if err := b.heartbeat(context.Background(), newClock(b.cfg.Now())); err == nil {
				t.Error("a heartbeat on a full disk")
			}
			if err := b.settle(context.Background()); err == nil {
				t.Error("a gap record on a full disk")
			}
			r.files.SetFault(nil)
			if err := b.settle(context.Background()); err != nil {
				t.Fatal(err)
			}
			if err := b.settle(context.Background()); err != nil { // nothing left to say
				t.Fatal(err)
			}
			if err := stop(); err != nil {
				t.Fatal(err)
			}
			if err := b.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			gaps := ofKind(all(t, r.reader()), record.KindGap)
			if len(gaps) != 1 {
				t.Fatalf("%d gap records", len(gaps))
			}
			want := record.Event{Name: "gap", Count: 7, Exact: true, First: first, Last: last, Cause: "book_full"}
			if got := gaps[0].rec; got.Event != want || got.Error.Reason != "book_full" || got.Error.Origin != "book" {
				t.Errorf("the gap record says %s, want %+v", gaps[0].frame, want)
			}
			r.mustVerify(nil)
		})
	}
}

// TestGapOfQueued: what was accepted in memory and then lost is counted too.
func TestGapOfQueued(t *testing.T) {
	r := newRoom(t, small(64))
	b := r.open()
	rec := b.Recorder(testRules(t), testSnap)
	r.files.SetFault(func(op store.Op) (bool, error) {
		if op.Kind == "write" && strings.HasPrefix(op.Name, "wal/") {
			return false, syscall.ENOSPC
		}
		return true, nil
	})
	for n := range 5 {
		if err := rec.Commit(context.Background(), record.Ref{}, exchange(b, n, "person-0"), record.Queued); err != nil {
			t.Fatal(err) // it is in memory
		}
	}
	ended, cancel := context.WithCancel(context.Background())
	cancel()
	if err := b.ledger.Run(ended); err != nil { // goes through the queue once
		t.Fatal(err)
	}
	if got := b.Status().Lost; got != 5 {
		t.Fatalf("%d lost exchanges are counted, want 5", got)
	}
	r.files.SetFault(nil)
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	if gaps := ofKind(all(t, r.reader()), record.KindGap); len(gaps) != 1 || gaps[0].rec.Event.Count != 5 {
		t.Fatalf("gap records: %+v", gaps)
	}
}

// TestBrokenDisk: after an error of fsync nothing more is taken, and a restart
// finds what had been acknowledged.
func TestBrokenDisk(t *testing.T) {
	r := newRoom(t, small(64))
	b := r.open()
	stop := background(b)
	rec := b.Recorder(testRules(t), testSnap)
	kept := exchange(b, 1, "person-1")
	if err := keepAll(rec, kept, record.Durable); err != nil {
		t.Fatal(err)
	}
	r.files.SetFault(func(op store.Op) (bool, error) {
		if op.Kind == "sync" {
			return true, syscall.EIO
		}
		return true, nil
	})
	mustReason(t, rec.Commit(context.Background(), record.Ref{}, exchange(b, 2, "person-1"), record.Durable), "book_unavailable")
	mustReason(t, rec.Commit(context.Background(), record.Ref{}, exchange(b, 3, "person-1"), record.Written), "book_unavailable")
	if b.Err() == nil || b.Status().Failed == "" {
		t.Error("the book does not say that it is broken")
	}
	stop()
	if err := b.Close(context.Background()); !errors.Is(err, syscall.EIO) {
		t.Fatalf("letting go: %v", err)
	}
	r.restart(nil)
	b = r.open()
	rd, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	if err := rd.Find(kept.ID, false, func(*Entry) error { return nil }); err != nil {
		t.Errorf("what was acknowledged as durable: %v", err)
	}
	if n := len(ofKind(all(t, rd), record.KindUncleanStop)); n != 1 {
		t.Errorf("%d unclean stops are recorded", n)
	}
}

// TestHeartbeat: every minute, traffic or not, with the number of records since
// the last; verify accepts that range and not one with a silence.
func TestHeartbeat(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, small(1024))
		b := r.open()
		stop := background(b)
		rec := b.Recorder(testRules(t), testSnap)
		for n := range 3 {
			if err := keepAll(rec, exchange(b, n, "person-0"), record.Written); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(10*time.Minute + time.Second)
		synctest.Wait()
		if err := stop(); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		beats := ofKind(all(t, r.reader()), record.KindHeartbeat)
		if len(beats) != 10 {
			t.Fatalf("%d heartbeats in ten minutes", len(beats))
		}
		for i, k := range beats {
			if i > 0 && k.rec.Time-beats[i-1].rec.Time != time.Minute.Microseconds() {
				t.Errorf("heartbeat %d comes %d us after the one before", i, k.rec.Time-beats[i-1].rec.Time)
			}
			want := int64(1) // the heartbeat before
			if i == 0 {
				want = 4 // start and three exchanges
			}
			if k.rec.Event.Count != want {
				t.Errorf("heartbeat %d counts %d records, want %d", i, k.rec.Event.Count, want)
			}
		}
		if rep := r.mustVerify(nil); rep.Range.Status != ledger.OK {
			t.Errorf("range: %+v", rep.Range)
		}
	})
}

// TestSilence: a book that ran without its heartbeat for minutes is not said to
// be complete.
func TestSilence(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	r := newRoom(t, small(1024))
	r.cfg.Now = func() time.Time { return now }
	b := r.open()
	c := newClock(now)
	for _, gap := range []time.Duration{time.Minute, 11 * time.Minute, time.Minute} {
		now = now.Add(gap)
		if err := b.heartbeat(context.Background(), c); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	rep := r.verify(nil)
	if rep.Range.Status != ledger.Failed || rep.ExitCode() != ledger.ExitDamaged {
		t.Errorf("range: %+v, exit code %d", rep.Range, rep.ExitCode())
	}
}

// TestInterrupted kills the book while exchanges are open: each becomes exactly
// one record with its id and what was known, however often the restart itself
// is killed.
func TestInterrupted(t *testing.T) {
	r := newRoom(t, small(64))
	b := r.open()
	rec := b.Recorder(testRules(t), testSnap)
	open := map[record.ID]string{}
	for n := range 40 {
		x := exchange(b, n, fmt.Sprintf("person-%d", n%3))
		ref, err := rec.Open(context.Background(), x, record.Written)
		if err != nil {
			t.Fatal(err)
		}
		if n%2 == 0 {
			open[x.ID] = pathOf(n)
			continue
		}
		if err := rec.Commit(context.Background(), ref, x, record.Written); err != nil {
			t.Fatal(err)
		}
	}
	for kill := range 3 {
		r.files = r.files.Kill()
		if b = r.open(); kill == 2 {
			break
		}
	}
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	have := all(t, r.reader())
	for _, k := range ofKind(have, record.KindInterrupted) {
		path, ok := open[k.id]
		if !ok {
			t.Fatalf("record %d: interrupted twice, or never open", k.index)
		}
		delete(open, k.id)
		if k.rec.Personal.Path != path || k.rec.Outcome != record.Unknown || k.rec.Route != "orders.read" || k.rec.Personal.UA == "" {
			t.Errorf("%s %s", k.frame, k.personal)
		}
	}
	if len(open) > 0 {
		t.Errorf("%d open exchanges left no record", len(open))
	}
	if n := len(ofKind(have, record.KindRequest)); n != 20 {
		t.Errorf("%d request records, want 20", n)
	}
	if n := len(ofKind(have, record.KindUncleanStop)); n != 3 {
		t.Errorf("%d unclean stops, want 3", n)
	}
	r.mustVerify(nil)
}

// TestOldMarkIsCompact carries a mark that is older than a minute to another
// WAL file: what names the exchange stays.
func TestOldMarkIsCompact(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	r := newRoom(t, small(64))
	r.cfg.Now = func() time.Time { return now }
	b := r.open()
	rec := b.Recorder(testRules(t), testSnap)
	x := exchange(b, 7, "person-7")
	if _, err := rec.Open(context.Background(), x, record.Written); err != nil {
		t.Fatal(err)
	}
	for _, d := range []time.Duration{30 * time.Second, 2 * time.Minute} {
		now = now.Add(d)
		if err := b.ledger.SealNow(context.Background()); err != nil {
			t.Fatal(err)
		}
		if err := keepAll(rec, exchange(b, 8, "person-8"), record.Written); err != nil {
			t.Fatal(err)
		}
	}
	r.files = r.files.Kill()
	b = r.open()
	defer b.Close(context.Background())
	rd, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	err = rd.Find(x.ID, true, func(e *Entry) error {
		got := e.Record
		if got.Kind != record.KindInterrupted || got.Time != x.Time || got.Route != "orders.read" || got.Subject != x.Subject ||
			got.Personal.Path != pathOf(7) || got.Personal.IP == "" || got.Client.Prefix == "" {
			t.Errorf("%s %s", e.Frame, e.Personal)
		}
		if got.Personal.UA != "" {
			t.Errorf("the mark was not shortened: %s", e.Personal)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// TestSubjects: a person is one pseudonym for good; a stranger is one for an
// address prefix and a day; neither changes with a restart.
func TestSubjects(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	r := newRoom(t, small(64))
	r.cfg.Now = func() time.Time { return now }
	subject := func(b *Book, n int, who string) string {
		x := exchange(b, n, who)
		if err := keepAll(b.Recorder(testRules(t), testSnap), x, record.Written); err != nil {
			t.Fatal(err)
		}
		return x.Subject
	}
	b := r.open()
	alice, bob := subject(b, 0, "alice"), subject(b, 1, "bob")
	net0, net1 := subject(b, 0, ""), subject(b, 1, "")
	if len(slices.Compact([]string{alice, bob, net0, net1})) != 4 || alice == bob || net0 == net1 || alice == net0 {
		t.Fatalf("subjects %s %s %s %s", alice, bob, net0, net1)
	}
	for _, restart := range []string{"kill", "stop"} {
		if restart == "stop" {
			if err := b.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
		} else {
			r.files = r.files.Kill()
		}
		r.state = r.state.Snapshot()
		b = r.open()
		if got := subject(b, 2, "alice"); got != alice {
			t.Errorf("after a %s alice is %s and was %s", restart, got, alice)
		}
		if got := subject(b, 4, ""); got != net0 { // the same network as 0
			t.Errorf("after a %s a stranger is %s and was %s", restart, got, net0)
		}
	}
	now = now.Add(24 * time.Hour)
	if got := subject(b, 0, ""); got == net0 {
		t.Error("a stranger is the same the next day")
	}
	if got := subject(b, 0, "alice"); got != alice {
		t.Error("a person is another the next day")
	}
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
	r.mustVerify(nil)
}

// TestReader finds records sealed and not sealed, newest first where an id has
// several, and opens personal parts only when asked.
func TestReader(t *testing.T) {
	r := newRoom(t, small(32))
	b := r.open()
	rec := b.Recorder(testRules(t), testSnap)
	var ids []record.ID
	for n := range 70 {
		x := exchange(b, n, "person-1")
		if err := keepAll(rec, x, record.Written); err != nil {
			t.Fatal(err)
		}
		ids = append(ids, x.ID)
	}
	if err := b.ledger.SealNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	twice := exchange(b, 71, "person-1")
	for status := range 2 {
		x := *twice
		x.Status = 500 + status
		x.Raw = record.Raw{Path: pathOf(71), IssuerSub: "corp|person-1"}
		if err := rec.Commit(context.Background(), record.Ref{}, &x, record.Written); err != nil {
			t.Fatal(err)
		}
	}
	rd, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	for n, id := range ids {
		for _, reveal := range []bool{false, true} {
			err := rd.Find(id, reveal, func(e *Entry) error {
				if (e.Personal != nil) != reveal || (e.Record.Personal.Path == pathOf(n)) != reveal || e.Sealed != nil {
					t.Errorf("record %d, reveal %v: personal part %q", n, reveal, e.Personal)
				}
				return nil
			})
			if err != nil {
				t.Fatalf("record %d: %v", n, err)
			}
		}
	}
	if err := rd.Find(twice.ID, false, func(e *Entry) error {
		if e.Record.Status != 501 {
			t.Errorf("of two records the one with status %d", e.Record.Status)
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if err := rd.Find(record.ID{1}, false, func(*Entry) error { return nil }); !errors.Is(err, ErrNotFound) {
		t.Errorf("an id that nobody has: %v", err)
	}
	enough := errors.New("enough")
	if err := rd.Each(0, rd.Size(), false, func(*Entry) error { return enough }); !errors.Is(err, enough) {
		t.Errorf("Each goes on: %v", err)
	}
	if err := b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// TestReadersAndWriters reads and verifies while records are appended and
// sealed.
func TestReadersAndWriters(t *testing.T) {
	r := newRoom(t, small(64))
	b := r.open()
	stop := background(b)
	rec := b.Recorder(testRules(t), testSnap)
	var wg sync.WaitGroup
	for g := range 4 {
		wg.Go(func() {
			for n := range 100 {
				if err := keepAll(rec, exchange(b, g*100+n, fmt.Sprintf("person-%d", n%9)), record.Level(n%2)); err != nil {
					t.Error(err)
					return
				}
			}
		})
	}
	for range 2 {
		wg.Go(func() {
			for range 10 {
				rd, err := b.Reader()
				if err != nil {
					t.Error(err)
					return
				}
				next := uint64(0)
				if err := rd.Each(0, rd.Size(), true, func(e *Entry) error {
					if e.Index < next || e.Sealed != nil {
						return fmt.Errorf("record %d after %d: %v", e.Index, next, e.Sealed)
					}
					next = e.Index + 1
					return nil
				}); err != nil {
					t.Error(err)
				}
				rd.Close()
				if rep, err := b.Verify(b.Key(), nil); err != nil || rep.ExitCode() != 0 {
					t.Errorf("verify under way: %v, %+v", err, rep)
				}
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
	r.mustVerify(nil)
}

// TestOneProcess: while one has the book, nobody else opens it, reads it or
// verifies it with keys; a folder without a book is no book.
func TestOneProcess(t *testing.T) {
	ctx := context.Background()
	c := Config{Dir: t.TempDir(), KeyDir: filepath.Join(t.TempDir(), "keys"), Prefix: "log.example", Node: "n1"}
	if _, err := Open(ctx, c); !errors.Is(err, ErrNone) {
		t.Errorf("an empty folder: %v", err)
	}
	if _, err := OpenReader(ctx, c); !errors.Is(err, ErrNone) {
		t.Errorf("reading an empty folder: %v", err)
	}
	vkey, err := Create(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Create(ctx, c); err == nil {
		t.Error("a second book was made over the first")
	}
	b, err := Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	if b.Key() != vkey {
		t.Errorf("the book's key is %s, Create said %s", b.Key(), vkey)
	}
	if _, err := Open(ctx, c); !errors.Is(err, store.ErrLocked) {
		t.Errorf("opening twice: %v", err)
	}
	if _, err := OpenReader(ctx, c); !errors.Is(err, store.ErrLocked) {
		t.Errorf("reading what another has open: %v", err)
	}
	if _, err := Verify(ctx, VerifyOptions{Dir: c.Dir, KeyDir: c.KeyDir, Key: vkey}); !errors.Is(err, store.ErrLocked) {
		t.Errorf("verifying what another has open: %v", err)
	}
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}
	rep, err := Verify(ctx, VerifyOptions{Dir: c.Dir, KeyDir: c.KeyDir, Key: vkey})
	if err != nil || rep.ExitCode() != 0 {
		t.Errorf("verify: %v, %+v", err, rep)
	}
}
