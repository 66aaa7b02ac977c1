// Package ledger keeps opaque bytes so that nobody can change, drop, reorder,
// insert or truncate them unnoticed: a write-ahead log, sealed segments, a
// Merkle tree over commitments, signed checkpoints, recovery, proofs and
// verification. It knows nothing of what the bytes mean and can be audited
// alone.
//
// A record's way: append.go writes it to the WAL, checkpoint.go signs the tree
// over what is on the disk, seal.go turns a full WAL file into a segment.
package ledger

import (
	"context"
	"crypto/ed25519"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"iter"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/mod/sumdb/note"

	"github.com/gatebook/gatebook/internal/book/store"
	"github.com/gatebook/gatebook/internal/pace"
)

// Use says what a file key is for.
type Use uint8

// Uses of file keys.
const (
	UseWAL Use = iota + 1
	UseSegment
)

// Keys is what the ledger needs of the key store. Safe for concurrent use.
type Keys interface {
	// NewFileKey makes a random key that is durable, wrapped, when it returns.
	NewFileKey(use Use) (id [16]byte, key [32]byte, err error)
	FileKey(use Use, id [16]byte) ([32]byte, error)
	// DropFileKey destroys a key for good; a key that is gone is no error.
	DropFileKey(use Use, id [16]byte) error
	SubjectKey(id [16]byte) ([32]byte, error)
	// Born makes subjects durable in the key store; known ones are no error.
	Born(births [][]byte) error
}

// Codec turns frames into columns and back to the same bytes. Safe for
// concurrent use.
type Codec interface {
	// yield is called between pieces of work; DecodeColumns takes nil too.
	// EncodeColumns does not keep a frame, which is good until the next, and
	// reads them once. hints gives those that are known when it is called; more
	// may come with a frame.
	EncodeColumns(frames iter.Seq[[]byte], hints func() [][]byte, yield func()) (cols [][]byte, err error)
	// Frames gives n frames one by one, each good until the next.
	Frames(cols [][]byte, n int, yield func()) iter.Seq2[[]byte, error]
	DecodeColumns(cols [][]byte, n int, yield func()) (frames [][]byte, err error)
}

// maxSegmentRecords is how many leaves a segment may hold, and the boundary
// that none crosses.
const maxSegmentRecords = 65536

// Options configure a ledger. FS, Origin, Signer, Keys and Codec are needed;
// the rest has defaults.
type Options struct {
	FS     store.FS
	Origin string
	Signer note.Signer
	Keys   Keys
	Codec  Codec
	Logger *slog.Logger

	// SegmentRecords is the boundary that no segment crosses (65,536; a
	// smaller power of two only in tests).
	SegmentRecords uint64
	// SegmentMaxAge seals a segment that is older (1 h; one with nothing but
	// housekeeping after 24 times that).
	SegmentMaxAge time.Duration
	// SyncWithin is how long written bytes may stay unsynced (15 ms).
	SyncWithin time.Duration
	// Timeout bounds how long Append waits (1 s).
	Timeout time.Duration
	// CheckpointEvery is the time between checkpoints when there are new
	// leaves (1 s).
	CheckpointEvery time.Duration
	// CompactMark shortens an open mark that is older than a minute when it is
	// carried to a new WAL file. It returns the frame and personal part to
	// keep; nil keeps all.
	CompactMark func(frame, personal []byte) (f, p []byte)
	// Hint is handed to the codec when records written from now on are sealed.
	Hint []byte
	// Pace is the long work that gives way to the same traffic (none but its own).
	Pace *pace.Group
	// Now is the clock (time.Now).
	Now func() time.Time
	// Ballast is how many bytes are kept on the disk to be given up for items
	// that may use them (none).
	Ballast int64
	// KeyLease is how long the ledger goes on when Keys makes no new ones
	// (10 min).
	KeyLease time.Duration
	// Prealloc is the size of the pieces in which WAL files are zero-written
	// ahead (1 MiB).
	Prealloc int64
}

