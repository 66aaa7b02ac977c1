package record

import (
	"encoding/binary"
	"math"
	"math/bits"
	"unicode/utf8"
)

// span is where the value of a field stands in a frame. An absent field has an
// empty one, since no value is empty.
type span struct{ lo, hi int32 }

// spans holds one span for each row of a schema table.
type spans [128]span

// scanner walks canonical bytes along a schema table. It accepts exactly what
// the encoder writes.
type scanner struct {
	b    []byte
	pos  int
	what string // what was wrong at pos; empty while all is well

	// A frame that was accepted before, and its spans, may be given: text
	// that is the same again needs no second look, since a string or list
	// tells its own end.
	prev      []byte
	prevSpans *spans
	again     [len(spans{})]bool // by row: its text is the same as in prev

	// The last id and time that were scanned. Who gives prev gives those of prev.
	id ID
	us int64
}

// same skips the value of row i if it is the same text as in prev.
func (s *scanner) same(i int, t fieldType) bool {
	switch t {
	case tString, tFact, tList, tKind, tOutcome:
	default:
		return false
	}
	was := s.prevSpans[i]
	n := int(was.hi - was.lo)
	if n == 0 || len(s.b)-s.pos < n || string(s.b[s.pos:s.pos+n]) != string(s.prev[was.lo:was.hi]) {
		return false
	}
	s.pos += n
	return true
}

func (s *scanner) fail(what string) bool {
	if s.what == "" {
		s.what = what
	}
	return false
}

// byte consumes c or fails.
func (s *scanner) byte(c byte, what string) bool {
	if s.pos >= len(s.b) || s.b[s.pos] != c {
		return s.fail(what)
	}
	s.pos++
	return true
}

// starts reports whether lit, at least two bytes long, stands at position p.
func (s *scanner) starts(p int, lit string) bool {
	return len(s.b)-p >= len(lit) && s.b[p+1] == lit[1] && string(s.b[p:p+len(lit)]) == lit
}

// table scans a whole object and notes the span of each value. Keys that are
// unknown, repeated or out of order never match the next rows of the table, so
// they are met where the object should end.
func (s *scanner) table(tab []field, sp *spans) bool {
	if !s.byte('{', "expected an object") {
		return false
	}
	first := true
	for i := 0; i < len(tab); {
		f := &tab[i]
		if f.typ == tClose {
			if first {
				return s.fail("empty object, which must be absent")
			}
			if !s.byte('}', "unknown, repeated or misplaced key") {
				return false
			}
			i++
			continue
		}
		p := s.pos
		if !first && p < len(s.b) && s.b[p] == ',' {
			p++
		} else if !first {
			p = len(s.b)
		}
		if !s.starts(p, f.lit) {
			if f.mandatory() {
				return s.fail("expected the key " + f.path)
			}
			next := f.next
			if s.prevSpans != nil {
				next = s.leap(tab, i, p)
			}
			for ; i < next; i++ {
				sp[i] = span{}
				if tab[i].mandatory() {
					return s.fail("expected the key " + tab[i].path)
				}
			}
			continue
		}
		s.pos = p + len(f.lit)
		i++
		if first = f.typ == tOpen; first {
			continue
		}
		lo := s.pos
		if s.prevSpans != nil && s.same(i-1, f.typ) {
			s.again[i-1] = true
		} else if !s.value(f.typ) {
			return false
		}
		sp[i-1] = span{int32(lo), int32(s.pos)}
		if s.prevSpans != nil && s.prevSpans[i-1].hi != 0 {
			i = s.run(tab, i, sp)
		}
	}
	if first {
		return s.fail("empty object, which must be absent")
	}
	return s.byte('}', "unknown, repeated or misplaced key") && (s.pos == len(s.b) || s.fail("bytes after the end"))
}

// run takes the values behind row i-1, just scanned, that this frame has in
// common with the one before, byte by byte and in a row. The scanner stands after
// the same value of the same table in both, so what follows needs no second look.
// It gives the row to go on with.
func (s *scanner) run(tab []field, i int, sp *spans) int {
	was := s.prevSpans
	from := was[i-1].hi
	end := from + int32(common(s.b[s.pos:], s.prev[from:]))
	shift := int32(s.pos) - from
	for n := i; n < len(tab); n++ {
		v := was[n]
		if v.hi == 0 {
			continue
		}
		// A number ends where another byte follows.
		if v.hi >= end {
			break
		}
		clear(sp[i:n])
		sp[n] = span{v.lo + shift, v.hi + shift}
		s.again[n] = true
		i = n + 1
		s.pos = int(v.hi + shift)
	}
	return i
}

