package token

import (
	"errors"
	"strings"
	"unicode"
	"unicode/utf8"

	"github.com/gatebook/gatebook/internal/gate/canon"
)

// Bounds of a request to the service.
const (
	maxBody   = 32 << 10 // bytes of the form: two tokens of 8 KiB and room
	maxFields = 32
	maxName   = 64
	maxScopes = 64
	maxScope  = 256 // bytes of one scope
)

// form is the body of a request. Parameters without a value are not in it: they
// count as omitted (RFC 6749 section 3.1).
type form []parameter

type parameter struct{ name, value string }

// get returns a parameter's value, "" if it was not sent.
func (f form) get(name string) string {
	for i := range f {
		if f[i].name == name {
			return f[i].value
		}
	}
	return ""
}

// The ways in which a body is no form of ours. None of them quotes it.
var (
	errMediaType = errors.New("the body must be application/x-www-form-urlencoded")
	errQuery     = errors.New("parameters belong into the body, not into the URL")
	errSyntax    = errors.New("the body is not in the form application/x-www-form-urlencoded")
	errText      = errors.New("a parameter holds bytes that are no text")
	errTwice     = errors.New("a parameter was sent twice")
	errTooMany   = errors.New("too many parameters")
)

// isForm reports whether a content type is that of a form, in UTF-8 if it says
// so.
func isForm(contentType string) bool {
	media, param, more := strings.Cut(contentType, ";")
	if !strings.EqualFold(strings.TrimSpace(media), "application/x-www-form-urlencoded") {
		return false
	}
	return !more || strings.EqualFold(strings.TrimSpace(param), "charset=utf-8")
}

// checkForm refuses requests whose parameters could be read in two ways.
func checkForm(r *canon.Request) error {
	if r.HasQuery {
		return errQuery
	}
	if ct, n := r.Get("content-type"); n != 1 || !isForm(ct) {
		return errMediaType
	}
	if _, n := r.Get("content-encoding"); n > 0 {
		return errMediaType
	}
	return nil
}

// parseForm reads a form strictly: every piece has a name and '=', every
// percent-encoding is whole, no name comes twice, not even without a value, and
// all of it is text without control characters. Form libraries take the first
// or the last of two, or both, which is how a check and what it guards come to
// differ.
func parseForm(body string) (form, error) {
	if body == "" {
		return nil, nil
	}
	if strings.Count(body, "&") >= maxFields {
		return nil, errTooMany
	}
	var f form
	var seen []string
	for piece := range strings.SplitSeq(body, "&") {
		rawName, rawValue, ok := strings.Cut(piece, "=")
		if !ok {
			return nil, errSyntax
		}
		name, ok := decode(rawName)
		if !ok || name == "" || len(name) > maxName {
			return nil, errSyntax
		}
		value, ok := decode(rawValue)
		if !ok {
			return nil, errSyntax
		}
		if !isText(name) || !isText(value) {
			return nil, errText
		}
		for _, s := range seen {
			if s == name {
				return nil, errTwice
			}
		}
		seen = append(seen, name)
		if value != "" {
			f = append(f, parameter{name, value})
		}
	}
	return f, nil
}

// decode reads one name or value: '+' is a space, %XX a byte, and what would
// have to be encoded must be (URL Standard, application/x-www-form-urlencoded).
func decode(s string) (string, bool) {
	plain := true
	for i := range len(s) {
		switch c := s[i]; {
		case c == '%' || c == '+':
			plain = false
		case c <= ' ' || c >= 0x7f || c == '#' || c == ';': // some readers take ; for &
			return "", false
		}
	}
	if plain {
		return s, true
	}
	b := make([]byte, 0, len(s))
	for i := 0; i < len(s); i++ {
		switch c := s[i]; c {
		case '+':
			b = append(b, ' ')
		case '%':
			if i+2 >= len(s) {
				return "", false
			}
			hi, lo := unhex(s[i+1]), unhex(s[i+2])
			if hi > 15 || lo > 15 {
				return "", false
			}
			b = append(b, hi<<4|lo)
			i += 2
		default:
			b = append(b, c)
		}
	}
	return string(b), true
}

func unhex(c byte) byte {
	switch {
	case '0' <= c && c <= '9':
		return c - '0'
	case 'a' <= c && c <= 'f':
		return c - 'a' + 10
	case 'A' <= c && c <= 'F':
		return c - 'A' + 10
	}
	return 0xff
}

// isText refuses what is not UTF-8, and control characters.
func isText(s string) bool {
	if !utf8.ValidString(s) {
		return false
	}
	return !strings.ContainsFunc(s, unicode.IsControl)
}

// parseScope reads RFC 6749 section 3.3: scope tokens with single spaces, none
// of them twice.
func parseScope(s string) ([]string, bool) {
	if s == "" {
		return nil, true
	}
	list := strings.Split(s, " ")
	if len(list) > maxScopes {
		return nil, false
	}
	for i, one := range list {
		if one == "" || len(one) > maxScope {
			return nil, false
		}
		for j := range len(one) {
			if c := one[j]; c <= ' ' || c >= 0x7f || c == '"' || c == '\\' {
				return nil, false
			}
		}
		for _, before := range list[:i] {
			if before == one {
				return nil, false
			}
		}
	}
	return list, true
}
