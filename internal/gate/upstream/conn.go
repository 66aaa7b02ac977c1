package upstream

import (
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// copyBuf is the size of the buffers that request bodies pass through.
const copyBuf = 32 << 10

// buffers keeps such buffers for a pool.
type buffers struct{ spare sync.Pool }

func (b *buffers) get() *[copyBuf]byte {
	if buf, ok := b.spare.Get().(*[copyBuf]byte); ok {
		return buf
	}
	return new([copyBuf]byte)
}

func (b *buffers) put(buf *[copyBuf]byte) { b.spare.Put(buf) }

// conn stands between net/http and the socket. It feeds everything it reads
// to a framer, so that net/http sees only responses that are framed without
// doubt; it refuses bytes that nobody asked for, so that a kept connection
// cannot hand one client's answer to another; it sets the deadlines that
// net/http does not have (a stalled body, an upstream that stops reading); and
// it tells the exchange that uses it what happened, so that nothing has to be
// guessed from the text of an error.
type conn struct {
	net.Conn
	bufs     *buffers
	idleBody time.Duration
	stall    time.Duration

	wrote    atomic.Bool // a byte of the current request went out
	writeDue time.Time   // socket write deadline; owned by the writing goroutine

	mu       sync.Mutex
	framer   framer        // mu
	owner    *exchange     // mu; whom the connection was last given to
	ex       *exchange     // mu; owner while its response is incomplete, else nil
	writing  bool          // mu; the request has begun to go out
	settled  bool          // mu; net/http has returned owner's response
	broken   error         // mu; set once: no byte may pass any more
	why      *cause        // mu; why broken, if the upstream is to blame
	closed   bool          // mu
	early    bool          // mu; the response ended before the request: nothing more is written
	deadline bool          // mu; a read deadline is set
	pump     *pump         // mu; owner's streamed body
	release  chan struct{} // mu; closed to end holdWrite
	headDue  time.Time     // mu; when the response head must have come; set on the direct way

	// Of the direct way; owned by the exchange that has the connection.
	direct bool
	raw    syscall.RawConn
	look   func(fd uintptr) // c.lookAt, bound once
	abort  func()           // closes it, bound once
	peeked [1]byte
	silent bool      // nothing has come
	since  time.Time // when it was last kept
}

func (p *Pool) newConn(nc net.Conn) *conn {
	return &conn{Conn: nc, bufs: &p.bufs, idleBody: p.cfg.IdleBody, stall: p.cfg.ResponseTimeout}
}

// begin gives the connection to ex; called before any byte is written.
func (c *conn) begin(ex *exchange) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.owner, c.ex = ex, ex
	c.framer.reset(ex.req.Method == "HEAD", ex.upgrade)
	c.wrote.Store(false)
	c.writing, c.settled, c.early = false, false, false
	c.pump = ex.pump
	if c.why != nil {
		ex.note(c.why)
	}
}

// detach makes sure that the connection tells ex nothing more.
func (c *conn) detach(ex *exchange) {
	c.mu.Lock()
	if c.owner == ex {
		c.owner, c.ex = nil, nil
		c.pump.stop()
	}
	c.mu.Unlock()
}

// settle notes that net/http has returned ex's response: from now on the rest
// of the request is no longer needed once the response is complete.
func (c *conn) settle(ex *exchange) {
	c.mu.Lock()
	if c.owner == ex {
		c.settled = true
		c.endIfOver()
	}
	c.mu.Unlock()
}

// endIfOver stops what is left of a request whose response is complete. The
// caller holds mu.
func (c *conn) endIfOver() {
	if c.settled && c.ex == nil {
		c.pump.stop()
		c.releaseWrite()
	}
}

func (c *conn) releaseWrite() {
	if c.release != nil {
		close(c.release)
		c.release = nil
	}
}

// Read hands on what the framer accepts.
func (c *conn) Read(p []byte) (int, error) {
	if err := c.beforeRead(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Read(p)
	ex, heads, err := c.afterRead(p[:n], err)
	for _, h := range heads {
		if ierr := ex.interim(h); ierr != nil {
			return 0, c.fail(ierr)
		}
	}
	if err != nil && err != io.EOF {
		return 0, err
	}
	return n, err
}

// beforeRead sets the deadline of a read that waits for body bytes and clears
// it for any other: a kept connection waits as long as net/http keeps it, and
// the head has net/http's own timer, except on the direct way.
func (c *conn) beforeRead() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken != nil {
		return c.broken
	}
	inBody := c.ex != nil && !c.framer.phase.inHead() && c.framer.phase != phaseTunnel
	switch {
	case inBody:
		c.deadline = true
		return c.Conn.SetReadDeadline(time.Now().Add(c.idleBody))
	case c.direct:
		c.deadline = true
		return c.Conn.SetReadDeadline(c.headDue)
	case c.deadline:
		c.deadline = false
		return c.Conn.SetReadDeadline(time.Time{})
	}
	return nil
}

// afterRead judges what was read. The heads it returns are interim ones for
// ex, in the order of arrival.
func (c *conn) afterRead(p []byte, err error) (*exchange, []head, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	ex := c.ex
	if c.framer.phase == phaseTunnel {
		return nil, nil, err
	}
	var interims []head
	if len(p) > 0 {
		if ex == nil || !c.writing {
			return nil, nil, c.breakUp(ex, &cause{reason.BadResponse, PhaseHead, errUnsolicited})
		}
		if !c.framer.started {
			ex.gotByte()
		}
		n, ferr := c.framer.feed(p)
		if ferr != nil {
			return nil, nil, c.breakUp(ex, frameCause(&c.framer, ferr))
		}
		if n < len(p) {
			return nil, nil, c.breakUp(ex, c.excess())
		}
		interims = c.takeHeads(ex)
	}
	if err != nil {
		return ex, interims, c.readFailed(ex, err)
	}
	return ex, interims, nil
}

