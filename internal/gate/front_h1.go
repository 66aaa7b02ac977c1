package gate

import (
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// FrontStats counts what connections did without leaving a record, or beside
// their records.
type FrontStats struct {
	Silent  atomic.Uint64 // closed before the first byte of a request
	Idle    atomic.Uint64 // closed after a while without a request
	Refused atomic.Uint64 // HTTP/1 heads refused before net/http saw them, and HTTP/2 connections ended by a refusal
	Floods  atomic.Uint64 // of those, HTTP/2 connections ended for too much of what is allowed
	Framing atomic.Uint64 // exchanges whose body broke its framing
	Foreign atomic.Uint64 // answers that net/http made by itself
}

const (
	h1BufSize = 4 << 10
	// h1Direct is how much room a reader must have for bytes to be read into
	// its own memory.
	h1Direct = 512
)

var h1Buffers = sync.Pool{New: func() any { return new([h1BufSize]byte) }}

// h1Conn stands between the client and net/http. What net/http reads has been
// found good: whole heads, and bodies whose framing holds. It never gets bytes
// of two messages at once, so that at any time it is known whether net/http is
// about to read a request, is in an exchange of ours, or speaks for itself.
type h1Conn struct {
	net.Conn
	engine *HTTPEngine
	facts  *ConnFacts

	// Owned by the reader; net/http has one at a time.
	parse    canon.H1
	buf      []byte // read and not handed over: buf[from:], nil if nothing is
	from     int
	good     int   // buf[from:good] may be handed over
	headLeft int   // bytes of a head that are still to be handed over
	err      error // of the connection
	verdict  error // a *canon.Error, or of a head that came too slowly
	since    time.Time
	over     bool // the verdict has been answered, or needs no answer

	handed  atomic.Int64 // heads that net/http has got whole
	begun   atomic.Int64 // exchanges
	ended   atomic.Int64
	seen    atomic.Bool // any byte has come
	partial atomic.Bool // part of a head has come
	gone    atomic.Bool // the client has closed, or reading failed
	settled atomic.Bool // what net/http will not answer is on record

	mu       sync.Mutex
	wake     sync.Cond // of mu: deadline or closed has changed
	deadline time.Time // mu; set by net/http
	abort    bool      // mu; the deadline was over when it was set: it ends a read
	headDue  time.Time // mu; when a head that has begun must be complete
	applied  time.Time // mu; of the connection below
	reading  bool      // mu
	closed   bool      // mu
}

// H1Conn wraps the plaintext side of an HTTP/1 connection for an http.Server
// whose handler is e and whose ConnContext is ConnContext.
func (e *HTTPEngine) H1Conn(c net.Conn, f *ConnFacts) net.Conn {
	h := &h1Conn{Conn: c, engine: e, facts: f}
	h.parse.Secure = f.TLS != nil
	h.wake.L = &h.mu
	f.see()
	f.watch = h
	return h
}

// Facts returns what is known of the connection.
func (c *h1Conn) Facts() *ConnFacts { return c.facts }

func (c *h1Conn) begin(*http.Request) { c.begun.Add(1) }
func (c *h1Conn) end()                { c.ended.Add(1) }

// Read implements net.Conn.
//
// While an exchange runs net/http reads one byte in the background to learn
// whether the client goes away; such a read may not answer anything, since the
// answer under way would be broken into.
func (c *h1Conn) Read(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	background := len(p) == 1 || c.begun.Load() != c.ended.Load()
	for {
		if n := c.handOver(p); n > 0 {
			return n, nil
		}
		switch {
		case c.verdict != nil:
			return 0, c.refuse(background)
		case c.from < len(c.buf) && c.accept():
			continue
		case c.verdict != nil:
			continue
		case c.err != nil:
			return 0, c.broken(background)
		}
		n, err := c.more(p, background)
		if n > 0 || err != nil {
			return n, err
		}
	}
}

// handOver gives what has been found good.
func (c *h1Conn) handOver(p []byte) int {
	n := copy(p, c.buf[c.from:c.good])
	if n == 0 {
		return 0
	}
	c.from += n
	c.took(n)
	if c.from == len(c.buf) {
		c.release()
	}
	return n
}

// took notes that net/http gets the next n bytes.
func (c *h1Conn) took(n int) {
	if c.headLeft == 0 {
		return
	}
	if c.headLeft -= n; c.headLeft <= 0 {
		c.headLeft = 0
		c.handed.Add(1)
	}
}

func (c *h1Conn) release() {
	if cap(c.buf) == h1BufSize {
		h1Buffers.Put((*[h1BufSize]byte)(c.buf[:h1BufSize]))
	}
	c.buf, c.from, c.good = nil, 0, 0
}

// accept judges what is in the buffer, of which nothing is good yet. It reports
// whether anything is now.
func (c *h1Conn) accept() bool {
	n, skip := c.judge(c.buf[c.from:])
	c.from += skip
	c.good = c.from + n
	if c.from == len(c.buf) {
		c.release()
	}
	return n > 0
}

// judge returns how many bytes of b are good after the first skip, which are
// dropped. It stops where the message ends.
func (c *h1Conn) judge(b []byte) (n, skip int) {
	for {
		part, m, err := c.parse.Next(b[skip+n:])
		if err != nil {
			c.verdict = err
			c.partial.Store(false)
			return n, skip
		}
		switch part {
		case canon.H1More:
			if c.parse.Between() {
				c.partial.Store(n == 0 && len(b) > skip)
			}
			return n, skip
		case canon.H1Skip:
			skip += m
			continue
		case canon.H1Head:
			c.headLeft = m
			c.since = time.Time{}
			c.partial.Store(false)
		}
		n += m
		if c.parse.Done() {
			return n, skip
		}
	}
}

// more reads from the connection: into p if nothing is kept and p has room, and
// then n may already be good; else behind what is kept.
func (c *h1Conn) more(p []byte, background bool) (n int, err error) {
	if c.buf != nil || len(p) < h1Direct {
		c.makeRoom()
		m, err := c.pull(c.buf[len(c.buf):cap(c.buf)], background)
		c.buf = c.buf[:len(c.buf)+m]
		if len(c.buf) == c.from {
			c.release()
		}
		return 0, err
	}
	m, err := c.pull(p, background)
	if m == 0 {
		return 0, err
	}
	good, skip := c.judge(p[:m])
	if rest := p[skip+good : m]; len(rest) > 0 {
		c.keep(rest)
	}
	if skip > 0 {
		copy(p, p[skip:skip+good])
	}
	c.took(good)
	return good, nil
}

func (c *h1Conn) makeRoom() {
	switch {
	case c.buf == nil:
		c.buf = h1Buffers.Get().(*[h1BufSize]byte)[:0]
	case len(c.buf) < cap(c.buf):
	case c.from > 0:
		n := copy(c.buf, c.buf[c.from:])
		c.buf, c.from, c.good = c.buf[:n], 0, 0
	default:
		// No unit is longer than a head may be, so this ends.
		old := c.buf
		grown := make([]byte, len(old), 4*len(old))
		copy(grown, old)
		c.release()
		c.buf = grown
	}
}

// keep takes a copy of bytes that are not good yet.
func (c *h1Conn) keep(b []byte) {
	c.buf = h1Buffers.Get().(*[h1BufSize]byte)[:0]
	c.buf = append(c.buf, b...)
}

// pull reads from the connection below. A timeout of net/http's is returned, one
// of ours and all other errors are kept.
func (c *h1Conn) pull(p []byte, background bool) (int, error) {
	if !background && c.partial.Load() && c.since.IsZero() {
		c.since = time.Now()
	}
	c.mu.Lock()
	c.headDue = time.Time{}
	if !c.since.IsZero() && !background {
		c.headDue = c.since.Add(c.engine.cfg.HeadTime)
	}
	c.reading = true
	c.apply()
	c.mu.Unlock()
	n, err := c.Conn.Read(p)
	c.mu.Lock()
	c.reading = false
	ours := !c.headDue.IsZero() && !c.abort
	c.mu.Unlock()
	if n > 0 {
		c.seen.Store(true)
	}
	switch {
	case err == nil:
		return n, nil
	case !errors.Is(err, os.ErrDeadlineExceeded):
		c.err = err
		c.gone.Store(true)
		return n, nil
	case n > 0:
		return n, nil // the next read meets the deadline again
	case ours:
		c.verdict = errSlowHead
		return 0, nil
	}
	if !background && c.seen.Load() && c.parse.Between() && !c.partial.Load() {
		c.engine.stats.Idle.Add(1)
	}
	return 0, err
}

var errSlowHead = errors.New("gate: head that came too slowly")

// past reports a deadline that is over.
func past(t time.Time) bool { return !t.IsZero() && time.Until(t) <= 0 }

// apply sets the deadline of the connection below if it is not in force. The
// caller holds mu.
func (c *h1Conn) apply() {
	due := c.deadline
	if !c.headDue.IsZero() && !c.abort {
		due = c.headDue
	}
	if due != c.applied {
		c.applied = due
		// A connection that takes no deadline fails in its Read, too.
		_ = c.Conn.SetReadDeadline(due)
	}
}

// SetReadDeadline implements net.Conn. It reaches the connection below only
// when somebody reads there.
func (c *h1Conn) SetReadDeadline(t time.Time) error {
	c.mu.Lock()
	c.deadline, c.abort = t, past(t)
	if c.reading {
		c.apply()
	}
	c.wake.Broadcast()
	c.mu.Unlock()
	return nil
}

// SetDeadline implements net.Conn.
func (c *h1Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.Conn.SetWriteDeadline(t))
}

