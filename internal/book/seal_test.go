package book

import (
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
)

// TestSealedRecordsComeBack seals random records and demands that every byte
// that was committed to comes back: sealing itself re-reads and recomputes, and
// verify does so once more from the files alone. A million with GATEBOOK_SOAK.
func TestSealedRecordsComeBack(t *testing.T) {
	n := 20_000
	if os.Getenv("GATEBOOK_SOAK") != "" {
		n = 1_000_000
	}
	ctx := context.Background()
	c := Config{Dir: t.TempDir(), KeyDir: t.TempDir() + "/keys", Prefix: "log.example", Node: "n1"}
	vkey, err := Create(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	b, err := Open(ctx, c)
	if err != nil {
		t.Fatal(err)
	}
	running, stop := context.WithCancel(ctx)
	done := make(chan error, 1)
	go func() { done <- b.Run(running) }()
	rules, err := redact.New(redact.Config{Names: redact.Names{Routes: []string{"a", "b"}, Templates: []string{"/a/{id}", "/b/{rest...}"}, Issuers: []string{"corp"}}})
	if err != nil {
		t.Fatal(err)
	}
	rec := b.Recorder(rules, "00112233445566778899aabbccddeeff")
	rng := rand.New(rand.NewPCG(7, 7))
	begin := time.Now()
	for i := range n {
		r := randomRecord(rng, b, i)
		if err := rec.Commit(ctx, record.Ref{}, &r, record.Written); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if err := b.Close(ctx); err != nil {
		t.Fatal(err)
	}
	appended := time.Since(begin)
	rep, err := Verify(ctx, VerifyOptions{Dir: c.Dir, KeyDir: c.KeyDir, Key: vkey})
	if err != nil {
		t.Fatal(err)
	}
	if rep.ExitCode() != 0 || rep.Bytes.Status != ledger.OK || rep.Records < uint64(n) || rep.Sealed < uint64(n) {
		t.Fatalf("exit %d, report %+v, findings %v", rep.ExitCode(), rep, rep.Findings)
	}
	t.Logf("%d records appended and sealed in %s, verified in %s", rep.Records, appended, time.Since(begin)-appended)
}

// randomRecord has every group now and then, and text from hostile clients.
func randomRecord(rng *rand.Rand, b *Book, i int) record.Record {
	pick := func(from ...string) string { return from[rng.IntN(len(from))] }
	text := func() string {
		buf := make([]byte, rng.IntN(40))
		for i := range buf {
			buf[i] = byte(rng.IntN(256))
		}
		return string(buf)
	}
	now := time.Now().Add(time.Duration(rng.IntN(1_000_000)-500_000) * time.Microsecond)
	r := record.Record{
		ID: b.NewID(now), Time: now.UnixMicro(), Kind: record.KindRequest, Outcome: record.Success,
		Route: pick("a", "b", record.None), Op: pick("GET /a/{id}", "POST /b/{rest...}", record.None), Template: pick("/a/{id}", "/b/{rest...}", ""),
		Method: pick("GET", "POST", text()), Host: text(), Proto: pick("HTTP/1.1", "HTTP/2"), Status: 100 + rng.IntN(500), DurUS: rng.Int64N(1 << uint(rng.IntN(40)+1)),
		BytesIn: rng.Int64N(1 << uint(rng.IntN(50)+1)), BytesOut: rng.Int64N(1 << uint(rng.IntN(50)+1)),
		Client: record.Client{Prefix: fmt.Sprintf("10.%d.%d.0/24", rng.IntN(4), rng.IntN(256)), PortClass: pick("user", "dynamic", "")},
		Raw: record.Raw{IssuerSub: pick("", fmt.Sprintf("corp|%d", rng.IntN(500))), Path: "/a/" + fmt.Sprint(i), Query: text(), UA: text(), Referer: text(),
			Unmatched: rng.IntN(4) == 0, RemoteAddr: fmt.Sprintf("10.0.%d.%d", rng.IntN(256), rng.IntN(256)), RemotePort: rng.IntN(65536)},
	}
	if rng.IntN(3) == 0 {
		r.Outcome = record.Failure
		r.Error = record.Error{Origin: pick("client", "policy", "limit"), Reason: pick("no_route", "denied_by_default", "rate_limited"), Phase: pick("route", "authz", "")}
		r.Personal.Claimed = text()
	}
	if rng.IntN(2) == 0 {
		r.Authn = record.Authn{Method: "jwt", Issuer: "corp", Client: text(), Roles: []string{text(), "clerk"}, Outcome: pick("ok", "failed"), AgeS: rng.Int64N(900)}
		r.Upstream = record.Upstream{Name: pick("app", "gone"), Attempts: rng.IntN(3), Reused: rng.IntN(2) == 0, TTFBUS: rng.Int64N(1e6)}
	}
	return r
}
