// Package faultyup is an upstream on a raw loopback socket that misbehaves on
// request: each fault is a path (see Faults), any other path is answered
// properly, and every request that arrives is remembered byte for byte. It is
// imported by tests only.
package faultyup

import (
	"bufio"
	"crypto/tls"
	"errors"
	"io"
	"net"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// Seen is one request as it arrived.
type Seen struct {
	Method string
	Target string // request target byte for byte
	Path   string // Target up to '?'
	Query  string // Target after '?'
	ID     string // X-Gatebook-Request-Id
	Raw    string // the whole head byte for byte, with its empty line
	Fields [][2]string
	Body   []byte // as far as a handler read it, without chunk framing
	Conn   int    // serial number of the connection, from 1
	Nth    int    // how many requests the connection has carried, from 1
}

// Get returns the first value of a field, "" if there is none, and how many
// there are. Case does not matter.
func (s *Seen) Get(name string) (string, int) {
	var first string
	n := 0
	for _, f := range s.Fields {
		if strings.EqualFold(f[0], name) {
			if n == 0 {
				first = f[1]
			}
			n++
		}
	}
	return first, n
}

// Handler answers one request and reports whether the connection may carry
// another. What it does not read of the body is not read.
type Handler func(c *Conn, s *Seen) (keep bool)

// Server is the upstream. All methods are safe for concurrent use.
type Server struct {
	ln       net.Listener
	tls      *tls.Config
	onAccept func(*Conn) bool
	done     chan struct{}
	wg       sync.WaitGroup

	mu       sync.Mutex
	changed  *sync.Cond         // mu; a request was added or a connection ended
	handlers map[string]Handler // mu
	seen     []*Seen            // mu
	conns    map[*Conn]bool     // mu
	serial   int                // mu
	closed   bool               // mu
}

// Option changes a Server before it starts.
type Option func(*Server)

// WithTLS makes the server speak TLS.
func WithTLS(cfg *tls.Config) Option { return func(s *Server) { s.tls = cfg } }

// OnAccept runs for each connection before anything is read from it; if it
// returns false the connection is closed.
func OnAccept(f func(*Conn) bool) Option { return func(s *Server) { s.onAccept = f } }

// Start listens on a free loopback port and serves until the test ends.
func Start(tb testing.TB, options ...Option) *Server {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("faultyup: %v", err)
	}
	return serve(tb, ln, options)
}

// StartAt is Start on an address that was used before, for a server that
// comes back.
func StartAt(tb testing.TB, addr string, options ...Option) *Server {
	tb.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		tb.Fatalf("faultyup: %v", err)
	}
	return serve(tb, ln, options)
}

func serve(tb testing.TB, ln net.Listener, options []Option) *Server {
	s := &Server{ln: ln, done: make(chan struct{}), handlers: make(map[string]Handler), conns: make(map[*Conn]bool)}
	s.changed = sync.NewCond(&s.mu)
	for path, h := range Faults() {
		s.handlers[path] = h
	}
	for _, o := range options {
		o(s)
	}
	s.wg.Go(s.accept)
	tb.Cleanup(s.Close)
	return s
}

// RefusedAddr returns a loopback address that nothing listens on.
func RefusedAddr(tb testing.TB) string {
	tb.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		tb.Fatalf("faultyup: %v", err)
	}
	addr := ln.Addr().String()
	if err := ln.Close(); err != nil {
		tb.Fatalf("faultyup: %v", err)
	}
	return addr
}

// Addr is host:port.
func (s *Server) Addr() string { return s.ln.Addr().String() }

// URL is the base URL, without a trailing slash.
func (s *Server) URL() string {
	if s.tls != nil {
		return "https://" + s.Addr()
	}
	return "http://" + s.Addr()
}

// Handle makes h answer requests for path.
func (s *Server) Handle(path string, h Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[path] = h
}

// Seen returns the requests so far, in the order of arrival.
func (s *Server) Seen() []Seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.copySeen()
}

func (s *Server) copySeen() []Seen {
	out := make([]Seen, len(s.seen))
	for i, r := range s.seen {
		out[i] = *r
	}
	return out
}

// Wait blocks until n requests have arrived or the server is closed and
// returns those seen.
func (s *Server) Wait(n int) []Seen {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.seen) < n && !s.closed {
		s.changed.Wait()
	}
	return s.copySeen()
}

// Count returns how many requests for path have arrived.
func (s *Server) Count(path string) int {
	n := 0
	for _, r := range s.Seen() {
		if r.Path == path {
			n++
		}
	}
	return n
}

// IDs returns how many times each X-Gatebook-Request-Id arrived.
func (s *Server) IDs() map[string]int {
	ids := make(map[string]int)
	for _, r := range s.Seen() {
		ids[r.ID]++
	}
	return ids
}

// Open returns how many connections are open.
func (s *Server) Open() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.conns)
}

// Accepted returns how many connections were accepted in all.
func (s *Server) Accepted() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.serial
}

// WaitOpen blocks until exactly n connections are open.
func (s *Server) WaitOpen(n int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for len(s.conns) != n && !s.closed {
		s.changed.Wait()
	}
}

// CloseConns closes the open connections and goes on listening.
func (s *Server) CloseConns() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for c := range s.conns {
		_ = c.Close() // its goroutine notices and removes it
	}
}

// Close stops listening, closes all connections and waits for their
// goroutines. It may be called more than once.
func (s *Server) Close() {
	s.mu.Lock()
	if !s.closed {
		s.closed = true
		close(s.done)
		_ = s.ln.Close() // accept ends with it
		for c := range s.conns {
			_ = c.Close()
		}
		s.changed.Broadcast()
	}
	s.mu.Unlock()
	s.wg.Wait()
}

