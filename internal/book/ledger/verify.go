package ledger

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"slices"
	"strings"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"github.com/gatebook/gatebook/internal/book/store"
)

// Status is the answer to one of verify's questions.
type Status string

// The answers. What could not be looked at is never called ok.
const (
	OK         Status = "ok"
	Failed     Status = "failed"
	NotChecked Status = "not checked"
)

// Answer is a status and what it rests on.
type Answer struct {
	Status Status `json:"status"`
	Detail string `json:"detail,omitempty"`
}

// Report is what verification found. The six questions are answered
// separately: a consistent tree says nothing of bytes that nobody hashed.
type Report struct {
	Origin     string    `json:"origin"`
	Trust      string    `json:"trust"` // "key" or "self"
	Signed     uint64    `json:"signed"`
	Leaves     uint64    `json:"leaves"`
	Records    uint64    `json:"records"`
	Sealed     uint64    `json:"sealed"`
	Root       string    `json:"root"`
	Tree       Answer    `json:"tree"`
	Bytes      Answer    `json:"bytes"`
	Signatures Answer    `json:"signatures"`
	Range      Answer    `json:"range"`
	Anchored   Answer    `json:"anchored"`
	Keys       Answer    `json:"keys"`
	Findings   []*Damage `json:"findings,omitempty"`
}

// Exit codes of verification (spec/interface.md).
const (
	ExitDamaged     = 10
	ExitTruncated   = 11
	ExitNotAnchored = 12
	ExitKeyless     = 14
)

// ExitCode is what a command that verified should exit with.
func (r *Report) ExitCode() int {
	truncated := len(r.Findings) > 0
	for _, f := range r.Findings {
		truncated = truncated && f.Kind == Truncated
	}
	switch {
	case truncated:
		return ExitTruncated
	case len(r.Findings) > 0:
		return ExitDamaged
	case r.Keys.Status == Failed:
		return ExitKeyless
	case r.Tree.Status != OK || r.Bytes.Status == Failed || r.Signatures.Status != OK || r.Range.Status == Failed:
		return ExitDamaged
	case r.Trust == TrustSelf || r.Anchored.Status == Failed:
		return ExitNotAnchored
	}
	return 0
}

// Where the verifier key came from.
const (
	TrustKey  = "key"
	TrustSelf = "self"
)

// VerifyOptions say what to verify against. FS and Codec are needed.
type VerifyOptions struct {
	FS    store.FS
	Codec Codec
	// Keys opens sealed content; nil checks files against manifests and tree
	// only.
	Keys Keys
	// Key is the verifier key of the log; empty takes the one in the folder
	// and trusts it only as far as the folder.
	Key string
	// Saved is a checkpoint kept from earlier, with which the log must be
	// consistent.
	Saved []byte
	// Record is shown every record whose content was opened and found to match
	// its commitment, in order. An error is a finding about that record.
	Record func(index uint64, frame []byte) error
	// Stop is asked before each file is read; its error ends the verification.
	// nil: nobody stops it.
	Stop func() error
}

// verification is one run.
type verification struct {
	VerifyOptions
	rep     *Report
	s       *loaded
	v       note.Verifier
	unpack  *unpacker
	front   frontier
	short   bool // leaves are missing before the end
	saved   *Tree
	forked  bool                       // it contradicts the log
	bound   map[uint64]bool            // leaves that are manifests
	content uint64                     // records whose content was opened
	subject map[[16]byte]*subjectState // of records in the WAL
	commit  *committer
	stopped error // by Stop
}

// Verify reads everything and changes nothing. The caller holds the lock, or
// verifies a copy. o.Keys learns the births in the WAL. An error means that verification itself could not be done;
// what it found is in the report.
func Verify(o VerifyOptions) (*Report, error) {
	r := &verification{VerifyOptions: o, rep: &Report{Trust: TrustKey}, subject: map[[16]byte]*subjectState{}, bound: map[uint64]bool{}}
	if err := r.begin(); err != nil {
		return nil, err
	}
	if r.v == nil {
		return r.rep, nil
	}
	r.commit = newCommitter(r.v.Name())
	var err error
	if r.unpack, err = newUnpacker(); err != nil {
		return nil, err
	}
	defer r.unpack.dec.Close()
	opt := Options{FS: o.FS, Keys: o.Keys, Codec: o.Codec}
	r.s = newLoaded(&opt, r.v)
	defer func() {
		r.s.closeAll()
		for _, w := range r.s.leftover {
			closeFile(w.f)
		}
	}()
	r.signatures()
	r.files()
	r.segments()
	if r.stopped != nil {
		return nil, r.stopped
	}
	r.wal()
	r.manifests()
	r.finish()
	return r.rep, nil
}

