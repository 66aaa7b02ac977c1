package gate

import (
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/gate/authz"
	"github.com/gatebook/gatebook/internal/gate/canon"
)

// defaultMethods are those of a route that names none.
var defaultMethods = []string{"DELETE", "GET", "HEAD", "PATCH", "POST", "PUT"}

// pattern is a parsed path pattern: literal segments, {name} for one segment
// that is not empty, and as the last {name...} for all that remain. A trailing
// slash is a last literal segment "".
type pattern struct {
	text     string
	segments []string // literals; for a parameter its name
	kinds    []kind
}

type kind uint8

const (
	literal kind = iota
	param
	rest
)

// parsePattern reads a pattern such as /v1/orders/{id} or /files/{rest...}.
func parsePattern(text string) (pattern, error) {
	p := pattern{text: text}
	if !strings.HasPrefix(text, "/") {
		return p, fmt.Errorf("path %q must begin with a slash", text)
	}
	if text == "/" {
		return p, nil
	}
	seen := map[string]bool{}
	segs := strings.Split(text[1:], "/")
	for i, seg := range segs {
		k, name, err := parseSegment(seg, i == len(segs)-1)
		if err != nil {
			return p, fmt.Errorf("path %q: %w", text, err)
		}
		if k != literal {
			if seen[name] {
				return p, fmt.Errorf("path %q: parameter %q appears twice", text, name)
			}
			seen[name] = true
		}
		p.segments = append(p.segments, name)
		p.kinds = append(p.kinds, k)
	}
	return p, nil
}

func parseSegment(seg string, last bool) (kind, string, error) {
	if !strings.HasPrefix(seg, "{") {
		switch {
		case seg == "" && !last:
			return 0, "", errors.New("empty segment")
		case seg == "." || seg == "..":
			return 0, "", errors.New("dot segment")
		case strings.ContainsAny(seg, "{}%;?#\\") || strings.ContainsFunc(seg, func(r rune) bool { return r < ' ' || r == 0x7f }):
			return 0, "", fmt.Errorf("segment %q holds a character that no canonical path segment has; write segments decoded, parameters as a whole segment {name}", seg)
		}
		return literal, seg, nil
	}
	name, closed := strings.CutSuffix(seg[1:], "}")
	name, many := strings.CutSuffix(name, "...")
	if !closed || !identifier(name) {
		return 0, "", fmt.Errorf("parameter %q must be {name} with letters, digits and '_'", seg)
	}
	if many && !last {
		return 0, "", fmt.Errorf("parameter %q must be the last segment", seg)
	}
	if many {
		return rest, name, nil
	}
	return param, name, nil
}

func identifier(s string) bool {
	for i := 0; i < len(s); i++ {
		c := s[i]
		if !('a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || c == '_' || i > 0 && '0' <= c && c <= '9') {
			return false
		}
	}
	return s != ""
}

// router finds the route of a request: the tree of its host first, then that
// of routes without a host. Within a tree the most specific pattern wins,
// segment by segment from the left: literal before parameter before rest. The
// method takes no part in that: a more specific pattern without the method
// answers 405 and never lets a wider route take the request.
type router struct {
	hosts map[string]*node
	any   *node
}

// node is one segment position. It is immutable after newRouter.
type node struct {
	literals map[string]*node
	param    *node
	rest     *leaf
	here     *leaf
}

// leaf is where one pattern shape ends.
type leaf struct {
	shape   pattern // of the first route; the others differ in parameter names only
	methods map[string]*operation
	allow   string // the Allow field (RFC 9110 section 10.2.1)
}

// operation is one method of one route.
type operation struct {
	route  *Route
	leaf   *leaf
	method string   // whose rules apply: GET for a HEAD that is not listed itself
	name   string   // "METHOD template"
	params []string // names in the order of the pattern
	rest   bool     // the last parameter takes all remaining segments
}

// newRouter builds the trees; two routes that would take the same request are
// an error.
func newRouter(routes []*Route) (*router, error) {
	rt := &router{hosts: map[string]*node{}, any: &node{}}
	var errs []error
	for _, r := range routes {
		root := rt.any
		if r.Host != "" {
			if root = rt.hosts[r.Host]; root == nil {
				root = &node{}
				rt.hosts[r.Host] = root
			}
		}
		if err := root.add(r); err != nil {
			errs = append(errs, fmt.Errorf("route %q: %w", r.Name, err))
		}
	}
	rt.any.close()
	for _, n := range rt.hosts {
		n.close()
	}
	return rt, errors.Join(errs...)
}

