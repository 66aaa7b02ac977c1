package deliver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/pace"
)

// Book is what the engine needs of the book.
type Book interface {
	Reader() (*book.Reader, error)
	// Signed returns the origin of the log and the size that its newest signed
	// checkpoint covers. It is asked once a second.
	Signed() (origin string, size uint64)
	Note(ctx context.Context, r *record.Record) error
}

// Config is what an engine needs. Logger may be nil.
type Config struct {
	Book   Book
	State  kv.Store // durable when a write returns
	Logger *slog.Logger
	Sinks  []SinkConfig
	Pace   *pace.Group // other long work of the process; nil: none
	Cache  int         // bytes of decoded records kept for sinks that are near each other; 16 MiB

	src  source        // for tests; nil: Book
	poll time.Duration // for tests; 0: once a second
}

// SinkConfig is one sink and how to serve it. Zero values have the defaults
// given.
type SinkConfig struct {
	Name string // its cursor and its quarantine go by this
	// Revision stands for all that was configured: a sink that is set again with
	// the same one, not empty, goes on untouched.
	Revision   string
	Sink       Sink
	Projection Projection
	// Paused by configuration: nothing is sent, nothing is lost.
	Paused bool
	// FromNow begins a sink that was never seen at what is signed when it is
	// first run, not at the beginning of the log.
	FromNow bool

	// Bounds below those of the sink; 0: the sink's.
	BatchItems, BatchBytes, InFlight int
	// Window bounds the bytes of bodies that are planned and not settled; 16 MiB.
	Window int
	// WindowItems bounds their number; 65,536.
	WindowItems int

	BackoffMin time.Duration // 500 ms
	BackoffMax time.Duration // 1 min
	// AfterMax bounds what a sink may ask for; 15 min.
	AfterMax time.Duration
	// PauseRetry is how often a sink that has paused itself is tried; 5 min.
	PauseRetry time.Duration
	// SendTimeout is when a send is given up that the sink has not; 15 min.
	SendTimeout time.Duration
	// PoisonRun is how many records in a row may be refused for good before the
	// sink is paused: then it is the configuration that is wrong and not the
	// records; 64.
	PoisonRun int
	// LagAge is the age of the oldest undelivered record that raises an alarm;
	// 15 min.
	LagAge time.Duration
	// CompareItems and CompareEvery bound a window of comparison with a sink that
	// can be asked; 100,000 records and 1 h. CompareAfter is how long the sink has
	// until what it took can be found; 2 min.
	CompareItems               int
	CompareEvery, CompareAfter time.Duration
}

func (c *SinkConfig) setDefaults() error {
	if c.Name == "" || len(c.Name) > 64 || strings.ContainsFunc(c.Name, func(r rune) bool { return r <= ' ' || r == '/' || r > '~' }) {
		return fmt.Errorf("sink name %q: want 1 to 64 printable ASCII characters without '/'", c.Name)
	}
	if c.Sink == nil || c.Projection == nil {
		return fmt.Errorf("sink %s needs a sink and a projection", c.Name)
	}
	c.Window = cmp.Or(c.Window, 16<<20)
	c.WindowItems = cmp.Or(c.WindowItems, 1<<16)
	c.BackoffMin = cmp.Or(c.BackoffMin, 500*time.Millisecond)
	c.BackoffMax = cmp.Or(c.BackoffMax, time.Minute)
	c.AfterMax = cmp.Or(c.AfterMax, 15*time.Minute)
	c.PauseRetry = cmp.Or(c.PauseRetry, 5*time.Minute)
	c.SendTimeout = cmp.Or(c.SendTimeout, 15*time.Minute)
	c.PoisonRun = cmp.Or(c.PoisonRun, 64)
	c.LagAge = cmp.Or(c.LagAge, 15*time.Minute)
	c.CompareItems = cmp.Or(c.CompareItems, 100_000)
	c.CompareEvery = cmp.Or(c.CompareEvery, time.Hour)
	c.CompareAfter = cmp.Or(c.CompareAfter, 2*time.Minute)
	for _, n := range []int64{int64(c.Window), int64(c.WindowItems), int64(c.BackoffMin), int64(c.BackoffMax), int64(c.AfterMax), int64(c.PauseRetry),
		int64(c.SendTimeout), int64(c.PoisonRun), int64(c.LagAge), int64(c.CompareItems), int64(c.CompareEvery), int64(c.CompareAfter)} {
		if n < 0 {
			return fmt.Errorf("sink %s: negative bounds mean nothing", c.Name)
		}
	}
	if c.BackoffMin < 8 || c.BackoffMin > c.BackoffMax || c.CompareItems > maxCompare {
		return fmt.Errorf("sink %s: the back-off must grow, and at most %d records are compared at once", c.Name, maxCompare)
	}
	return nil
}

