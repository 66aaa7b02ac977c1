package keys

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
)

// stores are all implementations; each subtest runs on all of them.
func stores(t *testing.T, test func(t *testing.T, s Store)) {
	t.Run("mem", func(t *testing.T) { test(t, NewMemStore()) })
	t.Run("bolt", func(t *testing.T) {
		s := value[Store](t)(OpenBolt(filepath.Join(t.TempDir(), "keys.db"), false))
		test(t, s)
		must(t, s.Close())
	})
}

func put(bucket, k, v string) func(Tx) error {
	return func(tx Tx) error { return tx.Put(bucket, []byte(k), []byte(v)) }
}

func dump(t *testing.T, s Store, bucket string) (out []string) {
	t.Helper()
	must(t, s.View(func(tx Tx) error {
		return tx.ForEach(bucket, func(k, v []byte) error {
			out = append(out, fmt.Sprintf("%s=%s", k, v))
			return nil
		})
	}))
	return out
}

func TestStore(t *testing.T) {
	boom := errors.New("boom")
	t.Run("rows", func(t *testing.T) {
		stores(t, func(t *testing.T, s Store) {
			must(t, s.View(func(tx Tx) error {
				if got := tx.Get("none", []byte("k")); got != nil {
					t.Errorf("missing bucket gave %q", got)
				}
				return tx.ForEach("none", func(_, _ []byte) error { return boom })
			}))
			must(t, s.Update(func(tx Tx) error {
				for _, k := range []string{"b", "a", "d", "c"} {
					if err := tx.Put("x", []byte(k), []byte("1"+k)); err != nil {
						return err
					}
				}
				if got := tx.Get("x", []byte("d")); string(got) != "1d" {
					t.Errorf("own write reads %q", got)
				}
				must(t, tx.Put("x", []byte("a"), []byte("2a")))
				must(t, tx.Delete("x", []byte("c")))
				must(t, tx.Delete("x", []byte("absent")))
				return tx.Delete("absent", []byte("a"))
			}))
			if got, want := dump(t, s, "x"), []string{"a=2a", "b=1b", "d=1d"}; !slices.Equal(got, want) {
				t.Errorf("got %q, want %q", got, want)
			}
		})
	})
	t.Run("scan", func(t *testing.T) {
		stores(t, func(t *testing.T, s Store) {
			must(t, s.Update(func(tx Tx) error {
				return errors.Join(put("x", "a", "1")(tx), put("x", "ab", "1")(tx), put("x", "b", "1")(tx), put("x", "c", "1")(tx))
			}))
			must(t, s.Update(func(tx Tx) error {
				must(t, tx.Put("x", []byte("aa"), []byte("1")))
				must(t, tx.Delete("x", []byte("b")))
				var got []string
				must(t, tx.Scan("x", []byte("aa"), func(k, _ []byte) error {
					got = append(got, string(k))
					return nil
				}))
				if want := []string{"aa", "ab", "c"}; !slices.Equal(got, want) {
					t.Errorf("got %q, want %q", got, want)
				}
				n := 0
				must(t, tx.ForEach("x", func(_, _ []byte) error { n++; return fmt.Errorf("enough: %w", ErrStop) }))
				if n != 1 {
					t.Errorf("ErrStop stopped after %d rows", n)
				}
				wantErr(t, tx.ForEach("x", func(_, _ []byte) error { return boom }), boom)
				return nil
			}))
		})
	})
	t.Run("atomic", func(t *testing.T) {
		stores(t, func(t *testing.T, s Store) {
			must(t, s.Update(put("x", "a", "1")))
			wantErr(t, s.Update(func(tx Tx) error {
				must(t, tx.Put("x", []byte("a"), []byte("2")))
				must(t, tx.Put("y", []byte("a"), []byte("2")))
				return boom
			}), boom)
			if got := append(dump(t, s, "x"), dump(t, s, "y")...); !slices.Equal(got, []string{"a=1"}) {
				t.Errorf("after a failed update: %q", got)
			}
			must(t, s.Update(put("x", "b", "1"))) // a failed callback is not a failed store
		})
	})
	t.Run("refusals", func(t *testing.T) {
		stores(t, func(t *testing.T, s Store) {
			must(t, s.Update(func(tx Tx) error {
				wantErr(t, tx.Put("", []byte("k"), []byte("v")), ErrEmpty)
				wantErr(t, tx.Put("x", nil, []byte("v")), ErrEmpty)
				wantErr(t, tx.Put("x", []byte("k"), nil), ErrEmpty)
				return nil
			}))
			must(t, s.View(func(tx Tx) error {
				wantErr(t, tx.Put("x", []byte("k"), []byte("v")), ErrReadOnly)
				wantErr(t, tx.Delete("x", []byte("k")), ErrReadOnly)
				return nil
			}))
			must(t, s.Close())
			wantErr(t, s.View(func(Tx) error { return nil }), ErrClosed)
			wantErr(t, s.Update(func(Tx) error { return nil }), ErrClosed)
		})
	})
	t.Run("own copies", func(t *testing.T) {
		stores(t, func(t *testing.T, s Store) {
			v := []byte("before")
			must(t, s.Update(func(tx Tx) error {
				defer copy(v, "after!")
				return tx.Put("x", []byte("k"), v)
			}))
			if got := dump(t, s, "x"); !slices.Equal(got, []string{"k=before"}) {
				t.Errorf("got %q", got)
			}
		})
	})
	t.Run("concurrent", func(t *testing.T) {
		stores(t, func(t *testing.T, s Store) {
			var wg sync.WaitGroup
			for i := range 4 {
				wg.Go(func() {
					for j := range 8 {
						if err := s.Update(func(tx Tx) error {
							n := append(bytes.Clone(tx.Get("x", []byte("n"))), '.')
							return tx.Put("x", []byte("n"), n)
						}); err != nil {
							t.Error(i, j, err)
						}
						if err := s.View(func(tx Tx) error { tx.Get("x", []byte("n")); return nil }); err != nil {
							t.Error(i, j, err)
						}
					}
				})
			}
			wg.Wait()
			if got := dump(t, s, "x"); !slices.Equal(got, []string{"n=" + strings.Repeat(".", 32)}) {
				t.Errorf("got %q", got)
			}
		})
	})
}

