package main

import (
	"bufio"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const mib = 1 << 20

// soak chooses the long form of a test.
func soak[T any](normal, long T) T {
	if os.Getenv("GATEBOOK_SOAK") != "" {
		return long
	}
	return normal
}

// bodies is a service that takes and gives bodies of any size without keeping
// them.
type bodies struct {
	*httptest.Server
	events chan string   // for /big/events; closed or "end" ends a stream
	gone   chan struct{} // a stream's reader went away
	hold   chan struct{} // /big/hold reads nothing until it is closed
	letGo  func()        // closes it
	held   chan struct{} // a request came to /big/hold
}

func newBodies(t *testing.T) *bodies {
	b := &bodies{events: make(chan string), gone: make(chan struct{}, 16), hold: make(chan struct{}), held: make(chan struct{}, 16)}
	mux := http.NewServeMux()
	mux.HandleFunc("/big/up", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			panic(http.ErrAbortHandler)
		}
		fmt.Fprint(w, n)
	})
	mux.HandleFunc("/big/down/{n}", func(w http.ResponseWriter, r *http.Request) {
		n, _ := strconv.ParseInt(r.PathValue("n"), 10, 64)
		w.Header().Set("Content-Length", r.PathValue("n"))
		io.CopyN(w, zeros{}, n)
	})
	mux.HandleFunc("/big/hold", func(w http.ResponseWriter, r *http.Request) {
		b.held <- struct{}{}
		<-b.hold
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n)
	})
	mux.HandleFunc("/big/events", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		w.(http.Flusher).Flush()
		for {
			select {
			case e := <-b.events:
				if e == "end" {
					return
				}
				fmt.Fprintf(w, "data: %s\n\n", e)
				w.(http.Flusher).Flush()
			case <-r.Context().Done():
				b.gone <- struct{}{}
				return
			}
		}
	})
	b.Server = httptest.NewServer(mux)
	var once sync.Once
	b.letGo = func() { once.Do(func() { close(b.hold) }) }
	t.Cleanup(func() {
		b.letGo() // a test that failed has not
		b.CloseClientConnections()
		b.Server.Close()
	})
	return b
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) {
	clear(p)
	return len(p), nil
}

// bodySite is a site in front of such a service.
func bodySite(t *testing.T) (*site, *bodies) {
	b := newBodies(t)
	s := newSite(t, b.URL)
	s.services("100GiB", fmt.Sprintf(`big: {targets: [%q], timeouts: {connect: 1m, idle_body: 10m, response: 10m}}`, b.URL))
	s.start()
	return s, b
}

// clientOf makes a client of one protocol that connects from one address.
func (s *site) clientOf(proto, from string) *http.Client {
	tr := &http.Transport{TLSClientConfig: s.tls(), ForceAttemptHTTP2: proto == "h2", DisableCompression: true}
	if from != "" {
		d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
		tr.DialContext = d.DialContext
	}
	s.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr, Timeout: 20 * time.Minute}
}

func (s *site) url(path string) string { return "https://" + s.addr + path }

// exchanged makes an exchange, demands status 200 and returns its id and the
// text of a short answer or, of a longer one, its length.
func (s *site) exchanged(c *http.Client, method, path string, body io.Reader, length int64) (id, text string, err error) {
	r, err := http.NewRequest(method, s.url(path), body)
	if err != nil {
		return "", "", err
	}
	r.ContentLength = length
	resp, err := c.Do(r)
	if err != nil {
		return "", "", err
	}
	defer resp.Body.Close()
	head, err := io.ReadAll(io.LimitReader(resp.Body, 100))
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", "", fmt.Errorf("%s %s: status %d %q: %v", method, path, resp.StatusCode, head, err)
	}
	rest, err := io.Copy(io.Discard, resp.Body)
	if rest > 0 {
		head = strconv.AppendInt(nil, int64(len(head))+rest, 10)
	}
	return resp.Header.Get("X-Request-Id"), string(head), err
}

// resident is how much memory the gate has, in bytes.
func (s *site) resident() int64 {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", s.cmd.Process.Pid))
	if err != nil {
		s.t.Error(err)
		return 0
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); f[0] == "VmRSS:" {
			kb, _ := strconv.ParseInt(f[1], 10, 64)
			return kb << 10
		}
	}
	s.t.Error("no VmRSS in the status of the process")
	return 0
}

// growth measures the most memory that the gate has while do runs, over what it
// had before.
func (s *site) growth(do func()) int64 {
	s.t.Helper()
	before, most := s.resident(), int64(0)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			most = max(most, s.resident())
			select {
			case <-done:
				return
			case <-time.After(20 * time.Millisecond):
			}
		}
	}()
	func() {
		defer func() { close(done); <-ended }() // also if do ends the test
		do()
	}()
	return most - before
}

