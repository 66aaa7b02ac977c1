package store

import (
	"errors"
	"math/rand/v2"
	"os"
	"syscall"
	"testing"
)

// TestAllocate takes room on a real disk: the file does not get longer, and its
// removal gives the room back.
func TestAllocate(t *testing.T) {
	d := Dir(t.TempDir())
	f, err := d.Create("ballast")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	const size = 1 << 20
	if err := f.Allocate(size); err != nil {
		t.Fatal(err)
	}
	if err := f.Sync(); err != nil {
		t.Fatal(err)
	}
	if n, err := f.Allocated(); err != nil || n < size {
		t.Errorf("%d bytes are allocated, %v", n, err)
	}
	if free, total, err := d.Space(); err != nil || free <= 0 || total < free {
		t.Errorf("space: %d of %d, %v", free, total, err)
	}
	if err := Remove(d, "ballast"); err != nil {
		t.Fatal(err)
	}
	if err := Remove(d, "ballast"); err != nil {
		t.Errorf("removing what is gone: %v", err)
	}
}

// TestZeros is Allocate where the file system cannot be asked.
func TestZeros(t *testing.T) {
	f, err := os.Create(t.TempDir() + "/f")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	of := osFile{f, new(syncer)}
	for _, size := range []int64{300 << 10, 10, 700<<10 + 1} {
		if err := of.zeros(size); err != nil {
			t.Fatal(err)
		}
		if n, err := of.Size(); err != nil || n < size {
			t.Errorf("%d bytes of %d, %v", n, size, err)
		}
	}
}

// TestMemRoom: a disk of so many bytes takes as much of a write as fits.
func TestMemRoom(t *testing.T) {
	m := NewMem(nil)
	m.SetRoom(100)
	f, err := m.Create("d/f")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 80), 0); err != nil {
		t.Fatal(err)
	}
	if _, err := f.WriteAt(make([]byte, 80), 40); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("a write beyond the end: %v", err)
	}
	if n, _ := f.Size(); n != 100 {
		t.Errorf("%d bytes", n)
	}
	if _, err := f.WriteAt(make([]byte, 80), 10); err != nil { // in place
		t.Error(err)
	}
	if err := f.Allocate(200); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("allocating: %v", err)
	}
	if free, total, err := m.Space(); free != 0 || total != 100 || err != nil {
		t.Errorf("%d of %d, %v", free, total, err)
	}
}

// TestMemFaults: each kind of operation can fail before and after it took
// effect, and reads can fail.
func TestMemFaults(t *testing.T) {
	for _, apply := range []bool{false, true} {
		var at string
		m := NewMem(func(op Op) (bool, error) {
			if op.Kind == at {
				return apply, syscall.EIO
			}
			return true, nil
		})
		f, err := m.Create("d/f")
		if err != nil {
			t.Fatal(err)
		}
		for kind, do := range map[string]func() error{
			"create":   func() error { _, err := m.Create("d/" + at + "x"); return err },
			"write":    func() error { _, err := f.WriteAt([]byte("x"), 0); return err },
			"sync":     f.Sync,
			"truncate": func() error { return f.Truncate(0) },
			"allocate": func() error { return f.Allocate(5) },
			"syncdir":  func() error { return m.SyncDir("d") },
		} {
			at = kind
			if err := do(); !errors.Is(err, syscall.EIO) {
				t.Errorf("%s: %v", kind, err)
			}
		}
		at = "rename"
		if err := m.Rename("d/f", "d/g"); !errors.Is(err, syscall.EIO) {
			t.Error(err)
		}
		name := map[bool]string{false: "d/f", true: "d/g"}[apply]
		at = "remove"
		if err := m.Remove(name); !errors.Is(err, syscall.EIO) {
			t.Error(err)
		}
		if _, err := m.Open(name); (err == nil) == apply {
			t.Errorf("apply %v: after the failed removal: %v", apply, err)
		}
		m.SetReadFault(func(Op) error { return syscall.EIO })
		if _, err := f.ReadAt(make([]byte, 1), 0); !errors.Is(err, syscall.EIO) {
			t.Errorf("read: %v", err)
		}
	}
}

// TestMemTears: of writes that were not synced a power cut leaves all, some
// sectors, a beginning, or nothing; what was synced stays.
func TestMemTears(t *testing.T) {
	seen := map[string]bool{}
	for seed := range uint64(200) {
		m := NewMem(nil)
		f, err := m.Create("d/f")
		if err != nil {
			t.Fatal(err)
		}
		if _, err := f.WriteAt([]byte("synced"), 0); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(f.Sync(), m.SyncDir("d")); err != nil {
			t.Fatal(err)
		}
		page := make([]byte, 4*sectorSize)
		for i := range page {
			page[i] = 'n'
		}
		if _, err := f.WriteAt(page, sectorSize); err != nil {
			t.Fatal(err)
		}
		b, err := ReadFile(m.Crash(rand.New(rand.NewPCG(seed, 1))), "d/f", 1<<20)
		if err != nil || string(b[:6]) != "synced" {
			t.Fatalf("%q, %v", b, err)
		}
		shape := ""
		for at := sectorSize; at < len(b); at += sectorSize {
			shape += string(b[at])
		}
		seen[shape] = true
	}
	for _, want := range []string{"", "nnnn", "nn", "n\x00nn", "\x00nnn"} {
		if !seen[want] {
			t.Errorf("no power cut left %q", want)
		}
	}
}
