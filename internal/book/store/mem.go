package store

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math/rand/v2"
	"path"
	"sort"
	"strings"
	"sync"
	"syscall"
)

// Op is one operation that changes or persists something, as a fault hook
// sees it.
type Op struct {
	N    int    // counts from 1
	Kind string // "create" "write" "sync" "truncate" "allocate" "rename" "remove" "syncdir", and "read" if it was asked for
	Name string
	Len  int // bytes of a write, a read or an allocation
}

// Mem is a tree in memory that forgets like a disk: what was not synced may be
// lost, in any order, when the power goes. It is for tests of the code above.
type Mem struct {
	mu      sync.Mutex
	ops     int               // under mu
	live    map[string]*inode // under mu; what the running system sees
	durable map[string]*inode // under mu; which names a power cut leaves
	locked  map[string]bool   // under mu
	fault   func(Op) (bool, error)
	reads   func(Op) error // under mu; the fault hook of reads
	room    int64          // under mu; bytes that the disk has, 0: no end
	dead    bool           // under mu; after a Crash of this tree
}

// inode is one file's content. All fields are under Mem.mu.
type inode struct {
	data     []byte
	synced   []byte
	pending  []pendingWrite
	reserved int64 // bytes that Allocate took without writing them
}

type pendingWrite struct {
	off  int64
	data []byte
	size int64 // >= 0: a truncate to this size
}

// NewMem returns an empty tree. fault, if not nil, is asked before every
// operation that changes something: it says whether to carry the operation out
// and which error to return, so an operation can fail before and after it took
// effect.
func NewMem(fault func(Op) (apply bool, err error)) *Mem {
	return &Mem{live: map[string]*inode{}, durable: map[string]*inode{}, locked: map[string]bool{}, fault: fault}
}

// ErrDead is what every operation of a crashed tree returns.
var ErrDead = fmt.Errorf("the machine is off")

// begin asks the fault hook. The caller holds mu.
func (m *Mem) begin(kind, name string, n int) (bool, error) {
	if m.dead {
		return false, ErrDead
	}
	m.ops++
	if m.fault == nil {
		return true, nil
	}
	return m.fault(Op{N: m.ops, Kind: kind, Name: name, Len: n})
}

// Crash cuts the power: m is dead from now on, and the tree returned holds
// what a disk would. Names not yet synced are lost; of the writes not yet
// synced each survives whole, in part, or not at all, as rng decides; with a
// nil rng none survives.
func (m *Mem) Crash(rng *rand.Rand) *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	after := NewMem(nil)
	after.room = m.room
	names := make([]string, 0, len(m.durable))
	for name := range m.durable {
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		after.put(name, survive(m.durable[name], rng))
		after.live[name].reserved = m.durable[name].reserved
	}
	return after
}

// Kill stops the process but not the machine: m is dead, and the tree returned
// holds everything that was written.
func (m *Mem) Kill() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.dead = true
	after := NewMem(nil)
	after.room = m.room
	for name, ino := range m.live {
		after.put(name, ino.data)
		after.live[name].reserved = ino.reserved
	}
	return after
}

// Next is Kill with the fault hook kept: the next process has the same disk.
func (m *Mem) Next() *Mem {
	after := m.Kill()
	m.mu.Lock()
	defer m.mu.Unlock()
	after.fault, after.reads, after.ops = m.fault, m.reads, m.ops
	return after
}

// Clone copies the tree as the running system sees it.
func (m *Mem) Clone() *Mem {
	m.mu.Lock()
	defer m.mu.Unlock()
	after := NewMem(nil)
	for name, ino := range m.live {
		after.put(name, ino.data)
		after.live[name].reserved = ino.reserved
	}
	return after
}

// SetFault replaces the fault hook.
func (m *Mem) SetFault(fault func(Op) (bool, error)) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.fault = fault
}

// SetReadFault sets what is asked before every read of a file's bytes: an error
// fails the read. Nil asks nobody.
func (m *Mem) SetReadFault(fault func(Op) error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.reads = fault
}

// SetRoom makes the disk so many bytes large: what would grow beyond fails with
// ENOSPC, halfway if it is a write. 0 is a disk without end.
func (m *Mem) SetRoom(bytes int64) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.room = bytes
}

// used is how many bytes all files take. The caller holds mu.
func (m *Mem) used() (n int64) {
	for _, ino := range m.live {
		n += max(int64(len(ino.data)), ino.reserved)
	}
	return n
}

