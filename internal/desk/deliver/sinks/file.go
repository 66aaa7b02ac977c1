package sinks

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/gatebook/gatebook/internal/desk/deliver"
	"github.com/gatebook/gatebook/internal/pace"
)

const (
	fileItems  = 5000
	fileBytes  = 2 << 20
	fileItem   = 1 << 20
	fileWindow = 16 << 20 // bytes of the end of a file that are looked at; several batches
	minRotate  = 1 << 16
)

// FileConfig is what a file sink needs to know.
type FileConfig struct {
	// Path is of the file that is written, and must be in a directory that is
	// there. Files that are full lie beside it: NAME-TIME.EXT, and all but the
	// newest of them NAME-TIME.EXT.zst.
	Path string
	// MaxBytes and MaxAge are when a file is full; 0: never. Age is told by the
	// clock: 24 h is the end of a day (UTC).
	MaxBytes int64
	MaxAge   time.Duration

	Now func() time.Time // default time.Now
	// Pace is other long work of the process, with which reading back and
	// compressing give way to requests; nil: none.
	Pace *pace.Group
}

// File appends JSON Lines, one record a line as the projection made it. A batch
// is delivered when the file is synced (G2). The file is opened and locked for
// one batch: another program may move it away at any time, and a torn end, left
// by a kill or a power cut, is cut off before anything is written behind it. What
// the end of the file has already is not written again.
type File struct {
	conf FileConfig
	disk disk

	mu   sync.Mutex
	left fileState             // guarded by mu; how the last Send left the file
	has  map[[16]byte]struct{} // guarded by mu; hashes of lines at the end when it was read
	// named is the file whose name is known to be in its directory for good: one
	// that somebody made before may have come without it.
	named fileState // guarded by mu; dev and ino only
}

// fileState tells whether a file is as it was left.
type fileState struct {
	dev, ino uint64
	size     int64
	known    bool
}

// disk is what File needs of the file system.
type disk interface {
	// Open opens or creates for appending, without following a symbolic link.
	Open(name string) (diskFile, error)
	Rename(from, to string) error
	SyncDir(name string) error
	// Compress replaces a file by one with .zst behind its name.
	Compress(name string) error
}

type diskFile interface {
	io.Writer
	io.ReaderAt
	io.Closer
	Stat() (fs.FileInfo, error)
	Truncate(size int64) error
	Sync() error
	Fd() uintptr
}

// NewFile checks the configuration. Nothing is opened yet.
func NewFile(c FileConfig) (*File, error) {
	if c.Now == nil {
		c.Now = time.Now
	}
	switch {
	case c.Path == "" || strings.HasSuffix(c.Path, "/"):
		return nil, errors.New("file: the path of the file is missing")
	case c.MaxBytes != 0 && c.MaxBytes < minRotate:
		return nil, fmt.Errorf("file: files of %d bytes are too small; %d at least", c.MaxBytes, minRotate)
	case c.MaxAge != 0 && c.MaxAge < time.Minute:
		return nil, errors.New("file: files of less than a minute are too many")
	}
	return &File{conf: c, disk: osDisk{c.Pace}}, nil
}

// Limits implements deliver.Sink.
func (f *File) Limits() deliver.Limits {
	return deliver.Limits{Items: fileItems, Bytes: fileBytes, Item: fileItem, Overhead: 1, InFlight: 1}
}

// Grade implements deliver.Sink.
func (f *File) Grade() deliver.Grade { return deliver.Durable }

// errNotOurs is about a file that is not written to, because it is not what a
// file sink left.
type errNotOurs struct{ why string }

func (e *errNotOurs) Error() string { return e.why }

// errTorn wraps an error after which it is not known what the file has.
type errTorn struct{ error }

func (e *errTorn) Unwrap() error { return e.error }

// Send implements deliver.Sink.
func (f *File) Send(ctx context.Context, b *deliver.Batch) deliver.Result {
	if r := checkLines(b); r != nil {
		return *r
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return failed(&Unsent{err})
	}
	if err := f.append(b); err != nil {
		return fileFailed(err)
	}
	return deliver.Result{Class: deliver.Done, Grade: deliver.Durable, Cause: "synced"}
}

