package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sort"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/gatebook/gatebook/internal/pace"
)

// View is the ledger at one moment, for reading. It holds files open until
// Close and belongs to one goroutine.
type View struct {
	contents
	check     Tree
	checkNote []byte
	verifier  note.Verifier
	unpack    *unpacker
	lock      closer
	tail      walTail
	clean     bool
	marks     int
	hashes    map[uint64][]tlog.Hash // leaf hashes of the block read last
	viewed    []*walFile             // of the ledger, that is told when the view is closed
	slice     *pace.Slicer           // of a ledger that somebody serves; nil: nobody waits
	stop      func() error           // asked before each file is read; its error ends the reading. nil: nobody stops it
}

// StopWith has readings end with the error of stop, which is asked before each
// file.
func (v *View) StopWith(stop func() error) { v.stop = stop }

func (v *View) stopped() error {
	if v.stop == nil {
		return nil
	}
	return v.stop()
}

// viewTries bounds how often View starts over because sealing removed a file
// under it.
const viewTries = 8

// Pace is the long work beside the traffic that the ledger's own belongs to.
func (l *Ledger) Pace() *pace.Group { return l.opt.Pace }

// View returns the ledger as it is now.
func (l *Ledger) View() (*View, error) {
	for try := 0; ; try++ {
		v, err := l.view()
		if err == nil || !errors.Is(err, fs.ErrNotExist) || try == viewTries {
			return v, err
		}
	}
}

func (l *Ledger) view() (*View, error) {
	l.mu.RLock()
	c := l.state.clone()
	live := slices.Clone(c.wals)
	for i, w := range c.wals {
		w.viewed.Add(1)
		c.wals[i] = &walFile{name: w.name, header: w.header, hdrSize: w.hdrSize, cipher: w.cipher, batches: w.batches, entries: w.entries, end: w.end, seq: w.seq}
	}
	v := &View{contents: c, checkNote: l.latest, verifier: l.verify, marks: len(l.marks), viewed: live}
	l.mu.RUnlock()
	for _, w := range v.wals {
		f, err := l.opt.FS.Open(w.name)
		if err != nil {
			return nil, errors.Join(err, v.Close())
		}
		w.f = f
	}
	var err error
	if v.check, err = OpenCheckpoint(v.checkNote, l.verify); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	v.slice = l.opt.Pace.New(l.opt.Now)
	if v.unpack, err = newUnpacker(); err != nil {
		return nil, errors.Join(err, v.Close())
	}
	v.unpack.yield = v.slice.Yield
	return v, nil
}

// yield lets traffic go first while a ledger that somebody serves is read.
func (v *View) yield() {
	if v.slice != nil {
		v.slice.Yield()
	}
}

// Inspect opens a ledger that no process has open, for reading only: it takes
// the lock and changes no file. opt.Keys learns the births in the WAL.
func Inspect(opt Options, vkey string) (*View, error) {
	ver, lock, err := lockAndVerifier(&opt, vkey)
	if err != nil {
		return nil, err
	}
	s, err := load(&opt, ver)
	if err != nil {
		return nil, errors.Join(err, lock.Close())
	}
	for _, w := range s.leftover {
		err = errors.Join(err, closeFile(w.f))
	}
	v := &View{contents: s.contents, check: s.check, checkNote: s.checkNote, verifier: ver, lock: lock, tail: s.tail, clean: s.closed, marks: len(s.marks)}
	if err == nil {
		err = s.announceBirths()
	}
	if err == nil {
		v.unpack, err = newUnpacker()
	}
	if err != nil {
		return nil, errors.Join(err, v.Close())
	}
	return v, nil
}

// Close lets go of the files and, after Inspect, of the lock.
func (v *View) Close() error {
	if v.unpack != nil {
		v.unpack.dec.Close()
	}
	if v.slice != nil {
		v.slice.Close()
	}
	err := v.closeAll()
	for _, w := range v.viewed {
		w.viewed.Add(-1)
	}
	v.viewed = nil
	if v.lock != nil {
		err = errors.Join(err, v.lock.Close())
	}
	return err
}

// Size is the number of leaves in the view.
func (v *View) Size() uint64 { return v.size() }

// Checkpoint is the newest checkpoint of the view and its tree head.
func (v *View) Checkpoint() ([]byte, Tree) { return v.checkNote, v.check }

// Read hands out the leaves [from, to) in order. What fn gets is valid only
// during the call. An error from fn ends the reading and is returned.
func (v *View) Read(from, to uint64, fn func(*Sealed) error) error {
	within := func(s *Sealed) error {
		v.yield()
		if s.Index < from || s.Index >= to {
			return nil
		}
		return fn(s)
	}
	for _, s := range v.segs {
		if s.next() <= from || s.manifest.first >= to {
			continue
		}
		if err := v.stopped(); err != nil {
			return err
		}
		if err := v.readSealed(s, within); err != nil {
			return err
		}
	}
	for _, w := range v.wals {
		if err := v.stopped(); err != nil {
			return err
		}
		if err := v.readWAL(w, from, to, within); err != nil {
			return err
		}
	}
	return nil
}

