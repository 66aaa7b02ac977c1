package ledger

import (
	"context"
	"errors"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/store"
)

// onDisk is a world on a disk of so many bytes, with a ballast.
func onDisk(t *testing.T, room, ballast int64) *world {
	t.Helper()
	w := newWorld(t, func(o *Options) { o.Ballast, o.Prealloc = ballast, 4<<10 })
	w.fs.SetRoom(room)
	w.open()
	if err := w.l.checkSpace(); err != nil {
		t.Fatal(err)
	}
	if s := w.l.Space(); !s.Ballast || s.Full != nil || s.Total != room {
		t.Fatalf("at the start: %+v", s)
	}
	return w
}

// occupy leaves so many bytes free and returns the file that takes the rest.
func (w *world) occupy(free int64) {
	w.t.Helper()
	have, _, err := w.fs.Space()
	if err != nil {
		w.t.Fatal(err)
	}
	f, err := w.fs.Create("other")
	if err == nil {
		err = f.Allocate(have - free)
	}
	if err != nil {
		w.t.Fatal(err)
	}
}

// TestFullBeforeFailing fills the disk with something else: the alarm comes at
// a fifth, items are refused at a twentieth although nothing has failed yet,
// what ends an exchange still gets in, and all is as before when there is room.
func TestFullBeforeFailing(t *testing.T) {
	const room = 1 << 20
	w := onDisk(t, room, 64<<10)
	for _, c := range []struct {
		free int64
		low  bool
		full bool
	}{{room / 4, false, false}, {room / 6, true, false}, {room / 30, true, true}} {
		w.occupy(c.free)
		if err := w.l.checkSpace(); err != nil {
			t.Fatal(err)
		}
		s := w.l.Space()
		if s.Low != c.low || errors.Is(s.Full, ErrFull) != c.full || s.Free != c.free || !s.Ballast {
			t.Errorf("%d bytes free: %+v", c.free, s)
		}
		_, err := w.l.Append(context.Background(), testItem(ItemRecord, 1), Written)
		if errors.Is(err, ErrFull) != c.full || !c.full && err != nil {
			t.Errorf("%d bytes free: Append gives %v", c.free, err)
		}
		if err := w.l.Queue(testItem(ItemRecord, 2), func(error) {}); c.full && !errors.Is(err, ErrFull) {
			t.Errorf("%d bytes free: Queue gives %v", c.free, err)
		}
		it := testItem(ItemRecord, 3)
		it.Reserve = UsePrepared
		if _, err := w.l.Append(context.Background(), it, Written); err != nil {
			t.Errorf("%d bytes free: the end of an exchange gives %v", c.free, err)
		}
		if err := w.fs.Remove("other"); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.l.Room(); err != nil {
		t.Fatal(err)
	}
	w.add(Written, 4)
	w.close()
	w.mustVerify()
}

// TestBallast fills the disk to the last byte: only items that lead to space
// make the ballast go, and it comes back with the space.
func TestBallast(t *testing.T) {
	w := onDisk(t, 1<<20, 128<<10)
	ctx := context.Background()
	w.occupy(0)
	fill := testItem(ItemRecord, 1)
	fill.Frame, fill.Reserve = make([]byte, 3000), UsePrepared
	var err error
	for n := 0; err == nil && n < 100; n++ {
		_, err = w.l.Append(ctx, fill, Written)
	}
	if !errors.Is(err, ErrFull) || w.l.Err() != nil {
		t.Fatalf("on a disk without a byte: %v, ledger %v", err, w.l.Err())
	}
	if s := w.l.Space(); !s.Ballast {
		t.Fatal("the end of an exchange has used up the ballast")
	}
	gap := testItem(ItemRecord, 2)
	gap.Frame, gap.Reserve = make([]byte, 3000), UseBallast
	for range 3 {
		if _, err := w.l.Append(ctx, gap, Written); err != nil {
			t.Fatal(err)
		}
	}
	if s := w.l.Space(); s.Ballast || slices.Contains(w.fs.Files(), ballastName) {
		t.Error("the ballast is still there")
	}
	if err := w.l.Room(); !errors.Is(err, ErrFull) {
		t.Errorf("room: %v", err)
	}
	if err := w.fs.Remove("other"); err != nil {
		t.Fatal(err)
	}
	if err := w.l.Room(); err != nil {
		t.Fatal(err)
	}
	if s := w.l.Space(); !s.Ballast {
		t.Error("the ballast is not back")
	}
	w.add(Written, 3)
	w.close()
	w.mustVerify()
}

// TestStartOnFullDisk: a start needs space for a fresh file, and the ballast
// gives it; without one it is refused and nothing is lost.
func TestStartOnFullDisk(t *testing.T) {
	for _, ballast := range []int64{64 << 10, 0} {
		w := newWorld(t, func(o *Options) { o.Ballast, o.Prealloc = ballast, 4<<10 })
		w.fs.SetRoom(1 << 20)
		w.open()
		if err := w.l.checkSpace(); err != nil {
			t.Fatal(err)
		}
		w.add(Written, seqTo(20)...)
		w.occupy(0)
		w.reboot(w.fs.Kill())
		before := len(w.fs.Files())
		err := w.tryOpen()
		if ballast > 0 && err != nil || ballast == 0 && !errors.Is(err, ErrFull) {
			t.Fatalf("ballast %d: %v", ballast, err)
		}
		if err != nil {
			if got := len(w.fs.Files()); got != before {
				t.Errorf("%d files became %d: %v", before, got, w.fs.Files())
			}
			w.reboot(w.fs.Kill())
			if err := w.fs.Remove("other"); err != nil {
				t.Fatal(err)
			}
			w.open()
		}
		sameFrames(t, frames(t, w.view()), seqTo(20)...)
	}
}

// TestKeyLease: while the key store makes no keys the ledger goes on for a
// while, then refuses as on a full disk, and goes on when the store is back.
func TestKeyLease(t *testing.T) {
	now := time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)
	w := newWorld(t, func(o *Options) {
		o.KeyLease = 10 * time.Minute
		o.Now = func() time.Time { return now }
		o.SegmentRecords = 16
	}).open()
	ctx := context.Background()
	w.keys.fault = func(op string) error {
		if op == "new" {
			return errors.New("the key store is away")
		}
		return nil
	}
	for range 3 {
		if err := w.l.checkSpace(); err != nil {
			t.Fatal(err)
		}
		w.add(Written, 1)
		now = now.Add(3 * time.Minute)
	}
	if s := w.l.Space(); s.Keys == nil || s.Full != nil {
		t.Errorf("during the lease: %+v", s)
	}
	now = now.Add(2 * time.Minute)
	if err := w.l.checkSpace(); err != nil {
		t.Fatal(err)
	}
	if _, err := w.l.Append(ctx, testItem(ItemRecord, 2), Written); !errors.Is(err, ErrFull) {
		t.Errorf("after the lease: %v", err)
	}
	w.keys.fault = nil
	if err := w.l.Room(); err != nil {
		t.Fatal(err)
	}
	w.add(Written, seqTo(10)...)
	// At the end of a segment there is no going on with the keys there are.
	w.keys.fault = func(op string) error {
		if op == "new" {
			return syscall.ETIMEDOUT
		}
		return nil
	}
	var err error
	for n := uint64(0); err == nil && n < 40; n++ {
		_, err = w.l.Append(ctx, testItem(ItemRecord, n), Written)
	}
	if !errors.Is(err, ErrFull) || w.l.Err() != nil {
		t.Errorf("at the end of the segments: %v, ledger %v", err, w.l.Err())
	}
	w.keys.fault = nil
	if err := w.l.Room(); err != nil {
		t.Fatal(err)
	}
	w.add(Written, 3)
	w.close()
	w.mustVerify()
}

