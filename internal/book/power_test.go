package book

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// soak says whether to test everything instead of a part that rotates with the
// place.
func soak() bool { return os.Getenv("GATEBOOK_SOAK") != "" }

var errPower = errors.New("the power is off")

// cutPower makes files and key store fail from operation n on, the same one for
// both. It returns the counter.
func (r *room) cutPower(n int64) *atomic.Int64 {
	ops := new(atomic.Int64)
	r.files.SetFault(func(store.Op) (bool, error) {
		if ops.Add(1) >= n {
			return false, errPower
		}
		return true, nil
	})
	state := r.state.Snapshot()
	state.Fault = func(op string) (bool, error) {
		if op == "view" {
			return true, nil
		}
		if ops.Add(1) >= n {
			return false, errPower
		}
		return true, nil
	}
	r.state = state
	return ops
}

// restart is what the machine finds when the power is back.
func (r *room) restart(rng *rand.Rand) {
	r.files, r.state = r.files.Crash(rng), r.state.Snapshot()
}

// told is what a story was promised.
type told struct {
	mu      sync.Mutex
	tried   map[record.ID]*record.Record // under mu; every exchange that was begun
	durable map[record.ID]string         // under mu; exchange -> its path: its record is on the disk
	open    map[record.ID]string         // under mu; exchange -> its path: its open mark is, and it was never committed
	who     map[string]string            // under mu; person -> pseudonym in a durable record
}

func newTold() *told {
	return &told{tried: map[record.ID]*record.Record{}, durable: map[record.ID]string{}, open: map[record.ID]string{}, who: map[string]string{}}
}

// TestPowerCuts cuts the power at every operation that changes file or key
// store, loses what was not synced in several ways, and restarts: what was
// acknowledged as durable is there once, with its personal part; an open mark
// has become exactly one interrupted record; everybody is still who they were.
func TestPowerCuts(t *testing.T) {
	for _, mode := range []string{"lose all", "lose some"} {
		t.Run(mode, func(t *testing.T) {
			stride := 5 * sweepStep
			if soak() {
				stride = 1
			}
			cuts := 0
			for cut := 1; ; cut += stride {
				var rng *rand.Rand
				if mode == "lose some" {
					rng = rand.New(rand.NewPCG(uint64(cut), 7))
				}
				cuts++
				if powerCut(t, int64(cut), rng) {
					t.Logf("%d cuts at %d operations", cuts, cut)
					return
				}
			}
		})
	}
}

// powerCut tells the story up to operation cut and says whether it ended
// before that.
func powerCut(t *testing.T, cut int64, rng *rand.Rand) bool {
	t.Helper()
	r := newRoom(t, small(16))
	r.cfg.FoldSlots = keepForAll
	origin := originOf(r.vkey)
	ops := r.cutPower(cut)
	heard := newTold()
	r.story(heard)
	ended := ops.Load() < cut
	r.restart(rng)
	b, err := r.tryOpen()
	if err != nil {
		t.Fatalf("cut %d: restart refused: %v", cut, err)
	}
	if got := b.Status().Origin; got != origin {
		t.Fatalf("cut %d: origin %q became %q", cut, origin, got)
	}
	rd, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	heard.check(t, fmt.Sprintf("cut %d", cut), all(t, rd))
	rd.Close()
	heard.sameAgain(t, fmt.Sprintf("cut %d", cut), b)
	if err := b.ledger.SignCheckpoint(context.Background()); err != nil {
		t.Fatalf("cut %d: %v", cut, err)
	}
	r.mustVerify(nil)
	if err := b.Close(context.Background()); err != nil {
		t.Fatalf("cut %d: %v", cut, err)
	}
	r.mustVerify(nil)
	return ended
}

func originOf(vkey string) string {
	name, _, _ := strings.Cut(vkey, "+")
	return name
}

// story does a bit of everything in one goroutine, so that operations repeat:
// persons old and new, strangers, marks that stay open, checkpoints, sealing,
// projection of births, a restart in the middle. It ends at the first error.
func (r *room) story(heard *told) {
	for chapter := range 2 {
		b, err := r.tryOpen()
		if err != nil {
			return
		}
		if r.chapter(b, heard, chapter*100) != nil || b.Close(context.Background()) != nil {
			return
		}
		heard.sync(nil)
	}
}

func (r *room) chapter(b *Book, heard *told, from int) error {
	ctx := context.Background()
	rec := b.Recorder(testRules(r.t), testSnap)
	var unsynced []*record.Record
	for n := from; n < from+18; n++ {
		who := fmt.Sprintf("person-%d", n%7)
		if n%4 == 3 {
			who = ""
		}
		x := exchange(b, n, who)
		heard.begin(x)
		ref, err := rec.Open(ctx, x, record.Written)
		if err != nil {
			return err
		}
		unsynced = append(unsynced, x)
		if n%6 == 5 { // forwarded, and nothing more is heard of it
			x.Kind = record.KindInterrupted
		} else if err := rec.Commit(ctx, ref, x, record.Written); err != nil {
			return err
		}
		if n%3 == 2 {
			if err := b.ledger.SignCheckpoint(ctx); err != nil {
				return err
			}
			// It syncs only when there are new leaves; all but a mark at the end
			// are in front of one.
			for len(unsynced) > 0 && unsynced[len(unsynced)-1].Kind == record.KindInterrupted {
				unsynced = unsynced[:len(unsynced)-1]
			}
			heard.sync(unsynced)
			unsynced = nil
		}
		if n%7 == 6 {
			if err := b.ledger.SealNow(ctx); err != nil {
				return err
			}
		}
		if n%5 == 4 {
			if err := b.ring.Project(b.ring.Pending()); err != nil {
				return err
			}
		}
	}
	return nil
}

