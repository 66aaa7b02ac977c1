package gate

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// TestH2ConnFloods: too much of what is allowed ends the connection, with one
// record for it.
func TestH2ConnFloods(t *testing.T) {
	flood := "malformed overloaded flood"
	tooLarge := "malformed header_too_large flood"
	cancel := "\x00\x00\x00\x08"
	for _, tc := range []struct {
		name string
		send string
		want map[string]int // of the connection; exchanges are counted apart
	}{
		{"ping", strings.Repeat(wire(canon.H2Ping, 0, 0, "12345678"), 5000), map[string]int{flood: 1}},
		{"settings", strings.Repeat(wire(canon.H2Settings, 0, 0, ""), 200), map[string]int{flood: 1}},
		{"priority", strings.Repeat(wire(canon.H2Priority, 0, 9, "\x00\x00\x00\x01\x10"), 5000), map[string]int{flood: 1}},
		{"window updates", strings.Repeat(wire(canon.H2WindowUpdate, 0, 0, "\x00\x00\x00\x01"), 5000), map[string]int{flood: 1}},
		{"frames of unknown type", strings.Repeat(wire(0xbe, 0, 0, "x"), 5000), map[string]int{flood: 1}},
		{"empty data", wire(canon.H2Headers, 4, 1, post) + strings.Repeat(wire(canon.H2Data, 0, 1, ""), 500), map[string]int{flood: 1}},
		{"data of padding", wire(canon.H2Headers, 4, 1, post) + strings.Repeat(wire(canon.H2Data, 8, 1, "\x01\x00"), 500), map[string]int{flood: 1}},
		{"continuation, empty", wire(canon.H2Headers, 1, 1, get) + strings.Repeat(wire(canon.H2Continuation, 0, 1, ""), 500), map[string]int{flood: 1}},
		{"continuation, full", wire(canon.H2Headers, 1, 1, get) + strings.Repeat(wire(canon.H2Continuation, 0, 1, lit("a", strings.Repeat("b", 15<<10))), 50), map[string]int{"malformed malformed_request frame": 1}},
		{"header block", inFrames(1, get+lit("a", strings.Repeat("b", 70<<10))), map[string]int{"malformed malformed_request frame": 1}},
		{"header block in one frame", headers(1, get+lit("a", strings.Repeat("b", 70<<10))), map[string]int{"malformed malformed_request frame": 1}},
		{"header fields", headers(1, get+strings.Repeat(lit("a", "b"), 500)), map[string]int{tooLarge: 1}},
		{"rapid reset", func() string {
			var b strings.Builder
			for i := range uint32(1000) {
				b.WriteString(headers(2*i+1, get) + wire(canon.H2Reset, 0, 2*i+1, cancel))
			}
			return b.String()
		}(), map[string]int{flood: 1}},
		{"skipped streams", func() string {
			var b strings.Builder
			for i := range uint32(100) {
				b.WriteString(headers(4*i+1, "\x82\x87"))
			}
			return b.String()
		}(), nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			t.Parallel()
			h := newH2House(t, true, houseConfig{})
			c := h.raw(t)
			c.send(begun)
			c.until(of(canon.H2Settings, 0)) // which allow frames of 1 MiB
			c.send(tc.send)
			_, calm := c.until(of(canon.H2GoAway, 0))
			c.until(end) // it is the server that closes
			c.Close()
			all := h.records(t)
			got := tally(all)
			exchanges := 0
			for key, n := range got {
				if strings.HasPrefix(key, "request") {
					exchanges += n
				}
			}
			switch {
			case tc.name == "skipped streams":
				// 64 gaps are remembered, so the 66th stream is one too many.
				// What net/http had not reset by then goes with the connection.
				if got["malformed malformed_request stream"]+got["request overloaded stream"] != 65 || got[flood] != 1 || len(all) != 66 {
					t.Errorf("%v", got)
				}
				return
			case tc.name == "rapid reset":
				// Every stream that was let through has its record.
				if exchanges < 200 || exchanges > 300 {
					t.Errorf("%d streams: %v", exchanges, got)
				}
			case exchanges != strings.Count(tc.name, "data"):
				t.Errorf("%d exchanges: %v", exchanges, got)
			}
			for key, n := range tc.want {
				if got[key] != n {
					t.Errorf("%v, want %v", got, tc.want)
				}
			}
			floods := uint64(0)
			for key, n := range got {
				if strings.HasSuffix(key, " flood") {
					floods += uint64(n)
				}
			}
			if n := h.engine.Stats().Floods.Load(); n != floods {
				t.Errorf("%d floods are counted, %d are on record", n, floods)
			}
			if len(all) != exchanges+1 || !calm && tc.name == "ping" {
				t.Errorf("%d records, %d exchanges, %v (GOAWAY %v)", len(all), exchanges, got, calm)
			}
		})
	}
}

