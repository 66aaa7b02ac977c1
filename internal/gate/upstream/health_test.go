package upstream

import (
	"context"
	"errors"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/faultyup"
)

// quick is a health check that a test need not wait for.
func quick(path string) Health {
	return Health{Path: path, Interval: 10 * time.Millisecond, Timeout: 5 * time.Second, Healthy: 2, Unhealthy: 3}
}

// runChecks runs the pool's checks until the test ends.
func runChecks(t *testing.T, p *Pool) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	wg.Go(func() {
		if err := p.Run(ctx); err != nil {
			t.Error(err)
		}
	})
	t.Cleanup(func() { cancel(); wg.Wait() })
}

// until waits for a condition that something else brings about.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	late := time.After(time.Minute)
	for !ok() {
		select {
		case <-late:
			t.Fatalf("not within a minute: %s", what)
		case <-time.After(time.Millisecond):
		}
	}
}

func waitHealth(t *testing.T, p *Pool, i int, want string) {
	t.Helper()
	until(t, want, func() bool { return p.Stats()[i].Health == want })
}

// TestChecks names for each way to answer a check whether it passes.
func TestChecks(t *testing.T) {
	for _, c := range []struct {
		path, want string // want is in LastCheck; "" if it passes
		status     []int
		timeout    time.Duration
	}{
		{path: "/ok"},
		{path: "/bytes/70000"}, // more than is read
		{path: "/chunked"},
		{path: "/close-delimited"},
		{path: "/http10"},
		{path: "/early-hints"},
		{path: "/status/204"},
		{path: "/status/299"},
		{path: "/status/300", want: "status 300"},
		{path: "/status/500", want: "status 500"},
		{path: "/status/503", status: []int{200, 503}},
		{path: "/status/204", status: []int{200}, want: "status 204"},
		{path: "/rst", want: "reset"},
		{path: "/close", want: "EOF"},
		{path: "/rst-mid-head", want: "connection"},
		{path: "/stall-head", timeout: 50 * time.Millisecond, want: errCheckTimeout.Error()},
		{path: "/stall-mid-head", timeout: 50 * time.Millisecond, want: errCheckTimeout.Error()},
		{path: "/stall-body", timeout: 50 * time.Millisecond, want: errCheckTimeout.Error()},
		{path: "/short-body", want: "EOF"}, // a lie about the length
		{path: "/short-chunk", want: "EOF"},
		{path: "/rst-body", want: "reset"},
		{path: "/garbage", want: "malformed"},
		{path: "/two-lengths", want: "Content-Length"},
		{path: "/bad-chunk", want: "chunk"},
		{path: "/huge-head", want: "exceed"},
	} {
		t.Run(strings.Trim(c.path, "/"), func(t *testing.T) {
			h := quick(c.path)
			h.Status = c.status
			if c.timeout != 0 {
				h.Timeout = c.timeout
			}
			s, p := serverAndPool(t, Config{Health: h})
			runChecks(t, p)
			if c.want == "" {
				until(t, "five checks", func() bool { return p.Stats()[0].Checks >= 5 })
				if st := p.Stats()[0]; st.Health != HealthHealthy || st.FailedChecks != 0 || st.LastCheck != "" || !st.HealthSince.IsZero() {
					t.Errorf("stats %+v, want healthy", st)
				}
			} else {
				waitHealth(t, p, 0, HealthUnhealthy)
				st := p.Stats()[0]
				if st.FailedChecks < 3 || !strings.Contains(st.LastCheck, c.want) || st.HealthSince.IsZero() {
					t.Errorf("stats %+v, want a failure with %q", st, c.want)
				}
			}
			r := s.Seen()[0]
			if host, n := r.Get("Host"); r.Method != "GET" || r.Target != c.path || n != 1 || host != s.Addr() || r.Nth != 1 {
				t.Errorf("the check was %q", r.Raw)
			}
			if st := p.Stats()[0]; st.Total != 0 || st.Failures != 0 || st.InFlight != 0 || st.Ejected {
				t.Errorf("checks were counted as exchanges: %+v", st)
			}
		})
	}
}

