package deliver

import (
	"context"
	"errors"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

func anna(r *record.Record) { r.Authn.Method, r.Personal.Sub = "socket", "anna" }

// in runs a test in a bubble, over a house.
func in(t *testing.T, signed uint64, items int, fn func(*testing.T, *house)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { fn(t, newHouse(t, signed, items)) })
}

// acted checks that an act was recorded once with who did it.
func (h *house) acted(name string) record.Record {
	h.t.Helper()
	list := h.book.noted(name)
	if len(list) != 1 || list[0].Personal.Sub != "anna" || list[0].Kind != record.KindAdmin || list[0].Event.Target != "s" {
		h.t.Fatalf("records of %s: %+v", name, list)
	}
	return list[0]
}

func (h *house) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func TestPauseAndResume(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.must(h.eng.Pause(ctx, anna, "s"))
		h.acted("sink_pause")
		h.book.sign(200)
		time.Sleep(time.Hour)
		s := h.status()
		if s.State != PausedByUs || s.Cursor != 100 || s.Lag != 100 || s.LagSeconds < 3500 || h.eng.Low() != 100 {
			t.Errorf("paused: %+v, low %d", s, h.eng.Low())
		}
		if !slices.ContainsFunc(s.Alarms, func(a string) bool { return strings.Contains(a, "oldest undelivered") }) || len(h.book.noted("sink_lagging")) != 1 {
			t.Errorf("no alarm: %v", s.Alarms)
		}
		h.end() // a restart does not resume
		h.start()
		time.Sleep(time.Hour)
		if h.status().Cursor != 100 {
			t.Error("a restart resumed")
		}
		h.must(h.eng.Resume(ctx, anna, "s"))
		h.acted("sink_resume")
		h.until(time.Minute, "all is settled", h.settled)
		h.until(time.Minute, "the lag is told to be over", func() bool { return len(h.book.noted("sink_caught_up")) == 1 })
		h.end()
		h.oracle()
	})
}

// What a sink answers may quote a record with the personal fields that were named
// for it. It must not come into a record of the book, which every other sink gets.
func TestAnswersStayOutOfRecords(t *testing.T) {
	in(t, 20, 10, func(t *testing.T, h *house) {
		const quote = "cannot index anna@example.org"
		h.sink.script = script(Durable,
			trouble{index: 3, times: -1, class: Poison, item: true, res: Result{Status: 400, Cause: "mapping", Detail: quote}},
			trouble{index: 12, times: -1, class: Retry, res: Result{Status: 503, Cause: "http_503", Detail: quote}})
		h.start()
		h.until(time.Minute, "a record is in quarantine", func() bool { return len(h.jailed()) == 1 })
		time.Sleep(time.Hour)
		list := h.book.noted("sink_lagging")
		if len(list) != 1 || list[0].Event.Cause != "http_503" {
			t.Errorf("records of the lag: %+v", list)
		}
		if s := h.status(); s.State != Retrying || s.Cause != "http_503" || s.LastError != "http_503 (status 503)" {
			t.Errorf("%+v", s)
		}
		h.end()
		for _, r := range h.book.notes {
			if strings.Contains(r.Event.Cause, "anna") {
				t.Errorf("a record quotes an answer: %+v", r.Event)
			}
		}
	})
}

func TestResumeTriesAtOnce(t *testing.T) {
	in(t, 40, 10, func(t *testing.T, h *house) {
		h.conf.PauseRetry = 24 * time.Hour
		h.sink.script = script(Durable, trouble{index: 20, times: 1, class: Pause, res: Result{Status: 404, Cause: "no_index"}})
		h.start()
		h.until(time.Minute, "it is paused", func() bool { return h.status().State == PausedBySink })
		if s := h.status(); s.Cause != "no_index" || len(s.Alarms) != 1 || h.eng.Ready()[0] != s.Alarms[0] {
			t.Errorf("status %+v", s)
		}
		h.must(h.eng.Resume(context.Background(), anna, "s"))
		h.until(time.Minute, "all is settled", h.settled)
		h.end()
		h.oracle()
	})
}