// common is the length of what a and b begin with alike.
func common(a, b []byte) int {
	n, most := 0, min(len(a), len(b))
	for ; n+8 <= most; n += 8 {
		if x := binary.LittleEndian.Uint64(a[n:]) ^ binary.LittleEndian.Uint64(b[n:]); x != 0 {
			return n + bits.TrailingZeros64(x)/8
		}
	}
	for n < most && a[n] == b[n] {
		n++
	}
	return n
}

// leap tells how far the row that stands at position p may be from row i, which
// is absent. Where the frame before had its next value after that row, this one
// mostly has it too: the rows between are then absent together.
func (s *scanner) leap(tab []field, i, p int) int {
	for n := tab[i].next; n < len(tab) && tab[n].typ != tClose; n = tab[n].next {
		open := tab[n].typ == tOpen
		if !open && s.prevSpans[n].hi == 0 {
			continue
		}
		if s.starts(p, tab[n].lit) {
			return n
		}
		if !open {
			break
		}
	}
	return tab[i].next
}

// value scans one value of the given type.
func (s *scanner) value(t fieldType) bool {
	switch t {
	case tString, tFact:
		lo := s.pos
		return s.str() && (s.pos-lo > 2 || s.fail("empty string, which must be absent"))
	case tInt, tSmall:
		v, ok := s.integer()
		return ok && (v != 0 || s.fail("zero, which must be absent")) &&
			(t == tInt || int64(int(v)) == v || s.fail("number out of range"))
	case tBool:
		return s.literal("true", "expected true")
	case tList:
		n, ok := s.list()
		return ok && (n > 0 || s.fail("empty list, which must be absent"))
	case tPairs:
		return s.pairs()
	case tVersion:
		return s.byte('0'+Version, "unknown record version")
	case tID:
		return s.quoted(36, "expected a UUID", func(b []byte) (ok bool) {
			s.id, ok = parseID(b)
			return ok
		})
	case tTime:
		return s.quoted(27, "expected a UTC time with six digits of fraction", func(b []byte) (ok bool) {
			s.us, ok = parseTime(b)
			return ok
		})
	case tKind:
		return s.word("kind is not of the closed list", func(b []byte) bool { return Kind(b).Valid() })
	case tOutcome:
		return s.word("outcome is not of the closed list", func(b []byte) bool { return Outcome(b).Valid() })
	}
	return s.fail("field type without a value")
}

func (s *scanner) literal(lit, what string) bool {
	if !s.starts(s.pos, lit) {
		return s.fail(what)
	}
	s.pos += len(lit)
	return true
}

// quoted scans a string of exactly n bytes that valid accepts.
func (s *scanner) quoted(n int, what string, valid func([]byte) bool) bool {
	p := s.pos
	if len(s.b)-p < n+2 || s.b[p] != '"' || s.b[p+n+1] != '"' || !valid(s.b[p+1:p+n+1]) {
		return s.fail(what)
	}
	s.pos += n + 2
	return true
}

// word scans a string that valid accepts.
func (s *scanner) word(what string, valid func([]byte) bool) bool {
	lo := s.pos
	if !s.str() {
		return false
	}
	if !valid(s.b[lo+1 : s.pos-1]) {
		s.pos = lo
		return s.fail(what)
	}
	return true
}

// integer scans a decimal int64 without leading zeros or a negative zero.
func (s *scanner) integer() (int64, bool) {
	p, neg := s.pos, false
	if p < len(s.b) && s.b[p] == '-' {
		neg = true
		p++
	}
	start := p
	var v uint64
	for p < len(s.b) && s.b[p]-'0' <= 9 {
		d := uint64(s.b[p] - '0')
		if v > (math.MaxUint64-d)/10 {
			return 0, s.fail("number out of range")
		}
		v = v*10 + d
		p++
	}
	switch {
	case p == start:
		return 0, s.fail("expected an integer")
	case s.b[start] == '0' && (p-start > 1 || neg):
		return 0, s.fail("number is not in its canonical form")
	case !neg && v > math.MaxInt64 || neg && v > math.MaxInt64+1:
		return 0, s.fail("number out of range")
	}
	s.pos = p
	if neg {
		return -int64(v), true
	}
	return int64(v), true
}

