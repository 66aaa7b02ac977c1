package ratelimit

import (
	"encoding/binary"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"testing"
	"time"
)

// TestKeysFlood: so many keys that stay live that most of them find no room.
// The table stays as large as it is, nobody gets more than a rule gives, and
// every request that did not count under its own key is in Stats. Ten million
// keys with GATEBOOK_SOAK=1, one million otherwise, in a table of a tenth.
func TestKeysFlood(t *testing.T) {
	keys := 1_000_000
	if os.Getenv("GATEBOOK_SOAK") != "" {
		keys = 10_000_000
	}
	for _, kind := range []string{KeyPrefix, KeySubject} {
		t.Run(kind, func(t *testing.T) { keysFlood(t, kind, keys) })
	}
}

func keysFlood(t *testing.T, kind string, keys int) {
	entries := keys / 10
	start := time.Unix(1_700_000_000, 0)
	// Nothing is given back during the flood, so that sums are exact.
	rule := &Rule{Name: "slow", Key: kind, Rate: 1, Per: 24 * time.Hour, Burst: 3}
	table := NewTable(Config{Entries: entries, Start: start, Coarser: CoarserPrefix})
	good := "192.0.2.0/24"
	if res := table.Take(rule, good, start); !res.Allowed || res.Coarse {
		t.Fatalf("the first request: %+v", res)
	}
	before := heap()
	own, shared, refused := 0, 0, 0
	for i := range keys {
		var res Result
		if kind == KeyPrefix {
			res = table.TakePrefix(rule, floodPrefix(uint64(i)), start)
		} else {
			res = table.Take(rule, "corp|"+strconv.Itoa(i), start)
		}
		switch {
		case !res.Coarse:
			own++
			if !res.Allowed || res.Remaining != rule.Burst-1 {
				t.Fatalf("key %d, new, got %+v", i, res)
			}
		case res.Allowed:
			shared++
		default:
			refused++
			if res.RetryAfter <= 0 {
				t.Fatalf("key %d is refused without a time: %+v", i, res)
			}
		}
	}
	grown := heap() - before
	s := table.Stats(start)
	t.Logf("%d keys: %d of their own, %d let through together, %d refused; %+v; heap %+d bytes", keys, own, shared, refused, s, grown)
	if s.Bytes > 22*int64(entries) || grown > 22*int64(entries)+1<<20 {
		t.Errorf("%d bytes of slots, the heap grew by %d, for %d entries", s.Bytes, grown, entries)
	}
	if got := uint64(shared + refused); s.Coarse+s.Global != got || got != uint64(keys-own) {
		t.Errorf("%d requests had no room of their own, Stats says %d coarse and %d global", got, s.Coarse, s.Global)
	}
	if coarse, global := table.Overflows(); coarse != s.Coarse || global != s.Global {
		t.Errorf("Overflows says %d and %d, Stats %d and %d", coarse, global, s.Coarse, s.Global)
	}
	if half := entries / 2; own > half || own < half*9/10 {
		t.Errorf("%d keys had a bucket of their own, there is room for %d", own, half)
	}
	// What shares a bucket shares its burst: those of coarser keys and the rule's.
	if most := int(rule.Burst) * (entries/16 + 1); shared > most {
		t.Errorf("%d requests passed through shared buckets, at most %d are right", shared, most)
	}
	if kind == KeyPrefix == (s.Coarse == 0) {
		t.Errorf("%d answers from coarser keys, which only prefixes have", s.Coarse)
	}
	// Who was there before keeps what they had, and no more.
	for want := rule.Burst - 2; want >= 0; want-- {
		if res := table.Take(rule, good, start); !res.Allowed || res.Coarse || res.Remaining != want {
			t.Fatalf("the one who was there before got %+v, want %d remaining", res, want)
		}
	}
	if res := table.Take(rule, good, start); res.Allowed || res.Coarse {
		t.Errorf("beyond their burst they got %+v", res)
	}
	// When the flood is past, there is room again.
	later := start.Add(4 * 24 * time.Hour)
	if live := table.Stats(later).Live; live != 0 {
		t.Errorf("%d keys are live when all are past", live)
	}
	if res := table.Take(rule, "198.51.100.0/24", later); !res.Allowed || res.Coarse {
		t.Errorf("a new key after the flood got %+v", res)
	}
	runtime.KeepAlive(table)
}

// floodPrefix spreads prefixes over 256 networks of /32.
func floodPrefix(n uint64) netip.Prefix {
	var a [16]byte
	binary.BigEndian.PutUint64(a[:], 0x2001_0000<<32|n%256<<32|n)
	return netip.PrefixFrom(netip.AddrFrom16(a), 64)
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
