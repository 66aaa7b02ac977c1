package server

import (
	"context"
	"errors"
	"net/http"
	"os"
	"time"

	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/admin"

	"github.com/gatebook/gatebook/internal/token"
)

// Who asks for a reload when nobody calls.
const (
	bySignal = "signal"
	byWatch  = "watch"
)

// ask is one wish for a reload.
type ask struct {
	who   *admin.Caller
	reply chan<- answer // with room for one
}

type answer struct {
	done *Reloaded
	err  error
}

// Reloaded says what a reload changed.
type Reloaded struct {
	Before string `json:"before"` // ids of snapshots
	After  string `json:"after"`
	// Warnings are what the new configuration gives up, in words.
	Warnings []string `json:"warnings,omitempty"`
}

// LastReload is what became of the last one.
type LastReload struct {
	Time    time.Time `json:"time"`
	Outcome string    `json:"outcome"`
	Cause   string    `json:"cause,omitempty"`
	Error   string    `json:"error,omitempty"`
}

// The causes for which a reload is refused, as its record says.
const (
	causeUnreadable = "unreadable"   // the file cannot be read
	causeInvalid    = "invalid"      // it, or a file that it names, is wrong
	causeFixed      = "fixed"        // it changes what only a restart can
	causePolicies   = "policies"     // policies, schema or their tests are wrong
	causeParts      = "parts"        // something that it declares cannot be made
	causeDenyAll    = "denies_all"   // no policy is left that could allow anything
	causeUnrecorded = "not_recorded" // the book did not take the record of the change
)

// ReloadError is a reload that was refused. Everything is as it was before.
type ReloadError struct {
	Cause string
	Keys  []string // of the configuration, where they are known
	Err   error
}

func (e *ReloadError) Error() string {
	return "the configuration was not reloaded, the one before stays in force: " + e.Err.Error()
}

func (e *ReloadError) Unwrap() error { return e.Err }

// Problem is the error on the wire.
func (e *ReloadError) Problem() *admin.Problem {
	p := &admin.Problem{Title: e.Error(), Status: http.StatusConflict, Code: 2}
	if e.Cause == causeUnrecorded {
		p.Status, p.Code = http.StatusServiceUnavailable, 1
	}
	return p
}

var errStopping = errors.New("the server is stopping")

// Reload puts the configuration as it is on the disk in force, on behalf of
// who. It returns when that has been done or refused. It needs a Run.
func (s *Server) Reload(ctx context.Context, who *admin.Caller) (*Reloaded, error) {
	reply := make(chan answer, 1)
	select {
	case s.asks <- ask{who, reply}:
	case <-s.gone:
		return nil, errStopping
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case a := <-reply:
		return a.done, a.err
	case <-s.gone:
		return nil, errStopping
	}
}

// reloadCall is the administration's way to Reload.
func (s *Server) reloadCall(ctx context.Context, who *admin.Caller) (any, error) {
	return s.Reload(ctx, who)
}

// ReloadOn reloads at every signal until ctx ends. What is refused is logged
// and recorded.
func (s *Server) ReloadOn(ctx context.Context, signals <-chan os.Signal) {
	for {
		select {
		case <-ctx.Done():
			return
		case <-s.gone:
			return
		case <-signals:
			_, _ = s.Reload(ctx, admin.Local("", bySignal)) // logged where it happens
		}
	}
}

// startReloads runs the reloads until stop is called, which waits for one that
// is under way.
func (s *Server) startReloads(ctx context.Context) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		defer close(s.gone)
		s.reloadLoop(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// watchPoll is how often files are looked at, and how long they must have
// stayed the same to be taken.
const watchPoll = time.Second

// reloadLoop does one reload after the other.
func (s *Server) reloadLoop(ctx context.Context) {
	watch := newWatcher(s)
	tick := time.NewTicker(watchPoll)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case a := <-s.asks:
			watch.taken()
			done, err := s.reload(ctx, a.who)
			a.reply <- answer{done, err}
		case <-tick.C:
			if s.now.Load().file.Reload.Watch && watch.changed() {
				watch.taken()
				_, _ = s.reload(ctx, admin.Local("", byWatch)) // logged where it happens
			}
		}
	}
}

