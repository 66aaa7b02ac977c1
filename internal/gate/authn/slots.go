package authn

import (
	"context"
	"errors"
	"runtime"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// Slots bound how many signatures are checked at the same time, so that a flood
// of bad ones leaves processor time for everything else. One Slots may serve
// any number of methods; it is safe for concurrent use.
type Slots struct {
	taken  chan struct{}
	counts verifyCounts
}

// NewSlots makes n slots; 0 means GOMAXPROCS.
func NewSlots(n int) *Slots {
	if n <= 0 {
		n = runtime.GOMAXPROCS(0)
	}
	return &Slots{taken: make(chan struct{}, n)}
}

// acquire takes a slot, waiting for it at most so long.
func (s *Slots) acquire(ctx context.Context, wait time.Duration) *Failure {
	select {
	case s.taken <- struct{}{}:
		s.counts.atOnce.Add(1)
		return nil
	default:
	}
	timer := time.NewTimer(wait)
	defer timer.Stop()
	select {
	case s.taken <- struct{}{}:
		s.counts.waited.Add(1)
		return nil
	case <-timer.C:
		s.counts.refused.Add(1)
		return fail(reason.Overloaded, "too many signatures to check")
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return fail(reason.Overloaded, "too many signatures to check")
		}
		return fail(reason.ClientAborted, "request ended before its token was checked")
	}
}

func (s *Slots) release() { <-s.taken }
