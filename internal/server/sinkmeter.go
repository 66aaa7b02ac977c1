package server

import (
	"context"
	"fmt"
	"maps"
	"sync"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// sinkMeter counts what a sink answers, by grade and by cause. Of a sink for
// alerts it hands on nothing else.
type sinkMeter struct {
	inner  deliver.Sink
	alerts bool

	mu        sync.Mutex
	delivered map[string]uint64 // under mu; records by grade
	retries   map[string]uint64 // under mu; sends that settled nothing, by cause
	maybe     uint64            // under mu; records that may have arrived though nobody said so
}

// metered puts a meter before a sink. The optional abilities of the sink stay.
func metered(s deliver.Sink, alerts bool) (*sinkMeter, deliver.Sink) {
	m := &sinkMeter{inner: s, alerts: alerts, delivered: map[string]uint64{}, retries: map[string]uint64{}}
	renewer, renews := s.(deliver.Renewer)
	finder, finds := s.(deliver.Finder)
	switch {
	case renews && finds && !alerts:
		return m, struct {
			*sinkMeter
			deliver.Renewer
			deliver.Finder
		}{m, renewer, finder}
	case finds && !alerts:
		return m, struct {
			*sinkMeter
			deliver.Finder
		}{m, finder}
	case renews:
		return m, struct {
			*sinkMeter
			deliver.Renewer
		}{m, renewer}
	}
	return m, m
}

// Limits implements deliver.Sink.
func (m *sinkMeter) Limits() deliver.Limits { return m.inner.Limits() }

// Grade implements deliver.Sink.
func (m *sinkMeter) Grade() deliver.Grade { return m.inner.Grade() }

// Test implements deliver.Sink.
func (m *sinkMeter) Test(ctx context.Context) error { return m.inner.Test(ctx) }

// Send implements deliver.Sink.
func (m *sinkMeter) Send(ctx context.Context, b *deliver.Batch) deliver.Result {
	if m.alerts {
		return m.sendAlerts(ctx, b)
	}
	r := m.inner.Send(ctx, b)
	m.count(&r, len(b.Items))
	return r
}

// sendAlerts sends the alerts of a batch. What is none has arrived at once: it
// was never to be sent.
func (m *sinkMeter) sendAlerts(ctx context.Context, b *deliver.Batch) deliver.Result {
	some := deliver.Batch{Planned: b.Planned, Attempt: b.Attempt}
	var at []int
	for i := range b.Items {
		if b.Items[i].Kind == string(record.KindAlert) {
			some.Items = append(some.Items, b.Items[i])
			at = append(at, i)
		}
	}
	passed := deliver.Result{Class: deliver.Done, Grade: m.inner.Grade(), Passed: true}
	if len(at) == 0 {
		return passed
	}
	r := m.inner.Send(ctx, &some)
	if r.Items != nil && len(r.Items) != len(some.Items) {
		// Which of them is about which alert is not known, so nothing of it is believed.
		r = deliver.Result{Class: deliver.Retry, Ambiguous: true, Status: r.Status, Cause: "item_count",
			Detail: fmt.Sprintf("%d results for %d items", len(r.Items), len(some.Items))}
	}
	m.count(&r, len(some.Items))
	if len(at) == len(b.Items) || r.Items == nil && r.Class != deliver.Done {
		return r // about the batch as a whole; the engine finds out about parts of it
	}
	out := deliver.Result{Items: make([]deliver.Result, len(b.Items))}
	for i := range out.Items {
		out.Items[i] = passed
	}
	for n, i := range at {
		if out.Items[i] = r; r.Items != nil {
			out.Items[i] = r.Items[n]
		}
	}
	return out
}

func (m *sinkMeter) count(r *deliver.Result, records int) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if r.Items == nil {
		m.one(r, records)
		return
	}
	for i := range r.Items {
		m.one(&r.Items[i], 1)
	}
}

// mostCauses bounds the causes that are told apart.
const mostCauses = 64

func (m *sinkMeter) one(r *deliver.Result, records int) {
	if r.Class == deliver.Done {
		m.delivered[r.Grade.String()] += uint64(records)
		return
	}
	cause := r.Cause
	if cause == "" {
		cause = r.Class.String()
	}
	if _, known := m.retries[cause]; !known && len(m.retries) >= mostCauses {
		cause = "other" // some causes have a number of the sink's choice
	}
	m.retries[cause]++
	if r.Ambiguous {
		m.maybe += uint64(records)
	}
}

// counts are copies of what was counted.
func (m *sinkMeter) counts() (delivered, retries map[string]uint64, maybe uint64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return maps.Clone(m.delivered), maps.Clone(m.retries), m.maybe
}
