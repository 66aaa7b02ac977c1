package authn

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/kv"
	"github.com/gatebook/gatebook/internal/reason"
)

// Revocations are what is no longer taken although its issuer signed it: all
// credentials of a subject or a client that were issued before a moment (its
// epoch), and single tokens. They are asked on every exchange, also when a
// verdict on the token is cached, and act on this node when the call that makes
// them returns. It is safe for concurrent use.
type Revocations struct {
	store kv.Store // nil: not kept over a restart
	now   func() time.Time
	most  int

	keeping sync.Mutex   // held while an entry changes and is kept, so that the store has the last
	count   atomic.Int64 // entries, so that none costs nothing
	mu      sync.RWMutex
	all     map[revoked]revocation // mu
}

// revoked is what a revocation is about.
type revoked struct {
	kind       string // revokedSubject, ...
	issuer, id string
}

const (
	revokedSubject = "sub"
	revokedClient  = "client"
	revokedToken   = "jti"
)

// revocation is one entry, as it is kept.
type revocation struct {
	// NotBefore is the Unix second from which credentials are taken again; 0 for
	// a token, which never is.
	NotBefore int64 `json:"nbf,omitempty"`
	// Until is when everything that it is about has expired.
	Until int64 `json:"until"`
	// Reuse: the token was seen in too many places.
	Reuse bool `json:"reuse,omitempty"`
}

// revocationTable is the table of the store.
const revocationTable = "revocations"

// maxRevocations bounds the entries.
const maxRevocations = 1 << 20

// NewRevocations makes an empty list; Load fills it.
func NewRevocations(store kv.Store, now func() time.Time) *Revocations {
	if now == nil {
		now = time.Now
	}
	return &Revocations{store: store, now: now, most: maxRevocations, all: map[revoked]revocation{}}
}

// Load reads what was kept. An entry that cannot be read is an error: whom it
// revoked would be let in again.
func (v *Revocations) Load(ctx context.Context) error {
	if v.store == nil {
		return nil
	}
	return v.store.Range(ctx, revocationTable, func(key string, value []byte) error {
		parts := strings.SplitN(key, "\x00", 3)
		var e revocation
		if err := json.Unmarshal(value, &e); err != nil || len(parts) != 3 {
			return errors.New("an entry of the revocations cannot be read")
		}
		v.set(revoked{parts[0], parts[1], parts[2]}, e)
		return nil
	})
}

// set makes an entry act and returns it with what there was before: nothing that
// was revoked is taken back.
func (v *Revocations) set(k revoked, e revocation) revocation {
	v.mu.Lock()
	defer v.mu.Unlock()
	if had, ok := v.all[k]; ok {
		e.NotBefore, e.Until, e.Reuse = max(e.NotBefore, had.NotBefore), max(e.Until, had.Until), e.Reuse || had.Reuse
	}
	v.all[k] = e
	v.count.Store(int64(len(v.all)))
	return e
}

// Subject revokes what a subject of an issuer holds and was issued up to now.
// lifetime is the longest that such a credential is good for.
func (v *Revocations) Subject(ctx context.Context, issuer, subject string, lifetime time.Duration) error {
	return v.epoch(ctx, revoked{revokedSubject, issuer, subject}, lifetime)
}

// Client is Subject for everything that was issued to an OAuth client.
func (v *Revocations) Client(ctx context.Context, issuer, client string, lifetime time.Duration) error {
	return v.epoch(ctx, revoked{revokedClient, issuer, client}, lifetime)
}

// epoch counts in whole seconds, as iat does: what was issued in this very
// second may be older than the revocation, so it is refused too.
func (v *Revocations) epoch(ctx context.Context, k revoked, lifetime time.Duration) error {
	now := v.now()
	return v.put(ctx, k, revocation{NotBefore: now.Unix() + 1, Until: now.Add(lifetime).Unix() + 1})
}

// forever is for how long a token is revoked that says of no time that it ends
// then.
const forever = 100 * 365 * 24 * time.Hour

// Token revokes the one token with this id for so long; reuse says that it was
// seen in too many places.
func (v *Revocations) Token(ctx context.Context, issuer, id string, lifetime time.Duration, reuse bool) error {
	return v.put(ctx, revoked{revokedToken, issuer, id}, revocation{Until: v.now().Add(lifetime).Unix() + 1, Reuse: reuse})
}

// put makes an entry act at once and returns when it is kept durably.
func (v *Revocations) put(ctx context.Context, k revoked, e revocation) error {
	if k.issuer == "" || k.id == "" || strings.Contains(k.issuer, "\x00") {
		return errors.New("a revocation needs an issuer and whom it is about")
	}
	if v.count.Load() >= int64(v.most) && v.Sweep() >= v.most {
		return fmt.Errorf("there are %d revocations already", v.most)
	}
	if v.store == nil {
		v.set(k, e)
		return nil
	}
	v.keeping.Lock()
	defer v.keeping.Unlock()
	e = v.set(k, e)
	value, err := json.Marshal(e)
	if err != nil {
		return err
	}
	return v.store.Put(ctx, revocationTable, k.kind+"\x00"+k.issuer+"\x00"+k.id, value, time.Unix(e.Until, 0))
}

// Len is how many revocations there are.
func (v *Revocations) Len() int { return int(v.count.Load()) }

// Sweep forgets what has expired and returns how many are left.
func (v *Revocations) Sweep() int {
	now := v.now().Unix()
	v.mu.Lock()
	defer v.mu.Unlock()
	for k, e := range v.all {
		if e.Until <= now {
			delete(v.all, k)
		}
	}
	v.count.Store(int64(len(v.all)))
	return len(v.all)
}

// Check implements the gate's Demand. The error is a *Failure.
func (v *Revocations) Check(_ context.Context, _ *canon.Request, p *Principal) error {
	if v.count.Load() == 0 {
		return nil
	}
	if f := v.check(p); f != nil {
		return f.about(p)
	}
	return nil
}

func (v *Revocations) check(p *Principal) *Failure {
	now, iat := v.now().Unix(), p.IssuedAt.Unix()
	v.mu.RLock()
	defer v.mu.RUnlock()
	if e, ok := v.all[revoked{revokedToken, p.Issuer, p.TokenID}]; ok && p.TokenID != "" && e.Until > now {
		if e.Reuse {
			f := fail(reason.TokenReuseDetected, "the token was seen in too many places")
			f.Told = true // when it was blocked
			return f
		}
		return fail(reason.TokenRevoked, "the token was revoked")
	}
	for _, k := range [...]revoked{{revokedSubject, p.Issuer, p.Subject}, {revokedClient, p.Issuer, p.Client}} {
		if e, ok := v.all[k]; ok && k.id != "" && e.Until > now && iat < e.NotBefore {
			return fail(reason.TokenRevoked, "what was issued to this subject or client before a moment was revoked")
		}
	}
	return nil
}

// sweepEvery is how often Run looks for what has expired.
const sweepEvery = time.Minute

// Run forgets what has expired until ctx ends.
func (v *Revocations) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			v.Sweep()
		}
	}
}
