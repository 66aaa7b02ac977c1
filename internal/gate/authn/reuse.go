package authn

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"hash/maphash"
	"math"
	"net/netip"
	"sync"
	"time"

	"github.com/gatebook/gatebook/internal/gate/canon"
	"github.com/gatebook/gatebook/internal/reason"
)

// ReuseConfig says when a token counts as used by several.
type ReuseConfig struct {
	// Places is how many different places a token may be used from; one more is
	// reported. A place is the client's address prefix (/24, /48) or, if it
	// shows one, its certificate. 1 to 16.
	Places int
	// Block refuses the token from then on.
	Block bool
	// Revocations take blocked tokens. Required with Block.
	Revocations *Revocations
	// Tell gets what is to be reported, once for each token, and says whether it
	// will be. It must not block.
	Tell func(ReuseAlert) bool
	// Entries is how many tokens are watched at once; 0 means 65,536. The least
	// recently used are forgotten first.
	Entries int
	Now     func() time.Time // nil: time.Now
}

// Reuse watches from how many places a token is used. It is a signal, not a
// guarantee: its memory is bounded and of this node. Safe for concurrent use.
type Reuse struct {
	c       ReuseConfig
	seed    maphash.Seed
	buckets []reuseBucket
}

// ReuseAlert is a token that was used from one place too many.
type ReuseAlert struct {
	Issuer, Subject, Client, TokenID string
	Places                           int // how many there were
	Blocked                          bool
	At                               time.Time
}

const (
	defaultReuseEntries = 64 << 10
	maxPlaces           = 16
	reuseWays           = 8
)

type reuseBucket struct {
	mu    sync.Mutex
	slots []reuseSlot // mu; nil until first used
	hand  int         // mu: which is given up next
}

// reuseSlot is one token and the places it was used from.
type reuseSlot struct {
	token  uint64 // keyed hash; 0: free
	until  int64  // Unix second
	n      int8
	told   bool
	used   bool // since the hand last passed
	places [maxPlaces]uint64
}

// NewReuse makes a watch.
func NewReuse(c ReuseConfig) *Reuse {
	c.Places = min(max(c.Places, 1), maxPlaces)
	if c.Entries <= 0 {
		c.Entries = defaultReuseEntries
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	return &Reuse{c: c, seed: maphash.MakeSeed(), buckets: make([]reuseBucket, max(c.Entries/reuseWays, 1))}
}

// Check implements the gate's Demand. It refuses with token_reuse_detected if
// the token is to be blocked.
func (u *Reuse) Check(ctx context.Context, r *canon.Request, p *Principal) error {
	if p.TokenID == "" {
		return nil
	}
	n, over, tell := u.seen(u.token(p), u.place(r), p.Expires)
	switch {
	case !over:
		return nil
	case !tell && !u.c.Block:
		return nil
	case !tell: // also if it could not be revoked
		f := fail(reason.TokenReuseDetected, "the token was used from too many places")
		f.Told = true
		return f.about(p)
	}
	at := u.c.Now()
	told := u.c.Tell != nil && u.c.Tell(ReuseAlert{
		Issuer: p.Issuer, Subject: p.Subject, Client: p.Client, TokenID: p.TokenID,
		Places: n, Blocked: u.c.Block, At: at,
	})
	if !u.c.Block {
		return nil
	}
	f := fail(reason.TokenReuseDetected, "the token is used from too many places")
	f.Told = told
	left := forever
	if !p.Expires.IsZero() {
		left = max(p.Expires.Sub(at), 0) + maxSkew
	}
	f.Err = u.c.Revocations.Token(ctx, p.Issuer, p.TokenID, left, true)
	return f.about(p)
}

func (u *Reuse) token(p *Principal) uint64 {
	var h maphash.Hash
	h.SetSeed(u.seed)
	h.WriteString(p.Issuer)
	h.WriteByte(0)
	h.WriteString(p.TokenID)
	return max(h.Sum64(), 1)
}

// Bits of an address that make a place.
const (
	placeBits4 = 24
	placeBits6 = 48
)

// place is where a request comes from: whoever shows a certificate is where the
// certificate is.
func (u *Reuse) place(r *canon.Request) uint64 {
	if leaf := r.ClientCertificate(); leaf != nil {
		sum := sha256.Sum256(leaf.Raw)
		return binary.LittleEndian.Uint64(sum[:8]) | 1
	}
	bits := placeBits6
	if r.Client.Is4() {
		bits = placeBits4
	}
	prefix, err := r.Client.Prefix(bits)
	if err != nil {
		prefix = netip.Prefix{} // all without an address are in one place
	}
	return maphash.Comparable(u.seed, prefix) &^ 1
}

// seen notes the place and says how many there are now; over is true once there
// was one too many, and tell the first time.
func (u *Reuse) seen(token, place uint64, expires time.Time) (n int, over, tell bool) {
	b := &u.buckets[token%uint64(len(u.buckets))]
	b.mu.Lock()
	defer b.mu.Unlock()
	until := int64(math.MaxInt64)
	if !expires.IsZero() {
		until = expires.Unix()
	}
	s := b.slot(token, u.c.Now().Unix(), until)
	for i := range int(s.n) {
		if s.places[i] == place {
			return int(s.n), s.told, false
		}
	}
	if int(s.n) < u.c.Places {
		s.places[s.n] = place
		s.n++
		return int(s.n), false, false
	}
	tell = !s.told
	s.told = true
	return int(s.n) + 1, true, tell
}

// slot finds the token's slot, or gives up one that is free, dead or not used
// of late. The caller holds mu.
func (b *reuseBucket) slot(token uint64, now, until int64) *reuseSlot {
	if b.slots == nil {
		b.slots = make([]reuseSlot, reuseWays)
	}
	var free *reuseSlot
	for i := range b.slots {
		s := &b.slots[i]
		if s.token == token {
			s.used = true
			return s
		}
		if s.token == 0 || s.until <= now {
			free = s
		}
	}
	for free == nil {
		s := &b.slots[b.hand]
		b.hand = (b.hand + 1) % reuseWays
		if !s.used {
			free = s
		}
		s.used = false
	}
	*free = reuseSlot{token: token, until: until, used: true}
	return free
}
