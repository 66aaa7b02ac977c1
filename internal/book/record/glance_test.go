package record

import "testing"

// TestGlance: a glance tells what Decode does, and refuses what Decode refuses,
// whatever the frame before was. Encoder and decoder of columns look at frames
// in the same way: those that are no frames come back all the same.
func TestGlance(t *testing.T) {
	rng := newRand(3)
	frames, hints := trafficFrames(t, 20_000, 50)
	for i := range frames {
		switch rng.IntN(8) {
		case 0:
			frames[i][rng.IntN(len(frames[i]))] ^= byte(1 << rng.IntN(8))
		case 1: // a number that goes on, a value that ends early
			at := rng.IntN(len(frames[i]))
			frames[i] = append(append(append([]byte(nil), frames[i][:at]...), byte('0'+rng.IntN(10))), frames[i][at:]...)
		case 2:
			frames[i] = AppendFrame(nil, randomRecord(rng))
		}
	}
	g := NewGlancer()
	bad := 0
	for _, frame := range frames {
		var want Record
		wantErr := Decode(frame, nil, &want)
		kind, us, err := g.Glance(frame)
		if err != nil || wantErr != nil {
			if err == nil || wantErr == nil || err.Error() != wantErr.Error() {
				t.Fatalf("%s\nGlance gives %v, Decode %v", frame, err, wantErr)
			}
			bad++
			continue
		}
		if kind != want.Kind || us != want.Time {
			t.Fatalf("%s\nGlance gives %s and %d, Decode %s and %d", frame, kind, us, want.Kind, want.Time)
		}
	}
	if bad < 1000 || bad > 5000 {
		t.Errorf("%d of %d frames were refused", bad, len(frames))
	}
	checkColumns(t, frames, hints)
}
