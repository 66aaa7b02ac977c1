package ledger

import (
	"errors"
	"fmt"
)

// DamageKind tells apart what can have happened to evidence.
type DamageKind string

// The kinds that verify and start-up name.
const (
	Edited    DamageKind = "edited"
	Missing   DamageKind = "missing in the middle"
	Truncated DamageKind = "truncated tail"
	Reordered DamageKind = "reordered"
	Forked    DamageKind = "forked"
)

// Damage is a finding: evidence that does not hold. First and Last are leaf
// indexes, both included; for damage outside the leaves they are what the file
// covers.
type Damage struct {
	Kind   DamageKind `json:"kind"`
	File   string     `json:"file"`
	First  uint64     `json:"first"`
	Last   uint64     `json:"last"`
	Detail string     `json:"detail"`
}

func (d *Damage) Error() string {
	where := fmt.Sprintf("records %d to %d", d.First, d.Last)
	if d.First == d.Last {
		where = fmt.Sprintf("record %d", d.First)
	}
	return fmt.Sprintf("%s: %s (%s): %s", d.Kind, where, d.File, d.Detail)
}

// KeyError means that data is there but the key to it is not.
type KeyError struct {
	What string
	Err  error
}

func (e *KeyError) Error() string { return "no key for " + e.What + ": " + e.Err.Error() }
func (e *KeyError) Unwrap() error { return e.Err }

// GivenError means that what a verification was given to verify against cannot be
// used. It says nothing of the log.
type GivenError struct {
	What string
	Err  error
}

func (e *GivenError) Error() string { return e.What + ": " + e.Err.Error() }
func (e *GivenError) Unwrap() error { return e.Err }

// ErrNoKey means that the key store works and does not hold the key, which no
// record accounts for: somebody removed it.
var ErrNoKey = errors.New("the key store does not hold this key")

// ErrFull means that the system took no more: the disk is full or file
// descriptors are short. It passes; nothing of the refused item was
// kept and the ledger goes on when there is space.
var ErrFull = errors.New("no room for more")

// ErrUnsure means that the ledger failed while the item was being written: a
// restart may find it.
var ErrUnsure = errors.New("it is not known whether the record was kept")

// ErrClosed means that the ledger was closed.
var ErrClosed = errors.New("the ledger is closed")

// fatalError is what stops the ledger for good: after it no state in memory is
// trusted, and only a restart, which reads the disk again, may go on.
type fatalError struct{ err error }

func (e *fatalError) Error() string {
	return "the ledger stopped and needs a restart: " + e.err.Error()
}
func (e *fatalError) Unwrap() error { return e.err }
