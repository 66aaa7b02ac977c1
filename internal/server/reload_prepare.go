package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/detect"

	"github.com/gatebook/gatebook/internal/gate/authz"
)

// prepared is a configuration that could be in force at once.
type prepared struct {
	current
	sinks    map[string]*liveSink
	rules    []detect.Rule // of detection
	warnings []string
	adopt    []func() // none of them can fail
}

// prepare reads, checks and builds the whole of the new configuration.
func (s *Server) prepare(ctx context.Context, was *current) (*prepared, error) {
	f, err := config.Load(was.file.Name())
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil, &ReloadError{Cause: causeUnreadable, Err: err}
	}
	if err != nil {
		return nil, &ReloadError{causeInvalid, problemKeys(err), err}
	}
	if keys := config.Fixed(was.file, f); len(keys) > 0 {
		return nil, &ReloadError{causeFixed, keys, fmt.Errorf("only a restart can change %s", strings.Join(keys, ", "))}
	}
	if p := config.Check(f); p != nil {
		return nil, &ReloadError{causeInvalid, problemKeys(p), p}
	}
	parts, err := build(f, s.book, s.guards, s.log, was.parts)
	if err != nil {
		cause := causeParts
		if errors.As(err, new(authz.Problems)) {
			cause = causePolicies
		}
		return nil, &ReloadError{Cause: cause, Err: err}
	}
	next := &prepared{current: current{f, parts, time.Now()}}
	if len(parts.engine.Policies()) == 0 && len(was.parts.engine.Policies()) > 0 {
		return next, &ReloadError{Cause: causeDenyAll, Err: errors.New("no policy and no role is left, so every request would be denied")}
	}
	if err := s.prepareCerts(f, next); err != nil {
		return next, &ReloadError{Cause: causeInvalid, Err: err}
	}
	if next.rules, err = detectRules(f); err != nil {
		return next, &ReloadError{Cause: causeInvalid, Err: err}
	}
	if next.sinks, err = s.desk.build(ctx, f); err != nil {
		return next, &ReloadError{Cause: causeParts, Err: err}
	}
	next.warnings = slices.Concat(givenUp(was.file, f), s.loadKeys(ctx, was.parts, parts), s.desk.warnings(next.sinks))
	return next, nil
}

// problemKeys are the keys that a configuration's problems are about.
func problemKeys(err error) (keys []string) {
	var p *config.Problems
	if errors.As(err, &p) {
		for _, one := range p.All() {
			if one.Key != "" && !slices.Contains(keys, one.Key) {
				keys = append(keys, one.Key)
			}
		}
	}
	return keys
}

// prepareCerts reads the certificates of all listeners.
func (s *Server) prepareCerts(f *config.File, next *prepared) error {
	for _, l := range s.lines {
		i := slices.IndexFunc(f.Listen, func(c config.Listener) bool { return c.Name == l.name })
		c := &f.Listen[i] // config.Fixed has seen that it is there
		next.adopt = append(next.adopt, func() { l.trusted.Store(&c.Trusted) })
		if l.certs == nil {
			continue
		}
		adopt, err := l.certs.prepare(filesOf(c.TLS))
		if err != nil {
			return err
		}
		next.adopt = append(next.adopt, adopt)
	}
	if s.remote == nil {
		return nil
	}
	adopt, err := s.remote.prepare(f)
	if err != nil {
		return err
	}
	next.adopt = append(next.adopt, adopt)
	return nil
}

// loadKeys fetches the keys of new issuers before the first request needs them.
func (s *Server) loadKeys(ctx context.Context, was, is *parts) (warnings []string) {
	var mu sync.Mutex // of warnings
	var all sync.WaitGroup
	for name, j := range is.issuers {
		if was.issuers[name] == j {
			continue
		}
		all.Go(func() {
			if err := j.Load(ctx); err != nil {
				mu.Lock()
				defer mu.Unlock()
				warnings = append(warnings, fmt.Sprintf("issuer %s: its tokens are refused until its keys can be fetched: %v", name, err))
			}
		})
	}
	all.Wait()
	slices.Sort(warnings)
	return warnings
}

// givenUp lists what protected something before and does not any more. The
// file says so plainly, so it is done; but nobody should find out by chance.
func givenUp(was, is *config.File) (warnings []string) {
	say := func(route, text string) { warnings = append(warnings, "route "+route+": "+text) }
	for i := range was.Routes {
		a := &was.Routes[i]
		at := slices.IndexFunc(is.Routes, func(r config.Route) bool { return r.Name == a.Name })
		if at < 0 {
			say(a.Name, "it is gone")
			continue
		}
		b := &is.Routes[at]
		switch {
		case !a.Public && b.Public:
			say(a.Name, "it is public now; nobody is asked who they are")
		case len(a.Scopes) > 0 && len(b.Scopes) == 0:
			say(a.Name, "it demands no scopes any more")
		}
		if len(a.Audiences) > 0 && len(b.Audiences) == 0 {
			say(a.Name, "it takes all audiences of its issuers")
		}
		if len(a.ACR) > 0 && len(b.ACR) == 0 || a.MaxAge > 0 && b.MaxAge == 0 || a.TokenMaxAge > 0 && b.TokenMaxAge == 0 {
			say(a.Name, "it demands less of the login or of the age of tokens")
		}
		if demandsBinding(a) && !demandsBinding(b) {
			say(a.Name, "it takes tokens that are bound to nothing")
		}
		if a.DPoPNonce && !b.DPoPNonce {
			say(a.Name, "proofs need no nonce any more")
		}
		if a.OneTime && !b.OneTime {
			say(a.Name, "a token can be used more than once")
		}
		if !a.PassCredential && b.PassCredential {
			say(a.Name, "it sends the caller's credentials on to the upstream")
		}
		if signedFor(was, a) && !signedFor(is, b) {
			say(a.Name, "its upstream gets no signed identity any more")
		}
		if len(a.Limits) > 0 && len(b.Limits) == 0 {
			say(a.Name, "it has no limits any more")
		}
		if a.Audit.OnFailure == config.OnFailureRefuse && b.Audit.OnFailure == config.OnFailureAllow {
			say(a.Name, "it answers even if the book cannot take the record")
		}
		if a.Audit.Intent == config.IntentAll && b.Audit.Intent != config.IntentAll {
			say(a.Name, "not every request is noted before the upstream is called")
		}
	}
	return append(warnings, lessClientAuth(was, is)...)
}

// lessClientAuth lists the listeners that ask clients for less than before.
func lessClientAuth(was, is *config.File) (warnings []string) {
	rank := []string{"", config.ClientAuthOff, config.ClientAuthOptional, config.ClientAuthRequired}
	for i := range was.Listen {
		a := &was.Listen[i]
		at := slices.IndexFunc(is.Listen, func(l config.Listener) bool { return l.Name == a.Name })
		if at < 0 || a.TLS == nil || is.Listen[at].TLS == nil {
			continue
		}
		b := &is.Listen[at]
		if slices.Index(rank, b.TLS.ClientAuth) < slices.Index(rank, a.TLS.ClientAuth) {
			warnings = append(warnings, "listener "+a.Name+": client_auth is "+b.TLS.ClientAuth+" now, and was "+a.TLS.ClientAuth)
		}
		if a.TLS.CRL != "" && b.TLS.CRL == "" && b.TLS.ClientCA != "" {
			warnings = append(warnings, "listener "+a.Name+": revoked client certificates are taken, since there is no crl any more")
		}
	}
	return warnings
}

func demandsBinding(r *config.Route) bool {
	return r.DPoP == config.BoundRequired || r.CertBound == config.BoundRequired
}
