package deliver

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/kv"
)

// What is signed is sent and nothing above; leaves that are no records are
// passed over.
func TestOnlySigned(t *testing.T) {
	in(t, 10, 4, func(t *testing.T, h *house) {
		h.book.gap = func(i uint64) bool { return i%5 == 4 }
		h.start()
		for n := uint64(10); n < 60; n += 7 {
			h.book.sign(n)
			h.until(time.Minute, "all is settled", h.settled)
			for id := range h.sink.taken {
				var i uint64
				fmt.Sscan(id[strings.IndexByte(id, '-')+1:], &i)
				if i >= n || h.book.gap(i) {
					t.Fatalf("%s was sent and %d are signed", id, n)
				}
			}
		}
		h.end()
		h.oracle()
	})
}

// In order, with one send at a time, records arrive in the order of the book.
func TestOrder(t *testing.T) {
	in(t, 300, 7, func(t *testing.T, h *house) {
		h.sink.script = script(Durable, trouble{index: 20, times: 3, class: Retry}, trouble{index: 100, times: 1, class: Split}, trouble{index: 150, times: 1, class: Pause})
		h.start()
		h.until(time.Hour, "all is settled", h.settled)
		h.end()
		if !slices.IsSorted(h.sink.order) {
			t.Errorf("order %v", h.sink.order)
		}
	})
}

// Batches keep to the limits of the sink and to the narrower ones of the
// configuration.
func TestBounds(t *testing.T) {
	for name, c := range map[string]struct {
		lim                Limits
		conf               SinkConfig
		items, bytes, most int
	}{
		"the sink's":          {lim: Limits{Items: 9, Bytes: 2000, Item: 500, Overhead: 10, InFlight: 2}, items: 9, bytes: 2000, most: 2},
		"bytes":               {lim: Limits{Items: 900, Bytes: 700, Item: 500, Overhead: 50, InFlight: 1}, items: 900, bytes: 700, most: 1},
		"narrower":            {lim: Limits{Items: 900, Bytes: 1 << 20, Item: 500, InFlight: 8}, conf: SinkConfig{BatchItems: 5, BatchBytes: 900, InFlight: 3}, items: 5, bytes: 900, most: 3},
		"not wider":           {lim: Limits{Items: 3, Bytes: 600, Item: 500, InFlight: 1}, conf: SinkConfig{BatchItems: 50, BatchBytes: 9000, InFlight: 3}, items: 3, bytes: 600, most: 1},
		"nonsense":            {lim: Limits{Items: -1, Bytes: 0, Item: 0, Overhead: -5, InFlight: 0}, items: 1, bytes: 1 << 20, most: 1},
		"one at a time":       {lim: Limits{Items: 900, Bytes: 1 << 20, Item: 500, InFlight: 8}, conf: SinkConfig{BatchItems: 1}, items: 1, bytes: 1 << 20, most: 8},
		"a window of a byte":  {lim: Limits{Items: 9, Bytes: 2000, Item: 500, InFlight: 4}, conf: SinkConfig{Window: 1}, items: 9, bytes: 2000, most: 1},
		"window of few items": {lim: Limits{Items: 100, Bytes: 1 << 20, Item: 500, InFlight: 4}, conf: SinkConfig{WindowItems: 10}, items: 10, bytes: 1 << 20, most: 1},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 400, 1, func(t *testing.T, h *house) {
				h.sink.lim, h.conf = c.lim, c.conf
				items, bytes := 0, 0
				h.sink.script = func(_ int, b *Batch) act {
					n := 0
					for _, it := range b.Items {
						n += len(it.Body) + max(c.lim.Overhead, 0)
					}
					items, bytes = max(items, len(b.Items)), max(bytes, n)
					return act{take: all, wait: time.Second, res: Result{Class: Done, Grade: Durable}}
				}
				h.start()
				h.until(time.Hour, "all is settled", h.settled)
				h.end()
				h.oracle()
				if items > c.items || bytes > c.bytes || h.sink.most > c.most || c.bytes < 1<<20 && bytes < c.bytes/2 && items < c.items {
					t.Errorf("%d items, %d bytes, %d abreast", items, bytes, h.sink.most)
				}
			})
		})
	}
}

