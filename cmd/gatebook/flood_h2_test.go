package main

import (
	"crypto/tls"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Frame types and flags of HTTP/2 (RFC 9113 section 6).
const (
	h2Data, h2Headers, h2Priority, h2Reset, h2Settings, h2Ping, h2Window, h2Continuation = 0, 1, 2, 3, 4, 6, 8, 9

	h2EndStream, h2EndHeaders = 1, 4
)

// h2Preface opens a connection; empty SETTINGS follow.
const h2Preface = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"

func h2Frame(kind, flags byte, stream uint32, payload string) string {
	n := len(payload)
	b := append([]byte{byte(n >> 16), byte(n >> 8), byte(n), kind, flags}, 0, 0, 0, 0)
	binary.BigEndian.PutUint32(b[5:], stream)
	return string(b) + payload
}

// h2Field is a literal field without indexing (RFC 7541 section 6.2.2).
func h2Field(name, value string) string {
	length := func(n int) string {
		if n < 127 {
			return string([]byte{byte(n)})
		}
		b := []byte{127}
		for n -= 127; n >= 128; n >>= 7 {
			b = append(b, byte(n)|128)
		}
		return string(append(b, byte(n)))
	}
	return "\x00" + length(len(name)) + name + length(len(value)) + value
}

// h2Head is a request: indexed :method and :scheme (RFC 7541 appendix A).
func h2Head(method string) string {
	return method + "\x87" + h2Field(":path", "/open/x") + h2Field(":authority", "localhost")
}

// The methods as fields.
const h2Get, h2Post = "\x82", "\x83"

// h2Flood is a way to flood a connection. The reasons are those with which it
// may end; there is one record of that for each connection.
type h2Flood struct {
	name    string
	text    string
	reasons []string
}

func h2Floods() []h2Flood {
	calm := []string{"overloaded"}
	large := strings.Repeat("b", 15<<10)
	var rapid strings.Builder
	for i := range uint32(5000) {
		rapid.WriteString(h2Frame(h2Headers, h2EndStream|h2EndHeaders, 2*i+1, h2Head(h2Get)) + h2Frame(h2Reset, 0, 2*i+1, "\x00\x00\x00\x08"))
	}
	post := h2Frame(h2Headers, h2EndHeaders, 1, h2Head(h2Post))
	open := h2Frame(h2Headers, h2EndStream, 1, h2Head(h2Get)) // its block goes on
	return []h2Flood{
		{"rapid reset", rapid.String(), calm},
		{"continuation", open + strings.Repeat(h2Frame(h2Continuation, 0, 1, h2Field("a", large)), 500), []string{"malformed_request", "header_too_large", "overloaded"}},
		{"empty continuation", open + strings.Repeat(h2Frame(h2Continuation, 0, 1, ""), 20_000), calm},
		{"settings", strings.Repeat(h2Frame(h2Settings, 0, 0, ""), 20_000), calm},
		{"ping", strings.Repeat(h2Frame(h2Ping, 0, 0, "12345678"), 20_000), calm},
		{"empty data", post + strings.Repeat(h2Frame(h2Data, 0, 1, ""), 20_000), calm},
		{"window", strings.Repeat(h2Frame(h2Window, 0, 0, "\x00\x00\x00\x01"), 20_000), calm},
		{"priority", strings.Repeat(h2Frame(h2Priority, 0, 9, "\x00\x00\x00\x01\x10"), 20_000), calm},
	}
}

// h2Network is the /24 from which a flood comes, by which its records are known.
func h2Network(n int) string { return fmt.Sprintf("127.30.%d.0/24", n) }

// TestFloodHTTP2 floods connections in the ways that HTTP/2 is known for: rapid
// reset (CVE-2023-44487), CONTINUATION, SETTINGS, PING, empty DATA, window
// updates and priorities. Each connection is ended by the gate and in the book
// once, with its reason; the streams of a rapid reset that came through have
// records of their own. A client beside them is served all the time, and
// memory and goroutines stay within bounds.
func TestFloodHTTP2(t *testing.T) {
	conns := 24 / raceShare // of each flood, four at a time
	if os.Getenv("GATEBOOK_SOAK") != "" {
		conns = 400
	}
	up := newUpstream(t)
	s, _, health := floodSite(t, up.URL)
	s.start()
	b := &beside{s: s}
	for range 50 {
		b.one(t)
	}
	memory, goroutines := s.memory(t), metric(t, health, "go_goroutines")
	var sent atomic.Int64
	done := make(chan struct{})
	go func() {
		defer close(done)
		for n, f := range h2Floods() {
			h2Attack(t, s, n, f, conns, &sent)
		}
	}()
	peak, most, slowest := b.watch(t, health, done)
	settled := waitBelow(t, health, "go_goroutines", goroutines+50)
	after := s.memory(t)
	floods := len(h2Floods())
	if got := metric(t, health, "gatebook_heads_refused"); got != float64(conns*floods) {
		t.Errorf("gatebook_heads_refused is %v after %d connections were flooded", got, conns*floods)
	}
	if got := metric(t, health, "gatebook_book_blindness"); got != 0 {
		t.Errorf("gatebook_book_blindness is %v", got)
	}
	s.stop()
	h2Book(t, s, conns)
	t.Logf("%d connections, %.1f MB sent; RSS %.1f MB before, %.1f at most, %.1f after; goroutines %.0f, %.0f, %.0f; %d requests beside, the slowest %.1f ms",
		conns*floods, float64(sent.Load())/1e6, memory/1e6, peak/1e6, after/1e6, goroutines, most, settled, b.asked, slowest)
	if peak > memory+256<<20 {
		t.Errorf("the floods took %.1f MB", (peak-memory)/1e6)
	}
	// Four connections with at most 100 streams each, and what serves them.
	if most > goroutines+4*(3*100+20) {
		t.Errorf("%.0f goroutines, %.0f before", most, goroutines)
	}
	s.command(0, "verify")
}

// watch asks until the floods are over.
func (b *beside) watch(t *testing.T, health string, done chan struct{}) (peak, goroutines, slowest float64) {
	t.Helper()
	for {
		slowest = max(slowest, b.one(t))
		if b.asked%20 == 0 {
			peak, goroutines = max(peak, b.s.memory(t)), max(goroutines, metric(t, health, "go_goroutines"))
		}
		select {
		case <-done:
			return peak, goroutines, slowest
		default:
		}
	}
}

// waitBelow waits until a metric has come down.
func waitBelow(t *testing.T, health, name string, bound float64) float64 {
	t.Helper()
	every := time.NewTicker(50 * time.Millisecond)
	defer every.Stop()
	late := time.After(time.Minute)
	for {
		v := metric(t, health, name)
		if v <= bound {
			return v
		}
		select {
		case <-every.C:
		case <-late:
			t.Fatalf("%s stays at %v, above %v", name, v, bound)
		}
	}
}

// h2Attack floods connections, four at a time.
func h2Attack(t *testing.T, s *site, n int, f h2Flood, conns int, sent *atomic.Int64) {
	conf := s.tls()
	conf.NextProtos = []string{"h2"}
	numbers := make(chan int)
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range numbers {
				if err := h2FloodOne(s.addr, conf, net.IPv4(127, 30, byte(n), byte(1+i%250)), f.text, sent); err != nil {
					t.Errorf("%s: %v", f.name, err)
				}
			}
		})
	}
	for i := range conns {
		numbers <- i
	}
	close(numbers)
	wg.Wait()
}

