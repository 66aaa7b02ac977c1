package book

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// releaseDir holds a book as each format version left it, closed and killed,
// with its keys and what is in it. GATEBOOK_RELEASE=vN writes a new one; what
// is there is never written again.
const releaseDir = "testdata/data"

// writeRelease makes one specimen.
func writeRelease(t *testing.T, dir string, closed bool) {
	s := &shelf{t: t, cfg: Config{Dir: filepath.Join(dir, "data"), KeyDir: filepath.Join(dir, "keys"), Prefix: "log.example", Node: "n1"}}
	s.must(os.MkdirAll(s.cfg.Dir, 0o700))
	_, err := Create(t.Context(), s.cfg)
	s.must(err)
	c := s.cfg
	c.FoldSlots = 16
	s.must(c.setDefaults())
	ks, err := keys.OpenBolt(c.statePath(), false)
	s.must(err)
	w, err := keys.OpenFileWrapper(c.KeyDir)
	s.must(err)
	b, err := open(t.Context(), c, &place{files: store.Dir(c.Dir), state: ks, wrapper: w, tune: small(64)})
	s.must(err)
	stop := background(b)
	s.fill(b, 0, 60)
	s.must(b.ledger.SealNow(t.Context()))
	rec := b.Recorder(testRules(t), testSnap)
	for i := range 12 {
		s.must(rec.Commit(t.Context(), record.Ref{}, exchange(b, i, ""), record.Durable))
	}
	_, err = rec.Open(t.Context(), exchange(b, 99, "left-open"), record.Durable)
	s.must(err)
	s.must(b.ledger.SignCheckpoint(t.Context()))
	if closed {
		stopBook(t, b, stop)
	} else {
		s.must(errors.Join(stop(), ks.Close())) // nothing else is let go of, as in a kill
	}
	s.must(os.Remove(filepath.Join(c.Dir, "lock")))
	rd, err := OpenReader(t.Context(), s.cfg)
	s.must(err)
	defer rd.Close()
	s.must(os.WriteFile(filepath.Join(dir, "content.txt"), contentOf(t, rd), 0o644))
	s.must(os.Remove(filepath.Join(c.Dir, "lock")))
}

// contentOf is every record as it is kept.
func contentOf(t *testing.T, rd *Reader) []byte {
	var out bytes.Buffer
	for _, k := range all(t, rd) {
		fmt.Fprintf(&out, "%d %s %s\n", k.index, k.frame, k.personal)
	}
	return out.Bytes()
}

// TestReleaseData opens, verifies and goes on with the books of every format
// version.
func TestReleaseData(t *testing.T) {
	if name := os.Getenv("GATEBOOK_RELEASE"); name != "" {
		for kind, closed := range map[string]bool{"closed": true, "killed": false} {
			dir := filepath.Join(releaseDir, name, kind)
			if err := os.MkdirAll(filepath.Dir(dir), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(dir, 0o755); err != nil {
				t.Fatal(err)
			}
			writeRelease(t, dir, closed)
		}
	}
	books, err := filepath.Glob(releaseDir + "/v*/*")
	if err != nil || len(books) < 2 {
		t.Fatalf("%v %v", books, err)
	}
	for _, from := range books {
		t.Run(strings.TrimPrefix(from, releaseDir+"/"), func(t *testing.T) {
			s := takeOut(t, from)
			key, err := ledger.SelfKey(store.Dir(s.cfg.Dir))
			s.must(err)
			s.verify(key)
			rd, err := OpenReader(t.Context(), s.cfg)
			s.must(err)
			want := mustRead(t, filepath.Join(from, "content.txt"))
			if got := contentOf(t, rd); !bytes.Equal(got, want) {
				t.Errorf("reads\n%.500s\nwant\n%.500s", got, want)
			}
			s.must(rd.Close())
			b, stop := s.open()
			s.fill(b, 1000, 5)
			s.must(b.ledger.SealNow(t.Context()))
			stopBook(t, b, stop)
			s.verify(key)
			after, err := OpenReader(t.Context(), s.cfg)
			s.must(err)
			defer after.Close()
			if got := contentOf(t, after); !bytes.HasPrefix(got, want) || bytes.Count(got, []byte(`"kind":"request"`)) <= bytes.Count(want, []byte(`"kind":"request"`)) {
				t.Error("going on changed what was there")
			}
		})
	}
}

// takeOut copies a specimen, with the modes that git does not keep.
func takeOut(t *testing.T, from string) *shelf {
	t.Helper()
	to := t.TempDir()
	err := filepath.WalkDir(from, func(name string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, name)
		if err != nil || e.IsDir() {
			return errors.Join(err, os.MkdirAll(filepath.Join(to, rel), 0o700))
		}
		b, err := os.ReadFile(name)
		return errors.Join(err, os.WriteFile(filepath.Join(to, rel), b, 0o600))
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{"data/manifests", "data/tile", "data/segments", "data/wal", "data/state"} { // git keeps no empty ones
		if err := os.MkdirAll(filepath.Join(to, dir), 0o700); err != nil {
			t.Fatal(err)
		}
	}
	return &shelf{t: t, cfg: Config{Dir: filepath.Join(to, "data"), KeyDir: filepath.Join(to, "keys"), Prefix: "log.example", Node: "n1"}}
}

// TestNewerVersions: what a later release wrote is refused by its version, not
// misread: there is no silent downgrade.
func TestNewerVersions(t *testing.T) {
	books, err := filepath.Glob(releaseDir + "/v1/closed")
	if err != nil || len(books) != 1 {
		t.Fatalf("%v %v", books, err)
	}
	for _, pattern := range []string{"wal/*.wal", "segments/*.seg", "manifests/*"} {
		t.Run(pattern, func(t *testing.T) {
			s := takeOut(t, books[0])
			names, err := filepath.Glob(filepath.Join(s.cfg.Dir, pattern))
			if err != nil || len(names) == 0 {
				t.Fatalf("%v %v", names, err)
			}
			for _, name := range names {
				b := mustRead(t, name)
				b[0]++
				s.must(os.WriteFile(name, b, 0o600))
			}
			b, err := Open(context.Background(), s.cfg)
			if err == nil {
				rep, verr := b.Verify("", nil)
				s.must(errors.Join(verr, b.Close(context.Background())))
				if rep.ExitCode() != ledger.ExitDamaged {
					t.Fatalf("opened and verified %+v", rep)
				}
				err = rep.Findings[0]
			}
			if !strings.Contains(err.Error(), "version 2") {
				t.Errorf("it says %v", err)
			}
		})
	}
}
