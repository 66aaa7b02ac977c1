package query

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
)

// begin is when the first request of the library came; there is one a minute.
var begin = time.Date(2026, 3, 1, 12, 0, 0, 0, time.UTC)

// newReader makes a book with 24 requests and reads it: n is of person n%3,
// denied if n%4 is 3, a POST if n%2 is 1. The first half is sealed.
func newReader(t testing.TB) (*book.Reader, []record.ID) {
	t.Helper()
	ctx := context.Background()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c := book.Config{Dir: t.TempDir(), KeyDir: filepath.Join(t.TempDir(), "keys"), Prefix: "log.example", Node: "n1"}
	_, err := book.Create(ctx, c)
	must(err)
	rules, err := redact.New(redact.Config{Names: redact.Names{Routes: []string{"a"}, Templates: []string{"/a/{id}"}, Roles: []string{"clerk"}}})
	must(err)
	var ids []record.ID
	for half := range 2 {
		b, err := book.Open(ctx, c)
		must(err)
		rec := b.Recorder(rules, "00112233445566778899aabbccddeeff")
		for n := 12 * half; n < 12*half+12; n++ {
			r := &record.Record{
				ID: b.NewID(begin), Time: begin.Add(time.Duration(n) * time.Minute).UnixMicro(), Kind: record.KindRequest, Outcome: record.Success,
				Route: "a", Op: "GET /a/{id}", Template: "/a/{id}", Method: "GET", Status: 200, BytesOut: int64(n), Client: record.Client{Prefix: "192.0.2.0/24"},
				Authn:    record.Authn{Method: "jwt", Roles: []string{"clerk"}, Outcome: "ok"},
				Authz:    record.Authz{Decision: "allow", Policies: []string{"open"}},
				Personal: record.Personal{Sub: fmt.Sprintf("person-%d", n%3)},
				Raw:      record.Raw{IssuerSub: fmt.Sprintf("corp|person-%d", n%3), Path: fmt.Sprintf("/a/%d", n), RemoteAddr: fmt.Sprintf("192.0.2.%d", n)},
			}
			if n%2 == 1 {
				r.Method, r.Op = "POST", "POST /a/{id}"
			}
			if n%4 == 3 {
				r.Status, r.Outcome, r.Authz.Decision = 403, record.Failure, "deny"
				r.Error = record.Error{Origin: "policy", Reason: "denied_by_policy"}
			}
			must(rec.Commit(ctx, record.Ref{}, r, record.Written))
			ids = append(ids, r.ID)
		}
		must(b.Close(ctx))
	}
	rd, err := book.OpenReader(ctx, c)
	must(err)
	t.Cleanup(func() { rd.Close() })
	return rd, ids
}

// found are the numbers of the requests that a query gives, in order.
func found(t testing.TB, rd *book.Reader, q Query) ([]int, error) {
	t.Helper()
	var out []int
	err := Search(rd, q, func(m *Match) error {
		var f struct {
			Kind string `json:"kind"`
			N    int    `json:"bytes_out"`
		}
		if err := json.Unmarshal(m.Frame, &f); err != nil {
			return err
		}
		if f.Kind == "request" {
			out = append(out, f.N)
		}
		if q.Reveal != (m.Personal != nil) {
			t.Errorf("record %d: reveal is %v and the personal part %q", m.Index, q.Reveal, m.Personal)
		}
		return nil
	})
	return out, err
}

// numbers are those from 0 to 23 that keep says.
func numbers(keep func(n int) bool) []int {
	var out []int
	for n := range 24 {
		if keep(n) {
			out = append(out, n)
		}
	}
	return out
}

