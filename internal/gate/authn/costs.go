package authn

import "sync/atomic"

// VerifyCosts is what was spent on signatures, and what was not, since Slots were
// made.
type VerifyCosts struct {
	Running                 int    // signatures being checked now
	AtOnce, Waited, Refused uint64 // checked without and after waiting, and requests for which there was no time
}

// FetchCosts is what an issuer's keys have cost since its JWT was made.
type FetchCosts struct {
	Good, Failed uint64 // fetches
	Withheld     uint64 // fetches that a request wanted and the budget did not allow
}

// verifyCounts and fetchCounts are counted where the cost arises.
type verifyCounts struct{ atOnce, waited, refused atomic.Uint64 }

type fetchCounts struct{ good, failed, withheld atomic.Uint64 }

// Costs looks at the counters. It is safe for concurrent use.
func (s *Slots) Costs() VerifyCosts {
	return VerifyCosts{len(s.taken), s.counts.atOnce.Load(), s.counts.waited.Load(), s.counts.refused.Load()}
}

// Costs looks at the counters. It is safe for concurrent use.
func (j *JWT) Costs() FetchCosts {
	c := &j.keys.costs
	return FetchCosts{c.good.Load(), c.failed.Load(), c.withheld.Load()}
}
