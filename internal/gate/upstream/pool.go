// Package upstream is where a request goes: pools of targets, the balance
// among them, what is tried again and what is not, and a precise reason for
// each way in which an upstream can fail. It speaks HTTP/1.1 over net/http's
// connection pool, behind a reader of its own that lets nothing through whose
// framing is in doubt (conn.go, frame.go).
package upstream

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/reason"
)

// Pool is a set of interchangeable targets. It is safe for concurrent use.
type Pool struct {
	cfg           Config
	log           *slog.Logger
	targets       []*target
	byAddr        map[string]*target // TLS configuration by host:port
	leastRequests bool
	transport     *http.Transport
	next          atomic.Uint64 // where the next choice starts
	closed        atomic.Bool
	spare         sync.Pool // of *exchange
	direct        bool      // requests without a streamed body go the direct way
	directBufs    sync.Pool // of *[directBuf]byte
	bufs          buffers
}

// NewPool checks the configuration and makes a pool. It connects to nothing
// and starts nothing. An unreadable CA file is an error.
func NewPool(cfg Config) (*Pool, error) {
	cfg.setDefaults()
	errs := []error{cfg.validate(), cfg.checkTLS()}
	roots, err := loadRoots(cfg.CAFile)
	errs = append(errs, err)
	p := &Pool{cfg: cfg, log: cfg.Logger.With("upstream", cfg.Name), byAddr: map[string]*target{}, leastRequests: cfg.Balance == LeastRequests}
	for _, s := range cfg.Targets {
		t, err := p.addTarget(s, roots)
		errs = append(errs, err)
		if err == nil {
			p.targets = append(p.targets, t)
		}
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("upstream %s: %w", cfg.Name, err)
	}
	if p.cfg.Dial == nil {
		p.direct = true // over sockets, of which it can be asked whether they are quiet
		p.cfg.Dial = (&net.Dialer{KeepAlive: 30 * time.Second, Resolver: cfg.Resolver}).DialContext
	}
	p.spare.New = func() any { return newExchange(p) }
	p.directBufs.New = func() any { return new([directBuf]byte) }
	p.transport = p.newTransport()
	return p, nil
}

func (p *Pool) addTarget(s string, roots *x509.CertPool) (*target, error) {
	t, err := parseTarget(s)
	if err != nil {
		return nil, err
	}
	if other, ok := p.byAddr[t.addr]; ok {
		return nil, fmt.Errorf("target %q is the same server as %q", s, other.name)
	}
	host, _, err := net.SplitHostPort(t.addr)
	if err != nil {
		return nil, fmt.Errorf("target %q: %w", s, err)
	}
	if t.scheme == "https" {
		t.tls = p.cfg.tlsConfig(host, roots)
	}
	p.byAddr[t.addr] = t
	return t, nil
}

func (p *Pool) newTransport() *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		Proxy:                  nil, // never from the environment
		DialContext:            p.dial,
		DialTLSContext:         p.dialTLS,
		DisableCompression:     true, // bodies pass as they are
		MaxIdleConnsPerHost:    p.cfg.MaxIdlePerTarget,
		IdleConnTimeout:        p.cfg.MaxIdleTime,
		ResponseHeaderTimeout:  p.cfg.ResponseTimeout,
		MaxResponseHeaderBytes: 2 * maxHead, // the framer's limit comes first
		ReadBufferSize:         8 << 10,     // net/http wants a whole trailer section in it
		Protocols:              &protocols,
	}
}

// dial connects in the time allowed; net/http detaches ctx from the request's.
func (p *Pool) dial(ctx context.Context, network, addr string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, p.cfg.ConnectTimeout)
	defer cancel()
	nc, err := p.cfg.Dial(ctx, network, addr)
	if err != nil {
		return nil, classifyDial(err)
	}
	return p.newConn(nc), nil
}

func (p *Pool) dialTLS(ctx context.Context, network, addr string) (net.Conn, error) {
	t := p.byAddr[addr]
	if t == nil || t.tls == nil {
		return nil, &dialError{reason.TLSHandshakeUpstream, PhaseTLS, fmt.Errorf("no TLS configuration for %s", addr)}
	}
	dctx, cancel := context.WithTimeout(ctx, p.cfg.ConnectTimeout)
	defer cancel()
	nc, err := p.cfg.Dial(dctx, network, addr)
	if err != nil {
		return nil, classifyDial(err)
	}
	tc := tls.Client(nc, t.tls)
	hctx, cancel := context.WithTimeout(ctx, p.cfg.ConnectTimeout)
	defer cancel()
	if err := tc.HandshakeContext(hctx); err != nil {
		return nil, errorAfterClose(nc, classifyTLS(err))
	}
	return p.newConn(tc), nil
}

// errorAfterClose closes c, whose error is of no interest beside err.
func errorAfterClose(c io.Closer, err error) error {
	_ = c.Close()
	return err
}

// Close ends the pool: further requests fail with ErrClosed, exchanges under
// way go on to their end, kept connections are closed.
func (p *Pool) Close() {
	p.closed.Store(true)
	p.transport.CloseIdleConnections()
	for _, t := range p.targets {
		t.kept.close()
	}
}

// Name is the configured name.
func (p *Pool) Name() string { return p.cfg.Name }

// Stats returns the counters of all targets in the order of configuration.
func (p *Pool) Stats() []TargetStats {
	stats := make([]TargetStats, len(p.targets))
	for i, t := range p.targets {
		stats[i] = t.stats()
	}
	return stats
}

