package ledger

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/transparency-dev/merkle/proof"
	"github.com/transparency-dev/merkle/rfc6962"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/gatebook/gatebook/internal/book/store"
)

func TestRecordSurvivesKill(t *testing.T) {
	w := newWorld(t, nil).open().run()
	w.add(Written, 1)
	w.halt()
	w.reboot(w.fs.Kill())
	w.open()
	if w.rec.Clean {
		t.Error("the stop is taken for a clean one")
	}
	sameFrames(t, frames(t, w.view()), 1)
	if err := w.l.SignCheckpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	if rep := w.mustVerify(); rep.Records != 1 || rep.Signed != 1 {
		t.Errorf("verify counts %d records, %d signed; want 1, 1", rep.Records, rep.Signed)
	}
}

func TestCleanStopIsSealedAndCheckableWithoutKeys(t *testing.T) {
	w := newWorld(t, nil).open().run()
	w.add(Durable, seqTo(100)...)
	w.halt()
	w.close()
	rep, err := Verify(VerifyOptions{FS: w.fs.Clone(), Codec: w.opt.Codec, Key: w.vkey})
	if err != nil {
		t.Fatal(err)
	}
	if rep.ExitCode() != 0 || rep.Tree.Status != OK || rep.Bytes.Status != NotChecked || rep.Sealed != 100 {
		t.Fatalf("without keys: exit %d, %+v", rep.ExitCode(), rep)
	}
	w.mustVerify()
	w.reboot(w.fs)
	w.open()
	if !w.rec.Clean || w.rec.Size != 101 {
		t.Fatalf("after a clean stop: %+v", w.rec)
	}
	sameFrames(t, frames(t, w.view()), seqTo(100)...)
}

func TestSegmentsEndAtBoundaries(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.SegmentRecords = 64 }).open().run()
	w.add(Written, seqTo(500)...)
	w.halt()
	w.close()
	w.mustVerify()
	w.reboot(w.fs)
	w.open()
	for _, s := range w.l.state.segs {
		if s.manifest.first/64 != (s.next()-1)/64 {
			t.Errorf("segment %d to %d crosses a boundary", s.manifest.first, s.next()-1)
		}
	}
	if len(w.l.state.segs) < 8 {
		t.Errorf("%d segments", len(w.l.state.segs))
	}
	sameFrames(t, frames(t, w.view()), seqTo(500)...)
}

func TestConcurrentAppends(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.SegmentRecords = 256 }).open().run()
	const workers, each = 16, 100
	var wg sync.WaitGroup
	seen := make([]uint64, workers*each)
	for g := range workers {
		wg.Go(func() {
			for i := range each {
				n := uint64(g*each + i)
				if _, err := w.l.Append(context.Background(), testItem(ItemOpen, n), Written); err != nil {
					t.Error(err)
					return
				}
				idx, err := w.l.Append(context.Background(), testItem(ItemRecord, n), Level(n%2))
				if err != nil {
					t.Error(err)
					return
				}
				seen[n] = idx
			}
		})
	}
	wg.Wait()
	byIndex := map[uint64]string{}
	v := w.view()
	if err := v.Read(0, v.Size(), func(s *Sealed) error { byIndex[s.Index] = string(s.Frame); return nil }); err != nil {
		t.Fatal(err)
	}
	for n, idx := range seen {
		if want := fmt.Sprintf(`{"n":%d}`, n); byIndex[idx] != want {
			t.Fatalf("leaf %d holds %q, want %q", idx, byIndex[idx], want)
		}
	}
	if len(w.l.marks) != 0 {
		t.Errorf("%d marks still open", len(w.l.marks))
	}
	w.halt()
	w.close()
	if rep := w.mustVerify(); rep.Records != workers*each {
		t.Errorf("%d records", rep.Records)
	}
}

func TestOpenMarksSurviveAndAreCarried(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.SegmentRecords = 32 }).open().run()
	ctx := context.Background()
	for n := uint64(1000); n < 1600; n++ {
		if _, err := w.l.Append(ctx, testItem(ItemOpen, n), Written); err != nil {
			t.Fatal(err)
		}
	}
	w.add(Written, seqTo(200)...) // rotates several times, the marks stay open
	w.add(Written, 1003)          // and one is closed
	if err := w.l.SealNow(ctx); err != nil {
		t.Fatal(err)
	}
	w.halt()
	w.reboot(w.fs.Kill())
	w.open()
	if len(w.rec.Marks) != 599 {
		t.Fatalf("%d open marks, want 599", len(w.rec.Marks))
	}
	for _, m := range w.rec.Marks {
		if m.ID == markID(1003) {
			t.Error("a closed mark came back")
		}
		if string(m.Frame) != fmt.Sprintf(`{"n":%d}`, m.Time) {
			t.Errorf("mark %d holds %s", m.Time, m.Frame)
		}
	}
	// Crash again: the marks are still open, none is doubled.
	w.reboot(w.fs.Kill())
	w.open()
	if len(w.rec.Marks) != 599 {
		t.Fatalf("%d open marks after a second crash, want 599", len(w.rec.Marks))
	}
}

