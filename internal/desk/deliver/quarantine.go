package deliver

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"time"
	"unicode/utf8"

	"github.com/gatebook/gatebook/internal/book"
)

// Quarantined is a record that a sink will never take as it is. It stays in the
// book; here stands why.
type Quarantined struct {
	V          int       `json:"v"`
	Sink       string    `json:"sink"`
	ID         string    `json:"id"`
	Origin     string    `json:"origin"`
	Index      uint64    `json:"index"`
	Kind       string    `json:"kind"`
	Time       time.Time `json:"time"`
	Since      time.Time `json:"since"`
	Class      string    `json:"class"` // "poison", "split"
	Status     int       `json:"status,omitempty"`
	Cause      string    `json:"cause"`
	Detail     string    `json:"detail,omitempty"` // at most 512 bytes of the answer
	Attempts   int       `json:"attempts"`
	Ambiguous  bool      `json:"ambiguous,omitempty"` // it may be there all the same
	Projection string    `json:"projection"`
	Version    int       `json:"version"`
}

func (q *Quarantined) encode() ([]byte, error) { return json.Marshal(q) }

// decodeQuarantined reads what encode wrote and refuses everything else.
func decodeQuarantined(b []byte) (*Quarantined, error) {
	q := &Quarantined{}
	if err := decodeStored(b, q); err != nil {
		return nil, err
	}
	if q.V != stateVersion {
		return nil, fmt.Errorf("%w: quarantine version %d is unknown to this release", ErrState, q.V)
	}
	if q.Sink == "" || q.Origin == "" || q.ID != EventID(q.Origin, q.Index) || q.Attempts < 0 || len(q.Detail) > maxDetail || !utf8.ValidString(q.Detail) {
		return nil, fmt.Errorf("%w: a quarantined record", ErrState)
	}
	return q, nil
}

// jail is what is known of a sink's quarantine without asking the store.
type jail struct {
	index map[uint64]struct{} // of this log
	other int                 // of earlier logs
	low   uint64              // of index, if known
	known bool
	maybe map[uint64]struct{} // of index; may be at the sink all the same
	// waived are those of this log that a comparison must not miss.
	waived map[uint64]struct{}
}

func (j *jail) add(i uint64) {
	if len(j.index) == 0 {
		j.low, j.known = i, true
	}
	j.index[i] = struct{}{}
	j.low = min(j.low, i) // of no meaning unless known
}

func (j *jail) remove(i uint64) {
	delete(j.index, i)
	delete(j.maybe, i)
	j.known = j.known && i != j.low
}

func (j *jail) depth() int { return len(j.index) + j.other }

// lowest returns the lowest index in quarantine. It is asked after everything that
// happens, and a quarantine may be large.
func (j *jail) lowest() (low uint64, ok bool) {
	if !j.known {
		for i := range j.index {
			if !j.known || i < j.low {
				j.low, j.known = i, true
			}
		}
	}
	return j.low, j.known && len(j.index) > 0
}

// loadJail reads what is in quarantine. What was known before stays if that fails:
// half of it would let go of the other half.
func (r *runner) loadJail() error {
	j := jail{index: map[uint64]struct{}{}, maybe: map[uint64]struct{}{}, waived: map[uint64]struct{}{}}
	err := r.eng.quarantine(r.ctx, quarantineTable, r.c.Name, func(q *Quarantined) {
		if q.Origin != r.eng.origin {
			j.other++
			return
		}
		if j.add(q.Index); q.Ambiguous {
			j.maybe[q.Index] = struct{}{}
		}
	})
	if err == nil {
		err = r.eng.quarantine(r.ctx, waivedTable, r.c.Name, func(q *Quarantined) {
			if q.Origin == r.eng.origin {
				j.waived[q.Index] = struct{}{}
			}
		})
	}
	if err == nil {
		r.jail = j
	}
	return err
}

func jailKey(sink, id string) string { return sink + "/" + id }

// doom is an item that is to be put into the quarantine.
type doom struct {
	b   *batch
	i   int
	res Result
}

// refuse puts an item into the quarantine, now or as soon as that can be
// written. It is settled only then.
func (r *runner) refuse(now time.Time, b *batch, i int, res *Result) {
	d := doom{b, i, *res}
	if err := r.imprison(now, &d); err != nil {
		r.trouble("writing the quarantine", err)
		r.doomed = append(r.doomed, d)
		r.doomAt = now.Add(retryWrite)
	}
}

// retryDoomed tries again what could not be written.
func (r *runner) retryDoomed(now time.Time) {
	if len(r.doomed) == 0 || now.Before(r.doomAt) {
		return
	}
	r.doomAt = now.Add(retryWrite)
	for len(r.doomed) > 0 {
		if err := r.imprison(now, &r.doomed[0]); err != nil {
			r.trouble("writing the quarantine", err)
			return
		}
		r.doomed = r.doomed[1:]
	}
	r.advance()
}

