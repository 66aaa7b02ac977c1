package record

import (
	"bytes"
	"reflect"
	"strconv"
	"unsafe"
)

// maxTime is 9999-12-31T23:59:59.999999Z, the last time RFC 3339 can write.
const maxTime = 253402300799999999

// AppendFrame appends the frame of r: one JSON object with the keys in the
// order of the schema, no white space, integers only. A field that is zero is
// absent, except that subject, op and client.prefix are then written as None.
// A time outside 1970 to 9999 is clamped. It does not allocate beyond growing
// dst.
//
// The result decodes if r.Kind and r.Outcome are of the closed lists and it is
// at most MaxPart long.
func AppendFrame(dst []byte, r *Record) []byte {
	return appendTable(dst, frameV1, frameSteps, r)
}

// AppendPersonal appends the personal part of r, in the same form. A personal
// part with nothing in it is zero bytes long, not "{}". Headers and Claims
// must be sorted by name; a name that occurs several times is written once,
// with the list of its values.
func AppendPersonal(dst []byte, r *Record) []byte {
	start := len(dst)
	dst = appendTable(dst, personalV1, personalSteps, r)
	if len(dst) == start+len("{}") {
		return dst[:start]
	}
	return dst
}

// Append appends both halves of r, each to its slice, after it has set
// San.Invalid, which is part of the frame. What is written as \ufffd shows in
// the outcome, so that the usual record is walked only once.
func Append(frame, personal []byte, r *Record) (f, p []byte) {
	r.San.Invalid = 0
	f, p = AppendFrame(frame, r), AppendPersonal(personal, r)
	if !bytes.Contains(f[len(frame):], replaced) && !bytes.Contains(p[len(personal):], replaced) {
		return f, p
	}
	if r.San.Invalid = CountInvalid(r); r.San.Invalid > 0 {
		f = AppendFrame(frame, r)
	}
	return f, p
}

// replaced is the escape of bytes that are not valid UTF-8, and of U+FFFD.
var replaced = []byte(replacement)

// A step is a row of a schema table as the encoder wants it: small, so that the
// many rows with nothing to write cost little. off is where the value stands in
// a Record.
type step struct {
	lit  string // the row's, with a comma in front
	off  uintptr
	next uint16
	typ  fieldType
}

var (
	frameSteps    = steps(frameV1)
	personalSteps = steps(personalV1)
)

// steps turns a schema table into the encoder's form.
func steps(tab []field) []step {
	var r Record
	out := make([]step, len(tab))
	for i := range tab {
		f := &tab[i]
		s := step{lit: "," + f.lit, next: uint16(f.next), typ: f.typ}
		switch f.typ {
		case tOpen, tClose, tVersion:
		default:
			s.off = reflect.ValueOf(f.at(&r)).Pointer() - reflect.ValueOf(&r).Pointer()
		}
		out[i] = s
	}
	return out
}

// value gives access to the value of a step, which is a T by the schema.
func value[T any](r *Record, off uintptr) *T { return (*T)(unsafe.Add(unsafe.Pointer(r), off)) }

// appendTable writes all rows of a schema table as one object.
func appendTable(dst []byte, tab []field, steps []step, r *Record) []byte {
	return append(appendRows(append(dst, '{'), tab, steps, 0, len(steps), r), '}')
}

// appendRows walks the rows of a schema table and their steps from first to
// before end. A nested object that turns out to be empty is taken back.
func appendRows(dst []byte, tab []field, steps []step, first, end int, r *Record) []byte {
	var marks [4]int
	depth := 0
	for i := first; i < end; {
		f := &steps[i]
		switch f.typ {
		case tString:
			if s := *value[string](r, f.off); s != "" {
				dst = appendString(appendNext(dst, f.lit), s)
			}
		case tInt:
			if v := *value[int64](r, f.off); v != 0 {
				dst = strconv.AppendInt(appendNext(dst, f.lit), v, 10)
			}
		case tOpen:
			if empty := tab[i].empty; empty != nil && empty(r) {
				i = int(f.next)
				continue
			}
			marks[depth] = len(dst)
			depth++
			dst = appendNext(dst, f.lit)
		case tClose:
			depth--
			if dst[len(dst)-1] == '{' {
				dst = dst[:marks[depth]]
			} else {
				dst = append(dst, '}')
			}
		default:
			dst = appendOther(dst, f, r)
		}
		i++
	}
	return dst
}

