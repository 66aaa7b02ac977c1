package gate

import (
	"context"
	"errors"
	"net/http"
	"runtime/debug"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// Serve takes one exchange all the way: DESIGN section 4, in its order. Every
// step that says no has set why; finish answers, and writes the record on every
// exit, a panic and a client that went away included. It returns when the
// exchange has been finished or aborted.
func (g *Gate) Serve(ctx context.Context, ex Exchange) {
	x := g.begin(ctx, ex) // canonical form, id, snapshot
	defer x.finish()

	ok := x.canonical() && x.accepted() && x.connected() && x.preAuthLimits() &&
		x.matchRoute() && x.authenticate() && x.postAuthLimits() &&
		x.authorize() && x.admit()
	switch {
	case !ok:
	case x.route.Responder != nil:
		x.respond() // marks by itself
	case x.openMark():
		x.forward() // streams all but what is held back
	}
}

// finish ends the exchange: record, commit, release. It is deferred by Serve
// and called on every exit.
func (x *exchange) finish() {
	if recover() != nil {
		x.panicked()
	}
	x.closeUpstream()
	x.settle()
	if err := x.commit(); err != nil {
		x.spoiled = true
		status := x.rec.Status
		if x.audit.OnFailure == Refuse {
			status = x.unrecorded(err)
		}
		x.g.counts.add(x.rec.Kind, bookReason(err), status)
	} else {
		x.g.counts.add(x.rec.Kind, x.why, x.rec.Status)
	}
	x.alarm()
	x.release()
	x.g.end(x)
}

// panicked turns a panic into a failure of its own. What it says may hold
// anything, so only the stack is logged.
func (x *exchange) panicked() {
	x.g.log.Error("exchange panicked", "request_id", x.idText, "phase", x.phase, "stack", string(debug.Stack()))
	x.spoiled = true
	x.fail(reason.Panic)
}

// fail notes why the exchange does not go as asked, and returns false. The
// first reason stays, but for a panic, which nothing explains away.
func (x *exchange) fail(r reason.Reason) bool {
	if x.why != "" && r != reason.Panic {
		return false
	}
	if r == reason.ClientAborted && x.g.cutting.Load() {
		r = reason.ShuttingDown
	}
	x.why = r
	x.rec.Error = record.Error{Origin: r.Origin(), Reason: string(r), Phase: x.phase}
	return false
}

// settle decides what the client gets and completes the record with it.
func (x *exchange) settle() {
	r := &x.rec
	if x.why == "" && x.answer == answerAbort {
		x.fail(reason.Panic) // no step may end without a word; deny if one does
	}
	switch {
	case x.why == "" && x.answer == answerOwn:
		r.Status = x.own.status
	case x.why == "":
		r.Status = x.resp.Status
	case x.answer == answerOwn && x.own.why == x.why:
		r.Status = x.own.status // a Responder's word on its own failure
	case x.why == reason.ClientAborted:
		r.Status = reason.StatusClientAborted
		x.answer = answerAbort
	case x.headSent:
		r.Status = x.resp.Status
		x.answer = answerAbort
	default:
		x.own = x.problem(x.why)
		r.Status = x.own.status
		x.answer = answerOwn
	}
	r.Outcome = record.Success
	if x.why != "" || r.Status >= 400 {
		r.Outcome = record.Failure
	}
	switch {
	case x.req.Method == http.MethodHead && x.answer != answerAbort:
	case x.answer == answerOwn:
		r.BytesOut = int64(len(x.own.body))
	case x.answer == answerWhole:
		r.BytesOut = int64(len(x.first))
	default:
		r.BytesOut = x.sent
	}
	if x.body != nil {
		r.BytesIn = x.body.count()
	}
	r.DurUS = x.elapsed()
}

// commit hands the record to the book.
func (x *exchange) commit() error {
	if x.recorder == nil {
		return errNoRecorder
	}
	x.takeShadow()
	x.rec.Raw.Fold = x.folds()
	return x.recorder.Commit(context.Background(), x.ref, &x.rec, x.audit.Level)
}

// folds says whether a flood of exchanges like this one may be counted instead
// of written: refusals of strangers, but nothing that an upstream may have seen
// or that may have an open mark, even one whose Open failed.
func (x *exchange) folds() bool {
	return !x.marked && x.principal == nil && x.why.Folds()
}

var errNoRecorder = errors.New("gate: the snapshot has no recorder")

// unrecorded replaces the answer of an exchange that the book did not take: a
// complete answer without its record is never released. It returns the status
// of what the client gets.
func (x *exchange) unrecorded(err error) int {
	if x.headSent || x.answer == answerAbort {
		x.answer = answerAbort
		return x.rec.Status
	}
	x.own = x.problem(bookReason(err))
	x.answer = answerOwn
	return x.own.status
}

// bookReason maps an error of the Recorder.
func bookReason(err error) reason.Reason {
	var named interface{ Reason() string }
	if errors.As(err, &named) {
		if r := reason.Reason(named.Reason()); r.Valid() && r.Origin() == reason.OriginBook {
			return r
		}
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return reason.BookSlow
	}
	return reason.BookUnavailable
}

// answer is what release does.
type answer uint8

const (
	answerAbort  answer = iota // nothing more; the zero value
	answerOwn                  // one of the gate, whole: a problem or a redirection
	answerWhole                // the upstream's, whole in memory
	answerStream               // the upstream's, sent but for what the engine holds back
)

// release gives the client what was held back. The record is written; a client
// that is gone by now changes nothing.
func (x *exchange) release() {
	var err error
	var trailers []canon.Field
	switch x.answer {
	case answerOwn:
		length := int64(len(x.own.body))
		if x.own.status == http.StatusNoContent || x.own.status == http.StatusNotModified {
			length = -1 // RFC 9110 section 8.6
		}
		err = x.sendWhole(x.own.status, x.own.fields, length, x.own.body)
	case answerWhole:
		err = x.sendWhole(x.resp.Status, x.responseFields(), x.headLength(), x.first)
		trailers = x.trailers
	case answerStream:
		trailers = x.trailers
	default:
		x.ex.Abort()
		return
	}
	if err != nil {
		x.ex.Abort()
		return
	}
	if err := x.ex.Finish(trailers); err != nil {
		x.ex.Abort()
	}
}

func (x *exchange) sendWhole(status int, fields []canon.Field, length int64, body []byte) error {
	if err := x.ex.Head(status, fields, length); err != nil {
		return err
	}
	if len(body) == 0 || x.req.Method == http.MethodHead {
		return nil
	}
	_, err := x.ex.Write(body)
	return err
}
