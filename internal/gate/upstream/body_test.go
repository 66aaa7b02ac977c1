package upstream

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/faultyup"
)

// scripted is a request body that returns its pieces one by one, then err or
// io.EOF.
type scripted struct {
	pieces      [][]byte
	err         error
	eofWithLast bool
	block       chan struct{} // waited for after the pieces
	reads       atomic.Int64
}

func script(pieces ...[]byte) *scripted { return &scripted{pieces: pieces} }

func (s *scripted) Read(p []byte) (int, error) {
	s.reads.Add(1)
	if len(s.pieces) == 0 {
		if s.block != nil {
			<-s.block
		}
		if s.err != nil {
			return 0, s.err
		}
		return 0, io.EOF
	}
	n := copy(p, s.pieces[0])
	if s.pieces[0] = s.pieces[0][n:]; len(s.pieces[0]) == 0 {
		s.pieces = s.pieces[1:]
	}
	if len(s.pieces) == 0 && s.eofWithLast {
		return n, io.EOF
	}
	return n, nil
}

var errClientGone = errors.New("client went away")

// TestRequestBodyErrors makes sure that an error of the caller's body is
// returned as it is and laid on nobody else.
func TestRequestBodyErrors(t *testing.T) {
	big := bytes.Repeat([]byte("x"), 100<<10)
	for _, tt := range []struct {
		name   string
		body   func() *scripted
		length int64
		want   error
	}{
		{"short body fails at once", func() *scripted { return &scripted{err: errClientGone} }, 5, errClientGone},
		{"short body fails midway", func() *scripted { return &scripted{pieces: [][]byte{[]byte("ab")}, err: errClientGone} }, 5, errClientGone},
		{"long body fails midway", func() *scripted { return &scripted{pieces: [][]byte{big}, err: errClientGone} }, 200 << 10, errClientGone},
		{"chunked body fails midway", func() *scripted { return &scripted{pieces: [][]byte{big}, err: errClientGone} }, -1, errClientGone},
		{"chunked body fails at once", func() *scripted { return &scripted{err: errClientGone} }, -1, errClientGone},
		{"short body ends early", func() *scripted { return script([]byte("ab")) }, 5, ErrShortBody},
		{"long body ends early", func() *scripted { return script(big) }, 200 << 10, ErrShortBody},
		{"own unexpected EOF", func() *scripted { return &scripted{err: io.ErrUnexpectedEOF} }, -1, io.ErrUnexpectedEOF},
	} {
		t.Run(tt.name, func(t *testing.T) {
			s, p := serverAndPool(t, Config{})
			_, err := do(p, &Request{Method: "POST", Path: "/echo", Body: tt.body(), Length: tt.length})
			var e *Error
			if err != tt.want || errors.As(err, &e) {
				t.Errorf("error %v, want %v itself", err, tt.want)
			}
			if st := p.Stats()[0]; st.Failures != 0 || st.InFlight != 0 {
				t.Errorf("stats %+v, want no failure and nothing in flight", st)
			}
			for _, r := range s.Seen() {
				if len(r.Body) >= 200<<10 {
					t.Error("the upstream took the body for complete")
				}
			}
		})
	}
	if !errors.Is(ErrShortBody, io.ErrUnexpectedEOF) {
		t.Error("ErrShortBody does not match io.ErrUnexpectedEOF")
	}
}

type panicking struct{}

func (panicking) Read([]byte) (int, error) { panic("reader broke") }

type lying struct{}

func (lying) Read(p []byte) (int, error) { return len(p) + 1, nil }

func TestBrokenBodyReaders(t *testing.T) {
	_, p := serverAndPool(t, Config{})
	for name, body := range map[string]io.Reader{"panics": panicking{}, "lies": lying{}} {
		var e *Error
		if _, err := do(p, &Request{Method: "POST", Path: "/echo", Body: body, Length: -1}); err == nil || errors.As(err, &e) {
			t.Errorf("%s: error %v, want one that is not the upstream's", name, err)
		}
	}
	checkIdle(t, p)
}

