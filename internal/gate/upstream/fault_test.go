package upstream

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"log"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
	"github.com/gatebook/gatebook/internal/testenv/faultyup"
)

// short is the time-out of tests in which one must run out.
const short = 250 * time.Millisecond

// TestFaults holds each misbehaviour of a server against its reason, then
// makes sure that the pool gives the next request a proper answer.
func TestFaults(t *testing.T) {
	for _, tt := range []struct {
		path   string
		method string
		reason reason.Reason
		phase  string
	}{
		{"/rst", "GET", reason.ResetBeforeResponse, PhaseHead},
		{"/close", "GET", reason.ResetBeforeResponse, PhaseHead},
		{"/rst-mid-head", "GET", reason.ResetBeforeResponse, PhaseHead},
		{"/stall-head", "GET", reason.ResponseTimeout, PhaseHead},
		{"/stall-mid-head", "GET", reason.ResponseTimeout, PhaseHead},
		{"/stall-body", "GET", reason.BodyStalled, PhaseBody},
		{"/stall-chunk", "GET", reason.BodyStalled, PhaseBody},
		{"/short-body", "GET", reason.BodyLengthMismatch, PhaseBody},
		{"/short-chunk", "GET", reason.ResetMidBody, PhaseBody},
		{"/rst-body", "GET", reason.ResetMidBody, PhaseBody},

		{"/garbage", "GET", reason.BadResponse, PhaseHead},
		{"/bare-lf", "GET", reason.BadResponse, PhaseHead},
		{"/bare-cr", "GET", reason.BadResponse, PhaseHead},
		{"/obs-fold", "GET", reason.BadResponse, PhaseHead},
		{"/space-name", "GET", reason.BadResponse, PhaseHead},
		{"/nul-value", "GET", reason.BadResponse, PhaseHead},
		{"/bad-status", "GET", reason.BadResponse, PhaseHead},
		{"/status-999", "GET", reason.BadResponse, PhaseHead},
		{"/http2-line", "GET", reason.BadResponse, PhaseHead},
		{"/two-lengths", "GET", reason.BadResponse, PhaseHead},
		{"/same-lengths", "GET", reason.BadResponse, PhaseHead},
		{"/bad-length", "GET", reason.BadResponse, PhaseHead},
		{"/plus-length", "GET", reason.BadResponse, PhaseHead},
		{"/length-and-chunked", "GET", reason.BadResponse, PhaseHead},
		{"/two-chunked", "GET", reason.BadResponse, PhaseHead},
		{"/gzip-chunked", "GET", reason.BadResponse, PhaseHead},
		{"/http10-chunked", "GET", reason.BadResponse, PhaseHead},
		{"/huge-head", "GET", reason.BadResponse, PhaseHead},
		{"/many-fields", "GET", reason.BadResponse, PhaseHead},
		{"/head-ok-then-junk", "GET", reason.BodyLengthMismatch, PhaseBody},

		{"/excess", "GET", reason.BodyLengthMismatch, PhaseBody},
		{"/excess-chunked", "GET", reason.BodyLengthMismatch, PhaseBody},
		{"/no-content-body", "GET", reason.BadResponse, PhaseHead},
		{"/no-content-length", "GET", reason.BadResponse, PhaseHead},
		{"/not-modified-body", "GET", reason.BadResponse, PhaseHead},
		{"/head-with-body", "HEAD", reason.BadResponse, PhaseHead},
		{"/excess", "HEAD", reason.BadResponse, PhaseHead},

		{"/bad-chunk", "GET", reason.BadResponse, PhaseBody},
		{"/lf-chunk", "GET", reason.BadResponse, PhaseBody},
		{"/space-chunk", "GET", reason.BadResponse, PhaseBody},
		{"/long-chunk", "GET", reason.BadResponse, PhaseBody},
		{"/huge-chunk-line", "GET", reason.BadResponse, PhaseBody},
		{"/bad-trailer", "GET", reason.BadResponse, PhaseBody},
		{"/huge-trailers", "GET", reason.BadResponse, PhaseBody},

		{"/flood-1xx", "GET", reason.BadResponse, PhaseHead},
		{"/interim-length", "GET", reason.BadResponse, PhaseHead},
		{"/101", "GET", reason.BadResponse, PhaseHead},
	} {
		t.Run(tt.method+tt.path, func(t *testing.T) {
			t.Parallel()
			cfg := Config{}
			if strings.HasPrefix(tt.path, "/stall") {
				cfg.ResponseTimeout, cfg.IdleBody = short, short
			}
			s, p := serverAndPool(t, cfg)
			r := get(tt.path)
			r.Method = tt.method
			_, err := do(p, r)
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v (%T), want *Error", err, err)
			}
			if e.Reason != tt.reason || e.Phase != tt.phase {
				t.Errorf("reason %s in phase %s, want %s in %s (%v)", e.Reason, e.Phase, tt.reason, tt.phase, err)
			}
			if e.Target != s.URL() || e.Attempts != 1 || e.Err == nil {
				t.Errorf("target %q, %d attempts, cause %v; want %q, 1, not nil", e.Target, e.Attempts, e.Err, s.URL())
			}
			if n := s.Count(tt.path); n != 1 {
				t.Errorf("sent %d times, want once", n)
			}
			if a := mustDo(t, p, get("/next")); a.body != "ok GET /next" || a.Reused {
				t.Errorf("next answer %q over a kept connection %t, want its own over a new one", a.body, a.Reused)
			}
			checkIdle(t, p)
		})
	}
}