// TestH2ConnResetRate: every stream that a client opens and resets has exactly
// one record, whoever makes it.
func TestH2ConnResetRate(t *testing.T) {
	h := newH2House(t, true, houseConfig{})
	c := h.raw(t)
	const n = 150 // less than what ends the connection
	parts := []string{begun}
	for i := range uint32(n) {
		parts = append(parts, headers(2*i+1, get), wire(canon.H2Reset, 0, 2*i+1, "\x00\x00\x00\x08"))
	}
	c.send(append(parts, wire(canon.H2Ping, 0, 0, "12345678"))...)
	if _, ok := c.until(of(canon.H2Ping, 0)); !ok {
		t.Fatal("the connection was cut")
	}
	c.Close()
	if all := h.records(t); len(all) != n {
		t.Errorf("%d records for %d streams: %v", len(all), n, tally(all))
	}
}

// TestH2ConnRace: a stream that breaks a rule right after its HEADERS has one
// record, whether its handler was faster than the reset or not.
func TestH2ConnRace(t *testing.T) {
	h := newH2House(t, true, houseConfig{})
	c := h.raw(t)
	const n = 90
	short := post + lit("content-length", "1")
	parts := []string{begun}
	for i := range uint32(n) {
		id := 2*i + 1
		parts = append(parts, wire(canon.H2Headers, 4, id, short), wire(canon.H2Data, 1, id, "too much"))
	}
	c.send(parts...)
	for range n {
		c.until(func(f rawFrame) bool { return f.Type == canon.H2Reset })
	}
	c.Close()
	all := h.records(t)
	got := tally(all)
	if len(all) != n {
		t.Errorf("%d records for %d streams: %v", len(all), n, got)
	}
	t.Log(got)
}

// TestH2ConnReuse: a stream that net/http refuses may be reused before the
// client can know; what it carries then has its own record or ends the
// connection.
func TestH2ConnReuse(t *testing.T) {
	for range 20 {
		h := newH2House(t, true, houseConfig{})
		c := h.raw(t)
		c.send(begun, wire(canon.H2Headers, 4, 1, "\x82\x87"), headers(1, get+lit("connection", "close")))
		c.until(end)
		c.Close()
		if got := tally(h.records(t)); got["malformed malformed_request stream"] != 1 || got["malformed malformed_request frame"] != 1 || len(got) != 2 {
			t.Fatalf("%v", got)
		}
	}
}

// TestH2ConnTrailersWait: trailers that come with the request wait for its
// handler and lose nothing.
func TestH2ConnTrailersWait(t *testing.T) {
	h := newH2House(t, true, houseConfig{})
	c := h.raw(t)
	const n = 50
	parts := []string{begun}
	for i := range uint32(n) {
		id := 2*i + 1
		parts = append(parts, wire(canon.H2Headers, 4, id, post), wire(canon.H2Data, 0, id, "abc"), headers(id, lit("x-sum", "1")))
	}
	c.send(parts...)
	for range n {
		f, ok := c.until(func(f rawFrame) bool { return f.Type == canon.H2Reset || f.Type == canon.H2Data && f.Flags&1 != 0 })
		if !ok || f.Type == canon.H2Reset {
			t.Fatalf("%v %v", f, ok)
		}
	}
	c.Close()
	if got := tally(h.records(t)); got["request"] != n || len(got) != 1 {
		t.Errorf("%v", got)
	}
}

// TestH2ConnHeaderList: lists that are too large but do no harm are answered
// 431 on their stream, and the connection goes on.
func TestH2ConnHeaderList(t *testing.T) {
	h := newH2House(t, true, houseConfig{})
	c := h.raw(t)
	// One stored field of 4 KB, used many times: a small block, a large list.
	stored := "\x40\x01x\x7f\xa1\x1e" + strings.Repeat("v", 127+0x21+0x1e<<7)
	c.send(begun, headers(1, get+stored+strings.Repeat("\xbe", 15)), headers(3, get+strings.Repeat("\xbe", 15)),
		headers(5, get+strings.Repeat(lit("a", "b"), 101)), headers(7, get))
	if _, ok := c.until(allEnd(4)); !ok {
		t.Fatal("the connection was cut")
	}
	c.Close()
	all := h.records(t)
	got := tally(all)
	if got["malformed header_too_large stream"] != 2 || got["malformed header_too_large parse"] != 1 || got["request"] != 1 || len(all) != 4 {
		t.Errorf("%v", got)
	}
	for _, c := range all {
		if c.rec.Error.Reason == "header_too_large" && (c.rec.Status != 431 || c.rec.Proto != "HTTP/2") {
			t.Errorf("status %d %s", c.rec.Status, c.rec.Proto)
		}
	}
}

