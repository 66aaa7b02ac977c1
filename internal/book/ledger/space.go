package ledger

import (
	"errors"
	"fmt"
	"io/fs"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/book/store"
)

// Reserve says what an item may use when the disk is nearly full.
type Reserve uint8

// The reserves.
const (
	UseNothing  Reserve = iota // refused as soon as space is short
	UsePrepared                // what WAL files were zero-written ahead
	UseBallast                 // and the ballast
)

// Space is short below these shares of the file system, or of these many bytes
// where the share is more: nobody lacks space with gigabytes to spare.
const (
	lowShare, lowBytes   = 5, 20 << 30 // alarm below 1/5
	fullShare, fullBytes = 20, 5 << 30 // no more items below 1/20
)

const ballastName = "ballast"

// space is what is known of the room on the disk.
type space struct {
	full atomic.Bool // why != nil, for the way of every item

	checking sync.Mutex // one check at a time
	mu       sync.Mutex
	why      error     // under mu; why items are refused
	low      bool      // under mu
	free     int64     // under mu
	total    int64     // under mu
	ballast  bool      // under mu; the file is there
	away     time.Time // under mu; since when the key store gives no keys
	sealing  error     // under mu; why the newest try to seal failed
}

// Space is what the ledger says of its disk.
type Space struct {
	Free, Total int64
	Low         bool  // below the alarm
	Full        error // why items are refused, ErrFull; nil if they are not
	Ballast     bool  // the ballast is in place
	Keys        error // the key store gives no keys for new files
	Sealing     error // the newest try to seal failed
}

// Space reads what is known of the room on the disk.
func (l *Ledger) Space() Space {
	s := &l.space
	s.mu.Lock()
	defer s.mu.Unlock()
	out := Space{Free: s.free, Total: s.total, Low: s.low, Full: s.why, Ballast: s.ballast, Sealing: s.sealing}
	if !s.away.IsZero() {
		out.Keys = fmt.Errorf("the key store has given no keys since %s", s.away.UTC().Format(time.RFC3339))
	}
	return out
}

// Room says why items are refused, nil if they are not. It looks again first.
func (l *Ledger) Room() error {
	if l.space.full.Load() {
		if err := l.checkSpace(); err != nil {
			return err
		}
	}
	return l.refusal()
}

// refusal is why items are refused.
func (l *Ledger) refusal() error {
	l.space.mu.Lock()
	defer l.space.mu.Unlock()
	return l.space.why
}

// noRoom makes the ledger refuse items until checkSpace finds room.
func (l *Ledger) noRoom(err error) {
	s := &l.space
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.why == nil && err != nil {
		l.opt.Logger.Error("the ledger takes no more records until there is room", "err", err)
	}
	if s.why != nil && err == nil {
		l.opt.Logger.Info("the ledger takes records again")
	}
	s.why = err
	s.full.Store(err != nil)
}

// checkSpace prepares what is needed ahead and looks how much room is left. It
// fails only as growOnce does, for good.
func (l *Ledger) checkSpace() error {
	s := &l.space
	s.checking.Lock()
	defer s.checking.Unlock()
	why := l.growOnce()
	if why != nil && !errors.Is(why, ErrFull) {
		return l.fail(why)
	}
	free, total, err := l.opt.FS.Space()
	if err != nil {
		return l.fail(fmt.Errorf("asking for the free space: %w", err))
	}
	s.mu.Lock()
	ballast := s.ballast
	s.mu.Unlock()
	floor := min(total/fullShare, fullBytes)
	if !ballast {
		floor += l.opt.Ballast // what it gave up is not for records
	}
	if why == nil && free < floor {
		why = fmt.Errorf("%w (%d MiB are free, less than %d)", ErrFull, free>>20, floor>>20)
	}
	low := free < min(total/lowShare, lowBytes)
	s.mu.Lock()
	if low && !s.low {
		l.opt.Logger.Warn("the disk fills up", "free", free, "of", total)
	}
	s.free, s.total, s.low = free, total, low
	s.mu.Unlock()
	l.noRoom(why)
	if why == nil && !ballast && l.opt.Ballast > 0 {
		if err := l.makeBallast(); err != nil && !errors.Is(diskError(err), ErrFull) {
			return l.fail(fmt.Errorf("making the ballast: %w", err))
		}
	}
	return nil
}

// findBallast looks for the ballast at a start. One that was not finished is
// made again.
func (l *Ledger) findBallast() error {
	f, err := l.opt.FS.Open(ballastName)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	size, err := f.Allocated()
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	if size < l.opt.Ballast {
		return store.Remove(l.opt.FS, ballastName)
	}
	l.space.ballast = true
	return nil
}

// makeBallast takes space that is given back when there is no other.
func (l *Ledger) makeBallast() error {
	if err := store.Remove(l.opt.FS, ballastName); err != nil {
		return err
	}
	f, err := l.opt.FS.Create(ballastName)
	if err != nil {
		return err
	}
	err = f.Allocate(l.opt.Ballast)
	if err == nil {
		err = f.Sync()
	}
	err = errors.Join(err, f.Close())
	if err == nil {
		err = l.opt.FS.SyncDir(".")
	}
	if err != nil {
		return errors.Join(err, store.Remove(l.opt.FS, ballastName))
	}
	l.space.mu.Lock()
	defer l.space.mu.Unlock()
	l.space.ballast = true
	return nil
}

// dropBallast gives the ballast's space back and says whether there was one.
func (l *Ledger) dropBallast() (bool, error) {
	s := &l.space
	s.mu.Lock()
	had := s.ballast
	s.ballast = false
	s.mu.Unlock()
	if !had {
		return false, nil
	}
	l.opt.Logger.Warn("the disk is full: the ballast is given up")
	if err := store.Remove(l.opt.FS, ballastName); err != nil {
		return false, err
	}
	return true, l.opt.FS.SyncDir(".")
}

// withBallast runs fn, and again without the ballast if the disk is full.
func (l *Ledger) withBallast(fn func() error) error {
	err := fn()
	if !errors.Is(err, ErrFull) {
		return err
	}
	dropped, derr := l.dropBallast()
	if derr != nil || !dropped {
		return errors.Join(err, derr)
	}
	return fn()
}

// keysAway tells a key store that is away from one that was away for so long
// that the ledger goes on no more. A nil error says that it is back.
func (l *Ledger) keysAway(err error) error {
	s := &l.space
	s.mu.Lock()
	defer s.mu.Unlock()
	if err == nil {
		s.away = time.Time{}
		return nil
	}
	if s.away.IsZero() {
		s.away = l.now()
		l.opt.Logger.Error("the key store gives no keys; the ledger goes on with those it has", "for", l.opt.KeyLease, "err", err)
	}
	if l.now().Sub(s.away) < l.opt.KeyLease {
		return nil
	}
	return fmt.Errorf("%w (no keys for new files: %w)", ErrFull, err)
}

// sealingWas notes how a try to seal ended.
func (l *Ledger) sealingWas(err error) {
	l.space.mu.Lock()
	defer l.space.mu.Unlock()
	l.space.sealing = err
}
