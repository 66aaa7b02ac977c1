// Package book keeps one record of every exchange: redacted, sealed under the
// key of whom it is about, committed to in a tree that nobody can change
// unnoticed.
//
// A record's way is append.go: redact, split, resolve the subject, append to
// the ledger at the level asked for. read.go is the only place that opens
// sealed records.
package book

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"errors"
	"fmt"
	"hash"
	"io/fs"
	"iter"
	"log/slog"
	"os"
	"path/filepath"
	"runtime/debug"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/redact"
	"github.com/gatebook/gatebook/internal/book/store"
)

// Config says where a book is and how it keeps its promises. Dir and KeyDir
// are needed; the rest has defaults.
type Config struct {
	Dir    string // the book's folder
	KeyDir string // the file wrapper's folder, outside Dir and its backups
	Prefix string // first part of the origin
	Node   string

	SegmentMaxAge time.Duration // 1 h
	SyncWithin    time.Duration // 15 ms
	CommitTimeout time.Duration // 1 s
	Heartbeat     time.Duration // 1 min
	KeyLease      time.Duration // 10 min; how long the book goes on without new keys
	Ballast       int64         // 64 MiB; negative: none. Bytes that are given up when the disk is full

	// Exchanges of strangers with address prefix, reason and kind in common
	// are written one by one up to FoldAbove a second and counted above that;
	// the count is recorded each FoldWindow. FoldSlots is how many such floods
	// are told apart at a time; above that prefixes get coarser.
	FoldAbove  int           // 10; negative: nothing is folded
	FoldWindow time.Duration // 10 s
	FoldSlots  int           // 4,096; at least 16, at most 65,536

	Logger *slog.Logger
	Now    func() time.Time
}

func (c *Config) setDefaults() error {
	if c.Dir == "" || c.KeyDir == "" {
		return errors.New("a book needs a data folder and a key folder")
	}
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Now == nil {
		c.Now = time.Now
	}
	c.Heartbeat = cmp.Or(c.Heartbeat, time.Minute)
	c.SyncWithin = cmp.Or(c.SyncWithin, 15*time.Millisecond)
	c.CommitTimeout = cmp.Or(c.CommitTimeout, time.Second)
	c.Ballast = cmp.Or(c.Ballast, 64<<20)
	c.FoldAbove = cmp.Or(c.FoldAbove, 10)
	c.FoldWindow = cmp.Or(c.FoldWindow, 10*time.Second)
	c.FoldSlots = cmp.Or(c.FoldSlots, 4096)
	if c.FoldSlots < keepForAll || c.FoldSlots > maxFoldSlots {
		return fmt.Errorf("%d slots for floods, want %d to %d", c.FoldSlots, keepForAll, maxFoldSlots)
	}
	return nil
}

// statePath is where the key store is. A log that was left behind shares that
// of the folder around it.
func (c *Config) statePath() string {
	dir := filepath.Clean(c.Dir)
	if c.isEarlier() {
		dir = filepath.Dir(filepath.Dir(dir))
	}
	return filepath.Join(dir, "state", "keys.db")
}

// isEarlier tells a log that Renew left behind.
func (c *Config) isEarlier() bool {
	return filepath.Base(filepath.Dir(filepath.Clean(c.Dir))) == earlierDir
}

// place is where a book lives: its files, the store of its keys and the root
// of trust of those. tune, if not nil, sets ledger options that have no place
// in a configuration; it is for tests.
type place struct {
	files   store.FS
	state   keys.Store
	wrapper keys.Wrapper
	tune    func(*ledger.Options)
	boot    func() bootID // nil: the machine's
}

// ErrNone means that the folder holds no book. Serving never makes one: an
// empty disk must not silently become a new log.
var ErrNone = errors.New("there is no book in this folder; make one with \"gatebook init\"")

// present tells a folder without a book from one whose key store is gone.
func (c *Config) present() error {
	_, err := os.Stat(c.statePath())
	if !errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if _, none := os.Stat(filepath.Join(c.Dir, "ledger")); none == nil {
		return keyless(fmt.Errorf("the key store is gone; restore it from a backup: %w", err))
	}
	return fmt.Errorf("%s: %w", c.Dir, ErrNone)
}

