package authn

import (
	"context"
	"crypto/x509"
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/url"
	"sync"
	"sync/atomic"
	"time"
)

// KeySource says where an issuer's keys come from and how they are kept fresh.
// The zero value discovers them from the issuer's own metadata. At most one of
// URL and File may be set.
type KeySource struct {
	URL  string // address of the JWK Set; https
	File string // path of a JWK Set, read again at every refresh
	// Own, if set, gives the JWK Set of an issuer in this process; the two above
	// are unset then.
	Own func(ctx context.Context) ([]byte, error)

	Refresh     time.Duration // between periodic fetches; default 5 min, at least 1 s
	MinInterval time.Duration // an unknown kid causes no fetch sooner than this after any other; default 30 s
	MaxStale    time.Duration // how long keys are used while fetching fails; default 1 h, not less than Refresh
	Timeout     time.Duration // for one fetch, discovery included, and for a request that waits for it; default 5 s

	// AllowLoopbackHTTP takes plain http to a loopback address (development).
	AllowLoopbackHTTP bool
	// RootCAs are trusted for https instead of the system's.
	RootCAs *x509.CertPool
}

func (c *KeySource) setDefaults() {
	for _, d := range []struct {
		v   *time.Duration
		def time.Duration
	}{
		{&c.Refresh, 5 * time.Minute},
		{&c.MinInterval, 30 * time.Second},
		{&c.MaxStale, time.Hour},
		{&c.Timeout, 5 * time.Second},
	} {
		if *d.v == 0 {
			*d.v = d.def
		}
	}
}

func (c *KeySource) validate(issuer string) error {
	switch {
	case c.URL != "" && c.File != "":
		return errors.New("key source: set either URL or File, not both")
	case c.Refresh < time.Second:
		return errors.New("key source: Refresh must be at least 1 s")
	case c.MinInterval < 0 || c.Timeout <= 0:
		return errors.New("key source: MinInterval and Timeout must not be negative")
	case c.MaxStale < c.Refresh:
		return errors.New("key source: MaxStale must not be less than Refresh, or every key set would expire between fetches")
	case c.Own != nil && (c.URL != "" || c.File != ""):
		return errors.New("key source: set either Own or a place, not both")
	case c.File != "" || c.Own != nil:
		return nil
	case c.URL != "":
		_, err := checkURL(c.URL, c.AllowLoopbackHTTP)
		return wrap("key source", err)
	}
	u, err := checkURL(issuer, c.AllowLoopbackHTTP)
	if err == nil && (u.RawQuery != "" || u.ForceQuery) {
		err = fmt.Errorf("%q has a query", issuer)
	}
	return wrap("issuer (keys are to be discovered from it)", err)
}

func wrap(what string, err error) error {
	if err != nil {
		return fmt.Errorf("%s: %w", what, err)
	}
	return nil
}

// fetcher builds how documents are got; the configuration is valid.
func (c *KeySource) fetcher(issuer string) (fetchFunc, error) {
	if c.File != "" {
		return fetchFile(c.File), nil
	}
	if c.Own != nil {
		return c.Own, nil
	}
	client := newClient(c.RootCAs, c.Timeout, 2)
	if c.URL != "" {
		return fetchURL(client, c.URL), nil
	}
	u, err := url.Parse(issuer)
	if err != nil {
		return nil, err
	}
	return fetchDiscovered(client, u, issuer, c.AllowLoopbackHTTP), nil
}

// Bounds that keep a flood of bad tokens from costing more than its requests.
const (
	maxUnknownKIDs = 256 // key ids remembered as unknown
	maxWaiters     = 256 // requests that wait for one fetch
	minBackoff     = time.Second
	maxBackoff     = 30 * time.Second
)

// keys is one loaded key set. It is immutable.
type keys struct {
	*keySet
	generation uint64    // counts real changes of the set, from 1
	fetched    time.Time // when the set was last confirmed
}

