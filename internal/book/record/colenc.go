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
	seen     set     // has had a value; before that every row is absent
	always   set     // must be coded in each row that is like the last one
	todo     set     // of the row that is being coded
	fresh    set     // those of todo that have another text than in the last row
	num      []int64 // numbers of this row, by model
	ids      idEncoder
	like     likeness
	sp, was  *spans // of this frame and of like.ref
	moved    []bool // by model: its symbol is another one than in the last row
	id       ID     // of the last row
	us       int64  // its time
	scan     scanner
	second   [secondLength]byte // the last time that was scanned, as text, up to its second
	secondUS int64              // and that second in microseconds, -1 before there is one
}

// secondLength is how much of a time's text, its quote included, says the second.
const secondLength = len(`"0000-00-00T00:00:00`)

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
	e := &ColumnEncoder{l: l, lastKept: -1, predict: newPredictor(l), cols: make([]colState, len(l.models)), num: make([]int64, len(l.models)), moved: make([]bool, len(l.models)), secondUS: -1}
	e.ids.prev, e.ids.aes = verbatimID, new(aesScratch)
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
	if len(frame) > MaxPart {
		e.keep(frame)
		return nil
	}
	if len(e.like.ref) > 0 && e.alike(frame) {
		return nil
	}
	s := scanner{b: frame}
	if k := &e.like; len(k.ref) > 0 {
		s.prev, s.prevSpans, s.id, s.us = k.ref, e.was, k.id, k.us
	}
	// A frame that the scanner takes is made of the literals of the table and of
	// the values that it finds, and of nothing else: the decoder joins the same.
	if !s.table(e.l.tab, e.sp) {
		e.keep(frame)
		return nil
	}
	e.row(&s)
	return nil
}

// keep takes a frame as it is.
func (e *ColumnEncoder) keep(frame []byte) {
	e.kept++
	e.verbatim = binary.AppendUvarint(e.verbatim, uint64(e.frames-1-e.lastKept))
	e.verbatim = binary.AppendUvarint(e.verbatim, uint64(len(frame)))
	e.verbatim = append(e.verbatim, frame...)
	e.lastKept = e.frames - 1
}

// row codes a frame that was scanned value by value.
func (e *ColumnEncoder) row(s *scanner) {
	e.id, e.us = s.id, s.us
	e.always = set{}
	for i, k := range e.l.order {
		m := &e.l.models[k]
		here := e.sp[m.field].hi != 0
		if here {
			e.seen.add(i)
		}
		// A column never met needs nothing where it is absent: its
		// prediction is absent or 0 too, except for mTTFB.
		known := e.seen.has(i)
		switch m.kind {
		case mSymbol:
			same := s.again[m.field] && !e.like.differ[m.field] || !here && e.was[m.field].hi == 0
			if known && (!same || m.ctx >= 0 && e.moved[m.ctx]) {
				e.moved[k] = e.symbol(k, m, s.b[e.sp[m.field].lo:e.sp[m.field].hi])
			} else {
				e.moved[k] = false // as in the row before, in the same context
			}
			continue
		case mLast:
		case mPlain:
			if here {
				e.always.add(i)
			}
		case mTTFB:
			known = true
			e.always.add(i)
		default:
			if known {
				e.always.add(i)
			}
		}
		if known {
			e.num[k] = e.parsed(m, s.b)
			e.number(k, m)
		}
	}
	e.rows++
	e.like.begin(e.l, s.b, e.sp, s.id, s.us)
	e.sp, e.was = e.was, e.sp
}

// parsed gives the number that was scanned.
func (e *ColumnEncoder) parsed(m *model, frame []byte) int64 {
	sp := e.sp[m.field]
	switch e.l.tab[m.field].typ {
	case tID:
		return 0
	case tTime:
		return e.us
	case tBool:
		return int64(min(sp.hi-sp.lo, 1))
	}
	return number(frame[sp.lo:sp.hi])
}

// alike codes a frame that has the values that the last row has, present and
// absent. It reports false if the frame has others, or is none.
func (e *ColumnEncoder) alike(frame []byte) bool {
	s, k := &e.scan, &e.like
	s.b, s.pos, s.what = frame, 0, ""
	e.todo, e.fresh = e.always, set{}
	from := int32(0)
	for n := 0; ; n++ {
		if !k.gap(s, from, n) {
			return false
		}
		if n == len(k.loose) {
			break
		}
		v := &k.values[k.loose[n]]
		from = v.hi
		if !e.looseValue(s, v) {
			return false
		}
	}
	e.id, e.us = s.id, s.us
	e.num[e.l.time] = s.us
	for w := range e.todo {
		for e.todo[w] != 0 {
			i := e.todo.take(w)
			e.again(e.l.order[i], e.fresh.has(i), frame)
		}
	}
	e.rows++
	return true
}