// ledgerOptions joins configuration and key ring.
func (c *Config) ledgerOptions(p *place, ring *keys.Ring) (ledger.Options, string, error) {
	seed, err := ring.SigningSeed()
	if err != nil {
		return ledger.Options{}, "", err
	}
	defer clear(seed[:])
	origin := ledger.Origin(c.Prefix, c.Node, seed)
	signer, vkey, err := ledger.NewSigner(origin, seed)
	opt := ledger.Options{
		FS: p.files, Origin: origin, Signer: signer, Keys: ringKeys{ring}, Codec: codec{}, Logger: c.Logger,
		SegmentMaxAge: c.SegmentMaxAge, SyncWithin: c.SyncWithin, Timeout: c.CommitTimeout, Now: c.Now, CompactMark: compactMark,
		Ballast: max(c.Ballast, 0), KeyLease: c.KeyLease,
	}
	if p.tune != nil {
		p.tune(&opt)
	}
	return opt, vkey, err
}

// ringKeys is the key ring as the ledger sees it.
type ringKeys struct{ ring *keys.Ring }

func kindOf(use ledger.Use) keys.Kind {
	if use == ledger.UseWAL {
		return keys.KindWAL
	}
	return keys.KindSegment
}

func (k ringKeys) NewFileKey(use ledger.Use) ([16]byte, [32]byte, error) {
	id, key, err := k.ring.NewKey(kindOf(use))
	return id, key, err
}
func (k ringKeys) FileKey(use ledger.Use, id [16]byte) ([32]byte, error) {
	key, err := k.ring.Key(kindOf(use), id)
	if errors.Is(err, keys.ErrKeyUnknown) || errors.Is(err, keys.ErrKeyDestroyed) {
		err = fmt.Errorf("%w: %w", ledger.ErrNoKey, err)
	}
	return key, err
}
func (k ringKeys) DropFileKey(use ledger.Use, id [16]byte) error {
	if err := k.ring.Destroy(kindOf(use), id); !errors.Is(err, keys.ErrKeyUnknown) {
		return err
	}
	return nil
}
func (k ringKeys) SubjectKey(id [16]byte) ([32]byte, error) { return k.ring.SubjectKey(id) }
func (k ringKeys) Born(births [][]byte) error               { return k.ring.Project(births) }

// codec is the record's codec as the ledger sees it: it yields to traffic.
type codec struct{ record.Codec }

func (codec) EncodeColumns(frames iter.Seq[[]byte], hints func() [][]byte, yield func()) ([][]byte, error) {
	e, err := record.NewColumnEncoder(nil)
	if err != nil {
		return nil, err
	}
	hinted := 0
	for f := range frames {
		known := hints()
		for ; hinted < len(known); hinted++ {
			if err := e.Hint(known[hinted]); err != nil {
				return nil, err
			}
		}
		if err := e.Add(f); err != nil {
			return nil, err
		}
	}
	return e.Columns(yield), nil
}

func (codec) Frames(cols [][]byte, n int, yield func()) iter.Seq2[[]byte, error] {
	return func(give func([]byte, error) bool) {
		d, err := record.NewColumnDecoder(cols, n)
		var frame []byte
		for i := 0; i < n && err == nil; i++ {
			if frame, err = d.Next(frame[:0]); err == nil && !give(frame, nil) {
				return
			}
		}
		if err != nil {
			give(nil, err)
		}
	}
}

func (c codec) DecodeColumns(cols [][]byte, n int, yield func()) ([][]byte, error) {
	c.Yield = yield
	return c.Codec.DecodeColumns(cols, n)
}

// Book is an open book. Its methods are safe for concurrent use; Run must be
// running.
type Book struct {
	cfg    Config
	ring   *keys.Ring
	files  store.FS
	state  keys.Store
	ledger *ledger.Ledger
	ids    *record.IDMaker
	own    *redact.Rules // for records that the book itself makes
	vkey   string
	tokens keys.Key // of TokenHash
	boot   bootID
	folds  *folds
	alerts alertCounts
	begun  time.Time

	blind    *blind
	blindKey keys.Key
	records  atomic.Int64 // since the last heartbeat
	stepped  atomic.Int64 // by how many ns the clock was stepped since the last heartbeat, if it was far
	buffers  sync.Pool
	openings sync.Pool // of *opening
	hashers  sync.Pool // of *tokenHasher
}

