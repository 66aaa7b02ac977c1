package admin

import (
	"context"
	"net/http"
	"strconv"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// SinkStatus is how delivery to one sink stands. Nothing in it is personal.
type SinkStatus struct {
	Name       string            `json:"name"`
	Type       string            `json:"type"`
	State      string            `json:"state"`         // delivering, waiting, retrying, paused
	Why        string            `json:"why,omitempty"` // it is not delivering
	Grade      string            `json:"grade"`         // the best that it can confirm: G0 to G3
	Project    string            `json:"project"`
	Fields     []string          `json:"fields"` // of the personal part that leave to it
	Cursor     uint64            `json:"cursor"` // first index that is not settled
	Lag        uint64            `json:"lag_records"`
	LagSeconds float64           `json:"lag_seconds"` // between the newest record that could be sent and the newest sent
	Oldest     float64           `json:"oldest_age_seconds"`
	Quarantine int               `json:"quarantine"`
	Delivered  map[string]uint64 `json:"delivered"` // by grade, since the start
	Retries    map[string]uint64 `json:"retries"`   // by cause, since the start
	Duplicates uint64            `json:"duplicates_possible"`
	LastDone   time.Time         `json:"last_delivered,omitzero"`
	LastError  string            `json:"last_error,omitempty"`
	Alarm      string            `json:"alarm,omitempty"` // why readiness names it
}

// QuarantinedRecord is a record that a sink will not take.
type QuarantinedRecord struct {
	Index    uint64    `json:"index"`
	ID       string    `json:"id"`
	Time     time.Time `json:"time"`
	Cause    string    `json:"cause"`
	Status   int       `json:"status,omitempty"`
	Detail   string    `json:"detail,omitempty"`
	Attempts int       `json:"attempts"`
}

// SinkReplay asks for records to be sent again: [From, To), or all up to the
// cursor if To is 0.
type SinkReplay struct {
	From uint64 `json:"from"`
	To   uint64 `json:"to,omitempty"`
}

// SinkPick names quarantined records: by index, or all of them.
type SinkPick struct {
	Indexes []uint64 `json:"indexes,omitempty"`
	All     bool     `json:"all,omitempty"`
}

// SinkActed is what became of an act upon a sink.
type SinkActed struct {
	Sink  string `json:"sink"`
	Count uint64 `json:"count,omitempty"` // records that it is about
}

// Sinks is delivery as administration sees it. Errors that the caller is to
// blame for are *Problem.
type Sinks interface {
	All() []SinkStatus
	// Find returns one; a *Problem says that there is none of that name.
	Find(name string) (SinkStatus, error)
	Quarantine(name string) ([]QuarantinedRecord, error)
	Pause(ctx context.Context, name string) error
	Resume(ctx context.Context, name string) error
	// Replay has records sent again and returns how many there are.
	Replay(ctx context.Context, name string, from, to uint64) (uint64, error)
	// Requeue has quarantined records sent again; Waive gives them up.
	Requeue(ctx context.Context, name string, pick SinkPick) (uint64, error)
	Waive(ctx context.Context, name string, pick SinkPick) (uint64, error)
	// Test says whether records could be sent, without sending any.
	Test(ctx context.Context, name string) error
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

// testTime bounds how long a sink may take to be tested.
const testTime = 30 * time.Second

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
		list, err := a.sinks.Quarantine(s.Name)
		if err != nil {
			return err
		}
		return a.writeJSON(w, list)
	})
	a.sinkAct("pause", actSinkPause, func(ctx context.Context, name string, _ *http.Request) (sinkDoing, error) {
		return sinkDoing{do: func() (uint64, error) { return 0, a.sinks.Pause(ctx, name) }}, nil
	})
	a.sinkAct("resume", actSinkResume, func(ctx context.Context, name string, _ *http.Request) (sinkDoing, error) {
		return sinkDoing{do: func() (uint64, error) { return 0, a.sinks.Resume(ctx, name) }}, nil
	})
	a.sinkAct("test", actSinkTest, func(ctx context.Context, name string, _ *http.Request) (sinkDoing, error) {
		return sinkDoing{do: func() (uint64, error) {
			ctx, cancel := context.WithTimeout(ctx, testTime)
			defer cancel()
			return 0, a.sinks.Test(ctx, name)
		}}, nil
	})
	a.sinkAct("replay", actSinkReplay, func(ctx context.Context, name string, r *http.Request) (sinkDoing, error) {
		var req SinkReplay
		if err := readJSON(r, &req); err != nil {
			return sinkDoing{}, err
		}
		if req.To != 0 && req.To <= req.From {
			return sinkDoing{}, Usage("nothing to replay: to must be greater than from")
		}
		return sinkDoing{cause: rangeText(req.From, req.To), do: func() (uint64, error) { return a.sinks.Replay(ctx, name, req.From, req.To) }}, nil
	})
	for path, act := range map[string]string{"requeue": actSinkRequeue, "waive": actSinkWaive} {
		a.sinkAct(path, act, func(ctx context.Context, name string, r *http.Request) (sinkDoing, error) {
			var req SinkPick
			if err := readJSON(r, &req); err != nil {
				return sinkDoing{}, err
			}
			if req.All == (len(req.Indexes) > 0) || len(req.Indexes) > maxPicked {
				return sinkDoing{}, Usage("name up to 1000 quarantined records by index, or all of them")
			}
			do := a.sinks.Requeue
			if act == actSinkWaive {
				do = a.sinks.Waive
			}
			return sinkDoing{cause: pickText(req), do: func() (uint64, error) { return do(ctx, name, req) }}, nil
		})
	}
}

