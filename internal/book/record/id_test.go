package record

import (
	"bytes"
	"testing"
)

func TestIDText(t *testing.T) {
	rng := newRand(6)
	for range 1000 {
		var id ID
		for i := range id {
			id[i] = byte(rng.Uint32())
		}
		back, err := ParseID(id.String())
		if err != nil || back != id {
			t.Fatalf("%s: %v, %v", id, back, err)
		}
	}
	for _, bad := range []string{
		"", "x", "01890A5D-ac96-774b-bcce-b302099a8057", "01890a5dac96774bbcceb302099a8057",
		"01890a5d-ac96-774b-bcce-b302099a805", "01890a5d-ac96-774b-bcce-b302099a80577", "01890a5d-ac96-774b-bcce_b302099a8057", "{1890a5d-ac96-774b-bcce-b302099a8057}",
	} {
		if _, err := ParseID(bad); err == nil {
			t.Errorf("%q was accepted", bad)
		}
	}
}

func TestIDMaker(t *testing.T) {
	for _, size := range []int{16, 32} {
		m, err := NewIDMaker(bytes.Repeat([]byte{9}, size))
		if err != nil {
			t.Fatal(err)
		}
		other, err := NewIDMaker(bytes.Repeat([]byte{8}, size))
		if err != nil {
			t.Fatal(err)
		}
		const start = 1795428000123456
		seen := make(map[ID]bool)
		passed := 0
		for i := range uint64(20000) {
			id := m.Next(start)
			if seen[id] {
				t.Fatalf("%s was made twice", id)
			}
			seen[id] = true
			if id[6]>>4 != 7 || id[8]>>6 != 2 || id.UnixMilli() != start/1000 {
				t.Fatalf("%s is no UUIDv7 of its time", id)
			}
			if n, ok := m.Counter(id); !ok || n != i {
				t.Fatalf("counter %d comes back as %d, %v", i, n, ok)
			}
			if _, ok := other.Counter(id); ok {
				passed++
			}
		}
		if passed > 1 {
			t.Errorf("%d of 20000 ids pass for those of another key", passed)
		}
	}
	for _, size := range []int{0, 15, 24, 33} {
		if _, err := NewIDMaker(make([]byte, size)); err == nil {
			t.Errorf("a key of %d bytes was accepted", size)
		}
	}
}

// Each of the 74 bits must change in about half of the ids of successive
// counters.
func TestIDBitsAreMixed(t *testing.T) {
	m, err := NewIDMaker([]byte("0123456789abcdef"))
	if err != nil {
		t.Fatal(err)
	}
	const n = 4000
	var flips [128]int
	prev := m.At(0, 0)
	for i := range uint64(n) {
		id := m.At(0, i+1)
		for bit := range flips {
			flips[bit] += int((id[bit/8] ^ prev[bit/8]) >> (7 - bit%8) & 1)
		}
		prev = id
	}
	for bit, k := range flips {
		fixed := bit < 52 || bit == 64 || bit == 65
		if fixed && k != 0 || !fixed && (k < n*45/100 || k > n*55/100) {
			t.Errorf("bit %d changed in %d of %d steps", bit, k, n)
		}
	}
}

func TestIDTimeClamped(t *testing.T) {
	m, err := NewIDMaker(make([]byte, 16))
	if err != nil {
		t.Fatal(err)
	}
	if got := m.At(-5, 1).UnixMilli(); got != 0 {
		t.Errorf("a negative time gives %d", got)
	}
	if got := m.At(1<<60, 1).UnixMilli(); got != 1<<48-1 {
		t.Errorf("a late time gives %d", got)
	}
}

func BenchmarkIDMakerNext(b *testing.B) {
	m, err := NewIDMaker(make([]byte, 32))
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	for b.Loop() {
		m.Next(1795428000123456)
	}
}

func TestIDMakerConcurrently(t *testing.T) {
	m, err := NewIDMaker(testKey(3))
	if err != nil {
		t.Fatal(err)
	}
	const workers, each = 8, 2000
	made := make(chan []ID, workers)
	for range workers {
		go func() {
			ids := make([]ID, each)
			for i := range ids {
				ids[i] = m.Next(1795428000123456)
			}
			made <- ids
		}()
	}
	seen := make(map[ID]bool)
	for range workers {
		for _, id := range <-made {
			n, ok := m.Counter(id)
			if seen[id] || !ok || n >= workers*each {
				t.Fatalf("%s was made twice or has counter %d, %v", id, n, ok)
			}
			seen[id] = true
		}
	}
}
