// Package ratelimit answers "how often": a GCRA limiter in integer arithmetic
// over a table of fixed size (DESIGN section 4 steps 4 and 6). The table is
// live state that outlives a reload; a Rule belongs to a snapshot.
package ratelimit

import (
	"errors"
	"fmt"
	"math"
	"math/bits"
	"time"
)

// What a rule counts by. Keys of KeyPrefix rules are chosen by whoever sends
// packets; the others exist only after routing or authentication, and the
// table keeps the two kinds apart so that one cannot crowd out the other.
const (
	KeyPrefix  = "prefix"  // client address prefix, before authentication
	KeySubject = "subject" // authenticated subject
	KeyClient  = "client"  // OAuth client
	KeyRoute   = "route"   // one bucket for a whole route
)

// maxWindow bounds how far a bucket may reach into the future (146 years), so
// that times since the table's start never overflow.
const maxWindow = math.MaxInt64 / 2

// Rule is one limit: on average Rate requests in each Per, and at most Burst
// at one instant. It must not be changed while in use; any number of
// goroutines may share it. A rule that does not pass Validate admits nothing.
type Rule struct {
	Name  string        // unique in a configuration, printable ASCII; part of every key and of the header fields
	Key   string        // KeyPrefix, KeySubject, KeyClient or KeyRoute
	Rate  int64         // requests per Per, 1 to 2^32-1
	Per   time.Duration // positive
	Burst int64         // requests at one instant, 1 to 2^32-1; also the advertised quota
}

// Validate says what is wrong with the rule, if anything.
func (r *Rule) Validate() error {
	if err := checkName(r.Name); err != nil {
		return err
	}
	switch r.Key {
	case KeyPrefix, KeySubject, KeyClient, KeyRoute:
	default:
		return fmt.Errorf("limit %q: key %q is unknown; use prefix, subject, client or route", r.Name, r.Key)
	}
	if r.Rate < 1 || r.Rate > math.MaxUint32 {
		return fmt.Errorf("limit %q: rate %d is out of range; use 1 to %d", r.Name, r.Rate, uint32(math.MaxUint32))
	}
	if r.Per <= 0 {
		return fmt.Errorf("limit %q: period %v must be positive", r.Name, r.Per)
	}
	if r.Burst < 1 || r.Burst > math.MaxUint32 {
		return fmt.Errorf("limit %q: burst %d is out of range; use 1 to %d", r.Name, r.Burst, uint32(math.MaxUint32))
	}
	if !r.valid() {
		return fmt.Errorf("limit %q: %d requests at %d per %v take longer than %v to come back; lower the burst or raise the rate",
			r.Name, r.Burst, r.Rate, r.Per, time.Duration(maxWindow))
	}
	return nil
}

// checkName holds rule names to what an RFC 9651 String may contain.
func checkName(name string) error {
	if name == "" {
		return errors.New("limit without a name")
	}
	for i := range len(name) {
		if name[i] < 0x20 || name[i] > 0x7e {
			return fmt.Errorf("limit %q: the name must be printable ASCII, because it is sent in header fields", name)
		}
	}
	return nil
}

// valid is the arithmetic part of Validate: what the limiter relies on.
func (r *Rule) valid() bool {
	if r.Rate < 1 || r.Rate > math.MaxUint32 || r.Per <= 0 || r.Burst < 1 || r.Burst > math.MaxUint32 {
		return false
	}
	w := r.window()
	return w.hi < uint64(r.Rate) && w.divCeil(uint64(r.Rate)) <= maxWindow
}

// window is how much debt a bucket can carry, in ticks. A tick is 1/Rate of a
// nanosecond: in that unit one request costs exactly Per, so that no rate has
// to be rounded.
func (r *Rule) window() ticks {
	hi, lo := bits.Mul64(uint64(r.Burst), uint64(r.Per))
	return ticks{hi, lo}
}

// ticks is an unsigned 128-bit count of 1/Rate nanoseconds.
type ticks struct{ hi, lo uint64 }

func (a ticks) add(b uint64) ticks {
	lo, carry := bits.Add64(a.lo, b, 0)
	return ticks{a.hi + carry, lo}
}

