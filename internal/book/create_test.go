package book

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/store"
)

// TestInterruptedCreate stops the making of a book at each write: it can be made
// after all, and nobody has signed under its name before.
func TestInterruptedCreate(t *testing.T) {
	full := errors.New("stop")
	for n := 1; ; n++ {
		root, err := keys.CreateFileWrapper(filepath.Join(t.TempDir(), "keys"))
		if err != nil {
			t.Fatal(err)
		}
		r := &room{t: t, cfg: testConfig(), files: store.NewMem(nil), state: keys.NewMemStore(), root: root}
		op := 0
		r.files.SetFault(func(store.Op) (bool, error) {
			if op++; op >= n {
				return false, errors.Join(full, syscall.ENOSPC)
			}
			return true, nil
		})
		first, err := create(context.Background(), &r.cfg, r.place())
		if err == nil {
			if n < 10 {
				t.Errorf("only %d operations", n)
			}
			break
		}
		r.files.SetFault(nil)
		r.files, r.state = r.files.Kill(), r.state.Snapshot()
		// Somebody tries to serve it, which is right if only the last sync failed.
		b, err := r.tryOpen()
		if err == nil {
			if _, readErr := store.ReadFile(r.files, "ledger", 4096); readErr != nil {
				t.Fatalf("operation %d failed and it is served: %v", n, readErr)
			}
			if err := b.Close(context.Background()); err != nil {
				t.Fatal(err)
			}
			continue
		}
		r.state = r.state.Snapshot()
		second, err := create(context.Background(), &r.cfg, r.place())
		if err != nil {
			t.Fatalf("operation %d failed; then %v", n, err)
		}
		if r.vkey = second; second == first {
			t.Errorf("operation %d: the key is used again", n)
		}
		b = r.open()
		if err := b.Close(context.Background()); err != nil {
			t.Fatal(err)
		}
		r.mustVerify(nil)
	}
}

// TestCreateLeavesAlone: a folder that holds a book, or what is left of one, is
// not taken for one whose making was interrupted.
func TestCreateLeavesAlone(t *testing.T) {
	for name, change := range map[string]func(s *shelf){
		"whole":                    func(s *shelf) {},
		"without its identity":     func(s *shelf) { s.must(os.Remove(filepath.Join(s.cfg.Dir, "ledger"))) },
		"without its log":          func(s *shelf) { s.leave("state") },
		"without its log, locked":  func(s *shelf) { s.leave("state", "lock") },
		"without segments and all": func(s *shelf) { s.leave("state", "checkpoint", "log.vkey") },
	} {
		t.Run(name, func(t *testing.T) {
			s := newShelf(t)
			b, stop := s.open()
			s.fill(b, 0, 20)
			stopBook(t, b, stop)
			change(s)
			had := names(t, s.cfg.Dir)
			if _, err := Create(t.Context(), s.cfg); err == nil || !strings.Contains(err.Error(), "left alone") {
				t.Errorf("made a book: %v", err)
			}
			if now := names(t, s.cfg.Dir); now != had {
				t.Errorf("there was %s, now there is %s", had, now)
			}
		})
	}
	// And the same of one that was never served.
	s := newShelf(t)
	if _, err := Create(t.Context(), s.cfg); err == nil || !strings.Contains(err.Error(), "left alone") {
		t.Errorf("made a book twice: %v", err)
	}
	// One that somebody has open.
	b, stop := s.open()
	if _, err := Create(t.Context(), s.cfg); !errors.Is(err, store.ErrLocked) {
		t.Errorf("under a server: %v", err)
	}
	stopBook(t, b, stop)
}

// leave removes all from the data folder but some names.
func (s *shelf) leave(stay ...string) {
	s.t.Helper()
	entries, err := os.ReadDir(s.cfg.Dir)
	s.must(err)
	for _, e := range entries {
		if !strings.Contains(" "+strings.Join(stay, " ")+" ", " "+e.Name()+" ") {
			s.must(os.RemoveAll(filepath.Join(s.cfg.Dir, e.Name())))
		}
	}
}

// names lists a folder, but for the lock file.
func names(t *testing.T, dir string) string {
	t.Helper()
	var out []string
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if e.Name() != "lock" {
			out = append(out, e.Name())
		}
	}
	return strings.Join(out, " ")
}
