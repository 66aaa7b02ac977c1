package config

import (
	"fmt"
	"net/netip"
	"reflect"
	"strconv"
	"strings"
)

// field is one row of the table: one key of one struct.
type field struct {
	key, doc, def, later string
	min, max             string
	form, names          string
	enum, laterEnum      []string
	required             bool
	index                int
	typ                  reflect.Type
}

// fieldsOf reads the rows of a struct from its tags, in order. Fields without
// a key tag are not part of the file.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		sf := t.Field(i)
		key := sf.Tag.Get("key")
		if key == "" {
			continue
		}
		out = append(out, field{
			key: key, doc: sf.Tag.Get("doc"), def: sf.Tag.Get("default"), later: sf.Tag.Get("later"),
			min: sf.Tag.Get("min"), max: sf.Tag.Get("max"),
			form: sf.Tag.Get("form"), names: sf.Tag.Get("names"),
			enum:      strings.Fields(sf.Tag.Get("enum")),
			laterEnum: strings.Fields(sf.Tag.Get("laterenum")),
			required:  sf.Tag.Get("required") == "true",
			index:     i, typ: sf.Type,
		})
	}
	return out
}

// shape is how a Go type appears in the file.
type shape int

const (
	shapeScalar shape = iota
	shapeStruct       // mapping with fixed keys
	shapeMap          // mapping with names as keys
	shapeList
	shapeLater // refused
)

var (
	typeLater    = reflect.TypeFor[Later]()
	typePath     = reflect.TypeFor[Path]()
	typeDuration = reflect.TypeFor[Duration]()
	typeSize     = reflect.TypeFor[Size]()
	typeRate     = reflect.TypeFor[Rate]()
	typePrefixes = reflect.TypeFor[Prefixes]()
	typePrefix   = reflect.TypeFor[netip.Prefix]()
)

func shapeOf(t reflect.Type) shape {
	switch {
	case t == typeLater:
		return shapeLater
	case t == typeRate, t == typePrefixes, t == typePrefix:
		return shapeScalar
	case t.Kind() == reflect.Struct:
		return shapeStruct
	case t.Kind() == reflect.Pointer:
		return shapeOf(t.Elem())
	case t.Kind() == reflect.Map:
		return shapeMap
	case t.Kind() == reflect.Slice:
		return shapeList
	default:
		return shapeScalar
	}
}

// scalarKind describes one scalar type for messages, schema and docs.
type scalarKind struct {
	name    string // as in docs/configure.md
	article string // as in messages: "a duration"
	schema  string // JSON type
	pattern string // of the text, "" for any
	parse   func(string) (any, error)
}

// kindOf returns the kind of a scalar type.
func kindOf(t reflect.Type) scalarKind {
	switch t {
	case typeDuration:
		return scalarKind{"duration", "a duration", "string", `^([0-9]+(d|h|m|s|ms|us))+$`, func(s string) (any, error) { return ParseDuration(s) }}
	case typeSize:
		return scalarKind{"size", "a size", "string", `^[0-9]+(B|KiB|MiB|GiB)$`, func(s string) (any, error) { return ParseSize(s) }}
	case typeRate:
		return scalarKind{"rate", "a rate", "string", `^[0-9]+/(s|m|h)$`, func(s string) (any, error) { return ParseRate(s) }}
	case typePrefixes:
		return scalarKind{"prefixes", "a pair of prefixes", "string", `^(none|/[0-9]{1,2}, */[0-9]{1,3})$`, func(s string) (any, error) { return ParsePrefixes(s) }}
	case typePrefix:
		return scalarKind{"address range", "an address range", "string", `^[0-9a-fA-F.:]+/[0-9]{1,3}$`, func(s string) (any, error) { return parseRange(s) }}
	case typePath:
		return scalarKind{"path", "a file name", "string", "", func(s string) (any, error) { return Path(s), nil }}
	}
	switch t.Kind() {
	case reflect.Bool:
		return scalarKind{"boolean", "true or false", "boolean", "", parseBool}
	case reflect.Int:
		return scalarKind{"number", "a whole number", "integer", "", func(s string) (any, error) { n, err := parseInt(s); return int(n), err }}
	case reflect.Int64:
		return scalarKind{"number", "a whole number", "integer", "", func(s string) (any, error) { return parseInt(s) }}
	case reflect.String:
		return scalarKind{"text", "text", "string", "", func(s string) (any, error) { return s, nil }}
	}
	panic(fmt.Sprintf("config: no scalar kind for type %v", t))
}

func parseBool(s string) (any, error) {
	switch s {
	case "true":
		return true, nil
	case "false":
		return false, nil
	}
	return nil, fmt.Errorf("%s where true or false is expected; write true or false in lower case", quote(s))
}

func parseInt(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || s != strconv.FormatInt(n, 10) {
		return 0, fmt.Errorf("%s where a whole number is expected; write decimal digits only", quote(s))
	}
	return n, nil
}

// parseRange reads an address range whose host bits are zero. The range of all
// addresses is refused: trusting everybody's headers is never meant.
func parseRange(s string) (netip.Prefix, error) {
	const hint = "write a network and its length, such as 10.0.0.0/8"
	p, err := netip.ParsePrefix(s)
	if err != nil {
		if a, err := netip.ParseAddr(s); err == nil && a.Zone() == "" {
			return netip.Prefix{}, fmt.Errorf("not an address range: %s; did you mean %s/%d?", quote(s), a, a.BitLen())
		}
		return netip.Prefix{}, fmt.Errorf("not an address range: %s; %s", quote(s), hint)
	}
	if p.Addr().Is4In6() {
		return netip.Prefix{}, fmt.Errorf("an IPv4 range written as IPv6: %s; %s", quote(s), hint)
	}
	if p.Bits() == 0 {
		return netip.Prefix{}, fmt.Errorf("a range of all addresses: %s; name the networks of your proxies", quote(s))
	}
	if m := p.Masked(); m != p {
		return netip.Prefix{}, fmt.Errorf("an address range with host bits: %s; did you mean %s?", quote(s), m)
	}
	return p, nil
}

// inRange compares v with the bounds of a row, both of the same scalar type.
func (f *field) inRange(t reflect.Type, v any) bool {
	n := reflect.ValueOf(v)
	if !n.CanInt() {
		return true
	}
	return (f.min == "" || n.Int() >= f.bound(t, f.min)) && (f.max == "" || n.Int() <= f.bound(t, f.max))
}

func (f *field) bound(t reflect.Type, s string) int64 {
	v, err := kindOf(t).parse(s)
	if err != nil {
		panic(fmt.Sprintf("config: tag of %s: %v", f.key, err))
	}
	return reflect.ValueOf(v).Int()
}

// bounds says the range of a row in words, "" if it has none.
func (f *field) bounds() string {
	switch {
	case f.min != "" && f.max != "":
		return f.min + " to " + f.max
	case f.min != "":
		return "at least " + f.min
	case f.max != "":
		return "at most " + f.max
	}
	return ""
}
