package keys

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sync/atomic"
	"syscall"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// lockWait is how long OpenBolt waits for the file lock: enough for a command
// that is just ending, too short to look like a hang.
const lockWait = 250 * time.Millisecond

// boltStore is a Store in one bbolt file.
type boltStore struct {
	db       *bolt.DB
	readOnly bool
	failed   atomic.Bool // a commit failed other than for lack of space
}

// OpenBolt opens the file at path, or creates it with mode 0600 unless
// readOnly. It takes a lock (shared if readOnly) and returns ErrLocked if that
// is held elsewhere. A file that others can read, that belongs to another
// user or that is a symbolic link is refused, and so is one whose pages are
// damaged (ErrStoreDamaged); what its rows hold is authenticated when it is
// used.
func OpenBolt(path string, readOnly bool) (Store, error) {
	return openBolt(path, readOnly, openPrivate)
}

// allocSize is by how much the file grows beyond what is needed. Left alone, bbolt
// doubles a file of up to 16 MiB, which is much beside the records of 10,000 people.
const allocSize = 1 << 20

func openBolt(path string, readOnly bool, open func(string, int, os.FileMode) (*os.File, error)) (Store, error) {
	_, statErr := os.Lstat(path)
	if err := inspect(path, open); errors.Is(err, ErrLocked) {
		return nil, fmt.Errorf("%s: %w", path, err)
	} else if err != nil {
		return nil, fmt.Errorf("cannot open key store %s: %w", path, err)
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{
		Timeout:      lockWait,
		ReadOnly:     readOnly,
		FreelistType: bolt.FreelistMapType,
		NoStatistics: true,
		OpenFile:     open,
	})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open key store %s: %w", path, err)
	}
	db.AllocSize = allocSize
	if errors.Is(statErr, fs.ErrNotExist) {
		// bbolt syncs the file but not the name it just got.
		if err := syncDir(filepath.Dir(path)); err != nil {
			return nil, errors.Join(fmt.Errorf("cannot make key store %s durable: %w", path, err), db.Close())
		}
	}
	return &boltStore{db: db, readOnly: readOnly}, nil
}

func openPrivate(name string, flag int, mode os.FileMode) (*os.File, error) {
	f, err := os.OpenFile(name, flag|noFollow, mode)
	if err != nil {
		if fi, statErr := os.Lstat(name); statErr == nil && fi.Mode()&fs.ModeSymlink != 0 {
			return nil, fmt.Errorf("%s is a symbolic link; put the file itself there", name)
		}
		return nil, err
	}
	if err := checkPrivate(f, name, 0o600); err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func (s *boltStore) View(fn func(Tx) error) error {
	return closedErr(s.db.View(func(tx *bolt.Tx) error { return fn(&boltTx{tx: tx}) }))
}

func (s *boltStore) Update(fn func(Tx) error) error {
	if s.readOnly {
		return ErrReadOnly
	}
	if s.failed.Load() {
		return ErrStoreFailed
	}
	var own error
	err := s.db.Update(func(tx *bolt.Tx) error {
		own = fn(&boltTx{tx: tx, write: true})
		return own
	})
	if err == nil || own != nil || errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return closedErr(err)
	}
	// A full disk is met before the pages that count are touched and passes.
	// After any other error the page cache may differ from the disk.
	if !errors.Is(err, syscall.ENOSPC) {
		s.failed.Store(true)
	}
	return fmt.Errorf("key store write failed: %w", err)
}

func (s *boltStore) Close() error { return s.db.Close() }

func closedErr(err error) error {
	if errors.Is(err, berrors.ErrDatabaseNotOpen) {
		return ErrClosed
	}
	return err
}

// boltTx lives as long as its callback and belongs to its goroutine.
type boltTx struct {
	tx    *bolt.Tx
	write bool
}

func (t *boltTx) Get(bucket string, key []byte) []byte {
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	return b.Get(key)
}

func (t *boltTx) Put(bucket string, key, value []byte) error {
	if !t.write {
		return ErrReadOnly
	}
	if bucket == "" || len(key) == 0 || len(value) == 0 {
		return ErrEmpty
	}
	b, err := t.tx.CreateBucketIfNotExists([]byte(bucket))
	if err != nil {
		return err
	}
	// bbolt keeps the slice until commit.
	return b.Put(key, append([]byte(nil), value...))
}

func (t *boltTx) Delete(bucket string, key []byte) error {
	if !t.write {
		return ErrReadOnly
	}
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	return b.Delete(key)
}

func (t *boltTx) ForEach(bucket string, fn func(k, v []byte) error) error {
	return t.Scan(bucket, nil, fn)
}

func (t *boltTx) Scan(bucket string, from []byte, fn func(k, v []byte) error) error {
	b := t.tx.Bucket([]byte(bucket))
	if b == nil {
		return nil
	}
	c := b.Cursor()
	for k, v := c.Seek(from); k != nil; k, v = c.Next() {
		if err := fn(k, v); errors.Is(err, ErrStop) {
			return nil
		} else if err != nil {
			return err
		}
	}
	return nil
}
