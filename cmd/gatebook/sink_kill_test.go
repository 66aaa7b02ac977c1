package main

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"
)

// sinkKills is how often the server is killed while it delivers.
func sinkKills() int { return max(kills()/2, 10) }

// TestSinkKills is promise P5 with SIGKILL: at every moment the cursor is behind
// what the sink has, and in the end everything is there. What arrived twice is
// bounded by what was under way.
func TestSinkKills(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	r := newReceiver(t, plainly)
	rng := rand.New(rand.NewPCG(killSeed, 5))
	n := 0
	r.behave(func(*http.Request) int { // called by one request at a time
		n++
		switch {
		case n%7 == 3:
			return 0 // kept, and nobody is told
		case n%5 == 2:
			return 503
		}
		return 200
	}, false)
	s.write("hook.token", "token-token\n")
	s.withSinks(
		fmt.Sprintf("{name: hook, type: webhook, url: %q, token: {file: hook.token}, batch: {records: 50}}", r.URL+"/in"),
		"{name: disk, type: file, path: out.jsonl, batch: {records: 50}}")
	out := filepath.Join(s.dir, "out.jsonl")
	began := time.Now()
	middle := 0 // kills that met a sink between nothing and everything
	for k := range sinkKills() {
		s.start()
		// The first thing is what the kill before left: never a cursor beyond what
		// the sink has.
		loaded := func(st sinkStatus) bool { return st.State != "starting" }
		hook, disk := s.sinkUntil("hook", "cursor", loaded), s.sinkUntil("disk", "cursor", loaded)
		if hook.Cursor > 0 && disk.Cursor > 0 && hook.Lag > 0 {
			middle++
		}
		held, file := r.held(t), fileHolds(t, out)
		for i := range s.inBook() {
			if i < hook.Cursor && held[i] == 0 || i < disk.Cursor && file[i] == 0 {
				t.Fatalf("kill %d: the cursors are %d and %d, and record %d is at one sink only or at none", k, hook.Cursor, disk.Cursor, i)
			}
		}
		s.requests(100 + rng.IntN(200))
		// Any moment of the second or two in which these are signed and sent.
		pause(t.Context(), time.Duration(rng.IntN(2500))*time.Millisecond)
		s.kill()
	}
	r.behave(nil, false)
	s.start()
	hook, disk := s.caughtUp("hook"), s.caughtUp("disk")
	book := s.inBook()
	held, file := r.held(t), fileHolds(t, out)
	delivered(t, book, held, hook.Cursor)
	delivered(t, book, file, disk.Cursor)
	twice := 0
	for i, copies := range file {
		if copies != 1 {
			t.Errorf("the file has record %d %d times", i, copies)
		}
	}
	for _, copies := range held {
		twice += copies - 1
	}
	if hook.Quarantine+disk.Quarantine > 0 {
		t.Errorf("quarantine: %+v %+v", hook, disk)
	}
	if middle < sinkKills()/2 {
		t.Errorf("only %d of %d kills met a delivery under way", middle, sinkKills())
	}
	// Without any the test has not met a kill or a lost answer in the middle.
	if twice == 0 {
		t.Error("nothing arrived twice")
	}
	t.Logf("%d kills in %s: %d records, %d of them more than once at the webhook", sinkKills(), time.Since(began).Round(time.Millisecond), len(book), twice)
	s.stop()
	s.command(0, "verify")
}

// requests sends n requests over four connections.
func (s *site) requests(n int) {
	s.t.Helper()
	var wg sync.WaitGroup
	for k := range 4 {
		wg.Go(func() {
			for i := k; i < n; i += 4 {
				resp, err := s.client.Get(s.url(fmt.Sprintf("/v1/orders/%d", i)))
				if err != nil {
					s.t.Error(err)
					return
				}
				_, _ = io.Copy(io.Discard, resp.Body) // the book and the sinks are what counts
				resp.Body.Close()
			}
		})
	}
	wg.Wait()
}

// TestSinkDead: a sink that refuses, and then hangs, costs requests nothing, and
// gets everything in the end.
func TestSinkDead(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	r := newReceiver(t, plainly)
	s.start()
	rest := slowest(s, 200)
	s.write("hook.token", "token-token\n")
	gone := freeAddr(t)
	hook := "{name: hook, type: webhook, url: %q, token: {file: hook.token}, batch: {records: 20}, timeout: 1s}"
	s.withSinks(fmt.Sprintf(hook, "http://"+gone+"/in"))
	s.command(0, "reload")
	s.sinkUntil("hook", "retrying", func(st sinkStatus) bool { return st.State == "retrying" })
	refused := slowest(s, 200)
	r.behave(nil, true)
	s.withSinks(fmt.Sprintf(hook, r.URL+"/in"))
	s.command(0, "reload")
	s.sinkUntil("hook", "timing out", func(st sinkStatus) bool { return st.State == "retrying" && st.Retries["timeout"] > 0 })
	hung := slowest(s, 200)
	st := s.sink("hook")
	if st.Cursor != 0 || st.Lag == 0 {
		t.Errorf("a sink that takes nothing: %+v", st)
	}
	r.behave(nil, false)
	st = s.caughtUp("hook")
	delivered(t, s.inBook(), r.held(t), st.Cursor)
	// What is compared is the tenth slowest of 200, on a machine that does other
	// things too.
	if limit := 5*rest + 50*time.Millisecond; refused > limit || hung > limit {
		t.Errorf("requests took %v without a sink, %v with one that refused, %v with one that hung", rest, refused, hung)
	}
	t.Logf("p95 %v without a sink, %v while it refused, %v while it hung", rest, refused, hung)
	s.stop()
}

// slowest is the 95th percentile of n requests.
func slowest(s *site, n int) time.Duration {
	took := make([]time.Duration, n)
	for i := range took {
		began := time.Now()
		s.get(fmt.Sprintf("/v1/orders/%d", i))
		took[i] = time.Since(began)
	}
	slices.Sort(took)
	return took[n*95/100]
}
