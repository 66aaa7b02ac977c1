package config

import (
	"cmp"
	"fmt"
	"reflect"
	"slices"
	"strconv"
	"strings"

	"github.com/goccy/go-yaml/ast"
)

// decoder fills a File from a YAML tree by the table in the struct tags. It
// goes on after a problem, so that all are found in one run, and notes where
// every value came from.
type decoder struct {
	*reporter
	at, keyAt map[string]position
}

// mapping fills the struct v. A nil node stands for an absent key and leaves
// the defaults. here is the position to blame for missing keys.
func (d *decoder) mapping(n *ast.MappingNode, here position, path string, v reflect.Value) {
	fields := fieldsOf(v.Type())
	present := d.entries(n, path, func(key string, pos position, _ ast.Node) bool {
		if slices.ContainsFunc(fields, func(f field) bool { return f.key == key }) {
			return true
		}
		known := make([]string, len(fields))
		for i, f := range fields {
			known[i] = f.key
		}
		d.report(pos, path, "unknown key "+quote(key), didYouMean(key, known, "known keys here are "+strings.Join(known, ", ")))
		return false
	})
	for i := range fields {
		f := &fields[i]
		child := join(path, f.key)
		node, ok := present[f.key]
		switch {
		case ok:
			d.field(f, node, child, v.Field(f.index))
		case f.required && n != nil:
			d.report(here, path, "the key "+f.key+" is missing", "add it: "+firstSentence(f.doc))
		default:
			d.absent(f, here, child, v.Field(f.index))
		}
	}
}

func firstSentence(doc string) string {
	s, _, _ := strings.Cut(doc, ". ")
	return strings.ToLower(s[:1]) + strings.TrimSuffix(s[1:], ".")
}

// entries walks the keys of a mapping, reports those given twice, notes
// positions and returns the values of the keys that accept takes.
func (d *decoder) entries(n *ast.MappingNode, path string, accept func(key string, pos position, v ast.Node) bool) map[string]ast.Node {
	out := map[string]ast.Node{}
	if n == nil {
		return out
	}
	first := map[string]position{}
	for _, e := range n.Values {
		pos := nodePosition(e.Key)
		key, ok := keyText(e.Key)
		if !ok {
			d.report(pos, path, "a key that is not plain text: "+describe(e.Key), "put it in quotes if it is a name")
			continue
		}
		if was, dup := first[key]; dup {
			d.report(pos, path, "the key "+quote(key)+" is given twice", fmt.Sprintf("the first is in line %d; remove one", was.line))
			continue
		}
		first[key] = pos
		if accept(key, pos, e.Value) {
			out[key] = e.Value
			child := join(path, key)
			d.keyAt[child], d.at[child] = pos, valuePosition(e)
		}
	}
	return out
}

// valuePosition is where the value of an entry begins; for a missing value it
// is the key.
func valuePosition(e *ast.MappingValueNode) position {
	if _, null := e.Value.(*ast.NullNode); null || e.Value == nil {
		return nodePosition(e.Key)
	}
	return nodePosition(e.Value)
}

func keyText(k ast.MapKeyNode) (string, bool) {
	switch k := k.(type) {
	case *ast.StringNode:
		return k.Value, true
	case *ast.IntegerNode:
		return k.Token.Value, true
	}
	return "", false
}

// absent applies the default of a key that is not there.
func (d *decoder) absent(f *field, here position, path string, v reflect.Value) {
	if shapeOf(f.typ) == shapeStruct && f.typ.Kind() != reflect.Pointer {
		d.mapping(nil, here, path, v)
		return
	}
	if f.def == "" {
		return
	}
	def, err := kindOf(f.typ).parse(f.def)
	if err != nil {
		panic(fmt.Sprintf("config: default of %s: %v", path, err))
	}
	v.Set(reflect.ValueOf(def).Convert(v.Type()))
}

