package deliver

import (
	"context"
	"errors"
	"strings"
	"testing"
	"time"
)

// broken is a sink of which one method panics.
type broken struct {
	*double
	method string
}

func (b *broken) or(method string) {
	if b.method == method {
		panic("the sink is broken")
	}
}

func (b *broken) Limits() Limits {
	b.or("Limits")
	return b.double.Limits()
}

func (b *broken) Grade() Grade {
	b.or("Grade")
	return b.double.Grade()
}

func (b *broken) Test(ctx context.Context) error {
	b.or("Test")
	return errors.New("it says no")
}

func (b *broken) Renew() (bool, error) {
	b.or("Renew")
	return false, errors.New("it says no")
}

// A sink that panics takes nothing down, whatever it was asked; what it can still
// do it does, and another sink does not notice.
func TestBrokenSink(t *testing.T) {
	for _, method := range []string{"", "Limits", "Grade", "Test", "Renew"} {
		t.Run(method, func(t *testing.T) {
			in(t, 30, 10, func(t *testing.T, h *house) {
				sink := &broken{h.sink, method}
				h.as = sink
				h.sink.script = script(Durable, trouble{index: 15, times: 1, class: Pause, res: Result{Status: 401, Cause: "http_401"}})
				says := func(err error) {
					t.Helper()
					want := "it says no"
					if method == "Test" || method == "Renew" {
						want = "panic: the sink is broken"
					}
					if err == nil || !strings.Contains(err.Error(), want) {
						t.Errorf("said %v, want %s", err, want)
					}
				}
				h.start()
				h.until(time.Minute, "it is paused", func() bool { return h.status().State == PausedBySink })
				if s := h.status(); (s.Grade == "") != (method == "Grade") {
					t.Errorf("grade %q", s.Grade)
				}
				if method != "Renew" {
					says(h.eng.Test(context.Background(), anna, "s"))
				}
				if method != "Test" {
					_, err := Renew(sink)
					says(err)
				}
				h.until(time.Hour, "all is settled", h.settled)
				h.end()
				h.oracle()
				if n := h.sink.sends(); (n > 30) != (method == "Limits") {
					t.Errorf("%d sends", n)
				}
				h.jailIs()
			})
		})
	}
	if changed, err := Renew(newDouble(t, 1)); changed || err != nil {
		t.Errorf("a sink without a credential: %v, %v", changed, err)
	}
}
