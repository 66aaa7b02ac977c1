package deliver

import (
	"context"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// refuser makes a sink that refuses some records, one by one, for as long as told.
func (h *house) refuser(bad *bool, indexes ...uint64) {
	h.sink.script = func(_ int, b *Batch) act {
		a := act{res: Result{Items: make([]Result, len(b.Items))}}
		for i := range b.Items {
			if *bad && slices.Contains(indexes, b.Items[i].Index) {
				a.res.Items[i] = Result{Class: Poison, Status: 400, Cause: "mapping"}
			} else {
				a.res.Items[i].Grade = Durable
			}
		}
		a.take = func(i int) bool { return a.res.Items[i].Class == Done }
		return a
	}
}

// Two who requeue the same records at the same time, or once more while they are
// under way, have them sent once.
func TestRequeuedTwice(t *testing.T) {
	for name, between := range map[string]func(*house){
		"before they are sent":     func(*house) {},
		"while they are under way": func(h *house) { time.Sleep(3 * time.Second) },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 100, 10, func(t *testing.T, h *house) {
				ctx := context.Background()
				bad := true
				h.refuser(&bad, 7, 37, 38)
				h.start()
				h.until(time.Minute, "all is settled", h.settled)
				h.jailIs(7, 37, 38)
				h.sink.with(func() {
					bad = false
					refuse := h.sink.script
					h.sink.script = func(call int, b *Batch) act {
						a := refuse(call, b)
						a.wait = 10 * time.Second
						return a
					}
				})
				_, err := h.eng.Requeue(ctx, anna, "s", nil)
				h.must(err)
				between(h)
				_, err = h.eng.Requeue(ctx, anna, "s", []string{EventID(testOrigin, 37)})
				h.must(err)
				h.until(5*time.Minute, "the quarantine is empty", func() bool { return h.status().Quarantine == 0 })
				time.Sleep(5 * time.Minute)
				h.end()
				h.oracle()
				h.jailIs()
			})
		})
	}
}

// What one picks and another has delivered before it is recorded is not sent again.
func TestRequeuedByTwo(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		ctx := context.Background()
		bad := true
		h.refuser(&bad, 7, 37, 38)
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.sink.with(func() { bad = false })
		bert := func(*record.Record) { // he waits between picking and doing
			_, err := h.eng.Requeue(ctx, anna, "s", nil)
			h.must(err)
			h.until(5*time.Minute, "the quarantine is empty", func() bool { return h.status().Quarantine == 0 })
		}
		_, err := h.eng.Requeue(ctx, bert, "s", nil)
		h.must(err)
		time.Sleep(5 * time.Minute)
		h.end()
		h.oracle()
	})
}

// What comes out of the quarantine has a receipt of its own, with what is known of it;
// one that is refused again may be at the sink as before.
func TestReceiptOfRequeued(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		ctx := context.Background()
		bad := true
		h.sink.script = func(_ int, b *Batch) act {
			a := act{res: Result{Items: make([]Result, len(b.Items))}}
			for i := range b.Items {
				a.res.Items[i].Grade = Durable
				if n := b.Items[i].Index; n == 7 || n == 37 && bad {
					a.res.Items[i] = Result{Class: Poison, Status: 400, Cause: "mapping", Ambiguous: b.Attempt == 1 && bad}
				}
			}
			a.take = func(i int) bool { return a.res.Items[i].Class == Done }
			return a
		}
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.crash()
		h.start()
		h.until(time.Minute, "it runs", func() bool { return h.status().State == Running })
		h.sink.with(func() { bad = false })
		_, err := h.eng.Requeue(ctx, anna, "s", nil)
		h.must(err)
		h.until(time.Minute, "one is left", func() bool { return h.status().Quarantine == 1 })
		time.Sleep(time.Minute)
		h.end()
		h.jailIs(7)
		if q := h.jailed()[EventID(testOrigin, 7)]; !q.Ambiguous {
			t.Errorf("it is forgotten that it may be there: %+v", q)
		}
		list := h.book.noted("redelivered")
		if len(list) != 1 || list[0].Event.Count != 1 || list[0].Event.Exact || list[0].Kind != record.KindDelivery ||
			!slices.Equal(list[0].Links, []string{"first:7", "last:37", "grade:G2", "form:plain/1", "twice:1", "quarantined:1"}) {
			t.Errorf("%+v", list)
		}
	})
}