// wait blocks until the read is aborted or the connection closed.
func (c *h1Conn) wait() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.closed && !past(c.deadline) {
		var timer *time.Timer
		if !c.deadline.IsZero() {
			timer = time.AfterFunc(time.Until(c.deadline), func() {
				c.mu.Lock()
				defer c.mu.Unlock()
				c.wake.Broadcast()
			})
		}
		c.wake.Wait()
		if timer != nil {
			timer.Stop()
		}
	}
	if c.closed {
		return net.ErrClosed
	}
	return os.ErrDeadlineExceeded
}

// refuse answers a head that is not good, once the exchange before it is over.
// Of a body only its reader learns: its exchange has a record of its own.
func (c *h1Conn) refuse(background bool) error {
	if !c.parse.Between() {
		if !c.over {
			c.over = true
			c.engine.stats.Framing.Add(1)
		}
		return c.verdict
	}
	if background {
		return c.wait()
	}
	if !c.over {
		c.over = true
		c.engine.stats.Refused.Add(1)
		why := reason.TimeoutReading
		var refusal *canon.Error
		if errors.As(c.verdict, &refusal) {
			why = reason.Reason(refusal.Reason)
		}
		c.settle(why, phaseHead, c.since, true)
	}
	return io.EOF
}

// broken is what a reader gets when the connection has ended. A head that was
// cut off is a record. Between messages it is a plain end: some other errors
// net/http would answer.
func (c *h1Conn) broken(background bool) error {
	if !c.parse.Between() {
		return c.err
	}
	if !background && c.partial.Load() {
		c.settle(reason.ClientAborted, phaseHead, c.since, false)
	}
	return io.EOF
}

