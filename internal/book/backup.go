package book

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/store"
)

// BackupFile is one file of a backup.
type BackupFile struct {
	Name   string `json:"name"`
	Size   int64  `json:"size"`
	SHA256 string `json:"sha256"`
}

// BackupInfo is the file backup.json of a backup, its last: a backup without
// it was not finished.
type BackupInfo struct {
	Version  int          `json:"version"`
	Time     time.Time    `json:"time"`
	By       string       `json:"by"` // version of the program
	Origin   string       `json:"origin"`
	Key      string       `json:"key"` // verifier key
	Leaves   uint64       `json:"leaves"`
	Signed   uint64       `json:"signed"` // leaves that the checkpoint covers
	WithKeys bool         `json:"with_keys"`
	Files    []BackupFile `json:"files"`
}

const (
	backupVersion  = 1
	backupInfoName = "backup.json"
	maxBackupInfo  = 256 << 20
	keyStoreName   = "state/keys.db"
	besideName     = "state/live.db"
	backupKeys     = "keys" // folder in a backup with the wrapper's key files
)

// Beside writes a copy of the state that is kept beside the book, as it is at one
// moment, to a file in the data folder. nil: there is none.
type Beside func(io.Writer) error

// Backup writes a tar archive of the book as it is at one moment, backup.json
// last, and of the state beside it as it was just before, so that no change of
// that state lacks its record. Appending goes on meanwhile; sealing waits while
// the key store is copied. The wrapper's key files are in it only if withKeys:
// who has both can read everything. What a flood has counted but not recorded
// yet is not in it.
func (b *Book) Backup(w io.Writer, withKeys bool, beside Beside) (*BackupInfo, error) {
	var state backupState
	defer state.close()
	dir := filepath.Dir(b.cfg.statePath())
	if err := state.copyBeside(beside, dir); err != nil {
		return nil, err
	}
	var view *ledger.View
	var err error
	b.ledger.WithoutSealing(func() {
		if view, err = b.ledger.View(); err == nil {
			err = state.copyKeys(b.state, dir)
		}
	})
	if view != nil {
		defer view.Close()
	}
	if err != nil {
		return nil, err
	}
	return writeBackup(w, &b.cfg, view, &state, b.vkey, withKeys)
}

// BackupOffline is Backup of a book that no process serves.
func BackupOffline(ctx context.Context, c Config, w io.Writer, withKeys bool, beside Beside) (*BackupInfo, error) {
	r, err := OpenReader(ctx, c)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	var state backupState
	defer state.close()
	if err := state.copyBeside(beside, os.TempDir()); err != nil {
		return nil, err
	}
	ks, err := keys.OpenBolt(c.statePath(), true)
	if err != nil {
		return nil, err
	}
	if err = errors.Join(state.copyKeys(ks, os.TempDir()), ks.Close()); err != nil {
		return nil, err
	}
	key, err := ledger.SelfKey(store.Dir(c.Dir))
	if err != nil {
		return nil, err
	}
	return writeBackup(w, &c, r.view, &state, key, withKeys)
}

// backupState is copies of the state, in files without a name.
type backupState struct {
	keys   *os.File
	beside *os.File // nil: there is none
}

func (s *backupState) close() {
	for _, f := range []*os.File{s.keys, s.beside} {
		if f != nil {
			f.Close()
		}
	}
}

// copyKeys copies the key store: its keys are wrapped.
func (s *backupState) copyKeys(from keys.Store, dir string) (err error) {
	if s.keys, err = nameless(dir, func(w io.Writer) error { return keys.Copy(w, from) }); err != nil {
		err = fmt.Errorf("copying the key store: %w", err)
	}
	return err
}

func (s *backupState) copyBeside(beside Beside, dir string) (err error) {
	if beside == nil {
		return nil
	}
	if s.beside, err = nameless(dir, beside); err != nil {
		err = fmt.Errorf("copying the state beside the book: %w", err)
	}
	return err
}