// add puts the route's pattern into the tree.
func (n *node) add(r *Route) error {
	p, err := parsePattern(r.Path)
	if err != nil {
		return err
	}
	op := operation{route: r}
	at := &n.here
	for i, seg := range p.segments {
		switch p.kinds[i] {
		case literal:
			if n.literals == nil {
				n.literals = map[string]*node{}
			}
			if n.literals[seg] == nil {
				n.literals[seg] = &node{}
			}
			n = n.literals[seg]
			at = &n.here
		case param:
			if n.param == nil {
				n.param = &node{}
			}
			n = n.param
			at = &n.here
			op.params = append(op.params, seg)
		case rest:
			at = &n.rest
			op.params, op.rest = append(op.params, seg), true
		}
	}
	if *at == nil {
		*at = &leaf{shape: p, methods: map[string]*operation{}}
	}
	methods := r.Methods
	if len(methods) == 0 {
		methods = defaultMethods
	}
	for _, m := range methods {
		if other := (*at).methods[m]; other != nil {
			return fmt.Errorf("%s %s is already taken by route %q; give one of them another host, path or method", m, r.Path, other.route.Name)
		}
		one := op
		one.leaf, one.method, one.name = *at, m, m+" "+r.Path
		(*at).methods[m] = &one
	}
	return nil
}

// close completes every leaf: HEAD comes with GET, and Allow lists all.
func (n *node) close() {
	for _, l := range []*leaf{n.here, n.rest} {
		if l == nil {
			continue
		}
		if get := l.methods["GET"]; get != nil && l.methods["HEAD"] == nil {
			l.methods["HEAD"] = get
		} else if head := l.methods["HEAD"]; get != nil && head.route == get.route {
			l.methods["HEAD"] = get
		}
		var names []string
		for m := range l.methods {
			names = append(names, m)
		}
		slices.Sort(names)
		l.allow = strings.Join(names, ", ")
	}
	for _, c := range n.literals {
		c.close()
	}
	if n.param != nil {
		n.param.close()
	}
}

// find returns the leaf of a path, nil if there is none, and the values of its
// parameters appended to values.
func (rt *router) find(host string, segments, values []string) (*leaf, []string) {
	for _, root := range [...]*node{rt.hosts[host], rt.any} {
		if root == nil {
			continue
		}
		if l, v := root.find(segments, values); l != nil {
			return l, v
		}
		if len(segments) == 0 && root.rest != nil {
			return root.rest, append(values, "") // "/" has no segment, yet /{rest...} takes it
		}
	}
	return nil, values
}

func (n *node) find(segments, values []string) (*leaf, []string) {
	if len(segments) == 0 {
		if n.here != nil {
			return n.here, values
		}
		return nil, values
	}
	seg := segments[0]
	if next := n.literals[seg]; next != nil {
		if l, v := next.find(segments[1:], values); l != nil {
			return l, v
		}
	}
	if n.param != nil && seg != "" {
		if l, v := n.param.find(segments[1:], append(values, seg)); l != nil {
			return l, v
		}
	}
	if n.rest != nil {
		if len(segments) > 1 {
			seg = strings.Join(segments, "/")
		}
		return n.rest, append(values, seg)
	}
	return nil, values
}

// match is find for a whole request. It returns the operation, or nil and the
// Allow field when the path exists without the method, or nil and "".
func (rt *router) match(host, method string, segments, values []string, params []authz.Param) (*operation, []authz.Param, string) {
	l, values := rt.find(host, segments, values)
	if l == nil {
		return nil, params, ""
	}
	op := l.methods[method]
	if op == nil {
		return nil, params, l.allow
	}
	return op, op.appendParams(params, values), ""
}

func (op *operation) appendParams(params []authz.Param, values []string) []authz.Param {
	for i, name := range op.params {
		params = append(params, authz.Param{Name: name, Value: values[i]})
	}
	return params
}

// takes reports whether the pattern matches the segments, whatever others do.
func (p *pattern) takes(segments []string) bool {
	for i, k := range p.kinds {
		switch {
		case k == rest:
			return true // the root has no segment and is taken too
		case i >= len(segments), k == literal && p.segments[i] != segments[i], k == param && segments[i] == "":
			return false
		}
	}
	return len(p.kinds) == len(segments)
}

// ambiguous reports whether a request whose path has forms could be taken for
// one of another route: one that some reading of the path reaches and the path
// as it was sent does not. A wider route, which would take it as sent too if
// own were not there, is no other one.
func (rt *router) ambiguous(own *operation, r *canon.Request) bool {
	for segments := range r.Readings() {
		l, _ := rt.find(r.Host, segments, nil)
		if l != nil && l != own.leaf && !l.shape.takes(r.Segments) {
			return true
		}
	}
	return false
}
