package upstream

import (
	"context"
	"errors"
	"io"
	"net/http"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

var errDisagree = errors.New("the response head can be read in two ways")

// agrees makes sure that net/http has read the same head as the framer: where
// they differ, nobody knows where the response ends.
func (ex *exchange) agrees(h *http.Response) error {
	ex.mu.Lock()
	defer ex.mu.Unlock()
	f := ex.final
	same := ex.gotFinal && f.status == h.StatusCode && f.body == (h.Body != http.NoBody)
	switch {
	case !same || !f.body:
	case f.status == http.StatusSwitchingProtocols:
		_, same = h.Body.(io.ReadWriteCloser)
	default:
		same = f.length == h.ContentLength
	}
	if same {
		return nil
	}
	if ex.why == nil {
		ex.why = &cause{reason.BadResponse, PhaseHead, errDisagree}
	}
	ex.answered = true
	return errDisagree
}

// answer is a Response and its body in one piece of memory.
type answer struct {
	Response
	body respBody
}

// response makes the Response of attempt n.
func (ex *exchange) response(ctx context.Context, body io.ReadCloser, c choice, n int, ttfb time.Duration) *Response {
	_ = ex.endInterims() // an answer came, so none failed
	ex.mu.Lock()
	final, conn, reused := ex.final, ex.conn, ex.reused
	ex.mu.Unlock()
	conn.settle(ex)
	a := &answer{Response: Response{
		Status: final.status, Fields: endToEnd(final.fields), Length: final.length, Trailers: noTrailers,
		Target: c.name, Attempts: n, Reused: reused, Breaker: c.breaker(), TTFB: ttfb,
	}}
	switch {
	case final.status == http.StatusSwitchingProtocols:
		rwc, _ := body.(io.ReadWriteCloser) // agrees has made sure
		a.Body = &tunnelBody{ReadWriteCloser: rwc, target: c.target}
	case !final.body:
		c.inflight.Add(-1)
		a.Body = emptyBody{}
		if n == 1 {
			ex.recycle()
		}
	default:
		a.body = respBody{ctx: ctx, src: body, target: c.target, attempts: n, breaker: a.Breaker, ex: ex}
		a.Body = &a.body
		if final.length < 0 {
			a.Trailers = a.body.takeTrailers
		}
	}
	return &a.Response
}

// blame says whose fault a failed attempt is: a failure is the target's, an
// error is not.
func (ex *exchange) blame(ctx context.Context, err error) (*failure, error) {
	if berr := ex.pump.failure(); berr != nil {
		return nil, berr
	}
	ex.interimMu.Lock()
	ierr := ex.interErr
	ex.interimMu.Unlock()
	if ierr != nil {
		return nil, ierr
	}
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	var de *dialError
	if errors.As(err, &de) {
		return &failure{Error: Error{Reason: de.reason, Phase: de.phase, Err: de.err}, again: ex.bodyUntouched(), elsewhere: true}, nil
	}
	ex.mu.Lock()
	conn, why, reused, answered := ex.conn, ex.why, ex.reused, ex.answered
	ex.mu.Unlock()
	switch {
	case conn == nil:
		return nil, err // net/http refused the request itself
	case why != nil:
	case isTimeout(err):
		why = &cause{reason.ResponseTimeout, PhaseHead, err}
	case answered:
		why = &cause{reason.BadResponse, PhaseHead, err}
	default:
		why = &cause{reason.ResetBeforeResponse, PhaseHead, err}
	}
	f := &failure{Error: Error{Reason: why.reason, Phase: why.phase, Err: why.err, Reused: reused}}
	switch {
	case answered:
	case !conn.wrote.Load():
		f.again, f.elsewhere = ex.bodyUntouched(), !reused
	case reused && why.reason == reason.ResetBeforeResponse:
		f.again = ex.req.Length == 0 && idempotent(ex.req.Method)
	}
	return f, nil
}

// bodyUntouched reports whether the whole body can still be sent.
func (ex *exchange) bodyUntouched() bool {
	return ex.pump == nil || ex.pump.untouched()
}

// letGo ends the connection's hold on ex after a failed attempt.
func (ex *exchange) letGo() {
	ex.mu.Lock()
	c := ex.conn
	ex.mu.Unlock()
	if c != nil {
		c.detach(ex)
	}
}

// idempotent lists the methods of RFC 9110 section 9.2.2.
func idempotent(method string) bool {
	switch method {
	case http.MethodGet, http.MethodHead, http.MethodOptions, http.MethodTrace, http.MethodPut, http.MethodDelete:
		return true
	}
	return false
}
