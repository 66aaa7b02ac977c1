package deliver

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/kv"
)

// realBook is a book in a folder, with its cursors' store beside it.
type realBook struct {
	*book.Book
	t     testing.TB
	dir   string
	rec   *book.Recorder
	stop  func()
	state *kv.Local
}

func newRealBook(t testing.TB) *realBook {
	t.Helper()
	dir := t.TempDir()
	c := book.Config{Dir: filepath.Join(dir, "book"), KeyDir: filepath.Join(dir, "keys"), Prefix: "log.example", Node: "n1", Ballast: -1}
	ctx, cancel := context.WithCancel(context.Background())
	if _, err := book.Create(ctx, c); err != nil {
		t.Fatal(err)
	}
	b, err := book.Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- b.Run(ctx) }()
	rules, err := redact.New(redact.Config{Names: redact.Names{
		Routes: []string{"orders.read"}, Templates: []string{"/v1/orders/{id}"}, Hosts: []string{"api.example.com"},
		Issuers: []string{"corp"}, Roles: []string{"clerk"}, KIDs: []string{"k1"},
	}})
	if err != nil {
		t.Fatal(err)
	}
	r := &realBook{Book: b, t: t, dir: dir, rec: b.Recorder(rules, "00112233445566778899aabbccddeeff")}
	r.openState()
	r.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
		if err := b.Close(context.Background()); err != nil {
			t.Error(err)
		}
		r.state.Close()
	})
	t.Cleanup(r.stop)
	return r
}

func (r *realBook) openState() {
	r.t.Helper()
	var err error
	if r.state, err = kv.OpenLocal(filepath.Join(r.dir, "live.db"), [32]byte{1}, nil); err != nil {
		r.t.Fatal(err)
	}
}

// fill appends so many typical records.
func (r *realBook) fill(n int) {
	r.t.Helper()
	ctx := context.Background()
	for i := range n {
		now := time.Now()
		rec := record.Record{
			ID: r.NewID(now), Time: now.UnixMicro(), Kind: record.KindRequest, Outcome: record.Success,
			Route: "orders.read", Op: "GET /v1/orders/{id}", Method: "GET", Host: "api.example.com", Proto: "HTTP/1.1", Template: "/v1/orders/{id}",
			Status: 200, UpstreamStatus: 200, BytesOut: 1024, DurUS: 812,
			Authn:    record.Authn{Method: "jwt", Issuer: "corp", Roles: []string{"clerk"}, KID: "k1", Alg: "ES256", Outcome: "ok", AgeS: 30, TTLS: 270},
			Authz:    record.Authz{Decision: "allow", Policies: []string{"role:clerk:orders.read"}, Set: "00112233445566778899aabbccddeeff"},
			Client:   record.Client{Prefix: "203.0.113.0/24", PortClass: "dynamic"},
			Upstream: record.Upstream{Name: "orders", Target: "10.0.0.5:8080", Attempts: 1, Reused: true, TTFBUS: 600},
			Raw:      record.Raw{IssuerSub: fmt.Sprintf("corp|user-%d", i%200), UA: "bench/1.0", RemoteAddr: fmt.Sprintf("203.0.113.%d", i%250), RemotePort: 50000},
		}
		if err := r.rec.Commit(ctx, record.Ref{}, &rec, record.Written); err != nil {
			r.t.Fatal(err)
		}
	}
}

// whole is a projection that copies the frame.
type whole struct{ plain }

func (*whole) Append(dst []byte, id string, e *book.Entry) ([]byte, error) {
	dst = append(append(append(dst, `{"id":"`...), id...), `","record":`...)
	return append(append(dst, e.Frame...), '}'), nil
}