// maxPicked bounds how many records one call names.
const maxPicked = 1000

// sinkDoing is an act that has been understood; cause says for its record what
// it is about.
type sinkDoing struct {
	cause string
	do    func() (uint64, error)
}

func rangeText(from, to uint64) string {
	if to == 0 {
		return strconv.FormatUint(from, 10) + "-"
	}
	return strconv.FormatUint(from, 10) + "-" + strconv.FormatUint(to, 10)
}

// pickText names up to a handful of indexes; more are counted.
func pickText(p SinkPick) string {
	text := "all"
	for i, n := range p.Indexes {
		switch {
		case i == 0:
			text = strconv.FormatUint(n, 10)
		case i == 8:
			return text + "+" + strconv.Itoa(len(p.Indexes)-i)
		default:
			text += "," + strconv.FormatUint(n, 10)
		}
	}
	return text
}

// sinkAct registers an act upon a sink. It is recorded before it is done, and
// a second time if it then could not be done.
func (a *API) sinkAct(path, act string, read func(ctx context.Context, name string, r *http.Request) (sinkDoing, error)) {
	a.handle("POST /api/v1/sinks/{name}/"+path, act, Operator, func(w http.ResponseWriter, r *http.Request) error {
		s, err := a.sinks.Find(r.PathValue("name"))
		if err != nil {
			return err
		}
		// It is recorded, so it must be done even if whoever asked is gone.
		ctx := context.WithoutCancel(r.Context())
		doing, err := read(ctx, s.Name, r)
		if err != nil {
			return err
		}
		rec := record.Record{Kind: record.KindDelivery, Outcome: record.Success, Event: record.Event{Name: act, Target: s.Name, Cause: doing.cause}}
		first := rec
		if err := Note(ctx, a.book, callerOf(r), &first); err != nil {
			return err
		}
		n, err := doing.do()
		if err != nil {
			rec.Outcome, rec.Error = record.Failure, record.Error{Origin: "gateway", Phase: "admin"}
			if noted := Note(ctx, a.book, callerOf(r), &rec); noted != nil {
				a.log.Error("an act upon a sink failed, which could not be recorded", "act", act, "sink", s.Name, "err", noted)
			}
			return err
		}
		return a.writeJSON(w, SinkActed{Sink: s.Name, Count: n})
	})
}
