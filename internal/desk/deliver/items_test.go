package deliver

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestBusyItems: a sink that says 429 to every item is left alone like one that
// says it once, and several refusals of one answer are one refusal.
func TestBusyItems(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, 100, 10)
		busy := true
		h.sink.lim.InFlight = 4
		h.sink.script = func(_ int, b *Batch) act {
			if !busy {
				return act{take: all, res: Result{Class: Done, Grade: Durable}}
			}
			res := Result{Items: make([]Result, len(b.Items))}
			for i := range res.Items {
				res.Items[i] = Result{Class: Retry, Status: 429, Cause: "http_429"}
			}
			return act{res: res}
		}
		h.start()
		time.Sleep(10 * time.Minute)
		synctest.Wait()
		st := h.status()
		if st.State != Retrying || st.Retries == 0 || st.Sends > 100 {
			t.Errorf("%s after %d retries and %d sends: it is not left alone", st.State, st.Retries, st.Sends)
		}
		h.sink.with(func() { busy = false })
		h.until(time.Hour, "all is settled", h.settled)
		h.end()
		h.oracle()
	})
}

// TestPassed: what a sink passes over is settled and no receipt counts it.
func TestPassed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, 100, 10)
		h.sink.script = func(_ int, b *Batch) act {
			return act{take: all, res: Result{Class: Done, Grade: Durable, Passed: true}}
		}
		h.start()
		h.until(10*time.Minute, "all is settled", h.settled)
		time.Sleep(5 * time.Minute)
		h.end()
		if n := h.book.noted("delivered"); len(n) != 0 {
			t.Errorf("receipts of what was never sent: %v", n)
		}
	})
}
