package ledger

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/gatebook/gatebook/internal/book/store"
)

// read returns a file of the world.
func (w *world) read(name string) []byte {
	w.t.Helper()
	b, err := store.ReadFile(w.fs, name, maxSegment)
	if err != nil {
		w.t.Fatal(err)
	}
	return b
}

// TestUnboundManifest replaces the content of a segment by noise and writes a
// manifest for it under the index of a leaf that is a record. No leaf binds
// that manifest, so nobody may go by it.
func TestUnboundManifest(t *testing.T) {
	for _, generation := range []uint32{0, 1} {
		for _, at := range []uint64{7, 20, 21, 5000} { // a record, the manifest's own leaf, no leaf
			t.Run(fmt.Sprintf("generation %d at leaf %d", generation, at), func(t *testing.T) {
				w := newWorld(t, nil).open().run()
				w.add(Durable, seqTo(20)...)
				w.halt()
				w.close()
				b := w.read(segmentName(0, 0))
				f, err := parseSegment(b, nil)
				if err != nil {
					t.Fatal(err)
				}
				m, err := decodeManifest(w.read(manifestName(20)))
				if err != nil {
					t.Fatal(err)
				}
				f.header.generation, m.generation = generation, generation
				forged := append(f.header.encode(), bytes.Clone(f.b[f.hdrSize:])...)
				for i := f.hdrSize; i < int(f.foot.commitments); i++ {
					forged[i] = 0xaa
				}
				forged = sumAgain(forged)
				m.file = [32]byte(forged[len(forged)-32:])
				if err := putFile(w.fs, segmentName(0, generation), forged); err != nil {
					t.Fatal(err)
				}
				if err := putFile(w.fs, manifestName(at), m.encode()); err != nil {
					t.Fatal(err)
				}
				rep, err := Verify(VerifyOptions{FS: w.fs.Clone(), Codec: w.opt.Codec, Key: w.vkey})
				if err != nil {
					t.Fatal(err)
				}
				if code := rep.ExitCode(); code != ExitDamaged && (at < 21 || code != ExitKeyless) {
					t.Errorf("without keys verify gives exit code %d", code)
				}
				if rep := w.verify(); rep.ExitCode() != ExitDamaged && rep.ExitCode() != ExitTruncated {
					t.Errorf("with keys verify gives exit code %d", rep.ExitCode())
				}
				had := w.fs.Files()
				w.reboot(w.fs)
				if w.tryOpen() == nil {
					t.Errorf("the ledger opens with it; it had the files %v and has now %v", had, w.fs.Files())
				}
			})
		}
	}
}

// TestBlankedHeader makes the first byte of the newest WAL file zero. The file
// is not one that never came to be: it must not be passed over, let alone
// removed.
func TestBlankedHeader(t *testing.T) {
	w := newWorld(t, nil).open().run()
	w.add(Durable, 1, 2, 3)
	w.halt()
	if err := w.l.SignCheckpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	if _, err := w.l.own(context.Background(), &pending{rotate: true}, Written); err != nil {
		t.Fatal(err)
	}
	w.add(Written, 4, 5)
	if err := w.l.syncOnce(); err != nil {
		t.Fatal(err)
	}
	name := w.l.state.last().name
	b := w.read(name)
	b[0] = 0
	w.reboot(w.fs.Kill())
	if err := putFile(w.fs, name, b); err != nil {
		t.Fatal(err)
	}
	if rep := w.verify(); rep.ExitCode() != ExitDamaged {
		t.Errorf("verify gives exit code %d", rep.ExitCode())
	}
	var d *Damage
	if err := w.tryOpen(); !errors.As(err, &d) {
		t.Errorf("opening gives %v, want damage", err)
	}
	if !strings.Contains(strings.Join(w.fs.Files(), " "), name) {
		t.Errorf("%s was removed", name)
	}
}

// fullDisk makes every write below a folder fail as on a full disk.
func fullDisk(fs *store.Mem, folder string) {
	fs.SetFault(func(op store.Op) (bool, error) {
		if op.Kind == "write" && strings.HasPrefix(op.Name, folder) {
			return false, syscall.ENOSPC
		}
		return true, nil
	})
}

