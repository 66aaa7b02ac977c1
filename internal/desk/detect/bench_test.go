package detect

import (
	"context"
	"flag"
	"fmt"
	"runtime"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
)

// benchRecords are allowed requests of 10,000 subjects from 3,000 networks, with
// one failure and one denial in fifty.
func benchRecords(n int) []record.Record {
	out := make([]record.Record, n)
	for i := range out {
		r := &out[i]
		*r = record.Record{
			Time: begin + int64(i)*5000, Kind: record.KindRequest, Outcome: record.Success,
			Route: "orders.read", Op: "GET /v1/orders/{id}", Method: "GET", Host: "api.example.com", Proto: "HTTP/1.1", Template: "/v1/orders/{id}",
			Status: 200, UpstreamStatus: 200, BytesOut: 1024, DurUS: 812, Subject: fmt.Sprintf("subject-%d", i*7919%10_000),
			Authn:  record.Authn{Method: "jwt", Issuer: "corp", Roles: []string{"clerk"}, KID: "k1", Alg: "ES256", Outcome: "ok"},
			Authz:  record.Authz{Decision: "allow", Policies: []string{"role:clerk:orders.read"}, Set: "00112233445566778899aabbccddeeff"},
			Client: record.Client{Prefix: fmt.Sprintf("10.%d.%d.0/24", i*7919%10_000%3000>>8, i*7919%10_000%3000&0xff), PortClass: "dynamic"},
		}
		switch i % 50 {
		case 3:
			r.Status, r.Outcome, r.Authn, r.Authz = 401, record.Failure, record.Authn{Method: "jwt", Outcome: "failed", Reason: "token_signature"}, record.Authz{}
			r.Error = record.Error{Origin: "identity", Reason: "token_signature"}
		case 7:
			r.Status, r.Outcome, r.Authz.Decision = 403, record.Failure, "deny"
			r.Error = record.Error{Origin: "policy", Reason: "denied_by_default"}
		}
	}
	return out
}