// Frames hands out the frames of the records [from, to) in order, those that
// codec leaves nil when it decodes left out, and no personal parts. What fn gets
// is valid only during the call. An error from fn ends the reading and is
// returned.
func (v *View) Frames(from, to uint64, codec Codec, fn func(index uint64, frame []byte) error) error {
	for _, s := range v.segs {
		if s.next() <= from || s.manifest.first >= to {
			continue
		}
		if err := v.stopped(); err != nil {
			return err
		}
		if err := v.sealedFrames(s, from, to, codec, fn); err != nil {
			return err
		}
	}
	for _, w := range v.wals {
		if err := v.walFrames(w, from, to, fn); err != nil {
			return err
		}
	}
	return nil
}

// Stream hands out the frames of the records [from, to) in order as Frames does,
// one at a time: frames before a damaged one may come before the error.
func (v *View) Stream(from, to uint64, fn func(index uint64, frame []byte) error) error {
	for _, s := range v.segs {
		if s.next() <= from || s.manifest.first >= to {
			continue
		}
		if err := v.stopped(); err != nil {
			return err
		}
		if err := v.streamSealed(s, from, to, fn); err != nil {
			return err
		}
	}
	for _, w := range v.wals {
		if err := v.walFrames(w, from, to, fn); err != nil {
			return err
		}
	}
	return nil
}

func (v *View) walFrames(w *walFile, from, to uint64, fn func(uint64, []byte) error) error {
	if err := v.stopped(); err != nil {
		return err
	}
	return v.readWAL(w, from, to, func(s *Sealed) error {
		if s.Manifest || s.Index < from || s.Index >= to {
			return nil
		}
		return fn(s.Index, s.Frame)
	})
}

func (v *View) streamSealed(s *sealedSegment, from, to uint64, fn func(uint64, []byte) error) error {
	f, key, err := v.openSealed(s)
	if err != nil {
		return err
	}
	cols, err := f.columns(&key, v.unpack)
	if err != nil {
		return err
	}
	at := 0
	next := func() bool { // to the next entry that is a record
		for ; at < len(f.entries) && f.entries[at].typ != entryRecord; at++ {
		}
		return at < len(f.entries) && f.first()+uint64(at) < to
	}
	for frame, err := range v.codec.Frames(cols, f.records(), v.yield) {
		if err != nil {
			return err
		}
		if !next() {
			return nil
		}
		index := f.first() + uint64(at)
		at++
		v.yield()
		if index < from {
			continue
		}
		if err := fn(index, frame); err != nil {
			return err
		}
	}
	if next() {
		return errSegment
	}
	return nil
}

// openSealed reads a segment and the key of its frames.
func (v *View) openSealed(s *sealedSegment) (*segmentFile, [32]byte, error) {
	f, err := readSegmentSlowly(v.fsys, s.name(), v.unpack.yield)
	if err != nil {
		return nil, [32]byte{}, &Damage{Kind: damageOf(err), File: s.name(), First: s.manifest.first, Last: s.next() - 1, Detail: err.Error()}
	}
	key, err := v.keys.FileKey(UseSegment, f.header.keyID)
	if err != nil {
		return nil, [32]byte{}, &KeyError{What: s.name(), Err: err}
	}
	return f, key, nil
}

func (v *View) sealedFrames(s *sealedSegment, from, to uint64, codec Codec, fn func(uint64, []byte) error) error {
	f, key, err := v.openSealed(s)
	if err != nil {
		return err
	}
	frames, err := f.frames(&key, codec, v.unpack)
	if err != nil {
		return err
	}
	r := 0
	for i := range f.entries {
		if f.entries[i].typ != entryRecord {
			continue
		}
		frame, at := frames[r], f.first()+uint64(i)
		r++
		v.yield()
		if frame == nil || at < from || at >= to {
			continue
		}
		if err := fn(at, frame); err != nil {
			return err
		}
	}
	return nil
}

func (v *View) readSealed(s *sealedSegment, fn func(*Sealed) error) error {
	f, key, err := v.openSealed(s)
	if err != nil {
		return err
	}
	return f.each(&key, v.codec, v.keys, v.unpack, fn)
}

func (v *View) readWAL(w *walFile, from, to uint64, fn func(*Sealed) error) error {
	var buf []byte
	var s Sealed // one for all: fn keeps none
	read := w.window(w.batches, to)
	begin := sort.Search(len(w.batches), func(i int) bool { return w.batches[i].first+uint64(w.batches[i].count) > from })
	for _, b := range w.batches[begin:] {
		if b.first >= to {
			break
		}
		v.yield()
		items, err := w.readBatch(b.batchInfo, &read, buf)
		if err != nil {
			return &Damage{Kind: Edited, File: w.name, First: b.first, Last: b.first + uint64(b.count) - 1, Detail: err.Error()}
		}
		buf = items
		for len(items) > 0 {
			var it item
			if it, items, err = nextItem(items); err != nil {
				return err
			}
			if _, ok := it.leaf(); !ok {
				continue
			}
			s = Sealed{Index: it.leafIndex(), Manifest: it.typ != itemRecord, Subject: it.subject, Frame: it.frame, Personal: it.personal}
			if err := fn(&s); err != nil {
				return err
			}
		}
	}
	return nil
}