// begin finds the verifier key.
func (r *verification) begin() error {
	if _, err := store.ReadFile(r.FS, "checkpoint", 64<<10); errors.Is(err, fs.ErrNotExist) {
		if _, err := store.ReadFile(r.FS, "ledger", 4096); errors.Is(err, fs.ErrNotExist) {
			return errors.New("there is no ledger in this folder: it has neither a file \"ledger\" nor a file \"checkpoint\"")
		}
	}
	self, err := SelfKey(r.FS)
	if err != nil {
		r.found(&Damage{Kind: damageOf(err), File: "log.vkey", Detail: err.Error()})
	}
	key := r.Key
	if key == "" {
		r.rep.Trust, key = TrustSelf, self
	} else if err == nil && self != key {
		r.found(&Damage{Kind: Edited, File: "log.vkey", Detail: "the folder holds another verifier key than the one given"})
	}
	v, err := note.NewVerifier(key)
	if err != nil {
		if r.Key != "" {
			return &GivenError{"verifier key", err}
		}
		r.found(&Damage{Kind: Edited, File: "log.vkey", Detail: err.Error()})
		r.rep.Signatures = Answer{Failed, "no usable verifier key"}
		return nil
	}
	r.v, r.rep.Origin = v, v.Name()
	if len(r.Saved) > 0 {
		t, err := OpenCheckpoint(r.Saved, v)
		if err != nil {
			return &GivenError{"the saved checkpoint is not one of log " + v.Name() + ": it is the wrong file, or another log has taken the place of the one that it is of", err}
		}
		r.saved = &t
	}
	return nil
}

func (r *verification) found(d *Damage) { r.rep.Findings = append(r.rep.Findings, d) }

// note files an error away: damage as a finding, a missing key as an answer.
func (r *verification) note(err error) {
	var d *Damage
	var k *KeyError
	switch {
	case err == nil:
	case errors.As(err, &d):
		r.found(d)
	case errors.As(err, &k):
		r.rep.Keys = Answer{Failed, k.Error()}
	default:
		r.found(&Damage{Kind: Edited, File: "ledger", Detail: err.Error()})
	}
}

func (r *verification) signatures() {
	r.rep.Signatures = Answer{OK, "identity and checkpoint are signed by " + r.v.Name()}
	if err := readIdentity(r.FS, r.v); err != nil {
		r.rep.Signatures = Answer{Failed, err.Error()}
		r.found(&Damage{Kind: damageOf(err), File: "ledger", Detail: err.Error()})
	}
	if err := r.s.loadCheckpoint(r.v); err != nil {
		r.rep.Signatures = Answer{Failed, err.Error()}
		r.note(err)
	}
	r.rep.Signed = r.s.check.Size
}

// files runs the same reading that a start does.
func (r *verification) files() {
	r.note(r.s.loadManifestFiles())
	r.rep.Keys = Answer{NotChecked, "no keys were given"}
	if r.Keys == nil {
		r.note(r.s.chooseSegments())
		return
	}
	r.rep.Keys = Answer{OK, ""}
	whole := true
	for _, step := range []func() error{r.s.loadWALs, r.s.chooseSegments, r.s.dropSealedWALs} {
		err := step()
		r.note(err)
		whole = whole && err == nil
		var d *Damage
		if errors.As(err, &d) && strings.HasPrefix(d.File, "wal/") {
			r.short = true
		}
	}
	if whole { // otherwise what is missing has been named
		r.note(r.s.checkChain())
	}
	if err := r.s.announceBirths(); err != nil {
		r.rep.Keys = Answer{Failed, err.Error()}
	}
}