// settle records what net/http will not answer, once in the life of the
// connection, and answers it if there is somebody left to.
func (c *h1Conn) settle(why reason.Reason, phase string, start time.Time, answer bool) {
	if !c.settled.CompareAndSwap(false, true) {
		return
	}
	if start.IsZero() {
		start = c.engine.gate.now()
	}
	what := Refusal{Kind: record.KindMalformed, Reason: why, Phase: phase, Status: why.Status(), Start: start}
	id, err := c.engine.gate.Refuse(c.facts, what)
	if !answer {
		return
	}
	if err != nil && c.engine.gate.snapshot.Load().audit.OnFailure == Refuse {
		why = bookReason(err)
	}
	c.answer(why, id)
}

// Write implements net.Conn. What net/http writes outside our exchanges is its
// own answer to something that we took for a request.
func (c *h1Conn) Write(p []byte) (int, error) {
	begun := c.begun.Load()
	if (begun == 0 || begun != c.handed.Load()) && c.settled.CompareAndSwap(false, true) {
		c.engine.stats.Foreign.Add(1)
		status, why := foreignStatus(p)
		// The book counts what it does not take; the answer is not ours.
		_, _ = c.engine.gate.Refuse(c.facts, Refusal{
			Kind: record.KindMalformed, Reason: why, Phase: phaseForeign, Status: status, Start: c.engine.gate.now(),
		})
	}
	return c.Conn.Write(p)
}

// CloseWrite ends our side of the connection only. net/http looks for it.
func (c *h1Conn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// foreignStatus reads the status of an answer that net/http made.
func foreignStatus(p []byte) (int, reason.Reason) {
	status := 0
	if len(p) >= 12 && string(p[:7]) == "HTTP/1." {
		for _, d := range p[9:12] {
			status = status*10 + int(d-'0')
		}
	}
	switch status {
	case http.StatusRequestHeaderFieldsTooLarge:
		return status, reason.HeaderTooLarge
	case http.StatusHTTPVersionNotSupported:
		return status, reason.UnsupportedProtocol
	case http.StatusRequestTimeout:
		return status, reason.TimeoutReading
	}
	if status < 100 || status > 599 {
		status = 0
	}
	return status, reason.MalformedRequest
}

// Close implements net.Conn. A request that was taken and gets no exchange any
// more, because the server stops, is told so.
func (c *h1Conn) Close() error {
	c.mu.Lock()
	again := c.closed
	c.closed = true
	c.wake.Broadcast()
	c.mu.Unlock()
	if again {
		return c.Conn.Close()
	}
	waiting := c.partial.Load() || c.handed.Load() > c.begun.Load()
	switch {
	case !c.seen.Load():
		c.engine.stats.Silent.Add(1)
	case !waiting:
	case c.gone.Load():
		c.settle(reason.ClientAborted, phaseHead, time.Time{}, false)
	case c.engine.gate.draining.Load():
		c.settle(reason.ShuttingDown, phaseHead, time.Time{}, true)
	case c.handed.Load() > c.begun.Load():
		c.settle(reason.MalformedRequest, phaseForeign, time.Time{}, false)
	}
	return c.Conn.Close()
}
