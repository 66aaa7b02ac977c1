package gate

import (
	"slices"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// The most that is remembered of one connection. Whoever needs more is cut off:
// a browser skips a handful of streams, and nobody has a thousand refused.
const (
	h2MaxGaps    = 64
	h2MaxRefused = 1000
	h2MaxWaiting = 500 // net/http itself allows 100 streams and 400 that were reset
	h2MaxDropped = 100 // after a GOAWAY
)

// h2Streams knows, of the streams of one connection, which wait for a handler
// and which never had one. The streams that a handler took are not kept.
type h2Streams struct {
	max     uint32   // the highest opened; 0: none
	waiting []uint32 // opened and not accounted for, ascending
	gaps    []h2Gap  // never opened and below max, ascending
	refused []uint32 // reset by net/http before a handler took them
}

// h2Gap is a range of odd streams.
type h2Gap struct{ from, to uint32 }

// open notes a HEADERS frame. opens is false for what can only be trailers.
func (s *h2Streams) open(stream uint32) (opens bool, err *canon.H2Error) {
	if slices.Contains(s.refused, stream) || stream <= s.max && s.skipped(stream) {
		return false, h2Broken(canon.H2ProtocolError, "HEADERS on a stream that is closed")
	}
	if stream <= s.max {
		return false, nil
	}
	next := s.max + 2
	if s.max == 0 {
		next = 1
	}
	if stream > next {
		if len(s.gaps) == h2MaxGaps {
			return false, h2Broken(canon.H2Calm, "too many skipped streams")
		}
		s.gaps = append(s.gaps, h2Gap{next, stream - 2})
	}
	if len(s.waiting) >= h2MaxWaiting {
		return false, h2Broken(canon.H2Calm, "too many streams that nobody has taken")
	}
	s.max = stream
	s.waiting = append(s.waiting, stream)
	return true, nil
}

func h2Broken(code canon.H2Code, detail string) *canon.H2Error {
	return &canon.H2Error{Code: code, Reason: canon.MalformedRequest, Detail: detail}
}

func (s *h2Streams) skipped(stream uint32) bool {
	return slices.ContainsFunc(s.gaps, func(g h2Gap) bool { return g.from <= stream && stream <= g.to })
}

func (s *h2Streams) waits(stream uint32) bool { return slices.Contains(s.waiting, stream) }

// untaken tells a stream that no handler has taken.
func (s *h2Streams) untaken(stream uint32) bool {
	return s.waits(stream) || slices.Contains(s.refused, stream)
}

// take removes a stream that waits; false if it does not.
func (s *h2Streams) take(stream uint32) bool {
	i := slices.Index(s.waiting, stream)
	if i < 0 {
		return false
	}
	s.waiting = slices.Delete(s.waiting, i, i+1)
	return true
}

// reset notes a RST_STREAM of net/http, and reports whether it is the first for
// a stream that no handler took, also for one that was never opened.
func (s *h2Streams) reset(stream uint32) bool {
	if !s.take(stream) {
		opened := stream%2 == 1 && stream <= s.max && !s.skipped(stream)
		if opened || len(s.refused) >= h2MaxRefused || slices.Contains(s.refused, stream) {
			return false
		}
	}
	s.refused = append(s.refused, stream)
	return true
}

// rest takes all streams that still wait.
func (s *h2Streams) rest() []uint32 {
	left := s.waiting
	s.waiting = nil
	return left
}

// h2Budget is a rate, as the time that one more of something takes.
type h2Budget struct {
	every time.Duration // of time pays for one
	burst int64         // ahead of time
	tat   time.Duration // until when is paid for
}

// take pays for one at the time now.
func (b *h2Budget) take(now time.Duration) bool {
	at := max(b.tat, now)
	if at-now > b.every*time.Duration(b.burst) {
		return false
	}
	b.tat = at + b.every
	return true
}

// h2CreditPerFrame is how many frames of the fourth kind below a client may
// send for each frame with a head or body that it gets: some update their
// window, or measure the path, with every one.
const h2CreditPerFrame = 10

// h2Pace bounds the frames that make work and do none (reference/security.md
// C4): the rates are many times what browsers and gRPC need.
type h2Pace struct {
	resets   h2Budget // RST_STREAM (CVE-2023-44487)
	settings h2Budget
	empty    h2Budget // DATA without data
	chatter  h2Budget // PING, PRIORITY, WINDOW_UPDATE and frames unknown to us
}

func newH2Pace() h2Pace {
	return h2Pace{
		resets:   h2Budget{every: time.Second / 33, burst: 200},
		settings: h2Budget{every: time.Second, burst: 50},
		empty:    h2Budget{every: time.Second / 10, burst: 100},
		chatter:  h2Budget{every: time.Second / 200, burst: 2000},
	}
}

// take counts a frame of type t at the time now of the connection; false means
// that it is one too many.
func (p *h2Pace) take(t canon.H2Type, now time.Duration, credit *atomic.Int64) bool {
	switch t {
	case canon.H2Reset:
		return p.resets.take(now)
	case canon.H2Settings:
		return p.settings.take(now)
	case canon.H2Data:
		return p.empty.take(now)
	}
	if p.chatter.take(now) {
		return true
	}
	earned := min(credit.Swap(0), p.chatter.burst)
	p.chatter.tat -= p.chatter.every * time.Duration(earned)
	return p.chatter.take(now)
}
