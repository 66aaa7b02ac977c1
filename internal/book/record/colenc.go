package record

import (
	"bytes"
	"encoding/binary"
	"fmt"
)

// ColumnEncoder builds the columns of a segment frame by frame, so that a
// caller can yield between frames. It belongs to one goroutine.
type ColumnEncoder struct {
	l        *layout
	rows     int // frames in columns
	frames   int // all frames
	total    uint64
	kept     int // frames kept verbatim
	lastKept int
	verbatim []byte
	predict  predictor
	cols     []colState
	seen     []bool // by model: has had a value; before that every row is absent
	ids      idEncoder
	sp, was  *spans // of this frame and of the last one in columns
	last     []byte // the last frame in columns, empty before there is one
	moved    []bool // by model: its symbol is another one than in the last frame
	id       ID     // of the last frame
	us       int64  // its time
}

// colState is a column under construction.
type colState struct {
	planes planes
	dict   map[string]uint32 // symbol text -> entry
	ends   []uint32          // of the entries in text
	text   []byte
}

func (c *colState) entry(n uint32) []byte {
	if n == 0 {
		return c.text[:c.ends[0]]
	}
	return c.text[c.ends[n-1]:c.ends[n]]
}

// add makes a dictionary entry and gives its number.
func (c *colState) add(raw []byte) uint32 {
	if c.dict == nil {
		c.dict = make(map[string]uint32)
	}
	n := uint32(len(c.ends))
	c.dict[string(raw)] = n
	c.text = append(c.text, raw...)
	c.ends = append(c.ends, uint32(len(c.text)))
	return n
}

func (c *colState) appendTo(dst []byte, kind modelKind) []byte {
	if kind != mSymbol {
		if c.planes.n == 0 {
			return dst
		}
		return c.planes.appendTo(dst)
	}
	if len(c.ends) == 0 {
		return dst
	}
	dst = c.planes.appendTo(dst)
	dst = binary.AppendUvarint(dst, uint64(len(c.ends)))
	lo := uint32(0)
	for _, hi := range c.ends {
		dst = binary.AppendUvarint(dst, uint64(hi-lo))
		lo = hi
	}
	return append(dst, c.text...)
}

// NewColumnEncoder makes an encoder. hints are keys of id makers.
func NewColumnEncoder(hints [][]byte) (*ColumnEncoder, error) {
	l := &layoutV1
	e := &ColumnEncoder{l: l, lastKept: -1, predict: newPredictor(l), cols: make([]colState, len(l.models)), seen: make([]bool, len(l.models)), moved: make([]bool, len(l.models))}
	e.ids.prev = verbatimID
	e.sp, e.was = new(spans), new(spans)
	for _, h := range hints {
		if err := e.Hint(h); err != nil {
			return nil, err
		}
	}
	return e, nil
}

// Hint tells the key of an id maker whose ids may follow.
func (e *ColumnEncoder) Hint(key []byte) error {
	m, err := NewIDMaker(key)
	if err != nil {
		return err
	}
	e.ids.sources = append(e.ids.sources, idSource{IDMaker: m})
	return nil
}

// Verbatim gives how many of the frames so far did not decode strictly and are
// kept as they are.
func (e *ColumnEncoder) Verbatim() int { return e.kept }

// Add appends a frame, which is not retained. It fails only if there are
// MaxRows frames already.
func (e *ColumnEncoder) Add(frame []byte) error {
	if e.frames == MaxRows {
		return fmt.Errorf("record: more than %d frames in one set of columns", MaxRows)
	}
	e.frames++
	e.total += uint64(len(frame))
	s := scanner{b: frame}
	if len(e.last) > 0 {
		s.prev, s.prevSpans, s.id, s.us = e.last, e.was, e.id, e.us
	}
	// A frame that the scanner takes is made of the literals of the table and of
	// the values that it finds, and of nothing else: the decoder joins the same.
	if len(frame) > MaxPart || !s.table(e.l.tab, e.sp) {
		e.kept++
		e.verbatim = binary.AppendUvarint(e.verbatim, uint64(e.frames-1-e.lastKept))
		e.verbatim = binary.AppendUvarint(e.verbatim, uint64(len(frame)))
		e.verbatim = append(e.verbatim, frame...)
		e.lastKept = e.frames - 1
		return nil
	}
	e.id, e.us = s.id, s.us
	for _, k := range e.l.order {
		// A column never met needs nothing where it is absent: its
		// prediction is absent or 0 too, except for mTTFB.
		m := &e.l.models[k]
		if m.kind == mSymbol && (s.again[m.field] || e.sp[m.field].hi == 0 && e.was[m.field].hi == 0) && (m.ctx < 0 || !e.moved[m.ctx]) {
			e.moved[k] = false
			continue // as in the row before, in the same context
		}
		if e.sp[m.field].hi != 0 || e.seen[k] || m.kind == mTTFB {
			e.value(k, m, frame)
		}
	}
	e.rows++
	e.last = append(e.last[:0], frame...)
	e.sp, e.was = e.was, e.sp
	return nil
}

