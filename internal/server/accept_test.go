package server

import (
	"bufio"
	"context"
	"crypto/tls"
	"errors"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/config"
)

// handshakeCase is one way in which a handshake fails.
type handshakeCase struct {
	name   string
	client func(t *testing.T, h *house, c *net.TCPConn)
	reason string
	phase  string
	status int
	// of the record
	versions, sni, ja4 string
}

// failing runs a handshake that must fail.
func failing(change func(*tls.Config)) func(*testing.T, *house, *net.TCPConn) {
	return func(t *testing.T, h *house, c *net.TCPConn) {
		cfg := h.client("http/1.1")
		change(cfg)
		if err := tls.Client(c, cfg).Handshake(); err == nil {
			// In TLS 1.3 the client is done before the server.
			if _, err = tls.Client(c, cfg).Read(make([]byte, 1)); err == nil {
				t.Error("the handshake succeeded")
			}
		}
	}
}

// sends writes bytes and reads until the server ends.
func sends(raw string, want string) func(*testing.T, *house, *net.TCPConn) {
	return func(t *testing.T, h *house, c *net.TCPConn) {
		if _, err := io.WriteString(c, raw); err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(c)
		if err != nil && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
		if want == "alert" && (len(got) < 7 || got[0] != 21) || want != "alert" && string(got) != want {
			t.Errorf("the server sent %q, want %s", got, want)
		}
	}
}

func ssl3() string {
	h := rawHello{legacy: 0x0300, ciphers: []uint16{0x0035, 0x002f, 0x000a}}
	return string(h.bytes(16384))
}

var handshakeCases = []handshakeCase{
	{
		name: "TLS 1.0", client: failing(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS10 }),
		reason: "tls_version", phase: "version", versions: "1.0", sni: "api.example.com", ja4: "t10d",
	},
	{
		name: "TLS 1.1", client: failing(func(c *tls.Config) { c.MinVersion, c.MaxVersion = tls.VersionTLS10, tls.VersionTLS11 }),
		reason: "tls_version", phase: "version", versions: "1.0,1.1", sni: "api.example.com", ja4: "t11d",
	},
	{name: "SSL 3.0", client: sends(ssl3(), "alert"), reason: "tls_version", phase: "version", versions: "ssl3", ja4: "ts3i030000_"},
	{
		name: "SSL 2.0", client: sends("\x80\x2e\x01\x00\x02\x00\x15\x00\x00\x00\x10"+strings.Repeat("\x01", 37), "alert"),
		reason: "tls_version", phase: "version", versions: "ssl2",
	},
	{name: "garbage", client: sends("\x00\x01\x02\x03\x04\x05\x06\x07", ""), reason: "tls_handshake", phase: "hello"},
	{name: "no hello", client: sends("\x16\x03\x01\x00\x04\x02\x00\x00\x00", "alert"), reason: "tls_handshake", phase: "hello"},
	{name: "HTTP on the TLS port", client: sends("GET / HTTP/1.1\r\nHost: api.example.com\r\n\r\n", httpOnTLS), reason: "tls_handshake", phase: "http_on_tls", status: 400},
	{name: "HTTP/2 on the TLS port", client: sends("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", httpOnTLS), reason: "tls_handshake", phase: "http_on_tls", status: 400},
	{
		name: "no common suite", client: failing(func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_RSA_WITH_AES_128_GCM_SHA256}
		}),
		reason: "tls_handshake", phase: "negotiate", versions: "1.2", sni: "api.example.com", ja4: "t12d01",
	},
	{
		name: "no common protocol", client: failing(func(c *tls.Config) { c.NextProtos = []string{"spdy/3"}; c.ServerName = "other.example.com" }),
		reason: "tls_handshake", phase: "negotiate", versions: "1.2,1.3", sni: record.Other, ja4: "t13d",
	},
	{
		name: "certificate refused", client: failing(func(c *tls.Config) { c.RootCAs = nil }),
		reason: "tls_handshake", phase: "alert", versions: "1.2,1.3", sni: "api.example.com", ja4: "t13d",
	},
	{
		name: "stalled", client: sends("\x16\x03\x01\x02\x00\x01\x00", ""),
		reason: "timeout_reading", phase: "handshake",
	},
	{
		name: "cut off", client: func(t *testing.T, h *house, c *net.TCPConn) {
			if _, err := io.WriteString(c, "\x16\x03\x01\x02\x00\x01\x00"); err != nil {
				t.Fatal(err)
			}
		},
		reason: "tls_handshake", phase: "closed",
	},
}

