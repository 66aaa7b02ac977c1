package deliver

import (
	"bytes"
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// All of these tests run in bubbles of testing/synctest: sleeping lets the bubble's
// clock go on and takes no time.

// A sink that accepts and never answers is given one small batch to see whether it
// takes anything; all the rest stays in the book.
func TestUntriedHoldsLittle(t *testing.T) {
	in(t, 50_000, 1000, func(t *testing.T, h *house) {
		h.sink.lim.InFlight = 4
		h.sink.script = func(int, *Batch) act { return act{hang: true} }
		h.start()
		most := 0
		for range 100 {
			time.Sleep(time.Minute)
			most = max(most, h.status().Held)
		}
		if most == 0 || most > firstItems*100 {
			t.Errorf("%d bytes were held", most)
		}
		h.sink.with(func() {
			for id := range h.sink.bodies {
				h.sink.twiceOK[id] = true // hanging, it may have taken them
			}
			h.sink.script = nil
		})
		h.until(time.Hour, "all is settled", h.settled)
		h.end()
		h.oracle()
		h.whole()
	})
}

// One that answered and does not any more holds what is under way, what was
// drafted before anybody could know, and nothing of what is recorded after that.
func TestSilentHoldsLittle(t *testing.T) {
	in(t, 500, 100, func(t *testing.T, h *house) {
		h.sink.lim.InFlight = 3
		hang := false
		h.sink.script = func(int, *Batch) act {
			if hang {
				return act{hang: true}
			}
			return act{take: all, res: Result{Class: Done, Grade: Durable}}
		}
		h.conf.SendTimeout = 10 * time.Hour
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.sink.with(func() { hang = true })
		h.book.sign(550)
		time.Sleep(5 * time.Second)
		h.book.sign(40_000)
		most := 0
		for range 60 {
			time.Sleep(time.Minute)
			most = max(most, h.status().Held)
		}
		if n := h.sink.sends(); h.sink.most != 3 {
			t.Errorf("%d sends, %d abreast: a sink that is only slow must get as many as it allows", n, h.sink.most)
		}
		if most == 0 || most > 3*100*100 {
			t.Errorf("%d bytes were held", most)
		}
		h.sink.with(func() {
			for id := range h.sink.bodies {
				h.sink.twiceOK[id] = true
			}
			hang = false
		})
		h.until(11*time.Hour, "all is settled", h.settled)
		h.end()
		h.oracle()
		h.whole()
	})
}

// What all have read is let go of at once, who has not been there for a while is not
// waited for, and what somebody is reading is not used for anything else.
func TestFeedLetsGo(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFeed(newBook(20_000), testOrigin, 64<<20, nil)
		f.begin()
		a, b, c := f.join(false), f.join(false), f.join(false)
		read := func(from uint64) *chunk {
			t.Helper()
			k, err := f.chunk(from, 20_000, false)
			if err != nil {
				t.Fatal(err)
			}
			return k
		}
		kept := func(want int) {
			t.Helper()
			if n := len(f.chunks[false]); n != want || (n == 0) != (f.held == 0) {
				t.Fatalf("%d chunks and %d bytes are kept, want %d chunks", n, f.held, want)
			}
		}
		first := read(0)
		f.passed(a, first.to)
		kept(1)
		f.passed(b, first.to)
		kept(1) // c was here a moment ago
		time.Sleep(2 * placeIdle)
		f.passed(a, first.to)
		f.passed(b, first.to)
		kept(0) // c has not been here, and reads it anew if it comes
		for at := first.to; at < 20_000; {
			k := read(at)
			at = k.to
			f.done(k)
			f.passed(a, at)
			f.passed(b, at)
		}
		kept(0)
		for i := range first.entries { // read all the while
			if e := &first.entries[i]; e.Index != uint64(i) || string(e.Frame) != fmt.Sprintf("frame %d", i) || e.Record.Time != f.src.(*fakeBook).timeOf(e.Index).UnixMicro() {
				t.Fatalf("entry %d is %d, %q", i, e.Index, e.Frame)
			}
		}
		f.done(first)
		if again := read(0); again.entries[7].Index != 7 || string(again.entries[7].Frame) != "frame 7" {
			t.Errorf("read anew: %d %q", again.entries[7].Index, again.entries[7].Frame)
		}
		f.leave(c)
		f.end()
		kept(0)
	})
}