// value codes one value of the row.
func (e *ColumnEncoder) value(k int, m *model, frame []byte) {
	sp := e.sp[m.field]
	raw := frame[sp.lo:sp.hi]
	e.seen[k] = true
	switch m.kind {
	case mSymbol:
		was := e.predict.sym[k]
		e.symbol(k, m, raw)
		e.moved[k] = e.predict.sym[k] != was
		return
	case mID:
		e.ids.add(e.rows, e.id, e.predict.val[e.l.time])
		return
	}
	var v int64
	switch e.l.tab[m.field].typ {
	case tTime:
		v = e.us
	case tBool:
		v = int64(min(len(raw), 1))
	default:
		v = number(raw)
	}
	e.cols[k].planes.set(e.rows, zigzag(v-e.predict.guess(e.l, k)))
	e.predict.learn(e.l, k, v)
}

// symbol codes text.
func (e *ColumnEncoder) symbol(k int, m *model, raw []byte) {
	c := &e.cols[k]
	last := cell(&e.predict.syms[k], e.predict.context(m))
	var sym uint32
	code := uint64(1)
	if len(raw) > 0 {
		if *last != 0 && bytes.Equal(c.entry(*last-1), raw) {
			e.predict.sym[k] = *last
			return
		}
		n, known := c.dict[string(raw)]
		code = uint64(n) + 3
		if !known {
			n, code = c.add(raw), 2
		}
		sym = n + 1
	}
	if sym != *last {
		c.planes.set(e.rows, code)
	}
	*last = sym
	e.predict.sym[k] = sym
}

// Columns gives the columns of the frames so far; the encoder is not used
// after. yield, which may be nil, is called after each column.
func (e *ColumnEncoder) Columns(yield func()) [][]byte {
	cols := make([][]byte, Columns)
	h := []byte{codecVersion, Version}
	h = binary.AppendUvarint(h, uint64(e.frames))
	h = binary.AppendUvarint(h, e.total)
	h = binary.AppendUvarint(h, uint64(len(e.ids.keys)))
	for _, key := range e.ids.keys {
		h = binary.AppendUvarint(h, uint64(len(key)))
		h = append(h, key...)
	}
	cols[colHeader] = h
	if e.kept > 0 {
		cols[colVerbatim] = append(binary.AppendUvarint(nil, uint64(e.kept)), e.verbatim...)
	}
	for k := range e.cols {
		if k == e.l.id {
			cols[colFirst+k] = e.ids.appendTo(nil)
		} else {
			cols[colFirst+k] = e.cols[k].appendTo(nil, e.l.models[k].kind)
		}
		if yield != nil {
			yield()
		}
	}
	return cols
}

// verbatimID is the source of an id that no key made.
const verbatimID = -1

// idSource is an id key and where its counter stands.
type idSource struct {
	*IDMaker
	next  uint64 // counter expected next
	index int    // place in the header plus one, 0 while of no use
}

// idEncoder is the id column under construction.
type idEncoder struct {
	sources            []idSource
	keys               [][]byte // of the sources in use
	prev               int      // source of the last id, or verbatimID
	src, counter, diff planes
	verbatim           []byte
}

// find gives the source of an id, the last one first.
func (e *idEncoder) find(id ID) (src int, counter uint64) {
	if e.prev >= 0 {
		if c, ok := e.sources[e.prev].Counter(id); ok {
			return e.prev, c
		}
	}
	for i := range e.sources {
		if c, ok := e.sources[i].Counter(id); ok {
			return i, c
		}
	}
	return verbatimID, 0
}

func (e *idEncoder) add(row int, id ID, us int64) {
	src, counter := e.find(id)
	if src == verbatimID {
		if e.prev != src {
			e.src.set(row, 1)
		}
		e.prev = src
		e.verbatim = append(e.verbatim, id[:]...)
		return
	}
	s := &e.sources[src]
	if s.index == 0 {
		e.keys = append(e.keys, s.key)
		s.index = len(e.keys)
	}
	if e.prev != src {
		e.src.set(row, uint64(s.index)+1)
	}
	e.prev = src
	e.counter.set(row, zigzag(int64(counter-s.next)))
	e.diff.set(row, zigzag(id.UnixMilli()-us/1000))
	s.next = counter + 1
}

func (e *idEncoder) appendTo(dst []byte) []byte {
	dst = e.diff.appendTo(e.counter.appendTo(e.src.appendTo(dst)))
	return append(dst, e.verbatim...)
}