// TestEarlyAnswer makes sure that an answer that comes before the request is
// complete wins, whatever becomes of the rest of the request.
func TestEarlyAnswer(t *testing.T) {
	for _, path := range []string{"/early", "/early-close", "/early-empty"} {
		t.Run(path, func(t *testing.T) {
			_, p := serverAndPool(t, Config{})
			for range 20 {
				body := script(pieces(make([]byte, 4<<20), copyBuf)...)
				a, err := do(p, &Request{Method: "POST", Path: path, Body: body, Length: 4 << 20})
				if err != nil {
					t.Fatalf("error %v, want the early answer", err)
				}
				if a.Status != 413 || path != "/early-empty" && a.body != "too large" {
					t.Fatalf("status %d, body %q", a.Status, a.body)
				}
			}
			if a := mustDo(t, p, get("/next")); a.body != "ok GET /next" {
				t.Errorf("next answer %.50q", a.body)
			}
			checkIdle(t, p)
		})
	}
}

// TestEarlyAnswerOfStalledClient is an early answer to a client that sends
// nothing more: the exchange ends although the client's Read does not, and the
// connection, on which half a request is under way, is not used again.
func TestEarlyAnswerOfStalledClient(t *testing.T) {
	for _, path := range []string{"/early", "/early-close", "/early-empty"} {
		s, p := serverAndPool(t, Config{})
		body := script(make([]byte, 100))
		body.block = make(chan struct{})
		a, err := do(p, &Request{Method: "POST", Path: path, Body: body, Length: -1})
		if err != nil || a.Status != 413 {
			t.Errorf("%s: %v, want the early answer", path, err)
		}
		checkIdle(t, p)
		s.WaitOpen(0)
		if a := mustDo(t, p, get("/next")); a.body != "ok GET /next" || a.Reused {
			t.Errorf("%s: next answer %.50q over a kept connection %t", path, a.body, a.Reused)
		}
		before := body.reads.Load()
		close(body.block)
		if after := body.reads.Load(); after > before+1 {
			t.Errorf("%s: %d reads of the body after the end", path, after-before)
		}
	}
}

// TestStalledClient makes sure that an upstream failure and a cancelled
// context end an exchange whose client sends nothing.
func TestStalledClient(t *testing.T) {
	s, p := serverAndPool(t, Config{})
	for _, length := range []int64{-1, 1 << 20} {
		body := script([]byte("first"))
		body.block = make(chan struct{})
		var e *Error
		if _, err := do(p, &Request{Method: "POST", Path: "/rst", Body: body, Length: length}); !errors.As(err, &e) || e.Reason != reason.ResetBeforeResponse {
			t.Errorf("error %v, want %s", err, reason.ResetBeforeResponse)
		}
		close(body.block)

		body = script([]byte("first"))
		body.block = make(chan struct{})
		ctx, cancel := context.WithCancelCause(context.Background())
		n := len(s.Seen())
		stop := make(chan struct{})
		go func() { // cancels when the upstream has the head
			defer close(stop)
			s.Wait(n + 1)
			cancel(errClientGone)
		}()
		_, err := doCtx(ctx, p, &Request{Method: "POST", Path: "/echo", Body: body, Length: length})
		if !errors.Is(err, context.Canceled) || !errors.Is(err, errClientGone) {
			t.Errorf("error %v, want the context's and its cause", err)
		}
		<-stop
		close(body.block)
	}
	if st := p.Stats()[0]; st.Failures != 2 || st.InFlight != 0 {
		t.Errorf("stats %+v, want two failures and nothing in flight", st)
	}
}

// TestStalledRead is an upstream that takes no request bytes.
func TestStalledRead(t *testing.T) {
	_, p := serverAndPool(t, Config{ResponseTimeout: short})
	body := script(pieces(make([]byte, 64<<20), copyBuf)...)
	var e *Error
	if _, err := do(p, &Request{Method: "POST", Path: "/stall-read", Body: body, Length: 64 << 20}); !errors.As(err, &e) ||
		e.Reason != reason.ResponseTimeout || e.Phase != PhaseRequest {
		t.Errorf("error %v, want %s in phase %s", err, reason.ResponseTimeout, PhaseRequest)
	}
	checkIdle(t, p)
}

