package keys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// populatedFile is a store file with branches, overflow pages, small and large
// tables and free pages.
func populatedFile(t testing.TB) []byte {
	t.Helper()
	path := filepath.Join(privateDir(t), "keys.db")
	s := value[Store](t)(OpenBolt(path, false))
	for round := range 3 {
		must(t, s.Update(func(tx Tx) error {
			var errs []error
			for n := range 60 {
				errs = append(errs, tx.Put(bucketKey, fmt.Appendf(nil, "row %d of %d", n, round), bytes.Repeat([]byte{byte(n)}, 80)))
			}
			errs = append(errs, tx.Put(bucketMeta, []byte{byte(round + 1)}, []byte("small")),
				tx.Put(bucketDay, []byte{byte(round + 1)}, bytes.Repeat([]byte("large"), 1200)), tx.Delete(bucketKey, fmt.Appendf(nil, "row 5 of %d", round)))
			return errors.Join(errs...)
		}))
	}
	must(t, s.Close())
	return value[[]byte](t)(os.ReadFile(path))
}

// TestPages: files as bbolt writes them are accepted, at every length of a
// file that was cut refused.
func TestPages(t *testing.T) {
	b := populatedFile(t)
	must(t, checkPages(bytes.NewReader(b), int64(len(b))))
	m := value[metaPage](t)(newestMeta(bytes.NewReader(b), int64(len(b))))
	for n := 0; n < int(m.high)*int(m.page); n += 777 {
		if checkPages(bytes.NewReader(b[:n]), int64(n)) == nil {
			t.Fatalf("a file cut to %d of %d bytes is accepted", n, len(b))
		}
	}
}

// TestDamagedPages changes every number in the heads of all pages and rows, to
// values near and far. Nobody may trust the file then, or nothing in use has
// changed; bbolt itself is asked only in the second case.
func TestDamagedPages(t *testing.T) {
	b := populatedFile(t)
	path := filepath.Join(privateDir(t), "keys.db")
	refused := 0
	m := value[metaPage](t)(newestMeta(bytes.NewReader(b), int64(len(b))))
	for page := int64(2); page < int64(m.high); page++ {
		for _, at := range []int64{0, 7, 8, 9, 10, 11, 12, 15, 16, 19, 20, 23, 24, 27, 28, 31, 36, 40, 44} {
			for _, bit := range []byte{0x01, 0x80} {
				broken := bytes.Clone(b)
				broken[page*m.page+at] ^= bit
				if checkPages(bytes.NewReader(broken), int64(len(b))) != nil {
					refused++
					continue
				}
				must(t, os.WriteFile(path, broken, 0o600))
				s, err := OpenBolt(path, true)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := Load(s); err != nil && !errors.Is(err, ErrStoreDamaged) {
					t.Errorf("page %d byte %d: %v", page, at, err)
				}
				must(t, s.Close())
			}
		}
	}
	if refused < int(m.high) {
		t.Errorf("only %d changes were refused", refused)
	}
}

// TestRefusesDamagedStore: opening gives words, not a panic, and leaves the
// file as it is.
func TestRefusesDamagedStore(t *testing.T) {
	b := populatedFile(t)
	for page := 2; page < len(b)/4096; page++ {
		b[page*4096+15] ^= 0x40 // a thousand million pages of overflow
	}
	path := filepath.Join(privateDir(t), "keys.db")
	must(t, os.WriteFile(path, b, 0o600))
	for _, readOnly := range []bool{true, false} {
		begin := time.Now()
		if _, err := OpenBolt(path, readOnly); !errors.Is(err, ErrStoreDamaged) {
			t.Errorf("read-only %v: %v", readOnly, err)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("it took %s", d)
		}
	}
	if !bytes.Equal(value[[]byte](t)(os.ReadFile(path)), b) {
		t.Error("the file was changed")
	}
}

// FuzzPages: nothing behind the heads makes the check panic.
func FuzzPages(f *testing.F) {
	b := populatedFile(f)
	f.Add(b[4*4096:], uint16(4))
	f.Add(b[3*4096:6*4096], uint16(3))
	f.Add([]byte{}, uint16(0))
	f.Fuzz(func(t *testing.T, part []byte, page uint16) {
		file := bytes.Clone(b) // with good heads, which no fuzzer would find
		copy(file[min(max(int(page), 2)*4096, len(file)):], part)
		_ = checkPages(bytes.NewReader(file), int64(len(file)))
	})
}
