package ledger

import (
	"bytes"
	"context"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"flag"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/cryptotest"
	"time"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/gatebook/gatebook/internal/book/store"
)

// -update writes the golden files anew. They are format version 1 and frozen:
// a difference means that old books would not be read or that new ones would
// not be read by older releases. Only the compressed bytes within a segment
// may change, with another release of the compressor; then the old folder
// stays beside the new one and both are read.
var update = flag.Bool("update", false, "write the golden files anew")

const goldenDir = "testdata/golden/v1"

func hkdfExpand(t *testing.T, key, info []byte) [32]byte {
	t.Helper()
	out, err := hkdf.Expand(sha256.New, key, string(info), 32)
	if err != nil {
		t.Fatal(err)
	}
	return [32]byte(out)
}

func hmacSum(key, msg []byte) [32]byte {
	m := hmac.New(sha256.New, key)
	m.Write(msg)
	return [32]byte(m.Sum(nil))
}

// golden compares a file with what was made now.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join(goldenDir, filepath.FromSlash(name))
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(want, got) {
		at := 0
		for at < min(len(want), len(got)) && want[at] == got[at] {
			at++
		}
		t.Errorf("%s differs from byte %d on; it has %d bytes, this release makes %d", name, at, len(want), len(got))
	}
}

// goldenItem is a record with parts that compress and parts that do not.
func goldenItem(kind ItemKind, n uint64) *Item {
	it := testItem(kind, n)
	it.Personal = fmt.Appendf(nil, `{"ip":"192.0.2.%d","ua":"%s"}`, n, strings.Repeat("agent ", int(n%4)*9))
	it.Closes = n%2 == 0
	if n%5 == 4 {
		it.Personal = nil
	}
	return it
}

// goldenStory fills a ledger in one goroutine, so that every byte repeats: a
// sealed segment, a second one, and a WAL file with every kind of item behind
// the checkpoint and before it.
func goldenStory(t *testing.T) (running, closed *world) {
	t.Helper()
	cryptotest.SetGlobalRandom(t, 1)
	at := time.Date(2026, 11, 23, 12, 0, 0, 0, time.UTC)
	w := newWorld(t, func(o *Options) {
		o.SegmentRecords, o.Prealloc, o.Hint = 32, 256, []byte("0123456789abcdef")
		o.Now = func() time.Time { return at }
	}).open()
	ctx := context.Background()
	add := func(kind ItemKind, ns ...uint64) {
		for _, n := range ns {
			if _, err := w.l.Append(ctx, goldenItem(kind, n), Written); err != nil {
				t.Fatal(err)
			}
		}
	}
	must := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	add(ItemOpen, 100, 2) // record 2 closes its mark; one only is carried on, since their order is a map's
	add(ItemRecord, seqTo(40)...)
	must(w.l.SignCheckpoint(ctx))
	must(w.l.SealNow(ctx))
	add(ItemRecord, 40, 41, 42)
	must(w.l.SignCheckpoint(ctx))
	add(ItemOpen, 200)
	add(ItemRecord, 43, 44)
	must(w.l.syncOnce())
	add(ItemRecord, 45)
	running = &world{t: t, fs: w.fs.Clone(), keys: w.keys.forget(), opt: w.opt, vkey: w.vkey}
	w.close()
	return running, w
}

// keysText writes the keys of a ledger down, for a second implementation.
func keysText(w *world) []byte {
	var lines []string
	for id, key := range w.keys.files {
		lines = append(lines, fmt.Sprintf("file %x %x\n", id, key))
	}
	for id := range w.keys.subjects {
		lines = append(lines, fmt.Sprintf("subject %x %x\n", id, subjectKey(id)))
	}
	slices.Sort(lines)
	return []byte(strings.Join(lines, ""))
}