// h2FloodOne floods one connection until the gate ends it.
func h2FloodOne(addr string, conf *tls.Config, from net.IP, text string, sent *atomic.Int64) error {
	d := tls.Dialer{NetDialer: &net.Dialer{LocalAddr: &net.TCPAddr{IP: from}, Timeout: time.Minute}, Config: conf}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		return err
	}
	defer c.Close()
	if err := c.SetDeadline(time.Now().Add(time.Minute)); err != nil {
		return err
	}
	over := make(chan error, 1)
	go func() {
		_, err := io.Copy(io.Discard, c)
		over <- err
	}()
	// The gate may hang up in the middle of it.
	n, err := io.WriteString(c, h2Preface+h2Frame(h2Settings, 0, 0, "")+h2Frame(h2Settings, 1, 0, "")+text)
	sent.Add(int64(n))
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the gate neither reads nor ends the connection")
	}
	if err := <-over; errors.Is(err, os.ErrDeadlineExceeded) {
		return errors.New("the gate does not end the connection")
	}
	return nil
}

// h2Book looks the floods up.
func h2Book(t *testing.T, s *site, conns int) {
	t.Helper()
	type row struct {
		Frame struct {
			Kind   string
			Client struct{ Prefix string }
			Error  struct{ Reason string }
			Event  struct {
				Name  string
				Count int
			}
		}
	}
	ended, streams := map[string]map[string]int{}, map[string]int{}
	for line := range strings.Lines(s.command(0, "search", `kind == "request" || kind == "malformed"`, "--json")) {
		var r row
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			t.Fatalf("%v: %s", err, line)
		}
		n, from := 1, r.Frame.Client.Prefix
		if r.Frame.Event.Name == "fold" {
			n = r.Frame.Event.Count
		}
		if r.Frame.Kind == "request" {
			streams[from] += n
			continue
		}
		if ended[from] == nil {
			ended[from] = map[string]int{}
		}
		ended[from][r.Frame.Error.Reason] += n
	}
	for n, f := range h2Floods() {
		all, right := 0, 0
		for _, k := range ended[h2Network(n)] {
			all += k
		}
		for _, r := range f.reasons {
			right += ended[h2Network(n)][r]
		}
		if all != conns || right != conns {
			t.Errorf("%s: %d connections ended, the book has %v, want the reasons %v", f.name, conns, ended[h2Network(n)], f.reasons)
		}
		t.Logf("%-18s %v, and %d streams", f.name, ended[h2Network(n)], streams[h2Network(n)])
		if f.name == "rapid reset" && streams[h2Network(n)] == 0 {
			t.Error("no stream of the rapid reset is in the book")
		}
	}
}

