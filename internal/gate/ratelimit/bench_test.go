package ratelimit

import (
	"net/netip"
	"strconv"
	"testing"
	"time"
)

func BenchmarkTake(b *testing.B) {
	rule := &Rule{Name: "per_subject", Key: KeySubject, Rate: 100, Per: time.Second, Burst: 200}
	for _, n := range []int{1, 1000, 100_000} {
		b.Run(strconv.Itoa(n)+"keys", func(b *testing.B) {
			t := NewTable(Config{})
			keys := make([]string, n)
			for i := range keys {
				keys[i] = "corp|subject-" + strconv.Itoa(i)
			}
			now := time.Now()
			b.ReportAllocs()
			i := 0
			for b.Loop() {
				t.Take(rule, keys[i], now.Add(time.Duration(i)))
				if i++; i == n {
					i = 0
				}
			}
		})
	}
}

func BenchmarkTakePrefix(b *testing.B) {
	rule := &Rule{Name: "per_prefix", Key: KeyPrefix, Rate: 100, Per: time.Second, Burst: 200}
	t := NewTable(Config{})
	now := time.Now()
	p := netip.MustParsePrefix("2001:db8:1:2::/64")
	b.ReportAllocs()
	for b.Loop() {
		t.TakePrefix(rule, p, now)
	}
}

func BenchmarkTakeParallel(b *testing.B) {
	rule := &Rule{Name: "per_subject", Key: KeySubject, Rate: 100, Per: time.Second, Burst: 200}
	t := NewTable(Config{})
	b.ReportAllocs()
	b.RunParallel(func(pb *testing.PB) {
		now, i := time.Now(), 0
		keys := [4]string{"a", "b", "c", "d"}
		for pb.Next() {
			t.Take(rule, keys[i&3], now)
			i++
		}
	})
}

func BenchmarkHeader(b *testing.B) {
	rule := &Rule{Name: "per_subject", Key: KeySubject, Rate: 100, Per: time.Second, Burst: 200}
	res := Result{Allowed: true, Remaining: 50, Reset: 30 * time.Second}
	b.ReportAllocs()
	for b.Loop() {
		rule.Header(res)
	}
}
