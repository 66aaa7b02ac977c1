package upstream

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Health describes active checks: a GET of Path at every target, on a
// connection of its own. They are not exchanges: nothing of them is recorded
// or counted. Without a Path there are none.
//
// A check is passed if an accepted status comes and the body with it, to its
// end or to maxCheckBody, all within Timeout. A target counts as healthy until
// checks say otherwise, so that a gate that starts serves at once.
type Health struct {
	Path      string        // begins with '/', may have a query
	Interval  time.Duration // between two checks of a target, give or take a tenth; 5 s
	Timeout   time.Duration // of a whole check; the interval, but at most 2 s
	Healthy   int           // checks passed in a row until a target is back; 2
	Unhealthy int           // checks failed in a row until it is left out; 3
	Status    []int         // accepted; none: all from 200 to 299
}

// What checks say of a target.
const (
	HealthUnchecked = "unchecked" // there are no checks, or none has ended
	HealthHealthy   = "healthy"
	HealthUnhealthy = "unhealthy" // not used
)

const (
	maxHealthPath = 1024
	maxCheckBody  = 64 << 10
	maxCheckHead  = 64 << 10
	maxCheckError = 200
)

var errCheckTimeout = errors.New("no whole answer in the time allowed")

func (h *Health) setDefaults() {
	if h.Path == "" {
		return
	}
	setDefault(&h.Interval, 5*time.Second)
	setDefault(&h.Timeout, min(h.Interval, 2*time.Second))
	setDefault(&h.Healthy, 2)
	setDefault(&h.Unhealthy, 3)
}

func (h *Health) validate() error {
	if h.Path == "" {
		return nil
	}
	var errs []error
	if !plainTarget(h.Path) {
		errs = append(errs, fmt.Errorf("health path %q does not begin with one '/' or holds what cannot stand in a request", h.Path))
	}
	if h.Interval <= 0 || h.Timeout <= 0 {
		errs = append(errs, fmt.Errorf("health interval %v and timeout %v must be more than nothing", h.Interval, h.Timeout))
	}
	if h.Healthy < 1 || h.Unhealthy < 1 {
		errs = append(errs, errors.New("health needs at least 1 check to say that a target is healthy or unhealthy"))
	}
	for _, s := range h.Status {
		if s < 100 || s > 599 {
			errs = append(errs, fmt.Errorf("health status %d is not in 100 to 599", s))
		}
	}
	return errors.Join(errs...)
}

// plainTarget reports whether s can be sent as a request target as it is.
func plainTarget(s string) bool {
	if len(s) > maxHealthPath || !strings.HasPrefix(s, "/") || strings.HasPrefix(s, "//") {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '#' || c == '"' || c == '<' || c == '>' || c == '\\' {
			return false
		}
	}
	return true
}

func (h *Health) accepts(status int) bool {
	if len(h.Status) == 0 {
		return status >= 200 && status <= 299
	}
	return slices.Contains(h.Status, status)
}

// health is what checks have found out about a target. target.sick says the
// same to those who choose.
type health struct {
	mu     sync.Mutex
	checks uint64    // mu; ended
	failed uint64    // mu; of them
	run    int       // mu; checks in a row that speak against the state
	last   string    // mu; why the newest check failed, "" if it did not
	since  time.Time // mu; of the state, zero as long as it is the first
}

// Run checks the targets until ctx ends, each on its own, so that one that
// hangs does not delay the others. It returns nil, at once if the pool has no
// checks.
func (p *Pool) Run(ctx context.Context) error {
	if p.cfg.Health.Path == "" {
		return nil
	}
	transport := p.checkTransport()
	defer transport.CloseIdleConnections()
	var wg sync.WaitGroup
	for _, t := range p.targets {
		wg.Go(func() { p.watch(ctx, transport, t) })
	}
	wg.Wait()
	return nil
}

// watch checks one target again and again. The moments are spread, so that
// many gates do not ask in step.
func (p *Pool) watch(ctx context.Context, via http.RoundTripper, t *target) {
	interval := p.cfg.Health.Interval
	timer := time.NewTimer(spread(interval/10, 1))
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-timer.C:
		}
		err := p.check(ctx, via, t)
		if ctx.Err() != nil {
			return
		}
		p.checked(t, err)
		timer.Reset(spread(interval, 0.2))
	}
}

