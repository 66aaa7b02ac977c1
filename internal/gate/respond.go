package gate

import (
	"context"
	"io"
	"net/http"
	"net/netip"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/reason"
)

// Responder answers the exchanges of a route in the upstream's place: a token
// endpoint, a login, a metadata document. Everything else is as on any route:
// canonical form, limits, authentication unless the route is public, one
// record, and no answer before the record is committed.
//
// Respond must be safe for concurrent use. It must not keep the Call, nor what
// it refers to, after it has returned. A panic is answered with 500.
type Responder interface {
	Respond(ctx context.Context, c *Call) Answer
}

// ResponderFunc is a Responder made of a function.
type ResponderFunc func(ctx context.Context, c *Call) Answer

// Respond implements Responder.
func (f ResponderFunc) Respond(ctx context.Context, c *Call) Answer { return f(ctx, c) }

// Call is one exchange as a Responder sees it. One goroutine at a time uses it.
type Call struct {
	Request *canon.Request
	// Body is the request body, bounded by the route's MaxBody; never nil. An
	// error in reading it decides the exchange, whatever the Answer says: a body
	// that is too large, too slow or broken has the gate's own answer.
	Body io.Reader
	// Principal is who the route's authenticators found, nil on a public route.
	Principal *authn.Principal
	// Client is the address that counts as the client's; Trusted says that the
	// peer may speak for others.
	Client  netip.Addr
	Trusted bool
	// Start is when the exchange began, ID its request id as text.
	Start time.Time
	ID    string
	// Record is the record so far. The Responder adds what only it knows: the
	// event, links, the personal family or session. Identity, status, reason
	// and outcome come from Identify and the Answer. Nothing secret may go in.
	Record *record.Record

	x *exchange
}

// Answer is what a Responder wants the client to get. It is sent whole, after
// the record.
type Answer struct {
	// Status is 200 to 599, or 0: the gate answers as it does for Reason.
	Status int
	// Fields of the answer, names in lower case, without x-request-id and those
	// of framing.
	Fields []canon.Field
	// Body is not sent to HEAD, nor with 204 and 304.
	Body []byte
	// Reason is why it did not go as asked, "" if it did. Without a Status it
	// is required.
	Reason reason.Reason
	// Failure is the failed attempt to say who it is, nil if there was none; its
	// Reason stands for an empty one above.
	Failure *authn.Failure
}

// Identify tells the gate who it is on a public route and takes those limits
// of the route that count by subject or client, which until now counted by
// address. When it returns false the Responder must return at once: whatever
// it answers, the client gets that it was limited.
func (c *Call) Identify(p *authn.Principal) bool {
	x := c.x
	x.authenticated(p)
	c.Principal = p
	for _, rule := range x.route.Limits {
		if rule.Key != ratelimit.KeySubject && rule.Key != ratelimit.KeyClient {
			continue
		}
		if key := x.limitKey(rule); key != "" && !x.take(rule, x.g.limiter.Take(rule, key, x.start)) {
			return false
		}
	}
	return true
}

// OnBehalf makes the exchange that of the person for whom the one who was
// identified acts. Limits are not taken again.
func (c *Call) OnBehalf(p *authn.Principal) {
	c.x.authenticated(p)
	c.Principal = p
}

// Mark commits the open mark: a Responder calls it before it does anything
// that must not go unrecorded, such as issuing a token, and must return at once
// when it returns false. What was refused without a mark may be folded in a
// flood, like any refusal of strangers.
func (c *Call) Mark() bool {
	x := c.x
	if x.why != "" {
		return false
	}
	if !x.marked {
		if !x.openMark() {
			return false
		}
		x.phase = phaseRespond
	}
	return true
}

// respond lets the route's Responder answer.
func (x *exchange) respond() {
	x.phase = phaseRespond
	x.body = &requestBody{src: x.ex.Body(), limit: x.route.MaxBody}
	c := Call{
		Request: x.req, Body: x.body, Principal: x.principal, Client: x.client, Trusted: x.trusted,
		Start: x.start, ID: x.idText, Record: &x.rec, x: x,
	}
	a := x.route.Responder.Respond(x.ctx, &c)
	x.lap(&x.rec.Phase.Body)
	if r := x.body.failure(); r != "" {
		x.fail(r)
		return
	}
	if x.why != "" {
		return // a limit or the book has said no
	}
	x.settleOn(a)
}

// settleOn makes a Responder's answer the exchange's.
func (x *exchange) settleOn(a Answer) {
	why := a.Reason
	if f := a.Failure; f != nil {
		if why == "" {
			why = f.Reason
		}
		if x.principal == nil {
			x.noteFailure(f, record.None)
			if x.failedAgain(f) {
				return
			}
		}
	}
	switch {
	case a.Status == 0 && why.Valid():
		x.fail(why)
		return
	case a.Status < 200 || a.Status > 599 || why != "" && !why.Valid():
		x.g.log.Error("responder without a valid answer", "request_id", x.idText, "route", x.route.Name, "status", a.Status, "reason", string(why))
		x.fail(reason.Panic)
		return
	}
	fields := make([]canon.Field, 0, len(a.Fields)+1)
	fields = append(append(fields, canon.Field{Name: "x-request-id", Value: x.idText}), a.Fields...)
	if x.nonce != "" {
		fields = append(fields, canon.Field{Name: "dpop-nonce", Value: x.nonce})
	}
	fields = x.addCookie(fields)
	if a.Status == http.StatusNoContent || a.Status == http.StatusNotModified {
		a.Body = nil
	}
	x.own = ownAnswer{status: a.Status, fields: fields, body: a.Body, why: why}
	x.answer = answerOwn
	if why != "" {
		x.fail(why)
	}
}
