package server

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/gate"
	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/obs"
)

// printShadow is the print of the shadow policies.
const printShadow = "shadow"

// PolicyArchive is where a configuration's policy sets are kept for good.
func PolicyArchive(f *config.File) *authz.Archive {
	return authz.NewArchive(filepath.Join(string(f.Data), "policies"))
}

// BuildCandidate loads other policies over the roles and routes of a
// configuration. dir empty: those of the configuration.
func BuildCandidate(f *config.File, dir, schema, tests string) (*authz.Engine, error) {
	c := policyConfig(f)
	c.Dir, c.Schema, c.Tests = dir, schema, tests
	return authz.Load(c)
}

// BuildShadow loads the policies that a configuration tries; nil if it tries
// none.
func BuildShadow(f *config.File) (*authz.Engine, error) {
	if f.Policies == nil || f.Policies.Shadow == nil {
		return nil, nil
	}
	c := f.Policies.Shadow
	e, err := BuildCandidate(f, string(c.Dir), string(c.Schema), "")
	if err != nil {
		return nil, fmt.Errorf("shadow policies: %w", err)
	}
	return e, nil
}

// addPolicies makes the engine and the shadow policies.
func (p *parts) addPolicies(f *config.File, b *book.Book, prev *parts, log *slog.Logger) (err error) {
	if p.engine, err = BuildEngine(f); err != nil {
		return err
	}
	engine, err := BuildShadow(f)
	if engine == nil {
		return err
	}
	c := f.Policies.Shadow
	print := sha256.Sum256(fmt.Append(nil, c.Sample, c.Queue, c.CPU)) // the set has a hash of its own
	p.prints[printShadow] = print
	if was := prev.shadow; was != nil && was.Set() == engine.SetHash() && prev.prints[printShadow] == print {
		p.shadow = was
		return nil
	}
	p.shadow = authz.NewShadow(authz.ShadowConfig{
		Engine: engine, Sample: c.Sample, Queue: c.Queue, CPU: c.CPU, Counts: p.tried,
		Note: func(d *authz.Difference) error {
			err := b.Note(context.Background(), differenceRecord(d))
			if err != nil {
				log.Error("a difference of the shadow policies could not be recorded", "request_id", d.ID, "err", err)
			}
			return err
		},
	})
	return nil
}

// archive keeps the sets before one of them decides anything.
func (p *parts) archive(f *config.File) error {
	a := PolicyArchive(f)
	err := a.Keep(p.engine)
	if p.shadow != nil {
		err = errors.Join(err, a.Keep(p.shadow.Engine()))
	}
	return err
}

// differenceRecord says that the shadow policies would have decided an exchange
// otherwise, where its own record was written before that was known.
func differenceRecord(d *authz.Difference) *record.Record {
	return &record.Record{
		Kind: record.KindPolicy, Outcome: record.Success,
		Authz: record.Authz{
			Decision: decisionWord(d.Was.Allow), Policies: d.Was.Policies, Set: d.Was.Set,
			ShadowDecision: decisionWord(d.Shadow.Allow), ShadowPolicies: d.Shadow.Policies,
		},
		Links: []string{d.ID},
		Event: record.Event{Name: "shadow", Target: d.ID, After: d.Shadow.Set},
	}
}

func decisionWord(allow bool) string {
	if allow {
		return "allow"
	}
	return "deny"
}

// passedClaims are those that records keep or policies read.
func (p *parts) passedClaims(f *config.File, issuer string) []string {
	names := recordedClaims(f, issuer)
	if p.engine != nil {
		names = append(names, p.engine.Named().Claims...)
	}
	if p.shadow != nil {
		names = append(names, p.shadow.Engine().Named().Claims...)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// keptClaims are the claims that a route's records keep: those that it asks for
// and what the policies read that has no field of its own.
func keptClaims(asked []string, n authz.Named) []string {
	out := slices.Clone(asked)
	if n.Scopes && !slices.Contains(out, gate.ScopeClaim) {
		out = append(out, gate.ScopeClaim)
	}
	if n.Age && !slices.Contains(out, gate.AgeClaim) {
		out = append(out, gate.AgeClaim)
	}
	return out
}

// keepable are the names that records can keep as they are. Others appear as
// unknown ones, and a decision that depends on them cannot be made again.
func keepable(names []string) []string {
	return slices.DeleteFunc(slices.Clone(names), func(n string) bool { return !redact.Keepable(n) })
}

// KeptNames are the roles, acr and amr values that records keep as they are while
// the set is in force, beside those that the configuration names; sorted.
func KeptNames(e *authz.Engine) (roles, acr, amr []string) {
	n := e.Named()
	return keepable(n.Roles), keepable(n.ACR), keepable(n.AMR)
}

// Claims of records that hold what policies read of a token and records have no
// field for.
const (
	ScopeClaim = gate.ScopeClaim
	AgeClaim   = gate.AgeClaim
)

// shadowCounter says what became of the requests that shadow policies could
// have been asked about.
func (s *Server) shadowCounter() obs.Counter {
	return obs.Counter{
		Name: "gatebook_policy_shadow_total", Labels: []string{"outcome"},
		Help: "Requests by what the shadow policies said: agree, differ, skip (no room or no time), two_readings (the path can be read in two ways) and unsampled; and of those that differ late (in a record of its own) and lost (not recorded).",
		Read: func(add func(value float64, labels ...string)) {
			c := s.now.Load().parts.tried
			add(float64(c.Agreed.Load()), "agree")
			add(float64(c.Differed.Load()), "differ")
			add(float64(c.Skipped.Load()), "skip")
			add(float64(c.Unsampled.Load()), "unsampled")
			add(float64(c.Readings.Load()), "two_readings")
			add(float64(c.Late.Load()), "late")
			add(float64(c.Lost.Load()), "lost")
		},
	}
}
