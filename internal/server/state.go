package server

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/store"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/kv"
)

// StatePath is the file of the state beside the book.
func StatePath(f *config.File) string { return filepath.Join(string(f.Data), "state", "live.db") }

// StateError means that the state beside the book is not what was written there.
type StateError struct {
	Path    string
	Foreign bool // it belongs to another book
	Err     error
}

func (e *StateError) Error() string {
	if e.Foreign {
		return fmt.Sprintf("the state %s belongs to another book: what is in it is sealed under another key. Put this book's own file there (a backup has it); without it, move the file away: then all API keys are unknown and have to be issued again, and tokens that were revoked are not any more", e.Path)
	}
	return fmt.Sprintf("the state %s is damaged: %v. Put it back from a backup, and find out who changed it; API keys and tokens that were revoked after the backup have to be revoked again", e.Path, e.Err)
}

// Unwrap returns the cause.
func (e *StateError) Unwrap() error { return e.Err }

// IsDamagedState tells whether the state beside the book is damaged or foreign.
func IsDamagedState(err error) bool {
	var s *StateError
	return errors.As(err, &s)
}

// stateError tells apart what can be wrong with the state.
func stateError(f *config.File, err error) error {
	path := StatePath(f)
	switch {
	case errors.Is(err, keys.ErrLocked), errors.Is(err, kv.ErrLocked):
		return fmt.Errorf("%s: %w", path, store.ErrLocked)
	case errors.Is(err, kv.ErrForeign):
		return &StateError{path, true, err}
	case errors.Is(err, keys.ErrStoreDamaged):
		return &StateError{path, false, errors.New("its pages do not fit together")}
	case errors.Is(err, kv.ErrDamaged):
		return &StateError{path, false, err}
	}
	return err
}

// openState opens the state of a book that is open for writing.
func openState(f *config.File, b *book.Book) (*kv.Local, error) {
	key, err := b.StateKey("kv")
	if err != nil {
		return nil, fmt.Errorf("the key of the state beside the book: %w", err)
	}
	if err := keys.Inspect(StatePath(f)); err != nil {
		return nil, stateError(f, err)
	}
	l, err := kv.OpenLocal(StatePath(f), key, nil)
	if err != nil {
		return nil, stateError(f, err)
	}
	return l, nil
}

// bookAndState is the book as administration sees it: a backup takes the state
// along.
type bookAndState struct {
	*book.Book
	state *kv.Local
}

// Backup implements admin.Book.
func (b bookAndState) Backup(w io.Writer, withKeys bool) (*book.BackupInfo, error) {
	return b.Book.Backup(w, withKeys, b.state.Copy)
}

// stateOnDisk copies the state of a book that nobody has open, nil if there is
// none. A damaged one makes no backup: it would be taken for a good one.
func stateOnDisk(f *config.File) (book.Beside, error) {
	path := StatePath(f)
	if _, err := os.Lstat(path); errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err := keys.Inspect(path); err != nil {
		return nil, stateError(f, err)
	}
	return func(w io.Writer) error { return kv.CopyFile(path, w) }, nil
}

// StateStatus is how the state beside the book is.
type StateStatus struct {
	File    string         `json:"file"`
	Bytes   int64          `json:"bytes"`
	APIKeys map[string]int `json:"api_keys"` // by state
}

func (s *Server) stateStatus(f *config.File) StateStatus {
	out := StateStatus{File: StatePath(f), APIKeys: s.keys.Counts()}
	if st, err := os.Stat(out.File); err == nil {
		out.Bytes = st.Size()
	}
	return out
}
