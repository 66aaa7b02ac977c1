package token

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/gate/authn"
	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/reason"
)

// Terms are what the configuration says of signing keys.
type Terms struct {
	Algorithm string        // ES256 or EdDSA
	Rotate    time.Duration // how long a key signs; at least an hour
}

// State is what of the service outlives a reload and a restart: signing keys,
// families of refresh tokens, what was revoked and what was seen once. All of it
// is in the store; keys and revocations are also kept in memory. It is safe for
// concurrent use.
type State struct {
	store kv.Store
	now   func() time.Time
	log   *slog.Logger
	terms atomic.Pointer[Terms]

	keys     atomic.Pointer[keySet]
	changing sync.Mutex // held while the stored keys are changed

	mu     sync.RWMutex
	denied map[string]time.Time // mu; token id or tag of a family -> when its last token has expired
}

// The store's tables besides that of the keys.
const (
	tableDenied   = "token.denied"
	tableFamily   = "token.family"
	tableAsserted = "token.asserted" // ids of client assertions
	tableProofs   = "token.proofs"   // ids of DPoP proofs
)

// OpenState loads the state, and makes the first signing key if there is none.
// What cannot be read is an error: a service that had forgotten what it revoked
// must not start.
func OpenState(ctx context.Context, store kv.Store, terms Terms, now func() time.Time, log *slog.Logger) (*State, error) {
	s := &State{store: store, now: now, log: log, denied: map[string]time.Time{}}
	if s.now == nil {
		s.now = time.Now
	}
	if s.log == nil {
		s.log = slog.New(slog.DiscardHandler)
	}
	if err := s.SetTerms(terms); err != nil {
		return nil, err
	}
	if err := s.tend(ctx, terms); err != nil {
		return nil, err
	}
	err := store.Range(ctx, tableDenied, func(id string, value []byte) error {
		var until time.Time
		if err := json.Unmarshal(value, &until); err != nil {
			return fmt.Errorf("token: a revocation cannot be read: %w", err)
		}
		s.denied[id] = until
		return nil
	})
	return s, err
}

// SetTerms puts other terms in force; Run acts on them within tendEvery.
func (s *State) SetTerms(t Terms) error {
	if t.Algorithm != ES256 && t.Algorithm != EdDSA {
		return fmt.Errorf("token: algorithm %q is neither ES256 nor EdDSA", t.Algorithm)
	}
	if t.Rotate < time.Hour {
		return errors.New("token: signing keys must be used for an hour at least")
	}
	s.terms.Store(&t)
	return nil
}

// tendEvery is how often Run looks after keys and revocations.
const tendEvery = time.Minute

// Run rotates the signing keys by schedule and forgets revocations of tokens
// that have expired, until ctx ends. What fails is logged and tried again: the
// keys there are go on.
func (s *State) Run(ctx context.Context) error {
	tick := time.NewTicker(tendEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := s.tend(ctx, *s.terms.Load()); err != nil {
				s.log.Error("the token service's keys could not be looked after", "err", err)
			}
			s.forget()
		}
	}
}

func (s *State) forget() {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	for id, until := range s.denied {
		if now.After(until) {
			delete(s.denied, id)
		}
	}
}

// JWKS is the key set as it is published now.
func (s *State) JWKS() []byte { return s.keys.Load().jwks }

// HasKey tells whether a key with this id is published.
func (s *State) HasKey(kid string) bool {
	for _, k := range s.keys.Load().keys {
		if k.kid == kid {
			return true
		}
	}
	return false
}

// deny refuses a token, by its id, or all of a family, by its tag, until then.
// It is durable when it returns.
func (s *State) deny(ctx context.Context, id string, until time.Time) error {
	value, err := json.Marshal(until.UTC())
	if err != nil {
		return err
	}
	if err := s.store.Put(ctx, tableDenied, id, value, until); err != nil {
		return fmt.Errorf("token: revoking: %w", err)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.denied[id] = until
	return nil
}

// revoked tells whether the token with this id was revoked, by itself or with
// its family.
func (s *State) revoked(jti string) bool {
	s.mu.RLock()
	defer s.mu.RUnlock()
	if len(s.denied) == 0 {
		return false
	}
	if _, ok := s.denied[jti]; ok {
		return true
	}
	tag, _, ok := strings.Cut(jti, ".")
	if ok {
		_, ok = s.denied[tag]
	}
	return ok
}

// Use implements authn.Once for the DPoP proofs of requests for tokens. It
// outlives a restart.
func (s *State) Use(ctx context.Context, u authn.Use) (bool, error) {
	return s.store.Create(context.WithoutCancel(ctx), tableProofs, u.Owner+"|"+u.ID, nil, u.Expires)
}

// Demand refuses tokens of the service that were revoked. It is meant for
// routes that take them: a gate that asks the service itself needs no
// introspection. Issuer is the name under which the gate verifies them.
type Demand struct {
	State  *State
	Issuer string
}

// Check implements gate.Demand.
func (d Demand) Check(_ context.Context, _ *canon.Request, p *authn.Principal) error {
	if p.Issuer != d.Issuer || !d.State.revoked(p.TokenID) {
		return nil
	}
	return &authn.Failure{
		Reason: reason.TokenRevoked, Issuer: p.Issuer, KID: p.KID, Alg: p.Alg, Claimed: p.Subject,
		Detail: "the token was revoked",
	}
}
