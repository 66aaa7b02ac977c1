package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"go/ast"
	"go/parser"
	gotoken "go/token"
	"maps"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// event is one way an exchange can go: what the client gets, what the book
// keeps and what is counted. Each has a network of its own, by which its
// records are known.
type event struct {
	row  string // of the list of events
	name string

	// What the record says. The kind "" is for what leaves no record.
	kind, reason, phase string
	status              int

	// What the client gets: the status of an answer, 0 for none. The text of a
	// refusal follows from its reason.
	wire   int
	plain  bool              // the answer is not one of the gate's problems
	fields map[string]string // of the answer
	closed bool              // the connection ends with it

	prepare func(v *visit) error          // once, before
	do      func(v *visit) (reply, error) // leaves the one record
	beside  map[string]int                // records that the way there leaves besides
	fold    bool                          // a flood of it is counted
	often   bool                          // a flood of it is written, to the last one
	atOnce  bool                          // it takes a while, so a flood of it comes all at once
	slow    bool                          // the same, and it waits for the gate to lose patience
	at      stage
}

// stage says when in the life of a gate an event can be had.
type stage int

const (
	serving stage = iota
	stopping
)

// burst is how often an event that folds is repeated.
const burst = 40

// key names what a record is counted as.
func key(kind, why string, status int) string {
	class := "none"
	if status > 0 {
		class = fmt.Sprintf("%dxx", status/100)
	}
	if why == "" {
		why = "none"
	}
	return kind + " " + why + " " + class
}

// counted is what n times the event adds to the counter.
func (e *event) counted(n int) map[string]int {
	want := map[string]int{}
	maps.Copy(want, e.beside)
	if e.kind != "" {
		want[key(e.kind, e.reason, e.status)] += n
	}
	return want
}

// outcome is what the record must say of it.
func (e *event) outcome() string {
	if e.reason == "" && e.status < 400 {
		return "success"
	}
	return "failure"
}

// visit is a client that brings an event about, once or in a burst.
type visit struct {
	w    *world
	e    *event
	n    int // times
	from net.IP

	mu      sync.Mutex
	conns   []net.Conn // mu
	waiting []waiting  // half of what is to be said

	answers []reply
	moved   map[string]int // of the counter
	took    time.Duration
	err     error
}

func (v *visit) network() string { return fmt.Sprintf("127.%d.%d.0/24", v.from[1], v.from[2]) }

// run brings the event about.
func (v *visit) run() {
	if v.e.prepare != nil {
		v.err = v.e.prepare(v)
	}
	begun := time.Now()
	if v.e.atOnce {
		v.together()
		return
	}
	for i := 0; i < v.n && v.err == nil; i++ {
		var r reply
		if r, v.err = v.e.do(v); v.err == nil {
			v.answers = append(v.answers, r)
		}
	}
	v.took = time.Since(begun)
}

func (v *visit) hangUp() {
	v.mu.Lock()
	defer v.mu.Unlock()
	for _, c := range v.conns {
		c.Close()
	}
	v.conns = nil
}

// together repeats a slow event all at once.
func (v *visit) together() {
	var mu sync.Mutex
	var wg sync.WaitGroup
	for range v.n {
		wg.Go(func() {
			r, err := v.e.do(v)
			mu.Lock()
			defer mu.Unlock()
			v.answers, v.err = append(v.answers, r), errors.Join(v.err, err)
		})
	}
	wg.Wait()
}

// sample is a member of the counter's family.
var sample = regexp.MustCompile(`(?m)^gatebook_records_total\{class="(\w+)",kind="(\w+)",reason="(\w+)"\} (\d+)$`)

// counters reads gatebook_records_total. Those who wait for the gate to lose
// patience run beside the others, so theirs are left out unless asked for.
func (w *world) counters(slow bool) map[string]int {
	w.t.Helper()
	resp, err := http.Get("http://" + w.health + "/metrics")
	if err != nil {
		w.t.Fatal(err)
	}
	defer resp.Body.Close()
	var b strings.Builder
	if err := resp.Write(&b); err != nil {
		w.t.Fatal(err)
	}
	out := map[string]int{}
	for _, m := range sample.FindAllStringSubmatch(b.String(), -1) {
		if n, err := strconv.Atoi(m[4]); err == nil && (m[3] == string(reason.TimeoutReading)) == slow {
			out[m[2]+" "+m[3]+" "+m[1]] = n
		}
	}
	return out
}

func sum(m map[string]int) (n int) {
	for _, k := range m {
		n += k
	}
	return n
}

