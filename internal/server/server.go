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
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/ratelimit"
	"github.com/gatebook/gatebook/internal/obs"
)

// Server is everything that runs. New opens the book and the sockets; Run
// serves.
type Server struct {
	file   *config.File
	log    *slog.Logger
	book   *book.Book
	parts  *parts
	gate   *gate.Gate
	admin  *admin.API
	table  *connTable // connections of all lines
	lines  []*line
	socket net.Listener
	health *healthLine
	ready  atomic.Bool // listeners are being served
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
	s := &Server{file: f, log: log, table: newConnTable(defaultCaps())}
	if s.book, err = book.Open(ctx, BookConfig(f, log)); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, s.close(ctx))
		}
	}()
	if s.parts, err = build(f, s.book, log); err != nil {
		return nil, err
	}
	s.gate, err = gate.New(gate.Config{
		NewID: s.book.NewID, Limiter: ratelimit.NewTable(ratelimit.Config{Coarser: ratelimit.CoarserPrefix}), Log: log, TokenHash: s.book.TokenHash,
	}, s.parts.snapshot)
	if err != nil {
		return nil, err
	}
	s.admin = admin.New(admin.Config{Book: s.book, Logger: log})
	return s, s.listen()
}

// listen opens every socket, so that a port that is taken stops the start.
func (s *Server) listen() error {
	for i := range s.file.Listen {
		l, err := s.newLine(&s.file.Listen[i])
		if err != nil {
			return fmt.Errorf("listener %q: %w", s.file.Listen[i].Name, err)
		}
		s.lines = append(s.lines, l)
	}
	if s.file.Health.Address != "" {
		h, err := newHealthLine(s.file.Health.Address, s.Ready, s.gauges())
		if err != nil {
			return fmt.Errorf("health: %w", err)
		}
		s.health = h
	}
	if !s.file.Admin.Socket {
		return nil
	}
	var err error
	s.socket, err = admin.ListenSocket(SocketPath(s.file))
	return err
}

// Ready says why the server should get no traffic, nil if it should.
func (s *Server) Ready() error {
	if !s.ready.Load() {
		return errors.New("starting or stopping")
	}
	return s.book.Ready()
}

func (s *Server) gauges() []obs.Gauge {
	gauges := []obs.Gauge{
		{Name: "gatebook_book_leaves", Help: "Leaves in the log.", Read: func() float64 { return float64(s.book.Status().Leaves) }},
		{Name: "gatebook_book_signed", Help: "Leaves that the newest checkpoint covers.", Read: func() float64 { return float64(s.book.Status().Signed) }},
		{Name: "gatebook_book_blindness", Help: "Exchanges that are not recorded yet because the book did not take them.", Read: func() float64 { return float64(s.book.Status().Lost) }},
		{Name: "gatebook_book_floods", Help: "Floods of refusals that are being counted instead of written.", Read: func() float64 { return float64(s.book.Status().Floods) }},
		{Name: "gatebook_book_folded", Help: "Refusals that were counted instead of written.", Read: func() float64 { return float64(s.book.Status().Folded) }},
	}
	return append(gauges, s.connGauges()...)
}

// Addr returns the address on which a listener really listens.
func (s *Server) Addr(name string) net.Addr {
	for _, l := range s.lines {
		if l.name == name {
			return l.socket.Addr()
		}
	}
	return nil
}

// Key returns the verifier key of the book's log.
func (s *Server) Key() string { return s.book.Key() }

// drainTime is how long exchanges under way may take to end after a stop was
// asked for.
const drainTime = 20 * time.Second

// Run serves until ctx ends, then drains: it takes no new connection, lets
// exchanges end, and closes the book last. It returns the first error that
// stopped it, or of stopping.
func (s *Server) Run(ctx context.Context) error {
	// What serves must outlive what accepts: exchanges under way still need
	// keys and the book.
	inner, stopInner := context.WithCancelCause(context.WithoutCancel(ctx))
	var background sync.WaitGroup
	start := func(what string, run func(context.Context) error) {
		background.Go(func() {
			if err := run(inner); err != nil {
				stopInner(fmt.Errorf("%s: %w", what, err))
			}
		})
	}
	// A book that fails does not take the gate along: routes that must be
	// recorded refuse, readiness fails, and a restart reads the disk again.
	start("book", func(ctx context.Context) error {
		if err := s.book.Run(ctx); err != nil {
			s.log.Error("nothing more is recorded until a restart", "err", err)
		}
		return nil
	})
	for name, j := range s.parts.issuers {
		start("issuer "+name, j.Run)
	}
	if s.socket != nil {
		start("admin socket", func(ctx context.Context) error { return s.admin.Serve(ctx, s.socket) })
	}
	if s.health != nil {
		start("health", s.health.serve)
	}
	err := s.serveLines(ctx, inner)
	stopInner(context.Canceled)
	background.Wait()
	if cause := context.Cause(inner); !errors.Is(cause, context.Canceled) {
		err = errors.Join(err, cause)
	}
	return errors.Join(err, s.close(context.WithoutCancel(ctx)))
}

// serveLines accepts until ctx ends or something that must run has stopped,
// then drains.
func (s *Server) serveLines(ctx, inner context.Context) error {
	failed := make(chan error, len(s.lines))
	var wg sync.WaitGroup
	for _, l := range s.lines {
		wg.Go(func() {
			if err := l.serve(); !errors.Is(err, http.ErrServerClosed) {
				failed <- fmt.Errorf("listener %q: %w", l.name, err)
			}
		})
		wg.Go(func() { l.watch(inner) })
	}
	if err := s.noteConfig(ctx); err != nil {
		s.log.Error("the configuration in force could not be recorded", "err", err)
	}
	s.ready.Store(true)
	s.log.Info("serving", "node", s.file.Node, "snapshot", s.parts.snapshot.ID())
	var err error
	select {
	case <-ctx.Done():
	case <-inner.Done():
	case err = <-failed:
	}
	s.ready.Store(false)
	s.gate.Drain()
	grace, cancel := context.WithTimeout(context.WithoutCancel(ctx), drainTime)
	defer cancel()
	for _, l := range s.lines {
		err = errors.Join(err, l.shutdown(grace))
	}
	for _, l := range s.lines {
		l.stopWatch()
	}
	wg.Wait()
	return err
}

// noteConfig records which configuration is in force.
func (s *Server) noteConfig(ctx context.Context) error {
	return s.book.Note(ctx, &record.Record{
		Kind: record.KindConfig, Outcome: record.Success, Snap: s.parts.snapshot.ID(),
		Event: record.Event{Name: "load", After: s.parts.snapshot.ID(), Target: s.parts.engine.SetHash()},
	})
}

// close lets go of everything that New opened.
func (s *Server) close(ctx context.Context) error {
	var errs []error
	for _, l := range s.lines {
		errs = append(errs, l.close())
	}
	if s.parts != nil {
		for _, p := range s.parts.pools {
			p.Close()
		}
	}
	if s.health != nil {
		errs = append(errs, s.health.close())
	}
	if s.socket != nil {
		if err := s.socket.Close(); !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(append(errs, s.book.Close(ctx))...)
}
