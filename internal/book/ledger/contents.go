package ledger

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/gatebook/gatebook/internal/book/store"
)

// sealedSegment is a segment that a manifest leaf binds.
type sealedSegment struct {
	manifest *manifest
	bytes    []byte // the manifest's
	leaf     uint64 // index of the manifest leaf
}

func (s *sealedSegment) name() string { return segmentName(s.manifest.first, s.manifest.generation) }
func (s *sealedSegment) next() uint64 { return s.manifest.first + s.manifest.count }

// contents is what a ledger holds: sealed segments from leaf 0, then WAL
// files, without gaps.
type contents struct {
	fsys   store.FS
	keys   Keys
	codec  Codec
	origin string
	segs   []*sealedSegment
	wals   []*walFile
}

func (c *contents) last() *walFile { return c.wals[len(c.wals)-1] }

func (c *contents) sealedEnd() uint64 {
	if len(c.segs) == 0 {
		return 0
	}
	return c.segs[len(c.segs)-1].next()
}

func (c *contents) size() uint64 {
	if len(c.wals) == 0 {
		return c.sealedEnd()
	}
	return c.last().next()
}

// clone copies the lists, so that a reader can go on while the ledger seals.
func (c *contents) clone() contents {
	d := *c
	d.segs = append([]*sealedSegment(nil), c.segs...)
	d.wals = append([]*walFile(nil), c.wals...)
	return d
}

// entries returns the leaves [from, to).
func (c *contents) entries(from, to uint64) ([]entry, error) {
	var out []entry
	for _, s := range c.segs {
		if s.next() <= from || s.manifest.first >= to {
			continue
		}
		f, err := readSegment(c.fsys, s.name())
		if err != nil {
			return nil, &Damage{Kind: damageOf(err), File: s.name(), First: s.manifest.first, Last: s.next() - 1, Detail: err.Error()}
		}
		if f.sum != s.manifest.file || f.header.first != s.manifest.first || f.header.count != s.manifest.count {
			return nil, &Damage{Kind: Edited, File: s.name(), First: s.manifest.first, Last: s.next() - 1, Detail: "the file is not the one that its manifest binds"}
		}
		out = append(out, cut(f.entries, f.first(), from, to)...)
	}
	for _, w := range c.wals {
		out = append(out, cut(w.entries, w.header.first, from, to)...)
	}
	if uint64(len(out)) != to-from {
		return nil, &Damage{Kind: Missing, File: "segments", First: from, Last: to - 1, Detail: fmt.Sprintf("%d of %d leaves are there", len(out), to-from)}
	}
	return out, nil
}

func damageOf(err error) DamageKind {
	if errors.Is(err, fs.ErrNotExist) {
		return Missing
	}
	return Edited
}

// cut returns the part of entries, which begin at leaf first, in [from, to).
func cut(entries []entry, first, from, to uint64) []entry {
	next := first + uint64(len(entries))
	from, to = max(from, first), min(to, next)
	if from >= to {
		return nil
	}
	return entries[from-first : to-first]
}

// frontier computes the right edge at size from the leaves of the newest
// 65,536 block and the tiles of the blocks before it.
func (c *contents) frontier(size uint64) (*frontier, error) {
	base := size &^ (tileWidth*tileWidth - 1)
	f := &frontier{size: base, levels: [][]tlog.Hash{nil, nil}}
	for level := 2; base>>(8*level) > 0; level++ {
		width := base >> (8 * level) % tileWidth
		first := base>>(8*level) - width
		hashes := make([]tlog.Hash, 0, tileWidth)
		for i := range width {
			t, err := readTile(c.fsys, level-1, first+i)
			if err != nil {
				return nil, &Damage{Kind: damageOf(err), File: tilePath(level-1, first+i, tileWidth), First: (first + i) << (8 * level), Last: (first+i+1)<<(8*level) - 1, Detail: err.Error()}
			}
			hashes = append(hashes, perfectRoot(t))
		}
		f.levels = append(f.levels, hashes)
	}
	entries, err := c.entries(base, size)
	if err != nil {
		return nil, err
	}
	for i := range entries {
		f.push(entries[i].leafHash())
	}
	return f, nil
}

// identity is the signed note in the file "ledger": it says which log the
// folder holds.
const identityHead = "gatebook-ledger/v1"