// appendOther appends the fields of the less frequent types.
func appendOther(dst []byte, f *step, r *Record) []byte {
	switch f.typ {
	case tSmall:
		if v := *value[int](r, f.off); v != 0 {
			dst = strconv.AppendInt(appendNext(dst, f.lit), int64(v), 10)
		}
	case tBool:
		if *value[bool](r, f.off) {
			dst = append(appendNext(dst, f.lit), "true"...)
		}
	case tList:
		if l := *value[[]string](r, f.off); len(l) > 0 {
			dst = appendList(appendNext(dst, f.lit), l)
		}
	case tPairs:
		if p := *value[[]Pair](r, f.off); len(p) > 0 {
			dst = appendPairs(appendNext(dst, f.lit), p)
		}
	case tVersion:
		dst = strconv.AppendInt(appendNext(dst, f.lit), Version, 10)
	case tID:
		dst = append(appendNext(dst, f.lit), '"')
		dst = append(value[ID](r, f.off).AppendText(dst), '"')
	case tTime:
		dst = append(appendNext(dst, f.lit), '"')
		dst = append(appendTime(dst, *value[int64](r, f.off)), '"')
	case tKind:
		dst = appendString(appendNext(dst, f.lit), string(*value[Kind](r, f.off)))
	case tOutcome:
		dst = appendString(appendNext(dst, f.lit), string(*value[Outcome](r, f.off)))
	case tFact:
		s := *value[string](r, f.off)
		if s == "" {
			s = None
		}
		dst = appendString(appendNext(dst, f.lit), s)
	}
	return dst
}

// appendNext appends the key of a step, without its comma if none is due. Only an
// opened object ends in '{', a value never does.
func appendNext(dst []byte, lit string) []byte {
	if dst[len(dst)-1] == '{' {
		lit = lit[1:]
	}
	return append(dst, lit...)
}

// appendKey is appendNext for the key of a row.
func appendKey(dst []byte, lit string) []byte {
	if dst[len(dst)-1] != '{' {
		dst = append(dst, ',')
	}
	return append(dst, lit...)
}

func appendList(dst []byte, l []string) []byte {
	dst = append(dst, '[')
	for i, s := range l {
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = appendString(dst, s)
	}
	return append(dst, ']')
}

// appendPairs appends an object of sorted pairs: `{"a":"1","b":["2","3"]}`.
func appendPairs(dst []byte, pairs []Pair) []byte {
	dst = append(dst, '{')
	for i := 0; i < len(pairs); {
		n := 1
		for i+n < len(pairs) && pairs[i+n].Name == pairs[i].Name {
			n++
		}
		if i > 0 {
			dst = append(dst, ',')
		}
		dst = append(appendString(dst, pairs[i].Name), ':')
		if n == 1 {
			dst = appendString(dst, pairs[i].Value)
		} else {
			dst = append(dst, '[')
			for j, p := range pairs[i : i+n] {
				if j > 0 {
					dst = append(dst, ',')
				}
				dst = appendString(dst, p.Value)
			}
			dst = append(dst, ']')
		}
		i += n
	}
	return append(dst, '}')
}

const (
	usPerSecond = 1_000_000
	usPerDay    = 86_400 * usPerSecond
)

// AppendTime appends microseconds since the Unix epoch as RFC 3339 in UTC with
// exactly six digits of fraction, clamped to the years 1970 to 9999.
func AppendTime(dst []byte, us int64) []byte { return appendTime(dst, us) }

// appendTime appends microseconds since the Unix epoch as RFC 3339 in UTC with
// exactly six digits of fraction.
func appendTime(dst []byte, us int64) []byte {
	us = min(max(us, 0), maxTime)
	year, month, day := civil(us / usPerDay)
	us %= usPerDay
	sec := us / usPerSecond
	us %= usPerSecond
	dst = append2(append2(dst, year/100), year%100)
	dst = append2(append(dst, '-'), month)
	dst = append2(append(dst, '-'), day)
	dst = append2(append(dst, 'T'), sec/3600)
	dst = append2(append(dst, ':'), sec/60%60)
	dst = append2(append(dst, ':'), sec%60)
	dst = append2(append(dst, '.'), us/10000)
	dst = append2(append2(dst, us/100%100), us%100)
	return append(dst, 'Z')
}

func append2(dst []byte, v int64) []byte {
	return append(dst, byte('0'+v/10), byte('0'+v%10))
}

// civil gives the Gregorian date of a day counted from 1970-01-01. Years are
// taken from March, so that the leap day is the last of a year, and in eras of
// 400 years.
func civil(days int64) (year, month, day int64) {
	days += 719468 // 0000-03-01 to 1970-01-01
	era := days / 146097
	doe := days - era*146097
	yoe := (doe - doe/1460 + doe/36524 - doe/146096) / 365
	doy := doe - (365*yoe + yoe/4 - yoe/100)
	mp := (5*doy + 2) / 153
	day = doy - (153*mp+2)/5 + 1
	month = mp + 3
	if month > 12 {
		month -= 12
	}
	year = yoe + era*400
	if month <= 2 {
		year++
	}
	return year, month, day
}

// daysFromCivil is the inverse of civil.
func daysFromCivil(year, month, day int64) int64 {
	if month <= 2 {
		year--
		month += 12
	}
	era := year / 400
	yoe := year - era*400
	doy := (153*(month-3)+2)/5 + day - 1
	doe := yoe*365 + yoe/4 - yoe/100 + doy
	return era*146097 + doe - 719468
}