// TestH2ConnConcurrency: streams above the limit are refused and recorded.
func TestH2ConnConcurrency(t *testing.T) {
	release := make(chan struct{})
	h := newH2House(t, true, houseConfig{up: backend(func(ctx context.Context, _ *upstream.Request) (*upstream.Response, error) {
		select {
		case <-release:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		return answers(200, 2, nil, "ok")(ctx, &upstream.Request{})
	})})
	c := h.raw(t)
	parts := []string{begun}
	for i := range uint32(110) {
		parts = append(parts, headers(2*i+1, get))
	}
	c.send(parts...)
	for range 10 {
		if _, ok := c.until(func(f rawFrame) bool { return f.Type == canon.H2Reset }); !ok {
			t.Fatal("the connection was cut")
		}
	}
	close(release)
	for range 100 {
		c.until(func(f rawFrame) bool { return f.Type == canon.H2Data && f.Flags&1 != 0 })
	}
	c.Close()
	if got := tally(h.records(t)); got["request"] != 100 || got["malformed malformed_request stream"] != 10 || len(got) != 2 {
		t.Errorf("%v", got)
	}
}

// TestH2ConnUnstarted: streams whose handlers net/http never starts.
func TestH2ConnUnstarted(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{}, 200)
	h := newH2House(t, true, houseConfig{up: backend(func(ctx context.Context, _ *upstream.Request) (*upstream.Response, error) {
		entered <- struct{}{}
		<-release // longer than the client waits
		return nil, context.Cause(ctx)
	})})
	c := h.raw(t)
	parts := []string{begun}
	for i := range uint32(100) {
		parts = append(parts, headers(2*i+1, get))
	}
	c.send(parts...)
	for range 100 {
		<-entered
	}
	parts = nil
	for i := range uint32(100) {
		parts = append(parts, wire(canon.H2Reset, 0, 2*i+1, "\x00\x00\x00\x08"))
	}
	for i := range uint32(30) {
		parts = append(parts, headers(2*(100+i)+1, get))
	}
	c.send(append(parts, wire(canon.H2Ping, 0, 0, "12345678"))...)
	c.until(of(canon.H2Ping, 0))
	c.Close()
	<-h.gone
	close(release)
	h.gone <- struct{}{}
	got := tally(h.records(t))
	if got["request client_aborted"] != 100 || got["request client_aborted stream"] != 30 || len(got) != 2 {
		t.Errorf("%v", got)
	}
}

// TestH2ConnDraining: a stream that comes after a graceful GOAWAY is dropped by
// net/http without a word, and recorded.
func TestH2ConnDraining(t *testing.T) {
	release := make(chan struct{})
	entered := make(chan struct{})
	h := newH2House(t, true, houseConfig{up: backend(func(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
		close(entered)
		<-release
		return answers(200, 2, nil, "ok")(ctx, &upstream.Request{})
	})})
	c := h.raw(t)
	c.send(begun, headers(1, get))
	<-entered
	down := make(chan error, 1)
	go func() { down <- h.srv.Shutdown(context.Background()) }()
	if _, ok := c.until(of(canon.H2GoAway, 0)); !ok {
		t.Fatal("no GOAWAY")
	}
	c.send(headers(3, get), wire(canon.H2Ping, 0, 0, "12345678"))
	c.until(of(canon.H2Ping, 0))
	close(release)
	c.until(ends(1))
	c.until(end)
	got := tally(h.records(t))
	if got["request"] != 1 || got["request shutting_down stream"] != 1 || len(got) != 2 {
		t.Errorf("%v", got)
	}
	if err := <-down; err != nil {
		t.Error(err)
	}
}