func TestReplay(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		if err := h.eng.Replay(ctx, anna, "s", 101); err == nil {
			t.Error("replayed from where nothing is")
		}
		for i := range uint64(100) {
			h.sink.twiceOK[EventID(testOrigin, i)] = i >= 37
		}
		at, err := h.eng.ReplayTime(ctx, anna, "s", h.book.timeOf(37))
		h.must(err)
		if at != 37 {
			t.Errorf("replayed from %d", at)
		}
		if r := h.acted("sink_replay"); !slices.Contains(r.Links, "first:37") {
			t.Errorf("links %v", r.Links)
		}
		h.until(time.Minute, "all is settled", h.settled)
		time.Sleep(2 * time.Minute)
		h.end()
		h.oracle()
		if s := h.status(); h.sink.taken[EventID(testOrigin, 37)] != 2 || s.Ambiguous != 63 {
			t.Errorf("%d times, %d ambiguous", h.sink.taken[EventID(testOrigin, 37)], s.Ambiguous)
		}
		last := h.book.noted("delivered")
		if r := last[len(last)-1]; !slices.Contains(r.Links, "first:37") || !slices.Contains(r.Links, "twice:63") || r.Event.Exact {
			t.Errorf("receipt %+v", r)
		}
	})
}

// A replay while sends are under way forgets what they come to.
func TestReplayUnderWay(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.sink.lim.InFlight = 3
		h.sink.script = func(int, *Batch) act {
			return act{take: all, wait: 10 * time.Second, res: Result{Class: Done, Grade: Durable}}
		}
		h.start()
		h.until(5*time.Minute, "some is settled", func() bool { return h.status().Cursor >= 30 })
		h.must(h.eng.Replay(context.Background(), anna, "s", 0))
		for i := range uint64(100) {
			h.sink.twiceOK[EventID(testOrigin, i)] = true
		}
		if c := h.status().Cursor; c != 0 {
			t.Errorf("cursor %d after a replay", c)
		}
		h.until(20*time.Minute, "all is settled", h.settled)
		h.end()
		h.oracle()
	})
}

