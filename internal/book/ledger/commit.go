package ledger

import (
	"crypto/sha256"
	"encoding"
	"encoding/binary"
	"hash"

	"golang.org/x/mod/sumdb/tlog"
)

// Entry types: the first byte of what the tree hashes.
const (
	entryRecord   = 0x01
	entryManifest = 0x02
)

// Labels of the derivations; they are part of the format.
const (
	labelCommit   = "gatebook/v1/commit"
	labelRecord   = "gatebook/v1/record"
	labelManifest = "gatebook/v1/manifest"
	labelSeal     = "gatebook/v1/seal"
)

// maxOrigin bounds the origin line, so that derivations fit stack buffers.
const maxOrigin = 255

// The pads of HMAC, eight bytes of each.
const (
	innerPad = 0x3636363636363636
	outerPad = 0x5c5c5c5c5c5c5c5c
)

// hmac32 is HMAC-SHA256 (RFC 2104) with a 32-byte key over msg, where buf has
// 64 spare bytes in front of msg: buf[:64] is overwritten with the padded key.
// Written out because crypto/hmac allocates and a record needs two of them.
func hmac32(key *[32]byte, buf []byte) [32]byte {
	var outer [96]byte
	for i := 0; i < 32; i += 8 {
		k := binary.LittleEndian.Uint64(key[i:])
		binary.LittleEndian.PutUint64(buf[i:], k^innerPad)
		binary.LittleEndian.PutUint64(outer[i:], k^outerPad)
	}
	for i := 32; i < 64; i += 8 {
		binary.LittleEndian.PutUint64(buf[i:], innerPad)
		binary.LittleEndian.PutUint64(outer[i:], outerPad)
	}
	inner := sha256.Sum256(buf)
	copy(outer[64:], inner[:])
	return sha256.Sum256(outer[:])
}

// CommitKey is k_i: HKDF-Expand-SHA256(subject key, label || origin || index,
// 32), RFC 5869 section 2.3 with a single block. Handing out one k_i opens one
// record and no other.
func CommitKey(subject *[32]byte, origin string, index uint64) [32]byte {
	var b [64 + len(labelCommit) + maxOrigin + 8 + 1]byte
	n := 64
	n += copy(b[n:], labelCommit)
	n += copy(b[n:], origin)
	binary.BigEndian.PutUint64(b[n:], index)
	b[n+8] = 0x01
	return hmac32(subject, b[:n+9])
}

// PersonalHash is P_i: HMAC-SHA256(k_i, personal). scratch is grown as needed
// and returned, so that a caller in a loop does not allocate.
func PersonalHash(k *[32]byte, personal, scratch []byte) (p [32]byte, _ []byte) {
	var pad [64]byte
	scratch = append(append(scratch[:0], pad[:]...), personal...)
	return hmac32(k, scratch), scratch
}

// Commitment is C_i: SHA256(label || SHA256(frame) || P_i).
func Commitment(frameHash, personalHash *[32]byte) [32]byte {
	var b [len(labelRecord) + 64]byte
	n := copy(b[:], labelRecord)
	n += copy(b[n:], frameHash[:])
	copy(b[n:], personalHash[:])
	return sha256.Sum256(b[:])
}

// commitRecord is the commitment of one record at one place of one log.
func commitRecord(subject *[32]byte, origin string, index uint64, frame, personal, scratch []byte) ([32]byte, []byte) {
	k := CommitKey(subject, origin, index)
	p, scratch := PersonalHash(&k, personal, scratch)
	fh := sha256.Sum256(frame)
	return Commitment(&fh, &p), scratch
}

// committer computes the commitments of records of one log, one after the other,
// as commitRecord does. It belongs to one goroutine.
type committer struct {
	origin string
	h      hash.Hash
	buf    [32 + 9]byte
	pad    [64]byte
}

// subjectState is the key of a subject and the states of HMAC-SHA256 behind what
// is the same for all of a log's records about the subject.
type subjectState struct {
	key          [32]byte
	inner, outer []byte // nil until they are asked for
}

