package upstream

import (
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/faultyup"
)

func TestResponses(t *testing.T) {
	_, p := serverAndPool(t, Config{})
	for _, tt := range []struct {
		method, path string
		status       int
		length       int64
		fields       string
		body         string
		trailers     string
		kept         bool
	}{
		{"GET", "/hop-by-hop", 200, 3, "x-kept=one;vary=a;x-kept=two;", "abc", "", true},
		{"GET", "/chunked", 200, -1, "", "abcdef", "", true},
		{"GET", "/empty-chunked", 200, -1, "", "", "", true},
		{"GET", "/chunk-ext", 200, -1, "", "abc", "", true},
		{"GET", "/trailers", 200, -1, "", "abc", "grpc-status=0;x-sum=one;x-sum=two;", true},
		{"GET", "/close-delimited", 200, -1, "", "until the end", "", false},
		{"GET", "/conn-close", 200, 3, "", "abc", "", false},
		{"GET", "/http10", 200, 3, "", "abc", "", false},
		{"GET", "/status/200", 200, 0, "", "", "", true},
		{"GET", "/status/204", 204, 0, "", "", "", true},
		{"GET", "/status/304", 304, -1, "", "", "", true},
		{"GET", "/not-modified", 304, 5, "etag=\"a\";", "", "", true},
		{"GET", "/status/404", 404, 0, "", "", "", true},
		{"GET", "/status/503", 503, 0, "", "", "", true},
		{"GET", "/status/301", 301, 0, "", "", "", true},
		{"GET", "/status/599", 599, 0, "", "", "", true},
		{"GET", "/bytes/1", 200, 1, "", "x", "", true},
	} {
		r := get(tt.path)
		r.Method = tt.method
		a := mustDo(t, p, r)
		if a.Status != tt.status || a.Length != tt.length || fieldText(a.Fields) != tt.fields || a.body != tt.body || fieldText(a.trailers) != tt.trailers {
			t.Errorf("%s %s: status %d, length %d, fields %q, body %q, trailers %q; want %+v",
				tt.method, tt.path, a.Status, a.Length, fieldText(a.Fields), a.body, fieldText(a.trailers), tt)
		}
		if a.Attempts != 1 || a.Target != p.Stats()[0].Target || a.Breaker != BreakerClosed || a.TTFB <= 0 {
			t.Errorf("%s: attempts %d, target %q, breaker %s, ttfb %v", tt.path, a.Attempts, a.Target, a.Breaker, a.TTFB)
		}
		if next := mustDo(t, p, get("/next")); next.Reused != tt.kept || next.body != "ok GET /next" {
			t.Errorf("after %s: next answer %q over a kept connection %t, want %t", tt.path, next.body, next.Reused, tt.kept)
		}
	}
	head := get("/page")
	head.Method = "HEAD"
	if a := mustDo(t, p, head); a.Length != int64(len("ok HEAD /page")) || a.body != "" || a.Status != 200 {
		t.Errorf("HEAD: status %d, length %d, body %q", a.Status, a.Length, a.body)
	}
	checkIdle(t, p)
}

// TestTrailerSize pins where net/http stops to take trailers.
func TestTrailerSize(t *testing.T) {
	s, p := serverAndPool(t, Config{})
	for size, ok := range map[int]bool{7 << 10: true, 9 << 10: false} {
		s.Handle("/sized", func(c *faultyup.Conn, _ *faultyup.Seen) bool {
			return c.Send("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\nGrpc-Message: " + strings.Repeat("a", size) + "\r\n\r\n")
		})
		a, err := do(p, get("/sized"))
		if ok && (err != nil || len(a.trailers) != 1 || len(a.trailers[0].Value) != size) {
			t.Errorf("%d bytes: %v", size, err)
		}
		if !ok && reasonOf(err) != reason.BadResponse {
			t.Errorf("%d bytes: %v, want %s", size, err, reason.BadResponse)
		}
	}
	checkIdle(t, p)
}