func TestSearch(t *testing.T) {
	rd, ids := newReader(t)
	every := numbers(func(int) bool { return true })
	at := func(n int) time.Time { return begin.Add(time.Duration(n) * time.Minute) }
	for _, c := range []struct {
		q    Query
		want []int
	}{
		{Query{}, every},
		{Query{Expr: "  \n"}, every},
		{Query{Expr: `status == 403`}, numbers(func(n int) bool { return n%4 == 3 })},
		{Query{Expr: `status >= 400 && method == "POST"`}, numbers(func(n int) bool { return n%4 == 3 })},
		{Query{Expr: `method == "POST" and not (authz.decision == "deny")`}, numbers(func(n int) bool { return n%4 == 1 })},
		{Query{Expr: `error.reason == "denied_by_policy" || bytes_out < 2`}, numbers(func(n int) bool { return n%4 == 3 || n < 2 })},
		{Query{Expr: `error.reason == ""`}, numbers(func(n int) bool { return n%4 != 3 })},
		{Query{Expr: `op startsWith "POST " && bytes_out in [1, 2, 3]`}, []int{1, 3}},
		{Query{Expr: `"clerk" in authn.roles`}, every},
		{Query{Expr: `"nobody" in authn.roles`}, nil},
		{Query{Expr: `"open" in authz.policies && bytes_out == 5`}, []int{5}},
		{Query{Expr: `id == "` + ids[7].String() + `"`}, []int{7}},
		{Query{Expr: `time >= "2026-03-01T12:22"`}, []int{22, 23}},
		{Query{Expr: `kind == "heartbeat"`}, nil},
		{Query{Expr: `kind matches "^req"`, Limit: 2}, []int{22, 23}},
		{Query{Since: at(20)}, []int{20, 21, 22, 23}},
		{Query{Until: at(3)}, []int{0, 1, 2}},
		{Query{Since: at(5), Until: at(7)}, []int{5, 6}},
		{Query{Since: at(7), Until: at(5)}, nil},
		{Query{Expr: `status == 403`, Limit: 1}, []int{23}},
		{Query{Expr: `status == 403`, Limit: 3}, []int{15, 19, 23}},
		{Query{Expr: `status == 403`, Limit: 100}, numbers(func(n int) bool { return n%4 == 3 })},
		{Query{Expr: `kind == "request"`, Limit: 24}, every},
		{Query{Expr: `kind == "request"`, Limit: 23}, every[1:]},
		{Query{Expr: `personal.sub == "person-1"`, Reveal: true}, numbers(func(n int) bool { return n%3 == 1 })},
		{Query{Expr: `personal.ip == "192.0.2.9" || personal.path == "/a/21"`, Reveal: true}, []int{9, 21}},
		{Query{Expr: `kind == "request"`, Reveal: true, Limit: 2}, []int{22, 23}},
		{Query{Expr: strings.Repeat("true && ", 60) + "bytes_out == 1"}, []int{1}},
	} {
		got, err := found(t, rd, c.q)
		if err != nil {
			t.Errorf("%+v: %v", c.q, err)
		} else if !slices.Equal(got, c.want) {
			t.Errorf("%+v gives %v, want %v", c.q, got, c.want)
		}
	}
}

