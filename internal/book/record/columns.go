package record

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// The column form, codec version 1. A segment's frames are turned into a fixed
// number of columns, which the caller compresses and seals one by one. Column
// i always holds the same thing:
//
//	0      header: codec version (1), schema version (1), uvarint number of
//	       frames, uvarint sum of their lengths, uvarint number of id keys,
//	       each as uvarint length and bytes
//	1      frames kept verbatim: uvarint count, then each as uvarint distance
//	       from the one before (from -1 at first), uvarint length, bytes
//	2 + k  the k-th value of the frame table, in schema order, "v" left out
//
// A frame that is kept verbatim has no row in the other columns. Every number
// that a column has per row is predicted from what precedes it, and the
// difference is stored in planes: one byte gives the number of planes, then
// each as uvarint length and bytes, lowest byte first; zeros at the end of a
// plane are left out. Columns without a value are empty.
//
//   - Integers, booleans and the time: zig-zag difference from the prediction.
//   - Strings, lists and the two statuses: the JSON text of the value is a
//     symbol. 0: as the last time in this context; 1: absent; 2: new, the next
//     of the dictionary; 3 + n: entry n of the dictionary. In a context that
//     was not met before, the last symbol is absent. After the planes:
//     uvarint number of entries, their uvarint lengths, their bytes.
//   - The id: planes of its source (0: as before, 1: verbatim, 2 + n: made by
//     id key n; before the first it is verbatim), planes of the counter
//     (zig-zag distance from one after the last of that key), planes of the
//     milliseconds (zig-zag distance from the time), then 16 bytes for each
//     verbatim id.
//
// What predicts what is in the table models. The form is frozen with version
// 1: another prediction is another codec version.
const codecVersion = 1

const (
	colHeader   = 0
	colVerbatim = 1
	colFirst    = 2
)

// Columns is the number of columns that EncodeColumns returns.
var Columns = colFirst + len(layoutV1.models)

const (
	// MaxRows is the largest number of frames in one set of columns.
	MaxRows = 1 << 20

	// defaultMaxBytes bounds the frames that DecodeColumns gives back.
	defaultMaxBytes = 1 << 30

	chunkSize  = 1 << 20 // decoded frames share pieces of this size
	roomyFrame = 4 << 10 // room in which almost every frame finds place
)

// Codec turns frames into columns and back. The zero value is ready; a Codec
// has no state and may be used concurrently.
type Codec struct {
	// MaxBytes bounds the sum of the lengths of the frames that
	// DecodeColumns may give back, so that hostile columns cannot ask for
	// any amount of memory. 0 means 1 GiB.
	MaxBytes int
	// Yield, if not nil, is called now and then while DecodeColumns works.
	Yield func()
}

// EncodeColumns turns frames into Columns columns. hints are the keys of the
// id makers that made the frames' ids; the ones that are of use go into column
// 0, so the columns must be kept as secret as the keys. It fails only on a
// hint that is no key or on more than MaxRows frames.
func (c Codec) EncodeColumns(frames [][]byte, hints [][]byte) ([][]byte, error) {
	e, err := NewColumnEncoder(hints)
	if err != nil {
		return nil, err
	}
	for _, f := range frames {
		if err := e.Add(f); err != nil {
			return nil, err
		}
	}
	return e.Columns(nil), nil
}

// DecodeColumns gives back the n frames that were encoded, byte for byte. It
// is safe on hostile bytes: memory stays within a small multiple of MaxBytes
// and of the columns. The frames share memory; their capacity is cut, so they
// may be appended to.
func (c Codec) DecodeColumns(cols [][]byte, n int) ([][]byte, error) {
	d, err := NewColumnDecoder(cols, n)
	if err != nil {
		return nil, err
	}
	limit := c.MaxBytes
	if limit == 0 {
		limit = defaultMaxBytes
	}
	if d.total > uint64(limit) {
		return nil, fmt.Errorf("record: columns hold %d bytes of frames: more than the limit of %d", d.total, limit)
	}
	frames := make([][]byte, 0, n)
	var chunk []byte
	for range n {
		if left := d.total - d.used; uint64(cap(chunk)-len(chunk)) < min(left, roomyFrame) {
			chunk = make([]byte, 0, min(left, chunkSize))
		}
		lo := len(chunk)
		if chunk, err = d.Next(chunk); err != nil {
			return nil, err
		}
		frames = append(frames, chunk[lo:len(chunk):len(chunk)])
		if c.Yield != nil && len(frames)%16 == 0 {
			c.Yield()
		}
	}
	return frames, nil
}

// planes holds one unsigned number per row, split into bytes of equal weight.
type planes struct {
	n int // planes in use
	p [8][]byte
}

// set notes the value of a row; rows rise and a row not set is 0.
func (p *planes) set(row int, v uint64) {
	for k := 0; v != 0; k, v = k+1, v>>8 {
		if byte(v) != 0 {
			b := p.p[k]
			for len(b) < row {
				b = append(b, 0)
			}
			p.p[k] = append(b, byte(v))
			p.n = max(p.n, k+1)
		}
	}
}

func (p *planes) get(row int) uint64 {
	if p.n == 0 || p.n == 1 && row >= len(p.p[0]) {
		return 0
	}
	var v uint64
	for k := range p.n {
		if b := p.p[k]; row < len(b) {
			v |= uint64(b[row]) << (8 * k)
		}
	}
	return v
}

func (p *planes) appendTo(dst []byte) []byte {
	dst = append(dst, byte(p.n))
	for _, b := range p.p[:p.n] {
		dst = binary.AppendUvarint(dst, uint64(len(b)))
		dst = append(dst, b...)
	}
	return dst
}

var errColumn = errors.New("record: column is damaged")

// colReader reads the parts of a column. After an error it reads zeros.
type colReader struct {
	b   []byte
	bad bool
}

func (r *colReader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad = true
		r.b = nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// take gives the next n bytes, which alias the column.
func (r *colReader) take(n uint64) []byte {
	if n > uint64(len(r.b)) {
		r.bad = true
		r.b = nil
		return nil
	}
	v := r.b[:n:n]
	r.b = r.b[n:]
	return v
}

func (r *colReader) byte() byte {
	v := r.take(1)
	if len(v) == 0 {
		return 0
	}
	return v[0]
}

func (r *colReader) planes(rows int) (p planes) {
	n := int(r.byte())
	if n > len(p.p) {
		r.bad = true
		return p
	}
	for k := range n {
		size := r.uvarint()
		if size > uint64(rows) {
			r.bad = true
			return planes{}
		}
		p.p[k] = r.take(size)
	}
	p.n = n
	return p
}

func zigzag(v int64) uint64   { return uint64(v)<<1 ^ uint64(v>>63) }
func unzigzag(u uint64) int64 { return int64(u>>1) ^ -int64(u&1) }

// cell gives the place for key k, growing the slice with zeros.
func cell[T any](s *[]T, k uint32) *T {
	for uint32(len(*s)) <= k {
		var zero T
		*s = append(*s, zero)
	}
	return &(*s)[k]
}