// Who requeues many records too early has them refused again, and nothing else waits
// for it: what was refused before is no sign that the sink takes nothing.
func TestRequeuedTooEarly(t *testing.T) {
	in(t, 400, 50, func(t *testing.T, h *house) {
		h.conf.PoisonRun = 16
		h.sink.script = func(_ int, b *Batch) act {
			odd := func(it Item) bool { return it.Index%2 == 1 && it.Index < 400 }
			if slices.ContainsFunc(b.Items, odd) {
				return act{res: Result{Class: Poison, Status: 400, Cause: "http_400"}}
			}
			return act{take: all, res: Result{Class: Done, Grade: Durable}}
		}
		h.start()
		h.until(time.Hour, "all is settled", h.settled)
		n, err := h.eng.Requeue(context.Background(), anna, "s", nil)
		h.must(err)
		if n != 200 {
			t.Fatalf("%d in quarantine", n)
		}
		time.Sleep(2 * time.Second)
		h.book.sign(420)
		h.until(time.Minute, "what is new is settled", h.settled)
		h.until(time.Hour, "all were refused again", func() bool { return h.status().Resending == 0 })
		if n := len(h.book.noted("sink_paused")); n != 0 || len(h.jailed()) != 200 {
			t.Errorf("paused %d times, %d in quarantine", n, len(h.jailed()))
		}
		h.end()
		h.oracle()
	})
}

// Who requeues records of a sink that is paused and then waives them does not want
// them there.
func TestWaivedAfterRequeue(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		ctx := context.Background()
		bad := true
		h.refuser(&bad, 7, 37)
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.sink.with(func() { bad = false })
		h.must(h.eng.Pause(ctx, anna, "s"))
		_, err := h.eng.Requeue(ctx, anna, "s", nil)
		h.must(err)
		_, err = h.eng.Waive(ctx, anna, "s", []string{EventID(testOrigin, 37)}, "test traffic")
		h.must(err)
		h.must(h.eng.Resume(ctx, anna, "s"))
		h.until(time.Minute, "the quarantine is empty", func() bool { return h.status().Quarantine == 0 })
		time.Sleep(time.Minute)
		h.end()
		h.jailIs()
		if one, two := h.sink.taken[EventID(testOrigin, 7)], h.sink.taken[EventID(testOrigin, 37)]; one != 1 || two != 0 {
			t.Errorf("the requeued one arrived %d times, the waived one %d times", one, two)
		}
	})
}

// An act that comes while a reload replaces the sink is done by the new one, and not
// recorded for nothing.
func TestActDuringReload(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.sink.script = func(call int, _ *Batch) act {
			return act{take: all, wait: 3 * time.Second, res: Result{Class: Done, Grade: Durable}}
		}
		h.start()
		h.until(time.Minute, "something is under way", func() bool { return h.status().InFlight > 0 })
		var wg sync.WaitGroup
		wg.Go(func() {
			for range 20 { // each ends what is under way
				if err := h.eng.Set([]SinkConfig{{Name: "s", Sink: h.sink, Projection: h.proj}}); err != nil {
					t.Error(err)
				}
				time.Sleep(500 * time.Millisecond)
			}
		})
		for range 20 {
			time.Sleep(550 * time.Millisecond)
			if err := h.eng.Pause(ctx, anna, "s"); err != nil {
				t.Errorf("pause: %v", err)
			}
			if err := h.eng.Resume(ctx, anna, "s"); err != nil {
				t.Errorf("resume: %v", err)
			}
		}
		wg.Wait()
		h.until(10*time.Minute, "all is settled", h.settled)
		h.end()
		h.oracle()
		if n, m := len(h.book.noted("sink_pause")), len(h.book.noted("sink_resume")); n != 20 || m != 20 {
			t.Errorf("%d pauses and %d resumes are recorded", n, m)
		}
	})
}