func TestProofsAgainstAnotherImplementation(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.SegmentRecords = 128 }).open().run()
	w.add(Written, seqTo(700)...)
	if err := w.l.SignCheckpoint(context.Background()); err != nil {
		t.Fatal(err)
	}
	v := w.view()
	_, tree := v.Checkpoint()
	for i := uint64(0); i < tree.Size; i++ {
		p, err := v.Prove(i)
		if err != nil {
			if e, _ := v.entries(i, i+1); e[0].typ == entryManifest {
				continue
			}
			t.Fatal(err)
		}
		e := entry{entryRecord, p.Commitment}
		leaf := e.leafHash()
		if err := proof.VerifyInclusion(rfc6962.DefaultHasher, i, tree.Size, leaf[:], slices32(p.Hashes), tree.Root[:]); err != nil {
			t.Fatalf("leaf %d: %v", i, err)
		}
	}
	for old := uint64(1); old < tree.Size; old += 13 {
		p, err := v.ProveConsistency(old)
		if err != nil {
			t.Fatal(err)
		}
		root, err := v.RootAt(old)
		if err != nil {
			t.Fatal(err)
		}
		if err := proof.VerifyConsistency(rfc6962.DefaultHasher, old, tree.Size, slices32(p), root[:], tree.Root[:]); err != nil {
			t.Fatalf("consistency with %d: %v", old, err)
		}
	}
	w.halt()
}

func slices32(h []tlog.Hash) [][]byte {
	out := make([][]byte, len(h))
	for i := range h {
		out[i] = h[i][:]
	}
	return out
}

// The frontier must give the same roots as x/mod for every size, across tiles.
func TestFrontierAgainstTlog(t *testing.T) {
	var hashes []tlog.Hash
	reader := tlog.HashReaderFunc(func(ix []int64) ([]tlog.Hash, error) {
		out := make([]tlog.Hash, len(ix))
		for i, x := range ix {
			out[i] = hashes[x]
		}
		return out, nil
	})
	f := &frontier{}
	for n := int64(0); n < 70_000; n++ {
		leaf := tlog.RecordHash(fmt.Appendf(nil, "%d", n))
		more, err := tlog.StoredHashesForRecordHash(n, leaf, reader)
		if err != nil {
			t.Fatal(err)
		}
		hashes = append(hashes, more...)
		f.push(leaf)
		if n < 600 || n%977 == 0 || n > 65_530 && n < 65_540 {
			want, err := tlog.TreeHash(n+1, reader)
			if err != nil {
				t.Fatal(err)
			}
			if f.root() != want {
				t.Fatalf("root over %d leaves differs", n+1)
			}
		}
	}
}

// TestPowerCuts cuts the power at every operation that touches the disk, loses
// unsynced bytes in many ways, restarts and demands: same origin, everything
// acknowledged as durable is there, nothing doubled, verify accepts.
func TestPowerCuts(t *testing.T) {
	for _, mode := range []string{"lose all", "lose some"} {
		t.Run(mode, func(t *testing.T) {
			for cut := 1; ; cut++ {
				var rng *rand.Rand
				if mode == "lose some" {
					rng = rand.New(rand.NewPCG(uint64(cut), 1))
				}
				if done := powerCut(t, cut, rng); done {
					t.Logf("%d operations", cut-1)
					break
				}
			}
		})
	}
}

// powerCut runs a fixed story, cuts the power at operation `cut`, and says
// whether the story ended before that.
func powerCut(t *testing.T, cut int, rng *rand.Rand) bool {
	t.Helper()
	w := newWorld(t, func(o *Options) { o.SegmentRecords = 8; o.Prealloc = 512 })
	base := w.fs.Ops()
	errCut := errors.New("power cut")
	w.fs.SetFault(func(op store.Op) (bool, error) {
		if op.N >= base+cut {
			return false, errCut
		}
		return true, nil
	})
	durable, tried := story(w)
	ended := w.fs.Ops() < base+cut
	w.reboot(w.fs.Crash(rng))
	if err := w.tryOpen(); err != nil {
		t.Fatalf("cut %d: restart refused: %v", cut, err)
	}
	got := frames(t, w.view())
	index := map[string]bool{}
	for _, f := range got {
		if index[f] {
			t.Fatalf("cut %d: record %s is there twice", cut, f)
		}
		index[f] = true
	}
	for n := range durable {
		if !index[fmt.Sprintf(`{"n":%d}`, n)] {
			t.Fatalf("cut %d: durable record %d is gone; have %v", cut, n, got)
		}
	}
	if len(got) > tried {
		t.Fatalf("cut %d: %d records from %d attempts", cut, len(got), tried)
	}
	w.add(Written, 900)
	if err := w.l.SignCheckpoint(context.Background()); err != nil {
		t.Fatalf("cut %d: %v", cut, err)
	}
	rep := w.mustVerify()
	if rep.Origin != w.opt.Origin {
		t.Fatalf("cut %d: origin %q", cut, rep.Origin)
	}
	w.close()
	w.mustVerify()
	return ended
}