func TestQuarantineActs(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		ctx := context.Background()
		bad := true
		h.sink.script = func(_ int, b *Batch) act {
			a := act{res: Result{Items: make([]Result, len(b.Items))}}
			for i, it := range b.Items {
				if it.Index%30 == 7 && bad {
					a.res.Items[i] = Result{Class: Poison, Status: 400, Cause: "mapping", Detail: "no\nsuch\x00field " + strings.Repeat("x", 600)}
				} else {
					a.res.Items[i].Grade = Accepted
				}
			}
			a.take = func(i int) bool { return a.res.Items[i].Class == Done }
			return a
		}
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.jailIs(7, 37, 67, 97)
		list, err := h.eng.Quarantine(ctx, "s")
		h.must(err)
		if q := list[1]; q.ID != EventID(testOrigin, 37) || q.Status != 400 || q.Attempts != 1 || q.Cause != "mapping" || len(q.Detail) > 512 || !strings.HasPrefix(q.Detail, "no such field x") || q.Projection != "plain" || q.Version != 1 {
			t.Errorf("%+v", q)
		}
		if s := h.status(); s.Quarantine != 4 || len(s.Alarms) != 1 || h.eng.Low() != 7 {
			t.Errorf("status %+v, low %d", s, h.eng.Low())
		}
		h.end()
		h.start() // the quarantine outlives the process
		h.until(time.Minute, "it runs", func() bool { return h.status().State == Running })
		for _, id := range []string{EventID(testOrigin, 8), "0000000000000000-7", "nonsense", ""} {
			if _, err := h.eng.Requeue(ctx, anna, "s", []string{EventID(testOrigin, 7), id}); !errors.Is(err, ErrNotQuarantined) {
				t.Errorf("requeued %q: %v", id, err)
			}
			if _, err := h.eng.Waive(ctx, anna, "s", []string{EventID(testOrigin, 7), id}, "test traffic"); !errors.Is(err, ErrNotQuarantined) {
				t.Errorf("waived %q: %v", id, err)
			}
		}
		if n := len(h.book.noted("sink_requeue")) + len(h.book.noted("sink_waive")); n != 0 || h.status().Resending != 0 {
			t.Errorf("%d acts are on record that were refused", n)
		}
		n, err := h.eng.Waive(ctx, anna, "s", []string{EventID(testOrigin, 97)}, "test traffic")
		h.must(err)
		if r := h.acted("sink_waive"); n != 1 || r.Event.Cause != "test traffic" || r.Links[0] != EventID(testOrigin, 97) || r.Event.Count != 1 {
			t.Errorf("%d, %+v", n, r)
		}
		if _, err := h.eng.Waive(ctx, anna, "s", nil, "  "); err == nil {
			t.Error("waived without a reason")
		}
		// Still refused: stays, with more attempts.
		if n, err = h.eng.Requeue(ctx, anna, "s", []string{EventID(testOrigin, 7)}); n != 1 {
			t.Errorf("%d sent again", n)
		}
		h.must(err)
		h.until(time.Minute, "it was sent again", func() bool { return h.status().Resending == 0 })
		h.jailIs(7, 37, 67)
		h.sink.with(func() { bad = false })
		n, err = h.eng.Requeue(ctx, anna, "s", nil)
		h.must(err)
		if n != 3 {
			t.Errorf("%d requeued", n)
		}
		h.until(time.Minute, "the quarantine is empty", func() bool { return h.status().Quarantine == 0 })
		h.jailIs()
		if len(h.book.noted("sink_requeue")) != 2 {
			t.Error("requeues are not recorded")
		}
		h.end()
		for _, i := range []uint64{7, 37, 67} {
			if h.sink.taken[EventID(testOrigin, i)] != 1 {
				t.Errorf("record %d did not arrive", i)
			}
		}
	})
}

// An act that cannot be recorded is not done, and neither is one of nobody.
func TestActsAreRecordedFirst(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		acts := map[string]func(by Actor, sink string) error{
			"pause":  func(by Actor, s string) error { return h.eng.Pause(ctx, by, s) },
			"resume": func(by Actor, s string) error { return h.eng.Resume(ctx, by, s) },
			"replay": func(by Actor, s string) error { return h.eng.Replay(ctx, by, s, 0) },
			"test":   func(by Actor, s string) error { return h.eng.Test(ctx, by, s) },
		}
		for name, act := range acts {
			if err := act(nil, "s"); err == nil || !strings.Contains(err.Error(), "who acts") {
				t.Errorf("%s by nobody: %v", name, err)
			}
			if err := act(anna, "other"); !errors.Is(err, ErrUnknownSink) {
				t.Errorf("%s of a sink that is none: %v", name, err)
			}
		}
		h.book.noting = func(*record.Record) error { return errFault }
		for name, act := range acts {
			if err := act(anna, "s"); !errors.Is(err, errFault) {
				t.Errorf("%s without a record: %v", name, err)
			}
		}
		if s := h.status(); s.State != Running || s.Cursor != 100 {
			t.Errorf("an act was done without a record: %+v", s)
		}
		h.end()
		if err := h.eng.Pause(ctx, anna, "s"); !errors.Is(err, ErrNotRunning) && !errors.Is(err, errFault) {
			t.Errorf("paused an engine that does not run: %v", err)
		}
	})
}