func newCommitter(origin string) *committer {
	return &committer{origin: origin, h: sha256.New()}
}

// padded begins a hash with one of the pads of HMAC.
func (c *committer) padded(key *[32]byte, pad uint64) {
	for i := 0; i < 32; i += 8 {
		binary.LittleEndian.PutUint64(c.pad[i:], binary.LittleEndian.Uint64(key[i:])^pad)
	}
	for i := 32; i < 64; i += 8 {
		binary.LittleEndian.PutUint64(c.pad[i:], pad)
	}
	c.h.Reset()
	c.h.Write(c.pad[:])
}

// state gives the state of the hash, appended to b.
func (c *committer) state(b []byte) []byte {
	b, err := c.h.(encoding.BinaryAppender).AppendBinary(b)
	if err != nil {
		panic("ledger: SHA-256 does not tell its state: " + err.Error())
	}
	return b
}

func (c *committer) restore(state []byte) {
	if err := c.h.(encoding.BinaryUnmarshaler).UnmarshalBinary(state); err != nil {
		panic("ledger: SHA-256 does not take its own state: " + err.Error())
	}
}

// key is CommitKey, left in c.buf[:32].
func (c *committer) key(s *subjectState, index uint64) {
	if s.inner == nil {
		c.padded(&s.key, innerPad)
		c.h.Write(append(append(make([]byte, 0, len(labelCommit)+maxOrigin), labelCommit...), c.origin...))
		states := c.state(make([]byte, 0, 256))
		n := len(states)
		c.padded(&s.key, outerPad)
		states = c.state(states)
		s.inner, s.outer = states[:n:n], states[n:]
	}
	c.restore(s.inner)
	at := c.buf[32:]
	binary.BigEndian.PutUint64(at, index)
	at[8] = 0x01
	c.h.Write(at)
	c.h.Sum(c.buf[:0])
	c.restore(s.outer)
	c.h.Write(c.buf[:32])
	c.h.Sum(c.buf[:0])
}

// record is commitRecord for the subject whose key s holds.
func (c *committer) record(s *subjectState, index uint64, frame, personal []byte) [32]byte {
	c.key(s, index)
	k := [32]byte(c.buf[:32])
	c.padded(&k, innerPad)
	c.h.Write(personal)
	c.h.Sum(c.buf[:0])
	c.padded(&k, outerPad)
	c.h.Write(c.buf[:32])
	c.h.Sum(c.buf[:0])
	fh := sha256.Sum256(frame)
	return Commitment(&fh, (*[32]byte)(c.buf[:32]))
}

// manifestHash is what the entry of a manifest holds.
func manifestHash(manifest []byte) [32]byte {
	b := make([]byte, 0, len(labelManifest)+len(manifest))
	return sha256.Sum256(append(append(b, labelManifest...), manifest...))
}

// entry is one leaf of the tree before hashing: a type and 32 bytes.
type entry struct {
	typ  byte
	hash [32]byte
}

// leafHash is the RFC 6962 section 2.1 hash of the entry.
func (e *entry) leafHash() tlog.Hash {
	var b [34]byte
	b[0] = 0x00
	b[1] = e.typ
	copy(b[2:], e.hash[:])
	return sha256.Sum256(b[:])
}

// nodeHash is the RFC 6962 section 2.1 hash of an inner node. It does the same
// as tlog.NodeHash without its allocation.
func nodeHash(left, right tlog.Hash) tlog.Hash {
	var b [65]byte
	b[0] = 0x01
	copy(b[1:], left[:])
	copy(b[33:], right[:])
	return sha256.Sum256(b[:])
}

// RecordLeaf is the RFC 6962 leaf hash of a record's entry, for checking
// proofs.
func RecordLeaf(commitment [32]byte) tlog.Hash {
	e := entry{entryRecord, commitment}
	return e.leafHash()
}
