package server

import (
	"context"
	"errors"
	"io"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/config"
)

// BackupOffline writes a backup of the book of a configuration that no process
// serves, with the state beside it, as a tar archive.
func BackupOffline(ctx context.Context, f *config.File, w io.Writer, withKeys bool) error {
	beside, err := stateOnDisk(f)
	if err != nil {
		return err
	}
	_, err = book.BackupOffline(ctx, BookConfig(f, nil), w, withKeys, beside)
	return err
}

// SaveBackup unpacks and checks the archive of a backup into a new folder.
func SaveBackup(r io.Reader, dir string) (*book.BackupInfo, error) { return book.SaveBackup(r, dir) }

// Restore copies a backup to the data folder of a configuration.
func Restore(f *config.File, backup string) (*book.Restored, error) {
	return book.Restore(BookConfig(f, nil), backup)
}

// RenewBook begins a new log in the data folder of a configuration.
func RenewBook(ctx context.Context, f *config.File, reason string, continues []byte) (*book.Renewal, error) {
	return book.Renew(ctx, BookConfig(f, nil), book.RenewOptions{Reason: reason, Continues: continues})
}

// RenewReasons are the words that RenewBook takes.
func RenewReasons() []string { return book.RenewReasons() }

// IsRestored tells whether a book may not go on because it was restored.
func IsRestored(err error) bool {
	var r *book.RestoredError
	return errors.As(err, &r)
}
