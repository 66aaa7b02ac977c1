package bulkd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net/netip"
	"strconv"
	"strings"
	"time"
)

// mapping is what is understood of mappings.
type mapping struct {
	Dynamic    any                 `json:"dynamic"`
	Properties map[string]property `json:"properties"`
}

type property struct {
	Type            string              `json:"type"`
	Format          string              `json:"format"`
	IgnoreAbove     int                 `json:"ignore_above"`
	IgnoreMalformed bool                `json:"ignore_malformed"`
	Enabled         *bool               `json:"enabled"`
	Index           *bool               `json:"index"`
	DocValues       *bool               `json:"doc_values"`
	Path            string              `json:"path"`
	Value           string              `json:"value"`
	Properties      map[string]property `json:"properties"`
}

type field struct {
	kind        string
	format      string
	ignoreAbove int
	lenient     bool
}

// fields are the mapping of one index.
type fields struct {
	dynamic string
	lenient bool // index.mapping.ignore_malformed
	types   map[string]field
	objects map[string]bool
}

var knownTypes = map[string]bool{
	"keyword": true, "constant_keyword": true, "long": true, "integer": true, "date": true, "ip": true, "boolean": true,
	"float": true, "double": true, "text": true, "wildcard": true, "flattened": true, "match_only_text": true,
}

// check refuses types and parameters that the product does not have.
func (m *mapping) check(p Product) *failure {
	if m == nil {
		return nil
	}
	return checkProperties("", m.Properties, p)
}

func checkProperties(at string, props map[string]property, p Product) *failure {
	for name, prop := range props {
		if prop.Type == "" || prop.Type == "object" {
			if f := checkProperties(at+name+".", prop.Properties, p); f != nil {
				return f
			}
			continue
		}
		if !knownTypes[prop.Type] {
			return fail(400, "mapper_parsing_exception", "No handler for type ["+prop.Type+"] declared on field ["+at+name+"]")
		}
		if prop.IgnoreAbove != 0 && prop.Type != "keyword" && prop.Type != "flattened" && prop.Type != "wildcard" {
			return fail(400, "mapper_parsing_exception", "unknown parameter [ignore_above] on mapper ["+at+name+"] of type ["+prop.Type+"]")
		}
		if p == OpenSearch && prop.Type == "flattened" {
			return fail(400, "mapper_parsing_exception", "No handler for type [flattened] declared on field ["+at+name+"]")
		}
	}
	return nil
}

func (f *fields) add(m *mapping, settings map[string]any) {
	if v, ok := settings["index.mapping.ignore_malformed"]; ok {
		f.lenient = fmt.Sprint(v) == "true"
	}
	if m == nil {
		return
	}
	if m.Dynamic != nil {
		f.dynamic = fmt.Sprint(m.Dynamic)
	}
	f.properties("", m.Properties)
}

func (f *fields) properties(at string, props map[string]property) {
	for name, p := range props {
		if p.Type == "" || p.Type == "object" {
			f.objects[at+name] = true
			if p.Enabled != nil && !*p.Enabled {
				f.types[at+name] = field{kind: "flattened"}
			}
			f.properties(at+name+".", p.Properties)
			continue
		}
		for i := range name {
			if name[i] == '.' {
				f.objects[at+name[:i]] = true
			}
		}
		f.types[at+name] = field{p.Type, p.Format, p.IgnoreAbove, p.IgnoreMalformed}
	}
}

// parse checks a document against the fields, and grows them where they are dynamic.
func (f *fields) parse(source []byte, stream bool) *failure {
	dec := json.NewDecoder(bytes.NewReader(source))
	dec.UseNumber()
	var doc map[string]any
	if err := dec.Decode(&doc); err != nil || doc == nil || dec.More() {
		return fail(400, "document_parsing_exception", "failed to parse")
	}
	if stream {
		switch v := doc["@timestamp"].(type) {
		case nil:
			return fail(400, "document_parsing_exception", "data stream timestamp field [@timestamp] is missing")
		case []any:
			return fail(400, "document_parsing_exception", "data stream timestamp field [@timestamp] encountered multiple values")
		default:
			if !fits(field{kind: "date"}, v) {
				return fail(400, "document_parsing_exception", fmt.Sprintf("failed to parse field [@timestamp] of type [date]. Preview of field's value: '%v'", v))
			}
		}
	}
	return f.object("", doc)
}

