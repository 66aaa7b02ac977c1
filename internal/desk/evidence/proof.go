// Package evidence makes what an auditor takes away: a proof that one record
// is in the log, with the record itself, checkable offline with nothing but
// the log's verifier key.
package evidence

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strconv"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/gatebook/gatebook/internal/book"
	"github.com/gatebook/gatebook/internal/book/ledger"
)

// proofHead is the first line of a C2SP tlog-proof file.
const proofHead = "c2sp.org/tlog-proof@v1"

// maxProof bounds a proof file.
const maxProof = 1 << 20

// disclosed is the record as it stands in the `extra` line. tlog-proof does
// not authenticate that line; the commitment does: frame and personal part (or
// its hash) must give the commitment whose leaf the proof is for.
type disclosed struct {
	V            int    `json:"v"`
	Frame        string `json:"frame"`
	Personal     string `json:"personal,omitempty"`
	Key          string `json:"key,omitempty"`           // base64 of k_i, which opens this record only
	PersonalHash string `json:"personal_hash,omitempty"` // base64 of P_i, instead of personal and key
}

// Encode writes a proof and the disclosed record as one tlog-proof file.
func Encode(p *ledger.Proof, d *book.Disclosure) ([]byte, error) {
	x := disclosed{V: 1, Frame: string(d.Frame)}
	if d.Key != nil {
		x.Personal, x.Key = string(d.Personal), base64.StdEncoding.EncodeToString(d.Key)
	} else {
		x.PersonalHash = base64.StdEncoding.EncodeToString(d.PersonalHash[:])
	}
	extra, err := json.Marshal(x)
	if err != nil {
		return nil, err
	}
	var b bytes.Buffer
	fmt.Fprintf(&b, "%s\nextra %s\nindex %d\n", proofHead, base64.StdEncoding.EncodeToString(extra), p.Index)
	for _, h := range p.Hashes {
		fmt.Fprintln(&b, base64.StdEncoding.EncodeToString(h[:]))
	}
	b.WriteByte('\n')
	b.Write(p.Checkpoint)
	return b.Bytes(), nil
}

// Proved is what a proof file shows.
type Proved struct {
	Origin   string `json:"origin"`
	Index    uint64 `json:"index"`
	Size     uint64 `json:"size"`
	Frame    []byte `json:"-"`
	Personal []byte `json:"-"` // nil if not disclosed
}

// IsProof tells whether a file looks like a proof.
func IsProof(b []byte) bool { return bytes.HasPrefix(b, []byte(proofHead+"\n")) }

// ErrProof means that the proof does not hold.
var ErrProof = errors.New("the proof does not hold")

// Verify checks a proof file offline against the log's verifier key. An error
// that matches ErrProof means that the evidence is not good; others, that the
// key or file cannot be used.
func Verify(file []byte, vkey string) (*Proved, error) {
	v, err := note.NewVerifier(vkey)
	if err != nil {
		return nil, fmt.Errorf("verifier key: %w", err)
	}
	f, err := parse(file)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProof, err)
	}
	tree, err := ledger.OpenCheckpoint(f.checkpoint, v)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProof, err)
	}
	commitment, personal, err := f.record.commitment(tree.Origin, f.index)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrProof, err)
	}
	leaf := ledger.RecordLeaf(commitment)
	if f.index >= tree.Size {
		return nil, fmt.Errorf("%w: index %d is not in a tree of %d leaves", ErrProof, f.index, tree.Size)
	}
	if err := tlog.CheckRecord(f.hashes, int64(tree.Size), tree.Root, int64(f.index), leaf); err != nil {
		return nil, fmt.Errorf("%w: the record is not at index %d of the signed tree: it or the proof was changed", ErrProof, f.index)
	}
	return &Proved{Origin: tree.Origin, Index: f.index, Size: tree.Size, Frame: []byte(f.record.Frame), Personal: personal}, nil
}

// commitment recomputes C from what was disclosed.
func (d *disclosed) commitment(origin string, index uint64) (c [32]byte, personal []byte, err error) {
	frame := sha256.Sum256([]byte(d.Frame))
	if d.Key == "" {
		if d.Personal != "" {
			return c, nil, errors.New("a personal part without its key proves nothing")
		}
		p, err := decode32(d.PersonalHash)
		if err != nil {
			return c, nil, fmt.Errorf("personal_hash: %w", err)
		}
		return ledger.Commitment(&frame, &p), nil, nil
	}
	if d.PersonalHash != "" {
		return c, nil, errors.New("a record is disclosed with its key or with its hash, not both")
	}
	k, err := decode32(d.Key)
	if err != nil {
		return c, nil, fmt.Errorf("key: %w", err)
	}
	p, _ := ledger.PersonalHash(&k, []byte(d.Personal), nil)
	return ledger.Commitment(&frame, &p), []byte(d.Personal), nil
}

func decode32(s string) (out [32]byte, err error) {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != 32 {
		return out, errors.New("not 32 bytes of base64")
	}
	return [32]byte(b), nil
}

// proofFile is a parsed proof file.
type proofFile struct {
	record     disclosed
	index      uint64
	hashes     tlog.RecordProof
	checkpoint []byte
}

// maxPath is the longest inclusion path that can be.
const maxPath = 63

func parse(b []byte) (*proofFile, error) {
	if len(b) > maxProof {
		return nil, fmt.Errorf("a proof of %d bytes is too large", len(b))
	}
	head, checkpoint, ok := bytes.Cut(b, []byte("\n\n"))
	if !ok {
		return nil, errors.New("no empty line before the checkpoint")
	}
	lines := strings.Split(string(head), "\n")
	if lines[0] != proofHead || len(lines) < 3 {
		return nil, fmt.Errorf("the first line must be %q", proofHead)
	}
	f := &proofFile{checkpoint: checkpoint}
	extra, ok := strings.CutPrefix(lines[1], "extra ")
	if !ok {
		return nil, errors.New("no extra line with the disclosed record")
	}
	raw, err := base64.StdEncoding.Strict().DecodeString(extra)
	if err != nil {
		return nil, fmt.Errorf("extra line: %w", err)
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&f.record); err != nil {
		return nil, fmt.Errorf("disclosed record: %w", err)
	}
	if _, err := dec.Token(); err != io.EOF {
		return nil, errors.New("disclosed record: something follows it")
	}
	if f.record.V != 1 {
		return nil, fmt.Errorf("disclosed record of version %d is unknown to this release", f.record.V)
	}
	index, ok := strings.CutPrefix(lines[2], "index ")
	if f.index, err = strconv.ParseUint(index, 10, 63); !ok || err != nil || strconv.FormatUint(f.index, 10) != index {
		return nil, errors.New("no index line")
	}
	if len(lines)-3 > maxPath {
		return nil, errors.New("the inclusion path is too long")
	}
	for _, line := range lines[3:] {
		h, err := decode32(line)
		if err != nil {
			return nil, fmt.Errorf("inclusion path: %w", err)
		}
		f.hashes = append(f.hashes, h)
	}
	return f, nil
}