func TestBadExpressions(t *testing.T) {
	rd, _ := newReader(t)
	for _, c := range []struct{ name, expr string }{
		{"syntax", `status ==`},
		{"no such field", `stats == 200`},
		{"no such field of a group", `authz.desicion == "deny"`},
		{"a Go name", `BytesOut == 1`},
		{"a Go method", `String() == ""`},
		{"another type", `status == "200"`},
		{"no yes or no", `status`},
		{"a text", `"yes"`},
		{"personal part without reveal", `personal.sub == "person-1"`},
		{"the whole personal part", `personal != nil`},
		{"a builtin", `len(authn.roles) > 0`},
		{"a loop", `all(authn.roles, true)`},
		{"a loop over many numbers", `any(1..1000000000, # == 5)`},
		{"loops in loops", strings.Repeat("any([1,2,3,4,5,6,7,8,9,10], ", 12) + "# < 0" + strings.Repeat(")", 12)},
		{"a range", `5 in bytes_out..1000000`},
		{"a long list", `(1..1000000)[5] == 6`},
		{"the environment", `$env["status"] == 200 ? true : len("x") > 1`},
		{"too many parts", strings.Repeat("status == 1 || ", 200) + "false"},
		{"too long", `method == "` + strings.Repeat("x", maxText) + `"`},
		{"deeply nested", strings.Repeat("(", 500) + "true" + strings.Repeat(")", 500) + "("},
		{"a bad pattern", `method matches "("`},
		{"a text that doubles", doubling(4)},
		{"a variable", `let m = method; m == "GET"`},
		{"a large pattern", `method matches "` + strings.Repeat("(?:.?){1000}", 100) + `"`},
		{"a pattern that repeats itself", `method matches "((x{10}){10}){10}"`},
		{"a pattern of many parts", `method matches "` + strings.Repeat("[a-z]", 501) + `"`},
		{"a pattern out of a record", `method matches route`},
		{"a pattern that is put together", `method matches ("G" + "ET")`},
	} {
		t.Run(c.name, func(t *testing.T) {
			got, err := found(t, rd, Query{Expr: c.expr})
			if err == nil {
				t.Fatalf("accepted, gives %v", got)
			}
			if !IsUsage(err) {
				t.Errorf("error %v is not one of the question", err)
			}
		})
	}
}

// doubling is an expression over a text that doubles so many times.
func doubling(times int) string {
	var b strings.Builder
	b.WriteString("let x0 = id;")
	for n := range times {
		fmt.Fprintf(&b, "let x%d = x%d + x%d;", n+1, n, n)
	}
	fmt.Fprintf(&b, `x%d == ""`, times)
	return b.String()
}

// TestCostOfExpressions: whoever may search cannot make a record cost more than a
// little memory and time. A text of 36 bytes that doubles 40 times is 40 TB.
func TestCostOfExpressions(t *testing.T) {
	rd, _ := newReader(t)
	for _, c := range []struct{ name, expr string }{
		{"doubling", doubling(40)},
		{"patterns", `op matches "` + strings.Repeat("(?:.?){1000}", 300) + `$"`},
		{"patterns that compile long", strings.Repeat(`method matches "(?:.?){1000}" || `, 60) + "false"},
	} {
		begun := time.Now()
		_, err := found(t, rd, Query{Expr: c.expr})
		if !IsUsage(err) {
			t.Errorf("%s: %v", c.name, err)
		}
		if d := time.Since(begun); d > 5*time.Second {
			t.Errorf("%s took %v", c.name, d)
		}
	}
	// What people write is taken.
	for _, expr := range []string{
		`op matches "^(GET|POST) /v[0-9]+/orders/\\{id\\}$"`,
		`client.prefix matches "^(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])(\\.(25[0-5]|2[0-4][0-9]|1?[0-9]?[0-9])){3}/[0-9]{1,2}$"`,
		`id matches "^[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}$"`,
		`route + " " + method == "a GET"`,
	} {
		if got, err := found(t, rd, Query{Expr: expr}); err != nil || len(got) == 0 && !strings.Contains(expr, "orders") {
			t.Errorf("%s: %v, %v", expr, got, err)
		}
	}
	if err := Search(rd, Query{Limit: MaxLimit + 1}, func(*Match) error { return nil }); !IsUsage(err) {
		t.Errorf("a limit that fills memory: %v", err)
	}
}