// The window bounds what is in memory however long the sink is away.
func TestWindow(t *testing.T) {
	in(t, 50_000, 100, func(t *testing.T, h *house) {
		h.conf.Window = 64 << 10
		h.sink.lim.InFlight = 4
		h.sink.script = script(Durable, trouble{index: 0, times: 40, class: Retry, res: Result{Cause: "http_503"}})
		h.start()
		most := 0
		for range 300 {
			time.Sleep(5 * time.Second)
			most = max(most, h.status().Held)
		}
		h.until(time.Hour, "all is settled", h.settled)
		h.end()
		h.oracle()
		if most > 64<<10+100*100 || most == 0 {
			t.Errorf("%d bytes were held", most)
		}
	})
}

// One item that is retried on and on does not hold up the others, until the
// window is full, and the cursor stays in front of it.
func TestHole(t *testing.T) {
	in(t, 1000, 10, func(t *testing.T, h *house) {
		h.sink.lim.InFlight = 2
		h.sink.script = script(Durable, trouble{index: 33, times: 30, class: Retry, item: true, res: Result{Status: 429, Cause: "http_429"}})
		h.start()
		time.Sleep(time.Minute)
		if s := h.status(); s.Cursor != 30 || h.sink.count() != 999 {
			t.Errorf("cursor %d, %d at the sink", s.Cursor, h.sink.count())
		}
		h.end() // what lies behind the hole is not sent again after a restart
		h.sink.twiceOK = map[string]bool{}
		for i := uint64(30); i < 40; i++ {
			h.sink.twiceOK[EventID(testOrigin, i)] = true // of the batch that was not done
		}
		h.start()
		h.until(time.Hour, "all is settled", h.settled)
		h.end()
		h.oracle()
	})
}

// A record that is too long is replaced by a stub; one that cannot be projected
// too; one that has no stub either goes into the quarantine. Nothing is left out.
func TestProjectionTrouble(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.sink.lim.Item = 300
		h.proj.pad = func(i uint64) int { return int(i%10) / 9 * 500 }
		h.proj.err = func(i uint64) error {
			switch i {
			case 3:
				return errors.New("no such field")
			case 4:
				panic("out of range")
			case 5, 65:
				return errNoStub
			}
			return nil
		}
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		time.Sleep(10 * time.Minute)
		if n, err := h.eng.Requeue(context.Background(), anna, "s", nil); n != 2 || err != nil {
			t.Errorf("%d, %v", n, err)
		}
		time.Sleep(time.Hour)
		if n := h.status().Resending; n != 0 {
			t.Errorf("%d are sent again for ever", n)
		}
		h.end()
		h.oracle()
		h.jailIs(5, 65)
		if s := h.status(); s.Stubs != 12 {
			t.Errorf("%d stubs", s.Stubs)
		}
		for _, q := range h.jailed() {
			if q.Cause != "projection" || !strings.Contains(q.Detail, "no stub") || q.Attempts != 0 {
				t.Errorf("%+v", q)
			}
		}
		if b := h.sink.bodies[EventID(testOrigin, 19)]; !bytes.Contains(b, []byte(`"stub":`)) {
			t.Errorf("body %s", b)
		}
	})
}

// When everything is refused it is the configuration that is wrong: the sink is
// paused, not the whole book put into quarantine.
func TestRefusesAll(t *testing.T) {
	in(t, 500, 50, func(t *testing.T, h *house) {
		h.conf.PoisonRun = 16
		refuse := true
		h.sink.script = func(_ int, b *Batch) act {
			if refuse {
				return act{res: Result{Class: Poison, Status: 400, Cause: "bad"}}
			}
			return act{take: all, res: Result{Class: Done, Grade: Durable}}
		}
		h.start()
		time.Sleep(4 * time.Minute)
		s := h.status()
		if s.State != PausedBySink || s.Cause != "refuses_all" || s.Quarantine != 16 {
			t.Errorf("%+v", s)
		}
		// An operator may say that it is so: then they all go into quarantine.
		h.must(h.eng.Resume(context.Background(), anna, "s"))
		h.until(time.Hour, "many are in quarantine", func() bool { return h.status().Quarantine >= 100 })
		h.sink.with(func() { refuse = false })
		h.until(time.Hour, "all is settled", h.settled)
		h.end()
		h.oracle()
	})
}

