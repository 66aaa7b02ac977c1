package upstream

import (
	"bufio"
	"context"
	"io"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// inBubble runs f with a pool whose time is synctest's and whose one target is
// serve at the other end of a pipe.
func inBubble(t *testing.T, cfg Config, serve func(*bufio.Reader, net.Conn), f func(*testing.T, *Pool)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		cfg.Name, cfg.Targets = "test", []string{"http://upstream.example"}
		cfg.Dial = func(context.Context, string, string) (net.Conn, error) {
			here, there := net.Pipe()
			go func() {
				serve(bufio.NewReader(there), there)
				_ = there.Close()
			}()
			return here, nil
		}
		p, err := NewPool(cfg)
		if err != nil {
			t.Fatal(err)
		}
		f(t, p)
		p.Close()
		synctest.Wait()
	})
}

// nextHead reads a request head without a body.
func nextHead(br *bufio.Reader) bool {
	for {
		line, err := br.ReadString('\n')
		if err != nil {
			return false
		}
		if line == "\r\n" {
			return true
		}
	}
}

func say(c net.Conn, text string) bool {
	_, err := io.WriteString(c, text)
	return err == nil
}

// took runs f and returns its error and how long it took.
func took(f func() error) (time.Duration, error) {
	start := time.Now()
	err := f()
	return time.Since(start), err
}

func TestResponseTimeout(t *testing.T) {
	var wait atomic.Int64 // a time.Duration
	serve := func(br *bufio.Reader, c net.Conn) {
		for nextHead(br) {
			time.Sleep(time.Duration(wait.Load())) // the bubble's time
			if !say(c, "HTTP/1.1 103 Early Hints\r\n\r\nHTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n") {
				return
			}
		}
	}
	inBubble(t, Config{}, serve, func(t *testing.T, p *Pool) {
		for _, w := range []time.Duration{0, 29999 * time.Millisecond} {
			wait.Store(int64(w))
			if d, err := took(func() error { _, err := do(p, get("/")); return err }); err != nil || d != w {
				t.Errorf("answer after %v: %v after %v", w, err, d)
			}
		}
		wait.Store(int64(31 * time.Second))
		if d, err := took(func() error { _, err := do(p, get("/")); return err }); reasonOf(err) != reason.ResponseTimeout || d != 30*time.Second {
			t.Errorf("error %v after %v, want %s after 30 s", err, d, reason.ResponseTimeout)
		}
		time.Sleep(2 * time.Second) // until the server notices
	})
}

// TestIdleBody makes sure that any byte is progress, that the caller's own
// time does not count, and that a body which stands still is given up.
func TestIdleBody(t *testing.T) {
	serve := func(br *bufio.Reader, c net.Conn) {
		for nextHead(br) {
			ok := say(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\n")
			for i := 0; ok && i < 10; i++ {
				time.Sleep(29 * time.Second)
				ok = say(c, "x")
			}
			if !ok {
				return
			}
		}
	}
	inBubble(t, Config{}, serve, func(t *testing.T, p *Pool) {
		if d, err := took(func() error { _, err := do(p, get("/")); return err }); err != nil || d != 290*time.Second {
			t.Errorf("%v after %v", err, d)
		}
		resp, err := p.RoundTrip(context.Background(), get("/"))
		if err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 1)
		for i := range 10 {
			time.Sleep(10 * time.Minute) // a caller in no hurry
			if _, err := io.ReadFull(resp.Body, buf); err != nil {
				t.Fatalf("byte %d: %v", i, err)
			}
		}
		if err := resp.Body.Close(); err != nil {
			t.Error(err)
		}
	})
	stand := func(br *bufio.Reader, c net.Conn) {
		if nextHead(br) && say(c, "HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nabc") {
			nextHead(br) // until the pool closes
		}
	}
	inBubble(t, Config{IdleBody: 7 * time.Second}, stand, func(t *testing.T, p *Pool) {
		if d, err := took(func() error { _, err := do(p, get("/")); return err }); reasonOf(err) != reason.BodyStalled || d != 7*time.Second {
			t.Errorf("error %v after %v, want %s after 7 s", err, d, reason.BodyStalled)
		}
	})
}

