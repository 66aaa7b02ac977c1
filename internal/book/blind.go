package book

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// The blind file (docs/format.md section 18) counts the exchanges that the book
// did not take, while it does not take any. It has a fixed size, its blocks are
// on the disk before they are needed, and nothing in it is personal.
const (
	blindName  = "blind"
	blindV1    = 0x01
	blindMagic = "GBBLD"
	blindLabel = "gatebook/v1/blind"

	blindSize   = 4096
	blindSlots  = 4
	blindSlot   = blindSize / blindSlots
	blindMissed = 8 + 8 + 8 + 1 + 1                               // count, first, last, cause, inexact
	blindDue    = 16 + 8 + blindMissed                            // id, from, missed
	blindBody   = 1 + 5 + 8 + 16 + 1 + blindMissed + blindDue + 8 // up to the tag
	blindTag    = 8
)

// blindCauses are the reasons by their number in the file.
var blindCauses = [...]string{"", "book_unavailable", "book_full", "book_slow"}

// missed is how many exchanges were not recorded, and when: microseconds since
// the Unix epoch. Inexact: one of them may have been kept after all, or some
// may not have been counted.
type missed struct {
	count       int64
	first, last int64
	cause       string // of the newest
	inexact     bool
}

func (t *missed) add(o missed) {
	if o.count == 0 {
		return
	}
	if t.count == 0 {
		t.first = o.first
	}
	t.count += o.count
	t.first, t.last = min(t.first, o.first), max(t.last, o.last)
	t.cause, t.inexact = o.cause, t.inexact || o.inexact
}

// due is what a gap record is being written for: under this id, at a leaf
// not below from. A restart that finds the record knows that it is told.
type due struct {
	id   record.ID
	from uint64
	missed
}

// blindState is what the file says.
type blindState struct {
	seq    uint64 // counts writes
	boot   bootID
	whole  bool   // the last process let go of the file with everything synced
	open   missed // not told yet
	due    due    //
	marked uint64 // exchanges with an open mark whose records the last process lost for good
}

func blindTagOf(key *keys.Key, body []byte) [blindTag]byte {
	var in [len(keys.Key{}) + len(blindLabel) + blindBody]byte
	n := copy(in[:], key[:])
	n += copy(in[n:], blindLabel)
	n += copy(in[n:], body)
	sum := sha256.Sum256(in[:n])
	return [blindTag]byte(sum[:])
}

func appendBool(b []byte, v bool) []byte {
	if v {
		return append(b, 1)
	}
	return append(b, 0)
}

func (t *missed) append(b []byte) []byte {
	b = binary.BigEndian.AppendUint64(b, uint64(t.count))
	b = binary.BigEndian.AppendUint64(b, uint64(t.first))
	b = binary.BigEndian.AppendUint64(b, uint64(t.last))
	b = append(b, byte(max(slices.Index(blindCauses[:], t.cause), 0)))
	return appendBool(b, t.inexact)
}

// encode makes one slot, without the zeros behind it.
func (s *blindState) encode(dst []byte, key *keys.Key) []byte {
	b := append(dst[:0], blindV1)
	b = append(b, blindMagic...)
	b = binary.BigEndian.AppendUint64(b, s.seq)
	b = append(b, s.boot[:]...)
	b = appendBool(b, s.whole)
	b = s.open.append(b)
	b = append(b, s.due.id[:]...)
	b = binary.BigEndian.AppendUint64(b, s.due.from)
	b = s.due.missed.append(b)
	b = binary.BigEndian.AppendUint64(b, s.marked)
	tag := blindTagOf(key, b)
	return append(b, tag[:]...)
}

func decodeMissed(b []byte) (t missed, ok bool) {
	t.count = int64(binary.BigEndian.Uint64(b))
	t.first = int64(binary.BigEndian.Uint64(b[8:]))
	t.last = int64(binary.BigEndian.Uint64(b[16:]))
	if int(b[24]) >= len(blindCauses) || b[25] > 1 || t.count < 0 {
		return t, false
	}
	t.cause, t.inexact = blindCauses[b[24]], b[25] == 1
	return t, true
}

