package server

import (
	"context"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/obs"
	"github.com/gatebook/gatebook/internal/reason"
)

// caps bound what connections may cost before anybody asked for anything.
type caps struct {
	total      int           // open connections of all listeners
	perPrefix  int           // of one address (IPv4) or /64 (IPv6), but of trusted peers
	handshakes int           // TLS handshakes at a time
	handshake  time.Duration // for one
	refusers   int           // refusals that are recorded at a time
}

func defaultCaps() caps {
	return caps{total: 16384, perPrefix: 512, handshakes: 512, handshake: 5 * time.Second, refusers: 64}
}

// connTable counts the open connections of all listeners.
type connTable struct {
	caps       caps
	handshakes chan struct{} // a place for each handshake under way
	refusers   chan struct{} // a place for each refusal that is being recorded

	refused atomic.Uint64 // connections over a cap
	failed  atomic.Uint64 // handshakes
	silent  atomic.Uint64 // closed before the first byte of a handshake

	mu       sync.Mutex
	total    int                  // mu
	prefixes map[netip.Prefix]int // mu
}

func newConnTable(c caps) *connTable {
	return &connTable{
		caps: c, handshakes: make(chan struct{}, c.handshakes), refusers: make(chan struct{}, c.refusers), prefixes: map[netip.Prefix]int{},
	}
}

func capPrefix(a netip.Addr) netip.Prefix {
	bits := 64
	if a.Is4() {
		bits = 32
	}
	p, _ := a.Prefix(bits) // an invalid address has the invalid prefix, which all such share
	return p
}

// take counts a connection in and says whether the caps allow it.
func (t *connTable) take(a netip.Addr, trusted bool) bool {
	p := capPrefix(a)
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.total >= t.caps.total || !trusted && t.prefixes[p] >= t.caps.perPrefix {
		return false
	}
	t.total++
	t.prefixes[p]++
	return true
}

func (t *connTable) give(a netip.Addr) {
	p := capPrefix(a)
	t.mu.Lock()
	defer t.mu.Unlock()
	t.total--
	if t.prefixes[p]--; t.prefixes[p] == 0 {
		delete(t.prefixes, p)
	}
}

func (t *connTable) open() int {
	t.mu.Lock()
	defer t.mu.Unlock()
	return t.total
}

// connGauges are what happens on connections beside records.
func (s *Server) connGauges() []obs.Gauge {
	sum := func(read func(*gate.FrontStats) *atomic.Uint64, more *atomic.Uint64) func() float64 {
		return func() float64 {
			n := uint64(0)
			if more != nil {
				n = more.Load()
			}
			for _, l := range s.lines {
				n += read(l.engine.Stats()).Load()
			}
			return float64(n)
		}
	}
	return []obs.Gauge{
		{Name: "gatebook_connections_open", Help: "Connections of clients that are open.", Read: func() float64 { return float64(s.table.open()) }},
		{Name: "gatebook_connections_over_cap", Help: "Connections refused because a cap was reached.", Read: func() float64 { return float64(s.table.refused.Load()) }},
		{Name: "gatebook_handshakes_failed", Help: "TLS handshakes that failed.", Read: func() float64 { return float64(s.table.failed.Load()) }},
		{Name: "gatebook_connections_silent", Help: "Connections that ended before their first byte.", Read: sum(func(f *gate.FrontStats) *atomic.Uint64 { return &f.Silent }, &s.table.silent)},
		{Name: "gatebook_connections_idle", Help: "Connections closed after a while without a request.", Read: sum(func(f *gate.FrontStats) *atomic.Uint64 { return &f.Idle }, nil)},
		{Name: "gatebook_heads_refused", Help: "HTTP/1 heads refused as malformed, too large or too slow, and HTTP/2 connections ended for what the client sent.", Read: sum(func(f *gate.FrontStats) *atomic.Uint64 { return &f.Refused }, nil)},
		{Name: "gatebook_bodies_broken", Help: "HTTP/1 request bodies that broke their framing.", Read: sum(func(f *gate.FrontStats) *atomic.Uint64 { return &f.Framing }, nil)},
		{Name: "gatebook_answers_foreign", Help: "Answers that the HTTP library made by itself.", Read: sum(func(f *gate.FrontStats) *atomic.Uint64 { return &f.Foreign }, nil)},
	}
}

