package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http/httptrace"
	"net/http/httputil"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// A request whose body is in memory goes the direct way: it is written, and its
// answer read, on the caller's goroutine, over connections of the pool's own.
// What must be sent and received at the same time, a streamed body or an
// upgrade, goes through net/http's transport, which has two goroutines for each
// connection and costs about twice as much.

// directBuf is the size of the buffers into which answers are read.
const directBuf = 8 << 10

// goDirect makes one attempt at t and returns the body of the answer, whose
// head is ex.final then.
func (p *Pool) goDirect(ctx context.Context, ex *exchange, t *target) (io.ReadCloser, error) {
	ex.fresh()
	c, reused, err := p.connection(ctx, t)
	if err != nil {
		return nil, err
	}
	d := &direct{pool: p, target: t, conn: c, ex: ex, buf: p.directBufs.Get().(*[directBuf]byte)}
	d.stop = context.AfterFunc(ctx, c.abort)
	ex.gotConn(httptrace.GotConnInfo{Conn: c, Reused: reused})
	if err = d.send(t); err == nil {
		err = d.readHead()
	}
	if err != nil {
		d.end(false)
		return nil, err
	}
	ex.sent.Store(true)
	d.begin()
	return d, nil
}

// connection takes a kept connection or makes a new one.
func (p *Pool) connection(ctx context.Context, t *target) (c *conn, reused bool, err error) {
	for c := t.kept.take(); c != nil; c = t.kept.take() {
		if c.quiet() {
			return c, true, nil
		}
		_ = c.Close() // the upstream has closed it, or sent what nobody asked for
	}
	dial := p.dial
	if t.tls != nil {
		dial = p.dialTLS
	}
	nc, err := dial(ctx, "tcp", t.addr)
	if err != nil {
		return nil, false, err
	}
	c, ok := nc.(*conn)
	if !ok {
		return nil, false, errorAfterClose(nc, errors.New("upstream: a connection that is not the pool's"))
	}
	c.direct = true
	c.raw = descriptor(c.Conn)
	c.abort = func() { _ = c.Close() }
	c.look = c.lookAt
	return c, false, nil
}

// descriptor gives access to what lies under a connection, nil if nothing does.
func descriptor(nc net.Conn) syscall.RawConn {
	if t, ok := nc.(*tls.Conn); ok {
		nc = t.NetConn()
	}
	if s, ok := nc.(syscall.Conn); ok {
		if raw, err := s.SyscallConn(); err == nil {
			return raw
		}
	}
	return nil
}

// quiet reports whether a kept connection is open and nothing has come on it:
// bytes that came between two requests are not the answer to the next.
func (c *conn) quiet() bool {
	c.silent = false
	return c.raw != nil && c.raw.Control(c.look) == nil && c.silent
}

