package ledger

import (
	"bytes"
	"crypto/aes"
	"crypto/cipher"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"errors"
	"fmt"
	"hash"
	"io"
	"iter"

	"github.com/klauspost/compress/zstd"
)

// A segment file (docs/format.md, "Segment"): header, column blocks, personal
// blocks, directory block, commitment column, positions of other entries,
// footer, SHA-256.
const (
	segmentVersion   = 1
	segmentMagic     = "GBSEG"
	segmentHeaderMin = 1 + 5 + 8 + 8 + 4 + 16 + 32 + 2
	sectionColumns   = 1
	sectionPersonal  = 2
	sectionDirectory = 3
	maxSegment       = 1 << 30
	maxBlockRaw      = 256 << 20
	packRaw          = 0
	packZstd         = 1
)

// segmentHeader is the clear head of a segment file.
type segmentHeader struct {
	first, count uint64
	generation   uint32
	keyID        [16]byte
	salt         [32]byte
	origin       string
}

func (h *segmentHeader) encode() []byte {
	b := make([]byte, 0, segmentHeaderMin+len(h.origin))
	b = append(b, segmentVersion)
	b = append(b, segmentMagic...)
	b = binary.BigEndian.AppendUint64(b, h.first)
	b = binary.BigEndian.AppendUint64(b, h.count)
	b = binary.BigEndian.AppendUint32(b, h.generation)
	b = append(b, h.keyID[:]...)
	b = append(b, h.salt[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(h.origin)))
	return append(b, h.origin...)
}

func decodeSegmentHeader(b []byte) (h segmentHeader, size int, err error) {
	if len(b) > 0 && b[0] != segmentVersion {
		return h, 0, fmt.Errorf("segment version %d is unknown to this release", b[0])
	}
	if len(b) < segmentHeaderMin || string(b[1:6]) != segmentMagic {
		return h, 0, errSegment
	}
	h.first = binary.BigEndian.Uint64(b[6:])
	h.count = binary.BigEndian.Uint64(b[14:])
	h.generation = binary.BigEndian.Uint32(b[22:])
	copy(h.keyID[:], b[26:])
	copy(h.salt[:], b[42:])
	n := int(binary.BigEndian.Uint16(b[74:]))
	if n == 0 || n > maxOrigin || len(b) < segmentHeaderMin+n || h.count == 0 || h.count > maxSegmentRecords {
		return h, 0, errSegment
	}
	h.origin = string(b[76 : 76+n])
	return h, 76 + n, nil
}

var (
	errSegment = errors.New("not a well-formed segment")
	errKeyHash = errors.New("the key does not match the block's key commitment")
	errBlock   = errors.New("block does not decrypt under its key")
)

// blockKey derives the one-use key of a block and the commitment to it, so
// that nobody can make one ciphertext that opens under two keys. It is
// HKDF-Expand of 64 bytes (RFC 5869 section 2.3, two steps), without what
// crypto/hkdf allocates for each of thousands of small blocks.
func blockKey(key *[32]byte, h *segmentHeader, section byte, block uint32) (k, commit [32]byte) {
	const pad, info = 64, 64 + 32 // before them: room for hmac32, and for the step before
	var b [info + 32 + len(labelSeal) + maxOrigin + 13 + 1]byte
	n := info
	n += copy(b[n:], h.salt[:])
	n += copy(b[n:], labelSeal)
	n += copy(b[n:], h.origin)
	binary.BigEndian.PutUint64(b[n:], h.first)
	b[n+8] = section
	binary.BigEndian.PutUint32(b[n+9:], block)
	n += 13
	b[n] = 1
	k = hmac32(key, b[info-pad:n+1])
	copy(b[pad:], k[:])
	b[n] = 2
	return k, hmac32(key, b[:n+1])
}

// A derived key is used for exactly one message, so the nonce may be zero.
func gcmOnce(key [32]byte) (cipher.AEAD, error) {
	c, err := aes.NewCipher(key[:])
	if err != nil {
		return nil, err
	}
	return cipher.NewGCM(c)
}

// packer compresses and seals blocks; it belongs to one goroutine.
type packer struct {
	enc *zstd.Encoder
	tmp bytes.Buffer

	sealed []byte // scratch of sealTo
}

// Blocks are compressed in pieces of packPiece, so that others can run in
// between. Larger pieces pack better and make others wait longer.
const packPiece = 16 << 10

