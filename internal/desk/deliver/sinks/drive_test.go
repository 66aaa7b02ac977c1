package sinks

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/testenv/scripted"
)

const testOrigin = "gatebook.example/test"

// testItems are n records from an index on; the bodies say which they are.
func testItems(from uint64, n int, at time.Time) []deliver.Item {
	items := make([]deliver.Item, n)
	for i := range items {
		index := from + uint64(i)
		items[i] = deliver.Item{
			Index: index, ID: deliver.EventID(testOrigin, index), Time: at.Add(time.Duration(i) * time.Millisecond), Kind: "request",
			Body: fmt.Appendf(nil, `{"id":%q,"seq":%d,"path":"/v1/orders/\u003c%d\u003e","note":"a \"quoted\" é line"}`, deliver.EventID(testOrigin, index), index, index),
		}
	}
	return items
}

// driver sends the way an engine does: the same again for Retry and Pause, halves
// for Split, down to one record for Poison. It is what the oracle compares with.
type driver struct {
	t     *testing.T
	sink  deliver.Sink
	first *deliver.Result // of the first Send
	sends int
	// maybe are ids that may be there though nobody said so; settled those for
	// which Done came; waste those in quarantine, with the cause.
	maybe, settled map[string]bool
	waste          map[string]string
	grade          deliver.Grade // lowest that was reached
	fix            func()        // repairs what a Pause is about
}

func newDriver(t *testing.T, s deliver.Sink) *driver {
	return &driver{t: t, sink: s, maybe: map[string]bool{}, settled: map[string]bool{}, waste: map[string]string{}, grade: deliver.Compared}
}

func (d *driver) run(items []deliver.Item, size int) {
	d.t.Helper()
	for chunk := range slices.Chunk(items, size) {
		d.send(chunk)
	}
}

func (d *driver) send(items []deliver.Item) {
	d.t.Helper()
	for attempt := 1; ; attempt++ {
		if d.sends++; d.sends > 200 {
			d.t.Fatal("no end of attempts")
		}
		r := d.sink.Send(context.Background(), &deliver.Batch{Items: items, Planned: time.Unix(1_770_000_000, 0), Attempt: attempt})
		if d.first == nil {
			d.first = &r
		}
		if r.Ambiguous {
			for _, it := range items {
				d.maybe[it.ID] = true
			}
		}
		switch r.Class {
		case deliver.Done:
			d.grade = min(d.grade, r.Grade)
			for _, it := range items {
				d.settled[it.ID] = true
			}
			return
		case deliver.Pause:
			if d.fix != nil {
				d.fix()
			}
		case deliver.Split, deliver.Poison:
			if len(items) == 1 {
				d.waste[items[0].ID] = r.Cause
				return
			}
			d.send(items[:len(items)/2])
			d.send(items[len(items)/2:])
			return
		}
	}
}

// check compares what a receiver holds with what was to be sent: everything that
// is not in quarantine, nothing else, and twice only what was ambiguous.
func (d *driver) check(items []deliver.Item, held map[string]int) {
	d.t.Helper()
	held = maps.Clone(held)
	for _, it := range items {
		n := held[it.ID]
		delete(held, it.ID)
		_, wasted := d.waste[it.ID]
		switch {
		case wasted && n > 0 && !d.maybe[it.ID]:
			d.t.Errorf("%s is in quarantine and there", it.ID)
		case wasted:
		case n == 0:
			d.t.Errorf("%s is missing", it.ID)
		case n > 1 && !d.maybe[it.ID]:
			d.t.Errorf("%s is there %d times, and nothing was ambiguous", it.ID, n)
		}
	}
	for id, n := range held {
		d.t.Errorf("%s is there %d times and was never sent", id, n)
	}
}

// row is a fault and what the first Send is to make of it.
type row struct {
	scripted.Fault
	class deliver.Class
	cause string
	maybe bool
	after time.Duration
}

// patience is how long a client waits: little where it waits for nothing.
func (r *row) patience() time.Duration {
	if r.Break == scripted.Hangs || r.Break == scripted.Trickles {
		return 3 * time.Second
	}
	return time.Minute
}

