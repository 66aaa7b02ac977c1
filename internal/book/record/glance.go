package record

import "slices"

// Glancer tells of frames what kind of record they are and when it began. It is
// as strict as Decode, and what a frame has in common with those before costs
// little. A Glancer belongs to one goroutine.
type Glancer struct {
	kindRow int
	like    likeness
	sp, was *spans // of this frame and of like.ref
	kind    Kind   // of like.ref
}

// NewGlancer makes a Glancer.
func NewGlancer() *Glancer {
	g := &Glancer{sp: new(spans), was: new(spans)}
	g.kindRow = slices.IndexFunc(frameV1, func(f field) bool { return f.path == "kind" })
	return g
}

// Glance gives the kind of a record and its time in microseconds since the Unix
// epoch. Errors are those of Decode. The frame is not retained.
func (g *Glancer) Glance(frame []byte) (kind Kind, us int64, err error) {
	if len(frame) > MaxPart {
		return "", 0, &DecodeError{"frame", MaxPart, "longer than 64 KiB"}
	}
	k := &g.like
	s := scanner{b: frame}
	if len(k.ref) > 0 {
		if kind, ok := g.alike(&s); ok {
			return kind, s.us, nil
		}
		s = scanner{b: frame, prev: k.ref, prevSpans: g.was, id: k.id, us: k.us}
	}
	if !s.table(frameV1, g.sp) {
		return "", 0, &DecodeError{"frame", s.pos, s.what}
	}
	at := g.sp[g.kindRow]
	if b := frame[at.lo+1 : at.hi-1]; string(b) != string(g.kind) {
		g.kind = Kind(b)
	}
	k.begin(&layoutV1, frame, g.sp, s.id, s.us)
	g.sp, g.was = g.was, g.sp
	return g.kind, s.us, nil
}

// alike looks at a frame that has the values that like.ref has, present and
// absent. It reports false if the frame has others, or is none.
func (g *Glancer) alike(s *scanner) (kind Kind, ok bool) {
	k := &g.like
	kind = g.kind
	from := int32(0)
	for n := 0; ; n++ {
		if !k.gap(s, from, n) {
			return "", false
		}
		if n == len(k.loose) {
			return kind, true
		}
		v := &k.values[k.loose[n]]
		from = v.hi
		lo, was := s.pos, k.ref[v.lo:v.hi]
		// Text tells its own end, a number does not.
		if v.text && v.typ != tSmall && len(s.b)-lo >= len(was) && string(s.b[lo:lo+len(was)]) == string(was) {
			s.pos += len(was)
			continue
		}
		if !s.value(v.typ) {
			return "", false
		}
		if v.row == g.kindRow {
			kind = Kind(s.b[lo+1 : s.pos-1])
		}
	}
}
