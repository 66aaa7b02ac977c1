package sinks

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/testenv/hecd"
)

// keptBook is a real book with some records, made once; what the engine notes
// stays outside it.
type keptBook struct {
	*book.Book
	ids []string

	mu    sync.Mutex
	notes []record.Record // mu
}

func (b *keptBook) Note(_ context.Context, r *record.Record) error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.notes = append(b.notes, *r)
	return nil
}

func newKeptBook(t *testing.T, n int) *keptBook {
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
	for range n {
		if err := b.Note(t.Context(), &record.Record{Kind: record.KindAlert, Outcome: record.Success, Event: record.Event{Name: "test"}}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Sign(t.Context()); err != nil {
		t.Fatal(err)
	}
	k := &keptBook{Book: b}
	rd, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	origin, size := b.Signed()
	err = rd.Forward(0, size, false, func(e *book.Entry) error {
		k.ids = append(k.ids, deliver.EventID(origin, e.Index))
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// least is a projection of the least.
type least struct{}

func (least) Name() string { return "least" }
func (least) Version() int { return 1 }
func (least) Reveal() bool { return false }
func (least) Append(dst []byte, id string, e *book.Entry) ([]byte, error) {
	return fmt.Appendf(dst, `{"id":%q,"kind":%q}`, id, e.Record.Kind), nil
}
func (least) Stub(dst []byte, id string, _ *book.Entry, size int) ([]byte, error) {
	return fmt.Appendf(dst, `{"id":%q,"size":%d}`, id, size), nil
}

// memory is a kv.Store, as far as the engine uses one.
type memory struct {
	mu sync.Mutex
	m  map[[2]string]string
}

func (s *memory) Get(_ context.Context, table, key string) ([]byte, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	v, ok := s.m[[2]string{table, key}]
	if !ok {
		return nil, kv.ErrNotFound
	}
	return []byte(v), nil
}

func (s *memory) Put(_ context.Context, table, key string, value []byte, _ time.Time) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.m[[2]string{table, key}] = string(value)
	return nil
}

func (s *memory) Create(context.Context, string, string, []byte, time.Time) (bool, error) {
	return false, errors.New("not used")
}

func (s *memory) Swap(context.Context, string, string, []byte, []byte, time.Time) error {
	return errors.New("not used")
}

func (s *memory) Delete(_ context.Context, table, key string) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.m, [2]string{table, key})
	return nil
}

func (s *memory) Range(_ context.Context, table string, fn func(string, []byte) error) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	for k, v := range s.m {
		if k[0] == table {
			if err := fn(k[1], []byte(v)); err != nil {
				return err
			}
		}
	}
	return nil
}

// watched is the sink with an eye on what it promises: what is Done is there at
// that moment, as surely as the grade says.
type watched struct {
	*Splunk
	t   *testing.T
	srv *hecd.Server

	mu        sync.Mutex
	ambiguous map[string]bool // mu: ids of which an attempt was
	causes    map[string]int  // mu
}

func (w *watched) Send(ctx context.Context, b *deliver.Batch) deliver.Result {
	r := w.Splunk.Send(ctx, b)
	indexed := map[string]bool{}
	for _, e := range w.srv.Indexed() {
		indexed[e.ID] = true
	}
	copies := w.srv.Copies()
	w.mu.Lock()
	defer w.mu.Unlock()
	for i, it := range b.Items {
		one := r
		if r.Items != nil {
			one = r.Items[i]
		}
		w.causes[one.Cause]++
		switch {
		case one.Class != deliver.Done && one.Ambiguous:
			w.ambiguous[it.ID] = true
		case one.Class == deliver.Done && one.Grade != w.Grade():
			w.t.Errorf("%s is done at %s", it.ID, one.Grade)
		case one.Class == deliver.Done && one.Grade == deliver.Durable && !indexed[it.ID]:
			w.t.Errorf("%s is durable and not indexed", it.ID)
		case one.Class == deliver.Done && one.Grade == deliver.Accepted && copies[it.ID] == 0 && w.srv.Lost() == 0:
			w.t.Errorf("%s is accepted and was not taken", it.ID)
		}
	}
	return r
}

// splunkFault is one thing that goes wrong.
type splunkFault struct {
	name   string
	events []hecd.Fault // of the next requests with events
	acks   []hecd.Fault // of the next questions
	srv    func(*hecd.Server)
	set    func(*SplunkSettings)
	after  time.Duration // until then is called, once
	then   func(*hecd.Server)
	unsent int // requests that do not leave

	ambiguous bool   // something is, and only then may it be there twice
	refused   int    // records in quarantine
	cause     string // that some outcome has
	lossy     bool   // G1 and a restart: what was accepted may be gone
}

func times(n int, f hecd.Fault) []hecd.Fault {
	out := make([]hecd.Fault, n)
	for i := range out {
		out[i] = f
	}
	return out
}

func noAck(s *SplunkSettings) { s.Ack, s.Token = false, nil }

// unsentFirst fails before anything leaves, some times.
type unsentFirst struct {
	requester
	mu sync.Mutex
	n  int // mu
}

func (u *unsentFirst) Do(ctx context.Context, method, path string, h http.Header, body []byte) (*Answer, error) {
	u.mu.Lock()
	u.n--
	fail := u.n >= 0
	u.mu.Unlock()
	if fail {
		return nil, &Unsent{errors.New("connection refused")}
	}
	return u.requester.Do(ctx, method, path, h, body)
}

// Whatever goes wrong, every record arrives, twice only if it was said that it
// may, and nothing counts as delivered that is not.
func TestSplunkFaults(t *testing.T) {
	b := newKeptBook(t, 120)
	if len(splunkFaults) < 60 {
		t.Fatalf("only %d faults", len(splunkFaults))
	}
	for _, c := range splunkFaults {
		t.Run(strings.ReplaceAll(c.name, " ", "_"), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) { c.run(t, b) })
		})
	}
}

