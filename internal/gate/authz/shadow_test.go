package authz

import (
	"context"
	"errors"
	"strconv"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

// shadowOf runs a Shadow of the text beside an engine that allows clerks.
func shadowOf(t *testing.T, edit func(*ShadowConfig), text ...string) (live *Engine, s *Shadow, noted func() []*Difference) {
	t.Helper()
	live = mustEngine(t, map[string]Role{"clerk": {Allow: []string{"orders.*"}}})
	var mu sync.Mutex
	var list []*Difference
	c := ShadowConfig{
		Engine: mustEngine(t, nil, text...), Sample: 100, Queue: 4, CPU: 100, Counts: &ShadowCounts{},
		Note: func(d *Difference) error {
			mu.Lock()
			defer mu.Unlock()
			list = append(list, d)
			return nil
		},
	}
	if edit != nil {
		edit(&c)
	}
	return live, NewShadow(c), func() []*Difference {
		mu.Lock()
		defer mu.Unlock()
		return list
	}
}

func start(s *Shadow) (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		_ = s.Run(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

const onlyAdmins = `@id("admins") permit(principal in Role::"admin", action, resource);`

func TestShadowInTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live, s, noted := shadowOf(t, nil, "p.cedar", onlyAdmins)
		defer start(s)()
		r := asks(nil)
		d := live.Decide(r)
		trial := s.Submit("id-1", r, d)
		*r = Request{} // its memory is used again
		synctest.Wait()
		got, differs := trial.Take()
		if !differs || got.Allow || got.Set != s.Set() {
			t.Errorf("%+v %v", got, differs)
		}
		same := asks(func(r *Request) { r.Roles = []string{"clerk", "admin"} })
		trial = s.Submit("id-2", same, live.Decide(same))
		synctest.Wait()
		if got, differs := trial.Take(); differs {
			t.Errorf("%+v differs", got)
		}
		c := s.c.Counts
		if c.Differed.Load() != 1 || c.Agreed.Load() != 1 || c.Late.Load() != 0 || len(noted()) != 0 {
			t.Errorf("differed %d, agreed %d, late %d, noted %d", c.Differed.Load(), c.Agreed.Load(), c.Late.Load(), len(noted()))
		}
	})
}

// TestShadowLate: what comes after the record gets one of its own; if that
// fails it is counted.
func TestShadowLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live, s, noted := shadowOf(t, nil, "p.cedar", onlyAdmins)
		r := asks(nil)
		trial := s.Submit("id-1", r, live.Decide(r))
		if _, differs := trial.Take(); differs { // nothing runs yet
			t.Fatal("decided by nobody")
		}
		stop := start(s)
		synctest.Wait()
		list := noted()
		if len(list) != 1 || list[0].ID != "id-1" || !list[0].Was.Allow || list[0].Shadow.Allow || s.c.Counts.Late.Load() != 1 {
			t.Errorf("%+v", list)
		}
		stop()
		live, s, _ = shadowOf(t, func(c *ShadowConfig) { c.Note = func(*Difference) error { return errors.New("full") } }, "p.cedar", onlyAdmins)
		s.Submit("id-2", r, live.Decide(r)).Take()
		stop = start(s)
		synctest.Wait()
		stop()
		if s.c.Counts.Lost.Load() != 1 {
			t.Errorf("%d lost", s.c.Counts.Lost.Load())
		}
	})
}

// TestShadowNeverWaits: with nobody at work and a full queue, Submit returns at
// once, and all are accounted for.
func TestShadowNeverWaits(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live, s, _ := shadowOf(t, nil, "p.cedar", onlyAdmins)
		r := asks(nil)
		d := live.Decide(r)
		begin := time.Now()
		for i := range 100 {
			s.Submit(strconv.Itoa(i), r, d)
		}
		if took := time.Since(begin); took != 0 {
			t.Errorf("waited %v", took)
		}
		c := s.c.Counts
		if c.Skipped.Load() != 96 {
			t.Errorf("%d skipped, want 96", c.Skipped.Load())
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel()
		_ = s.Run(ctx) // a few may be decided before the end is seen
		if sum := c.Skipped.Load() + c.Agreed.Load() + c.Differed.Load(); sum != 100 {
			t.Errorf("%d of 100 accounted for", sum)
		}
		if s.Submit("x", r, d) != nil {
			t.Error("submitted after the end")
		}
	})
}

func TestShadowSamples(t *testing.T) {
	live, s, _ := shadowOf(t, func(c *ShadowConfig) { c.Sample, c.Queue = 10, 10_000 }, "p.cedar", onlyAdmins)
	r := asks(nil)
	d := live.Decide(r)
	for range 10_000 {
		s.Submit("x", r, d)
	}
	if n := len(s.queue); n < 700 || n > 1300 || s.c.Counts.Unsampled.Load() != int64(10_000-n) {
		t.Errorf("%d of 10000 at 10 in 100, %d counted as left out", n, s.c.Counts.Unsampled.Load())
	}
}

// TestShadowRests: beyond its share of a processor it does nothing, whatever
// waits. Time stands still while it decides, so the share is what Note takes.
func TestShadowRests(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live, s, _ := shadowOf(t, func(c *ShadowConfig) {
			c.CPU, c.Queue = 10, 100
			c.Note = func(*Difference) error { time.Sleep(10 * time.Millisecond); return nil }
		}, "p.cedar", onlyAdmins)
		r := asks(nil)
		d := live.Decide(r)
		for range 100 {
			s.Submit("x", r, d).Take()
		}
		defer start(s)()
		time.Sleep(time.Second)
		if n := s.c.Counts.Late.Load(); n < 9 || n > 11 {
			t.Errorf("%d decided in a second at a tenth of it, 10 ms each", n)
		}
	})
}

// TestShadowPanics: what breaks there breaks nothing else.
func TestShadowPanics(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		live, s, _ := shadowOf(t, nil, "p.cedar", `@id("h") permit(principal, action, resource) when { context.headers["x-role"].contains("a") };`)
		s.queue <- &ShadowTrial{id: "x", asked: *asks(func(r *Request) { r.Header = func(string) []string { panic("no") } })}
		defer start(s)()
		synctest.Wait()
		r := asks(func(r *Request) { r.Header = func(string) []string { return []string{"a"} } })
		s.Submit("y", r, live.Decide(r))
		synctest.Wait()
		if c := s.c.Counts; c.Skipped.Load() != 1 || c.Agreed.Load() != 1 {
			t.Errorf("skipped %d, agreed %d", c.Skipped.Load(), c.Agreed.Load())
		}
	})
}

// BenchmarkShadowSubmit is what the request path pays for it.
func BenchmarkShadowSubmit(b *testing.B) {
	e, r := benchEngine(b, 200)
	s := NewShadow(ShadowConfig{Engine: e, Sample: 100, Queue: 1, CPU: 100, Counts: &ShadowCounts{}})
	d := e.Decide(r)
	b.ReportAllocs()
	for b.Loop() {
		s.Submit("x", r, d)
		<-s.queue
	}
}
