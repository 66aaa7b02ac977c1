package ratelimit

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func addrKey(n uint64) string {
	var a [16]byte
	a[0], a[1] = 0x20, 0x01
	binary.BigEndian.PutUint64(a[2:], n)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64).Masked().String()
}

// TestManyKeys: a flood of random keys leaves memory where it was and does not
// touch a caller that keeps to the limit.
func TestManyKeys(t *testing.T) {
	keys := 1_000_000
	if os.Getenv("GATEBOOK_SOAK") == "1" {
		keys = 10_000_000
	}
	start := time.Unix(1_700_000_000, 0)
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	table := NewTable(Config{Start: start, Coarser: CoarserPrefix})
	rule := &Rule{Name: "per_prefix", Key: KeyPrefix, Rate: 100, Per: time.Second, Burst: 200}
	good := netip.MustParsePrefix("192.0.2.0/24")
	now := start
	for i := range keys {
		now = now.Add(2 * time.Microsecond) // 500,000 new keys a second
		table.Take(rule, addrKey(uint64(i)), now)
		if i%5000 == 0 { // 100 a second, as the rule allows
			if res := table.TakePrefix(rule, good, now); !res.Allowed || res.Coarse || res.Remaining != 199 {
				t.Fatalf("after %d keys the well-behaved one got %+v", i, res)
			}
		}
	}
	s := table.Stats(now)
	if s.Bytes > 22*DefaultEntries {
		t.Errorf("table takes %d bytes", s.Bytes)
	}
	if s.Coarse+s.Global > 0 {
		t.Errorf("%d coarse and %d global answers although the table never was full of live keys", s.Coarse, s.Global)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int64(after.HeapAlloc) - int64(before.HeapAlloc); grown > 32<<20 {
		t.Errorf("heap grew by %d bytes", grown)
	}
	runtime.KeepAlive(table)
}

// TestFull: when no slot can be had, keys share coarser buckets and then the
// rule's one, live keys keep their own, and other kinds of key have their room.
func TestFull(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	table := NewTable(Config{Entries: 1024, Start: start, Coarser: CoarserPrefix})
	rule := &Rule{Name: "slow", Key: KeyPrefix, Rate: 1, Per: time.Hour, Burst: 3}
	good := "192.0.2.0/24"
	if res := table.Take(rule, good, start); !res.Allowed || res.Remaining != 2 {
		t.Fatalf("first request: %+v", res)
	}
	own, coarse := 0, 0
	for i := range uint64(100_000) {
		res := table.Take(rule, addrKey(i<<32), start)
		if !res.Coarse {
			own++
		} else if res.Allowed {
			coarse++
		}
	}
	s := table.Stats(start)
	if want := 1024/2 + 1024/16; s.Live != want {
		t.Errorf("%d slots are live after the flood, want the %d for prefixes and coarser keys", s.Live, want)
	}
	if own != 1024/2-1 {
		t.Errorf("%d keys had a bucket of their own, want all but the one taken before", own)
	}
	if s.Coarse == 0 || s.Global == 0 {
		t.Errorf("stats %+v: the fallbacks were not used", s)
	}
	if most := 3 * (s.Slots + 1); coarse > most {
		t.Errorf("%d requests passed through shared buckets, at most %d are right", coarse, most)
	}
	for want := int64(1); want >= 0; want-- {
		if res := table.Take(rule, good, start); !res.Allowed || res.Coarse || res.Remaining != want {
			t.Fatalf("live key during the flood: %+v, want %d remaining", res, want)
		}
	}
	if res := table.Take(rule, good, start); res.Allowed || res.Coarse {
		t.Fatalf("live key beyond its burst: %+v", res)
	}
	subject := &Rule{Name: "per_subject", Key: KeySubject, Rate: 1, Per: time.Hour, Burst: 3}
	for i := range 100 {
		if res := table.Take(subject, strconv.Itoa(i), start); !res.Allowed || res.Coarse {
			t.Fatalf("subject key during a flood of prefixes: %+v", res)
		}
	}
	later := start.Add(4 * time.Hour)
	if res := table.Take(rule, addrKey(1<<60), later); !res.Allowed || res.Coarse || res.Remaining != 2 {
		t.Errorf("new key after the flood is past: %+v", res)
	}
	if live := table.Stats(later).Live; live > 1 {
		t.Errorf("%d live keys after all but one are past", live)
	}
}

func TestCoarserPrefix(t *testing.T) {
	for _, c := range []struct{ kind, key, want string }{
		{KeyPrefix, "203.0.113.0/24", "203.0.0.0/16"},
		{KeyPrefix, "203.0.113.9/32", "203.0.0.0/16"},
		{KeyPrefix, "203.0.0.0/16", ""},
		{KeyPrefix, "2001:db8:1:2::/64", "2001:db8:1::/48"},
		{KeyPrefix, "2001:db8:1::/48", "2001:db8::/32"},
		{KeyPrefix, "2001:db8::/32", ""},
		{KeyPrefix, "alice", ""},
		{KeySubject, "203.0.113.0/24", ""},
	} {
		got, ok := CoarserPrefix(&Rule{Key: c.kind}, c.key)
		if got != c.want || ok != (c.want != "") {
			t.Errorf("%s %s: got %q %v, want %q", c.kind, c.key, got, ok, c.want)
		}
	}
}

func TestTakePrefixIsTake(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	table := NewTable(Config{Start: start})
	rule := &Rule{Name: "p", Key: KeyPrefix, Rate: 1, Per: time.Hour, Burst: 10}
	want := int64(9)
	for _, p := range []netip.Prefix{netip.MustParsePrefix("203.0.113.0/24"), netip.MustParsePrefix("203.0.113.0/24")} {
		if res := table.TakePrefix(rule, p, start); res.Remaining != want {
			t.Fatalf("TakePrefix: %+v, want %d remaining", res, want)
		}
		want--
		if res := table.Take(rule, p.String(), start); res.Remaining != want {
			t.Fatalf("Take: %+v, want %d remaining", res, want)
		}
		want--
	}
}

// TestKeysApart: neither rule nor key can be chosen to reach another bucket.
func TestKeysApart(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	table := NewTable(Config{Start: start})
	for _, kind := range []string{KeyPrefix, KeySubject} {
		for _, p := range [][2]string{{"a", "bc"}, {"ab", "c"}, {"abc", ""}, {"", "abc"}, {"a", "b\x00c"}, {"a\x00b", "c"}, {"bc", "a"}} {
			rule := &Rule{Name: p[0], Key: kind, Rate: 1, Per: time.Hour, Burst: 2}
			if res := table.Take(rule, p[1], start); res.Remaining != 1 {
				t.Errorf("%s rule %q key %q shares a bucket: %+v", kind, p[0], p[1], res)
			}
		}
	}
}

// TestReload: a rule that becomes stricter or changes its rate keeps neither
// an old, longer wait nor an impossible remainder.
func TestReload(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	table := NewTable(Config{Start: start})
	day := &Rule{Name: "r", Key: KeyClient, Rate: 7, Per: 24 * time.Hour, Burst: 7}
	for range 7 {
		table.Take(day, "c", start)
	}
	second := &Rule{Name: "r", Key: KeyClient, Rate: 2, Per: time.Second, Burst: 2}
	res := table.Take(second, "c", start)
	if res.Allowed || res.RetryAfter != 500*time.Millisecond {
		t.Fatalf("after the change: %+v, want a full wait of the new rule", res)
	}
	if res = table.Take(second, "c", start.Add(res.RetryAfter)); !res.Allowed {
		t.Fatalf("at the announced time: %+v", res)
	}
}

func TestInvalidRuleAdmitsNothing(t *testing.T) {
	table := NewTable(Config{})
	now := time.Now()
	for _, r := range []Rule{
		{Name: "r", Key: KeyRoute},
		{Name: "r", Key: KeyRoute, Rate: -1, Per: 1, Burst: 1},
		{Name: "r", Key: KeyRoute, Rate: 1, Per: -1, Burst: 1},
		{Name: "r", Key: KeyRoute, Rate: 1, Per: 1, Burst: -5},
		{Name: "r", Key: KeyRoute, Rate: 1 << 33, Per: 1, Burst: 1},
		{Name: "r", Key: KeyRoute, Rate: 1, Per: 1 << 62, Burst: 1 << 31},
	} {
		if r.Validate() == nil {
			t.Errorf("%+v: Validate finds nothing", r)
		}
		for _, res := range []Result{table.Take(&r, "k", now), table.Peek(&r, "k", now), table.TakePrefix(&r, netip.MustParsePrefix("10.0.0.0/8"), now)} {
			if res.Allowed || res.RetryAfter <= 0 {
				t.Errorf("%+v: %+v", r, res)
			}
		}
		table.Refund(&r, "k", now)
	}
}

// TestHammer: many goroutines at one instant get exactly the burst.
func TestHammer(t *testing.T) {
	start := time.Now()
	table := NewTable(Config{Entries: 4096, Start: start, Coarser: CoarserPrefix})
	rule := &Rule{Name: "r", Key: KeySubject, Rate: 1, Per: time.Hour, Burst: 500}
	flood := &Rule{Name: "f", Key: KeyPrefix, Rate: 1, Per: time.Hour, Burst: 1}
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 500 {
				if table.Take(rule, "k", start).Allowed {
					admitted.Add(1)
				}
				table.Take(flood, addrKey(uint64(g*1000+i)<<32), start)
				table.Peek(rule, "k", start)
				table.Refund(flood, addrKey(uint64(i)), start)
			}
			table.Stats(start)
		})
	}
	wg.Wait()
	if got := admitted.Load(); got != rule.Burst {
		t.Errorf("admitted %d, want %d", got, rule.Burst)
	}
}

