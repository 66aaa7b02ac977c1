package config

import (
	"fmt"
	"reflect"
	"slices"
	"strings"
)

// Reference returns docs/configure.md: every key with its type, default and
// meaning, made from the table that the decoder uses.
func Reference() []byte {
	var b strings.Builder
	b.WriteString(referenceHead)
	writeSection(&b, "", reflect.TypeFor[File]())
	b.WriteString(referencePresets)
	for _, p := range presets() {
		writePreset(&b, p)
	}
	b.WriteString("\n")
	for _, p := range presets() {
		fmt.Fprintf(&b, "- **%s**: %s", p.name, p.why)
		if p.refuse != "" {
			fmt.Fprintf(&b, " %s.", p.refuse)
		}
		b.WriteString("\n")
	}
	return []byte(b.String())
}

const referenceHead = `# Configuration

<!-- Made from the table in internal/config; change that and run go test ./internal/config -update. -->

One YAML file, by default ` + "`" + DefaultFile + "`" + `. ` + "`gatebook init DIR`" + ` writes one to start from, ` + "`gatebook check`" + ` says everything that is wrong with one, ` + "`gatebook check --print-schema`" + ` prints a JSON Schema for editors.

The file is read strictly: unknown keys, keys given twice, anchors, aliases, merge keys, tags, directives and a second document are errors, and so is a key without a value. At most 1 MiB, nested at most 32 deep.

- A **duration** is whole numbers with units: ` + "`us`, `ms`, `s`, `m`, `h`, `d`, such as `15ms` or `1h30m`" + `.
- A **size** is a whole number with a unit: ` + "`B`, `KiB`, `MiB`, `GiB`" + `.
- A **rate** is a whole number per ` + "`s`, `m` or `h`, such as `100/s`" + `.
- A **path** names a file or directory; a relative one begins at the directory of the configuration file.
- Secrets are never written into the file, only named: put keys into files of their own.
- Keys marked *later* belong to features that do not exist in this release. They are refused, so that nothing seems protected that is not.

An example of the key paths below: ` + "`routes[].audit.commit`" + ` is the key ` + "`commit` in the mapping `audit`" + ` of each element of the list ` + "`routes`; `limits.NAME.rate`" + ` is the key ` + "`rate`" + ` under a name of your choice.
`

const referencePresets = `
## Issuer presets

What a preset sets unless the file says otherwise, and how it keeps ID tokens out. No typ header is written ` + "`absent`" + `.

| preset | typ header | algorithms | longest lifetime | audience | client | scopes | roles | groups | tenant | must have | must not have |
|---|---|---|---|---|---|---|---|---|---|---|---|
`

// writeSection writes a table for one struct and then those of its children.
func writeSection(b *strings.Builder, path string, t reflect.Type) {
	title := "## Top level"
	if path != "" {
		title = "## `" + path + "`"
	}
	fmt.Fprintf(b, "\n%s\n\n| key | type | default | meaning |\n|---|---|---|---|\n", title)
	type child struct {
		path string
		typ  reflect.Type
	}
	var children []child
	for _, f := range fieldsOf(t) {
		fmt.Fprintf(b, "| `%s` | %s | %s | %s |\n", f.key, typeName(&f), defaultText(&f), meaning(&f))
		if p, ct := childOf(join(path, f.key), f.typ); ct != nil && f.later == "" {
			children = append(children, child{p, ct})
		}
	}
	for _, c := range children {
		writeSection(b, c.path, c.typ)
	}
}

// childOf returns the struct inside a type and the path to it.
func childOf(path string, t reflect.Type) (string, reflect.Type) {
	switch shapeOf(t) {
	case shapeStruct:
		if t.Kind() == reflect.Pointer {
			t = t.Elem()
		}
		return path, t
	case shapeList:
		return childOf(path+"[]", t.Elem())
	case shapeMap:
		return childOf(path+".NAME", t.Elem())
	}
	return "", nil
}

func typeName(f *field) string {
	if f.later != "" {
		return "*later*"
	}
	return nameOf(f, f.typ)
}

func nameOf(f *field, t reflect.Type) string {
	switch shapeOf(t) {
	case shapeStruct:
		return "mapping"
	case shapeList:
		return "list of " + nameOf(f, t.Elem())
	case shapeMap:
		return "names with " + nameOf(f, t.Elem())
	}
	if len(f.enum) > 0 {
		return "`" + strings.Join(f.enum, "` `") + "`"
	}
	name := kindOf(t).name
	if r := f.bounds(); r != "" {
		name += ", " + r
	}
	return name
}

func defaultText(f *field) string {
	switch {
	case f.required:
		return "**required**"
	case f.def != "":
		return "`" + f.def + "`"
	case f.typ.Kind() == reflect.Bool:
		return "`false`"
	}
	return ""
}

func meaning(f *field) string {
	doc := f.doc
	if f.later != "" {
		doc = "Not supported in this release: " + f.later + "."
	}
	if len(f.laterEnum) > 0 {
		doc += " Not supported in this release: `" + strings.Join(f.laterEnum, "` `") + "`."
	}
	return strings.ReplaceAll(doc, "|", `\|`)
}

func writePreset(b *strings.Builder, p preset) {
	r := p.rules
	types := slices.Clone(r.Types)
	if r.AllowNoType {
		types = append(types, AbsentType)
	}
	var must []string
	for name, values := range r.RequireClaims {
		if len(values) > 0 {
			name += "=" + strings.Join(values, " or ")
		}
		must = append(must, name)
	}
	slices.Sort(must)
	fmt.Fprintf(b, "| %s |", p.name)
	for _, cell := range [][]string{
		types, r.Algorithms, {Duration(r.MaxLifetime).String()}, {r.AudienceClaim}, r.ClientClaims, {r.ScopeClaim}, {r.RolesClaim}, noEmpty(r.GroupsClaim), noEmpty(r.TenantClaim), must, r.RefuseClaims,
	} {
		fmt.Fprintf(b, " %s |", codes(cell))
	}
	b.WriteString("\n")
}

func codes(names []string) string {
	if len(names) == 0 {
		return ""
	}
	return "`" + strings.Join(names, "` `") + "`"
}

// noEmpty is a list of one name, or of none.
func noEmpty(name string) []string {
	if name == "" {
		return nil
	}
	return []string{name}
}
