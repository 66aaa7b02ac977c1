package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"

	"github.com/gatebook/gatebook/internal/book/store"
)

// OpenMark is an exchange that was forwarded and whose end is not known.
type OpenMark struct {
	ID       [16]byte
	Time     int64
	Subject  [16]byte
	Frame    []byte
	Personal []byte
}

// loaded is everything that the files say, read without changing one.
type loaded struct {
	contents
	check      Tree   // the newest checkpoint
	checkNote  []byte //
	marks      map[[16]byte]*OpenMark
	marksAt    map[[16]byte]markAt
	manifests  map[uint64][]byte // by leaf index, from WAL items
	noFile     []uint64          // manifests that have no file yet
	hints      [][]byte
	closed     bool       // the last thing in the WAL is the mark of a clean stop
	tail       walTail    // where the newest WAL file ended
	leftover   []*walFile // WAL files that are not needed any more
	junk       []string   // files that never came to be
	signedMark uint64     // highest checkpoint size noted in the WAL
}

func newLoaded(opt *Options, v note.Verifier) *loaded {
	return &loaded{
		contents: contents{fsys: opt.FS, keys: opt.Keys, codec: opt.Codec, origin: v.Name()},
		marks:    map[[16]byte]*OpenMark{}, marksAt: map[[16]byte]markAt{}, manifests: map[uint64][]byte{},
	}
}

// load reads the whole state. Every inconsistency is a *Damage; a key that is
// not there is a *KeyError.
func load(opt *Options, v note.Verifier) (*loaded, error) {
	s := newLoaded(opt, v)
	if err := readIdentity(opt.FS, v); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
		return nil, &Damage{Kind: Edited, File: "ledger", Detail: err.Error()}
	}
	if err := s.loadCheckpoint(v); err != nil {
		return nil, err
	}
	for _, step := range []func() error{s.loadManifestFiles, s.loadWALs, s.chooseSegments, s.dropSealedWALs, s.checkChain, s.checkBound} {
		if err := step(); err != nil {
			s.closeAll()
			return nil, err
		}
	}
	return s, nil
}

func (s *loaded) loadCheckpoint(v note.Verifier) (err error) {
	if s.checkNote, err = store.ReadFile(s.fsys, "checkpoint", 64<<10); err != nil {
		return &Damage{Kind: damageOf(err), File: "checkpoint", Detail: err.Error()}
	}
	if s.check, err = OpenCheckpoint(s.checkNote, v); err != nil {
		return &Damage{Kind: Edited, File: "checkpoint", Detail: err.Error()}
	}
	return nil
}

// loadManifestFiles reads manifests/.
func (s *loaded) loadManifestFiles() error {
	names, err := s.fsys.ReadDir("manifests")
	if err != nil {
		return err
	}
	for _, base := range names {
		if strings.HasSuffix(base, ".tmp") {
			s.junk = append(s.junk, "manifests/"+base)
			continue
		}
		index, err := parseManifestName(base)
		if err != nil {
			return &Damage{Kind: Edited, File: "manifests/" + base, Detail: err.Error()}
		}
		b, err := store.ReadFile(s.fsys, manifestName(index), maxManifest)
		if err != nil {
			return &Damage{Kind: damageOf(err), File: manifestName(index), First: index, Last: index, Detail: err.Error()}
		}
		if _, err := decodeManifest(b); err != nil {
			return &Damage{Kind: Edited, File: manifestName(index), First: index, Last: index, Detail: err.Error()}
		}
		s.manifests[index] = b
	}
	return nil
}

// loadWALs opens and replays every WAL file in the order of serials.
func (s *loaded) loadWALs() error {
	names, err := s.fsys.ReadDir("wal")
	if err != nil {
		return err
	}
	var files []*walFile
	replaced := map[uint64]bool{}
	for _, base := range names {
		if strings.HasSuffix(base, ".tmp") {
			s.junk = append(s.junk, "wal/"+base)
			continue
		}
		serial, err := parseWALName(base)
		if err != nil {
			return &Damage{Kind: Edited, File: "wal/" + base, Detail: err.Error()}
		}
		w, err := openWAL(s.fsys, "wal/"+base, s.keys)
		var noKey *KeyError
		switch {
		case errors.Is(err, errBlankHeader):
			s.junk = append(s.junk, "wal/"+base)
			continue
		case errors.As(err, &noKey):
			w.cipher.aead = nil // decided in dropSealedWALs
		case err != nil:
			first, last := s.unsealed()
			return &Damage{Kind: Edited, File: "wal/" + base, First: first, Last: last, Detail: err.Error()}
		}
		if w.header.serial != serial || w.header.origin != s.origin {
			w.f.Close()
			first, last := s.unsealed()
			return &Damage{Kind: Edited, File: w.name, First: first, Last: last, Detail: "the header names another file or another log"}
		}
		if w.header.first == notBegun {
			s.leftover = append(s.leftover, w)
			continue
		}
		replaced[w.header.replaces] = w.header.replaces != 0
		files = append(files, w)
	}
	for _, w := range files {
		if replaced[w.header.serial] {
			s.leftover = append(s.leftover, w)
			continue
		}
		s.wals = append(s.wals, w)
	}
	return s.replayAll()
}

