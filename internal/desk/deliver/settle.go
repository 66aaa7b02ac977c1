package deliver

import (
	"cmp"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
)

// await puts a piece in its place among those that wait.
func (r *runner) await(p *piece) {
	if len(p.at) == 0 {
		return
	}
	first := p.first()
	i, _ := slices.BinarySearchFunc(r.pieces, first, func(q *piece, at uint64) int {
		if q.first() < at {
			return -1
		}
		return 1
	})
	r.pieces = slices.Insert(r.pieces, i, p)
}

// sendDue is when the next piece may be sent.
func (r *runner) sendDue() (time.Time, bool) {
	if len(r.pieces) == 0 || r.halted() || r.flying >= r.abreast() {
		return time.Time{}, false
	}
	var at time.Time
	found := false
	for _, p := range r.pieces {
		if !p.b.hold && (!found || p.after.Before(at)) {
			at, found = p.after, true
		}
	}
	if !found {
		return at, false
	}
	if r.gate.until.After(at) {
		at = r.gate.until
	}
	if r.pause != nil && r.pause.next.After(at) {
		at = r.pause.next
	}
	return at, true
}

// abreast is how many sends may be under way: one while the sink is in trouble.
func (r *runner) abreast() int {
	if r.gate.level > 0 || r.pause != nil {
		return 1
	}
	return r.lim.InFlight
}

// dispatch begins what may be sent now.
func (r *runner) dispatch(now time.Time) {
	for {
		at, ok := r.sendDue()
		if !ok || at.After(now) {
			return
		}
		i := slices.IndexFunc(r.pieces, func(p *piece) bool { return !p.b.hold && !p.after.After(now) })
		p := r.pieces[i]
		if r.stale(p, now) {
			r.replan(p.b, now.UTC())
			if !p.b.errand {
				p.b.hold = true
				r.write(now)
			}
			continue
		}
		r.pieces = slices.Delete(r.pieces, i, i+1)
		r.send(p)
	}
}

// send begins one send.
func (r *runner) send(p *piece) {
	p.attempt++
	p.b.sent = true
	for _, i := range p.at {
		p.b.fate[i].attempts++
	}
	if r.flying++; r.flying == 1 {
		r.heard = time.Now()
	}
	r.sends++
	b, n := p.cut(), r.sends
	go func() { r.results <- outcome{p, guarded(r.sendCtx, r.c.SendTimeout, r.c.Sink, b), n} }()
}

// landed takes the outcome of a send.
func (r *runner) landed(o outcome) {
	now := time.Now()
	r.heard = now
	r.flying--
	if o.p.b.dropped {
		return // sent again from an earlier index on
	}
	res := o.res
	if res.Items != nil && len(res.Items) != len(o.p.at) {
		res = Result{Class: Retry, Ambiguous: true, Status: res.Status, Cause: "item_count",
			Detail: fmt.Sprintf("%d results for %d items", len(res.Items), len(o.p.at))}
	}
	if res.Items == nil {
		r.whole(now, &o, &res)
	} else {
		r.parts(now, &o, &res)
	}
	r.advance()
}

// whole takes one result for all items of a piece.
func (r *runner) whole(now time.Time, o *outcome, res *Result) {
	p := o.p
	if res.Ambiguous && res.Class != Done {
		for _, i := range p.at {
			p.b.fate[i].ambiguous = true
		}
	}
	if res.Class != Done {
		r.complaint(res)
	}
	switch res.Class {
	case Done:
		r.delivered(now, o.n)
		for _, i := range p.at {
			r.finish(p.b, i, res)
		}
	case Split, Poison:
		if res.Class == Split {
			r.gate.atLeast(now, min(res.After, r.c.AfterMax))
		}
		r.smaller(now, p, p.at, res)
	case Pause:
		r.pauses(now, res, o.n)
		r.await(p)
	default:
		r.retries++
		r.gate.fail(now, &r.c, res.After, o.n, r.sends)
		r.await(p)
	}
}

