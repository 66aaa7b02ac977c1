package book

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
)

// benchRules keep what benchRecord makes.
func benchRules(b testing.TB) *redact.Rules {
	rules, err := redact.New(redact.Config{Names: redact.Names{
		Routes: []string{"orders.read"}, Templates: []string{"/v1/orders/{id}"}, Hosts: []string{"api.example.com"},
		Issuers: []string{"corp"}, Roles: []string{"clerk"}, KIDs: []string{"k1"},
	}})
	if err != nil {
		b.Fatal(err)
	}
	return rules
}

// fullBook is a book with n records of allowed requests by 200 people, not
// sealed yet.
func fullBook(b testing.TB, n int) (*Book, Config) {
	b.Helper()
	dir := b.TempDir()
	c := Config{Dir: filepath.Join(dir, "data"), KeyDir: filepath.Join(dir, "keys"), Prefix: "log.example", Node: "n1", CommitTimeout: time.Minute}
	if _, err := Create(b.Context(), c); err != nil {
		b.Fatal(err)
	}
	bk, err := Open(b.Context(), c)
	if err != nil {
		b.Fatal(err)
	}
	addRecords(b, bk, n)
	return bk, c
}

func addRecords(b testing.TB, bk *Book, n int) {
	addRecordsOf(b, bk, n, func(rng *rand.Rand) int { return rng.IntN(200) })
}

// zipf is a mix of 10,000 people, some of whom call far more often than others.
func zipf(rng *rand.Rand) func(*rand.Rand) int {
	z := rand.NewZipf(rng, 1.1, 8, 10_000-1)
	return func(*rand.Rand) int { return int(z.Uint64()) }
}

// addRecordsOf adds n records of people that who draws.
func addRecordsOf(b testing.TB, bk *Book, n int, who func(*rand.Rand) int) {
	b.Helper()
	rec := bk.Recorder(benchRules(b), testSnap)
	rng := rand.New(rand.NewPCG(1, 2))
	at := time.Now()
	for range n {
		at = at.Add(time.Duration(rng.ExpFloat64() * float64(500*time.Microsecond)))
		person := who(rng)
		r := benchRecord(bk.NewID(at), int64(person))
		r.Personal.Sub, r.Raw.IssuerSub = fmt.Sprintf("user-%d", person), fmt.Sprintf("corp|user-%d", person)
		r.Time, r.DurUS, r.Upstream.TTFBUS = at.UnixMicro(), 500+rng.Int64N(1500), 300+rng.Int64N(1000)
		r.Raw.Path = fmt.Sprintf("/v1/orders/%d", rng.IntN(1_000_000))
		r.BytesOut = 500 + rng.Int64N(4000)
		if err := rec.Commit(context.Background(), record.Ref{}, &r, record.Written); err != nil {
			b.Fatal(err)
		}
	}
}

// cpuTime is all the processor time that this process had, the kernel's for it
// included.
func cpuTime(b testing.TB) time.Duration {
	b.Helper()
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		b.Fatal(err)
	}
	return time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
}

// perRecord turns the time of a benchmark into what the budgets speak of.
func perRecord(b *testing.B, records int) {
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N*records), "ns/record")
	b.ReportMetric(float64(b.N*records)/b.Elapsed().Seconds(), "records/s")
}

const benchSegment = 60_000

// BenchmarkSeal seals a segment of 60,000 records: read again from the WAL,
// columns, sealed, written, read back, every commitment recomputed.
// cpu-us/record is the processor time, without the waits for the disk.
func BenchmarkSeal(b *testing.B) {
	benchmarkSeal(b, func(rng *rand.Rand) int { return rng.IntN(200) })
}

// BenchmarkSealZipf is BenchmarkSeal with 10,000 people, of whom most have few
// records.
func BenchmarkSealZipf(b *testing.B) {
	benchmarkSeal(b, zipf(rand.New(rand.NewPCG(3, 4))))
}