// A stored state that is not what the engine writes is never taken for none; a
// replay says where to go on.
func TestDamagedState(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.must(h.store.Put(context.Background(), stateTable, "s", []byte(`{"v":1,"origin":"x","cursor":7}`), time.Time{}))
		h.start()
		time.Sleep(time.Hour)
		if s := h.status(); s.State != Failed || h.sink.sends() != 0 || !strings.Contains(s.LastError, "sink replay s --from INDEX") || h.eng.Low() != 0 {
			t.Errorf("%+v, %d sends", s, h.sink.sends())
		}
		if err := h.eng.Pause(context.Background(), anna, "s"); !errors.Is(err, errNoState) {
			t.Errorf("paused: %v", err)
		}
		h.must(h.eng.Replay(context.Background(), anna, "s", 50))
		h.until(time.Minute, "all is settled", h.settled)
		h.end()
		if len(h.sink.taken) != 50 {
			t.Errorf("%d records", len(h.sink.taken))
		}
	})
}

// While the book cannot be read, no act writes over a state that is good: neither half
// of its plan nor another cursor.
func TestActsWhileNotLoaded(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		ctx := context.Background()
		h.conf.InFlight = 3
		h.sink.lim.InFlight = 3
		h.sink.script = func(call int, _ *Batch) act { return act{take: all, hang: call > 2} }
		h.start()
		h.until(time.Minute, "batches are under way", func() bool { return h.sink.sends() >= 4 })
		h.crash()
		was := h.stored()
		if len(was.Plan) < 2 {
			t.Fatalf("no plan: %+v", was)
		}
		h.book.mu.Lock()
		h.book.broken = errFault
		h.book.mu.Unlock()
		h.start()
		h.until(time.Minute, "it has failed", func() bool { return h.status().State == Failed })
		for name, err := range map[string]error{
			"pause": h.eng.Pause(ctx, anna, "s"), "resume": h.eng.Resume(ctx, anna, "s"), "replay": h.eng.Replay(ctx, anna, "s", 90),
		} {
			if err == nil {
				t.Errorf("%s: done without a cursor", name)
			}
		}
		if now := h.stored(); now.Cursor != was.Cursor || len(now.Plan) != len(was.Plan) || now.Paused {
			t.Errorf("the state was %+v and is %+v", was, now)
		}
		h.sink.with(func() { h.sink.script = nil })
		h.book.mu.Lock()
		h.book.broken = nil
		h.book.mu.Unlock()
		h.until(time.Minute, "all is settled", h.settled)
		h.end()
		h.oracle()
	})
}

// A cursor beyond what is signed is of a log that was longer: what this one gets up to
// there would be passed over.
func TestCursorBeyondTheLog(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.end()
		h.book.mu.Lock()
		h.book.signed = 60
		h.book.mu.Unlock()
		h.start()
		time.Sleep(time.Minute)
		if s := h.status(); s.State != Failed || !strings.Contains(s.LastError, "only 60 leaves are signed") {
			t.Errorf("%+v", s)
		}
		h.must(h.eng.Replay(context.Background(), anna, "s", 60))
		h.book.sign(80)
		h.until(time.Minute, "all is settled", h.settled)
		h.end()
		if n := h.sink.taken[EventID(testOrigin, 70)]; n != 2 {
			t.Errorf("record 70 arrived %d times", n)
		}
	})
}

// What was under way at a replay may arrive twice, also after a kill: it is counted.
func TestReplayRemembersWhatWasSent(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.sink.script = func(call int, _ *Batch) act {
			return act{take: all, hang: call >= 3, res: Result{Class: Done, Grade: Durable}}
		}
		h.start()
		h.until(time.Minute, "the third batch is under way", func() bool { return h.sink.sends() == 3 })
		h.must(h.eng.Replay(context.Background(), anna, "s", 0))
		h.crash()
		h.sink.with(func() { h.sink.script = nil })
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		if s := h.status(); s.Ambiguous != 30 {
			t.Errorf("%d may have arrived twice, want 30", s.Ambiguous)
		}
		h.end()
	})
}

