package record

import (
	"fmt"
	"hash/maphash"
	"slices"
)

// Bounds of what a Picker remembers so that it need not be made again: texts of
// at most pickLongest bytes, and lists of them.
const (
	pickTexts   = 1 << 14
	pickWays    = 4 // places in which a text may be
	pickLists   = 1 << 8
	pickLongest = 256
)

// Picker decodes a few fields of many frames. It is as strict as Decode, and what a
// frame has in common with the one before costs little; text that came lately is
// not made again. It holds at most about 5 MiB, mostly far less. A Picker belongs
// to one goroutine.
type Picker struct {
	rows    []picked
	rec     Record
	last    []byte // the frame before, empty if it was not well-formed
	sp, was *spans // of this frame and the one before
	id      ID     // of the frame before
	us      int64

	seed  maphash.Seed
	texts []string
	next  uint // a place that is given to another text next, counted up
	lists []pickedList
}

// picked is a field that was asked for. Of the places of the value, which are in
// the Picker's record, the one for its type is set.
type picked struct {
	row   int
	text  *string
	num   *int64
	small *int
	flag  *bool
	list  *[]string
	id    *ID
	time  *int64
}

// pickedList is a list and what stood for it in a frame.
type pickedList struct {
	text string
	list []string
}

// IsFramePath reports whether a field of the frame has this path, such as "id" or
// "authn.issuer".
func IsFramePath(path string) bool { return frameRow(path) >= 0 }

func frameRow(path string) int {
	return slices.IndexFunc(frameV1, func(f field) bool { return f.path == path && f.typ != tVersion && path != "" })
}

// FramePaths lists the paths of all fields of the frame but its version, in the
// order of the schema. The slice is the caller's.
func FramePaths() (out []string) {
	for i := range frameV1 {
		if f := &frameV1[i]; f.path != "" && f.typ != tVersion {
			out = append(out, f.path)
		}
	}
	return out
}

// NewPicker makes a Picker of the fields with the given paths.
func NewPicker(paths []string) (*Picker, error) {
	p := &Picker{sp: new(spans), was: new(spans), seed: maphash.MakeSeed(), texts: make([]string, pickTexts), lists: make([]pickedList, pickLists)}
	for _, path := range paths {
		i := frameRow(path)
		if i < 0 {
			return nil, fmt.Errorf("record: no field of a frame is %q", path)
		}
		if !slices.ContainsFunc(p.rows, func(w picked) bool { return w.row == i }) {
			p.rows = append(p.rows, p.place(i))
		}
	}
	return p, nil
}

// place says where the value of a row goes.
func (p *Picker) place(row int) picked {
	w := picked{row: row}
	at := frameV1[row].at(&p.rec)
	switch frameV1[row].typ {
	case tKind:
		w.text = (*string)(at.(*Kind))
	case tOutcome:
		w.text = (*string)(at.(*Outcome))
	case tInt:
		w.num = at.(*int64)
	case tSmall:
		w.small = at.(*int)
	case tBool:
		w.flag = at.(*bool)
	case tList:
		w.list = at.(*[]string)
	case tID:
		w.id = at.(*ID)
	case tTime:
		w.time = at.(*int64)
	default:
		w.text = at.(*string)
	}
	return w
}

// Pick decodes a frame. The record has the fields that were asked for and no
// others, and is valid until the next call; its texts stay valid, and its lists
// must not be written into. Errors are those of Decode. The frame is not retained.
func (p *Picker) Pick(frame []byte) (*Record, error) {
	if len(frame) > MaxPart {
		return nil, &DecodeError{"frame", MaxPart, "longer than 64 KiB"}
	}
	s := scanner{b: frame}
	if len(p.last) > 0 {
		s.prev, s.prevSpans, s.id, s.us = p.last, p.was, p.id, p.us
	}
	if !s.table(frameV1, p.sp) {
		p.last = p.last[:0]
		return nil, &DecodeError{"frame", s.pos, s.what}
	}
	p.id, p.us = s.id, s.us
	for i := range p.rows {
		if w := &p.rows[i]; !s.again[w.row] {
			p.set(w, frame[p.sp[w.row].lo:p.sp[w.row].hi])
		}
	}
	p.last = append(p.last[:0], frame...)
	p.sp, p.was = p.was, p.sp
	return &p.rec, nil
}

// set sets a field from its scanned value, empty if it is absent.
func (p *Picker) set(w *picked, v []byte) {
	switch {
	case w.text != nil:
		*w.text = p.textOf(v, *w.text)
	case w.num != nil:
		*w.num = number(v)
	case w.small != nil:
		*w.small = int(number(v))
	case w.time != nil:
		*w.time = p.us
	case w.id != nil:
		*w.id = p.id
	case w.flag != nil:
		*w.flag = len(v) > 0
	case w.list != nil:
		*w.list = p.listOf(v)
	}
}

// textOf is text, which need not be made if it came lately.
func (p *Picker) textOf(v []byte, was string) string {
	switch {
	case len(v) == 0:
		return ""
	case standsFor(v, was):
		return was
	case len(v) > pickLongest:
		return text(v)
	}
	places := p.texts[maphash.Bytes(p.seed, v)%(pickTexts/pickWays)*pickWays:][:pickWays]
	for _, s := range places {
		if standsFor(v, s) {
			return s
		}
	}
	p.next++
	e := &places[p.next%pickWays]
	*e = text(v)
	return *e
}

// listOf is the list that stands in a frame.
func (p *Picker) listOf(v []byte) (out []string) {
	if len(v) == 0 {
		return nil
	}
	if len(v) > pickLongest {
		setList(&out, v)
		return out
	}
	e := &p.lists[maphash.Bytes(p.seed, v)%pickLists]
	if e.text != string(v) {
		setList(&out, v)
		*e = pickedList{string(v), out}
	}
	return e.list
}
