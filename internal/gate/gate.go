// Package gate is the request's way. Serve, in pipeline.go, is one straight
// function; read it first. It takes an Exchange from an HTTP engine, decides
// with what the current Snapshot declares, forwards, and writes exactly one
// record on every exit before the answer is complete (DESIGN section 4).
package gate

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// Recorder takes the record of an exchange. Both calls return when the record
// is as firm as the level asks; an error says that it is not, and an error with
// a method Reason() string names one of the book reasons. A Recorder keeps
// nothing of the record after it returned nil. Slices in the record are shared
// with other exchanges: it may replace them but not write into them. It bounds its own time (DESIGN
// 4.10 commit_timeout): the context is never the client's, since a client that
// goes away must not take its record along.
type Recorder interface {
	// Open makes the mark that an exchange is about to be forwarded.
	Open(ctx context.Context, r *record.Record, l record.Level) (record.Ref, error)
	// Commit appends the record. The zero Ref means that there is no open mark.
	Commit(ctx context.Context, ref record.Ref, r *record.Record, l record.Level) error
}

// Exchange is the contract between an HTTP engine and the pipeline. One
// goroutine uses it, except that Body may be read by another and that Interim
// is called by another while the pipeline waits for the upstream's head.
//
// The engine holds back what completes the answer until Finish: the final byte
// of a known length, the terminator, trailers or END_STREAM of an unknown one
// (DESIGN 4.10). Every exchange ends with exactly one of Finish and Abort.
type Exchange interface {
	// Listener is the name of the listener that took the connection.
	Listener() string
	// Request is the canonical request; never nil. When Refusal is not nil only
	// its connection facts are set.
	Request() *canon.Request
	// Refusal is why the request is not canonical, nil if it is.
	Refusal() *canon.Error
	// Body is the request body; it stays readable until Finish or Abort. Its
	// errors are io.EOF, one that matches os.ErrDeadlineExceeded when the
	// client is too slow, a *canon.Error when its framing is broken, or any
	// other when the client went away.
	Body() io.Reader
	// Interim sends a 1xx answer other than 100 and 101.
	Interim(code int, fields []canon.Field) error
	// Head sends or keeps the final head. length is the body's length, -1 if
	// unknown; for an answer to HEAD it is only declared (-1: not declared).
	Head(status int, fields []canon.Field, length int64) error
	// Write sends body bytes, all but what is held back.
	Write(p []byte) (int, error)
	// Flush sends what is buffered, all but what is held back.
	Flush() error
	// Finish releases what is held back. It is called after the commit only.
	Finish(trailers []canon.Field) error
	// Abort ends the exchange so that the client can tell that its answer is
	// not complete: it closes the connection or resets the stream.
	Abort()
	// Tunnel switches to raw bytes both ways, after a 101.
	Tunnel() (io.ReadWriteCloser, error)
}

// Authenticator is one method of finding out who the caller is. An error that
// matches authn.ErrNoCredential means "not mine, try the next"; a *authn.Failure
// ends the search and so does any other error.
type Authenticator interface {
	Authenticate(ctx context.Context, r *canon.Request) (*authn.Principal, error)
}

// Demand is what a route asks of a principal beyond who it is: an audience, a
// proof of possession, a fresh login, a token that was not used before. It is
// asked on every exchange, after the authenticator, also when a cache answered.
// An error that is no *authn.Failure refuses all the same.
type Demand interface {
	Check(ctx context.Context, r *canon.Request, p *authn.Principal) error
}

// BindingDemand is a Demand that says whether its Check refuses every bound
// credential whose proof it has not seen (authn.Principal.Confirm). On a route
// without one that does, bound credentials are refused.
type BindingDemand interface {
	Demand
	ChecksBinding() bool
}

// Examiner is a Demand that has more to say than yes: what the answer tells the
// client and what the record notes. Examine is called in the place of Check.
type Examiner interface {
	Demand
	Examine(ctx context.Context, r *canon.Request, p *authn.Principal) (authn.Findings, error)
}

// Authorizer decides whether a request may go on; it must deny on any error.
type Authorizer interface {
	Decide(r *authz.Request) authz.Decision
}

// Upstream sends a request on.
type Upstream interface {
	RoundTrip(ctx context.Context, r *upstream.Request) (*upstream.Response, error)
}

// Config is what a gate needs. NewID and Limiter are required.
type Config struct {
	// NewID makes the id of an exchange that started at start.
	NewID func(start time.Time) record.ID
	// Limiter holds the live state of the limits.
	Limiter Limiter
	// TokenHash is the keyed hash that a record keeps of a token's issuer and
	// id. Nil: records keep nothing of it.
	TokenHash func(issuer, tokenID string) string
	// Now is the clock; nil means time.Now.
	Now func() time.Time
	// Log gets what has no place in a record, such as the stack of a panic.
	// Nil: nothing is logged.
	Log *slog.Logger
}

// Gate runs exchanges. It is safe for concurrent use.
type Gate struct {
	newID     func(time.Time) record.ID
	limiter   Limiter
	tokenHash func(issuer, tokenID string) string
	now       func() time.Time
	log       *slog.Logger

	snapshot atomic.Pointer[Snapshot]
	draining atomic.Bool
	cutting  atomic.Bool
	counts   counts
	failures failures
	alerts   alerts
	spare    sync.Pool // of *exchange
}

// New makes a gate that serves the snapshot.
func New(c Config, s *Snapshot) (*Gate, error) {
	if c.NewID == nil || c.Limiter == nil || s == nil {
		return nil, errors.New("gate: NewID, Limiter and a snapshot are required")
	}
	g := &Gate{newID: c.NewID, limiter: c.Limiter, tokenHash: c.TokenHash, now: c.Now, log: c.Log, counts: newCounts(), alerts: alerts{table: map[alertKey]*alertEvents{}}}
	if g.now == nil {
		g.now = time.Now
	}
	if g.log == nil {
		g.log = slog.New(slog.DiscardHandler)
	}
	g.spare.New = func() any { return newExchange(g) }
	g.snapshot.Store(s)
	return g, nil
}

// Snapshot returns the snapshot that new exchanges use.
func (g *Gate) Snapshot() *Snapshot { return g.snapshot.Load() }

// Swap makes new exchanges use s; those under way keep theirs to the end. It
// returns the snapshot before.
func (g *Gate) Swap(s *Snapshot) (before *Snapshot, err error) {
	if s == nil {
		return nil, errors.New("gate: no snapshot to swap in")
	}
	return g.snapshot.Swap(s), nil
}

// Drain makes the gate answer every new exchange with 503 (reason draining);
// those under way go on. It cannot be undone.
func (g *Gate) Drain() { g.draining.Store(true) }

// Cut says that the connections of exchanges still under way are about to be
// closed from our side: their records name shutting_down, not the client. It
// cannot be undone.
func (g *Gate) Cut() { g.cutting.Store(true) }
