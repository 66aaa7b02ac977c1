package ledger

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"time"

	"github.com/gatebook/gatebook/internal/book/store"
)

// idleSealFactor is how much longer a segment of nothing but housekeeping may
// wait.
const idleSealFactor = 24

// sealLoop seals complete WAL files, and begins a new one when the current one
// is old.
func (l *Ledger) sealLoop(ctx context.Context) error {
	tick := time.NewTicker(min(l.opt.SegmentMaxAge/4+1, time.Minute))
	defer tick.Stop()
	for {
		// What was begun is ended: a stop waits for it.
		err := l.sealComplete(context.WithoutCancel(ctx))
		l.sealingWas(err)
		if err != nil && !errors.Is(err, ErrFull) {
			// Nothing is lost: the WAL file stays and is tried again.
			l.opt.Logger.Error("sealing failed and will be tried again", "err", err)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.toSeal:
		case <-tick.C:
			if err := l.rotateIfOld(ctx); err != nil && !errors.Is(err, ErrFull) && ctx.Err() == nil {
				return err
			}
		}
	}
}

func (l *Ledger) rotateIfOld(ctx context.Context) error {
	l.mu.RLock()
	w := l.state.last()
	age, n, busy := l.now().Sub(w.created), w.count(), w.busy
	l.mu.RUnlock()
	limit := l.opt.SegmentMaxAge
	if !busy {
		limit *= idleSealFactor
	}
	if n == 0 || age < limit {
		return nil
	}
	_, err := l.own(ctx, &pending{rotate: true}, Written)
	return err
}

// SealNow turns everything appended so far into segments.
func (l *Ledger) SealNow(ctx context.Context) error {
	l.mu.RLock()
	w := l.state.last()
	onlyManifests := true
	for i := range w.entries {
		onlyManifests = onlyManifests && w.entries[i].typ != entryRecord
	}
	l.mu.RUnlock()
	if !onlyManifests {
		if _, err := l.own(ctx, &pending{rotate: true}, Written); err != nil {
			return err
		}
	}
	return l.sealComplete(ctx)
}

// sealComplete seals every WAL file but the current one, oldest first.
func (l *Ledger) sealComplete(ctx context.Context) error {
	l.sealMu.Lock()
	defer l.sealMu.Unlock()
	if err := l.sealingTools(); err != nil {
		return err
	}
	for {
		l.mu.RLock()
		n, w, failed := len(l.state.wals), l.state.wals[0], l.failed
		l.mu.RUnlock()
		if failed != nil {
			return failed // a leaf that binds a segment may be on the disk: that must not be written again
		}
		if n == 1 {
			return nil
		}
		// The marks that stand in the old file must be in a newer one first.
		for l.carrying.Load() {
			if _, err := l.own(ctx, &pending{nudge: true}, Written); err != nil {
				return err
			}
		}
		if err := l.seal(ctx, w); err != nil {
			return err
		}
	}
}

// sealingTools makes what packs and unpacks segments. It is kept: made anew it
// would cost others more wait than anything else that sealing does.
func (l *Ledger) sealingTools() (err error) {
	if l.pack == nil {
		l.pack, err = newPacker()
	}
	if l.unpack == nil && err == nil {
		l.unpack, err = newUnpacker()
	}
	return err
}

// seal turns one complete WAL file into a segment: file, read back, manifest
// leaf, checkpoint, and only then is the WAL file dropped.
func (l *Ledger) seal(ctx context.Context, w *walFile) error {
	// A segment that a leaf binds is never written again: a second try goes on
	// where the first one stopped.
	if w.sealing == nil {
		if err := l.bindSegment(ctx, w); err != nil {
			return err
		}
	}
	seg := w.sealing
	if err := l.syncOnce(); err != nil {
		return err
	}
	if err := store.WriteFile(l.opt.FS, manifestName(seg.leaf), seg.bytes); err != nil {
		return err
	}
	if err := l.SignCheckpoint(ctx); err != nil {
		return err
	}
	if !l.signedOver(seg.leaf) {
		return ErrFull
	}
	if err := l.opt.Keys.Born(w.births); err != nil {
		return err
	}
	l.mu.Lock()
	l.state.segs = append(l.state.segs, seg)
	l.state.wals = l.state.wals[1:]
	l.mu.Unlock()
	return l.removeWAL(w)
}

