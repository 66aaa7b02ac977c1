// Package verifier2 is a second, independent verifier of a book, written from
// docs/format.md. It imports nothing of Gatebook, so that a mistake there is
// not repeated here, and prefers plain code to fast code. Tests run both
// verifiers over the same books, good and damaged.
package verifier2

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

type (
	hash = [32]byte
	id   = [16]byte
)

// Verify checks the book in dir with the keys in keyDir against the verifier
// key vkey (section 13). It returns the number of records whose content
// matches its commitment; nil means that all evidence holds.
func Verify(dir, keyDir, vkey string) (records int, err error) {
	keys, err := openKeys(filepath.Join(dir, "state", "keys.db"), keyDir)
	if err != nil {
		return 0, err
	}
	return VerifyLedger(dir, keys, vkey, DecodeColumns)
}

// Columns gives n frames back from the columns of a segment.
type Columns func(columns [][]byte, n int) (frames [][]byte, err error)

// VerifyLedger is Verify for keys in clear and any column form.
func VerifyLedger(dir string, keys *Keys, vkey string, columns Columns) (records int, err error) {
	v := &verifier{dir: dir, keys: keys, columns: columns, manifests: map[uint64][]byte{}, unwritten: map[uint64]bool{}}
	for _, step := range []func() error{
		func() error { return v.identity(vkey) },
		v.readManifests,
		v.replayWAL,
		v.chooseManifests,
		v.joinWAL,
		v.readSegments,
		v.readRecordsInWAL,
		v.checkLeaves,
		v.checkTree,
	} {
		if err := step(); err != nil {
			return v.records, err
		}
	}
	return v.records, nil
}

// verifier is one run.
type verifier struct {
	dir       string
	keys      *Keys
	columns   Columns
	origin    string
	size      uint64 // of the checkpoint
	root      hash
	manifests map[uint64][]byte // by index of the leaf
	unwritten map[uint64]bool   // those that only the WAL has
	chosen    []*manifest
	wals      []*walFile
	signed    uint64 // highest checkpoint mark
	leaves    []leaf // in the order of their indexes
	records   int
}

// leaf is an entry: type and 32 bytes.
type leaf struct {
	typ  byte
	hash hash
}

func (l leaf) leafHash() hash {
	return sha256.Sum256(append([]byte{0x00, l.typ}, l.hash[:]...))
}

// identity is step 1.
func (v *verifier) identity(vkey string) error {
	key, err := parseVerifierKey(vkey)
	if err != nil {
		return err
	}
	v.origin = key.name
	own, err := os.ReadFile(filepath.Join(v.dir, "log.vkey"))
	if err != nil {
		return err
	}
	if string(own) != vkey+"\n" {
		return errors.New("log.vkey is not the key that was given")
	}
	text, err := v.note("ledger", key)
	if err != nil {
		return err
	}
	if text != "gatebook-ledger/v1\n"+v.origin+"\n" {
		return errors.New("ledger: another text")
	}
	if text, err = v.note("checkpoint", key); err != nil {
		return err
	}
	lines := strings.Split(text, "\n")
	if len(lines) != 4 || lines[0] != v.origin || lines[3] != "" {
		return errors.New("checkpoint: not three lines")
	}
	if v.size, err = strconv.ParseUint(lines[1], 10, 64); err != nil || strconv.FormatUint(v.size, 10) != lines[1] {
		return errors.New("checkpoint: size")
	}
	root, err := decodeBase64(lines[2])
	if err != nil || len(root) != 32 {
		return errors.New("checkpoint: root")
	}
	v.root = hash(root)
	return nil
}

func (v *verifier) note(name string, key verifierKey) (string, error) {
	b, err := os.ReadFile(filepath.Join(v.dir, name))
	if err != nil {
		return "", err
	}
	text, err := openNote(b, key)
	if err != nil {
		return "", fmt.Errorf("%s: %w", name, err)
	}
	return text, nil
}

// names lists a folder in order, without unfinished files.
func (v *verifier) names(folder string) ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(v.dir, folder))
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), ".tmp") {
			out = append(out, e.Name())
		}
	}
	slices.Sort(out)
	return out, nil
}

