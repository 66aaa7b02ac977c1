package book

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/hkdf"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"strings"
	"testing"

	"github.com/klauspost/compress/zstd"

	"github.com/gatebook/gatebook/internal/book/keys"
)

// region is a run of bytes in a file of the book, and what must follow when one
// of them is damaged.
type region struct {
	from, to    int
	kind        string
	first, last uint64 // leaves that one finding must cover
	exact       bool   // and no others
	// harmless says why verification may find nothing; what it then opens must
	// be what was there before, all of it or, with torn, up to where a power
	// cut could have ended it.
	harmless string
	torn     bool
}

// layout finds the regions of the book's files from the bytes alone and the
// keys, with no code of the ledger: docs/format.md is what it follows.
type layout struct {
	t      testing.TB
	ring   *keys.Ring
	origin string
	signed uint64 // leaves that the checkpoint covers
	end    uint64 // leaves there are
}

func (l *layout) must(err error) {
	l.t.Helper()
	if err != nil {
		l.t.Fatal(err)
	}
}

func (l *layout) key(kind keys.Kind, id []byte) []byte {
	l.t.Helper()
	k, err := l.ring.Key(kind, keys.ID(id))
	l.must(err)
	return k[:]
}

func gcm(t testing.TB, key []byte) cipher.AEAD {
	t.Helper()
	block, err := aes.NewCipher(key)
	if err != nil {
		t.Fatal(err)
	}
	a, err := cipher.NewGCM(block)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// wal cuts a WAL file into header, batches and zeros.
func (l *layout) wal(name string, b []byte) []region {
	n := 80 + int(binary.BigEndian.Uint16(b[78:]))
	first := binary.BigEndian.Uint64(b[14:])
	if first == 1<<64-1 {
		spare := "the file was prepared and holds nothing"
		return []region{{from: 0, to: len(b), kind: "spare WAL file", last: 1<<64 - 1, harmless: spare}}
	}
	aead := gcm(l.t, l.key(keys.KindWAL, b[30:46]))
	sum := sha256.Sum256(b[:n])
	prev, next, at := sum[:16], first, n
	synced := l.lastSynced(b, n)
	out := []region{{from: 0, to: n, kind: "WAL header", first: next, last: next}}
	for at+32 < len(b) && binary.BigEndian.Uint32(b[at:]) != 0 {
		length := int(binary.BigEndian.Uint32(b[at:]))
		end := at + 32 + length
		items, err := aead.Open(nil, b[at+20:at+32], b[at+32:end], append(append([]byte(nil), b[at:at+20]...), prev...))
		if err != nil {
			l.t.Fatalf("%s: batch at %d: %v", name, at, err)
		}
		leaves := countLeaves(items)
		r := region{from: at, to: end, kind: "WAL batch", first: next, last: next}
		if leaves > 0 {
			r.last = next + leaves - 1
		}
		if seq := binary.BigEndian.Uint64(b[at+4:]); next+leaves > l.signed && seq > synced || next >= l.signed && leaves == 0 && seq > synced {
			r.kind, r.torn = "WAL batch behind the checkpoint", true
			r.harmless = "no checkpoint covers it and no later batch says that it was on the disk: a power cut may leave it so"
		}
		out = append(out, r)
		prev, next, at = b[end-16:end], next+leaves, end
	}
	l.end = max(l.end, next)
	return append(out, region{from: at, to: len(b), kind: "WAL zeros", harmless: "space kept free behind the last batch", last: 1<<64 - 1})
}

// lastSynced is the highest sequence that a batch of the file calls synced.
func (l *layout) lastSynced(b []byte, at int) (synced uint64) {
	for at+32 < len(b) && binary.BigEndian.Uint32(b[at:]) != 0 {
		synced = max(synced, binary.BigEndian.Uint64(b[at+12:]))
		at += 32 + int(binary.BigEndian.Uint32(b[at:]))
	}
	return synced
}

// countLeaves counts records and manifests among a batch's items.
func countLeaves(items []byte) (n uint64) {
	for len(items) > 0 {
		size := int(binary.BigEndian.Uint32(items[1:]))
		if items[0] == 3 || items[0] == 5 && items[5] == 2 {
			n++
		}
		items = items[5+size:]
	}
	return n
}

// segment cuts a segment file into its sections.
func (l *layout) segment(b []byte) []region {
	first, count := binary.BigEndian.Uint64(b[6:]), binary.BigEndian.Uint64(b[14:])
	last := first + count - 1
	n := 76 + int(binary.BigEndian.Uint16(b[74:]))
	whole := func(kind string, from, to int) region {
		return region{from: from, to: to, kind: "segment " + kind, first: first, last: last}
	}
	footEnd := len(b) - 36
	footAt := footEnd - int(binary.BigEndian.Uint32(b[footEnd:]))
	foot := b[footAt:footEnd]
	foot = foot[3+40*int(binary.BigEndian.Uint16(foot[1:])):]
	personal, dirAt := int(binary.BigEndian.Uint64(foot)), int(binary.BigEndian.Uint64(foot[8:]))
	dir := foot[16:56]
	commits, others := int(binary.BigEndian.Uint64(foot[56:])), int(binary.BigEndian.Uint64(foot[64:]))
	out := []region{whole("header", 0, n), whole("columns", n, personal)}
	out = append(out, l.personal(b, personal, dirAt, int(binary.BigEndian.Uint32(dir[4:])), first, b[others:footAt])...)
	out = append(out, whole("directory", dirAt, commits))
	for i := range int(count) {
		index := first + uint64(i)
		out = append(out, region{from: commits + 32*i, to: commits + 32*i + 32, kind: "commitment", first: index, last: index, exact: true})
	}
	return append(out, whole("other entries", others, footAt), whole("footer", footAt, len(b)-32), whole("digest", len(b)-32, len(b)))
}

// personal finds the blocks of the subjects and whose records are in which.
func (l *layout) personal(b []byte, at, dirAt, dirLen int, first uint64, others []byte) (out []region) {
	raw := l.block(b, b[dirAt:dirAt+dirLen], l.key(keys.KindSegment, b[26:42]), 3, 0)
	take := func() uint64 {
		v, n := binary.Uvarint(raw)
		raw = raw[n:]
		return v
	}
	blocks := make([]region, take())
	for i := range blocks {
		id := raw[:16]
		raw = raw[16:]
		take() // length after unpacking
		size := int(take())
		raw = raw[32:]
		blocks[i] = region{from: at, to: at + size, kind: fmt.Sprintf("personal block of %x", id), first: 1<<64 - 1, exact: true}
		at += size
	}
	manifest := map[uint64]bool{}
	for i := first; len(others) > 0; {
		d, n := binary.Uvarint(others)
		i += d
		manifest[i] = true
		others = others[n+1:]
	}
	for index := first; len(raw) > 0; index++ {
		if manifest[index] {
			continue
		}
		r := &blocks[take()]
		r.first, r.last = min(r.first, index), max(r.last, index)
	}
	return blocks
}

// block opens a sealed block of a segment.
func (l *layout) block(file, sealed, key []byte, section byte, n uint32) []byte {
	size := int(binary.BigEndian.Uint16(file[74:]))
	info := append([]byte(nil), file[42:74]...)
	info = append(info, "gatebook/v1/seal"...)
	info = append(info, file[76:76+size]...)
	info = append(info, file[6:14]...)
	info = binary.BigEndian.AppendUint32(append(info, section), n)
	out, err := hkdf.Expand(sha256.New, key, string(info), 64)
	l.must(err)
	packed, err := gcm(l.t, out[:32]).Open(nil, make([]byte, 12), sealed, nil)
	l.must(err)
	if packed[0] == 0 {
		return packed[1:]
	}
	dec, err := zstd.NewReader(nil)
	l.must(err)
	defer dec.Close()
	raw, err := dec.DecodeAll(packed[1:], nil)
	l.must(err)
	return raw
}

// file cuts any file of the book.
func (l *layout) file(name string, b []byte) []region {
	any := region{from: 0, to: len(b), kind: name, last: 1<<64 - 1}
	switch {
	case name == foldName:
		any.harmless = "counts that no record has yet; each copy has a tag of its own, which recovery checks"
	case name == blindName:
		any.harmless = "counts that no gap record has yet; each slot has a tag, which recovery checks"
	case strings.HasPrefix(name, "wal/"):
		return l.wal(name, b)
	case strings.HasPrefix(name, "segments/"):
		return l.segment(b)
	case strings.HasPrefix(name, "manifests/"):
		var leaf uint64
		_, err := fmt.Sscanf(name, "manifests/%016x", &leaf)
		l.must(err)
		// Either its leaf or a record of the segment that it describes.
		any.kind, any.first, any.last = "manifest", binary.BigEndian.Uint64(b[1:]), leaf
	}
	return []region{any}
}