// errBlindVersion is a slot of a later release.
var errBlindVersion = errors.New("the blind file has a version that this program does not know; use the newer one")

// decodeBlindSlot reads one slot; blank ones and damaged ones give no state.
func decodeBlindSlot(b []byte, key *keys.Key) (s *blindState, blank bool, err error) {
	if isZero(b) {
		return nil, true, nil
	}
	if string(b[1:6]) == blindMagic && b[0] > blindV1 {
		return nil, false, errBlindVersion
	}
	tag := blindTagOf(key, b[:blindBody])
	if b[0] != blindV1 || string(b[1:6]) != blindMagic || string(tag[:]) != string(b[blindBody:blindBody+blindTag]) || !isZero(b[blindBody+blindTag:]) {
		return nil, false, nil
	}
	s = &blindState{seq: binary.BigEndian.Uint64(b[6:]), boot: bootID(b[14:]), whole: b[30] == 1}
	at, fine, ok := 31, false, false
	s.open, fine = decodeMissed(b[at:])
	at += blindMissed
	s.due.id, s.due.from = record.ID(b[at:at+16]), binary.BigEndian.Uint64(b[at+16:])
	s.due.missed, ok = decodeMissed(b[at+24:])
	s.marked = binary.BigEndian.Uint64(b[at+blindDue:])
	if !fine || !ok || b[30] > 1 {
		return nil, false, nil
	}
	return s, false, nil
}

// blindContents is a blind file as a restart finds it.
type blindContents struct {
	blindState
	slot    int // where the state stands
	damaged int // slots that hold something else
}

// decodeBlind takes the newest slot that is whole. A file without one is
// damaged.
func decodeBlind(b []byte, key *keys.Key) (*blindContents, error) {
	c := &blindContents{slot: -1}
	if len(b) != blindSize {
		return nil, fmt.Errorf("%w: %d bytes", errBlindForm, len(b))
	}
	for i := range blindSlots {
		s, blank, err := decodeBlindSlot(b[i*blindSlot:(i+1)*blindSlot], key)
		switch {
		case err != nil:
			return nil, err
		case blank:
		case s == nil:
			c.damaged++
		case c.slot < 0 || s.seq > c.seq:
			c.blindState, c.slot = *s, i
		}
	}
	if c.slot < 0 {
		return nil, fmt.Errorf("%w: no slot is whole", errBlindForm)
	}
	return c, nil
}

var errBlindForm = errors.New("the blind file is damaged")

// blind counts what the book does not take. Its methods are safe for
// concurrent use.
type blind struct {
	key   keys.Key
	dirty chan struct{} // a write is unsynced

	mu      sync.Mutex
	f       store.File                 // under mu
	state   blindState                 // under mu
	round   int                        // under mu; what is written between two syncs goes to one slot
	orphans []orphan                   // under mu
	unsure  map[record.ID]struct{}     // under mu; exchanges whose mark may or may not be in the WAL
	stale   bool                       // under mu; the newest state is not written yet
	err     error                      // under mu; why the newest state is not in the file
	buf     [blindBody + blindTag]byte // under mu

	unsureN atomic.Int32 // len(unsure)
	late    [][16]byte   // under mu: records that were kept too late and are not told yet
	syncing sync.Mutex   // one sync at a time; taken before mu
	writing sync.Mutex   // one write at a time; taken with mu held
}

// orphan is an exchange whose record was lost while its open mark is, or may
// be, in the WAL: its interrupted record will stand for it.
type orphan struct {
	id     record.ID
	lost   missed // of one
	unsure bool   // there may be no mark
}

// maxUnsure bounds the marks that are remembered because nobody knows whether
// they were written.
const maxUnsure = 1 << 16

