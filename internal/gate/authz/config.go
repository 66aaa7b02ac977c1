package authz

import (
	"fmt"
	"slices"
	"strings"
	"unicode"
	"unicode/utf8"
)

// Config says what to load.
type Config struct {
	// Dir holds the policies: every file *.cedar in it and below it, names
	// starting with a dot left out. Empty: no policies but those of Roles.
	Dir string
	// Schema is a file in Cedar's schema language. Empty: schema.cedarschema in
	// Dir if there is one, else DefaultSchema(Routes).
	Schema string
	// Tests is a directory of test cases, *.json; see Case. The load is refused
	// unless all of them pass. Empty: none.
	Tests string
	// Headers are the request headers, in lower case, that the generated schema
	// declares as context.headers. A schema of its own declares what it wants.
	Headers []string
	// Roles says which routes a role may use. It becomes one permit for each
	// line, with the id role:NAME:ROUTE.
	Roles map[string]Role
	// Routes are the routes of the same configuration. A request for any other
	// is denied.
	Routes []Route
}

// Role is what the holders of a role may do.
type Role struct {
	// Allow lists route names; "orders.*" stands for all routes whose names
	// start with "orders.", and "*" for all.
	Allow []string
}

// Route is what the engine needs to know of a configured route.
type Route struct {
	Name string `json:"name"`
	// Methods are those that the route takes; empty means any.
	Methods []string `json:"methods"`
	// Template is the path pattern, "/v1/orders/{id}". An operation is a method,
	// a space and the template.
	Template string `json:"template"`
	// Anonymous routes admit requests without a credential. Their policies must
	// be able to deal with a principal of type Anonymous.
	Anonymous bool `json:"anonymous"`
}

// OtherMethod stands for every method without a name in the operations of a
// route that takes any method.
const OtherMethod = "_other"

// anyMethods are the operations of a route that takes any method.
var anyMethods = []string{"GET", "HEAD", "POST", "PUT", "PATCH", "DELETE", "OPTIONS", OtherMethod}

// Operation is the action of a method on a template.
func Operation(method, template string) string { return method + " " + template }

// Problem is one thing that keeps a bundle from loading.
type Problem struct {
	File    string // "" for the configuration itself
	Line    int    // from 1; 0 when the problem has no place in a file
	Column  int    // from 1, in characters
	Message string // what is wrong and what to do
	Excerpt string // the line
}

// String is one line, with the excerpt and a mark below it when there is one.
func (p Problem) String() string {
	var b strings.Builder
	if p.File != "" {
		b.WriteString(p.File)
		if p.Line > 0 {
			fmt.Fprintf(&b, ":%d:%d", p.Line, p.Column)
		}
		b.WriteString(": ")
	}
	b.WriteString(p.Message)
	if p.Excerpt != "" {
		b.WriteString("\n    ")
		b.WriteString(p.Excerpt)
		b.WriteString("\n    ")
		for i, c := range []rune(p.Excerpt) {
			if i >= p.Column-1 {
				break
			}
			if c != '\t' {
				c = ' '
			}
			b.WriteRune(c)
		}
		b.WriteByte('^')
	}
	return b.String()
}

// Problems is why a load was refused: everything that was found, in order of
// file and place.
type Problems []Problem

// Error joins the problems by line breaks.
func (p Problems) Error() string {
	lines := make([]string, len(p))
	for i := range p {
		lines[i] = p[i].String()
	}
	return strings.Join(lines, "\n")
}

// err is nil when there is no problem.
func (p Problems) err() error {
	if len(p) == 0 {
		return nil
	}
	return p
}

// at makes a problem with the excerpt of its line.
func at(file, text string, line, column int, format string, args ...any) Problem {
	p := Problem{File: file, Line: line, Column: column, Message: fmt.Sprintf(format, args...)}
	if line > 0 {
		lines := strings.SplitN(text, "\n", line+1)
		if line <= len(lines) {
			p.Excerpt = strings.TrimRight(lines[line-1], "\r")
		}
		if utf8.RuneCountInString(p.Excerpt) > 200 {
			p.Excerpt = ""
		}
	}
	return p
}

// checkRoutes validates the routes and brings them into canonical order.
func checkRoutes(in []Route) ([]Route, Problems) {
	var probs Problems
	out := slices.Clone(in)
	slices.SortFunc(out, func(a, b Route) int { return strings.Compare(a.Name, b.Name) })
	for i := range out {
		r := &out[i]
		bad := func(format string, args ...any) {
			probs = append(probs, Problem{Message: fmt.Sprintf("route %q: ", r.Name) + fmt.Sprintf(format, args...)})
		}
		if !validName(r.Name) || strings.Contains(r.Name, "*") {
			bad("the name must be 1 to 128 printable characters without *")
		}
		if i > 0 && out[i-1].Name == r.Name {
			bad("declared twice")
		}
		if _, err := templateParams(r.Template); err != nil {
			bad("template %q: %v", r.Template, err)
		}
		r.Methods = slices.Sorted(slices.Values(r.Methods)) // nil when empty
		for j, m := range r.Methods {
			if !validMethod(m) {
				bad("method %q must be upper case letters, digits, - and _", m)
			}
			if j > 0 && r.Methods[j-1] == m {
				bad("method %q is listed twice", m)
			}
		}
	}
	return out, probs
}

// validName: role and route names become part of policy ids, which stand in
// records.
func validName(s string) bool {
	return s != "" && len(s) <= 128 && utf8.ValidString(s) &&
		!strings.ContainsFunc(s, func(r rune) bool { return !unicode.IsPrint(r) })
}

func validHeader(h string) bool {
	return h != "" && len(h) <= 128 && !strings.ContainsFunc(h, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= '0' && r <= '9' || strings.ContainsRune("-_!#$%&'*+.^`|~", r))
	})
}

func validMethod(m string) bool {
	if m == "" || m[0] < 'A' || m[0] > 'Z' {
		return false
	}
	return !strings.ContainsFunc(m, func(r rune) bool {
		return !(r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '_')
	})
}

// templateParams are the names between braces, in order. A parameter takes a
// whole segment; "{rest...}" takes all that remain.
func templateParams(template string) ([]string, error) {
	if !strings.HasPrefix(template, "/") || !utf8.ValidString(template) {
		return nil, fmt.Errorf("must start with /")
	}
	var names []string
	for seg := range strings.SplitSeq(template[1:], "/") {
		if !strings.ContainsAny(seg, "{}") {
			continue
		}
		name, ok := strings.CutPrefix(seg, "{")
		if ok {
			name, ok = strings.CutSuffix(name, "}")
		}
		name = strings.TrimSuffix(name, "...")
		if !ok || name == "" || strings.ContainsAny(name, "{}") {
			return nil, fmt.Errorf("segment %q must be {name} or {name...}", seg)
		}
		if slices.Contains(names, name) {
			return nil, fmt.Errorf("parameter %q occurs twice", name)
		}
		names = append(names, name)
	}
	return names, nil
}
