package verifier2

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"time"

	"go.etcd.io/bbolt"
)

// Kinds of wrapped keys (section 10).
const (
	keyWAL     = 1
	keySegment = 2
	keySubject = 5
)

// Keys are the keys of a book, in clear.
type Keys struct {
	epochs map[uint32]hash
	rows   map[string][]byte // kind · id -> wrapped key or tombstone
	plain  map[string]hash   // kind · id -> key
}

// NewKeys takes keys that are in clear already: Files by key id for WAL files
// and segments, Subjects by subject.
func NewKeys(files, subjects map[[16]byte][32]byte) *Keys {
	k := &Keys{plain: map[string]hash{}}
	for i, key := range files {
		k.plain[rowKey(keyWAL, i)], k.plain[rowKey(keySegment, i)] = key, key
	}
	for i, key := range subjects {
		k.plain[rowKey(keySubject, i)] = key
	}
	return k
}

func rowKey(kind byte, i id) string { return string(kind) + string(i[:]) }

// openKeys reads the key store and unwraps the epoch keys.
func openKeys(store, keyDir string) (*Keys, error) {
	db, err := bbolt.Open(store, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if err != nil {
		return nil, err
	}
	defer db.Close()
	k := &Keys{epochs: map[uint32]hash{}, rows: map[string][]byte{}, plain: map[string]hash{}}
	err = db.View(func(tx *bbolt.Tx) error {
		meta, epochs, keys := tx.Bucket([]byte("meta")), tx.Bucket([]byte("epoch")), tx.Bucket([]byte("key"))
		if meta == nil || epochs == nil || keys == nil || string(meta.Get([]byte("version"))) != "\x01" {
			return errors.New("key store: not version 1")
		}
		err := epochs.ForEach(func(num, v []byte) error {
			if len(num) != 4 || len(v) < 1 {
				return fmt.Errorf("key store: epoch row: %w", errForm)
			}
			if v[0] == 2 {
				return nil // retired: wraps nothing
			}
			key, err := unwrapEpoch(keyDir, binary.BigEndian.Uint32(num), v[1:])
			k.epochs[binary.BigEndian.Uint32(num)] = key
			return err
		})
		if err != nil {
			return err
		}
		return keys.ForEach(func(row, v []byte) error {
			k.rows[string(row)] = slices.Clone(v)
			return nil
		})
	})
	return k, err
}

// openRandom opens nonce · ciphertext · tag.
func openRandom(key hash, b, ad []byte) (out hash, err error) {
	aead, err := newGCM(key[:])
	if err != nil {
		return out, err
	}
	if len(b) != 12+32+16 {
		return out, errForm
	}
	plain, err := aead.Open(nil, b[:12], b[12:], ad)
	if err != nil {
		return out, err
	}
	return hash(plain), nil
}

func unwrapEpoch(keyDir string, epoch uint32, b []byte) (hash, error) {
	file, err := os.ReadFile(filepath.Join(keyDir, fmt.Sprintf("epoch-%010d.key", epoch)))
	if err != nil {
		return hash{}, err
	}
	if len(file) != 33 || file[0] != 1 || len(b) != 61 || b[0] != 1 {
		return hash{}, fmt.Errorf("epoch %d: %w", epoch, errForm)
	}
	ad := binary.BigEndian.AppendUint32([]byte("gatebook/v1/epoch\x01"), epoch)
	key, err := openRandom(hash(file[1:]), b[1:], ad)
	if err != nil {
		return key, fmt.Errorf("epoch %d: %w", epoch, err)
	}
	return key, nil
}

// unwrap opens a wrapped key.
func (k *Keys) unwrap(kind byte, i id, b []byte) (hash, error) {
	if len(b) != 65 || b[0] != 1 {
		return hash{}, errForm
	}
	epoch := binary.BigEndian.Uint32(b[1:])
	outer, ok := k.epochs[epoch]
	if !ok {
		return hash{}, fmt.Errorf("epoch %d is not there", epoch)
	}
	ad := slices.Concat([]byte("gatebook/v1/key\x01"), []byte{kind}, i[:], b[1:5])
	return openRandom(outer, b[5:], ad)
}

// file returns the key of a file.
func (k *Keys) file(kind byte, i id) (hash, error) {
	if key, ok := k.plain[rowKey(kind, i)]; ok {
		return key, nil
	}
	row, ok := k.rows[rowKey(kind, i)]
	if !ok || len(row) == 1 {
		return hash{}, fmt.Errorf("no key of kind %d with id %x", kind, i)
	}
	key, err := k.unwrap(kind, i, row)
	if err != nil {
		return key, fmt.Errorf("key of kind %d with id %x: %w", kind, i, err)
	}
	return key, nil
}

// subject returns a subject's key.
func (k *Keys) subject(i id) (hash, error) {
	key, err := k.file(keySubject, i)
	if err == nil {
		k.plain[rowKey(keySubject, i)] = key
	}
	return key, err
}

// birth learns a subject key from the WAL. Keys in clear know no births.
func (k *Keys) birth(b []byte) error {
	if k.rows == nil {
		return nil
	}
	want, ok := map[byte]int{1: 148, 2: 88, 3: 87, 4: 6}[at(b, 1)]
	if at(b, 0) != 1 || !ok || len(b) != want {
		return fmt.Errorf("birth: %w", errForm)
	}
	if b[1] > 2 {
		return nil
	}
	i := id(b[2:])
	row := rowKey(keySubject, i)
	if have, ok := k.rows[row]; ok && len(have) == 1 {
		return nil // destroyed for good
	}
	key, err := k.unwrap(keySubject, i, b[18:83])
	if err != nil {
		if _, ok := k.rows[row]; ok {
			return nil // re-wrapped since
		}
		return err
	}
	if have, err := k.subject(i); err == nil && have != key {
		return fmt.Errorf("birth of %x: another key than the stored one", i)
	}
	k.plain[row] = key
	return nil
}

func at(b []byte, i int) byte {
	if i < len(b) {
		return b[i]
	}
	return 0
}
