package ledger

import (
	"encoding/binary"
	"errors"
	"fmt"

	"golang.org/x/mod/sumdb/tlog"
)

// manifest is the clear description of a segment file; its hash is a leaf of
// the tree, so that the file is bound by every later checkpoint.
type manifest struct {
	first, count uint64
	generation   uint32
	format       byte
	keyID        [16]byte
	file         [32]byte // SHA-256 of the segment file
	replaced     [32]byte // SHA-256 of the file it replaces, zero for generation 0
	roots        []subtree
	ranges       []accounted
}

// subtree is the root of the perfect subtree of 2^level leaves that begins at
// leaf n << level.
type subtree struct {
	level byte
	n     uint64
	root  tlog.Hash
}

// accounted is a range whose content is gone on purpose, with the record that
// ordered it.
type accounted struct {
	kind         byte // 1 expired, 2 erased
	first, count uint64
	by           uint64
}

const (
	manifestVersion = 1
	manifestFixed   = 1 + 8 + 8 + 4 + 1 + 16 + 32 + 32 + 2
	maxManifest     = 1 << 20
)

func (m *manifest) encode() []byte {
	b := make([]byte, 0, manifestFixed+41*len(m.roots)+4+25*len(m.ranges))
	b = append(b, manifestVersion)
	b = binary.BigEndian.AppendUint64(b, m.first)
	b = binary.BigEndian.AppendUint64(b, m.count)
	b = binary.BigEndian.AppendUint32(b, m.generation)
	b = append(b, m.format)
	b = append(b, m.keyID[:]...)
	b = append(b, m.file[:]...)
	b = append(b, m.replaced[:]...)
	b = binary.BigEndian.AppendUint16(b, uint16(len(m.roots)))
	for _, r := range m.roots {
		b = append(b, r.level)
		b = binary.BigEndian.AppendUint64(b, r.n)
		b = append(b, r.root[:]...)
	}
	b = binary.BigEndian.AppendUint32(b, uint32(len(m.ranges)))
	for _, r := range m.ranges {
		b = append(b, r.kind)
		b = binary.BigEndian.AppendUint64(b, r.first)
		b = binary.BigEndian.AppendUint64(b, r.count)
		b = binary.BigEndian.AppendUint64(b, r.by)
	}
	return b
}

var errManifest = errors.New("not a well-formed manifest")

// decodeManifest accepts exactly what encode writes.
func decodeManifest(b []byte) (*manifest, error) {
	if len(b) > 0 && b[0] != manifestVersion {
		return nil, fmt.Errorf("manifest version %d is unknown to this release", b[0])
	}
	if len(b) < manifestFixed+4 || len(b) > maxManifest {
		return nil, errManifest
	}
	m := &manifest{
		first:      binary.BigEndian.Uint64(b[1:]),
		count:      binary.BigEndian.Uint64(b[9:]),
		generation: binary.BigEndian.Uint32(b[17:]),
		format:     b[21],
	}
	copy(m.keyID[:], b[22:])
	copy(m.file[:], b[38:])
	copy(m.replaced[:], b[70:])
	n := int(binary.BigEndian.Uint16(b[102:]))
	b = b[manifestFixed:]
	if len(b) < 41*n+4 {
		return nil, errManifest
	}
	for range n {
		r := subtree{level: b[0], n: binary.BigEndian.Uint64(b[1:])}
		copy(r.root[:], b[9:])
		m.roots = append(m.roots, r)
		b = b[41:]
	}
	k := binary.BigEndian.Uint32(b)
	b = b[4:]
	if uint64(len(b)) != 25*uint64(k) {
		return nil, errManifest
	}
	for range k {
		m.ranges = append(m.ranges, accounted{b[0], binary.BigEndian.Uint64(b[1:]), binary.BigEndian.Uint64(b[9:]), binary.BigEndian.Uint64(b[17:])})
		b = b[25:]
	}
	if m.count == 0 || m.first+m.count < m.first || m.format != segmentVersion {
		return nil, errManifest
	}
	return m, nil
}

func manifestName(index uint64) string { return fmt.Sprintf("manifests/%016x", index) }

func parseManifestName(base string) (uint64, error) {
	var index uint64
	if _, err := fmt.Sscanf(base, "%016x", &index); err != nil || manifestName(index) != "manifests/"+base {
		return 0, errors.New("not the name of a manifest")
	}
	return index, nil
}

func segmentName(first uint64, generation uint32) string {
	return fmt.Sprintf("segments/%016x.%d.seg", first, generation)
}

// isSegmentName tells whether a name in segments/ is one that a segment file, of
// a manifest or not, may have.
func isSegmentName(base string) bool {
	var first uint64
	var generation uint32
	_, err := fmt.Sscanf(base, "%016x.%d.seg", &first, &generation)
	return err == nil && segmentName(first, generation) == "segments/"+base
}

// coverRange splits leaves [first, first+len(hashes)) into the fewest perfect
// subtrees of the whole tree, left to right.
func coverRange(first uint64, hashes []tlog.Hash, yield func()) []subtree {
	return cover(first, uint64(len(hashes)), func(at, n uint64) tlog.Hash {
		return rootSlowly(hashes[at-first:][:n], yield)
	})
}

// cover is coverRange of n leaves; root gives the root of the perfect subtree of
// so many leaves at one of them.
func cover(first, n uint64, root func(at, n uint64) tlog.Hash) []subtree {
	var out []subtree
	for n > 0 {
		level := byte(0)
		for first>>level&1 == 0 && n >= 2<<level && level < 62 {
			level++
		}
		out = append(out, subtree{level, first >> level, root(first, 1<<level)})
		first += 1 << level
		n -= 1 << level
	}
	return out
}
