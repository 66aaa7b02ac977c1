package gate

import (
	"bufio"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/gate/upstream"
)

// frontHouse is a gate behind H1Conn on a plaintext socket.
type frontHouse struct {
	*house
	engine *HTTPEngine
	server *http.Server
	addr   string
	pipes  *pipeListener
	over   chan struct{} // gets a value when net/http has let go of a connection
}

// frontListener wraps what it accepts the way the accept loop does.
type frontListener struct {
	net.Listener
	e     *HTTPEngine
	facts func() *ConnFacts
}

func (l frontListener) Accept() (net.Conn, error) {
	c, err := l.Listener.Accept()
	if err != nil {
		return nil, err
	}
	if l.facts != nil {
		return l.e.H1Conn(c, l.facts()), nil
	}
	return l.e.H1Conn(c, &ConnFacts{Listener: "public", Remote: netip.MustParseAddrPort(c.RemoteAddr().String()), Start: time.Now()}), nil
}

// echo answers with the body that it got.
var echo = answersWith(func(r *upstream.Request) (string, error) {
	if r.Body == nil {
		return "", nil
	}
	b, err := io.ReadAll(r.Body)
	return string(b), err
})

func newFrontHouse(t *testing.T, c houseConfig) *frontHouse {
	t.Helper()
	if c.up == nil {
		c.up = echo
	}
	tune := c.tune
	c.tune = func(r *Route) {
		r.Path, r.Methods = "/{rest...}", []string{"GET", "HEAD", "POST", "PUT", "TRACE", "OPTIONS"}
		r.Public, r.Authenticators = true, nil
		if tune != nil {
			tune(r)
		}
	}
	h := serveFront(t, &frontHouse{house: newHouse(t, c)}, c.engine)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	h.addr = l.Addr().String()
	h.serve(t, frontListener{Listener: l, e: h.engine})
	return h
}

// serveFront makes the server of a house that has its gate, for pipes only.
func serveFront(t *testing.T, h *frontHouse, cfg HTTPConfig) *frontHouse {
	t.Helper()
	h.over = make(chan struct{}, 64)
	cfg.Listener, cfg.TLS = "public", false
	h.engine = NewHTTPEngine(h.gate, cfg)
	h.server = &http.Server{
		Handler: h.engine, ConnContext: ConnContext, ReadHeaderTimeout: time.Minute, IdleTimeout: time.Minute, MaxHeaderBytes: 48 << 10,
		DisableGeneralOptionsHandler: true,
		ConnState: func(_ net.Conn, s http.ConnState) {
			if s == http.StateClosed {
				h.over <- struct{}{}
			}
		},
	}
	h.pipes = &pipeListener{conns: make(chan net.Conn), done: make(chan struct{})}
	h.serve(t, frontListener{Listener: h.pipes, e: h.engine, facts: tlsFacts})
	return h
}

func (h *frontHouse) serve(t *testing.T, l net.Listener) {
	ended := make(chan error, 1)
	go func() { ended <- h.server.Serve(l) }()
	t.Cleanup(func() {
		h.server.Close()
		if err := <-ended; !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("serve: %v", err)
		}
	})
}

func (h *frontHouse) open(t *testing.T) (*net.TCPConn, *bufio.Reader) {
	t.Helper()
	c, err := net.Dial("tcp", h.addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	_ = c.SetDeadline(time.Now().Add(20 * time.Second))
	return c.(*net.TCPConn), bufio.NewReader(c)
}

// pipeListener hands out the far ends of pipes.
type pipeListener struct {
	conns chan net.Conn
	done  chan struct{}
	once  sync.Once
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.done:
		return nil, net.ErrClosed
	}
}

func (l *pipeListener) Close() error {
	l.once.Do(func() { close(l.done) })
	return nil
}

func (*pipeListener) Addr() net.Addr { return &net.TCPAddr{} }

// pipe opens a connection without a socket: a write to it ends when its bytes
// have been read.
func (h *frontHouse) pipe(t *testing.T) (net.Conn, *bufio.Reader) {
	t.Helper()
	mine, theirs := net.Pipe()
	t.Cleanup(func() { mine.Close() })
	h.pipes.conns <- theirs
	return mine, bufio.NewReader(mine)
}

// next returns the next record.
func (h *frontHouse) next(t *testing.T) record.Record {
	t.Helper()
	select {
	case c := <-h.book.done:
		return c.rec
	case <-time.After(20 * time.Second):
		t.Fatal("no record")
		panic("unreachable")
	}
}

// quiet demands that no further record is there.
func (h *frontHouse) quiet(t *testing.T) {
	t.Helper()
	select {
	case c := <-h.book.done:
		t.Errorf("one record too many: %s %+v", c.rec.Kind, c.rec.Error)
	default:
	}
}

// reply reads one whole answer.
func reply(r *bufio.Reader) (*http.Response, string, error) {
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return nil, "", err
	}
	b, err := io.ReadAll(resp.Body)
	return resp, string(b), err
}

func send(t *testing.T, c io.Writer, format string, args ...any) {
	t.Helper()
	if _, err := fmt.Fprintf(c, format, args...); err != nil {
		t.Fatal(err)
	}
}

// tlsFacts are those of a connection over TLS 1.3.
func tlsFacts() *ConnFacts {
	return &ConnFacts{
		Listener: "public", Remote: netip.MustParseAddrPort("192.0.2.7:50123"), Start: time.Now(), JA4: "t13d1516h2_8daaf6152771_e5627efa2ab1",
		SNI: "Example.COM", OfferedVersions: []uint16{tls.VersionTLS12, tls.VersionTLS13},
		TLS: &tls.ConnectionState{Version: tls.VersionTLS13, NegotiatedProtocol: "http/1.1", HandshakeComplete: true, CipherSuite: tls.TLS_AES_128_GCM_SHA256},
	}
}

// watched makes the exchanges of a handler that is not ours known to H1Conn.
func watched(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if f := factsOf(r.Context()); f != nil {
			f.watch.begin(r)
			defer f.watch.end()
		}
		h.ServeHTTP(w, r)
	})
}
