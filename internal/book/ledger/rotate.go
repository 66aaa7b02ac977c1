package ledger

import (
	"bytes"
	"cmp"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"math"
	"slices"
	"syscall"
	"time"
)

// notBegun is the first index in the header of a file that was prepared but
// has not been written to.
const notBegun = math.MaxUint64

// createWAL makes a new file with a key of its own, zero-written and on the
// disk. The caller holds growMu or is alone.
func (l *Ledger) createWAL(name string, serial, first, replaces uint64) (*walFile, error) {
	id, key, err := l.opt.Keys.NewFileKey(UseWAL)
	if err != nil {
		return nil, diskError(&KeyError{What: "a new WAL file", Err: err})
	}
	c, err := newWALCipher(key)
	if err != nil {
		return nil, err
	}
	w := &walFile{name: name, cipher: c, header: walHeader{serial: serial, first: first, replaces: replaces, keyID: id, origin: l.opt.Origin}}
	if _, err := rand.Read(w.header.salt[:]); err != nil {
		return nil, err
	}
	if w.f, err = l.opt.FS.Create(name); err != nil {
		return nil, errors.Join(diskError(err), l.opt.Keys.DropFileKey(UseWAL, id))
	}
	if err := w.fill(l.opt.Prealloc); err != nil {
		// A full disk is tried again every second: nothing may pile up.
		return nil, errors.Join(diskError(err), l.removeWAL(w))
	}
	return w, l.opt.FS.SyncDir("wal")
}

// fill makes a new file's header and first zeros durable.
func (w *walFile) fill(prealloc int64) error {
	if err := w.writeHeader(); err != nil {
		return err
	}
	if err := w.zeroAhead(prealloc); err != nil {
		return err
	}
	return w.f.Sync()
}

// diskError tells what passes, a full disk or a lack of file descriptors, from
// a broken disk.
func diskError(err error) error {
	for _, passing := range []syscall.Errno{syscall.ENOSPC, syscall.EDQUOT, syscall.EMFILE, syscall.ENFILE} {
		if errors.Is(err, passing) {
			return fmt.Errorf("%w (%w)", ErrFull, passing)
		}
	}
	return err
}

func (w *walFile) writeHeader() error {
	b := w.header.encode()
	if _, err := w.f.WriteAt(b, 0); err != nil {
		return err
	}
	w.hdrSize, w.end, w.lastTag = int64(len(b)), int64(len(b)), firstTag(b)
	w.alloc.Store(max(w.alloc.Load(), w.end))
	return nil
}

// zeros is what is written ahead. It is never written to, so that it takes no
// memory of its own.
var zeros [256 << 10]byte

// zeroAhead extends the zero-written space by n bytes, so that later appends
// change no file size. The caller holds growMu or is alone.
func (w *walFile) zeroAhead(n int64) error {
	at := w.alloc.Load()
	for to := at + n; at < to; {
		piece := zeros[:min(int64(len(zeros)), to-at)]
		if _, err := w.f.WriteAt(piece, at); err != nil {
			return err
		}
		at += int64(len(piece))
	}
	w.alloc.Store(at)
	return nil
}

// makeRoom sees to it that the file is zero-written up to end, normally done
// ahead by growLoop. It returns ErrFull before an append could fail halfway.
func (s *sequencer) makeRoom(l *Ledger, end int64) error {
	w := s.cur
	if room := w.alloc.Load() - end; room >= 0 {
		if room < l.opt.Prealloc/2 {
			signal(l.grow)
		}
		return nil
	}
	l.growMu.Lock()
	defer l.growMu.Unlock()
	need := end - w.alloc.Load()
	if need <= 0 {
		return nil
	}
	err := diskError(w.zeroAhead(need + l.opt.Prealloc))
	if errors.Is(err, ErrFull) {
		l.noRoom(err)
		if s.reserve == UseBallast {
			err = l.withBallast(func() error { return diskError(w.zeroAhead(need)) })
		}
	}
	if err != nil && !errors.Is(err, ErrFull) {
		return l.fail(err)
	}
	return err
}

