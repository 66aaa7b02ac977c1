package record

import (
	"bytes"
	"fmt"
	"unicode/utf8"
)

// MaxPart is the largest frame and the largest personal part, in bytes, that
// Decode accepts.
const MaxPart = 64 << 10

// A DecodeError says why bytes are not a record of this schema.
type DecodeError struct {
	Part   string // "frame" or "personal part"
	Offset int    // byte at which it went wrong
	What   string
}

func (e *DecodeError) Error() string {
	return fmt.Sprintf("record: %s at byte %d: %s", e.Part, e.Offset, e.What)
}

// Decode reads a record into r, which is overwritten as a whole. It accepts
// exactly what AppendFrame and AppendPersonal write: unknown, repeated or
// misplaced keys, white space, non-canonical numbers and escapes, zero values
// that should be absent, values outside the closed lists, another version and
// trailing bytes are refused, so that encoding what was accepted gives the
// same bytes. A personal part of length zero has nothing in it; frames whose
// personal part is not at hand are decoded with nil.
//
// Strings that are already in r and equal are kept, so decoding many records
// into one r allocates little. On an error r is in no useful state. The error
// is a *DecodeError.
func Decode(frame, personal []byte, r *Record) error {
	if err := decodePart("frame", frame, frameV1, r); err != nil {
		return err
	}
	r.Raw = Raw{}
	if len(personal) == 0 {
		r.Personal = Personal{}
		return nil
	}
	return decodePart("personal part", personal, personalV1, r)
}

func decodePart(part string, b []byte, tab []field, r *Record) error {
	if len(b) > MaxPart {
		return &DecodeError{part, MaxPart, "longer than 64 KiB"}
	}
	var sp spans
	s := scanner{b: b}
	if !s.table(tab, &sp) {
		return &DecodeError{part, s.pos, s.what}
	}
	for i := range tab {
		assign(&tab[i], b[sp[i].lo:sp[i].hi], r)
	}
	return nil
}

// assign sets a field from its scanned value, empty if it is absent.
func assign(f *field, v []byte, r *Record) {
	switch f.typ {
	case tString, tFact:
		setText(f.at(r).(*string), v)
	case tInt:
		*f.at(r).(*int64) = number(v)
	case tSmall:
		*f.at(r).(*int) = int(number(v))
	case tBool:
		*f.at(r).(*bool) = len(v) > 0
	case tList:
		setList(f.at(r).(*[]string), v)
	case tPairs:
		setPairs(f.at(r).(*[]Pair), v)
	case tID:
		*f.at(r).(*ID), _ = parseID(v[1 : len(v)-1])
	case tTime:
		*f.at(r).(*int64), _ = parseTime(v[1 : len(v)-1])
	case tKind:
		setText((*string)(f.at(r).(*Kind)), v)
	case tOutcome:
		setText((*string)(f.at(r).(*Outcome)), v)
	}
}

// number reads an integer that has been scanned; empty is 0.
func number(v []byte) int64 {
	if len(v) == 0 {
		return 0
	}
	s := scanner{b: v}
	n, _ := s.integer()
	return n
}

// setText sets *p to what the scanned string v, quotes included, stands for.
func setText(p *string, v []byte) {
	if len(v) == 0 {
		*p = ""
		return
	}
	if !standsFor(v, *p) {
		*p = text(v)
	}
}

// standsFor reports whether the scanned string v stands for s. It may say no
// where there are escapes.
func standsFor(v []byte, s string) bool {
	return string(v[1:len(v)-1]) == s && bytes.IndexByte(v, '\\') < 0
}

// text gives what a scanned string, quotes included, stands for.
func text(v []byte) string {
	v = v[1 : len(v)-1]
	if i := bytes.IndexByte(v, '\\'); i >= 0 {
		return unescapeAll(v, i)
	}
	return string(v)
}

// unescapeAll is text for a string whose first escape is at i.
func unescapeAll(v []byte, i int) string {
	out := append(make([]byte, 0, len(v)), v[:i]...)
	for i < len(v) {
		if v[i] != '\\' {
			out = append(out, v[i])
			i++
			continue
		}
		r, n := unescape(v[i:])
		out = utf8.AppendRune(out, r)
		i += n
	}
	return string(out)
}

// strEnd gives the length of the scanned string at the start of v.
func strEnd(v []byte) int {
	for i := 1; ; i++ {
		switch v[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
}

// setList sets *p to the scanned list v. A list that is there already and
// equal is kept; one that differs is replaced, never written into, since
// copies of a record share it.
func setList(p *[]string, v []byte) {
	if len(v) == 0 {
		*p = nil
		return
	}
	old, same, n := *p, true, 0
	for i := 1; i < len(v); n++ {
		end := i + strEnd(v[i:])
		same = same && n < len(old) && standsFor(v[i:end], old[n])
		i = end + 1
	}
	if same && n == len(old) {
		return
	}
	list := make([]string, 0, n)
	for i := 1; i < len(v); {
		end := i + strEnd(v[i:])
		list = append(list, text(v[i:end]))
		i = end + 1
	}
	*p = list
}

// setPairs sets *p to the scanned object v.
func setPairs(p *[]Pair, v []byte) {
	*p = nil
	for i := 1; i < len(v); {
		end := i + strEnd(v[i:])
		name := text(v[i:end])
		i = end + 1
		list := v[i] == '['
		if list {
			i++
		}
		for {
			end = i + strEnd(v[i:])
			*p = append(*p, Pair{name, text(v[i:end])})
			i = end + 1
			if !list || v[end] == ']' {
				break
			}
		}
		if list {
			i++
		}
	}
}
