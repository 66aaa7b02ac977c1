package record

import (
	"errors"
	"fmt"
	"strconv"
)

// joiner puts scanned or decoded values together to a frame.
type joiner struct {
	dst   []byte
	marks [4]int
	depth int
}

func (j *joiner) open(f *field) {
	j.marks[j.depth] = len(j.dst)
	j.depth++
	j.dst = appendKey(j.dst, f.lit)
}

// close ends an object, or takes it back if it is empty.
func (j *joiner) close() {
	j.depth--
	if j.dst[len(j.dst)-1] == '{' {
		j.dst = j.dst[:j.marks[j.depth]]
		return
	}
	j.dst = append(j.dst, '}')
}

// ColumnDecoder gives back frames from columns one by one. It belongs to one
// goroutine and reads from the columns as long as it is used.
type ColumnDecoder struct {
	l        *layout
	n, next  int // frames in all, and given back
	row      int // rows given back
	total    uint64
	used     uint64
	keptLeft uint64
	keptAt   uint64 // frame at which the next verbatim one stands
	kept     colReader
	predict  predictor
	cols     []colView
	join     []int // rows of the table that can be written
	ids      idDecoder
	id       rowID // of the row that was decoded last

	// Rows differ from the one before in few places.
	always set  // must be decoded in each row
	busy   set  // those that still have something in their columns
	live   set  // those that can hold a value at all
	dirty  set  // those that changed since the row that was joined last
	shape  bool // a value came or went since then

	// The row that was joined last, as a frame. Where the next one has the same
	// values, present and absent, those that changed are changed in it.
	ref   []byte // empty before there is one
	at    []int  // where each row of join begins in ref, and where the last one ends
	rowOf []int  // by place: which of join it is
	sec   int64  // the second that stands in ref, -1 if it is not known
	text  []byte // scratch
}

// colView is a column that is being read.
type colView struct {
	planes planes
	rows   int // behind the last one that has more than 0 in planes
	ends   []uint32
	text   []byte // entries, each as `,"key":value`
	fresh  uint32 // entries of the dictionary met so far
}

func (c *colView) entry(n uint32) []byte {
	if n == 0 {
		return c.text[:c.ends[0]]
	}
	return c.text[c.ends[n-1]:c.ends[n]]
}

// rowID is the id of a row before it is made, which takes longer than the rest
// of the row and is asked for only if the row is joined.
type rowID struct {
	by      *IDMaker // nil: id stands as it is
	ms      int64
	counter uint64
	id      ID
}

func (r *rowID) make(s *aesScratch) ID {
	if r.by == nil {
		return r.id
	}
	return r.by.at(s, r.ms, r.counter)
}

// idDecoder is the id column that is being read.
type idDecoder struct {
	aes                *aesScratch
	sources            []idSource
	prev               int
	src, counter, diff planes
	verbatim           []byte
}

// NewColumnDecoder opens the columns of n frames.
func NewColumnDecoder(cols [][]byte, n int) (*ColumnDecoder, error) {
	if len(cols) != Columns {
		return nil, fmt.Errorf("record: %d columns: want %d", len(cols), Columns)
	}
	if n < 0 || n > MaxRows {
		return nil, fmt.Errorf("record: columns of %d frames: want 0 to %d", n, MaxRows)
	}
	l := &layoutV1
	d := &ColumnDecoder{l: l, n: n, predict: newPredictor(l), cols: make([]colView, len(l.models)), sec: -1}
	d.ids.aes = new(aesScratch)
	if err := d.header(cols[colHeader]); err != nil {
		return nil, err
	}
	rows, err := d.openVerbatim(cols[colVerbatim])
	if err != nil {
		return nil, err
	}
	for k := range l.models {
		if err := d.openColumn(k, cols[colFirst+k], rows); err != nil {
			return nil, fmt.Errorf("%w: column %d (%s)", err, colFirst+k, l.tab[l.models[k].field].path)
		}
	}
	d.plan(cols)
	return d, nil
}

