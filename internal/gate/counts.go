package gate

import (
	"sync/atomic"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/reason"
)

// countKinds are the kinds of record that a gate makes.
var countKinds = [...]record.Kind{record.KindRequest, record.KindHandshake, record.KindToken, record.KindSession, record.KindMalformed}

// countClasses are the classes of a status; the first is for none.
var countClasses = [...]string{record.None, "1xx", "2xx", "3xx", "4xx", "5xx"}

// counts is how many records a gate has finished, by kind, reason and class of
// the status. The lists are closed, so that no client can make it grow. What
// was counted into a fold counts like what was written.
type counts struct {
	reasons []string // by reason.Reason.Number, and one for what is outside the list
	n       []atomic.Uint64
}

func newCounts() counts {
	c := counts{reasons: []string{record.None}}
	for _, r := range reason.All() {
		c.reasons = append(c.reasons, string(r))
	}
	c.reasons = append(c.reasons, record.Other)
	c.n = make([]atomic.Uint64, len(countKinds)*len(c.reasons)*len(countClasses))
	return c
}

// add counts one record. It must have been handed to the book and its answer
// not yet released, so that who has the answer sees the count.
func (c *counts) add(kind record.Kind, why reason.Reason, status int) {
	k := 0
	for k < len(countKinds)-1 && countKinds[k] != kind {
		k++
	}
	class := status / 100
	if class < 0 || class >= len(countClasses) {
		class = 0
	}
	r := why.Number()
	if r < 0 {
		r = len(c.reasons) - 1
	}
	c.n[(k*len(c.reasons)+r)*len(countClasses)+class].Add(1)
}

// Finished calls each for every combination of kind of record, reason ("none",
// if nothing went wrong) and class of the status ("2xx" and so on, "none" if
// there is none) of which there has been a record. A record that the book did
// not take is counted with the book's reason. It is safe for concurrent use.
func (g *Gate) Finished(each func(kind, why, class string, n uint64)) {
	c := &g.counts
	for i := range c.n {
		if n := c.n[i].Load(); n > 0 {
			class, rest := i%len(countClasses), i/len(countClasses)
			each(string(countKinds[rest/len(c.reasons)]), c.reasons[rest%len(c.reasons)], countClasses[class], n)
		}
	}
}
