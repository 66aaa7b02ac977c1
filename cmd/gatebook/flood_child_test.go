package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// floodKinds are the floods, by the reason that each is recorded with.
var floodKinds = []struct {
	reason string
	text   string // of one request
	status int    // 0: no answer, and the connection is gone
	secure bool   // sent to the TLS listener
}{
	{"tls_handshake", "\x16\x03\x01\x00\x05hello", 0, true},
	{"malformed_request", "GET / HTTP/1.1\r\nHost: localhost\r\nBad Field: x\r\n\r\n", 400, false},
	{"no_route", "GET /nowhere HTTP/1.1\r\nHost: localhost\r\n\r\n", 404, false},
	{"no_credential", "GET /guarded/x HTTP/1.1\r\nHost: localhost\r\n\r\n", 401, false},
	{"token_malformed", "GET /guarded/x HTTP/1.1\r\nHost: localhost\r\nAuthorization: Bearer nonsense\r\n\r\n", 401, false},
	{"rate_limited", "GET /limited/x HTTP/1.1\r\nHost: localhost\r\n\r\n", 429, false},
}

// floodOrder is what a flood is to be. It is the first line that the process
// reads; each further line lets it loose ("go"), holds it back ("hold") or
// waits for its end ("wait"), and is answered with a floodReport.
type floodOrder struct {
	Public, Mesh string // listeners with and without TLS
	Total, Rate  int    // requests, and how many a second
	Networks     int    // /24 from which each kind comes
}

// floodReport is what has become of it so far.
type floodReport struct {
	Sent map[string]int // refused, by reason
	Let  int            // answered by the upstream, before the limit was reached
	Done bool           // nothing is left to be sent
	Err  string
}

// flood is a process that floods. It has the lowest priority, so that what it
// needs of the processor itself is not taken from those who are measured.
type flood struct {
	t   *testing.T
	cmd *exec.Cmd
	in  io.WriteCloser
	out *json.Decoder
}

// startFlood returns with the flood held back.
func startFlood(t *testing.T, order floodOrder) *flood {
	t.Helper()
	f := &flood{t: t, cmd: exec.Command("nice", "-n", "19", "gatebook-flood")}
	f.cmd.Stderr = os.Stderr
	var err error
	if f.in, err = f.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := f.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	f.out = json.NewDecoder(out)
	if err := f.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { f.cmd.Process.Kill() })
	if err := json.NewEncoder(f.in).Encode(order); err != nil {
		t.Fatal(err)
	}
	return f
}

// ask has the process do something and returns when it is done.
func (f *flood) ask(what string) (r floodReport) {
	f.t.Helper()
	if _, err := io.WriteString(f.in, what+"\n"); err != nil {
		f.t.Fatal(err)
	}
	if err := f.out.Decode(&r); err != nil {
		f.t.Fatal(err)
	}
	if r.Err != "" {
		f.t.Fatalf("the flood: %s", r.Err)
	}
	return r
}

// end ends the process.
func (f *flood) end() {
	f.t.Helper()
	f.in.Close()
	if err := f.cmd.Wait(); err != nil {
		f.t.Fatal(err)
	}
}

// floodMain is the process.
func floodMain() {
	if err := runFlood(os.Stdin, os.Stdout); err != nil {
		fmt.Fprintln(os.Stderr, "flood:", err)
		os.Exit(1)
	}
}

func runFlood(in io.Reader, out io.Writer) error {
	lines, answers := bufio.NewScanner(in), json.NewEncoder(out)
	if !lines.Scan() {
		return errors.Join(errors.New("no order"), lines.Err())
	}
	var order floodOrder
	if err := json.Unmarshal(lines.Bytes(), &order); err != nil {
		return err
	}
	f := newFlooders(order)
	held := true
	for lines.Scan() {
		switch what := lines.Text(); what {
		case "go":
			f.gate.Unlock()
			held = false
		case "hold":
			f.gate.Lock() // what is under way ends first
			held = true
		case "wait":
			<-f.done
		default:
			return fmt.Errorf("%q is no command", what)
		}
		if err := answers.Encode(f.report()); err != nil {
			return err
		}
	}
	if !held {
		f.gate.Lock()
	}
	return lines.Err()
}