// wal takes the leaves behind the sealed ones.
func (r *verification) wal() {
	if r.Keys == nil {
		r.manifestTail()
		return
	}
	for _, w := range r.s.wals {
		if w.cipher.aead == nil || w.header.first != r.front.size {
			r.short = true
			return
		}
		r.walRecords(w)
		for i := range w.entries {
			r.push(w.entries[i])
		}
	}
}

// walRecords recomputes the commitment of every record in a WAL file.
func (r *verification) walRecords(w *walFile) {
	view := View{contents: r.s.contents}
	err := view.readWAL(w, w.header.first, w.next(), func(s *Sealed) error {
		if !s.Manifest {
			r.record(w.name, s, w.entries[s.Index-w.header.first].hash)
		}
		return nil
	})
	r.note(err)
}

// manifestTail takes what follows the last segment as far as it is manifest
// leaves, which are in clear. Records in the WAL need keys.
func (r *verification) manifestTail() {
	// Behind the checkpoint nothing clear is signed.
	for r.front.size < r.s.check.Size {
		b := r.s.manifests[r.front.size]
		if b == nil {
			break
		}
		r.push(entry{entryManifest, manifestHash(b)})
	}
	r.short = r.front.size < r.s.check.Size
}

// manifests demands that the tree binds every manifest that was gone by: one
// that no leaf binds could be anybody's.
func (r *verification) manifests() {
	for _, leaf := range slices.Sorted(maps.Keys(r.s.manifests)) {
		switch {
		case r.bound[leaf]:
		case leaf < r.front.size:
			r.found(&Damage{Kind: Edited, File: manifestName(leaf), First: leaf, Last: leaf, Detail: "no leaf of the tree binds this manifest"})
		case r.Keys == nil:
			r.rep.Keys = Answer{Failed, fmt.Sprintf("the leaf that should bind %s is in the WAL, if anywhere, and cannot be checked without keys", manifestName(leaf))}
		}
	}
}

// record checks the content of one record against its commitment.
func (r *verification) record(file string, s *Sealed, want [32]byte) {
	r.rep.Records++
	key := s.key
	if key == nil {
		key = r.subject[s.Subject]
	}
	if key == nil {
		k, err := r.Keys.SubjectKey(s.Subject)
		if err != nil {
			s.PersonalErr = &KeyError{What: fmt.Sprintf("subject %x", s.Subject), Err: err}
		} else {
			key = &subjectState{key: k}
			r.subject[s.Subject] = key
		}
	}
	if s.PersonalErr != nil {
		r.found(&Damage{Kind: Edited, File: file, First: s.Index, Last: s.Index, Detail: "the personal part cannot be opened and no erasure accounts for it: " + s.PersonalErr.Error()})
		return
	}
	if r.commit.record(key, s.Index, s.Frame, s.Personal) != want {
		r.found(&Damage{Kind: Edited, File: file, First: s.Index, Last: s.Index, Detail: "the content does not match the commitment"})
		return
	}
	r.content++
	if r.Record != nil {
		if err := r.Record(s.Index, s.Frame); err != nil {
			r.found(&Damage{Kind: Edited, File: file, First: s.Index, Last: s.Index, Detail: err.Error()})
		}
	}
}

// push adds a leaf to the recomputed tree.
func (r *verification) push(e entry) { r.pushHashed(e, e.leafHash()) }

// pushHashed is push for an entry whose leaf hash is known.
func (r *verification) pushHashed(e entry, leaf tlog.Hash) {
	if e.typ == entryManifest {
		if b := r.s.manifests[r.front.size]; b == nil || manifestHash(b) != e.hash {
			r.found(&Damage{Kind: Edited, File: manifestName(r.front.size), First: r.front.size, Last: r.front.size, Detail: "the manifest is not the one that its leaf binds"})
		}
		r.bound[r.front.size] = true
	}
	r.front.push(leaf)
	r.pushed()
}

// pushed looks at the tree where it has the size of a checkpoint.
func (r *verification) pushed() {
	if r.saved != nil && r.front.size == r.saved.Size && r.front.root() != r.saved.Root {
		r.forked = true
		r.found(&Damage{Kind: Forked, File: "checkpoint", First: 0, Last: r.saved.Size - 1, Detail: "the log is not the one that the saved checkpoint was taken from"})
	}
	if r.front.size == r.s.check.Size {
		r.atCheckpoint()
	}
}

