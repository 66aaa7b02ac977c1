package deliver

import (
	"context"
	"errors"
	"sync"
	"time"
)

// Tables of the store.
const (
	stateTable      = "deliver"
	quarantineTable = "deliver quarantine"
	waivedTable     = "deliver waived" // until a comparison has passed them
)

const (
	planEvery   = 500 * time.Millisecond  // at most so often is a plan made durable, while others can be sent
	cursorEvery = 1500 * time.Millisecond // and the cursor alone
	retryWrite  = time.Second             // after a write that failed
	retryRead   = 2 * time.Second         // after a reading that failed, and longer if it fails again
	retryNote   = 10 * time.Second        // after a record that the book did not take
	graceful    = 5 * time.Second         // for what is under way at the end, twice
	maxBatches  = 256                     // planned or drafted
	draftsMost  = 8                       // that are made before the plan of them is written
	firstItems  = 100                     // of the first batch of a process
	seenEvery   = time.Minute             // at least so often is it kept how much is signed, while nothing else is
	silentAfter = 2 * time.Second         // without an answer
)

// runner serves one sink. Everything below the line belongs to the goroutine of
// run.
type runner struct {
	eng     *Engine
	c       SinkConfig
	ctx     context.Context
	stop    context.CancelFunc
	start   uint64          // what was signed when the sink was first seen
	before  <-chan struct{} // of the runner that this one replaces; nil: none
	done    chan struct{}
	wake    chan struct{} // holds one if there is news in told
	acts    chan func()
	results chan outcome
	grade   string // the best of the sink; "": it did not tell

	mu     sync.Mutex
	told   uint64 // under mu; the newest signed size
	status Status // under mu
	needs  uint64 // under mu; lowest index needed, 0 as long as unknown

	// ----
	maker
	st      *state
	durable uint64 // cursor as it was last written
	signed  uint64
	plan    []*batch // durable bounds, from the cursor on
	drafts  []*batch // behind them, not durable yet
	errands []*batch // beside the plan
	resend  []uint64 // indexes to be sent again, ascending
	pieces  []*piece // waiting, in order of their index
	flying  int
	held    int    // bytes of bodies
	items   int    // and their number
	maybe   uint64 // what is below may have been sent by the process before

	gate      gate
	pause     *pause // by the sink
	renewed   bool   // the credential has changed since something was delivered
	renewals  int64  // sends that had begun when it changed last
	lenient   bool   // any number of records may be refused in a row
	refused   int    // records in a row
	dirty     bool   // the state in memory is ahead of the stored one
	writeAt   time.Time
	readAt    time.Time
	unread    int       // readings in a row that failed
	waiting   time.Time // when the record began that must wait; zero: none
	noteAt    time.Time
	receiptAt time.Time
	begun     time.Time // of the receipt
	notes     []note
	lagging   bool
	lastErr   string
	lastCause string // of what the sink did not take last; a closed word
	lastOK    time.Time
	heard     time.Time // when a send last ended, or began as the only one
	failing   string    // what of our own does not work
	sum       tally     // since the process began
	sends     int64
	retries   int64
	writes    int64
	jail      jail
	doomed    []doom // could not be put into the quarantine yet
	doomAt    time.Time
	sendCtx   context.Context
	cancel    context.CancelFunc
	compare   comparing
}

// pause is why a sink takes nothing until somebody has acted.
type pause struct {
	cause  string
	status int
	since  time.Time
	next   time.Time // when it is tried again
	sends  int64     // that had begun when it was last believed
}

// outcome is the end of one send.
type outcome struct {
	p   *piece
	res Result
	n   int64 // number of the send
}

func newRunner(ctx context.Context, e *Engine, c SinkConfig) *runner {
	r := &runner{
		eng: e, c: c, done: make(chan struct{}), wake: make(chan struct{}, 1), acts: make(chan func()),
		status: Status{Name: c.Name, State: Starting, Projection: c.Projection.Name()},
	}
	r.ctx, r.stop = context.WithCancel(ctx)
	lim, err := c.limits()
	if err != nil {
		e.log.Error("a sink does not tell its limits; it is sent one record at a time", "sink", c.Name, "err", err)
	}
	r.grade, err = gradeOf(c.Sink)
	if err != nil {
		e.log.Error("a sink does not tell its grade", "sink", c.Name, "err", err)
	}
	r.maker = maker{feed: e.feed, proj: c.Projection, lim: lim, prefix: idPrefix(e.origin)}
	r.results = make(chan outcome, r.lim.InFlight)
	return r
}

// tell says how much is signed. Any goroutine may call it.
func (r *runner) tell(signed uint64) {
	r.mu.Lock()
	news := signed > r.told
	r.told = max(r.told, signed)
	r.mu.Unlock()
	if news {
		r.nudge()
	}
}

func (r *runner) run() {
	defer close(r.done)
	defer r.stop()
	if r.before != nil {
		<-r.before
	}
	r.sendCtx, r.cancel = context.WithCancel(context.WithoutCancel(r.ctx))
	defer r.cancel()
	if !r.loadUntilGood() {
		r.setState(Stopped)
		return
	}
	r.place = r.feed.join(r.proj.Reveal())
	defer r.feed.leave(r.place)
	now := time.Now()
	r.receiptAt, r.begun = now.Add(time.Minute), now
	for r.ctx.Err() == nil {
		r.step(r.work(time.Now()))
	}
	r.windDown()
}

