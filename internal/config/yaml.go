package config

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"unicode/utf8"

	yaml "github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/lexer"
	"github.com/goccy/go-yaml/parser"
	"github.com/goccy/go-yaml/token"
)

// Bounds on what is given to the YAML library, whose parser recurses and takes
// quadratic time on some inputs. The largest sensible file, some thousands of
// routes, stays well below them.
const (
	maxFileSize = 1 << 20 // bytes
	maxLine     = 16 << 10
	maxTokens   = 200_000
	maxDepth    = 32   // nested mappings and sequences; the schema needs 8
	maxKeys     = 5000 // keys of one mapping in block style
)

// readYAML turns the source into the one mapping at its root. It reports what
// makes a source unfit to be decoded and then returns nil.
func readYAML(r *reporter, data []byte) (root *ast.MappingNode, text string) {
	text, ok := sourceText(r, data)
	if !ok {
		return nil, text
	}
	tokens := lexer.Tokenize(text)
	if !checkTokens(r, tokens) {
		return nil, text
	}
	file, err := parseTokens(tokens)
	if err != nil {
		reportSyntax(r, err)
		return nil, text
	}
	var body ast.Node
	for _, d := range file.Docs {
		if d.Body != nil && body == nil {
			body = d.Body
		}
	}
	switch n := body.(type) {
	case nil:
		r.report(position{}, "", "the file is empty", "gatebook init writes one to start from")
	case *ast.MappingNode:
		return n, text
	case *ast.MappingValueNode:
		return ast.Mapping(n.Start, false, n), text
	default:
		r.report(nodePosition(n), "", "the file is "+describe(n)+", not a mapping of keys", `begin with a key, such as "data: /var/lib/gatebook"`)
	}
	return nil, text
}

// sourceText checks size and characters and returns the source with \n line
// ends and without byte order mark.
func sourceText(r *reporter, data []byte) (string, bool) {
	if len(data) > maxFileSize {
		r.report(position{}, "", fmt.Sprintf("the file has %d bytes, more than the %d allowed", len(data), maxFileSize), "is this the right file?")
		return "", false
	}
	data = bytes.TrimPrefix(data, []byte("\ufeff"))
	// The library counts a CRLF as two lines after a comment.
	text := strings.ReplaceAll(string(data), "\r\n", "\n")
	r.lines = strings.Split(text, "\n")
	ok := true
	for i, line := range r.lines {
		if len(line) > maxLine {
			r.report(position{i + 1, 1}, "", fmt.Sprintf("a line of %d bytes, more than the %d allowed", len(line), maxLine), "break the value into a list")
			ok = false
		}
		column := 1
		for j, c := range line {
			bad := c < ' ' && c != '\t' || c == 0x7f || 0x80 <= c && c < 0xa0 || c == 0xfeff || c == 0x2028 || c == 0x2029
			if c == utf8.RuneError {
				_, n := utf8.DecodeRuneInString(line[j:])
				bad = n == 1
			}
			if bad {
				r.report(position{i + 1, column}, "", fmt.Sprintf("a character that text may not hold: %q", c), "save the file as plain UTF-8 text")
				ok = false
				break
			}
			column++
		}
	}
	return text, ok
}

// checkTokens refuses, before anything recurses over them, what would be
// unbounded (depth, count) and what makes YAML mean other than it shows
// (anchors, aliases, merge keys, tags, directives, further documents).
func checkTokens(r *reporter, tokens token.Tokens) bool {
	if len(tokens) > maxTokens {
		r.report(position{}, "", fmt.Sprintf("the file has %d YAML tokens, more than the %d allowed", len(tokens), maxTokens), "is this the right file?")
		return false
	}
	before := len(r.list)
	var nest nesting
	content, ended := false, false
	for i, t := range tokens {
		pos := tokenPosition(t)
		if what, hint := refusedToken(t); what != "" {
			r.report(pos, "", what, hint)
		}
		switch t.Type {
		case token.CommentType:
			continue
		case token.DocumentHeaderType:
			if (content || ended) && len(r.list) == before {
				r.report(pos, "", "a second document in the file", "keep one document; put other nodes into files of their own")
				return false
			}
		case token.DocumentEndType:
			ended = true
			continue
		}
		if ended {
			r.report(pos, "", "text after the end of the document", "remove it")
			return false
		}
		content = true
		if what := nest.add(tokens, i); what != "" {
			r.report(pos, "", what, "no part of the configuration needs that")
			return false
		}
	}
	return len(r.list) == before
}

