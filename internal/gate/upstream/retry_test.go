package upstream

import (
	"context"
	"errors"
	"net"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/faultyup"
)

// TestKeptConnectionDies is the keep-alive race: the server closes a kept
// connection when the next request is on its way.
func TestKeptConnectionDies(t *testing.T) {
	for _, path := range []string{"/drop-reused", "/rst-reused"} {
		for _, tt := range []struct {
			name   string
			req    Request
			resent bool
		}{
			{"GET", Request{Method: "GET"}, true},
			{"HEAD", Request{Method: "HEAD"}, true},
			{"OPTIONS", Request{Method: "OPTIONS"}, true},
			{"PUT of nothing", Request{Method: "PUT"}, true},
			{"DELETE", Request{Method: "DELETE"}, true},
			{"POST of nothing", Request{Method: "POST"}, false},
			{"POST with Idempotency-Key", Request{Method: "POST", Fields: []canon.Field{{Name: "idempotency-key", Value: "1"}, {Name: "x-idempotency-key", Value: "1"}}}, false},
			{"POST", Request{Method: "POST", Length: 2}, false},
			{"POST in chunks", Request{Method: "POST", Length: -1}, false},
			{"PATCH", Request{Method: "PATCH"}, false},
			{"own method", Request{Method: "REPORT"}, false},
			{"PUT with a body", Request{Method: "PUT", Length: 2}, false},
			{"GET with a body", Request{Method: "GET", Length: 2}, false},
		} {
			t.Run(path+" "+tt.name, func(t *testing.T) {
				s, p := serverAndPool(t, Config{})
				first := get("/first")
				first.Length = tt.req.Length // on the same way
				if first.Length != 0 {
					first.Body = strings.NewReader("ab")
				}
				mustDo(t, p, first)
				r := tt.req
				r.Path = path
				r.Fields = append(r.Fields, canon.Field{Name: "x-gatebook-request-id", Value: "one"})
				if r.Length != 0 {
					r.Body = strings.NewReader("ab")
				}
				a, err := do(p, &r)
				n := s.IDs()["one"]
				if tt.resent {
					if err != nil || a.Status != 200 || a.Attempts != 2 || a.Reused || n != 2 {
						t.Errorf("answer %+v, %v, arrived %d times; want one at the second attempt", a, err, n)
					}
				} else {
					var e *Error
					if !errors.As(err, &e) || e.Reason != reason.ResetBeforeResponse || e.Attempts != 1 || !e.Reused || n != 1 {
						t.Errorf("error %v, arrived %d times; want %s after one attempt", err, n, reason.ResetBeforeResponse)
					}
				}
				if st := p.Stats()[0]; st.Failures != 0 || st.InFlight != 0 {
					t.Errorf("stats %+v: the race was laid on the target", st)
				}
			})
		}
	}
}

// TestAttemptsAreBounded has a server that closes every kept connection at its
// second request: net/http alone would try them all.
func TestAttemptsAreBounded(t *testing.T) {
	s, p := serverAndPool(t, Config{MaxAttempts: 3})
	gate := make(chan struct{})
	s.Handle("/fill", func(c *faultyup.Conn, r *faultyup.Seen) bool { <-gate; return faultyup.OK(c, r) })
	done := make(chan error, 10)
	for range 10 {
		go func() { _, err := do(p, get("/fill")); done <- err }()
	}
	s.Wait(10)
	close(gate)
	for range 10 {
		if err := <-done; err != nil {
			t.Fatal(err)
		}
	}
	r := get("/drop-reused")
	r.Fields = []canon.Field{{Name: "x-gatebook-request-id", Value: "one"}}
	_, err := do(p, r)
	var e *Error
	if !errors.As(err, &e) || e.Reason != reason.RetriesExhausted || e.Attempts != 3 {
		t.Errorf("error %v, want %s after 3", err, reason.RetriesExhausted)
	}
	if n := s.IDs()["one"]; n != 3 {
		t.Errorf("arrived %d times, want 3", n)
	}
}

