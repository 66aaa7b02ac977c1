package deliver

import (
	"errors"
	"fmt"
	"time"

	"github.com/gatebook/gatebook/internal/kv"
)

// loadUntilGood reads the state until that works. A state that is not
// well-formed is never taken for none: an operator must say where to go on, by
// Replay.
func (r *runner) loadUntilGood() bool {
	for {
		r.mu.Lock()
		r.signed = r.told
		r.mu.Unlock()
		err := r.load()
		if err == nil {
			r.lastErr, r.failing = "", ""
			return true
		}
		r.trouble("reading the cursor", err)
		r.setFailed(err)
		t := time.NewTimer(retryRead)
		select {
		case <-r.ctx.Done():
			t.Stop()
			return false
		case act := <-r.acts:
			act()
		case <-t.C:
		}
		t.Stop()
	}
}

// load reads the state and makes the planned batches again.
func (r *runner) load() error {
	st, err := r.stored()
	if err != nil {
		return err
	}
	if err := r.loadJail(); err != nil {
		return err
	}
	if st.Cursor > r.signed {
		return fmt.Errorf("everything below index %d was delivered and only %d leaves are signed: this is not the log that was delivered, or only a part of it", st.Cursor, r.signed)
	}
	plan, end := st.Plan, st.Cursor
	if len(plan) > 0 {
		end = plan[len(plan)-1].To
	}
	if end > r.signed {
		return fmt.Errorf("batches up to index %d were planned and only %d leaves are signed", end, r.signed)
	}
	r.st, r.durable, r.writeAt = st, st.Cursor, time.Now().Add(-cursorEvery)
	if st.Plan = nil; len(plan) == 0 {
		return nil
	}
	// Bounds may go before what they stand for is settled: what was sent stays known.
	r.maybe, st.High = end, max(st.High, end)
	if st.Projection != r.proj.Name() || st.Version != r.proj.Version() {
		r.eng.log.Warn("records are sent in another form than before; up to here some may arrive in both", "sink", r.c.Name, "was", st.Projection, "version", st.Version, "index", end)
		return nil
	}
	if err := r.planAgain(plan); err != nil {
		r.st = nil // or an act would write half of the plan over the whole of it
		return err
	}
	return nil
}

func (r *runner) planAgain(plan []bounds) error {
	r.plan, r.pieces, r.held, r.items = nil, nil, 0, 0
	at := r.st.Cursor
	for _, p := range plan {
		b, err := r.maker.again(at, p.To, r.signed, p.planned())
		if err != nil {
			return err
		}
		b.n = len(b.items)
		if b.n != p.Items {
			r.eng.log.Warn("a planned batch has another number of records than before; it is planned anew", "sink", r.c.Name, "first", at, "was", p.Items, "is", b.n)
			break
		}
		b.sent = true
		r.plan = append(r.plan, b)
		r.hold(b)
		if at = p.To; p.Settled {
			b.left, b.sum = 0, *p.Sum // by the process before
			r.release(b)
			continue
		}
		r.planned(b)
	}
	r.advance()
	return nil
}

// stored reads the state, or makes the first one.
func (r *runner) stored() (*state, error) {
	b, err := r.eng.state.Get(r.ctx, stateTable, r.c.Name)
	fresh := &state{Origin: r.eng.origin}
	if errors.Is(err, kv.ErrNotFound) {
		if r.c.FromNow {
			fresh.Cursor = r.start
			fresh.High, fresh.Noted, fresh.Seen, fresh.Compared = r.start, r.start, r.start, r.start
		}
		return fresh, r.first(fresh)
	}
	if err != nil {
		return nil, err
	}
	st, err := decodeState(b)
	if err != nil {
		return nil, fmt.Errorf("%w; say where to go on with: gatebook sink replay %s --from INDEX", err, r.c.Name)
	}
	if st.Origin == r.eng.origin {
		return st, nil
	}
	fresh.Paused = st.Paused
	return fresh, r.leaveBehind(st, b, fresh)
}

// first keeps the first state of a sink: where it begins is decided once, whatever
// fails afterwards.
func (r *runner) first(fresh *state) error {
	value, err := fresh.encode()
	if err != nil {
		return err
	}
	return r.eng.state.Put(r.ctx, stateTable, r.c.Name, value, time.Time{})
}
