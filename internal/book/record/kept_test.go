package record

import (
	"bytes"
	"math/rand/v2"
	"reflect"
	"slices"
	"testing"
)

// checkKept demands that k writes r as Append does.
func checkKept(t *testing.T, k *Kept, r *Record) (frame, personal []byte) {
	t.Helper()
	again := *r
	frame, personal = k.Append([]byte("<"), []byte(">"), r)
	f, p := Append([]byte("<"), []byte(">"), &again)
	if !bytes.Equal(frame, f) || !bytes.Equal(personal, p) {
		t.Fatalf("written with what is kept\n%s\n%s\nwithout\n%s\n%s", frame, personal, f, p)
	}
	if r.San != again.San {
		t.Fatalf("san %+v, without what is kept %+v", r.San, again.San)
	}
	return frame[1:], personal[1:]
}

// change gives some fields of r the values that they have in from.
func change(rng *rand.Rand, r, from *Record, share float64) {
	var mix func(to, from reflect.Value)
	mix = func(to, from reflect.Value) {
		if to.Kind() == reflect.Struct {
			for i := range to.NumField() {
				mix(to.Field(i), from.Field(i))
			}
			return
		}
		if rng.Float64() < share {
			to.Set(from)
		}
	}
	mix(reflect.ValueOf(r).Elem(), reflect.ValueOf(from).Elem())
}

// What is written does not depend on what is kept: of whatever record, however
// the next one differs, and after what is about somebody was forgotten.
func TestKeptWritesTheSame(t *testing.T) {
	t.Parallel()
	rng := newRand(11)
	k := new(Kept)
	for range 1000 {
		r := randomRecord(rng)
		frame, personal := checkKept(t, k, r)
		k.Keep(r, frame, personal)
		for range 3 {
			checkKept(t, k, r)
			next := *r
			change(rng, &next, randomRecord(rng), []float64{0, 0.01, 0.1, 0.5}[rng.IntN(4)])
			checkKept(t, k, &next)
		}
		if rng.IntN(2) == 0 {
			k.Forget()
			checkKept(t, k, r)
		}
	}
}

// fieldsOf lists the rows of a table that have a value.
func fieldsOf(tab []field) []*field {
	var out []*field
	for i := range tab {
		if tab[i].at != nil {
			out = append(out, &tab[i])
		}
	}
	return out
}

// Each field alone is seen to change, and Same speaks of what it says it does.
func TestKeptSeesEveryField(t *testing.T) {
	t.Parallel()
	for _, fresh := range []bool{false, true} {
		for _, half := range [][]field{frameV1, personalV1} {
			for _, f := range fieldsOf(half) {
				k, r := new(Kept), goldenRecords()["request"]
				if fresh {
					r = &Record{Kind: KindRequest, Outcome: Success}
				}
				r.San.Invalid = 0
				frame, personal := checkKept(t, k, r)
				k.Keep(r, frame, personal)
				if !k.Same(r) {
					t.Fatal("a record is not the same as itself")
				}
				switch v := reflect.ValueOf(f.at(r)).Elem(); v.Kind() {
				case reflect.String:
					v.SetString("stop")
				case reflect.Int, reflect.Int64:
					v.SetInt(v.Int() + 1)
				case reflect.Bool:
					v.SetBool(!v.Bool())
				case reflect.Array:
					v.Index(3).SetUint(77)
				case reflect.Slice:
					v.Set(reflect.Append(v, reflect.Zero(v.Type().Elem())))
				default:
					t.Fatalf("%s is a %s", f.path, v.Kind())
				}
				checkKept(t, k, r)
				covered := &half[0] == &personalV1[0] || SameCovers(f.path)
				if covered == k.Same(r) {
					t.Errorf("%s changed: same %v, covered %v", f.path, k.Same(r), covered)
				}
			}
		}
	}
}

// Everything of a table is written, once and in order.
func TestPieces(t *testing.T) {
	t.Parallel()
	seen := make(map[int]bool)
	for name, tab := range map[string][]field{"frame": frameV1, "personal": personalV1} {
		at := 0
		for _, c := range pieces(tab) {
			if c.first != at || c.end <= at {
				t.Fatalf("%s: a piece from %d to %d after row %d", name, c.first, c.end, at)
			}
			at = c.end
			if c.run == noRun {
				continue
			}
			seen[c.run] = true
			w := &keptRuns[c.run]
			var r Record
			for _, f := range fieldsOf(tab[c.first:c.end]) {
				v := reflect.ValueOf(f.at(&r))
				off := v.Pointer() - reflect.ValueOf(&r).Pointer()
				if off < w.off || off+v.Elem().Type().Size() > w.end {
					t.Errorf("%s of run %s to %s is not in its memory", f.path, w.from, w.to)
				}
			}
		}
		if at != len(tab) {
			t.Errorf("%s: %d of %d rows", name, at, len(tab))
		}
	}
	if len(seen) != runCount {
		t.Errorf("%d of %d runs are in a table", len(seen), runCount)
	}
}

// What is about somebody is not kept beyond the exchange.
func TestKeptForgets(t *testing.T) {
	t.Parallel()
	k, r := new(Kept), goldenRecords()["request"]
	frame, personal := k.Append(nil, nil, r)
	k.Keep(r, frame, personal)
	k.Forget()
	if !reflect.DeepEqual(k.Record.Personal, Personal{}) || k.Record.Subject != "" || !reflect.DeepEqual(k.Record.Authn, Authn{}) ||
		k.Record.Client != (Client{}) || k.Record.Trace != "" || k.Record.Links != nil {
		t.Errorf("remembered: %+v", k.Record)
	}
	for _, n := range []int{runID, runWho, runClient, runPersonal} {
		if k.same(n, r) || k.same(n, &k.Record) {
			t.Errorf("run %s is remembered", keptRuns[n].from)
		}
	}
	if k.Same(r) {
		t.Error("all is said to be the same")
	}
	if !k.same(runNames, r) {
		t.Error("the names of the request are forgotten")
	}
}

func FuzzKept(f *testing.F) {
	rng := newRand(6)
	for range 20 {
		r, next := randomRecord(rng), randomRecord(rng)
		f.Add(AppendFrame(nil, r), AppendPersonal(nil, r), AppendFrame(nil, next), AppendPersonal(nil, next), uint64(rng.IntN(100)), uint8(10))
	}
	f.Fuzz(func(t *testing.T, frame, personal, nextFrame, nextPersonal []byte, seed uint64, share uint8) {
		var r, next Record
		if Decode(frame, personal, &r) != nil || Decode(nextFrame, nextPersonal, &next) != nil {
			return
		}
		k := new(Kept)
		f2, p2 := checkKept(t, k, &r)
		k.Keep(&r, f2, p2)
		change(newRand(seed), &r, &next, float64(share)/255)
		checkKept(t, k, &r)
		k.Forget()
		checkKept(t, k, &next)
	})
}

func BenchmarkKept(b *testing.B) {
	for _, c := range []struct {
		name string
		end  bool
	}{{"open", false}, {"commit", true}} {
		b.Run(c.name, func(b *testing.B) {
			k, r := new(Kept), benchRecord(b)
			frame, personal := Append(nil, nil, r)
			frame, personal = slices.Grow(frame, 1<<10), slices.Grow(personal, 1<<10)
			b.ReportAllocs()
			for b.Loop() {
				if !c.end {
					k.Forget()
				}
				frame, personal = k.Append(frame[:0], personal[:0], r)
				if !c.end || k.runs[runID].hi == 0 {
					k.Keep(r, frame, personal)
				}
			}
		})
	}
}