// sub returns a-b; a must not be less than b.
func (a ticks) sub(b ticks) ticks {
	lo, borrow := bits.Sub64(a.lo, b.lo, 0)
	hi, _ := bits.Sub64(a.hi, b.hi, borrow)
	return ticks{hi, lo}
}

func (a ticks) less(b ticks) bool {
	return a.hi < b.hi || a.hi == b.hi && a.lo < b.lo
}

// div returns quotient and remainder; the quotient must fit 64 bits.
func (a ticks) div(d uint64) (q, rem uint64) {
	if a.hi == 0 {
		return a.lo / d, a.lo % d
	}
	return bits.Div64(a.hi, a.lo, d)
}

func (a ticks) divCeil(d uint64) uint64 {
	q, rem := a.div(d)
	if rem > 0 {
		q++
	}
	return q
}

// cell is the state of one bucket: its theoretical arrival time (TAT),
// tat + frac/Rate nanoseconds since the table's start. A TAT in the past
// carries no information.
type cell struct {
	tat  int64
	frac uint32
}

// debt is how far the TAT lies ahead of now. Beyond the window plus the
// clock's slack no sequence of requests can have led there: the rule was
// tightened by a reload. Then the bucket counts as just emptied, so that a
// change of a rule locks nobody out, and moved is true.
func (r *Rule) debt(c cell, now int64, w ticks) (d ticks, moved bool) {
	if c.tat < now || c.tat == now && c.frac == 0 {
		return ticks{}, false
	}
	// A remainder from another rate can be too large for this one.
	frac := min(uint64(c.frac), uint64(r.Rate)-1)
	hi, lo := bits.Mul64(uint64(c.tat-now), uint64(r.Rate))
	d = ticks{hi, lo}.add(frac)
	if w.add(uint64(slack) * uint64(r.Rate)).less(d) {
		return w, true
	}
	return d, false
}

// at is the cell whose debt at now is d.
func (r *Rule) at(now int64, d ticks) cell {
	q, rem := d.div(uint64(r.Rate))
	return cell{tat: now + int64(q), frac: uint32(rem)}
}

// op is what to do with a bucket.
type op uint8

const (
	opTake op = iota
	opPeek
	opRefund
)

// step is GCRA: a request is admitted when the debt with its own cost stays
// within the window. It returns the result and the new state; write says
// whether the state changed.
func (r *Rule) step(c cell, now int64, o op) (res Result, next cell, write bool) {
	per, rate, w := uint64(r.Per), uint64(r.Rate), r.window()
	d, moved := r.debt(c, now, w)
	next, write = c, moved
	if moved {
		next = r.at(now, d)
	}
	if o == opRefund {
		if d != (ticks{}) {
			d = repaid(d, per)
			next, write = r.at(now, d), true
		}
		return r.result(d, w, true), next, write
	}
	after := d.add(per)
	if w.less(after) {
		res = r.result(d, w, false)
		res.RetryAfter = time.Duration(after.sub(w).divCeil(rate))
		return res, next, write
	}
	if o == opTake {
		d, next, write = after, r.at(now, after), true
	}
	return r.result(d, w, true), next, write
}

// repaid takes one request's cost off a debt.
func repaid(d ticks, per uint64) ticks {
	if d.less(ticks{0, per}) {
		return ticks{}
	}
	return d.sub(ticks{0, per})
}

// result describes a bucket with debt d.
func (r *Rule) result(d, w ticks, allowed bool) Result {
	res := Result{Allowed: allowed, Limit: r.Burst, Reset: time.Duration(d.divCeil(uint64(r.Rate)))}
	if d.less(w) {
		q, _ := w.sub(d).div(uint64(r.Per))
		res.Remaining = int64(q)
	}
	return res
}

// Result is what one call found.
type Result struct {
	Allowed    bool
	Limit      int64         // the rule's burst
	Remaining  int64         // requests that would still be admitted at this instant
	RetryAfter time.Duration // when not Allowed: how long until one request would be admitted
	Reset      time.Duration // how long until the bucket is full again
	// Coarse: the table was full of live keys, so the request was counted in a
	// bucket shared with others (a shorter prefix, or the rule's global one).
	Coarse bool
}