// growLoop keeps zeros ahead of the current file and a successor ready, so
// that appending never waits for either.
func (l *Ledger) growLoop(ctx context.Context) error {
	retry := time.NewTicker(time.Second)
	defer retry.Stop()
	for {
		if l.Err() == nil {
			if err := l.checkSpace(); err != nil {
				return err
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-l.grow:
		case <-retry.C:
		}
	}
}

func (l *Ledger) growOnce() error {
	l.mu.RLock()
	w, end, failed := l.state.last(), l.state.last().end, l.failed
	l.mu.RUnlock()
	if failed != nil {
		return nil
	}
	l.growMu.Lock()
	defer l.growMu.Unlock()
	if w.alloc.Load()-end < l.opt.Prealloc/2 {
		if err := w.zeroAhead(l.opt.Prealloc); err != nil {
			return diskError(err)
		}
	}
	if l.next != nil {
		return nil
	}
	var err error
	l.next, err = l.prepare()
	var noKey *KeyError
	if errors.As(err, &noKey) {
		return l.keysAway(err)
	}
	l.keysAway(nil)
	return err
}

// prepare makes the next file. The caller holds growMu.
func (l *Ledger) prepare() (*walFile, error) {
	serial := l.nextSerial
	l.nextSerial++
	w, err := l.createWAL(walName(serial), serial, notBegun, 0)
	if err != nil && !errors.Is(err, ErrFull) {
		return nil, fmt.Errorf("preparing %s: %w", walName(serial), err)
	}
	return w, err
}

// rotate begins a new file at the current index. The old one is on the disk
// before the new one takes anything, so a torn tail can only be in the newest
// file. With nothing in the current file it does nothing.
func (s *sequencer) rotate(l *Ledger, asked bool) error {
	if asked && s.cur.count() == 0 {
		return nil
	}
	old := s.cur
	if err := old.f.Sync(); err != nil {
		return l.fail(fmt.Errorf("syncing %s: %w", old.name, err))
	}
	l.markSynced(old, old.seq, old.next())
	l.growMu.Lock()
	next := l.next
	l.next = nil
	var err error
	if next == nil {
		next, err = l.prepare()
		if errors.Is(err, ErrFull) && s.reserve == UseBallast {
			err = l.withBallast(func() error { next, err = l.prepare(); return err })
		}
	}
	l.growMu.Unlock()
	var noKey *KeyError
	if errors.As(err, &noKey) {
		// The next segment needs a key of its own.
		err = fmt.Errorf("%w (no key for a new file: %w)", ErrFull, err)
	}
	if errors.Is(err, ErrFull) {
		l.noRoom(err)
		return err
	}
	if err != nil {
		return l.fail(err)
	}
	next.header.first = old.next()
	next.created = l.now()
	if err := next.writeHeader(); err != nil {
		if err = diskError(err); errors.Is(err, ErrFull) {
			next.header.first = notBegun
			l.growMu.Lock()
			l.next = next
			l.growMu.Unlock()
			return err
		}
		return l.fail(err)
	}
	l.mu.Lock()
	l.state.wals = append(l.state.wals, next)
	s.carry = l.marksOutside(next)
	l.carrying.Store(len(s.carry) > 0) // before anybody can seal the old file
	l.mu.Unlock()
	s.cur = next
	if h := l.opt.Hint; h != nil {
		s.pendingHint = true
	}
	signal(l.grow)
	signal(l.toSeal)
	return nil
}

// carrySlice is how many open marks one batch rewrites.
const carrySlice = 256

// carryMarks rewrites some of the marks that stand in older files, so that
// those can go once they are sealed.
func (s *sequencer) carryMarks(l *Ledger) {
	if s.pendingHint {
		s.pendingHint, s.hinted = false, true
		s.buf = appendMarkItem(s.buf, markHint, 0, l.opt.Hint)
	}
	n := min(len(s.carry), carrySlice)
	for i, id := range s.carry[:n] {
		if len(s.buf) > fullBatch {
			n = i
			break
		}
		l.mu.RLock()
		at, open := l.marks[id]
		l.mu.RUnlock()
		if !open || at.wal == s.cur {
			continue
		}
		it, err := l.findMark(at, id)
		if err != nil {
			l.fail(fmt.Errorf("reading an open mark again: %w", err))
			return
		}
		frame, personal := it.frame, it.personal
		if l.opt.CompactMark != nil && l.now().UnixMicro()-at.time > time.Minute.Microseconds() {
			if f, p := l.opt.CompactMark(frame, personal); f != nil {
				frame, personal = f, p
			}
		}
		s.buf = appendOpenItem(s.buf, id, it.subject, at.time, frame, personal)
		s.opened, s.times = append(s.opened, id), append(s.times, at.time)
	}
	s.carry = s.carry[n:]
	if len(s.carry) == 0 {
		s.carry = nil
	}
	l.carrying.Store(len(s.carry) > 0)
}

// carryAgain takes back what a batch that was not written would have carried.
func (s *sequencer) carryAgain(l *Ledger) {
	s.pendingHint = s.pendingHint || s.hinted
	l.mu.RLock()
	defer l.mu.RUnlock()
	for _, id := range s.opened {
		if at, open := l.marks[id]; open && at.wal != s.cur {
			s.carry = append(s.carry, id)
		}
	}
	l.carrying.Store(len(s.carry) > 0)
}

// marksOutside lists the open marks that stand in other files, oldest first.
// The caller holds mu or is alone.
func (l *Ledger) marksOutside(w *walFile) [][16]byte {
	var ids [][16]byte
	for id, at := range l.marks {
		if at.wal != w {
			ids = append(ids, id)
		}
	}
	slices.SortFunc(ids, func(a, b [16]byte) int {
		return cmp.Or(cmp.Compare(l.marks[a].time, l.marks[b].time), bytes.Compare(a[:], b[:]))
	})
	return ids
}

// Mark reads an open mark: ErrNotOpen if there is none of that name.
func (l *Ledger) Mark(id [16]byte) (OpenMark, error) {
	for try := 0; ; try++ {
		l.mu.RLock()
		at, open := l.marks[id]
		l.mu.RUnlock()
		if !open {
			return OpenMark{}, ErrNotOpen
		}
		it, err := l.findMark(at, id)
		if err == nil {
			return OpenMark{ID: id, Time: at.time, Subject: it.subject, Frame: bytes.Clone(it.frame), Personal: bytes.Clone(it.personal)}, nil
		}
		if try == viewTries { // it may be carried to another file meanwhile
			return OpenMark{}, fmt.Errorf("reading an open mark again: %w", err)
		}
	}
}

// findMark reads the item of an open mark from its batch.
func (l *Ledger) findMark(at markAt, id [16]byte) (item, error) {
	b, err := at.wal.readBatch(at.batch, &walWindow{f: at.wal.f, size: at.batch.end()}, nil)
	if err != nil {
		return item{}, err
	}
	for len(b) > 0 {
		var it item
		if it, b, err = nextItem(b); err != nil {
			return item{}, err
		}
		if it.typ == itemOpen && it.id == id {
			return it, nil
		}
	}
	return item{}, errItem
}