// TestFloodKeys is a flood of limiter keys: addresses that a trusted proxy
// names, each new. The table does not grow, each refusal of the one who asks
// too often is in the book, and those who ask for the first time are served.
func TestFloodKeys(t *testing.T) {
	keys := 8000 / raceShare
	if os.Getenv("GATEBOOK_SOAK") != "" {
		keys = 100_000
	}
	up := newUpstream(t)
	s, mesh, health := floodSite(t, up.URL)
	s.start()
	memory := s.memory(t)
	const senders = 8
	var wg sync.WaitGroup
	for n := range senders {
		wg.Go(func() {
			if err := keysFlood(mesh, n, keys/senders); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	after := s.memory(t)
	// Each sender's own key is one more.
	if got, want := metric(t, health, "gatebook_limiter_keys"), float64(keys/senders*senders+senders); got != want {
		t.Errorf("gatebook_limiter_keys is %v, want %v", got, want)
	}
	for _, name := range []string{"gatebook_limiter_coarse", "gatebook_limiter_global"} {
		if got := metric(t, health, name); got != 0 {
			t.Errorf("%s is %v although there was room for all", name, got)
		}
	}
	t.Logf("%d keys; RSS %.1f MB before, %.1f MB after", keys, memory/1e6, after/1e6)
	// The table is 22 MB when all of it is in use; the race detector takes more.
	if after > memory+256<<20 {
		t.Errorf("%d keys took %.1f MB", keys, (after-memory)/1e6)
	}
	s.stop()
	single, folded := s.counted()
	const limited = "rate_limited"
	if got := single[limited] + folded[limited]; got != senders*keysAsked || single[""] != keys/senders*senders+2*senders {
		t.Errorf("%d refusals and %d answers in the book: %v %v", got, single[""], single, folded)
	}
	verified := s.run(0, "verify", filepath.Join(s.dir, "data"), "--keys", filepath.Join(s.dir, "keys"), "--key-file", filepath.Join(s.dir, "log.vkey"))
	if verified == "" {
		t.Error("verify says nothing")
	}
}

// keysAsked is how often each sender is refused.
const keysAsked = 50

// keysFlood asks once for each of n addresses, and again and again for one.
func keysFlood(addr string, sender, n int) error {
	c := &http.Client{Timeout: time.Minute, Transport: &http.Transport{
		DialContext:     (&net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 200, 0, byte(1+sender))}}).DialContext,
		MaxConnsPerHost: 1,
	}}
	defer c.CloseIdleConnections()
	ask := func(from string, want int) error {
		req, err := http.NewRequest("GET", "http://"+addr+"/limited/x", nil)
		if err != nil {
			return err
		}
		req.Host = "localhost"
		req.Header.Set("X-Forwarded-For", from)
		req.Header.Set("X-Forwarded-Proto", "https")
		resp, err := c.Do(req)
		if err != nil {
			return err
		}
		defer resp.Body.Close()
		if _, err := io.Copy(io.Discard, resp.Body); err != nil {
			return err
		}
		if resp.StatusCode != want {
			return fmt.Errorf("%s got %d, want %d", from, resp.StatusCode, want)
		}
		return nil
	}
	for i := range n {
		if err := ask(fmt.Sprintf("2001:%x:%x:%x::1", 0xd00+i>>16, sender, i&0xffff), 200); err != nil {
			return err
		}
	}
	for i := range 2 + keysAsked {
		want := 429
		if i < 2 { // the burst
			want = 200
		}
		if err := ask(fmt.Sprintf("2001:db9:%x:1::1", sender), want); err != nil {
			return err
		}
	}
	return nil
}