// Open opens a book for writing: recovery first, then an `interrupted` record
// for every exchange without an outcome, `unclean_stop` if there was one, and
// `start`. Errors: ErrNone, store.ErrLocked, *RestoredError, *ledger.Damage,
// *ledger.KeyError.
func Open(ctx context.Context, c Config) (*Book, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	if err := errors.Join(c.notRestored(), c.notRenewing()); err != nil {
		return nil, err
	}
	return openFolder(ctx, c)
}

// openFolder is Open also of a folder whose log is about to be replaced.
func openFolder(ctx context.Context, c Config) (*Book, error) {
	if err := c.present(); err != nil {
		return nil, err
	}
	ks, err := keys.OpenBolt(c.statePath(), false)
	if errors.Is(err, keys.ErrLocked) {
		return nil, fmt.Errorf("%s: %w", c.Dir, store.ErrLocked)
	}
	if err != nil {
		return nil, keyless(err)
	}
	w, err := keys.OpenFileWrapper(c.KeyDir)
	if err != nil {
		return nil, errors.Join(keyless(err), ks.Close())
	}
	b, err := open(ctx, c, &place{files: store.Dir(c.Dir), state: ks, wrapper: w})
	if err != nil {
		return nil, errors.Join(err, ks.Close())
	}
	return b, nil
}

// keyless says that the records are there but nothing to open them with, unless
// it is the disk that takes no writes.
func keyless(err error) error {
	if errors.Is(err, syscall.EROFS) {
		return err
	}
	return &ledger.KeyError{What: "this book", Err: err}
}

// open is Open at a place whose key store stays the caller's after an error.
func open(ctx context.Context, c Config, p *place) (_ *Book, err error) {
	b := &Book{cfg: c, files: p.files, state: p.state, begun: c.Now()}
	b.makePools()
	if b.own, err = redact.New(redact.Config{}); err != nil {
		return nil, err
	}
	if b.ring, err = keys.Open(ctx, p.state, p.wrapper); err != nil {
		return nil, keyless(err)
	}
	opt, vkey, err := c.ledgerOptions(p, b.ring)
	if err != nil {
		return nil, keyless(err)
	}
	hint := make([]byte, 16)
	rand.Read(hint)
	if b.ids, err = record.NewIDMaker(hint); err != nil {
		return nil, err
	}
	if b.tokens, err = b.ring.StateKey("token"); err != nil {
		return nil, keyless(err)
	}
	foldKey, err := b.ring.StateKey("fold")
	if err != nil {
		return nil, keyless(err)
	}
	if b.blindKey, err = b.ring.StateKey("blind"); err != nil {
		return nil, keyless(err)
	}
	b.folds, b.boot = newFolds(&c, foldKey), thisBoot()
	if p.boot != nil {
		b.boot = p.boot()
	}
	opt.Hint, b.vkey = hint, vkey
	l, rec, err := ledger.Open(opt, vkey)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", c.Dir, ErrNone)
	}
	if err != nil {
		return nil, err
	}
	b.ledger = l
	if err := b.recover(ctx, rec); err != nil {
		if b.blind != nil {
			err = errors.Join(err, b.blind.f.Close())
		}
		return nil, errors.Join(fmt.Errorf("recording the restart: %w", err), l.Close(ctx))
	}
	return b, nil
}