// unsealed is the range that the WAL files hold as far as checkpoint and
// manifests tell: what a file whose header is damaged may have held.
func (s *loaded) unsealed() (first, last uint64) {
	for _, b := range s.manifests {
		if m, err := decodeManifest(b); err == nil && m.first+m.count <= s.check.Size {
			first = max(first, m.first+m.count)
		}
	}
	return first, max(s.check.Size, first+1) - 1
}

func (s *loaded) replayAll() error {
	for i, w := range s.wals {
		if w.cipher.aead == nil {
			continue
		}
		s.closed = false
		tail, err := w.replay(s)
		if err != nil {
			return err
		}
		if i == len(s.wals)-1 {
			s.tail = tail
			return s.judgeTail(w)
		}
		if i == len(s.wals)-2 && !tail.junk && w.next() != s.wals[i+1].header.first {
			torn, err := s.wals[i+1].tornHeader()
			if err != nil {
				return err
			}
			if torn {
				s.leftover, s.wals = append(s.leftover, s.wals[i+1]), s.wals[:i+1]
				s.tail = tail
				return s.judgeTail(w)
			}
		}
		next := s.wals[i+1].header.first
		if !tail.junk && w.next() < next && next <= s.manifestEnd() {
			continue // a file between was sealed and removed; removing this one failed
		}
		if tail.junk || w.next() != next {
			return &Damage{Kind: tailKind(tail), File: w.name, First: w.next(), Last: max(next, w.next()+1) - 1, Detail: "the file is damaged before its end although a later file followed it"}
		}
	}
	return nil
}

// manifestEnd is up to where manifests follow one another from leaf 0.
func (s *loaded) manifestEnd() uint64 {
	ends := map[uint64]uint64{}
	for _, b := range s.manifests {
		if m, err := decodeManifest(b); err == nil {
			ends[m.first] = m.first + m.count
		}
	}
	end := uint64(0)
	for ends[end] > end {
		end = ends[end]
	}
	return end
}

// tornHeader tells whether a crash may have left the file so when it was just
// begun: the index in its header was half written, hence nothing in the file
// was ever on the disk. No batch opens then, and none says otherwise.
func (w *walFile) tornHeader() (bool, error) {
	if w.cipher.aead == nil {
		return false, nil
	}
	again := &walFile{name: w.name, f: w.f, header: w.header, hdrSize: w.hdrSize, cipher: w.cipher, lastTag: w.lastTag, end: w.hdrSize}
	tail, err := again.replay(discard{})
	return again.seq == 0 && tail.known == 0 && !tail.planted, err
}

// discard is a replayer that wants nothing.
type discard struct{}

func (discard) item(*walFile, *item) error { return nil }

func tailKind(t walTail) DamageKind {
	if t.junk {
		return Edited
	}
	return Truncated
}

// judgeTail tells a torn tail, which a crash may leave, from damage.
func (s *loaded) judgeTail(w *walFile) error {
	end := w.next()
	if w.seq == 0 && s.tail.junk {
		// No batch vouches for the index in the header.
		end, _ = s.unsealed()
		if n := len(s.wals); n > 1 {
			end = s.wals[n-2].next()
		}
	}
	switch {
	case s.tail.lost():
		last := max(s.check.Size, end+1) - 1
		if s.tail.laterFirst > end {
			last = s.tail.laterFirst - 1
		}
		why := fmt.Sprintf("batch %d does not open although a later batch says that it was on the disk", s.tail.seq)
		if s.tail.planted {
			why = fmt.Sprintf("behind batch %d the file is full of bytes that were made to look like batches", s.tail.seq-1)
		}
		return &Damage{Kind: Edited, File: w.name, First: end, Last: last, Detail: why}
	case end < s.check.Size && s.tail.junk && !(s.tail.short && s.tail.later == 0):
		last := s.check.Size - 1
		if s.tail.laterFirst > end {
			last = s.tail.laterFirst - 1
		}
		return &Damage{Kind: Edited, File: w.name, First: end, Last: last, Detail: fmt.Sprintf("batch %d does not open although the checkpoint covers it", s.tail.seq)}
	case end < s.check.Size:
		return &Damage{Kind: Truncated, File: w.name, First: end, Last: s.check.Size - 1, Detail: fmt.Sprintf("the log ends at %d leaves, its checkpoint covers %d", end, s.check.Size)}
	case s.signedMark > s.check.Size:
		return &Damage{Kind: Truncated, File: "checkpoint", First: s.check.Size, Last: s.signedMark - 1, Detail: fmt.Sprintf("the checkpoint covers %d leaves, but one over %d was signed: it was rolled back", s.check.Size, s.signedMark)}
	}
	return nil
}

