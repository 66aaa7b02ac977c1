package deliver

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"testing"
	"time"
)

// chaos is an engine under people who do everything at once, over a sink that answers
// in every way and loses nothing.
type chaos struct {
	*house
	f      *findable
	rnd    *rand.Rand
	bad    map[uint64]bool // records that it refuses, under mu of the sink
	healed bool            // under mu of the sink
	waived map[string]bool
	rev    int
}

func newChaos(t *testing.T, seed uint64) *chaos {
	h, f := comparedHouse(t, 60)
	c := &chaos{house: h, f: f, rnd: rand.New(rand.NewPCG(seed, 7)), bad: map[uint64]bool{}, waived: map[string]bool{}}
	h.sink.lim.Items, h.sink.lim.InFlight = 7, 1+int(seed%3)
	h.conf.CompareItems, h.conf.CompareEvery, h.conf.CompareAfter = 40, 10*time.Minute, 2*time.Minute
	h.conf.SendTimeout, h.conf.PauseRetry, h.conf.PoisonRun = 3*time.Minute, time.Minute, 10
	for i := range uint64(2000) {
		c.bad[i] = c.rnd.IntN(12) == 0
	}
	answers := rand.New(rand.NewPCG(seed, 8)) // under mu of the sink
	h.sink.script = func(_ int, b *Batch) act { return c.answer(answers, b) }
	return c
}

// answer is what the sink does with a batch.
func (c *chaos) answer(rnd *rand.Rand, b *Batch) act {
	a := act{res: Result{Class: Retry, Status: 503, Cause: "http_503"}, wait: time.Duration(rnd.IntN(1500)) * time.Millisecond}
	kind := rnd.IntN(20)
	if c.healed {
		kind = 19
	}
	if kind == 3 || kind == 7 { // done in part, it is sent again as a whole after a reload or a restart
		for i := range b.Items {
			c.sink.twiceOK[b.Items[i].ID] = true
		}
	}
	switch kind {
	case 0:
		return a
	case 1: // the answer is lost
		a.take, a.res.Ambiguous = all, true
		return a
	case 2:
		a.hang = true
		return a
	case 3:
		a.res = Result{Class: Split, Status: 413, Cause: "http_413"}
		return a
	case 4:
		a.res = Result{Class: Pause, Status: 404, Cause: "http_404"}
		return a
	case 5: // too few answers
		a.take, a.res = all, Result{Items: make([]Result, len(b.Items)-1)}
		return a
	case 6:
		a.panic = true
		return a
	}
	a.res = Result{Items: make([]Result, len(b.Items))}
	for i := range b.Items {
		r := &a.res.Items[i]
		switch r.Grade = c.sink.grade; {
		case c.bad[b.Items[i].Index]:
			*r = Result{Class: Poison, Status: 400, Cause: "mapping"}
		case kind == 7 && rnd.IntN(2) == 0:
			*r = Result{Class: Retry, Status: 429, Cause: "http_429"}
		}
	}
	a.take = func(i int) bool { return a.res.Items[i].Class == Done }
	return a
}

// mayTwice notes that records from an index on may arrive twice.
func (c *chaos) mayTwice(from uint64) {
	c.sink.with(func() {
		for i := from; i < 2000; i++ {
			c.sink.twiceOK[EventID(testOrigin, i)] = true
		}
	})
}

