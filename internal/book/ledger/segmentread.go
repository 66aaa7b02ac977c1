package ledger

import (
	"encoding/binary"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/gatebook/gatebook/internal/book/store"
)

// segmentFile is a parsed segment. It never changes.
type segmentFile struct {
	name    string
	b       []byte // the file without its SHA-256
	sum     [32]byte
	header  segmentHeader
	hdrSize int
	foot    segmentFooter
	entries []entry
}

// readSegment reads and parses a segment file; its bytes are checked against
// the SHA-256 at its end.
func readSegment(fsys store.FS, name string) (*segmentFile, error) {
	return readSegmentSlowly(fsys, name, nil)
}

// readSegmentSlowly is readSegment that calls yield, if not nil, between pieces
// of work.
func readSegmentSlowly(fsys store.FS, name string, yield func()) (*segmentFile, error) {
	read := store.ReadFile
	if yield != nil {
		read = func(fsys store.FS, name string, limit int64) ([]byte, error) {
			return store.ReadFileSlowly(fsys, name, limit, yield)
		}
	}
	b, err := read(fsys, name, maxSegment)
	if err != nil {
		return nil, err
	}
	s, err := parseSegment(b, yield)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	s.name = name
	return s, nil
}

// readCommitment reads row n of the commitment column and nothing else. The
// footer ends 36 bytes before the end of the file, with two offsets.
func readCommitment(fsys store.FS, name string, n uint64) (hash [32]byte, err error) {
	f, err := fsys.Open(name)
	if err != nil {
		return hash, err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return hash, err
	}
	const fromEnd = 32 + 4 + 16
	if size < fromEnd {
		return hash, errSegment
	}
	var at [8]byte
	if err := store.ReadFull(f, at[:], size-fromEnd); err != nil {
		return hash, err
	}
	column := binary.BigEndian.Uint64(at[:])
	if column > uint64(size) || n > maxSegmentRecords {
		return hash, errSegment
	}
	return hash, store.ReadFull(f, hash[:], int64(column+32*n))
}

var errSum = fmt.Errorf("%w: its SHA-256 differs from the one it ends with", errSegment)

func parseSegment(b []byte, yield func()) (*segmentFile, error) {
	s, err := parseDamaged(b, yield)
	if err == nil && [32]byte(b[len(b)-32:]) != s.sum {
		err = errSum
	}
	return s, err
}

// parseDamaged parses without regard to the SHA-256 at the end, so that what a
// damaged file still holds can be told from what it lost.
func parseDamaged(b []byte, yield func()) (*segmentFile, error) {
	if len(b) < 32 {
		return nil, errSegment
	}
	s := &segmentFile{b: b[:len(b)-32]}
	s.sum = sumSlowly(s.b, yield)
	var err error
	if s.header, s.hdrSize, err = decodeSegmentHeader(s.b); err != nil {
		return nil, err
	}
	footAt := 0
	if s.foot, footAt, err = decodeSegmentFooter(s.b); err != nil {
		return nil, err
	}
	if s.foot.personal < uint64(s.hdrSize) || s.foot.others-s.foot.commitments != 32*s.header.count {
		return nil, errSegment
	}
	s.entries = make([]entry, s.header.count)
	col := s.b[s.foot.commitments:s.foot.others]
	for i := range s.entries {
		if yield != nil && i%1024 == 0 {
			yield()
		}
		s.entries[i].typ = entryRecord
		copy(s.entries[i].hash[:], col[32*i:])
	}
	return s, s.markOthers(s.b[s.foot.others:footAt])
}

// markOthers applies the positions whose entry type is not 0x01.
func (s *segmentFile) markOthers(b []byte) error {
	at := uint64(0)
	for first := true; len(b) > 0; first = false {
		d, n := binary.Uvarint(b)
		if n <= 0 || n >= len(b) || (!first && d == 0) || d >= s.header.count {
			return errSegment
		}
		at += d
		typ := b[n]
		if at >= s.header.count || typ != entryManifest {
			return errSegment
		}
		s.entries[at].typ = typ
		b = b[n+1:]
	}
	return nil
}

func (s *segmentFile) first() uint64 { return s.header.first }
func (s *segmentFile) next() uint64  { return s.header.first + s.header.count }

