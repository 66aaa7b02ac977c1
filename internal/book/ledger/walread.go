package ledger

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"sync/atomic"
	"time"

	"github.com/gatebook/gatebook/internal/book/store"
)

// walFile is one open WAL file and what is known of it. f, header, hdrSize and
// cipher never change; batches and entries grow under Ledger.mu.
type walFile struct {
	name    string
	f       store.File
	header  walHeader
	hdrSize int64
	cipher  walCipher
	batches []walBatch
	entries []entry   // leaf i of the log is entries[i-header.first]
	births  [][]byte  // subjects born in this file
	end     int64     // behind the last good batch
	seq     uint64    // of the last good batch
	at      batchInfo // being replayed
	lastTag [tagSize]byte
	busy    bool         // holds a record that is not housekeeping
	synced  uint64       // highest sequence known to be on the disk
	alloc   atomic.Int64 // bytes zero-written ahead; grown under Ledger.growMu
	created time.Time
	viewed  atomic.Int32   // views that read the file; grows only while it is in Ledger.state
	sealing *sealedSegment // under Ledger.sealMu; the segment that holds it, once a leaf binds that
}

// walBatch says where the leaves first to first+count-1 of the log stand.
type walBatch struct {
	batchInfo
	first uint64
	count uint32
}

func (w *walFile) count() uint64 { return uint64(len(w.entries)) }
func (w *walFile) next() uint64  { return w.header.first + w.count() }

// firstTag stands in for the tag of the batch before the first one, which
// binds the first batch to its header.
func firstTag(header []byte) (t [tagSize]byte) {
	sum := sha256.Sum256(header)
	copy(t[:], sum[:])
	return t
}

