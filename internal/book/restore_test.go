package book

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
)

// saved is a shelf with a backup of it, keys included, whose data and keys are
// gone.
func (s *shelf) saved() (backup string) {
	s.t.Helper()
	b, stop := s.open()
	s.fill(b, 0, 100)
	stopBook(s.t, b, stop)
	var archive bytes.Buffer
	_, err := BackupOffline(context.Background(), s.cfg, &archive, true, nil)
	s.must(err)
	backup = filepath.Join(s.t.TempDir(), "backup")
	_, err = SaveBackup(&archive, backup)
	s.must(err)
	s.must(errors.Join(os.RemoveAll(s.cfg.Dir), os.RemoveAll(s.cfg.KeyDir)))
	return backup
}

// TestInterruptedRestore stops a restore at each file: what is there is neither
// served nor continued in a new log, both say what to do, and doing it gives the
// whole.
func TestInterruptedRestore(t *testing.T) {
	s := newShelf(t)
	backup := s.saved()
	info, err := readBackupInfo(backup)
	s.must(err)
	kept := mustRead(t, filepath.Join(backup, "checkpoint"))
	for _, f := range info.Files {
		name := filepath.Join(backup, filepath.FromSlash(f.Name))
		away := name + ".away"
		s.must(os.Rename(name, away))
		if _, err := Restore(s.cfg, backup); !errors.Is(err, fs.ErrNotExist) {
			t.Fatalf("without %s: %v", f.Name, err)
		}
		var restored *RestoredError
		if _, err := Open(t.Context(), s.cfg); !errors.As(err, &restored) || !strings.Contains(err.Error(), "interrupted") {
			t.Fatalf("without %s it is served: %v", f.Name, err)
		}
		if _, err := Renew(t.Context(), s.cfg, RenewOptions{Reason: "restored", Continues: kept}); !errors.As(err, &restored) || !restored.Partial {
			t.Fatalf("without %s a new log begins: %v", f.Name, err)
		}
		s.must(os.Rename(away, name))
	}
	// Another backup does not take the place of the one that was begun.
	other := newShelf(t)
	var restored *RestoredError
	if _, err := Restore(s.cfg, other.saved()); !errors.As(err, &restored) {
		t.Errorf("another backup: %v", err)
	}
	r, err := Restore(s.cfg, backup)
	s.must(err)
	if !r.Keys {
		t.Error("the keys are not restored")
	}
	s.verify(s.vkey)
	if _, err := Open(t.Context(), s.cfg); !errors.As(err, &restored) || restored.Partial {
		t.Errorf("restored: %v", err)
	}
	if _, err := Restore(s.cfg, backup); err == nil || !strings.Contains(err.Error(), "is not empty") {
		t.Errorf("restored twice: %v", err)
	}
}

// TestRestoreKeepsKeys: keys that are there stay alone, and it is said.
func TestRestoreKeepsKeys(t *testing.T) {
	s := newShelf(t)
	backup := s.saved()
	s.must(os.MkdirAll(s.cfg.KeyDir, 0o700))
	own := filepath.Join(s.cfg.KeyDir, "epoch-0000000009.key")
	s.must(os.WriteFile(own, []byte("mine"), 0o600))
	r, err := Restore(s.cfg, backup)
	s.must(err)
	names, err := os.ReadDir(s.cfg.KeyDir)
	s.must(err)
	if r.Keys || len(names) != 1 || string(mustRead(t, own)) != "mine" {
		t.Errorf("keys restored: %t, there are %v", r.Keys, names)
	}
}

// TestCopiedBackup: a backup that was copied to the data folder by hand has its
// list with it, so that its log does not go on as if nothing had happened.
func TestCopiedBackup(t *testing.T) {
	s := newShelf(t)
	backup := s.saved()
	_, err := Restore(s.cfg, backup) // for the keys
	s.must(err)
	s.must(os.RemoveAll(s.cfg.Dir))
	s.must(os.CopyFS(s.cfg.Dir, os.DirFS(backup)))
	s.private()
	var restored *RestoredError
	if _, err := Open(t.Context(), s.cfg); !errors.As(err, &restored) || restored.Partial {
		t.Fatalf("a copied backup is served: %v", err)
	}
	s.verify(s.vkey)
	before := s.records()
	r, err := Renew(t.Context(), s.cfg, RenewOptions{Reason: "restored", Continues: mustRead(t, filepath.Join(backup, "checkpoint"))})
	s.must(err)
	if _, err := os.Stat(filepath.Join(s.cfg.Dir, r.Folder(), backupInfoName)); err != nil {
		t.Errorf("the list is not kept with the old log: %v", err)
	}
	s.checkRenewed(r, before)
}

// private gives the data the modes that it must have.
func (s *shelf) private() {
	s.t.Helper()
	s.must(filepath.WalkDir(s.cfg.Dir, func(name string, e fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case e.IsDir():
			return os.Chmod(name, 0o700)
		}
		return os.Chmod(name, 0o600)
	}))
}

// TestRestoreForAnother: what root restores into another's folder, a mount point
// as it may be, is that other's.
func TestRestoreForAnother(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Fatal("this test gives files away, which needs root")
	}
	const uid, gid = 12345, 54321
	s := newShelf(t)
	backup := s.saved()
	s.must(errors.Join(os.MkdirAll(filepath.Join(s.cfg.Dir, lostFound), 0o700), os.Chown(s.cfg.Dir, uid, gid)))
	r, err := Restore(s.cfg, backup)
	s.must(err)
	seen := 0
	for _, root := range []string{s.cfg.Dir, s.cfg.KeyDir} {
		s.must(filepath.WalkDir(root, func(name string, e fs.DirEntry, err error) error {
			if err != nil || e.Name() == lostFound {
				return err
			}
			seen++
			st, err := os.Lstat(name)
			if err != nil {
				return err
			}
			if sys := st.Sys().(*syscall.Stat_t); sys.Uid != uid || sys.Gid != gid {
				t.Errorf("%s belongs to %d:%d", name, sys.Uid, sys.Gid)
			}
			return nil
		}))
	}
	if seen < len(r.Files)+2 {
		t.Errorf("%d names of %d files", seen, len(r.Files))
	}
}
