package faultyup

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
)

// TestServer asks the proper handlers through net/http, which must find
// nothing odd.
func TestServer(t *testing.T) {
	s := Start(t)
	s.Handle("/own", func(c *Conn, r *Seen) bool { return c.Send("HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n") })
	tr := &http.Transport{}
	defer tr.CloseIdleConnections()
	for _, tt := range []struct {
		path, body string
		status     int
		want       string
	}{
		{"/a?b=c", "", 200, "ok POST /a?b=c"}, {"/echo", "hello", 200, "hello"}, {"/own", "", 202, ""}, {"/status/404", "", 404, ""},
		{"/bytes/3", "", 200, "xxx"}, {"/chunks/3", "", 200, "xxx"}, {"/trailers", "", 200, "abc"},
	} {
		req, err := http.NewRequest("POST", s.URL()+tt.path, strings.NewReader(tt.body))
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Gatebook-Request-Id", "id"+tt.path)
		resp, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatalf("%s: %v", tt.path, err)
		}
		body, err := io.ReadAll(resp.Body)
		if cerr := resp.Body.Close(); cerr != nil {
			t.Error(cerr)
		}
		if err != nil || resp.StatusCode != tt.status || string(body) != tt.want {
			t.Errorf("%s: status %d, body %q, %v", tt.path, resp.StatusCode, body, err)
		}
	}
	seen := s.Wait(7)
	if len(seen) != 7 || seen[0].Method != "POST" || seen[0].Path != "/a" || seen[0].Query != "b=c" || seen[0].ID != "id/a?b=c" || string(seen[1].Body) != "hello" {
		t.Errorf("saw %+v", seen)
	}
	if s.Count("/echo") != 1 || s.IDs()["id/echo"] != 1 || s.Accepted() != 1 || s.Open() != 1 {
		t.Errorf("counts %d, ids %v, accepted %d, open %d", s.Count("/echo"), s.IDs(), s.Accepted(), s.Open())
	}
	s.CloseConns()
	s.WaitOpen(0)
}

// TestFaults makes sure that every fault ends without help once the peer
// closes, so that Close never hangs.
func TestFaults(t *testing.T) {
	s := Start(t)
	n := 0
	for path := range Faults() {
		if path == "/stall-read" {
			continue // ends with the server
		}
		path = strings.Replace(path, "*", "3", 1)
		nc, err := net.Dial("tcp", s.Addr())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := io.WriteString(nc, "GET "+path+" HTTP/1.1\r\nHost: a\r\n\r\n"); err != nil {
			t.Fatal(err)
		}
		n++
		s.Wait(n)
		if !strings.HasPrefix(path, "/stall") {
			_, _ = bufio.NewReader(nc).ReadByte() // an answer, its end or a reset
		}
		if err := nc.Close(); err != nil {
			t.Error(err)
		}
		s.WaitOpen(0)
	}
	other := RefusedAddr(t)
	if nc, err := net.Dial("tcp", other); err == nil {
		t.Errorf("%s takes connections", other)
		_ = nc.Close()
	}
}

// TestReadHead refuses what a gate must not send.
func TestReadHead(t *testing.T) {
	for raw, ok := range map[string]bool{
		"GET / HTTP/1.1\r\nHost: a\r\n\r\n": true, "GET / HTTP/1.0\r\n\r\n": false, "GET /a b HTTP/1.1\r\n\r\n": false,
		"GET / HTTP/1.1\nHost: a\n\n": false, "GET / HTTP/1.1\r\nHost\r\n\r\n": false, "GET / HTTP/1.1\r\n": false,
	} {
		if _, err := readHead(bufio.NewReader(strings.NewReader(raw))); (err == nil) != ok {
			t.Errorf("%q: %v", raw, err)
		}
	}
}
