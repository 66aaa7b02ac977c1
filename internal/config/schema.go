package config

import (
	"bytes"
	"encoding/json"
	"reflect"
	"strconv"
)

// PrintSchema returns a JSON Schema (2020-12) of the file for editors. It is
// made from the table that the decoder uses. Keys that this release refuses
// are in it, with a schema that nothing satisfies.
func PrintSchema() []byte {
	root := object{
		{"$schema", "https://json-schema.org/draft/2020-12/schema"},
		{"title", "Gatebook configuration"},
	}
	root = append(root, structSchema(reflect.TypeFor[File]())...)
	b, err := json.Marshal(root)
	if err != nil {
		panic("config: schema: " + err.Error())
	}
	var out bytes.Buffer
	if err := json.Indent(&out, b, "", "  "); err != nil {
		panic("config: schema: " + err.Error())
	}
	out.WriteByte('\n')
	return out.Bytes()
}

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	name  string
	value any
}

// MarshalJSON writes the members in order.
func (o object) MarshalJSON() ([]byte, error) {
	b := []byte{'{'}
	for i, m := range o {
		if i > 0 {
			b = append(b, ',')
		}
		name, err := json.Marshal(m.name)
		if err != nil {
			return nil, err
		}
		value, err := json.Marshal(m.value)
		if err != nil {
			return nil, err
		}
		b = append(append(append(b, name...), ':'), value...)
	}
	return append(b, '}'), nil
}

func structSchema(t reflect.Type) object {
	props, required := object{}, []string{}
	for _, f := range fieldsOf(t) {
		props = append(props, member{f.key, fieldSchema(&f)})
		if f.required {
			required = append(required, f.key)
		}
	}
	out := object{{"type", "object"}, {"additionalProperties", false}, {"properties", props}}
	if len(required) > 0 {
		out = append(out, member{"required", required})
	}
	return out
}

func fieldSchema(f *field) object {
	if f.later != "" {
		return object{{"description", "Not supported in this release: " + f.later + ". " + f.doc}, {"not", object{}}}
	}
	out := append(object{{"description", f.doc}}, typeSchema(f, f.typ)...)
	if f.def != "" {
		out = append(out, member{"default", defaultValue(f)})
	}
	return out
}

func defaultValue(f *field) any {
	switch kindOf(f.typ).schema {
	case "boolean":
		return f.def == "true"
	case "integer":
		return json.Number(f.def)
	}
	return f.def
}

func typeSchema(f *field, t reflect.Type) object {
	switch shapeOf(t) {
	case shapeStruct:
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		return structSchema(t)
	case shapeMap:
		out := object{{"type", "object"}}
		if p := forms(f.names).pattern; p != "" {
			out = append(out, member{"propertyNames", object{{"pattern", p}}})
		}
		return append(out, member{"additionalProperties", typeSchema(f, t.Elem())})
	case shapeList:
		out := object{{"type", "array"}, {"items", typeSchema(f, t.Elem())}}
		if f.required {
			out = append(out, member{"minItems", 1})
		}
		if shapeOf(t.Elem()) == shapeScalar {
			out = append(out, member{"uniqueItems", true})
		}
		return out
	default:
		return scalarSchema(f, t)
	}
}

func scalarSchema(f *field, t reflect.Type) object {
	kind := kindOf(t)
	out := object{{"type", kind.schema}}
	switch {
	case len(f.enum) > 0:
		out = append(out, member{"enum", f.enum})
	case kind.pattern != "":
		out = append(out, member{"pattern", kind.pattern})
	case t.Kind() == reflect.String && f.form != "" && forms(f.form).pattern != "":
		out = append(out, member{"pattern", forms(f.form).pattern})
	}
	if kind.schema == "integer" {
		for _, b := range []member{{"minimum", f.min}, {"maximum", f.max}} {
			if s := b.value.(string); s != "" {
				n, err := strconv.Atoi(s)
				if err != nil {
					panic("config: bound of " + f.key + ": " + err.Error())
				}
				out = append(out, member{b.name, n})
			}
		}
	}
	return out
}
