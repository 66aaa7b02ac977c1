package book

import (
	"context"
	"fmt"
	"sync/atomic"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
)

// benchRecord is a typical allowed request.
func benchRecord(id record.ID, n int64) record.Record {
	return record.Record{
		ID: id, Time: time.Now().UnixMicro(), Kind: record.KindRequest, Outcome: record.Success,
		Route: "orders.read", Op: "GET /v1/orders/{id}", Method: "GET", Host: "api.example.com", Proto: "HTTP/1.1", Template: "/v1/orders/{id}",
		Status: 200, UpstreamStatus: 200, BytesOut: 1024, DurUS: 812,
		Authn:    record.Authn{Method: "jwt", Issuer: "corp", Roles: []string{"clerk"}, KID: "k1", Alg: "ES256", Outcome: "ok", AgeS: 30, TTLS: 270},
		Authz:    record.Authz{Decision: "allow", Policies: []string{"role:clerk:orders.read"}, Set: "00112233445566778899aabbccddeeff"},
		TLS:      record.TLS{Version: "1.3", Cipher: "TLS_AES_128_GCM_SHA256", Group: "X25519MLKEM768"},
		Client:   record.Client{Prefix: "203.0.113.0/24", PortClass: "dynamic"},
		Upstream: record.Upstream{Name: "orders", Target: "10.0.0.5:8080", Attempts: 1, Reused: true, TTFBUS: 600},
		Personal: record.Personal{Sub: fmt.Sprintf("user-%d", n%200)},
		Raw: record.Raw{IssuerSub: fmt.Sprintf("corp|user-%d", n%200), Path: fmt.Sprintf("/v1/orders/%d", n), UA: "bench/1.0",
			RemoteAddr: fmt.Sprintf("203.0.113.%d", n%250), RemotePort: 50000},
	}
}

// BenchmarkOpenCommit is what the book costs an exchange: an open mark and the
// record, at the level written.
func BenchmarkOpenCommit(b *testing.B) {
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	c := Config{Dir: b.TempDir(), KeyDir: b.TempDir() + "/keys", Prefix: "log.example", Node: "n1"}
	if _, err := Create(ctx, c); err != nil {
		b.Fatal(err)
	}
	bk, err := Open(ctx, c)
	if err != nil {
		b.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- bk.Run(ctx) }()
	rules, err := redact.New(redact.Config{Names: redact.Names{
		Routes: []string{"orders.read"}, Templates: []string{"/v1/orders/{id}"}, Hosts: []string{"api.example.com"},
		Issuers: []string{"corp"}, Roles: []string{"clerk"}, KIDs: []string{"k1"},
	}})
	if err != nil {
		b.Fatal(err)
	}
	rec := bk.Recorder(rules, "00112233445566778899aabbccddeeff")
	var n atomic.Int64
	b.ReportAllocs()
	b.ResetTimer()
	b.RunParallel(func(pb *testing.PB) {
		for pb.Next() {
			r := benchRecord(bk.NewID(time.Now()), n.Add(1))
			ref, err := rec.Open(ctx, &r, record.Written)
			if err != nil {
				b.Fatal(err)
			}
			if err := rec.Commit(ctx, ref, &r, record.Written); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.StopTimer()
	cancel()
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	if err := bk.Close(context.Background()); err != nil {
		b.Fatal(err)
	}
}