// begin notes an exchange before anything is done with it.
func (h *told) begin(x *record.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.tried[x.ID] = x
}

// sync notes exchanges as being on the disk; those left open say so by their
// kind.
func (h *told) sync(xs []*record.Record) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, x := range xs {
		if x.Kind == record.KindInterrupted {
			h.open[x.ID] = x.Personal.Path
			continue
		}
		h.durable[x.ID] = x.Personal.Path
		if x.Personal.Sub != "" {
			h.who[x.Personal.Sub] = x.Subject
		}
	}
}

// check compares what was promised with what is there.
func (h *told) check(t *testing.T, when string, have []kept) {
	t.Helper()
	byID := map[record.ID]kept{}
	for _, k := range have {
		if _, twice := byID[k.id]; twice {
			t.Fatalf("%s: exchange %v has two records", when, k.id)
		}
		byID[k.id] = k
		if x := h.tried[k.id]; x == nil && (k.kind == record.KindRequest || k.kind == record.KindInterrupted) {
			t.Fatalf("%s: record %d is of an exchange that never was", when, k.index)
		}
	}
	for id, path := range h.durable {
		k, ok := byID[id]
		if !ok || k.kind != record.KindRequest || k.rec.Personal.Path != path {
			t.Fatalf("%s: exchange %v on %s was acknowledged and is %+v", when, id, path, k)
		}
	}
	for id, path := range h.open {
		k, ok := byID[id]
		if !ok || k.kind != record.KindInterrupted || k.rec.Outcome != record.Unknown || k.rec.Personal.Path != path {
			t.Fatalf("%s: the open mark of %v on %s has become %+v", when, id, path, k)
		}
	}
	for sub, subject := range h.who {
		for _, k := range have {
			if k.rec.Personal.Sub == sub && k.subject != subject {
				t.Fatalf("%s: %s is %s in record %d and %s in another", when, sub, k.subject, k.index, subject)
			}
		}
	}
}

// sameAgain lets everybody come once more: they are who they were, those who
// were born just before the cut included.
func (h *told) sameAgain(t *testing.T, when string, b *Book) {
	t.Helper()
	rec := b.Recorder(testRules(t), testSnap)
	for sub, subject := range h.who {
		x := exchange(b, 900, sub)
		if err := keepAll(rec, x, record.Written); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		if x.Subject != subject {
			t.Fatalf("%s: %s was %s and is %s after the restart", when, sub, subject, x.Subject)
		}
	}
	for sub := range h.who {
		if _, err := b.ring.Lookup(keys.FieldIdentity, "corp|"+sub); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
	}
}

// TestPowerCutsUnderLoad cuts the power while several goroutines commit at the
// level durable and everything in the background runs.
func TestPowerCutsUnderLoad(t *testing.T) {
	rounds := 15
	if soak() {
		rounds = 300
	}
	for round := range rounds {
		rng := rand.New(rand.NewPCG(uint64(round), 3))
		r := newRoom(t, func(o *ledger.Options) {
			small(32)(o)
			o.CheckpointEvery = time.Millisecond
		})
		r.cfg.FoldSlots = keepForAll
		r.cutPower(40 + rng.Int64N(400))
		heard := newTold()
		b, err := r.tryOpen()
		if err == nil {
			r.crowd(b, heard)
		}
		if round%2 == 0 {
			rng = nil
		}
		when := fmt.Sprintf("round %d", round)
		r.restart(rng)
		if b, err = r.tryOpen(); err != nil {
			t.Fatalf("%s: restart refused: %v", when, err)
		}
		rd, err := b.Reader()
		if err != nil {
			t.Fatal(err)
		}
		heard.check(t, when, all(t, rd))
		rd.Close()
		heard.sameAgain(t, when, b)
		if err := b.Close(context.Background()); err != nil {
			t.Fatalf("%s: %v", when, err)
		}
		r.mustVerify(nil)
	}
}

// crowd keeps exchanges at the level durable from several goroutines until the
// power is cut.
func (r *room) crowd(b *Book, heard *told) {
	stop := background(b)
	rec := b.Recorder(testRules(r.t), testSnap)
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for n := g * 1000; ; n++ {
				x := exchange(b, n, fmt.Sprintf("person-%d", n%11))
				heard.begin(x)
				if keepAll(rec, x, record.Durable) != nil {
					return
				}
				heard.sync([]*record.Record{x})
			}
		})
	}
	wg.Wait()
	stop()
	b.Close(context.Background())
}
