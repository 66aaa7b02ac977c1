package server

import (
	"context"
	"runtime"
	"runtime/debug"
	"testing"
	"time"
)

func TestRoomPercent(t *testing.T) {
	for _, c := range []struct {
		live uint64
		want int
	}{
		{0, 6400}, {1 << 20, 6400}, {5 << 20, 1280}, {32 << 20, 200}, {64 << 20, 100}, {1 << 30, 100},
	} {
		if got := roomPercent(c.live); got != c.want {
			t.Errorf("with %d bytes in use GOGC is %d, want %d", c.live, got, c.want)
		}
	}
}

// TestRoomLoop fills and empties the heap and looks at what the loop sets.
func TestRoomLoop(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	before := debug.SetGCPercent(100)
	defer debug.SetGCPercent(before)
	done := make(chan error)
	go func() { done <- roomLoop(ctx, func(string) string { return "" }) }()
	held := make([]byte, 200<<20)
	wait := func(what string, ok func(percent int) bool) {
		t.Helper()
		end := time.Now().Add(10 * time.Second)
		for {
			runtime.GC()
			p := debug.SetGCPercent(100) // the only way to ask
			debug.SetGCPercent(p)
			if ok(p) {
				return
			}
			if time.Now().After(end) {
				t.Fatalf("%s: GOGC is %d", what, p)
			}
			runtime.Gosched()
		}
	}
	wait("much in use", func(p int) bool { return p == 100 })
	runtime.KeepAlive(held)
	held = nil
	wait("little in use", func(p int) bool { return p > 200 })
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if p := debug.SetGCPercent(100); p != 100 {
		t.Errorf("after the loop GOGC is %d, was 100", p)
	}
	if err := roomLoop(context.Background(), func(string) string { return "50" }); err != nil {
		t.Error(err)
	}
}
