package gate

import (
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/ratelimit"
)

// benchFrontHead is what a browser's application sends.
const benchFrontHead = "GET /v1/orders/42?expand=items HTTP/1.1\r\nHost: api.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64)\r\n" +
	"Accept: application/json\r\nAccept-Encoding: gzip, deflate, br\r\nAccept-Language: en\r\nConnection: keep-alive\r\n" +
	"Authorization: Bearer eyJhbGciOiJFUzI1NiIsImtpZCI6ImsxIn0.eyJzdWIiOiJhbGljZSJ9.c2lnbmF0dXJlc2lnbmF0dXJlc2lnbmF0dXJl\r\n\r\n"

// BenchmarkFront is a keep-alive request through net/http over loopback with
// next to no handler, with and without H1Conn in front: the worst case for its
// share.
func BenchmarkFront(b *testing.B) {
	for _, mode := range []string{"plain", "h1conn"} {
		b.Run(mode, func(b *testing.B) { benchFront(b, mode == "h1conn") })
	}
}

func benchFront(b *testing.B, front bool) {
	g, err := New(Config{NewID: counter(), Limiter: ratelimit.NewTable(ratelimit.Config{})}, nullSnapshot(b))
	if err != nil {
		b.Fatal(err)
	}
	e := NewHTTPEngine(g, HTTPConfig{Listener: "public"})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		b.Fatal(err)
	}
	var served net.Listener = l
	if front {
		served = frontListener{Listener: l, e: e}
	}
	srv := &http.Server{
		Handler:           watched(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "hello") })),
		ReadHeaderTimeout: 5 * time.Second, IdleTimeout: time.Minute, ConnContext: ConnContext,
	}
	go srv.Serve(served)
	defer srv.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	if err != nil {
		b.Fatal(err)
	}
	defer c.Close()
	head := []byte(benchFrontHead)
	buf := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := c.Write(head); err != nil {
			b.Fatal(err)
		}
		if _, err := c.Read(buf); err != nil {
			b.Fatal(err)
		}
	}
}

func nullSnapshot(b *testing.B) *Snapshot {
	s, err := NewSnapshot(SnapshotConfig{
		ID: "id", Node: "n", Recorder: nullBook{}, Listeners: []Listener{{Name: "public"}},
		Routes: []*Route{{Name: "orders", Path: "/v1/orders/{id}", Methods: []string{"GET"}, Public: true, Engine: allowAll, Upstream: echo, UpstreamName: "u"}},
	})
	if err != nil {
		b.Fatal(err)
	}
	return s
}

// BenchmarkH1Conn is the cost of the wrapper alone: a head that comes whole and
// goes on whole.
func BenchmarkH1Conn(b *testing.B) {
	g, err := New(Config{NewID: counter(), Limiter: ratelimit.NewTable(ratelimit.Config{})}, nullSnapshot(b))
	if err != nil {
		b.Fatal(err)
	}
	e := NewHTTPEngine(g, HTTPConfig{Listener: "public"})
	f := &ConnFacts{Listener: "public", Remote: netip.MustParseAddrPort("192.0.2.1:5"), TLS: &tls.ConnectionState{}}
	c := e.H1Conn(&sameBytes{text: []byte(benchFrontHead)}, f).(*h1Conn)
	p := make([]byte, 4096)
	b.ReportAllocs()
	for b.Loop() {
		if n, err := c.Read(p); err != nil || n != len(benchFrontHead) {
			b.Fatal(n, err)
		}
		c.begin(nil)
		c.end()
	}
}

// sameBytes is a connection that brings the same bytes with each read.
type sameBytes struct {
	net.Conn
	text []byte
}

func (s *sameBytes) Read(p []byte) (int, error)      { return copy(p, s.text), nil }
func (s *sameBytes) SetReadDeadline(time.Time) error { return nil }