// settled ends the site and proves its book.
func (s *site) settled() {
	s.t.Helper()
	s.command(0, "verify")
	s.stop()
	s.command(0, "verify")
}

// protocols runs a test once for each.
func protocols(t *testing.T, test func(t *testing.T, proto string)) {
	for _, proto := range []string{"h1", "h2"} {
		t.Run(proto, func(t *testing.T) { test(t, proto) })
	}
}

// TestBigBodies sends and fetches bodies of which memory could hold no part
// worth mentioning.
func TestBigBodies(t *testing.T) {
	size := soak[int64](256*mib/raceShare, 5<<30)
	protocols(t, func(t *testing.T, proto string) {
		s, _ := bodySite(t)
		c := s.clientOf(proto, "")
		type want struct{ in, out int64 }
		wants := map[string]want{}
		one := func(method, path string, body io.Reader, length int64, text string, w want) {
			t.Helper()
			id, got, err := s.exchanged(c, method, path, body, length)
			if err != nil || got != text {
				t.Fatalf("%s %s: %q, %v, want %s", method, path, got, err, text)
			}
			wants[id] = w
		}
		whole := strconv.FormatInt(size, 10)
		warm := int64(4 * mib)
		one("POST", "/big/up", io.LimitReader(zeros{}, warm), warm, strconv.FormatInt(warm, 10), want{warm, 7})
		one("GET", fmt.Sprint("/big/down/", warm), nil, 0, strconv.FormatInt(warm, 10), want{0, warm})
		began := time.Now()
		up := s.growth(func() {
			one("POST", "/big/up", io.LimitReader(zeros{}, size), size, whole, want{size, int64(len(whole))})
			one("PUT", "/big/up", io.LimitReader(zeros{}, size/8), -1, strconv.FormatInt(size/8, 10), want{size / 8, int64(len(strconv.FormatInt(size/8, 10)))})
		})
		down := s.growth(func() { one("GET", "/big/down/"+whole, nil, 0, whole, want{0, size}) })
		t.Logf("%d MiB up and down in %s: the gate grew by %d and %d MiB", size/mib, time.Since(began).Round(time.Millisecond), up/mib, down/mib)
		if up > 64*mib*raceFactor || down > 64*mib*raceFactor {
			t.Errorf("the gate grew by %d MiB (up) and %d MiB (down)", up/mib, down/mib)
		}
		records := s.told(`kind == "request"`)
		if len(records) != len(wants) {
			t.Errorf("%d records of %d exchanges", len(records), len(wants))
		}
		for id, w := range wants {
			if r := records[id]; r.Outcome != "success" || r.BytesIn != w.in || r.BytesOut != w.out {
				t.Errorf("recorded as %+v, want %d bytes in and %d out", r, w.in, w.out)
			}
		}
		s.settled()
	})
}

// stream is a client of an event stream.
type stream struct {
	t      *testing.T
	id     string
	lines  *bufio.Reader
	body   io.Closer
	cancel context.CancelFunc
	bytes  int64
}

func (s *site) stream(c *http.Client) *stream {
	s.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	r, err := http.NewRequestWithContext(ctx, "GET", s.url("/big/events"), nil)
	if err != nil {
		s.t.Fatal(err)
	}
	resp, err := c.Do(r) // returns with the head, before there is any event
	if err != nil {
		s.t.Fatal(err)
	}
	s.t.Cleanup(func() { resp.Body.Close() })
	return &stream{t: s.t, id: resp.Header.Get("X-Request-Id"), lines: bufio.NewReader(resp.Body), body: resp.Body, cancel: cancel}
}

// event is sent when the one before has arrived, and must arrive while the
// stream is open.
func (e *stream) event(b *bodies, text string) {
	e.t.Helper()
	b.events <- text
	for _, want := range []string{"data: " + text + "\n", "\n"} {
		line, err := e.lines.ReadString('\n')
		if err != nil || line != want {
			e.t.Fatalf("%q, %v, want %q", line, err, want)
		}
		e.bytes += int64(len(line))
	}
}

