package record

import (
	"fmt"
	"slices"
)

// Row is one row of columns whose frame has not been put together: what a
// reader that wants few of many frames looks at. It is valid until the next row.
type Row struct {
	d  *ColumnDecoder
	at []int // models of the fields asked for
}

// RowField says what a row can tell of a field of the frame.
type RowField uint8

// What a row tells of a field.
const (
	RowUnknown RowField = iota // nothing: put the frame together
	RowText                    // Symbol and Text
	RowNumber                  // Number; of a boolean 0 or 1, of the time microseconds
)

// RowFieldOf tells how a field, named by its path ("authn.issuer"), can be had
// from a row.
func RowFieldOf(path string) RowField {
	k := modelOf(path)
	switch {
	case k < 0 || layoutV1.models[k].kind == mID:
		return RowUnknown
	case layoutV1.models[k].kind == mSymbol:
		return RowText
	}
	return RowNumber
}

func modelOf(path string) int {
	l := &layoutV1
	return slices.IndexFunc(l.models, func(m model) bool { return l.tab[m.field].path == path })
}

// row makes the view of rows that shows the given fields.
func (d *ColumnDecoder) rows(paths []string) (*Row, error) {
	r := &Row{d: d}
	for _, p := range paths {
		k := modelOf(p)
		if k < 0 {
			return nil, fmt.Errorf("record: no column holds %q", p)
		}
		r.at = append(r.at, k)
	}
	return r, nil
}

// Time is the record's time in microseconds since the Unix epoch.
func (r *Row) Time() int64 { return r.d.predict.val[r.d.l.time] }

// Number is the value of the i-th field that was asked for.
func (r *Row) Number(i int) int64 { return r.d.predict.val[r.at[i]] }

// Symbol names the text of the i-th field: within one set of columns equal
// texts have equal symbols, and 0 is absent.
func (r *Row) Symbol(i int) uint32 { return r.d.predict.sym[r.at[i]] }

// Text is the JSON text of the i-th field, nil if it is absent.
func (r *Row) Text(i int) []byte {
	k := r.at[i]
	sym := r.d.predict.sym[k]
	if sym == 0 {
		return nil
	}
	// Entries are kept as they are written, after a comma and their key.
	return r.d.cols[k].entry(sym - 1)[1+len(r.d.l.tab[r.d.l.models[k].field].lit):]
}

// AppendFrame appends the frame of the row.
func (r *Row) AppendFrame(dst []byte) []byte { return r.d.joinRow(dst) }

// SieveColumns gives back those of the n frames whose row keep wants, and those
// that have no row; the others are nil. Each call of SieveColumns makes a Row of
// its own. Otherwise it is DecodeColumns, but that the lengths of the frames
// left out cannot be checked.
func (c Codec) SieveColumns(cols [][]byte, n int, fields []string, keep func(*Row) bool) ([][]byte, error) {
	d, err := NewColumnDecoder(cols, n)
	if err != nil {
		return nil, err
	}
	row, err := d.rows(fields)
	if err != nil {
		return nil, err
	}
	limit := c.MaxBytes
	if limit == 0 {
		limit = defaultMaxBytes
	}
	frames := make([][]byte, n)
	var chunk []byte
	for i := range frames {
		if len(chunk) > chunkSize {
			chunk = nil
		}
		lo := len(chunk)
		if d.keptLeft > 0 && d.keptAt == uint64(i) {
			chunk, err = d.nextKept(chunk)
		} else if err = d.decodeRow(); err == nil && keep(row) {
			chunk = d.joinRow(chunk)
		}
		if err == nil && len(chunk)-lo > MaxPart {
			err = errColumn
		}
		if err != nil {
			return nil, fmt.Errorf("%w: frame %d", err, i)
		}
		if limit -= len(chunk) - lo; limit < 0 {
			return nil, fmt.Errorf("record: columns hold more than %d bytes of frames", c.MaxBytes)
		}
		if len(chunk) > lo {
			frames[i] = chunk[lo:len(chunk):len(chunk)]
		}
	}
	return frames, nil
}
