package micro

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/desk/query"
)

// subjects is how many callers the records are about, as in the runs.
const subjects = 200

const snap = "00112233445566778899aabbccddeeff"

// What differs between records, made ahead so that it costs nothing.
var (
	subs      = texts(subjects, "user-%d")
	issued    = texts(subjects, "corp|user-%d")
	paths     = texts(4096, "/v1/orders/%d")
	addresses = texts(250, "203.0.113.%d")
	roles     = []string{"clerk"}
	policies  = []string{"orders.read"}
)

func texts(n int, format string) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf(format, i)
	}
	return out
}

// allowed is what the gate hands to the book after an allowed request.
func allowed(id record.ID, n int64) record.Record {
	return record.Record{
		ID: id, Time: time.Now().UnixMicro(), Kind: record.KindRequest, Outcome: record.Success,
		Route: "orders.read", Op: "GET /v1/orders/{id}", Method: "GET", Host: "api.example.com", Proto: "HTTP/1.1", Template: "/v1/orders/{id}",
		Status: 200, UpstreamStatus: 200, BytesOut: 1024, DurUS: 700 + n%251,
		Authn:    record.Authn{Method: "jwt", Issuer: "corp", Roles: roles, KID: "k1", Alg: "ES256", Outcome: "ok", AgeS: 30, TTLS: 270},
		Authz:    record.Authz{Decision: "allow", Policies: policies, Set: snap},
		TLS:      record.TLS{Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768"},
		Client:   record.Client{Prefix: "203.0.113.0/24", PortClass: "dynamic"},
		Upstream: record.Upstream{Name: "orders", Target: "10.0.0.5:8080", Attempts: 1, Reused: true, TTFBUS: 600 + n%97},
		Personal: record.Personal{Sub: subs[n%subjects]},
		Raw: record.Raw{IssuerSub: issued[n%subjects], Path: paths[n%4096], UA: "bench/1.0",
			RemoteAddr: addresses[n%250], RemotePort: 50000},
	}
}

// opened is a book of its own, and a way to record in it.
type opened struct {
	book *book.Book
	rec  *book.Recorder
	conf book.Config
	n    atomic.Int64
	stop context.CancelFunc
	done chan error
}

func open(b *testing.B) *opened {
	b.Helper()
	dir, err := os.MkdirTemp("", "book")
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() {
		if err := os.RemoveAll(dir); err != nil {
			b.Error(err)
		}
	})
	o := &opened{conf: book.Config{Dir: filepath.Join(dir, "data"), KeyDir: filepath.Join(dir, "keys"), Prefix: "log.example", Node: "n1"}}
	if _, err := book.Create(b.Context(), o.conf); err != nil {
		b.Fatal(err)
	}
	if o.book, err = book.Open(b.Context(), o.conf); err != nil {
		b.Fatal(err)
	}
	rules, err := redact.New(redact.Config{Names: redact.Names{
		Routes: []string{"orders.read"}, Templates: []string{"/v1/orders/{id}"}, Hosts: []string{"api.example.com"},
		Issuers: []string{"corp"}, Roles: roles, KIDs: []string{"k1"},
	}})
	if err != nil {
		b.Fatal(err)
	}
	o.rec = o.book.Recorder(rules, snap)
	return o
}

// run starts what syncs, signs and seals in the background.
func (o *opened) run(b *testing.B) {
	ctx, cancel := context.WithCancel(b.Context())
	o.stop, o.done = cancel, make(chan error, 1)
	go func() { o.done <- o.book.Run(ctx) }()
}

