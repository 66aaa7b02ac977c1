package server

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/desk/deliver/project"
	"github.com/gatebook/gatebook/internal/kv"
)

// delivery is the engine and what was configured of its sinks.
type delivery struct {
	engine *deliver.Engine
	book   *book.Book
	store  kv.Store
	log    *slog.Logger
	cancel context.CancelFunc // ends the engine; set by start
	done   chan struct{}      // closed when it has ended

	mu  sync.Mutex
	now map[string]*liveSink // under mu; those in force, by name
}

// liveSink is a sink as it is served. It is not changed.
type liveSink struct {
	conf  config.Sink
	kept  *sinkKept
	moved bool // it was elsewhere before
	meter *sinkMeter
	set   deliver.SinkConfig
}

// openDelivery makes the engine with the sinks of the configuration. It neither
// sends nor records anything yet.
func openDelivery(ctx context.Context, f *config.File, b *book.Book, store kv.Store, log *slog.Logger) (*delivery, error) {
	d := &delivery{book: b, store: store, log: log, done: make(chan struct{}), now: map[string]*liveSink{}}
	sinks, err := d.build(ctx, f)
	if err != nil {
		return nil, err
	}
	d.engine, err = deliver.New(deliver.Config{Book: b, State: store, Logger: log, Pace: b.Pace(), Sinks: configsOf(sinks)})
	d.now = sinks
	return d, err
}

// start runs the engine until stop. It outlives what makes records.
func (d *delivery) start(w *work) {
	ctx, cancel := context.WithCancel(w.ctx)
	d.cancel = cancel
	w.start("delivery", func(context.Context) error {
		defer close(d.done)
		if !d.declareFirst(ctx) {
			return nil
		}
		return d.engine.Run(ctx)
	})
	w.start("credentials of sinks", d.renewPaused)
}

// declareFirst records the sinks that there are; nothing is sent before. false:
// the end came first.
func (d *delivery) declareFirst(ctx context.Context) bool {
	for {
		d.mu.Lock()
		now := d.now
		d.mu.Unlock()
		err := d.declare(ctx, nil, now)
		if err == nil {
			d.keepPlaces(ctx, nil, now)
			return true
		}
		d.log.Error("nothing is delivered until the sinks are recorded", "err", err)
		t := time.NewTimer(declareEvery)
		select {
		case <-ctx.Done():
			t.Stop()
			return false
		case <-t.C:
		}
	}
}

// declareEvery is the time between two tries to record sinks.
const declareEvery = 5 * time.Second

// stop ends the engine and waits for it: its last receipts are records, and its
// cursors are kept beside the book.
func (d *delivery) stop() {
	if d.cancel != nil {
		d.cancel()
		<-d.done
	}
}

// sinksOf are all sinks of a configuration, that for alerts included.
func sinksOf(f *config.File) []*config.Sink {
	var out []*config.Sink
	for i := range f.Sinks {
		out = append(out, &f.Sinks[i])
	}
	if s := f.AlertSink(); s != nil {
		out = append(out, s)
	}
	return out
}

func configsOf(sinks map[string]*liveSink) []deliver.SinkConfig {
	var out []deliver.SinkConfig
	for _, s := range sinks {
		out = append(out, s.set)
	}
	slices.SortFunc(out, func(a, b deliver.SinkConfig) int { return strings.Compare(a.Name, b.Name) })
	return out
}

// build makes the sinks of a configuration. Those that are declared as before
// are taken over.
func (d *delivery) build(ctx context.Context, f *config.File) (map[string]*liveSink, error) {
	out := map[string]*liveSink{}
	var errs []error
	for _, c := range sinksOf(f) {
		s, err := d.buildOne(ctx, f, c)
		if err != nil {
			errs = append(errs, fmt.Errorf("sink %q: %w", c.Name, err))
			continue
		}
		out[c.Name] = s
	}
	return out, errors.Join(errs...)
}

func (d *delivery) buildOne(ctx context.Context, f *config.File, c *config.Sink) (*liveSink, error) {
	kept, err := keptOf(ctx, d.store, c)
	if err != nil {
		return nil, err
	}
	print, err := sinkPrint(f, c, kept)
	if err != nil {
		return nil, err
	}
	if was := d.current(c.Name); was != nil && was.set.Revision == print {
		return was, nil
	}
	origin, _ := d.book.Signed()
	form, err := project.New(project.Options{
		Name: c.Project, Key: [32]byte(kept.Key), Fields: c.Fields, Origin: origin, Node: f.Node, Version: book.Version(),
	})
	if err != nil {
		return nil, err
	}
	inner, err := newSink(c, f.Node, d.book.Pace())
	if err != nil {
		return nil, err
	}
	s := &liveSink{conf: *c, kept: kept, moved: kept.Target != sinkTarget(c)}
	var sink deliver.Sink
	s.meter, sink = metered(inner, c.Name == config.AlertSink)
	s.set = deliver.SinkConfig{
		Name: c.Name, Revision: print, Sink: sink, Projection: form, Paused: c.Paused, FromNow: c.From == config.FromNow,
		BatchItems: c.Batch.Records, BatchBytes: int(c.Batch.Bytes), InFlight: c.Flight, LagAge: c.Alarm.Std(),
	}
	return s, nil
}