// parts takes a result for each item of a piece. What was taken is done; the
// rest goes on without it.
func (r *runner) parts(now time.Time, o *outcome, all *Result) {
	p := o.p
	again := &piece{b: p.b, attempt: p.attempt}
	var large []int
	var worst, paused *Result
	settled, after := 0, time.Duration(0)
	for n, i := range p.at {
		res := &all.Items[n]
		if res.Ambiguous && res.Class != Done {
			p.b.fate[i].ambiguous = true
		}
		if res.Class != Done {
			r.complaint(res)
		}
		switch res.Class {
		case Done:
			r.delivered(now, o.n)
			r.finish(p.b, i, res)
			settled++
		case Poison:
			r.smaller(now, p, []int{i}, res)
			settled++
		case Split:
			large, worst = append(large, i), res
		case Pause:
			paused = cmp.Or(paused, res) // one answer is one refusal, of however many items
			again.at = append(again.at, i)
		default:
			after = max(after, res.After)
			again.at = append(again.at, i)
		}
	}
	switch {
	case paused != nil:
		r.pauses(now, paused, o.n)
	case settled+len(large) == 0:
		r.retries++
		r.gate.fail(now, &r.c, after, o.n, r.sends)
	default:
		r.gate.atLeast(now, min(after, r.c.AfterMax))
	}
	if len(large) > 0 {
		r.smaller(now, p, large, worst)
	}
	again.after = now.Add(backoff(r.c.BackoffMin, r.c.BackoffMax, again.attempt))
	r.await(again)
}

// smaller sends items in two halves; a single one as a stub, or it is refused for
// good.
func (r *runner) smaller(now time.Time, p *piece, at []int, res *Result) {
	if len(at) > 1 {
		half := len(at) / 2
		r.await(&piece{b: p.b, at: slices.Clone(at[:half]), attempt: p.attempt})
		r.await(&piece{b: p.b, at: slices.Clone(at[half:]), attempt: p.attempt})
		return
	}
	i := at[0]
	if res.Class == Split && !p.b.fate[i].stub {
		again, err := r.stubOf(p.b, i)
		if again {
			r.trouble(rereading, err)
			p.b.fate[i].waits = true
			r.await(&piece{b: p.b, at: []int{i}, attempt: p.attempt, after: now.Add(retryRead)})
			return
		}
		r.waited(&p.b.fate[i])
		if err == nil {
			r.await(&piece{b: p.b, at: []int{i}, attempt: p.attempt})
			return
		}
	}
	_, known := r.jail.index[p.b.items[i].Index] // refused again, it says nothing new
	r.refuse(now, p.b, i, res)
	if known {
		return
	}
	if r.refused++; r.refused >= r.c.PoisonRun && !r.lenient {
		r.stopFor(now, &Result{Class: Pause, Cause: "refuses_all", Status: res.Status})
	}
}

// waited notes that an item waits for the book no more.
func (r *runner) waited(f *fate) {
	if f.waits {
		f.waits = false
		r.well(rereading)
	}
}

// delivered notes that the sink takes records. A send that began before there was
// trouble says nothing about the trouble.
func (r *runner) delivered(now time.Time, n int64) {
	if n > r.gate.sends {
		r.gate.open()
	}
	if n > r.renewals {
		r.renewed = false
	}
	r.lenient, r.refused = false, 0
	r.lastOK = now
	if r.failing == "" {
		r.lastErr = ""
	}
	if r.pause != nil && n > r.pause.sends {
		r.note(now, r.event("sink_resumed", r.pause.cause))
		r.pause = nil
	}
}

// finish settles an item that was delivered.
func (r *runner) finish(b *batch, i int, res *Result) {
	f := &b.fate[i]
	if f.settled {
		return
	}
	f.settled = true
	r.waited(f)
	b.left--
	if res.Passed {
		r.released(b.items[i].Index)
		return
	}
	t := tally{Count: 1, Grade: res.Grade}
	if f.ambiguous || !b.errand && (b.items[i].Index < r.maybe || b.items[i].Index < r.st.High) {
		t.Ambiguous = 1
	}
	if f.stub {
		t.Stubs = 1
	}
	if b.items[i].Late {
		t.Late = 1
	}
	b.sum.add(t)
	r.sum.add(t)
	r.released(b.items[i].Index)
}