func newPacker() (*packer, error) {
	enc, err := zstd.NewWriter(nil, zstd.WithEncoderConcurrency(1), zstd.WithEncoderCRC(false), zstd.WithEncoderLevel(zstd.SpeedBetterCompression),
		zstd.WithWindowSize(packPiece), zstd.WithSingleSegment(true))
	return &packer{enc: enc}, err
}

// pack appends raw, compressed, to tmp. What fits into one piece is packed as
// a whole when the stream ends.
func (p *packer) pack(raw []byte, yield func()) error {
	p.enc.Reset(&p.tmp)
	for len(raw) > 0 {
		n := min(len(raw), packPiece)
		if _, err := p.enc.Write(raw[:n]); err != nil {
			return err
		}
		raw = raw[n:]
		yield()
	}
	return p.enc.Close()
}

// sumSlowly is SHA-256 that calls yield, if not nil, between pieces of work.
func sumSlowly(b []byte, yield func()) [32]byte {
	if yield == nil {
		return sha256.Sum256(b)
	}
	h := sha256.New()
	for len(b) > 0 {
		n := min(len(b), 64<<10)
		h.Write(b[:n])
		b = b[n:]
		yield()
	}
	return [32]byte(h.Sum(nil))
}

// sealedBlock says how to open a block again.
type sealedBlock struct {
	raw    uint32 // bytes after opening and unpacking
	sealed uint32 // bytes in the file
	commit [32]byte
}

// seal appends the sealed block to dst. It calls yield between pieces of work.
func (p *packer) seal(dst, raw []byte, key *[32]byte, h *segmentHeader, section byte, block uint32, yield func()) ([]byte, sealedBlock, error) {
	k, commit := blockKey(key, h, section, block)
	aead, err := gcmOnce(k)
	if err != nil {
		return dst, sealedBlock{}, err
	}
	p.tmp.Reset()
	p.tmp.WriteByte(packZstd)
	if err := p.pack(raw, yield); err != nil {
		return dst, sealedBlock{}, err
	}
	if p.tmp.Len() > len(raw)+1 {
		p.tmp.Reset()
		p.tmp.WriteByte(packRaw)
		p.tmp.Write(raw)
	}
	before := len(dst)
	var nonce [12]byte
	dst = aead.Seal(dst, nonce[:], p.tmp.Bytes(), nil)
	return dst, sealedBlock{uint32(len(raw)), uint32(len(dst) - before), commit}, nil
}

// unpacker opens blocks; it belongs to one goroutine.
type unpacker struct {
	dec   *zstd.Decoder
	yield func() // between pieces of work; nil: none
	tmp   []byte
}

func newUnpacker() (*unpacker, error) {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxBlockRaw))
	return &unpacker{dec: dec}, err
}

func (u *unpacker) open(sealed []byte, b sealedBlock, key *[32]byte, h *segmentHeader, section byte, block uint32) ([]byte, error) {
	k, commit := blockKey(key, h, section, block)
	if subtle.ConstantTimeCompare(commit[:], b.commit[:]) != 1 {
		return nil, errKeyHash
	}
	aead, err := gcmOnce(k)
	if err != nil {
		return nil, err
	}
	var nonce [12]byte
	u.tmp, err = aead.Open(u.tmp[:0], nonce[:], sealed, nil)
	if err != nil || len(u.tmp) == 0 {
		return nil, errBlock
	}
	var raw []byte
	switch u.tmp[0] {
	case packRaw:
		raw = append([]byte(nil), u.tmp[1:]...)
	case packZstd:
		// One byte more, in which the end is met without making room for more.
		if raw, err = u.unpack(u.tmp[1:], make([]byte, 0, min(int(b.raw)+1, maxBlockRaw, 4096+64*len(sealed)))); err != nil {
			return nil, fmt.Errorf("%w: %v", errSegment, err)
		}
	default:
		return nil, errSegment
	}
	if len(raw) != int(b.raw) {
		return nil, errSegment
	}
	return raw, nil
}

// unpack appends what packed holds to dst.
func (u *unpacker) unpack(packed, dst []byte) ([]byte, error) {
	if u.yield == nil || cap(dst) <= packPiece {
		return u.dec.DecodeAll(packed, dst)
	}
	if err := u.dec.Reset(bytes.NewReader(packed)); err != nil {
		return nil, err
	}
	for {
		if len(dst) == cap(dst) {
			if len(dst) >= maxBlockRaw {
				return nil, zstd.ErrDecoderSizeExceeded
			}
			dst = append(dst, 0)[:len(dst)]
		}
		n, err := u.dec.Read(dst[len(dst):min(cap(dst), len(dst)+packPiece)])
		dst = dst[:len(dst)+n]
		if err == io.EOF {
			return dst, nil
		}
		if err != nil {
			return nil, err
		}
		u.yield()
	}
}

