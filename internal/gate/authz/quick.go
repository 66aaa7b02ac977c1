package authz

import (
	"slices"
	"strings"

	"github.com/cedar-policy/cedar-go"
	"github.com/cedar-policy/cedar-go/ast"
	"github.com/cedar-policy/cedar-go/types"
	xast "github.com/cedar-policy/cedar-go/x/exp/ast"
)

// Policies that read the path, its parameters, headers or the body's size have
// to be asked for every request, and the evaluator makes a value of everything
// that it touches. Most of them only compare texts, so what they ask is compiled
// into tests on the request itself. The parts in between that read nothing of
// the kind are put to Cedar once for the circumstances (leaves). A test that
// meets anything else, an error or an attribute that is not there among it,
// says unsure, and then Cedar is asked about that policy: it alone speaks of
// errors. TestIndexedIsLinear and interop/cedar hold the two together.

// finding is what a test says.
type finding uint8

const (
	no finding = iota
	yes
	unsure
)

// test is a boolean expression; known are the findings of the operation's leaves.
type test func(r *Request, known []finding) finding

// textOf and numberOf are expressions of these types; false: not there.
type (
	textOf   func(r *Request) (string, bool)
	numberOf func(r *Request) (int64, bool)
)

// quick is a policy on one operation, compiled.
type quick struct {
	policy *policy
	forbid bool
	test   test
	leaves []int // of the operation
}

// leaf is a part of conditions that reads nothing volatile.
type leaf struct {
	node  xast.Node
	ask   *policy // permits when it holds
	needs ctxMask
}

// maxQuick bounds how many compiled policies are asked for one principal on one
// operation; Cedar is asked about the others.
const maxQuick = 512

// compiler makes the tests of one policy on one operation.
type compiler struct {
	op     *operation
	leaves []int
}

// compile makes the quick form of a policy; nil if it has none.
func (op *operation) compile(p *policy) *quick {
	scope := xast.Policy(*p.full.AST())
	c := compiler{op: op}
	all := test(func(*Request, []finding) finding { return yes })
	for _, cond := range scope.Conditions {
		t := c.bool(cond.Body)
		if t == nil {
			return nil
		}
		if cond.Condition == xast.ConditionUnless {
			t = not(t)
		}
		all = and(all, t)
	}
	slices.Sort(c.leaves)
	return &quick{policy: p, forbid: p.full.Effect() == cedar.Forbid, test: all, leaves: slices.Compact(c.leaves)}
}

func not(t test) test {
	return func(r *Request, known []finding) finding {
		switch t(r, known) {
		case yes:
			return no
		case no:
			return yes
		}
		return unsure
	}
}

// and is short-circuit, as in Cedar: what stands behind a no is not asked.
func and(a, b test) test {
	return func(r *Request, known []finding) finding {
		if v := a(r, known); v != yes {
			return v
		}
		return b(r, known)
	}
}

func or(a, b test) test {
	return func(r *Request, known []finding) finding {
		if v := a(r, known); v != no {
			return v
		}
		return b(r, known)
	}
}

func says(holds bool) finding {
	if holds {
		return yes
	}
	return no
}

// bool compiles an expression in the place of a boolean; nil: it cannot.
func (c *compiler) bool(n xast.IsNode) test {
	if contextReads(n)&c.op.context&volatileReads == 0 {
		return c.leaf(n)
	}
	switch n := n.(type) {
	case xast.NodeTypeAnd:
		return c.both(n.Left, n.Right, and)
	case xast.NodeTypeOr:
		return c.both(n.Left, n.Right, or)
	case xast.NodeTypeNot:
		if t := c.bool(n.Arg); t != nil {
			return not(t)
		}
	case xast.NodeTypeIfThenElse:
		if cond, then, other := c.bool(n.If), c.bool(n.Then), c.bool(n.Else); cond != nil && then != nil && other != nil {
			return or(and(cond, then), and(not(cond), other))
		}
	case xast.NodeTypeHas:
		return c.has(n.StrOpNode)
	case xast.NodeTypeEquals:
		return c.equal(n.Left, n.Right)
	case xast.NodeTypeNotEquals:
		if t := c.equal(n.Left, n.Right); t != nil {
			return not(t)
		}
	case xast.NodeTypeLessThan:
		return c.compare(n.Left, n.Right, func(a, b int64) bool { return a < b })
	case xast.NodeTypeLessThanOrEqual:
		return c.compare(n.Left, n.Right, func(a, b int64) bool { return a <= b })
	case xast.NodeTypeGreaterThan:
		return c.compare(n.Left, n.Right, func(a, b int64) bool { return a > b })
	case xast.NodeTypeGreaterThanOrEqual:
		return c.compare(n.Left, n.Right, func(a, b int64) bool { return a >= b })
	case xast.NodeTypeLike:
		return c.like(n)
	case xast.NodeTypeContains:
		return c.contains(n.Left, n.Right)
	}
	return nil
}

