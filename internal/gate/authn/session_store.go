package authn

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"maps"
	"sync"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/kv"
)

// The tables of the store.
const (
	sessionTable = "sessions"
	hintTable    = "session-hints" // ID tokens, for the issuer at logout
)

// Times of the sessions' upkeep.
const (
	seenEvery  = 30 * time.Second       // how often it is kept that a session was used
	revalidate = 500 * time.Millisecond // how long a node believes what it knows of a shared session
	claimTime  = 30 * time.Second       // how long a node that refreshes has to itself
)

// maxPerSubject is how many sessions one person may have; with one more, the
// one that was not used for longest ends.
const maxPerSubject = 64

// sessionRecord is a session as it is kept. Times are Unix seconds.
type sessionRecord struct {
	Name      string   `json:"name"` // of the configured session
	IssuerURL string   `json:"iss"`
	Issuer    string   `json:"issuer"`
	Client    string   `json:"client"`
	Subject   string   `json:"sub"`
	SID       string   `json:"sid,omitempty"` // the issuer's name for its own session
	Roles     []string `json:"roles,omitempty"`
	Groups    []string `json:"groups,omitempty"`
	Scopes    []string `json:"scopes,omitempty"`
	AMR       []string `json:"amr,omitempty"`
	Audiences []string `json:"aud,omitempty"`
	ACR       string   `json:"acr,omitempty"`
	Tenant    string   `json:"tenant,omitempty"`
	Person    string   `json:"person,omitempty"`
	Email     string   `json:"email,omitempty"`
	KID       string   `json:"kid,omitempty"`
	Alg       string   `json:"alg,omitempty"`
	AuthTime  int64    `json:"auth_time,omitempty"`

	Claims map[string]string `json:"claims,omitempty"`
	Unfit  []string          `json:"unfit,omitempty"`

	Created    int64  `json:"created"`
	Expires    int64  `json:"expires"`
	Idle       int64  `json:"idle"` // seconds
	Seen       int64  `json:"seen"`
	Generation uint32 `json:"gen"`
	Rotated    int64  `json:"rotated"`
	Binding    string `json:"binding"`

	Refresh   string `json:"refresh,omitempty"`
	AccessEnd int64  `json:"access_end,omitempty"` // when the issuer wants to be asked again
	ClaimedBy string `json:"claimed_by,omitempty"` // who refreshes
	ClaimEnd  int64  `json:"claim_end,omitempty"`
}

// session is a session on this node.
type session struct {
	family sessionFamily
	hash   string // as records name it
	now    atomic.Pointer[sessionNow]
	seen   atomic.Int64 // Unix seconds
	kept   atomic.Int64 // the seen that is in the store
	ended  atomic.Bool
	read   atomic.Int64 // Unix nanoseconds: when the store was last asked

	change sync.Mutex // held by whoever changes the record

	mu      sync.Mutex
	refresh *refreshing // mu: under way
	retry   time.Time   // mu: no refresh before
}

// sessionNow is what the record says, for reading.
type sessionNow struct {
	sessionRecord
	principal *Principal
}

// SessionStore keeps sessions over reloads and restarts. What is in memory is
// answered from there. It is safe for concurrent use.
type SessionStore struct {
	kv     kv.Store
	keys   *sessionKeys
	hash   func(family string) string
	now    func() time.Time
	log    *slog.Logger
	shared bool

	mu   sync.RWMutex
	live map[sessionFamily]*session       // mu
	by   map[sessionOf]map[*session]int64 // mu; the value is when it was created
	// gone are the sessions that were ended here, until they would have ended by
	// themselves (Unix seconds): the store may still have them, or somebody may just
	// have read them there.
	gone map[sessionFamily]int64 // mu
}

// sessionOf is whose sessions they are: of a subject, or of one session at the
// issuer.
type sessionOf struct{ issuer, kind, id string }

// SessionStoreConfig makes a SessionStore.
type SessionStoreConfig struct {
	Store  kv.Store
	Secret [32]byte
	// Hash is the keyed hash by which records name a session.
	Hash   func(family string) string
	Shared bool             // other nodes use the store too
	Now    func() time.Time // default time.Now
	Logger *slog.Logger     // default: discards
}