// checkLines refuses what would not be one line.
func checkLines(b *deliver.Batch) *deliver.Result {
	for i := range b.Items {
		if bytes.IndexByte(b.Items[i].Body, '\n') < 0 && len(b.Items[i].Body) > 0 {
			continue
		}
		if len(b.Items) > 1 {
			return &deliver.Result{Class: deliver.Split, Cause: "line", Detail: fmt.Sprintf("record %d is not one line", b.Items[i].Index)}
		}
		return &deliver.Result{Class: deliver.Poison, Cause: "line", Detail: "the record is not one line"}
	}
	return nil
}

// fileFailed: whatever the disk says is tried again, and only what a person has to
// put right stops the sink. It is ambiguous if the file could not be brought back
// to what it was; the next attempt then looks.
func fileFailed(err error) deliver.Result {
	var torn *errTorn
	r := deliver.Result{Class: deliver.Retry, Cause: "file", Ambiguous: errors.As(err, &torn), Detail: excerpt([]byte(err.Error()))}
	var not *errNotOurs
	switch {
	case errors.As(err, &not), errors.Is(err, syscall.ELOOP):
		r.Class, r.Cause = deliver.Pause, "not_ours"
	case errors.Is(err, fs.ErrPermission):
		r.Class, r.Cause = deliver.Pause, "permission"
	case errors.Is(err, syscall.ENOSPC), errors.Is(err, syscall.EDQUOT):
		r.Cause = "disk_full"
	case errors.Is(err, syscall.EIO):
		r.Cause = "io"
	case errors.Is(err, syscall.EWOULDBLOCK):
		r.Cause = "locked"
	case errors.Is(err, fs.ErrNotExist):
		r.Cause = "missing"
	}
	return r
}

// append writes what the file does not have yet and syncs it.
func (f *File) append(b *deliver.Batch) error {
	h, at, err := f.ready()
	if err != nil {
		return err
	}
	defer h.Close()
	out := make([]byte, 0, fileBytes/8)
	for i := range b.Items {
		if _, ok := f.has[lineHash(b.Items[i].Body)]; !ok {
			out = append(append(out, b.Items[i].Body...), '\n')
		}
	}
	f.left.known = false
	_, err = h.Write(out)
	if err == nil {
		err = h.Sync()
	}
	if here := (fileState{dev: at.dev, ino: at.ino}); err == nil && (at.size == 0 || here != f.named) {
		if err = f.disk.SyncDir(filepath.Dir(f.conf.Path)); err == nil {
			f.named = here
		}
	}
	if err != nil {
		// After a failed sync pages may count as written that are not, so all of it
		// is taken back and written anew.
		if undo := h.Truncate(at.size); undo != nil {
			return &errTorn{fmt.Errorf("%w; and cannot be taken back: %w", err, undo)}
		}
		f.left = at
		return err
	}
	at.size += int64(len(out))
	f.left = at
	return nil
}

// ready opens and locks the file, looks at its end unless it is as it was left,
// and begins another one if it is full.
func (f *File) ready() (diskFile, fileState, error) {
	for range 4 {
		h, err := f.disk.Open(f.conf.Path)
		if err != nil {
			return nil, fileState{}, err
		}
		at, what, err := f.look(h)
		if err == nil && what == fileGood {
			return h, at, nil
		}
		if err == nil && what == fileFull {
			err = f.rotate()
		}
		_ = h.Close()
		if err != nil {
			return nil, fileState{}, err
		}
	}
	return nil, fileState{}, errors.New("the file is moved or full again and again")
}

// What look finds.
const (
	fileGood  = iota
	fileFull  // and is to be put aside
	fileMoved // the name is another file's by now
)