func (c *compiler) both(left, right xast.IsNode, join func(a, b test) test) test {
	a, b := c.bool(left), c.bool(right)
	if a == nil || b == nil {
		return nil
	}
	return join(a, b)
}

// leaf files an expression that reads nothing volatile.
func (c *compiler) leaf(n xast.IsNode) test {
	body := xast.NewNode(n)
	ask := cedar.NewPolicyFromAST((*ast.Policy)(xast.Permit().When(body)))
	text := string(ask.MarshalCedar())
	i, ok := c.op.leafOf[text]
	if !ok || !xast.Equal(c.op.leaves[i].node, body) {
		i = len(c.op.leaves)
		c.op.leafOf[text] = i
		c.op.leaves = append(c.op.leaves, leaf{body, &policy{lean: ask}, contextReads(n) & c.op.context})
	}
	c.leaves = append(c.leaves, i)
	return func(_ *Request, known []finding) finding { return known[i] }
}

// has is a test on context or its parameters: most of that is known already.
func (c *compiler) has(n xast.StrOpNode) test {
	name := string(n.Value)
	switch {
	case isVariable(n.Arg, "context") && name == "body_size":
		return func(r *Request, _ []finding) finding { return says(r.BodySize >= 0) }
	case isVariable(n.Arg, "context"):
		return c.constant(c.op.context&attrBit(name) != 0)
	case isContext(n.Arg, "params"):
		return c.constant(slices.Contains(c.op.declared, name))
	case isContext(n.Arg, "headers"):
		return c.constant(slices.Contains(c.op.headers, name))
	}
	return nil
}

func (c *compiler) constant(holds bool) test {
	v := says(holds)
	return func(*Request, []finding) finding { return v }
}

func (c *compiler) equal(left, right xast.IsNode) test {
	if a, b := c.text(left), c.text(right); a != nil && b != nil {
		return func(r *Request, _ []finding) finding {
			x, ok := a(r)
			y, also := b(r)
			if !ok || !also {
				return unsure
			}
			return says(x == y)
		}
	}
	return c.compare(left, right, func(a, b int64) bool { return a == b })
}

func (c *compiler) compare(left, right xast.IsNode, holds func(a, b int64) bool) test {
	a, b := c.number(left), c.number(right)
	if a == nil || b == nil {
		return nil
	}
	return func(r *Request, _ []finding) finding {
		x, ok := a(r)
		y, also := b(r)
		if !ok || !also {
			return unsure
		}
		return says(holds(x, y))
	}
}

func (c *compiler) like(n xast.NodeTypeLike) test {
	t := c.text(n.Arg)
	if t == nil {
		return nil
	}
	return func(r *Request, _ []finding) finding {
		s, ok := t(r)
		if !ok {
			return unsure
		}
		return says(n.Value.Match(types.String(s)))
	}
}

// contains is a test whether a set of texts that is written down, or the values
// of a header, hold a text.
func (c *compiler) contains(left, right xast.IsNode) test {
	t := c.text(right)
	if t == nil {
		return nil
	}
	if list, ok := texts(left); ok {
		return func(r *Request, _ []finding) finding {
			s, ok := t(r)
			if !ok {
				return unsure
			}
			return says(slices.Contains(list, s))
		}
	}
	a, ok := left.(xast.NodeTypeAccess)
	if !ok || !isContext(a.Arg, "headers") || !slices.Contains(c.op.headers, string(a.Value)) {
		return nil
	}
	name := string(a.Value)
	return func(r *Request, _ []finding) finding {
		s, ok := t(r)
		if !ok {
			return unsure
		}
		return says(sent(r, name, s))
	}
}