// An item that has become older than the sink takes while it waited is flagged,
// and that is durable before it is sent so.
func TestLate(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.sink.lim.MaxAge = 18 * time.Hour
		h.book.every = time.Minute
		h.book.base = time.Now().Add(-17 * time.Hour)
		away := true
		late := map[uint64]bool{}
		var planned time.Time
		h.sink.script = func(_ int, b *Batch) act {
			for _, it := range b.Items {
				late[it.Index] = it.Late
				if was := b.Planned.Sub(it.Time) > 18*time.Hour; was != it.Late {
					t.Errorf("record %d, planned %v after it began, late %v", it.Index, b.Planned.Sub(it.Time), it.Late)
				}
				if age := time.Since(it.Time); age > 18*time.Hour && !it.Late {
					t.Errorf("record %d is %v old and not flagged", it.Index, age)
				}
			}
			planned = b.Planned
			if away {
				return act{res: Result{Class: Retry, Cause: "http_503"}}
			}
			return act{take: all, res: Result{Class: Done, Grade: Accepted}}
		}
		h.start()
		time.Sleep(2 * time.Hour)
		st := h.stored()
		h.sink.with(func() {
			if len(st.Plan) == 0 || !st.Plan[0].planned().Equal(planned) {
				t.Errorf("planned %v, stored %+v", planned, st.Plan)
			}
			away = false
		})
		h.until(time.Hour, "all is settled", h.settled)
		s := h.status()
		h.end()
		h.oracle()
		n := 0
		for _, l := range late {
			if l {
				n++
			}
		}
		if n < 60 || n == 100 || s.Late != int64(n) {
			t.Errorf("%d late, status %d", n, s.Late)
		}
	})
}

// errNoStub makes the stub fail too.
var errNoStub = errors.New("no stub")

// Receipts: one a minute at most, their ranges without a hole and without an
// overlap, their counts those of the sink; records about delivery alone make
// none, or they would go on for ever.
func TestReceipts(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		var mu sync.Mutex
		kinds := map[uint64]record.Kind{}
		h.book.kind = func(i uint64) record.Kind {
			mu.Lock()
			defer mu.Unlock()
			if k, ok := kinds[i]; ok {
				return k
			}
			return record.KindRequest
		}
		h.book.grow = func(r *record.Record) { // what is noted is delivered too
			mu.Lock()
			defer mu.Unlock()
			kinds[h.book.signed] = r.Kind
			h.book.signed++
		}
		h.sink.grade = Accepted
		h.sink.script = script(Accepted, trouble{index: 55, times: -1, class: Poison}, trouble{index: 80, times: 1, class: Retry, took: true, res: Result{Ambiguous: true}})
		for i := uint64(80); i < 90; i++ {
			h.sink.twiceOK[EventID(testOrigin, i)] = true
		}
		h.start()
		time.Sleep(5 * time.Minute)
		_, n := h.book.Signed()
		time.Sleep(3 * time.Hour)
		_, later := h.book.Signed()
		if later != n {
			t.Errorf("an idle book grew from %d to %d", n, later)
		}
		h.book.sign(later + 50)
		time.Sleep(5 * time.Minute)
		h.end()
		h.oracle()
		var count, twice, refused int64
		at := uint64(0)
		list := h.book.noted("delivered")
		for i, r := range list {
			var first, last, n uint64
			fmt.Sscanf(r.Links[0], "first:%d", &first)
			fmt.Sscanf(r.Links[1], "last:%d", &last)
			if first != at || last < first || r.Links[2] != "grade:G1" || r.Links[3] != "form:plain/1" || r.Event.Target != "s" || r.Kind != record.KindDelivery {
				t.Errorf("receipt %d begins at %d, want %d: %+v", i, first, at, r)
			}
			if i > 0 && r.Time-list[i-1].Time < receiptEvery.Microseconds() {
				t.Errorf("receipts %v apart", time.Duration(r.Time-list[i-1].Time)*time.Microsecond)
			}
			at = last + 1
			count += r.Event.Count
			for _, l := range r.Links[4:] {
				if _, err := fmt.Sscanf(l, "twice:%d", &n); err == nil {
					twice += int64(n)
				}
				if _, err := fmt.Sscanf(l, "quarantined:%d", &n); err == nil {
					refused += int64(n)
				}
			}
		}
		if len(list) != 2 || refused != 1 || twice != 10 || count+refused != int64(at) {
			t.Errorf("%d receipts up to %d: %d delivered, %d perhaps twice, %d refused", len(list), at, count, twice, refused)
		}
	})
}

