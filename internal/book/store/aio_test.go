package store

import (
	"errors"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// TestSyncerSyncs: the kernel this runs on does it asynchronously, for files and
// folders, for many at once, and the queues are used again.
func TestSyncerSyncs(t *testing.T) {
	dir := t.TempDir()
	s := new(syncer)
	var wg sync.WaitGroup
	for i := range 8 {
		wg.Go(func() {
			f, err := os.Create(filepath.Join(dir, string(rune('a'+i))))
			if err != nil {
				t.Error(err)
				return
			}
			defer f.Close()
			for range 20 {
				if _, err := f.WriteString("something"); err != nil {
					t.Error(err)
				}
				if err := s.sync(int(f.Fd()), aioFdatasync); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := len(s.free); n == 0 || n > 8 {
		t.Errorf("%d queues are left, want 1 to 8", n)
	}
	f, err := os.Open(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	q, err := s.take()
	if err != nil {
		t.Fatal(err)
	}
	if err := q.run(int(f.Fd()), aioFsync); err != nil {
		t.Errorf("a folder: %v", err)
	}
}

// TestSyncerFails: an error of the file is told, whichever way was taken.
func TestSyncerFails(t *testing.T) {
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	defer w.Close()
	s := new(syncer)
	if err := s.sync(int(w.Fd()), aioFdatasync); !errors.Is(err, unix.EINVAL) {
		t.Errorf("a pipe: %v, want EINVAL", err)
	}
	if err := s.sync(1<<20, aioFsync); !errors.Is(err, unix.EBADF) {
		t.Errorf("no file: %v, want EBADF", err)
	}
	q, err := newAIOQueue()
	if err != nil {
		t.Fatal(err)
	}
	q.ctx ^= 1 << 40 // a kernel that refuses
	s.free = []*aioQueue{q}
	f, err := os.Create(filepath.Join(t.TempDir(), "f"))
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if err := q.run(int(f.Fd()), aioFdatasync); !errors.Is(err, errNoAIO) {
		t.Errorf("a refusing kernel: %v, want %v", err, errNoAIO)
	}
	if err := s.sync(int(f.Fd()), aioFdatasync); err != nil {
		t.Errorf("a refusing kernel is not done without: %v", err)
	}
}