// act does something. Acts may be refused; what they did must hold all the same.
func (c *chaos) act(n int) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	var jail []string
	for id := range c.jailed() {
		jail = append(jail, id)
	}
	one := func() []string {
		if len(jail) == 0 {
			return []string{"none"}
		}
		return []string{jail[n%len(jail)]}
	}
	switch n % 16 {
	case 0, 1:
		_ = c.eng.Pause(ctx, anna, "s")
	case 2, 3, 4:
		_ = c.eng.Resume(ctx, anna, "s")
	case 5, 6:
		_, _ = c.eng.Requeue(ctx, anna, "s", nil)
	case 7, 8:
		_, _ = c.eng.Requeue(ctx, anna, "s", one())
	case 9, 10:
		ids := one()
		c.sink.with(func() { c.waived[ids[0]] = true }) // whatever becomes of it: the wish is recorded
		_, _ = c.eng.Waive(ctx, anna, "s", ids, "test traffic")
	case 11:
		from := uint64(0)
		if cursor := c.stored().Cursor; cursor > 0 {
			from = uint64(n) % cursor
		}
		c.mayTwice(from)
		_ = c.eng.Replay(ctx, anna, "s", from)
	case 12, 13:
		c.sink.with(func() { c.rev++ })
		c.reload()
	case 14:
		c.sink.with(func() { c.bad[uint64(n)%200] = false })
	case 15:
		_ = c.eng.Set(nil) // taken out, and put back by the next reload
		time.Sleep(time.Duration(n%7) * time.Second)
		c.reload()
	}
}

func (c *chaos) reload() {
	conf := c.conf
	c.sink.with(func() { conf.Revision = fmt.Sprint(c.rev) })
	conf.Name, conf.Sink, conf.Projection = "s", c.f, c.proj
	if err := c.eng.Set([]SinkConfig{conf}); err != nil {
		c.t.Error(err)
	}
}

// TestChaos: whoever does what at the same time, with kills, restarts and reloads in
// between, every record is at the sink, in quarantine or waived, none came twice
// without a reason, and nothing is told to be missing at a sink that loses nothing.
func TestChaos(t *testing.T) {
	seeds := uint64(16)
	if os.Getenv("GATEBOOK_SOAK") == "1" {
		seeds = 400
	}
	for seed := range seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			in(t, 0, 1, func(t *testing.T, _ *house) { newChaos(t, seed).run() })
		})
	}
}

func (c *chaos) run() {
	c.start()
	for range 25 {
		done := make(chan struct{})
		acts := 1 + c.rnd.IntN(4)
		for range acts {
			n := c.rnd.IntN(1 << 20)
			go func() {
				defer func() { done <- struct{}{} }()
				time.Sleep(time.Duration(n%5000) * time.Millisecond)
				c.act(n)
			}()
		}
		time.Sleep(time.Duration(c.rnd.IntN(400)) * time.Second)
		_, signed := c.book.Signed()
		c.book.sign(signed + uint64(c.rnd.IntN(10)))
		for range acts {
			<-done
		}
		switch c.rnd.IntN(6) {
		case 0:
			for id := range c.jailed() { // what was delivered out of it may be listed still
				c.sink.with(func() { c.sink.twiceOK[id] = true })
			}
			c.crash()
			c.start()
		case 1:
			c.end()
			c.start()
		}
	}
	c.recover()
}

// recover heals the sink and checks what has become of everything.
func (c *chaos) recover() {
	c.t.Helper()
	c.sink.with(func() { c.healed = true })
	c.reload()
	c.until(time.Minute, "it is loaded", func() bool { s := c.status().State; return s != Starting && s != Stopped && s != Unconfigured })
	c.must(c.eng.Resume(context.Background(), anna, "s"))
	c.until(6*time.Hour, "all is settled", c.settled)
	c.until(time.Hour, "nothing is under way beside the plan", func() bool { return c.status().Resending == 0 })
	_, signed := c.book.Signed()
	c.until(24*time.Hour, "all of it is compared", func() bool { return c.stored().Compared == signed })
	c.end()
	jail := c.jailed()
	for i := range signed {
		id := EventID(testOrigin, i)
		n := c.sink.taken[id]
		if n == 0 && jail[id] == nil && !c.waived[id] {
			c.t.Errorf("%s is nowhere", id)
		}
		if n > 1 && !c.sink.twiceOK[id] {
			c.t.Errorf("%s arrived %d times and nothing was ambiguous", id, n)
		}
	}
	for _, r := range c.book.noted("compared") {
		if r.Event.Cause != "complete" || !strings.HasPrefix(r.Links[2], "grade:G3") {
			c.t.Errorf("told to be missing: %v", r.Links)
		}
	}
}
