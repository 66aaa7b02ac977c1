package ledger

import (
	"crypto/aes"
	"crypto/cipher"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
)

// The WAL's bytes (docs/format.md, "WAL"). A file is a header and batches; the
// space behind the last batch is zero.
const (
	walVersion    = 1
	walMagic      = "GBWAL"
	walHeaderMin  = 1 + 5 + 8 + 8 + 8 + 16 + 32 + 2
	batchHead     = 4 + 8 + 8 + 12 // length, sequence, synced, nonce
	tagSize       = 16
	maxBatch      = 32 << 20
	itemHead      = 1 + 4
	maxPart       = 64 << 10 // a frame, a personal part, a birth
	walRecordHead = 8 + 1 + 16 + 16 + 32 + 4
	walOpenHead   = 16 + 8 + 16 + 4
)

// Item types within a batch.
const (
	itemSubject = 0x01
	itemOpen    = 0x02
	itemRecord  = 0x03
	itemDrop    = 0x04
	itemMark    = 0x05
)

// Kinds of itemMark.
const (
	markCheckpoint = 0x01 // size, root: this checkpoint is on disk
	markManifest   = 0x02 // index, manifest bytes: the leaf of a sealed segment
	markHint       = 0x03 // bytes for the codec
	markClosed     = 0x04 // clean stop
)

// walHeader describes a WAL file. Replaces is the serial of the file whose
// surviving items this one took over at recovery, 0 if none.
type walHeader struct {
	serial, first, replaces uint64
	keyID                   [16]byte
	salt                    [32]byte
	origin                  string
}

func (h *walHeader) encode() []byte {
	b := make([]byte, 0, walHeaderMin+len(h.origin))
	b = append(b, walVersion)
	b = append(b, walMagic...)
	b = binary.BigEndian.AppendUint64(b, h.serial)
	b = binary.BigEndian.AppendUint64(b, h.first)
	b = binary.BigEndian.AppendUint64(b, h.replaces)
	b = append(b, h.keyID[:]...)
	b = append(b, h.salt[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.origin)))
	return append(b, h.origin...)
}

var errBlankHeader = errors.New("the header was never written")

func decodeWALHeader(b []byte) (h walHeader, size int, err error) {
	if len(b) == 0 || b[0] == 0 {
		return h, 0, errBlankHeader
	}
	if b[0] != walVersion {
		return h, 0, fmt.Errorf("WAL version %d is unknown to this release", b[0])
	}
	if len(b) < walHeaderMin || string(b[1:6]) != walMagic {
		return h, 0, errors.New("not a WAL header")
	}
	p := 6
	h.serial = binary.BigEndian.Uint64(b[p:])
	h.first = binary.BigEndian.Uint64(b[p+8:])
	h.replaces = binary.BigEndian.Uint64(b[p+16:])
	p += 24
	p += copy(h.keyID[:], b[p:p+16])
	p += copy(h.salt[:], b[p:p+32])
	n := int(binary.BigEndian.Uint16(b[p:]))
	p += 2
	if n == 0 || n > maxOrigin || len(b) < p+n {
		return h, 0, errors.New("WAL header with an impossible origin length")
	}
	h.origin = string(b[p : p+n])
	return h, p + n, nil
}

// walCipher seals and opens batches of one file.
type walCipher struct{ aead cipher.AEAD }

func newWALCipher(key [32]byte) (walCipher, error) {
	block, err := aes.NewCipher(key[:])
	if err != nil {
		return walCipher{}, err
	}
	aead, err := cipher.NewGCM(block)
	return walCipher{aead}, err
}

// associated is what a batch is bound to besides its key: its place in the
// order of batches and what the batch before it was.
func associated(dst []byte, length uint32, seq, synced uint64, prev *[tagSize]byte) []byte {
	dst = binary.BigEndian.AppendUint32(dst[:0], length)
	dst = binary.BigEndian.AppendUint64(dst, seq)
	dst = binary.BigEndian.AppendUint64(dst, synced)
	return append(dst, prev[:]...)
}

// seal encrypts the items that stand in buf behind batchHead spare bytes and
// returns the whole batch, in buf's memory if that has room for the tag and the
// associated data behind it.
func (c walCipher) seal(buf []byte, seq, synced uint64, prev *[tagSize]byte) ([]byte, error) {
	length := uint32(len(buf) - batchHead + tagSize)
	binary.BigEndian.PutUint32(buf, length)
	binary.BigEndian.PutUint64(buf[4:], seq)
	binary.BigEndian.PutUint64(buf[12:], synced)
	nonce := buf[20:batchHead]
	if _, err := rand.Read(nonce); err != nil {
		return nil, err
	}
	buf = slices.Grow(buf, tagSize+len(associatedData{}))
	end := len(buf) + tagSize
	ad := associated(buf[end:end], length, seq, synced, prev)
	return c.aead.Seal(buf[:batchHead], nonce, buf[batchHead:], ad), nil
}

// batchInfo is what is known of one batch of a file.
type batchInfo struct {
	off    int64
	length uint32 // of the sealed items
	seq    uint64
	synced uint64
}

func (b batchInfo) end() int64 { return b.off + batchHead + int64(b.length) }

func decodeBatchHead(b []byte) batchInfo {
	return batchInfo{
		length: binary.BigEndian.Uint32(b),
		seq:    binary.BigEndian.Uint64(b[4:]),
		synced: binary.BigEndian.Uint64(b[12:]),
	}
}

var errBatch = errors.New("batch does not decrypt under its key at its place")

