package query

import (
	"context"
	"fmt"
	"math/rand/v2"
	"path/filepath"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
)

// mixed makes a sealed book of n requests that differ in most fields.
func mixed(t testing.TB, n int) *book.Reader {
	t.Helper()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	c := book.Config{Dir: t.TempDir(), KeyDir: filepath.Join(t.TempDir(), "keys"), Prefix: "log.example", Node: "n1", CommitTimeout: time.Minute}
	_, err := book.Create(context.Background(), c)
	must(err)
	names := redact.Names{Templates: []string{"/a/{id}"}, Roles: []string{"clerk", "admin"}, Issuers: []string{"corp"}}
	for i := range 20 {
		names.Routes = append(names.Routes, fmt.Sprintf("route-%d", i))
	}
	rules, err := redact.New(redact.Config{Names: names})
	must(err)
	b, err := book.Open(context.Background(), c)
	must(err)
	rec := b.Recorder(rules, "00112233445566778899aabbccddeeff")
	rng := rand.New(rand.NewPCG(5, 6))
	for i := range n {
		r := &record.Record{
			ID: b.NewID(begin), Time: begin.Add(time.Duration(i) * time.Second).UnixMicro(), Kind: record.KindRequest, Outcome: record.Success,
			Route: fmt.Sprintf("route-%d", rng.IntN(20)), Op: "GET /a/{id}", Template: "/a/{id}", Method: "GET", Status: 200,
			BytesOut: rng.Int64N(5000), DurUS: rng.Int64N(100_000), Client: record.Client{Prefix: "192.0.2.0/24", Hops: rng.IntN(3)},
			Authn:    record.Authn{Method: "jwt", Issuer: "corp", Roles: []string{"clerk"}, Outcome: "ok", TTLS: rng.Int64N(300)},
			Authz:    record.Authz{Decision: "allow", Policies: []string{"open"}},
			Upstream: record.Upstream{Name: "orders", Attempts: 1, Reused: rng.IntN(2) == 0, TTFBUS: rng.Int64N(50_000)},
			Personal: record.Personal{Sub: fmt.Sprintf("person-%d", rng.IntN(50))},
			Raw:      record.Raw{IssuerSub: fmt.Sprintf("corp|person-%d", i%50), RemoteAddr: "192.0.2.1"},
		}
		switch rng.IntN(10) {
		case 0:
			r.Status, r.Outcome, r.Authz.Decision = 403, record.Failure, "deny"
			r.Error = record.Error{Origin: "policy", Reason: "denied_by_policy"}
		case 1:
			r.Status, r.Authn = 401, record.Authn{Method: record.None, Outcome: "failed", Reason: "token_expired"}
			r.Error = record.Error{Origin: "identity", Reason: "token_expired"}
		case 2:
			r.Authn.Roles = []string{"admin", "clerk"}
		}
		must(rec.Commit(context.Background(), record.Ref{}, r, record.Written))
	}
	must(b.Close(context.Background()))
	rd, err := book.OpenReader(context.Background(), c)
	must(err)
	t.Cleanup(func() { rd.Close() })
	return rd
}

// TestSieveAgrees: what a sieve leaves is what looking at every record finds.
func TestSieveAgrees(t *testing.T) {
	rd := mixed(t, 3000)
	minute := begin.Add(time.Minute)
	for _, tc := range []struct {
		q      Query
		sieved bool
	}{
		{Query{}, false},
		{Query{Expr: `id == "x"`}, false},
		{Query{Expr: `index > 100 && status == 200`}, false},
		{Query{Expr: `upstream.reused`}, false},
		{Query{Expr: `status == 403`, Reveal: true}, false},
		{Query{Since: minute, Until: minute.Add(time.Minute)}, true},
		{Query{Expr: `status == 403`}, true},
		{Query{Expr: `status >= 400 && status < 403`}, true},
		{Query{Expr: `not (status == 200)`, Since: minute}, true},
		{Query{Expr: `route == "route-3" || route == "route-4" and status != 200`}, true},
		{Query{Expr: `route in ["route-1", "route-9"]`, Limit: 7}, true},
		{Query{Expr: `authn.method == "none" && authn.reason == "token_expired"`}, true},
		{Query{Expr: `"admin" in authn.roles`}, true},
		{Query{Expr: `authz.decision == "deny" && authz.decision != authn.outcome`}, true},
		{Query{Expr: `dur_us > 90000`}, true},
		{Query{Expr: `bytes_out < 100 && route == "route-5" || upstream.ttfb_us > dur_us`}, true},
		{Query{Expr: `authn.ttl_s + 1 > 290 && client.hops == 2`}, true},
		{Query{Expr: `route startsWith "route-1"`}, true},
		{Query{Expr: `method matches "^G"`}, true},
		{Query{Expr: `kind == "start" or event.name == "stop"`}, true},
		{Query{Expr: `status / 0 == 1`}, true},
		{Query{Expr: `true`}, true},
	} {
		f, err := compile(tc.q)
		if err != nil {
			t.Fatalf("%s: %v", tc.q.Expr, err)
		}
		if s := newSieve(f); (s != nil) != tc.sieved {
			t.Errorf("%s: sieved is %v", tc.q.Expr, s != nil)
		}
		gather := func(each func(func(*book.Entry) error) error) (at []uint64, asked int, err error) {
			err = each(func(e *book.Entry) error {
				asked++
				ok, err := f.match(e)
				if ok {
					at = append(at, e.Index)
				}
				return err
			})
			return at, asked, err
		}
		got, asked, gotErr := gather(func(fn func(*book.Entry) error) error { return f.each(rd, fn) })
		want, all, wantErr := gather(func(fn func(*book.Entry) error) error { return rd.Each(0, rd.Size(), tc.q.Reveal, fn) })
		if fmt.Sprint(got) != fmt.Sprint(want) || (gotErr == nil) != (wantErr == nil) {
			t.Errorf("%s: %d found and %v, want %d and %v", tc.q.Expr, len(got), gotErr, len(want), wantErr)
		}
		if tc.sieved && wantErr == nil && asked > len(want)+all-3000 {
			t.Errorf("%s: %d of %d records were looked at for %d", tc.q.Expr, asked, all, len(want))
		}
	}
}

// BenchmarkSearch looks for what is rare in a sealed book.
func BenchmarkSearch(b *testing.B) {
	const n = 60_000
	rd := mixed(b, n)
	for _, bc := range []struct{ name, expr string }{
		{"text", `status == 500 && route == "route-3"`},
		{"number", `dur_us > 99_999 && route == "route-3"`},
		{"whole", `id == "x"`},
	} {
		b.Run(bc.name, func(b *testing.B) {
			for b.Loop() {
				if err := Search(rd, Query{Expr: bc.expr}, func(*Match) error { return nil }); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N*n)/b.Elapsed().Seconds(), "records/s")
		})
	}
}
