package deliver

import (
	"context"
	"fmt"
	"slices"
	"time"
)

// State is what a sink is doing.
type State string

// The states of a sink.
const (
	Starting     State = "starting" // its cursor is being read
	Running      State = "running"
	Retrying     State = "retrying"       // the sink is in trouble; tried again by itself
	PausedBySink State = "paused_by_sink" // it takes nothing until somebody has acted
	PausedByUs   State = "paused"         // by an operator or the configuration
	Failed       State = "failed"         // its cursor cannot be read or written, the book cannot be read, or a key is away
	Stopped      State = "stopped"        // the engine does not run
	Unconfigured State = "not_configured" // has a cursor and is not configured any more
)

// Status is how one sink is.
type Status struct {
	Name       string `json:"name"`
	State      State  `json:"state"`
	Cause      string `json:"cause,omitempty"` // why it is not running
	Grade      string `json:"grade,omitempty"` // the best that the sink can give
	Projection string `json:"projection,omitempty"`
	Origin     string `json:"origin,omitempty"`
	Cursor     uint64 `json:"cursor"` // first index that is not settled
	Signed     uint64 `json:"signed"` // first index that cannot be sent yet
	Lag        uint64 `json:"lag"`    // leaves in between
	// Oldest is the start of the oldest record that is not settled, if it is
	// known; LagSeconds is its age.
	Oldest      time.Time `json:"oldest,omitzero"`
	LagSeconds  float64   `json:"lag_s"`
	Planned     int       `json:"planned"`   // batches, not settled
	InFlight    int       `json:"in_flight"` // sends under way
	Held        int       `json:"held"`      // bytes of bodies in memory
	Failures    int       `json:"failures"`  // in a row
	NextTry     time.Time `json:"next_try,omitzero"`
	Quarantine  int       `json:"quarantine"`
	Resending   int       `json:"resending"` // records on their way once more
	Receipted   uint64    `json:"receipted"` // everything below is in a receipt
	Compared    uint64    `json:"compared"`  // everything below was compared with the sink (G3)
	LastError   string    `json:"last_error,omitempty"`
	LastSuccess time.Time `json:"last_success,omitzero"`
	// Counts since the process began.
	Delivered   int64 `json:"delivered"`
	Ambiguous   int64 `json:"ambiguous"` // of those, may have arrived twice
	Quarantined int64 `json:"quarantined"`
	Late        int64 `json:"late"`
	Stubs       int64 `json:"stubs"`
	Sends       int64 `json:"sends"`
	Retries     int64 `json:"retries"` // sends that settled nothing
	Writes      int64 `json:"writes"`  // of the cursor
	Missing     int   `json:"missing"` // when last compared
	// Alarms say why this sink needs somebody to look, for readiness.
	Alarms []string `json:"alarms,omitempty"`
}

// snapshot is the status as it was last published, its age counted on.
func (r *runner) snapshot() Status {
	r.mu.Lock()
	defer r.mu.Unlock()
	s := r.status
	s.Signed = max(s.Signed, r.told)
	s.Lag = s.Signed - min(s.Cursor, s.Signed)
	if !s.Oldest.IsZero() {
		s.LagSeconds = max(time.Since(s.Oldest).Seconds(), 0)
	}
	return s
}

// low is the lowest index that the sink still needs, 0 if that is not known.
func (r *runner) low() uint64 {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.needs
}

func (r *runner) setState(s State) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.State = s
}

func (r *runner) setFailed(err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status.State, r.status.LastError = Failed, told(err)
	r.status.Alarms = []string{"sink " + r.c.Name + ": " + told(err)}
}

