package server

import (
	"context"
	"crypto/fips140"
	"errors"
	"log/slog"
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
	"syscall"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
	"github.com/gatebook/gatebook/internal/config"
	"github.com/gatebook/gatebook/internal/desk/admin"
	"github.com/gatebook/gatebook/internal/desk/query"
)

// CreateBook makes the book of a configuration and returns its verifier key.
func CreateBook(ctx context.Context, f *config.File) (string, error) {
	if err := os.MkdirAll(string(f.Data), 0o700); err != nil {
		return "", err
	}
	return book.Create(ctx, BookConfig(f, nil))
}

// Offline reads a book that no process serves. Opening it takes the lock.
type Offline struct {
	reader *book.Reader
	book   *book.Book // only when personal parts are to be opened
}

// OpenOffline opens the book of a configuration. To open personal parts it
// opens the book for writing too: each such opening is itself a record.
func OpenOffline(ctx context.Context, f *config.File, act, target string, reveal bool) (*Offline, error) {
	c := BookConfig(f, slog.New(slog.DiscardHandler))
	if !reveal {
		r, err := book.OpenReader(ctx, c)
		if err != nil {
			return nil, err
		}
		r.EndWith(ctx)
		return &Offline{reader: r}, nil
	}
	b, err := book.Open(ctx, c)
	if err != nil {
		return nil, err
	}
	if err := admin.NoteAccess(ctx, b, localActor(), act, target, true); err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	r, err := b.Reader()
	if err != nil {
		return nil, errors.Join(err, b.Close(ctx))
	}
	r.EndWith(ctx)
	return &Offline{reader: r, book: b}, nil
}

func localActor() *admin.Caller {
	uid := strconv.Itoa(os.Getuid())
	if u, err := user.Current(); err == nil {
		uid = u.Uid
	}
	return admin.Local("offline", "uid:"+uid, admin.Roles()...)
}

// Close lets go of the book.
func (o *Offline) Close(ctx context.Context) error {
	err := o.reader.Close()
	if o.book != nil {
		err = errors.Join(err, o.book.Close(ctx))
	}
	return err
}

// Search hands out what matches.
func (o *Offline) Search(q query.Query, fn func(*query.Match) error) error {
	return query.Search(o.reader, q, fn)
}

// Find returns the record of one exchange.
func (o *Offline) Find(id string, reveal bool) (*query.Match, error) {
	return query.Find(o.reader, id, reveal)
}

// Count counts the exchanges that match, or the records.
func (o *Offline) Count(field string, q query.Query, records bool) ([]query.Count, error) {
	return query.CountBy(o.reader, field, q, records)
}

// Prove makes a proof file.
func (o *Offline) Prove(id string, reveal bool) ([]byte, error) {
	rid, err := query.ParseID(id)
	if err != nil {
		return nil, err
	}
	return admin.Prove(o.reader, rid, reveal)
}

// KeyFile is where the verifier key of a configuration's log is.
func KeyFile(f *config.File) string { return filepath.Join(string(f.Data), "log.vkey") }

// Verify checks the evidence in a folder; keyDir may be empty. While a server
// has the book open it fails with an error that IsLocked knows.
func Verify(ctx context.Context, dir, keyDir, key string, saved []byte) (*ledger.Report, error) {
	return book.Verify(ctx, book.VerifyOptions{Dir: dir, KeyDir: keyDir, Key: key, Saved: saved})
}

// IsLocked tells whether another process has the book.
func IsLocked(err error) bool { return errors.Is(err, store.ErrLocked) }

// IsNotFound tells whether something asked for is not there.
func IsNotFound(err error) bool { return errors.Is(err, book.ErrNotFound) }

// IsKeyless tells whether a key is missing or cannot be unwrapped. A full disk is
// another trouble.
func IsKeyless(err error) bool {
	var k *ledger.KeyError
	return !errors.Is(err, syscall.ENOSPC) && (errors.As(err, &k) || errors.Is(err, keys.ErrKeyUnavailable))
}

// Build says what this binary is.
type Build struct {
	Version string `json:"version"`
	Go      string `json:"go"`
	Schema  int    `json:"record_schema"`
	FIPS    bool   `json:"fips140"` // the cryptographic module runs in FIPS 140-3 mode
}

// Version describes the build.
func Version() Build {
	return Build{book.Version(), runtime.Version(), record.Version, fips140.Enabled()}
}