func TestTakeAllocates(t *testing.T) {
	table := NewTable(Config{Entries: 4096})
	rule := &Rule{Name: "r", Key: KeyPrefix, Rate: 1000, Per: time.Second, Burst: 1000}
	p := netip.MustParsePrefix("2001:db8:1:2::/64")
	now := time.Now()
	table.Take(rule, "k", now)
	table.TakePrefix(rule, p, now)
	if n := testing.AllocsPerRun(100, func() {
		table.Take(rule, "k", now)
		table.TakePrefix(rule, p, now)
		table.Peek(rule, "k", now)
		table.Refund(rule, "k", now)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestRealTime runs with the process clock: what Take announces comes true.
func TestRealTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		table := NewTable(Config{})
		rule := &Rule{Name: "r", Key: KeySubject, Rate: 10, Per: time.Second, Burst: 3}
		for range 3 {
			table.Take(rule, "k", time.Now())
		}
		for range 20 {
			res := table.Take(rule, "k", time.Now())
			if res.Allowed {
				t.Fatal("admitted without waiting")
			}
			time.Sleep(res.RetryAfter)
			if res = table.Take(rule, "k", time.Now()); !res.Allowed {
				t.Fatalf("refused after the wait: %+v", res)
			}
		}
	})
}

// TestLateCaller: with monotonic readings an old time is a caller that was
// held up, so it counts as now.
func TestLateCaller(t *testing.T) {
	start := time.Now()
	table := NewTable(Config{Start: start})
	rule := &Rule{Name: "r", Key: KeySubject, Rate: 1, Per: time.Second, Burst: 2}
	now := start.Add(time.Hour)
	table.Take(rule, "k", now)
	table.Take(rule, "k", now)
	for _, old := range []time.Time{start, start.Add(30 * time.Minute), now.Add(-2 * time.Second)} {
		if res := table.Take(rule, "k", old); res.Allowed || res.RetryAfter > time.Second {
			t.Errorf("%v behind: %+v", now.Sub(old), res)
		}
		if res := table.Take(rule, fmt.Sprint("new", old), old); !res.Allowed || res.Remaining != 1 {
			t.Errorf("new key %v behind: %+v", now.Sub(old), res)
		}
	}
	if res := table.Take(rule, "k", now.Add(time.Second)); !res.Allowed || res.Remaining != 0 {
		t.Errorf("after the old callers: %+v", res)
	}
}

