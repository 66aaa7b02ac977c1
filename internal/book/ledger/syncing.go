package ledger

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// durableWait is somebody waiting for a batch to be on the disk.
type durableWait struct {
	wal  *walFile
	seq  uint64
	done chan error
}

// waitDurable returns when batch seq of wal is on the disk.
func (l *Ledger) waitDurable(ctx context.Context, wal *walFile, seq uint64) error {
	l.mu.Lock()
	if l.failed != nil {
		l.mu.Unlock()
		return l.failed
	}
	if wal.synced >= seq {
		l.mu.Unlock()
		return nil
	}
	w := &durableWait{wal, seq, make(chan error, 1)}
	l.waiting = append(l.waiting, w)
	l.mu.Unlock()
	signal(l.urgent)
	timer := time.NewTimer(l.opt.Timeout)
	defer timer.Stop()
	select {
	case err := <-w.done:
		return err
	case <-timer.C:
	case <-ctx.Done():
	}
	return ErrSlow
}

// markSynced notes that a file is on the disk up to batch seq, which makes
// `leaves` leaves durable, and wakes who waited for it.
func (l *Ledger) markSynced(w *walFile, seq, leaves uint64) {
	l.mu.Lock()
	defer l.mu.Unlock()
	w.synced = max(w.synced, seq)
	l.durable = max(l.durable, leaves)
	kept := l.waiting[:0]
	for _, d := range l.waiting {
		if d.wal.synced >= d.seq {
			d.done <- nil
		} else {
			kept = append(kept, d)
		}
	}
	clear(l.waiting[len(kept):])
	l.waiting = kept
}

func (l *Ledger) syncedSeq(w *walFile) uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return w.synced
}

// syncLoop calls fdatasync within SyncWithin of the first unsynced write, or
// at once when somebody waits for it; one is in flight at a time.
func (l *Ledger) syncLoop(ctx context.Context) error {
	timer := time.NewTimer(l.opt.SyncWithin)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-l.dirty:
			timer.Reset(l.opt.SyncWithin)
			select {
			case <-ctx.Done():
				return nil
			case <-l.urgent:
			case <-timer.C:
			}
		case <-l.urgent:
		}
		if err := l.syncOnce(); err != nil {
			return err
		}
	}
}

// syncOnce puts everything written so far on the disk. An error is final: what
// the disk holds is unknown after it.
func (l *Ledger) syncOnce() error {
	l.mu.RLock()
	w, failed := l.state.last(), l.failed
	seq, leaves, synced := w.seq, w.next(), w.synced
	l.mu.RUnlock()
	if failed != nil {
		return failed
	}
	if synced >= seq {
		return nil
	}
	if err := w.f.Sync(); err != nil {
		if l.gone(w) {
			return nil
		}
		return l.fail(fmt.Errorf("syncing %s: %w", w.name, err))
	}
	l.markSynced(w, seq, leaves)
	return nil
}

// Sync puts everything appended so far on the disk.
func (l *Ledger) Sync() error { return l.syncOnce() }

// gone tells whether a file was sealed and closed meanwhile: then it was synced
// before.
func (l *Ledger) gone(w *walFile) bool {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return !slices.Contains(l.state.wals, w)
}