// field fills one key's value.
func (d *decoder) field(f *field, n ast.Node, path string, v reflect.Value) {
	if f.later != "" {
		d.report(d.keyAt[path], path, "not supported in this release: "+f.later, "remove the key "+f.key)
	}
	if shapeOf(f.typ) == shapeLater {
		return
	}
	if _, null := n.(*ast.NullNode); null || n == nil {
		d.report(d.keyAt[path], path, "no value", "give it one or remove the key")
		return
	}
	d.value(f, f.typ, n, path, v)
}

// value fills v, whose type t is that of the row or of one of its elements.
func (d *decoder) value(f *field, t reflect.Type, n ast.Node, path string, v reflect.Value) {
	if t.Kind() == reflect.Pointer {
		p := reflect.New(t.Elem())
		v.Set(p)
		t, v = t.Elem(), p.Elem()
	}
	switch shapeOf(t) {
	case shapeStruct:
		if _, written := n.(ast.ScalarNode); written && t == reflect.TypeFor[Secret]() {
			d.report(nodePosition(n), path, "a text where the place of a secret is expected", "secrets are never written into the file: write {file: /run/secrets/NAME} or {env: NAME}")
		} else if m, ok := d.asMapping(n, path); ok {
			d.mapping(m, nodePosition(n), path, v)
		}
	case shapeMap:
		if m, ok := d.asMapping(n, path); ok {
			d.names(f, t, m, path, v)
		}
	case shapeList:
		d.sequence(f, t, n, path, v)
	default:
		d.scalar(f, t, n, path, v)
	}
}

func (d *decoder) asMapping(n ast.Node, path string) (*ast.MappingNode, bool) {
	switch n := n.(type) {
	case *ast.MappingNode:
		return n, true
	case *ast.MappingValueNode:
		return ast.Mapping(n.Start, false, n), true
	}
	d.report(nodePosition(n), path, describe(n)+" where a mapping of keys is expected", "write keys and values, such as {key: value}")
	return nil, false
}

// names fills a map whose keys are names chosen by the user.
func (d *decoder) names(f *field, t reflect.Type, n *ast.MappingNode, path string, v reflect.Value) {
	out := reflect.MakeMapWithSize(t, len(n.Values))
	var order []string
	present := d.entries(n, path, func(key string, pos position, _ ast.Node) bool {
		if what, hint := forms(f.names).check(key); what != "" {
			d.report(pos, path, what, hint)
			return false
		}
		order = append(order, key)
		return true
	})
	for _, key := range order {
		node, child := present[key], join(path, key)
		if _, null := node.(*ast.NullNode); null || node == nil {
			d.report(d.keyAt[child], child, "no value", "give it one or remove the key")
			continue
		}
		e := reflect.New(t.Elem()).Elem()
		d.value(f, t.Elem(), node, child, e)
		out.SetMapIndex(reflect.ValueOf(key), e)
	}
	v.Set(out)
}

func (d *decoder) sequence(f *field, t reflect.Type, n ast.Node, path string, v reflect.Value) {
	s, ok := n.(*ast.SequenceNode)
	if !ok {
		hint := "write a list, such as [a, b]"
		if sn, ok := n.(*ast.StringNode); ok && len(sn.Value) < 60 {
			hint = "did you mean [" + sn.Value + "]?"
		}
		if f.key == "authn" {
			hint = "write a list such as [{jwt: issuer}], or public: true instead of authn for a route without it"
		}
		d.report(nodePosition(n), path, describe(n)+" where a list is expected", hint)
		return
	}
	out := reflect.MakeSlice(t, len(s.Values), len(s.Values))
	seen := map[any]int{}
	for i, e := range s.Values {
		child := path + "[" + strconv.Itoa(i) + "]"
		if _, null := e.(*ast.NullNode); null || e == nil {
			d.report(cmp.Or(nodePosition(e), d.at[path]), child, "an empty element", "give it a value or remove it")
			continue
		}
		d.at[child] = nodePosition(e)
		before := len(d.list)
		d.value(f, t.Elem(), e, child, out.Index(i))
		if shapeOf(t.Elem()) != shapeScalar || len(d.list) > before {
			continue
		}
		el := out.Index(i).Interface()
		if j, dup := seen[el]; dup {
			d.report(d.at[child], child, fmt.Sprintf("%s is given twice", quote(fmt.Sprint(el))), fmt.Sprintf("remove it; it is already element %d", j))
		}
		seen[el] = i
	}
	if f.required && len(s.Values) == 0 {
		d.report(nodePosition(n), path, "the list is empty", "it needs at least one element")
	}
	v.Set(out)
}