func (c *splunkFault) run(t *testing.T, b *keptBook) {
	srv := hecd.New()
	srv.Delay = 700 * time.Millisecond
	if c.srv != nil {
		c.srv(srv)
	}
	srv.Script(hecd.Events, c.events...)
	srv.Script(hecd.Ack, c.acks...)
	set := SplunkSettings{Settings: Settings{URL: "https://splunk.example.com:8088", Gzip: true}, Token: credential(t, hecd.AckToken), Index: "audit", Ack: true, InFlight: 3}
	if c.set != nil {
		c.set(&set)
	}
	if set.Token == nil {
		set.Token = credential(t, hecd.PlainToken)
	}
	s, err := newSplunk(set, &unsentFirst{requester: inside{srv, 30 * time.Second}, n: c.unsent})
	if err != nil {
		t.Fatal(err)
	}
	w := &watched{Splunk: s, t: t, srv: srv, ambiguous: map[string]bool{}, causes: map[string]int{}}
	e, err := deliver.New(deliver.Config{Book: b, State: &memory{m: map[[2]string]string{}}, Sinks: []deliver.SinkConfig{
		{Name: "splunk", Revision: "1", Sink: w, Projection: least{}, BatchItems: 20},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if c.then != nil {
		time.AfterFunc(c.after, func() { c.then(srv) })
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	_, size := b.Signed()
	for end := time.Now().Add(24 * time.Hour); e.Status()[0].Cursor < size; time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("not delivered: %+v", e.Status()[0])
		}
	}
	quarantined := e.Status()[0].Quarantine
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
	c.judge(t, b, srv, w, quarantined)
}

func (c *splunkFault) judge(t *testing.T, b *keptBook, srv *hecd.Server, w *watched, quarantined int) {
	copies, missing := srv.Copies(), 0
	for _, id := range b.ids {
		switch n := copies[id]; {
		case n == 0:
			missing++
		case n > 1 && !w.ambiguous[id]:
			t.Errorf("%s is there %d times and nothing was ambiguous", id, n)
		}
	}
	if c.lossy {
		if missing != srv.Lost() || missing == 0 {
			t.Errorf("%d records are missing, %d were lost behind a 200", missing, srv.Lost())
		}
	} else if missing != c.refused {
		t.Errorf("%d records are missing, %d are refused", missing, c.refused)
	}
	if quarantined != c.refused {
		t.Errorf("%d records in quarantine, want %d", quarantined, c.refused)
	}
	if len(copies) > len(b.ids) {
		t.Errorf("%d ids of %d", len(copies), len(b.ids))
	}
	if got := len(w.ambiguous) > 0; got != c.ambiguous {
		t.Errorf("ambiguous: %t, want %t: %v", got, c.ambiguous, w.causes)
	}
	if c.cause != "" && w.causes[c.cause] == 0 {
		t.Errorf("nothing ended with %q: %v", c.cause, w.causes)
	}
	if n := srv.Left(); n != 0 {
		t.Errorf("%d faults did not happen", n)
	}
}
