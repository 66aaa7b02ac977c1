package verifier2

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sort"

	"github.com/klauspost/compress/zstd"
)

// manifest is a decoded manifest (section 8).
type manifest struct {
	leaf         uint64 // index of its leaf
	first, count uint64
	generation   uint32
	file         hash
	roots        []subtree
}

type subtree struct {
	level  byte
	number uint64
	root   hash
}

// readManifests reads the folder of manifests.
func (v *verifier) readManifests() error {
	names, err := v.names("manifests")
	if err != nil {
		return err
	}
	for _, name := range names {
		index, err := hex16(name)
		if err != nil {
			return fmt.Errorf("manifests/%s: %w", name, err)
		}
		if v.manifests[index], err = os.ReadFile(filepath.Join(v.dir, "manifests", name)); err != nil {
			return err
		}
	}
	return nil
}

func parseManifest(leaf uint64, b []byte) (*manifest, error) {
	r := reader{b: b}
	m := &manifest{leaf: leaf}
	version := r.u8()
	m.first, m.count, m.generation = r.u64(), r.u64(), r.u32()
	format := r.u8()
	r.take(16)
	copy(m.file[:], r.take(32))
	r.take(32)
	for range r.u16() {
		s := subtree{level: r.u8(), number: r.u64()}
		copy(s.root[:], r.take(32))
		m.roots = append(m.roots, s)
	}
	r.take(25 * int(r.u32()))
	if r.bad || len(r.b) > 0 || len(b) > 1_048_576 || version != 1 || format != 1 || m.count == 0 || m.first+m.count < m.first {
		return nil, fmt.Errorf("manifest %d: %w", leaf, errForm)
	}
	return m, nil
}

// chooseManifests takes the newest for each range; they must follow each
// other.
func (v *verifier) chooseManifests() error {
	best := map[uint64]*manifest{}
	for leaf, b := range v.manifests {
		m, err := parseManifest(leaf, b)
		if err != nil {
			return err
		}
		have := best[m.first]
		if have == nil || m.generation > have.generation || m.generation == have.generation && m.leaf > have.leaf {
			best[m.first] = m
		}
	}
	for _, m := range best {
		v.chosen = append(v.chosen, m)
	}
	sort.Slice(v.chosen, func(i, j int) bool { return v.chosen[i].first < v.chosen[j].first })
	at := uint64(0)
	for _, m := range v.chosen {
		if m.first != at {
			return fmt.Errorf("no manifest covers what lies between %d and %d", at, m.first)
		}
		at += m.count
	}
	return nil
}

// readSegments is step 4.
func (v *verifier) readSegments() error {
	dec, err := zstd.NewReader(nil, zstd.WithDecoderConcurrency(1), zstd.WithDecoderMaxMemory(maxRaw))
	if err != nil {
		return err
	}
	defer dec.Close()
	for _, m := range v.chosen {
		name := fmt.Sprintf("segments/%016x.%d.seg", m.first, m.generation)
		b, err := os.ReadFile(filepath.Join(v.dir, name))
		if err != nil {
			return err
		}
		if err := v.segment(m, b, dec); err != nil {
			return fmt.Errorf("%s: %w", name, err)
		}
	}
	return nil
}

// segment is a parsed segment file (section 7).
type segment struct {
	verifier    *verifier
	dec         *zstd.Decoder
	b           []byte // without its SHA-256
	first       uint64
	count       uint64
	salt        []byte
	key         hash
	columns     []block
	directory   block
	personalAt  uint64
	directoryAt uint64
	commitments uint64
	others      uint64
	leaves      []leaf
}

// block is where and what a sealed block is.
type block struct {
	at          uint64
	raw, sealed uint64
	commit      hash
}

const maxRaw = 268_435_456