// counters are what has been decided, exchange by exchange.
func (s *Server) counters() []obs.Counter {
	return append([]obs.Counter{
		{
			Name: "gatebook_records_total", Labels: []string{"kind", "reason", "class"},
			Help: "Records of requests, handshakes and malformed requests, each refusal that was counted in a flood included, by reason and class of the status. One that the book did not take has the book's reason.",
			Read: func(add func(value float64, labels ...string)) {
				s.gate.Finished(func(kind, why, class string, n uint64) { add(float64(n), kind, why, class) })
			},
		},
		{
			Name: "gatebook_h2_floods_total", Help: "HTTP/2 connections ended for too much of what is allowed.",
			Read: func(add func(value float64, labels ...string)) {
				n := uint64(0)
				for _, l := range s.lines {
					n += l.engine.Stats().Floods.Load()
				}
				add(float64(n))
			},
		},
		s.shadowCounter(),
	}, s.upstreamCounters()...)
}

// countedConn gives its place back when it is closed.
type countedConn struct {
	net.Conn
	once sync.Once
	done func()
}

func (c *countedConn) Close() error {
	err := c.Conn.Close()
	c.once.Do(c.done)
	return err
}

// CloseWrite ends our side only.
func (c *countedConn) CloseWrite() error {
	if w, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return w.CloseWrite()
	}
	return errors.ErrUnsupported
}

// handover is a net.Listener whose connections come from this process.
type handover struct {
	addr  net.Addr
	conns chan net.Conn
	once  sync.Once
	done  chan struct{}
}

func newHandover(a net.Addr) *handover {
	return &handover{addr: a, conns: make(chan net.Conn), done: make(chan struct{})}
}

// Accept implements net.Listener.
func (h *handover) Accept() (net.Conn, error) {
	select {
	case c := <-h.conns:
		return c, nil
	case <-h.done:
		return nil, net.ErrClosed
	}
}

// Close implements net.Listener.
func (h *handover) Close() error {
	h.once.Do(func() { close(h.done) })
	return nil
}

// Addr implements net.Listener.
func (h *handover) Addr() net.Addr { return h.addr }

// give hands a connection over, or closes it if nobody takes it any more.
func (h *handover) give(c net.Conn) {
	select {
	case h.conns <- c:
	case <-h.done:
		c.Close()
	}
}

// The longest pause after an Accept that failed for want of something.
const maxPause = time.Second

// accept takes connections until the socket is closed. What passes by itself,
// such as a lack of file descriptors, is waited for.
func (l *line) accept() error {
	pause := time.Duration(0)
	for {
		c, err := l.socket.Accept()
		switch {
		case err == nil:
			pause = 0
			l.begin(c)
			continue
		case errors.Is(err, net.ErrClosed):
			return http.ErrServerClosed
		case !passing(err):
			return err
		}
		pause = min(max(2*pause, 5*time.Millisecond), maxPause)
		l.log.Warn("a connection could not be accepted", "listener", l.name, "err", err, "pause", pause)
		select {
		case <-time.After(pause):
		case <-l.quit:
			return http.ErrServerClosed
		}
	}
}

func passing(err error) bool {
	for _, e := range []syscall.Errno{syscall.EMFILE, syscall.ENFILE, syscall.ENOBUFS, syscall.ENOMEM, syscall.ECONNABORTED, syscall.EINTR, syscall.EAGAIN} {
		if errors.Is(err, e) {
			return true
		}
	}
	return false
}

// begin takes a connection up, on a goroutine of its own that ends when the
// connection has been handed to net/http or closed.
func (l *line) begin(c net.Conn) {
	f := &gate.ConnFacts{Listener: l.name, Start: time.Now()}
	if a, err := netip.ParseAddrPort(c.RemoteAddr().String()); err == nil {
		f.Remote = netip.AddrPortFrom(a.Addr().Unmap().WithZone(""), a.Port())
	}
	addr := f.Remote.Addr()
	if !l.table.take(addr, l.trusts(addr)) {
		l.overCap(c, f)
		return
	}
	counted := &countedConn{Conn: c, done: func() { l.table.give(addr) }}
	if !l.hold(counted) {
		counted.Close()
		return
	}
	l.work.Go(func() {
		defer l.letGo(counted)
		if l.tls == nil {
			l.letGo(counted) // from here on it is net/http's to end
			l.in1.give(l.engine.H1Conn(counted, f))
			return
		}
		l.secure(counted, f)
	})
}

func (l *line) trusts(a netip.Addr) bool {
	return slices.ContainsFunc(*l.trusted.Load(), func(p netip.Prefix) bool { return p.Contains(a) })
}

// hold remembers a connection that nobody serves yet, so that a stop can end
// it. It reports false when the line is stopping.
func (l *line) hold(c net.Conn) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return false
	}
	l.held[c] = struct{}{}
	return true
}

func (l *line) letGo(c net.Conn) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.held, c)
}

