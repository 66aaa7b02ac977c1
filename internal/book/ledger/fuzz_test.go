package ledger

import (
	"bytes"
	"encoding/base64"
	"errors"
	"runtime"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"github.com/gatebook/gatebook/internal/book/store"
)

// fuzzWAL is a valid WAL file, its key and the items in it.
type fuzzWAL struct {
	b     []byte
	keys  *testKeys
	items [][]byte // each as its bytes
}

const fuzzWALName = "wal/0000000000000001.wal"

// makeFuzzWAL writes a file with batches of all kinds of items.
func makeFuzzWAL(t testing.TB) *fuzzWAL {
	t.Helper()
	out := &fuzzWAL{keys: newTestKeys()}
	id, key, err := out.keys.NewFileKey(UseWAL)
	if err != nil {
		t.Fatal(err)
	}
	h := walHeader{serial: 1, keyID: id, origin: "log.example/n"}
	out.b = h.encode()
	prev := firstTag(out.b)
	index := uint64(0)
	for seq := uint64(1); seq <= 12; seq++ {
		var items []byte
		keep := func(from int) { out.items = append(out.items, bytes.Clone(items[from:])) }
		at := len(items)
		switch seq % 4 {
		case 0:
			items = appendMarkItem(items, markCheckpoint, index, emptyRoot[:])
		case 1:
			items = appendSubjectItem(items, [16]byte{byte(seq)}, []byte("birth"))
		case 2:
			items = appendOpenItem(items, markID(seq), [16]byte{1}, int64(seq), []byte("frame"), []byte("personal"))
		case 3:
			items = appendMarkItem(items, markManifest, index, []byte("manifest"))
			index++
		}
		keep(at)
		for range seq % 3 {
			at = len(items)
			items = appendRecordItem(items, index, true, markID(index), [16]byte{1}, &[32]byte{byte(index)}, []byte("frame"), []byte("personal"))
			index++
			keep(at)
		}
		batch := sealBatch(t, key, items, seq, seq/2, &prev)
		out.b = append(out.b, batch...)
	}
	out.b = append(out.b, make([]byte, 100)...)
	return out
}

// sealBatch makes the bytes of one batch and moves prev on.
func sealBatch(t testing.TB, key [32]byte, items []byte, seq, synced uint64, prev *[tagSize]byte) []byte {
	t.Helper()
	c, err := newWALCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	b, err := c.seal(append(make([]byte, batchHead), items...), seq, synced, prev)
	if err != nil {
		t.Fatal(err)
	}
	copy(prev[:], b[len(b)-tagSize:])
	return b
}

// gather is a replayer that keeps what it is given.
type gather struct{ items [][]byte }

func (g *gather) item(_ *walFile, it *item) error {
	g.items = append(g.items, appendItem(nil, it))
	return nil
}

// replayBytes replays b as a WAL file.
func replayBytes(t testing.TB, b []byte, keys Keys) (items [][]byte, tail walTail, err error) {
	t.Helper()
	m := store.NewMem(nil)
	if err := putFile(m, fuzzWALName, b); err != nil {
		t.Fatal(err)
	}
	w, err := openWAL(m, fuzzWALName, keys)
	if err != nil {
		return nil, tail, err
	}
	g := &gather{}
	tail, err = w.replay(g)
	if w.end > int64(len(b)) || w.end < w.hdrSize {
		t.Fatalf("replay ended at %d in a file of %d bytes", w.end, len(b))
	}
	return g.items, tail, err
}

// boundedMemory runs fn and fails if what it allocates is out of proportion
// to its input.
func boundedMemory(t testing.TB, input int, fn func()) {
	t.Helper()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	fn()
	runtime.ReadMemStats(&after)
	if got, limit := after.TotalAlloc-before.TotalAlloc, uint64(64*input+(8<<20)); got > limit {
		t.Fatalf("%d bytes allocated for an input of %d", got, input)
	}
}

// FuzzWAL replays three files: b as it is; b as the items of an authentic
// batch; and a valid file with one byte changed and its end cut off, which
// must give the items before the damage or refuse, never others.
func FuzzWAL(f *testing.F) {
	valid := makeFuzzWAL(f)
	f.Add(valid.b, uint32(0), byte(1), uint32(0))
	f.Add(valid.b[:200], uint32(90), byte(0x80), uint32(7))
	f.Add(bytes.Join(valid.items, nil), uint32(300), byte(0xff), uint32(200))
	f.Add([]byte{}, uint32(5), byte(3), uint32(1<<20))
	f.Add(appendMarkItem(nil, markManifest, 0, nil), uint32(0), byte(1), uint32(0))
	f.Add(appendDropItem(nil, markID(1)), uint32(120), byte(0), uint32(140))
	f.Fuzz(func(t *testing.T, b []byte, off uint32, flip byte, cut uint32) {
		if len(b) > 1<<16 {
			return
		}
		boundedMemory(t, len(b), func() { replayBytes(t, b, valid.keys) })

		items := inBatch(t, valid, b)
		got, _, err := replayBytes(t, items, valid.keys)
		if err == nil && !bytes.Equal(bytes.Join(got, nil), b) {
			t.Fatalf("the batch's items come back as other bytes")
		}

		broken := bytes.Clone(valid.b)
		broken[int(off)%len(broken)] ^= flip
		broken = broken[:len(broken)-int(cut)%len(broken)]
		got, tail, err := replayBytes(t, broken, valid.keys)
		if len(got) > len(valid.items) || !slices.EqualFunc(got, valid.items[:len(got)], bytes.Equal) {
			t.Fatalf("byte %d ^ %#x, cut %d: items that were never written", off, flip, cut)
		}
		if err == nil && !tail.junk && len(got) < len(valid.items) && len(broken) == len(valid.b) && flip != 0 {
			t.Fatalf("byte %d ^ %#x: items are lost without a trace", off, flip)
		}
	})
}

