package upstream

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/faultyup"
)

// clock is a time that the test moves.
type clock struct {
	mu sync.Mutex
	at time.Time // mu
}

func newClock() *clock { return &clock{at: time.Unix(1_800_000_000, 0)} }

func (c *clock) Now() time.Time {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.at
}

func (c *clock) add(d time.Duration) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.at = c.at.Add(d)
}

func reasonOf(err error) reason.Reason {
	var e *Error
	if errors.As(err, &e) {
		return e.Reason
	}
	return ""
}

func TestRoundRobin(t *testing.T) {
	a, b, c := faultyup.Start(t), faultyup.Start(t), faultyup.Start(t)
	p := newPool(t, Config{}, a.URL(), b.URL(), c.URL())
	for range 9 {
		mustDo(t, p, get("/"))
	}
	for _, s := range []*faultyup.Server{a, b, c} {
		if n := s.Count("/"); n != 3 {
			t.Errorf("%s got %d of 9", s.Addr(), n)
		}
	}
}

func TestLeastRequests(t *testing.T) {
	a, b, c := faultyup.Start(t), faultyup.Start(t), faultyup.Start(t)
	p := newPool(t, Config{Balance: LeastRequests}, a.URL(), b.URL(), c.URL())
	hold := make(chan struct{})
	done := make(chan error, 3)
	for _, s := range []*faultyup.Server{a, b, c} {
		s.Handle("/hold", func(c *faultyup.Conn, r *faultyup.Seen) bool { <-hold; return faultyup.OK(c, r) })
	}
	// Each held exchange occupies the target that ties give it; the order of
	// the ties is that of the targets.
	for i, s := range []*faultyup.Server{a, b} {
		go func() { _, err := do(p, get("/hold")); done <- err }()
		s.Wait(1)
		if n := p.Stats()[i].InFlight; n != 1 {
			t.Fatalf("target %d has %d in flight", i, n)
		}
	}
	for range 5 {
		mustDo(t, p, get("/"))
	}
	if n := c.Count("/"); n != 5 {
		t.Errorf("the idle target got %d of 5", n)
	}
	close(hold)
	for range 2 {
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for range 9 { // all idle: ties go round
		mustDo(t, p, get("/tie"))
	}
	for _, s := range []*faultyup.Server{a, b, c} {
		if n := s.Count("/tie"); n != 3 {
			t.Errorf("%s got %d of 9", s.Addr(), n)
		}
	}
}

// TestEjection follows one target of one through ejection, a failed probe,
// back-off and recovery.
func TestEjection(t *testing.T) {
	s := faultyup.Start(t)
	clk := newClock()
	var out bytes.Buffer
	p := newPool(t, Config{Now: clk.Now, Ejection: Ejection{Failures: 3, BaseTime: 5 * time.Second, MaxTime: 15 * time.Second}, Logger: slog.New(slog.NewTextHandler(&out, nil))}, s.URL())
	fail := func(want reason.Reason) {
		t.Helper()
		if _, err := do(p, get("/rst")); reasonOf(err) != want {
			t.Fatalf("error %v, want %s", err, want)
		}
	}
	fail(reason.ResetBeforeResponse)
	fail(reason.ResetBeforeResponse)
	mustDo(t, p, get("/")) // an answer breaks the streak
	s.CloseConns()         // so that no kept connection is taken for the race
	s.WaitOpen(0)
	for range 3 {
		fail(reason.ResetBeforeResponse)
	}
	if st := p.Stats()[0]; !st.Ejected || !st.EjectedUntil.Equal(clk.Now().Add(5*time.Second)) || st.Failures != 5 {
		t.Fatalf("stats %+v, want ejected for 5 s after 5 failures", st)
	}
	for _, wait := range []time.Duration{5, 10, 15, 15} {
		clk.add(wait*time.Second - 1)
		before := s.Count("/rst")
		fail(reason.BreakerOpen)
		if s.Count("/rst") != before {
			t.Fatal("an ejected target got a request")
		}
		clk.add(1)
		_, err := do(p, get("/rst")) // the probe
		var e *Error
		if !errors.As(err, &e) || e.Reason != reason.ResetBeforeResponse || e.Breaker != BreakerHalfOpen {
			t.Fatalf("probe: %v, breaker %s", err, e.Breaker)
		}
		fail(reason.BreakerOpen)
	}
	clk.add(15 * time.Second)
	if a := mustDo(t, p, get("/")); a.Breaker != BreakerHalfOpen {
		t.Errorf("breaker %s for the probe", a.Breaker)
	}
	if a := mustDo(t, p, get("/")); a.Breaker != BreakerClosed {
		t.Errorf("breaker %s after the probe", a.Breaker)
	}
	if st := p.Stats()[0]; st.Ejected || !st.EjectedUntil.IsZero() {
		t.Errorf("stats %+v after recovery", st)
	}
	if text := out.String(); strings.Count(text, "upstream target is ejected") != 5 || strings.Count(text, "upstream target is back") != 1 || !strings.Contains(text, "upstream=test") {
		t.Errorf("log:\n%s", text)
	}
	// After a recovery the back-off begins anew.
	s.CloseConns()
	s.WaitOpen(0)
	for range 3 {
		fail(reason.ResetBeforeResponse)
	}
	if st := p.Stats()[0]; !st.EjectedUntil.Equal(clk.Now().Add(5 * time.Second)) {
		t.Errorf("ejected for %v, want 5 s", st.EjectedUntil.Sub(clk.Now()))
	}
}

// TestOneProbe makes sure that a half-open target gets one request only until
// that is answered, and that a cancelled probe frees its place.
func TestOneProbe(t *testing.T) {
	s := faultyup.Start(t)
	clk := newClock()
	p := newPool(t, Config{Now: clk.Now, Ejection: Ejection{Failures: 1}}, s.URL())
	if _, err := do(p, get("/rst")); reasonOf(err) != reason.ResetBeforeResponse {
		t.Fatal(err)
	}
	clk.add(5 * time.Second)
	hold := make(chan struct{})
	s.Handle("/probe", func(c *faultyup.Conn, r *faultyup.Seen) bool { <-hold; return faultyup.OK(c, r) })
	done := make(chan error, 1)
	go func() { _, err := do(p, get("/probe")); done <- err }()
	s.Wait(2)
	if _, err := do(p, get("/other")); reasonOf(err) != reason.BreakerOpen || s.Count("/other") != 0 {
		t.Errorf("beside the probe: %v, want %s", err, reason.BreakerOpen)
	}
	close(hold)
	if err := <-done; err != nil {
		t.Error(err)
	}
	mustDo(t, p, get("/other"))

	s.CloseConns()
	s.WaitOpen(0)
	if _, err := do(p, get("/rst")); reasonOf(err) != reason.ResetBeforeResponse {
		t.Fatal(err)
	}
	clk.add(5 * time.Second)
	// The probe's own body fails: that says nothing about the target.
	if _, err := do(p, &Request{Method: "POST", Path: "/echo", Length: 5, Body: &scripted{err: errClientGone}}); err != errClientGone {
		t.Fatal(err)
	}
	if a := mustDo(t, p, get("/")); a.Breaker != BreakerHalfOpen {
		t.Errorf("breaker %s, want the probe's place free again", a.Breaker)
	}
}

func TestAllEjected(t *testing.T) {
	a, b := faultyup.Start(t), faultyup.Start(t)
	clk := newClock()
	p := newPool(t, Config{Now: clk.Now, Ejection: Ejection{Failures: 1}}, a.URL(), b.URL())
	if _, err := do(p, get("/rst")); reasonOf(err) != reason.ResetBeforeResponse {
		t.Fatal(err)
	}
	for range 4 { // the healthy one takes all
		if got := mustDo(t, p, get("/")); got.Target != b.URL() {
			t.Errorf("%s answered", got.Target)
		}
	}
	b.CloseConns()
	b.WaitOpen(0)
	if _, err := do(p, get("/rst")); reasonOf(err) != reason.ResetBeforeResponse {
		t.Fatal(err)
	}
	_, err := do(p, get("/"))
	var e *Error
	if !errors.As(err, &e) || e.Reason != reason.NoHealthyTarget || e.Phase != PhasePick || e.Attempts != 0 || e.Breaker != BreakerOpen {
		t.Errorf("error %v, want %s", err, reason.NoHealthyTarget)
	}
	clk.add(5 * time.Second)
	for range 4 {
		mustDo(t, p, get("/"))
	}
	for _, st := range p.Stats() {
		if st.Ejected {
			t.Errorf("%s is still ejected", st.Target)
		}
	}
}

// TestNotCounted lists failures that a client could cause at will and that
// must therefore not eject a target.
func TestNotCounted(t *testing.T) {
	s, p := serverAndPool(t, Config{Ejection: Ejection{Failures: 1}})
	for _, path := range []string{"/garbage", "/two-lengths", "/huge-head", "/short-body", "/rst-body", "/bad-chunk", "/101"} {
		if _, err := do(p, get(path)); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
	if st := p.Stats()[0]; st.Ejected {
		t.Errorf("stats %+v", st)
	}
	if s.Count("/garbage") != 1 {
		t.Error("sent again")
	}
}

func TestEjectionByConnect(t *testing.T) {
	for name, url := range map[string]string{"refused": "http://" + faultyup.RefusedAddr(t)} {
		p := newPool(t, Config{Ejection: Ejection{Failures: 2}}, url)
		for range 2 {
			if _, err := do(p, get("/")); reasonOf(err) != reason.ConnectRefused {
				t.Errorf("%s: %v", name, err)
			}
		}
		if _, err := do(p, get("/")); reasonOf(err) != reason.BreakerOpen {
			t.Errorf("%s: %v, want %s", name, err, reason.BreakerOpen)
		}
	}
	_, p := serverAndPool(t, Config{ResponseTimeout: short, Ejection: Ejection{Failures: 1}})
	if _, err := do(p, get("/stall-head")); reasonOf(err) != reason.ResponseTimeout {
		t.Error(err)
	}
	if _, err := do(p, get("/")); reasonOf(err) != reason.BreakerOpen {
		t.Errorf("after a time-out: %v, want %s", err, reason.BreakerOpen)
	}
}
