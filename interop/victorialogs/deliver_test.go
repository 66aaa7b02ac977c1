package victorialogs

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httputil"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/desk/deliver/project"
	"github.com/gatebook/gatebook/internal/desk/deliver/sinks"
	"github.com/gatebook/gatebook/internal/kv"
)

const records = 600

// openBook makes a book of requests, refusals and acts of several people.
func openBook(t *testing.T) *book.Book {
	t.Helper()
	c := book.Config{Dir: filepath.Join(t.TempDir(), "book"), KeyDir: filepath.Join(t.TempDir(), "keys"), Prefix: "log.example", Node: "n1", Ballast: -1}
	if _, err := book.Create(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	b, err := book.Open(t.Context(), c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := b.Close(context.Background()); err != nil {
			t.Error(err)
		}
	})
	for i := range records {
		r := &record.Record{Kind: record.KindRequest, Outcome: record.Success, Status: 200, Personal: record.Personal{Sub: fmt.Sprintf("user-%d", i%17)}}
		switch i % 10 {
		case 3:
			r = &record.Record{Kind: record.KindHandshake, Outcome: record.Failure, Client: record.Client{Prefix: "203.0.113.0/24"}, Error: record.Error{Origin: "client", Reason: "tls_version", Phase: "version"}}
		case 7:
			r = &record.Record{Kind: record.KindConfig, Outcome: record.Failure, Event: record.Event{Name: "reload", Before: "a", Target: "data", Cause: "fixed"}, Personal: record.Personal{Sub: "uid:7"}}
		case 9:
			r.Outcome, r.Status = record.Failure, 403
		}
		if err := b.Note(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Sign(t.Context()); err != nil {
		t.Fatal(err)
	}
	return b
}

// quiet is a book that the engine may not write to, so that what is to be
// delivered is what was there.
type quiet struct{ *book.Book }

func (quiet) Note(context.Context, *record.Record) error { return nil }

// ids are those of every record of the book.
func ids(t *testing.T, b *book.Book) map[string]bool {
	t.Helper()
	rd, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	origin, size := b.Signed()
	out := map[string]bool{}
	err = rd.Forward(0, size, false, func(e *book.Entry) error {
		out[deliver.EventID(origin, e.Index)] = true
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	if len(out) < records {
		t.Fatalf("%d records in the book", len(out))
	}
	return out
}

// run delivers the whole book to a sink.
func run(t *testing.T, b *book.Book, sink deliver.Sink, projection string) deliver.Status {
	t.Helper()
	origin, size := b.Signed()
	p, err := project.New(project.Options{Name: projection, Key: [32]byte{1}, Origin: origin, Node: "n1", Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	state, err := kv.OpenLocal(filepath.Join(t.TempDir(), "state.db"), [32]byte{2}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	e, err := deliver.New(deliver.Config{Book: quiet{b}, State: state, Sinks: []deliver.SinkConfig{
		{Name: "v", Revision: "1", Sink: sink, Projection: p, BatchItems: 70},
	}})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- e.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	for until := time.Now().Add(time.Minute); e.Status()[0].Cursor < size; time.Sleep(50 * time.Millisecond) {
		if time.Now().After(until) {
			t.Fatalf("not delivered: %+v", e.Status()[0])
		}
	}
	return e.Status()[0]
}

// exactly fails unless the server holds every id once and nothing else. id is
// the field that it is in.
func exactly(t *testing.T, s *server, want map[string]bool, id string) {
	t.Helper()
	got := map[string]int{}
	for _, row := range s.held() {
		if row[id] == "" {
			t.Fatalf("a row without %s: %v", id, row)
		}
		got[row[id]]++
	}
	for k, n := range got {
		if n != 1 || !want[k] {
			t.Errorf("%s is there %d times, wanted: %t", k, n, want[k])
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d records of %d", len(got), len(want))
	}
}

func credential(t *testing.T) *sinks.Credential {
	t.Helper()
	c, err := sinks.NewCredential(func() (string, error) { return "12345678-1234-1234-1234-1234567890ab", nil })
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What the Splunk sink sends is read as events with their ids and times, once
// each, in every projection, compressed and not.
func TestSplunk(t *testing.T) {
	b := openBook(t)
	want := ids(t, b)
	for _, projection := range project.Names() {
		for _, gzip := range []bool{true, false} {
			t.Run(fmt.Sprintf("%s, gzip %t", projection, gzip), func(t *testing.T) {
				s := start(t)
				sink, err := sinks.NewSplunk(sinks.SplunkSettings{
					Settings: sinks.Settings{URL: s.url, Gzip: gzip}, Token: credential(t), Index: "audit", Host: "gate-1", Sourcetype: "gatebook:" + projection,
				})
				if err != nil {
					t.Fatal(err)
				}
				if st := run(t, b, sink, projection); st.Ambiguous != 0 || st.Quarantined != 0 || st.Retries != 0 {
					t.Errorf("%+v", st)
				}
				exactly(t, s, want, "fields.event_id")
				for _, row := range s.held() {
					at, err := time.Parse(time.RFC3339Nano, row["_time"])
					if err != nil || time.Since(at) > time.Hour || row["index"] != "audit" || row["sourcetype"] != "gatebook:"+projection || row["host"] != "gate-1" || row["source"] != "gatebook" {
						t.Fatalf("%v", row)
					}
				}
			})
		}
	}
}

// flat stands between: VictoriaLogs takes no attribute that is an object, as
// Datadog does, so "record" becomes a text on the way. The rest of an entry goes
// through as it is.
func flat(t *testing.T, to string) string {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		z, err := gzip.NewReader(r.Body)
		if err != nil {
			t.Error(err)
			return
		}
		var entries []map[string]any
		d := json.NewDecoder(z)
		d.UseNumber()
		if err := d.Decode(&entries); err != nil {
			t.Error(err)
			return
		}
		for _, e := range entries {
			text, _ := json.Marshal(e["record"])
			e["record"] = string(text)
		}
		body, _ := json.Marshal(entries)
		req, err := http.NewRequestWithContext(r.Context(), r.Method, to+r.URL.Path, bytes.NewReader(body))
		if err != nil {
			t.Error(err)
			return
		}
		req.Header.Set("Content-Type", r.Header.Get("Content-Type"))
		req.Header.Set("DD-API-KEY", r.Header.Get("DD-API-KEY"))
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		w.WriteHeader(res.StatusCode)
		io.Copy(w, res.Body)
	}))
	t.Cleanup(srv.Close)
	return srv.URL
}

// What the Datadog sink sends is read as entries with their ids, once each.
func TestDatadog(t *testing.T) {
	b := openBook(t)
	want := ids(t, b)
	for _, projection := range project.Names() {
		t.Run(projection, func(t *testing.T) {
			s := start(t)
			sink, err := sinks.NewDatadog(sinks.DatadogConfig{Intake: sinks.Settings{URL: flat(t, s.url), Gzip: true}, Key: credential(t)})
			if err != nil {
				t.Fatal(err)
			}
			if st := run(t, b, sink, projection); st.Ambiguous != 0 || st.Quarantined != 0 || st.Retries != 0 {
				t.Errorf("%+v", st)
			}
			exactly(t, s, want, "event_id")
		})
	}
}

// It imitates the bulk API, without the path of a data stream, and keeps no ids
// of ours, so its answer does not say what became of which record: all documents
// are understood, and none counts as delivered.
func TestElasticIsNotFooled(t *testing.T) {
	b := openBook(t)
	s := start(t)
	to, err := url.Parse(s.url)
	if err != nil {
		t.Fatal(err)
	}
	between := httptest.NewServer(&httputil.ReverseProxy{Rewrite: func(r *httputil.ProxyRequest) {
		r.SetURL(to)
		r.Out.URL.Path = strings.Replace(r.In.URL.Path, "/logs-gatebook.audit-default", "/insert/elasticsearch", 1)
	}})
	defer between.Close()
	sink, err := sinks.NewElastic(sinks.ElasticSettings{Settings: sinks.Settings{URL: between.URL, Gzip: true}, Stream: "logs-gatebook.audit-default", Auth: sinks.ElasticNone})
	if err != nil {
		t.Fatal(err)
	}
	origin, size := b.Signed()
	p, err := project.New(project.Options{Name: project.ECS, Key: [32]byte{1}, Origin: origin, Node: "n1", Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	rd, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	batch := &deliver.Batch{Planned: time.Now(), Attempt: 1}
	err = rd.Forward(0, size, false, func(e *book.Entry) error {
		id := deliver.EventID(origin, e.Index)
		body, err := p.Append(nil, id, e)
		batch.Items = append(batch.Items, deliver.Item{Index: e.Index, ID: id, Time: e.Record.At(), Kind: string(e.Record.Kind), Body: body})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	r := sink.Send(t.Context(), batch)
	if r.Items == nil && (r.Class == deliver.Done || !r.Ambiguous) {
		t.Errorf("%+v", r)
	}
	for _, one := range r.Items {
		if one.Class == deliver.Done {
			t.Fatalf("%+v", one)
		}
	}
	if n := len(s.held()); n != len(batch.Items) {
		t.Errorf("it understood %d of %d documents", n, len(batch.Items))
	}
}