// RoundTrip sends r to one of the targets and returns the head of its answer,
// whatever its status. ctx covers the exchange to the end of the body.
//
// A second attempt is made only if nothing was written to the first target, or
// if the method is idempotent, there is no body and a kept connection died
// before it gave a byte of the answer, which is what happens when a server
// closes an idle connection at that moment (RFC 9110 section 9.2.2). It goes to
// another target if there is one. The reason
// is that of the last attempt, or retries_exhausted if only the bound on the
// attempts forbids another. If all targets are ejected or
// unhealthy it is no_healthy_target, or breaker_open where the pool has but one
// and that is ejected.
func (p *Pool) RoundTrip(ctx context.Context, r *Request) (*Response, error) {
	if p.closed.Load() {
		return nil, ErrClosed
	}
	if ctx.Err() != nil {
		return nil, contextError(ctx)
	}
	ex := p.spare.Get().(*exchange)
	if err := ex.prepare(r); err != nil {
		return nil, err
	}
	resp, err := p.attempts(ctx, ex)
	if err != nil {
		ex.pump.stop()
		// An Interim that failed did so because of the caller's client.
		if ierr := ex.endInterims(); ierr != nil {
			return nil, ierr
		}
		return nil, err
	}
	return resp, nil
}

func (p *Pool) attempts(ctx context.Context, ex *exchange) (*Response, error) {
	var tried, doubtful uint64 // sets of targets: failed, and with a kept connection that died
	var last *Error
	start := p.next.Add(1) - 1
	for n := 1; ; n++ {
		c, found := p.pick(start, tried|doubtful)
		if !found {
			// The server of a kept connection that died may well take a new one.
			c, found = p.pick(start, tried)
		}
		if !found {
			if last != nil {
				return nil, last
			}
			return nil, p.noneLeft()
		}
		if err := ex.load(); err != nil {
			c.neutral()
			return nil, err
		}
		resp, fail, err := p.attempt(ctx, ex, c, n)
		if fail == nil {
			return resp, err
		}
		last = &fail.Error
		if !fail.again {
			return nil, last
		}
		if n >= p.cfg.MaxAttempts {
			if n > 1 {
				last.Err = fmt.Errorf("attempt %d of %d: %s: %w", n, p.cfg.MaxAttempts, last.Reason, last.Err)
				last.Reason = reason.RetriesExhausted
			}
			return nil, last
		}
		if fail.elsewhere {
			tried |= p.bit(c.target)
		} else {
			doubtful |= p.bit(c.target)
		}
	}
}

func (p *Pool) bit(t *target) uint64 {
	for i := range p.targets {
		if p.targets[i] == t {
			return 1 << i
		}
	}
	return 0
}

func (p *Pool) noneLeft() error {
	e := &Error{Reason: reason.NoHealthyTarget, Phase: PhasePick, Err: errAllEjected, Breaker: BreakerOpen}
	switch one := p.targets[0]; {
	case one.sick.Load(): // by the checks: nothing is known of the breaker
		e.Err, e.Breaker = errUnhealthy, ""
	case len(p.targets) == 1:
		e.Reason, e.Target = reason.BreakerOpen, one.name
	}
	return e
}

// failure is a failed attempt and what may follow it.
type failure struct {
	Error
	again     bool // another attempt is allowed
	elsewhere bool // but not at this target; otherwise rather at another
}

// attempt makes one attempt. It returns a response, a failure that the target
// is to blame for, or an error that it is not.
func (p *Pool) attempt(ctx context.Context, ex *exchange, c choice, n int) (*Response, *failure, error) {
	c.total.Add(1)
	c.inflight.Add(1)
	start := time.Now()
	ex.target = c.target
	var body io.ReadCloser
	var err error
	if ex.direct {
		body, err = p.goDirect(ctx, ex, c.target)
	} else {
		body, err = p.goStreaming(ctx, ex, c.target)
	}
	if err == nil {
		c.ok(p.log)
		return ex.response(ctx, body, c, n, time.Since(start)), nil, nil
	}
	c.inflight.Add(-1)
	blame, err := ex.blame(ctx, err)
	ex.letGo()
	if blame == nil {
		c.neutral()
		return nil, nil, err
	}
	blame.Target, blame.Attempts, blame.Breaker = c.name, n, c.breaker()
	if blame.counts() {
		c.failed(p.cfg.Ejection, p.cfg.Now(), p.log)
	} else {
		c.neutral()
	}
	return nil, blame, nil
}

// goStreaming makes one attempt through net/http.
func (p *Pool) goStreaming(ctx context.Context, ex *exchange, t *target) (io.ReadCloser, error) {
	resp, err := p.transport.RoundTrip(ex.attempt(ctx, t))
	if err != nil {
		return nil, err
	}
	if err := ex.agrees(resp); err != nil {
		return nil, errorAfterClose(resp.Body, err) // the connection goes with it
	}
	return resp.Body, nil
}

// counts reports whether the failure speaks against the target as a whole. A
// kept connection that died before it gave a byte is the ordinary keep-alive
// race, and a malformed answer may belong to one resource only, which a client
// could ask for on purpose to have the target ejected for all.
func (f *failure) counts() bool {
	if f.Reason == reason.BadResponse {
		return false
	}
	return !(f.Reused && f.Reason == reason.ResetBeforeResponse)
}