// contentText writes down what the ledger holds.
func contentText(t *testing.T, v *View) []byte {
	t.Helper()
	var b bytes.Buffer
	err := v.Read(0, v.Size(), func(s *Sealed) error {
		e, err := v.entries(s.Index, s.Index+1)
		if err != nil {
			return err
		}
		if s.Manifest {
			fmt.Fprintf(&b, "%d manifest %x\n", s.Index, e[0].hash)
			return nil
		}
		fmt.Fprintf(&b, "%d record %x subject %x frame %s personal %s\n", s.Index, e[0].hash, s.Subject, s.Frame, s.Personal)
		return s.PersonalErr
	})
	if err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// TestGoldenLedger makes whole ledgers and compares every file of them, then
// reads the frozen ones with the keys that lie beside them.
func TestGoldenLedger(t *testing.T) {
	running, closed := goldenStory(t)
	for name, w := range map[string]*world{"running": running, "closed": closed} {
		t.Run(name, func(t *testing.T) {
			var files []string
			for _, file := range w.fs.Files() {
				b, err := store.ReadFile(w.fs, file, 1<<20)
				if err != nil {
					t.Fatal(err)
				}
				golden(t, name+"/book/"+file, b)
				files = append(files, file)
			}
			golden(t, name+"/keys.txt", keysText(w))
			frozen, keys := frozenLedger(t, name)
			if got := frozen.Files(); !slices.Equal(got, files) {
				t.Errorf("the frozen ledger has the files %v, this release makes %v", got, files)
			}
			checkFrozen(t, name, w, frozen, keys)
		})
	}
}

// frozenLedger loads the files that lie in testdata.
func frozenLedger(t *testing.T, name string) (*store.Mem, *testKeys) {
	t.Helper()
	m := store.NewMem(nil)
	root := filepath.Join(goldenDir, name, "book")
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		b, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		return putFile(m, filepath.ToSlash(rel), b)
	})
	if err != nil {
		t.Fatal(err)
	}
	text, err := os.ReadFile(filepath.Join(goldenDir, name, "keys.txt"))
	if err != nil {
		t.Fatal(err)
	}
	keys := newTestKeys()
	for line := range strings.Lines(string(text)) {
		var kind, id, key string
		if _, err := fmt.Sscan(line, &kind, &id, &key); err != nil {
			t.Fatal(err)
		}
		rawID, _ := hex.DecodeString(id)
		rawKey, _ := hex.DecodeString(key)
		if kind == "file" {
			keys.files[[16]byte(rawID)] = [32]byte(rawKey)
		} else if subjectKey([16]byte(rawID)) != [32]byte(rawKey) {
			t.Fatalf("the key of subject %s is not the frozen one", id)
		}
	}
	return m, keys
}

// putFile makes a file hold data, replacing what it held.
func putFile(m *store.Mem, name string, data []byte) error {
	return store.WriteFile(m, name, data)
}

func checkFrozen(t *testing.T, name string, w *world, frozen *store.Mem, keys *testKeys) {
	t.Helper()
	rep, err := Verify(VerifyOptions{FS: frozen.Clone(), Codec: testCodec{}, Keys: keys.forget(), Key: w.vkey})
	if err != nil {
		t.Fatal(err)
	}
	if rep.ExitCode() != 0 {
		t.Fatalf("the frozen ledger does not verify: %+v, findings %v", rep, rep.Findings)
	}
	opt := w.opt
	opt.FS, opt.Keys = frozen.Clone(), keys
	v, err := Inspect(opt, w.vkey)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	golden(t, name+"/content.txt", contentText(t, v))
	golden(t, name+"/proofs.txt", proofsText(t, v))
}

// proofsText writes down the inclusion proof of every signed record and checks
// it.
func proofsText(t *testing.T, v *View) []byte {
	t.Helper()
	var b bytes.Buffer
	_, tree := v.Checkpoint()
	fmt.Fprintf(&b, "size %d root %x\n", tree.Size, tree.Root[:])
	for i := range tree.Size {
		e, err := v.entries(i, i+1)
		if err != nil {
			t.Fatal(err)
		}
		if e[0].typ == entryManifest {
			continue
		}
		p, err := v.Prove(i)
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(&b, "leaf %d %x\n", i, p.Commitment)
		for _, h := range p.Hashes {
			fmt.Fprintf(&b, " %x\n", h[:])
		}
	}
	return b.Bytes()
}

