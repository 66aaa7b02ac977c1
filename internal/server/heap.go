package server

import (
	"context"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

// heapRoom is how much is allocated between two collections at the least. A gate
// holds a few megabytes and makes tens of megabytes of garbage a second; with
// Go's default of as much room as is in use it would collect several times a
// second, and whoever is asking then waits.
const heapRoom = 64 << 20

// roomLoop keeps the room: after each collection it sets what the next one waits
// for. More than heapRoom in use gets Go's default, so that memory at most
// doubles as always. It does nothing if the operator has set GOGC.
func roomLoop(ctx context.Context, env func(string) string) error {
	if env("GOGC") != "" {
		return nil
	}
	collected := make(chan struct{}, 1)
	watchCollection(collected)
	percent := 100
	before := debug.SetGCPercent(percent)
	defer debug.SetGCPercent(before)
	for {
		if next := roomPercent(liveBytes()); math.Abs(float64(next-percent)) > float64(percent)/10 {
			percent = next
			debug.SetGCPercent(percent)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-collected:
			watchCollection(collected)
		}
	}
}

// watchCollection says so on the channel when the next collection is over: then
// what nobody holds is found.
func watchCollection(collected chan<- struct{}) {
	runtime.AddCleanup(&struct{ p *int }{}, func(c chan<- struct{}) {
		select {
		case c <- struct{}{}:
		default:
		}
	}, collected)
}

// liveBytes is what the last collection found in use.
func liveBytes() uint64 {
	sample := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	metrics.Read(sample)
	return sample[0].Value.Uint64()
}

// roomPercent is the setting of GOGC under which a heap with so much in use has
// heapRoom.
func roomPercent(live uint64) int {
	return int(max(100, heapRoom*100/max(live, 1<<20)))
}
