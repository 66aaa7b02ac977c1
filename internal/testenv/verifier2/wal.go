package verifier2

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Items (section 6).
const (
	itemSubject = 1
	itemOpen    = 2
	itemRecord  = 3
	itemDrop    = 4
	itemMark    = 5

	markCheckpoint = 1
	markManifest   = 2
	markClosed     = 4

	maxPart = 65536
)

// walFile is one file of the WAL.
type walFile struct {
	name                    string
	b                       []byte
	header                  int // its length
	serial, first, replaces uint64
	keyID                   id
	origin                  string
	key                     cipher.AEAD // nil: not there

	items  []item
	leaves uint64
	bad    uint64 // sequence that the first bad batch should have had
	junk   bool   // what follows the good part is not zeros
	synced uint64 // highest found behind the bad batch
}

func (w *walFile) end() uint64 { return w.first + w.leaves }

// item is one decoded item; which fields count depends on its type.
type item struct {
	typ        byte
	body       []byte
	subject    id
	index      uint64
	commitment hash
	frame      []byte
	personal   []byte
	kind       byte
	number     uint64
	data       []byte
}

// openWALs reads the headers and sets aside what does not count.
func (v *verifier) openWALs(names []string) ([]*walFile, error) {
	replaced := map[uint64]bool{}
	var files []*walFile
	for _, name := range names {
		digits, ok := strings.CutSuffix(name, ".wal")
		serial, err := hex16(digits)
		if !ok || err != nil {
			return nil, fmt.Errorf("wal/%s: not a name of a WAL file", name)
		}
		b, err := os.ReadFile(filepath.Join(v.dir, "wal", name))
		if err != nil {
			return nil, err
		}
		if len(bytes.Trim(b, "\x00")) == 0 {
			continue
		}
		w := &walFile{name: name, b: b}
		if err := w.readHeader(); err != nil {
			return nil, fmt.Errorf("wal/%s: %w", name, err)
		}
		if w.serial != serial || w.origin != v.origin {
			return nil, fmt.Errorf("wal/%s: another file or log", name)
		}
		if w.first == 1<<64-1 {
			continue
		}
		if w.replaces != 0 {
			replaced[w.replaces] = true
		}
		if key, err := v.keys.file(keyWAL, w.keyID); err == nil {
			if w.key, err = newGCM(key[:]); err != nil {
				return nil, err
			}
		}
		files = append(files, w)
	}
	return slices.DeleteFunc(files, func(w *walFile) bool { return replaced[w.serial] }), nil
}

func newGCM(key []byte) (cipher.AEAD, error) {
	c, err := aes.NewCipher(key)
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(c)
}

var errForm = errors.New("not of the form that docs/format.md gives")

func (w *walFile) readHeader() error {
	r := reader{b: w.b}
	if r.u8() != 1 || string(r.take(5)) != "GBWAL" {
		return errForm
	}
	w.serial, w.first, w.replaces = r.u64(), r.u64(), r.u64()
	copy(w.keyID[:], r.take(16))
	r.take(32)
	n := int(r.u16())
	w.origin = string(r.take(n))
	w.header = len(w.b) - len(r.b)
	if r.bad || n == 0 || n > 255 {
		return errForm
	}
	return nil
}

// batch is one batch of a file as it lies there.
type batch struct {
	sequence, synced uint64
	head, sealed     []byte
}

// batchAt reads the batch at an offset, false if none can be there.
func batchAt(b []byte, at int) (out batch, ok bool) {
	if len(b)-at < 32 {
		return out, false
	}
	length := binary.BigEndian.Uint32(b[at:])
	if length < 16 || length > 33_554_432 || int(length) > len(b)-at-32 {
		return out, false
	}
	out.head, out.sealed = b[at:at+32], b[at+32:at+32+int(length)]
	out.sequence = binary.BigEndian.Uint64(out.head[4:])
	out.synced = binary.BigEndian.Uint64(out.head[12:])
	return out, out.synced < out.sequence
}

// open decrypts a batch that follows the tag prev.
func (w *walFile) open(b batch, prev []byte) ([]byte, error) {
	return w.key.Open(nil, b.head[20:32], b.sealed, slices.Concat(b.head[:20], prev))
}