// mark stands for the keys in what is remembered of tokens. A number that counts
// would begin anew with each JWT, and a cache outlives them.
func (k *keys) mark() uint64 { return binary.LittleEndian.Uint64(k.sum[:]) }

// keyStore keeps an issuer's keys fresh. Reading is one atomic load.
type keyStore struct {
	cfg     KeySource
	issuer  string // configured name, for the log
	fetch   fetchFunc
	allowed []*algorithm
	now     func() time.Time
	log     *slog.Logger

	costs   fetchCounts
	running atomic.Bool
	loaded  atomic.Pointer[keys] // stored by the one fetch in flight

	mu      sync.Mutex
	flight  *flight              // guarded by mu: the fetch that is going on, if any
	waiting int                  // guarded by mu: requests waiting for it
	started time.Time            // guarded by mu: when the last fetch began
	fails   int                  // guarded by mu: failed fetches in a row
	lastErr error                // guarded by mu: of the last fetch
	unknown map[string]time.Time // guarded by mu: key ids that a fetch did not bring, until when
}

type flight struct{ done chan struct{} }

// current returns the keys that may be used at now, or nil.
func (s *keyStore) current(now time.Time) *keys {
	if k := s.loaded.Load(); k != nil && now.Sub(k.fetched) <= s.cfg.MaxStale {
		return k
	}
	return nil
}

// demand returns usable keys, fetching them if there are none. It waits at
// most Timeout for the fetch, and less if ctx ends.
func (s *keyStore) demand(ctx context.Context) *keys {
	if k := s.current(s.now()); k != nil {
		return k
	}
	s.request(ctx, func(now time.Time) bool {
		return s.current(now) == nil && now.Sub(s.started) >= s.backoff()
	})
	return s.current(s.now())
}

// lookup finds a key by its id. An id that the set lacks leads to a fetch, but
// never sooner than MinInterval after any other, and not for an id that a
// fetch has just failed to bring.
func (s *keyStore) lookup(ctx context.Context, ks *keys, kid string) (*keys, *key) {
	if k := ks.keys[kid]; k != nil {
		return ks, k
	}
	fetched := s.request(ctx, func(now time.Time) bool {
		until, known := s.unknown[kid]
		return !(known && now.Before(until)) && now.Sub(s.started) >= s.cfg.MinInterval
	})
	if !fetched {
		return ks, nil
	}
	if fresh := s.current(s.now()); fresh != nil {
		ks = fresh
	}
	k := ks.keys[kid]
	if k == nil {
		s.rememberUnknown(kid)
	}
	return ks, k
}

func (s *keyStore) rememberUnknown(kid string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.lastErr != nil {
		return // nothing was learned
	}
	if len(s.unknown) >= maxUnknownKIDs {
		for k := range s.unknown { // any one: losing it costs at most one fetch within the budget
			delete(s.unknown, k)
			break
		}
	}
	s.unknown[kid] = s.now().Add(2 * s.cfg.MinInterval)
}

// backoff is how long to wait after a failed fetch; the caller holds mu.
func (s *keyStore) backoff() time.Duration {
	if s.fails == 0 {
		return 0
	}
	return min(maxBackoff, minBackoff<<min(s.fails-1, 10))
}

// request makes one fetch on behalf of a request, or waits for the one that is
// going on. It reports whether a fetch has ended since the call; may is asked
// under mu whether a new one is allowed.
func (s *keyStore) request(ctx context.Context, may func(now time.Time) bool) bool {
	s.mu.Lock()
	if f := s.flight; f != nil {
		if s.waiting >= maxWaiters {
			s.mu.Unlock()
			s.costs.withheld.Add(1)
			return false
		}
		s.waiting++
		s.mu.Unlock()
		return s.wait(ctx, f)
	}
	now := s.now()
	if !may(now) {
		s.mu.Unlock()
		s.costs.withheld.Add(1)
		return false
	}
	f := s.begin(now)
	s.mu.Unlock()
	// Others may be waiting for this fetch, so it does not end with the
	// request that happened to start it; Timeout bounds it.
	s.run(context.WithoutCancel(ctx), f)
	return true
}