func TestHandshakeFails(t *testing.T) {
	for _, tc := range handshakeCases {
		t.Run(tc.name, func(t *testing.T) {
			h := newHouse(t, houseConfig{caps: func(c *caps) {
				if tc.reason == "timeout_reading" {
					c.handshake = 300 * time.Millisecond
				}
			}})
			c := h.dial(t)
			tc.client(t, h, c)
			c.Close()
			r := h.next(t)
			if r.Kind != record.KindHandshake || r.Outcome != record.Failure || r.Error.Reason != tc.reason || r.Error.Phase != tc.phase || r.Status != tc.status {
				t.Errorf("%s %s %d %+v", r.Kind, r.Outcome, r.Status, r.Error)
			}
			if r.TLS.Version != tc.versions || r.TLS.SNI != tc.sni || !strings.HasPrefix(r.TLS.JA4, tc.ja4) || (r.TLS.JA4 == "") != (tc.ja4 == "") {
				t.Errorf("%+v", r.TLS)
			}
			if r.Client.Prefix != "127.0.0.0/24" || r.Authn.Method != record.None || r.Route != record.None || r.Raw.RemoteAddr != "127.0.0.1" || r.Node != "gate-1" {
				t.Errorf("%+v", r)
			}
			if n := h.table.failed.Load(); n != 1 {
				t.Errorf("counted %d times", n)
			}
			h.quiet(t)
		})
	}
}

// TestInadequateSecurity: HTTP/2 must not run over a suite of TLS 1.2 without
// AEAD, which crypto/tls would take.
func TestInadequateSecurity(t *testing.T) {
	h := newHouse(t, houseConfig{})
	cfg := h.client("h2")
	cfg.MaxVersion, cfg.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
	c := tls.Client(h.dial(t), cfg)
	got, err := io.ReadAll(c)
	if err != nil || string(got) != inadequateSecurity {
		t.Errorf("%q %v", got, err)
	}
	c.Close()
	if r := h.next(t); r.Kind != record.KindHandshake || r.Error.Phase != "inadequate_security" || r.TLS.Version != "1.2" || r.Proto != "HTTP/2" {
		t.Errorf("%+v %+v", r.Error, r.TLS)
	}
}

// TestSilent: what closes, or is closed, before its first byte leaves a count
// only.
func TestSilent(t *testing.T) {
	h := newHouse(t, houseConfig{caps: func(c *caps) { c.handshake = 50 * time.Millisecond }})
	h.dial(t).Close()
	c := h.dial(t)
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("stalled: %v", err)
	}
	h.end()
	h.quiet(t)
	if n := h.table.silent.Load(); n != 2 {
		t.Errorf("counted %d", n)
	}
}

