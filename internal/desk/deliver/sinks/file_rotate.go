package sinks

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/gatebook/gatebook/internal/pace"
	"github.com/klauspost/compress/zstd"
)

// rotate gives the file a name of its own and compresses those before it. The
// newest stays as it is: its end may have to be read after a kill.
func (f *File) rotate() error {
	name, err := f.free()
	if err != nil {
		return err
	}
	if err := f.disk.Rename(f.conf.Path, name); err != nil {
		return err
	}
	f.left, f.has = fileState{}, nil
	if err := f.disk.SyncDir(filepath.Dir(name)); err != nil {
		return err
	}
	old, err := f.before()
	if err != nil {
		return err
	}
	for _, o := range old[:max(len(old)-1, 0)] {
		if err := f.disk.Compress(o); err != nil {
			return fmt.Errorf("%s cannot be compressed: %w", o, err)
		}
	}
	return nil
}

// around is what names of full files begin and end with.
func (f *File) around() (stem, ext string) {
	ext = filepath.Ext(f.conf.Path)
	return strings.TrimSuffix(f.conf.Path, ext) + "-", ext
}

const fileStamp = "20060102T150405Z"

// free is a name that no file has.
func (f *File) free() (string, error) {
	stem, ext := f.around()
	stem += f.conf.Now().UTC().Format(fileStamp)
	for n := range 10000 {
		name := fmt.Sprintf("%s-%04d%s", stem, n, ext)
		_, err := os.Lstat(name)
		_, packed := os.Lstat(name + ".zst")
		if errors.Is(err, os.ErrNotExist) && errors.Is(packed, os.ErrNotExist) {
			return name, nil
		}
	}
	return "", errors.New("too many files were full within one second")
}

// before are the full files that are not compressed, oldest first.
func (f *File) before() ([]string, error) {
	stem, ext := f.around()
	dir, base := filepath.Split(stem)
	if dir == "" {
		dir = "."
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var names []string
	for _, e := range entries {
		rest, ok := strings.CutPrefix(e.Name(), base)
		rest, ext := strings.CutSuffix(rest, ext)
		if ok && ext && e.Type().IsRegular() && stamped(rest) {
			names = append(names, filepath.Join(dir, e.Name()))
		}
	}
	slices.Sort(names)
	return names, nil
}

// stamped reports whether s has the form of free's names.
func stamped(s string) bool {
	if len(s) != len(fileStamp)+5 {
		return false
	}
	for i, c := range []byte("dddddddd\x54dddddd\x5a-dddd") {
		if c != 'd' && s[i] != c || c == 'd' && (s[i] < '0' || s[i] > '9') {
			return false
		}
	}
	return true
}

// osDisk is the file system.
type osDisk struct{ pace *pace.Group }

func (osDisk) Open(name string) (diskFile, error) {
	f, err := os.OpenFile(name, os.O_RDWR|os.O_APPEND|os.O_CREATE|syscall.O_NOFOLLOW|syscall.O_NONBLOCK, 0o600)
	if err != nil {
		return nil, err // a nil *os.File must not become a diskFile
	}
	return f, nil
}

func (osDisk) Rename(from, to string) error { return os.Rename(from, to) }

func (osDisk) SyncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Compress leaves either the file or the whole of its compressed form, whenever it
// is interrupted.
func (d osDisk) Compress(name string) error {
	in, err := os.Open(name)
	if err != nil {
		return err
	}
	defer in.Close()
	part := name + ".zst.part"
	out, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_TRUNC|syscall.O_NOFOLLOW, 0o600)
	if err != nil {
		return err
	}
	if err := errors.Join(compress(out, in, d.pace), out.Sync(), out.Close()); err != nil {
		return errors.Join(err, os.Remove(part))
	}
	if err := os.Rename(part, name+".zst"); err != nil {
		return err
	}
	if err := d.SyncDir(filepath.Dir(name)); err != nil {
		return err
	}
	return os.Remove(name)
}

func compress(w io.Writer, r io.Reader, group *pace.Group) error {
	z, err := zstd.NewWriter(w, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(true))
	if err != nil {
		return err
	}
	slice := group.New(time.Now)
	defer slice.Close()
	piece := make([]byte, zipPiece)
	for err == nil {
		var n int
		n, err = r.Read(piece)
		if _, werr := z.Write(piece[:n]); werr != nil {
			err = werr
		}
		slice.Yield()
	}
	if err == io.EOF {
		err = nil
	}
	return errors.Join(err, z.Close())
}
