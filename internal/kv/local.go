package kv

import (
	"bytes"
	"context"
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	bolt "go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
)

// lockWait is how long OpenLocal waits for the file's lock.
const lockWait = 250 * time.Millisecond

// batchWait is how long a write waits for others to share its fsync.
const batchWait = time.Millisecond

// version is the first byte of a sealed value.
const version = 1

// Local is a Store in one file that one process has open.
//
// The name of an entry is HMAC-SHA256(name key, table || 0 || key) behind 8
// bytes of the table's own hash. The value is version, a random nonce and
// AES-256-GCM, under a key of its own, of expiry, key length, key and value,
// bound to the entry's name.
type Local struct {
	db    *bolt.DB
	names [32]byte
	aead  cipher.AEAD
	now   func() time.Time
}

// The buckets: of entries, and of the one value that says whose file it is.
var (
	bucket     = []byte("kv1")
	headBucket = []byte("kv1 head")
)

// headName is the name of the value in headBucket.
var headName = []byte("head")

// OpenLocal opens the file at path or creates it with mode 0600. Everything in
// it is sealed under the key. Errors: ErrLocked, ErrForeign; any other means that
// it cannot be read. The pages of the file are taken to be whole.
func OpenLocal(path string, key [32]byte, now func() time.Time) (*Local, error) {
	l := &Local{now: now}
	if l.now == nil {
		l.now = time.Now
	}
	if err := l.derive(key); err != nil {
		return nil, err
	}
	if fi, err := os.Lstat(path); err == nil && (!fi.Mode().IsRegular() || fi.Mode().Perm()&0o077 != 0) {
		return nil, fmt.Errorf("%s must be a regular file that only its owner can read (mode %v); chmod 600 it", path, fi.Mode())
	}
	_, statErr := os.Lstat(path)
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait, FreelistType: bolt.FreelistMapType, NoStatistics: true})
	if errors.Is(err, berrors.ErrTimeout) {
		return nil, fmt.Errorf("%s: %w", path, ErrLocked)
	}
	if err != nil {
		return nil, fmt.Errorf("cannot open state %s: %w", path, err)
	}
	db.MaxBatchDelay = batchWait
	l.db = db
	err = db.Update(l.own)
	if err == nil && errors.Is(statErr, fs.ErrNotExist) {
		err = syncDir(filepath.Dir(path)) // bbolt syncs the file but not the name it just got
	}
	if err != nil {
		_ = db.Close()
		return nil, fmt.Errorf("cannot open state %s: %w", path, err)
	}
	return l, nil
}

// own marks a new file as that of the key, and demands the mark of one that is
// not new.
func (l *Local) own(tx *bolt.Tx) error {
	entries, err := tx.CreateBucketIfNotExists(bucket)
	if err != nil {
		return err
	}
	head, err := tx.CreateBucketIfNotExists(headBucket)
	if err != nil {
		return err
	}
	sealed := head.Get(headName)
	if sealed == nil {
		if first, _ := entries.Cursor().First(); first != nil {
			return ErrForeign
		}
		return head.Put(headName, l.seal(headName, "", nil, time.Time{}))
	}
	if _, _, err := l.open(headName, sealed); err != nil {
		return ErrForeign
	}
	return nil
}

// syncDir makes the names in a folder durable.
func syncDir(name string) error {
	d, err := os.Open(name)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Copy writes the file as it is at one moment. Writes that make it larger wait
// for that to end, so w must be fast.
func (l *Local) Copy(w io.Writer) error { return copyDB(l.db, w) }

func copyDB(db *bolt.DB, w io.Writer) error {
	return db.View(func(tx *bolt.Tx) error {
		_, err := tx.WriteTo(w)
		return err
	})
}

// CopyFile writes the file at path, which nobody may have open, as Copy does. It
// needs no key.
func CopyFile(path string, w io.Writer) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{Timeout: lockWait, ReadOnly: true, NoStatistics: true})
	if errors.Is(err, berrors.ErrTimeout) {
		return fmt.Errorf("%s: %w", path, ErrLocked)
	}
	if err != nil {
		return fmt.Errorf("cannot open state %s: %w", path, err)
	}
	return errors.Join(copyDB(db, w), db.Close())
}

func (l *Local) derive(key [32]byte) error {
	names, err := hkdf.Expand(sha256.New, key[:], "gatebook/v1/kv names", 32)
	if err != nil {
		return err
	}
	seal, err := hkdf.Expand(sha256.New, key[:], "gatebook/v1/kv values", 32)
	if err != nil {
		return err
	}
	copy(l.names[:], names)
	block, err := aes.NewCipher(seal)
	if err != nil {
		return err
	}
	l.aead, err = cipher.NewGCMWithRandomNonce(block)
	return err
}

// Close closes the file.
func (l *Local) Close() error { return l.db.Close() }

func (l *Local) prefix(table string) []byte {
	m := hmac.New(sha256.New, l.names[:])
	m.Write([]byte(table))
	return m.Sum(nil)[:8]
}

func (l *Local) name(table, key string) []byte {
	m := hmac.New(sha256.New, l.names[:])
	m.Write([]byte(table))
	m.Write([]byte{0})
	m.Write([]byte(key))
	return append(l.prefix(table), m.Sum(nil)...)
}

func (l *Local) seal(name []byte, key string, value []byte, expires time.Time) []byte {
	var at int64
	if !expires.IsZero() {
		at = expires.UnixMilli()
	}
	plain := binary.BigEndian.AppendUint64(nil, uint64(at))
	plain = binary.BigEndian.AppendUint32(plain, uint32(len(key)))
	plain = append(append(plain, key...), value...)
	return l.aead.Seal([]byte{version}, nil, plain, name)
}

