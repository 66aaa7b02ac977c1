package authz

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
)

// Archive is a directory with the bundle of every set that was ever in force,
// each in a file named after its hash. Files are never changed or removed.
type Archive struct{ dir string }

// ErrNotArchived means that the archive has no such set.
var ErrNotArchived = errors.New("no such policy set is in the archive")

// NewArchive names the directory; it need not exist yet.
func NewArchive(dir string) *Archive { return &Archive{dir} }

var setPattern = regexp.MustCompile(`^[0-9a-f]{32}$`)

func (a *Archive) file(set string) string { return filepath.Join(a.dir, set+".json") }

// Keep makes sure that the set is in the archive and on the disk. It must be
// called before the set decides anything. A file that is there already and says
// something else is an error: one of the two is not what its name says.
func (a *Archive) Keep(e *Engine) error {
	if err := a.keep(e); err != nil {
		return fmt.Errorf("policy archive: %w", err)
	}
	return nil
}

func (a *Archive) keep(e *Engine) error {
	if err := makeDir(a.dir); err != nil {
		return err
	}
	name := a.file(e.set)
	have, err := os.ReadFile(name)
	if err == nil {
		if string(have) != string(e.bundle) {
			return fmt.Errorf("%s is not the set that its name says: move it away and find out who changed it", name)
		}
		return nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return writeOnce(a.dir, name, e.bundle)
}

// makeDir makes the directory, and makes sure that it lasts.
func makeDir(dir string) error {
	err := os.Mkdir(dir, 0o700)
	if errors.Is(err, fs.ErrExist) {
		return nil
	}
	if err != nil {
		return err
	}
	return syncDir(filepath.Dir(dir))
}

// writeOnce puts a file in place whole, or not at all.
func writeOnce(dir, name string, text []byte) (err error) {
	f, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	_, err = f.Write(text)
	err = errors.Join(err, f.Chmod(0o400), f.Sync(), f.Close())
	if err != nil {
		return err
	}
	if err := os.Rename(f.Name(), name); err != nil {
		return err
	}
	return syncDir(dir)
}

func syncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	return errors.Join(d.Sync(), d.Close())
}

// Open makes the engine of an archived set. It refuses a file that is not what
// its name says.
func (a *Archive) Open(set string) (*Engine, error) {
	if !setPattern.MatchString(set) {
		return nil, fmt.Errorf("%w: %q is not the hash of a set", ErrNotArchived, set)
	}
	bundle, err := os.ReadFile(a.file(set))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%w: %s", ErrNotArchived, set)
	}
	if err != nil {
		return nil, fmt.Errorf("policy archive: %w", err)
	}
	sum := sha256.Sum256(bundle)
	if hex.EncodeToString(sum[:16]) != set {
		return nil, fmt.Errorf("policy archive: %s was changed: its content does not have the hash that its name says", a.file(set))
	}
	e, err := LoadBundle(bundle)
	if err != nil {
		return nil, err
	}
	if e.set != set {
		return nil, fmt.Errorf("policy archive: %s does not make the set that its name says", a.file(set))
	}
	return e, nil
}
