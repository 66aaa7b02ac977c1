package book

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/record"
	"github.com/gatebook/gatebook/internal/book/store"
)

// Names in a book's folder that a new log leaves behind.
const (
	earlierDir  = "before"   // folder with the logs that this one continues, one folder each
	renewalName = "renewing" // a Renew that has begun and not ended
	eventNewLog = "new_log"
)

// renewReasons are why a log may be followed by a new one.
var renewReasons = []string{"restored", "damaged", "rolled_back", "lost", "key_exposed", "moved"}

// RenewOptions say why and after what a new log begins.
type RenewOptions struct {
	// Reason is one of RenewReasons; it is recorded in the new log.
	Reason string
	// Continues is a checkpoint of the old log that was kept elsewhere, the
	// newest that anybody has. Leaves that it covers and the folder lacks are
	// recorded as lost. Demanded for a restored folder.
	Continues []byte
}

// RenewReasons lists the words that RenewOptions.Reason takes.
func RenewReasons() []string { return slices.Clone(renewReasons) }

// Renewal is what a new log continues.
type Renewal struct {
	Reason string `json:"reason"`
	Origin string `json:"origin"` // of the old log
	Key    string `json:"key"`    // its verifier key
	Leaves uint64 `json:"leaves"` // that the folder holds
	Signed uint64 `json:"signed"` // and covers with its own checkpoint
	// Known is how many leaves the old log is known to have had; those above
	// Leaves are lost. Root is the root over them, in hex.
	Known uint64 `json:"known"`
	Root  string `json:"root"`
	// Damage is what was found wrong with the old log, if anything.
	Damage string `json:"damage,omitempty"`
	New    string `json:"new,omitempty"` // origin of the new log
}

// Lost is how many leaves of the old log are known to be gone.
func (r *Renewal) Lost() uint64 { return r.Known - min(r.Known, r.Leaves) }

// Folder is where the old log's files are, below the book's folder.
func (r *Renewal) Folder() string { return path.Join(earlierDir, path.Base(r.Origin)) }

// Renew begins a new log, under a new signing key and hence a new origin, in
// the folder of one that cannot go on: restored from a backup, rolled back or
// damaged. The old log's files stay, as they are, in a folder of their own; the
// keys of its records stay in the key store. The first record of the new log
// names the old one, its checkpoint, the reason and how many leaves are lost.
// Interrupted anywhere it can be called again.
func Renew(ctx context.Context, c Config, o RenewOptions) (_ *Renewal, err error) {
	if err := c.setDefaults(); err != nil {
		return nil, err
	}
	if !slices.Contains(renewReasons, o.Reason) {
		return nil, fmt.Errorf("reason %q is not one of %s", o.Reason, strings.Join(renewReasons, ", "))
	}
	var restored *RestoredError
	if err := c.notRestored(); errors.As(err, &restored) && restored.Partial {
		return nil, err
	}
	if err := c.present(); errors.Is(err, ErrNone) {
		return c.beginAgain(ctx, &o)
	} else if err != nil {
		return nil, err
	}
	files := store.Dir(c.Dir)
	r, err := c.renewal(ctx, files, &o)
	if err != nil {
		return nil, err
	}
	if err := c.replaceLog(ctx, files, r); err != nil {
		return nil, err
	}
	if err := c.noteRenewal(ctx, r); err != nil {
		return nil, err
	}
	for _, name := range []string{restoredName, renewalName} {
		if err := files.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, err
		}
	}
	return r, files.SyncDir(".")
}

// beginAgain makes a book in a folder that holds nothing of the old one.
func (c *Config) beginAgain(ctx context.Context, o *RenewOptions) (*Renewal, error) {
	if len(o.Continues) > 0 {
		return nil, fmt.Errorf("%s holds nothing of the old log, not even its key: leave out the checkpoint to be continued, or restore a backup first", c.Dir)
	}
	key, err := Create(ctx, *c)
	if err != nil {
		return nil, err
	}
	origin, _, _ := strings.Cut(key, "+")
	r := &Renewal{Reason: o.Reason, Damage: "nothing of it is here", New: origin}
	return r, c.noteRenewal(ctx, r)
}

// notRenewing refuses a folder in which Renew was interrupted.
func (c *Config) notRenewing() error {
	if _, err := os.Stat(filepath.Join(c.Dir, renewalName)); err == nil {
		return fmt.Errorf("in %s the beginning of a new log was interrupted; run \"gatebook book new\" again with the same words", c.Dir)
	}
	return nil
}

