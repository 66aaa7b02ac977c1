package query

import (
	"fmt"
	"regexp/syntax"

	"github.com/expr-lang/expr/ast"
	"github.com/expr-lang/expr/parser"
)

// maxPattern bounds a pattern, in steps: a text is matched in time of its length
// times that of the pattern.
const maxPattern = 500

// frugal says what of an expression could take more memory or time than anybody
// has, for each record; "" if nothing. It looks before expr compiles patterns.
// What cannot be parsed is left to expr, which says why.
func frugal(text string) string {
	tree, err := parser.Parse(text)
	if err != nil {
		return ""
	}
	var v spender
	ast.Walk(&tree.Node, &v)
	return v.found
}

// spender looks for variables, by which a text can be doubled with each of a few
// dozen declarations, and for patterns that are too large, or that come out of a
// record and may be anybody's.
type spender struct{ found string }

// Visit implements ast.Visitor.
func (v *spender) Visit(node *ast.Node) {
	switch n := (*node).(type) {
	case *ast.VariableDeclaratorNode:
		v.found = `variables ("let") are not taken; write out what they stand for`
	case *ast.BinaryNode:
		if n.Operator != "matches" {
			return
		}
		pattern, ok := n.Right.(*ast.StringNode)
		if !ok {
			v.found = `the pattern behind "matches" must be written as a text`
			return
		}
		re, err := syntax.Parse(pattern.Value, syntax.Perl)
		if err != nil {
			return // expr says so
		}
		if n := steps(re); n > maxPattern {
			v.found = fmt.Sprintf("the pattern %.40q has more than %d steps; repeat less in it", pattern.Value, maxPattern)
		}
	}
}

// steps estimates how large a pattern becomes when its repetitions are written
// out. Above maxPattern it may say any number that is.
func steps(re *syntax.Regexp) int {
	n := 1
	if re.Op == syntax.OpLiteral {
		n = len(re.Rune)
	}
	for _, sub := range re.Sub {
		if n += steps(sub); n > maxPattern {
			return n
		}
	}
	if re.Op == syntax.OpRepeat {
		n *= max(re.Min+1, re.Max, 1) // at most 1000 (package regexp/syntax)
	}
	return n
}
