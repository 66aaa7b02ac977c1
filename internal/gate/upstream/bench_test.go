package upstream

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/url"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// startPlain is a server of the least possible cost: it answers each head it
// sees with 1 KiB.
func startPlain(tb testing.TB) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { _ = ln.Close() })
	answer := []byte("HTTP/1.1 200 OK\r\nServer: plain\r\nContent-Type: application/json\r\nContent-Length: 1024\r\n\r\n" + strings.Repeat("x", 1024))
	go func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer nc.Close()
				buf := make([]byte, 4096)
				for {
					n, err := nc.Read(buf)
					if err != nil {
						return
					}
					if n >= 4 && string(buf[n-4:n]) == "\r\n\r\n" {
						if _, err := nc.Write(answer); err != nil {
							return
						}
					}
				}
			}()
		}
	}()
	return "http://" + ln.Addr().String()
}

var benchFields = []canon.Field{
	{Name: "accept", Value: "application/json"}, {Name: "user-agent", Value: "bench/1"}, {Name: "x-gatebook-subject", Value: "abcdefghijklmnopqrstuv"},
	{Name: "x-gatebook-request-id", Value: "0193535f-0000-7000-8000-000000000000"}, {Name: "traceparent", Value: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"},
}

// BenchmarkRoundTrip compares the pool with the bare transport under it.
func BenchmarkRoundTrip(b *testing.B) {
	base := startPlain(b)
	buf := make([]byte, 4096)
	drain := func(b *testing.B, body io.ReadCloser) {
		for {
			if _, err := body.Read(buf); err == io.EOF {
				break
			} else if err != nil {
				b.Fatal(err)
			}
		}
		if err := body.Close(); err != nil {
			b.Fatal(err)
		}
	}
	b.Run("transport", func(b *testing.B) {
		tr := &http.Transport{DisableCompression: true}
		defer tr.CloseIdleConnections()
		b.ReportAllocs()
		for b.Loop() {
			u, err := url.Parse(base + "/v1/orders/42")
			if err != nil {
				b.Fatal(err)
			}
			h := make(http.Header, len(benchFields))
			for _, f := range benchFields {
				h.Set(f.Name, f.Value)
			}
			req := (&http.Request{Method: "GET", URL: u, Host: u.Host, Header: h}).WithContext(context.Background())
			resp, err := tr.RoundTrip(req)
			if err != nil {
				b.Fatal(err)
			}
			drain(b, resp.Body)
		}
	})
	b.Run("pool", func(b *testing.B) {
		p := newPool(b, Config{}, base)
		r := &Request{Method: "GET", Path: "/v1/orders/42", Fields: benchFields}
		b.ReportAllocs()
		for b.Loop() {
			resp, err := p.RoundTrip(context.Background(), r)
			if err != nil {
				b.Fatal(err)
			}
			drain(b, resp.Body)
		}
	})
}

func BenchmarkPick(b *testing.B) {
	for _, balance := range []string{RoundRobin, LeastRequests} {
		b.Run(balance, func(b *testing.B) {
			p := newPool(b, Config{Balance: balance}, "http://a", "http://b", "http://c", "http://d")
			b.ReportAllocs()
			var start uint64
			for b.Loop() {
				if _, ok := p.pick(start, 0); !ok {
					b.Fatal("none")
				}
				start++
			}
		})
	}
}