// item implements replayer.
func (s *loaded) item(w *walFile, it *item) error {
	s.closed = false
	switch it.typ {
	case itemOpen:
		s.marks[it.id] = &OpenMark{ID: it.id, Time: it.time, Subject: it.subject, Frame: bytes.Clone(it.frame), Personal: bytes.Clone(it.personal)}
		s.marksAt[it.id] = markAt{w, w.at, it.time}
	case itemRecord:
		w.busy = true
		if it.closes {
			delete(s.marks, it.id)
		}
	case itemDrop:
		delete(s.marks, it.id)
	case itemMark:
		switch it.kind {
		case markCheckpoint:
			s.signedMark = max(s.signedMark, it.size)
		case markManifest:
			if have := s.manifests[it.size]; have == nil {
				s.manifests[it.size] = bytes.Clone(it.data)
				s.noFile = append(s.noFile, it.size)
			} else if !bytes.Equal(have, it.data) {
				return &Damage{Kind: Edited, File: manifestName(it.size), First: it.size, Last: it.size, Detail: "the manifest is not the one that was logged"}
			}
		case markHint:
			s.hints = append(s.hints, bytes.Clone(it.data))
		case markClosed:
			s.closed = true
		}
	}
	return nil
}

// chooseSegments takes for each range the newest generation that a manifest
// describes and demands that they follow one another from leaf 0.
func (s *loaded) chooseSegments() error {
	leaves := make([]uint64, 0, len(s.manifests))
	for leaf := range s.manifests {
		leaves = append(leaves, leaf)
	}
	slices.Sort(leaves)
	best := map[uint64]*sealedSegment{}
	for _, leaf := range leaves {
		m, err := decodeManifest(s.manifests[leaf])
		if err != nil {
			return &Damage{Kind: Edited, File: manifestName(leaf), First: leaf, Last: leaf, Detail: err.Error()}
		}
		if have := best[m.first]; have == nil || have.manifest.generation <= m.generation {
			best[m.first] = &sealedSegment{m, s.manifests[leaf], leaf}
		}
	}
	for _, seg := range best {
		s.segs = append(s.segs, seg)
	}
	slices.SortFunc(s.segs, func(a, b *sealedSegment) int {
		if a.manifest.first < b.manifest.first {
			return -1
		}
		return 1
	})
	at := uint64(0)
	for _, seg := range s.segs {
		if seg.manifest.first != at {
			return &Damage{Kind: Missing, File: "manifests", First: min(at, seg.manifest.first), Last: max(at, seg.manifest.first) - 1, Detail: "no manifest covers these records"}
		}
		at = seg.next()
	}
	return s.listSegments()
}

// listSegments finds files in segments/ that no manifest describes: a crash
// between writing the file and logging its manifest leaves one. Files of
// other names are not ours, and stay.
func (s *loaded) listSegments() error {
	names, err := s.fsys.ReadDir("segments")
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, seg := range s.segs {
		known[seg.name()] = true
	}
	for _, base := range names {
		if !known["segments/"+base] && isSegmentName(strings.TrimSuffix(base, ".tmp")) {
			s.junk = append(s.junk, "segments/"+base)
		}
	}
	return nil
}

