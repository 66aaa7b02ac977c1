package server

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/obs"
)

// Limits of connections; each has its reason in reference documents on slow
// and oversized requests.
const (
	readHeaderTimeout = 5 * time.Second
	idleTimeout       = 60 * time.Second
	maxHeaderBytes    = 48 << 10 // the gate refuses above 32 KiB of fields itself
	maxStreams        = 100
	maxFrame          = 16 << 10 // the least that may be announced (RFC 9113 section 6.5.2)
)

// line is one listener. It accepts by itself (accept.go) and hands what has come
// so far that a request can follow to net/http: HTTP/1 and HTTP/2 to a server
// each, both in the clear behind the gate's wrappers.
type line struct {
	name    string
	socket  net.Listener
	gate    *gate.Gate
	engine  *gate.HTTPEngine
	table   *connTable
	trusted atomic.Pointer[[]netip.Prefix]
	log     *slog.Logger
	certs   *certStore  // nil without TLS
	tls     *tls.Config // nil without TLS

	h1, h2   *http.Server // h2 is nil without TLS
	in1, in2 *handover

	work sync.WaitGroup // connections being set up, and the servers
	quit chan struct{}  // closed when the line stops

	mu      sync.Mutex
	stopped bool                  // mu
	held    map[net.Conn]struct{} // mu; connections that are being set up
}

func (s *Server) newLine(c *config.Listener) (*line, error) {
	l := &line{
		name: c.Name, gate: s.gate, table: s.table, log: s.log,
		engine: gate.NewHTTPEngine(s.gate, gate.HTTPConfig{Listener: c.Name, TLS: c.TLS != nil, Redirect: c.RedirectToHTTPS}),
		quit:   make(chan struct{}), held: map[net.Conn]struct{}{},
	}
	l.trusted.Store(&c.Trusted)
	var err error
	if c.TLS != nil {
		if l.certs, err = newCertStore("listener "+c.Name, filesOf(c.TLS), []string{"h2", "http/1.1"}, s.log); err != nil {
			return nil, err
		}
		l.tls = &tls.Config{MinVersion: tls.VersionTLS12, GetConfigForClient: l.certs.config}
	}
	if l.socket, err = net.Listen("tcp", c.Address); err != nil {
		return nil, err
	}
	l.serveWith(l.engine)
	l.work.Add(1) // serve; a shutdown may come before it has begun
	return l, nil
}

// serveWith makes the servers behind the socket.
func (l *line) serveWith(handler http.Handler) {
	newServer := func() *http.Server {
		return &http.Server{
			Handler: handler, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeaderBytes,
			ErrorLog: slog.NewLogLogger(l.log.Handler(), slog.LevelDebug), Protocols: new(http.Protocols),
			ConnContext: gate.ConnContext,
			// The gate answers OPTIONS * like any other request.
			DisableGeneralOptionsHandler: true,
		}
	}
	l.h1, l.in1 = newServer(), newHandover(l.socket.Addr())
	l.h1.Protocols.SetHTTP1(true)
	if l.tls == nil {
		return
	}
	l.h2, l.in2 = newServer(), newHandover(l.socket.Addr())
	// The handshake has been done; net/http sees the inside.
	l.h2.Protocols.SetUnencryptedHTTP2(true)
	// One upload that its upstream does not read takes its own window, and not
	// that of the uploads beside it.
	l.h2.HTTP2 = &http.HTTP2Config{
		MaxConcurrentStreams: maxStreams, MaxReadFrameSize: maxFrame,
		MaxReceiveBufferPerStream: 256 << 10, MaxReceiveBufferPerConnection: 4 << 20,
	}
}

// serve accepts until the line is stopped; then the error is
// http.ErrServerClosed.
func (l *line) serve() error {
	defer l.work.Done()
	failed := make(chan error, 2)
	run := func(h *http.Server, in *handover) {
		l.work.Go(func() {
			if err := h.Serve(in); !errors.Is(err, http.ErrServerClosed) {
				failed <- err
				l.stop()
			}
		})
	}
	run(l.h1, l.in1)
	if l.h2 != nil {
		run(l.h2, l.in2)
	}
	err := l.accept()
	select {
	case err = <-failed:
	default:
	}
	return err
}

// shutdown takes no new connection and waits for exchanges under way; those
// that are not done when ctx ends are cut.
func (l *line) shutdown(ctx context.Context) error {
	l.stop()
	servers := []*http.Server{l.h1}
	if l.h2 != nil {
		servers = append(servers, l.h2)
	}
	errs := make([]error, len(servers))
	var wg sync.WaitGroup
	for i, h := range servers {
		wg.Go(func() {
			if err := h.Shutdown(ctx); err != nil {
				l.engine.Cut()
				errs[i] = errors.Join(fmt.Errorf("listener %q: exchanges were cut after %s: %w", l.name, drainTime, err), h.Close())
			}
		})
	}
	wg.Wait()
	l.work.Wait()
	return errors.Join(errs...)
}

func (l *line) close() error {
	if err := l.socket.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}

// healthLine serves health, readiness and metrics.
type healthLine struct {
	socket  net.Listener
	http    *http.Server
	handler *obs.Health
}

func newHealthLine(addr string, ready func() error, gauges []obs.Gauge, counters []obs.Counter) (*healthLine, error) {
	h, err := obs.NewHealth(ready, gauges, counters...)
	if err != nil {
		return nil, err
	}
	l, err := net.Listen("tcp", addr)
	return &healthLine{l, &http.Server{Handler: h, ReadHeaderTimeout: readHeaderTimeout, IdleTimeout: idleTimeout}, h}, err
}

// notes sets what readiness adds; before serve.
func (h *healthLine) notes(lines func() []string) { h.handler.Notes = lines }

func (h *healthLine) serve(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { h.http.Close() })
	defer stop()
	if err := h.http.Serve(h.socket); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func (h *healthLine) close() error {
	if err := h.socket.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