// leafHashes returns the leaf hash of every entry.
func (s *segmentFile) leafHashes() []tlog.Hash {
	return leafHashes(s.entries, nil)
}

func leafHashes(entries []entry, yield func()) []tlog.Hash {
	out := make([]tlog.Hash, len(entries))
	for i := range entries {
		if yield != nil && i%256 == 0 {
			yield()
		}
		out[i] = entries[i].leafHash()
	}
	return out
}

// records counts entries of type record.
func (s *segmentFile) records() int {
	n := 0
	for i := range s.entries {
		if s.entries[i].typ == entryRecord {
			n++
		}
	}
	return n
}

// frames opens the column blocks and returns the frames of all records.
func (s *segmentFile) frames(key *[32]byte, codec Codec, u *unpacker) ([][]byte, error) {
	cols, err := s.columns(key, u)
	if err != nil {
		return nil, err
	}
	frames, err := codec.DecodeColumns(cols, s.records(), u.yield)
	if err == nil && len(frames) != s.records() {
		err = errSegment
	}
	return frames, err
}

// columns opens the column blocks.
func (s *segmentFile) columns(key *[32]byte, u *unpacker) ([][]byte, error) {
	cols := make([][]byte, len(s.foot.columns))
	at := uint64(s.hdrSize)
	for i, c := range s.foot.columns {
		end := at + uint64(c.sealed)
		if end > s.foot.personal {
			return nil, errSegment
		}
		var err error
		if cols[i], err = u.open(s.b[at:end], c, key, &s.header, sectionColumns, uint32(i)); err != nil {
			return nil, fmt.Errorf("column %d: %w", i, err)
		}
		at = end
	}
	return cols, nil
}

// directory is the opened directory block.
type directory struct {
	subjects [][16]byte
	blocks   []sealedBlock
	at       []uint64 // offset of each block
	owners   []uint32 // block number of each record
}

func (s *segmentFile) directory(key *[32]byte, u *unpacker) (*directory, error) {
	end := s.foot.directoryAt + uint64(s.foot.directory.sealed)
	if end > s.foot.commitments {
		return nil, errSegment
	}
	b, err := u.open(s.b[s.foot.directoryAt:end], s.foot.directory, key, &s.header, sectionDirectory, 0)
	if err != nil {
		return nil, fmt.Errorf("directory: %w", err)
	}
	n, b, ok := takeUvarint(b, s.header.count)
	if !ok {
		return nil, errSegment
	}
	d := &directory{}
	at := s.foot.personal
	for range n {
		if len(b) < 16 {
			return nil, errSegment
		}
		id := [16]byte(b)
		var raw, sealed uint64
		if raw, b, ok = takeUvarint(b[16:], maxBlockRaw); !ok {
			return nil, errSegment
		}
		if sealed, b, ok = takeUvarint(b, s.foot.directoryAt-at); !ok || len(b) < 32 {
			return nil, errSegment
		}
		d.subjects = append(d.subjects, id)
		d.blocks = append(d.blocks, sealedBlock{uint32(raw), uint32(sealed), [32]byte(b)})
		d.at = append(d.at, at)
		at += sealed
		b = b[32:]
	}
	d.owners = make([]uint32, 0, s.records())
	for i := range s.records() {
		if u.yield != nil && i%1024 == 0 {
			u.yield()
		}
		var owner uint64
		if owner, b, ok = takeUvarint(b, n); !ok || owner >= n {
			return nil, errSegment
		}
		d.owners = append(d.owners, uint32(owner))
	}
	if len(b) != 0 || at != s.foot.directoryAt {
		return nil, errSegment
	}
	return d, nil
}

// personal opens block n: its parts in record order, each behind its length.
func (s *segmentFile) personal(d *directory, n int, key *[32]byte, u *unpacker) ([]byte, error) {
	b := d.blocks[n]
	return u.open(s.b[d.at[n]:d.at[n]+uint64(b.sealed)], b, key, &s.header, sectionPersonal, uint32(n))
}

// countParts counts the personal parts in an opened block, -1 if it is not
// well-formed.
func countParts(raw []byte) int {
	n := 0
	for ok := true; len(raw) > 0; n++ {
		if _, raw, ok = nextPart(raw); !ok {
			return -1
		}
	}
	return n
}

