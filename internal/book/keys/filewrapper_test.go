package keys

import (
	"bytes"
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
)

func TestFileWrapper(t *testing.T) {
	ctx := t.Context()
	dir := filepath.Join(t.TempDir(), "keys")
	if _, err := OpenFileWrapper(dir); !errors.Is(err, fs.ErrNotExist) || !strings.Contains(err.Error(), "mkdir -m 0700") {
		t.Errorf("missing directory: %v", err)
	}
	w := value[*FileWrapper](t)(CreateFileWrapper(dir))
	first, second := value[uint32](t)(w.NewEpoch(ctx)), value[uint32](t)(w.NewEpoch(ctx))
	if first != 1 || second != 2 {
		t.Errorf("epochs %d, %d", first, second)
	}
	for _, e := range []uint32{first, second} {
		fi := value[os.FileInfo](t)(os.Stat(w.path(e, epochSuffix)))
		if fi.Mode() != 0o600 || fi.Size() != fileLen {
			t.Errorf("epoch %d: mode %v, %d bytes", e, fi.Mode(), fi.Size())
		}
	}
	_, key := random()
	b := value[[]byte](t)(w.Wrap(ctx, first, &key))
	again := value[*FileWrapper](t)(OpenFileWrapper(dir))
	if got := value[Key](t)(again.Unwrap(ctx, first, b)); got != key {
		t.Error("another key came back")
	}
	if _, err := w.Unwrap(ctx, second, b); err == nil {
		t.Error("another epoch unwrapped the key")
	}
	for i := range b {
		bad := bytes.Clone(b)
		bad[i] ^= 0x10
		if _, err := w.Unwrap(ctx, first, bad); err == nil {
			t.Errorf("accepted a flip in byte %d", i)
		}
	}
	for _, bad := range [][]byte{nil, b[:len(b)-1], append(bytes.Clone(b), 0)} {
		if _, err := w.Unwrap(ctx, first, bad); err == nil {
			t.Errorf("accepted %d bytes", len(bad))
		}
	}
	must(t, w.DestroyEpoch(ctx, first))
	must(t, w.DestroyEpoch(ctx, first))
	if _, err := w.Unwrap(ctx, first, b); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("after destruction: %v", err)
	}
	if third := value[uint32](t)(w.NewEpoch(ctx)); third != 3 {
		t.Errorf("third epoch is %d", third)
	}
	cancelled, cancel := context.WithCancel(ctx)
	cancel()
	_, err := w.NewEpoch(cancelled)
	wantErr(t, err, context.Canceled)
	wantErr(t, w.DestroyEpoch(cancelled, 2), context.Canceled)
}