// TestShareOfLargeDisk: a disk with gigabytes to spare is not full.
func TestShareOfLargeDisk(t *testing.T) {
	w := newWorld(t, nil).open()
	w.fs.SetRoom(100 << 40)
	if err := w.l.checkSpace(); err != nil {
		t.Fatal(err)
	}
	for free, full := range map[int64]bool{6 << 30: false, 4 << 30: true} {
		w.occupy(free)
		if err := w.l.checkSpace(); err != nil {
			t.Fatal(err)
		}
		if got := w.l.Space().Full != nil; got != full {
			t.Errorf("%d bytes free: full is %v", free, got)
		}
		if err := w.fs.Remove("other"); err != nil {
			t.Fatal(err)
		}
	}
}

// TestShortWrite: what is left of a write that the disk cut short is written
// over, and a restart sees no trace of it.
func TestShortWrite(t *testing.T) {
	for _, n := range []int{1, 20, 40, 100} {
		w := newWorld(t, nil).open()
		w.add(Written, 1)
		done := false
		w.fs.SetFault(func(op store.Op) (bool, error) {
			if op.Kind == "write" && !done {
				done = true
				return true, &store.ShortWrite{N: n, Err: syscall.ENOSPC}
			}
			return true, nil
		})
		if _, err := w.l.Append(context.Background(), testItem(ItemRecord, 2), Written); !errors.Is(err, ErrFull) {
			t.Fatalf("%d bytes written: %v", n, err)
		}
		if n == 40 { // killed before anything else is written
			w.reboot(w.fs.Kill())
			w.open()
			sameFrames(t, frames(t, w.view()), 1)
		} else if err := w.l.Room(); err != nil {
			t.Fatal(err)
		}
		w.add(Written, 3)
		sameFrames(t, frames(t, w.view()), 1, 3)
		w.close()
		w.mustVerify()
	}
}

// TestNoKeyStaysBehind stops sealing at each removal and sync of a folder: the
// next start leaves no key without its file.
func TestNoKeyStaysBehind(t *testing.T) {
	for cut := 1; ; cut++ {
		w := newWorld(t, nil).open()
		w.add(Written, seqTo(10)...)
		n, hit := 0, false
		w.fs.SetFault(func(op store.Op) (bool, error) {
			if op.Kind == "remove" || op.Kind == "syncdir" {
				n++
			}
			hit = hit || n == cut
			if hit {
				return false, errors.New("killed")
			}
			return true, nil
		})
		err := w.l.SealNow(context.Background())
		w.reboot(w.fs.Kill())
		w.open()
		w.add(Written, 11)
		w.close()
		w.mustVerify()
		w.reboot(w.fs.Kill())
		w.open()
		inUse := len(w.l.state.segs) + len(w.l.state.wals)
		if got := len(w.keys.files); got > inUse+1 { // the one of a segment whose sealing began
			t.Errorf("stopped at %d: %d keys for %d files: %v", cut, got, inUse, w.fs.Files())
		}
		if err == nil {
			t.Logf("%d stops", cut-1)
			return
		}
	}
}
