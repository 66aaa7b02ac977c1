package authz

import (
	"context"
	"math/rand/v2"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// ShadowConfig makes a Shadow.
type ShadowConfig struct {
	Engine *Engine // the policies that are tried
	Sample int     // in a hundred requests; 1 to 100
	Queue  int     // requests that may wait; at least 1
	CPU    int     // percent of one processor; 1 to 100
	// Note keeps a difference that came too late for the record of its
	// exchange. It is called by Run's goroutine.
	Note func(*Difference) error
	// Counts is what happened so far; it outlives the Shadow.
	Counts *ShadowCounts
}

// ShadowCounts counts what became of requests. Every request that was decided
// while there were shadow policies is in exactly one of Agreed, Differed,
// Skipped, Unsampled and Readings (those whose path can be read in two ways, of
// which the recorded answer is not that of one question); Lost counts those of Differed that could not be kept.
type ShadowCounts struct {
	Agreed, Differed, Skipped, Unsampled, Readings, Late, Lost atomic.Int64
}

// Difference is a request that the shadow policies would have decided
// otherwise.
type Difference struct {
	ID          string // of the exchange
	Was, Shadow Decision
}

// Shadow asks a second set of policies about a sample of the requests, beside
// their way: Submit never waits, and one goroutine with a bounded queue and a
// share of a processor decides. Whatever happens here, the answer to the client
// is neither another one nor a later one. Safe for concurrent use.
type Shadow struct {
	c     ShadowConfig
	queue chan *ShadowTrial
	ended atomic.Bool
}

// NewShadow makes a Shadow; Run has to be called for it to decide anything.
func NewShadow(c ShadowConfig) *Shadow {
	return &Shadow{c: c, queue: make(chan *ShadowTrial, c.Queue)}
}

// Set names the shadow policies.
func (s *Shadow) Set() string { return s.c.Engine.set }

// Engine holds the shadow policies.
func (s *Shadow) Engine() *Engine { return s.c.Engine }

// The states of a trial. Whoever moves it out of trialWaits has to see to the
// difference: the exchange if it is decided in time, else Run.
const (
	trialWaits int32 = iota
	trialDecided
	trialLeft
)

// ShadowTrial is one request that waits for the shadow policies.
type ShadowTrial struct {
	id    string
	asked Request
	was   Decision
	is    Decision
	state atomic.Int32
}

// Submit hands in a request that was decided. It copies what may change, never
// waits, and returns nil if the shadow policies are not asked.
func (s *Shadow) Submit(id string, r *Request, was Decision) *ShadowTrial {
	if s.c.Sample < 100 && rand.IntN(100) >= s.c.Sample {
		s.c.Counts.Unsampled.Add(1)
		return nil
	}
	if s.ended.Load() || outsideDenied(&was) || len(s.queue) == cap(s.queue) { // before the copy costs anything
		s.c.Counts.Skipped.Add(1)
		return nil
	}
	t := &ShadowTrial{id: id, asked: *r, was: was}
	t.asked.Params = slices.Clone(r.Params)
	t.asked.Header = s.c.Engine.copyHeaders(r)
	select {
	case s.queue <- t:
		return t
	default:
		s.c.Counts.Skipped.Add(1)
		return nil
	}
}

// Leave counts a request whose path can be read in two ways: those are two
// questions, and only the stricter answer is known.
func (s *Shadow) Leave() { s.c.Counts.Readings.Add(1) }

// outsideDenied: the policies allowed it, but what they said was not kept.
func outsideDenied(d *Decision) bool {
	return !d.Allow && len(d.Policies) == 1 && strings.HasPrefix(d.Policies[0], OutsidePrefix)
}

// copyHeaders keeps the fields that the policies can look at.
func (e *Engine) copyHeaders(r *Request) func(string) []string {
	op, fault := e.operation(r)
	if fault != "" || len(op.headers) == 0 || r.Header == nil {
		return nil
	}
	kept := make(map[string][]string, len(op.headers))
	for _, h := range op.headers {
		kept[h] = slices.Clone(r.Header(h))
	}
	return func(name string) []string { return kept[name] }
}

// Take returns the shadow decision if there is one by now and it is another
// one. The exchange calls it once, right before its record is written; a
// difference that is found afterwards gets a record of its own.
func (t *ShadowTrial) Take() (d Decision, differs bool) {
	if t.state.CompareAndSwap(trialWaits, trialLeft) {
		return d, false
	}
	return t.is, t.differs()
}

func (t *ShadowTrial) differs() bool { return t.is.Allow != t.was.Allow }

// Run decides until ctx ends. What still waits then is counted as skipped.
func (s *Shadow) Run(ctx context.Context) error {
	defer s.drain()
	pause := time.NewTimer(0)
	defer pause.Stop()
	<-pause.C
	for {
		select {
		case <-ctx.Done():
			return nil
		case t := <-s.queue:
			start := time.Now()
			s.decide(t)
			if s.c.CPU >= 100 {
				continue
			}
			// Rest as long as it takes for the work to be its share.
			took := time.Since(start)
			pause.Reset(took*time.Duration(100)/time.Duration(s.c.CPU) - took)
			select {
			case <-ctx.Done():
				return nil
			case <-pause.C:
			}
		}
	}
}

func (s *Shadow) decide(t *ShadowTrial) {
	var ok bool
	if t.is, ok = s.evaluate(t); !ok {
		s.c.Counts.Skipped.Add(1)
		return // the trial goes on waiting, and its exchange leaves it
	}
	differs := t.differs()
	if differs {
		s.c.Counts.Differed.Add(1)
	} else {
		s.c.Counts.Agreed.Add(1)
	}
	if t.state.CompareAndSwap(trialWaits, trialDecided) || !differs {
		return
	}
	s.c.Counts.Late.Add(1)
	if err := s.c.Note(&Difference{ID: t.id, Was: t.was, Shadow: t.is}); err != nil {
		s.c.Counts.Lost.Add(1)
	}
}

// evaluate decides; a panic in it must not end the gate.
func (s *Shadow) evaluate(t *ShadowTrial) (d Decision, ok bool) {
	defer func() {
		if recover() != nil {
			ok = false
		}
	}()
	return s.c.Engine.Decide(&t.asked), true
}

// drain counts what is not decided any more.
func (s *Shadow) drain() {
	s.ended.Store(true)
	for {
		select {
		case <-s.queue:
			s.c.Counts.Skipped.Add(1)
		default:
			return
		}
	}
}