// str scans a canonical string.
func (s *scanner) str() bool {
	if !s.byte('"', "expected a string") {
		return false
	}
	b, p := s.b, s.pos
	for {
		for p < len(b) && plain[b[p]] {
			p++
		}
		if p >= len(b) {
			s.pos = p
			return s.fail("string does not end")
		}
		if b[p] == '"' {
			s.pos = p + 1
			return true
		}
		s.pos = p
		if b[p] == '\\' {
			_, n := unescape(b[p:])
			if n == 0 {
				return s.fail("escape is not in its canonical form")
			}
			p += n
			continue
		}
		if b[p] < utf8.RuneSelf {
			return s.fail("character that must be escaped")
		}
		r, n := utf8.DecodeRune(b[p:])
		if escapedRune(r) {
			return s.fail("character that must be escaped")
		}
		p += n
	}
}

// unescape gives the rune that the canonical escape at the start of b stands
// for and the length of the escape, 0 if it is not canonical.
func unescape(b []byte) (rune, int) {
	if len(b) < 2 {
		return 0, 0
	}
	if b[1] == '"' || b[1] == '\\' {
		return rune(b[1]), 2
	}
	if b[1] != 'u' || len(b) < 6 {
		return 0, 0
	}
	var r rune
	for _, c := range b[2:6] {
		switch {
		case c >= '0' && c <= '9':
			r = r<<4 | rune(c-'0')
		case c >= 'a' && c <= 'f':
			r = r<<4 | rune(c-'a'+10)
		default:
			return 0, 0
		}
	}
	if r < utf8.RuneSelf {
		if plain[r] || r == '"' || r == '\\' {
			return 0, 0
		}
	} else if !escapedRune(r) {
		return 0, 0
	}
	return r, 6
}

// list scans a list of strings and gives their number.
func (s *scanner) list() (int, bool) {
	if !s.byte('[', "expected a list") {
		return 0, false
	}
	n := 0
	for s.pos < len(s.b) && s.b[s.pos] != ']' {
		if n > 0 && !s.byte(',', "expected a comma or the end of the list") {
			return 0, false
		}
		if !s.str() {
			return 0, false
		}
		n++
	}
	return n, s.byte(']', "list does not end")
}

// pairs scans an object of strings or lists of two or more strings, with names
// that rise strictly in byte order of what they stand for.
func (s *scanner) pairs() bool {
	if !s.byte('{', "expected an object") {
		return false
	}
	prev, n := "", 0
	for s.pos < len(s.b) && s.b[s.pos] != '}' {
		if n > 0 && !s.byte(',', "expected a comma or the end of the object") {
			return false
		}
		lo := s.pos
		if !s.str() {
			return false
		}
		name := text(s.b[lo:s.pos])
		if n > 0 && name <= prev {
			s.pos = lo
			return s.fail("name repeated or out of order")
		}
		prev = name
		n++
		if !s.byte(':', "expected a colon") {
			return false
		}
		if s.pos < len(s.b) && s.b[s.pos] == '[' {
			lo := s.pos
			k, ok := s.list()
			if !ok {
				return false
			}
			if k < 2 {
				s.pos = lo
				return s.fail("list of fewer than two values, which must be a string")
			}
		} else if !s.str() {
			return false
		}
	}
	if n == 0 {
		return s.fail("empty object, which must be absent")
	}
	return s.byte('}', "object does not end")
}

// parseTime reads what appendTime writes, without quotes.
func parseTime(b []byte) (us int64, ok bool) {
	const form = "0000-00-00T00:00:00.000000Z"
	if len(b) != len(form) {
		return 0, false
	}
	for i := range b {
		if form[i] == '0' {
			if b[i]-'0' > 9 {
				return 0, false
			}
		} else if b[i] != form[i] {
			return 0, false
		}
	}
	two := func(i int) int64 { return int64(b[i]-'0')*10 + int64(b[i+1]-'0') }
	year, month, day := two(0)*100+two(2), two(5), two(8)
	hour, minute, sec := two(11), two(14), two(17)
	if year < 1970 || month < 1 || month > 12 || day < 1 || hour > 23 || minute > 59 || sec > 59 {
		return 0, false
	}
	days := daysFromCivil(year, month, day)
	if _, m, d := civil(days); m != month || d != day {
		return 0, false
	}
	us = two(20)*10000 + two(22)*100 + two(24)
	return ((days*24+hour)*60+minute)*60*usPerSecond + sec*usPerSecond + us, true
}
