package book

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
	"github.com/gatebook/gatebook/internal/book/store"
)

// Create makes a new, empty book and returns its verifier key. The folder must
// not hold one. Interrupted anywhere it can be called again.
func Create(ctx context.Context, c Config) (vkey string, err error) {
	if err := c.setDefaults(); err != nil {
		return "", err
	}
	if err := errors.Join(c.notRestored(), c.notRenewing()); err != nil {
		return "", err
	}
	if err := os.MkdirAll(filepath.Dir(c.statePath()), 0o700); err != nil {
		return "", err
	}
	w, err := keys.CreateFileWrapper(c.KeyDir)
	if err != nil {
		return "", err
	}
	ks, err := keys.OpenBolt(c.statePath(), false)
	if errors.Is(err, keys.ErrLocked) {
		return "", fmt.Errorf("%s: %w", c.Dir, store.ErrLocked)
	}
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, ks.Close()) }()
	return create(ctx, &c, &place{files: store.Dir(c.Dir), state: ks, wrapper: w})
}

func create(ctx context.Context, c *Config, p *place) (vkey string, err error) {
	ring, err := keys.Create(ctx, p.state, p.wrapper)
	if errors.Is(err, keys.ErrExists) {
		ring, err = c.unfinished(ctx, p)
	}
	if err != nil {
		return "", err
	}
	opt, vkey, err := c.ledgerOptions(p, ring)
	if err != nil {
		return "", err
	}
	return vkey, ledger.Create(opt, vkey)
}

// unfinished opens the keys of a book whose creation was interrupted, and clears
// its folder. Any other book is left alone. The signing key is a new one, so that
// no name of a log is used twice whatever there was.
func (c *Config) unfinished(ctx context.Context, p *place) (*keys.Ring, error) {
	lock, err := p.files.Lock("lock")
	if err != nil {
		return nil, err
	}
	defer lock.Close()
	ring, err := keys.Open(ctx, p.state, p.wrapper)
	if err != nil {
		return nil, keyless(err)
	}
	used, err := ring.Used()
	if err != nil {
		return nil, err
	}
	clean, err := ledger.Unfinished(p.files)
	if err != nil {
		return nil, err
	}
	if used || !clean {
		return nil, fmt.Errorf("%s holds a book, or a part of one, which is left alone; name another data folder, or see \"gatebook book new --help\"", c.Dir)
	}
	return ring, errors.Join(ledger.ClearUnfinished(p.files), ring.RenewSigning())
}