// What a sink says while the engine ends is recorded.
func TestLastWordsAreRecorded(t *testing.T) {
	in(t, 10, 10, func(t *testing.T, h *house) {
		h.sink.script = script(Durable, trouble{index: 3, times: -1, class: Pause, wait: time.Second, res: Result{Status: 404, Cause: "no_index"}})
		h.start()
		h.until(time.Minute, "a batch is under way", func() bool { return h.sink.sends() == 1 })
		h.end()
		if n := len(h.book.noted("sink_paused")); n != 1 {
			t.Errorf("%d records of the pause", n)
		}
	})
}

func TestIndexAt(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newBook(3000)
		f.gap = func(i uint64) bool { return i%7 == 0 || i > 1000 && i < 1100 }
		m := &maker{feed: newFeed(f, testOrigin, cacheBytes, nil), proj: &plain{}}
		for _, i := range []uint64{0, 1, 6, 8, 999, 1050, 1500, 2998, 2999} {
			at, err := indexAt(m, 3000, f.timeOf(i))
			if err != nil || at > i || i > 0 && at+120 < i {
				t.Errorf("time of %d: index %d, %v", i, at, err)
			}
			for k := at; k > 0 && k > at-min(at, 10); k-- {
				if !f.gap(k-1) && !f.timeOf(k-1).Before(f.timeOf(i)) {
					t.Errorf("time of %d: %d is left out", i, k-1)
				}
			}
		}
		if at, err := indexAt(m, 3000, f.timeOf(9999)); err != nil || at < 2999 {
			t.Errorf("the future: %d, %v", at, err)
		}
		m.feed.tidy(true)
	})
}

// A sink that is taken out and put back while something is under way has one
// runner at a time: the old one would write its cursor over that of the new one.
func TestSetBackWhileUnderWay(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.sink.script = func(call int, b *Batch) act {
			a := act{take: all, res: Result{Class: Done, Grade: Durable}}
			if call == 2 {
				a.wait = 4 * time.Second // less than what is waited for
			}
			return a
		}
		h.start()
		h.until(time.Minute, "the second batch is under way", func() bool { return h.sink.sends() == 2 })
		h.must(h.eng.Set(nil))
		h.until(time.Minute, "it is taken out", func() bool { return h.eng.runnerOf("s") == nil })
		c := SinkConfig{Name: "s", Sink: h.sink, Projection: h.proj}
		h.must(h.eng.Set([]SinkConfig{c}))
		h.until(time.Minute, "all is settled", h.settled)
		time.Sleep(time.Minute)
		if st := h.stored(); st.Cursor != 100 {
			t.Errorf("the cursor went back to %d", st.Cursor)
		}
		h.end()
		h.oracle()
	})
}

// Sinks come, change and go by a reload; cursors stay.
func TestSet(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		other := newDouble(t, 10)
		conf := func(name, rev string, s Sink) SinkConfig {
			return SinkConfig{Name: name, Revision: rev, Sink: s, Projection: h.proj}
		}
		h.must(h.eng.Set([]SinkConfig{conf("t", "1", other)}))
		h.until(time.Minute, "the new sink has all", func() bool { return other.count() == 100 })
		st := h.eng.Status()
		if len(st) != 2 || st[0].Name != "s" || st[0].State != Unconfigured || st[0].Cursor != 100 || len(h.book.noted("sink_removed")) != 1 {
			t.Errorf("%+v", st)
		}
		was := h.eng.runnerOf("t")
		h.must(h.eng.Set([]SinkConfig{conf("t", "1", other), conf("s", "1", h.sink)}))
		h.book.sign(150)
		h.until(time.Minute, "both have all", func() bool { return other.count() == 150 && h.sink.count() == 150 })
		if h.eng.runnerOf("t") != was {
			t.Error("a sink that had not changed was stopped")
		}
		h.must(h.eng.Set([]SinkConfig{conf("t", "2", other), conf("s", "1", h.sink)}))
		h.book.sign(160)
		h.until(time.Minute, "both have all", func() bool { return other.count() == 160 && h.sink.count() == 160 })
		if h.eng.runnerOf("t") == was {
			t.Error("a sink that has changed was not replaced")
		}
		for i, c := range [][]SinkConfig{{conf("a", "", other), conf("a", "", other)}, {conf("", "", other)}, {conf("a/b", "", other)}, {{Name: "x", Sink: other}}, {{Name: "x", Sink: other, Projection: h.proj, Window: -1}}} {
			if h.eng.Set(c) == nil {
				t.Errorf("list %d was taken", i)
			}
		}
		h.end()
		for id, n := range other.taken {
			if n != 1 {
				t.Errorf("%s arrived %d times", id, n)
			}
		}
	})
}