func refusedToken(t *token.Token) (what, hint string) {
	switch t.Type {
	case token.AnchorType:
		return "an anchor (&)", "anchors and aliases are not allowed; repeat the value"
	case token.AliasType:
		return "an alias (*)", "anchors and aliases are not allowed; repeat the value, or put it in quotes if it is text"
	case token.MergeKeyType:
		return "a merge key (<<)", "merging is not allowed; repeat the keys"
	case token.TagType:
		return "a tag (" + quote(t.Value) + ")", "tags are not allowed; remove it, or put the value in quotes if it is text"
	case token.DirectiveType:
		return "a directive (%)", "directives are not allowed; remove it, or put the value in quotes if it is text"
	case token.MappingKeyType:
		return "a complex key (?)", "write the key as plain text before a colon"
	}
	return "", ""
}

// nesting follows how deep the tokens are nested: flow collections by their
// brackets, block collections by the columns of their entries.
type nesting struct {
	flow  int
	block []level
}

type level struct{ column, keys int }

// add takes the token at i into account; it returns what is wrong, if anything.
func (n *nesting) add(tokens token.Tokens, i int) string {
	t := tokens[i]
	switch t.Type {
	case token.SequenceStartType, token.MappingStartType:
		n.flow++
	case token.SequenceEndType, token.MappingEndType:
		n.flow = max(n.flow-1, 0)
	case token.SequenceEntryType:
		n.open(t.Position.Column)
	case token.MappingValueType:
		if n.flow > 0 || i == 0 {
			break
		}
		l := n.open(tokens[i-1].Position.Column)
		if l.keys++; l.keys > maxKeys {
			return fmt.Sprintf("a mapping with more than %d keys", maxKeys)
		}
	}
	if n.flow+len(n.block) > maxDepth {
		return fmt.Sprintf("values nested more than %d deep", maxDepth)
	}
	return ""
}

// open returns the block level at a column after closing deeper ones.
func (n *nesting) open(column int) *level {
	for len(n.block) > 0 && n.block[len(n.block)-1].column > column {
		n.block = n.block[:len(n.block)-1]
	}
	if len(n.block) == 0 || n.block[len(n.block)-1].column < column {
		n.block = append(n.block, level{column: column})
	}
	return &n.block[len(n.block)-1]
}

// parseTokens calls the library's parser. Duplicate keys are let through here
// and reported, all of them, by the decoder.
func parseTokens(tokens token.Tokens) (f *ast.File, err error) {
	defer func() {
		// The library has panicked on malformed input before; a configuration
		// that cannot be read is refused, never fatal for a running server.
		if p := recover(); p != nil {
			f, err = nil, fmt.Errorf("the YAML cannot be read: %v", p)
		}
	}()
	return parser.Parse(tokens, 0, parser.AllowDuplicateMapKey())
}

func reportSyntax(r *reporter, err error) {
	const hint = "check indentation, quotes and brackets around here"
	if se, ok := errors.AsType[*yaml.SyntaxError](err); ok && se.Token != nil {
		r.report(tokenPosition(se.Token), "", "not valid YAML: "+se.Message, hint)
		return
	}
	r.report(position{}, "", "not valid YAML: "+strings.SplitN(err.Error(), "\n", 2)[0], hint)
}

func tokenPosition(t *token.Token) position {
	if t == nil || t.Position == nil {
		return position{}
	}
	return position{line: max(t.Position.Line, 1), column: max(t.Position.Column, 1)}
}

// nodePosition is where a value begins. The library puts a block mapping at
// its first colon; here it is at its first key.
func nodePosition(n ast.Node) position {
	switch n := n.(type) {
	case nil:
		return position{}
	case *ast.MappingNode:
		if !n.IsFlowStyle && len(n.Values) > 0 {
			return nodePosition(n.Values[0].Key)
		}
	case *ast.MappingValueNode:
		return nodePosition(n.Key)
	case *ast.LiteralNode:
		return tokenPosition(n.Start)
	}
	return tokenPosition(n.GetToken())
}

// describe says what a node is, for "found …" in messages.
func describe(n ast.Node) string {
	switch n := n.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		return "a mapping"
	case *ast.SequenceNode:
		return "a list"
	case *ast.NullNode:
		return "nothing"
	case *ast.BoolNode:
		return "the boolean " + n.Token.Value
	case *ast.IntegerNode:
		return "the number " + shorten(n.Token.Value)
	case *ast.FloatNode:
		return "the number " + shorten(n.Token.Value)
	case *ast.InfinityNode:
		return "the number " + n.Token.Value
	case *ast.NanNode:
		return "the number " + n.Token.Value
	case *ast.StringNode:
		return "the text " + quote(n.Value)
	case *ast.LiteralNode:
		return "a text block"
	}
	return "something else"
}

func shorten(s string) string {
	if len(s) > 40 {
		return s[:40] + "…"
	}
	return s
}
