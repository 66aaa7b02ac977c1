package detect

import (
	"math"

	"github.com/gatebook/gatebook/internal/book/record"
)

// parts is how many parts a window has. What is counted is the part under way
// and the 15 before it, so nothing older than a window is ever counted, and of
// the oldest sixteenth of it as little as nothing.
const parts = 16

// Bounds of a table. When a bound is reached the key with the smallest number
// of a few goes, so that a flood of new keys drives out its own.
const (
	maxKeys     = 1 << 15 // keys of a rule
	maxValues   = 1 << 18 // different values of all keys of a rule together
	evictLookAt = 16      // keys of which one goes
	maxLinks    = 4       // records that an alert links to
)

// slot is what is known of a key.
type slot struct {
	hash   uint64
	used   bool
	nLinks uint8 // since links was empty, at most 255
	newest int64 // number of the newest part; parts are numbered since the epoch
	first  int64 // µs: nothing that counts is older
	last   int64 // µs: of what was counted last
	win    int64 // µs: when Where took a record last, of a rule with After
	hit    int64 // µs: when it took one that would be an alert after enough failures
	hitBy  record.ID
	counts [parts]uint32
	vals   []value
	links  [maxLinks]record.ID // a ring
	pend   [pendings]pending   // windows that may become the past
	text   string              // of a key with pendings
}

// value is one of the different values of a key.
type value struct {
	hash uint64
	at   int64 // number of the part in which it was seen last
}

// table is the keys of one rule. It is owned by the engine.
type table struct {
	width  int64 // µs of a part
	index  map[uint64]int32
	slots  []slot
	hand   int   // where the next key to go is looked for
	values int   // of all slots
	least  int64 // with values: so many are told apart
	gone   uint64
	leave  func(*slot) // told what goes
}

func newTable(window int64, least int64, leave func(*slot)) *table {
	return &table{width: max(window/parts, 1), index: map[uint64]int32{}, least: least, leave: leave}
}

// slot finds the key or makes room for it.
func (t *table) slot(hash uint64) *slot {
	if i, ok := t.index[hash]; ok {
		return &t.slots[i]
	}
	i := len(t.slots)
	if i < maxKeys {
		t.slots = append(t.slots, slot{})
	} else {
		i = t.evict()
	}
	s := &t.slots[i]
	vals := s.vals[:0]
	*s = slot{hash: hash, used: true, newest: math.MinInt64 / 2, vals: vals}
	t.index[hash] = int32(i)
	return s
}

// evict frees the slot of the key with the smallest number, of a few; of equal
// ones that which was quiet for longest.
func (t *table) evict() int {
	best := -1
	for range evictLookAt {
		i := t.hand
		t.hand = (t.hand + 1) % len(t.slots)
		if !t.slots[i].used {
			return i
		}
		if best < 0 || t.less(&t.slots[i], &t.slots[best]) {
			best = i
		}
	}
	t.drop(best)
	return best
}

func (t *table) drop(i int) {
	s := &t.slots[i]
	if t.leave != nil {
		t.leave(s)
	}
	delete(t.index, s.hash)
	t.values -= len(s.vals)
	if cap(s.vals) > 16 {
		s.vals = nil
	}
	*s = slot{vals: s.vals[:0]}
	t.gone++
}

func (t *table) less(a, b *slot) bool {
	x, y := a.weight(), b.weight()
	return x < y || x == y && a.newest < b.newest
}

// weight is how much would be forgotten with a slot.
func (s *slot) weight() int64 {
	n := int64(len(s.vals))
	for _, c := range s.counts {
		n += int64(c)
	}
	return n
}