// advance moves the cursor over what is settled without a hole.
func (r *runner) advance() {
	for len(r.plan) > 0 && r.plan[0].left == 0 {
		b := r.plan[0]
		r.plan = r.plan[1:]
		r.release(b)
		r.st.Cursor = b.to
		r.st.High = max(r.st.High, b.to)
		r.st.Receipt.add(b.sum)
		r.dirty = true
	}
	for _, b := range r.plan {
		if b.left == 0 && b.items != nil {
			r.release(b)
			r.dirty = true // behind a hole the plan says so, not the cursor
		}
	}
	r.errands = slices.DeleteFunc(r.errands, func(b *batch) bool {
		if b.left == 0 {
			now := time.Now()
			r.redelivered(now, b)
			r.release(b)
			r.compare.notBefore(now.Add(r.c.CompareAfter)) // when it can be found
		}
		return b.left == 0
	})
}

// complaint keeps what the sink said last. An answer may quote a record, and whoever
// reads the status need not be one who may read records: so of answers only those are
// kept that stop the sink, which are about its configuration. Those about a record are
// in the quarantine.
func (r *runner) complaint(res *Result) {
	text := res.Cause
	if res.Status != 0 {
		text = fmt.Sprintf("%s (status %d)", text, res.Status)
	}
	if d := scrub(res.Detail); d != "" && (res.Status == 0 || res.Class == Pause) {
		text += ": " + d
	}
	r.lastCause = res.Cause
	if r.failing == "" {
		r.lastErr = text
	}
}

// pauses believes a sink that it takes nothing until somebody has acted, unless
// its credential turns out to be a new one. What began before that says nothing of the
// new one.
func (r *runner) pauses(now time.Time, res *Result, n int64) {
	denied := res.Status == 401 || res.Status == 403
	if denied && n <= r.renewals {
		return
	}
	if denied && !r.renewed {
		changed, err := Renew(r.c.Sink)
		if err != nil {
			r.eng.log.Error("the credential of a sink cannot be read again", "sink", r.c.Name, "err", err)
		}
		if changed && err == nil {
			r.renewed, r.renewals = true, r.sends
			return
		}
	}
	r.stopFor(now, res)
}

// stopFor sends nothing until somebody has acted, or some minutes have gone by.
func (r *runner) stopFor(now time.Time, res *Result) {
	r.renewed = false // the credential is looked at again before the next try
	if r.pause == nil {
		r.pause = &pause{cause: res.Cause, status: res.Status, since: now}
		r.eng.log.Error("a sink takes nothing until somebody has acted; nothing is lost meanwhile", "sink", r.c.Name, "cause", res.Cause, "status", res.Status)
		n := r.event("sink_paused", res.Cause)
		n.Status, n.Outcome = res.Status, record.Failure
		r.note(now, n)
	}
	r.pause.next, r.pause.sends = now.Add(r.c.PauseRetry), r.sends
	r.gate.open()
}

// stubOf puts a stub in the place of an item that is too large for the sink. again
// says that the error is not the record's fault and may pass: the book cannot be
// read, or a key is away.
func (r *runner) stubOf(b *batch, i int) (again bool, err error) {
	it := b.items[i]
	var fresh []byte
	_, rerr := r.entries(it.Index, it.Index+1, r.signed, func(e *book.Entry) bool {
		fresh, err = r.stub(nil, it.ID, e, len(it.Body))
		return true
	})
	switch {
	case rerr != nil:
		return true, rerr
	case errors.Is(err, ErrNotNow):
		r.feed.forget(r.proj.Reveal())
		return true, &away{it.Index, it.Time, err}
	case err != nil:
		return false, err
	case fresh == nil:
		return false, fmt.Errorf("record %d is not in the book", it.Index)
	}
	r.held += len(fresh) - len(it.Body)
	b.bytes += len(fresh) - len(it.Body)
	b.items = slices.Clone(b.items)
	b.items[i].Body = fresh
	b.fate[i].stub = true
	return false, nil
}
