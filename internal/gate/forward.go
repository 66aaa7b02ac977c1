package gate

import (
	"errors"
	"io"
	"net/http"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/upstream"
	"github.com/gatebook/gatebook/internal/reason"
)

// forward sends the canonical request on and streams the answer, all but what
// is held back until the record is committed.
func (x *exchange) forward() {
	x.phase = phaseForward
	x.requestFields()
	x.out = upstream.Request{
		Method: x.req.Method, Authority: x.req.Authority,
		Path: x.req.Sent(), Query: x.req.Query, HasQuery: x.req.HasQuery,
		Fields: x.fields, Length: x.req.ContentLength, Interim: x.interimFn,
	}
	if x.req.ContentLength != 0 {
		x.body = &requestBody{src: x.ex.Body(), limit: x.route.MaxBody}
		x.out.Body = x.body
	}
	if x.route.Identity != nil {
		if !x.prove() {
			return
		}
		x.out.Fields = x.fields
	}
	x.rec.Upstream.Name = x.route.UpstreamName
	resp, err := x.route.Upstream.RoundTrip(x.ctx, &x.out)
	if err != nil {
		x.spoiled = true
		x.upstreamFailed(err)
		return
	}
	x.resp = resp
	u := &x.rec.Upstream
	u.Target, u.Attempts, u.Reused = resp.Target, resp.Attempts, resp.Reused
	u.Breaker, u.TTFBUS = resp.Breaker, resp.TTFB.Microseconds()
	x.lap(&x.rec.Phase.TTFB)
	if resp.Status < 200 || resp.Status > 599 {
		x.fail(reason.BadResponse)
		return
	}
	x.rec.UpstreamStatus = resp.Status
	x.phase = phaseBody
	x.stream()
	x.lap(&x.rec.Phase.Body)
}

// upstreamFailed finds out whose failure it was: the client's body, the client
// that went away, or the upstream.
func (x *exchange) upstreamFailed(err error) {
	gone := x.ctx.Err() != nil
	if x.body != nil {
		if gone {
			x.body.settle()
		}
		if r := x.body.failure(); r != "" {
			x.fail(r)
			return
		}
	}
	if gone {
		x.fail(reason.ClientAborted)
		return
	}
	var ue *upstream.Error
	switch {
	case errors.As(err, &ue) && ue.Reason.Valid():
		x.fail(ue.Reason)
		x.rec.Error.Phase = ue.Phase
		u := &x.rec.Upstream
		if ue.Target != "" {
			u.Target, u.Attempts, u.Reused, u.Breaker = ue.Target, ue.Attempts, ue.Reused, ue.Breaker
		}
	case errors.Is(err, upstream.ErrClosed):
		x.fail(reason.ShuttingDown)
	case errors.Is(err, errInterim), errors.Is(err, io.ErrUnexpectedEOF):
		x.fail(reason.ClientAborted)
	default:
		// Nothing left the gate: the request cannot be put on the wire.
		x.g.log.Error("request cannot be forwarded", "request_id", x.idText, "route", x.route.Name)
		x.fail(reason.MalformedRequest)
	}
}

// bodiless reports answers that never have a body (RFC 9110 section 6.4.1).
func (x *exchange) bodiless() bool {
	return x.req.Method == http.MethodHead || x.resp.Status == http.StatusNoContent ||
		x.resp.Status == http.StatusNotModified
}

// headLength is the length to declare: of an answer to HEAD it is that of the
// body that GET would have had.
func (x *exchange) headLength() int64 {
	if x.bodiless() && x.req.Method != http.MethodHead {
		return -1
	}
	return x.resp.Length
}

// stream passes the body on. An answer whose body is empty or comes whole with
// the first read stays in memory until the record is committed, so that a book
// that fails then still gets the client a clean 503.
func (x *exchange) stream() {
	x.buf = buffers.Get().(*[bufSize]byte)
	if x.bodiless() || x.resp.Length == 0 {
		if x.drained() {
			x.answer = answerWhole
		}
		return
	}
	length := x.resp.Length
	if length > 0 {
		n, err := x.readUpstream()
		if err != nil && err != io.EOF {
			x.upstreamFailed(err)
			return
		}
		if int64(n) == length {
			x.first = x.buf[:n]
			if err == io.EOF || x.drained() {
				x.answer = answerWhole
			}
			return
		}
		if !x.sendHead(length) || !x.pass(x.buf[:n]) {
			return
		}
		if err == io.EOF {
			x.fail(reason.BodyLengthMismatch)
			return
		}
	} else if !x.sendHead(length) || !x.flush() {
		return
	}
	x.copy(length)
}

// copy streams until the end of the body.
func (x *exchange) copy(length int64) {
	for {
		n, err := x.readUpstream()
		if length >= 0 && x.sent+int64(n) > length {
			x.fail(reason.BodyLengthMismatch)
			return
		}
		if n > 0 && !x.pass(x.buf[:n]) {
			return
		}
		if n > 0 && length < 0 && !x.flush() {
			return
		}
		if err == nil {
			continue
		}
		if err != io.EOF {
			x.upstreamFailed(err)
			return
		}
		if length >= 0 && x.sent != length {
			x.fail(reason.BodyLengthMismatch)
			return
		}
		x.answer = answerStream
		x.takeTrailers()
		return
	}
}