func (r *runner) imprison(now time.Time, d *doom) error {
	it, f := &d.b.items[d.i], &d.b.fate[d.i]
	if f.settled {
		return nil
	}
	q := &Quarantined{
		V: stateVersion, Sink: r.c.Name, ID: it.ID, Origin: r.eng.origin, Index: it.Index, Kind: it.Kind, Time: it.Time.UTC(), Since: now.UTC(),
		Class: d.res.Class.String(), Status: d.res.Status, Cause: d.res.Cause, Detail: scrub(d.res.Detail), Attempts: f.attempts, Ambiguous: f.ambiguous,
		Projection: r.proj.Name(), Version: r.proj.Version(),
	}
	value, err := q.encode()
	if err == nil {
		err = r.eng.state.Put(r.sendCtx, quarantineTable, jailKey(q.Sink, q.ID), value, time.Time{})
	}
	if err != nil {
		return err
	}
	r.eng.log.Warn("a sink does not take a record; it is in quarantine", "sink", q.Sink, "id", q.ID, "index", q.Index, "cause", q.Cause, "status", q.Status, "attempts", q.Attempts)
	if r.jail.add(q.Index); q.Ambiguous {
		r.jail.maybe[q.Index] = struct{}{}
	}
	f.settled = true
	d.b.left--
	r.sum.Quarantined++
	r.well("writing the quarantine")
	d.b.sum.add(tally{Quarantined: 1})
	return nil
}

// String is the word for a class in states and records.
func (c Class) String() string {
	names := [...]string{"done", "retry", "split", "poison", "pause"}
	if int(c) < len(names) {
		return names[c]
	}
	return "unknown"
}

// released takes a record out of the quarantine that was delivered after all.
func (r *runner) released(index uint64) {
	if _, ok := r.jail.index[index]; !ok {
		return
	}
	id := r.id(index)
	if err := r.eng.state.Delete(r.sendCtx, quarantineTable, jailKey(r.c.Name, id)); err != nil {
		// It stays listed, and may be sent once more: never the other way round.
		r.trouble("writing the quarantine", err)
		return
	}
	r.jail.remove(index)
	r.well("writing the quarantine")
	r.eng.log.Info("a record was delivered out of the quarantine", "sink", r.c.Name, "id", id)
}

// errandSpan is how far apart records may be that are read for one errand.
const errandSpan = 1 << 16

// makeErrand sends the next of those records that are to be sent again.
func (r *runner) makeErrand(now time.Time) {
	if len(r.resend) == 0 || len(r.errands) > 0 || r.halted() || now.Before(r.readAt) {
		return
	}
	n := 1
	for n < len(r.resend) && n < r.lim.Items && r.resend[n]-r.resend[0] < errandSpan {
		n++
	}
	take := r.resend[:n]
	d := draft{m: &r.maker, b: &batch{from: take[0], planned: now.UTC()}, most: r.lim.Items}
	left := 0
	_, err := r.entries(take[0], take[n-1]+1, r.signed, func(e *book.Entry) bool {
		if at, ok := slices.BinarySearch(take, e.Index); ok && !d.add(e, true) {
			left = n - at
			return false
		}
		return true
	})
	if err == nil && d.away != nil && len(d.b.items) == 0 {
		err = d.away
	}
	if err != nil {
		r.unreadable(now, rereading, err)
		return
	}
	r.readable(rereading)
	b := d.finish(take[n-1] + 1)
	r.resend = r.resend[n-left:]
	if len(b.items) == 0 {
		return
	}
	for i := range b.items {
		if _, ok := r.jail.maybe[b.items[i].Index]; ok {
			b.fate[i].ambiguous = true
		}
	}
	b.errand = true
	r.errands = append(r.errands, b)
	r.hold(b)
	r.planned(b)
	r.advance() // all of it may be in quarantine again already
}

// requeued are those of the indexes that are in quarantine still, and not under way
// already: they were picked some time ago, and another act may have been quicker.
func (r *runner) requeued(indexes []uint64) []uint64 {
	return slices.DeleteFunc(slices.Clone(indexes), func(index uint64) bool {
		if _, ok := r.jail.index[index]; !ok {
			return true
		}
		return slices.ContainsFunc(r.errands, func(b *batch) bool {
			i, ok := slices.BinarySearchFunc(b.items, index, func(it Item, at uint64) int { return cmp.Compare(it.Index, at) })
			return ok && !b.fate[i].settled
		})
	})
}

// indexOf is the index of an id of this log.
func (r *runner) indexOf(id string) (index uint64, ok bool) {
	rest, ours := strings.CutPrefix(id, r.prefix)
	index, err := strconv.ParseUint(rest, 10, 64)
	return index, ours && err == nil && r.id(index) == id
}

// sendAgain adds indexes to those that are to be sent once more.
func (r *runner) sendAgain(indexes []uint64) {
	r.resend = append(r.resend, indexes...)
	slices.Sort(r.resend)
	r.resend = slices.Compact(r.resend)
}

// ErrNotQuarantined means that an id is not in the quarantine of a sink: of a
// record that was delivered, of another log, or of none.
var ErrNotQuarantined = errors.New("is not in the quarantine of this sink")

// pick finds the indexes for ids; nil means all.
func (r *runner) pick(ids []string) ([]uint64, error) {
	var out []uint64
	if ids == nil {
		for i := range r.jail.index {
			out = append(out, i)
		}
		slices.Sort(out)
		return out, nil
	}
	for _, id := range ids {
		index, ok := r.indexOf(id)
		if !ok {
			return nil, fmt.Errorf("%.80q is not an id of this log and %w", id, ErrNotQuarantined)
		}
		if _, ok := r.jail.index[index]; !ok {
			return nil, fmt.Errorf("%.80q %w", id, ErrNotQuarantined)
		}
		out = append(out, index)
	}
	slices.Sort(out)
	return slices.Compact(out), nil
}