// sent reports whether a header has a value; see headers.
func sent(r *Request, name, value string) bool {
	if r.Header == nil || value == "" {
		return false
	}
	for _, line := range r.Header(name) {
		for v := range strings.SplitSeq(line, ",") {
			if strings.Trim(v, " \t") == value {
				return true
			}
		}
	}
	return false
}

// text compiles an expression in the place of a text; nil: it cannot.
func (c *compiler) text(n xast.IsNode) textOf {
	if s, ok := literal(n); ok {
		return func(*Request) (string, bool) { return s, true }
	}
	if tag, ok := n.(xast.NodeTypeGetTag); ok {
		name, ok := literal(tag.Right)
		if !ok || !isPrincipal(tag.Left) || !c.op.schema.tags {
			return nil
		}
		return func(r *Request) (string, bool) { s, ok := r.Claims[name]; return s, ok }
	}
	a, ok := n.(xast.NodeTypeAccess)
	if !ok {
		return nil
	}
	name := string(a.Value)
	switch {
	case isContext(a.Arg, "params"):
		return c.param(name)
	case isVariable(a.Arg, "context") && c.op.context&attrBit(name) != 0:
		return contextText(name)
	case isPrincipal(a.Arg):
		return c.principalText(name)
	}
	return nil
}

func contextText(name string) textOf {
	switch name {
	case "path":
		return func(r *Request) (string, bool) { return r.Path, true }
	case "method":
		return func(r *Request) (string, bool) { return r.Method, true }
	case "tls":
		return func(r *Request) (string, bool) { return tlsVersion(r), true }
	case "acr":
		return func(r *Request) (string, bool) { return r.ACR, true }
	}
	return nil
}

// principalText: an empty text is one that the entity does not have, as the
// one of nobody, which has none.
func (c *compiler) principalText(name string) textOf {
	switch {
	case name == "sub" && c.op.schema.sub:
		return func(r *Request) (string, bool) { return r.Subject, r.Subject != "" }
	case name == "issuer" && c.op.schema.issuer:
		return func(r *Request) (string, bool) { return r.Issuer, r.Issuer != "" }
	case name == attrTenant && c.op.schema.tenant:
		return func(r *Request) (string, bool) { return r.Tenant, r.Tenant != "" }
	}
	return nil
}

func (c *compiler) param(name string) textOf {
	if !slices.Contains(c.op.declared, name) {
		return nil
	}
	at := slices.Index(c.op.params, name)
	return func(r *Request) (string, bool) {
		if at < len(r.Params) && r.Params[at].Name == name {
			return r.Params[at].Value, true
		}
		for i := range r.Params { // in another order than the template
			if r.Params[i].Name == name {
				return r.Params[i].Value, true
			}
		}
		return "", false
	}
}

// number compiles an expression in the place of a number; nil: it cannot.
func (c *compiler) number(n xast.IsNode) numberOf {
	if v, ok := n.(xast.NodeValue); ok {
		i, ok := v.Value.(types.Long)
		if !ok {
			return nil
		}
		return func(*Request) (int64, bool) { return int64(i), true }
	}
	a, ok := n.(xast.NodeTypeAccess)
	if !ok || !isVariable(a.Arg, "context") || c.op.context&attrBit(string(a.Value)) == 0 {
		return nil
	}
	switch a.Value {
	case "body_size":
		return func(r *Request) (int64, bool) { return r.BodySize, r.BodySize >= 0 }
	case "auth_age":
		return func(r *Request) (int64, bool) { age := authAge(r); return age, age > 0 }
	}
	return nil
}

// isContext reports an access to one attribute of context.
func isContext(n xast.IsNode, name string) bool {
	a, ok := n.(xast.NodeTypeAccess)
	return ok && string(a.Value) == name && isVariable(a.Arg, "context")
}

func attrBit(name string) ctxMask {
	for _, a := range ctxAttrs {
		if string(a.name) == name {
			return a.bit
		}
	}
	return 0
}
