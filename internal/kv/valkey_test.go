package kv_test

import (
	"context"
	"errors"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/testenv/valkeyd"
)

func valkey(t *testing.T, c kv.ValkeyConfig) *kv.Valkey {
	t.Helper()
	if c.Timeout == 0 {
		c.Timeout = 2 * time.Second // a busy machine is no dead server
	}
	v := kv.NewValkey(c)
	t.Cleanup(func() { v.Close() })
	return v
}

// born waits for the store to begin to remember and returns a time after that.
func born(t *testing.T, v *kv.Valkey) time.Time {
	t.Helper()
	at, err := v.Ping(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	return at.Add(time.Millisecond)
}

// One name is taken once by any number of callers on any number of nodes, until
// it expires.
func TestValkeyOnce(t *testing.T) {
	s := valkeyd.Start(t, "--requirepass", "sesame")
	nodes := []*kv.Valkey{
		valkey(t, kv.ValkeyConfig{Address: s.Addr, Password: "sesame"}),
		valkey(t, kv.ValkeyConfig{Address: s.Addr, Password: "sesame"}),
	}
	at := born(t, nodes[0])
	var won atomic.Int32
	var all sync.WaitGroup
	for i := range 64 {
		all.Go(func() {
			ok, err := nodes[i%2].Once(context.Background(), "a", at, time.Now().Add(time.Minute))
			if err != nil {
				t.Error(err)
			}
			if ok {
				won.Add(1)
			}
		})
	}
	all.Wait()
	if won.Load() != 1 {
		t.Errorf("%d of 64 took the name", won.Load())
	}
	if ok, err := nodes[0].Once(t.Context(), "b", at, time.Now().Add(30*time.Millisecond)); !ok || err != nil {
		t.Errorf("%v, %v", ok, err)
	}
	until := time.Now().Add(10 * time.Second)
	for {
		ok, err := nodes[1].Once(t.Context(), "b", at, time.Now().Add(time.Minute))
		if err != nil || time.Now().After(until) {
			t.Fatalf("a name that has expired: %v, %v", ok, err)
		}
		if ok {
			break
		}
	}
	other := valkey(t, kv.ValkeyConfig{Address: s.Addr, Password: "sesame", Prefix: "other:"})
	if ok, err := other.Once(t.Context(), "a", born(t, other), time.Now().Add(time.Minute)); !ok || err != nil {
		t.Errorf("another prefix: %v, %v", ok, err)
	}
	wrong := valkey(t, kv.ValkeyConfig{Address: s.Addr, Password: "wrong"})
	if ok, err := wrong.Once(t.Context(), "z", at, time.Now().Add(time.Minute)); ok || !errors.Is(err, kv.ErrAway) {
		t.Errorf("a wrong password: %v, %v", ok, err)
	}
}

// A store that has lost what it held says so about everything older: flushed,
// restarted, replaced.
func TestValkeyForgets(t *testing.T) {
	for _, row := range []struct {
		name string
		lose func(t *testing.T, s *valkeyd.Server)
	}{
		{"flushed", func(t *testing.T, s *valkeyd.Server) {
			if got := s.Do("FLUSHALL"); got != "+OK" {
				t.Fatal(got)
			}
		}},
		{"restarted", func(t *testing.T, s *valkeyd.Server) { s.Restart() }},
		{"scripts flushed", func(t *testing.T, s *valkeyd.Server) {
			if got := s.Do("SCRIPT FLUSH"); got != "+OK" {
				t.Fatal(got)
			}
		}},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := valkeyd.Start(t)
			v := valkey(t, kv.ValkeyConfig{Address: s.Addr})
			at := born(t, v)
			later := time.Now().Add(time.Hour)
			if ok, err := v.Once(t.Context(), "a", at.Add(-time.Hour), later); ok || !errors.Is(err, kv.ErrForgot) {
				t.Errorf("older than the store: %v, %v", ok, err)
			}
			if ok, err := v.Once(t.Context(), "a", at, later); !ok || err != nil {
				t.Fatalf("%v, %v", ok, err)
			}
			for time.Since(at) < 10*time.Millisecond {
				runtime.Gosched() // memory is dated by the millisecond
			}
			row.lose(t, s)
			ok, err := v.Once(t.Context(), "a", at, later)
			for n := 0; errors.Is(err, kv.ErrAway) && n < 50; n++ { // connections of before
				ok, err = v.Once(t.Context(), "a", at, later)
			}
			if row.name == "scripts flushed" {
				if ok || err != nil {
					t.Errorf("%v, %v", ok, err)
				}
				return
			}
			if ok || !errors.Is(err, kv.ErrForgot) {
				t.Errorf("a name taken before: %v, %v", ok, err)
			}
			if ok, err := v.Once(t.Context(), "new", born(t, v), later); !ok || err != nil {
				t.Errorf("what is newer: %v, %v", ok, err)
			}
		})
	}
}