// TestDeadKeptConnection fails before a byte is written, which any method and
// any body survives.
func TestDeadKeptConnection(t *testing.T) {
	for _, length := range []int64{0, 2, -1, maxBuffered + 1} {
		s := faultyup.Start(t)
		var broken atomic.Bool
		p := newPool(t, Config{Dial: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := new(net.Dialer).DialContext(ctx, network, addr)
			return &unwritable{Conn: nc, broken: &broken}, err
		}}, s.URL())
		mustDo(t, p, get("/first"))
		broken.Store(true)
		r := &Request{Method: "POST", Path: "/echo", Length: length}
		if length != 0 {
			r.Body = strings.NewReader(strings.Repeat("a", int(max(length, 2))))
		}
		a := mustDo(t, p, r)
		if a.Attempts != 2 || a.Reused || len(a.body) != int(max(length, 0)) && length != -1 {
			t.Errorf("length %d: %d attempts, %d bytes back", length, a.Attempts, len(a.body))
		}
		if n := s.Count("/echo"); n != 1 {
			t.Errorf("length %d: arrived %d times", length, n)
		}
	}
}

// unwritable fails one Write, once broken is set, without taking a byte.
type unwritable struct {
	net.Conn
	broken *atomic.Bool
}

func (u *unwritable) Write(p []byte) (int, error) {
	if u.broken.CompareAndSwap(true, false) {
		return 0, errors.New("broken pipe")
	}
	return u.Conn.Write(p)
}

// TestOtherTarget sends on to another target what the first did not take.
func TestOtherTarget(t *testing.T) {
	s := faultyup.Start(t)
	dead, dead2 := "http://"+faultyup.RefusedAddr(t), "http://"+faultyup.RefusedAddr(t)
	for _, length := range []int64{0, 2, -1} {
		p := newPool(t, Config{}, dead, s.URL())
		for i := range 4 {
			r := &Request{Method: "POST", Path: "/echo", Length: length}
			if length != 0 {
				r.Body = strings.NewReader("ab")
			}
			a := mustDo(t, p, r)
			if want := 2 - i%2; a.Attempts != want || a.Target != s.URL() || length != 0 && a.body != "ab" {
				t.Errorf("length %d: exchange %d took %d attempts at %s, body %q", length, i, a.Attempts, a.Target, a.body)
			}
		}
		st := p.Stats()
		if st[0].Failures != 2 || st[0].Total != 2 || st[1].Failures != 0 || st[1].Total != 4 {
			t.Errorf("stats %+v", st)
		}
	}
	var e *Error
	_, err := do(newPool(t, Config{}, dead, dead2), get("/"))
	if !errors.As(err, &e) || e.Reason != reason.RetriesExhausted || e.Attempts != 2 || e.Phase != PhaseConnect {
		t.Errorf("two dead targets: %v, want %s", err, reason.RetriesExhausted)
	}
	// One attempt, or one target, keeps the precise reason.
	for _, p := range []*Pool{newPool(t, Config{MaxAttempts: 1}, dead, dead2), newPool(t, Config{}, dead)} {
		if _, err := do(p, get("/")); !errors.As(err, &e) || e.Reason != reason.ConnectRefused || e.Attempts != 1 {
			t.Errorf("error %v, want %s", err, reason.ConnectRefused)
		}
	}
	// What a target took is not sent on.
	rst := faultyup.Start(t)
	p := newPool(t, Config{}, rst.URL(), s.URL())
	if _, err := do(p, get("/rst")); !errors.As(err, &e) || e.Reason != reason.ResetBeforeResponse || s.Count("/rst") != 0 {
		t.Errorf("error %v; the other target saw it %d times", err, s.Count("/rst"))
	}
}

// TestRetryElsewhere: an exchange whose kept connection died is tried at
// another target if there is one: that server may be gone as a whole. With one
// target it is tried there, see TestKeptConnectionDies.
func TestRetryElsewhere(t *testing.T) {
	dying, other := faultyup.Start(t), faultyup.Start(t)
	other.Handle("/drop-reused", faultyup.OK)
	p := newPool(t, Config{}, dying.URL(), other.URL())
	mustDo(t, p, get("/")) // leaves a kept connection to each
	mustDo(t, p, get("/"))
	a := mustDo(t, p, get("/drop-reused")) // the turn is the first one's
	if a.Attempts != 2 || a.Target != other.URL() || dying.Count("/drop-reused") != 1 {
		t.Errorf("answered by %s after %d attempts, want %s after 2", a.Target, a.Attempts, other.URL())
	}
}