// openBlind opens the file, or makes it, and returns what the last process
// counted. A file that is gone or damaged counts nothing; found says so.
func openBlind(files store.FS, key keys.Key) (b *blind, c *blindContents, found error, err error) {
	b = &blind{key: key, dirty: make(chan struct{}, 1), unsure: map[record.ID]struct{}{}}
	raw, err := store.ReadFile(files, blindName, blindSize)
	if err == nil {
		c, err = decodeBlind(raw, &key)
	}
	switch {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errBlindForm), errors.Is(err, store.ErrTooLarge):
		found, c = err, &blindContents{}
		fresh := make([]byte, blindSize)
		c.seq = 1
		copy(fresh, c.encode(b.buf[:], &key))
		if err := store.WriteFile(files, blindName, fresh); err != nil {
			return nil, nil, nil, err
		}
	case err != nil:
		return nil, nil, nil, err
	}
	b.state, b.round = c.blindState, c.slot+1
	if b.f, err = files.OpenRW(blindName); err != nil {
		return nil, nil, nil, err
	}
	return b, c, found, nil
}

// write puts the state into the file: in the kernel when it returns nil, unless
// another write hangs; then the next sync writes it. The caller holds mu.
func (b *blind) write() error {
	b.state.seq++
	signal(b.dirty)
	if !b.writing.TryLock() {
		b.stale = true
		return nil
	}
	defer b.writing.Unlock()
	_, b.err = b.f.WriteAt(b.state.encode(b.buf[:], &b.key), b.slot())
	return b.err
}

// writeLater leaves writing the state to the next sync: nobody who has waited
// long enough for the disk waits for it again. The caller holds mu.
func (b *blind) writeLater() {
	b.state.seq++
	b.stale = true
	signal(b.dirty)
}

// slot is where the file is written now. The caller holds mu.
func (b *blind) slot() int64 { return int64(b.round % blindSlots * blindSlot) }

// change changes the state and writes it.
func (b *blind) change(fn func(s *blindState)) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.state.whole = false
	fn(&b.state)
	return b.write()
}

// sync puts the state on the disk. The slot that was synced last is not
// touched before the next one is synced too, so that a power cut that tears
// writes leaves one. An error is not final: memory knows the state, and the
// next sync writes it again, elsewhere.
func (b *blind) sync() error {
	b.syncing.Lock()
	defer b.syncing.Unlock()
	var buf [blindBody + blindTag]byte
	b.mu.Lock()
	again, off := b.stale || b.err != nil, b.slot()
	raw := b.state.encode(buf[:], &b.key)
	b.stale = false
	b.round++
	b.writing.Lock() // free: who takes it otherwise holds mu
	b.mu.Unlock()
	var err error
	if again {
		_, err = b.f.WriteAt(raw, off)
	}
	b.writing.Unlock()
	if err == nil {
		err = b.f.Sync()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if err != nil || again {
		b.err = err
	}
	return err
}

// syncLoop syncs within the given time of the first unsynced write, until ctx
// ends. A file that cannot be written is tried again each second.
func (b *blind) syncLoop(ctx context.Context, within time.Duration, failed func(error)) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-b.dirty:
		}
		wait := within
		for {
			timer := time.NewTimer(wait)
			select {
			case <-ctx.Done():
				timer.Stop()
				return
			case <-timer.C:
			}
			err := b.sync()
			if err == nil {
				break
			}
			failed(err)
			wait = time.Second
		}
	}
}

// pending is what is not told yet.
func (b *blind) pending() (t missed, orphans int, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	t = b.state.open
	t.add(b.state.due.missed)
	if b.state.open.count > 0 {
		t.cause = b.state.open.cause
	}
	return t, len(b.orphans), b.err
}

// close lets go of the file with everything on the disk.
func (b *blind) close() error {
	var err error
	b.mu.Lock()
	if s := &b.state; s.open.count+s.due.count > 0 || s.marked > 0 || b.err != nil {
		s.whole = true
		err = b.write()
	}
	b.mu.Unlock()
	if err == nil {
		err = b.sync()
	}
	return errors.Join(err, b.f.Close())
}
