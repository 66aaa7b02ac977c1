package authn

import (
	"context"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

func TestAPIKeyUses(t *testing.T) {
	h := newKeyHouse(t)
	k, first := h.create(KeySpec{})
	_, second, err := h.keys.Rotate(t.Context(), k.ID, time.Hour, h.note)
	if err != nil {
		t.Fatal(err)
	}
	a := h.auth(t)
	used := func(secret string) {
		t.Helper()
		if got := verdict(a, "x-api-key: "+secret); got != "ok" {
			t.Fatal(got)
		}
	}
	start := h.now()
	used(first)
	h.pass(30 * time.Second)
	used(first) // within the same minute: nothing moves
	h.pass(5 * time.Minute)
	used(second)
	look := func(what string) {
		t.Helper()
		i, err := h.keys.Find(k.ID)
		if err != nil || !i.LastUsed.Equal(start.Add(5*time.Minute+30*time.Second)) || len(i.Replaced) != 1 || !i.Replaced[0].LastUsed.Equal(start) {
			t.Errorf("%s: %+v, %v", what, i, err)
		}
	}
	look("in memory")
	if err := h.keys.WriteUses(t.Context()); err != nil {
		t.Fatal(err)
	}
	h.reopen()
	look("on the disk")
	if _, err := h.keys.Revoke(t.Context(), k.ID, h.note); err != nil {
		t.Fatal(err)
	}
	look("after a change of the key")

	// The number of writes at a time is bounded, and all are written in the end.
	for range useMost + 10 {
		_, s := h.create(KeySpec{})
		a = h.auth(t)
		used(s)
	}
	pending := func() (n int) {
		h.keys.mu.Lock()
		defer h.keys.mu.Unlock()
		for _, key := range h.keys.table.Load().byID {
			if s := &key.Secrets[0]; h.keys.table.Load().bySecret[s.Hash].used.Load() > h.keys.seen[key.secretID(s)] {
				n++
			}
		}
		return n
	}
	for _, want := range []int{10, 0} {
		if err := h.keys.WriteUses(t.Context()); err != nil {
			t.Fatal(err)
		}
		if n := pending(); n != want {
			t.Errorf("%d uses are not written, want %d", n, want)
		}
	}
}

// Requests go on while keys are made, replaced and revoked, and a revoked key is
// never taken after Revoke has returned.
func TestAPIKeysInParallel(t *testing.T) {
	h := newKeyHouse(t)
	_, steady := h.create(KeySpec{})
	a := h.auth(t)
	stop := make(chan struct{})
	var wg sync.WaitGroup
	for range 3 {
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if got := verdict(a, "x-api-key: "+steady); got != "ok" {
					t.Errorf("a key that nobody touched: %s", got)
					return
				}
			}
		})
	}
	for range 20 {
		k, s := h.create(KeySpec{})
		if got := verdict(a, "x-api-key: "+s); got != "ok" {
			t.Errorf("new: %s", got)
		}
		if _, err := h.keys.Revoke(t.Context(), k.ID, h.note); err != nil {
			t.Fatal(err)
		}
		if got := verdict(a, "x-api-key: "+s); got != string(reason.KeyRevoked) {
			t.Errorf("revoked: %s", got)
		}
	}
	close(stop)
	wg.Wait()
}

func TestAPIKeyAllocations(t *testing.T) {
	h := newKeyHouse(t)
	_, k := h.create(KeySpec{})
	a := h.auth(t)
	for _, row := range []struct {
		name string
		r    *canon.Request
	}{{"header", request("x-api-key: " + k)}, {"bearer", request("authorization: Bearer " + k)}} {
		if n := testing.AllocsPerRun(200, func() {
			if _, err := a.Authenticate(context.Background(), row.r); err != nil {
				t.Fatal(err)
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", row.name, n)
		}
	}
}

func BenchmarkAPIKey(b *testing.B) {
	h := newKeyHouse(b)
	var k string
	for range 100 {
		_, k = h.create(KeySpec{})
	}
	a, err := NewAPIKey(h.keys, []string{"x-api-key", "authorization"})
	if err != nil {
		b.Fatal(err)
	}
	h.keys.now = time.Now
	for name, r := range map[string]*canon.Request{
		"valid": request("host: x", "accept: */*", "user-agent: curl/8", "x-api-key: "+k), "unknown": request("x-api-key: " + newAPIKey()), "typo": request("x-api-key: " + k[:52] + "_"),
	} {
		b.Run(name, func(b *testing.B) {
			b.ReportAllocs()
			for b.Loop() {
				a.Authenticate(context.Background(), r)
			}
		})
	}
}
