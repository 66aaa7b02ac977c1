package opensearch

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/program"
)

// TestOpenSearch is all that is tried with one server: first what leaves it running,
// the comparison, which mostly waits, beside the rest; then what stops it.
func TestOpenSearch(t *testing.T) {
	bin := program.Build(t)
	n := newNode(t, "100mb")
	t.Run("delivered", func(t *testing.T) { testDelivered(t, bin, n) })
	t.Run("running", func(t *testing.T) {
		t.Run("compared", func(t *testing.T) { t.Parallel(); testCompared(t, bin, n) })
		t.Run("rest", func(t *testing.T) {
			t.Parallel()
			t.Run("not set up", func(t *testing.T) { testNotSetUp(t, bin, n) })
			t.Run("gate killed", func(t *testing.T) { testGateKilled(t, bin, n) })
			t.Run("quarantine", func(t *testing.T) { testQuarantine(t, bin, n) })
			t.Run("forms", func(t *testing.T) { testForms(t, bin, n) })
		})
	})
	t.Run("server away", func(t *testing.T) { testAway(t, bin, n) })
	t.Run("server killed", func(t *testing.T) { testServerKilled(t, bin, n) })
}

// same fails unless the stream holds every record of the book once, as it is there,
// and nothing that is no record. What was made after the book was read may be there.
func same(t *testing.T, n *node, stream string, book map[uint64]kept) map[uint64][]document {
	t.Helper()
	held := n.held(stream)
	last := uint64(0)
	for i, k := range book {
		last = max(last, i)
		docs := held[i]
		if len(docs) != 1 {
			t.Errorf("record %d is there %d times", i, len(docs))
			continue
		}
		d := &docs[0]
		if d.ID != d.Source.Event.ID || !strings.HasSuffix(d.ID, fmt.Sprintf("-%d", i)) || d.Source.HTTP.Request.ID+d.Source.Gatebook.ID != k.Frame.ID || d.Source.Gatebook.Kind != k.Frame.Kind ||
			d.Source.Event.Outcome != k.Frame.Outcome || d.Source.Gatebook.Authz.Decision != k.Frame.Authz.Decision || d.Source.HTTP.Response.Status != k.Frame.Status {
			t.Errorf("record %d is %+v in the book and %+v at the server", i, k, d)
		}
	}
	for i, docs := range held {
		if _, ok := book[i]; !ok && i <= last {
			t.Errorf("the server holds %d, which is no record: %+v", i, docs)
		}
		if len(docs) != 1 {
			t.Errorf("record %d is there %d times", i, len(docs))
		}
	}
	return held
}

// Templates and stream are made, and kept when they are made again; a mixed book
// arrives, can be searched by its decisions, and is not doubled by a replay.
func testDelivered(t *testing.T, bin string, n *node) {
	const stream = "logs-gatebook.delivered-default"
	g := newGate(t, bin, n, stream)
	want := []string{"found OpenSearch 2.19.6", "created component_template gatebook-ecs", "created component_template gatebook-settings", "created index_template gatebook-" + stream, "created data stream " + stream}
	said := g.command(0, "sink", "setup", "siem")
	for _, line := range want {
		if !strings.Contains(said, line) {
			t.Errorf("setting up says %q and not %q", said, line)
		}
	}
	again := g.command(0, "sink", "setup", "siem")
	if strings.Count(again, "kept ") != 4 {
		t.Errorf("setting up again says %s", again)
	}
	g.start()
	g.command(0, "sink", "test", "siem")
	g.mixed(300)
	book, st := g.caughtUp()
	if st.Grade != "G2" || st.Delivered["G2"] == 0 || st.Quarantine != 0 || st.Duplicates != 0 || len(st.Retries) != 0 {
		t.Errorf("%+v", st)
	}
	same(t, n, stream, book)
	decisions, malformed := map[string]int{}, 0
	for _, k := range book {
		decisions[k.Frame.Authz.Decision]++
		if k.Frame.Status == 400 {
			malformed++
		}
	}
	for decision, count := range decisions {
		if decision == "" {
			continue
		}
		if got := n.count(stream, fmt.Sprintf(`{"term":{"gatebook.authz.decision":%q}}`, decision)); got != count {
			t.Errorf("the server finds %d with the decision %s, the book has %d", got, decision, count)
		}
	}
	if decisions["allow"] != 210 || decisions["deny"] != 60 {
		t.Errorf("decisions in the book: %v", decisions)
	}
	// After the first few from one address, the rest are folded into a count.
	if got := n.count(stream, `{"term":{"http.response.status_code":400}}`); got != malformed || malformed == 0 {
		t.Errorf("the server finds %d malformed requests, the book has %d", got, malformed)
	}
	var backing map[string]struct {
		Settings struct {
			Index struct {
				Codec    string
				Translog struct{ Durability string }
			}
		}
	}
	n.ask(200, "GET", "/"+stream+"/_settings", "", &backing)
	for name, one := range backing {
		if one.Settings.Index.Translog.Durability != "request" || one.Settings.Index.Codec != "best_compression" {
			t.Errorf("%s: %+v", name, one)
		}
	}

	g.command(0, "sink", "replay", "siem", "--from", "0")
	book, st = g.caughtUp()
	if st.Quarantine != 0 {
		t.Errorf("after the replay: %+v", st)
	}
	same(t, n, stream, book)
	g.stop()

	// There is no index state management in the server, and that is said.
	if said := g.command(1, "sink", "setup", "siem", "--lifecycle"); !strings.Contains(said, "ISM policy") || !strings.Contains(said, "no handler found") {
		t.Errorf("setting up a lifecycle: %s", said)
	}
}