// TestEventStreams: events arrive at once, and a stream is one record at its
// end, whoever ends it.
func TestEventStreams(t *testing.T) {
	protocols(t, func(t *testing.T, proto string) {
		s, b := bodySite(t)
		c := s.clientOf(proto, "")

		ended := s.stream(c)
		for i := range 50 {
			ended.event(b, strconv.Itoa(i))
		}
		if n := len(s.told(`kind == "request"`)); n != 0 {
			t.Errorf("%d records of a stream that is open", n)
		}
		b.events <- "end"
		if _, err := ended.lines.ReadByte(); err != io.EOF {
			t.Errorf("at the end of the stream: %v", err)
		}

		left := s.stream(c)
		left.event(b, "one")
		left.cancel()
		<-b.gone // the upstream learns of it
		until(t, "the record of a stream whose client left", func() bool { return len(s.told(`kind == "request"`)) == 2 })

		drained := s.stream(c)
		drained.event(b, "before")
		s.cmd.Process.Signal(os.Interrupt)
		until(t, "a gate that takes no more connections", func() bool {
			conn, err := net.Dial("tcp", s.addr)
			if err == nil {
				conn.Close()
			}
			return err != nil
		})
		drained.event(b, "while it drains")
		b.events <- "end"
		if _, err := drained.lines.ReadByte(); err != io.EOF {
			t.Errorf("at the end of the last stream: %v", err)
		}
		if err := s.cmd.Wait(); err != nil {
			t.Errorf("stop: %v\n%s", err, s.stderr)
		}
		records := s.told(`kind == "request"`)
		if len(records) != 3 {
			t.Errorf("%d records of 3 streams", len(records))
		}
		for _, e := range []*stream{ended, drained} {
			if r := records[e.id]; r.Outcome != "success" || r.Status != 200 || r.BytesOut != e.bytes {
				t.Errorf("a whole stream is recorded as %+v, want %d bytes", r, e.bytes)
			}
		}
		if r := records[left.id]; r.Error.Reason != "client_aborted" || r.UpstreamStatus != 200 || r.BytesOut != left.bytes {
			t.Errorf("a stream that the client left is recorded as %+v, want %d bytes", r, left.bytes)
		}
		s.command(0, "verify")
	})
}

// crowd are the addresses that clients come from, so that none meets the cap
// of one address.
func crowd(i, perAddress int) string {
	n := i / perAddress
	return fmt.Sprintf("127.0.%d.%d", 1+n/250, 1+n%250)
}

// TestIdleConnections keeps many connections open that do nothing.
func TestIdleConnections(t *testing.T) {
	for proto, n := range map[string]int{"h1": soak(2000/raceShare, 10000), "h2": soak(200/raceShare, 2000)} {
		t.Run(proto, func(t *testing.T) {
			s, _ := bodySite(t)
			for range 20 { // what the first requests make stays
				s.get("/big/down/10")
			}
			clients := make([]*http.Client, n)
			var failed atomic.Int64
			ask := func() {
				next := make(chan int)
				var wg sync.WaitGroup
				for range 16 {
					wg.Go(func() {
						for i := range next {
							if clients[i] == nil {
								clients[i] = s.clientOf(proto, crowd(i, 250))
							}
							if _, _, err := s.exchanged(clients[i], "GET", "/big/down/10", nil, 0); err != nil {
								failed.Add(1)
								t.Error(err)
							}
						}
					})
				}
				for i := range n {
					next <- i
				}
				close(next)
				wg.Wait()
			}
			before := s.resident()
			ask()
			each := (s.resident() - before) / int64(n)
			t.Logf("%d idle %s connections take %d bytes each", n, proto, each)
			if limit := map[string]int64{"h1": 96 << 10, "h2": 192 << 10}[proto] * raceFactor; each > limit {
				t.Errorf("an idle connection takes %d bytes, more than %d", each, limit)
			}
			ask() // all of them still serve
			if got := len(s.told(`kind == "request"`)); got != 2*n+20 || failed.Load() > 0 {
				t.Errorf("%d records of %d requests, %d failed", got, 2*n+20, failed.Load())
			}
			s.client.CloseIdleConnections()
			for _, c := range clients {
				c.CloseIdleConnections()
			}
			s.settled()
		})
	}
}

// slowReader asks for a large answer and takes it bit by bit until release;
// then it reads all that is left, or leaves. It returns how much it got.
func (s *site) slowReader(from, path string, started chan<- struct{}, release <-chan struct{}, stay bool) (id string, got int64, err error) {
	d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(from)}}
	raw, err := d.Dial("tcp", s.addr)
	if err != nil {
		return "", 0, err
	}
	defer raw.Close()
	raw.(*net.TCPConn).SetReadBuffer(16 << 10)
	c := tls.Client(raw, s.tls())
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: localhost\r\n\r\n", path)
	resp, err := http.ReadResponse(bufio.NewReaderSize(c, 4096), nil)
	if err != nil {
		return "", 0, err
	}
	id = resp.Header.Get("X-Request-Id")
	started <- struct{}{}
	for open := true; open; {
		n, err := io.CopyN(io.Discard, resp.Body, 8<<10)
		got += n
		if err != nil {
			return id, got, err
		}
		select {
		case <-release:
			open = false
		case <-time.After(250 * time.Millisecond): // this is the slowness
		}
	}
	if stay {
		raw.(*net.TCPConn).SetReadBuffer(4 * mib) // slow no more
		n, err := io.Copy(io.Discard, resp.Body)
		return id, got + n, err
	}
	return id, got, nil
}