// careful looks at bodies at the beginning and at the end of each send.
type careful struct {
	lim  Limits
	wait func(n int) time.Duration

	mu    sync.Mutex
	sends int
	have  map[uint64]bool
	wrong []uint64
}

func (c *careful) Limits() Limits             { return c.lim }
func (c *careful) Grade() Grade               { return Durable }
func (c *careful) Test(context.Context) error { return nil }
func (c *careful) Send(_ context.Context, b *Batch) Result {
	c.mu.Lock()
	c.sends++
	n := c.sends
	c.mu.Unlock()
	before := c.look(b)
	time.Sleep(c.wait(n))
	wrong := append(before, c.look(b)...)
	c.mu.Lock()
	defer c.mu.Unlock()
	c.wrong = append(c.wrong, wrong...)
	if n%5 == 0 {
		return Result{Class: Retry, Cause: "http_503"}
	}
	for i := range b.Items {
		c.have[b.Items[i].Index] = true
	}
	return Result{Class: Done, Grade: Durable}
}

func (c *careful) look(b *Batch) (wrong []uint64) {
	for i := range b.Items {
		it := &b.Items[i]
		want := fmt.Appendf(nil, `{"id":%q,"v":1,"frame":"frame %d"`, EventID(testOrigin, it.Index), it.Index)
		if !bytes.HasPrefix(it.Body, want) || it.ID != EventID(testOrigin, it.Index) {
			wrong = append(wrong, it.Index)
		}
	}
	return wrong
}

// Room is used again and again by several sinks that are fast and slow, fail and
// go back; no body ever changes under a send, and all are of the right record.
func TestRoomIsNotShared(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, 0, 1)
		h.proj.pad = func(i uint64) int { return int(i * 7919 % 3000) }
		var sinks []SinkConfig
		var all []*careful
		for k, wait := range []func(int) time.Duration{
			func(int) time.Duration { return 0 },
			func(n int) time.Duration { return time.Duration(n%7) * 100 * time.Millisecond },
			func(n int) time.Duration { return time.Duration(n%3) * 3 * time.Second },
		} {
			c := &careful{lim: Limits{Items: 300 + 100*k, Bytes: 1 << 20, Item: 1 << 16, InFlight: 1 + 2*k}, wait: wait, have: map[uint64]bool{}}
			all = append(all, c)
			sinks = append(sinks, SinkConfig{Name: fmt.Sprint("s", k), Sink: c, Projection: h.proj, BackoffMax: time.Second})
		}
		e, err := New(Config{Book: h.book, State: h.store, src: h.book, Sinks: sinks, Cache: 2 << 20})
		h.must(err)
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error)
		go func() { done <- e.Run(ctx) }()
		const records = 30_000
		for n := uint64(1000); n <= records; n += 1000 {
			h.book.sign(n)
			time.Sleep(time.Second)
			if n%7000 == 0 {
				h.must(e.Replay(ctx, anna, "s2", 0)) // drops what is under way
			}
		}
		time.Sleep(10 * time.Minute)
		cancel()
		h.must(<-done)
		for k, c := range all {
			slices.Sort(c.wrong)
			if len(c.wrong) > 0 {
				t.Errorf("sink %d: the bodies of %d records were others, the first is %d", k, len(c.wrong), c.wrong[0])
			}
			if len(c.have) != records {
				t.Errorf("sink %d has %d records", k, len(c.have))
			}
		}
	})
}