// inBatch is a WAL file with one authentic batch around items.
func inBatch(t testing.TB, w *fuzzWAL, items []byte) []byte {
	t.Helper()
	h, n, err := decodeWALHeader(w.b)
	if err != nil {
		t.Fatal(err)
	}
	key, err := w.keys.FileKey(UseWAL, h.keyID)
	if err != nil {
		t.Fatal(err)
	}
	head := bytes.Clone(w.b[:n])
	prev := firstTag(head)
	return append(head, sealBatch(t, key, items, 1, 0, &prev)...)
}

// FuzzItem: what is accepted comes back as the same bytes.
func FuzzItem(f *testing.F) {
	for _, it := range makeFuzzWAL(f).items {
		f.Add(it)
	}
	f.Add(appendDropItem(nil, markID(7)))
	f.Add([]byte{itemRecord, 0, 0, 0, 77, 255})
	f.Fuzz(func(t *testing.T, b []byte) {
		it, rest, err := nextItem(b)
		if err != nil {
			return
		}
		if again := appendItem(nil, &it); !bytes.Equal(again, b[:len(b)-len(rest)]) {
			t.Fatalf("%x comes back as %x", b[:len(b)-len(rest)], again)
		}
		it.leaf()
		it.leafIndex()
	})
}

// FuzzManifest: what is accepted comes back as the same bytes.
func FuzzManifest(f *testing.F) {
	for _, m := range []manifest{
		{first: 0, count: 1, format: segmentVersion},
		{first: 65536, count: 9, generation: 3, format: segmentVersion, roots: make([]subtree, 2), ranges: make([]accounted, 3)},
	} {
		f.Add(m.encode())
	}
	f.Add([]byte{2})
	f.Fuzz(func(t *testing.T, b []byte) {
		m, err := decodeManifest(b)
		if err != nil {
			return
		}
		if again := m.encode(); !bytes.Equal(again, b) {
			t.Fatalf("%x comes back as %x", b, again)
		}
	})
}

// FuzzCheckpoint: what is accepted comes back as the same text, and nothing
// but the tree head that was signed is accepted as signed.
func FuzzCheckpoint(f *testing.F) {
	origin := Origin("log.example", "n1", testSeed)
	s, vkey, err := NewSigner(origin, testSeed)
	if err != nil {
		f.Fatal(err)
	}
	v, err := note.NewVerifier(vkey)
	if err != nil {
		f.Fatal(err)
	}
	signed := Tree{Origin: origin, Size: 42, Root: emptyRoot}
	msg, err := signTree(signed, s)
	if err != nil {
		f.Fatal(err)
	}
	root := base64.StdEncoding.EncodeToString(emptyRoot[:])
	f.Add(string(msg))
	f.Add(signed.text())
	f.Add(origin + "\n042\n" + root + "\n")
	f.Add(origin + "\n42\n" + root[:9] + "\r" + root[9:] + "\n")
	f.Add(origin + "\n42\n" + root + "\nextension\n")
	f.Add(strings.Replace(string(msg), "\n42\n", "\n43\n", 1))
	f.Add(string(msg) + "— " + origin + " AAAAAAAA\n")
	f.Fuzz(func(t *testing.T, text string) {
		if tree, err := parseTree(text); err == nil && tree.text() != text {
			t.Fatalf("%q comes back as %q", text, tree.text())
		}
		tree, err := OpenCheckpoint([]byte(text), v)
		if err != nil {
			return
		}
		if tree != signed {
			t.Fatalf("%q passes for signed", text)
		}
		if !strings.HasPrefix(text, signed.text()+"\n") {
			t.Fatalf("%q is accepted with another text", text)
		}
	})
}

// FuzzSegment parses b as it is, and a valid segment with one byte changed and
// its SHA-256 made right again: it must give what was sealed, or refuse.
func FuzzSegment(f *testing.F) {
	valid := buildTestSegment(f, "log.example/n", 65536, 25)
	want, err := valid.read(valid.bytes, valid.keys)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(valid.bytes, uint32(0), byte(1))
	f.Add(valid.bytes[:60], uint32(80), byte(0x40))
	f.Add([]byte{segmentVersion}, uint32(len(valid.bytes)-40), byte(2))
	f.Add([]byte{}, uint32(len(valid.bytes)-33), byte(0xff))
	f.Fuzz(func(t *testing.T, b []byte, off uint32, flip byte) {
		boundedMemory(t, len(b), func() {
			parseSegment(b, nil)
			parseSegment(sumAgain(b), nil)
		})
		content := bytes.Clone(valid.bytes[:len(valid.bytes)-32])
		content[int(off)%len(content)] ^= flip
		got, err := valid.read(sumAgain(content), valid.keys)
		if err != nil {
			return
		}
		sameSealed(t, want, got)
	})
}

// sameSealed allows other leaf types and missing personal parts, which the
// tree and the keys decide about, but no other content.
func sameSealed(t *testing.T, want, got []Sealed) {
	t.Helper()
	frames, parts := map[string]bool{}, map[string]bool{"": true}
	for _, s := range want {
		frames[string(s.Frame)], parts[string(s.Personal)] = true, true
	}
	for _, s := range got {
		if !frames[string(s.Frame)] || !parts[string(s.Personal)] {
			t.Fatalf("leaf %d comes back as content that was never sealed: %+v", s.Index, s)
		}
		var noKey *KeyError
		if s.PersonalErr != nil && !errors.As(s.PersonalErr, &noKey) && len(s.Personal) > 0 {
			t.Fatalf("leaf %d has a personal part and an error", s.Index)
		}
	}
}