// stop ends accepting and what is still being set up.
func (l *line) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.stopped {
		return
	}
	l.stopped = true
	close(l.quit)
	l.socket.Close()
	for c := range l.held {
		c.Close()
	}
}

func (l *line) stopping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.stopped
}

// overCap records and refuses a connection beside the accept loop as long as
// there are places, and in it, which slows the flood, when there are none.
func (l *line) overCap(c net.Conn, f *gate.ConnFacts) {
	l.table.refused.Add(1)
	select {
	case l.table.refusers <- struct{}{}:
		l.work.Go(func() {
			defer func() { <-l.table.refusers }()
			l.refuse(c, f, reason.ConnectionLimited, phaseAccept)
		})
	default:
		l.refuse(c, f, reason.ConnectionLimited, phaseAccept)
	}
}

// The phases of a connection that never came to a request.
const (
	phaseAccept     = "accept"
	phaseHandshakes = "queue"       // too many handshakes at a time
	phaseHello      = "hello"       // nothing that reads like a ClientHello
	phaseHTTP       = "http_on_tls" // a request in the clear on a TLS port
	phaseVersion    = "version"
	phaseNegotiate  = "negotiate" // no common suite, group or protocol
	phaseAlert      = "alert"     // the client refused us
	phaseClosed     = "closed"    // the client closed
	phaseHandshake  = "handshake"
	phaseSecurity   = "inadequate_security" // RFC 9113 section 9.2
)

// refuse records a connection and closes it, in the clear with an answer.
func (l *line) refuse(c net.Conn, f *gate.ConnFacts, why reason.Reason, phase string) {
	what := gate.Refusal{Kind: record.KindHandshake, Reason: why, Phase: phase}
	if l.tls == nil {
		what.Status = why.Status()
	}
	id := l.note(f, what)
	if l.tls == nil {
		l.lastWords(c, gate.AppendAnswer(nil, why, id))
	}
	c.Close()
}

// note records a refusal. The book counts what it does not take, and there is
// nothing to hold back.
func (l *line) note(f *gate.ConnFacts, what gate.Refusal) (id string) {
	id, err := l.gate.Refuse(f, what)
	if err != nil {
		l.log.Error("a refused connection could not be recorded", "listener", l.name, "reason", string(what.Reason), "err", err)
	}
	return id
}

const (
	wordsTime = time.Second            // for the client to take an answer
	wordsRest = 200 * time.Millisecond // for it to close after that
)

// lastWords writes and leaves the client some time to read before the close,
// which would take the answer back if bytes of the client were unread.
func (l *line) lastWords(c net.Conn, text []byte) {
	_ = c.SetDeadline(time.Now().Add(wordsTime))
	if _, err := c.Write(text); err != nil {
		return // it is gone
	}
	if w, ok := c.(interface{ CloseWrite() error }); !ok || w.CloseWrite() != nil {
		return
	}
	_ = c.SetReadDeadline(time.Now().Add(wordsRest))
	_, _ = io.CopyN(io.Discard, c, 64<<10)
}

// maxHello bounds what is kept of a handshake to look at its ClientHello.
const maxHello = 16 << 10

// helloConn keeps the first bytes that a client sends.
type helloConn struct {
	net.Conn
	keep bool // owned by the handshake, false after it
	sent []byte

	standing *standing // set in the handshake
}

func (c *helloConn) Read(p []byte) (int, error) {
	n, err := c.Conn.Read(p)
	if c.keep {
		c.sent = append(c.sent, p[:min(n, maxHello-len(c.sent))]...)
	}
	return n, err
}

// secure runs the TLS handshake and hands the connection on.
func (l *line) secure(raw net.Conn, f *gate.ConnFacts) {
	timeout := time.NewTimer(l.table.caps.handshake)
	defer timeout.Stop()
	select {
	case l.table.handshakes <- struct{}{}:
	case <-timeout.C:
		l.table.refused.Add(1)
		l.refuse(raw, f, reason.ConnectionLimited, phaseHandshakes)
		return
	case <-l.quit:
		raw.Close()
		return
	}
	seen := &helloConn{Conn: raw, keep: true}
	conn := tls.Server(seen, l.tls)
	_ = raw.SetDeadline(time.Now().Add(l.table.caps.handshake)) // fails in the handshake, too
	err := conn.HandshakeContext(context.Background())
	<-l.table.handshakes
	sent := seen.sent
	seen.keep, seen.sent = false, nil
	if h := parseHello(sent); h != nil {
		f.OfferedVersions, f.SNI = h.offered(), h.sni
		if h.ciphers != nil {
			f.JA4 = h.ja4()
		}
	}
	if err != nil {
		l.handshakeFailed(raw, f, sent, err)
		return
	}
	_ = raw.SetDeadline(time.Time{})
	state := conn.ConnectionState()
	f.TLS = &state
	l.know(f, seen.standing)
	switch {
	case state.NegotiatedProtocol != "h2":
		l.letGo(raw)
		l.in1.give(l.engine.H1Conn(conn, f))
	case state.Version == tls.VersionTLS12 && !goodForH2(state.CipherSuite):
		l.table.failed.Add(1)
		l.note(f, gate.Refusal{Kind: record.KindHandshake, Reason: reason.TLSHandshake, Phase: phaseSecurity})
		l.lastWords(conn, []byte(inadequateSecurity))
		conn.Close()
	default:
		l.letGo(raw)
		l.in2.give(l.engine.H2Conn(conn, f))
	}
}

