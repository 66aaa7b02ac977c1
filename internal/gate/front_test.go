package gate

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/upstream"
	"github.com/gatebook/gatebook/internal/reason"
)

const goodHead = "GET /a HTTP/1.1\r\nHost: example.com\r\n\r\n"

// TestFrontSlowHead: a head has its time from its first byte, however often a
// byte comes, and net/http's own deadlines do not cut that silently.
func TestFrontSlowHead(t *testing.T) {
	h := newFrontHouse(t, houseConfig{engine: HTTPConfig{HeadTime: 150 * time.Millisecond}})
	c, r := h.open(t)
	stop := make(chan struct{})
	go func() {
		defer close(stop)
		for {
			if _, err := io.WriteString(c, "a"); err != nil {
				return
			}
			select {
			case <-t.Context().Done():
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
	send(t, c, "GET /")
	resp, text, err := reply(r)
	if err != nil || resp.StatusCode != 408 || !resp.Close || !strings.Contains(text, `"title":"request timed out"`) {
		t.Fatalf("%v %q %v", resp, text, err)
	}
	rec := h.next(t)
	if rec.Kind != record.KindMalformed || rec.Error.Reason != "timeout_reading" || rec.Status != 408 || rec.Outcome != record.Failure {
		t.Errorf("%s %d %+v", rec.Kind, rec.Status, rec.Error)
	}
	if id := resp.Header.Get("X-Request-Id"); id != rec.ID.String() {
		t.Errorf("id %q, record %s", id, rec.ID)
	}
	c.Close()
	<-stop
	<-h.over
	h.quiet(t)
	if n := h.engine.Stats().Refused.Load(); n != 1 {
		t.Errorf("counter %d", n)
	}
}

// TestFrontSilent: connections that bring nothing leave a count and no record,
// and so do those that end between requests.
func TestFrontSilent(t *testing.T) {
	h := newFrontHouse(t, houseConfig{})
	c, _ := h.open(t)
	c.Close()
	<-h.over
	if n := h.engine.Stats().Silent.Load(); n != 1 {
		t.Errorf("silent: %d", n)
	}
	h.server.IdleTimeout = 30 * time.Millisecond
	c, r := h.open(t)
	send(t, c, goodHead)
	if resp, _, err := reply(r); err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	h.next(t)
	if _, err := r.ReadByte(); err != io.EOF {
		t.Errorf("idle: %v", err)
	}
	<-h.over
	h.quiet(t)
	if s := h.engine.Stats(); s.Idle.Load() != 1 || s.Silent.Load() != 1 {
		t.Errorf("idle %d, silent %d", s.Idle.Load(), s.Silent.Load())
	}
}

// TestFrontWaits: what is bad behind an exchange is answered when the exchange
// is over, and its answer stays whole.
func TestFrontWaits(t *testing.T) {
	up := answersWith(func(*upstream.Request) (string, error) { return strings.Repeat("x", 8192), nil })
	book := gated()
	h := newFrontHouse(t, houseConfig{book: book, up: up})
	for _, second := range []string{"GET / HTTP/1.1\nHost: a\n\n", "GET / HTTP/1.9\r\nHost: a\r\n\r\n"} {
		c, r := h.open(t)
		send(t, c, goodHead)
		<-book.entered
		send(t, c, "%s", second)
		if n := readSome(c, r, make([]byte, 1), 100*time.Millisecond); n != 0 {
			t.Fatal("an answer before the commit")
		}
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		book.hold <- struct{}{}
		resp, text, err := reply(r)
		if err != nil || resp.StatusCode != 200 || len(text) != 8192 {
			t.Fatalf("%v %d bytes, %v", resp, len(text), err)
		}
		if rec := h.next(t); rec.Kind != record.KindRequest || rec.Status != 200 {
			t.Errorf("%+v", rec)
		}
		<-book.entered
		book.hold <- struct{}{}
		if resp, _, err = reply(r); err != nil || resp.StatusCode/100 == 2 || !resp.Close {
			t.Errorf("%v %v", resp, err)
		}
		if rec := h.next(t); rec.Kind != record.KindMalformed || rec.Status != resp.StatusCode {
			t.Errorf("%+v", rec)
		}
		c.Close()
		<-h.over
		h.quiet(t)
	}
}

// TestFrontPipeline: many requests in one write, each with one answer in order.
func TestFrontPipeline(t *testing.T) {
	h := newFrontHouse(t, houseConfig{})
	c, r := h.open(t)
	const n = 50
	go io.WriteString(c, strings.Repeat("POST /a HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n"+goodHead, n/2))
	for i := range n {
		resp, text, err := reply(r)
		if err != nil || resp.StatusCode != 200 || (text == "abc") != (i%2 == 0) {
			t.Fatalf("answer %d: %v %q %v", i, resp, text, err)
		}
		if rec := h.next(t); rec.Status != 200 {
			t.Fatalf("record %d: %+v", i, rec.Error)
		}
	}
	c.Close()
	<-h.over
	h.quiet(t)
}

// TestFrontContinue: the client waits for 100 Continue and gets it.
func TestFrontContinue(t *testing.T) {
	h := newFrontHouse(t, houseConfig{})
	c, r := h.open(t)
	send(t, c, "POST /a HTTP/1.1\r\nHost: example.com\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n")
	if resp, _, err := reply(r); err != nil || resp.StatusCode != 100 {
		t.Fatal(resp, err)
	}
	send(t, c, "abc")
	if resp, text, err := reply(r); err != nil || resp.StatusCode != 200 || text != "abc" {
		t.Fatal(resp, text, err)
	}
	if s := h.engine.Stats(); s.Foreign.Load() != 0 {
		t.Error("the 100 counts as net/http's own answer")
	}
}

// TestFrontClientGone: a client that goes away ends its exchange, with or
// without bytes of another request behind.
func TestFrontClientGone(t *testing.T) {
	for _, more := range []string{"", "GET /b"} {
		waiting := make(chan struct{})
		up := backend(func(ctx context.Context, _ *upstream.Request) (*upstream.Response, error) {
			close(waiting)
			<-ctx.Done()
			return nil, ctx.Err()
		})
		h := newFrontHouse(t, houseConfig{up: up})
		c, _ := h.open(t)
		send(t, c, "%s%s", goodHead, more)
		<-waiting
		c.Close()
		if rec := h.next(t); rec.Kind != record.KindRequest || rec.Error.Reason != "client_aborted" {
			t.Errorf("%+v", rec.Error)
		}
		<-h.over
		if more != "" {
			if rec := h.next(t); rec.Kind != record.KindMalformed || rec.Error.Reason != "client_aborted" || rec.Status != 499 {
				t.Errorf("the second: %s %+v", rec.Kind, rec.Error)
			}
		}
		h.quiet(t)
	}
}

// TestFrontDrain: a request of which the first bytes have come when the server
// stops is told so and recorded; a connection without one just ends.
func TestFrontDrain(t *testing.T) {
	h := newFrontHouse(t, houseConfig{})
	idle, idleReader := h.pipe(t)
	c, r := h.pipe(t)
	for _, one := range []struct {
		c net.Conn
		r *bufio.Reader
	}{{idle, idleReader}, {c, r}} {
		send(t, one.c, goodHead)
		if _, _, err := reply(one.r); err != nil {
			t.Fatal(err)
		}
		h.next(t)
	}
	// A write to a pipe ends when it has been read: with the second, the first
	// has been judged.
	send(t, c, "GET /ha")
	send(t, c, "lf")
	h.gate.Drain()
	stopped := make(chan error, 1)
	go func() { stopped <- h.server.Shutdown(context.Background()) }()
	if resp, _, err := reply(r); err != nil || resp.StatusCode != 503 || !resp.Close {
		t.Errorf("%v %v", resp, err)
	}
	c.Close()
	if rec := h.next(t); rec.Kind != record.KindMalformed || rec.Error.Reason != "shutting_down" || rec.Error.Origin != "gateway" {
		t.Errorf("%s %+v", rec.Kind, rec.Error)
	}
	if _, err := idleReader.ReadByte(); err != io.EOF {
		t.Errorf("idle: %v", err)
	}
	if err := <-stopped; err != nil {
		t.Error(err)
	}
	h.quiet(t)
}

// TestFrontBook: when the book does not take the record the answer says so.
func TestFrontBook(t *testing.T) {
	book := newFakeBook()
	book.commitErr = bookError("book_full")
	h := newFrontHouse(t, houseConfig{book: book})
	c, r := h.open(t)
	send(t, c, "GET / HTTP/1.9\r\n")
	if resp, _, err := reply(r); err != nil || resp.StatusCode != 503 {
		t.Errorf("%v %v", resp, err)
	}
}

// TestFrontForeign: what net/http answers by itself is on record once and
// passes.
func TestFrontForeign(t *testing.T) {
	for text, want := range map[string]struct {
		status int
		reason string
	}{
		"HTTP/1.1 400 Bad Request\r\n\r\n":                     {400, "malformed_request"},
		"HTTP/1.1 431 Request Header Fields Too Large\r\n\r\n": {431, "header_too_large"},
		"HTTP/1.1 505 HTTP Version Not Supported\r\n\r\n":      {505, "unsupported_protocol"},
		"HTTP/1.1 501 Not Implemented\r\n\r\n":                 {501, "malformed_request"},
		"what is this":                                         {0, "malformed_request"},
	} {
		h := newFrontHouse(t, houseConfig{})
		mine, theirs := net.Pipe()
		c := h.engine.H1Conn(mine, tlsFacts())
		got := make(chan string, 1)
		go func() {
			b, _ := io.ReadAll(theirs)
			got <- string(b)
		}()
		for range 2 {
			if _, err := c.Write([]byte(text)); err != nil {
				t.Fatal(err)
			}
		}
		c.Close()
		if out := <-got; out != text+text {
			t.Errorf("passed %q", out)
		}
		rec := h.next(t)
		if rec.Status != want.status || rec.Error.Reason != want.reason || rec.Error.Phase != "nethttp" || rec.Kind != record.KindMalformed {
			t.Errorf("%q: %d %+v", text, rec.Status, rec.Error)
		}
		if rec.TLS.Version != "1.3" || rec.TLS.JA4 != "t13d1516h2_8daaf6152771_e5627efa2ab1" || rec.TLS.SNI != record.Other || rec.Client.Prefix != "192.0.2.0/24" || rec.Client.PortClass != "dynamic" {
			t.Errorf("%+v %+v", rec.TLS, rec.Client)
		}
		h.quiet(t)
		if n := h.engine.Stats().Foreign.Load(); n != 1 {
			t.Errorf("counter %d", n)
		}
	}
}

// TestFrontFacts: the exchanges of a connection over TLS have its facts.
func TestFrontFacts(t *testing.T) {
	h := newFrontHouse(t, houseConfig{snap: func(s *SnapshotConfig) { s.Routes[0].Host = "example.com" }})
	e := NewHTTPEngine(h.gate, HTTPConfig{Listener: "public", TLS: true})
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: e, ConnContext: ConnContext}
	go srv.Serve(frontListener{Listener: l, e: e, facts: tlsFacts})
	defer srv.Close()
	h.addr = l.Addr().String()
	c, r := h.open(t)
	for _, target := range []string{"/a", "https://example.com/a", "HTTPS://Example.com:443/a"} {
		send(t, c, "GET %s HTTP/1.1\r\nHost: example.com\r\n\r\n", target)
		if resp, _, err := reply(r); err != nil || resp.StatusCode != 200 {
			t.Fatal(target, resp, err)
		}
		rec := h.next(t)
		if rec.TLS.Version != "1.3" || rec.TLS.JA4 != tlsFacts().JA4 || rec.Host != "example.com" {
			t.Errorf("%s: %+v", target, rec.TLS)
		}
	}
}

// TestRefused: records of attempts that had no connection state.
func TestRefused(t *testing.T) {
	h := newHouse(t, houseConfig{})
	f := tlsFacts()
	f.TLS, f.OfferedVersions = nil, []uint16{0x0302, 0x0301, 0x0300, 0x4444}
	id := h.gate.Refused(record.KindHandshake, f, reason.TLSVersion, "version")
	rec := h.one(t).rec
	if rec.ID.String() != id || rec.Kind != record.KindHandshake || rec.Status != 0 || rec.Proto != "" || rec.TLS.Version != "ssl3,1.0,1.1" ||
		rec.Outcome != record.Failure || rec.Authn.Method != record.None || rec.Route != record.None || rec.Op != record.None || rec.Node == "" || rec.Snap == "" {
		t.Errorf("%+v", rec)
	}
	h.gate.Refused(record.KindMalformed, tlsFacts(), reason.BadHost, "head")
	if rec = h.one(t).rec; rec.Status != 400 || rec.Proto != "HTTP/1.1" || rec.Error.Reason != "bad_host" {
		t.Errorf("%+v", rec)
	}
	f = tlsFacts()
	f.TLS.NegotiatedProtocol = "h2"
	h.gate.Refused(record.KindMalformed, f, reason.MalformedRequest, "frames")
	if rec = h.one(t).rec; rec.Status != 0 || rec.Proto != "HTTP/2" {
		t.Errorf("%+v", rec)
	}
}

// TestFrontDeadlines: an aborted read keeps what has come, and goes on.
func TestFrontDeadlines(t *testing.T) {
	h := newFrontHouse(t, houseConfig{})
	mine, theirs := net.Pipe()
	c := h.engine.H1Conn(mine, tlsFacts())
	var one [1]byte
	type result struct {
		n   int
		err error
	}
	got := make(chan result)
	read := func(p []byte) {
		n, err := c.Read(p)
		got <- result{n, err}
	}
	for _, piece := range []string{"GET / HT", "TP/1.1\r\nHo", "st: a.example\r\n\r"} {
		go read(one[:])
		send(t, theirs, "%s", piece)
		_ = c.SetReadDeadline(time.Unix(1, 0))
		var timeout net.Error
		if r := <-got; r.n != 0 || !errors.As(r.err, &timeout) || !timeout.Timeout() {
			t.Fatalf("%q: %+v", piece, r)
		}
		_ = c.SetReadDeadline(time.Time{})
	}
	go read(one[:])
	send(t, theirs, "\n")
	if r := <-got; r.n != 1 || r.err != nil || one[0] != 'G' {
		t.Fatalf("%+v %q", r, one)
	}
	go read(make([]byte, 100))
	if r := <-got; r.n != len("ET / HTTP/1.1\r\nHost: a.example\r\n\r\n") || r.err != nil {
		t.Fatalf("%+v", r)
	}
	if n, err := c.Read(nil); n != 0 || err != nil {
		t.Error(n, err)
	}
	go read(one[:])
	c.Close()
	if r := <-got; r.err == nil {
		t.Error("read after close")
	}
	theirs.Close()
	// A head went to net/http and no exchange came of it.
	if rec := h.next(t); rec.Error.Phase != "nethttp" && rec.Error.Reason != "client_aborted" {
		t.Errorf("%+v", rec.Error)
	}
}

// TestFrontLargeHead: a head larger than every buffer on the way.
func TestFrontLargeHead(t *testing.T) {
	h := newFrontHouse(t, houseConfig{})
	c, r := h.open(t)
	head := "POST /a HTTP/1.1\r\nHost: example.com\r\nContent-Length: 100000\r\nX-Big: " + strings.Repeat("b", 30<<10) + "\r\n\r\n"
	body := strings.Repeat("0123456789", 10000)
	for range 2 {
		for _, part := range []string{head[:5000], head[5000:20000], head[20000:] + body[:1000], body[1000:]} {
			send(t, c, "%s", part)
		}
		if resp, text, err := reply(r); err != nil || resp.StatusCode != 200 || text != body {
			t.Fatal(resp, len(text), err)
		}
		h.next(t)
	}
}

// TestFrontUnread: when nobody reads a body that breaks its framing, the
// exchange is answered as it would have been, and the connection ends there:
// what follows is never taken for a request.
func TestFrontUnread(t *testing.T) {
	h := newFrontHouse(t, houseConfig{})
	c, r := h.open(t)
	send(t, c, "DELETE /a HTTP/1.1\r\nHost: example.com\r\nTransfer-Encoding: chunked\r\n\r\n1;x\r\na\r\n0\r\n\r\n%s", goodHead)
	resp, _, err := reply(r)
	if err != nil || resp.StatusCode != 405 || !resp.Close {
		t.Fatal(resp, err)
	}
	if more, err := io.ReadAll(r); len(more) > 0 {
		t.Errorf("%q %v", more, err)
	}
	c.Close()
	<-h.over
	if rec := h.next(t); rec.Status != 405 || rec.Kind != record.KindRequest {
		t.Errorf("%+v", rec.Error)
	}
	h.quiet(t)
	if n := h.engine.Stats().Framing.Load(); n != 1 {
		t.Errorf("counter %d", n)
	}
}

// TestBehindTheLast: what a client sends behind a request whose answer ends the
// connection is dropped unread: it has no answer, so it has no record, and what
// was answered has exactly one.
func TestBehindTheLast(t *testing.T) {
	get := "GET /v1 HTTP/1.1\r\nHost: example.com\r\n"
	for _, tc := range []struct {
		name, first, kind, reason string
		status                    int
	}{
		{"close asked for", get + "Connection: close\r\n\r\n", "request", "", 200},
		{"refused head", "GET /v1 HTTP/1.1\r\n\r\n", "malformed", "bad_host", 400},
		{"refused request", get + "Connection: x-own\r\n\r\n", "malformed", "", 400},
	} {
		for behind, text := range map[string]string{
			"good": get + "\r\n", "half": get, "malformed": "no\r\n\r\n", "two": get + "\r\n" + get + "\r\n",
		} {
			t.Run(tc.name+"/"+behind, func(t *testing.T) {
				h := newFrontHouse(t, houseConfig{})
				c, err := net.Dial("tcp", h.addr)
				if err != nil {
					t.Fatal(err)
				}
				defer c.Close()
				if _, err := io.WriteString(c, tc.first+text); err != nil {
					t.Fatal(err)
				}
				in := bufio.NewReader(c)
				resp, err := http.ReadResponse(in, nil)
				if err != nil || resp.StatusCode != tc.status || !resp.Close {
					t.Fatalf("%v %v", resp, err)
				}
				io.Copy(io.Discard, resp.Body)
				if rest, _ := io.ReadAll(in); len(rest) != 0 {
					t.Errorf("%q behind the last answer", rest)
				}
				<-h.over
				if rec := h.next(t); string(rec.Kind) != tc.kind || rec.Status != tc.status || tc.reason != "" && rec.Error.Reason != tc.reason {
					t.Errorf("%s %d %+v", rec.Kind, rec.Status, rec.Error)
				}
				h.quiet(t)
			})
		}
	}
}