// open returns what seal was given: ErrNotFound if it has expired.
func (l *Local) open(name, sealed []byte) (key string, value []byte, err error) {
	if len(sealed) == 0 || sealed[0] != version {
		return "", nil, ErrDamaged
	}
	plain, err := l.aead.Open(nil, nil, sealed[1:], name)
	if err != nil || len(plain) < 12 {
		return "", nil, ErrDamaged
	}
	at, n := int64(binary.BigEndian.Uint64(plain)), uint64(binary.BigEndian.Uint32(plain[8:]))
	if n > uint64(len(plain)-12) {
		return "", nil, ErrDamaged
	}
	if at != 0 && l.now().UnixMilli() >= at {
		return "", nil, ErrNotFound
	}
	return string(plain[12 : 12+n]), plain[12+n:], nil
}

// get reads an entry inside a transaction.
func (l *Local) get(tx *bolt.Tx, name []byte) ([]byte, error) {
	sealed := tx.Bucket(bucket).Get(name)
	if sealed == nil {
		return nil, ErrNotFound
	}
	_, value, err := l.open(name, sealed)
	return value, err
}

// Get implements Store.
func (l *Local) Get(_ context.Context, table, key string) (value []byte, err error) {
	name := l.name(table, key)
	err = l.db.View(func(tx *bolt.Tx) (err error) { value, err = l.get(tx, name); return err })
	return value, err
}

// Put implements Store.
func (l *Local) Put(_ context.Context, table, key string, value []byte, expires time.Time) error {
	name := l.name(table, key)
	sealed := l.seal(name, key, value, expires)
	return l.db.Batch(func(tx *bolt.Tx) error { return tx.Bucket(bucket).Put(name, sealed) })
}

// Create implements Store.
func (l *Local) Create(_ context.Context, table, key string, value []byte, expires time.Time) (created bool, err error) {
	name := l.name(table, key)
	sealed := l.seal(name, key, value, expires)
	err = l.db.Batch(func(tx *bolt.Tx) error {
		created = false // a batch may be run again
		switch _, err := l.get(tx, name); err {
		case nil:
			return nil
		case ErrNotFound:
			created = true
			return tx.Bucket(bucket).Put(name, sealed)
		default:
			return err
		}
	})
	return created && err == nil, err
}

// Swap implements Store.
func (l *Local) Swap(_ context.Context, table, key string, old, value []byte, expires time.Time) error {
	name := l.name(table, key)
	sealed := l.seal(name, key, value, expires)
	return l.db.Batch(func(tx *bolt.Tx) error {
		have, err := l.get(tx, name)
		if err != nil {
			return err
		}
		if !bytes.Equal(have, old) {
			return ErrChanged
		}
		return tx.Bucket(bucket).Put(name, sealed)
	})
}

// Delete implements Store.
func (l *Local) Delete(_ context.Context, table, key string) error {
	name := l.name(table, key)
	return l.db.Batch(func(tx *bolt.Tx) error { return tx.Bucket(bucket).Delete(name) })
}

// Range implements Store. A damaged entry ends it with ErrDamaged.
func (l *Local) Range(_ context.Context, table string, fn func(key string, value []byte) error) error {
	prefix := l.prefix(table)
	return l.db.View(func(tx *bolt.Tx) error {
		c := tx.Bucket(bucket).Cursor()
		for name, sealed := c.Seek(prefix); bytes.HasPrefix(name, prefix); name, sealed = c.Next() {
			key, value, err := l.open(name, sealed)
			if err == ErrNotFound {
				continue
			}
			if err != nil {
				return err
			}
			if err := fn(key, value); err != nil {
				return err
			}
		}
		return nil
	})
}

// sweepEvery is how often Run looks for entries that have expired, sweepMost
// how many it removes in one transaction.
const (
	sweepEvery = time.Minute
	sweepMost  = 1024
)

// Run removes what has expired until ctx ends. An error means that the file
// can no longer be written.
func (l *Local) Run(ctx context.Context) error {
	tick := time.NewTicker(sweepEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			if err := l.Sweep(ctx); err != nil {
				return err
			}
		}
	}
}

// Sweep removes what has expired.
func (l *Local) Sweep(ctx context.Context) error {
	var from []byte
	for ctx.Err() == nil {
		var dead [][]byte
		more := false
		err := l.db.View(func(tx *bolt.Tx) error {
			c := tx.Bucket(bucket).Cursor()
			for name, sealed := c.Seek(from); name != nil; name, sealed = c.Next() {
				if _, _, err := l.open(name, sealed); err == ErrNotFound {
					dead = append(dead, bytes.Clone(name))
				}
				if len(dead) == sweepMost {
					from, more = bytes.Clone(name), true
					return nil
				}
			}
			return nil
		})
		if err == nil && len(dead) > 0 {
			err = l.db.Update(func(tx *bolt.Tx) error { return l.remove(tx, dead) })
		}
		if err != nil || !more {
			return err
		}
	}
	return nil
}

// remove deletes those of the entries that are still expired: one may have
// been written again meanwhile.
func (l *Local) remove(tx *bolt.Tx, names [][]byte) error {
	b := tx.Bucket(bucket)
	for _, name := range names {
		if _, err := l.get(tx, name); err != ErrNotFound {
			continue
		}
		if err := b.Delete(name); err != nil {
			return err
		}
	}
	return nil
}
