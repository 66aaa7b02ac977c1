package authn

import (
	"bytes"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"unicode/utf16"
	"unicode/utf8"
)

// The strict JSON reader. encoding/json takes the last of duplicate members,
// matches names without regard to case and repairs invalid UTF-8; each of the
// three has been a way to show two readers two different tokens.

type kind uint8

const (
	kindNull kind = iota
	kindBool
	kindNumber
	kindString
	kindArray
	kindObject
)

// value is one parsed JSON value. It refers to the parsed bytes.
type value struct {
	kind    kind
	truth   bool
	text    string   // decoded string, or the number as written
	elems   []value  // array
	members []member // object, in order
	raw     []byte   // the value as written
}

type member struct {
	name    string
	escaped bool // the name was written with an escape
	value   value
}

// get returns the member of that exact name, or nil.
func (v *value) get(name string) *value {
	for i := range v.members {
		if v.members[i].name == name {
			return &v.members[i].value
		}
	}
	return nil
}

// parser is a strict RFC 8259 reader over one text.
type parser struct {
	in    []byte
	pos   int
	depth int
}

// jsonSpace is the white space of RFC 8259 section 2.
const jsonSpace = " \t\r\n"

// parseObject reads exactly one JSON object with nothing around it, not even
// white space (a JOSE library that writes the header anew before it verifies
// takes such a token for another). It refuses, at every level, duplicate
// member names, nesting deeper than maxDepth, invalid UTF-8, lone surrogates,
// NUL, and numbers that a float64 cannot hold, which readers treat differently.
func parseObject(in []byte, maxDepth int) (*value, error) {
	if len(in) == 0 || in[0] != '{' {
		return nil, fmt.Errorf("json: an object must start at byte 0")
	}
	if !utf8.Valid(in) {
		return nil, fmt.Errorf("json: text is not valid UTF-8")
	}
	p := parser{in: in, depth: maxDepth}
	v, err := p.value()
	if err != nil {
		return nil, err
	}
	if p.pos != len(in) {
		return nil, p.errorf("data after the object")
	}
	return &v, nil
}

func (p *parser) errorf(format string, args ...any) error {
	return fmt.Errorf("json: at byte %d: %s", p.pos, fmt.Sprintf(format, args...))
}

func (p *parser) space() {
	for p.pos < len(p.in) {
		switch p.in[p.pos] {
		case ' ', '\t', '\n', '\r':
			p.pos++
		default:
			return
		}
	}
}

// peek skips white space and returns the next byte, 0 at the end (a NUL byte
// is no token either, so the two need no telling apart).
func (p *parser) peek() byte {
	p.space()
	if p.pos == len(p.in) {
		return 0
	}
	return p.in[p.pos]
}

func (p *parser) value() (v value, err error) {
	c := p.peek()
	start := p.pos
	switch {
	case c == '{':
		v, err = p.object()
	case c == '[':
		v, err = p.array()
	case c == '"':
		v.kind = kindString
		v.text, _, err = p.string()
	case c == '-' || '0' <= c && c <= '9':
		v.kind = kindNumber
		v.text, err = p.number()
	default:
		v, err = p.literal()
	}
	if err != nil {
		return value{}, err
	}
	v.raw = p.in[start:p.pos]
	return v, nil
}

func (p *parser) literal() (value, error) {
	rest := p.in[p.pos:]
	for _, l := range []struct {
		text string
		v    value
	}{
		{"null", value{kind: kindNull}},
		{"true", value{kind: kindBool, truth: true}},
		{"false", value{kind: kindBool}},
	} {
		if bytes.HasPrefix(rest, []byte(l.text)) {
			p.pos += len(l.text)
			return l.v, nil
		}
	}
	return value{}, p.errorf("a value was expected")
}

func (p *parser) object() (value, error) {
	v := value{kind: kindObject}
	if p.depth == 0 {
		return v, p.errorf("nested too deeply")
	}
	p.depth--
	p.pos++
	if p.peek() == '}' {
		p.pos++
		p.depth++
		return v, nil
	}
	var seen names
	for {
		if p.peek() != '"' {
			return v, p.errorf("a member name was expected")
		}
		name, escaped, err := p.string()
		if err != nil {
			return v, err
		}
		if !seen.add(name) {
			return v, p.errorf("duplicate member name")
		}
		if p.peek() != ':' {
			return v, p.errorf("':' was expected")
		}
		p.pos++
		mv, err := p.value()
		if err != nil {
			return v, err
		}
		v.members = append(v.members, member{name, escaped, mv})
		switch p.peek() {
		case ',':
			p.pos++
		case '}':
			p.pos++
			p.depth++
			return v, nil
		default:
			return v, p.errorf("',' or '}' was expected")
		}
	}
}

// names finds duplicates: by scanning while there are few, through a map after
// that, so that a text of many members costs no quadratic time.
type names struct {
	few  [24]string
	n    int
	many map[string]struct{}
}

// add takes a name and says whether it is new.
func (n *names) add(name string) bool {
	if n.n < len(n.few) {
		if slices.Contains(n.few[:n.n], name) {
			return false
		}
		n.few[n.n] = name
		n.n++
		return true
	}
	if n.many == nil {
		n.many = make(map[string]struct{}, 2*len(n.few))
		for _, f := range n.few {
			n.many[f] = struct{}{}
		}
	}
	if _, dup := n.many[name]; dup {
		return false
	}
	n.many[name] = struct{}{}
	return true
}

