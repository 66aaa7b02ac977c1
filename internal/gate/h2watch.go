package gate

import (
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// The phases of what goes wrong on an HTTP/2 connection before an exchange.
const (
	phasePreface = "preface" // what opens the connection
	phaseFrame   = "frame"   // the order and form of frames: the connection ends
	phaseStream  = "stream"  // one stream, the connection goes on
	phaseFlood   = "flood"   // too much of what is allowed: the connection ends
)

// h2Conn is the plaintext side of an HTTP/2 connection between a client and
// net/http, which answers many failures itself and tells nobody. It reads the
// frames of both on their way, so that each stream and each connection that
// fails before an exchange has exactly one record (spec/events.md), made before
// the client can see the answer.
//
// Whose failure it is, is decided once and at once, under mu, by who comes
// first: a stream waits from its HEADERS until its handler claims it, or
// net/http answers it, or the client resets it, or the connection ends. A
// handler that comes later is told to leave no record of its own. No decision
// waits for a timer; only trailers that overtake their handler wait for it.
//
// Not seen is one thing: a connection that breaks a rule after a GOAWAY without
// error (draining, or idle) is closed by net/http without another word. Streams
// on it are accounted for all the same.
type h2Conn struct {
	net.Conn
	gate  *Gate
	stats *FrontStats
	facts *ConnFacts
	start time.Time

	in   *canon.H2Reader // owned by the reader
	pace h2Pace          // owned by the reader
	// patience is how long a frame other than DATA, or a header block, may take
	// from its first byte to its last: never less than half of it, never more
	// than all of it.
	patience time.Duration
	since    time.Time    // owned by the reader: something is incomplete since then
	due      time.Time    // owned by the reader: read deadline in force
	ended    bool         // owned by the reader: nothing more is let through
	dataOn   uint32       // owned by the reader: stream of the last DATA
	credit   atomic.Int64 // earned by frames of ours, spent by pace

	stage atomic.Uint32 // h2Fresh and so on
	gone  atomic.Bool   // the client went first
	block atomic.Uint32 // stream whose header block came last, if nothing came after it
	body  atomic.Uint32 // newest stream with DATA before a handler had taken it
	// trailers is the stream whose trailers came last, if no frame of a stream
	// came after them.
	trailers atomic.Uint32

	farewell atomic.Uint32 // code of a GOAWAY of our own that is due, and 1 more

	wmu  sync.Mutex
	out  canon.H2Observer // wmu
	shut bool             // wmu; our own GOAWAY was the last word

	mu      sync.Mutex
	moved   sync.Cond     // of mu: a stream waits no longer
	streams h2Streams     // mu
	why     reason.Reason // mu; why the connection ended, and that this is on record
	drained bool          // mu; net/http sent a GOAWAY without error
	last    uint32        // mu; the last stream that it named
	dropped int           // mu; streams that came after it
	closed  bool          // mu; nothing more is decided

	recording sync.WaitGroup // records decided on; added to under mu before closed
}

// How far a connection has come.
const (
	h2Fresh   = iota // no byte
	h2Partial        // less than the preface
	h2Late           // less than the preface, when net/http lost patience
	h2Opened         // the preface
	h2Framed         // a frame
	h2Overrun        // as many refused streams as are remembered
)

// H2Conn wraps the plaintext side of a connection on which HTTP/2 has been
// agreed, to be served by an http.Server that knows unencrypted HTTP/2 and
// nothing else, with ConnContext. It must not have a method ConnectionState,
// or net/http takes it for TLS.
func (e *HTTPEngine) H2Conn(c net.Conn, f *ConnFacts) net.Conn {
	w := &h2Conn{Conn: c, gate: e.gate, stats: &e.stats, facts: f, start: time.Now(), pace: newH2Pace(), patience: 2 * e.cfg.HeadTime}
	w.moved.L = &w.mu
	f.see()
	w.in = canon.NewH2Reader((*h2Source)(w), w)
	f.watch = w
	return w
}

// Facts returns what is known of the connection.
func (w *h2Conn) Facts() *ConnFacts { return w.facts }

// begin implements exchangeWatch: it claims the stream of r for its handler and
// takes our field out of its header. If the stream has its record already,
// nobody waits for an answer, and begin ends the handler.
func (w *h2Conn) begin(r *http.Request) {
	const key = "X-Gatebook-Stream"
	values := r.Header[key]
	if len(values) == 0 {
		return
	}
	// Those before the last are the client's, for the canonical request to judge.
	last := len(values) - 1
	stream, secure, ok := canon.ParseH2Stream(values[last])
	if last == 0 {
		delete(r.Header, key)
	} else {
		r.Header[key] = values[:last]
	}
	if !ok {
		return
	}
	if !w.claim(stream) {
		panic(http.ErrAbortHandler)
	}
	if !secure {
		r.URL.Scheme = "http" // net/http leaves it empty
	}
}

// end implements exchangeWatch.
func (w *h2Conn) end() {}

// take removes a stream from those that wait. It reports whether the caller is
// the one to account for it. The caller holds mu.
func (w *h2Conn) take(stream uint32) bool {
	if !w.streams.take(stream) {
		return false
	}
	w.moved.Broadcast()
	return true
}

// claim takes a stream for its handler.
func (w *h2Conn) claim(stream uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.take(stream)
}

// decide takes a stream for its record, which the caller must make.
func (w *h2Conn) decide(stream uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.take(stream) {
		return false
	}
	w.recording.Add(1)
	return true
}

// Read implements net.Conn for net/http.
func (w *h2Conn) Read(p []byte) (int, error) {
	if w.ended {
		return 0, io.EOF
	}
	n, err := w.in.Read(p)
	if err == nil {
		return n, nil
	}
	switch e := err.(type) {
	case *canon.H2Error:
		w.refuse(e)
	case h2Slow:
		w.cut(canon.H2Calm, reason.TimeoutReading, phaseFrame)
	default:
		return n, err
	}
	return 0, io.EOF
}

// refuse ends the connection for what the client sent.
func (w *h2Conn) refuse(e *canon.H2Error) {
	phase := phaseFrame
	r := reason.Reason(e.Reason)
	switch {
	case !w.in.Began():
		phase = phasePreface
	case e.Code == canon.H2Calm:
		phase = phaseFlood
		if r == reason.MalformedRequest {
			r = reason.Overloaded
		}
	}
	w.cut(e.Code, r, phase)
}

// Frame implements canon.H2Events, on the reader's goroutine.
func (w *h2Conn) Frame(f canon.H2Frame) (opens bool, err *canon.H2Error) {
	switch w.stage.Load() {
	case h2Framed:
	case h2Overrun:
		w.block.Store(0)
		return false, h2Broken(canon.H2Calm, "too many refused streams")
	default:
		w.stage.Store(h2Framed)
	}
	switch f.Type {
	case canon.H2Headers:
		return w.headers(f.Stream)
	case canon.H2Continuation:
		return false, nil
	}
	w.block.Store(0)
	if f.Stream != 0 {
		w.trailers.Store(0)
	}
	if f.Type == canon.H2Data {
		w.noteBody(f.Stream)
	}
	if f.Type == canon.H2Data && (f.Content > 0 || f.Has(canon.H2EndStream)) {
		return false, nil
	}
	if !w.pace.take(f.Type, time.Since(w.start), &w.credit) {
		return false, &canon.H2Error{Code: canon.H2Calm, Reason: canon.MalformedRequest, Detail: "too many frames of a kind that does no work"}
	}
	if f.Type == canon.H2Reset && w.decide(f.Stream) {
		_ = w.record(Refusal{Kind: record.KindRequest, Reason: reason.ClientAborted, Phase: phaseStream, Status: reason.StatusClientAborted})
	}
	return false, nil
}

// noteBody notes DATA on a stream that no handler has taken when it begins.
func (w *h2Conn) noteBody(stream uint32) {
	if stream == w.dataOn {
		return
	}
	w.dataOn = stream
	if w.untaken(stream) {
		w.body.Store(stream)
	}
}

// headers notes a HEADERS frame. While its stream still waits it may be
// trailers, or the reuse of a stream that net/http is about to reset and takes
// for a new one; so it is held back until that is settled.
func (w *h2Conn) headers(stream uint32) (opens bool, err *canon.H2Error) {
	opens, dropped, err := w.opened(stream)
	if dropped {
		_ = w.record(Refusal{Kind: record.KindRequest, Reason: reason.ShuttingDown, Phase: phaseStream})
	}
	return opens, err
}

// opened decides what a HEADERS frame is. Dropped says that net/http will not
// look at it since it has sent a GOAWAY, and that its record is due.
func (w *h2Conn) opened(stream uint32) (opens, dropped bool, err *canon.H2Error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.block.Store(0)
	w.trailers.Store(0)
	if w.streams.waits(stream) && !w.settled(stream) {
		return false, false, h2Broken(canon.H2Calm, "a stream whose handler cannot be started")
	}
	switch {
	case w.closed:
		return false, false, h2Broken(canon.H2NoError, "the connection has ended")
	case w.why != "":
		return false, false, nil // what comes after the end has no record of its own
	}
	opens, err = w.streams.open(stream)
	if err != nil && w.body.Load() == stream {
		w.why = reason.MalformedRequest // trailers of a request that has its record
	}
	if !opens {
		w.trailers.Store(stream)
	}
	if opens && w.drained && stream > w.last {
		w.streams.take(stream)
		if w.dropped++; w.dropped > h2MaxDropped {
			return false, false, h2Broken(canon.H2Calm, "too many streams after a GOAWAY")
		}
		w.recording.Add(1)
		return false, true, nil
	}
	if opens {
		w.block.Store(stream)
	}
	return opens, false, err
}

// settled waits until a stream waits no longer, for a while. The caller holds
// mu.
func (w *h2Conn) settled(stream uint32) bool {
	late := false
	timer := time.AfterFunc(h2SettleTime, func() {
		w.mu.Lock()
		defer w.mu.Unlock()
		late = true
		w.moved.Broadcast()
	})
	defer timer.Stop()
	for w.streams.waits(stream) && !late {
		w.moved.Wait()
	}
	return !w.streams.waits(stream)
}

// Write implements net.Conn for net/http. What a frame tells is recorded before
// the frame goes out.
func (w *h2Conn) Write(p []byte) (int, error) {
	n, err := w.write(p)
	if w.farewell.Load() != 0 {
		w.goAway() // the reader may have found us writing
	}
	return n, err
}

func (w *h2Conn) write(p []byte) (int, error) {
	w.wmu.Lock()
	defer w.wmu.Unlock()
	if w.shut {
		return 0, net.ErrClosed
	}
	for rest := p; len(rest) > 0; {
		n, f, ok := w.out.Next(rest)
		rest = rest[n:]
		if !ok {
			continue
		}
		if err := w.written(f); err != nil {
			w.shut = true
			return 0, err
		}
	}
	n, err := w.Conn.Write(p)
	if err != nil {
		w.gone.Store(true)
	}
	return n, err
}

// written looks at a frame of net/http. An error means that an answer must not
// go out.
func (w *h2Conn) written(f canon.H2Written) error {
	switch f.Type {
	case canon.H2Data:
		w.credit.Add(h2CreditPerFrame)
	case canon.H2Headers:
		w.credit.Add(h2CreditPerFrame)
		return w.answered(f)
	case canon.H2Reset:
		w.reset(f)
	case canon.H2GoAway:
		w.goneAway(f)
	case canon.H2Settings:
		w.in.SetMaxFrame(f.MaxFrame())
	}
	return nil
}

// answered records a stream that net/http answers without its handler. It has
// two such answers: 431 for a header list that is too large, and 400 for fields
// that belong to a connection. The status of the second is in the static table
// of HPACK, so whatever is not plainly 400 is the first.
func (w *h2Conn) answered(f canon.H2Written) error {
	if !w.decide(f.Stream) {
		return nil
	}
	w.stats.Foreign.Add(1)
	what := Refusal{Kind: record.KindMalformed, Reason: reason.HeaderTooLarge, Phase: phaseStream}
	if f.Status() == http.StatusBadRequest {
		what.Reason = reason.MalformedRequest
	}
	what.Status = what.Reason.Status()
	err := w.record(what)
	if err != nil && w.gate.snapshot.Load().audit.OnFailure == Refuse {
		return err
	}
	return nil
}

// reset records a stream that net/http resets before its handler ran.
func (w *h2Conn) reset(f canon.H2Written) {
	w.mu.Lock()
	ours := !w.closed && w.streams.reset(f.Stream)
	if ours {
		w.recording.Add(1)
		w.moved.Broadcast()
	}
	if len(w.streams.refused) >= h2MaxRefused {
		w.stage.Store(h2Overrun)
	}
	w.mu.Unlock()
	if !ours {
		return
	}
	what := Refusal{Kind: record.KindMalformed, Reason: reason.MalformedRequest, Phase: phaseStream}
	if f.Reset() == canon.H2RefusedStream {
		what.Kind, what.Reason = record.KindRequest, reason.ConcurrencyLimited
	}
	_ = w.record(what)
}

// untaken tells a stream that no handler has taken, yet or ever.
func (w *h2Conn) untaken(stream uint32) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.streams.untaken(stream)
}

