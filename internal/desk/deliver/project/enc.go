package project

import (
	"strconv"

	"github.com/gatebook/gatebook/internal/book/record"
)

// enc writes JSON objects by hand. Keys are literals with their quotes and
// colon, `"id":`. A value that is empty or zero is not written, and an object
// in which nothing was written is taken back.
type enc struct{ b []byte }

// key writes the comma, if one is due, and the key. Only what was just opened
// ends in a bracket; a value never does.
func (e *enc) key(k string) {
	e.comma()
	e.b = append(e.b, k...)
}

func (e *enc) comma() {
	if c := e.b[len(e.b)-1]; c != '{' && c != '[' {
		e.b = append(e.b, ',')
	}
}

// begin opens the outermost object.
func (e *enc) begin() { e.b = append(e.b, '{') }

// end closes it.
func (e *enc) end() { e.b = append(e.b, '}') }

// open opens an object and returns what close wants.
func (e *enc) open(k string) int {
	at := len(e.b)
	e.key(k)
	e.b = append(e.b, '{')
	return at
}

func (e *enc) close(at int) {
	if e.b[len(e.b)-1] == '{' {
		e.b = e.b[:at]
		return
	}
	e.b = append(e.b, '}')
}

// list opens an array that will not stay empty.
func (e *enc) list(k string) {
	e.key(k)
	e.b = append(e.b, '[')
}

func (e *enc) endList() { e.b = append(e.b, ']') }

// item opens an object in an array.
func (e *enc) item() {
	e.comma()
	e.b = append(e.b, '{')
}

func (e *enc) str(k, v string) {
	if v != "" {
		e.must(k, v)
	}
}

// must writes v even if it is empty.
func (e *enc) must(k, v string) {
	e.key(k)
	e.b = record.AppendString(e.b, v)
}

// lit writes a value that is JSON already.
func (e *enc) lit(k, v string) {
	e.key(k)
	e.b = append(e.b, v...)
}

func (e *enc) int(k string, v int64) {
	if v != 0 {
		e.num(k, v)
	}
}

// num writes v even if it is zero.
func (e *enc) num(k string, v int64) {
	e.key(k)
	e.b = strconv.AppendInt(e.b, v, 10)
}

func (e *enc) uint(k string, v uint64) {
	e.key(k)
	e.b = strconv.AppendUint(e.b, v, 10)
}

func (e *enc) bool(k string, v bool) {
	if v {
		e.lit(k, "true")
	}
}

func (e *enc) time(k string, us int64) {
	e.key(k)
	e.b = append(e.b, '"')
	e.b = append(record.AppendTime(e.b, us), '"')
}

func (e *enc) strs(k string, l []string) {
	if len(l) == 0 {
		return
	}
	e.list(k)
	for _, s := range l {
		e.elem(s)
	}
	e.endList()
}

// elem writes a string in an array.
func (e *enc) elem(s string) {
	e.comma()
	e.b = record.AppendString(e.b, s)
}

// id writes a request id.
func (e *enc) id(k string, id record.ID) {
	e.key(k)
	e.b = append(e.b, '"')
	e.b = append(id.AppendText(e.b), '"')
}

// pairs writes sorted pairs as an object of lists.
func (e *enc) pairs(k string, pairs []record.Pair) {
	at := e.open(k)
	for i, p := range pairs {
		if i == 0 || pairs[i-1].Name != p.Name {
			e.comma()
			e.b = append(record.AppendString(e.b, p.Name), ':', '[')
		}
		e.elem(p.Value)
		if i+1 == len(pairs) || pairs[i+1].Name != p.Name {
			e.endList()
		}
	}
	e.close(at)
}
