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
	sends int64 // sends that had begun when it was closed
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

// fail closes the gate after send n failed, at least for as long as the sink
// asked. A send that was under way already when it was closed says nothing new.
func (g *gate) fail(now time.Time, c *SinkConfig, after time.Duration, n, sends int64) {
	if g.level == 0 || n > g.sends {
		g.level++
		g.sends = sends
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