// hex16 parses 16 lower-case hex digits.
func hex16(s string) (uint64, error) {
	n, err := strconv.ParseUint(s, 16, 64)
	if err != nil || fmt.Sprintf("%016x", n) != s {
		return 0, fmt.Errorf("%q is not 16 hex digits", s)
	}
	return n, nil
}

// replayWAL reads every file that counts and learns births, manifests and
// checkpoint marks from it.
func (v *verifier) replayWAL() error {
	names, err := v.names("wal")
	if err != nil {
		return err
	}
	if v.wals, err = v.openWALs(names); err != nil {
		return err
	}
	for i, w := range v.wals {
		if w.key == nil {
			continue
		}
		if err := w.replay(); err != nil {
			return err
		}
		if err := v.learn(w); err != nil {
			return err
		}
		if i < len(v.wals)-1 && !w.junk && w.end() == v.wals[i+1].first {
			continue
		}
		if i < len(v.wals)-1 {
			torn, err := v.wals[i+1].tornHeader()
			if err != nil {
				return err
			}
			if w.junk || i != len(v.wals)-2 || !torn {
				return fmt.Errorf("%s: damaged before its end", w.name)
			}
			v.wals = v.wals[:i+1]
		}
		switch {
		case w.synced >= w.bad && w.junk:
			return fmt.Errorf("%s: batch %d is gone, which was on the disk", w.name, w.bad)
		case w.end() < v.size:
			return fmt.Errorf("%s: ends at %d, the checkpoint covers %d", w.name, w.end(), v.size)
		case v.signed > v.size:
			return fmt.Errorf("the checkpoint covers %d, one of %d was signed", v.size, v.signed)
		}
		return nil
	}
	return nil
}

// learn takes in what the items of a file say besides leaves.
func (v *verifier) learn(w *walFile) error {
	for _, it := range w.items {
		switch {
		case it.typ == itemSubject:
			if err := v.keys.birth(it.body[16:]); err != nil {
				return err
			}
		case it.typ == itemMark && it.kind == markCheckpoint:
			v.signed = max(v.signed, it.number)
		case it.typ == itemMark && it.kind == markManifest:
			have, ok := v.manifests[it.number]
			if ok && !bytes.Equal(have, it.data) {
				return fmt.Errorf("manifest %d is not the one in the WAL", it.number)
			}
			v.unwritten[it.number] = v.unwritten[it.number] || !ok
			v.manifests[it.number] = it.data
		}
	}
	return nil
}

// joinWAL keeps the files behind the segments and demands that nothing lacks.
func (v *verifier) joinWAL() error {
	at := uint64(0)
	if n := len(v.chosen); n > 0 {
		at = v.chosen[n-1].first + v.chosen[n-1].count
	}
	sealed := at
	for _, m := range v.chosen {
		if v.unwritten[m.leaf] && !slices.ContainsFunc(v.wals, func(w *walFile) bool { return w.first == m.first }) {
			return fmt.Errorf("manifest %d has no file, and the WAL that it seals is gone", m.leaf)
		}
	}
	var kept []*walFile
	for _, w := range v.wals {
		if w.first < sealed {
			continue
		}
		if w.key == nil {
			return fmt.Errorf("%s: its key is not there", w.name)
		}
		if w.first != at {
			return fmt.Errorf("%s begins at %d, what is before it ends at %d", w.name, w.first, at)
		}
		at = w.end()
		kept = append(kept, w)
	}
	v.wals = kept
	if len(kept) == 0 {
		return errors.New("there is no WAL file behind the segments")
	}
	if at < v.size {
		return fmt.Errorf("the files hold %d leaves, the checkpoint covers %d", at, v.size)
	}
	for _, m := range v.chosen {
		if m.leaf >= at {
			return fmt.Errorf("the leaf of manifest %d is not there", m.leaf)
		}
	}
	return nil
}