// dropSealedWALs sets aside the WAL files whose records are sealed.
func (s *loaded) dropSealedWALs() error {
	end := s.sealedEnd()
	var kept []*walFile
	for _, w := range s.wals {
		switch {
		case w.header.first < end:
			s.leftover = append(s.leftover, w)
			// What was open in it when it was sealed stands in a later file too; the
			// rest was closed, maybe in a file that is sealed and gone.
			for id, at := range s.marksAt {
				if at.wal == w {
					delete(s.marks, id)
				}
			}
		case w.cipher.aead == nil:
			_, err := s.keys.FileKey(UseWAL, w.header.keyID)
			if errors.Is(err, ErrNoKey) {
				return &Damage{Kind: Edited, File: w.name, First: w.header.first, Last: max(s.check.Size, w.header.first+1) - 1, Detail: err.Error()}
			}
			return &KeyError{What: w.name, Err: err}
		default:
			kept = append(kept, w)
		}
	}
	s.wals = kept
	return nil
}

// checkChain demands that segments and WAL files meet and cover the
// checkpoint.
func (s *loaded) checkChain() error {
	at := s.sealedEnd()
	for _, w := range s.wals {
		if w.header.first != at {
			return &Damage{Kind: Missing, File: w.name, First: min(at, w.header.first), Last: max(at, w.header.first) - 1, Detail: "these records are in no file"}
		}
		at = w.next()
	}
	if len(s.wals) == 0 || at < s.check.Size {
		return &Damage{Kind: Truncated, File: "wal", First: at, Last: max(s.check.Size, at+1) - 1, Detail: fmt.Sprintf("the files hold %d leaves, the checkpoint covers %d", at, s.check.Size)}
	}
	if err := s.checkUnwritten(); err != nil {
		return err
	}
	for _, seg := range s.segs {
		if seg.leaf >= at {
			return &Damage{Kind: Truncated, File: manifestName(seg.leaf), First: at, Last: seg.leaf, Detail: "the leaf of this manifest is missing"}
		}
	}
	return nil
}

// checkUnwritten demands that a manifest which is only in the WAL is so because
// of a stop in the middle of sealing: the WAL file that it seals is still there
// then.
func (s *loaded) checkUnwritten() error {
	for _, leaf := range s.noFile {
		m, err := decodeManifest(s.manifests[leaf])
		if err != nil {
			continue // said by chooseSegments
		}
		sealed := func(w *walFile) bool { return w.header.first == m.first }
		if !slices.ContainsFunc(s.wals, sealed) && !slices.ContainsFunc(s.leftover, sealed) {
			return &Damage{Kind: Missing, File: manifestName(leaf), First: leaf, Last: leaf, Detail: "the manifest's file is gone, though the WAL that it seals was removed after it was written"}
		}
	}
	return nil
}

// checkBound demands that the leaf of each manifest that is gone by is the
// hash of that manifest: one that no leaf binds could be anybody's.
func (s *loaded) checkBound() error {
	for _, seg := range s.segs {
		hash, err := s.leafBytes(seg.leaf)
		if err != nil {
			return err
		}
		if hash != manifestHash(seg.bytes) {
			return &Damage{Kind: Edited, File: manifestName(seg.leaf), First: seg.leaf, Last: seg.leaf, Detail: "no leaf of the tree binds this manifest"}
		}
	}
	return nil
}

// leafBytes reads the 32 bytes of one leaf without reading its whole segment.
func (s *loaded) leafBytes(leaf uint64) (hash [32]byte, err error) {
	for _, w := range s.wals {
		if cut := cut(w.entries, w.header.first, leaf, leaf+1); len(cut) == 1 {
			return cut[0].hash, nil
		}
	}
	for _, seg := range s.segs {
		if leaf < seg.manifest.first || leaf >= seg.next() {
			continue
		}
		if hash, err = readCommitment(s.fsys, seg.name(), leaf-seg.manifest.first); err != nil {
			return hash, &Damage{Kind: damageOf(err), File: seg.name(), First: seg.manifest.first, Last: seg.next() - 1, Detail: err.Error()}
		}
		return hash, nil
	}
	return hash, &Damage{Kind: Missing, File: "segments", First: leaf, Last: leaf, Detail: "this leaf is in no file"}
}

// announceBirths tells the key store of every subject born in the WAL.
func (s *loaded) announceBirths() error {
	var births [][]byte
	for _, w := range s.wals {
		births = append(births, w.births...)
	}
	for _, w := range s.leftover {
		births = append(births, w.births...)
	}
	return s.keys.Born(births)
}

// checkRoot recomputes the root at the checkpoint's size.
func (s *loaded) checkRoot() (*frontier, error) {
	f, err := s.frontier(s.check.Size)
	if err != nil {
		return nil, err
	}
	if f.root() != s.check.Root {
		return nil, &Damage{Kind: Forked, File: "checkpoint", First: 0, Last: max(s.check.Size, 1) - 1, Detail: "the files give another root than the checkpoint"}
	}
	return f, nil
}