// open decrypts a whole batch; the items are appended to dst.
func (c walCipher) open(dst, batch []byte, prev *[tagSize]byte) ([]byte, error) {
	return c.openWith(new(associatedData), dst, batch, prev)
}

// associatedData is room for what associated makes. Who opens many batches keeps
// it, or each of them would take memory of its own.
type associatedData [20 + tagSize]byte

// openWith is open in the memory of ad.
func (c walCipher) openWith(ad *associatedData, dst, batch []byte, prev *[tagSize]byte) ([]byte, error) {
	if len(batch) < batchHead+tagSize {
		return nil, errBatch
	}
	info := decodeBatchHead(batch)
	if int64(len(batch)) != batchHead+int64(info.length) {
		return nil, errBatch
	}
	out, err := c.aead.Open(dst, batch[20:batchHead], batch[batchHead:], associated(ad[:], info.length, info.seq, info.synced, prev))
	if err != nil {
		return nil, errBatch
	}
	return out, nil
}

// item is one decoded item of a batch. Its slices point into the batch.
type item struct {
	typ      byte
	id       [16]byte // subject: key id; open, drop: mark; record: mark that it closes
	closes   bool
	subject  [16]byte
	index    uint64
	time     int64
	commit   [32]byte
	frame    []byte
	personal []byte
	kind     byte   // of a mark
	size     uint64 // mark: size of the checkpoint or index of the manifest
	data     []byte // subject: birth; mark: manifest, hint, root
}

// Appenders of items. The length of the body is patched in by closeItem.

func beginItem(b []byte, typ byte) ([]byte, int) {
	b = append(b, typ, 0, 0, 0, 0)
	return b, len(b)
}

func closeItem(b []byte, body int) []byte {
	binary.BigEndian.PutUint32(b[body-4:], uint32(len(b)-body))
	return b
}

func appendSubjectItem(b []byte, id [16]byte, birth []byte) []byte {
	b, at := beginItem(b, itemSubject)
	return closeItem(append(append(b, id[:]...), birth...), at)
}

func appendOpenItem(b []byte, mark, subject [16]byte, micros int64, frame, personal []byte) []byte {
	b, at := beginItem(b, itemOpen)
	b = append(b, mark[:]...)
	b = binary.BigEndian.AppendUint64(b, uint64(micros))
	b = append(b, subject[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(frame)))
	return closeItem(append(append(b, frame...), personal...), at)
}

func appendRecordItem(b []byte, index uint64, closes bool, mark, subject [16]byte, commit *[32]byte, frame, personal []byte) []byte {
	b, at := beginItem(b, itemRecord)
	b = binary.BigEndian.AppendUint64(b, index)
	var flag byte
	if closes {
		flag = 1
	}
	b = append(b, flag)
	b = append(b, mark[:]...)
	b = append(b, subject[:]...)
	b = append(b, commit[:]...)
	b = binary.BigEndian.AppendUint32(b, uint32(len(frame)))
	return closeItem(append(append(b, frame...), personal...), at)
}

func appendDropItem(b []byte, mark [16]byte) []byte {
	b, at := beginItem(b, itemDrop)
	return closeItem(append(b, mark[:]...), at)
}

func appendMarkItem(b []byte, kind byte, size uint64, data []byte) []byte {
	b, at := beginItem(b, itemMark)
	b = append(b, kind)
	b = binary.BigEndian.AppendUint64(b, size)
	return closeItem(append(b, data...), at)
}

var errItem = errors.New("batch holds an item that is not well-formed")

// nextItem decodes the first item of b and returns what follows it.
func nextItem(b []byte) (it item, rest []byte, err error) {
	rest, err = it.next(b)
	return it, rest, err
}

// next decodes the first item of b into it and returns what follows.
func (it *item) next(b []byte) (rest []byte, err error) {
	*it = item{}
	if len(b) < itemHead {
		return nil, errItem
	}
	n := binary.BigEndian.Uint32(b[1:])
	if uint64(n) > uint64(len(b)-itemHead) {
		return nil, errItem
	}
	it.typ = b[0]
	body := b[itemHead : itemHead+int(n)]
	if !it.decode(body) {
		return nil, errItem
	}
	return b[itemHead+int(n):], nil
}

func (it *item) decode(b []byte) bool {
	switch it.typ {
	case itemSubject:
		if len(b) < 16 || len(b)-16 > maxPart {
			return false
		}
		copy(it.id[:], b)
		it.data = b[16:]
	case itemOpen:
		if len(b) < walOpenHead {
			return false
		}
		copy(it.id[:], b)
		it.time = int64(binary.BigEndian.Uint64(b[16:]))
		copy(it.subject[:], b[24:])
		return it.parts(b[40:])
	case itemRecord:
		if len(b) < walRecordHead || b[8] > 1 {
			return false
		}
		it.index = binary.BigEndian.Uint64(b)
		it.closes = b[8] == 1
		copy(it.id[:], b[9:])
		copy(it.subject[:], b[25:])
		copy(it.commit[:], b[41:])
		return it.parts(b[73:])
	case itemDrop:
		if len(b) != 16 {
			return false
		}
		copy(it.id[:], b)
	case itemMark:
		if len(b) < 9 || b[0] < markCheckpoint || b[0] > markClosed {
			return false
		}
		it.kind, it.size, it.data = b[0], binary.BigEndian.Uint64(b[1:]), b[9:]
	default:
		return false
	}
	return true
}

// parts splits "length of the frame, frame, personal part".
func (it *item) parts(b []byte) bool {
	n := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(n) > uint64(len(b)) || n > maxPart || len(b)-int(n) > maxPart {
		return false
	}
	it.frame, it.personal = b[:n], b[n:]
	return true
}