// A receipt under way survives a kill, and a book that takes none is asked again.
func TestReceiptsSurvive(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.book.noting = func(*record.Record) error { return errFault }
		h.start()
		time.Sleep(3 * time.Minute)
		if s := h.status(); s.State != Failed || s.Receipted != 0 || s.Cursor != 100 {
			t.Errorf("%+v", s)
		}
		h.crash()
		h.book.noting = nil
		h.start()
		time.Sleep(3 * time.Minute)
		h.end()
		list := h.book.noted("delivered")
		if len(list) != 1 || list[0].Event.Count != 100 || !slices.Contains(list[0].Links, "first:0") || !slices.Contains(list[0].Links, "last:99") {
			t.Errorf("%+v", list)
		}
	})
}

// A slow, a hung, a dead and a paused sink delay no other.
func TestNoSinkDelaysAnother(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, 2000, 10)
		var sinks []SinkConfig
		add := func(name string, script func(int, *Batch) act) *double {
			d := newDouble(t, 100)
			d.script = script
			sinks = append(sinks, SinkConfig{Name: name, Sink: d, Projection: h.proj})
			return d
		}
		add("hung", func(int, *Batch) act { return act{hang: true} })
		add("dead", func(int, *Batch) act { return act{res: Result{Class: Retry, Cause: "refused", After: time.Hour}} })
		add("slow", func(int, *Batch) act {
			return act{take: all, wait: 30 * time.Second, res: Result{Class: Done, Grade: Durable}}
		})
		add("closed", func(int, *Batch) act { return act{res: Result{Class: Pause, Status: 404, Cause: "no_index"}} })
		good := add("good", nil)
		e, err := New(Config{Book: h.book, State: h.store, src: h.book, Sinks: sinks})
		h.must(err)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- e.Run(ctx) }()
		for n := uint64(2000); n < 4000; n += 50 {
			h.book.sign(n)
			time.Sleep(2 * time.Second)
			good.mu.Lock()
			have := uint64(len(good.taken))
			good.mu.Unlock()
			if have < n-50 {
				t.Fatalf("%d of %d records after two seconds", have, n)
			}
		}
		cancel()
		h.must(<-done)
	})
}

// A book that cannot be read stops delivery where it is, loudly, and nothing is
// left out when it can be read again.
func TestBookTrouble(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.book.mu.Lock()
		h.book.broken = errFault
		h.book.mu.Unlock()
		h.book.sign(300)
		time.Sleep(time.Minute)
		if s := h.status(); s.State != Failed || len(s.Alarms) == 0 || s.Cursor != 100 {
			t.Errorf("%+v", s)
		}
		h.book.mu.Lock()
		h.book.broken = nil
		h.book.mu.Unlock()
		h.until(time.Minute, "all is settled", h.settled)
		if s := h.status(); s.State != Running || s.LastError != "" {
			t.Errorf("%+v", s)
		}
		h.end()
		h.oracle()
	})
}

// A caught-up engine writes nothing and reads nothing; at a trickle it writes
// about once a second; at full speed not much more.
func TestWritesAreRare(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		time.Sleep(time.Minute) // the receipt
		writes, reads := h.store.writes(), h.book.handedOut()
		time.Sleep(time.Hour)
		if h.store.writes() != writes || h.book.handedOut() != reads {
			t.Errorf("%d writes and %d records read in an idle hour", h.store.writes()-writes, h.book.handedOut()-reads)
		}
		for range 100 {
			time.Sleep(time.Second)
			h.book.sign(h.book.signed + 3)
		}
		if n := h.store.writes() - writes; n > 110 {
			t.Errorf("%d writes in 100 s at a trickle", n)
		}
		writes, reads = h.store.writes(), h.book.handedOut()
		h.book.sign(h.book.signed + 100_000)
		h.until(time.Minute, "all is settled", h.settled)
		if n := h.store.writes() - writes; n > 50 {
			t.Errorf("%d writes for 10,000 batches", n)
		}
		if n := h.book.handedOut() - reads; n > 101_000 {
			t.Errorf("%d records read for 100,000", n)
		}
		h.end()
		h.oracle()
	})
}