// limits are the sink's, narrowed by the configuration and made sane. An error
// says that the sink could not tell; then they are the least.
func (c *SinkConfig) limits() (Limits, error) {
	l, err := limitsOf(c.Sink)
	narrow := func(have *int, want, fallback int) {
		if *have <= 0 {
			*have = fallback
		}
		if want > 0 {
			*have = min(*have, want)
		}
	}
	narrow(&l.Items, c.BatchItems, 1)
	narrow(&l.Bytes, c.BatchBytes, 1<<20)
	narrow(&l.Item, 0, l.Bytes)
	narrow(&l.InFlight, c.InFlight, 1)
	l.Overhead = max(l.Overhead, 0)
	l.Items = min(l.Items, c.WindowItems)
	return l, err
}

// Engine delivers the book to all sinks. Its methods are safe for concurrent
// use; nothing is delivered unless Run is running.
type Engine struct {
	book   Book
	state  kv.Store
	log    *slog.Logger
	feed   *feed
	origin string
	every  time.Duration

	mu      sync.Mutex
	want    []SinkConfig       // under mu
	runners map[string]*runner // under mu; those of want once Run has seen it
	ending  map[string]*runner // under mu; removed, and may have something under way
	starts  map[string]uint64  // under mu; what was signed when a sink of want was first seen
	gone    []Status           // under mu; sinks that have a state and no configuration
	running bool               // under mu
	changed chan struct{}      // holds one if want has changed
}

const cacheBytes = 16 << 20

// New makes an engine. It reads no state and sends nothing until Run.
func New(c Config) (*Engine, error) {
	if c.Book == nil || c.State == nil {
		return nil, errors.New("deliver: an engine needs a book and a store for its cursors")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.src == nil {
		c.src = readers{c.Book}
	}
	origin, _ := c.Book.Signed()
	e := &Engine{
		book: c.Book, state: c.State, log: c.Logger, origin: origin, every: cmp.Or(c.poll, pollEvery),
		feed:    newFeed(c.src, origin, cmp.Or(c.Cache, cacheBytes), c.Pace),
		runners: map[string]*runner{}, ending: map[string]*runner{}, starts: map[string]uint64{}, changed: make(chan struct{}, 1),
	}
	return e, e.Set(c.Sinks)
}

// Set replaces the list of sinks. Cursors stay by name. A sink that is not in
// the list any more keeps its state, and that is recorded. What was under way at
// a sink that has changed is waited for, for some seconds.
func (e *Engine) Set(sinks []SinkConfig) error {
	sinks = slices.Clone(sinks)
	seen := map[string]bool{}
	for i := range sinks {
		if err := sinks[i].setDefaults(); err != nil {
			return fmt.Errorf("deliver: %w", err)
		}
		if seen[sinks[i].Name] {
			return fmt.Errorf("deliver: two sinks are called %s", sinks[i].Name)
		}
		seen[sinks[i].Name] = true
	}
	e.mu.Lock()
	e.want = sinks
	e.mu.Unlock()
	select {
	case e.changed <- struct{}{}:
	default:
	}
	return nil
}

// pollEvery is how often the newest checkpoint is asked for: they come once a
// second.
const pollEvery = time.Second

// Run delivers until ctx ends. It waits some seconds for what is under way.
func (e *Engine) Run(ctx context.Context) error {
	e.mu.Lock()
	if e.running {
		e.mu.Unlock()
		return errors.New("deliver: the engine is running already")
	}
	e.running = true
	e.mu.Unlock()
	e.feed.begin()
	var wg sync.WaitGroup
	defer func() {
		wg.Wait()
		e.feed.end()
		e.mu.Lock()
		e.running = false
		e.mu.Unlock()
	}()
	select {
	case <-e.changed: // applied with all the rest
	default:
	}
	e.apply(ctx, &wg)
	tick := time.NewTicker(e.every)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-e.changed:
			e.apply(ctx, &wg)
		case <-tick.C:
			e.poll()
		}
	}
}

