package book

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
	"github.com/gatebook/gatebook/internal/pace"
)

// Entry is one record as a reader gets it. It is valid only during the call.
type Entry struct {
	Index    uint64
	Record   *record.Record // without its personal part unless revealed
	Frame    []byte         // the committed bytes
	Personal []byte         // nil unless revealed
	// Sealed says why a personal part that was asked for is not there.
	Sealed error
}

// Erased reports whether the personal part is not there because its subject's
// key was destroyed: it will never be there again. Any other Sealed is trouble.
func (e *Entry) Erased() bool { return errors.Is(e.Sealed, keys.ErrKeyDestroyed) }

// Away reports whether a personal part that was asked for is not there only for
// now: nothing says that its key is gone or damaged, but the key could not be
// had. It may be there when the record is read again.
func (e *Entry) Away() bool {
	var k *ledger.KeyError
	switch {
	case errors.Is(e.Sealed, keys.ErrKeyDestroyed), errors.Is(e.Sealed, keys.ErrKeyUnknown), errors.Is(e.Sealed, keys.ErrKeyDamaged):
		return false
	}
	return errors.As(e.Sealed, &k) || errors.Is(e.Sealed, keys.ErrKeyUnavailable)
}

// Reader reads the book as it was at one moment. It belongs to one goroutine
// and must be closed.
type Reader struct {
	view  *ledger.View
	ring  *keys.Ring
	close func() error
}

// Reader opens the book for reading.
func (b *Book) Reader() (*Reader, error) {
	v, err := b.ledger.View()
	if err != nil {
		return nil, err
	}
	return &Reader{view: v, ring: b.ring, close: v.Close}, nil
}

// OpenReader opens a book that no process serves, for reading only: it takes
// the lock and changes nothing on the disk.
func OpenReader(ctx context.Context, c Config) (*Reader, error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	ring, err := c.readOnlyRing(ctx)
	if err != nil {
		return nil, err
	}
	return openReader(&c, &place{files: store.Dir(c.Dir)}, ring)
}

func openReader(c *Config, p *place, ring *keys.Ring) (*Reader, error) {
	opt, vkey, err := c.ledgerOptions(p, ring)
	if err != nil {
		return nil, keyless(err)
	}
	if c.isEarlier() {
		// It has a key of its own, of which only the public half is left.
		if vkey, err = ledger.SelfKey(p.files); err != nil {
			return nil, err
		}
		opt.Origin, _, _ = strings.Cut(vkey, "+")
		opt.Signer = nil
	}
	v, err := ledger.Inspect(opt, vkey)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("%s: %w", c.Dir, ErrNone)
	}
	if err != nil {
		return nil, err
	}
	return &Reader{view: v, ring: ring, close: v.Close}, nil
}

// readOnlyRing opens the keys over a copy of the key store in memory, so that
// births found in the WAL can be told to it without a write.
func (c *Config) readOnlyRing(ctx context.Context) (*keys.Ring, error) {
	if err := c.present(); err != nil {
		return nil, err
	}
	disk, err := keys.OpenBolt(c.statePath(), true)
	if errors.Is(err, keys.ErrLocked) {
		return nil, fmt.Errorf("%s: %w", c.Dir, store.ErrLocked)
	}
	if err != nil {
		return nil, keyless(err)
	}
	mem, err := keys.Load(disk)
	if err := errors.Join(err, disk.Close()); err != nil {
		return nil, keyless(err)
	}
	w, err := keys.OpenFileWrapper(c.KeyDir)
	if err != nil {
		return nil, keyless(err)
	}
	ring, err := keys.Open(ctx, mem, w)
	if err != nil {
		return nil, keyless(err)
	}
	return ring, nil
}

// EndWith has readings fail when ctx ends, between one file and the next.
func (r *Reader) EndWith(ctx context.Context) { r.view.StopWith(ctx.Err) }

// Close lets go of the files.
func (r *Reader) Close() error { return r.close() }

// Size is the number of leaves; the newest record's index is below it.
func (r *Reader) Size() uint64 { return r.view.Size() }

// Checkpoint returns the newest signed checkpoint.
func (r *Reader) Checkpoint() []byte {
	b, _ := r.view.Checkpoint()
	return b
}

// Signed returns the origin of the log and the size that the newest signed
// checkpoint covers.
func (r *Reader) Signed() (origin string, size uint64) {
	_, t := r.view.Checkpoint()
	return t.Origin, t.Size
}

// Signed returns the origin of the log and the size that its newest signed
// checkpoint covers, at hardly any cost.
func (b *Book) Signed() (origin string, size uint64) {
	size, err := ledger.CheckpointSize(b.ledger.Checkpoint())
	if err != nil {
		size = 0 // not to be believed, so nothing is covered
	}
	return b.ledger.Origin(), size
}

