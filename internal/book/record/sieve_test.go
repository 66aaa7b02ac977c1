package record

import (
	"bytes"
	"encoding/json"
	"strconv"
	"strings"
	"testing"
	"time"
)

// allPaths are the fields that a row can tell.
func allPaths() []string {
	var out []string
	for _, m := range layoutV1.models {
		if p := layoutV1.tab[m.field].path; RowFieldOf(p) != RowUnknown {
			out = append(out, p)
		}
	}
	return out
}

// valueAt is the JSON text of a field of a frame, "" if it is absent.
func valueAt(t *testing.T, frame []byte, path string) string {
	t.Helper()
	raw := json.RawMessage(frame)
	for _, key := range strings.Split(path, ".") {
		var m map[string]json.RawMessage
		if err := json.Unmarshal(raw, &m); err != nil {
			t.Fatal(err)
		}
		if raw = m[key]; raw == nil {
			return ""
		}
	}
	return string(raw)
}

// TestSieve: what a row tells of each field is what its frame says, and the
// frames that are kept are the ones that were.
func TestSieve(t *testing.T) {
	rng := newRand(77)
	var frames [][]byte
	for i := range 400 {
		f := AppendFrame(nil, randomRecord(rng))
		if i%50 == 7 {
			f = []byte("kept verbatim " + strconv.Itoa(i))
		}
		frames = append(frames, f)
	}
	cols, err := Codec{}.EncodeColumns(frames, nil)
	if err != nil {
		t.Fatal(err)
	}
	paths := allPaths()
	i, rows := 0, 0
	got, err := Codec{}.SieveColumns(cols, len(frames), paths, func(r *Row) bool {
		for !bytes.HasPrefix(frames[i], []byte("{")) {
			i++
		}
		f := frames[i]
		for n, p := range paths {
			want := valueAt(t, f, p)
			switch RowFieldOf(p) {
			case RowText:
				if have := string(r.Text(n)); have != want || (r.Symbol(n) == 0) != (want == "") {
					t.Fatalf("frame %d, %s: %q (%d), want %q", i, p, have, r.Symbol(n), want)
				}
			case RowNumber:
				if have := r.Number(n); numberText(t, p, want) != have {
					t.Fatalf("frame %d, %s: %d, want %q", i, p, have, want)
				}
			}
		}
		if r.Time() != numberText(t, "time", valueAt(t, f, "time")) {
			t.Fatal("time")
		}
		i++
		rows++
		return i%3 == 0
	})
	if err != nil {
		t.Fatal(err)
	}
	if rows != 392 || len(got) != len(frames) {
		t.Fatalf("%d rows, %d frames", rows, len(got))
	}
	for i, f := range got {
		want := frames[i]
		if bytes.HasPrefix(want, []byte("{")) && (i+1)%3 != 0 {
			want = nil
		}
		if !bytes.Equal(f, want) {
			t.Errorf("frame %d: %q, want %q", i, f, want)
		}
	}
	if _, err := (Codec{}).SieveColumns(cols, len(frames), []string{"nonsense"}, func(*Row) bool { return true }); err == nil {
		t.Error("took a field that there is not")
	}
	if _, err := (Codec{MaxBytes: 100}).SieveColumns(cols, len(frames), nil, func(*Row) bool { return true }); err == nil {
		t.Error("went over the limit")
	}
}

func numberText(t *testing.T, path, text string) int64 {
	t.Helper()
	switch {
	case text == "":
		return 0
	case text == "true":
		return 1
	case path == "time":
		at, err := time.Parse(`"2006-01-02T15:04:05.999999Z"`, text)
		if err != nil {
			t.Fatal(err)
		}
		return at.UnixMicro()
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		t.Fatalf("%s: %v", path, err)
	}
	return n
}

func BenchmarkSieve(b *testing.B) {
	frames, hints := trafficFrames(b, 65536, 10000)
	cols, err := Codec{}.EncodeColumns(frames, hints)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		if _, err := (Codec{}).SieveColumns(cols, len(frames), []string{"route", "status"}, func(r *Row) bool { return r.Symbol(0) == 1<<20 }); err != nil {
			b.Fatal(err)
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(frames)), "ns/frame")
}
