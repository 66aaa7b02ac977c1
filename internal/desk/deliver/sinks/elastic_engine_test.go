package sinks

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/testenv/bulkd"
)

// elasticBook is a real book, made once; what engines note stays outside it.
type elasticBook struct {
	*book.Book
	ids []string
}

func (b *elasticBook) Note(context.Context, *record.Record) error { return nil }

func newElasticBook(t *testing.T, n int) *elasticBook {
	t.Helper()
	dir := t.TempDir()
	c := book.Config{Dir: filepath.Join(dir, "book"), KeyDir: filepath.Join(dir, "keys"), Prefix: "log.example", Node: "n1", Ballast: -1}
	if _, err := book.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	b, err := book.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(context.Background()) })
	var notes sync.WaitGroup // a note waits for a checkpoint, which all of them share
	for range n {
		notes.Go(func() {
			if err := b.Note(t.Context(), &record.Record{Kind: record.KindAlert, Outcome: record.Success, Event: record.Event{Name: "test"}}); err != nil {
				t.Error(err)
			}
		})
	}
	notes.Wait()
	if err := b.Sign(t.Context()); err != nil {
		t.Fatal(err)
	}
	out := &elasticBook{Book: b}
	rd, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	origin, size := b.Signed()
	err = rd.Forward(0, size, false, func(e *book.Entry) error {
		out.ids = append(out.ids, deliver.EventID(origin, e.Index))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// timed is the least that a data stream takes.
type timed struct{}

func (timed) Name() string { return "timed" }
func (timed) Version() int { return 1 }
func (timed) Reveal() bool { return false }
func (timed) Append(dst []byte, id string, e *book.Entry) ([]byte, error) {
	at := time.UnixMicro(e.Record.Time).UTC().Format(time.RFC3339Nano)
	return fmt.Appendf(dst, `{"@timestamp":%q,"event":{"id":%q,"sequence":%d},"gatebook":{"kind":%q}}`, at, id, e.Index, e.Record.Kind), nil
}
func (p timed) Stub(dst []byte, id string, e *book.Entry, _ int) ([]byte, error) {
	return p.Append(dst, id, e)
}

// watchedElastic is the sink with an eye on what it promises.
type watchedElastic struct {
	*Elastic
	t   *testing.T
	srv *bulkd.Server

	mu    sync.Mutex
	doubt map[string]bool // under mu: ids of which an attempt was ambiguous
}

func (w *watchedElastic) Send(ctx context.Context, b *deliver.Batch) deliver.Result {
	r := w.Elastic.Send(ctx, b)
	held := w.srv.Held(elasticTestStream)
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, it := range b.Items {
		one := r
		if r.Items != nil {
			one = r.Items[i]
		}
		if one.Class == deliver.Done && held[it.ID] == 0 {
			w.t.Errorf("%s is Done and not in the stream", it.ID)
		}
		if one.Ambiguous {
			w.doubt[it.ID] = true
		}
	}
	return r
}

// The same faults, with the engine in the place of the test's own: whatever goes
// wrong, every record of the book ends in the stream or in quarantine.
func TestElasticFaultsThroughTheEngine(t *testing.T) {
	b := newElasticBook(t, 60)
	t.Run("faults", func(t *testing.T) {
		for _, f := range elasticFaults() {
			t.Run(f.name, func(t *testing.T) {
				t.Parallel()
				f.engine(t, b)
			})
		}
	})
}

func (f *elasticFault) engine(t *testing.T, b *elasticBook) {
	srv, _ := elasticServer(t, f.cfg)
	sink := newElastic(t, srv, func(s *ElasticSettings) {
		if f.short != 0 {
			s.Timeout = f.short
		}
	})
	srv.Script(f.faults...)
	state, err := kv.OpenLocal(filepath.Join(t.TempDir(), "state"), [32]byte{1}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	w := &watchedElastic{Elastic: sink, t: t, srv: srv, doubt: map[string]bool{}}
	e, err := deliver.New(deliver.Config{Book: b, State: state, Sinks: []deliver.SinkConfig{{
		Name: "es", Revision: "1", Sink: w, Projection: timed{}, BatchItems: 20,
		BackoffMin: time.Millisecond, BackoffMax: 20 * time.Millisecond, AfterMax: 20 * time.Millisecond, PauseRetry: 20 * time.Millisecond,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	_, size := b.Signed()
	for e.Status()[0].Cursor < size && ctx.Err() == nil {
		select {
		case <-ctx.Done():
		case <-time.After(5 * time.Millisecond):
		}
	}
	st := e.Status()[0]
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	if st.Cursor < size {
		t.Fatalf("not delivered: %+v", st)
	}
	f.judge(t, b, srv, w, st)
}

func (f *elasticFault) judge(t *testing.T, b *elasticBook, srv *bulkd.Server, w *watchedElastic, st deliver.Status) {
	held := srv.Held(elasticTestStream)
	missing, twice := 0, 0
	for _, id := range b.ids {
		switch n := held[id]; {
		case n == 0:
			missing++
		case n > 1:
			twice++
			if !f.twice || !w.doubt[id] {
				t.Errorf("%s is there %d times; in doubt: %v", id, n, w.doubt[id])
			}
		}
		delete(held, id)
	}
	if len(held) > 0 {
		t.Errorf("held and not in the book: %v", held)
	}
	if missing != st.Quarantine || (missing > 0) != (f.poison > 0) {
		t.Errorf("%d are missing and %d in quarantine, want %d of six", missing, st.Quarantine, f.poison)
	}
	if (twice > 0) != f.twice {
		t.Errorf("%d are there twice, wanted: %v", twice, f.twice)
	}
	if n := srv.Left(); n != 0 {
		t.Errorf("%d faults were not played", n)
	}
}
