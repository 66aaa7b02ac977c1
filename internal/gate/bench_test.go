package gate

import (
	"context"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// nullBook and nullExchange cost next to nothing, so that what is measured is
// the pipeline.
type nullBook struct{}

func (nullBook) Open(_ context.Context, r *record.Record, _ record.Level) (record.Ref, error) {
	return r.ID, nil
}
func (nullBook) Commit(context.Context, record.Ref, *record.Record, record.Level) error { return nil }

type nullExchange struct{ req canon.Request }

func (*nullExchange) Listener() string                     { return "public" }
func (x *nullExchange) Request() *canon.Request            { return &x.req }
func (*nullExchange) Refusal() *canon.Error                { return nil }
func (*nullExchange) Body() io.Reader                      { return nil }
func (*nullExchange) Interim(int, []canon.Field) error     { return nil }
func (*nullExchange) Head(int, []canon.Field, int64) error { return nil }
func (*nullExchange) Write(p []byte) (int, error)          { return len(p), nil }
func (*nullExchange) Flush() error                         { return nil }
func (*nullExchange) Finish([]canon.Field) error           { return nil }
func (*nullExchange) Abort()                               {}
func (*nullExchange) Tunnel() (io.ReadWriteCloser, error)  { return nil, nil }

type nullBody struct{ left int }

func (b *nullBody) Read(p []byte) (int, error) {
	n := min(b.left, len(p))
	if b.left -= n; b.left == 0 {
		return n, io.EOF
	}
	return n, nil
}
func (*nullBody) Close() error { return nil }

// BenchmarkServe is the allow path of our own code: limits, route, identity,
// decision, mark, forward, record.
func BenchmarkServe(b *testing.B) {
	fields := []canon.Field{{Name: "content-type", Value: "application/json"}, {Name: "date", Value: "x"}, {Name: "server", Value: "y"}}
	resp := &upstream.Response{Status: 200, Length: 1024, Fields: fields, Target: "10.0.0.5:80", Attempts: 1, Reused: true}
	var nb nullBody
	up := backend(func(context.Context, *upstream.Request) (*upstream.Response, error) {
		nb.left = 1024
		resp.Body = &nb
		return resp, nil
	})
	remembered := *alice
	remembered.Memo = new(authn.Memo)
	rule := &ratelimit.Rule{Name: "many", Key: ratelimit.KeySubject, Rate: 1 << 30, Per: time.Second, Burst: 1 << 30}
	s, err := NewSnapshot(SnapshotConfig{
		ID: "id", Node: "n", Recorder: nullBook{}, Listeners: []Listener{{Name: "public"}},
		Routes: []*Route{{Name: "orders", Path: "/v1/orders/{id}", Methods: []string{"GET"}, Engine: allowAll, Upstream: up, UpstreamName: "u", Limits: []*ratelimit.Rule{rule},
			Authenticators: []Authenticator{fakeAuth(func(*canon.Request) (*authn.Principal, error) { return &remembered, nil })}}},
	})
	if err != nil {
		b.Fatal(err)
	}
	g, err := New(Config{NewID: counter(), Limiter: ratelimit.NewTable(ratelimit.Config{})}, s)
	if err != nil {
		b.Fatal(err)
	}
	x := &nullExchange{req: canon.Request{
		Method: "GET", Scheme: "https", Host: "api.example.com", Authority: "api.example.com", Path: "/v1/orders/42", Segments: []string{"v1", "orders", "42"},
		Proto: "HTTP/1.1", Remote: netip.MustParseAddrPort("203.0.113.9:4711"), TLS: &canon.TLS{Version: "1.3"},
		Fields: []canon.Field{{Name: "accept", Value: "*/*"}, {Name: "authorization", Value: "Bearer x"}, {Name: "user-agent", Value: "bench"}},
	}}
	ctx := context.Background()
	b.ReportAllocs()
	for b.Loop() {
		g.Serve(ctx, x)
	}
}
