package book

import (
	"bytes"
	"context"
	"encoding/hex"
	"os"
	"strings"
	"syscall"
	"testing"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// goldenBlind is the file that docs/format.md section 18 describes.
func goldenBlind() (*blindState, *keys.Key) {
	var key keys.Key
	for i := range key {
		key[i] = byte(i)
	}
	return &blindState{
		seq: 7, boot: bootID([]byte("0123456789abcdef")), whole: true,
		open:   missed{count: 3, first: 1_767_225_600_000_001, last: 1_767_225_600_000_009, cause: "book_full"},
		due:    due{record.ID([]byte("ABCDEFGHIJKLMNOP")), 1 << 20, missed{count: 5, first: 1, last: 2, cause: "book_slow", inexact: true}},
		marked: 2,
	}, &key
}

// TestBlindGolden keeps the bytes of the blind file.
func TestBlindGolden(t *testing.T) {
	s, key := goldenBlind()
	raw := make([]byte, blindSize)
	copy(raw[2*blindSlot:], s.encode(nil, key))
	const name = "testdata/v1/blind.golden"
	slot := hex.Dump(raw[2*blindSlot : 2*blindSlot+blindBody+blindTag])
	if os.Getenv("GATEBOOK_UPDATE") != "" {
		if err := os.WriteFile(name, []byte(slot), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if want := mustRead(t, name); slot != string(want) {
		t.Errorf("the slot is\n%swant\n%s", slot, want)
	}
	c, err := decodeBlind(raw, key)
	if err != nil || c.blindState != *s || c.slot != 2 || c.damaged != 0 {
		t.Errorf("it reads as %+v, %v", c, err)
	}
}

// FuzzBlind: whatever the file holds, a state is one that this key wrote, and
// no flipped bit is taken for one.
func FuzzBlind(f *testing.F) {
	s, key := goldenBlind()
	raw := make([]byte, blindSize)
	for i := range blindSlots {
		s.seq++
		copy(raw[i*blindSlot:], s.encode(nil, key))
	}
	f.Add(raw)
	f.Add(make([]byte, blindSize))
	f.Add(raw[:100])
	f.Fuzz(func(t *testing.T, b []byte) {
		c, err := decodeBlind(b, key)
		if err != nil {
			return
		}
		again := c.encode(nil, key)
		if !bytes.Equal(again, b[c.slot*blindSlot:c.slot*blindSlot+len(again)]) {
			t.Errorf("%+v is not what the slot holds", c.blindState)
		}
	})
}

// TestBlindTorn damages slots: the newest whole one counts.
func TestBlindTorn(t *testing.T) {
	s, key := goldenBlind()
	raw := make([]byte, blindSize)
	for i := range blindSlots {
		s.seq, s.open.count = uint64(10+i), int64(100+i)
		copy(raw[i*blindSlot:], s.encode(nil, key))
	}
	for torn := range blindSlots {
		at := (blindSlots - 1 - torn) * blindSlot
		c, err := decodeBlind(raw, key)
		if err != nil || c.open.count != int64(100+blindSlots-1-torn) || c.damaged != torn {
			t.Fatalf("%d torn: %+v, %v", torn, c, err)
		}
		raw[at+50] ^= 1
	}
	if _, err := decodeBlind(raw, key); err == nil {
		t.Error("a file without a whole slot is read")
	}
	raw[0] = 2
	if _, err := decodeBlind(raw, key); err != errBlindVersion {
		t.Errorf("a later version: %v", err)
	}
}

// noWAL is a disk without room for the WAL.
func (r *room) noWAL() {
	r.files.SetFault(func(op store.Op) (bool, error) {
		if op.Kind == "write" && strings.HasPrefix(op.Name, "wal/") {
			return false, syscall.ENOSPC
		}
		return true, nil
	})
}

// again restarts after a kill, or after a power cut of a machine that is on
// for the n-th time then.
func (r *room) again(power bool, boot byte) *Book {
	r.t.Helper()
	if power {
		r.files = r.files.Crash(nil)
	} else {
		r.files = r.files.Kill()
	}
	r.state = r.state.Snapshot()
	b, err := r.openAt(boot)
	if err != nil {
		r.t.Fatal(err)
	}
	return b
}

// TestBlindSurvives refuses exchanges on a full disk and kills the process, or
// cuts the power: the next start writes the gap record, once.
func TestBlindSurvives(t *testing.T) {
	for _, c := range []struct {
		name    string
		power   bool
		sync    bool
		count   int64
		exact   bool
		gapless bool
	}{
		{name: "kill", count: 7, exact: true},
		{name: "power cut after the sync", power: true, sync: true, count: 7},
		{name: "power cut before the sync", power: true, gapless: true},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRoom(t, small(64))
			b, err := r.openAt(1)
			if err != nil {
				t.Fatal(err)
			}
			if err := b.blind.sync(); err != nil {
				t.Fatal(err)
			}
			rec := b.Recorder(testRules(t), testSnap)
			r.noWAL()
			for n := range 7 {
				mustReason(t, keepAll(rec, exchange(b, n, "person-0"), record.Written), "book_full")
				mustReason(t, rec.Commit(context.Background(), record.Ref{}, exchange(b, n, "person-0"), record.Written), "book_full")
			}
			if err := b.Ready(); err == nil || !strings.Contains(err.Error(), "book_full") {
				t.Errorf("readiness: %v", err)
			}
			if c.sync {
				if err := b.blind.sync(); err != nil {
					t.Fatal(err)
				}
			}
			boot := byte(1)
			if c.power {
				boot = 2
			}
			for range 2 {
				b = r.again(c.power, boot)
				gaps := ofKind(all(t, r.reader()), record.KindGap)
				if c.gapless && len(gaps) == 0 {
					continue
				}
				if len(gaps) != 1 || gaps[0].rec.Event.Count != c.count || gaps[0].rec.Event.Exact != c.exact || gaps[0].rec.Event.Cause != "book_full" {
					t.Fatalf("gaps: %+v", gaps)
				}
			}
			if err := b.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			r.mustVerify(nil)
		})
	}
}

// TestOrphans: an exchange whose mark is in the book and whose record is not
// has one interrupted record, whether the disk has room again first or the
// process dies, and is in no gap.
func TestOrphans(t *testing.T) {
	for _, killed := range []bool{false, true} {
		r := newRoom(t, small(64))
		b := r.open()
		rec := b.Recorder(testRules(t), testSnap)
		ctx := context.Background()
		x := exchange(b, 1, "person-1")
		ref, err := rec.Open(ctx, x, record.Written)
		if err != nil {
			t.Fatal(err)
		}
		r.noWAL()
		mustReason(t, rec.Commit(ctx, ref, x, record.Written), "book_full")
		if got := b.Status().Lost; got != 1 || b.Ready() == nil {
			t.Errorf("status counts %d, ready: %v", got, b.Ready())
		}
		r.files.SetFault(nil)
		if killed {
			b = r.again(false, 1)
		} else if err := b.settle(ctx); err != nil {
			t.Fatal(err)
		}
		if err := b.Ready(); err != nil {
			t.Errorf("killed %v: not ready: %v", killed, err)
		}
		b = r.again(false, 1)
		have := all(t, r.reader())
		if is := ofKind(have, record.KindInterrupted); len(is) != 1 || is[0].id != x.ID || len(ofKind(have, record.KindGap)) != 0 {
			t.Errorf("killed %v: interrupted %+v, gaps %+v", killed, is, ofKind(have, record.KindGap))
		}
		if err := b.Close(ctx); err != nil {
			t.Fatal(err)
		}
		r.mustVerify(nil)
	}
}

// TestBlindOnBrokenDisk: after an error of fsync the exchanges are counted, and
// the restart accounts for those whose mark the disk did not keep.
func TestBlindOnBrokenDisk(t *testing.T) {
	r := newRoom(t, small(64))
	b, err := r.openAt(1)
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()
	rec := b.Recorder(testRules(t), testSnap)
	if err := b.ledger.Sync(); err != nil {
		t.Fatal(err)
	}
	x := exchange(b, 1, "person-1")
	ref, err := rec.Open(ctx, x, record.Written)
	if err != nil {
		t.Fatal(err)
	}
	r.files.SetFault(func(op store.Op) (bool, error) {
		if op.Kind == "sync" && strings.HasPrefix(op.Name, "wal/") {
			return false, syscall.EIO
		}
		return true, nil
	})
	if err := b.ledger.Sync(); err == nil {
		t.Fatal("the error of fsync passed")
	}
	mustReason(t, rec.Commit(ctx, ref, x, record.Written), "book_unavailable")
	for n := range 3 {
		mustReason(t, rec.Commit(ctx, record.Ref{}, exchange(b, n, "person-1"), record.Written), "book_unavailable")
	}
	if err := b.blind.sync(); err != nil {
		t.Fatal(err)
	}
	b = r.again(true, 2) // the disk kept neither mark nor record
	gaps := ofKind(all(t, r.reader()), record.KindGap)
	if len(gaps) != 1 || gaps[0].rec.Event.Count != 4 || gaps[0].rec.Event.Exact || gaps[0].rec.Event.Cause != "book_unavailable" {
		t.Fatalf("gaps: %+v", gaps)
	}
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}
	r.mustVerify(nil)
}

// BenchmarkBlind is what an exchange that is not recorded costs.
func BenchmarkBlind(b *testing.B) {
	dir := b.TempDir()
	bl, _, _, err := openBlind(store.Dir(dir), keys.Key{})
	if err != nil {
		b.Fatal(err)
	}
	one := missed{count: 1, first: 1, last: 1, cause: "book_full"}
	b.ReportAllocs()
	for b.Loop() {
		if err := bl.lose(record.ID{}, false, false, one); err != nil {
			b.Fatal(err)
		}
	}
	if err := bl.close(); err != nil {
		b.Fatal(err)
	}
}