// forward makes the part of a time the newest one, and forgets what has become
// too old. It is false for a time before the window: that is late.
func (t *table) forward(s *slot, at int64) (part int64, ok bool) {
	part = at / t.width
	switch d := part - s.newest; {
	case d <= -parts:
		// Either it is late or what there is lies in the future, because the clock
		// was wrong then. Of the two the record of now is believed.
		if s.newest-part > futureParts {
			clear(s.counts[:])
			t.values -= len(s.vals)
			s.vals, s.newest = s.vals[:0], part
			break
		}
		return part, false
	case d >= parts:
		clear(s.counts[:])
		s.newest = part
	case d > 0:
		for p := s.newest + 1; p <= part; p++ {
			s.counts[mod(p)] = 0
		}
		s.newest = part
	}
	return part, true
}

// futureParts: what is so many parts ahead of a record was written while the
// clock was wrong.
const futureParts = 4 * parts

func mod(part int64) int64 { return ((part % parts) + parts) % parts }

// touch brings a slot to a time and says since when something in it counts.
func (t *table) touch(s *slot, at int64) bool {
	empty := t.sum(s, at) == 0 && t.distinct(s, at) == 0
	if _, ok := t.forward(s, at); !ok {
		return false
	}
	if empty {
		s.first, s.nLinks = at, 0
	} else {
		s.first = max(min(s.first, at), t.since(at))
	}
	s.last = at
	return true
}

// since is when the window that ends at a time begins.
func (t *table) since(at int64) int64 { return (at/t.width - parts + 1) * t.width }

// count adds to the part of a time.
func (t *table) count(s *slot, at, n int64) {
	c := &s.counts[mod(at/t.width)]
	*c = uint32(min(int64(*c)+n, math.MaxUint32))
}

// sum is how many were counted in the window that ends at a time.
func (t *table) sum(s *slot, at int64) (n int64) {
	part := at / t.width
	for p := max(part-parts+1, s.newest-parts+1); p <= min(part, s.newest); p++ {
		n += int64(s.counts[mod(p)])
	}
	return n
}

// see adds a value, or renews it.
func (t *table) see(s *slot, hash uint64, at int64) {
	part := at / t.width
	oldest := -1
	for i := range s.vals {
		if s.vals[i].hash == hash {
			s.vals[i].at = max(s.vals[i].at, part)
			return
		}
		if oldest < 0 || s.vals[i].at < s.vals[oldest].at {
			oldest = i
		}
	}
	if oldest >= 0 && (int64(len(s.vals)) >= t.least || s.vals[oldest].at <= part-parts) {
		s.vals[oldest] = value{hash, part}
		return
	}
	if t.values >= maxValues {
		t.makeRoom(s)
	}
	s.vals = append(s.vals, value{hash, part})
	t.values++
}

// makeRoom drops a key other than s.
func (t *table) makeRoom(s *slot) {
	s.used = false // the hand passes it by
	for range t.slots {
		i := t.hand
		if x := &t.slots[i]; x.used && len(x.vals) > 0 {
			best := i
			for range evictLookAt {
				t.hand = (t.hand + 1) % len(t.slots)
				if y := &t.slots[t.hand]; y.used && len(y.vals) > 0 && t.less(y, &t.slots[best]) {
					best = t.hand
				}
			}
			t.drop(best)
			break
		}
		t.hand = (t.hand + 1) % len(t.slots)
	}
	s.used = true
}

// distinct is how many different values were seen in the window that ends at a
// time.
func (t *table) distinct(s *slot, at int64) (n int64) {
	part := at / t.width
	for i := range s.vals {
		if s.vals[i].at > part-parts && s.vals[i].at <= part {
			n++
		}
	}
	return n
}

// link keeps a record to link to: the newest ones.
func (s *slot) link(id record.ID) {
	s.links[s.nLinks%maxLinks] = id
	if s.nLinks++; s.nLinks == 0 {
		s.nLinks = maxLinks
	}
}

// linked lists them, oldest first.
func (s *slot) linked() []string {
	n := int(s.nLinks)
	var out []string
	for i := max(n-maxLinks, 0); i < n; i++ {
		out = append(out, s.links[i%maxLinks].String())
	}
	return out
}
