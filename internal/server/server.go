// Package server puts the parts together: it turns a configuration into
// objects, starts them in order and stops them in the reverse order. It holds
// wiring only.
package server

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/obs"
)

// Server is everything that runs. New opens the book and the sockets; Run
// serves.
type Server struct {
	log    *slog.Logger
	book   *book.Book
	state  *kv.Local // what must outlive the process and is no record
	guards *guards   // over tokens
	keys   *authn.APIKeys
	desk   *delivery // to sinks
	detect *detection
	gate   *gate.Gate
	admin  *admin.API
	table  *connTable // connections of all lines
	limits *ratelimit.Table
	lines  []*line
	socket net.Listener
	remote *remoteLine // administration over TCP; nil: none
	health *healthLine
	ready  atomic.Bool // listeners are being served
	notify *notifier   // tells the service manager

	now  atomic.Pointer[current]
	last atomic.Pointer[LastReload] // nil: none yet
	asks chan ask                   // to reloadLoop
	gone chan struct{}              // closed when nobody takes asks any more

	work  *work                      // set by Run before anything starts
	loops map[any]context.CancelFunc // of issuers and pools; owned by Run until reloadLoop starts, then by that
}

// current is the configuration in force. It is immutable.
type current struct {
	file  *config.File
	parts *parts
	since time.Time
}

// BookConfig is the part of a configuration that concerns the book.
func BookConfig(f *config.File, log *slog.Logger) book.Config {
	return book.Config{
		Dir: string(f.Data), KeyDir: string(f.Keys.Wrapper.File), Prefix: f.Origin, Node: f.Node,
		SegmentMaxAge: f.Book.SegmentMaxAge.Std(), SyncWithin: f.Book.SyncWithin.Std(), CommitTimeout: f.Book.CommitTimeout.Std(), Logger: log,
	}
}

// SocketPath is where the admin socket of a configuration is.
func SocketPath(f *config.File) string { return filepath.Join(string(f.Data), "admin.sock") }