// reload does all that can fail, records the change, and then makes it.
func (s *Server) reload(ctx context.Context, who *admin.Caller) (*Reloaded, error) {
	s.notify.reloading()
	defer s.tellReady()
	was := s.now.Load()
	next, err := s.prepare(ctx, was)
	if err == nil {
		err = s.noteReload(ctx, who, was, next, nil)
	}
	if err == nil {
		if err = s.desk.declare(ctx, who, next.sinks); err != nil {
			err = &ReloadError{Cause: causeUnrecorded, Err: err}
		}
	}
	if err != nil {
		s.refused(ctx, who, was, next, err)
		return nil, err
	}
	done := &Reloaded{Before: was.parts.snapshot.ID(), After: next.parts.snapshot.ID(), Warnings: next.warnings}
	if err := s.adopt(was, next); err != nil {
		return nil, err
	}
	s.last.Store(&LastReload{Time: next.since.UTC(), Outcome: string(record.Success)})
	s.log.Info("the configuration was reloaded", "by", how(who), "before", done.Before, "snapshot", done.After, "warnings", done.Warnings)
	return done, nil
}

// how says how a reload was asked for, without saying by whom.
func how(who *admin.Caller) string {
	if who.Method == "" {
		return who.Name
	}
	return who.Method
}

// adopt makes the change: what comes from now on meets the new configuration,
// what is under way ends with the old one.
func (s *Server) adopt(was *current, next *prepared) error {
	if t := next.file.TokenService; t != nil {
		if err := next.parts.token.state.SetTerms(token.Terms{Algorithm: t.Algorithm, Rotate: t.RotateKeys.Std()}); err != nil {
			return err
		}
	}
	s.startParts(next.parts)
	if _, err := s.gate.Swap(next.parts.snapshot); err != nil {
		return err
	}
	for _, do := range next.adopt {
		do()
	}
	s.detect.adopt(next.rules)
	if err := s.desk.adopt(s.work.ctx, next.sinks); err != nil {
		return err
	}
	if k := next.parts.identity; k != nil {
		k.SetRotation(next.file.Identity.Rotate.Std())
	}
	s.now.Store(&next.current)
	s.retire(was, next.parts)
	return nil
}

// startParts runs what of the parts does not run yet.
func (s *Server) startParts(p *parts) {
	for name, j := range p.issuers {
		s.startLoop("issuer "+name, j, j.Run)
	}
	for name, x := range p.sessions {
		s.startLoop("session "+name, x, x.Run)
	}
	if p.shadow != nil {
		s.startLoop("shadow policies", p.shadow, p.shadow.Run)
	}
	if p.identity != nil {
		s.startLoop("identity keys", p.identity, p.identity.Run)
	}
	for id, j := range p.token.clients {
		s.startLoop("keys of client "+id, j, j.Run)
	}
	if p.token.state != nil {
		s.startLoop("token service", p.token.state, p.token.state.Run)
	}
	for name, pool := range p.pools {
		s.startLoop("health checks of "+name, pool, pool.Run)
	}
}

func (s *Server) startLoop(what string, of any, run func(context.Context) error) {
	if s.loops[of] != nil {
		return
	}
	ctx, cancel := context.WithCancel(s.work.ctx)
	s.loops[of] = cancel
	s.work.start(what, func(context.Context) error { return run(ctx) })
}

// endLoop forgets a loop and returns what ends it.
func (s *Server) endLoop(of any) func() {
	cancel := s.loops[of]
	delete(s.loops, of)
	return cancel
}

// retireTime is how long parts that were replaced are kept for exchanges that
// began before: longer than any of them takes to reach its upstream. What has
// reached it goes on after that, too.
const retireTime = time.Minute