func (f *fields) object(at string, doc map[string]any) *failure {
	for k, v := range doc {
		if bad := f.value(at+k, v); bad != nil {
			return bad
		}
	}
	return nil
}

func (f *fields) value(path string, v any) *failure {
	switch v := v.(type) {
	case nil:
		return nil
	case []any:
		for _, e := range v {
			if bad := f.value(path, e); bad != nil {
				return bad
			}
		}
		return nil
	case map[string]any:
		t, mapped := f.types[path]
		if mapped && t.kind == "flattened" {
			return nil
		}
		if mapped {
			return fail(400, "document_parsing_exception", "failed to parse field ["+path+"] of type ["+t.kind+"]: can't get text on a START_OBJECT")
		}
		if f.dynamic == "strict" && !f.objects[path] {
			return fail(400, "strict_dynamic_mapping_exception", "mapping set to strict, dynamic introduction of ["+path+"] is not allowed")
		}
		if f.dynamic == "true" {
			f.objects[path] = true
		}
		if f.dynamic == "false" && !f.objects[path] {
			return nil // not looked at
		}
		return f.object(path+".", v)
	}
	return f.scalar(path, v)
}

func (f *fields) scalar(path string, v any) *failure {
	t, ok := f.types[path]
	switch {
	case !ok && f.objects[path]:
		return fail(400, "document_parsing_exception", "object mapping for ["+path+"] tried to parse field ["+path[strings.LastIndexByte(path, '.')+1:]+"] as object, but found a concrete value")
	case !ok && f.dynamic == "strict":
		return fail(400, "strict_dynamic_mapping_exception", "mapping set to strict, dynamic introduction of ["+path+"] is not allowed")
	case !ok && f.dynamic == "true":
		f.types[path] = field{kind: guess(v)}
		return nil
	case !ok:
		return nil
	}
	if s, isString := v.(string); isString && t.kind == "keyword" && len(s) > 32766 && t.ignoreAbove == 0 {
		return fail(400, "illegal_argument_exception", "Document contains at least one immense term in field=\""+path+"\" (whose UTF8 encoding is longer than the max length 32766)")
	}
	if !fits(t, v) && !t.lenient && !(f.lenient && t.kind != "boolean" && path != "@timestamp") {
		return fail(400, "document_parsing_exception", fmt.Sprintf("[1:1] failed to parse field [%s] of type [%s] in document. Preview of field's value: '%v'", path, t.kind, v))
	}
	return nil
}

func guess(v any) string {
	switch v := v.(type) {
	case bool:
		return "boolean"
	case json.Number:
		if _, err := v.Int64(); err == nil {
			return "long"
		}
		return "float"
	case string:
		if _, err := time.Parse(time.RFC3339Nano, v); err == nil {
			return "date"
		}
	}
	return "text"
}

func fits(t field, v any) bool {
	text := fmt.Sprint(v)
	switch t.kind {
	case "long", "integer":
		bits := 64
		if t.kind == "integer" {
			bits = 32
		}
		_, err := strconv.ParseInt(text, 10, bits)
		return err == nil
	case "float", "double":
		_, err := strconv.ParseFloat(text, 64)
		return err == nil
	case "boolean":
		return text == "true" || text == "false" || text == ""
	case "ip":
		_, err := netip.ParseAddr(text)
		return err == nil
	case "date":
		if n, ok := v.(json.Number); ok {
			_, err := n.Int64()
			return err == nil
		}
		for _, layout := range []string{time.RFC3339Nano, "2006-01-02T15:04:05", "2006-01-02"} {
			if _, err := time.Parse(layout, text); err == nil {
				return true
			}
		}
		return false
	}
	return true
}
