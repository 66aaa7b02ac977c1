package authn

import (
	"bytes"
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"hash/crc32"
	"io"
	"os"
)

// replayFile is what a generation of marks leaves on the disk: a head and one
// entry for each mark, each written with one write and never synced on the way.
// What a write has put into the kernel outlives this process however it ends,
// so after kill -9 nothing is missing. When the machine fails the end of the
// file may be gone; the head tells: it names the boot in which the file was
// written, and whether it was closed and synced. A file that another boot left
// open, or that is damaged, is lost, though what it holds still counts.
//
//	head   magic (16) · boot (16) · closed (1) · zero (11) · CRC-32C (4)
//	entry  mark (16) · Unix second of expiry (4) · CRC-32C (4)
type replayFile struct {
	path string
	f    *os.File
	boot [16]byte
	size int64 // of what is good

	created bool           // there was none
	lost    bool           // marks may be missing
	loaded  map[mark]int64 // what it held
	buf     [replayEntry]byte
}

const (
	replayMagic = "gatebook-replay1"
	replayHead  = 48
	replayEntry = 24
)

// castagnoli is the table of CRC-32C; it is built once and never changes.
var castagnoli = crc32.MakeTable(crc32.Castagnoli)

// openReplayFile opens or makes the file and reads it.
func openReplayFile(path, boot string) (*replayFile, error) {
	r := &replayFile{path: path, loaded: map[mark]int64{}}
	if boot != "" {
		sum := sha256.Sum256([]byte(boot))
		r.boot = [16]byte(sum[:16])
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return nil, err
	}
	r.f = f
	b, err := io.ReadAll(f)
	if err == nil {
		r.read(b)
		err = r.writeHead(false)
	}
	if err == nil {
		err = r.f.Truncate(r.size)
	}
	if err == nil {
		err = r.f.Sync() // else a power cut could bring back that it was closed
	}
	if err != nil {
		f.Close()
		return nil, err
	}
	return r, nil
}

// read takes what is good of a file's content.
func (r *replayFile) read(b []byte) {
	r.size = replayHead
	if len(b) == 0 {
		r.created = true
		return
	}
	if len(b) < replayHead || string(b[:16]) != replayMagic || !sealed(b[:replayHead]) {
		r.lost = true
		return
	}
	known := r.boot != [16]byte{} && bytes.Equal(b[16:32], r.boot[:])
	r.lost = b[32] != 1 && !known
	for b = b[replayHead:]; len(b) >= replayEntry; b = b[replayEntry:] {
		if !sealed(b[:replayEntry]) {
			r.lost = true
			return
		}
		r.loaded[mark(b[:16])] = int64(binary.BigEndian.Uint32(b[16:20]))
		r.size += replayEntry
	}
	// Less than an entry at the end is a write that failed, whose mark was refused.
}

// sealed checks the CRC at the end of b.
func sealed(b []byte) bool {
	n := len(b) - 4
	return crc32.Checksum(b[:n], castagnoli) == binary.BigEndian.Uint32(b[n:])
}

func seal(b []byte) {
	n := len(b) - 4
	binary.BigEndian.PutUint32(b[n:], crc32.Checksum(b[:n], castagnoli))
}

func (r *replayFile) writeHead(closed bool) error {
	var b [replayHead]byte
	copy(b[:], replayMagic)
	copy(b[16:], r.boot[:])
	if closed {
		b[32] = 1
	}
	seal(b[:])
	_, err := r.f.WriteAt(b[:], 0)
	return err
}

func (r *replayFile) encode(b []byte, m mark, until int64) {
	copy(b, m[:])
	binary.BigEndian.PutUint32(b[16:], uint32(min(max(until, 0), 1<<32-1)))
	seal(b)
}

// append adds a mark. A write that failed leaves nothing that counts: the next
// one goes to the same place.
func (r *replayFile) append(m mark, until int64) error {
	if r == nil {
		return nil
	}
	r.encode(r.buf[:], m, until)
	if _, err := r.f.WriteAt(r.buf[:], r.size); err != nil {
		return fmt.Errorf("replay store: %w", err)
	}
	r.size += replayEntry
	return nil
}

// reset forgets all marks.
func (r *replayFile) reset() error {
	if r == nil {
		return nil
	}
	if err := r.f.Truncate(replayHead); err != nil {
		return fmt.Errorf("replay store: %w", err)
	}
	r.size = replayHead
	return nil
}

// rewrite leaves only the given marks if the file has grown to twice what most
// marks take: dead ones in it cost nothing but room. It makes the file anew
// beside the old one, so that a crash leaves one or the other.
func (r *replayFile) rewrite(marks map[mark]int64, most int) error {
	if r == nil || r.size < replayHead+2*int64(most)*replayEntry {
		return nil
	}
	path := r.path
	f, err := os.OpenFile(path+".new", os.O_RDWR|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return fmt.Errorf("replay store: %w", err)
	}
	next := &replayFile{path: path, f: f, boot: r.boot, size: replayHead}
	b := make([]byte, 0, len(marks)*replayEntry)
	for m, until := range marks {
		b = append(b, make([]byte, replayEntry)...)
		r.encode(b[len(b)-replayEntry:], m, until)
	}
	if err = next.writeHead(false); err == nil {
		_, err = f.WriteAt(b, replayHead)
	}
	if err == nil {
		err = os.Rename(path+".new", path)
	}
	if err != nil {
		f.Close()
		return fmt.Errorf("replay store: %w", err)
	}
	r.f.Close()
	r.f, r.size = f, replayHead+int64(len(b))
	return nil
}

// close syncs, then notes that nothing is missing.
func (r *replayFile) close() error {
	if r == nil {
		return nil
	}
	err := r.f.Sync()
	if err == nil {
		err = r.writeHead(true)
	}
	if err == nil {
		err = r.f.Sync()
	}
	if closeErr := r.f.Close(); err == nil {
		err = closeErr
	}
	return err
}
