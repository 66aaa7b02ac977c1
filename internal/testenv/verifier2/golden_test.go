package verifier2

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const golden = "../../book/ledger/testdata/golden/v1"

// oneColumn is the column form of the golden folders (section 16).
func oneColumn(columns [][]byte, n int) (frames [][]byte, err error) {
	if len(columns) != 1 {
		return nil, fmt.Errorf("%d columns", len(columns))
	}
	r := reader{b: columns[0]}
	for range n {
		frames = append(frames, r.take(r.count()))
	}
	if r.bad || len(r.b) > 0 {
		return nil, errForm
	}
	return frames, nil
}

func goldenKeys(t *testing.T, folder string) *Keys {
	t.Helper()
	text, err := os.ReadFile(filepath.Join(golden, folder, "keys.txt"))
	if err != nil {
		t.Fatal(err)
	}
	files, subjects := map[id]hash{}, map[id]hash{}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		i, err := hex.DecodeString(f[1])
		if err != nil {
			t.Fatal(err)
		}
		key, err := hex.DecodeString(f[2])
		if err != nil {
			t.Fatal(err)
		}
		if f[0] == "file" {
			files[id(i)] = hash(key)
		} else {
			subjects[id(i)] = hash(key)
		}
	}
	return NewKeys(files, subjects)
}

// The frozen folders must verify, and give as many records as their content
// lists.
func TestGoldenFolders(t *testing.T) {
	for _, folder := range []string{"closed", "running"} {
		t.Run(folder, func(t *testing.T) {
			dir := filepath.Join(golden, folder, "book")
			vkey, err := os.ReadFile(filepath.Join(dir, "log.vkey"))
			if err != nil {
				t.Fatal(err)
			}
			records, err := VerifyLedger(dir, goldenKeys(t, folder), strings.TrimSuffix(string(vkey), "\n"), oneColumn)
			if err != nil {
				t.Fatal(err)
			}
			content, err := os.ReadFile(filepath.Join(golden, folder, "content.txt"))
			if err != nil {
				t.Fatal(err)
			}
			if want := bytes.Count(content, []byte(" record ")); records != want {
				t.Errorf("%d records, want %d", records, want)
			}
		})
	}
}

// Every item in the frozen file is of a known form, a drop included.
func TestGoldenItems(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(golden, "items.bin"))
	if err != nil {
		t.Fatal(err)
	}
	w := &walFile{first: 258}
	if err := w.take(b); err != nil {
		t.Fatal(err)
	}
	if len(w.items) != 9 || w.leaves != 3 {
		t.Errorf("%d items with %d leaves, want 9 with 3", len(w.items), w.leaves)
	}
}

func TestGoldenManifest(t *testing.T) {
	b, err := os.ReadFile(filepath.Join(golden, "manifest.bin"))
	if err != nil {
		t.Fatal(err)
	}
	m, err := parseManifest(9, b)
	if err != nil {
		t.Fatal(err)
	}
	if m.first != 65536 || m.count != 3 || m.generation != 2 || len(m.roots) != 2 {
		t.Errorf("the manifest reads as %+v", m)
	}
	for i := range b {
		if _, err := parseManifest(9, b[:i]); err == nil {
			t.Errorf("cut to %d bytes it is accepted", i)
		}
	}
}

// The frozen tile must be what its leaves give.
func TestGoldenTile(t *testing.T) {
	want, err := os.ReadFile(filepath.Join(golden, "tile-1-000.bin"))
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	v := &verifier{dir: dir, size: 65536}
	for i := range 65536 {
		v.leaves = append(v.leaves, leaf{0x01, sha256.Sum256(fmt.Appendf(nil, "leaf %d", i))})
	}
	var hashes []hash
	for _, l := range v.leaves {
		hashes = append(hashes, l.leafHash())
	}
	v.root = merkleRoot(hashes)
	if err := v.checkTree(); err == nil {
		t.Error("a missing tile is not noticed")
	}
	name := filepath.Join(dir, tileName(1, 0))
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := v.checkTree(); err != nil {
		t.Error(err)
	}
	want[8191] ^= 1
	if err := os.WriteFile(name, want, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := v.checkTree(); err == nil {
		t.Error("a changed tile is not noticed")
	}
}
