package keys

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
)

// The wrapping key of epoch n is the file epoch-NNNNNNNNNN.key: 0x01 · 32
// random bytes. A wrapped epoch key is 0x01 · nonce (12) · AES-256-GCM (48)
// with label, version and epoch as associated data.
const (
	fileV1        = 0x01
	fileLen       = 1 + 32
	fileLabel     = "gatebook/v1/epoch"
	fileWrapV1    = 0x01
	fileWrapLen   = 1 + 12 + 32 + 16
	epochPrefix   = "epoch-"
	epochSuffix   = ".key"
	pendingSuffix = ".new"
)

// FileWrapper keeps one wrapping key per epoch in a directory of its own. The
// directory belongs outside the data directory and outside its backups: who
// has both can read everything.
//
// Destroying an epoch overwrites, syncs and unlinks its file. On a
// copy-on-write file system, a journalled one that logs data, or a device
// with wear levelling, the old bytes may survive below; where that matters use
// a wrapper whose keys live elsewhere, or an encrypted device for the
// directory.
type FileWrapper struct {
	dir string
	mu  sync.Mutex // serialises NewEpoch and DestroyEpoch within the process
}

// OpenFileWrapper opens an existing directory. It refuses one that is a
// symbolic link, belongs to another user or is open to others, and says which
// command mends it; the same goes for each key file whenever it is used.
func OpenFileWrapper(dir string) (*FileWrapper, error) {
	w := &FileWrapper{dir: dir}
	d, err := w.openDir()
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("key directory %s does not exist; mount it, or for a new ledger run: mkdir -m 0700 %s: %w", dir, dir, err)
	}
	if err != nil {
		return nil, err
	}
	return w, d.Close()
}

// CreateFileWrapper makes the directory with mode 0700 if it is missing, then
// opens it. The parent directory must exist.
func CreateFileWrapper(dir string) (*FileWrapper, error) {
	err := os.Mkdir(dir, 0o700)
	switch {
	case err == nil:
		if err := syncDir(filepath.Dir(dir)); err != nil {
			return nil, fmt.Errorf("cannot make key directory %s durable: %w", dir, err)
		}
	case !errors.Is(err, fs.ErrExist):
		return nil, fmt.Errorf("cannot create key directory: %w", err)
	}
	return OpenFileWrapper(dir)
}

// openDir opens the directory itself and checks it.
func (w *FileWrapper) openDir() (*os.File, error) {
	fi, err := os.Lstat(w.dir)
	if err != nil {
		return nil, err
	}
	if fi.Mode()&fs.ModeSymlink != 0 {
		return nil, fmt.Errorf("key directory %s is a symbolic link; configure the directory it points to", w.dir)
	}
	d, err := os.OpenFile(w.dir, os.O_RDONLY|noFollow, 0)
	if err != nil {
		return nil, err
	}
	if err := checkPrivate(d, w.dir, 0o700); err != nil {
		return nil, errors.Join(err, d.Close())
	}
	return d, nil
}

func (w *FileWrapper) path(epoch uint32, suffix string) string {
	return filepath.Join(w.dir, fmt.Sprintf("%s%010d%s", epochPrefix, epoch, suffix))
}

// highest returns the highest epoch number that a file, finished or not, has.
func (w *FileWrapper) highest() (uint32, error) {
	d, err := w.openDir()
	if err != nil {
		return 0, err
	}
	names, err := d.Readdirnames(-1)
	if err = errors.Join(err, d.Close()); err != nil {
		return 0, err
	}
	var high uint32
	for _, name := range names {
		digits, ok := strings.CutPrefix(name, epochPrefix)
		if !ok {
			continue
		}
		digits = strings.TrimSuffix(strings.TrimSuffix(digits, epochSuffix), pendingSuffix)
		n, err := strconv.ParseUint(digits, 10, 32)
		if err != nil {
			return 0, fmt.Errorf("%s: not a key file name; move the file away", filepath.Join(w.dir, name))
		}
		high = max(high, uint32(n))
	}
	return high, nil
}

// NewEpoch implements Wrapper. A crash in the middle leaves at most an unused
// *.new file, whose number is skipped.
func (w *FileWrapper) NewEpoch(ctx context.Context) (uint32, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	for {
		if err := ctx.Err(); err != nil {
			return 0, err
		}
		high, err := w.highest()
		if err != nil {
			return 0, err
		}
		if high == 1<<32-1 {
			return 0, errors.New("epoch numbers are used up")
		}
		ok, err := w.create(high + 1)
		if err != nil {
			return 0, fmt.Errorf("cannot create the key file of epoch %d: %w", high+1, err)
		}
		if ok {
			return high + 1, nil
		}
	}
}

