package detect

import (
	"encoding/json"
	"testing"
)

// FuzzState: a state that is taken gives the same again and does no harm to a
// rule that gets it.
func FuzzState(f *testing.F) {
	rule := probing()[0]
	rule.setDefaults()
	f.Add([]byte(`{"v":1,"origin":"log.example/1","next":7,"marks":[{"t":1,"i":2}],"rules":{"probing":{"digest":"` + rule.digest() + `","since":5,"peaks":{"a":{"e":1,"n":2,"w":3}}}}}`))
	f.Add([]byte(`{"v":1,"origin":"","next":0,"marks":null,"rules":null}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s, err := decodeState(b)
		if err != nil {
			return
		}
		again, err := json.Marshal(&s)
		if err != nil {
			t.Fatal(err)
		}
		if _, err := decodeState(again); err != nil {
			t.Fatalf("%s is not taken again: %v", again, err)
		}
		g, err := newEngine(append(Builtin(), rule))
		if err != nil {
			t.Fatal(err)
		}
		s.restore(g)
		if from := s.from(g.depth()); from > s.Next {
			t.Errorf("it goes back to %d, before %d", from, s.Next)
		}
	})
}

// TestMarks: a state goes back by all that a window needs, and by no more than a
// few parts of it; a record whose clock was wrong changes nothing.
func TestMarks(t *testing.T) {
	const second, depth = 1_000_000, 3600 * 1_000_000
	for _, wrong := range []int64{0, 365 * 24 * 3600 * second, -365 * 24 * 3600 * second} {
		var s state
		for i := range uint64(20_000) { // one a second
			s.mark(begin+int64(i)*second, i, depth)
			if i == 19_000 && wrong != 0 {
				s.mark(begin+int64(i)*second+wrong, i, depth)
			}
		}
		s.Next = 20_000
		if got := s.from(depth); got > 20_000-3600 || got < 20_000-3600*5/4 {
			t.Errorf("with a clock that is wrong by %d us it goes back to %d", wrong, got)
		}
	}
	var empty state
	if empty.Next = 9; empty.from(depth) != 9 {
		t.Error("without marks there is nothing to go back to")
	}
}
