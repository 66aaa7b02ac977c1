package authn

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"sync"
	"time"
)

// mark is a keyed hash of something that was used: what it was cannot be told
// from it.
type mark [16]byte

// marker makes marks under a key.
type marker struct{ key [32]byte }

func (m *marker) of(u *Use) mark {
	var b [512]byte
	buf := append(b[:0], m.key[:]...)
	buf = append(buf, byte(u.Kind))
	for _, s := range [...]string{u.Owner, u.ID} {
		buf = append(buf, byte(len(s)>>8), byte(len(s)))
		buf = append(buf, s...)
	}
	sum := sha256.Sum256(buf)
	return mark(sum[:16])
}

// ReplayConfig makes a ReplaySet.
type ReplayConfig struct {
	// Path is the beginning of the names of two files; "" keeps nothing over a
	// restart.
	Path string
	// Begun says that there must be files from before: without them what was
	// used is not known.
	Begun bool
	// Key hides what was used.
	Key [32]byte
	// Most is how many things are remembered at once; 0 means 2^20. One takes
	// about 40 bytes of memory and 24 on the disk.
	Most int
	// Boot names the boot of the machine; "" if it cannot be told.
	Boot string
	Now  func() time.Time // nil: time.Now
}

const defaultReplayMost = 1 << 20

// ReplaySet is a Once of this node: two generations of marks, the older of
// which is dropped whole when nothing in it counts any more. Each mark is also
// appended to a file with one write before Use returns, so that it outlives
// kill -9; see replayFile for what happens when the machine itself fails.
type ReplaySet struct {
	marker marker
	most   int
	now    func() time.Time

	mu      sync.Mutex
	cur     generation // mu
	old     generation // mu
	swept   time.Time  // mu: when sweep last looked for dead marks in vain
	forgets time.Time  // mu: what was made before may have been used unnoticed
	dropped int64      // mu: marks that expire up to this Unix second may be gone
}

// generation is one set of marks and the file that holds the same.
type generation struct {
	seen  map[mark]int64 // Unix second of expiry
	until int64          // the latest of them
	file  *replayFile    // nil: none
}

// OpenReplaySet reads what was used before. After a stop that may have lost
// marks (the power failed, the files are gone) it goes on, and Use gives
// ErrForgot for whatever was made before now.
func OpenReplaySet(c ReplayConfig) (*ReplaySet, error) {
	s := &ReplaySet{marker: marker{c.Key}, most: c.Most, now: c.Now}
	if s.most <= 0 {
		s.most = defaultReplayMost
	}
	if s.now == nil {
		s.now = time.Now
	}
	s.cur.seen, s.old.seen = map[mark]int64{}, map[mark]int64{}
	if c.Path == "" {
		return s, nil
	}
	lost, err := s.load(&c)
	if err != nil {
		return nil, fmt.Errorf("replay store: %w", err)
	}
	if lost {
		s.forgets = s.now()
	}
	return s, nil
}

// load opens both files and takes what still counts.
func (s *ReplaySet) load(c *ReplayConfig) (lost bool, err error) {
	now := s.now().Unix()
	s.dropped = now
	for i, g := range []*generation{&s.cur, &s.old} {
		f, err := openReplayFile(fmt.Sprintf("%s-%d", c.Path, i), c.Boot)
		if err != nil {
			return false, errors.Join(err, s.Close())
		}
		g.file = f
		lost = lost || f.lost || c.Begun && f.created
		for m, until := range f.loaded {
			if until > now {
				g.add(m, until)
			}
		}
		f.loaded = nil
	}
	return lost, nil
}

func (g *generation) add(m mark, until int64) {
	g.seen[m] = until
	g.until = max(g.until, until)
}

// Use implements Once. Besides its errors there are those of the file, after
// which nothing is marked any more until it can be written again.
func (s *ReplaySet) Use(_ context.Context, u Use) (bool, error) {
	m := s.marker.of(&u)
	until := u.Expires.Unix() + 1
	s.mu.Lock()
	defer s.mu.Unlock()
	now := s.now()
	if s.cur.seen[m] > now.Unix() || s.old.seen[m] > now.Unix() {
		return false, nil
	}
	if u.Issued.Before(s.forgets) || now.Unix() < until && until <= s.dropped {
		// The second is of a clock that was set back: when marks were dropped, its
		// own would have been over.
		return false, ErrForgot
	}
	if err := s.room(now); err != nil {
		return false, err
	}
	if err := s.cur.file.append(m, until); err != nil {
		return false, err
	}
	s.cur.add(m, until)
	return true, nil
}

// Forgets is the time before which it does not know what was used; zero if it
// knows all.
func (s *ReplaySet) Forgets() time.Time {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.forgets
}

// Len is how many marks are held, those that no longer count included.
func (s *ReplaySet) Len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.cur.seen) + len(s.old.seen)
}

// sweepPause is the time between two searches of a full set for dead marks.
const sweepPause = time.Second

// room rotates the generations when the older one has nothing that counts, and
// makes sure that there is a place. A live mark is never given up.
func (s *ReplaySet) room(now time.Time) error {
	if s.old.until <= now.Unix() && len(s.cur.seen) > 0 {
		if err := s.old.file.reset(); err != nil {
			return err
		}
		s.dropped = max(s.dropped, s.old.until)
		s.cur, s.old = generation{map[mark]int64{}, 0, s.old.file}, s.cur
	}
	if len(s.cur.seen)+len(s.old.seen) < s.most {
		return nil
	}
	if now.Sub(s.swept) < sweepPause && now.After(s.swept) {
		return ErrFull
	}
	s.swept = now
	if err := s.sweep(now.Unix()); err != nil {
		return err
	}
	if len(s.cur.seen)+len(s.old.seen) >= s.most {
		return ErrFull
	}
	return nil
}

// sweep removes the dead marks of both generations. Their places in the files
// stay until the generation is dropped.
func (s *ReplaySet) sweep(now int64) error {
	s.dropped = max(s.dropped, now)
	for _, g := range []*generation{&s.cur, &s.old} {
		for m, until := range g.seen {
			if until <= now {
				delete(g.seen, m)
			}
		}
		if err := g.file.rewrite(g.seen, s.most); err != nil {
			return err
		}
	}
	return nil
}

// Close writes what there is to the disk and notes that nothing is missing.
func (s *ReplaySet) Close() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return errors.Join(s.cur.file.close(), s.old.file.close())
}