// grows is by how many of the bytes up to size a file may grow. The caller
// holds mu.
func (m *Mem) grows(ino *inode, size int64) (to int64, full bool) {
	have := max(int64(len(ino.data)), ino.reserved)
	if m.room == 0 || size <= have {
		return size, false
	}
	if free := m.room - m.used(); size-have > free {
		return have + max(free, 0), true
	}
	return size, false
}

// Space implements FS.
func (m *Mem) Space() (free, total int64, err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return 0, 0, ErrDead
	}
	if m.room == 0 {
		return 1 << 50, 1 << 50, nil
	}
	return max(m.room-m.used(), 0), m.room, nil
}

// Ops returns how many changing operations there were.
func (m *Mem) Ops() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.ops
}

// Files returns every live name, sorted.
func (m *Mem) Files() []string {
	m.mu.Lock()
	defer m.mu.Unlock()
	names := make([]string, 0, len(m.live))
	for name := range m.live {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

func (m *Mem) put(name string, data []byte) {
	ino := &inode{data: append([]byte(nil), data...), synced: append([]byte(nil), data...)}
	m.live[name], m.durable[name] = ino, ino
}

func survive(ino *inode, rng *rand.Rand) []byte {
	out := append([]byte(nil), ino.synced...)
	if rng == nil {
		return out
	}
	for _, w := range ino.pending {
		switch rng.IntN(4) {
		case 0:
			continue
		case 1: // its end is missing
			if len(w.data) > 0 {
				w.data = w.data[:rng.IntN(len(w.data)+1)]
			}
		case 2: // some of its sectors are
			out = w.sectors(out, rng)
			continue
		}
		out = w.apply(out)
	}
	return out
}

// sectorSize is what a disk writes whole or not at all.
const sectorSize = 512

// sectors applies some of the sectors of a write.
func (w pendingWrite) sectors(b []byte, rng *rand.Rand) []byte {
	if w.size >= 0 {
		return w.apply(b)
	}
	for off, data := w.off, w.data; len(data) > 0; {
		n := min(int64(len(data)), sectorSize-off%sectorSize)
		if rng.IntN(2) == 0 {
			b = pendingWrite{off: off, data: data[:n], size: -1}.apply(b)
		}
		off, data = off+n, data[n:]
	}
	return b
}

func (w pendingWrite) apply(b []byte) []byte {
	if w.size >= 0 {
		return resize(b, w.size)
	}
	if end := w.off + int64(len(w.data)); end > int64(len(b)) {
		b = resize(b, end)
	}
	copy(b[w.off:], w.data)
	return b
}

func resize(b []byte, size int64) []byte {
	if size <= int64(len(b)) {
		return b[:size]
	}
	return append(b, make([]byte, size-int64(len(b)))...)
}

// Create implements FS.
func (m *Mem) Create(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live[name] != nil {
		return nil, &fs.PathError{Op: "create", Path: name, Err: fs.ErrExist}
	}
	apply, err := m.begin("create", name, 0)
	if apply {
		m.live[name] = &inode{}
	}
	if err != nil {
		return nil, err
	}
	return &memFile{m: m, name: name, ino: m.live[name]}, nil
}

// Open implements FS.
func (m *Mem) Open(name string) (File, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, ErrDead
	}
	ino := m.live[name]
	if ino == nil {
		return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
	}
	return &memFile{m: m, name: name, ino: ino}, nil
}

// OpenRW implements FS.
func (m *Mem) OpenRW(name string) (File, error) { return m.Open(name) }

// Rename implements FS.
func (m *Mem) Rename(o, n string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live[o] == nil {
		return &fs.PathError{Op: "rename", Path: o, Err: fs.ErrNotExist}
	}
	apply, err := m.begin("rename", n, 0)
	if apply {
		m.live[n] = m.live[o]
		delete(m.live, o)
	}
	return err
}

// Remove implements FS.
func (m *Mem) Remove(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.live[name] == nil {
		return &fs.PathError{Op: "remove", Path: name, Err: fs.ErrNotExist}
	}
	apply, err := m.begin("remove", name, 0)
	if apply {
		delete(m.live, name)
	}
	return err
}

// MkdirAll implements FS; folders exist once they are used.
func (m *Mem) MkdirAll(string) error { return nil }

// ReadDir implements FS.
func (m *Mem) ReadDir(name string) ([]string, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, ErrDead
	}
	seen := map[string]bool{}
	for file := range m.live {
		rest, ok := strings.CutPrefix(file, name+"/")
		if name == "." {
			rest, ok = file, true
		}
		if ok {
			first, _, _ := strings.Cut(rest, "/")
			seen[first] = true
		}
	}
	names := make([]string, 0, len(seen))
	for s := range seen {
		names = append(names, s)
	}
	sort.Strings(names)
	return names, nil
}

