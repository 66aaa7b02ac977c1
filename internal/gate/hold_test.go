package gate

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/gate/upstream"
	"github.com/gatebook/gatebook/internal/reason"
)

// gated makes a book whose Commit waits.
func gated() *fakeBook {
	b := newFakeBook()
	b.hold = make(chan struct{})
	return b
}

// TestHeldWhole: an answer without a body, a short one and the gate's own keep
// their head until the commit. The client gets nothing at all before.
func TestHeldWhole(t *testing.T) {
	for name, tc := range map[string]struct {
		up     backend
		method string
		fields []string
		want   int
	}{
		"no content":  {answers(204, 0, nil), "GET", nil, 204},
		"head":        {answers(200, 5, nil), "HEAD", nil, 200},
		"empty":       {answers(200, 0, nil), "GET", nil, 200},
		"short":       {answers(200, 5, nil, "hello"), "GET", nil, 200},
		"own":         {nil, "GET", []string{"Authorization", ""}, 401},
		"unreachable": {broken(reason.ConnectRefused), "GET", nil, 502},
	} {
		t.Run(name, func(t *testing.T) {
			for _, proto := range []string{"h1", "h2"} {
				book := gated()
				h := newHouse(t, houseConfig{book: book, up: tc.up})
				c := h.h1
				if proto == "h2" {
					c = h.h2
				}
				got := make(chan *http.Response, 1)
				go func() {
					resp, err := c.Do(h.request(t, tc.method, "/v1/orders/1", nil, tc.fields...))
					if err != nil {
						t.Errorf("%s: %v", proto, err)
					}
					got <- resp
				}()
				<-book.entered
				select {
				case resp := <-got:
					t.Errorf("%s: head %v before the commit", proto, resp.Status)
				default:
				}
				close(book.hold)
				if resp := <-got; resp == nil || resp.StatusCode != tc.want {
					t.Errorf("%s: %v", proto, resp)
				} else {
					resp.Body.Close()
				}
			}
		})
	}
}

// readSome reads until n bytes have come or the deadline passes, and says how
// many came.
func readSome(c interface {
	io.Reader
	SetReadDeadline(time.Time) error
}, r *bufio.Reader, p []byte, d time.Duration) int {
	_ = c.SetReadDeadline(time.Now().Add(d))
	n, _ := io.ReadFull(r, p)
	_ = c.SetReadDeadline(time.Time{})
	return n
}

// TestHeldFinalByte: of a known length everything may go but the final byte,
// seen from the wire.
func TestHeldFinalByte(t *testing.T) {
	const size = 256 << 10
	first, rest := strings.Repeat("a", 1000), strings.Repeat("b", size-1001)+"z"
	book := gated()
	h := newHouse(t, houseConfig{book: book, up: answers(200, size, nil, first, rest)})
	conn, r := h.dial(t)
	fmt.Fprintf(conn, "GET /v1/orders/1 HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer good\r\n\r\n")
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.ContentLength != size {
		t.Fatalf("%v %v", resp, err)
	}
	<-book.entered // everything but the final byte was written
	buf := make([]byte, size)
	n := readSome(conn, r, buf, 200*time.Millisecond)
	if n >= size {
		t.Fatal("the final byte came before the commit")
	}
	if n < size-(8<<10) {
		t.Errorf("only %d of %d bytes came before the commit", n, size)
	}
	close(book.hold)
	if _, err := io.ReadFull(r, buf[n:]); err != nil || buf[size-1] != 'z' {
		t.Errorf("the rest: %v", err)
	}
}