// Forward hands out the records [from, to) in order as Each does, one at a time
// from the disk: a reader that stops in the middle of a segment for long holds
// little. Records before a damaged one may be handed out before the error.
func (r *Reader) Forward(from, to uint64, reveal bool, fn func(*Entry) error) error {
	if reveal {
		return r.Each(from, to, true, fn)
	}
	return r.decoding(func(give func(uint64, []byte) error) error { return r.view.Stream(from, to, give) }, fn)
}

// Each hands out the records [from, to) in order; reveal opens personal parts.
// An error from fn ends the reading and is returned.
func (r *Reader) Each(from, to uint64, reveal bool, fn func(*Entry) error) error {
	if !reveal {
		return r.frames(from, to, codec{}, fn)
	}
	var rec record.Record
	return r.view.Read(from, to, func(s *ledger.Sealed) error {
		if s.Manifest {
			return nil
		}
		e := Entry{Index: s.Index, Record: &rec, Frame: s.Frame, Personal: s.Personal, Sealed: s.PersonalErr}
		rec = record.Record{}
		if err := record.Decode(e.Frame, e.Personal, &rec); err != nil {
			return fmt.Errorf("record %d: %w", s.Index, err)
		}
		return fn(&e)
	})
}

// frames hands out records without opening any personal part.
func (r *Reader) frames(from, to uint64, codec ledger.Codec, fn func(*Entry) error) error {
	return r.decoding(func(give func(uint64, []byte) error) error { return r.view.Frames(from, to, codec, give) }, fn)
}

// decoding hands out the records whose frames read gives.
func (r *Reader) decoding(read func(give func(uint64, []byte) error) error, fn func(*Entry) error) error {
	var rec record.Record
	return read(func(index uint64, frame []byte) error {
		rec = record.Record{}
		if err := record.Decode(frame, nil, &rec); err != nil {
			return fmt.Errorf("record %d: %w", index, err)
		}
		return fn(&Entry{Index: index, Record: &rec, Frame: frame})
	})
}

// ErrNotFound means that no record has the id.
var ErrNotFound = errors.New("no record has this id")

// Find hands out the record of an exchange, newest first where an id has
// several. ErrNotFound if there is none.
func (r *Reader) Find(id record.ID, reveal bool, fn func(*Entry) error) error {
	const step = 1 << 16
	for to := r.Size(); to > 0; {
		from := (to - 1) / step * step
		found := uint64(0)
		have := false
		err := r.Each(from, to, false, func(e *Entry) error {
			if e.Record.ID == id {
				found, have = e.Index, true
			}
			return nil
		})
		if err != nil {
			return err
		}
		if have {
			return r.Each(found, found+1, reveal, fn)
		}
		to = from
	}
	return fmt.Errorf("%s: %w", id, ErrNotFound)
}

// Disclosure opens one record to somebody without keys: it gives either the
// personal part and the one-record key, or the personal part's hash alone.
type Disclosure struct {
	Frame        []byte
	Personal     []byte
	Key          []byte // k_i; nil if the personal part is not disclosed
	PersonalHash [32]byte
}

// Prove returns the inclusion proof of the record and what opens it.
func (r *Reader) Prove(id record.ID, reveal bool) (*ledger.Proof, *Disclosure, error) {
	var index uint64
	if err := r.Find(id, false, func(e *Entry) error { index = e.Index; return nil }); err != nil {
		return nil, nil, err
	}
	p, err := r.view.Prove(index)
	if err != nil {
		return nil, nil, err
	}
	d := &Disclosure{}
	err = r.view.Read(index, index+1, func(s *ledger.Sealed) error {
		if s.PersonalErr != nil {
			return s.PersonalErr
		}
		subject, err := r.ring.SubjectKey(s.Subject)
		if err != nil {
			return &ledger.KeyError{What: fmt.Sprintf("record %d", index), Err: err}
		}
		_, tree := r.view.Checkpoint()
		k := ledger.CommitKey(&subject, tree.Origin, index)
		d.Frame = append([]byte(nil), s.Frame...)
		d.PersonalHash, _ = ledger.PersonalHash(&k, s.Personal, nil)
		if reveal {
			d.Personal, d.Key = append([]byte{}, s.Personal...), k[:]
		}
		frame := sha256.Sum256(d.Frame)
		if ledger.Commitment(&frame, &d.PersonalHash) != p.Commitment {
			return &ledger.Damage{Kind: ledger.Edited, File: "record", First: index, Last: index, Detail: "the content does not match the commitment"}
		}
		return nil
	})
	return p, d, err
}

// Pace is the long work beside the traffic that the book's own belongs to:
// others join it so that all of them together keep nobody waiting.
func (b *Book) Pace() *pace.Group { return b.ledger.Pace() }

// Sign signs a checkpoint over everything recorded so far, ahead of the next
// regular one.
func (b *Book) Sign(ctx context.Context) error { return b.ledger.SignCheckpoint(ctx) }

