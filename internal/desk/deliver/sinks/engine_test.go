package sinks

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/testenv/scripted"
)

// numbered is a projection of the least.
type numbered struct{}

func (numbered) Name() string { return "numbered" }
func (numbered) Version() int { return 1 }
func (numbered) Reveal() bool { return false }
func (numbered) Append(dst []byte, id string, e *book.Entry) ([]byte, error) {
	return fmt.Appendf(dst, `{"id":%q,"index":%d,"kind":%q}`, id, e.Index, e.Record.Kind), nil
}

func (numbered) Stub(dst []byte, id string, e *book.Entry, size int) ([]byte, error) {
	return fmt.Appendf(dst, `{"id":%q,"index":%d,"was":%d}`, id, e.Index, size), nil
}

// realBook is a book with n requests and more, all of it signed, and the ids of
// what is in it.
func realBook(t *testing.T, n int) (*book.Book, []string) {
	t.Helper()
	c := book.Config{Dir: t.TempDir(), KeyDir: filepath.Join(t.TempDir(), "keys"), Prefix: "log.example", Node: "n1"}
	if _, err := book.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	b, err := book.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	for i := range n {
		if err := b.Note(t.Context(), &record.Record{Kind: record.KindRequest, Outcome: record.Success, Status: 200 + i}); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Close(t.Context()); err != nil {
		t.Fatal(err)
	}
	if b, err = book.Open(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = b.Close(context.Background()) })
	r, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	origin, size := b.Signed()
	var ids []string
	if err := r.Forward(0, size, false, func(e *book.Entry) error {
		ids = append(ids, deliver.EventID(origin, e.Index))
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	if len(ids) < n {
		t.Fatalf("only %d of %d records are signed", len(ids), n)
	}
	return b, ids
}

// through delivers the whole book to a sink with the engine.
func through(t *testing.T, b *book.Book, s deliver.Sink) deliver.Status {
	t.Helper()
	state, err := kv.OpenLocal(filepath.Join(t.TempDir(), "state.db"), [32]byte{1}, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	e, err := deliver.New(deliver.Config{Book: b, State: state, Sinks: []deliver.SinkConfig{{
		Name: "s", Revision: "1", Sink: s, Projection: numbered{}, BatchItems: 4,
		BackoffMin: time.Millisecond, BackoffMax: 4 * time.Millisecond, AfterMax: 2 * time.Millisecond, PauseRetry: 2 * time.Millisecond,
	}}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	ended := make(chan error, 1)
	go func() { ended <- e.Run(ctx) }()
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	_, signed := b.Signed()
	var st deliver.Status
	for range tick.C {
		if st = e.Status()[0]; st.Cursor == signed || ctx.Err() != nil {
			break
		}
	}
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if st.Cursor != signed {
		t.Fatalf("not delivered: %+v", st)
	}
	return st
}

// compareHeld wants every id, and more than once at most that many.
func compareHeld(t *testing.T, ids []string, held map[string]int, copies int64) {
	t.Helper()
	var more int64
	for _, id := range ids {
		if held[id] == 0 {
			t.Errorf("%s is missing", id)
		}
		if held[id] > 1 {
			more++
		}
	}
	if len(held) > len(ids) {
		t.Errorf("%d ids, want %d", len(held), len(ids))
	}
	if more > copies {
		t.Errorf("%d are there more than once, and %d were told to be ambiguous", more, copies)
	}
}

// Every fault of the tables again, with the engine that sends and a book that is
// real: what the receiver holds is what is in the book.
func TestEngineOverHTTP(t *testing.T) {
	b, ids := realBook(t, 20)
	for name, world := range map[string]func(t *testing.T, wait time.Duration) (deliver.Sink, *scripted.Server, func() map[string]int){
		"datadog": func(t *testing.T, wait time.Duration) (deliver.Sink, *scripted.Server, func() map[string]int) {
			account, script, sink := datadogWorld(t, func(c *DatadogConfig) { c.Intake.Timeout = wait })
			return sink, script, func() map[string]int { return datadogHeld(account) }
		},
		"webhook": func(t *testing.T, wait time.Duration) (deliver.Sink, *scripted.Server, func() map[string]int) {
			v, script, h := webhookWorld(t, func(c *WebhookConfig) { c.Endpoint.Timeout = wait })
			return h, script, func() map[string]int { v.mu.Lock(); defer v.mu.Unlock(); return v.held }
		},
	} {
		together(t, webRows(202), func(r row) string { return name + "/" + r.Name }, func(t *testing.T, r row) {
			s, script, held := world(t, r.patience())
			script.Only = map[string]string{"datadog": "/api/v2/logs", "webhook": ""}[name]
			script.Play(r.Fault)
			st := through(t, b, s)
			if st.Quarantine != 0 || st.Ambiguous > 0 && !r.maybe || st.Grade != "G1" {
				t.Errorf("%+v", st)
			}
			compareHeld(t, ids, held(), st.Ambiguous)
		})
	}
}

func TestEngineToFile(t *testing.T) {
	b, ids := realBook(t, 20)
	var disks []*faultyDisk
	for _, op := range []string{"open", "stat", "read", "write", "write half", "write a line", "write most", "write all", "tear", "sync", "sync untaken", "rename", "renamed", "syncdir", "compress"} {
		for _, errno := range []syscall.Errno{syscall.ENOSPC, syscall.EACCES} {
			for _, nth := range []int{1, 2} {
				disks = append(disks, &faultyDisk{op: op, nth: nth, times: 3, err: errno})
			}
		}
	}
	if len(disks) < 60 {
		t.Errorf("only %d rows", len(disks))
	}
	name := func(d *faultyDisk) string { return fmt.Sprintf("%s/%v/%d", d.op, d.err, d.nth) }
	together(t, disks, name, func(t *testing.T, d *faultyDisk) {
		f := &File{conf: FileConfig{Path: filepath.Join(t.TempDir(), "audit.jsonl"), MaxBytes: 150, Now: time.Now}, disk: d}
		st := through(t, b, f)
		if st.Quarantine != 0 || st.Retries == 0 && d.err == syscall.ENOSPC || d.times == 3 || st.Grade != "G2" {
			t.Errorf("%+v", st)
		}
		lines := linesOf(t, f.conf.Path)
		if len(lines) != len(ids) {
			t.Fatalf("%d lines, want %d", len(lines), len(ids))
		}
		for i, line := range lines {
			if !strings.HasPrefix(line, `{"id":"`+ids[i]+`"`) {
				t.Fatalf("line %d is %s, want %s", i, line, ids[i])
			}
		}
	})
}