// drained reads the end of a body that has no more bytes: only then can the
// upstream's connection be used again.
func (x *exchange) drained() bool {
	if x.resp.Body == nil {
		return true
	}
	var one [1]byte
	n, err := x.resp.Body.Read(one[:])
	switch {
	case n > 0 || err == nil:
		return x.fail(reason.BodyLengthMismatch)
	case err != io.EOF:
		x.upstreamFailed(err)
		return false
	}
	x.takeTrailers()
	return true
}

// readUpstream reads the next piece of the answer: at least a byte, or an
// error.
func (x *exchange) readUpstream() (int, error) {
	for range 100 {
		n, err := x.resp.Body.Read(x.buf[:])
		if n > 0 || err != nil {
			return n, err
		}
	}
	return 0, io.ErrNoProgress
}

// sendHead, pass and flush talk to the client; when they cannot, it is gone.
func (x *exchange) sendHead(length int64) bool {
	x.headSent = true
	if err := x.ex.Head(x.resp.Status, x.responseFields(), length); err != nil {
		return x.fail(reason.ClientAborted)
	}
	return true
}

func (x *exchange) pass(p []byte) bool {
	n, err := x.ex.Write(p)
	x.sent += int64(n)
	if err != nil {
		return x.fail(reason.ClientAborted)
	}
	return true
}

func (x *exchange) flush() bool {
	if err := x.ex.Flush(); err != nil {
		return x.fail(reason.ClientAborted)
	}
	return true
}

// errInterim marks an interim answer that the client no longer took.
var errInterim = errors.New("gate: the client does not take interim answers")

// interim passes a 1xx answer on. The upstream calls it while RoundTrip waits,
// on a goroutine of its own.
func (x *exchange) interim(code int, fields []canon.Field) error {
	if code <= http.StatusContinue || code == http.StatusSwitchingProtocols || code > 199 {
		return nil
	}
	out := make([]canon.Field, 0, len(fields)+1)
	out = appendResponse(out, fields)
	if err := x.ex.Interim(code, append(out, canon.Field{Name: "x-request-id", Value: x.idText})); err != nil {
		return errInterim
	}
	return nil
}

// takeTrailers keeps the trailers that may go on.
func (x *exchange) takeTrailers() {
	if x.resp.Trailers == nil {
		return
	}
	for _, f := range x.resp.Trailers() {
		if !trailerRefused(f.Name) {
			x.trailers = append(x.trailers, f)
		}
	}
}

// closeUpstream lets go of the answer, once.
func (x *exchange) closeUpstream() {
	if x.resp == nil || x.resp.Body == nil || x.closed {
		return
	}
	x.closed = true
	// The body has been read as far as it was wanted; whether the connection
	// can be used again is the pool's business.
	_ = x.resp.Body.Close()
}

// requestBody counts and bounds what is read of the request body. The upstream
// may read it on another goroutine, even a little after the exchange, so it is
// never reused.
type requestBody struct {
	src   io.Reader
	limit int64 // 0: none
	n     atomic.Int64
	why   atomic.Pointer[reason.Reason]

	reading sync.Mutex // held while src is read
}

var errBodyTooLarge = errors.New("gate: request body is larger than the route allows")

// Read implements io.Reader.
func (b *requestBody) Read(p []byte) (int, error) {
	if b.limit > 0 {
		left := b.limit - b.n.Load()
		if left < 0 {
			return 0, errBodyTooLarge
		}
		p = p[:min(int64(len(p)), left+1)]
	}
	b.reading.Lock()
	defer b.reading.Unlock()
	n, err := b.src.Read(p)
	if total := b.n.Add(int64(n)); b.limit > 0 && total > b.limit {
		b.fail(reason.BodyTooLarge)
		return n, errBodyTooLarge
	}
	if err != nil && err != io.EOF {
		var refusal *canon.Error
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			b.fail(reason.TimeoutReading)
		case errors.As(err, &refusal) && reason.Reason(refusal.Reason).Valid():
			b.fail(reason.Reason(refusal.Reason))
		default:
			b.fail(reason.ClientAborted)
		}
	}
	return n, err
}

// settleTime bounds the wait for a read that fails: it is failing already.
const settleTime = time.Second

// settle waits until a read that is under way has said why it fails: net/http
// cancels an exchange before the read that found the fault returns.
func (b *requestBody) settle() {
	done := make(chan struct{})
	go func() {
		b.reading.Lock()
		defer b.reading.Unlock()
		close(done)
	}()
	select {
	case <-done:
	case <-time.After(settleTime):
	}
}

func (b *requestBody) fail(r reason.Reason) { b.why.CompareAndSwap(nil, &r) }

func (b *requestBody) count() int64 { return b.n.Load() }

// failure is why reading failed, or "".
func (b *requestBody) failure() reason.Reason {
	if r := b.why.Load(); r != nil {
		return *r
	}
	return ""
}