// Without templates the server makes a plain index and guesses types: that counts as
// nothing delivered, and is said until it was put right.
func testNotSetUp(t *testing.T, bin string, n *node) {
	const stream = "logs-gatebook.forgotten-default"
	g := newGate(t, bin, n, stream)
	g.start()
	g.mixed(10)
	st := g.until("paused", func(st sinkStatus) bool { return st.State == "paused_by_sink" })
	if st.Cursor != 0 || len(st.Delivered) != 0 || st.Why != "plain_index" {
		t.Errorf("%+v", st)
	}
	if said := g.command(1, "sink", "setup", "siem"); !strings.Contains(said, "there is a plain index of that name") {
		t.Errorf("setting up beside the index: %s", said)
	}
	n.ask(200, "DELETE", "/"+stream, "", nil)
	g.command(0, "sink", "setup", "siem")
	g.command(0, "sink", "resume", "siem")
	book, _ := g.caughtUp()
	same(t, n, stream, book)
	g.stop()
}

// The gate dies under load again and again: nothing is missing, nothing twice.
func testGateKilled(t *testing.T, bin string, n *node) {
	const stream = "logs-gatebook.killed-default"
	g := newGate(t, bin, n, stream)
	g.command(0, "sink", "setup", "siem")
	rng := rand.New(rand.NewPCG(0x6f70656e, 1))
	for k := range 3 {
		g.start()
		var stop atomic.Bool
		var load sync.WaitGroup
		for range 3 {
			load.Go(func() {
				for !stop.Load() {
					g.send("GET", "/v1/orders/1", 0) // may be cut off
					g.send("DELETE", "/v1/orders/1", 0)
				}
			})
		}
		before := g.until("cursor", func(st sinkStatus) bool { return st.State != "starting" }).Cursor
		g.until("delivering", func(st sinkStatus) bool { return st.Cursor > before+100 })
		time.Sleep(time.Duration(rng.IntN(700)) * time.Millisecond) // any moment, so that is what is waited for
		g.kill()
		stop.Store(true)
		load.Wait()
		t.Logf("kill %d: the cursor was beyond %d", k, before)
	}
	g.start()
	book, st := g.caughtUp()
	if st.Quarantine != 0 {
		t.Errorf("%+v", st)
	}
	same(t, n, stream, book)
	t.Logf("%d records", len(book))
	g.stop()
}

