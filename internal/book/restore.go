package book

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/gatebook/gatebook/internal/book/store"
)

// restoredName marks a folder that was restored from a backup. Its log may
// have been continued elsewhere since, so nothing is appended to it.
const restoredName = "restored"

type restoredMark struct {
	Origin string    `json:"origin"`
	Leaves uint64    `json:"leaves"`
	Backup time.Time `json:"backup"`
}

// RestoredError means that a folder came from a backup and its log must not go
// on under its old name.
type RestoredError struct {
	Dir    string
	Backup time.Time
}

func (e *RestoredError) Error() string {
	return fmt.Sprintf("%s was restored from a backup of %s; what was recorded after that would be signed over a second time. Go on in a new log that says so: gatebook book new --reason restored --continues CHECKPOINT, where CHECKPOINT is the newest checkpoint of the old log that anybody has kept (if nobody has: %s)",
		e.Dir, e.Backup.Format(time.RFC3339), filepath.Join(e.Dir, "checkpoint"))
}

// notRestored returns a *RestoredError for a restored folder.
func (c *Config) notRestored() error {
	b, err := store.ReadFile(store.Dir(c.Dir), restoredName, 4096)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var m restoredMark
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return fmt.Errorf("%s: %w", filepath.Join(c.Dir, restoredName), err)
	}
	return &RestoredError{c.Dir, m.Backup}
}

// Restore copies a backup into the book's folder, which must be new or empty,
// and the wrapper's key files, if the backup has them and the key folder is new
// or empty. Every file is compared with the backup's list. The folder can then
// be read and verified; to be served it needs Renew.
func Restore(c Config, backup string) (*BackupInfo, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	info, err := readBackupInfo(backup)
	if err != nil {
		return nil, err
	}
	if err := emptyFolder(c.Dir); err != nil {
		return nil, err
	}
	// The mark comes before anything that could be taken for a log.
	b, err := json.Marshal(restoredMark{info.Origin, info.Leaves, info.Time})
	if err != nil {
		return nil, err
	}
	if err := store.WriteFile(store.Dir(c.Dir), restoredName, b); err != nil {
		return nil, err
	}
	keys, err := c.wantsKeys(info)
	if err != nil {
		return nil, err
	}
	for _, f := range info.Files {
		to := filepath.Join(c.Dir, filepath.FromSlash(f.Name))
		if dir, base := filepath.Split(f.Name); dir == backupKeys+"/" {
			if !keys {
				continue
			}
			to = filepath.Join(c.KeyDir, base)
		}
		if err := restoreFile(filepath.Join(backup, filepath.FromSlash(f.Name)), to, f); err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{"wal", "segments", "manifests", "tile"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, dir), 0o700); err != nil {
			return nil, err
		}
	}
	if keys {
		if err := syncTree(c.KeyDir); err != nil {
			return nil, err
		}
	}
	return info, syncTree(c.Dir)
}

// wantsKeys tells whether the key files of a backup are to be restored.
func (c *Config) wantsKeys(info *BackupInfo) (bool, error) {
	if !info.WithKeys {
		return false, nil
	}
	entries, err := os.ReadDir(c.KeyDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, os.MkdirAll(c.KeyDir, 0o700)
	case err != nil:
		return false, err
	}
	return len(entries) == 0, nil
}

func restoreFile(from, to string, want BackupFile) error {
	if err := backupName(want.Name); err != nil {
		return err
	}
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	got, err := saveFile(to, f)
	if err != nil {
		return err
	}
	if got.Name = want.Name; got != want {
		return fmt.Errorf("%s is not the file that was backed up; do not use this backup", from)
	}
	return nil
}
