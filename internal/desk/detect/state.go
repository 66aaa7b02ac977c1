package detect

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"time"
)

// Where the state is kept.
const (
	stateTable   = "detect"
	stateKey     = "state"
	stateVersion = 1
)

// state is what must outlive the process. The rest is read from the book again.
type state struct {
	V      int                   `json:"v"`
	Origin string                `json:"origin"`
	Next   uint64                `json:"next"`
	Marks  []mark                `json:"marks"` // oldest first
	Rules  map[string]*ruleState `json:"rules"`
}

// mark says which record was the first at or after a time.
type mark struct {
	At    int64  `json:"t"` // µs
	Index uint64 `json:"i"`
}

// ruleState is what a rule has learned.
type ruleState struct {
	Digest string          `json:"digest"` // of the rule that it was learned for
	Since  int64           `json:"since"`
	Peaks  map[string]peak `json:"peaks,omitempty"`
	Filter *filter         `json:"filter,omitempty"`
}

// maxMarks bounds the marks; they are at least depth/markEvery apart.
const (
	maxMarks  = 256
	markEvery = 32
)

// mark notes where a time is, if it is later than the last mark by enough.
func (s *state) mark(at int64, index uint64, depth int64) {
	n := len(s.Marks)
	if n > 0 {
		d := at - s.Marks[n-1].At
		if d >= 0 && d < depth/markEvery || d < 0 && -d < depth {
			return // soon after it, or late
		}
	}
	if n == maxMarks {
		s.Marks = s.Marks[:copy(s.Marks, s.Marks[1:])]
	}
	s.Marks = append(s.Marks, mark{at, index})
}

// newest is the time of the newest mark.
func (s *state) newest() int64 {
	if len(s.Marks) == 0 {
		return 0
	}
	return s.Marks[len(s.Marks)-1].At
}

// from is the record from which on all of a depth before Next is read. It goes
// back by as many marks as a depth has, too, so that one record whose clock was
// wrong does not hide the others.
func (s *state) from(depth int64) uint64 {
	if len(s.Marks) == 0 {
		return s.Next
	}
	i := max(len(s.Marks)-1-markEvery-1, 0)
	for i > 0 && s.Marks[i].At > s.newest()-depth {
		i--
	}
	return min(s.Marks[i].Index, s.Next)
}

// load reads the state, or makes one that begins now.
func (d *Detector) load(ctx context.Context) error {
	now := d.cfg.Book.Status()
	b, err := d.cfg.Store.Get(ctx, stateTable, stateKey)
	switch {
	case errors.Is(err, d.cfg.Missing):
		d.st = state{V: stateVersion, Origin: now.Origin, Next: now.Leaves}
	case err != nil:
		return fmt.Errorf("the state of detection cannot be read: %w", err)
	default:
		if d.st, err = decodeState(b); err != nil {
			return err
		}
		if d.st.Origin != now.Origin || d.st.Next > now.Leaves {
			d.cfg.Log.Warn("detection begins anew: its state is about another book, or about one with more records", "next", d.st.Next, "records", now.Leaves)
			d.st = state{V: stateVersion, Origin: now.Origin, Next: now.Leaves}
		}
	}
	d.next = d.st.Next
	d.st.restore(d.engine)
	return d.save(ctx)
}

// decodeState reads a state strictly.
func decodeState(b []byte) (s state, err error) {
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&s); err != nil {
		return s, fmt.Errorf("the state of detection is not one: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return s, errors.New("the state of detection has something after its end")
	}
	if s.V != stateVersion {
		return s, fmt.Errorf("the state of detection has version %d, this program reads %d", s.V, stateVersion)
	}
	if len(s.Marks) > maxMarks {
		return s, fmt.Errorf("the state of detection has %d marks", len(s.Marks))
	}
	for name, r := range s.Rules {
		if r == nil || len(r.Peaks) > 2*maxPast || r.Filter != nil && !r.Filter.whole() {
			return s, fmt.Errorf("the state of detection has no use for the rule %q", name)
		}
	}
	return s, nil
}

func (f *filter) whole() bool {
	n, m := len(f.Bits[0]), len(f.Bits[1])
	return n == m && (n == 0 || n == maxFilter/8) && f.N >= 0 && f.N <= perFilter
}

// restore gives the rules what was learned for them. It copies, so that it can
// be done again.
func (s *state) restore(g *engine) {
	for _, ru := range g.rules {
		st := s.Rules[ru.Name]
		if st == nil || st.Digest != ru.digest() {
			continue
		}
		ru.since = st.Since
		if ru.past != nil {
			for k, p := range st.Peaks {
				ru.past.peaks[k] = p
			}
		}
		if ru.filter != nil && st.Filter != nil {
			ru.filter = &filter{Bits: [2][]byte{bytes.Clone(st.Filter.Bits[0]), bytes.Clone(st.Filter.Bits[1])}, N: st.Filter.N}
		}
	}
}

// learned is what the rules have learned.
func (g *engine) learned(now int64) map[string]*ruleState {
	out := map[string]*ruleState{}
	for _, ru := range g.rules {
		st := &ruleState{Digest: ru.digest(), Since: ru.since, Filter: ru.filter}
		if ru.past != nil {
			for i := range ru.table.slots {
				ru.past.settle(&ru.table.slots[i], now)
			}
			st.Peaks = ru.past.peaks
		}
		out[ru.Name] = st
	}
	return out
}

// save keeps the state.
func (d *Detector) save(ctx context.Context) error {
	s := d.st
	s.Next, s.Rules = d.next, d.engine.learned(d.st.newest())
	b, err := json.Marshal(&s)
	if err == nil {
		err = d.cfg.Store.Put(ctx, stateTable, stateKey, b, time.Time{})
	}
	if err != nil {
		return fmt.Errorf("the state of detection cannot be kept: %w", err)
	}
	d.saved, d.dirty = time.Now(), false
	return nil
}
