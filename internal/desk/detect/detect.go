// Package detect reads the book as it grows and raises an alert when records,
// none of which is remarkable alone, look like an attack together. It is a
// reader off the request path: it sees frames only, keeps a bounded state, and
// what it finds becomes a record of kind alert.
//
// What one exchange or a minute at one address tells is told by the gate, at
// once and from counters in memory (internal/gate). Here is what takes longer
// windows, several addresses or the past to see.
package detect

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
)

// Book is the book that is read and that gets the alerts. *book.Book is one.
type Book interface {
	Reader() (*book.Reader, error)
	Status() book.Status
	// Note keeps a record; it has survived the process when it returns.
	Note(ctx context.Context, r *record.Record) error
}

// Store keeps one small value; a kv.Store is one. Writes are durable when they
// return.
type Store interface {
	Get(ctx context.Context, table, key string) ([]byte, error)
	Put(ctx context.Context, table, key string, value []byte, expires time.Time) error
}

// Config is what a Detector needs. All of it but Log is required.
type Config struct {
	Book  Book
	Store Store
	// Missing is the error of Store.Get for a value that was never put.
	Missing error
	Rules   []Rule // from Select
	Log     *slog.Logger
}

// Intervals. Alerts are written within look of the checkpoint that covers the
// record that made them, which is signed every second.
const (
	look      = 500 * time.Millisecond // between two glances at the book
	saveEvery = 30 * time.Second       // between two states kept
	stretch   = 1 << 18                // records read from one view of the book
	atOnce    = 256                    // alerts found before they are written
	leastWait = 100 * time.Millisecond // before something that failed is tried again
	mostWait  = 30 * time.Second
)

// Detector raises alerts. Its methods are safe for concurrent use, but Run runs
// once.
type Detector struct {
	cfg    Config
	every  time.Duration  // between two states kept
	engine *engine        // owned by Run
	picker *record.Picker // owned by Run
	st     state          // owned by Run

	// Owned by Run.
	next  uint64    // the first record not looked at yet
	sure  uint64    // the state may be kept when this much is signed
	saved time.Time // when it was kept last
	dirty bool      // it has changed since

	mu     sync.Mutex
	status Status // under mu
}

// Status is a glance at a Detector.
type Status struct {
	Next   uint64       `json:"next"`             // the first record not looked at yet
	Failed string       `json:"failed,omitempty"` // why it does not go on at the moment
	Rules  []RuleStatus `json:"rules"`
}

// RuleStatus is a glance at a rule.
type RuleStatus struct {
	Name     string `json:"name"`
	Learning bool   `json:"learning,omitempty"` // its past is not known for long enough yet
	Alerts   uint64 `json:"alerts"`             // since the start
	Withheld uint64 `json:"withheld,omitempty"` // alerts not written because too many keys had one
	Keys     int    `json:"keys"`               // under watch
	Gone     uint64 `json:"gone,omitempty"`     // keys forgotten to make room
	Failed   uint64 `json:"failed,omitempty"`   // records for which an expression had no answer
	Failure  string `json:"failure,omitempty"`  // the last of them
}

// New makes a Detector that goes on where the state says; without one it begins
// with what the book gets from now on. It must be called before the first record
// that is to be looked at is written. Errors: a *RuleError, or the state cannot
// be read or kept.
func New(ctx context.Context, c Config) (*Detector, error) {
	if c.Log == nil {
		c.Log = slog.New(slog.DiscardHandler)
	}
	if c.Book == nil || c.Store == nil || c.Missing == nil {
		return nil, errors.New("detect: the configuration has no book or store")
	}
	g, err := newEngine(c.Rules)
	if err != nil {
		return nil, err
	}
	d := &Detector{cfg: c, every: saveEvery, engine: g}
	if d.picker, err = record.NewPicker(g.needs()); err != nil {
		return nil, err
	}
	d.cfg.Rules = nil
	if err := d.load(ctx); err != nil {
		return nil, err
	}
	d.tellStatus(nil)
	return d, nil
}

