package config

import (
	"encoding/json"
	"fmt"
	"os"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	yaml "github.com/goccy/go-yaml"
)

// row is one row of the table with its path; lists and maps are written [] and
// NAME.
type row struct {
	path string
	f    field
	in   reflect.Type
}

func rows(path string, t reflect.Type) []row {
	var out []row
	for _, f := range fieldsOf(t) {
		out = append(out, row{join(path, f.key), f, t})
		if p, ct := childOf(join(path, f.key), f.typ); ct != nil {
			out = append(out, rows(p, ct)...)
		}
	}
	return out
}

func allRows() []row { return rows("", reflect.TypeFor[File]()) }

// TestTable checks that the tags mean something and that every exported field
// is in the file.
func TestTable(t *testing.T) {
	for _, r := range allRows() {
		if !regexp.MustCompile(`^[a-z][a-z0-9_]*$`).MatchString(r.f.key) {
			t.Errorf("%s: odd key", r.path)
		}
		if !strings.HasSuffix(r.f.doc, ".") || !strings.Contains("ABCDEFGHIJKLMNOPQRSTUVWXYZ", r.f.doc[:1]) {
			t.Errorf("%s: doc is not a sentence: %q", r.path, r.f.doc)
		}
		if r.f.required && r.f.def != "" {
			t.Errorf("%s: required and with a default", r.path)
		}
		elem := r.f.typ
		for shapeOf(elem) == shapeList || shapeOf(elem) == shapeMap {
			elem = elem.Elem()
		}
		if (shapeOf(r.f.typ) == shapeMap) != (r.f.names != "") {
			t.Errorf("%s: names belong to maps", r.path)
		}
		if r.f.names != "" {
			forms(r.f.names)
		}
		if shapeOf(elem) != shapeScalar {
			continue
		}
		kind := kindOf(elem)
		if r.f.form != "" {
			forms(r.f.form)
		}
		if elem.Kind() == reflect.String && elem != typePath && r.f.form == "" && len(r.f.enum) == 0 {
			t.Errorf("%s: text without form or enum", r.path)
		}
		if r.f.def != "" {
			v, err := kind.parse(r.f.def)
			if err != nil || !r.f.inRange(elem, v) {
				t.Errorf("%s: default %q does not fit: %v", r.path, r.f.def, err)
			}
			if len(r.f.enum) > 0 && !slices.Contains(r.f.enum, r.f.def) {
				t.Errorf("%s: default %q is not in the enum", r.path, r.f.def)
			}
			if s, ok := v.(fmt.Stringer); ok && s.String() != r.f.def {
				t.Errorf("%s: default %q is written %q", r.path, r.f.def, s)
			}
		}
	}
	for _, r := range allRows() {
		for i := range r.in.NumField() {
			if sf := r.in.Field(i); sf.IsExported() && sf.Tag.Get("key") == "" {
				t.Errorf("%v.%s has no key", r.in, sf.Name)
			}
		}
	}
}

// schemaKeys collects the paths of all properties of a schema.
func schemaKeys(path string, s map[string]any, out map[string]map[string]any) {
	if items, ok := s["items"].(map[string]any); ok {
		schemaKeys(path+"[]", items, out)
	}
	if more, ok := s["additionalProperties"].(map[string]any); ok {
		schemaKeys(path+".NAME", more, out)
	}
	props, _ := s["properties"].(map[string]any)
	for key, v := range props {
		p := v.(map[string]any)
		out[join(path, key)] = p
		schemaKeys(join(path, key), p, out)
	}
}

func schema(t *testing.T) map[string]any {
	t.Helper()
	var s map[string]any
	if err := json.Unmarshal(PrintSchema(), &s); err != nil {
		t.Fatal(err)
	}
	return s
}

// document writes a file with only the given key path set to a scalar.
func document(path string) string {
	parts := strings.Split(path, ".")
	var b strings.Builder
	for i, p := range parts {
		key, isList := strings.CutSuffix(p, "[]")
		if key == "NAME" {
			key = "some-name"
		}
		if i < len(parts)-1 {
			b.WriteString("{" + key + ": ")
			if isList {
				b.WriteString("[")
			}
			continue
		}
		b.WriteString("{" + key + ": 1}")
	}
	for i := len(parts) - 2; i >= 0; i-- {
		if strings.HasSuffix(parts[i], "[]") {
			b.WriteString("]")
		}
		b.WriteString("}")
	}
	return b.String() + "\n"
}

