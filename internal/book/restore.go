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
	// Partial: the restore has not ended. Keys: it brings the key files, too.
	Partial bool `json:"partial,omitempty"`
	Keys    bool `json:"keys,omitempty"`
}

// RestoredError means that a folder came from a backup and its log must not go
// on under its old name.
type RestoredError struct {
	Dir     string
	Backup  time.Time
	Partial bool // it was not restored to the end
}

func (e *RestoredError) Error() string {
	if e.Partial {
		return fmt.Sprintf("the restore of a backup of %s into %s was interrupted; run \"gatebook restore\" with that backup again", e.Backup.Format(time.RFC3339), e.Dir)
	}
	return fmt.Sprintf("%s was restored from a backup of %s; what was recorded after that would be signed over a second time. Go on in a new log that says so: gatebook book new --reason restored --continues CHECKPOINT, where CHECKPOINT is the newest checkpoint of the old log that anybody has kept (if nobody has: %s)",
		e.Dir, e.Backup.Format(time.RFC3339), filepath.Join(e.Dir, "checkpoint"))
}

// readMark reads the mark of a restored folder, nil if it has none. The list of
// a backup is as good: somebody has copied the backup there by hand.
func (c *Config) readMark() (*restoredMark, error) {
	b, err := store.ReadFile(store.Dir(c.Dir), restoredName, 4096)
	if errors.Is(err, fs.ErrNotExist) {
		if _, err := os.Lstat(filepath.Join(c.Dir, backupInfoName)); err != nil {
			return nil, nil
		}
		info, err := readBackupInfo(c.Dir)
		if err != nil {
			return nil, err
		}
		return &restoredMark{Origin: info.Origin, Leaves: info.Leaves, Backup: info.Time}, nil
	}
	m := new(restoredMark)
	if err == nil {
		err = json.Unmarshal(b, m)
	}
	if err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(c.Dir, restoredName), err)
	}
	return m, nil
}

// notRestored returns a *RestoredError for a restored folder.
func (c *Config) notRestored() error {
	m, err := c.readMark()
	if err != nil || m == nil {
		return err
	}
	return &RestoredError{c.Dir, m.Backup, m.Partial}
}

// Restored is what Restore has done.
type Restored struct {
	*BackupInfo
	Keys bool `json:"keys_restored"` // the key files of the backup, too
}

// Restore copies a backup into the book's folder, which must be new or empty,
// and the wrapper's key files, if the backup has them and the key folder is new
// or empty. Every file is compared with the backup's list. The folder can then
// be read and verified; to be served it needs Renew. Interrupted anywhere it can
// be called again with the same backup. What root restores belongs to the owner
// of the folder, or of the one that it is made in.
func Restore(c Config, backup string) (*Restored, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	info, err := readBackupInfo(backup)
	if err != nil {
		return nil, err
	}
	own, err := ownerFor(c.Dir)
	if err != nil {
		return nil, err
	}
	mark, err := c.beginRestore(info)
	if err != nil {
		return nil, err
	}
	if err := c.restoreFiles(info, backup, mark.Keys, own); err != nil {
		return nil, err
	}
	for _, dir := range []string{"wal", "segments", "manifests", "tile"} {
		if err := os.MkdirAll(filepath.Join(c.Dir, dir), 0o700); err != nil {
			return nil, err
		}
	}
	if mark.Keys {
		if err := errors.Join(own.takeFolders(c.KeyDir), syncTree(c.KeyDir)); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(own.takeFolders(c.Dir), syncTree(c.Dir)); err != nil {
		return nil, err
	}
	mark.Partial = false
	return &Restored{info, mark.Keys}, errors.Join(c.writeMark(mark), own.take(filepath.Join(c.Dir, restoredName)))
}

// beginRestore marks the folder before anything that could be taken for a log
// is in it. One in which a restore of the same backup was interrupted is taken
// up again.
func (c *Config) beginRestore(info *BackupInfo) (*restoredMark, error) {
	mark := &restoredMark{Origin: info.Origin, Leaves: info.Leaves, Backup: info.Time, Partial: true}
	was, err := c.readMark()
	switch {
	case err != nil:
		return nil, err
	case was != nil && was.Partial && was.Origin == mark.Origin && was.Leaves == mark.Leaves && was.Backup.Equal(mark.Backup):
		return was, nil
	case was != nil && was.Partial:
		return nil, &RestoredError{c.Dir, was.Backup, true}
	}
	if err := emptyFolder(c.Dir, "a backup is restored into an empty folder; move what is in it away"); err != nil {
		return nil, err
	}
	if mark.Keys, err = c.wantsKeys(info); err != nil {
		return nil, err
	}
	return mark, c.writeMark(mark)
}

func (c *Config) writeMark(m *restoredMark) error {
	b, err := json.Marshal(m)
	if err != nil {
		return err
	}
	return store.WriteFile(store.Dir(c.Dir), restoredName, b)
}

// wantsKeys tells whether the key files of a backup are to be restored. Among
// others they are not: an epoch that was destroyed must not come back.
func (c *Config) wantsKeys(info *BackupInfo) (bool, error) {
	if !info.WithKeys {
		return false, nil
	}
	entries, err := os.ReadDir(c.KeyDir)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return true, nil
	case err != nil:
		return false, err
	}
	return len(entries) == 0, nil
}

// restoreFiles copies what is in the list.
func (c *Config) restoreFiles(info *BackupInfo, backup string, keys bool, own *owner) error {
	for _, f := range info.Files {
		if err := backupName(f.Name); err != nil {
			return err
		}
		to := filepath.Join(c.Dir, filepath.FromSlash(f.Name))
		if dir, base := filepath.Split(f.Name); dir == backupKeys+"/" {
			if !keys {
				continue
			}
			to = filepath.Join(c.KeyDir, base)
		}
		if err := restoreFile(filepath.Join(backup, filepath.FromSlash(f.Name)), to, f, own); err != nil {
			return err
		}
	}
	return nil
}

func restoreFile(from, to string, want BackupFile, own *owner) error {
	f, err := os.Open(from)
	if err != nil {
		return err
	}
	defer f.Close()
	// What an interrupted restore has left may be half a file.
	if err := os.Remove(to); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	got, err := saveFile(to, f, own)
	if err != nil {
		return err
	}
	if got.Name = want.Name; got != want {
		return fmt.Errorf("%s is not the file that was backed up; do not use this backup", from)
	}
	return nil
}