// watched runs a visit and keeps what it moved the counter by. A client that
// goes away does not see its record made, so that is waited for.
func (w *world) watched(v *visit, run func()) {
	w.t.Helper()
	before := w.counters(false)
	run()
	v.hangUp()
	enough := sum(before) + sum(v.e.counted(v.n))
	after := w.counters(false)
	late := time.After(time.Minute)
	for sum(after) < enough && v.err == nil {
		select {
		case <-late:
			v.err = errors.New("gatebook_records_total does not move")
		case <-time.After(5 * time.Millisecond):
			after = w.counters(false)
		}
	}
	v.moved = map[string]int{}
	for k, n := range after {
		if d := n - before[k]; d != 0 {
			v.moved[k] = d
		}
	}
}

// kept is what a record tells of an event.
type kept struct {
	ID      string
	Kind    string
	Outcome string
	Status  int
	Client  struct{ Prefix string }
	Error   struct{ Origin, Reason, Phase string }
	Event   struct {
		Name  string
		Count int
	}
}

func (k *kept) key() string { return key(k.Kind, k.Error.Reason, k.Status) }

// kept reads all records of exchanges, by the network they came from.
func (w *world) kept() map[string][]kept {
	w.t.Helper()
	out := map[string][]kept{}
	text := w.command(0, "search", `kind == "request" || kind == "malformed" || kind == "handshake" || kind == "interrupted"`, "--json")
	for line := range strings.Lines(text) {
		var r struct{ Frame kept }
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			w.t.Fatalf("%v: %s", err, line)
		}
		out[r.Frame.Client.Prefix] = append(out[r.Frame.Client.Prefix], r.Frame)
	}
	return out
}

// TestEvents is the list of events against the real program: each of its rows,
// and each reason that is the client's or a limit's, is brought about once from
// outside. The client must get what the list says, the book must hold exactly
// one record of it, and the counter must move by exactly one; of a burst of
// what folds, records and counts must add up.
func TestEvents(t *testing.T) {
	complete(t, eventTable())
	w := newWorld(t)
	w.start()
	died := w.dies()
	w.start()
	visits := w.visits()
	w.runAll(visits)
	books := w.kept()
	t.Run("process died", func(t *testing.T) {
		got := books[w.network(diedNetwork)]
		if len(got) != 1 || got[0].ID != died || got[0].Kind != "interrupted" || got[0].Outcome != "unknown" || got[0].Error.Reason != "" {
			t.Errorf("request %s: %+v", died, got)
		}
	})
	for _, v := range visits {
		name := v.e.row + "/" + v.e.name
		if v.n > 1 {
			name += ", flooded"
		}
		t.Run(name, func(t *testing.T) {
			if v.err != nil {
				t.Fatal(v.err)
			}
			for _, a := range v.answers {
				v.e.checkAnswer(t, a)
			}
			if want := v.e.counted(v.n); !v.e.slow && v.e.at == serving && !maps.Equal(v.moved, want) {
				t.Errorf("gatebook_records_total moved by %v, want %v", v.moved, want)
			}
			if v.n == 1 {
				v.e.checkRecord(t, books[v.network()], v.answers[0])
			} else {
				v.checkFlood(t, books[v.network()])
			}
			delete(books, v.network())
		})
	}
	if held := books[w.network(heldNetwork)]; len(held) != 1 || held[0].Status != 200 || held[0].Outcome != "success" {
		t.Errorf("the request that kept the stop waiting: %+v", held)
	}
	delete(books, w.network(diedNetwork))
	delete(books, w.network(heldNetwork))
	for network, left := range books {
		t.Errorf("%s: records that no event accounts for: %+v", network, left)
	}
	w.command(0, "verify")
}

// runAll brings all events about: the slow ones beside the others, those of the
// end last. The counter must add up in the end.
func (w *world) runAll(visits []*visit) {
	w.t.Helper()
	var slow sync.WaitGroup
	want := map[string]int{}
	for _, v := range visits {
		if v.e.slow {
			slow.Go(v.together)
			want[key(v.e.kind, v.e.reason, v.e.status)] += v.n
		}
	}
	for _, v := range visits {
		if !v.e.slow && v.e.at == serving {
			w.watched(v, v.run)
		}
	}
	slow.Wait()
	if got := w.counters(true); !maps.Equal(got, want) {
		w.t.Errorf("of those that waited, gatebook_records_total is %v, want %v", got, want)
	}
	if got, want := metric(w.t, w.health, "gatebook_h2_floods_total"), 1.0; got != want {
		w.t.Errorf("gatebook_h2_floods_total is %v, want %v", got, want)
	}
	if got, want := metric(w.t, w.health, "gatebook_book_blindness"), 0.0; got != want {
		w.t.Errorf("gatebook_book_blindness is %v", got)
	}
	var last []*visit
	for _, v := range visits {
		if v.e.at == stopping {
			last = append(last, v)
		}
	}
	w.stopWith(last)
}