// nameless makes a file without a name, in the folder dir, of what fill writes.
func nameless(dir string, fill func(io.Writer) error) (*os.File, error) {
	f, err := os.CreateTemp(dir, "backup-*.tmp")
	if err != nil {
		return nil, err
	}
	err = os.Remove(f.Name())
	if err == nil {
		err = fill(f)
	}
	if err == nil {
		_, err = f.Seek(0, io.SeekStart)
	}
	if err != nil {
		return nil, errors.Join(err, f.Close())
	}
	return f, nil
}

func writeBackup(w io.Writer, c *Config, view *ledger.View, state *backupState, key string, withKeys bool) (*BackupInfo, error) {
	_, tree := view.Checkpoint()
	info := &BackupInfo{
		Version: backupVersion, Time: time.Now().UTC().Truncate(time.Second), By: Version(),
		Origin: tree.Origin, Key: key, Leaves: view.Size(), Signed: tree.Size, WithKeys: withKeys,
	}
	out := tar.NewWriter(w)
	put := func(name string, size int64, r io.Reader) error {
		sum := sha256.New()
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Size: size, Mode: 0o600, ModTime: info.Time, Format: tar.FormatPAX}
		if err := out.WriteHeader(h); err != nil {
			return err
		}
		if n, err := io.Copy(io.MultiWriter(out, sum), r); err != nil || n != size {
			return fmt.Errorf("%s: %d of %d bytes copied: %w", name, n, size, errOr(err, io.ErrUnexpectedEOF))
		}
		info.Files = append(info.Files, BackupFile{name, size, hex.EncodeToString(sum.Sum(nil))})
		return nil
	}
	if err := view.Copy(put); err != nil {
		return nil, err
	}
	if err := putPolicies(c.Dir, put); err != nil {
		return nil, err
	}
	err := putFile(keyStoreName, state.keys, put)
	if err == nil && state.beside != nil {
		err = putFile(besideName, state.beside, put)
	}
	if err == nil && withKeys {
		err = putKeyFiles(c.KeyDir, put)
	}
	if err != nil {
		return nil, err
	}
	b, err := json.MarshalIndent(info, "", " ")
	if err == nil {
		err = put(backupInfoName, int64(len(b)), bytes.NewReader(b))
	}
	return info, errors.Join(err, out.Close())
}

func errOr(err, other error) error {
	if err != nil {
		return err
	}
	return other
}

// backupPolicies is the folder of the policy sets that once decided. They are
// not of the log, but old decisions are explained by them.
const backupPolicies = "policies"

func putPolicies(dir string, put func(string, int64, io.Reader) error) error {
	entries, err := os.ReadDir(filepath.Join(dir, backupPolicies))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || strings.HasPrefix(e.Name(), ".") || !strings.HasSuffix(e.Name(), ".json") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, backupPolicies, e.Name()))
		if err == nil {
			err = put(backupPolicies+"/"+e.Name(), int64(len(b)), bytes.NewReader(b))
		}
		if err != nil {
			return err
		}
	}
	return nil
}

func putFile(name string, f *os.File, put func(string, int64, io.Reader) error) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	return put(name, st.Size(), f)
}

func putKeyFiles(dir string, put func(string, int64, io.Reader) error) error {
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if !e.Type().IsRegular() || !strings.HasSuffix(e.Name(), ".key") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, e.Name()))
		if err == nil {
			err = put(backupKeys+"/"+e.Name(), int64(len(b)), bytes.NewReader(b))
		}
		if clear(b); err != nil {
			return err
		}
	}
	return nil
}

// SaveBackup unpacks an archive from Backup into a folder that is new or empty,
// durably, and compares every file with what backup.json says of it.
func SaveBackup(r io.Reader, dir string) (*BackupInfo, error) {
	if err := emptyFolder(dir, "name a new folder"); err != nil {
		return nil, err
	}
	in := tar.NewReader(r)
	got := map[string]BackupFile{}
	for {
		h, err := in.Next()
		if err == io.EOF {
			return nil, errors.New("the backup ends before it is complete; make it again")
		}
		if err != nil {
			return nil, fmt.Errorf("reading the backup: %w", err)
		}
		if err := backupName(h.Name); err != nil || h.Typeflag != tar.TypeReg || got[h.Name].Name != "" {
			return nil, fmt.Errorf("a backup has no file %q", h.Name)
		}
		f, err := saveFile(filepath.Join(dir, filepath.FromSlash(h.Name)), in, nil)
		if err != nil {
			return nil, err
		}
		f.Name = h.Name
		if got[h.Name] = f; h.Name == backupInfoName {
			break
		}
	}
	info, err := readBackupInfo(dir)
	if err != nil {
		return nil, err
	}
	if err := info.match(got); err != nil {
		return nil, err
	}
	return info, syncTree(dir)
}