// bodyOf tells whether net/http gives the connection up for the body of stream
// last: it has refused the stream's head, takes the stream for one that was
// never opened, and its body for a breach. refused says that the stream has its
// record already.
//
// It does so too when trailers come after it has answered their request.
func (w *h2Conn) bodyOf(last uint32) (body, refused bool) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if last != 0 && w.body.Load() == last {
		body = w.streams.untaken(last)
		refused = body && !w.streams.waits(last)
	}
	if t := w.trailers.Load(); t != 0 && !w.streams.waits(t) {
		body, refused = true, true
	}
	if refused && w.why == "" {
		w.why = reason.MalformedRequest // of what else was under way
	}
	return body, refused
}

// goneAway records the end of a connection that net/http refuses. The stream
// whose header block it choked on has no record beside it, and the end of a
// connection none beside that of the stream whose body it choked on.
func (w *h2Conn) goneAway(f canon.H2Written) {
	last, code := f.GoAway()
	if code == canon.H2NoError {
		w.mu.Lock()
		w.drained, w.last = true, last
		w.mu.Unlock()
		return
	}
	block := w.block.Load()
	if block != last {
		block = 0
	}
	what := Refusal{Kind: record.KindMalformed, Reason: reason.MalformedRequest, Phase: phaseFrame}
	switch {
	case code == canon.H2Calm:
		what.Reason, what.Phase = reason.Overloaded, phaseFlood
	case block == 0 && code == canon.H2ProtocolError:
		switch body, refused := w.bodyOf(last); {
		case refused:
			return
		case body:
			block = last
		}
	}
	w.over(what, block)
}

// over records the end of the connection, once. The stream, if not 0, has no
// record beside that.
func (w *h2Conn) over(what Refusal, stream uint32) {
	w.mu.Lock()
	if stream != 0 {
		w.take(stream)
	}
	first := w.why == "" && !w.closed
	if first {
		w.why = what.Reason
		w.recording.Add(1)
	}
	w.mu.Unlock()
	if first {
		w.stats.Refused.Add(1)
		if what.Phase == phaseFlood {
			w.stats.Floods.Add(1)
		}
		_ = w.record(what)
	}
}

// record hands one failure that was decided on to the book.
func (w *h2Conn) record(what Refusal) error {
	defer w.recording.Done()
	if what.Start.IsZero() {
		what.Start = w.gate.now()
	}
	_, err := w.gate.Refuse(w.facts, what)
	return err
}
