package canon

import (
	"bytes"
	"strings"
)

// tokenByte is tchar as a table.
var tokenByte = func() (t [256]bool) {
	for c := range t {
		t[c] = tchar(byte(c))
	}
	return t
}()

func tokenBytes(b []byte) bool {
	for _, c := range b {
		if !tokenByte[c] {
			return false
		}
	}
	return len(b) > 0
}

// equalFold compares with an ASCII string in lower case.
func equalFold(b []byte, lower string) bool {
	if len(b) != len(lower) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c |= 0x20
		}
		if c != lower[i] {
			return false
		}
	}
	return true
}

// splitField cuts "name: value" (RFC 9112 section 5): no line folding, no white
// space before the colon, a token for a name.
func splitField(line []byte) (name, value []byte, ok bool) {
	colon := bytes.IndexByte(line, ':')
	if colon < 0 || !tokenBytes(line[:colon]) {
		return nil, nil, false
	}
	return line[:colon], trimBytes(line[colon+1:]), true
}

func trimBytes(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// fieldLine takes one field of the head; line is part of b.
func (h *H1) fieldLine(b, line []byte) error {
	r := &h.head
	if len(r.Fields) == MaxFields {
		return refuse(HeaderTooLarge, "more than 100 fields")
	}
	name, value, ok := splitField(line)
	if !ok {
		return refuse(MalformedRequest, "line that is no field: folded, without a colon, or a name that is not a token")
	}
	// line ends two bytes before h.at; value ends within it.
	end := h.at - 2
	nameFrom := end - len(line)
	valueFrom := nameFrom + len(name) + 1
	for valueFrom < end && (b[valueFrom] == ' ' || b[valueFrom] == '\t') {
		valueFrom++
	}
	f := H1Field{
		Name:  H1Span{uint16(nameFrom), uint16(nameFrom + len(name))},
		Value: H1Span{uint16(valueFrom), uint16(valueFrom + len(value))},
	}
	r.Fields = append(r.Fields, f)
	return r.meaning(name, value, f.Value)
}

// meaning acts on the fields that say where the message ends, whom it is for
// and what becomes of the connection.
func (r *H1Request) meaning(name, value []byte, span H1Span) error {
	switch len(name) {
	case 4:
		if equalFold(name, "host") {
			if r.hosts++; r.hosts > 1 {
				return refuse(BadHost, "two Host fields")
			}
			r.Host = span
		}
	case 6:
		if equalFold(name, "expect") {
			if !equalFold(value, "100-continue") {
				return refuse(MalformedRequest, "unknown expectation")
			}
			r.Continue = true
		}
	case 7:
		if equalFold(name, "trailer") {
			return checkTrailerField(value)
		}
	case 10:
		if equalFold(name, "connection") {
			r.Close = r.Close || hasToken(value, "close")
		}
	case 14:
		if equalFold(name, "content-length") {
			return r.contentLength(value)
		}
	case 17:
		if equalFold(name, "transfer-encoding") {
			// RFC 9112 section 6.1: chunked once and last; any other coding is
			// one that nobody behind us was asked about.
			if r.codings++; r.codings > 1 || !equalFold(value, "chunked") {
				return refuse(AmbiguousFraming, "transfer coding other than one chunked")
			}
		}
	}
	return nil
}

// contentLength takes one field with 1 to 18 digits without leading zeros.
func (r *H1Request) contentLength(value []byte) error {
	if r.lengths++; r.lengths > 1 {
		return refuse(AmbiguousFraming, "two Content-Length fields")
	}
	if len(value) == 0 || len(value) > 18 || len(value) > 1 && value[0] == '0' {
		return refuse(AmbiguousFraming, "Content-Length that is not one plain number")
	}
	for _, c := range value {
		if !digit(c) {
			return refuse(AmbiguousFraming, "Content-Length that is not one plain number")
		}
		r.Length = r.Length*10 + int64(c-'0')
	}
	return nil
}

// hasToken looks for a token, in lower case, in a comma-separated list.
func hasToken(list []byte, lower string) bool {
	for len(list) > 0 {
		item := list
		if comma := bytes.IndexByte(list, ','); comma >= 0 {
			item, list = list[:comma], list[comma+1:]
		} else {
			list = nil
		}
		if equalFold(trimBytes(item), lower) {
			return true
		}
	}
	return false
}

// checkTrailerField refuses the announcement of trailers that would be
// refused.
func checkTrailerField(list []byte) error {
	for item := range bytes.SplitSeq(list, []byte{','}) {
		if item = trimBytes(item); len(item) > 0 && trailerForbidden(string(item)) {
			return refuse(MalformedRequest, "Trailer names a field that no trailer may be")
		}
	}
	return nil
}

// trailerForbidden reports fields that a recipient must have before the body:
// framing, routing, identity, conditions and what describes the content
// (RFC 9110 section 6.5.1).
func trailerForbidden(name string) bool {
	name = strings.ToLower(name)
	return forbiddenTrailers[name] || hopByHop[name] || decided[name] || Reserved(name) ||
		strings.HasPrefix(name, "if-") || strings.HasPrefix(name, "access-control-") || strings.HasPrefix(name, "sec-")
}

var forbiddenTrailers = map[string]bool{
	"age": true, "cache-control": true, "content-range": true, "cookie": true,
	"date": true, "location": true, "max-forwards": true, "pragma": true,
	"retry-after": true, "set-cookie": true, "vary": true, "warning": true,
	"www-authenticate": true,
}
