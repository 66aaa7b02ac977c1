// Package store is the one place that touches the book's files. It offers
// exactly the operations whose durability the ledger reasons about: positioned
// writes, fdatasync, rename and the sync of a directory.
//
// A write is in the kernel when WriteAt returns (it survives kill -9) and on
// the disk when Sync returns. A created, renamed or removed name is on the
// disk when SyncDir of its folder returns, never before.
package store

import (
	"errors"
	"fmt"
	"io"
	"path"
)

// FS is a tree of files below one root. Names use slashes and are relative to
// the root. All methods are safe for concurrent use.
type FS interface {
	// Create makes a new file for reading and writing, mode 0600. It fails
	// with fs.ErrExist if the name is taken.
	Create(name string) (File, error)
	// Open opens an existing file for reading.
	Open(name string) (File, error)
	// OpenRW opens an existing file for reading and writing.
	OpenRW(name string) (File, error)
	// Rename replaces newName atomically.
	Rename(oldName, newName string) error
	Remove(name string) error
	MkdirAll(name string) error
	// ReadDir returns the names in a folder, sorted; a folder that does not
	// exist has none.
	ReadDir(name string) ([]string, error)
	SyncDir(name string) error
	// Space is how many bytes the file system still takes from this process,
	// and how many it has.
	Space() (free, total int64, err error)
	// Lock takes the exclusive lock of the file name, which it creates if it
	// is missing, or fails with ErrLocked at once. The lock ends with Close or
	// with the process.
	Lock(name string) (io.Closer, error)
}

// File is one open file.
type File interface {
	io.ReaderAt
	io.WriterAt
	io.Closer
	// Sync is fdatasync: data and the size needed to read it back.
	Sync() error
	Size() (int64, error)
	Truncate(size int64) error
	// Allocate takes room on the disk for size bytes, if it can without making
	// the file longer. It may be slow and fail halfway.
	Allocate(size int64) error
	// Allocated is how much room on the disk the file takes.
	Allocated() (int64, error)
}

// ErrLocked means that another process holds the lock.
var ErrLocked = errors.New("locked by another process")

// ErrTooLarge means that a file has more bytes than it may have.
var ErrTooLarge = errors.New("more than the")

// ReadFile returns the whole content of a file. It refuses more than limit
// bytes.
func ReadFile(fsys FS, name string, limit int64) ([]byte, error) {
	return readFile(fsys, name, limit, limit, func() {})
}

func readFile(fsys FS, name string, limit, piece int64, yield func()) ([]byte, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return nil, err
	}
	if size > limit {
		return nil, fmt.Errorf("%s has %d bytes, %w %d that it may have", name, size, ErrTooLarge, limit)
	}
	b := make([]byte, size)
	for at := int64(0); at < size; at += piece {
		if err := ReadFull(f, b[at:min(at+piece, size)], at); err != nil {
			return nil, fmt.Errorf("reading %s: %w", name, err)
		}
		yield()
	}
	return b, nil
}

// ReadFileSlowly is ReadFile that reads in pieces and calls yield between them.
func ReadFileSlowly(fsys FS, name string, limit int64, yield func()) ([]byte, error) {
	return readFile(fsys, name, limit, 64<<10, yield)
}

// ReadFull fills b from offset off or fails.
func ReadFull(f io.ReaderAt, b []byte, off int64) error {
	n, err := f.ReadAt(b, off)
	if n == len(b) {
		return nil
	}
	if err == nil || err == io.EOF {
		err = io.ErrUnexpectedEOF
	}
	return err
}

// WriteFile makes name hold data, whole or not at all: temporary file, sync,
// rename, sync of the folder. It is durable when it returns.
func WriteFile(fsys FS, name string, data []byte) error {
	tmp := name + ".tmp"
	if err := Remove(fsys, tmp); err != nil {
		return err
	}
	f, err := fsys.Create(tmp)
	if err != nil {
		return err
	}
	_, err = f.WriteAt(data, 0)
	if err == nil {
		err = f.Sync()
	}
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", tmp, err)
	}
	if err := fsys.Rename(tmp, name); err != nil {
		return err
	}
	return fsys.SyncDir(path.Dir(name))
}