// Run looks at records until ctx ends. What fails is tried again: nothing is
// passed over. It returns nil.
func (d *Detector) Run(ctx context.Context) error {
	wait := leastWait
	for recalled := false; ; {
		var err error
		if !recalled {
			if err = d.recall(ctx); err == nil {
				recalled = true
			}
		}
		if err == nil {
			err = d.goOn(ctx)
		}
		if ctx.Err() != nil {
			d.end(context.WithoutCancel(ctx), recalled)
			return nil
		}
		d.tellStatus(err)
		pause := look
		if err != nil {
			d.cfg.Log.Error("detection does not go on", "next", d.next, "err", err)
			pause, wait = wait, min(2*wait, mostWait)
		} else {
			wait = leastWait
		}
		if !sleep(ctx, pause) {
			d.end(context.WithoutCancel(ctx), recalled)
			return nil
		}
	}
}

func sleep(ctx context.Context, pause time.Duration) bool {
	t := time.NewTimer(pause)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// end keeps the state once more, if it may be kept.
func (d *Detector) end(ctx context.Context, recalled bool) {
	if !recalled || !d.mayKeep() {
		return
	}
	if err := d.save(ctx); err != nil {
		d.cfg.Log.Error("the state of detection could not be kept", "err", err)
	}
}

// goOn looks at all that is signed. Only that is final: after a loss of power an
// index above may be given to another record.
func (d *Detector) goOn(ctx context.Context) error {
	signed := d.cfg.Book.Status().Signed
	for {
		if err := d.write(ctx); err != nil {
			return err
		}
		if err := d.keep(ctx); err != nil {
			return err
		}
		if d.next >= signed {
			return nil
		}
		if err := d.read(ctx, min(signed, d.next+stretch)); err != nil {
			return err
		}
		d.tellStatus(nil)
	}
}

// keep keeps the state from time to time, once the alerts that it takes for
// written are durable.
func (d *Detector) keep(ctx context.Context) error {
	if time.Since(d.saved) < d.every || !d.mayKeep() {
		return nil
	}
	return d.save(ctx)
}

func (d *Detector) mayKeep() bool {
	return d.dirty && len(d.engine.findings) == 0 && d.sure <= d.cfg.Book.Status().Signed
}

// errEnough ends a reading.
var errEnough = errors.New("enough")

// read looks at the records before an index until there are alerts to write.
// Whatever happens, next is behind what was counted.
func (d *Detector) read(ctx context.Context, to uint64) error {
	r, err := d.cfg.Book.Reader()
	if err != nil {
		return fmt.Errorf("cannot read the book: %w", err)
	}
	depth := d.engine.depth()
	err = r.Pick(d.next, to, d.picker, func(index uint64, rec *record.Record) error {
		if index&0xfff == 0 && ctx.Err() != nil {
			return ctx.Err()
		}
		d.next, d.dirty = index+1, true
		if rec.Kind != record.KindAlert {
			d.st.mark(rec.Time+rec.DurUS, index, depth)
		}
		d.engine.see(index, rec)
		if len(d.engine.findings) >= atOnce {
			return errEnough
		}
		return nil
	})
	if err == nil {
		d.next, d.dirty = to, true // the last may have been no records
	}
	if errors.Is(err, errEnough) {
		err = nil
	}
	if err = errors.Join(err, r.Close()); err != nil {
		return fmt.Errorf("cannot read the book from record %d: %w", d.next, err)
	}
	return nil
}

// write writes what was found. What could not be written stays, and is looked
// for before it is tried again: it may have been written all the same.
func (d *Detector) write(ctx context.Context) error {
	for len(d.engine.findings) > 0 {
		f := &d.engine.findings[0]
		if f.tried {
			if err := d.lookFor(f); err != nil {
				return err
			}
		}
		if !f.written {
			if !f.tried {
				f.from = d.cfg.Book.Status().Leaves
			}
			r := f.record()
			err := d.cfg.Book.Note(ctx, r)
			if f.tried, f.id = true, r.ID; err != nil {
				return fmt.Errorf("an alert of the rule %s cannot be recorded: %w", f.rule.Name, err)
			}
		}
		d.engine.findings = d.engine.findings[1:]
		d.sure = d.cfg.Book.Status().Leaves
	}
	d.engine.findings = nil
	return nil
}

// lookFor looks for an alert in what the book got since it was tried.
func (d *Detector) lookFor(f *finding) error {
	r, err := d.cfg.Book.Reader()
	if err != nil {
		return fmt.Errorf("cannot read the book: %w", err)
	}
	if f.from < r.Size() {
		err = r.Sift(f.from, r.Size(), []string{"kind"}, isAlert, func(e *book.Entry) error {
			f.written = f.written || e.Record.Kind == record.KindAlert && e.Record.ID == f.id
			return nil
		})
	}
	return errors.Join(err, r.Close())
}

// alertOutcome is limit.outcome of alerts.
const alertOutcome = "exceeded"

// record is the alert. It has no personal part.
func (f *finding) record() *record.Record {
	r := &record.Record{
		ID: f.id, Kind: record.KindAlert, Outcome: record.Failure, Route: record.None, Op: record.None,
		Authn: record.Authn{Method: record.None}, Client: record.Client{Prefix: record.None},
		Limit: record.Limit{Rule: rulePrefix + f.rule.Name, Outcome: alertOutcome}, Links: f.links,
		Event: record.Event{
			Name: f.rule.Alert, Count: f.count, Exact: f.exact, First: f.first, Last: f.last,
			Target: f.key, Cause: string(f.rule.Severity),
		},
	}
	for i, v := range f.values {
		switch f.rule.By[i] {
		case "client.prefix":
			r.Client.Prefix = v
		case "route":
			r.Route = v
		case "authn.client":
			r.Authn.Client = v
		case "authn.issuer":
			r.Authn.Issuer = v
		case "host":
			r.Host = v
		}
	}
	return r
}

// depth is how far back records count, in µs.
func (g *engine) depth() int64 {
	var most int64
	for _, ru := range g.rules {
		d := ru.window
		if ru.past != nil {
			d *= pendings + 1
		}
		most = max(most, d)
	}
	return most
}

// recall reads again what lies in the windows at the place where the state was
// kept, and which alerts there have been since.
func (d *Detector) recall(ctx context.Context) error {
	from := d.st.from(d.engine.depth())
	r, err := d.cfg.Book.Reader()
	if err != nil {
		return fmt.Errorf("cannot read the book: %w", err)
	}
	if from < r.Size() {
		err = r.Sift(from, r.Size(), []string{"kind"}, isAlert, func(e *book.Entry) error {
			if e.Record.Kind == record.KindAlert {
				d.engine.alerted(e.Record)
			}
			return ctx.Err()
		})
	}
	d.engine.quiet = true
	if err == nil && from < d.next {
		err = r.Pick(from, d.next, d.picker, func(index uint64, rec *record.Record) error {
			d.engine.see(index, rec)
			return ctx.Err()
		})
	}
	d.engine.quiet = false
	if err = errors.Join(err, r.Close()); err != nil {
		d.engine.forgetCounts() // or they would be counted twice
		d.st.restore(d.engine)
		return fmt.Errorf("cannot read the book again from record %d: %w", from, err)
	}
	d.st.Rules = nil // the rules have it
	return nil
}

// isAlert is for Sift.
func isAlert(r *record.Row) bool { return string(r.Text(0)) == `"`+string(record.KindAlert)+`"` }

// Status tells how far it is and what the rules do.
func (d *Detector) Status() Status {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.status
}

func (d *Detector) tellStatus(err error) {
	s := Status{Next: d.next}
	if err != nil {
		s.Failed = err.Error()
	}
	s.Rules = d.engine.statuses(d.st.newest())
	d.mu.Lock()
	defer d.mu.Unlock()
	d.status = s
}

// statuses are glances at the rules at a time, in µs.
func (g *engine) statuses(at int64) (out []RuleStatus) {
	for _, ru := range g.rules {
		out = append(out, RuleStatus{
			Name: ru.Name, Learning: ru.Learn > 0 && ru.learns(at), Alerts: ru.alerts, Withheld: ru.withheld,
			Keys: len(ru.table.index), Gone: ru.table.gone, Failed: ru.failed, Failure: ru.failure,
		})
	}
	return out
}