// flooders send the floods, each kind from each of its networks.
type flooders struct {
	gate sync.RWMutex // held for reading by whoever sends
	done chan struct{}
	sent []atomic.Int64 // by kind
	let  atomic.Int64
	err  atomic.Pointer[error]
}

// newFlooders begins with the gate closed.
func newFlooders(order floodOrder) *flooders {
	f := &flooders{done: make(chan struct{}), sent: make([]atomic.Int64, len(floodKinds))}
	f.gate.Lock()
	workers := len(floodKinds) * order.Networks
	gap := time.Second * time.Duration(workers) / time.Duration(order.Rate)
	begun := time.Now()
	var wg sync.WaitGroup
	for i := range workers {
		w := &flooder{f: f, kind: i % len(floodKinds), net: byte(i / len(floodKinds)), addr: order.Mesh}
		if floodKinds[w.kind].secure {
			w.addr = order.Public
		}
		n := order.Total / workers
		if i < order.Total%workers {
			n++
		}
		wg.Go(func() {
			defer w.hangUp()
			// One after the other, not all at once.
			if err := w.run(n, begun.Add(gap*time.Duration(i)/time.Duration(workers)), gap); err != nil {
				err = fmt.Errorf("%s: %w", floodKinds[w.kind].reason, err)
				f.err.CompareAndSwap(nil, &err)
			}
		})
	}
	go func() {
		wg.Wait()
		close(f.done)
	}()
	return f
}

func (f *flooders) report() floodReport {
	r := floodReport{Sent: map[string]int{}, Let: int(f.let.Load())}
	for k, kind := range floodKinds {
		r.Sent[kind.reason] = int(f.sent[k].Load())
	}
	select {
	case <-f.done:
		r.Done = true
	default:
	}
	if err := f.err.Load(); err != nil {
		r.Err = (*err).Error()
	}
	return r
}

// flooder is one source of one kind. Its addresses are those of one network.
type flooder struct {
	f     *flooders
	kind  int
	net   byte
	addr  string
	conns int
	conn  net.Conn
	in    *bufio.Reader
}

// run sends n requests, one each gap as long as the flood is let loose. What
// could not be sent in its time is sent later at that pace.
func (w *flooder) run(n int, at time.Time, gap time.Duration) error {
	pace := time.NewTimer(0)
	defer pace.Stop()
	for range n {
		<-pace.C
		w.f.gate.RLock()
		err := w.one()
		w.f.gate.RUnlock()
		if err != nil {
			return err
		}
		now := time.Now()
		if at = at.Add(gap); at.Before(now) {
			at = at.Add(now.Sub(at).Truncate(gap) + gap)
		}
		pace.Reset(at.Sub(now))
	}
	return nil
}

// one sends a request and takes its answer, so that it is known what became of
// it before it is counted.
func (w *flooder) one() error {
	kind := &floodKinds[w.kind]
	if w.conn == nil {
		w.conns++
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 20, w.net, byte(1+w.conns%250))}, Timeout: time.Minute}
		c, err := d.Dial("tcp", w.addr)
		if err != nil {
			return err
		}
		w.conn, w.in = c, bufio.NewReader(c)
	}
	if err := w.conn.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	if _, err := io.WriteString(w.conn, kind.text); err != nil {
		return err
	}
	if kind.status == 0 {
		// An alert, and the end of the connection.
		if _, err := io.Copy(io.Discard, w.in); errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		w.hangUp()
		w.f.sent[w.kind].Add(1)
		return nil
	}
	resp, err := http.ReadResponse(w.in, nil)
	if err != nil {
		return err
	}
	if _, err := io.Copy(io.Discard, resp.Body); err != nil {
		return err
	}
	resp.Body.Close()
	if resp.Close {
		w.hangUp()
	}
	switch {
	case resp.StatusCode == kind.status:
		w.f.sent[w.kind].Add(1)
	case resp.StatusCode == 200 && kind.status == http.StatusTooManyRequests:
		w.f.let.Add(1)
	default:
		return fmt.Errorf("status %d, want %d", resp.StatusCode, kind.status)
	}
	return nil
}

func (w *flooder) hangUp() {
	if w.conn != nil {
		w.conn.Close()
		w.conn = nil
	}
}