// TestClockSetBack: wall time that jumps back neither opens a spent bucket nor
// keeps it shut longer than its own wait.
func TestClockSetBack(t *testing.T) {
	start := time.Unix(1_700_000_000, 0)
	for _, back := range []time.Duration{900 * time.Millisecond, 2 * time.Second, time.Hour, 24 * 365 * time.Hour} {
		t.Run(back.String(), func(t *testing.T) {
			table := NewTable(Config{Start: start})
			rule := &Rule{Name: "r", Key: KeySubject, Rate: 1, Per: 10 * time.Second, Burst: 5}
			now := start.Add(time.Minute)
			for range 5 {
				table.Take(rule, "spent", now)
			}
			table.Take(rule, "used", now)
			now = now.Add(-back)
			if res := table.Take(rule, "spent", now); res.Allowed || res.RetryAfter > 11*time.Second {
				t.Errorf("spent bucket after the step: %+v", res)
			}
			// A step within the slack shows as time standing still for it.
			least := int64(3)
			if back <= slack {
				least = 2
			}
			if res := table.Take(rule, "used", now); !res.Allowed || res.Remaining < least || res.Remaining > 3 {
				t.Errorf("used bucket after the step: %+v", res)
			}
			if res := table.Take(rule, "new", now); !res.Allowed || res.Remaining != 4 {
				t.Errorf("new bucket after the step: %+v", res)
			}
			if res := table.Take(rule, "spent", now.Add(8*time.Second)); res.Allowed {
				t.Errorf("spent bucket opened early: %+v", res)
			}
			if res := table.Take(rule, "spent", now.Add(11*time.Second)); !res.Allowed || res.Remaining != 0 {
				t.Errorf("spent bucket after its wait: %+v", res)
			}
		})
	}
}