// openWAL reads the header and the key of a file. With a *KeyError the file is
// returned all the same, without its cipher.
func openWAL(fsys store.FS, name string, keys Keys) (*walFile, error) {
	f, err := fsys.Open(name)
	if err != nil {
		return nil, err
	}
	w, err := readWALHeader(f, name, keys)
	if err != nil && w == nil {
		f.Close()
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	return w, err
}

func readWALHeader(f store.File, name string, keys Keys) (*walFile, error) {
	b := make([]byte, walHeaderMin+maxOrigin)
	n, err := f.ReadAt(b, 0)
	if err != nil && err != io.EOF {
		return nil, err
	}
	h, size, err := decodeWALHeader(b[:n])
	if errors.Is(err, errBlankHeader) {
		err = checkBlank(f)
	}
	if err != nil {
		return nil, err
	}
	w := &walFile{name: name, f: f, header: h, hdrSize: int64(size), lastTag: firstTag(b[:size]), end: int64(size)}
	key, err := keys.FileKey(UseWAL, h.keyID)
	if err != nil {
		return w, &KeyError{What: "WAL " + name, Err: err}
	}
	w.cipher, err = newWALCipher(key)
	return w, err
}

// checkBlank tells a file that never came to be, which is zeros to its end,
// from one that lost its header.
func checkBlank(f store.File) error {
	size, err := f.Size()
	if err != nil {
		return err
	}
	piece := make([]byte, min(size, 256<<10))
	for at := int64(0); at < size; at += int64(len(piece)) {
		piece = piece[:min(int64(len(piece)), size-at)]
		if err := store.ReadFull(f, piece, at); err != nil {
			return err
		}
		if len(bytes.Trim(piece, "\x00")) > 0 {
			return errors.New("the header is gone although the file holds data")
		}
	}
	return errBlankHeader
}

// readBatch reads and decrypts one batch again from the file; items are
// appended to dst[:0]. It is bound to the tag that stands before it.
func (w *walFile) readBatch(b batchInfo, read *walWindow, dst []byte) ([]byte, error) {
	n := int(batchHead + b.length)
	var prev [tagSize]byte
	if b.off == w.hdrSize {
		head, err := read.at(0, int(w.hdrSize))
		if err != nil {
			return nil, err
		}
		prev = firstTag(head)
		raw, err := read.at(b.off, n)
		if err != nil {
			return nil, err
		}
		return w.cipher.openWith(&read.ad, dst[:0], raw, &prev)
	}
	raw, err := read.at(b.off-tagSize, tagSize+n)
	if err != nil {
		return nil, err
	}
	copy(prev[:], raw)
	return w.cipher.openWith(&read.ad, dst[:0], raw[tagSize:], &prev)
}

// window reads the batches of leaves below `to`.
func (w *walFile) window(batches []walBatch, to uint64) walWindow {
	read := walWindow{f: w.f, size: w.hdrSize}
	for n := len(batches); n > 0; n-- {
		if b := &batches[n-1]; b.first < to {
			read.size = b.end()
			break
		}
	}
	return read
}

// replayer receives the items of a file in order.
type replayer interface {
	item(w *walFile, it *item) error
}

// replay reads every good batch from the start of the file, hands its items
// out and fills w. It stops at the first batch that is not good and returns
// why, with what lies beyond judged by scanning on.
func (w *walFile) replay(r replayer) (tail walTail, err error) {
	size, err := w.f.Size()
	if err != nil {
		return tail, err
	}
	read := walWindow{f: w.f, size: size}
	var items []byte
	var ad associatedData
	prev := w.lastTag
	for {
		tail = walTail{off: w.end, seq: w.seq + 1, size: size}
		if w.end+batchHead > size {
			break
		}
		head, err := read.at(w.end, batchHead)
		if err != nil {
			return tail, err
		}
		info := decodeBatchHead(head)
		info.off = w.end
		tail.short = info.seq == w.seq+1 && info.length <= maxBatch && info.end() > size
		if !plausible(info, size) || info.seq != w.seq+1 {
			break
		}
		raw, err := read.at(info.off, batchHead+int(info.length))
		if err != nil {
			return tail, err
		}
		items, err = w.cipher.openWith(&ad, items[:0], raw, &prev)
		if err != nil {
			break
		}
		if err := w.take(info, items, r); err != nil {
			return tail, err
		}
		copy(prev[:], raw[len(raw)-tagSize:])
		w.lastTag = prev
	}
	return tail, w.scanOn(&tail)
}

// walWindow reads a file from the front to the back in pieces, so that small
// batches do not cost a system call each and no call takes long.
type walWindow struct {
	f    store.File
	size int64 // how far the file is read
	buf  []byte
	off  int64          // of buf in the file
	ad   associatedData // of the batch being opened
}

const walPiece = 64 << 10

// at returns the n bytes at off, good until the next call.
func (r *walWindow) at(off int64, n int) ([]byte, error) {
	if at := off - r.off; at >= 0 && at+int64(n) <= int64(len(r.buf)) {
		return r.buf[at : at+int64(n)], nil
	}
	if off+int64(n) > r.size {
		return nil, io.ErrUnexpectedEOF
	}
	want := int(min(int64(max(n, walPiece)), r.size-off))
	if cap(r.buf) < want {
		r.buf = make([]byte, want)
	}
	r.buf, r.off = r.buf[:want], off
	if err := store.ReadFull(r.f, r.buf, off); err != nil {
		r.buf = r.buf[:0]
		return nil, err
	}
	return r.buf[:n], nil
}

// again hands out the items of a complete file once more, from the disk, and
// demands the leaves that memory holds. It calls yield between pieces of work.
func (w *walFile) again(yield func(), fn func(*item) error) error {
	read := walWindow{f: w.f, size: w.end}
	head, err := read.at(0, int(w.hdrSize))
	if err != nil {
		return err
	}
	prev, off, n, work := firstTag(head), w.hdrSize, 0, 0
	var items []byte
	var ad associatedData
	var it item // both for all batches: they would be made anew for each
	for seq := uint64(1); off < w.end; seq++ {
		if head, err = read.at(off, batchHead); err != nil {
			return err
		}
		info := decodeBatchHead(head)
		info.off = off
		if info.seq != seq || !plausible(info, w.end) {
			return w.differs(n)
		}
		raw, err := read.at(off, batchHead+int(info.length))
		if err != nil {
			return err
		}
		if items, err = w.cipher.openWith(&ad, items[:0], raw, &prev); err != nil {
			return w.differs(n)
		}
		copy(prev[:], raw[len(raw)-tagSize:])
		off = info.end()
		for rest := items; len(rest) > 0; {
			before := len(rest)
			if rest, err = it.next(rest); err != nil {
				return w.differs(n)
			}
			if work += before - len(rest); work > workPiece {
				work = 0
				yield()
			}
			if leaf, ok := it.leaf(); ok {
				if n == len(w.entries) || leaf != w.entries[n] || it.leafIndex() != w.header.first+uint64(n) {
					return w.differs(n)
				}
				n++
			}
			if err := fn(&it); err != nil {
				return err
			}
		}
	}
	if n != len(w.entries) {
		return w.differs(n)
	}
	return nil
}

// workPiece is how many bytes of records are worked on between two yields: at
// the speed of sealing a small part of a slice.
const workPiece = 8 << 10

func (w *walFile) differs(n int) error {
	return fmt.Errorf("%s holds %d leaves on the disk that are the %d in memory, and then others", w.name, n, w.count())
}

// take accepts one decrypted batch.
func (w *walFile) take(info batchInfo, items []byte, r replayer) error {
	b := walBatch{batchInfo: info, first: w.next()}
	w.at = info
	var it item
	for len(items) > 0 {
		rest, err := it.next(items)
		if err != nil {
			return &Damage{Kind: Edited, File: w.name, First: b.first, Last: b.first, Detail: err.Error()}
		}
		items = rest
		if leaf, ok := it.leaf(); ok {
			if it.leafIndex() != w.next() {
				return &Damage{Kind: Reordered, File: w.name, First: w.next(), Last: it.leafIndex(), Detail: "record stands at another index than it names"}
			}
			w.entries = append(w.entries, leaf)
			b.count++
		}
		if it.typ == itemSubject {
			w.births = append(w.births, bytes.Clone(it.data))
		}
		if err := r.item(w, &it); err != nil {
			return err
		}
	}
	if b.count > 0 {
		w.batches = append(w.batches, b)
	}
	w.end, w.seq = info.end(), info.seq
	return nil
}

// leaf returns the tree entry that an item makes, if it makes one.
func (it *item) leaf() (entry, bool) {
	switch {
	case it.typ == itemRecord:
		return entry{entryRecord, it.commit}, true
	case it.typ == itemMark && it.kind == markManifest:
		return entry{entryManifest, manifestHash(it.data)}, true
	}
	return entry{}, false
}

func (it *item) leafIndex() uint64 {
	if it.typ == itemRecord {
		return it.index
	}
	return it.size
}

// plausible tells whether a batch head could be one, before any decryption.
func plausible(b batchInfo, size int64) bool {
	return b.length >= tagSize && b.length <= maxBatch && b.end() <= size && b.synced < b.seq
}

// walTail describes where a replay ended.
type walTail struct {
	off     int64  // of the first batch that is not good
	seq     uint64 // which it should have had
	size    int64  // of the file
	junk    bool   // something other than zeros follows
	short   bool   // the file ends within that batch
	later   uint64 // highest sequence of a good batch found beyond, 0 if none
	known   uint64 // highest `synced` found in those
	planted bool   // more places look like batches than a torn tail has

	laterFirst uint64 // index of the first leaf found there
}

// lost tells whether batches are missing that were known to be on the disk:
// then this is no torn tail but damage.
func (t walTail) lost() bool { return t.known >= t.seq || t.planted }

// scanBudget bounds the bytes that scanning on tries to decrypt in vain. A torn
// tail has a few plausible places by chance; a tail that goes on for longer was
// made to look like batches.
const scanBudget = 256 << 20

// scanOn looks for good batches behind the first bad one. A batch is bound to
// the 16 bytes before it, so it can be recognised at any offset.
func (w *walFile) scanOn(t *walTail) error {
	rest := make([]byte, t.size-t.off)
	if err := store.ReadFull(w.f, rest, t.off); err != nil && len(rest) > 0 {
		return err
	}
	if len(bytes.Trim(rest, "\x00")) == 0 {
		return nil
	}
	t.junk = true
	const reach = 1 << 20
	var items []byte
	tried := int64(0)
	for o := 1; o+batchHead+tagSize <= len(rest); o++ {
		seq := binary.BigEndian.Uint64(rest[o+4:])
		if seq < t.seq || seq > t.seq+reach {
			continue
		}
		info := decodeBatchHead(rest[o:])
		info.off = int64(o)
		if !plausible(info, int64(len(rest))) || o < tagSize {
			continue
		}
		if tried += int64(info.length); tried > scanBudget {
			t.planted = true
			return nil
		}
		var prev [tagSize]byte
		copy(prev[:], rest[o-tagSize:])
		var err error
		items, err = w.cipher.open(items[:0], rest[o:info.end()], &prev)
		if err != nil {
			continue
		}
		t.later = max(t.later, info.seq)
		if t.laterFirst == 0 {
			t.laterFirst = firstLeaf(items)
		}
		tried -= int64(info.length) // what opens is no trick
		t.known = max(t.known, info.synced)
		o = int(info.end()) - 1
	}
	return nil
}

// firstLeaf returns the index of the first leaf in a batch, 0 if it has none.
func firstLeaf(items []byte) uint64 {
	for len(items) > 0 {
		it, rest, err := nextItem(items)
		if err != nil {
			return 0
		}
		if _, ok := it.leaf(); ok {
			return it.leafIndex()
		}
		items = rest
	}
	return 0
}

var errNotWAL = errors.New("not the name of a WAL file")

func walName(serial uint64) string { return fmt.Sprintf("wal/%016x.wal", serial) }

func parseWALName(base string) (uint64, error) {
	var serial uint64
	if _, err := fmt.Sscanf(base, "%016x.wal", &serial); err != nil || walName(serial) != "wal/"+base {
		return 0, errNotWAL
	}
	return serial, nil
}
