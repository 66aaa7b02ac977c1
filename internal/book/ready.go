package book

import "fmt"

// Ready says why the book cannot be relied on to take the next record, nil if
// it can: the ledger has failed, or exchanges went unrecorded and the gap
// record that says so could not be written yet.
func (b *Book) Ready() error {
	if err := b.ledger.Err(); err != nil {
		return err
	}
	b.gapMu.Lock()
	defer b.gapMu.Unlock()
	if b.gap.count > 0 {
		return fmt.Errorf("%s: %d exchanges wait for their gap record", b.gap.cause, b.gap.count)
	}
	return nil
}