// SyncDir implements FS.
func (m *Mem) SyncDir(name string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	apply, err := m.begin("syncdir", name, 0)
	if !apply {
		return err
	}
	for file := range m.durable {
		if path.Dir(file) == name && m.live[file] == nil {
			delete(m.durable, file)
		}
	}
	for file, ino := range m.live {
		if path.Dir(file) == name {
			m.durable[file] = ino
		}
	}
	return err
}

// Lock implements FS.
func (m *Mem) Lock(name string) (io.Closer, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.dead {
		return nil, ErrDead
	}
	if m.locked[name] {
		return nil, fmt.Errorf("%s: %w", name, ErrLocked)
	}
	m.locked[name] = true
	return unlocker{m, name}, nil
}

type unlocker struct {
	m    *Mem
	name string
}

func (u unlocker) Close() error {
	u.m.mu.Lock()
	defer u.m.mu.Unlock()
	delete(u.m.locked, u.name)
	return nil
}

type memFile struct {
	m    *Mem
	name string
	ino  *inode
}

func (f *memFile) ReadAt(b []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return 0, ErrDead
	}
	if f.m.reads != nil {
		if err := f.m.reads(Op{Kind: "read", Name: f.name, Len: len(b)}); err != nil {
			return 0, err
		}
	}
	if off >= int64(len(f.ino.data)) {
		return 0, io.EOF
	}
	n := copy(b, f.ino.data[off:])
	if n < len(b) {
		return n, io.EOF
	}
	return n, nil
}

func (f *memFile) WriteAt(b []byte, off int64) (int, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	apply, err := f.m.begin("write", f.name, len(b))
	n := 0
	if apply {
		n = len(b)
		if end, full := f.m.grows(f.ino, off+int64(len(b))); full {
			n = int(max(end-off, 0))
			if err == nil {
				err = &fs.PathError{Op: "write", Path: f.name, Err: syscall.ENOSPC}
			}
		}
		var short *ShortWrite
		if errors.As(err, &short) {
			n = min(n, short.N)
		}
		if n > 0 {
			w := pendingWrite{off: off, data: append([]byte(nil), b[:n]...), size: -1}
			f.ino.pending = append(f.ino.pending, w)
			f.ino.data = w.apply(f.ino.data)
		}
	}
	if err != nil {
		return 0, err
	}
	return n, nil
}

// ShortWrite is a fault after which only the first N bytes of a write are
// there.
type ShortWrite struct {
	N   int
	Err error
}

func (s *ShortWrite) Error() string { return s.Err.Error() }
func (s *ShortWrite) Unwrap() error { return s.Err }

func (f *memFile) Sync() error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	apply, err := f.m.begin("sync", f.name, 0)
	if apply {
		f.ino.synced = append(f.ino.synced[:0], f.ino.data...)
		f.ino.pending = nil
	}
	return err
}

func (f *memFile) Truncate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	apply, err := f.m.begin("truncate", f.name, 0)
	if apply {
		f.ino.pending = append(f.ino.pending, pendingWrite{size: size})
		f.ino.data = resize(f.ino.data, size)
	}
	return err
}

// Allocate implements File.
func (f *memFile) Allocate(size int64) error {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	apply, err := f.m.begin("allocate", f.name, int(size))
	if apply {
		to, full := f.m.grows(f.ino, size)
		f.ino.reserved = max(f.ino.reserved, to)
		if full && err == nil {
			err = &fs.PathError{Op: "fallocate", Path: f.name, Err: syscall.ENOSPC}
		}
	}
	return err
}

// Allocated implements File.
func (f *memFile) Allocated() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	return max(int64(len(f.ino.data)), f.ino.reserved), nil
}

// Size implements File.
func (f *memFile) Size() (int64, error) {
	f.m.mu.Lock()
	defer f.m.mu.Unlock()
	if f.m.dead {
		return 0, ErrDead
	}
	return int64(len(f.ino.data)), nil
}

func (f *memFile) Close() error { return nil }