func (s *Server) accept() {
	for {
		nc, err := s.ln.Accept()
		if err != nil {
			return
		}
		tcp, _ := nc.(*net.TCPConn)
		c := &Conn{Conn: nc, tcp: tcp, srv: s}
		if s.tls != nil {
			c.Conn = tls.Server(nc, s.tls)
		}
		if !s.add(c) {
			_ = nc.Close()
			return
		}
		s.wg.Go(func() { s.converse(c) })
	}
}

func (s *Server) add(c *Conn) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return false
	}
	s.serial++
	c.serial = s.serial
	s.conns[c] = true
	s.changed.Broadcast()
	return true
}

func (s *Server) remove(c *Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.conns, c)
	s.changed.Broadcast()
}

func (s *Server) converse(c *Conn) {
	defer s.remove(c)
	defer func() { _ = c.Close() }() // the peer may have closed it first
	if s.onAccept != nil && !s.onAccept(c) {
		return
	}
	c.br = bufio.NewReader(c.Conn)
	for nth := 1; ; nth++ {
		r, err := readHead(c.br)
		if err != nil {
			return
		}
		r.Conn, r.Nth = c.serial, nth
		if !s.note(r)(c, r) {
			return
		}
	}
}

// note remembers r and finds its handler.
func (s *Server) note(r *Seen) Handler {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.seen = append(s.seen, r)
	s.changed.Broadcast()
	if h, ok := s.handlers[r.Path]; ok {
		return h
	}
	for prefix := r.Path; strings.Contains(prefix, "/"); {
		prefix = prefix[:strings.LastIndexByte(prefix, '/')]
		if h, ok := s.handlers[prefix+"/*"]; ok {
			return h
		}
	}
	return ok
}

func (s *Server) setBody(r *Seen, body []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	r.Body = body
}

var errHead = errors.New("faultyup: malformed request head")

// readHead reads a request head strictly: what the gate sends must be clean.
func readHead(br *bufio.Reader) (*Seen, error) {
	r := &Seen{}
	var raw strings.Builder
	for first := true; ; first = false {
		line, err := br.ReadString('\n')
		if err != nil {
			return nil, err
		}
		raw.WriteString(line)
		text, ok := strings.CutSuffix(line, "\r\n")
		if !ok {
			return nil, errHead
		}
		switch {
		case first:
			parts := strings.Split(text, " ")
			if len(parts) != 3 || parts[2] != "HTTP/1.1" {
				return nil, errHead
			}
			r.Method, r.Target = parts[0], parts[1]
			r.Path, r.Query, _ = strings.Cut(r.Target, "?")
		case text == "":
			r.Raw = raw.String()
			r.ID, _ = r.Get("X-Gatebook-Request-Id")
			return r, nil
		default:
			name, value, ok := strings.Cut(text, ":")
			if !ok {
				return nil, errHead
			}
			r.Fields = append(r.Fields, [2]string{name, strings.Trim(value, " \t")})
		}
	}
}

// Conn is one connection, as handlers use it.
type Conn struct {
	net.Conn
	tcp    *net.TCPConn
	br     *bufio.Reader
	srv    *Server
	serial int
}

// Send writes text as it is and reports whether that worked.
func (c *Conn) Send(text string) bool {
	_, err := io.WriteString(c.Conn, text)
	return err == nil
}

// Reset closes the connection with a TCP reset.
func (c *Conn) Reset() {
	_ = c.tcp.SetLinger(0) // on a closed socket there is nothing to reset
	_ = c.tcp.Close()
}

// Hold blocks until the peer closes the connection or the server ends. What
// the peer sends meanwhile is thrown away.
func (c *Conn) Hold() {
	_, _ = io.Copy(io.Discard, c.br) // ends with either
}

// HoldUnread is Hold without reading, so that the peer's writes stall. It
// blocks until the server ends.
func (c *Conn) HoldUnread() { <-c.srv.done }

// Buffered returns a reader of what follows the head.
func (c *Conn) Buffered() *bufio.Reader { return c.br }

// ReadBody reads the request body, whatever its framing, and remembers it.
func (c *Conn) ReadBody(s *Seen) ([]byte, error) {
	body, err := c.readBody(s)
	c.srv.setBody(s, body)
	return body, err
}

func (c *Conn) readBody(s *Seen) ([]byte, error) {
	if te, n := s.Get("Transfer-Encoding"); n > 0 {
		if n != 1 || te != "chunked" {
			return nil, errHead
		}
		return c.readChunks()
	}
	cl, n := s.Get("Content-Length")
	if n == 0 {
		return nil, nil
	}
	size, err := strconv.ParseInt(cl, 10, 32)
	if err != nil || n != 1 {
		return nil, errHead
	}
	body := make([]byte, size)
	got, err := io.ReadFull(c.br, body)
	return body[:got], err
}

func (c *Conn) readChunks() ([]byte, error) {
	var body []byte
	for {
		line, err := c.br.ReadString('\n')
		if err != nil {
			return body, err
		}
		size, err := strconv.ParseInt(strings.TrimSuffix(line, "\r\n"), 16, 32)
		if err != nil {
			return body, errHead
		}
		piece := make([]byte, size+2)
		if _, err := io.ReadFull(c.br, piece); err != nil {
			return body, err
		}
		if string(piece[size:]) != "\r\n" {
			return body, errHead
		}
		if size == 0 {
			return body, nil
		}
		body = append(body, piece[:size]...)
	}
}
