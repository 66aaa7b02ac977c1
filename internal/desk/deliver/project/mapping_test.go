package project

import (
	"bytes"
	"fmt"
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/book/record"
)

// leaves lists the fields of a record by their Go paths; Raw counts as one.
func leaves(t reflect.Type, prefix string) []string {
	var out []string
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Type.Kind() == reflect.Struct && f.Name != "Raw" {
			out = append(out, leaves(f.Type, prefix+f.Name+".")...)
			continue
		}
		out = append(out, prefix+f.Name)
	}
	return out
}

// A field that is added to the record must be given a place.
func TestMappingIsTotal(t *testing.T) {
	var rows []string
	for _, m := range Mapping() {
		rows = append(rows, m.Field)
	}
	want := leaves(reflect.TypeFor[record.Record](), "")
	if !slices.Equal(rows, want) {
		t.Errorf("the table has\n%v\nthe record\n%v", rows, want)
	}
}

// marked gives a plain record of a kind in which only one field is set, and what
// a projection makes of its value. Values are such as nothing else in the output
// has.
func marked(t *testing.T, kind record.Kind, field string) (r *record.Record, want string) {
	r = &record.Record{Kind: kind, Outcome: record.Success, Time: 1795428000000000, Op: "GET /x", Authz: record.Authz{Decision: "allow"}, Status: 200}
	v := reflect.ValueOf(r).Elem()
	for name := range strings.SplitSeq(field, ".") {
		v = v.FieldByName(name)
	}
	want = "marker-" + strings.ToLower(field)
	switch p := v.Addr().Interface().(type) {
	case *record.ID:
		*p = record.ID{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}
		want = p.String()
	case *record.Kind:
		want = string(kind)
	case *record.Outcome:
		*p = record.Failure
		want = "failure"
	case *string:
		switch field {
		case "Method":
			want = "PATCH"
		case "Proto":
			want = "HTTP/9"
		case "Personal.IP":
			want = "198.51.100.77"
		case "Authz.Decision":
			want = "deny"
		}
		*p = want
	case *int:
		*p, want = 23457, "23457"
	case *int64:
		*p, want = 1795428123456789, "1795428123456789"
		if field == "Time" {
			want = "2026-11-23T10:02:03.456789Z"
		}
	case *bool:
		*p, want = true, "true"
	case *[]string:
		if field == "Personal.Fwd" {
			want = "198.51.100.78"
		}
		*p = []string{want}
	case *[]record.Pair:
		*p = []record.Pair{{Name: "dept", Value: want}}
	default:
		t.Fatalf("no value for %s, a %T", field, p)
	}
	return r, want
}

// unset is a record without a field.
func unset(r *record.Record, field string) *record.Record {
	c := *r
	v := reflect.ValueOf(&c).Elem()
	for name := range strings.SplitSeq(field, ".") {
		v = v.FieldByName(name)
	}
	v.SetZero()
	return &c
}

// changed is what a field's value is in a projection that changes it.
func changed(s *scratch, projection, field, value string) string {
	switch field {
	case "Subject":
		return s.pseudonym(fieldSubject, value)
	case "TLS.ClientCert":
		return s.pseudonym(fieldClientCert, value)
	case "Personal.Session", "Personal.Token", "Personal.Family":
		return s.pseudonym(strings.ToLower(strings.TrimPrefix(field, "Personal.")), value)
	}
	switch projection + " " + field {
	case "ecs Proto":
		return "9"
	case "ecs DurUS":
		return value + "000"
	case "ocsf Outcome":
		return "2"
	}
	return value
}

func newMarking(t *testing.T, name string) (*projection, *scratch) {
	p := newProjection(t, name, append(FieldNames(), "headers.dept", "claims.dept")...).(*projection)
	return p, newScratch(p)
}

// Every row of the table is true of a request.
func TestMappingIsTrue(t *testing.T) {
	for _, name := range []string{ECS, OCSF} {
		p, s := newMarking(t, name)
		for _, m := range Mapping() {
			path := m.ECS
			if name == OCSF {
				path = m.OCSF
			}
			if path == NotSent {
				continue
			}
			r, want := marked(t, record.KindRequest, m.Field)
			want = changed(s, name, m.Field, want)
			got := flat(t, project(t, p, entryOf(r)))
			if m.Field == "Personal.Headers" || m.Field == "Personal.Claims" {
				path += ".dept"
			}
			if !slices.Contains(got[path], want) {
				t.Errorf("%s: %s: %q is not at %s, which is %q", name, m.Field, want, path, got[path])
			}
		}
	}
}

// Whatever the kind, no field is lost.
func TestNothingIsLost(t *testing.T) {
	for _, name := range Names() {
		p, s := newMarking(t, name)
		for _, kind := range kinds() {
			for _, m := range Mapping() {
				if m.ECS == NotSent {
					continue
				}
				r, want := marked(t, kind, m.Field)
				want = changed(s, name, m.Field, want)
				body := project(t, p, entryOf(r))
				found := false
				for path, values := range flat(t, body) {
					// The message repeats what must have a place of its own.
					found = found || path != "message" && slices.Contains(values, want)
				}
				if want == "true" {
					// Other things are true as well: there must be one more of them.
					found = bytes.Count(body, []byte("true")) > bytes.Count(project(t, p, entryOf(unset(r, m.Field))), []byte("true"))
				}
				if name == OCSF && kind == record.KindAlert && m.Field == "Outcome" {
					found = slices.Contains(flat(t, body)["unmapped.outcome"], "failure")
				}
				if !found {
					t.Errorf("%s of %s: %s: %q is nowhere in %s", name, kind, m.Field, want, body)
				}
			}
		}
	}
}

// The book's documentation has the same table.
func TestMappingIsDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../../../docs/projections.md")
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range Mapping() {
		row := fmt.Sprintf("| `%s` | `%s` | `%s` |", m.Field, m.ECS, m.OCSF)
		if !strings.Contains(string(doc), row) {
			t.Errorf("docs/projections.md lacks the row\n%s", row)
		}
	}
}
