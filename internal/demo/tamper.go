package demo

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// span is a range of bytes of a file, the last one included.
type span struct{ first, last int }

// changed is the smallest range outside of which two states of a file are the
// same, where the space behind the end counts as zeros: a WAL file grows by
// zeros that are written over later. In an append-only file it is what was
// appended in between. The last of an empty range is before its first.
func changed(before, after []byte) span {
	if len(before) > len(after) {
		before, after = after, before
	}
	at := func(i int) byte {
		if i < len(before) {
			return before[i]
		}
		return 0
	}
	s := span{0, len(after) - 1}
	for s.first < len(after) && at(s.first) == after[s.first] {
		s.first++
	}
	for s.last >= s.first && at(s.last) == after[s.last] {
		s.last--
	}
	return s
}

// wal is the content of the WAL files by their names, relative to the data
// folder. Only one of them grows; a spare one stands ready to follow it.
type wal map[string][]byte

// readWAL reads the WAL of a data folder as it is now.
func readWAL(data string) (wal, error) {
	names, err := os.ReadDir(filepath.Join(data, "wal"))
	if err != nil {
		return nil, err
	}
	w := wal{}
	for _, e := range names {
		name := filepath.Join("wal", e.Name())
		if w[name], err = os.ReadFile(filepath.Join(data, name)); err != nil {
			return nil, err
		}
	}
	return w, nil
}

// place is where something stands in the WAL.
type place struct {
	file  string
	bytes span
}

// grown is where records were added from one state to another. The spare file
// may be made in between; it comes later in the order of names.
func grown(before, after wal) (place, error) {
	for _, name := range slices.Sorted(maps.Keys(after)) {
		if s := changed(before[name], after[name]); s.first <= s.last {
			return place{name, s}, nil
		}
	}
	return place{}, errors.New("nothing was added to the WAL")
}

// copyData copies the evidence: the files below data. The admin socket is no
// file and stays.
func (d folder) copyData(name string) error {
	from, to := d.path("data"), d.path(name)
	return filepath.WalkDir(from, func(path string, e fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(from, path)
		if err != nil {
			return err
		}
		switch {
		case e.IsDir():
			return os.Mkdir(filepath.Join(to, rel), 0o700)
		case e.Type().IsRegular():
			return copyFile(path, filepath.Join(to, rel))
		}
		return nil
	})
}

func copyFile(from, to string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, in)
	return errors.Join(err, out.Close())
}

// The copies, in the folder.
const (
	copyIntact    = "copies/intact"
	copyTampered  = "copies/tampered"
	copyTruncated = "copies/truncated"
)

// verifyCopy verifies a copy of the data folder as anybody would who has the
// key files and the public key.
func (s *story) verifyCopy(ctx context.Context, want int, name string) (string, error) {
	return s.gatebook(ctx, want, "verify", "./"+name, "--keys", "./keys", "--key-file", "./"+vkeyFile)
}

func (s *story) copies(ctx context.Context) error {
	s.print.heading("Copies", "The evidence is copied, and the copy verified. Then two copies are spoiled.")
	for _, name := range []string{copyIntact, copyTampered, copyTruncated} {
		if err := s.dir.copyData(name); err != nil {
			return err
		}
	}
	out, err := s.verifyCopy(ctx, 0, copyIntact)
	if err != nil {
		return err
	}
	s.print.output(lastLines(out, 1))
	return nil
}

func (s *story) tampered(ctx context.Context) error {
	at := (s.denied.place.bytes.first + s.denied.place.bytes.last) / 2
	s.print.heading("Tampered", fmt.Sprintf("Somebody wants the denied write away and flips one byte of it: %s, byte %d.", s.denied.place.file, at))
	if err := flip(filepath.Join(s.dir.path(copyTampered), s.denied.place.file), int64(at)); err != nil {
		return err
	}
	out, err := s.verifyCopy(ctx, 10, copyTampered)
	if err != nil {
		return err
	}
	return s.found(out, 10, "record "+s.denied.index+" ")
}

// flip inverts one byte of a file.
func flip(name string, at int64) error {
	f, err := os.OpenFile(name, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	var b [1]byte
	_, err = f.ReadAt(b[:], at)
	if err == nil {
		b[0] ^= 0xff
		_, err = f.WriteAt(b[:], at)
	}
	return errors.Join(err, f.Close())
}

func (s *story) truncated(ctx context.Context) error {
	data := s.dir.path(copyTruncated)
	now, err := readWAL(data)
	if err != nil {
		return err
	}
	since, err := grown(s.beforeBurst, now)
	if err != nil {
		return err
	}
	s.print.heading("Truncated", fmt.Sprintf("Somebody wants everything away from the burst on and cuts the tail off: %s ends at byte %d.", since.file, since.bytes.first))
	if err := os.Truncate(filepath.Join(data, since.file), int64(since.bytes.first)); err != nil {
		return err
	}
	out, err := s.verifyCopy(ctx, 11, copyTruncated)
	if err != nil {
		return err
	}
	return s.found(out, 11, "truncated tail")
}

// found shows what a verification found, and its verdict, and demands that the
// first finding says what.
func (s *story) found(out string, code int, what string) error {
	var lines []string
	for line := range strings.Lines(out) {
		if strings.HasPrefix(line, "FOUND") {
			lines = append(lines, line)
		}
	}
	if len(lines) == 0 || !strings.Contains(lines[0], what) {
		return fmt.Errorf("verify does not name %q:\n%s", what, out)
	}
	s.print.output(strings.Join(lines, "") + lastLines(out, 1))
	s.print.linef("  exit code %d", code)
	return nil
}