// TestChecksTLS: a check verifies as an exchange does.
func TestChecksTLS(t *testing.T) {
	authority := faultyup.NewAuthority(t)
	s := faultyup.Start(t, faultyup.WithTLS(authority.Server(t, "api.example", time.Now().Add(time.Hour))))
	p := newPool(t, Config{CAFile: authority.File(t), ServerName: "api.example", Health: quick("/")}, s.URL())
	runChecks(t, p)
	waitHealth(t, p, 0, HealthHealthy)
	stranger := newPool(t, Config{CAFile: faultyup.NewAuthority(t).File(t), ServerName: "api.example", Health: quick("/")}, s.URL())
	runChecks(t, stranger)
	waitHealth(t, stranger, 0, HealthUnhealthy)
	if st := stranger.Stats()[0]; !strings.Contains(st.LastCheck, "unknown authority") {
		t.Errorf("stats %+v", st)
	}
}

// TestChecksNone: a pool without checks runs nothing and uses its targets.
func TestChecksNone(t *testing.T) {
	_, p := serverAndPool(t, Config{})
	if err := p.Run(t.Context()); err != nil {
		t.Fatal(err)
	}
	mustDo(t, p, get("/"))
	if st := p.Stats()[0]; st.Health != HealthUnchecked {
		t.Errorf("health %s", st.Health)
	}
}

// TestCheckCounts: it takes as many outcomes in a row as configured to turn,
// and one of the other kind begins the count again.
func TestCheckCounts(t *testing.T) {
	_, p := serverAndPool(t, Config{Health: Health{Path: "/", Healthy: 2, Unhealthy: 3}})
	for i, c := range strings.Fields("F:h F:h P:h F:h F:h F:u F:u P:u F:u P:u P:h P:h F:h F:h F:u") {
		var err error
		if c[0] == 'F' {
			err = errCheckTimeout
		}
		p.checked(p.targets[0], err)
		want := HealthHealthy
		if c[2] == 'u' {
			want = HealthUnhealthy
		}
		if got := p.Stats()[0].Health; got != want {
			t.Fatalf("after outcome %d: %s, want %s", i+1, got, want)
		}
	}
}

// TestAllUnhealthy: no target left is a refusal with its reason, for one target
// as for many, and ends when one is back.
func TestAllUnhealthy(t *testing.T) {
	for _, n := range []int{1, 3} {
		var down atomic.Bool
		down.Store(true)
		var urls []string
		for range n {
			s := faultyup.Start(t)
			s.Handle("/check", func(c *faultyup.Conn, r *faultyup.Seen) bool {
				if down.Load() {
					return c.Send("HTTP/1.1 503 Down\r\nContent-Length: 0\r\n\r\n")
				}
				return faultyup.OK(c, r)
			})
			urls = append(urls, s.URL())
		}
		p := newPool(t, Config{Health: quick("/check")}, urls...)
		runChecks(t, p)
		for i := range n {
			waitHealth(t, p, i, HealthUnhealthy)
		}
		_, err := do(p, get("/"))
		var e *Error
		if !errors.As(err, &e) || e.Reason != reason.NoHealthyTarget || e.Phase != PhasePick || e.Attempts != 0 || e.Target != "" {
			t.Errorf("%d targets: %v, want %s", n, err, reason.NoHealthyTarget)
		}
		down.Store(false)
		waitHealth(t, p, 0, HealthHealthy)
		mustDo(t, p, get("/"))
	}
}

// TestHangingTarget: a target that takes connections and never answers is left
// out by its checks while the other one is used, and does not delay those of
// the other.
func TestHangingTarget(t *testing.T) {
	hanging := faultyup.Start(t, faultyup.OnAccept(func(c *faultyup.Conn) bool { c.HoldUnread(); return false }))
	good := faultyup.Start(t)
	h := quick("/check")
	h.Timeout = 50 * time.Millisecond
	p := newPool(t, Config{Health: h}, hanging.URL(), good.URL())
	runChecks(t, p)
	waitHealth(t, p, 0, HealthUnhealthy)
	for range 20 {
		if a := mustDo(t, p, get("/")); a.Target != good.URL() {
			t.Fatalf("answered by %s", a.Target)
		}
	}
	until(t, "checks of the good target", func() bool { return good.Count("/check") > 5 })
}