// lostFound is a folder that file systems make where they are mounted.
const lostFound = "lost+found"

// emptyFolder makes the folder dir, or demands that it is empty; else hint says
// what to do.
func emptyFolder(dir, hint string) error {
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	entries, err := os.ReadDir(dir)
	if err != nil {
		return err
	}
	for _, e := range entries {
		if e.Name() != lostFound {
			return fmt.Errorf("%s is not empty: there is %s in it; %s", dir, e.Name(), hint)
		}
	}
	return nil
}

// saveFile writes one file of mode 0600 and syncs it.
func saveFile(name string, r io.Reader, own *owner) (BackupFile, error) {
	if err := os.MkdirAll(filepath.Dir(name), 0o700); err != nil {
		return BackupFile{}, err
	}
	f, err := os.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return BackupFile{}, err
	}
	if err := own.takeFile(f); err != nil {
		return BackupFile{}, errors.Join(err, f.Close())
	}
	sum := sha256.New()
	n, err := io.Copy(io.MultiWriter(f, sum), r)
	if err == nil {
		err = f.Sync()
	}
	return BackupFile{Size: n, SHA256: hex.EncodeToString(sum.Sum(nil))}, errors.Join(err, f.Close())
}

// backupName demands the name of a file that a backup may have.
func backupName(name string) error {
	if name == backupInfoName || name == keyStoreName || name == besideName || name == "ledger" || name == "log.vkey" || name == "checkpoint" {
		return nil
	}
	dir, rest, _ := strings.Cut(name, "/")
	if !slices.Contains([]string{"wal", "segments", "manifests", "tile", backupKeys, backupPolicies}, dir) || rest == "" ||
		strings.Contains(rest, "/") != (dir == "tile") || !filepath.IsLocal(filepath.FromSlash(name)) || filepath.ToSlash(filepath.Clean(name)) != name {
		return fmt.Errorf("not the name of a file in a backup: %q", name)
	}
	return nil
}

// HasState tells whether the state beside the book is in the backup.
func (info *BackupInfo) HasState() bool {
	return slices.ContainsFunc(info.Files, func(f BackupFile) bool { return f.Name == besideName })
}

func readBackupInfo(dir string) (*BackupInfo, error) {
	b, err := store.ReadFile(store.Dir(dir), backupInfoName, maxBackupInfo)
	if err != nil {
		return nil, fmt.Errorf("%s is not a finished backup: %w", dir, err)
	}
	var info BackupInfo
	d := json.NewDecoder(bytes.NewReader(b))
	d.DisallowUnknownFields()
	if err := d.Decode(&info); err != nil {
		return nil, fmt.Errorf("%s: %w", filepath.Join(dir, backupInfoName), err)
	}
	if info.Version != backupVersion {
		return nil, fmt.Errorf("%s: backup version %d is unknown to this release", dir, info.Version)
	}
	return &info, nil
}

// match demands that the files that are there are those that were backed up.
func (info *BackupInfo) match(got map[string]BackupFile) error {
	for _, want := range info.Files {
		if have, ok := got[want.Name]; !ok || have != want {
			return fmt.Errorf("%s is missing or not the file that was backed up", want.Name)
		}
	}
	if len(got) != len(info.Files)+1 {
		return fmt.Errorf("the backup has %d files, its list %d", len(got)-1, len(info.Files))
	}
	return nil
}

// syncTree makes the names below dir durable.
func syncTree(dir string) error {
	err := filepath.WalkDir(dir, func(name string, e os.DirEntry, err error) error {
		if err != nil || !e.IsDir() {
			return err
		}
		if e.Name() == lostFound {
			return fs.SkipDir
		}
		return store.Dir(name).SyncDir(".")
	})
	return errors.Join(err, store.Dir(filepath.Dir(dir)).SyncDir("."))
}