func (d *ColumnDecoder) header(b []byte) error {
	r := colReader{b: b}
	if v := r.byte(); v != codecVersion {
		return fmt.Errorf("record: columns of codec version %d: this build reads %d", v, codecVersion)
	}
	if v := r.byte(); v != Version {
		return fmt.Errorf("record: columns of schema version %d: this build reads %d", v, Version)
	}
	if n := r.uvarint(); n != uint64(d.n) && !r.bad {
		return fmt.Errorf("record: columns hold %d frames, not %d", n, d.n)
	}
	d.total = r.uvarint()
	d.ids.prev = verbatimID
	for i := r.uvarint(); i > 0 && !r.bad; i-- {
		m, err := NewIDMaker(r.take(r.uvarint()))
		if err != nil {
			return fmt.Errorf("%w: header: %w", errColumn, err)
		}
		d.ids.sources = append(d.ids.sources, idSource{IDMaker: m})
	}
	if r.bad || len(r.b) > 0 {
		return fmt.Errorf("%w: header", errColumn)
	}
	return nil
}

// openVerbatim gives the number of frames that are not verbatim.
func (d *ColumnDecoder) openVerbatim(b []byte) (rows int, err error) {
	if len(b) == 0 {
		return d.n, nil
	}
	d.kept.b = b
	d.keptLeft = d.kept.uvarint()
	if d.keptLeft > uint64(d.n) || d.keptLeft == 0 {
		return 0, fmt.Errorf("%w: verbatim frames", errColumn)
	}
	d.keptAt = d.kept.uvarint() - 1
	if d.kept.bad {
		return 0, fmt.Errorf("%w: verbatim frames", errColumn)
	}
	return d.n - int(d.keptLeft), nil
}

func (d *ColumnDecoder) openColumn(k int, b []byte, rows int) error {
	if len(b) == 0 {
		if k == d.l.id && rows > 0 {
			return errColumn
		}
		return nil
	}
	r := colReader{b: b}
	if k == d.l.id {
		d.ids.src, d.ids.counter, d.ids.diff = r.planes(rows), r.planes(rows), r.planes(rows)
		d.ids.verbatim = r.b
		if r.bad {
			return errColumn
		}
		return nil
	}
	c := &d.cols[k]
	c.planes = r.planes(rows)
	for _, p := range c.planes.p {
		c.rows = max(c.rows, len(p))
	}
	if d.l.models[k].kind == mSymbol {
		n := r.uvarint()
		if n > uint64(len(r.b)) {
			return errColumn
		}
		if !c.dictionary(&r, n, d.l.tab[d.l.models[k].field].lit) {
			return errColumn
		}
	}
	if r.bad || len(r.b) > 0 {
		return errColumn
	}
	return nil
}

// dictionary reads n entries. Each is kept as it will be written, after a
// comma and its key.
func (c *colView) dictionary(r *colReader, n uint64, lit string) bool {
	sizes := make([]uint32, 0, n)
	sum := uint64(0)
	for range n {
		size := r.uvarint()
		sum += size
		if size == 0 || size > MaxPart || sum > uint64(len(r.b)) {
			return false
		}
		sizes = append(sizes, uint32(size))
	}
	c.text = make([]byte, 0, int(sum)+len(sizes)*(len(lit)+1))
	for i, size := range sizes {
		c.text = append(append(c.text, ','), lit...)
		c.text = append(c.text, r.take(uint64(size))...)
		sizes[i] = uint32(len(c.text))
	}
	c.ends = sizes
	return true
}

// plan finds out which models and rows of the table can hold a value at all.
func (d *ColumnDecoder) plan(cols [][]byte) {
	for i, k := range d.l.order {
		kind := d.l.models[k].kind
		here := len(cols[colFirst+k]) > 0 || kind == mTime || kind == mID ||
			kind == mTTFB && d.live.has(d.l.place[d.l.upstream])
		if !here {
			continue
		}
		d.live.add(i)
		switch kind {
		case mSymbol, mLast, mPlain:
			d.busy.add(i)
		default:
			d.always.add(i)
		}
	}
	d.rowOf = make([]int, len(d.l.order))
	for i := range d.l.tab {
		k := d.l.byRow[i]
		if k >= 0 && !d.live.has(d.l.place[k]) {
			continue
		}
		if k >= 0 {
			d.rowOf[d.l.place[k]] = len(d.join)
		}
		d.join = append(d.join, i)
	}
	d.at = make([]int, len(d.join)+1)
}

var errNoMore = errors.New("record: no more frames in these columns")

// Next appends the next frame to dst.
func (d *ColumnDecoder) Next(dst []byte) ([]byte, error) {
	if d.next == d.n {
		return dst, errNoMore
	}
	start := len(dst)
	var err error
	if d.keptLeft > 0 && d.keptAt == uint64(d.next) {
		dst, err = d.nextKept(dst)
	} else {
		dst, err = d.nextRow(dst)
		if err == nil && len(dst)-start > MaxPart {
			err = errColumn
		}
	}
	if err != nil {
		return dst[:start], fmt.Errorf("%w: frame %d", err, d.next)
	}
	d.next++
	d.used += uint64(len(dst) - start)
	if d.used > d.total || d.next == d.n && (d.used != d.total || d.keptLeft > 0) {
		return dst[:start], fmt.Errorf("%w: frames do not add up to %d bytes", errColumn, d.total)
	}
	return dst, nil
}

