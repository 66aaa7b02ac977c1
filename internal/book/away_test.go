package book

import (
	"errors"
	"fmt"
	"testing"

	"github.com/gatebook/gatebook/internal/book/keys"
	"github.com/gatebook/gatebook/internal/book/ledger"
)

// A key that could not be had may be there later; one that is gone, unknown or
// damaged never will be, and a damaged block is not made good by any key.
func TestEntryAway(t *testing.T) {
	noKey := func(err error) error {
		return &ledger.KeyError{What: "subject 11", Err: fmt.Errorf("reading: %w", err)}
	}
	for name, c := range map[string]struct {
		sealed       error
		away, erased bool
	}{
		"open":              {nil, false, false},
		"unavailable":       {noKey(keys.ErrKeyUnavailable), true, false},
		"unavailable alone": {keys.ErrKeyUnavailable, true, false},
		"store away":        {noKey(errors.New("input/output error")), true, false},
		"later format":      {noKey(keys.ErrVersion), true, false},
		"destroyed":         {noKey(keys.ErrKeyDestroyed), false, true},
		"unknown":           {noKey(keys.ErrKeyUnknown), false, false},
		"damaged key":       {noKey(keys.ErrKeyDamaged), false, false},
		"damaged block":     {errors.New("message authentication failed"), false, false},
	} {
		e := Entry{Sealed: c.sealed}
		if e.Away() != c.away || e.Erased() != c.erased {
			t.Errorf("%s: away %v, erased %v", name, e.Away(), e.Erased())
		}
	}
}