// checkAnswer looks at what the client got.
func (e *event) checkAnswer(t *testing.T, a reply) {
	t.Helper()
	if a.status != e.wire || a.closed != e.closed {
		t.Errorf("status %d, connection ended: %v; want %d, %v\n%s", a.status, a.closed, e.wire, e.closed, a.body)
	}
	for name, want := range e.fields {
		if got := a.header.Get(name); got != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
	}
	if e.wire == 0 || e.plain {
		return
	}
	if e.reason == "" {
		if a.id() == "" {
			t.Error("no request id")
		}
		return
	}
	var p struct {
		Type, Title string
		Status      int
		RequestID   string `json:"request_id"`
	}
	r := reason.Reason(e.reason)
	if err := json.Unmarshal([]byte(a.body), &p); err != nil || a.header.Get("Content-Type") != "application/problem+json" {
		t.Errorf("no problem details: %v: %s %v", err, a.body, a.header)
	}
	if p.Type != "about:blank" || p.Title != r.Public() || p.Status != e.wire || p.RequestID != a.id() || p.RequestID == "" {
		t.Errorf("problem %+v, request id %q", p, a.id())
	}
	if strings.Contains(a.body, e.reason) {
		t.Errorf("the answer tells the exact reason: %s", a.body)
	}
	challenge, code := "", r.OAuthError()
	if e.wire == 401 || code != "" {
		challenge = `Bearer realm="gatebook"`
	}
	if code != "" {
		challenge += fmt.Sprintf(", error=%q", code)
	}
	if got := a.header.Get("WWW-Authenticate"); e.fields["WWW-Authenticate"] == "" && got != challenge {
		t.Errorf("challenge %q, want %q", got, challenge)
	}
	if limited := a.header.Get("Retry-After") != "" && a.header.Get("RateLimit") != "" && a.header.Get("RateLimit-Policy") != ""; limited != (e.wire == 429) {
		t.Errorf("status %d with fields %v", e.wire, a.header)
	}
}

// checkRecord looks for exactly one record of the event among those of its
// network.
func (e *event) checkRecord(t *testing.T, got []kept, a reply) {
	t.Helper()
	all := map[string]int{}
	var mine *kept
	for i := range got {
		k := &got[i]
		if k.Event.Name == "fold" {
			all[k.key()] += k.Event.Count
			continue
		}
		all[k.key()]++
		if k.key() == key(e.kind, e.reason, e.status) && (a.id() == "" || k.ID == a.id()) {
			mine = k
		}
	}
	if want := e.counted(1); !maps.Equal(all, want) {
		t.Errorf("records %v, want %v", all, want)
	}
	switch {
	case e.kind == "":
	case mine == nil:
		t.Errorf("no record %s: %+v", a.id(), got)
	case mine.Kind != e.kind || mine.Outcome != e.outcome() || mine.Status != e.status || mine.Error.Phase != e.phase || mine.Error.Origin != origin(e.reason):
		t.Errorf("recorded %+v, want kind %q outcome %q status %d phase %q", *mine, e.kind, e.outcome(), e.status, e.phase)
	}
}

func origin(why string) string {
	if why == "" {
		return ""
	}
	return reason.Reason(why).Origin()
}

// checkFlood adds up records and counts.
func (v *visit) checkFlood(t *testing.T, got []kept) {
	t.Helper()
	all, folded := map[string]int{}, 0
	for _, k := range got {
		if k.Event.Name == "fold" {
			all[k.key()] += k.Event.Count
			folded += k.Event.Count
		} else {
			all[k.key()]++
		}
	}
	if want := v.e.counted(v.n); !maps.Equal(all, want) {
		t.Errorf("records and counts %v, want %v", all, want)
	}
	switch {
	case v.e.often && folded > 0:
		t.Errorf("%d of %d were counted instead of written", folded, v.n)
	case v.e.fold && v.e.at == serving && !v.e.slow && v.took < time.Second && folded == 0:
		t.Errorf("%d in %v, and none of them was counted", v.n, v.took)
	}
}

