package ratelimit

import (
	"math"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// slack is how far apart the times of concurrent callers may lie without
	// meaning that a clock was set.
	slack = time.Second
	// grain is how rarely the high-water mark is written, to keep its cache
	// line shared between processors.
	grain = time.Millisecond
)

// clock turns the callers' times into nanoseconds since start that never fall
// behind by more than slack. Two kinds of time arrive here:
//   - with a monotonic reading, as time.Now gives: it cannot be set, so an old
//     value only means a caller that was held up; it counts as the newest time
//     seen, which neither opens a bucket nor keeps one shut.
//   - wall time only: a value far behind means the clock was set back; from
//     there on time continues from the newest one seen.
type clock struct {
	start time.Time
	mono  bool         // start has a monotonic reading
	high  atomic.Int64 // newest time seen, at most grain behind
	shift atomic.Int64 // sum of backward steps of the wall clock

	mu sync.Mutex // serialises changes of shift
}

func (c *clock) init(start time.Time) {
	c.start, c.mono = start, monotonic(start)
	c.high.Store(math.MinInt64)
}

// monotonic says whether t carries a monotonic reading: Round(0) strips it,
// and == compares it (package time, "Monotonic Clocks").
func monotonic(t time.Time) bool { return t != t.Round(0) }

func (c *clock) now(t time.Time) int64 {
	elapsed := int64(t.Sub(c.start))
	ns := elapsed + c.shift.Load()
	high := c.high.Load()
	if ns > high {
		if high == math.MinInt64 || ns-high > int64(grain) {
			c.high.CompareAndSwap(high, ns)
		}
		return ns
	}
	if high-ns <= int64(slack) {
		return ns
	}
	if c.mono && monotonic(t) {
		return high
	}
	return c.stepped(elapsed)
}

// stepped absorbs a backward step of the wall clock.
func (c *clock) stepped(elapsed int64) int64 {
	c.mu.Lock()
	defer c.mu.Unlock()
	high, shift := c.high.Load(), c.shift.Load()
	if high-(elapsed+shift) > int64(slack) {
		shift = high - elapsed
		c.shift.Store(shift)
	}
	return elapsed + shift
}