// know tells the exchanges of a connection who its client is.
func (l *line) know(f *gate.ConnFacts, s *standing) {
	f.Seen = canon.FromTLS(f.TLS)
	l.gate.Certificate(f.Seen, s.good.Load().chain)
	f.Seen.Still = s.still
}

// goodForH2 reports the suites of TLS 1.2 that HTTP/2 may use (RFC 9113
// section 9.2.2 and appendix A): ephemeral keys and AEAD.
func goodForH2(suite uint16) bool {
	switch suite {
	case tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256,
		tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384,
		tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256:
		return true
	}
	return false
}

// inadequateSecurity is an empty SETTINGS frame and GOAWAY with the error code
// INADEQUATE_SECURITY.
const inadequateSecurity = "\x00\x00\x00\x04\x00\x00\x00\x00\x00" + "\x00\x00\x08\x07\x00\x00\x00\x00\x00" + "\x00\x00\x00\x00\x00\x00\x00\x0c"

// handshakeFailed records why there is no connection.
func (l *line) handshakeFailed(raw net.Conn, f *gate.ConnFacts, sent []byte, err error) {
	defer raw.Close()
	if len(sent) == 0 {
		l.table.silent.Add(1) // closed before the first byte: nothing was asked
		return
	}
	l.table.failed.Add(1)
	what := gate.Refusal{Kind: record.KindHandshake}
	what.Reason, what.Phase = judgeHandshake(f.OfferedVersions, sent, err)
	if bad, ok := errors.AsType[*clientCertError](err); ok {
		f.Claimed = bad.claimed
	}
	switch {
	case what.Phase == phaseHTTP:
		what.Status = http.StatusBadRequest
	case l.stopping():
		what.Reason, what.Phase = reason.ShuttingDown, phaseHandshake
	}
	l.note(f, what)
	if what.Phase == phaseHTTP {
		l.lastWords(raw, []byte(httpOnTLS))
	}
}

// httpOnTLS is what net/http answers then.
const httpOnTLS = "HTTP/1.0 400 Bad Request\r\nContent-Type: text/plain; charset=utf-8\r\nConnection: close\r\n\r\nClient sent an HTTP request to an HTTPS server.\n"

func judgeHandshake(offered []uint16, sent []byte, err error) (reason.Reason, string) {
	var op *net.OpError
	if bad, ok := errors.AsType[*clientCertError](err); ok {
		return bad.reason, bad.phase
	}
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return reason.TimeoutReading, phaseHandshake
	case looksLikeHTTP(sent):
		return reason.TLSHandshake, phaseHTTP
	case len(offered) > 0 && slices.Max(offered) < tls.VersionTLS12:
		return reason.TLSVersion, phaseVersion
	case errors.Is(err, io.EOF), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE), errors.Is(err, net.ErrClosed):
		return reason.TLSHandshake, phaseClosed
	case offered == nil:
		return reason.TLSHandshake, phaseHello
	case errors.As(err, &op) && op.Op == "remote error":
		return reason.TLSHandshake, phaseAlert
	case err.Error() == noClientCert:
		return reason.TLSNoClientCert, certAbsent
	case strings.Contains(err.Error(), "client certificate"), strings.Contains(err.Error(), "client sent certificate"):
		return reason.TLSBadClientCert, certUnproven
	}
	return reason.TLSHandshake, phaseNegotiate
}

// noClientCert is what crypto/tls says of a client without the certificate that
// it was asked for. It has no type; a test notices if the words change.
const noClientCert = "tls: client didn't provide a certificate"

// looksLikeHTTP reports a method and a space, or the preface of HTTP/2.
func looksLikeHTTP(b []byte) bool {
	for i, c := range b {
		if c == ' ' {
			return i > 2
		}
		if c < 'A' || c > 'Z' || i > 8 {
			return false
		}
	}
	return false
}