func (d *ColumnDecoder) nextKept(dst []byte) ([]byte, error) {
	size := d.kept.uvarint()
	dst = append(dst, d.kept.take(size)...)
	d.keptLeft--
	if d.keptLeft > 0 {
		step := d.kept.uvarint()
		if step == 0 || step > uint64(d.n) {
			return dst, errColumn
		}
		d.keptAt += step
	} else if len(d.kept.b) > 0 {
		return dst, errColumn
	}
	if d.kept.bad {
		return dst, errColumn
	}
	return dst, nil
}

func (d *ColumnDecoder) nextRow(dst []byte) ([]byte, error) {
	if err := d.decodeRow(); err != nil {
		return dst, err
	}
	return d.joinRow(dst), nil
}

// decodeRow decodes the values of the next row. Those whose columns hold no more
// and whose context is that of the row before are as they were.
func (d *ColumnDecoder) decodeRow() error {
	todo := d.always
	todo.addBoth(&d.busy, &d.live)
	for w := range todo {
		for todo[w] != 0 {
			i := todo.take(w)
			moved, ok := d.decode(i, d.l.order[i])
			if !ok {
				return errColumn
			}
			if moved {
				todo.addBoth(&d.l.heirs[d.l.order[i]], &d.live)
			}
		}
	}
	d.row++
	return nil
}

// decode decodes the value of model k, at place i, and tells whether it is text that is
// another one than in the row before.
func (d *ColumnDecoder) decode(i, k int) (moved, ok bool) {
	m := &d.l.models[k]
	c := &d.cols[k]
	switch m.kind {
	case mSymbol:
		was := d.predict.sym[k]
		if !d.symbol(k, m, c, c.planes.get(d.row)) {
			return false, false
		}
		now := d.predict.sym[k]
		if moved = now != was; moved {
			d.touch(i, was == 0 || now == 0)
		}
	case mID:
		if d.id, ok = d.ids.next(d.row, d.predict.val[d.l.time]); !ok {
			return false, false
		}
		d.touch(i, false)
		return false, true
	default:
		was := d.predict.val[k]
		v := d.predict.guess(d.l, k) + unzigzag(c.planes.get(d.row))
		d.predict.learn(d.l, k, v)
		if v != was {
			d.touch(i, (was == 0 || v == 0) && m.kind != mTime)
		}
		if m.kind == mPlain && v != 0 {
			return false, true // the next one is another one, or 0
		}
	}
	if d.row >= c.rows {
		d.busy.remove(i)
	}
	return moved, true
}

// touch notes that the model at place i has another value than in the row before.
func (d *ColumnDecoder) touch(i int, cameOrWent bool) {
	d.dirty.add(i)
	d.shape = d.shape || cameOrWent
}

// joinRow appends the row that was decoded last as a frame.
func (d *ColumnDecoder) joinRow(dst []byte) []byte {
	if d.shape || len(d.ref) == 0 {
		d.ref = d.joinAnew(d.ref[:0])
		d.shape, d.sec = false, -1
	} else {
		for w := range d.dirty {
			for d.dirty[w] != 0 {
				i := d.dirty.take(w)
				d.rewrite(d.rowOf[i], d.l.order[i])
			}
		}
	}
	d.dirty = set{}
	return append(dst, d.ref...)
}

// rewrite changes the value of model k, which is the n-th of join, in ref, where
// it has another one.
func (d *ColumnDecoder) rewrite(n, k int) {
	f := &d.l.tab[d.join[n]]
	lo, hi := d.at[n], d.at[n+1]
	switch {
	case d.l.models[k].kind == mSymbol:
		e := d.cols[k].entry(d.predict.sym[k] - 1)
		if d.ref[lo] != ',' {
			e = e[1:]
		}
		d.replace(n, lo, hi, e)
	case f.typ == tID:
		putID(d.ref[hi-1-idLength:hi-1], d.id.make(d.ids.aes))
	case f.typ == tTime:
		d.putTime(d.ref[hi-1-timeLength:hi-1], d.predict.val[k])
	case f.typ == tBool: // true, as before
	default:
		lo += len(f.lit)
		if d.ref[d.at[n]] == ',' {
			lo++
		}
		d.text = strconv.AppendInt(d.text[:0], d.predict.val[k], 10)
		d.replace(n, lo, hi, d.text)
	}
}