func (s *keyStore) wait(ctx context.Context, f *flight) (ended bool) {
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	select {
	case <-f.done:
		ended = true
	case <-ctx.Done():
	}
	s.mu.Lock()
	s.waiting--
	s.mu.Unlock()
	return ended
}

// begin marks a fetch as going on; the caller holds mu and then calls run.
func (s *keyStore) begin(now time.Time) *flight {
	s.started = now
	s.flight = &flight{done: make(chan struct{})}
	return s.flight
}

// run makes the fetch that begin announced.
func (s *keyStore) run(ctx context.Context, f *flight) {
	err := errors.New("fetch did not end") // stays only if fetching panics
	defer func() {
		s.mu.Lock()
		s.flight = nil
		s.lastErr = err
		if err == nil {
			s.fails = 0
			s.costs.good.Add(1)
		} else {
			s.fails++
			s.costs.failed.Add(1)
		}
		s.mu.Unlock()
		close(f.done)
	}()
	ctx, cancel := context.WithTimeout(ctx, s.cfg.Timeout)
	defer cancel()
	var doc []byte
	var set *keySet
	if doc, err = s.fetch(ctx); err == nil {
		set, err = parseKeySet(doc, s.allowed)
	}
	if err != nil {
		s.log.WarnContext(ctx, "signing keys could not be fetched", "issuer", s.issuer, "error", err.Error())
		return
	}
	s.install(ctx, set)
}

// install publishes a fetched set. Only the one fetch in flight calls it.
func (s *keyStore) install(ctx context.Context, set *keySet) {
	old := s.loaded.Load()
	if old != nil && old.sum == set.sum {
		s.loaded.Store(&keys{keySet: set, generation: old.generation, fetched: s.now()})
		return
	}
	next := &keys{keySet: set, generation: 1, fetched: s.now()}
	if old != nil {
		next.generation = old.generation + 1
	}
	s.loaded.Store(next)
	level := slog.LevelInfo
	if len(set.keys) == 0 {
		level = slog.LevelError
	}
	s.log.Log(ctx, level, "signing keys changed", "issuer", s.issuer,
		"generation", next.generation, "keys", len(set.keys), "refused", set.refused)
}

// loop refreshes until ctx ends.
func (s *keyStore) loop(ctx context.Context) error {
	if !s.running.CompareAndSwap(false, true) {
		return errors.New("authn: Run is already running for issuer " + s.issuer)
	}
	defer s.running.Store(false)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-timer.C:
		}
		s.mu.Lock()
		if f := s.flight; f != nil {
			s.waiting++
			s.mu.Unlock()
			s.wait(ctx, f)
		} else {
			f = s.begin(s.now())
			s.mu.Unlock()
			s.run(ctx, f)
		}
		timer.Reset(s.pause())
	}
}

// pause is the time to the next periodic fetch: Refresh less up to a tenth, so
// that many gates do not ask at once, or the backoff after a failure.
func (s *keyStore) pause() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails > 0 {
		return min(s.backoff(), s.cfg.Refresh)
	}
	return s.cfg.Refresh - rand.N(s.cfg.Refresh/10)
}

// KeyStatus describes an issuer's keys for health checks and diagnosis.
type KeyStatus struct {
	Usable     bool      // a token can be verified now
	Generation uint64    // real changes of the key set since start; 0: never loaded
	KIDs       int       // usable keys
	Fetched    time.Time // last successful fetch; zero if none
	Refused    []string  // keys of the document that are not used, and why
	Err        error     // of the last fetch; nil after a success
}

func (s *keyStore) status() KeyStatus {
	s.mu.Lock()
	st := KeyStatus{Err: s.lastErr}
	s.mu.Unlock()
	if k := s.loaded.Load(); k != nil {
		st.Usable = s.current(s.now()) != nil && len(k.keys) > 0
		st.Generation, st.KIDs, st.Fetched, st.Refused = k.generation, len(k.keys), k.fetched, k.refused
	}
	return st
}