// segmentInput is what a segment is built from. entries are all leaves of the
// range, frames and personal those of type record in order. Together the frames
// are large, so they are not kept in memory. Reading frames fills personal and
// hints on the way, and sets failed if it ended early.
type segmentInput struct {
	header   segmentHeader
	key      [32]byte
	entries  []entry
	frames   iter.Seq[[]byte] // each good until the next
	failed   error
	personal personalParts
	hints    [][]byte
}

// personalParts are grouped by subject, in order of first sight.
type personalParts struct {
	number map[[16]byte]uint32
	order  [][16]byte
	blocks [][]byte
	owners []byte // uvarint number of each record's subject
}

func (p *personalParts) add(subject [16]byte, personal []byte) {
	n, ok := p.number[subject]
	if !ok {
		if p.number == nil {
			p.number = map[[16]byte]uint32{}
		}
		n = uint32(len(p.order))
		p.number[subject] = n
		p.order, p.blocks = append(p.order, subject), append(p.blocks, nil)
	}
	p.owners = binary.AppendUvarint(p.owners, uint64(n))
	b := p.blocks[n]
	if more := binary.MaxVarintLen32 + len(personal); cap(b)-len(b) < more {
		// Twice as much each time: append alone would copy what is there often.
		b = append(make([]byte, 0, max(2*cap(b), more)), b...)
	}
	b = binary.AppendUvarint(b, uint64(len(personal)))
	p.blocks[n] = append(b, personal...)
}

// fileWriter writes a new file from its beginning, in pieces, and sums it up.
// After an error it does nothing.
type fileWriter struct {
	f     io.WriterAt
	yield func()
	sum   hash.Hash
	buf   []byte
	at    int64 // of buf in the file
	err   error
}

// filePiece is how much goes to the file at once: what the kernel copies while
// nobody else runs.
const filePiece = 32 << 10

func newFileWriter(f io.WriterAt, yield func()) *fileWriter {
	return &fileWriter{f: f, yield: yield, sum: sha256.New(), buf: make([]byte, 0, filePiece)}
}

// offset is where the next byte goes.
func (w *fileWriter) offset() uint64 { return uint64(w.at) + uint64(len(w.buf)) }

func (w *fileWriter) write(b []byte) {
	for len(b) > 0 {
		n := min(len(b), cap(w.buf)-len(w.buf))
		w.buf = append(w.buf, b[:n]...)
		b = b[n:]
		if len(w.buf) == cap(w.buf) {
			w.flush()
		}
	}
}

func (w *fileWriter) flush() {
	if w.err != nil || len(w.buf) == 0 {
		return
	}
	w.sum.Write(w.buf)
	_, w.err = w.f.WriteAt(w.buf, w.at)
	w.at += int64(len(w.buf))
	w.buf = w.buf[:0]
	w.yield()
}

// finish ends the file with the SHA-256 of all before.
func (w *fileWriter) finish() error {
	w.flush()
	w.write(w.sum.Sum(nil))
	w.flush()
	return w.err
}

// buildSegment writes the file's bytes.
func buildSegment(out *fileWriter, in *segmentInput, codec Codec, keys Keys, p *packer) error {
	yield := out.yield
	h := &in.header
	out.write(h.encode())
	cols, err := codec.EncodeColumns(in.frames, func() [][]byte { return in.hints }, yield)
	if err = errors.Join(in.failed, err); err != nil {
		return fmt.Errorf("frames into columns: %w", err)
	}
	foot := segmentFooter{columns: make([]sealedBlock, len(cols))}
	for i, col := range cols {
		yield()
		if foot.columns[i], err = p.sealTo(out, col, &in.key, h, sectionColumns, uint32(i)); err != nil {
			return err
		}
		cols[i] = nil
	}
	foot.personal = out.offset()
	dir, err := sealPersonal(out, in, keys, p)
	if err != nil {
		return err
	}
	foot.directoryAt = out.offset()
	if foot.directory, err = p.sealTo(out, dir, &in.key, h, sectionDirectory, 0); err != nil {
		return err
	}
	foot.commitments = out.offset()
	var others []byte
	last := uint64(0)
	for i := range in.entries {
		out.write(in.entries[i].hash[:])
		if in.entries[i].typ != entryRecord {
			others = binary.AppendUvarint(others, uint64(i)-last)
			others = append(others, in.entries[i].typ)
			last = uint64(i)
		}
	}
	foot.others = out.offset()
	out.write(others)
	out.write(foot.encode(nil))
	return out.finish()
}

