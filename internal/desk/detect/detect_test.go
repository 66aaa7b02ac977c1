package detect

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/kv"
)

// house is a book on the disk with the state beside it.
type house struct {
	t     *testing.T
	cfg   book.Config
	rules *redact.Rules

	book  *book.Book
	store *kv.Local
	stop  func()
}

func newHouse(t *testing.T) *house {
	h := &house{t: t}
	dir := t.TempDir()
	h.cfg = book.Config{Dir: filepath.Join(dir, "data"), KeyDir: filepath.Join(dir, "keys"), Prefix: "log.example", Node: "n1", Ballast: -1}
	_, err := book.Create(context.Background(), h.cfg)
	h.must(err)
	h.rules = testRules(t)
	h.open()
	t.Cleanup(func() { h.stop() })
	return h
}

func testRules(t *testing.T) *redact.Rules {
	r, err := redact.New(redact.Config{Names: redact.Names{Routes: []string{"a"}, Templates: []string{"/a"}}})
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func (h *house) must(err error) {
	h.t.Helper()
	if err != nil {
		h.t.Fatal(err)
	}
}

func (h *house) open() {
	h.t.Helper()
	var err error
	h.book, err = book.Open(context.Background(), h.cfg)
	h.must(err)
	h.store, err = kv.OpenLocal(filepath.Join(filepath.Dir(h.cfg.Dir), "live.db"), [32]byte{1}, nil)
	h.must(err)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	b, s := h.book, h.store
	go func() { done <- b.Run(ctx) }()
	h.stop = sync.OnceFunc(func() {
		cancel()
		if err := errors.Join(<-done, b.Close(context.Background()), s.Close()); err != nil {
			h.t.Error(err)
		}
	})
}

// denied writes a denial of a person, at a time after begin.
func (h *house) denied(person, op string, after time.Duration) {
	h.t.Helper()
	at := time.UnixMicro(begin).Add(after)
	r := &record.Record{
		ID: h.book.NewID(at), Time: at.UnixMicro(), Kind: record.KindRequest, Outcome: record.Failure, Route: "a", Op: op, Template: "/a",
		Method: "GET", Status: 403, Client: record.Client{Prefix: "192.0.2.0/24"},
		Authn: record.Authn{Method: "jwt", Outcome: "ok"}, Authz: record.Authz{Decision: "deny"},
		Error:    record.Error{Origin: "policy", Reason: "denied_by_default"},
		Personal: record.Personal{Sub: person}, Raw: record.Raw{IssuerSub: "corp|" + person, RemoteAddr: "192.0.2.7"},
	}
	h.must(h.book.Recorder(h.rules, "00112233445566778899aabbccddeeff").Commit(context.Background(), record.Ref{}, r, record.Written))
}

func (h *house) sign() { h.t.Helper(); h.must(h.book.Sign(context.Background())) }

func (h *house) detector(b Book) *Detector {
	h.t.Helper()
	d, err := New(context.Background(), Config{Book: b, Store: h.store, Missing: kv.ErrNotFound, Rules: probing()})
	h.must(err)
	return d
}

// probing is the rule that the tests of this file use.
func probing() []Rule {
	return []Rule{{Name: "probing", Alert: AlertProbing, Severity: High, Where: `authz.decision == "deny"`, By: []string{"subject"}, Count: 3, Window: 10 * time.Minute}}
}

// round is one turn of Run.
func (h *house) round(d *Detector) error {
	if err := d.recall(context.Background()); err != nil {
		return err
	}
	return d.goOn(context.Background())
}

// alerts are those in the book, as person and count.
func (h *house) alerts() (out []string) {
	h.t.Helper()
	names := map[string]string{}
	for _, p := range []string{"ann", "bob", "cat", "dan"} {
		name, err := h.book.Pseudonym("corp|" + p)
		h.must(err)
		names[name] = p
	}
	r, err := h.book.Reader()
	h.must(err)
	defer r.Close()
	h.must(r.Each(0, r.Size(), false, func(e *book.Entry) error {
		if e.Record.Kind == record.KindAlert {
			out = append(out, fmt.Sprintf("%s %d", names[e.Record.Event.Target], e.Record.Event.Count))
		}
		return nil
	}))
	return out
}

func (h *house) wantAlerts(want ...string) {
	h.t.Helper()
	if got := h.alerts(); !slices.Equal(got, want) {
		h.t.Errorf("the alerts are %q, want %q", got, want)
	}
}

// TestAlertRecord: what an alert says, field by field.
func TestAlertRecord(t *testing.T) {
	h := newHouse(t)
	d := h.detector(h.book)
	for i := range 3 {
		h.denied("ann", "GET /a", time.Duration(i)*time.Minute)
	}
	h.sign()
	h.must(h.round(d))
	h.wantAlerts("ann 3")
	r, err := h.book.Reader()
	h.must(err)
	defer r.Close()
	var ids []string
	h.must(r.Each(0, r.Size(), true, func(e *book.Entry) error {
		rec := e.Record
		switch rec.Kind {
		case record.KindRequest:
			ids = append(ids, rec.ID.String())
		case record.KindAlert:
			pseudonym, _ := h.book.Pseudonym("corp|ann")
			want := record.Event{Name: "authz_fail", Count: 3, Exact: true, First: begin, Last: begin + 120_000_000, Target: pseudonym, Cause: "high"}
			if rec.Event != want {
				t.Errorf("the event is %+v, want %+v", rec.Event, want)
			}
			if rec.Limit != (record.Limit{Rule: "detect.probing", Outcome: "exceeded"}) || rec.Outcome != record.Failure {
				t.Errorf("limit %+v, outcome %s", rec.Limit, rec.Outcome)
			}
			if !slices.Equal(rec.Links, ids) {
				t.Errorf("it links to %q, want %q", rec.Links, ids)
			}
			if len(e.Personal) != 0 || e.Sealed != nil {
				t.Errorf("it has a personal part %q, %v", e.Personal, e.Sealed)
			}
		}
		return nil
	}))
	var counted uint64
	h.book.Alerts(func(name string, n uint64) {
		if name == "authz_fail" {
			counted = n
		}
	})
	if counted != 1 {
		t.Errorf("%d alerts are counted", counted)
	}
}

// TestUnsignedWaits: what no checkpoint covers is not looked at, since another
// record may get its index after a loss of power.
func TestUnsignedWaits(t *testing.T) {
	h := newHouse(t)
	d := h.detector(frozen{h.book, h.book.Status().Leaves})
	for range 3 {
		h.denied("ann", "GET /a", 0)
	}
	h.must(h.round(d))
	h.wantAlerts()
	d.cfg.Book = h.book
	h.sign()
	h.must(h.round(d))
	h.wantAlerts("ann 3")
}

// frozen is a book whose newest checkpoint is an old one.
type frozen struct {
	*book.Book
	signed uint64
}

func (f frozen) Status() book.Status {
	s := f.Book.Status()
	s.Signed = min(s.Signed, f.signed)
	return s
}

// TestRestart ends the process at every record and at every step of the writing
// of alerts and state. Each alert is there once, whatever happened.
func TestRestart(t *testing.T) {
	for _, when := range []string{"before the alerts", "after the alerts", "after the state"} {
		t.Run(when, func(t *testing.T) {
			h := newHouse(t)
			d := h.detector(h.book)
			people := []string{"ann", "bob", "cat"}
			for i := range 12 {
				h.denied(people[i%3], "GET /a", time.Duration(i)*20*time.Second)
				h.sign()
				b := Book(h.book)
				if when == "before the alerts" && i%2 == 0 {
					b = mute{h.book}
				}
				d.cfg.Book = b
				_ = d.goOn(context.Background()) // mute lets it fail
				if when == "after the state" {
					h.sign() // with the alert
					h.must(d.goOn(context.Background()))
					d.saved = time.Time{}
					h.must(d.keep(context.Background()))
					if d.dirty {
						t.Fatal("the state was not kept")
					}
				}
				if i == 7 {
					h.stop()
					h.open()
				}
				d = h.detector(h.book) // what d knew is gone
				h.must(d.recall(context.Background()))
			}
			h.must(d.goOn(context.Background()))
			h.wantAlerts("ann 3", "bob 3", "cat 3")
		})
	}
}

// mute takes no alerts.
type mute struct{ *book.Book }

func (mute) Note(context.Context, *record.Record) error { return errors.New("no") }

// TestWindowAfterRestart: what was counted before a restart counts after it.
func TestWindowAfterRestart(t *testing.T) {
	h := newHouse(t)
	d := h.detector(h.book)
	h.denied("ann", "GET /a", 0)
	h.denied("ann", "GET /a", time.Minute)
	h.denied("bob", "GET /a", time.Minute)
	h.sign()
	h.must(h.round(d))
	d.saved = time.Time{}
	h.must(d.goOn(context.Background()))
	h.stop()
	h.open()
	d = h.detector(h.book)
	if from, next := d.st.from(d.engine.depth()), d.next; from >= next {
		t.Fatalf("it goes on at %d and reads nothing before that again (%d)", next, from)
	}
	h.denied("ann", "GET /a", 9*time.Minute)
	h.denied("bob", "GET /a", 9*time.Minute)
	h.denied("cat", "GET /a", 9*time.Minute)
	h.sign()
	h.must(h.round(d))
	h.wantAlerts("ann 3")
	h.denied("bob", "GET /a", 10*time.Minute)
	h.sign()
	h.must(d.goOn(context.Background()))
	h.wantAlerts("ann 3", "bob 3")
}

// unsure is a book that keeps alerts and says that it did not, or does not.
type unsure struct {
	*book.Book
	fails int
	keeps bool
}

func (u *unsure) Note(ctx context.Context, r *record.Record) error {
	if u.fails == 0 {
		return u.Book.Note(ctx, r)
	}
	u.fails--
	if u.keeps {
		if err := u.Book.Note(ctx, r); err != nil {
			return err
		}
	}
	return errors.New("it took too long")
}

// TestUnsureNote: an alert that could not be written is written later, and one
// that was written although nobody said so is not written again.
func TestUnsureNote(t *testing.T) {
	for _, keeps := range []bool{false, true} {
		h := newHouse(t)
		u := &unsure{h.book, 3, keeps}
		d := h.detector(u)
		for i := range 4 {
			h.denied("ann", "GET /a", time.Duration(i)*time.Second)
		}
		h.sign()
		if err := h.round(d); err == nil {
			t.Error("nothing failed")
		}
		d.saved = time.Time{}
		if d.mayKeep() {
			t.Error("the state may be kept although an alert is not written")
		}
		for range 4 {
			_ = d.goOn(context.Background())
		}
		h.wantAlerts("ann 3")
		u.fails = 0
		h.denied("bob", "GET /a", 0)
		h.denied("bob", "GET /a", 0)
		h.denied("bob", "GET /a", 0)
		h.sign()
		h.must(d.goOn(context.Background()))
		h.wantAlerts("ann 3", "bob 3")
	}
}

// TestBroken: what cannot be read or kept is said, and not passed over.
func TestBroken(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	d := h.detector(noReader{h.book})
	for range 3 {
		h.denied("ann", "GET /a", 0)
	}
	h.sign()
	if err := h.round(d); err == nil || d.next != h.book.Status().Signed-3 && d.next > h.book.Status().Signed-3 {
		t.Errorf("it went on to %d: %v", d.next, err)
	}
	d.cfg.Book = h.book
	h.must(h.round(d))
	h.wantAlerts("ann 3")

	for _, bad := range []string{"", "{}", "[]", `{"v":2}`, `{"v":1} x`, `{"v":1,"else":1}`, `{"v":1,"rules":{"a":null}}`, `{"v":1,"rules":{"a":{"digest":"","since":0,"filter":{"bits":["AA==",""],"n":1}}}}`} {
		h.must(h.store.Put(ctx, stateTable, stateKey, []byte(bad), time.Time{}))
		if _, err := New(ctx, Config{Book: h.book, Store: h.store, Missing: kv.ErrNotFound, Rules: probing()}); err == nil {
			t.Errorf("the state %q is taken", bad)
		}
	}
	if _, err := New(ctx, Config{Book: h.book, Store: deadStore{}, Missing: kv.ErrNotFound, Rules: probing()}); err == nil {
		t.Error("a dead store is taken for an empty one")
	}
	if _, err := New(ctx, Config{Book: h.book, Store: h.store, Missing: kv.ErrNotFound, Rules: []Rule{{Name: "x"}}}); err == nil {
		t.Error("a rule that cannot be used is taken")
	}
}

type noReader struct{ *book.Book }

func (noReader) Reader() (*book.Reader, error) { return nil, errors.New("no") }

type deadStore struct{}

func (deadStore) Get(context.Context, string, string) ([]byte, error) { return nil, errors.New("away") }
func (deadStore) Put(context.Context, string, string, []byte, time.Time) error {
	return errors.New("away")
}

// TestAnotherBook: a state that is about another book begins anew, at its end.
func TestAnotherBook(t *testing.T) {
	h := newHouse(t)
	ctx := context.Background()
	h.must(h.store.Put(ctx, stateTable, stateKey, []byte(`{"v":1,"origin":"elsewhere","next":7,"marks":[],"rules":{}}`), time.Time{}))
	d := h.detector(h.book)
	if want := h.book.Status().Leaves; d.next != want {
		t.Errorf("it begins with %d, want %d", d.next, want)
	}
	h.must(h.store.Put(ctx, stateTable, stateKey, []byte(`{"v":1,"origin":"`+h.book.Status().Origin+`","next":99999,"marks":[],"rules":{}}`), time.Time{}))
	d = h.detector(h.book)
	if want := h.book.Status().Leaves; d.next != want {
		t.Errorf("after a restore it begins with %d, want %d", d.next, want)
	}
}

// TestRun runs it as the server does, to the end.
func TestRun(t *testing.T) {
	h := newHouse(t)
	d := h.detector(h.book)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- d.Run(ctx) }()
	for i := range 3 {
		h.denied("ann", "GET /a", time.Duration(i)*time.Second)
	}
	limit := time.After(30 * time.Second)
	for tick := time.NewTicker(20 * time.Millisecond); len(h.alerts()) == 0; {
		select {
		case <-limit:
			t.Fatalf("there is no alert after 30 s; %+v", d.Status())
		case <-tick.C:
		}
	}
	cancel()
	h.must(<-done)
	h.wantAlerts("ann 3")
	s := d.Status()
	if s.Failed != "" || len(s.Rules) != 1 || s.Rules[0].Alerts != 1 || s.Rules[0].Keys != 1 {
		t.Errorf("the status is %+v", s)
	}
}