// TestServes: both protocols over TLS get through, with the facts of their
// connection in the record.
func TestServes(t *testing.T) {
	h := newHouse(t, houseConfig{})
	for _, alpn := range []string{"http/1.1", "h2"} {
		tr := &http.Transport{TLSClientConfig: h.client(alpn), Protocols: new(http.Protocols)}
		tr.Protocols.SetHTTP1(alpn != "h2")
		tr.Protocols.SetHTTP2(alpn == "h2")
		tr.DialTLSContext = func(ctx context.Context, _, _ string) (net.Conn, error) {
			d := tls.Dialer{Config: h.client(alpn)}
			return d.DialContext(ctx, "tcp", h.addr)
		}
		client := &http.Client{Transport: tr}
		for range 3 {
			resp, err := client.Get("https://api.example.com/v1/orders/7")
			if err != nil {
				t.Fatal(alpn, err)
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != 200 || string(b) != "hello" {
				t.Errorf("%s: %s %q %v", alpn, resp.Status, b, err)
			}
			r := h.next(t)
			if r.Kind != record.KindRequest || r.TLS.ALPN != alpn || r.TLS.Version != "1.3" || !strings.HasPrefix(r.TLS.JA4, "t13d") || r.TLS.SNI != "api.example.com" || r.Host != "api.example.com" {
				t.Errorf("%s: %+v %s", alpn, r.TLS, r.Host)
			}
		}
		tr.CloseIdleConnections()
	}
	h.quiet(t)
}

// TestMalformedOverTLS: the front's parser stands behind the handshake.
func TestMalformedOverTLS(t *testing.T) {
	h := newHouse(t, houseConfig{})
	c := tls.Client(h.dial(t), h.client("http/1.1"))
	if _, err := io.WriteString(c, "GET / HTTP/1.1\nHost: api.example.com\n\n"); err != nil {
		t.Fatal(err)
	}
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 400 || !resp.Close || resp.Header.Get("Content-Type") != "application/problem+json" {
		t.Fatal(resp, err)
	}
	r := h.next(t)
	if r.Kind != record.KindMalformed || r.Error.Reason != "malformed_request" || r.TLS.Version != "1.3" || r.TLS.JA4 == "" || r.Status != 400 || r.ID.String() != resp.Header.Get("X-Request-Id") {
		t.Errorf("%+v %+v", r.Error, r.TLS)
	}
	c.Close()
	h.end()
	h.quiet(t)
}

// TestCaps: what is over a cap is recorded and turned away, and a place that
// becomes free is taken again.
func TestCaps(t *testing.T) {
	for name, tc := range map[string]struct {
		caps    func(*caps)
		plain   bool
		trusted bool
		places  int
	}{
		"prefix, TLS":          {caps: func(c *caps) { c.perPrefix = 2 }, places: 2},
		"prefix, plain":        {caps: func(c *caps) { c.perPrefix = 2 }, plain: true, places: 2},
		"total, plain":         {caps: func(c *caps) { c.total = 3 }, plain: true, places: 3},
		"total, trusted peer":  {caps: func(c *caps) { c.total, c.perPrefix = 3, 1 }, plain: true, trusted: true, places: 3},
		"no place for records": {caps: func(c *caps) { c.perPrefix, c.refusers = 1, 0 }, plain: true, places: 1},
	} {
		t.Run(name, func(t *testing.T) {
			lc := config.Listener{}
			if tc.plain {
				lc.Plaintext = "behind_proxy"
			}
			if tc.trusted {
				lc.Trusted = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			}
			h := newHouse(t, houseConfig{listener: lc, caps: tc.caps})
			var held []*net.TCPConn
			for range tc.places {
				held = append(held, h.dial(t))
			}
			over := h.dial(t)
			if tc.plain {
				resp, err := http.ReadResponse(bufio.NewReader(over), nil)
				if err != nil || resp.StatusCode != 503 || !resp.Close {
					t.Fatalf("%v %v", resp, err)
				}
				over.Close()
			} else if _, err := over.Read(make([]byte, 1)); err == nil {
				t.Fatal("the server spoke")
			}
			r := h.next(t)
			want := 0
			if tc.plain {
				want = 503
			}
			if r.Kind != record.KindHandshake || r.Error.Reason != "connection_limited" || r.Error.Origin != "limit" || r.Error.Phase != "accept" || r.Status != want {
				t.Errorf("%d %+v", r.Status, r.Error)
			}
			if n := h.table.refused.Load(); n != 1 {
				t.Errorf("counted %d", n)
			}
			held[0].Close()
			h.places(t, tc.places-1)
			held[0] = h.dial(t)
			h.places(t, tc.places)
			h.quiet(t)
		})
	}
}

// places waits until so many connections are counted.
func (h *house) places(t *testing.T, want int) {
	t.Helper()
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for end := time.Now().Add(20 * time.Second); h.table.open() != want; <-tick.C {
		if time.Now().After(end) {
			t.Fatalf("%d connections are counted, want %d", h.table.open(), want)
		}
	}
}

func TestCapPrefix(t *testing.T) {
	table := newConnTable(caps{total: 10, perPrefix: 2, handshakes: 1, refusers: 1})
	a, b, other := netip.MustParseAddr("2001:db8::1"), netip.MustParseAddr("2001:db8::ffff"), netip.MustParseAddr("2001:db8:0:1::1")
	if !table.take(a, false) || !table.take(b, false) || table.take(a, false) || !table.take(other, false) {
		t.Error("a /64 is one client")
	}
	table.give(a)
	if !table.take(b, false) || table.open() != 3 {
		t.Error("a place was not given back")
	}
	first, second, third := table.take(netip.Addr{}, false), table.take(netip.Addr{}, false), table.take(netip.Addr{}, false)
	if !first || !second || third {
		t.Error("what has no address shares one place")
	}
	for _, x := range []netip.Addr{a, b, other, {}, {}} {
		table.give(x)
	}
	if len(table.prefixes) != 0 {
		t.Errorf("%v is left", table.prefixes)
	}
}

// TestHandshakeCap: a handshake that finds no place in its time is turned away.
func TestHandshakeCap(t *testing.T) {
	h := newHouse(t, houseConfig{caps: func(c *caps) { c.handshakes, c.handshake = 1, time.Second }})
	h.table.handshakes <- struct{}{}
	if _, err := h.dial(t).Read(make([]byte, 1)); err == nil {
		t.Error("the server spoke")
	}
	if r := h.next(t); r.Error.Reason != "connection_limited" || r.Error.Phase != "queue" || r.Kind != record.KindHandshake {
		t.Errorf("%+v", r.Error)
	}
	waiting := tls.Client(h.dial(t), h.client("http/1.1"))
	<-h.table.handshakes
	if err := waiting.Handshake(); err != nil {
		t.Errorf("with a place again: %v", err)
	}
}

// TestAcceptPauses: a lack of something is waited for, longer each time; what
// does not pass ends the line.
func TestAcceptPauses(t *testing.T) {
	for _, tc := range []struct {
		steps []error
		want  time.Duration
		err   error
	}{
		{[]error{syscall.EMFILE, &net.OpError{Op: "accept", Err: syscall.ENFILE}, syscall.ECONNABORTED}, 35 * time.Millisecond, http.ErrServerClosed},
		{[]error{syscall.EMFILE, syscall.EMFILE, syscall.EMFILE, syscall.EMFILE, syscall.EMFILE, syscall.EMFILE, syscall.EMFILE, syscall.EMFILE, syscall.EMFILE, syscall.EMFILE}, 3275 * time.Millisecond, http.ErrServerClosed},
		{[]error{syscall.ENOMEM, syscall.EBADF}, 5 * time.Millisecond, syscall.EBADF},
	} {
		synctest.Test(t, func(t *testing.T) {
			s := &scripted{steps: tc.steps, done: make(chan struct{})}
			l := &line{name: "public", socket: s, log: slog.New(slog.DiscardHandler), quit: make(chan struct{}), held: map[net.Conn]struct{}{}}
			start := time.Now()
			ended := make(chan error, 1)
			go func() { ended <- l.accept() }()
			time.Sleep(tc.want) // the clock of the bubble: what accept does until then has been done
			synctest.Wait()
			if len(s.steps) != 0 || time.Since(start) != tc.want {
				t.Errorf("%d steps left after %v", len(s.steps), time.Since(start))
			}
			l.stop()
			if err := <-ended; !errors.Is(err, tc.err) {
				t.Errorf("%v, want %v", err, tc.err)
			}
		})
	}
}

// TestStopWhilePausing: a pause does not delay a stop.
func TestStopWhilePausing(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{steps: []error{syscall.EMFILE}, done: make(chan struct{})}
		l := &line{name: "public", socket: s, log: slog.New(slog.DiscardHandler), quit: make(chan struct{}), held: map[net.Conn]struct{}{}}
		ended := make(chan error, 1)
		start := time.Now()
		go func() { ended <- l.accept() }()
		synctest.Wait()
		l.stop()
		if err := <-ended; err != http.ErrServerClosed || time.Since(start) != 0 {
			t.Error(err, time.Since(start))
		}
	})
}

