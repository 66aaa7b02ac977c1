package authn

import (
	"errors"
	"net/url"
	"strings"
)

// Bounds of a query or form that a login meets.
const (
	maxParams     = 16 << 10 // bytes
	maxParamCount = 32
)

// params are the parameters of a query or a form that were asked for.
type params map[string]string

// parseParams reads application/x-www-form-urlencoded strictly. Of the named
// parameters none may be there twice (RFC 6749 section 3.1); others are not
// looked at.
func parseParams(raw string, names ...string) (params, error) {
	if len(raw) > maxParams || strings.Count(raw, "&") >= maxParamCount {
		return nil, errors.New("too many or too long parameters")
	}
	p := params{}
	for pair := range strings.SplitSeq(raw, "&") {
		if pair == "" {
			continue
		}
		k, v, _ := strings.Cut(pair, "=")
		name, err := url.QueryUnescape(k)
		value, errValue := url.QueryUnescape(v)
		if err != nil || errValue != nil || strings.Contains(pair, ";") {
			return nil, errors.New("a parameter that is not form-urlencoded")
		}
		if !contains(names, name) {
			continue
		}
		if _, twice := p[name]; twice {
			return nil, errors.New("a parameter is there twice")
		}
		p[name] = value
	}
	return p, nil
}

func contains(list []string, s string) bool {
	for _, x := range list {
		if x == s {
			return true
		}
	}
	return false
}

// maxReturn bounds the path to which a login leads back.
const maxReturn = 1024

// ReservedPaths is below what the gate's own pages are.
const ReservedPaths = "/_gatebook/"

// localPath reports whether a browser that is sent to s certainly stays on the
// host: one slash and then no second one, nothing that a browser drops or takes
// for a slash, no dot segments, and none of the gate's own pages.
func localPath(s string) bool {
	if s == "" || s[0] != '/' || len(s) > maxReturn {
		return false
	}
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c >= 0x7f || c == '\\' || c == '#' {
			return false
		}
	}
	path, _, _ := strings.Cut(s, "?")
	if strings.Contains(path, "//") || strings.HasPrefix(path+"/", ReservedPaths) {
		return false
	}
	u, err := url.Parse(s)
	if err != nil || u.IsAbs() || u.Host != "" || u.User != nil || u.Opaque != "" {
		return false
	}
	if strings.Contains(u.Path, "//") || strings.ContainsAny(u.Path, "\\\r\n\t\x00") || strings.HasPrefix(u.Path+"/", ReservedPaths) {
		return false
	}
	for seg := range strings.SplitSeq(u.Path, "/") {
		if seg == "." || seg == ".." {
			return false
		}
	}
	return true
}
