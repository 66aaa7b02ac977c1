package authn

import (
	"context"
	"errors"
	"slices"
)

// Inherit takes over the keys that before has loaded, if both get them from the
// same place for the same algorithms. Whether the authorities that vouch for
// that place are the same too is for the caller to know. It is called before
// the first Authenticate and before Run.
func (j *JWT) Inherit(before *JWT) {
	a, b := &j.keys.cfg, &before.keys.cfg
	if j.issuer != before.issuer || a.URL != b.URL || a.File != b.File || !slices.Equal(j.allowed, before.allowed) {
		return
	}
	if ks := before.keys.loaded.Load(); ks != nil {
		j.keys.loaded.Store(ks)
	}
}

// Load fetches the keys unless there are usable ones, and says why there are
// none. It waits no longer than one fetch may take.
func (j *JWT) Load(ctx context.Context) error {
	if j.keys.demand(ctx) != nil {
		return nil
	}
	if err := j.Status().Err; err != nil {
		return err
	}
	return errors.New("the keys could not be fetched")
}
