// Package deliver sends every record to every sink at least once, however long
// a sink was away. The book is the queue: a sink owns nothing but a durable
// cursor, so a dead sink costs disk that the book uses anyway and never slows a
// request.
//
// The engine reads forward from the cursor, cuts batches, keeps their bounds
// durable before the first of them is sent, and moves the cursor only over what
// is settled without a hole. Only records below the newest signed checkpoint
// are sent: their indexes can never be given to other records.
package deliver

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"strconv"
	"time"

	"github.com/gatebook/gatebook/internal/book"
)

// Grade says how surely a record has been delivered.
type Grade uint8

const (
	// Sent: written to a socket or a file that nobody acknowledged.
	Sent Grade = iota
	// Accepted: the sink said yes, and may still lose it (HEC 200, Datadog 202).
	Accepted
	// Durable: kept, by the sink's own protocol (bulk item 201, HEC ack true,
	// file synced).
	Durable
	// Compared: read back from the sink and compared with the book.
	Compared
)

// String is the grade as status, records and documents name it.
func (g Grade) String() string { return "G" + strconv.Itoa(int(g)) }

// Class is what an answer of a sink means for what was sent.
type Class uint8

const (
	// Done: delivered, at the grade of the result.
	Done Class = iota
	// Retry: not now; the same bytes again later.
	Retry
	// Split: too much at once; in halves.
	Split
	// Poison: the sink will never take it. A batch is bisected to the one
	// record, which is quarantined.
	Poison
	// Pause: nothing will be taken until somebody has acted (401, 403, a missing
	// index). The cursor stays.
	Pause
)

// Result is what became of a batch, or of one item of it.
type Result struct {
	Class Class
	Grade Grade // reached, if Done
	// Passed, if Done: it was not sent, because it is none of what this sink is
	// for. No receipt counts it.
	Passed bool
	// Ambiguous: it may have been taken though nobody said so. What is sent again
	// then may arrive twice, and the receipt says so.
	Ambiguous bool
	// After is how long the sink asked to be left alone, 0 if it did not.
	After time.Duration
	// Status is the HTTP status or the like, 0 if there was none.
	Status int
	// Cause is a closed word for records and metrics: "http_503", "reset",
	// "timeout", "mapping", ...
	Cause string
	// Detail is at most 512 bytes of the answer, without control characters and
	// without anything secret, for people who look at the quarantine.
	Detail string
	// Items, if not nil, has one result for each item of the batch in its order,
	// and the fields above are about none of them.
	Items []Result
}

// Item is one record on its way to a sink.
type Item struct {
	Index uint64
	ID    string    // EventID: the same at every attempt, different for every record
	Time  time.Time // start of the exchange
	Kind  string    // of the record
	Body  []byte    // one JSON object without a line break, as the projection made it
	// Late: older than the sink takes. It is sent under the time of sending, with
	// its own time beside it and a flag.
	Late bool
}

// Batch is some consecutive records, at least one. It is the engine's; a Sink
// reads it during Send and keeps nothing of it. The same batch has the same
// bytes at every attempt and after a restart.
type Batch struct {
	Items   []Item
	Planned time.Time // when its bounds were made durable
	Attempt int       // from 1
}

// Limits are what a sink takes in one batch.
type Limits struct {
	Items int // most records, at least 1
	Bytes int // most bytes of bodies together, with Overhead for each
	Item  int // most bytes of one body; a longer record is replaced by a stub
	// Overhead is how many bytes the protocol adds to each body at most.
	Overhead int
	// MaxAge is the age beyond which the sink drops, refuses or misdates a
	// record; 0: none.
	MaxAge time.Duration
	// InFlight is how many batches may be under way at once, at least 1; 1 keeps
	// order.
	InFlight int
}

// Sink speaks the protocol of one outside system. It is safe for concurrent
// use. Send waits for the best acknowledgement that the sink is able to give and
// never returns Done for less than it says. It retries nothing by itself.
type Sink interface {
	Limits() Limits
	// Grade is the best that Send can return.
	Grade() Grade
	Send(ctx context.Context, b *Batch) Result
	// Test sends nothing that would be kept and says whether records could be
	// sent, in words for an operator.
	Test(ctx context.Context) error
}

// Renewer is a Sink with a credential that can be read again from where it is
// kept. The engine calls Renew once after a Pause for 401 or 403 before it
// believes it.
type Renewer interface {
	// Renew reports whether the credential has changed.
	Renew() (changed bool, err error)
}

// Window is a part of the book to look for in a sink.
type Window struct {
	Origin       string
	From, To     uint64    // indexes, [From, To)
	Since, Until time.Time // between which all of them lie, both included
}

// Finder is a Sink that can be asked for what it holds: then delivery can be
// compared (G3).
type Finder interface {
	// Find calls fn with the event id of everything of the window that the sink
	// holds, once for every copy, in any order. Things that are not of this
	// window may be told too. An error of fn ends the search and is returned.
	Find(ctx context.Context, w Window, fn func(id string) error) error
}

// ErrNotNow is wrapped by an error of Projection.Append that is not the record's
// fault and may pass: a key that is away. The record waits, and everything behind
// it; whatever else goes wrong makes a stub.
var ErrNotNow = errors.New("what the record needs cannot be had now")

// Projection makes of a record the JSON object that a sink gets. It is
// deterministic and safe for concurrent use.
type Projection interface {
	// Name and Version say how a body was made; both are kept with the cursor.
	Name() string
	Version() int
	// Reveal reports whether personal parts are needed.
	Reveal() bool
	// Append appends the object for an entry of the book with this event id. An
	// error that wraps ErrNotNow has it called again later, with the entry read
	// anew; after any other the record is sent as a stub, for good.
	Append(dst []byte, id string, e *book.Entry) ([]byte, error)
	// Stub appends the object that stands for a record that is longer than the
	// sink takes: id, kind, time, outcome, how long it would have been, and that
	// the whole of it is in the book.
	Stub(dst []byte, id string, e *book.Entry, size int) ([]byte, error)
}

// EventID is the id of the record with this index in the log with this origin,
// in every sink and at every attempt: 16 hex digits of the origin's SHA-256 and
// the index.
func EventID(origin string, index uint64) string {
	h := sha256.Sum256([]byte(origin))
	b := make([]byte, 0, 37)
	b = hex.AppendEncode(b, h[:8])
	b = append(b, '-')
	return string(strconv.AppendUint(b, index, 10))
}