// excess is the cause when bytes follow the end of a response: the upstream
// lies about its length, and where the next response starts is unknown
// (RFC 9112 section 6.3). Excess that arrives later, when the response has
// been handed out, ends the kept connection only.
func (c *conn) excess() *cause {
	if h := &c.framer; h.isHead || h.status == 204 || h.status == 304 {
		return &cause{reason.BadResponse, PhaseHead, errors.New("bytes follow a response that has no body")}
	}
	return &cause{reason.BodyLengthMismatch, PhaseBody, errors.New("bytes follow the end of the response")}
}

// takeHeads gives the final head and the trailers to ex and returns the
// interim heads. The caller holds mu.
func (c *conn) takeHeads(ex *exchange) []head {
	var interims []head
	for _, h := range c.framer.heads {
		if h.status >= 100 && h.status < 200 && h.status != 101 {
			interims = append(interims, h)
			continue
		}
		ex.gotHead(h)
	}
	clear(c.framer.heads)
	c.framer.heads = c.framer.heads[:0]
	if c.framer.phase == phaseDone {
		c.ex = nil
		c.early = c.pump.unsent()
		c.endIfOver()
	}
	return interims
}

// readFailed judges a failed read. The caller holds mu.
func (c *conn) readFailed(ex *exchange, err error) error {
	if errors.Is(err, net.ErrClosed) {
		if c.broken == nil {
			c.broken = errConnDead
		}
		return err
	}
	if ex == nil {
		why := &cause{reason.ResetBeforeResponse, PhaseHead, fmt.Errorf("%w: %w", errConnDead, err)}
		if isRemoteAlert(err) {
			why.reason, why.phase = reason.TLSHandshakeUpstream, PhaseTLS
		}
		return c.breakUp(nil, why)
	}
	if err != io.EOF {
		return c.breakUp(ex, readCause(&c.framer, err))
	}
	if ferr := c.framer.eof(); ferr != nil {
		return c.breakUp(ex, frameCause(&c.framer, ferr))
	}
	c.broken = errConnDead
	c.ex = nil
	c.endIfOver()
	return io.EOF
}

// breakUp ends all use of the connection. The caller holds mu.
func (c *conn) breakUp(ex *exchange, why *cause) error {
	if c.broken == nil {
		c.broken, c.why = why.err, why
	}
	if ex != nil {
		ex.note(why)
	}
	return c.broken
}

// fail ends all use of the connection for a reason that is not the upstream's.
func (c *conn) fail(err error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.broken == nil {
		c.broken = err
	}
	return err
}

// Write sends request bytes; an upstream that takes none for the stall time
// fails it. When the upstream stops reading because it has answered already,
// the error is held back until that answer has been read.
func (c *conn) Write(p []byte) (int, error) {
	if err := c.beforeWrite(); err != nil {
		return 0, err
	}
	n, err := c.Conn.Write(p)
	if n > 0 {
		c.wrote.Store(true)
	}
	switch {
	case err == nil:
	case isTimeout(err):
		c.mu.Lock()
		err = c.breakUp(c.ex, &cause{reason.ResponseTimeout, PhaseRequest, err})
		c.mu.Unlock()
	case c.wrote.Load() && !c.direct: // on the direct way the reader is waiting for us
		c.holdWrite()
	}
	return n, err
}

// beforeWrite moves the write deadline, not on each write but when a quarter
// of it has passed: the system call is saved and a stall is noticed between
// three quarters and the whole of the stall time.
func (c *conn) beforeWrite() error {
	c.mu.Lock()
	if c.broken != nil {
		c.mu.Unlock()
		return c.broken
	}
	c.writing = true
	early := c.early
	c.mu.Unlock()
	if early {
		c.holdWrite()
		return errBodyStopped
	}
	now := time.Now()
	if c.writeDue.Sub(now) > c.stall*3/4 {
		return nil
	}
	c.writeDue = now.Add(c.stall)
	return c.Conn.SetWriteDeadline(c.writeDue)
}

// ReadFrom copies a request body through a pooled buffer; without it io.Copy
// would allocate one for each request.
func (c *conn) ReadFrom(r io.Reader) (int64, error) {
	buf := c.bufs.get()
	defer c.bufs.put(buf)
	var total int64
	for {
		n, err := r.Read(buf[:])
		if n > 0 {
			w, werr := c.Write(buf[:n])
			total += int64(w)
			if werr != nil {
				return total, werr
			}
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
	}
}

// holdWrite waits until the response is complete or the connection closed: an
// early answer such as 413 must win over the broken pipe that follows it.
func (c *conn) holdWrite() {
	c.mu.Lock()
	if c.closed || c.settled && c.ex == nil || c.framer.phase == phaseTunnel {
		c.mu.Unlock()
		return
	}
	if c.release == nil {
		c.release = make(chan struct{})
	}
	release := c.release
	c.mu.Unlock()
	timer := time.NewTimer(c.stall)
	defer timer.Stop()
	select {
	case <-release:
	case <-timer.C:
	}
}

// Close closes the socket and ends whatever waits for it.
func (c *conn) Close() error {
	c.mu.Lock()
	c.closed = true
	c.pump.stop()
	c.releaseWrite()
	c.mu.Unlock()
	return c.Conn.Close()
}
