package record

import "slices"

// Glancer tells of frames what kind of record they are and when it began. It is
// as strict as Decode, and what a frame has in common with the one before costs
// little. A Glancer belongs to one goroutine.
type Glancer struct {
	kindRow int
	last    []byte // the frame before, empty if it was not well-formed
	sp, was *spans // of this frame and the one before
	kind    Kind
	us      int64
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
	s := scanner{b: frame}
	if len(g.last) > 0 {
		s.prev, s.prevSpans, s.us = g.last, g.was, g.us
	}
	if !s.table(frameV1, g.sp) {
		g.last = g.last[:0]
		return "", 0, &DecodeError{"frame", s.pos, s.what}
	}
	g.us = s.us
	at := g.sp[g.kindRow]
	if k := frame[at.lo+1 : at.hi-1]; string(k) != string(g.kind) {
		g.kind = Kind(k)
	}
	g.last = append(g.last[:0], frame...)
	g.sp, g.was = g.was, g.sp
	return g.kind, g.us, nil
}
