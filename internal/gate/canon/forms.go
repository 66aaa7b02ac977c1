package canon

import (
	"iter"
	"slices"
	"strings"
	"unicode/utf8"
)

// PathForms is a set of unusual forms of a path. Each can be read in two ways,
// so a path that has one goes on only where the route allows it.
type PathForms uint8

// The forms. Everything else that is unusual, dot segments above all, is
// refused whatever a route says.
const (
	EncodedSlash PathForms = 1 << iota // %2F: a separator to some, a character of a name to others
	Semicolon                          // ';' or %3B: parameters of a segment to some, part of its name to others
	EmptySegment                       // //, which some take for one slash and some for the start of an authority
	Percent                            // %25 before what reads like another percent-encoding: some decode twice
)

var formNames = [...]string{"encoded_slash", "semicolon", "empty_segment", "percent"}

// PathForm returns the form of a name in a configuration, 0 if there is none.
func PathForm(name string) PathForms {
	for i, n := range formNames {
		if n == name {
			return 1 << i
		}
	}
	return 0
}

// String lists the names in the set, separated by commas.
func (f PathForms) String() string {
	var names []string
	for i, name := range formNames {
		if f&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return strings.Join(names, ",")
}

// maxDecodings is how often a path may be encoded in all. What is encoded more
// often hides something.
const maxDecodings = 4

// deepForms looks at what readers would see who decode the normal form path
// once, twice and so on, and who split it at what they then find. It adds the
// forms that appear only there and refuses what no route can allow: what would
// then be a dot segment, a control character, a backslash or no UTF-8, and a
// dot that was encoded twice, for which there is no honest use.
func deepForms(path string, forms PathForms) (PathForms, error) {
	for depth := 0; ; depth++ {
		if err := noDots(path); err != nil {
			return 0, err
		}
		if strings.IndexByte(path, ';') >= 0 {
			forms |= Semicolon
		}
		if strings.Contains(path, "//") {
			forms |= EmptySegment
		}
		if depth > 0 {
			if err := noSecondDots(path); err != nil {
				return 0, err
			}
		}
		next, changed := decodeAll(path)
		if !changed {
			return forms, nil
		}
		if depth == maxDecodings {
			return 0, refuse(BadPath, "path encoded too often")
		}
		if depth > 0 {
			forms |= Percent
		}
		if strings.Count(next, "/") > strings.Count(path, "/") {
			forms |= EncodedSlash
		}
		for i := 0; i < len(next); i++ {
			if c := next[i]; c < 0x20 || c == 0x7f || c == '\\' {
				return 0, refuse(BadPath, "control character or backslash encoded twice")
			}
		}
		if !utf8.ValidString(next) {
			return 0, refuse(BadPath, "percent-encoding that is not UTF-8")
		}
		path = next
	}
}

// noDots refuses dot segments, those with parameters (..;x) included.
func noDots(path string) error {
	for seg := range strings.SplitSeq(path, "/") {
		if name, _, _ := strings.Cut(seg, ";"); name == "." || name == ".." {
			return refuse(BadPath, "dot segment")
		}
	}
	return nil
}

// noSecondDots refuses the encodings that a path, which was decoded already,
// must not hold: of a dot, and %uXXXX, which only some servers know.
func noSecondDots(path string) error {
	for i := 0; i+2 < len(path); i++ {
		if path[i] != '%' {
			continue
		}
		if path[i+1] == '2' && path[i+2]|0x20 == 'e' {
			return refuse(BadPath, "dot encoded twice")
		}
		if path[i+1]|0x20 == 'u' && i+5 < len(path) && unhex(path[i+2]) >= 0 && unhex(path[i+3]) >= 0 && unhex(path[i+4]) >= 0 && unhex(path[i+5]) >= 0 {
			return refuse(BadPath, "percent-encoding that is not of RFC 3986")
		}
	}
	return nil
}

// decodeAll decodes every percent-encoding in s once.
func decodeAll(s string) (string, bool) {
	if strings.IndexByte(s, '%') < 0 {
		return s, false
	}
	b := make([]byte, 0, len(s))
	changed := false
	for i := 0; i < len(s); i++ {
		if s[i] == '%' && i+2 < len(s) && unhex(s[i+1]) >= 0 && unhex(s[i+2]) >= 0 {
			b = append(b, byte(unhex(s[i+1])<<4|unhex(s[i+2])))
			i += 2
			changed = true
			continue
		}
		b = append(b, s[i])
	}
	return string(b), changed
}

// sendable is a path that was checked and has a form, as it was received but
// for characters that no URI has (RFC 3986 section 2): those are encoded.
func sendable(raw string) string {
	at := strings.IndexFunc(raw, func(c rune) bool { return c < 0x80 && pathClass[c] == pathEncode })
	if at < 0 {
		return raw
	}
	b := append(make([]byte, 0, len(raw)+8), raw[:at]...)
	for i := at; i < len(raw); i++ {
		if c := raw[i]; pathClass[c] == pathEncode {
			b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		} else {
			b = append(b, c)
		}
	}
	return string(b)
}

// Readings gives the segments that other readers may see in the path of a
// request that has Forms: those who decode again, split at encoded slashes, cut
// parameters off, or leave out empty segments, in every combination, and those
// who take what follows two leading slashes for an authority. Each slice is
// valid until the next one.
func (r *Request) Readings() iter.Seq[[]string] {
	return func(yield func([]string) bool) {
		if r.Forms == 0 {
			return
		}
		if len(r.Segments) > 1 && r.Segments[0] == "" && !yield(r.Segments[2:]) {
			return
		}
		can := r.Forms
		if can&Semicolon != 0 {
			can |= EmptySegment // a segment may be nothing but parameters
		}
		var buf []string
		for how := PathForms(1); how <= can; how++ {
			if how&^can != 0 {
				continue
			}
			buf = reading(r.Segments, how, buf[:0])
			if !yield(buf) {
				return
			}
		}
	}
}

// Plain is the path, in normal form, as somebody reads it who gives every form
// in it its second meaning, and its segments.
func (r *Request) Plain() (path string, segments []string) {
	if r.Forms == 0 {
		return r.Path, r.Segments
	}
	var b []byte
	segments = reading(r.Segments, EncodedSlash|Semicolon|EmptySegment|Percent, nil)
	for _, seg := range segments {
		b = append(b, '/')
		for i := 0; i < len(seg); i++ {
			if c := seg[i]; pathClass[c] == pathPlain {
				b = append(b, c)
			} else {
				b = append(b, '%', upperHex[c>>4], upperHex[c&15])
			}
		}
	}
	if b == nil {
		return "/", nil
	}
	return string(b), segments
}

// Sent is the path that goes on: the normal form, or the path as received if it
// has a form that an upstream may tell from others.
func (r *Request) Sent() string {
	if r.Forms == 0 {
		return r.Path
	}
	return r.RawPath
}

// reading appends the segments as a reader sees them who gives the forms in how
// their second meaning.
func reading(segments []string, how PathForms, out []string) []string {
	for _, seg := range segments {
		for changed := how&Percent != 0; changed; {
			seg, changed = decodeAll(seg)
		}
		if how&EncodedSlash == 0 {
			out = append(out, cutParameters(seg, how))
			continue
		}
		for part := range strings.SplitSeq(seg, "/") {
			out = append(out, cutParameters(part, how))
		}
	}
	if how&EmptySegment == 0 || len(out) == 0 {
		return out
	}
	last := out[len(out)-1]
	out = slices.DeleteFunc(out[:len(out)-1], func(s string) bool { return s == "" })
	if last == "" && len(out) == 0 {
		return out // nothing but slashes
	}
	return append(out, last)
}

func cutParameters(seg string, how PathForms) string {
	if how&Semicolon != 0 {
		seg, _, _ = strings.Cut(seg, ";")
	}
	return seg
}