// TestSlowReaders: clients that hardly read cost the gate little and the others
// nothing.
func TestSlowReaders(t *testing.T) {
	const size = 16 * mib
	n := soak(200/raceShare, 1000)
	s, _ := bodySite(t)
	if _, _, err := s.exchanged(s.clientOf("h1", ""), "GET", fmt.Sprint("/big/down/", size), nil, 0); err != nil {
		t.Fatal(err)
	}
	type result struct {
		id    string
		bytes int64
		err   error
		whole bool
	}
	results := make(chan result, n)
	started, release := make(chan struct{}, n), make(chan struct{})
	others := 0
	grown := s.growth(func() {
		for i := range n {
			go func() {
				stay := i%20 == 0
				id, got, err := s.slowReader(crowd(i, 100), fmt.Sprint("/big/down/", size), started, release, stay)
				results <- result{id, got, err, stay}
			}()
		}
		for range n {
			select {
			case <-started:
			case r := <-results:
				t.Fatalf("a slow reader ended early: %d bytes of %s, %v", r.bytes, r.id, r.err)
			}
		}
		for _, proto := range []string{"h1", "h2"} {
			c := s.clientOf(proto, "")
			for range 50 {
				if _, _, err := s.exchanged(c, "GET", "/big/down/100000", nil, 0); err != nil {
					t.Errorf("another client: %v", err)
				}
				others++
			}
		}
	})
	close(release)
	ends := map[string]result{}
	for range n {
		r := <-results
		if r.err != nil {
			t.Errorf("a slow reader: %v", r.err)
		}
		ends[r.id] = r
	}
	t.Logf("%d slow readers: the gate grew by %d KiB for each", n, grown/int64(n)>>10)
	if limit := int64(n) * 256 << 10; grown > (limit+32*mib)*raceFactor {
		t.Errorf("the gate grew by %d MiB with %d slow readers", grown/mib, n)
	}
	var records map[string]told
	until(t, "all records", func() bool { records = s.told(`kind == "request"`); return len(records) == n+others+1 })
	for id, e := range ends {
		r := records[id]
		switch {
		case e.whole && (r.Outcome != "success" || r.BytesOut != size || e.bytes != size):
			t.Errorf("read whole (%d bytes), recorded as %+v", e.bytes, r)
		case !e.whole && (r.Error.Reason != "client_aborted" || r.BytesOut < e.bytes || r.BytesOut >= size):
			t.Errorf("left after %d bytes, recorded as %+v", e.bytes, r)
		}
	}
	s.settled()
}

// drip is a body that comes slowly.
type drip struct {
	left  int
	piece int
	pause time.Duration
}

func (d *drip) Read(p []byte) (int, error) {
	if d.left == 0 {
		return 0, io.EOF
	}
	<-time.After(d.pause)
	n := min(d.left, d.piece, len(p))
	d.left -= n
	return n, nil
}

// TestSlowUploads: bodies that come in drops arrive whole.
func TestSlowUploads(t *testing.T) {
	const size = 64 << 10
	protocols(t, func(t *testing.T, proto string) {
		s, _ := bodySite(t)
		n := soak(48/raceShare, 400)
		ids := make(chan string, n)
		grown := s.growth(func() {
			var wg sync.WaitGroup
			for i := range n {
				wg.Go(func() {
					c := s.clientOf(proto, crowd(i, 100))
					length := int64(size)
					if i%2 == 0 {
						length = -1
					}
					id, text, err := s.exchanged(c, "POST", "/big/up", &drip{size, 2 << 10, 20 * time.Millisecond}, length)
					if err != nil || text != strconv.Itoa(size) {
						t.Errorf("upload %d: %q, %v", i, text, err)
					}
					ids <- id
				})
			}
			wg.Wait()
		})
		close(ids)
		t.Logf("%d slow uploads: the gate grew by %d KiB for each", n, grown/int64(n)>>10)
		if grown > (int64(n)*512<<10+32*mib)*raceFactor {
			t.Errorf("the gate grew by %d MiB", grown/mib)
		}
		records := s.told(`kind == "request"`)
		if len(records) != n {
			t.Errorf("%d records of %d uploads", len(records), n)
		}
		for id := range ids {
			if r := records[id]; r.Outcome != "success" || r.BytesIn != size {
				t.Errorf("recorded as %+v", r)
			}
		}
		s.settled()
	})
}
