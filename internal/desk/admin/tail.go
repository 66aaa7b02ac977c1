package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/query"
)

// Limits of tails.
const (
	maxTails   = 16
	tailPoll   = 200 * time.Millisecond // between two looks at the book
	tailAlive  = 15 * time.Second       // between signs of life
	tailBatch  = 256                    // records taken from the book at a time
	tailBehind = 100_000                // records; a reader that is farther behind is cut
	tailWait   = 10 * time.Second       // for a reader to take something
)

// Why a tail ended, as its last record says.
const (
	tailByClient = "client"
	tailSlow     = "slow"
	tailStop     = "stopping"
	tailFailed   = "failed"
)

// tail sends records as they are made, as server-sent events: the id is the
// record's index, the data a match. What a slow reader does not take is not
// kept anywhere; it is read from the book or the reader is cut.
func (a *API) tail(w http.ResponseWriter, r *http.Request) error {
	q, err := parseQuery(r)
	if err != nil {
		return err
	}
	f, err := query.NewFollower(q)
	if err != nil {
		return err
	}
	select {
	case a.tails <- struct{}{}:
		defer func() { <-a.tails }()
	default:
		return &Problem{Title: fmt.Sprintf("there are %d tails already; end one first", maxTails), Status: http.StatusServiceUnavailable, Code: exitFailure}
	}
	from := a.book.Status().Leaves
	if err := a.access(r, "tail", "", q.Reveal); err != nil {
		return err
	}
	w.Header().Set("Content-Type", "text/event-stream")
	w.Header().Set("Cache-Control", "no-store")
	t := &tailing{api: a, f: f, next: from, out: w, rc: http.NewResponseController(w)}
	t.enc = json.NewEncoder(a.plain(&t.line))
	err = t.run(r.Context())
	cause := tailCause(r.Context(), err)
	if cause == tailFailed {
		a.log.Error("a tail failed", "err", err)
	}
	end := &record.Record{Kind: record.KindAccess, Outcome: record.Success, Event: record.Event{Name: "tail_end", Cause: cause, Count: t.sent}}
	if noted := Note(r.Context(), a.book, callerOf(r), end); noted != nil {
		a.log.Error("the end of a tail could not be recorded", "err", noted)
	}
	if cause == tailStop || cause == tailFailed {
		t.say("event: end\ndata: {\"cause\":\"" + cause + "\"}\n\n")
		return nil
	}
	panic(http.ErrAbortHandler) // nobody is there to hear an end
}

var errSlow = errors.New("the reader is too slow")

func tailCause(ctx context.Context, err error) string {
	var lost *lostError
	switch {
	case errors.Is(err, errSlow):
		return tailSlow
	case stopping(ctx):
		return tailStop
	case ctx.Err() != nil || errors.As(err, &lost):
		return tailByClient
	}
	return tailFailed
}

// stopKey is the context key of the server's own context, whose end is a stop.
type stopKey struct{}

func stopping(ctx context.Context) bool {
	base, _ := ctx.Value(stopKey{}).(context.Context)
	return base != nil && base.Err() != nil
}

// lostError means that the client does not take anything any more.
type lostError struct{ err error }

func (e *lostError) Error() string { return "the client is gone: " + e.err.Error() }

// tailing is one tail under way.
type tailing struct {
	api  *API
	f    *query.Follower
	next uint64 // index to read from
	sent int64
	out  io.Writer
	rc   *http.ResponseController
	line lineBuffer
	enc  *json.Encoder
}

// lineBuffer collects one event.
type lineBuffer struct{ b []byte }

func (l *lineBuffer) Write(p []byte) (int, error) {
	l.b = append(l.b, p...)
	return len(p), nil
}

// run sends until ctx ends or the reader does not take more.
func (t *tailing) run(ctx context.Context) error {
	if err := t.say(": from now on\n\n"); err != nil {
		return err
	}
	look, alive := time.NewTicker(tailPoll), time.NewTicker(tailAlive)
	defer look.Stop()
	defer alive.Stop()
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-alive.C:
			if err := t.say(": still here\n\n"); err != nil {
				return err
			}
		case <-look.C:
			if err := t.catchUp(ctx); err != nil {
				return err
			}
		}
	}
}

// catchUp sends what has come since.
func (t *tailing) catchUp(ctx context.Context) error {
	for size := t.api.book.Status().Leaves; t.next < size && ctx.Err() == nil; {
		if size-t.next > tailBehind {
			return errSlow
		}
		batch, err := t.read()
		if err != nil {
			return err
		}
		for i := range batch {
			if err := t.send(&batch[i]); err != nil {
				return err
			}
		}
	}
	return nil
}

// read takes records from the book and lets go of it.
func (t *tailing) read() ([]query.Match, error) {
	rd, err := t.api.book.Reader()
	if err != nil {
		return nil, err
	}
	defer rd.Close()
	var batch []query.Match
	batch, t.next, err = t.f.Read(rd, t.next, tailBatch)
	return batch, err
}

func (t *tailing) send(m *query.Match) error {
	t.line.b = fmt.Appendf(t.line.b[:0], "id: %d\ndata: ", m.Index)
	if err := t.enc.Encode(m); err != nil { // one line and its end
		return err
	}
	t.line.b = append(t.line.b, '\n')
	if err := t.write(t.line.b); err != nil {
		return err
	}
	t.sent++
	return nil
}

func (t *tailing) say(text string) error { return t.write([]byte(text)) }

// write gives the reader its time to take b.
func (t *tailing) write(b []byte) error {
	begun := time.Now()
	err := t.rc.SetWriteDeadline(begun.Add(t.api.wait))
	if err == nil {
		_, err = t.out.Write(b)
	}
	if err == nil {
		err = t.rc.Flush()
	}
	switch {
	case err == nil:
		return nil
	case time.Since(begun) >= t.api.wait:
		return errSlow
	}
	return &lostError{err}
}