// TestH2ConnAfterTheEnd: what comes after a GOAWAY costs little and is counted
// or covered.
func TestH2ConnAfterTheEnd(t *testing.T) {
	var flood strings.Builder
	for i := range uint32(2000) {
		flood.WriteString(headers(2*i+11, get))
	}
	t.Run("error", func(t *testing.T) {
		t.Parallel()
		h := newH2House(t, true, houseConfig{})
		c := h.raw(t)
		c.send(begun, wire(canon.H2Data, 0, 1, "x"))
		c.until(of(canon.H2GoAway, 0))
		c.send(flood.String())
		c.until(end)
		if got := tally(h.records(t)); got["malformed malformed_request frame"] != 1 || len(got) != 1 {
			t.Errorf("%v", got)
		}
	})
	t.Run("no error", func(t *testing.T) {
		t.Parallel()
		entered := make(chan struct{})
		h := newH2House(t, true, houseConfig{up: backend(func(ctx context.Context, _ *upstream.Request) (*upstream.Response, error) {
			close(entered)
			<-ctx.Done()
			return nil, context.Cause(ctx)
		})})
		c := h.raw(t)
		c.send(begun, headers(1, get))
		<-entered
		down := make(chan error, 1)
		go func() { down <- h.srv.Shutdown(context.Background()) }()
		if _, ok := c.until(of(canon.H2GoAway, 0)); !ok {
			t.Fatal("no GOAWAY")
		}
		c.send(flood.String())
		c.until(end)
		got := tally(h.records(t))
		if got["request shutting_down stream"] != h2MaxDropped || got["malformed overloaded flood"] != 1 || got["request client_aborted"] != 1 || len(got) != 3 {
			t.Errorf("%v", got)
		}
		if err := <-down; err != nil {
			t.Error(err)
		}
	})
}

// TestH2ConnStalls: what is begun must be completed in time, but nobody has to
// begin anything.
func TestH2ConnStalls(t *testing.T) {
	head := 40 * time.Millisecond
	for name, send := range map[string]string{
		"header block": wire(canon.H2Headers, 1, 1, get[:10]),
		"frame":        wire(canon.H2Headers, 5, 1, get)[:20],
		"fixed part":   "\x00\x00",
		"settings":     wire(canon.H2Settings, 0, 0, "\x00\x03\x00\x00\x00\x64")[:11],
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newH2House(t, true, houseConfig{engine: HTTPConfig{HeadTime: head}})
			c := h.raw(t)
			c.send(begun, headers(1, get))
			c.until(ends(1))
			c.send(strings.ReplaceAll(send, "\x00\x00\x00\x01", "\x00\x00\x00\x03"))
			c.until(end)
			if got := tally(h.records(t)); got["request"] != 1 || got["malformed timeout_reading frame"] != 1 || len(got) != 2 {
				t.Errorf("%v", got)
			}
		})
	}
	t.Run("idle", func(t *testing.T) {
		t.Parallel()
		h := newH2House(t, true, houseConfig{engine: HTTPConfig{HeadTime: head}})
		c := h.raw(t)
		c.send(begun, headers(1, get))
		c.until(ends(1))
		idle := time.NewTimer(5 * head)
		<-idle.C
		c.send(headers(3, get))
		if _, ok := c.until(ends(3)); !ok {
			t.Error("an idle connection was cut")
		}
		c.Close()
		if got := tally(h.records(t)); got["request"] != 2 || len(got) != 1 {
			t.Errorf("%v", got)
		}
	})
}

// TestH2ConnUnrecorded: an answer of net/http's own is not given when the book
// does not take its record.
func TestH2ConnUnrecorded(t *testing.T) {
	book := &fakeBook{done: make(chan committed, 256), commitErr: errors.New("full")}
	h := newH2House(t, true, houseConfig{book: book})
	c := h.raw(t)
	c.send(begun, headers(1, get+lit("connection", "close")))
	if f, ok := c.until(of(canon.H2Headers, 1)); ok {
		t.Errorf("answered: %v", f)
	}
	c.Close()
	if all := h.records(t); len(all) != 1 || all[0].rec.Error.Reason != "malformed_request" {
		t.Errorf("%v", tally(all))
	}
}

// TestH2ConnScheme: over TLS a request that claims another scheme is refused.
func TestH2ConnScheme(t *testing.T) {
	h := newH2House(t, true, houseConfig{})
	c := h.raw(t)
	c.send(begun, headers(1, "\x82\x86"+get[2:]), headers(3, get))
	c.until(ends(1))
	c.Close()
	all := h.records(t)
	if got := tally(all); got["malformed malformed_request parse"] != 1 || got["request"] != 1 || len(got) != 2 {
		t.Errorf("%v", got)
	}
}

