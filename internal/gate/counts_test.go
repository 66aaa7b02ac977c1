package gate

import (
	"fmt"
	"io"
	"maps"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/reason"
)

// finished is what a gate has counted.
func finished(g *Gate) map[string]uint64 {
	out := map[string]uint64{}
	g.Finished(func(kind, why, class string, n uint64) { out[kind+" "+why+" "+class] += n })
	return out
}

// since is what has been added.
func since(before, now map[string]uint64) map[string]uint64 {
	maps.DeleteFunc(now, func(k string, n uint64) bool { return n == before[k] })
	for k := range now {
		now[k] -= before[k]
	}
	return now
}

// TestFinished: every way through the pipeline is counted once, with the kind,
// reason and status of its record.
func TestFinished(t *testing.T) {
	for _, w := range ways() {
		t.Run(w.name, func(t *testing.T) {
			h := newHouse(t, w.conf)
			for range w.before {
				if _, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil)); err != nil {
					t.Fatal(err)
				}
				<-h.book.done
			}
			before := finished(h.gate)
			method, path := w.method, w.path
			if method == "" {
				method = "GET"
			}
			if path == "" {
				path = "/v1/orders/42?x=1"
			}
			var in io.Reader
			if w.body != nil {
				in = w.body()
			}
			resp, _, err := do(t, h.h1, h.request(t, method, path, in, w.fields...))
			if err == nil && resp == nil {
				t.Fatal("neither an answer nor an error")
			}
			rec := h.one(t).rec
			h.server.Close() // what was cut off may still be ending
			why := rec.Error.Reason
			if why == "" {
				why = "none"
			}
			want := map[string]uint64{fmt.Sprintf("%s %s %dxx", rec.Kind, why, rec.Status/100): 1}
			if got := since(before, finished(h.gate)); !maps.Equal(got, want) {
				t.Errorf("counted %v, want %v", got, want)
			}
		})
	}
}

// TestFinishedWithoutBook: what the book does not take is counted with the
// book's reason and with what the client got.
func TestFinishedWithoutBook(t *testing.T) {
	for _, c := range []struct {
		fail OnFailure
		want string
	}{{Refuse, "request book_full 5xx"}, {Allow, "request book_full 2xx"}} {
		book := newFakeBook()
		book.commitErr = bookError("book_full")
		h := newHouse(t, houseConfig{book: book, tune: func(r *Route) { r.Audit.OnFailure = c.fail }})
		if _, _, err := do(t, h.h1, h.request(t, "GET", "/v1/orders/1", nil)); err != nil {
			t.Fatal(err)
		}
		if got := finished(h.gate); !maps.Equal(got, map[string]uint64{c.want: 1}) {
			t.Errorf("counted %v, want %s", got, c.want)
		}
		if _, err := h.gate.Refuse(&ConnFacts{}, Refusal{Kind: record.KindHandshake, Reason: reason.TLSHandshake}); err == nil {
			t.Error("the book took it")
		}
		if got := finished(h.gate)["handshake book_full none"]; got != 1 {
			t.Errorf("the refusal is counted %d times", got)
		}
	}
}

// TestCounts: all combinations have a place of their own, and what is in no
// list has one too.
func TestCounts(t *testing.T) {
	g := &Gate{counts: newCounts()}
	n := 0
	for _, kind := range countKinds {
		for _, why := range append(reason.All(), "", "made_up") {
			for _, status := range []int{0, 101, 204, 308, 499, 504} {
				n++
				g.counts.add(kind, why, status)
			}
		}
	}
	got := finished(g)
	for k, times := range got {
		if times != 1 {
			t.Errorf("%s: %d", k, times)
		}
	}
	if len(got) != n || n != len(g.counts.n) {
		t.Errorf("%d combinations, %d counted, room for %d", n, len(got), len(g.counts.n))
	}
	for _, k := range []string{"request none 2xx", "handshake tls_version none", "malformed _other 4xx"} {
		if got[k] != 1 {
			t.Errorf("no %s in %v", k, got)
		}
	}
	g.counts.add("request", reason.NoRoute, 999)
	g.counts.add("request", reason.NoRoute, -1)
	if got := finished(g)["request no_route none"]; got != 3 {
		t.Errorf("what is no status: %d", got)
	}
	if allocs := testing.AllocsPerRun(100, func() { g.counts.add("malformed", reason.BadPath, 400) }); allocs != 0 {
		t.Errorf("%v allocations", allocs)
	}
	for k := range got {
		if strings.Count(k, " ") != 2 {
			t.Errorf("%q", k)
		}
	}
}
