// Package kv keeps small state that must outlive the process: API keys,
// sessions, tokens of the token service, what was seen once. Local is one file
// of this node, with every name hashed and every value sealed, so that the file
// tells nothing without its key.
package kv

import (
	"context"
	"errors"
	"time"
)

// ErrNotFound means that there is no such entry, or that it has expired.
var ErrNotFound = errors.New("kv: no such entry")

// ErrChanged means that Swap found another value than the one it should
// replace.
var ErrChanged = errors.New("kv: the entry was changed meanwhile")

// ErrDamaged means that a value does not open: it was edited or moved, or
// belongs to another key.
var ErrDamaged = errors.New("kv: the entry is damaged")

// ErrForeign means that a whole file belongs to another key: none of it can be
// read, and none of it may be taken for empty.
var ErrForeign = errors.New("kv: the file belongs to another key")

// ErrLocked means that another process has the file open.
var ErrLocked = errors.New("kv: the file is in use by another process")

// Store is a map of tables of entries. Writes are durable when they return. It
// is safe for concurrent use. A time of expiry that is zero means never.
// Whoever gets another error than those above must treat the store as away.
type Store interface {
	// Get returns a copy of the value: ErrNotFound, ErrDamaged.
	Get(ctx context.Context, table, key string) ([]byte, error)
	// Put sets the value, whatever was there.
	Put(ctx context.Context, table, key string, value []byte, expires time.Time) error
	// Create sets the value if there is none and reports whether it did: of any
	// number of callers with one key, in any process, exactly one gets true.
	Create(ctx context.Context, table, key string, value []byte, expires time.Time) (bool, error)
	// Swap replaces the value if it is still the old one: ErrChanged,
	// ErrNotFound.
	Swap(ctx context.Context, table, key string, old, value []byte, expires time.Time) error
	// Delete removes the entry; that there is none is no error.
	Delete(ctx context.Context, table, key string) error
	// Range calls fn with a copy of every entry of a table, in no order, until
	// it returns an error, which Range returns. fn must not call the Store.
	Range(ctx context.Context, table string, fn func(key string, value []byte) error) error
}