// story does a bit of everything in one goroutine, so that operation counts
// repeat. It returns which records were acknowledged as durable.
func story(w *world) (durable map[uint64]bool, tried int) {
	durable = map[uint64]bool{}
	ctx := context.Background()
	if err := w.tryOpen(); err != nil {
		return durable, 0
	}
	sync := func(upTo uint64) bool {
		if w.l.syncOnce() != nil {
			return false
		}
		for n := range upTo {
			durable[n] = true
		}
		return true
	}
	for n := uint64(0); n < 20; n++ {
		tried++
		if _, err := w.l.Append(ctx, testItem(ItemOpen, n), Written); err != nil {
			return durable, tried
		}
		if _, err := w.l.Append(ctx, testItem(ItemRecord, n), Written); err != nil {
			return durable, tried
		}
		if n%3 == 0 && !sync(n+1) {
			return durable, tried
		}
		if n%5 == 0 && w.l.SignCheckpoint(ctx) != nil {
			return durable, tried
		}
		if n%7 == 0 && w.l.sealComplete(ctx) != nil {
			return durable, tried
		}
	}
	if w.l.Close(ctx) == nil {
		sync = nil
		for n := range uint64(20) {
			durable[n] = true
		}
	}
	return durable, tried
}

// Stream hands out what Frames does, from sealed segments and from the WAL,
// between any two indexes, and stops when it is told to.
func TestStream(t *testing.T) {
	w := newWorld(t, func(o *Options) { o.SegmentRecords = 16 }).open().run()
	w.add(Written, seqTo(40)...)
	if err := w.l.SealNow(context.Background()); err != nil {
		t.Fatal(err)
	}
	w.add(Written, seqTo(10)...)
	v := w.view()
	if len(v.segs) < 2 || len(v.wals) == 0 {
		t.Fatalf("%d segments and %d WALs", len(v.segs), len(v.wals))
	}
	collect := func(read func(from, to uint64, fn func(uint64, []byte) error) error, from, to uint64) (out []string) {
		if err := read(from, to, func(i uint64, f []byte) error {
			out = append(out, fmt.Sprintf("%d %s", i, f))
			return nil
		}); err != nil {
			t.Fatal(err)
		}
		return out
	}
	all := func(from, to uint64, fn func(uint64, []byte) error) error { return v.Frames(from, to, w.opt.Codec, fn) }
	for from := range v.Size() + 1 {
		for to := from; to <= v.Size(); to++ {
			if got, want := collect(v.Stream, from, to), collect(all, from, to); !slices.Equal(got, want) {
				t.Fatalf("from %d to %d:\n%v\nwant\n%v", from, to, got, want)
			}
		}
	}
	stop := errors.New("stop")
	n := 0
	if err := v.Stream(0, v.Size(), func(uint64, []byte) error {
		if n++; n == 5 {
			return stop
		}
		return nil
	}); err != stop || n != 5 {
		t.Errorf("%v after %d records", err, n)
	}
}

// One caller who appends again and again waits for company only now and then; as
// soon as somebody comes, each leader waits again.
func TestCrowd(t *testing.T) {
	t.Parallel()
	s := &sequencer{begun: time.Now()}
	moment := func() { s.last = time.Since(s.begun) } // the last batch was just now
	waits := func(batches ...int) (n int) {
		for _, size := range batches {
			moment()
			if s.crowded() {
				n++
			}
			s.company(size)
		}
		return n
	}
	lone := slices.Repeat([]int{1}, 2+4+8+8) // each first one waits
	if n := waits(lone...); n != 4 {
		t.Errorf("%d of %d lone batches waited, want 4", n, len(lone))
	}
	if n := waits(5, 2, 9, 2); n != 4 {
		t.Errorf("%d of 4 batches waited although others came, want all", n)
	}
	if n := waits(1, 1, 2, 2, 1, 1, 1); n != 5 {
		t.Errorf("%d of 7 batches waited, want all but those after one alone", n)
	}
	s.alone, s.last = 0, time.Since(s.begun)-2*crowdTime
	if s.crowded() {
		t.Error("a batch long after the last one waited")
	}
}

func TestRoomFor(t *testing.T) {
	t.Parallel()
	var list []int
	grown := 0
	for i := range 65536 {
		was := cap(list)
		if list = append(roomFor(list, 1), i); cap(list) != was {
			grown++
		}
	}
	if grown > 12 {
		t.Errorf("65,536 elements were copied %d times", grown)
	}
	for i, v := range list {
		if v != i {
			t.Fatalf("element %d is %d", i, v)
		}
	}
}