func TestH2Streams(t *testing.T) {
	var s h2Streams
	open := func(id uint32, opens bool, code canon.H2Code) {
		t.Helper()
		got, err := s.open(id)
		if got != opens || (err == nil) != (code == canon.H2NoError) || err != nil && err.Code != code {
			t.Errorf("open %d: %v %v", id, got, err)
		}
	}
	open(3, true, 0)
	open(3, false, 0) // trailers
	open(1, false, canon.H2ProtocolError)
	open(9, true, 0)
	if fmt.Sprint(s.gaps) != "[{1 1} {5 7}]" || fmt.Sprint(s.waiting) != "[3 9]" {
		t.Errorf("%+v", s)
	}
	if !s.take(9) || s.take(9) || s.reset(9) {
		t.Error("a stream that has its handler")
	}
	if !s.reset(3) || s.reset(3) || s.take(3) {
		t.Error("a stream that was refused")
	}
	if !s.reset(7) || s.reset(7) || !s.reset(8) || !s.reset(11) {
		t.Error("streams that were never opened")
	}
	open(3, false, canon.H2ProtocolError)
	open(11, false, canon.H2ProtocolError)
	open(13, true, 0)
	if left := s.rest(); fmt.Sprint(left) != "[13]" || s.take(13) {
		t.Errorf("left %v", left)
	}
	for id := uint32(15); len(s.gaps) < h2MaxGaps; id += 4 {
		_, _ = s.open(id + 2)
	}
	open(s.max+4, false, canon.H2Calm)
	open(s.max+2, true, 0)
	for len(s.waiting) < h2MaxWaiting {
		open(s.max+2, true, 0)
	}
	open(s.max+2, false, canon.H2Calm)
}

func TestH2Budget(t *testing.T) {
	b := h2Budget{every: time.Second, burst: 3}
	takes := func(now time.Duration) (n int) {
		for b.take(now) {
			n++
		}
		return n
	}
	if n := takes(0); n != 4 {
		t.Errorf("%d at once", n)
	}
	if n := takes(2 * time.Second); n != 2 {
		t.Errorf("%d after two seconds", n)
	}
	if n := takes(time.Hour); n != 4 {
		t.Errorf("%d after an hour", n)
	}
}

// TestH2Pace: who gets much may say much.
func TestH2Pace(t *testing.T) {
	h := &h2Conn{pace: newH2Pace()}
	for i := range 100_000 {
		if i%h2CreditPerFrame == 0 {
			h.credit.Add(h2CreditPerFrame)
		}
		if !h.pace.take(canon.H2WindowUpdate, 0, &h.credit) {
			t.Fatalf("cut after %d", i)
		}
	}
	n := 0
	for h.pace.take(canon.H2Ping, 0, &h.credit) {
		n++
	}
	if n > 4100 {
		t.Errorf("%d more without anything in return", n)
	}
}

// BenchmarkH2Conn is what one request costs the watch: its HEADERS on the way
// in, its handler, HEADERS and DATA on the way out.
func BenchmarkH2Conn(b *testing.B) {
	w := &h2Conn{pace: newH2Pace()}
	w.moved.L = &w.mu
	w.stage.Store(h2Framed)
	answer := []byte(wire(canon.H2Headers, 4, 1, "\x88") + wire(canon.H2Data, 1, 1, "hello"))
	b.ReportAllocs()
	stream := uint32(1)
	for b.Loop() {
		f := canon.H2Frame{H2Header: canon.H2Header{Type: canon.H2Headers, Flags: 5, Stream: stream}}
		if opens, err := w.Frame(f); !opens || err != nil {
			b.Fatal(opens, err)
		}
		if !w.claim(stream) {
			b.Fatal("not waiting")
		}
		for p := answer; len(p) > 0; {
			n, f, ok := w.out.Next(p)
			p = p[n:]
			if ok {
				if err := w.written(f); err != nil {
					b.Fatal(err)
				}
			}
		}
		if stream += 2; stream > 1<<30 {
			stream, w.streams.max = 1, 0
		}
	}
}

// inFrames is headers for a block that takes more than one frame.
func inFrames(stream uint32, block string) string {
	const most = 16 << 10
	text := wire(canon.H2Headers, 1, stream, block[:most])
	for block = block[most:]; len(block) > most; block = block[most:] {
		text += wire(canon.H2Continuation, 0, stream, block[:most])
	}
	return text + wire(canon.H2Continuation, 4, stream, block)
}
