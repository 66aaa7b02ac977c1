// Package pace keeps long work from keeping requests waiting: whoever reads,
// seals, projects or compresses many records beside the traffic gives way every
// 100 microseconds, so that it also does on a single processor.
package pace

import (
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Group is the long work of one process, as far as it gives way to the same
// traffic: all of it together gets one slice between two looks at the network, so
// that three sinks make nobody wait three times as long. A nil Group is one of
// its own for every Slicer. It is safe for concurrent use.
type Group struct {
	ends    atomic.Uint64 // slices that have ended
	refused atomic.Uint64 // times that somebody had to look again

	mu    sync.Mutex
	turns []*turn // under mu; that nobody uses
}

// turnsMost is how many turns a group keeps: making one is six system calls.
const turnsMost = 8

// turn is one that nobody uses, or a new one; nil if there can be none.
func (g *Group) turn() *turn {
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := len(g.turns); n > 0 {
		t := g.turns[n-1]
		g.turns = g.turns[:n-1]
		return t
	}
	return newTurn()
}

// keep takes a turn back.
func (g *Group) keep(t *turn) {
	g.mu.Lock()
	defer g.mu.Unlock()
	if len(g.turns) < turnsMost {
		g.turns = append(g.turns, t)
		return
	}
	t.close()
}

// Slicer makes long work yield to traffic. It belongs to one goroutine, which
// closes it.
type Slicer struct {
	group *Group
	own   bool // the group is this Slicer's alone
	now   func() time.Time
	begun time.Time
	seen  uint64 // refusals of the group when it last looked
	turn  *turn  // nil until the first slice ends, or if there can be none
	tried bool
}

// sliceLength is how long work off the request path goes on without letting
// others run.
const sliceLength = 100 * time.Microsecond

// sliceEarly is when a slice ends at the next yield: what is done between two of
// them takes less than the rest.
const sliceEarly = sliceLength / 4

// mostRefused bounds how often somebody looks again because another slice came
// first: work may be slow beside other work, and goes on.
const mostRefused = 4

// New begins a slice by the clock given.
func (g *Group) New(now func() time.Time) *Slicer {
	own := g == nil
	if own {
		g = &Group{}
	}
	return &Slicer{group: g, own: own, now: now, begun: now()}
}

// Yield ends the slice if it has been long enough, and lets everything else run
// that can.
func (s *Slicer) Yield() {
	if now := s.now(); now.Sub(s.begun) > sliceEarly {
		s.rest()
		s.begun = s.now()
	}
}

// rest returns when the network was looked at after the last slice of the
// group.
func (s *Slicer) rest() {
	s.group.ends.Add(1)
	if r := s.group.refused.Load(); r != s.seen {
		s.seen = r
		s.look() // others were before
	}
	for range mostRefused {
		before := s.group.ends.Load()
		s.look()
		if s.group.ends.Load() == before {
			return
		}
		s.group.refused.Add(1)
	}
}

func (s *Slicer) look() {
	if !s.tried {
		s.tried = true
		s.turn = s.group.turn()
	}
	if s.turn != nil && s.turn.wait() {
		return
	}
	if s.turn != nil { // what it said and did not take back would fill the pipe
		s.turn.close()
		s.turn = nil
	}
	runtime.Gosched()
}

// Close lets go of what Yield needed. The Slicer may be used and closed again.
func (s *Slicer) Close() {
	switch {
	case s.turn == nil:
	case s.own:
		s.turn.close()
	default:
		s.group.keep(s.turn)
	}
	s.turn, s.tried = nil, false
}

// turn lets connections that have something to say come first. runtime.Gosched
// does not: with one processor the scheduler finds the goroutine that gave way
// runnable, takes it again and never asks the network, until 10 ms have passed.
// So the goroutine waits for a byte of its own, like those it gives way to: when
// it wakes up, the network has been asked, and all who were found ready with
// it have been put in line.
type turn struct {
	r, w *os.File
	raw  syscall.RawConn
	said bool
	b    [1]byte
}

// newTurn returns nil where there is no such pipe; giving way is then what
// runtime.Gosched does.
func newTurn() *turn {
	r, w, err := os.Pipe()
	if err != nil {
		return nil
	}
	t := &turn{r: r, w: w}
	if t.raw, err = r.SyscallConn(); err != nil {
		t.close()
		return nil
	}
	return t
}

// wait reports whether it waited.
func (t *turn) wait() bool {
	t.said = false
	return t.raw.Read(t.step) == nil && t.said
}

// step says a byte, waits until the poller has noticed, and takes it back.
func (t *turn) step(fd uintptr) (done bool) {
	if !t.said {
		_, err := t.w.Write(t.b[:])
		t.said = err == nil
		return err != nil
	}
	_, err := syscall.Read(int(fd), t.b[:])
	return err != syscall.EAGAIN && err != syscall.EINTR
}

func (t *turn) close() {
	_, _ = t.r.Close(), t.w.Close()
}
