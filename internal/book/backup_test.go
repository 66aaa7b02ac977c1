package book

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// shelf is a book in real folders.
type shelf struct {
	t    *testing.T
	cfg  Config
	vkey string
}

func newShelf(t *testing.T) *shelf {
	t.Helper()
	dir := t.TempDir()
	s := &shelf{t: t, cfg: Config{Dir: filepath.Join(dir, "data"), KeyDir: filepath.Join(dir, "keys"), Prefix: "log.example", Node: "n1", CommitTimeout: time.Minute}} // a busy disk is not what is tried
	var err error
	if s.vkey, err = Create(t.Context(), s.cfg); err != nil {
		t.Fatal(err)
	}
	return s
}

func (s *shelf) open() (*Book, func() error) {
	s.t.Helper()
	b, err := Open(s.t.Context(), s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	return b, background(b)
}

// fill records n exchanges from number first on.
func (s *shelf) fill(b *Book, first, n int) {
	s.t.Helper()
	rec := b.Recorder(testRules(s.t), testSnap)
	for i := range n {
		if err := keepAll(rec, exchange(b, first+i, fmt.Sprintf("person-%d", i%7)), record.Durable); err != nil {
			s.t.Fatal(err)
		}
	}
}

func (s *shelf) at(dir string) *shelf {
	c := s.cfg
	c.Dir = dir
	return &shelf{s.t, c, s.vkey}
}

// verify demands a sound book and returns the report.
func (s *shelf) verify(key string) *ledger.Report {
	s.t.Helper()
	rep, err := Verify(s.t.Context(), VerifyOptions{Dir: s.cfg.Dir, KeyDir: s.cfg.KeyDir, Key: key})
	if err != nil {
		s.t.Fatal(err)
	}
	if rep.ExitCode() != 0 {
		s.t.Fatalf("verify gives %d: %+v %v", rep.ExitCode(), rep, rep.Findings)
	}
	return rep
}

func (s *shelf) records() []kept {
	s.t.Helper()
	rd, err := OpenReader(s.t.Context(), s.cfg)
	if err != nil {
		s.t.Fatal(err)
	}
	defer rd.Close()
	return all(s.t, rd)
}

func stopBook(t *testing.T, b *Book, stop func() error) {
	t.Helper()
	if err := errors.Join(stop(), b.Close(context.Background())); err != nil {
		t.Fatal(err)
	}
}

// TestBackupWhileAppending takes backups while records come and segments are
// sealed: each holds everything that was acknowledged before it was asked for,
// verifies, and can be read with its personal parts.
func TestBackupWhileAppending(t *testing.T) {
	s := newShelf(t)
	b, stop := s.open()
	s.fill(b, 0, 200)
	for round := range 4 {
		if err := b.ledger.SealNow(t.Context()); err != nil {
			t.Fatal(err)
		}
		s.fill(b, 1000*round, 50)
		had := b.ledger.Size()
		var archive bytes.Buffer
		done := make(chan error, 1)
		go func() {
			_, err := b.Backup(&archive, false, nil)
			done <- err
		}()
		s.fill(b, 1000*round+500, 50)
		if err := errors.Join(b.ledger.SealNow(t.Context()), <-done); err != nil {
			t.Fatal(err)
		}
		to := s.at(filepath.Join(t.TempDir(), "backup"))
		info, err := SaveBackup(&archive, to.cfg.Dir)
		if err != nil {
			t.Fatal(err)
		}
		if rep := to.verify(s.vkey); rep.Leaves < had || rep.Leaves != info.Leaves || info.Signed > info.Leaves {
			t.Fatalf("round %d: %d leaves when asked, %d in the backup: %+v", round, had, rep.Leaves, info)
		}
		if got := ofKind(to.records(), record.KindRequest); len(got) < 250+100*round || !strings.Contains(got[0].personal, "person-") {
			t.Fatalf("round %d: %d requests", round, len(got))
		}
	}
	stopBook(t, b, stop)
	s.verify(s.vkey)
}

// TestRestore goes the whole way: backup, more records, loss, restore, refusal,
// a new log that says what is lost, and both logs verified.
func TestRestore(t *testing.T) {
	s := newShelf(t)
	b, stop := s.open()
	s.fill(b, 0, 100)
	stopBook(t, b, stop)
	before := s.records()
	var archive bytes.Buffer
	if _, err := BackupOffline(t.Context(), s.cfg, &archive, true, nil); err != nil {
		t.Fatal(err)
	}
	backup := filepath.Join(t.TempDir(), "backup")
	if _, err := SaveBackup(&archive, backup); err != nil {
		t.Fatal(err)
	}
	b, stop = s.open()
	s.fill(b, 100, 40)
	stopBook(t, b, stop)
	kept := mustRead(t, filepath.Join(s.cfg.Dir, "checkpoint"))
	size, err := ledger.CheckpointSize(kept)
	if err != nil {
		t.Fatal(err)
	}

	// Everything is lost, the keys too.
	for _, dir := range []string{s.cfg.Dir, s.cfg.KeyDir} {
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
	}
	info, err := Restore(s.cfg, backup)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Restore(s.cfg, backup); err == nil {
		t.Error("restored over a book")
	}
	s.verify(s.vkey)
	if got := s.records(); len(got) != len(before) {
		t.Errorf("%d records restored of %d", len(got), len(before))
	}
	var restored *RestoredError
	if _, err := Open(t.Context(), s.cfg); !errors.As(err, &restored) {
		t.Fatalf("a restored log goes on: %v", err)
	}
	if _, err := Renew(t.Context(), s.cfg, RenewOptions{Reason: "restored"}); !errors.As(err, &restored) {
		t.Fatalf("without a checkpoint: %v", err)
	}
	if _, err := Renew(t.Context(), s.cfg, RenewOptions{Reason: "because"}); err == nil {
		t.Fatal("took any reason")
	}
	r, err := Renew(t.Context(), s.cfg, RenewOptions{Reason: "restored", Continues: kept})
	if err != nil {
		t.Fatal(err)
	}
	if r.Known != size || r.Lost() != size-info.Leaves || r.Lost() == 0 || r.New == r.Origin {
		t.Errorf("%+v, lost %d", r, r.Lost())
	}
	s.checkRenewed(r, before)
}

// checkRenewed demands that the new log begins with what it continues, that it
// can be served, and that the old log can still be read and verified.
func (s *shelf) checkRenewed(r *Renewal, before []kept) {
	s.t.Helper()
	b, stop := s.open()
	s.fill(b, 500, 20)
	key := b.Key()
	stopBook(s.t, b, stop)
	s.verify(key)
	var said []kept
	for _, k := range s.records() {
		if k.rec.Event.Name == eventNewLog {
			said = append(said, k)
		}
	}
	e := record.Event{Name: eventNewLog, Target: fmt.Sprintf("%s@%d", r.Origin, r.Known), Before: r.Root, Cause: r.Reason, Count: int64(r.Lost()), Exact: true}
	if len(said) != 1 || said[0].rec.Event != e || said[0].index > 4 {
		s.t.Errorf("the new log says %+v, want %+v", said, e)
	}
	old := s.at(filepath.Join(s.cfg.Dir, filepath.FromSlash(r.Folder())))
	old.verify(s.vkey)
	got := old.records()
	if !slices.EqualFunc(got[:len(before)], before, func(a, b kept) bool { return a.frame == b.frame && a.personal == b.personal }) {
		s.t.Errorf("the old log holds %d records, not the %d from before", len(got), len(before))
	}
}

// TestRenewIsResumed interrupts Renew before and after each of its steps, as
// the folder would be found, and calls it again.
func TestRenewIsResumed(t *testing.T) {
	for _, tc := range []struct {
		name string
		mess func(s *shelf, r *Renewal)
	}{
		{"written down", func(s *shelf, r *Renewal) {}},
		{"half moved", func(s *shelf, r *Renewal) {
			to := filepath.Join(s.cfg.Dir, r.Folder())
			s.must(os.MkdirAll(to, 0o700))
			s.must(os.Rename(filepath.Join(s.cfg.Dir, "ledger"), filepath.Join(to, "ledger")))
			s.must(os.Rename(filepath.Join(s.cfg.Dir, "wal"), filepath.Join(to, "wal")))
		}},
		{"moved", func(s *shelf, r *Renewal) { s.must(leaveBehind(store.Dir(s.cfg.Dir), r.Folder())) }},
		{"half created", func(s *shelf, r *Renewal) {
			s.must(s.cfg.replaceLog(t.Context(), store.Dir(s.cfg.Dir), r))
			s.must(os.Remove(filepath.Join(s.cfg.Dir, "ledger")))
		}},
		{"created", func(s *shelf, r *Renewal) { s.must(s.cfg.replaceLog(t.Context(), store.Dir(s.cfg.Dir), r)) }},
		{"recorded", func(s *shelf, r *Renewal) {
			s.must(s.cfg.replaceLog(t.Context(), store.Dir(s.cfg.Dir), r))
			s.must(s.cfg.noteRenewal(t.Context(), r))
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := newShelf(t)
			b, stop := s.open()
			s.fill(b, 0, 30)
			stopBook(t, b, stop)
			before := s.records()
			c := s.cfg
			s.must(c.setDefaults())
			s.cfg = c
			o := RenewOptions{Reason: "key_exposed"}
			r, err := c.renewal(t.Context(), store.Dir(c.Dir), &o)
			s.must(err)
			tc.mess(s, r)
			if _, err := Open(t.Context(), c); err == nil || !strings.Contains(err.Error(), "again") {
				t.Fatalf("served in the middle: %v", err)
			}
			again, err := Renew(t.Context(), c, o)
			s.must(err)
			s.checkRenewed(again, before)
		})
	}
}

func (s *shelf) must(err error) {
	s.t.Helper()
	if err != nil {
		s.t.Fatal(err)
	}
}

// TestRenewOfDamage: what is damaged stays as evidence, and the new log says
// that it does not know how much is lost.
func TestRenewOfDamage(t *testing.T) {
	s := newShelf(t)
	b, stop := s.open()
	s.fill(b, 0, 30)
	stopBook(t, b, stop)
	check := filepath.Join(s.cfg.Dir, "checkpoint")
	good := mustRead(t, check)
	s.must(os.WriteFile(check, bytes.Replace(good, []byte("\n\n"), []byte("x\n\n"), 1), 0o600))
	if _, err := Renew(t.Context(), s.cfg, RenewOptions{Reason: "damaged", Continues: []byte("nonsense")}); err == nil {
		t.Fatal("took anything for a checkpoint")
	}
	r, err := Renew(t.Context(), s.cfg, RenewOptions{Reason: "damaged", Continues: good})
	s.must(err)
	if r.Damage == "" || r.Known == 0 {
		t.Errorf("%+v", r)
	}
	b, stop = s.open()
	s.fill(b, 0, 3)
	stopBook(t, b, stop)
	if r, err := Renew(t.Context(), (&Config{Dir: filepath.Join(t.TempDir(), "data"), KeyDir: s.cfg.KeyDir, Prefix: "log.example", Node: "n1"}).clone(), RenewOptions{Reason: "lost"}); err != nil || r.New == "" {
		t.Errorf("%+v %v", r, err)
	}
}

func (c *Config) clone() Config { return *c }

// TestContinuesAnotherHistory: a folder that contradicts the checkpoint that
// was kept is not continued.
func TestContinuesAnotherHistory(t *testing.T) {
	s := newShelf(t)
	b, stop := s.open()
	s.fill(b, 0, 10)
	stopBook(t, b, stop)
	var archive bytes.Buffer
	_, err := BackupOffline(t.Context(), s.cfg, &archive, false, nil)
	s.must(err)
	fork := s.at(filepath.Join(t.TempDir(), "fork"))
	_, err = SaveBackup(&archive, fork.cfg.Dir)
	s.must(err)
	s.must(os.Remove(filepath.Join(fork.cfg.Dir, backupInfoName)))
	for i, f := range []*shelf{s, fork} {
		b, stop := f.open() // somebody who does not know of "restored"
		f.fill(b, 100*i, 10)
		stopBook(t, b, stop)
	}
	_, err = Renew(t.Context(), s.cfg, RenewOptions{Reason: "rolled_back", Continues: mustRead(t, filepath.Join(fork.cfg.Dir, "checkpoint"))})
	var damage *ledger.Damage
	if !errors.As(err, &damage) || damage.Kind != ledger.Forked {
		t.Errorf("%v", err)
	}
}

func mustRead(t *testing.T, name string) []byte {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestBadBackups: what is cut, changed, added or hostile is refused.
func TestBadBackups(t *testing.T) {
	s := newShelf(t)
	b, stop := s.open()
	s.fill(b, 0, 20)
	stopBook(t, b, stop)
	var archive bytes.Buffer
	_, err := BackupOffline(t.Context(), s.cfg, &archive, false, nil)
	s.must(err)
	for cut := 0; cut < archive.Len()-1024; cut += 1511 { // the last 1,024 bytes are the archive's own end
		if _, err := SaveBackup(bytes.NewReader(archive.Bytes()[:cut]), filepath.Join(t.TempDir(), "b")); err == nil {
			t.Fatalf("took a backup cut at %d of %d", cut, archive.Len())
		}
	}
	dir := filepath.Join(t.TempDir(), "backup")
	_, err = SaveBackup(bytes.NewReader(archive.Bytes()), dir)
	s.must(err)
	if _, err := SaveBackup(bytes.NewReader(archive.Bytes()), dir); err == nil {
		t.Error("saved over a backup")
	}
	info, err := readBackupInfo(dir)
	s.must(err)
	for _, f := range info.Files {
		name := filepath.Join(dir, f.Name)
		good := mustRead(t, name)
		if len(good) == 0 {
			continue
		}
		bad := bytes.Clone(good)
		bad[len(bad)/2] ^= 1
		s.must(os.WriteFile(name, bad, 0o600))
		c := s.cfg
		c.Dir = filepath.Join(t.TempDir(), "restored")
		if _, err := Restore(c, dir); err == nil || !strings.Contains(err.Error(), "not the file that was backed up") {
			t.Errorf("%s changed: %v", f.Name, err)
		}
		if _, err := Open(t.Context(), c); err == nil {
			t.Errorf("%s changed: the folder is served", f.Name)
		}
		s.must(os.WriteFile(name, good, 0o600))
	}
	for _, name := range []string{"../evil", "/etc/passwd", "wal/../../evil", "segments/a/b", "keys", "wal/", "restored", "state/other", "tile/../x", "tile/1//2"} {
		if backupName(name) == nil {
			t.Errorf("took %q for a file of a backup", name)
		}
	}
}

// TestBackupOfFailingWriter: a backup whose taker goes away leaves the book
// alone.
func TestBackupOfFailingWriter(t *testing.T) {
	s := newShelf(t)
	b, stop := s.open()
	s.fill(b, 0, 50)
	for limit := int64(0); limit < 40_000; limit += 3000 {
		if _, err := b.Backup(&limitedWriter{limit}, false, nil); err == nil {
			t.Errorf("no error after %d bytes", limit)
		}
	}
	s.fill(b, 50, 10)
	stopBook(t, b, stop)
	if left, err := filepath.Glob(filepath.Join(s.cfg.Dir, "state", "*.tmp")); err != nil || len(left) > 0 {
		t.Errorf("%v %v", left, err)
	}
	s.verify(s.vkey)
}

type limitedWriter struct{ left int64 }

func (w *limitedWriter) Write(p []byte) (int, error) {
	if w.left -= int64(len(p)); w.left < 0 {
		return 0, io.ErrShortWrite
	}
	return len(p), nil
}
