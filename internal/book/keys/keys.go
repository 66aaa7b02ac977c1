// Package keys is the book's envelope encryption. A wrapper (the root of
// trust) wraps one key encryption key per epoch; the epoch's key wraps every
// other key: one random key per person, segment, WAL file and piece of state.
// Destroying a wrapped key erases what it sealed; destroying an epoch makes
// every older copy of the key store worthless.
//
// The package knows nothing of records. The ledger asks it for subjects, puts
// their births into the WAL and projects them into the key store; see Ring.
package keys

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"log/slog"
)

// ID names a key. It is 128 random bits; for a person's subject key it is
// also the pseudonym.
type ID [16]byte

var idText = base64.RawURLEncoding.Strict()

// String returns the 22 characters of unpadded base64url (RFC 4648 section 5)
// that stand for id in a frame.
func (id ID) String() string { return idText.EncodeToString(id[:]) }

// ParseID is the inverse of String. It accepts exactly one text per id.
func ParseID(s string) (ID, error) {
	var id ID
	if len(s) != 22 {
		return ID{}, fmt.Errorf("a key id has 22 characters of base64url, not %d", len(s))
	}
	if _, err := idText.Decode(id[:], []byte(s)); err != nil {
		return ID{}, fmt.Errorf("key id is not base64url: %w", err)
	}
	return id, nil
}

// Key is 256 bits of key material, always random and never derived from
// another key, so that destroying it destroys it.
type Key = [32]byte

// Kind says what a key is for. It is bound into the wrapping, so a key of one
// kind cannot be passed off as one of another.
type Kind uint8

// The kinds of keys; the numbers are part of the format.
const (
	KindWAL     Kind = 1 // one WAL file
	KindSegment Kind = 2 // frames of one segment file generation
	KindState   Kind = 3 // blind index, day keys, other state
	KindSigning Kind = 4 // Ed25519 seed of the ledger's note key
	KindSubject Kind = 5 // personal parts of one subject

	// Not keys, but 32 secret bytes that are wrapped the same way.
	kindIdentity Kind = 6 // inner blind-index hash of an identity
	kindClaimed  Kind = 7 // inner blind-index hash of a claimed name
)

// String returns the name of the kind as used in messages.
func (k Kind) String() string {
	switch k {
	case KindWAL:
		return "wal"
	case KindSegment:
		return "segment"
	case KindState:
		return "state"
	case KindSigning:
		return "signing"
	case KindSubject:
		return "subject"
	case kindIdentity:
		return "identity row"
	case kindClaimed:
		return "claimed row"
	}
	return fmt.Sprintf("kind %d", uint8(k))
}

func (k Kind) valid() bool { return k >= KindWAL && k <= KindSubject }

// Errors that callers tell apart with errors.Is.
var (
	// ErrNotCreated: the store holds no key ring.
	ErrNotCreated = errors.New("no key ring in this key store")
	// ErrExists: Create was asked to overwrite a key ring.
	ErrExists = errors.New("key store already holds a key ring")
	// ErrKeyUnavailable: the wrapper did not give an epoch key back. The data
	// is not lost by that; the root of trust is away, wrong or destroyed.
	ErrKeyUnavailable = errors.New("key unavailable")
	// ErrKeyUnknown: no key of this kind and id was ever stored here.
	ErrKeyUnknown = errors.New("key unknown")
	// ErrKeyDestroyed: the key existed and was destroyed on purpose.
	ErrKeyDestroyed = errors.New("key destroyed")
	// ErrKeyDamaged: a stored or announced key does not authenticate.
	ErrKeyDamaged = errors.New("wrapped key is damaged or was tampered with")
	// ErrKeyInUse: the ledger cannot live without this key.
	ErrKeyInUse = errors.New("key is in use by the ledger itself")
	// ErrVersion: bytes of a version that this program does not know.
	ErrVersion = errors.New("unknown format version")
	// ErrBacklog: too many births wait to be written or projected.
	ErrBacklog = errors.New("too many subject births wait for the book")
)

// Wrapper is the root of trust. Each epoch has a wrapping key or version of
// its own inside the wrapper, so that destroying an epoch means something:
// afterwards nothing wrapped in it can be unwrapped by anybody.
//
// NewEpoch returns a number higher than any before and is durable when it
// returns. Wrap and Unwrap are inverse for the same epoch; Unwrap fails on
// changed bytes or another epoch. DestroyEpoch is durable and may be repeated.
// All methods are safe for concurrent use.
type Wrapper interface {
	NewEpoch(ctx context.Context) (epoch uint32, err error)
	Wrap(ctx context.Context, epoch uint32, key *Key) ([]byte, error)
	Unwrap(ctx context.Context, epoch uint32, wrapped []byte) (Key, error)
	DestroyEpoch(ctx context.Context, epoch uint32) error
}

// Subject is what a record's personal part is sealed under. It is a value;
// the bytes of Birth are shared and must not be changed.
type Subject struct {
	// ID is the key's id: the WAL's subject ref and the owner of a segment's
	// personal block.
	ID ID
	// Pseudonym is the 22 characters for the frame: ID as text for persons
	// and the system subject, per prefix and day for anonymous ones.
	Pseudonym string
	Key       Key
	// Birth, if not nil, is an item that must go into the WAL in the same
	// batch as, and before, any item that uses this subject.
	Birth []byte
}

// LogValue keeps the key out of logs.
func (s Subject) LogValue() slog.Value { return slog.StringValue(s.Pseudonym) }

// String keeps the key out of formatted text.
func (s Subject) String() string { return s.Pseudonym }

// GoString keeps the key out of %#v.
func (s Subject) GoString() string { return "keys.Subject(" + s.Pseudonym + ")" }
