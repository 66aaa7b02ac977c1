package main

import (
	"bufio"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/testenv/jwtattack"
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

// floodPrefixes is how many /24 networks each kind comes from.
const floodPrefixes = 2

// floodSize is what a flood is made of.
type floodSize struct {
	total, rate int           // requests, and how many a second
	calm, storm time.Duration // periods without and with the flood
	disk        int64         // bytes by which the folder may grow
	within      float64       // bound of the p99 beside the flood, as a multiple of the quiet one; 0: none
}

// floodSite is a gate with a way to be refused for every kind. mesh is its
// listener without TLS.
func floodSite(t *testing.T, upstream string) (s *site, mesh, health string) {
	t.Helper()
	env, err := jwtattack.New()
	if err != nil {
		t.Fatal(err)
	}
	s, mesh, health = newSite(t, upstream), freeAddr(t), freeAddr(t)
	s.write("jwks.json", string(env.JWKS))
	s.write("gatebook.yaml", fmt.Sprintf(`
data: data
node: gate-1
origin: log.example.com/test
keys: {wrapper: {file: keys}}
listen:
  - {name: public, address: %q, tls: {certificates: [{cert: tls/localhost.crt, key: tls/localhost.key}]}}
  - {name: mesh, address: %q, plaintext: behind_proxy, trusted: ["127.200.0.0/16"]}
health: {address: %q}
issuers:
  - {name: corp, issuer: %q, audiences: [%q], algorithms: [ES256], jwks: {file: jwks.json}}
upstreams:
  app: {targets: [%q]}
routes:
  - {name: open, path: "/open/{rest...}", methods: [GET], upstream: app, public: true}
  - {name: guarded, path: "/guarded/{rest...}", upstream: app, authn: [{jwt: corp}]}
  - {name: limited, path: "/limited/{rest...}", upstream: app, public: true, limits: [tight]}
limits:
  tight: {key: prefix, rate: 1/h, burst: 2}
policies: {dir: policies}
`, s.addr, mesh, health, jwtattack.Issuer, jwtattack.Audience, upstream))
	s.run(0, "check", filepath.Join(s.dir, "gatebook.yaml"))
	return s, mesh, health
}

// TestFlood is the promise that strangers can neither fill the disk nor get out
// of the book nor into the way of others: what six kinds of flood sent is in
// the book to the last one, in records and in counts.
//
// The client beside them is measured in turns, a period quiet and a period
// beside the flood, so that what else the machine does is in both. The flood
// and the client share the cores with the gate, so the flood is paced, well
// below what the machine can do: what is asked is whether the gate makes others
// wait, not whether a processor can be busy. The bound of twice the quiet p99
// is for a machine that does nothing else (GATEBOOK_SOAK=1).
func TestFlood(t *testing.T) {
	size := floodSize{total: 30_000, rate: 4000, calm: time.Second, storm: 2 * time.Second, disk: 5 << 20}
	if os.Getenv("GATEBOOK_SOAK") != "" {
		size = floodSize{total: 1_000_000, rate: 6000, calm: 4 * time.Second, storm: 16 * time.Second, disk: 5_000_000, within: 2}
	}
	up := newUpstream(t)
	s, mesh, health := floodSite(t, up.URL)
	b := &beside{s: s}
	data := filepath.Join(s.dir, "data")
	s.start()
	b.warm(t)
	s.stop()
	// What a flood leaves behind is seen at rest. While the gate runs, there are
	// files with room ahead as well, and records that are not compressed yet.
	before := diskUse(t, data)
	s.start()
	b.warm(t)
	running, memory := diskUse(t, data), s.memory(t)
	f := startFlood(t, size, s.addr, mesh)
	begun := time.Now()
	peak := b.turns(t, size, f)
	took := time.Since(begun)
	f.wg.Wait()
	sent, let := f.sums()
	live := diskUse(t, data)

	if n := int(metric(t, health, "gatebook_handshakes_failed")); n != sent["tls_handshake"] {
		t.Errorf("gatebook_handshakes_failed is %d, %d were sent", n, sent["tls_handshake"])
	}
	if n := int(metric(t, health, "gatebook_heads_refused")); n != sent["malformed_request"] {
		t.Errorf("gatebook_heads_refused is %d, %d were sent", n, sent["malformed_request"])
	}
	metered := int(metric(t, health, "gatebook_book_folded"))
	s.stop()
	after := diskUse(t, data)
	single, folded := s.counted()
	folds := 0
	for _, k := range floodKinds {
		folds += folded[k.reason]
		if got := single[k.reason] + folded[k.reason]; got != sent[k.reason] || folded[k.reason] == 0 {
			t.Errorf("%s: %d sent, %d in the book, %d of them counted", k.reason, sent[k.reason], got, folded[k.reason])
		}
		t.Logf("%-18s sent %7d = %6d records + %7d counted", k.reason, sent[k.reason], single[k.reason], folded[k.reason])
	}
	if folds != metered {
		t.Errorf("gatebook_book_folded is %d, the book says %d", metered, folds)
	}
	if want := b.asked + let; single[""] != want || folded[""] != 0 {
		t.Errorf("%d answers of the upstream, %d records and %d counted", want, single[""], folded[""])
	}
	quiet, beside := p99(b.ms[0]), p99(b.ms[1])
	t.Logf("%d requests in %v; disk %+d bytes at rest, %+d while running; RSS %.1f MB before, %.1f MB at most; p99 of %d and %d requests %.2f ms quiet, %.2f ms beside the flood (%.2f times)",
		size.total, took.Round(time.Millisecond), after-before, live-running, memory/1e6, peak/1e6, len(b.ms[0]), len(b.ms[1]), quiet, beside, beside/quiet)
	if after-before >= size.disk {
		t.Errorf("the folder grew by %d bytes, %d are allowed", after-before, size.disk)
	}
	if size.within > 0 && beside > size.within*quiet {
		t.Errorf("the client beside the flood waits %.2f times as long as before", beside/quiet)
	}
	if peak > memory+256<<20 {
		t.Errorf("the flood took %.1f MB", (peak-memory)/1e6)
	}
	s.command(0, "verify")
}

// diskUse is what a folder takes of the disk.
func diskUse(t *testing.T, dir string) (n int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		i, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // sealed and removed meanwhile
		}
		if err == nil {
			n += i.Sys().(*syscall.Stat_t).Blocks * 512
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return n
}

// counted reads how many exchanges of each reason the book holds, in records of
// their own and in those of floods.
func (s *site) counted() (single, folded map[string]int) {
	s.t.Helper()
	single, folded = map[string]int{}, map[string]int{}
	out := s.command(0, "search", `kind == "request" || kind == "malformed" || kind == "handshake"`, "--json", "--limit", "10000000")
	for line := range strings.Lines(out) {
		var r frame
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			s.t.Fatalf("%v: %s", err, line)
		}
		if r.Frame.Event.Name == "fold" {
			folded[r.Frame.Error.Reason] += r.Frame.Event.Count
		} else {
			single[r.Frame.Error.Reason]++
		}
	}
	return single, folded
}

