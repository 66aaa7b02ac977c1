package ledger

import (
	"errors"
	"fmt"

	"github.com/gatebook/gatebook/internal/book/store"
)

// segments checks every sealed segment and takes its leaves.
func (r *verification) segments() {
	r.front.full = r.checkTile
	for _, seg := range r.s.segs {
		if seg.manifest.first != r.front.size {
			r.short = true
			return
		}
		entries := r.segment(seg)
		if entries == nil {
			r.short = true
			return
		}
		r.rep.Sealed = seg.next()
		for i := range entries {
			r.push(entries[i])
		}
	}
}

// segment checks one segment and returns its entries, nil if they are lost.
func (r *verification) segment(seg *sealedSegment) []entry {
	name, first, last := seg.name(), seg.manifest.first, seg.next()-1
	whole := func(kind DamageKind, detail string) {
		r.found(&Damage{Kind: kind, File: name, First: first, Last: last, Detail: detail})
	}
	b, err := store.ReadFile(r.FS, name, maxSegment)
	if err != nil {
		whole(damageOf(err), err.Error())
		return nil
	}
	f, err := parseDamaged(b, nil)
	if err != nil {
		whole(Edited, err.Error())
		return nil
	}
	if f.header.first != first || f.header.count != seg.manifest.count || f.header.generation != seg.manifest.generation || f.header.origin != r.v.Name() {
		whole(Reordered, "the file is of another place or another log than its name and manifest say")
		return nil
	}
	before := len(r.rep.Findings)
	intact := f.sum == seg.manifest.file
	if r.Keys != nil {
		r.segmentContent(name, f, intact)
	}
	if !rootsMatch(seg.manifest, f) && len(r.rep.Findings) == before {
		whole(Edited, "the commitments do not give the roots in the manifest")
	}
	if !intact && len(r.rep.Findings) == before {
		whole(Edited, "the file is not the one that its manifest binds")
	}
	if intact && [32]byte(b[len(b)-32:]) != f.sum {
		whole(Edited, "the SHA-256 at the end of the file is damaged; all that stands before it is intact")
	}
	return f.entries
}

func rootsMatch(m *manifest, f *segmentFile) bool {
	roots := coverRange(f.first(), f.leafHashes(), nil)
	if len(roots) != len(m.roots) {
		return false
	}
	for i := range roots {
		if roots[i] != m.roots[i] {
			return false
		}
	}
	return true
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