// again codes a value of a frame that is alike.
func (e *ColumnEncoder) again(k int, fresh bool, frame []byte) {
	m := &e.l.models[k]
	moved := false
	switch {
	case m.kind != mSymbol:
		e.number(k, m)
	case fresh:
		sp := e.sp[m.field]
		moved = e.symbol(k, m, frame[sp.lo:sp.hi])
	default: // the same text in another context
		last, sym := cell(&e.predict.syms[k], e.predict.context(m)), e.predict.sym[k]
		if sym != *last {
			e.cols[k].planes.set(e.rows, symbolCode(sym))
			*last = sym
		}
	}
	if moved {
		e.todo.addBoth(&e.l.heirs[k], &e.seen)
	}
}

// looseValue scans a value that may differ from the last row's and notes it if
// it does.
func (e *ColumnEncoder) looseValue(s *scanner, v *refValue) bool {
	lo, i := s.pos, e.l.place[v.model]
	switch {
	case v.text:
		// Text tells its own end, a status does not.
		was := e.cols[v.model].entry(e.predict.sym[v.model] - 1)
		if v.typ != tSmall && len(s.b)-lo >= len(was) && string(s.b[lo:lo+len(was)]) == string(was) {
			s.pos += len(was)
			return true
		}
		if !s.value(v.typ) {
			return false
		}
		e.sp[v.row] = span{int32(lo), int32(s.pos)}
		e.fresh.add(i)
	case v.typ == tInt || v.typ == tSmall:
		n, ok := s.integer()
		if !ok || n == 0 || v.typ == tSmall && int64(int(n)) != n {
			return false
		}
		e.num[v.model] = n
	case v.typ == tTime:
		return e.time(s)
	default:
		return s.value(v.typ)
	}
	e.todo.add(i)
	return true
}

// time scans a time. Its second is mostly that of the one before.
func (e *ColumnEncoder) time(s *scanner) bool {
	const size = secondLength + len(`.000000Z"`)
	if len(s.b)-s.pos < size {
		return false
	}
	b := s.b[s.pos : s.pos+size]
	if us, ok := microseconds(b[secondLength:]); ok && e.secondUS >= 0 && string(b[:secondLength]) == string(e.second[:]) {
		s.us = e.secondUS + us
		s.pos += size
		return true
	}
	if !s.value(tTime) {
		return false
	}
	copy(e.second[:], b)
	e.secondUS = s.us - s.us%usPerSecond
	return true
}

// microseconds reads a fraction of six digits, with what stands around it.
func microseconds(b []byte) (us int64, ok bool) {
	if b[0] != '.' || b[7] != 'Z' || b[8] != '"' {
		return 0, false
	}
	for _, c := range b[1:7] {
		if c-'0' > 9 {
			return 0, false
		}
		us = us*10 + int64(c-'0')
	}
	return us, true
}

// number codes a number, or the id.
func (e *ColumnEncoder) number(k int, m *model) {
	if m.kind == mID {
		e.ids.add(e.rows, e.id, e.predict.val[e.l.time])
		return
	}
	v := e.num[k]
	e.cols[k].planes.set(e.rows, zigzag(v-e.predict.guess(e.l, k)))
	e.predict.learn(e.l, k, v)
}

// symbol codes text and tells whether it is another one than in the row before.
func (e *ColumnEncoder) symbol(k int, m *model, raw []byte) (moved bool) {
	c := &e.cols[k]
	last := cell(&e.predict.syms[k], e.predict.context(m))
	was := e.predict.sym[k]
	var sym uint32
	if len(raw) > 0 {
		if *last != 0 && bytes.Equal(c.entry(*last-1), raw) {
			e.predict.sym[k] = *last
			return *last != was
		}
		n, known := c.dict[string(raw)]
		if !known {
			*last = c.add(raw) + 1
			c.planes.set(e.rows, 2)
			e.predict.sym[k] = *last
			return true
		}
		sym = n + 1
	}
	if sym != *last {
		c.planes.set(e.rows, symbolCode(sym))
	}
	*last = sym
	e.predict.sym[k] = sym
	return sym != was
}

// symbolCode is the code of a symbol that was met before, or of none.
func symbolCode(sym uint32) uint64 {
	if sym == 0 {
		return 1
	}
	return uint64(sym) + 2
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
	aes                *aesScratch
	sources            []idSource
	keys               [][]byte // of the sources in use
	prev               int      // source of the last id, or verbatimID
	src, counter, diff planes
	verbatim           []byte
}

// find gives the source of an id, the last one first.
func (e *idEncoder) find(id ID) (src int, counter uint64) {
	if e.prev >= 0 {
		if c, ok := e.sources[e.prev].counter(e.aes, id); ok {
			return e.prev, c
		}
	}
	for i := range e.sources {
		if c, ok := e.sources[i].counter(e.aes, id); ok {
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
