package config

import (
	"strings"
	"unicode"
)

// segment is one segment of a path pattern.
type segment struct {
	literal string // "" for a parameter; a final "" literal is a trailing slash
	param   string // name of the parameter
	rest    bool   // {name...}: this segment and all that follow
}

// parsePattern splits a path pattern such as /v1/orders/{id} or /v1/{rest...}.
// Literals are compared with decoded path segments, so they are written
// decoded. It returns what is wrong, if anything.
func parsePattern(s string) (segs []segment, what, hint string) {
	switch {
	case !strings.HasPrefix(s, "/"):
		return nil, "a path that does not begin with /: " + quote(s), "did you mean /" + shorten(s) + "?"
	case len(s) > 1024:
		return nil, "a path pattern longer than 1024 bytes", "shorten it"
	case strings.ContainsAny(s, "?#"):
		return nil, "a path pattern with a query or fragment: " + quote(s), "remove the part from ? or # on"
	case strings.Contains(s, "%"):
		return nil, "a path pattern with an encoded character: " + quote(s), "write the character itself"
	case strings.ContainsFunc(s, func(r rune) bool { return unicode.IsControl(r) || unicode.IsSpace(r) || r == '\\' }):
		return nil, "a path pattern with white space, control characters or a backslash: " + quote(s), "remove them"
	}
	if s == "/" {
		return nil, "", ""
	}
	parts := strings.Split(s[1:], "/")
	names := map[string]bool{}
	for i, p := range parts {
		last := i == len(parts)-1
		seg, what, hint := parseSegment(s, p, last)
		if what != "" {
			return nil, what, hint
		}
		if seg.param != "" && names[seg.param] {
			return nil, "the parameter " + seg.param + " is used twice: " + quote(s), "give the second another name"
		}
		names[seg.param] = true
		segs = append(segs, seg)
	}
	return segs, "", ""
}

func parseSegment(s, p string, last bool) (seg segment, what, hint string) {
	switch {
	case p == "" && last:
		return segment{}, "", ""
	case p == "":
		return seg, "a path pattern with an empty segment: " + quote(s), "write one slash"
	case p == "." || p == "..":
		return seg, "a path pattern with the segment " + p + ": " + quote(s), "paths are matched in their normal form; write it out"
	case p == "*" || p == "**":
		return seg, "a path pattern with a wildcard: " + quote(s), "write {name} for one segment or {rest...} at the end for all that remain"
	case p[0] == ':' && len(p) > 1:
		return seg, "a parameter that begins with a colon: " + quote(s), "did you mean {" + shorten(p[1:]) + "}?"
	case !strings.ContainsAny(p, "{}"):
		return segment{literal: p}, "", ""
	}
	name := strings.TrimSuffix(strings.TrimPrefix(p, "{"), "}")
	if p[0] != '{' || p[len(p)-1] != '}' {
		return seg, "a parameter that is not a whole segment: " + quote(s), "a parameter stands alone between slashes"
	}
	name, rest := strings.CutSuffix(name, "...")
	if name == "" || len(name) > 32 || !only(name, letters, "_") || isDigit(name[0]) {
		return seg, "not a parameter name: " + quote(p), "use letters, digits and _, a letter first, such as {id}"
	}
	if rest && !last {
		return seg, "{" + name + "...} is not at the end: " + quote(s), "only the last segment may take all that remain"
	}
	return segment{param: name, rest: rest}, "", ""
}

// shapeKey is the pattern without the names of its parameters: two patterns
// with the same shape match the same paths.
func shapeKey(segs []segment) string {
	var b strings.Builder
	b.WriteByte('/')
	for i, s := range segs {
		if i > 0 {
			b.WriteByte('/')
		}
		switch {
		case s.rest:
			b.WriteString("{...}")
		case s.param != "":
			b.WriteString("{}")
		default:
			b.WriteString(s.literal)
		}
	}
	return b.String()
}
