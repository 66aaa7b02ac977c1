package ledger

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/gatebook/gatebook/internal/book/store"
)

// Recovered is what a start found.
type Recovered struct {
	Marks []OpenMark // exchanges without an outcome, oldest first
	Clean bool       // the last stop was a clean one
	Size  uint64     // leaves there were
	Cut   int64      // bytes of a torn tail that were left behind
}

func newLedger(opt Options, v note.Verifier) *Ledger {
	l := &Ledger{
		opt: opt, verify: v, marks: map[[16]byte]markAt{},
		dirty: make(chan struct{}, 1), urgent: make(chan struct{}, 1), grow: make(chan struct{}, 1), toSeal: make(chan struct{}, 1),
		queued: make(chan queuedItem, 4096),
	}
	l.seq.begun = time.Now()
	l.pendings.New = func() any { return &pending{signal: make(chan byte, 1)} }
	return l
}

// Open locks the folder, checks what it holds against its own checkpoint and
// only then writes: it moves what survived to a fresh WAL file. Errors:
// store.ErrLocked, *Damage, *KeyError, or fs.ErrNotExist when there is no
// ledger; it never makes one.
func Open(opt Options, vkey string) (*Ledger, *Recovered, error) {
	v, lock, err := lockAndVerifier(&opt, vkey)
	if err != nil {
		return nil, nil, err
	}
	if err := checkSelfKey(opt.FS, vkey); err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	l, rec, err := open(opt, v)
	if err != nil {
		return nil, nil, errors.Join(err, lock.Close())
	}
	l.lock = lock
	return l, rec, nil
}

// checkSelfKey demands that the folder names the key that signs it. Without a
// ledger there is nothing to compare.
func checkSelfKey(fsys store.FS, vkey string) error {
	if _, err := store.ReadFile(fsys, "ledger", 4096); errors.Is(err, fs.ErrNotExist) {
		return nil // said by load
	}
	self, err := SelfKey(fsys)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return &Damage{Kind: Missing, File: "log.vkey", Detail: err.Error()}
	case err != nil:
		return &Damage{Kind: damageOf(err), File: "log.vkey", Detail: err.Error()}
	case self != vkey:
		detail := "the folder holds another verifier key than the one that its log is signed with"
		if says, want := keyName(self), keyName(vkey); says != want {
			detail += fmt.Sprintf(": it is of log %.300q, and origin, node and signing key make %q", says, want)
		}
		return &Damage{Kind: Edited, File: "log.vkey", Detail: detail}
	}
	return nil
}

// keyName is the log that a verifier key is of.
func keyName(vkey string) string {
	name, _, _ := strings.Cut(vkey, "+")
	return name
}

type closer interface{ Close() error }

func lockAndVerifier(opt *Options, vkey string) (note.Verifier, closer, error) {
	if err := opt.setDefaults(); err != nil {
		return nil, nil, err
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, nil, fmt.Errorf("verifier key: %w", err)
	}
	if v.Name() != opt.Origin {
		return nil, nil, fmt.Errorf("the verifier key is of log %q, the configuration names %q", v.Name(), opt.Origin)
	}
	lock, err := opt.FS.Lock("lock")
	return v, lock, err
}

func open(opt Options, v note.Verifier) (*Ledger, *Recovered, error) {
	s, err := load(&opt, v)
	if err != nil {
		return nil, nil, err
	}
	signed, err := s.checkRoot()
	if err != nil {
		return nil, nil, errors.Join(err, s.closeAll())
	}
	rec := &Recovered{Clean: s.closed && !s.tail.junk, Size: s.size()}
	if s.tail.junk {
		rec.Cut = s.tail.size - s.tail.off
	}
	l := newLedger(opt, v)
	l.signed, l.latest, l.state, l.marks = signed, s.checkNote, s.contents, map[[16]byte]markAt{}
	for id, m := range s.marks {
		l.marks[id] = s.marksAt[id]
		rec.Marks = append(rec.Marks, *m)
	}
	slices.SortFunc(rec.Marks, func(a, b OpenMark) int { return int(a.Time - b.Time) })
	if err := errors.Join(l.findBallast(), l.takeOver(s)); err != nil {
		return nil, nil, errors.Join(err, l.state.closeAll())
	}
	return l, rec, nil
}

