package project

import (
	"bytes"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/deliver"
)

const testOrigin = "log.example.com/gates/gate-1"

func testKey(b byte) (k [32]byte) {
	for i := range k {
		k[i] = b + byte(i)
	}
	return k
}

// everyField names all of the personal half that can leave.
func everyField() []string {
	return append(FieldNames(), "headers.accept-language", "headers.x-tag", "claims.dept")
}

func newProjection(t testing.TB, name string, fields ...string) deliver.Projection {
	t.Helper()
	p, err := New(Options{Name: name, Key: testKey(1), Fields: fields, Origin: testOrigin, Node: "gate-0", Version: "0.9.0"})
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func entryOf(r *record.Record) *book.Entry {
	return &book.Entry{Index: 4711, Record: r, Frame: record.AppendFrame(nil, r)}
}

func project(t testing.TB, p deliver.Projection, e *book.Entry) []byte {
	t.Helper()
	b, err := p.Append(nil, deliver.EventID(testOrigin, e.Index), e)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// flat gives every value of a JSON object by the path of its keys, lists
// without indexes.
func flat(t testing.TB, b []byte) map[string][]string {
	t.Helper()
	dec := json.NewDecoder(bytes.NewReader(b))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		t.Fatalf("not JSON: %v\n%s", err, b)
	}
	out := map[string][]string{}
	flatten(out, "", v)
	return out
}

func flatten(out map[string][]string, path string, v any) {
	switch v := v.(type) {
	case map[string]any:
		for _, k := range slices.Sorted(maps.Keys(v)) {
			flatten(out, strings.TrimPrefix(path+"."+k, "."), v[k])
		}
	case []any:
		for _, e := range v {
			flatten(out, path, e)
		}
	default:
		out[path] = append(out[path], fmt.Sprint(v))
	}
}