// TestShutdown: what is being set up is ended and recorded, what runs goes on
// to its end, what is idle is closed, and nothing is left (house.end).
func TestShutdown(t *testing.T) {
	h := newHouse(t, houseConfig{wait: true})
	// A write to a pipe ends when it has been read: with the second, the first
	// has been noticed.
	mine, theirs := net.Pipe()
	defer mine.Close()
	h.begin(theirs)
	for _, part := range []string{"\x16", "\x03\x01"} {
		if _, err := io.WriteString(mine, part); err != nil {
			t.Fatal(err)
		}
	}
	busy := tls.Client(h.dial(t), h.client("http/1.1"))
	if _, err := io.WriteString(busy, "GET /a HTTP/1.1\r\nHost: api.example.com\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	<-h.started
	h.gate.Drain()
	down := make(chan struct{})
	go func() {
		h.end()
		close(down)
	}()
	if r := h.next(t); r.Kind != record.KindHandshake || r.Error.Reason != "shutting_down" || r.Error.Origin != "gateway" {
		t.Errorf("stalled: %s %+v", r.Kind, r.Error)
	}
	if _, err := net.Dial("tcp", h.addr); err == nil {
		t.Error("the socket still takes connections")
	}
	close(h.release)
	resp, err := http.ReadResponse(bufio.NewReader(busy), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatal(resp, err)
	}
	if b, err := io.ReadAll(resp.Body); err != nil || string(b) != "hello" {
		t.Error(b, err)
	}
	if r := h.next(t); r.Kind != record.KindRequest || r.Status != 200 {
		t.Errorf("busy: %+v", r.Error)
	}
	<-down
	h.quiet(t)
}

// TestRedirect: a listener that only redirects has the same front, and each
// request there leaves one record.
func TestRedirect(t *testing.T) {
	h := newHouse(t, houseConfig{listener: config.Listener{RedirectToHTTPS: true}})
	for _, tc := range []struct {
		name, send string
		status     int
		location   string
		kind       record.Kind
		reason     string
	}{
		{"path and query", "GET /a?b HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 308, "https://api.example.com/a?b", record.KindRequest, ""},
		{"port and case", "GET / HTTP/1.1\r\nHost: API.example.com:8080\r\n\r\n", 308, "https://api.example.com/", record.KindRequest, ""},
		{"empty query", "GET /a? HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 308, "https://api.example.com/a?", record.KindRequest, ""},
		{"IPv6 literal", "GET /a HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", 308, "https://[2001:db8::1]/a", record.KindRequest, ""},
		{"head", "HEAD /a HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 308, "https://api.example.com/a", record.KindRequest, ""},
		{"with a body", "POST /a HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 3\r\n\r\nabc", 308, "https://api.example.com/a", record.KindRequest, ""},
		{"one behind it", "GET /a HTTP/1.1\r\nHost: api.example.com\r\n\r\nGET /b HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 308, "https://api.example.com/a", record.KindRequest, ""},
		{"OPTIONS *", "OPTIONS * HTTP/1.1\r\nHost: api.example.com\r\n\r\n", 400, "", record.KindMalformed, "bad_path"},
		{"no host", "GET /a HTTP/1.1\r\n\r\n", 400, "", record.KindMalformed, "bad_host"},
		{"not HTTP", "hello\r\n\r\n", 400, "", record.KindMalformed, "malformed_request"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			c := h.dial(t)
			io.WriteString(c, tc.send)
			in := bufio.NewReader(c)
			method, _, _ := strings.Cut(tc.send, " ")
			resp, err := http.ReadResponse(in, &http.Request{Method: method})
			if err != nil || resp.StatusCode != tc.status || resp.Header.Get("Location") != tc.location || !resp.Close {
				t.Fatalf("%v %v", resp, err)
			}
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Error(err)
			}
			if rest, err := io.ReadAll(in); err != nil || len(rest) != 0 {
				t.Errorf("%q behind the answer: %v", rest, err)
			}
			r := h.next(t)
			if r.Kind != tc.kind || r.Error.Reason != tc.reason || r.Status != tc.status || r.TLS.Version != "" {
				t.Errorf("%s %d %+v", r.Kind, r.Status, r.Error)
			}
			if r.ID.String() != resp.Header.Get("X-Request-Id") || r.Raw.Fold != (tc.reason != "") || (r.Outcome == record.Success) != (tc.reason == "") {
				t.Errorf("id %s, fold %v, outcome %s", r.ID, r.Raw.Fold, r.Outcome)
			}
			h.quiet(t)
		})
	}
}