// takeOver writes: a fresh file for what survived in the newest one, manifests
// that lack their file, and the removal of what is not needed any more.
func (l *Ledger) takeOver(s *loaded) error {
	old := s.last()
	serial := old.header.serial
	for _, w := range s.leftover {
		serial = max(serial, w.header.serial)
	}
	for _, name := range s.junk {
		// A file that died before its header has a serial all the same; another
		// one by that name would be removed with the junk.
		if n, err := parseWALName(strings.TrimPrefix(name, "wal/")); err == nil {
			serial = max(serial, n)
		}
	}
	var fresh *walFile
	err := l.withBallast(func() (err error) { fresh, err = l.rewrite(old, serial+1); return err })
	if err != nil {
		return fmt.Errorf("moving %s to a fresh file: %w", old.name, err)
	}
	l.state.wals[len(l.state.wals)-1] = fresh
	l.seq.cur, l.seq.pendingHint = fresh, l.opt.Hint != nil
	l.durable, l.nextSerial = fresh.next(), fresh.header.serial+1
	l.seq.carry = l.marksOutside(fresh)
	l.carrying.Store(len(l.seq.carry) > 0)
	for _, leaf := range s.noFile {
		err := l.withBallast(func() error { return diskError(store.WriteFile(l.opt.FS, manifestName(leaf), s.manifests[leaf])) })
		if err != nil {
			return err
		}
	}
	return l.cleanUp(s, append(s.leftover, old))
}

// rewrite copies the good batches of old to a file of its own under a new key.
// The name appears only when the content is on the disk.
func (l *Ledger) rewrite(old *walFile, serial uint64) (*walFile, error) {
	tmp := walName(serial) + ".tmp"
	if err := l.opt.FS.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	w, err := l.createWAL(tmp, serial, old.header.first, old.header.serial)
	if err != nil {
		return nil, err
	}
	w.created = l.now()
	if err := l.copyWAL(w, old); err != nil {
		if errors.Is(err, ErrFull) {
			err = errors.Join(err, l.removeWAL(w)) // it may be tried again
		}
		return nil, err
	}
	if err := l.opt.FS.Rename(tmp, walName(serial)); err != nil {
		return nil, err
	}
	w.name = walName(serial)
	return w, l.opt.FS.SyncDir("wal")
}

// copyWAL copies the good batches of old to w and puts them on the disk.
func (l *Ledger) copyWAL(w, old *walFile) error {
	at := batchInfo{off: old.hdrSize}
	head := make([]byte, batchHead)
	for at.off < old.end {
		if err := store.ReadFull(old.f, head, at.off); err != nil {
			return err
		}
		info := decodeBatchHead(head)
		info.off = at.off
		items, err := old.readBatch(info, &walWindow{f: old.f, size: info.end()}, nil)
		if err != nil {
			return err
		}
		if err := l.copyBatch(w, items); err != nil {
			return err
		}
		at.off = info.end()
	}
	if err := w.f.Sync(); err != nil {
		return diskError(err)
	}
	w.synced = w.seq
	return nil
}

func (l *Ledger) copyBatch(w *walFile, items []byte) error {
	b := append(make([]byte, batchHead, batchHead+len(items)+tagSize), items...)
	info := batchInfo{off: w.end, length: uint32(len(items) + tagSize), seq: w.seq + 1}
	b, err := w.cipher.seal(b, info.seq, 0, &w.lastTag)
	if err != nil {
		return err
	}
	if _, err := w.f.WriteAt(b, info.off); err != nil {
		return diskError(err)
	}
	copy(w.lastTag[:], b[len(b)-tagSize:])
	w.alloc.Store(max(w.alloc.Load(), info.end()))
	return w.take(info, items, (*relocate)(l))
}

// relocate notes where open marks stand in their new file.
type relocate Ledger