// Proof shows that one leaf is in the tree of a checkpoint (C2SP tlog-proof).
type Proof struct {
	Index      uint64
	Commitment [32]byte
	Hashes     []tlog.Hash
	Checkpoint []byte
}

// ErrNotSigned means that no checkpoint covers the leaf yet.
var ErrNotSigned = errors.New("no checkpoint covers this record yet; the next one is signed within a second")

// Prove returns the inclusion proof of a record in the view's checkpoint.
func (v *View) Prove(index uint64) (*Proof, error) {
	if index >= v.check.Size {
		return nil, ErrNotSigned
	}
	e, err := v.entries(index, index+1)
	if err != nil {
		return nil, err
	}
	if e[0].typ != entryRecord {
		return nil, fmt.Errorf("leaf %d is a manifest, not a record", index)
	}
	p, err := tlog.ProveRecord(int64(v.check.Size), int64(index), tlog.HashReaderFunc(v.readHashes))
	if err != nil {
		return nil, err
	}
	leaf := e[0].leafHash()
	if err := tlog.CheckRecord(p, int64(v.check.Size), v.check.Root, int64(index), leaf); err != nil {
		return nil, &Damage{Kind: Forked, File: "checkpoint", First: index, Last: index, Detail: "the files do not lead to the checkpoint's root: " + err.Error()}
	}
	return &Proof{Index: index, Commitment: e[0].hash, Hashes: p, Checkpoint: v.checkNote}, nil
}

// ProveConsistency shows that the tree of the first `old` leaves is a prefix
// of the view's checkpoint.
func (v *View) ProveConsistency(old uint64) (tlog.TreeProof, error) {
	if old > v.check.Size {
		return nil, fmt.Errorf("the log has signed %d leaves, fewer than %d", v.check.Size, old)
	}
	if old == 0 || old == v.check.Size {
		return nil, nil
	}
	return tlog.ProveTree(int64(v.check.Size), int64(old), tlog.HashReaderFunc(v.readHashes))
}

// RootAt computes the tree head over the first size leaves.
func (v *View) RootAt(size uint64) (tlog.Hash, error) {
	if size > v.size() {
		return tlog.Hash{}, fmt.Errorf("the log has %d leaves, fewer than %d", v.size(), size)
	}
	f, err := v.frontier(size)
	if err != nil {
		return tlog.Hash{}, err
	}
	return f.root(), nil
}

// readHashes implements tlog.HashReader over commitment columns and tiles.
func (v *View) readHashes(indexes []int64) ([]tlog.Hash, error) {
	out := make([]tlog.Hash, len(indexes))
	for i, x := range indexes {
		level, n := tlog.SplitStoredHashIndex(x)
		h, err := v.subtree(level, uint64(n))
		if err != nil {
			return nil, err
		}
		out[i] = h
	}
	return out, nil
}

// subtree is the root of the perfect subtree of 2^level leaves with number n.
func (v *View) subtree(level int, n uint64) (tlog.Hash, error) {
	tileLevel, low := level/8, level%8
	first := n << low // the hash of tileLevel where the subtree begins
	hashes, err := v.tileHashes(tileLevel, first/tileWidth)
	if err != nil {
		return tlog.Hash{}, err
	}
	at, width := first%tileWidth, uint64(1)<<low
	if at+width > uint64(len(hashes)) {
		return tlog.Hash{}, fmt.Errorf("subtree %d of level %d is not complete", n, level)
	}
	return perfectRoot(hashes[at : at+width]), nil
}

// tileHashes returns the hashes of tile n of a level, as far as it is filled.
func (v *View) tileHashes(level int, n uint64) ([]tlog.Hash, error) {
	if level == 0 {
		return v.leafTile(n)
	}
	if hashes, err := readTile(v.fsys, level, n); err == nil {
		return hashes, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []tlog.Hash
	for i := range uint64(tileWidth) {
		below, err := v.tileHashes(level-1, n*tileWidth+i)
		if err != nil {
			return nil, err
		}
		if len(below) < tileWidth {
			break
		}
		out = append(out, perfectRoot(below))
	}
	return out, nil
}

// leafTile returns up to 256 leaf hashes; whole blocks of 65,536 are read at
// once and the newest is remembered.
func (v *View) leafTile(n uint64) ([]tlog.Hash, error) {
	const block = tileWidth * tileWidth
	b := n / tileWidth
	hashes, ok := v.hashes[b]
	if !ok {
		from := b * block
		to := min(from+block, v.check.Size)
		if from >= to {
			return nil, nil
		}
		entries, err := v.entries(from, to)
		if err != nil {
			return nil, err
		}
		hashes = leafHashes(entries, nil)
		v.hashes = map[uint64][]tlog.Hash{b: hashes}
	}
	from := min(n%tileWidth*tileWidth, uint64(len(hashes)))
	return hashes[from:min(from+tileWidth, uint64(len(hashes)))], nil
}
