package record

import (
	"crypto/aes"
	"crypto/cipher"
	"encoding/binary"
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
)

// idLength is the length of an id as text.
const idLength = 36

// AppendText appends the 36 characters of the id, lower case (RFC 9562
// section 4).
func (id ID) AppendText(dst []byte) []byte {
	n := len(dst)
	dst = append(dst, "00000000-0000-0000-0000-000000000000"...)
	putID(dst[n:], id)
	return dst
}

// putID writes the text of an id over that of another one.
func putID(b []byte, id ID) {
	b = b[:idLength]
	p := 0
	for i, c := range id {
		if i == 4 || i == 6 || i == 8 || i == 10 {
			p++
		}
		b[p], b[p+1] = hexDigits[c>>4], hexDigits[c&15]
		p += 2
	}
}

// String gives the text form of the id.
func (id ID) String() string {
	var b [36]byte
	return string(id.AppendText(b[:0]))
}

// UnixMilli gives the time that the id carries, in milliseconds since the Unix
// epoch.
func (id ID) UnixMilli() int64 { return int64(binary.BigEndian.Uint64(id[:8]) >> 16) }

// ParseID reads the text form, 36 characters in lower case. It does not ask
// for a certain UUID version.
func ParseID(s string) (ID, error) {
	var b [36]byte
	if len(s) == len(b) {
		copy(b[:], s)
		if id, ok := parseID(b[:]); ok {
			return id, nil
		}
	}
	return ID{}, errors.New("record: not a request id: want a UUID of 36 characters in lower case, such as 01890a5d-ac96-774b-bcce-b302099a8057")
}

func parseID(b []byte) (id ID, ok bool) {
	if len(b) != 36 {
		return id, false
	}
	p := 0
	for i := range id {
		if p == 8 || p == 13 || p == 18 || p == 23 {
			if b[p] != '-' {
				return id, false
			}
			p++
		}
		hi, lo := unhex[b[p]], unhex[b[p+1]]
		if hi|lo > 15 {
			return id, false
		}
		id[i] = hi<<4 | lo
		p += 2
	}
	return id, true
}

// unhex gives the value of a lower-case hex digit, 255 for any other byte.
var unhex = func() (t [256]byte) {
	for i := range t {
		t[i] = 255
	}
	for i, c := range []byte(hexDigits) {
		t[c] = byte(i)
	}
	return t
}()

const (
	halfBits = 37 // the 74 free bits of a UUIDv7 as two halves
	halfMask = 1<<halfBits - 1

	// rounds: the best known way to tell five rounds from a random
	// permutation takes about 2^37 ids (Patarin, "Security of Random Feistel
	// Schemes with 5 or more Rounds", CRYPTO 2004).
	rounds = 5

	// maxCounter bounds the counters that Counter takes for its own. At a
	// million ids a second it lasts nine years; an id of another key passes
	// for one of ours with probability 2^-26, which costs space and no more.
	maxCounter = 1 << 48
)

// IDMaker makes request ids: UUIDv7 whose 74 free bits are a keyed permutation
// of a counter, so that they cannot be guessed outside, never repeat under one
// key, and need almost no space to whoever has the key. The permutation is a
// Feistel network over two halves of 37 bits with AES as round function. A
// maker is safe for concurrent use.
type IDMaker struct {
	key     []byte
	block   cipher.Block
	next    atomic.Uint64
	scratch sync.Pool // *aesScratch: blocks handed to AES, which escape
}

type aesScratch struct{ in, out [aes.BlockSize]byte }

// NewIDMaker makes a maker from a random key of 16 or 32 bytes that belongs to
// this start of the process: the counter begins at zero, so a key used for a
// second start would repeat its ids.
func NewIDMaker(key []byte) (*IDMaker, error) {
	if len(key) != 16 && len(key) != 32 {
		return nil, fmt.Errorf("record: id key of %d bytes: want 16 or 32", len(key))
	}
	block, err := aes.NewCipher(key)
	if err != nil {
		return nil, fmt.Errorf("record: id key: %w", err)
	}
	m := &IDMaker{key: append([]byte(nil), key...), block: block}
	m.scratch.New = func() any { return new(aesScratch) }
	return m, nil
}

// Next makes the id of an exchange that started at the given microseconds
// since the Unix epoch.
func (m *IDMaker) Next(startUS int64) ID {
	return m.At(startUS/1000, m.next.Add(1)-1)
}

// At gives the id for a time in milliseconds, clamped to 48 bits, and a
// counter.
func (m *IDMaker) At(ms int64, counter uint64) ID {
	s := m.scratch.Get().(*aesScratch)
	id := m.at(s, ms, counter)
	m.scratch.Put(s)
	return id
}

// at is At with a scratch of the caller's.
func (m *IDMaker) at(s *aesScratch, ms int64, counter uint64) ID {
	ms = min(max(ms, 0), 1<<48-1)
	l, r := m.permute(s, counter>>halfBits&halfMask, counter&halfMask, false)
	var id ID
	binary.BigEndian.PutUint64(id[:8], uint64(ms)<<16|7<<12|l>>25)
	binary.BigEndian.PutUint64(id[8:], 2<<62|l&(1<<25-1)<<halfBits|r)
	return id
}

// Counter inverts an id. It reports false for an id that this key did not
// make.
func (m *IDMaker) Counter(id ID) (uint64, bool) {
	s := m.scratch.Get().(*aesScratch)
	counter, ok := m.counter(s, id)
	m.scratch.Put(s)
	return counter, ok
}

// counter is Counter with a scratch of the caller's.
func (m *IDMaker) counter(s *aesScratch, id ID) (uint64, bool) {
	a, b := binary.BigEndian.Uint64(id[:8]), binary.BigEndian.Uint64(id[8:])
	if a>>12&15 != 7 || b>>62 != 2 {
		return 0, false
	}
	l, r := m.permute(s, a&0xfff<<25|b>>halfBits&(1<<25-1), b&halfMask, true)
	counter := l<<halfBits | r
	return counter, l < maxCounter>>halfBits
}

// permute runs the Feistel network or, backwards, its inverse.
func (m *IDMaker) permute(s *aesScratch, l, r uint64, back bool) (uint64, uint64) {
	for i := range rounds {
		if back {
			l, r = r^m.round(s, rounds-1-i, l), l
		} else {
			l, r = r, l^m.round(s, i, r)
		}
	}
	return l, r
}

// round is the round function: AES of round number and half, cut to 37 bits.
func (m *IDMaker) round(s *aesScratch, i int, half uint64) uint64 {
	s.in[0] = byte(i)
	binary.BigEndian.PutUint64(s.in[8:], half)
	m.block.Encrypt(s.out[:], s.in[:])
	return binary.BigEndian.Uint64(s.out[:8]) & halfMask
}