// run runs an engine over the book until the sinks have what is signed.
func (r *realBook) run(sinks ...SinkConfig) *Engine {
	r.t.Helper()
	e, err := New(Config{Book: r, State: r.state, Sinks: sinks})
	if err != nil {
		r.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	_, goal := r.Signed()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(2 * time.Minute); ; {
		ready := true
		for _, s := range e.Status() {
			ready = ready && (s.State == Running && s.Cursor >= goal || s.State == Unconfigured)
		}
		if ready {
			break
		}
		if time.Now().After(end) {
			r.t.Fatalf("not delivered: %+v", e.Status())
		}
		<-tick.C
	}
	cancel()
	if err := <-done; err != nil {
		r.t.Fatal(err)
	}
	return e
}

// A real book, sealed and not sealed, is delivered whole, to two sinks that
// share the decoding, and goes on where it stopped after the store was closed.
func TestRealBook(t *testing.T) {
	b := newRealBook(t)
	b.fill(3000)
	if err := b.Sign(context.Background()); err != nil {
		t.Fatal(err)
	}
	one, two := newDouble(t, 100), newDouble(t, 512)
	sinks := []SinkConfig{{Name: "one", Sink: one, Projection: &whole{}}, {Name: "two", Sink: two, Projection: &whole{}}}
	e := b.run(sinks...)
	if len(one.taken) < 3000 || len(two.taken) < len(one.taken)-5 {
		t.Errorf("%d and %d records", len(one.taken), len(two.taken))
	}
	if e.feed.opened > 6 {
		t.Errorf("%d readings for two sinks", e.feed.opened)
	}
	b.state.Close()
	b.openState()
	b.fill(500)
	if err := b.Sign(context.Background()); err != nil {
		t.Fatal(err)
	}
	origin, signed := b.Signed()
	b.run(sinks...)
	for name, d := range map[string]*double{"one": one, "two": two} {
		for i := range signed {
			if n := d.taken[EventID(origin, i)]; n != 1 {
				t.Errorf("sink %s: record %d arrived %d times", name, i, n)
			}
		}
	}
}

// drain is a sink that takes everything and keeps nothing.
type drain struct{ lim Limits }

func (d *drain) Limits() Limits             { return d.lim }
func (d *drain) Grade() Grade               { return Durable }
func (d *drain) Test(context.Context) error { return nil }
func (d *drain) Send(context.Context, *Batch) Result {
	return Result{Class: Done, Grade: Durable}
}

// CatchUp is how fast a sink that was away catches up with a real book of sealed
// segments and a WAL.
func CatchUp(b *testing.B, form func(origin string) Projection) {
	const n = 150_000
	bk := newRealBook(b)
	bk.fill(n)
	if err := bk.Sign(context.Background()); err != nil {
		b.Fatal(err)
	}
	origin, _ := bk.Signed()
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		e := bk.run(SinkConfig{Name: fmt.Sprint("s", i), Sink: &drain{Limits{Items: 1000, Bytes: 4 << 20, Item: 1 << 20, InFlight: 4}}, Projection: form(origin)})
		for _, s := range e.Status() {
			if s.Writes > 60 {
				b.Errorf("%d writes of the cursor", s.Writes)
			}
		}
	}
	b.ReportMetric(float64(n)*float64(b.N)/b.Elapsed().Seconds(), "records/s")
}

// What receipts and acts say is not taken for something secret on its way into
// the book: no number and no id is masked.
func TestRecordsAreKeptAsTheyAre(t *testing.T) {
	b := newRealBook(t)
	origin, _ := b.Signed()
	rec := event("delivered", "siem-1", "")
	for i := uint64(7); i < 1<<60; i *= 7 {
		rec.Links = append(rec.Links[:min(len(rec.Links), 11)], link("first", i), EventID(origin, i))
		one := *rec
		one.ID = record.ID{}
		if err := b.Note(context.Background(), &one); err != nil {
			t.Fatal(err)
		}
		want := fmt.Sprint(rec.Links)
		if err := b.Sign(context.Background()); err != nil {
			t.Fatal(err)
		}
		r, err := b.Reader()
		if err != nil {
			t.Fatal(err)
		}
		err = r.Forward(r.Size()-1, r.Size(), false, func(e *book.Entry) error {
			if got := fmt.Sprint(e.Record.Links); got != want || e.Record.San.Masked > 0 || e.Record.Event.Target != "siem-1" {
				t.Errorf("links %s, want %s, masked %d", got, want, e.Record.San.Masked)
			}
			return nil
		})
		if err := errors.Join(err, r.Close()); err != nil {
			t.Fatal(err)
		}
	}
}