// atCheckpoint compares the recomputed root with the signed one.
func (r *verification) atCheckpoint() {
	root := r.front.root()
	r.rep.Root = fmt.Sprintf("%x", root[:])
	if root == r.s.check.Root {
		r.rep.Tree = Answer{OK, fmt.Sprintf("%d leaves give the signed root", r.s.check.Size)}
		return
	}
	r.rep.Tree = Answer{Failed, "the leaves give another root than the signed one"}
	r.found(&Damage{Kind: Forked, File: "checkpoint", First: 0, Last: max(r.s.check.Size, 1) - 1, Detail: r.rep.Tree.Detail})
}

// checkTile compares a full tile with the file, if one was written.
func (r *verification) checkTile(level int, n uint64, hashes []tlog.Hash) {
	if (n+1)<<(8*(level+1)) > r.s.check.Size {
		return
	}
	have, err := readTile(r.FS, level, n)
	same := err == nil
	for i := range have {
		same = same && bytes.Equal(have[i][:], hashes[i][:])
	}
	if !same {
		d := &Damage{Kind: Edited, File: tilePath(level, n, tileWidth), First: n << (8 * (level + 1)), Last: (n+1)<<(8*(level+1)) - 1, Detail: "the tile is not the one that its leaves give"}
		if err != nil {
			d.Kind, d.Detail = damageOf(err), err.Error()
		}
		r.found(d)
	}
}

// finish fills in the answers.
func (r *verification) finish() {
	rep := r.rep
	rep.Leaves = r.front.size
	if r.s.check.Size == 0 && len(r.s.checkNote) > 0 && rep.Signatures.Status == OK {
		rep.Tree = Answer{OK, "the signed tree is empty"}
	}
	if rep.Tree.Status == "" {
		rep.Tree = Answer{NotChecked, fmt.Sprintf("leaves from %d on are in the WAL, which needs keys", r.front.size)}
		if r.Keys != nil || !r.short {
			rep.Tree = Answer{Failed, fmt.Sprintf("leaves from %d on are missing", r.front.size)}
		}
	}
	if r.Keys == nil && r.short && rep.Tree.Status == NotChecked {
		// Nothing contradicts the log, yet it is not proved: that is no success.
		rep.Keys = Answer{Failed, "the newest records are in the WAL and cannot be checked without keys"}
	}
	switch {
	case len(rep.Findings) > 0:
		rep.Bytes = Answer{Failed, fmt.Sprintf("%d findings", len(rep.Findings))}
	case r.Keys == nil:
		rep.Bytes = Answer{NotChecked, "files match their manifests; the content was not opened, which needs keys"}
	default:
		rep.Bytes = Answer{OK, fmt.Sprintf("%d records match their commitments", r.content)}
	}
	if rep.Anchored.Status == "" {
		rep.Anchored = Answer{NotChecked, "anchor: none; whoever owns the machine can roll back the newest checkpoints"}
	}
	if r.saved != nil {
		r.finishSaved()
	}
	for _, f := range rep.Findings {
		if f.Kind == Truncated || f.Kind == Missing {
			rep.Range = Answer{Failed, "records are missing"}
		}
	}
	if rep.Range.Status == "" {
		rep.Range = Answer{NotChecked, "heartbeats were not looked at"}
	}
}

func (r *verification) finishSaved() {
	if r.saved.Size > r.s.check.Size {
		r.found(&Damage{Kind: Truncated, File: "checkpoint", First: r.s.check.Size, Last: r.saved.Size - 1, Detail: fmt.Sprintf("a checkpoint over %d leaves was saved earlier, this log has signed only %d", r.saved.Size, r.s.check.Size)})
		return
	}
	if r.forked {
		r.rep.Anchored = Answer{Failed, "the log contradicts the saved checkpoint"}
		return
	}
	if r.front.size >= r.saved.Size {
		r.rep.Anchored = Answer{OK, fmt.Sprintf("consistent with the saved checkpoint over %d leaves", r.saved.Size)}
	}
}