// VerifyOptions say what to verify a book against.
type VerifyOptions struct {
	Dir    string
	KeyDir string // empty: no keys; files are checked against manifests and tree
	Key    string // verifier key; empty takes the folder's own and trusts it no further
	Saved  []byte // a checkpoint kept from earlier
}

// Verify checks the evidence of a book that no process serves, or of a copy.
// It changes nothing and does not take the lock, so it works on read-only
// media.
func Verify(ctx context.Context, o VerifyOptions) (*ledger.Report, error) {
	vo := ledger.VerifyOptions{FS: store.Dir(o.Dir), Codec: codec{}, Key: o.Key, Saved: o.Saved, Stop: ctx.Err}
	if o.KeyDir != "" {
		c := Config{Dir: o.Dir, KeyDir: o.KeyDir}
		ring, err := c.readOnlyRing(ctx)
		if errors.Is(err, store.ErrLocked) {
			return nil, err
		}
		if err != nil {
			return verify(vo, nil, err)
		}
		vo.Keys = ringKeys{ring}
		return verify(vo, ring, nil)
	}
	return verify(vo, nil, nil)
}

// Verify checks the evidence of the open book, on the disk, while it goes on.
func (b *Book) Verify(key string, saved []byte) (*ledger.Report, error) {
	var rep *ledger.Report
	var err error
	// A batch that is being written while it is read looks torn; it does not
	// when looked at again.
	const tries = 3
	for range tries {
		b.ledger.WithoutSealing(func() {
			rep, err = verify(ledger.VerifyOptions{FS: b.files, Codec: codec{}, Keys: readKeys{ringKeys{b.ring}}, Key: key, Saved: saved}, b.ring, nil)
		})
		if err != nil || len(rep.Findings) == 0 {
			break
		}
	}
	return rep, err
}

// readKeys does not project: the births of a live WAL are known already.
type readKeys struct{ ringKeys }

func (readKeys) Born([][]byte) error { return nil }

// verify asks ledger and key ring. Without a ring keyErr says why there is none
// although one was wanted.
func verify(vo ledger.VerifyOptions, ring *keys.Ring, keyErr error) (*ledger.Report, error) {
	beats := beatCheck{glance: record.NewGlancer()}
	vo.Record = beats.see
	rep, err := ledger.Verify(vo)
	if err != nil {
		return nil, err
	}
	if ring != nil && rep.Keys.Status == ledger.OK {
		keyErr = ring.Check()
	}
	if keyErr != nil {
		rep.Keys = ledger.Answer{Status: ledger.Failed, Detail: keyErr.Error()}
	}
	if vo.Keys != nil && rep.Range.Status != ledger.Failed {
		rep.Range = beats.answer()
	}
	return rep, nil
}

// beatCheck looks for silence: between start and stop there is a heartbeat
// every minute, traffic or not. It goes by the monotonic clock that heartbeats
// tell, which no step of the wall clock moves.
type beatCheck struct {
	prev    int64 // monotonic time of the last heartbeat, 0 after a start
	running bool
	glance  *record.Glancer
	beat    record.Record
	silent  []string
	told    []string // silences that the heartbeat after them accounts for
	count   int
}

// silence is how long a running book may be without a heartbeat.
const silence = 3 * time.Minute

func (c *beatCheck) see(index uint64, frame []byte) error {
	kind, _, err := c.glance.Glance(frame)
	if err != nil {
		return err
	}
	switch kind {
	case record.KindStart:
		c.running, c.prev = true, 0
	case record.KindHeartbeat:
		c.count++
		c.beat = record.Record{}
		if err := record.Decode(frame, nil, &c.beat); err != nil {
			return err
		}
		e := &c.beat.Event
		if d := time.Duration(e.MonoUS-c.prev) * time.Microsecond; c.running && d > silence {
			if e.Cause != "" {
				c.told = append(c.told, fmt.Sprintf("%s before record %d (%s)", d.Round(time.Second), index, e.Cause))
			} else {
				c.silent = append(c.silent, fmt.Sprintf("%s before record %d", d.Round(time.Second), index))
			}
		}
		c.prev = e.MonoUS
	case record.KindStop, record.KindUncleanStop:
		c.running = false
	}
	return nil
}

func (c *beatCheck) answer() ledger.Answer {
	if len(c.silent) > 0 {
		return ledger.Answer{Status: ledger.Failed, Detail: fmt.Sprintf("no heartbeat for %v", c.silent)}
	}
	if len(c.told) > 0 {
		return ledger.Answer{Status: ledger.OK, Detail: fmt.Sprintf("%d heartbeats; the book took none for %v, which is accounted for", c.count, c.told)}
	}
	return ledger.Answer{Status: ledger.OK, Detail: fmt.Sprintf("%d heartbeats, none missing between start and stop", c.count)}
}
