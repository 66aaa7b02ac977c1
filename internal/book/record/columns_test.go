package record

import (
	"bytes"
	"fmt"
	"os"
	"testing"
	"time"

	"github.com/klauspost/compress/zstd"
)

func testKey(n byte) []byte { return bytes.Repeat([]byte{n}, 32) }

// checkColumns encodes frames, decodes them and compares every byte.
func checkColumns(t *testing.T, frames, hints [][]byte) [][]byte {
	t.Helper()
	cols, err := Codec{}.EncodeColumns(frames, hints)
	if err != nil {
		t.Fatal(err)
	}
	back, err := Codec{}.DecodeColumns(cols, len(frames))
	if err != nil {
		t.Fatal(err)
	}
	if len(back) != len(frames) {
		t.Fatalf("%d frames became %d", len(frames), len(back))
	}
	for i := range frames {
		if !bytes.Equal(frames[i], back[i]) {
			t.Fatalf("frame %d became\n%s\nwas\n%s", i, back[i], frames[i])
		}
	}
	return cols
}

// TestColumnsRandom is the round trip over random records: 20,000, or a
// million when GATEBOOK_SOAK=1, in four shards.
func TestColumnsRandom(t *testing.T) {
	const shards = 4
	total, batch := 20000, 2500
	if os.Getenv("GATEBOOK_SOAK") == "1" {
		total, batch = 1_000_000, 10_000
	}
	for shard := range uint64(shards) {
		t.Run(fmt.Sprint(shard), func(t *testing.T) {
			t.Parallel()
			columnsShard(t, 11+shard, total/shards, batch)
		})
	}
}

func columnsShard(t *testing.T, seed uint64, total, batch int) {
	rng := newRand(seed)
	maker, err := NewIDMaker(testKey(1))
	if err != nil {
		t.Fatal(err)
	}
	hints := [][]byte{testKey(2), testKey(1)}
	frames := make([][]byte, batch)
	var slab []byte
	for done := 0; done < total; done += batch {
		slab = slab[:0]
		for i := range frames {
			r := randomRecord(rng)
			if rng.IntN(2) == 0 {
				r.ID = maker.Next(r.Time + rng.Int64N(5000))
			}
			lo := len(slab)
			slab = AppendFrame(slab, r)
			frames[i] = slab[lo:len(slab):len(slab)]
			if rng.IntN(50) == 0 {
				frames[i] = frames[i][:rng.IntN(len(frames[i]))] // not a frame any more
			}
		}
		checkColumns(t, frames, hints)
	}
}

func TestColumnsEdges(t *testing.T) {
	good := AppendFrame(nil, goldenRecords()["request"])
	heartbeat := AppendFrame(nil, goldenRecords()["heartbeat"])
	big := bytes.Repeat([]byte("x"), MaxPart+1)
	for name, frames := range map[string][][]byte{
		"none":           nil,
		"one":            {good},
		"empty frame":    {{}},
		"empty frames":   {{}, good, {}, {}},
		"not a frame":    {[]byte("x"), good, []byte(`{"v":2}`)},
		"larger than 64": {good, big, good},
		"mixed":          {heartbeat, good, heartbeat, good, good, heartbeat},
	} {
		t.Run(name, func(t *testing.T) { checkColumns(t, frames, nil) })
	}
}