// A week away at 500 records a second and then back: everything arrives, in
// bounded memory. The normal run has one record a second.
func TestWeekAway(t *testing.T) {
	rate := uint64(1)
	if os.Getenv("GATEBOOK_SOAK") == "1" {
		rate = 500
	}
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, 0, 1000)
		h.book.every = time.Second / time.Duration(rate)
		sink := &counting{lim: Limits{Items: 1000, Bytes: 4 << 20, Item: 1 << 16, InFlight: 2, MaxAge: 18 * time.Hour}}
		h.as, h.poll = sink, time.Minute
		h.start()
		const week = 7 * 24 * time.Hour
		begin := time.Now()
		for away := time.Duration(0); away < week; away += 10 * time.Minute {
			time.Sleep(10 * time.Minute)
			h.book.sign(uint64(time.Since(begin).Seconds()) * rate)
			if s := h.status(); away > time.Hour && (s.Held > 17<<20 || s.LagSeconds < (away-time.Hour).Seconds()) {
				t.Fatalf("after %v: %+v", away, s)
			}
		}
		sink.mu.Lock()
		sink.back = true
		sink.mu.Unlock()
		h.until(24*time.Hour, "all is settled", h.settled)
		h.end()
		if n := h.book.signed; sink.next != n || n < uint64(week.Seconds())*rate*99/100 {
			t.Errorf("%d of %d records arrived in order", sink.next, n)
		}
		if len(h.jailed()) > 0 {
			t.Error("records are in quarantine")
		}
		t.Logf("%d records, %d of them late", sink.next, sink.late)
		if sink.late < sink.next*8/10 {
			t.Errorf("%d of %d are flagged late", sink.late, sink.next)
		}
	})
}

// counting is a sink that is away, and back, and then takes records once each.
type counting struct {
	mu         sync.Mutex
	lim        Limits
	back       bool
	next, late uint64
	seen       map[uint64]bool
}

func (c *counting) Limits() Limits             { return c.lim }
func (c *counting) Grade() Grade               { return Durable }
func (c *counting) Test(context.Context) error { return nil }
func (c *counting) Send(_ context.Context, b *Batch) Result {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.back {
		return Result{Class: Retry, Cause: "refused"}
	}
	if c.seen == nil {
		c.seen = map[uint64]bool{}
	}
	for _, it := range b.Items {
		c.seen[it.Index] = true
		if it.Late {
			c.late++
		}
	}
	for c.seen[c.next] {
		delete(c.seen, c.next)
		c.next++
	}
	return Result{Class: Done, Grade: Durable}
}

// The store of the server, closed under the engine at any moment and opened
// again, as after kill -9.
func TestLocalStoreKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "live.db")
	h := newHouse(t, 5000, 50)
	h.sink.lim.InFlight = 3
	for run := 0; ; run++ {
		l, err := kv.OpenLocal(path, [32]byte{1}, nil)
		h.must(err)
		if b, err := l.Get(context.Background(), stateTable, "s"); err == nil {
			st, err := decodeState(b)
			h.must(err)
			for id := range h.sink.taken {
				h.sink.twiceOK[id] = true
			}
			for i := range st.Cursor {
				if h.sink.taken[EventID(testOrigin, i)] == 0 {
					t.Fatalf("run %d: cursor %d is ahead of record %d", run, st.Cursor, i)
				}
			}
			if st.Cursor == 5000 {
				h.must(l.Close())
				break
			}
		}
		if run > 200 {
			t.Fatal("it does not come to an end")
		}
		closed := make(chan struct{})
		begun, calls := h.sink.calls, 1+run*7%31
		h.sink.script = func(n int, _ *Batch) act {
			a := act{take: all, res: Result{Class: Done, Grade: Durable}}
			if n == begun+calls {
				a.then = func() { l.Close(); close(closed) }
			}
			return a
		}
		e, err := New(Config{Book: h.book, State: l, src: h.book, Sinks: []SinkConfig{{Name: "s", Sink: h.sink, Projection: h.proj, Window: 20_000}}})
		h.must(err)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- e.Run(ctx) }()
		select {
		case <-closed:
		case <-time.After(3 * time.Second):
			h.must(l.Close())
		}
		cancel()
		h.must(<-done)
	}
	if len(h.sink.taken) != 5000 || len(h.sink.rewritten) > 0 {
		t.Errorf("%d records, %d rewritten", len(h.sink.taken), len(h.sink.rewritten))
	}
}