// spread returns a time around d, by the part given in all.
func spread(d time.Duration, part float64) time.Duration {
	return time.Duration(float64(d) * (1 + part*(rand.Float64()-0.5)))
}

// checkTransport opens a connection for each check: one that is kept would not
// notice a server that takes no new ones.
func (p *Pool) checkTransport() *http.Transport {
	var protocols http.Protocols
	protocols.SetHTTP1(true)
	return &http.Transport{
		DialContext: p.cfg.Dial,
		DialTLSContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			nc, err := p.cfg.Dial(ctx, network, addr)
			if err != nil {
				return nil, err
			}
			tc := tls.Client(nc, p.byAddr[addr].tls)
			if err := tc.HandshakeContext(ctx); err != nil {
				return nil, errorAfterClose(nc, err)
			}
			return tc, nil
		},
		DisableCompression: true, DisableKeepAlives: true,
		MaxResponseHeaderBytes: maxCheckHead, Protocols: &protocols,
	}
}

// check makes one check and says why it failed.
func (p *Pool) check(ctx context.Context, via http.RoundTripper, t *target) error {
	h := &p.cfg.Health
	ctx, cancel := context.WithTimeoutCause(ctx, h.Timeout, errCheckTimeout)
	defer cancel()
	r, err := http.NewRequestWithContext(ctx, http.MethodGet, t.scheme+"://"+t.addr+h.Path, nil)
	if err != nil {
		return err
	}
	r.Host = t.hostField
	r.Header.Set("User-Agent", "gatebook-health")
	resp, err := via.RoundTrip(r)
	if err == nil {
		_, err = io.CopyN(io.Discard, resp.Body, maxCheckBody)
		if cerr := resp.Body.Close(); err == io.EOF || err == nil && cerr != nil {
			err = nil // what follows maxCheckBody is not wanted
		}
	}
	switch {
	case err != nil && ctx.Err() != nil:
		return context.Cause(ctx)
	case err != nil:
		return err
	case !h.accepts(resp.StatusCode):
		return fmt.Errorf("status %d", resp.StatusCode)
	}
	return nil
}

// checked notes the outcome of a check and changes the target's state if it is
// the last one needed.
func (p *Pool) checked(t *target, err error) {
	h := &t.health
	h.mu.Lock()
	h.checks++
	h.last = ""
	if err != nil {
		h.failed++
		h.last = err.Error()[:min(len(err.Error()), maxCheckError)]
	}
	sick := t.sick.Load()
	if sick == (err != nil) {
		h.run = 0
		h.mu.Unlock()
		return
	}
	h.run++
	turned := h.run >= p.cfg.Health.Unhealthy
	if sick {
		turned = h.run >= p.cfg.Health.Healthy
	}
	if turned {
		h.run = 0
		h.since = p.cfg.Now()
		t.sick.Store(!sick)
	}
	why := h.last
	h.mu.Unlock()
	if turned {
		p.turned(t, why)
	}
}

// turned tells people, and lets a target that is back be tried at once: an
// ejection that began when it died says nothing about now.
func (p *Pool) turned(t *target, why string) {
	if t.sick.Load() {
		p.log.Warn("upstream target is unhealthy", "target", t.name, "why", why)
		if !slices.ContainsFunc(p.targets, func(t *target) bool { return !t.sick.Load() }) {
			p.log.Error("no upstream target is healthy; requests are refused until one is")
		}
		return
	}
	t.mu.Lock()
	if t.until.Load() != 0 {
		t.until.Store(p.cfg.Now().UnixNano())
	}
	t.mu.Unlock()
	p.log.Info("upstream target is healthy", "target", t.name)
}

// state is a snapshot for TargetStats.
func (h *health) state(s *TargetStats, sick bool) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.Checks, s.FailedChecks, s.LastCheck, s.HealthSince = h.checks, h.failed, h.last, h.since
	switch {
	case sick:
		s.Health = HealthUnhealthy
	case h.checks == 0:
		s.Health = HealthUnchecked
	default:
		s.Health = HealthHealthy
	}
}