// retire ends, after a while, what the new parts do not use.
func (s *Server) retire(was *current, is *parts) {
	var end []func()
	for _, j := range was.parts.issuers {
		if !uses(is.issuers, j) {
			end = append(end, s.endLoop(j))
		}
	}
	for _, j := range was.parts.token.clients {
		if !uses(is.token.clients, j) {
			end = append(end, s.endLoop(j))
		}
	}
	for _, x := range was.parts.sessions {
		if !uses(is.sessions, x) {
			end = append(end, s.endLoop(x))
		}
	}
	for _, p := range was.parts.pools {
		if !uses(is.pools, p) {
			end = append(end, s.loops[p], p.Close)
			delete(s.loops, p)
		}
	}
	for _, p := range was.parts.points {
		end = append(end, p.Close)
	}
	if was.parts.shadow != nil && was.parts.shadow != is.shadow {
		end = append(end, s.endLoop(was.parts.shadow))
	}
	if k := was.parts.identity; k != nil && is.identity != k {
		end = append(end, s.endLoop(k))
	}
	if len(end) == 0 {
		return
	}
	wait := retireTime + was.file.Book.CommitTimeout.Std()
	s.work.start("retirement", func(ctx context.Context) error {
		t := time.NewTimer(wait)
		defer t.Stop()
		select {
		case <-ctx.Done():
		case <-t.C:
		}
		for _, do := range end {
			do()
		}
		return nil
	})
}

func uses[V comparable](m map[string]V, v V) bool {
	for _, have := range m {
		if have == v {
			return true
		}
	}
	return false
}

// noteReload records a reload; why is nil for one that is about to be made.
func (s *Server) noteReload(ctx context.Context, who *admin.Caller, was *current, next *prepared, why *ReloadError) error {
	rec := &record.Record{
		Kind: record.KindConfig, Outcome: record.Success, Snap: was.parts.snapshot.ID(),
		Event: record.Event{Name: "reload", Before: was.parts.snapshot.ID()},
	}
	if next != nil {
		rec.Event.After, rec.Event.Target = next.parts.snapshot.ID(), next.parts.engine.SetHash()
	}
	if why != nil {
		rec.Outcome = record.Failure
		rec.Event.Cause, rec.Event.Target = why.Cause, firstOf(why.Keys)
	}
	if err := admin.Note(ctx, s.book, who, rec); err != nil {
		return &ReloadError{Cause: causeUnrecorded, Err: err}
	}
	return nil
}

// maxTarget bounds what a record names of what was wrong.
const maxTarget = 100

func firstOf(keys []string) string {
	text := ""
	for i, k := range keys {
		if i > 0 {
			k = " " + k
		}
		if len(text)+len(k) > maxTarget {
			break
		}
		text += k
	}
	return text
}

// refused logs and records why a reload was not made.
func (s *Server) refused(ctx context.Context, who *admin.Caller, was *current, next *prepared, err error) {
	s.discard(was, next)
	why := &ReloadError{Cause: causeParts, Err: err}
	errors.As(err, &why)
	s.last.Store(&LastReload{Time: time.Now().UTC(), Outcome: string(record.Failure), Cause: why.Cause, Error: why.Err.Error()})
	s.log.Error("the configuration was not reloaded; the one before stays in force", "by", how(who), "cause", why.Cause, "keys", why.Keys, "err", why.Err)
	if why.Cause == causeUnrecorded {
		return
	}
	if err := s.noteReload(ctx, who, was, next, why); err != nil {
		s.log.Error("a refused reload could not be recorded", "err", err)
	}
}

// discard lets go of parts that are not taken into use.
func (s *Server) discard(was *current, next *prepared) {
	if next == nil {
		return
	}
	for _, p := range next.parts.pools {
		if !uses(was.parts.pools, p) {
			p.Close()
		}
	}
}