func TestFileWrapperRefusals(t *testing.T) {
	ctx := t.Context()
	_, key := random()
	cases := []struct {
		name   string
		harm   func(t *testing.T, dir, file string)
		want   string
		atOpen bool
	}{
		{"directory open to group", func(t *testing.T, dir, _ string) { must(t, os.Chmod(dir, 0o750)) }, "chmod 0700", true},
		{"directory open to others", func(t *testing.T, dir, _ string) { must(t, os.Chmod(dir, 0o701)) }, "chmod 0700", true},
		{"directory is a link", func(t *testing.T, dir, _ string) {
			must(t, os.Rename(dir, dir+".real"))
			must(t, os.Symlink(dir+".real", dir))
		}, "symbolic link", true},
		{"directory is a file", func(t *testing.T, dir, _ string) {
			must(t, os.RemoveAll(dir))
			must(t, os.WriteFile(dir, nil, 0o600))
		}, "not a directory", true},
		{"file open to group", func(t *testing.T, _, file string) { must(t, os.Chmod(file, 0o640)) }, "chmod 0600", false},
		{"file open to others", func(t *testing.T, _, file string) { must(t, os.Chmod(file, 0o604)) }, "chmod 0600", false},
		{"file is a link", func(t *testing.T, _, file string) {
			must(t, os.Rename(file, file+".real"))
			must(t, os.Symlink(file+".real", file))
		}, "symbolic link", false},
		{"file is a directory", func(t *testing.T, _, file string) {
			must(t, os.Remove(file))
			must(t, os.Mkdir(file, 0o600))
		}, "not a regular file", false},
		{"file cut", func(t *testing.T, _, file string) { must(t, os.Truncate(file, 20)) }, "20 bytes instead of 33", false},
		{"file empty", func(t *testing.T, _, file string) { must(t, os.Truncate(file, 0)) }, "0 bytes instead of 33", false},
		{"file too long", func(t *testing.T, _, file string) {
			must(t, os.WriteFile(file, append([]byte{1}, make([]byte, 40)...), 0o600))
		}, "instead of 33", false},
		{"file of the future", func(t *testing.T, _, file string) {
			must(t, os.WriteFile(file, append([]byte{2}, make([]byte, 32)...), 0o600))
		}, "unknown format version", false},
		{"file wiped, not unlinked", func(t *testing.T, _, file string) {
			must(t, os.WriteFile(file, make([]byte, 33), 0o600))
		}, "is destroyed", false},
		{"file of another epoch", func(t *testing.T, _, file string) {
			must(t, os.WriteFile(file, append([]byte{1}, make([]byte, 32)...), 0o600))
		}, "does not open the key of epoch 1", false},
	}
	if os.Geteuid() == 0 {
		cases = append(cases, struct {
			name   string
			harm   func(t *testing.T, dir, file string)
			want   string
			atOpen bool
		}{"file of another user", func(t *testing.T, _, file string) { must(t, os.Chown(file, 12345, -1)) }, "belongs to user 12345", false})
	}
	for _, c := range cases {
		t.Run(c.name, func(t *testing.T) {
			dir := privateDir(t)
			w := value[*FileWrapper](t)(OpenFileWrapper(dir))
			epoch := value[uint32](t)(w.NewEpoch(ctx))
			b := value[[]byte](t)(w.Wrap(ctx, epoch, &key))
			c.harm(t, dir, w.path(epoch, epochSuffix))
			_, err := w.Unwrap(ctx, epoch, b)
			if err == nil || !strings.Contains(err.Error(), c.want) {
				t.Errorf("unwrap: %v, want %q", err, c.want)
			}
			if _, err = OpenFileWrapper(dir); (err != nil) != c.atOpen {
				t.Errorf("open: %v", err)
			}
			if c.atOpen {
				if _, err := w.NewEpoch(ctx); err == nil {
					t.Error("a new epoch was written into a refused directory")
				}
			}
		})
	}
}

func TestFileWrapperStrayNames(t *testing.T) {
	ctx := t.Context()
	dir := privateDir(t)
	w := value[*FileWrapper](t)(OpenFileWrapper(dir))
	// What a crash between creation and rename leaves.
	must(t, os.WriteFile(w.path(7, pendingSuffix), []byte{1, 2}, 0o600))
	must(t, os.WriteFile(filepath.Join(dir, "README"), nil, 0o600))
	if n := value[uint32](t)(w.NewEpoch(ctx)); n != 8 {
		t.Errorf("epoch %d, want 8", n)
	}
	must(t, w.DestroyEpoch(ctx, 7))
	if _, err := os.Lstat(w.path(7, pendingSuffix)); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("unfinished file stays: %v", err)
	}
	must(t, os.WriteFile(filepath.Join(dir, "epoch-x.key"), nil, 0o600))
	if _, err := w.NewEpoch(ctx); err == nil || !strings.Contains(err.Error(), "epoch-x.key") {
		t.Errorf("stray name: %v", err)
	}
}

// Two wrappers stand for two processes: no number is given twice and no key
// file replaced.
func TestFileWrapperConcurrent(t *testing.T) {
	ctx := t.Context()
	dir := privateDir(t)
	var mu sync.Mutex
	seen := make(map[uint32]bool)
	var wg sync.WaitGroup
	for range 4 {
		w := value[*FileWrapper](t)(OpenFileWrapper(dir))
		wg.Go(func() {
			for range 5 {
				n, err := w.NewEpoch(ctx)
				mu.Lock()
				if err != nil || seen[n] {
					t.Errorf("epoch %d twice, or %v", n, err)
				}
				seen[n] = true
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	if len(seen) != 20 {
		t.Errorf("%d epochs", len(seen))
	}
}