// NewSessionStore makes one; Load reads what was kept.
func NewSessionStore(c SessionStoreConfig) (*SessionStore, error) {
	if c.Store == nil || c.Hash == nil {
		return nil, errors.New("sessions need a store and a hash")
	}
	keys, err := newSessionKeys(c.Secret)
	if err != nil {
		return nil, err
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	return &SessionStore{
		kv: c.Store, keys: keys, hash: c.Hash, now: c.Now, log: c.Logger, shared: c.Shared,
		live: map[sessionFamily]*session{}, by: map[sessionOf]map[*session]int64{}, gone: map[sessionFamily]int64{},
	}, nil
}

// Load reads the sessions that were kept.
func (s *SessionStore) Load(ctx context.Context) error {
	now := s.now().Unix()
	return s.kv.Range(ctx, sessionTable, func(key string, value []byte) error {
		f, r, err := readSession(key, value)
		if err != nil {
			return err
		}
		if r.over(now, r.Seen, r.Idle) {
			return nil // Sweep of the store removes it
		}
		s.add(s.newSession(f, r))
		return nil
	})
}

func readSession(key string, value []byte) (f sessionFamily, r *sessionRecord, err error) {
	b, err := strictURL.DecodeString(key)
	if err != nil || len(b) != len(f) {
		return f, nil, errors.New("a session in the store has a name that is none")
	}
	copy(f[:], b)
	r = new(sessionRecord)
	if err := json.Unmarshal(value, r); err != nil {
		return f, nil, errors.New("a session in the store cannot be read")
	}
	return f, r, nil
}

// over reports whether the session has ended by itself.
func (r *sessionRecord) over(now, seen, idle int64) bool {
	return now >= r.Expires || now-seen >= min(idle, r.Idle)
}

func (s *SessionStore) newSession(f sessionFamily, r *sessionRecord) *session {
	x := &session{family: f, hash: s.hash(f.String())}
	x.seen.Store(r.Seen)
	x.kept.Store(r.Seen)
	s.know(x, r)
	return x
}

// know takes over what a record says.
func (s *SessionStore) know(x *session, r *sessionRecord) {
	p := &Principal{
		Method: methodSession, Issuer: r.Issuer, Subject: r.Subject, Client: r.Client, Roles: r.Roles, Groups: r.Groups,
		Scopes: r.Scopes, AMR: r.AMR, Audiences: r.Audiences, ACR: r.ACR, KID: r.KID, Alg: r.Alg, Tenant: r.Tenant, Name: r.Person, Email: r.Email,
		IssuedAt: time.Unix(r.Created, 0).UTC(), Expires: time.Unix(r.Expires, 0).UTC(), Session: x.hash, Claims: r.Claims, Unfit: r.Unfit,
	}
	if r.AuthTime > 0 {
		p.AuthTime = time.Unix(r.AuthTime, 0).UTC()
	}
	x.now.Store(&sessionNow{*r, p})
	x.read.Store(s.now().UnixNano())
}

func (r *sessionRecord) owners() [2]sessionOf {
	return [2]sessionOf{{r.IssuerURL, "sub", r.Subject}, {r.IssuerURL, "sid", r.SID}}
}

// add is false for a session that was ended meanwhile.
func (s *SessionStore) add(x *session) bool {
	r := x.now.Load()
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, gone := s.gone[x.family]; gone {
		return false
	}
	s.live[x.family] = x
	for _, o := range r.owners() {
		if o.id == "" {
			continue
		}
		if s.by[o] == nil {
			s.by[o] = map[*session]int64{}
		}
		s.by[o][x] = r.Created
	}
	return true
}

func (s *SessionStore) remove(x *session) {
	x.ended.Store(true)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.live[x.family] == x {
		delete(s.live, x.family)
	}
	for _, o := range x.now.Load().owners() {
		delete(s.by[o], x)
		if len(s.by[o]) == 0 {
			delete(s.by, o)
		}
	}
}

// create keeps a new session durably.
func (s *SessionStore) create(ctx context.Context, r *sessionRecord, hint string) (*session, error) {
	x := s.newSession(newFamily(), r)
	value, err := json.Marshal(r)
	if err != nil {
		return nil, err
	}
	until := time.Unix(r.Expires, 0)
	if hint != "" {
		if err := s.kv.Put(ctx, hintTable, x.family.String(), []byte(hint), until); err != nil {
			return nil, err
		}
	}
	fresh, err := s.kv.Create(ctx, sessionTable, x.family.String(), value, until)
	if err != nil || !fresh {
		return nil, errors.Join(err, errors.New("the session could not be kept"))
	}
	s.crowd(ctx, r)
	s.add(x)
	return x, nil
}

// crowd makes room for one more session of a person.
func (s *SessionStore) crowd(ctx context.Context, r *sessionRecord) {
	for {
		var oldest *session
		s.mu.RLock()
		all := s.by[r.owners()[0]]
		if len(all) >= maxPerSubject {
			for x := range all {
				if oldest == nil || x.seen.Load() < oldest.seen.Load() {
					oldest = x
				}
			}
		}
		s.mu.RUnlock()
		if oldest == nil {
			return
		}
		if err := s.end(ctx, oldest); err != nil {
			s.log.Error("a session could not be ended in the store", "err", err)
		}
	}
}

// find is the session of a family; nil: there is none any more.
func (s *SessionStore) find(ctx context.Context, f sessionFamily) (*session, error) {
	s.mu.RLock()
	x := s.live[f]
	_, gone := s.gone[f]
	s.mu.RUnlock()
	if gone {
		return nil, nil
	}
	if x != nil && (!s.shared || s.now().UnixNano()-x.read.Load() < int64(revalidate)) {
		return x, nil
	}
	value, err := s.kv.Get(ctx, sessionTable, f.String())
	switch {
	case errors.Is(err, kv.ErrNotFound):
		if x != nil {
			s.remove(x)
		}
		return nil, nil
	case err != nil:
		return nil, err
	}
	_, r, err := readSession(f.String(), value)
	if err != nil {
		return nil, err
	}
	if x != nil {
		s.know(x, r)
		storeMax(&x.seen, r.Seen)
		return x, nil
	}
	if x = s.newSession(f, r); !s.add(x) {
		return nil, nil
	}
	return x, nil
}

func storeMax(v *atomic.Int64, n int64) {
	for {
		was := v.Load()
		if was >= n || v.CompareAndSwap(was, n) {
			return
		}
	}
}

// errEnded is a session that is no longer there.
var errEnded = errors.New("the session has ended")

// alter changes the record of a session durably: fn is given what is in the
// store and may be called again. An error of fn leaves everything as it is.
// When it returns the change is on the disk, and in x. errEnded: somebody has
// ended the session.
func (s *SessionStore) alter(ctx context.Context, x *session, fn func(r *sessionRecord) error) error {
	x.change.Lock()
	defer x.change.Unlock()
	for range 8 {
		if x.ended.Load() {
			return errEnded
		}
		old, err := s.kv.Get(ctx, sessionTable, x.family.String())
		if errors.Is(err, kv.ErrNotFound) {
			s.remove(x)
			return errEnded
		}
		if err != nil {
			return err
		}
		_, r, err := readSession(x.family.String(), old)
		if err != nil {
			return err
		}
		if err := fn(r); err != nil {
			s.know(x, r)
			return err
		}
		r.Seen = max(r.Seen, x.seen.Load())
		value, err := json.Marshal(r)
		if err != nil {
			return err
		}
		err = s.kv.Swap(ctx, sessionTable, x.family.String(), old, value, time.Unix(r.Expires, 0))
		if err == nil {
			s.know(x, r)
			storeMax(&x.kept, r.Seen)
			return nil
		}
		if !errors.Is(err, kv.ErrChanged) && !errors.Is(err, kv.ErrNotFound) {
			return err
		}
	}
	return errors.New("the session is changed by others all the time")
}

// end ends a session: at once and for good on this node, and when it returns nil
// in the store.
func (s *SessionStore) end(ctx context.Context, x *session) error {
	s.mu.Lock()
	s.gone[x.family] = x.now.Load().Expires
	s.mu.Unlock()
	s.remove(x)
	x.change.Lock()
	defer x.change.Unlock()
	key := x.family.String()
	return errors.Join(s.kv.Delete(ctx, sessionTable, key), s.kv.Delete(ctx, hintTable, key))
}

// endAll ends the sessions that match and returns how many.
func (s *SessionStore) endAll(ctx context.Context, o sessionOf, matches func(r *sessionNow) bool) (n int, err error) {
	var list []*session
	s.mu.RLock()
	for x := range s.by[o] {
		if matches == nil || matches(x.now.Load()) {
			list = append(list, x)
		}
	}
	s.mu.RUnlock()
	for _, x := range list {
		err = errors.Join(err, s.end(ctx, x))
	}
	return len(list), err
}

// Run keeps when sessions were last used, and forgets those that have ended,
// until ctx ends.
func (s *SessionStore) Run(ctx context.Context) error {
	tick := time.NewTicker(seenEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			s.keepSeen(context.WithoutCancel(ctx))
			return nil
		case <-tick.C:
			s.keepSeen(ctx)
			s.Sweep()
		}
	}
}