// segment checks one file and adds its leaves.
func (v *verifier) segment(m *manifest, file []byte, dec *zstd.Decoder) error {
	if len(file) < 32 {
		return errForm
	}
	s := &segment{verifier: v, dec: dec, b: file[:len(file)-32], first: m.first, count: m.count}
	if sum := sha256.Sum256(s.b); sum != m.file || sum != hash(file[len(file)-32:]) {
		return fmt.Errorf("SHA-256 differs from the manifest's or its own")
	}
	header, err := s.readHeader(m)
	if err != nil {
		return err
	}
	if err := s.readFooter(header); err != nil {
		return err
	}
	if err := s.checkRoots(m); err != nil {
		return err
	}
	if err := s.readRecords(); err != nil {
		return err
	}
	v.leaves = append(v.leaves, s.leaves...)
	return nil
}

func (s *segment) readHeader(m *manifest) (size uint64, err error) {
	r := reader{b: s.b}
	ok := r.u8() == 1 && string(r.take(5)) == "GBSEG"
	ok = ok && r.u64() == m.first && r.u64() == m.count && r.u32() == m.generation
	var keyID id
	copy(keyID[:], r.take(16))
	s.salt = r.take(32)
	origin := string(r.take(int(r.u16())))
	if !ok || r.bad || origin != s.verifier.origin || m.count > 65536 {
		return 0, errForm
	}
	s.key, err = s.verifier.keys.file(keySegment, keyID)
	return uint64(len(s.b) - len(r.b)), err
}

func (r *reader) block() (b block) {
	b.raw, b.sealed = uint64(r.u32()), uint64(r.u32())
	copy(b.commit[:], r.take(32))
	return b
}

// readFooter finds the sections and reads those in clear.
func (s *segment) readFooter(header uint64) error {
	if len(s.b) < 4 {
		return errForm
	}
	end := uint64(len(s.b)) - 4
	n := uint64(binary.BigEndian.Uint32(s.b[end:]))
	if n > end {
		return errForm
	}
	r := reader{b: s.b[end-n : end]}
	if r.u8() != 1 {
		return errForm
	}
	at := header
	for range r.u16() {
		b := r.block()
		b.at = at
		at += b.sealed
		s.columns = append(s.columns, b)
	}
	s.personalAt, s.directoryAt = r.u64(), r.u64()
	s.directory = r.block()
	s.directory.at = s.directoryAt
	s.commitments, s.others = r.u64(), r.u64()
	if r.bad || len(r.b) > 0 || at > s.personalAt || s.personalAt > s.directoryAt || s.directoryAt > s.commitments ||
		s.directoryAt+s.directory.sealed > s.commitments || s.commitments > s.others || s.others-s.commitments != 32*s.count || s.others > end-n {
		return errForm
	}
	for i := range s.count {
		s.leaves = append(s.leaves, leaf{0x01, hash(s.b[s.commitments+32*i:])})
	}
	return s.readOthers(reader{b: s.b[s.others : end-n]})
}

func (s *segment) readOthers(r reader) error {
	at := uint64(0)
	for first := true; len(r.b) > 0; first = false {
		d := r.uvarint()
		typ := r.u8()
		at += d
		if r.bad || typ != 0x02 || d >= s.count || at >= s.count || d == 0 && !first {
			return errForm
		}
		s.leaves[at].typ = typ
	}
	return nil
}

// checkRoots compares the subtree roots of the manifest.
func (s *segment) checkRoots(m *manifest) error {
	var hashes []hash
	for _, l := range s.leaves {
		hashes = append(hashes, l.leafHash())
	}
	var roots []subtree
	for at := m.first; len(hashes) > 0; {
		level := byte(0)
		for at%(2<<level) == 0 && 2<<level <= len(hashes) {
			level++
		}
		n := 1 << level
		roots = append(roots, subtree{level, at >> level, merkleRoot(hashes[:n])})
		hashes = hashes[n:]
		at += uint64(n)
	}
	if !slices.Equal(roots, m.roots) {
		return fmt.Errorf("the leaves do not give the roots of the manifest")
	}
	return nil
}