// TestConnectFaults covers what goes wrong before a request can be written.
func TestConnectFaults(t *testing.T) {
	authority, other := faultyup.NewAuthority(t), faultyup.NewAuthority(t)
	ca := authority.File(t)
	valid := time.Now().Add(time.Hour)
	tlsServer := func(a *faultyup.Authority, host string, until time.Time) string {
		return faultyup.Start(t, faultyup.WithTLS(a.Server(t, host, until))).URL()
	}
	old := authority.Server(t, "127.0.0.1", valid)
	old.MinVersion, old.MaxVersion = tls.VersionTLS10, tls.VersionTLS11
	reset := faultyup.Start(t, faultyup.OnAccept(func(c *faultyup.Conn) bool {
		var first [1]byte
		_, _ = c.Read(first[:]) // until then connect itself might see the reset
		c.Reset()
		return false
	}))
	banner := faultyup.Start(t, faultyup.OnAccept(func(c *faultyup.Conn) bool { c.Send("220 mail ready\r\n"); return true }))
	wantsCert := authority.Server(t, "127.0.0.1", valid)
	wantsCert.ClientAuth = tls.RequireAnyClientCert
	silent := faultyup.Start(t, faultyup.OnAccept(func(c *faultyup.Conn) bool { c.HoldUnread(); return false }))
	https := func(s *faultyup.Server) string { return "https://" + s.Addr() }

	for _, tt := range []struct {
		name   string
		url    string
		cfg    Config
		reason reason.Reason
		phase  string
	}{
		{"refused", "http://" + faultyup.RefusedAddr(t), Config{}, reason.ConnectRefused, PhaseConnect},
		{"unknown name", "http://nowhere.invalid:80", Config{Resolver: deadResolver()}, reason.DNS, PhaseDNS},
		{"connect timeout", "http://upstream.example:80", Config{ConnectTimeout: short, Dial: dialNever}, reason.ConnectTimeout, PhaseConnect},
		{"reset at the first byte", reset.URL(), Config{}, reason.ResetBeforeResponse, PhaseHead},
		{"speaks first", banner.URL(), Config{}, reason.BadResponse, PhaseHead},
		{"unknown authority", tlsServer(other, "127.0.0.1", valid), Config{CAFile: ca}, reason.TLSVerify, PhaseTLS},
		{"wrong host", tlsServer(authority, "other.example", valid), Config{CAFile: ca}, reason.TLSVerify, PhaseTLS},
		{"wrong server name", tlsServer(authority, "127.0.0.1", valid), Config{CAFile: ca, ServerName: "api.example"}, reason.TLSVerify, PhaseTLS},
		{"expired", tlsServer(authority, "127.0.0.1", time.Now().Add(-time.Hour)), Config{CAFile: ca}, reason.TLSVerify, PhaseTLS},
		{"plain text on the TLS port", https(banner), Config{CAFile: ca}, reason.TLSHandshakeUpstream, PhaseTLS},
		{"reset in the handshake", https(reset), Config{CAFile: ca}, reason.TLSHandshakeUpstream, PhaseTLS},
		{"stalled handshake", https(silent), Config{CAFile: ca, ConnectTimeout: short}, reason.TLSHandshakeUpstream, PhaseTLS},
		{"old TLS only", faultyup.Start(t, faultyup.WithTLS(old)).URL(), Config{CAFile: ca}, reason.TLSHandshakeUpstream, PhaseTLS},
		{"demands a certificate", faultyup.Start(t, faultyup.WithTLS(wantsCert)).URL(), Config{CAFile: ca}, reason.TLSHandshakeUpstream, PhaseTLS},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPool(t, tt.cfg, tt.url)
			_, err := do(p, get("/"))
			var e *Error
			if !errors.As(err, &e) {
				t.Fatalf("error %v (%T), want *Error", err, err)
			}
			if e.Reason != tt.reason || e.Phase != tt.phase {
				t.Errorf("reason %s in phase %s, want %s in %s (%v)", e.Reason, e.Phase, tt.reason, tt.phase, err)
			}
			checkIdle(t, p)
		})
	}
}