// scalar fills a single value and checks it against its row.
func (d *decoder) scalar(f *field, t reflect.Type, n ast.Node, path string, v reflect.Value) {
	kind := kindOf(t)
	text, ok := d.scalarText(kind, n, path)
	if !ok {
		return
	}
	pos := nodePosition(n)
	val, err := kind.parse(text)
	if err != nil {
		what, hint, _ := strings.Cut(err.Error(), "; ")
		d.report(pos, path, what, hint)
		return
	}
	if !f.inRange(t, val) {
		d.report(pos, path, quote(text)+" is out of range", "the range is "+f.bounds())
		return
	}
	if t.Kind() == reflect.String && !d.text(f, text, pos, path) {
		return
	}
	v.Set(reflect.ValueOf(val).Convert(t))
}

// text checks a text against the enum or form of its row.
func (d *decoder) text(f *field, text string, pos position, path string) bool {
	if len(f.enum) > 0 && !slices.Contains(f.enum, text) {
		if slices.Contains(f.laterEnum, text) {
			hint := "use " + list(f.enum)
			if f.def == f.enum[0] && len(f.enum) == 1 {
				hint = "remove the key " + f.key
			}
			d.report(pos, path, "not supported in this release: "+f.key+" "+quote(text), hint)
			return false
		}
		what, hint := quote(text)+" is not a value of "+f.key, didYouMean(text, f.enum, "use "+list(f.enum))
		if f.key == "algorithms" && (strings.HasPrefix(text, "HS") || strings.EqualFold(text, "none")) {
			what, hint = quote(text)+" does not prove who signed a token", "use an asymmetric algorithm: "+list(f.enum)
		}
		d.report(pos, path, what, hint)
		return false
	}
	form := f.form
	if form == "" {
		form = "text"
		if f.typ == typePath {
			form = "file"
		}
	}
	if what, hint := forms(form).check(text); what != "" {
		d.report(pos, path, what, hint)
		return false
	}
	return true
}

// scalarText returns the text of a scalar node whose YAML type fits the kind:
// what YAML takes for a number or boolean is not quietly made text, nor text a
// number.
func (d *decoder) scalarText(kind scalarKind, n ast.Node, path string) (string, bool) {
	hint := ""
	switch n := n.(type) {
	case *ast.StringNode:
		switch kind.schema {
		case "string":
			return n.Value, true
		case "boolean":
			hint = "write true or false, without quotes"
		default:
			hint = "write decimal digits, without quotes"
		}
	case *ast.BoolNode:
		if kind.schema == "boolean" {
			return n.Token.Value, true
		}
		hint = "put it in quotes if it is meant as text"
	case *ast.IntegerNode:
		if kind.schema == "integer" {
			return n.Token.Value, true
		}
		// A bare number gets the message of the kind it should have been.
		if kind.name == "duration" || kind.name == "size" || kind.name == "rate" {
			return n.Token.Value, true
		}
		hint = "put it in quotes if it is meant as text"
	case *ast.LiteralNode:
		hint = "write it on one line"
	default:
		hint = "write one value"
	}
	if kind.schema != "string" && hint == "put it in quotes if it is meant as text" {
		hint = ""
	}
	d.report(nodePosition(n), path, describe(n)+" where "+kind.article+" is expected", hint)
	return "", false
}

// join appends a key to a path.
func join(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