// close ends the background and seals what is left.
func (o *opened) close(b *testing.B) {
	b.Helper()
	if o.stop != nil {
		o.stop()
		if err := <-o.done; err != nil {
			b.Fatal(err)
		}
	}
	if err := o.book.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// exchange is an open mark and its record.
func (o *opened) exchange(level record.Level) error {
	r := allowed(o.book.NewID(time.Now()), o.n.Add(1))
	var ref record.Ref
	err := taken(level, func() (err error) {
		ref, err = o.rec.Open(context.Background(), &r, level)
		return err
	})
	if err != nil {
		return err
	}
	return taken(level, func() error { return o.rec.Commit(context.Background(), ref, &r, level) })
}

// taken calls fn again while the queue is full: at the level queued nobody waits
// for the writer, so that callers who do nothing else outrun it.
func taken(level record.Level, fn func() error) error {
	for {
		err := fn()
		if level != record.Queued || !errors.Is(err, ledger.ErrSlow) {
			return err
		}
		runtime.Gosched()
	}
}

func cpu(b *testing.B) time.Duration {
	b.Helper()
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// BenchmarkBook is what the book costs an exchange, by level and by how many
// exchanges are under way. p50-us and p99-us are of open mark and commit
// together; cpu-us/op is all the processor time of the process, kernel included,
// until everything was synced, sealed and signed.
func BenchmarkBook(b *testing.B) {
	levels := []struct {
		name  string
		level record.Level
	}{{"queued", record.Queued}, {"written", record.Written}, {"durable", record.Durable}}
	for _, l := range levels {
		for _, under := range []int{1, 32} {
			b.Run(fmt.Sprintf("%s/%d", l.name, under), func(b *testing.B) { exchanges(b, l.level, under) })
		}
	}
}

func exchanges(b *testing.B, level record.Level, under int) {
	o := open(b)
	o.run(b)
	for range subjects { // everybody is known already
		if err := o.exchange(record.Written); err != nil {
			b.Fatal(err)
		}
	}
	took := make([][]time.Duration, under)
	failed := make([]error, under)
	var left atomic.Int64
	left.Store(int64(b.N))
	before := cpu(b)
	b.ReportAllocs()
	b.ResetTimer()
	var wg sync.WaitGroup
	for w := range under {
		wg.Go(func() {
			for left.Add(-1) >= 0 {
				begin := time.Now()
				if failed[w] = o.exchange(level); failed[w] != nil {
					return
				}
				took[w] = append(took[w], time.Since(begin))
			}
		})
	}
	wg.Wait()
	b.StopTimer()
	for _, err := range failed {
		if err != nil {
			b.Fatal(err)
		}
	}
	o.close(b)
	all := slices.Concat(took...)
	slices.Sort(all)
	us := func(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }
	b.ReportMetric(us(all[len(all)/2]), "p50-us")
	b.ReportMetric(us(all[len(all)*99/100]), "p99-us")
	b.ReportMetric(us(cpu(b)-before)/float64(b.N), "cpu-us/op")
}

// records is a little less than fills a segment, so that all of them are sealed
// at the stop.
const records = 60_000

// fill records that many exchanges, some at a time.
func (o *opened) fill(b *testing.B) {
	b.Helper()
	var left atomic.Int64
	left.Store(records)
	failed := make(chan error, 8)
	for range cap(failed) {
		go func() {
			for left.Add(-1) >= 0 {
				if err := o.exchange(record.Written); err != nil {
					failed <- err
					return
				}
			}
			failed <- nil
		}()
	}
	for range cap(failed) {
		if err := <-failed; err != nil {
			b.Fatal(err)
		}
	}
}

// perSecond reports what the budgets speak of: records/s by the clock, waits for
// the disk included, and cpu-us/record, the processor time of the process, the
// kernel's for it included.
func perSecond(b *testing.B, spent time.Duration) {
	b.ReportMetric(records*float64(b.N)/b.Elapsed().Seconds(), "records/s")
	b.ReportMetric(float64(spent.Nanoseconds())/1e3/float64(records*b.N), "cpu-us/record")
}

// BenchmarkSeal is a stop: the records of a whole WAL file become a segment, with
// reading it back, the manifest and the signed checkpoint.
func BenchmarkSeal(b *testing.B) {
	var spent time.Duration
	for b.Loop() {
		b.StopTimer()
		o := open(b)
		o.fill(b)
		runtime.GC() // what filling left behind is not sealing
		before := cpu(b)
		b.StartTimer()
		o.close(b)
		spent += cpu(b) - before
	}
	perSecond(b, spent)
}

func sealed(b *testing.B) (c book.Config, key string) {
	b.Helper()
	o := open(b)
	o.fill(b)
	o.close(b)
	return o.conf, o.book.Key()
}

// BenchmarkVerify proves a stopped book, everything opened and hashed again.
func BenchmarkVerify(b *testing.B) {
	c, key := sealed(b)
	runtime.GC()
	before := cpu(b)
	for b.Loop() {
		rep, err := book.Verify(b.Context(), book.VerifyOptions{Dir: c.Dir, KeyDir: c.KeyDir, Key: key})
		if err != nil {
			b.Fatal(err)
		}
		if code := rep.ExitCode(); code != 0 {
			b.Fatalf("exit code %d: %+v", code, rep)
		}
	}
	perSecond(b, cpu(b)-before)
}

// BenchmarkSearch looks at every record and finds none.
func BenchmarkSearch(b *testing.B) {
	c, _ := sealed(b)
	runtime.GC()
	before := cpu(b)
	for b.Loop() {
		r, err := book.OpenReader(b.Context(), c)
		if err != nil {
			b.Fatal(err)
		}
		err = query.Search(r, query.Query{Expr: "status >= 500"}, func(m *query.Match) error { return fmt.Errorf("found %s", m.Frame) })
		if err != nil {
			b.Fatal(err)
		}
		if err := r.Close(); err != nil {
			b.Fatal(err)
		}
	}
	perSecond(b, cpu(b)-before)
}