// BenchmarkBuiltin is what the built-in rules cost a record: the goal is 5 us,
// which is 200,000 records a second.
func BenchmarkBuiltin(b *testing.B) {
	g, err := newEngine(Builtin())
	if err != nil {
		b.Fatal(err)
	}
	recs := benchRecords(100_000)
	b.ReportAllocs()
	b.ResetTimer()
	n := int64(0)
	for i := 0; b.Loop(); i++ {
		r := &recs[i%len(recs)]
		r.Time += 100_000 * 5000 // of the next round
		g.see(uint64(i), r)
		g.findings = g.findings[:0]
		n++
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkFlood is the same when every record has a new subject and network.
func BenchmarkFlood(b *testing.B) {
	g, err := newEngine(Builtin())
	if err != nil {
		b.Fatal(err)
	}
	r := benchRecords(1)[0]
	b.ReportAllocs()
	n := int64(0)
	for i := 0; b.Loop(); i++ {
		flood(&r, i)
		g.see(uint64(i), &r)
		n++
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
}

// BenchmarkSealed is what reading sealed records from the book and the built-in
// rules cost together.
func BenchmarkSealed(b *testing.B) { benchmarkBook(b, true, 1<<20) }

// BenchmarkLive is the same for records that are not sealed yet, which is what
// detection reads as they come.
func BenchmarkLive(b *testing.B) { benchmarkBook(b, false, 1<<20) }

// BenchmarkLook is the same for the newest 1,000 of them: what detection reads at a
// time at 2,000 requests a second, with what it costs to begin.
func BenchmarkLook(b *testing.B) { benchmarkBook(b, false, 1000) }

func benchmarkBook(b *testing.B, sealed bool, newest uint64) {
	ctx := context.Background()
	must := func(err error) {
		if err != nil {
			b.Fatal(err)
		}
	}
	dir := b.TempDir()
	c := book.Config{Dir: dir + "/data", KeyDir: dir + "/keys", Prefix: "log.example", Node: "n1"}
	_, err := book.Create(ctx, c)
	must(err)
	bk, err := book.Open(ctx, c)
	must(err)
	rules, err := redact.New(redact.Config{Names: redact.Names{
		Routes: []string{"orders.read"}, Templates: []string{"/v1/orders/{id}"}, Hosts: []string{"api.example.com"},
		Issuers: []string{"corp"}, Roles: []string{"clerk"}, KIDs: []string{"k1"},
	}})
	must(err)
	rec := bk.Recorder(rules, "00112233445566778899aabbccddeeff")
	for _, r := range benchRecords(50_000) {
		r.ID, r.Raw.IssuerSub, r.Raw.RemoteAddr, r.Subject = bk.NewID(r.At()), r.Subject, strings.TrimSuffix(r.Client.Prefix, "0/24")+"9", ""
		must(rec.Commit(ctx, record.Ref{}, &r, record.Written))
	}
	if sealed {
		must(bk.Close(ctx)) // which seals
		bk, err = book.Open(ctx, c)
		must(err)
	}
	defer bk.Close(ctx)
	g, err := newEngine(Builtin())
	must(err)
	picker, err := record.NewPicker(g.needs())
	must(err)
	n := 0
	b.ReportAllocs()
	b.ResetTimer()
	busy := processor(b)
	for b.Loop() {
		r, err := bk.Reader()
		must(err)
		must(r.Pick(r.Size()-min(newest, r.Size()), r.Size(), picker, func(index uint64, rec *record.Record) error {
			g.see(index, rec)
			g.findings = g.findings[:0]
			n++
			return nil
		}))
		must(r.Close())
	}
	b.ReportMetric(float64(n)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64((processor(b)-busy).Nanoseconds())/float64(n), "cpu-ns/record")
}

// processor is the time that this process had a processor, which is steadier than
// the clock where others want it too.
func processor(b *testing.B) time.Duration {
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		b.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// flood makes the i-th record of a flood of keys: the built-in rules all have
// something to keep of it.
func flood(r *record.Record, i int) {
	r.Time = begin + int64(i)*10
	r.Subject, r.Client.Prefix = fmt.Sprintf("subject-%d", i), fmt.Sprintf("%d.%d.%d.0/24", i>>16&0xff, i>>8&0xff, i&0xff)
	r.Op = "GET /v1/" + r.Client.Prefix
	r.Authn.Outcome, r.Authz.Decision, r.Error.Reason, r.Status = "ok", "allow", "", 200
	switch i % 3 {
	case 0:
		r.Authz.Decision = "deny"
	case 1:
		r.Authn.Outcome, r.Error.Reason, r.Status = "failed", "key_unknown", 401
	}
}

// keys is how many keys TestMemory takes; with ten million it lasts a minute.
var keys = flag.Int("keys", 400_000, "keys of TestMemory")

// memoryBound is what the five built-in rules may hold, whatever comes.
const memoryBound = 128 << 20

// TestMemory: a flood of different prefixes and subjects leaves it bounded, and
// what an attacker did before and among them is still found.
func TestMemory(t *testing.T) {
	g, err := newEngine(Builtin())
	if err != nil {
		t.Fatal(err)
	}
	runtime.GC()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	r := benchRecords(1)[0]
	mallory := r
	mallory.Subject, mallory.Authz.Decision = "mallory", "deny"
	n := *keys
	found := map[string]bool{}
	for i := range n {
		flood(&r, i)
		g.see(uint64(i), &r)
		if i%(n/10) == 0 {
			mallory.Time, mallory.Op = r.Time, fmt.Sprintf("GET /v1/secret%d", i)
			g.see(uint64(i), &mallory)
		}
		for _, f := range g.findings {
			found[f.rule.Name+" "+f.key] = true
		}
		g.findings = g.findings[:0]
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	held := int64(after.HeapAlloc) - int64(before.HeapAlloc)
	t.Logf("%d keys: %d MiB held", n, held>>20)
	if held > memoryBound {
		t.Errorf("%d bytes are held after %d keys, more than %d", held, n, memoryBound)
	}
	for _, ru := range g.rules {
		if len(ru.table.index) > maxKeys || len(ru.table.slots) > maxKeys || ru.table.values > maxValues {
			t.Errorf("%s: %d keys, %d slots, %d values", ru.Name, len(ru.table.index), len(ru.table.slots), ru.table.values)
		}
	}
	if !found["privilege_probing mallory"] {
		t.Errorf("who probed among the flood was not found; found was %v", found)
	}
	runtime.KeepAlive(g)
}
