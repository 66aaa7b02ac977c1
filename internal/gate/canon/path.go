package canon

import (
	"strings"
	"unicode/utf8"
)

// What a byte may do in a path; see pathClass.
const (
	pathRefused = iota // looked at one by one: control, space, '#', ';', '\\', '%', non-ASCII
	pathPlain          // stays as it is (RFC 3986 pchar and '/')
	pathEncode         // not a pchar, yet sent raw by browsers: percent-encoded in the normal form
)

// pathClass sorts the bytes of a path. It is built once and never changes.
var pathClass = func() (t [256]uint8) {
	for c := 'a'; c <= 'z'; c++ {
		t[c], t[c-'a'+'A'] = pathPlain, pathPlain
	}
	for c := '0'; c <= '9'; c++ {
		t[c] = pathPlain
	}
	for _, c := range "-._~!$&'()*+,=:@/" {
		t[c] = pathPlain
	}
	for _, c := range "\"<>[]^`{|}" {
		t[c] = pathEncode
	}
	return t
}()

const upperHex = "0123456789ABCDEF"

// unhex is the value of a hexadecimal digit, or -1.
func unhex(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c && c <= 'f':
		return int(c-'a') + 10
	case 'A' <= c && c <= 'F':
		return int(c-'A') + 10
	}
	return -1
}

// unreserved reports the characters that mean the same encoded or not
// (RFC 3986 section 2.3).
func unreserved(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' ||
		c == '-' || c == '.' || c == '_' || c == '~'
}

// checkedPath is a path that has been checked.
type checkedPath struct {
	normal string   // RFC 3986 section 6.2.2: unreserved characters decoded, hexadecimal digits in upper case
	segs   []string // between the slashes that were sent as such, decoded once
	forms  PathForms
}

// parsePath checks an origin-form path. Its segments are appended to segs.
// What a second reader could take for another path is never rewritten: it is
// refused, or it is one of the forms that a route may allow.
func parsePath(raw string, segs []string) (checkedPath, error) {
	if raw == "" || raw[0] != '/' {
		return checkedPath{}, refuse(BadPath, "the path does not begin with a slash")
	}
	path, forms, encoded, err := normalPath(raw)
	if err != nil {
		return checkedPath{}, err
	}
	if path == "/" {
		return checkedPath{path, segs, 0}, nil
	}
	for rest := path[1:]; ; {
		seg, after, more := strings.Cut(rest, "/")
		if seg == "" && more {
			forms |= EmptySegment
		}
		if seg == "." || seg == ".." {
			return checkedPath{}, refuse(BadPath, "dot segment")
		}
		if encoded {
			if seg, err = decodeSegment(seg); err != nil {
				return checkedPath{}, err
			}
		}
		segs = append(segs, seg)
		if !more {
			break
		}
		rest = after
	}
	if forms != 0 {
		if forms, err = deepForms(path, forms); err != nil {
			return checkedPath{}, err
		}
	}
	return checkedPath{path, segs, forms}, nil
}

// normalPath rewrites raw into the normal form, without a copy when it already
// is. encoded tells whether the result holds any percent-encoding.
func normalPath(raw string) (path string, forms PathForms, encoded bool, err error) {
	i := 0
	for i < len(raw) && pathClass[raw[i]] == pathPlain {
		i++
	}
	if i == len(raw) {
		return raw, 0, false, nil
	}
	b := make([]byte, i, len(raw)+8)
	copy(b, raw)
	for ; i < len(raw); i++ {
		c := raw[i]
		switch {
		case pathClass[c] == pathPlain:
			b = append(b, c)
			continue
		case c == ';':
			forms |= Semicolon
			b = append(b, c)
			continue
		case pathClass[c] == pathEncode:
		case c != '%':
			return "", 0, false, refuse(BadPath, rawByteDetail(c))
		default:
			if i+2 >= len(raw) {
				return "", 0, false, refuse(BadPath, "incomplete percent-encoding")
			}
			hi, lo := unhex(raw[i+1]), unhex(raw[i+2])
			if hi < 0 || lo < 0 {
				return "", 0, false, refuse(BadPath, "percent sign without two hexadecimal digits")
			}
			c = byte(hi<<4 | lo)
			i += 2
			if unreserved(c) {
				b = append(b, c)
				continue
			}
			form, err := encodedByte(c)
			if err != nil {
				return "", 0, false, err
			}
			forms |= form
		}
		b = append(b, '%', upperHex[c>>4], upperHex[c&15])
		encoded = true
	}
	if doubleEncoded(b) {
		forms |= Percent
	}
	return string(b), forms, encoded, nil
}

// rawByteDetail names the rule that an unencoded byte breaks.
func rawByteDetail(c byte) string {
	switch {
	case c == '#':
		return "fragment in the request target"
	case c == '\\':
		return "backslash in the path"
	case c >= 0x80:
		return "non-ASCII byte in the path"
	default:
		return "control character or space in the path"
	}
}

// encodedByte sorts the bytes that some reader takes for a separator or an end
// once they are decoded.
func encodedByte(c byte) (PathForms, error) {
	switch {
	case c == '/':
		return EncodedSlash, nil
	case c == ';':
		return Semicolon, nil
	case c == '\\':
		return 0, refuse(BadPath, "encoded backslash")
	case c < 0x20 || c == 0x7f:
		return 0, refuse(BadPath, "encoded control character")
	}
	return 0, nil
}

// doubleEncoded reports whether decoding the normal form b once leaves
// something that a second decoder would decode again. It looks at the normal
// form, since %25%32%66 hides what %252f shows; %u is the encoding that some
// Windows servers understand.
func doubleEncoded(b []byte) bool {
	for i := 0; i+4 < len(b); i++ {
		if b[i] != '%' || b[i+1] != '2' || b[i+2] != '5' {
			continue
		}
		if unhex(b[i+3]) >= 0 && unhex(b[i+4]) >= 0 || b[i+3] == 'u' || b[i+3] == 'U' {
			return true
		}
	}
	return false
}

// decodeSegment decodes one segment of a normal form and refuses what is not
// UTF-8 (RFC 3629: overlong forms and surrogates are not).
func decodeSegment(seg string) (string, error) {
	at := strings.IndexByte(seg, '%')
	if at < 0 {
		return seg, nil
	}
	b := make([]byte, 0, len(seg))
	b = append(b, seg[:at]...)
	for i := at; i < len(seg); i++ {
		if seg[i] != '%' {
			b = append(b, seg[i])
			continue
		}
		b = append(b, byte(unhex(seg[i+1])<<4|unhex(seg[i+2])))
		i += 2
	}
	if !utf8.Valid(b) {
		return "", refuse(BadPath, "percent-encoding that is not UTF-8")
	}
	return string(b), nil
}

// checkQuery refuses what no request target may hold (RFC 9112 section 3.2);
// the query itself stays as sent.
func checkQuery(q string) error {
	for i := 0; i < len(q); i++ {
		switch c := q[i]; {
		case c == '#':
			return refuse(BadPath, "fragment in the request target")
		case c <= ' ' || c == 0x7f:
			return refuse(BadPath, "control character or space in the query")
		case c >= 0x80:
			return refuse(BadPath, "non-ASCII byte in the query")
		}
	}
	return nil
}
