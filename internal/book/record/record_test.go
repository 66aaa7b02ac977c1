package record

import (
	"bytes"
	"encoding/json"
	"errors"
	"flag"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files")

func TestRoundTrip(t *testing.T) {
	rng := newRand(1)
	var into Record // reused, so that stale values would show
	for range 20000 {
		r := randomRecord(rng)
		frame, personal := AppendFrame(nil, r), AppendPersonal(nil, r)
		if !json.Valid(frame) || len(personal) > 0 && !json.Valid(personal) {
			t.Fatalf("not JSON:\n%s\n%s", frame, personal)
		}
		if err := Decode(frame, personal, &into); err != nil {
			t.Fatalf("%v\n%s\n%s", err, frame, personal)
		}
		if want := normal(r); !reflect.DeepEqual(&into, want) {
			t.Fatalf("decoded\n%+v\nwant\n%+v", into, *want)
		}
		if again := AppendFrame(nil, &into); !bytes.Equal(again, frame) {
			t.Fatalf("encoded again\n%s\nwant\n%s", again, frame)
		}
		if again := AppendPersonal(nil, &into); !bytes.Equal(again, personal) {
			t.Fatalf("encoded again\n%s\nwant\n%s", again, personal)
		}
	}
}

// The generic JSON decoder must read the same strings as ours.
func TestStringsAgreeWithEncodingJSON(t *testing.T) {
	rng := newRand(2)
	for range 20000 {
		s := randomString(rng)
		b := appendString(nil, s)
		var got string
		if err := json.Unmarshal(b, &got); err != nil || got != clean(s) {
			t.Fatalf("%q encodes to %s, which encoding/json reads as %q, %v", s, b, got, err)
		}
		if len(b)-2 != EscapedLen(s) {
			t.Fatalf("%q takes %d bytes, EscapedLen says %d", s, len(b)-2, EscapedLen(s))
		}
		for _, c := range string(b[1 : len(b)-1]) {
			if c < 0x20 || c >= 0x7f && c < 0xa0 || c == 0x2028 || c == 0x202e || c == '<' {
				t.Fatalf("%q encodes to %q with a raw %U", s, b, c)
			}
		}
	}
}

func TestEscaping(t *testing.T) {
	for _, tt := range []struct{ in, want string }{
		{`a"b\c`, `a\"b\\c`},
		{"a\nb", `a\u000ab`},
		{"<&>\x7f", `\u003c\u0026\u003e\u007f`},
		{"\u2028\u202e\u009b", `\u2028\u202e\u009b`},
		{"é日😀", "é日😀"},
		{"a\xff\xed\xa0\x80", `a\ufffd\ufffd\ufffd\ufffd`},
		{"\ufffd", `\ufffd`},
	} {
		if got := string(appendString(nil, tt.in)); got != `"`+tt.want+`"` {
			t.Errorf("%q: got %s, want %q", tt.in, got, tt.want)
		}
	}
}

func TestCountInvalid(t *testing.T) {
	rng := newRand(3)
	for range 2000 {
		r := randomRecord(rng)
		// Every invalid byte becomes one \ufffd; so does every valid U+FFFD.
		n := bytes.Count(AppendFrame(nil, r), []byte(replacement)) + bytes.Count(AppendPersonal(nil, r), []byte(replacement))
		m := normal(r)
		n -= bytes.Count(AppendFrame(nil, m), []byte(replacement)) + bytes.Count(AppendPersonal(nil, m), []byte(replacement))
		if n != 0 {
			t.Fatalf("replacements differ by %d after normalising", n)
		}
		f, p := Append(nil, nil, r)
		if r.San.Invalid != CountInvalid(r) || !bytes.Equal(f, AppendFrame(nil, r)) || !bytes.Equal(p, AppendPersonal(nil, r)) {
			t.Fatal("Append differs from its parts")
		}
		if CountInvalid(m) != 0 {
			t.Fatal("invalid bytes in a normal record")
		}
	}
	r := &Record{Node: "a\xffb\xc3", Personal: Personal{UA: "\xed\xa0\x80", Fwd: []string{"\xfe"}, Headers: []Pair{{"x", "\x80"}}}}
	if got := CountInvalid(r); got != 7 {
		t.Errorf("CountInvalid = %d, want 7", got)
	}
}

func TestMandatoryFacts(t *testing.T) {
	r := &Record{Kind: KindStart, Outcome: Success}
	got := string(AppendFrame(nil, r))
	want := `{"v":1,"id":"00000000-0000-0000-0000-000000000000","time":"1970-01-01T00:00:00.000000Z","kind":"start","outcome":"success","op":"none","subject":"none","client":{"prefix":"none"}}`
	if got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
	if p := AppendPersonal([]byte("x"), r); string(p) != "x" {
		t.Errorf("empty personal part is %q", p)
	}
}

func TestTimeClamped(t *testing.T) {
	for _, tt := range []struct {
		us   int64
		want string
	}{
		{-1, "1970-01-01T00:00:00.000000Z"},
		{maxTime + 1, "9999-12-31T23:59:59.999999Z"},
		{1709210096123456, "2024-02-29T12:34:56.123456Z"},
	} {
		if got := string(appendTime(nil, tt.us)); got != tt.want {
			t.Errorf("%d: got %s, want %s", tt.us, got, tt.want)
		}
	}
	rng := newRand(4)
	for range 20000 {
		us := rng.Int64N(maxTime + 1)
		text := appendTime(nil, us)
		r := Record{Time: us}
		if want := r.At().Format("2006-01-02T15:04:05.000000Z"); string(text) != want {
			t.Fatalf("%d: got %s, want %s", us, text, want)
		}
		if back, ok := parseTime(text); !ok || back != us {
			t.Fatalf("%s read as %d, %v, want %d", text, back, ok, us)
		}
	}
}

func TestDecodeRefuses(t *testing.T) {
	const good = `{"v":1,"id":"00000000-0000-7000-8000-000000000000","time":"2026-11-23T10:00:00.000000Z","kind":"request","outcome":"success","op":"GET /a","status":200,"subject":"none","authn":{"method":"jwt","roles":["a","b"]},"client":{"prefix":"none"}}`
	const goodPersonal = `{"sub":"a\u003cb","headers":{"a":"1","b":["1","2"]}}`
	var r Record
	if err := Decode([]byte(good), []byte(goodPersonal), &r); err != nil {
		t.Fatal(err)
	}
	for _, tt := range []struct{ name, old, repl string }{
		{"white space", `{"v"`, `{ "v"`},
		{"trailing bytes", `"none"}}`, "\"none\"}}\n"},
		{"version", `"v":1`, `"v":2`},
		{"version as float", `"v":1`, `"v":1.0`},
		{"unknown key", `"op"`, `"oq"`},
		{"unknown key at the end", `"none"}}`, `"none"},"zzz":1}`},
		{"repeated key", `"op":"GET /a"`, `"op":"GET /a","op":"GET /a"`},
		{"wrong order", `"op":"GET /a","status":200`, `"status":200,"op":"GET /a"`},
		{"missing fact", `"op":"GET /a",`, ``},
		{"missing fact in a group", `,"client":{"prefix":"none"}`, ``},
		{"missing fact in another group", `"prefix":"none"`, `"hops":1`},
		{"empty fact", `"GET /a"`, `""`},
		{"zero", `200`, `0`},
		{"leading zero", `200`, `0200`},
		{"negative zero", `200`, `-0`},
		{"float", `200`, `200.0`},
		{"exponent", `200`, `2e2`},
		{"overflow", `200`, `9223372036854775808`},
		{"long overflow", `200`, `99999999999999999999999`},
		{"negative overflow", `200`, `-9223372036854775809`},
		{"string for number", `200`, `"200"`},
		{"empty group", `{"method":"jwt","roles":["a","b"]}`, `{}`},
		{"empty list", `["a","b"]`, `[]`},
		{"comma at the end of a list", `["a","b"]`, `["a","b",]`},
		{"comma at the end", `"none"}}`, `"none"},}`},
		{"no comma", `"success","op"`, `"success""op"`},
		{"kind", `"request"`, `"requests"`},
		{"outcome", `"success"`, `"Success"`},
		{"null", `"GET /a"`, `null`},
		{"upper-case id", `7000-8000-000000000000`, `7000-8000-00000000000A`},
		{"id without dash", `7000-8000`, `700008000`},
		{"no such day", `2026-11-23`, `2026-02-29`},
		{"leap second", `10:00:00`, `10:00:60`},
		{"time zone", `000000Z`, `00000+0`},
		{"before 1970", `2026-11`, `1969-11`},
		{"short escape", `GET /a`, `GET\t/a`},
		{"needless escape", `GET /a`, `GET \u002fa`},
		{"upper-case escape", `GET /a`, `GET \u003C`},
		{"escaped slash", `GET /a`, `GET \/a`},
		{"raw <", `GET /a`, `GET <a`},
		{"raw control", `GET /a`, "GET \x01a"},
		{"raw U+FFFD", `GET /a`, "GET \ufffd"},
		{"raw U+2028", `GET /a`, "GET \u2028"},
		{"invalid UTF-8", `GET /a`, "GET \xff"},
		{"surrogate escape", `GET /a`, `GET \ud800`},
		{"cut", `"none"}}`, `"none"}`},
		{"cut string", `"none"}}`, `"none`},
	} {
		t.Run(tt.name, func(t *testing.T) {
			bad := strings.Replace(good, tt.old, tt.repl, 1)
			if bad == good {
				t.Fatal("the case changes nothing")
			}
			var de *DecodeError
			if err := Decode([]byte(bad), nil, &r); !errors.As(err, &de) || de.Part != "frame" || de.Offset > len(bad) {
				t.Errorf("%s\nerror %v", bad, err)
			}
		})
	}
	for _, bad := range []string{
		`{}`, `{"sub":""}`, `{"headers":{}}`, `{"headers":{"b":"1","a":"2"}}`, `{"headers":{"a":"1","a":"2"}}`,
		`{"headers":{"a":["1"]}}`, `{"headers":{"a":[]}}`, `{"headers":{"a":["1","2"],}}`, `{"v":1}`, `{"email":"a","sub":"b"}`,
		`{"port":0}`, `[]`, `x`, `{"sub":"a"} `,
	} {
		var de *DecodeError
		if err := Decode([]byte(good), []byte(bad), &r); !errors.As(err, &de) || de.Part != "personal part" {
			t.Errorf("%s: error %v", bad, err)
		}
	}
	long := []byte(`{"sub":"` + strings.Repeat("a", MaxPart) + `"}`)
	if err := Decode([]byte(good), long, &r); err == nil {
		t.Error("a personal part of more than 64 KiB was accepted")
	}
}

func TestDecodeErrorNamesTheByte(t *testing.T) {
	err := Decode([]byte(`{"v":1,"id":"x"}`), nil, new(Record))
	if got, want := err.Error(), "record: frame at byte 12: expected a UUID"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

// The tables must reach every field of Record but Raw, and each only once.
func TestSchemaReachesEveryField(t *testing.T) {
	r := new(Record)
	at := make(map[any]string)
	for _, tab := range [][]field{frameV1, personalV1} {
		for i := range tab {
			if f := &tab[i]; f.at != nil {
				p := f.at(r)
				if other, ok := at[p]; ok {
					t.Errorf("%s and %s are the same field", f.path, other)
				}
				at[p] = f.path
			}
		}
	}
	var walk func(path string, v reflect.Value)
	walk = func(path string, v reflect.Value) {
		if v.Kind() != reflect.Struct {
			if _, ok := at[v.Addr().Interface()]; !ok {
				t.Errorf("%s is in no table", path)
			}
			return
		}
		for i := range v.NumField() {
			if name := v.Type().Field(i).Name; name != "Raw" {
				walk(path+"."+name, v.Field(i))
			}
		}
	}
	walk("Record", reflect.ValueOf(r).Elem())
	if len(frameV1) > len(spans{}) || len(personalV1) > len(spans{}) {
		t.Errorf("spans is too small for tables of %d and %d rows", len(frameV1), len(personalV1))
	}
	for _, f := range FrameStrings() {
		if at[f.At(r)] != f.Path {
			t.Errorf("FrameStrings gives %s for %s", f.Path, at[f.At(r)])
		}
	}
}

func TestGolden(t *testing.T) {
	for name, r := range goldenRecords() {
		for half, b := range map[string][]byte{"frame": AppendFrame(nil, r), "personal": AppendPersonal(nil, r)} {
			path := filepath.Join("testdata", "v1", name+"."+half+".json")
			if *update {
				if err := os.WriteFile(path, b, 0o644); err != nil {
					t.Fatal(err)
				}
			}
			want, err := os.ReadFile(path)
			if err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(b, want) {
				t.Errorf("%s: got\n%s\nwant\n%s", path, b, want)
			}
		}
		if err := checkGolden(name); err != nil {
			t.Error(err)
		}
	}
}

// checkGolden decodes the golden files of one name.
func checkGolden(name string) error {
	frame, err := os.ReadFile(filepath.Join("testdata", "v1", name+".frame.json"))
	if err != nil {
		return err
	}
	personal, err := os.ReadFile(filepath.Join("testdata", "v1", name+".personal.json"))
	if err != nil {
		return err
	}
	return Decode(frame, personal, new(Record))
}

// A frame with nearly every group filled stays near 1 KiB, one of an anonymous
// request under 700 bytes.
func TestFrameSize(t *testing.T) {
	ids, err := NewIDMaker(make([]byte, 32))
	if err != nil {
		t.Fatal(err)
	}
	tr := newTraffic(1, 100, ids)
	var r Record
	full, anonymous := 0, 0
	const n = 1000
	for range n {
		tr.next(&r)
		full += len(AppendFrame(nil, &r))
		r.Subject, r.Authn, r.Authz, r.Limit = None, Authn{Method: None}, Authz{}, Limit{}
		r.TLS = TLS{Version: "1.3", ALPN: "h2"}
		r.Upstream.Reused = false
		anonymous += len(AppendFrame(nil, &r))
	}
	t.Logf("a full frame takes %d bytes, an anonymous one %d", full/n, anonymous/n)
	if full/n > 1100 {
		t.Errorf("a full frame takes %d bytes, want at most 1100", full/n)
	}
	if anonymous/n > 700 {
		t.Errorf("an anonymous frame takes %d bytes, want at most 700", anonymous/n)
	}
}

func FuzzDecode(f *testing.F) {
	rng := newRand(5)
	for range 20 {
		r := randomRecord(rng)
		f.Add(AppendFrame(nil, r), AppendPersonal(nil, r))
	}
	f.Fuzz(func(t *testing.T, frame, personal []byte) {
		var r, again Record
		if Decode(frame, personal, &r) != nil {
			return
		}
		f2, p2 := AppendFrame(nil, &r), AppendPersonal(nil, &r)
		if !bytes.Equal(frame, f2) || !bytes.Equal(personal, p2) {
			t.Fatalf("accepted\n%s\n%s\nencodes to\n%s\n%s", frame, personal, f2, p2)
		}
		if err := Decode(f2, p2, &again); err != nil || !reflect.DeepEqual(r, again) {
			t.Fatalf("decoded differently: %v", err)
		}
	})
}

func BenchmarkAppendFrame(b *testing.B) {
	r, buf := benchRecord(b), make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendFrame(buf[:0], r)
	}
	b.SetBytes(int64(len(buf)))
}

func BenchmarkAppendPersonal(b *testing.B) {
	r, buf := goldenRecords()["request"], make([]byte, 0, 4096)
	b.ReportAllocs()
	for b.Loop() {
		buf = AppendPersonal(buf[:0], r)
	}
}

func BenchmarkDecode(b *testing.B) {
	frame := AppendFrame(nil, benchRecord(b))
	var r Record
	b.ReportAllocs()
	for b.Loop() {
		if err := Decode(frame, nil, &r); err != nil {
			b.Fatal(err)
		}
	}
}

func benchRecord(b *testing.B) *Record {
	ids, err := NewIDMaker(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	r := new(Record)
	newTraffic(1, 10, ids).next(r)
	return r
}

// plainRun says of eight bytes at a time what the table says of each.
func TestPlainRun(t *testing.T) {
	t.Parallel()
	check := func(s string) {
		t.Helper()
		n := plainRun(s)
		for i := range n {
			if !plain[s[i]] {
				t.Fatalf("%q: the first %d bytes are called plain, byte %d is not", s, n, i)
			}
		}
		for i := range len(s) {
			if !plain[s[i]] {
				return
			}
		}
		if n != len(s) {
			t.Fatalf("%q: %d bytes are called plain, all are", s, n)
		}
	}
	// Each byte at each place, beside each other byte: carries run upwards.
	b := []byte("abcdefghijklm")
	for at := range len(b) - 1 {
		for c := range 256 {
			for d := range 256 {
				was, next := b[at], b[at+1]
				b[at], b[at+1] = byte(c), byte(d)
				check(string(b))
				check(string(b[:at+2]))
				b[at], b[at+1] = was, next
			}
		}
	}
}
