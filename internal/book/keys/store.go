package keys

import "errors"

// Store is small durable state. An Update is atomic, and durable when it
// returns nil; when it returns an error its effect is unknown until the store
// is opened again, unless the error came from the callback, in which case
// nothing happened. View sees one consistent state. Safe for concurrent use;
// a callback must not call the store again.
type Store interface {
	View(func(Tx) error) error
	Update(func(Tx) error) error
	Close() error
}

// Tx is one transaction. Slices it hands out are valid, and must not be
// changed, until the callback returns. Buckets come into being with the first
// Put. Keys and values are never empty.
type Tx interface {
	// Get returns nil for a missing key.
	Get(bucket string, key []byte) []byte
	Put(bucket string, key, value []byte) error
	// Delete of a missing key does nothing.
	Delete(bucket string, key []byte) error
	// ForEach visits all rows in key order. The callback must not change the
	// bucket. If it returns ErrStop, the walk ends and ForEach returns nil.
	ForEach(bucket string, fn func(k, v []byte) error) error
	// Scan is ForEach from the first key that is not less than from.
	Scan(bucket string, from []byte, fn func(k, v []byte) error) error
}

// Errors of a Store.
var (
	// ErrStop ends ForEach and Scan early.
	ErrStop = errors.New("stop")
	// ErrLocked: another process, or another part of this one, has the file.
	ErrLocked = errors.New("key store is locked by another process; stop it, or go through its admin listener")
	// ErrReadOnly: a write through a View or a store opened read-only.
	ErrReadOnly = errors.New("key store is open for reading only")
	// ErrClosed: the store was closed.
	ErrClosed = errors.New("key store is closed")
	// ErrStoreFailed: an earlier write failed in a way that leaves it unknown
	// what is on disk. Only opening the store again helps.
	ErrStoreFailed = errors.New("key store failed earlier and must be opened again")
	// ErrEmpty: a bucket name, key or value was empty.
	ErrEmpty = errors.New("empty bucket name, key or value")
)
