package server

import (
	"context"
	"errors"
	"net/http"
	"time"

	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/obs"
)

// sinkDesk is delivery as administration sees it.
type sinkDesk struct{ *delivery }

// All implements admin.Sinks.
func (d sinkDesk) All() []admin.SinkStatus {
	out := []admin.SinkStatus{}
	for _, s := range d.engine.Status() {
		out = append(out, d.statusOf(&s))
	}
	return out
}

func (d *delivery) statusOf(s *deliver.Status) admin.SinkStatus {
	out := admin.SinkStatus{
		Name: s.Name, State: string(s.State), Why: s.Cause, Grade: s.Grade, Project: s.Projection, Fields: []string{}, Cursor: s.Cursor, Signed: s.Signed,
		Lag: s.Lag, Oldest: s.LagSeconds, Quarantine: s.Quarantine, Resending: s.Resending, Receipted: s.Receipted, Compared: s.Compared,
		Duplicates: uint64(max(s.Ambiguous, 0)), NextTry: s.NextTry, LastDone: s.LastSuccess, LastError: s.LastError, Alarms: s.Alarms,
		Delivered: map[string]uint64{}, Retries: map[string]uint64{},
	}
	if s.Lag > 0 && !s.LastSuccess.IsZero() {
		out.LagSeconds = max(time.Since(s.LastSuccess).Seconds(), 0)
	}
	if live := d.current(s.Name); live != nil {
		out.Type = live.conf.Type
		out.Fields = append(out.Fields, live.conf.Fields...)
		out.Delivered, out.Retries, _ = live.meter.counts()
	}
	return out
}

// Find implements admin.Sinks.
func (d sinkDesk) Find(name string) (admin.SinkStatus, error) {
	for _, s := range d.engine.Status() {
		if s.Name == name {
			return d.statusOf(&s), nil
		}
	}
	return admin.SinkStatus{}, sinkProblem(deliver.ErrUnknownSink)
}

// sinkProblem makes a wish that cannot be granted a problem on the wire.
func sinkProblem(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, deliver.ErrUnknownSink), errors.Is(err, deliver.ErrNotQuarantined):
		return &admin.Problem{Title: err.Error(), Status: http.StatusNotFound, Code: 3}
	}
	return &admin.Problem{Title: err.Error(), Status: http.StatusConflict, Code: 1}
}

// Quarantine implements admin.Sinks.
func (d sinkDesk) Quarantine(ctx context.Context, name string) ([]admin.QuarantinedRecord, error) {
	list, err := d.engine.Quarantine(ctx, name)
	if err != nil {
		return nil, err
	}
	out := []admin.QuarantinedRecord{}
	for i := range list {
		q := &list[i]
		out = append(out, admin.QuarantinedRecord{
			ID: q.ID, Index: q.Index, Kind: q.Kind, Time: q.Time, Since: q.Since, Cause: q.Cause, Status: q.Status, Detail: q.Detail,
			Attempts: q.Attempts, Ambiguous: q.Ambiguous,
		})
	}
	return out, nil
}

// Pause implements admin.Sinks.
func (d sinkDesk) Pause(ctx context.Context, who *admin.Caller, name string) error {
	return sinkProblem(d.engine.Pause(ctx, who.Describe, name))
}

// Resume implements admin.Sinks.
func (d sinkDesk) Resume(ctx context.Context, who *admin.Caller, name string) error {
	return sinkProblem(d.engine.Resume(ctx, who.Describe, name))
}

// Replay implements admin.Sinks.
func (d sinkDesk) Replay(ctx context.Context, who *admin.Caller, name string, r admin.SinkReplay) (uint64, error) {
	if r.From != nil {
		return *r.From, sinkProblem(d.engine.Replay(ctx, who.Describe, name, *r.From))
	}
	from, err := d.engine.ReplayTime(ctx, who.Describe, name, r.Since)
	return from, sinkProblem(err)
}

// Requeue implements admin.Sinks.
func (d sinkDesk) Requeue(ctx context.Context, who *admin.Caller, name string, pick admin.SinkPick) (int, error) {
	n, err := d.engine.Requeue(ctx, who.Describe, name, pick.IDs)
	return n, sinkProblem(err)
}

// Waive implements admin.Sinks.
func (d sinkDesk) Waive(ctx context.Context, who *admin.Caller, name string, pick admin.SinkPick) (int, error) {
	n, err := d.engine.Waive(ctx, who.Describe, name, pick.IDs, pick.Reason)
	return n, sinkProblem(err)
}

// Test implements admin.Sinks.
func (d sinkDesk) Test(ctx context.Context, who *admin.Caller, name string) error {
	return sinkProblem(d.engine.Test(ctx, who.Describe, name))
}

// notes are what readiness says of sinks.
func (d *delivery) notes() []string { return d.engine.Ready() }

// counters are the metrics of delivery, by sink.
func (d *delivery) counters() []obs.Counter {
	level := func(name, help string, of func(*admin.SinkStatus) float64) obs.Counter {
		return obs.Counter{Name: name, Help: help, Labels: []string{"sink"}, Level: true, Read: func(add func(float64, ...string)) {
			for _, s := range d.statuses() {
				add(of(&s), s.Name)
			}
		}}
	}
	family := func(name, help, label string, of func(*admin.SinkStatus) map[string]uint64) obs.Counter {
		return obs.Counter{Name: name, Help: help, Labels: []string{"sink", label}, Read: func(add func(float64, ...string)) {
			for _, s := range d.statuses() {
				for value, n := range of(&s) {
					add(float64(n), s.Name, value)
				}
			}
		}}
	}
	return []obs.Counter{
		level("gatebook_sink_lag_records", "Leaves of the log that a sink does not have yet.", func(s *admin.SinkStatus) float64 { return float64(s.Lag) }),
		level("gatebook_sink_lag_seconds", "Seconds since a sink took something, while something is outstanding; 0 otherwise.", func(s *admin.SinkStatus) float64 { return s.LagSeconds }),
		level("gatebook_sink_oldest_age_seconds", "Age of the oldest record that is not delivered.", func(s *admin.SinkStatus) float64 { return s.Oldest }),
		level("gatebook_sink_quarantine", "Records that a sink would not take.", func(s *admin.SinkStatus) float64 { return float64(s.Quarantine) }),
		level("gatebook_sink_paused", "1 if nothing is sent to a sink until somebody acts.", func(s *admin.SinkStatus) float64 {
			if s.State == string(deliver.PausedBySink) || s.State == string(deliver.PausedByUs) {
				return 1
			}
			return 0
		}),
		family("gatebook_sink_delivered_total", "Records delivered since the start, by grade.", "grade", func(s *admin.SinkStatus) map[string]uint64 { return s.Delivered }),
		family("gatebook_sink_retries_total", "Sends and records that were not taken, by cause.", "cause", func(s *admin.SinkStatus) map[string]uint64 { return s.Retries }),
		{Name: "gatebook_sink_duplicates_possible_total", Help: "Records that may have arrived twice.", Labels: []string{"sink"}, Read: func(add func(float64, ...string)) {
			for _, s := range d.statuses() {
				add(float64(s.Duplicates), s.Name)
			}
		}},
	}
}

func (d *delivery) statuses() []admin.SinkStatus { return sinkDesk{d}.All() }
