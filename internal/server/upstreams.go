package server

import (
	"github.com/gatebook/gatebook/internal/gate/upstream"
	"github.com/gatebook/gatebook/internal/obs"
)

// upstreamCounters are what the targets of the configuration in force did; a
// reload that changes an upstream begins its counts anew.
func (s *Server) upstreamCounters() []obs.Counter {
	family := func(name, help string, level bool, read func(*upstream.TargetStats) float64) obs.Counter {
		return obs.Counter{
			Name: name, Help: help, Labels: []string{"upstream", "target"}, Level: level,
			Read: func(add func(value float64, labels ...string)) {
				for pool, p := range s.now.Load().parts.pools {
					stats := p.Stats()
					for i := range stats {
						add(read(&stats[i]), pool, stats[i].Target)
					}
				}
			},
		}
	}
	return []obs.Counter{
		family("gatebook_upstream_requests_total", "Attempts to send a request to the target.", false,
			func(t *upstream.TargetStats) float64 { return float64(t.Total) }),
		family("gatebook_upstream_failures_total", "Attempts that failed and that the target is to blame for.", false,
			func(t *upstream.TargetStats) float64 { return float64(t.Failures) }),
		family("gatebook_upstream_reused_total", "Attempts over a connection that was kept.", false,
			func(t *upstream.TargetStats) float64 { return float64(t.Reused) }),
		family("gatebook_upstream_in_flight", "Exchanges whose answer is not complete.", true,
			func(t *upstream.TargetStats) float64 { return float64(t.InFlight) }),
		family("gatebook_upstream_ejected", "1 if the target is left out after failures in a row.", true, func(t *upstream.TargetStats) float64 {
			if t.Ejected {
				return 1
			}
			return 0
		}),
	}
}