// TestOtherRules: rules that stay keep what they have counted, others begin with
// what lies in the windows of those before, and what was told is not told again.
func TestOtherRules(t *testing.T) {
	h := newHouse(t)
	d := h.detector(h.book)
	for i := range 3 {
		h.denied("ann", "GET /a", time.Duration(i)*time.Second)
	}
	h.denied("bob", "GET /a", time.Second)
	h.denied("bob", "GET /a", time.Second)
	h.sign()
	h.must(h.round(d))
	h.wantAlerts("ann 3")
	h.sign()
	h.must(d.save(context.Background()))
	more := Rule{Name: "second", Where: `authz.decision == "deny"`, By: []string{"subject"}, Count: 4, Window: time.Hour}
	d, err := New(context.Background(), Config{Book: h.book, Store: h.store, Missing: kv.ErrNotFound, Rules: append(probing(), more)})
	h.must(err)
	h.denied("bob", "GET /a", 2*time.Second)
	h.denied("ann", "GET /a", 2*time.Second)
	h.sign()
	h.must(h.round(d))
	h.wantAlerts("ann 3", "bob 3", "ann 4") // the last is of the second rule
}

// TestRecallAgain: when reading back fails half way, nothing is counted twice.
func TestRecallAgain(t *testing.T) {
	h := newHouse(t)
	d := h.detector(h.book)
	h.must(d.recall(context.Background()))
	h.denied("ann", "GET /a", 0)
	h.denied("bob", "GET /a", 0)
	h.denied("ann", "GET /a", time.Second)
	h.sign()
	h.must(d.goOn(context.Background()))
	h.must(d.save(context.Background()))

	d = h.detector(h.book)
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := d.recall(ctx); err == nil {
		t.Fatal("it did not fail")
	}
	h.must(d.recall(context.Background()))
	h.denied("bob", "GET /a", time.Second)
	h.sign()
	h.must(d.goOn(context.Background()))
	h.wantAlerts()
	h.denied("ann", "GET /a", time.Second)
	h.sign()
	h.must(d.goOn(context.Background()))
	h.wantAlerts("ann 3")
}