// TestHeldTerminator: a stream flows, only its end is held back.
func TestHeldTerminator(t *testing.T) {
	book := gated()
	up := answers(200, -1, []canon.Field{{Name: "content-type", Value: "text/event-stream"}}, "data: 1\n\n", "data: 2\n\n")
	h := newHouse(t, houseConfig{book: book, up: up})

	t.Run("h1", func(t *testing.T) {
		conn, r := h.dial(t)
		fmt.Fprintf(conn, "GET /v1/orders/1 HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer good\r\n\r\n")
		<-book.entered
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 18)
		if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != "data: 1\n\ndata: 2\n\n" {
			t.Fatalf("%q %v", buf, err)
		}
		one := make([]byte, 2) // the line end of the last chunk has come, the terminator has not
		if n := readSome(conn, r, one, 100*time.Millisecond); n == 2 {
			one = append(one, 0)
			if n := readSome(conn, r, one[2:], 100*time.Millisecond); n > 0 {
				t.Errorf("%q after the data, before the commit", one)
			}
		}
	})
	t.Run("h2", func(t *testing.T) {
		resp, err := h.h2.Do(h.request(t, "GET", "/v1/orders/1", nil))
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		buf := make([]byte, 18)
		if _, err := io.ReadFull(resp.Body, buf); err != nil {
			t.Fatal(err)
		}
		<-book.entered
		end := make(chan error, 1)
		go func() {
			_, err := resp.Body.Read(make([]byte, 1))
			end <- err
		}()
		select {
		case err := <-end:
			t.Errorf("%v before the commit", err)
		case <-time.After(100 * time.Millisecond): // nothing may come; there is no event to wait for
		}
		close(book.hold)
		if err := <-end; err != io.EOF {
			t.Errorf("after the commit: %v", err)
		}
	})
}

// TestEventsFlow: each piece of a stream reaches the client before the
// upstream has sent the next.
func TestEventsFlow(t *testing.T) {
	next := make(chan string)
	up := backend(func(context.Context, *upstream.Request) (*upstream.Response, error) {
		r := response(200, -1, nil, nil)
		r.Body = io.NopCloser(readerFunc(func(p []byte) (int, error) {
			s, ok := <-next
			if !ok {
				return 0, io.EOF
			}
			return copy(p, s), nil
		}))
		return r, nil
	})
	h := newHouse(t, houseConfig{up: up})
	h.both(func(t *testing.T, c *http.Client, _ string) {
		next = make(chan string)
		resp, err := c.Do(h.request(t, "GET", "/v1/orders/1", nil)) // the head comes before any data
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for _, s := range []string{"one", "two", "six"} {
			next <- s
			buf := make([]byte, 3)
			if _, err := io.ReadFull(resp.Body, buf); err != nil || string(buf) != s {
				t.Fatalf("%q %v", buf, err)
			}
		}
		close(next)
		if _, err := resp.Body.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("end: %v", err)
		}
		if c := h.one(t); c.rec.BytesOut != 9 || c.rec.Outcome != record.Success {
			t.Errorf("%+v", c.rec)
		}
	})
}

type readerFunc func([]byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }

// TestClientGone: whatever the client was waiting for, there is one record.
func TestClientGone(t *testing.T) {
	t.Run("while the upstream thinks", func(t *testing.T) {
		inside := make(chan struct{})
		h := newHouse(t, houseConfig{up: backend(func(ctx context.Context, _ *upstream.Request) (*upstream.Response, error) {
			inside <- struct{}{}
			<-ctx.Done()
			return nil, ctx.Err()
		})})
		h.both(func(t *testing.T, c *http.Client, _ string) {
			ctx, cancel := context.WithCancel(t.Context())
			go func() { <-inside; cancel() }()
			if _, err := c.Do(h.request(t, "GET", "/v1/orders/1", nil).WithContext(ctx)); err == nil {
				t.Error("got an answer")
			}
			gone(t, h.one(t), "forward")
		})
	})
	t.Run("in an answer", func(t *testing.T) {
		h := newHouse(t, houseConfig{up: backend(func(ctx context.Context, _ *upstream.Request) (*upstream.Response, error) {
			r := response(200, -1, nil, nil)
			sent := false
			r.Body = io.NopCloser(readerFunc(func(p []byte) (int, error) {
				if !sent {
					sent = true
					return copy(p, "data"), nil
				}
				<-ctx.Done()
				return 0, ctx.Err()
			}))
			return r, nil
		})})
		h.both(func(t *testing.T, c *http.Client, _ string) {
			ctx, cancel := context.WithCancel(t.Context())
			resp, err := c.Do(h.request(t, "GET", "/v1/orders/1", nil).WithContext(ctx))
			if err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(resp.Body, make([]byte, 4)); err != nil {
				t.Fatal(err)
			}
			cancel()
			resp.Body.Close()
			got := h.one(t)
			gone(t, got, "body")
			if got.rec.UpstreamStatus != 200 || got.rec.BytesOut != 4 {
				t.Errorf("%+v", got.rec)
			}
		})
	})
	t.Run("in its own body", func(t *testing.T) {
		h := newHouse(t, houseConfig{})
		conn, _ := h.dial(t)
		fmt.Fprintf(conn, "POST /v1/orders/1 HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer good\r\nContent-Length: 10\r\n\r\nabc")
		conn.Close()
		got := h.one(t)
		gone(t, got, "forward")
		if got.rec.BytesIn != 3 {
			t.Errorf("bytes_in %d", got.rec.BytesIn)
		}
	})
}