func (c *conn) lookAt(fd uintptr) {
	n, _, err := syscall.Recvfrom(int(fd), c.peeked[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	c.silent = n < 0 && err == syscall.EAGAIN
}

// direct is an answer on its way to the caller. It belongs to one goroutine.
type direct struct {
	pool   *Pool
	target *target
	conn   *conn
	ex     *exchange
	stop   func() bool // ends the hold of the caller's context on the connection

	buf      *[directBuf]byte // nil when the answer has ended
	from, to int              // of buf: read and not handed on
	left     int64            // of a body of known length, else -1
	chunks   io.Reader        // of a body in chunks
	keep     bool             // the upstream will take another request
	err      error            // what each further Read returns
}

// send writes the request. An upstream that takes no more may have answered
// already, so that the answer is read all the same.
func (d *direct) send(t *target) error {
	ex, r := d.ex, d.ex.req
	host := t.hostField
	if d.pool.cfg.PreserveHost && r.Authority != "" {
		host = r.Authority
	}
	if !targetBytes(host, true) {
		return errors.New("upstream: authority holds a byte that cannot stand in a Host field")
	}
	b := append(append(append(ex.wire[:0], r.Method...), ' '), r.Path...)
	if r.HasQuery {
		b = append(append(b, '?'), r.Query...)
	}
	b = append(append(append(b, " HTTP/1.1\r\nHost: "...), host...), "\r\n"...)
	b = append(b, ex.fieldText...)
	if r.Length > 0 {
		b = append(strconv.AppendInt(append(b, "Content-Length: "...), r.Length, 10), "\r\n"...)
	}
	b = append(append(b, "\r\n"...), ex.buffered...)
	ex.wire = b
	_, err := d.conn.Write(b)
	if err != nil && (isTimeout(err) || !d.conn.wrote.Load()) {
		return err
	}
	d.conn.expect(time.Now().Add(d.pool.cfg.ResponseTimeout))
	return nil
}

// readHead reads to the end of the final head, and maybe a part of the body.
func (d *direct) readHead() error {
	before := 0
	for {
		n, err := d.conn.Read(d.buf[:])
		if err != nil && err != io.EOF {
			return err
		}
		if end := d.conn.headEnd(); end > 0 {
			d.from, d.to = end-before, n
			return nil
		}
		if err != nil {
			return err
		}
		before += n
	}
}

// begin prepares for the body, and ends an answer that has none.
func (d *direct) begin() {
	f := &d.ex.final // nobody else changes it any more
	d.keep = d.conn.persists(f.fields)
	d.left = f.length
	switch {
	case !f.body:
		d.err = io.EOF
		d.end(d.keep)
	case f.length < 0 && d.conn.chunked():
		d.chunks = httputil.NewChunkedReader(rawBody{d})
	}
}

// Read implements io.Reader.
func (d *direct) Read(p []byte) (int, error) {
	if d.err != nil {
		return 0, d.err
	}
	n, err := d.read(p)
	if err != nil {
		d.err = err
		d.end(err == io.EOF && d.keep)
	}
	return n, err
}

// read returns io.EOF when the answer has come whole.
func (d *direct) read(p []byte) (n int, err error) {
	switch {
	case d.chunks != nil:
		if n, err = d.chunks.Read(p); err == io.EOF {
			err = d.pastTrailers()
		}
	case d.left >= 0:
		n, err = rawBody{d}.Read(p)
		if d.left -= int64(n); err == nil && d.left == 0 {
			err = io.EOF
		}
	default:
		n, err = rawBody{d}.Read(p)
	}
	return n, err
}

// pastTrailers reads what follows the last chunk, which the framer keeps.
func (d *direct) pastTrailers() error {
	for d.conn.busy(d.ex) {
		if _, err := d.conn.Read(d.buf[:]); err != nil && err != io.EOF {
			return err
		}
	}
	return io.EOF
}

// Close ends an answer that was not read to its end, with its connection.
func (d *direct) Close() error {
	if d.err == nil {
		d.err = errBodyClosed
	}
	d.end(false)
	return nil
}

// end lets go of the connection, once: it is kept, or closed.
func (d *direct) end(keep bool) {
	if d.buf == nil {
		return
	}
	d.pool.directBufs.Put(d.buf)
	d.buf = nil
	// After a stop that came too late the connection is being closed.
	if !d.stop() || !keep || !d.pool.keep(d.target, d.conn) {
		_ = d.conn.Close()
	}
}

// rawBody is the body as it comes: what was read with the head, then the rest.
type rawBody struct{ d *direct }

// Read implements io.Reader.
func (r rawBody) Read(p []byte) (int, error) {
	d := r.d
	if d.from < d.to {
		n := copy(p, d.buf[d.from:d.to])
		d.from += n
		return n, nil
	}
	return d.conn.Read(p)
}

// expect sets when the head of an answer must have come.
func (c *conn) expect(due time.Time) {
	c.mu.Lock()
	c.headDue = due
	c.mu.Unlock()
}

// headEnd is how many bytes of the response the heads took, 0 before the end of
// the final one.
func (c *conn) headEnd() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.framer.headEnd
}

func (c *conn) chunked() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.framer.chunked
}

// busy reports whether the response to ex is incomplete.
func (c *conn) busy(ex *exchange) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ex == ex
}

// persists reports whether the upstream keeps the connection after a response
// with these fields (RFC 9112 section 9.3).
func (c *conn) persists(fields []canon.Field) bool {
	c.mu.Lock()
	keep := !c.framer.http10
	c.mu.Unlock()
	for _, f := range fields {
		if f.Name != "connection" {
			continue
		}
		if listed(f.Value, "close") {
			return false
		}
		keep = keep || listed(f.Value, "keep-alive")
	}
	return keep
}

// keep keeps a connection for the next request to t. It reports whether it did.
func (p *Pool) keep(t *target, c *conn) bool {
	c.mu.Lock()
	fit := c.broken == nil && !c.closed && c.ex == nil
	c.mu.Unlock()
	return fit && c.raw != nil && t.kept.put(c, p)
}

// kept are the connections to one target that nobody uses, the one used last at
// the end.
type kept struct {
	mu    sync.Mutex
	conns []*conn     // mu
	timer *time.Timer // mu; runs while there are any
}

func (k *kept) take() *conn {
	k.mu.Lock()
	defer k.mu.Unlock()
	n := len(k.conns) - 1
	if n < 0 {
		return nil
	}
	c := k.conns[n]
	k.conns[n] = nil
	k.conns = k.conns[:n]
	return c
}

func (k *kept) put(c *conn, p *Pool) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	if len(k.conns) >= p.cfg.MaxIdlePerTarget || p.closed.Load() {
		return false
	}
	c.since = time.Now()
	k.conns = append(k.conns, c)
	if k.timer == nil {
		k.timer = time.AfterFunc(min(sweepTime, p.cfg.MaxIdleTime), func() { k.sweep(p.cfg.MaxIdleTime) })
	}
	return true
}

// sweepTime is how often kept connections are looked at.
const sweepTime = time.Second

// sweep closes what was not used for so long, and what the upstream has closed.
func (k *kept) sweep(most time.Duration) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := time.Now()
	k.conns = slices.DeleteFunc(k.conns, func(c *conn) bool {
		over := now.Sub(c.since) >= most || !c.quiet()
		if over {
			_ = c.Close() // nobody used it
		}
		return over
	})
	switch {
	case k.timer == nil: // the pool has ended
	case len(k.conns) > 0:
		k.timer.Reset(min(sweepTime, most))
	default:
		k.timer = nil
	}
}

// close closes all of them. p.closed is set.
func (k *kept) close() {
	k.mu.Lock()
	if k.timer != nil {
		k.timer.Stop()
		k.timer = nil
	}
	k.mu.Unlock()
	k.sweep(0)
}
