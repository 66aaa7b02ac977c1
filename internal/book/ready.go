package book

import (
	"errors"
	"fmt"
	"time"

	"github.com/gatebook/gatebook/internal/book/ledger"
)

// Ready says why the book cannot be relied on to take the next record, nil if
// it can: the ledger has failed or has no room, exchanges went unrecorded and
// that could not be told yet, nothing can be sealed, or the clock was stepped.
func (b *Book) Ready() error {
	if err := b.ledger.Err(); err != nil {
		return err
	}
	space := b.ledger.Space()
	if space.Full != nil {
		return fmt.Errorf("book_full: %w", space.Full)
	}
	t, orphans, err := b.blind.pending()
	switch {
	case t.count > 0:
		return fmt.Errorf("%s: %d exchanges wait for their gap record", t.cause, t.count)
	case orphans > 0:
		return fmt.Errorf("book_full: %d exchanges wait for their interrupted record", orphans)
	case err != nil:
		return fmt.Errorf("the blind file cannot be written: %w", err)
	case space.Sealing != nil && !errors.Is(space.Sealing, ledger.ErrFull):
		return fmt.Errorf("segments cannot be sealed: %w", space.Sealing)
	}
	if step := time.Duration(b.stepped.Load()); step != 0 {
		return fmt.Errorf("the clock was stepped by %v", step)
	}
	return nil
}

// Health is what readiness does not say yet, for metrics and alarms.
type Health struct {
	Free    int64  `json:"free"`              // bytes that the disk still takes
	Total   int64  `json:"total"`             // bytes that it has
	Low     bool   `json:"low"`               // below the alarm: a fifth, or 20 GiB
	Full    string `json:"full,omitempty"`    // why records are refused
	Ballast bool   `json:"ballast"`           // it is in place
	Keys    string `json:"keys,omitempty"`    // the key store gives no keys
	Sealing string `json:"sealing,omitempty"` // why the newest try to seal failed
	Blind   int64  `json:"blind"`             // exchanges that are not recorded yet
	Inexact bool   `json:"inexact,omitempty"` // that count
}

// Health reads it. It works while the book is down.
func (b *Book) Health() Health {
	s := b.ledger.Space()
	t, orphans, _ := b.blind.pending()
	text := func(err error) string {
		if err == nil {
			return ""
		}
		return err.Error()
	}
	return Health{
		Free: s.Free, Total: s.Total, Low: s.Low, Full: text(s.Full), Ballast: s.Ballast, Keys: text(s.Keys), Sealing: text(s.Sealing),
		Blind: t.count + int64(orphans), Inexact: t.inexact,
	}
}