// TestMarksSurviveFullDisk fills the disk while open marks are carried to a
// new file: they must be carried when there is space again, and the old file
// must not go before.
func TestMarksSurviveFullDisk(t *testing.T) {
	w := newWorld(t, nil).open()
	ctx := context.Background()
	for n := uint64(1000); n < 1300; n++ {
		if _, err := w.l.Append(ctx, testItem(ItemOpen, n), Written); err != nil {
			t.Fatal(err)
		}
	}
	w.add(Written, 1)
	if err := w.l.growOnce(); err != nil { // the successor is ready
		t.Fatal(err)
	}
	fullDisk(w.fs, "wal/")
	if _, err := w.l.own(ctx, &pending{rotate: true}, Written); !errors.Is(err, ErrFull) {
		t.Fatalf("on a full disk a rotation gives %v", err)
	}
	w.fs.SetFault(nil)
	if err := w.l.seq.rotate(w.l, true); err != nil {
		t.Fatal(err)
	}
	fullDisk(w.fs, "wal/")
	if err := w.l.sealComplete(ctx); !errors.Is(err, ErrFull) {
		t.Fatalf("on a full disk sealing gives %v", err)
	}
	if _, err := w.l.Append(ctx, testItem(ItemRecord, 2), Written); !errors.Is(err, ErrFull) {
		t.Fatalf("on a full disk Append gives %v", err)
	}
	w.fs.SetFault(nil)
	if err := w.l.Room(); err != nil {
		t.Fatal(err)
	}
	w.add(Written, 3)
	if err := w.l.sealComplete(ctx); err != nil {
		t.Fatal(err)
	}
	if n := len(w.l.state.wals); n != 1 {
		t.Fatalf("%d WAL files are left", n)
	}
	w.reboot(w.fs.Kill())
	w.open()
	if len(w.rec.Marks) != 300 {
		t.Errorf("%d open marks came back, want 300", len(w.rec.Marks))
	}
}

// TestRotationAnnouncesMarks: from the moment that sealing can see the new
// file it must see that the old one still holds open marks.
func TestRotationAnnouncesMarks(t *testing.T) {
	w := newWorld(t, nil).open()
	if _, err := w.l.Append(context.Background(), testItem(ItemOpen, 1), Written); err != nil {
		t.Fatal(err)
	}
	w.add(Written, 2)
	if err := w.l.seq.rotate(w.l, true); err != nil {
		t.Fatal(err)
	}
	if !w.l.carrying.Load() {
		t.Error("the old file could be sealed and removed although an open mark stands in it alone")
	}
}

// TestSealingAgainAfterFullDisk lets sealing fail after the manifest's leaf is
// logged, then cuts the power at every step of the second try. The segment
// that the leaf binds must still be there.
func TestSealingAgainAfterFullDisk(t *testing.T) {
	for cut := 1; ; cut++ {
		w := newWorld(t, nil).open()
		ctx := context.Background()
		w.add(Written, seqTo(10)...)
		fullDisk(w.fs, "manifests/")
		if err := w.l.SealNow(ctx); err == nil {
			t.Fatal("sealing went well on a full disk")
		}
		base := w.fs.Ops()
		errCut := errors.New("power cut")
		w.fs.SetFault(func(op store.Op) (bool, error) {
			if op.N >= base+cut {
				return false, errCut
			}
			return true, nil
		})
		err := w.l.sealComplete(ctx)
		w.reboot(w.fs.Crash(nil))
		if err := w.tryOpen(); err != nil {
			t.Fatalf("power cut at operation %d of the second try: restart refused: %v", cut, err)
		}
		sameFrames(t, frames(t, w.view()), seqTo(10)...)
		w.close()
		w.mustVerify()
		if err == nil {
			t.Logf("%d operations", cut-1)
			return
		}
	}
}

// TestFailedSealingLeavesNoKey: each try makes a segment key.
func TestFailedSealingLeavesNoKey(t *testing.T) {
	w := newWorld(t, nil).open()
	w.add(Written, seqTo(10)...)
	fullDisk(w.fs, "segments/")
	if err := w.l.SealNow(context.Background()); err == nil {
		t.Fatal("sealing went well on a full disk")
	}
	keys := len(w.keys.files)
	for range 5 {
		if err := w.l.sealComplete(context.Background()); err == nil {
			t.Fatal("sealing went well on a full disk")
		}
	}
	if got := len(w.keys.files); got != keys {
		t.Errorf("%d keys became %d", keys, got)
	}
}

// TestOpenMarksHaveNoIndex: an open mark is no leaf.
func TestOpenMarksHaveNoIndex(t *testing.T) {
	w := newWorld(t, nil).open()
	w.add(Written, seqTo(10)...)
	for n := range uint64(10) {
		if index, err := w.l.Append(context.Background(), testItem(ItemOpen, 100+n), Written); index != 0 || err != nil {
			t.Fatalf("open mark %d: index %d, %v", n, index, err)
		}
	}
}

// TestFullDiskLeavesNothingBehind: each second of a full disk tries to prepare
// a file; none of the tries may leave a file, a key or an open descriptor.
func TestFullDiskLeavesNothingBehind(t *testing.T) {
	w := newWorld(t, nil).open()
	files, keys := len(w.fs.Files()), len(w.keys.files)
	fullDisk(w.fs, "wal/")
	for range 5 {
		if err := w.l.growOnce(); !errors.Is(err, ErrFull) {
			t.Fatalf("on a full disk growing gives %v", err)
		}
	}
	w.fs.SetFault(nil)
	w.keys.fault = func(string) error { return syscall.ENOSPC }
	if err := w.l.growOnce(); !errors.Is(err, ErrFull) {
		t.Errorf("with a full disk below the key store growing gives %v", err)
	}
	w.keys.fault = nil
	if got := len(w.fs.Files()); got != files {
		t.Errorf("%d files became %d: %v", files, got, w.fs.Files())
	}
	if got := len(w.keys.files); got != keys {
		t.Errorf("%d keys became %d", keys, got)
	}
	w.fs.SetFault(nil)
	w.add(Written, 1)
	w.close()
	w.mustVerify()
}