// TestCut: what the gate itself cuts when its time to drain is over was not
// given up by the client, before the answer and in it.
func TestCut(t *testing.T) {
	for name, begins := range map[string]bool{"before the answer": false, "in the answer": true} {
		t.Run(name, func(t *testing.T) {
			arrived := make(chan struct{}, 1)
			h := newHouse(t, houseConfig{up: backend(func(ctx context.Context, _ *upstream.Request) (*upstream.Response, error) {
				arrived <- struct{}{}
				if !begins {
					<-ctx.Done()
					return nil, ctx.Err()
				}
				r := response(200, -1, nil, nil)
				r.Body = io.NopCloser(readerFunc(func([]byte) (int, error) { <-ctx.Done(); return 0, ctx.Err() }))
				return r, nil
			})})
			h.both(func(t *testing.T, c *http.Client, proto string) {
				result := make(chan error, 1)
				go func() {
					resp, err := c.Do(h.request(t, "GET", "/v1/orders/1", nil))
					if err == nil {
						_, err = io.ReadAll(resp.Body)
						resp.Body.Close()
					}
					result <- err
				}()
				<-arrived
				h.gate.Cut()
				h.server.CloseClientConnections()
				if err := <-result; err == nil {
					t.Error("a whole answer")
				}
				want, status := record.Error{Origin: "gateway", Reason: "shutting_down", Phase: "forward"}, 503
				if begins {
					want.Phase, status = "body", 200
				}
				if r := h.one(t).rec; r.Error != want || r.Status != status || r.Outcome != record.Failure {
					t.Errorf("%s: status %d outcome %s error %+v", proto, r.Status, r.Outcome, r.Error)
				}
			})
		})
	}
}

func gone(t *testing.T, c committed, phase string) {
	t.Helper()
	r := c.rec
	if r.Status != reason.StatusClientAborted || r.Error != (record.Error{Origin: "client", Reason: "client_aborted", Phase: phase}) || r.Outcome != record.Failure {
		t.Errorf("status %d outcome %s error %+v", r.Status, r.Outcome, r.Error)
	}
}

// TestInterim: interim answers pass but 100 and 101.
func TestInterim(t *testing.T) {
	h := newHouse(t, houseConfig{up: backend(func(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
		for _, code := range []int{100, 101, 103, 102} {
			err := r.Interim(code, []canon.Field{{Name: "link", Value: "</a.css>"}, {Name: "x-request-id", Value: "theirs"}, {Name: "connection", Value: "close"}})
			if err != nil {
				return nil, err
			}
		}
		return response(200, 2, nil, io.EOF, "ok"), nil
	})})
	conn, r := h.dial(t)
	fmt.Fprintf(conn, "GET /v1/orders/1 HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer good\r\n\r\n")
	var got []int
	for {
		resp, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		got = append(got, resp.StatusCode)
		if id := resp.Header.Get("X-Request-Id"); id == "theirs" || id == "" {
			t.Errorf("%d: request id %q", resp.StatusCode, id)
		}
		if resp.StatusCode >= 200 {
			if resp.Header.Get("Link") != "" {
				t.Error("a field of an interim answer stays in the final one")
			}
			break
		}
		if resp.Header.Get("Link") == "" || resp.Header.Get("Connection") != "" {
			t.Errorf("%d: %v", resp.StatusCode, resp.Header)
		}
	}
	if fmt.Sprint(got) != "[103 102 200]" {
		t.Errorf("answers %v", got)
	}
	<-h.book.done
}

