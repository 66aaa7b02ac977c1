package deliver

import (
	"math/rand/v2"
	"time"
)

// gate says when a sink may be tried again: full-jitter exponential back-off,
// and a breaker that lets one batch at a time through until one succeeds.
type gate struct {
	level int // failures in a row
	until time.Time
}

// backoff is a random time up to base doubled with each failure, at most most,
// and never nothing.
func backoff(base, most time.Duration, failures int) time.Duration {
	top := most
	if failures < 30 {
		top = min(most, base<<max(failures-1, 0))
	}
	return base/8 + rand.N(max(top, 1))
}

// fail closes the gate after a failure, at least for as long as the sink asked.
// What fails while it is closed was under way before and says nothing new.
func (g *gate) fail(now time.Time, c *SinkConfig, after time.Duration) {
	if !now.Before(g.until) || g.level == 0 {
		g.level++
		g.until = now.Add(backoff(c.BackoffMin, c.BackoffMax, g.level))
	}
	g.atLeast(now, min(after, c.AfterMax))
}

func (g *gate) atLeast(now time.Time, d time.Duration) {
	if t := now.Add(d); d > 0 && t.After(g.until) {
		g.until = t
	}
}

func (g *gate) open() { *g = gate{} }
