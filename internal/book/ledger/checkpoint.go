package ledger

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/gatebook/gatebook/internal/book/store"
)

// Tree is a tree head (C2SP tlog-checkpoint): the root over the first Size
// leaves of the log named Origin.
type Tree struct {
	Origin string
	Size   uint64
	Root   tlog.Hash
}

// text is the body of the checkpoint note. There are no extension lines.
func (t Tree) text() string {
	return fmt.Sprintf("%s\n%d\n%s\n", t.Origin, t.Size, base64.StdEncoding.EncodeToString(t.Root[:]))
}

// OpenCheckpoint verifies a signed checkpoint of the log that v names and
// returns its tree head.
func OpenCheckpoint(msg []byte, v note.Verifier) (Tree, error) {
	n, err := note.Open(msg, note.VerifierList(v))
	if err != nil {
		return Tree{}, fmt.Errorf("checkpoint: %w", err)
	}
	t, err := parseTree(n.Text)
	if err != nil {
		return Tree{}, err
	}
	if t.Origin != v.Name() {
		return Tree{}, fmt.Errorf("checkpoint is of log %q, the key of %q", t.Origin, v.Name())
	}
	return t, nil
}

// CheckpointOf is OpenCheckpoint with the verifier key as text.
func CheckpointOf(msg []byte, vkey string) (Tree, error) {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return Tree{}, fmt.Errorf("verifier key: %w", err)
	}
	return OpenCheckpoint(msg, v)
}

// CheckpointSize reads the size out of a checkpoint that is already trusted.
func CheckpointSize(msg []byte) (uint64, error) {
	text, _, _ := strings.Cut(string(msg), "\n\n")
	t, err := parseTree(text + "\n")
	return t.Size, err
}

func parseTree(text string) (Tree, error) {
	bad := errors.New("checkpoint is not three lines of origin, size and root")
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[3] != "" || lines[0] == "" {
		return Tree{}, bad
	}
	t := Tree{Origin: lines[0]}
	var err error
	if t.Size, err = strconv.ParseUint(lines[1], 10, 64); err != nil || strconv.FormatUint(t.Size, 10) != lines[1] {
		return Tree{}, bad
	}
	root, err := base64.StdEncoding.Strict().DecodeString(lines[2])
	if err != nil || len(root) != len(t.Root) {
		return Tree{}, bad
	}
	copy(t.Root[:], root)
	if t.text() != text {
		return Tree{}, bad // the base64 decoder skips line breaks
	}
	return t, nil
}

func signTree(t Tree, s note.Signer) ([]byte, error) {
	return note.Sign(&note.Note{Text: t.text()}, s)
}

// checkpointLoop signs every CheckpointEvery if there are new leaves.
func (l *Ledger) checkpointLoop(ctx context.Context) error {
	tick := time.NewTicker(l.opt.CheckpointEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		if err := l.SignCheckpoint(ctx); err != nil {
			return err
		}
	}
}

// SignCheckpoint signs the tree over everything that is on the disk now, first
// syncing if the tail is ahead. Without new leaves it does nothing.
func (l *Ledger) SignCheckpoint(ctx context.Context) error {
	l.checkMu.Lock()
	defer l.checkMu.Unlock()
	if l.Size() == l.signed.size {
		return nil
	}
	if err := l.syncOnce(); err != nil {
		return err
	}
	l.mu.RLock()
	to, state := l.durable, l.state.clone()
	l.mu.RUnlock()
	if to == l.signed.size {
		return nil
	}
	next := l.signed.clone()
	var tiles []tile
	next.full = func(level int, n uint64, hashes []tlog.Hash) {
		tiles = append(tiles, tile{level, n, append([]tlog.Hash(nil), hashes...)})
	}
	// A crash can leave a sealed segment that no checkpoint covers yet.
	if end := state.sealedEnd(); next.size < end {
		entries, err := state.entries(next.size, end)
		if err != nil {
			return l.fail(err)
		}
		for i := range entries {
			next.push(entries[i].leafHash())
		}
	}
	for _, w := range state.wals {
		if err := l.reread(w, next, to); err != nil {
			return l.fail(err)
		}
	}
	if next.size != to {
		return l.fail(fmt.Errorf("the disk holds %d leaves where memory has %d", next.size, to))
	}
	next.full = nil
	for _, t := range tiles {
		if err := writeTile(l.opt.FS, t); err != nil {
			return l.diskTrouble(err)
		}
	}
	return l.publish(ctx, next)
}

// signedOver tells whether a checkpoint covers a leaf.
func (l *Ledger) signedOver(leaf uint64) bool {
	l.checkMu.Lock()
	defer l.checkMu.Unlock()
	return l.signed.size > leaf
}

