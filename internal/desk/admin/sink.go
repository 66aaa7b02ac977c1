package admin

import (
	"context"
	"net/http"
	"time"
)

// SinkStatus is how delivery to one sink stands. Nothing in it is personal.
type SinkStatus struct {
	Name       string            `json:"name"`
	Type       string            `json:"type,omitempty"`
	State      string            `json:"state"`           // running, retrying, paused, ...
	Why        string            `json:"why,omitempty"`   // it is not running
	Grade      string            `json:"grade,omitempty"` // the best that it can confirm: G0 to G2
	Project    string            `json:"project,omitempty"`
	Fields     []string          `json:"fields"`      // of the personal part that leave to it
	Cursor     uint64            `json:"cursor"`      // first index that is not settled
	Signed     uint64            `json:"signed"`      // first index that cannot be sent yet
	Lag        uint64            `json:"lag_records"` // in between, about
	LagSeconds float64           `json:"lag_seconds"` // since something was delivered, while something is outstanding
	Oldest     float64           `json:"oldest_age_seconds"`
	Quarantine int               `json:"quarantine"`
	Resending  int               `json:"resending,omitempty"` // out of the quarantine, under way
	Receipted  uint64            `json:"receipted"`           // everything below is in a receipt
	Compared   uint64            `json:"compared"`            // everything below was found at the sink (G3)
	Delivered  map[string]uint64 `json:"delivered"`           // records by grade, since the start
	Retries    map[string]uint64 `json:"retries"`             // tries that settled nothing by cause, since the start
	Duplicates uint64            `json:"duplicates_possible"` // records that may have arrived twice, since the start
	NextTry    time.Time         `json:"next_try,omitzero"`
	LastDone   time.Time         `json:"last_delivered,omitzero"`
	LastError  string            `json:"last_error,omitempty"`
	Alarms     []string          `json:"alarms,omitempty"` // why readiness names it
}

// QuarantinedRecord is a record that a sink will not take.
type QuarantinedRecord struct {
	ID        string    `json:"id"` // of the event, as sinks know it
	Index     uint64    `json:"index"`
	Kind      string    `json:"kind"`
	Time      time.Time `json:"time"`
	Since     time.Time `json:"since"`
	Cause     string    `json:"cause"`
	Status    int       `json:"status,omitempty"`
	Detail    string    `json:"detail,omitempty"` // what the sink said of it
	Attempts  int       `json:"attempts"`
	Ambiguous bool      `json:"ambiguous,omitempty"` // it may be there all the same
}

// SinkReplay says from where on records are to be sent again: an index, or a
// time. Exactly one of them is set.
type SinkReplay struct {
	From  *uint64   `json:"from,omitempty"`
	Since time.Time `json:"since,omitzero"`
}

// SinkPick names quarantined records: by id, or all of them.
type SinkPick struct {
	IDs    []string `json:"ids,omitempty"`
	All    bool     `json:"all,omitempty"`
	Reason string   `json:"reason,omitempty"` // why they are waived
}

// SinkActed is what became of an act upon a sink.
type SinkActed struct {
	Sink  string  `json:"sink"`
	Count int     `json:"count,omitempty"` // records that it is about
	From  *uint64 `json:"from,omitempty"`  // of a replay
}

// Sinks is delivery as administration sees it. It records each act, with the
// caller, before it is done. Errors that the caller is to blame for are
// *Problem.
type Sinks interface {
	All() []SinkStatus
	// Find returns one; a *Problem says that there is none of that name.
	Find(name string) (SinkStatus, error)
	Quarantine(ctx context.Context, name string) ([]QuarantinedRecord, error)
	Pause(ctx context.Context, who *Caller, name string) error
	Resume(ctx context.Context, who *Caller, name string) error
	// Replay has records sent again and returns from which index on.
	Replay(ctx context.Context, who *Caller, name string, r SinkReplay) (uint64, error)
	// Requeue has quarantined records sent again; Waive gives them up. Both
	// return how many they are.
	Requeue(ctx context.Context, who *Caller, name string, pick SinkPick) (int, error)
	Waive(ctx context.Context, who *Caller, name string, pick SinkPick) (int, error)
	// Test says whether records could be sent, without sending any.
	Test(ctx context.Context, who *Caller, name string) error
}