// sealTo writes the sealed block.
func (p *packer) sealTo(out *fileWriter, raw []byte, key *[32]byte, h *segmentHeader, section byte, block uint32) (b sealedBlock, err error) {
	p.sealed, b, err = p.seal(p.sealed[:0], raw, key, h, section, block, out.yield)
	out.write(p.sealed)
	return b, err
}

// sealPersonal seals the personal parts and returns the directory that finds
// them again.
func sealPersonal(out *fileWriter, in *segmentInput, keys Keys, p *packer) (dir []byte, err error) {
	parts := &in.personal
	dir = binary.AppendUvarint(nil, uint64(len(parts.order)))
	for n, id := range parts.order {
		out.yield()
		key, err := keys.SubjectKey(id)
		if err != nil {
			return nil, &KeyError{What: fmt.Sprintf("subject %x", id), Err: err}
		}
		b, err := p.sealTo(out, parts.blocks[n], &key, &in.header, sectionPersonal, uint32(n))
		if err != nil {
			return nil, err
		}
		parts.blocks[n] = nil
		dir = append(dir, id[:]...)
		dir = binary.AppendUvarint(dir, uint64(b.raw))
		dir = binary.AppendUvarint(dir, uint64(b.sealed))
		dir = append(dir, b.commit[:]...)
	}
	return append(dir, parts.owners...), nil
}

// segmentFooter tells where the sections are.
type segmentFooter struct {
	columns     []sealedBlock
	personal    uint64 // offset of the first personal block
	directoryAt uint64
	directory   sealedBlock
	commitments uint64 // offset of the commitment column
	others      uint64 // offset of the positions of other entries
}

func appendBlock(b []byte, s sealedBlock) []byte {
	b = binary.BigEndian.AppendUint32(b, s.raw)
	b = binary.BigEndian.AppendUint32(b, s.sealed)
	return append(b, s.commit[:]...)
}

func takeBlock(b []byte) (sealedBlock, []byte) {
	s := sealedBlock{raw: binary.BigEndian.Uint32(b), sealed: binary.BigEndian.Uint32(b[4:])}
	copy(s.commit[:], b[8:])
	return s, b[40:]
}

// encode appends the footer and its length.
func (f *segmentFooter) encode(b []byte) []byte {
	start := len(b)
	b = append(b, segmentVersion)
	b = binary.BigEndian.AppendUint16(b, uint16(len(f.columns)))
	for _, c := range f.columns {
		b = appendBlock(b, c)
	}
	b = binary.BigEndian.AppendUint64(b, f.personal)
	b = binary.BigEndian.AppendUint64(b, f.directoryAt)
	b = appendBlock(b, f.directory)
	b = binary.BigEndian.AppendUint64(b, f.commitments)
	b = binary.BigEndian.AppendUint64(b, f.others)
	return binary.BigEndian.AppendUint32(b, uint32(len(b)-start))
}

// decodeSegmentFooter reads the footer of a file whose SHA-256 was cut off and
// returns the offset at which it starts.
func decodeSegmentFooter(file []byte) (f segmentFooter, at int, err error) {
	if len(file) < 4 {
		return f, 0, errSegment
	}
	n := uint64(binary.BigEndian.Uint32(file[len(file)-4:]))
	if n < 3 || n+4 > uint64(len(file)) {
		return f, 0, errSegment
	}
	at = len(file) - 4 - int(n)
	b := file[at : len(file)-4]
	cols := int(binary.BigEndian.Uint16(b[1:]))
	if b[0] != segmentVersion || len(b) != 3+40*cols+16+40+16 {
		return f, 0, errSegment
	}
	b = b[3:]
	for range cols {
		var s sealedBlock
		s, b = takeBlock(b)
		f.columns = append(f.columns, s)
	}
	f.personal = binary.BigEndian.Uint64(b)
	f.directoryAt = binary.BigEndian.Uint64(b[8:])
	f.directory, b = takeBlock(b[16:])
	f.commitments = binary.BigEndian.Uint64(b)
	f.others = binary.BigEndian.Uint64(b[8:])
	if f.personal > f.directoryAt || f.directoryAt > f.commitments || f.commitments > f.others || f.others > uint64(at) {
		return f, 0, errSegment
	}
	return f, at, nil
}
