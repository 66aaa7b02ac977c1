package book

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/store"
)

// The fold file (docs/format.md section 17) keeps the counts of folds that are
// not recorded yet. It has a fixed size and holds no personal data: what a
// count is of stands in the open mark that it names.
const (
	foldName  = "fold"
	foldV1    = 0x01
	foldMagic = "GBFLD"
	foldLabel = "gatebook/v1/fold"

	foldBlock  = 256 // the header, and each slot
	foldArea   = 128 // half a slot: the fold that is counted, or the one being recorded
	foldCopies = 3   // of a count in its area
	foldCopy   = 40  // mark (16) · count (u64) · last (u64) · tag (8)
	foldTag    = 8
	foldHeader = 1 + len(foldMagic) + 4 + 16 // version, magic, slots, boot

	maxFoldSlots = 1 << 16
)

// bootID names the time since the machine was switched on: what was written
// before and not synced may be lost. It is zero if the system does not tell.
type bootID [16]byte

func thisBoot() (id bootID) {
	text, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return bootID{}
	}
	raw, err := hex.DecodeString(strings.ReplaceAll(strings.TrimSpace(string(text)), "-", ""))
	if err != nil || len(raw) != len(id) {
		return bootID{}
	}
	return bootID(raw)
}

// foldTagOf authenticates a header or a copy, which differ in length. The key
// has a fixed length and is secret, and what is shown of the hash is short, so
// this is a keyed hash at a third of the cost of HMAC.
func foldTagOf(key *keys.Key, b []byte) [foldTag]byte {
	var in [len(keys.Key{}) + len(foldLabel) + foldCopy]byte
	n := copy(in[:], key[:])
	n += copy(in[n:], foldLabel)
	n += copy(in[n:], b)
	sum := sha256.Sum256(in[:n])
	return [foldTag]byte(sum[:])
}

// foldCount is how many exchanges a fold stands for and when the last of them
// was counted, in microseconds since the Unix epoch.
type foldCount struct {
	count uint64
	last  int64
}

// encodeFoldCopy fills dst, of foldCopy bytes.
func encodeFoldCopy(dst []byte, key *keys.Key, mark [16]byte, c foldCount) {
	copy(dst, mark[:])
	binary.BigEndian.PutUint64(dst[16:], c.count)
	binary.BigEndian.PutUint64(dst[24:], uint64(c.last))
	tag := foldTagOf(key, dst[:foldCopy-foldTag])
	copy(dst[foldCopy-foldTag:], tag[:])
}

// newFoldFile is a file without counts.
func newFoldFile(key *keys.Key, slots int, boot bootID) []byte {
	b := make([]byte, foldBlock*(1+slots))
	h := append(b[:0], foldV1)
	h = append(h, foldMagic...)
	h = binary.BigEndian.AppendUint32(h, uint32(slots))
	h = append(h, boot[:]...)
	tag := foldTagOf(key, h)
	copy(b[foldHeader:], tag[:])
	return b
}

// foldContents is a fold file as a restart finds it.
type foldContents struct {
	boot    bootID
	counts  map[[16]byte]foldCount // by mark: the highest that is authentic
	damaged int                    // copies that are not, and other bytes that should be zero
}

var errFoldForm = errors.New("the fold file is damaged")

// decodeFolds reads a whole file. A damaged header is an error; damaged copies
// are counted.
func decodeFolds(b []byte, key *keys.Key) (*foldContents, error) {
	if len(b) < foldBlock || string(b[1:1+len(foldMagic)]) != foldMagic {
		return nil, fmt.Errorf("%w: it has no header", errFoldForm)
	}
	if b[0] != foldV1 {
		return nil, fmt.Errorf("the fold file has version %d, which this program does not know; use the newer one", b[0])
	}
	slots := binary.BigEndian.Uint32(b[1+len(foldMagic):])
	if slots > maxFoldSlots || len(b) != foldBlock*(1+int(slots)) {
		return nil, fmt.Errorf("%w: %d bytes for %d slots", errFoldForm, len(b), slots)
	}
	if tag := foldTagOf(key, b[:foldHeader]); string(tag[:]) != string(b[foldHeader:foldHeader+foldTag]) {
		return nil, fmt.Errorf("%w: the header is not authentic", errFoldForm)
	}
	c := &foldContents{boot: bootID(b[foldHeader-16:]), counts: map[[16]byte]foldCount{}}
	c.zeros(b[foldHeader+foldTag : foldBlock])
	for at := foldBlock; at < len(b); at += foldArea {
		for i := range foldCopies {
			c.add(b[at+i*foldCopy:at+(i+1)*foldCopy], key)
		}
		c.zeros(b[at+foldCopies*foldCopy : at+foldArea])
	}
	return c, nil
}

