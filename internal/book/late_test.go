package book

import (
	"context"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// keptLate are the records that correct others, by the ids that they name.
func keptLate(have []kept) (ids []string) {
	for _, k := range ofKind(have, record.KindGap) {
		if k.rec.Event.Name == eventKeptLate {
			ids = append(ids, k.rec.Links...)
		}
	}
	return ids
}

// TestKeptLate: the record of an exchange that was ended with book_slow while it
// was being written is kept after all, and says 200, which is not what the client
// got. Another record says so, once. One whose turn had not come is not kept, and
// one that was being written for less than the time-out is kept as it should be.
func TestKeptLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := newRoom(t, small(4096))
		r.cfg.CommitTimeout = time.Second
		b := r.open()
		rec := b.Recorder(testRules(t), testSnap)
		if err := rec.Commit(t.Context(), record.Ref{}, exchange(b, 0, "person-1"), record.Written); err != nil {
			t.Fatal(err) // what only the first one writes is written
		}
		reached, let := make(chan struct{}), make(chan struct{})
		var held atomic.Bool // the next write is
		r.files.SetFault(func(op store.Op) (bool, error) {
			if op.Kind == "write" && strings.HasPrefix(op.Name, "wal/") && held.CompareAndSwap(true, false) {
				reached <- struct{}{}
				<-let
			}
			return true, nil
		})
		commit := func(n int) (string, chan error) {
			x, done := exchange(b, n, "person-1"), make(chan error, 1)
			go func() { done <- rec.Commit(context.Background(), record.Ref{}, x, record.Written) }()
			synctest.Wait()
			return x.ID.String(), done
		}
		mustKeep := func(done chan error) {
			t.Helper()
			if err := <-done; err != nil {
				t.Fatal(err)
			}
		}
		// The first one leads. Those that come while it writes are the next batch,
		// which the first of them leads.
		begin := func(n int) (led, follower chan error, id string) {
			held.Store(true)
			_, first := commit(n)
			<-reached
			_, led = commit(n + 1)
			id, follower = commit(n + 2)
			held.Store(true)
			let <- struct{}{}
			mustKeep(first)
			<-reached
			return led, follower, id
		}
		led, follower, _ := begin(1)
		time.Sleep(1500 * time.Millisecond)
		let <- struct{}{}
		mustKeep(led)
		mustKeep(follower)

		led, follower, late := begin(4)
		never, withdrawn := commit(7)
		mustReason(t, <-withdrawn, "book_slow")
		mustReason(t, <-follower, "book_slow")
		let <- struct{}{}
		mustKeep(led)
		if err := b.settle(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := b.Close(t.Context()); err != nil {
			t.Fatal(err)
		}
		have := all(t, r.reader())
		if ids := keptLate(have); !slices.Equal(ids, []string{late}) {
			t.Errorf("corrected %v, want %s", ids, late)
		}
		times := map[string]int{}
		for _, k := range ofKind(have, record.KindRequest) {
			times[k.id.String()]++
		}
		if times[late] != 1 || times[never] != 0 || len(times) != 7 {
			t.Errorf("the late one is there %d times, the withdrawn one %d times, %d in all", times[late], times[never], len(times))
		}
		r.mustVerify(nil)
	})
}