// TestManyLargeItemsAtOnce queues more than one batch can hold.
func TestManyLargeItemsAtOnce(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.Prealloc = 1 << 20 }).open()
	big := bytes.Repeat([]byte("x"), maxPart)
	var ps []*pending
	for n := range uint64(300) {
		it := testItem(ItemRecord, n)
		it.Frame, it.Personal = big, big
		ps = append(ps, &pending{item: it, signal: make(chan byte, 1)})
	}
	w.l.seq.write(w.l, ps)
	for i, p := range ps {
		if p.err != nil || p.index != uint64(i) {
			t.Fatalf("item %d: index %d, %v", i, p.index, p.err)
		}
	}
	w.reboot(w.fs.Kill())
	w.open()
	if w.rec.Size != 300 {
		t.Errorf("%d of 300 records came back", w.rec.Size)
	}
}

// TestLargestBirth: what Append accepts a restart must read.
func TestLargestBirth(t *testing.T) {
	for _, n := range []int{maxPart - 17, maxPart - 16, maxPart - 15, maxPart} {
		w := newWorld(t, nil).open()
		it := testItem(ItemRecord, 1)
		it.Births = [2][]byte{bytes.Repeat([]byte{1}, n)}
		_, err := w.l.Append(context.Background(), it, Written)
		w.reboot(w.fs.Kill())
		if openErr := w.tryOpen(); openErr != nil {
			t.Errorf("a birth of %d bytes: Append gives %v, the restart %v", n, err, openErr)
		}
	}
}

// TestReportOfAForkedLog: a log that contradicts a saved checkpoint is not
// called consistent with it, and roots are 64 hex digits.
func TestReportOfAForkedLog(t *testing.T) {
	w := newWorld(t, nil).open()
	w.add(Written, seqTo(10)...)
	if err := w.l.SignCheckpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	saved, err := signTree(Tree{Origin: w.opt.Origin, Size: 5, Root: emptyRoot}, w.opt.Signer)
	if err != nil {
		t.Fatal(err)
	}
	rep, err := Verify(VerifyOptions{FS: w.fs.Clone(), Codec: w.opt.Codec, Keys: w.keys.forget(), Key: w.vkey, Saved: saved})
	if err != nil {
		t.Fatal(err)
	}
	if rep.Anchored.Status != Failed || rep.ExitCode() != ExitDamaged {
		t.Errorf("anchored: %v, exit code %d", rep.Anchored, rep.ExitCode())
	}
	if len(rep.Root) != 64 {
		t.Errorf("root %q", rep.Root)
	}
}

// Bytes that were made to look like batches must not stall a start or verify.
func TestPlantedBatches(t *testing.T) {
	w := newWorld(t, nil).open()
	w.add(Written, 1, 2, 3)
	name, end, seq := w.l.seq.cur.name, w.l.seq.cur.end, w.l.seq.cur.seq
	w.reboot(w.fs.Kill())
	const size = 4 << 20
	junk := make([]byte, size)
	for at := 0; at+batchHead < size; at += batchHead {
		binary.BigEndian.PutUint32(junk[at:], uint32(size/2))
		binary.BigEndian.PutUint64(junk[at+4:], seq+2)
		binary.BigEndian.PutUint64(junk[at+12:], 1)
	}
	f, err := w.fs.OpenRW(name)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(junk, end); err != nil {
		t.Fatal(err)
	}
	var d *Damage
	if err := w.tryOpen(); !errors.As(err, &d) || d.Kind != Edited {
		t.Errorf("start: %v", err)
	}
	if rep := w.verify(); rep.ExitCode() != ExitDamaged {
		t.Errorf("verify: exit %d, %v", rep.ExitCode(), rep.Findings)
	}
}

// A lack of file descriptors, which strangers can cause, must not stop the
// ledger.
func TestNoDescriptorsPasses(t *testing.T) {
	w := newWorld(t, nil).open()
	w.add(Written, 1)
	w.fs.SetFault(func(op store.Op) (bool, error) {
		if op.Kind == "create" {
			return false, syscall.EMFILE
		}
		return true, nil
	})
	if err := w.l.SignCheckpoint(context.Background()); err != nil {
		t.Fatalf("signing: %v", err)
	}
	w.fs.SetFault(nil)
	w.add(Written, 2)
	if err := w.l.SignCheckpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	if rep := w.mustVerify(); rep.Signed != 2 {
		t.Errorf("%d signed", rep.Signed)
	}
}

// A kill between the creation of the next file and its header leaves an empty
// file whose serial must not be given to the file that recovery writes: that
// would be removed with it.
func TestEmptyNextFile(t *testing.T) {
	w := newWorld(t, nil).open()
	w.add(Written, 1, 2, 3)
	next := walName(w.l.seq.cur.header.serial + 1)
	w.reboot(w.fs.Kill())
	f, err := w.fs.Create(next)
	if err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	w.open()
	w.add(Written, 4)
	w.reboot(w.fs.Kill())
	w.open()
	sameFrames(t, frames(t, w.view()), 1, 2, 3, 4)
}