// deadResolver knows no name: its server cannot be reached.
func deadResolver() *net.Resolver {
	return &net.Resolver{PreferGo: true, Dial: func(context.Context, string, string) (net.Conn, error) {
		return nil, errors.New("no name server")
	}}
}

func dialNever(ctx context.Context, _, _ string) (net.Conn, error) {
	<-ctx.Done()
	return nil, &net.OpError{Op: "dial", Net: "tcp", Err: ctx.Err()}
}

func TestTLS(t *testing.T) {
	authority := faultyup.NewAuthority(t)
	s := faultyup.Start(t, faultyup.WithTLS(authority.Server(t, "api.example", time.Now().Add(time.Hour))))
	p := newPool(t, Config{CAFile: authority.File(t), ServerName: "api.example"}, s.URL())
	for i := range 3 {
		a := mustDo(t, p, get("/a"))
		if a.body != "ok GET /a" || a.Reused != (i > 0) {
			t.Errorf("request %d: body %q, reused %t", i, a.body, a.Reused)
		}
	}
	for _, path := range []string{"/bytes/100000", "/chunks/50", "/close-delimited"} {
		if _, err := do(p, get(path)); path == "/close-delimited" {
			// faultyup closes with a close_notify, so that the end is certain.
			if err != nil {
				t.Errorf("%s: %v", path, err)
			}
		} else if err != nil {
			t.Errorf("%s: %v", path, err)
		}
	}
	// A truncated close-delimited body is no body: without close_notify
	// anybody on the way could have cut it.
	s.Handle("/cut", func(c *faultyup.Conn, _ *faultyup.Seen) bool {
		c.Send("HTTP/1.1 200 OK\r\n\r\nhalf")
		c.Reset()
		return false
	})
	var e *Error
	if _, err := do(p, get("/cut")); !errors.As(err, &e) || e.Reason != reason.ResetMidBody {
		t.Errorf("cut body: error %v, want %s", err, reason.ResetMidBody)
	}
}

// TestNoLogOutput makes sure that net/http never sees unsolicited bytes, which
// it would print to the process log.
func TestNoLogOutput(t *testing.T) {
	var out bytes.Buffer
	was := log.Writer()
	log.SetOutput(&out)
	t.Cleanup(func() { log.SetOutput(was) })
	s, p := serverAndPool(t, Config{})
	var conn *faultyup.Conn
	s.Handle("/late", func(c *faultyup.Conn, r *faultyup.Seen) bool { conn = c; return faultyup.OK(c, r) })
	mustDo(t, p, get("/late"))
	conn.Send("HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\nsecret")
	s.WaitOpen(0) // the pool gives the connection up
	for _, path := range []string{"/excess", "/no-content-body", "/head-ok-then-junk"} {
		if _, err := do(p, get(path)); err == nil {
			t.Errorf("%s: no error", path)
		}
	}
	if a := mustDo(t, p, get("/next")); a.body != "ok GET /next" {
		t.Errorf("next answer %q", a.body)
	}
	if out.Len() > 0 {
		t.Errorf("log output %q", out.String())
	}
}