// complete checks that nothing is left out: neither a row of the list, nor a
// reason.
func complete(t *testing.T, events []event) {
	t.Helper()
	rows, reasons, folds := map[string]bool{}, map[string]bool{}, map[string]bool{}
	for _, e := range events {
		if rows[e.row+"/"+e.name] {
			t.Errorf("%s/%s is there twice", e.row, e.name)
		}
		rows[e.row], rows[e.row+"/"+e.name] = true, true
		folds[e.row] = folds[e.row] || e.fold
		reasons[e.reason] = true
	}
	tests := testNames(t)
	stands := func(what string, el elsewhere) {
		t.Helper()
		if el.why == "" || (el.test != "") != slices.Contains(tests, el.test) {
			t.Errorf("%s: %q is not a test (%s)", what, el.test, el.why)
		}
	}
	for _, row := range eventRows {
		el, other := rowsElsewhere[row.name]
		if rows[row.name] == other {
			t.Errorf("the row %q must have an event or stand in the list of those that have none", row.name)
		}
		if other {
			stands(row.name, el)
			continue
		}
		if folds[row.name] != row.folds {
			t.Errorf("the row %q: may be counted: %v, has a flood: %v", row.name, row.folds, folds[row.name])
		}
	}
	for _, e := range events {
		if !slices.ContainsFunc(eventRows, func(r eventRow) bool { return r.name == e.row }) {
			t.Errorf("%s/%s: there is no such row", e.row, e.name)
		}
		if e.reason != "" && !reason.Reason(e.reason).Valid() {
			t.Errorf("%s/%s: there is no such reason", e.row, e.name)
		}
	}
	for _, r := range reason.All() {
		el, other := reasonsElsewhere[string(r)]
		if reasons[string(r)] == other {
			t.Errorf("the reason %s must have an event or stand in the list of those that have none", r)
		}
		if other {
			stands(string(r), el)
		}
	}
	unused(t)
	if n := len(reasonsElsewhere) + len(reasons) - 1; n != len(reason.All()) {
		t.Errorf("%d reasons are accounted for, the list has %d", n, len(reason.All()))
	}
}

// testNames are the tests of the whole tree as FOLDER.TestName.
func testNames(t *testing.T) (names []string) {
	t.Helper()
	root := filepath.Join("..", "..")
	for _, dir := range []string{"internal", "cmd"} {
		err := filepath.WalkDir(filepath.Join(root, dir), func(path string, d os.DirEntry, err error) error {
			if err != nil || !strings.HasSuffix(path, "_test.go") {
				return err
			}
			f, err := parser.ParseFile(gotoken.NewFileSet(), path, nil, parser.SkipObjectResolution)
			if err != nil {
				return err
			}
			folder, err := filepath.Rel(root, filepath.Dir(path))
			for _, decl := range f.Decls {
				if fn, ok := decl.(*ast.FuncDecl); ok && fn.Recv == nil && strings.HasPrefix(fn.Name.Name, "Test") {
					names = append(names, filepath.ToSlash(folder)+"."+fn.Name.Name)
				}
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	return names
}

// unused checks that what this release is said not to do is not in its code.
func unused(t *testing.T) {
	t.Helper()
	root := filepath.Join("..", "..", "internal")
	constants := map[string]string{} // by name, of those without a test
	list, err := parser.ParseFile(gotoken.NewFileSet(), filepath.Join(root, "reason", "reason.go"), nil, parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	ast.Inspect(list, func(n ast.Node) bool {
		if c, ok := n.(*ast.ValueSpec); ok && len(c.Values) == 1 {
			if v, ok := c.Values[0].(*ast.BasicLit); ok {
				why, err := strconv.Unquote(v.Value)
				if el, other := reasonsElsewhere[why]; err == nil && other && el.test == "" {
					constants[c.Names[0].Name] = why
				}
			}
		}
		return true
	})
	err = filepath.WalkDir(root, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() || filepath.Ext(path) != ".go" || strings.HasSuffix(path, "_test.go") || strings.HasSuffix(path, "gate/problem.go") || strings.Contains(path, "gate/abuse") {
			return err // these say something of each reason and give none
		}
		b, err := os.ReadFile(path)
		for _, m := range reasonUse.FindAllSubmatch(b, -1) {
			if why, ok := constants[string(m[1])]; ok {
				t.Errorf("%s uses the reason %s, which this release is said not to have", path, why)
			}
		}
		return err
	})
	if err != nil || len(constants) == 0 {
		t.Fatalf("%v, %d reasons", err, len(constants))
	}
}

// reasonUse is a reason in code.
var reasonUse = regexp.MustCompile(`\breason\.([A-Z]\w+)`)