func (r *relocate) item(w *walFile, it *item) error {
	if it.typ == itemOpen {
		if _, open := r.marks[it.id]; open {
			r.marks[it.id] = markAt{w, w.at, it.time}
		}
	}
	if it.typ == itemRecord {
		w.busy = true
	}
	return nil
}

// cleanUp removes files whose content is safe elsewhere, with their keys.
func (l *Ledger) cleanUp(s *loaded, gone []*walFile) error {
	if err := s.announceBirths(); err != nil {
		return err
	}
	for _, seg := range s.segs {
		for _, w := range gone {
			if w.header.first != seg.manifest.first {
				continue
			}
			f, err := readSegment(l.opt.FS, seg.name())
			if err != nil || f.sum != seg.manifest.file {
				return &Damage{Kind: Edited, File: seg.name(), First: seg.manifest.first, Last: seg.next() - 1, Detail: "the segment is not the one that its manifest binds"}
			}
		}
	}
	for _, w := range gone {
		if err := l.removeWAL(w); err != nil {
			return err
		}
	}
	return l.removeJunk(s.junk)
}

func (l *Ledger) removeJunk(names []string) error {
	dirs := map[string]bool{}
	for _, name := range names {
		if err := l.opt.FS.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		dir, _, _ := strings.Cut(name, "/")
		dirs[dir] = true
	}
	for dir := range dirs {
		if err := l.opt.FS.SyncDir(dir); err != nil {
			return err
		}
	}
	return nil
}

// removeWAL removes a file and destroys its key. A file that is gone already
// is no error, so that a crash in between may repeat it.
func (l *Ledger) removeWAL(w *walFile) error {
	// The key goes first: nobody would find it again without the file, while a
	// file without its key is known for what it is by its header.
	err := l.opt.Keys.DropFileKey(UseWAL, w.header.keyID)
	if err == nil && w.viewed.Load() == 0 {
		slice := l.opt.Pace.New(l.opt.Now)
		w.shrink(slice.Yield)
		slice.Close()
	}
	if err = errors.Join(err, closeFile(w.f)); err != nil {
		return err
	}
	if err := l.opt.FS.Remove(w.name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return l.opt.FS.SyncDir("wal")
}

// shrink cuts off a file that nobody reads any more, but its beginning: a file
// system takes milliseconds to remove a large one at once. If it fails, removing
// does the rest.
func (w *walFile) shrink(yield func()) {
	const piece, least = 256 << 10, 1 << 20
	for size := w.alloc.Load() - piece; size >= least; size -= piece {
		if w.f.Truncate(size) != nil {
			return
		}
		yield()
	}
}

// Close seals everything, signs the last checkpoint and marks the stop as a
// clean one. Run must have returned. After a failure it only lets go.
func (l *Ledger) Close(ctx context.Context) error {
	err := l.Err()
	if err == nil {
		err = l.closeClean(ctx)
	}
	l.mu.Lock()
	if l.failed == nil {
		l.failed = ErrClosed
	}
	l.mu.Unlock()
	l.sealMu.Lock()
	if l.unpack != nil {
		l.unpack.dec.Close()
		l.pack, l.unpack = nil, nil
	}
	l.sealMu.Unlock()
	errs := []error{err, l.state.closeAll()}
	if l.lock != nil {
		errs = append(errs, l.lock.Close())
	}
	return errors.Join(errs...)
}

func (l *Ledger) closeClean(ctx context.Context) error {
	if err := l.SealNow(ctx); err != nil {
		return err
	}
	if err := l.SignCheckpoint(ctx); err != nil {
		return err
	}
	if _, err := l.own(ctx, &pending{mark: &markItem{kind: markClosed}}, Written); err != nil {
		return err
	}
	if err := l.syncOnce(); err != nil {
		return err
	}
	l.growMu.Lock()
	defer l.growMu.Unlock()
	w := l.state.last()
	if err := w.f.Truncate(w.end); err != nil {
		return err
	}
	if err := w.f.Sync(); err != nil {
		return err
	}
	if l.next == nil {
		return nil
	}
	next := l.next
	l.next = nil
	return l.removeWAL(next)
}
