package upstream

import (
	"crypto/tls"
	"log/slog"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// What a target's breaker was when an exchange chose it.
const (
	BreakerClosed   = "closed"    // healthy
	BreakerHalfOpen = "half_open" // this exchange was the probe after an ejection
	BreakerOpen     = "open"      // ejected: not tried
)

// target is one server of a pool.
type target struct {
	name      string // as configured, for people
	scheme    string
	addr      string // host:port
	hostField string // sent as Host unless the client's is preserved
	tls       *tls.Config

	inflight atomic.Int64
	total    atomic.Uint64
	failures atomic.Uint64
	reused   atomic.Uint64
	streak   atomic.Int64 // failures in a row
	until    atomic.Int64 // ejected until, Unix nanoseconds; 0 healthy
	sick     atomic.Bool  // by active checks; changed under health.mu
	health   health
	kept     kept

	mu        sync.Mutex
	ejections int  // mu; in a row, sets the length of the next
	probing   bool // mu; an exchange is trying an ejected target
}

// TargetStats is a snapshot of one target's counters.
type TargetStats struct {
	Target       string
	InFlight     int64     // exchanges whose response is not complete
	Total        uint64    // attempts
	Failures     uint64    // attempts that the target is to blame for
	Reused       uint64    // attempts over a kept connection
	Ejected      bool      // not used until its probe succeeds
	EjectedUntil time.Time // when the next probe may go out; zero if healthy

	Health       string    // one of the Health constants
	HealthSince  time.Time // when it last changed; zero if it never did
	Checks       uint64
	FailedChecks uint64
	LastCheck    string // why the newest check failed, "" if it passed
}

func (t *target) stats() TargetStats {
	s := TargetStats{Target: t.name, InFlight: t.inflight.Load(), Total: t.total.Load(), Failures: t.failures.Load(), Reused: t.reused.Load()}
	if until := t.until.Load(); until != 0 {
		s.Ejected, s.EjectedUntil = true, time.Unix(0, until)
	}
	t.health.state(&s, t.sick.Load())
	return s
}

// tryProbe makes the caller the one probe of an ejected target whose time is
// over.
func (t *target) tryProbe(now time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	until := t.until.Load()
	if until == 0 || now.UnixNano() < until || t.probing {
		return false
	}
	t.probing = true
	return true
}

// choice is a target chosen for an attempt. Exactly one of ok, failed and
// neutral must follow.
type choice struct {
	*target
	probe bool
}

func (c choice) breaker() string {
	if c.probe {
		return BreakerHalfOpen
	}
	return BreakerClosed
}

// ok notes an answer. It ends an ejection only if it was the probe's: the
// answer to an older exchange says nothing about now.
func (c choice) ok(log *slog.Logger) {
	if c.streak.Load() != 0 {
		c.streak.Store(0)
	}
	if !c.probe {
		return
	}
	c.mu.Lock()
	c.probing = false
	c.ejections = 0
	c.until.Store(0)
	c.mu.Unlock()
	log.Info("upstream target is back", "target", c.name)
}

// neutral notes an attempt that says nothing about the target.
func (c choice) neutral() {
	if !c.probe {
		return
	}
	c.mu.Lock()
	c.probing = false
	c.mu.Unlock()
}

// failed notes a failed attempt and ejects the target if it is one too many.
func (c choice) failed(e Ejection, now time.Time, log *slog.Logger) {
	c.failures.Add(1)
	streak := c.streak.Add(1)
	if !c.probe && (e.Failures < 0 || streak < int64(e.Failures)) {
		return
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.probe && c.until.Load() != 0 {
		return // another exchange ejected it; only the probe prolongs
	}
	if c.probe {
		c.probing = false
	}
	d := e.BaseTime
	for i := 0; i < c.ejections && d < e.MaxTime; i++ {
		d *= 2
	}
	d = min(d, e.MaxTime)
	c.ejections++
	c.until.Store(now.Add(d).UnixNano())
	log.Warn("upstream target is ejected", "target", c.name, "failures", streak, "for", d)
}

// pick chooses a target that is not in tried and that checks do not call
// unhealthy, from start on: an ejected one whose time is over goes first, as a
// probe; else by the pool's balance.
func (p *Pool) pick(start, tried uint64) (choice, bool) {
	n := uint64(len(p.targets))
	var best *target
	least := int64(math.MaxInt64)
	for i := range n {
		k := (start + i) % n
		t := p.targets[k]
		if tried&(1<<k) != 0 || t.sick.Load() {
			continue
		}
		if t.until.Load() != 0 {
			if t.tryProbe(p.cfg.Now()) {
				return choice{t, true}, true
			}
			continue
		}
		load := int64(0)
		if p.leastRequests {
			load = t.inflight.Load()
		}
		if load < least {
			best, least = t, load
		}
	}
	return choice{best, false}, best != nil
}