// replay reads the good part of the file and judges the rest.
func (w *walFile) replay() error {
	sum := sha256.Sum256(w.b[:w.header])
	prev, at := sum[:16], w.header
	for w.bad = 1; ; w.bad++ {
		b, ok := batchAt(w.b, at)
		if !ok || b.sequence != w.bad {
			break
		}
		plain, err := w.open(b, prev)
		if err != nil {
			break
		}
		if err := w.take(plain); err != nil {
			return fmt.Errorf("wal/%s: batch %d: %w", w.name, w.bad, err)
		}
		at += 32 + len(b.sealed)
		prev = w.b[at-16 : at]
	}
	w.scanOn(w.b[at:])
	return nil
}

// tornHeader tells whether the file's beginning was interrupted: nothing in it
// is good, and nothing says that anything in it was on the disk.
func (w *walFile) tornHeader() (bool, error) {
	if w.key == nil {
		return false, nil
	}
	again := *w
	err := again.replay()
	return again.bad == 1 && again.synced == 0, err
}

// scanOn looks for authentic batches in the rest.
func (w *walFile) scanOn(rest []byte) {
	w.junk = len(bytes.Trim(rest, "\x00")) > 0
	if !w.junk {
		return
	}
	tried := 0
	for o := 16; o < len(rest); o++ {
		b, ok := batchAt(rest, o)
		if !ok || b.sequence < w.bad || b.sequence > w.bad+1<<20 {
			continue
		}
		if tried += len(b.sealed); tried > 1<<28 {
			w.synced = math.MaxUint64 // nothing behind this counts
			return
		}
		if _, err := w.open(b, rest[o-16:o]); err == nil {
			tried -= len(b.sealed)
			w.synced = max(w.synced, b.synced)
			o += 32 + len(b.sealed) - 1
		}
	}
}

// take decodes the items of an authentic batch.
func (w *walFile) take(plain []byte) error {
	r := reader{b: plain}
	for len(r.b) > 0 {
		it := item{typ: r.u8()}
		it.body = r.take(int(r.u32()))
		if r.bad {
			return errForm
		}
		if err := it.decode(); err != nil {
			return err
		}
		isLeaf := it.typ == itemRecord
		index := it.index
		if it.typ == itemMark && it.kind == markManifest {
			isLeaf, index = true, it.number
		}
		if isLeaf {
			if index != w.end() {
				return fmt.Errorf("leaf %d stands where %d should", index, w.end())
			}
			w.leaves++
		}
		w.items = append(w.items, it)
	}
	return nil
}

func (it *item) decode() error {
	r := reader{b: it.body}
	switch it.typ {
	case itemSubject:
		r.take(16)
		if len(r.b) > maxPart {
			return errForm
		}
	case itemOpen:
		r.take(16 + 8 + 16)
		it.parts(&r)
	case itemRecord:
		it.index = r.u64()
		if r.u8() > 1 {
			return errForm
		}
		r.take(16)
		copy(it.subject[:], r.take(16))
		copy(it.commitment[:], r.take(32))
		it.parts(&r)
	case itemDrop:
		if len(it.body) != 16 {
			return errForm
		}
	case itemMark:
		it.kind, it.number = r.u8(), r.u64()
		it.data = r.b
		if it.kind < markCheckpoint || it.kind > markClosed {
			return errForm
		}
	default:
		return errForm
	}
	if r.bad {
		return errForm
	}
	return nil
}

func (it *item) parts(r *reader) {
	it.frame = r.take(int(r.u32()))
	it.personal = r.b
	r.bad = r.bad || len(it.frame) > maxPart || len(it.personal) > maxPart
}

// reader takes pieces off the front of bytes. After the first that is not
// there it gives zeros, and bad says so.
type reader struct {
	b   []byte
	bad bool
}

func (r *reader) take(n int) []byte {
	if n < 0 || n > len(r.b) {
		r.bad, r.b = true, nil
		return nil
	}
	out := r.b[:n:n]
	r.b = r.b[n:]
	return out
}

func (r *reader) number(n int) (v uint64) {
	for _, c := range r.take(n) {
		v = v<<8 | uint64(c)
	}
	return v
}

func (r *reader) u8() byte    { return byte(r.number(1)) }
func (r *reader) u16() uint16 { return uint16(r.number(2)) }
func (r *reader) u32() uint32 { return uint32(r.number(4)) }
func (r *reader) u64() uint64 { return r.number(8) }

func (r *reader) uvarint() uint64 {
	v, n := binary.Uvarint(r.b)
	if n <= 0 {
		r.bad, r.b = true, nil
		return 0
	}
	r.b = r.b[n:]
	return v
}

// count is a uvarint that cannot be more than the bytes left.
func (r *reader) count() int {
	v := r.uvarint()
	if v > uint64(len(r.b)) {
		r.bad, r.b = true, nil
		return 0
	}
	return int(v)
}