// TestCancel cancels at each stage and expects the context's error, no blame,
// and a pool that works.
func TestCancel(t *testing.T) {
	for _, path := range []string{"/stall-head", "/stall-mid-head", "/stall-body", "/stall-chunk"} {
		t.Run(path, func(t *testing.T) {
			s, p := serverAndPool(t, Config{})
			ctx, cancel := context.WithCancel(context.Background())
			stop := make(chan struct{})
			inBody := make(chan struct{})
			go func() {
				defer close(stop)
				s.Wait(1)
				if path == "/stall-body" || path == "/stall-chunk" {
					<-inBody
				}
				cancel()
			}()
			resp, err := p.RoundTrip(ctx, get(path))
			if err == nil {
				close(inBody)
				_, err = io.ReadAll(resp.Body)
				if cerr := resp.Body.Close(); cerr != nil {
					t.Logf("close: %v", cerr)
				}
			}
			<-stop
			var e *Error
			if !errors.Is(err, context.Canceled) || errors.As(err, &e) {
				t.Errorf("error %v, want %v", err, context.Canceled)
			}
			if st := p.Stats()[0]; st.Failures != 0 || st.InFlight != 0 {
				t.Errorf("stats %+v, want no failure and nothing in flight", st)
			}
			s.WaitOpen(0)
			mustDo(t, p, get("/next"))
		})
	}
	_, p := serverAndPool(t, Config{})
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if _, err := p.RoundTrip(ctx, get("/")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v for a context that was done before", err)
	}
	dctx, dcancel := context.WithTimeout(context.Background(), short)
	defer dcancel()
	if _, err := doCtx(dctx, p, get("/stall-head")); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v for a context that ran out", err)
	}
}

// TestCancelConnect cancels while the connection is being made.
func TestCancelConnect(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	p := newPool(t, Config{ConnectTimeout: short, Dial: func(c context.Context, network, addr string) (net.Conn, error) {
		cancel()
		return dialNever(c, network, addr)
	}}, "http://upstream.example")
	if _, err := p.RoundTrip(ctx, get("/")); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v, want %v", err, context.Canceled)
	}
	if st := p.Stats()[0]; st.Failures != 0 || st.InFlight != 0 {
		t.Errorf("stats %+v, want no failure and nothing in flight", st)
	}
}

// TestCloseEarly closes a body before its end: the connection is not used again.
func TestCloseEarly(t *testing.T) {
	for _, path := range []string{"/bytes/1000000", "/chunks/1000", "/stall-body"} {
		s, p := serverAndPool(t, Config{})
		resp, err := p.RoundTrip(context.Background(), get(path))
		if err != nil {
			t.Fatal(err)
		}
		var first [1]byte
		if _, err := io.ReadFull(resp.Body, first[:]); err != nil {
			t.Fatal(err)
		}
		if err := resp.Body.Close(); err != nil {
			t.Errorf("close: %v", err)
		}
		if n, err := resp.Body.Read(first[:]); n != 0 || err == nil || err == io.EOF {
			t.Errorf("read after close: %d, %v", n, err)
		}
		if resp.Trailers() != nil {
			t.Error("trailers before the end")
		}
		s.WaitOpen(0)
		if a := mustDo(t, p, get("/next")); a.Reused || a.body != "ok GET /next" {
			t.Errorf("next answer %.50q over a kept connection %t", a.body, a.Reused)
		}
		checkIdle(t, p)
	}
}