// publish makes the status what the runner knows.
func (r *runner) publish(now time.Time) {
	s := Status{
		Name: r.c.Name, State: Running, Grade: r.grade, Projection: fmt.Sprintf("%s/%d", r.proj.Name(), r.proj.Version()),
		Origin: r.eng.origin, Cursor: r.st.Cursor, Signed: r.signed, Planned: len(r.plan) + len(r.drafts), InFlight: r.flying, Held: r.held,
		Failures: r.gate.level, Quarantine: r.jail.depth(), Resending: len(r.resend) + len(r.errands), Receipted: r.st.Noted, Compared: r.st.Compared,
		LastError: r.lastErr, LastSuccess: r.lastOK, Oldest: r.oldest(),
		Delivered: r.sum.Count, Ambiguous: r.sum.Ambiguous, Quarantined: r.sum.Quarantined, Late: r.sum.Late, Stubs: r.sum.Stubs,
		Sends: r.sends, Retries: r.retries, Writes: r.writes, Missing: r.compare.missing,
	}
	switch {
	case r.halted():
		s.State, s.Cause = PausedByUs, "operator"
		if r.c.Paused {
			s.Cause = "configuration"
		}
	case r.failing != "":
		s.State, s.Cause = Failed, r.failing
	case r.pause != nil:
		s.State, s.Cause, s.NextTry = PausedBySink, r.pause.cause, r.pause.next
	case r.gate.level > 0:
		s.State, s.Cause, s.NextTry = Retrying, r.lastCause, r.gate.until
	}
	s.Alarms = r.alarms(now, &s)
	needs := min(r.durable, r.st.Cursor) // a replay may not be written yet
	if low, ok := r.jail.lowest(); ok {
		needs = min(needs, low)
	}
	if r.comparable() {
		needs = min(needs, r.st.Compared)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.status, r.needs = s, needs
}

// oldest is when the oldest record began that is not settled.
func (r *runner) oldest() time.Time {
	for _, list := range [][]*batch{r.plan, r.drafts} {
		for _, b := range list {
			for i := range b.items {
				if !b.fate[i].settled {
					return b.items[i].Time
				}
			}
		}
	}
	return r.waiting
}

// alarms says why somebody should look.
func (r *runner) alarms(now time.Time, s *Status) []string {
	var out []string
	add := func(format string, args ...any) {
		out = append(out, "sink "+r.c.Name+": "+fmt.Sprintf(format, args...))
	}
	if s.State == PausedBySink {
		add("it takes nothing until somebody has acted (%s)", s.Cause)
	}
	if s.State == Failed {
		add("%s", s.LastError)
	}
	if s.Quarantine > 0 {
		add("%d records are in quarantine", s.Quarantine)
	}
	if text := r.compare.alarm(); text != "" {
		add("%s", text)
	}
	late := !s.Oldest.IsZero() && now.Sub(s.Oldest) > r.c.LagAge
	if late {
		add("the oldest undelivered record is %v old", now.Sub(s.Oldest).Truncate(time.Second))
	}
	if late != r.lagging {
		r.lagging = late
		name := "sink_caught_up"
		if late {
			name = "sink_lagging"
		}
		n := r.event(name, s.Cause)
		n.Event.Count, n.Links = int64(s.Signed-min(s.Cursor, s.Signed)), []string{link("first", s.Cursor)}
		r.note(now, n)
	}
	return out
}

// Ready says of every sink why somebody should look; nothing if all is well.
func (e *Engine) Ready() []string {
	var out []string
	for _, s := range e.Status() {
		out = append(out, s.Alarms...)
	}
	return out
}

// vanished tells of sinks that have a state and are not configured.
func (e *Engine) vanished(ctx context.Context) {
	found := map[string]*state{}
	err := e.state.Range(ctx, stateTable, func(name string, value []byte) error {
		st, err := decodeState(value)
		if err != nil {
			return fmt.Errorf("sink %s: %w", name, err)
		}
		found[name] = st
		return nil
	})
	if err != nil {
		e.log.Error("the cursors of sinks that are not configured cannot be read", "err", err)
		return
	}
	e.tellGone(ctx, e.setGone(found))
}

// setGone keeps those of the states whose sinks are not wanted, and returns the
// ones that were not there before.
func (e *Engine) setGone(found map[string]*state) (fresh []Status) {
	e.mu.Lock()
	defer e.mu.Unlock()
	was := e.gone
	e.gone = nil
	for _, c := range e.want {
		delete(found, c.Name)
	}
	for name, st := range found {
		s := Status{Name: name, State: Unconfigured, Origin: st.Origin, Cursor: st.Cursor, Signed: st.Seen, Lag: st.Seen - min(st.Cursor, st.Seen)}
		e.gone = append(e.gone, s)
		if !slices.ContainsFunc(was, func(o Status) bool { return o.Name == name }) {
			fresh = append(fresh, s)
		}
	}
	return fresh
}