func (p *parser) array() (value, error) {
	v := value{kind: kindArray}
	if p.depth == 0 {
		return v, p.errorf("nested too deeply")
	}
	p.depth--
	p.pos++
	if p.peek() == ']' {
		p.pos++
		p.depth++
		return v, nil
	}
	for {
		e, err := p.value()
		if err != nil {
			return v, err
		}
		v.elems = append(v.elems, e)
		switch p.peek() {
		case ',':
			p.pos++
		case ']':
			p.pos++
			p.depth++
			return v, nil
		default:
			return v, p.errorf("',' or ']' was expected")
		}
	}
}

// number reads the grammar of RFC 8259 section 6 and keeps the text.
func (p *parser) number() (string, error) {
	start := p.pos
	if p.in[p.pos] == '-' {
		p.pos++
	}
	first := p.pos
	if n := p.digits(); n == 0 || n > 1 && p.in[first] == '0' {
		return "", p.errorf("malformed number")
	}
	if p.pos < len(p.in) && p.in[p.pos] == '.' {
		p.pos++
		if p.digits() == 0 {
			return "", p.errorf("malformed number")
		}
	}
	exponent := false
	if p.pos < len(p.in) && (p.in[p.pos] == 'e' || p.in[p.pos] == 'E') {
		exponent = true
		p.pos++
		if p.pos < len(p.in) && (p.in[p.pos] == '+' || p.in[p.pos] == '-') {
			p.pos++
		}
		if p.digits() == 0 {
			return "", p.errorf("malformed number")
		}
	}
	text := string(p.in[start:p.pos])
	if exponent || len(text) > 300 { // neither short nor plain: it may overflow
		if _, err := strconv.ParseFloat(text, 64); err != nil {
			return "", p.errorf("number out of range")
		}
	}
	return text, nil
}

func (p *parser) digits() int {
	start := p.pos
	for p.pos < len(p.in) && '0' <= p.in[p.pos] && p.in[p.pos] <= '9' {
		p.pos++
	}
	return p.pos - start
}

// string reads a string and says whether it was written with an escape.
func (p *parser) string() (s string, escaped bool, err error) {
	p.pos++
	start := p.pos
	for p.pos < len(p.in) {
		switch c := p.in[p.pos]; {
		case c == '"':
			s = string(p.in[start:p.pos])
			p.pos++
			return s, false, nil
		case c == '\\':
			s, err = p.escapedString(start)
			return s, true, err
		case c < 0x20:
			return "", false, p.errorf("control character in a string")
		}
		p.pos++
	}
	return "", false, p.errorf("unterminated string")
}

func (p *parser) escapedString(start int) (string, error) {
	var b strings.Builder
	b.Write(p.in[start:p.pos])
	for p.pos < len(p.in) {
		c := p.in[p.pos]
		p.pos++
		switch {
		case c == '"':
			return b.String(), nil
		case c < 0x20:
			return "", p.errorf("control character in a string")
		case c != '\\':
			b.WriteByte(c)
		default:
			r, err := p.escape()
			if err != nil {
				return "", err
			}
			b.WriteRune(r)
		}
	}
	return "", p.errorf("unterminated string")
}

// escape reads what follows a backslash.
func (p *parser) escape() (rune, error) {
	if p.pos == len(p.in) {
		return 0, p.errorf("unterminated string")
	}
	c := p.in[p.pos]
	p.pos++
	switch c {
	case '"', '\\', '/':
		return rune(c), nil
	case 'b':
		return '\b', nil
	case 'f':
		return '\f', nil
	case 'n':
		return '\n', nil
	case 'r':
		return '\r', nil
	case 't':
		return '\t', nil
	case 'u':
		return p.unicodeEscape()
	}
	return 0, p.errorf("unknown escape")
}

func (p *parser) unicodeEscape() (rune, error) {
	r, ok := p.hex4()
	switch {
	case !ok:
		return 0, p.errorf("malformed \\u escape")
	case r == 0:
		return 0, p.errorf("NUL in a string")
	case !utf16.IsSurrogate(r):
		return r, nil
	}
	if !bytes.HasPrefix(p.in[p.pos:], []byte(`\u`)) {
		return 0, p.errorf("lone surrogate")
	}
	p.pos += 2
	low, ok := p.hex4()
	if full := utf16.DecodeRune(r, low); ok && full != utf8.RuneError {
		return full, nil
	}
	return 0, p.errorf("lone surrogate")
}

func (p *parser) hex4() (rune, bool) {
	if len(p.in)-p.pos < 4 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(p.in[p.pos:p.pos+4]), 16, 16)
	p.pos += 4
	return rune(n), err == nil
}

// maxNumericDate is the last second of year 9999.
const maxNumericDate = 253402300799

// numericDate reads a NumericDate (RFC 7519 section 2) as this profile allows
// it: a plain JSON integer, 0 to the end of year 9999, no fraction, exponent
// or sign.
func (v *value) numericDate() (int64, bool) {
	if v.kind != kindNumber || strings.ContainsAny(v.text, "-+.eE") {
		return 0, false
	}
	n, err := strconv.ParseInt(v.text, 10, 64)
	return n, err == nil && n <= maxNumericDate
}

// scalar returns a string, boolean or integer as text.
func (v *value) scalar() (string, bool) {
	switch v.kind {
	case kindString:
		return v.text, true
	case kindBool:
		return strconv.FormatBool(v.truth), true
	case kindNumber:
		_, err := strconv.ParseInt(v.text, 10, 64)
		return v.text, err == nil
	}
	return "", false
}