// TestHalfDead: a target that passes its checks and resets every exchange is
// ejected all the same, and passing checks do not end that.
func TestHalfDead(t *testing.T) {
	half, good := faultyup.Start(t), faultyup.Start(t)
	half.Handle("/work", func(c *faultyup.Conn, _ *faultyup.Seen) bool { c.Reset(); return false })
	clk := newClock()
	p := newPool(t, Config{Now: clk.Now, Ejection: Ejection{Failures: 3, BaseTime: time.Minute}, Health: quick("/check")}, half.URL(), good.URL())
	runChecks(t, p)
	waitHealth(t, p, 0, HealthHealthy)
	until(t, "ejection", func() bool {
		_, _ = do(p, get("/work")) // every other one fails
		return p.Stats()[0].Ejected
	})
	checks := p.Stats()[0].Checks
	until(t, "more checks passed", func() bool { return p.Stats()[0].Checks > checks+5 })
	for range 10 {
		if a := mustDo(t, p, get("/work")); a.Target != good.URL() {
			t.Fatalf("answered by %s", a.Target)
		}
	}
	if st := p.Stats()[0]; !st.Ejected || st.Health != HealthHealthy {
		t.Errorf("stats %+v, want healthy by checks and ejected", st)
	}
}

// TestDeathAndReturn: a target that dies under load is left out by failures and
// checks; when it is back on its address, its checks let the next exchange
// probe it although the ejection would last for minutes.
func TestDeathAndReturn(t *testing.T) {
	dying, good := faultyup.Start(t), faultyup.Start(t)
	addr := dying.Addr()
	p := newPool(t, Config{Ejection: Ejection{Failures: 3, BaseTime: time.Hour, MaxTime: time.Hour}, Health: quick("/check")}, dying.URL(), good.URL())
	runChecks(t, p)
	waitHealth(t, p, 0, HealthHealthy)
	dying.Close()
	for p.Stats()[0].Health != HealthUnhealthy {
		mustDo(t, p, get("/")) // refused connections and kept ones that died are tried elsewhere
	}
	// Whether the exchanges or the checks were first to find out, it is as if
	// the former had been, too.
	dead := choice{p.targets[0], false}
	for range 3 {
		dead.failed(p.cfg.Ejection, time.Now(), p.log)
	}
	for range 10 {
		if a := mustDo(t, p, get("/")); a.Target != good.URL() || a.Attempts != 1 {
			t.Fatalf("answered by %s after %d attempts", a.Target, a.Attempts)
		}
	}
	back := faultyup.StartAt(t, addr)
	waitHealth(t, p, 0, HealthHealthy)
	until(t, "an exchange at the target that is back", func() bool {
		mustDo(t, p, get("/work"))
		return back.Count("/work") > 0
	})
	if st := p.Stats()[0]; st.Ejected {
		t.Errorf("stats %+v, want no ejection", st)
	}
}

// TestFlapping: whatever a flapping target does to its checks, exchanges go on.
func TestFlapping(t *testing.T) {
	flapping, good := faultyup.Start(t), faultyup.Start(t)
	var n atomic.Int64
	flapping.Handle("/check", func(c *faultyup.Conn, r *faultyup.Seen) bool {
		if n.Add(1)%8 < 4 {
			c.Reset()
			return false
		}
		return faultyup.OK(c, r)
	})
	p := newPool(t, Config{Health: quick("/check")}, flapping.URL(), good.URL())
	runChecks(t, p)
	turns, was := 0, HealthUnchecked
	until(t, "six turns", func() bool {
		mustDo(t, p, get("/"))
		if is := p.Stats()[0].Health; is != was {
			turns, was = turns+1, is
		}
		return turns >= 6
	})
}

// TestChecksEnd: the end of ctx ends a check that hangs.
func TestChecksEnd(t *testing.T) {
	s := faultyup.Start(t)
	h := quick("/stall-head")
	h.Timeout = time.Hour
	p := newPool(t, Config{Health: h}, s.URL())
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- p.Run(ctx) }()
	s.Wait(1)
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	s.WaitOpen(0)
	if st := p.Stats()[0]; st.Checks != 0 || st.Health != HealthUnchecked {
		t.Errorf("stats %+v: a check that was given up says nothing", st)
	}
}

// TestNoEjection: a negative number of failures means never.
func TestNoEjection(t *testing.T) {
	_, p := serverAndPool(t, Config{Ejection: Ejection{Failures: -1}})
	for range 20 {
		if _, err := do(p, get("/rst")); reasonOf(err) != reason.ResetBeforeResponse {
			t.Fatal(err)
		}
	}
	if st := p.Stats()[0]; st.Ejected || st.Failures != 20 {
		t.Errorf("stats %+v", st)
	}
}