// The acts upon sinks, as records name them.
const (
	actSinkStatus     = "sink_status"
	actSinkQuarantine = "sink_quarantine"
	actSinkPause      = "sink_pause"
	actSinkResume     = "sink_resume"
	actSinkReplay     = "sink_replay"
	actSinkRequeue    = "sink_requeue"
	actSinkWaive      = "sink_waive"
	actSinkTest       = "sink_test"
)

const (
	testTime  = 30 * time.Second // for a sink to be tested
	maxPicked = 1000             // records that one call names
)

// sinkCalls registers the calls about sinks.
func (a *API) sinkCalls() {
	a.handle("GET /api/v1/sinks", actSinkStatus, Reader, func(w http.ResponseWriter, r *http.Request) error {
		return a.writeJSON(w, a.sinks.All()) // not recorded, as the status is not
	})
	a.handle("GET /api/v1/sinks/{name}", actSinkStatus, Reader, func(w http.ResponseWriter, r *http.Request) error {
		s, err := a.sinks.Find(r.PathValue("name"))
		if err != nil {
			return err
		}
		return a.writeJSON(w, s)
	})
	// What sinks answered may say what was in a record.
	a.handle("GET /api/v1/sinks/{name}/quarantine", actSinkQuarantine, Operator, func(w http.ResponseWriter, r *http.Request) error {
		s, err := a.sinks.Find(r.PathValue("name"))
		if err != nil {
			return err
		}
		if err := a.access(r, actSinkQuarantine, s.Name, false); err != nil {
			return err
		}
		list, err := a.sinks.Quarantine(r.Context(), s.Name)
		if err != nil {
			return err
		}
		return a.writeJSON(w, list)
	})
	a.sinkAct("pause", actSinkPause, func(ctx context.Context, who *Caller, s *SinkActed, _ *http.Request) error {
		return a.sinks.Pause(ctx, who, s.Sink)
	})
	a.sinkAct("resume", actSinkResume, func(ctx context.Context, who *Caller, s *SinkActed, _ *http.Request) error {
		return a.sinks.Resume(ctx, who, s.Sink)
	})
	a.sinkAct("test", actSinkTest, func(ctx context.Context, who *Caller, s *SinkActed, _ *http.Request) error {
		ctx, cancel := context.WithTimeout(ctx, testTime)
		defer cancel()
		return a.sinks.Test(ctx, who, s.Sink)
	})
	a.sinkAct("replay", actSinkReplay, a.sinkReplay)
	a.sinkAct("requeue", actSinkRequeue, func(ctx context.Context, who *Caller, s *SinkActed, r *http.Request) error {
		pick, err := readPick(r)
		if err == nil {
			s.Count, err = a.sinks.Requeue(ctx, who, s.Sink, pick)
		}
		return err
	})
	a.sinkAct("waive", actSinkWaive, func(ctx context.Context, who *Caller, s *SinkActed, r *http.Request) error {
		pick, err := readPick(r)
		if err == nil {
			s.Count, err = a.sinks.Waive(ctx, who, s.Sink, pick)
		}
		return err
	})
}

// sinkAct registers an act upon a sink. It is recorded, so it is done even if
// whoever asked is gone.
func (a *API) sinkAct(path, act string, do func(ctx context.Context, who *Caller, s *SinkActed, r *http.Request) error) {
	a.handle("POST /api/v1/sinks/{name}/"+path, act, Operator, func(w http.ResponseWriter, r *http.Request) error {
		s, err := a.sinks.Find(r.PathValue("name"))
		if err != nil {
			return err
		}
		out := SinkActed{Sink: s.Name}
		if err := do(context.WithoutCancel(r.Context()), callerOf(r), &out, r); err != nil {
			return err
		}
		return a.writeJSON(w, out)
	})
}

func (a *API) sinkReplay(ctx context.Context, who *Caller, s *SinkActed, r *http.Request) error {
	var req SinkReplay
	if err := readJSON(r, &req); err != nil {
		return err
	}
	if (req.From == nil) == req.Since.IsZero() {
		return Usage("say from where on: exactly one of from, an index, and since, a time")
	}
	from, err := a.sinks.Replay(ctx, who, s.Sink, req)
	s.From = &from
	return err
}

func readPick(r *http.Request) (pick SinkPick, err error) {
	if err := readJSON(r, &pick); err != nil {
		return pick, err
	}
	if pick.All == (len(pick.IDs) > 0) || len(pick.IDs) > maxPicked {
		return pick, Usage("name up to 1000 quarantined records by id, or all of them")
	}
	return pick, nil
}