// create makes the file of one epoch; false means another process was faster.
// The exclusively created *.new file is also the claim on the number, so the
// rename can never replace somebody else's key.
func (w *FileWrapper) create(epoch uint32) (ok bool, err error) {
	temp, final := w.path(epoch, pendingSuffix), w.path(epoch, epochSuffix)
	f, err := os.OpenFile(temp, os.O_WRONLY|os.O_CREATE|os.O_EXCL|noFollow, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer func() {
		if !ok {
			err = errors.Join(err, wipe(f, temp))
		}
	}()
	if _, err := os.Lstat(final); err == nil {
		return false, nil
	} else if !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	var content [fileLen]byte
	defer clear(content[:])
	content[0] = fileV1
	rand.Read(content[1:])
	if _, err := f.Write(content[:]); err != nil {
		return false, err
	}
	if err := f.Sync(); err != nil {
		return false, err
	}
	if err := os.Rename(temp, final); err != nil {
		return false, err
	}
	// From here on the file must stay: it may be durable already.
	return true, errors.Join(f.Close(), syncDir(w.dir))
}

// wipe overwrites an open key file with zeros, syncs, closes and unlinks it.
func wipe(f *os.File, name string) error {
	var zero [fileLen]byte
	_, err := f.WriteAt(zero[:], 0)
	return errors.Join(err, f.Sync(), f.Close(), os.Remove(name))
}

// rootKey reads the wrapping key of one epoch.
func (w *FileWrapper) rootKey(ctx context.Context, epoch uint32) (Key, error) {
	if err := ctx.Err(); err != nil {
		return Key{}, err
	}
	d, err := w.openDir()
	if err != nil {
		return Key{}, err
	}
	if err := d.Close(); err != nil {
		return Key{}, err
	}
	name := w.path(epoch, epochSuffix)
	f, err := openPrivate(name, os.O_RDONLY, 0)
	if err != nil {
		return Key{}, fmt.Errorf("cannot read the key file of epoch %d: %w", epoch, err)
	}
	content := make([]byte, fileLen+1)
	defer clear(content)
	n, err := io.ReadFull(f, content)
	if errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, io.EOF) {
		err = nil
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return Key{}, err
	}
	switch {
	case n > 0 && content[0] == 0:
		return Key{}, fmt.Errorf("%s was wiped: epoch %d is destroyed", name, epoch)
	case n > 0 && content[0] != fileV1:
		return Key{}, fmt.Errorf("%s: %w %#02x", name, ErrVersion, content[0])
	case n != fileLen:
		return Key{}, fmt.Errorf("%s has %d bytes instead of %d; restore it from where it was kept", name, n, fileLen)
	}
	return Key(content[1:fileLen]), nil
}

func fileAD(epoch uint32) []byte {
	return binary.BigEndian.AppendUint32(append([]byte(fileLabel), fileWrapV1), epoch)
}

// Wrap implements Wrapper.
func (w *FileWrapper) Wrap(ctx context.Context, epoch uint32, key *Key) ([]byte, error) {
	root, err := w.rootKey(ctx, epoch)
	if err != nil {
		return nil, err
	}
	defer clear(root[:])
	aead, err := newAEAD(&root)
	if err != nil {
		return nil, err
	}
	out := make([]byte, 1, fileWrapLen)
	out[0] = fileWrapV1
	return aead.Seal(out, nil, key[:], fileAD(epoch)), nil
}

// Unwrap implements Wrapper.
func (w *FileWrapper) Unwrap(ctx context.Context, epoch uint32, b []byte) (Key, error) {
	switch {
	case len(b) > 0 && b[0] != fileWrapV1:
		return Key{}, fmt.Errorf("wrapped epoch key: %w %#02x", ErrVersion, b[0])
	case len(b) != fileWrapLen:
		return Key{}, fmt.Errorf("wrapped epoch key has %d bytes instead of %d", len(b), fileWrapLen)
	}
	root, err := w.rootKey(ctx, epoch)
	if err != nil {
		return Key{}, err
	}
	defer clear(root[:])
	aead, err := newAEAD(&root)
	if err != nil {
		return Key{}, err
	}
	var key Key
	if _, err := aead.Open(key[:0], nil, b[1:], fileAD(epoch)); err != nil {
		return Key{}, fmt.Errorf("%s does not open the key of epoch %d: it is not the file that wrapped it, or the key store was changed",
			w.path(epoch, epochSuffix), epoch)
	}
	return key, nil
}

// DestroyEpoch implements Wrapper. See FileWrapper for what a file system may
// keep all the same.
func (w *FileWrapper) DestroyEpoch(ctx context.Context, epoch uint32) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if err := ctx.Err(); err != nil {
		return err
	}
	d, err := w.openDir()
	if err != nil {
		return err
	}
	for _, suffix := range []string{epochSuffix, pendingSuffix} {
		name := w.path(epoch, suffix)
		f, openErr := openPrivate(name, os.O_WRONLY, 0)
		if errors.Is(openErr, fs.ErrNotExist) {
			continue
		}
		if openErr == nil {
			openErr = wipe(f, name)
		}
		if openErr != nil {
			return errors.Join(fmt.Errorf("cannot destroy epoch %d: %w", epoch, openErr), d.Close())
		}
	}
	return errors.Join(d.Sync(), d.Close())
}

// syncDir makes the names in a directory durable.
func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}
