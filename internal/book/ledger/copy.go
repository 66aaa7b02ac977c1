package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"

	"github.com/gatebook/gatebook/internal/book/store"
)

// Copy hands out every file that a copy of the ledger at the view's moment
// needs, under its name: opened by Open it holds the view's leaves and marks.
// Names come in one fixed order; put must read size bytes. Files of the view
// that were removed since (after compaction) are an fs.ErrNotExist.
func (v *View) Copy(put func(name string, size int64, r io.Reader) error) error {
	for _, name := range []string{"ledger", "log.vkey"} {
		if err := v.copyFile(name, put); err != nil {
			return err
		}
	}
	if err := put("checkpoint", int64(len(v.checkNote)), bytes.NewReader(v.checkNote)); err != nil {
		return err
	}
	for _, w := range v.wals {
		// Zeros written ahead, and batches since the view was made, stay behind.
		if err := put(w.name, w.end, io.NewSectionReader(w.f, 0, w.end)); err != nil {
			return err
		}
	}
	if err := v.copyManifests(put); err != nil {
		return err
	}
	for _, s := range v.segs {
		if err := v.copyFile(s.name(), put); err != nil {
			return err
		}
	}
	return v.copyTiles(put)
}

func (v *View) copyFile(name string, put func(string, int64, io.Reader) error) error {
	f, err := v.fsys.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	size, err := f.Size()
	if err != nil {
		return err
	}
	return put(name, size, io.NewSectionReader(f, 0, size))
}

// copyManifests copies all of them, also those of files that were replaced.
func (v *View) copyManifests(put func(string, int64, io.Reader) error) error {
	names, err := v.fsys.ReadDir("manifests")
	if err != nil {
		return err
	}
	for _, base := range names {
		// Those whose leaf came later describe files that the view does not have.
		if index, err := parseManifestName(base); err != nil || index >= v.size() {
			continue
		}
		if err := v.copyFile("manifests/"+base, put); err != nil {
			return err
		}
	}
	return nil
}

// copyTiles copies the full tiles that the view's checkpoint covers.
func (v *View) copyTiles(put func(string, int64, io.Reader) error) error {
	for level := 1; v.check.Size>>(8*(level+1)) > 0; level++ {
		for n := range v.check.Size >> (8 * (level + 1)) {
			if err := v.copyFile(tilePath(level, n, tileWidth), put); err != nil {
				return err
			}
		}
	}
	return nil
}

// Release makes a folder that holds a ledger, or part of one, a folder without
// one: its files go to the folder to, in an order that lets a crash in the
// middle be made good by calling it again.
func Release(fsys store.FS, to string) error {
	if err := fsys.MkdirAll(to); err != nil {
		return err
	}
	if err := fsys.SyncDir("."); err != nil {
		return err
	}
	// "ledger" goes first: from then on nobody takes the rest for a ledger.
	for _, name := range []string{"ledger", "checkpoint", "log.vkey", "wal", "segments", "manifests", "tile"} {
		if err := fsys.Rename(name, to+"/"+name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("moving %s to %s: %w", name, to, err)
		}
	}
	return errors.Join(fsys.SyncDir(to), fsys.SyncDir("."))
}