// After a new log has begun, delivery begins at its first record, and what of the
// old one was not delivered is told.
func TestNewLog(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.sink.script = func(int, *Batch) act { return act{res: Result{Class: Retry, Cause: "http_503"}} }
		h.book.sign(130)
		time.Sleep(time.Minute)
		h.end()
		fresh := newHouse(t, 20, 10)
		fresh.book.origin, fresh.disk, fresh.store = "log.example/n1/other", h.disk, &memStore{disk: h.disk}
		fresh.start()
		fresh.until(time.Minute, "the new log is settled", func() bool { return fresh.sink.count() == 20 && fresh.stored().Cursor == 20 })
		fresh.end()
		list := fresh.book.noted("log_replaced")
		if len(list) != 1 || list[0].Event.Count != 30 || list[0].Outcome != record.Failure || !slices.Equal(list[0].Links, []string{testOrigin, "first:100", "end:130"}) {
			t.Errorf("%+v", list)
		}
		if fresh.sink.taken[EventID("log.example/n1/other", 0)] != 1 {
			t.Error("the first record of the new log did not arrive")
		}
	})
}

func TestFromNow(t *testing.T) {
	in(t, 100, 10, func(t *testing.T, h *house) {
		h.conf.FromNow = true
		h.start()
		time.Sleep(10 * time.Second)
		h.book.sign(110)
		h.until(time.Minute, "all is settled", h.settled)
		h.end()
		for i := range uint64(110) {
			if n := h.sink.taken[EventID(testOrigin, i)]; (n == 1) != (i >= 100) {
				t.Errorf("record %d arrived %d times", i, n)
			}
		}
	})
}

// Where a sink begins that is to begin with what comes is decided once, however
// long its state can be neither read nor written.
func TestFromNowIsDecidedOnce(t *testing.T) {
	for name, trouble := range map[string]func(s *memStore, on bool){
		"read": func(s *memStore, on bool) { s.dead = on },
		"write": func(s *memStore, on bool) {
			s.fault = func(int, string, string) fault { return map[bool]fault{true: failsBefore}[on] }
		},
	} {
		t.Run(name, func(t *testing.T) {
			in(t, 100, 10, func(t *testing.T, h *house) {
				set := func(on bool) {
					h.store.mu.Lock()
					defer h.store.mu.Unlock()
					trouble(h.store, on)
				}
				h.conf.FromNow = true
				set(true)
				h.start()
				time.Sleep(5 * time.Second)
				h.book.sign(150)
				time.Sleep(10 * time.Second)
				if n := h.sink.count(); n != 0 {
					t.Errorf("%d records were sent before it was kept where the sink begins", n)
				}
				set(false)
				h.book.sign(200)
				h.until(time.Minute, "all is settled", h.settled)
				h.end()
				for i := range uint64(200) {
					if n := h.sink.taken[EventID(testOrigin, i)]; (n == 1) != (i >= 100) {
						t.Errorf("record %d arrived %d times", i, n)
					}
				}
			})
		})
	}
}
