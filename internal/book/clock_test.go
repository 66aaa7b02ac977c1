package book

import (
	"context"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
)

// TestClockSteps: a step of the clock has a record, once and also if the disk is
// full at first; a far one shows in readiness until a heartbeat found the clock
// quiet. Signing does not wait for it.
func TestClockSteps(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		step  time.Duration
		ready bool
		full  bool
	}{{3 * time.Second, true, false}, {-3 * time.Second, true, true}, {time.Hour, false, false}, {-6 * time.Second, false, true}} {
		r := newRoom(t, small(64))
		b := r.open()
		now := time.Now()
		ck := newClock(now)
		if c.full {
			r.noWAL()
			if err := b.noteStep(ctx, ck, c.step, now); err == nil {
				t.Error("a record on a full disk")
			}
			r.files.SetFault(nil)
			if err := b.ledger.Room(); err != nil {
				t.Fatal(err)
			}
		} else if err := b.noteStep(ctx, ck, c.step, now); err != nil {
			t.Fatal(err)
		}
		if err := b.Ready(); (err == nil) != c.ready || err != nil && !strings.Contains(err.Error(), "clock") {
			t.Errorf("a step of %v: ready: %v", c.step, err)
		}
		for range 2 {
			if err := b.heartbeat(ctx, ck); err != nil {
				t.Fatal(err)
			}
		}
		if err := b.Ready(); err != nil {
			t.Errorf("two heartbeats after a step of %v: %v", c.step, err)
		}
		if err := b.ledger.SignCheckpoint(ctx); err != nil {
			t.Error(err)
		}
		rd, err := b.Reader()
		if err != nil {
			t.Fatal(err)
		}
		notes := ofKind(all(t, rd), record.KindClock)
		rd.Close()
		if len(notes) != 1 || notes[0].rec.Event.Name != "clock_step" || notes[0].rec.Event.Count != c.step.Microseconds() {
			t.Errorf("a step of %v: %+v", c.step, notes)
		}
	}
}

// TestClockSetBack: a clock that was set back while nothing ran has a record,
// after a clean stop and after a kill, and one that went on has none.
func TestClockSetBack(t *testing.T) {
	ctx := context.Background()
	for _, c := range []struct {
		moved time.Duration
		told  bool
	}{{time.Hour, false}, {0, false}, {-4 * time.Second, false}, {-6 * time.Second, true}, {-48 * time.Hour, true}} {
		for _, clean := range []bool{true, false} {
			r := newRoom(t, small(64))
			now := time.Now().Truncate(time.Second)
			r.cfg.Now = func() time.Time { return now }
			b := r.open()
			rec := b.Recorder(testRules(t), testSnap)
			for n := range 100 {
				if err := keepAll(rec, exchange(b, n, "person-0"), record.Written); err != nil {
					t.Fatal(err)
				}
			}
			if clean {
				if err := b.Close(ctx); err != nil {
					t.Fatal(err)
				}
			} else {
				r.files = r.files.Kill()
			}
			r.state = r.state.Snapshot()
			was := now.UnixMicro()
			now = now.Add(c.moved)
			b = r.open()
			notes := ofKind(all(t, r.reader()), record.KindClock)
			if (len(notes) == 1) != c.told || len(notes) > 1 {
				t.Errorf("moved by %v, clean %t: %d records", c.moved, clean, len(notes))
			} else if c.told {
				if e := notes[0].rec.Event; e.Name != "clock_step" || e.Count != c.moved.Microseconds() || e.Last != was || e.Cause != "between_runs" {
					t.Errorf("moved by %v: %+v", c.moved, e)
				}
			}
			if err := b.Close(ctx); err != nil {
				t.Fatal(err)
			}
			r.mustVerify(nil)
		}
	}
}
