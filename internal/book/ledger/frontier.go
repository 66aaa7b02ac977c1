package ledger

import (
	"fmt"
	"strings"

	"golang.org/x/mod/sumdb/tlog"
)

// tileWidth is the number of hashes in a full tile (C2SP tlog-tiles).
const tileWidth = 256

// frontier is the right edge of the tree: for each tile level the hashes of
// the tile that is not full yet. It grows leaf by leaf and knows the root.
type frontier struct {
	size   uint64
	levels [][]tlog.Hash
	// full is called for each tile of level >= 1 that became full.
	full func(level int, n uint64, hashes []tlog.Hash)
}

func (f *frontier) push(leaf tlog.Hash) {
	f.size++
	f.add(0, leaf)
}

// pushTile adds tileWidth leaves whose root is given. The size is a multiple of
// tileWidth.
func (f *frontier) pushTile(root tlog.Hash) {
	f.size += tileWidth
	if len(f.levels) == 0 {
		f.levels = append(f.levels, make([]tlog.Hash, 0, tileWidth))
	}
	f.add(1, root)
}

func (f *frontier) add(level int, h tlog.Hash) {
	for ; ; level++ {
		if level == len(f.levels) {
			f.levels = append(f.levels, make([]tlog.Hash, 0, tileWidth))
		}
		f.levels[level] = append(f.levels[level], h)
		if len(f.levels[level]) < tileWidth {
			return
		}
		if level >= 1 && f.full != nil {
			f.full(level, f.size>>(8*(level+1))-1, f.levels[level])
		}
		h = perfectRoot(f.levels[level])
		f.levels[level] = f.levels[level][:0]
	}
}

// root is the RFC 6962 section 2.1 tree head.
func (f *frontier) root() tlog.Hash {
	if f.size == 0 {
		return emptyRoot
	}
	var parts []tlog.Hash // perfect subtrees from left to right
	for level := len(f.levels) - 1; level >= 0; level-- {
		hashes := f.levels[level]
		for len(hashes) > 0 {
			n := 1
			for n*2 <= len(hashes) {
				n *= 2
			}
			parts = append(parts, perfectRoot(hashes[:n]))
			hashes = hashes[n:]
		}
	}
	r := parts[len(parts)-1]
	for i := len(parts) - 2; i >= 0; i-- {
		r = nodeHash(parts[i], r)
	}
	return r
}

func (f *frontier) clone() *frontier {
	c := &frontier{size: f.size, levels: make([][]tlog.Hash, len(f.levels))}
	for i, l := range f.levels {
		c.levels[i] = append(make([]tlog.Hash, 0, tileWidth), l...)
	}
	return c
}

// emptyRoot is SHA-256 of the empty string: the head of a tree without leaves.
var emptyRoot = tlog.Hash{
	0xe3, 0xb0, 0xc4, 0x42, 0x98, 0xfc, 0x1c, 0x14, 0x9a, 0xfb, 0xf4, 0xc8, 0x99, 0x6f, 0xb9, 0x24,
	0x27, 0xae, 0x41, 0xe4, 0x64, 0x9b, 0x93, 0x4c, 0xa4, 0x95, 0x99, 0x1b, 0x78, 0x52, 0xb8, 0x55,
}

// perfectRoot is the root over 2^k hashes.
func perfectRoot(hashes []tlog.Hash) tlog.Hash {
	if len(hashes) == 1 {
		return hashes[0]
	}
	if len(hashes) == 2 {
		return nodeHash(hashes[0], hashes[1])
	}
	m := len(hashes) / 2
	return nodeHash(perfectRoot(hashes[:m]), perfectRoot(hashes[m:]))
}

// rootSlowly is perfectRoot that calls yield, if not nil, between pieces of
// work.
func rootSlowly(hashes []tlog.Hash, yield func()) tlog.Hash {
	if len(hashes) <= tileWidth || yield == nil {
		return perfectRoot(hashes)
	}
	yield()
	m := len(hashes) / 2
	return nodeHash(rootSlowly(hashes[:m], yield), rootSlowly(hashes[m:], yield))
}

// tilePath is "tile/<L>/<N>" of C2SP tlog-tiles: N in groups of three digits,
// all but the last with an x in front; w is the width of a partial tile or
// tileWidth.
func tilePath(level int, n uint64, w int) string {
	var groups []string
	last := fmt.Sprintf("%03d", n%1000)
	for n >= 1000 {
		n /= 1000
		groups = append([]string{fmt.Sprintf("x%03d", n%1000)}, groups...)
	}
	p := fmt.Sprintf("tile/%d/%s", level, strings.Join(append(groups, last), "/"))
	if w < tileWidth {
		p += fmt.Sprintf(".p/%d", w)
	}
	return p
}