// webRows are what can happen to any sink over HTTP that knows success by the
// status ok alone.
func webRows(ok int) []row {
	const retry, split, poison, stop, done = deliver.Retry, deliver.Split, deliver.Poison, deliver.Pause, deliver.Done
	status := func(n int, class deliver.Class, maybe bool) row {
		return row{Fault: scripted.Fault{Name: fmt.Sprintf("status %d", n), Status: n, Body: `{"errors":["scripted"]}`}, class: class, cause: fmt.Sprintf("http_%d", n), maybe: maybe}
	}
	after := func(name, v string, want time.Duration) row {
		r := status(503, retry, true)
		r.Name, r.Header, r.after = "Retry-After "+name, map[string]string{"Retry-After": v}, want
		return r
	}
	broken := func(name string, f scripted.Fault, cause string) row {
		f.Name = name
		return row{Fault: f, class: retry, cause: cause, maybe: true}
	}
	fine := func(name string, f scripted.Fault) row {
		f.Name, f.Keep, f.Status = name, true, ok
		return row{Fault: f, class: done, cause: fmt.Sprintf("http_%d", ok)}
	}
	kept := func(n int) row {
		r := status(n, retry, true)
		r.Name, r.Keep = r.Name+" after it was kept", true
		return r
	}
	rows := []row{
		status(301, stop, false), status(302, stop, false), status(303, stop, false), status(307, stop, false), status(308, stop, false),
		status(400, poison, false), status(401, stop, false), status(402, stop, false), status(403, stop, false), status(404, stop, false),
		status(405, stop, false), status(407, stop, false), status(408, retry, false), status(411, stop, false), status(413, split, false),
		status(414, stop, false), status(415, stop, false), status(417, stop, false), status(425, retry, false), status(429, retry, false),
		status(431, stop, false), status(451, stop, false), status(500, retry, true), status(501, retry, true), status(502, retry, true),
		status(503, retry, true), status(504, retry, true), status(507, retry, true), status(520, retry, true), status(599, retry, true),
		kept(500), kept(502), kept(503), kept(504),
		after("in seconds", "7", 7*time.Second), after("over the cap", "86400", time.Hour), after("of nonsense", "soon", 0),
		after("in the past", "Sun, 01 Mar 2020 12:00:30 GMT", 0), after("far ahead", "Sun, 01 Mar 2099 12:00:30 GMT", time.Hour),
		broken("reset", scripted.Fault{Break: scripted.Resets}, "reset"),
		broken("reset after it was kept", scripted.Fault{Break: scripted.Resets, Keep: true}, "reset"),
		broken("reset three times", scripted.Fault{Break: scripted.Resets, Keep: true, Times: 3}, "reset"),
		broken("closed", scripted.Fault{Break: scripted.Closes}, "closed"),
		broken("closed after it was kept", scripted.Fault{Break: scripted.Closes, Keep: true}, "closed"),
		broken("hangs", scripted.Fault{Break: scripted.Hangs}, "timeout"),
		broken("hangs after it was kept", scripted.Fault{Break: scripted.Hangs, Keep: true}, "timeout"),
		broken("half a head", scripted.Fault{Break: scripted.HalfHead}, "closed"),
		broken("half a head after it was kept", scripted.Fault{Break: scripted.HalfHead, Keep: true}, "closed"),
		broken("no HTTP", scripted.Fault{Break: scripted.Garbage}, "broken"),
		broken("no HTTP after it was kept", scripted.Fault{Break: scripted.Garbage, Keep: true}, "broken"),
		broken("a long head", scripted.Fault{Break: scripted.LongHead, Status: ok, Keep: true}, "broken"),
		// The head said yes: what becomes of the body changes nothing.
		fine("half a body", scripted.Fault{Break: scripted.HalfBody, Body: "{"}),
		fine("a bad chunk", scripted.Fault{Break: scripted.BadChunk}),
		fine("false gzip", scripted.Fault{Break: scripted.FalseGzip}),
		fine("a gzip bomb", scripted.Fault{Break: scripted.GzipBomb}),
		fine("a long body", scripted.Fault{Break: scripted.LongBody}),
		fine("a body without end", scripted.Fault{Break: scripted.Trickles}),
		fine("100 and 103 first", scripted.Fault{Break: scripted.Continues}),
		fine("answered twice", scripted.Fault{Break: scripted.Twice}),
		fine("a body of nonsense", scripted.Fault{Body: "\x00\x1b[31m"}),
		fine("no body", scripted.Fault{}),
	}
	half := status(503, retry, true)
	half.Name, half.Break = "503 with half a body", scripted.HalfBody
	mass := status(413, split, false)
	mass.Name, mass.Times = "413 twice", 2
	storm := status(429, retry, false)
	storm.Name, storm.Times = "429 ten times", 10
	return append(rows, half, mass, storm)
}

// together runs rows as subtests, many at a time: most of their time is waiting.
func together[R any](t *testing.T, rows []R, name func(R) string, f func(*testing.T, R)) {
	var wg sync.WaitGroup
	room := make(chan struct{}, 24)
	for _, r := range rows {
		wg.Go(func() {
			room <- struct{}{}
			defer func() { <-room }()
			t.Run(name(r), func(t *testing.T) { f(t, r) })
		})
	}
	wg.Wait()
}

// play runs every row in a world of its own.
func play(t *testing.T, rows []row, world func(*testing.T, time.Duration) (s deliver.Sink, server *scripted.Server, held func() map[string]int)) {
	items := testItems(100, 10, time.Now().Add(-time.Minute))
	if len(rows) < 60 {
		t.Errorf("only %d rows", len(rows))
	}
	together(t, rows, func(r row) string { return r.Name }, func(t *testing.T, r row) {
		s, server, held := world(t, r.patience())
		server.Play(r.Fault)
		d := newDriver(t, s)
		d.run(items, 4)
		f := d.first
		if f.Class != r.class || f.Cause != r.cause || f.Ambiguous != r.maybe || f.After != r.after || r.class == deliver.Done && f.Grade != s.Grade() {
			t.Errorf("first answer: %+v", *f)
		}
		if len(d.waste) > 0 {
			t.Errorf("in quarantine: %v", d.waste)
		}
		d.check(items, held())
	})
}
