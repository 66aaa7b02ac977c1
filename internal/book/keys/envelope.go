package keys

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"fmt"
)

// A wrapped key is
//
//	0x01 · epoch (uint32) · nonce (12) · AES-256-GCM of the 32 bytes (48)
//
// with the label, version, kind, id and epoch as associated data, so that a
// value moved to another row, kind or epoch does not open.
//
// Nonces are random: NIST SP 800-38D section 8.3 allows 2^32 of them under
// one key, and an epoch's key wraps one value per person, segment, WAL file
// and index row during weeks, thousands of times fewer.
//
// No key commitment is needed here. The key to open with is chosen by the
// epoch number that the associated data binds, not by trial, and epoch keys
// are random and never known to whoever supplies a wrapped value, so nobody
// can build one that opens under two of them. Whoever does hold the epoch
// keys can wrap what he likes anyway. What is sealed under the keys themselves
// commits to them (spec, Segment).
const (
	wrapV1     = 0x01
	tombstone  = 0x02
	wrappedLen = 1 + 4 + 12 + 32 + 16
	wrapLabel  = "gatebook/v1/key"
)

func newAEAD(key *Key) (cipher.AEAD, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCMWithRandomNonce(block)
}

func wrapAD(kind Kind, id ID, epoch uint32) []byte {
	ad := make([]byte, 0, len(wrapLabel)+1+1+len(id)+4)
	ad = append(ad, wrapLabel...)
	ad = append(ad, wrapV1, byte(kind))
	ad = append(ad, id[:]...)
	return binary.BigEndian.AppendUint32(ad, epoch)
}

// wrapped is an encoded wrapped key of length wrappedLen.
type wrapped []byte

// parseWrapped checks the form only; open authenticates.
func parseWrapped(b []byte) (wrapped, error) {
	switch {
	case len(b) == 0:
		return nil, fmt.Errorf("%w: empty", ErrKeyDamaged)
	case b[0] != wrapV1:
		return nil, fmt.Errorf("%w: wrapped key of version %#02x", ErrVersion, b[0])
	case len(b) != wrappedLen:
		return nil, fmt.Errorf("%w: %d bytes instead of %d", ErrKeyDamaged, len(b), wrappedLen)
	case wrapped(b).epoch() == 0:
		return nil, fmt.Errorf("%w: epochs count from 1", ErrKeyDamaged)
	}
	return wrapped(b), nil
}

func (w wrapped) epoch() uint32 { return binary.BigEndian.Uint32(w[1:5]) }

// seal wraps key under the epoch's key.
func (e *epoch) seal(kind Kind, id ID, key *Key) wrapped {
	out := make([]byte, 5, wrappedLen)
	out[0] = wrapV1
	binary.BigEndian.PutUint32(out[1:], e.num)
	return e.aead.Seal(out, nil, key[:], wrapAD(kind, id, e.num))
}

// open unwraps w with whichever epoch it names.
func (es *epochs) open(kind Kind, id ID, w wrapped) (Key, error) {
	e := es.all[w.epoch()]
	if e == nil {
		return Key{}, fmt.Errorf("%w: %s key %v is wrapped in epoch %d, which is destroyed or not loaded",
			ErrKeyUnavailable, kind, id, w.epoch())
	}
	var key Key
	if _, err := e.aead.Open(key[:0], nil, w[5:], wrapAD(kind, id, e.num)); err != nil {
		return Key{}, fmt.Errorf("%w: %s key %v in epoch %d", ErrKeyDamaged, kind, id, e.num)
	}
	return key, nil
}

// openRow unwraps a row of the key bucket. Nil is ErrKeyUnknown.
func (es *epochs) openRow(kind Kind, id ID, row []byte) (Key, error) {
	switch {
	case row == nil:
		return Key{}, fmt.Errorf("%w: %s key %v", ErrKeyUnknown, kind, id)
	case row[0] == tombstone:
		return Key{}, fmt.Errorf("%w: %s key %v", ErrKeyDestroyed, kind, id)
	}
	w, err := parseWrapped(row)
	if err != nil {
		return Key{}, fmt.Errorf("%s key %v: %w", kind, id, err)
	}
	return es.open(kind, id, w)
}
