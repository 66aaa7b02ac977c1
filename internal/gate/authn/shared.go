package authn

import (
	"context"
	"encoding/base64"
	"errors"
	"time"

	"github.com/gatebook/gatebook/internal/kv"
)

// SharedStore marks names for all nodes; *kv.Valkey is one.
type SharedStore interface {
	// Once takes the name until expires and reports whether it was free;
	// kv.ErrForgot if the store does not remember as far back as issued.
	Once(ctx context.Context, name string, issued, expires time.Time) (bool, error)
}

// SharedOnce is a Once of all nodes that share a store.
type SharedOnce struct {
	store  SharedStore
	marker marker
	local  Once
}

// NewSharedOnce makes one. Nodes need the same key, which hides what was used.
// local is this node's own memory, which answers alone, with a *LocalOnly, when
// the store is away or does not know; nil: nothing passes then.
func NewSharedOnce(store SharedStore, key [32]byte, local Once) *SharedOnce {
	return &SharedOnce{store, marker{key}, local}
}

// Use implements Once.
func (s *SharedOnce) Use(ctx context.Context, u Use) (bool, error) {
	if s.local != nil {
		// What this node has seen needs no asking, and what it has not seen it
		// must remember for when the store is away.
		fresh, err := s.local.Use(ctx, u)
		if err == nil && !fresh || err != nil && !errors.Is(err, ErrForgot) {
			return false, err
		}
		return s.ask(ctx, u, err)
	}
	fresh, err := s.remote(ctx, u)
	if errors.Is(err, kv.ErrForgot) {
		err = ErrForgot
	}
	return fresh && err == nil, err
}

// ask asks the store about what is new to this node; local is why this node
// could not say so.
func (s *SharedOnce) ask(ctx context.Context, u Use, local error) (bool, error) {
	fresh, err := s.remote(ctx, u)
	switch {
	case err == nil:
		return fresh, nil
	case local != nil:
		return false, local
	case ctx.Err() != nil:
		return false, err
	}
	return true, &LocalOnly{err}
}

func (s *SharedOnce) remote(ctx context.Context, u Use) (bool, error) {
	m := s.marker.of(&u)
	return s.store.Once(ctx, "once:"+base64.RawURLEncoding.EncodeToString(m[:]), u.Issued, u.Expires)
}
