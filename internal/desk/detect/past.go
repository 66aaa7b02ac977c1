package detect

import (
	"maps"
	"slices"
)

// The past of a key is the most that it ever had in one window of the last one
// to two weeks. A window becomes past only when pendings more have gone by, so
// that the beginning of an attack does not raise what its middle is compared
// with. Only what could matter is kept: a past of at most Count/Times changes
// nothing.

const (
	pendings  = 4
	epoch     = 7 * 24 * 3600 * 1_000_000 // µs
	maxPast   = 8192                      // keys of a rule that have a past
	maxFilter = 1 << 20                   // bits of one generation of seen values
	perFilter = 100_000                   // values in it: one new value in a hundred is then taken for an old one
	probes    = 7
)

// pending is the most in a window that may become the past.
type pending struct{ window, most int64 }

// peak is the past of a key.
type peak struct {
	Epoch int64 `json:"e"` // number of the newest week
	Now   int64 `json:"n"` // most of that week
	Was   int64 `json:"w"` // most of the week before it
}

// at gives the past at a time, with the week that it belongs to.
func (p peak) at(e int64) peak {
	switch {
	case e <= p.Epoch: // a record that is late belongs to the newest week
		return p
	case e == p.Epoch+1:
		return peak{Epoch: e, Was: p.Now}
	}
	return peak{Epoch: e}
}

// past is what a rule with Times knows of its keys.
type past struct {
	window int64 // µs
	least  int64 // what does not reach it is not kept
	peaks  map[string]peak
}

// of is the past of a key.
func (p *past) of(key []byte, at int64) int64 {
	k := p.peaks[string(key)].at(at / epoch)
	return max(k.Now, k.Was)
}

// note tells what a key has in the window of a time.
func (p *past) note(s *slot, key []byte, at, n int64) {
	if n < p.least {
		return
	}
	w := at / p.window
	if s.text == "" {
		s.text = string(key)
	}
	free := 0
	for i := range s.pend {
		q := &s.pend[i]
		if q.most > 0 && q.window == w {
			q.most = max(q.most, n)
			return
		}
		if s.pend[i].window < s.pend[free].window {
			free = i
		}
	}
	s.pend[free] = pending{w, n}
}

// settle makes past of what has been pending for long enough at a time.
func (p *past) settle(s *slot, at int64) {
	for i := range s.pend {
		if q := &s.pend[i]; q.most > 0 && at/p.window-q.window >= pendings {
			p.add(s.text, q.window*p.window, q.most)
			*q = pending{}
		}
	}
}

// leave makes past of all that is pending of a key that goes.
func (p *past) leave(s *slot) {
	for _, q := range s.pend {
		if q.most > 0 {
			p.add(s.text, q.window*p.window, q.most)
		}
	}
}

func (p *past) add(key string, at, most int64) {
	k, have := p.peaks[key]
	if !have && len(p.peaks) >= maxPast && !p.makeRoom(at, most) {
		return
	}
	k = k.at(at / epoch)
	k.Now = max(k.Now, most)
	p.peaks[key] = k
}

// makeRoom drops the eighth of the keys with the smallest past. It is false if
// what is to be added is smaller than all of them.
func (p *past) makeRoom(at, most int64) bool {
	keys := slices.Collect(maps.Keys(p.peaks))
	now := map[string]int64{}
	for _, k := range keys {
		now[k] = p.of([]byte(k), at)
	}
	slices.SortFunc(keys, func(a, b string) int { return int(min(max(now[a]-now[b], -1), 1)) })
	if most < now[keys[0]] {
		return false
	}
	for _, k := range keys[:maxPast/8] {
		delete(p.peaks, k)
	}
	return true
}

// filter remembers which values were seen: two generations of a Bloom filter. It
// never takes an old value of the newest perFilter for a new one.
type filter struct {
	Bits [2][]byte `json:"bits"`
	N    int       `json:"n"` // values in the newer one
}

// sees reports whether the value was seen before, and remembers it.
func (f *filter) sees(h [2]uint64) bool {
	if f.Bits[0] == nil {
		f.Bits[0], f.Bits[1] = make([]byte, maxFilter/8), make([]byte, maxFilter/8)
	}
	inNew, inOld := true, true
	for i := range uint64(probes) {
		bit := (h[0] + i*h[1]) % maxFilter
		at, mask := bit/8, byte(1)<<(bit%8)
		inNew = inNew && f.Bits[0][at]&mask != 0
		inOld = inOld && f.Bits[1][at]&mask != 0
	}
	if inNew {
		return true
	}
	if f.N >= perFilter {
		f.Bits[0], f.Bits[1], f.N = f.Bits[1], f.Bits[0], 0
		clear(f.Bits[0])
	}
	for i := range uint64(probes) {
		bit := (h[0] + i*h[1]) % maxFilter
		f.Bits[0][bit/8] |= byte(1) << (bit % 8)
	}
	f.N++
	return inOld
}
