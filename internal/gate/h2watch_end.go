package gate

import (
	"errors"
	"net"
	"os"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// h2SettleTime is how long trailers may wait for the handler of their stream to
// start. It starts at once unless a hundred others run, most of them for streams
// that the client has reset.
const h2SettleTime = time.Second

// h2SettingsTime is how long net/http waits for the first frame.
const h2SettingsTime = 2 * time.Second

// The lingering close: a connection with unread bytes is reset by the kernel,
// and the reset overtakes our GOAWAY.
const (
	h2LingerTime  = 500 * time.Millisecond
	h2LingerBytes = 256 << 10
)

// h2Slow is the error of a client that does not complete what it began.
type h2Slow struct{}

func (h2Slow) Error() string { return "http/2: a frame or header block took too long to come" }

// h2Source is the client's side of the connection as it comes, with deadlines.
type h2Source h2Conn

// Read implements io.Reader, on the reader's goroutine.
func (s *h2Source) Read(p []byte) (int, error) {
	w := (*h2Conn)(s)
	if !w.in.Began() {
		return w.readEarly(p)
	}
	for {
		midway := w.in.Midway()
		if !midway {
			w.since = time.Time{}
		} else if !w.wait() {
			return 0, h2Slow{}
		}
		n, err := w.Conn.Read(p)
		if err == nil || n > 0 {
			return n, nil // an error that lasts comes again
		}
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			w.gone.Store(w.gone.Load() || !errors.Is(err, net.ErrClosed))
			return 0, err
		}
		if midway && time.Since(w.since) >= w.patience/2 {
			return 0, h2Slow{}
		}
		w.due = time.Time{} // it was an older frame's
		if err := w.Conn.SetReadDeadline(w.due); err != nil {
			return 0, err
		}
	}
}

// wait sees to it that a deadline is in force, and reports whether there is
// time left. Deadlines are moved once in a while and not for each frame.
func (w *h2Conn) wait() bool {
	now := time.Now()
	if w.since.IsZero() {
		w.since = now
	}
	if now.Sub(w.since) > w.patience {
		return false
	}
	if w.due.Sub(now) < w.patience/2 {
		w.due = now.Add(w.patience)
		return w.Conn.SetReadDeadline(w.due) == nil
	}
	return true
}

// readEarly reads the preface; its deadline is the http.Server's.
func (w *h2Conn) readEarly(p []byte) (int, error) {
	n, err := w.Conn.Read(p)
	switch {
	case n > 0:
		stage := uint32(h2Partial)
		if w.in.Missing() == n {
			stage = h2Opened
		}
		w.stage.Store(stage)
	case errors.Is(err, os.ErrDeadlineExceeded):
		w.stage.CompareAndSwap(h2Partial, h2Late)
	}
	return n, err
}

// cut records that the connection ends, says so to the client if it can, and
// lets nothing more through. A header block under way has no record beside it.
// It runs on the reader's goroutine.
func (w *h2Conn) cut(code canon.H2Code, r reason.Reason, phase string) {
	w.ended = true
	w.over(Refusal{Kind: record.KindMalformed, Reason: r, Phase: phase}, w.block.Load())
	if w.in.Began() {
		w.farewell.Store(uint32(code) + 1)
		w.goAway()
		w.linger()
	}
}

// goAway sends the GOAWAY that is due, if that can be done between two frames
// and if nobody is writing, perhaps to a client that does not read. Whoever is
// writing calls it afterwards.
func (w *h2Conn) goAway() {
	if !w.wmu.TryLock() {
		return
	}
	defer w.wmu.Unlock()
	if w.shut || !w.out.Between() {
		return
	}
	w.shut = true
	w.mu.Lock()
	last := w.streams.max
	w.mu.Unlock()
	if err := w.Conn.SetWriteDeadline(time.Now().Add(h2LingerTime)); err != nil {
		return
	}
	if _, err := w.Conn.Write(canon.AppendH2GoAway(nil, last, canon.H2Code(w.farewell.Load()-1))); err != nil {
		return
	}
	if c, ok := w.Conn.(interface{ CloseWrite() error }); ok {
		_ = c.CloseWrite()
	}
}

// linger throws away what the client still sends until it has read our GOAWAY
// and closes, for a while.
func (w *h2Conn) linger() {
	if err := w.Conn.SetReadDeadline(time.Now().Add(h2LingerTime)); err != nil {
		return
	}
	buf := make([]byte, 4<<10)
	for n := 0; n < h2LingerBytes; {
		m, err := w.Conn.Read(buf)
		if err != nil {
			return
		}
		n += m
	}
}

// Close implements net.Conn and accounts for what is left. When it returns, all
// records of the connection but those of its exchanges have been made.
func (w *h2Conn) Close() error {
	gone := w.gone.Load() // before the client can answer our own closing
	err := w.Conn.Close()
	w.settle(gone)
	return err
}

// settle gives every stream that still waits its record: no handler will take
// it now, or it comes too late to answer anybody.
func (w *h2Conn) settle(gone bool) {
	w.mu.Lock()
	if w.closed {
		w.mu.Unlock()
		return
	}
	w.closed = true
	left := w.streams.rest()
	why, drained := w.why, w.drained
	w.recording.Add(len(left) + 1)
	w.moved.Broadcast()
	w.mu.Unlock()

	if r := w.opening(gone); r != "" && why == "" && !drained {
		_ = w.record(Refusal{Kind: record.KindMalformed, Reason: r, Phase: phasePreface, Start: w.start})
	} else {
		w.recording.Done()
	}
	what := Refusal{Kind: record.KindRequest, Reason: why, Phase: phaseStream}
	switch {
	case why != "": // what ended the connection ended its streams
	case gone:
		what.Reason, what.Status = reason.ClientAborted, reason.StatusClientAborted
	case drained, w.gate.draining.Load():
		what.Reason = reason.ShuttingDown
	default: // net/http hung up without a word
		what.Kind, what.Reason = record.KindMalformed, reason.MalformedRequest
	}
	for range left {
		_ = w.record(what)
	}
	w.recording.Wait()
}

// opening says what was wrong with how the connection began, if anything. One
// that ends after an orderly beginning has asked for nothing, and one that ends
// before its first byte is only counted.
func (w *h2Conn) opening(gone bool) reason.Reason {
	switch w.stage.Load() {
	case h2Fresh:
		w.stats.Silent.Add(1)
	case h2Partial:
		return reason.MalformedRequest
	case h2Late:
		return reason.TimeoutReading
	case h2Opened:
		if !gone && time.Since(w.start) >= h2SettingsTime {
			return reason.TimeoutReading
		}
	}
	return ""
}