func (c *foldContents) add(b []byte, key *keys.Key) {
	if isZero(b) {
		return
	}
	if tag := foldTagOf(key, b[:foldCopy-foldTag]); string(tag[:]) != string(b[foldCopy-foldTag:]) {
		c.damaged++
		return
	}
	have := foldCount{binary.BigEndian.Uint64(b[16:]), int64(binary.BigEndian.Uint64(b[24:]))}
	mark := [16]byte(b)
	if have.count > c.counts[mark].count {
		c.counts[mark] = have
	}
}

func (c *foldContents) zeros(b []byte) {
	if !isZero(b) {
		c.damaged++
	}
}

func isZero(b []byte) bool {
	for _, v := range b {
		if v != 0 {
			return false
		}
	}
	return true
}

// readFolds reads what the last process left. A file that is missing or
// damaged gives no counts and says so by damaged.
func readFolds(files store.FS, key *keys.Key) (*foldContents, error) {
	b, err := store.ReadFile(files, foldName, foldBlock*(1+maxFoldSlots))
	if errors.Is(err, fs.ErrNotExist) {
		return &foldContents{damaged: 1}, nil
	}
	if err != nil {
		return nil, err
	}
	c, err := decodeFolds(b, key)
	if errors.Is(err, errFoldForm) {
		return &foldContents{damaged: 1}, nil
	}
	return c, err
}

// foldFile writes counts. A count is in the kernel when put returns and on the
// disk with the next sync.
type foldFile struct {
	f      store.File
	dirty  chan struct{} // a write is unsynced
	urgent chan struct{} // and somebody waits

	turn  sync.RWMutex // held for reading while a copy is written
	round *foldRound   // under turn
}

// foldRound is what is synced together.
type foldRound struct {
	n       uint64
	written atomic.Bool
	done    chan struct{} // closed when it is on the disk, or never will be
	err     error         // set before done is closed
}

func newFoldRound(n uint64) *foldRound { return &foldRound{n: n, done: make(chan struct{})} }

// foldSpot is an area of the file. It belongs to the slot. Each round that
// writes here takes the next copy: one is being written, the one before may be
// on its way to the disk, the third is there, so that a power cut that tears
// writes finds the count of a round that was synced.
type foldSpot struct {
	off   int64
	copy  int
	round uint64
}

// createFoldFile puts a file without counts into place and opens it.
func createFoldFile(files store.FS, key *keys.Key, slots int, boot bootID) (*foldFile, error) {
	if err := store.WriteFile(files, foldName, newFoldFile(key, slots, boot)); err != nil {
		return nil, err
	}
	f, err := files.OpenRW(foldName)
	if err != nil {
		return nil, err
	}
	return &foldFile{f: f, dirty: make(chan struct{}, 1), urgent: make(chan struct{}, 1), round: newFoldRound(1)}, nil
}

// put writes a copy and returns the round in which it reaches the disk.
func (f *foldFile) put(s *foldSpot, b []byte) (*foldRound, error) {
	f.turn.RLock()
	defer f.turn.RUnlock()
	r := f.round
	if s.round != r.n {
		s.round, s.copy = r.n, (s.copy+1)%foldCopies
	}
	if _, err := f.f.WriteAt(b, s.off+int64(s.copy*foldCopy)); err != nil {
		return nil, err
	}
	if !r.written.Load() {
		r.written.Store(true)
		signal(f.dirty)
	}
	return r, nil
}

// sync puts the current round on the disk. One sync is under way at a time.
func (f *foldFile) sync() error {
	f.turn.Lock()
	r := f.round
	f.round = newFoldRound(r.n + 1)
	f.turn.Unlock()
	r.err = f.f.Sync()
	close(r.done)
	return r.err
}

// syncLoop syncs within the given time of the first unsynced write, or at once
// when somebody waits for it. An error is final.
func (f *foldFile) syncLoop(ctx context.Context, within time.Duration) error {
	timer := time.NewTimer(within)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-f.dirty:
		}
		timer.Reset(within)
		select {
		case <-ctx.Done():
			return nil
		case <-f.urgent:
		case <-timer.C:
		}
		if err := f.sync(); err != nil {
			return err
		}
	}
}

// wait returns when a round is on the disk.
func (f *foldFile) wait(ctx context.Context, r *foldRound, timeout time.Duration) error {
	signal(f.urgent)
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-r.done:
		return r.err
	case <-timer.C:
	case <-ctx.Done():
	}
	return ledger.ErrSlow
}

// signal wakes whoever waits on c, once.
func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