// A mapping refuses some records: they are in quarantine and hold up nothing, and are
// delivered when the mapping is mended.
func testQuarantine(t *testing.T, bin string, n *node) {
	const stream = "logs-gatebook.quarantine-default"
	template := func(number string) string {
		return fmt.Sprintf(`{"priority":600,"index_patterns":[%q],"data_stream":{},"composed_of":["gatebook-ecs","gatebook-settings"],
			"template":{"mappings":{"properties":{"http":{"properties":{"request":{"properties":{"body":{"properties":{"bytes":{"type":%q,"ignore_malformed":false}}}}}}}}}}}`, stream, number)
	}
	g := newGate(t, bin, n, stream)
	// Somebody's own template is above ours, and thinks that bodies are small.
	n.ask(200, "PUT", "/_index_template/somebodys", template("byte"), nil)
	g.command(0, "sink", "setup", "siem")
	g.start()
	for i := range 40 {
		size := 100
		if i%20 == 7 {
			size = 300
		}
		if status, err := g.send("POST", "/v1/orders", size); err != nil || status != 200 {
			t.Fatalf("status %d: %v", status, err)
		}
	}
	book, st := g.caughtUp()
	if st.Quarantine != 2 {
		t.Fatalf("%+v", st)
	}
	var list []struct {
		ID            string
		Index         uint64
		Cause, Detail string
		Status        int
	}
	if err := json.Unmarshal([]byte(g.command(0, "sink", "quarantine", "siem", "--json")), &list); err != nil || len(list) != 2 {
		t.Fatalf("%v: %+v", err, list)
	}
	held := n.held(stream)
	for i := range book {
		if refused := i == list[0].Index || i == list[1].Index; len(held[i]) == 1 == refused {
			t.Errorf("record %d is there %d times", i, len(held[i]))
		}
	}
	for _, q := range list {
		if q.Cause != "mapping" || q.Status != 400 || !strings.Contains(q.Detail, "http.request.body.bytes") || strings.Contains(q.Detail, "300") {
			t.Errorf("%+v", q)
		}
	}
	// Nothing was mended: they are refused again.
	g.command(0, "sink", "requeue", "siem", "--all")
	book, st = g.caughtUp()
	if st.Quarantine != 2 {
		t.Errorf("requeued in vain: %+v", st)
	}
	n.ask(200, "PUT", "/_index_template/somebodys", template("long"), nil)
	n.ask(200, "POST", "/"+stream+"/_rollover", "", nil)
	g.command(0, "sink", "requeue", "siem", "--all")
	g.until("out of quarantine", func(st sinkStatus) bool { return st.Quarantine == 0 })
	book, _ = g.caughtUp()
	held = same(t, n, stream, book)
	if a, b := held[list[0].Index][0].Backing, held[0][0].Backing; a == b {
		t.Errorf("both are in %s: the stream did not roll over", a)
	}
	g.stop()
}

// The server is away for a while, and comes back with less patience for long
// requests: the lag is shown, and everything arrives, in halves.
func testAway(t *testing.T, bin string, n *node) {
	const stream = "logs-gatebook.away-default"
	g := newGate(t, bin, n, stream)
	g.command(0, "sink", "setup", "siem")
	g.start()
	g.mixed(50)
	g.caughtUp()
	n.stop()
	g.mixed(400)
	st := g.until("retrying", func(st sinkStatus) bool { return st.State == "retrying" && st.Lag >= 350 })
	if st.Quarantine != 0 || st.Retries["refused"] == 0 {
		t.Errorf("while the server is away: %+v", st)
	}
	if said := g.command(1, "sink", "test", "siem"); !strings.Contains(said, "refused") {
		t.Errorf("testing the sink: %s", said)
	}
	n.start("64kb")
	book, st := g.caughtUp()
	if st.Quarantine != 0 || st.Retries["http_413"] == 0 {
		t.Errorf("after the server came back: %+v", st)
	}
	same(t, n, stream, book)
	t.Logf("tries that failed: %v", st.Retries)
	g.stop()
}

// The server is killed while it is delivered to: what it had called created is there.
func testServerKilled(t *testing.T, bin string, n *node) {
	const stream = "logs-gatebook.dead-default"
	g := newGate(t, bin, n, stream)
	g.command(0, "sink", "setup", "siem")
	g.start()
	var load sync.WaitGroup
	var stop atomic.Bool
	load.Go(func() {
		for !stop.Load() {
			if _, err := g.send("GET", "/v1/orders/1", 0); err != nil {
				t.Errorf("a dead sink is felt: %v", err)
				return
			}
		}
	})
	g.until("delivering", func(st sinkStatus) bool { return st.Cursor > 500 })
	n.kill()
	stop.Store(true)
	load.Wait()
	g.until("retrying", func(st sinkStatus) bool { return st.State == "retrying" })
	n.start("100mb")
	book, st := g.caughtUp()
	if st.Quarantine != 0 {
		t.Errorf("%+v", st)
	}
	same(t, n, stream, book)
	t.Logf("%d records, tries that failed: %v", len(book), st.Retries)
	g.stop()
}