func saysUnknown(text string) bool {
	_, problems := Parse("x.yaml", []byte(text))
	return slices.ContainsFunc(problems.All(), func(p Problem) bool { return strings.HasPrefix(p.What, "unknown key") })
}

// TestSchemaAndDecoder proves by trying that the keys that the decoder takes
// are those of the schema.
func TestSchemaAndDecoder(t *testing.T) {
	inSchema := map[string]map[string]any{}
	schemaKeys("", schema(t), inSchema)
	inTable := map[string]bool{}
	for _, r := range allRows() {
		inTable[r.path] = true
		s := inSchema[r.path]
		// The content of a key that is refused as a whole is not in the schema.
		if s == nil && !strings.HasPrefix(r.path, "classes.") {
			t.Errorf("%s is taken by the decoder and not in the schema", r.path)
		}
		if s != nil && (s["not"] != nil) != (r.f.later != "") {
			t.Errorf("%s: schema and decoder differ on whether it is refused", r.path)
		}
	}
	for path := range inSchema {
		if !inTable[path] {
			t.Errorf("%s is in the schema and unknown to the table", path)
		}
		if text := document(path); saysUnknown(text) {
			t.Errorf("%s is in the schema and unknown to the decoder: %s", path, text)
		}
		if text := document(path + "_x"); !saysUnknown(text) {
			t.Errorf("%s_x is not in the schema and known to the decoder: %s", path, text)
		}
	}
}

// valid checks a value against the part of JSON Schema that PrintSchema uses.
func valid(s map[string]any, v any, path string) []string {
	var bad []string
	fail := func(format string, args ...any) { bad = append(bad, path+": "+fmt.Sprintf(format, args...)) }
	if s["not"] != nil {
		fail("refused")
	}
	text, isText := v.(string)
	switch s["type"] {
	case "string":
		if !isText {
			fail("%T is not a string", v)
		}
	case "boolean":
		if _, ok := v.(bool); !ok {
			fail("%T is not a boolean", v)
		}
	case "integer":
		if n, ok := v.(uint64); !ok || s["minimum"] != nil && float64(n) < s["minimum"].(float64) || s["maximum"] != nil && float64(n) > s["maximum"].(float64) {
			fail("%v (%T) is not an integer in range", v, v)
		}
	case "array":
		list, ok := v.([]any)
		if !ok {
			fail("%T is not an array", v)
		}
		if n, ok := s["minItems"].(float64); ok && len(list) < int(n) {
			fail("too short")
		}
		for i, e := range list {
			bad = append(bad, valid(s["items"].(map[string]any), e, fmt.Sprintf("%s[%d]", path, i))...)
		}
	case "object":
		m, ok := v.(map[string]any)
		if !ok {
			fail("%T is not an object", v)
		}
		props, _ := s["properties"].(map[string]any)
		for _, k := range asStrings(s["required"]) {
			if _, ok := m[k]; !ok {
				fail("%s is missing", k)
			}
		}
		for k, e := range m {
			sub, ok := props[k].(map[string]any)
			if !ok {
				sub, ok = s["additionalProperties"].(map[string]any)
			}
			if !ok {
				fail("unknown key %s", k)
				continue
			}
			if names, ok := s["propertyNames"].(map[string]any); ok && !regexp.MustCompile(names["pattern"].(string)).MatchString(k) {
				fail("name %q does not match", k)
			}
			bad = append(bad, valid(sub, e, join(path, k))...)
		}
	}
	if e := asStrings(s["enum"]); e != nil && !slices.Contains(e, text) {
		fail("%q is not in the enum", text)
	}
	if p, ok := s["pattern"].(string); ok && !regexp.MustCompile(p).MatchString(text) {
		fail("%q does not match %s", text, p)
	}
	return bad
}

func asStrings(v any) []string {
	list, _ := v.([]any)
	var out []string
	for _, e := range list {
		out = append(out, e.(string))
	}
	return out
}

// TestSchemaAcceptsValid holds the schema against files that Parse takes, and
// against some that it must not.
func TestSchemaAcceptsValid(t *testing.T) {
	s := schema(t)
	check := func(name string) []string {
		data, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		var v any
		if err := yaml.Unmarshal(data, &v); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		return valid(s, v, "")
	}
	for _, name := range yamlFiles(t, "valid") {
		if bad := check(name); len(bad) > 0 {
			t.Errorf("the schema refuses %s: %v", name, bad)
		}
	}
	for _, name := range []string{"later", "spec", "unknown", "missing", "units", "issuers", "routes", "tokens"} {
		if bad := check("testdata/problems/" + name + ".yaml"); len(bad) == 0 {
			t.Errorf("the schema accepts %s.yaml", name)
		}
	}
}

