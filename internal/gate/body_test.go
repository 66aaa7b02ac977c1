package gate

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// TestSlowBody: a client that stalls in its body gets 408 and a record.
func TestSlowBody(t *testing.T) {
	h := newHouse(t, houseConfig{engine: HTTPConfig{ReadIdle: 20 * time.Millisecond}})
	conn, r := h.dial(t)
	fmt.Fprintf(conn, "POST /v1/orders/1 HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer good\r\nContent-Length: 10\r\n\r\nabc")
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 408 {
		t.Fatalf("%v %v", resp, err)
	}
	if c := h.one(t); c.rec.Error.Reason != "timeout_reading" || c.rec.BytesIn != 3 {
		t.Errorf("%+v", c.rec.Error)
	}

	pr, pw := io.Pipe()
	defer pw.Close()
	resp, _, err = do(t, h.h2, h.request(t, "POST", "/v1/orders/1", pr))
	if err != nil || resp.StatusCode != 408 {
		t.Fatalf("h2: %v %v", resp, err)
	}
	if c := h.one(t); c.rec.Error.Reason != "timeout_reading" {
		t.Errorf("h2: %+v", c.rec.Error)
	}
}

// TestDrip: bytes that come one by one keep a known length from stalling but
// not from being too slow.
func TestDrip(t *testing.T) {
	h := newHouse(t, houseConfig{engine: HTTPConfig{ReadIdle: 60 * time.Millisecond, MinRate: 1 << 20}})
	conn, r := h.dial(t)
	fmt.Fprintf(conn, "POST /v1/orders/1 HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer good\r\nContent-Length: 1000\r\n\r\n")
	stop := make(chan struct{})
	go func() {
		tick := time.NewTicker(10 * time.Millisecond)
		defer tick.Stop()
		for {
			select {
			case <-stop:
				return
			case <-tick.C:
				if _, err := conn.Write([]byte("x")); err != nil {
					return
				}
			}
		}
	}()
	resp, err := http.ReadResponse(r, nil)
	close(stop)
	if err != nil || resp.StatusCode != 408 {
		t.Fatalf("%v %v", resp, err)
	}
	if c := h.one(t); c.rec.BytesIn == 0 || c.rec.BytesIn >= 1000 {
		t.Errorf("bytes_in %d", c.rec.BytesIn)
	}
}

// TestIdleAfterBody: the deadline of a body does not end the exchange that
// waits for its answer.
func TestIdleAfterBody(t *testing.T) {
	h := newHouse(t, houseConfig{engine: HTTPConfig{ReadIdle: 30 * time.Millisecond}, up: backend(func(ctx context.Context, r *upstream.Request) (*upstream.Response, error) {
		if _, err := io.Copy(io.Discard, r.Body); err != nil {
			return nil, err
		}
		select {
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-time.After(150 * time.Millisecond): // longer than ReadIdle
		}
		return response(200, 2, nil, io.EOF, "ok"), nil
	})})
	h.both(func(t *testing.T, c *http.Client, _ string) {
		resp, text, err := do(t, c, h.request(t, "POST", "/v1/orders/1", body(10)))
		if err != nil || resp.StatusCode != 200 || text != "ok" {
			t.Errorf("%v %q %v", resp, text, err)
		}
		<-h.book.done
	})
}

// TestExpect: 100 Continue is sent only to those who may go on.
func TestExpect(t *testing.T) {
	h := newHouse(t, houseConfig{})
	for _, tc := range []struct {
		token string
		want  string
	}{{"good", "HTTP/1.1 100 Continue\r\n"}, {"old", "HTTP/1.1 401 Unauthorized\r\n"}} {
		conn, r := h.dial(t)
		fmt.Fprintf(conn, "POST /v1/orders/1 HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer %s\r\nContent-Length: 3\r\nExpect: 100-continue\r\n\r\n", tc.token)
		line, err := r.ReadString('\n')
		if err != nil || line != tc.want {
			t.Fatalf("%s: %q %v", tc.token, line, err)
		}
		if tc.token == "good" {
			fmt.Fprint(conn, "abc")
			_, _ = r.ReadString('\n')
			if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v %v", resp, err)
			}
		}
		<-h.book.done
	}
}