func benchmarkSeal(b *testing.B, who func(*rand.Rand) int) {
	bk, _ := fullBook(b, 0)
	var spent time.Duration
	for b.Loop() {
		b.StopTimer()
		addRecordsOf(b, bk, benchSegment, who)
		if err := bk.ledger.SignCheckpoint(context.Background()); err != nil { // each second, in life
			b.Fatal(err)
		}
		runtime.GC()
		before := cpuTime(b)
		b.StartTimer()
		if err := bk.ledger.SealNow(context.Background()); err != nil {
			b.Fatal(err)
		}
		spent += cpuTime(b) - before
	}
	perRecord(b, benchSegment)
	b.ReportMetric(float64(spent.Nanoseconds())/1e3/float64(b.N*benchSegment), "cpu-us/record")
	if err := bk.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}

// BenchmarkVerify verifies sealed records with all keys: files, tree, and every
// commitment recomputed from the opened content.
func BenchmarkVerify(b *testing.B) {
	benchmarkVerify(b, func(rng *rand.Rand) int { return rng.IntN(200) })
}

// BenchmarkVerifyZipf is BenchmarkVerify with 10,000 people.
func BenchmarkVerifyZipf(b *testing.B) {
	benchmarkVerify(b, zipf(rand.New(rand.NewPCG(3, 4))))
}

func benchmarkVerify(b *testing.B, who func(*rand.Rand) int) {
	bk, c := fullBook(b, 0)
	addRecordsOf(b, bk, benchSegment, who)
	if err := bk.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
	runtime.GC()
	before := cpuTime(b)
	for b.Loop() {
		rep, err := Verify(context.Background(), VerifyOptions{Dir: c.Dir, KeyDir: c.KeyDir, Key: bk.Key()})
		if err != nil || rep.ExitCode() != 0 {
			b.Fatal(err, rep)
		}
	}
	perRecord(b, benchSegment)
	b.ReportMetric(float64((cpuTime(b)-before).Nanoseconds())/1e3/float64(b.N*benchSegment), "cpu-us/record")
}

// TestLatenessWhileSealing: sealing yields to traffic. With one processor, a
// goroutine that wants to run each millisecond does, at most so much later than
// on a quiet machine. The budget of 0.5 ms is looked at in the long form.
func TestLatenessWhileSealing(t *testing.T) {
	records, rounds, limit := 8_000, 1, 200*time.Millisecond
	if os.Getenv("GATEBOOK_SOAK") != "" {
		records, rounds, limit = benchSegment, 5, 500*time.Microsecond
	}
	defer runtime.GOMAXPROCS(runtime.GOMAXPROCS(1))
	bk, _ := fullBook(t, 0)
	quiet := lateness(func(done <-chan struct{}) { <-done }, 500*time.Millisecond)
	var sealing []time.Duration
	for range rounds {
		addRecords(t, bk, records)
		sealed := make(chan error, 1)
		sealing = append(sealing, lateness(func(<-chan struct{}) { sealed <- bk.ledger.SealNow(context.Background()) }, 0)...)
		if err := <-sealed; err != nil {
			t.Fatal(err)
		}
	}
	slices.Sort(quiet)
	slices.Sort(sealing)
	p99 := func(d []time.Duration) time.Duration { return d[len(d)*99/100] }
	t.Logf("lateness p50 %v p99 %v max %v over %d wake-ups while sealing; quiet p99 %v", sealing[len(sealing)/2], p99(sealing), sealing[len(sealing)-1], len(sealing), p99(quiet))
	if over := p99(sealing) - p99(quiet); over > limit {
		t.Errorf("sealing makes others wait %v longer, %v allowed", over, limit)
	}
	if err := bk.Close(context.Background()); err != nil {
		t.Fatal(err)
	}
}

// lateness measures how much later than asked a goroutine wakes up each
// millisecond while work runs, for least at the least.
func lateness(work func(done <-chan struct{}), least time.Duration) []time.Duration {
	stop, ended := make(chan struct{}), make(chan struct{})
	go func() { defer close(ended); work(stop) }()
	var late []time.Duration
	begun := time.Now()
	for {
		at := time.Now().Add(time.Millisecond)
		timer := time.NewTimer(time.Until(at))
		<-timer.C
		late = append(late, max(time.Since(at), 0))
		if least > 0 && time.Since(begun) > least {
			close(stop)
			<-ended
			return late
		}
		select {
		case <-ended:
			return late
		default:
		}
	}
}