func (o *Options) setDefaults() error {
	if o.FS == nil || o.Keys == nil || o.Codec == nil {
		return errors.New("ledger options lack FS, Keys or Codec")
	}
	if o.Origin == "" || len(o.Origin) > maxOrigin || strings.ContainsAny(o.Origin, "\n +") {
		return fmt.Errorf("origin %q must be 1 to %d bytes without spaces, plus signs or line breaks", o.Origin, maxOrigin)
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.SegmentRecords = cmpOr(o.SegmentRecords, maxSegmentRecords)
	if o.SegmentRecords > maxSegmentRecords || o.SegmentRecords&(o.SegmentRecords-1) != 0 {
		return fmt.Errorf("segment size %d is not a power of two up to %d", o.SegmentRecords, maxSegmentRecords)
	}
	o.SegmentMaxAge = cmpOr(o.SegmentMaxAge, time.Hour)
	o.SyncWithin = cmpOr(o.SyncWithin, 15*time.Millisecond)
	o.Timeout = cmpOr(o.Timeout, time.Second)
	o.CheckpointEvery = cmpOr(o.CheckpointEvery, time.Second)
	o.KeyLease = cmpOr(o.KeyLease, 10*time.Minute)
	o.Prealloc = cmpOr(o.Prealloc, 1<<20)
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Pace == nil {
		o.Pace = &pace.Group{}
	}
	return nil
}

func cmpOr[T comparable](v, fallback T) T {
	var zero T
	if v == zero {
		return fallback
	}
	return v
}

// Origin is the name of the log that a key signs: prefix, node and incarnation
// (first 16 hex digits of SHA-256 of the public key), so that a new key is a
// new log.
func Origin(prefix, node string, seed [32]byte) string {
	pub := ed25519.NewKeyFromSeed(seed[:]).Public().(ed25519.PublicKey)
	sum := sha256.Sum256(pub)
	return fmt.Sprintf("%s/%s/%x", prefix, node, sum[:8])
}

// signer is an Ed25519 note signer (C2SP signed-note).
type signer struct {
	name string
	hash uint32
	key  ed25519.PrivateKey
}

func (s *signer) Name() string                    { return s.name }
func (s *signer) KeyHash() uint32                 { return s.hash }
func (s *signer) Sign(msg []byte) ([]byte, error) { return ed25519.Sign(s.key, msg), nil }

// NewSigner makes the signer of a log from its seed, and the verifier key that
// belongs to it.
func NewSigner(origin string, seed [32]byte) (note.Signer, string, error) {
	key := ed25519.NewKeyFromSeed(seed[:])
	pub := key.Public().(ed25519.PublicKey)
	vkey, err := note.NewEd25519VerifierKey(origin, pub)
	if err != nil {
		return nil, "", err
	}
	const algEd25519 = 1
	sum := sha256.Sum256(append(append([]byte(origin), '\n', algEd25519), pub...))
	return &signer{origin, binary.BigEndian.Uint32(sum[:]), key}, vkey, nil
}

// Ledger is an open ledger. Append and the readers are safe for concurrent
// use; Run must be running for the durable level, checkpoints and sealing.
type Ledger struct {
	opt    Options
	lock   io.Closer
	verify note.Verifier

	pendings sync.Pool // of *pending

	queueMu sync.Mutex
	queue   []*pending // under queueMu
	spare   []*pending // under queueMu; the other of the two queue buffers
	leading bool       // under queueMu; somebody owns the fields of sequencer
	seq     sequencer  // owned by the leader

	mu      sync.RWMutex // guards what follows; the leader writes it once per batch
	state   contents
	marks   map[[16]byte]markAt
	failed  error  // why nothing more is appended
	durable uint64 // leaves known to be on the disk
	waiting []*durableWait

	dirty    chan struct{} // a batch is unsynced
	urgent   chan struct{} // and somebody waits
	grow     chan struct{} // a WAL file needs more zeros or a successor
	toSeal   chan struct{} // a WAL file is complete
	queued   chan queuedItem
	carrying atomic.Bool // older files still hold open marks

	growMu     sync.Mutex // held while zeros are written ahead
	next       *walFile   // under growMu; prepared successor, nil if none
	nextSerial uint64     // under growMu

	space space

	checkMu sync.Mutex // one checkpoint at a time
	signed  *frontier  // under checkMu
	again   rereading  // under checkMu
	latest  []byte     // under mu; newest signed checkpoint
	sealMu  sync.Mutex // one sealing at a time
	pack    *packer    // under sealMu; made by the first sealing
	unpack  *unpacker  // likewise
}

// markAt is where an open mark stands in the WAL.
type markAt struct {
	wal   *walFile
	batch batchInfo
	time  int64
}

// Run syncs, signs and seals until ctx ends or the ledger fails for good, and
// returns why.
func (l *Ledger) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context) error{l.queueLoop, l.syncLoop, l.growLoop, l.checkpointLoop, l.sealLoop} {
		wg.Go(func() {
			if err := loop(ctx); err != nil {
				cancel(err)
			}
		})
	}
	wg.Wait()
	if err := context.Cause(ctx); !errors.Is(err, context.Canceled) {
		return err
	}
	return nil
}

// Size is the number of leaves.
func (l *Ledger) Size() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.state.size()
}

// Durable is how many of the leaves are known to be on the disk.
func (l *Ledger) Durable() uint64 {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.durable
}

// Err says why the ledger takes no more records, nil if it does.
func (l *Ledger) Err() error {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.failed
}

// Checkpoint returns the newest signed checkpoint, a signed note.
func (l *Ledger) Checkpoint() []byte {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.latest
}

func (l *Ledger) now() time.Time { return l.opt.Now() }

// Origin returns the log's origin line.
func (l *Ledger) Origin() string { return l.opt.Origin }

// fail stops the ledger for good.
func (l *Ledger) fail(err error) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.failed == nil {
		l.failed = &fatalError{err}
		l.opt.Logger.Error("the ledger takes no more records", "err", err)
	}
	for _, w := range l.waiting {
		w.done <- l.failed
	}
	l.waiting = nil
	return l.failed
}