// A server that is dead, does not answer or is too slow costs no more than the
// time-out, then nothing, and is asked again when it is back.
func TestValkeyAway(t *testing.T) {
	const limit = 200 * time.Millisecond
	for _, row := range []struct {
		name        string
		break_, fix func(s *valkeyd.Server)
		slow        time.Duration
	}{
		{name: "dead", break_: (*valkeyd.Server).Kill, fix: (*valkeyd.Server).Restart},
		{name: "stopped", break_: (*valkeyd.Server).Pause, fix: (*valkeyd.Server).Resume},
		{name: "slow", slow: time.Second},
	} {
		t.Run(row.name, func(t *testing.T) {
			s := valkeyd.Start(t)
			addr := s.Addr
			if row.slow > 0 {
				addr = s.Slow(row.slow)
			}
			v := valkey(t, kv.ValkeyConfig{Address: addr, Timeout: limit})
			if row.slow == 0 {
				born(t, v)
				row.break_(s)
			}
			var longest, sum time.Duration
			for range 200 {
				begin := time.Now()
				if ok, err := v.Once(t.Context(), "a", begin, begin.Add(time.Minute)); ok || !errors.Is(err, kv.ErrAway) {
					t.Fatalf("%v, %v", ok, err)
				}
				took := time.Since(begin)
				longest, sum = max(longest, took), sum+took
			}
			if longest > 5*limit || sum > 8*limit {
				t.Errorf("200 calls took %v, the longest %v", sum, longest)
			}
			if row.fix == nil {
				return
			}
			row.fix(s)
			for until := time.Now().Add(20 * time.Second); ; {
				if _, err := v.Ping(t.Context()); err == nil {
					break
				} else if time.Now().After(until) {
					t.Fatalf("it is back and still away: %v", err)
				}
			}
		})
	}
}

// A client that hangs up says nothing of the server.
func TestValkeyCallersWhoLeave(t *testing.T) {
	s := valkeyd.Start(t)
	v := valkey(t, kv.ValkeyConfig{Address: s.Addr})
	at := born(t, v)
	gone, leave := context.WithCancel(t.Context())
	leave()
	for range 10 {
		if _, err := v.Once(gone, "a", at, time.Now().Add(time.Minute)); err == nil {
			t.Fatal("a call without a caller")
		}
	}
	if _, err := v.Once(t.Context(), "a", at, time.Now().Add(time.Minute)); err != nil {
		t.Errorf("the server counts as away: %v", err)
	}
}

// A server that may throw away what it holds is not trusted with it.
func TestValkeyThatEvicts(t *testing.T) {
	s := valkeyd.Start(t, "--maxmemory", "100mb", "--maxmemory-policy", "allkeys-lru")
	v := valkey(t, kv.ValkeyConfig{Address: s.Addr})
	ok, err := v.Once(t.Context(), "a", time.Now(), time.Now().Add(time.Minute))
	if ok || err == nil || !strings.Contains(err.Error(), "noeviction") {
		t.Errorf("%v, %v", ok, err)
	}
}