// look locks the file, and reads its end unless it is as it was left.
func (f *File) look(h diskFile) (at fileState, what int, err error) {
	if err := syscall.Flock(int(h.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return at, fileGood, fmt.Errorf("another process writes to the file: %w", err)
	}
	info, err := h.Stat()
	if err != nil {
		return at, fileGood, err
	}
	if now, err := os.Lstat(f.conf.Path); errors.Is(err, fs.ErrNotExist) || err == nil && !os.SameFile(now, info) {
		return at, fileMoved, nil
	} else if err != nil {
		return at, fileGood, err
	}
	if !info.Mode().IsRegular() {
		return at, fileGood, &errNotOurs{"it is no regular file"}
	}
	if info.Mode().Perm()&0o007 != 0 {
		return at, fileGood, &errNotOurs{"everybody may read or write the file; take that away with chmod o-rwx"}
	}
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		at.dev, at.ino = uint64(st.Dev), st.Ino
	}
	at.size, at.known = info.Size(), true
	if at != f.left {
		if at.size, err = f.readEnd(h, at.size); err != nil {
			return at, fileGood, err
		}
	}
	if at.size > 0 && f.full(at.size, info.ModTime()) {
		return at, fileFull, nil
	}
	return at, fileGood, nil
}

func (f *File) full(size int64, last time.Time) bool {
	age := f.conf.MaxAge
	return f.conf.MaxBytes > 0 && size >= f.conf.MaxBytes ||
		age > 0 && !f.conf.Now().UTC().Truncate(age).Equal(last.UTC().Truncate(age))
}

// readEnd cuts a torn end off and remembers the lines before it, those of the
// file before included if this one is short. It returns the size that is left.
func (f *File) readEnd(h diskFile, size int64) (int64, error) {
	f.has = map[[16]byte]struct{}{}
	start := max(size-fileWindow, 0)
	end := make([]byte, size-start)
	if _, err := h.ReadAt(end, start); err != nil && !errors.Is(err, io.EOF) {
		return 0, err
	}
	first := make([]byte, 1)
	if _, err := h.ReadAt(first, 0); err == nil && first[0] != '{' && first[0] != 0 {
		return 0, &errNotOurs{"the file has something other than JSON Lines; name another one"}
	}
	whole := bytes.LastIndexByte(end, '\n') + 1
	for whole > 0 {
		line := bytes.LastIndexByte(end[:whole-1], '\n') + 1
		if bytes.IndexByte(end[line:whole], 0) < 0 {
			break
		}
		whole = line // a hole that a power cut left
	}
	if whole == 0 && start > 0 {
		return 0, &errNotOurs{"the end of the file has no lines"}
	}
	if whole < len(end) {
		if err := h.Truncate(start + int64(whole)); err != nil {
			return 0, err
		}
	}
	if start == 0 {
		if err := f.readBefore(); err != nil {
			return 0, err
		}
	}
	f.remember(end[:whole])
	return start + int64(whole), nil
}

// readBefore remembers the end of the newest file that is full: the process may
// have ended right after it began another one.
func (f *File) readBefore() error {
	old, err := f.before()
	if err != nil || len(old) == 0 {
		return err
	}
	r, err := os.Open(old[len(old)-1])
	if err != nil {
		return err
	}
	defer r.Close()
	info, err := r.Stat()
	if err != nil {
		return err
	}
	b := make([]byte, min(info.Size(), fileWindow))
	if _, err := r.ReadAt(b, info.Size()-int64(len(b))); err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	f.remember(b)
	return nil
}

func (f *File) remember(lines []byte) {
	slice := f.conf.Pace.New(time.Now)
	defer slice.Close()
	for line := range bytes.Lines(lines) {
		slice.Yield()
		f.has[lineHash(bytes.TrimSuffix(line, []byte("\n")))] = struct{}{}
	}
}

func lineHash(line []byte) [16]byte {
	h := sha256.Sum256(line)
	return [16]byte(h[:16])
}

// Test implements deliver.Sink: it opens the file, and writes nothing. A file
// that is not there yet is made.
func (f *File) Test(context.Context) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	h, err := f.disk.Open(f.conf.Path)
	if err != nil {
		return fmt.Errorf("the file cannot be opened: %w", err)
	}
	defer h.Close()
	f.left.known = false
	if _, _, err := f.look(h); err != nil {
		return fmt.Errorf("the file %s cannot be used: %w", f.conf.Path, err)
	}
	return nil
}