// work does what can be done without waiting and reports whether more of it may
// be left.
func (r *runner) work(now time.Time) (more bool) {
	r.mu.Lock()
	r.signed = max(r.signed, r.told)
	r.mu.Unlock()
	more = r.draftOne(now)
	r.makeErrand(now)
	if !more || len(r.drafts) >= draftsMost || r.draftBytes() >= r.c.Window/2 {
		r.write(now) // once for all batches that there are
	}
	r.dispatch(now)
	r.tick(now)
	r.publish(now)
	return more
}

// step waits for the next thing to happen, or only looks whether something has.
func (r *runner) step(more bool) {
	wait := time.Until(r.nextTime())
	if more {
		wait = 0
	}
	t := time.NewTimer(max(wait, 0))
	defer t.Stop()
	select {
	case <-r.ctx.Done():
	case o := <-r.results:
		r.landed(o)
	case <-r.wake:
	case act := <-r.acts:
		act()
	case <-t.C:
	}
}

// nextTime is when there is something to do if nothing else happens.
func (r *runner) nextTime() time.Time {
	t := r.receiptAt
	earlier := func(u time.Time) {
		if u.Before(t) {
			t = u
		}
	}
	if r.mustWrite() {
		earlier(r.writeDue())
	}
	if r.next() < r.signed && r.roomToDraft(time.Now()) {
		earlier(r.readAt)
	}
	if len(r.notes) > 0 {
		earlier(r.noteAt)
	}
	if len(r.resend) > 0 && len(r.errands) == 0 && !r.halted() {
		earlier(r.readAt)
	}
	if len(r.doomed) > 0 {
		earlier(r.doomAt)
	}
	if r.comparable() {
		earlier(time.Now().Add(markEvery))
	}
	if at, ok := r.sendDue(); ok {
		earlier(at)
	}
	return t
}

// next is the index behind all that is drafted.
func (r *runner) next() uint64 {
	switch {
	case len(r.drafts) > 0:
		return r.drafts[len(r.drafts)-1].to
	case len(r.plan) > 0:
		return r.plan[len(r.plan)-1].to
	}
	return r.st.Cursor
}

// halted reports whether nothing is to be sent, and since nobody knows until
// when.
func (r *runner) halted() bool { return r.c.Paused || r.st.Paused }

func (r *runner) roomToDraft(now time.Time) bool {
	if len(r.plan)+len(r.drafts) >= maxBatches || r.held >= r.c.Window || r.items >= r.c.WindowItems {
		return false
	}
	// A sink that takes nothing, or has not taken anything yet, needs no more than the
	// batch it is tried with, of which the age of the oldest record is known.
	if r.halted() || r.pause != nil || r.gate.level > 1 || r.unproven() {
		return len(r.plan)+len(r.drafts) == 0
	}
	// One that has not answered for a while gets what it may have under way.
	if r.silent(now) {
		return len(r.pieces)+len(r.drafts) == 0 && r.flying < r.abreast()
	}
	return true
}

// unproven reports that the sink has taken nothing since the process began.
func (r *runner) unproven() bool { return r.lastOK.IsZero() }

// silent reports that something is under way and nothing has come back for a while.
func (r *runner) silent(now time.Time) bool {
	return r.flying > 0 && now.Sub(r.heard) > silentAfter
}

// draftOne makes the next batch if there is something to make it of.
func (r *runner) draftOne(now time.Time) bool {
	if now.Before(r.readAt) || r.next() >= r.signed || !r.roomToDraft(now) {
		return false
	}
	most := r.lim.Items
	if r.unproven() {
		most = min(most, firstItems) // as much as it takes to see whether it takes anything
	}
	b, err := r.maker.next(r.next(), r.signed, most, now.UTC())
	if err != nil {
		r.unreadable(now, reading, err)
		return false
	}
	r.readable(reading)
	r.drafts = append(r.drafts, b)
	r.hold(b)
	return true
}

// well notes that something of our own works again.
func (r *runner) well(what string) {
	if r.failing == what {
		r.failing, r.lastErr = "", ""
	}
}

// What is read, as status and log name it.
const (
	reading   = "reading"
	rereading = "reading what is sent again"
)

// unreadable notes that the book cannot be read where it must be, or that what
// it says there cannot be projected now.
func (r *runner) unreadable(now time.Time, what string, err error) {
	r.unread++
	r.readAt = now.Add(retryRead)
	if more := backoff(retryRead, r.c.BackoffMax, r.unread); r.unread > 1 {
		r.readAt = r.readAt.Add(more)
	}
	var a *away
	if r.waiting = (time.Time{}); errors.As(err, &a) {
		r.waiting = a.begun
	}
	r.trouble(what, err)
}

// readable notes that a reading has succeeded.
func (r *runner) readable(what string) {
	r.unread, r.waiting = 0, time.Time{}
	r.well(what)
}

