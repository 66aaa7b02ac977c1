package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"

	"golang.org/x/sys/unix"
)

// dir is a real folder.
type dir struct {
	root string
	sync *syncer
}

// Dir returns the tree below the folder root, which must exist.
func Dir(root string) FS { return dir{root, new(syncer)} }

func (d dir) path(name string) string { return filepath.Join(d.root, filepath.FromSlash(name)) }

func (d dir) open(name string, flag int) (File, error) {
	f, err := os.OpenFile(d.path(name), flag|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, err
	}
	return osFile{f, d.sync}, nil
}

func (d dir) Create(name string) (File, error) {
	return d.open(name, os.O_RDWR|os.O_CREATE|os.O_EXCL)
}
func (d dir) Open(name string) (File, error)   { return d.open(name, os.O_RDONLY) }
func (d dir) OpenRW(name string) (File, error) { return d.open(name, os.O_RDWR) }
func (d dir) Rename(o, n string) error         { return os.Rename(d.path(o), d.path(n)) }
func (d dir) Remove(name string) error         { return os.Remove(d.path(name)) }
func (d dir) MkdirAll(name string) error       { return os.MkdirAll(d.path(name), 0o700) }

func (d dir) ReadDir(name string) ([]string, error) {
	entries, err := os.ReadDir(d.path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	names := make([]string, 0, len(entries))
	for _, e := range entries {
		names = append(names, e.Name())
	}
	sort.Strings(names)
	return names, nil
}

func (d dir) SyncDir(name string) error {
	f, err := os.Open(d.path(name))
	if err != nil {
		return err
	}
	err = d.sync.sync(int(f.Fd()), aioFsync)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	return err
}

func (d dir) Lock(name string) (io.Closer, error) {
	f, err := os.OpenFile(d.path(name), os.O_RDWR|os.O_CREATE|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, unix.EROFS) {
		// Evidence on a medium that takes no writes can be read all the same.
		f, err = os.OpenFile(d.path(name), os.O_RDONLY|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
		if errors.Is(err, fs.ErrNotExist) {
			return unlocked{}, nil
		}
	}
	if err != nil {
		return nil, err
	}
	if err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, unix.EWOULDBLOCK) {
			return nil, fmt.Errorf("%s: %w", d.path(name), ErrLocked)
		}
		return nil, fmt.Errorf("locking %s: %w", d.path(name), err)
	}
	return f, nil
}

// unlocked stands for the lock of a folder in which nobody can make one.
type unlocked struct{}

// Close implements io.Closer.
func (unlocked) Close() error { return nil }

type osFile struct {
	*os.File
	sync *syncer
}

func (f osFile) Sync() error { return f.sync.sync(int(f.Fd()), aioFdatasync) }

func (f osFile) Size() (int64, error) {
	st, err := f.Stat()
	if err != nil {
		return 0, err
	}
	return st.Size(), nil
}

func (d dir) Space() (free, total int64, err error) {
	var st unix.Statfs_t
	if err := unix.Statfs(d.root, &st); err != nil {
		return 0, 0, err
	}
	return int64(st.Bavail) * int64(st.Bsize), int64(st.Blocks) * int64(st.Bsize), nil
}

// Allocate asks the file system, or writes zeros where it cannot be asked.
func (f osFile) Allocate(size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), unix.FALLOC_FL_KEEP_SIZE, 0, size)
		switch err {
		case unix.EINTR:
			continue
		case unix.EOPNOTSUPP, unix.ENOSYS:
			return f.zeros(size)
		}
		return err
	}
}

func (f osFile) Allocated() (int64, error) {
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return 0, err
	}
	return st.Blocks * 512, nil
}

func (f osFile) zeros(size int64) error {
	at, err := f.Size()
	zeros := make([]byte, 256<<10)
	for err == nil && at < size {
		var n int
		n, err = f.WriteAt(zeros[:min(int64(len(zeros)), size-at)], at)
		at += int64(n)
	}
	return err
}

// Remove removes a file that may be gone already.
func Remove(fsys FS, name string) error {
	err := fsys.Remove(name)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
