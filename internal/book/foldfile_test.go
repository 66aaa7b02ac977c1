package book

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"flag"
	"os"
	"path/filepath"
	"testing"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

var update = flag.Bool("update", false, "write golden files anew")

// goldenFolds is the file that docs/format.md describes by its inputs.
func goldenFolds() (b []byte, key keys.Key) {
	for i := range key {
		key[i] = byte(i)
	}
	var boot bootID
	copy(boot[:], "0123456789abcdef")
	b = newFoldFile(&key, 2, boot)
	at := func(slot, area, copy int) []byte {
		return b[foldBlock*(1+slot)+foldArea*area+foldCopy*copy:][:foldCopy]
	}
	mark := [16]byte([]byte("ABCDEFGHIJKLMNOP"))
	encodeFoldCopy(at(0, 0, 1), &key, mark, foldCount{7, 1_700_000_000_000_000})
	encodeFoldCopy(at(0, 0, 2), &key, mark, foldCount{9, 1_700_000_000_000_200})
	encodeFoldCopy(at(1, 1, 0), &key, [16]byte([]byte("ponmlkjihgfedcba")), foldCount{1 << 40, 1_700_000_001_000_000})
	return b, key
}

// TestFoldGolden: the bytes of version 1 do not change.
func TestFoldGolden(t *testing.T) {
	b, key := goldenFolds()
	name := filepath.Join("testdata", "v1", "fold.golden")
	text := hex.Dump(b)
	if *update {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	if text != string(want) {
		t.Fatalf("the file is\n%s\nwant\n%s", text, want)
	}
	c, err := decodeFolds(b, &key)
	if err != nil {
		t.Fatal(err)
	}
	if string(c.boot[:]) != "0123456789abcdef" || c.damaged != 0 || len(c.counts) != 2 ||
		c.counts[[16]byte([]byte("ABCDEFGHIJKLMNOP"))] != (foldCount{9, 1_700_000_000_000_200}) ||
		c.counts[[16]byte([]byte("ponmlkjihgfedcba"))] != (foldCount{1 << 40, 1_700_000_001_000_000}) {
		t.Errorf("read back: %+v", c)
	}
}

// TestFoldFlips: no bit of the file can change without being noticed, and none
// changes a count.
func TestFoldFlips(t *testing.T) {
	b, key := goldenFolds()
	good, err := decodeFolds(b, &key)
	if err != nil {
		t.Fatal(err)
	}
	for at := range b {
		for bit := range 8 {
			b[at] ^= 1 << bit
			c, err := decodeFolds(b, &key)
			if err == nil && c.damaged == 0 {
				t.Fatalf("bit %d of byte %d: not noticed", bit, at)
			}
			if err == nil {
				for mark, n := range c.counts {
					if n.count > good.counts[mark].count {
						t.Fatalf("bit %d of byte %d: %x counts %d", bit, at, mark, n.count)
					}
				}
			}
			b[at] ^= 1 << bit
		}
	}
	other := key
	other[31] ^= 1
	if c, err := decodeFolds(b, &other); err == nil {
		t.Errorf("another key reads %+v", c)
	}
}

// TestFoldFileHoldsNothingPersonal: what is in it are marks, counts and times.
func TestFoldFileHoldsNothingPersonal(t *testing.T) {
	r := newRoom(t, small(4096))
	b := r.open()
	folding(t, b)
	rec := b.Recorder(testRules(t), testSnap)
	for n := range 400 {
		if err := refuse(rec, "203.0.113.9", sorts[n%len(sorts)], record.Written); err != nil {
			t.Fatal(err)
		}
	}
	file, err := store.ReadFile(r.files, foldName, 1<<22)
	if err != nil {
		t.Fatal(err)
	}
	if want := foldBlock * (1 + r.cfg.FoldSlots); len(file) != want {
		t.Errorf("%d bytes, want %d", len(file), want)
	}
	for _, secret := range []string{"203.0.113", "mallory", "scanner", "admin", "limited", "token", "\xcb\x00\x71\x09", "\xcb\x00\x71\x00"} {
		if bytes.Contains(file, []byte(secret)) {
			t.Errorf("the file holds %q", secret)
		}
	}
}

// TestThisBoot: the machine says which boot it is, and says the same again.
func TestThisBoot(t *testing.T) {
	if a, b := thisBoot(), thisBoot(); a != b {
		t.Errorf("%x, then %x", a, b)
	}
}

// FuzzFoldFile reads any bytes: nothing but what was written under the key
// counts.
func FuzzFoldFile(f *testing.F) {
	b, key := goldenFolds()
	good, err := decodeFolds(b, &key)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Add(b[:foldBlock])
	f.Add(b[:len(b)-foldArea])
	f.Add(append(bytes.Clone(b), make([]byte, foldBlock)...))
	f.Add([]byte{foldV1})
	f.Add([]byte("\x02GBFLD"))
	f.Add(newFoldFile(&key, 0, bootID{}))
	f.Fuzz(func(t *testing.T, in []byte) {
		// The header is made good so that mutations reach what is behind it.
		for _, mend := range []bool{false, true} {
			in := bytes.Clone(in)
			if mend {
				if len(in) < foldBlock {
					return
				}
				slots := len(in)/foldBlock - 1
				in = in[:foldBlock*(1+slots)]
				copy(in[1:], foldMagic)
				in[0] = foldV1
				binary.BigEndian.PutUint32(in[1+len(foldMagic):], uint32(slots))
				tag := foldTagOf(&key, in[:foldHeader])
				copy(in[foldHeader:], tag[:])
			}
			c, err := decodeFolds(in, &key)
			if err != nil {
				continue
			}
			for mark, n := range c.counts {
				if n.count > good.counts[mark].count {
					t.Fatalf("%x counts %d that nobody wrote", mark, n.count)
				}
			}
		}
	})
}