// Run syncs, signs, seals, beats, projects and folds floods until ctx ends or the ledger
// fails for good, and returns why.
func (b *Book) Run(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	var wg sync.WaitGroup
	for _, loop := range []func(context.Context) error{b.ledger.Run, b.beat, b.foldLoop, b.blindLoop} {
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

// Close records the stop, seals and signs everything and lets go of the
// folder. Run must have returned.
func (b *Book) Close(ctx context.Context) error {
	var errs []error
	if b.ledger.Err() == nil {
		errs = append(errs, b.settle(ctx))
		errs = append(errs, b.Note(ctx, &record.Record{Kind: record.KindStop, Outcome: record.Success, Event: record.Event{Name: "stop"}}))
		errs = append(errs, b.ring.Project(b.ring.Pending()))
	}
	errs = append(errs, b.ledger.Close(ctx), b.blind.close(), b.state.Close())
	return errors.Join(errs...)
}

// Key returns the verifier key of the book's log.
func (b *Book) Key() string { return b.vkey }

// NewID makes the id of an exchange that starts at the given time.
func (b *Book) NewID(start time.Time) record.ID { return b.ids.Next(start.UnixMicro()) }

// TokenHash is what a record keeps of a token: a keyed hash of its issuer and
// id, by which its uses can be told to be the same token's and nothing else.
func (b *Book) TokenHash(issuer, tokenID string) string {
	h := b.hashers.Get().(*tokenHasher)
	h.buf = append(strconv.AppendInt(h.buf[:0], int64(len(issuer)), 10), '|')
	h.buf = append(append(h.buf, issuer...), tokenID...)
	h.mac.Reset()
	h.mac.Write(h.buf)
	h.buf = h.mac.Sum(h.buf[:0])
	var text [22]byte
	base64.RawURLEncoding.Encode(text[:], h.buf[:16])
	b.hashers.Put(h)
	return string(text[:])
}

func (b *Book) makePools() {
	b.buffers.New = func() any { return new(buffer) }
	b.openings.New = func() any {
		o := new(opening)
		o.Owner = o
		return o
	}
	b.hashers.New = func() any { return &tokenHasher{mac: hmac.New(sha256.New, b.tokens[:])} }
}

// tokenHasher is what TokenHash needs, kept because it is asked for with each
// request.
type tokenHasher struct {
	mac hash.Hash
	buf []byte
}

// Pseudonym is how frames name a person, given as issuer and subject joined by
// '|'; "" if the book knows nobody of that name.
func (b *Book) Pseudonym(issuerSub string) (string, error) {
	name, _, err := b.ring.Pseudonym(issuerSub)
	return name, err
}

// StateKey is the key under which state beside the book is sealed, such as that
// of package kv. It is made on first use, kept with the other keys, and the same
// for a purpose as long as the book exists.
func (b *Book) StateKey(purpose string) ([32]byte, error) {
	k, err := b.ring.StateKey("beside/" + purpose)
	return [32]byte(k), err
}

// Err says why the book takes no more records, nil if it does.
func (b *Book) Err() error { return b.ledger.Err() }

// Status is a glance at the book.
type Status struct {
	Origin     string `json:"origin"`
	Leaves     uint64 `json:"leaves"`
	Signed     uint64 `json:"signed"`
	Key        string `json:"key"`
	Anchor     string `json:"anchor"`
	Since      string `json:"since"`
	Failed     string `json:"failed,omitempty"`
	Lost       int64  `json:"lost"`
	Floods     int64  `json:"floods"` // under way
	Folded     int64  `json:"folded"` // exchanges that were counted instead of written, since the start
	Checkpoint string `json:"checkpoint"`
}

// Status reads what the book says of itself. It works while the book is down.
func (b *Book) Status() Status {
	s := Status{
		Origin: b.ledger.Origin(), Leaves: b.ledger.Size(), Key: b.vkey, Anchor: "none",
		Since: b.begun.UTC().Format(time.RFC3339), Checkpoint: string(b.ledger.Checkpoint()),
	}
	if n, err := ledger.CheckpointSize(b.ledger.Checkpoint()); err == nil {
		s.Signed = n
	}
	if err := b.ledger.Err(); err != nil {
		s.Failed = err.Error()
	}
	s.Floods, s.Folded = b.folds.floods.Load(), b.folds.folded.Load()
	t, orphans, _ := b.blind.pending()
	s.Lost = t.count + int64(orphans)
	return s
}

// Version is what start records and the version command call this build.
func Version() string {
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "(devel)"
}