func TestColumnsOfAllGoldens(t *testing.T) {
	var frames [][]byte
	for _, r := range goldenRecords() {
		frames = append(frames, AppendFrame(nil, r))
	}
	e, err := NewColumnEncoder(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range frames {
		if err := e.Add(f); err != nil {
			t.Fatal(err)
		}
	}
	if e.Verbatim() != 0 {
		t.Errorf("%d golden frames are kept verbatim", e.Verbatim())
	}
	if err := e.Add([]byte("x")); err != nil || e.Verbatim() != 1 {
		t.Errorf("%v, %d verbatim: want 1", err, e.Verbatim())
	}
	checkColumns(t, frames, nil)
}

// Column i is always the same field: columns of different frames differ only
// where their fields do.
func TestColumnsHaveFixedPlaces(t *testing.T) {
	a := &Record{Kind: KindStart, Outcome: Success}
	b := *a
	b.Route = "x"
	ca := checkColumns(t, [][]byte{AppendFrame(nil, a)}, nil)
	cb := checkColumns(t, [][]byte{AppendFrame(nil, &b)}, nil)
	if len(ca) != Columns || len(cb) != Columns {
		t.Fatalf("%d and %d columns, want %d", len(ca), len(cb), Columns)
	}
	for i := colFirst; i < Columns; i++ {
		path := frameV1[layoutV1.models[i-colFirst].field].path
		if same := bytes.Equal(ca[i], cb[i]); same != (path != "route") {
			t.Errorf("column %d (%s): same is %v", i, path, same)
		}
	}
}

func TestColumnsLimits(t *testing.T) {
	if _, err := (Codec{}).EncodeColumns(nil, [][]byte{{1, 2, 3}}); err == nil {
		t.Error("a hint of 3 bytes was accepted")
	}
	frames := [][]byte{AppendFrame(nil, goldenRecords()["request"])}
	cols := checkColumns(t, frames, nil)
	if _, err := (Codec{MaxBytes: 100}).DecodeColumns(cols, 1); err == nil {
		t.Error("MaxBytes was not kept")
	}
	for _, n := range []int{-1, 0, 2, MaxRows + 1} {
		if _, err := (Codec{}).DecodeColumns(cols, n); err == nil {
			t.Errorf("decoded as %d frames", n)
		}
	}
	if _, err := (Codec{}).DecodeColumns(cols[:3], 1); err == nil {
		t.Error("decoded without all columns")
	}
	for _, at := range []int{0, 1} {
		other := append([][]byte{}, cols...)
		other[0] = bytes.Clone(cols[0])
		other[0][at]++
		if _, err := (Codec{}).DecodeColumns(other, 1); err == nil {
			t.Errorf("decoded with another version in byte %d", at)
		}
	}
}

func trafficFrames(t testing.TB, n, subjects int) ([][]byte, [][]byte) {
	ids, err := NewIDMaker(testKey(5))
	if err != nil {
		t.Fatal(err)
	}
	tr := newTraffic(12, subjects, ids)
	frames := make([][]byte, n)
	var r Record
	for i := range frames {
		tr.next(&r)
		frames[i] = AppendFrame(nil, &r)
	}
	return frames, [][]byte{testKey(5)}
}

// TestColumnsSize keeps the promise of cheap storage on a Zipf mix of 10,000
// subjects, with each column compressed alone.
func TestColumnsSize(t *testing.T) {
	frames, hints := trafficFrames(t, 65536, 10000)
	start := time.Now()
	cols, err := Codec{}.EncodeColumns(frames, hints)
	if err != nil {
		t.Fatal(err)
	}
	encoded := time.Since(start)
	start = time.Now()
	if _, err := (Codec{}).DecodeColumns(cols, len(frames)); err != nil {
		t.Fatal(err)
	}
	decoded := time.Since(start)
	z, err := zstd.NewWriter(nil, zstd.WithEncoderLevel(zstd.SpeedBetterCompression))
	if err != nil {
		t.Fatal(err)
	}
	sum, raw := 0, 0
	for i, c := range cols {
		size := len(z.EncodeAll(c, nil))
		sum += size
		if i >= colFirst && size > 2000 {
			t.Logf("%-20s %8d -> %7d  %.2f B/record", frameV1[layoutV1.models[i-colFirst].field].path, len(c), size, float64(size)/float64(len(frames)))
		}
	}
	for _, f := range frames {
		raw += len(f)
	}
	per := float64(sum) / float64(len(frames))
	t.Logf("frames of %d B take %.2f B each; encode %v, decode %v a frame", raw/len(frames), per,
		encoded/time.Duration(len(frames)), decoded/time.Duration(len(frames)))
	if per > 20 {
		t.Errorf("frames take %.2f B each, want at most 20", per)
	}
}

func FuzzColumns(f *testing.F) {
	rng := newRand(13)
	pack := func(cols [][]byte) []byte {
		var b []byte
		for _, c := range cols {
			b = append(b, byte(len(c)>>8), byte(len(c)))
			b = append(b, c...)
		}
		return b
	}
	for n := range 8 {
		maker, err := NewIDMaker(testKey(1))
		if err != nil {
			f.Fatal(err)
		}
		var frames [][]byte
		for range n * 3 {
			r := randomRecord(rng)
			if rng.IntN(2) == 0 {
				r.ID = maker.Next(r.Time)
			}
			frames = append(frames, AppendFrame(nil, r))
			if rng.IntN(5) == 0 {
				frames = append(frames, []byte("x"))
			}
		}
		cols, err := Codec{}.EncodeColumns(frames, [][]byte{testKey(1)})
		if err != nil {
			f.Fatal(err)
		}
		f.Add(pack(cols), len(frames))
	}
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		cols := make([][]byte, Columns)
		for i := range cols {
			if len(b) < 2 {
				break
			}
			size := min(int(b[0])<<8|int(b[1]), len(b)-2)
			cols[i], b = b[2:2+size], b[2+size:]
		}
		if n > 4096 {
			n %= 4096
		}
		frames, err := Codec{MaxBytes: 1 << 22}.DecodeColumns(cols, n)
		if err != nil {
			return
		}
		sum := 0
		for _, f := range frames {
			sum += len(f)
		}
		if len(frames) != n || sum > 1<<22 {
			t.Fatalf("%d frames of %d bytes", len(frames), sum)
		}
		checkColumns(t, frames, [][]byte{testKey(1)})
	})
}

// FuzzColumnsFrames feeds arbitrary bytes as frames.
func FuzzColumnsFrames(f *testing.F) {
	rng := newRand(14)
	for range 8 {
		f.Add(AppendFrame(nil, randomRecord(rng)), AppendFrame(nil, randomRecord(rng)))
	}
	f.Fuzz(func(t *testing.T, a, b []byte) {
		checkColumns(t, [][]byte{a, b, a, b, b}, [][]byte{testKey(1)})
	})
}

func BenchmarkColumns(b *testing.B) {
	frames, hints := trafficFrames(b, 65536, 10000)
	cols, err := Codec{}.EncodeColumns(frames, hints)
	if err != nil {
		b.Fatal(err)
	}
	perFrame := func(b *testing.B) {
		b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/float64(len(frames)), "ns/frame")
	}
	b.Run("encode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := (Codec{}).EncodeColumns(frames, hints); err != nil {
				b.Fatal(err)
			}
		}
		perFrame(b)
	})
	b.Run("decode", func(b *testing.B) {
		b.ReportAllocs()
		for b.Loop() {
			if _, err := (Codec{}).DecodeColumns(cols, len(frames)); err != nil {
				b.Fatal(err)
			}
		}
		perFrame(b)
	})
}

func ExampleCodec() {
	frame := AppendFrame(nil, &Record{Kind: KindStart, Outcome: Success})
	cols, err := Codec{}.EncodeColumns([][]byte{frame, frame}, nil)
	if err != nil {
		fmt.Println(err)
		return
	}
	frames, err := Codec{}.DecodeColumns(cols, 2)
	fmt.Println(len(frames), bytes.Equal(frames[1], frame), err)
	// Output: 2 true <nil>
}