func TestBoltReopen(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.db")
	_, err := OpenBolt(path, true)
	wantErr(t, err, os.ErrNotExist)
	s := value[Store](t)(OpenBolt(path, false))
	must(t, s.Update(put("x", "a", "1")))
	fi := value[os.FileInfo](t)(os.Stat(path))
	if fi.Mode().Perm() != 0o600 {
		t.Errorf("mode %v", fi.Mode())
	}
	for _, readOnly := range []bool{false, true} {
		_, err := OpenBolt(path, readOnly)
		wantErr(t, err, ErrLocked)
	}
	must(t, s.Close())

	r1 := value[Store](t)(OpenBolt(path, true))
	r2 := value[Store](t)(OpenBolt(path, true)) // readers share
	wantErr(t, r1.Update(put("x", "a", "2")), ErrReadOnly)
	if got := dump(t, r2, "x"); !slices.Equal(got, []string{"a=1"}) {
		t.Errorf("got %q", got)
	}
	must(t, r1.Close())
	must(t, r2.Close())
}

func TestBoltRefusesOpenFiles(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.db")
	must(t, value[Store](t)(OpenBolt(path, false)).Close())
	must(t, os.Chmod(path, 0o640))
	_, err := OpenBolt(path, false)
	if err == nil || !strings.Contains(err.Error(), "chmod 0600 "+path) {
		t.Errorf("group-readable file: %v", err)
	}
	must(t, os.Chmod(path, 0o600))
	link := filepath.Join(filepath.Dir(path), "link.db")
	must(t, os.Symlink(path, link))
	if _, err := OpenBolt(link, false); err == nil || !strings.Contains(err.Error(), "symbolic link") {
		t.Errorf("symbolic link: %v", err)
	}
	must(t, os.WriteFile(path, bytes.Repeat([]byte("x"), 32<<10), 0o600))
	if _, err := OpenBolt(path, false); err == nil {
		t.Error("a file that is no database was opened")
	}
}

func TestMemStoreFaults(t *testing.T) {
	boom := errors.New("boom")
	s := NewMemStore()
	must(t, s.Update(put("x", "a", "1")))
	snap := s.Snapshot()
	for _, apply := range []bool{false, true} {
		var ops []string
		s.Fault = func(op string) (bool, error) { ops = append(ops, op); return apply, boom }
		wantErr(t, s.Update(put("x", "b", "1")), boom)
		wantErr(t, s.View(func(Tx) error { return nil }), boom)
		if !slices.Equal(ops, []string{"update", "view"}) {
			t.Errorf("asked for %q", ops)
		}
		s.Fault = nil
		if got := len(dump(t, s, "x")); (got == 2) != apply {
			t.Errorf("apply %v: %d rows", apply, got)
		}
	}
	if got := dump(t, snap, "x"); !slices.Equal(got, []string{"a=1"}) {
		t.Errorf("snapshot changed: %q", got)
	}
	must(t, s.Close())
	s.Restore(snap)
	if got := dump(t, s, "x"); !slices.Equal(got, []string{"a=1"}) {
		t.Errorf("restored: %q", got)
	}
}

// After a write that failed for an unknown reason nothing more is written
// until the store is opened again.
func TestBoltStaysFailed(t *testing.T) {
	path := filepath.Join(t.TempDir(), "keys.db")
	var file *os.File
	s := value[Store](t)(openBolt(path, false, func(name string, flag int, mode os.FileMode) (_ *os.File, err error) {
		file, err = openPrivate(name, flag, mode)
		return file, err
	}))
	must(t, s.Update(put("x", "a", "1")))
	must(t, file.Close())
	if err := s.Update(put("x", "b", "1")); err == nil || errors.Is(err, ErrStoreFailed) {
		t.Fatalf("write to a closed file: %v", err)
	}
	wantErr(t, s.Update(put("x", "c", "1")), ErrStoreFailed)
	if err := s.Close(); err == nil {
		t.Error("closing the closed file went unnoticed")
	}
	s = value[Store](t)(OpenBolt(path, false))
	must(t, s.Update(put("x", "d", "1")))
	if got := dump(t, s, "x"); !slices.Equal(got, []string{"a=1", "d=1"}) {
		t.Errorf("got %q", got)
	}
	must(t, s.Close())
}