func TestFieldFilters(t *testing.T) {
	in := []canon.Field{
		{Name: "connection", Value: "X-A , close"}, {Name: "x-a", Value: "1"}, {Name: "x-b", Value: "2"}, {Name: "connection", Value: "x-c"},
		{Name: "x-c", Value: "3"}, {Name: "set-cookie", Value: "a"}, {Name: "set-cookie", Value: "b"}, {Name: "te", Value: "x"}, {Name: "content-length", Value: "1"},
	}
	if got, want := fieldText(endToEnd(in)), "x-b=2;set-cookie=a;set-cookie=b;"; got != want {
		t.Errorf("end to end %q, want %q", got, want)
	}
	trailers := []canon.Field{
		{Name: "grpc-status", Value: "0"}, {Name: "content-type", Value: "a"}, {Name: "authorization", Value: "a"}, {Name: "transfer-encoding", Value: "a"},
		{Name: "set-cookie", Value: "a"}, {Name: "access-control-allow-origin", Value: "*"}, {Name: "grpc-message", Value: "ok"},
	}
	if got, want := fieldText(endToEndTrailers(trailers)), "grpc-status=0;grpc-message=ok;"; got != want {
		t.Errorf("trailers %q, want %q", got, want)
	}
}

// TestConcurrent makes many exchanges at once, faults among them, and holds
// each answer against its question.
func TestConcurrent(t *testing.T) {
	s, p := serverAndPool(t, Config{MaxIdlePerTarget: 4, Ejection: Ejection{Failures: 1 << 20}})
	faults := []string{"/rst", "/excess", "/short-body", "/two-lengths", "/head-with-body", "/rst-body", "/no-content-body"}
	var wg sync.WaitGroup
	for g := range 8 {
		wg.Go(func() {
			for i := range 50 {
				if i%5 == 4 {
					if _, err := do(p, get(faults[(g+i)%len(faults)])); err == nil && faults[(g+i)%len(faults)] != "/head-with-body" {
						t.Errorf("%s: no error", faults[(g+i)%len(faults)])
					}
					continue
				}
				path := fmt.Sprintf("/q/%d/%d", g, i)
				r := get(path)
				r.Fields = []canon.Field{{Name: "x-gatebook-request-id", Value: path}}
				if a, err := do(p, r); err != nil || a.body != "ok GET "+path {
					t.Errorf("%s: answer %v, %v", path, a, err)
				}
			}
		})
	}
	wg.Wait()
	checkIdle(t, p)
	ids := s.IDs()
	for g := range 8 {
		for i := range 50 {
			if path := fmt.Sprintf("/q/%d/%d", g, i); i%5 != 4 && ids[path] != 1 {
				t.Errorf("%s arrived %d times", path, ids[path])
			}
		}
	}
}

// TestPoisonedConnection sends a second response that nobody asked for, at
// the worst moments, and makes sure that no later request is given it.
func TestPoisonedConnection(t *testing.T) {
	const poison = "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\npoison"
	s, p := serverAndPool(t, Config{})
	release := make(chan struct{})
	s.Handle("/late", func(c *faultyup.Conn, r *faultyup.Seen) bool {
		faultyup.OK(c, r)
		<-release // the pool has the connection back
		return c.Send(poison)
	})
	for _, method := range []string{"GET", "POST"} {
		release = make(chan struct{})
		a := mustDo(t, p, get("/late"))
		if a.body != "ok GET /late" {
			t.Fatalf("answer %q", a.body)
		}
		before := s.Open()
		close(release)
		s.WaitOpen(before - 1)
		if a := mustDo(t, p, &Request{Method: method, Path: "/next"}); a.body != "ok "+method+" /next" {
			t.Errorf("answer %q", a.body)
		}
	}
}

// TestCloseUnderWay closes the pool while an exchange goes on.
func TestCloseUnderWay(t *testing.T) {
	s, p := serverAndPool(t, Config{})
	hold := make(chan struct{})
	s.Handle("/slow", func(c *faultyup.Conn, r *faultyup.Seen) bool { <-hold; return faultyup.OK(c, r) })
	result := make(chan error, 1)
	go func() {
		a, err := do(p, get("/slow"))
		if err == nil && a.body != "ok GET /slow" {
			err = fmt.Errorf("answer %q", a.body)
		}
		result <- err
	}()
	s.Wait(1)
	p.Close()
	if _, err := do(p, get("/")); err != ErrClosed {
		t.Errorf("error %v, want %v", err, ErrClosed)
	}
	close(hold)
	if err := <-result; err != nil {
		t.Errorf("exchange under way: %v", err)
	}
	s.WaitOpen(0) // its connection is not kept
}

var _ net.Conn = (*conn)(nil)