func TestInterim(t *testing.T) {
	_, p := serverAndPool(t, Config{})
	for _, tt := range []struct{ path, want string }{
		{"/early-hints", "103 link=</style.css>; rel=preload;|"},
		{"/continue", ""},
		{"/processing", "102 |103 link=</a>;|"},
	} {
		var got strings.Builder
		r := get(tt.path)
		r.Interim = func(code int, fields []canon.Field) error {
			got.WriteString(string(rune('0'+code/100)) + string(rune('0'+code/10%10)) + string(rune('0'+code%10)) + " " + fieldText(fields) + "|")
			return nil
		}
		if a := mustDo(t, p, r); a.Status != 200 || a.body != "abc" || got.String() != tt.want {
			t.Errorf("%s: status %d, body %q, interim %q, want %q", tt.path, a.Status, a.body, got.String(), tt.want)
		}
		if a := mustDo(t, p, get(tt.path)); !a.Reused || a.Status != 200 {
			t.Errorf("%s without Interim: status %d, reused %t", tt.path, a.Status, a.Reused)
		}
	}
	// At most eight, then the upstream is at fault.
	n := 0
	r := get("/flood-1xx")
	r.Interim = func(int, []canon.Field) error { n++; return nil }
	var e *Error
	if _, err := do(p, r); !errors.As(err, &e) || e.Reason != reason.BadResponse || n > maxInterim {
		t.Errorf("flood: error %v after %d interim answers", err, n)
	}
	// The caller's error comes back as it is.
	r = get("/early-hints")
	r.Interim = func(int, []canon.Field) error { return errClientGone }
	if _, err := do(p, r); err != errClientGone {
		t.Errorf("error %v, want %v itself", err, errClientGone)
	}
	checkIdle(t, p)
}

// TestLateInterim is an interim answer that net/http reads when RoundTrip has
// returned: the caller hears nothing of it.
func TestLateInterim(t *testing.T) {
	p := newPool(t, Config{}, "http://upstream.example")
	ex := newExchange(p)
	calls := 0
	r := get("/")
	r.Interim = func(int, []canon.Field) error { calls++; return nil }
	if err := ex.prepare(r); err != nil {
		t.Fatal(err)
	}
	if err := ex.interim(head{status: 103}); err != nil || calls != 1 {
		t.Fatalf("in time: %v, %d calls", err, calls)
	}
	if err := ex.endInterims(); err != nil {
		t.Fatal(err)
	}
	if err := ex.interim(head{status: 103}); err == nil || calls != 1 {
		t.Errorf("too late: %v, %d calls", err, calls)
	}
}

// TestUpgrade switches protocols, and only to the one asked for.
func TestUpgrade(t *testing.T) {
	s, p := serverAndPool(t, Config{})
	s.Handle("/ws", func(c *faultyup.Conn, _ *faultyup.Seen) bool {
		c.Send("HTTP/1.1 101 Switching Protocols\r\nConnection: keep-alive, Upgrade\r\nUpgrade: WebSocket\r\nSec-WebSocket-Accept: x\r\n\r\nfirst ")
		line, err := c.Buffered().ReadString('\n')
		if err == nil {
			c.Send("echo " + line)
		}
		return false
	})
	s.Handle("/other", func(c *faultyup.Conn, _ *faultyup.Seen) bool {
		c.Send("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: h2c\r\n\r\n")
		return false
	})
	r := get("/ws")
	r.Upgrade = "websocket"
	resp, err := p.RoundTrip(context.Background(), r)
	if err != nil {
		t.Fatal(err)
	}
	tunnel, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || resp.Status != 101 || fieldText(resp.Fields) != "sec-websocket-accept=x;" {
		t.Fatalf("status %d, fields %q, tunnel %t", resp.Status, fieldText(resp.Fields), ok)
	}
	if _, err := io.WriteString(tunnel, "hello\n"); err != nil {
		t.Fatal(err)
	}
	got, err := io.ReadAll(tunnel)
	if err != nil || string(got) != "first echo hello\n" {
		t.Errorf("tunnel gave %q, %v", got, err)
	}
	if err := tunnel.Close(); err != nil {
		t.Errorf("close: %v", err)
	}
	checkIdle(t, p)

	var e *Error
	r = get("/other")
	r.Upgrade = "websocket"
	if _, err := do(p, r); !errors.As(err, &e) || e.Reason != reason.BadResponse {
		t.Errorf("another protocol: error %v, want %s", err, reason.BadResponse)
	}
	r = get("/a")
	r.Upgrade = "websocket"
	if a := mustDo(t, p, r); a.Status != 200 || a.body != "ok GET /a" {
		t.Errorf("declined upgrade: status %d, body %q", a.Status, a.body)
	}
}