// poll tells the runners how much is signed.
func (e *Engine) poll() {
	e.feed.tidy(false)
	origin, size := e.book.Signed()
	if origin != e.origin {
		e.log.Error("the book has become another log while it was being delivered; restart to deliver it", "was", e.origin, "is", origin)
		return
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, r := range e.runners {
		r.tell(size)
	}
}

// apply makes the runners those that are wanted. One that replaces another
// begins when that has ended.
func (e *Engine) apply(ctx context.Context, wg *sync.WaitGroup) {
	_, size := e.book.Signed()
	e.mu.Lock()
	defer e.mu.Unlock()
	old := e.runners
	e.runners = map[string]*runner{}
	for _, c := range e.want {
		was := old[c.Name]
		if was != nil && was.ctx.Err() == nil && c.Revision != "" && c.Revision == was.c.Revision {
			e.runners[c.Name] = was
			delete(old, c.Name)
			continue
		}
		r := newRunner(ctx, e, c)
		if _, known := e.starts[c.Name]; !known {
			e.starts[c.Name] = size
		}
		r.start = e.starts[c.Name]
		if was != nil {
			was.stop()
			delete(old, c.Name)
		} else if was = e.ending[c.Name]; was != nil {
			delete(e.ending, c.Name) // it is back before it had ended
		}
		if was != nil {
			r.before = was.done
		}
		r.tell(size)
		e.runners[c.Name] = r
		wg.Go(r.run)
	}
	for name, r := range old {
		delete(e.starts, name)
		r.stop()
		e.ending[name] = r
	}
	wg.Go(func() {
		for name, r := range old { // they keep their cursors first
			<-r.done
			e.ended(name, r)
		}
		e.vanished(ctx)
	})
}

// ended forgets a runner that was removed and has nothing under way any more.
func (e *Engine) ended(name string, r *runner) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.ending[name] == r {
		delete(e.ending, name)
	}
}

// Status is how every sink is, those included that have a state and are not
// configured any more, by name.
func (e *Engine) Status() []Status {
	e.mu.Lock()
	defer e.mu.Unlock()
	var out []Status
	for _, c := range e.want {
		if r := e.runners[c.Name]; r != nil {
			out = append(out, r.snapshot())
		} else {
			out = append(out, Status{Name: c.Name, State: Stopped})
		}
	}
	for _, s := range e.gone {
		if !slices.ContainsFunc(out, func(o Status) bool { return o.Name == s.Name }) {
			out = append(out, s)
		}
	}
	slices.SortFunc(out, func(a, b Status) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// Low is the lowest index that a configured sink still needs: for its next
// batch, for what is in its quarantine, or to compare. Retention must not pass
// it. It is 0 as long as that is not known.
func (e *Engine) Low() uint64 {
	_, low := e.book.Signed()
	e.mu.Lock()
	defer e.mu.Unlock()
	for _, c := range e.want {
		r := e.runners[c.Name]
		if r == nil {
			return 0
		}
		low = min(low, r.low())
	}
	return low
}
