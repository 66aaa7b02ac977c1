package project

import (
	"encoding/json"
	"fmt"
	"math"
	"math/rand/v2"
	"reflect"
	"slices"
	"strings"
	"testing"
	"unicode"
	"unicode/utf8"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/desk/deliver"
)

// hostile are strings that end lines, move cursors, turn text around, or end
// JSON strings.
var hostile = []string{
	"a\nb", "a\r\nb", "\x00", "\x1b[2J", "\x7f", "\u0085", "\u2028", "\u2029", "\u202e", "\u2066", "\u200f", "\ufeff", "\ufffd",
	"\xff", "\xc3", "\xed\xa0\x80", "\xf0\x9f\x98", `"`, `\`, `\"`, `"}` + "\n" + `{"a":1}`, "</script>", "{", "[", "é", "日本語", "😀",
	"fe80::1%eth0", "203.0.113.7:80", "none", "_other", strings.Repeat("x", 300),
}

// fill gives every field of a record a value of next, Raw left out.
func fill(v reflect.Value, next func() uint64) {
	word := func() string { return hostile[next()%uint64(len(hostile))] }
	for i := range v.NumField() {
		f := v.Field(i)
		if f.Kind() == reflect.Struct {
			if v.Type().Field(i).Name != "Raw" {
				fill(f, next)
			}
			continue
		}
		switch p := f.Addr().Interface().(type) {
		case *string:
			*p = word()
		case *int:
			*p = []int{0, 1, -1, 200, math.MaxInt, math.MinInt, 65536, 53}[next()%8]
		case *int64:
			*p = []int64{0, 1, -1, math.MaxInt64, math.MinInt64, math.MinInt64 / 1000, 1795428000123456, 999}[next()%8]
		case *bool:
			*p = next()%2 == 0
		case *[]string:
			for range next() % 3 {
				*p = append(*p, word())
			}
		case *[]record.Pair:
			for range next() % 4 {
				*p = append(*p, record.Pair{Name: word(), Value: word()})
			}
			slices.SortStableFunc(*p, func(a, b record.Pair) int { return strings.Compare(a.Name, b.Name) })
		case *record.ID, *record.Kind, *record.Outcome:
		default:
			panic(fmt.Sprintf("no hostile value for %T", p))
		}
	}
}

// hostileRecord is such a record with kind, outcome and time as decoding lets
// them be.
func hostileRecord(next func() uint64) *record.Record {
	r := new(record.Record)
	fill(reflect.ValueOf(r).Elem(), next)
	r.Kind = kinds()[next()%uint64(len(kinds()))]
	r.Outcome = []record.Outcome{record.Success, record.Failure, record.Unknown}[next()%3]
	r.Time = int64(next() % 253402300800000000)
	return r
}

// hostileFields names everything that hostileRecord can fill.
func hostileFields() []string {
	names := FieldNames()
	for _, h := range hostile {
		if h == strings.ToLower(h) {
			names = append(names, "headers."+h)
		}
		names = append(names, "claims."+h)
	}
	return names
}

// clean reports what is wrong with a body as one line of a stream.
func clean(body []byte) error {
	switch {
	case !json.Valid(body):
		return fmt.Errorf("not JSON")
	case body[0] != '{' || body[len(body)-1] != '}':
		return fmt.Errorf("not an object")
	case !utf8.Valid(body):
		return fmt.Errorf("not UTF-8")
	}
	for _, c := range string(body) {
		if unicode.IsControl(c) || unicode.Is(unicode.Bidi_Control, c) || c == '\u2028' || c == '\u2029' || c == '\ufeff' {
			return fmt.Errorf("%U is in it", c)
		}
	}
	return duplicates(json.NewDecoder(strings.NewReader(string(body))))
}

// duplicates refuses objects in which a key stands twice: readers differ in
// which of the two they believe.
func duplicates(d *json.Decoder) error {
	tok, err := d.Token()
	if err != nil {
		return err
	}
	if tok == json.Delim('[') {
		for d.More() {
			if err := duplicates(d); err != nil {
				return err
			}
		}
		_, err = d.Token()
		return err
	}
	if tok != json.Delim('{') {
		return nil
	}
	seen := map[string]bool{}
	for d.More() {
		key, err := d.Token()
		if err != nil {
			return err
		}
		if k := key.(string); seen[k] && !strings.ContainsRune(k, utf8.RuneError) {
			return fmt.Errorf("key %q stands twice", k)
		}
		seen[key.(string)] = true
		if err := duplicates(d); err != nil {
			return err
		}
	}
	_, err = d.Token()
	return err
}

func TestHostileValues(t *testing.T) {
	var all []deliver.Projection
	for _, name := range Names() {
		all = append(all, newProjection(t, name), newProjection(t, name, hostileFields()...))
	}
	rng := rand.New(rand.NewPCG(1, 2))
	for range 300 {
		e := &book.Entry{Index: rng.Uint64(), Record: hostileRecord(rng.Uint64)}
		for i, p := range all {
			body := project(t, p, e)
			if err := clean(body); err != nil {
				t.Fatalf("%s, %d: %v\n%s", p.Name(), i, err, body)
			}
			stub, err := p.Stub(nil, "id", e, 7)
			if err != nil {
				t.Fatal(err)
			}
			if err := clean(stub); err != nil {
				t.Fatalf("stub of %s: %v\n%s", p.Name(), err, stub)
			}
		}
	}
}

// FuzzAppend takes a text for the strings and bytes for all other choices.
func FuzzAppend(f *testing.F) {
	for i, h := range hostile {
		f.Add(h, uint64(i), uint64(i*7))
	}
	var all []deliver.Projection
	for _, name := range Names() {
		all = append(all, newProjection(f, name, append(FieldNames(), "headers.dept")...))
	}
	f.Fuzz(func(t *testing.T, text string, a, b uint64) {
		rng := rand.New(rand.NewPCG(a, b))
		r := hostileRecord(rng.Uint64)
		for _, field := range record.FrameStrings() {
			if rng.IntN(2) == 0 {
				*field.At(r) = text
			}
		}
		r.Authn.Roles, r.Links = append(r.Authn.Roles, text), append(r.Links, text, text)
		r.Personal.UA, r.Personal.Path, r.Personal.Fwd, r.Personal.IP = text, text, []string{text}, text
		r.Personal.Headers = []record.Pair{{Name: "dept", Value: text}, {Name: "dept", Value: text}}
		e := &book.Entry{Index: b, Record: r}
		for _, p := range all {
			name, body := p.Name(), project(t, p, e)
			if err := clean(body); err != nil {
				t.Fatalf("%s: %v\n%s", name, err, body)
			}
			if v := back(t, name, body); v.outcome != r.Outcome || v.index != b {
				t.Fatalf("%s: %+v of %s", name, v, body)
			}
		}
	})
}

func BenchmarkAppend(b *testing.B) {
	for _, name := range Names() {
		for _, c := range []struct {
			what   string
			rec    *record.Record
			fields []string
		}{{"plain", plain(), nil}, {"personal", full(), everyField()}} {
			b.Run(name+"/"+c.what, func(b *testing.B) {
				p := newProjection(b, name, c.fields...)
				e := entryOf(c.rec)
				var buf []byte
				b.ReportAllocs()
				for b.Loop() {
					var err error
					if buf, err = p.Append(buf[:0], "24bc3bd1baf269fa-4711", e); err != nil {
						b.Fatal(err)
					}
				}
				b.ReportMetric(float64(len(buf)), "B/record")
			})
		}
	}
}
