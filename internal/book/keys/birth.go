package keys

import (
	"encoding/binary"
	"errors"
	"fmt"
)

// A birth announces, inside the WAL, a row of the key store before the first
// item that depends on it. All forms have a fixed length:
//
//	person     0x01 · 0x01 · id (16) · wrapped key (65) · wrapped identity hash (65)
//	anonymous  0x01 · 0x02 · id (16) · wrapped key (65) · day (uint32) · bucket (uint8)
//	claimed    0x01 · 0x03 · pseudonym (16) · wrapped name hash (65) · day (uint32)
//	full       0x01 · 0x04 · day (uint32)
//
// day counts days since 1970-01-01 UTC. The hashes are keyed and wrapped: a
// birth holds nothing that identifies a person, to anybody without the epoch's
// key.
const birthV1 = 0x01

type birthType uint8

const (
	birthPerson    birthType = 1
	birthAnonymous birthType = 2
	birthClaimed   birthType = 3
	birthFull      birthType = 4
)

// ErrBirth: bytes that are not a birth.
var ErrBirth = errors.New("malformed subject birth")

var birthLen = [...]int{
	birthPerson:    2 + 16 + 2*wrappedLen,
	birthAnonymous: 2 + 16 + wrappedLen + 4 + 1,
	birthClaimed:   2 + 16 + wrappedLen + 4,
	birthFull:      2 + 4,
}

// birth is a decoded birth. Which fields count depends on the type.
type birth struct {
	typ    birthType
	id     ID      // key id, or the pseudonym of a claim
	key    wrapped // subject key
	inner  wrapped // blind-index hash
	day    uint32
	bucket uint8
}

// encode is the inverse of parseBirth.
func (b *birth) encode() []byte {
	out := make([]byte, 0, birthLen[b.typ])
	out = append(out, birthV1, byte(b.typ))
	if b.typ != birthFull {
		out = append(out, b.id[:]...)
	}
	switch b.typ {
	case birthPerson:
		out = append(append(out, b.key...), b.inner...)
	case birthAnonymous:
		out = append(out, b.key...)
		out = append(binary.BigEndian.AppendUint32(out, b.day), b.bucket)
	case birthClaimed:
		out = append(out, b.inner...)
		out = binary.BigEndian.AppendUint32(out, b.day)
	case birthFull:
		out = binary.BigEndian.AppendUint32(out, b.day)
	}
	return out
}

// parseBirth decodes without authenticating; the wrapped parts alias p.
func parseBirth(p []byte) (birth, error) {
	if len(p) < 2 {
		return birth{}, fmt.Errorf("%w: %d bytes", ErrBirth, len(p))
	}
	if p[0] != birthV1 {
		return birth{}, fmt.Errorf("subject birth: %w %#02x", ErrVersion, p[0])
	}
	b := birth{typ: birthType(p[1])}
	if int(b.typ) >= len(birthLen) || birthLen[b.typ] == 0 {
		return birth{}, fmt.Errorf("%w: unknown type %d", ErrBirth, b.typ)
	}
	if len(p) != birthLen[b.typ] {
		return birth{}, fmt.Errorf("%w: %d bytes instead of %d for type %d", ErrBirth, len(p), birthLen[b.typ], b.typ)
	}
	rest := p[2:]
	if b.typ == birthFull {
		b.day = binary.BigEndian.Uint32(rest)
		return b, nil
	}
	b.id, rest = ID(rest[:16]), rest[16:]
	first, err := parseWrapped(rest[:wrappedLen])
	if err != nil {
		return birth{}, fmt.Errorf("%w: %w", ErrBirth, err)
	}
	rest = rest[wrappedLen:]
	switch b.typ {
	case birthPerson:
		b.key = first
		if b.inner, err = parseWrapped(rest); err != nil {
			return birth{}, fmt.Errorf("%w: %w", ErrBirth, err)
		}
		if b.key.epoch() != b.inner.epoch() {
			return birth{}, fmt.Errorf("%w: wrapped in epochs %d and %d", ErrBirth, b.key.epoch(), b.inner.epoch())
		}
	case birthAnonymous:
		b.key, b.day, b.bucket = first, binary.BigEndian.Uint32(rest), rest[4]
	case birthClaimed:
		b.inner, b.day = first, binary.BigEndian.Uint32(rest)
	}
	return b, nil
}
