package book

import (
	"fmt"

	"github.com/gatebook/gatebook/internal/book/record"
)

// Pick hands out of the records [from, to), in order, the fields that p picks, one
// record at a time from the disk: it costs a fraction of Each. What fn gets is valid
// only during the call. Records before a damaged one may be handed out before the
// error. An error from fn ends the reading and is returned.
func (r *Reader) Pick(from, to uint64, p *record.Picker, fn func(index uint64, rec *record.Record) error) error {
	return r.view.Stream(from, to, func(index uint64, frame []byte) error {
		rec, err := p.Pick(frame)
		if err != nil {
			return fmt.Errorf("record %d: %w", index, err)
		}
		return fn(index, rec)
	})
}
