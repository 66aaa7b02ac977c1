package upstream

import (
	"context"
	"io"
	"strings"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// Response is a final answer. Its Body must be closed.
type Response struct {
	Status int
	// Fields are the end-to-end fields in lower case and in the order of
	// arrival. Content-length is in Length, not here.
	Fields []canon.Field
	// Length is the body's, -1 if it is delimited otherwise. For an answer to
	// HEAD and for 304 it is what the upstream declared, -1 if nothing, and
	// the body is empty.
	Length int64
	// Body returns *Error if the upstream fails it, the context's error if
	// that ended it, and the error of Request.Body if that did. It is for one
	// goroutine; cancel the context to interrupt a Read. Closing it before its
	// end closes the connection. For a 101 it is an io.ReadWriteCloser that
	// outlives the context.
	Body io.ReadCloser
	// Trailers returns the trailers once Body has returned io.EOF, nil before.
	// Those that frame, route or authenticate are dropped (RFC 9110 section
	// 6.5.1). A trailer section of more than about 8 KiB is a bad response.
	Trailers func() []canon.Field
	Target   string        // as configured
	Attempts int           // at least 1
	Reused   bool          // came over a kept connection
	Breaker  string        // one of the Breaker constants
	TTFB     time.Duration // from the start of the last attempt to the final head
}

// respBody is a response's body on its way to the caller.
type respBody struct {
	ctx      context.Context
	src      io.ReadCloser
	target   *target
	attempts int
	breaker  string

	mu       sync.Mutex
	ex       *exchange // mu; nil once finished
	reading  bool      // mu
	err      error     // mu; what each further Read returns
	trailers []canon.Field
}

// Read returns body bytes. See Response.Body for its errors.
func (b *respBody) Read(p []byte) (int, error) {
	b.mu.Lock()
	ex := b.ex
	if ex == nil {
		err := b.err
		b.mu.Unlock()
		return 0, err
	}
	b.reading = true
	b.mu.Unlock()
	n, err := b.src.Read(p)
	b.mu.Lock()
	defer b.mu.Unlock()
	b.reading = false
	if err == nil {
		return n, nil
	}
	if err != io.EOF {
		err = b.failure(ex, err)
	}
	b.finish(ex, err)
	return n, b.err
}

// failure says whose fault a failed read is. The caller holds mu.
func (b *respBody) failure(ex *exchange, err error) error {
	if berr := ex.pump.failure(); berr != nil {
		return berr
	}
	if b.ctx.Err() != nil {
		return contextError(b.ctx)
	}
	ex.mu.Lock()
	why, reused := ex.why, ex.reused
	ex.mu.Unlock()
	if why == nil {
		// net/http alone found fault with the framing.
		why = &cause{reason.BadResponse, PhaseBody, err}
	}
	return &Error{Reason: why.reason, Phase: PhaseBody, Err: why.err, Target: b.target.name, Attempts: b.attempts, Reused: reused, Breaker: b.breaker}
}

// finish ends the exchange once. The caller holds mu.
func (b *respBody) finish(ex *exchange, err error) {
	if b.ex == nil {
		return
	}
	b.ex, b.err = nil, err
	b.target.inflight.Add(-1)
	ex.mu.Lock()
	c := ex.conn
	if err == io.EOF {
		b.trailers = endToEndTrailers(ex.trailers)
	}
	ex.mu.Unlock()
	if c != nil {
		c.settle(ex)
	}
	if err == io.EOF && b.attempts == 1 && !b.reading {
		ex.recycle()
	}
}

// Close ends the exchange; before the body's end it closes the connection.
func (b *respBody) Close() error {
	b.mu.Lock()
	ex := b.ex
	b.mu.Unlock()
	err := b.src.Close()
	if ex == nil {
		return err
	}
	ex.pump.stop()
	b.mu.Lock()
	defer b.mu.Unlock()
	b.finish(ex, errBodyClosed)
	return err
}

// takeTrailers is Response.Trailers for a body in chunks.
func (b *respBody) takeTrailers() []canon.Field {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.trailers
}

func noTrailers() []canon.Field { return nil }

// emptyBody is the body of a response that has none.
type emptyBody struct{}

func (emptyBody) Read([]byte) (int, error) { return 0, io.EOF }
func (emptyBody) Close() error             { return nil }

// tunnelBody is the connection after a 101.
type tunnelBody struct {
	io.ReadWriteCloser
	target *target
	once   sync.Once
}

// Close closes the connection.
func (b *tunnelBody) Close() error {
	b.once.Do(func() { b.target.inflight.Add(-1) })
	return b.ReadWriteCloser.Close()
}

// endToEnd removes, in place, the fields that belong to one connection, those
// that Connection names (RFC 9110 section 7.6.1) and content-length.
func endToEnd(fields []canon.Field) []canon.Field {
	var named string
	for _, f := range fields {
		if f.Name == "connection" {
			named += "," + f.Value
		}
	}
	kept := fields[:0]
	for _, f := range fields {
		if !hopByHop(f.Name) && !(named != "" && listed(named, f.Name)) {
			kept = append(kept, f)
		}
	}
	return kept
}

func hopByHop(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "upgrade",
		"proxy-authenticate", "proxy-authentication-info", "content-length":
		return true
	}
	return false
}

// listed reports whether name is one of the comma-separated tokens of list.
func listed(list, name string) bool {
	for token := range strings.SplitSeq(list, ",") {
		if strings.EqualFold(strings.Trim(token, " \t"), name) {
			return true
		}
	}
	return false
}

// endToEndTrailers removes, in place, what may not stand in trailers.
func endToEndTrailers(fields []canon.Field) []canon.Field {
	kept := fields[:0]
	for _, f := range fields {
		if !hopByHop(f.Name) && !headOnly(f.Name) {
			kept = append(kept, f)
		}
	}
	return kept
}

// headOnly names fields that change what has been decided by the time the
// trailers come: routing, authentication, content, control (RFC 9110 section
// 6.5.1).
func headOnly(name string) bool {
	switch name {
	case "host", "authorization", "proxy-authorization", "www-authenticate", "authentication-info",
		"cookie", "set-cookie", "cache-control", "expires", "age", "vary", "date", "location", "retry-after",
		"expect", "max-forwards", "pragma", "range", "if-match", "if-none-match", "if-modified-since",
		"if-unmodified-since", "if-range", "warning", "clear-site-data", "strict-transport-security":
		return true
	}
	return strings.HasPrefix(name, "content-") || strings.HasPrefix(name, "access-control-")
}
