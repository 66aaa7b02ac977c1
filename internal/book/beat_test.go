package book

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/ledger"
)

// beating is a book whose clock is the test's. The monotonic clock of c follows
// it, but for steps.
type beating struct {
	*room
	b   *Book
	c   *clock
	now time.Time
}

func newBeating(t *testing.T) *beating {
	t.Helper()
	x := &beating{room: newRoom(t, small(64)), now: time.Now().Round(0)}
	x.cfg.Now = func() time.Time { return x.now }
	x.b = x.open()
	x.c = newClock(x.now)
	return x
}

// beat lets a heartbeat come so much later.
func (x *beating) beat(after time.Duration) error {
	x.now = x.now.Add(after)
	return x.b.heartbeat(context.Background(), x.c)
}

func (x *beating) mustBeat(after time.Duration) {
	x.t.Helper()
	if err := x.beat(after); err != nil {
		x.t.Fatal(err)
	}
}

// miss lets so many heartbeats come, one a minute, while the disk is full, and then
// makes room.
func (x *beating) miss(beats int) {
	x.t.Helper()
	x.noWAL()
	for range beats {
		if err := x.beat(time.Minute); err == nil {
			x.t.Fatal("a heartbeat on a full disk")
		}
	}
	x.files.SetFault(nil)
	if err := x.b.ledger.Room(); err != nil {
		x.t.Fatal(err)
	}
}

// step moves the wall clock alone.
func (x *beating) step(d time.Duration) {
	x.t.Helper()
	x.now, x.c.start, x.c.last = x.now.Add(d), x.c.start.Add(d), x.c.last.Add(d)
	if err := x.b.noteStep(context.Background(), x.c, d, x.now); err != nil {
		x.t.Fatal(err)
	}
}

// TestHeartbeatGaps: verify tells a book that was silent from one whose wall clock was
// stepped, and from one that had no room for a while and says so.
func TestHeartbeatGaps(t *testing.T) {
	for _, c := range []struct {
		name   string
		act    func(x *beating)
		status ledger.Status
		code   int
		says   string
	}{
		{"nothing", func(x *beating) { x.mustBeat(time.Minute) }, ledger.OK, 0, "none missing"},
		{"an hour forward", func(x *beating) { x.step(time.Hour); x.mustBeat(time.Minute) }, ledger.OK, 0, "none missing"},
		{"an hour back", func(x *beating) { x.step(-time.Hour); x.mustBeat(time.Minute) }, ledger.OK, 0, "none missing"},
		{"silence", func(x *beating) { x.mustBeat(12 * time.Minute) }, ledger.Failed, ledger.ExitDamaged, "no heartbeat for [12m0s before record"},
		{"silence under a clock that was set back", func(x *beating) { x.step(-20 * time.Minute); x.mustBeat(12 * time.Minute) }, ledger.Failed, ledger.ExitDamaged, "no heartbeat for [12m0s before record"},
		{"silence after the start", func(x *beating) {
			if err := x.b.Close(context.Background()); err != nil {
				x.t.Fatal(err)
			}
			x.state = x.state.Snapshot()
			x.b, x.c = x.open(), newClock(x.now)
			x.mustBeat(12 * time.Minute)
		}, ledger.Failed, ledger.ExitDamaged, "no heartbeat for [12m0s before record"},
		{"a full disk", func(x *beating) {
			x.miss(11)
			x.mustBeat(time.Minute)
		}, ledger.OK, 0, "12m0s before record 2 (book_full)"},
		{"silence after a full disk", func(x *beating) {
			x.miss(1)
			x.mustBeat(time.Minute)
			x.mustBeat(12 * time.Minute)
		}, ledger.Failed, ledger.ExitDamaged, "no heartbeat for [12m0s before record"},
	} {
		t.Run(c.name, func(t *testing.T) {
			x := newBeating(t)
			x.mustBeat(time.Minute)
			c.act(x)
			if err := x.b.ledger.SignCheckpoint(context.Background()); err != nil {
				t.Fatal(err)
			}
			rep := x.verify(nil)
			if rep.Range.Status != c.status || rep.ExitCode() != c.code || !strings.Contains(rep.Range.Detail, c.says) {
				t.Errorf("exit code %d, want %d: %+v, %v", rep.ExitCode(), c.code, rep.Range, rep.Findings)
			}
			if err := x.b.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
		})
	}
}

// TestBeatCountsOn: what a heartbeat would have told is not lost with it.
func TestBeatCountsOn(t *testing.T) {
	x := newBeating(t)
	x.mustBeat(time.Minute)
	rec := x.b.Recorder(testRules(t), testSnap)
	for n := range 5 {
		if err := keepAll(rec, exchange(x.b, n, "person-0"), 0); err != nil {
			t.Fatal(err)
		}
	}
	failed := x.now.Add(time.Minute)
	x.miss(2)
	x.mustBeat(time.Minute)
	x.mustBeat(time.Minute)
	beats := ofKind(all(t, x.reader()), "heartbeat")
	if len(beats) != 3 {
		t.Fatalf("%d heartbeats", len(beats))
	}
	if e := beats[1].rec.Event; e.Count != 6 || e.Cause != "book_full" || e.First != failed.UnixMicro() {
		t.Errorf("the one after a full disk: %+v", e)
	}
	if e := beats[2].rec.Event; e.Cause != "" || e.First != 0 {
		t.Errorf("the next: %+v", e)
	}
	if err := x.b.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}