func TestCountBy(t *testing.T) {
	rd, _ := newReader(t)
	requests := Query{Expr: `kind == "request"`}
	for _, c := range []struct {
		by   string
		q    Query
		want []Count
	}{
		{"authz.decision", requests, []Count{{"allow", 18}, {"deny", 6}}},
		{"method", requests, []Count{{"GET", 12}, {"POST", 12}}},
		{"status", Query{Expr: `kind == "request" && method == "POST"`}, []Count{{"200", 6}, {"403", 6}}},
		{"status >= 400", requests, []Count{{"false", 18}, {"true", 6}}},
		{"personal.sub", Query{Expr: requests.Expr, Reveal: true}, []Count{{"person-0", 8}, {"person-1", 8}, {"person-2", 8}}},
		{"kind", Query{Expr: `kind == "alert"`}, []Count{}},
		{"route", Query{Since: begin.Add(22 * time.Minute), Until: begin.Add(time.Hour)}, []Count{{"a", 2}}},
	} {
		got, err := CountBy(rd, c.by, c.q, false)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("by %s of %+v: %v, %v; want %v", c.by, c.q, got, err, c.want)
		}
	}
	for _, by := range []string{"", "personal.sub", "nothing", "len(method)"} {
		if got, err := CountBy(rd, by, requests, false); !IsUsage(err) {
			t.Errorf("by %q: %v, %v", by, got, err)
		}
	}
}

// TestTally: neither many values nor long ones fill the memory.
func TestTally(t *testing.T) {
	for _, c := range []struct {
		name string
		size int
		most int
	}{{"many", 0, maxGroups}, {"long", 1 << 20, maxGroupBytes>>20 - 1}} {
		var all tally
		long, n := strings.Repeat("x", c.size), 0
		for all.add(long+fmt.Sprint(n), 2) == nil {
			n++
		}
		if n != c.most || len(all.counts) != n {
			t.Errorf("%s: %d values of %d bytes were counted, want %d", c.name, n, c.size, c.most)
		}
		if err := all.add(long+"0", 1); err != nil || all.counts[long+"0"] != 3 {
			t.Errorf("%s: one that is counted already: %v, %d", c.name, err, all.counts[long+"0"])
		}
		if err := all.add(long+"new", 1); !IsUsage(err) {
			t.Errorf("%s: one more: %v", c.name, err)
		}
	}
}

func TestFind(t *testing.T) {
	rd, ids := newReader(t)
	for n, id := range ids {
		for _, reveal := range []bool{false, true} {
			m, err := Find(rd, id.String(), reveal)
			if err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(string(m.Frame), fmt.Sprintf(`"id":%q`, id)) || strings.Contains(string(m.Personal), fmt.Sprintf("/a/%d\"", n)) != reveal {
				t.Errorf("request %d: %s %s", n, m.Frame, m.Personal)
			}
		}
	}
	if _, err := Find(rd, "no id", false); !IsUsage(err) {
		t.Errorf("what is no id: %v", err)
	}
	if _, err := Find(rd, record.ID{6: 0x70, 8: 0x80}.String(), false); !errors.Is(err, book.ErrNotFound) {
		t.Errorf("an id that nobody has: %v", err)
	}
}

// TestStop: whoever reads may stop.
func TestStop(t *testing.T) {
	rd, _ := newReader(t)
	enough := errors.New("enough")
	for _, limit := range []int{0, 5} {
		n := 0
		err := Search(rd, Query{Limit: limit}, func(*Match) error { n++; return enough })
		if !errors.Is(err, enough) || n != 1 {
			t.Errorf("limit %d: %v after %d", limit, err, n)
		}
	}
}

// FuzzExpression: no expression makes a search panic, and every error is one of
// the question.
func FuzzExpression(f *testing.F) {
	for _, s := range []string{`status >= 400 && route == "a"`, `"x" in authn.roles`, `time > "2026"`, `personal.ip == "1"`, `1..9`, `[1][5] == 1`, `kind matches method`, `-9223372036854775808 / -1 == 0`, `1 % 0 == 0`, `id[99:] == ""`, `authn?.roles[0] == ""`} {
		f.Add(s, false)
		f.Add(s, true)
	}
	rd, _ := newReader(f)
	f.Fuzz(func(t *testing.T, text string, reveal bool) {
		err := Search(rd, Query{Expr: text, Reveal: reveal, Limit: 3}, func(*Match) error { return nil })
		if err != nil && !IsUsage(err) {
			t.Fatalf("%q: %v", text, err)
		}
	})
}