// TestSchemaPatterns: what a form takes matches its pattern, or an editor would
// mark good values.
func TestSchemaPatterns(t *testing.T) {
	good := map[string][]string{
		"name":           {"a", "api-1", "per_subject"},
		"label":          {"a", "Orders.Read.All", "two words", "ü"},
		"route":          {"a", "orders.read", "a-b.c_d.e"},
		"routes":         {"*", "a", "orders.*", "orders.read"},
		"node":           {"a", "gate-1"},
		"origin":         {"localhost/gatebook", "log.example.com", "log.example.com:443/a/B~c"},
		"address":        {":8443", "127.0.0.1:0", "[::1]:80", "localhost:80"},
		"peer":           {"cache.example.com:6379", "127.0.0.1:1", "[::1]:6379"},
		"issuer":         {"https://idp.example.com/x", "http://localhost:9000"},
		"jwksurl":        {"https://idp.example.com/keys"},
		"target":         {"http://10.0.0.1", "https://[::1]:80/"},
		"method":         {"GET", "M-SEARCH"},
		"header":         {"accept-language", "x-a1"},
		"keyfield":       {"x-api-key", "authorization", "api-key"},
		"pointer":        {"/roles", "/a~1b/c", "/cognito:groups"},
		"scope":          {"read", "orders:read", "https://graph/.default"},
		"type":           {"at+jwt", "JWT", "absent", "application/okta-internal-at+jwt"},
		"pattern":        {"/", "/a/{id}/{rest...}"},
		"checkpath":      {"/", "/healthz", "/a%20b?deep=1"},
		"host":           {"localhost", "a.b", "[::1]", "127.0.0.1"},
		"file":           {"a", "/etc/x", "../y z"},
		"claim":          {"department", "https://example.com/tenant"},
		"text":           {"a b"},
		"acr":            {"gold", "urn:mace:incommon:iap:silver"},
		"env":            {"GATE_SECRET", "_a1"},
		"resource":       {"https://api.example.com", "https://api.example.com/", "https://api.example.com:8443/v1/orders", "http://127.0.0.1:8080"},
		"tokentext":      {"ory_at_", "a.b=~+/"},
		"holder":         {"cn:Ada Lovelace", "dns:ops.example.com", "email:ada@example.com", "uri:spiffe://x/y", "role:corp:auditor", "sub:corp:a:b"},
		"trustdomain":    {"example.org", "prod_1.example-2.org"},
		"identityheader": {"X-Gatebook-Identity", "x-id"},
		"sinkurl":        {"https://siem.example.com:8088", "http://10.0.0.7:9200/prefix"},
		"rule":           {"odd_hours", "a1"},
		"fieldpath":      {"subject", "client.prefix", "tls.ja4"},
		"expression":     {`status >= 400 && subject != "none"`},
		"clock":          {"07:00", "24:00"},
		"zone":           {"UTC", "Europe/Berlin"},
		"personal":       {"sub", "body_sha256", "headers.accept-language", "claims.https://example.com/dept"},
		"sinkname":       {"main", "_audit", "gate-1_x"},
		"datastream":     {"logs-gatebook.audit-default"},
		"tag":            {"env:prod", "team:a/b-c.d"},
		"clientid":       {"shop", "s6BhdRkqt3", "{x}"},
	}
	used := map[string]bool{}
	for _, r := range allRows() {
		used[r.f.form], used[r.f.names] = true, true
	}
	delete(used, "")
	for name := range used {
		if len(good[name]) == 0 {
			t.Errorf("no examples for the form %s", name)
		}
	}
	for name, texts := range good {
		f := forms(name)
		for _, s := range texts {
			if what, _ := f.check(s); what != "" {
				t.Errorf("%s refuses %q: %s", name, s, what)
			}
			if f.pattern != "" && !regexp.MustCompile(f.pattern).MatchString(s) {
				t.Errorf("the pattern of %s does not match %q", name, s)
			}
		}
	}
}

func TestReference(t *testing.T) { golden(t, "../../docs/configure.md", Reference()) }
