package ledger

import (
	"errors"
	"fmt"
	"slices"

	"golang.org/x/mod/sumdb/tlog"

	"github.com/gatebook/gatebook/internal/book/store"
)

// segments checks every sealed segment and takes its leaves.
func (r *verification) segments() {
	r.front.full = r.checkTile
	for _, seg := range r.s.segs {
		if r.Stop != nil {
			if r.stopped = r.Stop(); r.stopped != nil {
				return
			}
		}
		if seg.manifest.first != r.front.size {
			r.short = true
			return
		}
		entries, tree := r.segment(seg)
		if entries == nil {
			r.short = true
			return
		}
		r.rep.Sealed = seg.next()
		for i := 0; i < len(entries); {
			if root, ok := r.wholeTile(tree, entries[i:]); ok {
				r.front.pushTile(root)
				r.pushed()
				i += tileWidth
				continue
			}
			r.pushHashed(entries[i], tree.leaves[i])
			i++
		}
	}
}

// segmentTree is what was hashed of a segment's leaves.
type segmentTree struct {
	first  uint64
	leaves []tlog.Hash
	whole  uint64      // first leaf of the first whole tile
	tiles  []tlog.Hash // roots of the whole tiles
}

func newSegmentTree(f *segmentFile) *segmentTree {
	t := &segmentTree{first: f.first(), leaves: f.leafHashes()}
	t.whole = (t.first + tileWidth - 1) &^ (tileWidth - 1)
	for at := t.whole; at+tileWidth <= f.next(); at += tileWidth {
		t.tiles = append(t.tiles, perfectRoot(t.leaves[at-t.first:][:tileWidth]))
	}
	return t
}

// roots are what coverRange gives.
func (t *segmentTree) roots() []subtree {
	return cover(t.first, uint64(len(t.leaves)), func(at, n uint64) tlog.Hash {
		if n < tileWidth {
			return perfectRoot(t.leaves[at-t.first:][:n])
		}
		return perfectRoot(t.tiles[(at-t.whole)/tileWidth:][:n/tileWidth])
	})
}

// wholeTile gives the root of the tile that begins where the recomputed tree
// ends, if nothing in it has to be looked at leaf by leaf. rest are the entries
// from there on.
func (r *verification) wholeTile(t *segmentTree, rest []entry) (root tlog.Hash, ok bool) {
	at := r.front.size
	if at < t.whole || (at-t.whole)%tileWidth != 0 || (at-t.whole)/tileWidth >= uint64(len(t.tiles)) {
		return root, false
	}
	inside := func(size uint64) bool { return at < size && size < at+tileWidth }
	if inside(r.s.check.Size) || r.saved != nil && inside(r.saved.Size) {
		return root, false
	}
	for i := range rest[:tileWidth] {
		if rest[i].typ != entryRecord {
			return root, false
		}
	}
	return t.tiles[(at-t.whole)/tileWidth], true
}

// segment checks one segment and returns its entries, nil if they are lost, and
// what was hashed of them.
func (r *verification) segment(seg *sealedSegment) ([]entry, *segmentTree) {
	name, first, last := seg.name(), seg.manifest.first, seg.next()-1
	whole := func(kind DamageKind, detail string) {
		r.found(&Damage{Kind: kind, File: name, First: first, Last: last, Detail: detail})
	}
	b, err := store.ReadFile(r.FS, name, maxSegment)
	if err != nil {
		whole(damageOf(err), err.Error())
		return nil, nil
	}
	f, err := parseDamaged(b, nil)
	if err != nil {
		whole(Edited, err.Error())
		return nil, nil
	}
	if f.header.first != first || f.header.count != seg.manifest.count || f.header.generation != seg.manifest.generation || f.header.origin != r.v.Name() {
		whole(Reordered, "the file is of another place or another log than its name and manifest say")
		return nil, nil
	}
	tree := newSegmentTree(f)
	before := len(r.rep.Findings)
	intact := f.sum == seg.manifest.file
	if r.Keys != nil {
		r.segmentContent(name, f, intact)
	}
	if !slices.Equal(tree.roots(), seg.manifest.roots) && len(r.rep.Findings) == before {
		whole(Edited, "the commitments do not give the roots in the manifest")
	}
	if !intact && len(r.rep.Findings) == before {
		whole(Edited, "the file is not the one that its manifest binds")
	}
	if intact && [32]byte(b[len(b)-32:]) != f.sum {
		whole(Edited, "the SHA-256 at the end of the file is damaged; all that stands before it is intact")
	}
	return f.entries, tree
}

// segmentContent opens everything and recomputes every commitment.
func (r *verification) segmentContent(name string, f *segmentFile, intact bool) {
	key, err := r.Keys.FileKey(UseSegment, f.header.keyID)
	if err != nil {
		switch {
		case !intact:
		case errors.Is(err, ErrNoKey):
			r.found(&Damage{Kind: Edited, File: name, First: f.first(), Last: f.next() - 1, Detail: err.Error()})
		default:
			r.note(&KeyError{What: name, Err: err})
		}
		return
	}
	lost := map[[16]byte]*Damage{}
	err = f.each(&key, r.Codec, r.Keys, r.unpack, func(s *Sealed) error {
		if s.Manifest {
			return nil
		}
		if damagedBlock(s.PersonalErr) {
			// One finding for the block, over the records of its subject.
			if d := lost[s.Subject]; d != nil {
				d.Last = s.Index
				return nil
			}
			d := &Damage{Kind: Edited, File: name, First: s.Index, Last: s.Index, Detail: fmt.Sprintf("personal block of subject %x: %v", s.Subject, s.PersonalErr)}
			lost[s.Subject] = d
			r.found(d)
			return nil
		}
		r.record(name, s, f.entries[s.Index-f.first()].hash)
		return nil
	})
	if err != nil {
		r.found(&Damage{Kind: Edited, File: name, First: f.first(), Last: f.next() - 1, Detail: err.Error()})
	}
}

// damagedBlock tells a block that is damaged from one whose key is missing.
func damagedBlock(err error) bool {
	var k *KeyError
	return err != nil && !errors.As(err, &k)
}