// diskTrouble lets a full disk pass, to be tried again, and stops at anything
// else.
func (l *Ledger) diskTrouble(err error) error {
	if errors.Is(diskError(err), ErrFull) {
		l.opt.Logger.Warn("no checkpoint now; it is tried again", "err", err)
		return nil
	}
	return l.fail(err)
}

// publish signs the head of f and makes it the newest checkpoint.
func (l *Ledger) publish(ctx context.Context, f *frontier) error {
	t := Tree{l.opt.Origin, f.size, f.root()}
	msg, err := signTree(t, l.opt.Signer)
	if err != nil {
		return l.fail(fmt.Errorf("signing the checkpoint: %w", err))
	}
	if err := store.WriteFile(l.opt.FS, "checkpoint", msg); err != nil {
		return l.diskTrouble(err)
	}
	l.signed = f
	l.mu.Lock()
	l.latest = msg
	l.mu.Unlock()
	_, err = l.own(ctx, &pending{mark: &markItem{markCheckpoint, t.Size, t.Root[:]}}, Written)
	if errors.Is(err, ErrFull) || errors.Is(err, ErrSlow) {
		return nil
	}
	return err
}

// reread pushes the leaves of w below `to` that f lacks, from the bytes on the
// disk, and compares them with what memory holds: the two ways must agree
// before the key is used.
func (l *Ledger) reread(w *walFile, f *frontier, to uint64) error {
	l.mu.RLock()
	batches, entries, first := w.batches, w.entries, w.header.first
	l.mu.RUnlock()
	// Batches are in order, so that those before are not gone through again.
	at, _ := slices.BinarySearchFunc(batches, f.size, func(b walBatch, size uint64) int {
		if b.first+uint64(b.count) <= size {
			return -1
		}
		return 1
	})
	batches = batches[at:]
	slice := l.opt.Pace.New(l.opt.Now)
	defer slice.Close()
	again := &l.again
	again.begin(w.window(batches, to))
	defer again.close()
	for i := range batches {
		b := &batches[i]
		if b.first >= to {
			break
		}
		slice.Yield()
		items, err := w.readBatch(b.batchInfo, &again.walWindow, again.items)
		if err != nil {
			return fmt.Errorf("reading %s again before signing: %w", w.name, err)
		}
		again.items = items
		for at := b.first; len(items) > 0; {
			if items, err = again.it.next(items); err != nil {
				return err
			}
			e, ok := again.it.leaf()
			if !ok {
				continue
			}
			if e != entries[at-first] {
				return fmt.Errorf("leaf %d in %s is not the one that was written", at, w.name)
			}
			if at == f.size {
				f.push(e.leafHash())
			}
			at++
		}
	}
	return nil
}

// rereading is the memory in which batches are read again before signing.
type rereading struct {
	walWindow
	items []byte
	it    item
}

// maxReread is how much of it is kept until the next time, for each of the
// buffers: more than the batches of a busy second take one by one.
const maxReread = 256 << 10

// begin takes what is to be read.
func (r *rereading) begin(w walWindow) {
	w.buf = r.buf[:0]
	r.walWindow = w
}

// close lets go of what was read and keeps the buffers.
func (r *rereading) close() {
	if cap(r.buf) > maxReread {
		r.buf = nil
	}
	if cap(r.items) > maxReread {
		r.items = nil
	}
	clear(r.items[:cap(r.items)]) // records in clear
	r.f, r.items, r.it = nil, r.items[:0], item{}
}

// tile is a full tile of level >= 1.
type tile struct {
	level  int
	n      uint64
	hashes []tlog.Hash
}

func writeTile(fsys store.FS, t tile) error {
	name := tilePath(t.level, t.n, tileWidth)
	if err := fsys.MkdirAll(path.Dir(name)); err != nil {
		return err
	}
	for dir := path.Dir(name); dir != "."; dir = path.Dir(dir) {
		if err := fsys.SyncDir(path.Dir(dir)); err != nil {
			return err
		}
	}
	b := make([]byte, 0, tileWidth*32)
	for _, h := range t.hashes {
		b = append(b, h[:]...)
	}
	return store.WriteFile(fsys, name, b)
}

func readTile(fsys store.FS, level int, n uint64) ([]tlog.Hash, error) {
	name := tilePath(level, n, tileWidth)
	b, err := store.ReadFile(fsys, name, tileWidth*32)
	if err != nil {
		return nil, err
	}
	if len(b) != tileWidth*32 {
		return nil, fmt.Errorf("%s has %d bytes instead of %d", name, len(b), tileWidth*32)
	}
	hashes := make([]tlog.Hash, tileWidth)
	for i := range hashes {
		copy(hashes[i][:], b[32*i:])
	}
	return hashes, nil
}