// New opens the book, which recovers it, makes the parts and opens all
// sockets. Nothing runs yet. After an error everything is closed again.
func New(ctx context.Context, f *config.File, log *slog.Logger) (_ *Server, err error) {
	s := &Server{log: log, table: newConnTable(defaultCaps()), asks: make(chan ask), gone: make(chan struct{}), loops: map[any]context.CancelFunc{}}
	if s.notify, err = newNotifier(os.Getenv, log); err != nil {
		return nil, err
	}
	if s.book, err = book.Open(ctx, BookConfig(f, log)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	if s.state, err = openState(f, s.book); err != nil {
		return nil, err
	}
	if s.guards, err = openGuards(ctx, f, s.book, s.state, log); err != nil {
		return nil, stateError(f, err)
	}
	if s.keys, err = authn.OpenAPIKeys(ctx, authn.APIKeysConfig{Store: s.state, Issuer: f.APIKeys.Issuer, Logger: log}); err != nil {
		return nil, stateError(f, err)
	}
	p, err := build(f, s.book, s.guards, log, &parts{cache: authn.NewCache(0), tried: &authz.ShadowCounts{}, keys: s.keys, token: tokenParts{store: s.state}})
	if err != nil {
		return nil, err
	}
	if s.detect, err = openDetection(ctx, f, s.book, s.state, log); err != nil {
		return nil, stateError(f, err)
	}
	if s.desk, err = openDelivery(ctx, f, s.book, s.state, log); err != nil {
		return nil, stateError(f, err)
	}
	s.now.Store(&current{f, p, time.Now()})
	s.limits = ratelimit.NewTable(ratelimit.Config{Coarser: ratelimit.CoarserPrefix})
	s.gate, err = gate.New(gate.Config{
		NewID: s.book.NewID, Limiter: s.limits, Log: log, TokenHash: s.book.TokenHash,
	}, p.snapshot)
	if err != nil {
		return nil, err
	}
	s.admin = admin.New(admin.Config{
		Book: bookAndState{s.book, s.state}, Logger: log, Status: func() any { return s.Status() }, Reload: s.reloadCall, Revoke: s.revokeCall,
		Calls: slices.Concat(s.zenCalls(), s.tokenCalls(), s.sessionCalls()), Keys: keyDesk{s.keys}, Sinks: sinkDesk{s.desk}, Plain: obs.PlainWriter,
	})
	return s, s.listen(f)
}

// listen opens every socket, so that a port that is taken stops the start.
func (s *Server) listen(f *config.File) (err error) {
	for i := range f.Listen {
		l, err := s.newLine(&f.Listen[i])
		if err != nil {
			return fmt.Errorf("listener %q: %w", f.Listen[i].Name, err)
		}
		s.lines = append(s.lines, l)
	}
	if f.Admin.Address != "" {
		r, err := s.newRemoteLine(&f.Admin)
		if err != nil {
			return fmt.Errorf("admin: %w", err)
		}
		s.remote = r
	}
	if f.Health.Address != "" {
		h, err := newHealthLine(f.Health.Address, s.Ready, s.gauges(), slices.Concat(s.counters(), s.authnCounters(), s.desk.counters(), s.detect.counters()))
		if err != nil {
			return fmt.Errorf("health: %w", err)
		}
		h.notes(s.notes)
		s.health = h
	}
	if f.Admin.Socket {
		s.socket, err = admin.ListenSocket(SocketPath(f))
	}
	return err
}

// Ready says why the server should get no traffic, nil if it should.
func (s *Server) Ready() error {
	if !s.ready.Load() {
		return errors.New("starting or stopping")
	}
	return s.book.Ready()
}

// certs are the certificates of all listeners by what they are of.
func (s *Server) certs() map[string]*certStore {
	out := map[string]*certStore{}
	for _, l := range s.lines {
		if l.certs != nil {
			out[l.name] = l.certs
		}
	}
	if s.remote != nil {
		out[adminListener] = s.remote.certs
	}
	return out
}

// notes are what readiness says beside its verdict.
func (s *Server) notes() (out []string) {
	for _, c := range s.certs() {
		out = append(out, c.notes(time.Now())...)
	}
	return slices.Concat(out, s.desk.notes(), s.detect.notes())
}

func (s *Server) gauges() []obs.Gauge {
	gauges := []obs.Gauge{
		{Name: "gatebook_book_leaves", Help: "Leaves in the log.", Read: func() float64 { return float64(s.book.Status().Leaves) }},
		{Name: "gatebook_book_signed", Help: "Leaves that the newest checkpoint covers.", Read: func() float64 { return float64(s.book.Status().Signed) }},
		{Name: "gatebook_book_blindness", Help: "Exchanges that are not recorded yet because the book did not take them.", Read: func() float64 { return float64(s.book.Status().Lost) }},
		{Name: "gatebook_book_floods", Help: "Floods of refusals that are being counted instead of written.", Read: func() float64 { return float64(s.book.Status().Floods) }},
		{Name: "gatebook_book_folded", Help: "Refusals that were counted instead of written.", Read: func() float64 { return float64(s.book.Status().Folded) }},
		{Name: "gatebook_config_loaded_seconds", Help: "When the configuration in force was loaded, in Unix time.", Read: func() float64 { return float64(s.now.Load().since.Unix()) }},
		{Name: "gatebook_config_refused", Help: "1 if the last reload was refused.", Read: func() float64 {
			if l := s.last.Load(); l != nil && l.Outcome != string(record.Success) {
				return 1
			}
			return 0
		}},
	}
	for name, c := range s.certs() {
		gauges = append(gauges, obs.Gauge{
			Name: "gatebook_certificate_expiry_seconds", Help: "Seconds until the first certificate of a listener expires; negative if it has.",
			Labels: map[string]string{"listener": name}, Read: func() float64 { return c.left(time.Now()).Seconds() },
		})
	}
	gauges = append(append(gauges, s.bookGauges()...), s.guards.gauges()...)
	gauges = append(gauges, s.introspectionGauges()...)
	gauges = append(gauges, s.verifyingGauges()...)
	return append(append(gauges, s.connGauges()...), s.limitGauges()...)
}

// Addr returns the address on which a listener really listens; "admin" is the
// administration's.
func (s *Server) Addr(name string) net.Addr {
	for _, l := range s.lines {
		if l.name == name {
			return l.socket.Addr()
		}
	}
	if name == adminListener && s.remote != nil {
		return s.remote.socket.Addr()
	}
	return nil
}

// Key returns the verifier key of the book's log.
func (s *Server) Key() string { return s.book.Key() }

// drainTime is how long exchanges under way may take to end after a stop was
// asked for.
const drainTime = 20 * time.Second

// work is what runs beside the listeners until all is over.
type work struct {
	ctx   context.Context
	stop  context.CancelCauseFunc
	group sync.WaitGroup
}

// start runs something. If it fails everything stops.
func (w *work) start(what string, run func(context.Context) error) {
	w.group.Go(func() {
		if err := run(w.ctx); err != nil {
			w.stop(fmt.Errorf("%s: %w", what, err))
		}
	})
}

// Run serves until ctx ends, then drains: it takes no new connection, lets
// exchanges end, and closes the book last. It returns the first error that
// stopped it, or of stopping.
func (s *Server) Run(ctx context.Context) error {
	// What serves must outlive what accepts: exchanges under way still need
	// keys and the book.
	w := &work{}
	w.ctx, w.stop = context.WithCancelCause(context.WithoutCancel(ctx))
	s.work = w
	// A book that fails does not take the gate along: routes that must be
	// recorded refuse, readiness fails, and a restart reads the disk again.
	w.start("book", func(ctx context.Context) error {
		if err := s.book.Run(ctx); err != nil {
			s.log.Error("nothing more is recorded until a restart", "err", err)
		}
		return nil
	})
	w.start("state", s.state.Run)
	w.start("revocations", s.guards.revoked.Run)
	w.start("sessions", s.guards.sessions.Run)
	w.start("token alerts", func(ctx context.Context) error { return s.guards.noteAlerts(ctx, s.book, s.log) })
	if s.guards.shared != nil {
		w.start("shared store", s.guards.shared.Run)
	}
	w.start("API keys", s.keys.Run)
	w.start("alerts", s.gate.RunAlerts)
	w.start("detection", s.detect.run)
	s.desk.start(w)
	s.startParts(s.now.Load().parts)
	for name, c := range s.certs() {
		w.start("certificates of "+name, c.run)
	}
	if s.socket != nil {
		w.start("admin socket", func(ctx context.Context) error { return s.admin.Serve(ctx, s.socket) })
	}
	if s.remote != nil {
		w.start("admin", func(ctx context.Context) error { return s.admin.ServeRemote(ctx, s.remote.socket, s.remote.terms()) })
	}
	if s.health != nil {
		w.start("health", s.health.serve)
	}
	w.start("heap", func(ctx context.Context) error { return roomLoop(ctx, os.Getenv) })
	w.start("watchdog", func(ctx context.Context) error { return s.notify.run(ctx, func() { _ = s.Ready() }) })
	err := s.serveLines(ctx)
	s.desk.stop()
	w.stop(context.Canceled)
	w.group.Wait()
	if cause := context.Cause(w.ctx); !errors.Is(cause, context.Canceled) {
		err = errors.Join(err, cause)
	}
	return errors.Join(err, s.close(context.WithoutCancel(ctx)))
}

// serveLines accepts until ctx ends or something that must run has stopped,
// then drains.
func (s *Server) serveLines(ctx context.Context) error {
	failed := make(chan error, len(s.lines))
	var wg sync.WaitGroup
	for _, l := range s.lines {
		wg.Go(func() {
			if err := l.serve(); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("listener %q: %w", l.name, err)
			}
		})
	}
	now := s.now.Load()
	if err := s.noteLoad(ctx, now); err != nil {
		s.log.Error("the configuration in force could not be recorded", "err", err)
	}
	s.ready.Store(true)
	s.log.Info("serving", "node", now.file.Node, "snapshot", now.parts.snapshot.ID())
	s.tellReady()
	stopReloads := s.startReloads(ctx)
	var err error
	select {
	case <-ctx.Done():
	case <-s.work.ctx.Done():
	case err = <-failed:
	}
	s.ready.Store(false)
	stopReloads()
	s.notify.stopping()
	s.gate.Drain()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	// All at once: one that waits must not keep the others accepting.
	errs := make([]error, len(s.lines))
	for i, l := range s.lines {
		wg.Go(func() { errs[i] = l.shutdown(grace) })
	}
	wg.Wait()
	return errors.Join(append(errs, err)...)
}