// trouble is something wrong on our side.
func (r *runner) trouble(what string, err error) {
	text := what + ": " + told(err)
	if r.lastErr != text {
		r.eng.log.Error("delivery does not go on", "sink", r.c.Name, "doing", what, "err", err)
	}
	r.lastErr, r.failing = text, what
}

func (r *runner) hold(b *batch) {
	r.held += b.bytes
	r.items += len(b.items)
}

// release lets go of the bodies of a batch that is settled, or dropped: then a send
// may be reading them still.
func (r *runner) release(b *batch) {
	r.held -= b.bytes
	r.items -= len(b.items)
	if b.blocks != nil && !b.dropped {
		b.reuse(r.feed)
	}
	b.items, b.fate, b.bytes = nil, nil, 0
}

func (r *runner) mustWrite() bool { return r.dirty || len(r.drafts) > 0 || r.anyHeld() }

func (r *runner) anyHeld() bool {
	for _, b := range r.plan {
		if b.hold {
			return true
		}
	}
	return false
}

// writeDue is when the state may be written: plans as soon as there is nothing
// else to send or the window is half full of drafts, the cursor alone more
// seldom.
func (r *runner) writeDue() time.Time {
	if len(r.drafts) == 0 && !r.anyHeld() {
		return r.writeAt.Add(cursorEvery)
	}
	if r.draftBytes() >= r.c.Window/2 {
		return r.writeAt
	}
	return r.writeAt.Add(planEvery)
}

func (r *runner) draftBytes() int {
	n := 0
	for _, b := range r.drafts {
		n += b.bytes
	}
	return n
}

// write makes cursor and plan durable, if it is time to.
func (r *runner) write(now time.Time) {
	if r.mustWrite() && !now.Before(r.writeDue()) {
		_ = r.writeNow(now) // told in trouble, tried again
	}
}

// writeNow makes durable what is known. Only after that are drafts a plan and
// may be sent.
func (r *runner) writeNow(now time.Time) error {
	next := *r.st
	next.Seen = max(next.Seen, r.signed)
	next.Projection, next.Version = r.proj.Name(), r.proj.Version()
	next.Plan = make([]bounds, 0, len(r.plan)+len(r.drafts))
	for _, list := range [][]*batch{r.plan, r.drafts} {
		for _, b := range list {
			next.Plan = append(next.Plan, b.bounds())
		}
	}
	value, err := next.encode()
	if err == nil {
		err = r.eng.state.Put(r.sendCtx, stateTable, r.c.Name, value, time.Time{})
	}
	if err != nil {
		r.writeAt = now.Add(retryWrite)
		r.trouble("writing the cursor", err)
		return err
	}
	*r.st, r.writeAt, r.durable = next, now, next.Cursor
	r.st.Plan = nil // r.plan is what counts
	r.dirty = false
	r.writes++
	r.well("writing the cursor")
	r.forgetWaived()
	for _, b := range r.plan {
		b.hold = false
	}
	for _, b := range r.drafts {
		r.planned(b)
	}
	r.plan, r.drafts = append(r.plan, r.drafts...), nil
	r.advance()
	return nil
}

// planned makes pieces of a batch whose bounds are durable.
func (r *runner) planned(b *batch) {
	p := &piece{b: b}
	for i := range b.items {
		if why := b.fate[i].why; why != nil {
			r.refuse(time.Now(), b, i, why)
			continue
		}
		p.at = append(p.at, i)
	}
	r.await(p)
}

// bounds are what is kept of a batch.
func (b *batch) bounds() bounds {
	out := bounds{To: b.to, Items: b.n, Planned: b.planned.UnixNano()}
	if b.left == 0 {
		sum := b.sum
		out.Settled, out.Sum = true, &sum
	}
	return out
}

// windDown waits for what is under way and writes where delivery stopped.
func (r *runner) windDown() {
	for _, last := range []bool{false, true} {
		t := time.NewTimer(graceful)
		for r.flying > 0 && !r.timedOut(t) {
		}
		if last && r.compare.running && r.flying == 0 { // else the time is over
			select {
			case <-r.compare.result:
			case <-t.C:
			}
		}
		t.Stop()
		if !last {
			r.cancel()
		}
	}
	// What was never sent need not be sent again in the same batches.
	for len(r.plan) > 0 && !r.plan[len(r.plan)-1].sent && r.plan[len(r.plan)-1].left > 0 {
		r.plan = r.plan[:len(r.plan)-1]
		r.dirty = true
	}
	r.drafts = nil
	// Nothing is sent any more; what is known is kept all the same.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.ctx), graceful)
	defer cancel()
	r.sendCtx = ctx
	r.flushNotes(time.Now())
	if r.mustWrite() || r.signed > r.st.Seen {
		_ = r.writeNow(time.Now())
	}
	r.setState(Stopped)
}

// timedOut takes one outcome, or reports that there was none in time.
func (r *runner) timedOut(t *time.Timer) bool {
	select {
	case o := <-r.results:
		r.landed(o)
		return false
	case <-t.C:
		return true
	}
}