// TestEarlyAnswer: the upstream answers while the client is still sending and
// leaves a read of the body behind; the exchange ends all the same.
func TestEarlyAnswer(t *testing.T) {
	reading := make(chan struct{})
	ended := make(chan error, 1)
	h := newHouse(t, houseConfig{up: backend(func(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
		body := r.Body // a request is not looked at after RoundTrip, its body may be
		go func() {
			close(reading)
			_, err := io.Copy(io.Discard, body)
			ended <- err
		}()
		<-reading
		return response(200, 2, nil, io.EOF, "ok"), nil
	})})
	pr, pw := io.Pipe()
	defer pw.Close()
	resp, text, err := do(t, h.h2, h.request(t, "POST", "/v1/orders/1", pr))
	if err != nil || resp.StatusCode != 200 || text != "ok" {
		t.Fatalf("%v %q %v", resp, text, err)
	}
	if err := <-ended; err == nil {
		t.Error("the body went on after the exchange")
	}
	<-h.book.done
}

// TestDuplex: an upstream that answers while it reads gets the whole body.
func TestDuplex(t *testing.T) {
	h := newHouse(t, houseConfig{up: backend(func(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
		resp := response(200, -1, nil, nil)
		resp.Body = io.NopCloser(r.Body)
		return resp, nil
	})})
	h.both(func(t *testing.T, c *http.Client, _ string) {
		pr, pw := io.Pipe()
		req := h.request(t, "POST", "/v1/orders/1", pr)
		resp, err := c.Do(req) // the head comes before any of the body was sent
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		for _, piece := range []string{"one", strings.Repeat("x", 100_000), "end"} {
			go func() { _, _ = pw.Write([]byte(piece)) }()
			got := make([]byte, len(piece))
			if _, err := io.ReadFull(resp.Body, got); err != nil || string(got) != piece {
				t.Fatalf("%d bytes: %v", len(piece), err)
			}
		}
		pw.Close()
		if rest, err := io.ReadAll(resp.Body); err != nil || len(rest) > 0 {
			t.Errorf("%q %v", rest, err)
		}
		if rec := h.one(t).rec; rec.BytesIn != 100_006 || rec.BytesOut != 100_006 {
			t.Errorf("in %d out %d", rec.BytesIn, rec.BytesOut)
		}
	})
}

// TestUnreadBody: over HTTP/1 what is left of a request body never becomes
// another request, never keeps an answer waiting for long, and a body that came
// in time costs no connection.
func TestUnreadBody(t *testing.T) {
	head := func(token string, length int) string {
		return fmt.Sprintf("POST /v1/orders/1 HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer %s\r\nContent-Length: %d\r\n\r\n", token, length)
	}
	smuggled := "GET /v1/orders/smuggled HTTP/1.1\r\nHost: example.com\r\nAuthorization: Bearer good\r\n\r\n"
	early := backend(func(_ context.Context, r *upstream.Request) (*upstream.Response, error) {
		_, err := io.ReadFull(r.Body, make([]byte, 3))
		return response(200, 2, nil, io.EOF, "ok"), err
	})
	for _, tc := range []struct {
		name string
		send string
		want int
		keep bool
	}{
		{"refused, body here", head("old", len(smuggled)) + smuggled, 401, true},
		{"refused, body never comes", head("old", 10) + "abc", 401, false},
		{"answered early, rest here", head("good", 3+len(smuggled)) + "abc" + smuggled, 200, false},
		{"answered early, rest never comes", head("good", 10) + "abc", 200, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			h := newHouse(t, houseConfig{up: early})
			conn, r := h.dial(t)
			fmt.Fprint(conn, tc.send)
			resp, err := http.ReadResponse(r, nil)
			if err != nil || resp.StatusCode != tc.want || resp.Close == tc.keep && tc.want == 200 {
				t.Fatalf("%v %v", resp, err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Fatal(err)
			}
			if tc.keep {
				fmt.Fprint(conn, head("good", 3)+"abc")
				if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 200 {
					t.Fatalf("next: %v %v", resp, err)
				}
				<-h.book.done
			} else if n, err := r.Read(make([]byte, 1)); n > 0 || err == nil {
				t.Error("the connection goes on")
			}
			if c := h.one(t); c.rec.Raw.Path != "/v1/orders/1" {
				t.Errorf("recorded %q", c.rec.Raw.Path)
			}
		})
	}
}