// noteLoad records which configuration the server began with.
func (s *Server) noteLoad(ctx context.Context, now *current) error {
	return s.book.Note(ctx, &record.Record{
		Kind: record.KindConfig, Outcome: record.Success, Snap: now.parts.snapshot.ID(),
		Event: record.Event{Name: "load", After: now.parts.snapshot.ID(), Target: now.parts.engine.SetHash()},
	})
}

// close lets go of everything that New opened.
func (s *Server) close(ctx context.Context) error {
	var errs []error
	for _, l := range s.lines {
		errs = append(errs, l.close())
	}
	if now := s.now.Load(); now != nil {
		for _, p := range now.parts.pools {
			p.Close()
		}
	}
	if s.health != nil {
		errs = append(errs, s.health.close())
	}
	if s.remote != nil {
		errs = append(errs, closed(s.remote.socket))
	}
	if s.socket != nil {
		errs = append(errs, closed(s.socket))
	}
	if s.guards != nil {
		errs = append(errs, s.guards.close())
	}
	if s.state != nil {
		errs = append(errs, s.state.Close())
	}
	return errors.Join(append(errs, s.book.Close(ctx))...)
}

// closed closes a listener unless it is closed already.
func closed(l net.Listener) error {
	if err := l.Close(); !errors.Is(err, net.ErrClosed) {
		return err
	}
	return nil
}
