package keys

import "sync"

// maxBirths bounds what one process holds between resolving a subject and
// having it in the key store.
const maxBirths = 1 << 16

// newborn is a birth on its way: made, then written to the WAL, then in the
// store. Everything but the flags is set once.
type newborn struct {
	birth
	raw  []byte
	hash hash // what resolves to it: person, or claimed pair; unused for anonymous
	key  Key  // subject key, in clear; guarded by births.mu
	row  Key  // inner blind-index hash, in clear

	written   bool // guarded by births.mu
	projected bool // guarded by births.mu
	unbound   bool // guarded by births.mu: no new traffic resolves to it
}

// births is the table of newborns. It does no I/O.
type births struct {
	mu      sync.Mutex
	byRaw   map[string]*newborn // guarded by mu
	byHash  map[hash]*newborn   // guarded by mu; persons, claims and full days
	byID    map[ID]*newborn     // guarded by mu; persons and anonymous
	pending []*newborn          // guarded by mu: written and not projected, in order of Written
}

func newBirths() *births {
	return &births{
		byRaw:  make(map[string]*newborn),
		byHash: make(map[hash]*newborn),
		byID:   make(map[ID]*newborn),
	}
}

// add takes a new newborn.
func (t *births) add(n *newborn) error {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.byRaw) >= maxBirths {
		return ErrBacklog
	}
	t.byRaw[string(n.raw)] = n
	if n.typ != birthAnonymous {
		t.byHash[n.hash] = n
	}
	if n.typ == birthPerson || n.typ == birthAnonymous {
		t.byID[n.id] = n
	}
	return nil
}

// subject returns what n stands for. The caller holds mu.
func (n *newborn) subject() Subject {
	return Subject{ID: n.id, Pseudonym: n.id.String(), Key: n.key, Birth: n.carry()}
}

// carry returns the bytes that must still go into the WAL, or nil. The caller
// holds mu.
func (n *newborn) carry() []byte {
	if n.written {
		return nil
	}
	return n.raw
}

// person returns the subject that h resolves to.
func (t *births) person(h hash) (Subject, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byHash[h]; n != nil {
		return n.subject(), true
	}
	return Subject{}, false
}

// claim returns the bytes to carry, if any, for a claim or full day under way.
func (t *births) claim(h hash) (carry []byte, ok bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byHash[h]; n != nil {
		return n.carry(), true
	}
	return nil, false
}

// subject returns the subject with this key id.
func (t *births) subject(id ID) (Subject, bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if n := t.byID[id]; n != nil {
		return n.subject(), true
	}
	return Subject{}, false
}

// collect returns the newborns that match.
func (t *births) collect(match func(*newborn) bool) []*newborn {
	t.mu.Lock()
	defer t.mu.Unlock()
	var out []*newborn
	for _, n := range t.byRaw {
		if match(n) {
			out = append(out, n)
		}
	}
	return out
}

// markWritten notes that raw is in the WAL. done runs under the table's lock,
// the first time only, while the newborn still resolves.
func (t *births) markWritten(raw []byte, done func(*newborn)) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byRaw[string(raw)]
	if n == nil || n.written {
		return
	}
	n.written = true
	if !n.unbound {
		done(n)
	}
	if n.projected {
		t.drop(n)
	} else {
		t.pending = append(t.pending, n)
	}
}

// markProjected notes that the rows of raws are durable.
func (t *births) markProjected(raws [][]byte) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, raw := range raws {
		if n := t.byRaw[string(raw)]; n != nil {
			n.projected = true
			if n.written {
				t.drop(n)
			}
		}
	}
	kept := t.pending[:0]
	for _, n := range t.pending {
		if !n.projected {
			kept = append(kept, n)
		}
	}
	clear(t.pending[len(kept):])
	t.pending = kept
}

// drop forgets n. The caller holds mu.
func (t *births) drop(n *newborn) {
	delete(t.byRaw, string(n.raw))
	if t.byHash[n.hash] == n {
		delete(t.byHash, n.hash)
	}
	if t.byID[n.id] == n {
		delete(t.byID, n.id)
	}
}

// unbind makes the newborn of id resolve to nobody; with dead set its key is
// not given out either.
func (t *births) unbind(id ID, dead bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	n := t.byID[id]
	if n == nil {
		return
	}
	n.unbound = true
	if t.byHash[n.hash] == n {
		delete(t.byHash, n.hash)
	}
	if dead {
		delete(t.byID, id)
		clear(n.key[:])
	}
}

// waiting returns the bytes of the births written and not projected.
func (t *births) waiting() [][]byte {
	t.mu.Lock()
	defer t.mu.Unlock()
	out := make([][]byte, len(t.pending))
	for i, n := range t.pending {
		out[i] = n.raw
	}
	return out
}