// nextPart takes the first part off an opened block.
func nextPart(raw []byte) (part, rest []byte, ok bool) {
	size, rest, ok := takeUvarint(raw, uint64(len(raw)))
	if !ok || size > uint64(len(rest)) {
		return nil, nil, false
	}
	return rest[:size:size], rest[size:], true
}

// takeUvarint reads a varint of at most limit.
func takeUvarint(b []byte, limit uint64) (v uint64, rest []byte, ok bool) {
	v, n := binary.Uvarint(b)
	if n <= 0 || v > limit {
		return 0, nil, false
	}
	return v, b[n:], true
}

// Sealed is one leaf as a reader gets it.
type Sealed struct {
	Index    uint64
	Manifest bool // the leaf of a sealed segment; nothing else is set
	Subject  [16]byte
	Frame    []byte
	Personal []byte
	// PersonalErr says why Personal could not be opened; Frame is good.
	PersonalErr error

	key *subjectState // of Subject; nil if it is not at hand
}

// each opens the whole segment and hands out every leaf in order; what is handed
// out is good during the call. Personal parts whose key is gone come with
// PersonalErr. One frame is in memory at a time: frames that are damaged may
// come after good ones.
func (s *segmentFile) each(key *[32]byte, codec Codec, keys Keys, u *unpacker, fn func(*Sealed) error) error {
	cols, err := s.columns(key, u)
	if err != nil {
		return err
	}
	h, err := s.handing(key, keys, u)
	if err != nil {
		return err
	}
	yield := u.yield
	if yield == nil {
		yield = func() {}
	}
	for frame, err := range codec.Frames(cols, s.records(), yield) {
		if err == nil {
			err = h.manifests(fn)
		}
		if err == nil {
			err = h.record(frame, fn)
		}
		if err != nil {
			return err
		}
	}
	if h.r < len(h.d.owners) {
		return errSegment
	}
	return h.manifests(fn)
}

// handing puts frames and personal parts together.
type handing struct {
	s    *segmentFile
	d    *directory
	rest [][]byte       // by block: the personal parts to come
	errs []error        // by block: why there are none
	keys []subjectState // by block
	i, r int            // entries and records handed out
	out  Sealed
}

func (s *segmentFile) handing(key *[32]byte, keys Keys, u *unpacker) (*handing, error) {
	d, err := s.directory(key, u)
	if err != nil {
		return nil, err
	}
	h := &handing{s: s, d: d, rest: make([][]byte, len(d.blocks)), errs: make([]error, len(d.blocks)), keys: make([]subjectState, len(d.blocks))}
	counts := make([]int, len(d.blocks))
	for _, o := range d.owners {
		counts[o]++
	}
	for n, id := range d.subjects {
		if u.yield != nil {
			u.yield()
		}
		k, err := keys.SubjectKey(id)
		if err != nil {
			h.errs[n] = &KeyError{What: fmt.Sprintf("subject %x", id), Err: err}
			continue
		}
		h.keys[n].key = k
		if h.rest[n], err = s.personal(d, n, &k, u); err == nil && countParts(h.rest[n]) != counts[n] {
			err = errSegment
		}
		h.errs[n] = err
	}
	return h, nil
}

// manifests hands out the leaves before the next record that are none.
func (h *handing) manifests(fn func(*Sealed) error) error {
	for ; h.i < len(h.s.entries) && h.s.entries[h.i].typ != entryRecord; h.i++ {
		if err := fn(&Sealed{Index: h.s.first() + uint64(h.i), Manifest: true}); err != nil {
			return err
		}
	}
	return nil
}

func (h *handing) record(frame []byte, fn func(*Sealed) error) error {
	if h.r == len(h.d.owners) {
		return errSegment
	}
	o := h.d.owners[h.r]
	h.out = Sealed{Index: h.s.first() + uint64(h.i), Subject: h.d.subjects[o], PersonalErr: h.errs[o], Frame: frame}
	if h.errs[o] == nil {
		h.out.key = &h.keys[o]
		h.out.Personal, h.rest[o], _ = nextPart(h.rest[o])
	}
	h.i++
	h.r++
	return fn(&h.out)
}
