package opensearch

import (
	"context"
	"fmt"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/desk/deliver/project"
	"github.com/gatebook/gatebook/internal/desk/deliver/sinks"
	"github.com/gatebook/gatebook/internal/kv"
)

// own is a book that keeps what the engine says of its work apart, so that what is
// to be delivered is what was there.
type own struct {
	*book.Book
	mu   sync.Mutex
	said []*record.Record // under mu
}

// Note implements deliver.Book.
func (o *own) Note(_ context.Context, r *record.Record) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	o.said = append(o.said, r)
	return nil
}

// comparisons are the links of the records of comparisons, in order.
func (o *own) comparisons() (out []string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	for _, r := range o.said {
		if r.Event.Name == "compared" {
			out = append(out, strings.Join(r.Links, " "))
		}
	}
	return out
}

// openBook makes a book of n records.
func openBook(t *testing.T, n int) *own {
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
	for i := range n {
		r := &record.Record{Kind: record.KindRequest, Outcome: record.Success, Status: 200, Personal: record.Personal{Sub: fmt.Sprintf("user-%d", i%17)}}
		if i%10 == 9 {
			r = &record.Record{Kind: record.KindHandshake, Outcome: record.Failure, Client: record.Client{Prefix: "203.0.113.0/24"}, Error: record.Error{Origin: "client", Reason: "tls_version", Phase: "version"}}
		}
		if err := b.Note(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := b.Sign(t.Context()); err != nil {
		t.Fatal(err)
	}
	return &own{Book: b}
}

func projection(t *testing.T, b *own, name string) deliver.Projection {
	t.Helper()
	origin, _ := b.Signed()
	p, err := project.New(project.Options{Name: name, Key: [32]byte{1}, Origin: origin, Node: "n1", Version: "test"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

// What the server holds is compared with the book: nothing is missing, but for two
// documents that somebody deleted from the backing index. They are sent again, are
// taken although their ids were there before, and are found at the next look.
func testCompared(t *testing.T, _ string, n *node) {
	const stream = "logs-gatebook.compared-default"
	b := openBook(t, 1500)
	origin, size := b.Signed()
	sink, err := sinks.NewElastic(sinks.ElasticSettings{Settings: sinks.Settings{URL: n.url, Gzip: true}, Stream: stream})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := sink.Bootstrap(t.Context(), sinks.ElasticSetup{}); err != nil {
		t.Fatal(err)
	}
	state, err := kv.OpenLocal(filepath.Join(t.TempDir(), "state.db"), [32]byte{2}, time.Now)
	if err != nil {
		t.Fatal(err)
	}
	defer state.Close()
	e, err := deliver.New(deliver.Config{Book: b, State: state, Sinks: []deliver.SinkConfig{{
		Name: "s", Revision: "1", Sink: sink, Projection: projection(t, b, project.ECS),
		CompareItems: int(size - 100), CompareEvery: time.Second, CompareAfter: 4 * time.Second, BackoffMax: time.Second,
	}}})
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
	until := func(what string, ok func(deliver.Status) bool) {
		t.Helper()
		for late := time.Now().Add(time.Minute); !ok(e.Status()[0]); time.Sleep(50 * time.Millisecond) {
			if time.Now().After(late) {
				t.Fatalf("%s: not within a minute: %+v, %q", what, e.Status()[0], b.comparisons())
			}
		}
	}
	until("delivered", func(st deliver.Status) bool { return st.Cursor == size })
	held := n.held(stream)
	gone := []string{deliver.EventID(origin, 700), deliver.EventID(origin, 1001)}
	for i, id := range gone {
		n.ask(200, "DELETE", "/"+held[[]uint64{700, 1001}[i]][0].Backing+"/_doc/"+id+"?refresh=true", "", nil)
	}
	if found := n.count(stream, `{"ids":{"values":["`+gone[0]+`","`+gone[1]+`"]}}`); found != 0 {
		t.Fatalf("%d of the deleted are there", found)
	}
	// The record of a comparison follows its result.
	until("compared", func(st deliver.Status) bool { return st.Compared == size && len(b.comparisons()) > 2 })
	first, last := fmt.Sprintf("last:%d missing:2 extra:0 duplicate:0", size-101), fmt.Sprintf("last:%d grade:G3 missing:0 extra:0 duplicate:0", size-1)
	if got := b.comparisons(); len(got) != 3 || !strings.HasSuffix(got[0], first) || !strings.HasSuffix(got[2], last) {
		t.Errorf("comparisons: %q", got)
	}
	if n.ask(200, "POST", "/"+stream+"/_refresh", "", nil); n.count(stream, `{"match_all":{}}`) != int(size) {
		t.Errorf("%d documents of %d records", n.count(stream, `{"match_all":{}}`), size)
	}
	for _, id := range gone {
		if n.count(stream, fmt.Sprintf(`{"term":{"event.id":%q}}`, id)) != 1 {
			t.Errorf("%s did not come back", id)
		}
	}
}

// A data stream takes the projection ecs and neither of the others, which is why the
// configuration refuses them here.
func testForms(t *testing.T, bin string, n *node) {
	const stream = "logs-gatebook.forms-default"
	g := newGate(t, bin, n, stream)
	g.command(0, "sink", "setup", "siem")
	b := openBook(t, 20)
	origin, size := b.Signed()
	rd, err := b.Reader()
	if err != nil {
		t.Fatal(err)
	}
	defer rd.Close()
	for _, name := range project.Names() {
		p := projection(t, b, name)
		var lines []byte
		err := rd.Forward(0, size, false, func(e *book.Entry) error {
			id := deliver.EventID(origin, e.Index)
			lines = fmt.Appendf(lines, "{\"create\":{\"_id\":%q}}\n", id)
			body, err := p.Append(nil, id, e)
			lines = append(append(lines, body...), '\n')
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
		var answer struct {
			Items []struct {
				Create struct {
					Status int
					Error  struct {
						Type  string
						Cause struct{ Reason string } `json:"caused_by"`
					}
				}
			}
		}
		n.ask(http.StatusOK, "POST", "/"+stream+"/_bulk", string(lines), &answer)
		if len(answer.Items) < 20 {
			t.Fatalf("%s: %+v", name, answer)
		}
		for _, item := range answer.Items {
			if name == project.ECS && item.Create.Status == 201 || name != project.ECS && item.Create.Status == 400 && strings.Contains(item.Create.Error.Cause.Reason, "timestamp field '@timestamp'") {
				continue
			}
			t.Fatalf("%s: %+v", name, item)
		}
		if name != project.ECS {
			text := fmt.Sprintf("sinks:\n  - {name: siem, type: opensearch, url: %q, project: %s}\n", n.url, name)
			config := strings.Split(string(g.read("gatebook.yaml")), "sinks:\n")[0]
			g.write("gatebook.yaml", config+text)
			if said := g.command(2, "sink", "setup", "siem"); !strings.Contains(said, "takes only documents with @timestamp") {
				t.Errorf("%s: %s", name, said)
			}
		}
	}
}