// replace puts text in the place of ref[lo:hi], which ends the n-th of join.
func (d *ColumnDecoder) replace(n, lo, hi int, text []byte) {
	if more := len(text) - (hi - lo); more != 0 {
		size := len(d.ref)
		if more > 0 {
			d.ref = append(d.ref, text[:more]...)
		}
		copy(d.ref[hi+more:], d.ref[hi:size])
		d.ref = d.ref[:size+more]
		for i := n + 1; i < len(d.at); i++ {
			d.at[i] += more
		}
	}
	copy(d.ref[lo:], text)
}

// timeLength is the length of a time as text.
const timeLength = len("0000-00-00T00:00:00.000000Z")

// putTime writes a time over the one in ref. The second is mostly the same.
func (d *ColumnDecoder) putTime(b []byte, us int64) {
	sec := us / usPerSecond
	if us < 0 || us > maxTime || sec != d.sec {
		appendTime(b[:0], us)
		d.sec = -1
		if us >= 0 && us <= maxTime {
			d.sec = sec
		}
		return
	}
	us -= sec * usPerSecond
	append2(append2(append2(b[len(b)-7:len(b)-7], us/10000), us/100%100), us%100)
}

// joinAnew puts a frame together value by value.
func (d *ColumnDecoder) joinAnew(dst []byte) []byte {
	start := len(dst)
	j := joiner{dst: append(dst, '{')}
	for n, i := range d.join {
		d.at[n] = len(j.dst) - start
		f := &d.l.tab[i]
		switch f.typ {
		case tOpen:
			j.open(f)
		case tClose:
			j.close()
		case tVersion:
			j.dst = append(appendKey(j.dst, f.lit), '0'+Version)
		default:
			d.write(&j, f, d.l.byRow[i])
		}
	}
	d.at[len(d.join)] = len(j.dst) - start
	return append(j.dst, '}')
}

// symbol decodes text.
func (d *ColumnDecoder) symbol(k int, m *model, c *colView, code uint64) bool {
	last := cell(&d.predict.syms[k], d.predict.context(m))
	switch {
	case code == 0:
	case code == 1:
		*last = 0
	case code == 2 && int(c.fresh) < len(c.ends):
		c.fresh++
		*last = c.fresh
	case code >= 3 && code-3 < uint64(len(c.ends)):
		*last = uint32(code-3) + 1
	default:
		return false
	}
	d.predict.sym[k] = *last
	return true
}

// write puts the decoded value of model k into the frame.
func (d *ColumnDecoder) write(j *joiner, f *field, k int) {
	switch d.l.models[k].kind {
	case mSymbol:
		if sym := d.predict.sym[k]; sym != 0 {
			e := d.cols[k].entry(sym - 1)
			if j.dst[len(j.dst)-1] == '{' {
				e = e[1:]
			}
			j.dst = append(j.dst, e...)
		}
		return
	case mID:
		j.dst = append(appendKey(j.dst, f.lit), '"')
		j.dst = append(d.id.make(d.ids.aes).AppendText(j.dst), '"')
		return
	}
	v := d.predict.val[k]
	switch {
	case f.typ == tTime:
		j.dst = append(appendKey(j.dst, f.lit), '"')
		j.dst = append(appendTime(j.dst, v), '"')
	case v == 0:
	case f.typ == tBool:
		j.dst = append(appendKey(j.dst, f.lit), "true"...)
	default:
		j.dst = strconv.AppendInt(appendKey(j.dst, f.lit), v, 10)
	}
}

// next gives the id of a row.
func (d *idDecoder) next(row int, us int64) (id rowID, ok bool) {
	switch code := d.src.get(row); {
	case code == 0:
	case code == 1:
		d.prev = verbatimID
	case code-2 < uint64(len(d.sources)):
		d.prev = int(code - 2)
	default:
		return id, false
	}
	if d.prev == verbatimID {
		n := copy(id.id[:], d.verbatim)
		d.verbatim = d.verbatim[n:]
		return id, n == len(id.id)
	}
	s := &d.sources[d.prev]
	counter := s.next + uint64(unzigzag(d.counter.get(row)))
	s.next = counter + 1
	return rowID{by: s.IDMaker, ms: unzigzag(d.diff.get(row)) + us/1000, counter: counter}, true
}