// current is a sink in force, nil if there is none of that name.
func (d *delivery) current(name string) *liveSink {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.now[name]
}

// declare records how sinks differ from those in force: which of them get
// personal fields is known from the book alone. who is nil at the start.
func (d *delivery) declare(ctx context.Context, who *admin.Caller, next map[string]*liveSink) error {
	var names []string
	for name := range next {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		s, was := next[name], d.current(name)
		if was == s && who != nil {
			continue
		}
		rec := &record.Record{Kind: record.KindDelivery, Outcome: record.Success, Event: record.Event{
			Name: "sink_declared", Target: name, After: s.digest(), Cause: s.conf.Type,
		}}
		if was != nil && who != nil {
			rec.Event.Before = was.digest()
		}
		rec.Links = append([]string{"form:" + s.conf.Project}, s.leaving()...)
		if s.moved {
			rec.Links = append(rec.Links, "moved")
		}
		err := error(nil)
		if who != nil {
			err = admin.Note(ctx, d.book, who, rec)
		} else {
			err = d.book.Note(ctx, rec)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// digest stands in records for what is configured of a sink.
func (s *liveSink) digest() string {
	h := sha256.Sum256([]byte(s.set.Revision))
	return hex.EncodeToString(h[:8])
}

// leaving are the personal fields that leave, as records list them.
func (s *liveSink) leaving() (out []string) {
	for _, f := range s.conf.Fields {
		out = append(out, "field:"+f)
	}
	return out
}

// adopt puts sinks in force. What they are not any more goes on to the end of
// what is under way.
func (d *delivery) adopt(ctx context.Context, next map[string]*liveSink) error {
	d.mu.Lock()
	was := d.now
	d.now = next
	d.mu.Unlock()
	d.keepPlaces(ctx, was, next)
	return d.engine.Set(configsOf(next))
}

// keepPlaces keeps where sinks are that were elsewhere before.
func (d *delivery) keepPlaces(ctx context.Context, was, sinks map[string]*liveSink) {
	for name, s := range sinks {
		if !s.moved || was[name] == s {
			continue
		}
		d.log.Warn("a sink is elsewhere than before; what was delivered before is not sent again, gatebook sink replay does", "sink", name)
		kept := *s.kept
		kept.Target = sinkTarget(&s.conf)
		if err := kept.put(ctx, d.store, name); err != nil {
			d.log.Error("where a sink is now could not be kept; the next start will say again that it has moved", "sink", name, "err", err)
		}
	}
}

// warnings say what of sinks nobody should find out by chance.
func (d *delivery) warnings(next map[string]*liveSink) (out []string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for name, s := range next {
		was := d.now[name]
		if was == s {
			continue
		}
		if s.moved {
			out = append(out, "sink "+name+": it is elsewhere now; what was delivered before is not sent again (gatebook sink replay "+name+" --from 0 does)")
		}
		if was != nil && was.conf.Project != s.conf.Project {
			out = append(out, "sink "+name+": from its cursor on records have the form "+s.conf.Project)
		}
		for _, f := range s.conf.Fields {
			if was == nil || !slices.Contains(was.conf.Fields, f) {
				out = append(out, "sink "+name+": the personal field "+f+" leaves from now on")
			}
		}
	}
	for name := range d.now {
		if next[name] == nil {
			out = append(out, "sink "+name+": it is gone; its cursor stays")
		}
	}
	slices.Sort(out)
	return out
}

// renewEvery is how often the credential of a sink that refused it is read
// again.
const renewEvery = 2 * time.Second

// renewPaused resumes sinks whose credential has been replaced: nobody should
// have to say so.
func (d *delivery) renewPaused(ctx context.Context) error {
	tick := time.NewTicker(renewEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		for _, st := range d.engine.Status() {
			s := d.current(st.Name)
			if s == nil || st.State != deliver.PausedBySink {
				continue
			}
			if changed, err := deliver.Renew(s.set.Sink); err != nil || !changed {
				continue // it stays paused, and says why
			}
			by := admin.Local("", byCredential)
			if err := d.engine.Resume(ctx, by.Describe, st.Name); err != nil {
				d.log.Error("a sink has a new credential and could not be resumed", "sink", st.Name, "err", err)
			}
		}
	}
}

// byCredential is who resumes a sink whose credential was replaced.
const byCredential = "credential"