// keepers is how many write at a time, so that they share the store's fsyncs.
const keepers = 64

func (s *SessionStore) keepSeen(ctx context.Context) {
	var todo []*session
	s.mu.RLock()
	for _, x := range s.live {
		if x.seen.Load() > x.kept.Load() {
			todo = append(todo, x)
		}
	}
	s.mu.RUnlock()
	var wg sync.WaitGroup
	next := make(chan *session)
	for range min(keepers, len(todo)) {
		wg.Go(func() {
			for x := range next {
				if err := s.alter(ctx, x, func(*sessionRecord) error { return nil }); err != nil && !errors.Is(err, errEnded) {
					s.log.Warn("it could not be kept when a session was last used; after a restart it ends sooner", "err", err)
				}
			}
		})
	}
	for _, x := range todo {
		next <- x
	}
	close(next)
	wg.Wait()
}

// Sweep forgets the sessions that have ended by themselves and returns how many
// are left. The store's own sweep removes what it keeps of them.
func (s *SessionStore) Sweep() int {
	now := s.now().Unix()
	var over []*session
	s.mu.RLock()
	for _, x := range s.live {
		if r := x.now.Load(); r.over(now, x.seen.Load(), r.Idle) {
			over = append(over, x)
		}
	}
	s.mu.RUnlock()
	for _, x := range over {
		s.remove(x)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	maps.DeleteFunc(s.gone, func(_ sessionFamily, until int64) bool { return until <= now })
	return len(s.live)
}

// SessionInfo is a session as administrators see it.
type SessionInfo struct {
	Hash    string    `json:"hash"` // as records name it
	Session string    `json:"session"`
	Issuer  string    `json:"issuer"`
	Subject string    `json:"-"`
	ACR     string    `json:"acr,omitempty"`
	Created time.Time `json:"created"`
	Seen    time.Time `json:"seen"`
	Expires time.Time `json:"expires"`
}

// List returns the sessions of this node, in no order.
func (s *SessionStore) List() []SessionInfo {
	s.mu.RLock()
	defer s.mu.RUnlock()
	list := make([]SessionInfo, 0, len(s.live))
	for _, x := range s.live {
		r := x.now.Load()
		list = append(list, SessionInfo{
			Hash: x.hash, Session: r.Name, Issuer: r.Issuer, Subject: r.Subject, ACR: r.ACR,
			Created: time.Unix(r.Created, 0).UTC(), Seen: time.Unix(x.seen.Load(), 0).UTC(), Expires: time.Unix(r.Expires, 0).UTC(),
		})
	}
	return list
}

// Revoke ends the sessions that pick chooses and returns how many; it has acted
// when it returns.
func (s *SessionStore) Revoke(ctx context.Context, pick func(i SessionInfo) bool) (n int, err error) {
	var chosen []*session
	s.mu.RLock()
	for _, x := range s.live {
		r := x.now.Load()
		if pick(SessionInfo{Hash: x.hash, Session: r.Name, Issuer: r.Issuer, Subject: r.Subject}) {
			chosen = append(chosen, x)
		}
	}
	s.mu.RUnlock()
	for _, x := range chosen {
		err = errors.Join(err, s.end(ctx, x))
	}
	return len(chosen), err
}