// TestTrailers: response trailers pass, but not those that would change how
// the answer is read.
func TestTrailers(t *testing.T) {
	h := newHouse(t, houseConfig{up: backend(func(context.Context, *upstream.Request) (*upstream.Response, error) {
		r := response(200, -1, nil, io.EOF, "data")
		r.Trailers = func() []canon.Field {
			return []canon.Field{{Name: "grpc-status", Value: "0"}, {Name: "x-sum", Value: "1"}, {Name: "x-sum", Value: "2"}, {Name: "content-length", Value: "9"},
				{Name: "authorization", Value: "x"}, {Name: "transfer-encoding", Value: "x"}, {Name: "set-cookie", Value: "a=b"}, {Name: "x-forwarded-for", Value: "x"}}
		}
		return r, nil
	})})
	h.both(func(t *testing.T, c *http.Client, _ string) {
		resp, text, err := do(t, c, h.request(t, "GET", "/v1/orders/1", nil))
		if err != nil || text != "data" {
			t.Fatalf("%q %v", text, err)
		}
		if fmt.Sprint(resp.Trailer) != "map[Grpc-Status:[0] X-Sum:[1 2]]" {
			t.Errorf("trailers %v", resp.Trailer)
		}
		<-h.book.done
	})
}

// TestGRPC: failures are trailers-only answers.
func TestGRPC(t *testing.T) {
	for _, tc := range []struct {
		conf    houseConfig
		fields  []string
		status  string
		message string
	}{
		{houseConfig{}, []string{"Authorization", "Bearer old"}, "16", "authentication failed"},
		{houseConfig{tune: func(r *Route) { r.Scopes = []string{"write"} }}, nil, "7", "access denied"},
		{houseConfig{tune: func(r *Route) { r.MaxBody = 1 }}, nil, "8", "request too large"},
		{houseConfig{up: broken(reason.ConnectRefused)}, nil, "14", "upstream unavailable"},
	} {
		h := newHouse(t, tc.conf)
		r := h.request(t, "POST", "/v1/orders/1", body(5), append([]string{"Content-Type", "application/grpc+proto", "Te", "trailers"}, tc.fields...)...)
		resp, text, err := do(t, h.h2, r)
		if err != nil {
			t.Fatal(err)
		}
		get := resp.Header.Get
		if resp.StatusCode != 200 || text != "" || get("Grpc-Status") != tc.status || get("Grpc-Message") != tc.message || get("Content-Type") != "application/grpc" {
			t.Errorf("%s: %d %q %v", tc.status, resp.StatusCode, text, resp.Header)
		}
		if c := h.one(t); c.rec.Status != 200 || c.rec.Outcome != record.Failure || c.rec.Error.Reason == "" {
			t.Errorf("%+v", c.rec)
		}
	}
	for ct, want := range map[string]bool{
		"application/grpc": true, "application/grpc;x=y": true, "Application/GRPC+json": true, "application/grpc-web": false,
		"application/grpc-web+proto": false, "application/json": false, "": false, "application/grpcx": false,
	} {
		if isGRPC(ct) != want {
			t.Errorf("%q: %v", ct, !want)
		}
	}
}

// TestKeepAlive: one connection carries many exchanges, refused ones too.
func TestKeepAlive(t *testing.T) {
	h := newHouse(t, houseConfig{})
	conn, r := h.dial(t)
	for _, tc := range []struct {
		path string
		want int
	}{{"/v1/orders/1", 200}, {"/x", 404}, {"/v1/orders/2", 200}} {
		fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer good\r\n\r\n", tc.path)
		resp, err := http.ReadResponse(r, nil)
		if err != nil || resp.StatusCode != tc.want {
			t.Fatalf("%v %v", resp, err)
		}
		_, _ = io.Copy(io.Discard, resp.Body)
		if resp.Close {
			t.Fatalf("%s closes the connection", tc.path)
		}
		<-h.book.done
	}
	fmt.Fprintf(conn, "GET /a/../b HTTP/1.1\r\nHost: example.com\r\n\r\n")
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 400 || !resp.Close {
		t.Errorf("a malformed request must end the connection: %v %v", resp, err)
	}
	<-h.book.done
}