// bindSegment writes the segment of a WAL file and appends the leaf that binds
// it.
func (l *Ledger) bindSegment(ctx context.Context, w *walFile) error {
	slice := l.opt.Pace.New(l.opt.Now)
	defer slice.Close()
	in, err := l.segmentInput(w, slice.Yield)
	if err != nil {
		return err
	}
	m, err := l.writeSegment(in, slice.Yield)
	if err != nil {
		return errors.Join(err, l.opt.Keys.DropFileKey(UseSegment, in.header.keyID))
	}
	b := m.encode()
	leaf, err := l.own(ctx, &pending{mark: &markItem{kind: markManifest, data: b}, wait: true}, Written)
	if errors.Is(err, ErrFull) { // the next try has a key of its own
		return errors.Join(err, l.opt.Keys.DropFileKey(UseSegment, in.header.keyID))
	}
	if err != nil {
		return err
	}
	w.sealing = &sealedSegment{m, b, leaf}
	return nil
}

// segmentInput has a segment made from a WAL file, which is read again, from the
// disk, when the frames are asked for.
func (l *Ledger) segmentInput(w *walFile, yield func()) (*segmentInput, error) {
	in := &segmentInput{entries: w.entries}
	in.frames = func(give func([]byte) bool) {
		in.failed = w.again(yield, func(it *item) error {
			switch {
			case it.typ == itemRecord:
				in.personal.add(it.subject, it.personal)
				if !give(it.frame) {
					return errStopped
				}
			case it.typ == itemMark && it.kind == markHint:
				in.hints = append(in.hints, bytes.Clone(it.data))
			}
			return nil
		})
	}
	id, key, err := l.opt.Keys.NewFileKey(UseSegment)
	if err != nil {
		return nil, &KeyError{What: "a new segment", Err: err}
	}
	in.key = key
	in.header = segmentHeader{first: w.header.first, count: w.count(), keyID: id, origin: l.opt.Origin}
	_, err = rand.Read(in.header.salt[:])
	return in, err
}

var errStopped = errors.New("reading was given up")

// writeSegment writes the file, reads it back and proves that it holds what
// was committed to, before it gets its name.
func (l *Ledger) writeSegment(in *segmentInput, yield func()) (*manifest, error) {
	name := segmentName(in.header.first, in.header.generation)
	if err := l.writeTemp(name+".tmp", in, yield); err != nil {
		return nil, err
	}
	in.personal = personalParts{} // what is read back takes as much memory again
	back, err := readSegmentSlowly(l.opt.FS, name+".tmp", yield)
	if err != nil {
		return nil, fmt.Errorf("reading back: %w", err)
	}
	if err := l.compare(in, back, yield); err != nil {
		return nil, fmt.Errorf("reading back %s: %w", name, err)
	}
	if err := l.opt.FS.Rename(name+".tmp", name); err != nil {
		return nil, err
	}
	if err := l.opt.FS.SyncDir("segments"); err != nil {
		return nil, err
	}
	h := &in.header
	return &manifest{
		first: h.first, count: h.count, generation: h.generation, format: segmentVersion,
		keyID: h.keyID, file: back.sum, roots: coverRange(h.first, leafHashes(back.entries, yield), yield),
	}, nil
}

// writeTemp writes a segment that has not got its name yet.
func (l *Ledger) writeTemp(name string, in *segmentInput, yield func()) error {
	if err := store.Remove(l.opt.FS, name); err != nil {
		return err
	}
	f, err := l.opt.FS.Create(name)
	if err != nil {
		return diskError(err)
	}
	out := newFileWriter(f, yield)
	err = buildSegment(out, in, l.opt.Codec, l.opt.Keys, l.pack)
	if err == nil {
		err = f.Sync()
	}
	return diskError(errors.Join(err, f.Close()))
}

// compare recomputes every commitment from what the file gives back.
func (l *Ledger) compare(in *segmentInput, back *segmentFile, yield func()) error {
	l.unpack.yield = yield
	commit := newCommitter(l.opt.Origin)
	work := 0
	return back.each(&in.key, l.opt.Codec, l.opt.Keys, l.unpack, func(s *Sealed) error {
		if work += len(s.Frame) + len(s.Personal); work > workPiece {
			work = 0
			yield()
		}
		want := in.entries[s.Index-in.header.first]
		if s.Manifest {
			if got := back.entries[s.Index-in.header.first]; got != want {
				return fmt.Errorf("leaf %d differs", s.Index)
			}
			return nil
		}
		if s.PersonalErr != nil {
			return s.PersonalErr
		}
		c := commit.record(s.key, s.Index, s.Frame, s.Personal)
		if want.typ != entryRecord || c != want.hash {
			return fmt.Errorf("record %d comes back with another commitment", s.Index)
		}
		return nil
	})
}

// WithoutSealing runs fn while no file is sealed or removed.
func (l *Ledger) WithoutSealing(fn func()) {
	l.sealMu.Lock()
	defer l.sealMu.Unlock()
	fn()
}