func readIdentity(fsys store.FS, v note.Verifier) error {
	b, err := store.ReadFile(fsys, "ledger", 4096)
	if err != nil {
		return err
	}
	n, err := note.Open(b, note.VerifierList(v))
	if err != nil {
		// What it says unproved still helps whoever changed the configuration.
		text, _, _ := strings.Cut(string(b), "\n\n")
		if _, says, ok := strings.Cut(text, "\n"); ok && says != v.Name() {
			return fmt.Errorf("it says that this folder holds log %.300q, and not %q, which origin, node and signing key make: %w", says, v.Name(), err)
		}
		return fmt.Errorf("ledger: %w", err)
	}
	if head, origin, _ := strings.Cut(strings.TrimSuffix(n.Text, "\n"), "\n"); head != identityHead || origin != v.Name() {
		return fmt.Errorf("ledger: is %q of log %q, not %q of log %q", head, origin, identityHead, v.Name())
	}
	return nil
}

// SelfKey returns the verifier key that lies in the folder itself. Whoever can
// change the folder can change it: what it verifies is trusted only as far as
// the folder is.
func SelfKey(fsys store.FS) (string, error) {
	b, err := store.ReadFile(fsys, "log.vkey", 1024)
	if err != nil {
		return "", err
	}
	key, rest, ok := strings.Cut(string(b), "\n")
	if !ok || rest != "" {
		return "", errors.New("log.vkey is not one line")
	}
	return key, nil
}

// Create makes a new ledger in an empty tree: its identity, its verifier key,
// the checkpoint of size 0 and the first WAL file.
func Create(opt Options, vkey string) error {
	if err := opt.setDefaults(); err != nil {
		return err
	}
	names, err := opt.FS.ReadDir(".")
	if err != nil {
		return err
	}
	for _, n := range names {
		if n == "ledger" || n == "checkpoint" || n == "wal" || n == "segments" || n == "manifests" || n == "tile" {
			return fmt.Errorf("%s is already there: a ledger is created only in an empty folder", n)
		}
	}
	for _, d := range []string{"wal", "segments", "manifests", "tile"} {
		if err := opt.FS.MkdirAll(d); err != nil {
			return err
		}
	}
	l := newLedger(opt, nil)
	w, err := l.createWAL(walName(1), 1, 0, 0)
	if err != nil {
		return err
	}
	if err := w.f.Close(); err != nil {
		return err
	}
	id, err := note.Sign(&note.Note{Text: identityHead + "\n" + opt.Origin + "\n"}, opt.Signer)
	if err != nil {
		return err
	}
	check, err := signTree(Tree{Origin: opt.Origin, Root: emptyRoot}, opt.Signer)
	if err != nil {
		return err
	}
	// "ledger" comes last: it makes the folder a ledger.
	for _, f := range []struct {
		name string
		data []byte
	}{{"log.vkey", []byte(vkey + "\n")}, {"checkpoint", check}, {"ledger", id}} {
		if err := store.WriteFile(opt.FS, f.name, f.data); err != nil {
			return err
		}
	}
	return opt.FS.SyncDir(".")
}

// Unfinished tells whether a folder without the file "ledger" holds what an
// interrupted Create leaves and nothing else: a log that was open once has
// another WAL file than the first.
func Unfinished(fsys store.FS) (bool, error) {
	if _, err := store.ReadFile(fsys, "ledger", 4096); !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if b, err := store.ReadFile(fsys, "checkpoint", 64<<10); err == nil {
		if n, err := CheckpointSize(b); err != nil || n > 0 {
			return false, nil
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	for _, d := range []string{"wal", "segments", "manifests", "tile"} {
		names, err := fsys.ReadDir(d)
		if err != nil {
			return false, err
		}
		if len(names) > 0 && (d != "wal" || len(names) > 1 || "wal/"+names[0] != walName(1)) {
			return false, nil
		}
	}
	return true, nil
}

// ClearUnfinished removes what an interrupted Create has left.
func ClearUnfinished(fsys store.FS) error {
	for _, name := range []string{walName(1), "wal", "segments", "manifests", "tile", "checkpoint", "checkpoint.tmp", "log.vkey", "log.vkey.tmp", "ledger.tmp"} {
		if err := store.Remove(fsys, name); err != nil {
			return err
		}
	}
	return fsys.SyncDir(".")
}

// closeAll closes the open WAL files.
func (c *contents) closeAll() error {
	var errs []error
	for _, w := range c.wals {
		errs = append(errs, closeFile(w.f))
	}
	return errors.Join(errs...)
}

func closeFile(f io.Closer) error {
	if f == nil {
		return nil
	}
	return f.Close()
}
