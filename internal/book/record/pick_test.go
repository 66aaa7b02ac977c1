package record

import (
	"reflect"
	"slices"
	"testing"
)

// cleared is a record with the given fields only.
func cleared(r *Record, paths []string) Record {
	var out Record
	for i := range frameV1 {
		if f := &frameV1[i]; slices.Contains(paths, f.path) {
			reflect.ValueOf(f.at(&out)).Elem().Set(reflect.ValueOf(f.at(r)).Elem())
		}
	}
	return out
}

// TestPick: a Picker gives the fields that were asked for as Decode does, and
// refuses what Decode refuses, whatever the frame before was.
func TestPick(t *testing.T) {
	rng := newRand(4)
	all := FramePaths()
	some := []string{"id", "kind", "time", "dur_us", "subject", "client.prefix", "status", "authn.roles", "tls.resumed", "error.reason", "event.count", "subject"}
	var pickers []*Picker
	sets := [][]string{all, some, {"op"}, nil}
	for range 20 {
		var set []string
		for _, p := range all {
			if rng.IntN(3) == 0 {
				set = append(set, p)
			}
		}
		sets = append(sets, set)
	}
	for _, set := range sets {
		p, err := NewPicker(set)
		if err != nil {
			t.Fatal(err)
		}
		pickers = append(pickers, p)
	}
	frames, _ := trafficFrames(t, 5_000, 50)
	bad := 0
	for i, frame := range frames {
		switch rng.IntN(8) {
		case 0:
			frame[rng.IntN(len(frame))] ^= byte(1 << rng.IntN(8))
		case 1:
			frame = AppendFrame(nil, randomRecord(rng))
		case 2:
			frame = frames[max(i-1, 0)]
		}
		var want Record
		wantErr := Decode(frame, nil, &want)
		if wantErr != nil {
			bad++
		}
		for n, p := range pickers {
			got, err := p.Pick(frame)
			if err != nil || wantErr != nil {
				if err == nil || wantErr == nil || err.Error() != wantErr.Error() {
					t.Fatalf("%s\nPick gives %v, Decode %v", frame, err, wantErr)
				}
				continue
			}
			if want := cleared(&want, sets[n]); !reflect.DeepEqual(*got, want) {
				t.Fatalf("%s\nof %q Pick gives %+v, Decode %+v", frame, sets[n], *got, want)
			}
		}
	}
	if bad < 200 || bad > 2000 {
		t.Errorf("%d of %d frames were refused", bad, len(frames))
	}
}

// TestPickAllocations: frames whose texts have come before leave no garbage.
func TestPickAllocations(t *testing.T) {
	frames, _ := trafficFrames(t, 200, 20)
	p, err := NewPicker([]string{"id", "time", "kind", "dur_us", "subject", "op", "status", "client.prefix", "authn.outcome", "authn.roles", "error.reason"})
	if err != nil {
		t.Fatal(err)
	}
	round := func() {
		for _, f := range frames {
			if _, err := p.Pick(f); err != nil {
				t.Fatal(err)
			}
		}
	}
	round()
	if n := testing.AllocsPerRun(10, round); n > float64(len(frames))/20 {
		t.Errorf("%d frames leave %v allocations", len(frames), n)
	}
}

func TestPickerPaths(t *testing.T) {
	for _, bad := range []string{"", "v", "authn", "nope", "personal.sub", "index"} {
		if _, err := NewPicker([]string{"id", bad}); err == nil || IsFramePath(bad) {
			t.Errorf("%q is taken for a field of the frame: %v", bad, err)
		}
	}
	for _, good := range FramePaths() {
		if !IsFramePath(good) {
			t.Errorf("%q is none of the frame's fields", good)
		}
	}
}

// FuzzPick: two frames one after the other are picked as they are decoded.
func FuzzPick(f *testing.F) {
	rng := newRand(5)
	paths := FramePaths()
	for range 8 {
		a, b := AppendFrame(nil, randomRecord(rng)), AppendFrame(nil, randomRecord(rng))
		f.Add(a, b)
		f.Add(a, append(slices.Clone(a[:len(a)/2]), b[len(b)/2:]...))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		p, err := NewPicker(paths)
		if err != nil {
			t.Fatal(err)
		}
		for _, frame := range [][]byte{a, b, a} {
			var want Record
			wantErr := Decode(frame, nil, &want)
			got, err := p.Pick(frame)
			if err != nil || wantErr != nil {
				if err == nil || wantErr == nil || err.Error() != wantErr.Error() {
					t.Fatalf("Pick gives %v, Decode %v", err, wantErr)
				}
				continue
			}
			if !reflect.DeepEqual(*got, want) {
				t.Fatalf("Pick gives %+v, Decode %+v", *got, want)
			}
		}
	})
}

// BenchmarkPick is what a few fields of a frame cost, with traffic of 50 people.
func BenchmarkPick(b *testing.B) {
	frames, _ := trafficFrames(b, 20_000, 50)
	p, err := NewPicker([]string{"id", "time", "kind", "dur_us", "subject", "op", "method", "status", "client.prefix", "authn.outcome", "authn.bound", "authz.decision", "error.reason", "event.name", "event.count"})
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		if _, err := p.Pick(frames[i%len(frames)]); err != nil {
			b.Fatal(err)
		}
	}
}