// keyed is a sink with several sends under way that each show the credential of their
// beginning.
type keyed struct {
	*double
	key, want string // under mu of double
	kept      string // where it is read again
}

func (k *keyed) Send(ctx context.Context, b *Batch) Result {
	k.mu.Lock()
	k.calls++
	n := k.calls
	good := k.key == k.want
	k.mu.Unlock()
	time.Sleep(time.Duration(1+n%4) * time.Second)
	if !good {
		return Result{Class: Pause, Status: 401, Cause: "http_401"}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	for i := range b.Items {
		k.taken[b.Items[i].ID]++
	}
	return Result{Class: Done, Grade: Durable}
}

func (k *keyed) Renew() (bool, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	changed := k.key != k.kept
	k.key = k.kept
	return changed, nil
}

// A key that is rotated while several sends are under way stops nothing: their
// refusals are about the old one.
func TestRotatedUnderWay(t *testing.T) {
	in(t, 1000, 10, func(t *testing.T, h *house) {
		h.sink.lim.InFlight = 4
		k := &keyed{double: h.sink, key: "old", want: "old", kept: "old"}
		h.as = k
		h.start()
		h.until(time.Minute, "four are under way", func() bool { return h.status().InFlight == 4 })
		h.sink.with(func() { k.want, k.kept = "new", "new" })
		h.until(20*time.Minute, "all is settled", h.settled)
		if n := len(h.book.noted("sink_paused")); n != 0 {
			t.Errorf("paused %d times", n)
		}
		// A key that is no better stops it still.
		h.sink.with(func() { k.want, k.kept = "none has it", "newer" })
		h.book.sign(1100)
		h.until(time.Minute, "it is paused", func() bool { return h.status().State == PausedBySink })
		h.sink.with(func() { k.want = "newer" })
		h.until(time.Hour, "all is settled", h.settled)
		h.end()
		h.oracle()
	})
}

// What was left behind of a log that is replaced is counted to where the log was
// known to go, also if the sink was stuck meanwhile and wherever the process ended.
func TestNewLogAfterStuck(t *testing.T) {
	for name, end := range map[string]func(*house){
		"ended":  func(h *house) { time.Sleep(2 * time.Second); h.end() },
		"killed": func(h *house) { time.Sleep(2 * time.Minute); h.crash() },
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 100, 10, func(t *testing.T, h *house) {
				h.start()
				h.until(time.Minute, "all is settled", h.settled)
				h.sink.with(func() {
					h.sink.script = func(int, *Batch) act { return act{res: Result{Class: Retry, Cause: "http_503"}} }
				})
				h.book.sign(130)
				time.Sleep(10 * time.Minute)
				h.book.sign(900)
				end(h)
				fresh := newHouse(t, 20, 10)
				fresh.book.origin, fresh.disk, fresh.store = "log.example/n1/other", h.disk, &memStore{disk: h.disk}
				fresh.start()
				fresh.until(time.Minute, "the new log is settled", fresh.settled)
				fresh.end()
				list := fresh.book.noted("log_replaced")
				if len(list) != 1 || list[0].Event.Count != 800 || !slices.Equal(list[0].Links, []string{testOrigin, "first:100", "end:900"}) {
					t.Errorf("%+v", list)
				}
			})
		})
	}
}

// A damaged entry in the quarantine of one sink stops that one alone, and says which
// it is.
func TestDamagedQuarantineOfAnother(t *testing.T) {
	in(t, 50, 10, func(t *testing.T, h *house) {
		h.must(h.store.Put(context.Background(), quarantineTable, "s2/x", []byte(`{"v":1}`), time.Time{}))
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		if list, err := h.eng.Quarantine(context.Background(), "s"); err != nil || len(list) != 0 {
			t.Errorf("%v, %v", list, err)
		}
		if _, err := h.eng.Quarantine(context.Background(), ""); err == nil || !strings.Contains(err.Error(), "s2/x") {
			t.Errorf("the damaged one is not named: %v", err)
		}
		h.end()
		if n := h.sink.count(); n != 50 {
			t.Errorf("%d records arrived", n)
		}
	})
}
