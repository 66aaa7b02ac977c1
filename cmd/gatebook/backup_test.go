package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestBackupRestore is what an operator does: a backup while the gate serves,
// the loss of the machine's data, a restore, and a new log that says so.
func TestBackupRestore(t *testing.T) {
	up := newUpstream(t)
	s := newSite(t, up.URL)
	s.start()
	for range 20 {
		s.get("/before")
	}
	backup := filepath.Join(t.TempDir(), "backup")
	if out := s.command(0, "backup", backup, "--with-keys"); !strings.Contains(out, "backed up") {
		t.Errorf("it says %q", out)
	}
	s.run(0, "verify", backup, "--key-file", filepath.Join(s.dir, "log.vkey"), "--keys", filepath.Join(backup, "keys"))
	if n := len(s.search(`event.name == "backup"`)); n != 1 {
		t.Errorf("%d records of the backup", n)
	}
	if s.command(1, "backup", backup); !strings.Contains(s.said, "not empty") {
		t.Errorf("over another backup: %q", s.said)
	}
	for range 10 {
		s.get("/after")
	}
	s.stop()
	checkpoint := filepath.Join(t.TempDir(), "checkpoint")
	if err := os.WriteFile(checkpoint, s.read("data/checkpoint"), 0o600); err != nil {
		t.Fatal(err)
	}

	for _, dir := range []string{"data", "keys"} {
		if err := os.RemoveAll(filepath.Join(s.dir, dir)); err != nil {
			t.Fatal(err)
		}
	}
	if out := s.command(0, "restore", backup); !strings.Contains(out, "book new") {
		t.Errorf("it says %q", out)
	}
	if s.command(11, "serve"); !strings.Contains(s.said, "was restored from a backup") || !strings.Contains(s.said, "book new") {
		t.Errorf("serve says %q", s.said)
	}
	if s.command(11, "book", "new", "--reason", "restored"); !strings.Contains(s.said, "--continues") {
		t.Errorf("without a checkpoint: %q", s.said)
	}
	s.command(2, "book", "new", "--reason", "whim")
	if out := s.command(0, "book", "new", "--reason", "restored", "--continues", checkpoint); !strings.Contains(out, "leaves are lost") {
		t.Errorf("it says %q", out)
	}
	s.start()
	s.get("/again")
	s.stop()
	s.command(0, "verify")
	news := s.search(`event.name == "new_log"`)
	if len(news) != 1 {
		t.Fatalf("%d records of the new log", len(news))
	}
	olds, err := filepath.Glob(filepath.Join(s.dir, "data", "before", "*"))
	if err != nil || len(olds) != 1 {
		t.Fatalf("%v %v", olds, err)
	}
	oldKey := filepath.Join(s.dir, "log-"+filepath.Base(olds[0])+".vkey")
	s.run(0, "verify", olds[0], "--key-file", oldKey, "--keys", filepath.Join(s.dir, "keys"))
}
