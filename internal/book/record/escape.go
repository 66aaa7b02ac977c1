package record

import (
	"unicode/utf8"
)

// One canonical escaping. Inside a string these, and only these, are escaped:
//
//   - `"` and `\` with a backslash;
//   - U+0000 to U+001F, U+007F to U+009F (terminals obey them), `<`, `>`, `&`
//     (pages), U+200E, U+200F, U+2028 to U+202E, U+2066 to U+2069 (line
//     breaks and direction marks that make a line read as another), U+FEFF and
//     U+FFFD as \u and four lower-case hex digits;
//   - each byte that is not part of valid UTF-8 as \ufffd.
//
// There are no short forms such as \n. Since U+FFFD itself is written escaped,
// no raw U+FFFD occurs and decoding and encoding again gives the same bytes.

const hexDigits = "0123456789abcdef"

// replacement is written for each byte that is not valid UTF-8.
const replacement = `\ufffd`

// plain says for each byte that it stands for itself in a string.
var plain = func() (t [256]bool) {
	for c := 0x20; c < 0x7f; c++ {
		t[c] = true
	}
	for _, c := range []byte(`"\<>&`) {
		t[c] = false
	}
	return t
}()

// escapedRune reports whether a rune beyond ASCII is written escaped.
func escapedRune(c rune) bool {
	switch {
	case c < 0xa0:
		return true
	case c < 0x200e:
		return false
	}
	return c <= 0x200f || c >= 0x2028 && c <= 0x202e || c >= 0x2066 && c <= 0x2069 ||
		c == 0xfeff || c == utf8.RuneError
}

// AppendString appends s as a JSON string in quotes with the canonical escaping:
// no line break, control character or direction mark stays in it, and it is
// valid UTF-8 whatever s is.
func AppendString(dst []byte, s string) []byte { return appendString(dst, s) }

// appendString appends s as a canonical JSON string.
func appendString(dst []byte, s string) []byte {
	dst = append(dst, '"')
	start := 0
	for i := plainRun(s); i < len(s); {
		c := s[i]
		if plain[c] {
			i += 1 + plainRun(s[i+1:])
			continue
		}
		if c < utf8.RuneSelf {
			dst = append(dst, s[start:i]...)
			if c == '"' || c == '\\' {
				dst = append(dst, '\\', c)
			} else {
				dst = append(dst, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			}
			i++
			start = i
			continue
		}
		r, n := utf8.DecodeRuneInString(s[i:])
		if escapedRune(r) {
			dst = append(dst, s[start:i]...)
			dst = append(dst, '\\', 'u', hexDigits[r>>12&15], hexDigits[r>>8&15], hexDigits[r>>4&15], hexDigits[r&15])
			start = i + n
		}
		i += n
	}
	dst = append(dst, s[start:]...)
	return append(dst, '"')
}

// plainRun counts bytes at the start of s that are plain: not always all of
// them, but all of s if all of it is plain.
func plainRun(s string) int {
	i := 0
	for ; i+8 <= len(s); i += 8 {
		if !plainWord(load(s, i)) {
			return i
		}
	}
	if i > 0 && i < len(s) && plainWord(load(s, len(s)-8)) { // the last of them once more
		return len(s)
	}
	for i < len(s) && plain[s[i]] {
		i++
	}
	return i
}

// load gives the eight bytes of s from i on.
func load(s string, i int) uint64 {
	b := s[i : i+8]
	return uint64(b[0]) | uint64(b[1])<<8 | uint64(b[2])<<16 | uint64(b[3])<<24 |
		uint64(b[4])<<32 | uint64(b[5])<<40 | uint64(b[6])<<48 | uint64(b[7])<<56
}

// plainWord reports whether each of eight bytes is plain. A carry from one byte
// into the next can make it err only where the first of them is not plain.
func plainWord(w uint64) bool {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	control := (w - ' '*ones) &^ w       // below U+0020
	high := (w + ones) | w               // from U+007F on
	quotes := (w | 0x04*ones) ^ '&'*ones // zero for '"' and '&'
	angles := (w | 0x02*ones) ^ '>'*ones // zero for '<' and '>'
	slash := w ^ '\\'*ones
	zero := (quotes-ones)&^quotes | (angles-ones)&^angles | (slash-ones)&^slash
	return (control|high|zero)&tops == 0
}

// EscapedLen gives the bytes that s takes in a frame or personal part,
// without its quotes.
func EscapedLen(s string) int {
	n := len(s)
	for i := 0; i < len(s); {
		c := s[i]
		if plain[c] {
			i++
			continue
		}
		if c < utf8.RuneSelf {
			if c == '"' || c == '\\' {
				n++
			} else {
				n += len(replacement) - 1
			}
			i++
			continue
		}
		r, size := utf8.DecodeRuneInString(s[i:])
		if escapedRune(r) {
			n += len(replacement) - size
		}
		i += size
	}
	return n
}

// invalid counts the bytes of s that are not part of valid UTF-8.
func invalid(s string) int {
	if utf8.ValidString(s) {
		return 0
	}
	n := 0
	for i := 0; i < len(s); {
		r, size := utf8.DecodeRuneInString(s[i:])
		if r == utf8.RuneError && size == 1 {
			n++
		}
		i += size
	}
	return n
}

// CountInvalid gives how many bytes of both halves are not valid UTF-8 and
// will be written as \ufffd.
func CountInvalid(r *Record) int {
	return countInvalid(frameV1, r) + countInvalid(personalV1, r)
}

func countInvalid(tab []field, r *Record) int {
	n := 0
	for i := 0; i < len(tab); {
		f := &tab[i]
		i++
		switch f.typ {
		case tOpen:
			if f.empty != nil && f.empty(r) {
				i = f.next
			}
		case tString, tFact:
			n += invalid(*f.at(r).(*string))
		case tList:
			for _, s := range *f.at(r).(*[]string) {
				n += invalid(s)
			}
		case tPairs:
			for _, p := range *f.at(r).(*[]Pair) {
				n += invalid(p.Name) + invalid(p.Value)
			}
		case tKind:
			n += invalid(string(*f.at(r).(*Kind)))
		case tOutcome:
			n += invalid(string(*f.at(r).(*Outcome)))
		}
	}
	return n
}
