package deliver

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"time"
)

// stateVersion is the form in which the engine keeps what must outlive it.
const stateVersion = 1

// Bounds of what is believed of a stored state.
const (
	maxPlan  = 4096
	maxState = 1 << 20
	maxName  = 256
)

// state is what is durable of a sink. It is written as a whole.
type state struct {
	V      int    `json:"v"`
	Origin string `json:"origin"` // of the log that the indexes are of
	// Cursor: every record below is settled, that is delivered or in quarantine.
	Cursor uint64 `json:"cursor"`
	// High is the highest cursor there ever was: what is sent below it again may
	// arrive twice.
	High uint64 `json:"high"`
	// Seen is the newest signed size that was known, so that after a change of
	// logs it can be told how much was left behind.
	Seen       uint64 `json:"seen"`
	Projection string `json:"projection,omitempty"`
	Version    int    `json:"version,omitempty"`
	// Plan are the batches that may have been sent, one behind the other from
	// the cursor on.
	Plan []bounds `json:"plan,omitempty"`
	// Paused by an operator.
	Paused bool `json:"paused,omitempty"`
	// Noted: everything below is in a receipt. Receipt is what the next one says
	// of [Noted, Cursor).
	Noted   uint64 `json:"noted"`
	Receipt tally  `json:"receipt"`
	// Compared: everything below was compared with what the sink holds.
	Compared uint64 `json:"compared,omitempty"`
}

// bounds are those of one batch.
type bounds struct {
	To      uint64 `json:"to"`    // first index behind it
	Items   int    `json:"items"` // records in it
	Planned int64  `json:"at"`    // Unix nanoseconds
	Settled bool   `json:"settled,omitempty"`
	Sum     *tally `json:"sum,omitempty"` // if settled
}

// tally adds up what became of a range of records.
type tally struct {
	Count       int64 `json:"count,omitempty"`     // delivered
	Ambiguous   int64 `json:"ambiguous,omitempty"` // of those, may have arrived twice
	Quarantined int64 `json:"quarantined,omitempty"`
	Late        int64 `json:"late,omitempty"`
	Stubs       int64 `json:"stubs,omitempty"`
	Grade       Grade `json:"grade,omitempty"` // the lowest
	Worth       bool  `json:"worth,omitempty"` // some of it is not of the book's own making
}

// add puts two tallies together.
func (t *tally) add(u tally) {
	if t.Count == 0 || u.Count > 0 && u.Grade < t.Grade {
		t.Grade = u.Grade
	}
	t.Count += u.Count
	t.Ambiguous += u.Ambiguous
	t.Quarantined += u.Quarantined
	t.Late += u.Late
	t.Stubs += u.Stubs
	t.Worth = t.Worth || u.Worth
}

// ErrState means that what was stored of a sink is not what the engine writes.
var ErrState = errors.New("deliver: the stored state is not well-formed")

func (s *state) encode() ([]byte, error) {
	s.V = stateVersion
	b, err := json.Marshal(s)
	if err == nil && len(b) > maxState {
		err = fmt.Errorf("%w: %d bytes", ErrState, len(b))
	}
	return b, err
}

// decodeState reads what encode wrote and refuses everything else.
func decodeState(b []byte) (*state, error) {
	s := &state{}
	if err := decodeStored(b, s); err != nil {
		return nil, err
	}
	if s.V != stateVersion {
		return nil, fmt.Errorf("%w: version %d is unknown to this release", ErrState, s.V)
	}
	if s.Origin == "" || len(s.Plan) > maxPlan || len(s.Projection) > maxName {
		return nil, ErrState
	}
	if s.Cursor > s.High || s.Noted > s.High || s.Compared > s.High || !s.Receipt.plausible() {
		return nil, fmt.Errorf("%w: marks are not in order", ErrState)
	}
	at := s.Cursor
	for _, b := range s.Plan {
		if b.To <= at || b.Items < 0 || uint64(b.Items) > b.To-at || b.Settled != (b.Sum != nil) || b.Sum != nil && !b.Sum.plausible() {
			return nil, fmt.Errorf("%w: planned batches are not in order", ErrState)
		}
		at = b.To
	}
	if at > s.Seen {
		return nil, fmt.Errorf("%w: more is planned than was signed", ErrState)
	}
	return s, nil
}

func (t *tally) plausible() bool {
	return t.Count >= 0 && t.Ambiguous >= 0 && t.Quarantined >= 0 && t.Late >= 0 && t.Stubs >= 0 && t.Grade <= Compared
}

// decodeStored reads one JSON value with known fields only.
func decodeStored(b []byte, into any) error {
	if len(b) > maxState {
		return ErrState
	}
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(into); err != nil {
		return fmt.Errorf("%w: %v", ErrState, err)
	}
	if d.More() {
		return ErrState
	}
	return nil
}

func (b bounds) planned() time.Time { return time.Unix(0, b.Planned).UTC() }