// renewal reads what was begun before, or looks at the old log and writes down
// what is to be done.
func (c *Config) renewal(ctx context.Context, files store.FS, o *RenewOptions) (*Renewal, error) {
	b, err := store.ReadFile(files, renewalName, 64<<10)
	if err == nil {
		r := new(Renewal)
		return r, json.Unmarshal(b, r)
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	r, err := c.oldLog(ctx, files, o)
	if err != nil {
		return nil, err
	}
	if b, err = json.Marshal(r); err == nil {
		err = store.WriteFile(files, renewalName, b)
	}
	return r, err
}

// oldLog looks at the log that cannot go on.
func (c *Config) oldLog(ctx context.Context, files store.FS, o *RenewOptions) (*Renewal, error) {
	var restored *RestoredError
	if err := c.notRestored(); err != nil && !errors.As(err, &restored) {
		return nil, err
	}
	switch {
	case restored != nil && (restored.Partial || len(o.Continues) == 0):
		return nil, restored
	case restored == nil:
		if err := c.endOld(ctx); err != nil {
			return nil, err
		}
	}
	ring, err := c.readOnlyRing(ctx)
	if err != nil {
		return nil, err
	}
	opt, vkey, err := c.ledgerOptions(&place{files: files}, ring)
	if err != nil {
		return nil, keyless(err)
	}
	r := &Renewal{Reason: o.Reason, Origin: opt.Origin, Key: vkey}
	view, err := ledger.Inspect(opt, vkey)
	var damage *ledger.Damage
	switch {
	case errors.As(err, &damage):
		r.Damage = damage.Error()
	case errors.Is(err, fs.ErrNotExist):
		r.Damage = "its files are gone"
	case err != nil:
		return nil, err
	default:
		defer view.Close()
		_, tree := view.Checkpoint()
		r.Leaves, r.Signed, r.Known, r.Root = view.Size(), tree.Size, view.Size(), hex.EncodeToString(tree.Root[:])
	}
	if len(o.Continues) > 0 {
		err = r.continues(view, vkey, o.Continues)
	}
	return r, err
}

// endOld gives a log that still can be appended to its last records: exchanges
// without an outcome, counts that are due, the stop.
func (c *Config) endOld(ctx context.Context) error {
	b, err := openFolder(ctx, *c)
	var damage *ledger.Damage
	if errors.As(err, &damage) || errors.Is(err, ErrNone) {
		return nil // said again by whoever reads it next
	}
	if err != nil {
		return err
	}
	return b.Close(ctx)
}

// continues takes note of a checkpoint that was kept elsewhere.
func (r *Renewal) continues(view *ledger.View, vkey string, msg []byte) error {
	t, err := ledger.CheckpointOf(msg, vkey)
	if err != nil {
		return fmt.Errorf("the checkpoint to be continued is not one of log %q: %w", r.Origin, err)
	}
	if view != nil && t.Size <= r.Leaves {
		root, err := view.RootAt(t.Size)
		if err != nil {
			return err
		}
		if root != t.Root {
			return &ledger.Damage{Kind: ledger.Forked, File: "checkpoint", Last: max(t.Size, 1) - 1, Detail: "the folder holds another history than the checkpoint that was kept; do not continue it, find out who changed it"}
		}
	}
	if t.Size >= r.Signed {
		r.Root = hex.EncodeToString(t.Root[:])
	}
	r.Known = max(r.Known, t.Size)
	return nil
}

// replaceLog moves the old log's files away and makes an empty one. Each step
// may have been done before.
func (c *Config) replaceLog(ctx context.Context, files store.FS, r *Renewal) (err error) {
	ks, err := keys.OpenBolt(c.statePath(), false)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, ks.Close()) }()
	w, err := keys.OpenFileWrapper(c.KeyDir)
	if err != nil {
		return keyless(err)
	}
	ring, err := keys.Open(ctx, ks, w)
	if err != nil {
		return keyless(err)
	}
	opt, vkey, err := c.ledgerOptions(&place{files: files}, ring)
	if err != nil {
		return keyless(err)
	}
	if opt.Origin == r.Origin {
		// Births in the old WAL must be in the key store before the log goes; a
		// damaged log cannot tell them, and a moved one has told them.
		if view, err := ledger.Inspect(opt, vkey); err == nil {
			err = view.Close()
			if err != nil {
				return err
			}
		}
		if err := leaveBehind(files, r.Folder()); err != nil {
			return err
		}
		if err := ring.RenewSigning(); err != nil {
			return err
		}
		if opt, vkey, err = c.ledgerOptions(&place{files: files}, ring); err != nil {
			return err
		}
	}
	r.New = opt.Origin
	if _, err := os.Stat(filepath.Join(c.Dir, "ledger")); err == nil {
		return nil
	}
	// A creation that was interrupted left nothing that counts.
	for _, name := range []string{"checkpoint", "log.vkey", "wal", "segments", "manifests", "tile"} {
		if err := os.RemoveAll(filepath.Join(c.Dir, name)); err != nil {
			return err
		}
	}
	return ledger.Create(opt, vkey)
}

// leaveBehind moves the old log's files to the folder to.
func leaveBehind(files store.FS, to string) (err error) {
	lock, err := files.Lock("lock")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, lock.Close()) }()
	if err := ledger.Release(files, to); err != nil {
		return err
	}
	for _, name := range []string{foldName, backupInfoName} {
		if err := files.Rename(name, to+"/"+name); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	return errors.Join(files.SyncDir(to), files.SyncDir("."))
}

// noteRenewal records in the new log what it continues, once.
func (c *Config) noteRenewal(ctx context.Context, r *Renewal) (err error) {
	b, err := openFolder(ctx, *c)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, b.Close(ctx)) }()
	reader, err := b.Reader()
	if err != nil {
		return err
	}
	noted := false
	err = reader.Each(0, reader.Size(), false, func(e *Entry) error {
		noted = noted || e.Record.Event.Name == eventNewLog
		return nil
	})
	if err = errors.Join(err, reader.Close()); err != nil || noted {
		return err
	}
	target := ""
	if r.Origin != "" {
		target = fmt.Sprintf("%s@%d", r.Origin, r.Known)
	}
	return b.Note(ctx, &record.Record{
		Kind: record.KindKey, Outcome: record.Success,
		Event: record.Event{
			Name: eventNewLog, Target: target, Before: r.Root, Cause: r.Reason,
			Count: int64(r.Lost()), Exact: r.Damage == "",
		},
	})
}