// readRecordsInWAL adds the leaves behind the segments.
func (v *verifier) readRecordsInWAL() error {
	for _, w := range v.wals {
		for _, it := range w.items {
			switch {
			case it.typ == itemRecord:
				if err := v.record(it.index, it.subject, it.frame, it.personal, it.commitment); err != nil {
					return err
				}
				v.leaves = append(v.leaves, leaf{0x01, it.commitment})
			case it.typ == itemMark && it.kind == markManifest:
				v.leaves = append(v.leaves, leaf{0x02, manifestHash(it.data)})
			}
		}
	}
	return nil
}

// record recomputes the commitment of one record (section 5).
func (v *verifier) record(index uint64, subject id, frame, personal []byte, want hash) error {
	key, err := v.keys.subject(subject)
	if err != nil {
		return fmt.Errorf("record %d: %w", index, err)
	}
	if commitment(key, v.origin, index, frame, personal) != want {
		return fmt.Errorf("record %d does not match its commitment", index)
	}
	v.records++
	return nil
}

func commitment(key hash, origin string, index uint64, frame, personal []byte) hash {
	info := binary.BigEndian.AppendUint64([]byte("gatebook/v1/commit"+origin), index)
	k := expand(key[:], info, 32)
	p := hmacSHA256(k, personal)
	f := sha256.Sum256(frame)
	return sha256.Sum256(slices.Concat([]byte("gatebook/v1/record"), f[:], p))
}

func manifestHash(b []byte) hash {
	return sha256.Sum256(append([]byte("gatebook/v1/manifest"), b...))
}

func hmacSHA256(key, msg []byte) []byte {
	m := hmac.New(sha256.New, key)
	m.Write(msg)
	return m.Sum(nil)
}

// expand is HKDF-Expand with SHA-256 (RFC 5869 section 2.3).
func expand(key, info []byte, n int) []byte {
	var out, t []byte
	for i := byte(1); len(out) < n; i++ {
		t = hmacSHA256(key, slices.Concat(t, info, []byte{i}))
		out = append(out, t...)
	}
	return out[:n]
}

// checkLeaves is step 5.
func (v *verifier) checkLeaves() error {
	for i, l := range v.leaves {
		b, ok := v.manifests[uint64(i)]
		if ok != (l.typ == 0x02) {
			return fmt.Errorf("leaf %d and the manifests differ about what it is", i)
		}
		if ok && manifestHash(b) != l.hash {
			return fmt.Errorf("leaf %d does not bind its manifest", i)
		}
	}
	return nil
}

// checkTree is step 6.
func (v *verifier) checkTree() error {
	level := make([]hash, v.size)
	for i := range level {
		level[i] = v.leaves[i].leafHash()
	}
	if merkleRoot(level) != v.root {
		return errors.New("the leaves give another root than the checkpoint")
	}
	for l := 1; ; l++ {
		var up []hash
		for len(level) >= 256 {
			up = append(up, merkleRoot(level[:256]))
			level = level[256:]
		}
		if len(up) < 256 {
			return nil
		}
		for n := range len(up) / 256 {
			want := make([]byte, 0, 8192)
			for _, h := range up[256*n : 256*n+256] {
				want = append(want, h[:]...)
			}
			got, err := os.ReadFile(filepath.Join(v.dir, tileName(l, n)))
			if err != nil {
				return err
			}
			if !bytes.Equal(got, want) {
				return fmt.Errorf("%s is not what its leaves give", tileName(l, n))
			}
		}
		level = up
	}
}

// merkleRoot is MTH of RFC 6962 section 2.1 over leaf hashes.
func merkleRoot(h []hash) hash {
	switch len(h) {
	case 0:
		return sha256.Sum256(nil)
	case 1:
		return h[0]
	}
	k := 1
	for 2*k < len(h) {
		k *= 2
	}
	left, right := merkleRoot(h[:k]), merkleRoot(h[k:])
	return sha256.Sum256(slices.Concat([]byte{0x01}, left[:], right[:]))
}

func tileName(level, n int) string {
	p := fmt.Sprintf("%03d", n%1000)
	for n /= 1000; n > 0; n /= 1000 {
		p = fmt.Sprintf("x%03d/%s", n%1000, p)
	}
	return fmt.Sprintf("tile/%d/%s", level, p)
}