// TestKeptTime makes sure that a deadline of one exchange does not reach into
// the next and that kept connections end in time.
func TestKeptTime(t *testing.T) {
	var open atomic.Int64 // connections
	serve := func(br *bufio.Reader, c net.Conn) {
		open.Add(1)
		for nextHead(br) {
			// A body in two pieces makes the pool set a read deadline.
			if !say(c, "HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nabc") {
				break
			}
			time.Sleep(time.Second)
			if !say(c, "def") {
				break
			}
		}
		open.Add(-1)
	}
	inBubble(t, Config{IdleBody: 2 * time.Second, ResponseTimeout: 2 * time.Second, MaxIdleTime: 60 * time.Second}, serve, func(t *testing.T, p *Pool) {
		for i := range 5 {
			a, err := do(p, get("/"))
			if err != nil || a.Reused != (i > 0) {
				t.Fatalf("exchange %d: %v, reused %t", i, err, a.Reused)
			}
			time.Sleep(50 * time.Second)
		}
		synctest.Wait()
		if n := open.Load(); n != 1 {
			t.Errorf("%d connections, want 1", n)
		}
		time.Sleep(11 * time.Second)
		synctest.Wait()
		if n := open.Load(); n != 0 {
			t.Errorf("%d connections after the maximum idle time", n)
		}
	})
}

// TestEarlyAnswerStopsWriting looks at one connection: when the answer is
// complete and the request is not, nothing more of it goes out, and the writer
// learns so only after the answer has been handed over.
func TestEarlyAnswerStopsWriting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := NewPool(Config{Name: "test", Targets: []string{"http://upstream.example"}})
		if err != nil {
			t.Fatal(err)
		}
		here, there := net.Pipe()
		ex := newExchange(p)
		ex.req = &Request{Method: "POST"}
		ex.pump = newPump(&p.bufs, trickle{}, -1)
		c := p.newConn(here)
		c.begin(ex)
		go func() { // what arrives beyond the head would make the Write below succeed
			_, _ = io.ReadFull(there, make([]byte, 4))
			say(there, "HTTP/1.1 413 Content Too Large\r\nContent-Length: 0\r\n\r\n")
			_, _ = io.Copy(io.Discard, there)
		}()
		if _, err := c.Write([]byte("head")); err != nil {
			t.Fatal(err)
		}
		if _, err := c.Read(make([]byte, 1024)); err != nil {
			t.Fatal(err)
		}
		wrote := make(chan error, 1)
		go func() { _, err := c.Write([]byte("more")); wrote <- err }()
		synctest.Wait()
		select {
		case err := <-wrote:
			t.Errorf("the writer got %v before the answer was handed over", err)
		default:
		}
		c.settle(ex)
		if err := <-wrote; err != errBodyStopped {
			t.Errorf("write: %v, want %v", err, errBodyStopped)
		}
		if n, err := ex.pump.Read(make([]byte, 1)); n != 0 || err != errBodyStopped {
			t.Errorf("body: %d, %v, want %v", n, err, errBodyStopped)
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestTunnelTime makes sure that a tunnel may be silent for as long as it likes.
func TestTunnelTime(t *testing.T) {
	serve := func(br *bufio.Reader, c net.Conn) {
		if !nextHead(br) || !say(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n") {
			return
		}
		for {
			line, err := br.ReadString('\n')
			if err != nil {
				return
			}
			time.Sleep(time.Hour)
			say(c, line)
		}
	}
	inBubble(t, Config{}, serve, func(t *testing.T, p *Pool) {
		r := get("/")
		r.Upgrade = "websocket"
		resp, err := p.RoundTrip(context.Background(), r)
		if err != nil {
			t.Fatal(err)
		}
		tunnel, ok := resp.Body.(io.ReadWriteCloser)
		if !ok {
			t.Fatal("no tunnel")
		}
		for range 3 {
			time.Sleep(time.Hour)
			if _, err := io.WriteString(tunnel, "hello\n"); err != nil {
				t.Fatal(err)
			}
			buf := make([]byte, 6)
			if _, err := io.ReadFull(tunnel, buf); err != nil || string(buf) != "hello\n" {
				t.Fatalf("read %q, %v", buf, err)
			}
		}
		if err := tunnel.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestClientSlowerThanTimeouts streams a request body for longer than any
// time-out of the upstream's: the time is the client's.
func TestClientSlowerThanTimeouts(t *testing.T) {
	serve := func(br *bufio.Reader, c net.Conn) {
		if !nextHead(br) {
			return
		}
		if _, err := io.CopyN(io.Discard, br, 100<<10); err == nil {
			time.Sleep(29 * time.Second)
			say(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")
		}
	}
	inBubble(t, Config{}, serve, func(t *testing.T, p *Pool) {
		r := &Request{Method: "POST", Path: "/", Length: 100 << 10, Body: trickle{}}
		if d, err := took(func() error { _, err := do(p, r); return err }); err != nil || d != 100*time.Minute+29*time.Second {
			t.Errorf("%v after %v", err, d)
		}
	})
}

// trickle gives a KiB each minute.
type trickle struct{}

func (trickle) Read(p []byte) (int, error) {
	time.Sleep(time.Minute)
	return min(len(p), 1<<10), nil
}
