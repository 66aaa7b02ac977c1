package deliver

import (
	"testing"
	"testing/synctest"
	"time"
)

func TestDelivers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		h := newHouse(t, 2500, 100)
		h.start()
		h.until(time.Minute, "all is settled", h.settled)
		h.book.sign(2600)
		h.until(time.Minute, "the rest is settled", h.settled)
		h.end()
		h.oracle()
		if len(h.sink.taken) != 2600 {
			t.Errorf("%d records", len(h.sink.taken))
		}
	})
}