// open opens a block: commitment first, then AES-GCM, then zstd.
func (s *segment) open(b block, key hash, section byte, number uint32) ([]byte, error) {
	info := slices.Concat(s.salt, []byte("gatebook/v1/seal"), []byte(s.verifier.origin))
	info = binary.BigEndian.AppendUint64(info, s.first)
	info = binary.BigEndian.AppendUint32(append(info, section), number)
	both := expand(key[:], info, 64)
	if hash(both[32:]) != b.commit {
		return nil, fmt.Errorf("section %d block %d: the key commitment differs", section, number)
	}
	aead, err := newGCM(both[:32])
	if err != nil {
		return nil, err
	}
	packed, err := aead.Open(nil, make([]byte, 12), s.b[b.at:b.at+b.sealed], nil)
	if err != nil || len(packed) == 0 || b.raw > maxRaw {
		return nil, fmt.Errorf("section %d block %d does not open", section, number)
	}
	raw := packed[1:]
	switch packed[0] {
	case 0:
	case 1:
		if raw, err = s.dec.DecodeAll(raw, nil); err != nil {
			return nil, err
		}
	default:
		return nil, errForm
	}
	if uint64(len(raw)) != b.raw {
		return nil, errForm
	}
	return raw, nil
}

// readRecords opens everything and recomputes every commitment.
func (s *segment) readRecords() error {
	n := 0
	for _, l := range s.leaves {
		if l.typ == 0x01 {
			n++
		}
	}
	columns := make([][]byte, len(s.columns))
	for i, b := range s.columns {
		var err error
		if columns[i], err = s.open(b, s.key, 1, uint32(i)); err != nil {
			return err
		}
	}
	frames, err := s.verifier.columns(columns, n)
	if err != nil {
		return err
	}
	subjects, owners, blocks, err := s.readDirectory(n)
	if err != nil {
		return err
	}
	parts, err := s.readPersonal(subjects, owners, blocks)
	if err != nil {
		return err
	}
	n = 0
	for i, l := range s.leaves {
		if l.typ != 0x01 {
			continue
		}
		if err := s.verifier.record(s.first+uint64(i), subjects[owners[n]], frames[n], parts[n], l.hash); err != nil {
			return err
		}
		n++
	}
	return nil
}

func (s *segment) readDirectory(records int) (subjects []id, owners []int, blocks []block, err error) {
	raw, err := s.open(s.directory, s.key, 3, 0)
	if err != nil {
		return nil, nil, nil, err
	}
	r := reader{b: raw}
	at := s.personalAt
	for range r.count() {
		subjects = append(subjects, id(append(r.take(16), make([]byte, 16)...)))
		b := block{at: at, raw: r.uvarint(), sealed: r.uvarint()}
		copy(b.commit[:], r.take(32))
		if b.sealed > s.directoryAt-at {
			return nil, nil, nil, errForm
		}
		at += b.sealed
		blocks = append(blocks, b)
	}
	for range records {
		o := r.uvarint()
		if o >= uint64(len(subjects)) {
			return nil, nil, nil, errForm
		}
		owners = append(owners, int(o))
	}
	if r.bad || len(r.b) > 0 || at != s.directoryAt {
		return nil, nil, nil, errForm
	}
	return subjects, owners, blocks, nil
}

// readPersonal returns the personal part of each record.
func (s *segment) readPersonal(subjects []id, owners []int, blocks []block) ([][]byte, error) {
	raws := make([]reader, len(blocks))
	for n, b := range blocks {
		key, err := s.verifier.keys.subject(subjects[n])
		if err != nil {
			return nil, err
		}
		raw, err := s.open(b, key, 2, uint32(n))
		if err != nil {
			return nil, err
		}
		raws[n] = reader{b: raw}
	}
	parts := make([][]byte, len(owners))
	for i, o := range owners {
		parts[i] = raws[o].take(raws[o].count())
	}
	for n := range raws {
		if raws[n].bad || len(raws[n].b) > 0 {
			return nil, fmt.Errorf("personal block %d: %w", n, errForm)
		}
	}
	return parts, nil
}