func p99(ms []float64) float64 {
	if len(ms) == 0 {
		return 0
	}
	ms = slices.Sorted(slices.Values(ms))
	return ms[len(ms)*99/100]
}

// beside is the client that does nothing wrong.
type beside struct {
	s     *site
	ms    [2][]float64 // quiet, and beside the flood
	asked int
}

func (b *beside) one(t *testing.T) float64 {
	t.Helper()
	begun := time.Now()
	if resp := b.s.get("/open/x"); resp.StatusCode != 200 {
		t.Fatalf("status %d", resp.StatusCode)
	}
	b.asked++
	return float64(time.Since(begun).Microseconds()) / 1000
}

// warm makes connections, buffers and the first files, and forgets how long
// that took.
func (b *beside) warm(t *testing.T) {
	t.Helper()
	b.s.client.CloseIdleConnections()
	for range 200 {
		b.one(t)
	}
	b.ms = [2][]float64{}
}

// turns asks 200 times a second, with the flood let loose and held back in
// turns, until it has sent everything. It returns the most memory that it saw.
func (b *beside) turns(t *testing.T, size floodSize, f *flooders) (peak float64) {
	t.Helper()
	every := time.NewTicker(5 * time.Millisecond)
	defer every.Stop()
	storm, since := 0, time.Now()
	for now := range every.C {
		if b.asked%50 == 0 {
			peak = max(peak, b.s.memory(t))
		}
		b.ms[storm] = append(b.ms[storm], b.one(t))
		select {
		case <-f.done:
			return peak
		default:
		}
		switch run := now.Sub(since); {
		case storm == 0 && run >= size.calm:
			storm, since = 1, now
			f.gate.Unlock()
		case storm == 1 && run >= size.storm:
			storm, since = 0, now
			f.gate.Lock() // what is under way ends first
		}
	}
	return peak
}

// flooders send the floods, each kind from each of its networks.
type flooders struct {
	gate sync.RWMutex // held for reading by whoever sends
	done chan struct{}
	wg   sync.WaitGroup
	sent []atomic.Int64 // by kind
	let  atomic.Int64   // answered by the upstream
}

// startFlood returns with the flood held back; gate.Unlock lets it loose.
func startFlood(t *testing.T, size floodSize, public, mesh string) *flooders {
	f := &flooders{done: make(chan struct{}), sent: make([]atomic.Int64, len(floodKinds))}
	f.gate.Lock()
	workers := len(floodKinds) * floodPrefixes
	each := size.total / workers
	gap := time.Second * time.Duration(workers) / time.Duration(size.rate)
	for k, kind := range floodKinds {
		addr := mesh
		if kind.secure {
			addr = public
		}
		for p := range floodPrefixes {
			f.wg.Go(func() {
				w := &flooder{f: f, kind: k, net: byte(p), addr: addr}
				defer w.hangUp()
				if err := w.run(each, gap); err != nil {
					t.Errorf("%s: %v", kind.reason, err)
				}
			})
		}
	}
	go func() {
		f.wg.Wait()
		close(f.done)
	}()
	return f
}

// sums returns how many of each kind were refused, and how many were let
// through before the limit was reached.
func (f *flooders) sums() (sent map[string]int, let int) {
	sent = map[string]int{}
	for k, kind := range floodKinds {
		sent[kind.reason] = int(f.sent[k].Load())
	}
	return sent, int(f.let.Load())
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

// run sends n requests, one each gap as long as the flood is let loose.
func (w *flooder) run(n int, gap time.Duration) error {
	pace := time.NewTicker(gap)
	defer pace.Stop()
	for range n {
		<-pace.C
		w.f.gate.RLock()
		err := w.one()
		w.f.gate.RUnlock()
		if err != nil {
			return err
		}
	}
	return nil
}

// one sends a request and takes its answer, so that it is known what became of
// it before it is counted.
func (w *flooder) one() error {
	kind := &floodKinds[w.kind]
	if w.conn == nil {
		w.conns++
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 20+w.net, 1, byte(1+w.conns%250))}, Timeout: time.Minute}
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
