package sinks

import (
	"bytes"
	"context"
	"errors"
	"io"
	"sync"
	"syscall"

	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// Stdout writes JSON Lines to a stream that nobody acknowledges (G0).
type Stdout struct {
	mu   sync.Mutex
	w    io.Writer // guarded by mu
	torn bool      // guarded by mu; the last line that was written has no end
}

// NewStdout writes to w, which is the process's standard output.
func NewStdout(w io.Writer) *Stdout { return &Stdout{w: w} }

// Limits implements deliver.Sink.
func (s *Stdout) Limits() deliver.Limits {
	return deliver.Limits{Items: 1000, Bytes: 1 << 20, Item: fileItem, Overhead: 1, InFlight: 1}
}

// Grade implements deliver.Sink.
func (s *Stdout) Grade() deliver.Grade { return deliver.Sent }

// Test implements deliver.Sink. A stream cannot be tried without writing to it.
func (s *Stdout) Test(context.Context) error { return nil }

// Send implements deliver.Sink. After half a line the next attempt begins a new
// one.
func (s *Stdout) Send(_ context.Context, b *deliver.Batch) deliver.Result {
	if r := checkLines(b); r != nil {
		return *r
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	var out bytes.Buffer
	if s.torn {
		out.WriteByte('\n')
	}
	for i := range b.Items {
		out.Write(b.Items[i].Body)
		out.WriteByte('\n')
	}
	n, err := s.w.Write(out.Bytes())
	if n > 0 {
		s.torn = out.Bytes()[n-1] != '\n'
	}
	if err == nil && n < out.Len() {
		err = io.ErrShortWrite
	}
	if err == nil {
		return deliver.Result{Class: deliver.Done, Grade: deliver.Sent, Cause: "written"}
	}
	r := fileFailed(err)
	r.Ambiguous = n > 0
	if errors.Is(err, syscall.EPIPE) {
		r.Cause = "closed"
	}
	return r
}