// TestGoldenItems freezes each type of item, one of which nothing writes.
func TestGoldenItems(t *testing.T) {
	id, mark, c := [16]byte{1, 2, 3}, [16]byte{4, 5, 6}, [32]byte{7, 8, 9}
	var b []byte
	b = appendSubjectItem(b, id, []byte("birth"))
	b = appendOpenItem(b, mark, id, 1_700_000_000_000_001, []byte("frame"), []byte("personal"))
	b = appendRecordItem(b, 258, true, mark, id, &c, []byte("frame"), nil)
	b = appendRecordItem(b, 259, false, [16]byte{}, id, &c, nil, []byte("personal"))
	b = appendDropItem(b, mark)
	b = appendMarkItem(b, markCheckpoint, 260, emptyRoot[:])
	b = appendMarkItem(b, markManifest, 260, []byte("manifest"))
	b = appendMarkItem(b, markHint, 0, []byte("hint"))
	b = appendMarkItem(b, markClosed, 0, nil)
	golden(t, "items.bin", b)
	frozen, err := os.ReadFile(filepath.Join(goldenDir, "items.bin"))
	if err != nil {
		t.Fatal(err)
	}
	var again []byte
	for n := 0; len(frozen) > 0; n++ {
		it, rest, err := nextItem(frozen)
		if err != nil {
			t.Fatalf("item %d: %v", n, err)
		}
		again = appendItem(again, &it)
		frozen = rest
	}
	if !bytes.Equal(again, b) {
		t.Error("the frozen items do not come back as the same bytes")
	}
}

// appendItem is the inverse of nextItem.
func appendItem(b []byte, it *item) []byte {
	switch it.typ {
	case itemSubject:
		return appendSubjectItem(b, it.id, it.data)
	case itemOpen:
		return appendOpenItem(b, it.id, it.subject, it.time, it.frame, it.personal)
	case itemRecord:
		return appendRecordItem(b, it.index, it.closes, it.id, it.subject, &it.commit, it.frame, it.personal)
	case itemDrop:
		return appendDropItem(b, it.id)
	}
	return appendMarkItem(b, it.kind, it.size, it.data)
}

// TestGoldenManifest freezes a manifest with everything in it.
func TestGoldenManifest(t *testing.T) {
	m := &manifest{
		first: 65536, count: 3, generation: 2, format: segmentVersion, keyID: [16]byte{1},
		file: sha256.Sum256([]byte("file")), replaced: sha256.Sum256([]byte("replaced")),
		roots:  coverRange(65536, []tlog.Hash{{1}, {2}, {3}}, nil),
		ranges: []accounted{{1, 65536, 1, 70000}, {2, 65538, 1, 70001}},
	}
	golden(t, "manifest.bin", m.encode())
	b, err := os.ReadFile(filepath.Join(goldenDir, "manifest.bin"))
	if err != nil {
		t.Fatal(err)
	}
	back, err := decodeManifest(b)
	if err != nil {
		t.Fatal(err)
	}
	if fmt.Sprintf("%+v", back) != fmt.Sprintf("%+v", m) {
		t.Errorf("the frozen manifest reads as %+v, want %+v", back, m)
	}
}

// TestGoldenTile freezes the first full tile of level 1, over 65,536 leaves.
func TestGoldenTile(t *testing.T) {
	m := store.NewMem(nil)
	f := &frontier{full: func(level int, n uint64, hashes []tlog.Hash) {
		if err := writeTile(m, tile{level, n, hashes}); err != nil {
			t.Fatal(err)
		}
	}}
	for i := range 65536 {
		e := entry{entryRecord, sha256.Sum256(fmt.Appendf(nil, "leaf %d", i))}
		f.push(e.leafHash())
	}
	if got := m.Files(); !slices.Equal(got, []string{"tile/1/000"}) {
		t.Fatalf("65,536 leaves make the files %v", got)
	}
	b, err := store.ReadFile(m, "tile/1/000", 1<<20)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "tile-1-000.bin", b)
	hashes, err := readTile(m, 1, 0)
	if err != nil {
		t.Fatal(err)
	}
	if perfectRoot(hashes) != f.root() {
		t.Error("the root over the tile is not the root over its leaves")
	}
}

// C2SP tlog-tiles gives 1234067 as its example of a path.
func TestTilePath(t *testing.T) {
	for _, c := range []struct {
		level int
		n     uint64
		w     int
		want  string
	}{
		{0, 0, tileWidth, "tile/0/000"},
		{1, 999, tileWidth, "tile/1/999"},
		{2, 1000, tileWidth, "tile/2/x001/000"},
		{0, 1234067, tileWidth, "tile/0/x001/x234/067"},
		{3, 1234067, 5, "tile/3/x001/x234/067.p/5"},
	} {
		if got := tilePath(c.level, c.n, c.w); got != c.want {
			t.Errorf("tile %d of level %d is %s, want %s", c.n, c.level, got, c.want)
		}
	}
}
